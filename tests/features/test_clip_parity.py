"""One random CLIP through open_clip, through transformers and by hand: the same features.

Real weights differ from these in their values only, so this proves the path that they take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import small_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from momentdetr.features.clip import OpenClipEncoder
from momentdetr.features.encoder import FeatureEncoder
from momentdetr.features.hf import HuggingFaceEncoder

QUERIES = ["a man in a red hoodie sits down", "cat", "Two dogs!? play; with 3 balls & a café's door"]
TOLERANCE = 1e-4
FULL = open_clip.get_model_config("ViT-B-32-quickgelu")
SIZES = [
    pytest.param(small_clip.SMALL, id="small"),
    pytest.param(FULL, id="ViT-B-32", marks=pytest.mark.slow),
]


class Case:
    """A configuration, its random weights, frames, and what the two towers give by hand."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.state = small_clip.random_state(config)
        self.size = config["vision_cfg"]["image_size"]
        self.frames = np.random.default_rng(0).integers(0, 256, (2, self.size, self.size, 3), dtype=np.uint8)
        self.images = self.embed(small_clip.PREPROCESS["mean"], small_clip.PREPROCESS["std"])
        words = open_clip.SimpleTokenizer()
        self.ids = [[49406, *words.encode(query), 49407] for query in QUERIES]
        length = config["text_cfg"]["context_length"]
        self.ids = [ids if len(ids) <= length else [*ids[: length - 1], 49407] for ids in self.ids]
        self.texts = [small_clip.text_by_hand(self.state, ids) for ids in self.ids]

    def embed(self, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
        pictures = torch.from_numpy(self.frames).permute(0, 3, 1, 2) / 255
        return small_clip.image_by_hand(self.state, (pictures - shift) / scale)

    def check(self, encoder: FeatureEncoder, images: Tensor | None = None) -> None:
        _close(encoder.encode_frames(self.frames), self.images if images is None else images)
        found = encoder.encode_text(QUERIES)
        assert [len(states) for states in found] == [len(ids) for ids in self.ids]
        for states, expected in zip(found, self.texts, strict=True):
            _close(states, expected)


@pytest.fixture(scope="module", params=SIZES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(deepcopy(request.param))


def _close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore:query has:UserWarning")
def test_open_clip_gives_what_is_computed_by_hand(case: Case, tmp_path: Path) -> None:
    folder = small_clip.write_folder(tmp_path, case.config, {k: v.half() for k, v in case.state.items()})
    case.check(OpenClipEncoder.create(folder, clip_length_s=2.0))


@pytest.mark.filterwarnings("ignore:query has:UserWarning")
def test_plain_gelu_would_give_other_features(case: Case, tmp_path: Path) -> None:
    """So that agreement above means that the activation is right."""
    config = {**case.config, "quick_gelu": False}
    folder = small_clip.write_folder(tmp_path, config, {k: v.half() for k, v in case.state.items()})
    encoder = OpenClipEncoder.create(folder, clip_length_s=2.0)
    assert (encoder.encode_frames(case.frames) - case.images).abs().max() > 10 * TOLERANCE
    assert (encoder.encode_text(QUERIES)[0] - case.texts[0]).abs().max() > 10 * TOLERANCE


@pytest.mark.filterwarnings("ignore:query has:UserWarning")
def test_transformers_gives_the_same(case: Case, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    vision, text = case.config["vision_cfg"], case.config["text_cfg"]
    config = CLIPConfig(
        projection_dim=case.config["embed_dim"],
        vision_config=_tower(vision, vision["width"] // 64) | {"image_size": case.size, "patch_size": 32},
        text_config=_tower(text, text["heads"])
        | {"vocab_size": 49408, "max_position_embeddings": text["context_length"]},
    )
    model = CLIPModel(config)
    model.load_state_dict(small_clip.transformers_state(case.state))
    model.half().save_pretrained(tmp_path)
    CLIPImageProcessor(
        image_mean=small_clip.PREPROCESS["mean"], image_std=small_clip.PREPROCESS["std"], resample=3
    ).save_pretrained(tmp_path)
    case.check(HuggingFaceEncoder.create(tmp_path, clip_length_s=2.0))


def _tower(config: dict[str, Any], heads: int) -> dict[str, Any]:
    return {
        "hidden_size": config["width"],
        "intermediate_size": 4 * config["width"],
        "num_hidden_layers": config["layers"],
        "num_attention_heads": heads,
        "projection_dim": 0,
    }


def _state_dictionary(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({**state, **small_clip.openai_marks(FULL)}, path.with_suffix(".pt"))


def _archive(path: Path, state: dict[str, Tensor]) -> None:
    small_clip.write_torchscript(path.with_suffix(".pt"), state, small_clip.openai_marks(FULL))


def _safetensors(path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, path.with_suffix(".safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(FULL, id="ViT-B-32")], indirect=True)
@pytest.mark.parametrize(
    ("write", "name"),
    [(_state_dictionary, "ViT-B-32"), (_archive, "ViT-B-32"), (_safetensors, "ViT-B-32-quickgelu")],
)
def test_files_in_the_official_layout_load(
    case: Case, write: Callable[[Path, dict[str, Tensor]], None], name: str, tmp_path: Path
) -> None:
    """OpenAI's names and half precision, by open_clip's name and with OpenAI's preprocessing."""
    write(tmp_path / "weights", {key: value.half().contiguous() for key, value in case.state.items()})
    (path,) = tmp_path.iterdir()
    encoder = OpenClipEncoder.create(name, path, clip_length_s=2.0)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    case.check(encoder, case.embed(mean, std))
    assert encoder.spec.video[0].model == encoder.spec.text.model == "open_clip:ViT-B-32-quickgelu"
    assert (encoder.spec.video[0].dim, encoder.spec.text_dim) == (512, 512)
