"""The recorder, on a stand-in with an official repository's layout: the harness reads what it wrote, and all holds."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import checkout, recording
from parity.check import CHECKS
from parity.checkout import BadCheckout, Official
from parity.material import DTYPES, Kind, discover, read_golden
from parity.plan import plan, system_for
from parity.report import verdict
from parity.systems import images
from torch import Tensor, nn

STAND_IN = Path(__file__).with_name("stand_in")
RECORD = Path(__file__).with_name("record.py")
SMALL = {"hidden_dim": 32, "nheads": 4, "enc_layers": 1, "dec_layers": 2, "num_queries": 6, "dim_feedforward": 24}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by the command itself."""
    out = tmp_path_factory.mktemp("goldens") / "a_name"
    options = [f"{name}={value}" for name, value in SMALL.items()]
    command = [sys.executable, str(RECORD), str(STAND_IN), str(out), "--seed", "3", "--set", *options]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return out


def test_the_harness_reads_what_was_written_and_all_of_it_holds(recorded: Path) -> None:
    (item,) = discover(recorded.parent)
    assert item.kind is Kind.SYSTEM
    golden = read_golden(item.path)
    assert system_for(golden.config).name == "detr"
    planned = {one.part for one in plan(item)}
    assert planned == {"outputs", "losses", "gradients", "indices"}
    for dtype in DTYPES:
        run = images.run(golden, dtype)
        for part in sorted(planned):
            rows = CHECKS[part](golden, run, system_for(golden.config), dtype)
            assert len(rows) > 3
            assert verdict(rows) is None, f"{part} in {dtype}"


def test_every_kind_of_number_was_written(recorded: Path) -> None:
    golden = read_golden(recorded)
    outputs = golden.outputs("float64")
    assert outputs["eval.pred_boxes"].dtype == torch.float64
    assert {"eval.hook.transformer.0", "eval.hook.backbone.0.0.mask", "eval.post.1.boxes"} <= outputs.keys()
    assert {"train_A.aux_outputs.0.pred_logits", "train_B.pred_boxes"} <= outputs.keys()
    assert golden.inputs["targets_B.1.boxes"].shape == (0, 4)
    assert golden.tolerances["eval.pred_logits"] > 0
    losses = golden.losses("float32")
    assert losses["A"].keys() >= {"loss_dict", "weighted_sum", "indices", "grads"}
    assert "backbone.0.body.conv1.weight" not in losses["A"]["grads"]  # the official code does not train it
    assert golden.config["full_args"]["lr"] == 1e-4
    assert golden.config["args"].keys() >= SMALL.keys()


def test_a_number_of_the_recording_that_is_wrong_is_seen(recorded: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in recorded.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    losses = json.loads((copy / "losses.json").read_text())
    losses["fp64"]["A"]["loss_dict"]["loss_giou"] *= 1.01
    (copy / "losses.json").write_text(json.dumps(losses))
    golden = read_golden(copy)
    rows = CHECKS["losses"](golden, images.run(golden, "float64"), system_for(golden.config), "float64")
    assert [row.name for row in rows if row.failed] == ["train_A.losses.loss_giou"]


def test_the_checkout_leaves_no_modules_behind(recorded: Path) -> None:
    before = dict(sys.modules)
    sys.modules["models"] = mine = types.ModuleType("models")
    try:
        with checkout.checkout(STAND_IN, SMALL) as official:
            assert sys.modules["models"] is not mine
            assert (
                official.model.backbone.num_channels == 128
            )  # 2048 in the official net, whose stem is 16 times as wide
        assert sys.modules["models"] is mine
        assert torch.nn.Module.cuda.__name__ == "cuda"
    finally:
        del sys.modules["models"]
    assert not {name for name in sys.modules.keys() - before.keys() if name.split(".")[0] in checkout.OWN}


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckout, match=r"no main\.py and models"), checkout.checkout(tmp_path, {}):
        pass
    wrong = {"enc_layer": 1}
    with pytest.raises(BadCheckout, match=r"'enc_layer'; nearest: 'enc_layers'"), checkout.checkout(STAND_IN, wrong):
        pass
    with pytest.raises(FileExistsError):
        recording.record(STAND_IN, tmp_path, SMALL)


class Noisy(nn.Module):
    """Has DN-DETR's calling convention and draws as it does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.asked = nn.Parameter(torch.ones(3)), []

    def forward(self, samples: Any, dn_args: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        self.asked.append(dn_args)
        noise = torch.rand_like(self.weight) + torch.randint_like(self.weight, 0, 2)
        return {"pred_logits": self.weight * noise}, {"pad_size": 4, "known_indice": torch.arange(3)}


def noisy() -> Official:
    args = Namespace(scalar=5, label_noise_scale=0.2, box_noise_scale=0.4, num_patterns=0, contrastive=False)
    criterion = nn.Module()
    return Official("dn_dab_detr", args, {}, Noisy(), criterion, lambda *_: [], lambda *_: None)


def test_denoising_is_asked_for_as_each_repository_does() -> None:
    official, targets = noisy(), [{"labels": torch.tensor([1])}]
    _, (groups,) = official.train(official.model, None, targets)
    assert official.evaluate(official.model, None).keys() == {"pred_logits"}
    assert official.model.asked == [(targets, 5, 0.2, 0.4, 0), 0]  # type: ignore[comparison-overlap]
    assert recording.flat("dn", groups).keys() == {"dn.pad_size", "dn.known_indice"}
    official.args.contrastive = True
    official.train(official.model, None, targets)
    assert official.model.asked[-1] == (targets, 5, 0.2, 0.4, 0, True)  # type: ignore[index]


def test_random_draws_are_recorded_once_and_drawn_again_in_the_other_precision() -> None:
    official, kept = noisy(), []  # type: ignore[var-annotated]
    with recording.drawing(kept) as first:
        single = official.evaluate(official.model, None)["pred_logits"]
    with recording.drawing(kept) as second:
        double = official.evaluate(official.model.double(), None)["pred_logits"]
    assert [name for name, _ in first] == ["rand_like", "randint_like"] == [name for name, _ in second]
    assert double.dtype == torch.float64
    assert all(torch.equal(one.double(), other) for (_, one), (_, other) in zip(first, second, strict=True))
    torch.testing.assert_close(double, single.double(), atol=1e-6, rtol=0)
    with pytest.raises(RuntimeError, match="before it was rand_like"), recording.drawing(kept):
        torch.rand(3)


def test_tied_parameters_are_one_group() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(2, 2)})
    assert recording.tied(model) == [["a.weight", "b.weight"], ["a.bias", "b.bias"]]
