"""Deformable attention's kernels: one operator, several implementations, chosen by `dispatch`."""

from momentdetr.detr.kernels.dispatch import choose, describe, findings
from momentdetr.detr.kernels.operator import deformable_attention, sample_points

__all__ = ["choose", "deformable_attention", "describe", "findings", "sample_points"]
