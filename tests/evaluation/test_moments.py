import gzip
import json
import time
from pathlib import Path

import naive_qvhighlights as naive
import numpy as np
import pytest

from momentdetr.datasets.predictions import MomentPrediction, read_predictions
from momentdetr.datasets.qvhighlights import read_qvhighlights
from momentdetr.datasets.records import MomentRecord, Saliency
from momentdetr.errors import BadInput
from momentdetr.evaluation.moments import evaluate_moments


def make_world(num_queries, seed, grid=2.0):
    """Official dictionaries of random truth and predictions; a coarse grid gives ties and exact thresholds."""
    rng = np.random.default_rng(seed)
    truth, predictions = [], []

    def window():
        a, b = sorted(rng.choice(np.arange(0, 150 / grid + 1), 2, replace=False) * grid)
        return [float(a), float(b)]

    for qid in range(num_queries):
        windows = [window() for _ in range(rng.integers(1, 6))]
        clips = sorted(rng.choice(75, rng.integers(1, 40), replace=False).tolist())
        truth.append(
            {
                "qid": qid,
                "query": f"query {qid}",
                "duration": 150,
                "vid": f"v{qid}",
                "relevant_windows": windows,
                "relevant_clip_ids": clips,
                "saliency_scores": rng.integers(0, 5, (len(clips), 3)).tolist(),
            }
        )
        near = [[w[0] + grid * rng.integers(-2, 3), w[1] + grid * rng.integers(0, 3)] for w in windows]
        found = (near + [window() for _ in range(12)])[: rng.integers(1, 13)]
        scores = rng.integers(0, 8, len(found)) / 8  # ties
        predictions.append(
            {
                "qid": qid,
                "query": f"query {qid}",
                "vid": f"v{qid}",
                "pred_relevant_windows": [[*w, float(s)] for w, s in zip(found, scores, strict=True)],
                "pred_saliency_scores": (rng.integers(0, 20, rng.integers(70, 80)) / 20 - 0.5).tolist(),
            }
        )
    return truth, predictions


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def load(tmp_path, truth, predictions):
    return (
        read_predictions(write(tmp_path / "predictions.jsonl", predictions)),
        read_qvhighlights(write(tmp_path / "truth.jsonl", truth)),
    )


def differences(ours, theirs, prefix=""):
    found = []
    for key, value in theirs.items():
        if isinstance(value, dict):
            found += differences(ours[key], value, f"{prefix}{key}/")
        elif ours.get(key) != value:
            found.append((prefix + key, ours.get(key), value))
    return found


def record(qid, *windows, saliency=None):
    return MomentRecord(qid, "a query", f"video{qid}", 150.0, tuple(windows), saliency)


def prediction(qid, *windows, saliency=None):
    return MomentPrediction(qid, tuple(windows), saliency)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strict", [False, True])
def test_every_number_equals_the_naive_computation(tmp_path, seed, strict):
    truth, predictions = make_world(40, seed)
    ours = evaluate_moments(*load(tmp_path, truth, predictions), strict_official=strict).to_dict()
    expected = naive.windows_scores(predictions, truth) | naive.highlight_scores(predictions, truth)
    assert differences(ours, expected) == []
    assert ours["brief"]["MR-full-mAP"] == expected["full"]["MR-mAP"]["average"]
    assert ours["brief"]["MR-full-R1@0.7"] == expected["full"]["MR-R1"]["0.7"]
    assert ours["brief"]["HL-min-VeryGood-Hit1"] == expected["HL-min-VeryGood"]["HL-Hit1"]


def test_is_twenty_times_faster_than_the_naive_computation(tmp_path):
    truth, predictions = make_world(300, 0)
    loaded = load(tmp_path, truth, predictions)
    evaluate_moments(*loaded)
    started = time.process_time()
    evaluate_moments(*loaded)
    ours = time.process_time() - started
    started = time.process_time()
    naive.windows_scores(predictions, truth)
    naive.highlight_scores(predictions, truth)
    assert time.process_time() - started > 20 * ours


def test_perfect_predictions_score_one_hundred():
    truth = [record(0, (0, 10), (20, 50)), record(1, (4, 90))]
    found = [prediction(0, (0, 10, 0.9), (20, 50, 0.8)), prediction(1, (4, 90, 0.5))]
    brief = evaluate_moments(found, truth).brief
    assert brief["MR-full-mAP"] == brief["MR-full-R1@0.7"] == brief["MR-full-mIoU"] == 100


def test_first_window_counts_for_r1_and_the_score_for_map():
    truth = [record(0, (0, 10))]
    found = [prediction(0, (100, 120, 0.1), (0, 10, 0.9))]
    brief = evaluate_moments(found, truth).brief
    assert brief["MR-full-R1@0.5"] == 0
    assert brief["MR-full-mAP"] == 100


def test_windows_beyond_the_tenth_do_not_count():
    truth = [record(0, (0, 10))]
    far = [(100.0, 120.0, 0.1)] * 10
    assert evaluate_moments([prediction(0, *far, (0, 10, 0.9))], truth).brief["MR-full-mAP"] == 0
    assert evaluate_moments([prediction(0, *far[1:], (0, 10, 0.9))], truth).brief["MR-full-mAP"] == 100


def test_empty_and_missing_answers_score_zero_and_are_named():
    truth = [record(0, (0, 10)), record(1, (0, 10)), record(2, (0, 10)), record(3, (0, 10))]
    found = [prediction(0, (0, 10, 1.0)), prediction(1), prediction(2, (0, 10, 1.0)), prediction(7, (0, 5, 1.0))]
    scores = evaluate_moments(found, truth)
    assert scores.brief["MR-full-mAP"] == 50
    assert scores.brief["MR-full-R1@0.5"] == 50
    notes = "\n".join(scores.notes)
    assert "no window predicted: 1" in notes
    assert "not predicted: 3" in notes
    assert "not annotated: 7" in notes
    assert "middle or long" in notes  # no true window is that long
    assert scores.to_dict()["middle"]["MR-mAP"]["average"] == 0


def test_strict_mode_raises_where_the_official_script_fails():
    truth = [record(i, (0, 10), (20, 40), (50, 100)) for i in range(3)]
    full = [prediction(i, (0, 10, 1.0)) for i in range(3)]
    assert evaluate_moments(full, truth, strict_official=True).windows["full"].num_queries == 3
    with pytest.raises(BadInput, match="without predicted windows: 1"):
        evaluate_moments([full[0], prediction(1), full[2]], truth, strict_official=True)
    with pytest.raises(BadInput, match="not predicted 2"):
        evaluate_moments(full[:2], truth, strict_official=True)
    shared = evaluate_moments(full[:2], truth, strict_official=True, match_number=False)
    assert shared.windows["full"].num_queries == 2


def test_absent_queries_do_not_count_for_windows_or_highlights():
    truth = [record(0, (0, 10), saliency=Saliency((1,), ((4, 4, 4),))), record(1, saliency=Saliency((), ()))]
    curve = (0.0, 1.0, *[0.0] * 73)
    found = [prediction(0, (0, 10, 0.8), saliency=curve), prediction(1, (3, 9, 0.1), saliency=curve)]
    scores = evaluate_moments(found, truth)
    assert scores.windows["full"].num_queries == 1
    assert scores.brief["MR-full-mAP"] == 100
    assert scores.brief["HL-min-VeryGood-mAP"] == scores.brief["HL-min-VeryGood-Hit1"] == 100
    assert any("1 queries without a true window" in note for note in scores.notes)


def test_windows_only_and_saliency_only():
    truth = [record(0, (0, 10), saliency=Saliency((0,), ((4, 4, 4),)))]
    assert evaluate_moments([prediction(0, (0, 10, 1.0))], truth).highlights == {}
    only_saliency = evaluate_moments([MomentPrediction(0, None, (1.0, 0.0))], truth)
    assert only_saliency.windows == {}
    assert only_saliency.brief["HL-min-Fair-Hit1"] == 100


def test_clip_length_is_the_clock_of_saliency():
    truth = [MomentRecord(0, "q", "v", 10.0, ((0, 3),), Saliency((9,), ((4.0,),)))]
    found = [prediction(0, (0, 3, 1.0), saliency=(*[0.0] * 9, 1.0))]
    assert evaluate_moments(found, truth, clip_length_s=1.0).brief["HL-min-Fair-Hit1"] == 100


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    truth = [record(0, (0, 10)), record(1, (0, 10))]
    with pytest.raises(BadInput, match="of 1 are not finite"):
        evaluate_moments([prediction(0, (0, 10, 1.0)), prediction(1, (0, 10, bad))], truth)
    with pytest.raises(BadInput, match="of 1 are not finite"):
        evaluate_moments([prediction(0, (0, 10, 1.0)), prediction(1, (0, 10, 1.0), saliency=(bad,))], truth)


def test_nothing_in_common_is_refused():
    with pytest.raises(BadInput, match="none of the 1"):
        evaluate_moments([prediction("0", (0, 10, 1.0))], [record(0, (0, 10))])
    with pytest.raises(BadInput, match="0 more than once"):
        evaluate_moments([prediction(0, (0, 10, 1.0))], [record(0, (0, 10)), record(0, (0, 10))])


def test_published_predictions_give_the_published_numbers(shared_data):
    truth = read_qvhighlights(shared_data / "annotations/qvhighlights/highlight_val_release.jsonl")
    files = sorted((shared_data / "mr_eval").glob("*_val_preds.jsonl"))
    assert files
    for file in files:
        published = json.loads(file.with_name(file.name.replace("_preds.jsonl", "_metrics.json")).read_text())
        for strict in (True, False):
            ours = evaluate_moments(read_predictions(file), truth, strict_official=strict).to_dict()
            assert differences(ours, published) == [], file.name


def test_charades_figures(shared_data):
    folder = shared_data / "mr_eval"
    predictions = read_predictions(folder / "univtg_charades_test_preds.jsonl")
    scores = evaluate_moments(predictions, read_qvhighlights(folder / "charades_sta_test_gt.jsonl"))
    published = json.loads((folder / "univtg_charades_test_metrics.json").read_text())
    published.pop("long")  # no window is that long; the script names its thresholds otherwise there
    assert differences(scores.to_dict(), published) == []


def unzipped(source: Path, folder: Path) -> Path:
    target = folder / source.stem
    target.write_bytes(gzip.decompress(source.read_bytes()))
    return target


def test_every_fork_of_the_official_script_agrees(goldens, tmp_path):
    folder = goldens / "eval_qvhighlights"
    truth = read_qvhighlights(unzipped(folder / "highlight_val_release.jsonl.gz", tmp_path))
    files = sorted(folder.glob("preds_*.jsonl.gz"))
    assert files
    for file in files:
        ours = evaluate_moments(read_predictions(unzipped(file, tmp_path)), truth).to_dict()
        name = file.name.removeprefix("preds_").removesuffix(".jsonl.gz")
        for fork, theirs in json.loads((folder / f"metrics_{name}.json").read_text())["by_fork"].items():
            assert differences(ours, theirs) == [], (name, fork)


def test_adversarial_predictions_score_as_officially(goldens, tmp_path):
    folder = goldens / "eval_qvhighlights"
    truth = read_qvhighlights(unzipped(folder / "adv_gt.jsonl.gz", tmp_path))
    cases = json.loads(gzip.decompress((folder / "adversarial.json.gz").read_bytes()))
    assert cases
    for name, case in cases.items():
        found = read_predictions(write(tmp_path / "case.jsonl", case["preds"]))
        for match_number in (True, False):
            for fork in ("moment_detr", "cg_detr"):
                theirs = case[f"match_number_{str(match_number).lower()}"][fork]
                if "error" in theirs:
                    with pytest.raises(BadInput):
                        evaluate_moments(found, truth, strict_official=True, match_number=match_number)
                    assert evaluate_moments(found, truth).notes, name
                elif "error" not in case[f"match_number_{str(match_number).lower()}"]["moment_detr"]:
                    ours = evaluate_moments(found, truth, strict_official=True, match_number=match_number).to_dict()
                    assert differences(ours, theirs) == [], (name, fork)
                    if name != "missing_queries":  # which score 0 by default, not: are left out
                        assert differences(evaluate_moments(found, truth).to_dict(), theirs) == [], (name, fork)
