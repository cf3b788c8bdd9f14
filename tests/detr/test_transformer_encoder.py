from __future__ import annotations

import pytest
import torch
from torch import nn

from momentdetr.detr.attention import SelfAttention
from momentdetr.detr.encoder import DenseSelfAttention, Encoder, EncoderLayer
from momentdetr.detr.initialization import init_transformer
from momentdetr.detr.mlp import MLP, SHARE, FeedForward
from momentdetr.detr.types import Memory


def make(pre_norm: bool) -> Encoder:
    torch.manual_seed(0)
    layers = [
        EncoderLayer(
            self_attention=DenseSelfAttention(16, 4), feed_forward=FeedForward(16, 24), width=16, pre_norm=pre_norm
        )
        for _ in range(2)
    ]
    return Encoder(layers, nn.LayerNorm(16) if pre_norm else None).double()


@pytest.mark.parametrize("pre_norm", [False, True])
def test_it_equals_torch_s_own_encoder(pre_norm: bool) -> None:
    ours = make(pre_norm)
    twin = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True, norm_first=pre_norm),
        2,
        norm=nn.LayerNorm(16) if pre_norm else None,
        enable_nested_tensor=False,
    ).double()
    for mine, theirs in zip(ours.layers, twin.layers, strict=True):
        attention = mine.self_attention
        with torch.no_grad():
            theirs.self_attn.in_proj_weight.copy_(
                torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
            )
            theirs.self_attn.in_proj_bias.copy_(
                torch.cat([attention.query.bias, attention.key.bias, attention.value.bias])
            )
        theirs.self_attn.out_proj.load_state_dict(attention.out.state_dict())
        theirs.linear1.load_state_dict(mine.feed_forward.expand.state_dict())
        theirs.linear2.load_state_dict(mine.feed_forward.contract.state_dict())
    tokens = torch.randn(2, 5, 16, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    found, expected = ours(Memory(tokens, mask)).tokens, twin(tokens, src_key_padding_mask=~mask)
    torch.testing.assert_close(found[mask], expected[mask])


@pytest.mark.parametrize("pre_norm", [False, True])
def test_padding_changes_nothing(pre_norm: bool) -> None:
    encoder = make(pre_norm)
    tokens, positions = torch.randn(1, 6, 16, dtype=torch.float64), torch.randn(1, 6, 16, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]], dtype=torch.bool)
    padded = encoder(Memory(tokens, mask, positions)).tokens[:, :4]
    torch.testing.assert_close(padded, encoder(Memory(tokens[:, :4], None, positions[:, :4])).tokens)


def test_each_layer_sees_positions_scaled_by_its_own_tokens() -> None:
    """DAB-DETR's encoder, against the layers called one by one."""
    encoder = make(pre_norm=False)
    scale = MLP(16, 16, 16).double()
    encoder.position_scale = scale
    tokens, positions = torch.randn(2, 1, 5, 16, dtype=torch.float64).unbind()
    expected = tokens
    for layer in encoder.layers:
        expected = layer(Memory(expected, None, positions * scale(expected)))
    found = encoder(Memory(tokens, None, positions))
    torch.testing.assert_close(found.tokens, expected)
    torch.testing.assert_close(found.positions, positions)


def test_initialization_has_the_packed_bound_and_zero_biases() -> None:
    attention = SelfAttention(64, 4)
    init_transformer(attention)
    packed = (6 / (64 + 3 * 64)) ** 0.5
    plain = (6 / (64 + 64)) ** 0.5
    assert attention.query.weight.abs().max() <= packed
    assert attention.query.weight.abs().max() > 0.95 * packed
    assert packed < attention.out.weight.abs().max() <= plain
    assert attention.value.bias.abs().sum() == 0


@torch.no_grad()
def test_many_tokens_go_through_the_feed_forward_network_in_shares() -> None:
    torch.manual_seed(0)
    network = FeedForward(8, 16).eval()
    tokens = torch.randn(2, SHARE + 3, 8)
    with torch.enable_grad():
        expected = network(tokens)
    torch.testing.assert_close(network(tokens), expected)
    torch.testing.assert_close(network(tokens.transpose(0, 1)).transpose(0, 1), expected)
