"""What the page does, without a browser: with real small videos and a retriever whose answers the query says."""

from __future__ import annotations

import json
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_retriever import FakeRetriever

from momentdetr.errors import BadInput, BadVideo
from momentdetr.features.video import probe
from momentdetr.web.desk import Desk
from momentdetr.web.limits import Limits


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(FakeRetriever(), tmp_path / "visitors")


def test_open_search_and_take_away(desk: Desk, video: Path) -> None:
    opened = desk.open("anna", video)
    assert not opened.is_copy
    assert opened.player == video
    assert opened.summary == "twelve seconds.mp4, 12.0 s, 128×96, h264"
    progress: list[tuple[int, int]] = []
    found = desk.search("anna", opened.token, "from 2 to 4\nnowhere", lambda *now: progress.append(now))
    result = found.result
    assert found.start_s == 0.0
    assert [(m.start_s, m.end_s) for m in result[0].moments] == [(2.0, 4.0)]
    assert [answer.is_probably_absent for answer in result] == [False, True]
    assert progress[-1] == (24, 24)
    saved = json.loads(desk.save_json("anna", opened.token).read_text())
    assert saved["queries"][0]["moments"] == [{"start_s": 2.0, "end_s": 4.0, "score": 0.9}]
    assert saved["path"] is None


def test_a_video_is_encoded_once_even_by_impatient_visitors(desk: Desk, video: Path) -> None:
    token = desk.open("anna", video).token
    threads = [threading.Thread(target=desk.search, args=("anna", token, f"from {i} to 9")) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(desk.retriever, FakeRetriever)
    assert len(desk.retriever.encoded) == 1


def test_visitors_do_not_see_each_other_s_videos(desk: Desk, make_video: Callable[[str, float, int], Path]) -> None:
    anna = desk.open("anna", make_video("anna.mp4", 4.0, 200)).token
    ben = desk.open("ben", make_video("ben.mp4", 8.0, 50)).token
    assert desk.search("anna", anna, "from 0 to 99").result[0].moments[0].end_s == pytest.approx(4.0, abs=0.11)
    assert desk.search("ben", ben, "from 0 to 99").result[0].moments[0].end_s == pytest.approx(8.0, abs=0.11)
    for act in (desk.save_json, desk.save_clips, lambda *who: desk.search(*who, "from 0 to 1")):
        with pytest.raises(BadInput, match="no video yet"):
            act("anna", ben)  # type: ignore[operator]


def test_clips_are_cut_to_the_moments(desk: Desk, video: Path, tmp_path: Path) -> None:
    token = desk.open("anna", video).token
    desk.search("anna", token, "from 2 to 4 and from 6 to 7\nfrom 1 to 3.5")
    with zipfile.ZipFile(desk.save_clips("anna", token)) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "clips")
    assert len(names) == 3
    assert all("/" not in name and name.endswith(".mp4") for name in names)
    lengths = sorted(round(probe(tmp_path / "clips" / name).duration_s, 1) for name in names)
    assert lengths == pytest.approx([1.0, 2.0, 2.5], abs=0.11)


def test_nothing_can_be_taken_before_a_search(desk: Desk, video: Path) -> None:
    token = desk.open("anna", video).token
    for act in (desk.save_json, desk.save_clips):
        with pytest.raises(BadInput, match="nothing was searched yet"):
            act("anna", token)
    desk.search("anna", token, "nowhere")
    with pytest.raises(BadInput, match="no moment was found"):
        desk.save_clips("anna", token)


def test_large_and_long_files_are_refused_with_the_way_round(tmp_path: Path, video: Path) -> None:
    small = Desk(FakeRetriever(), tmp_path / "a", Limits(upload_bytes=1000))
    with pytest.raises(BadInput, match=r"at most 0 MB here\. The command line has no such limit"):
        small.open("anna", video)
    short = Desk(FakeRetriever(), tmp_path / "b", Limits(duration_s=10.0))
    with pytest.raises(BadInput, match=r"lasts 0 minutes; at most 0 here|lasts"):
        short.open("anna", video)
    assert len(small.visitors) == len(short.visitors) == 0


@pytest.mark.parametrize("content", [b"", b"not a video", b"\x00\x00\x00\x18ftypmp42" + bytes(100)])
def test_what_is_not_a_video_is_named_as_the_visitor_named_it(desk: Desk, tmp_path: Path, content: bytes) -> None:
    upload = tmp_path / "my <holiday>.mp4"
    upload.write_bytes(content)
    with pytest.raises(BadVideo, match="my <holiday>") as caught:
        desk.open("anna", upload)
    assert str(tmp_path) not in str(caught.value)
    assert len(desk.visitors) == 0


def test_a_video_that_no_browser_plays_is_shown_as_a_copy(desk: Desk, tmp_path: Path) -> None:
    import av
    import numpy as np

    upload = tmp_path / "old.avi"
    with av.open(str(upload), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for i in range(30):
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.full((96, 128, 3), 8 * i, np.uint8))):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    opened = desk.open("anna", upload)
    assert opened.is_copy
    assert probe(opened.player).codec == "h264"
    assert probe(opened.player).duration_s == pytest.approx(3.0, abs=0.11)
    assert desk.search("anna", opened.token, "from 1 to 2").result[0].moments


def test_a_file_that_vanished_is_an_error_without_paths(desk: Desk, video: Path, tmp_path: Path) -> None:
    token = desk.open("anna", video).token
    desk.visitors.get("anna", token).path.unlink()
    with pytest.raises(BadVideo) as caught:
        desk.search("anna", token, "from 1 to 2")
    assert str(tmp_path) not in str(caught.value)


def test_leaving_deletes_everything(desk: Desk, video: Path, tmp_path: Path) -> None:
    token = desk.open("anna", video).token
    desk.search("anna", token, "from 2 to 4")
    desk.save_json("anna", token)
    desk.close("anna")
    assert list((tmp_path / "visitors").iterdir()) == []


def test_a_strange_file_name_stays_inside_its_folder(desk: Desk, video: Path, tmp_path: Path) -> None:
    upload = tmp_path / "...  ‮ ;$(touch x) 'é.mp4"
    shutil.copy(video, upload)
    token = desk.open("anna", upload).token
    desk.search("anna", token, "from 2 to 4")
    for made in (desk.save_json("anna", token), desk.save_clips("anna", token)):
        assert made.parent == desk.visitors.get("anna", token).path.parent
        assert made.name.isprintable()
