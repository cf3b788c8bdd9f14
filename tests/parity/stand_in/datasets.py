"""Imports what recording never uses, as official code does."""

from pycocotools.coco import COCO  # noqa: F401
