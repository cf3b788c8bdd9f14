"""UVCOM's (Xiao et al., 2024) parts: clusters, a random walk between clips and topics, and its decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.detr.decoder import Decoder
from momentdetr.detr.types import Memory, Output, Queries, Targets

_EPS = 1e-9
_SPREAD = 1.2
_SHARPNESS = 5.0
_RESTART = 0.5


def _directions(values: Tensor) -> Tensor:
    return values / (values.norm(dim=-1, keepdim=True) + _EPS)


def cluster(centres: Tensor, tokens: Tensor, mask: Tensor, iterations: int) -> Tensor:
    """Expectation maximisation: tokens belong to the centres whose directions are near theirs.

    Args:
        centres: (K, C), where it starts.
        tokens: (B, N, C).
        mask: (B, N), True where a token takes part.
        iterations: how often centres move.

    Returns:
        (B, K, C).
    """
    found = centres.expand(len(tokens), -1, -1)
    directions = _directions(tokens)
    for _ in range(iterations):
        apart = (_directions(found)[:, :, None] - directions[:, None]).square().sum(-1)  # (B, K, N)
        belongs = (-0.5 * apart / _SPREAD**2).softmax(1) * mask[:, None]
        found = belongs / (belongs.sum(-1, keepdim=True) + _EPS) @ tokens
    return found


def random_walk(clips: Tensor, topics: Tensor, mask: Tensor, *, inverted: bool) -> Tensor:
    """Clips mixed with the topics that they belong to, and with clips of the same topics, in the limit of a walk.

    Args:
        clips: (B, T, C).
        topics: (B, K, C).
        mask: (B, T), True where a clip takes part.
        inverted: solve for the limit, as published; False: multiply by the matrix instead, as Lighthouse does.

    Returns:
        (B, T, C).
    """
    belongs = (_directions(topics) @ _directions(clips).transpose(1, 2) * _SHARPNESS).softmax(1) * mask[:, None]
    shares = belongs / (belongs.sum(-1, keepdim=True) + _EPS)  # (B, K, T)
    one = torch.eye(clips.shape[1], dtype=clips.dtype, device=clips.device)
    step = one - _RESTART**2 * belongs.transpose(1, 2) @ shares  # (B, T, T)
    start = _RESTART * belongs.transpose(1, 2) @ topics + clips
    return (1 - _RESTART) * (torch.linalg.solve(step, start) if inverted else step @ start)


class LocalConvolution(nn.Sequential):
    """Three convolutions without anything between; the middle one sees a clip's neighbours: (B, C, T) -> (B, C, T).

    Args:
        width: C.
        official_batch_faults: let the bias of the first one be seen as a neighbour where a clip is padding.
    """

    def __init__(self, width: int, *, official_batch_faults: bool) -> None:
        super().__init__(nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 3, padding=1), nn.Conv1d(width, width, 1))
        self.official_batch_faults = official_batch_faults

    def forward(self, clips: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Clips (B, T, C), True where they are real (B, T) -> (B, T, C)."""
        first, around, last = self
        real = mask[:, None]
        seen = first(clips.transpose(1, 2) * real)
        seen = seen if self.official_batch_faults else seen * real
        return last(around(seen)).transpose(1, 2)


class MovedDecoder(Decoder):
    """A decoder whose predictions start from the reference after a layer has moved it, not before."""

    def forward(self, queries: Queries, memory: Memory) -> Output:
        content, predictions, hidden_states, references = queries.content, [], [], []
        assert queries.anchors is not None
        assert self.norm is not None
        used = self.parametrization.to_boxes(queries.anchors)
        for index, layer in enumerate(self.layers):
            content = layer(content, self.guide(content, used, queries, memory, index), memory)
            hidden = self.norm(content)
            moved = self.parametrization.refine(self._refine_head(index)(content), used)
            predictions.append(self.heads[index % len(self.heads)](hidden, moved, self.parametrization))
            hidden_states.append(hidden)
            references.append(moved)
            used = moved.detach()
        return Output(tuple(predictions), torch.stack(hidden_states), tuple(references))


def similarity_loss(clips: Tensor, videos: Tensor, spans: Targets, mask: Tensor, *, padded: bool) -> Tensor:
    """Videos should be like their own texts, and of a video's clips those of its first moment like the text.

    Args:
        clips: (B, T), likeness of clips to their text.
        videos: (B, B), likeness of videos to texts.
        spans: the moments; only the first of each sample counts, as in the official code.
        mask: (B, T), True where a clip is real.
        padded: let padded clips take part in the softmax and in the mean (a fault of the official code).
    """
    own = torch.arange(len(videos), device=videos.device)
    between = (F.cross_entropy(videos, own) + F.cross_entropy(videos.T, own)) / 2
    length = mask.sum(1)
    centre, width = spans.boxes[:, 0].unbind(-1)
    first = ((centre - 0.5 * width) * length).long()[:, None]
    last = ((centre + 0.5 * width) * length).long()[:, None]
    steps = torch.arange(mask.shape[1], device=mask.device)
    inside = (steps >= first) & (steps < last) & mask & spans.mask[:, :1]
    logits = clips if padded else clips.masked_fill(~mask, -torch.inf)
    surprise = -logits.log_softmax(1).masked_fill(~inside, 0).sum(1)
    within = (surprise / (mask.shape[1] if padded else length)).mean()
    return (between + within) / 2
