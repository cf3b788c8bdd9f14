"""Where attention looks: maps of dense attention by content and by place, and the points of deformable attention.

`watch` records what each attention of a decoder or encoder was given; the other functions read such a record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.attention import Attention, ConditionalCrossAttention, Guidance, plus
from momentdetr.detr.decoder import Decoder
from momentdetr.detr.deformable import DeformableAttention
from momentdetr.detr.encoder import Encoder
from momentdetr.detr.types import Memory


@dataclass(frozen=True)
class Glance:
    """What one attention was given.

    Args:
        attention: the module.
        content: (B, Q, C), of a decoder's queries; of an encoder's tokens, Q = N.
        guidance: where they look.
        memory: what they look at.
    """

    attention: nn.Module
    content: Tensor
    guidance: Guidance
    memory: Memory


@contextmanager
def watch(stack: Decoder | Encoder) -> Iterator[list[Glance]]:
    """Record every layer's attention to the memory while the block runs: `with watch(decoder) as glances: model(...)`.

    Of a decoder the cross-attention, of an encoder the self-attention. While training, a decoder's queries are those
    of its denoising groups first; evaluated, they are the ones that predict.
    """
    glances: list[Glance] = []

    def of_decoder(module: nn.Module, args: tuple[Tensor, Guidance, Memory]) -> None:
        glances.append(Glance(module, *args))

    def of_encoder(module: nn.Module, args: tuple[Tensor, Memory]) -> None:
        tokens, memory = args
        guidance = Guidance(_positions(memory, tokens), references=memory.references)
        glances.append(Glance(module, tokens, guidance, memory.with_tokens(tokens)))

    if isinstance(stack, Decoder):
        handles = [layer.cross_attention.register_forward_pre_hook(of_decoder) for layer in stack.layers]  # type: ignore[union-attr]
    else:
        handles = [layer.self_attention.register_forward_pre_hook(of_encoder) for layer in stack.layers]  # type: ignore[union-attr]
    try:
        yield glances
    finally:
        for handle in handles:
            handle.remove()


def _positions(memory: Memory, tokens: Tensor) -> Tensor:
    """The memory's positions; no positions are positions of zero."""
    return torch.zeros_like(tokens) if memory.positions is None else memory.positions


@dataclass(frozen=True)
class AttentionMaps:
    """Where each head looks, each (B, H, Q, N), summing to one over the memory; zero for a sample of padding.

    The product of the first two, normed again, is the third.

    Args:
        content: by what the tokens hold.
        spatial: by where the tokens are.
        combined: by both, as the model does.
    """

    content: Tensor
    spatial: Tensor
    combined: Tensor

    def on_grid(self, shape: Sequence[int]) -> AttentionMaps:
        """The same maps as (B, H, Q, *spatial), of a memory of one level."""
        return AttentionMaps(*(x.unflatten(-1, tuple(shape)) for x in (self.content, self.spatial, self.combined)))


def attention_maps(glance: Glance) -> AttentionMaps:
    """Split dense or conditional attention into content and place (Conditional DETR, arXiv 2108.06152, figures 1, 5).

    Conditional DETR and DAB-DETR compare content with content and place with place; the first layer's content, which
    is empty, also carries positions. DETR has one query for both, the sum of its content and its position: it is
    compared with what the keys hold, and with where they are.

    Raises:
        ValueError: deformable attention has no such maps; see `sampling`.
    """
    if isinstance(glance.attention, ConditionalCrossAttention):
        content, spatial = _conditional_scores(glance.attention, glance)
    elif isinstance(glance.attention, Attention):
        content, spatial = _dense_scores(glance.attention, glance)
    else:
        raise ValueError(f"{type(glance.attention).__name__} has no attention maps; deformable attention has points")
    mask = glance.memory.mask
    return AttentionMaps(_softmax(content, mask), _softmax(spatial, mask), _softmax(content + spatial, mask))


def _conditional_scores(attention: ConditionalCrossAttention, glance: Glance) -> tuple[Tensor, Tensor]:
    assert glance.guidance.sine is not None
    tokens, heads = glance.memory.tokens, attention.num_heads
    query, key = attention.query_content(glance.content), attention.key_content(tokens)
    place = attention.key_position(_positions(glance.memory, tokens).expand_as(tokens))
    if attention.query_position is not None:
        query, key = query + attention.query_position(glance.guidance.positions), key + place
    # Both halves share the scale of a head that is twice as wide.
    scale = (2 * query.shape[-1] / heads) ** -0.5
    return _scores(query, key, heads) * scale, _scores(attention.query_sine(glance.guidance.sine), place, heads) * scale


def _dense_scores(attention: Attention, glance: Glance) -> tuple[Tensor, Tensor]:
    tokens, heads = glance.memory.tokens, attention.num_heads
    query = attention.query(plus(glance.content, glance.guidance.positions))
    place = F.linear(_positions(glance.memory, tokens).expand_as(tokens), attention.key.weight)  # bias: with content
    scale = (query.shape[-1] / heads) ** -0.5
    return _scores(query, attention.key(tokens), heads) * scale, _scores(query, place, heads) * scale


def _scores(query: Tensor, key: Tensor, num_heads: int) -> Tensor:
    """(B, Q, C) and (B, N, C) to (B, H, Q, N)."""
    query, key = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key))
    return query @ key.transpose(-1, -2)


def _softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores.softmax(-1)
    # A sample that is all padding is looked at nowhere, as in `attention.attend`.
    return scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1).nan_to_num()


@dataclass(frozen=True)
class Sampling:
    """Where deformable attention looks.

    Args:
        locations: (B, Q, H, L, P, D), fractions of each level's padded grid, natural order (x before y).
        weights: (B, Q, H, L, P), summing to one over levels and points.
    """

    locations: Tensor
    weights: Tensor


def sampling(glance: Glance) -> Sampling:
    """Points and weights of deformable attention (Zhu et al., 2021, figure 6).

    Raises:
        ValueError: it is not deformable.
    """
    attention = glance.attention
    if not isinstance(attention, DeformableAttention):
        raise ValueError(f"{type(attention).__name__} samples no points; see `attention_maps`")
    assert glance.guidance.references is not None
    queries = plus(glance.content, glance.guidance.positions)
    split = (attention.num_heads, attention.num_levels, attention.num_points)
    offsets = attention.offsets(queries).unflatten(-1, (*split, attention.num_dims))
    weights = attention.weights(queries).unflatten(-1, (split[0], -1)).softmax(-1).unflatten(-1, split[1:])
    return Sampling(attention.locations(offsets, glance.guidance.references, glance.memory), weights)
