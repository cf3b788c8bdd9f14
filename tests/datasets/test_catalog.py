"""Every reader: the real files, and each fault by line."""

import json

import pytest

from momentdetr.datasets.catalog import DATASETS, dataset, read_dataset
from momentdetr.errors import BadInput

FILES = {
    ("qvhighlights", "train"): "qvhighlights/highlight_train_release.jsonl",
    ("qvhighlights", "val"): "qvhighlights/highlight_val_release.jsonl",
    ("qvhighlights", "test"): "qvhighlights/highlight_test_with_gt.jsonl",
    ("charades", "train"): "charades_sta/charades_train_release.jsonl",
    ("charades", "test"): "charades_sta/charades_test_release.jsonl",
    ("tacos", "train"): "tacos/tacos_train_release.jsonl",
    ("tacos", "val"): "tacos/tacos_val_release.jsonl",
    ("tacos", "test"): "tacos/tacos_test_release.jsonl",
    ("activitynet", "val_1"): "activitynet_captions/activitynet_val_release.jsonl",
    ("tvsum", "train"): "tvsum/tvsum_train_release.jsonl",
    ("tvsum", "val"): "tvsum/tvsum_val_release.jsonl",
    ("youtube", "train"): "youtube_highlights/youtube_highlight_train_release.jsonl",
    ("youtube", "val"): "youtube_highlights/youtube_highlight_val_release.jsonl",
}
MOMENTS = ["qvhighlights", "qvhighlights_asr", "charades", "tacos", "activitynet"]


def good(number):
    return {
        "qid": f"video_{number}",
        "query": "a person sits",
        "vid": "video",
        "duration": 30.0,
        "relevant_windows": [[1.0, 5.0]],
    }


def write(tmp_path, lines, ending="\n", start=b""):
    path = tmp_path / "annotations.jsonl"
    path.write_bytes(start + "".join(json.dumps(line) + ending for line in lines).encode())
    return path


@pytest.mark.parametrize("name", MOMENTS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relevant_windows": [[5.0, 1.0]]}, "does not end after it starts"),
        ({"relevant_windows": [[5.0, 5.0]]}, "does not end after it starts"),
        ({"relevant_windows": [[5.0, 31.0]]}, "beyond the video's 30.0 s"),
        ({"relevant_windows": [[-1.0, 3.0]]}, "starts before the video"),
        ({"relevant_windows": [[float("nan"), 3.0]]}, "not finite"),
        ({"relevant_windows": [[1.0]]}, "expected [[start, end]"),
        ({"duration": float("nan")}, "expected seconds above 0"),
        ({"duration": "30"}, "expected seconds"),
        ({"query": ""}, "query is empty"),
        ({"qid": "video_0"}, "already on line 1"),
        ({"vid": 3}, "expected text"),
        ({"vid": "elsewhere", "qid": "elsewhere_1"}, "is not there"),
    ],
)
def test_each_fault_is_named_by_line(tmp_path, name, change, message):
    path = write(tmp_path, [good(0), {**good(1), **change}, good(2)])
    report = dataset(name).check(path, videos={"video"})
    assert [fault.line for fault in report.faults] == [2]
    assert message in report.faults[0].text
    assert [record.qid for record in report.records] == ["video_0", "video_2"]
    with pytest.raises(BadInput, match="line 2"):
        report.require_faultless()


@pytest.mark.parametrize("name", MOMENTS)
def test_byte_order_mark_and_crlf_are_remarked(tmp_path, name):
    report = dataset(name).check(write(tmp_path, [good(0)], "\r\n", b"\xef\xbb\xbf"))
    assert len(report.require_faultless()) == 1
    assert report.remarks == ("starts with a byte order mark", "lines end in CRLF")


@pytest.mark.parametrize("name", MOMENTS[1:])
def test_data_sets_with_one_window_a_query(tmp_path, name):
    report = dataset(name).check(write(tmp_path, [{**good(0), "relevant_windows": [[1, 2], [3, 4]]}]))
    assert "has 2 relevant_windows, expected exactly one" in report.faults[0].text


@pytest.mark.parametrize("qid", [3, "video", "other_3", "video_"])
def test_captions_are_numbered_within_their_video(tmp_path, qid):
    report = dataset("qvhighlights_asr").check(write(tmp_path, [{**good(0), "qid": qid}]))
    assert "such as 'video_0'" in report.faults[0].text


def test_unknown_names(tmp_path):
    with pytest.raises(BadInput, match="expected one of qvhighlights"):
        dataset("imagenet")
    with pytest.raises(BadInput, match="no video of domain 'dog'"):
        read_dataset("charades", write(tmp_path, [good(0)]), domain="dog")


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_the_real_files_have_no_fault_and_the_published_size(shared_data, name):
    for split, count in DATASETS[name].queries.items():
        records = read_dataset(name, shared_data / "annotations" / FILES[name, split])
        assert len(records) == count, split
        assert {record.domain for record in records} == set(DATASETS[name].domains or [""])
        limit = max(record.duration_s for record in records)
        assert all(0 <= start < end <= limit + 0.05 for record in records for start, end in record.windows_s)
