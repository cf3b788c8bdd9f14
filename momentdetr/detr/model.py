"""The detector: a memory encoded, queries made, decoded, and beside them denoising groups while training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from momentdetr.detr.assignment_dense import Shuffle
from momentdetr.detr.decoder import Decoder
from momentdetr.detr.denoising import Denoising, Draws, touch
from momentdetr.detr.hybrid import HybridHeads
from momentdetr.detr.losses import Criterion, Losses
from momentdetr.detr.neck import Neck
from momentdetr.detr.types import Memory, Output, Queries, Targets


class Detr(nn.Module):
    """Memory -> Output, in any number of dimensions.

    Args:
        queries: Memory -> Queries.
        decoder: (Queries, Memory) -> Output.
        encoder: Memory -> Memory, or None where the memory comes encoded.
        denoising: groups to restore while training, or None.
        hybrid: one-to-many heads that train the memory and lend the decoder their positives, or None.
    """

    def __init__(
        self,
        *,
        queries: nn.Module,
        decoder: Decoder,
        encoder: nn.Module | None = None,
        denoising: Denoising | None = None,
        hybrid: HybridHeads | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.queries, self.decoder, self.denoising = encoder, queries, decoder, denoising
        self.hybrid = hybrid

    def forward(
        self,
        memory: Memory,
        targets: Targets | None = None,
        *,
        draws: Draws | None = None,
        generator: torch.Generator | None = None,
        shuffle: Shuffle | None = None,
        proposals: Tensor | None = None,
    ) -> Output:
        """Detect.

        Args:
            targets: what is true, for denoising and one-to-many heads while training; None: neither.
            draws: the groups' noise, or None: fresh noise.
            generator: of fresh noise.
            shuffle: how one-to-many heads choose at random; None: by the generator.
            proposals: (B, Q) tokens to start from instead of the best ones, where queries are proposed.
        """
        memory = memory if self.encoder is None else self.encoder(memory)
        queries = self.queries(memory) if proposals is None else self.queries(memory, proposals)
        output = self._decode(queries, memory, targets, draws, generator)
        if self.hybrid is None or targets is None:
            return output
        supervisions, lent = self.hybrid(memory, targets, shuffle or _shuffle(generator))
        passes = [one.judged(self.decoder(one.queries, memory)) for one in lent]
        return replace(output, supervisions=sum(passes, (*output.supervisions, *supervisions)))

    def _decode(
        self,
        queries: Queries,
        memory: Memory,
        targets: Targets | None,
        draws: Draws | None,
        generator: torch.Generator | None,
    ) -> Output:
        """Matching queries, and denoising groups where there are targets."""
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


def _shuffle(generator: torch.Generator | None) -> Shuffle:
    """Permutations drawn from a generator."""
    device = "cpu" if generator is None else generator.device
    return lambda count: torch.randperm(count, generator=generator, device=device)


def refuse_not_finite(name: str, values: Sequence[Tensor]) -> None:
    """Stop at NaN or infinity before it spreads.

    Args:
        name: what the values are, for the message.
        values: (B, ...) each.

    Raises:
        ValueError: names the first sample that holds one.
    """
    broken = ~torch.stack([part.isfinite().flatten(1).all(1) for part in values]).all(0)  # (B,)
    if broken.any():
        sample = int(broken.nonzero()[0])
        raise ValueError(
            f"the {name} of sample {sample} are not finite: they hold NaN or infinity; look at this sample's input, "
            "or at the step before for divergence"
        )


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
        shuffle: Shuffle | None = None,
        proposals: Tensor | None = None,
    ) -> Output:
        """Feature maps (B, channels, *spatial), finest first, and the input's mask (B, *spatial), True where real.

        Raises:
            ValueError: features or targets are not finite; the message names the sample.
        """
        refuse_not_finite("features", features[-self.neck.num_maps :])
        if targets is not None:
            refuse_not_finite("target boxes", [targets.boxes.masked_fill(~targets.mask[..., None], 0)])
        memory = self.neck(features, mask)
        return self.detr(memory, targets, draws=draws, generator=generator, shuffle=shuffle, proposals=proposals)

    def loss(
        self,
        features: Sequence[Tensor],
        mask: Tensor,
        targets: Targets,
        *,
        draws: Draws | None = None,
        generator: torch.Generator | None = None,
        shuffle: Shuffle | None = None,
    ) -> Losses:
        """Detect with denoising and one-to-many heads, and judge."""
        output = self(features, mask, targets, draws=draws, generator=generator, shuffle=shuffle)
        return self.criterion(output, targets)
