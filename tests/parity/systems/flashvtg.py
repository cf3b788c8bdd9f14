"""FlashVTG from the official repository: it answers one query at a time and trains on batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from parity.check import Case, Run, System
from parity.material import DTYPES, Golden
from parity.predictions import Answer
from parity.systems import moments
from torch import Tensor
from torch.func import functional_call

from momentdetr.detr.boxes import to_corners
from momentdetr.detr.losses import Losses
from momentdetr.retrieval.convert import convert_state
from momentdetr.retrieval.encoders.cg_losses import has_foreign_neighbour
from momentdetr.retrieval.points import PointOutput
from momentdetr.retrieval.types import MomentOutput, MomentTargets, VideoText

TERMS = {
    "class": "loss_cls",
    "l1": "loss_reg",
    "saliency": "loss_saliency",
    "contrast": "loss_sal",
    "score": "loss_label",
}


def run(golden: Golden, dtype: str) -> Run:
    """Answer each sample alone, train on all, through the converter."""
    leaves = {name: tensor.to(DTYPES[dtype]).requires_grad_() for name, tensor in golden.state.items()}
    conversion = convert_state(leaves, golden.args)
    model: Any = conversion.model().to(DTYPES[dtype])
    inputs = moments.inputs_of(golden.inputs, DTYPES[dtype])
    clip_s = golden.args["clip_length"]
    outputs: dict[str, Tensor] = {}
    answers = []
    with torch.no_grad():
        for index, (clips, words) in enumerate(
            zip(inputs.video_mask.sum(1).tolist(), inputs.text_mask.sum(1).tolist(), strict=True)
        ):
            row = slice(index, index + 1)
            alone = VideoText(
                inputs.video[row, :clips],
                inputs.video_mask[row, :clips],
                inputs.text[row, :words],
                inputs.text_mask[row, :words],
            )
            said, answer = _answer(model.eval(), alone, clip_s)
            outputs |= moments._named(f"eval.{index}", said)
            answers.append(answer)
            if index == 0 and not golden.first:
                outputs |= moments._named("eval.0.hook", _hooks(model, alone))
    cases = {}
    for name in golden.losses(dtype):
        step = moments._Step(model.train())
        targets = moments.targets_of(golden.inputs, inputs)
        targets = replace(targets, videos=tuple(golden.config["vids"]))
        weights = {f"model.{key}": value for key, value in conversion.state.items()}
        output, losses = functional_call(step, weights, (inputs, targets, 0), strict=True)
        said = _said(model, output, targets, inputs, clip_s)
        terms = {TERMS[key]: value for key, value in losses.terms.items()}
        outputs |= moments._named(f"train_{name}", {**said, **terms})
        cases[name] = _case(losses, leaves)
    return Run(outputs, cases, answers)


def _answer(model: Any, alone: VideoText, clip_s: float) -> tuple[dict[str, Tensor], Answer]:
    found, output = model.predict(alone), model(alone)
    seconds = found.spans[0] * alone.video.shape[1] * clip_s
    said = {
        "_avg_factor": torch.tensor(1),
        "_out.boundary": torch.cat([seconds, found.scores[0][:, None].to(seconds.dtype)], 1),
        "_out.saliency": found.saliency[0],
        "_out.video_msk": alone.video_mask.int(),
        "dummy_tokens": output.encoding.extras["dummies"],
        "saliency_scores": output.saliency,
        "t2vattnvalues": output.encoding.extras["attended"],
    }
    return said, Answer(found.spans[0], found.scores[0], found.saliency[0])


def _hooks(model: Any, alone: VideoText) -> dict[str, Tensor]:
    own, head = model.encoder, model.head
    parts = {
        "vid": own.video_projection,
        "txt": own.text_projection,
        "dummies": own.dummy_encoder,
        "cells": head.pyramid,
        "classes": head.classes,
        "confidence": head.confidence,
        "offsets": head.offsets,
    }
    parts |= {f"layer.{index}": layer for index, layer in enumerate(own.fusion)}
    with moments._listening(parts) as seen:
        output = model(alone)
    looked = [seen[f"layer.{index}"][0][1] for index in range(len(own.fusion))]
    encoding, mask = output.encoding, alone.video_mask
    tokens, weights = encoding.memory.tokens.transpose(0, 1), torch.stack(looked).mean(0)
    assert encoding.text is not None
    text = torch.cat([encoding.extras["dummies"], encoding.text], 1)
    hooks = {
        "input_vid_proj": seen["vid"][0],
        "input_txt_proj": seen["txt"][0],
        "position_embed": encoding.memory.positions,
        "txtproj_encoder": seen["dummies"][0].tokens.transpose(0, 1),
        "transformer.0": tokens,
        "transformer.1": ~mask,
        "transformer.2": encoding.memory.positions.transpose(0, 1),
        "transformer.3": weights,
        "transformer.4": output.saliency,
        "transformer.encoder": tokens,
        "transformer.t2v_encoder.0": torch.cat([seen[f"layer.{len(own.fusion) - 1}"][0][0], text], 1).transpose(0, 1),
        "transformer.t2v_encoder.1": weights,
        "pooling": encoding.extras["sentence"][:, None],
        "conf_head": seen["confidence"][0],
    }
    hooks |= {f"pyramid.0.{i}": cells for i, (cells, _) in enumerate(seen["cells"][0])}
    for name, results in (("class_head", seen["classes"]), ("coord_head", seen["offsets"])):
        hooks |= {name + (f"#{i}" if i else ""): result for i, result in enumerate(results)}
    return hooks


def _said(
    model: Any, output: MomentOutput, targets: MomentTargets, inputs: VideoText, clip_s: float
) -> dict[str, Tensor]:
    said, extras = output.output, output.encoding.extras
    assert isinstance(said, PointOutput)
    points = said.points
    foreign = has_foreign_neighbour(targets.videos, len(inputs.video))
    saliency, attended = model.encoder.foreign(output.encoding, inputs.video_mask, foreign)
    words = inputs.text_mask.float()
    whole = torch.cat([words.new_ones(len(words), model.encoder.num_dummies), words], 1)
    return {
        "_avg_factor": torch.tensor(len(words)),
        "out_class": said.last.logits,
        "out_coord": said.offsets,
        "point": torch.stack([points.positions, points.low, points.high, points.strides], 1),
        "video_emb": output.encoding.memory.tokens,
        "query_emb": extras["sentence"][:, None],
        "video_msk": inputs.video_mask.int(),
        "dummy_tokens": extras["dummies"],
        "saliency_scores": output.saliency,
        "t2vattnvalues": extras["attended"],
        "saliency_scores_neg": saliency,
        "t2vattnvalues_neg": attended,
        "src_txt_mask_neg": whole.roll(-1, 0)[foreign],
        "real_neg_mask": foreign,
        "pred_spans": _ranked(said, clip_s),
        **{f"pymid_msk.{i}": mask.int() for i, mask in enumerate(said.mask.split(list(points.sizes), 1))},
    }


def _ranked(said: PointOutput, clip_s: float) -> Tensor:
    scores = said.last.logits.sigmoid()
    seconds = to_corners(said.last.boxes) * said.num_clips[:, None, None] * clip_s
    order = scores[..., 0].sort(dim=1, descending=True).indices
    return torch.cat([seconds, scores], -1).gather(1, order[..., None].expand(-1, -1, 3))


def _case(losses: Losses, leaves: Mapping[str, Tensor]) -> Case:
    gradients = torch.autograd.grad(losses.total, list(leaves.values()), allow_unused=True)
    return Case(
        losses={TERMS[name]: value.detach() for name, value in losses.terms.items()},
        weighted_sum=losses.total.detach(),
        indices={"matcher": None},
        gradients=dict(zip(leaves, gradients, strict=True)),
    )


def _accepts(config: Mapping[str, Any]) -> bool:
    return config.get("system") == "flashvtg" and config.get("repo", "") in ("FlashVTG", "")


SYSTEMS = (System("flashvtg", _accepts, run, pins=moments.PINS),)
