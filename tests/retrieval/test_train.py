import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from momentdetr.datasets.predictions import read_predictions
from momentdetr.datasets.qvhighlights import to_qvhighlights
from momentdetr.errors import BadInput
from momentdetr.evaluation.moments import evaluate_moments
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval.checkpoint import load
from momentdetr.retrieval.generated import generate
from momentdetr.retrieval.train import train

DEBUG = Path(__file__).parents[2] / "configs" / "retrieval" / "debug.yaml"


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def debug_spec():
    return FeatureSpec.from_dict(yaml.safe_load(DEBUG.read_text())["features"])


def write_world(folder, spec, counts=(24, 8)):
    """The generated world as the files that a run reads."""
    worlds = [generate(count, spec, seed) for seed, count in enumerate(counts, start=1)]
    videos, texts = {}, {}
    for name, world, shift in zip(("train", "val"), worlds, (0, 1000), strict=True):
        lines = []
        for record in world.records:
            line = to_qvhighlights(record)
            line["qid"], line["vid"] = record.qid + shift, f"{name}_{record.video}"
            videos[line["vid"]] = world.videos[record.video].half()
            texts[str(line["qid"])] = world.texts[str(record.qid)].half()
            lines.append(json.dumps(line) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))
    save_file(videos, folder / "video.safetensors")
    save_file(texts, folder / "text.safetensors")
    (folder / "features.json").write_text(json.dumps(spec.to_dict()))
    data = {name: str(folder / f"{name}.jsonl") for name in ("train", "val")}
    data |= {name: str(folder / f"{name}.safetensors") for name in ("video", "text")}
    return {**yaml.safe_load(DEBUG.read_text()), "data": data, "features": str(folder / "features.json")}


def test_the_debug_configuration_trains_three_steps_and_writes_a_retriever(tmp_path):
    folder = train(DEBUG, ["about.licence=none"], tmp_path / "run", progress=False)
    assert folder == tmp_path / "run" / "retriever"
    steps = [line["step"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert steps == [1, 2, 3]
    model, spec = load(folder)
    assert spec == debug_spec()
    assert json.loads((folder / "config.json").read_text())["about"] == {"licence": "none"}
    world = generate(6, spec, 2)
    predictions = read_predictions(tmp_path / "run" / "val_predictions.jsonl")
    assert [prediction.qid for prediction in predictions] == [record.qid for record in world.records]
    written = json.loads((tmp_path / "run" / "val_scores.json").read_text())
    again = evaluate_moments(predictions, world.records).to_dict()
    assert written["brief"] == pytest.approx(again["brief"], abs=0.5)  # windows are written with four decimals
    assert not model.training


def test_a_resumed_run_writes_the_same_weights(tmp_path):
    overrides = ["training.epochs=2", "training.max_steps=null"]
    whole = train(DEBUG, overrides, tmp_path / "whole", progress=False)
    import momentdetr.retrieval.train as module

    calls, original = 0, module._loss

    def stop_in_the_second_epoch(model, batch, epoch):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return original(model, batch, epoch)

    module._loss = stop_in_the_second_epoch
    try:
        with pytest.raises(KeyboardInterrupt):
            train(DEBUG, overrides, tmp_path / "parts", progress=False)
    finally:
        module._loss = original
    parts = train(DEBUG, overrides, tmp_path / "parts", resume=True, progress=False)
    first, second = (load(folder)[0].state_dict() for folder in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_reads_annotations_and_features_from_files(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(write_world(tmp_path, debug_spec())))
    folder = train(config, [], tmp_path / "run", progress=False)
    scores = json.loads((tmp_path / "run" / "val_scores.json").read_text())
    assert 0 <= scores["absent-AUROC"] <= 1  # one of the eight is not in its video
    assert load(folder)[1] == debug_spec()


def test_begins_with_given_weights_and_refuses_those_that_do_not_fit(tmp_path):
    own = load(train(DEBUG, [], tmp_path / "own", progress=False))[0].state_dict()
    name, still = "encoder.text_projection.linears.0.weight", ["optimizer.learning_rate=1e-30", "training.max_steps=1"]
    save_file({name: torch.full_like(own[name], 0.5)}, tmp_path / "initial.safetensors")
    override = f"initial={tmp_path / 'initial.safetensors'}"
    begun = load(train(DEBUG, [override, *still], tmp_path / "begun", progress=False))[0].state_dict()
    torch.testing.assert_close(begun[name], torch.full_like(own[name], 0.5))
    save_file({name: torch.zeros(3)}, tmp_path / "initial.safetensors")
    with pytest.raises(BadInput, match=r"text_projection.linears.0.weight \(3,\), expected \("):
        train(DEBUG, [override], tmp_path / "wrong", progress=False)
    save_file({"else": torch.zeros(3)}, tmp_path / "initial.safetensors")
    with pytest.raises(BadInput, match=r"else .* expected a name of the model"):
        train(DEBUG, [override], tmp_path / "wrong", progress=False)
    (tmp_path / "initial.safetensors").write_bytes(b"no")
    with pytest.raises(BadInput, match="cannot be read as safetensors"):
        train(DEBUG, [override], tmp_path / "wrong", progress=False)


def test_reads_published_folders(tmp_path):
    spec = debug_spec()
    values = write_world(tmp_path, spec)
    for folder, pattern, key, source in (
        ("clip_features", "{}", "features", "video"),
        ("clip_text_features", "qid{}", "last_hidden_state", "text"),
    ):
        (tmp_path / folder).mkdir()
        from safetensors.numpy import load_file

        for name, array in load_file(tmp_path / f"{source}.safetensors").items():
            np.savez(tmp_path / folder / f"{pattern.format(name)}.npz", **{key: array})
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    by_file = train(config, [], tmp_path / "one", progress=False)
    del values["data"]["video"], values["data"]["text"]
    values["data"] |= {"root": str(tmp_path), "layout": "moment_detr_clip"}
    config.write_text(yaml.safe_dump(values))
    by_folder = train(config, [], tmp_path / "two", progress=False)
    first, second = (load(folder)[0].state_dict() for folder in (by_file, by_folder))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_learns_the_generated_world(tmp_path):
    """Untrained, the same model finds nothing: R1@0.5 below 10."""
    overrides = [
        "data.generated=512",
        "features.video=[{name: clip, dim: 8, model: generated}]",
        "features.text={name: clip_text, dim: 8, model: generated}",
        "features.max_clips=12",
        "training={epochs: 16, batch_size: 32, evaluate_every: 0, checkpoint_every: 16}",
        "optimizer.learning_rate=2e-3",
        "model.sizes={width: 32, num_heads: 4, feed_forward: 64, dropout: 0, input_dropout: 0, num_queries: 5}",
    ]
    train(DEBUG, overrides, tmp_path, progress=False)
    scores = json.loads((tmp_path / "val_scores.json").read_text())
    assert scores["brief"]["MR-full-R1@0.5"] > 50
    assert scores["brief"]["HL-min-Fair-Hit1"] > 60
    assert scores["absent-AUROC"] > 0.6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.sizes.video_dim=7", "model.sizes.video_dim is 7, but the features have 34"),
        ("model.preset=qd_dert", "unknown preset 'qd_dert'"),
        ("model.sizes.widht=3", "widht"),
        ("features.clip_length=2", "clip_length"),
        ("features=none.json", "none.json cannot be read"),
        ("data={}", "needs 'train' and either 'video' and 'text'"),
        ("data={train: a, video: b, text: c, root: d}", "give one pair"),
        ("device=abacus", "device 'abacus' is not usable"),
        ("training.epoch=3", "did you mean 'epochs'?"),
        ("dat={}", "unknown key 'dat'; did you mean 'data'?"),
    ],
)
def test_faulty_configurations_are_refused_before_anything_is_written(tmp_path, override, message):
    with pytest.raises(BadInput) as caught:
        train(DEBUG, [override], tmp_path / "run", progress=False)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_missing_features_are_named(tmp_path):
    values = write_world(tmp_path, debug_spec())
    save_file({"nothing": torch.zeros(1, 24)}, values["data"]["text"])
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    with pytest.raises(BadInput) as caught:
        train(config, [], tmp_path / "run", progress=False)
    assert "24 features cannot be used" in str(caught.value)
    assert "query '0': there are no features" in str(caught.value)
