"""Compiles `deformable.cu` at run time: by NVRTC, which torch's CUDA wheels bring, or by an installed nvcc on request.

`MOMENTDETR_CUDA_COMPILER=nvcc` asks for nvcc; otherwise it serves only where NVRTC is missing.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from ctypes.util import find_library
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("deformable.cu")
VARIABLE = "MOMENTDETR_CUDA_COMPILER"


def compiler() -> str:
    """The compiler to use: nvrtc or nvcc; empty: there is neither.

    Raises:
        ValueError: the environment asks for something else.
    """
    asked = os.environ.get(VARIABLE, "").strip().lower()
    if asked not in ("", "nvrtc", "nvcc"):
        raise ValueError(f"{VARIABLE}={asked!r} is no compiler; choose nvrtc or nvcc")
    found = {"nvrtc": nvrtc() is not None, "nvcc": nvcc() is not None}
    return next((name for name in ("nvrtc", "nvcc") if asked in ("", name) and found[name]), "")


def build(architecture: str, macros: dict[str, int], source: Path = SOURCE) -> bytes:
    """Compile one instance of a source without includes.

    Args:
        architecture: sm_90 and the like for machine code, compute_90 and the like for PTX (text, ends with a zero).
        macros: what the head of the source lists.

    Raises:
        RuntimeError: there is no compiler, or it refused; its log is in the message.
    """
    chosen = compiler()
    if not chosen:
        raise RuntimeError("neither NVRTC (in torch's CUDA wheels) nor nvcc was found")
    options = [f"-D{name}={number}" for name, number in macros.items()]
    return (build_with_nvrtc if chosen == "nvrtc" else build_with_nvcc)(architecture, options, source)


def build_with_nvcc(architecture: str, options: list[str], source: Path) -> bytes:
    """`build` with the nvcc on the path or under CUDA_HOME."""
    command = nvcc()
    if command is None:
        raise RuntimeError("no nvcc on the path or under CUDA_HOME")
    kind = "-cubin" if architecture.startswith("sm_") else "-ptx"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "deformable"
        run = subprocess.run(
            [command, kind, f"-arch={architecture}", "-std=c++17", *options, str(source), "-o", str(out)],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise RuntimeError(f"nvcc did not compile the kernel for {architecture}:\n{run.stderr.strip()}")
        return out.read_bytes()


def build_with_nvrtc(architecture: str, options: list[str], source: Path) -> bytes:
    """`build` with libnvrtc."""
    library = nvrtc()
    if library is None:
        raise RuntimeError("libnvrtc was not found")
    program, size = c_void_p(), c_size_t()
    flags = [f"--gpu-architecture={architecture}", "--std=c++17", *options]
    texts = (c_char_p * len(flags))(*(flag.encode() for flag in flags))
    check(library, library.nvrtcCreateProgram(byref(program), source.read_bytes(), source.name.encode(), 0, None, None))
    try:
        if library.nvrtcCompileProgram(program, len(flags), texts):
            library.nvrtcGetProgramLogSize(program, byref(size))
            log = ctypes.create_string_buffer(size.value)
            library.nvrtcGetProgramLog(program, log)
            message = log.value.decode(errors="replace").strip()
            raise RuntimeError(f"NVRTC did not compile the kernel for {architecture}:\n{message}")
        form = "CUBIN" if architecture.startswith("sm_") else "PTX"
        check(library, getattr(library, f"nvrtcGet{form}Size")(program, byref(size)))
        code = ctypes.create_string_buffer(size.value)
        check(library, getattr(library, f"nvrtcGet{form}")(program, code))
        return code.raw
    finally:
        library.nvrtcDestroyProgram(byref(program))


def architecture_of(major: int, minor: int) -> str:
    """The architecture to compile for on a device: its own, or PTX of the newest older one that NVRTC knows."""
    own = 10 * major + minor
    library = nvrtc()
    if library is None or compiler() == "nvcc":
        return f"sm_{own}"
    count = c_int()
    check(library, library.nvrtcGetNumSupportedArchs(byref(count)))
    known = (c_int * count.value)()
    check(library, library.nvrtcGetSupportedArchs(known))
    if own in list(known):
        return f"sm_{own}"
    return f"compute_{max((arch for arch in known if arch < own), default=min(known))}"


def check(library: ctypes.CDLL, status: int) -> None:
    if status:
        library.nvrtcGetErrorString.restype = c_char_p
        raise RuntimeError(f"NVRTC: {library.nvrtcGetErrorString(status).decode()}")


@functools.cache
def nvcc() -> str | None:
    """Where nvcc is."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return next(filter(None, (shutil.which("nvcc", path=f"{home}/bin") for home in homes)), shutil.which("nvcc"))


@functools.cache
def nvrtc() -> ctypes.CDLL | None:
    """The library, from the wheels beside torch, else from the system."""
    for path in [*nvrtc_files(), find_library("nvrtc")]:
        try:
            if path:
                return ctypes.CDLL(str(path))
        except OSError:
            continue
    return None


def nvrtc_files() -> list[Path]:
    """NVRTC libraries near torch: of its own CUDA version first, then newest first."""
    site, windows = Path(torch.__file__).parents[1], sys.platform == "win32"
    patterns = (
        ["torch/lib/nvrtc64_*.dll", "nvidia/*/bin/**/nvrtc64_*.dll"]
        if windows
        else ["nvidia/*/lib/libnvrtc.so.*", "torch/lib/libnvrtc*.so*"]
    )
    found = [path for pattern in patterns for path in sorted(site.glob(pattern), reverse=True)]
    major = f".so.{(torch.version.cuda or '').split('.')[0]}"
    return sorted(
        (path for path in found if "builtins" not in path.name and ".alt." not in path.name),
        key=lambda path: not path.name.endswith(major),
    )
