"""What a longer video costs: seconds and memory of one answer and of one training step.

    python benchmarks/scaling.py [--clips 75 750 7500 75000] [--preset linear_dino] [--width 256] [--json FILE]
    python benchmarks/scaling.py --preset qd_detr --clips 75 750 7500      the published encoder, for comparison

One video of so many clips (CLIP features, 512 numbers a clip) and one query of 20 words; batch 1. Each figure is of a
process of its own, after a warm-up on 75 clips. Seconds are the median of up to five runs, memory is the highest that
the whole process ever held ("resident"; on a GPU: allocated there) and what of it came after the warm-up. A training
step is loss, gradients and AdamW. At two seconds a clip, 75,000 clips are 41 hours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from momentdetr.detr.types import Targets
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.presets import build
from momentdetr.retrieval.types import MomentTargets, SaliencyTargets, VideoText

FEATURES, WORDS, MOMENTS = 512, 20, 3
WARM_UP = 75
MOST_RUNS, ENOUGH_S = 5, 20.0
PASSES = ("answer", "train")


@dataclass(frozen=True)
class Job:
    """One figure to be measured."""

    preset: str
    clips: int
    width: int
    what: str
    device: str
    threads: int


@dataclass(frozen=True)
class Result:
    """One figure.

    Args:
        job: what was measured.
        seconds: median.
        runs: that it is the median of.
        peak_gb: highest memory of the process.
        added_gb: of it, beyond what it held after the warm-up.
        parameters: of the model.
    """

    job: Job
    seconds: float
    runs: int
    peak_gb: float
    added_gb: float
    parameters: int


def sample(num_clips: int, device: str) -> tuple[VideoText, MomentTargets]:
    """One video with three moments of ten clips, and one query."""
    generator = torch.Generator().manual_seed(0)
    inputs = VideoText(
        video=torch.randn(1, num_clips, FEATURES + 2, generator=generator).to(device),
        video_mask=torch.ones(1, num_clips, dtype=torch.bool, device=device),
        text=torch.randn(1, WORDS, FEATURES, generator=generator).to(device),
        text_mask=torch.ones(1, WORDS, dtype=torch.bool, device=device),
    )
    centers = torch.tensor([0.2, 0.5, 0.8])
    spans = torch.stack([centers, torch.full_like(centers, 10 / num_clips)], -1)[None].to(device)
    scores = torch.zeros(1, num_clips, device=device)
    inside = (centers * num_clips).long()
    scores[0, inside] = 8.0
    saliency = SaliencyTargets(scores, inside[None, :2].to(device), torch.zeros(1, 2, dtype=torch.long, device=device))
    labels = torch.zeros(1, MOMENTS, dtype=torch.long, device=device)
    return inputs, MomentTargets(Targets(labels, spans, torch.ones_like(labels, dtype=torch.bool)), saliency)


def make(job: Job) -> MomentRetriever:
    torch.manual_seed(0)
    sizes = {"video_dim": FEATURES + 2, "text_dim": FEATURES, "width": job.width, "feed_forward": 4 * job.width}
    return build({"preset": job.preset, "sizes": sizes}).to(job.device)


def step(model: MomentRetriever, what: str) -> Callable[[VideoText, MomentTargets], None]:
    """One answer, or one step of training."""
    model.train(what == "train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def answer(inputs: VideoText, targets: MomentTargets) -> None:
        model.predict(inputs)

    def learn(inputs: VideoText, targets: MomentTargets) -> None:
        optimizer.zero_grad()
        model.loss(inputs, targets).total.backward()
        optimizer.step()

    return learn if what == "train" else answer


def measure(job: Job) -> Result:
    """Run one job in this process."""
    torch.set_num_threads(job.threads)
    model = make(job)
    run = step(model, job.what)
    run(*sample(WARM_UP, job.device))
    before, given = peak_gb(job.device), sample(job.clips, job.device)
    seconds: list[float] = []
    while len(seconds) < MOST_RUNS and sum(seconds) < ENOUGH_S:
        began = time.perf_counter()
        run(*given)
        if job.device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    peak = peak_gb(job.device)
    parameters = sum(p.numel() for p in model.parameters())
    return Result(job, statistics.median(seconds), len(seconds), peak, peak - before, parameters)


def peak_gb(device: str) -> float:
    """Highest memory so far, in 2**30 bytes."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30


def in_a_process(job: Job) -> Result:
    """Run one job where nothing else was before."""
    command = [sys.executable, __file__, "--one", json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{job} ended with {done.returncode}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Result(**{**found, "job": Job(**found["job"])})


def table(results: Sequence[Result]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield "| preset | pass | clips | seconds | per clip, us | peak GB | of it added | MB per 1,000 clips |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in results:
        clips = one.job.clips
        yield (
            f"| {one.job.preset} | {one.job.what} | {clips:,} | {one.seconds:.3f} | {1e6 * one.seconds / clips:.1f} "
            f"| {one.peak_gb:.2f} | {one.added_gb:.2f} | {1024 * one.added_gb / clips * 1000:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[75, 750, 7500, 75000])
    parser.add_argument("--preset", default="linear_dino")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=PASSES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asdict(measure(Job(**json.loads(options.one))))))
        return
    print("\n".join(table([])), flush=True)
    results = []
    for what in options.passes:
        for clips in options.clips:
            job = Job(options.preset, clips, options.width, what, options.device, options.threads)
            results.append(in_a_process(job))
            print(*list(table(results[-1:]))[2:], flush=True)
    if options.json:
        machine = f"{platform.processor() or platform.machine()}, torch {torch.__version__}"
        document = {"machine": machine, "date": time.strftime("%Y-%m-%d"), "results": [asdict(r) for r in results]}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
