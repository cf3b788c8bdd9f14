"""How far ours may be from theirs. Nothing here depends on what the code under test gives."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase

from parity.comparison import Fingerprint
from torch import Tensor

FLOOR = {"float32": 1e-5, "float64": 1e-9}
PINNED = 1e-5
"""In float64, where the official code computes a part in float32 whatever the model's precision."""

GRADIENT = {"float32": 1e-4, "float64": 1e-6}
GRADIENT_FLOOR = {"float32": 1e-6, "float64": 1e-8}


def of_tensor(name: str, theirs: Tensor, dtype: str, spreads: dict[str, float], pins: Iterable[str]) -> float:
    """Largest absolute difference allowed for an output tensor.

    float32: ten times the official code's own |float32 - float64|, at least 1e-5. Tensors without that record (hooks
    inside a module) get 1e-5 of their largest magnitude, at least 1e-5. float64: 1e-9, where pinned 1e-5, of the
    largest magnitude above 1.
    """
    if dtype == "float32" and name in spreads:
        return max(10 * spreads[name], FLOOR["float32"])
    return floor_of(name, dtype, pins) * max(1.0, magnitude(theirs))


def of_loss(name: str, theirs: float, dtype: str, in_float64: float | None, pins: Iterable[str]) -> float:
    """The same rule for a loss term; its float32 spread is the gap between the two recorded values."""
    floor = floor_of(name, dtype, pins) * max(1.0, abs(theirs))
    if dtype == "float32" and in_float64 is not None and math.isfinite(in_float64):
        return max(10 * abs(theirs - in_float64), floor)
    return floor


def of_gradient(theirs: Fingerprint, dtype: str, in_float64: Fingerprint | None, whole: float) -> float:
    """Largest difference allowed in norm, sum and ramp product of one parameter's gradient.

    A perturbation of relative size e changes the norm by at most e |g|, and sum and ramp product, for errors that are
    independent, by about as much. So e = 1e-4 (float32) or 1e-6 (float64) of the parameter's own norm; but not below
    1e-6 (1e-8) of the norm of the whole gradient, because some gradients are zero up to rounding (a key's bias
    before a softmax); and in float32 not below ten times the official code's own |float32 - float64|.
    """
    tolerance = max(GRADIENT[dtype] * theirs.norm, GRADIENT_FLOOR[dtype] * whole)
    if dtype == "float32" and in_float64 is not None:
        return max(tolerance, 10 * theirs.gap(in_float64))
    return tolerance


def floor_of(name: str, dtype: str, pins: Iterable[str]) -> float:
    pinned = dtype == "float64" and any(fnmatchcase(name, pattern) for pattern in pins)
    return PINNED if pinned else FLOOR[dtype]


def magnitude(tensor: Tensor) -> float:
    """The largest finite magnitude, 0 of nothing."""
    finite = tensor[tensor.isfinite()] if tensor.is_floating_point() else tensor
    return finite.abs().max().item() if finite.numel() and finite.dtype.is_floating_point else 0.0
