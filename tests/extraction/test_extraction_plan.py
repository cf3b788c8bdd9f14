"""Oracle: small folders and files whose contents are written out here."""

from __future__ import annotations

from pathlib import Path

import pytest

from momentdetr.errors import BadInput
from momentdetr.extraction.plan import make_plan


def test_videos_of_folders_and_files_by_name(tmp_path: Path) -> None:
    for name in ("b.MP4", "a.mkv", "notes.txt", ".hidden.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "sub.mp4").mkdir()
    (tmp_path / "odd").write_bytes(b"")
    plan = make_plan([tmp_path, tmp_path / "odd", tmp_path / "a.mkv"], [], "univtg")
    assert [(job.name, job.file) for job in plan.jobs] == [
        (".hidden", "vid_clip/.hidden.npz"),
        ("a", "vid_clip/a.npz"),
        ("b", "vid_clip/b.npz"),
        ("odd", "vid_clip/odd.npz"),
    ]


def test_two_videos_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes(b"")
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(BadInput, match="both called 'a'"):
        make_plan([tmp_path], [], "univtg")


def test_every_unusable_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        '{"qid": 1, "query": "a dog", "vid": "v"}',
        '{"qid": 1, "query": "a dog", "vid": "w"}',  # the same query of another video
        '{"qid": 1, "query": "a cat", "vid": "v"}',
        '{"qid": "../x", "query": "a cat", "vid": "v"}',
        '{"qid": 2, "query": " ", "vid": "v"}',
        '{"qid": 3, "query": "a cat", "vid": "a/b"}',
        '{"qid": true, "query": "a cat", "vid": "v"}',
        "nonsense",
        "[1]",
    ]
    path.write_text("\ufeff" + "\r\n".join(lines), "utf-8")
    with pytest.raises(BadInput) as caught:
        make_plan([], [path], "univtg")
    text = str(caught.value)
    assert text.startswith("7 lines of annotations cannot be used")
    assert all(f"line {number}:" in text for number in (3, 4, 5, 6, 7, 8, 9))
    assert "line 1:" not in text
    assert "line 2:" not in text


def test_queries_alone_miss_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"qid": 1, "query": "a dog", "vid": "v"}\n', "utf-8")
    plan = make_plan([], [path], "lighthouse_tacos")
    assert [job.file for job in plan.jobs] == ["clip_text/1.npz"]
    assert plan.missing == ()


def test_nothing_to_do_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="neither videos nor annotations"):
        make_plan([], [], "univtg")
    with pytest.raises(BadInput, match="holds no videos"):
        make_plan([tmp_path], [], "univtg")
