"""Runs that are killed and resumed end as if they had not been: one process and two, with and without workers."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from killed_detection import digest, in_a_group
from tiny_detection import folder_of_images

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL"),
    pytest.mark.slow,
]


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_runs_end_bit_identically(tmp_path: Path, workers: int) -> None:
    points = [str(random.Random(f"{workers}/{index}").randrange(10**6)) for index in range(4)]
    command = [sys.executable, str(Path(__file__).with_name("killed_detection.py")), str(tmp_path), str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *points], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["operations"] > 20
    different = {point: result for point, result in report["killed"].items() if result != report["whole"]}
    assert not different, f"of {report['operations']} operations, killed at {sorted(different)}: {different}"


@pytest.mark.parametrize(("dies", "point", "workers"), [(0, 9, 0), (1, 3, 2)])
def test_a_group_whose_process_dies_goes_on_bit_identically(
    tmp_path: Path, dies: int, point: int, workers: int
) -> None:
    folder_of_images(tmp_path / "images")
    assert in_a_group(tmp_path / "whole", workers, 2) == [0, 0]
    codes = in_a_group(tmp_path / "killed", workers, 2, (dies, point))
    assert codes[dies] == -9
    assert codes[1 - dies] != 0  # the other one notices, and does not go on alone
    assert in_a_group(tmp_path / "killed", workers, 2) == [0, 0]
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
