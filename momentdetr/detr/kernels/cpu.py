"""The compiled CPU kernel, called through ctypes: see deformable_cpu.c for how it works, library.py for where it is."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from momentdetr.detr.kernels import library, torch_fallback

DEVICES = ("cpu",)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

INSTRUCTIONS = ("portable", "AVX2", "AVX-512")
MAX_POINTS = 1024
"""Of all levels together; more go to the torch fallback. As in deformable_cpu.c."""

COPY_BYTES = 2**24
"""Memory for the copied rows of the heads that are worked on."""

Shapes = Sequence[Sequence[int]]


class Arguments(ctypes.Structure):
    """`Args` of deformable_cpu.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "cells", "queries", "heads", "channels", "levels", "points")),
        *((name, ctypes.c_int64) for name in ("dims", "kind", "value_type", "offsets_type", "logits_type")),
        *((name, ctypes.c_int64) for name in ("instructions", "threads", "slots", "by_level")),
        *((name, ctypes.c_void_p) for name in ("shapes", "value", "references", "offsets", "logits", "copies")),
        *((name, ctypes.c_void_p) for name in ("output", "grad_output", "weights", "grad_copies", "grad_value")),
        *((name, ctypes.c_void_p) for name in ("grad_offsets", "grad_logits", "grad_references")),
    )


@functools.cache
def loaded() -> tuple[ctypes.CDLL, int]:
    """The library, and the index of the best instruction set that it has for this processor.

    Raises:
        RuntimeError: there is none, and why.
    """
    found = ctypes.CDLL(str(library.find()))
    for name in ("momentdetr_instructions", "momentdetr_arguments_size"):
        getattr(found, name).restype = ctypes.c_int64
    if found.momentdetr_arguments_size() != ctypes.sizeof(Arguments):
        raise RuntimeError("the compiled library and this version do not belong together; install momentdetr again")
    for name in ("momentdetr_forward", "momentdetr_backward"):
        getattr(found, name).argtypes, getattr(found, name).restype = (ctypes.POINTER(Arguments),), None
    return found, found.momentdetr_instructions()


def available() -> str:
    """Why this kernel cannot be used; empty: it can."""
    try:
        loaded()
    except (RuntimeError, OSError) as error:
        return str(error)
    return ""


def details() -> str:
    """The instruction set in use, for people."""
    return INSTRUCTIONS[loaded()[1]]


def forward(value: Tensor, shapes: Shapes, references: Tensor | None, offsets: Tensor, logits: Tensor) -> Tensor:
    """As `reference.forward`, for D = 1 and 2."""
    if offsets.shape[3] * offsets.shape[4] > MAX_POINTS:
        return torch_fallback.forward(value, shapes, references, offsets, logits)
    call = _Call(value, shapes, references, offsets, logits)
    slice_bytes = math.prod(call.value.shape[1::2]) * call.value.element_size()
    if call.worth_copying():
        most = max(1, min(call.arguments.threads, COPY_BYTES // slice_bytes))
        call.arguments.slots = min(value.shape[0] * value.shape[2], most)
        call.new("copies", (call.arguments.slots, *call.value.shape[1::2]), call.value.dtype)
    output = call.new("output", (value.shape[0], offsets.shape[1], *value.shape[2:]), call.value.dtype)
    loaded()[0].momentdetr_forward(call.arguments)
    return output.to(value.dtype)


def backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Shapes,
    references: Tensor | None,
    offsets: Tensor,
    logits: Tensor,
    with_references: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """As `reference.backward`, for D = 1 and 2; the same bits in every run."""
    if offsets.shape[3] * offsets.shape[4] > MAX_POINTS:
        return torch_fallback.backward(grad_output, value, shapes, references, offsets, logits, with_references)
    call = _Call(value, shapes, references, offsets, logits)
    call.arguments.grad_output = call.keep(grad_output.to(call.value.dtype))
    call.arguments.by_level = 2 * call.arguments.threads > value.shape[0] * value.shape[2]
    if call.worth_copying():
        most = max(math.prod(shape) for shape in shapes) if call.arguments.by_level else value.shape[1]
        call.arguments.slots = most
        rows = call.arguments.threads, most, value.shape[-1]
        call.new("copies", rows, call.value.dtype)
        call.new("grad_copies", rows, call.real)
        grad_value = call.new("grad_value", value.shape, call.value.dtype)
    else:
        grad_value = torch.zeros(value.shape, dtype=call.real)
        call.arguments.grad_value = call.keep(grad_value)
    call.new("weights", logits.shape, call.real)
    grad_logits = call.new("grad_logits", logits.shape, call.real)
    grad_offsets = call.new("grad_offsets", offsets.shape, call.real)
    grad_references = None
    if with_references and references is not None:
        grad_references = call.new("grad_references", references.shape, torch.float64)
    loaded()[0].momentdetr_backward(call.arguments)
    if grad_references is not None and references is not None:
        grad_references = grad_references.to(references.dtype)
    return grad_value.to(value.dtype), grad_references, grad_offsets.to(offsets.dtype), grad_logits.to(logits.dtype)


class _Call:
    """The arguments of one call, and what keeps their memory alive.

    float16 is widened to float32 here; the arithmetic has no code of its own for it.
    """

    def __init__(
        self, value: Tensor, shapes: Shapes, references: Tensor | None, offsets: Tensor, logits: Tensor
    ) -> None:
        self.kept: list[object] = []
        self.real = torch.float64 if value.dtype == torch.float64 else torch.float32
        self.value = value.float() if value.dtype == torch.float16 else value
        types = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
        offsets, logits = (x if x.dtype in (self.real, torch.bfloat16) else x.to(self.real) for x in (offsets, logits))
        sizes = [size for shape in shapes for size in reversed(shape)]
        natural = (ctypes.c_int64 * len(sizes))(*sizes)
        self.kept.append(natural)
        self.arguments = Arguments(
            *value.shape[:2], offsets.shape[1], *value.shape[2:], *offsets.shape[3:],
            kind=0 if references is None else references.shape[-1] // offsets.shape[-1],
            value_type=types[self.value.dtype], offsets_type=types[offsets.dtype], logits_type=types[logits.dtype],
            instructions=loaded()[1], threads=torch.get_num_threads(), shapes=ctypes.addressof(natural),
            value=self.keep(self.value), offsets=self.keep(offsets), logits=self.keep(logits),
            references=None if references is None else self.keep(references.double()),
        )  # fmt: skip

    def keep(self, tensor: Tensor) -> int:
        """The address of a tensor that lives as long as the call."""
        assert tensor.is_contiguous()
        self.kept.append(tensor)
        return tensor.data_ptr()

    def new(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory for a field of the arguments."""
        tensor = torch.empty(tuple(shape), dtype=dtype)
        setattr(self.arguments, name, self.keep(tensor))
        return tensor

    def worth_copying(self) -> bool:
        """Whether rows are read so often that it pays to bring them together first."""
        given = self.arguments
        corners = 2**given.dims
        return given.queries * given.levels * given.points * corners >= 4 * given.cells
