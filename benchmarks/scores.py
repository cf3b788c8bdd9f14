"""How long scoring takes, beside the official script, in one run on the same files.

    python benchmarks/scores.py [PREDICTIONS GROUND_TRUTH] [--official CHECKOUT] [--repeats 5]

PREDICTIONS and GROUND_TRUTH are .jsonl files of QVHighlights; without them, 1,550 queries with ten windows each are
made from a seed. CHECKOUT is a folder with moment_detr's `standalone_eval`: its own `eval_submission` is then the peer,
run as published (eight processes) and with its processes replaced by a plain loop. Without it the peer is
tests/evaluation/naive_qvhighlights.py: the same formulas, one query, one window and one threshold at a time in plain
Python, with one process. The time is that of scoring loaded data (seconds of the wall, and of the processor); ours from
files to scores stands beside it. All numbers are compared before any time is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "evaluation")]

import naive_qvhighlights as naive  # type: ignore[import-not-found]  # noqa: E402

from momentdetr.datasets.predictions import read_predictions  # noqa: E402
from momentdetr.datasets.qvhighlights import read_qvhighlights  # noqa: E402
from momentdetr.evaluation.moments import evaluate_moments  # noqa: E402

Peer = Callable[[list[dict[str, Any]], list[dict[str, Any]]], dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--official", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if len(options.files) not in (0, 2):
        parser.error("give PREDICTIONS and GROUND_TRUTH, or neither")
    with tempfile.TemporaryDirectory() as folder:
        predictions, truth = options.files or make(Path(folder))
        measure(predictions, truth, peers(options.official), options.repeats)


def measure(predictions: Path, truth: Path, others: dict[str, Peer], repeats: int) -> None:
    loaded = read_predictions(predictions), read_qvhighlights(truth)
    plain = [
        [json.loads(line) for line in path.read_text("utf-8").splitlines() if line] for path in (predictions, truth)
    ]
    ours, wall, cpu = best(lambda: evaluate_moments(*loaded).to_dict(), repeats)
    _, whole, _ = best(lambda: evaluate_moments(read_predictions(predictions), read_qvhighlights(truth)), repeats)
    print(f"{len(loaded[1])} queries, {sum(len(p.windows or ()) for p in loaded[0])} windows")
    print(f"{'':34}  wall s   cpu s   ratio of wall   of cpu")
    print(f"{'momentdetr':34}  {wall:6.3f}  {cpu:6.3f}")
    print(f"{'momentdetr, files to scores':34}  {whole:6.3f}")
    for name, peer in others.items():
        theirs, peer_wall, peer_cpu = best(lambda peer=peer: peer(*plain), 1)  # type: ignore[misc]
        wrong = differences(ours, theirs)
        if wrong:
            raise SystemExit(f"{name} gives other numbers: {wrong[:5]}")
        print(f"{name:34}  {peer_wall:6.3f}  {peer_cpu:6.3f}  {peer_wall / wall:14.1f}  {peer_cpu / cpu:7.1f}")


def best(work: Callable[[], Any], repeats: int) -> tuple[Any, float, float]:
    """The result, and the shortest time of the wall and of the processor (this process and those it waited for)."""
    walls, cpus = [], []
    for _ in range(repeats):
        started, used = time.perf_counter(), processor_s()
        result = work()
        walls.append(time.perf_counter() - started)
        cpus.append(processor_s() - used)
    return result, min(walls), min(cpus)


def processor_s() -> float:
    import resource

    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def peers(official: Path | None) -> dict[str, Peer]:
    if official is None:
        return {"naive formulas (plain Python)": lambda p, t: naive.windows_scores(p, t) | naive.highlight_scores(p, t)}
    sys.path.insert(0, str(official))
    from standalone_eval import eval as script  # type: ignore[import-not-found]

    def published(predictions: list[dict[str, Any]], truth: list[dict[str, Any]]) -> dict[str, Any]:
        with contextlib.redirect_stdout(io.StringIO()):
            return dict(script.eval_submission(predictions, truth, verbose=False))

    def one_process(predictions: list[dict[str, Any]], truth: list[dict[str, Any]]) -> dict[str, Any]:
        pool, script.mp.Pool = script.mp.Pool, PlainLoop
        try:
            return published(predictions, truth)
        finally:
            script.mp.Pool = pool

    return {"official script, 8 processes": published, "official script, 1 process": one_process}


class PlainLoop:
    """Stands in for a pool of processes."""

    def __init__(self, _: int) -> None:
        pass

    def __enter__(self) -> PlainLoop:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def imap_unordered(self, work: Callable[[Any], Any], items: list[Any], chunksize: int) -> Any:
        return map(work, items)


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Every number of theirs that ours does not have, or has otherwise."""
    if isinstance(theirs, dict):
        return [
            found
            for key, value in theirs.items()
            for found in (
                differences(ours[key], value, f"{where}/{key}") if key in ours else [f"{where}/{key} missing"]
            )
        ]
    return [] if ours == theirs else [f"{where}: {ours} for {theirs}"]


def make(folder: Path, num_queries: int = 1550) -> tuple[Path, Path]:
    """Predictions and annotations of a made world."""
    dice = np.random.default_rng(0)
    said, true = [], []
    for qid in range(num_queries):
        edges = np.sort(dice.choice(76, (int(dice.integers(1, 5)), 2)), 1) * 2
        windows = [[int(a), int(b) + 2] for a, b in edges]
        clips = sorted(dice.choice(75, int(dice.integers(5, 40)), replace=False).tolist())
        scores = dice.integers(0, 5, (len(clips), 3)).tolist()
        about = {"qid": qid, "query": "made", "vid": f"v{qid}"}
        true.append(
            about
            | {"duration": 152, "relevant_windows": windows, "relevant_clip_ids": clips, "saliency_scores": scores}
        )
        found = np.sort(dice.uniform(0, 152, (10, 2)), 1)
        found[: len(edges)] = edges + dice.normal(0, 2, edges.shape)
        ranked = sorted(
            ([a, b, s] for (a, b), s in zip(found.tolist(), dice.random(10).tolist(), strict=True)), key=rank
        )
        said.append(about | {"pred_relevant_windows": ranked, "pred_saliency_scores": dice.normal(size=76).tolist()})
    paths = folder / "predictions.jsonl", folder / "truth.jsonl"
    for path, lines in zip(paths, (said, true), strict=True):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return paths


def rank(window: list[float]) -> float:
    return -window[2]


if __name__ == "__main__":
    main()
