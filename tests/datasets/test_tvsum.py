import json

import pytest

from momentdetr.datasets.tvsum import check_tvsum

GOOD = {
    "qid": "a",
    "query": "a title",
    "vid": "a",
    "duration": 3,
    "relevant_windows": None,
    "domain": "BT",
    "label": [[1.0] * 20, [5.0] * 20, [2.0] * 20],
}


def write(tmp_path, *lines):
    path = tmp_path / "tvsum.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_duration_counts_clips_of_two_seconds(tmp_path):
    (record,) = check_tvsum(write(tmp_path, GOOD)).require_faultless()
    assert record.duration_s == 6.0
    assert record.domain == "BT"
    assert record.windows_s == ()
    assert record.saliency.clips == (0, 1, 2)
    assert record.saliency.scores[1] == (5.0,) * 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration": 6}, "number of clips in label, 3"),
        ({"label": [[1.0] * 20, [5.0] * 19, [2.0] * 20]}, "20 annotators"),
        ({"label": [[0.0] * 20] * 3}, "outside 1 to 5"),
        ({"label": [[float("nan")] * 20] * 3}, "outside 1 to 5"),
        ({"label": []}, "label is []"),
        ({"domain": None}, "domain is None"),
        ({"query": " "}, "query is empty"),
        ({"qid": "a"}, "already on line 1"),
    ],
)
def test_each_fault_is_named(tmp_path, change, message):
    report = check_tvsum(write(tmp_path, GOOD, {**GOOD, "qid": "b", **change}))
    assert [fault.line for fault in report.faults] == [2]
    assert message in report.faults[0].text
    assert len(report.records) == 1


def test_the_real_annotations_seconds_are_those_of_the_videos(shared_data):
    """Lengths of TVSum's own info table, m:ss."""
    folder = shared_data / "annotations/tvsum"
    records = [r for split in ("train", "val") for r in check_tvsum(folder / f"tvsum_{split}_release.jsonl").records]
    lengths = {"sTEELN-vY30": 149, "akI8YFjEmUw": 133, "E11zDS9XGzg": 510, "JgHubY5Vw3Y": 143, "-esJrBWj2d8": 230}
    found = {record.video: record.duration_s for record in records}
    assert len(found) == 50
    assert all(abs(found[video] - length) <= 2 for video, length in lengths.items())
