"""Every file of configs/retrieval: it says what it is, its model can be built, and it learns on generated features."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from momentdetr.datasets.catalog import DATASETS, dataset
from momentdetr.evaluation.protocols import PROTOCOLS, protocol
from momentdetr.features.layouts import LAYOUTS
from momentdetr.retrieval.presets import PRESETS, build
from momentdetr.retrieval.train import RetrievalConfig, feature_spec, train
from momentdetr.training.config import load_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "retrieval"
OTHERS = {"demo_clip"}  # the demo's encoder, which is no retriever
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem not in OTHERS)
# MODEL_DATASET, or MODEL_DATASET_FEATURES: a published recipe.
PUBLISHED = [name for name in NAMES if any(f"_{known}_" in f"{name}_" for known in DATASETS)]
BRIEF_SCORES = {name for rules in PROTOCOLS.values() for name in rules.headline}


def config_of(name: str) -> RetrievalConfig:
    return load_config(RetrievalConfig, FOLDER / f"{name}.yaml")


def first_of_each_preset() -> list[str]:
    """One configuration a preset: those that every run of the tests trains."""
    found: dict[str, str] = {}
    for name in PUBLISHED:
        found.setdefault(config_of(name).model["preset"], name)
    return sorted(found.values())


def test_every_built_model_has_a_configuration_and_every_data_set_too() -> None:
    used = [config_of(name) for name in PUBLISHED]
    assert {config.data.dataset for config in used} == set(DATASETS)
    with_recipe = {"moment_detr", "qd_detr", "cg_detr", "tr_detr", "taskweave", "bam_detr", "r2_tuning", "flashvtg"}
    assert {config.model["preset"] for config in used} >= with_recipe | {"uvcom", "eatr"}
    assert {config.model["preset"] for config in used} <= set(PRESETS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_heading_tells_command_figure_recipe_and_cost(name: str) -> None:
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    heading = [line for line in lines if line.startswith("#")]
    assert lines[: len(heading)] == heading
    text = " ".join(line.lstrip("# ") for line in heading)
    assert f"momentdetr train configs/retrieval/{name}.yaml --output runs/{name}" in text
    assert "Published: " in text
    assert "Not run here." in text
    assert "Recipe: " in text
    assert "Cost: " in text


@pytest.mark.parametrize("name", PUBLISHED)
def test_features_splits_and_scores_fit_the_data_set(name: str) -> None:
    config = config_of(name)
    data, spec = config.data, feature_spec(config.features)
    known = dataset(data.dataset)
    assert data.layout is not None
    assert len(LAYOUTS[data.layout].video) == len(spec.video)
    files = [file for file in (data.train, data.val, data.test) if file]
    assert len(set(files)) == len(files)
    assert data.val is None or "test" not in data.val
    assert bool(known.domains) == (data.domain is not None)
    select = config.training.select_by
    if select is None:
        assert protocol(known.protocol).judges == "clips"
    else:
        assert select in BRIEF_SCORES & set(protocol(known.protocol).headline)
        assert data.val or data.hold_out
    for file in filter(None, [*files, data.root]):
        assert file.startswith(f"data/{data.dataset.removesuffix('_asr')}/")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_manifest_names_the_same_files_and_features(name: str) -> None:
    data = config_of(name).data
    folder = ROOT / "data" / data.dataset.removesuffix("_asr")
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {f"data/{folder.name}/{split['file']}" for split in manifest["splits"].values()}
    for file in filter(None, (data.train, data.val, data.test)):
        assert file in files or data.dataset.endswith("_asr")
    if data.dataset.endswith("_asr"):  # whose queries are not those of the manifest's splits
        return
    said = {features["layout"]: feature_spec(features["spec"]) for features in manifest["features"].values()}
    assert data.layout in said
    spec, other = feature_spec(config_of(name).features), said[data.layout]
    assert [stream.dim for stream in spec.video] == [stream.dim for stream in other.video]
    assert (spec.text_dim, spec.clip_length_s, spec.max_clips) == (other.text_dim, other.clip_length_s, other.max_clips)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_built(name: str) -> None:
    config = config_of(name)
    if isinstance(config.features, str):
        return  # made by a command
    spec = feature_spec(config.features)
    sizes = {**config.model.get("sizes", {}), "video_dim": spec.video_dim, "text_dim": spec.text_dim}
    model = build({**config.model, "sizes": sizes})
    assert sum(parameter.numel() for parameter in model.parameters()) > 10_000


def small(features: dict[str, Any]) -> dict[str, Any]:
    """The same streams with short vectors; those that hold layers and patches keep their number."""
    many = any(stream["dim"] == 153_600 for stream in features["video"])
    video = [{**stream, "dim": 400 if many else 6} for stream in features["video"]]
    return {**features, "video": video, "text": {**features["text"], "dim": 8}, "max_clips": 16, "max_words": 8}


def trains(name: str, folder: Path) -> None:
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    values["features"] = small(values["features"])
    values["data"]["generated"] = 12
    values["model"]["sizes"] = {**values["model"].get("sizes", {}), "width": 32, "feed_forward": 32}
    values["training"] |= {"batch_size": 4, "epochs": 1, "max_steps": 3, "log_every": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(folder / "config.yaml", ["device=cpu"], folder / "run", progress=False)
    losses = [json.loads(line).get("loss") for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(loss is not None for loss in losses) == 3
    scores = json.loads((folder / "run" / "val_scores.json").read_text())
    expected = "mAP" if protocol(dataset(values["data"]["dataset"]).protocol).judges == "clips" else "MR-full-mAP"
    assert expected in scores["brief"]


@pytest.mark.parametrize("name", first_of_each_preset())
def test_each_preset_trains_three_steps(name: str, tmp_path: Path) -> None:
    trains(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in first_of_each_preset()])
def test_the_others_train_three_steps(name: str, tmp_path: Path) -> None:
    trains(name, tmp_path)
