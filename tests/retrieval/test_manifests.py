"""data/NAME: every data set has a README and a manifest, and they tell the truth about the released annotations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from momentdetr.datasets.catalog import DATASETS
from momentdetr.features.layouts import LAYOUTS
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval.data_check import Manifest, check_data
from momentdetr.training.config import parse_config

FOLDER = Path(__file__).parents[2] / "data"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/manifest.json"))
SHARED = {"charades": "charades_sta", "activitynet": "activitynet_captions", "youtube": "youtube_highlights"}


def manifest_of(name: str) -> Manifest:
    return parse_config(Manifest, json.loads((FOLDER / name / "manifest.json").read_text("utf-8")), name)


def test_every_data_set_has_its_folder() -> None:
    assert set(NAMES) == set(DATASETS) - {"qvhighlights_asr"}  # whose folder is QVHighlights'
    assert all(manifest_of(name).dataset == name for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_manifest_and_readme_agree(name: str) -> None:
    manifest = manifest_of(name)
    text = (FOLDER / name / "README.md").read_text("utf-8")
    for split in manifest.splits.values():
        assert (
            split.file.split("/")[-1].replace("_train_", "_{train,val}_") in text or split.file.split("/")[-1] in text
        )
        for count in (split.queries, split.videos):
            assert count is None or f"{count:,}" in text
    for heading in ("## Layout", "## Check", "## Not verified", "Licence:"):
        assert heading in text
    assert manifest.unverified
    for features in manifest.features.values():
        spec = FeatureSpec.from_dict(features.spec)
        assert len(LAYOUTS[features.layout].video) == len(spec.video)
    published = {split: size for split, size in DATASETS[name].queries.items() if split in manifest.splits}
    assert {split: manifest.splits[split].queries for split in published} == published
    assert published


@pytest.mark.parametrize("name", NAMES)
def test_the_released_annotations_are_those_of_the_manifest(name: str, shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes((FOLDER / name / "manifest.json").read_bytes())
    (tmp_path / "annotations").symlink_to(shared_data / "annotations" / SHARED.get(name, name))
    report = check_data(tmp_path)
    assert report.faults == ["there are no features; the README of the folder says where they come from"]
    absent = ["annotations that are not there: train"] if name == "activitynet" else []
    assert report.remarks == absent  # neither another size nor another digest
