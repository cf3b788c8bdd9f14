"""The temporal pyramid against convolutions written as loops, and its masks against clips counted one by one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from momentdetr.retrieval.pyramid import PyramidBlock, TemporalPyramid, level_mask, line_up

WIDTH = 8


def lengths_mask(*lengths: int, padded: int) -> Tensor:
    return torch.arange(padded)[None] < torch.tensor(lengths)[:, None]


@pytest.fixture
def pyramid() -> TemporalPyramid:
    torch.manual_seed(0)
    built = TemporalPyramid(WIDTH, (0.5, 1, 2, 4)).double()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter)
    return built


def naive_convolution(cells: Tensor, depthwise: Tensor, pointwise: Tensor, stride: int) -> Tensor:
    """(N, C) -> (ceil(N / stride), C), each output cell centred at every stride-th given one, zeros beyond the ends."""
    rows = []
    for center in range(0, len(cells), stride):
        row = torch.zeros_like(cells[0])
        for tap in range(3):
            place = center + tap - 1
            if 0 <= place < len(cells):
                row = row + depthwise[:, 0, tap] * cells[place]
        rows.append(pointwise[:, :, 0] @ row)
    return torch.stack(rows)


def naive_block(block: PyramidBlock, cells: Tensor, stride: int) -> Tensor:
    for part, norm, step in ((block.first, block.norm_first, stride), (block.second, block.norm_second, 1)):
        cells = naive_convolution(cells, part.depthwise.weight, part.pointwise.weight, step)
        mean = cells.mean(1, keepdim=True)
        spread = ((cells - mean) ** 2).mean(1, keepdim=True)
        cells = (cells - mean) / (spread + norm.eps).sqrt() * norm.weight + norm.bias
        if norm is block.norm_first:
            cells = gelu(cells)
    return cells


def gelu(values: Tensor) -> Tensor:
    return values * 0.5 * (1 + torch.erf(values / math.sqrt(2)))


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_every_level_is_what_loops_say(pyramid: TemporalPyramid, length: int) -> None:
    clips = torch.randn(length, WIDTH, dtype=torch.float64)
    half, one, two, four = pyramid(clips[None], torch.ones(1, length, dtype=torch.bool))
    doubled = torch.stack([clips[index // 2] for index in range(2 * length)])
    blocks = list(pyramid.blocks)
    torch.testing.assert_close(half.cells[0], naive_block(blocks[0], doubled, 1))
    torch.testing.assert_close(one.cells[0], naive_block(blocks[1], clips, 1))
    torch.testing.assert_close(two.cells[0], naive_block(blocks[2], clips, 2))
    torch.testing.assert_close(four.cells[0], naive_block(blocks[3], gelu(two.cells[0]), 2))


def test_a_sample_has_the_same_cells_alone_and_beside_longer_ones(pyramid: TemporalPyramid) -> None:
    lengths = (9, 5, 2, 14)
    mask = lengths_mask(*lengths, padded=14)
    clips = torch.randn(4, 14, WIDTH, dtype=torch.float64)
    together = pyramid(clips, mask)
    for row, length in enumerate(lengths):
        alone = pyramid(clips[row : row + 1, :length], mask[row : row + 1, :length])
        for whole, single in zip(together, alone, strict=True):
            assert single.mask.all()
            assert whole.mask[row].sum() == single.cells.shape[1]
            torch.testing.assert_close(whole.cells[row, whole.mask[row]], single.cells[0])


def test_the_official_fault_lets_padding_in(pyramid: TemporalPyramid) -> None:
    pyramid.official_batch_faults = True
    mask = lengths_mask(5, 8, padded=8)
    clips = torch.randn(2, 8, WIDTH, dtype=torch.float64)
    alone = pyramid(clips[:1, :5], mask[:1, :5])[1].cells[0]
    assert not torch.allclose(pyramid(clips, mask)[1].cells[0, :5], alone)


@pytest.mark.parametrize("stride", [0.25, 0.5, 1.0, 2.0, 4.0, 8.0])
def test_a_cell_is_real_where_any_of_its_clips_is(stride: float) -> None:
    padded = 11
    mask = lengths_mask(0, 1, 4, 5, 8, 11, padded=padded)
    found = level_mask(mask, stride)
    assert found.shape[1] == math.ceil(padded / stride)
    for row, cells in enumerate(found):
        for cell, real in enumerate(cells.tolist()):
            covered = {int(cell * stride + part * stride / 8) for part in range(8)}
            covered |= {clip for clip in range(padded) if cell * stride <= clip < (cell + 1) * stride}
            assert real == any(bool(mask[row, clip]) for clip in covered if clip < padded)


def test_gradients_are_those_of_differences(pyramid: TemporalPyramid) -> None:
    mask = lengths_mask(3, 5, padded=5)
    clips = torch.randn(2, 5, WIDTH, dtype=torch.float64, requires_grad=True)

    def cells(values: Tensor) -> Tensor:
        return torch.cat([level.cells[level.mask].flatten() for level in pyramid(values, mask)])

    assert torch.autograd.gradcheck(cells, (clips,))
    cells(clips).sum().backward()
    assert clips.grad is not None
    assert not clips.grad[~mask].any()


def test_lined_up_cells_know_their_place(pyramid: TemporalPyramid) -> None:
    mask = lengths_mask(6, 9, padded=9)
    clips = torch.randn(2, 9, WIDTH, dtype=torch.float64)
    levels = pyramid(clips, mask)
    memory = line_up(levels, mask, level_embedding=torch.arange(4.0)[:, None].expand(4, WIDTH))
    assert memory.level_shapes == ((18,), (9,), (5,), (3,))
    assert memory.extents is not None
    assert memory.extents.tolist() == [[6], [9]]
    assert memory.mask is not None
    assert memory.references is not None
    assert memory.valid_ratios is not None
    assert memory.positions is not None
    start = 0
    for index, level in enumerate(levels):
        size = level.cells.shape[1]
        here = slice(start, start + size)
        for row in range(2):
            real = int(level.mask[row].sum())
            assert memory.mask[row, here].tolist() == [cell < real for cell in range(size)]
            expected = [(cell + 0.5) / real for cell in range(size)]
            torch.testing.assert_close(memory.references[row, here, 0], torch.tensor(expected, dtype=torch.float32))
            assert memory.valid_ratios[row, index, 0] == pytest.approx(real / size)
            torch.testing.assert_close(memory.tokens[row, here][:real], level.cells[row, :real])
            assert not memory.tokens[row, here][real:].any()
        last = level.mask.sum(1, keepdim=True)
        first = torch.sin(level.mask.cumsum(1) / (last + 1e-6) * 2 * math.pi) + index
        torch.testing.assert_close(memory.positions[:, here, 0].float(), first.float())
        start += size


def test_long_sequences_keep_exact_places() -> None:
    pyramid = TemporalPyramid(2, (1, 2))
    mask = torch.ones(1, 75_000, dtype=torch.bool)
    memory = line_up(pyramid(torch.zeros(1, 75_000, 2), mask), mask)
    assert memory.references is not None
    expected = (torch.arange(75_000, dtype=torch.float64) + 0.5) / 75_000
    assert (memory.references[0, :75_000, 0] - expected).abs().max() < 1e-12


@pytest.mark.parametrize("strides", [(1, 4), (0.3, 1), (2, 1), (4,), (1, 1), (0, 1)])
def test_strides_that_leave_gaps_are_refused(strides: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="strides"):
        TemporalPyramid(WIDTH, strides)


def test_convolutions_start_small_and_without_bias() -> None:
    torch.manual_seed(0)
    pyramid = TemporalPyramid(64)
    weights = torch.cat([p.flatten() for n, p in pyramid.named_parameters() if "wise" in n])
    assert weights.std().item() == pytest.approx(0.01, rel=0.05)
    assert not [name for name, _ in pyramid.named_parameters() if "wise.bias" in name]
