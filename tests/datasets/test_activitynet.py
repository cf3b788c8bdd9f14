import json

import pytest

from momentdetr.datasets.activitynet import check_activitynet
from momentdetr.datasets.records import MomentRecord
from momentdetr.errors import BadInput


def write(tmp_path, value):
    path = tmp_path / "val_1.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_the_released_form(tmp_path):
    entry = {
        "duration": 55.15,
        "timestamps": [[0.28, 55.15], [13.79, 54.32]],
        "sentences": ["A tutorial.", " He lifts."],
    }
    report = check_activitynet(write(tmp_path, {"v_a": entry, "v_b": {**entry, "timestamps": [[1, 2], [3, 4]]}}))
    assert report.require_faultless()[:2] == (
        MomentRecord(0, "A tutorial.", "v_a", 55.15, ((0.28, 55.15),)),
        MomentRecord(1, "He lifts.", "v_a", 55.15, ((13.79, 54.32),)),
    )
    assert [record.qid for record in report.records] == [0, 1, 2, 3]


def test_each_fault_is_named(tmp_path):
    good = {"duration": 10.0, "timestamps": [[0, 5]], "sentences": ["fine"]}
    report = check_activitynet(
        write(
            tmp_path,
            {
                "v_a": good,
                "v_b": {**good, "duration": None},
                "v_c": {**good, "sentences": []},
                "v_d": {**good, "timestamps": [[5, 1]]},
                "v_e": {**good, "timestamps": [[0, 50]]},
                "v_f": {**good, "timestamps": [[0]]},
                "v_g": [],
                "v_h": {**good, "duration": float("nan")},
            },
        )
    )
    assert [fault.line for fault in report.faults] == [2, 3, 4, 5, 6, 7, 8]
    assert "v_b" in report.faults[0].text
    assert [record.video for record in report.records] == ["v_a"]


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"v_a": {}, "v_a": {}}'])
def test_files_that_are_no_object(tmp_path, text):
    with pytest.raises(BadInput):
        check_activitynet(write(tmp_path, text))
