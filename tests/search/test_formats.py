"""Oracle: what other programs read back (json, csv, pandas), the official keys, and hand-written subtitles."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentdetr.errors import BadInput, StoreError
from momentdetr.retrieval.types import Moment
from momentdetr.search.formats import COLUMNS, timestamp
from momentdetr.search.results import QueryResult, SearchResult
from momentdetr.search.table import table

RESULT = SearchResult(
    video="film",
    duration_s=3700.0,
    clip_length_s=2.0,
    queries=(
        QueryResult(
            'a "red", circle\n\n--> $spins$',
            (Moment("film", 75.04, 80.0, 0.91), Moment("film", 3661.5, 3700.0, 0.2)),
            (0.1, -0.5, 0.25),
            0.02,
        ),
        QueryResult("a dragon", (Moment("film", 0.0, 0.5, 0.01),), (0.0, 0.0, 0.0), 0.97),
    ),
    model="demo",
)


def test_a_result_is_a_sequence_of_answers() -> None:
    assert len(RESULT) == 2
    assert [answer.query for answer in RESULT][1] == "a dragon"
    assert RESULT[0].moments[0].score == 0.91
    assert RESULT.times_s == (0.0, 2.0, 4.0)
    assert [answer.is_probably_absent for answer in RESULT] == [False, True]


def test_json_holds_everything(tmp_path: Path) -> None:
    text = RESULT.to_json(tmp_path / "new" / "result.json")
    assert (tmp_path / "new" / "result.json").read_text("utf-8") == text
    data = json.loads(text)
    assert data == RESULT.to_dict()
    assert data["video"] == "film"
    assert data["complete"] is True
    assert data["queries"][0]["moments"][0] == {"start_s": 75.04, "end_s": 80.0, "score": 0.91}
    assert data["queries"][0]["saliency"] == {"times_s": [0.0, 2.0, 4.0], "scores": [0.1, -0.5, 0.25]}
    assert data["queries"][1]["absent"] == 0.97


def test_csv_and_pandas_have_one_row_a_moment() -> None:
    rows = list(csv.DictReader(io.StringIO(RESULT.to_csv())))
    assert [(row["rank"], row["start_s"], row["end_s"]) for row in rows] == [
        ("1", "75.04", "80.0"),
        ("2", "3661.5", "3700.0"),
        ("1", "0.0", "0.5"),
    ]
    assert rows[0]["query"] == RESULT[0].query
    frame = RESULT.to_pandas()
    assert list(frame.columns) == list(COLUMNS)
    assert frame["start_s"].tolist() == [75.04, 3661.5, 0.0]
    assert frame["query"].tolist() == [RESULT[0].query, RESULT[0].query, "a dragon"]


def test_subtitles_are_in_order_of_time_and_survive_any_query() -> None:
    assert RESULT.to_srt() == (
        "1\n00:00:00,000 --> 00:00:00,500\na dragon (0.01)\n\n"
        '2\n00:01:15,040 --> 00:01:20,000\na "red", circle -> $spins$ (0.91)\n\n'
        '3\n01:01:01,500 --> 01:01:40,000\na "red", circle -> $spins$ (0.20)\n\n'
    )


def test_the_submission_has_the_official_keys() -> None:
    lines = RESULT.to_qvhighlights(qids=[7, "s17-d69_0"])
    assert lines[0] == {
        "qid": 7,
        "query": RESULT[0].query,
        "vid": "film",
        "pred_relevant_windows": [[75.04, 80.0, 0.91], [3661.5, 3700.0, 0.2]],
        "pred_saliency_scores": [0.1, -0.5, 0.25],
    }
    assert lines[1]["qid"] == "s17-d69_0"
    assert [line["qid"] for line in RESULT.to_qvhighlights()] == [0, 1]
    json.dumps(lines)
    with pytest.raises(BadInput, match="1 qids for 2 queries"):
        RESULT.to_qvhighlights([1])


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "00:00.0"), (75.04, "01:15.0"), (59.96, "01:00.0"), (3599.94, "59:59.9"),
        (3599.96, "1:00:00.0"), (7325.25, "2:02:05.2"), (360000.0, "100:00:00.0"),
    ],
)  # fmt: skip
def test_timestamps(seconds: float, shown: str) -> None:
    assert timestamp(seconds) == shown


@given(st.floats(0, 1e6))
def test_a_timestamp_reads_back_to_a_tenth(seconds: float) -> None:
    total = 0.0
    for part in timestamp(seconds).split(":"):
        total = total * 60 + float(part)
    assert total == pytest.approx(seconds, abs=0.0501)


def drawn(result: SearchResult, width: int = 100) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    console.print(table(result))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_names_ranks_times_scores_and_absence() -> None:
    lines = [line.split() for line in drawn(RESULT).splitlines()]
    shown = next(line for line in lines if "1" in line and "01:15.0" in line)
    assert shown[-5:] == ["1", "01:15.0", "-", "01:20.0", "0.91"]
    assert "probably not in this video: 97%" in drawn(RESULT)
    assert drawn(RESULT).count("probably not") == 1


def test_the_table_says_when_nothing_was_found() -> None:
    empty = SearchResult("film", 1.0, 1.0, (QueryResult("a dragon", (), (0.0,), 0.4),))
    assert "none found" in drawn(empty)


def test_the_table_takes_queries_as_text_and_not_as_orders() -> None:
    moments = (Moment("film", 0.0, 0.5, 0.5),)
    hostile = SearchResult("[red]", 1.0, 1.0, (QueryResult("[bold]x[/bold] \x1b[31m \x07", moments, (0.0,), 0.4),))
    text = drawn(hostile)
    assert "[bold]x[/bold]" in text
    assert "[red]" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(StoreError, match="cannot write"):
        RESULT.to_json(tmp_path / "file" / "result.json")


def test_a_failure_leaves_the_old_file_and_no_remains(tmp_path: Path) -> None:
    from momentdetr.search.files import atomic

    path = tmp_path / "result.txt"
    path.write_text("old", "utf-8")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half", "utf-8")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert path.read_text("utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["result.txt"]
