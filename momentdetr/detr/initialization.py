"""How the family starts its weights."""

from __future__ import annotations

import math

from torch import nn

from momentdetr.detr.attention import Attention


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
