"""BAM-DETR from the official repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from parity.check import Run, System
from parity.material import DTYPES, Golden
from parity.systems import moments
from parity.systems.images import leaves_of
from torch import Tensor, nn
from torch.func import functional_call

from momentdetr.detr.boxes import giou, to_center_size, to_corners
from momentdetr.detr.types import Memory
from momentdetr.retrieval.convert import convert_state
from momentdetr.retrieval.layouts.layout import Layers, Layout
from momentdetr.retrieval.stacks import Sizes, encoder
from momentdetr.retrieval.types import MomentOutput, VideoText

TERMS = {"quality": "loss_quality", "boundary": "loss_boundary"}
SLICED_OFF = ("global_rep_token_txt", "global_rep_pos_txt")
"""The official code puts these behind the words and slices them off again, so their gradient is zero, not none."""


def run(golden: Golden, dtype: str) -> Run:
    """Evaluate and train on the golden inputs, through the converter."""
    leaves = leaves_of(golden, DTYPES[dtype])
    conversion = convert_state(leaves, golden.args)
    model: Any = conversion.model().to(DTYPES[dtype])
    inputs = moments.inputs_of(golden.inputs, DTYPES[dtype])
    with torch.no_grad():
        outputs = moments._named("eval", _evaluate(model, inputs, leaves, golden.args))
        outputs |= moments._named("eval_b1", _said(model, model.eval()(moments._first_alone(inputs)), leaves))
    cases = {}
    for name in golden.losses(dtype):
        step = moments._Step(model.train())
        weights = {f"model.{key}": value for key, value in conversion.state.items()}
        targets = moments.targets_of(golden.inputs, inputs)
        output, losses = functional_call(step, weights, (inputs, targets, 0), strict=True)
        outputs |= moments._named(f"train_{name}", _said(model, output, leaves))
        case = moments._case(output, losses, targets, leaves)
        zeros = {token: torch.zeros_like(leaves[token]) for token in SLICED_OFF}
        cases[name] = replace(case, gradients={**case.gradients, **zeros})
    # Only this code cuts windows off at the end of their video; ours are cut off where they become seconds.
    answers = [replace(answer, spans=answer.spans.clamp(0, 1)) for answer in moments._answers(model.eval(), inputs)]
    return Run(outputs, cases, answers)


def _said(model: nn.Module, output: MomentOutput, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official model's dictionary."""
    said = moments._said(model, output, leaves)
    said["memory_boundary"] = output.encoding.extras["boundaries"]
    for index, layer in enumerate(output.output.layers):
        name = f"aux_outputs.{index}." if index + 1 < len(output.output.layers) else ""
        if name:
            raw = output.output.references[index + 1]
            said |= {f"{name}pred_spans_raw": raw, f"{name}pred_spans2": _span(raw)}
        if layer.quality is not None:
            said[f"{name}pred_quality"] = layer.quality.sigmoid()[..., None]
    return said


def _span(raw: Tensor) -> Tensor:
    anchor, left, right = raw.unbind(-1)
    return to_center_size(torch.stack([anchor - left, anchor + right], -1))


def _evaluate(
    model: Any, inputs: VideoText, leaves: Mapping[str, Tensor], args: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The official dictionary, negatives included, and what passes between its modules."""
    own = model.eval().encoder
    parts = {"vid": own.video_projection, "txt": own.text_projection, "fusion": own.fusion[-1], "encoder": own.encoder}
    with moments._listening(parts) as seen:
        encoding = own(inputs, with_negatives=True)
    output = MomentOutput(model.detect(encoding), encoding, inputs.video_mask)
    text, mask = seen["txt"][0], inputs.video_mask
    hooks = {"input_vid_proj": seen["vid"][0], "input_txt_proj": text, "position_embed": encoding.memory.positions}
    dead = _dead_encoder(leaves, args, text.dtype)
    for index, (fused, tokens) in enumerate(zip(seen["fusion"], seen["encoder"], strict=True)):
        again = f"#{index}" if index else ""
        boundaries = torch.cat([own.start_tower(fused, mask), own.end_tower(fused, mask)], -1)
        decoded = model.head(replace(encoding.memory, tokens=tokens.tokens[:, 1:]), boundaries)
        said = {"0": decoded.hidden, "1": torch.stack(decoded.references)}
        hooks |= moments._named(f"transformer.decoder{again}", {**said, "2": boundaries.transpose(0, 1)})
        hooks |= moments._named(f"transformer{again}", {**said, "2": tokens.tokens[:, 1:], "3": tokens.tokens[:, 0]})
        hooks[f"transformer{again}.4"] = boundaries.transpose(0, 1)
        hooks[f"transformer.encoder{again}"] = tokens.tokens.transpose(0, 1)
        words, word_mask = text.roll(-index, 0), inputs.text_mask.roll(-index, 0)
        whole = torch.cat([own.global_token.expand(len(text), 1, -1), fused, words], 1)
        hooks[f"transformer.t2v_encoder{again}"] = whole.transpose(0, 1)
        hooks[f"transformer.txt_encoder{again}"] = _dead(dead, leaves, words, word_mask).transpose(0, 1)
    return _said(model, output, leaves) | moments._named("hook", hooks)


def _dead_encoder(leaves: Mapping[str, Tensor], args: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """The official words' encoder, whose result nothing reads; we do not keep it."""
    prefix = "transformer.txt_encoder."
    sizes = Sizes(1, 1, args["hidden_dim"], args["nheads"], args["dim_feedforward"], args["enc_layers"], dropout=0.0)
    layout = Layout("words", lambda state: True, lambda *_: {}, (Layers("layers", f"{prefix}layers"),))
    dead = encoder(sizes, activation=nn.PReLU).to(dtype).eval()
    own = {name: tensor.detach() for name, tensor in leaves.items() if name.startswith(prefix)}
    dead.load_state_dict(layout.to_ours(own, dead.state_dict().keys()))
    return dead


def _dead(dead: nn.Module, leaves: Mapping[str, Tensor], words: Tensor, mask: Tensor) -> Tensor:
    token, position = (leaves[name].detach().expand(len(words), 1, -1) for name in SLICED_OFF)
    positions = torch.cat([torch.zeros_like(words), position], 1)
    whole = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    return dead(Memory(torch.cat([words, token], 1), whole, positions)).tokens


def costs(golden: Golden, dtype: str, case: str, call: int, sample: int) -> Tensor:
    """The matcher's costs (Q, M) of one sample in float64, from the official predictions and weights."""
    recorded, args = golden.outputs(dtype), golden.args
    layer = f"train_{case}." + (f"aux_outputs.{call - 1}." if call else "")
    spans, logits = (recorded[f"{layer}pred_{what}"][sample].double() for what in ("spans", "logits"))
    found = to_corners(spans).clamp(0, 1)
    true = to_corners(golden.inputs[f"span_labels.{sample}"].double()).clamp(0, 1)
    cost = -args["set_cost_class"] * logits.softmax(-1)[:, :1].expand(-1, len(true))
    return (
        cost
        + args["set_cost_span"] * torch.cdist(found, true, p=1)
        - args["set_cost_giou"] * giou(found[:, None], true[None])
    )


def _accepts(config: Mapping[str, Any]) -> bool:
    return config.get("system") == "bam_detr" and config.get("repo", "") in ("BAM-DETR", "")


moments.TERMS.update(TERMS)
SYSTEMS = (System("bam_detr", _accepts, run, pins=moments.PINS, costs=costs),)
