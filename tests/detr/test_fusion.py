from __future__ import annotations

import pytest
import torch
from torch import Tensor

from momentdetr.detr.boxes import iou, to_corners
from momentdetr.detr.fusion import fuse_boxes


def made(num_dims: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes around few places, so that many overlap."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randint(1, 4, (count, num_dims), generator=generator) / 4
    centers = centers + 0.03 * torch.randn(count, num_dims, generator=generator)
    sizes = 0.2 + 0.1 * torch.rand(count, num_dims, generator=generator)
    return to_corners(torch.cat([centers, sizes], -1)).double(), torch.rand(count, generator=generator).double()


def naive(
    sources: list[tuple[Tensor, Tensor]], weights: list[float], threshold: float, least: float
) -> list[tuple[float, list[float]]]:
    """The method's description, box by box: clusters of (box, weighted score)."""
    found = [
        (float(score) * weight, box)
        for (boxes, scores), weight in zip(sources, weights, strict=True)
        for box, score in zip(boxes, scores, strict=True)
        if score >= least
    ]
    clusters: list[list[tuple[float, Tensor]]] = []
    for member in sorted(found, key=lambda one: -one[0]):
        overlaps = [float(iou(mean(cluster), member[1])[0]) for cluster in clusters]
        best = max(range(len(clusters)), key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] > threshold:
            clusters[best].append(member)
        else:
            clusters.append([member])
    fused = []
    for cluster in clusters:
        confidence = sum(score for score, _ in cluster) / len(cluster)
        fused.append((confidence * min(len(weights), len(cluster)) / sum(weights), mean(cluster).tolist()))
    return sorted(fused, key=lambda one: -one[0])


def mean(cluster: list[tuple[float, Tensor]]) -> Tensor:
    total = sum(score for score, _ in cluster)
    return torch.stack([box * (score / total) for score, box in cluster]).sum(0)


@pytest.mark.parametrize("seed", range(4))
def test_fusion_is_what_its_description_says(num_dims: int, seed: int) -> None:
    sources = [made(num_dims, 12, seed), made(num_dims, 7, seed + 100)]
    weights, threshold, least = [1.0, 2.5], 0.4, 0.2
    expected = naive(sources, weights, threshold, least)
    boxes, scores = fuse_boxes(*zip(*sources, strict=True), weights, threshold=threshold, min_score=least)
    assert len(scores) == len(expected) < 19  # some were fused
    assert scores.tolist() == pytest.approx([score for score, _ in expected])
    torch.testing.assert_close(boxes, torch.tensor([box for _, box in expected], dtype=torch.float64))


def test_known_cases() -> None:
    both = [torch.tensor([[0.0, 0.4]]), torch.tensor([[0.1, 0.5]])], [torch.tensor([0.9]), torch.tensor([0.2])]
    boxes, scores = fuse_boxes(*both, [1, 3], threshold=0.5)
    torch.testing.assert_close(boxes, torch.tensor([[0.04, 0.44]]))  # they weigh .9 and .6
    assert scores.item() == pytest.approx(0.75 * 2 / 4)
    apart, alone = fuse_boxes(*both, [1, 3], threshold=0.61)  # their IoU is .6
    torch.testing.assert_close(apart, torch.cat(both[0]))
    assert alone.tolist() == pytest.approx([0.9 / 4, 0.6 / 4])


def test_a_box_of_many_members_is_worth_no_more_than_one_of_every_detector() -> None:
    same = torch.tensor([[0.2, 0.6]]).expand(5, 2)
    _, scores = fuse_boxes([same, same[:1]], [torch.full((5,), 0.8), torch.tensor([0.8])], [1, 1])
    assert scores.tolist() == pytest.approx([0.8])


def test_faint_and_empty_boxes_are_left_out() -> None:
    boxes = torch.tensor([[0.2, 0.2], [0.5, 0.4], [0.1, 0.3]])
    found, scores = fuse_boxes([boxes], [torch.tensor([0.9, 0.9, 0.05])], [1], min_score=0.1)
    assert found.shape == (0, 2)
    assert scores.shape == (0,)
    nothing, _ = fuse_boxes([torch.zeros(0, 2)], [torch.zeros(0)], [1])
    assert nothing.shape == (0, 2)
