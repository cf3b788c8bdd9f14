from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from made_data import document, write_coco

from detection.__main__ import main
from detection.data_verbs import percentage
from momentdetr.errors import BadInput


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def started(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["detection", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return started


def test_check_says_what_is_there(tmp_path: Path, run: Run) -> None:
    write_coco(tmp_path)
    done = run("data", "check", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "images       3, usable 3" in done.stdout
    assert "faults       0" in done.stdout


def test_check_ends_with_2_and_names_each_fault(tmp_path: Path, run: Run) -> None:
    content = document()
    content["annotations"][0]["bbox"] = [0, 0, 0, 0]
    content["annotations"][3]["category_id"] = 99
    write_coco(tmp_path, content)
    done = run("data", "check", tmp_path, "--json")
    assert done.returncode == 2
    (found,) = json.loads(done.stdout)
    assert [one["where"].split(" (")[0] for one in found["faults"]] == ["annotation 1", "annotation 4"]
    assert "Traceback" not in done.stderr
    assert run("data", "check", tmp_path, "--skip-bad", "50%").returncode == 0


def test_convert_check_and_score_are_one_path(tmp_path: Path, run: Run) -> None:
    write_coco(tmp_path / "in", split="images")
    labels = tmp_path / "in" / "labels"
    labels.mkdir()
    (labels / "0.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    out = tmp_path / "out"
    assert run("data", "convert", tmp_path / "in", out, "--layout", "yolo").returncode == 2
    done = run("data", "convert", tmp_path / "in", out, "--layout", "yolo", "--names", tmp_path / "names.txt")
    assert done.returncode == 0, done.stderr
    assert "3 images, 1 boxes, 2 classes" in done.stderr
    assert run("data", "check", out).returncode == 0
    (tmp_path / "found.json").write_text(
        json.dumps([{"image_id": 1, "category_id": 2, "bbox": [16, 12, 32, 24], "score": 0.5}])
    )
    truth = out / "annotations" / "instances_train.json"
    done = run("score", tmp_path / "found.json", truth, "--json")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert scores["AP"] == pytest.approx(1)
    assert scores["per_class"] == {"cat": pytest.approx(1)}
    assert list(scores)[:3] == ["AP", "AP50", "AP75"]
    assert "AP50   1.0000" in run("score", tmp_path / "found.json", truth).stdout


@pytest.mark.parametrize(
    "arguments", [("data", "check", "nothing"), ("data", "convert", "nothing", "out"), ("score", "nothing", "nothing")]
)
def test_bad_input_ends_with_2_and_one_message(arguments: tuple[str, ...], run: Run) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("text", "value"), [("2%", 2.0), ("0.5", 0.5), (" 100 % ", 100.0)])
def test_a_percentage(text: str, value: float) -> None:
    assert percentage(text) == value


@pytest.mark.parametrize("text", ["", "%", "-1%", "101", "nan", "a few"])
def test_no_percentage(text: str) -> None:
    with pytest.raises(BadInput, match="expected a percentage"):
        percentage(text)
