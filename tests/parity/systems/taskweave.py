"""TaskWeave, in both directions, from the official repository and from Lighthouse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from parity.check import Case, Run, System
from parity.fullsize import uniform
from parity.material import DTYPES, Golden
from parity.systems import moments
from torch import Tensor, nn
from torch.func import functional_call

from momentdetr.detr.losses import Losses
from momentdetr.retrieval.convert import convert_state
from momentdetr.retrieval.taskweave import TaskWeave
from momentdetr.retrieval.types import MomentOutput, MomentTargets, VideoText


def run(golden: Golden, dtype: str) -> Run:
    """Evaluate and train on the golden inputs, through the converter."""
    leaves = {name: tensor.to(DTYPES[dtype]).requires_grad_() for name, tensor in golden.state.items()}
    # The official code is edited by hand to change the direction; only the golden's own name tells.
    options = {**golden.args, "mr2hd": golden.config["system"] == "taskweave_mr2hd"}
    conversion = convert_state(leaves, options)
    model: Any = conversion.model().to(DTYPES[dtype])
    inputs = moments.inputs_of(_whole(golden), DTYPES[dtype])
    with torch.no_grad():
        outputs = moments._named("eval", _evaluate(model, inputs))
        outputs |= moments._named("eval_b1", moments._said(model, model.eval()(moments._first_alone(inputs)), leaves))
    cases = {}
    for name, case in golden.losses(dtype).items():
        step = _Step(model.train())
        weights = {f"model.{key}": value for key, value in conversion.state.items()}
        targets = moments.targets_of(golden.inputs, inputs)
        output, losses = functional_call(step, weights, (inputs, targets, case["epoch"]), strict=True)
        outputs |= moments._named(f"train_{name}", moments._said(model, output, leaves))
        cases[name] = _case(output, losses, targets, leaves)
    return Run(outputs, cases, moments._answers(model.eval(), inputs) if cases else None)


class _Step(nn.Module):
    """Forward and losses as one call, so that weights can be put in from outside."""

    def __init__(self, model: TaskWeave) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: VideoText, targets: MomentTargets, epoch: int) -> tuple[MomentOutput, Losses]:
        output = self.model(inputs, epoch)
        return output, self.model.judge(output, targets)


def _whole(golden: Golden) -> Mapping[str, Tensor]:
    """The inputs. At full size the moments-first direction had 75 clips of both videos: it runs on no others."""
    if not golden.first or golden.config["system"] != "taskweave_mr2hd":
        return golden.inputs
    shape = list(golden.inputs["src_vid"].shape)
    video = torch.from_numpy(2 * uniform("src_vid", shape) - 1).float()
    return {**golden.inputs, "src_vid": video, "src_vid_mask": torch.ones(shape[:2])}


def _evaluate(model: TaskWeave, inputs: VideoText) -> dict[str, Tensor]:
    """The official dictionary, negatives included, and what passes between its modules, pass by pass."""
    encoder = model.eval().encoder
    parts = {
        "vid": encoder.video_projection,
        "txt": encoder.text_projection,
        "encoder": encoder.encoder,
        "fusion": encoder.fusion[-1],
    }
    with moments._listening(parts) as seen, mock.patch.object(encoder, "weave", wraps=encoder.weave) as weave:
        woven: list[tuple[Tensor, Tensor]] = []
        weave.side_effect = lambda given: woven.append(weave._mock_wraps(given)) or woven[-1]
        encoding = encoder(inputs, with_negatives=True)
    output = model.head(encoding.memory)
    if encoder.direction == "moments_first":
        encoding = encoder.feed_back(encoding, output.last.boxes)
    hooks = {"input_vid_proj": seen["vid"][0], "input_txt_proj": seen["txt"][0]}
    hooks["position_embed"] = encoding.memory.positions
    for index, memories in enumerate(woven):
        again = f"#{index}" if index else ""
        decoded = model.head(replace(encoding.memory, tokens=memories[0]))
        pair = {"0": decoded.hidden, "1": torch.stack(decoded.references)}
        hooks |= moments._named(f"transformer.mr_decoder{again}", pair) | moments._named(f"transformer{again}", pair)
        hooks |= moments._named(f"transformer{again}", {"2": memories[0], "3": memories[1]})
        text = seen["txt"][0].roll(-1, 0) if index + 1 == len(woven) else seen["txt"][0]
        hooks[f"transformer.t2v_encoder{again}"] = torch.cat([seen["fusion"][index], text], 1).transpose(0, 1)
    for index, memory in enumerate(seen["encoder"]):
        hooks["transformer.shared_encoder" + (f"#{index}" if index else "")] = memory.tokens.transpose(0, 1)
    said = moments._said(model, MomentOutput(output, encoding, inputs.video_mask), {})
    return said | moments._named("hook", hooks)


def _case(output: MomentOutput, losses: Losses, targets: MomentTargets, leaves: Mapping[str, Tensor]) -> Case:
    case = moments._case(output, losses, targets, leaves)
    of_moments = [value for name, value in losses.terms.items() if name != "saliency"]
    extra = {"loss_mr": torch.stack(of_moments).sum().detach(), "loss_hd": losses.terms["saliency"].detach()}
    return replace(case, extra=extra)


def _accepts(config: Mapping[str, Any]) -> bool:
    known = ("TaskWeave", "lighthouse", "")
    return config.get("system") in ("taskweave", "taskweave_mr2hd") and config.get("repo", "") in known


SYSTEMS = (System("taskweave", _accepts, run, pins=moments.PINS, costs=moments.costs),)
