"""R2-Tuning's official names."""

from __future__ import annotations

from typing import Any

from momentdetr.features.spec import FeatureSpec, Stream
from momentdetr.retrieval.layouts.layout import Layout, Options, State

# Patches of a frame, by the width of CLIP's vision tower; those that the official code extracts by default.
_PATCHES = {768: 50, 1024: 577}


def _config(state: State, options: Options) -> dict[str, Any]:
    first = state["adapter.video_map.2.weight"]
    layers = state["adapter.scale"].shape[0]
    stored, patches = (
        options.get("stored_layers", layers),
        options.get("num_patches", _PATCHES.get(first.shape[1] - 2, 50)),
    )
    return {
        "sizes": {
            "video_dim": stored * patches * (first.shape[1] - 2),
            "text_dim": stored * state["adapter.query_map.2.weight"].shape[1],
            "width": first.shape[0],
            "num_heads": options.get("heads", 8),
            "feed_forward": state["adapter.tem.ffn.mapping.0.weight"].shape[0],
            "dropout": options.get("dropout", 0.0),
            "input_dropout": options.get("input_dropout", 0.5),
        },
        "num_layers": layers,
        "stored_layers": stored,
        "num_patches": patches,
        "strides": tuple(2**level for level in range(state["coef"].shape[0])),
        "temperature": float((-state["loss._loss_sal.scale"].detach()).exp())
        if "loss._loss_sal.scale" in state
        else 0.07,
        "merge": options.get("merge_cls_sal", True),
        "official_batch_faults": True,
    }


def _spec(state: State, options: Options) -> FeatureSpec:
    sizes = _config(state, options)["sizes"]
    return FeatureSpec(
        video=(Stream("clip_layers", sizes["video_dim"], "official"),),
        text=Stream("clip_text_layers", sizes["text_dim"], "official"),
        clip_length_s=float(options.get("clip_length", 2)),
        normalize="none",
        tef=False,  # the model adds its own to every patch
        max_clips=int(options.get("max_v_l", 75)),
        max_words=int(options.get("max_q_l", 32)),
    )


def _halvings() -> tuple[tuple[str, str], ...]:
    """A halving is five modules, of which the second is the convolution and the fourth the norm."""
    return tuple(
        row
        for step in range(4)
        for row in (
            (rf"head\.pyramid\.convolutions\.(\d+)\.{step}\.(.*)", rf"pyramid.blocks.\1.{5 * step + 1}.\2"),
            (rf"head\.pyramid\.norms\.(\d+)\.{step}\.(.*)", rf"pyramid.blocks.\1.{5 * step + 3}.\2"),
        )
    )


PYRAMID = _halvings()
"""Our names of the pyramid's parts and the official ones, for all systems that have it."""

R2_TUNING = Layout(
    name="r2_tuning",
    matches=lambda state: "adapter.tem.cross_att.q.weight" in state and "adapter.scale" in state,
    config=_config,
    spec=_spec,
    rows=(
        (r"encoder\.video_projection\.norms\.0\.(.*)", r"adapter.video_map.0.\1"),
        (r"encoder\.video_projection\.linears\.0\.(.*)", r"adapter.video_map.2.\1"),
        (r"encoder\.video_projection\.norms\.1\.(.*)", r"adapter.video_map.4.\1"),
        (r"encoder\.video_projection\.linears\.1\.(.*)", r"adapter.video_map.6.\1"),
        (r"encoder\.text_projection\.norms\.0\.(.*)", r"adapter.query_map.0.\1"),
        (r"encoder\.text_projection\.linears\.0\.(.*)", r"adapter.query_map.2.\1"),
        (r"encoder\.text_projection\.norms\.1\.(.*)", r"adapter.query_map.4.\1"),
        (r"encoder\.text_projection\.linears\.1\.(.*)", r"adapter.query_map.6.\1"),
        (r"encoder\.patch_key\.(.*)", r"adapter.v_map.\1"),
        (r"encoder\.word_query\.(.*)", r"adapter.q_map.\1"),
        (r"encoder\.(scale|gate)", r"adapter.\1"),
        (r"encoder\.layer\.cross\.query\.(.*)", r"adapter.tem.cross_att.q.\1"),
        (r"encoder\.layer\.cross\.key\.(.*)", r"adapter.tem.cross_att.k.\1"),
        (r"encoder\.layer\.cross\.value\.(.*)", r"adapter.tem.cross_att.v.\1"),
        (r"encoder\.layer\.cross\.out\.(.*)", r"adapter.tem.cross_att.m.\1"),
        (r"encoder\.layer\.own\.query\.(.*)", r"adapter.tem.self_att.q.\1"),
        (r"encoder\.layer\.own\.key\.(.*)", r"adapter.tem.self_att.k.\1"),
        (r"encoder\.layer\.own\.value\.(.*)", r"adapter.tem.self_att.v.\1"),
        (r"encoder\.layer\.own\.out\.(.*)", r"adapter.tem.self_att.m.\1"),
        (r"encoder\.layer\.norm_cross\.(.*)", r"adapter.tem.cross_att_norm.\1"),
        (r"encoder\.layer\.norm_own\.(.*)", r"adapter.tem.self_att_norm.\1"),
        (r"encoder\.layer\.norm_feed_forward\.(.*)", r"adapter.tem.ffn_norm.\1"),
        (r"encoder\.layer\.feed_forward\.expand\.(.*)", r"adapter.tem.ffn.mapping.0.\1"),
        (r"encoder\.layer\.feed_forward\.contract\.(.*)", r"adapter.tem.ffn.mapping.2.\1"),
        (r"encoder\.pooling\.score\.(.*)", r"pooling.att.\1"),
        *PYRAMID,
        (r"head\.classes\.hidden\.(.*)", r"class_head.module.1.\1"),
        (r"head\.classes\.out\.(.*)", r"class_head.module.3.\1"),
        (r"head\.offsets\.hidden\.(.*)", r"coord_head.module.1.\1"),
        (r"head\.offsets\.out\.(.*)", r"coord_head.module.3.\1"),
        (r"head\.scales", r"coef"),
    ),
    unused={
        r"loss\._loss_sal\.scale": "a constant; the temperature is read from it",
        r"clip\..*": "the frozen CLIP, whose features are our input",
    },
)
