"""Options and parametrisation of the parity tests: one test for each (item of goldens, precision, part)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from parity.material import Item, discover, patterns_of
from parity.plan import Plan, plan
from parity.report import Report

REPORT = pytest.StashKey[Report]()
PLANS = pytest.StashKey[list[Plan]]()
LINES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-report", default=None, help="file for the full table of comparisons")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "planned" not in metafunc.fixturenames:
        return
    plans = _plans(metafunc.config)
    if plans is None:
        mark = pytest.mark.skip(reason="not run: needs --goldens DIR")
        metafunc.parametrize("planned", [pytest.param(None, marks=mark, id="no-goldens")])
    else:
        metafunc.parametrize("planned", [pytest.param(entry, id=entry.id) for entry in plans])


def _plans(config: pytest.Config) -> list[Plan] | None:
    root = config.getoption("--goldens")
    if root is None:
        return None
    if PLANS not in config.stash:
        config.stash[PLANS] = [entry for item in _items(Path(root)) for entry in plan(item)]
    return config.stash[PLANS]


def _items(root: Path) -> list[Item]:
    if not root.is_dir():
        raise pytest.UsageError(f"--goldens {root} is not a folder")
    items = discover(root.resolve())
    if not items:
        raise pytest.UsageError(f"--goldens {root} holds no goldens")
    return items


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The official code ran in one thread; with more, convolutions add in another order.

    The small random backbones make that order show in float32: some gradients pass a kink on its other side.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def parity_report(request: pytest.FixtureRequest) -> Report:
    return request.config.stash.setdefault(REPORT, Report())


@pytest.fixture
def excused(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The patterns of --except, or else of the environment."""
    return patterns_of(request.config.getoption("--except") or os.environ.get("MOMENTDETR_EXCEPT", ""))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the full table; a worker process sends its summary to the one that prints."""
    report, config = session.config.stash.get(REPORT, None), session.config
    if report is None or not (report.rows or report.missing):
        return
    lines = report.summary()
    path = config.getoption("--parity-report", None)
    if path:
        report.write(Path(path))
        lines.append(f"every comparison: {path}")
    if hasattr(config, "workeroutput"):
        config.workeroutput["parity"] = lines
    else:
        config.stash[LINES] = lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(LINES, [])
    if lines:
        terminalreporter.section("parity")
        for line in lines:
            terminalreporter.write_line(line)
