"""Image and text towers through the transformers library: CLIP, SigLIP and SigLIP 2, from a local folder only.

The same features as `clip.py` gives: projected (CLIP) or pooled (SigLIP) image embedding, and token states after the
text tower's last norm, before its head. Nothing is normalised here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from momentdetr.errors import BadCheckpoint, BadInput, WeightsUnavailable
from momentdetr.features.digest import known_content_hash
from momentdetr.features.encoder import TowerEncoder, check_clip_length, first_line
from momentdetr.features.spec import FeatureSpec, Preprocessing, Stream
from momentdetr.features.tokens import BpeTokenizer, FolderTokenizer, Tokenizer, has_tokenizer, require_vocabulary

_CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
_RESAMPLING = {2: "bilinear", 3: "bicubic"}
# What of a configuration decides the numbers; the rest differs between versions of the library.
_ARCHITECTURE = (
    "hidden_act",
    "hidden_size",
    "image_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "patch_size",
    "projection_dim",
    "vocab_size",
)


class HuggingFaceEncoder(TowerEncoder):
    """A `FeatureEncoder` over CLIPModel, SiglipModel or Siglip2Model.

    Use `create` for a folder; the constructor takes a built model.
    """

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        clip_length_s: float,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 64,
        max_clips: int = 75,
        max_words: int = 32,
    ) -> HuggingFaceEncoder:
        """Build the encoder from a folder as `save_pretrained` writes it; the network is never used.

        Args:
            folder: config.json, model.safetensors, preprocessor_config.json and the tokenizer's files. CLIP models
                with the usual vocabulary do without the latter.
            clip_length_s: seconds of video per frame.
            max_clips, max_words: what the model behind the features sees at once (see `FeatureSpec`).

        Raises:
            BadInput: not a model of these families, or a tokenizer that belongs to another model.
            BadCheckpoint: files that are damaged, missing or do not fit one another.
            WeightsUnavailable: no such folder, or no weights in it.
        """
        check_clip_length(clip_length_s)
        folder = Path(folder)
        files = sorted(folder.glob("model*.safetensors"))
        if not files:
            raise WeightsUnavailable(
                f"{folder}: expected a local folder with config.json and model.safetensors; copy the model there "
                "(names of a model hub are not looked up)"
            )
        model = _load(folder)
        preprocessing = _preprocessing(folder, model)
        tokenizer = _tokenizer(folder, model)
        name, digest = _name(model), _digest(files)
        size = preprocessing.image_size
        with torch.no_grad():
            dim = _embed(model, torch.zeros(1, 3, size, size)).shape[1]
        spec = FeatureSpec(
            video=(Stream("clip", dim, name, digest, preprocessing),),
            text=Stream("clip_text", model.config.text_config.hidden_size, name, digest),
            clip_length_s=clip_length_s,
            max_clips=max_clips,
            max_words=max_words,
        )
        return cls(model, tokenizer, spec, device=device, dtype=dtype, batch_size=batch_size)

    def _image_embeddings(self, images: Tensor) -> Tensor:
        return _embed(self._model, images)

    def _token_states(self, ids: Tensor) -> Tensor:
        # SigLIP's text tower looks both ways and was trained on padded rows: it sees the padding.
        states: Tensor = self._model.text_model(input_ids=ids).last_hidden_state
        return states


def _load(folder: Path) -> Any:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BadCheckpoint(f"{folder}: config.json cannot be read: {first_line(error)}") from error
    if config.model_type not in _CLASSES:
        raise BadInput(f"{folder}: is a {config.model_type} model; expected one of {', '.join(_CLASSES)}")
    try:
        with _quiet():
            model, info = getattr(transformers, _CLASSES[config.model_type]).from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # the library raises whatever its parts raise
        raise BadCheckpoint(f"{folder}: weights cannot be read: {first_line(error)}") from error
    # Absent tensors would stay random without an error.
    absent = [*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])]
    absent = sorted(key for key in absent if not key.startswith(("logit_", "text_projection")))
    if absent:
        raise BadCheckpoint(f"{folder}: model.safetensors lacks {', '.join(absent[:3])} (of {len(absent)})")
    broken = next((name for name, value in model.state_dict().items() if not torch.isfinite(value).all()), None)
    if broken:
        raise BadCheckpoint(f"{folder}: {broken} holds NaN or infinity; fetch the weights again")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own progress bar."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _preprocessing(folder: Path, model: Any) -> Preprocessing:
    values = _processor_config(folder)
    try:
        mean, std = (tuple(map(float, values[key])) for key in ("image_mean", "image_std"))
        interpolation = _RESAMPLING[values["resample"]]
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError("image_mean and image_std must have three values")
        if abs(values.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            raise ValueError("rescale_factor must be 1/255")
    except (KeyError, TypeError, ValueError) as error:
        raise BadCheckpoint(f"{folder}: preprocessor_config.json is not usable: {first_line(error)}") from error
    vision = model.config.vision_config
    size = vision.image_size if model.config.model_type != "siglip2" else _flexible_size(values, vision)
    return Preprocessing(int(size), mean, std, interpolation)


def _processor_config(folder: Path) -> dict[str, Any]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            try:
                values = json.loads((folder / name).read_text("utf-8"))
                return dict(values.get("image_processor", values))
            except (ValueError, AttributeError) as error:
                raise BadCheckpoint(f"{folder / name}: is not readable JSON: {error}") from error
    raise BadCheckpoint(f"{folder}: has no preprocessor_config.json; copy it there, mean and size are in it")


def _flexible_size(values: dict[str, Any], vision: Any) -> int:
    """Return the side of the largest square picture that a tower for pictures of any shape takes."""
    return int(vision.patch_size * math.isqrt(values.get("max_num_patches", vision.num_patches)))


def _tokenizer(folder: Path, model: Any) -> Tokenizer:
    from transformers import AutoTokenizer

    text = model.config.text_config
    length, vocabulary = text.max_position_embeddings, text.vocab_size
    if not has_tokenizer(folder):
        if model.config.model_type == "clip" and vocabulary == BpeTokenizer.vocabulary:
            return BpeTokenizer(length)
        raise WeightsUnavailable(f"{folder}: has no tokenizer.json; copy the model's tokenizer files there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BadInput(f"{folder}: its tokenizer cannot be read: {first_line(error)}") from error
    require_vocabulary(folder, len(tokenizer), vocabulary)
    # All of these models were trained with the padding behind the words, whatever the tokenizer's files say.
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    # SigLIP 2 was trained on lower case, and its first tokenizer files do not see to it. CLIP's and SigLIP's do.
    clean = str.lower if model.config.model_type != "clip" else str

    def encode(queries: list[str]) -> Tensor:
        ids: Tensor = tokenizer(
            [clean(query) for query in queries],
            return_tensors="pt",
            padding="max_length",
            truncation=True,
            max_length=length,
        ).input_ids
        return ids

    return FolderTokenizer(tokenizer, encode, clean, length)


def _embed(model: Any, images: Tensor) -> Tensor:
    """Pictures (N, 3, S, S) -> embeddings (N, C)."""
    if model.config.model_type == "siglip2":
        output = model.get_image_features(**_patches(images, model.config.vision_config.patch_size))
    else:
        output = model.get_image_features(pixel_values=images)
    embeddings: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return embeddings


def _patches(images: Tensor, patch_size: int) -> dict[str, Tensor]:
    """Cut square pictures (N, 3, S, S) into the patch rows that a tower for pictures of any shape takes."""
    count, _, side, _ = images.shape
    grid = side // patch_size
    rows = images.reshape(count, 3, grid, patch_size, grid, patch_size).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": rows.reshape(count, grid * grid, patch_size * patch_size * 3),
        "pixel_attention_mask": torch.ones(count, grid * grid, dtype=torch.int32, device=images.device),
        "spatial_shapes": torch.full((count, 2), grid, dtype=torch.long, device=images.device),
    }


def _name(model: Any) -> str:
    parts = [
        {key: getattr(part, key) for key in _ARCHITECTURE if hasattr(part, key)}
        for part in (model.config.vision_config, model.config.text_config)
    ]
    shape = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    return f"transformers:{model.config.model_type}-{shape}"


def _digest(files: Sequence[Path]) -> str:
    digests = [known_content_hash(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
