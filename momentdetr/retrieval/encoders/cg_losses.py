"""CG-DETR's (Moon et al., 2023) losses beside QD-DETR's: attention as saliency, moments against sentences, dummies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-6


def source_of(video: str) -> str:
    """Name of the video that a clip of it, "NAME_60.0_210.0" in QVHighlights, was cut from."""
    name, *edges = video.rsplit("_", 2)
    return name if len(edges) == 2 and all(_is_number(edge) for edge in edges) else video


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def has_foreign_neighbour(videos: Sequence[str] | None, batch: int, *, cut: bool = True) -> Tensor:
    """Whether the next sample (the first, for the last) is of another video: (B,).

    Args:
        videos: B names; None where unknown, then every sample but a single one has one.
        batch: B.
        cut: whether names tell which video a sample was cut from, see `source_of`.
    """
    if videos is None:
        return torch.full((batch,), batch > 1)
    sources = [source_of(video) if cut else video for video in videos]
    return torch.tensor([own != other for own, other in zip(sources, sources[1:] + sources[:1], strict=True)])


def attention_negative_loss(values: Tensor, mask: Tensor) -> Tensor:
    """Clips should not attend to words of another video's query: -log(1 - value), summed over clips.

    Args:
        values: (B, T) in [0, 1], the attention that went to words.
        mask: (B, T), True where a clip is real.
    """
    return (-(1 - values).clamp(min=torch.finfo(values.dtype).tiny).log() * mask).sum(1).mean()


def sentence_contrast(moment: Tensor, other: Tensor, sentence: Tensor, dummy: Tensor) -> Tensor:
    """Each moment should be most like its own sentence, and like any but its own dummies.

    Args:
        moment: (B, C), summary of the relevant clips.
        other: (B, C), summary of the other clips.
        sentence: (B, C).
        dummy: (B, C), summary of the dummies.

    Returns:
        Scalar. In the dummies' term the right answer is the first that is not a sample's own, as in the official code.
    """
    moment, other, sentence, dummy = (F.normalize(x, dim=1) for x in (moment, other, sentence, dummy))
    own = torch.arange(len(moment), device=moment.device)
    not_own = (own == 0).long()
    to_sentence = torch.cat([moment @ sentence.T, other @ sentence.T], 1)  # (B, 2B)
    to_dummy = torch.cat([moment @ dummy.T, other @ dummy.T], 1)
    return F.cross_entropy(to_sentence, own) + F.cross_entropy(to_dummy, not_own)


def membership_loss(moment: Tensor, frames: Tensor, inside: Tensor, mask: Tensor, *, padded: bool) -> Tensor:
    """A moment's summary should tell relevant clips from others, by its product with them.

    Args:
        moment: (B, C).
        frames: (B, T, C).
        inside: (B, T), True where a clip is relevant.
        mask: (B, T), True where a clip is real.
        padded: divide by the number of all clips, padded ones included (a fault of the official code).
    """
    logits = (frames @ moment[..., None]).squeeze(-1)
    loss = F.binary_cross_entropy_with_logits(logits, inside.to(logits.dtype), reduction="none") * mask
    return loss.sum() / (mask.numel() if padded else mask.sum())


def distillation_loss(weights: Tensor, likeness: Tensor, inside: Tensor, text_mask: Tensor, *, padded: bool) -> Tensor:
    """Relevant clips should attend to dummies and words as a moment's frames resemble them.

    Args:
        weights: (B, T, D + W), attention.
        likeness: (B, T, D + W); no gradient passes.
        inside: (B, T), True where a clip is relevant.
        text_mask: (B, D + W), True where a token is real.
        padded: let padded words take part (a fault of the official code).
    """
    seen = torch.ones_like(text_mask) if padded else text_mask
    goal = likeness.detach().masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    divergence = F.kl_div((weights + _EPS).log(), goal, reduction="none") * seen[:, None]
    per_clip = divergence.sum(-1) / seen.sum(1)[:, None]
    return (per_clip * inside).sum() / inside.sum().clamp(min=1)


def orthogonality_loss(tokens: Tensor) -> Tensor:
    """Mean magnitude of the cosines between different tokens (..., N, C), each pulled towards where others stay."""
    unit = tokens / tokens.norm(dim=-1, keepdim=True)
    likeness = unit @ unit.detach().transpose(-1, -2)
    return (likeness * (1 - torch.eye(tokens.shape[-2], dtype=tokens.dtype, device=tokens.device))).abs().mean()
