"""AdamW with groups by parameter name, and learning rates as a function of the step."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from momentdetr.errors import BadInput
from momentdetr.training.config import OptimizerConfig, ScheduleConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over all parameters that require a gradient.

    A parameter belongs to the first rule that its name matches; the others form the last group.

    Raises:
        BadInput: a rule is no regular expression, or matches no parameter.
    """
    groups: list[dict[str, Any]] = [
        {
            "params": [],
            "lr": config.learning_rate * rule.learning_rate_scale,
            "weight_decay": config.weight_decay if rule.weight_decay is None else rule.weight_decay,
        }
        for rule in config.groups
    ]
    groups.append({"params": [], "lr": config.learning_rate, "weight_decay": config.weight_decay})
    patterns = [_pattern(rule.match) for rule in config.groups]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found = (i for i, pattern in enumerate(patterns) if pattern.search(name))
            groups[next(found, len(patterns))]["params"].append(parameter)
    for group, rule in zip(groups, config.groups, strict=False):
        if not group["params"]:
            raise BadInput(f"optimizer group {rule.match!r} matches no parameter that is trained")
    groups = [{**group, "initial_lr": group["lr"]} for group in groups if group["params"]]
    on_cpu = all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])
    # In one kernel: the usual loop over parameters takes three times as long on a CPU.
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=on_cpu or None)


def learning_rate_scale(
    schedule: ScheduleConfig, step: int, steps_per_epoch: int, total_steps: int, *, done_share: float | None = None
) -> float:
    """Factor of the learning rate for one step.

    Args:
        schedule: the kind of schedule.
        step: number of the step, from 0.
        steps_per_epoch: at least 1.
        total_steps: length of the whole run.
        done_share: of a run that is as long as its time: the part that is over; None: it is counted in steps.
    """
    epoch = step // steps_per_epoch
    if schedule.kind == "step":
        scale = schedule.gamma ** (epoch // schedule.step_epochs)
    elif schedule.kind == "multistep":
        scale = schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    elif schedule.kind == "cosine":
        done = (step - schedule.warmup_steps) / max(total_steps - schedule.warmup_steps, 1)
        done = done if done_share is None else max(done, done_share)
        down = 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
        scale = schedule.final_scale + (1 - schedule.final_scale) * down
    else:
        scale = 1.0
    return scale * min(1.0, (step + 1) / (schedule.warmup_steps + 1))


def set_learning_rate(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Set each group's rate to `scale` times the one that it was built with."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * scale


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise BadInput(f"optimizer group {text!r} is no regular expression: {error}") from error
