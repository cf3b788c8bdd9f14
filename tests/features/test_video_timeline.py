"""The table of shown frames, against what a decoder really returns."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from video_material import all_pictures, box, faststart, inspected, make, patched, remux

from momentdetr.errors import BadVideo

RANDOM_TIMES = np.cumsum(np.random.default_rng(0).integers(1, 40, 80)).tolist()


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("plain.mp4", "libx264", {"bf": "3", "g": "30"}),
        ("plain.mkv", "libx264", {"bf": "3", "g": "30"}),
        ("plain.mov", "mpeg4", {"bf": "2"}),
        ("plain.ts", "libx264", {"bf": "3", "g": "30"}),
        ("vp8.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}),
        ("vp9.webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}),
        ("hevc.mp4", "libx265", {"x265-params": "log-level=none"}),
        ("av1.mp4", "libsvtav1", {"preset": "12"}),
        ("still.avi", "mjpeg", {}),
    ],
)
def test_table_is_what_a_decoder_returns(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    kind = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = make(tmp_path / name, codec=codec, options=options, ticks=60, pixel_format=kind)
    line = inspected(path).timeline
    assert [Fraction(int(pts)) * line.tick for pts in line.pts] == [time for time, _ in all_pictures(path)]
    assert line.complete
    assert line.duration_s == pytest.approx(60 / 25, abs=2e-3)


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_variable_rate(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, ticks=RANDOM_TIMES, tick=Fraction(1, 100), options={"bf": "2"})
    line = inspected(path).timeline
    assert line.exact
    expected = (np.array(RANDOM_TIMES) - RANDOM_TIMES[0]) / 100
    assert np.allclose(line.pts * float(line.tick), expected, atol=1e-9)


def test_groups_that_lean_on_earlier_ones_are_told_apart(tmp_path: Path) -> None:
    def closed(name: str, codec: str, parameters: str) -> tuple[bool, int]:
        key = {"libx264": "x264-params", "libx265": "x265-params"}[codec]
        line = inspected(make(tmp_path / name, codec=codec, options={key: parameters}, ticks=100)).timeline
        return line.groups_closed, len(line.starts)

    assert closed("closed.mp4", "libx264", "keyint=25:scenecut=0:bframes=3") == (True, 4)
    assert closed("open.mp4", "libx264", "keyint=25:scenecut=0:bframes=3:open-gop=1") == (False, 1)
    assert closed("refresh.mp4", "libx264", "keyint=25:intra-refresh=1:bframes=0") == (False, 1)
    assert closed("closed5.mp4", "libx265", "log-level=none:keyint=25:scenecut=0:open-gop=0") == (True, 4)
    assert closed("open5.mp4", "libx265", "log-level=none:keyint=25:scenecut=0") == (False, 4)


def test_what_an_edit_list_hides_is_not_in_the_table(tmp_path: Path) -> None:
    path = make(tmp_path / "whole.mp4", ticks=100, options={"bf": "2", "g": "50"})
    cut = remux(path, tmp_path / "cut.mp4", shift=-30 * 512)
    line = inspected(cut).timeline
    assert len(line.pts) == 70
    assert line.exact
    assert [Fraction(int(pts)) * line.tick for pts in line.pts] == [time for time, _ in all_pictures(cut)]


def test_sound_that_begins_before_the_pictures_is_the_phase(tmp_path: Path) -> None:
    path = make(tmp_path / "late.mkv", ticks=range(10, 60), sound_s=2.0)
    line = inspected(path).timeline
    assert line.pts[0] == 0
    assert line.seconds(line.phase) == pytest.approx(0.4, abs=0.03)  # AAC's run-up is before 0 in Matroska
    assert inspected(make(tmp_path / "late.ts", ticks=range(10, 60), sound_s=2.0)).timeline.phase == 0


def test_file_without_timestamps_is_timed_by_order(tmp_path: Path) -> None:
    path = make(tmp_path / "b.avi", codec="mpeg4", options={"bf": "2"}, ticks=50)
    line = inspected(path).timeline
    assert line.ordinal
    assert not line.exact
    assert line.pts.tolist() == list(range(50))
    assert line.duration_s == 2.0


@pytest.mark.parametrize(
    ("codec", "b_frames", "delay"), [("mpeg4", 0, 0), ("mpeg4", 2, 1), ("libx264", 0, 0), ("libx264", 3, 2)]
)
def test_b_frames_delay_the_first_picture_of_avi(tmp_path: Path, codec: str, b_frames: int, delay: int) -> None:
    """As ffmpeg -vf fps counts, whose choice of frames is that of these phases."""
    path = make(tmp_path / "b.avi", codec=codec, options={"bf": str(b_frames), "g": "25"}, ticks=50)
    assert inspected(path).timeline.phase == delay


def test_last_frame_lasts_as_long_as_the_file_says(tmp_path: Path) -> None:
    path = make(tmp_path / "one.mp4", ticks=1)
    assert inspected(path).timeline.duration_s == pytest.approx(1 / 25)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
@pytest.mark.parametrize("part", [0.4, 0.8])
def test_truncated_files_are_noticed(tmp_path: Path, name: str, part: float) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    whole = make(tmp_path / f"whole_{name}", codec=codec, ticks=100, options={"g": "20"})
    if name.endswith("mp4"):  # the index must be in front, or nothing is left
        whole = faststart(whole, tmp_path / "fast.mp4")
    assert inspected(whole).timeline.complete
    data = whole.read_bytes()
    cut = tmp_path / name
    cut.write_bytes(data[: int(len(data) * part)])
    line = inspected(cut).timeline
    assert not line.complete
    assert line.flaw.startswith("truncated")
    assert 0 < len(line.pts) < 100
    assert f"{len(line.pts)}" in line.flaw
    if not name.endswith("mkv"):  # Matroska does not count its frames
        assert line.promised == 100


def test_matroska_without_its_index_at_the_end_is_whole(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.mkv", ticks=100)
    data = whole.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(data[: data.rindex(b"\x1c\x53\xbb\x6b") + 6])
    line = inspected(cut).timeline
    assert line.complete
    assert len(line.pts) == 100


def test_a_clock_that_runs_backwards_is_refused(tmp_path: Path) -> None:
    first = make(tmp_path / "first.ts", ticks=100)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() * 2)
    with pytest.raises(BadVideo, match=r"clock jumps back by 4\.\d s"):
        inspected(joined)


def test_longer_than_allowed(tmp_path: Path) -> None:
    path = make(tmp_path / "slow.mkv", ticks=[0, 1, 100_000], tick=Fraction(1))
    with pytest.raises(BadVideo, match="the limit is 86400 s"):
        inspected(path)


def test_a_lie_about_durations_does_not_change_the_table_silently(tmp_path: Path) -> None:
    path = make(tmp_path / "true.mp4", ticks=100)
    lie = patched(path, tmp_path / "lie.mp4", box(path, b"stts") + 8, b"\x7f\xff\xff\xff")
    assert inspected(lie).timeline.pts.tolist() == inspected(path).timeline.pts.tolist()
