"""The image detectors, from the official repositories.

The official weights become leaves of the graph and pass through the product's converter, so gradients of official
parameters are read off directly. Names that official code shares are one leaf.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from parity.check import Case, Pairs, Run, System
from parity.comparison import Reason
from parity.material import DTYPES, Golden
from parity.systems.image_hooks import Watch, hooks_of
from parity.systems.ranking import order_of
from parity.systems.tiny import tiny_backbone
from torch import Tensor, nn
from torch.func import functional_call

from detection.convert import Conversion, convert_state
from detection.model import ImageDetector
from detection.presets import build
from momentdetr.detr.denoising import Draws, Group
from momentdetr.detr.losses import Losses
from momentdetr.detr.monitor import cardinality_error, class_error
from momentdetr.detr.types import Assignment, Output, Predictions, Queries, Targets

NAMES = {
    "detr": "detr",
    "conditional_detr": "conditional_detr",
    "deformable_detr": "deformable_detr",
    "dab_detr": "dab_detr",
    "dab_deformable_detr": "dab_deformable_detr",
    "dn_dab_detr": "dn_detr",
    "dn_dab_deformable_detr": "dn_deformable_detr",
    "dn_dab_dino_deformable_detr": "dn_dino",
    "dino": "dino",
}
TERMS = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}
PERMITTED = {"train_*.rng.*": Reason.DRAW, "pred_masks*": Reason.MASKS}
PINS = ("*",)  # sine positions, reference points and IoU of empty boxes are float32 whatever the model's precision


def run(golden: Golden, dtype: str) -> Run:
    """Evaluate and train on the golden inputs, through the converter."""
    leaves = leaves_of(golden, DTYPES[dtype])
    backbone = tiny_backbone(golden.config, _num_maps(golden)) if "tiny_backbone" in golden.config else None
    conversion = convert_state(leaves, golden.args, backbone=backbone)
    model = build(conversion.config, backbone).to(DTYPES[dtype])
    model.load_state_dict({name: value.detach() for name, value in conversion.state.items()})
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not golden.inputs:
        return Run({}, {}, parameters=parameters)  # a manifest: it must load strictly, and be all of the model
    images, mask = golden.inputs["images"].to(DTYPES[dtype]), ~golden.inputs["mask"].bool()
    with torch.no_grad():
        outputs = _evaluate(model.eval(), images, mask, golden, conversion)
    cases = {}
    for name in golden.losses(dtype):
        targets = targets_of(golden.inputs, name, DTYPES[dtype])
        draws = draws_of(golden.outputs("float32"), name, DTYPES[dtype])
        cases[name], said = _train(model.train(), conversion, leaves, (images, mask, targets, draws))
        outputs |= {f"train_{name}.{key}": value.detach() for key, value in said.items()}
        logged = golden.losses(dtype)[name]["loss_dict"].keys()
        keep = {key: v for key, v in cases[name].losses.items() if not _is_logged(key) or key in logged}
        cases[name] = Case(keep, cases[name].weighted_sum, cases[name].indices, cases[name].gradients)
    return Run(outputs, cases, parameters=parameters)


def _num_maps(golden: Golden) -> int:
    """How many of the backbone's maps the detector projects as they are."""
    projections = [golden.state[name] for name in golden.state if re.fullmatch(r"input_proj\.(\d+\.0\.)?weight", name)]
    return sum(weight.shape[-1] == 1 for weight in projections)


def leaves_of(golden: Golden, dtype: torch.dtype) -> dict[str, Tensor]:
    """Official tensors to differentiate by; one for all the names of a shared one."""
    first = {name: group[0] for group in golden.config.get("tied_parameters") or [] for name in group}
    leaves: dict[str, Tensor] = {}
    for name, tensor in golden.state.items():
        source = first.get(name, name)
        if source in leaves:
            leaves[name] = leaves[source]
        elif tensor.is_floating_point():
            leaves[name] = leaves[source] = golden.state[source].to(dtype).requires_grad_()
        else:
            leaves[name] = tensor
    return leaves


def targets_of(recorded: Mapping[str, Tensor], case: str, dtype: torch.dtype) -> Targets:
    """What the official criterion was given, padded."""
    batch = len(recorded["images"])
    labels = [recorded[f"targets_{case}.{i}.labels"].long() for i in range(batch)]
    boxes = [recorded[f"targets_{case}.{i}.boxes"].to(dtype) for i in range(batch)]
    mask = torch.arange(max([1, *map(len, labels)])) < torch.tensor([len(rows) for rows in labels])[:, None]
    all_labels, all_boxes = torch.zeros(mask.shape, dtype=torch.long), torch.zeros(*mask.shape, 4, dtype=dtype)
    all_labels[mask], all_boxes[mask] = torch.cat(labels), torch.cat(boxes)
    return Targets(all_labels, all_boxes, mask)


def draws_of(recorded: Mapping[str, Tensor], case: str, dtype: torch.dtype) -> Draws | None:
    """The recorded noise; the float64 run was given the float32 run's."""
    drawn = [recorded[name] for name in sorted(recorded) if name.startswith(f"train_{case}.rng.")]
    if not drawn:
        return None
    # Told by type and shape, because nothing is drawn for noise that is switched off.
    labels = next((found for found in drawn if not found.is_floating_point()), torch.zeros(0, dtype=torch.long))
    flip = next((found for found in drawn if found.is_floating_point() and found.dim() == 1), None)
    *signs, boxes = [found for found in drawn if found.dim() == 2] or [torch.zeros(len(drawn[0]), 4)]
    flip = torch.ones(len(boxes)) if flip is None else flip
    return Draws(flip, labels.long(), boxes.to(dtype), (signs[0] * 2 - 1).to(dtype) if signs else None)


def _evaluate(
    model: ImageDetector, images: Tensor, mask: Tensor, golden: Golden, conversion: Conversion
) -> dict[str, Tensor]:
    chosen = order_of(model, images, mask, golden.first)
    with Watch(model, chosen) as seen:
        output = model(images, mask, proposals=chosen)
    said = {f"eval.{name}": value for name, value in _said(output, conversion, model).items()}
    said |= {f"eval.{name}": value for name, value in _raw_proposals(seen).items()}
    said |= {f"eval.hook.{name}": value for name, value in hooks_of(conversion.system, model, output, seen).items()}
    sizes = torch.tensor(golden.config.get("target_sizes") or [[1, 1]] * len(images))
    for index, found in enumerate(model.predict(images, mask, sizes)):
        named = {"scores": found.scores, "labels": found.labels, "boxes": found.boxes}
        said |= {f"eval.post.{index}.{name}": value for name, value in named.items()}
    return said


def _said(output: Output, conversion: Conversion, model: ImageDetector) -> dict[str, Tensor]:
    """The official model's dictionary."""
    *earlier, last = output.layers
    said = _named("", last)
    if model.detector.criterion.auxiliary:
        for index, layer in enumerate(earlier):
            said |= _named(f"aux_outputs.{index}.", layer)
    for supervision in output.supervisions:
        if supervision.name == "proposals":
            said |= _named(_proposals(conversion) + "_outputs.", supervision.predictions)
    return said


def _named(prefix: str, said: Predictions) -> dict[str, Tensor]:
    return {f"{prefix}pred_logits": said.logits, f"{prefix}pred_boxes": said.boxes}


def _raw_proposals(seen: Watch) -> dict[str, Tensor]:
    """What DINO's proposals start from, which it also gives out."""
    if seen.proposals is None:
        return {}
    said = Predictions(seen.take(seen.proposals.logits), seen.take(seen.raw_anchors).sigmoid())
    return _named("interm_outputs_for_matching_pre.", said)


def _proposals(conversion: Conversion) -> str:
    return "interm" if conversion.system == "dino" else "enc"


class _Step(nn.Module):
    """Forward and losses as one call, so that weights can be put in from outside."""

    def __init__(self, model: ImageDetector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, mask: Tensor, targets: Targets, draws: Draws | None) -> tuple[Output, Losses]:
        output = self.model(images, mask, targets, draws=draws)
        return output, self.model.detector.criterion(output, targets)


def _train(
    model: ImageDetector, conversion: Conversion, leaves: Mapping[str, Tensor], inputs: tuple[Any, ...]
) -> tuple[Case, dict[str, Tensor]]:
    step, targets = _Step(model), inputs[2]
    weights = dict(step.named_buffers()) | {f"model.{key}": value for key, value in conversion.state.items()}
    with Watch(model) as seen:
        output, losses = functional_call(step, weights, inputs, tie_weights=False, strict=True)
    said = _said(output, conversion, model)
    if conversion.system == "dino":
        said |= _raw_proposals(seen)
    if seen.group is not None:
        said |= dict(_denoised(conversion, seen, seen.group, targets, model))
    terms = dict(_terms(conversion, output, losses, targets))
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    gradients = torch.autograd.grad(losses.total, list(wanted.values()), allow_unused=True)
    batch = len(targets.mask)
    called = [pairs for name, pairs in losses.assignments.items() if not name.startswith("denoising")]
    case = Case(
        losses={name: value.detach() for name, value in terms.items()},
        weighted_sum=losses.total.detach(),
        indices={"matcher": [_pairs(assignment, batch) for assignment in called]},
        gradients=dict(zip(wanted, gradients, strict=True)),
    )
    return case, said


def _pairs(assignment: Assignment, batch: int) -> list[Pairs]:
    members = [assignment.sample == i for i in range(batch)]
    return [[assignment.query[m].tolist(), assignment.target[m].tolist()] for m in members]


def _official(term: str, name: str, conversion: Conversion) -> str:
    """A term's official name: of the last layer "loss_ce", of another "loss_ce_0", of groups "tgt_loss_ce_0"..."""
    kind, _, layer = name.partition("_") if name.startswith("denoising") else ("", "", name)
    ending = f"_{layer}" if layer else ""
    if kind:
        return f"{term}_dn{ending}" if conversion.system == "dino" else f"tgt_{term}{ending}"
    return f"{term}_{_proposals(conversion)}" if name == "proposals" else f"{term}{ending}"


def _terms(conversion: Conversion, output: Output, losses: Losses, targets: Targets) -> Iterator[tuple[str, Tensor]]:
    """Every loss term by its official name, and what official code logs beside them."""
    supervised: dict[str, Predictions] = {"": output.last}
    supervised |= {str(index): layer for index, layer in enumerate(output.layers[:-1])}
    others = {supervision.name: supervision for supervision in output.supervisions}
    supervised |= {name: supervision.predictions for name, supervision in others.items()}
    for name, assignment in losses.assignments.items():
        suffix = f"_{name}" if name else ""
        for term, official in TERMS.items():
            yield _official(official, name, conversion), losses.terms[term + suffix]
        said, other = supervised[name], others.get(name)
        true = targets if other is None or other.targets is None else other.targets
        if other is not None and other.class_agnostic:
            true = Targets(torch.zeros_like(true.labels), true.boxes, true.mask)
        yield _official("class_error", name, conversion), _class_error(said, true, assignment, other, output)
        if len(said.logits) == len(targets.mask):
            yield _official("cardinality_error", name, conversion), cardinality_error(said, targets)
        rows = said.boxes[assignment.sample, assignment.query] - true.boxes[assignment.sample, assignment.target]
        share = rows.abs() / (losses.terms["l1" + suffix].new_ones(()) * max(1, int(targets.mask.sum())))
        repeats = 1 if other is None or other.count is None else other.count / max(1, int(targets.mask.sum()))
        centers, sizes = (half.sum() / repeats for half in share.chunk(2, -1))
        yield _official("loss_xy", name, conversion), centers
        yield _official("loss_hw", name, conversion), sizes


def _class_error(said: Predictions, true: Targets, assignment: Assignment, other: Any, output: Output) -> Tensor:
    """Per cent of wrong classes; of paired groups the copies count, whose class no logit stands for."""
    if other is None or other.only is None:
        return class_error(said, true, assignment)
    named = next(s.assignment for s in output.supervisions if s.name == other.name and s.only == ("class",))
    right = (said.logits[0, named.query].argmax(-1) == true.labels[0, named.target]).double()
    total = said.logits.shape[1]
    return 100 - 100 * right.sum() / total if total else torch.tensor(100.0)


def _is_logged(name: str) -> bool:
    return any(what in name for what in ("class_error", "cardinality_error", "loss_xy", "loss_hw"))


def _denoised(
    conversion: Conversion, seen: Watch, group: Group, targets: Targets, model: ImageDetector
) -> Iterator[tuple[str, Tensor]]:
    """The official code's record of its groups: queries, mask, and where each noised target went."""
    rows, queries, layers = group.rows, seen.queries, seen.layers
    assert queries is not None
    if queries.mask is not None:
        yield "dnq.attn_mask", ~queries.mask
    if conversion.system == "dino":
        yield "dnq.input_query_label", group.queries.content
        yield "dnq.input_query_bbox", group.queries.anchors  # type: ignore[misc]
        yield "dn_meta.pad_size", torch.tensor(rows.total)
        yield "dn_meta.num_dn_group", torch.tensor(rows.groups)
        names = ["output_known_lbs_bboxes", *(f"output_known_lbs_bboxes.aux_outputs.{i}" for i in range(len(layers)))]
        for name, layer in zip(names, [layers[-1], *layers[:-1]], strict=False):
            yield f"dn_meta.{name}.pred_logits", layer.logits[:, : rows.total]
            yield f"dn_meta.{name}.pred_boxes", layer.boxes[:, : rows.total]
        return
    first = conversion.system == "dn_detr"  # its queries come before the batch
    proposed = conversion.system == "dn_dino"  # its matching queries are made later
    parts = [group.queries.content, group.queries.anchors] if proposed else [queries.content, queries.anchors]
    if first:  # and patterns are added to the matching ones' content later
        parts[0] = _without_patterns(model, group, queries)
    for name, part in zip(("label", "bbox"), parts, strict=True):
        assert part is not None
        yield f"dnq.input_query_{name}", part.transpose(0, 1) if first else part
    once = len(rows.sample) // rows.groups
    yield "dn.batch_idx", rows.sample[:once]
    yield "dn.known_indice", torch.arange(once).repeat(rows.groups)
    yield "dn.map_known_indice", rows.slot
    yield "dn.pad_size", torch.tensor(rows.total)
    yield "dn.scalar", torch.tensor(rows.groups)
    yield "dn.contrastive", torch.tensor(proposed)
    for sample in range(len(targets.mask)):
        yield f"dn.know_idx.{sample}", torch.arange(int((rows.sample[:once] == sample).sum()))[:, None]
    labels = targets.labels[rows.sample, rows.target]
    yield "dn.known_lbs_bboxes.0", labels.masked_fill(~rows.named, conversion.config["num_classes"])
    yield "dn.known_lbs_bboxes.1", targets.boxes[rows.sample, rows.target]
    yield "dn.output_known_lbs_bboxes.0", torch.stack([layer.logits[:, : rows.total] for layer in layers])
    yield "dn.output_known_lbs_bboxes.1", torch.stack([layer.boxes[:, : rows.total] for layer in layers])


def _without_patterns(model: ImageDetector, group: Group, queries: Queries) -> Tensor:
    empty = Queries(torch.zeros_like(queries.content[:, group.rows.total :]))
    marked = model.detector.detr.denoising.matching_content(empty)  # type: ignore[union-attr, operator]
    return torch.cat([group.queries.content, marked.content], 1)


def _accepts(system: str) -> Any:
    return lambda config: config.get("system") == system and "src_vid_dim" not in config


SYSTEMS = tuple(System(name, _accepts(name), run, pins=PINS, permitted=PERMITTED) for name in NAMES)
