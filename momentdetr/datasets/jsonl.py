"""Reads files of one JSON object a line, and names every line that is not one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from momentdetr.datasets.records import Fault
from momentdetr.errors import BadInput


@dataclass(frozen=True)
class JsonLines:
    """What a file holds.

    Args:
        objects: (line, object), lines from 1.
        faults: lines that are no JSON object.
        remarks: what is odd but harmless.
    """

    objects: tuple[tuple[int, dict[str, Any]], ...]
    faults: tuple[Fault, ...]
    remarks: tuple[str, ...]


def read_json_lines(path: str | Path) -> JsonLines:
    """Read a .jsonl file; a byte order mark, CRLF and empty lines are accepted.

    Raises:
        BadInput: the file is missing, is not UTF-8 text, or holds nothing.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a .jsonl file") from error
    remarks = []
    if data.startswith(b"\xef\xbb\xbf"):
        remarks.append("starts with a byte order mark")
    if b"\r\n" in data:
        remarks.append("lines end in CRLF")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from error
    objects, faults = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            value = _object(line)
            if isinstance(value, str):
                faults.append(Fault(number, value))
            else:
                objects.append((number, value))
    if not objects and not faults:
        raise BadInput(f"{path}: is empty; expected one JSON object a line")
    return JsonLines(tuple(objects), tuple(faults), tuple(remarks))


def is_number(value: object) -> bool:
    """Whether a value is a number that fits a machine's numbers; NaN and infinity do, truth values do not."""
    if isinstance(value, bool):
        return False
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def are_numbers(values: list[Any]) -> bool:
    """Whether `is_number` holds for each; fast for the usual lists of floats only or of whole numbers only."""
    kinds = set(map(type, values))
    if kinds <= {float}:
        return True
    if kinds == {int}:
        return max(values) < 2**63 and min(values) > -(2**63)
    return all(map(is_number, values))


def _object(line: str) -> dict[str, Any] | str:
    """The object, or in words why it is none."""
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        return f"is not JSON ({error})"
    return value if isinstance(value, dict) else f"is {type(value).__name__}, expected a JSON object"
