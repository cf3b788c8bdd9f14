from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from momentdetr.detr.attention import (
    Attention,
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    CrossAttention,
    Guidance,
    SelfAttention,
    attend,
)
from momentdetr.detr.types import Memory


def naive_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int, allowed: Tensor) -> Tensor:
    """One sample, one head, one query at a time: (Q, E), (N, E), (N, C), (Q, N) -> (Q, C)."""
    rows = []
    for q in range(len(query)):
        parts = []
        for q_head, k_head, v_head in zip(
            query[q].chunk(num_heads), key.chunk(num_heads, -1), value.chunk(num_heads, -1), strict=True
        ):
            scores = [
                (q_head @ k_head[n]).item() / math.sqrt(len(q_head)) if allowed[q, n] else -math.inf
                for n in range(len(key))
            ]
            weights = torch.tensor(scores, dtype=value.dtype).softmax(0)
            parts.append((weights[:, None] * v_head).sum(0))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def test_attend_equals_a_naive_loop_with_a_mask() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, n, 8, dtype=torch.float64) for n in (3, 5, 5))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    found = attend(query, key, value, num_heads=2, mask=mask[:, None, None])
    for b in range(2):
        expected = naive_attention(query[b], key[b], value[b], 2, mask[b].expand(3, -1))
        torch.testing.assert_close(found[b], expected)


def test_a_query_without_keys_receives_zeros_and_no_nan_gradient() -> None:
    values = torch.randn(1, 4, 8, requires_grad=True)
    mixed = attend(values, values, values, num_heads=2, mask=torch.zeros(1, 1, 1, 4, dtype=torch.bool))
    mixed.sum().backward()
    assert (mixed == 0).all()
    assert values.grad is not None
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_torch(masked: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(8, 2).double(), nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    query, key, value = (torch.randn(2, n, 8, dtype=torch.float64) for n in (3, 5, 5))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool) if masked else None
    expected, _ = theirs(query, key, value, key_padding_mask=None if mask is None else ~mask)
    found = ours(query, key, value, None if mask is None else mask[:, None, None])
    torch.testing.assert_close(found, expected)


def test_positions_reach_queries_and_keys_but_not_values() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(8, 2).double()
    content, positions = torch.randn(1, 1, 8, dtype=torch.float64), torch.randn(1, 1, 8, dtype=torch.float64)
    # One token attends to itself with weight one: only its value is left, which positions must not touch.
    torch.testing.assert_close(attention(content, positions), attention(content, None))


def test_conditional_cross_attention_equals_a_naive_loop() -> None:
    torch.manual_seed(0)
    for adds in (True, False):
        attention = ConditionalCrossAttention(8, 2, adds_positions=adds).double()
        content, positions, sine = (torch.randn(1, 3, 8, dtype=torch.float64) for _ in range(3))
        memory = Memory(torch.randn(1, 5, 8, dtype=torch.float64), positions=torch.randn(1, 5, 8, dtype=torch.float64))
        query, key = attention.query_content(content), attention.key_content(memory.tokens)
        place = attention.key_position(memory.positions)
        if adds:
            assert attention.query_position is not None
            query, key = query + attention.query_position(positions), key + place
        place_query = attention.query_sine(sine)
        # A head sees its part of the content beside its part of the place.
        order = [*range(4), *range(8, 12), *range(4, 8), *range(12, 16)]
        wide_query = torch.cat([query, place_query], -1)[0][:, order]
        wide_key = torch.cat([key, place], -1)[0][:, order]
        value = attention.value(memory.tokens)[0]
        expected = attention.out(naive_attention(wide_query, wide_key, value, 2, torch.ones(3, 5)))
        found = attention(content, Guidance(positions, sine=sine), memory)[0]
        torch.testing.assert_close(found, expected)


def test_conditional_self_attention_adds_projected_positions() -> None:
    torch.manual_seed(0)
    attention = ConditionalSelfAttention(8, 2).double()
    content, positions = torch.randn(1, 4, 8, dtype=torch.float64), torch.randn(1, 4, 8, dtype=torch.float64)
    query = attention.query_content(content) + attention.query_position(positions)
    key = attention.key_content(content) + attention.key_position(positions)
    mask = torch.tril(torch.ones(4, 4, dtype=torch.bool))
    expected = naive_attention(query[0], key[0], attention.value(content)[0], 2, mask)
    torch.testing.assert_close(attention(content, positions, mask)[0], attention.out(expected))


@pytest.mark.parametrize("kind", ["dense", "conditional"])
def test_padding_changes_nothing(kind: str) -> None:
    torch.manual_seed(0)
    cross = CrossAttention(8, 2) if kind == "dense" else ConditionalCrossAttention(8, 2, adds_positions=True)
    guidance = Guidance(torch.randn(1, 3, 8), sine=torch.randn(1, 3, 8))
    content, tokens, positions = torch.randn(1, 3, 8), torch.randn(1, 6, 8), torch.randn(1, 6, 8)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]], dtype=torch.bool)
    padded = cross(content, guidance, Memory(tokens, mask, positions))
    alone = cross(content, guidance, Memory(tokens[:, :4], None, positions[:, :4]))
    torch.testing.assert_close(padded, alone)
