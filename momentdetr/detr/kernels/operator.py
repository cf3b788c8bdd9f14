"""The two operators that a model calls, and how torch knows them: as custom operations with shapes and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from momentdetr.detr.kernels import arguments, dispatch, reference

Shapes = Sequence[Sequence[int]]


def deformable_attention(
    value: Tensor, level_shapes: Shapes, references: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """Multi-scale deformable attention from raw offsets and logits (Zhu et al., 2021).

    Softmax and locations are computed inside, in float32 whatever the types (in float64 for a float64 value), and a
    reference r on an axis of N cells is split into whole cell and fraction before rounding: a point lies at
    r * N - 0.5 + offset cells, or around a box of relative size s at (r + offset / P * s / 2) * N - 0.5. Points that
    are not finite or outside count as zero.

    Args:
        value: (B, S, H, C), the levels one after another, finite.
        level_shapes: one D-tuple a level, axes as torch stores them (rows before columns).
        references: (B, Q, L, D) points or (B, Q, L, 2D) boxes (centre, size), fractions of each level, natural order
            (x before y), float32 or float64.
        offsets: (B, Q, H, L, P, D), natural order.
        logits: (B, Q, H, L, P), softmaxed over L * P.

    Returns:
        (B, Q, H, C), in the value's type.

    Raises:
        ValueError: shapes, types or devices do not fit, or MOMENTDETR_KERNEL names a kernel that cannot run here.
    """
    return _apply(value, level_shapes, references, offsets, logits)


def sample_points(value: Tensor, level_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of points sampled on every level.

    Args:
        value: (B, S, H, C), the levels one after another, finite.
        level_shapes: one D-tuple a level, axes as torch stores them (rows before columns).
        locations: (B, Q, H, L, P, D), fractions of each level, natural order; the first cell's centre is half a cell.
        weights: (B, Q, H, L, P), used as they are.

    Returns:
        (B, Q, H, C), in the value's type.

    Raises:
        ValueError: as `deformable_attention`.
    """
    return _apply(value, level_shapes, None, locations, weights)


def _apply(value: Tensor, shapes: Shapes, references: Tensor | None, offsets: Tensor, logits: Tensor) -> Tensor:
    arguments.check(value, shapes, references, offsets, logits)
    if len(shapes[0]) > dispatch.MAX_DIMS or dispatch.requested() == "reference":
        return reference.forward(value, shapes, references, offsets, logits)
    if _is_watched(value):
        return attention_op(value, flat(shapes), references, offsets, logits)
    inputs = value, shapes, references, offsets, logits
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (value, references, offsets, logits)):
        return _Attention.apply(*inputs)
    return _forward(*inputs)


def _is_watched(value: Tensor) -> bool:
    """Whether somebody wants to see the operation, not only its result: a compiler, an exporter, a tracer, a mode.

    Passing by torch's dispatcher takes as long as the operation itself for a short video.
    """
    return (
        type(value) not in (Tensor, torch.nn.Parameter)
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_in_torch_dispatch_mode()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


@torch.library.custom_op("momentdetr::deformable_attention", mutates_args=())
def attention_op(
    value: Tensor, sizes: Sequence[int], references: Tensor | None, offsets: Tensor, logits: Tensor
) -> Tensor:
    """The operation that torch sees; `sizes` are the level shapes, one after another."""
    return _forward(value, levels_of(sizes, offsets.shape[-1]), references, offsets, logits)


def _forward(value: Tensor, shapes: Shapes, references: Tensor | None, offsets: Tensor, logits: Tensor) -> Tensor:
    if offsets.numel() == 0:
        return value.new_zeros(_output_shape(value, offsets))
    run = dispatch.kernel(dispatch.choose(value.device.type, value.dtype))
    inputs = [None if x is None else x.contiguous() for x in (references, offsets, logits)]
    return run.forward(value.contiguous(), shapes, *inputs)


@attention_op.register_fake
def _(value: Tensor, sizes: Sequence[int], references: Tensor | None, offsets: Tensor, logits: Tensor) -> Tensor:
    return value.new_empty(_output_shape(value, offsets))


@torch.library.custom_op("momentdetr::deformable_attention_backward", mutates_args=())
def backward_op(
    grad_output: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    references: Tensor | None,
    offsets: Tensor,
    logits: Tensor,
    with_references: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, references (empty if not asked for), offsets and logits."""
    shapes = levels_of(sizes, offsets.shape[-1])
    return _backward(grad_output, value, shapes, references, offsets, logits, with_references)


def _backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Shapes,
    references: Tensor | None,
    offsets: Tensor,
    logits: Tensor,
    with_references: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nothing = value.new_empty(0)
    if grad_output.numel() == 0 or offsets.numel() == 0:
        grads = tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (value, offsets, logits))
        given = torch.zeros_like(references) if with_references and references is not None else nothing
        return grads[0], given, grads[1], grads[2]
    run = dispatch.kernel(dispatch.choose(value.device.type, value.dtype))
    inputs = [None if x is None else x.contiguous() for x in (references, offsets, logits)]
    found = run.backward(grad_output.contiguous(), value.contiguous(), shapes, *inputs, with_references)
    return found[0], nothing if found[1] is None else found[1], found[2], found[3]


@backward_op.register_fake
def _(
    grad_output: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    references: Tensor | None,
    offsets: Tensor,
    logits: Tensor,
    with_references: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = references.new_empty(references.shape) if with_references and references is not None else value.new_empty(0)
    return (
        value.new_empty(value.shape),
        given,
        offsets.new_empty(offsets.shape),
        logits.new_empty(logits.shape),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None) -> None:
    value, ctx.sizes, references, offsets, logits = inputs
    ctx.save_for_backward(value, references, offsets, logits)


def _differentiate(ctx: Any, grad_output: Tensor, run: Callable[..., Any] = backward_op) -> tuple[Tensor | None, ...]:
    value, references, offsets, logits = ctx.saved_tensors
    with_references = references is not None and ctx.needs_input_grad[2]
    grads = run(grad_output, value, ctx.sizes, references, offsets, logits, with_references)
    return grads[0], None, grads[1] if with_references else None, grads[2], grads[3]


attention_op.register_autograd(_differentiate, setup_context=_keep)


class _Attention(torch.autograd.Function):
    """The same for nobody but autograd."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _keep(ctx, inputs, None)
        return _forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if _is_watched(grad_output):
            ctx.sizes = flat(ctx.sizes)
            return _differentiate(ctx, grad_output)
        return _differentiate(ctx, grad_output, _backward)


def flat(shapes: Shapes) -> list[int]:
    """Level shapes, one after another."""
    return [size for shape in shapes for size in shape]


def levels_of(sizes: Sequence[int], num_dims: int) -> list[tuple[int, ...]]:
    """Sizes of all levels, one after another, to a tuple a level."""
    return [tuple(sizes[i : i + num_dims]) for i in range(0, len(sizes), num_dims)]


def _output_shape(value: Tensor, offsets: Tensor) -> tuple[int, ...]:
    return value.shape[0], offsets.shape[1], *value.shape[2:]
