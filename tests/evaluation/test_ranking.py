import numpy as np
import pytest
from naive_qvhighlights import ranking_ap

from momentdetr.errors import BadInput
from momentdetr.evaluation.ranking import auroc, ranking_average_precision


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 60), rng.integers(0, 2, 60).astype(bool)
    won = [(a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]]
    assert np.isclose(auroc(scores, labels), np.mean(won))


def test_auroc_of_perfect_reversed_and_constant_scores():
    assert auroc([1, 2, 3], [False, True, True]) == 1
    assert auroc([3, 2, 1], [0, 1, 1]) == 0
    assert auroc([5, 5, 5], [0, 1, 1]) == 0.5


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [([1, 2], [1, 1], "2 true and 0 false"), ([1], [0, 1], "one label"), ([np.nan, 1], [0, 1], "1 that are not")],
)
def test_auroc_refuses(scores, labels, message):
    with pytest.raises(BadInput, match=message):
        auroc(scores, labels)


def test_ranking_precision_equals_the_naive_loop():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 200)
    scores, labels = np.zeros((200, 30)), np.zeros((200, 30), bool)
    valid = np.arange(30) < lengths[:, None]
    scores[valid] = rng.integers(-4, 5, valid.sum())  # ties, and below the padding's zero
    labels[valid] = rng.random(valid.sum()) < 0.4
    scores[~valid], labels[~valid] = 99, True  # padding must not matter
    ours = ranking_average_precision(scores, labels, valid)
    naive = [ranking_ap(scores[i, :n].tolist(), labels[i, :n].tolist()) for i, n in enumerate(lengths)]
    np.testing.assert_allclose(ours, naive, atol=1e-12)


def test_ranking_precision_without_and_with_only_true_items():
    valid = np.ones((2, 3), bool)
    labels = np.array([[False] * 3, [True] * 3])
    assert ranking_average_precision(np.zeros((2, 3)), labels, valid).tolist() == [0.0, 1.0]
    assert ranking_average_precision(np.zeros((2, 0)), labels[:, :0], valid[:, :0]).tolist() == [0.0, 0.0]
