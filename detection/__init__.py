"""Image detection on COCO-format data: the family with D = 2."""

from __future__ import annotations

from typing import Any

__all__ = ["convert", "load"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name == "load":
        from detection.predictor import load

        return load
    if name == "convert":
        from detection.convert import convert

        return convert
    raise AttributeError(f"module 'detection' has no attribute {name!r}")
