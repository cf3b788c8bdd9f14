"""What is written can be read back: the right frames at the right times, whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from video_material import all_pictures, faststart, make, number, numbered, numbers, remux, turn

from momentdetr.errors import BadInput, BadVideo, StoreError
from momentdetr.features.video import probe
from momentdetr.features.video_write import cut_clip, playable_proxy, write_video

VARIABLE = np.cumsum(np.random.default_rng(6).integers(1, 30, 100)).tolist()


def times_and_numbers(path: Path) -> tuple[list[float], list[int]]:
    pictures = all_pictures(path)
    return [float(time) for time, _ in pictures], numbers(np.stack([picture for _, picture in pictures]))


def sound(path: Path) -> tuple[NDArray[np.float32], int]:
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
        return np.concatenate([frame.to_ndarray() for frame in frames], axis=1), frames[0].sample_rate


def test_write_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", (numbered(index) for index in range(40)), 29.97)
    info = probe(path)
    assert (info.codec, info.container, info.pixel_format, info.num_frames) == ("h264", "mp4", "yuv420p", 40)
    assert info.duration_s == pytest.approx(40 / 29.97, abs=1e-4)
    times, indices = times_and_numbers(path)
    assert indices == list(range(40))
    assert np.allclose(times, np.arange(40) / 29.97, atol=1e-4)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_colours_survive(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 64, 200)]
    path = write_video(tmp_path / "a.mp4", [np.full((64, 64, 3), colour, np.uint8) for colour in colours], 10)
    for (_, picture), colour in zip(all_pictures(path), colours, strict=True):
        assert np.abs(picture.astype(int) - colour).max() <= 4
    again = cut_clip(path, 0, 1, tmp_path / "b.mp4")
    for (_, picture), colour in zip(all_pictures(again), colours, strict=True):
        assert np.abs(picture.astype(int) - colour).max() <= 6


def test_odd_sides_grow_by_one(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (33, 51, 1), dtype=np.uint8).repeat(3, axis=2)
    path = write_video(tmp_path / "a.mp4", [picture] * 3, 5, crf=0)
    (_, first), *_ = all_pictures(path)
    assert first.shape == (34, 52, 3)
    assert np.abs(first[:33, :51].astype(int) - picture).mean() < 2
    assert np.abs(first[33].astype(int) - first[32]).max() <= 4


@pytest.mark.parametrize(
    ("frames", "fps", "what"),
    [
        ([], 25, "no frames"),
        ([np.zeros((4, 4, 3))], 25, "expected uint8"),
        ([np.zeros((4, 4), np.uint8)], 25, "expected uint8"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)], 25, "frame 1 has the shape"),
        ([np.zeros((4, 4, 3), np.uint8)], 0, "fps is 0"),
        ([np.zeros((4, 4, 3), np.uint8)], float("nan"), "fps is nan"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, frames: list[NDArray[np.uint8]], fps: float, what: str) -> None:
    old = tmp_path / "a.mp4"
    old.write_bytes(b"old")
    with pytest.raises(BadInput, match=what):
        write_video(old, frames, fps)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a.mp4", b"old")]


def test_nothing_is_left_when_the_pictures_fail(tmp_path: Path) -> None:
    def frames() -> Iterator[NDArray[np.uint8]]:
        yield from (numbered(index) for index in range(30))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", frames(), 25)
    assert not list(tmp_path.iterdir())


def test_unwritable_places(tmp_path: Path) -> None:
    picture = [numbered(0)]
    with pytest.raises(StoreError, match="folder that exists"):
        write_video(tmp_path / "none" / "a.mp4", picture, 25)
    with pytest.raises(BadInput, match=r"ends in \.mp4"):
        write_video(tmp_path / "a.avi", picture, 25)


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_full_disk(tmp_path: Path) -> None:
    code = f"""
import resource, signal, sys
import numpy as np
from momentdetr.errors import StoreError
from momentdetr.features.video_write import write_video
import av
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
noise = np.random.default_rng(0).integers(0, 256, (30, 96, 128, 3), dtype=np.uint8)
try:
    write_video({str(tmp_path / "a.mp4")!r}, noise, 25)
except StoreError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert "cannot be written" in run.stdout, run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["constant", "variable", "hevc", "matroska", "edit list", "avi", "transport stream"])
def test_clip_has_exactly_the_frames_between(tmp_path: Path, name: str) -> None:
    makers = {
        "constant": lambda: make(tmp_path / "a.mp4", ticks=150, options={"bf": "3", "g": "60"}),
        "variable": lambda: make(tmp_path / "a.mp4", ticks=VARIABLE, tick=Fraction(1, 100), options={"bf": "2"}),
        "hevc": lambda: make(
            tmp_path / "a.mp4", codec="libx265", ticks=120, options={"x265-params": "log-level=none:keyint=25"}
        ),
        "matroska": lambda: make(tmp_path / "a.mkv", ticks=range(9, 150), options={"g": "60"}, sound_s=6),
        "edit list": lambda: remux(
            make(tmp_path / "w.mp4", ticks=150, options={"g": "60"}), tmp_path / "a.mp4", shift=-20 * 512
        ),
        "avi": lambda: make(tmp_path / "a.avi", codec="mpeg4", ticks=120, options={"bf": "2"}),
        "transport stream": lambda: make(tmp_path / "a.ts", ticks=120, options={"bf": "2", "g": "60"}),
    }
    path = makers[name]()
    truth = all_pictures(path)
    begins = [Fraction(index, 25) if name == "avi" else time for index, (time, _) in enumerate(truth)]
    start, end = (Fraction(3, 2), Fraction(16, 5))
    clip = cut_clip(path, float(start), float(end), tmp_path / "clip.mp4")
    first = max(index for index, begin in enumerate(begins) if begin <= start)
    last = max(index for index, begin in enumerate(begins) if begin < end)
    times, indices = times_and_numbers(clip)
    offset = number(truth[0][1])
    assert indices == [offset + index for index in range(first, last + 1)]
    assert times[0] == 0
    expected = [max(Fraction(0), begins[index] - start) for index in range(first, last + 1)]
    assert np.allclose(times, [float(time) for time in expected], atol=1e-4)
    info = probe(clip)
    assert info.duration_s == pytest.approx(float(end - start), abs=1e-4)
    assert (info.codec, info.container, info.start_s) == ("h264", "mp4", 0.0)


def test_clip_between_two_frames_shows_the_one_on_the_screen(tmp_path: Path) -> None:
    path = make(tmp_path / "slides.mp4", ticks=[0, 10, 20], tick=Fraction(1))
    clip = cut_clip(path, 12.0, 14.5, tmp_path / "clip.mp4")
    assert times_and_numbers(clip) == ([0.0], [1])
    assert probe(clip).duration_s == pytest.approx(2.5, abs=1e-4)


def test_clip_beyond_the_end(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", ticks=50)
    assert times_and_numbers(cut_clip(path, 1.0, 99.0, tmp_path / "clip.mp4"))[1] == list(range(25, 50))
    with pytest.raises(BadInput, match=r"the video is 2\.000 s long"):
        cut_clip(path, 2.0, 3.0, tmp_path / "late.mp4")
    for start, end in ((1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (0.0, float("nan"))):
        with pytest.raises(BadInput, match="expected 0 <= start < end"):
            cut_clip(path, start, end, tmp_path / "none.mp4")
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.mp4", "clip.mp4"}


def test_clip_is_turned(tmp_path: Path) -> None:
    path = turn(make(tmp_path / "a.mp4", ticks=20), tmp_path / "turned.mp4", (0, -1, 1, 0))
    clip = cut_clip(path, 0.2, 0.6, tmp_path / "clip.mp4")
    info = probe(clip)
    assert (info.width, info.height, info.rotation) == (96, 128, 0)
    pictures = [picture for _, picture in all_pictures(clip)]
    assert [number(np.rot90(picture, -1)) for picture in pictures] == list(range(5, 15))


def test_sound_is_cut_to_the_sample(tmp_path: Path) -> None:
    """Silence up to 2 s, a tone after: in a clip from 1.5 s on, the tone begins at 0.5 s."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = out.add_stream("pcm_s16le", rate=16000, layout="stereo")
        for index in range(100):
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
            time = (np.arange(640) + index * 640) / 16000
            tone = (np.sin(2 * np.pi * 500 * time) * 12000 * (time >= 2)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(tone.repeat(2)[None], format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 16000, index * 640, Fraction(1, 16000)
            out.mux(audio.encode(frame))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))
    clip = cut_clip(path, 1.5, 3.0, tmp_path / "clip.mp4")
    assert probe(clip).audio_codec == "aac"
    samples, rate = sound(clip)
    assert rate == 16000
    assert samples.shape[0] == 2
    assert samples.shape[1] / rate == pytest.approx(1.5, abs=1024 / rate)
    loud = np.flatnonzero(np.abs(samples[0]) > 0.1)
    assert loud[0] / rate == pytest.approx(0.5, abs=0.005)
    assert np.abs(samples[0, : int(0.45 * rate)]).max() < 0.02


def test_clip_never_replaces_its_own_video(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", ticks=20)
    before = path.read_bytes()
    (tmp_path / "link.mp4").symlink_to(path)
    for out in (path, tmp_path / "link.mp4"):
        with pytest.raises(BadInput, match="the video itself"):
            cut_clip(path, 0, 0.5, out)
        with pytest.raises(BadInput, match="the video itself"):
            playable_proxy(path, out)
    assert path.read_bytes() == before


def test_clip_of_a_truncated_file(tmp_path: Path) -> None:
    whole = faststart(make(tmp_path / "w.mp4", ticks=200, options={"g": "20"}), tmp_path / "whole.mp4")
    half = tmp_path / "half.mp4"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert times_and_numbers(cut_clip(half, 1.0, 2.0, tmp_path / "clip.mp4"))[1] == list(range(25, 50))
    with pytest.raises(BadVideo, match="no such file"):
        cut_clip(tmp_path / "none.mp4", 0, 1, tmp_path / "never.mp4")
    assert not (tmp_path / "never.mp4").exists()


def test_proxy_is_a_copy_where_browsers_play_the_file(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", ticks=20, sound_s=0.5)
    proxy = playable_proxy(path, tmp_path / "proxy.mp4")
    assert proxy.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libsvtav1"), ("a.avi", "mpeg4")])
def test_proxy_has_the_same_clock(tmp_path: Path, name: str, codec: str) -> None:
    path = make(tmp_path / name, codec=codec, ticks=60, options={"preset": "12"} if codec == "libsvtav1" else {})
    proxy = playable_proxy(path, tmp_path / "proxy.mp4", max_height=48)
    info = probe(proxy)
    assert (info.codec, info.width, info.height, info.num_frames) == ("h264", 64, 48, 60)
    assert [time for time, _ in all_pictures(proxy)] == [Fraction(index, 25) for index in range(60)]


def test_where_a_worker_cannot_write_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "a.mp4", ticks=25)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(StoreError, match="Windows"):
        cut_clip(path, 0.2, 0.6, tmp_path / "clip.mp4")
    assert not (tmp_path / "clip.mp4").exists()
