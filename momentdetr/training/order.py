"""Which samples a step sees, and what its random draws are: functions of seed, epoch and step, not of the past.

A run that stops anywhere can therefore be continued exactly, without any stored state of a random generator.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import torch


def derived_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of the key."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def epoch_batches(num_samples: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch: every sample once, in the epoch's own random order; the last one may be smaller."""
    generator = torch.Generator().manual_seed(derived_seed("order", seed, epoch))
    order = torch.randperm(num_samples, generator=generator).tolist()
    return [order[i : i + batch_size] for i in range(0, num_samples, batch_size)]


def parts_of(indices: Sequence[int], number: int) -> list[list[int]]:
    """A batch in so many parts, one after another, as equal as can be."""
    size, longer = divmod(len(indices), number)
    ends = [part * size + min(part, longer) for part in range(number + 1)]
    return [list(indices[start:end]) for start, end in itertools.pairwise(ends)]


def seed_step(seed: int, step: int, part: int = 0) -> None:
    """Make dropout and every other global draw of torch in this part of a step a function of (seed, step, part)."""
    torch.manual_seed(derived_seed("step", seed, step, *([part] if part else [])))
