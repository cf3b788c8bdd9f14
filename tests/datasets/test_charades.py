import pytest

from momentdetr.datasets.charades import check_charades, read_durations
from momentdetr.datasets.records import MomentRecord
from momentdetr.errors import BadInput

DURATIONS = {"AO8RW": 33.67, "3MSZA": 30.96}


def write(tmp_path, text, name="charades_sta_train.txt"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def test_the_released_lines(tmp_path):
    text = "AO8RW 0.0 6.9##a person is putting a book on a shelf.\n3MSZA 24.3 30.4##person turn a light on.\n"
    report = check_charades(write(tmp_path, text), durations=DURATIONS)
    assert report.require_faultless() == (
        MomentRecord(0, "a person is putting a book on a shelf.", "AO8RW", 33.67, ((0.0, 6.9),)),
        MomentRecord(1, "person turn a light on.", "3MSZA", 30.96, ((24.3, 30.4),)),
    )


def test_each_fault_is_named(tmp_path):
    lines = [
        "AO8RW 0.0 6.9##fine",
        "AO8RW 6.9 0.0##backwards",
        "AO8RW 0.0 40.0##too long",
        "AO8RW nan 4##no number",
        "XXXXX 0.0 6.9##who",
        "AO8RW 0.0##short",
        "AO8RW a b##words",
        "AO8RW 0.0 6.9##",
    ]
    report = check_charades(write(tmp_path, "\ufeff" + "\r\n".join(lines)), durations=DURATIONS)
    assert [fault.line for fault in report.faults] == [2, 3, 4, 5, 6, 7, 8]
    texts = [fault.text for fault in report.faults]
    for text, expected in zip(
        texts,
        ["does not end after", "beyond", "not finite", "not known", "VIDEO START END", "expected seconds", "empty"],
        strict=True,
    ):
        assert expected in text
    assert [record.query for record in report.records] == ["fine"]


def test_videos_that_are_not_there(tmp_path):
    report = check_charades(write(tmp_path, "AO8RW 0.0 6.9##fine\n"), durations=DURATIONS, videos={"3MSZA"})
    assert "is not there" in report.faults[0].text


def test_durations_are_needed_and_read_from_the_table(tmp_path):
    path = write(tmp_path, "AO8RW 0.0 6.9##fine\n")
    with pytest.raises(BadInput, match="names no durations"):
        check_charades(path)
    table = write(tmp_path, 'id,subject,script,length\nAO8RW,X1,"says, ""so""",33.67\n', "Charades_v1_train.csv")
    assert read_durations(table) == {"AO8RW": 33.67}
    assert check_charades(path, durations=read_durations(table)).require_faultless()
    for bad in ("id,size\nAO8RW,3\n", "id,length\nAO8RW,long\n"):
        with pytest.raises(BadInput, match="columns id and length"):
            read_durations(write(tmp_path, bad, "bad.csv"))


def test_nothing_and_no_file(tmp_path):
    with pytest.raises(BadInput, match="is empty"):
        check_charades(write(tmp_path, "\n"), durations=DURATIONS)
    with pytest.raises(BadInput, match="cannot be read"):
        check_charades(tmp_path / "none.txt", durations=DURATIONS)
