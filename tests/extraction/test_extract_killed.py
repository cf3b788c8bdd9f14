"""Oracle: an extraction that nobody disturbed. The other one is killed wherever it happens to be, again and again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from extraction_material import make_annotations, make_videos, tree

NAMES = [f"video{number}" for number in range(6)]


def command(material: Path, out: Path, *more: str) -> list[str]:
    arguments = ["extract", str(material / "videos"), "--annotations", str(material / "train.jsonl"), *more]
    return [sys.executable, "-m", "momentdetr", *arguments, "--preset", "demo", "--out", str(out)]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    make_videos(folder / "videos", NAMES)
    make_annotations(folder / "train.jsonl", [(n, f"a square number {n}", NAMES[n % 6]) for n in range(40)])
    return folder


@pytest.fixture(scope="module")
def whole(material: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    subprocess.run(command(material, out), check=True, capture_output=True)
    return tree(out)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "rounds"), [(1, 4), (2, 2)])
def test_killed_anywhere_and_started_again_gives_the_same_bytes(
    workers: int, rounds: int, material: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out, rng = tmp_path / "out", random.Random(workers)
    inodes: dict[str, int] = {}
    kills = 0
    for _ in range(rounds):
        process = subprocess.Popen(
            command(material, out, "--workers", str(workers)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        begin = len(_lines(out))
        deadline = time.monotonic() + 120
        while len(_lines(out)) <= begin and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.6))
        kills += process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for line in _lines(out):  # what was finished before is not made again
            file = line.split('"file": "')[1].split('"')[0]
            assert inodes.setdefault(file, (out / file).stat().st_ino) == (out / file).stat().st_ino
    done = subprocess.run(command(material, out, "--workers", str(workers)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert kills >= rounds // 2
    found = tree(out)
    assert set(found) == set(whole)
    assert found == whole


def test_a_fault_ends_in_exit_code_2_without_traceback(material: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "momentdetr", "extract", str(bad), str(material / "videos" / "video0.mp4")),
            *("--preset", "demo", "--out", str(tmp_path / "out")),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "not extracted: video bad" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "clip_features" / "video0.npz").is_file()
    assert done.stdout.strip() == str(tmp_path / "out")


def _lines(out: Path) -> list[str]:
    path = out / "manifest.jsonl"
    return [line for line in path.read_text("utf-8").split("\n")[:-1] if line] if path.exists() else []
