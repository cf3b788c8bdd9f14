"""Configurations of retrievers small enough for tests."""

from __future__ import annotations

from typing import Any

SIZES = {
    "video_dim": 10,
    "text_dim": 6,
    "width": 16,
    "num_heads": 2,
    "feed_forward": 24,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 4,
    "dropout": 0.0,
    "input_dropout": 0.0,
}


def make_config(preset: str, **options: Any) -> dict[str, Any]:
    return {"preset": preset, "sizes": {**SIZES, **options.pop("sizes", {})}, **options}
