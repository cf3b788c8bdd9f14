"""Oracle: a model of ours written as an official checkpoint, scored without the detour over files and mirrors."""

from __future__ import annotations

import argparse
import re
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import reproduce
import torch
from simulated import simulate

from momentdetr.datasets.predictions import MomentPrediction
from momentdetr.datasets.qvhighlights import read_qvhighlights
from momentdetr.evaluation.moments import evaluate_moments
from momentdetr.retrieval.convert import convert
from momentdetr.retrieval.layouts.table import LAYOUTS
from momentdetr.retrieval.predicting import predict_dataset
from momentdetr.retrieval.presets import build
from momentdetr.weights import REGISTRY

NAME = "lighthouse-moment-detr-clip"


def official_file(path: Path) -> None:
    """A checkpoint of Moment-DETR in its author's names, with random weights."""
    torch.manual_seed(0)
    sizes = {"video_dim": 514, "text_dim": 512, "width": 32, "num_heads": 8, "feed_forward": 32}
    state = LAYOUTS["moment_detr"].to_official(build({"preset": "moment_detr", "sizes": sizes}).state_dict())
    path.parent.mkdir(parents=True)
    options = {"nheads": 8, "dropout": 0.1, "input_dropout": 0.5, "max_v_l": 75, "max_q_l": 32, "clip_length": 2}
    torch.save({"model": state, "opt": argparse.Namespace(**options, v_feat_types="clip", ctx_mode="video_tef")}, path)


@pytest.fixture(scope="module")
def mirror(annotations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, made = tmp_path_factory.mktemp("mirror"), tmp_path_factory.mktemp("made")
    simulate(annotations, made, train=2, val=12, seed=0)
    (folder / reproduce.ANNOTATIONS).write_bytes((made / "val.jsonl").read_bytes())
    with tarfile.open(folder / reproduce.ARCHIVE, "w:gz") as archive:
        for name in ("clip_features", "clip_text_features"):
            archive.add(made / name, f"features/{name}")
    retriever = REGISTRY[NAME].retriever
    assert retriever is not None
    official_file(folder / NAME / retriever.filename)
    return folder


@pytest.fixture
def address(mirror: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(mirror)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def expected(mirror: Path) -> dict[str, float]:
    records = read_qvhighlights(mirror / reproduce.ANNOTATIONS)
    converted = convert(next((mirror / NAME).iterdir()))
    features = reproduce.unpacked(mirror / reproduce.ARCHIVE)
    data = reproduce.dataset(records, features, converted.spec)
    said, _ = predict_dataset(converted.model().eval(), data, batch_size=4)
    return evaluate_moments([reproduce.to_clips(one, 2.0) for one in said], records).brief


@pytest.mark.parametrize("kind", ["folder", "file", "http"])
def test_published_beside_ours(
    kind: str, mirror: Path, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"folder": str(mirror), "file": mirror.as_uri(), "http": address}[kind]
    arguments = ["--mirror", base, "--cache", str(tmp_path), "--models", NAME]
    assert reproduce.main(arguments) == 0
    first = capsys.readouterr()
    brief = expected(mirror)
    assert f"| {NAME} | R1@0.5 | 53.50 | {brief['MR-full-R1@0.5']:.2f} |" in first.out
    assert f"| {NAME} | R1@0.7 | 34.10 | {brief['MR-full-R1@0.7']:.2f} |" in first.out
    assert reproduce.main(arguments) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "fetching" not in again.err


def test_a_file_that_has_changed_is_refused(mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--mirror", str(mirror), "--cache", str(tmp_path), "--models", NAME]
    assert reproduce.main(arguments) == 0
    checkpoint = next(path for path in (tmp_path / NAME).iterdir() if path.suffix == ".ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes() + b"x")
    assert reproduce.main(arguments) == 2
    assert re.search(r"sha256 is \w{64}, expected \w{64}", capsys.readouterr().err)


def test_what_the_mirror_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["--mirror", str(tmp_path), "--cache", str(tmp_path / "cache")]) == 2
    assert f"{reproduce.ANNOTATIONS}: no such file in the mirror" in capsys.readouterr().err


def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil").write_text("x", "utf-8")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "evil", "../../evil")
    with pytest.raises(reproduce.BadInput, match="cannot be unpacked"):
        reproduce.unpacked(tmp_path / "a.tar.gz")


def test_every_published_retriever_has_figures_to_compare() -> None:
    found = {name: reproduce.published(card) for name, card in REGISTRY.items() if card.retriever is not None}
    assert all({"R1@0.5", "R1@0.7"} <= set(figures) for figures in found.values())
    assert found["qd-detr-clip"] == {"R1@0.5": 60.58, "R1@0.7": 43.35, "mAP": 38.66}


def test_windows_end_where_clips_end() -> None:
    said = MomentPrediction(1, ((0.9, 7.1, 0.5), (3.0, 5.0, 0.4)), None)
    # Half-way goes to the even clip, as torch's rounding does.
    assert reproduce.to_clips(said, 2.0).windows == ((0.0, 8.0, 0.5), (4.0, 4.0, 0.4))


def test_the_digest_is_that_of_the_official_annotations(shared_data: Path) -> None:
    path = shared_data / "annotations" / "qvhighlights" / reproduce.ANNOTATIONS
    assert reproduce.content_hash(path) == reproduce.ANNOTATIONS_SHA256
