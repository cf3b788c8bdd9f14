"""The retrievers still give the numbers that were recorded when the parity tests passed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from recorded_values import CASES, FOLDER, batch, model_of, numbers

# Recorded in float64; sine positions are float32 by design, and their last bit is the machine's.
RELATIVE, ABSOLUTE = 1e-5, 1e-6


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_recorded(case: str) -> None:
    recorded = dict(leaves(json.loads((FOLDER / f"{case}.json").read_text())))
    ours = dict(leaves(numbers(case)))
    assert ours.keys() == recorded.keys()
    different = {name: (ours[name], value) for name, value in recorded.items() if not same(ours[name], value)}
    assert not different


def test_every_recorded_case_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(CASES)


def test_a_changed_weight_changes_the_numbers() -> None:
    """The records notice a change of one part in a thousand in one bias."""
    recorded = json.loads((FOLDER / "qd_detr.json").read_text())["scores"]
    model = model_of("qd_detr")
    model.head.decoder.heads[0].classes.bias.data[0] += 1e-3
    scores = model.eval().predict(batch()[0]).scores.flatten()
    assert not all(same(a, b) for a, b in zip(scores[:4].tolist(), recorded[2:], strict=True))


def same(ours: Any, recorded: Any) -> bool:
    if isinstance(recorded, float) and isinstance(ours, float):
        return abs(ours - recorded) <= ABSOLUTE + RELATIVE * abs(recorded)
    return bool(ours == recorded)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number of a nested record, by its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}/{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{name}[{index}]")
    else:
        yield name, value
