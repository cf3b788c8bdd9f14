"""What official data loaders feed their models, against ours."""

from __future__ import annotations

from pathlib import Path

from parity.comparison import Row


def check(path: Path) -> list[Row]:
    return []
