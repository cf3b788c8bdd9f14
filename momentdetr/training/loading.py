"""Batches made ahead of time by worker processes; the same ones whatever their number."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler
from torch.utils.data import Dataset as TorchDataset

from momentdetr.errors import MomentDETRError, OutOfResources

B_co = TypeVar("B_co", covariant=True)


class Samples(Protocol[B_co]):
    """What a run trains on."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], *, seed: int, epoch: int) -> B_co:
        """The batch of these samples in this epoch; must not depend on anything else."""
        ...


@dataclass(frozen=True)
class Key:
    """All that a batch depends on, together with the run's seed."""

    indices: tuple[int, ...]
    epoch: int


@dataclass(frozen=True)
class _Refused:
    """An error of ours, brought home whole: torch would turn it into a traceback."""

    error: MomentDETRError


class _Batches(TorchDataset[Any], Generic[B_co]):
    def __init__(self, samples: Samples[B_co], seed: int) -> None:
        self.samples, self.seed = samples, seed

    def __getitem__(self, key: Key) -> B_co | _Refused:
        try:
            return self.samples.batch(key.indices, seed=self.seed, epoch=key.epoch)
        except MomentDETRError as error:
            return _Refused(error)


class _Keys(Sampler[Key]):
    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys)


def batches(samples: Samples[B_co], keys: Iterable[Key], seed: int, workers: int) -> Generator[B_co, None, None]:
    """The batches of `keys`, in order.

    Args:
        samples: what they are made from.
        keys: which batches; read a little ahead where there are workers.
        seed: of the run.
        workers: processes that make batches; 0: they are made here, when they are asked for.

    Raises:
        MomentDETRError: what `samples` raise.
        OutOfResources: a worker died, most often for want of memory.
    """
    if not workers:
        for key in keys:
            yield samples.batch(key.indices, seed=seed, epoch=key.epoch)
        return
    # A generator of its own: making an iterator draws from the global one otherwise.
    loader = DataLoader(
        cast("IterableDataset[Any]", _Batches(samples, seed)),
        sampler=_Keys(keys),
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),
    )
    try:
        for made in loader:
            if isinstance(made, _Refused):
                raise made.error
            yield made
    except RuntimeError as error:
        if isinstance(error, MomentDETRError) or "DataLoader worker" not in str(error):
            raise
        raise OutOfResources(
            f"a process that reads data died ({error}); resume the run, with fewer workers or more (shared) memory"
        ) from error
