"""Oracles: figures written out by hand, products counted by hand, and a run that nobody broke off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import moments
import pytest
import torch
from products import Recorder, replay

from momentdetr.retrieval.presets import build

TINY = ("--set", "model.sizes.width=32", "model.sizes.feed_forward=32", "model.sizes.num_heads=2")
RUN = ("--train", "24", "--val", "8", "--simulator-seeds", "5", "--threads", "1", "--device", "cpu")


def command(annotations: Path, folder: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, moments.__file__, "--annotations", str(annotations), "--data", str(folder / "data{}")),
        *("--out", str(folder / "out.jsonl"), "--folder", str(folder / "runs"), *RUN, *more, *TINY),
    ]


def lines_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_runs_are_done_once_and_shown(annotations: Path, tmp_path: Path) -> None:
    wanted = command(annotations, tmp_path, "--models", "qd_detr", "--epochs", "2", "--seconds", "0.1")
    first = subprocess.run(wanted, capture_output=True, text=True, check=True)
    lines = lines_of(tmp_path)
    assert [(line["model"], line["epochs"], line["seconds"]) for line in lines] == [
        ("qd_detr", 2, 0),
        ("qd_detr", 0, 0.1),
    ]
    for line in lines:
        assert line["updates"] == 3 * line["epochs_done"] or line["epochs"] == 0  # type: ignore[operator]
        assert 0 <= line["mAP"] <= line["best_mAP"] <= 100  # type: ignore[operator]
        assert line["epoch_seconds"] > 0  # type: ignore[operator]
    assert lines[0]["of_products"] > 1  # type: ignore[operator]
    assert 0.1 <= lines[1]["train_seconds"] < 10  # type: ignore[operator]
    assert not list(tmp_path.rglob("checkpoints"))
    with (tmp_path / "out.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"model": "qd_detr", "cut off')
    again = subprocess.run(wanted, capture_output=True, text=True, check=True)
    assert again.stderr == ""  # no run was begun
    assert again.stdout == first.stdout
    assert first.stdout.count("\n") == 2 + 2


@pytest.mark.slow
def test_a_run_that_is_broken_off_goes_on(annotations: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    subprocess.run(command(annotations, whole, "--models", "qd_detr", "--epochs", "4"), check=True, capture_output=True)
    broken = tmp_path / "broken"
    wanted = command(annotations, broken, "--models", "qd_detr", "--epochs", "4")
    process = subprocess.Popen(wanted, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(broken.glob("runs/*/checkpoints/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, 9)
    process.wait()
    assert not (broken / "out.jsonl").exists()
    steps = len(next(broken.glob("runs/*/metrics.jsonl")).read_text("utf-8").splitlines())
    assert steps > 0
    subprocess.run(wanted, check=True, capture_output=True)
    (one,), (two,) = lines_of(whole), lines_of(broken)
    assert one["curve"] == two["curve"]


def test_figures_of_a_history() -> None:
    def scored(epoch: int, step: int, score: float) -> dict[str, object]:
        return {"epoch": epoch, "step": step, "scores": dict.fromkeys(moments.SCORES.values(), score)}

    lines = [
        {"epoch": 0, "step": 1, "seconds": 1.0},
        {"epoch": 0, "step": 2, "seconds": 3.0},
        scored(1, 2, 3.0),
        {"epoch": 1, "step": 3, "event": "step skipped"},
        {"epoch": 1, "step": 4, "seconds": 1.0},
        scored(2, 4, 20.0),
        {"epoch": 2, "step": 5, "seconds": 2.0},
        scored(3, 6, 16.0),
    ]
    found = moments.history(lines)
    assert (found["mAP"], found["best_mAP"], found["short"]) == (16.0, 20.0, 16.0)
    assert (found["updates"], found["updates_to_15"], found["epochs_done"]) == (6, 4, 3)
    assert (found["epoch_seconds"], found["train_seconds"]) == (2.0, 7.0)
    assert moments.history(lines[:3])["updates_to_15"] is None


def test_names_of_models(tmp_path: Path) -> None:
    sizes = {"encoder_layers": 3, "decoder_layers": 3, "num_queries": 30}
    uvcom = moments.model_of("uvcom")
    assert uvcom["model"] == {"preset": "uvcom", "sizes": sizes}
    assert (uvcom["schedule"]["kind"], uvcom["ema_decay"]) == ("step", 0.0)
    assert moments.model_of("taskweave_mr2hd")["ema_decay"] == 0.9
    assert moments.model_of("taskweave_mr2hd+dino")["model"] == {
        "preset": "composed",
        "encoder": "taskweave",
        "decoder": "dino",
        "encoder_options": {"direction": "moments_first"},
    }
    (tmp_path / "own.yaml").write_text("model: {preset: qd_detr, sizes: {width: 64}}\ndata: {generated: 3}\n", "utf-8")
    own = moments.model_of(str(tmp_path / "own.yaml"))
    assert own == {"model": {"preset": "qd_detr", "sizes": {"width": 64}}, "ema_decay": 0.0}
    with pytest.raises(SystemExit, match="no model 'qd_dtr'"):
        moments.model_of("qd_dtr")


def test_every_model_can_be_built() -> None:
    for name in (*moments.MODELS, "qd_detr+dino", "cg_detr+dn"):
        model = moments.model_of(name)["model"]
        sizes = {**model.get("sizes", {}), "width": 16, "num_heads": 8, "feed_forward": 16}
        build({**model, "sizes": {**sizes, "video_dim": 514, "text_dim": 512}})


def test_products_are_counted_forward_and_backward() -> None:
    layer = torch.nn.Linear(6, 5)
    values = torch.randn(4, 7, 6, requires_grad=True)
    with Recorder() as recorder:
        (layer(values) @ torch.randn(4, 5, 3)).sum().backward()
    linear, batched = 2 * 28 * 6 * 5, 2 * 4 * 7 * 5 * 3
    # Each product has one for either operand's gradient; the random factor wants none.
    assert sum(product.flops for product in recorder.products) == 3 * linear + 2 * batched
    replay(recorder.products)()
