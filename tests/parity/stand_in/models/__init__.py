from typing import Any

from .detr import build


def build_model(args: Any) -> Any:
    return build(args)
