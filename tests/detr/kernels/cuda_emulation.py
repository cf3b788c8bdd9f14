"""The CUDA source as a kernel for CPU tensors: compiled by g++ against `emulation.hpp`, launched by `cuda.py`."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from torch import Tensor

from momentdetr.detr.kernels import cuda, cuda_compiler
from momentdetr.detr.kernels.gpu import Call

HERE = Path(__file__).parent


@functools.cache
def missing() -> str:
    """Why the emulation cannot run; empty: it can."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        return "needs g++ on Linux"
    program = "#include <ucontext.h>\nint main() { return (int)(_Float16)0.0f; }"
    command = ["g++", "-std=c++17", "-x", "c++", "-", "-fsyntax-only"]
    run = subprocess.run(command, input=program, capture_output=True, text=True, check=False)
    return "" if run.returncode == 0 else "needs a g++ that knows _Float16"


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@functools.cache
def compiled(macros: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
    """One instance of the source as a library."""
    out = Path(folder().name) / f"{'-'.join(str(number) for _, number in macros)}.so"
    flags = [f'-DKERNEL_SOURCE="{cuda_compiler.SOURCE}"', *(f"-D{name}={number}" for name, number in macros)]
    command = ["g++", "-O0", "-w", "-ffp-contract=off", "-std=c++17", "-shared", "-fPIC", *flags]
    subprocess.run([*command, str(HERE / "emulation.cpp"), "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


def launch(call: Call, *arguments: Tensor | None) -> None:
    """What `cuda.launch` does, on the CPU; no thread may reach outside of the tensors.

    Raises:
        AssertionError: one did, or the threads waited for each other for ever.
    """
    run = compiled(tuple(cuda.macros_of(call.instance).items())).emulate
    run.restype = ctypes.c_longlong
    count = len(arguments)
    blocks, numbers = cuda.layout(call)
    pointers = (ctypes.c_void_p * count)(*(cuda.pointer(x) for x in arguments))
    lengths = (ctypes.c_longlong * count)(*(0 if x is None else x.numel() * x.element_size() for x in arguments))
    outside = run(count, pointers, lengths, (ctypes.c_int * len(numbers))(*numbers), ctypes.c_uint(blocks))
    assert outside >= 0, "threads wait for each other for ever"
    assert outside == 0, f"{outside} reads or additions outside of the tensors"


@contextmanager
def emulated(most_threads: int = 64) -> Iterator[None]:
    """Within, `cuda.forward` and `cuda.backward` take CPU tensors; blocks are small, so that there are several."""
    with mock.patch.object(cuda, "launch", launch), mock.patch.object(cuda, "MOST_THREADS", most_threads):
        yield
