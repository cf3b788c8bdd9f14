"""Which tests an item of goldens needs, and how each is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from parity import fullsize, kinks, loaders, operations
from parity.check import CHECKS, Run, System
from parity.comparison import Row
from parity.material import DTYPES, Golden, Item, Kind, read_golden
from parity.predictions import recorded_answers
from parity.systems.table import SYSTEMS
from safetensors import SafetensorError

TESTS = Path(__file__).parents[1]


class NoSystem(Exception):
    """Nothing here can be compared with this item yet."""


class ProvedElsewhere(Exception):
    """Another test, named in the message, compares this item."""


@dataclass(frozen=True)
class Plan:
    """One test.

    Args:
        item: what it is about.
        group: the item and its precision, one line of the report.
        part: which numbers.
        rows: makes the comparisons; raises NoSystem or ProvedElsewhere.
    """

    item: Item
    group: str
    part: str
    rows: Callable[[], list[Row]]

    @property
    def id(self) -> str:
        return f"{self.group}-{self.part}".replace(" ", "-")


def plan(item: Item) -> list[Plan]:
    """The tests of one item; at least one, so that nothing passes by being overlooked."""
    try:
        return _plan(item)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        unreadable = NoSystem(f"{item.name} cannot be read: {type(error).__name__}: {error}")
        return [Plan(item, item.name, "content", partial(_raise, unreadable))]


def _plan(item: Item) -> list[Plan]:
    if item.kind is Kind.SYSTEM:
        return _plan_system(item)
    if item.kind is Kind.OPERATIONS:
        families = operations.families(item.path)
        named = [(Item(f"{item.name}/{family}", item.kind, item.path), family) for family in families]
        return [Plan(one, item.name, family, partial(_operations, item.path, family)) for one, family in named]
    answers: dict[Kind, tuple[str, Callable[[], list[Row]]]] = {
        Kind.FULLSIZE: ("outputs", lambda: fullsize.check(item.path, system_for)),
        Kind.DATASET: ("inputs", partial(_loader, item.path)),
        Kind.EVALUATION: ("scores", partial(_evaluation, item)),
        Kind.UNKNOWN: ("content", partial(_unknown, item)),
    }
    part, rows = answers[item.kind]
    return [Plan(item, item.name, part, rows)]


def system_for(config: dict) -> System:
    """The system that a config.json is of.

    Raises:
        NoSystem: there is none.
    """
    found = [system for system in SYSTEMS if system.accepts(config)]
    if len(found) != 1:
        told = f"{config.get('system')!r} of {config.get('repo') or config.get('name')!r}"
        raise NoSystem(f"no system here is compared with {told}" if not found else f"several systems claim {told}")
    return found[0]


def _plan_system(item: Item) -> list[Plan]:
    golden = read_golden(item.path)
    try:
        system = system_for(golden.config)
    except NoSystem as error:
        return [Plan(item, item.name, "system", partial(_raise, error))]
    plans = []
    for dtype in DTYPES:
        parts = ["outputs"] if golden.has(dtype) else []
        parts += ["losses", "gradients"] if golden.losses(dtype) else []
        parts += ["indices"] if any("indices" in case for case in golden.losses(dtype).values()) else []
        parts += ["predictions"] if dtype == "float32" and recorded_answers(golden) else []
        plans += [
            Plan(item, f"{item.name} {dtype}", part, partial(_rows, golden, system, dtype, part)) for part in parts
        ]
    return plans


def _rows(golden: Golden, system: System, dtype: str, part: str) -> list[Row]:
    rows = CHECKS[part](golden, _run(system.name, golden.folder, dtype), system, dtype)
    return kinks.settle(golden, system, dtype, rows) if part == "gradients" else rows


@cache
def _run(name: str, folder: Path, dtype: str) -> Run:
    """Parts of one item share one run."""
    system = next(system for system in SYSTEMS if system.name == name)
    return system.run(read_golden(folder), dtype)


def _operations(path: Path, family: str) -> list[Row]:
    rows = operations.check(path, family)
    if rows is None:
        raise NoSystem(f"operations {family!r} of {path.stem} are not built yet")
    return rows


def _loader(path: Path) -> list[Row]:
    rows = loaders.check(path)
    if rows is None:
        raise NoSystem(f"the loader of {path.stem} reads a data set whose reader is not built yet")
    return rows


def _evaluation(item: Item) -> list[Row]:
    for test in sorted(path for area in ("evaluation", "detection") for path in (TESTS / area).glob("test_*.py")):
        if f'"{item.path.name}"' in test.read_text():
            raise ProvedElsewhere(f"proved by {test.relative_to(TESTS.parent)} with the same --goldens")
    raise NoSystem(f"no test of tests/evaluation or tests/detection reads {item.path.name}")


def _unknown(item: Item) -> list[Row]:
    raise NoSystem(f"{item.name} holds nothing that the harness knows (README.md lists the kinds)")


def _raise(error: Exception) -> list[Row]:
    raise error
