"""What all encoders share: batches that shrink, precision, devices, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from momentdetr.errors import BadCheckpoint, BadInput, OutOfResources
from momentdetr.features.encoder import Batches, TowerEncoder, check_clip_length, require_finite, resolve_device
from momentdetr.features.spec import FeatureSpec, Preprocessing, Stream
from momentdetr.features.tokens import BpeTokenizer

PICTURES = Preprocessing(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SPEC = FeatureSpec((Stream("clip", 6, "fake", "0" * 64, PICTURES),), Stream("clip_text", 4, "fake", "0" * 64), 2.0)
TOKENIZER = BpeTokenizer(16)
FRAMES = np.random.default_rng(0).integers(0, 256, (7, 10, 12, 3), dtype=np.uint8)


class Fake(TowerEncoder):
    """One linear map a tower. `memory` is how many rows fit at once, `broken` the pictures that come out as NaN."""

    memory = 100
    broken: tuple[int, ...] = ()

    def __init__(self, *, dtype: str = "float32", batch_size: int = 64) -> None:
        torch.manual_seed(0)
        model = nn.ModuleDict({"image": nn.Linear(3 * 8 * 8, 6), "text": nn.Embedding(49408, 4)})
        super().__init__(model, TOKENIZER, SPEC, dtype=dtype, batch_size=batch_size)
        self.sizes: list[int] = []
        self.done = 0

    def _image_embeddings(self, images: Tensor) -> Tensor:
        self._reserve(len(images))
        found: Tensor = self._model["image"](images.flatten(1))
        for row in self.broken:
            if self.done <= row < self.done + len(images):
                found[row - self.done, 1] = torch.nan
        self.done += len(images)
        return found

    def _token_states(self, ids: Tensor) -> Tensor:
        self._reserve(len(ids))
        found: Tensor = self._model["text"](ids)
        return found

    def _reserve(self, rows: int) -> None:
        self.sizes.append(rows)
        if rows > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 64])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    expected, found = Fake(), Fake(batch_size=batch_size)
    torch.testing.assert_close(found.encode_frames(FRAMES), expected.encode_frames(FRAMES), rtol=0, atol=1e-6)
    queries = ["a dog", "a cat sits on a mat", "two"]
    for a, b in zip(found.encode_text(queries), expected.encode_text(queries), strict=True):
        assert torch.equal(a, b)
    assert max(found.sizes) <= batch_size


def test_out_of_memory_halves_the_batch_for_good() -> None:
    encoder, expected = Fake(batch_size=5), Fake().encode_frames(FRAMES)
    encoder.memory = 2
    torch.testing.assert_close(encoder.encode_frames(FRAMES), expected, rtol=0, atol=1e-6)
    assert encoder.sizes == [5, 2, 2, 2, 1]
    encoder.sizes.clear()
    encoder.encode_frames(FRAMES)
    assert encoder.sizes == [2, 2, 2, 1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_not_even_one_row(error: Exception) -> None:
    def fail(_: slice) -> Tensor:
        raise error

    with pytest.raises(OutOfResources, match="not enough memory to encode a single frame"):
        Batches(8).run(fail, 3, "frame")


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    sizes = []

    def fail(rows: slice) -> Tensor:
        sizes.append(rows)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        Batches(8).run(fail, 3, "frame")
    assert len(sizes) == 1
    with pytest.raises(BadInput, match="batch_size is 0"):
        Batches(0)


def test_a_non_finite_feature_names_its_frame() -> None:
    encoder = Fake(batch_size=2)
    encoder.broken = (5, 6)
    with pytest.raises(BadCheckpoint, match=r"frame 5: the encoder gave a non-finite feature \(2 of 7 rows\)"):
        encoder.encode_frames(FRAMES)
    with pytest.raises(BadCheckpoint, match="row 1"):
        require_finite(torch.tensor([[0.0, 1.0], [torch.inf, 0.0]]), "row")


def test_nothing_in_nothing_out() -> None:
    encoder = Fake()
    assert encoder.encode_frames(FRAMES[:0]).shape == (0, 6)
    assert encoder.encode_text([]) == []


def test_features_are_plain_float32_whatever_the_precision() -> None:
    exact, rough = Fake(), Fake(dtype="bfloat16")
    a, b = exact.encode_frames(FRAMES), rough.encode_frames(FRAMES)
    assert (b.dtype, b.device.type, b.requires_grad) == (torch.float32, "cpu", False)
    assert not torch.equal(a, b)
    assert (a - b).abs().max() < 0.02 * a.abs().max()


def test_text_states_are_their_own_memory() -> None:
    """Not views of a padded batch, which would be kept alive and saved whole."""
    for states in Fake().encode_text(["a dog", "a much longer query than that"]):
        assert states.untyped_storage().nbytes() == states.numel() * 4


@pytest.mark.parametrize("length", [0, -1, float("nan"), float("inf")])
def test_clip_length(length: float) -> None:
    with pytest.raises(BadInput, match="clip_length_s"):
        check_clip_length(length)


def test_devices_and_precisions() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for device in ("gpu", "cuda:99", ""):
        with pytest.raises(BadInput, match="cannot be used"):
            resolve_device(device)
    with pytest.raises(BadInput, match="dtype is 'float16'"):
        Fake(dtype="float16")


@pytest.mark.gpu
def test_the_gpu_agrees_and_its_lack_of_memory_is_survived() -> None:
    if not torch.cuda.is_available():
        pytest.skip("not run: needs a CUDA device")
    encoder = Fake()
    encoder._device = torch.device("cuda")
    encoder._model.cuda()
    torch.testing.assert_close(encoder.encode_frames(FRAMES), Fake().encode_frames(FRAMES), rtol=0, atol=1e-3)

    def hungry(rows: slice) -> Tensor:
        return torch.empty((rows.stop - rows.start) * 2**36, dtype=torch.uint8, device="cuda")[:1].cpu()

    assert len(Batches(8).run(hungry, 3, "row")) == 3
