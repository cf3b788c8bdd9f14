import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def killed_runs(folder, seed, count):
    script = Path(__file__).with_name("killed_runs.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(seed), str(count)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def require_identical(report):
    different = {point: result for point, result in report["killed"].items() if result != report["whole"]}
    assert not different, f"of {report['operations']} operations, killed at {sorted(different)}: {different}"


def test_killed_runs_end_bit_identically(tmp_path):
    report = killed_runs(tmp_path, seed=0, count=5)
    assert len(report["killed"]) == 5
    require_identical(report)


@pytest.mark.slow
def test_runs_killed_at_sixty_operations_end_bit_identically(tmp_path):
    report = killed_runs(tmp_path, seed=1, count=60)
    assert len(report["killed"]) == 60
    require_identical(report)
