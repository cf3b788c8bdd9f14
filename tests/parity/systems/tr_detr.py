"""TR-DETR: what its official dictionary holds, and what passes between its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from parity.check import Case
from parity.systems.family import Member, Said, decoded, projected, system
from parity.systems.moments import _listening
from torch import Tensor

from momentdetr.retrieval.types import MomentOutput, MomentTargets, VideoText

APART = ("VTC", "CTC")
"""Terms that the official training script adds to the criterion's, so that they are recorded beside those."""


def _evaluated(
    model: Any, inputs: VideoText, output: MomentOutput, targets: MomentTargets, leaves: Mapping[str, Tensor]
) -> Said:
    encoder = model.encoder
    parts = {"mixer": encoder.mixer, "fusion": encoder.fusion[-1], "encoder": encoder.encoder}
    with _listening(parts) as seen:
        encoding = encoder(inputs)
    first, second = (memory.tokens for memory in seen["encoder"])
    state = encoder.moment_state(
        encoding.extras["video"], *encoder._best_moment(output.output, inputs.video_mask), inputs.video_mask
    )
    hooks = {
        "hook.fuser": seen["mixer"][0],
        "hook.gru_extractor": state,
        "hook.transformer.2": second,
        "hook.transformer.3": encoding.saliency,
        "hook.transformer.encoder": first.transpose(0, 1),
        "hook.transformer.encoder#1": second.transpose(0, 1),
        "hook.transformer.t2v_encoder": torch.cat([seen["fusion"][0], encoding.extras["text"]], 1).transpose(0, 1),
    }
    return hooks | projected(model, inputs, output) | decoded(model, encoding) | _trained(model, output, targets)


def _trained(model: Any, output: MomentOutput, targets: MomentTargets) -> Said:
    video, text = model.encoder.summaries(output.encoding, output.video_mask)
    return {
        "src_vid_ed": output.encoding.extras["video"],
        "src_txt_ed": output.encoding.extras["text"],
        "src_vid_cls_ed": video,
        "src_txt_cls_ed": text,
    }


def _case(case: Case, model: Any, output: MomentOutput, leaves: Mapping[str, Tensor]) -> Case:
    added = model.weights["video_text"] * case.losses["VTC"] + model.weights["clip_text"] * case.losses["CTC"]
    extra = {name: case.losses[name] for name in APART} | {"criterion_sum": case.weighted_sum - added}
    return replace(case, losses={k: v for k, v in case.losses.items() if k not in APART}, extra=extra)


SYSTEM = system("tr_detr", Member(_evaluated, _trained, _case))
