import torch

from momentdetr.training.average import AveragedModel
from momentdetr.training.order import derived_seed, epoch_batches, seed_step


def test_every_sample_once_an_epoch_in_another_order():
    first, second = (epoch_batches(23, 5, seed=0, epoch=epoch) for epoch in (0, 1))
    for batches in (first, second):
        assert sorted(index for batch in batches for index in batch) == list(range(23))
    assert [len(batch) for batch in first] == [5, 5, 5, 5, 3]
    assert first != second
    assert first == epoch_batches(23, 5, seed=0, epoch=0)
    assert first != epoch_batches(23, 5, seed=1, epoch=0)


def test_the_order_does_not_touch_or_read_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = epoch_batches(50, 5, seed=0, epoch=0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(9)
    assert epoch_batches(50, 5, seed=0, epoch=0) == batches


def test_draws_of_a_step_depend_on_seed_and_step_only():
    draws = {}
    for seed in (0, 1):
        for step in (0, 1):
            torch.rand(seed + step)
            seed_step(seed, step)
            draws[seed, step] = torch.rand(1).item()
    assert len(set(draws.values())) == 4
    seed_step(1, 0)
    assert torch.rand(1).item() == draws[1, 0]


def test_derived_seeds_differ_and_are_positive():
    seeds = {derived_seed("order", a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_average_follows_slowly_and_copies_buffers():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average = AveragedModel(model, 0.5)
    expected = [parameter.clone() for parameter in model.parameters()]
    for update in range(1, 15):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model[1].running_mean.fill_(update)
        average.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = [decay * e + (1 - decay) * p for e, p in zip(expected, model.parameters(), strict=True)]
    for ours, oracle in zip(average.model.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, oracle)
        assert not ours.requires_grad
    assert average.model[1].running_mean.tolist() == [14, 14]
