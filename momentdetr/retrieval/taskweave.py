"""TaskWeave's retriever: one task feeds the other, and the loss of each is weighed by a learned uncertainty."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from momentdetr.detr.losses import Losses
from momentdetr.retrieval.encoders.taskweave import TaskWeaveEncoder
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.types import MomentOutput, MomentTargets, VideoText

HIGHLIGHTS = 2.0  # published weight of the saliency loss beside the moments'


class TaskBalance(nn.Module):
    """Two losses weighed by learned log-variances (Kendall et al., 2018): sum of loss * exp(-s) + s."""

    def __init__(self) -> None:
        super().__init__()
        self.moments, self.highlights = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, moments: Tensor | None, highlights: Tensor | None) -> Tensor:
        """Scalars -> scalar; a task without a loss does not count, nor does its variance."""
        total = self.moments.new_zeros(1)
        if highlights is not None:
            total = total + HIGHLIGHTS * highlights * (-self.highlights).exp() + self.highlights
        if moments is not None:
            total = total + moments * (-self.moments).exp() + self.moments
        return total.squeeze(0)


class TaskWeave(MomentRetriever):
    """A retriever whose tasks help each other once `start_epoch` is reached, and always when it answers.

    Args:
        encoder: gives both memories; its direction says which task helps.
        start_epoch: the first epoch of training in which one task helps the other.
        options: of `MomentRetriever`.
    """

    encoder: TaskWeaveEncoder

    def __init__(self, *, encoder: TaskWeaveEncoder, start_epoch: int = 100, **options: Any) -> None:
        super().__init__(encoder=encoder, weights={}, **options)
        self.start_epoch, self.balance = start_epoch, TaskBalance()

    def forward(self, inputs: VideoText, epoch: int | None = None) -> MomentOutput:
        """Answer a batch.

        Args:
            epoch: of training; None: as after all training.
        """
        coupled = epoch is None or epoch >= self.start_epoch
        encoding = self.encoder(inputs, coupled=coupled)
        output = self.head(encoding.memory)
        if coupled and self.encoder.direction == "moments_first":
            encoding = self.encoder.feed_back(encoding, output.last.boxes)
        return MomentOutput(output, encoding, inputs.video_mask)

    def loss(self, inputs: VideoText, targets: MomentTargets, epoch: int = 0) -> Losses:
        """Run the model on a batch of this epoch and judge it."""
        return self.judge(self(inputs, epoch), targets)

    def judge(self, output: MomentOutput, targets: MomentTargets) -> Losses:
        """All terms of an output, balanced."""
        own = self.encoder.losses(output.encoding, targets, output.video_mask)
        if self.criterion is None:
            return Losses(self.balance(None, own.get("saliency")), own, {})
        moments = self.criterion(output.output, self._parametrized(targets.spans, output))
        total = self.balance(moments.total, own.get("saliency"))
        return Losses(total, {**moments.terms, **own}, moments.assignments)
