"""`momentdetr score`: the official structure on stdout, remarks on stderr, exit code 2 for what cannot be scored."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from momentdetr.cli import main

Run = Callable[..., tuple[int, str, str]]
DATA_SETS = {
    "charades": {"vid": "AO8RW", "duration": 33.0, "relevant_windows": [[0.0, 6.0]]},
    "tacos": {"vid": "s17-d69", "duration": 400.0, "relevant_windows": [[10.0, 200.0]]},
    "activitynet": {"vid": "v_a", "duration": 100.0, "relevant_windows": [[10.0, 60.0]]},
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def truth_line(qid: int, *windows: list[float]) -> dict[str, Any]:
    clips = list(range(int(windows[0][0] // 2), int(windows[0][1] // 2)))
    return {
        "qid": qid,
        "query": f"query {qid}",
        "vid": f"v{qid}",
        "duration": 150,
        "relevant_windows": list(windows),
        "relevant_clip_ids": clips,
        "saliency_scores": [[4, 4, 4]] * len(clips),
    }


def said(qid: int, *windows: list[float], saliency: list[float] | None = None) -> dict[str, Any]:
    return {
        "qid": qid,
        "query": "",
        "vid": f"v{qid}",
        "pred_relevant_windows": list(windows),
        "pred_saliency_scores": saliency or [0.0] * 75,
    }


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    lines = truth_line(1, [0, 10]), truth_line(2, [20, 40], [60, 64]), truth_line(3, [50, 120])
    return write(tmp_path / "truth.jsonl", *lines)


def test_json_has_the_official_structure_and_ours(run: Run, tmp_path: Path, truth: Path) -> None:
    lines = said(1, [0, 10, 0.9]), said(2, [20, 40, 0.9], [60, 64, 0.8]), said(3, [50, 120, 0.7], [0, 4, 0.1])
    code, out, err = run("score", write(tmp_path / "said.jsonl", *lines), truth, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["brief"]["MR-full-R1@0.5"] == document["brief"]["MR-full-mAP"] == 100
    assert document["full"]["MR-R1"]["0.7"] == document["full"]["MR-mIoU"] == 100
    assert document["short"]["MR-mAP"]["average"] == 75  # of query 2 only the second window is short
    assert document["middle"]["MR-mAP"]["average"] == document["long"]["MR-mAP"]["0.95"] == 100
    assert set(document["HL-min-VeryGood"]) == {"HL-mAP", "HL-Hit1"}
    counts = {"short": 2, "middle": 1, "long": 1, "full": 3}
    assert document["momentdetr"] == {"protocol": "qvhighlights", "counts": counts, "notes": []}


def test_people_see_the_headline(run: Run, tmp_path: Path, truth: Path) -> None:
    lines = said(1, [0, 10, 0.9]), said(2, [0, 5, 0.9]), said(3, [50, 120, 0.7])
    code, out, _ = run("score", write(tmp_path / "said.jsonl", *lines), truth)
    assert code == 0
    assert "MR-full-R1@0.7: 66.67\n" in out


def test_what_was_not_answered_scores_zero_and_is_named(run: Run, tmp_path: Path, truth: Path) -> None:
    path = write(tmp_path / "said.jsonl", said(1, [0, 10, 0.9]), said(9, [0, 1, 1.0]), said(3))
    code, out, err = run("score", path, truth, "--json")
    assert code == 0
    assert json.loads(out)["brief"]["MR-full-R1@0.5"] == 33.33
    assert "not predicted: 2" in err
    assert "not annotated: 9" in err
    assert "no window predicted: 3" in err
    assert json.loads(out)["momentdetr"]["notes"] == [line.removeprefix("note: ") for line in err.splitlines()]


def test_strictly_it_fails_as_the_official_script(run: Run, tmp_path: Path, truth: Path) -> None:
    path = write(tmp_path / "said.jsonl", said(1, [0, 10, 0.9]), said(3, [0, 1, 1.0]))
    code, out, err = run("score", path, truth, "--strict-official")
    assert (code, out) == (2, "")
    assert "not predicted 2" in err


def test_every_faulty_line_is_named(run: Run, tmp_path: Path, truth: Path) -> None:
    nan = json.dumps(said(2, [0, 1, float("nan")]))
    path = write(tmp_path / "said.jsonl", said(1, [0, 10, 0.9]), nan, "{", {"qid": 3, "pred_relevant_windows": [[1]]})
    code, out, err = run("score", path, truth)
    assert (code, out) == (2, "")
    assert all(f"line {number}:" in err for number in (2, 3, 4))
    assert "line 1:" not in err
    assert "Traceback" not in err


def test_scores_after_nms_stand_beside_the_raw_ones(run: Run, tmp_path: Path, truth: Path) -> None:
    doubled = said(2, [20, 40, 0.9], [20, 39, 0.85], [60, 64, 0.8])
    path = write(tmp_path / "said.jsonl", said(1, [0, 10, 0.9]), doubled, said(3, [50, 120, 0.7]))
    document = json.loads(run("score", path, truth, "--json", "--nms", "0.7")[1])
    once = said(2, [20, 40, 0.9], [60, 64, 0.8])
    path = write(tmp_path / "once.jsonl", said(1, [0, 10, 0.9]), once, said(3, [50, 120, 0.7]))
    expected = json.loads(run("score", path, truth, "--json")[1])
    assert document["brief"]["MR-full-mAP"] < 100
    assert document["nms"].pop("threshold") == 0.7
    expected.pop("momentdetr")
    assert document["nms"] == expected
    assert run("score", path, truth, "--nms", "1.5")[0] == 2


@pytest.mark.parametrize("protocol", sorted(DATA_SETS))
def test_protocols_of_single_windows(run: Run, tmp_path: Path, protocol: str) -> None:
    line = {"qid": 5, "query": "a query", **DATA_SETS[protocol]}
    (start, end) = line["relevant_windows"][0]
    half = [start, start + (end - start) * 0.6, 0.5]
    truth = write(tmp_path / "truth.jsonl", line)
    document = json.loads(
        run("score", write(tmp_path / "said.jsonl", said(5, half)), truth, "--protocol", protocol, "--json")[1]
    )
    brief = document["brief"]
    assert [brief[f"MR-full-R1@{t}"] for t in ("0.3", "0.5", "0.7")] == [100, 100, 0]
    assert brief["MR-full-mIoU"] == 60
    assert not any(name.startswith("HL") for name in document)
    assert ("beyond" in document["momentdetr"]) == (end - start > 150)


def test_windows_beyond_150_seconds_are_told(run: Run, tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.jsonl", {"qid": 5, "query": "a query", **DATA_SETS["tacos"]})
    path = write(tmp_path / "said.jsonl", said(5, [10, 200, 0.5]))
    _, out, err = run("score", path, truth, "--protocol", "tacos", "--json")
    document = json.loads(out)
    assert document["momentdetr"]["beyond"]["MR-mAP"]["average"] == 100
    assert document["long"]["MR-mAP"]["average"] == 0
    assert "more than 150 s" in err


def tvsum_line(vid: str, domain: str, num_clips: int = 6) -> dict[str, Any]:
    label = [[1 + (clip == 2) * 4] * 20 for clip in range(num_clips)]
    return {"qid": vid, "query": "t", "vid": vid, "duration": num_clips, "domain": domain, "label": label}


def test_tvsum_averages_domains_and_takes_one(run: Run, tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.jsonl", tvsum_line("a", "BT"), tvsum_line("b", "DS"))
    right, wrong = [0, 0, 9, 1, 1, 1], [5, 4, 3, 2, 1, 0]
    path = write(tmp_path / "said.jsonl", {"vid": "a", "pred": right}, {"qid": "b", "pred_saliency_scores": wrong})
    document = json.loads(run("score", path, truth, "--protocol", "tvsum", "--json")[1])
    third = (0 + 1 / 3) / 2  # the one highlight stands third: recall jumps there from 0 to 1
    assert document["domains"]["BT"] == {"mAP": 1.0, "videos": 1}
    assert document["domains"]["DS"]["mAP"] == pytest.approx(third, abs=1e-5)
    assert document["brief"]["mAP"] == pytest.approx((1 + third) / 2, abs=1e-5)
    one = write(tmp_path / "one.jsonl", {"vid": "a", "pred": right})
    assert json.loads(run("score", one, truth, "--protocol", "tvsum", "--json")[1])["brief"]["mAP"] == 0.5
    alone = json.loads(run("score", one, truth, "--protocol", "tvsum", "--domain", "BT", "--json")[1])
    assert alone["brief"]["mAP"] == 1
    code, _, err = run("score", one, truth, "--protocol", "tvsum", "--domain", "XX")
    assert code == 2
    assert "'BT', 'DS'" in err


def youtube_line(vid: str, labels: list[int]) -> dict[str, Any]:
    return {
        "qid": vid,
        "query": "dog",
        "vid": vid,
        "domain": "dog",
        "duration": 10.0,
        "frames": 300,
        "fps": 30.0,
        "clip": [[50 * i, 50 * i + 100] for i in range(len(labels))],
        "match": labels,
        "label": [[int(label == 1)] for label in labels],
    }


def test_youtube_videos_without_highlight_score_zero_or_are_left_out(run: Run, tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.jsonl", youtube_line("a", [0, 1, -1]), youtube_line("b", [0, 0, -1]))
    path = write(tmp_path / "said.jsonl", {"vid": "a", "pred": [0, 1, 0]}, {"vid": "b", "pred": [0, 1, 0]})
    _, out, err = run("score", path, truth, "--protocol", "youtube", "--json")
    assert json.loads(out)["brief"]["mAP"] == 0.5
    assert "scored 0, no clip is a highlight: 'b'" in err
    out = run("score", path, truth, "--protocol", "youtube", "--json", "--strict-official")[1]
    assert json.loads(out)["brief"]["mAP"] == 1
    assert json.loads(out)["momentdetr"]["counts"] == {"dog": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "imagenet"], "expected one of qvhighlights, charades"),
        (["--domain", "dog"], "has no domains"),
        (["--protocol", "tvsum", "--nms", "0.5"], "judges highlights only"),
    ],
)
def test_options_that_do_not_fit(run: Run, tmp_path: Path, truth: Path, arguments: list[str], message: str) -> None:
    code, out, err = run("score", write(tmp_path / "said.jsonl", said(1, [0, 10, 0.9])), truth, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_the_test_file_without_truth_is_told_apart(run: Run, tmp_path: Path) -> None:
    line = truth_line(1, [0, 10])
    for key in ("relevant_windows", "relevant_clip_ids", "saliency_scores"):
        del line[key]
    code, _, err = run("score", write(tmp_path / "said.jsonl", said(1, [0, 1, 1])), write(tmp_path / "t.jsonl", line))
    assert code == 2
    assert "highlight_test_with_gt.jsonl" in err


def test_scoring_moments_does_not_load_torch(tmp_path: Path, truth: Path) -> None:
    path = write(tmp_path / "said.jsonl", said(1, [0, 10, 0.9]))
    code = f"import sys; from momentdetr.cli import main; main(['score', {str(path)!r}, {str(truth)!r}]); "
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


# What is published


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    if isinstance(theirs, dict):
        return [
            found
            for key, value in theirs.items()
            for found in (differences(ours[key], value, f"{where}/{key}") if key in ours else [f"{where}/{key}"])
        ]
    return [] if ours == theirs else [f"{where}: {ours} for {theirs}"]


@pytest.mark.slow
def test_all_published_files_of_qvhighlights(run: Run, shared_data: Path) -> None:
    truth = shared_data / "annotations/qvhighlights/highlight_val_release.jsonl"
    files = sorted((shared_data / "mr_eval").glob("*_val_preds.jsonl"))
    assert len(files) >= 7
    for file in files:
        expected = json.loads(file.with_name(file.name.replace("_preds.jsonl", "_metrics.json")).read_text())
        for strict in ((), ("--strict-official",)):
            code, out, err = run("score", file, truth, "--json", *strict)
            assert code == 0, err
            assert differences(json.loads(out), expected) == [], file.name


def test_published_files_of_the_other_data_sets(run: Run, shared_data: Path) -> None:
    folder, annotations = shared_data / "mr_eval", shared_data / "annotations"
    expected = json.loads((folder / "univtg_charades_test_metrics.json").read_text())
    expected.pop("long")  # no window is that long; the script names its thresholds otherwise there
    charades = "univtg_charades_test_preds.jsonl", folder / "charades_sta_test_gt.jsonl", "--protocol", "charades"
    for strict in ((), ("--strict-official",)):
        out = run("score", folder / charades[0], *charades[1:], "--json", *strict)[1]
        assert differences(json.loads(out), expected) == []
    values = json.loads((folder / "univtg_hd_metrics.json").read_text())["values"]
    videos = annotations / "tvsum/tvsum_val_release.jsonl"
    for domain in ("DS", "BT", "GA"):
        said = folder / f"univtg_tvsum_{domain}.jsonl"
        out = run("score", said, videos, "--protocol", "tvsum", "--domain", domain, "--json")[1]
        assert round(100 * json.loads(out)["brief"]["mAP"], 3) == values[f"tvsum_{domain}"]
    videos = annotations / "youtube_highlights/youtube_highlight_val_release.jsonl"
    out = run("score", folder / "univtg_youtube_dog.jsonl", videos, "--protocol", "youtube", "--json")[1]
    assert round(100 * json.loads(out)["domains"]["dog"]["mAP"], 3) == values["yt_dog"]


def test_the_test_split_is_scored_offline(run: Run, shared_data: Path, tmp_path: Path) -> None:
    """The truth itself as a submission is perfect wherever a query has at most ten windows."""
    truth = shared_data / "annotations/qvhighlights/highlight_test_with_gt.jsonl"
    records = [json.loads(line) for line in truth.read_text().splitlines()]
    lines = [said(r["qid"], *[[*window, 1.0] for window in r["relevant_windows"]]) for r in records]
    document = json.loads(run("score", write(tmp_path / "said.jsonl", *lines), truth, "--json")[1])
    assert document["momentdetr"]["counts"]["full"] == len(records) == 1542
    assert document["brief"]["MR-full-R1@0.7"] == 100
    few = all(len(r["relevant_windows"]) <= 10 for r in records)
    assert (document["brief"]["MR-full-mAP"] == 100) == few
