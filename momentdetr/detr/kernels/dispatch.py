"""Which kernel runs: MOMENTDETR_KERNEL = auto | reference | torch | cpu | cuda | triton.

A kernel is a module with

    DEVICES     torch device types that it takes tensors of
    DTYPES      types of values that it takes
    available() why it cannot be used on this machine; empty: it can (never raises; looked at once, at the first use)
    forward     of the signature of `reference.forward`, for D = 1 and 2
    backward    of the signature of `reference.backward`

Arguments have been checked before a kernel sees them: shapes, devices and types agree, and tensors are contiguous.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType

import torch

VARIABLE = "MOMENTDETR_KERNEL"
KERNELS = {"cpu": "cpu", "triton": "triton_backend", "cuda": "cuda", "torch": "torch_fallback", "reference": "reference"}
"""Name -> module; the first that takes the tensors at hand is chosen."""

MAX_DIMS = 2
"""Beyond, there is only the reference."""


@functools.cache
def load(name: str) -> ModuleType | str:
    """A kernel's module, or why there is none."""
    try:
        module = importlib.import_module(f"{__package__}.{KERNELS[name]}")
        return module.available() or module
    except Exception as error:  # a broken kernel must not break the model: the next one takes over
        return f"{type(error).__name__}: {error}"


def requested() -> str:
    """What the environment asks for, `auto` where it asks for nothing.

    Raises:
        ValueError: there is no such kernel.
    """
    name = os.environ.get(VARIABLE, "").strip().lower() or "auto"
    if name != "auto" and name not in KERNELS:
        raise ValueError(f"{VARIABLE}={name!r} is no kernel; choose one of auto, {', '.join(KERNELS)}")
    return name


def obstacle(name: str, device: str, dtype: torch.dtype, num_dims: int = 2) -> str:
    """Why a kernel cannot take tensors of a device and type; empty: it can."""
    if name == "reference":
        return ""
    if num_dims > MAX_DIMS:
        return f"made for up to {MAX_DIMS} dimensions"
    module = load(name)
    if isinstance(module, str):
        return module
    if device not in module.DEVICES:
        return f"not for tensors on {device}"
    return "" if dtype in module.DTYPES else f"not for {str(dtype).removeprefix('torch.')}"


def choose(device: str, dtype: torch.dtype, num_dims: int = 2) -> str:
    """The kernel that takes tensors of this device and type.

    Raises:
        ValueError: the environment asks for one that cannot.
    """
    name = requested()
    if num_dims > MAX_DIMS:
        return "reference"
    if name != "auto":
        why = obstacle(name, device, dtype)
        if why:
            raise ValueError(f"{VARIABLE}={name} cannot be used here: {why}; set it to auto")
        return name
    chosen = next(name for name in KERNELS if not obstacle(name, device, dtype))
    if chosen == "torch" and device == "cpu":
        notify_slow()
    return chosen


@functools.cache
def notify_slow() -> None:
    """Say once that a compiled kernel is missing, and why."""
    why = load("cpu")
    if isinstance(why, str):
        warnings.warn(f"deformable attention runs without its compiled CPU kernel ({why}): slower", stacklevel=2)


def findings(device: str = "cpu") -> dict[str, str]:
    """What stands against each kernel for float32 tensors of a device, in order of choice; empty: nothing."""
    return {name: obstacle(name, device, torch.float32) for name in KERNELS}


def describe(name: str) -> str:
    """A kernel's name, and what its module adds to it (`details()`, where it has one)."""
    details = getattr(load(name), "details", None)
    return f"{name} ({details()})" if details else name


def kernel(name: str) -> ModuleType:
    """The module of a kernel that `choose` returned."""
    module = load(name)
    assert isinstance(module, ModuleType)
    return module
