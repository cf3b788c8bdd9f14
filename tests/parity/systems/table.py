"""The systems that are compared, one entry each."""

from __future__ import annotations

from parity.check import System
from parity.systems import images, moments

SYSTEMS: tuple[System, ...] = moments.SYSTEMS + images.SYSTEMS
