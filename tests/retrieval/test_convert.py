from __future__ import annotations

import argparse
import collections
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_retrievers import make_config

from momentdetr.errors import BadCheckpoint
from momentdetr.retrieval.convert import convert, convert_state, permute_streams
from momentdetr.retrieval.layouts.table import LAYOUTS
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.presets import build
from momentdetr.retrieval.types import VideoText

OPTIONS: dict[str, Any] = {
    "nheads": 2,
    "dropout": 0.0,
    "input_dropout": 0.0,
    "span_loss_coef": 10,
    "max_v_l": 75,
    "max_q_l": 32,
    "clip_length": 2,
    "ctx_mode": "video_tef",
}


def official(preset: str, **options: Any) -> tuple[MomentRetriever, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = build(make_config(preset, **options)).eval()
    state = LAYOUTS[preset].to_official(model.state_dict())
    # Official models always create these, and do not read them unless told to.
    state.setdefault("txt_position_embed.position_embeddings.weight", torch.randn(32, 16))
    state.setdefault("txt_position_embed.LayerNorm.weight", torch.ones(16))
    state.setdefault("txt_position_embed.LayerNorm.bias", torch.zeros(16))
    return model, state


@pytest.mark.parametrize(
    ("preset", "ours", "theirs"),
    [
        ("moment_detr", {}, {}),
        ("moment_detr", {"pre_norm": True, "text_positions": 32}, {"pre_norm": True, "use_txt_pos": True}),
        ("moment_detr", {"boundary_clips": 9}, {"span_loss_type": "ce"}),
        ("moment_detr", {"alignment_size": 8}, {"contrastive_align_loss": True}),
        ("moment_detr", {"sizes": {"input_layers": 3, "encoder_layers": 3}}, {}),
        ("qd_detr", {"official_batch_faults": True}, {}),
        ("qd_detr", {"official_batch_faults": True, "moments": False}, {"dset_name": "tvsum"}),
        ("cg_detr", {"official_batch_faults": True, "num_dummies": 3, "chosen_prompts": 2}, {"num_prompts": 2}),
        ("tr_detr", {"official_batch_faults": True}, {}),
        ("tr_detr", {"official_batch_faults": True, "alignment_size": 8}, {"contrastive_align_loss": True}),
        ("cg_detr", {"official_batch_faults": True, "alignment_size": 8}, {"contrastive_align_loss": True}),
        ("eatr", {"official_batch_faults": True, "alignment_size": 8}, {"contrastive_align_loss": True}),
        ("eatr", {"official_batch_faults": True, "sizes": {"decoder_layers": 3}}, {}),
        ("uvcom", {"official_batch_faults": True, "num_clusters": 4, "slot_size": 12, "likeness_size": 20}, {}),
        ("cg_detr", {"official_batch_faults": True, "moments": False}, {"dset_name": "tvsum"}),
    ],
)
def test_round_trip(preset: str, ours: dict, theirs: dict, inputs: VideoText) -> None:
    model, state = official(preset, **ours)
    converted = convert_state(state, {**OPTIONS, **theirs})
    twin = converted.model()
    assert {name: twin.state_dict()[name].equal(value) for name, value in model.state_dict().items()} == dict.fromkeys(
        model.state_dict(), True
    )
    assert (twin.criterion is None) == (model.criterion is None)
    assert torch.equal(twin.predict(inputs).spans, model.predict(inputs).spans)
    if preset != "moment_detr":
        assert converted.config["official_batch_faults"] is True


def test_the_specification_is_told_from_options_and_shapes() -> None:
    _, state = official("moment_detr", sizes={"video_dim": 514, "text_dim": 512})
    spec = convert_state(state, OPTIONS).spec
    assert [stream.name for stream in spec.video] == ["clip"]
    assert spec.video[0].model == "open_clip:ViT-B-32-quickgelu"
    assert (spec.clip_length_s, spec.tef, spec.max_clips, spec.max_words) == (2.0, True, 75, 32)

    _, state = official("moment_detr", sizes={"video_dim": 2818, "text_dim": 512})
    assert [s.name for s in convert_state(state, OPTIONS).spec.video] == ["slowfast", "clip"]
    lighthouse = convert_state(state, {**OPTIONS, "v_feat_types": "clip_slowfast"}).spec
    assert [s.name for s in lighthouse.video] == ["clip", "slowfast"]


def test_permuted_streams_give_the_same_answer(inputs: VideoText) -> None:
    _, state = official("qd_detr", official_batch_faults=True)
    moved = convert_state(permute_streams(state, [3, 5], [1, 0]), OPTIONS).model()
    swapped = torch.cat([inputs.video[..., 3:8], inputs.video[..., :3], inputs.video[..., 8:]], -1)
    found = moved.predict(VideoText(swapped, inputs.video_mask, inputs.text, inputs.text_mask))
    torch.testing.assert_close(found.spans, convert_state(state, OPTIONS).model().predict(inputs).spans)


Spoil = Callable[[dict[str, torch.Tensor]], None]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("class_embed.bias"), r"lacks 'class_embed.bias'"),
        (lambda s: s.update(extra=torch.zeros(1)), r"holds 'extra'"),
        (lambda s: s.update({"class_embed.bias": torch.zeros(3)}), r"classes.bias' is \(3,\).* expects \(2,\)"),
        (lambda s: s["class_embed.bias"].fill_(torch.nan), "NaN"),
        (lambda s: s.pop("query_embed.weight"), "not a checkpoint of Moment-DETR's family"),
    ],
)
def test_what_does_not_fit_is_named(spoil: Spoil, message: str) -> None:
    _, state = official("moment_detr")
    spoil(state)
    with pytest.raises(BadCheckpoint, match=message):
        convert_state(state, OPTIONS)


def official_file(path: Path, options: Any) -> dict[str, torch.Tensor]:
    _, state = official("qd_detr")
    content = {
        "model": state,
        "optimizer": {
            "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)}},
            "param_groups": [{"lr": 1e-4}],
        },
        "lr_scheduler": {"milestones": collections.Counter([400]), "last_epoch": 3},
        "epoch": 3,
        "opt": options,
    }
    torch.save(content, path)
    return state


def test_a_namespace_with_numpy_scalars_is_read(tmp_path: Path) -> None:
    options = argparse.Namespace(**OPTIONS, best=np.float64(0.5), device=torch.device("cpu"))
    state = official_file(tmp_path / "model_best.ckpt", options)
    converted = convert(tmp_path / "model_best.ckpt")
    assert converted.about == {"source": "model_best.ckpt", "system": "qd_detr", "layout": "official"}
    assert torch.equal(converted.state["head.queries.anchors"], state["query_embed.weight"])


def test_lighthouse_s_options_are_read_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is written by a class named easydict.EasyDict, which is gone when it is read."""
    module = types.ModuleType("easydict")
    easydict = type("EasyDict", (dict,), {"__module__": "easydict"})
    module.EasyDict = easydict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "easydict", module)
    options = easydict(**OPTIONS, v_feat_types="clip")
    options.__dict__.update(options)  # as easydict keeps them, twice
    official_file(tmp_path / "best.ckpt", options)
    monkeypatch.delitem(sys.modules, "easydict")
    assert convert(tmp_path / "best.ckpt").about["layout"] == "lighthouse"


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "opt": Malicious()}, tmp_path / "bad.ckpt")
    with pytest.raises(BadCheckpoint, match=r"it asks for \S+, which is code, not data"):
        convert(tmp_path / "bad.ckpt")
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps({"model": Malicious()}))
    with pytest.raises(BadCheckpoint, match="cannot be loaded"):
        convert(tmp_path / "raw.ckpt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>sign in</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 107900000\n", "a pointer to a large file"),
        (b"PK\x03\x04 cut", "it ends too early"),
        (b"epoch: 3", "it is not what torch.save writes"),
    ],
)
def test_files_that_are_no_checkpoint(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=message) as caught:
        convert(path)
    assert "model.ckpt" in str(caught.value)


def test_a_missing_file_and_a_truncated_one(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="No such file"):
        convert(tmp_path / "none.ckpt")
    path = tmp_path / "cut.ckpt"
    official_file(path, argparse.Namespace(**OPTIONS))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(BadCheckpoint, match=r"cut\.ckpt"):
        convert(path)


def test_a_file_of_another_system_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    torch.save({"model": {"some.weight": torch.zeros(2)}}, path)
    with pytest.raises(BadCheckpoint, match=r"other\.ckpt: this is not a checkpoint of Moment-DETR's family"):
        convert(path)
