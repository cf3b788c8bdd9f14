"""Queries to token ids, with their true lengths, from local files only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from momentdetr.errors import BadInput, WeightsUnavailable
from momentdetr.features.clip_models import ClipModel
from momentdetr.features.encoder import warn_truncated


@dataclass(frozen=True)
class Tokens:
    """Token ids of several queries.

    Args:
        ids: (B, L) int64, L the text tower's context length, padded.
        lengths: tokens of each query from start to end mark, the marks included, at most L.
    """

    ids: Tensor
    lengths: list[int]


class Tokenizer(Protocol):
    def __call__(self, queries: Sequence[str]) -> Tokens: ...


class BpeTokenizer:
    """CLIP's byte-pair vocabulary of 49,408 entries, which comes with open_clip.

    Lengths are counted, not read off the padding: the padding id 0 is also "!".

    Args:
        context_length: tokens that the text tower reads.
        options: further arguments of open_clip's SimpleTokenizer.
    """

    vocabulary = 49_408

    def __init__(self, context_length: int, **options: Any) -> None:
        from open_clip import SimpleTokenizer

        self.context_length = context_length
        self._bpe = SimpleTokenizer(context_length=context_length, **options)

    def __call__(self, queries: Sequence[str]) -> Tokens:
        """Tokenize; a query that is too long loses its last words and keeps its end mark, with a warning.

        Raises:
            BadInput: nothing is left of a query after cleaning.
        """
        ids = torch.zeros(len(queries), self.context_length, dtype=torch.long)
        lengths = []
        for row, query in enumerate(queries):
            words = self._bpe.encode(query)
            require_words(query, len(words))
            if len(words) + 2 > self.context_length:
                warn_truncated(query, len(words) + 2, self.context_length)
            words = words[: self.context_length - 2]
            ids[row, : len(words) + 2] = torch.tensor([self._bpe.sot_token_id, *words, self._bpe.eot_token_id])
            lengths.append(len(words) + 2)
        return Tokens(ids, lengths)


class FolderTokenizer:
    """A tokenizer of the transformers library whose files lie in a local folder, used as open_clip uses it.

    Args:
        folder: holds tokenizer.json or its kin.
        context_length: tokens that the text tower reads.
        vocabulary: rows of the text tower's embedding.
        options: further arguments of open_clip's HFTokenizer.
    """

    def __init__(self, folder: Path, context_length: int, vocabulary: int, **options: Any) -> None:
        from open_clip.tokenizer import HFTokenizer

        try:
            self._hf = HFTokenizer(str(folder), context_length=context_length, local_files_only=True, **options)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise BadInput(f"{folder}: its tokenizer cannot be read: {str(error).splitlines()[0]}") from error
        require_vocabulary(folder, len(self._hf.tokenizer), vocabulary)
        self.context_length = context_length

    def __call__(self, queries: Sequence[str]) -> Tokens:
        """Tokenize; a query that is too long is cut by the tokenizer, with a warning.

        Raises:
            BadInput: nothing is left of a query after cleaning.
        """
        ids: Tensor = self._hf(list(queries))
        clips = self._hf.tokenizer_mode == "clips"
        lengths = []
        for query in queries:
            words = self._hf.tokenizer(self._hf.clean_fn(query), add_special_tokens=False).input_ids
            require_words(query, len(words))
            # "clips" frames the words with begin and end marks and puts a class token at the very end.
            marks = 2 if clips else len(self._hf.tokenizer("", add_special_tokens=True).input_ids)
            longest = self.context_length - 1 if clips else self.context_length
            if len(words) + marks > longest:
                warn_truncated(query, len(words) + marks, longest)
            lengths.append(min(len(words) + marks, longest))
        return Tokens(ids, lengths)


def require_words(query: str, count: int) -> None:
    """Refuse a query of which cleaning leaves nothing.

    Raises:
        BadInput: `count` is zero.
    """
    if count == 0:
        raise BadInput(f"query {query[:60]!r} holds no words; expected a sentence that says what to find")


def require_vocabulary(source: Path | str, found: int, expected: int) -> None:
    """Check a tokenizer's size against the text tower's embedding.

    A tokenizer that finds no vocabulary file can load without complaint with its special tokens alone. Embeddings may
    be padded by a few rows.

    Raises:
        BadInput: the sizes do not belong together.
    """
    if not found <= expected <= found + max(64, expected // 50):
        raise BadInput(
            f"{source}: its tokenizer has {found:,} entries, the text tower {expected:,}; the tokenizer's files are "
            "missing or belong to another model. Put the model's own tokenizer.json into the folder."
        )


def tokenizer_of(model: ClipModel, weights: Path | None) -> Tokenizer:
    """Return the tokenizer of a model: the bundled one, or files beside the model or its weights.

    Raises:
        WeightsUnavailable: the model needs tokenizer files and there are none.
        BadInput: the tokenizer does not belong to the model.
    """
    text = model.config["text_cfg"]
    length, vocabulary = text.get("context_length", 77), text.get("vocab_size", BpeTokenizer.vocabulary)
    options = dict(text.get("tokenizer_kwargs") or {})
    if not text.get("hf_tokenizer_name"):
        require_vocabulary(model.name, BpeTokenizer.vocabulary, vocabulary)
        return BpeTokenizer(length, **options)
    for folder in (model.folder, weights.parent if weights else None):
        if folder is not None and any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            return FolderTokenizer(folder, length, vocabulary, tokenizer_mode=text.get("tokenizer_mode"), **options)
    raise WeightsUnavailable(
        f"{model.name} needs the tokenizer {text['hf_tokenizer_name']}; put its tokenizer.json and "
        "tokenizer_config.json beside the weights"
    )
