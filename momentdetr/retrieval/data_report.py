"""What a check of a data set found: faults that must be mended, and what else there is to know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

SHOWN = 20


@dataclass
class DataReport:
    """Grows while a data set is checked.

    Args:
        facts: (heading, what was found).
        remarks: what is odd, or must be known, but may be meant so.
        faults: what makes the data unusable or its scores wrong.
    """

    facts: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def fact(self, heading: str, text: str) -> None:
        self.facts.append((heading, text))

    def lines(self) -> Iterator[str]:
        """For people: facts under their headings, remarks, faults."""
        heading = ""
        for name, text in self.facts:
            if name != heading:
                yield name
                heading = name
            yield f"  {text}"
        for title, texts in (("remarks", self.remarks), ("FAULTS", self.faults)):
            if texts:
                yield f"{title} ({len(texts)})"
                yield from (f"  {text}" for text in texts)
        if not self.faults:
            yield "no faults"

    def to_dict(self) -> dict[str, Any]:
        facts: dict[str, list[str]] = {}
        for heading, text in self.facts:
            facts.setdefault(heading, []).append(text)
        return {"facts": facts, "remarks": self.remarks, "faults": self.faults}


def some(names: Iterable[object], limit: int = 5) -> str:
    """The first names and how many more there are."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - limit:,} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def span(values: Sequence[float]) -> str:
    """Least, median and greatest of some numbers."""
    ranked = sorted(values)
    return f"{ranked[0]:.4g} to {ranked[-1]:.4g}, median {ranked[len(ranked) // 2]:.4g}"
