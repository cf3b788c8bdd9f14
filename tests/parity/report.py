"""What was compared, item by item: a summary for the terminal and the full table for a file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from parity.check import TIE
from parity.comparison import Row, Status
from parity.kinks import MOVED


@dataclass
class Report:
    """Rows by item ("moment_detr float32"), then by part ("outputs"); items that were not run, with the reason."""

    rows: dict[str, dict[str, list[Row]]] = field(default_factory=lambda: defaultdict(dict))
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, item: str, part: str, rows: Sequence[Row]) -> None:
        self.rows[item][part] = list(rows)

    def summary(self) -> list[str]:
        """One line an item: how much was compared of each part, and how near the worst came to its tolerance."""
        lines = [f"{item}: {_summary(parts)}" for item, parts in sorted(self.rows.items())]
        return lines + self._not_run()

    def table(self) -> str:
        """Every row, grouped."""
        lines = []
        for item, parts in sorted(self.rows.items()):
            lines += [f"# {item}: {_summary(parts)}"]
            for part, rows in parts.items():
                lines += [f"## {part}"] + [f"{row}" for row in rows]
        return "\n".join(lines + [f"# {line}" for line in self._not_run()]) + "\n"

    def _not_run(self) -> list[str]:
        """One line a reason."""
        items: dict[str, list[str]] = defaultdict(list)
        for item, why in sorted(self.missing.items()):
            items[why].append(item)
        return [f"{why}: {', '.join(names)}" for why, names in items.items()]

    def write(self, path: Path) -> None:
        path.write_text(self.table())


def _summary(parts: dict[str, list[Row]]) -> str:
    counts = [_count(part, rows) for part, rows in parts.items()]
    rows = [row for rows in parts.values() for row in rows]
    # Final answers are written rounded, so they are always about as far off as they may be.
    precise = [row for part, rows in parts.items() if part != "predictions" for row in rows if row.tolerance > 0]
    worst = max(precise, key=lambda row: row.ratio, default=None)
    told = "" if worst is None else f"; worst {worst.ratio:.3f} of its tolerance ({worst.name})"
    noted: dict[str, int] = defaultdict(int)
    for row in rows:
        if row.status is Status.EXCUSED or row.note in (MOVED, TIE):
            noted[("not compared: " if row.status is Status.EXCUSED else "") + row.note] += 1
    notes = "".join(f"; {count} {note}" for note, count in noted.items())
    return ", ".join(counts) + told + notes


def _count(part: str, rows: Sequence[Row]) -> str:
    equal = [row for row in rows if row.status is Status.EQUAL]
    largest = max((row.difference for row in equal), default=0.0)
    return f"{part} {len(equal)}/{len(rows)}" + (f" (to {largest:.0e})" if largest > 0 else "")


def verdict(rows: Iterable[Row]) -> str | None:
    """None if all is well; else the first failures, readable, in the order of the recording."""
    rows = list(rows)
    if not rows:
        return "nothing was recorded, so nothing was proved"
    failed = [row for row in rows if row.failed]
    if not failed:
        return None
    shown = "\n  ".join(str(row) for row in failed[:20])
    more = f"\n  ... and {len(failed) - 20} more" if len(failed) > 20 else ""
    return f"{len(failed)} of {len(rows)} failed:\n  {shown}{more}"
