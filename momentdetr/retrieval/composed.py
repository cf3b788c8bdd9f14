"""A text-video encoder of one model and the decoder of another: the head of compositions, and their retriever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from momentdetr.detr.boxes import at_least_float32
from momentdetr.detr.decoder import AnchorGuide
from momentdetr.detr.losses import Losses
from momentdetr.detr.model import Detr
from momentdetr.detr.proposals import ProposalHead, Proposals
from momentdetr.detr.types import Memory, Output, Targets
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.temporal import TemporalLevels
from momentdetr.retrieval.types import Encoding, MomentOutput, MomentTargets, VideoText

SILENT = -30.0
"""Logit of a cell that may not propose: too low to be chosen before a real one, or to be worth a gradient."""


class SpanProposals(ProposalHead):
    """Class logit and span of every cell, around an anchor of so many cells of its own level.

    Images ask for anchors of a twentieth of their width. A video has no such scale: a moment is as long in an hour as
    in a minute. At 75 clips both say the same.

    Args:
        width: C.
        classes: (B, N, C) -> (B, N, K).
        boxes: (B, N, C) -> (B, N, 2), added to each cell's anchor.
        cells: length of an anchor.
        least: there are never fewer proposals than this; empty ones fill up, the same alone and in a batch.
    """

    def __init__(self, width: int, *, classes: nn.Module, boxes: nn.Module, cells: float = 4.0, least: int = 0) -> None:
        super().__init__(width, classes=classes, boxes=boxes)
        self.cells, self.least = cells, least

    def forward(self, memory: Memory) -> Proposals:
        """Propose from every real cell."""
        assert memory.mask is not None
        missing = max(self.least - memory.tokens.shape[1], 0)
        real = nn.functional.pad(memory.mask, (0, missing))
        tokens = nn.functional.pad(memory.tokens.masked_fill(~memory.mask[..., None], 0), (0, 0, 0, missing))
        anchors = nn.functional.pad(self.anchors(memory), (0, 0, 0, missing))
        tokens = self.norm(self.project(tokens))
        logits = self.classes(tokens).masked_fill(~real[..., None], SILENT)
        return Proposals(tokens, logits, at_least_float32(self.boxes(tokens)) + anchors)

    def anchors(self, memory: Memory) -> Tensor:
        """A span around each cell (B, N, 2), in logits; the middle of the video where a cell is not real."""
        assert memory.references is not None
        assert memory.valid_ratios is not None
        assert memory.mask is not None
        counts = [shape[0] for shape in memory.level_shapes]
        ratios = memory.valid_ratios[..., 0]  # (B, L), cells that the video has, of those that there are
        lengths = [self.cells / (ratio * n) for ratio, n in zip(ratios.T, counts, strict=True)]
        sizes = torch.cat([length[:, None].expand(-1, n) for length, n in zip(lengths, counts, strict=True)], 1)
        spans = torch.stack([memory.references[..., 0].clamp(1e-6, 1 - 1e-6), sizes.clamp(max=0.95)], -1)
        return torch.logit(spans).float().masked_fill(~memory.mask[..., None], 0)


class SpanGuide(AnchorGuide):
    """Positions from anchors as fractions of the video, not of the padded batch, whose length is an accident."""

    def _of_first_level(self, references: Tensor, memory: Memory) -> Tensor:
        return references


class TemporalHead(nn.Module):
    """Encoded clips -> Output.

    Args:
        detr: Memory -> Output.
        levels: clips to a memory of several levels, for deformable attention; None: what the encoder gave, as it is.
    """

    def __init__(self, detr: Detr, levels: TemporalLevels | None = None) -> None:
        super().__init__()
        self.detr, self.levels = detr, levels

    def forward(self, memory: Memory, targets: Targets | None = None) -> Output:
        """Find moments; targets are for denoising and one-to-many heads."""
        if self.levels is not None:
            assert memory.mask is not None
            num_clips = memory.level_shapes[0][0]  # words may stand behind the clips
            memory = self.levels(memory.tokens[:, :num_clips], memory.mask[:, :num_clips])
        return self.detr(memory, targets)


class ComposedRetriever(MomentRetriever):
    """A retriever whose head is told what is true while it trains.

    Args:
        head: (memory, targets or None) -> Output.
        feedback: as of `MomentRetriever`.
        options: of `MomentRetriever`.
    """

    def __init__(
        self, *, head: TemporalHead, feedback: Callable[[Encoding, Output, Tensor], Encoding] | None, **options: Any
    ) -> None:
        super().__init__(head=head, feedback=feedback, **options)

    def forward(self, inputs: VideoText, targets: Targets | None = None) -> MomentOutput:
        """Answer a batch; with targets also what trains beside the answers."""
        encoding = self.encoder(inputs)
        output = self.head(encoding.memory, targets)
        if self.feedback is not None:
            encoding = self.feedback(encoding, output, inputs.video_mask)
        return MomentOutput(output, encoding, inputs.video_mask)

    def loss(self, inputs: VideoText, targets: MomentTargets, epoch: int = 0) -> Losses:
        """Run the model on a batch of this epoch, denoising and one-to-many heads included, and judge it."""
        self.at_epoch(epoch)
        return self.judge(self(inputs, targets.spans), targets)
