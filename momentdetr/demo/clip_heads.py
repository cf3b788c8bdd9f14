"""Heads that help to train the tiny CLIP and are thrown away afterwards.

The contrastive losses alone teach an image tower this small where and what things are only slowly, because they see
one vector per frame. These heads ask for the same facts where they are easier to learn.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from momentdetr.demo.captions import GRID_SIZE, NUM_TURNS, SPELLED
from momentdetr.demo.vocabulary import COLOURS, MOTIONS, SHAPES

RUN = 5
"""Frames that the run head sees at once."""
CELLS = 6
"""Side of the feature map that the cell head reads: the image tower's last but one."""


class RunHead(nn.Module):
    """Reads the motion of the middle frame out of a run of frame embeddings, to be compared with a sentence."""

    def __init__(self, embed_dim: int, text_width: int) -> None:
        super().__init__()
        wide = RUN * embed_dim
        self.video = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, 384), nn.ReLU(), nn.Linear(384, embed_dim))
        self.text = nn.Linear(text_width, embed_dim)
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-8.0))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Embeddings (runs * RUN, E) and last token states (M, W) -> logits (runs, M)."""
        run = F.normalize(self.video(image.reshape(-1, RUN * image.shape[-1])), dim=-1)
        return self.scale.exp() * run @ F.normalize(self.text(text), dim=-1).T + self.bias


class SlotHead(nn.Module):
    """Spells out what a frame shows from its embedding; see `captions.spell`."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        last = nn.Linear(384, SPELLED)
        nn.init.constant_(last.bias, -4.0)
        self.layers = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, 384), nn.ReLU(), last)

    def loss(self, image: Tensor, spelled: Tensor) -> Tensor:
        """Binary cross-entropy with (N, SPELLED), summed over a frame."""
        return F.binary_cross_entropy_with_logits(self.layers(image), spelled, reduction="sum") / len(image)


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
    """Tells colour, shape and motion of a sentence from its token states, as plainly as a linear layer can read them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (1 + len(COLOURS), 1 + len(SHAPES), len(MOTIONS))
        self.layer = nn.Linear(width, sum(self.sizes))

    def loss(self, states: Tensor, meanings: NDArray[np.int64]) -> Tensor:
        """Cross-entropy of (M, W) states with (M, 3) meanings, -1 for what is left open."""
        said = self.layer(F.normalize(states, dim=-1) * states.shape[-1] ** 0.5).split(self.sizes, 1)
        wanted = torch.from_numpy(meanings) + torch.tensor([1, 1, 0])
        return sum((F.cross_entropy(s, wanted[:, i]) for i, s in enumerate(said)), torch.zeros(()))
