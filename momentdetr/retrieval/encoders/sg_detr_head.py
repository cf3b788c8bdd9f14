"""SG-DETR's decoder and heads (Gordeev et al., 2024): queries chosen on a pyramid look at the clips themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from momentdetr.detr.attention import ConditionalSelfAttention, Guidance, attend
from momentdetr.detr.boxes import at_least_float32
from momentdetr.detr.decoder import AnchorGuide, Decoder
from momentdetr.detr.denoising import Denoising, Group, touch
from momentdetr.detr.losses import judged_rows
from momentdetr.detr.mlp import MLP
from momentdetr.detr.positions import box_features
from momentdetr.detr.proposals import ProposedQueries
from momentdetr.detr.types import LossTerm, Memory, Output, Predictions, Queries, Supervision, Targets
from momentdetr.retrieval.encoders.sg_detr_points import LentQueries, SpanHead
from momentdetr.retrieval.pyramid import TemporalPyramid, line_up

Terms = Mapping[str, tuple[float, LossTerm]]


class ChainedSelfAttention(ConditionalSelfAttention):
    """Conditional DETR's, but keys project the positions that queries have projected; so the official code has it."""

    def forward(self, content: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        placed = self.query_position(positions)
        mixed = attend(
            self.query_content(content) + placed,
            self.key_content(content) + self.key_position(placed),
            self.value(content),
            num_heads=self.num_heads,
            mask=mask,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out(mixed)


class ScaledGuide(AnchorGuide):
    """DAB-DETR's for one axis, attending with centre and width; content scales the sine in the first layer, too."""

    def __init__(self, width: int) -> None:
        super().__init__(1, width, attends_with="box")

    def forward(self, content: Tensor, references: Tensor, queries: Queries, memory: Memory, layer: int) -> Guidance:
        return super().forward(content, references, queries, memory, layer + 1)


class QualityDecoder(Decoder):
    """References move from layer to layer as ever; beside it each query tells how well its moved reference fits.

    Args:
        quality: (B, Q, 2C) -> (B, Q, 1), from the un-normed content and the encoded reference, shared by all layers. As
            references are moved by a head of their own, it sees another span than the one that is predicted.
        parts: of `Decoder`, with a norm and "look_forward_twice".
    """

    def __init__(self, *, quality: MLP, **parts: Any) -> None:
        super().__init__(refinement="look_forward_twice", **parts)
        self.quality = quality

    def forward(self, queries: Queries, memory: Memory) -> Output:
        assert queries.anchors is not None
        assert self.norm is not None
        content = queries.content
        used = judged = self.parametrization.to_boxes(queries.anchors)
        layers, hidden_states, references = [], [], []
        for index, layer in enumerate(self.layers):
            content = layer(content, self.guide(content, used, queries, memory, index), memory)
            hidden = self.norm(content)
            moved = self.parametrization.refine(self._refine_head(index)(content), used)
            encoded = box_features(moved.detach(), content.shape[-1] // 2).flatten(-2).to(content.dtype)
            quality = self.quality(torch.cat([content, encoded], -1)).squeeze(-1)
            said = self.heads[index % len(self.heads)](hidden, judged, self.parametrization)
            layers.append(replace(said, quality=quality))
            hidden_states.append(hidden)
            references.append(judged)
            used, judged = moved.detach(), moved
        return Output(tuple(layers), torch.stack(hidden_states), tuple(references), queries.supervisions)


@dataclass(frozen=True)
class SgDetrOutput(Output):
    """What both heads say.

    Args:
        proposed: (B, Q), True where a query was proposed by a cell; a short video has fewer of them.
        points: of every cell of the pyramid: class logits, spans in clips (start, end), centerness logits.
        points_mask: (B, N), True where a cell is the video's own.
        num_clips: (B,), of each video.
    """

    proposed: Tensor = field(kw_only=True)
    points: Predictions = field(kw_only=True)
    points_mask: Tensor = field(kw_only=True)
    num_clips: Tensor = field(kw_only=True)


class SgDetrHead(nn.Module):
    """Two-stage queries and one-to-many points on a pyramid of the memory; while training, further queries from both.

    The decoder looks at the memory itself. Queries that points lend it and denoising groups see neither each other nor
    the matching queries, so they are decoded in passes of their own.

    Args:
        pyramid: of clips.
        queries: cells -> queries.
        decoder: (queries, memory) -> Output.
        points: cells -> classes, spans, centerness.
        lending: cells that answer for a moment -> queries; None: no collaborative queries.
        denoising: groups to restore, or None.
        lent_terms: what judges the collaborative queries.
        denoising_terms: what judges the groups.
        shared: weight of both.
    """

    def __init__(
        self,
        *,
        pyramid: TemporalPyramid,
        queries: ProposedQueries,
        decoder: QualityDecoder,
        points: SpanHead,
        lending: LentQueries | None,
        denoising: Denoising | None,
        lent_terms: Terms,
        denoising_terms: Terms,
        shared: float = 0.5,
    ) -> None:
        super().__init__()
        self.pyramid, self.queries, self.decoder = pyramid, queries, decoder
        self.points, self.lending, self.denoising = points, lending, denoising
        self.lent_terms, self.denoising_terms, self.shared = dict(lent_terms), dict(denoising_terms), shared

    def forward(
        self, memory: Memory, targets: Targets | None = None, *, generator: torch.Generator | None = None
    ) -> SgDetrOutput:
        """Detect.

        Args:
            memory: clips (B, T, C).
            targets: what is true, for points, collaborative queries and groups while training; None: none of them.
            generator: of the random choices.
        """
        assert memory.mask is not None
        levels, num_clips = self.pyramid(memory.tokens, memory.mask), memory.mask.sum(1)
        cells = line_up(levels, memory.mask)
        queries, proposed = self._seen(self.queries(cells))
        output, said = self.decoder(queries, memory), self.points(levels)
        extra: tuple[Supervision, ...] = ()
        if targets is not None:
            targets = replace(targets, boxes=targets.boxes.to(at_least_float32(memory.tokens).dtype))
            assigned = self.points.assign(levels, targets, num_clips)
            lent = None
            if self.lending is not None:
                lent = self.lending("lent", cells.tokens, assigned, partial(_shuffled, generator))
            output, passes = self._passes(output, memory, targets, lent, generator)
            extra = (self.points.judged(said, targets, assigned), *passes)
        anchors = self.points.anchors(levels, at_least_float32(said.boxes))
        return SgDetrOutput(
            layers=output.layers,
            hidden=output.hidden,
            references=output.references,
            supervisions=(*output.supervisions, *extra),
            proposed=proposed,
            points=replace(said, boxes=self.points.coder.decode(anchors, said.boxes)),
            points_mask=torch.cat([level.mask for level in levels], 1),
            num_clips=num_clips,
        )

    def _seen(self, queries: Queries) -> tuple[Queries, Tensor]:
        """Queries of cells that may not propose are there to fill the batch; no other one sees them."""
        assert queries.anchors is not None
        proposed = queries.anchors.isfinite().all(-1)  # (B, Q)
        return replace(queries, mask=proposed[:, None, None]), proposed  # broadcasts over heads and queries

    def _passes(
        self,
        output: Output,
        memory: Memory,
        targets: Targets,
        lent: Any,
        generator: torch.Generator | None,
    ) -> tuple[Output, tuple[Supervision, ...]]:
        """Decode collaborative queries and groups; parameters that had nothing to do take part with weight zero."""
        passes: list[Supervision] = []
        if lent is not None:
            judged = lent.judged(self.decoder(lent.queries, memory))
            passes += [replace(one, terms=self.lent_terms, weight=self.shared) for one in judged]
        elif self.lending is not None:
            output = touch([self.lending], output)
        if self.denoising is not None:
            group = self.denoising(targets, generator=generator)
            if group is None:
                output = touch([self.denoising], output)
            else:
                passes += self._restored(group, memory, targets)
        return output, tuple(passes)

    def _restored(self, group: Group, memory: Memory, targets: Targets) -> list[Supervision]:
        """Denoising groups, each of which sees itself only; empty places are not judged."""
        rows = group.rows
        block = torch.arange(rows.total, device=memory.tokens.device) // rows.size
        output = self.decoder(replace(group.queries, mask=block[:, None] == block), memory)
        near = rows.near.nonzero().flatten()
        sample, target = rows.sample[near], rows.target[near]
        judged = []
        for index, said in enumerate(output.layers):
            last = index + 1 == len(output.layers)
            one = judged_rows(
                "denoising" if last else f"denoising_{index}",
                Predictions(said.logits[rows.sample, rows.slot], said.boxes[rows.sample, rows.slot]),
                near,
                targets.labels[sample, target],
                targets.boxes[sample, target],
                count=said.boxes.new_tensor(float(len(near))),
                weight=self.shared,
                terms=self.denoising_terms,
            )
            judged.append(replace(one, auxiliary=not last))
        return judged


def _shuffled(generator: torch.Generator | None, count: int) -> Tensor:
    """A permutation drawn from a generator; None: from torch's own."""
    device: torch.device | str = "cpu" if generator is None else generator.device
    return torch.randperm(count, generator=generator, device=device)
