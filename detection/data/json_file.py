"""JSON documents and the plain values in them, mistrusted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from momentdetr.errors import BadInput


def read_json(path: str | Path) -> Any:
    """What a JSON file holds; NaN and infinity, which are not JSON, come as floats to be found where they stand.

    Raises:
        BadInput: missing, unreadable, or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a JSON file") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not JSON ({error}); give a whole file") from error


def number(value: object) -> float | None:
    """A finite number as a float; None for anything else, truth values and NaN included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def whole_number(value: object) -> int | None:
    """An integer, also one that is written 3.0; None for anything else."""
    found = number(value)
    if found is None or not found.is_integer() or abs(found) >= 2**63:
        return None
    return value if isinstance(value, int) else int(found)


def box_of(value: object) -> tuple[float, float, float, float] | None:
    """COCO's x, y, width, height, if they are four finite numbers."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return None
    found = [number(part) for part in value]
    x, y, width, height = found
    if x is None or y is None or width is None or height is None:
        return None
    return x, y, width, height


def shown(value: object, limit: int = 60) -> str:
    """A value of a file in a message: short, and one line."""
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."
