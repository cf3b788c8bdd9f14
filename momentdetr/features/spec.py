"""What the numbers that a model sees were made of.

A `FeatureSpec` is written into every checkpoint and compared at inference, so that a model is never fed features of
another encoder, clip length, order or normalisation than it was trained on. Plain data: no torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from momentdetr.errors import BadCheckpoint


@dataclass(frozen=True)
class Preprocessing:
    """How a frame becomes the picture that an image tower sees.

    Args:
        image_size: side of the square picture, pixels. The short side is resized to it, then the centre is cut out.
        mean: per channel (RGB), of values in [0, 1].
        std: per channel (RGB), of values in [0, 1].
        interpolation: "bicubic" or "bilinear" (antialiased).
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"


@dataclass(frozen=True)
class Stream:
    """One sequence of feature vectors.

    Args:
        name: "clip", "slowfast", ...; the folder name of the official layouts without "_features".
        dim: length of a vector.
        model: who makes it, e.g. "open_clip:ViT-B-32-quickgelu"; "official" for features that came as files.
        weights_sha256: digest of the weights that made it; None where it cannot be known (features that came as files).
        preprocessing: None for text and for features that came as files.
    """

    name: str
    dim: int
    model: str
    weights_sha256: str | None = None
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class FeatureSpec:
    """The whole path from pixels and words to the model's input.

    Args:
        video: streams in the order in which they are concatenated.
        text: token states (W, dim).
        clip_length_s: seconds of video per feature vector.
        normalize: "l2" (each stream divided by its norm + 1e-5, as the official loaders do) or "none".
        tef: whether clip start and end, as fractions of the window, are appended to each vector.
        max_clips: clips that the model sees at once; longer videos are cut into windows.
        max_words: text tokens that the model sees.
    """

    video: tuple[Stream, ...]
    text: Stream
    clip_length_s: float
    normalize: str = "l2"
    tef: bool = True
    max_clips: int = 75
    max_words: int = 32

    @property
    def video_dim(self) -> int:
        """Length of one clip's vector as the model sees it, temporal endpoints included."""
        return sum(stream.dim for stream in self.video) + 2 * self.tef

    @property
    def text_dim(self) -> int:
        return self.text.dim

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FeatureSpec:
        """Read what `to_dict` wrote (JSON's lists become tuples again).

        Raises:
            BadCheckpoint: a key is missing or unknown, or a value is of the wrong kind.
        """
        try:
            values = _known(cls, data)
            values["video"] = tuple(_stream(stream) for stream in values["video"])
            values["text"] = _stream(values["text"])
            spec = cls(**values)
            _check(spec)
        except (KeyError, TypeError, ValueError) as error:
            raise BadCheckpoint(f"feature specification is not readable: {error}") from error
        return spec

    def require_same(self, other: FeatureSpec) -> None:
        """Check that features made by `other` may be fed to a model trained on `self`.

        An unknown digest (None) fits any digest; everything else must be equal.

        Raises:
            BadCheckpoint: names the first field that differs, with both values.
        """
        for name, mine, theirs in _leaves(self.to_dict(), other.to_dict(), ""):
            unknown = name.endswith("weights_sha256") and (mine is None or theirs is None)
            if mine != theirs and not unknown:
                raise BadCheckpoint(
                    f"features do not fit the model: {name} is {theirs!r}, but the model was trained with {mine!r}. "
                    "Extract the features again with the model's own encoder, or load a model trained on these."
                )


def _known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    allowed = {field.name for field in fields(cls)}
    unknown = sorted(set(data) - allowed)
    if unknown:
        raise TypeError(f"unknown key {unknown[0]!r}, expected some of {sorted(allowed)}")
    return dict(data)


def _stream(data: Mapping[str, Any]) -> Stream:
    values = _known(Stream, data)
    preprocessing = values.get("preprocessing")
    if preprocessing is not None:
        picture = _known(Preprocessing, preprocessing)
        picture["mean"], picture["std"] = tuple(picture["mean"]), tuple(picture["std"])
        values["preprocessing"] = Preprocessing(**picture)
    return Stream(**values)


def _check(spec: FeatureSpec) -> None:
    """Raise ValueError for values that no extractor writes, where they are read and not where they are first used."""
    for name, value in (
        *((f"dim of {stream.name}", stream.dim) for stream in (*spec.video, spec.text)),
        *(("image_size", stream.preprocessing.image_size) for stream in spec.video if stream.preprocessing),
        ("max_clips", spec.max_clips),
        ("max_words", spec.max_words),
    ):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a whole number above 0")
    length = spec.clip_length_s
    if isinstance(length, bool) or not isinstance(length, int | float) or not 0 < length < float("inf"):
        raise ValueError(f"clip_length_s is {length!r}; expected seconds above 0")
    if spec.normalize not in ("l2", "none"):
        raise ValueError(f"normalize is {spec.normalize!r}; expected 'l2' or 'none'")
    if not spec.video:
        raise ValueError("there is no video stream")


def _leaves(mine: Any, theirs: Any, name: str) -> list[tuple[str, Any, Any]]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return [leaf for key in mine for leaf in _leaves(mine[key], theirs.get(key), f"{name}.{key}".lstrip("."))]
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple) and len(mine) == len(theirs):
        return [
            leaf for i, pair in enumerate(zip(mine, theirs, strict=True)) for leaf in _leaves(*pair, f"{name}[{i}]")
        ]
    return [(name, mine, theirs)]
