"""Against transformers' own models, at random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.systems.tiny import TinyResNet
from torch import Tensor

from detection import hf
from detection.backbone import Backbone
from detection.convert import Conversion, convert_state
from detection.model import ImageDetector
from momentdetr.detr.types import Targets
from momentdetr.errors import BadCheckpoint

transformers = pytest.importorskip("transformers")

NARROW = {"encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 9}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    # With auxiliary losses these two norm what they pass from layer to layer, unlike the papers' code: the last only.
    "detr": ("Detr", {"d_model": 32, "auxiliary_loss": False}),
    "conditional_detr": ("ConditionalDetr", {"d_model": 32, "auxiliary_loss": False}),
    "deformable_detr": ("DeformableDetr", {"d_model": 32}),
    "deformable_detr, refine": ("DeformableDetr", {"d_model": 32, "with_box_refine": True}),
    "deformable_detr, two-stage": (
        "DeformableDetr",
        {"d_model": 32, "with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 9},
    ),
    "dab_detr": ("DabDetr", {"hidden_size": 32, "temperature_width": 30}),
    "dab_detr, patterns": ("DabDetr", {"hidden_size": 32, "num_patterns": 2}),
}


def make(kind: str) -> Any:
    name, options = KINDS[kind]
    levels = ["stage2", "stage3", "stage4"] if name == "DeformableDetr" else ["stage4"]
    body = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], out_features=levels
    )
    config = getattr(transformers, f"{name}Config")(
        **{"auxiliary_loss": True, **NARROW, **options},
        use_timm_backbone=False,
        backbone_config=body,
        num_labels=7,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        dropout=0.0,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForObjectDetection")(config)
    with torch.no_grad():
        seen: set[int] = set()
        for parameter in model.parameters():
            if parameter.data_ptr() not in seen:
                parameter.add_(0.1 * torch.randn_like(parameter))
                seen.add(parameter.data_ptr())
    return model.eval()


def tiny_body() -> Backbone:
    body = TinyResNet([1, 1, 1, 1], 4)
    return Backbone(body, body.channels)


def ours(model: Any) -> tuple[Conversion, ImageDetector]:
    options = hf.options_of(model.config.to_dict())
    conversion = convert_state(model.state_dict(), options, backbone=tiny_body())
    return conversion, conversion.model(tiny_body())


def make_images() -> tuple[Tensor, Tensor]:
    """Two images of unequal size."""
    images = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 128, 160, dtype=torch.bool)
    mask[1, 96:], mask[1, :, 128:] = False, False
    return images * mask[:, None], mask


def make_targets() -> tuple[Targets, list[dict[str, Tensor]]]:
    """Ours and theirs."""
    boxes = torch.tensor([[[0.3, 0.4, 0.2, 0.3], [0.6, 0.6, 0.3, 0.2]], [[0.5, 0.4, 0.4, 0.3], [0.5, 0.5, 0.1, 0.1]]])
    targets = Targets(torch.tensor([[1, 4], [2, 0]]), boxes, torch.tensor([[True, True], [True, False]]))
    rows = zip(targets.labels, targets.boxes, targets.mask, strict=True)
    return targets, [{"class_labels": label[mask], "boxes": box[mask]} for label, box, mask in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_transformers(kind: str) -> None:
    model = make(kind)
    conversion, found = ours(model)
    assert (conversion.system, conversion.about["layout"]) == (kind.split(",")[0], "transformers")
    images, mask = make_images()
    with torch.no_grad():
        # They give earlier layers' answers only beside losses.
        expected = model(pixel_values=images, pixel_mask=mask.long(), labels=make_targets()[1])
        said = found(images, mask)
    layers = [*(expected.auxiliary_outputs or []), {"logits": expected.logits, "pred_boxes": expected.pred_boxes}]
    assert len(layers) == (3 if model.config.auxiliary_loss else 1)
    for mine, theirs in zip(said.layers[-len(layers) :], layers, strict=True):
        torch.testing.assert_close(mine.logits, theirs["logits"], atol=5e-5, rtol=1e-4)
        torch.testing.assert_close(mine.boxes, theirs["pred_boxes"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "two-stage" not in kind])
def test_losses_are_those_of_transformers(kind: str) -> None:
    """Term by term; their two-stage model has no loss for its proposals."""
    model = make(kind)
    _, found = ours(model)
    images, mask = make_images()
    targets, labels = make_targets()
    expected = model(pixel_values=images, pixel_mask=mask.long(), labels=labels).loss_dict
    found.detector.criterion.auxiliary = model.config.auxiliary_loss
    terms = found.loss(images, mask, targets).terms
    assert len(terms) == (9 if model.config.auxiliary_loss else 3)
    for name, value in terms.items():
        term, _, layer = name.partition("_")
        theirs = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}[term] + (f"_{layer}" if layer else "")
        torch.testing.assert_close(value, expected[theirs], atol=1e-4, rtol=1e-4)


def test_a_folder_is_read_with_its_names_of_classes(tmp_path: Path) -> None:
    model = make("detr")
    model.save_pretrained(tmp_path)
    state, config = hf.read_folder(tmp_path)
    assert hf.has_its_names(state)
    assert set(hf.to_official(state)) == set(hf.to_official(model.state_dict()))
    assert config["model_type"] == "detr"
    named = {**config, "id2label": {"0": "N/A", "1": "cat"}}
    assert hf.labels_of(named, 3) == (None, "cat", None)


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="no official name is known"):
        hf.to_official({"model.encoder.layers.0.surprise.weight": torch.zeros(1)})
    with pytest.raises(BadCheckpoint, match="expected projections q, k and v"):
        hf.to_official({"model.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(1)})
    with pytest.raises(BadCheckpoint, match="model_type 'bert'"):
        hf.options_of({"model_type": "bert"})
    with pytest.raises(BadCheckpoint, match="not a readable model folder"):
        hf.read_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr"}))
    with pytest.raises(BadCheckpoint):
        hf.read_folder(tmp_path)
