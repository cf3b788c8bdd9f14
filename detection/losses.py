"""The loss of one part of a step, in one process or in several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from detection.data.dataset import ImageBatch
from detection.model import ImageDetector
from momentdetr.detr.losses import num_boxes
from momentdetr.detr.types import Output, Supervision, Targets
from momentdetr.training import distributed

Normalisers = Literal["all", "official"]


def image_loss(
    model: ImageDetector, batch: ImageBatch, normalisers: Normalisers = "all"
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Total and terms; NaN, in every process, where features or predictions of any process are not finite.

    Args:
        model: in training mode.
        batch: this process's images.
        normalisers: see `DetectionConfig`.
    """
    features = model.backbone(batch.images)
    if _spoilt(features):
        return _not_finite("features", features[0])
    _join_denoising(model, batch.targets)
    output = model.detector(features, batch.mask, batch.targets)
    if _spoilt([part for said in _predictions(output) for part in said]):
        return _not_finite("predictions", features[0])
    if normalisers == "all" and distributed.is_distributed():
        output = replace(output, supervisions=_shared(output.supervisions))
    losses = model.detector.criterion(output, batch.targets)
    return losses.total, losses.terms


def _predictions(output: Output) -> list[tuple[Tensor, Tensor]]:
    everything = [*output.layers, *(one.predictions for one in output.supervisions)]
    return [(said.logits, said.boxes) for said in everything]


def _spoilt(tensors: Sequence[Tensor]) -> bool:
    """Whether anything here, or in another process, is NaN or infinite where it must not be.

    Logits of cells that can propose nothing are infinite by design, so NaN and +infinity count.
    """
    with torch.no_grad():
        bad = any(bool((x.isnan() | x.isposinf()).any()) for x in tensors if x.numel())
    return distributed.any_rank(bad, tensors[0].device)


def _not_finite(name: str, like: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
    nan = like.new_full((), torch.nan, dtype=torch.float32)
    return nan, {name: nan}


def _join_denoising(model: ImageDetector, targets: Targets) -> None:
    """Let a process whose images hold nothing take part in what the others add up about their denoising groups.

    Contrastive groups count the boxes of all processes, once a layer; without targets there are no groups, and the
    others would wait for ever.
    """
    detr = model.detector.detr
    if distributed.is_distributed() and not bool(targets.mask.any()) and getattr(detr.denoising, "contrastive", False):
        for _ in detr.decoder.layers:
            num_boxes(targets)


def _shared(supervisions: Sequence[Supervision]) -> tuple[Supervision, ...]:
    """With every normaliser averaged over the processes; one that a process does not have counts as zero there.

    Normalisers that already are averages stay as they are.
    """
    keys, seen = [], dict[str, int]()
    for one in supervisions:  # several may have one name
        seen[one.name] = seen.get(one.name, 0) + 1
        keys.append(f"{one.name}#{seen[one.name]}")
    own = {key: float(one.count) for key, one in zip(keys, supervisions, strict=True) if one.count is not None}
    everyone = distributed.gathered(own)

    def mean(key: str) -> float:
        return max(1.0, sum(counts.get(key, 0.0) for counts in everyone) / len(everyone))

    return tuple(
        one if one.count is None else replace(one, count=one.count.new_tensor(mean(key)))
        for key, one in zip(keys, supervisions, strict=True)
    )
