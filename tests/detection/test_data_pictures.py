from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_data import picture
from PIL import Image, ImageOps

from detection.data.check import check
from detection.data.pictures import read_facts, read_picture
from momentdetr.errors import BadInput


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_annotated_size_tells_whether_exif_counts(orientation: int, tmp_path: Path) -> None:
    original = picture(40, 24)
    path = tmp_path / "turned.png"  # without loss, so that pixels can be compared
    original.save(path, exif=exif(orientation))
    turned = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    facts = read_facts(path)
    assert (facts.width, facts.height, facts.orientation) == (40, 24, orientation)
    assert facts.upright == turned.shape[1::-1]
    np.testing.assert_array_equal(read_picture(path), turned)
    np.testing.assert_array_equal(read_picture(path, facts.upright), turned)
    if facts.upright != (40, 24):
        np.testing.assert_array_equal(read_picture(path, (40, 24)), np.asarray(original))
    with pytest.raises(BadInput, match="annotated as 40x25"):
        read_picture(path, (40, 25))


def test_the_check_says_which_frame_the_boxes_are_taken_to_be_in(tmp_path: Path) -> None:
    sizes = {"stored": (6, (40, 24)), "turned": (6, (24, 40)), "does not tell": (3, (40, 24))}
    for index, (told, (orientation, (width, height))) in enumerate(sizes.items()):
        folder = tmp_path / str(index)
        folder.mkdir()
        picture(40, 24).save(folder / "a.jpg", exif=exif(orientation))
        listed = [{"id": 1, "file_name": "a.jpg", "width": width, "height": height}]
        content = {"images": listed, "categories": [{"id": 1, "name": "a"}], "annotations": []}
        (folder / "train.json").write_text(json.dumps(content))
        (report,) = check(folder)
        assert report.faults == ()
        assert told in report.remarks[0]


def test_cmyk_is_read_in_colour(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (32, 32), (200, 30, 60)).convert("CMYK").save(path, quality=95)
    assert read_facts(path).mode == "CMYK"
    pixels = read_picture(path)
    assert pixels.shape == (32, 32, 3)
    np.testing.assert_allclose(pixels[16, 16], (200, 30, 60), atol=6)


def test_sixteen_bits_keep_their_high_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    deep = np.linspace(0, 65535, 64 * 8).astype(np.uint16).reshape(8, 64)
    Image.fromarray(deep).save(path)
    pixels = read_picture(path, (64, 8))
    np.testing.assert_array_equal(pixels, np.repeat((deep // 256).astype(np.uint8)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_other_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    original = picture(20, 10).convert(mode)
    original.save(path)
    np.testing.assert_array_equal(read_picture(path), np.asarray(original.convert("RGBA").convert("RGB")))


@pytest.mark.parametrize("size", [(1, 1), (20000, 3), (3, 20000), (20000, 1)])
def test_odd_sizes_are_read(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", size, (1, 2, 3)).save(path)
    pixels = read_picture(path, size)
    assert pixels.shape == (size[1], size[0], 3)
    assert (pixels == (1, 2, 3)).all()


def damaged(path: Path, kind: str) -> None:
    picture(200, 200).save(path, "JPEG")
    data = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "head only":
        path.write_bytes(data[:20])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<html>404</html>")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "missing":
        path.unlink()
    elif kind == "float":
        Image.fromarray(np.ones((4, 4), np.float32)).save(path, "TIFF")
    elif kind == "truncated PNG":
        picture(200, 200).save(path, "PNG")
        path.write_bytes(path.read_bytes()[:-300])
    elif kind == "script":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")


KINDS = ["truncated", "head only", "empty", "text", "folder", "missing", "float", "truncated PNG", "script"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_damaged_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    damaged(path, kind)
    with pytest.raises(BadInput, match=r"a\.jpg"):
        read_picture(path)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (4000, 1000)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(BadInput, match="too large"):
        read_facts(path)
