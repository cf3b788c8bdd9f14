"""TensorBoard, Weights & Biases, trackio and others, through accelerate; none of them is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from momentdetr.errors import BadInput


class Trackers:
    """Passes numbers on.

    Args:
        names: "tensorboard", "wandb", "trackio", ...: accelerate's names.
        folder: of the run; its name is the run's, and what is written locally goes to its `trackers`.
        config: of the run, plain values.

    Raises:
        BadInput: accelerate or the tracker is not installed, or accelerate does not know it.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> None:
        self._trackers = [_open(name, folder) for name in names]
        for tracker in self._trackers:
            tracker.store_init_configuration(_flat(config, keep=(int, float, str, bool)))

    def log(self, values: Mapping[str, Any]) -> None:
        """Numbers of nested values, under names such as "terms/class"; "step" is their step."""
        numbers = _flat({key: value for key, value in values.items() if key != "step"}, keep=(int, float))
        for tracker in self._trackers:
            tracker.log(numbers, step=values["step"])

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.finish()


def _open(name: str, folder: Path) -> Any:
    try:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    except ImportError as error:
        raise BadInput(f"trackers: {name!r} needs accelerate; pip install accelerate {name}") from error
    known = sorted(str(tracker) for tracker in LOGGER_TYPE_TO_CLASS)
    if name not in known:
        raise BadInput(f"trackers: {name!r} is not known to accelerate; it knows {', '.join(known)}")
    if name not in [str(tracker) for tracker in get_available_trackers()]:
        raise BadInput(f"trackers: {name!r} is not installed; pip install {name}")
    kind = LOGGER_TYPE_TO_CLASS[name]
    tracker = kind(folder.name, str(folder / "trackers")) if kind.requires_logging_directory else kind(folder.name)
    if hasattr(tracker, "start"):
        tracker.start()
    return tracker


def _flat(values: Mapping[str, Any], *, keep: tuple[type, ...], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, keep=keep, before=f"{before}{key}/")
        elif isinstance(value, keep):
            found[before + key] = value
    return found
