"""The detector: a memory encoded, queries made, decoded, and beside them denoising groups while training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from momentdetr.detr.decoder import Decoder
from momentdetr.detr.denoising import Denoising, Draws, touch
from momentdetr.detr.losses import Criterion, Losses
from momentdetr.detr.neck import Neck
from momentdetr.detr.types import Memory, Output, Targets


class Detr(nn.Module):
    """Memory -> Output, in any number of dimensions.

    Args:
        queries: Memory -> Queries.
        decoder: (Queries, Memory) -> Output.
        encoder: Memory -> Memory, or None where the memory comes encoded.
        denoising: groups to restore while training, or None.
    """

    def __init__(
        self,
        *,
        queries: nn.Module,
        decoder: Decoder,
        encoder: nn.Module | None = None,
        denoising: Denoising | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.queries, self.decoder, self.denoising = encoder, queries, decoder, denoising

    def forward(
        self,
        memory: Memory,
        targets: Targets | None = None,
        *,
        draws: Draws | None = None,
        generator: torch.Generator | None = None,
        proposals: Tensor | None = None,
    ) -> Output:
        """Detect.

        Args:
            targets: what is true, for denoising while training; None: no groups are made.
            draws: the groups' noise, or None: fresh noise.
            generator: of fresh noise.
            proposals: (B, Q) tokens to start from instead of the best ones, where queries are proposed.
        """
        memory = memory if self.encoder is None else self.encoder(memory)
        queries = self.queries(memory) if proposals is None else self.queries(memory, proposals)
        if self.denoising is None:
            return self.decoder(queries, memory)
        queries = self.denoising.matching_content(queries)
        if targets is None:
            return self.decoder(queries, memory)
        group = self.denoising(targets, draws, generator)
        if group is None:
            return touch([self.denoising], self.decoder(queries, memory))
        output = self.decoder(self.denoising.join(group, queries), memory)
        return self.denoising.split(output, group, targets)


class Detector(nn.Module):
    """Feature maps -> Output: a neck, a `Detr`, and what it is judged by.

    Args:
        neck: feature maps and mask -> Memory.
        detr: Memory -> Output.
        criterion: (Output, Targets) -> Losses.
    """

    def __init__(self, *, neck: Neck, detr: Detr, criterion: Criterion) -> None:
        super().__init__()
        self.neck, self.detr, self.criterion = neck, detr, criterion

    def forward(
        self,
        features: Sequence[Tensor],
        mask: Tensor,
        targets: Targets | None = None,
        *,
        draws: Draws | None = None,
        generator: torch.Generator | None = None,
        proposals: Tensor | None = None,
    ) -> Output:
        """Feature maps (B, channels, *spatial), finest first, and the input's mask (B, *spatial), True where real."""
        return self.detr(self.neck(features, mask), targets, draws=draws, generator=generator, proposals=proposals)

    def loss(
        self,
        features: Sequence[Tensor],
        mask: Tensor,
        targets: Targets,
        *,
        draws: Draws | None = None,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Detect with denoising, and judge."""
        return self.criterion(self(features, mask, targets, draws=draws, generator=generator), targets)
