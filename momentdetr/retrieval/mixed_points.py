"""FlashVTG's head: the class of a point is a mixture of what its level says and what all levels, side by side, say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from momentdetr.detr.boxes import at_least_float32
from momentdetr.detr.losses import Losses
from momentdetr.detr.mlp import MLP
from momentdetr.detr.types import Memory
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.point_retriever import PointRetriever
from momentdetr.retrieval.points import PointOutput, Points, Pyramid, points_said
from momentdetr.retrieval.types import MomentOutput, MomentTargets


class ConfidenceTower(nn.Module):
    """Convolutions over neighbouring cells with ReLU, then an MLP: (B, N, C) -> (B, N, 1).

    Args:
        width: C.
        num_convolutions: of them.
        num_linear: layers of the MLP, half as wide.
        kernel: cells that a convolution sees, odd.
    """

    def __init__(self, width: int, *, num_convolutions: int = 3, num_linear: int = 3, kernel: int = 3) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(  # of rows of images, as the official code has them
            nn.Conv2d(width, width, (1, kernel), padding=(0, kernel // 2)) for _ in range(num_convolutions)
        )
        self.out = MLP(width, *[width // 2] * (num_linear - 1), 1)

    def forward(self, cells: Tensor, mask: Tensor | None) -> Tensor:
        """Cells, and which are real; None: all are."""
        for convolution in self.convolutions:
            cells = cells if mask is None else cells * mask[..., None]
            cells = convolution(cells.transpose(1, 2)[:, :, None]).squeeze(2).transpose(1, 2).relu()
        return self.out(cells)


class MixedPointHead(nn.Module):
    """Class and distances at every point.

    Args:
        pyramid: of clips.
        classes: (cells, mask) -> (B, N, 1), level by level.
        confidence: the same, of all levels one after the other, neighbours across levels included.
        offsets: (cells, mask) -> (B, N, 2), logarithms of distances.
        official_batch_faults: let padding into the towers, see `Pyramid`.
    """

    def __init__(
        self,
        *,
        pyramid: Pyramid,
        classes: nn.Module,
        confidence: nn.Module,
        offsets: nn.Module,
        official_batch_faults: bool = False,
    ) -> None:
        super().__init__()
        self.pyramid, self.classes, self.confidence, self.offsets = pyramid, classes, confidence, offsets
        self.scales = nn.Parameter(torch.ones(len(pyramid.strides)))
        self.mixture = nn.Parameter(torch.tensor(0.5))
        self.official_batch_faults = official_batch_faults

    def forward(self, memory: Memory) -> PointOutput:
        """Clips (B, T, C), not negative -> moments."""
        assert memory.mask is not None
        levels = self.pyramid(memory.tokens, memory.mask)
        logits, offsets = [], []
        for scale, (cells, mask) in zip(self.scales, levels, strict=False):
            seen = None if self.official_batch_faults else mask
            logits.append(self.classes(cells, seen))
            offsets.append(at_least_float32(self.offsets(cells, seen)).exp() * scale)
        confidence = self._side_by_side(
            torch.cat([cells for cells, _ in levels], 1), torch.cat([mask for _, mask in levels], 1)
        )
        mixed = self.mixture * torch.cat(logits, 1) + (1 - self.mixture) * confidence
        points = Points.of([cells.shape[1] for cells, _ in levels], self.pyramid.strides, memory.tokens)
        return points_said(mixed, torch.cat(offsets, 1), points, levels, memory.mask)

    def _side_by_side(self, cells: Tensor, mask: Tensor) -> Tensor:
        """Of cells (B, N, C) whose neighbours are the next real ones, wherever padding lies: (B, N, 1)."""
        if self.official_batch_faults:
            return self.confidence(cells, None)
        order = (~mask).long().argsort(dim=1, stable=True)  # real cells first
        packed = self.confidence(cells.gather(1, order[..., None].expand_as(cells)), mask.gather(1, order))
        return packed.gather(1, order.argsort(1)[..., None])


def score_loss(logits: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of clips' class logits and annotated scores, each stretched to [0, 1] over the batch.

    Args:
        logits: (B, T), of the finest level.
        scores: (B, T), annotated.
        mask: (B, T), True where a clip counts.
    """
    said, true = (_stretched(at_least_float32(values)[mask]) for values in (logits, scores))
    return (said - true).square().mean()


def _stretched(values: Tensor) -> Tensor:
    span = values.max() - values.min()
    return (values - values.min()) / torch.where(span > 0, span, 1)


class FlashVtg(PointRetriever):
    """A retriever of points whose finest level also learns the annotated scores.

    Args:
        score_weight: of that loss.
        options: of `PointRetriever`.
    """

    def __init__(self, *, score_weight: float = 4.0, **options: Any) -> None:
        super().__init__(**options)
        self.score_weight = score_weight

    def judge(self, output: MomentOutput, targets: MomentTargets) -> Losses:
        """All terms of an output."""
        losses = MomentRetriever.judge(self, output, targets)
        if targets.saliency is None or targets.saliency.scores is None or not self.score_weight:
            return losses
        mask = output.video_mask
        counted = torch.ones_like(mask) if self.encoder.official_batch_faults else mask
        value = score_loss(output.output.last.logits[:, : mask.shape[1], 0], targets.saliency.scores, counted)
        return Losses(losses.total + self.score_weight * value, {**losses.terms, "score": value}, losses.assignments)
