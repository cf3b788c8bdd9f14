"""Named models: where their weights come from, and how they get here."""

from __future__ import annotations

from momentdetr.weights.download import Patience
from momentdetr.weights.home import Home
from momentdetr.weights.models import (
    FileStatus,
    ModelStatus,
    Progress,
    ResolvedModel,
    list_models,
    path,
    pull,
    resolve,
    verify,
)
from momentdetr.weights.registry import REGISTRY, HubSource, ModelCard, RemoteFile, UrlSource

__all__ = [
    "REGISTRY",
    "FileStatus",
    "Home",
    "HubSource",
    "ModelCard",
    "ModelStatus",
    "Patience",
    "Progress",
    "RemoteFile",
    "ResolvedModel",
    "UrlSource",
    "list_models",
    "path",
    "pull",
    "resolve",
    "verify",
]
