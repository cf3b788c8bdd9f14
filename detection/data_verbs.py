"""The verbs `data check`, `data convert` and `score`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from momentdetr.errors import BadInput

if TYPE_CHECKING:
    from detection.data.check import Progress
    from detection.data.records import SplitReport
    from detection.scoring import DetectionScores, Kind

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Data sets: check, convert.")

SkipBad = Annotated[
    str, typer.Option(metavar="N%", help="Leave out what is wrong, if it is at most N% of images and of annotations.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]

_SHOWN = 50


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.add_typer(data_app, name="data")
    app.command()(score)


@data_app.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A COCO-format folder, or its JSON file.")],
    skip_bad: SkipBad = "0%",
    headers: Annotated[bool, typer.Option("--headers", help="Read only the heads of the image files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what PATH holds and everything that is wrong with it. Ends with 2 where it cannot be trained on."""
    from detection.data.check import check as check_data
    from detection.data.check import summary

    allowed = percentage(skip_bad)
    with progress_bar("images") as progress:
        reports = check_data(path, verify="header" if headers else "decode", progress=progress)
    if as_json:
        print_json([summary(report) for report in reports])
    else:
        for report in reports:
            _print_summary(summary(report))
    refused = [report.name for report in reports if not _usable(report, allowed)]
    if refused:
        say(f"error: not usable as it is: {', '.join(refused)}")
        raise typer.Exit(BadInput.exit_code)


@data_app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder of YOLO's or Pascal VOC's layout.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The COCO-format folder to make.")],
    layout: Annotated[str | None, typer.Option(help="yolo or voc, where it is not seen.")] = None,
    names: Annotated[Path | None, typer.Option(help="Names of the classes, one a line, in order.")] = None,
    origin: Annotated[int, typer.Option(help="VOC: the first pixel is number 1 (as VOC says) or 0.")] = 1,
    skip_bad: SkipBad = "0%",
    link: Annotated[bool, typer.Option("--link", help="Hard links to the images instead of copies.")] = False,
) -> None:
    """Write SRC as the COCO-format folder OUT."""
    from detection.data.convert import convert_data

    with progress_bar("images") as progress:
        reports = convert_data(
            source,
            out,
            layout=layout,
            names=_lines(names),
            origin=origin,
            skip_bad=percentage(skip_bad),
            link=link,
            progress=progress,
        )
    for report in reports:
        boxes = sum(len(record.instances) for record in report.records)
        say(f"{out / report.name}: {len(report.records)} images, {boxes} boxes, {len(report.classes)} classes")
        for remark in report.remarks:
            say(f"  {remark}")
        if report.faults:
            say(f"  left out, see {out / 'skipped.json'}: {len(report.faults)} faults")


def score(
    detections: Annotated[Path, typer.Argument(metavar="DETECTIONS", help="JSON in COCO's result format.")],
    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="JSON in COCO's annotation format.")],
    kind: Annotated[
        str | None, typer.Option(help="bbox or segm; else boxes, or masks where there are no boxes.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print COCO's twelve figures and the average precision of each class, as fractions."""
    from detection.scoring import score as score_files

    if kind not in (None, "bbox", "segm"):
        raise BadInput(f"--kind is {kind!r}, expected bbox or segm")
    scores = score_files(detections, annotations, kind=cast("Kind | None", kind))
    show_scores(scores, as_json)


def show_scores(scores: DetectionScores, as_json: bool) -> None:
    """The figures on stdout, as JSON or as a table; what must be known about them on stderr."""
    for note in scores.notes:
        say(f"note: {note}")
    if as_json:
        print_json(scores.to_dict())
        return
    for name, value in scores.figures.items():
        print(f"{name:6} {value:.4f}" if value >= 0 else f"{name:6} -1 (nothing to find)")
    print("AP per class:")
    for name, value in scores.per_class.items():
        print(f"  {value:.4f} {plain(name)}")


def percentage(text: str) -> float:
    """ "2%" or "2" as 2.0.

    Raises:
        BadInput: not a percentage.
    """
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise BadInput(f"--skip-bad is {text!r}, expected a percentage of 0% to 100%")
    return value


def _usable(report: SplitReport, allowed: float) -> bool:
    try:
        report.require(allowed)
    except BadInput:
        return False
    return True


def _print_summary(found: Mapping[str, Any]) -> None:
    sides = found["long_side"]
    print(f"{plain(found['split'])} ({plain(found['annotations_file'])})")
    print(f"  images       {found['images']}, usable {found['usable_images']}")
    print(f"  no targets   {found['images_without_targets']} images (kept)")
    print(f"  boxes        {found['boxes']}, crowds {found['crowds']}")
    if sides:
        print(f"  long side    {sides[0]} to {sides[2]} pixels, median {sides[1]}")
    print("  classes      label, category id, boxes, name")
    for one in found["classes"]:
        print(f"  {one['label']:12} {one['category_id']:5} {one['boxes']:7}  {plain(one['name'])}")
    for remark in found["remarks"]:
        print(f"  remark: {plain(remark)}")
    faults = found["faults"]
    print(f"  faults       {len(faults)}")
    for one in faults[:_SHOWN]:
        print(f"    {plain(one['where'])}: {plain(one['text'])}")
    if len(faults) > _SHOWN:
        print(f"    and {len(faults) - _SHOWN} more (--json lists all)")


def _lines(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); give a text file of one name a line") from error


def print_json(document: object) -> None:
    """A document on stdout."""
    import json

    print(json.dumps(document, ensure_ascii=False, indent=2))


def plain(text: str) -> str:
    """Without control characters, which names may hold."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def say(message: str) -> None:
    """A line on stderr."""
    print(plain(message), file=sys.stderr)


@contextmanager
def progress_bar(unit: str) -> Iterator[Progress]:
    """A bar on stderr that appears with the first step."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    bar = Bar(console=Console(stderr=True, highlight=False, markup=False), transient=True)
    task = bar.add_task(unit, total=None)

    def step(done: int, total: int) -> None:
        if not bar.live.is_started:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield step
    finally:
        if bar.live.is_started:
            bar.stop()
