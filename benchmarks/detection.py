"""The systems beside transformers' Deformable DETR: one data set, one budget of training time each, from scratch.

    python benchmarks/detection.py --data BCCD [--minutes 30] [--seeds 0 1 2] [--systems dino co_dino ...]
    python benchmarks/detection.py --show

Every run is a process of its own, as configs/detection/bccd_SYSTEM.yaml says: the same small backbone with random
weights, the same sizes, images, batches, optimiser and schedule, which follows the time. Training time counts, reading
images included and scoring not. The peer is trained by the same loop with its own loss, at the learning rate that is
best of three with the first seed; ours all have the one of their files. The checkpoint that scores best on the
validation images is scored on the test images. Each finished run is a line of the results; finished runs are not done
again, and one that was broken off goes on from its last checkpoint. Prints a table: means over the seeds.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch

# This file has the name of the package that it measures, which must be found first.
sys.path.append(sys.path.pop(0))

from detection.data.check import load_data
from detection.data.dataset import ImageBatch, ImageDataset
from detection.evaluation import detect, evaluate
from detection.model import ImageDetector
from detection.predictor import evaluate_on, load
from detection.recipes import DetectionConfig
from detection.train import image_data, train
from momentdetr.training.checkpoint import CheckpointFolder
from momentdetr.training.config import load_config
from momentdetr.training.distributed import process_group
from momentdetr.training.loop import fit
from momentdetr.training.order import derived_seed
from momentdetr.training.task import Task

ROOT = Path(__file__).resolve().parent.parent
SYSTEMS = ("detr", "conditional_detr", "deformable_detr", "dab_detr", "dn_detr", "dino", "co_dino")
PEER = "transformers_deformable_detr"
PEER_RATES = (1e-4, 3e-4, 1e-3)


def main() -> None:
    options = _options()
    if options.run is not None:
        print(json.dumps(run(json.loads(options.run))))
        return
    if not options.show:
        for wanted in plan(options):
            done = finished(options.out)
            if key_of(wanted) in done:
                continue
            line = in_a_process(wanted)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    print("\n".join(table(list(finished(options.out).values()))))


def plan(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The runs, one after another; what the peer's first ones gave decides the rate of its others."""
    common = {
        "data": str(options.data),
        "minutes": options.minutes,
        "set": options.set,
        "folder": str(options.folder),
    }
    for system in options.systems:
        if system != PEER:
            yield from ({**common, "system": system, "seed": seed, "rate": None} for seed in options.seeds)
            continue
        trials = [{**common, "system": PEER, "seed": options.seeds[0], "rate": rate} for rate in PEER_RATES]
        yield from trials
        done = finished(options.out)
        best = max(trials, key=lambda one: done[key_of(one)]["val_AP"])
        yield from ({**best, "seed": seed} for seed in options.seeds[1:])


def key_of(line: Mapping[str, Any]) -> str:
    """What makes a run another one."""
    return json.dumps([line[name] for name in ("system", "seed", "rate", "minutes", "data", "set")])


def finished(path: Path) -> dict[str, dict[str, Any]]:
    """The runs that are done; a line that a crash cut off is none."""
    lines: dict[str, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
            lines[key_of(line)] = line
        except (ValueError, KeyError):
            continue
    return lines


def in_a_process(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Its peak memory is then its own."""
    print(f"{wanted['system']} seed {wanted['seed']} rate {wanted['rate'] or 'own'}", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--run", json.dumps(dict(wanted))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return cast("dict[str, Any]", json.loads(done.stdout.splitlines()[-1]))


def run(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Train one model and score it."""
    name = f"{wanted['system']}_{wanted['seed']}_{wanted['rate'] or 'own'}_{wanted['minutes']:g}min"
    folder = Path(wanted["folder"]) / name
    config = configuration(wanted)
    started = time.perf_counter()
    if wanted["system"] == PEER:
        val, test, steps = _train_peer(config, folder)
    else:
        trained = train(config, folder, resume=True, progress=False)
        assert trained.scores is not None
        assert config.data.folder is not None
        predictor = load(trained.folder, config.device)
        scores, _ = evaluate_on(predictor, config.data.folder, "test", batch_size=config.evaluate_batch)
        val, test, steps = trained.scores.figures, scores.figures, trained.steps
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    part = max(1, len(losses) // 10)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak_bytes()
    return {
        **{key: wanted[key] for key in ("system", "seed", "rate", "minutes", "data", "set")},
        "AP": test["AP"],
        "AP50": test["AP50"],
        "val_AP": val["AP"],
        "val_AP50": val["AP50"],
        "steps": steps,
        "train_seconds": round(60 * wanted["minutes"]),
        "all_seconds": round(time.perf_counter() - started),
        "peak_MB": round(peak / 2**20),
        "first_loss": statistics.mean(losses[:part]),
        "last_loss": statistics.mean(losses[-part:]),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads",
    }


def configuration(wanted: Mapping[str, Any]) -> DetectionConfig:
    """A system's file, with the budget and the seed; the peer's is Deformable DETR's."""
    system = "deformable_detr" if wanted["system"] == PEER else wanted["system"]
    changes = [f"data.folder={wanted['data']}", f"training.minutes={wanted['minutes']}"]
    changes += [f"training.seed={wanted['seed']}", *wanted["set"]]
    if wanted["rate"] is not None:
        changes.append(f"optimizer.learning_rate={wanted['rate']:.10f}")
    return load_config(DetectionConfig, ROOT / "configs" / "detection" / f"bccd_{system}.yaml", changes)


def _train_peer(config: DetectionConfig, folder: Path) -> tuple[Mapping[str, float], Mapping[str, float], int]:
    from detection_peer import Peer

    assert config.model is not None
    assert config.data.folder is not None
    learn, check = image_data(config.data, folder)
    assert check is not None
    loop = config.training.model_copy(update={"select_by": "AP"})
    with process_group(config.device) as device:
        torch.manual_seed(derived_seed("weights", loop.seed))
        peer = Peer(len(learn.classes), config.model.backbone, config.model.sizes).to(device)

        def score(network: torch.nn.Module, data: Any = check) -> Mapping[str, float]:
            rows = detect(
                cast("ImageDetector", network),  # it predicts as ours do
                data,
                data.classes.category_ids,
                short_side=config.data.short_side,
                long_side=config.data.long_side,
                batch_size=config.evaluate_batch,
            )
            return evaluate(rows, data).figures

        def loss(network: torch.nn.Module, batch: ImageBatch, epoch: int) -> Any:
            return cast("Peer", network).loss(batch)

        task = Task(
            model=peer,
            samples=ImageDataset(learn.records, config.data.augment),
            loss=loss,
            names=lambda batch: batch.sample_ids,
            evaluate=score,
            config={"peer": PEER, "rate": config.optimizer.learning_rate},
            place=lambda batch: batch.to(device),
        )
        result = fit(task, loop, config.optimizer, config.schedule, folder, resume=True, progress=False)
        best = cast("Peer", result.model)
        if result.best_step not in (None, result.steps):
            assert result.best_step is not None
            tensors = CheckpointFolder(folder / "checkpoints").load(result.best_step).tensors
            best.load_state_dict(dict(tensors["average" if loop.ema_decay else "model"]))
        test = load_data(config.data.folder, "test", classes=learn.classes)
        return score(best.eval()), score(best, test), result.steps


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Means over the seeds, of the peer's best rate; AP as a multiple of the peer's."""
    groups: dict[tuple[str, float | None, float], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["system"], line["rate"], line["minutes"]), []).append(line)
    rows = ["| system | minutes | seeds | AP | AP50 | of the peer's AP | steps | seconds in all | peak MB | loss |"]
    rows.append("|---|---|---|---|---|---|---|---|---|---|")
    for system, rate, minutes in sorted(groups, key=lambda key: (key[2], _order(key[0]), key[1] or 0)):
        group = groups[system, rate, minutes]
        mean = {name: statistics.mean(line[name] for line in group) for name in ("AP", "AP50", "steps", "all_seconds")}
        # Its chosen rate has all seeds, the others one.
        peer = [(len(other), _mean_ap(other)) for key, other in groups.items() if key[0] == PEER and key[2] == minutes]
        times = f"{mean['AP'] / max(peer)[1]:.2f}" if peer and max(peer)[1] > 0 else "-"
        first, last = (statistics.mean(line[name] for line in group) for name in ("first_loss", "last_loss"))
        name = system if rate is None else f"{system}, rate {rate:g}"
        seeds = " ".join(str(line["seed"]) for line in group)
        peak = max(line["peak_MB"] for line in group)
        rows.append(
            f"| {name} | {minutes:g} | {seeds} | {mean['AP']:.4f} | {mean['AP50']:.4f} | {times} | "
            f"{mean['steps']:.0f} | {mean['all_seconds']:.0f} | {peak} | {first:.2f} to {last:.2f} |"
        )
    return rows


def _mean_ap(group: list[dict[str, Any]]) -> float:
    return statistics.mean(line["AP"] for line in group)


def _order(system: str) -> int:
    return SYSTEMS.index(system) if system in SYSTEMS else len(SYSTEMS)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/bccd"), help="COCO-format folder: train, val, test")
    parser.add_argument("--minutes", type=float, default=30.0, help="of training, each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", default=[*SYSTEMS, PEER], choices=[*SYSTEMS, PEER])
    parser.add_argument("--set", nargs="*", default=[], metavar="A.B=C", help="changes to every configuration")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "detection.jsonl")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark"), help="of the runs' checkpoints")
    parser.add_argument("--show", action="store_true", help="only print the table")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
