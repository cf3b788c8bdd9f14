"""What grew out of QD-DETR, from the official repositories and from Lighthouse: one run for all of them.

A system says what of its model is recorded; weights, inputs, targets, losses and gradients go the way of `moments`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from parity.check import Case, Run, System
from parity.comparison import Reason
from parity.material import DTYPES, Golden
from parity.systems import moments
from parity.systems.images import leaves_of
from torch import Tensor
from torch.func import functional_call

from momentdetr.retrieval.convert import convert_state
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.types import Encoding, MomentOutput, MomentTargets, VideoText

Said = dict[str, Tensor]
REPOSITORIES = ("CGDETR", "TR-DETR", "UVCOM", "EaTR", "lighthouse", "")  # "": full-size manifests do not say


@dataclass(frozen=True)
class Member:
    """What is recorded of a system beside every retriever's spans, logits and saliency.

    Args:
        evaluated: (model, inputs, output, targets, official weights) -> what it says in evaluation, and what passes
            between its modules under names that begin with "hook.".
        trained: (model, output, targets) -> what it says in training.
        case: (case, model, output, official weights) -> the case as the official code writes it.
    """

    evaluated: Callable[[Any, VideoText, MomentOutput, MomentTargets, Mapping[str, Tensor]], Said]
    trained: Callable[[Any, MomentOutput, MomentTargets], Said] = lambda model, output, targets: {}
    case: Callable[[Case, Any, MomentOutput, Mapping[str, Tensor]], Case] = lambda case, model, output, leaves: case


def run_member(member: Member, golden: Golden, dtype: str) -> Run:
    """Evaluate and train on the golden inputs, through the converter."""
    leaves = leaves_of(golden, DTYPES[dtype])
    conversion = convert_state(leaves, golden.args)
    model = conversion.model().to(DTYPES[dtype])
    inputs = moments.inputs_of(golden.inputs, DTYPES[dtype])
    targets = targets_of(golden, inputs)
    with torch.no_grad():
        output = model.eval()(inputs)
        outputs = _named("eval", said(model, output, leaves) | member.evaluated(model, inputs, output, targets, leaves))
        outputs |= _named("eval_b1", said(model, model(moments._first_alone(inputs)), leaves))
    cases = {}
    weights = {f"model.{key}": value for key, value in conversion.state.items()}
    for name, case in golden.losses(dtype).items():
        step = moments._Step(model.train())
        output, losses = functional_call(step, weights, (inputs, targets, case.get("epoch", 0)), strict=True)
        with torch.no_grad():
            outputs |= _named(f"train_{name}", said(model, output, leaves) | member.trained(model, output, targets))
        cases[name] = member.case(moments._case(output, losses, targets, leaves), model, output, leaves)
    return Run(outputs, cases, moments._answers(model.eval(), inputs))


def targets_of(golden: Golden, inputs: VideoText) -> MomentTargets:
    """What the official criterion was given, with the names of the videos."""
    batch = len(inputs.video)
    names = golden.config.get("vids") or [f"{'AB'[i]}_x_0.0_1.0" for i in range(batch)]  # as at full size
    targets = moments.targets_of(golden.inputs, inputs)
    if targets.saliency is not None and "src_pos_mask" in golden.inputs:
        targets = replace(targets, saliency=replace(targets.saliency, relevant=golden.inputs["src_pos_mask"].bool()))
    return replace(targets, videos=tuple(names[:batch]))


def said(model: MomentRetriever, output: MomentOutput, leaves: Mapping[str, Tensor]) -> Said:
    """What every official dictionary has."""
    *earlier, last = output.output.layers
    found = {
        "pred_logits": last.logits,
        "pred_spans": last.boxes,
        "saliency_scores": output.saliency,
        "video_mask": output.video_mask.to(output.saliency.dtype),
    }
    for i, layer in enumerate(earlier):
        found |= {f"aux_outputs.{i}.pred_logits": layer.logits, f"aux_outputs.{i}.pred_spans": layer.boxes}
    return found if model.align is None else found | moments._aligned(model, output, leaves)


def decoded(model: MomentRetriever, encoding: Encoding, again: str = "", name: str = "transformer") -> Said:
    """What the official transformer and its decoder give back."""
    output = model.detect(encoding)
    pair = {"0": output.hidden, "1": torch.stack(output.references)}
    return _named(f"hook.{name}.decoder{again}", pair) | _named(f"hook.{name}{again}", pair)


def projected(model: MomentRetriever, inputs: VideoText, output: MomentOutput) -> Said:
    """The projections and positions."""
    encoder: Any = model.encoder
    return {
        "hook.input_vid_proj": encoder.video_projection(inputs.video, inputs.video_mask),
        "hook.input_txt_proj": encoder.text_projection(inputs.text),
        "hook.position_embed": output.encoding.memory.positions,
    }


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> Said:
    return {f"{prefix}.{name}": tensor.detach() for name, tensor in tensors.items()}


def system(name: str, member: Member, permitted: Mapping[str, Reason] | None = None) -> System:
    """The system of this name, from the official repository and from Lighthouse."""
    return System(
        name,
        lambda config: config.get("system") == name and config.get("repo", "") in REPOSITORIES,
        lambda golden, dtype: run_member(member, golden, dtype),
        pins=moments.PINS,
        permitted=permitted or {},
        costs=moments.costs,
    )
