"""EaTR's (Jang et al., 2023) decoder: it starts from spans of events, and its first layer is gated by the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from momentdetr.detr.attention import Attention, Guidance
from momentdetr.detr.decoder import AnchorGuide, Decoder, DecoderLayer
from momentdetr.detr.types import Memory, Output, Queries


@dataclass(frozen=True)
class EventQueries(Queries):
    """Queries that begin as events, and the text that the first layer is gated by.

    Args:
        sentence: (B, 1, C).
    """

    sentence: Tensor | None = None


class ScaledGuide(AnchorGuide):
    """DAB-DETR's guide, but content scales the attention in the first layer already, because it is not empty."""

    def forward(self, content: Tensor, references: Tensor, queries: Queries, memory: Memory, layer: int) -> Guidance:
        return super().forward(content, references, queries, memory, layer + 1)


class GatedDecoderLayer(DecoderLayer):
    """Between self-attention and cross-attention, events are gated by what the text says of them.

    Args:
        width: C.
        dropout: as in `DecoderLayer`, and of the gate's attention weights.
        options: others of `DecoderLayer`.
    """

    def __init__(self, *, width: int, dropout: float = 0.0, **options: Any) -> None:
        super().__init__(width=width, dropout=dropout, **options)
        self.gate_cross, self.gate_self = Attention(width, 1, dropout), Attention(width, 1, dropout)
        self.gate_norm, self.gate_linear = nn.LayerNorm(width), nn.Linear(width, width)

    def gated(self, content: Tensor, sentence: Tensor) -> Tensor:
        """Events (B, Q, C) and the text's summary (B, 1, C) -> (B, Q, C)."""
        read = self.gate_cross(content, sentence, sentence)
        gate = (content * read).sigmoid()
        both = content + read
        both = self.gate_self(both, both, both)
        return self.gate_norm(content + self.dropout(self.gate_linear(gate * both).relu()))

    def forward(  # type: ignore[override]
        self, content: Tensor, guidance: Guidance, memory: Memory, sentence: Tensor
    ) -> Tensor:
        """(B, Q, C) -> (B, Q, C)."""
        attended = self.self_attention(content, guidance.positions, guidance.mask)
        content = self.gated(self.norm_self(content + self.dropout(attended)), sentence)
        content = self.norm_cross(content + self.dropout(self.cross_attention(content, guidance, memory)))
        return self.norm_feed_forward(content + self.dropout(self.feed_forward(content)))


class EventDecoder(Decoder):
    """A decoder whose first references are predictions: layers look at them without gradient, losses reach them."""

    def forward(self, queries: Queries, memory: Memory) -> Output:
        assert isinstance(queries, EventQueries)
        assert queries.references is not None
        assert self.norm is not None
        content, judged = queries.content, queries.references
        predictions, hidden_states, references = [], [], []
        for index, layer in enumerate(self.layers):
            used = judged.detach()
            guidance = self.guide(content, used, queries, memory, index)
            extra = (queries.sentence,) if index == 0 else ()
            content = layer(content, guidance, memory, *extra)
            hidden = self.norm(content)
            predictions.append(self.heads[0](hidden, judged, self.parametrization))
            hidden_states.append(hidden)
            references.append(judged)
            judged = self.parametrization.refine(self._refine_head(index)(content), used)
        return Output(tuple(predictions), torch.stack(hidden_states), tuple(references))
