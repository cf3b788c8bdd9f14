"""The systems with a layout of their own."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from momentdetr.retrieval.layouts.bam_detr import BAM_DETR
from momentdetr.retrieval.layouts.flashvtg import FLASHVTG
from momentdetr.retrieval.layouts.layout import Layout
from momentdetr.retrieval.layouts.r2_tuning import R2_TUNING
from momentdetr.retrieval.layouts.taskweave import TASKWEAVE

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (TASKWEAVE, BAM_DETR, R2_TUNING, FLASHVTG)}


def layout_of(state: Mapping[str, Tensor]) -> Layout | None:
    """The layout that an official state dict has; None: Moment-DETR's or QD-DETR's, or unknown."""
    return next((layout for layout in LAYOUTS.values() if layout.matches(state)), None)
