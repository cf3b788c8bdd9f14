import pytest

from momentdetr.errors import BadInput
from momentdetr.training.config import GroupRule, LoopConfig, OptimizerConfig, ScheduleConfig, Section, load_config


class Whole(Section):
    training: LoopConfig = LoopConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    name: str = "none"


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_sections_and_overrides(tmp_path):
    path = write(tmp_path, "training: {epochs: 3}\noptimizer:\n  groups: [{match: norm, weight_decay: 0}]\n")
    config = load_config(
        Whole, path, ["training.epochs=7", "optimizer.learning_rate=2e-4", "schedule.milestones=[1, 2]"]
    )
    assert config.training.epochs == 7
    assert config.optimizer.learning_rate == 2e-4
    assert config.optimizer.groups == (GroupRule(match="norm", weight_decay=0),)
    assert config.schedule.milestones == (1, 2)
    assert load_config(Whole, path, ["training.epochs=7", "training.epochs=9"]).training.epochs == 9


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("optimizer: {learning_rat: 1}", (), "unknown key 'optimizer.learning_rat'; did you mean 'learning_rate'?"),
        ("trainin: {}", (), "unknown key 'trainin'; did you mean 'training'?"),
        ("optimizer: {groups: [{mach: norm}]}", (), "unknown key 'optimizer.groups.0.mach'; did you mean 'match'?"),
        ("schedule: {zzz: 1}", (), "known keys: kind, warmup_steps"),
        ("", (), "holds NoneType, expected sections such as ['training'"),
        ("training: {epochs: -1}", (), "training.epochs: Input should be greater than or equal to 1"),
        ("optimizer: {learning_rate: .nan}", (), "optimizer.learning_rate"),
        ("optimizer: {learning_rate: .inf}", (), "finite number"),
        ("schedule: {kind: cosin}", (), "'constant', 'step', 'multistep' or 'cosine'"),
        ("training: [", (), "is not YAML"),
        ("a: !!python/object/apply:os.system ['true']", (), "is not YAML"),
        ("name: x", ("training.epochs",), "'training.epochs' is not an override"),
        ("name: x", ("name.first=1",), "'name' is a value, not a section"),
        ("name: x", ("training.epochs=[",), "the value is not YAML"),
        ("name: x", ("training.epoch=1",), "did you mean 'epochs'?"),
    ],
)
def test_faults_are_named(tmp_path, text, overrides, message):
    with pytest.raises(BadInput) as caught:
        load_config(Whole, write(tmp_path, text), overrides)
    assert message in str(caught.value)


def test_all_faults_are_named_at_once(tmp_path):
    with pytest.raises(BadInput) as caught:
        load_config(Whole, write(tmp_path, "training: {epochs: 0, sed: 1}\nname: 3"))
    for message in ("training.epochs", "did you mean 'seed'?", "name: "):
        assert message in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        load_config(Whole, tmp_path / "none.yaml")
