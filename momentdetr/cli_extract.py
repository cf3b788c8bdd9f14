"""The verb `extract`: features of a data set from raw video and annotated queries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from momentdetr.terminal import bytes_bar, progress_bar, say


def extract(
    videos: Annotated[
        list[Path] | None, typer.Argument(metavar="[VIDEOS]...", help="Video files, or folders of them.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the features; a run that was ended goes on there.")] = Path(
        "features"
    ),
    preset: Annotated[
        str, typer.Option(help="demo, clip-b32, clip-b16, clip-l14, or an encoder's folder.")
    ] = "clip-b32",
    annotations: Annotated[
        list[Path] | None, typer.Option(help="A .jsonl file whose queries are encoded, too; may be repeated.")
    ] = None,
    layout: Annotated[str, typer.Option(help="Names of files and folders, as published by ...")] = "moment_detr_clip",
    weights: Annotated[Path | None, typer.Option(help="The encoder's, where they are not found by themselves.")] = None,
    clip_length: Annotated[float | None, typer.Option(help="Seconds of video a vector; else the preset's.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="Stored as float32 or float16.")] = "float32",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 64,
    decoder: Annotated[str, typer.Option(help="auto, pyav or decord.")] = "auto",
    salvage: Annotated[bool, typer.Option("--salvage", help="Take the readable part of damaged videos.")] = False,
    engine: Annotated[str, typer.Option(help="local, or ray.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with an encoder of its own.")] = 1,
) -> None:
    """Make features in the published layout from VIDEOS, and from the queries of annotations."""
    from momentdetr.extraction.run import FAULTS
    from momentdetr.extraction.run import extract as run

    with bytes_bar(preset) as fetching, progress_bar("extracting", "files") as progress:
        done = run(
            videos or (),
            out,
            preset=preset,
            annotations=annotations or (),
            layout=layout,
            weights=weights,
            clip_length_s=clip_length,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            decoder=decoder,
            salvage=salvage,
            engine=engine,
            workers=workers,
            progress=progress,
            fetching=fetching,
        )
    for entry in (*done.made, *done.kept):
        if not entry.complete:
            say(f"warning: video {entry.name} is damaged; the features are of what could be read")
    for fault in done.faults:
        say(f"not extracted: {fault}")
    say(f"{len(done.made)} files made, {len(done.kept)} kept, {len(done.faults)} faults in all")
    print(done.folder)
    if done.faults:
        say(f"error: {len(done.faults)} videos or queries could not be extracted; see {done.folder / FAULTS}")
        raise typer.Exit(2)
