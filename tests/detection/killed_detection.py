"""Trains a tiny detector, kills the run (or one of its processes) at one operation, resumes it, prints what came out.

    python killed_detection.py FOLDER WORKERS FATAL...

prints {"operations": ..., "whole": digest, "killed": {operation: digest}}. Under torchrun's variables it is one process
of a group: `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`; see `in_a_group`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tiny_detection import folder_of_images, recipe

from detection.train import train
from momentdetr.training import checkpoint, metrics


class Points:
    """Counts operations of this process, and ends it at one of them."""

    def __init__(self, fatal: int) -> None:
        self.count, self.fatal = 0, fatal

    def before(self, function):
        def wrapped(*args, **kwargs):
            self.count += 1
            if self.count == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    def install(self) -> None:
        torch.Tensor.backward = self.before(torch.Tensor.backward)
        torch.optim.AdamW.step = self.before(torch.optim.AdamW.step)
        metrics.MetricsFile.write = self.before(metrics.MetricsFile.write)
        checkpoint._write = self.before(checkpoint._write)
        os.rename, os.fsync = self.before(os.rename), self.before(os.fsync)
        shutil.rmtree = self.before(shutil.rmtree)


def run(folder: Path, workers: int, fatal: int = 0) -> int:
    """Train, or go on with the run in `folder`; returns the number of operations."""
    torch.set_num_threads(1)
    points = Points(fatal)
    points.install()
    config = recipe(
        folder_of_images(folder.parent / "images"),
        training={"ema_decay": 0.9, "checkpoint_steps": 1, "workers": workers},
        schedule={"kind": "cosine", "warmup_steps": 1},
        data={"augment": {"short_sides": [48, 64], "long_side": 64, "cut_from": [64], "cut_sides": [40, 64]}},
    )
    train(config, folder, resume=True, progress=False)
    return points.count


def digest(folder: Path) -> str:
    """Of everything that a run leaves, times aside."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    hashes = [json.dumps(lines, sort_keys=True)]
    for part in ("checkpoints", "detector"):
        for path in sorted((folder / part).rglob("*")):
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            hashes.append(f"{path.relative_to(folder)} {content}")
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def forked(folder: Path, workers: int, fatal: int = 0) -> tuple[int, int]:
    """Run in a child; its status, and the number of operations (0 where it was killed)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(run(folder, workers, fatal)).encode())
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    return os.waitpid(child, 0)[1], int(text or 0)


def in_a_group(folder: Path, workers: int, size: int, fatal: tuple[int, int] = (0, 0)) -> list[int]:
    """Run `size` processes as torchrun would; the process fatal[0] dies at its operation fatal[1]. Their exit codes."""
    arguments = [[str(folder), str(workers), str(fatal[1] if rank == fatal[0] else 0)] for rank in range(size)]
    return group_of(Path(__file__), arguments)


def group_of(script: Path, arguments: Sequence[Sequence[str]]) -> list[int]:
    """One process for each list of arguments, as one group; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(len(arguments)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank, given in enumerate(arguments):
        environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), *given]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=sys.stderr))
    try:
        return [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()


def main() -> None:
    folder, workers, fatal = Path(sys.argv[1]), int(sys.argv[2]), [int(text) for text in sys.argv[3:]]
    if "RANK" in os.environ:
        run(folder, workers, fatal[0])
        return
    folder_of_images(folder / "images")
    status, operations = forked(folder / "whole", workers)
    assert status == 0
    killed = {}
    for point in fatal:
        point = 1 + point % operations
        status, _ = forked(folder / str(point), workers, point)
        assert os.WIFSIGNALED(status), "was not killed"
        status, _ = forked(folder / str(point), workers)
        killed[point] = digest(folder / str(point)) if status == 0 else "cannot be resumed"
    print(json.dumps({"operations": operations, "whole": digest(folder / "whole"), "killed": killed}))


if __name__ == "__main__":
    main()
