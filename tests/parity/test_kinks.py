from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity import kinks
from parity.check import Case, Run, System, check_gradients
from parity.comparison import Row, Status
from parity.material import Golden, read_golden
from parity.writing import write_inputs, write_runs
from torch import Tensor


def run_of(images: Tensor, scale: float = 1.0) -> Run:
    """Two parameters: one that is trained where an input exceeds 1, one that always is."""
    gated, steady = (torch.ones(len(images), requires_grad=True) for _ in range(2))
    loss = (images * gated - 1).relu().sum() + scale * (images * steady).sum()
    gradients = dict(zip(("gated", "steady"), torch.autograd.grad(loss, [gated, steady]), strict=True))
    return Run({}, {"A": Case({}, loss.detach(), {}, gradients)})


def system_of(scale: float = 1.0) -> System:
    return System("toy", lambda config: True, lambda golden, dtype: run_of(golden.inputs["images"], scale))


@pytest.fixture
def golden(tmp_path: Path) -> Golden:
    """The official run took the upper side of the kink by its rounding; the inputs say the lower one."""
    folder = tmp_path / "kink"
    write_inputs(folder, {"system": "toy"}, {}, {"images": torch.ones(1)})
    write_runs(folder, {"float32": run_of(torch.ones(1) + 2**-22)})
    return read_golden(folder)


def settled(golden: Golden, system: System, dtype: str = "float32") -> list[Row]:
    rows = check_gradients(golden, system.run(golden, "float32"), system, "float32")
    assert any(row.failed for row in rows)
    return kinks.settle(golden, system, dtype, rows)


def test_the_other_side_of_a_kink_is_found_and_told(golden: Golden) -> None:
    rows = settled(golden, system_of())
    assert [row.status for row in rows] == [Status.EQUAL] * 2
    assert {row.note for row in rows} == {kinks.MOVED}


def test_a_wrong_gradient_is_excused_by_no_side(golden: Golden) -> None:
    rows = settled(golden, system_of(scale=1.001))
    assert any(row.failed for row in rows if row.name.endswith("steady"))


def test_float64_has_no_such_excuse(golden: Golden) -> None:
    assert any(row.failed for row in settled(golden, system_of(), "float64"))


def test_inputs_move_by_one_rounding_at_most_and_nothing_else_does(golden: Golden) -> None:
    images, mask = torch.rand(1000) + 0.5, torch.rand(1000)
    given = Golden(golden.folder, {}, {}, {"images": images, "mask": mask}, {})
    moved = kinks.nudged(given, 0).inputs
    assert torch.equal(moved["mask"], mask)
    assert not torch.equal(moved["images"], images)
    assert torch.equal(moved["images"], kinks.nudged(given, 0).inputs["images"])
    assert ((moved["images"] / images - 1).abs() <= 2**-22).all()
