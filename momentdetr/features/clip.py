"""CLIP's image and text towers through open_clip, from local files only.

A frame becomes the projected image embedding (`encode_image`), a query the token states after the text tower's last
norm and before its projection, as in the features that Moment-DETR and its descendants are trained on. Neither is
normalised here; the feature specification says what the model's loader does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from momentdetr.errors import BadInput, WeightsUnavailable
from momentdetr.features.clip_models import (
    as_openai,
    build_clip,
    find_clip_model,
    openai_digests,
    preprocessing_of,
)
from momentdetr.features.clip_tokens import Tokenizer, tokenizer_of
from momentdetr.features.clip_weights import load_clip_state, read_clip_state
from momentdetr.features.digest import known_content_hash
from momentdetr.features.encoder import (
    Batches,
    Frames,
    check_frames,
    check_queries,
    pictures,
    require_finite,
    resolve_device,
    resolve_dtype,
)
from momentdetr.features.spec import FeatureSpec, Preprocessing, Stream


class OpenClipEncoder:
    """A `FeatureEncoder` over a model of open_clip.

    Use `create` for weights in files; the constructor takes built parts.

    Args:
        model: a model of open_clip with `encode_image` and `forward_intermediates`.
        tokenizer: of the model's text tower.
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
        self.spec = spec
        self.dtype = dtype
        self._preprocessing = spec.video[0].preprocessing
        if len(spec.video) != 1 or self._preprocessing is None:
            raise BadInput("the specification of an image tower has one video stream, with its preprocessing")
        self._device, self._dtype = resolve_device(device), resolve_dtype(dtype)
        self._model: Any = model.eval().requires_grad_(False).to(self._device)
        self._tokenizer = tokenizer
        self._batches = Batches(batch_size)

    @classmethod
    def create(
        cls,
        model: str | Path,
        weights: Path | None = None,
        *,
        clip_length_s: float,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 64,
        max_clips: int = 75,
        max_words: int = 32,
        tag: str | None = None,
    ) -> OpenClipEncoder:
        """Build the encoder from files on this machine; the network is never used.

        Args:
            model: open_clip's name ("ViT-B-32-quickgelu"), or a folder with open_clip_config.json and
                open_clip_model.safetensors. A plain name with OpenAI's own weights becomes its -quickgelu variant.
            weights: .safetensors, or .pt read without running it; None for a folder that holds them.
            clip_length_s: seconds of video per frame.
            max_clips, max_words: what the model behind the features sees at once (see `FeatureSpec`).
            tag: open_clip's name of the weights, for the few models whose preprocessing depends on it.

        Raises:
            BadInput: unknown model, device or dtype, or a text tower without token states.
            BadCheckpoint: weights that are damaged or of another model.
            WeightsUnavailable: no weights given, or tokenizer files are missing.
        """
        if not (clip_length_s > 0 and math.isfinite(clip_length_s)):
            raise BadInput(f"clip_length_s is {clip_length_s}; expected seconds above 0")
        found = find_clip_model(model, tag)
        weights = Path(weights) if weights is not None else found.weights
        if weights is None:
            missing = "open_clip_model.safetensors in the folder" if found.folder else "weights=FILE"
            raise WeightsUnavailable(
                f"no weights for {model}: expected {missing}. Real weights: momentdetr weights list, then momentdetr "
                "weights pull NAME on a machine with network."
            )
        state = read_clip_state(weights)
        digest = known_content_hash(weights)
        if state.openai or digest in openai_digests():
            found = as_openai(found)
        tokenizer = tokenizer_of(found, weights)
        net = build_clip(found)
        load_clip_state(net, state.tensors, weights)
        spec = clip_spec(
            net,
            f"open_clip:{found.name}",
            digest,
            preprocessing_of(found, net),
            clip_length_s=clip_length_s,
            max_clips=max_clips,
            max_words=max_words,
        )
        return cls(net, tokenizer, spec, device=device, dtype=dtype, batch_size=batch_size)

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
        preprocessing = self._preprocessing
        assert preprocessing is not None  # checked by the constructor

        def encode(rows: slice) -> Tensor:
            images = pictures(frames[rows], preprocessing, self._device)
            with self._precision():
                return _image_embeddings(self._model, images).float().cpu()

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
                # Of the last block only, with the tower's last norm; a class token (CoCa) is left out.
                output = self._model.forward_intermediates(
                    text=ids,
                    text_indices=1,
                    normalize_intermediates=True,
                    intermediates_only=True,
                    text_output_fmt="NLC",
                )
            return output["text_intermediates"][-1].float().cpu()

        states = torch.cat(
            [torch.empty(0, tokens.ids.shape[1], self.spec.text_dim), *self._batches.run(encode, len(queries), "query")]
        )
        return [
            require_finite(state[:length].clone(), "query token")
            for state, length in zip(states, tokens.lengths, strict=True)
        ]

    def _precision(self) -> AbstractContextManager[None]:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)


def clip_spec(
    model: nn.Module,
    name: str,
    weights_sha256: str,
    preprocessing: Preprocessing,
    *,
    clip_length_s: float,
    max_clips: int = 75,
    max_words: int = 32,
) -> FeatureSpec:
    """Describe the features of a model of open_clip.

    Args:
        name: as it shall stand in checkpoints, "open_clip:ViT-B-32-quickgelu".
    """
    tower: Any = getattr(model, "text", model)
    with torch.no_grad():
        blank = torch.zeros(1, 3, preprocessing.image_size, preprocessing.image_size)
        dim = _image_embeddings(model, blank).shape[1]
    return FeatureSpec(
        video=(Stream("clip", dim, name, weights_sha256, preprocessing),),
        text=Stream("clip_text", tower.ln_final.weight.shape[0], name, weights_sha256),
        clip_length_s=clip_length_s,
        max_clips=max_clips,
        max_words=max_words,
    )


def _image_embeddings(model: Any, images: Tensor) -> Tensor:
    # CoCa would normalise unless told not to.
    return model.encode_image(images, normalize=False)
