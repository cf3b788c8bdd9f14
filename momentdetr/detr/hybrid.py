"""Collaborative hybrid assignments (Co-DETR; Zong et al., 2023), in any number of dimensions.

While training, one-to-many heads on the encoded memory give the encoder dense supervision, and lend the decoder what
they found to be positive: customised queries, which need no matching, because each knows the target that it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from momentdetr.detr.anchors import Pyramid
from momentdetr.detr.assignment_dense import Candidates, Shuffle
from momentdetr.detr.boxes import inverse_sigmoid, to_center_size
from momentdetr.detr.losses import over_processes
from momentdetr.detr.neck import CONVOLUTIONS
from momentdetr.detr.positions import box_features
from momentdetr.detr.types import Assignment, Memory, Output, Queries, Supervision, Targets


@dataclass(frozen=True)
class Lent:
    """Queries of one head, for a decoder pass of their own.

    Args:
        name: of their supervisions.
        queries: (B, Q, ...).
        assignment: what they answer for.
        rows: (B, Q), which of the head's candidates each is; their number for nothing at all.
    """

    name: str
    queries: Queries
    assignment: Assignment
    rows: Tensor

    def judged(self, output: Output) -> tuple[Supervision, ...]:
        """The pass's layers as supervisions, divided by the number of positives."""
        count = over_processes(self.assignment.query.new_tensor(len(self.assignment.query)).float())
        *earlier, last = output.layers
        return (
            Supervision(self.name, last, self.assignment, count=count),
            *(
                Supervision(f"{self.name}_{i}", said, self.assignment, count=count, auxiliary=True)
                for i, said in enumerate(earlier)
            ),
        )


class PositiveQueries(nn.Module):
    """A head's positives as queries, padded with its negatives.

    Args:
        width: C.
        num_dims: D.
        positions: "fixed": made from the boxes, beside the content (Co-Deformable-DETR); "anchors": left to the decoder
            (Co-DINO).
        features: whether the content also holds what the head saw there.
        place: what tells the heads apart, added to fixed positions: a "vector"; "scalar": one number, as in the
            official code, whose authors keep a slip in a constructor call for the sake of their results; or "none".
        most: positives of a sample.
        least: queries, with padding.
    """

    def __init__(
        self,
        width: int,
        num_dims: int,
        *,
        positions: Literal["fixed", "anchors"],
        features: bool,
        place: Literal["vector", "scalar", "none"] = "none",
        most: int = 300,
        least: int = 9,
    ) -> None:
        super().__init__()
        self.per_coordinate, self.most, self.least = width // num_dims, most, least
        size = 2 * width if positions == "fixed" else width
        self.from_boxes, self.norm_boxes = nn.Linear(2 * width, size), nn.LayerNorm(size)
        self.from_features = nn.Linear(width, width) if features else None
        self.norm_features = nn.LayerNorm(width) if features else None
        self.place = None if place == "none" else nn.Parameter(torch.randn(1, width if place == "vector" else 1))
        self.fixed = positions == "fixed"

    def pick(self, target: Tensor, shuffle: Shuffle) -> Tensor:
        """Rows (B, Q) of candidates: each sample's positives, then negatives; R stands for nothing at all.

        Args:
            target: (B, R).
        """
        found = [(row >= 0).nonzero().flatten() for row in target]
        number = max(self.least, min(self.most, max(map(len, found))))
        picked = []
        for row, positive in zip(target, found, strict=True):
            if len(positive) > number:
                positive = positive[shuffle(len(positive)).to(positive.device)[:number]]
            missing = number - len(positive)
            if missing:
                negative = (row < 0).nonzero().flatten()
                if len(negative):
                    # Small samples may have fewer negatives than are missing; then they come more than once.
                    negative = negative[shuffle(len(negative)).to(row.device)]
                    padding = negative.repeat(-(-missing // len(negative)))[:missing]
                else:
                    padding = torch.full((missing,), len(row), device=row.device)
                positive = torch.cat([positive, padding])
            picked.append(positive)
        return torch.stack(picked)

    def forward(self, name: str, candidates: Candidates, extents: Tensor, shuffle: Shuffle) -> Lent:
        """Borrow from one head; extents (B, D) are the samples' sizes in input cells."""
        rows = self.pick(candidates.target, shuffle)
        corners, features = (_with_nothing(x, rows) for x in (candidates.corners, candidates.features))
        target = nn.functional.pad(candidates.target, (0, 1), value=-1).gather(1, rows)
        sample, slot = (target >= 0).nonzero(as_tuple=True)
        references = to_center_size(corners / extents.repeat(1, 2)[:, None])
        # Encoded within [0, 1], as if they came from logits; what the decoder starts from may reach further.
        encoded = box_features(inverse_sigmoid(references, 1e-5).sigmoid(), self.per_coordinate).flatten(-2)
        content = self.norm_boxes(self.from_boxes(encoded.to(features.dtype)))
        positions = None
        if self.fixed:
            positions, content = content.chunk(2, -1)
            if self.place is not None:
                positions = positions + self.place
        if self.from_features is not None and self.norm_features is not None:
            content = content + self.norm_features(self.from_features(features))
        queries = Queries(content, positions, references=references)
        return Lent(f"queries_of_{name}", queries, Assignment(sample, slot, target[sample, slot]), rows)


def _with_nothing(values: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, Q) of values (B, R, ...), where index R stands for zeros."""
    values = torch.cat([values, torch.zeros_like(values[:, :1])], 1)
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))


class HybridHeads(nn.Module):
    """One-to-many heads on the encoded memory and a coarser level made from it.

    Args:
        num_dims: D.
        width: C.
        heads: (pyramid, targets, shuffle) -> supervisions and candidates; each has a `name`.
        lending: one for each head.
        stride: input cells per cell of the memory's finest level; doubled on each coarser one.
        group_norm: groups of the norm of the coarser level.
    """

    def __init__(
        self,
        num_dims: int,
        width: int,
        *,
        heads: Sequence[nn.Module],
        lending: Sequence[PositiveQueries],
        stride: float,
        group_norm: int = 32,
    ) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[num_dims](width, width, 3, stride=2, padding=1)
        self.coarser = nn.Sequential(convolution, nn.GroupNorm(group_norm, width))
        self.heads, self.lending, self.stride = nn.ModuleList(heads), nn.ModuleList(lending), stride

    def pyramid(self, memory: Memory) -> Pyramid:
        """The memory's tokens as maps again, and a coarser one."""
        assert memory.extents is not None
        counts = [torch.Size(shape).numel() for shape in memory.level_shapes]
        parts = zip(memory.tokens.split(counts, 1), memory.level_shapes, strict=True)
        levels = [tokens.transpose(1, 2).unflatten(2, shape) for tokens, shape in parts]
        levels.append(self.coarser(levels[-1]))
        strides = tuple(self.stride * 2**i for i in range(len(levels)))
        return Pyramid(tuple(levels), strides, memory.extents)

    def forward(
        self, memory: Memory, targets: Targets, shuffle: Shuffle
    ) -> tuple[tuple[Supervision, ...], tuple[Lent, ...]]:
        """Judge the memory by every head, and borrow from each."""
        pyramid = self.pyramid(memory)
        results = [head(pyramid, targets, shuffle) for head in self.heads]
        lent = [
            cast(PositiveQueries, lending)(str(head.name), candidates, pyramid.extents, shuffle)
            for head, lending, (_, candidates) in zip(self.heads, self.lending, results, strict=True)
        ]
        return tuple(judged for supervisions, _ in results for judged in supervisions), tuple(lent)
