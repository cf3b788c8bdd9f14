"""Records and features as the batches that a retriever learns from and is scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from momentdetr.datasets.records import MomentRecord
from momentdetr.datasets.sampling import (
    clip_scores,
    draw_pairs,
    draw_windows,
    generator_of,
    windows_seen,
)
from momentdetr.detr.types import Targets
from momentdetr.errors import BadInput
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval.inputs import collate
from momentdetr.retrieval.types import MomentTargets, SaliencyTargets, VideoText


@dataclass(frozen=True)
class MomentSample:
    """One query with its features.

    Args:
        record: what is asked, and what is true.
        video: (T, C) float, raw streams concatenated in the specification's order; more than `max_clips` rows are cut.
        text: (W, Ct) float, raw token states.
    """

    record: MomentRecord
    video: Tensor
    text: Tensor


@dataclass(frozen=True)
class MomentBatch:
    """What one step learns from.

    Args:
        inputs: what the model sees.
        targets: what is true of it.
        records: B records, in order.
    """

    inputs: VideoText
    targets: MomentTargets
    records: tuple[MomentRecord, ...]

    @property
    def sample_ids(self) -> list[str]:
        return [str(record.qid) for record in self.records]

    def to(self, device: torch.device | str) -> MomentBatch:
        """The same batch on another device."""
        inputs, spans, saliency = self.inputs, self.targets.spans, self.targets.saliency
        moved = None
        if saliency is not None:
            scores = None if saliency.scores is None else saliency.scores.to(device)
            relevant = None if saliency.relevant is None else saliency.relevant.to(device)
            moved = SaliencyTargets(scores, saliency.positive.to(device), saliency.negative.to(device), relevant)
        return MomentBatch(
            VideoText(
                inputs.video.to(device),
                inputs.video_mask.to(device),
                inputs.text.to(device),
                inputs.text_mask.to(device),
            ),
            MomentTargets(
                Targets(spans.labels.to(device), spans.boxes.to(device), spans.mask.to(device)),
                moved,
                self.targets.videos,
            ),
            self.records,
        )


class MomentDataset:
    """Records with features in memory.

    Args:
        records: one sample each.
        videos: name -> (T, C), raw streams concatenated.
        texts: query id as text -> (W, Ct).
        spec: how the features were made.
        checked: the features are checked elsewhere (when they are read); they are not looked at here.

    Raises:
        BadInput: names the videos and queries without features, of another length of vector, or not finite.
    """

    def __init__(
        self,
        records: Sequence[MomentRecord],
        videos: Mapping[str, Tensor],
        texts: Mapping[str, Tensor],
        spec: FeatureSpec,
        *,
        checked: bool = False,
    ) -> None:
        self.records = list(records)
        self.spec = spec
        self._videos, self._texts = videos, texts
        self.num_truncated = 0
        if checked:
            return
        video_dim = sum(stream.dim for stream in spec.video)
        video_names = dict.fromkeys(record.video for record in self.records)
        faults = _feature_faults("video", list(video_names), videos, video_dim)
        faults += _feature_faults("query", [str(record.qid) for record in self.records], texts, spec.text_dim)
        if faults:
            shown = "\n  ".join(faults[:50]) + (f"\n  and {len(faults) - 50} more" if len(faults) > 50 else "")
            raise BadInput(f"{len(faults)} features cannot be used; extract them again:\n  {shown}")
        self.num_truncated = sum(len(videos[name]) > spec.max_clips for name in video_names)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> MomentSample:
        record = self.records[index]
        return MomentSample(record, self._videos[record.video], self._texts[str(record.qid)])

    def batch(self, indices: Sequence[int], *, seed: int = 0, epoch: int = 0) -> MomentBatch:
        """The batch of these samples in this epoch; the same arguments give the same batch."""
        generators = [generator_of(seed, epoch, index) for index in indices]
        return collate_moments([self[index] for index in indices], self.spec, generators)


def collate_moments(
    samples: Sequence[MomentSample], spec: FeatureSpec, generators: Sequence[np.random.Generator]
) -> MomentBatch:
    """Make a batch.

    Args:
        samples: B samples.
        spec: how their features were made.
        generators: B sources of the random choice of windows and clip pairs.
    """
    videos = [sample.video[: spec.max_clips] for sample in samples]
    inputs = collate(videos, [sample.text for sample in samples], spec)
    windows = [
        windows_seen(
            draw_windows(sample.record.windows_s, rng),
            len(video),
            spec.clip_length_s,
            truncated=len(sample.video) > len(video),
        )
        for sample, video, rng in zip(samples, videos, generators, strict=True)
    ]
    records = tuple(sample.record for sample in samples)
    lengths = [len(video) for video in videos]
    targets = MomentTargets(
        spans=span_targets(windows, [length * spec.clip_length_s for length in lengths]),
        saliency=_saliency_targets(records, lengths, inputs.video.shape[1], spec.clip_length_s, generators),
        videos=tuple(record.video for record in records),
    )
    return MomentBatch(inputs, targets, records)


def span_targets(windows_s: Sequence[Sequence[tuple[float, float]]], seen_s: Sequence[float]) -> Targets:
    """Windows as centres and widths.

    Args:
        windows_s: B lists of (start, end), seconds; an empty one gives an all-False row of the mask.
        seen_s: B lengths of what the model sees, seconds.

    Returns:
        labels (B, M) zero (foreground), boxes (B, M, 2) as fractions of what the model sees, mask (B, M); M >= 1.
    """
    size = max([1, *map(len, windows_s)])
    edges = torch.zeros(len(windows_s), size, 2)
    mask = torch.zeros(len(windows_s), size, dtype=torch.bool)
    for i, (windows, length) in enumerate(zip(windows_s, seen_s, strict=True)):
        if windows:
            edges[i, : len(windows)] = torch.tensor(windows, dtype=torch.float32) / length
            mask[i, : len(windows)] = True
    start, end = edges.unbind(-1)
    boxes = torch.stack([(start + end) * 0.5, end - start], -1)
    return Targets(labels=torch.zeros(mask.shape, dtype=torch.long), boxes=boxes, mask=mask)


def _saliency_targets(
    records: Sequence[MomentRecord],
    lengths: Sequence[int],
    padded: int,
    clip_length_s: float,
    generators: Sequence[np.random.Generator],
) -> SaliencyTargets:
    scores = np.zeros((len(records), padded), dtype=np.float32)
    relevant = np.zeros((len(records), padded), dtype=bool)
    pairs = []
    for i, (record, length, rng) in enumerate(zip(records, lengths, generators, strict=True)):
        scores[i, :length] = clip_scores(record, length, clip_length_s)
        relevant[i] = scores[i] > 0
        if record.saliency is not None:
            relevant[i, [clip for clip in record.saliency.clips if clip < length]] = True
        pairs.append(draw_pairs(record, length, clip_length_s, rng))
    return SaliencyTargets(
        scores=torch.from_numpy(scores),
        positive=torch.tensor([pair.positive for pair in pairs]),
        negative=torch.tensor([pair.negative for pair in pairs]),
        relevant=torch.from_numpy(relevant),
    )


def _feature_faults(what: str, names: Sequence[str], features: Mapping[str, Tensor], dim: int) -> list[str]:
    faults = []
    for name in names:
        try:
            rows = features[name]
        except KeyError:
            faults.append(f"{what} {name!r}: there are no features")
            continue
        except BadInput as error:  # features that are read when they are asked for
            faults.append(f"{what} {name!r}: {error}")
            continue
        if rows.ndim != 2 or rows.shape[1] != dim or not len(rows):
            faults.append(f"{what} {name!r}: shape {tuple(rows.shape)}, expected (length, {dim})")
        elif not bool(torch.isfinite(rows).all()):
            faults.append(f"{what} {name!r}: holds values that are not finite")
    return faults
