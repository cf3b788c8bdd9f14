"""What torch and other engines make of the operator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kernel_cases import make_case
from torch import Tensor, nn

from momentdetr.detr.kernels import deformable_attention, operator
from momentdetr.detr.kernels.export import for_onnx, grid_sample_form

SHAPES = {1: [(7,), (1,), (4,)], 2: [(4, 3), (1, 5)]}
VARIANTS = [(dims, kind) for dims in (1, 2) for kind in ("points", "boxes")]


class Attention(nn.Module):
    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = shapes

    def forward(self, value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return deformable_attention(value, self.shapes, references, offsets, logits)


def inputs_of(dims: int, kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    case = make_case(SHAPES[dims], kind=kind)
    assert case.references is not None
    return case.value, case.references.float(), case.offsets, case.logits


@pytest.mark.parametrize("kind", ["points", "boxes", "plain"])
@pytest.mark.parametrize("dims", [1, 2])
def test_the_form_for_other_engines_is_the_same_sum(dims: int, kind: str) -> None:
    case = make_case(SHAPES[dims], kind=kind)
    sizes = [size for shape in case.shapes for size in shape]
    arguments = (case.value, sizes, case.references, case.offsets, case.logits)
    torch.testing.assert_close(grid_sample_form(*arguments), operator.attention_op(*arguments), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "kind"), VARIANTS)
def test_torch_s_own_check_of_operators(dims: int, kind: str) -> None:
    value, references, offsets, logits = (x.requires_grad_() for x in inputs_of(dims, kind))
    sizes = [size for shape in SHAPES[dims] for size in shape]
    found = torch.library.opcheck(operator.attention_op, (value, sizes, references, offsets, logits))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "kind"), VARIANTS)
def test_compiled_whole_it_gives_the_same_and_its_gradients(dims: int, kind: str) -> None:
    attention = Attention(SHAPES[dims])
    results = []
    for function in (attention, torch.compile(attention, fullgraph=True)):
        inputs = [x.requires_grad_() for x in inputs_of(dims, kind)]
        output = function(*inputs)
        results.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "kind"), VARIANTS)
def test_onnx_runtime_gives_the_same(dims: int, kind: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    inputs = inputs_of(dims, kind)
    attention = Attention(SHAPES[dims])
    program = torch.export.export(attention, inputs)
    torch.testing.assert_close(program.module()(*inputs), attention(*inputs))
    torch.onnx.export(for_onnx(program), f=str(tmp_path / "model.onnx"), opset_version=20, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    (found,) = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    torch.testing.assert_close(torch.from_numpy(found), attention(*inputs), rtol=1e-4, atol=1e-5)
