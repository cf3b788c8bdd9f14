"""The verbs `train` and `evaluate`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detection.data_verbs import SkipBad, percentage, progress_bar, say, show_scores
from momentdetr.errors import BadInput

if TYPE_CHECKING:
    from detection.recipes import DetectionConfig


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(train)
    app.command()(evaluate)


def train(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="A file as in configs/detection; or else --data.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="A COCO-format folder to train on, instead of CONFIG.")] = None,
    model: Annotated[
        str, typer.Option(help="With --data: a model folder to begin with, or a system's name, such as dino.")
    ] = "dino",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one value; may be given again.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the run.")] = Path("runs/detection"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    skip_bad: SkipBad = "0%",
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Train a detector, by CONFIG or on the folder --data."""
    from detection.train import train as train_config
    from momentdetr.training.config import load_config

    if (config is None) == (data is None):
        raise BadInput("give either a CONFIG or --data FOLDER")
    if config is not None:
        from detection.recipes import DetectionConfig

        changes = [*(overrides or []), *([f"data.skip_bad={percentage(skip_bad)}"] if skip_bad != "0%" else [])]
        recipe: DetectionConfig = load_config(DetectionConfig, config, changes)
    else:
        from detection.finetune import recipe_for

        assert data is not None
        recipe, told = recipe_for(data, model, overrides or [], skip_bad=percentage(skip_bad))
        if _first():
            for line in told:
                say(line)
    done = train_config(recipe, output, resume=resume, progress=sys.stderr.isatty(), say=say)
    if not _first():
        return
    say(f"{done.steps} steps ({done.skipped} skipped); the model is in {done.folder}")
    if done.scores is not None:
        show_scores(done.scores, as_json)


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, or the folder of a run.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A COCO-format folder, or its JSON file.")],
    split: Annotated[str | None, typer.Option(help="Which split; else val, or the only one.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once; more than one are padded.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the detections into this JSON file.")] = None,
    skip_bad: SkipBad = "0%",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Score MODEL on the images of DATA."""
    from detection.predictor import evaluate_on, load

    with progress_bar("images") as progress:
        scores, notes = evaluate_on(
            load(model, device),
            data,
            split,
            batch_size=batch,
            workers=workers,
            skip_bad=percentage(skip_bad),
            detections=out,
            progress=progress,
        )
    for note in notes:
        say(f"note: {note}")
    show_scores(scores, as_json)


def _first() -> bool:
    """Whether this process is the one that speaks, where torchrun has started several."""
    return os.environ.get("RANK", "0") == "0"
