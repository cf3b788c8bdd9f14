"""R2-Tuning from the official repository, on features of CLIP's last layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from parity.check import Case, Run, System
from parity.material import DTYPES, Golden
from parity.systems import moments
from torch import Tensor
from torch.func import functional_call

from momentdetr.detr.losses import Losses
from momentdetr.detr.types import Targets
from momentdetr.retrieval.convert import convert_state
from momentdetr.retrieval.points import PointOutput, point_targets
from momentdetr.retrieval.types import MomentOutput, MomentTargets, SaliencyTargets, VideoText

TERMS = {
    "class": "loss_cls",
    "l1": "loss_reg",
    "saliency": "loss_sal",
    "video_contrast": "loss_video_cal",
    "layer_contrast": "loss_layer_cal",
}


def run(golden: Golden, dtype: str) -> Run:
    """Answer each sample alone, train on all, through the converter."""
    leaves = {name: tensor.to(DTYPES[dtype]) for name, tensor in golden.state.items()}
    for name, leaf in leaves.items():
        leaf.requires_grad_(not name.startswith("loss."))
    facts = golden.config
    options = {"stored_layers": _stored(golden), "num_patches": facts["arch"][2], "heads": facts["heads"]}
    conversion = convert_state(leaves, {**options, "input_dropout": 0.0, "merge_cls_sal": facts["merge_cls_sal"]})
    model: Any = conversion.model().to(DTYPES[dtype])
    inputs = _inputs(golden.inputs, DTYPES[dtype])
    outputs: dict[str, Tensor] = {}
    with torch.no_grad():
        for index, clips in enumerate(inputs.video_mask.sum(1).tolist()):
            words = int(inputs.text_mask[index].sum())
            row = slice(index, index + 1)
            alone = VideoText(
                inputs.video[row, :clips],
                inputs.video_mask[row, :clips],
                inputs.text[row, :words],
                inputs.text_mask[row, :words],
            )
            outputs |= moments._named(f"eval.{index}", _answer(model.eval(), alone, float(golden.inputs["fps"][index])))
            if index == 0:
                outputs |= moments._named("eval.0.hook", _hooks(model, alone))
    cases = {}
    for name in golden.losses(dtype):
        step = moments._Step(model.train())
        targets = _targets(golden.inputs, inputs)
        weights = {f"model.{key}": value for key, value in conversion.state.items()}
        output, losses = functional_call(step, weights, (inputs, targets, 0), strict=True)
        outputs |= moments._named(f"train_{name}", _said(model, output, targets, inputs))
        cases[name] = _case(model, losses, leaves)
    return Run(outputs, cases)


def _stored(golden: Golden) -> int:
    width, _, patches = golden.config["arch"]
    return golden.inputs["video"].shape[-1] // (width * patches)


def _inputs(recorded: Mapping[str, Tensor], dtype: torch.dtype) -> VideoText:
    """Padding is recorded as infinity."""
    masks = {name: recorded[name][..., 0].isfinite() for name in ("video", "query")}
    return VideoText(recorded["video"].to(dtype), masks["video"], recorded["query"].to(dtype), masks["query"])


def _targets(recorded: Mapping[str, Tensor], inputs: VideoText) -> MomentTargets:
    edges, fps = recorded["boundary"].to(inputs.video.dtype), recorded["fps"].to(inputs.video.dtype)
    mask = edges[..., 0].isfinite()
    clips = edges.masked_fill(~mask[..., None], 0.0) * fps[:, None]
    fractions = clips / inputs.video_mask.sum(1)[:, None, None]
    start, end = fractions.unbind(-1)
    boxes = torch.stack([(start + end) / 2, end - start], -1)
    saliency = SaliencyTargets(recorded["saliency"].to(boxes.dtype), recorded["pos_clip"], recorded["pos_clip"])
    return MomentTargets(Targets(torch.zeros(mask.shape, dtype=torch.long), boxes, mask), saliency)


def _answer(model: Any, alone: VideoText, fps: float) -> dict[str, Tensor]:
    said = model.predict(alone)
    seconds = said.spans[0] * alone.video.shape[1] / fps
    return {
        "_out.boundary": torch.cat([seconds, said.scores[0][:, None].to(seconds.dtype)], 1),
        "_out.saliency": said.saliency[0],
        "_avg_factor": torch.tensor(1),
    }


def _hooks(model: Any, alone: VideoText) -> dict[str, Tensor]:
    encoder, head = model.encoder, model.head
    parts = {"words": encoder.text_projection, "classes": head.classes, "offsets": head.offsets, "cells": head.pyramid}
    with moments._listening(parts) as seen:
        output = model(alone)
    extras = output.encoding.extras
    count = encoder.num_layers
    hooks = {"adapter.0": output.encoding.memory.tokens, "adapter.1": seen["words"][-1]}
    hooks |= {f"adapter.2.{i}": extras[f"frames_{count - 1 - i}"] for i in range(count)}
    hooks |= {f"adapter.3.{i}": words for i, words in enumerate(seen["words"])}
    hooks |= {f"pyramid.0.{i}": cells for i, (cells, _) in enumerate(seen["cells"][0])}
    for name, results in (("class_head", seen["classes"]), ("coord_head", seen["offsets"])):
        hooks |= {name + (f"#{i}" if i else ""): result for i, result in enumerate(results)}
    return hooks | {"pooling": extras["sentence_0"][:, None]}


def _said(model: Any, output: MomentOutput, targets: MomentTargets, inputs: VideoText) -> dict[str, Tensor]:
    said, extras = output.output, output.encoding.extras
    assert isinstance(said, PointOutput)
    points = said.points
    answers, distances = point_targets(points, targets.spans, said.num_clips)
    count = model.encoder.num_layers
    masks = said.mask.split(list(points.sizes), 1)
    return {
        "out_class": said.last.logits,
        "out_coord": said.offsets,
        "point": torch.stack([points.positions, points.low, points.high, points.strides], 1),
        "video_emb": output.encoding.memory.tokens,
        "query_emb": extras["sentence_0"][:, None],
        "video_msk": inputs.video_mask.long(),
        "cls_tgt": answers.to(distances.dtype),
        "reg_tgt": distances,
        **{f"pymid_msk.{level}": mask.long() for level, mask in enumerate(masks)},
        **{f"coll_q.{i}": extras[f"sentence_{count - 1 - i}"][:, None] for i in range(count)},
    }


def _case(model: Any, losses: Losses, leaves: Mapping[str, Tensor]) -> Case:
    weights = {"class": model.criterion.class_, "l1": model.criterion.l1, **model.weights}
    learnt = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    gradients = torch.autograd.grad(losses.total, list(learnt.values()), allow_unused=True)
    return Case(
        losses={TERMS[name]: weights[name] * value.detach() for name, value in losses.terms.items()},
        weighted_sum=losses.total.detach(),
        indices={},
        gradients=dict(zip(learnt, gradients, strict=True)),
    )


def _accepts(config: Mapping[str, Any]) -> bool:
    return config.get("system") == "r2_tuning" and config.get("repo", "") in ("R2-Tuning", "")


SYSTEMS = (System("r2_tuning", _accepts, run, pins=moments.PINS),)
