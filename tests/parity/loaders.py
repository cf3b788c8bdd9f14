"""What official data loaders feed their models, against ours: the whole path from annotations and features to a batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from momentdetr.datasets.qvhighlights import read_qvhighlights
from momentdetr.datasets.records import MomentRecord
from momentdetr.datasets.sampling import draw_pairs, generator_of
from momentdetr.features.spec import FeatureSpec, Stream
from momentdetr.retrieval.batches import MomentBatch, MomentSample, collate_moments, span_targets
from parity.comparison import Row, compare_exactly, compare_tensor
from parity.tape import Tape

DRAWS = 3000  # enough that a choice among 75 clips is missed once in 10^17


def check(path: Path) -> list[Row] | None:
    """A row for each tensor that the official loader gave; None: a data set whose reader is not built yet."""
    tape = Tape(path, lambda name: name.startswith(("raw.", "model_inputs.", "targets.")))
    if tape.facts["kwargs"]["dset_name"] != "hl":
        return None
    records = _records(tape.facts["annotations"])
    samples = [_sample(tape, index, record) for index, record in enumerate(records)]
    spec = _spec(tape.facts["kwargs"], samples[0])
    batch = collate_moments(samples, spec, [generator_of(0, 0, i) for i in range(len(samples))])
    _inputs(tape, batch, tape.facts["kwargs"])
    rows = _spans(tape, batch) + _pairs(tape, batch, spec)
    if "targets.saliency_all_labels" in tape.tensors:
        assert batch.targets.saliency is not None
        assert batch.targets.saliency.scores is not None
        tape.compare("targets.saliency_all_labels", batch.targets.saliency.scores)
    return rows + tape.rows()


def _records(annotations: list[dict[str, Any]]) -> list[MomentRecord]:
    """Through the reader of the official format."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "annotations.jsonl"
        file.write_text("\n".join(json.dumps(line) for line in annotations))
        return read_qvhighlights(file)


def _sample(tape: Tape, index: int, record: MomentRecord) -> MomentSample:
    """Streams cut to the shortest, as both loaders do."""
    streams = [tape[name].float() for name in tape.names if name.startswith(f"raw.{index}.v")]
    length = min(map(len, streams))
    return MomentSample(record, torch.cat([stream[:length] for stream in streams], -1), tape[f"raw.{index}.txt"])


def _spec(kwargs: Mapping[str, Any], sample: MomentSample) -> FeatureSpec:
    assert kwargs["normalize_v"] == kwargs["normalize_t"], "one normalisation for both is all that was ever published"
    return FeatureSpec(
        video=_STREAMS(sample.video.shape[1]),
        text=Stream("text", sample.text.shape[1], "official"),
        clip_length_s=float(kwargs["clip_len"]),
        normalize="l2" if kwargs["normalize_v"] else "none",
        tef="tef" in kwargs["ctx_mode"],
        max_clips=kwargs["max_v_l"],
        max_words=kwargs["max_q_l"],
    )
