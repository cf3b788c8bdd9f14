"""The whole way of real weights, walked with files of the official format and full size."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import official_files
import pytest

from momentdetr import weights
from momentdetr.weights import REGISTRY, Home, ModelCard, UrlSource


@pytest.mark.parametrize(
    ("shapes", "recorded", "count"),
    [
        (official_files.moment_detr_shapes(), "moment_detr_qvhl", 4_228_873),
        (official_files.qd_detr_shapes(), "qd_detr_onlyclip_qvhl", 6_991_141),
    ],
    ids=["moment_detr", "qd_detr"],
)
class TestLayouts:
    def test_count(self, shapes: official_files.Shapes, recorded: str, count: int) -> None:
        assert sum(math.prod(shape) for shape in shapes.values()) == count

    def test_names_and_shapes(self, shapes: official_files.Shapes, recorded: str, count: int, goldens: Path) -> None:
        known = json.loads((goldens / "fullsize" / f"{recorded}.json").read_text())["keys"]
        assert shapes == {name: tuple(shape) for name, (shape, _) in known.items()}


def _serve(server: Any, name: str, encoder: bytes, retriever: bytes) -> dict[str, ModelCard]:
    """The registry's own entry with its addresses moved to `server`; digests are those of the served bytes."""
    card = REGISTRY[name]
    assert card.retriever is not None
    source = card.encoder.source
    server.add(f"/{source.repo}/resolve/{source.revision}/{card.encoder.filename}", encoder)
    url = server.add(f"/{card.retriever.filename}", retriever)
    digest = hashlib.sha256(encoder).hexdigest()
    moved = replace(
        card,
        encoder=replace(card.encoder, sha256=digest, size=len(encoder)),
        retriever=replace(card.retriever, source=UrlSource(url, card.retriever.source.folder), sha256=None),
    )
    return {name: moved}


@pytest.fixture(scope="module")
def clip_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "open_clip_model.safetensors"
    official_files.write_clip(path, REGISTRY["clip-vit-b-32"].open_clip_model)
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shapes", "write"),
    [
        ("qd-detr-clip", official_files.qd_detr_shapes(), official_files.write_official),
        ("moment-detr-clip", official_files.moment_detr_shapes(), official_files.write_official),
        ("lighthouse-qd-detr-clip", official_files.qd_detr_shapes(), official_files.write_lighthouse),
    ],
    ids=["qd-detr", "moment-detr", "lighthouse"],
)
def test_full_size_files_are_pulled_and_verified(
    server: Any, home: Home, tmp_path: Path, clip_bytes: bytes, name: str, shapes: official_files.Shapes, write: Any
) -> None:
    write(tmp_path / "model_best.ckpt", official_files.random_state(shapes, seed=0))
    checkpoint = (tmp_path / "model_best.ckpt").read_bytes()
    registry = _serve(server, name, clip_bytes, checkpoint)
    server.pages[next(iter(server.pages))].cut_after = [400_000_000]
    model = weights.pull(name, registry=registry, home=home)
    assert model.encoder.stat().st_size == len(clip_bytes)
    assert model.retriever is not None
    assert model.retriever.read_bytes() == checkpoint
    assert weights.verify(name, registry=registry, home=home).ready
    assert weights.resolve(name, registry=registry, home=replace(home, offline=True)) == model
    # What the registry says of the sizes before anything was downloaded, against what such a file weighs.
    assert model.card.encoder.about_bytes == pytest.approx(len(clip_bytes), rel=0.01)
    _search(model, tmp_path / "generated.mp4")


def _search(model: weights.ResolvedModel, video: Path) -> None:
    """Load what was pulled and ask it; random weights find nothing in particular, but all of it must fit together."""
    from momentdetr.features.video_write import write_video
    from momentdetr.search.loading import load

    write_video(video, (np.full((96, 128, 3), 10 * i % 256, np.uint8) for i in range(50)), 5)
    assert model.retriever is not None
    retriever = load(model.retriever, device="cpu", encoder=model.encoder, cache=False)
    assert retriever.spec.video[0].model == f"open_clip:{model.card.open_clip_model}"
    assert retriever.spec.clip_length_s == model.card.clip_length_s
    assert tuple(stream.name for stream in retriever.spec.video) == model.card.streams
    encoded = retriever.encode(video)
    assert encoded.features.shape == (5, 512)
    result = retriever.search(encoded, ["a dog runs", "nothing happens"], top_k=3)
    assert [len(answer.saliency) for answer in result] == [5, 5]
    for answer in result:
        assert 1 <= len(answer.moments) <= 3
        for moment in answer.moments:
            assert 0.0 <= moment.start_s < moment.end_s <= encoded.duration_s
            assert 0.0 < moment.score < 1.0
    # A model that ignored its input would answer both alike.
    assert result[0].saliency != result[1].saliency


@pytest.mark.slow
def test_the_plain_activation_is_never_asked_for() -> None:
    open_clip = pytest.importorskip("open_clip")
    for model in REGISTRY.values():
        assert open_clip.get_model_config(model.open_clip_model)["quick_gelu"] is True
