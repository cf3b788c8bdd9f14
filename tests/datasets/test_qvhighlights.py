import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momentdetr.datasets.qvhighlights import check_qvhighlights, read_qvhighlights, to_qvhighlights
from momentdetr.datasets.records import MomentRecord, Saliency
from momentdetr.errors import BadInput

GOOD = {
    "qid": 7,
    "query": "a red circle grows",
    "duration": 20,
    "vid": "video7",
    "relevant_windows": [[2, 6], [10, 12]],
    "relevant_clip_ids": [1, 2, 5],
    "saliency_scores": [[4, 3, 2], [1, 1, 1], [0, 2, 4]],
}


def write(tmp_path, *lines, ending="\n", start=b""):
    path = tmp_path / "annotations.jsonl"
    text = ending.join(line if isinstance(line, str) else json.dumps(line) for line in lines) + ending
    path.write_bytes(start + text.encode())
    return path


def test_reads_what_the_line_says(tmp_path):
    (record,) = read_qvhighlights(write(tmp_path, GOOD))
    assert record == MomentRecord(
        qid=7,
        query="a red circle grows",
        video="video7",
        duration_s=20.0,
        windows_s=((2.0, 6.0), (10.0, 12.0)),
        saliency=Saliency((1, 2, 5), ((4, 3, 2), (1, 1, 1), (0, 2, 4))),
    )
    assert read_qvhighlights(write(tmp_path, to_qvhighlights(record))) == [record]


def test_absent_query_and_unannotated_saliency(tmp_path):
    absent = {**GOOD, "relevant_windows": [], "relevant_clip_ids": [], "saliency_scores": []}
    plain = {k: v for k, v in {**GOOD, "qid": "s1_0"}.items() if k not in ("relevant_clip_ids", "saliency_scores")}
    first, second = read_qvhighlights(write(tmp_path, absent, plain))
    assert first.windows_s == ()
    assert first.saliency == Saliency((), ())
    assert second.saliency is None
    assert second.qid == "s1_0"


def test_byte_order_mark_crlf_and_empty_lines_are_harmless(tmp_path):
    path = write(tmp_path, GOOD, "", {**GOOD, "qid": 8}, ending="\r\n", start=b"\xef\xbb\xbf")
    assert [record.qid for record in read_qvhighlights(path)] == [7, 8]
    assert check_qvhighlights(path).remarks == ("starts with a byte order mark", "lines end in CRLF")


FAULTS = [
    ({"relevant_windows": [[6, 2]]}, "does not end after it starts"),
    ({"relevant_windows": [[2, 2]]}, "does not end after it starts"),
    ({"relevant_windows": [[2, 21]]}, "ends beyond the video's 20.0 s"),
    ({"relevant_windows": [[-1, 3]]}, "starts before the video"),
    ({"relevant_windows": [[float("nan"), 3]]}, "is not finite"),
    ({"relevant_windows": [[1, 2, 3]]}, "expected [[start, end], ...]"),
    ({"relevant_windows": None}, "expected [[start, end], ...]"),
    ({"duration": float("nan")}, "duration is nan"),
    ({"duration": 0}, "duration is 0.0"),
    ({"duration": "20"}, "duration is '20'"),
    ({"qid": 1.5}, "qid is 1.5"),
    ({"qid": True}, "qid is True"),
    ({"duration": 10**400}, "duration is 1"),
    ({"query": " "}, "query is empty"),
    ({"query": 3}, "query is 3"),
    ({"vid": None}, "vid is None"),
    ({"relevant_clip_ids": [1, 2]}, "2 relevant_clip_ids but 3 saliency_scores"),
    ({"relevant_clip_ids": [1, 2, 10]}, "has 10, but the video's clips are 0 to 9"),
    ({"relevant_clip_ids": [1, 2, -1]}, "has -1"),
    ({"relevant_clip_ids": [1, 2, 2]}, "name a clip twice"),
    ({"relevant_clip_ids": None}, "relevant_clip_ids is None"),
    ({"saliency_scores": [[4, 3], [1, 1, 1], [0, 0, 0]]}, "number of annotators"),
    ({"saliency_scores": [[4], [float("inf")], [0]]}, "not all finite"),
    ({"saliency_scores": [["x"], [1], [0]]}, "expected one list of numbers a clip"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_each_fault_is_named_with_its_line(tmp_path, change, message):
    path = write(tmp_path, GOOD, {**GOOD, "qid": 8, **change}, {**GOOD, "qid": 9})
    with pytest.raises(BadInput) as caught:
        read_qvhighlights(path)
    assert "line 2:" in str(caught.value)
    assert message in str(caught.value)
    assert "line 1:" not in str(caught.value)
    report = check_qvhighlights(path)
    assert [record.qid for record in report.records] == [7, 9]


def test_one_report_names_all_faulty_lines(tmp_path):
    no_video = {key: value for key, value in GOOD.items() if key not in ("vid", "duration")}
    path = write(tmp_path, GOOD, "{broken", "[1]", no_video, {**GOOD, "qid": 7}, {**GOOD, "qid": 9, "vid": "elsewhere"})
    with pytest.raises(BadInput) as caught:
        read_qvhighlights(path, videos={"video7"})
    text = str(caught.value)
    for expected in (
        "5 faults",
        "line 2: is not JSON",
        "line 3: is list",
        "line 4: qid 7: has no duration, vid",
        "line 5: qid 7 is already on line 1",
        "line 6: video 'elsewhere' of qid 9 is not there",
    ):
        assert expected in text


def test_ends_rounded_a_little_beyond_the_duration_are_accepted(tmp_path):
    assert read_qvhighlights(write(tmp_path, {**GOOD, "relevant_windows": [[2, 20.01]]}))


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"\n \n", "is empty"), (b"\xff\xfe{}", "byte 0 is not UTF-8")]
)
def test_files_that_are_no_text_or_hold_nothing(tmp_path, content, message):
    path = tmp_path / "annotations.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_qvhighlights(path)


def test_missing_file(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        read_qvhighlights(tmp_path / "none.jsonl")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 30) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(list(GOOD)), inner, max_size=7),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(list(GOOD)), JSON, max_size=3), whole=st.none() | JSON)
def test_any_json_is_read_or_refused_but_never_crashes(tmp_path_factory, changes, whole):
    folder = tmp_path_factory.mktemp("any")
    path = write(folder, {**GOOD, **changes} if whole is None else whole)
    try:
        (record,) = read_qvhighlights(path)
    except BadInput:
        return
    assert all(0 <= start < end <= record.duration_s + 0.05 for start, end in record.windows_s)


def test_the_real_annotations_are_read_whole(shared_data):
    counts = {"highlight_train_release": 7218, "highlight_val_release": 1550, "highlight_test_with_gt": 1542}
    for name, count in counts.items():
        records = read_qvhighlights(shared_data / "annotations/qvhighlights" / f"{name}.jsonl")
        assert len(records) == count
        assert all(record.saliency is not None and record.windows_s for record in records)
    with pytest.raises(BadInput, match="has no relevant_windows"):
        read_qvhighlights(shared_data / "annotations/qvhighlights/highlight_test_release.jsonl")
