import json

import numpy as np
import pytest

from momentdetr.errors import BadInput
from momentdetr.evaluation.video_highlights import (
    trapezoid_average_precision,
    tvsum_average_precision,
    youtube_average_precision,
)


def naive(ranked):
    total, hits, area, recall, precision = sum(ranked), 0, 0.0, 0.0, 1.0
    for rank, label in enumerate(ranked, start=1):
        hits += label
        new_recall, new_precision = hits / total if total else 0.0, hits / rank
        area += (new_recall - recall) * (precision + new_precision) / 2
        recall, precision = new_recall, new_precision
    return area


def test_trapezoids_equal_the_naive_loop():
    rng = np.random.default_rng(0)
    for _ in range(100):
        ranked = (rng.random(rng.integers(1, 20)) < 0.4).astype(float).tolist()
        assert trapezoid_average_precision(ranked) == pytest.approx(naive(ranked))
    assert trapezoid_average_precision([1, 1, 0]) == 1
    assert trapezoid_average_precision([0, 1]) == 0.25


def test_youtube_ranks_all_clips():
    assert youtube_average_precision([0.1, 0.9, 0.5], [0, 0, 1]) == pytest.approx(naive([0, 1, 0]))
    assert youtube_average_precision([0.1, 0.9], [0, 0]) == 0


def test_tvsum_takes_five_clips_and_each_annotators_median():
    scores = [7, 6, 5, 4, 3, 2, 1]
    labels = np.array([[5, 1], [1, 1], [1, 1], [1, 2], [1, 1], [4, 3], [4, 4]])
    # medians 1 and 1: liked ranks 1 of the top five; rank 4 of the top five
    expected = (naive([1, 0, 0, 0, 0]) + naive([0, 0, 0, 1, 0])) / 2
    assert tvsum_average_precision(scores, labels) == pytest.approx(expected)
    four = labels[:4]  # an even number of clips: the lower of the two middle ratings is the median
    assert tvsum_average_precision(scores[:4], four) == pytest.approx((naive([1, 0, 0, 0]) + naive([0, 0, 0, 1])) / 2)


def test_refusals():
    with pytest.raises(BadInput, match="one finite score"):
        youtube_average_precision([0.1, float("nan")], [0, 1])
    with pytest.raises(BadInput, match="one label a clip"):
        youtube_average_precision([0.1], [0, 1])
    with pytest.raises(BadInput, match="for 3 clips"):
        tvsum_average_precision([1, 2, 3], [[1], [2]])


def test_published_predictions_give_the_published_numbers(shared_data):
    folder = shared_data / "mr_eval"
    expected = json.loads((folder / "univtg_hd_metrics.json").read_text())["values"]
    truth = {d["vid"]: d["label"] for d in map(json.loads, (folder / "tvsum_val_labels.jsonl").open())}
    for domain in ("DS", "BT", "GA"):
        videos = [json.loads(line) for line in (folder / f"univtg_tvsum_{domain}.jsonl").open()]
        scores = []
        for video in videos:
            labels = truth[video["vid"]]
            length = min(len(labels), len(video["pred"]))
            scores.append(tvsum_average_precision(video["pred"][:length], labels[:length]))
        assert round(100 * np.mean(scores), 3) == expected[f"tvsum_{domain}"]
    dogs = [json.loads(line) for line in (folder / "univtg_youtube_dog.jsonl").open()]
    scores = [youtube_average_precision(video["pred"], video["gt"]) for video in dogs]
    assert round(100 * np.mean(scores), 3) == expected["yt_dog"]


def test_recorded_official_numbers(goldens):
    cases = json.loads((goldens / "eval_qvhighlights" / "hl_map.json").read_text())
    assert cases["tvsum"]
    assert cases["youtube_uni"]
    for case in cases["tvsum"]:
        scores = case["scores"][: len(case["label"])]  # the official code cuts padding off
        assert round(tvsum_average_precision(scores, case["label"]), 5) == case["result"]["mAP"]
    for case in cases["youtube_uni"]:
        scores = case["scores"][: len(case["label"])]
        ours, official = youtube_average_precision(scores, np.ravel(case["label"])), case["result"]["mAP"]
        assert round(ours, 5) == (0 if official == "nan" else official)
