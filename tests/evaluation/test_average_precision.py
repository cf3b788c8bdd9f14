import numpy as np
from naive_qvhighlights import iou, window_ap

from momentdetr.evaluation.average_precision import interpolated_average_precision, match_by_rank


def average_precision(overlaps, thresholds, num_true):
    overlaps = np.asarray(overlaps, dtype=float)[None]
    predicted = np.ones(overlaps.shape[:2], dtype=bool)
    true = np.ones((1, overlaps.shape[2]), dtype=bool)
    matches = match_by_rank(overlaps, predicted, true, np.asarray(thresholds))
    return matches[0], interpolated_average_precision(matches, predicted, np.array([num_true]))[0]


def test_a_region_is_taken_once():
    matches, ap = average_precision([[0.9, 0.0], [0.8, 0.0]], [0.5], 2)
    assert matches.tolist() == [[True, False]]
    assert ap.tolist() == [0.5]


def test_a_taken_region_leaves_the_next_best():
    matches, ap = average_precision([[0.9, 0.0], [0.8, 0.6]], [0.5, 0.7], 2)
    assert matches.tolist() == [[True, True], [True, False]]
    assert ap.tolist() == [1.0, 0.5]


def test_threshold_is_inclusive_and_nan_matches():
    matches, _ = average_precision([[0.5]], [0.5, 0.51], 1)
    assert matches[:, 0].tolist() == [True, False]
    matches, _ = average_precision([[np.nan]], [0.5], 1)
    assert matches.all()


def test_precision_is_interpolated():
    # hits at ranks 2 and 3 of 3: precision 1/2, 2/3 -> both recalls take the best from there on, 2/3
    _, ap = average_precision([[0, 0], [1, 0], [0, 1]], [0.5], 2)
    assert np.isclose(ap[0], 2 / 3)


def test_no_predictions_or_no_regions():
    empty = match_by_rank(np.zeros((2, 0, 3)), np.zeros((2, 0), bool), np.ones((2, 3), bool), np.array([0.5]))
    assert empty.shape == (2, 1, 0)
    assert interpolated_average_precision(empty, np.zeros((2, 0), bool), np.array([3, 3])).tolist() == [[0.0], [0.0]]
    assert not match_by_rank(np.zeros((1, 2, 0)), np.ones((1, 2), bool), np.ones((1, 0), bool), np.array([0.5])).any()


def test_padded_batch_equals_the_naive_loop():
    rng = np.random.default_rng(0)
    thresholds = [0.3, 0.5, 0.7]
    queries = []
    for _ in range(30):
        truth = [sorted(rng.integers(0, 20, 2) + np.array([0, 1])) for _ in range(rng.integers(1, 5))]
        found = [
            [*sorted(rng.integers(0, 20, 2) + np.array([0, 1])), float(rng.integers(0, 5))]
            for _ in range(rng.integers(0, 9))
        ]
        queries.append((truth, found))
    most_true, most_found = max(len(t) for t, _ in queries), max(len(f) for _, f in queries)
    overlaps = np.zeros((30, most_found, most_true))
    predicted, true = np.zeros((30, most_found), bool), np.zeros((30, most_true), bool)
    for n, (truth, found) in enumerate(queries):
        for p, window in enumerate(sorted(found, key=lambda w: -w[2])):
            overlaps[n, p, : len(truth)] = [iou(window, t) for t in truth]
        predicted[n, : len(found)], true[n, : len(truth)] = True, True
    matches = match_by_rank(overlaps, predicted, true, np.array(thresholds))
    ours = interpolated_average_precision(matches, predicted, true.sum(1))
    naive = [[window_ap(found, truth, t) for t in thresholds] for truth, found in queries]
    np.testing.assert_allclose(ours, naive, atol=1e-12)
