"""Deformable attention against transformers' own function, and against what the machine can do at most.

    python benchmarks/kernels.py [--json] [--sizes dino_encoder,dino_decoder] [--passes forward,train] [--threads 2]
    python benchmarks/kernels.py --end-to-end          Deformable DETR R50, 800 x 1066, same weights

Ours is the whole operator, with softmax and locations inside; the peer is given both ready-made. The two alternate in
one process after three warm-ups, in turns of one call or, where calls are short, of equally many; figures are medians.
"huge" is the peer in a process with glibc's huge pages. Memory is the highest resident size of one call beyond what
was there before. The floor is the largest of: bytes that must move at the rate of a copy, multiply-adds at the AVX2
rate, gathered rows at the rate of the second-level cache (all measured here, see floor.c; backward has three times the
arithmetic and rows: read, and read and written back).
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if __name__ == "__main__":
    # Files beside this one have names of packages: `detection`, and `kernels`, which transformers seeks.
    sys.path.pop(0)

from momentdetr.detr import mlp
from momentdetr.detr.kernels import choose, deformable_attention, describe, library

HEADS, CHANNELS, POINTS = 8, 32, 4
TURN_MS = 50
"""A turn is as many calls as the faster of two makes in this time."""
IMAGE = [(100, 167), (50, 84), (25, 42), (13, 21)]
SMALLER = [(100, 134), (50, 67), (25, 34), (13, 17)]


def line(clips: int) -> list[tuple[int, ...]]:
    """Four levels over a sequence."""
    return [(math.ceil(clips / 2**level),) for level in range(4)]


# Name -> levels, queries (None: one a token).
SIZES: dict[str, tuple[list[tuple[int, ...]], int | None]] = {
    "dino_encoder": (IMAGE, None),
    "dino_decoder": (IMAGE, 900),
    "encoder_800x1066": (SMALLER, None),
    "deformable_decoder": (IMAGE, 300),
    **{f"span_encoder_{clips}": (line(clips), None) for clips in (75, 750, 7500, 75000)},
    "span_decoder_7500": (line(7500), 100),
}


@dataclass(frozen=True)
class Inputs:
    """Arguments of both, with the same points and weights."""

    value: Tensor
    shapes: list[tuple[int, ...]]
    references: Tensor
    offsets: Tensor
    logits: Tensor
    locations: Tensor
    weights: Tensor
    grad: Tensor


def make(shapes: list[tuple[int, ...]], queries: int | None) -> Inputs:
    """Points as a model has them: along its head's direction, with a cell of noise."""
    torch.manual_seed(0)
    dims, cells = len(shapes[0]), sum(map(math.prod, shapes))
    if queries is None:
        grids = [
            torch.cartesian_prod(*[(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in shape]).view(-1, dims)
            for shape in shapes
        ]
        references = torch.cat(grids).flip(-1)[None, :, None].expand(1, -1, len(shapes), -1).contiguous()
    else:
        references = torch.rand(1, queries, 1, dims, dtype=torch.float64).expand(-1, -1, len(shapes), -1).contiguous()
    angles = torch.arange(HEADS) * 2 * math.pi / HEADS
    rays = torch.stack([angles.cos(), angles.sin()], -1) if dims == 2 else (1.0 - torch.arange(HEADS) % 2 * 2)[:, None]
    reach = torch.arange(1, POINTS + 1.0)[:, None]
    spread = torch.randn(1, references.shape[1], HEADS, len(shapes), POINTS, dims)
    offsets = rays[:, None, None] * reach + spread
    logits = torch.randn(spread.shape[:-1])
    sizes = torch.tensor([shape[::-1] for shape in shapes], dtype=torch.float64)[:, None]
    locations = (references[:, :, None, :, None] + offsets / sizes).float()
    return Inputs(
        torch.randn(1, cells, HEADS, CHANNELS), shapes, references, offsets, logits, locations,
        logits.flatten(-2).softmax(-1).view(logits.shape), torch.randn(1, references.shape[1], HEADS, CHANNELS),
    )  # fmt: skip


def ours_of(given: Inputs, train: bool) -> Callable[[], None]:
    """One call of ours."""
    inputs = [x.clone().requires_grad_(train) for x in (given.value, given.offsets, given.logits)]

    def call() -> None:
        with torch.set_grad_enabled(train):
            output = deformable_attention(inputs[0], given.shapes, given.references, inputs[1], inputs[2])
            if train:
                torch.autograd.grad(output, inputs, given.grad)

    return call


def peer_of(given: Inputs, train: bool) -> Callable[[], None]:
    """One call of transformers' function; a line is an image of one row to it."""
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    function = MultiScaleDeformableAttention()
    shapes = [(1, *shape) if len(shape) == 1 else shape for shape in given.shapes]
    locations = given.locations
    if locations.shape[-1] == 1:
        locations = torch.cat([locations, torch.full_like(locations, 0.5)], -1)
    inputs = [x.clone().requires_grad_(train) for x in (given.value, locations, given.weights)]
    sizes = torch.tensor(shapes)

    def call() -> None:
        with torch.set_grad_enabled(train):
            output = function(inputs[0], sizes, shapes, torch.zeros(1), inputs[1], inputs[2], 64)
            if train:
                torch.autograd.grad(output, inputs, given.grad.flatten(2))

    return call


def alternate(*calls: Callable[[], None], budget_s: float) -> list[float]:
    """Median milliseconds of a call of each, in turns of equally many calls, after three warm-ups."""

    def turn(call: Callable[[], None], count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - begun) * 1e3 / count

    gc.collect()
    gc.freeze()  # what transformers and torch have imported would be searched through now and then
    count = max(1, round(TURN_MS / min(turn(call, 3) for call in calls)))
    times: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    while len(times[0]) < 5 or (time.perf_counter() - start < budget_s and len(times[0]) < 100):
        for call, kept in zip(calls, times, strict=True):
            kept.append(turn(call, count))
    gc.unfreeze()
    return [statistics.median(kept) for kept in times]


def peak_mb(call: Callable[[], None]) -> float:
    """How much one call adds to the resident size at its highest, in MB; Linux only, nan elsewhere."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return math.nan

    def read(name: str) -> float:
        return next(int(row.split()[1]) / 1024 for row in status.read_text().splitlines() if row.startswith(name))

    call()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")
    before = read("VmRSS")
    call()
    return read("VmHWM") - before


def machine_limits(threads: int) -> dict[str, float]:
    """GB/s of a copy, GB/s of the second-level cache, GFLOP/s of AVX2; compiled and measured now."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "floor.so"
        source = Path(__file__).with_name("floor.c")
        subprocess.run(["cc", "-O2", "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
        found = ctypes.CDLL(str(path))
    for name in ("copy", "read_cache", "multiply"):
        getattr(found, name).restype = ctypes.c_double
    big, other, small = torch.ones(2**28), torch.ones(2**28), torch.ones(threads * 2**17)
    pointers = ctypes.c_void_p(other.data_ptr()), ctypes.c_void_p(big.data_ptr())
    return {
        "copy_gb_s": found.copy(*pointers, ctypes.c_int64(2**30), threads),
        "cache_gb_s": found.read_cache(ctypes.c_void_p(small.data_ptr()), ctypes.c_int64(2**19), threads),
        "gflop_s": found.multiply(threads),
    }


def floor_ms(given: Inputs, train: bool, limits: dict[str, float]) -> float:
    """The least that the arithmetic, the rows and the bytes of a call can take."""
    corners = given.weights.numel() * 2 ** len(given.shapes[0])
    flop, gathered = corners * CHANNELS * 2, corners * CHANNELS * 4
    touched = min(given.value.numel(), corners * CHANNELS) * 4
    coordinates = (given.offsets.numel() + given.logits.numel()) * 4
    forward = touched + coordinates + given.grad.numel() * 4
    backward = touched + given.value.numel() * 4 + 2 * coordinates + given.grad.numel() * 4

    def least(moved: float, times: int) -> float:
        return (
            max(moved / limits["copy_gb_s"], times * flop / limits["gflop_s"], times * gathered / limits["cache_gb_s"])
            / 1e6
        )

    return least(forward, 1) + (least(backward, 3) if train else 0)


def with_huge_pages(name: str, work: str, threads: int) -> float:
    """The peer's milliseconds in a process of its own, whose allocator asks for huge pages."""
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    command = [sys.executable, __file__, "--peer-alone", "--sizes", name, "--passes", work, "--threads", str(threads)]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    limits = machine_limits(options.threads)
    print(f"limits: {', '.join(f'{k} {v:.0f}' for k, v in limits.items())}", file=sys.stderr)
    for name in options.sizes:
        given = make(*SIZES[name])
        for work in options.passes:
            train = work == "train"
            ours, peer = ours_of(given, train), peer_of(given, train)
            ms, peer_ms = alternate(ours, peer, budget_s=options.seconds)
            row = {
                "size": name, "pass": work, "ms": ms, "peer_ms": peer_ms, "ratio_to_peer": peer_ms / ms,
                "ratio_to_floor": ms / floor_ms(given, train, limits),
                "peak_mb": peak_mb(ours), "peer_peak_mb": peak_mb(peer),
            }  # fmt: skip
            if options.huge_pages:
                row["peer_huge_pages_ms"] = with_huge_pages(name, work, options.threads)
            yield row


def end_to_end(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Deformable DETR R50 with random weights, converted; one image of 800 x 1066."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

    from detection import hf
    from detection.convert import convert_state
    from detection.inference import speed_up

    torch.manual_seed(0)
    body = ResNetConfig(out_features=["stage2", "stage3", "stage4"])
    config = DeformableDetrConfig(
        use_timm_backbone=False, backbone_config=body, num_labels=91, dropout=0.0, auxiliary_loss=False
    )
    theirs = DeformableDetrForObjectDetection(config).eval()
    ours = convert_state(theirs.state_dict(), hf.options_of(config.to_dict())).model().eval()
    images, mask = torch.randn(1, 3, 800, 1066), torch.ones(1, 800, 1066, dtype=torch.bool)

    def run(model: Any) -> tuple[Tensor, Tensor]:
        if model is theirs:
            found = theirs(pixel_values=images, pixel_mask=mask.long())
            return found.logits, found.pred_boxes
        last = model(images, mask).last
        return last.logits, last.boxes

    def step(model: Any) -> Callable[[], None]:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)

        def call() -> None:
            logits, boxes = run(model)
            optimizer.zero_grad()
            (logits.square().mean() + boxes.square().mean()).backward()
            optimizer.step()

        return call

    together, fast = copy.deepcopy(ours), copy.deepcopy(ours)
    together.backbone.to(memory_format=torch.channels_last)
    speed_up(fast.backbone)
    forms = {"as trained": ours, "channels last": together, "channels last, norms folded": fast}
    with torch.no_grad():
        expected = run(theirs)
        for model in forms.values():
            for mine, other in zip(run(model), expected, strict=True):
                torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-3)
        calls = [lambda model=model: run(model) for model in (*forms.values(), theirs)]
        *ms, peer_ms = alternate(*calls, budget_s=options.seconds)
        shares, mlp.SHARE = mlp.SHARE, 10**9
        (whole_ms,) = alternate(calls[0], budget_s=options.seconds)
        mlp.SHARE = shares
        for form, taken in zip((*forms, "as trained, feed-forward not in shares"), (*ms, whole_ms), strict=True):
            yield _row(f"deformable_detr_r50_800x1066, {form}", "forward", taken, peer_ms)
    calls = [step(ours), step(together), step(theirs)]
    *ms, peer_ms = alternate(*calls, budget_s=options.seconds)
    memory = {"peak_mb": peak_mb(calls[0]), "peer_peak_mb": peak_mb(calls[-1])}
    for form, taken in zip(("as trained", "channels last"), ms, strict=True):
        yield {**_row(f"deformable_detr_r50_800x1066, {form}", "train", taken, peer_ms), **memory}


def _row(size: str, work: str, ms: float, peer_ms: float) -> dict[str, Any]:
    return {"size": size, "pass": work, "ms": ms, "peer_ms": peer_ms, "ratio_to_peer": peer_ms / ms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--sizes", type=lambda x: x.split(","), default=list(SIZES), help=", ".join(SIZES))
    parser.add_argument("--passes", type=lambda x: x.split(","), default=["forward", "train"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=10, help="of alternating for each row, at least five turns")
    parser.add_argument("--huge-pages", action=argparse.BooleanOptionalAction, default=sys.platform == "linux")
    parser.add_argument("--end-to-end", action="store_true")
    parser.add_argument("--peer-alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.sizes if name not in SIZES]
    if unknown:
        parser.error(f"unknown sizes {', '.join(unknown)}; choose from {', '.join(SIZES)}")
    torch.set_num_threads(options.threads)
    if options.peer_alone:
        peer = peer_of(make(*SIZES[options.sizes[0]]), options.passes[0] == "train")
        print(alternate(peer, budget_s=options.seconds / 2)[0])
        return
    machine = {
        "processor": platform.processor() or platform.machine(), "threads": options.threads, "torch": torch.__version__,
        "kernel": describe(choose("cpu", torch.float32)), "library": library.name(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    found = []
    if not options.json:
        print(machine)
    for row in end_to_end(options) if options.end_to_end else rows(options):
        found.append(row)
        if not options.json:
            print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else str(v) for k, v in row.items()), flush=True)
    if options.json:
        print(json.dumps({"machine": machine, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
