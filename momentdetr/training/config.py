"""Configuration: sections of plain values from a YAML file, changed by `a.b=c`; an unknown key names its neighbour."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from momentdetr.errors import BadInput


class Section(BaseModel):
    """A group of settings. Unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GroupRule(Section):
    """Parameters whose name matches get their own rate or decay.

    Args:
        match: regular expression, searched in the parameter's name.
        learning_rate_scale: factor of the common learning rate.
        weight_decay: instead of the common one; None: the common one.
    """

    match: str
    learning_rate_scale: float = Field(default=1.0, ge=0)
    weight_decay: float | None = Field(default=None, ge=0)


class OptimizerConfig(Section):
    """AdamW. `clip_norm` is the greatest gradient norm (L2 of all gradients together), 0 for no limit."""

    learning_rate: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = Field(default=0.1, ge=0)
    groups: tuple[GroupRule, ...] = ()


class ScheduleConfig(Section):
    """How the learning rate moves.

    Args:
        kind: "constant"; "step": times `gamma` every `step_epochs`; "multistep": times `gamma` at each of `milestones`
            (epochs); "cosine": down to `final_scale` of the rate at the last step.
        warmup_steps: the rate rises linearly from 0 over so many steps, under any kind.
    """

    kind: Literal["constant", "step", "multistep", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    step_epochs: int = Field(default=1, ge=1)
    milestones: tuple[int, ...] = ()
    gamma: float = Field(default=0.1, gt=0, le=1)
    final_scale: float = Field(default=0.0, ge=0, le=1)


class LoopConfig(Section):
    """How long and how to train.

    Args:
        epochs: passes over the data.
        batch_size: samples a step, of all processes together.
        accumulate: parts that a process's samples of a step are computed in, one after another, to save memory; each
            part is normalised by its own number of targets.
        workers: processes that read data ahead; what they read does not depend on their number.
        max_steps: stop after so many steps; None: all epochs.
        minutes: stop after so much time of training, evaluations not counted, and lower a "cosine" rate by it; such a
            run is not the same twice. None: no limit.
        seed: of the order of samples, the draws of each sample, and dropout.
        precision: "fp32", or "bf16" for autocast.
        ema_decay: weight of the past in the averaged model, which is then the one that is evaluated; 0: none.
        evaluate_every: epochs between evaluations; 0: only at the end.
        select_by: name of the score that tells the best checkpoint (higher is better).
        patience: stop after so many evaluations in a row that were not the best; None: never.
        checkpoint_every: epochs between checkpoints (one is always written at the end).
        checkpoint_steps: steps between further checkpoints within an epoch; 0: none.
        log_every: steps between lines of metrics.
        trackers: names of accelerate's, such as "tensorboard", that get the metrics too.
        max_skipped: stop after so many steps in a row whose loss or gradient is not finite.
    """

    epochs: int = Field(default=200, ge=1)
    batch_size: int = Field(default=32, ge=1)
    accumulate: int = Field(default=1, ge=1)
    workers: int = Field(default=0, ge=0)
    max_steps: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    evaluate_every: int = Field(default=1, ge=0)
    select_by: str | None = None
    patience: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=1, ge=1)
    checkpoint_steps: int = Field(default=0, ge=0)
    log_every: int = Field(default=10, ge=1)
    trackers: tuple[str, ...] = ()
    max_skipped: int = Field(default=10, ge=1)


C = TypeVar("C", bound=Section)


def load_config(kind: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file into a configuration.

    Args:
        kind: the configuration's class; its fields are the sections.
        path: the file.
        overrides: "section.key=value", the value as YAML; applied in order.

    Raises:
        BadInput: the file cannot be read, or a key or value does not fit; every fault is named.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a configuration file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path}: holds {type(data).__name__}, expected sections such as {_known(kind)}")
    apply_overrides(data, overrides)
    return parse_config(kind, data, str(path))


def parse_config(kind: type[C], data: dict[str, Any], source: str) -> C:
    """Check nested values against a configuration's class.

    Raises:
        BadInput: every fault is named; `source` opens the message.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults = [_fault(kind, fault["type"], fault["loc"], fault["msg"]) for fault in error.errors()]
        raise BadInput(f"{source}: " + "; ".join(faults)) from error


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """Change nested values in place, by "section.key=value" in order.

    Raises:
        BadInput: an override is not of this form, or its value not YAML.
    """
    for override in overrides:
        _override(data, override)


def _override(data: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise BadInput(f"{text!r} is not an override; write section.key=value")
    *sections, name = key.strip().split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise BadInput(f"{text!r}: {section!r} is a value, not a section")
    try:
        data[name] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadInput(f"{text!r}: the value is not YAML: {error}") from error


def _fault(kind: type[Section], error: str, location: tuple[int | str, ...], message: str) -> str:
    name = ".".join(str(part) for part in location)
    if error != "extra_forbidden":
        return f"{name}: {message}"
    known = _known(_section_at(kind, location[:-1]))
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    return f"unknown key {name!r}; {hint}"


def _section_at(kind: type[Section], location: tuple[int | str, ...]) -> type[Section]:
    for part in location:
        field = kind.model_fields.get(str(part))
        if field is not None:
            candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
            inner = [c for c in candidates if isinstance(c, type) and issubclass(c, Section)]
            kind = inner[0] if inner else kind
    return kind


def _known(kind: type[Section]) -> list[str]:
    return list(kind.model_fields)
