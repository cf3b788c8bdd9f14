"""Only regular local files of known containers are opened; everything else is told apart and refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from video_material import make

from momentdetr.errors import BadInput, BadVideo
from momentdetr.features.decode_limits import Limits
from momentdetr.features.video_container import open_video, printable, promised_size, sniff


@pytest.mark.parametrize(
    ("name", "container", "codec"),
    [
        ("a.mp4", "mp4", "libx264"),
        ("a.mov", "mov", "libx264"),
        ("a.mkv", "mkv", "libx264"),
        ("a.webm", "webm", "libvpx"),
        ("a.avi", "avi", "mpeg4"),
        ("a.ts", "mpegts", "mpeg4"),
        ("a.mpg", "mpeg", "mpeg2video"),
        ("a.flv", "flv", "libx264"),
    ],
)
def test_containers_are_told_by_content(tmp_path: Path, name: str, container: str, codec: str) -> None:
    path = make(tmp_path / name, codec=codec, ticks=20, options={"cpu-used": "8"} if codec == "libvpx" else {})
    renamed = path.rename(tmp_path / "renamed.bin")
    video = open_video(renamed, Limits())
    with video.file:
        assert video.container == container
        assert video.file.tell() == 0
        assert video.size == renamed.stat().st_size
        assert video.promised_size in (0, video.size)
        assert (video.promised_size > 0) == (container in ("avi", "mkv", "webm"))


def test_transport_stream_from_the_middle_of_a_packet(tmp_path: Path) -> None:
    data = make(tmp_path / "a.ts", ticks=20).read_bytes()
    assert sniff(data[77:4173]) == "mpegts"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"just some words\n" * 300, "holds text"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n/etc/hostname\n", "a playlist"),
        (b"ffconcat version 1.0\nfile secret.mp4\n", "a playlist"),
        (bytes(5000), "zeros only"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG picture"),
        (b"PK\x03\x04" + bytes(100), "a ZIP archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (bytes(range(1, 256)) * 10, "an unknown format"),
    ],
)
def test_what_is_not_a_video_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(BadVideo, match=what):
        open_video(path, Limits())


def test_what_is_not_a_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "secret").symlink_to("/dev/zero")
    for name, what in (
        ("none.mp4", "no such file"),
        (".", "folder"),
        ("pipe.mp4", "not a regular"),
        ("secret", "not a"),
    ):
        with pytest.raises(BadVideo, match=what):
            open_video(tmp_path / name, Limits())


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/a.mp4", "concat:a.mp4|b.mp4", "file:a.mp4", "pipe:0", "data:video/mp4,x"]
)
def test_addresses_are_not_files(address: str) -> None:
    with pytest.raises(BadVideo, match="only files on this machine"):
        open_video(address, Limits())


def test_a_name_that_looks_like_an_address_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a.mp4", ticks=5).rename(tmp_path / "concat:a|b")
    monkeypatch.chdir(tmp_path)
    with open_video("concat:a|b", Limits()).file:
        pass


@pytest.mark.parametrize("path", ["", "a\0b.mp4"])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(BadInput):
        open_video(path, Limits())


def test_size_limit(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", ticks=5)
    with pytest.raises(BadVideo, match="the limit is 100 "):
        open_video(path, Limits(max_bytes=100))


def test_control_characters_do_not_reach_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\n\u202e.mp4"
    with pytest.raises(BadVideo) as caught:
        open_video(path, Limits())
    assert str(caught.value).isprintable()
    assert "\N{REPLACEMENT CHARACTER}[31m" in str(caught.value)
    assert len(printable("x" * 5000)) == 400


def test_promised_size_of_live_files_is_unknown() -> None:
    header = b"\x1a\x45\xdf\xa3\x81\x00"
    assert promised_size(header + b"\x18\x53\x80\x67" + b"\x01" + b"\xff" * 7, "mkv") == 0
    assert promised_size(header + b"\x18\x53\x80\x67" + b"\x82", "mkv") == len(header) + 5 + 2
    assert promised_size(b"RIFF\xff\xff\xff\xffAVI ", "avi") == 0
    assert promised_size(b"RIFF\x10\0\0\0AVI ", "avi") == 24
