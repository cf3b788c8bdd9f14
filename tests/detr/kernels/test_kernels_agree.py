"""Every kernel against the reference, and its gradients against differences."""

from __future__ import annotations

import math
import os
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import KERNELS, Case, assert_agree, kernel_of, make_case

from momentdetr.detr.kernels import cpu, deformable_attention, reference, sample_points, torch_fallback

SHAPES = {1: [(7,), (1,), (4,)], 2: [(4, 3), (1, 5), (1, 1)], 3: [(3, 2, 4), (1, 1, 1)]}
CASES = int(os.environ.get("MOMENTDETR_KERNEL_CASES", "120"))


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return kernel_of(request.param, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["points", "boxes", "plain"])
@pytest.mark.parametrize("dims", [1, 2])
def test_it_gives_what_the_reference_gives(kernel: ModuleType, dims: int, kind: str, dtype: torch.dtype) -> None:
    for channels, points in ((32, 4), (1, 1), (37, 3), (80, 2)):
        assert_agree(kernel, make_case(SHAPES[dims], kind=kind, sizes=(2, 5, 3, points, channels), dtype=dtype))


@pytest.mark.parametrize("dims", [1, 2])
def test_few_queries_and_many_agree(kernel: ModuleType, dims: int) -> None:
    """Rows are used where they are, or copied first."""
    wide = [(40,), (9,)] if dims == 1 else [(20, 20), (3, 5)]
    for queries in (1, 600):
        assert_agree(kernel, make_case(wide, sizes=(1, queries, 2, 4, 32)))


def test_more_points_than_the_compiled_kernel_has_room_for(kernel: ModuleType) -> None:
    for points in (511, 512, 513):
        assert_agree(kernel, make_case([(5,), (3,)], sizes=(1, 2, 1, points, 4)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_offsets_are_widened_not_their_sums(kernel: ModuleType, dtype: torch.dtype) -> None:
    """At cell 50,000, half precision has no fractions; a place is never kept in it."""
    exact = make_case([(75_000,)], sizes=(1, 40, 2, 4, 8))
    case = Case(
        exact.value.to(dtype), exact.shapes, exact.references, exact.offsets.to(dtype), exact.logits.to(dtype),
        exact.grad.to(dtype),
    )  # fmt: skip
    assert_agree(kernel, case)


@pytest.mark.parametrize("kind", ["points", "boxes", "plain"])
@pytest.mark.parametrize(
    ("name", "dims"), [("reference", 3), *((n, d) for n in ("reference", *KERNELS) for d in (1, 2))]
)
def test_gradients_are_those_of_differences(name: str, kind: str, dims: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "reference":
        monkeypatch.setenv("MOMENTDETR_KERNEL", "reference")
    else:
        kernel_of(name, monkeypatch)
        monkeypatch.setenv("MOMENTDETR_KERNEL", name.split()[0])
    case = make_case(SHAPES[dims][:2], kind=kind, sizes=(1, 2, 2, 2, 3), dtype=torch.float64, seed=3)
    inputs = [x.requires_grad_() for x in (case.value, case.references, case.offsets, case.logits) if x is not None]
    if kind == "plain":
        assert torch.autograd.gradcheck(lambda v, o, w: sample_points(v, case.shapes, o, w), inputs)
    else:
        assert torch.autograd.gradcheck(lambda v, r, o, w: deformable_attention(v, case.shapes, r, o, w), inputs)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Case, bool]:
    """A case of any shape; half of them with numbers that are none, infinite or huge."""
    dims = draw(st.sampled_from([1, 2]))
    shapes = draw(st.lists(st.tuples(*[st.integers(1, 9)] * dims), min_size=1, max_size=4))
    sizes = draw(st.tuples(*[st.integers(low, high) for low, high in ((1, 3), (0, 9), (1, 4), (1, 5), (1, 40))]))
    kind = draw(st.sampled_from(["points", "boxes", "plain"]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    case = make_case(shapes, kind=kind, sizes=sizes, dtype=dtype, seed=draw(st.integers(0, 2**31)))
    wild = draw(st.booleans()) and case.offsets.numel() > 0
    if wild:
        odd = draw(st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9, -(2.0**31)]))
        for tensor in (case.offsets, *([] if case.references is None else [case.references])):
            flat = tensor.view(-1)
            for _ in range(draw(st.integers(0, 3))):
                flat[draw(st.integers(0, flat.numel() - 1))] = odd
    return case, wild


@settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_any_shape_and_any_place(drawn: tuple[Case, bool]) -> None:
    """10,000 of them with MOMENTDETR_KERNEL_CASES=10000."""
    case, _ = drawn
    kernels = [torch_fallback] if cpu.available() else [torch_fallback, cpu]
    for module in kernels:
        if case.offsets.numel():
            assert_agree(module, case)
    value, shapes, references, offsets, logits = case.arguments
    output = (
        sample_points(value, shapes, offsets, logits)
        if references is None
        else deformable_attention(value, shapes, references, offsets, logits)
    )
    assert output.shape == case.grad.shape
    assert output.isfinite().all()


@pytest.mark.parametrize("kind", ["points", "boxes"])
def test_references_that_need_no_gradient_change_no_other(kernel: ModuleType, kind: str) -> None:
    case = make_case(SHAPES[2], kind=kind)
    whole = kernel.backward(case.grad, *case.arguments)
    without = kernel.backward(case.grad, *case.arguments, with_references=False)
    assert whole[1] is not None
    assert without[1] is None
    for left, right in zip(without[::2], whole[::2], strict=True):
        assert torch.equal(left, right)
    assert torch.equal(without[3], whole[3])


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 1e30])
def test_a_place_that_is_nowhere_counts_as_zero(kernel: ModuleType, odd: float) -> None:
    """And the others are as if its weight were lost."""
    case = make_case([(6, 5)], kind="plain", sizes=(1, 3, 1, 2, 4))
    only = make_case([(6, 5)], kind="plain", sizes=(1, 3, 1, 2, 4))
    case.offsets[:, :, :, :, 1] = odd
    only.logits[..., 1] = 0
    torch.testing.assert_close(kernel.forward(*case.arguments), kernel.forward(*only.arguments))
    grads = kernel.backward(case.grad, *case.arguments)
    assert grads[2][:, :, :, :, 1].abs().sum() == grads[3][..., 1].abs().sum() == 0
    assert grads[0].isfinite().all()


def test_odd_logits_and_values_do_not_crash(kernel: ModuleType) -> None:
    for name in ("logits", "value"):
        for odd in (math.nan, math.inf, -math.inf, 1e30):
            case = make_case(SHAPES[2])
            getattr(case, name).view(-1)[::3] = odd
            assert kernel.forward(*case.arguments).shape == case.grad.shape
            kernel.backward(case.grad, *case.arguments)


def test_backward_gives_the_same_bits_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_of("cpu portable", monkeypatch)
    case = make_case([(12, 11), (6, 5), (3, 3), (1, 1)], sizes=(2, 300, 3, 4, 32))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7, 1):
            torch.set_num_threads(threads)
            found.append((kernel.forward(*case.arguments), *kernel.backward(case.grad, *case.arguments)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))  # type: ignore[arg-type]


def test_long_sequences_are_sampled_exactly(kernel: ModuleType) -> None:
    """On a saw of 16 clips, the value is the place: at clip 70,000 as exact as at clip 5."""
    clips = 75_000
    saw = (torch.arange(clips, dtype=torch.float32) % 16).view(1, clips, 1, 1)
    places = torch.tensor([5.25, 69_998.75, 70_001.125, 74_993.5], dtype=torch.float64)
    references = ((places + 0.5) / clips).view(1, 4, 1, 1)
    rest = torch.full((1, 4, 1, 1, 1, 1), 0.0625), torch.zeros(1, 4, 1, 1, 1)
    expected = places % 16 + 0.0625
    torch.testing.assert_close(
        kernel.forward(saw, [(clips,)], references, *rest).flatten().double(), expected, rtol=0, atol=2e-6
    )
    rounded = reference.forward(saw, [(clips,)], references.float(), *rest).flatten()
    assert (rounded - expected).abs().max() > 5e-4  # what float32 references would cost
