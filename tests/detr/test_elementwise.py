"""Oracles: torch's own modules, in distribution where they draw, and in numbers where they do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from momentdetr.detr.attention import attend
from momentdetr.detr.elementwise import Dropout, PReLU, kept


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout_drops_so_many_and_keeps_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    mask = kept(torch.empty(1000, 1001), probability)
    dropped = (mask == 0).double().mean()
    assert dropped == pytest.approx(probability, abs=4 * (probability * (1 - probability) / 1e6) ** 0.5)
    assert mask.unique().numel() == 2
    # The scale belongs to the probability that is rounded to 16 bits.
    assert float(mask.max()) == pytest.approx(1 / (1 - probability), rel=1e-3)
    assert float(mask.double().mean()) == pytest.approx(1, abs=0.02)


def test_neighbouring_draws_know_nothing_of_each_other() -> None:
    torch.manual_seed(0)
    dropped = (kept(torch.empty(1 << 20), 0.5) == 0).double()
    for distance in (1, 2, 3, 4, 5, 8):  # four draws share a word of the generator
        both = (dropped[distance:] * dropped[:-distance]).mean()
        assert both == pytest.approx(0.25, abs=4 * (3 / 16 / 2**20) ** 0.5)


def test_dropout_scales_values_and_gradients_alike() -> None:
    values = torch.randn(7, 9, 3, requires_grad=True)
    dropout = Dropout(0.3)
    torch.manual_seed(1)
    result = dropout(values)
    result.sum().backward()
    torch.testing.assert_close(result, values * values.grad)
    torch.manual_seed(1)
    assert torch.equal(dropout(values), result)
    assert not torch.equal(dropout(values), result)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_dropout_of_nothing_and_of_all(probability: float) -> None:
    values = torch.randn(5)
    assert torch.equal(Dropout(probability)(values), nn.Dropout(probability)(values))
    assert torch.equal(Dropout(0.4).eval()(values), values)
    assert Dropout(0.4)(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_prelu_is_torchs(dtype: torch.dtype, training: bool) -> None:
    torch.manual_seed(0)
    values = torch.randn(3, 40, 17, dtype=dtype).transpose(0, 1)  # not contiguous
    values[0, 0, :4] = torch.tensor([0.0, -0.0, 5.0, -5.0], dtype=dtype)
    out = torch.randn(40, 3, 17, dtype=dtype)
    found = []
    for module in (PReLU().to(dtype), nn.PReLU().to(dtype)):
        own = values.clone().requires_grad_()
        module.train(training)
        module.weight.data.fill_(-0.3)
        result = module(own)
        result.backward(out)
        found.append((result, own.grad, module.weight.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert list(PReLU().state_dict()) == list(nn.PReLU().state_dict())


@pytest.mark.parametrize("masked", [True, False])
def test_attention_that_drops_has_the_mean_of_attention_that_does_not(masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 5, 8), torch.randn(2, 7, 8), torch.randn(2, 7, 12)
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    if masked:
        mask[0, ..., 4:] = False
    whole = attend(query, key, value, num_heads=4, mask=mask if masked else None)
    many = torch.stack(
        [attend(query, key, value, num_heads=4, mask=mask if masked else None, dropout=0.2) for _ in range(4000)]
    )
    error = many.std(0) / 4000**0.5
    assert bool(((many.mean(0) - whole).abs() < 5 * error + 1e-6).all())


def test_a_query_without_any_key_still_gets_zeros() -> None:
    mask = torch.ones(2, 1, 1, 3, dtype=torch.bool)
    mask[1] = False
    mixed = attend(
        torch.randn(2, 5, 8), torch.randn(2, 3, 8), torch.randn(2, 3, 8), num_heads=2, mask=mask, dropout=0.1
    )
    assert bool((mixed[1] == 0).all())
    assert bool((mixed[0] != 0).any())
