"""Where jobs run: in this process, in several of this machine, or on a Ray cluster. All run `work.run_job`."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_end
from typing import Any

from momentdetr.errors import BadInput, OutOfResources
from momentdetr.extraction.encoders import EncoderChoice
from momentdetr.extraction.manifest import Entry
from momentdetr.extraction.plan import Fault, Job
from momentdetr.extraction.work import Order, run_job
from momentdetr.features.encoder import TowerEncoder

Outcome = Entry | Fault
Engine = Callable[[Sequence[Job], Order, EncoderChoice, int], Generator[Outcome, None, None]]

_AHEAD = 2
"""Jobs per worker that are handed out; the others wait here."""


def run_here(jobs: Sequence[Job], order: Order, choice: EncoderChoice, workers: int) -> Generator[Outcome, None, None]:
    """On this machine: with one worker in this process, else in as many others.

    Yields:
        What came of each job, in the order in which they end.

    Raises:
        OutOfResources: a process died.
    """
    if workers == 1 or len(jobs) < 2:
        encoder = choice.build()
        yield from (run_job(job, order, encoder) for job in jobs)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), initializer=_begin, initargs=(order, choice)
    )
    try:
        left, running = iter(jobs), set()
        for job in left:
            running.add(pool.submit(_in_process, job))
            if len(running) >= _AHEAD * workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        for future in running:
            yield future.result()
    except BrokenProcessPool as error:
        raise OutOfResources(
            "a worker process died, most often for want of memory; what is done is kept. Run again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_encoder: TowerEncoder | None = None
_order: Order | None = None


def _begin(order: Order, choice: EncoderChoice) -> None:
    """In a fresh process: load the encoder once, and end with the parent, however that ends."""
    global _encoder, _order
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _encoder, _order = choice.build(), order


def _end_with(sentinel: int) -> None:
    wait_for_end([sentinel])
    os._exit(1)


def _in_process(job: Job) -> Outcome:
    assert _encoder is not None
    assert _order is not None
    return run_job(job, _order, _encoder)


def run_on_ray(
    jobs: Sequence[Job], order: Order, choice: EncoderChoice, workers: int
) -> Generator[Outcome, None, None]:
    """On a Ray cluster, that of RAY_ADDRESS or a new one on this machine; every machine must see the same folders.

    Yields:
        What came of each job, in the order in which they end.

    Raises:
        BadInput: Ray is not installed.
        OutOfResources: a worker died.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise BadInput(
            "--engine ray needs Ray, which is not installed: pip install 'momentdetr[ray]', or use --engine local"
        ) from error
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False, **_own_cluster(workers))
    try:
        actor: Any = ray.remote(num_cpus=1, num_gpus=1 if choice.device.startswith("cuda") else 0)(_Worker)
        pool: Any = ActorPool([actor.remote(order, choice) for _ in range(min(workers, len(jobs)))])
        yield from pool.map_unordered(lambda worker, job: worker.run.remote(job), list(jobs))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise OutOfResources(f"a Ray worker died ({error}); what is done is kept. Run again to go on") from error
    finally:
        if started:
            ray.shutdown()


def _own_cluster(workers: int) -> dict[str, Any]:
    """Arguments of a cluster of our own, where no other is named."""
    return {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": max(workers, os.cpu_count() or 1)}


class _Worker:
    """A process of the cluster with an encoder of its own."""

    def __init__(self, order: Order, choice: EncoderChoice) -> None:
        self.order, self.encoder = order, choice.build()

    def run(self, job: Job) -> Outcome:
        return run_job(job, self.order, self.encoder)


ENGINES: dict[str, Engine] = {"local": run_here, "ray": run_on_ray}
