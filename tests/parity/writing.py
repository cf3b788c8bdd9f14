"""Write a run as a folder of goldens: for the harness's own tests, and for whoever records official code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.check import Case, Run
from parity.comparison import Fingerprint
from parity.material import LOSS_KEY, SUFFIX
from safetensors.torch import save_file
from torch import Tensor


def write_inputs(
    folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> None:
    """What both sides start from, and an empty case "A" to run."""
    folder.mkdir(parents=True)
    save_file(_plain(state), folder / "state_dict.safetensors")
    save_file(_plain(inputs), folder / "inputs.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "losses.json").write_text(json.dumps({key: {"A": {"loss_dict": {}}} for key in LOSS_KEY.values()}))


def write_runs(folder: Path, runs: Mapping[str, Run]) -> None:
    """What was computed, by precision; with both, also how far they are apart."""
    for dtype, run in runs.items():
        save_file(_plain(run.outputs), folder / f"outputs{SUFFIX[dtype]}.safetensors")
    losses = {
        LOSS_KEY[dtype]: {name: recorded(case) for name, case in run.cases.items()} for dtype, run in runs.items()
    }
    (folder / "losses.json").write_text(json.dumps(losses))
    if runs.keys() == LOSS_KEY.keys():
        single, double = runs["float32"].outputs, runs["float64"].outputs
        spreads = {name: (single[name].double() - value).abs().max().item() for name, value in double.items()}
        (folder / "tolerances.json").write_text(json.dumps({"diff": spreads}))


def recorded(case: Case) -> dict[str, Any]:
    """One training case as losses.json holds it."""
    prints = {
        name: None if gradient is None else list(vars(Fingerprint.of(gradient)).values())
        for name, gradient in case.gradients.items()
    }
    return {
        "epoch": 0,
        "loss_dict": {name: float(value) for name, value in case.losses.items()},
        "weighted_sum": float(case.weighted_sum),
        "indices": dict(case.indices),
        "grads": prints,
        "extra": {name: float(value) for name, value in case.extra.items()},
    }


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
