"""Every number recorded from official code, against ours: `pytest tests/parity --goldens DIR [--except A,B]`."""

from __future__ import annotations

import pytest
from parity.plan import NoSystem, Plan, ProvedElsewhere
from parity.report import Report, verdict


def test_equal(planned: Plan, excused: tuple[str, ...], parity_report: Report) -> None:
    pattern = planned.item.matches(excused)
    if pattern is not None:
        parity_report.missing[planned.item.name] = f"not run: named in --except ({pattern})"
        pytest.skip(f"{planned.item.name} is named in --except ({pattern})")
    try:
        rows = planned.rows()
    except ProvedElsewhere as where:
        parity_report.missing[planned.item.name] = str(where)
        pytest.skip(str(where))
    except NoSystem as error:
        parity_report.missing[planned.item.name] = f"FAILED: {error}"
        pytest.fail(f"{error}; if it is not built yet, name it: --except '{planned.item.name}'", pytrace=False)
    parity_report.add(planned.group, planned.part, rows)
    failure = verdict(rows)
    if failure:
        pytest.fail(f"{planned.id}: {failure}", pytrace=False)
