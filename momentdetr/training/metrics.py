"""One JSON object a line for everything that is measured, and a progress line for whoever watches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from momentdetr.errors import StoreError
from momentdetr.training.trackers import Trackers


class MetricsFile:
    """Appends to a .jsonl file; lines written after the step that a run resumes from are dropped first.

    Args:
        path: the file.
        steps_done: steps that the run has behind it.
    """

    def __init__(self, path: Path, steps_done: int) -> None:
        kept = []
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= steps_done]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._path = path

    def write(self, values: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            StoreError: the disk refuses.
        """
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise StoreError(
                f"{self._path} cannot be written ({error.strerror or error}); checkpoints are kept. Make room, then "
                "resume."
            ) from error


class RunMetrics:
    """The metrics of a run: its file, and whatever trackers are wanted.

    Args:
        folder: of the run; gets metrics.jsonl.
        steps_done: steps that the run has behind it.
        trackers: names, see `Trackers`.
        config: what they are told about the run.
        shown: whether anything is written; in a process group, the first process does.
    """

    def __init__(
        self, folder: Path, steps_done: int, trackers: Sequence[str], config: Mapping[str, Any], *, shown: bool
    ) -> None:
        self._file = MetricsFile(folder / "metrics.jsonl", steps_done) if shown else None
        self._trackers = Trackers(trackers, folder, config) if trackers else None

    def write(self, values: Mapping[str, Any]) -> None:
        if self._file:
            self._file.write(values)
        if self._trackers:
            self._trackers.log(values)

    def close(self) -> None:
        if self._trackers:
            self._trackers.close()


class ProgressLine:
    """A progress line on stderr with the time that is left; silent when not shown.

    Args:
        total: steps in all.
        done: steps already done.
        shown: whether to draw.
    """

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._progress.add_task("training", total=total, completed=done, text="")

    def __enter__(self) -> ProgressLine:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, text: str) -> None:
        self._progress.update(self._task, advance=1, text=text)

    def say(self, text: str) -> None:
        """A line of its own above the progress line."""
        self._progress.console.print(text, markup=False, highlight=False) if not self._progress.disable else None


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # cut off by a crash
        return float("inf")
