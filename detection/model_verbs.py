"""The verbs `predict` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detection.data_verbs import print_json, progress_bar, say
from momentdetr.errors import BadInput


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(predict)
    app.command()(export)


def predict(
    sources: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Images, folders of images, or videos.")],
    model: Annotated[Path, typer.Option(help="A model folder, or the folder of a run.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Leave out what is less sure.")] = 0.3,
    fps: Annotated[float, typer.Option(help="Frames a second of a video that are looked at.")] = 2.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print all answers on stdout.")] = False,
) -> None:
    """Detect in IMAGES and draw what is found into copies in OUT."""
    from detection.predicting import predict_all
    from detection.predictor import load

    predictor = load(model, device)
    with progress_bar("images") as progress:
        answers, problems = predict_all(predictor, sources, out, threshold=threshold, fps=fps, progress=progress)
    for problem in problems:
        say(f"left out: {problem}")
    if as_json:
        print_json([{"image": answer.name, "time_s": answer.time_s, **answer.found.to_dict()} for answer in answers])
    say(f"{sum(len(answer.found) for answer in answers)} detections in {len(answers)} images, written to {out}")
    if problems:
        raise typer.Exit(BadInput.exit_code)


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, or the folder of a run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    images: Annotated[list[Path] | None, typer.Option("--check", help="Compare the answers on this image too.")] = None,
    tolerance: Annotated[float, typer.Option(help="The greatest difference of a score that passes.")] = 1e-3,
    verify: Annotated[bool, typer.Option(help="Compare with torch in onnxruntime.")] = True,
) -> None:
    """Write MODEL as ONNX, with images of any number and size, and compare its answers with torch's."""
    from detection.export import export_onnx, verify_onnx
    from detection.predictor import load, pixels_of

    predictor = load(model, "cpu")
    pictures = [predictor.prepared(pixels_of(path)) for path in images or []]
    export_onnx(predictor, out)
    if predictor.model.suppress is not None:
        say("note: soft suppression of overlapping answers is not part of the file; the model has it in Python")
    if verify:
        found = verify_onnx(predictor, out, pictures)
        say(f"{found.images} images compared: scores differ by {found.scores:.1e}, boxes by {found.boxes:.1e}")
        if not found.scores <= tolerance:
            raise BadInput(f"{out}: scores differ by {found.scores:.1e}, expected at most {tolerance:g}; do not use it")
    say(f"written to {out}")
