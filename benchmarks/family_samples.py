"""Eight samples of the moving-shapes world, as boxes and as spans; a small stem that makes maps of them; their AP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from momentdetr.demo.drawing import SIZE, draw_frame, paint_background
from momentdetr.demo.scene import FRAMES_PER_CLIP, Scene
from momentdetr.demo.truth import frame_boxes
from momentdetr.demo.vocabulary import SHAPES
from momentdetr.demo.world import make_video
from momentdetr.detr.boxes import iou, to_corners
from momentdetr.detr.neck import CONVOLUTIONS
from momentdetr.detr.types import Targets
from momentdetr.evaluation.average_precision import interpolated_average_precision, match_by_rank

SAMPLES, SEED = 8, 7
PICTURE = 96
"""Pixels of a frame's side, D = 2."""
THUMB = 12
"""Pixels of the side of a clip's picture, D = 1."""
CHANNELS = (48, 64)
"""Of the stem's two maps, finest first."""
STRIDES = {1: (1, 1, 2), 2: (4, 2, 2)}
"""Of the stem's three convolutions: maps of every and every other clip; of every 8 and 16 pixels."""

Truth = list[tuple[int, list[float]]]
"""Class and box of each target of a sample."""


@dataclass(frozen=True)
class Batch:
    """Eight samples.

    Args:
        values: (8, channels, *spatial), pixels or clips.
        mask: (8, *spatial), True where real.
        targets: what is true of them.
    """

    values: Tensor
    mask: Tensor
    targets: Targets


class Stem(nn.Module):
    """Three strided convolutions, each with a norm and a ReLU, trained with the detector; gives the last two maps.

    Args:
        num_dims: D.
        channels_in: of the samples.
        dilated: leave out the last stride and widen the last kernel instead, as DC5 does.
    """

    def __init__(self, num_dims: int, channels_in: int, *, dilated: bool = False) -> None:
        super().__init__()
        convolution, sizes = CONVOLUTIONS[num_dims], (channels_in, 32, *CHANNELS)
        stages = []
        for index, stride in enumerate(STRIDES[num_dims]):
            wide = 2 if dilated and index == 2 else 1
            layer = convolution(
                *sizes[index : index + 2],
                kernel_size=2 * (stride // 2) + 3 if index == 0 else 3,
                stride=1 if wide > 1 else stride,
                padding=max(stride // 2 + 1, wide) if index == 0 else wide,
                dilation=wide,
            )
            stages.append(nn.Sequential(layer, nn.GroupNorm(8, sizes[index + 1]), nn.ReLU()))
        self.stages = nn.ModuleList(stages)

    def forward(self, values: Tensor) -> list[Tensor]:
        """(B, channels, *spatial) to two maps, finest first."""
        maps = []
        for stage in self.stages:
            values = stage(values)
            maps.append(values)
        return maps[-2:]


def make_batch(num_dims: int) -> Batch:
    """Spans (D = 1) or boxes (D = 2) of eight videos."""
    scenes = [make_video(SEED, index, "train") for index in range(SAMPLES)]
    return {1: spans_of, 2: boxes_of}[num_dims](scenes)


def boxes_of(scenes: Sequence[Scene]) -> Batch:
    """One frame a video, the first of those with most shapes."""
    pictures, truths = [], []
    for scene in scenes:
        count = [len(frame_boxes(scene, frame)) for frame in range(scene.num_frames)]
        frame = count.index(max(count))
        pictures.append(draw_frame(scene, frame / FRAMES_PER_CLIP, paint_background(scene.background)))
        truths.append([(SHAPES.index(shape), _relative(box)) for shape, box in frame_boxes(scene, frame)])
    values = nn.functional.interpolate(_pixels(pictures), (PICTURE, PICTURE), mode="bilinear", antialias=True)
    return Batch(values, torch.ones(len(scenes), PICTURE, PICTURE, dtype=torch.bool), pad_targets(truths, 2))


def _relative(box: Sequence[float]) -> list[float]:
    """Left, top, width, height in pixels to centre and size in [0, 1]."""
    left, top, width, height = (value / SIZE for value in box)
    return [left + width / 2, top + height / 2, width, height]


def spans_of(scenes: Sequence[Scene]) -> Batch:
    """A small picture a clip, its pixels as channels, and the span and shape of every event."""
    videos, truths = [], []
    for scene in scenes:
        wall = paint_background(scene.background)
        frames = [draw_frame(scene, clip + 0.5, wall) for clip in range(scene.num_clips)]
        videos.append(nn.functional.interpolate(_pixels(frames), (THUMB, THUMB), mode="area").flatten(1))
        truths.append(
            [
                (SHAPES.index(e.shape), [(e.start + e.end) / 2 / scene.num_clips, (e.end - e.start) / scene.num_clips])
                for e in scene.events
            ]
        )
    lengths = torch.tensor([len(video) for video in videos])
    values = nn.utils.rnn.pad_sequence(videos, batch_first=True).transpose(1, 2)
    return Batch(values, torch.arange(values.shape[-1])[None] < lengths[:, None], pad_targets(truths, 1))


def _pixels(frames: Sequence[np.ndarray]) -> Tensor:
    """(N, 3, H, W) in [-0.5, 0.5]."""
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255 - 0.5


def pad_targets(truths: Sequence[Truth], num_dims: int) -> Targets:
    """Lists of each sample's targets to rectangular tensors."""
    mask = torch.arange(max(map(len, truths))) < torch.tensor([len(truth) for truth in truths])[:, None]
    labels, boxes = torch.zeros(mask.shape, dtype=torch.long), torch.zeros(*mask.shape, 2 * num_dims)
    labels[mask] = torch.tensor([label for truth in truths for label, _ in truth])
    boxes[mask] = torch.tensor([box for truth in truths for _, box in truth])
    return Targets(labels, boxes, mask)


def average_precision(scores: Tensor, boxes: Tensor, targets: Targets, overlap: float = 0.5) -> float:
    """AP at one IoU over all samples, averaged over the classes that occur.

    Args:
        scores: (B, Q, K); every query may answer for every class.
        boxes: (B, Q, 2D).
        targets: what is true.
        overlap: that a match needs.
    """
    values = []
    for label in targets.labels[targets.mask].unique():
        order = scores[..., label].argsort(1, descending=True)
        ranked = boxes.gather(1, order[..., None].expand_as(boxes))
        true = targets.mask & (targets.labels == label)
        overlaps = iou(to_corners(ranked)[:, :, None], to_corners(targets.boxes)[:, None])[0].double().numpy()
        overlaps = np.where(true.numpy()[:, None], overlaps, -1.0)
        everyone = np.ones(order.shape, dtype=bool)
        hits = match_by_rank(overlaps, everyone, true.numpy(), np.array([overlap]))[:, 0]
        # Ranks of a sample are known; now all samples' predictions are ranked together.
        pooled = scores[..., label].gather(1, order).flatten().argsort(descending=True, stable=True).numpy()
        found = hits.reshape(-1)[pooled][None, None]
        number = np.array([int(true.sum())])
        values.append(interpolated_average_precision(found, np.ones((1, found.shape[-1]), dtype=bool), number))
    return float(np.mean(values))
