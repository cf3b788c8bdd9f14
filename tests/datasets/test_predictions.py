import json

import pytest

from momentdetr.datasets.predictions import MomentPrediction, read_predictions, write_predictions
from momentdetr.errors import BadInput


def test_what_is_written_is_read_back(tmp_path):
    predictions = [
        MomentPrediction(3, ((0.0, 12.3456, 0.9), (4.0, 5.0, 0.1)), (0.5, -1.25), "a query", "video"),
        MomentPrediction("s1", (), None, "another", "video2"),
        MomentPrediction(4, None, (0.0,), "", ""),
    ]
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, predictions)
    assert read_predictions(path) == predictions
    first = json.loads(path.read_text().splitlines()[0])
    assert set(first) == {"qid", "query", "vid", "pred_relevant_windows", "pred_saliency_scores"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"qid": 1, "pred_relevant_windows": [[0, 1]]}, "must be [[start, end, score]"),
        ({"qid": 1, "pred_relevant_windows": [[0, 1, float("nan")]]}, "finite numbers"),
        ({"qid": 1, "pred_relevant_windows": [["0", 1, 1]]}, "finite numbers"),
        ({"qid": 1, "pred_saliency_scores": [float("inf")]}, "list of finite numbers"),
        ({"qid": 1}, "has neither"),
        ({"pred_relevant_windows": []}, "qid is None"),
        ([1], "expected a JSON object"),
    ],
)
def test_faulty_lines_are_named(tmp_path, line, message):
    path = tmp_path / "predictions.jsonl"
    good = {"qid": 0, "pred_relevant_windows": [[0, 1, 0.5]]}
    path.write_text(f"{json.dumps(good)}\n{json.dumps(line)}\n")
    with pytest.raises(BadInput) as caught:
        read_predictions(path)
    assert "line 2:" in str(caught.value)
    assert message in str(caught.value)
