"""Every part is tested for D = 1, 2 and 3: three exposes any hidden one or two."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=[1, 2, 3], ids=lambda d: f"{d}D")
def num_dims(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
