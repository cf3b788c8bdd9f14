"""Published retrievers on the official QVHighlights features: their published scores beside ours.

    python benchmarks/reproduce.py [--models lighthouse-qd-detr-clip ...]
    python benchmarks/reproduce.py --features DIR --annotations FILE
    python benchmarks/reproduce.py --mirror BASE

For a machine with network. Fetches the validation annotations, the archive of official features (8 GB) and the
checkpoints of `momentdetr weights list` into --cache, once, going on where a download was cut off; compares digests
where somebody published them, and else with those of the first download; converts, predicts, rounds windows to clips as
the official code does, scores. Features and annotations that are here already are named with --features and
--annotations. A mirror is a folder, or the address of one, with highlight_val_release.jsonl,
moment_detr_features.tar.gz and MODEL/FILE of each checkpoint.

Not run on the real files: where this was written they could not be fetched. It was run on a mirror of generated ones.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from momentdetr.datasets.predictions import MomentPrediction
from momentdetr.datasets.qvhighlights import read_qvhighlights
from momentdetr.datasets.records import MomentRecord
from momentdetr.errors import BadCheckpoint, BadInput, MomentDETRError
from momentdetr.evaluation.moments import evaluate_moments
from momentdetr.features.digest import content_hash
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval.batches import MomentDataset
from momentdetr.retrieval.convert import convert
from momentdetr.retrieval.feature_files import read_published
from momentdetr.retrieval.predicting import predict_dataset
from momentdetr.weights import REGISTRY, Home, ModelCard
from momentdetr.weights.download import fetch

ANNOTATIONS = "highlight_val_release.jsonl"
ANNOTATIONS_SHA256 = "f668a1eaea156ec5315e14718999cea043a8cf948d3cafbd8e8d655318c3cd02"
ARCHIVE = "moment_detr_features.tar.gz"  # nobody published its digest
ADDRESSES = {
    ANNOTATIONS: f"https://raw.githubusercontent.com/jayleicn/moment_detr/main/data/{ANNOTATIONS}",
    ARCHIVE: "https://drive.usercontent.google.com/download?id=1Hiln02F1NEpoW8-iPZurRyi-47-W2_B9&export=download&confirm=t",
}
LAYOUTS = {("clip",): "moment_detr_clip", ("slowfast", "clip"): "moment_detr"}
NAMES = {"R1@0.5": "MR-full-R1@0.5", "R1@0.7": "MR-full-R1@0.7", "mAP": "MR-full-mAP"}
CLOSE = 0.5  # points: what another GPU and another decoder of JPEGs may change


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        annotations = options.annotations or bring(ANNOTATIONS, options, ANNOTATIONS_SHA256)
        features = options.features or unpacked(bring(ARCHIVE, options))
    except MomentDETRError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    records = read_qvhighlights(annotations)
    rows = ["| model | score | published | ours | difference |", "|---|---|---|---|---|"]
    failed = False
    for name in options.models:
        try:
            rows += compare(REGISTRY[name], score(REGISTRY[name], records, features, options))
        except MomentDETRError as error:
            failed = True
            print(f"error: {name}: {error}", file=sys.stderr)
    print("\n".join(rows))
    return 2 if failed else 0


def score(
    card: ModelCard, records: Sequence[MomentRecord], features: Path, options: argparse.Namespace
) -> dict[str, float]:
    """The official brief scores of a published checkpoint."""
    assert card.retriever is not None
    path = bring(card.retriever.filename, options, card.retriever.sha256, card)
    converted = convert(path)
    data = dataset(records, features, converted.spec)
    said, _ = predict_dataset(converted.model().eval(), data, batch_size=options.batch)
    rounded = [to_clips(one, converted.spec.clip_length_s) for one in said]
    return evaluate_moments(rounded, records, clip_length_s=converted.spec.clip_length_s).brief


def dataset(records: Sequence[MomentRecord], features: Path, spec: FeatureSpec) -> MomentDataset:
    streams = tuple(stream.name for stream in spec.video)
    if streams not in LAYOUTS:
        known = ", ".join(" + ".join(one) for one in LAYOUTS)
        raise BadInput(f"the checkpoint wants the features {' + '.join(streams)}; the official set has {known}")
    names, qids = [record.video for record in records], [str(record.qid) for record in records]
    return MomentDataset(records, *read_published(features, LAYOUTS[streams], names, qids, spec), spec)


def to_clips(prediction: MomentPrediction, clip_length_s: float) -> MomentPrediction:
    """Windows whose ends are ends of clips."""

    def near(time_s: float) -> float:
        return round(time_s / clip_length_s) * clip_length_s

    windows = tuple((near(start), near(end), confidence) for start, end, confidence in prediction.windows or ())
    return replace(prediction, windows=windows)


def published(card: ModelCard) -> dict[str, float]:
    """Its figures on the validation set, from the words of the registry."""
    val = re.search(r"\bval\b([^;]*)", card.published)
    return {name: float(value) for name, value in re.findall(r"(R1@0\.\d|mAP) ([0-9.]+)", val[1])} if val else {}


def compare(card: ModelCard, brief: dict[str, float]) -> list[str]:
    """Rows of the table: a figure that is further off than `CLOSE` is marked."""
    rows = []
    for name, theirs in published(card).items():
        ours = brief[NAMES[name]]
        mark = "" if abs(ours - theirs) <= CLOSE else " (!)"
        rows.append(f"| {card.name} | {name} | {theirs:.2f} | {ours:.2f} | {ours - theirs:+.2f}{mark} |")
    return rows


def bring(filename: str, options: argparse.Namespace, sha256: str | None = None, card: ModelCard | None = None) -> Path:
    """A file of the cache, fetched if it is not there, with the digest that it should have.

    Args:
        sha256: the published one; None: that of the first download, which is kept beside the file.
        card: of the model whose checkpoint it is.

    Raises:
        WeightsUnavailable, BadInput: it cannot be had.
        BadCheckpoint: it is another file.
    """
    below = f"{card.name}/{filename}" if card else filename
    path = Path(options.cache) / below
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        part = path.with_name(f"{path.name}.part")
        _fetch(below, part, options.mirror, card)
        part.replace(path)
    found, note = content_hash(path), path.with_name(f"{path.name}.sha256")
    if options.mirror is None and sha256 is not None:
        expected = sha256
    else:  # a mirror's files are its own
        expected = note.read_text("ascii").strip() if note.is_file() else found
    if found != expected:
        raise BadCheckpoint(f"{path}: sha256 is {found}, expected {expected}; delete the file and run again")
    note.write_text(found + "\n", "ascii")
    return path


def _fetch(below: str, part: Path, mirror: str | None, card: ModelCard | None) -> None:
    base = mirror.removeprefix("file://").rstrip("/") if mirror else None
    if base is not None and not base.startswith(("http://", "https://")):
        source = Path(base) / below
        if not source.is_file():
            raise BadInput(f"{source}: no such file in the mirror")
        shutil.copyfile(source, part)
        return
    if base is not None:
        url = f"{base}/{below}"
    elif card is not None and card.retriever is not None:
        url = Home.default().url(card.retriever)
    else:
        url = ADDRESSES[below]
    print(f"fetching {url}", file=sys.stderr, flush=True)
    fetch(url, part)


def unpacked(archive: Path) -> Path:
    """The folder of features in an archive, unpacked once.

    Raises:
        BadInput: it cannot be unpacked, or holds no such folder.
    """
    folder = archive.with_name(archive.name.removesuffix(".tar.gz"))
    if not folder.is_dir():
        making = folder.with_name(f".{folder.name}-{os.getpid()}")
        try:
            with tarfile.open(archive) as file:
                file.extractall(making, filter="data")  # refuses links and paths that lead out of it
        except (tarfile.TarError, EOFError, OSError) as error:
            shutil.rmtree(making, ignore_errors=True)
            raise BadInput(f"{archive}: cannot be unpacked ({error}); delete it and run again") from error
        making.rename(folder)
    found = next((path.parent for path in sorted(folder.rglob("clip_features")) if path.is_dir()), None)
    if found is None:
        raise BadInput(f"{archive}: holds no folder clip_features; expected the official features")
    return found


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [name for name, card in REGISTRY.items() if card.retriever is not None]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=names, choices=names)
    parser.add_argument("--mirror", help="folder or address to fetch everything from")
    parser.add_argument("--features", type=Path, help="folder with clip_features and clip_text_features")
    parser.add_argument("--annotations", type=Path, help=ANNOTATIONS)
    parser.add_argument("--cache", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--batch", type=int, default=32, help="queries at once")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
