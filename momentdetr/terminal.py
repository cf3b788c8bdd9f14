"""What the command line shows: messages and progress on stderr, data on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from momentdetr.errors import MomentDETRError

if TYPE_CHECKING:
    from momentdetr.demo.run import Demo
    from momentdetr.search.results import SearchResult


def say(message: str) -> None:
    """A line for people, on stderr; control characters, which file names may hold, do not reach the terminal."""
    shown = "".join(c if c.isprintable() or c == "\n" else " " for c in message)
    print(shown, file=sys.stderr)


def warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Stands in for `warnings.showwarning`: the message without the file and line of the code."""
    say(f"warning: {message}")


def show(result: SearchResult, form: str) -> None:
    """Print a result on stdout as "table", "json", "csv" or "srt"."""
    if form == "table":
        from momentdetr.search.table import table

        _console().print(table(result))
    else:
        sys.stdout.write({"json": result.to_json, "csv": result.to_csv, "srt": result.to_srt}[form]())
    sys.stdout.flush()


def show_demo(made: Demo) -> None:
    """Print the demo's answers beside the truth."""
    from rich import box
    from rich.table import Table

    from momentdetr.search.formats import timestamp

    def spans(windows: Sequence[tuple[float, float]]) -> str:
        return "\n".join(f"{timestamp(start)} - {timestamp(end)}" for start, end in windows) or "not in the video"

    drawn = Table("query", "true", "found", "score", "", box=box.SIMPLE_HEAD)
    for row in made.rows:
        found = spans([row.found_s] if row.found_s else [])
        drawn.add_row(row.query, spans(row.truth_s), found, f"{row.score:.2f}", "right" if row.right else "WRONG")
    _console().print(drawn)


def print_json(document: object) -> None:
    """Print plain values on stdout as JSON."""
    print(json.dumps(document, ensure_ascii=False, indent=2))


def print_scores(scores: Mapping[str, Any], indent: str = "") -> None:
    """Print nested figures on stdout, a line each."""
    for name, value in scores.items():
        if isinstance(value, Mapping):
            print(f"{indent}{name}:")
            print_scores(value, indent + "  ")
        else:
            print(f"{indent}{name}: {value}")


def do_all(*actions: Callable[[], None]) -> None:
    """Do all, then raise the first error: one that fails does not take the others along."""
    failures = []
    for action in actions:
        try:
            action()
        except MomentDETRError as error:
            failures.append(error)
    for later in failures[1:]:
        say(f"error: {later}")
    if failures:
        raise failures[0]


@contextmanager
def progress_bar(label: str, unit: str) -> Iterator[Callable[..., None]]:
    """A bar on stderr that appears with the first step; `step(done, total, what)` moves the bar of `what`."""
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


@contextmanager
def bytes_bar(label: str) -> Iterator[Callable[[Any, int, int | None], None]]:
    """A bar on stderr per file that is fetched or hashed, as `momentdetr.weights` reports it."""
    with progress_bar(label, "bytes") as step:
        yield lambda file, done, total: step(done, total, file.filename)


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False)
