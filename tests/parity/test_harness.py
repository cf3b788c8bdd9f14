"""The harness itself: what it must not let through. Its goldens are fabricated here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parity.check import CHECKS, Case, Run, System
from parity.comparison import Reason, Row, Status, compare_tensor
from parity.fullsize import made_weight
from parity.material import Golden, Item, Kind, discover, patterns_of, read_golden
from parity.plan import NoSystem, plan, system_for
from parity.report import Report, verdict
from parity.writing import write_inputs, write_runs
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHT = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
FEATURES = torch.tensor([[0.5, -1.0], [2.0, 0.25], [1.0, 1.0]])


def run_of(dtype: torch.dtype = torch.float32) -> Run:
    """The toy system: y = x W, loss = sum(y^2), a parameter that nothing reads, one call of a matcher."""
    weight = WEIGHT.to(dtype).clone().requires_grad_()
    out = FEATURES.to(dtype) @ weight
    loss = (out**2).sum()
    loss.backward()
    case = Case(
        losses={"loss_a": loss.detach()},
        weighted_sum=2 * loss.detach(),
        indices={"matcher": [[[[0, 1], [1, 0]], [[2], [0]]]], "event_matcher": None},
        gradients={"weight": weight.grad, "unused": None},
    )
    return Run({"eval.y": out.detach(), "train_A.y": out.detach()}, {"A": case})


def toy(**changes: object) -> System:
    system = System("toy", lambda config: config.get("system") == "toy", lambda golden, dtype: run_of())
    return replace(system, **changes)  # type: ignore[arg-type]


def fabricate(folder: Path, run: Run) -> Path:
    """Write a run as official code's numbers would be."""
    write_inputs(folder, {"system": "toy", "repo": "toy", "full_args": {}}, {"w": WEIGHT}, {"x": FEATURES})
    write_runs(folder, {"float32": run})
    (folder / "tolerances.json").write_text(json.dumps({"diff": {"eval.y": 1e-6}}))
    return folder


@pytest.fixture
def golden(tmp_path: Path) -> Golden:
    return read_golden(fabricate(tmp_path / "any_name", run_of()))


def rows_of(golden: Golden, system: System) -> dict[str, list[Row]]:
    run = system.run(golden, "float32")
    return {part: check(golden, run, system, "float32") for part, check in CHECKS.items()}


def failures(golden: Golden, system: System) -> dict[str, list[str]]:
    rows = rows_of(golden, system)
    return {part: [row.name for row in found if row.failed] for part, found in rows.items() if found and verdict(found)}


def altered(change: Callable[[Run], Run]) -> System:
    return toy(run=lambda golden, dtype: change(run_of()))


def with_output(name: str, value: Tensor | None) -> Callable[[Run], Run]:
    def change(run: Run) -> Run:
        kept = {key: tensor for key, tensor in run.outputs.items() if key != name}
        return replace(run, outputs=kept if value is None else kept | {name: value})

    return change


def with_case(**changes: object) -> Callable[[Run], Run]:
    return lambda run: replace(run, cases={"A": replace(run.cases["A"], **changes)})  # type: ignore[arg-type]


def test_an_equal_run_passes_and_every_number_has_a_row(golden: Golden) -> None:
    rows = rows_of(golden, toy())
    assert {part: verdict(found) for part, found in rows.items() if found} == dict.fromkeys(list(rows)[:4])
    assert [row.name for row in rows["outputs"]] == ["eval.y", "train_A.y"]
    assert [row.name for row in rows["losses"]] == ["train_A.losses.loss_a", "train_A.weighted_sum"]
    assert [row.name for row in rows["gradients"]] == ["train_A.gradients.weight", "train_A.gradients.unused"]
    assert len(rows["indices"]) == 3  # the number of calls, the call, and the matcher that was never called


@pytest.mark.parametrize(("error", "fails"), [(0.9e-5, False), (1.1e-5, True)])
def test_one_element_beyond_the_tolerance_fails(golden: Golden, error: float, fails: bool) -> None:
    wrong = run_of().outputs["eval.y"].double()
    wrong[1, 0] += error
    found = failures(golden, altered(with_output("eval.y", wrong)))
    assert found == ({"outputs": ["eval.y"]} if fails else {})


def test_tolerance_follows_the_recorded_spread(golden: Golden) -> None:
    wider = replace(golden, tolerances={"eval.y": 1e-3})
    wrong = altered(with_output("eval.y", run_of().outputs["eval.y"] + 5e-3))
    assert failures(golden, wrong) == {"outputs": ["eval.y"]}
    assert failures(wider, wrong) == {}


def test_an_uncompared_tensor_fails_unless_its_reason_is_on_the_list(golden: Golden) -> None:
    silent = altered(with_output("eval.y", None))
    assert failures(golden, silent) == {"outputs": ["eval.y"]}
    excused = replace(silent, permitted={"eval.*": Reason.HOOK})
    assert failures(golden, excused) == {}
    assert "not compared: " + Reason.HOOK.value in str(rows_of(golden, excused)["outputs"][0])


@pytest.mark.parametrize(
    ("value", "note"),
    [
        (torch.zeros(1, 3, 2), "shape (1, 3, 2), expected (3, 2)"),
        (torch.full((3, 2), torch.nan), "nan in other places"),
    ],
)
def test_shape_and_nan_are_told(value: Tensor, note: str) -> None:
    assert compare_tensor("y", value, torch.zeros(3, 2), 1e9).note == note


def test_infinity_equals_only_itself() -> None:
    recorded = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert compare_tensor("y", recorded, recorded, 0.0).status is Status.EQUAL
    assert compare_tensor("y", -recorded, recorded, 1e9).status is Status.DIFFERENT


def test_a_gradient_of_zeros_is_not_no_gradient(golden: Golden) -> None:
    gradient = run_of().cases["A"].gradients["weight"]
    zero_for_none = altered(with_case(gradients={"weight": gradient, "unused": torch.zeros(2)}))
    none_for_some = altered(with_case(gradients={"weight": None, "unused": None}))
    assert failures(golden, zero_for_none) == {"gradients": ["train_A.gradients.unused"]}
    assert failures(golden, none_for_some) == {"gradients": ["train_A.gradients.weight"]}


@pytest.mark.parametrize("change", ["sign", "order", "scale", "absent"])
def test_wrong_gradients_fail(golden: Golden, change: str) -> None:
    gradient = run_of().cases["A"].gradients["weight"]
    assert gradient is not None
    wrong = {
        "sign": {"weight": -gradient, "unused": None},
        "order": {"weight": gradient.flip(0), "unused": None},  # same norm and sum, another ramp product
        "scale": {"weight": gradient * 1.001, "unused": None},
        "absent": {"unused": None},
    }
    assert failures(golden, altered(with_case(gradients=wrong[change]))) == {"gradients": ["train_A.gradients.weight"]}


def test_losses_are_compared_both_ways(golden: Golden) -> None:
    loss = run_of().cases["A"].losses["loss_a"]
    assert failures(golden, altered(with_case(losses={}))) == {"losses": ["train_A.losses.loss_a"]}
    extra = altered(with_case(losses={"loss_a": loss, "loss_b": 0.0}))
    assert failures(golden, extra) == {"losses": ["train_A.losses.loss_b"]}
    assert failures(golden, altered(with_case(weighted_sum=loss))) == {"losses": ["train_A.weighted_sum"]}


@pytest.mark.parametrize(
    "calls",
    [
        [[[[1, 0], [0, 1]], [[2], [0]]]],  # the same pairs in another order
        [[[[0, 1], [1, 0]], [[1], [0]]]],
        [[[[0, 1], [1, 0]], [[2], [0]]]] * 2,
        None,
    ],
)
def test_other_indices_fail(golden: Golden, calls: object) -> None:
    assert "indices" in failures(golden, altered(with_case(indices={"matcher": calls})))


@pytest.mark.parametrize(("other", "fails"), [(0.0, False), (1e-3, True)])
def test_only_a_matching_of_equal_cost_counts_as_a_tie(golden: Golden, other: float, fails: bool) -> None:
    cost = torch.tensor([[1.0, 2.0], [3.0, 4.0 + other], [0.0, 0.0]])  # 1 + 4 and 2 + 3
    crossed = [[[[0, 1], [0, 1]], [[2], [0]]]]
    system = altered(with_case(indices={"matcher": crossed, "event_matcher": None}))
    assert set(failures(golden, system)) == {"indices"}
    tolerant = replace(system, costs=lambda *where: cost)
    assert set(failures(golden, tolerant)) == ({"indices"} if fails else set())
    twice = altered(with_case(indices={"matcher": [[[[0, 0], [1, 0]], [[2], [0]]]], "event_matcher": None}))
    assert set(failures(golden, replace(twice, costs=lambda *where: torch.zeros(3, 2)))) == {"indices"}


def test_a_case_that_was_not_run_fails_everywhere(golden: Golden) -> None:
    lazy = altered(lambda run: replace(run, cases={}))
    assert set(failures(golden, lazy)) == {"losses", "indices", "gradients"}


def test_nothing_recorded_proves_nothing() -> None:
    assert verdict([]) == "nothing was recorded, so nothing was proved"


def test_an_unknown_system_fails(tmp_path: Path) -> None:
    fabricate(tmp_path / "detr", run_of())
    (item,) = discover(tmp_path)
    (only,) = plan(item)
    with pytest.raises(NoSystem, match="toy"):
        only.rows()
    with pytest.raises(NoSystem):
        system_for({})


def test_items_are_recognised_by_content_and_named_for_except(tmp_path: Path) -> None:
    fabricate(tmp_path / "zebra", run_of())
    (tmp_path / "empty").mkdir()
    pairs = tmp_path / "many"
    pairs.mkdir()
    save_file({"box.iou": torch.zeros(1)}, pairs / "thing.safetensors")
    (pairs / "thing.json").write_text(json.dumps({"repo": "thing", "shims": []}))
    items = {item.name: item for item in discover(tmp_path)}
    assert {name: item.kind for name, item in items.items()} == {
        "zebra": Kind.SYSTEM,
        "empty": Kind.UNKNOWN,
        "many:thing": Kind.OPERATIONS,
    }
    (one,) = plan(items["many:thing"])
    assert one.item.name == "many:thing/box"
    for pattern in ("many", "many:thing", "many:*/box", "m*"):
        assert one.item.matches([pattern]) == pattern
    assert one.item.matches(["many:other", "thing", "zebra"]) is None
    assert discover(tmp_path / "zebra") == [Item("zebra", Kind.SYSTEM, tmp_path / "zebra")]


def test_except_reads_a_list_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# later\ndino*  # the next issue\n\nops:*/msda\n")
    assert patterns_of(f"a, b,{tmp_path / 'list.txt'}") == ("a", "b", "dino*", "ops:*/msda")
    assert patterns_of("") == ()


def test_report_tells_counts_worst_and_reasons(golden: Golden, tmp_path: Path) -> None:
    report = Report()
    system = toy(permitted={"train_A.y": Reason.HOOK}, run=lambda g, d: with_output("train_A.y", None)(run_of()))
    found = rows_of(golden, system)
    for part, rows in ((part, rows) for part, rows in found.items() if rows):
        report.add("any_name float32", part, rows)
    report.missing["dino"] = "not run"
    (line, other) = report.summary()
    assert line.startswith("any_name float32: outputs 1/2, losses 2/2, indices 3/3, gradients 2/2; worst 0.000")
    assert line.endswith(f"1 not compared: {Reason.HOOK.value}")
    assert other == "not run: dino"
    report.write(tmp_path / "report.md")
    assert "train_A.gradients.unused: compared (max diff 0.00e+00" in (tmp_path / "report.md").read_text()


def test_weights_made_by_the_rule_have_its_ranges() -> None:
    assert made_weight("a.norm.weight", [1000]).aminmax().min > 0.75
    assert made_weight("a.bias", [1000]).abs().max() <= 0.1
    linear = made_weight("a.weight", [20, 300])
    assert linear.abs().max() <= 0.1
    assert linear.std() == pytest.approx(1 / 300**0.5, rel=0.05)
    assert made_weight("query_embed.weight", [30, 30]).abs().max() > 0.99
    assert made_weight("query_embed.weight", [30, 30]).equal(made_weight("query_embed.weight", [30, 30]))
    assert not made_weight("b.weight", [3, 3]).equal(made_weight("c.weight", [3, 3]))


def test_fabricated_folder_is_what_it_says(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "x", run_of())
    assert load_file(folder / "outputs.safetensors")["eval.y"].equal(FEATURES @ WEIGHT)
