"""Single operations of the official code bases, against the core's. A later system adds a line to `FAMILIES`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from parity.comparison import Row
from parity.tape import Tape
from safetensors.torch import load_file
from torch import Tensor

from detection.batch import pad_images
from momentdetr.detr.assignment import HungarianMatcher, focal_class_cost, giou_cost, l1_cost, softmax_class_cost
from momentdetr.detr.attention import attend
from momentdetr.detr.boxes import giou, inverse_sigmoid, iou, to_center_size, to_corners, volume
from momentdetr.detr.deformable import DeformableAttention, attend_points
from momentdetr.detr.losses import focal
from momentdetr.detr.masks import boxes_of_masks, dice_loss
from momentdetr.detr.monitor import class_error
from momentdetr.detr.neck import cell_centers, valid_ratios
from momentdetr.detr.positions import LearnedPositions, box_features, grid_positions, sine_features
from momentdetr.detr.proposals import token_anchors
from momentdetr.detr.types import Assignment, Memory, Predictions, Targets
from momentdetr.retrieval.boundaries import boundary_cost

INVERSE_SIGMOID_EPS = {
    "ConditionalDETR": 1e-5,
    "Deformable-DETR": 1e-5,
    "DAB-DETR": 1e-3,
    "DN-DETR": 1e-3,
    "DINO": 1e-3,
}
BOX_EPS = {"DAB-DETR": 1e-6, "DN-DETR": 1e-6, "DINO": 1e-6}


def families(path: Path) -> list[str]:
    """The families of operations in one pair, in order of first appearance."""
    facts = json.loads(path.read_text())
    names = [*load_file(path.with_suffix(".safetensors")), *(n for n in facts if n not in ("repo", "commit", "shims"))]
    return list(dict.fromkeys(_family(name) for name in names))


def check(path: Path, family: str) -> list[Row] | None:
    """A row for each recorded result of a family; None: nothing here computes it yet."""
    if family not in FAMILIES:
        return None
    tape = Tape(path, lambda name: _family(name) == family)
    FAMILIES[family](tape)
    return tape.rows()


def _family(name: str) -> str:
    if name.startswith("pos.learned"):
        return "pos_learned"
    return "masks_to_boxes" if name == "masks" else name.split(".")[0]


def _box(tape: Tape) -> None:
    first, second = tape["box.a_cxcywh"], tape["box.b_cxcywh"]
    tape.compare("box.a_xyxy", to_corners(first))
    tape.compare("box.xyxy_to_cxcywh", to_center_size(tape["box.a_xyxy"]))
    pairs = to_corners(first)[:, None], to_corners(second)[None]
    eps = BOX_EPS.get(_repo(tape), 0.0)
    overlap, union = iou(*pairs, eps)
    tape.compare("box.iou", overlap)
    tape.compare("box.union", union)
    tape.compare("box.giou", giou(*pairs, eps))


def _span(tape: Tape) -> None:
    # BAM-DETR cuts spans off at the ends of the video when it makes corners of them.
    cut = (lambda corners: corners.clamp(0, 1)) if tape.facts["repo"] == "BAM-DETR" else (lambda corners: corners)
    for letter in "ab":
        tape.compare(f"span.{letter}_xx", cut(to_corners(tape[f"span.{letter}_cxw"])))
    first, second = tape["span.a_xx"], tape["span.b_xx"]
    tape.compare("span.back", to_center_size(first))
    overlap, union = iou(first[:, None], second[None])
    tape.compare("span.iou", overlap)
    tape.compare("span.union", union)
    tape.compare("span.giou", giou(first[:, None], second[None]))
    tape.compare("span.iop", overlap * union / volume(second)[None])


def _inverse_sigmoid(tape: Tape) -> None:
    tape.compare("inverse_sigmoid.y", inverse_sigmoid(tape["inverse_sigmoid.x"], INVERSE_SIGMOID_EPS[_repo(tape)]))


def _repo(tape: Tape) -> str:
    return tape.facts["repo"]


def _focal(tape: Tape) -> None:
    cases = sorted({name.rsplit(".logits", 1)[0] for name in tape.names if name.endswith(".logits")})
    for case in cases:
        logits, targets = tape[f"{case}.logits"], tape[f"{case}.targets"]
        for name in [n for n in tape.names if n.startswith(f"{case}.nb")]:
            boxes, alpha, gamma = _focal_arguments(name.removeprefix(f"{case}."))
            summed = _focal_sum(logits, targets, abs(alpha) if alpha >= 0 else 0.5, gamma)
            # alpha < 0 means unbalanced: both sides weigh 1, which is twice alpha = 1/2.
            tape.compare(name, (summed if alpha >= 0 else 2 * summed) / logits.shape[1] / boxes)


def _focal_arguments(name: str) -> tuple[float, float, float]:
    """nb4.0.a0.25.g2 -> 4.0, 0.25, 2."""
    boxes, rest = name.removeprefix("nb").split(".a")
    alpha, gamma = rest.split(".g")
    return float(boxes), float(alpha), float(gamma)


def _focal_sum(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Every (query, class) as a query of one class, because here a query may be of several classes at once."""
    positive = targets.flatten().bool()
    count = int(positive.sum())
    query = positive.nonzero().flatten()
    boxes = Targets(torch.zeros(1, count, dtype=torch.long), torch.zeros(1, count, 4), torch.ones(1, count).bool())
    pairs = Assignment(torch.zeros_like(query), query, torch.arange(count))
    predictions = Predictions(logits.reshape(1, -1, 1), torch.zeros(1, positive.numel(), 4))
    return focal(predictions, boxes, pairs, torch.ones(()), alpha=alpha, gamma=gamma)


def _matcher(tape: Tape) -> None:
    for name in [n for n in tape.names if n in tape.facts and not n.startswith("matcher.ce")]:
        numbers = range(sum(n.startswith(f"{name}.t") and not n.endswith(".labels") for n in tape.names))
        if f"{name}.t0.labels" in tape.tensors:
            boxes = [tape[f"{name}.t{i}.boxes"] for i in numbers]
            labels = [tape[f"{name}.t{i}.labels"] for i in numbers]
            said = tape[f"{name}.pred_boxes"]
        else:
            boxes = [tape[f"{name}.t{i}"] for i in numbers]
            labels = [torch.zeros(len(spans), dtype=torch.long) for spans in boxes]
            said = tape[f"{name}.pred_spans"]
        assignment = _matcher_of(_repo(tape))(Predictions(tape[f"{name}.pred_logits"], said), pad(labels, boxes))
        tape.equal(name, pairs_of(assignment, len(boxes)))

    if "matcher.ce" in tape.names:
        _boundary_matcher(tape)


def _boundary_matcher(tape: Tape) -> None:
    """Moment-DETR's, for spans classified over clips; targets are the indices of the first and last clip."""
    targets = [torch.tensor(spans) for spans in tape.fact("matcher.ce.targets")]
    costs = {"class": softmax_class_cost, "span": boundary_cost}
    matcher = HungarianMatcher(costs, {"class": 4.0, "span": 10.0})
    said = Predictions(tape["matcher.ce.pred_logits"], tape["matcher.ce.pred_spans"])
    labels = [torch.zeros(len(spans), dtype=torch.long) for spans in targets]
    tape.equal("matcher.ce", pairs_of(matcher(said, pad(labels, targets)), len(targets)))


def _matcher_of(repo: str) -> HungarianMatcher:
    """With each code base's default weights."""
    if repo == "moment_detr":
        weights, class_cost = {"class": 4.0, "l1": 10.0, "giou": 1.0}, softmax_class_cost
    elif repo == "detr":
        weights, class_cost = {"class": 1.0, "l1": 5.0, "giou": 2.0}, softmax_class_cost
    else:
        weights, class_cost = {"class": 2.0, "l1": 5.0, "giou": 2.0}, focal_class_cost
    return HungarianMatcher({"class": class_cost, "l1": l1_cost, "giou": giou_cost}, weights)


def pad(labels: list[Tensor], boxes: list[Tensor]) -> Targets:
    """Lists of (M_i,) and (M_i, A) to padded targets."""
    mask = torch.arange(max([1, *map(len, boxes)])) < torch.tensor([len(b) for b in boxes])[:, None]
    full_labels = torch.zeros(mask.shape, dtype=torch.long)
    full_boxes = torch.zeros(*mask.shape, boxes[0].shape[-1], dtype=boxes[0].dtype)
    full_labels[mask], full_boxes[mask] = torch.cat(labels), torch.cat(boxes)
    return Targets(full_labels, full_boxes, mask)


def pairs_of(assignment: Assignment, batch: int) -> list[list[list[int]]]:
    """An assignment as the official codes record it: [query indices, target indices] of each sample."""
    members = [assignment.sample == i for i in range(batch)]
    return [[assignment.query[m].tolist(), assignment.target[m].tolist()] for m in members]


def _grid(tape: Tape) -> None:
    mask = ~tape["pos.mask"]
    offset = -0.5 if _repo(tape) == "Deformable-DETR" else 0.0
    for name in [n for n in tape.names if n.startswith("pos.sine")]:
        recorded = tape.fact(name)
        temperature = (recorded.get("pe_temperatureH", 10000.0), recorded.get("pe_temperatureW", 10000.0))
        ours = grid_positions(mask, recorded["hidden_dim"], temperature=temperature, offset=offset)
        tape.compare(name, ours.permute(0, 3, 1, 2))


def _learned_grid(tape: Tape) -> None:
    rows, columns = (tape[f"pos.learned.sd.{axis}_embed.weight"] for axis in ("row", "col"))
    recorded = tape["pos.learned"]  # its fact of the same name is the arguments
    positions = LearnedPositions(2, tape.fact("pos.learned")["hidden_dim"], len(rows))
    positions.load_state_dict({"tables.0": rows, "tables.1": columns})
    shape = (len(recorded), *recorded.shape[2:])
    tape.compare("pos.learned", positions(torch.ones(shape, dtype=torch.bool)).permute(0, 3, 1, 2))


def _line(tape: Tape) -> None:
    mask = tape["pos1d.mask"].bool()
    for name in [n for n in tape.names if n != "pos1d.mask"]:
        width = int(name.split(".")[1])
        raw = sine_features(mask.cumsum(1, dtype=torch.float32), width, 10000.0)
        tape.compare(name, raw if name.endswith("nonorm") else grid_positions(mask, width))


def _sine(tape: Tape) -> None:
    for name in [n for n in tape.names if n.endswith(".x")]:
        result = f"{name[:-2]}.y"
        points = tape[name]
        features = tape[result].shape[-1] // points.shape[-1]
        encoded = box_features(points, features)
        # These code bases put y before x, but w before h.
        ours = torch.cat([encoded[..., :2, :].flip(-2), encoded[..., 2:, :]], -2)
        tape.compare(result, ours.flatten(-2))


def _proposal_positions(tape: Tape) -> None:
    boxes = tape["proposal_pos_embed.x"].sigmoid()
    tape.compare("proposal_pos_embed.y", box_features(boxes, 128).flatten(-2))


def _conditional_attention(tape: Tape) -> None:
    num_heads = 4
    query, key, value = (tape[f"cond_mha.{part}"].transpose(0, 1) for part in ("q", "k", "v"))
    mask = ~tape["cond_mha.pad"][:, None, None]
    mixed = attend(query, key, value, num_heads=num_heads, mask=mask)
    out = mixed @ tape["cond_mha.sd.out_proj.weight"].T + tape["cond_mha.sd.out_proj.bias"]
    tape.compare("cond_mha.out", out.transpose(0, 1))
    # Identity as every head's values makes the weights visible.
    identity = torch.eye(key.shape[1]).repeat(1, num_heads).expand(key.shape[0], -1, -1)
    weights = attend(query, key, identity, num_heads=num_heads, mask=mask)
    tape.compare("cond_mha.weights", weights.unflatten(-1, (num_heads, -1)).mean(-2))


def _deformable_attention(tape: Tape) -> None:
    shapes = [tuple(shape) for shape in tape["msda.shapes"].tolist()]
    for case in ("a", "b"):
        given = {part: tape[f"msda.{case}.{part}"].requires_grad_() for part in ("value", "loc", "attn")}
        out = attend_points(given["value"], shapes, given["loc"], given["attn"])
        tape.compare(f"msda.{case}.out", out)
        gradients = torch.autograd.grad(out, list(given.values()), tape[f"msda.{case}.grad_out"])
        for part, gradient in zip(given, gradients, strict=True):
            tape.compare(f"msda.{case}.grad_{part}", gradient)

    module = DeformableAttention(num_dims=2, width=16, num_heads=4, num_levels=len(shapes), num_points=2)
    tape.compare("msda.module.initial_sampling_offsets_bias", module.offsets.bias)
    names = {"offsets": "sampling_offsets", "weights": "attention_weights", "value": "value_proj", "out": "output_proj"}
    state = {
        f"{ours}.{leaf}": tape[f"msda.module.sd.{official}.{leaf}"]
        for ours, official in names.items()
        for leaf in ("weight", "bias")
    }
    module.load_state_dict(state)
    memory = Memory(tape["msda.module.src"], ~tape["msda.module.pad"], level_shapes=tuple(shapes))
    module.on_levels = lambda references, memory: references  # type: ignore[method-assign]  # recorded level by level
    for size in (2, 4):
        out = module(tape["msda.module.query"], tape[f"msda.module.ref{size}"], memory)
        tape.compare(f"msda.module.out{size}", out)


def _levels(tape: Tape) -> None:
    masks = [~tape[f"levels.mask.{level}"] for level in range(3)]
    ratios = torch.stack([valid_ratios(mask) for mask in masks], 1)
    tape.compare("levels.valid_ratios", ratios)
    shapes = tuple(tuple(mask.shape[1:]) for mask in masks)
    centers = torch.cat([cell_centers(shape, ratios[:, level]) for level, shape in enumerate(shapes)], 1)
    tape.compare("levels.encoder_reference_points", centers[:, :, None] * ratios[:, None])
    valid = torch.cat([mask.flatten(1) for mask in masks], 1)
    memory = Memory(centers, valid, level_shapes=shapes, valid_ratios=ratios, references=centers)
    tape.compare("levels.output_proposals_unact", token_anchors(memory, 0.05, 0.01)[0])


def _accuracy(tape: Tape) -> None:
    logits, labels = tape["accuracy.logits"], tape["accuracy.target"]
    rows = torch.arange(len(labels))
    targets = Targets(labels[None], torch.zeros(1, len(labels), 4), torch.ones(1, len(labels), dtype=torch.bool))
    said = Predictions(logits[None], targets.boxes)
    error = class_error(said, targets, Assignment(torch.zeros_like(rows), rows, rows))
    tape.compare("accuracy.top1", 100 - error)


def _dice(tape: Tape) -> None:
    # Recorded for three targets, by every code base that has it.
    tape.compare("dice.y", dice_loss(tape["dice.x"], tape["dice.t"], torch.tensor(3.0)))


def _masks_to_boxes(tape: Tape) -> None:
    tape.compare("masks_to_boxes", boxes_of_masks(tape["masks"]))


def _nested(tape: Tape) -> None:
    images = [tape[name] for name in tape.names if name.startswith("nested.in.")]
    padded, mask = pad_images(images)
    tape.compare("nested.tensors", padded)
    tape.compare("nested.mask", ~mask)


FAMILIES: dict[str, Callable[[Tape], None]] = {
    "box": _box,
    "span": _span,
    "inverse_sigmoid": _inverse_sigmoid,
    "focal": _focal,
    "matcher": _matcher,
    "pos": _grid,
    "pos1d": _line,
    "sine": _sine,
    "proposal_pos_embed": _proposal_positions,
    "cond_mha": _conditional_attention,
    "msda": _deformable_attention,
    "levels": _levels,
    "pos_learned": _learned_grid,
    "accuracy": _accuracy,
    "dice": _dice,
    "masks_to_boxes": _masks_to_boxes,
    "nested": _nested,
}
