"""The configuration of a training run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from detection.data.augment import AugmentConfig
from detection.model_config import ModelConfig
from momentdetr.training.config import LoopConfig, OptimizerConfig, ScheduleConfig, Section


class DataConfig(Section):
    """Which images; paths are relative to the current directory.

    Args:
        folder: a COCO-format folder.
        train: the split to learn from.
        val: the split to be scored on; None: the model is not scored, or on what `holdout` takes.
        holdout: share of the training images that is scored on instead of a split, the same images every time.
        generated: make so many images of the moving-shapes world (and a quarter as many to be scored on) instead.
        skip_bad: the greatest percentage of images, and of annotations, that may be left out for a fault.
        verify: what of each image file is read before the run.
        augment: how training images vary.
        short_side: of images to be scored, pixels.
        long_side: the most that their long side may get.
    """

    folder: str | None = None
    train: str = "train"
    val: str | None = "val"
    holdout: float = Field(default=0.0, ge=0, lt=1)
    generated: int = Field(default=0, ge=0)
    skip_bad: float = Field(default=0.0, ge=0, le=100)
    verify: Literal["decode", "header", "none"] = "decode"
    augment: AugmentConfig = AugmentConfig()
    short_side: int = Field(default=800, ge=1)
    long_side: int | None = Field(default=1333, ge=1)

    @model_validator(mode="after")
    def _complete(self) -> DataConfig:
        if bool(self.folder) == bool(self.generated):
            raise ValueError("needs either 'folder' or 'generated'")
        if self.holdout and self.val is not None:
            raise ValueError("has both 'val' and 'holdout'; set val to null to hold images out")
        return self


class DetectionConfig(Section):
    """Everything about one training run.

    Args:
        data: which images.
        model: what is trained; None: what `initial` is.
        initial: a folder of a trained model to begin with.
        training: see `LoopConfig`; `select_by` is "AP" unless it is set.
        optimizer: see `OptimizerConfig`.
        schedule: see `ScheduleConfig`.
        normalisers: what losses are divided by when several processes share a step: "all": means over the processes,
            so that it does not matter how many there are; "official": as each system's published code has it, where
            denoising groups and region heads count their own process's targets only.
        checkpoint_activations: compute the transformer's layers twice to save memory.
        evaluate_batch: images at once in evaluations; 1 where padding matters (DC5).
        about: free text for people, stored with the model.
        device: "auto" takes the GPU if there is one.
    """

    data: DataConfig
    model: ModelConfig | None = None
    initial: str | None = None
    training: LoopConfig = LoopConfig(batch_size=16)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    normalisers: Literal["all", "official"] = "all"
    checkpoint_activations: bool = False
    evaluate_batch: int = Field(default=1, ge=1)
    about: dict[str, Any] = Field(default_factory=dict)
    device: str = "auto"

    @model_validator(mode="after")
    def _complete(self) -> DetectionConfig:
        if self.model is None and self.initial is None:
            raise ValueError("needs 'model' or 'initial'")
        return self
