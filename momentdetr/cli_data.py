"""The verbs about data sets and scores; see `cli` for the rules that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from momentdetr.terminal import print_json, print_scores, say

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Data sets: check them before training.")


def score(
    predictions: Annotated[Path, typer.Argument(help="A .jsonl file in the format of QVHighlights submissions.")],
    ground_truth: Annotated[Path, typer.Argument(help="The annotations, a file of the protocol's data set.")],
    protocol: Annotated[
        str, typer.Option(help="qvhighlights, charades, tacos, activitynet, tvsum or youtube.")
    ] = "qvhighlights",
    nms: Annotated[float | None, typer.Option(help="Score again after temporal NMS at this overlap.")] = None,
    domain: Annotated[str | None, typer.Option(help="Only this kind of video (tvsum, youtube).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all scores, in the official script's form.")] = False,
    strict_official: Annotated[
        bool, typer.Option("--strict-official", help="Fail and leave out what the official script fails on.")
    ] = False,
) -> None:
    """Score PREDICTIONS against GROUND_TRUTH as the official scripts do."""
    from momentdetr.retrieval.scoring import score as score_files

    scored = score_files(
        predictions, ground_truth, protocol_name=protocol, nms=nms, strict_official=strict_official, domain=domain
    )
    for note in scored.raw.notes:
        say(f"note: {note}")
    (print_json if as_json else print_scores)(scored.to_dict() if as_json else scored.headline())


@data_app.command("check")
def data_check(
    path: Annotated[
        Path, typer.Argument(help="A training configuration, or a data set's folder with a manifest.json.")
    ],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Read so many videos and queries a split only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check annotations, splits and features: coverage, dimensions, clock, normalisation, leaks."""
    from momentdetr.retrieval.data_check import check_data

    report = check_data(path, overrides=tuple(settings or ()), sample=sample)
    print_json(report.to_dict()) if as_json else print("\n".join(report.lines()))
    raise typer.Exit(2 if report.faults else 0)
