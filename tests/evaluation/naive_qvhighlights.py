"""The QVHighlights scores computed one query, one prediction and one threshold at a time: the tests' oracle."""

from __future__ import annotations

import numpy as np

MAP_THRESHOLDS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
R1_THRESHOLDS = [0.3, 0.35, 0.4, 0.45, *MAP_THRESHOLDS]
RANGES = {"short": (0, 10), "middle": (10, 30), "long": (30, 150), "full": (-1e9, 1e9)}


def percent(fraction):
    return float(f"{100 * fraction:.2f}")


def iou(a, b):
    shared = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    union = (a[1] - a[0]) + (b[1] - b[0]) - shared
    return shared / union if union else float("nan")


def hull_iou(a, b):
    shared = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    hull = max(a[1], b[1]) - min(a[0], b[0])
    return shared / hull if hull else 0.0


def window_ap(windows, truth, threshold):
    taken, hits = set(), []
    for window in sorted(windows, key=lambda w: -w[2]):
        overlaps = np.array([iou(window, true) for true in truth])
        hit = False
        for j in overlaps.argsort(kind="stable")[::-1]:
            if overlaps[j] < threshold:
                break
            if j not in taken:
                taken.add(j)
                hit = True
                break
        hits.append(hit)
    found, points = 0, [(0.0, 0.0)]
    for rank, hit in enumerate(hits, start=1):
        found += hit
        points.append((found / len(truth), found / rank))
    area = 0.0
    for i in range(1, len(points)):
        if points[i][0] != points[i - 1][0]:
            area += (points[i][0] - points[i - 1][0]) * max(precision for _, precision in points[i:])
    return area


def windows_scores(predictions, truth):
    """Dicts of the official format in, the official structure out; every query has a prediction and a true window."""
    result = {}
    predicted = {p["qid"]: p["pred_relevant_windows"] for p in predictions}
    for name, (low, high) in RANGES.items():
        kept = {
            t["qid"]: [w for w in t["relevant_windows"] if low < w[1] - w[0] <= high]
            for t in truth
            if any(low < w[1] - w[0] <= high for w in t["relevant_windows"])
        }
        aps = {t: [window_ap(predicted[q][:10], kept[q], t) for q in kept] for t in MAP_THRESHOLDS}
        first = []
        for q in kept:
            overlaps = [iou(predicted[q][0], true) for true in kept[q]]
            first.append(hull_iou(predicted[q][0], kept[q][int(np.argmax(overlaps))]))
        result[name] = {
            "MR-mAP": {str(t): percent(np.mean(aps[t])) for t in MAP_THRESHOLDS}
            | {"average": percent(np.mean([np.mean(aps[t]) for t in MAP_THRESHOLDS]))},
            "MR-R1": {str(t): percent(np.mean([x >= t for x in first])) for t in R1_THRESHOLDS},
            "MR-mIoU": percent(np.mean(first)),
        }
    return result


def ranking_ap(scores, labels):
    """Mean, over the thresholds at which recall rises, of the best precision at that or a lower threshold."""
    if not any(labels):
        return 0.0
    steps = []
    for threshold in sorted(set(scores), reverse=True):
        chosen = [label for score, label in zip(scores, labels, strict=True) if score >= threshold]
        steps.append((sum(chosen), sum(chosen) / len(chosen)))
    kept, before = [], 0
    for i, (hits, _) in enumerate(steps):
        if hits > before:
            kept.append(max(precision for _, precision in steps[i:]))
        before = hits
    return float(np.mean(kept))


def highlight_scores(predictions, truth, clip_length=2):
    curves = {p["qid"]: p["pred_saliency_scores"] for p in predictions}
    result = {}
    for name, level in (("Fair", 2), ("Good", 3), ("VeryGood", 4)):
        aps, hits = [], []
        for t in truth:
            length = int(t["duration"] / clip_length)
            annotated = np.zeros((length, len(t["saliency_scores"][0])))
            annotated[t["relevant_clip_ids"]] = t["saliency_scores"]
            curve = curves[t["qid"]]
            filled = (list(curve) + [0.0] * length)[:length]
            labels = annotated >= level
            aps += [ranking_ap(filled, labels[:, a]) for a in range(labels.shape[1])]
            top = int(np.argmax(curve))
            hits.append(top < length and bool(labels[top].any()))
        result[f"HL-min-{name}"] = {"HL-mAP": percent(np.mean(aps)), "HL-Hit1": percent(np.mean(hits))}
    return result
