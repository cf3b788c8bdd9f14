"""momentdetr: find the moments of a video that a sentence describes, with detectors of the DETR family.

Heavy parts load on first use, so that importing this package is instant.
"""

from __future__ import annotations

import typing as _typing

from momentdetr.errors import MomentDETRError

if _typing.TYPE_CHECKING:
    from momentdetr.search.encoding import EncodedVideo
    from momentdetr.search.loading import load
    from momentdetr.search.results import SearchResult
    from momentdetr.search.retriever import Retriever

__version__ = "0.1.0"

_LAZY = {
    "EncodedVideo": "momentdetr.search.encoding",
    "Retriever": "momentdetr.search.retriever",
    "SearchResult": "momentdetr.search.results",
    "load": "momentdetr.search.loading",
}

__all__ = ["EncodedVideo", "MomentDETRError", "Retriever", "SearchResult", "__version__", "load"]


def __getattr__(name: str) -> _typing.Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'momentdetr' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
