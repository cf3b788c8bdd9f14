"""Oracle: an encoder whose features are the frames' mean colours, and the frames that the reader gives."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from momentdetr.errors import BadInput, BadVideo
from momentdetr.features.spec import FeatureSpec, Preprocessing, Stream
from momentdetr.features.store import FeatureStore
from momentdetr.features.video import read_clips
from momentdetr.features.video_write import write_video
from momentdetr.search import encoding
from momentdetr.search.encoding import encode_video

SPEC = FeatureSpec(
    video=(Stream("clip", 3, "mean colour", "0" * 64, Preprocessing(24, (0.5,) * 3, (0.5,) * 3)),),
    text=Stream("clip_text", 1, "none"),
    clip_length_s=0.5,
)


class MeanColour:
    """Frames -> their mean colour; remembers how many frames came at once and how large they were."""

    def __init__(self, spec: FeatureSpec = SPEC) -> None:
        self.spec = spec
        self.seen: list[tuple[int, ...]] = []

    def encode_frames(self, frames: np.ndarray) -> Tensor:
        self.seen.append(frames.shape)
        return torch.from_numpy(frames.astype(np.float32).mean((1, 2)))

    def encode_text(self, queries: object) -> list[Tensor]:
        raise AssertionError("no text here")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 seconds, a new colour every half second."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    colours = np.random.default_rng(0).integers(0, 255, (80, 3), dtype=np.uint8)
    write_video(path, (np.broadcast_to(colours[i // 5], (48, 64, 3)) for i in range(400)), 10)
    return path


def test_there_is_one_row_a_clip_made_of_its_frame(film: Path) -> None:
    encoder, steps = MeanColour(), []
    video = encode_video(film, encoder, progress=lambda *step: steps.append(step))
    frames = [frame for batch in read_clips(film, clip_length_s=0.5, image_size=24) for frame in batch.frames]
    assert torch.equal(video.features, encoder.encode_frames(np.stack(frames)))
    assert video.features.shape == (80, 3)
    assert (video.name, video.path, video.spec, video.complete) == ("film", film, SPEC, True)
    assert video.duration_s == pytest.approx(40.0)
    assert steps[-1] == (80, 80)
    assert steps == sorted(steps)


def test_frames_come_in_small_batches_of_the_encoders_size(film: Path) -> None:
    encoder = MeanColour()
    encode_video(film, encoder)
    assert max(shape[0] for shape in encoder.seen) <= 32
    assert {shape[1:] for shape in encoder.seen} == {(24, 24, 3)}


def test_what_is_in_the_store_is_not_made_again(film: Path, tmp_path: Path) -> None:
    store, second = FeatureStore(tmp_path / "store"), MeanColour()
    made = encode_video(film, MeanColour(), store=store)
    copy = Path(shutil.copy(film, tmp_path / "another name.mp4"))
    steps: list[tuple[int, int]] = []
    kept = encode_video(copy, second, store=store, progress=lambda *step: steps.append(step))
    assert second.seen == []
    assert torch.equal(kept.features, made.features)
    assert (kept.name, kept.path, kept.duration_s) == ("another name", copy, made.duration_s)
    assert steps == [(80, 80)]
    with pytest.raises(BadInput, match="decoder is 'vlc'"):
        encode_video(copy, second, store=store, decoder="vlc")


def test_other_weights_or_other_bytes_are_encoded_anew(film: Path, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store")
    encode_video(film, MeanColour(), store=store)
    other = MeanColour(replace(SPEC, video=(replace(SPEC.video[0], weights_sha256="1" * 64),)))
    encode_video(film, other, store=store)
    assert other.seen
    changed, third = tmp_path / "changed.mp4", MeanColour()
    changed.write_bytes(film.read_bytes() + b"\0\0\0\x08free")
    encode_video(changed, third, store=store)
    assert third.seen


def test_weights_without_a_digest_are_not_cached(film: Path, tmp_path: Path) -> None:
    store, spec = FeatureStore(tmp_path / "store"), replace(SPEC, video=(replace(SPEC.video[0], weights_sha256=None),))
    encode_video(film, MeanColour(spec), store=store)
    again = MeanColour(spec)
    encode_video(film, again, store=store)
    assert again.seen


def damaged(film: Path, folder: Path) -> Path:
    """The film with noise in the second half of its pictures."""
    data = bytearray(film.read_bytes())
    box = data.index(b"mdat")
    size = int.from_bytes(data[box - 4 : box], "big")
    noise = np.random.default_rng(1).integers(0, 255, size // 4, dtype=np.uint8).tobytes()
    data[box + size // 2 : box + size // 2 + len(noise)] = noise
    path = folder / "damaged.mp4"
    path.write_bytes(data)
    return path


def test_a_damaged_file_is_refused_unless_asked_for_and_never_kept(film: Path, tmp_path: Path) -> None:
    store, path = FeatureStore(tmp_path / "store"), damaged(film, tmp_path)
    with pytest.raises(BadVideo, match=r"damaged\.mp4"):
        encode_video(path, MeanColour(), store=store)
    video = encode_video(path, MeanColour(), store=store, salvage=True)
    assert not video.complete
    assert 0 < len(video.features) <= 80
    assert store.size() == 0


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(BadVideo, match=r"pipe\.mp4"):
        encode_video(tmp_path / "pipe.mp4", MeanColour(), store=FeatureStore(tmp_path / "store"))


def test_the_module_needs_no_decoder_until_a_file_is_read() -> None:
    assert not hasattr(encoding, "read_clips")
