"""Oracles: the encoder called by hand, the readers of published layouts, and an extraction that nobody disturbed."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from extraction_material import make_annotations, make_videos, tree

from momentdetr.errors import BadInput, StoreError
from momentdetr.extraction import engines, work
from momentdetr.extraction.encoders import EncoderChoice, find_preset
from momentdetr.extraction.plan import LAYOUT_NAMES, file_names
from momentdetr.extraction.run import extract
from momentdetr.features.layouts import LAYOUTS, read_text_features, read_video_features
from momentdetr.features.spec import FeatureSpec
from momentdetr.features.video import read_clips
from momentdetr.retrieval.feature_files import read_published

ROWS: list[tuple[int | str, str, str]] = [(7, "a red square moves", "one"), ("s1-d0_3", "a blue circle", "two")]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    make_videos(folder / "videos", ["one", "two"])
    make_annotations(folder / "train.jsonl", ROWS)
    return folder


@pytest.fixture(scope="module")
def whole(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An extraction that nobody disturbed; not to be changed."""
    out = tmp_path_factory.mktemp("whole")
    done = extract([material / "videos"], out, preset="demo", annotations=[material / "train.jsonl"])
    assert (len(done.made), len(done.kept), done.faults) == (4, 0, ())
    return out


@pytest.fixture
def begun(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "begun"))


def again(material: Path, out: Path, **options: object) -> tuple[list[str], list[str]]:
    """Names made and kept by a second call."""
    arguments = {"preset": "demo", "annotations": [material / "train.jsonl"], **options}
    done = extract([material / "videos"], out, **arguments)  # type: ignore[arg-type]
    assert not done.faults
    return [entry.name for entry in done.made], [entry.name for entry in done.kept]


def test_the_readers_find_what_the_encoder_says(material: Path, whole: Path) -> None:
    encoder = EncoderChoice(find_preset("demo"), None, "cpu").build()
    size = encoder.spec.video[0].preprocessing.image_size  # type: ignore[union-attr]
    frames = [
        batch.frames
        for batch in read_clips(material / "videos" / "one.mp4", clip_length_s=0.5, image_size=size, decoder="pyav")
    ]
    said = encoder.encode_frames(np.concatenate(frames))
    (found,) = read_video_features(whole, "moment_detr_clip", "one").streams
    assert found.shape == (4, 256)  # two seconds, half a second a clip
    torch.testing.assert_close(found, said)
    for qid, query, _ in ROWS:
        torch.testing.assert_close(read_text_features(whole, "moment_detr_clip", qid), encoder.encode_text([query])[0])


def test_training_can_read_it(whole: Path) -> None:
    spec = FeatureSpec.from_dict(json.loads((whole / "features.json").read_text("utf-8")))
    videos, texts = read_published(whole, "moment_detr_clip", ["one", "two"], ["7", "s1-d0_3"], spec)
    assert spec.clip_length_s == 0.5
    assert {name: rows.shape[1] for name, rows in videos.items()} == {"one": 256, "two": 256}
    assert {rows.shape[1] for rows in texts.values()} == {spec.text_dim}


def test_a_sentence_vector_is_the_end_marks_state_projected(whole: Path) -> None:
    encoder = EncoderChoice(find_preset("demo"), None, "cpu").build()
    tokens = encoder._tokenizer(["a red square moves"]).ids
    with torch.no_grad(), np.load(whole / "clip_text_features" / "qid7.npz") as file:
        expected = encoder._model.encode_text(tokens)[0].numpy()
        assert file["pooler_output"].shape == (256,)
        np.testing.assert_allclose(file["pooler_output"], expected, rtol=1e-4, atol=1e-5)


def test_the_manifest_says_what_there_is(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "manifest.jsonl").read_text("utf-8").splitlines()]
    assert [(line["kind"], line["name"]) for line in lines] == [
        ("query", "7"),
        ("query", "s1-d0_3"),
        ("video", "one"),
        ("video", "two"),
    ]
    assert [(line["clips"], line["shape"], line["clip_length_s"]) for line in lines[2:]] == [(4, [4, 256], 0.5)] * 2
    for line in lines:
        assert line["sha256"] == hashlib.sha256((whole / line["file"]).read_bytes()).hexdigest()
        assert line["spec_sha256"] == hashlib.sha256((whole / "features.json").read_bytes()).hexdigest()


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_every_layout_is_read_by_its_reader(material: Path, tmp_path: Path, layout: str) -> None:
    extract([material / "videos"], tmp_path, preset="demo", annotations=[material / "train.jsonl"], layout=layout)
    assert read_text_features(tmp_path, layout, 7).shape[1] == 64
    beside = [pattern for stream in LAYOUTS[layout].video for pattern in stream if "clip" not in pattern]
    for pattern in beside:  # SlowFast's, which others extract
        path = tmp_path / f"{pattern.format(vid='one')}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, features=np.ones((4, 5), np.float32))
    assert 256 in [stream.shape[1] for stream in read_video_features(tmp_path, layout, "one").streams]


def test_nothing_is_done_twice(material: Path, begun: Path, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in begun.rglob("*.npz")}
    assert again(material, begun) == ([], ["one", "two", "7", "s1-d0_3"])
    assert {path: path.stat().st_mtime_ns for path in begun.rglob("*.npz")} == before
    assert tree(begun) == tree(whole)


def _no_line(folder: Path) -> None:
    lines = (folder / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "manifest.jsonl").write_bytes(b"".join(line for line in lines if b'"one"' not in line))


def _half_a_line(folder: Path) -> None:
    data = (folder / "manifest.jsonl").read_bytes()
    start = data.index(b'"name": "one"')
    other = data[data.rindex(b'{"kind"') :]
    _no_line(folder)
    (folder / "manifest.jsonl").write_bytes(
        data[: data.index(b'{"kind": "video"')] + other + data[start - 18 : start + 9]
    )


def _damaged(folder: Path) -> None:
    path = folder / "clip_features" / "one.npz"
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(data)


def _cut_off(folder: Path) -> None:
    path = folder / "clip_features" / "one.npz"
    path.write_bytes(path.read_bytes()[:1000])


def _gone(folder: Path) -> None:
    (folder / "clip_features" / "one.npz").unlink()
    (folder / "clip_features" / ".one.npz-abc.tmp").write_bytes(b"half")


@pytest.mark.parametrize("harm", [_no_line, _half_a_line, _damaged, _cut_off, _gone])
def test_what_is_not_whole_is_made_again_and_the_same(harm: object, material: Path, begun: Path, whole: Path) -> None:
    harm(begun)  # type: ignore[operator]
    assert again(material, begun) == (["one"], ["two", "7", "s1-d0_3"])
    assert tree(begun) == tree(whole)


def test_a_changed_video_or_query_is_extracted_again(material: Path, begun: Path, tmp_path: Path) -> None:
    other = make_videos(tmp_path / "videos", ["two", "one"])  # the other way round
    rows = [(7, "something else", "one"), ROWS[1]]
    make_annotations(tmp_path / "train.jsonl", rows)
    done = extract([other], begun, preset="demo", annotations=[tmp_path / "train.jsonl"])
    assert [entry.name for entry in done.made] == ["7", "one", "two"]
    assert again(material, begun, dtype="float16")[0] == ["7", "s1-d0_3", "one", "two"]
    assert read_video_features(begun, "moment_detr_clip", "one").streams[0].dtype == torch.float32
    with np.load(begun / "clip_features" / "one.npz") as file:
        assert file["features"].dtype == np.float16


def test_other_files_of_the_folder_stay(material: Path, begun: Path, tmp_path: Path) -> None:
    more = make_videos(tmp_path / "more", ["three"])
    done = extract([more], begun, preset="demo")
    assert [entry.name for entry in done.made] == ["three"]
    assert again(material, begun)[0] == []


def test_a_broken_video_does_not_stop_the_rest(material: Path, tmp_path: Path) -> None:
    videos = Path(shutil.copytree(material / "videos", tmp_path / "videos"))
    (videos / "broken.mp4").write_bytes(b"not a video at all" * 100)
    rows = [*ROWS, (8, "x" * 2000, "one"), (9, "a square", "nowhere")]
    annotations = make_annotations(tmp_path / "train.jsonl", rows)
    done = extract([videos], tmp_path / "out", preset="demo", annotations=[annotations])
    assert [entry.name for entry in done.made] == ["7", "9", "s1-d0_3", "one", "two"]
    assert [(fault.kind, fault.name) for fault in done.faults] == [
        ("query", "8"),
        ("video", "broken"),
        ("video", "nowhere"),
    ]
    written = (tmp_path / "out" / "faults.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["name"] for line in written] == ["8", "broken", "nowhere"]
    (videos / "broken.mp4").unlink()
    make_annotations(annotations, ROWS)
    assert extract([videos], tmp_path / "out", preset="demo", annotations=[annotations]).faults == ()
    assert not (tmp_path / "out" / "faults.jsonl").exists()


@pytest.mark.slow
def test_processes_make_what_one_makes(material: Path, whole: Path, tmp_path: Path) -> None:
    again(material, tmp_path, workers=2)
    assert set(tree(tmp_path)) == set(tree(whole))
    for path in whole.rglob("*.npz"):
        with np.load(path) as one, np.load(tmp_path / path.relative_to(whole)) as two:
            assert sorted(one) == sorted(two)
            for name in one:
                np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5)


def test_a_full_disk_ends_the_run_and_keeps_what_is_done(
    material: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = work.write_atomically

    def full(path: Path, data: bytes) -> None:
        if path.name == "two.npz":
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(work, "write_atomically", full)
    with pytest.raises(StoreError, match=r"two\.npz: No space left"):
        again(material, tmp_path)
    monkeypatch.undo()
    assert again(material, tmp_path) == (["7", "s1-d0_3", "two"], ["one"])
    assert tree(tmp_path) == tree(whole)


def test_features_of_different_encoders_do_not_mix(material: Path, begun: Path) -> None:
    with pytest.raises(BadInput, match=r"holds other features .*clip_length_s is 1\.0"):
        again(material, begun, clip_length_s=1.0)


def test_two_runs_in_one_folder_are_refused(material: Path, begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (begun / "clip_features" / "one.npz").unlink()

    def nested(*_: object) -> Iterator[object]:
        with pytest.raises(BadInput, match="another run writes"):
            again(material, begun)
        yield from ()

    monkeypatch.setitem(engines.ENGINES, "local", nested)  # type: ignore[arg-type]
    again(material, begun)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "demmo"}, "Did you mean 'demo'"),
        ({"layout": "lighthouse_tvsum"}, "expected one of moment_detr"),
        ({"engine": "spark"}, "expected one of local, ray"),
        ({"dtype": "int8"}, "expected one of float32, float16"),
        ({"workers": 0}, "at least 1"),
        ({"clip_length_s": float("nan")}, "clip_length_s"),
        ({"weights": Path("missing.pt")}, "no such file"),
        ({"decoder": "vlc"}, "decoder"),
    ],
)
def test_wrong_arguments_write_nothing(
    material: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        again(material, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_ray_that_is_not_there_is_named(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r"pip install 'momentdetr\[ray\]'"):
        again(material, tmp_path, engine="ray")


@pytest.mark.slow
def test_ray_makes_what_one_process_makes(material: Path, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    again(material, tmp_path, engine="ray", workers=2)
    assert set(tree(tmp_path)) == set(tree(whole))
    for path in whole.rglob("*.npz"):
        with np.load(path) as one, np.load(tmp_path / path.relative_to(whole)) as two:
            for name in one:
                np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5)


def test_the_layout_is_that_of_stored_real_features(shared_data: Path, tmp_path: Path) -> None:
    """The stored ones are CLIP ViT-B/32's of this very video; ours differ by the encoder alone."""
    video = shared_data / "videos" / "clips" / "charades_red_hoodie.mp4"
    annotations = make_annotations(tmp_path / "q.jsonl", [(1, "a person sits down on a chair", video.stem)])
    extract([video], tmp_path / "out", preset="demo", annotations=[annotations], clip_length_s=2.0)
    video_file, query_file = file_names("moment_detr_clip")
    real = shared_data / "features"
    with (
        np.load(tmp_path / "out" / video_file.format(vid=video.stem)) as ours,
        np.load(real / "univtg_charades_vid.npz") as stored,
    ):
        assert sorted(ours) == sorted(stored) == ["features"]
        assert ours["features"].dtype == stored["features"].dtype
        assert ours["features"].shape[0] == stored["features"].shape[0] == 15
    with (
        np.load(tmp_path / "out" / query_file.format(qid=1)) as ours,
        np.load(real / "univtg_charades_txt.npz") as stored,
    ):
        assert ours["last_hidden_state"].ndim == stored["features"].ndim == 2
        assert ours["last_hidden_state"].dtype.kind == stored["features"].dtype.kind == "f"
        assert ours["pooler_output"].ndim == 1
