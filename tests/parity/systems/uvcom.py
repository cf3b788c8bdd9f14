"""UVCOM, the official one and Lighthouse's: what its dictionary holds, and what passes between its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from parity.check import Case
from parity.systems.family import Member, Said, decoded, projected, system
from parity.systems.moments import _listening
from torch import Tensor

from momentdetr.retrieval.types import Encoding, MomentOutput, MomentTargets, VideoText

OVERWRITTEN = "global_rep_token"
"""The official code puts something else in its place before anything reads it: a gradient of zeros, not none."""


def _evaluated(
    model: Any, inputs: VideoText, output: MomentOutput, targets: MomentTargets, leaves: Mapping[str, Tensor]
) -> Said:
    encoder = model.encoder
    parts = {"words": encoder.words_fusion[-1], "encoder": encoder.encoder, "slots": encoder.slots}
    with _listening(parts) as seen:
        own = encoder(inputs, with_negatives=True)
    negative = own.extras["negative_saliency"]
    foreign = _foreign(encoder, inputs)
    hooks = projected(model, inputs, output)
    text = encoder.text_projection(inputs.text)
    video = encoder.video_projection(inputs.video, inputs.video_mask)
    token = leaves[OVERWRITTEN].expand(len(text), 1, -1)
    for index, encoding in enumerate((own, foreign)):
        again = f"#{index}" if index else ""
        tokens = seen["encoder"][index].tokens
        given = torch.cat([encoding.extras["summary"], encoding.extras["fused"]], 1)
        hooks |= decoded(model, encoding, again, "CIM") | _named(f"hook.CIM{again}.4", _similarity(encoding, inputs))
        hooks |= {
            f"hook.CIM{again}.2": encoding.memory.tokens,
            f"hook.CIM{again}.3": tokens[:, 0],
            f"hook.CIM.GKA_Module{again}": tokens.transpose(0, 1),
            f"hook.CIM.processer_for_tgt{again}": seen["slots"][index],
            # Both are written over in place later on, so that the recorded tensors hold what the next module is given.
            f"hook.CIM.t2v_encoder{again}": torch.cat([given, text.roll(-index, 0)], 1).transpose(0, 1),
            f"hook.CIM.v2t_encoder{again}": torch.cat([token, video, seen["words"][index]], 1).transpose(0, 1),
        }
    return hooks | {"saliency_scores_neg": negative} | _named("sim", _similarity(own, inputs))


def _foreign(encoder: Any, inputs: VideoText) -> Encoding:
    text, mask = (x.roll(-1, 0) for x in (inputs.text, inputs.text_mask))
    return encoder(replace(inputs, text=text, text_mask=mask), with_negatives=False)


def _similarity(encoding: Encoding, inputs: VideoText) -> Said:
    extras = encoding.extras
    return {"CTA_Sim.0": extras["clips"], "CTA_Sim.1": inputs.video_mask, "VLA_Sim": extras["videos"]}


def _trained(model: Any, output: MomentOutput, targets: MomentTargets) -> Said:
    encoder, extras = model.encoder, output.encoding.extras
    said = {
        "saliency_scores_neg": extras["negative_saliency"],
        "sim.CTA_Sim.0": extras["clips"],
        "sim.CTA_Sim.1": output.video_mask,
        "sim.VLA_Sim": extras["videos"],
    }
    if encoder.epoch >= encoder.hard_negatives_from:
        said["sim.negative_idx"] = encoder.foreign_queries(output.encoding)
    return said


def _case(case: Case, model: Any, output: MomentOutput, leaves: Mapping[str, Tensor]) -> Case:
    zeros = torch.zeros_like(leaves[OVERWRITTEN])
    return replace(case, gradients={**case.gradients, OVERWRITTEN: zeros})


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> Said:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


SYSTEM = system("uvcom", Member(_evaluated, _trained, _case))
