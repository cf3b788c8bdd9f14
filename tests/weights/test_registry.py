"""The table of published models is complete and consistent."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from momentdetr.errors import BadInput
from momentdetr.weights import REGISTRY, HubSource, UrlSource
from momentdetr.weights.registry import card


def test_every_entry_says_what_a_user_must_know() -> None:
    for name, model in REGISTRY.items():
        assert model.name == name
        assert model.what.endswith(".")
        assert model.clip_length_s == 2.0
        assert model.open_clip_model == "ViT-B-32-quickgelu"
        assert model.streams == ("clip",)
        assert model.published or model.retriever is None
        for file in model.files:
            assert file.licence
            assert file.about_bytes


def test_sources_and_digests_are_well_formed() -> None:
    for model in REGISTRY.values():
        for file in model.files:
            if isinstance(file.source, HubSource):
                assert re.fullmatch(r"[0-9a-f]{40}", file.source.revision)
            else:
                assert isinstance(file.source, UrlSource)
                assert file.source.url.startswith("https://")
                assert file.source.url.endswith("/" + file.filename)
            assert (file.sha256 is None) == (file.digest_source is None)
            assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)


def test_no_two_files_share_a_place() -> None:
    places = [(file.source, file.filename) for model in REGISTRY.values() for file in model.files]
    folders = {
        (source.repo if isinstance(source, HubSource) else source.folder, filename) for source, filename in places
    }
    assert len(folders) == len(set(places))


def test_a_misspelt_name_offers_the_closest() -> None:
    with pytest.raises(BadInput, match="Did you mean 'qd-detr-clip'"):
        card("qd-detr-clp")


def test_importing_the_table_is_light() -> None:
    code = (
        "import sys, momentdetr.weights; print([m for m in ('torch', 'huggingface_hub', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
