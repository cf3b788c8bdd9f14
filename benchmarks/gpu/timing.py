"""How a GPU's time is measured here."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from sizes import Inputs

CACHE_MULTIPLE = 3
"""Input sets together are at least so many times the L2 cache, so that a call does not find its inputs there."""

MOST_SETS = 8


@dataclass(frozen=True)
class Timing:
    """Of one call."""

    ms: float
    spread: float
    """Middle half of the measurements, as a share of the median."""

    how: str
    """graph: replayed, without launches; stream: launched one after another."""

    peak_mb: float
    """Memory that a call needs beyond what was there before it."""


def num_sets(one: int) -> int:
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(1, min(MOST_SETS, -(-CACHE_MULTIPLE * cache // max(one, 1))))


def measure(run: Callable[[Inputs], object], sets: Sequence[Inputs], repeats: int = 30) -> Timing:
    """Median over repeats, each one call for every set of inputs; from a CUDA graph where the call can be captured."""
    for _ in range(2):
        for inputs in sets:
            run(inputs)
    torch.cuda.synchronize()
    peak = extra_memory(run, sets[0])

    def once() -> None:
        for inputs in sets:
            run(inputs)

    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            once()
        replay, how = graph.replay, "graph"
    except RuntimeError:
        torch.cuda.synchronize()
        replay, how = once, "stream"
    times = []
    for i in range(repeats + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end) / len(sets))
    low, middle, high = statistics.quantiles(times, n=4)
    return Timing(middle, (high - low) / middle, how, peak)


def extra_memory(run: Callable[[Inputs], object], inputs: Inputs) -> float:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(inputs)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def copy_rate() -> float:
    """Bytes a second that a large copy on the device moves, read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return 2 * source.numel() / (statistics.median(times) / 1e3)
