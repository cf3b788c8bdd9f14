"""How the family starts its weights."""

from __future__ import annotations

import math

from torch import nn

from momentdetr.detr.attention import Attention
from momentdetr.detr.mlp import MLP


def init_transformer(*modules: nn.Module) -> None:
    """Xavier-uniform for every parameter of more than one axis, as DETR starts its transformer.

    The official attention packs query, key and value into one matrix of 3C rows, which makes its bound smaller by
    the square root of two, and starts its biases at zero; ours are apart, and start alike.
    """
    for module in modules:
        for parameter in module.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for attention in module.modules():
            if isinstance(attention, Attention):
                for linear in (attention.query, attention.key, attention.value):
                    nn.init.xavier_uniform_(linear.weight, gain=math.sqrt(0.5))
                for linear in (attention.query, attention.key, attention.value, attention.out):
                    nn.init.zeros_(linear.bias)


def zero_last_layer(head: MLP) -> None:
    """Zero a box head's last layer, so that its first prediction is the reference itself."""
    last = head.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def prior_bias(classifier: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, probability: float = 0.01) -> None:
    """Start a sigmoid classifier at a small probability, as focal loss wants (Lin et al., 2017)."""
    assert classifier.bias is not None
    nn.init.constant_(classifier.bias, -math.log((1 - probability) / probability))


def small_convolutions(head: nn.Module) -> None:
    """Start a dense head's convolutions small, as the one-stage detectors do (Lin et al., 2017)."""
    for module in head.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
