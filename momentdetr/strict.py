"""Load weights completely or not at all."""

from __future__ import annotations

from collections.abc import Mapping

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
