"""Where the tests find real material that is not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


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
