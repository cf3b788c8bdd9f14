"""The systems that are compared, one entry each."""

from __future__ import annotations

from parity.check import System
from parity.systems import bam_detr, co_detr, flashvtg, images, moments, r2_tuning, taskweave

SYSTEMS: tuple[System, ...] = (
    moments.SYSTEMS
    + images.SYSTEMS
    + co_detr.SYSTEMS
    + taskweave.SYSTEMS
    + bam_detr.SYSTEMS
    + r2_tuning.SYSTEMS
    + flashvtg.SYSTEMS
)
