"""Extraction of a whole data set: what is done stays done, what fails is named, and the rest goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from momentdetr.errors import BadCheckpoint, BadInput, MomentDETRError, StoreError
from momentdetr.extraction.encoders import EncoderChoice, find_preset, find_weights
from momentdetr.extraction.engines import ENGINES
from momentdetr.extraction.manifest import Entry, Manifest
from momentdetr.extraction.plan import Fault, Job, Plan, make_plan
from momentdetr.extraction.work import DTYPES, Order, wanted_entry
from momentdetr.features.digest import write_atomically
from momentdetr.features.encoder import check_clip_length
from momentdetr.features.spec import FeatureSpec
from momentdetr.weights import Progress

SPEC = "features.json"
FAULTS = "faults.jsonl"


@dataclass(frozen=True)
class Extraction:
    """What a run came to.

    Args:
        folder: of the features.
        made: files that this run wrote.
        kept: files that were there, whole.
        faults: what could not be extracted; also in faults.jsonl in the folder.
    """

    folder: Path
    made: tuple[Entry, ...]
    kept: tuple[Entry, ...]
    faults: tuple[Fault, ...]


def extract(
    videos: Sequence[str | Path],
    out: str | Path,
    *,
    preset: str = "clip-b32",
    annotations: Sequence[str | Path] = (),
    layout: str = "moment_detr_clip",
    weights: str | Path | None = None,
    clip_length_s: float | None = None,
    device: str = "auto",
    dtype: str = "float32",
    batch_size: int = 64,
    decoder: str = "auto",
    salvage: bool = False,
    engine: str = "local",
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    fetching: Progress | None = None,
) -> Extraction:
    """Write features of videos and queries into a folder that training reads.

    The folder gets a file a video and a query, features.json (the specification that a training configuration names),
    manifest.jsonl (a line a finished file, with its digest) and, where something failed, faults.jsonl. A run that was
    ended at any point is gone on with by calling this again: files that are whole, of the same source and made in the
    same way, are not made again.

    Args:
        videos: files and folders.
        out: the folder.
        preset: a name of `encoders.PRESETS`, or a folder with an encoder and its weights.
        annotations: .jsonl files whose queries are encoded.
        layout: names of files and folders, one of `plan.LAYOUT_NAMES`.
        weights: of the encoder, where they are not found by themselves.
        clip_length_s: seconds of video per vector; None: the preset's.
        device: "auto", "cpu", "cuda", ...
        dtype: of the stored numbers, "float32" or "float16".
        batch_size: pictures at once.
        decoder: "auto", "pyav" or "decord".
        salvage: take the readable part of a damaged video.
        engine: "local" or "ray".
        workers: processes, each with an encoder of its own.
        progress: called with files done and in all.
        fetching: called while weights are fetched.

    Raises:
        BadInput: an argument or annotations that cannot be used, or a folder with features of another encoder.
        BadCheckpoint, WeightsUnavailable: the encoder cannot be built.
        StoreError, OutOfResources: the machine is in the way; what is done is kept.
    """
    if engine not in ENGINES:
        raise BadInput(f"engine is {engine!r}; expected one of {', '.join(ENGINES)}")
    if dtype not in DTYPES:
        raise BadInput(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    if workers < 1:
        raise BadInput(f"workers is {workers}; expected at least 1")
    from momentdetr.features.video import check_decoder

    check_decoder(decoder)
    plan = make_plan([Path(video) for video in videos], [Path(path) for path in annotations], layout)
    choice = _choice(preset, weights, clip_length_s, device, batch_size, workers, fetching)
    folder = Path(out)
    with _locked(folder):
        order = Order(folder, _keep_spec(folder, choice), dtype, decoder, salvage)
        return _run(plan, order, choice, engine, workers, progress)


def _choice(
    preset: str,
    weights: str | Path | None,
    clip_length_s: float | None,
    device: str,
    batch_size: int,
    workers: int,
    fetching: Progress | None,
) -> EncoderChoice:
    found = find_preset(preset)
    if clip_length_s is not None:
        check_clip_length(clip_length_s)
        found = replace(found, clip_length_s=clip_length_s)
    file = find_weights(preset, found, None if weights is None else Path(weights), fetching)
    threads = None if workers == 1 else max(1, (os.cpu_count() or 1) // workers)
    return EncoderChoice(found, file, device, batch_size, threads)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder; two runs at once would write one manifest."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise BadInput(f"another run writes to {folder}; wait for it or choose another folder") from error
    except MomentDETRError:
        raise
    except OSError as error:
        raise StoreError(f"cannot write to {folder}: {error.strerror or error}. Choose another folder.") from error


def _keep_spec(folder: Path, choice: EncoderChoice) -> str:
    """Write the specification, or compare with the one that is there; returns its digest."""
    spec = replace(choice, device="cpu").build().spec
    path = folder / SPEC
    data = (json.dumps(spec.to_dict(), indent=2) + "\n").encode()
    if path.is_file():
        try:
            FeatureSpec.from_dict(json.loads(path.read_bytes())).require_same(spec)
        except (ValueError, TypeError) as error:
            what = str(error) if isinstance(error, BadCheckpoint) else f"{SPEC} cannot be read: {error}"
            raise BadInput(f"{folder} holds other features ({what}); choose another folder") from error
    else:
        write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def _run(
    plan: Plan,
    order: Order,
    choice: EncoderChoice,
    engine: str,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> Extraction:
    for parent in {(order.folder / job.file).parent for job in plan.jobs}:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(".*.tmp"):  # what a killed run was writing
            left.unlink(missing_ok=True)
    manifest = Manifest(order.folder)
    open_jobs = [job for job in plan.jobs if not _is_done(manifest, job, order)]
    manifest.drop((job.kind, job.name) for job in open_jobs)
    manifest.rewrite()
    kept = tuple(manifest.entries[job.kind, job.name] for job in plan.jobs if (job.kind, job.name) in manifest.entries)
    made: list[Entry] = []
    faults = list(plan.missing)
    _report(progress, len(kept), len(plan.jobs))
    if open_jobs:
        with closing(ENGINES[engine](open_jobs, order, choice, workers)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Fault):
                    faults.append(outcome)
                else:
                    manifest.add(outcome)
                    made.append(outcome)
                _report(progress, len(kept) + len(made) + len(faults) - len(plan.missing), len(plan.jobs))
    manifest.rewrite()
    faults.sort(key=lambda fault: (fault.kind, fault.name))
    _write_faults(order.folder / FAULTS, faults)
    return Extraction(order.folder, tuple(sorted(made, key=lambda entry: entry.key)), kept, tuple(faults))


def _is_done(manifest: Manifest, job: Job, order: Order) -> bool:
    try:
        return manifest.is_done(wanted_entry(job, order))
    except BadInput:  # the video cannot be read: the job will say so
        return False


def _write_faults(path: Path, faults: Sequence[Fault]) -> None:
    if faults:
        lines = (json.dumps(asdict(fault), ensure_ascii=False) + "\n" for fault in faults)
        write_atomically(path, "".join(lines).encode("utf-8", "backslashreplace"))
    else:
        path.unlink(missing_ok=True)


def _report(progress: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


__all__ = ["Extraction", "extract"]
