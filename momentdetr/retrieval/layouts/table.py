"""The systems whose official checkpoints are read."""

from __future__ import annotations

from momentdetr.errors import BadCheckpoint
from momentdetr.retrieval.layouts.bam_detr import BAM_DETR
from momentdetr.retrieval.layouts.cg_detr import CG_DETR
from momentdetr.retrieval.layouts.eatr import EATR
from momentdetr.retrieval.layouts.flashvtg import FLASHVTG
from momentdetr.retrieval.layouts.layout import Layout, State
from momentdetr.retrieval.layouts.moment_detr import MOMENT_DETR
from momentdetr.retrieval.layouts.qd_detr import QD_DETR
from momentdetr.retrieval.layouts.r2_tuning import R2_TUNING
from momentdetr.retrieval.layouts.taskweave import TASKWEAVE
from momentdetr.retrieval.layouts.tr_detr import TR_DETR
from momentdetr.retrieval.layouts.uvcom import UVCOM

# QD-DETR's parts are in many of the others, and Moment-DETR has hardly any of its own: these two come last.
_ALL = (TASKWEAVE, BAM_DETR, R2_TUNING, FLASHVTG, CG_DETR, UVCOM, EATR, TR_DETR, QD_DETR, MOMENT_DETR)

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _ALL}


def layout_of(state: State) -> Layout:
    """The layout that an official state dict has.

    Raises:
        BadCheckpoint: none of those that are known.
    """
    for layout in _ALL:
        if layout.matches(state):
            return layout
    if "query_embed.weight" not in state:
        raise BadCheckpoint("this is not a checkpoint of Moment-DETR's family: it has no 'query_embed.weight'")
    raise BadCheckpoint(
        "this checkpoint has span queries, but not QD-DETR's text-to-video encoder: unknown system; known are "
        + ", ".join(LAYOUTS)
    )
