"""Load models completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from momentdetr.errors import BadCheckpoint


def load_strictly(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict of ours; every key, every shape, only finite numbers.

    Raises:
        BadCheckpoint: names the first misfit.
    """
    wanted = model.state_dict()
    for name in [*sorted(set(wanted) - set(state)), *sorted(set(state) - set(wanted))]:
        raise BadCheckpoint(f"the weights {'lack' if name in wanted else 'hold an unknown'} tensor {name!r}")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise BadCheckpoint(
                f"tensor {name!r} is {tuple(tensor.shape)}, the model expects {tuple(wanted[name].shape)}"
            )
        if not tensor.isfinite().all():
            raise BadCheckpoint(f"tensor {name!r} holds NaN or infinity; the file is damaged or training diverged")
    model.load_state_dict(dict(state), strict=True)


def read_document(folder: str | Path, kind: str) -> dict[str, Any]:
    """The `config.json` of a model folder.

    Args:
        folder: of the model.
        kind: what the document must say under "format".

    Raises:
        BadCheckpoint: missing, not JSON, or of another format.
    """
    path = Path(folder) / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadCheckpoint(f"{folder} is not a model folder: it has no config.json") from error
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{path} is not readable: {error}") from error
    if not isinstance(document, dict) or document.get("format") != kind:
        raise BadCheckpoint(f'{path} is not a momentdetr model: expected "format": "{kind}"')
    return document
