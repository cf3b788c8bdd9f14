"""Teaches the first layers of the demo's retriever to see motion, before it learns anything else.

A retriever learns from a few windows per query, which is little to find out what a difference between two frames means.
The world knows more: what each shape does in each clip. Told that, the projection that sees a clip between its
neighbours learns in a minute to name motions, and the retriever starts from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from momentdetr.demo.placement import MAX_AT_ONCE
from momentdetr.demo.scene import Scene
from momentdetr.demo.vocabulary import COLOURS, MOTIONS, SHAPES
from momentdetr.features.spec import FeatureSpec
from momentdetr.retrieval.inputs import pad, video_input
from momentdetr.retrieval.projection import Projection

EVENTS_FILE = "events.safetensors"
_KINDS = (list(COLOURS), list(SHAPES), list(MOTIONS))
_PAIRS = ((0, 2), (1, 2), (0, 1))  # colour and motion, shape and motion, colour and shape
_NUM_LABELS = sum(len(_KINDS[a]) * len(_KINDS[b]) for a, b in _PAIRS)
_BATCH_VIDEOS = 16


def clip_events(scene: Scene) -> NDArray[np.int8]:
    """What happens in each clip: (T, slots, 3), colour, shape and motion as numbers, -1 where nothing does."""
    happening = np.full((scene.num_clips, MAX_AT_ONCE, 3), -1, np.int8)
    for clip in range(scene.num_clips):
        for slot, event in enumerate(event for event in scene.events if event.start <= clip < event.end):
            happening[clip, slot] = [kind.index(word) for kind, word in zip(_KINDS, event.combination, strict=True)]
    return happening


def labels_of(happening: NDArray[np.int8]) -> Tensor:
    """(N, slots, 3) of `clip_events` -> (N, labels): 1 for each pair of colour, shape and motion that is there."""
    clips, slots = np.nonzero(happening[..., 0] >= 0)
    words = happening[clips, slots].astype(int)  # (S, 3)
    parts = []
    for a, b in _PAIRS:
        part = np.zeros((len(happening), len(_KINDS[a]), len(_KINDS[b])), np.float32)
        part[clips, words[:, a], words[:, b]] = 1
        parts.append(part.reshape(len(happening), -1))
    return torch.from_numpy(np.concatenate(parts, 1))


def teach(
    features: Path,
    *,
    width: int,
    context: int,
    steps: int = 4000,
    learning_rate: float = 3e-3,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> Projection:
    """Train a projection on the training videos of a folder that `features.write_features` wrote.

    Args:
        features: that folder.
        width, context: of the projection, see there.
        report: called with a line now and then: how often the best-scored motion of a known colour is the right one,
            on validation videos.
    """
    spec = FeatureSpec.from_dict(json.loads((features / "features.json").read_text(encoding="utf-8")))
    videos, events = load_file(features / "video.safetensors"), load_file(features / EVENTS_FILE)
    names = {split: [name for name in videos if name.startswith(f"{split}_")] for split in ("train", "validation")}
    torch.manual_seed(seed)
    projection = Projection(spec.video_dim, width, num_layers=2, dropout=0.0, context=context)
    head = nn.Linear(width, _NUM_LABELS)
    nn.init.constant_(head.bias, -4.0)
    parameters = [*projection.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    rng = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        clips, mask, happening = _batch(rng.choice(names["train"], _BATCH_VIDEOS).tolist(), videos, events, spec)
        logits = head(projection(clips, mask))[mask]
        loss = F.binary_cross_entropy_with_logits(logits, labels_of(happening), reduction="sum") / len(happening)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0 or step == steps:
            clips, mask, happening = _batch(names["validation"], videos, events, spec)
            with torch.no_grad():
                right = _motions_right(head(projection(clips, mask))[mask], happening)
            report(f"step {step}: loss {float(loss.detach()):.2f}, motions right {100 * right:.1f} %")
    return projection


def save(projection: Projection, path: Path) -> None:
    """Write its weights under the names that they have in a retriever."""
    state = {f"encoder.video_projection.{name}": value.contiguous() for name, value in projection.state_dict().items()}
    save_file(state, path)


def _batch(
    names: Sequence[str], videos: Mapping[str, Tensor], events: Mapping[str, Tensor], spec: FeatureSpec
) -> tuple[Tensor, Tensor, NDArray[np.int8]]:
    """Clips (B, T, C), which are real (B, T), and what happens in the N real ones (N, slots, 3)."""
    clips, mask = pad([video_input(videos[name], spec) for name in names])
    return clips, mask, np.concatenate([events[name].numpy() for name in names])


def _motions_right(logits: Tensor, happening: NDArray[np.int8]) -> float:
    """How often the best motion of a colour that is there is the one that it does."""
    clips, slots = np.nonzero(happening[..., 0] >= 0)
    words = torch.from_numpy(happening[clips, slots]).long()
    scores = logits[:, : len(COLOURS) * len(MOTIONS)].unflatten(1, (len(COLOURS), len(MOTIONS)))
    best = scores[torch.from_numpy(clips), words[:, 0]].argmax(1)
    return float((best == words[:, 2]).float().mean())
