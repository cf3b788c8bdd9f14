"""Real videos, ordinary and odd: frames as libavfilter chooses them, facts as they were measured by other programs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_material import filtered_all, inspected

from momentdetr.errors import BadVideo
from momentdetr.features.video import probe, read_clips, read_frames
from momentdetr.features.video_choice import clips
from momentdetr.features.video_selection import select

LENGTHS = [Fraction(2), Fraction(1), Fraction(1, 2), Fraction(3, 2)]

# decoder, container, codec, width, height (as shown), rotation, frames, seconds
ODD = {
    "cockatoo.mp4": ("decord", "mp4", "h264", 1280, 720, 0, 280, 14.0),
    "decord_unordered.mov": ("decord", "mov", "h264", 50, 50, 0, 4, 0.125),
    "decord_video_0.mov": ("decord", "mov", "h264", 568, 320, 0, 3, 0.1),
    "decord_video_90.mov": ("pyav", "mov", "h264", 320, 568, 90, 3, 0.1),
    "gradio_av1.mp4": ("pyav", "mp4", "av1", 960, 540, 0, 375, 15.0),
    "gradio_muted_video_sample.mp4": ("decord", "mp4", "h264", 480, 270, 0, 150, 5.0),
    "gradio_playable_but_bad_container.mkv": ("pyav", "ogg", "theora", 480, 270, 0, 150, 5.0),
    "gradio_video_sample.webm": ("decord", "webm", "vp9", 480, 270, 0, 150, 5.0),
    "mma_test.avi": ("pyav", "avi", "mpeg4", 320, 240, 0, 164, 6.56),
    "newtonscradle.gif": ("pyav", "gif", "gif", 200, 150, 0, 36, 0.82),
    "tc_h264_10bits.mp4": ("pyav", "mp4", "h264", 200, 200, 0, 30, 1.0),
    "tc_h265_video.mp4": ("pyav", "mp4", "hevc", 128, 128, 0, 10, 1.0),
}


def same_as_filter(path: Path, lengths: list[Fraction]) -> None:
    """Compare PyAV's choice, in this process, with the filter's, to the pixel."""
    video, expected = inspected(path), filtered_all(path, lengths)
    turn = video.facts.orientation.apply
    for length in lengths:
        count = 0
        for one in select(video, clips(float(length), video.timeline), first=0, salvage=False, forced=False):
            if expected[length]:
                assert np.array_equal(one.picture, turn(expected[length][count])), (length, count)
            count += 1
        assert count == max(1, len(expected[length]))


@pytest.mark.parametrize("name", list(ODD))
def test_odd_files(shared_data: Path, name: str) -> None:
    path = shared_data / "videos" / "odd" / name
    info = probe(path)
    facts = (info.decoder, info.container, info.codec, info.width, info.height, info.rotation, info.num_frames)
    assert facts == ODD[name][:-1]
    assert info.duration_s == pytest.approx(ODD[name][-1], abs=0.001)
    assert info.complete
    if name != "cockatoo.mp4":  # a larger one, below
        same_as_filter(path, LENGTHS)


def test_damaged_file(shared_data: Path) -> None:
    path = shared_data / "videos" / "odd" / "decord_corrupted.mp4"
    with pytest.raises(BadVideo, match="damaged: no readable frame"):
        list(read_clips(path, clip_length_s=1))
    batches = list(read_clips(path, clip_length_s=1, image_size=32, salvage=True))
    assert sum(len(batch.frames) for batch in batches) == 5
    assert not all(batch.complete for batch in batches)


def test_sound_only(shared_data: Path) -> None:
    with pytest.raises(BadVideo, match="audio only"):
        probe(shared_data / "videos" / "odd" / "tc_nasa_13013.mp4.audio.mp3")


def test_turned_as_decord_turns(shared_data: Path) -> None:
    """The same scene was filmed upright and turned; both are shown the same way up."""
    upright = read_frames(shared_data / "videos" / "odd" / "decord_video_0.mov", [0.0]).frames[0]
    turned = read_frames(shared_data / "videos" / "odd" / "decord_video_90.mov", [0.0]).frames[0]
    assert upright.shape == (320, 568, 3)
    assert turned.shape == (568, 320, 3)
    with av.open(str(shared_data / "videos" / "odd" / "decord_video_90.mov")) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.array_equal(turned, np.rot90(stored, -1))


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["clips", "mixes", "odd/cockatoo.mp4"])
def test_frames_of_every_video_are_those_of_libavfilter(shared_data: Path, folder: str) -> None:
    place = shared_data / "videos" / folder
    paths = sorted(place.iterdir()) if place.is_dir() else [place]
    assert paths
    for path in paths:
        same_as_filter(path, LENGTHS)


@pytest.mark.slow
def test_decord_returns_the_same_pictures_as_pyav(shared_data: Path) -> None:
    for path in sorted((shared_data / "videos" / "clips").iterdir()):
        by_decord = list(read_clips(path, clip_length_s=1.5, decoder="decord"))
        by_pyav = list(read_clips(path, clip_length_s=1.5, decoder="pyav"))
        for one, other in zip(by_decord, by_pyav, strict=True):
            assert np.array_equal(one.frames, other.frames)
            assert np.array_equal(one.times_s, other.times_s)
