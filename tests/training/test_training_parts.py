"""What a step is shared into: processes, parts in time, workers; and what ends a run early."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from momentdetr.errors import BadInput, OutOfResources
from momentdetr.training.config import LoopConfig, OptimizerConfig, ScheduleConfig
from momentdetr.training.loading import Key, batches
from momentdetr.training.loop import fit
from momentdetr.training.optimizer import learning_rate_scale
from momentdetr.training.order import parts_of, seed_step
from momentdetr.training.task import Task
from momentdetr.training.trackers import Trackers


class Numbers:
    """Ten numbers; reading sample `bad` fails, sample `fatal` kills the reader."""

    def __init__(self, bad=None, fatal=None):
        self.bad, self.fatal = bad, fatal

    def __len__(self):
        return 10

    def batch(self, indices, *, seed, epoch):
        if self.bad in indices:
            raise BadInput(f"sample {self.bad} is broken")
        if self.fatal in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor([float(index + 100 * epoch + 1000 * seed) for index in indices])


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(3.0))


def square(model, batch, epoch):
    total = (model.slope * batch / 10).square().mean()
    return total, {"square": total}


def run(folder, loop, loss=square, **changes):
    task = Task(
        model=Line(), samples=Numbers(), loss=loss, names=lambda batch: [str(x) for x in batch.tolist()], **changes
    )
    return fit(task, loop, OptimizerConfig(learning_rate=0.01), ScheduleConfig(), folder, progress=False)


def lines(folder):
    return [json.loads(text) for text in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def test_parts_hold_everything_once_and_are_as_equal_as_can_be():
    for length in range(3, 12):
        parts = parts_of(list(range(length)), 3)
        assert [index for part in parts for index in part] == list(range(length))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_each_part_of_a_step_draws_its_own_numbers():
    drawn = []
    for part in (0, 1, 0):
        seed_step(3, 7, part)
        drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[2] != drawn[1]
    seed_step(3, 7)
    assert float(torch.rand(())) == drawn[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_whoever_makes_them(workers):
    keys = [Key((i, i + 1), epoch) for epoch in range(2) for i in range(5)]
    state = torch.get_rng_state()
    found = [batch.tolist() for batch in batches(Numbers(), keys, 4, workers)]
    assert found == [[4000.0 + 100 * key.epoch + i for i in key.indices] for key in keys]
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn from the global generator


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_sample_comes_home_as_it_is(workers):
    with pytest.raises(BadInput, match=r"^sample 3 is broken$"):
        list(batches(Numbers(bad=3), [Key((1,), 0), Key((3,), 0)], 0, workers))


def test_a_worker_that_dies_is_told_of():
    with pytest.raises(OutOfResources, match="a process that reads data died"):
        list(batches(Numbers(fatal=2), [Key((1,), 0), Key((2,), 0)], 0, 1))


def test_parts_in_time_are_the_mean_of_their_losses(tmp_path):
    whole = run(tmp_path / "whole", LoopConfig(epochs=1, batch_size=10, log_every=1)).model
    parts = run(tmp_path / "parts", LoopConfig(epochs=1, batch_size=10, log_every=1, accumulate=2)).model
    assert lines(tmp_path / "parts")[0]["loss"] == pytest.approx(lines(tmp_path / "whole")[0]["loss"])
    assert float(parts.slope.detach()) == pytest.approx(float(whole.slope.detach()))


def test_a_last_batch_with_too_few_samples_to_share_is_left_out(tmp_path):
    assert run(tmp_path / "one", LoopConfig(epochs=1, batch_size=3)).steps == 4
    assert run(tmp_path / "two", LoopConfig(epochs=1, batch_size=3, accumulate=2)).steps == 3
    with pytest.raises(BadInput, match="batch_size is 1, expected at least 2"):
        run(tmp_path / "three", LoopConfig(batch_size=1, accumulate=2))


def test_a_part_that_is_not_finite_skips_the_whole_step_and_is_named(tmp_path):
    def poisoned(model, batch, epoch):
        total, terms = square(model, batch, epoch)
        return (total * torch.nan if 4.0 in batch.tolist() else total), terms

    result = run(tmp_path, LoopConfig(epochs=1, batch_size=5, accumulate=2, log_every=1), poisoned)
    assert (result.steps, result.skipped) == (2, 1)
    (event,) = [line for line in lines(tmp_path) if "event" in line]
    assert "4.0" in event["samples"]
    assert len(event["samples"]) < 5  # the part, not the step


def test_a_run_without_progress_stops_and_is_not_resumed_further(tmp_path):
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    loop = LoopConfig(epochs=20, batch_size=5, select_by="s", patience=3)
    result = run(tmp_path, loop, evaluate=lambda model: {"s": next(scores)})
    assert (result.steps, result.best_step) == (10, 4)
    task = Task(model=Line(), samples=Numbers(), loss=square, names=list, evaluate=lambda model: {"s": 1.0})
    again = fit(task, loop, OptimizerConfig(), ScheduleConfig(), tmp_path, resume=True, progress=False)
    assert again.steps == 10


def test_a_run_of_so_much_time_stops_then_and_lowers_its_rate_by_it(tmp_path):
    def slow(model, batch, epoch):
        time.sleep(0.02)
        return square(model, batch, epoch)

    loop = LoopConfig(epochs=100000, batch_size=5, minutes=0.3 / 60, log_every=1)
    task = Task(model=Line(), samples=Numbers(), loss=slow, names=list)
    result = fit(task, loop, OptimizerConfig(), ScheduleConfig(kind="cosine"), tmp_path, progress=False)
    assert 2 <= result.steps <= 15
    rates = [line["learning_rate"] for line in lines(tmp_path)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.5 * rates[0]


def test_a_share_of_time_counts_where_it_is_further_than_the_steps():
    schedule = ScheduleConfig(kind="cosine")
    assert learning_rate_scale(schedule, 0, 10, 1000, done_share=0.5) == pytest.approx(0.5)
    assert learning_rate_scale(schedule, 500, 10, 1000, done_share=0.1) == pytest.approx(0.5)


def test_two_runs_cannot_write_into_one_folder(tmp_path):
    def second(model, batch, epoch):
        with pytest.raises(BadInput, match="another run is training"):
            run(tmp_path, LoopConfig(epochs=1))
        return square(model, batch, epoch)

    assert run(tmp_path, LoopConfig(epochs=1, batch_size=10), second).steps == 1


def test_trackers_get_the_metrics(tmp_path):
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path / "run", LoopConfig(epochs=2, batch_size=5, log_every=1, trackers=("tensorboard",)))
    (events,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*") if path.parent.name == "run"}
    reader = EventAccumulator(str(events))
    reader.Reload()
    told = [(event.step, event.value) for event in reader.Scalars("terms/square")]
    wanted = [(line["step"], pytest.approx(line["terms"]["square"], rel=1e-6)) for line in lines(tmp_path / "run")]
    assert told == wanted


def test_trackers_that_are_not_there_are_named(tmp_path):
    pytest.importorskip("accelerate")
    with pytest.raises(BadInput, match="not known to accelerate"):
        Trackers(["tensorbored"], tmp_path, {})
