"""Every system of the family learns eight samples of the moving-shapes world by heart, as boxes and as spans.

    python benchmarks/family.py [--dims 1 2] [--systems dino detr ...] [--steps 2000] [--json FILE]

A system passes when AP at IoU 0.5 on its eight samples reaches .8 within the steps. Boxes: the shapes of eight frames.
Spans: the events of eight videos, seen as one small picture a clip. The same maps, width and optimiser for all.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from momentdetr.demo.drawing import draw_frame, paint_background
from momentdetr.demo.scene import FRAMES_PER_CLIP, Scene
from momentdetr.demo.truth import frame_boxes
from momentdetr.demo.vocabulary import SHAPES
from momentdetr.demo.world import make_video
from momentdetr.detr import systems
from momentdetr.detr.boxes import iou, to_corners
from momentdetr.detr.model import Detector
from momentdetr.detr.neck import CONVOLUTIONS
from momentdetr.detr.systems import Sizes, Task
from momentdetr.detr.types import Targets
from momentdetr.evaluation.average_precision import interpolated_average_precision, match_by_rank

SAMPLES, WIDTH, PICTURE, THUMB = 8, 64, 96, 12
CHANNELS = (32, 48, 64)
SYSTEMS: dict[str, Callable[[Task, Sizes], Detector]] = {
    "detr": systems.detr,
    "conditional_detr": systems.conditional_detr,
    "deformable_detr": systems.deformable_detr,
    "deformable_detr_refine": lambda task, sizes: systems.deformable_detr(task, sizes, refine=True),
    "deformable_detr_two_stage": lambda task, sizes: systems.deformable_detr(task, sizes, refine=True, two_stage=True),
    "dab_detr": systems.dab_detr,
    "dab_deformable_detr": systems.dab_deformable_detr,
    "dn_detr": systems.dn_detr,
    "dn_deformable_detr": systems.dn_deformable_detr,
    "dino": systems.dino,
}


@dataclass(frozen=True)
class Batch:
    """Eight samples: values (8, channels, *spatial), mask (8, *spatial), targets."""

    values: Tensor
    mask: Tensor
    targets: Targets


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    system: str
    num_dims: int
    steps: int
    ap50: float
    first_loss: float
    last_loss: float
    parameters: int
    silent: list[str]
    seconds: float


class Maps(nn.Module):
    """Three feature maps, each half as fine as the one before, by strided convolutions of any number of axes."""

    def __init__(self, num_dims: int, channels_in: int, first_stride: int) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[num_dims]
        sizes = (channels_in, 24, *CHANNELS)
        strides = (first_stride, 2 if num_dims > 1 else 1, 2, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(convolution(a, b, kernel_size=max(3, s), stride=s, padding=1), nn.GroupNorm(8, b), nn.ReLU())
            for a, b, s in zip(sizes, sizes[1:], strides, strict=True)
        )

    def forward(self, values: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            values = stage(values)
            maps.append(values)
        return maps[1:]


def scenes() -> list[Scene]:
    return [make_video(7, index, "train") for index in range(SAMPLES)]


def boxes_batch() -> Batch:
    """One frame a video, with at least one shape in it."""
    pictures, truths = [], []
    for scene in scenes():
        frame = max(range(scene.num_frames), key=lambda f, s=scene: (len(frame_boxes(s, f, PICTURE)), -f))
        pictures.append(draw_frame(scene, frame / FRAMES_PER_CLIP, paint_background(scene.background)))
        truths.append(
            [
                (SHAPES.index(shape), [(x + w / 2) / PICTURE, (y + h / 2) / PICTURE, w / PICTURE, h / PICTURE])
                for shape, (x, y, w, h) in frame_boxes(scene, frame, PICTURE)
            ]
        )
    values = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255 - 0.5
    values = nn.functional.interpolate(values, (PICTURE, PICTURE), mode="bilinear", antialias=True)
    return Batch(values, torch.ones(SAMPLES, PICTURE, PICTURE, dtype=torch.bool), pad_targets(truths, 2))


def spans_batch() -> Batch:
    """A small picture a clip, side by side as channels, and every event's span."""
    videos, truths = [], []
    for scene in scenes():
        wall = paint_background(scene.background)
        frames = np.stack([draw_frame(scene, clip + 0.5, wall) for clip in range(scene.num_clips)])
        small = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 - 0.5
        videos.append(nn.functional.interpolate(small, (THUMB, THUMB), mode="area").flatten(1))
        truths.append(
            [
                (SHAPES.index(e.shape), [(e.start + e.end) / 2 / scene.num_clips, (e.end - e.start) / scene.num_clips])
                for e in scene.events
            ]
        )
    lengths = torch.tensor([len(video) for video in videos])
    values = nn.utils.rnn.pad_sequence(videos, batch_first=True).transpose(1, 2)
    return Batch(values, torch.arange(values.shape[-1])[None] < lengths[:, None], pad_targets(truths, 1))


def pad_targets(truths: list[list[tuple[int, list[float]]]], num_dims: int) -> Targets:
    most = max(map(len, truths))
    labels, boxes = torch.zeros(len(truths), most, dtype=torch.long), torch.zeros(len(truths), most, 2 * num_dims)
    mask = torch.zeros(len(truths), most, dtype=torch.bool)
    for i, truth in enumerate(truths):
        for j, (label, box) in enumerate(truth):
            labels[i, j], boxes[i, j], mask[i, j] = label, torch.tensor(box), True
    return Targets(labels, boxes, mask)


def average_precision(logits: Tensor, boxes: Tensor, targets: Targets, softmax: bool) -> float:
    """AP at IoU 0.5, averaged over the classes that occur."""
    scores = logits.softmax(-1)[..., :-1] if softmax else logits.sigmoid()
    values = []
    for label in targets.labels[targets.mask].unique():
        order = scores[..., label].argsort(1, descending=True)
        ranked = boxes.gather(1, order[..., None].expand_as(boxes))
        true = targets.mask & (targets.labels == label)
        overlaps = iou(to_corners(ranked)[:, :, None], to_corners(targets.boxes)[:, None])[0].double().numpy()
        overlaps = np.where(true.numpy()[:, None], overlaps, -1.0)
        every = np.ones(order.shape, dtype=bool)
        hits = match_by_rank(overlaps, every, true.numpy(), np.array([0.5]))[:, 0]
        pooled = scores[..., label].gather(1, order).flatten().argsort(descending=True).numpy()
        found = hits.reshape(-1)[pooled][None, None]
        values.append(
            interpolated_average_precision(
                found, np.ones((1, found.shape[-1]), dtype=bool), np.array([int(true.sum())])
            )
        )
    return float(np.mean(values))


def learn(name: str, num_dims: int, batch: Batch, steps: int, every: int = 100) -> Row:
    torch.manual_seed(0)
    sizes = Sizes(WIDTH, 4, 128, 2, 3, num_queries=20, num_levels=3, group_norm=8)
    detector = SYSTEMS[name](Task(num_dims, CHANNELS, len(SHAPES)), sizes)
    maps = Maps(num_dims, batch.values.shape[1], 4 if num_dims > 1 else 1)
    parameters = [*maps.parameters(), *detector.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.1)
    generator, start, first, ap, step = torch.Generator().manual_seed(0), time.perf_counter(), 0.0, 0.0, 0
    silent: list[str] = []
    for step in range(1, steps + 1):
        losses = detector.loss(maps(batch.values), batch.mask, batch.targets, generator=generator)
        optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        if step == 1:
            first = float(losses.total.detach())
        if step == 20:
            silent = [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        optimizer.step()
        schedule.step()
        if step % every == 0:
            ap = evaluate(detector.eval(), maps, batch, softmax=name == "detr")
            detector.train()
            if ap >= 0.8:
                break
    count = sum(p.numel() for p in parameters)
    last = float(losses.total.detach())
    return Row(name, num_dims, step, round(ap, 3), first, last, count, silent, round(time.perf_counter() - start, 1))


@torch.no_grad()
def evaluate(detector: Detector, maps: Maps, batch: Batch, *, softmax: bool) -> float:
    last = detector(maps(batch.values), batch.mask).last
    return average_precision(last.logits, last.boxes, batch.targets, softmax)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="append each row to this file as it is done")
    options = parser.parse_args()
    print(
        f"{'system':28} {'D':>2} {'steps':>6} {'AP50':>6} {'loss':>16} {'parameters':>11} {'silent':>6} {'seconds':>8}"
    )
    for num_dims in options.dims:
        batch = spans_batch() if num_dims == 1 else boxes_batch()
        for name in options.systems:
            row = learn(name, num_dims, batch, options.steps)
            losses = f"{row.first_loss:.1f} -> {row.last_loss:.1f}"
            print(
                f"{name:28} {num_dims:2} {row.steps:6} {row.ap50:6.3f} {losses:>16} {row.parameters:11,} "
                f"{len(row.silent):6} {row.seconds:8}",
                flush=True,
            )
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
