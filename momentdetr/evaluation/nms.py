"""Temporal non-maximum suppression, as the official QVHighlights code and its followers do it before scoring."""

from __future__ import annotations

from collections.abc import Sequence

from momentdetr.errors import BadInput

Window = Sequence[float]


def temporal_nms(windows: Sequence[Window], threshold: float, *, limit: int = 10) -> list[Window]:
    """Keep the best windows that do not overlap a better one too much.

    The overlap of two windows is what they share divided by the span from the first start to the last end, which is
    the IoU wherever they touch; a window is dropped if it is above the threshold, not if it equals it.

    Args:
        windows: (start_s, end_s, score), in any order; equal scores keep their order.
        threshold: in [0, 1].
        limit: windows to keep, at most.

    Returns:
        Best first; a single window comes back as it is.

    Raises:
        BadInput: the threshold is outside [0, 1] or not a number.
    """
    if not 0 <= threshold <= 1:
        raise BadInput(f"the NMS threshold is {threshold}, expected an overlap from 0 to 1, such as 0.7")
    kept: list[Window] = []
    for window in sorted(windows, key=lambda window: -window[2]):
        if len(kept) == limit:
            break
        if all(_overlap(window, better) <= threshold for better in kept):
            kept.append(window)
    return kept


def _overlap(first: Window, second: Window) -> float:
    hull = max(first[1], second[1]) - min(first[0], second[0])
    shared = max(min(first[1], second[1]) - max(first[0], second[0]), 0.0)
    return shared / hull if hull else 0.0
