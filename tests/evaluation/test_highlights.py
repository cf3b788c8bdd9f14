import pytest

from momentdetr.datasets.records import Saliency
from momentdetr.errors import BadInput
from momentdetr.evaluation.highlights import evaluate_highlights


def test_a_known_case():
    # Four clips; clip 2 is very good for one annotator, fair for the other; clip 1 is fair for both.
    truth = [Saliency((1, 2), ((2, 2), (4, 2)))]
    scores = evaluate_highlights([[0.1, 0.9, 0.8, 0.2]], truth, [4])
    assert scores["Fair"].hit_at_1 == 1  # clip 1
    assert scores["VeryGood"].hit_at_1 == 0
    assert scores["Fair"].mean_ap == 1  # both annotators: clips 1 and 2 rank first
    assert scores["VeryGood"].mean_ap == pytest.approx((0.5 + 0) / 2)  # clip 2 is second; none for the other


def test_short_curves_are_filled_and_long_ones_cut():
    truth = [Saliency((3,), ((4,),))]
    filled = evaluate_highlights([[-1.0, -1.0]], truth, [4])["Good"]
    assert filled.mean_ap == pytest.approx(1 / 2)  # clips 2 and 3 tie at zero, above the others
    assert filled.hit_at_1 == 0
    cut = evaluate_highlights([[0.0, 0.0, 0.0, 1.0, 9.0]], truth, [4])["Good"]
    assert cut.mean_ap == 1
    assert cut.hit_at_1 == 0  # the whole curve's maximum lies outside the video


def test_missing_curves_score_zero():
    truth = [Saliency((0,), ((4,),))] * 3
    scores = evaluate_highlights([None, [], [1.0, 0.0]], truth, [2, 2, 2])
    assert scores["Fair"].mean_ap == pytest.approx(1 / 3)
    assert scores["Fair"].hit_at_1 == pytest.approx(1 / 3)


def test_annotators_must_be_equally_many():
    with pytest.raises(BadInput, match=r"\[1, 2\]"):
        evaluate_highlights([[1.0]] * 2, [Saliency((0,), ((4,),)), Saliency((0,), ((4, 4),))], [1, 1])
