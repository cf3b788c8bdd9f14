"""A run's tensors by parameter name: what checkpoints store, so that they survive a change of group order."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from momentdetr.errors import BadCheckpoint


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as "exp_avg/decoder.norm.weight" -> tensor."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{key}/{names[id(parameter)]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave.

    Raises:
        BadCheckpoint: a tensor belongs to no parameter of this model, or has another shape.
    """
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for name, tensor in tensors.items():
        key, _, parameter_name = name.partition("/")
        parameter = parameters.get(parameter_name)
        if parameter is None:
            raise BadCheckpoint(f"optimizer state of {parameter_name!r}, which this model does not have")
        if key != "step" and tensor.shape != parameter.shape:
            raise BadCheckpoint(
                f"optimizer state {name!r} has shape {tuple(tensor.shape)}, expected {tuple(parameter.shape)}"
            )
        # The step count stays on the CPU, where AdamW keeps it.
        optimizer.state[parameter][key] = tensor.clone() if key == "step" else tensor.to(parameter.device)


def restore_weights(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load weights that must fit exactly.

    Raises:
        BadCheckpoint: names what is missing, unexpected or of another shape.
    """
    try:
        model.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        raise BadCheckpoint(f"checkpoint does not fit the {what}: {error}") from error
