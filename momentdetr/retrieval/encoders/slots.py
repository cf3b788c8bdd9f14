"""Slot attention (Locatello et al., 2020) over clips, as UVCOM and EaTR use it: slots compete for clips."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from momentdetr.detr.mlp import MLP

_EPS = 1e-8


class SlotAttention(nn.Module):
    """Refine slots by what they win of the clips.

    Args:
        width: C.
        hidden: sizes between the linear layers of the slots' network.
        iterations: how often the slots are refined.
        official_batch_faults: let padded clips take part, each shared equally by all slots; else they have no part.
    """

    def __init__(self, width: int, *, hidden: tuple[int, ...], iterations: int, official_batch_faults: bool) -> None:
        super().__init__()
        self.norm_inputs, self.norm_slots, self.norm_mlp, self.norm_out = (nn.LayerNorm(width) for _ in range(4))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mlp = MLP(width, *hidden, width)
        self.iterations, self.official_batch_faults = iterations, official_batch_faults

    def forward(self, clips: Tensor, mask: Tensor, slots: Tensor) -> Tensor:
        """Clips (B, T, C), True where they are real (B, T), first slots (B, Q, C) -> (B, Q, C)."""
        clips = self.norm_inputs(clips)
        keys, values = self.key(clips), self.value(clips)
        for _ in range(self.iterations):
            logits = self.query(self.norm_slots(slots)) @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5
            shares = self._shares(logits, mask)
            shares = shares / (shares.sum(-1, keepdim=True) + _EPS)
            slots = slots + shares @ values
            slots = slots + self.mlp(self.norm_mlp(slots))
        return self.norm_out(slots)

    def _shares(self, logits: Tensor, mask: Tensor) -> Tensor:
        if self.official_batch_faults:
            return logits.masked_fill(~mask[:, None], -torch.finfo(logits.dtype).max).softmax(1)
        return logits.softmax(1) * mask[:, None]
