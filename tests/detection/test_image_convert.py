"""Official layouts: what goes in must come out, and nothing may be overlooked."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
import torch
from made_checkpoints import OPTIONS, make, make_images, official_names, tiny_body
from torch import Tensor
from typer.testing import CliRunner

import detection
from detection.__main__ import app, main
from detection.backbone import timm_backbone
from detection.convert import Conversion, convert, convert_state
from detection.labels import COCO, class_names
from detection.model import ImageDetector
from detection.official_systems import OFFICIAL, system_of
from detection.presets import build
from momentdetr.errors import BadCheckpoint, BadInput

MADE = {
    "detr": {},
    "detr, pre-norm": {"options": {"pre_norm": True}},
    "detr, learned positions": {"positions": {"learned": True}},
    "conditional_detr": {},
    "deformable_detr": {"positions": {"offset": -0.5}},
    "deformable_detr, refine": {"positions": {"offset": -0.5}, "options": {"refine": True}},
    "deformable_detr, two-stage": {"positions": {"offset": -0.5}, "options": {"refine": True, "two_stage": True}},
    "dab_detr": {},
    "dab_detr, relu": {"options": {"activation": "relu"}},
    "dab_detr, patterns": {"options": {"num_patterns": 3}},
    "dab_deformable_detr": {},
    "dab_deformable_detr, patterns": {"options": {"num_patterns": 3}},
    "dn_detr": {"denoising": {}},
    "dn_deformable_detr": {"denoising": {}},
    "dn_dino": {},
    "dino": {"denoising": {"contrastive": True, "indicator": False}},
    "dino, unshared": {
        "denoising": {"contrastive": True, "indicator": False},
        "options": {"shared_classes": False, "shared_boxes": False},
    },
    "dino, one-stage": {"denoising": {"contrastive": True, "indicator": False}, "options": {"two_stage": False}},
    "dino, tokens": {"denoising": {"contrastive": True, "indicator": False}, "options": {"learned_content": False}},
}


def made(kind: str) -> tuple[str, ImageDetector, dict[str, Tensor]]:
    system = kind.split(",")[0]
    return system, *make(system, **MADE[kind])  # type: ignore[arg-type]


def converted(state: dict[str, Tensor], **options: object) -> tuple[Conversion, ImageDetector]:
    conversion = convert_state(state, {**OPTIONS, **options}, backbone=tiny_body())
    return conversion, conversion.model(tiny_body())


@pytest.mark.parametrize("kind", MADE)
def test_a_checkpoint_gives_the_answers_that_its_weights_gave(kind: str) -> None:
    system, model, state = made(kind)
    assert system_of(state) == system
    conversion, found = converted(state)
    images, mask = make_images()
    with torch.no_grad():
        expected, said = model(images, mask), found(images, mask)
    for mine, theirs in zip(said.layers, expected.layers, strict=True):
        torch.testing.assert_close(mine.logits, theirs.logits)
        torch.testing.assert_close(mine.boxes, theirs.boxes)
    json.dumps(conversion.config)  # plain values only


@pytest.mark.parametrize("kind", MADE)
def test_every_tensor_counts(kind: str) -> None:
    _, _, state = made(kind)
    some = sorted(state)[:: max(1, len(state) // 6)]
    for name in some:
        without = {key: value for key, value in state.items() if key != name}
        if not name.startswith(("transformer.decoder.bbox_embed", "transformer.decoder.class_embed")):
            with pytest.raises(BadCheckpoint):
                converted(without)
        if state[name].dim():
            with pytest.raises(BadCheckpoint):
                converted({**state, name: state[name].repeat(2, *[1] * (state[name].dim() - 1))})
    with pytest.raises(BadCheckpoint, match="no place for"):
        converted({**state, "transformer.surprise.weight": torch.zeros(2)})


@pytest.mark.parametrize("name", ["transformer.decoder.bbox_embed.1.layers.0.weight", "class_embed.1.bias"])
def test_a_name_that_should_repeat_another_must(name: str) -> None:
    _, _, state = made("dino")
    with pytest.raises(BadCheckpoint, match="should repeat"):
        converted({**state, name: state[name] + 1}, dec_pred_class_embed_share=True, dec_pred_bbox_embed_share=True)


def test_sharing_is_told_from_the_weights_where_options_are_missing() -> None:
    assert converted(made("dino")[2])[0].config["options"]["shared_boxes"]
    assert not converted(made("dino, unshared")[2])[0].config["options"]["shared_boxes"]


def test_weights_that_are_not_numbers_are_refused() -> None:
    _, _, state = made("detr")
    state["class_embed.weight"][0, 0] = torch.nan
    with pytest.raises(BadCheckpoint, match="NaN or infinity"):
        converted(state)


def test_what_is_no_detector_is_refused() -> None:
    with pytest.raises(BadCheckpoint, match="not a checkpoint of a known system"):
        convert_state({"fc.weight": torch.zeros(2, 2)}, {})


def test_panoptic_detr_leaves_its_mask_heads_out_by_name() -> None:
    _, model, state = made("detr")
    wrapped = {f"detr.{name}": value for name, value in state.items()}
    wrapped |= {"mask_head.lay1.weight": torch.zeros(1), "bbox_attention.q_linear.weight": torch.zeros(1)}
    conversion, found = converted(wrapped)
    assert conversion.about["left_out"] == ["bbox_attention.q_linear.weight", "mask_head.lay1.weight"]
    images, mask = make_images()
    torch.testing.assert_close(found(images, mask).last.boxes, model(images, mask).last.boxes)


def test_options_become_losses_noise_and_answers() -> None:
    _, _, state = made("dino")
    options = {
        "cls_loss_coef": 3.0,
        "bbox_loss_coef": 4.0,
        "giou_loss_coef": 6.0,
        "set_cost_class": 7.0,
        "aux_loss": False,
        "dn_number": 10,
        "dn_box_noise_scale": 0.7,
        "dn_label_noise_ratio": 0.3,
        "interm_loss_coef": 0.5,
        "use_detached_boxes_dec_out": True,
        "pe_temperatureW": 30,
    }
    _, model = converted(state, **options)
    criterion, detr = model.detector.criterion, model.detector.detr
    assert criterion.weights == {"class": 3.0, "l1": 4.0, "giou": 6.0}
    assert criterion.matcher.weights["class"] == 7.0  # type: ignore[attr-defined]
    assert not criterion.auxiliary
    assert detr.denoising is not None
    assert detr.denoising.num_groups(5) == 20
    assert (detr.denoising.box_noise, detr.denoising.label_noise) == (0.7, 0.15)
    assert detr.queries.weight == 0.5
    assert detr.decoder.refinement == "detached"
    assert model.detector.neck.temperature == (20.0, 30.0)
    assert model.top == 7


def test_dino_without_denoising_still_makes_one_group_of_no_weight() -> None:
    _, _, state = made("dino")
    _, model = converted(state, use_dn=False, dn_number=100)
    denoising = model.detector.detr.denoising
    assert denoising is not None
    assert denoising.num_groups(5) == 1
    assert denoising.weight == 0


def test_learned_contents_that_the_options_promise_must_be_there() -> None:
    _, _, state = made("dino")
    del state["transformer.tgt_embed.weight"]
    with pytest.raises(BadCheckpoint, match=r"transformer\.tgt_embed\.weight"):
        converted(state, embed_init_tgt=True)


def test_what_no_row_computes_is_refused_by_name() -> None:
    _, _, state = made("dino")
    with pytest.raises(BadCheckpoint, match="decoder_sa_type='ca_label'"):
        converted(state, decoder_sa_type="ca_label")


def test_names_of_classes_come_with_the_checkpoint() -> None:
    assert len(COCO) == 80
    assert class_names(91)[1] == class_names(80)[0] == "person"
    assert class_names(91)[90] == class_names(80)[79] == "toothbrush"
    assert [index for index, name in enumerate(class_names(91)) if name is None] == [
        0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83,
    ]  # fmt: skip
    assert class_names(20) == (None,) * 20


def written(folder: Path) -> tuple[ImageDetector, Path]:
    """A file as the official repository writes it, with a backbone of a published size."""
    backbone = timm_backbone("resnet18", maps=(4,))
    model, _ = make("detr", num_classes=91, channels=[512], backbone=backbone)
    path = folder / "checkpoint.pth"
    options = argparse.Namespace(**OPTIONS, eos_coef=0.2)
    torch.save({"model": official_names("detr", model), "args": options, "epoch": 3}, path)
    return model, path


def test_a_file_becomes_a_folder_that_loads(tmp_path: Path) -> None:
    model, path = written(tmp_path)
    result = CliRunner().invoke(app, ["convert", str(path), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    predictor = detection.load(tmp_path / "out")
    loaded = predictor.model
    assert predictor.labels[18] == "dog"
    images, mask = make_images()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images, mask).last.boxes, model(images, mask).last.boxes)
    assert convert(path).config["losses"]["background"] == 0.2


def test_the_command_line_takes_a_system_and_options(tmp_path: Path) -> None:
    _, path = written(tmp_path)
    given = tmp_path / "options.json"
    given.write_text('{"eos_coef": 0.3}')
    arguments = ["convert", str(path), str(tmp_path / "out"), "--system", "detr", "--config", str(given)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "out" / "config.json").read_text())
    assert document["model"]["losses"]["background"] == 0.3  # counts more than what the file holds
    given.write_text("eos_coef: 0.3")
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, BadInput)
    assert "not a JSON file" in str(result.exception)


def test_a_wrong_system_is_refused(tmp_path: Path) -> None:
    _, path = written(tmp_path)
    with pytest.raises(BadCheckpoint):
        convert(path, system="dino")
    with pytest.raises(BadCheckpoint, match="no converter"):
        convert(path, system="yolo")
    with pytest.raises(BadInput, match="unknown system"):
        build({"system": "yolo"})
    assert set(OFFICIAL) >= {"detr", "dino"}


def test_folders_that_are_no_detectors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"no config\.json"):
        detection.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match="expected"):
        detection.load(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "momentdetr-detection/1", "model": {}, "labels": []}')
    with pytest.raises(BadCheckpoint, match=r"no model\.safetensors"):
        detection.load(tmp_path)


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """What the command line ends with and says, as from a shell: any traceback fails the test."""
    monkeypatch.setattr("sys.argv", ["detection", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().err


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("official"))[1]


BENT = {
    "transformer.decoder.layers.1.norm3.bias": None,
    "class_embed.bias": None,
    "transformer.surprise.weight": (1,),
    "transformer.encoder.layers.0.linear1.weight": (16, 31),
    "transformer.encoder.layers.0.norm1.weight": (0,),
    "input_proj.weight": (),
    "transformer.decoder.layers.0.self_attn.in_proj_weight": (95, 32),
    "backbone.0.body.layer1.0.conv1.weight": (64, 64, 5, 5),
}


@pytest.mark.parametrize("name", BENT)
def test_the_command_line_names_what_is_missing_left_over_or_misshapen(
    name: str, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(official, weights_only=False)
    shape = BENT[name]
    content["model"].pop(name, None)
    if shape is not None:
        content["model"][name] = torch.zeros(shape)
    torch.save(content, tmp_path / "bent.pth")
    code, said = run(monkeypatch, capsys, "convert", tmp_path / "bent.pth", tmp_path / "out")
    assert code == 2
    assert said.startswith("error: ")
    assert name in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nheads": 5}, "32 wide, which 5 heads"),
        ({"nheads": "four"}, "option nheads is 'four'"),
        ({"dec_n_points": 0}, "option dec_n_points is 0"),
        ({"bbox_loss_coef": "five"}, "option bbox_loss_coef is 'five'"),
        ({"batch_norm_type": "SyncBatchNorm"}, "batch_norm_type='SyncBatchNorm'"),
        ([], "holds a list"),
    ],
)
def test_the_command_line_refuses_odd_options(
    options: object,
    words: str,
    official: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "options.json").write_text(json.dumps(options))
    arguments = ("convert", official, tmp_path / "out", "--config", tmp_path / "options.json")
    code, said = run(monkeypatch, capsys, *arguments)
    assert (code, said.startswith("error: ")) == (2, True)
    assert words in said


@pytest.mark.parametrize(
    ("system", "words"),
    [("dino", "it lacks 'label_enc.weight'"), ("yolo", "known are detr, .*co_dino"), ("co_dino", "names of Co-DETR")],
)
def test_the_command_line_refuses_a_wrong_system(
    system: str,
    words: str,
    official: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = run(monkeypatch, capsys, "convert", official, tmp_path / "out", "--system", system)
    assert (code, said.startswith("error: ")) == (2, True)
    assert re.search(words, said)


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_the_command_line_runs_nothing_that_a_file_asks_for(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(official, weights_only=False)
    torch.save({**content, "args": Harmful(tmp_path / "harm")}, tmp_path / "harmful.pth")
    code, said = run(monkeypatch, capsys, "convert", tmp_path / "harmful.pth", tmp_path / "out")
    assert code == 2
    assert "which is code, not data" in said
    assert not (tmp_path / "harm").exists()


def test_the_command_line_says_what_it_wrote_and_needs_both_places(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run(monkeypatch, capsys, "convert", official, tmp_path / "out")
    assert (code, said.startswith("detr, ")) == (0, True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["labels"][90] == "toothbrush"
    assert run(monkeypatch, capsys, "convert", official)[0] == 2
    (tmp_path / "file").touch()
    assert run(monkeypatch, capsys, "convert", official, tmp_path / "file")[0] == 4
