import json

import pytest

from momentdetr.datasets.tacos import check_tacos


def write(tmp_path, value):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(value))
    return path


def test_frames_become_seconds(tmp_path):
    entry = {
        "timestamps": [[224, 358], [358, 1000]],
        "sentences": ["He took a pan", "He"],
        "num_frames": 12438,
        "fps": 29.4,
    }
    first, second = check_tacos(write(tmp_path, {"s17-d69.avi": entry})).require_faultless()
    assert (first.qid, first.video, first.query) == ("s17-d69_0", "s17-d69", "He took a pan")
    assert first.duration_s == pytest.approx(423.0612, abs=1e-3)
    assert first.windows_s == (pytest.approx((7.61905, 12.17687), abs=1e-5),)
    assert second.qid == "s17-d69_1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 0}, "above 0"),
        ({"num_frames": None}, "above 0"),
        ({"timestamps": [[9, 3]]}, "does not end after"),
        ({"timestamps": [[0, 999]]}, "beyond"),
        ({"timestamps": [[0, float("inf")]]}, "not finite"),
        ({"sentences": ["a", "b"]}, "as many timestamps"),
        ({"sentences": [3]}, "must be text"),
        ({"sentences": [" "]}, "empty"),
    ],
)
def test_each_fault_is_named(tmp_path, change, message):
    good = {"timestamps": [[0, 30]], "sentences": ["fine"], "num_frames": 300, "fps": 30}
    report = check_tacos(write(tmp_path, {"s1.avi": good, "s2.avi": {**good, **change}}))
    (fault,) = report.faults
    assert fault.line == 2
    assert message in fault.text
    assert [record.video for record in report.records] == ["s1"]
