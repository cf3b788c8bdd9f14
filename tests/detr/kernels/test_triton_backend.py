"""The Triton kernels without a GPU: their numbers by Triton's interpreter, their code by its compiler."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_cases import Case, problem

from momentdetr.detr.kernels.gpu import Instance

triton = pytest.importorskip("triton")

from momentdetr.detr.kernels import triton_backend  # noqa: E402

HERE = Path(__file__).parent
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@pytest.mark.parametrize("what", ["few", *(pytest.param(x, marks=pytest.mark.slow) for x in ("rest", "all"))])
def test_interpreter_equals_reference(what: str) -> None:
    path = os.pathsep.join([str(HERE), str(HERE.parents[2]), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, str(HERE / "triton_interpreted.py"), what],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("architecture", [90, *(pytest.param(a, marks=pytest.mark.slow) for a in (80, 100))])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_two_dimensions_read_and_add_in_vectors(backward: bool, architecture: int) -> None:
    check(instance(backward, 2, torch.float32), architecture)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "value"),
    [(80, torch.bfloat16), (90, torch.bfloat16), (90, torch.float16), (100, torch.bfloat16)],
)
def test_half_types_read_and_add_in_vectors(architecture: int, value: torch.dtype) -> None:
    for num_dims, backward in itertools.product((1, 2), (False, True)):
        check(instance(backward, num_dims, value), architecture)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0, 2])
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_other_references_compile(mode: int, wide: bool) -> None:
    for backward in (False, True):
        compiled(instance(backward, 1, torch.bfloat16, mode=mode, wide=wide, fixed=backward, channels=24), 90)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: test_gpu.py runs the kernels")
def test_calls_bind_and_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `launch` passes is what the kernels take, also where counts are one; only a launch needs a GPU."""
    compiled_calls = []

    class Target:
        def get_current_target(self) -> Any:
            from triton.backends.compiler import GPUTarget

            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int | None = None) -> int:
            return 0

    class Unlaunched:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **options: compiled_calls.append(self.kernel.warmup(*args, grid=grid, **options))

    monkeypatch.setattr(triton.runtime.driver, "_active", Target())
    for name in ("forward_kernel", "backward_kernel"):
        monkeypatch.setattr(triton_backend, name, Unlaunched(getattr(triton_backend, name)))
    one = Case(2, "points", num_heads=1, num_queries=1, batch=1, num_points=1, shapes=((2, 2),))
    for case in (one, Case(1, "boxes", torch.bfloat16, places=torch.float64, num_points=1)):
        given = problem(case)
        triton_backend.forward(*given.arguments())
        triton_backend.backward(given.grad_output, *given.arguments())
    assert len(compiled_calls) == 4
    assert all(call.asm["cubin"][:4] == b"\x7fELF" for call in compiled_calls)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_that_there_is_no_gpu() -> None:
    assert triton_backend.available() == "torch finds no NVIDIA GPU"


def instance(backward: bool, num_dims: int, value: torch.dtype, **changes: Any) -> Instance:
    fields = {"mode": 1, "num_levels": 4, "num_points": 4, "channels": 32, "weight": torch.float32, "wide": False}
    return Instance(backward=backward, num_dims=num_dims, value=value, **(fields | changes))


def check(chosen: Instance, architecture: int) -> None:
    """A thread reads 16 bytes of the value at once (backward: what 16 bytes of sums need), all in registers."""
    text = compiled(chosen, architecture)
    corners, half = 2**chosen.num_dims, chosen.value != torch.float32
    wide = r"ld\.global\S*\.v2\.b32" if half and chosen.backward else r"ld\.global\S*\.v4\.b32"
    assert len(re.findall(wide, text)) >= corners
    assert ".local" not in text
    if chosen.backward and architecture >= 90:
        assert len(re.findall(r"(?:red|atom)\.global\S*\.add\S*\.v4\.f32", text)) == corners
    elif chosen.backward:
        assert len(re.findall(r"(?:red|atom)\.global\S*\.add\S*\.f32", text)) == 4 * corners


def compiled(chosen: Instance, architecture: int) -> str:
    """PTX of one instance; machine code has been made of it by the time that this returns."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fixed = triton_backend.constants(chosen)
    value, weight = POINTERS[chosen.value], POINTERS[chosen.weight]
    places = "*fp64" if chosen.wide else "*fp32"
    offsets = places if chosen.mode == 0 else weight
    inputs = {"value": value, "references": places, "offsets": offsets, "logits": weight, "levels": "*i32"}
    kernel, outputs = triton_backend.forward_kernel, {"output": value}
    if chosen.backward:
        kernel, inputs = triton_backend.backward_kernel, {"grad_output": value} | inputs
        grads = "*fp32" if chosen.mode == 0 else weight
        outputs = {"grad_value": "*i64" if chosen.fixed else "*fp32", "grad_offsets": grads, "grad_logits": weight}
        outputs |= {"grad_cells": "*fp32", "fixed_scale": "*fp64"}
        fixed |= {"CELLS": True, "FIXED": chosen.fixed}
    pointers = inputs | outputs
    counts = dict.fromkeys(("num_tokens", "num_queries", "num_heads"), "i32")
    signature = pointers | counts | dict.fromkeys(fixed, "constexpr")
    names = list(signature)
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): number for name, number in fixed.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in pointers},
    )
    options = {"num_warps": triton_backend.NUM_WARPS}
    code = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    assert code.asm["cubin"][:4] == b"\x7fELF"
    return code.asm["ptx"]
