"""The page: upload a video, ask, see and play the moments. It runs on this machine and sends nothing elsewhere.

Gradio reports its start to its makers and keeps a history of calls unless it is told not to; these variables tell it,
and they count only if they are set before it is imported.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from momentdetr.web.limits import Limits
    from momentdetr.web.page import build
    from momentdetr.web.server import Running, serve

_LAZY = {
    "Limits": "momentdetr.web.limits",
    "Running": "momentdetr.web.server",
    "build": "momentdetr.web.page",
    "serve": "momentdetr.web.server",
}

__all__ = ["Limits", "Running", "build", "serve"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'momentdetr.web' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
