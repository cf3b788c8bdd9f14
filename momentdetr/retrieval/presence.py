"""How sure a retriever is that a query is in the video at all.

The published models were never shown a query that is not, so their best score is all there is to go by. A model that
was trained with absent queries can be calibrated: a logistic regression (Platt, 1999) of its best score and its highest
saliency, fitted on validation queries and stored with the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

_EPS = 1e-6
_RIDGE = 1e-3


@dataclass(frozen=True)
class Presence:
    """Weights of the regression; the default takes the best score as it is.

    Args:
        score: weight of the logit of the best moment's score.
        saliency: weight of the highest saliency of a clip.
        offset: what is added.
    """

    score: float = 1.0
    saliency: float = 0.0
    offset: float = 0.0

    def absent(self, scores: Tensor, saliency: Tensor, mask: Tensor) -> Tensor:
        """Scores (B, Q) in [0, 1], saliency (B, T), True where a clip is real (B, T) -> (B,) in [0, 1]."""
        best = torch.logit(scores.max(1).values, _EPS)
        highest = saliency.masked_fill(~mask, -torch.inf).max(1).values
        evidence = self.score * best + self.offset
        if self.saliency:
            evidence = evidence + self.saliency * highest
        return 1 - evidence.sigmoid()


def fit_presence(scores: Sequence[float], saliency: Sequence[float], present: Sequence[bool]) -> Presence:
    """Fit the weights.

    Args:
        scores: N best scores in [0, 1].
        saliency: N highest saliencies.
        present: N times whether the query is in its video; both must occur.
    """
    best = np.clip(np.asarray(scores, np.float64), _EPS, 1 - _EPS)
    inputs = np.stack([np.log(best / (1 - best)), np.asarray(saliency, np.float64), np.ones(len(best))], 1)
    scale = np.array([*inputs[:, :2].std(0).clip(1e-9), 1.0])
    sign = np.where(np.asarray(present, bool), 1.0, -1.0)

    def loss(weights: NDArray[np.float64]) -> float:
        surprise = np.logaddexp(0, -sign * (inputs / scale @ weights))
        return float(surprise.mean() + _RIDGE * np.square(weights[:2]).sum())

    weights = minimize(loss, np.zeros(3)).x / scale
    return Presence(*(round(float(weight), 6) for weight in weights))
