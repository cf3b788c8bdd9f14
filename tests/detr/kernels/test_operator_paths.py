"""The two ways to a kernel: straight, and by torch's dispatcher where somebody watches."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from kernel_cases import make_case
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from momentdetr.detr.kernels import deformable_attention, operator

SHAPES = [(7,), (1,), (4,)]


class Names(TorchDispatchMode):
    """The names of the operations that torch sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        self.seen.append(str(function))
        return function(*arguments, **(options or {}))


def inputs_of() -> list[Tensor]:
    case = make_case(SHAPES)
    assert case.references is not None
    return [x.requires_grad_() for x in (case.value, case.references, case.offsets, case.logits)]


def call(inputs: list[Tensor]) -> Tensor:
    return deformable_attention(inputs[0], SHAPES, *inputs[1:])


def test_both_ways_give_the_same_bits_and_gradients() -> None:
    results = []
    for watched in (False, True):
        inputs = inputs_of()
        with patch.object(operator, "_is_watched", lambda _, watched=watched: watched):
            output = call(inputs)
            results.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
    for straight, dispatched in zip(*results, strict=True):
        assert torch.equal(straight, dispatched)


@pytest.mark.parametrize("watched_backward", [False, True])
def test_a_mode_sees_the_operation(watched_backward: bool) -> None:
    inputs = inputs_of()
    names = Names()
    if watched_backward:
        output = call(inputs)
        with names:
            torch.autograd.grad(output.sum(), inputs)
        wanted = "momentdetr.deformable_attention_backward.default"
    else:
        with names:
            call(inputs)
        wanted = "momentdetr.deformable_attention.default"
    assert wanted in names.seen


def test_a_function_transform_is_refused_not_computed_wrong() -> None:
    inputs = inputs_of()
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(lambda value: call([value, *inputs[1:]]).sum())(inputs[0].detach())


@pytest.mark.parametrize("watched", [False, True])
def test_a_second_derivative_is_refused(watched: bool) -> None:
    inputs = inputs_of()
    with patch.object(operator, "_is_watched", lambda _: watched):
        first = torch.autograd.grad(call(inputs).square().sum(), inputs[:1], create_graph=True)[0]
        with pytest.raises(RuntimeError, match=r"differentiate|autograd"):
            torch.autograd.grad(first.sum(), inputs[:1])


def test_without_gradients_no_graph_is_kept() -> None:
    inputs = inputs_of()
    with torch.no_grad():
        assert call(inputs).grad_fn is None
    assert call([x.detach() for x in inputs]).grad_fn is None
    assert call(inputs).requires_grad
