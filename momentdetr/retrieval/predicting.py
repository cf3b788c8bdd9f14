"""A trained retriever's answers to a whole data set, on the clock of its videos."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from momentdetr.datasets.predictions import MomentPrediction
from momentdetr.retrieval.batches import MomentDataset
from momentdetr.retrieval.model import MomentPredictions
from momentdetr.retrieval.types import VideoText


class Predictor(Protocol):
    """What answers a batch; `retrieval.model.MomentRetriever` does."""

    def predict(self, inputs: VideoText) -> MomentPredictions: ...


@torch.no_grad()
def predict_dataset(
    model: Predictor, dataset: MomentDataset, *, batch_size: int, device: torch.device | str = "cpu"
) -> tuple[list[MomentPrediction], list[float]]:
    """Answer every query.

    Args:
        model: in evaluation mode.
        dataset: N samples.
        batch_size: samples at once.
        device: where the model is.

    Returns:
        N predictions, their windows in seconds, within the video, best first, and N times how sure the model is that
        the query is not in its video.
    """
    predictions: list[MomentPrediction] = []
    absent: list[float] = []
    by_length = sorted(range(len(dataset)), key=lambda index: -len(dataset[index].video))  # little padding
    for start in range(0, len(by_length), batch_size):
        batch = dataset.batch(by_length[start : start + batch_size]).to(device)
        said = model.predict(batch.inputs)
        seen_s = said.video_mask.sum(1).cpu() * dataset.spec.clip_length_s
        for row, record in enumerate(batch.records):
            windows = _windows(said.spans[row], said.scores[row], float(seen_s[row]), record.duration_s)
            saliency = tuple(said.saliency[row][said.video_mask[row]].tolist())
            predictions.append(MomentPrediction(record.qid, windows, saliency, record.query, record.video))
        absent += said.absent.tolist()
    order = sorted(range(len(by_length)), key=by_length.__getitem__)
    return [predictions[i] for i in order], [absent[i] for i in order]


def _windows(spans: Tensor, scores: Tensor, seen_s: float, duration_s: float) -> tuple[tuple[float, float, float], ...]:
    edges = (spans.float().cpu() * seen_s).clamp(0, duration_s)
    best = scores.float().cpu().argsort(descending=True, stable=True)
    rows = torch.cat([edges, scores.float().cpu()[:, None]], 1)[best].tolist()
    return tuple((start, end, score) for start, end, score in rows)
