"""Would the harness see it? Our own numbers stand in for official ones, then the model is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.check import CHECKS
from parity.fullsize import made_weight, uniform
from parity.material import Golden, read_golden
from parity.report import verdict
from parity.systems import moments
from parity.writing import write_inputs, write_runs
from torch import Tensor, nn

from momentdetr.retrieval.layouts.table import LAYOUTS
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.presets import build

SIZES = {"video_dim": 10, "text_dim": 6, "width": 16, "num_heads": 2, "feed_forward": 24, "num_queries": 4}
OPTIONS = {"nheads": 2, "dropout": 0.0, "input_dropout": 0.0, "contrastive_align_loss_coef": 0.02}
OPTIONS |= {"set_cost_span": 10, "set_cost_giou": 1, "set_cost_class": 4}
ALIGNED = {"contrastive_align_loss": True, "temperature": 0.07}


def inputs_of(clips: int = 12, words: int = 5) -> dict[str, Tensor]:
    """Padded videos and sentences, windows, saliency, by the rule of names."""
    batch = 3
    clip_mask = torch.arange(clips) < torch.tensor([[clips], [clips - 5], [clips - 2]])
    word_mask = torch.arange(words) < torch.tensor([[words - 2], [words], [words - 1]])
    scores = torch.from_numpy(uniform("scores", [batch, clips])) * 12 * clip_mask
    return {
        "src_vid": torch.from_numpy(2 * uniform("src_vid", [batch, clips, SIZES["video_dim"]]) - 1).float(),
        "src_vid_mask": clip_mask.float(),
        "src_txt": torch.from_numpy(2 * uniform("src_txt", [batch, words, SIZES["text_dim"]]) - 1).float(),
        "src_txt_mask": word_mask.float(),
        "span_labels.0": torch.tensor([[0.2, 0.1], [0.7, 0.3]]),
        "span_labels.1": torch.tensor([[0.5, 0.4]]),
        "span_labels.2": torch.tensor([[0.3, 0.2], [0.6, 0.1], [0.85, 0.3]]),
        "saliency_pos_labels": torch.tensor([[1, 2], [3, 4], [0, 6]]),
        "saliency_neg_labels": torch.tensor([[5, 7], [0, 1], [2, 9]]),
        "saliency_all_labels": scores.round().float(),
    }


def own_golden(folder: Path, system: str, options: Mapping[str, Any]) -> Golden:
    """A folder of goldens whose official side is our own code."""
    align = {"alignment_size": 8} if options.get("contrastive_align_loss") else {}
    shapes = LAYOUTS[system].to_official(build({"preset": system, "sizes": SIZES, **align}).state_dict())
    state = {name: made_weight(name, list(tensor.shape)) for name, tensor in shapes.items()}
    if align:  # the official model has this one too and never uses it
        state |= {f"contrastive_align_projection_vid.{p}": torch.ones(s) for p, s in (("weight", (8, 16)), ("bias", 8))}
    config = {"system": system, "repo": "", "full_args": {**OPTIONS, **options}}
    write_inputs(folder, config, state, inputs_of())
    golden = read_golden(folder)
    write_runs(folder, {dtype: moments.run(golden, dtype) for dtype in ("float32", "float64")})
    read_golden.cache_clear()
    return read_golden(folder)


@pytest.fixture(scope="module")
def qd_detr(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return own_golden(tmp_path_factory.mktemp("own") / "qd", "qd_detr", {})


@pytest.fixture(scope="module")
def moment_detr(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return own_golden(tmp_path_factory.mktemp("own") / "moment", "moment_detr", ALIGNED)


def failing(golden: Golden, alter: Callable[[Any], None], dtype: str) -> set[str]:
    (system,) = (system for system in moments.SYSTEMS if system.accepts(golden.config))
    run = moments.run(golden, dtype, alter)
    rows = {part: check(golden, run, system, dtype) for part, check in CHECKS.items()}
    return {part for part, found in rows.items() if found and verdict(found)}


def without_batch_faults(model: Any) -> None:
    for layer in model.encoder.fusion:
        layer.official_batch_faults = False


def detached_references(model: Any) -> None:
    model.head.decoder.refinement = "detached"


def other_margin(model: Any) -> None:
    model.encoder.saliency_margin = 0.3


def other_weight(model: Any) -> None:
    model.criterion.weights["giou"] = 1.01


def other_cost(model: Any) -> None:
    model.criterion.matcher.weights |= {"l1": 0.0, "giou": 0.0}


def detached_memory(model: Any) -> None:
    model.encoder.encoder.register_forward_hook(lambda module, args, result: result.with_tokens(result.tokens.detach()))


def other_temperature(model: Any) -> None:
    model.align.temperature = 0.08


def other_activation(model: Any) -> None:
    model.head.decoder.layers[1].feed_forward.activation = nn.GELU()


def nothing(model: MomentRetriever) -> None:
    pass


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("alter", "parts"),
    [
        (nothing, set()),
        (without_batch_faults, {"outputs", "losses", "gradients"}),
        (detached_references, {"gradients"}),
        (other_margin, {"losses"}),  # a constant where both clips of a pair are far apart; gradients may stay
        (other_weight, {"losses", "gradients"}),
        (other_cost, {"losses", "indices", "gradients"}),
        (detached_memory, {"gradients"}),
    ],
)
def test_faults_of_qd_detr_are_seen(qd_detr: Golden, alter: Callable[[Any], None], parts: set[str], dtype: str) -> None:
    found = failing(qd_detr, alter, dtype)
    assert found >= parts
    assert found - parts <= ({"gradients"} if alter is other_margin else set())


@pytest.mark.parametrize(
    ("alter", "parts"),
    [
        (nothing, set()),
        (other_temperature, {"losses", "gradients"}),
        (other_activation, {"outputs", "losses", "gradients"}),
        (detached_memory, {"gradients"}),
    ],
)
def test_faults_of_moment_detr_are_seen(moment_detr: Golden, alter: Callable[[Any], None], parts: set[str]) -> None:
    assert failing(moment_detr, alter, "float32") - {"indices"} == parts
