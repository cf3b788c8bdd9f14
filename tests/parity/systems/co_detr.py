"""Co-Deformable-DETR and Co-DINO, from the official repository (float32 only)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from parity.check import Case, Run, System
from parity.comparison import Reason
from parity.material import DTYPES, Golden
from parity.systems.tiny import TinyResNet
from parity.tolerance import Stated
from torch import Tensor, nn
from torch.func import functional_call

from detection.backbone import Backbone
from detection.convert import convert_state
from detection.model import ImageDetector
from detection.presets import build
from momentdetr.detr import dense_head, region_proposals, roi_head
from momentdetr.detr.assignment_dense import BACKGROUND, IGNORED, Candidates
from momentdetr.detr.boxes import iou, to_center_size
from momentdetr.detr.denoising import Draws
from momentdetr.detr.hybrid import Lent
from momentdetr.detr.losses import Losses, matched_targets
from momentdetr.detr.types import Assignment, Output, Predictions, Supervision, Targets

HEADS = ("rcnn", "atss")
GROUPS = 32  # of all the official norms
MISSING = -100000000.0  # what the official ATSS says of priors that answer for nothing


def run(golden: Golden, dtype: str, alter: Callable[[ImageDetector], None] | None = None) -> Run:
    """Evaluate and train on the golden inputs, through the converter; `alter` breaks the model on purpose (tests)."""
    leaves = {
        name: tensor.to(DTYPES[dtype]).requires_grad_("running_" not in name) if tensor.is_floating_point() else tensor
        for name, tensor in golden.state.items()
    }
    options = golden.config.get("resolved_model_config") or golden.config["model_config"]
    width = leaves["backbone.conv1.weight"].shape[0]
    body = TinyResNet([3, 4, 6, 3], width, folded=False)
    maps = len(options["backbone"]["out_indices"])
    backbone = Backbone(body, body.channels[-maps:])
    conversion = convert_state(leaves, options, backbone=backbone)
    model = build(conversion.config, backbone).to(DTYPES[dtype])
    if alter is not None:
        alter(model)
    step = _Step(model)
    weights = {f"model.{name}": value for name, value in conversion.state.items()}
    if not golden.inputs:
        # A manifest: it must load strictly, and be all of the model.
        counted = ("running_", "num_batches_tracked")
        learned = [tensor for name, tensor in conversion.state.items() if not any(part in name for part in counted)]
        return Run({}, {}, parameters=sum(tensor.numel() for tensor in learned))
    images, mask = golden.inputs["images"].to(DTYPES[dtype]), ~golden.inputs["mask"]
    model.load_state_dict({name: value.detach() for name, value in conversion.state.items()})
    outputs = _named("eval", _evaluate(model.eval(), images, mask))
    cases = {}
    for name in golden.losses(dtype):
        targets = targets_of(golden.inputs, name, mask)
        draws, shuffle = _draws(golden.outputs(dtype), name)
        with _recording() as calls, _listening(model) as seen:
            output, losses = functional_call(
                step.train(), weights, (images, mask, targets, draws, shuffle), strict=True
            )
        found = _trained(model, output, losses, seen, calls, targets, sizes_of(mask))
        outputs |= _named(f"train_{name}", found)
        cases[name] = _case(model, output, losses, leaves)
    return Run(outputs, cases)


class _Step(nn.Module):
    """Forward and losses as one call, so that weights can be put in from outside."""

    def __init__(self, model: ImageDetector) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Tensor, mask: Tensor, targets: Targets, draws: Draws | None, shuffle: Callable[[int], Tensor]
    ) -> tuple[Output, Losses]:
        output = self.model(images, mask, targets, draws=draws, shuffle=shuffle)
        return output, self.model.detector.criterion(output, targets)


def rounding(golden: Golden) -> dict[str, float]:
    """The official error where a level of one cell is normed in groups of one channel.

    Exactly, that gives the norm's bias whatever the level holds; in float32 it gives the rounding of numbers that the
    norm has multiplied by the root of 1 / eps first.
    """
    bias = golden.state["query_head.downsample.1.bias"]
    return {
        name: (value[..., 0, 0] - bias).abs().max().item()
        for name, value in golden.outputs("float32").items()
        if "encoder_pyramid" in name and value.shape[1:] == (GROUPS, 1, 1)
    }


def sizes_of(mask: Tensor) -> Tensor:
    """(B, 2) height and width of what is valid."""
    return torch.stack([mask.any(2).sum(1), mask.any(1).sum(1)], 1)


def targets_of(recorded: Mapping[str, Tensor], case: str, mask: Tensor) -> Targets:
    """Boxes in pixel corners, per image, to fractions of the valid part."""
    sizes = sizes_of(mask).flip(1).repeat(1, 2)
    rows = [
        (recorded[f"targets_{case}.{i}.labels"], to_center_size(recorded[f"targets_{case}.{i}.bboxes"] / size))
        for i, size in enumerate(sizes)
    ]
    most = max(len(labels) for labels, _ in rows)
    labels = torch.stack([nn.functional.pad(labels, (0, most - len(labels))) for labels, _ in rows])
    boxes = torch.stack([nn.functional.pad(boxes, (0, 0, 0, most - len(boxes))) for _, boxes in rows])
    return Targets(labels, boxes, torch.arange(most) < torch.tensor([len(labels) for labels, _ in rows])[:, None])


def _draws(recorded: Mapping[str, Tensor], case: str) -> tuple[Draws | None, Callable[[int], Tensor]]:
    """Recorded noise of denoising groups, and recorded permutations one after another."""
    tape = {name: recorded[name] for name in sorted(recorded) if name.startswith(f"train_{case}.rng.")}
    permutations = iter([tensor for name, tensor in tape.items() if name.endswith("randperm")])

    def shuffle(count: int) -> Tensor:
        permutation = next(permutations)
        assert len(permutation) == count, f"{len(permutation)} were permuted, not {count}"
        return permutation

    if not any(name.endswith("rand_like") for name in tape):
        return None, shuffle
    flip, labels, signs, boxes = list(tape.values())[:4]
    return Draws(flip, labels, boxes, signs * 2 - 1), shuffle


@contextmanager
def _listening(model: ImageDetector) -> Iterator[dict[str, list[Any]]]:
    """What parts give, call by call."""
    hybrid = model.detector.detr.hybrid
    assert hybrid is not None
    parts: dict[str, Any] = {"regions": hybrid.heads[0].regions, "decoder": model.detector.detr.decoder}
    parts |= {f"head{i}": head for i, head in enumerate(hybrid.heads)}
    parts |= {f"lent{i}": lending for i, lending in enumerate(hybrid.lending)}
    seen: dict[str, list[Any]] = defaultdict(list)
    handles = [
        part.register_forward_hook(lambda module, args, result, name=name: seen[name].append(result))
        for name, part in parts.items()
    ]
    yield seen
    for handle in handles:
        handle.remove()


@contextmanager
def _recording() -> Iterator[list[tuple[str, Tensor, Tensor, Tensor]]]:
    """Every call of an assigner: name, priors, targets, index."""
    calls: list[tuple[str, Tensor, Tensor, Tensor]] = []

    def recorded(name: str, assigner: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(priors: Tensor, *args: Any, **options: Any) -> Tensor:
            index = assigner(priors, *args, **options)
            calls.append((name, priors, args[-1], index))
            return index

        return call

    with (
        mock.patch.object(region_proposals, "max_iou", recorded("rpn.max_iou", region_proposals.max_iou)),
        mock.patch.object(dense_head, "atss", recorded("atss", dense_head.atss)),
        mock.patch.object(roi_head, "max_iou", recorded("rcnn.max_iou", roi_head.max_iou)),
    ):
        yield calls


@torch.no_grad()
def _evaluate(model: ImageDetector, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Neck, encoder pyramid, predictions of every layer, proposals, and final answers."""
    detector = model.detector
    levels = detector.neck.levels(model.backbone(images))
    memory = detector.detr.encoder(detector.neck.line_up(levels, mask))
    pyramid = detector.detr.hybrid.pyramid(memory)
    output = model(images, mask)
    said = {f"neck.{i}": level for i, level in enumerate(levels)}
    said |= {f"query_head.encoder_pyramid.{i}": level for i, level in enumerate(pyramid.levels)}
    said["query_head.all_cls_scores"], said["query_head.all_bbox_preds"] = _stacked(output.layers)
    proposed = output.supervisions[0].predictions
    names = ("enc_outputs_class", "enc_outputs_coord") if _of_all(model) else ("topk_score", "topk_anchor")
    said |= {f"query_head.{name}": value for name, value in zip(names, (proposed.logits, proposed.boxes), strict=True)}
    for i, found in enumerate(model.predict(images, mask, sizes_of(mask))):
        said |= {f"det.{i}.labels": found.labels, f"det.{i}.bboxes": torch.cat([found.boxes, found.scores[:, None]], 1)}
    return said


def _of_all(model: ImageDetector) -> bool:
    """Co-Deformable-DETR judges all proposals, Co-DINO the chosen ones."""
    return model.detector.detr.denoising is None


def _stacked(layers: Sequence[Predictions]) -> tuple[Tensor, Tensor]:
    return torch.stack([said.logits for said in layers]), torch.stack([said.boxes for said in layers])


def _trained(
    model: ImageDetector,
    output: Output,
    losses: Losses,
    seen: Mapping[str, list[Any]],
    calls: Sequence[tuple[str, Tensor, Tensor, Tensor]],
    targets: Targets,
    sizes: Tensor,
) -> dict[str, Tensor]:
    """Everything that is recorded of a training step."""
    classes = model.detector.detr.decoder.heads[0].classes.out_features
    said = _matchings(model, output, losses, targets) | _assigned(calls, targets)
    for i, proposals in enumerate(seen["regions"][0][1]):
        said[f"rpn.proposals.{i}"] = torch.cat([proposals.corners, proposals.scores[:, None]], 1)
        said[f"assign.{10 + i}.rcnn.max_iou.boxes"] = said[f"rpn.proposals.{i}"]
    extents = sizes.flip(1).to(targets.boxes.dtype)
    for i in range(len(HEADS)):
        candidates: Candidates = seen[f"head{i}"][0][1]
        lent: Lent = seen[f"lent{i}"][0]
        said |= _named(f"head{i}", _borrowed(lent, seen["decoder"][1 + i], targets, classes))
        said |= _named(f"head{i}.pos_coords", _offered(candidates, targets, extents, classes, pooled=i == 0))
        said[f"head{i}.aux_feats"] = candidates.features[torch.arange(len(lent.rows))[:, None], lent.rows]
    return said


def _matchings(model: ImageDetector, output: Output, losses: Losses, targets: Targets) -> dict[str, Tensor]:
    """The Hungarian calls: the encoder's come last in Co-Deformable-DETR, first in Co-DINO."""
    layers = [*((str(i), said) for i, said in enumerate(output.layers[:-1])), ("", output.last)]
    proposals = [("proposals", output.supervisions[0].predictions)]
    said = {}
    order = layers + proposals if _of_all(model) else proposals + layers
    flat = [(name, predictions, i) for name, predictions in order for i in range(len(targets.labels))]
    for call, (name, predictions, i) in enumerate(flat):
        assignment = losses.assignments[name]
        mine = assignment.sample == i
        index = torch.zeros(predictions.logits.shape[1], dtype=torch.long)
        index[assignment.query[mine]] = assignment.target[mine] + 1
        true = torch.zeros_like(targets.labels[i]) if name == "proposals" and _of_all(model) else targets.labels[i]
        labels = torch.where(index > 0, true[(index - 1).clamp(min=0)] if len(true) else index, -1)
        who = f"assign.{call:02d}.query_head.hungarian"
        said |= {f"{who}.gt_inds": index, f"{who}.labels": labels, f"{who}.boxes": predictions.boxes[i]}
    return said


def _assigned(calls: Sequence[tuple[str, Tensor, Tensor, Tensor]], targets: Targets) -> dict[str, Tensor]:
    """The dense assigners' calls, numbered behind the Hungarian ones."""
    said = {}
    for number, (name, priors, true, index) in enumerate(calls):
        who, sample = f"assign.{8 + number:02d}.{name}", number % len(targets.labels)
        said[f"{who}.gt_inds"] = torch.where(index == IGNORED, -1, (index + 1).clamp(min=0))
        overlaps = iou(priors[:, None], true[None])[0] if len(true) else torch.zeros(len(priors), 1)
        if name == "atss":
            own = overlaps.gather(1, index.clamp(min=0)[:, None])[:, 0]
            said[f"{who}.max_overlaps"] = torch.where(index >= 0, own, MISSING if len(true) else 0.0)
        else:
            said[f"{who}.max_overlaps"] = overlaps.max(1).values
        said[f"{who}.boxes"] = priors
        labels = targets.labels[sample][targets.mask[sample]]
        said[f"{who}.labels"] = torch.where(index >= 0, labels[index.clamp(min=0)] if len(labels) else index, -1)
    return said


def _borrowed(lent: Lent, output: Output, targets: Targets, classes: int) -> dict[str, Tensor]:
    """One head's positive queries and what the decoder made of them."""
    references = lent.queries.references
    assert references is not None
    labels = torch.full(references.shape[:2], classes)
    true, weights = torch.zeros_like(references), torch.zeros_like(references)
    rows = lent.assignment.sample, lent.assignment.query
    labels[rows] = matched_targets(targets.labels, lent.assignment)
    true[rows], weights[rows] = matched_targets(targets.boxes, lent.assignment), torch.ones(())
    logits, boxes = _stacked(output.layers)
    return {
        "aux_coords": references,
        "aux_labels": labels,
        "aux_targets": true,
        "aux_bbox_weights": weights,
        "aux_label_weights": torch.ones_like(labels, dtype=references.dtype),
        "aux_cls_scores": logits,
        "aux_bbox_preds": boxes,
    }


def _offered(
    candidates: Candidates, targets: Targets, extents: Tensor, classes: int, *, pooled: bool
) -> dict[str, Tensor]:
    """What a head offers: boxes, labels and true boxes in pixels, and what it saw."""
    said = {}
    for i, (corners, target) in enumerate(zip(candidates.corners, candidates.target, strict=True)):
        held = target > BACKGROUND
        labels, true = torch.full_like(target, classes), torch.zeros_like(corners)
        labels[held] = targets.labels[i, target[held]]
        centers, lengths = targets.boxes[i, target[held]].chunk(2, -1)
        true[held] = torch.cat([centers - lengths / 2, centers + lengths / 2], -1) * extents[i].repeat(2)
        said |= {f"coords.{i}": corners, f"labels.{i}": labels, f"targets.{i}": true}
        if pooled:
            said[f"feats.{i}"] = candidates.features[i]
    return said


TERMS = {"class": "loss_cls", "l1": "loss_bbox", "giou": "loss_iou"}


def _official_name(term: str) -> str:
    """Ours: term, supervision and layer; theirs: layer, supervision and term in one word."""
    kind, _, where = term.partition("_")
    if where == "regions":
        return {"class": "loss_rpn_cls", "l1": "loss_rpn_bbox"}[kind]
    if where in HEADS:
        return {"class": "loss_cls", "giou": "loss_bbox", "centerness": "loss_centerness"}[kind] + str(
            HEADS.index(where)
        )
    if where == "proposals":
        return f"enc_{TERMS[kind]}"
    found = re.fullmatch(r"(?:queries_of_(\w+?)|(denoising))?_?(\d*)", where)
    assert found is not None, term
    layer = f"d{found[3]}." if found[3] else ""
    if found[2]:
        return f"{layer}dn_{TERMS[kind]}"
    return f"{layer}{TERMS[kind]}" + (f"_aux{HEADS.index(found[1])}" if found[1] else "")


def _case(model: ImageDetector, output: Output, losses: Losses, leaves: Mapping[str, Tensor]) -> Case:
    """Official terms are weighted already."""
    criterion = model.detector.criterion
    terms: dict[str, Tensor] = {}
    for supervision in criterion.supervisions(output):
        own = {name: (criterion.weights[name], term) for name, term in criterion.terms.items()}
        for name, (weight, _) in (own if supervision.terms is None else supervision.terms).items():
            full = name + (f"_{supervision.name}" if supervision.name else "")
            terms[_official_name(full)] = losses.terms[full].detach() * weight * supervision.weight
        if supervision.name == "rcnn":
            terms["acc0"] = _accuracy(supervision)
    given = {name: tensor for name, tensor in leaves.items() if tensor.requires_grad}
    gradients = torch.autograd.grad(losses.total, list(given.values()), allow_unused=True)
    return Case(terms, losses.total.detach(), {}, dict(zip(given, gradients, strict=True)))


def _accuracy(supervision: Supervision) -> Tensor:
    """How often the region head's best class is right, in per cent."""
    logits, assignment = supervision.predictions.logits, supervision.assignment
    assert isinstance(assignment, Assignment)
    assert supervision.targets is not None
    true = torch.full(logits.shape[:2], logits.shape[-1] - 1)
    true[assignment.sample, assignment.query] = matched_targets(supervision.targets.labels, assignment)
    return 100 * (logits.argmax(-1) == true).double().mean()


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.detach() for name, tensor in tensors.items()}


SYSTEMS = (
    System(
        "co_detr",
        lambda config: config.get("system") == "codetr",
        run,
        permitted={"train_*.rng.*": Reason.DRAW},
        stated=Stated(absolute=1e-5, relative=1e-4, gradient=1e-3),
        rounding=rounding,
    ),
)
