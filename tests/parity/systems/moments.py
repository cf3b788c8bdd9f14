"""Moment-DETR and QD-DETR, from the official repositories and from Lighthouse.

The official weights become leaves of the graph and pass through the product's converter, so gradients of official
parameters are read off directly, whatever the converter splits, joins or drops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from parity.check import Case, Pairs, Run, System
from parity.material import DTYPES, Golden
from parity.predictions import Answer
from torch import Tensor, nn
from torch.func import functional_call

from momentdetr.detr.boxes import giou, to_corners
from momentdetr.detr.losses import Losses
from momentdetr.detr.types import Assignment, Targets
from momentdetr.retrieval.convert import convert_state
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.types import MomentOutput, MomentTargets, SaliencyTargets, VideoText

TERMS = {
    "l1": "loss_span",
    "giou": "loss_giou",
    "class": "loss_label",
    "saliency": "loss_saliency",
    "align": "loss_contrastive_align",
    # CG-DETR
    "ms_align": "loss_ms_align",
    "distill": "loss_distill",
    "orthogonal": "loss_orthogonal_dummy",
    # TR-DETR
    "video_text": "VTC",
    "clip_text": "CTC",
    # UVCOM
    "similarity": "loss_sim",
    # EaTR
    "event_span": "loss_event_span",
    "event_giou": "loss_event_giou",
}
REPOSITORIES = ("moment_detr", "QD-DETR", "lighthouse", "")  # "": full-size manifests do not say
PINS = ("*",)  # sine positions are float32 in the official models whatever their precision, and everything reads them


def run(golden: Golden, dtype: str, alter: Callable[[MomentRetriever], None] | None = None) -> Run:
    """Evaluate and train on the golden inputs, through the converter; `alter` breaks the model on purpose (tests)."""
    leaves = {name: tensor.to(DTYPES[dtype]).requires_grad_() for name, tensor in golden.state.items()}
    conversion = convert_state(leaves, golden.args)
    model = conversion.model().to(DTYPES[dtype])
    if alter is not None:
        alter(model)
    inputs = inputs_of(golden.inputs, DTYPES[dtype])
    with torch.no_grad():
        outputs = _named("eval", _evaluate(model, inputs, leaves))
        outputs |= _named("eval_b1", _said(model, model.eval()(_first_alone(inputs)), leaves))
    cases = {}
    for name, case in golden.losses(dtype).items():
        step = _Step(model.train())
        weights = {f"model.{key}": value for key, value in conversion.state.items()}
        targets = targets_of(golden.inputs, inputs)
        output, losses = functional_call(step, weights, (inputs, targets, case.get("epoch", 0)), strict=True)
        outputs |= _named(f"train_{name}", _said(model, output, leaves))
        cases[name] = _case(output, losses, targets, leaves)
    return Run(outputs, cases, _answers(model.eval(), inputs))


class _Step(nn.Module):
    """Forward and losses as one call, so that weights can be put in from outside."""

    def __init__(self, model: MomentRetriever) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: VideoText, targets: MomentTargets, epoch: int) -> tuple[MomentOutput, Losses]:
        self.model.at_epoch(epoch)
        output = self.model(inputs)
        return output, self.model.judge(output, targets)


def _answers(model: MomentRetriever, inputs: VideoText) -> list[Answer]:
    said = model.predict(inputs)
    samples = zip(said.spans, said.scores, said.saliency, said.video_mask, strict=True)
    return [Answer(spans, scores, saliency[mask]) for spans, scores, saliency, mask in samples]


def inputs_of(recorded: Mapping[str, Tensor], dtype: torch.dtype) -> VideoText:
    """What the official model was given; audio is one more stream behind the others."""
    video = torch.cat([recorded[name] for name in ("src_vid", "src_aud") if name in recorded], -1)
    return VideoText(
        video=video.to(dtype),
        video_mask=recorded["src_vid_mask"].bool(),
        text=recorded["src_txt"].to(dtype),
        text_mask=recorded["src_txt_mask"].bool(),
    )


def _first_alone(inputs: VideoText) -> VideoText:
    """The first sample without its padding."""
    clips, words = int(inputs.video_mask[0].sum()), int(inputs.text_mask[0].sum())
    return VideoText(
        inputs.video[:1, :clips], inputs.video_mask[:1, :clips], inputs.text[:1, :words], inputs.text_mask[:1, :words]
    )


def targets_of(recorded: Mapping[str, Tensor], inputs: VideoText) -> MomentTargets:
    """What the official criterion was given; spans as clip indices become fractions of the video."""
    batch, dtype = len(inputs.video), inputs.video.dtype
    spans = [recorded.get(f"span_labels.{i}", torch.zeros(0, 2)) for i in range(batch)]
    boxes = [
        edges.to(dtype) if edges.is_floating_point() else _as_fractions(edges, int(mask.sum()), dtype)
        for edges, mask in zip(spans, inputs.video_mask, strict=True)
    ]
    mask = torch.arange(max([1, *map(len, boxes)])) < torch.tensor([len(rows) for rows in boxes])[:, None]
    padded = torch.zeros(*mask.shape, 2, dtype=dtype)
    padded[mask] = torch.cat(boxes)
    saliency = None
    if "saliency_pos_labels" in recorded:
        scores = recorded.get("saliency_all_labels")
        saliency = SaliencyTargets(
            None if scores is None else scores.to(dtype),
            recorded["saliency_pos_labels"],
            recorded["saliency_neg_labels"],
        )
    return MomentTargets(Targets(torch.zeros(mask.shape, dtype=torch.long), padded, mask), saliency)


def _as_fractions(edges: Tensor, num_clips: int, dtype: torch.dtype) -> Tensor:
    """(n, 2) first and last clip -> centre and width."""
    start, end = edges[:, 0].to(dtype), edges[:, 1].to(dtype) + 1
    return torch.stack([(start + end) / 2 / num_clips, (end - start) / num_clips], -1)


def _said(model: MomentRetriever, output: MomentOutput, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official model's dictionary."""
    *earlier, last = output.output.layers
    said = {"pred_logits": last.logits, "pred_spans": last.boxes, "saliency_scores": output.saliency}
    negative = output.encoding.extras.get("negative_saliency")
    if negative is not None:
        said |= {"saliency_scores_neg": negative, "video_mask": output.video_mask.to(output.saliency.dtype)}
    if model.criterion is None or model.criterion.auxiliary:
        for i, layer in enumerate(earlier):
            said |= {f"aux_outputs.{i}.pred_logits": layer.logits, f"aux_outputs.{i}.pred_spans": layer.boxes}
    if model.align is not None:
        said |= _aligned(model, output, leaves)
    return said


def _aligned(model: MomentRetriever, output: MomentOutput, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    assert model.align is not None
    assert output.encoding.text is not None
    queries, words = model.align.project(output.output.hidden, output.encoding.text)
    said = {"proj_queries": queries[-1], "proj_txt_mem": words}
    for i, layer in enumerate(queries[:-1]):
        said |= {f"aux_outputs.{i}.proj_queries": layer, f"aux_outputs.{i}.proj_txt_mem": words}
    # The official code also projects the clips and never uses the result; we do not keep that projection.
    clips = output.encoding.memory.tokens[:, : output.video_mask.shape[1]]
    weight, bias = (leaves[f"contrastive_align_projection_vid.{part}"] for part in ("weight", "bias"))
    return said | {"proj_vid_mem": F.normalize(F.linear(clips, weight, bias), dim=-1)}


def _evaluate(model: MomentRetriever, inputs: VideoText, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official dictionary, negatives included, and what passes between its modules."""
    encoder: Any = model.eval().encoder
    parts = {"vid": encoder.video_projection, "txt": encoder.text_projection, "encoder": encoder.encoder}
    fused = hasattr(encoder, "fusion")
    if fused:
        parts["fusion"] = encoder.fusion[-1]
    with _listening(parts) as seen:
        encoding = encoder(inputs, with_negatives=True) if fused else encoder(inputs)
    seen["encoder"] = [memory.tokens for memory in seen["encoder"]]
    output = MomentOutput(model.head(encoding.memory), encoding, inputs.video_mask)
    hooks = _fused_hooks(model, output, seen) if fused else _side_by_side_hooks(output, seen)
    positions = encoding.memory.positions[:, : inputs.video.shape[1]]
    hooks |= {"input_vid_proj": seen["vid"][0], "input_txt_proj": seen["txt"][0], "position_embed": positions}
    return _said(model, output, leaves) | _named("hook", hooks)


@contextmanager
def _listening(parts: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Any]]]:
    """Collect what each part gives, call by call."""
    seen: dict[str, list[Any]] = defaultdict(list)
    handles = [
        part.register_forward_hook(lambda module, args, result, name=name: seen[name].append(result))
        for name, part in parts.items()
    ]
    yield seen
    for handle in handles:
        handle.remove()


def _side_by_side_hooks(output: MomentOutput, seen: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    """Moment-DETR's: clips and words in one sequence."""
    hidden = output.output.hidden
    return {
        "transformer.0": hidden,
        "transformer.1": output.encoding.memory.tokens,
        "transformer.decoder": hidden.transpose(1, 2),
        "transformer.encoder": seen["encoder"][0].transpose(0, 1),
    }


def _fused_hooks(model: MomentRetriever, output: MomentOutput, seen: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    """QD-DETR's: two passes, with the own and with the neighbour's words; the official code decodes both."""
    hooks: dict[str, Tensor] = {}
    text = seen["txt"][0]
    encoder: Any = model.encoder
    token = encoder.global_token.expand(len(text), 1, -1)
    for index, (fused, tokens) in enumerate(zip(seen["fusion"], seen["encoder"], strict=True)):
        again = f"#{index}" if index else ""
        memory = replace(output.encoding.memory, tokens=tokens[:, 1:])
        decoded = model.head(memory)
        pair = {"0": decoded.hidden, "1": torch.stack(decoded.references)}
        hooks |= _named(f"transformer.decoder{again}", pair) | _named(f"transformer{again}", pair)
        hooks |= _named(f"transformer{again}", {"2": memory.tokens, "3": tokens[:, 0]})
        hooks[f"transformer.encoder{again}"] = tokens.transpose(0, 1)
        whole = torch.cat([token, fused, text.roll(-index, 0)], 1)
        hooks[f"transformer.t2v_encoder{again}"] = whole.transpose(0, 1)
    return hooks


def _case(output: MomentOutput, losses: Losses, targets: MomentTargets, leaves: Mapping[str, Tensor]) -> Case:
    names = [(name, *name.rpartition("_")) for name in losses.terms]
    terms = {
        f"{TERMS[stem]}_{layer}" if stem in TERMS and layer.isdigit() else TERMS[name]: losses.terms[name]
        for name, stem, _, layer in names
    }
    if targets.saliency is None:
        terms["loss_saliency"] = torch.zeros(())  # the official code's way of saying that there is no such term
    layers = {"": output.output.last, **{str(i): layer for i, layer in enumerate(output.output.layers[:-1])}}
    for name, assignment in losses.assignments.items():
        said = layers[name].logits[assignment.sample, assignment.query].argmax(-1)
        terms["class_error" + (f"_{name}" if name else "")] = 100 * (said != 0).double().mean()
    gradients = torch.autograd.grad(losses.total, list(leaves.values()), allow_unused=True)
    batch = len(output.video_mask)
    calls = [_pairs(assignment, batch) for assignment in losses.assignments.values()]
    return Case(
        losses={name: value.detach() for name, value in terms.items()},
        weighted_sum=losses.total.detach(),
        indices={"matcher": calls or None},
        gradients=dict(zip(leaves, gradients, strict=True)),
    )


def costs(golden: Golden, dtype: str, case: str, call: int, sample: int) -> Tensor:
    """The matcher's costs (Q, M) of one sample in float64, from the official predictions and weights."""
    recorded, args = golden.outputs(dtype), golden.args
    layer = f"train_{case}." + (f"aux_outputs.{call - 1}." if call else "")
    spans, logits = (recorded[f"{layer}pred_{what}"][sample].double() for what in ("spans", "logits"))
    targets = golden.inputs[f"span_labels.{sample}"]
    cost = -args["set_cost_class"] * logits.softmax(-1)[:, :1].expand(-1, len(targets))
    if not targets.is_floating_point():
        first, last = spans.unflatten(-1, (2, -1)).softmax(-1).unbind(1)
        return cost - args["set_cost_span"] * (first[:, targets[:, 0]] + last[:, targets[:, 1]])
    cost = cost + args["set_cost_span"] * torch.cdist(spans, targets.double(), p=1)
    return cost - args["set_cost_giou"] * giou(to_corners(spans)[:, None], to_corners(targets.double())[None])


def _pairs(assignment: Assignment, batch: int) -> list[Pairs]:
    members = [assignment.sample == i for i in range(batch)]
    return [[assignment.query[m].tolist(), assignment.target[m].tolist()] for m in members]


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.detach() for name, tensor in tensors.items()}


def _accepts(system: str) -> Any:
    return lambda config: config.get("system") == system and config.get("repo", "") in REPOSITORIES


SYSTEMS = tuple(System(name, _accepts(name), run, pins=PINS, costs=costs) for name in ("moment_detr", "qd_detr"))
