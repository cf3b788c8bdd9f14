"""Annotation files that are one JSON object, video -> what is said of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from momentdetr.datasets.jsonl import is_number
from momentdetr.datasets.lines import short
from momentdetr.errors import BadInput


def read_entries(path: str | Path) -> dict[str, Any]:
    """The object that a .json file holds.

    Raises:
        BadInput: missing, not JSON, no object, a name twice, or empty.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(entries, dict) or not entries:
        raise BadInput(f"{path}: holds {short(entries)}, expected an object of videos")
    return entries


def pairs_and_sentences(entry: Mapping[str, Any]) -> list[tuple[tuple[float, float], str]] | str:
    """("timestamps", "sentences") of one video, side by side, or in words what is wrong with them."""
    times, sentences = entry.get("timestamps"), entry.get("sentences")
    if not isinstance(times, list) or not isinstance(sentences, list) or len(times) != len(sentences):
        return "needs as many timestamps as sentences"
    if not all(isinstance(sentence, str) for sentence in sentences):
        return "sentences must be text"
    if not all(isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) for pair in times):
        return f"timestamps is {short(times)}, expected [[start, end], ...]"
    return [((float(a), float(b)), sentence) for (a, b), sentence in zip(times, sentences, strict=True)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found
