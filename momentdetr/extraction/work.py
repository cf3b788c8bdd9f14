"""The body of the work, the same in this process, in others and on other machines: one job to one file."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from momentdetr.errors import MomentDETRError, OutOfResources, StoreError
from momentdetr.extraction.manifest import Entry
from momentdetr.extraction.plan import Fault, Job, QueryJob, VideoJob
from momentdetr.features.digest import known_content_hash, write_atomically
from momentdetr.features.encoder import TowerEncoder

DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Order:
    """How features are made and stored; the same for all jobs of a run.

    Args:
        folder: of the output.
        spec_sha256: of the specification.
        dtype: of the stored numbers, one of `DTYPES`.
        decoder: of videos: "auto", "pyav" or "decord".
        salvage: take the readable part of a damaged video.
    """

    folder: Path
    spec_sha256: str
    dtype: str = "float32"
    decoder: str = "auto"
    salvage: bool = False


def run_job(job: Job, order: Order, encoder: TowerEncoder) -> Entry | Fault:
    """Make one file, whole or not at all.

    Returns:
        The line of the manifest; or what is wrong with this video or query, which concerns no other.

    Raises:
        StoreError, OutOfResources: the machine is in the way, and would be for the next job, too.
    """
    try:
        entry = wanted_entry(job, order)
        if isinstance(job, VideoJob):
            return _video(job, entry, order, encoder)
        return _query(job, entry, order, encoder)
    except StoreError:
        raise
    except OutOfResources as error:
        if isinstance(job, VideoJob):  # a limit that this video reached
            return _fault(job, error)
        raise
    except MomentDETRError as error:
        return _fault(job, error)


def wanted_entry(job: Job, order: Order) -> Entry:
    """What is known of a job's line before the work is done.

    Raises:
        BadInput: the video cannot be read.
    """
    if isinstance(job, VideoJob):
        source = known_content_hash(job.path)
    else:
        source = hashlib.sha256(job.query.encode("utf-8", "surrogatepass")).hexdigest()
    return Entry(job.kind, job.name, job.file, "", source, order.spec_sha256, (0, 0), order.dtype, 0)


def _video(job: VideoJob, entry: Entry, order: Order, encoder: TowerEncoder) -> Entry:
    from momentdetr.features.video import probe, read_clips

    spec = encoder.spec
    preprocessing = spec.video[0].preprocessing
    assert preprocessing is not None  # a tower has one
    info = probe(job.path, order.decoder)
    parts, complete = [], True
    for batch in read_clips(
        job.path,
        clip_length_s=spec.clip_length_s,
        image_size=preprocessing.image_size,
        interpolation=preprocessing.interpolation,
        decoder=order.decoder,
        salvage=order.salvage,
    ):
        parts.append(encoder.encode_frames(batch.frames))
        complete = complete and batch.complete
    features = _stored(torch.cat(parts), order.dtype)
    about = {"clip_length_s": spec.clip_length_s, "duration_s": info.duration_s, "complete": complete}
    return _write(entry, order, {"features": features}, features, about)


def _query(job: QueryJob, entry: Entry, order: Order, encoder: TowerEncoder) -> Entry:
    # One at a time: in a batch, the last bits would depend on the neighbours, which differ after a resume.
    (states,) = encoder.encode_text([job.query])
    arrays = {"last_hidden_state": _stored(states, order.dtype)}
    pooled = encoder.pool_text([states])
    if pooled is not None:
        arrays["pooler_output"] = _stored(pooled[0], order.dtype)
    return _write(entry, order, arrays, arrays["last_hidden_state"], {})


def _stored(values: torch.Tensor, dtype: str) -> NDArray[Any]:
    stored: NDArray[Any] = values.numpy().astype(dtype)
    if not np.isfinite(stored).all():
        raise OutOfResources(f"features exceed what {dtype} can hold; store them as float32")
    return stored


def _write(
    entry: Entry, order: Order, arrays: dict[str, NDArray[Any]], rows: NDArray[Any], about: dict[str, Any]
) -> Entry:
    """Write the file, then say that it is there."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    data = buffer.getvalue()
    path = order.folder / entry.file
    try:
        write_atomically(path, data)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; make room and run again") from error
    known = {name: getattr(entry, name) for name in ("kind", "name", "file", "source_sha256", "spec_sha256", "dtype")}
    return Entry(
        **known,
        sha256=hashlib.sha256(data).hexdigest(),
        shape=(rows.shape[0], rows.shape[1]),
        clips=len(rows),
        **about,
    )


def _fault(job: Job, error: MomentDETRError) -> Fault:
    source = str(job.path) if isinstance(job, VideoJob) else job.query
    return Fault(job.kind, job.name, source, str(error))
