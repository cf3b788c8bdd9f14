"""momentdetr: find the moments of a video that a sentence describes, with detectors of the DETR family.

Heavy parts load on first use, so that importing this package is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from momentdetr.search.results import SearchResult
    from momentdetr.search.retriever import EncodedVideo, Retriever, load

__version__ = "0.1.0"

_LAZY = {
    "EncodedVideo": "momentdetr.search.retriever",
    "Retriever": "momentdetr.search.retriever",
    "SearchResult": "momentdetr.search.results",
    "load": "momentdetr.search.retriever",
}

__all__ = ["EncodedVideo", "Retriever", "SearchResult", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'momentdetr' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
