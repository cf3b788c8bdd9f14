"""Imports run one way: detr <- retrieval <- search <- command line and page. Read from the source, nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

CORE = {"errors", "detr", "features", "weights", "training", "evaluation", "datasets", "retrieval", "search"}
# Area -> what of ours it may import: an area, or one module of it. Itself is always allowed.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "detr": set(),
    "pickled": {"errors"},
    "strict": {"errors"},
    "features": {"errors", "__init__"},  # the decoding process is told where the package is
    "weights": {"errors", "features.spec"},
    "training": {"errors"},
    "evaluation": {"errors"},
    "datasets": {"errors"},
    "retrieval": {
        "errors",
        "detr",
        "pickled",
        "strict",
        "features.spec",
        "features.layouts",
        "datasets",
        "training",
        "evaluation",
    },
    "extraction": {"errors", "features", "weights", "datasets.jsonl"},
    "search": {"errors", "features", "weights", "retrieval"},
    "demo": CORE,
    "web": CORE | {"demo"},
    "doctor": CORE | {"__init__"},
    "terminal": {"errors", "search", "demo"},
    "cli": CORE | {"__init__", "demo", "web", "doctor", "terminal", "cli_data", "cli_extract"},
    "cli_data": CORE | {"terminal"},
    "cli_extract": {"extraction", "terminal"},
    "__main__": {"cli"},
    "__init__": {"errors", "search"},
    "detection": {"errors", "detr", "pickled", "strict", "training", "evaluation", "demo", "features"},
    "app": {"cli", "web"},
}


def sources() -> dict[str, Path]:
    """Module name -> file, of everything that is ours."""
    found = {}
    for package in ("momentdetr", "detection"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    if (ROOT / "app.py").is_file():
        found["app"] = ROOT / "app.py"
    return found


def imported(tree: ast.Module, *, for_types: bool, known: set[str]) -> Iterator[str]:
    """Modules of ours that a file imports, anywhere in it; `for_types` includes `if TYPE_CHECKING` blocks."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not for_types:
            pending.extend(node.orelse)
            continue
        pending.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point to"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else str(node.module) for name in names if node.module in known)


def area(module: str) -> str:
    """`momentdetr.features.spec` -> "features"; `momentdetr` itself -> "__init__"."""
    parts = module.split(".")
    return parts[0] if parts[0] != "momentdetr" else parts[1] if len(parts) > 1 else "__init__"


def graph(*, for_types: bool) -> dict[str, set[str]]:
    files = sources()
    return {
        module: set(imported(ast.parse(path.read_text("utf-8")), for_types=for_types, known=set(files))) - {module}
        for module, path in files.items()
    }


def is_allowed(importer: str, module: str) -> bool:
    return area(module) == area(importer) or any(
        area(module) == one or module == f"momentdetr.{one}" for one in ALLOWED[area(importer)]
    )


def test_every_area_has_its_rule() -> None:
    assert {area(module) for module in sources()} <= set(ALLOWED)


def test_imports_run_one_way() -> None:
    wrong = [
        f"{importer} imports {module}"
        for importer, modules in graph(for_types=True).items()
        for module in sorted(modules)
        if not is_allowed(importer, module)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_through_others() -> None:
    assert cycles(graph(for_types=False)) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cli.py", ["momentdetr.cli_data", "momentdetr.cli_extract", "momentdetr.errors", "momentdetr.terminal"]),
        ("cli_data.py", ["momentdetr.terminal"]),
    ],
)
def test_cli_imports_nothing_of_ours_heavy_at_once(name: str, expected: list[str]) -> None:
    tree = ast.parse((ROOT / "momentdetr" / name).read_text("utf-8"))
    at_once = [
        node for node in tree.body if isinstance(node, ast.ImportFrom) and str(node.module).startswith("momentdetr")
    ]
    assert [node.module for node in at_once] == expected


def cycles(edges: dict[str, set[str]]) -> list[str]:
    """Every edge that closes a circle."""
    done: set[str] = set()
    found: list[str] = []

    def walk(module: str, path: tuple[str, ...]) -> None:
        for target in sorted(edges.get(module, ())):
            if target in path:
                found.append(" -> ".join([*path[path.index(target) :], target]))
            elif target not in done:
                walk(target, (*path, target))
        done.add(module)

    for module in sorted(edges):
        if module not in done:
            walk(module, (module,))
    return found


# The rules above are only worth something if they can fail.


@pytest.mark.parametrize(
    ("importer", "module", "allowed"),
    [
        ("momentdetr.detr.boxes", "momentdetr.detr.types", True),
        ("momentdetr.detr.boxes", "momentdetr.errors", False),
        ("momentdetr.retrieval.model", "momentdetr.detr.types", True),
        ("momentdetr.retrieval.model", "momentdetr.features.spec", True),
        ("momentdetr.retrieval.model", "momentdetr.features.video", False),
        ("momentdetr.retrieval.model", "momentdetr.search.windows", False),
        ("momentdetr.training.loop", "momentdetr.retrieval.model", False),
        ("momentdetr.search.loading", "momentdetr.demo.run", False),
        ("detection.model", "momentdetr.retrieval.model", False),
    ],
)
def test_the_rules_know_right_from_wrong(importer: str, module: str, allowed: bool) -> None:
    assert is_allowed(importer, module) is allowed


def test_the_reader_sees_imports_wherever_they_stand() -> None:
    source = (
        "import a.b\nfrom a import b as x\nif TYPE_CHECKING:\n    from a.c import D\ndef f():\n    from a.d import E\n"
    )
    known = {"a", "a.b", "a.c", "a.d"}
    assert set(imported(ast.parse(source), for_types=True, known=known)) == {"a.b", "a.c", "a.d"}
    assert set(imported(ast.parse(source), for_types=False, known=known)) == {"a.b", "a.d"}


def test_a_circle_is_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a -> b -> c -> a"]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
