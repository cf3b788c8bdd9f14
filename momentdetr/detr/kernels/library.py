"""Finds the compiled library of the CPU kernel, or compiles it: from the wheel, the cache, or the C compiler at hand.

Only the standard library and filelock are needed, because the build hook of the wheel loads this file by itself.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = (FOLDER / "deformable_cpu.c", *sorted(FOLDER.glob("deformable_cpu*.h")))
COMPILERS = ("cc", "gcc", "clang")
FLAGS = (
    "-std=gnu11",
    "-O2",
    "-fPIC",
    "-shared",
    "-fvisibility=default",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-tree-slp-vectorize",
)
LIMIT_S = 300


@functools.cache
def name() -> str:
    """The file name of the library: of these sources, for this kind of machine."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES) + repr(FLAGS).encode())
    machine = f"{platform.system()}-{platform.machine()}".lower()
    return f"deformable_cpu-{machine}-{digest.hexdigest()[:12]}{'.dll' if sys.platform == 'win32' else '.so'}"


def find() -> Path:
    """The library: the wheel's, the cached one, or one that is compiled now.

    Raises:
        RuntimeError: there is none and it cannot be compiled; says why.
    """
    shipped = FOLDER / name()
    if shipped.is_file():
        return shipped
    problems = []
    for folder in caches():
        library = folder / name()
        try:
            private(folder)
            if library.is_file():
                return library
            return compile_once(library)
        except OSError as error:
            problems.append(f"{folder}: {error.strerror or error}")
    raise RuntimeError(f"no place to compile it: {'; '.join(problems)}")


def caches() -> Iterator[Path]:
    """Where compiled libraries are kept: the first of these that can be written."""
    home = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # no home
        yield (Path(home) if home else Path.home() / ".cache") / "momentdetr" / "kernels"
    yield Path(tempfile.gettempdir()) / f"momentdetr-kernels-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def private(folder: Path) -> None:
    """Make a folder that only this user can write to, or check that it is one: code will be loaded from it.

    Raises:
        OSError: it cannot be made, or others could put files there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionError("not a folder")
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise PermissionError("others can write to it")


def compile_once(library: Path) -> Path:
    """Compile into a cache, once however many processes ask at the same time.

    Raises:
        RuntimeError: there is no compiler, or it fails.
        OSError: the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(library.with_suffix(".lock"), timeout=LIMIT_S):
            return library if library.is_file() else compile_library(library)
    except Timeout as error:
        raise RuntimeError(f"another process holds {library.with_suffix('.lock')} for {LIMIT_S} s") from error


def compile_library(library: Path) -> Path:
    """Compile to a file, which appears complete or not at all.

    Raises:
        RuntimeError: there is no compiler, or it fails.
        OSError: the folder cannot be written to.
    """
    compilers = [os.environ["CC"]] if os.environ.get("CC") else [path for c in COMPILERS if (path := shutil.which(c))]
    if not compilers:
        raise RuntimeError("no C compiler on the PATH")
    handle, unfinished = tempfile.mkstemp(suffix=library.suffix, dir=library.parent)
    os.close(handle)
    try:
        for compiler in compilers:
            for threads in (("-fopenmp",), ()):
                command = [compiler, *FLAGS, *threads, str(SOURCES[0]), "-o", unfinished, "-lm"]
                problem = run(command)
                if not problem:
                    os.replace(unfinished, library)
                    return library
    finally:
        Path(unfinished).unlink(missing_ok=True)
    raise RuntimeError(problem)


def run(command: list[str]) -> str:
    """Run a compiler; empty: it worked, otherwise the first line of what went wrong."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
    return f"{command[0]} fails: {lines[0] if lines else done.returncode}"
