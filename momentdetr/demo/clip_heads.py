"""Heads that help to train the tiny CLIP and are thrown away afterwards.

The contrastive loss alone teaches towers this small only slowly where things are and what the words for motion mean,
which no single frame answers to. These heads ask for both where they are easier to learn.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from momentdetr.demo.captions import GRID_SIZE, NUM_FACTS, NUM_TURNS, facts
from momentdetr.demo.vocabulary import COLOURS, MOTIONS, SHAPES

CELLS = 6
"""Side of the feature map that the cell head reads: the image tower's last but one."""


class FactHead(nn.Module):
    """Reads what a frame shows off its embedding with one linear layer; see `captions.facts`.

    A motion is a difference between neighbouring frames. Where places and sizes are linear in the embeddings, so are
    their differences, and a retriever finds them easily.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, NUM_FACTS))

    def loss(self, image: Tensor, slots: NDArray[np.float32]) -> Tensor:
        """Squared error of (N, embed_dim) embeddings, summed over facts, per shape shown."""
        values, defined = (torch.from_numpy(part) for part in facts(slots))
        return ((self.layers(image) - values).square() * defined).sum() / np.isfinite(slots[..., 0]).sum()


class CellHead(nn.Module):
    """A small detector: each cell of the feature map tells colour, shape, place, size and turn of its shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sizes = (1, len(COLOURS), len(SHAPES), NUM_TURNS, 3)
        self.layer = nn.Conv2d(channels, sum(self.sizes), 1)

    def losses(self, features: Tensor, slots: NDArray[np.float32]) -> dict[str, Tensor]:
        """Judge a feature map.

        Args:
            features: (N, channels, CELLS, CELLS).
            slots: (N, slots, 6) of `captions.frame_slots`.
        """
        frames, which = np.nonzero(np.isfinite(slots[..., 0]))
        shown = torch.from_numpy(slots[frames, which])  # (S, 6)
        places = (shown[:, 2:4] + 0.5) / GRID_SIZE * CELLS
        cells = places.long().clamp(0, CELLS - 1)
        said = self.layer(features.float()).permute(0, 2, 3, 1)
        there = torch.zeros(said.shape[:3])
        there[torch.from_numpy(frames), cells[:, 1], cells[:, 0]] = 1
        presence = F.binary_cross_entropy_with_logits(said[..., 0], there, reduction="sum") / len(shown)
        _, colour, shape, turn, fine = said[torch.from_numpy(frames), cells[:, 1], cells[:, 0]].split(self.sizes, 1)
        turned = shown[:, 1] != 0
        target = torch.cat([places - cells - 0.5, shown[:, 4:5] / 4 - 1], 1)
        return {
            "presence": presence,
            "colour": F.cross_entropy(colour, shown[:, 0].long()),
            "shape": F.cross_entropy(shape, shown[:, 1].long()),
            "turn": F.cross_entropy(turn[turned], (shown[turned, 5].round() % NUM_TURNS).long()),
            "place": 4 * F.l1_loss(fine, target),
        }


class MeaningHead(nn.Module):
    """Tells colour, shape and motion of a sentence from its token states, with one linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (1 + len(COLOURS), 1 + len(SHAPES), len(MOTIONS))
        self.layer = nn.Linear(width, sum(self.sizes))

    def loss(self, states: Tensor, meanings: NDArray[np.int64]) -> Tensor:
        """Cross-entropy of (M, W) states with (M, 3) meanings, -1 for what is left open."""
        said = self.layer(F.normalize(states, dim=-1) * states.shape[-1] ** 0.5).split(self.sizes, 1)
        wanted = torch.from_numpy(meanings) + torch.tensor([1, 1, 0])
        return sum((F.cross_entropy(s, wanted[:, i]) for i, s in enumerate(said)), torch.zeros(()))
