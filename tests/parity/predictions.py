"""The final answers that official code writes (preds.json), against what `predict` says of the same inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from parity.comparison import Row, compare_exactly, compare_tensor
from parity.material import Golden
from torch import Tensor

LAST_S = 150.0  # official post-processing cuts windows off here, and rounds them to whole clips
SCORE = 0.5e-4 + 1e-5  # scores are written with four decimals
HALF = 2.0**-10  # saliency is written in half precision


@dataclass(frozen=True)
class Answer:
    """Ours for one sample.

    Args:
        spans: (Q, 2), start and end as fractions of the video.
        scores: (Q,).
        saliency: (T,), valid clips only.
    """

    spans: Tensor
    scores: Tensor
    saliency: Tensor


def recorded_answers(golden: Golden) -> dict[str, Any] | None:
    """What preds.json holds; None where there is none, or where the official code crashed."""
    path = golden.folder / "preds.json"
    recorded = json.loads(path.read_text()) if path.is_file() else {}
    return recorded if "preds" in recorded else None


def check_answers(recorded: Mapping[str, Any], answers: Sequence[Answer]) -> list[Row]:
    """A row for the windows, the scores and the saliency of each sample."""
    rows = [compare_exactly("preds.samples", len(answers), len(recorded["preds"]))]
    clip_s = float(recorded["opt"]["clip_length"])
    for answer, meta, theirs in zip(answers, recorded["meta"], recorded["preds"], strict=True):
        name = f"preds.{theirs['qid']}"
        order = answer.scores.argsort(descending=True, stable=True)
        windows = (answer.spans[order].double() * meta["duration"]).clamp(0, LAST_S)
        official = torch.tensor(theirs["pred_relevant_windows"], dtype=torch.float64)
        # Rounded to whole clips: at most half a clip away, and a little more where the rounding was a close call.
        rows.append(compare_tensor(f"{name}.windows", windows, official[:, :2], clip_s / 2 + 1e-3))
        rows.append(compare_tensor(f"{name}.scores", answer.scores[order], official[:, 2], SCORE))
        saliency = torch.tensor(theirs["pred_saliency_scores"], dtype=torch.float64)
        limit = HALF * max(1.0, saliency.abs().max().item())
        rows.append(compare_tensor(f"{name}.saliency", answer.saliency, saliency, limit))
    return rows
