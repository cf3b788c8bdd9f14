"""What lies in a folder of goldens: recognised by content, never by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

DTYPES = {"float32": torch.float32, "float64": torch.float64}
SUFFIX = {"float32": "", "float64": "_fp64"}
LOSS_KEY = {"float32": "fp32", "float64": "fp64"}


class Kind(Enum):
    """What an item proves, and so which check it needs."""

    SYSTEM = "outputs, losses and gradients of one system at toy size"
    OPERATIONS = "single operations of one code base"
    DATASET = "what an official loader feeds the model"
    FULLSIZE = "layout of an official checkpoint, outputs for weights made by a rule"
    EVALUATION = "scores of an official evaluator"
    UNKNOWN = "nothing that the harness knows"


@dataclass(frozen=True)
class Item:
    """One thing to prove.

    Args:
        name: the folder's name; `folder:stem` for one of the pairs in a folder of many; `folder:stem/family` for one
            family of operations.
        kind: what it is.
        path: the folder, or the .json file of the pair.
    """

    name: str
    kind: Kind
    path: Path

    def matches(self, patterns: Sequence[str]) -> str | None:
        """The first pattern that names this item or what it is part of, or None."""
        names = (self.name, self.name.split("/")[0], self.name.split(":")[0])
        return next((p for p in patterns if any(fnmatchcase(name, p) for name in names)), None)


def patterns_of(option: str) -> tuple[str, ...]:
    """Split `--except a,b,c`; a name that ends in .txt stands for the lines of that file, where # begins a comment."""
    patterns: list[str] = []
    for part in filter(None, (part.strip() for part in option.split(","))):
        if part.endswith(".txt"):
            lines = (line.split("#")[0].strip() for line in Path(part).read_text().splitlines())
            patterns += [line for line in lines if line]
        else:
            patterns.append(part)
    return tuple(patterns)


def discover(root: Path) -> list[Item]:
    """Every item in `root`, or the single one that `root` itself is."""
    if (root / "config.json").is_file():
        return [Item(root.name, _kind_of_folder(root), root)]
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [item for folder in folders for item in _items(folder)]


def _items(folder: Path) -> list[Item]:
    kind = _kind_of_folder(folder)
    if kind is not Kind.UNKNOWN:
        return [Item(folder.name, kind, folder)]
    pairs = [(path, _kind_of_pair(path)) for path in sorted(folder.glob("*.json"))]
    if not pairs or any(kind is Kind.UNKNOWN for _, kind in pairs):
        return [Item(folder.name, Kind.UNKNOWN, folder)]
    return [Item(f"{folder.name}:{path.stem}", kind, path) for path, kind in pairs]


def _kind_of_folder(folder: Path) -> Kind:
    names = {path.name for path in folder.iterdir()}
    if {"config.json", "outputs.safetensors"} <= names:
        return Kind.SYSTEM
    if "cases.json.gz" in names or any(name.startswith("metrics_") for name in names):
        return Kind.EVALUATION
    return Kind.UNKNOWN


def _kind_of_pair(path: Path) -> Kind:
    facts = json.loads(path.read_text())
    if not isinstance(facts, dict):
        return Kind.UNKNOWN
    if {"keys", "args", "parameters"} <= facts.keys():
        return Kind.FULLSIZE
    if not path.with_suffix(".safetensors").is_file():
        return Kind.UNKNOWN
    if {"annotations", "kwargs"} <= facts.keys():
        return Kind.DATASET
    if "repo" in facts and "system" not in facts:
        return Kind.OPERATIONS
    return Kind.UNKNOWN


@dataclass(frozen=True)
class Golden:
    """One system's folder, read.

    Args:
        folder: where it lies.
        config: config.json; `args` are all of the official arguments.
        state: the official state dict.
        inputs: what the official model and criterion were given.
        tolerances: |float32 - float64| of the official code, for the tensors that have both.
        first: what the official model said of the first queries, where a folder holds no more (full sizes).
    """

    folder: Path
    config: dict[str, Any]
    state: dict[str, Tensor]
    inputs: dict[str, Tensor]
    tolerances: dict[str, float]
    first: dict[str, Tensor] = field(default_factory=dict)

    @property
    def args(self) -> dict[str, Any]:
        return self.config.get("full_args") or self.config.get("args") or {}

    def has(self, dtype: str) -> bool:
        return (self.folder / f"outputs{SUFFIX[dtype]}.safetensors").is_file()

    def outputs(self, dtype: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"outputs{SUFFIX[dtype]}.safetensors")

    def losses(self, dtype: str) -> dict[str, dict[str, Any]]:
        """The recorded cases ("A", "B", ...) of one precision, without what is not a case."""
        recorded = self._all_losses().get(LOSS_KEY[dtype], {})
        return {name: case for name, case in recorded.items() if isinstance(case, dict) and "loss_dict" in case}

    def _all_losses(self) -> dict[str, Any]:
        path = self.folder / "losses.json"
        return json.loads(path.read_text()) if path.is_file() else {}


@cache
def read_golden(folder: Path) -> Golden:
    """Read what both precisions share."""
    tolerances = folder / "tolerances.json"
    return Golden(
        folder=folder,
        config=json.loads((folder / "config.json").read_text()),
        state=load_file(folder / "state_dict.safetensors"),
        inputs=load_file(folder / "inputs.safetensors"),
        tolerances=json.loads(tolerances.read_text())["diff"] if tolerances.is_file() else {},
    )
