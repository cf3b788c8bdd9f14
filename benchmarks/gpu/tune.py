"""Sweeps the launch constants of both kernels: `PYTHONPATH=. python benchmarks/gpu/tune.py [--out FOLDER]`.

Prints the fastest first for each size, type and pass; writes tune-DATE.json. Nothing is changed in the code.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from kernels import backward_of
from sizes import SIZES, Inputs, make
from timing import measure, num_sets

from momentdetr.detr.kernels import cuda, triton_backend

NAMES = ("dino_encoder", "dino_decoder_900", "spans_7500")
THREADS, RESIDENT, WARPS = (256, 128, 64, 512), (1024, 768, 1536, 2048), (4, 2, 8)


def cuda_times(sets: list[Inputs], backward: bool) -> list[dict[str, Any]]:
    found, before = [], (cuda.MOST_THREADS, dict(cuda.RESIDENT_THREADS))
    for threads, resident in itertools.product(THREADS, RESIDENT):
        cuda.MOST_THREADS, cuda.RESIDENT_THREADS[backward] = threads, resident
        cuda.kernel.cache_clear()
        ms = measure(backward_of(cuda) if backward else lambda x: cuda.forward(*x.arguments()), sets).ms
        found.append({"kernel": "cuda", "threads": threads, "resident": resident, "ms": ms})
    cuda.MOST_THREADS, cuda.RESIDENT_THREADS = before
    cuda.kernel.cache_clear()
    return found


def triton_times(sets: list[Inputs], backward: bool) -> list[dict[str, Any]]:
    found, before = [], triton_backend.NUM_WARPS
    for warps in WARPS:
        triton_backend.NUM_WARPS = warps
        run = backward_of(triton_backend) if backward else lambda x: triton_backend.forward(*x.arguments())
        found.append({"kernel": "triton", "warps": warps, "ms": measure(run, sets).ms})
    triton_backend.NUM_WARPS = before
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU was found (torch.cuda.is_available() is false): nothing was measured", file=sys.stderr)
        return 3
    found = []
    chosen = [size for size in SIZES if size.name in NAMES]
    for size, dtype, backward in itertools.product(chosen, (torch.float32, torch.bfloat16), (False, True)):
        first = make(size, "cuda", dtype, seed=0)
        count = num_sets(first.value.numel() * first.value.element_size() * 3)
        sets = [first, *(make(size, "cuda", dtype, seed) for seed in range(1, count))]
        where = {"size": size.name, "type": str(dtype).removeprefix("torch."), "backward": backward}
        times = cuda_times(sets, backward) + triton_times(sets, backward)
        print(where, *sorted(times, key=lambda row: row["ms"])[:6], sep="\n  ", flush=True)
        found += [where | row for row in times]
    options.out.mkdir(parents=True, exist_ok=True)
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    target = options.out / f"tune-{datetime.date.today().isoformat()}.json"
    target.write_text(json.dumps({"machine": about, "rows": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
