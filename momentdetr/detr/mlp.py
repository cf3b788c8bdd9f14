"""Stacks of linear layers that every other part uses."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from momentdetr.detr.elementwise import Dropout

Activation = Callable[[], nn.Module]

ACTIVATIONS: dict[str, Activation] = {"relu": nn.ReLU, "gelu": nn.GELU, "prelu": nn.PReLU, "selu": nn.SELU}

SHARE = 2048
"""Tokens that a feed-forward network works on at a time, on a CPU where no gradient is wanted: what is between its
layers then stays in the processor's cache."""


class MLP(nn.Module):
    """Linear layers with ReLU between them: (..., sizes[0]) -> (..., sizes[-1])."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(sizes))

    def forward(self, values: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            values = torch.relu(layer(values))
        return self.layers[-1](values)


class FeedForward(nn.Module):
    """The transformer's two-layer network: (..., C) -> (..., C).

    Args:
        width: C.
        hidden: size between the layers.
        dropout: between the layers.
        activation: makes the module between them; DAB-DETR and its descendants learn it (`nn.PReLU`).
    """

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0, activation: Activation = nn.ReLU) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.activation = activation()
        self.dropout = Dropout(dropout)
        self.contract = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        whole = torch.is_grad_enabled() or torch.compiler.is_compiling() or tokens.device.type != "cpu"
        if whole or tokens.shape[:-1].numel() <= SHARE:
            return self._run(tokens)
        parts = [self._run(part) for part in tokens.flatten(0, -2).split(SHARE)]
        return torch.cat(parts).view(tokens.shape)

    def _run(self, tokens: Tensor) -> Tensor:
        return self.contract(self.dropout(self.activation(self.expand(tokens))))
