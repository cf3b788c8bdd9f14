"""The command line: what is on stdout, what on stderr, and the exit code. Oracle: the Python interface."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import tiny_model

from momentdetr import load
from momentdetr.cli import main
from momentdetr.errors import BadVideo
from momentdetr.features.video_write import write_video

QUERIES = ["a red circle spins", "a dragon"]
DURATION_S = 13.0  # 26 clips: more than the 20 that the tiny model sees at once
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model.write(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    dice = np.random.default_rng(0)
    scenes = dice.integers(0, 255, (13, 4, 4, 3), dtype=np.uint8)
    write_video(path, (np.kron(scenes[i // 10], np.ones((16, 16, 1), np.uint8)) for i in range(130)), 10)
    return path


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOMENTDETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # `main` replaces it


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def one_error(result: tuple[int, str, str], code: int = 2) -> str:
    """Check that a run failed with one message and nothing else; returns the message."""
    assert result[0] == code, result[2]
    assert result[1] == ""
    assert "Traceback" not in result[2]
    assert result[2].count("error:") == 1
    return result[2]


def test_the_table_shows_every_query_and_moment(run: Run, film: Path, model: str) -> None:
    code, out, err = run("search", film, *QUERIES, "--model", model, "--top", 2)
    assert code == 0, err
    assert "film" in out
    assert all(query in out for query in QUERIES)
    retriever = load(model, "cpu")
    result = retriever.search(retriever.encode(film), QUERIES, 2)
    ranks = [line for line in out.splitlines() if " - " in line and ":" in line and "start" not in line]
    assert len(ranks) == sum(len(answer.moments) for answer in result)
    assert "encoding" in err


def test_json_on_stdout_is_the_python_result_and_nothing_else(run: Run, film: Path, model: str) -> None:
    code, out, _ = run("search", film, *QUERIES, "--model", model, "--json", "--device", "cpu")
    retriever = load(model, "cpu")
    assert code == 0
    assert json.loads(out) == retriever.search(retriever.encode(film), QUERIES).to_dict()
    assert len(json.loads(out)["queries"][0]["saliency"]["scores"]) == 26


def test_csv_and_subtitles(run: Run, film: Path, model: str) -> None:
    _, as_csv, _ = run("search", film, *QUERIES, "--model", model, "--csv")
    _, as_srt, _ = run("search", film, *QUERIES, "--model", model, "--srt")
    rows = list(csv.DictReader(io.StringIO(as_csv)))
    assert {row["query"] for row in rows} == set(QUERIES)
    assert all(0 <= float(row["start_s"]) < float(row["end_s"]) <= DURATION_S + 0.01 for row in rows)
    assert as_srt.count(" --> ") == len(rows)


def test_pictures_and_clips(run: Run, film: Path, model: str, tmp_path: Path) -> None:
    picture, folder = tmp_path / "new" / "picture.png", tmp_path / "clips"
    arguments = ("search", film, QUERIES[0], "--model", model, "--top", 2, "--json")
    code, out, err = run(*arguments, "--plot", picture, "--clips", folder)
    assert code == 0, err
    assert picture.read_bytes().startswith(b"\x89PNG")
    moments = json.loads(out)["queries"][0]["moments"]
    clips = sorted(folder.iterdir())
    assert [clip.name[:3] for clip in clips] == [f"1-{rank}" for rank in range(1, len(moments) + 1)]
    for clip, moment in zip(clips, moments, strict=True):
        with av.open(str(clip)) as container:
            frames = sum(1 for _ in container.decode(video=0))
        assert frames / 10 == pytest.approx(moment["end_s"] - moment["start_s"], abs=0.11)


def test_what_was_found_is_printed_though_clips_cannot_be_written(
    run: Run, film: Path, model: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    arguments = ("search", film, QUERIES[0], "--model", model, "--json")
    code, out, err = run(*arguments, "--clips", tmp_path / "file" / "clips", "--plot", tmp_path / "picture.png")
    assert code == 4
    assert json.loads(out)["queries"][0]["moments"]
    assert err.count("error:") == 1
    assert "cannot write" in err
    assert (tmp_path / "picture.png").is_file()


def test_every_failed_file_is_named(run: Run, film: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    arguments = ("search", film, QUERIES[0], "--model", model)
    code, out, err = run(*arguments, "--clips", tmp_path / "file" / "a", "--plot", tmp_path / "file" / "b.png")
    assert code == 4
    assert QUERIES[0] in out
    assert err.count("error:") == 2


def broken_files(folder: Path, film: Path) -> dict[str, Path]:
    whole = film.read_bytes()
    files = {
        "empty.mp4": b"",
        "text.mp4": b"this is no video\n" * 40,
        "half.mp4": whole[: len(whole) // 2],
        "page.mp4": b"<html><body>404</body></html>",
        "picture.mp4": b"\x89PNG\r\n\x1a\n" + bytes(100),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with av.open(str(folder / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    (folder / "folder.mp4").mkdir()
    names = [*files, "audio.mp4", "folder.mp4", "missing.mp4"]
    return {name: folder / name for name in names} | {"a long name": folder / ("x" * 5000 + ".mp4")}


BROKEN = ["empty", "text", "half", "page", "picture", "audio", "folder", "missing"]


@pytest.mark.parametrize("name", [*(f"{name}.mp4" for name in BROKEN), "a long name"])
def test_a_file_that_is_no_video_is_one_error(run: Run, film: Path, model: str, tmp_path: Path, name: str) -> None:
    path = broken_files(tmp_path, film)[name]
    message = one_error(run("search", path, "a dragon", "--model", model, "--json"))
    assert name[:20] in message or name == "a long name"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FILM"], "QUERY"),
        (["FILM", ""], "empty"),
        (["FILM", "a dragon", " "], "empty"),
        (["FILM", "x" * 10_000], "10,000 characters"),
        (["FILM", "a \udcff dragon"], "Unicode"),
        (["FILM", "a dragon", "--json", "--csv"], "--json and --csv contradict"),
        (["FILM", "a dragon", "--csv", "--srt", "--json"], "contradict"),
        (["FILM", "a dragon", "--top", "0"], "--top"),
        (["FILM", "a dragon", "--top", "nan"], "--top"),
        (["FILM", "a dragon", "--model", "nowhere"], "nowhere"),
        (["FILM", "a dragon", "--model", "FILM"], "film.mp4"),
        (["FILM", "a dragon", "--device", "toaster"], "toaster"),
        (["FILM", "a dragon", "--decoder", "vlc"], "vlc"),
        (["FILM", "a dragon", "--plot", "picture.docx"], "docx"),
        (["FILM", "a dragon", "--plot", "picture"], "suffix"),
        (["FILM", "a dragon", "--encoder", "nowhere"], "nowhere"),
    ],
)
def test_a_call_that_makes_no_sense_is_one_error(
    run: Run, film: Path, model: str, arguments: list[str], message: str
) -> None:
    arguments = [str(film) if argument == "FILM" else argument for argument in arguments]
    if "--model" not in arguments:
        arguments += ["--model", model]
    code, out, err = run("search", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert err.lower().count("error:") == 1


def test_published_weights_that_are_not_here_are_an_error_and_not_the_demo(run: Run, film: Path) -> None:
    message = one_error(run("search", film, "a dragon", "--model", "qd-detr-clip"), code=4)
    assert "momentdetr weights pull qd-detr-clip" in message


def test_a_control_character_in_a_name_does_not_reach_the_terminal(run: Run, model: str, tmp_path: Path) -> None:
    err = run("search", tmp_path / "\x1b[31mred.mp4", "a dragon", "--model", model)[2]
    assert "\x1b" not in err
    assert "red.mp4" in err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text_is_a_name(run: Run, film: Path, model: str, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    path.write_bytes(film.read_bytes())
    code, out, err = run("search", path, "a dragon", "--model", model, "--json", "--clips", tmp_path / "clips")
    assert code == 0, err
    assert "a dragon" in out
    code, out, _ = run("search", path, "a dragon", "--model", model)
    assert (code, "caf" in out) == (0, True)
    retriever = load(model, "cpu")
    retriever.search(retriever.encode(path), "a dragon").to_json(tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text("utf-8"))["video"] == "caf\udce9"


def test_what_looks_like_an_option_may_be_a_query_behind_two_dashes(run: Run, film: Path, model: str) -> None:
    code, out, _ = run("search", "--model", model, "--csv", "--", film, "--debug")
    assert code == 0
    assert "--debug" in out


def test_features_are_kept_and_used_again(
    run: Run, film: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run("search", film, "a dragon", "--model", model, "--json")
    assert len(list((tmp_path / "cache" / "features").glob("*.safetensors"))) == 1

    def unread(*_: object, **__: object) -> Any:
        raise BadVideo("was read again")

    monkeypatch.setattr("momentdetr.features.video.read_clips", unread)
    assert run("search", film, "a dragon", "--model", model, "--json")[:2] == first[:2]
    assert "read again" in one_error(run("search", film, "a dragon", "--model", model, "--no-cache"))


def test_nothing_is_kept_when_caching_is_refused(run: Run, film: Path, model: str, tmp_path: Path) -> None:
    assert run("search", film, "a dragon", "--model", model, "--no-cache")[0] == 0
    assert not (tmp_path / "cache" / "features").exists()


def test_the_demo_model_says_what_it_knows(run: Run, film: Path) -> None:
    code, out, err = run("search", film, "a red circle spins", "--json")
    assert code == 0, err
    assert json.loads(out)["model"] == "demo"
    assert "coloured shapes" in err


def fail(error: BaseException) -> Callable[..., Any]:
    def raising(*_: object, **__: object) -> Any:
        raise error

    return raising


def test_an_interrupt_is_130(run: Run, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("momentdetr.search.loading.load", fail(KeyboardInterrupt()))
    code, out, err = run("search", film, "a dragon")
    assert (code, out) == (130, "")
    assert "Traceback" not in err


def test_a_defect_is_one_line_and_a_traceback_on_demand(run: Run, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("momentdetr.search.loading.load", fail(ZeroDivisionError("oops")))
    code, out, err = run("search", film, "a dragon")
    assert (code, out) == (1, "")
    assert err.startswith("internal error: ZeroDivisionError: oops")
    assert "Traceback" not in err
    for arguments in (("--debug", "search", film, "a dragon"), ("search", film, "a dragon", "--debug")):
        code, _, err = run(*arguments)
        assert code == 1
        assert "Traceback" in err


def test_our_errors_have_a_traceback_on_demand(run: Run, model: str) -> None:
    code, _, err = run("search", "missing.mp4", "a dragon", "--model", model, "--debug")
    assert code == 2
    assert "Traceback" in err


def test_nobody_reading_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        command = [sys.executable, "-m", "momentdetr", "weights", "list"]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.returncode in (1, 141)


def test_version(run: Run) -> None:
    import momentdetr

    assert run("--version") == (0, momentdetr.__version__ + "\n", "")


def test_doctor_tries_the_decoders_and_says_so(run: Run) -> None:
    code, out, _ = run("doctor")
    lines = {line[5:33].strip(): (line[:3], line[35:]) for line in out.splitlines()}
    assert lines["read with pyav"] == ("ok ", "works")
    assert lines["read with decord"][0] == "ok "
    assert lines["torch"][1][0].isdigit()
    assert code == (0 if lines["demo model"][0] == "ok " else 4)
    assert {finding["name"] for finding in json.loads(run("doctor", "--json")[1])} == set(lines)


def test_doctor_reports_a_broken_decoder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("momentdetr.features.video.read_clips", fail(RuntimeError("no codec")))
    code, out, _ = run("doctor")
    assert code == 4
    assert "BAD  read with pyav" in out
    assert "no codec" in out


def test_weights_list_and_path(run: Run) -> None:
    code, out, _ = run("weights", "list")
    assert code == 0
    assert "qd-detr-clip" in out
    assert "licence" in out
    assert "weights pull clip-vit-b-32" in one_error(run("weights", "path", "clip-vit-b-32"), code=4)
    assert "Did you mean" in one_error(run("weights", "path", "qd-detr-clop"))
    assert "weights pull" in one_error(run("weights", "verify", "clip-vit-b-32"), code=4)
    assert "HF_HUB_OFFLINE" in one_error(run("weights", "pull", "clip-vit-b-32"), code=4)


def test_convert_refuses_what_is_no_checkpoint(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_text("<html>", "utf-8")
    assert "model.ckpt" in one_error(run("convert", tmp_path / "model.ckpt", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_train_hands_everything_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def train(*arguments: Any) -> Path:
        calls.append(arguments)
        return tmp_path / "retriever"

    monkeypatch.setattr("momentdetr.retrieval.train.train", train)
    code, out, _ = run("train", "a.yaml", "--set", "x.y=1", "--set", "z=2", "--output", tmp_path, "--resume")
    assert (code, out) == (0, f"{tmp_path / 'retriever'}\n")
    assert calls == [(Path("a.yaml"), ["x.y=1", "z=2"], tmp_path, True)]


@pytest.mark.parametrize(("problems", "code"), [([], 0), (["'a dragon': answered 1.0 - 2.0 s"], 1)])
def test_demo_check_exits_with_0_only_if_all_is_right(
    run: Run, monkeypatch: pytest.MonkeyPatch, problems: list[str], code: int
) -> None:
    monkeypatch.setattr("momentdetr.demo.run.check", lambda: problems)
    found, out, err = run("demo", "--check")
    assert (found, out) == (code, "")
    assert all(problem in err for problem in problems)
    assert "coloured shapes" in err


def test_demo_evaluate_prints_the_scores(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"seed": 7, "R1@0.5": 91.5, "baseline": {"mAP": 40.25}}
    monkeypatch.setattr("momentdetr.demo.run.evaluate", lambda seed, progress: {**scores, "seed": seed})
    code, out, _ = run("demo", "--evaluate", "--seed", 7, "--json")
    assert code == 0
    assert json.loads(out) == scores
    assert run("demo", "--evaluate", "--seed", 7)[1] == "seed: 7\nR1@0.5: 91.5\nbaseline:\n  mAP: 40.25\n"


@pytest.mark.parametrize(
    "arguments", [["--check", "--serve"], ["--check", "--evaluate"], ["--serve", "--json"], ["--check", "--json"]]
)
def test_demo_does_one_thing_at_a_time(run: Run, arguments: list[str]) -> None:
    assert "contradict" in one_error(run("demo", *arguments))


def test_serve_hands_everything_on_and_closes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, Any]] = []
    closed: list[bool] = []

    def serve(model: str, **options: Any) -> Any:
        calls.append((model, options))
        page = SimpleNamespace(block_thread=fail(KeyboardInterrupt()))
        return SimpleNamespace(url="http://127.0.0.1:1234/", page=page, close=lambda: closed.append(True))

    monkeypatch.setattr("momentdetr.web.serve", serve)
    code, _, err = run("serve", "--model", "m", "--port", 1234, "--auth", "a:b:c", "--device", "cpu")
    options = {"host": "127.0.0.1", "port": 1234, "auth": ("a", "b:c"), "allow_anyone": False, "device": "cpu"}
    assert callable(calls[0][1].pop("progress"))
    assert calls == [("m", {**options, "open_browser": False, "block": False})]
    assert code == 130
    assert closed == [True]
    assert "http://127.0.0.1:1234/" in err
    assert "USER:PASSWORD" in one_error(run("serve", "--auth", "nobody"))
