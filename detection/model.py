"""An image detector: a backbone, and a detector of the family on its maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from detection.backbone import Backbone
from momentdetr.detr.anchors import clip
from momentdetr.detr.assignment_dense import Shuffle
from momentdetr.detr.boxes import at_least_float32, to_corners
from momentdetr.detr.denoising import Draws
from momentdetr.detr.losses import Losses
from momentdetr.detr.model import Detector
from momentdetr.detr.nms import soft_nms
from momentdetr.detr.types import Output, Targets


@dataclass(frozen=True)
class Detections:
    """What was found in one image.

    Args:
        scores: (N,) in [0, 1], best first.
        labels: (N,) class indices.
        boxes: (N, 4), corners x0, y0, x1, y1 in pixels of the original image.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor


class ImageDetector(nn.Module):
    """Images (B, 3, H, W) and their masks (B, H, W), True where real, to boxes.

    Args:
        backbone: images -> maps.
        detector: maps -> Output.
        scores: "softmax" with "no object" last, one class a query (DETR); or "sigmoid", the best pairs of query and
            class over all (everyone else).
        top: how many answers an image gets, for "sigmoid".
        suppress: overlapping answers of a class are weakened by soft suppression above this IoU (Co-DINO); None: not.
        keep: how many answers are left then; None: all.
        inside: whether answers are clipped to the image (mmdetection).
    """

    def __init__(
        self,
        backbone: Backbone,
        detector: Detector,
        *,
        scores: Literal["softmax", "sigmoid"] = "sigmoid",
        top: int = 100,
        suppress: float | None = None,
        keep: int | None = None,
        inside: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.detector = backbone, detector
        self.scores, self.top = scores, top
        self.suppress, self.keep, self.inside = suppress, keep, inside

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        targets: Targets | None = None,
        *,
        draws: Draws | None = None,
        shuffle: Shuffle | None = None,
        proposals: Tensor | None = None,
    ) -> Output:
        """Detect; see `Detr` for noise, shuffling and proposals."""
        found = self.backbone(images)
        return self.detector(found, mask, targets, draws=draws, shuffle=shuffle, proposals=proposals)

    def loss(
        self,
        images: Tensor,
        mask: Tensor,
        targets: Targets,
        *,
        draws: Draws | None = None,
        shuffle: Shuffle | None = None,
    ) -> Losses:
        return self.detector.criterion(self(images, mask, targets, draws=draws, shuffle=shuffle), targets)

    @torch.no_grad()
    def predict(self, images: Tensor, mask: Tensor, sizes: Tensor) -> list[Detections]:
        """Detect.

        Args:
            sizes: (B, 2), height and width of the original images in pixels.
        """
        last = self(images, mask).last
        logits = at_least_float32(last.logits)
        corners = to_corners(at_least_float32(last.boxes)) * sizes.flip(-1).repeat(1, 2)[:, None].to(logits.dtype)
        if self.scores == "softmax":
            scores, labels = logits.softmax(-1)[..., :-1].max(-1)
            query = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        else:
            probabilities = logits.sigmoid().flatten(1)
            scores, index = probabilities.topk(min(self.top, probabilities.shape[1]), dim=1)
            labels, query = index % logits.shape[-1], index // logits.shape[-1]
        boxes = corners.gather(1, query[..., None].expand(-1, -1, 4))
        if self.inside:
            boxes = clip(boxes, sizes.flip(-1)[:, None].to(boxes.dtype))
        found = [Detections(*rows) for rows in zip(scores, labels, boxes, strict=True)]
        if self.suppress is None:
            return found
        return [_suppressed(one, self.suppress, self.keep) for one in found]


def _suppressed(found: Detections, threshold: float, keep: int | None) -> Detections:
    """Overlapping answers weakened class by class, best first."""
    index, scores = soft_nms(found.boxes, found.scores, threshold, found.labels)
    return Detections(scores[:keep], found.labels[index[:keep]], found.boxes[index[:keep]])
