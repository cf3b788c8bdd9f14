import pytest
import torch
from torch import nn

from momentdetr.errors import BadInput
from momentdetr.training.config import GroupRule, OptimizerConfig, ScheduleConfig
from momentdetr.training.optimizer import build_optimizer, learning_rate_scale, set_learning_rate


def model():
    return nn.ModuleDict({"backbone": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "head": nn.Linear(2, 1)})


def names(network, group):
    return {name for name, parameter in network.named_parameters() if any(parameter is p for p in group["params"])}


def test_groups_follow_the_first_rule_that_matches():
    network = model()
    network["head"].bias.requires_grad_(False)
    rules = (
        GroupRule(match="^backbone", learning_rate_scale=0.1),
        GroupRule(match=r"norm|\.bias$", weight_decay=0),
    )
    config = OptimizerConfig(learning_rate=1e-3, weight_decay=1e-2, groups=rules)
    backbone, norm, others = build_optimizer(network, config).param_groups
    assert names(network, backbone) == {"backbone.weight", "backbone.bias"}
    assert names(network, norm) == {"norm.weight", "norm.bias"}
    assert names(network, others) == {"head.weight"}
    assert [(g["lr"], g["weight_decay"]) for g in (backbone, norm, others)] == [(1e-4, 1e-2), (1e-3, 0), (1e-3, 1e-2)]


def test_rules_that_cannot_be_used_are_named():
    with pytest.raises(BadInput, match="'decoder' matches no parameter"):
        build_optimizer(model(), OptimizerConfig(groups=(GroupRule(match="decoder"),)))
    with pytest.raises(BadInput, match="no regular expression"):
        build_optimizer(model(), OptimizerConfig(groups=(GroupRule(match="("),)))


EPOCHS, STEPS = 10, 7


@pytest.mark.parametrize(
    ("schedule", "oracle", "by_epoch"),
    [
        (
            ScheduleConfig(kind="step", step_epochs=3, gamma=0.5),
            lambda o: torch.optim.lr_scheduler.StepLR(o, 3, gamma=0.5),
            True,
        ),
        (
            ScheduleConfig(kind="multistep", milestones=(2, 5), gamma=0.1),
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 5], gamma=0.1),
            True,
        ),
        (
            ScheduleConfig(kind="cosine", final_scale=0.2),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS, eta_min=0.2),
            False,
        ),
        (ScheduleConfig(), lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1), False),
    ],
)
def test_schedules_equal_those_of_torch(schedule, oracle, by_epoch):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = oracle(optimizer)
    for step in range(EPOCHS * STEPS):
        ours = learning_rate_scale(schedule, step, STEPS, EPOCHS * STEPS)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        if not by_epoch or (step + 1) % STEPS == 0:
            scheduler.step()


def test_warm_up_rises_linearly_and_then_leaves_the_rate():
    schedule = ScheduleConfig(kind="constant", warmup_steps=3)
    scales = [learning_rate_scale(schedule, step, 10, 20) for step in range(6)]
    assert scales == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    cosine = ScheduleConfig(kind="cosine", warmup_steps=3)
    assert learning_rate_scale(cosine, 3, 10, 20) == 1
    assert learning_rate_scale(cosine, 19, 10, 20) < 0.02


def test_rates_are_scaled_from_what_they_were_built_with():
    optimizer = build_optimizer(model(), OptimizerConfig(learning_rate=1e-2, groups=(GroupRule(match="head"),)))
    for scale in (0.5, 0.1):
        set_learning_rate(optimizer, scale)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([scale * 1e-2] * 2)
