from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from momentdetr.detr.neck import Neck, cell_centers, resize_mask, valid_ratios
from momentdetr.detr.positions import LearnedPositions, grid_positions

WIDTH = 24


def padded(shape: tuple[int, ...], valid: tuple[int, ...]) -> Tensor:
    """(1, *shape), a corner of which is real."""
    mask = torch.zeros(1, *shape, dtype=torch.bool)
    mask[(0, *(slice(0, size) for size in valid))] = True
    return mask


def test_valid_ratios_are_counted_along_each_axis(num_dims: int) -> None:
    shape, valid = (4, 5, 8)[:num_dims], (2, 5, 3)[:num_dims]
    expected = [part / whole for part, whole in zip(reversed(valid), reversed(shape), strict=True)]
    torch.testing.assert_close(valid_ratios(padded(shape, valid))[0], torch.tensor(expected))


def test_cell_centers_are_fractions_of_the_valid_part(num_dims: int) -> None:
    shape, valid = (4, 5, 8)[:num_dims], (2, 5, 3)[:num_dims]
    found = cell_centers(shape, valid_ratios(padded(shape, valid)))[0]
    cells = list(itertools.product(*(range(size) for size in shape)))
    for row, cell in zip(found.tolist(), cells, strict=True):
        expected = [(place + 0.5) / size for place, size in zip(reversed(cell), reversed(valid), strict=True)]
        assert row == pytest.approx(expected, abs=1e-6)


def test_masks_shrink_to_the_nearest_cell() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    assert resize_mask(mask, (4,)).tolist() == [[True, True, True, False]]


def make(num_dims: int, **options: object) -> tuple[Neck, list[Tensor], Tensor]:
    torch.manual_seed(0)
    neck = Neck(num_dims, [6, 8], WIDTH, num_levels=4, group_norm=4, **options)  # type: ignore[arg-type]
    sizes = [tuple(size // 2**level for size in (8, 16, 8)[:num_dims]) for level in (1, 2)]
    maps = [torch.randn(2, channels, *size) for channels, size in zip((6, 8), sizes, strict=True)]
    mask = torch.ones(2, *(8, 16, 8)[:num_dims], dtype=torch.bool)
    mask[1, ..., mask.shape[-1] // 2 :] = False
    return neck, maps, mask


def test_levels_line_up(num_dims: int) -> None:
    neck, maps, mask = make(num_dims)
    memory = neck(maps, mask)
    levels = neck.levels(maps)
    assert len(levels) == len(memory.level_shapes) == 4
    assert memory.mask is not None
    assert memory.positions is not None
    assert memory.references is not None
    start = 0
    for index, (level, shape) in enumerate(zip(levels, memory.level_shapes, strict=True)):
        assert tuple(level.shape[2:]) == shape
        count = torch.Size(shape).numel()
        part = slice(start, start + count)
        torch.testing.assert_close(memory.tokens[:, part], level.flatten(2).transpose(1, 2))
        real = resize_mask(mask, shape)
        assert torch.equal(memory.mask[:, part], real.flatten(1))
        expected = grid_positions(real, WIDTH).flatten(1, -2) + neck.level_embedding[index]
        torch.testing.assert_close(memory.positions[:, part], expected)
        torch.testing.assert_close(memory.references[:, part], cell_centers(shape, valid_ratios(real)))
        start += count
    assert start == memory.tokens.shape[1]


def test_added_levels_shrink_the_last_map_then_each_other(num_dims: int) -> None:
    neck, maps, _ = make(num_dims)
    levels = neck.levels(maps)
    torch.testing.assert_close(levels[2], neck.projections[2](maps[-1]))
    torch.testing.assert_close(levels[3], neck.projections[3](levels[2]))
    assert levels[2].shape[2] == -(-maps[-1].shape[2] // 2)


def test_it_takes_the_last_maps_of_a_backbone(num_dims: int) -> None:
    neck, maps, mask = make(num_dims)
    finer = torch.randn(2, 3, *mask.shape[1:])
    torch.testing.assert_close(neck([finer, *maps], mask).tokens, neck(maps, mask).tokens)


def test_learned_positions_are_looked_up_axis_by_axis(num_dims: int) -> None:
    positions = LearnedPositions(num_dims, 12, size=5)
    shape = (2, 3, 4)[:num_dims]
    found = positions(torch.ones(2, *shape, dtype=torch.bool))
    assert found.shape == (2, *shape, 12)
    for cell in itertools.product(*(range(size) for size in shape)):
        natural = [table[place] for table, place in zip(positions.tables, cell, strict=True)][::-1]
        torch.testing.assert_close(found[(1, *cell)], torch.cat(natural))


def test_a_grid_beyond_the_learned_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="learned for 5 an axis"):
        LearnedPositions(2, 12, size=5)(torch.ones(1, 3, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="cannot be divided"):
        LearnedPositions(2, 13)


def test_a_neck_may_learn_its_positions(num_dims: int) -> None:
    neck, maps, mask = make(num_dims, positions=LearnedPositions(num_dims, WIDTH), level_embedding=False)
    memory = neck(maps, mask)
    assert memory.positions is not None
    memory.positions.sum().backward()
    assert neck.positions is not None
    assert all(table.grad is not None and table.grad.abs().sum() > 0 for table in neck.positions.tables)


def test_cells_of_long_sequences_are_placed_exactly() -> None:
    clips = 75_000
    neck = Neck(1, (2,), 4, num_levels=1, group_norm=0)
    memory = neck([torch.zeros(1, 2, clips)], torch.ones(1, clips, dtype=torch.bool))
    assert memory.references is not None
    places = memory.references[0, :, 0].double() * clips - 0.5
    assert (places - torch.arange(clips)).abs().max() < 1e-9
