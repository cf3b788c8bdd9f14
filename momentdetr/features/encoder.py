"""What every feature encoder promises, and what those over one image and one text tower share.

An encoder turns frames into one vector each and queries into one vector per token.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from momentdetr.errors import BadCheckpoint, BadInput, OutOfResources
from momentdetr.features.pictures import Frames, check_frames, to_pictures
from momentdetr.features.spec import FeatureSpec, Preprocessing
from momentdetr.features.tokens import Tokenizer, check_queries

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class FeatureEncoder(Protocol):
    """Frames and queries to features, with the specification that travels with them."""

    @property
    def spec(self) -> FeatureSpec: ...

    def encode_frames(self, frames: Frames) -> Tensor:
        """uint8 RGB frames (N, H, W, 3) -> (N, C) float32 on the CPU, not normalised."""
        ...

    def encode_text(self, queries: Sequence[str]) -> list[Tensor]:
        """Queries -> for each its token states (W, C), first to end-of-text token, float32 on the CPU."""
        ...


class TowerEncoder(ABC):
    """A `FeatureEncoder` over one model with an image and a text tower; what is common to all libraries.

    Args:
        model: the built model.
        tokenizer: of its text tower.
        spec: one video stream with preprocessing, and text.
        device: where to compute, or "auto".
        dtype: "float32", or "bfloat16" for autocast.
        batch_size: pictures or queries at once; halved for good when memory runs out.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        spec: FeatureSpec,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 64,
    ) -> None:
        if len(spec.video) != 1 or spec.video[0].preprocessing is None:
            raise BadInput("the specification of an image tower has one video stream, with its preprocessing")
        self.spec = spec
        self.dtype = dtype
        self._preprocessing: Preprocessing = spec.video[0].preprocessing
        self._device, self._dtype = resolve_device(device), resolve_dtype(dtype)
        self._model: Any = model.eval().requires_grad_(False).to(self._device)
        self._tokenizer = tokenizer
        self._batches = Batches(batch_size)

    @abstractmethod
    def _image_embeddings(self, images: Tensor) -> Tensor:
        """Pictures (N, 3, S, S) -> (N, C), projected, not normalised."""

    @abstractmethod
    def _token_states(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) -> (B, L, C), after the last norm, before the projection."""

    @torch.no_grad()
    def encode_frames(self, frames: Frames) -> Tensor:
        """Encode frames as projected image embeddings.

        Args:
            frames: (N, H, W, 3) uint8 RGB. Frames of the tower's own size are taken as they are, others resized by
                their short side and cut to the centre square.

        Returns:
            (N, C) float32 on the CPU, not normalised.

        Raises:
            BadInput: not such an array.
            BadCheckpoint: a feature is not finite.
            OutOfResources: not even one frame fits into memory.
        """
        check_frames(frames)

        def encode(rows: slice) -> Tensor:
            images = to_pictures(frames[rows], self._preprocessing, self._device)
            with self._precision():
                return self._image_embeddings(images).float().cpu()

        parts = self._batches.run(encode, len(frames), "frame")
        return require_finite(torch.cat([torch.empty(0, self.spec.video[0].dim), *parts]), "frame")

    @torch.no_grad()
    def encode_text(self, queries: Sequence[str]) -> list[Tensor]:
        """Encode queries as token states after the last norm, before the projection.

        Args:
            queries: sentences of 1 to 1,000 characters. One that has more tokens than the tower reads is cut, with a
                warning; its end mark stays last.

        Returns:
            For each query (W, C) float32 on the CPU, W tokens from the start to the end mark, not normalised.

        Raises:
            BadInput: a query that cannot be a sentence.
            BadCheckpoint: a state is not finite.
            OutOfResources: not even one query fits into memory.
        """
        tokens = self._tokenizer(check_queries(queries))

        def encode(rows: slice) -> Tensor:
            ids = tokens.ids[rows].to(self._device)
            with self._precision():
                return self._token_states(ids).float().cpu()

        parts = self._batches.run(encode, len(tokens.lengths), "query")
        states = [state for part in parts for state in part]
        return [
            require_finite(state[:length].clone(), f"query {number}, token")
            for number, (state, length) in enumerate(zip(states, tokens.lengths, strict=True))
        ]

    def pool_text(self, states: Sequence[Tensor]) -> Tensor | None:
        """One vector a query, comparable with the vectors of frames.

        Args:
            states: N results of `encode_text`.

        Returns:
            (N, C) float32 on the CPU, not normalised; None where a model makes it of more than the end mark's state.
        """
        return None

    def _precision(self) -> AbstractContextManager[None]:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)


class Batches:
    """Run a function over slices of a batch that shrink for good when memory does not suffice.

    Args:
        size: rows at once, at least 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise BadInput(f"batch_size is {size}; expected at least 1")
        self.size = size

    def run(self, function: Callable[[slice], Tensor], count: int, what: str) -> list[Tensor]:
        """Call `function` on consecutive slices of range(count), halving them when memory runs out.

        Args:
            what: what a row is, for the message.

        Raises:
            OutOfResources: one row alone does not fit.
        """
        results: list[Tensor] = []
        start = 0
        while start < count:
            size = min(self.size, count - start)
            try:
                results.append(function(slice(start, start + size)))
                start += size
                continue
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                if size == 1:
                    raise OutOfResources(
                        f"not enough memory to encode a single {what}: {first_line(error)}. Free memory, use "
                        "a smaller model, or device='cpu'."
                    ) from None
            # Outside the except block, where the failed call's tensors are no longer held by the traceback.
            self.size = size // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return results


def require_finite(features: Tensor, what: str) -> Tensor:
    """Return features (N, C) after checking them.

    Raises:
        BadCheckpoint: names the first row that holds NaN or infinity.
    """
    bad = (~torch.isfinite(features).flatten(1).all(1)).nonzero()
    if len(bad):
        raise BadCheckpoint(
            f"{what} {int(bad[0])}: the encoder gave a non-finite feature ({len(bad)} of {len(features)} rows). "
            "Its weights are damaged or do not suit the precision; verify the file, or use dtype='float32'."
        )
    return features


def check_clip_length(clip_length_s: float) -> None:
    """Check the seconds of video per frame.

    Raises:
        BadInput: not a finite number above 0.
    """
    if not (clip_length_s > 0 and math.isfinite(clip_length_s)):
        raise BadInput(f"clip_length_s is {clip_length_s}; expected seconds above 0")


def resolve_device(device: str) -> torch.device:
    """Return the torch device of a name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        BadInput: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(f"device {device!r} cannot be used: {first_line(error)}. Use 'cpu' or 'auto'.") from error
    return found


def resolve_dtype(dtype: str) -> torch.dtype:
    """Return the torch dtype that a tower computes in.

    Raises:
        BadInput: neither "float32" nor "bfloat16".
    """
    if dtype not in DTYPES:
        raise BadInput(f"dtype is {dtype!r}; expected one of {sorted(DTYPES)}")
    return DTYPES[dtype]


def first_line(error: Exception) -> str:
    """Return what an error of another library says, short enough for a message of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "out of memory" in text or "can't allocate memory" in text or "cannot allocate memory" in text
    )


__all__ = [
    "Batches",
    "FeatureEncoder",
    "TowerEncoder",
    "check_clip_length",
    "check_frames",
    "check_queries",
    "first_line",
    "require_finite",
    "resolve_device",
    "resolve_dtype",
]
