"""The command line: one function a verb, which calls one function of the package.

Data goes to stdout, all else to stderr. Everything heavy is imported inside the functions, so that `--help` is instant.
Exit codes: 0 done, 2 bad input, 4 the machine or the network is in the way, 130 interrupted, 1 a defect of ours.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from momentdetr.errors import BadInput, MomentDETRError

if TYPE_CHECKING:
    from momentdetr.search.results import SearchResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find the moments of a video that a sentence describes.",
)
weights_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Published weights: list, fetch, check, find."
)
app.add_typer(weights_app, name="weights")

DEMO_NOTE = (
    "note: the demo model knows moving coloured shapes only. "
    "For other videos: momentdetr weights list, then --model NAME."
)

Model = Annotated[str, typer.Option(help="'demo', a name of 'weights list', a model folder, or a checkpoint file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Encoder = Annotated[Path | None, typer.Option(help="The encoder's weights, where they are not found by themselves.")]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. Works behind any verb too.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from momentdetr import __version__

        print(__version__)
        raise typer.Exit()


@app.command()
def search(
    video: Annotated[Path, typer.Argument(help="Any video file.")],
    queries: Annotated[list[str], typer.Argument(metavar="QUERY...", help="What to find: one or several sentences.")],
    model: Model = "demo",
    top: Annotated[int, typer.Option(min=1, help="Moments per query, at most.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one row a moment.")] = False,
    as_srt: Annotated[bool, typer.Option("--srt", help="Print subtitles.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw frames, saliency and moments into this picture.")] = None,
    clips: Annotated[Path | None, typer.Option(help="Cut every moment into this folder.")] = None,
    device: Device = "auto",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither use nor keep features.")] = False,
    decoder: Annotated[str, typer.Option(help="auto, pyav or decord.")] = "auto",
    salvage: Annotated[bool, typer.Option("--salvage", help="Search the readable part of a damaged file.")] = False,
    encoder: Encoder = None,
) -> None:
    """Find the moments of VIDEO that each QUERY describes."""
    forms = [name for name, chosen in (("json", as_json), ("csv", as_csv), ("srt", as_srt)) if chosen]
    if len(forms) > 1:
        raise BadInput(f"--{' and --'.join(forms)} contradict each other: stdout takes one form, choose one")
    from momentdetr.features.encoder import check_queries
    from momentdetr.search.loading import DEMO, load

    check_queries(queries)
    _check_picture(plot)
    retriever = load(model, device, encoder=encoder, cache=not no_cache)
    if model == DEMO:
        _say(DEMO_NOTE)
    with _bar("encoding", "clips") as progress:
        encoded = retriever.encode(video, progress=progress, decoder=decoder, salvage=salvage)
    if not encoded.complete:
        _say(f"warning: {video} is damaged, only the readable part ({encoded.duration_s:.1f} s) was searched")
    with _bar("searching", "windows") as progress:
        result = retriever.search(encoded, queries, top, progress=progress)
    _show(result, forms[0] if forms else "table")
    # What was found is printed by now, whatever becomes of the files.
    _all_of(
        *([lambda: _say(f"picture: {result.plot(plot)}")] if plot is not None else []),
        *([lambda: _say(f"clips: {len(result.save_clips(clips))} in {clips}")] if clips is not None else []),
    )


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what works on this machine: versions, devices, decoders, weights."""
    from momentdetr.doctor import examine

    findings = examine()
    if as_json:
        _print_json([vars(finding) for finding in findings])
    else:
        _print_rows(("", "what", "found"), [("ok" if f.ok else "BAD", f.name, f.text) for f in findings])
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 4)


@weights_app.command("list")
def weights_list() -> None:
    """Name every published model, its licence and size, and whether it is here."""
    from momentdetr.weights import list_models

    rows = []
    for status in list_models():
        size = sum(file.file.size or file.file.about_bytes or 0 for file in status.files)
        licences = "; ".join(dict.fromkeys(file.file.licence for file in status.files))
        here = "yes" if status.ready else "no"
        rows.append((status.card.name, here, f"{size / 1e6:.0f} MB", status.card.what, licences, status.card.published))
    _print_rows(("name", "here", "size", "what", "licence", "published figures"), rows)


@weights_app.command("pull")
def weights_pull(name: Annotated[str, typer.Argument(help="A name of 'weights list'.")]) -> None:
    """Fetch the files of a model, resuming what was cut, and check them."""
    from momentdetr.weights import pull

    with _bar(name, "bytes") as progress:
        found = pull(name, lambda file, done, total: progress(done, total, file.filename))
    _print_paths(found)


@weights_app.command("verify")
def weights_verify(name: Annotated[str, typer.Argument(help="A name of 'weights list'.")]) -> None:
    """Hash the files of a model again and compare."""
    from momentdetr.weights import verify

    with _bar(name, "bytes") as progress:
        status = verify(name, lambda file, done, total: progress(done, total, file.filename))
    _print_rows(("file", "sha256", "digest"), [(f.file.filename, f.sha256, f.digest_origin) for f in status.files])


@weights_app.command("path")
def weights_path(name: Annotated[str, typer.Argument(help="A name of 'weights list'.")]) -> None:
    """Print where the files of a model are, one a line; never fetches."""
    from momentdetr.weights import path

    _print_paths(path(name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; every error ends here, as one message and an exit code.

    Args:
        arguments: None: those of the process.

    Returns:
        The exit code.
    """
    arguments, debug = _without_debug(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names and queries may hold what a terminal cannot show
    warnings.showwarning = _warn  # without the file and line of the code
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except MomentDETRError as error:
        return _failed(f"error: {error}", error.exit_code, debug)
    except KeyboardInterrupt:
        return _failed("interrupted", 130, debug)
    except BrokenPipeError:
        # Nobody reads any more (`| head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        hint = "" if debug else " This is a defect of momentdetr; --debug shows the traceback."
        return _failed(f"internal error: {type(error).__name__}: {error}.{hint}", 1, debug)


def _run(arguments: list[str]) -> int:
    try:
        app(arguments, prog_name="momentdetr")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def _without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Take --debug from wherever it stands before "--", so that it works behind any verb."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return [*kept, *arguments[end:]], len(kept) < end


def _failed(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    _say(message)
    return code


def _say(message: str) -> None:
    """A line for people, on stderr; control characters, which file names may hold, do not reach the terminal."""
    shown = "".join(c if c.isprintable() or c == "\n" else " " for c in message)
    print(shown, file=sys.stderr)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}")


def _all_of(*actions: Callable[[], None]) -> None:
    """Do all, then raise the first error: one that fails does not take the others along."""
    failures = []
    for action in actions:
        try:
            action()
        except MomentDETRError as error:
            failures.append(error)
    for later in failures[1:]:
        _say(f"error: {later}")
    if failures:
        raise failures[0]


def _check_picture(path: Path | None) -> None:
    if path is not None:
        from momentdetr.search.plots import check_format

        check_format(path)


def _show(result: SearchResult, form: str) -> None:
    if form == "table":
        from momentdetr.search.table import table

        _console().print(table(result))
    else:
        sys.stdout.write({"json": result.to_json, "csv": result.to_csv, "srt": result.to_srt}[form]())
    sys.stdout.flush()


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False)


def _print_rows(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*header, box=box.SIMPLE_HEAD)
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    _console().print(drawn)


def _print_json(document: object) -> None:
    import json

    print(json.dumps(document, ensure_ascii=False, indent=2))


def _print_paths(found: Any) -> None:
    for path in (found.encoder, found.retriever):
        if path is not None:
            print(path)


@contextmanager
def _bar(label: str, unit: str) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr that appears with the first step: (done, total, what) moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=_console(stderr=True))
    tasks: dict[str, Any] = {}

    def step(done: int, total: int | None = None, what: str = label) -> None:
        if not tasks:
            bar.start()
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done, total=total)

    try:
        yield step
    finally:
        if tasks:
            bar.stop()
