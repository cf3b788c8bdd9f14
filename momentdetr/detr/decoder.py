"""The decoder that all systems share: layers, what guides them, heads, and how references move from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from momentdetr.detr.attention import Guidance
from momentdetr.detr.elementwise import Dropout
from momentdetr.detr.mlp import MLP, FeedForward
from momentdetr.detr.parametrization import CenterSize
from momentdetr.detr.positions import box_features
from momentdetr.detr.types import Memory, Output, Predictions, Queries

Refinement = Literal["none", "detached", "look_forward_twice"]


class DecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention to the memory, feed-forward; each with a residual and a norm."""

    def __init__(
        self,
        *,
        self_attention: nn.Module,
        cross_attention: nn.Module,
        feed_forward: FeedForward,
        width: int,
        dropout: float = 0.0,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.self_attention, self.cross_attention = self_attention, cross_attention
        self.feed_forward = feed_forward
        self.norm_self, self.norm_cross, self.norm_feed_forward = (nn.LayerNorm(width) for _ in range(3))
        self.dropout, self.pre_norm = Dropout(dropout), pre_norm

    def forward(self, content: Tensor, guidance: Guidance, memory: Memory) -> Tensor:
        """(B, Q, C) -> (B, Q, C)."""
        if self.pre_norm:
            attended = self.self_attention(self.norm_self(content), guidance.positions, guidance.mask)
            content = content + self.dropout(attended)
            content = content + self.dropout(self.cross_attention(self.norm_cross(content), guidance, memory))
            return content + self.dropout(self.feed_forward(self.norm_feed_forward(content)))
        attended = self.self_attention(content, guidance.positions, guidance.mask)
        content = self.norm_self(content + self.dropout(attended))
        content = self.norm_cross(content + self.dropout(self.cross_attention(content, guidance, memory)))
        return self.norm_feed_forward(content + self.dropout(self.feed_forward(content)))


class FixedGuide(nn.Module):
    """DETR's: the queries' own positions, the same for every layer."""

    def forward(
        self, content: Tensor, references: Tensor | None, queries: Queries, memory: Memory, layer: int
    ) -> Guidance:
        assert queries.positions is not None
        return Guidance(positions=queries.positions, references=references, mask=queries.mask)


class AnchorGuide(nn.Module):
    """DAB-DETR's (Liu et al., 2022): positions and the attention's shape follow from the anchors, layer by layer.

    The sine encoding of a reference lists its centres in the order of the memory's axes (y before x), then its sizes
    in their own (w before h), as the official code does. The attention is conditioned on the centres' part, scaled by
    what the content wants (`query_scale`, not in the first layer) and by the wanted size over the anchor's size.

    Args:
        num_dims: D.
        width: C.
        makes_positions: derive query positions from the whole encoding; else take the queries' own (Conditional DETR).
        modulated: scale the attention by the anchor's size; needs references that are boxes.
        attends_with: "center" (the papers), or "box": the whole encoding, with half the features per coordinate
            (QD-DETR and its descendants, D = 1).
        min_size: sizes are kept above it where they divide.
        conditional: the attention is conditioned on the sine encoding; False for deformable attention, which looks
            around the reference anyway.
        scales_positions: content scales the query positions from the second layer on (DAB-Deformable-DETR).
    """

    def __init__(
        self,
        num_dims: int,
        width: int,
        *,
        makes_positions: bool = True,
        modulated: bool = True,
        attends_with: Literal["center", "box"] = "center",
        min_size: float = 1e-6,
        conditional: bool = True,
        scales_positions: bool = False,
    ) -> None:
        super().__init__()
        coordinates = num_dims if attends_with == "center" else 2 * num_dims
        if width % (2 * coordinates):
            raise ValueError(f"width {width} cannot be divided into an even part for each of {coordinates} coordinates")
        self.num_dims, self.attends_with, self.min_size = num_dims, attends_with, min_size
        self.features = width // coordinates
        self.to_positions = MLP(2 * num_dims * self.features, width, width) if makes_positions else None
        self.query_scale = MLP(width, width, width) if conditional or scales_positions else None
        self.conditional = conditional
        self.wanted_size = MLP(width, width, num_dims) if modulated else None

    def forward(self, content: Tensor, references: Tensor, queries: Queries, memory: Memory, layer: int) -> Guidance:
        encoded = box_features(self._of_first_level(references, memory), self.features).to(content.dtype)
        centers, sizes = encoded[..., : self.num_dims, :].flip(-2), encoded[..., self.num_dims :, :]
        positions = queries.positions
        if self.to_positions is not None:
            positions = self.to_positions(torch.cat([centers, sizes], -2).flatten(-2))
        assert positions is not None
        scale = 1.0 if self.query_scale is None or layer == 0 else self.query_scale(content)
        if not self.conditional:
            return Guidance(positions * scale, None, references, queries.mask)

        sine = centers if self.attends_with == "center" else torch.cat([centers, sizes], -2)
        sine = sine.flatten(-2) * scale
        if self.wanted_size is not None:
            ratio = self.wanted_size(content).sigmoid() / references[..., self.num_dims :].clamp(min=self.min_size)
            ratios = ratio.flip(-1) if self.attends_with == "center" else torch.cat([ratio.flip(-1), ratio], -1)
            sine = (sine.unflatten(-1, (-1, self.features)) * ratios[..., None]).flatten(-2)
        return Guidance(positions, sine.to(content.dtype), references, queries.mask)

    def _of_first_level(self, references: Tensor, memory: Memory) -> Tensor:
        """Deformable systems encode the reference as a fraction of the padded first level."""
        if self.conditional or memory.valid_ratios is None:
            return references
        ratios = memory.valid_ratios[:, :1].to(references.dtype)  # (B, 1, D)
        return references * ratios.repeat(1, 1, references.shape[-1] // self.num_dims)


class Head(nn.Module):
    """What a query says, from its hidden state (B, Q, C): class logits, box numbers, and maybe a quality logit."""

    def __init__(self, classes: nn.Module, boxes: nn.Module, quality: nn.Module | None = None) -> None:
        super().__init__()
        self.classes, self.boxes, self.quality = classes, boxes, quality

    def forward(self, hidden: Tensor, reference: Tensor | None, parametrization: CenterSize) -> Predictions:
        quality = None if self.quality is None else self.quality(hidden).squeeze(-1)
        return Predictions(self.classes(hidden), parametrization.refine(self.boxes(hidden), reference), quality)


class Decoder(nn.Module):
    """Refine queries layer by layer against a memory, and predict after each.

    Args:
        layers: modules (content, guidance, memory) -> content.
        guide: what tells each layer where its queries look.
        heads: one shared by all layers, or one a layer.
        norm: applied before predicting; its result is not passed to the next layer.
        parametrization: of anchors and boxes.
        refinement: "none": the first reference serves all layers; "detached": a layer's box is the next one's
            reference, and no gradient crosses (Deformable DETR); "look_forward_twice": used without gradient, but the
            next layer's loss reaches back through it (DAB-DETR, before DINO named it).
        refine_heads: box heads that move the reference, from the un-normed content, one shared or one a layer; None:
            the prediction heads' own.
    """

    def __init__(
        self,
        *,
        layers: Sequence[nn.Module],
        guide: nn.Module,
        heads: Sequence[Head],
        norm: nn.Module | None,
        parametrization: CenterSize | None = None,
        refinement: Refinement = "none",
        refine_heads: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.guide, self.norm = nn.ModuleList(layers), guide, norm
        self.heads = nn.ModuleList(heads)
        self.refine_heads = None if refine_heads is None else nn.ModuleList(refine_heads)
        self.parametrization = CenterSize() if parametrization is None else parametrization
        self.refinement = refinement

    def forward(self, queries: Queries, memory: Memory) -> Output:
        content = queries.content
        reference = queries.references
        if reference is None and queries.anchors is not None:
            reference = self.parametrization.to_boxes(queries.anchors)
        used, judged = reference, reference  # what layers look at, and what predictions (and their loss) start from
        predictions, hidden_states, references = [], [], []
        for index, layer in enumerate(self.layers):
            content = layer(content, self.guide(content, used, queries, memory, index), memory)
            hidden = content if self.norm is None else self.norm(content)
            head = self.heads[index % len(self.heads)]
            predictions.append(head(hidden, judged, self.parametrization))
            hidden_states.append(hidden)
            if judged is not None:
                references.append(judged)
            if self.refinement != "none" and index + 1 < len(self.layers):
                assert used is not None
                moved = self.parametrization.refine(self._refine_head(index)(content), used)
                used = moved.detach()
                judged = moved if self.refinement == "look_forward_twice" else used
        return Output(tuple(predictions), torch.stack(hidden_states), tuple(references), queries.supervisions)

    def _refine_head(self, index: int) -> nn.Module:
        if self.refine_heads is not None:
            return self.refine_heads[index % len(self.refine_heads)]
        head = self.heads[index % len(self.heads)]
        assert isinstance(head, Head)
        return head.boxes
