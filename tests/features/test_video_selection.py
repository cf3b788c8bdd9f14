"""The right frame by every way of reading, and what is done when frames are lost. PyAV only, in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from video_material import (
    WIDTH,
    all_pictures,
    filtered,
    inspected,
    make,
    noisy,
    number,
    numbered,
    numbers,
    patched,
    remux,
    turn,
)

from momentdetr.errors import BadVideo
from momentdetr.features.video_choice import Times, clips
from momentdetr.features.video_picture import to_rgb
from momentdetr.features.video_pyav import CheckedFrames, Distrusted, table_frames
from momentdetr.features.video_selection import Chosen, Video, select

RANDOM_TIMES = np.cumsum(np.random.default_rng(1).integers(1, 30, 120)).tolist()
Maker = Callable[[Path], Path]

MATERIAL: dict[str, Maker] = {
    "h264": lambda at: make(at / "a.mp4", options={"bf": "3", "g": "25"}),
    "h264 open groups": lambda at: make(
        at / "a.mp4", options={"x264-params": "keyint=25:scenecut=0:bframes=3:open-gop=1"}
    ),
    "h264 intra refresh": lambda at: make(at / "a.mkv", options={"x264-params": "keyint=25:intra-refresh=1:bframes=0"}),
    "hevc open groups": lambda at: make(
        at / "a.mp4", codec="libx265", options={"x265-params": "log-level=none:keyint=25:scenecut=0"}
    ),
    "transport stream": lambda at: make(at / "a.ts", options={"bf": "3", "g": "25"}, ticks=range(160, 260)),
    "edit list": lambda at: remux(
        make(at / "w.mp4", options={"bf": "2", "g": "25"}, ticks=130), at / "a.mp4", shift=-30 * 512
    ),
    "variable rate": lambda at: make(
        at / "a.mp4", ticks=RANDOM_TIMES, tick=Fraction(1, 100), options={"bf": "2", "g": "25"}
    ),
    "vp8": lambda at: make(at / "a.webm", codec="libvpx", options={"auto-alt-ref": "1", "cpu-used": "8", "g": "25"}),
    "av1": lambda at: make(at / "a.mp4", codec="libsvtav1", options={"preset": "12", "g": "25"}),
    "avi": lambda at: make(at / "a.avi", codec="mpeg4", options={"bf": "2", "g": "25"}),
    "sound first": lambda at: make(at / "a.mkv", options={"g": "25"}, ticks=range(9, 109), sound_s=4.5),
    "long first frame": lambda at: make(at / "a.mkv", ticks=[0, 300, 301, 302, 700], tick=Fraction(1, 100)),
}


@pytest.fixture(params=list(MATERIAL), scope="module")
def material(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MATERIAL[request.param](tmp_path_factory.mktemp("material"))


def shown(video: Video, chosen: list[Chosen]) -> list[int]:
    return [number(each.picture) for each in chosen]


@pytest.mark.parametrize("length", [Fraction(1), Fraction(1, 2), Fraction(3, 2), Fraction(2)])
def test_clips_are_those_of_libavfilter_to_the_pixel(material: Path, length: Fraction) -> None:
    video = inspected(material)
    ours = list(select(video, clips(float(length), video.timeline), first=0, salvage=False, forced=False))
    theirs = filtered(material, length)
    assert len(ours) == len(theirs)
    assert all(np.array_equal(one.picture, other) for one, other in zip(ours, theirs, strict=True))
    assert all(one.exact for one in ours)


def test_frame_at_any_time_is_the_one_on_the_screen(material: Path) -> None:
    video, truth = inspected(material), all_pictures(material)
    times = sorted(np.random.default_rng(2).uniform(0, video.timeline.duration_s, 25).tolist())
    ours = list(select(video, Times(times, video.timeline.tick), first=0, salvage=False, forced=False))
    step = Fraction(1, 25) if video.timeline.ordinal else None  # there the oracle has no times either
    begins = [step * index if step is not None else time for index, (time, _) in enumerate(truth)]
    for time, one in zip(times, ours, strict=True):
        index = max(i for i, begin in enumerate(begins) if begin <= time)
        assert number(one.picture) == number(truth[index][1])
        assert np.array_equal(one.picture, truth[index][1])
        assert video.timeline.seconds(one.tick) == pytest.approx(float(begins[index]), abs=1e-9)


def test_reading_on_from_a_position_gives_the_rest(tmp_path: Path) -> None:
    video = inspected(MATERIAL["h264"](tmp_path))
    choice = clips(0.3, video.timeline)
    whole = shown(video, list(select(video, choice, first=0, salvage=False, forced=False)))
    assert shown(video, list(select(video, choice, first=5, salvage=False, forced=False))) == whole[5:]
    strict = replace(video, timeline=replace(video.timeline, exact=False))
    assert shown(video, list(select(strict, choice, first=5, salvage=False, forced=False))) == whole[5:]


def test_far_frames_are_reached_by_seeking(tmp_path: Path) -> None:
    times = list(range(400))
    for name in ("a.mp4", "a.mkv"):
        path = make(tmp_path / name, ticks=times, tick=Fraction(1), options={"bf": "2", "g": "20"})
        video = inspected(path)
        wanted = [int(video.timeline.pts[index]) for index in (0, 1, 99, 100, 101, 250, 399)]
        read: list[int] = []

        def count(read: list[int] = read) -> None:
            read.append(1)

        found = list(table_frames(replace(video.source, progress=count), video.timeline, wanted))
        assert [tick for tick, _ in found] == wanted
        assert [number(frame.to_ndarray(format="rgb24")) for _, frame in found] == [0, 1, 99, 100, 101, 250, 399]
        assert len(read) < 250  # packets


def test_a_wrong_table_is_found_out(tmp_path: Path) -> None:
    video = inspected(MATERIAL["h264"](tmp_path))
    pts = video.timeline.pts.copy()
    pts[40] += 100  # no such frame
    wrong = replace(video.timeline, pts=pts)
    with pytest.raises(Distrusted):
        list(table_frames(video.source, wrong, [int(pts[40])]))


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, Path]:
    """A whole file, and the same with one packet turned to noise, 1.4 s after the start; groups of one second."""
    whole = make(tmp_path / "whole.mp4", ticks=150, options={"bf": "2", "g": "25", "crf": "5"})
    return whole, noisy(whole, tmp_path / "broken.mp4", 34)


def test_frames_built_upon_damage_are_given_up(damaged: tuple[Path, Path]) -> None:
    whole, broken = damaged
    truth = {round(time * 25): picture for time, picture in all_pictures(whole)}
    video = inspected(broken)
    frames = CheckedFrames(video.source, video.timeline)
    good = {}
    for tick, frame in frames:
        picture = to_rgb(frame, video.facts.width, video.facts.height, video.facts.orientation)
        good[round(tick * video.timeline.tick * 25)] = picture
        assert np.array_equal(picture, truth[round(tick * video.timeline.tick * 25)])
    lost = {round(tick * video.timeline.tick * 25) for tick in frames.lost}
    assert lost
    assert not lost & set(good)
    assert len(good) > 100  # the damage ends with its group
    assert max(good) == 149


def test_a_clip_without_a_readable_frame_is_an_error(damaged: tuple[Path, Path]) -> None:
    video = inspected(damaged[1])
    with pytest.raises(BadVideo, match=r"damaged: no readable frame at \d\.\d s .*ask for salvage"):
        list(select(video, clips(0.2, video.timeline), first=0, salvage=False, forced=False))


def test_salvage_repeats_the_last_readable_frame_and_says_so(damaged: tuple[Path, Path]) -> None:
    whole, broken = damaged
    sound, video = inspected(whole), inspected(broken)
    choice = clips(0.2, video.timeline)
    right = shown(sound, list(select(sound, choice, first=0, salvage=False, forced=False)))
    ours = list(select(video, choice, first=0, salvage=True, forced=False))
    assert len(ours) == len(right)
    frames = CheckedFrames(video.source, video.timeline)
    readable = [round(tick * video.timeline.tick * 25) for tick, _ in frames]
    for k, (one, other) in enumerate(zip(ours, right, strict=True)):
        assert number(one.picture) == max(index for index in readable if index <= other)
        assert one.exact == (number(one.picture) == other), k
    assert not all(one.exact for one in ours)


def test_a_neighbour_in_the_same_clip_stands_in(damaged: tuple[Path, Path]) -> None:
    video = inspected(damaged[1])
    ours = list(select(video, clips(3.0, video.timeline), first=0, salvage=False, forced=False))
    frames = CheckedFrames(video.source, video.timeline)
    readable = [round(tick * video.timeline.tick * 25) for tick, _ in frames]
    assert shown(video, ours) == [max(i for i in readable if i < bound) for bound in (37.5, 112.5)]


def test_matroska_that_leaves_out_what_it_cannot_read_is_damaged(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.mkv", ticks=150, options={"bf": "2", "g": "25", "crf": "5"})
    middle = whole.stat().st_size // 3
    noise = np.random.default_rng(0).integers(1, 255, 400, dtype=np.uint8).tobytes()
    line = inspected(patched(whole, tmp_path / "broken.mkv", middle, noise)).timeline
    assert len(line.pts) < 150
    assert not line.complete
    assert line.flaw.startswith("damaged")


def test_transport_stream_with_a_hole_knows_what_it_lost(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.ts", ticks=150, options={"bf": "2", "g": "25", "crf": "5"})
    data = whole.read_bytes()
    at = len(data) // 2 // 188 * 188
    hole = tmp_path / "hole.ts"
    hole.write_bytes(data[:at] + data[at + 188 * 3 :])
    video, truth = inspected(hole), {round(time * 25): picture for time, picture in all_pictures(whole)}
    ours = list(select(video, clips(0.04, video.timeline), first=0, salvage=True, forced=False))
    wrong = [one for one in ours if not one.exact]
    assert 0 < len(wrong) <= 30
    for one in ours:
        assert np.array_equal(one.picture, truth[round(video.timeline.seconds(one.tick) * 25)])


def test_recording_that_begins_inside_a_group(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.ts", options={"bf": "2", "g": "25"}, ticks=120)
    data = whole.read_bytes()
    late = tmp_path / "late.ts"
    late.write_bytes(data[len(data) // 6 // 188 * 188 :])
    video, truth = inspected(late), all_pictures(late)
    first = number(truth[0][1])
    assert first > 0
    assert first % 25 == 0  # the first key frame
    ours = list(select(video, Times([0.0, 1.0], video.timeline.tick), first=0, salvage=False, forced=False))
    assert shown(video, ours) == [first, first + 25]
    assert video.timeline.duration_s == pytest.approx((120 - first) / 25, abs=1e-3)


@pytest.mark.parametrize(
    ("matrix", "degrees"), [((0, 1, -1, 0), 90), ((-1, 0, 0, -1), 180), ((0, -1, 1, 0), 270), ((-1, 0, 0, 1), 0)]
)
def test_pictures_are_turned_as_the_container_says(tmp_path: Path, matrix: tuple[int, ...], degrees: int) -> None:
    path = turn(make(tmp_path / "a.mp4", ticks=3), tmp_path / "turned.mp4", matrix)
    video = inspected(path)
    assert video.facts.orientation.degrees == degrees
    (one,) = select(video, Times([0.04], video.timeline.tick), first=0, salvage=False, forced=False)
    upright = numbered(1)
    expected = {90: np.rot90(upright, -1), 180: np.rot90(upright, 2), 270: np.rot90(upright), 0: upright[:, ::-1]}
    assert one.picture.shape == expected[degrees].shape
    assert np.abs(one.picture.astype(int) - expected[degrees]).mean() < 6


def test_numbers_survive_the_codecs(material: Path) -> None:
    """The oracle itself: pictures are numbered upwards without a gap."""
    seen = numbers(np.stack([picture for _, picture in all_pictures(material)]))
    assert seen == list(range(seen[0], seen[0] + len(seen)))
    assert WIDTH == 128


def test_files_are_closed(tmp_path: Path) -> None:
    video = inspected(MATERIAL["h264"](tmp_path))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        list(select(video, clips(1.0, video.timeline), first=0, salvage=False, forced=False))
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)
