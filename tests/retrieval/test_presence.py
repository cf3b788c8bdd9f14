from __future__ import annotations

import numpy as np
import pytest
import torch

from momentdetr.evaluation.ranking import auroc
from momentdetr.retrieval.presence import Presence, fit_presence


def test_by_default_the_best_score_is_taken_as_it_is() -> None:
    scores, saliency = torch.tensor([[0.2, 0.9], [0.1, 0.05]]), torch.tensor([[5.0, -3.0], [1.0, 99.0]])
    mask = torch.tensor([[True, True], [True, False]])
    torch.testing.assert_close(Presence().absent(scores, saliency, mask), torch.tensor([0.1, 0.9]))


def test_padded_clips_do_not_speak() -> None:
    scores, saliency = torch.full((1, 2), 0.5), torch.tensor([[1.0, 50.0]])
    found = Presence(score=0.0, saliency=2.0, offset=-1.0).absent(scores, saliency, torch.tensor([[True, False]]))
    torch.testing.assert_close(found, 1 - torch.tensor([1.0]).sigmoid())


def test_a_fit_finds_the_probabilities_that_the_answers_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    logits, saliency = rng.normal(1, 2, 20_000), rng.normal(0, 3, 20_000)
    probability = 1 / (1 + np.exp(-(0.7 * logits + 0.4 * saliency - 1.5)))
    present = rng.random(20_000) < probability
    fitted = fit_presence(1 / (1 + np.exp(-logits)), saliency, present)
    assert (fitted.score, fitted.saliency, fitted.offset) == pytest.approx((0.7, 0.4, -1.5), abs=0.08)
    scores = torch.from_numpy(1 / (1 + np.exp(-logits)))[:, None]
    absent = fitted.absent(scores, torch.from_numpy(saliency)[:, None], torch.ones(20_000, 1, dtype=torch.bool))
    assert np.abs(absent.numpy() - (1 - probability)).mean() < 0.02
    assert auroc(absent.tolist(), ~present) > auroc((1 - scores[:, 0]).tolist(), ~present) + 0.05


def test_a_fit_to_what_can_be_told_without_error_stays_finite() -> None:
    fitted = fit_presence([0.0, 0.0, 1.0, 1.0], [-1.0, -2.0, 3.0, 4.0], [False, False, True, True])
    assert np.isfinite([fitted.score, fitted.saliency, fitted.offset]).all()
    scores = torch.tensor([[0.0], [1.0]])
    absent = fitted.absent(scores, torch.tensor([[-1.0], [3.0]]), torch.ones(2, 1, dtype=torch.bool))
    assert absent[0] > 0.9
    assert absent[1] < 0.1
