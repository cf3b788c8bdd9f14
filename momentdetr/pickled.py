"""Read third-party checkpoints without running anything that is in them."""

from __future__ import annotations

import argparse
import collections
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from momentdetr.errors import BadCheckpoint


def _allowed() -> list[Any]:
    """What official checkpoints hold besides tensors. Nothing else is ever built."""
    scalar = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        collections.Counter,
        collections.defaultdict,
        (collections.OrderedDict, "easydict.EasyDict"),  # Lighthouse pickles its options with it; a mapping is enough
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")),
    ]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a `.ckpt` or `.pth` of the field.

    Args:
        path: a file written by `torch.save`.

    Returns:
        Its content; "model" (a state dict) and usually "opt" or "args" (plain data) among the keys.

    Raises:
        BadCheckpoint: missing, empty, a web page, a large-file pointer, damaged, or asks for code to be run.
    """
    try:
        head = path.open("rb").read(64)
    except OSError as error:
        raise BadCheckpoint(f"cannot read {path}: {error.strerror}") from error
    _refuse_impostor(path, head)
    try:
        with torch.serialization.safe_globals(_allowed()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for damaged files, none of which names the file
        raise BadCheckpoint(
            f"{path} cannot be loaded: {_reason(error)}. Expected a checkpoint of the DETR family, written by "
            "torch.save; a damaged one must be downloaded again"
        ) from error
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path} holds a {type(content).__name__}, expected a dictionary with a 'model' entry")
    return content


def _refuse_impostor(path: Path, head: bytes) -> None:
    if not head:
        raise BadCheckpoint(f"{path} is empty; download it again")
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise BadCheckpoint(f"{path} is a web page, not a checkpoint; the download link asked for a click or expired")
    if start.startswith(b"version https://git-lfs"):
        raise BadCheckpoint(
            f"{path} is a pointer to a large file, not the file; fetch it with git lfs or from the page"
        )


def _reason(error: Exception) -> str:
    """What was wrong, in one clause; torch's own words are a page, and end in advice to load it unsafely."""
    text = str(error)
    asked = re.search(r"GLOBAL (\S+)", text)
    if asked:
        return f"it asks for {asked[1]}, which is code, not data"
    if "zip archive" in text:
        return "it ends too early"
    return "it is not what torch.save writes"


def plain_options(content: dict[str, Any]) -> dict[str, Any]:
    """The options that a checkpoint was trained with, as a dictionary; empty where it stores none."""
    options = content.get("opt", content.get("args", {}))
    if isinstance(options, argparse.Namespace):
        return vars(options)
    return dict(options) if isinstance(options, dict) else {}
