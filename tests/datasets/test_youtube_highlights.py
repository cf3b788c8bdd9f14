import json

import pytest

from momentdetr.datasets.youtube_highlights import check_youtube_highlights

GOOD = {
    "qid": "a",
    "query": "dog",
    "vid": "a",
    "domain": "dog",
    "duration": 7.0,
    "frames": 210.0,
    "fps": 30.0,
    "clip": [[0, 100], [50, 150], [100, 212]],
    "match": [-1, 0, 1],
    "label": [[0], [0], [1]],
}


def write(tmp_path, *lines):
    path = tmp_path / "youtube.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_clips_have_their_own_seconds(tmp_path):
    (record,) = check_youtube_highlights(write(tmp_path, GOOD)).require_faultless()
    expected = ((0, 10 / 3), (5 / 3, 5), (10 / 3, 7))  # the last ends with the video
    assert [pytest.approx(pair) for pair in expected] == list(record.saliency.times_s)
    assert record.saliency.scores == ((0.0,), (0.0,), (1.0,))
    assert (record.duration_s, record.domain, record.windows_s) == (7.0, "dog", ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration": 9.0}, "are 7.00 s"),
        ({"duration": float("nan")}, "are 7.00 s"),
        ({"fps": 0}, "above 0"),
        ({"label": [[1], [0], [1]]}, "1 where match is 1"),
        ({"match": [0, 1]}, "differ in length"),
        ({"match": None}, "differ in length"),
        ({"clip": [[0, 100], [50, 50], [100, 212]]}, "clip is"),
        ({"clip": [[0, 100], [50, 150], [211, 212]]}, "begins after"),
        ({"domain": ""}, "domain is"),
        ({"qid": "a"}, "already on line 1"),
    ],
)
def test_each_fault_is_named(tmp_path, change, message):
    report = check_youtube_highlights(write(tmp_path, GOOD, {**GOOD, "qid": "b", **change}))
    assert [fault.line for fault in report.faults] == [2]
    assert message in report.faults[0].text
