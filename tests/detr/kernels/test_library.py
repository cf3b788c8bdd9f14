"""The compiled library: found, compiled once, or done without. A small C file stands in for the kernel's, which takes
seconds to compile; the whole one is compiled by the slow tests."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from momentdetr.detr.kernels import library

ROOT = Path(__file__).resolve().parents[3]
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="not run: no C compiler")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, and a source that is quickly compiled."""
    source = tmp_path / "small.c"
    source.write_text("int seven(void) { return 7; }\n")
    monkeypatch.setattr(library, "SOURCES", (source,))
    monkeypatch.setattr(library, "FOLDER", tmp_path / "wheel")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    library.name.cache_clear()
    yield tmp_path / "cache" / "momentdetr" / "kernels"  # type: ignore[misc]
    library.name.cache_clear()


@needs_compiler
def test_it_is_compiled_into_the_cache_and_then_found_there(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = library.find()
    assert found.parent == small
    assert [path for path in small.iterdir() if path.suffix != ".lock"] == [found]
    monkeypatch.setattr(library, "compile_library", lambda _: pytest.fail("compiled again"))
    assert library.find() == found


@needs_compiler
def test_another_source_is_another_library(small: Path) -> None:
    first = library.find()
    library.SOURCES[0].write_text("int eight(void) { return 8; }\n")
    library.name.cache_clear()
    assert library.find() != first


def test_the_wheel_s_own_comes_first(small: Path) -> None:
    library.FOLDER.mkdir()
    shipped = library.FOLDER / library.name()
    shipped.write_bytes(b"prebuilt")
    assert library.find() == shipped


def test_without_a_compiler_it_says_so(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(RuntimeError, match="no C compiler on the PATH"):
        library.find()


@needs_compiler
def test_a_source_that_does_not_compile_leaves_nothing_behind(small: Path) -> None:
    library.SOURCES[0].write_text("int seven(void) { return }\n")
    library.name.cache_clear()
    with pytest.raises(RuntimeError, match=r"fails: .*error"):
        library.find()
    assert [path for path in small.iterdir() if path.suffix != ".lock"] == []


@needs_compiler
def test_a_home_that_cannot_be_written_to_gives_way_to_the_temporary_folder(small: Path) -> None:
    (small.parent.parent).write_text("a file where the cache should be")  # fails for root, too
    found = library.find()
    assert found.parent.parent == small.parents[2] / "tmp"
    assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "getuid"), reason="not run: no POSIX permissions")
def test_a_folder_that_others_can_write_to_is_not_trusted(small: Path) -> None:
    small.mkdir(parents=True)
    small.chmod(0o777)
    assert library.find().parent != small
    with pytest.raises(PermissionError, match="others can write"):
        library.private(small)


RUN = """
import sys, torch
from momentdetr.detr.kernels import choose, deformable_attention
assert not [name for name in sys.modules if "kernels.cpu" in name], "compiled or looked for at import"
value, offsets = torch.ones(1, 12, 1, 32), torch.zeros(1, 1, 1, 1, 1, 2)
references, logits = torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, 1, 1, 1, 1)
print(choose("cpu", torch.float32), deformable_attention(value, [(4, 3)], references, offsets, logits).sum().item())
"""


def start(tmp_path: Path, **environment: str) -> subprocess.Popen[str]:
    """A fresh process with an empty home and cache that calls the operator."""
    given = {k: v for k, v in os.environ.items() if k not in ("MOMENTDETR_KERNEL", "XDG_CACHE_HOME")}
    given |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "TMPDIR": str(tmp_path), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", RUN], env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )


def shipped() -> bool:
    return (library.FOLDER / library.name()).is_file()


@pytest.mark.slow
@pytest.mark.skipif(shipped(), reason="not run: the compiled library is installed")
def test_an_empty_path_leaves_the_torch_fallback_and_one_notice(tmp_path: Path) -> None:
    out, err = start(tmp_path, PATH="", CC="").communicate(timeout=300)
    assert out.split() == ["torch", "32.0"], err
    assert err.count("no C compiler on the PATH") == 1


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(shipped(), reason="not run: the compiled library is installed")
def test_two_processes_compile_once(tmp_path: Path) -> None:
    """The compiler is a script that counts its calls."""
    count, compiler = tmp_path / "count", tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho called >> "{count}"\nexec "{COMPILER}" "$@"\n')
    compiler.chmod(0o700)
    both = [start(tmp_path, CC=str(compiler)) for _ in range(2)]
    results = [process.communicate(timeout=600) for process in both]
    assert [out.split() for out, _ in results] == [["cpu", "32.0"]] * 2, results
    assert [err for _, err in results] == ["", ""]
    assert count.read_text().split() == ["called"]


@pytest.mark.slow
@needs_compiler
def test_the_wheel_carries_it(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stem.split("-")[2:4] == ["py3", "none"]
    assert not wheel.stem.endswith("-any")
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()
    assert f"momentdetr/detr/kernels/{library.name()}" in names
    assert {f"momentdetr/detr/kernels/{source.name}" for source in library.SOURCES} <= set(names)
