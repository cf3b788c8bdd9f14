"""Pictures of what `momentdetr.detr.diagnostics` shows, on toy models.

    python benchmarks/instruments.py docs/images [--only attention ...] [--steps 500]

Trains rows of `family.py` on its eight samples (frames and boxes; spans for the experiments over time), each for
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

# Okabe and Ito's colours, which the colour-blind tell apart; each line also has a marker or dashes of its own.
COLOURS = ("#0072B2", "#D55E00", "#009E73")
STYLES = ("-", "--", "-.")
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=COLOURS) + plt.cycler(linestyle=STYLES)
plt.rcParams["font.size"] = 9

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


def line_plot(title: str, x: str, y: str) -> tuple[Figure, plt.Axes]:
    figure, axes = plt.subplots(figsize=(6, 3.4))
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def draw_instability(spans: Batch, boxes: Batch, steps: int) -> Figure:
    figure, axes = line_plot(
        "Instability of matching (IS) while training",
        "training step",
        f"queries with another target\nthan {EVERY} steps before (of {QUERIES})",
    )
    for row, name in (("dab_detr", "DAB-DETR"), ("dn_detr", "DN-DETR")):
        axes.plot(*zip(*instabilities(row, spans, steps), strict=True), label=name)
    axes.set(ylim=(0, None))
    axes.legend(title="mean of eight videos")
    return figure


def draw_attention(spans: Batch, boxes: Batch, steps: int) -> Figure:
    """Of the query that answers for the first target: every head of the last layer, by content, place, and both."""
    rows = {"detr": "DETR", "conditional_detr": "Conditional\nDETR", "dab_detr": "DAB-DETR"}
    figure, axes = plt.subplots(3 * len(rows), 5, figsize=(6.4, 10.6), layout="constrained")
    figure.suptitle("Cross-attention of one query, last layer: dark none, bright the map's most", fontsize=10)
    for index, (row, name) in enumerate(rows.items()):
        learner = trained(row, boxes, steps)
        found = matching(learner, boxes)
        query = int(found.query[(found.sample == 0) & (found.target == 0)])
        with torch.no_grad(), watch(learner.detector.detr.decoder) as glances:
            box = learner(boxes).last.boxes[0, query]
        shape = glances[-1].memory.level_shapes[-1]
        seen = attention_maps(glances[-1]).on_grid(shape)
        for line, part in enumerate(("content", "spatial", "combined")):
            first, *others = axes[3 * index + line]
            if line == 0:
                frame(first, boxes, box)
                first.set_title(f"{name}: its box", fontsize=8)
            else:
                first.set_axis_off()
            for head, (place, picture) in enumerate(zip(others, getattr(seen, part)[0, :, query], strict=True)):
                place.imshow(picture.detach(), cmap="cividis")
                outline(place, box, shape[0], -0.5)
                place.set(xticks=[], yticks=[])
                place.set_title(f"{part}, head {head + 1}", fontsize=8)
    return figure


def frame(axes: plt.Axes, batch: Batch, box: Tensor | None = None, sample: int = 0) -> None:
    """A frame, and a box on it."""
    picture = batch.values[sample].permute(1, 2, 0) + 0.5
    axes.imshow(picture.clamp(0, 1))
    axes.set(xticks=[], yticks=[])
    if box is not None:
        outline(axes, box, picture.shape[0])


def outline(axes: plt.Axes, box: Tensor, side: int, origin: float = 0) -> None:
    """A box in fractions on a square of `side` units."""
    (x, y), (w, h) = (box * side).view(2, 2).tolist()
    corner = (x - w / 2 + origin, y - h / 2 + origin)
    axes.add_patch(plt.Rectangle(corner, w, h, fill=False, color="white", linewidth=2.5))
    axes.add_patch(plt.Rectangle(corner, w, h, fill=False, color=COLOURS[1], linewidth=1.2))


def draw_frozen(spans: Batch, boxes: Batch, steps: int) -> Figure:
    """Total loss of DETR from scratch, and of DETR with the queries of a trained one, which stay as they are."""
    curves: dict[str, list[float]] = {}
    teacher = start("detr", spans)
    curves["learned (the teacher)"] = [float(losses.total.detach()) for _, losses in train(teacher, spans, steps)]
    student = start("detr", spans, seed=1)
    freeze_queries(teacher.detector.detr, student.detector.detr)
    curves["the teacher's, frozen"] = [float(losses.total.detach()) for _, losses in train(student, spans, steps)]
    other = start("detr", spans, seed=1)
    curves["learned, same start"] = [float(losses.total.detach()) for _, losses in train(other, spans, steps)]
    figure, axes = line_plot("DETR with learned and with frozen trained queries", "training step", "total loss")
    for name, values in curves.items():
        smooth = torch.tensor(values).unfold(0, 10, 10).mean(-1)
        axes.plot(torch.arange(len(smooth)) * 10 + 5, smooth, label=name)
    axes.set(yscale="log", yticks=[1, 2, 5, 10, 20], yticklabels=["1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.legend(title="queries (mean of 10 steps)")
    return figure


def draw_sampling(spans: Batch, boxes: Batch, steps: int) -> Figure:
    """Where the surest query of four frames reads, the larger the heavier."""
    learner = trained("deformable_detr_refine", boxes, steps)
    with torch.no_grad(), watch(learner.detector.detr.decoder) as glances:
        said = learner(boxes).last
    with torch.no_grad():
        points = sampling(glances[-1])
    figure, axes = plt.subplots(1, 4, figsize=(8, 2.7), layout="constrained")
    figure.suptitle(
        "Deformable attention of the surest query, last layer: its box, and a dot where a head reads, area by weight",
        fontsize=9,
    )
    for sample, place in enumerate(axes):
        query = int(said.logits[sample].amax(-1).argmax())
        frame(place, boxes, said.boxes[sample, query], sample)
        where = points.locations[sample, query].flatten(0, -2) * boxes.mask.shape[-1]
        weights = points.weights[sample, query].flatten()
        place.scatter(*where.T, s=150 * weights, c="white", edgecolors="black", linewidths=0.4)
        side = boxes.mask.shape[-1]
        place.set(xlim=(0, side), ylim=(side, 0))
        place.set_title(f"frame {sample + 1}", fontsize=8)
    return figure


def draw_offsets(spans: Batch, boxes: Batch, steps: int) -> Figure:
    """Mean distance of centres from each layer's anchor to the target that it should find."""
    figure, axes = line_plot(
        "From each layer's anchor to its target",
        "decoder layer",
        "mean distance of centres\n(% of the video's length)",
    )
    markers = iter("os^")
    for row, name in (("dab_detr", "DAB-DETR"), ("dn_detr", "DN-DETR"), ("dino", "DINO")):
        learner = trained(row, spans, steps)
        with torch.no_grad():
            output = learner(spans)
        offsets = anchor_offsets(output, matching(learner, spans), spans.targets)
        distance = 100 * offsets[..., 0].abs().mean(1)
        axes.plot(range(1, len(offsets) + 1), distance, marker=next(markers), label=name)
    axes.set(xticks=[1, 2, 3], ylim=(0, None))
    axes.legend()
    return figure


def draw_discriminability(spans: Batch, boxes: Batch, steps: int) -> Figure:
    """Foreground against background above each threshold; the further up and left, the better told apart."""
    figure, axes = plt.subplots(figsize=(4.6, 4.2))
    for row, name in (("deformable_detr_two_stage", "Deformable DETR"), ("co_deformable_detr", "Co-Deformable-DETR")):
        learner = trained(row, boxes, steps)
        with torch.no_grad():
            memory = learner.detector.neck(learner.stem(boxes.values), boxes.mask)
            assert learner.detector.detr.encoder is not None
            curve = discriminability(learner.detector.detr.encoder(memory), boxes.targets)
        axes.plot(100 * curve.background, 100 * curve.foreground, label=name)
    axes.plot([0, 100], [0, 100], color="grey", linestyle=":", label="not told apart")
    axes.set(
        title="Encoded features above a threshold (IoF-IoB)",
        xlabel="background cells above it (IoB, %)",
        ylabel="foreground cells above it (IoF, %)",
    )
    axes.grid(alpha=0.3)
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
        if figure.get_layout_engine() is None:
            figure.tight_layout()
        figure.savefig(options.folder / f"family_{name}.png", dpi=90)
        plt.close(figure)
        print(options.folder / f"family_{name}.png", flush=True)


if __name__ == "__main__":
    main()
