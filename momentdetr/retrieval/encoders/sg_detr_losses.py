"""SG-DETR's (Gordeev et al., 2024) matching costs and loss terms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from momentdetr.detr.assignment import HungarianMatcher, giou_cost, l1_cost
from momentdetr.detr.boxes import at_least_float32, iou, to_corners
from momentdetr.detr.losses import matched, matched_targets, one_hot_targets
from momentdetr.detr.types import Assignment, Predictions, Targets
from momentdetr.retrieval.saliency import margin_loss, rank_contrastive_loss
from momentdetr.retrieval.types import SaliencyTargets

_LEAST = 1e-7  # probability of silence below which a foreign clip costs no more


def class_cost(logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
    """Minus the probability that a query holds a moment; logits (Q, 2): of that, and of quality."""
    return -logits[:, :1].sigmoid().expand(-1, len(labels))


def quality_cost(logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
    """Minus the quality that a query claims; logits as in `class_cost`."""
    return -logits[:, 1:].sigmoid().expand(-1, len(labels))


class QualityMatcher(HungarianMatcher):
    """The assignment of least cost, to which the quality that a query claims belongs.

    Args:
        l1: weight of centres and widths.
        giou: weight of overlap.
        class_: weight of probabilities.
        quality: weight of claimed quality.
    """

    def __init__(self, *, l1: float = 10.0, giou: float = 1.0, class_: float = 4.0, quality: float = 1.0) -> None:
        super().__init__(
            {"l1": l1_cost, "giou": giou_cost, "class": class_cost, "quality": quality_cost},
            {"l1": l1, "giou": giou, "class": class_, "quality": quality},
        )

    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: Targets) -> Assignment:
        assert predictions.quality is not None
        both = torch.cat([predictions.logits, predictions.quality[..., None]], -1)
        return super().__call__(Predictions(both, predictions.boxes), targets)


def smooth_l1(predictions: Predictions, targets: Targets, assignment: Assignment, count: Tensor) -> Tensor:
    """Smooth L1 of centres and widths, averaged over matched numbers; all are below 1, so half their square."""
    said = matched(at_least_float32(predictions.boxes), assignment)
    return _mean(F.smooth_l1_loss(said, matched_targets(targets.boxes, assignment), reduction="none"))


def edge_l1(predictions: Predictions, targets: Targets, assignment: Assignment, count: Tensor) -> Tensor:
    """Absolute difference of starts and ends, averaged over matched numbers."""
    said, true = matched(at_least_float32(predictions.boxes), assignment), matched_targets(targets.boxes, assignment)
    return _mean((to_corners(said) - to_corners(true)).abs())


def background_binary(
    predictions: Predictions, targets: Targets, assignment: Assignment, count: Tensor, *, background: float = 0.1
) -> Tensor:
    """Binary cross-entropy of one class, averaged over all queries, those that answer for nothing weighted down."""
    logits = at_least_float32(predictions.logits)
    truth = one_hot_targets(predictions, targets, assignment).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return _mean(loss * torch.where(truth > 0, 1.0, background))


def claimed_quality(predictions: Predictions, targets: Targets, assignment: Assignment, count: Tensor) -> Tensor:
    """Binary cross-entropy of matched queries' quality with the IoU that their box has, through which no gradient
    passes; averaged over them."""
    assert predictions.quality is not None
    box = matched(at_least_float32(predictions.boxes.detach()), assignment)
    true = iou(to_corners(box), to_corners(matched_targets(targets.boxes, assignment)))[0]
    said = at_least_float32(matched(predictions.quality, assignment))
    return _mean(F.binary_cross_entropy_with_logits(said, true.to(said.dtype), reduction="none"))


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(values.numel(), 1)  # a batch without targets costs nothing, but keeps the gradient


def silence_loss(scores: Tensor, mask: Tensor) -> Tensor:
    """Clips should not answer a query of another video: -log(1 - sigmoid(score)), averaged over real clips.

    Args:
        scores: (B, T), of each video with a foreign query.
        mask: (B, T), True where a clip is real.
    """
    return F.softplus(at_least_float32(scores))[mask].clamp(max=-math.log(_LEAST)).mean()


def graded_loss(
    scores: Tensor,
    negative: Tensor | None,
    foreign: Tensor,
    relevant: Tensor,
    targets: SaliencyTargets | None,
    mask: Tensor,
    *,
    margin: float = 0.15,
    lone: bool = True,
) -> Tensor:
    """What one kind of saliency costs: telling relevant clips, silence for foreign queries, the hinge over pairs of
    probabilities, and the rank contrast of logits; their plain sum.

    Args:
        scores: (B, T), logits.
        negative: (F, T), of the F samples with a foreign query; None where there are none.
        foreign: (B,), True for these F samples.
        relevant: (B, T), True where a clip answers the query.
        targets: pairs and annotated scores; None where there are none.
        mask: (B, T), True where a clip is real.
        margin: of the hinge.
        lone: rank a single sample that has no foreign query, too; the official code compares each of its clips with
            itself.
    """
    scores = at_least_float32(scores)
    total = F.binary_cross_entropy_with_logits(scores[mask], relevant[mask].to(scores.dtype))
    if negative is not None:
        total = total + silence_loss(negative, mask[foreign])
    if targets is None:
        return total
    total = total + margin_loss(scores.sigmoid(), targets, margin)
    if targets.scores is None:
        return total
    levels, rest = targets.scores, ~foreign
    if negative is not None:
        both = torch.cat([scores[foreign], at_least_float32(negative)], 1)
        graded = torch.cat([levels[foreign], torch.zeros_like(levels[foreign])], 1)
        total = total + rank_contrastive_loss(both, graded, mask[foreign].repeat(1, 2))
    if rest.any() and (lone or int(rest.sum()) > 1 or negative is None):
        total = total + rank_contrastive_loss(scores[rest], levels[rest], mask[rest])
    return total


def alignment_loss(moment: Tensor, sentence: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Each moment should be like its own sentence and unlike the others: focal loss of cosines taken for logits.

    Args:
        moment: (B, C), summary of relevant clips.
        sentence: (B, C).
        gamma: of the focal loss; both answers weigh one half.

    Returns:
        Scalar, summed over sentences, averaged over moments.
    """
    moment, sentence = (F.normalize(at_least_float32(x), dim=1) for x in (moment, sentence))
    logits = moment @ sentence.T
    truth = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return 0.5 * ((1 - (-loss).exp()) ** gamma * loss).sum(1).mean()
