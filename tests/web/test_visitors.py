"""No visitor reaches another's video, and nothing is kept for ever."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from momentdetr.errors import BadInput
from momentdetr.web.visitors import Visitors


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    path = tmp_path / "upload.mp4"
    path.write_bytes(b"video")
    return path


def _files(root: Path) -> int:
    return sum(path.is_file() for path in root.rglob("*"))


def test_only_the_owner_gets_a_video_back(tmp_path: Path, upload: Path) -> None:
    visitors = Visitors(tmp_path / "kept", visitors=4, videos=4)
    video = visitors.add("anna", upload, 5.0)
    assert visitors.get("anna", video.token) is video
    for visitor, token in (("ben", video.token), ("anna", "0" * 32), ("anna", None), ("anna", ["x"]), ("", "")):
        with pytest.raises(BadInput, match="no video yet"):
            visitors.get(visitor, token)


def test_one_s_own_copy_outlives_the_upload(tmp_path: Path, upload: Path) -> None:
    visitors = Visitors(tmp_path / "kept", visitors=4, videos=4)
    video = visitors.add("anna", upload, 5.0)
    upload.unlink()
    assert video.path.read_bytes() == b"video"
    assert video.name == "upload.mp4"


def test_names_on_disk_do_not_repeat(tmp_path: Path, upload: Path) -> None:
    visitors = Visitors(tmp_path / "kept", visitors=4, videos=4)
    assert visitors.add("anna", upload, 5.0).path != visitors.add("ben", upload, 5.0).path


def test_the_video_used_longest_ago_goes_first(tmp_path: Path, upload: Path) -> None:
    visitors = Visitors(tmp_path / "kept", visitors=4, videos=2)
    first, second = (visitors.add("anna", upload, 5.0) for _ in range(2))
    visitors.get("anna", first.token)
    third = visitors.add("anna", upload, 5.0)
    assert visitors.get("anna", first.token) is first
    assert visitors.get("anna", third.token) is third
    with pytest.raises(BadInput):
        visitors.get("anna", second.token)
    assert not second.path.exists()
    assert _files(tmp_path / "kept") == 2


def test_the_visitor_seen_longest_ago_goes_first(tmp_path: Path, upload: Path) -> None:
    visitors = Visitors(tmp_path / "kept", visitors=2, videos=2)
    anna, ben = visitors.add("anna", upload, 5.0), visitors.add("ben", upload, 5.0)
    visitors.get("anna", anna.token)
    visitors.add("carl", upload, 5.0)
    assert visitors.get("anna", anna.token) is anna
    with pytest.raises(BadInput):
        visitors.get("ben", ben.token)
    assert len(visitors) == 2
    assert _files(tmp_path / "kept") == 2


def test_who_leaves_takes_everything_along(tmp_path: Path, upload: Path) -> None:
    visitors = Visitors(tmp_path / "kept", visitors=2, videos=2)
    video = visitors.add("anna", upload, 5.0)
    visitors.remove("anna")
    visitors.remove("anna")
    visitors.remove("nobody")
    assert list((tmp_path / "kept").iterdir()) == []
    with pytest.raises(BadInput):
        visitors.get("anna", video.token)


def test_many_at_once_stay_apart(tmp_path: Path, upload: Path) -> None:
    visitors = Visitors(tmp_path / "kept", visitors=16, videos=2)
    wrong: list[str] = []

    def visit(name: str) -> None:
        for _ in range(20):
            video = visitors.add(name, upload, 5.0)
            if visitors.get(name, video.token) is not video:
                wrong.append(name)
            for other in range(8):
                if f"v{other}" != name:
                    try:
                        visitors.get(f"v{other}", video.token)
                        wrong.append(name)
                    except BadInput:
                        pass

    threads = [threading.Thread(target=visit, args=(f"v{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert _files(tmp_path / "kept") == 16
