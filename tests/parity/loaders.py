"""What official data loaders feed their models, against ours: from annotations and features to a batch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from parity.comparison import Row, compare_exactly, compare_tensor
from parity.tape import Tape
from parity.tolerance import FLOOR

from momentdetr.datasets.qvhighlights import read_qvhighlights
from momentdetr.datasets.records import MomentRecord
from momentdetr.datasets.sampling import draw_pairs, generator_of
from momentdetr.features.spec import FeatureSpec, Stream
from momentdetr.retrieval.batches import MomentBatch, MomentSample, collate_moments, span_targets
from momentdetr.retrieval.saliency import described_clips, relevant_clips
from momentdetr.retrieval.types import VideoText

DRAWS = 1500  # enough that a choice among 75 clips is missed once in 10^8


def check(path: Path) -> list[Row] | None:
    """A row for each tensor that the official loader gave; None: a data set whose reader is not built yet."""
    tape = Tape(path, lambda name: name.startswith(("raw.", "model_inputs.", "targets.")))
    if tape.facts["kwargs"]["dset_name"] != "hl":
        return None
    records = _records(tape.facts["annotations"])
    samples = [_sample(tape, index, record) for index, record in enumerate(records)]
    widths = [tape[name].shape[1] for name in _streams(tape, 0)]
    spec = _spec(tape.facts["kwargs"], widths, samples[0].text.shape[1])
    batch = collate_moments(samples, spec, [generator_of(0, 0, i) for i in range(len(samples))])
    _compare_inputs(tape, batch.inputs)
    rows = _compare_spans(tape, samples, spec) + _compare_saliency(tape, samples, batch, spec)
    return rows + _compare_relevant(tape, samples, batch) + tape.rows()


def _records(annotations: list[dict[str, Any]]) -> list[MomentRecord]:
    """Through the reader of the official format."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "annotations.jsonl"
        file.write_text("\n".join(json.dumps(line) for line in annotations))
        return read_qvhighlights(file)


def _sample(tape: Tape, index: int, record: MomentRecord) -> MomentSample:
    """Streams cut to the shortest, as both loaders do."""
    streams = [tape[name].float() for name in _streams(tape, index)]
    length = min(map(len, streams))
    return MomentSample(record, torch.cat([stream[:length] for stream in streams], -1), tape[f"raw.{index}.txt"])


def _streams(tape: Tape, index: int) -> list[str]:
    return sorted(name for name in tape.names if name.startswith(f"raw.{index}.v"))


def _spec(kwargs: Mapping[str, Any], widths: list[int], text_dim: int) -> FeatureSpec:
    assert kwargs["normalize_v"] == kwargs["normalize_t"], "one normalisation for both is all that was ever published"
    return FeatureSpec(
        video=tuple(Stream(f"video{i}", width, "official") for i, width in enumerate(widths)),
        text=Stream("text", text_dim, "official"),
        clip_length_s=float(kwargs["clip_len"]),
        normalize="l2" if kwargs["normalize_v"] else "none",
        tef="tef" in kwargs["ctx_mode"],
        max_clips=kwargs["max_v_l"],
        max_words=kwargs["max_q_l"],
    )


def _compare_inputs(tape: Tape, inputs: VideoText) -> None:
    tape.compare("model_inputs.src_vid", inputs.video)
    tape.compare("model_inputs.src_vid_mask", inputs.video_mask.float())
    tape.compare("model_inputs.src_txt", inputs.text)
    tape.compare("model_inputs.src_txt_mask", inputs.text_mask.float())


def _compare_spans(tape: Tape, samples: Sequence[MomentSample], spec: FeatureSpec) -> list[Row]:
    """Which windows are taken where there are too many is drawn by chance: those must be among ours."""
    rows = []
    for index, sample in enumerate(samples):
        name = f"targets.span_labels.{index}.spans"
        theirs = tape[name]
        seen_s = min(len(sample.video), spec.max_clips) * spec.clip_length_s
        ours = span_targets([sample.record.windows_s], [seen_s]).boxes[0]
        if len(ours) <= tape.facts["kwargs"]["max_windows"]:
            tape.compare(name, ours)
            continue
        nearest = (theirs[:, None] - ours[None]).abs().sum(-1).argmin(1)
        rows.append(compare_exactly(f"{name}: different windows", len(nearest.unique()), len(theirs)))
        rows.append(compare_exactly(f"{name}: how many", tape.facts["kwargs"]["max_windows"], len(theirs)))
        rows.append(compare_tensor(name, ours[nearest], theirs, FLOOR["float32"]))
    return rows


def _compare_saliency(tape: Tape, samples: Sequence[MomentSample], batch: MomentBatch, spec: FeatureSpec) -> list[Row]:
    """Scores must be equal. Pairs are drawn by chance: each drawn clip must be one that ours can draw in that place."""
    rows = []
    if "targets.saliency_all_labels" in tape.tensors:
        assert batch.targets.saliency is not None
        assert batch.targets.saliency.scores is not None
        # Official loaders also score a clip beyond the features, where the model sees padding; ours do not.
        seen = tape["targets.saliency_all_labels"] * batch.inputs.video_mask
        rows.append(
            compare_exactly("targets.saliency_all_labels", batch.targets.saliency.scores.tolist(), seen.tolist())
        )
    positive, negative = tape["targets.saliency_pos_labels"], tape["targets.saliency_neg_labels"]
    for index, sample in enumerate(samples):
        length = min(len(sample.video), spec.max_clips)
        draws = [
            draw_pairs(sample.record, length, spec.clip_length_s, generator_of(0, epoch, index))
            for epoch in range(DRAWS)
        ]
        for what, drawn, theirs in (
            ("pos", [draw.positive for draw in draws], positive[index].tolist()),
            ("neg", [draw.negative for draw in draws], negative[index].tolist()),
        ):
            for place, clip in enumerate(theirs):
                possible = sorted({choice[place] for choice in drawn})
                name = f"targets.saliency_{what}_labels.{index}.{place}"
                rows.append(compare_exactly(f"{name}: {clip} among {len(possible)}", clip in possible, True))
    return rows


def _compare_relevant(tape: Tape, samples: Sequence[MomentSample], batch: MomentBatch) -> list[Row]:
    """Which clips count as relevant: in CG-DETR those with points, in TR-DETR all that were annotated."""
    rows, mask = [], batch.inputs.video_mask
    if "targets.relevant_clips" in tape.tensors:
        seen = (tape["targets.relevant_clips"] > 0) & mask
        rows.append(
            compare_exactly("targets.relevant_clips", relevant_clips(batch.targets, mask).tolist(), seen.tolist())
        )
    if "targets.src_pos_mask" in tape.tensors:
        ours, theirs = described_clips(batch.targets, mask), (tape["targets.src_pos_mask"] > 0) & mask
        for index, sample in enumerate(samples):
            assert sample.record.saliency is not None
            # The official loader forgets all other clips where one is beyond the features.
            lost = max(sample.record.saliency.clips) >= int(mask[index].sum())
            expected = [False] * mask.shape[1] if lost else ours[index].tolist()
            rows.append(compare_exactly(f"targets.src_pos_mask.{index}", theirs[index].tolist(), expected))
    return rows
