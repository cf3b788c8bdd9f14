"""Runs a tiny training many times, kills each run at one operation (SIGKILL), resumes it, and prints what came out.

    python killed_runs.py FOLDER SEED COUNT

prints {"operations": how many there are, "whole": digest of a run that was not killed, "killed": {operation: digest}}.
An operation is reading a batch, the loss, backward, the optimizer's step, or any part of writing a checkpoint or a line
of metrics; files are also left half-written and folders half-removed.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from momentdetr.training import checkpoint, loop, metrics
from momentdetr.training.config import LoopConfig, OptimizerConfig, ScheduleConfig

torch.set_num_threads(1)


class Points:
    """Counts operations, and kills the process at one of them."""

    def __init__(self, fatal):
        self.count, self.fatal = 0, fatal

    def reach(self):
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, function):
        def wrapped(*args, **kwargs):
            self.reach()
            return function(*args, **kwargs)

        return wrapped

    def write(self, function):
        def wrapped(path, data):
            self.reach()
            path.write_bytes(data[: len(data) // 2])
            self.reach()
            function(path, data)

        return wrapped

    def remove(self, function):
        def wrapped(path, *args, **kwargs):
            self.reach()
            inside = sorted(Path(path).iterdir())
            if inside:
                inside[0].unlink()
                self.reach()
            function(path, *args, **kwargs)

        return wrapped

    def note(self, function):
        def wrapped(file, values):
            with file._path.open("a") as half:
                half.write('{"step": 1')
                half.flush()
                self.reach()
                half.truncate(half.tell() - len('{"step": 1'))
            function(file, values)

        return wrapped

    def install(self):
        checkpoint._write = self.write(checkpoint._write)
        os.fsync, os.rename = self.before(os.fsync), self.before(os.rename)
        Path.rename = self.before(Path.rename)
        shutil.rmtree = self.remove(shutil.rmtree)
        torch.Tensor.backward = self.before(torch.Tensor.backward)
        torch.optim.AdamW.step = self.before(torch.optim.AdamW.step)
        metrics.MetricsFile.write = self.note(metrics.MetricsFile.write)


class Numbers:
    """Twenty samples; the batch depends on (indices, seed, epoch) only."""

    def __init__(self, points):
        self.points, self.x = points, torch.randn(20, 6, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.x)

    def batch(self, indices, *, seed, epoch):
        self.points.reach()
        noise = torch.randn(len(indices), 6, generator=torch.Generator().manual_seed(seed + 1000 * epoch + indices[0]))
        return self.x[list(indices)] + 0.1 * noise


def run(folder, fatal=0):
    """Train, or go on with the run in `folder`; returns the number of operations."""
    points = Points(fatal)
    points.install()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 6))

    def loss(network, batch, epoch):
        points.reach()
        total = (network(batch) - batch).square().mean()
        return total, {"square": total}

    task = loop.Task(
        model=model,
        samples=Numbers(points),
        loss=loss,
        names=lambda batch: [str(i) for i in range(len(batch))],
        evaluate=lambda network: {"score": -float(network(torch.ones(2, 6)).square().mean())},
        config={"kind": "test"},
    )
    loop.fit(
        task,
        LoopConfig(epochs=3, batch_size=6, ema_decay=0.9, checkpoint_steps=3, select_by="score", log_every=1),
        OptimizerConfig(learning_rate=1e-2),
        ScheduleConfig(kind="cosine", warmup_steps=2),
        folder,
        resume=True,
        progress=False,
    )
    return points.count


def digest(folder):
    """Of everything that a run leaves, times aside."""
    folder = Path(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    hashes = [json.dumps(lines, sort_keys=True)]
    for path in sorted((folder / "checkpoints").rglob("*")):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        hashes.append(f"{path.relative_to(folder)} {content}")
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def forked(function, *args):
    """Run in a child; returns its exit status and what it returned (a small number)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(function(*args)).encode())
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return status, text


def killed_and_resumed(folder, fatal):
    """Digest of a run that is killed at one operation, once more a few operations after it went on, and finished."""
    status, _ = forked(run, folder, fatal)
    assert os.WIFSIGNALED(status), "was not killed"
    forked(run, folder, 1 + fatal % 7)  # a run that is nearly done may finish instead
    status, _ = forked(run, folder)
    return digest(folder) if status == 0 else "cannot be resumed"


def warm_up():
    """What is slow the first time, so that the children need not do it."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()


def main():
    warm_up()
    folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    status, operations = forked(run, folder / "whole")
    assert status == 0
    chosen = sorted(random.Random(seed).sample(range(1, int(operations) + 1), min(count, int(operations))))
    killed = {point: killed_and_resumed(folder / str(point), point) for point in chosen}
    print(json.dumps({"operations": int(operations), "whole": digest(folder / "whole"), "killed": killed}))


if __name__ == "__main__":
    main()
