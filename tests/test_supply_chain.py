"""No file that somebody else made may run code: read from the source, without exceptions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("momentdetr", "detection", "benchmarks", "data", "configs", "docs")

FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__",
    "os.system", "os.popen",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "joblib.load", "marshal.load", "marshal.loads", "shelve.open",
    "pandas.read_pickle", "pd.read_pickle",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load",
    "torch.export.load",
}  # fmt: skip
FORBIDDEN_ARGUMENTS = {("weights_only", False), ("allow_pickle", True), ("shell", True), ("trust_remote_code", True)}


def faults(source: str) -> Iterator[str]:
    """What in a file could run code that came from outside."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in FORBIDDEN_CALLS:
            yield f"line {node.lineno}: {name}"
        arguments = {word.arg: word.value for word in node.keywords if word.arg}
        for word, value in arguments.items():
            if isinstance(value, ast.Constant) and (word, value.value) in FORBIDDEN_ARGUMENTS:
                yield f"line {node.lineno}: {word}={value.value!r}"
            if not isinstance(value, ast.Constant) and word in {"weights_only", "allow_pickle", "shell"}:
                yield f"line {node.lineno}: {word} is not a constant"
        if name == "torch.load" and "weights_only" not in arguments:
            yield f"line {node.lineno}: torch.load without weights_only=True"
        if name in {"np.load", "numpy.load"} and "allow_pickle" not in arguments:
            yield f"line {node.lineno}: {name} without allow_pickle=False"


def test_no_file_of_ours_runs_what_it_reads() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")] + list(ROOT.glob("*.py"))
    assert len(files) > 20
    found = [f"{path.relative_to(ROOT)} {fault}" for path in files for fault in faults(path.read_text("utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(p, weights_only=False)", "torch.load(p)", "np.load(p)", "np.load(p, allow_pickle=True)",
        "subprocess.run(c, shell=True)", "subprocess.run(c, shell=flag)", "yaml.load(t)", "eval(t)", "exec(t)",
        "pickle.load(f)", "pickle.Unpickler(f)", "f(weights_only=not safe)",
    ],
)  # fmt: skip
def test_each_fault_is_seen(source: str) -> None:
    assert list(faults(source))


@pytest.mark.parametrize(
    "source",
    ["torch.load(p, weights_only=True)", "model.eval()", "yaml.safe_load(t)", "np.load(p, allow_pickle=False)"],
)
def test_what_is_safe_is_let_pass(source: str) -> None:
    assert not list(faults(source))
