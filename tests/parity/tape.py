"""Read a pair of goldens (tensors and facts) so that nothing in it can be overlooked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parity import tolerance
from parity.comparison import Row, compare_exactly, compare_tensor, uncompared
from safetensors.torch import load_file
from torch import Tensor


class Tape:
    """Tensors and facts that are taken as an input or compared, one by one; `rows` shows what was left.

    Args:
        path: the pair's .json file.
        ours: which names must be accounted for.
    """

    def __init__(self, path: Path, ours: Callable[[str], bool]) -> None:
        self.facts: dict[str, Any] = json.loads(path.read_text())
        tensors = path.with_suffix(".safetensors")
        self.tensors = load_file(tensors) if tensors.is_file() else {}
        self.names = [name for name in (*self.tensors, *self.facts) if ours(name)]
        self._seen: set[str] = set()
        self._rows: list[Row] = []

    def __getitem__(self, name: str) -> Tensor:
        """A recorded tensor, as an input."""
        self._seen.add(name)
        return self.tensors[name]

    def fact(self, name: str) -> Any:
        """A recorded fact, as an input."""
        self._seen.add(name)
        return self.facts[name]

    def compare(self, name: str, ours: Tensor) -> None:
        """Compare a float32 tensor."""
        theirs = self[name]
        if not theirs.is_floating_point():
            self._rows.append(compare_exactly(name, ours.tolist(), theirs.tolist()))
            return
        self._rows.append(compare_tensor(name, ours, theirs, tolerance.of_tensor(name, theirs, "float32", {}, ())))

    def equal(self, name: str, ours: object) -> None:
        """Compare a recorded fact."""
        self._rows.append(compare_exactly(name, ours, self.fact(name)))

    def rows(self) -> list[Row]:
        """A row for each comparison, and a failure for each name that was neither read nor compared."""
        return self._rows + uncompared([name for name in self.names if name not in self._seen], {})
