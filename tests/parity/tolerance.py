"""How far ours may be from theirs. Nothing here depends on what the code under test gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from parity.comparison import Fingerprint
from torch import Tensor

FLOOR = {"float32": 1e-5, "float64": 1e-9}
PINNED = 1e-5
"""In float64, where the official code computes a part in float32 whatever the model's precision."""

GRADIENT = {"float32": 1e-4, "float64": 1e-8}
GRADIENT_OF_WHOLE = 1e-2


@dataclass(frozen=True)
class Stated:
    """What is allowed in float32 where the official code has no run in float64 that would show its rounding.

    Args:
        absolute: of tensors and loss terms.
        relative: to a tensor's largest magnitude, to a loss term; added to `absolute`.
        gradient: relative to a gradient's norm, see `of_gradient`.
    """

    absolute: float
    relative: float
    gradient: float

    def of(self, theirs: Tensor | float) -> float:
        return self.absolute + self.relative * (magnitude(theirs) if isinstance(theirs, Tensor) else abs(theirs))


def of_tensor(
    name: str, theirs: Tensor, dtype: str, spreads: Mapping[str, float], pins: Iterable[str], worst: float = 0.0
) -> float:
    """Largest absolute difference allowed for an output tensor.

    float32: ten times the official code's own |float32 - float64| (`spreads`), at least 1e-5. For a tensor without that
    record (what passes between modules) ten times the folder's `worst` relative spread, at least 1e-5, of the tensor's
    largest magnitude, at least 1. float64: 1e-9, where pinned 1e-5, of the largest magnitude, at least 1.
    """
    if dtype == "float32" and name in spreads:
        return max(10 * spreads[name], FLOOR["float32"])
    relative = max(floor_of(name, dtype, pins), 10 * worst if dtype == "float32" else 0.0)
    return relative * max(1.0, magnitude(theirs))


def worst_spread(recorded: Mapping[str, Tensor], spreads: Mapping[str, float]) -> float:
    """The largest |float32 - float64| of the official code, relative to the tensor's magnitude, at least 1."""
    known = recorded.keys() & spreads.keys()
    return max((spreads[name] / max(1.0, magnitude(recorded[name])) for name in known), default=0.0)


def of_loss(name: str, theirs: float, dtype: str, in_float64: float | None, pins: Iterable[str]) -> float:
    """The same rule for a loss term; its float32 spread is the gap between the two recorded values."""
    floor = floor_of(name, dtype, pins) * max(1.0, abs(theirs))
    if dtype == "float32" and in_float64 is not None and math.isfinite(in_float64):
        return max(10 * abs(theirs - in_float64), floor)
    return floor


def of_gradient(
    name: str,
    theirs: Fingerprint,
    dtype: str,
    in_float64: Fingerprint | None,
    whole: float,
    pins: Iterable[str],
    relative: float | None = None,
) -> float:
    """Largest difference allowed in norm, sum and ramp product of one parameter's gradient.

    A relative error of size e changes the norm by at most e |g|, and sum and ramp product, where errors are
    independent, by about as much. So e |g| is allowed, with e = 1e-4 in float32, 1e-8 in float64, where pinned 1e-5;
    where that is more, a hundredth of e times the norm of all parameters' gradients together, because some
    gradients are zero up to rounding (a key's bias before a softmax); and in float32, where that is more, ten times the
    official code's own |float32 - float64|. `relative` is e where it is stated.
    """
    pinned = dtype == "float64" and _matches(name, pins)
    relative = relative or (PINNED if pinned else GRADIENT[dtype])
    tolerance = relative * max(theirs.norm, GRADIENT_OF_WHOLE * whole)
    if dtype == "float32" and in_float64 is not None:
        return max(tolerance, 10 * theirs.gap(in_float64))
    return tolerance


def floor_of(name: str, dtype: str, pins: Iterable[str]) -> float:
    return PINNED if dtype == "float64" and _matches(name, pins) else FLOOR[dtype]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def magnitude(tensor: Tensor) -> float:
    """The largest finite magnitude, 0 of nothing."""
    finite = tensor[tensor.isfinite()] if tensor.is_floating_point() else tensor
    return finite.abs().max().item() if finite.numel() and finite.dtype.is_floating_point else 0.0
