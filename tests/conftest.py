"""Where the tests find real material that is not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the workers share the processor

PARITY = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens", default=os.environ.get("MOMENTDETR_GOLDENS"), help="folder of recorded outputs of official code"
    )
    parser.addoption(
        "--data", default=os.environ.get("MOMENTDETR_DATA"), help="folder of real videos, annotations and features"
    )
    parser.addoption(
        "--except", dest="except_systems", default="", help="comma-separated goldens whose systems are not built yet"
    )


@pytest.fixture(scope="session")
def goldens(request: pytest.FixtureRequest) -> Path:
    return _folder(request, "--goldens")


@pytest.fixture(scope="session")
def shared_data(request: pytest.FixtureRequest) -> Path:
    return _folder(request, "--data")


def _folder(request: pytest.FixtureRequest, option: str) -> Path:
    value = request.config.getoption(option)
    if value is None:
        pytest.skip(f"not run: needs {option} DIR")
    folder = Path(value).resolve()
    if not folder.is_dir():
        pytest.fail(f"{option} {value} is not a folder")
    return folder


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """What a worker process has to say about parity."""
    told = getattr(node, "workeroutput", {}).get("parity", [])
    node.config.stash.setdefault(PARITY, []).extend(told)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(PARITY, [])
    if lines:
        terminalreporter.section("parity")
        for line in lines:
            terminalreporter.write_line(line)
