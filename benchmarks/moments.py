"""The retrievers beside each other, on simulated features of the real QVHighlights annotations, from scratch.

    python benchmarks/moments.py --annotations DIR [--models qd_detr cg_detr qd_detr+dino ...] [--seconds 1800]
    python benchmarks/moments.py --data "DIR/seed{}" ...
    python benchmarks/moments.py --show

A model is the NAME of configs/retrieval/NAME_qvhighlights.yaml; a preset's; two names joined by "+", an encoder with
another decoder; or a configuration file. Of files, model, optimizer, schedule and averaging of weights count:
published sizes, weights of losses, decay, drops of the learning rate. Epochs, batch size and learning rate are the same
for all. Each model has the same number of epochs and, with --seconds, runs again for the same time of training (reading
features included, scoring not).

Every run is a process of its own and, when finished, a line of --out; finished runs are not done again, and one that
was broken off goes on from its last checkpoint. The features are read from --data, where "{}" is the simulator's seed;
what is not there is simulated (simulated.py). Scores are those of the whole validation set after the last epoch; the
best epoch's mAP stands beside them. QD-DETR's steps are also timed beside their own matrix products (products.py).

UVCOM's hard negatives and TaskWeave's feedback start, as published, only after 80 and 100 epochs, and SG-DETR's rate
rises for 2,565 steps (--set schedule.warmup_steps=N). R2-Tuning wants the inner layers of CLIP and is not here.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from products import measure
from simulated import simulate

from momentdetr.datasets.qvhighlights import read_qvhighlights
from momentdetr.features.spec import FeatureSpec, Stream
from momentdetr.retrieval.batches import MomentDataset
from momentdetr.retrieval.checkpoint import load
from momentdetr.retrieval.feature_files import read_published
from momentdetr.retrieval.presets import PRESETS
from momentdetr.retrieval.train import train
from momentdetr.training.config import OptimizerConfig
from momentdetr.training.order import epoch_batches

ROOT = Path(__file__).resolve().parent.parent
SPEC = FeatureSpec((Stream("clip", 512, "official"),), Stream("clip_text", 512, "official"), clip_length_s=2.0)
LEARNT = 15.0  # mAP from which a model counts as one that has learnt
WHOLE = 10_000  # epochs that no time suffices for

MODELS = (
    *("moment_detr", "qd_detr", "cg_detr", "eatr", "tr_detr", "uvcom", "taskweave_hd2mr", "taskweave_mr2hd"),
    *("bam_detr", "flashvtg", "sg_detr"),
)
WHAT = ("model", "simulator_seed", "seed", "epochs", "seconds", "train", "val", "batch", "lr", "set", "data", "threads")
SCORES = {
    "mAP": "MR-full-mAP",
    "R1@0.5": "MR-full-R1@0.5",
    "R1@0.7": "MR-full-R1@0.7",
    "HL mAP": "HL-min-VeryGood-mAP",
    "short": "MR-short-mAP",
    "middle": "MR-middle-mAP",
    "long": "MR-long-mAP",
}


def main() -> None:
    options = _options()
    if options.run is not None:
        print(json.dumps(run(json.loads(options.run))))
        return
    failed = []
    if not options.show:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        for wanted in plan(options):
            if key_of(wanted) in finished(options.out):
                continue
            line = in_a_process(wanted)
            if line is None:
                failed.append(wanted)
                continue
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    print("\n".join(table(list(finished(options.out).values()))))
    for wanted in failed:
        print(f"failed: {folder_name(wanted)}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def plan(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The runs, one after another: a seed of all models before the next."""
    budgets = [{"epochs": options.epochs, "seconds": 0}] if options.epochs else []
    if options.seconds:
        budgets.append({"epochs": 0, "seconds": options.seconds})
    common = {name: getattr(options, name) for name in ("train", "val", "batch", "lr", "set", "data", "threads")}
    common |= {"folder": str(options.folder), "annotations": options.annotations and str(options.annotations)}
    common["device"] = options.device
    for simulator_seed in options.simulator_seeds:
        for seed in options.seeds:
            for model in options.models:
                for budget in budgets:
                    yield {"model": model, "simulator_seed": simulator_seed, "seed": seed, **budget, **common}


def key_of(line: Mapping[str, Any]) -> str:
    """What makes a run another one."""
    return json.dumps([line[name] for name in WHAT])


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


def in_a_process(wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """Its peak memory is then its own; None if it failed, which stops no other."""
    print(folder_name(wanted), file=sys.stderr, flush=True)
    threads = {"OMP_NUM_THREADS": str(wanted["threads"])} if wanted["threads"] else {}
    command = [sys.executable, __file__, "--run", json.dumps(dict(wanted))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads})
    return None if done.returncode else cast("dict[str, Any]", json.loads(done.stdout.splitlines()[-1]))


def folder_name(wanted: Mapping[str, Any]) -> str:
    budget = f"{wanted['epochs']}epochs" if wanted["epochs"] else f"{wanted['seconds']:g}s"
    parts = [Path(wanted["model"]).stem, f"data{wanted['simulator_seed']}", f"seed{wanted['seed']}", budget]
    parts += [f"{wanted['train']}of{wanted['val']}", f"batch{wanted['batch']}", f"lr{wanted['lr']:g}", *wanted["set"]]
    return "_".join(parts).replace("/", "-")


def run(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Train one model and score it."""
    folder = Path(wanted["folder"]) / folder_name(wanted)
    folder.mkdir(parents=True, exist_ok=True)
    config = configuration(wanted, features(wanted), folder)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    trained = train(path, wanted["set"], folder, resume=True, progress=False)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak_bytes()
    figures = history([json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()])
    model, _ = load(trained)
    line = {
        **{name: wanted[name] for name in WHAT},
        **figures,
        "peak_MB": round(peak / 2**20),
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads",
    }
    if wanted["model"] == "qd_detr" and not torch.cuda.is_available():
        line |= beside_products(model, config, wanted["batch"])
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the retriever stays
    return line


def features(wanted: Mapping[str, Any]) -> Path:
    """The folder of features, made if it is not there."""
    root = Path(wanted["data"].format(wanted["simulator_seed"]))
    if not (root / "val.jsonl").is_file():
        if wanted["annotations"] is None:
            raise SystemExit(f"{root} holds no features (val.jsonl); give --data, or --annotations to simulate them")
        making = root.with_name(f".{root.name}-{os.getpid()}")  # moved when it is whole
        counts = {"train": wanted["train"], "val": wanted["val"]}
        simulate(Path(wanted["annotations"]), making, seed=wanted["simulator_seed"], **counts)
        making.rename(root)
    return root


def configuration(wanted: Mapping[str, Any], root: Path, folder: Path) -> dict[str, Any]:
    """What `momentdetr train` reads, with the first queries of each split."""
    splits = {}
    for split in ("train", "val"):
        lines = (root / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        if wanted[split] > len(lines):
            raise SystemExit(f"{root / split}.jsonl has {len(lines)} queries, {wanted[split]} are wanted")
        splits[split] = str(folder / f"{split}.jsonl")
        Path(splits[split]).write_text("".join(lines[: wanted[split] or None]), encoding="utf-8")
    given = model_of(wanted["model"])
    return {
        "data": {**splits, "root": str(root), "layout": "moment_detr_clip"},
        "features": json.loads(json.dumps(SPEC.to_dict())),
        "model": given["model"],
        "training": {
            "epochs": wanted["epochs"] or WHOLE,
            "minutes": wanted["seconds"] / 60 or None,
            "batch_size": wanted["batch"],
            "seed": wanted["seed"],
            "select_by": SCORES["mAP"],
            "ema_decay": given["ema_decay"],
            "checkpoint_every": 5,
            "log_every": 1,
        },
        "optimizer": {**given.get("optimizer", {}), "learning_rate": wanted["lr"]},
        "schedule": given.get("schedule", {}),
        "device": wanted["device"],
    }


def model_of(name: str) -> dict[str, Any]:
    """The sections that make a model: "model", and as they are given "optimizer", "schedule", and averaged weights."""
    encoder, _, decoder = name.partition("+")
    published = ROOT / "configs" / "retrieval" / f"{encoder}_qvhighlights.yaml"
    path = Path(name) if name.endswith((".yaml", ".yml")) else published
    if path.is_file():
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        given = {section: found[section] for section in ("model", "optimizer", "schedule") if section in found}
        given["ema_decay"] = found.get("training", {}).get("ema_decay", 0.0)
    elif encoder in PRESETS:
        given = {"model": {"preset": encoder}, "ema_decay": 0.0}
    else:
        raise SystemExit(f"no model {name!r}; known: {', '.join(PRESETS)}, ENCODER+DECODER, or a .yaml file")
    if decoder and path is published:
        given["model"] = _with_decoder(given["model"], decoder)
    return given


def _with_decoder(model: Mapping[str, Any], decoder: str) -> dict[str, Any]:
    """The same encoder, with its options, before another decoder."""
    options = {key: value for key, value in model.items() if key not in ("preset", "sizes")}
    joined: dict[str, Any] = {"preset": "composed", "encoder": model["preset"], "decoder": decoder}
    joined |= {"sizes": model["sizes"]} if "sizes" in model else {}
    return joined | ({"encoder_options": options} if options else {})


def history(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a whole run from its metrics."""
    scored = [line for line in lines if "scores" in line]
    steps = [line for line in lines if "seconds" in line]
    last, curve = scored[-1]["scores"], [(line["step"], line["scores"][SCORES["mAP"]]) for line in scored]
    seconds = [sum(line["seconds"] for line in steps if line["epoch"] == epoch) for epoch in range(scored[-1]["epoch"])]
    return {
        **{name: last[key] for name, key in SCORES.items()},
        "best_mAP": max(score for _, score in curve),
        "updates": scored[-1]["step"],
        "updates_to_15": next((step for step, score in curve if score >= LEARNT), None),
        "epochs_done": scored[-1]["epoch"],
        "epoch_seconds": statistics.median(seconds),
        "train_seconds": sum(seconds),
        "curve": curve,
    }


def beside_products(model: Any, config: Mapping[str, Any], batch: int) -> dict[str, float]:
    """Seconds an epoch of steps, and of their matrix products alone, on every n-th batch of an epoch, in turns."""
    records = read_qvhighlights(config["data"]["train"])
    names, qids = [record.video for record in records], [str(record.qid) for record in records]
    data = MomentDataset(records, *read_published(config["data"]["root"], "moment_detr_clip", names, qids, SPEC), SPEC)
    order = epoch_batches(len(records), batch, 0, 0)
    found = measure(model, data, order[:: max(1, len(order) // 16)], OptimizerConfig(**config["optimizer"]))
    return {
        "measured_epoch_seconds": found.step * len(order),
        "product_epoch_seconds": found.products * len(order),
        "of_products": found.step / found.products,
        "product_gigaflops_a_second": found.flops / found.products / 1e9,
    }


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Means over the seeds, with the standard deviation of mAP; runs of other sizes are other rows."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        same = ("model", "epochs", "seconds", "train", "val", "batch", "lr", "data", "device")
        groups.setdefault((*(line[name] for name in same), *line["set"]), []).append(line)
    columns = [*SCORES, "best mAP", "s/epoch", "epochs", "updates to 15", "peak MB", "parameters", "of its products"]
    rows = [f"| model | budget | runs | {' | '.join(columns)} |", "|---" * (3 + len(columns)) + "|"]
    for key in sorted(groups, key=lambda key: (key[2] > 0, str(key[3:]), -_mean(groups[key], "mAP"))):
        rows.append(_row(groups[key]))
    return rows


def _row(group: list[dict[str, Any]]) -> str:
    first = group[0]
    budget = f"{first['epochs']} epochs" if first["epochs"] else f"{first['seconds']:g} s"
    budget += f", {first['train']}/{first['val']}, lr {first['lr']:g}" + "".join(f", {one}" for one in first["set"])
    maps = [line["mAP"] for line in group]
    spread = f" ± {statistics.stdev(maps):.2f}" if len(maps) > 1 else ""
    learnt = [line["updates_to_15"] for line in group if line["updates_to_15"] is not None]
    ratios = [line["of_products"] for line in group if "of_products" in line]
    cells = [
        f"{statistics.mean(maps):.2f}{spread}",
        *(f"{_mean(group, name):.2f}" for name in SCORES if name != "mAP"),
        f"{_mean(group, 'best_mAP'):.2f}",
        f"{_mean(group, 'epoch_seconds'):.1f}",
        f"{_mean(group, 'epochs_done'):.0f}",
        f"{statistics.mean(learnt):.0f}" + (f" ({len(learnt)} of {len(group)})" if len(learnt) < len(group) else "")
        if learnt
        else "never",
        str(max(line["peak_MB"] for line in group)),
        f"{first['parameters'] / 1e6:.2f} M",
        f"{statistics.mean(ratios):.2f}" if ratios else "",
    ]
    return f"| {Path(first['model']).stem} | {budget} | {len(group)} | {' | '.join(cells)} |"


def _mean(group: list[dict[str, Any]], name: str) -> float:
    return statistics.mean(line[name] for line in group)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, help="folder of the official files, to simulate features from")
    parser.add_argument(
        "--data", default="runs/simulated/seed{}", help='folders of features; "{}" is the simulator seed'
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--simulator-seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train", type=int, default=1500, help="queries; 0: all that are there")
    parser.add_argument("--val", type=int, default=400, help="queries; 0: all that are there")
    parser.add_argument("--epochs", type=int, default=30, help="0: no runs of equal epochs")
    parser.add_argument("--seconds", type=float, default=0, help="also so many seconds of training; 0: no such runs")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--set", nargs="*", default=[], metavar="A.B=C", help="changes to every configuration")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as it takes by itself")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "moments.jsonl")
    parser.add_argument("--folder", type=Path, default=Path("runs/moments"), help="of the runs' checkpoints")
    parser.add_argument("--show", action="store_true", help="only print the table")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
