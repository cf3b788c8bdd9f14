"""Compare ours with theirs, number by number, and keep a row of every comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

import torch
from torch import Tensor


class Reason(Enum):
    """The only reasons for which a recorded number may stay uncompared."""

    DRAW = "a recorded random draw, which the run takes as an input"
    MASKS = "a mask of panoptic DETR, which has no place here; its boxes are compared"
    HOOK = "the inside of a module that is computed in another form here; its result is compared"


class Status(Enum):
    EQUAL = "compared"
    EXCUSED = "not compared"
    DIFFERENT = "DIFFERENT"
    UNCOMPARED = "UNCOMPARED"


@dataclass(frozen=True)
class Row:
    """The outcome for one recorded tensor, loss term, matching or gradient.

    Args:
        name: its name in the goldens.
        status: what became of it.
        difference: largest absolute difference found, nan where there is none to speak of.
        tolerance: largest absolute difference allowed.
        note: the reason, where there is one.
    """

    name: str
    status: Status
    difference: float = math.nan
    tolerance: float = math.nan
    note: str = ""

    @property
    def failed(self) -> bool:
        return self.status in (Status.DIFFERENT, Status.UNCOMPARED)

    @property
    def ratio(self) -> float:
        """Difference over tolerance; 1 is the limit."""
        return self.difference / self.tolerance if self.tolerance > 0 else (math.inf if self.difference > 0 else 0.0)

    def __str__(self) -> str:
        if self.status is Status.EXCUSED:
            return f"{self.name}: not compared: {self.note}"
        numbers = "" if math.isnan(self.difference) else f" (max diff {self.difference:.2e}, {self.tolerance:.2e})"
        return f"{self.name}: {self.status.value}{numbers}{': ' if self.note else ''}{self.note}"


def compare_tensor(name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> Row:
    """Compare shape and every element; nan equals nan, an infinity equals itself."""
    if ours.shape != theirs.shape:
        return Row(name, Status.DIFFERENT, note=f"shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}")
    a, b = ours.detach().double(), theirs.double()
    if not torch.equal(a.isnan(), b.isnan()):
        return Row(name, Status.DIFFERENT, note="nan in other places")
    gap = torch.where((a == b) | a.isnan(), torch.zeros_like(a), (a - b).abs())
    difference = gap.max().item() if gap.numel() else 0.0
    status = Status.EQUAL if difference <= tolerance else Status.DIFFERENT
    note = "" if status is Status.EQUAL else _where(gap, tolerance)
    return Row(name, status, difference, tolerance, note)


def _where(gap: Tensor, tolerance: float) -> str:
    wrong = gap > tolerance
    first = tuple(wrong.nonzero()[0].tolist())
    return f"{int(wrong.sum())} of {wrong.numel()} elements, the first at {first}"


def compare_exactly(name: str, ours: object, theirs: object) -> Row:
    """Compare what has no tolerance: matched indices, masks, labels."""
    if ours == theirs:
        return Row(name, Status.EQUAL, 0.0, 0.0)
    return Row(name, Status.DIFFERENT, note=f"{ours}, expected {theirs}")


def compare_number(name: str, ours: float | Tensor, theirs: float, tolerance: float) -> Row:
    """Compare one number."""
    value = ours if isinstance(ours, Tensor) else torch.tensor(ours, dtype=torch.float64)
    return compare_tensor(name, value.reshape(()), torch.tensor(theirs, dtype=torch.float64), tolerance)


@dataclass(frozen=True)
class Fingerprint:
    """What is recorded of one parameter's gradient: norm, sum, dot product with linspace(-1, 1)."""

    norm: float
    sum: float
    dot: float

    @staticmethod
    def of(gradient: Tensor) -> Fingerprint:
        flat = gradient.detach().double().flatten()
        ramp = torch.linspace(-1, 1, flat.numel(), dtype=torch.float64)
        return Fingerprint(flat.norm().item(), flat.sum().item(), (flat * ramp).sum().item())

    def gap(self, other: Fingerprint) -> float:
        return max(abs(self.norm - other.norm), abs(self.sum - other.sum), abs(self.dot - other.dot))


def compare_gradient(name: str, ours: Tensor | None, theirs: Fingerprint | None, tolerance: float) -> Row:
    """Compare fingerprints; no gradient (None) and a gradient of zeros are different things."""
    if ours is None or theirs is None:
        if ours is None and theirs is None:
            return Row(name, Status.EQUAL, 0.0, 0.0, "no gradient")
        told = "no gradient" if ours is None else f"a gradient of norm {ours.norm().item():.3g}"
        expected = "none" if theirs is None else f"one of norm {theirs.norm:.3g}"
        return Row(name, Status.DIFFERENT, note=f"{told}, expected {expected}")
    difference = Fingerprint.of(ours).gap(theirs)
    status = Status.EQUAL if difference <= tolerance else Status.DIFFERENT
    return Row(name, status, difference, tolerance)


def uncompared(names: Iterable[str], permitted: Mapping[str, Reason]) -> list[Row]:
    """Rows for what nobody compared: excused by a pattern of `permitted`, or a failure."""
    rows = []
    for name in names:
        reason = next((reason for pattern, reason in permitted.items() if fnmatchcase(name, pattern)), None)
        if reason is None:
            rows.append(Row(name, Status.UNCOMPARED, note="recorded, but the run gave nothing to compare it with"))
        else:
            rows.append(Row(name, Status.EXCUSED, note=reason.value))
    return rows
