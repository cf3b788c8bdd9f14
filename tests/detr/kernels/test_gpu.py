"""The GPU kernels on a GPU."""

from __future__ import annotations

import itertools
from types import ModuleType

import pytest
import torch
from gpu_cases import Case, compare, expected, problem, tolerance, verify

from momentdetr.detr.kernels import cuda, reference

if not torch.cuda.is_available():
    pytest.skip("no GPU (torch.cuda.is_available() is false)", allow_module_level=True)
pytestmark = pytest.mark.gpu

HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
CASES = [
    *(Case(d, mode, value) for d, mode, value in itertools.product((1, 2), ("plain", "points", "boxes"), cuda.DTYPES)),
    *(Case(d, "boxes", BRAIN, HALF, DOUBLE, channels=6, num_points=3) for d in (1, 2)),
    *(Case(2, "points", BRAIN, BRAIN, channels=channels) for channels in (1, 7, 16, 64, 300)),
    Case(2, "points", num_queries=1000, batch=3, num_heads=8),
    Case(2, "points", HALF, num_queries=333, num_heads=3, shapes=((40, 53), (20, 27), (10, 14), (1, 1))),
    Case(1, "boxes", num_queries=501, shapes=((75_000,), (100,))),
]


@pytest.fixture(params=["cuda", "triton"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "cuda":
        module: ModuleType = cuda
    else:
        pytest.importorskip("triton")
        from momentdetr.detr.kernels import triton_backend as module
    assert module.available() == ""
    return module


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_reference(kernel: ModuleType, case: Case) -> None:
    verify(kernel, case, "cuda")


@pytest.mark.parametrize("seed", range(20))
def test_random_shapes_equal_reference(kernel: ModuleType, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    dims = draw(1, 2)
    shapes = tuple(tuple(draw(1, 30) for _ in range(dims)) for _ in range(draw(1, 5)))
    mode, value = ("plain", "points", "boxes")[draw(0, 2)], cuda.DTYPES[draw(0, 2)]
    case = Case(dims, mode, value, channels=draw(1, 70), num_points=draw(1, 9), num_heads=draw(1, 9))
    verify(kernel, case.on(num_queries=draw(1, 300), batch=draw(1, 4), shapes=shapes), "cuda", seed)


def test_points_nowhere_are_never_read(kernel: ModuleType) -> None:
    given = problem(Case(2, "points"))
    for i, number in enumerate((torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 3e9, -3e9, 2.0**31)):
        given.offsets[:, i, 0, :, i % 4, i % 2] = number
    assert given.references is not None
    given.references[:, 8, 1] = torch.nan
    output = kernel.forward(*given.arguments("cuda"))
    grads = kernel.backward(given.grad_output.cuda(), *given.arguments("cuda"))
    wanted = reference.forward(*given.arguments())
    slopes = reference.backward(given.grad_output, *given.arguments())
    compare("output", output, wanted.double(), tolerance(SINGLE))
    for name, i in (("value", 0), ("offsets", 2), ("logits", 3)):
        compare(name, grads[i], slopes[i].double(), tolerance(SINGLE))


def test_weights_that_are_not_numbers_show(kernel: ModuleType) -> None:
    given = problem(Case(2, "points"))
    given.logits[0, 3, 1, 2, 0] = torch.nan
    given.logits[1, 4, 0] = -torch.inf
    given.offsets[0, 3, 1] = 1e30
    output = kernel.forward(*given.arguments("cuda")).cpu()
    assert torch.equal(output.isnan(), reference.forward(*given.arguments()).isnan())


def test_long_sequences_are_sampled_exactly(kernel: ModuleType) -> None:
    given = problem(Case(1, "points", channels=4, num_queries=2000, batch=1, shapes=((75_000,),)))
    given.offsets.copy_(torch.rand(given.offsets.shape, generator=torch.Generator().manual_seed(1)) * 8 - 4)
    compare("output", kernel.forward(*given.arguments("cuda")), expected(given)[0], 2e-6)


def test_deterministic_gradients_repeat_bit_for_bit(kernel: ModuleType) -> None:
    given = problem(Case(2, "points", num_queries=5000, num_heads=8, shapes=((2, 2), (1, 1))))
    grad = given.grad_output.cuda()
    torch.use_deterministic_algorithms(True)
    try:
        runs = [kernel.backward(grad, *given.arguments("cuda"))[0] for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(run, runs[0]) for run in runs)
    compare("gradient of value", runs[0], expected(given)[1][0], 1e-6)


def test_other_streams_and_graphs(kernel: ModuleType) -> None:
    given = problem(Case(2, "boxes"))
    wanted = expected(given)[0]
    arguments = given.arguments("cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = kernel.forward(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    compare("output on a stream", output, wanted, tolerance(SINGLE))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = kernel.forward(*arguments)
    output.zero_()
    graph.replay()
    compare("output of a graph", output, wanted, tolerance(SINGLE))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_second_device(kernel: ModuleType) -> None:
    verify(kernel, Case(2, "points"), "cuda:1")


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_operator_trains_through_the_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from momentdetr.detr.kernels import dispatch
    from momentdetr.detr.kernels.operator import deformable_attention

    monkeypatch.setenv(dispatch.VARIABLE, name)
    assert dispatch.obstacle(name, "cuda", SINGLE) == ""
    given = problem(Case(2, "boxes"))
    value, shapes, *others = given.arguments("cuda")
    inputs = [x.requires_grad_() for x in (value, *others)]
    output = deformable_attention(inputs[0], shapes, *inputs[1:])
    output.backward(given.grad_output.cuda())
    wanted, grads = expected(given)
    compare("output", output.detach(), wanted, tolerance(SINGLE))
    for x, want in zip(inputs, grads, strict=True):
        compare("gradient", x.grad, want, tolerance(SINGLE))
    compiled = torch.compile(deformable_attention, fullgraph=True)
    compare("compiled", compiled(inputs[0], shapes, *inputs[1:]).detach(), wanted, tolerance(SINGLE))
