"""Small retrievers and batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_retrievers import make_config

from momentdetr.detr.types import Targets
from momentdetr.features.spec import FeatureSpec, Stream
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.retrieval.presets import build
from momentdetr.retrieval.types import MomentTargets, SaliencyTargets, VideoText


@pytest.fixture(params=["moment_detr", "qd_detr", "cg_detr", "tr_detr", "uvcom", "eatr", "taskweave", "bam_detr"])
def preset(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make() -> Callable[..., MomentRetriever]:
    def build_small(preset: str, **options: Any) -> MomentRetriever:
        torch.manual_seed(0)
        return build(make_config(preset, **options)).eval()

    return build_small


@pytest.fixture
def spec() -> FeatureSpec:
    return FeatureSpec(video=(Stream("clip", 8, "test"),), text=Stream("text", 6, "test"), clip_length_s=2.0)


@pytest.fixture
def inputs() -> VideoText:
    """Three samples of unequal length, padded with garbage that must never be seen."""
    generator = torch.Generator().manual_seed(1)
    clips, words = torch.tensor([9, 6, 9]), torch.tensor([3, 4, 5])
    return VideoText(
        video=torch.randn(3, 9, 10, generator=generator),
        video_mask=torch.arange(9)[None] < clips[:, None],
        text=torch.randn(3, 5, 6, generator=generator),
        text_mask=torch.arange(5)[None] < words[:, None],
    )


@pytest.fixture
def targets() -> MomentTargets:
    """Two windows, one window, and a query that is not in its video."""
    boxes = torch.tensor([[[0.2, 0.2], [0.7, 0.3]], [[0.5, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    scores = torch.zeros(3, 9)
    scores[0, 1:3], scores[0, 5:8], scores[1, 2:5] = 8.0, 5.0, 11.0
    saliency = SaliencyTargets(
        scores, torch.tensor([[1, 6], [2, 3], [-1, -1]]), torch.tensor([[0, 4], [0, 5], [-1, -1]])
    )
    return MomentTargets(Targets(torch.zeros(3, 2, dtype=torch.long), boxes, mask), saliency)
