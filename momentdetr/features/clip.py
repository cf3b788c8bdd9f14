"""CLIP's image and text towers through open_clip, from local files only.

A frame becomes the projected image embedding (`encode_image`), a query the token states after the text tower's last
norm and before its projection, as in the features that Moment-DETR and its descendants are trained on. Neither is
normalised here; the feature specification says what the model's loader does.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from momentdetr.errors import WeightsUnavailable
from momentdetr.features.clip_models import (
    build_clip,
    find_clip_model,
    openai_digests,
    preprocessing_of,
    tokenizer_of,
    with_quick_gelu,
)
from momentdetr.features.clip_weights import load_clip_state, read_clip_state
from momentdetr.features.digest import known_content_hash
from momentdetr.features.encoder import TowerEncoder, check_clip_length
from momentdetr.features.spec import FeatureSpec, Preprocessing, Stream


class OpenClipEncoder(TowerEncoder):
    """A `FeatureEncoder` over a model of open_clip.

    Use `create` for weights in files; the constructor takes a built model with `encode_image` and
    `forward_intermediates`.
    """

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
            tag: open_clip's name of the weights ("openai"), for models whose preprocessing or activation depends on it.

        Raises:
            BadInput: unknown model, device or dtype, or a text tower without token states.
            BadCheckpoint: weights that are damaged or of another model.
            WeightsUnavailable: no weights given, or tokenizer files are missing.
        """
        check_clip_length(clip_length_s)
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
            found = with_quick_gelu(found)
        elif not found.quick_gelu and any("openai" in part for part in weights.resolve().parts[-4:]):
            warnings.warn(
                f"{weights}: if these are OpenAI's weights, {found.name} computes another activation than they were "
                f"trained with; say {found.name}-quickgelu or tag='openai'",
                stacklevel=2,
            )
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
    def pool_text(self, states: Sequence[Tensor]) -> Tensor | None:
        tower: Any = getattr(self._model, "text", self._model)
        if getattr(self._model, "text_pool_type", getattr(tower, "pool_type", None)) not in ("argmax", "eos"):
            return None
        ends = torch.stack([state[-1] for state in states]).to(self._device)
        projection = tower.text_projection
        if projection is None:
            return ends.cpu()
        return (projection(ends) if isinstance(projection, nn.Module) else ends @ projection).float().cpu()

    def _image_embeddings(self, images: Tensor) -> Tensor:
        return _embed(self._model, images)

    def _token_states(self, ids: Tensor) -> Tensor:
        # Of the last block only, with the tower's last norm; a class token (CoCa) is left out.
        output = self._model.forward_intermediates(
            text=ids, text_indices=1, normalize_intermediates=True, intermediates_only=True, text_output_fmt="NLC"
        )
        states: Tensor = output["text_intermediates"][-1]
        return states


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
        dim = _embed(model, blank).shape[1]
    return FeatureSpec(
        video=(Stream("clip", dim, name, weights_sha256, preprocessing),),
        text=Stream("clip_text", tower.ln_final.weight.shape[0], name, weights_sha256),
        clip_length_s=clip_length_s,
        max_clips=max_clips,
        max_words=max_words,
    )


def _embed(model: Any, images: Tensor) -> Tensor:
    # CoCa would normalise unless told not to.
    embeddings: Tensor = model.encode_image(images, normalize=False)
    return embeddings
