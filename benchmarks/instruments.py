"""Pictures of what `momentdetr.detr.diagnostics` shows, on toy models: `python benchmarks/instruments.py docs/images`.

Trains rows of `family.py` on its eight samples (frames and boxes; spans for the two experiments over time), each for
--steps steps, and draws one picture an instrument. Needs matplotlib.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import torch
from family import Learner, start, train
from family_samples import Batch, make_batch
from torch import Tensor

from momentdetr.detr.diagnostics import (
    anchor_offsets,
    attention_maps,
    discriminability,
    freeze_queries,
    instability,
    match,
    sampling,
    watch,
)
from momentdetr.detr.types import Assignment

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

QUERIES = 20
EVERY = 20
"""Steps between two looks at a model that is being trained."""


def trained(row: str, batch: Batch, steps: int) -> Learner:
    learner = start(row, batch)
    for _ in train(learner, batch, steps):
        pass
    return learner.eval()


def matching(learner: Learner, batch: Batch) -> Assignment:
    with torch.no_grad():
        maps = learner.stem(batch.values)
    return match(learner.detector, maps, batch.mask, batch.targets)


def instabilities(row: str, batch: Batch, steps: int) -> Iterator[tuple[int, float]]:
    """Queries whose target changed since the look before, per sample."""
    learner, before = start(row, batch), None
    for step, _ in train(learner, batch, steps):
        if step % EVERY == 0:
            now = matching(learner, batch)
            if before is not None:
                yield step, instability(before, now, len(batch.mask), QUERIES).float().mean().item()
            before = now


def draw_instability(spans: Batch, boxes: Batch, steps: int) -> Figure:
    figure, axes = plt.subplots(figsize=(5.5, 3))
    for row, name in (("dab_detr", "DAB-DETR"), ("dn_detr", "DN-DETR")):
        axes.plot(*zip(*instabilities(row, spans, steps), strict=True), label=name)
    axes.set(xlabel="step", ylabel=f"queries that changed\ntheir target in {EVERY} steps", ylim=(0, None))
    axes.legend()
    return figure


def draw_attention(spans: Batch, boxes: Batch, steps: int) -> Figure:
    """Of the surest query of the first frame: every head of the last layer, by content, by place, and by both."""
    rows = {"detr": "DETR", "conditional_detr": "Conditional DETR", "dab_detr": "DAB-DETR"}
    figure, axes = plt.subplots(3 * len(rows), 5, figsize=(6.5, 12))
    for index, (row, name) in enumerate(rows.items()):
        learner = trained(row, boxes, steps)
        with torch.no_grad(), watch(learner.detector.detr.decoder) as glances:
            said = learner(boxes).last
        scores = said.logits.softmax(-1)[..., :-1] if learner.softmax else said.logits.sigmoid()
        query = int(scores[0].amax(-1).argmax())
        seen = attention_maps(glances[-1]).on_grid(glances[-1].memory.level_shapes[-1])
        for line, part in enumerate(("content", "spatial", "combined")):
            place = axes[3 * index + line]
            frame(place[0], boxes, said.boxes[0, query])
            place[0].set_ylabel(f"{name}\n{part}", fontsize=7)
            for head, picture in enumerate(getattr(seen, part)[0, :, query]):
                place[1 + head].imshow(picture.detach())
                place[1 + head].set(xticks=[], yticks=[])
    return figure


def frame(axes: plt.Axes, batch: Batch, box: Tensor | None = None, sample: int = 0) -> None:
    """A frame, and a box on it."""
    picture = batch.values[sample].permute(1, 2, 0) + 0.5
    axes.imshow(picture.clamp(0, 1))
    axes.set(xticks=[], yticks=[])
    if box is not None:
        (x, y), (w, h) = (box * picture.shape[0]).view(2, 2).tolist()
        axes.add_patch(plt.Rectangle((x - w / 2, y - h / 2), w, h, fill=False, color="red"))


def draw_frozen(spans: Batch, boxes: Batch, steps: int) -> Figure:
    """Total loss of DETR from scratch, and of DETR with the queries of a trained one, which stay as they are."""
    curves: dict[str, list[float]] = {}
    teacher = start("detr", spans)
    curves["learned queries"] = [float(losses.total.detach()) for _, losses in train(teacher, spans, steps)]
    student = start("detr", spans, seed=1)
    freeze_queries(teacher.detector.detr, student.detector.detr)
    curves["trained queries, frozen"] = [float(losses.total.detach()) for _, losses in train(student, spans, steps)]
    other = start("detr", spans, seed=1)
    curves["learned queries, same start"] = [float(losses.total.detach()) for _, losses in train(other, spans, steps)]
    figure, axes = plt.subplots(figsize=(5.5, 3))
    for name, values in curves.items():
        smooth = torch.tensor(values).unfold(0, 10, 10).mean(-1)
        axes.plot(torch.arange(len(smooth)) * 10 + 5, smooth, label=name)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    return figure


def draw_sampling(spans: Batch, boxes: Batch, steps: int) -> Figure:
    """Where the surest query of four frames reads, the larger the heavier."""
    learner = trained("deformable_detr_refine", boxes, steps)
    with torch.no_grad(), watch(learner.detector.detr.decoder) as glances:
        said = learner(boxes).last
    with torch.no_grad():
        points = sampling(glances[-1])
    figure, axes = plt.subplots(1, 4, figsize=(8, 2.2))
    for sample, place in enumerate(axes):
        query = int(said.logits[sample].amax(-1).argmax())
        frame(place, boxes, said.boxes[sample, query], sample)
        where = points.locations[sample, query].flatten(0, -2) * boxes.mask.shape[-1]
        place.scatter(*where.T, s=200 * points.weights[sample, query].flatten(), alpha=0.5, c="orange")
        place.set(xlim=(0, 96), ylim=(96, 0))
    return figure


def draw_offsets(spans: Batch, boxes: Batch, steps: int) -> Figure:
    """Mean distance of centres from each layer's anchor to the box that it should find."""
    figure, axes = plt.subplots(figsize=(5.5, 3))
    for row, name in (("dab_detr", "DAB-DETR"), ("dn_detr", "DN-DETR"), ("dino", "DINO")):
        learner = trained(row, spans, steps)
        with torch.no_grad():
            output = learner(spans)
        offsets = anchor_offsets(output, matching(learner, spans), spans.targets)
        axes.plot(range(1, len(offsets) + 1), offsets[..., 0].abs().mean(1), marker="o", label=name)
    axes.set(
        xlabel="decoder layer", ylabel="distance of centres\n(part of the video)", xticks=[1, 2, 3], ylim=(0, None)
    )
    axes.legend()
    return figure


def draw_discriminability(spans: Batch, boxes: Batch, steps: int) -> Figure:
    """Foreground against background above each threshold; the further up and left, the better told apart."""
    figure, axes = plt.subplots(figsize=(4, 3.5))
    for row, name in (("deformable_detr_two_stage", "Deformable DETR"), ("co_deformable_detr", "Co-Deformable-DETR")):
        learner = trained(row, boxes, steps)
        with torch.no_grad():
            memory = learner.detector.neck(learner.stem(boxes.values), boxes.mask)
            assert learner.detector.detr.encoder is not None
            curve = discriminability(learner.detector.detr.encoder(memory), boxes.targets)
        axes.plot(curve.background, curve.foreground, label=name)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.set(xlabel="part of the background (IoB)", ylabel="part of the foreground (IoF)")
    axes.legend()
    return figure


PICTURES: dict[str, Callable[[Batch, Batch, int], Figure]] = {
    "instability": draw_instability,
    "attention": draw_attention,
    "frozen_queries": draw_frozen,
    "sampling": draw_sampling,
    "anchor_offsets": draw_offsets,
    "discriminability": draw_discriminability,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=list(PICTURES), choices=list(PICTURES))
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    spans, boxes = make_batch(1), make_batch(2)
    for name in options.only:
        figure = PICTURES[name](spans, boxes, options.steps)
        figure.tight_layout()
        figure.savefig(options.folder / f"family_{name}.png", dpi=80)
        plt.close(figure)
        print(options.folder / f"family_{name}.png", flush=True)


if __name__ == "__main__":
    main()
