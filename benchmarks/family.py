"""Every row of the family learns eight samples of the moving-shapes world by heart, as boxes and as spans.

    python benchmarks/family.py [--rows dino detr ...] [--dims 1 2] [--max-steps 2000] [--json FILE]
    python benchmarks/family.py --show FILE

A row passes when AP at IoU 0.5 on its eight samples reaches .8 within the steps and every trained parameter has had a
gradient, but for those that no loss can move, which are named with the reason. Boxes (D = 2): the shapes of a frame of
each video. Spans (D = 1): the events of each video, one small picture a clip. All rows have width 64, two encoder and
three decoder layers, 20 queries, the same stem (three convolutions, trained along), AdamW at 5e-4 and gradients clipped
to norm 0.1 (DETR's); nothing is tuned row by row. Prints one line a row; with --json adds it to FILE as it is done.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from family_samples import CHANNELS, Batch, Stem, average_precision, make_batch
from torch import Tensor, nn

from momentdetr.demo.vocabulary import SHAPES
from momentdetr.detr import systems, systems_hybrid
from momentdetr.detr.assembly import Sizes, Task
from momentdetr.detr.losses import Losses
from momentdetr.detr.model import Detector
from momentdetr.detr.systems_hybrid import Heads
from momentdetr.detr.types import Output

GOAL, LEARNING_RATE, WARM_UP, CLIP = 0.8, 5e-4, 50, 0.1
WIDTH = 64
SIZES = Sizes(WIDTH, 4, 128, encoder_layers=2, decoder_layers=3, num_queries=20, num_levels=3, group_norm=8)
HEADS = Heads(hidden=WIDTH, proposals=50, per_level=100, anchors=64, regions=32, most=20)
STRIDE = {1: 1.0, 2: 8.0}
"""Input cells per cell of the finest map, for one-to-many heads."""

Row = Callable[[Task], Detector]


def with_heads(row: Callable[..., Detector], task: Task, sizes: Sizes) -> Detector:
    return row(task, sizes, heads=replace(HEADS, stride=STRIDE[task.num_dims]))


def deformable(**options: bool) -> Row:
    return lambda task: systems.deformable_detr(task, SIZES, **options)


ROWS: dict[str, Row] = {
    "detr": lambda task: systems.detr(task, SIZES),
    "detr_pre_norm": lambda task: systems.detr(task, SIZES, pre_norm=True),
    "detr_dc5": lambda task: systems.detr(task, SIZES),  # its stem is dilated
    "conditional_detr": lambda task: systems.conditional_detr(task, SIZES),
    "deformable_detr_single_scale": lambda task: systems.deformable_detr(task, replace(SIZES, num_levels=1)),
    "deformable_detr": deformable(),
    "deformable_detr_refine": deformable(refine=True),
    "deformable_detr_two_stage": deformable(refine=True, two_stage=True),
    "dab_detr": lambda task: systems.dab_detr(task, SIZES),
    "dab_detr_patterns": lambda task: systems.dab_detr(task, SIZES, num_patterns=3),
    "dab_deformable_detr": lambda task: systems.dab_deformable_detr(task, SIZES),
    "dn_detr": lambda task: systems.dn_detr(task, SIZES),
    "dn_detr_patterns": lambda task: systems.dn_detr(task, SIZES, num_patterns=3),
    "dn_deformable_detr": lambda task: systems.dn_deformable_detr(task, SIZES),
    "dn_dino": lambda task: systems.dn_dino(task, SIZES),
    "dino": lambda task: systems.dino(task, SIZES),
    "dino_more_levels": lambda task: systems.dino(task, replace(SIZES, num_levels=4)),
    "dino_unshared": lambda task: systems.dino(task, SIZES, shared_classes=False, shared_boxes=False),
    "dino_one_stage": lambda task: systems.dino(task, SIZES, two_stage=False),
    "co_deformable_detr": partial(with_heads, systems_hybrid.co_deformable_detr, sizes=SIZES),
    "co_dino": partial(with_heads, systems_hybrid.co_dino, sizes=SIZES),
}

UNMOVED = {
    r".*\.key(_content|_position)?\.bias": "a key's bias shifts all scores of a softmax alike",
    r"detector\.detr\.decoder\.layers\.0\.self_attention\.(query|key|value)(_content|_position)?\.\w+": (
        "the first self-attention mixes contents that are all zero"
    ),
    r"detector\.detr\.decoder\.layers\.0\.norm_self\.weight": "it scales contents that are all zero",
}
"""What no loss can move, and why."""


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Args:
        row: its name in ROWS.
        num_dims: D.
        steps: after which AP50 was first seen to reach the goal; None: never.
        ap50: then, or after the last step.
        taken: steps in all.
        parameters: trained numbers, the stem's among them.
        unmoved: trained parameters without gradient -> why; "" where nobody knows.
        first_loss: at the first step.
        last_loss: at the last step.
        seconds: on the wall.
    """

    row: str
    num_dims: int
    steps: int | None
    ap50: float
    taken: int
    parameters: int
    unmoved: dict[str, str]
    first_loss: float
    last_loss: float
    seconds: float

    @property
    def passed(self) -> bool:
        return self.steps is not None and all(self.unmoved.values())


class Learner(nn.Module):
    """A row with its stem."""

    def __init__(self, row: str, num_dims: int, channels_in: int) -> None:
        super().__init__()
        self.stem = Stem(num_dims, channels_in, dilated=row == "detr_dc5")
        self.detector = ROWS[row](Task(num_dims, CHANNELS, len(SHAPES)))
        self.softmax = row.startswith("detr")

    def forward(self, batch: Batch) -> Output:
        return self.detector(self.stem(batch.values), batch.mask)

    def loss(self, batch: Batch, generator: torch.Generator) -> Losses:
        return self.detector.loss(self.stem(batch.values), batch.mask, batch.targets, generator=generator)

    @torch.no_grad()
    def ap50(self, batch: Batch) -> float:
        """Average precision, evaluated as at inference."""
        said = self.eval()(batch).last
        self.train()
        scores = said.logits.softmax(-1)[..., :-1] if self.softmax else said.logits.sigmoid()
        return average_precision(scores, said.boxes, batch.targets)


def start(row: str, batch: Batch, seed: int = 0) -> Learner:
    """A fresh row for a batch."""
    torch.manual_seed(seed)
    return Learner(row, batch.mask.dim() - 1, batch.values.shape[1])


def train(learner: Learner, batch: Batch, max_steps: int, seed: int = 0) -> Iterator[tuple[int, Losses]]:
    """Step after step, each given out before its gradients are forgotten."""
    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, max_steps + 1):
        losses = learner.loss(batch, generator)
        optimizer.zero_grad()
        losses.total.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()
        yield step, losses


def learn(row: str, batch: Batch, max_steps: int, *, every: int = 50) -> Result:
    """Train one row until AP50 reaches the goal, looking every so many steps."""
    learner, began = start(row, batch), time.perf_counter()
    waiting = {name for name, p in learner.named_parameters() if p.requires_grad}
    first = last = ap50 = 0.0
    steps, taken = None, 0
    for taken, losses in train(learner, batch, max_steps):
        last = float(losses.total.detach())
        first = first or last
        if taken > 1:  # in the first step, heads that start at zero hide what lies behind them
            waiting -= moved(learner, waiting)
        if taken % every == 0 or taken == max_steps:
            ap50 = learner.ap50(batch)
            if ap50 >= GOAL:
                steps = taken
                break
    parameters = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    seconds = round(time.perf_counter() - began, 1)
    unmoved = {name: reason(name) for name in sorted(waiting)}
    num_dims = batch.mask.dim() - 1
    return Result(row, num_dims, steps, round(ap50, 3), taken, parameters, unmoved, first, last, seconds)


def moved(learner: Learner, names: set[str]) -> set[str]:
    """Which of these parameters have a gradient beyond rounding: a millionth of the root mean square of all."""
    gradients: dict[str, Tensor] = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    typical = torch.cat([gradient.flatten() for gradient in gradients.values()]).pow(2).mean().sqrt()
    return {name for name in names & gradients.keys() if gradients[name].abs().max() > 1e-6 * typical}


def reason(name: str) -> str:
    """Why no loss can move a parameter; "" if nobody knows."""
    return next((why for pattern, why in UNMOVED.items() if re.fullmatch(pattern, name)), "")


def table(results: Sequence[Result]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield "| row | D | steps to AP50 >= .8 | AP50 | parameters | without gradient | unexplained | loss | seconds |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for r in results:
        steps = f"{r.steps}" if r.steps is not None else f"**not in {r.taken}**"
        strange = ", ".join(name for name, why in r.unmoved.items() if not why) or "-"
        yield (
            f"| {r.row} | {r.num_dims} | {steps} | {r.ap50:.3f} | {r.parameters:,} | {len(r.unmoved)} | {strange} "
            f"| {r.first_loss:.1f} -> {r.last_loss:.1f} | {r.seconds:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--dims", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    parser.add_argument("--max-steps", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="append each result to this file as it is done")
    parser.add_argument("--show", type=Path, help="print the table of a file that --json wrote, and train nothing")
    options = parser.parse_args()
    if options.show:
        lines = options.show.read_text().splitlines()
        print("\n".join(table([Result(**json.loads(line)) for line in lines])))
        return
    print("\n".join(table([])), flush=True)
    for num_dims in options.dims:
        batch = make_batch(num_dims)
        for row in options.rows:
            result = learn(row, batch, options.max_steps)
            print(*list(table([result]))[2:], flush=True)
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    main()
