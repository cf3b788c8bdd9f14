"""Train the tiny CLIP of the demo: an open_clip model that knows the moving-shapes world, and nothing else.

A contrastive loss with a sigmoid and exact truth: frames against captions of colour, shape, place, size and turn.
`clip_heads` help it along, and teach the text tower the words for motion; they are thrown away afterwards. What is
left is an ordinary CLIP that sees one frame at a time.
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
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from momentdetr.demo.captions import Captions, Sentences, make_captions, make_sentences, texts_of_all_kinds
from momentdetr.demo.clip_heads import CellHead, FactHead, MeaningHead
from momentdetr.demo.footage import Footage

IMAGE_SIZE = 96
CONTEXT = 32
MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 12, "head_width": 32},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
MEAN, STD = (0.35, 0.35, 0.35), (0.25, 0.25, 0.25)
FACTS = 8.0
"""Weight of that loss; the others have 1."""
PREPROCESS = {"size": IMAGE_SIZE, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}


@dataclass(frozen=True)
class Options:
    """How long and how fast."""

    steps: int = 2400
    frames: int = 256
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
    look_everywhere(model.visual.attnpool)
    keep_length(model.visual.attnpool)
    used = used_tokens(rng)
    model.token_embedding = nn.Embedding(len(used), MODEL_CONFIG["text_cfg"]["width"])  # the rest is zero
    nn.init.normal_(model.token_embedding.weight, std=0.05)
    model.logit_bias = nn.Parameter(torch.tensor(-8.0))
    nn.init.constant_(model.logit_scale, math.log(10.0))
    heads = nn.ModuleDict(
        {
            "fact": FactHead(MODEL_CONFIG["embed_dim"]),
            "last": MeaningHead(MODEL_CONFIG["text_cfg"]["width"]),
            "mean": MeaningHead(MODEL_CONFIG["text_cfg"]["width"]),
            "cell": CellHead(16 * MODEL_CONFIG["vision_cfg"]["width"]),
        }
    )
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, options.steps, pct_start=0.08)
    model.train()
    for step, batch in zip(range(options.steps), _batches(footage, options, rng), strict=False):
        losses = _losses(model, heads, batch, used)
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report(step, {name: float(value.detach()) for name, value in losses.items()})
    return widen(model, used).eval()


@torch.no_grad()
def look_everywhere(pool: Any) -> None:
    """Start the attention pooling with one head per cell of the picture's last feature map.

    From its usual start all heads average over all cells, which forgets where things are, and it takes long to learn
    otherwise. Here each cell's positional embedding is a direction of its own, and one head's keys answer to it.

    Args:
        pool: open_clip's AttentionPool2d with more heads than cells.
    """
    cells, width = len(pool.positional_embedding) - 1, pool.positional_embedding.shape[1]
    head_width = width // pool.num_heads
    basis = torch.randn(width, cells + 1)
    basis[:, 0] = 1  # the others are orthogonal to what all channels have in common
    directions = torch.linalg.qr(basis)[0].T[1:]  # (cells, width)
    strength = 4.0
    pool.positional_embedding[1:] = strength * directions
    for head, direction in enumerate(directions):
        row = head * head_width
        pool.k_proj.weight[row] = direction
        pool.q_proj.weight[row] = 0
        pool.q_proj.bias[row] = math.sqrt(head_width)  # a logit of `strength` for the own cell, about 0 elsewhere


@torch.no_grad()
def keep_length(pool: Any, length: float = 30.0) -> None:
    """Start the attention pooling with a constant much longer than what it adds for a shape.

    Embeddings are compared, and handed on, divided by their length. If that depended on how many shapes there are,
    nothing about one of them could be read off linearly.
    """
    direction = torch.randn_like(pool.c_proj.bias)
    pool.c_proj.bias.copy_(length * direction / direction.norm())


@dataclass(frozen=True)
class _Batch:
    """Frames (N, 3, S, S) with what is said of them, and sentences that are about no frame."""

    frames: Tensor
    slots: NDArray[np.float32]
    captions: Captions
    sentences: Sentences


def _batches(footage: Footage, options: Options, rng: np.random.Generator) -> Iterator[_Batch]:
    """Frames that show something."""
    shown = np.flatnonzero(np.isfinite(footage.slots[:, 0, 0]))
    while True:
        rows = rng.choice(shown, options.frames)
        slots = footage.slots[rows]
        yield _Batch(
            _augment(footage.frames[rows], rng),
            slots,
            make_captions(slots, options.captions, rng),
            make_sentences(options.sentences, rng),
        )


def _augment(frames: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Normalise; change brightness and contrast a little."""

    def draw(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, len(frames)).astype(np.float32))[:, None, None, None]

    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255  # (N, 3, S, S), channels last in memory
    pictures = pictures * draw(0.9, 1.1) + draw(-0.04, 0.04)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pictures - mean) / std


def _losses(model: Any, heads: Any, batch: _Batch, used: Tensor) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        cells = _feature_map(model.visual, batch.frames)
        image = model.visual.attnpool(model.visual.layer4(cells)).float()  # (N, E)
        states, last = token_states(model, batch.captions.texts + batch.sentences.texts, used)  # (M, L, W)
    image, states = F.normalize(image, dim=-1), states.float()
    pooled = states[torch.arange(len(states)), last]
    num_captions = len(batch.captions.texts)
    caption = F.normalize(pooled[:num_captions] @ model.text_projection, dim=-1)
    said, ends = states[num_captions:], last[num_captions:]
    inside = (torch.arange(said.shape[1]) <= ends[:, None])[..., None]
    mean = (F.normalize(said, dim=-1) * inside).sum(1) / inside.sum(1)
    return {
        "frames": sigmoid_loss(model.logit_scale.exp() * image @ caption.T + model.logit_bias, batch.captions),
        "facts": FACTS * heads["fact"].loss(image, batch.slots),
        **heads["cell"].losses(cells, batch.slots),
        "last": heads["last"].loss(pooled[num_captions:], batch.sentences.meanings),
        "mean": heads["mean"].loss(mean, batch.sentences.meanings),
    }


def _feature_map(tower: Any, frames: Tensor) -> Tensor:
    """open_clip's ModifiedResNet up to its last but one stage: (N, 16 * width, 6, 6)."""
    maps: Tensor = tower.layer3(tower.layer2(tower.layer1(tower.stem(frames))))
    return maps


def sigmoid_loss(logits: Tensor, captions: Captions) -> Tensor:
    """SigLIP's loss with known truth: binary cross-entropy, summed over texts, averaged over pictures."""
    truth, clear = torch.from_numpy(captions.truth).float(), torch.from_numpy(captions.clear).float()
    loss = F.binary_cross_entropy_with_logits(logits, truth, weight=clear, reduction="sum")
    return loss / max(float(captions.truth.sum()), 1.0)


_TOKENIZER: list[Any] = []


def tokenize(texts: list[str]) -> Tensor:
    """(M, 32) token numbers of the bundled byte-pair encoding."""
    if not _TOKENIZER:
        _TOKENIZER.append(open_clip.tokenizer.SimpleTokenizer(context_length=CONTEXT))
    tokens: Tensor = _TOKENIZER[0](texts)
    return tokens


def token_states(model: Any, texts: list[str], used: Tensor) -> tuple[Tensor, Tensor]:
    """The text tower over no more positions than the longest text has.

    Args:
        used: (V,), the tokens that the model's compact embedding has rows for.

    Returns:
        States (M, L, W), and the position of each text's last token (M,).
    """
    tokens = tokenize(texts)
    last = tokens.argmax(-1)
    length = int(last.max()) + 1
    tokens = torch.searchsorted(used, tokens[:, :length].contiguous()).clamp_(max=len(used) - 1)
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    return model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length])), last


def used_tokens(rng: np.random.Generator) -> Tensor:
    """Every token number that the world's language can produce, in order; 0 (padding) is one of them."""
    texts: list[str] = []
    for _ in range(10):
        texts += texts_of_all_kinds(rng, 500)
    return torch.unique(torch.cat([tokenize(texts).flatten(), torch.zeros(1, dtype=torch.long)]))


def widen(model: Any, used: Tensor) -> nn.Module:
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
