"""What every feature encoder promises, and the parts that all of them share.

An encoder turns frames into one vector each and queries into one vector per token. Pictures are made as the official
feature extractors make them: short side resized with antialiasing, centre cut out, whatever the tower was trained on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from momentdetr.errors import BadCheckpoint, BadInput, OutOfResources
from momentdetr.features.spec import FeatureSpec, Preprocessing

MAX_QUERY_CHARACTERS = 1_000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

Frames = np.ndarray[Any, np.dtype[np.uint8]]


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


def check_queries(queries: Sequence[str]) -> list[str]:
    """Return the queries as a list after checking that each can be a sentence.

    Raises:
        BadInput: a query is no string, empty, longer than 1,000 characters, or not valid Unicode.
    """
    if isinstance(queries, str):
        raise BadInput("queries is one string; expected a list of strings: [query]")
    for query in queries:
        if not isinstance(query, str):
            raise BadInput(f"query is {type(query).__name__} ({query!r:.60}); expected a string")
        if not query.strip():
            raise BadInput("query is empty; expected a sentence that says what to find")
        if len(query) > MAX_QUERY_CHARACTERS:
            raise BadInput(
                f"query has {len(query):,} characters; expected at most {MAX_QUERY_CHARACTERS:,}. Shorten it: the text "
                "towers read a few dozen words."
            )
        bad = next((i for i, character in enumerate(query) if "\ud800" <= character <= "\udfff"), None)
        if bad is not None:
            raise BadInput(f"query is not valid Unicode: lone surrogate {query[bad]!r} at character {bad}")
    return list(queries)


def warn_truncated(query: str, tokens: int, context_length: int) -> None:
    """Say that a query is longer than the text tower reads."""
    warnings.warn(
        f"query has {tokens} tokens with start and end marks, the text tower reads {context_length}: the last "
        f"{tokens - context_length} words or word pieces are ignored ({query[:60]!r})",
        stacklevel=3,
    )


def check_frames(frames: Frames) -> None:
    """Check that `frames` is what a video reader gives.

    Raises:
        BadInput: not uint8, or not (N, H, W, 3) with H and W at least 1.
    """
    found = f"{getattr(frames, 'dtype', type(frames).__name__)} {tuple(getattr(frames, 'shape', ()))}"
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        raise BadInput(f"frames are {found}; expected a numpy array of uint8, RGB in 0..255")
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape[1:]:
        raise BadInput(f"frames are {found}; expected (N, H, W, 3)")


def fit(frame: Frames, image_size: int, interpolation: str = "bicubic") -> Frames:
    """Resize the short side of a frame to `image_size` (antialiased) and cut out the centre square.

    Args:
        frame: (H, W, 3) uint8.

    Returns:
        (image_size, image_size, 3) uint8; the frame itself if it already has that size.
    """
    height, width = frame.shape[:2]
    if height == width == image_size:
        return frame
    short = min(height, width)
    width, height = int(image_size * width / short), int(image_size * height / short)
    picture = Image.fromarray(frame).resize((width, height), RESAMPLING[interpolation])
    # Rounded as torchvision's CenterCrop does, so that a picture is the one that open_clip's own transform makes.
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    return np.asarray(picture.crop((left, top, left + image_size, top + image_size)))


def pictures(frames: Frames, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Frames as the image tower takes them: fitted, scaled to [0, 1], mean subtracted, divided by std.

    Args:
        frames: (N, H, W, 3) uint8 RGB.

    Returns:
        (N, 3, image_size, image_size) float32 on `device`.
    """
    fitted = np.stack([fit(frame, preprocessing.image_size, preprocessing.interpolation) for frame in frames])
    images = torch.from_numpy(fitted).to(device).permute(0, 3, 1, 2).float() / 255
    mean, std = (
        torch.tensor(values, device=device)[:, None, None] for values in (preprocessing.mean, preprocessing.std)
    )
    return (images - mean) / std


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
                        f"not enough memory to encode a single {what}: {str(error).splitlines()[0]}. Free memory, use "
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
        raise BadInput(
            f"device {device!r} cannot be used: {str(error).splitlines()[0]}. Use 'cpu' or 'auto'."
        ) from error
    return found


def resolve_dtype(dtype: str) -> torch.dtype:
    """Return the torch dtype that a tower computes in.

    Raises:
        BadInput: neither "float32" nor "bfloat16".
    """
    if dtype not in DTYPES:
        raise BadInput(f"dtype is {dtype!r}; expected one of {sorted(DTYPES)}")
    return DTYPES[dtype]


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "out of memory" in text or "can't allocate memory" in text or "cannot allocate memory" in text
    )
