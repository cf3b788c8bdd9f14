"""The compiled CPU kernel, called through ctypes: see deformable_cpu.c for how it works, library.py for where it is."""

from __future__ import annotations

import ctypes
import functools
import math
import struct
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from momentdetr.detr.kernels import library, torch_fallback

DEVICES = ("cpu",)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

INSTRUCTIONS = ("portable", "AVX2", "AVX-512")
MAX_POINTS = 1024
"""Of all levels together; more go to the torch fallback. As in deformable_cpu.c."""

VECTOR = 16
"""Numbers that the longest vector has."""

NEAR = 2**17
"""Numbers of one sample that a processor has at hand wherever they lie."""

COPY_BYTES = 2**24
"""Memory for the copied rows of the heads that are worked on."""

Shapes = Sequence[Sequence[int]]


FIELDS = (
    *("batch", "cells", "queries", "heads", "channels", "levels", "points", "dims", "kind"),
    *("value_type", "offsets_type", "logits_type", "instructions", "threads", "slots", "by_level"),
    *("shapes", "value", "references", "bases", "offsets", "logits", "copies", "output"),
    *("grad_output", "weights", "grad_copies", "grad_value", "grad_offsets", "grad_logits", "grad_references"),
)
"""Of `Args` in deformable_cpu.c: numbers, then addresses, 8 bytes each."""
ARGUMENTS = struct.Struct(f"={len(FIELDS)}q")
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}


@functools.cache
def loaded() -> tuple[ctypes.CDLL, int]:
    """The library, and the index of the best instruction set that it has for this processor.

    Raises:
        RuntimeError: there is none, and why.
    """
    found = ctypes.CDLL(str(library.find()))
    for name in ("momentdetr_instructions", "momentdetr_arguments_size"):
        getattr(found, name).restype = ctypes.c_int64
    if found.momentdetr_arguments_size() != ARGUMENTS.size:
        raise RuntimeError("the compiled library and this version do not belong together; install momentdetr again")
    for name in ("momentdetr_forward", "momentdetr_backward"):
        getattr(found, name).argtypes, getattr(found, name).restype = (ctypes.c_char_p,), None
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
    batch, cells, heads, channels = value.shape
    if call.worth_copying():
        most = COPY_BYTES // (cells * channels * call.value.element_size())
        call.fields["slots"] = slots = min(batch * heads, max(1, min(call.fields["threads"], most)))
        call.new("copies", (slots, cells, channels), call.value.dtype)
    output = call.new("output", (batch, offsets.shape[1], heads, channels), call.value.dtype)
    call.run(loaded()[0].momentdetr_forward)
    return output if output.dtype == value.dtype else output.to(value.dtype)


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
    call.keep("grad_output", grad_output.to(call.value.dtype))
    threads, by_level = call.fields["threads"], 2 * call.fields["threads"] > value.shape[0] * value.shape[2]
    call.fields["by_level"] = by_level
    if call.worth_copying():
        call.fields["slots"] = most = max(math.prod(shape) for shape in shapes) if by_level else value.shape[1]
        rows = threads, most, value.shape[-1]
        call.new("copies", rows, call.value.dtype)
        call.new("grad_copies", rows, call.real)
        grad_value = call.new("grad_value", value.shape, call.value.dtype)
    else:
        grad_value = call.keep("grad_value", torch.zeros(value.shape, dtype=call.real))
    with_references = with_references and references is not None
    if by_level or with_references:
        call.new("weights", logits.shape, call.real)
    grad_logits = call.new("grad_logits", logits.shape, call.real)
    grad_offsets = call.new("grad_offsets", offsets.shape, call.real)
    grad_references = None
    if with_references and references is not None:
        grad_references = call.new("grad_references", references.shape, torch.float64)
    call.run(loaded()[0].momentdetr_backward)
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
        self.kept: list[Tensor] = []
        self.real = torch.float64 if value.dtype == torch.float64 else torch.float32
        self.value = value.float() if value.dtype == torch.float16 else value
        offsets, logits = (x if x.dtype in (self.real, torch.bfloat16) else x.to(self.real) for x in (offsets, logits))
        self.batch, self.cells, heads, channels = value.shape
        _, queries, _, levels, points, dims = offsets.shape
        sizes = [size for shape in shapes for size in reversed(shape)]
        self.sizes = (ctypes.c_int64 * len(sizes))(*sizes)
        self.fields: dict[str, int] = {
            "batch": self.batch, "cells": self.cells, "queries": queries, "heads": heads, "channels": channels,
            "levels": levels, "points": points, "dims": dims,
            "value_type": TYPES[self.value.dtype], "offsets_type": TYPES[offsets.dtype],
            "logits_type": TYPES[logits.dtype], "instructions": loaded()[1], "threads": torch.get_num_threads(),
            "shapes": ctypes.addressof(self.sizes),
        }  # fmt: skip
        for name, tensor in (("value", self.value), ("offsets", offsets), ("logits", logits)):
            self.keep(name, tensor)
        if references is not None:
            self.fields["kind"] = references.shape[-1] // dims
            self.keep("references", references.double())
            self.new("bases", (self.batch * queries * dims * 3 * levels + VECTOR,), self.real)

    def keep(self, name: str, tensor: Tensor) -> Tensor:
        """A field is the address of a tensor, which lives as long as the call."""
        assert tensor.is_contiguous()
        self.kept.append(tensor)
        self.fields[name] = tensor.data_ptr()
        return tensor

    def new(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory for a field."""
        return self.keep(name, torch.empty(shape, dtype=dtype))

    def worth_copying(self) -> bool:
        """Whether rows are read so often, and lie so far apart, that it pays to bring them together first."""
        given, values = self.fields, self.value.shape[1:].numel()
        reads = given["queries"] * given["levels"] * given["points"] * 2 ** given["dims"]
        return reads >= 4 * self.cells and values > NEAR

    def run(self, function: Callable[[bytes], None]) -> None:
        """Call one of the library's functions."""
        function(ARGUMENTS.pack(*[self.fields.get(name, 0) for name in FIELDS]))
