import json

import numpy as np
import pytest

from momentdetr.errors import BadInput
from momentdetr.evaluation.nms import temporal_nms


def popping(windows, threshold, limit):
    """The same, by taking the best and crossing out its neighbours, on a list that shrinks."""
    left, kept = [list(w) for w in windows], []
    while left and len(kept) < limit:
        best = max(range(len(left)), key=lambda i: (left[i][2], -i))
        chosen = left.pop(best)
        kept.append(chosen)
        rest = []
        for other in left:
            lo, hi = min(chosen[0], other[0]), max(chosen[1], other[1])
            shared = min(chosen[1], other[1]) - max(chosen[0], other[0])
            if not (hi != lo and shared > 0 and shared / (hi - lo) > threshold):
                rest.append(other)
        left = rest
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_equals_crossing_out(threshold):
    rng = np.random.default_rng(0)
    for _ in range(60):
        edges = np.sort(rng.integers(0, 30, (rng.integers(0, 20), 2)), 1)
        scores = rng.integers(0, 6, len(edges)) / 5  # ties
        windows = [[float(a), float(b), float(s)] for (a, b), s in zip(edges, scores, strict=True)]
        for limit in (3, 10):
            assert [list(w) for w in temporal_nms(windows, threshold, limit=limit)] == popping(
                windows, threshold, limit
            )


def test_an_overlap_equal_to_the_threshold_stays():
    windows = [(0.0, 10.0, 0.9), (0.0, 5.0, 0.8)]
    assert len(temporal_nms(windows, 0.5)) == 2
    assert temporal_nms(windows, 0.49) == windows[:1]


def test_nothing_and_one():
    assert temporal_nms([], 0.5) == []
    assert temporal_nms([(3.0, 1.0, 0.5)], 0.0) == [(3.0, 1.0, 0.5)]


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_thresholds_that_make_no_sense(threshold):
    with pytest.raises(BadInput, match="0 to 1"):
        temporal_nms([], threshold)


def test_recorded_official_results(goldens):
    recorded = json.loads((goldens / "eval_qvhighlights" / "nms_postprocess.json").read_text())
    for fork in ("moment_detr", "FlashVTG", "lighthouse"):  # BAM-DETR's lowers scores instead of dropping windows
        results = recorded["nms"][fork]["temporal_nms"]["results"]
        assert len(results) == len(recorded["cases"]) > 5
        for case, expected in zip(recorded["cases"], results, strict=True):
            for setting, windows in expected.items():
                threshold, limit = setting.split("/")
                assert temporal_nms(case, float(threshold), limit=int(limit)) == windows, (fork, setting)
