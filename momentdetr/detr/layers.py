"""Stacks of layers, by kind of attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from momentdetr.detr.attention import (
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    CrossAttention,
    SelfAttention,
)
from momentdetr.detr.decoder import DecoderLayer
from momentdetr.detr.deformable import DeformableAttention, DeformableCrossAttention, DeformableSelfAttention
from momentdetr.detr.encoder import DenseSelfAttention, Encoder, EncoderLayer
from momentdetr.detr.initialization import init_transformer
from momentdetr.detr.mlp import MLP, Activation, FeedForward


@dataclass(frozen=True)
class Stack:
    """What the layers of a stack have in common.

    Args:
        width: C.
        num_heads: H.
        feed_forward: hidden size of the feed-forward networks.
        num_layers: of them.
        dropout: everywhere in a layer.
        activation: between the two layers of a feed-forward network.
        pre_norm: norm the branches' inputs instead of the sums.
    """

    width: int
    num_heads: int
    feed_forward: int
    num_layers: int
    dropout: float = 0.0
    activation: Activation = nn.ReLU
    pre_norm: bool = False

    def network(self) -> FeedForward:
        return FeedForward(self.width, self.feed_forward, dropout=self.dropout, activation=self.activation)

    def attention(self) -> tuple[int, int, float]:
        return self.width, self.num_heads, self.dropout


@dataclass(frozen=True)
class Points:
    """What deformable attention looks at: D, levels, points per head and level."""

    num_dims: int
    num_levels: int = 4
    num_points: int = 4


def dense_encoder(stack: Stack, *, scales_positions: bool = False) -> Encoder:
    """Every token looks at every other (DETR); DAB-DETR scales the positions by the content."""
    layers = [_encoder_layer(stack, DenseSelfAttention(*stack.attention())) for _ in range(stack.num_layers)]
    scale = MLP(stack.width, stack.width, stack.width) if scales_positions else None
    encoder = Encoder(layers, nn.LayerNorm(stack.width) if stack.pre_norm else None, scale)
    init_transformer(encoder)
    return encoder


def deformable_encoder(stack: Stack, points: Points) -> Encoder:
    """Every token looks at a few points around its own place (Deformable DETR)."""
    layers = [
        _encoder_layer(stack, DeformableSelfAttention(*_deformable(stack, points))) for _ in range(stack.num_layers)
    ]
    encoder = Encoder(layers)
    _start(encoder)
    return encoder


def dense_layers(stack: Stack) -> list[DecoderLayer]:
    """DETR's decoder."""
    return [
        _decoder_layer(stack, SelfAttention(*stack.attention()), CrossAttention(*stack.attention()))
        for _ in range(stack.num_layers)
    ]


def conditional_layers(stack: Stack) -> list[DecoderLayer]:
    """Conditional DETR's and DAB-DETR's decoder; the first layer's content is empty and carries positions."""
    return [
        _decoder_layer(
            stack,
            ConditionalSelfAttention(*stack.attention()),
            ConditionalCrossAttention(*stack.attention(), adds_positions=index == 0),
        )
        for index in range(stack.num_layers)
    ]


def deformable_layers(stack: Stack, points: Points) -> list[DecoderLayer]:
    """Deformable DETR's and DINO's decoder."""
    return [
        _decoder_layer(stack, SelfAttention(*stack.attention()), DeformableCrossAttention(*_deformable(stack, points)))
        for _ in range(stack.num_layers)
    ]


def _encoder_layer(stack: Stack, attention: nn.Module) -> EncoderLayer:
    return EncoderLayer(
        self_attention=attention,
        feed_forward=stack.network(),
        width=stack.width,
        dropout=stack.dropout,
        pre_norm=stack.pre_norm,
    )


def _decoder_layer(stack: Stack, self_attention: nn.Module, cross_attention: nn.Module) -> DecoderLayer:
    layer = DecoderLayer(
        self_attention=self_attention,
        cross_attention=cross_attention,
        feed_forward=stack.network(),
        width=stack.width,
        dropout=stack.dropout,
        pre_norm=stack.pre_norm,
    )
    _start(layer)
    return layer


def _deformable(stack: Stack, points: Points) -> tuple[int, int, int, int, int]:
    return points.num_dims, stack.width, stack.num_heads, points.num_levels, points.num_points


def _start(module: nn.Module) -> None:
    """Xavier everywhere, but for deformable attention, which starts from rays of its own."""
    init_transformer(module)
    for part in module.modules():
        if isinstance(part, DeformableAttention):
            part.reset_parameters()
