"""The second stage of training the tiny CLIP: the text tower alone, against the finished image tower.

After the first stage the text tower knows what frames show, but the words for motion, which no single frame answers
to, are blurred. The image features are computed once and do not change any more, so a step costs little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentdetr.demo.captions import make_captions, make_sentences
from momentdetr.demo.clip_heads import RUN, MeaningHead, RunHead
from momentdetr.demo.clip_training import MODEL_CONFIG, sigmoid_loss, token_states, used_tokens, widen
from momentdetr.demo.footage import Footage


@dataclass(frozen=True)
class TextOptions:
    """How long and how fast."""

    steps: int = 800
    runs: int = 64
    captions: int = 256
    sentences: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    seed: int = 1


def train_text(
    model: Any,
    features: Tensor,
    footage: Footage,
    options: TextOptions,
    report: Callable[[int, dict[str, float]], None],
) -> nn.Module:
    """Train the text tower on.

    Args:
        model: the open_clip model of the first stage, changed in place.
        features: (N, E) of all frames of `footage`, by the model's image tower.
        footage: what the frames show; its pictures are not looked at.
        options: see there.
        report: called with the number of each step and its losses.
    """
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    used = used_tokens(rng)
    model.token_embedding = nn.Embedding.from_pretrained(model.token_embedding.weight.detach()[used], freeze=False)
    model.logit_bias = nn.Parameter(torch.tensor(-10.0))
    model.visual.requires_grad_(False)
    width = MODEL_CONFIG["text_cfg"]["width"]
    heads = nn.ModuleDict(
        {
            "run": RunHead(MODEL_CONFIG["embed_dim"], width),
            "last": MeaningHead(width),
            "mean": MeaningHead(width),
        }
    )
    parameters = [p for module in (model, heads) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, options.steps, pct_start=0.1)
    features = F.normalize(features.float(), dim=-1)
    model.train()
    for step in range(options.steps):
        losses = _losses(model, heads, features, footage, used, options, rng)
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report(step, {name: float(value.detach()) for name, value in losses.items()})
    return widen(model, used).eval()


def _losses(
    model: Any,
    heads: Any,
    features: Tensor,
    footage: Footage,
    used: Tensor,
    options: TextOptions,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    starts = np.concatenate([np.arange(a, b - RUN + 1) for a, b in pairwise(footage.first)])
    chosen = rng.choice(starts[footage.happening[starts + RUN // 2, 0, 0] >= 0], options.runs)
    rows = (chosen[:, None] + np.arange(RUN)).ravel()
    captions = make_captions(footage.slots[rows], options.captions, rng)
    sentences = make_sentences(footage.happening[chosen + RUN // 2], options.sentences, rng)
    assert sentences.meanings is not None
    states, last = token_states(model, captions.texts + sentences.texts, used)
    pooled = states[torch.arange(len(states)), last]
    image = features[torch.from_numpy(rows)]
    caption = F.normalize(pooled[: options.captions] @ model.text_projection, dim=-1)
    said, ends = states[options.captions :], last[options.captions :]
    inside = (torch.arange(said.shape[1]) <= ends[:, None])[..., None]
    mean = (F.normalize(said, dim=-1) * inside).sum(1) / inside.sum(1)
    return {
        "frames": sigmoid_loss(model.logit_scale.exp() * image @ caption.T + model.logit_bias, captions),
        "runs": sigmoid_loss(heads["run"](image, pooled[options.captions :]), sentences),
        "last": heads["last"].loss(pooled[options.captions :], sentences.meanings),
        "mean": heads["mean"].loss(mean, sentences.meanings),
    }
