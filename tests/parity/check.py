"""What a system must show: every recorded number of a golden folder, against a run of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parity import tolerance
from parity.comparison import (
    Fingerprint,
    Reason,
    Row,
    Status,
    compare_exactly,
    compare_gradient,
    compare_number,
    compare_tensor,
    uncompared,
)
from parity.material import Golden
from parity.predictions import Answer, check_answers, recorded_answers
from torch import Tensor

TIED = 1e-6  # targets are float32 numbers; predictions are the official ones, so a tie is exact but for that
TIE = "another matching of equal cost"

Pairs = list[list[int]]
"""Matched pairs of one sample: [query indices, target indices]."""


@dataclass(frozen=True)
class Case:
    """Ours for one training case.

    Args:
        losses: every unweighted term, by its official name.
        weighted_sum: what is back-propagated.
        indices: for each matcher, for each call in the official order, the pairs of each sample; None: never called.
        gradients: of each parameter, by its official name; None: no gradient reached it.
        extra: whatever else is recorded beside the losses.
    """

    losses: Mapping[str, float | Tensor]
    weighted_sum: float | Tensor
    indices: Mapping[str, list[list[Pairs]] | None]
    gradients: Mapping[str, Tensor | None]
    extra: Mapping[str, float | Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """Ours in one precision.

    Args:
        outputs: tensors by their recorded names.
        cases: training cases by their recorded names.
        answers: what `predict` says of each sample, for systems whose final answers are recorded.
        parameters: how many our model has, where the official one has as many.
    """

    outputs: Mapping[str, Tensor]
    cases: Mapping[str, Case]
    answers: Sequence[Answer] | None = None
    parameters: int | None = None


@dataclass(frozen=True)
class System:
    """How one published system is run here.

    Args:
        name: what it is called in messages.
        accepts: whether a config.json is of this system.
        run: loads the official weights through the product's converter and computes everything in "float32" or
            "float64".
        pins: patterns of the recorded names that the official code computes through a float32 part even in float64.
        permitted: patterns of the recorded names that cannot be compared, with the reason.
        costs: of one sample's matching (Q, M), from the official code's own predictions: golden, precision, case, call,
            sample. Two matchings of equal cost there are both right; None: no tie is accepted.
        stated: what is allowed in float32, for systems whose official code runs in float32 only.
        rounding: the official code's own error in float32, of recorded tensors whose exact values are known.
    """

    name: str
    accepts: Callable[[Mapping[str, Any]], bool]
    run: Callable[[Golden, str], Run]
    pins: tuple[str, ...] = ()
    permitted: Mapping[str, Reason] = field(default_factory=dict)
    costs: Callable[[Golden, str, str, int, int], Tensor] | None = None
    stated: tolerance.Stated | None = None
    rounding: Callable[[Golden], Mapping[str, float]] | None = None


def check_outputs(golden: Golden, run: Run, system: System, dtype: str) -> list[Row]:
    """A row for every recorded output tensor."""
    rows = []
    recorded = golden.outputs(dtype)
    worst = tolerance.worst_spread(recorded, golden.tolerances)
    known = system.rounding(golden) if system.rounding is not None and dtype == "float32" else {}
    for name in recorded.keys() & run.outputs.keys():
        limit = tolerance.of_tensor(name, recorded[name], dtype, golden.tolerances, system.pins, worst)
        if system.stated is not None:
            limit = max(system.stated.of(recorded[name]), 10 * known.get(name, 0.0))
        rows.append(compare_tensor(name, run.outputs[name], recorded[name], limit))
    return _in_order(rows + uncompared(recorded.keys() - run.outputs.keys(), system.permitted), recorded)


def check_losses(golden: Golden, run: Run, system: System, dtype: str) -> list[Row]:
    """A row for every recorded loss term, weighted sum and extra number of every case."""
    rows = []
    other = golden.losses("float64")
    for case, recorded in golden.losses(dtype).items():
        ours = run.cases.get(case)
        theirs = _numbers(recorded)
        wide = _numbers(other.get(case, {}))
        given = _given(ours) if ours else {}
        for name, value in theirs.items():
            full = f"train_{case}.{name}"
            limit = tolerance.of_loss(name, value, dtype, wide.get(name), system.pins)
            if system.stated is not None:
                limit = system.stated.of(value)
            if name in given:
                rows.append(compare_number(full, given[name], value, limit))
            else:
                rows += uncompared([full], system.permitted)
        # A term of ours that the official code does not have would be trained on unseen.
        unknown = sorted(name for name in given.keys() - theirs.keys() if name.startswith("losses."))
        rows += [compare_exactly(f"train_{case}.{name}", "a loss term", "no such term") for name in unknown]
    return rows


def _numbers(recorded: Mapping[str, Any]) -> dict[str, float]:
    if "loss_dict" not in recorded:
        return {}
    # mmdetection lists some terms by level; they are trained on their sum.
    terms = {name: sum(value) if isinstance(value, list) else value for name, value in recorded["loss_dict"].items()}
    losses = {f"losses.{name}": value for name, value in terms.items()}
    extra = {f"extra.{name}": value for name, value in (recorded.get("extra") or {}).items()}
    return losses | {"weighted_sum": recorded["weighted_sum"]} | extra


def _given(case: Case) -> dict[str, float | Tensor]:
    losses = {f"losses.{name}": value for name, value in case.losses.items()}
    return losses | {"weighted_sum": case.weighted_sum} | {f"extra.{name}": v for name, v in case.extra.items()}


def check_indices(golden: Golden, run: Run, system: System, dtype: str) -> list[Row]:
    """A row for every call of every matcher: equal pairs, in the same order."""
    rows = []
    for case, recorded in golden.losses(dtype).items():
        ours = run.cases[case].indices if case in run.cases else {}
        for matcher, calls in _matchers(recorded).items():
            name = f"train_{case}.indices.{matcher}"
            if matcher not in ours:
                rows += [compare_exactly(name, None, None)] if not calls else uncompared([name], system.permitted)
                continue
            given = ours[matcher] or []
            rows.append(compare_exactly(f"{name}.calls", len(given), len(calls or [])))
            for call, (mine, theirs) in enumerate(zip(given, calls or [], strict=False)):
                tie = _is_tie(golden, system, dtype, (case, call), mine, theirs)
                rows.append(
                    Row(f"{name}.{call}", Status.EQUAL, 0.0, 0.0, TIE)
                    if tie
                    else compare_exactly(f"{name}.{call}", mine, theirs)
                )
    return rows


def _matchers(recorded: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recorded calls of each matcher; a list where there is but one."""
    indices = recorded.get("indices") or {}
    return {"matcher": indices} if isinstance(indices, list) else indices


def _is_tie(
    golden: Golden, system: System, dtype: str, where: tuple[str, int], ours: list[Pairs], theirs: list[Pairs]
) -> bool:
    """Whether every sample that is matched in another way is matched at the same cost."""
    if ours == theirs or system.costs is None or len(ours) != len(theirs):
        return False
    for sample, (mine, official) in enumerate(zip(ours, theirs, strict=True)):
        if mine == official:
            continue
        cost = system.costs(golden, dtype, *where, sample)
        whole = len(mine[0]) == len(set(mine[0])) == len(set(mine[1])) == len(official[0])
        if not whole or abs(cost[tuple(mine)].sum() - cost[tuple(official)].sum()) > TIED:
            return False
    return True


def check_gradients(golden: Golden, run: Run, system: System, dtype: str) -> list[Row]:
    """A row for every recorded parameter of every case."""
    rows = []
    other = golden.losses("float64")
    for case, recorded in golden.losses(dtype).items():
        theirs = _fingerprints(recorded)
        wide = _fingerprints(other.get(case, {}))
        whole = sum(value.norm**2 for value in theirs.values() if value) ** 0.5
        ours = run.cases[case].gradients if case in run.cases else {}
        for name, value in theirs.items():
            full = f"train_{case}.gradients.{name}"
            if name not in ours:
                rows += uncompared([full], system.permitted)
                continue
            relative = system.stated.gradient if system.stated else None
            allowed = (dtype, wide.get(name), whole, system.pins, relative)
            limit = tolerance.of_gradient(full, value, *allowed) if value else 0.0
            rows.append(compare_gradient(full, ours[name], value, limit))
    return rows


def _fingerprints(recorded: Mapping[str, Any]) -> dict[str, Fingerprint | None]:
    grads = recorded.get("grads") or {}
    return {name: None if value is None else Fingerprint(*value) for name, value in grads.items()}


def check_predictions(golden: Golden, run: Run, system: System, dtype: str) -> list[Row]:
    """Rows for the final answers, where they are recorded."""
    recorded = recorded_answers(golden)
    if recorded is None or dtype != "float32":
        return []
    return uncompared(["preds"], system.permitted) if run.answers is None else check_answers(recorded, run.answers)


def _in_order(rows: Iterable[Row], names: Iterable[str]) -> list[Row]:
    order = {name: position for position, name in enumerate(names)}
    return sorted(rows, key=lambda row: order[row.name])


CHECKS: dict[str, Callable[[Golden, Run, System, str], list[Row]]] = {
    "outputs": check_outputs,
    "losses": check_losses,
    "indices": check_indices,
    "gradients": check_gradients,
    "predictions": check_predictions,
}
