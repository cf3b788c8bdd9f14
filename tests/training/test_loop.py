import json

import pytest
import torch
from torch import nn

from momentdetr.errors import BadCheckpoint, BadInput
from momentdetr.training.checkpoint import CheckpointFolder
from momentdetr.training.config import LoopConfig, OptimizerConfig, ScheduleConfig
from momentdetr.training.loop import Task, TrainingDiverged, fit

OPTIMIZER = OptimizerConfig(learning_rate=1e-2, clip_norm=0.5)


class Points:
    """x and y of a plane; sample 3 may be poisoned."""

    def __init__(self, poison=0.0):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(12, 4, generator=generator)
        self.y = self.x @ torch.tensor([1.0, -2.0, 0.5, 0.0])
        self.x[3] += poison

    def __len__(self):
        return 12

    def batch(self, indices, *, seed, epoch):
        return {"x": self.x[list(indices)], "y": self.y[list(indices)], "names": [f"point{i}" for i in indices]}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))


def squared(model, batch, epoch):
    total = (model(batch["x"])[:, 0] - batch["y"]).square().mean()
    return total, {"squared": total}


def task(model, samples=None, **changes):
    values = {"loss": squared, "names": lambda batch: batch["names"], "config": {"a": 1}, **changes}
    return Task(model=model, samples=Points() if samples is None else samples, **values)


def run(folder, loop, the_task, schedule=ScheduleConfig(), optimizer=OPTIMIZER, **options):  # noqa: B008 - frozen
    return fit(the_task, loop, optimizer, schedule, folder, progress=False, **options)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_equals_a_loop_written_out(tmp_path):
    loop = LoopConfig(epochs=3, batch_size=5, seed=4)
    schedule = ScheduleConfig(kind="multistep", milestones=(1,), gamma=0.1)
    trained = run(tmp_path, loop, task(make_model()), schedule).model

    from momentdetr.training.order import epoch_batches, seed_step

    model, samples = make_model(), Points()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=OPTIMIZER.weight_decay)
    step = 0
    for epoch in range(3):
        for indices in epoch_batches(12, 5, 4, epoch):
            seed_step(4, step)
            optimizer.param_groups[0]["lr"] = 1e-2 if epoch < 1 else 1e-3
            optimizer.zero_grad()
            squared(model, samples.batch(indices, seed=4, epoch=epoch), epoch)[0].backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            step += 1
    for ours, oracle in zip(trained.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-6, atol=1e-7)


def test_learns_and_writes_metrics(tmp_path):
    scores = iter([{"error": 3.0, "odd": float("nan")}, {"error": 5.0}, {"error": 4.0}])
    result = run(
        tmp_path,
        LoopConfig(epochs=60, batch_size=6, evaluate_every=25, select_by="error", log_every=2),
        task(nn.Linear(4, 1), evaluate=lambda model: next(scores)),
        optimizer=OptimizerConfig(learning_rate=0.05, clip_norm=0),
    )
    assert result.steps == 120
    assert result.best_step == 100
    assert result.scores == {"error": 4.0}
    written = lines(tmp_path)
    losses = [line["loss"] for line in written if "loss" in line]
    assert len(losses) == 60
    assert losses[0] > 1
    assert losses[-1] < 0.01  # y is linear in x
    assert [line["scores"] for line in written if "scores" in line] == [{"error": 3.0}, {"error": 5.0}, {"error": 4.0}]
    assert CheckpointFolder(tmp_path / "checkpoints").steps() == [100, 118, 120]


def test_a_run_in_two_parts_equals_a_run_in_one(tmp_path):
    whole = LoopConfig(epochs=4, batch_size=5, ema_decay=0.8)
    one = run(tmp_path / "one", whole, task(make_model())).model

    class Interrupted(Exception):
        pass

    def stop_later(model, batch, epoch):
        if epoch == 2:
            raise Interrupted
        return squared(model, batch, epoch)

    with pytest.raises(Interrupted):
        run(tmp_path / "two", whole, task(make_model(), loss=stop_later))
    torch.manual_seed(77)  # whatever the global state is
    two = run(tmp_path / "two", whole, task(make_model()), resume=True)
    assert two.steps == 12
    for ours, oracle in zip(two.model.state_dict().values(), one.state_dict().values(), strict=True):
        assert torch.equal(ours, oracle)
    finished = run(tmp_path / "two", whole, task(make_model()), resume=True)  # nothing left to do
    assert finished.steps == 12


def snapshot(folder):
    folder = CheckpointFolder(folder / "checkpoints")
    return folder.load(folder.steps()[-1]).tensors


@pytest.mark.parametrize("kind", ["sample", "gradient"])
def test_a_poisoned_step_changes_nothing_and_names_the_samples(tmp_path, kind):
    """Without the poisoned steps, and with them, the weights are the same to the bit."""

    def poisoned(model, batch, epoch):
        total, terms = squared(model, batch, epoch)
        if kind == "gradient" and "point3" in batch["names"]:
            total = total + (model[0].weight * 0).sum().sqrt()  # 0, with an infinite gradient
        return total, terms

    class Skipped:
        """Weights before the poisoned steps, seen from inside."""

        before = None

    def loss(model, batch, epoch):
        if "point3" in batch["names"]:
            Skipped.before = {k: v.clone() for k, v in model.state_dict().items()}
        elif Skipped.before is not None:
            for name, value in model.state_dict().items():
                assert torch.equal(value, Skipped.before[name]), name
            Skipped.before = None
        return poisoned(model, batch, epoch)

    samples = Points(poison=float("nan") if kind == "sample" else 0.0)
    loop = LoopConfig(epochs=3, batch_size=4, ema_decay=0.5, log_every=1)
    result = run(tmp_path, loop, task(make_model(), samples, loss=loss))
    assert result.skipped == 3  # once an epoch
    events = [line for line in lines(tmp_path) if line.get("event") == "step skipped"]
    assert len(events) == 3
    assert all("point3" in event["samples"] and len(event["samples"]) == 4 for event in events)
    expected = "loss term 'squared'" if kind == "sample" else "gradient of '0.weight'"
    assert {event["not_finite"] for event in events} == {expected}
    assert all(tensor.isfinite().all() for part in snapshot(tmp_path).values() for tensor in part.values())
    counts = {k: int(v) for k, v in snapshot(tmp_path)["optimizer"].items() if k.startswith("step/")}
    assert set(counts.values()) == {6}  # of nine steps


def test_stops_after_too_many_skipped_steps_in_a_row(tmp_path):
    def diverged(model, batch, epoch):
        total, terms = squared(model, batch, epoch)
        return (total * float("nan"), terms) if epoch >= 1 else (total, terms)

    loop = LoopConfig(epochs=9, batch_size=6, max_skipped=3)
    with pytest.raises(TrainingDiverged) as caught:
        run(tmp_path, loop, task(make_model(), loss=diverged))
    text = str(caught.value)
    assert "diverged at step 5" in text
    assert "3 steps in a row" in text
    assert "step-00000004" in text
    assert "point" in text
    for tensor in snapshot(tmp_path)["model"].values():
        assert tensor.isfinite().all()


def test_gradients_are_clipped_to_the_norm(tmp_path):
    seen = []

    model = make_model()
    original = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        seen.append(float(nn.utils.get_total_norm([p.grad for p in model.parameters()])))
        return original(self, *args, **kwargs)

    torch.optim.AdamW.step = step
    try:
        run(tmp_path, LoopConfig(epochs=2, batch_size=6, log_every=1), task(model))
    finally:
        torch.optim.AdamW.step = original
    norms = [line["grad_norm"] for line in lines(tmp_path)]
    assert any(norm > 0.5 for norm in norms)
    assert seen == pytest.approx([min(norm, 0.5) for norm in norms], rel=1e-4)


def test_max_steps_ends_within_an_epoch(tmp_path):
    result = run(tmp_path, LoopConfig(epochs=5, batch_size=5, max_steps=4), task(make_model()))
    assert result.steps == 4
    assert CheckpointFolder(tmp_path / "checkpoints").steps() == [3, 4]


def test_bf16_trains_in_float32_weights(tmp_path):
    seen = []

    def loss(model, batch, epoch):
        seen.append(model[0](batch["x"]).dtype)
        return squared(model, batch, epoch)

    result = run(tmp_path, LoopConfig(epochs=1, precision="bf16"), task(make_model(), loss=loss))
    assert seen == [torch.bfloat16]
    assert {parameter.dtype for parameter in result.model.parameters()} == {torch.float32}


def test_the_global_generator_is_left_alone(tmp_path):
    torch.manual_seed(3)
    the_task = task(make_model())
    before = torch.get_rng_state()
    run(tmp_path, LoopConfig(epochs=1), the_task)
    assert torch.equal(before, torch.get_rng_state())


def test_refusals(tmp_path):
    loop = LoopConfig(epochs=1)
    run(tmp_path, loop, task(make_model()))
    with pytest.raises(BadInput, match="already holds a training run"):
        run(tmp_path, loop, task(make_model()))
    with pytest.raises(BadInput, match=r"was trained with a = 1, now it is 2"):
        run(tmp_path, loop, task(make_model(), config={"a": 2}), resume=True)
    with pytest.raises(BadCheckpoint, match="does not fit the model"):
        run(tmp_path, loop, task(nn.Linear(4, 1)), resume=True)
    with pytest.raises(BadCheckpoint, match="averaged in the checkpoint or"):
        run(tmp_path, LoopConfig(epochs=1, ema_decay=0.5), task(make_model()), resume=True)
    evaluated = task(make_model(), evaluate=lambda model: {"MR-mAP": 1.0})
    with pytest.raises(BadInput, match="select_by is 'mAP', but the evaluation gives"):
        run(tmp_path / "other", LoopConfig(epochs=1, select_by="mAP"), evaluated)


def test_no_samples(tmp_path):
    class Empty(Points):
        def __len__(self):
            return 0

    with pytest.raises(BadInput, match="no samples"):
        run(tmp_path, LoopConfig(), task(make_model(), Empty()))


def test_resuming_passes_over_a_damaged_checkpoint_and_says_so(tmp_path):
    loop = LoopConfig(epochs=3, batch_size=6)
    whole = run(tmp_path / "whole", loop, task(make_model())).model
    run(tmp_path / "hurt", loop, task(make_model()))
    weights = tmp_path / "hurt/checkpoints/step-00000006/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 64
    weights.write_bytes(data)
    result = run(tmp_path / "hurt", loop, task(make_model()), resume=True)
    assert len(result.problems) == 1
    assert "step-00000006" in result.problems[0]
    assert any(line.get("event") == "damaged checkpoint passed over" for line in lines(tmp_path / "hurt"))
    for ours, oracle in zip(result.model.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, oracle)
