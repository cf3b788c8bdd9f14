"""Simulated features for the real annotations of QVHighlights, whose real features (8 GB) cannot be had everywhere.

    python benchmarks/simulated.py --annotations DIR --out DIR [--train 1500] [--val 400] [--seed 0]
    python benchmarks/simulated.py --compare DIR DIR

DIR of the annotations holds highlight_train_release.jsonl and highlight_val_release.jsonl. Real are the queries,
durations, windows and saliency; made up is what clips and words look like:

- a word is a random direction in a 64-dimensional part of a 512-dimensional space, a sentence the sum of its words,
  rare ones the heavier;
- a clip shows a background, which changes at three cuts and resembles other sentences, and noise;
- inside a window it also shows the sentence with half of its words missing, the stronger the higher its saliency, and
  weaker at the window's borders;
- outside, one to three stretches a query show about a third of its words.

The same arguments give the same bytes. Numbers obtained on this compare programs with each other and say nothing about
real video. --compare prints what two such folders have in common, one column each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from momentdetr.datasets.qvhighlights import read_qvhighlights, to_qvhighlights
from momentdetr.datasets.records import MomentRecord
from momentdetr.features.layouts import read_array

Floats = NDArray[np.floating[Any]]

CLIP_LENGTH_S = 2.0
NORM = 10.0  # CLIP's own are about as long; no loader keeps it


@dataclass(frozen=True)
class World:
    """How hard it is to see what a sentence says.

    Args:
        size: of a feature vector.
        meaning: dimensions of the part of that space in which words differ.
        background: amplitude of what a scene shows anyway; the next ones likewise.
        noise: of every clip.
        moment: inside windows, of clips without and with the highest saliency.
        border: factor at the first and last clip of windows of more than two.
        distractor: of the stretches that show some of the words.
        said: share of a sentence's words that are seen in a window, and in a distractor.
    """

    size: int = 512
    meaning: int = 64
    background: float = 0.8
    noise: float = 0.9
    moment: tuple[float, float] = (0.5, 1.0)
    border: float = 0.7
    distractor: float = 0.6
    said: tuple[float, float] = (0.5, 0.35)
    scenes: int = 4
    word_context: float = 0.3
    text_noise: float = 0.2


class Language:
    """What words and sentences look like.

    Args:
        sentences: that the frequencies of words are counted in.
        seed: another one gives every word another direction.
    """

    def __init__(self, sentences: Sequence[str], world: World, seed: int) -> None:
        self.world, self.seed = world, seed
        draws = generator(seed, "space").standard_normal((world.size, world.meaning))
        self._space, _ = np.linalg.qr(draws)
        found = Counter(word for sentence in sentences for word in set(words_of(sentence)))
        self._weight = {word: math.log(1 + len(sentences) / count) ** 2 for word, count in found.items()}
        self._directions: dict[str, Floats] = {}

    def directions(self, words: Sequence[str]) -> Floats:
        """(W, size), unit vectors."""
        for word in words:
            if word not in self._directions:
                draw = generator(self.seed, "word", word).standard_normal(self.world.meaning)
                self._directions[word] = unit(self._space @ draw)
        return np.stack([self._directions[word] for word in words])

    def meaning(self, words: Sequence[str], seen: NDArray[np.bool_] | None = None) -> Floats:
        """(size,), the unit vector of a sentence; of the `seen` words only, unless none is."""
        weights = np.array([self._weight.get(word, 64.0) for word in words])
        if seen is not None and seen.any():
            weights = np.where(seen, weights, 0)
        return unit(weights @ self.directions(words))


def words_of(sentence: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", sentence.lower())[:30] or ["nothing"]


def generator(*key: int | str) -> np.random.Generator:
    """A source of draws that belongs to this key, whatever else is drawn."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def unit(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-8)


def clip_features(asked: Sequence[MomentRecord], language: Language, backgrounds: Floats) -> NDArray[np.float16]:
    """One video, (T, size), that all of `asked` are about.

    Args:
        backgrounds: (N, size) of which scenes take their looks.
    """
    world = language.world
    rng = generator(language.seed, "video", asked[0].video)
    num_clips = math.ceil(asked[0].duration_s / CLIP_LENGTH_S)
    chosen = backgrounds[rng.integers(len(backgrounds), size=world.scenes)]
    scenes = unit(chosen + unit(rng.standard_normal(chosen.shape)))
    cuts = rng.integers(0, num_clips, world.scenes - 1)
    scene = (np.arange(num_clips)[:, None] >= cuts).sum(1)  # how many cuts lie behind each clip
    clips = world.background * scenes[scene]
    for record in asked:
        clips = clips + _shown(record, num_clips, language, rng)
    noise = unit(rng.standard_normal(clips.shape))
    return (NORM * unit(clips + world.noise * noise)).astype(np.float16)


def _shown(record: MomentRecord, num_clips: int, language: Language, rng: np.random.Generator) -> Floats:
    """What a query adds to the clips of its video: (T, size)."""
    world, words = language.world, words_of(record.query)
    amplitude = np.zeros(num_clips)
    shown = np.zeros((num_clips, world.size))
    low, high = world.moment
    liked = _liking(record, num_clips)
    for start_s, end_s in record.windows_s:
        inside = slice(int(start_s // CLIP_LENGTH_S), min(num_clips, math.ceil(end_s / CLIP_LENGTH_S)))
        shown[inside] = language.meaning(words, rng.random(len(words)) < world.said[0])
        amplitude[inside] = low + (high - low) * liked[inside]
        if inside.stop - inside.start > 2:
            amplitude[[inside.start, inside.stop - 1]] *= world.border
    for _ in range(rng.integers(1, 4)):
        start, length = int(rng.integers(0, num_clips)), int(rng.integers(2, 9))
        stretch = np.arange(start, min(num_clips, start + length))
        free = stretch[amplitude[stretch] == 0]
        shown[free] = language.meaning(words, rng.random(len(words)) < world.said[1])
        amplitude[free] = world.distractor
    return amplitude[:, None] * shown


def _liking(record: MomentRecord, num_clips: int) -> Floats:
    """(T,) mean of the annotators' scores as a fraction of the highest; a half where nobody gave one."""
    liked = np.full(num_clips, 0.5)
    if record.saliency is not None:
        for clip, scores in zip(record.saliency.clips, record.saliency.scores, strict=True):
            if clip < num_clips:
                liked[clip] = np.mean(scores) / 4
    return liked


def word_features(record: MomentRecord, language: Language) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Token states (W, size) from start mark to end mark, and the sentence (size,)."""
    world, words = language.world, words_of(record.query)
    rng = generator(language.seed, "query", record.qid)
    sentence = language.meaning(words)
    start = np.full(world.size, world.size**-0.5)
    tokens = np.vstack([start, language.directions(words) + world.word_context * sentence, sentence])
    noise = unit(rng.standard_normal(tokens.shape))
    return (NORM * unit(tokens + world.text_noise * noise)).astype(np.float16), (NORM * sentence).astype(np.float16)


def simulate(annotations: Path, out: Path, *, train: int, val: int, seed: int, world: World | None = None) -> None:
    """Write a data set.

    Args:
        annotations: folder of the official files.
        out: gets train.jsonl, val.jsonl, clip_features/{vid}.npz and clip_text_features/qid{qid}.npz.
        train, val: how many queries, from the start of the files; 0: all.
    """
    splits = {name: read_qvhighlights(annotations / f"highlight_{name}_release.jsonl") for name in ("train", "val")}
    language = Language([record.query for record in splits["train"]], world or World(), seed)
    backgrounds = np.stack([language.meaning(words_of(record.query)) for record in splits["train"][:2000]])
    for folder in ("clip_features", "clip_text_features"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("val", val)):
        _write_split(out, name, splits[name][: count or None], language, backgrounds)


def _write_split(
    out: Path, name: str, records: Sequence[MomentRecord], language: Language, backgrounds: Floats
) -> None:
    lines = "".join(json.dumps(to_qvhighlights(record)) + "\n" for record in records)
    (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    asked = defaultdict(list)
    for record in records:
        asked[record.video].append(record)
    for video, about in asked.items():
        np.savez(out / "clip_features" / f"{video}.npz", features=clip_features(about, language, backgrounds))
    for record in records:
        tokens, sentence = word_features(record, language)
        path = out / "clip_text_features" / f"qid{record.qid}.npz"
        np.savez(path, last_hidden_state=tokens, pooler_output=sentence)


def statistics(folder: Path, split: str = "val") -> dict[str, float]:
    """What a data set looks like to a model.

    Returns:
        Sizes and norms; how much clips resemble the sentence (cosine) where it is true and where it is not; the chance
        that a clip of the first kind resembles it more than one of the second; how much neighbouring clips resemble
        each other.
    """
    records = read_qvhighlights(folder / f"{split}.jsonl")
    inside, outside, neighbours, clip_norms, token_norms, lengths = [], [], [], [], [], []
    for record in records:
        clips = read_array(folder / "clip_features" / f"{record.video}.npz", "features").astype(np.float32)
        text = folder / "clip_text_features" / f"qid{record.qid}.npz"
        tokens = read_array(text, "last_hidden_state").astype(np.float32)
        similarity = unit(clips) @ unit(read_array(text, "pooler_output").astype(np.float32))
        assert record.saliency is not None
        relevant = np.isin(np.arange(len(clips)), record.saliency.clips)
        inside.append(similarity[relevant])
        outside.append(similarity[~relevant])
        neighbours.append((unit(clips)[1:] * unit(clips)[:-1]).sum(1))
        clip_norms.append(np.linalg.norm(clips, axis=1))
        token_norms.append(np.linalg.norm(tokens, axis=1))
        lengths.append(len(tokens))
    true, false = np.concatenate(inside), np.concatenate(outside)
    return {
        "queries": len(records),
        "numbers a clip": clips.shape[1],
        "numbers a word": tokens.shape[1],
        "words a query": float(np.mean(lengths)),
        "norm of a clip": float(np.concatenate(clip_norms).mean()),
        "norm of a word": float(np.concatenate(token_norms).mean()),
        "similarity, relevant clips": float(true.mean()),
        "its deviation": float(true.std()),
        "similarity, other clips": float(false.mean()),
        "their deviation": float(false.std()),
        "relevant above other": _auroc(true, false),
        "similarity of neighbours": float(np.concatenate(neighbours).mean()),
    }


def _auroc(positive: Floats, negative: Floats) -> float:
    order = np.sort(negative)
    return float(np.searchsorted(order, positive, side="right").mean() / len(negative))


def comparison(folders: Iterable[Path]) -> list[str]:
    """A table, a column a folder."""
    found = [(str(folder), statistics(folder)) for folder in folders]
    rows = ["| | " + " | ".join(name for name, _ in found) + " |", "|---" * (1 + len(found)) + "|"]
    for name in found[0][1]:
        rows.append(f"| {name} | " + " | ".join(f"{figures[name]:.4g}" for _, figures in found) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, help="folder of the official files")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--train", type=int, default=1500, help="queries; 0: all")
    parser.add_argument("--val", type=int, default=400, help="queries; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", type=Path, nargs="+", help="only print what these folders look like")
    options = parser.parse_args()
    if options.compare:
        print("\n".join(comparison(options.compare)))
        return
    if options.annotations is None or options.out is None:
        parser.error("needs --annotations and --out")
    simulate(options.annotations, options.out, train=options.train, val=options.val, seed=options.seed)
    print(options.out)


if __name__ == "__main__":
    main()
