"""The systems that are compared, one entry each."""

from __future__ import annotations

from parity.check import System
from parity.systems import (
    bam_detr,
    cg_detr,
    co_detr,
    eatr,
    flashvtg,
    images,
    moments,
    r2_tuning,
    taskweave,
    tr_detr,
    uvcom,
)

SYSTEMS: tuple[System, ...] = (
    *moments.SYSTEMS,
    cg_detr.SYSTEM,
    tr_detr.SYSTEM,
    uvcom.SYSTEM,
    eatr.SYSTEM,
    *taskweave.SYSTEMS,
    *bam_detr.SYSTEMS,
    *r2_tuning.SYSTEMS,
    *flashvtg.SYSTEMS,
    *images.SYSTEMS,
    *co_detr.SYSTEMS,
)
