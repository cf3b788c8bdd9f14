"""Reading through the decoding process: both back ends, every kind of file, every kind of failure."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from PIL import Image
from video_material import (
    all_pictures,
    box,
    faststart,
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

from momentdetr.errors import BadInput, BadVideo, OutOfResources
from momentdetr.features.video import FrameBatch, Limits, probe, read_clips, read_frames
from momentdetr.features.video_decord import refusal

VARIABLE = np.cumsum(np.random.default_rng(3).integers(1, 30, 120)).tolist()


def gathered(batches: Iterator[FrameBatch]) -> FrameBatch:
    parts = list(batches)
    return FrameBatch(
        np.concatenate([part.frames for part in parts]),
        np.concatenate([part.times_s for part in parts]),
        all(part.complete for part in parts),
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds with B-frames and a key frame each second, the sound first."""
    path = tmp_path_factory.mktemp("plain") / "a.mp4"
    return make(path, ticks=250, options={"bf": "3", "g": "25"}, sound_s=10.0)


@pytest.fixture(scope="module")
def variable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("variable") / "a.mkv"
    return make(path, ticks=VARIABLE, tick=Fraction(1, 100), options={"bf": "2", "g": "25"})


def test_probe(plain: Path) -> None:
    info = probe(plain)
    assert (info.path, info.container, info.codec, info.pixel_format) == (plain, "mp4", "h264", "yuv420p")
    assert (info.width, info.height, info.rotation, info.num_frames) == (128, 96, 0, 250)
    assert info.duration_s == pytest.approx(10.0)
    assert info.average_fps == pytest.approx(25.0)
    assert (info.audio_codec, info.complete, info.flaw) == ("aac", True, "")
    assert (info.decoder, info.why_not_decord) == ("decord", "")
    assert probe(plain, decoder="pyav").decoder == "pyav"


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("material", ["plain", "variable"])
def test_both_back_ends_return_the_frames_of_libavfilter(
    request: pytest.FixtureRequest, material: str, decoder: str
) -> None:
    path = request.getfixturevalue(material)
    for length in (Fraction(1, 2), Fraction(3, 2)):
        ours = gathered(read_clips(path, clip_length_s=float(length), decoder=decoder, chunk=7))
        assert ours.complete
        assert np.array_equal(ours.frames, np.stack(filtered(path, length)))


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_random_access_by_time(variable: Path, decoder: str) -> None:
    truth = all_pictures(variable)
    begins = [time for time, _ in truth]
    wanted = np.random.default_rng(4).uniform(0, float(begins[-1]) + 0.5, 40)
    wanted = np.concatenate([wanted, wanted[:3], [0.0, 1e6]])
    batch = read_frames(variable, wanted, decoder=decoder)
    indices = [max(i for i, begin in enumerate(begins) if begin <= time) for time in wanted]
    assert numbers(batch.frames) == indices
    assert np.allclose(batch.times_s, [float(begins[index]) for index in indices], atol=1e-9)
    assert all(np.array_equal(one, truth[index][1]) for one, index in zip(batch.frames, indices, strict=True))


def test_times_that_are_none_and_no_times(plain: Path) -> None:
    for times in ([-1.0], [float("nan")], [0.0, float("inf")]):
        with pytest.raises(BadInput, match="times_s"):
            read_frames(plain, times)
    empty = read_frames(plain, [], image_size=32)
    assert empty.frames.shape == (0, 32, 32, 3)
    assert empty.times_s.shape == (0,)


def test_auto_does_not_use_decord_where_it_would_be_wrong(tmp_path: Path) -> None:
    """On each of these, decord alone returns other frames, most of them with the right timestamps."""
    x264 = {"x264-params": "keyint=25:scenecut=0:bframes=3:open-gop=1"}
    x265 = {"x265-params": "log-level=none:keyint=25:scenecut=0"}
    files = {
        "open groups": make(tmp_path / "open.mp4", options=x264, ticks=150),
        "groups": make(tmp_path / "open5.mp4", codec="libx265", options=x265, ticks=150),
        "or intra refresh": make(
            tmp_path / "refresh.mp4", options={"x264-params": "keyint=25:intra-refresh=1:bframes=0"}, ticks=150
        ),
        "frames": remux(
            make(tmp_path / "w.mp4", options={"bf": "2", "g": "50"}, ticks=180), tmp_path / "edit.mp4", shift=-30 * 512
        ),
        "container mpegts": make(tmp_path / "b.ts", options={"bf": "3", "g": "25"}, ticks=150),
        "turned": turn(make(tmp_path / "t.mp4", ticks=150), tmp_path / "turned.mp4", (0, 1, -1, 0)),
    }
    times = np.random.default_rng(5).uniform(0, 5.9, 30).tolist()
    for reason, path in files.items():
        info = probe(path)
        assert info.decoder == "pyav", reason
        assert reason in info.why_not_decord
        if reason == "turned":
            continue
        truth = all_pictures(path)
        expected = [number([picture for begin, picture in truth if begin <= time + 1e-6][-1]) for time in times]
        assert numbers(read_frames(path, times).frames) == expected, reason
    with pytest.raises(BadVideo, match=r'open groups.*use the decoder "auto"'):
        read_frames(files["open groups"], times, decoder="decord")


def test_odd_sides_are_left_to_pyav(tmp_path: Path) -> None:
    path, dice = tmp_path / "odd.webm", np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libvpx", rate=25)
        context: Any = stream.codec_context
        context.width, context.height, context.pix_fmt = 65, 49, "yuv420p"
        for _ in range(10):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(dice.integers(0, 255, (49, 65, 3), np.uint8), "rgb24")))
        out.mux(stream.encode(None))
    info = probe(path)
    assert (info.decoder, info.why_not_decord) == ("pyav", "odd sides, 65 x 49")
    frames = read_frames(path, [index / 25 for index in range(10)]).frames
    assert np.array_equal(frames, np.stack([picture for _, picture in all_pictures(path)]))
    with pytest.raises(BadVideo, match=r'odd sides.*use the decoder "auto"'):
        read_frames(path, [0.0], decoder="decord")


def test_decord_is_left_alone_where_it_cannot_be_heard(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = inspected(plain)
    assert refusal(video.facts, video.source, video.timeline) == ""
    monkeypatch.setattr(sys, "platform", "win32")
    assert "Windows" in refusal(video.facts, video.source, video.timeline)


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_pictures_are_made_small_in_the_decoding_process(plain: Path, decoder: str) -> None:
    small = gathered(read_clips(plain, clip_length_s=2, image_size=48, decoder=decoder))
    large = gathered(read_clips(plain, clip_length_s=2, decoder=decoder))
    assert small.frames.shape == (5, 48, 48, 3)
    for one, other in zip(small.frames, large.frames, strict=True):
        expected = Image.fromarray(other).resize((64, 48), Image.Resampling.BICUBIC).crop((8, 0, 56, 48))
        assert np.array_equal(one, np.asarray(expected))


def test_turned_pictures(tmp_path: Path) -> None:
    path = turn(make(tmp_path / "a.mp4", ticks=10), tmp_path / "turned.mp4", (0, 1, -1, 0))
    info = probe(path)
    assert (info.width, info.height, info.rotation) == (96, 128, 90)
    batch = read_frames(path, [0.2])
    assert np.abs(batch.frames[0].astype(int) - np.rot90(numbered(5), -1)).mean() < 6


def test_batches_are_bounded(plain: Path) -> None:
    sizes = [len(batch.frames) for batch in read_clips(plain, clip_length_s=0.2, chunk=16)]
    assert sizes == [16, 16, 16, 2]


@pytest.fixture(scope="module")
def truncated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("truncated")
    whole = faststart(make(folder / "w.mp4", ticks=250, options={"g": "25", "bf": "2"}), folder / "whole.mp4")
    path = folder / "half.mp4"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    return path


def test_truncated_file_is_refused_or_salvaged(truncated: Path) -> None:
    info = probe(truncated)
    assert not info.complete
    assert info.flaw == f"truncated, {info.num_frames} of 250 frames readable"
    with pytest.raises(BadVideo, match=rf"truncated, {info.num_frames} of 250 frames readable"):
        list(read_clips(truncated, clip_length_s=1))
    with pytest.raises(BadVideo, match="truncated"):
        read_frames(truncated, [0.0])
    batch = gathered(read_clips(truncated, clip_length_s=0.2, salvage=True))
    assert not batch.complete
    whole = np.stack(filtered(truncated.with_name("whole.mp4"), Fraction(1, 5)))
    assert np.array_equal(batch.frames, whole[: len(batch.frames)])
    assert len(batch.frames) == pytest.approx(info.duration_s / 0.2, abs=1)


def test_damage_in_the_middle_is_noticed_behind_decord(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.mp4", ticks=150, options={"bf": "2", "g": "25", "crf": "5"})
    broken = noisy(whole, tmp_path / "broken.mp4", 34)
    assert probe(broken).decoder == "decord"  # its table is right
    received: list[FrameBatch] = []
    with pytest.raises(BadVideo, match=r"damaged: no readable frame at 1\.\d s"):
        received.extend(read_clips(broken, clip_length_s=0.2, chunk=2))
    right = np.stack(filtered(whole, Fraction(1, 5)))
    got = gathered(iter(received))  # nothing wrong came before the error
    assert np.array_equal(got.frames, right[: len(got.frames)])
    with pytest.raises(BadVideo, match="decord"):
        list(read_clips(broken, clip_length_s=0.2, decoder="decord"))
    salvaged = gathered(read_clips(broken, clip_length_s=0.2, salvage=True))
    assert not salvaged.complete
    assert len(salvaged.frames) == len(right)
    lenient = gathered(read_clips(broken, clip_length_s=3))
    assert not lenient.complete
    assert len(lenient.frames) == 2


def test_four_bytes_that_abort_decord(plain: Path, tmp_path: Path) -> None:
    lie = patched(plain, tmp_path / "lie.mp4", box(plain, b"stts") + 8, b"\x7f\xff\xff\xff")
    limits = Limits(memory_bytes=600 << 20)  # it fills what it gets before it aborts
    with pytest.raises(BadVideo, match="the decoder crashed on this file"):
        probe(lie, "decord", limits)
    assert probe(lie, limits=limits).decoder == "pyav"
    assert numbers(gathered(read_clips(lie, clip_length_s=2, limits=limits)).frames) == [24, 74, 124, 174, 224]


def test_missing_and_unsuitable_files(tmp_path: Path) -> None:
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as out:
        stream = out.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    for path, what in (
        (tmp_path / "none.mp4", "no such file"),
        (tmp_path, "this is a folder"),
        (sound, r"has no video \(audio only\)"),
    ):
        with pytest.raises(BadVideo, match=what):
            probe(path)
    with pytest.raises(BadVideo, match="no such file"):
        read_clips(tmp_path / "none.mp4", clip_length_s=1)
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(b"\0\0\0\x20ftypisom" + np.random.default_rng(0).bytes(5000))
    with pytest.raises(BadVideo, match="cannot be read as mp4: damaged"):
        probe(garbage)


def test_an_index_that_was_never_written(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "no_index.mp4"
    path.write_bytes(plain.read_bytes()[: box(plain, b"moov") - 8])
    with pytest.raises(BadVideo, match="cannot be read as mp4: damaged, truncated"):
        probe(path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"clip_length_s": 0},
        {"clip_length_s": -1.0},
        {"clip_length_s": float("nan")},
        {"clip_length_s": 1e-9},
        {"clip_length_s": 1, "chunk": 0},
        {"clip_length_s": 1, "image_size": 0},
        {"clip_length_s": 1, "image_size": 10**6},
        {"clip_length_s": 1, "decoder": "opencv"},
        {"clip_length_s": 1, "interpolation": "nearest"},
    ],
)
def test_arguments_are_checked_at_once(plain: Path, arguments: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=r"expected"):
        read_clips(plain, **arguments)  # type: ignore[arg-type]


def test_killed_from_outside(plain: Path) -> None:
    batches = read_clips(plain, clip_length_s=0.04, chunk=1)
    next(batches)
    (child,) = _children()
    child.send_signal(signal.SIGKILL)
    with pytest.raises(OutOfResources, match="ended from outside"):
        list(batches)
    assert numbers(read_frames(plain, [1.0]).frames) == [25]


def test_a_reader_that_is_left_ends_its_process(plain: Path) -> None:
    batches = read_clips(plain, clip_length_s=0.04, chunk=1)
    next(batches)
    (child,) = _children()
    batches.close()  # type: ignore[attr-defined]
    assert not child.is_running()
    assert not _children()


def test_stalled_process_is_ended(plain: Path) -> None:
    batches = read_clips(plain, clip_length_s=0.04, chunk=1, limits=Limits(stall_s=2.0))
    next(batches)
    (child,) = _children()
    child.suspend()
    began = time.monotonic()
    with pytest.raises(OutOfResources, match="no progress for 2 s"):
        list(batches)
    assert time.monotonic() - began < 20


def test_time_in_which_nobody_waits_does_not_count(plain: Path) -> None:
    batches = read_clips(plain, clip_length_s=0.04, chunk=1, limits=Limits(stall_s=2.0))
    next(batches)
    time.sleep(2.5)
    assert len(list(batches)) == 249


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
def test_memory_limit(plain: Path) -> None:
    with pytest.raises((OutOfResources, BadVideo)):
        list(read_clips(plain, clip_length_s=1, limits=Limits(memory_bytes=150 << 20)))
    assert probe(plain).complete


def test_frame_size_limit(plain: Path) -> None:
    with pytest.raises(OutOfResources, match="frames of 128 x 96 pixels, the limit is 1000 pixels"):
        probe(plain, limits=Limits(max_pixels=1000))


def test_many_at_once(plain: Path) -> None:
    found: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: found.append(numbers(read_frames(plain, [2.0, 0.4]).frames))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[50, 10]] * 4


def _children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "decode_worker" in " ".join(child.cmdline())]
