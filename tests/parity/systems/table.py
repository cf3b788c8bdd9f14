"""The systems that are compared, one entry each."""

from __future__ import annotations

from parity.check import System
from parity.systems import cg_detr, co_detr, eatr, images, moments, tr_detr, uvcom

SYSTEMS: tuple[System, ...] = (
    *moments.SYSTEMS,
    cg_detr.SYSTEM,
    tr_detr.SYSTEM,
    uvcom.SYSTEM,
    eatr.SYSTEM,
    *images.SYSTEMS,
    *co_detr.SYSTEMS,
)
