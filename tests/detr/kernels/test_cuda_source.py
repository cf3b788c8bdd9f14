"""The CUDA source without a GPU: its arithmetic under emulation, its machine code by NVRTC."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cuda_emulation import emulated, missing
from gpu_cases import Case, compare, expected, problem, tolerance, verify

from momentdetr.detr.kernels import cuda, cuda_compiler, reference
from momentdetr.detr.kernels.gpu import Instance

HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

emulation = pytest.mark.skipif(bool(missing()), reason=missing())
nvrtc = pytest.mark.skipif(cuda_compiler.nvrtc() is None, reason="no NVRTC (it comes with torch's CUDA wheels)")

CASES = [
    Case(2, "points"),
    Case(1, "boxes", BRAIN, BRAIN),
    Case(2, "plain", HALF, channels=16),
    Case(1, "points", places=DOUBLE, channels=6, num_points=3),  # 8-byte loads, an idle lane, a chunk cut short
]
MORE_CASES = [
    *(Case(d, mode, value) for d, mode, value in itertools.product((1, 2), ("plain", "points", "boxes"), cuda.DTYPES)),
    Case(2, "boxes", BRAIN, HALF, DOUBLE),
    Case(2, "plain", places=DOUBLE),
    Case(1, "points", channels=1),
    Case(2, "boxes", channels=7, num_points=1),
    Case(2, "points", channels=256),  # two vectors a lane
    Case(1, "boxes", BRAIN, channels=300, num_points=5),
    Case(2, "points", num_heads=5, num_queries=37, batch=3, shapes=((3, 3),)),
]


def instance(backward: bool, num_dims: int = 2, value: torch.dtype = SINGLE, **changes: object) -> Instance:
    fields = {"mode": 1, "num_levels": 4, "num_points": 4, "channels": 32, "weight": SINGLE, "wide": False} | changes
    return Instance(backward=backward, num_dims=num_dims, value=value, **fields)  # type: ignore[arg-type]


@emulation
@pytest.mark.parametrize("case", CASES, ids=str)
def test_source_equals_reference(case: Case) -> None:
    with emulated():
        verify(cuda, case, "cpu")


@emulation
@pytest.mark.slow
@pytest.mark.parametrize("case", MORE_CASES, ids=str)
def test_source_equals_reference_everywhere(case: Case) -> None:
    with emulated():
        verify(cuda, case, "cpu", seed=1)


@emulation
def test_points_nowhere_are_never_read() -> None:
    given = problem(Case(2, "points"))
    strange = (torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 3e9, -3e9, 2.0**31)
    for i, number in enumerate(strange):
        given.offsets[:, i, 0, :, i % 4, i % 2] = number
    given.references[:, 8, 1] = torch.nan
    with emulated():  # fails on any access outside
        output = cuda.forward(*given.arguments())
        grads = cuda.backward(given.grad_output, *given.arguments())
    wanted = reference.forward(*given.arguments())
    slopes = reference.backward(given.grad_output, *given.arguments())
    compare("output", output, wanted.double(), tolerance(SINGLE))
    for name, i in (("value", 0), ("offsets", 2), ("logits", 3)):
        compare(name, grads[i], slopes[i].double(), tolerance(SINGLE))


@emulation
def test_weights_that_are_not_numbers_show() -> None:
    given = problem(Case(2, "points"))
    given.logits[0, 3, 1, 2, 0] = torch.nan
    given.logits[1, 4, 0] = -torch.inf
    given.offsets[0, 3, 1] = 1e30  # all outside
    with emulated():
        output = cuda.forward(*given.arguments())
    wanted = reference.forward(*given.arguments())
    assert wanted[0, 3, 1].isnan().all()
    assert wanted[1, 4, 0].isnan().all()
    assert torch.equal(output.isnan(), wanted.isnan())


@emulation
@pytest.mark.parametrize("places", [SINGLE, DOUBLE], ids=["float32", "float64"])
def test_long_sequences_are_sampled_exactly(places: torch.dtype) -> None:
    length = 75_000
    case = Case(1, "points", places=places, channels=4, num_heads=1, num_queries=200, batch=1, shapes=((length,),))
    given = problem(case)
    # The references are far from exact in float32, but as given they are exact, and the offsets are small.
    offsets = torch.rand(given.offsets.shape, generator=torch.Generator().manual_seed(1)) * 8 - 4
    given.offsets.copy_(offsets)
    wanted, grads = expected(given)
    with emulated():
        found = cuda.forward(*given.arguments())
        got = cuda.backward(given.grad_output, *given.arguments())
    compare("output", found, wanted, 2e-6)
    compare("gradient of value", got[0], grads[0], 2e-6)


@emulation
def test_fixed_point_sums_do_not_know_an_order() -> None:
    given = problem(Case(2, "points", num_queries=33, shapes=((3, 2), (1, 1), (1, 2))))
    value, shapes, references, offsets, logits = given.arguments()
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    shuffled = references[:, order], offsets[:, order], logits[:, order]
    grads = []
    torch.use_deterministic_algorithms(True)
    try:
        with emulated():
            grads.append(cuda.backward(given.grad_output, value, shapes, references, offsets, logits)[0])
            grads.append(cuda.backward(given.grad_output[:, order], value, shapes, *shuffled)[0])
    finally:
        torch.use_deterministic_algorithms(False)
    with emulated():
        float_sums = cuda.backward(given.grad_output[:, order], value, shapes, *shuffled)[0]
    compare("gradient of value", grads[0], expected(given)[1][0], 2e-7)
    assert torch.equal(grads[0], grads[1])
    assert not torch.equal(grads[0], float_sums)  # or the order would not have mattered to begin with


@emulation
def test_fixed_point_hides_no_infinity() -> None:
    given = problem(Case(1, "boxes"))
    given.grad_output[0, 0, 0, 0] = torch.inf
    torch.use_deterministic_algorithms(True)
    try:
        with emulated():
            assert not cuda.backward(given.grad_output, *given.arguments())[0].isfinite().any()
    finally:
        torch.use_deterministic_algorithms(False)


@emulation
def test_without_references_their_gradient_is_left_out() -> None:
    given = problem(Case(1, "boxes", BRAIN, BRAIN))
    with emulated():
        grads = cuda.backward(given.grad_output, *given.arguments(), with_references=False)
        wanted = cuda.backward(given.grad_output, *given.arguments())
    assert grads[1] is None
    assert all(torch.equal(grads[i], wanted[i]) for i in (0, 2, 3))


def test_nothing_to_do_launches_nothing() -> None:
    given = problem(Case(2, "points", num_queries=0))
    assert cuda.forward(*given.arguments()).shape == (2, 0, 2, 32)
    assert not cuda.backward(given.grad_output, *given.arguments())[0].any()


def test_blocks_shrink_until_their_shared_memory_fits() -> None:
    assert cuda.threads_of(instance(True)) == 256
    assert 32 <= cuda.threads_of(instance(True, num_points=50, channels=4)) < 256
    with pytest.raises(ValueError, match="more than the CUDA kernel holds"):
        cuda.threads_of(instance(True, num_points=1000, channels=4))


@nvrtc
@pytest.mark.parametrize("value", cuda.DTYPES, ids=str)
@pytest.mark.parametrize("num_dims", [1, 2])
def test_value_is_read_and_added_to_in_vectors(num_dims: int, value: torch.dtype) -> None:
    corners = 2**num_dims
    forward = cuda_compiler.build("compute_90", cuda.macros_of(instance(False, num_dims, value))).decode()
    assert len(re.findall(r"ld\.global\.nc\.v4", forward)) >= corners
    assert re.search(r"st\.global\.v4", forward)
    backward = cuda_compiler.build("compute_90", cuda.macros_of(instance(True, num_dims, value))).decode()
    lanes, parts = cuda.lanes_of(instance(True, num_dims, value)), 4 // value.itemsize
    assert len(re.findall(r"red\.relaxed\.gpu\.global\.add\.v4\.f32", backward)) == lanes * corners * parts
    assert not re.search(r"red\.\S*add\.f32", backward)
    older = cuda_compiler.build("compute_80", cuda.macros_of(instance(True, num_dims, value))).decode()
    assert len(re.findall(r"red\.relaxed\.gpu\.global\.add\.f32", older)) == lanes * corners * parts * 4
    for text in (forward, backward, older):
        assert ".local" not in text  # an array indexed at run time, in slow memory
        assert "bar.warp.sync" in text


@nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("value", [SINGLE, BRAIN], ids=str)
@pytest.mark.parametrize("num_dims", [1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_machine_code_needs_few_registers(architecture: str, num_dims: int, value: torch.dtype, tmp_path: Path) -> None:
    for mode, backward in itertools.product((0, 2), (False, True)):
        code = cuda_compiler.build(architecture, cuda.macros_of(instance(backward, num_dims, value, mode=mode)))
        assert code[:4] == b"\x7fELF"
        usage = resources(code, tmp_path)
        assert usage["STACK"] <= 16  # nothing to speak of is spilled
        assert usage["REG"] <= (80 if backward else 64)  # at least 3 and 4 blocks of 256 threads on a multiprocessor


@nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 6, 24, 64, 256])
def test_other_head_sizes_compile(channels: int) -> None:
    for backward in (False, True):
        chosen = instance(backward, value=BRAIN, channels=channels, wide=True, mode=2, fixed=backward)
        assert cuda_compiler.build("sm_90", cuda.macros_of(chosen))[:4] == b"\x7fELF"


@pytest.mark.slow
@pytest.mark.skipif(cuda_compiler.nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvcc_compiles_on_request(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda_compiler.VARIABLE, "nvcc")
    assert cuda_compiler.compiler() == "nvcc"
    assert cuda_compiler.build(architecture, cuda.macros_of(instance(True)))[:4] == b"\x7fELF"
    with pytest.raises(RuntimeError, match="nvcc did not compile"):
        cuda_compiler.build(architecture, cuda.macros_of(instance(True)) | {"CHANNELS": -1})


@nvrtc
def test_a_refusal_comes_with_the_compilers_words() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)did not compile.*error"):
        cuda_compiler.build("sm_90", cuda.macros_of(instance(False)) | {"VALUE": 0, "CHANNELS": -1})


@nvrtc
def test_unknown_devices_get_code_that_the_driver_can_finish() -> None:
    assert cuda_compiler.architecture_of(9, 0) == "sm_90"
    assert re.fullmatch(r"compute_1\d\d", cuda_compiler.architecture_of(99, 0))


def test_unknown_compilers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda_compiler.VARIABLE, "cl")
    with pytest.raises(ValueError, match="choose nvrtc or nvcc"):
        cuda_compiler.compiler()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_that_there_is_no_gpu() -> None:
    assert cuda.available() == "torch finds no NVIDIA GPU"


def resources(code: bytes, folder: Path) -> dict[str, int]:
    """Registers and bytes of stack of the only function, as cuobjdump tells them."""
    triton = pytest.importorskip("triton")
    own = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    command = shutil.which("cuobjdump") or (str(own) if own.is_file() else None)
    if command is None:
        pytest.skip("no cuobjdump")
    file = folder / "kernel.cubin"
    file.write_bytes(code)
    run = subprocess.run([command, "-res-usage", str(file)], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", run.stdout)
    assert found, run.stdout
    return {"REG": int(found[1]), "STACK": int(found[2])}
