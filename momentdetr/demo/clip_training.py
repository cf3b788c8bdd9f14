"""Train the tiny CLIP of the demo: an open_clip model that knows the moving-shapes world, and nothing else.

Two contrastive losses with a sigmoid, both with exact truth. Frames against captions teaches colours, shapes, places,
sizes and turns. Runs of five frames against sentences teaches the text tower the words for motion, and the image
tower to keep what tells motion; the small head that reads a run is thrown away afterwards, and what is left is an
ordinary CLIP that sees one frame at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from momentdetr.demo.captions import Captions, make_captions, make_sentences, texts_of_all_kinds
from momentdetr.demo.footage import Footage

IMAGE_SIZE = 96
CONTEXT = 32
MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 12},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
MEAN, STD = (0.35, 0.35, 0.35), (0.25, 0.25, 0.25)
PREPROCESS = {"size": IMAGE_SIZE, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
RUN = 5
"""Frames that the discarded run head sees at once."""


class RunHead(nn.Module):
    """Reads the motion of the middle frame out of a run of frame embeddings."""

    def __init__(self, embed_dim: int, text_width: int) -> None:
        super().__init__()
        self.video = nn.Sequential(nn.Linear(RUN * embed_dim, 384), nn.ReLU(), nn.Linear(384, embed_dim))
        self.text = nn.Linear(text_width, embed_dim)
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-8.0))


@dataclass(frozen=True)
class Options:
    """How long and how fast."""

    steps: int = 2400
    runs: int = 52
    captions: int = 256
    sentences: int = 192
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    seed: int = 0


def train(footage: Footage, options: Options, report: Callable[[int, dict[str, float]], None]) -> nn.Module:
    """Train from scratch.

    Returns:
        The open_clip model, in evaluation mode, with zero rows for tokens that never occurred.
    """
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    model = open_clip.CLIP(**MODEL_CONFIG).to(memory_format=torch.channels_last)
    used = _used_tokens(rng)
    model.token_embedding = nn.Embedding(len(used), MODEL_CONFIG["text_cfg"]["width"])  # the rest is zero
    nn.init.normal_(model.token_embedding.weight, std=0.05)
    model.logit_bias = nn.Parameter(torch.tensor(-8.0))
    nn.init.constant_(model.logit_scale, math.log(10.0))
    head = RunHead(MODEL_CONFIG["embed_dim"], MODEL_CONFIG["text_cfg"]["width"])
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, options.steps, pct_start=0.08)
    model.train()
    for step, batch in zip(range(options.steps), _batches(footage, options, rng), strict=False):
        losses = _losses(model, head, batch, used)
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report(step, {name: float(value.detach()) for name, value in losses.items()})
    return _widen(model, used).eval()


@dataclass(frozen=True)
class _Batch:
    frames: Tensor
    captions: Captions
    sentences: Captions


def _batches(footage: Footage, options: Options, rng: np.random.Generator) -> Iterator[_Batch]:
    """Runs from anywhere, most with something going on in the middle."""
    starts = np.concatenate([np.arange(a, b - RUN + 1) for a, b in zip(footage.first, footage.first[1:], strict=False)])
    middle = footage.happening[starts + RUN // 2, 0, 0] >= 0
    busy, idle = starts[middle], starts[~middle]
    while True:
        chosen = np.concatenate([rng.choice(busy, options.runs - 4), rng.choice(idle, 4)])
        rows = (chosen[:, None] + np.arange(RUN)).ravel()
        yield _Batch(
            _augment(footage.frames[rows], rng),
            make_captions(footage.slots[rows], options.captions, rng),
            make_sentences(footage.happening[chosen + RUN // 2], options.sentences, rng),
        )


def _augment(frames: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Normalise; change brightness and contrast a little, the same within a run."""
    runs = len(frames) // RUN
    gain = np.repeat(rng.uniform(0.9, 1.1, runs), RUN).astype(np.float32)
    shift = np.repeat(rng.uniform(-0.04, 0.04, runs), RUN).astype(np.float32)
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255  # (N, 3, S, S), channels last in memory
    pictures = pictures * torch.from_numpy(gain)[:, None, None, None] + torch.from_numpy(shift)[:, None, None, None]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pictures - mean) / std


def _losses(model: Any, head: RunHead, batch: _Batch, used: Tensor) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        image = model.visual(batch.frames).float()  # (N, E)
        states = encode_states(model, batch.captions.texts + batch.sentences.texts, used)
    pooled = states.float()  # (M, W)
    image = nn.functional.normalize(image, dim=-1)
    num_captions = len(batch.captions.texts)
    caption = nn.functional.normalize(pooled[:num_captions] @ model.text_projection, dim=-1)
    frame_logits = model.logit_scale.exp() * image @ caption.T + model.logit_bias
    run = nn.functional.normalize(head.video(image.reshape(-1, RUN * image.shape[-1])), dim=-1)
    told = nn.functional.normalize(head.text(pooled[num_captions:]), dim=-1)
    run_logits = head.scale.exp() * run @ told.T + head.bias
    return {"frames": _sigmoid_loss(frame_logits, batch.captions), "runs": _sigmoid_loss(run_logits, batch.sentences)}


def _sigmoid_loss(logits: Tensor, captions: Captions) -> Tensor:
    """SigLIP's loss with known truth: binary cross-entropy, summed over texts, averaged over pictures."""
    truth, clear = torch.from_numpy(captions.truth).float(), torch.from_numpy(captions.clear).float()
    loss = nn.functional.binary_cross_entropy_with_logits(logits, truth, weight=clear, reduction="sum")
    return loss / max(float(captions.truth.sum()), 1.0)


_TOKENIZER: list[Any] = []


def tokenize(texts: list[str]) -> Tensor:
    """(M, 32) token numbers of the bundled byte-pair encoding."""
    if not _TOKENIZER:
        _TOKENIZER.append(open_clip.tokenizer.SimpleTokenizer(context_length=CONTEXT))
    tokens: Tensor = _TOKENIZER[0](texts)
    return tokens


def encode_states(model: Any, texts: list[str], used: Tensor) -> Tensor:
    """The text tower over no more positions than the longest text has; (M, W), the state of the last token."""
    tokens = tokenize(texts)
    last = tokens.argmax(-1)
    length = int(last.max()) + 1
    tokens = torch.searchsorted(used, tokens[:, :length].contiguous()).clamp_(max=len(used) - 1)
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), last]


def _used_tokens(rng: np.random.Generator) -> Tensor:
    """Every token number that the world's language can produce, in order; 0 (padding) is one of them."""
    texts: list[str] = []
    for _ in range(40):
        texts += texts_of_all_kinds(rng, 500)
    return torch.unique(torch.cat([tokenize(texts).flatten(), torch.zeros(1, dtype=torch.long)]))


def _widen(model: Any, used: Tensor) -> nn.Module:
    """Put the trained rows back where the full vocabulary has them."""
    text = MODEL_CONFIG["text_cfg"]
    full = torch.zeros(text["vocab_size"], text["width"])
    full[used] = model.token_embedding.weight.detach()
    model.token_embedding = nn.Embedding.from_pretrained(full)
    model.logit_bias = None
    network: nn.Module = model
    return network


def export(model: nn.Module, folder: Path) -> None:
    """Write an open_clip local folder in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / "open_clip_model.safetensors")
