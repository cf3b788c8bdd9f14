"""Which CLIP model: its configuration, preprocessing and files, by open_clip's name or from a local folder.

Nothing here touches the network: open_clip's own loader would, for weights, configurations and tokenizers.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from momentdetr.errors import BadCheckpoint, BadInput, WeightsUnavailable
from momentdetr.features.encoder import first_line
from momentdetr.features.spec import Preprocessing
from momentdetr.features.tokens import BpeTokenizer, FolderTokenizer, Tokenizer, has_tokenizer, require_vocabulary

_FOLDER_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
)
_PREPROCESSING_KEYS = ("mean", "std", "interpolation")


@dataclass(frozen=True)
class ClipModel:
    """What is needed to build a model of open_clip.

    Args:
        name: as it stands in a feature specification.
        config: open_clip's model configuration.
        preprocess: mean, std and interpolation.
        weights: file that belongs to it, or None.
        folder: where tokenizer files may lie, or None.
    """

    name: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path | None = None
    folder: Path | None = None

    @property
    def quick_gelu(self) -> bool:
        return bool(self.config.get("quick_gelu", False))


def find_clip_model(model: str | Path, tag: str | None = None) -> ClipModel:
    """Find a model by open_clip's name or in a local folder.

    Args:
        model: a name such as "ViT-B-32-quickgelu", or a folder with open_clip_config.json and weights.
        tag: one of open_clip's names of pretrained weights ("openai"): decides preprocessing and activation.

    Raises:
        BadInput: unknown name, or a name whose preprocessing cannot be known without a tag.
        BadCheckpoint: a folder without a readable configuration.
    """
    import open_clip

    name = str(model)
    config = None if isinstance(model, Path) else open_clip.get_model_config(name) if ":" not in name else None
    if config is not None:
        found = ClipModel(name, config, _known_preprocessing(name, tag))
        return with_quick_gelu(found) if tag and _tag_has_quick_gelu(name, tag) else found
    folder = Path(name)
    if folder.is_dir():
        return _from_folder(folder)
    near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.5)
    raise BadInput(
        f"{name!r} is neither a model name of open_clip nor a local folder with open_clip_config.json. "
        + (f"Near names: {', '.join(near)}." if near else "Names: open_clip.list_models().")
    )


def with_quick_gelu(model: ClipModel) -> ClipModel:
    """Return the model with the activation that OpenAI's weights, and some others, were trained with.

    A plain `ViT-B-32` computes GELU; with OpenAI's weights its features would be wrong without any error.

    Raises:
        BadCheckpoint: the model is a folder whose configuration contradicts its weights, or has no such variant.
    """
    import open_clip

    if model.quick_gelu:
        return model
    name = f"{model.name}-quickgelu"
    config = None if model.folder else open_clip.get_model_config(name)
    if config is None:
        raise BadCheckpoint(
            f"{model.name}: the weights (OpenAI's, for instance) need QuickGELU, and the configuration says "
            'plain GELU. Set "quick_gelu": true in its model_cfg.'
        )
    return replace(model, name=name, config=config)


def openai_digests() -> dict[str, str]:
    """Return the SHA-256 of each archive that OpenAI published, with the model that it holds."""
    from open_clip import pretrained

    found = {}
    for name in pretrained.list_pretrained_models_by_tag("openai"):
        digest = re.search(r"/([0-9a-f]{64})/", pretrained.get_pretrained_cfg(name, "openai").get("url", ""))
        if digest:
            found[digest[1]] = name.removesuffix("-quickgelu")
    return found


def build_clip(model: ClipModel) -> nn.Module:
    """Build a model of open_clip with random weights, in evaluation mode, frozen.

    Raises:
        BadInput: its text tower gives no token states, or cannot be built without a model hub.
        BadCheckpoint: its configuration is not one of open_clip's.
    """
    import open_clip

    config = deepcopy(model.config)
    text = config.get("text_cfg", {})
    if text.get("hf_model_name"):
        raise BadInput(
            f"{model.name}: its text tower is {text['hf_model_name']} from a model hub, which open_clip cannot build "
            "from local files. Use a model with its own text tower, such as ViT-B-32-quickgelu."
        )
    custom = config.pop("custom_text", False)
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    try:
        net: nn.Module = kind(**config)
    except (TypeError, KeyError, ValueError, RuntimeError, AssertionError) as error:
        raise BadCheckpoint(f"{model.name}: open_clip cannot build this configuration: {error}") from error
    if not hasattr(getattr(net, "text", net), "ln_final"):
        raise BadInput(f"{model.name}: its text tower has no token states (no ln_final); use another model")
    return net.eval().requires_grad_(False)


def preprocessing_of(model: ClipModel, net: nn.Module) -> Preprocessing:
    """Return how frames become pictures for a built model.

    Raises:
        BadInput: its pictures are not square.
        BadCheckpoint: the values are of the wrong kind.
    """
    visual: Any = net.visual
    size = visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise BadInput(f"{model.name}: takes pictures of {width}x{height}; expected a model with square pictures")
    mean, std = tuple(map(float, model.preprocess["mean"])), tuple(map(float, model.preprocess["std"]))
    interpolation = model.preprocess["interpolation"]
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or interpolation not in ("bicubic", "bilinear"):
        raise BadCheckpoint(f"{model.name}: preprocessing is not usable: {model.preprocess}")
    return Preprocessing(int(height), mean, std, interpolation)


def _known_preprocessing(name: str, tag: str | None) -> dict[str, Any]:
    """Look up what open_clip's pretrained weights of this name were trained on."""
    from open_clip import pretrained
    from open_clip.transform import PreprocessCfg

    tags = pretrained.list_pretrained_tags_by_model(name)
    if tag is not None and tag.lower() not in [known.lower() for known in tags]:
        raise BadInput(f"open_clip has no weights {tag!r} of {name}; expected one of {', '.join(tags) or 'none'}")
    default = PreprocessCfg()
    kinds: dict[tuple[Any, ...], list[str]] = {}
    for known in [tag] if tag else tags:
        config = pretrained.get_pretrained_cfg(name, known)
        kinds.setdefault(tuple(config.get(key, getattr(default, key)) for key in _PREPROCESSING_KEYS), []).append(known)
    if len(kinds) > 1:
        choices = "; ".join(f"{', '.join(tags)}: mean {kind[0]}" for kind, tags in kinds.items())
        raise BadInput(
            f"{name} was trained with different preprocessing ({choices}); say which with tag=..., for instance "
            f"tag={next(iter(kinds.values()))[0]!r}"
        )
    values = next(iter(kinds), tuple(getattr(default, key) for key in _PREPROCESSING_KEYS))
    return dict(zip(_PREPROCESSING_KEYS, values, strict=True))


def _tag_has_quick_gelu(name: str, tag: str) -> bool:
    from open_clip import pretrained

    return bool(pretrained.get_pretrained_cfg(name, tag).get("quick_gelu", False))


def _from_folder(folder: Path) -> ClipModel:
    from open_clip.transform import PreprocessCfg

    path = folder / "open_clip_config.json"
    try:
        data = json.loads(path.read_text("utf-8"))
        config = data["model_cfg"]
        given = data.get("preprocess_cfg") or {}
        default = PreprocessCfg()
        preprocess = {key: given.get(key) or getattr(default, key) for key in _PREPROCESSING_KEYS}
        canonical = json.dumps(config, sort_keys=True)
        if not all(isinstance(config[key], dict) for key in ("vision_cfg", "text_cfg")):
            raise TypeError("vision_cfg and text_cfg must be objects")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(
            f"{path}: not readable as a configuration of open_clip ({type(error).__name__}: {error}); expected JSON "
            "with model_cfg (embed_dim, vision_cfg, text_cfg) and preprocess_cfg"
        ) from error
    # Named by what it is and not by where it lies: a folder may be moved, the specification must still fit.
    name = f"folder-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"
    weights = next((folder / file for file in _FOLDER_WEIGHTS if (folder / file).is_file()), None)
    return ClipModel(name, config, preprocess, weights, folder)


def tokenizer_of(model: ClipModel, weights: Path | None) -> Tokenizer:
    """Return the tokenizer of a model: the bundled one, or files beside the model or its weights.

    Raises:
        WeightsUnavailable: the model needs tokenizer files and there are none.
        BadInput: the tokenizer does not belong to the model.
    """
    text = model.config["text_cfg"]
    length, vocabulary = text.get("context_length", 77), text.get("vocab_size", BpeTokenizer.vocabulary)
    options = dict(text.get("tokenizer_kwargs") or {})
    if not text.get("hf_tokenizer_name"):
        require_vocabulary(model.name, BpeTokenizer.vocabulary, vocabulary)
        return BpeTokenizer(length, **options)
    for folder in (model.folder, weights.parent if weights else None):
        if folder is not None and has_tokenizer(folder):
            return _open_clip_folder_tokenizer(folder, length, vocabulary, text.get("tokenizer_mode"), options)
    raise WeightsUnavailable(
        f"{model.name} needs the tokenizer {text['hf_tokenizer_name']}; put its tokenizer.json and "
        "tokenizer_config.json beside the weights"
    )


def _open_clip_folder_tokenizer(
    folder: Path, length: int, vocabulary: int, mode: str | None, options: dict[str, Any]
) -> Tokenizer:
    from open_clip.tokenizer import HFTokenizer

    try:
        hf = HFTokenizer(str(folder), context_length=length, tokenizer_mode=mode, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BadInput(f"{folder}: its tokenizer cannot be read: {first_line(error)}") from error
    require_vocabulary(folder, len(hf.tokenizer), vocabulary)
    hf.tokenizer.padding_side = hf.tokenizer.truncation_side = "right"  # as all of these models were trained
    return FolderTokenizer(hf.tokenizer, hf, hf.clean_fn, length, class_token_last=mode == "clips")
