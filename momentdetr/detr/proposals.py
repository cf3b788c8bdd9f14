"""Two-stage queries: every token of the encoder proposes a box, and the best ones become the decoder's queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from momentdetr.detr.boxes import at_least_float32
from momentdetr.detr.positions import box_features
from momentdetr.detr.types import Memory, Predictions, Queries, Supervision

Ranking = Callable[[Tensor], Tensor]


def by_first_class(logits: Tensor) -> Tensor:
    """Deformable DETR ranks proposals by the logit of class 0 alone: (B, N, K) -> (B, N)."""
    return logits[..., 0]


def by_best_class(logits: Tensor) -> Tensor:
    """DINO ranks them by their best class: (B, N, K) -> (B, N)."""
    return logits.max(-1).values


def token_anchors(memory: Memory, size: float | Sequence[float], margin: float) -> tuple[Tensor, Tensor]:
    """A box around each token, in logits, and whether it may propose.

    Args:
        memory: with references and level shapes.
        size: of a box on the finest level, doubled on each coarser one; or one size a level.
        margin: boxes any of whose coordinates is nearer than this to 0 or 1 may not propose.

    Returns:
        anchors (B, N, 2D), infinite where they may not propose, and mask (B, N).
    """
    assert memory.references is not None
    counts = [torch.Size(shape).numel() for shape in memory.level_shapes]
    centers = memory.references.float()  # where they are float64, that is for sampling alone
    own = [size * 2**level for level in range(len(counts))] if isinstance(size, int | float) else list(size)
    sizes = torch.cat([centers.new_full((n,), length) for length, n in zip(own, counts, strict=True)])
    boxes = torch.cat([centers, sizes[None, :, None].expand_as(centers)], -1)
    inside = ((boxes > margin) & (boxes < 1 - margin)).all(-1)
    if memory.mask is not None:
        inside = inside & memory.mask
    return torch.logit(boxes).masked_fill(~inside[..., None], torch.inf), inside


@dataclass(frozen=True)
class Proposals:
    """What the tokens propose.

    Args:
        tokens: (B, N, C), projected and normed; zero before that where a token may not propose.
        logits: (B, N, K).
        anchors: (B, N, 2D), boxes in logits, with gradient; infinite where a token may not propose.
        quality: (B, N), logits of how well boxes will fit, or None.
    """

    tokens: Tensor
    logits: Tensor
    anchors: Tensor
    quality: Tensor | None = None


class ProposalHead(nn.Module):
    """Class logits and a box for every token (Zhu et al., 2021).

    Args:
        width: C.
        classes: (B, N, C) -> (B, N, K).
        boxes: (B, N, C) -> (B, N, 2D), added to each token's anchor.
        quality: (B, N, C) -> (B, N, 1), how well the box will fit, or None.
        size: of anchors, 0.05 on the finest level for images; see `token_anchors`.
        margin: see `token_anchors`, 0.01 for images.
    """

    def __init__(
        self,
        width: int,
        *,
        classes: nn.Module,
        boxes: nn.Module,
        quality: nn.Module | None = None,
        size: float | Sequence[float] = 0.05,
        margin: float = 0.01,
    ) -> None:
        super().__init__()
        self.project, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.classes, self.boxes, self.quality = classes, boxes, quality
        self.size, self.margin = size, margin

    def forward(self, memory: Memory) -> Proposals:
        anchors, may_propose = token_anchors(memory, self.size, self.margin)
        tokens = self.norm(self.project(memory.tokens.masked_fill(~may_propose[..., None], 0)))
        quality = None if self.quality is None else self.quality(tokens).squeeze(-1)
        return Proposals(tokens, self.classes(tokens), at_least_float32(self.boxes(tokens)) + anchors, quality)


class ProposedQueries(nn.Module):
    """The best proposals as queries.

    By the names of the DINO paper: "mixed" selection proposes anchors only, and content is learned by rank; "pure"
    selection makes content and positions from the proposed boxes, as in Deformable DETR; with "features" the chosen
    tokens themselves are the content (DINO's `embed_init_tgt=False`). ("Static" queries propose nothing: see
    `queries`.)

    Args:
        num_queries: Q.
        width: C.
        num_dims: D.
        head: tokens -> proposals.
        ranking: how proposals are ranked; where the head also tells their quality, by both probabilities' product, and
            tokens that may not propose come last.
        selection: "mixed", "pure" or "features".
        positions: whether "mixed" queries or "features" have positions made from the proposed boxes as "pure" ones
            have (Co-Deformable-DETR), or leave them to the decoder (DINO); None: "pure" only.
        judged: "all" tokens against class-agnostic targets (Deformable DETR), or the "chosen" ones against real
            targets (DINO).
        weight: of the proposals' losses.
    """

    def __init__(
        self,
        num_queries: int,
        width: int,
        num_dims: int,
        *,
        head: ProposalHead,
        ranking: Ranking = by_best_class,
        selection: Literal["mixed", "pure", "features"] = "mixed",
        positions: bool | None = None,
        judged: Literal["all", "chosen"] = "chosen",
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_queries, self.head, self.ranking = num_queries, head, ranking
        self.judged, self.weight, self.selection = judged, weight, selection
        self.features = width // num_dims
        self.content = nn.Parameter(torch.randn(num_queries, width)) if selection == "mixed" else None
        positions = selection == "pure" if positions is None else positions
        self.from_boxes = nn.Linear(2 * width, 2 * width) if positions else None
        self.norm_boxes = nn.LayerNorm(2 * width) if positions else None

    def forward(self, memory: Memory, chosen: Tensor | None = None) -> Queries:
        """Queries from a memory.

        Args:
            chosen: (B, Q), indices of tokens to take instead of the best ones; for comparisons between
                implementations whose ranks differ by rounding.
        """
        proposals = self.head(memory)
        if chosen is None:
            count = min(self.num_queries, proposals.logits.shape[1])  # small inputs have fewer tokens
            chosen = self._ranks(proposals).topk(count, dim=1).indices
        anchors = _take(proposals.anchors, chosen)
        supervision = self._supervision(proposals, chosen, anchors)
        anchors = anchors.detach()
        positions = content = None
        if self.from_boxes is not None and self.norm_boxes is not None:
            encoded = box_features(anchors.sigmoid(), self.features).flatten(-2).to(memory.tokens.dtype)
            positions, content = self.norm_boxes(self.from_boxes(encoded)).chunk(2, -1)
        if self.content is not None:
            content = self.content[: anchors.shape[1]].to(memory.tokens.dtype).expand(len(anchors), -1, -1)
        elif content is None or self.selection == "features":
            content = _take(proposals.tokens, chosen).detach()
        return Queries(content, positions, anchors, supervisions=(supervision,))

    def _ranks(self, proposals: Proposals) -> Tensor:
        """(B, N), higher is better."""
        ranks = self.ranking(proposals.logits)
        if proposals.quality is None:
            return ranks
        likely = at_least_float32(ranks).sigmoid() * at_least_float32(proposals.quality).sigmoid()
        return likely.masked_fill(proposals.anchors.isinf().any(-1), -torch.inf)

    def _supervision(self, proposals: Proposals, chosen: Tensor, anchors: Tensor) -> Supervision:
        if self.judged == "all":
            said = Predictions(proposals.logits, proposals.anchors.sigmoid(), proposals.quality)
            return Supervision("proposals", said, weight=self.weight, class_agnostic=True)
        quality = None if proposals.quality is None else proposals.quality.gather(1, chosen)
        said = Predictions(_take(proposals.logits, chosen), anchors.sigmoid(), quality)
        return Supervision("proposals", said, weight=self.weight)


def _take(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
