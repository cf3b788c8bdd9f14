"""Published feature layouts are read as they are, and nothing in them is believed or run."""

from __future__ import annotations

import io
import os
import pickle
import random
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from momentdetr.errors import BadInput
from momentdetr.features.layouts import LAYOUTS, read_array, read_text_features, read_video_features

RNG = np.random.default_rng(0)


def _rows(length: int, dim: int, dtype: type = np.float32) -> np.ndarray[Any, Any]:
    return RNG.standard_normal((length, dim)).astype(dtype)


def _save(path: Path, **arrays: np.ndarray[Any, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("layout", "video", "text", "key"),
    [
        ("moment_detr", ["slowfast_features/V", "clip_features/V"], "clip_text_features/qid7", "last_hidden_state"),
        ("moment_detr_clip", ["clip_features/V"], "clip_text_features/qid7", "last_hidden_state"),
        (
            "moment_detr_pann",
            ["slowfast_features/V", "clip_features/V", "pann_features/V"],
            "clip_text_features/qid7",
            "last_hidden_state",
        ),
        ("cg_detr_tacos", ["slowfast_features/V", "clip_features/V"], "clip_text_features/7", "last_hidden_state"),
        ("lighthouse", ["slowfast/V", "clip/V"], "clip_text/qid7", "last_hidden_state"),
        ("lighthouse_clip", ["clip/V"], "clip_text/qid7", "last_hidden_state"),
        ("lighthouse_pann", ["slowfast/V", "clip/V", "pann/V"], "clip_text/qid7", "last_hidden_state"),
        ("lighthouse_tacos", ["slowfast/V", "clip/V"], "clip_text/7", "last_hidden_state"),
        ("lighthouse_tacos_clip", ["clip/V"], "clip_text/7", "last_hidden_state"),
        ("lighthouse_youtube", ["slowfast/V", "clip/V"], "clip_text/7", "last_hidden_state"),
        ("flashvtg_internvideo2", ["qvhighlight_6b/V"], "qvhighlight_llama_text_feature/qid7", "last_hidden_state"),
        ("univtg", ["vid_slowfast/V", "vid_clip/V"], "txt_clip/7", "last_hidden_state"),
        ("umt_youtube", ["vid_slowfast/V", "vid_clip/V"], "txt/7", "last_hidden_state"),
        ("sg_detr", ["video/V"], "custom_text/7", "features"),
    ],
)
def test_each_layout_finds_its_files(tmp_path: Path, layout: str, video: list[str], text: str, key: str) -> None:
    streams = [_rows(75, 4 + i) for i in range(len(video))]
    for name, stream in zip(video, streams, strict=True):
        _save(tmp_path / f"{name}.npz", features=stream)
    words = _rows(9, 5, np.float16)
    _save(tmp_path / f"{text}.npz", **{key: words, "pooler_output": _rows(1, 5)[0]})
    found = read_video_features(tmp_path, layout, "V")
    assert [np.array_equal(a.numpy(), b) for a, b in zip(found.streams, streams, strict=True)] == [True] * len(video)
    assert found.lengths == (75,) * len(video)
    states = read_text_features(tmp_path, layout, 7)
    assert states.dtype == torch.float32
    assert np.array_equal(states.numpy(), words.astype(np.float32))


@pytest.mark.parametrize(
    ("layout", "folder", "text"), [("umt_tvsum", "video_features", "q"), ("lighthouse_tvsum", "i3d", "clip_text/q")]
)
def test_tvsum_is_one_stream_of_two_files(tmp_path: Path, layout: str, folder: str, text: str) -> None:
    """It is normalised after concatenation, so it must not come as two streams."""
    rgb, flow = _rows(10, 3), _rows(9, 2)
    (tmp_path / folder).mkdir()
    np.save(tmp_path / folder / "V_rgb.npy", rgb)
    np.save(tmp_path / folder / "V_opt.npy", flow)
    _save(tmp_path / f"{text}.npz", token=_rows(4, 6))
    found = read_video_features(tmp_path, layout, "V")
    assert len(found.streams) == 1
    assert np.array_equal(found.streams[0].numpy(), np.concatenate([rgb[:9], flow], 1))
    assert read_text_features(tmp_path, layout, "q").shape == (4, 6)


@pytest.mark.parametrize(
    ("layout", "folder"), [("moment_detr_asr", "clip_sub_features"), ("lighthouse_asr", "clip_text_subs_train")]
)
def test_captions_have_a_folder_a_video(tmp_path: Path, layout: str, folder: str) -> None:
    words = _rows(5, 4)
    _save(tmp_path / folder / "a_b_0.0_150.0" / "12.npz", last_hidden_state=words)
    assert np.array_equal(read_text_features(tmp_path, layout, "a_b_0.0_150.0_12").numpy(), words)
    with pytest.raises(BadInput, match=r"of video .a_b_0\.0_150\.0. and number .13."):
        read_text_features(tmp_path, layout, "a_b_0.0_150.0_13")
    for qid in ("12", "../x_12", "a_.."):
        with pytest.raises(BadInput, match="expected a plain file name"):
            read_text_features(tmp_path, layout, qid)


@pytest.mark.parametrize(("layout", "name"), [("r2_tuning", "V"), ("r2_tuning_tacos", "V-cam-002")])
def test_layers_and_patches_become_one_vector(tmp_path: Path, layout: str, name: str) -> None:
    clips = RNG.standard_normal((6, 4, 3, 5)).astype(np.float16)
    words = RNG.standard_normal((7, 4, 5)).astype(np.float16)
    for folder, stem, array in (("clip_b32_vid_k4", name, clips), ("clip_b32_txt_k4", "q", words)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / f"{stem}.npy", array)
    (found,) = read_video_features(tmp_path, layout, "V").streams
    assert np.array_equal(found.numpy(), clips.reshape(6, 60).astype(np.float32))
    assert read_text_features(tmp_path, layout, "q").shape == (7, 20)


def test_a_stream_may_be_npy_or_a_tensor(tmp_path: Path) -> None:
    (tmp_path / "video").mkdir()
    rows = torch.randn(6, 3)
    torch.save(rows.bfloat16(), tmp_path / "video" / "a.pt")
    np.save(tmp_path / "video" / "b.npy", np.asfortranarray(rows.numpy()))
    assert torch.equal(read_video_features(tmp_path, "sg_detr", "a").streams[0], rows.bfloat16().float())
    assert torch.equal(read_video_features(tmp_path, "sg_detr", "b").streams[0], rows)


def test_streams_are_cut_to_the_shortest_and_a_large_difference_is_said(tmp_path: Path) -> None:
    slowfast, clip = _rows(75, 3), _rows(74, 2)
    _save(tmp_path / "slowfast_features" / "a.npz", features=slowfast)
    _save(tmp_path / "clip_features" / "a.npz", features=clip)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one clip is how the extractors round
        found = read_video_features(tmp_path, "moment_detr", "a")
    assert found.lengths == (75, 74)
    assert np.array_equal(found.streams[0].numpy(), slowfast[:74])
    _save(tmp_path / "clip_features" / "a.npz", features=clip[:40])
    with pytest.warns(UserWarning, match=r"streams of a have \(75, 40\) rows; the first 40 are used"):
        assert [len(stream) for stream in read_video_features(tmp_path, "moment_detr", "a").streams] == [40, 40]


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "a\\b", "a\0b"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="expected a plain file name"):
        read_video_features(tmp_path, "moment_detr_clip", name)
    with pytest.raises(BadInput, match="expected a plain file name"):
        read_text_features(tmp_path, "univtg", name)


def test_unknown_layout_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"expected one of {next(iter(LAYOUTS))}"):
        read_video_features(tmp_path, "qvhighlights", "a")
    with pytest.raises(BadInput, match=r"no features \(\.npz, \.npy or \.pt\) of vid 'a'"):
        read_video_features(tmp_path, "moment_detr_clip", "a")


def test_nan_names_file_and_row(tmp_path: Path) -> None:
    rows = _rows(8, 3)
    rows[5, 1] = np.nan
    rows[6, 0] = np.inf
    path = _save(tmp_path / "clip_features" / "a.npz", features=rows)
    with pytest.raises(BadInput, match=r"a\.npz: row 5 of features holds NaN or infinity \(2 of 8 rows\)") as caught:
        read_video_features(tmp_path, "moment_detr_clip", "a")
    assert str(path) in str(caught.value)
    _save(path, features=np.full((2, 2), 1e300))  # finite, and infinite as float32
    with pytest.raises(BadInput, match="row 0 of features holds NaN or infinity"):
        read_video_features(tmp_path, "moment_detr_clip", "a")


@pytest.mark.parametrize(
    "array",
    [np.zeros(5, np.float32), np.zeros((0, 5), np.float32), np.zeros((5, 2), np.int64), np.zeros((2, 2), "U3")],
    ids=["one axis", "no rows", "integers", "text"],
)
def test_what_is_no_rows_of_numbers_is_refused(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    _save(tmp_path / "clip_features" / "a.npz", features=array)
    with pytest.raises(BadInput, match=r"expected floating-point rows \(N, C\)"):
        read_video_features(tmp_path, "moment_detr_clip", "a")


def test_a_missing_key_lists_what_there_is(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.npz", other=_rows(2, 2), another=_rows(2, 2))
    with pytest.raises(BadInput, match="holds other, another; expected features"):
        read_array(path, "features")
    with pytest.raises(BadInput, match="expected one array"):
        read_array(path)
    assert read_array(_save(tmp_path / "b.npz", only=np.arange(3))).tolist() == [0, 1, 2]


class _Canary:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "run"
    objects = np.array([_Canary(canary)], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "b.npz", features=objects)
    torch.save(_Canary(canary), tmp_path / "c.pt")
    (tmp_path / "d.npy").write_bytes(pickle.dumps(_Canary(canary)))
    for name in ("a.npy", "b.npz"):
        with pytest.raises(BadInput, match=r"holds Python objects \(pickle\)"):
            read_array(tmp_path / name)
    for name in ("c.pt", "d.npy"):
        with pytest.raises(BadInput, match="cannot be read"):
            read_array(tmp_path / name)
    assert not canary.exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)  # the canary does sing when it is let out
    assert canary.exists()


def test_bombs_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, features=np.zeros((4096, 1024), np.float32))
    assert path.stat().st_size < 100_000

    def fail(*_: object) -> bytes:
        raise AssertionError("read before the size was checked")

    monkeypatch.setattr(zipfile.ZipExtFile, "read", fail)
    with pytest.raises(BadInput, match=r"unpacks to 16,777,\d+ bytes; expected at most 1,000,000"):
        read_array(path, max_bytes=1_000_000)
    monkeypatch.undo()
    assert read_array(path).shape == (4096, 1024)
    torch.save(torch.zeros(1000), tmp_path / "a.pt")
    with pytest.raises(BadInput, match="expected at most 3,000"):
        read_array(tmp_path / "a.pt", max_bytes=3_000)
    torch.save(torch.zeros(1).expand(1_000_000_000), tmp_path / "b.pt")  # a kilobyte that claims four gigabytes
    with pytest.raises(BadInput, match="expected at most"):
        read_array(tmp_path / "b.pt")


def _npy(header: str, data: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }\n", b"1234"), "shorter"),
        (_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2), }\n", b"12345678"), "shorter"),
        (_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", b"1234567"), "cut off"),
        (_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", b"12345678", (9, 0)), "version"),
        (_npy("__import__('os').abort()\n", b""), "cannot be read"),
        (b"", "cannot be read"),
        (b"<html>404</html>", "cannot be read"),
    ],
)
def test_lying_headers(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("features.npy", content)
    for name in ("a.npy", "b.npz"):
        with pytest.raises(BadInput, match=message):
            read_array(tmp_path / name)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".pt"])
def test_damaged_files_are_refused_or_read_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    path, good = tmp_path / f"a{suffix}", _rows(4, 3)
    if suffix == ".pt":
        torch.save(torch.from_numpy(good), path)
    elif suffix == ".npz":
        np.savez_compressed(path, features=good)
    else:
        np.save(path, good)
    content, rng, refusals = path.read_bytes(), random.Random(0), []
    for _ in range(300):
        damaged = bytearray(content[: rng.choice([len(content), rng.randrange(len(content))])])
        for _ in range(rng.randrange(4)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read_array(path)
            except BadInput as error:
                refusals.append(str(error))
    assert len(refusals) > 100
    assert all(message.startswith(str(path)) for message in refusals)


def test_other_suffix_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(1))
    with pytest.raises(BadInput, match="expected a file of features"):
        read_array(tmp_path / "a.pkl")
    with pytest.raises(BadInput, match="No such file"):
        read_array(tmp_path / "a.npz")


def test_zip_member_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    """The directory of the archive says few bytes, the stream inflates to many: reading stops at what was said."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((1000, 100), np.float32))
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", buffer.getvalue())
    content = path.read_bytes().replace(len(buffer.getvalue()).to_bytes(4, "little"), (5_000).to_bytes(4, "little"))
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"shorter|cannot be read"):
        read_array(path, max_bytes=10_000)


def test_real_features(shared_data: Path) -> None:
    """Published CLIP features of one Charades video and of one query."""
    video = read_array(shared_data / "features" / "univtg_charades_vid.npz", "features")
    text = read_array(shared_data / "features" / "univtg_charades_txt.npz", "features")
    assert (video.shape, video.dtype) == ((15, 512), np.float32)
    assert (text.shape, text.dtype) == ((12, 512), np.float16)
    # Projected embeddings that are not normalised: their norms are 10.72 to 11.50, not 1.
    assert np.allclose(np.linalg.norm(video, axis=1), 11.1, atol=0.5)
    names = read_array(shared_data / "features" / "coco_clip_a+cname.npy")
    assert names.shape == (80, 512)
