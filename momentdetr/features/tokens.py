"""Queries to token ids, with their true lengths, from local files only."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from momentdetr.errors import BadInput

MAX_QUERY_CHARACTERS = 1_000


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
    """A tokenizer of the transformers library, read from a local folder.

    Args:
        tokenizer: of the transformers library.
        encode: queries -> padded and truncated ids (B, context_length), as the model was trained to see them.
        clean: what `encode` does to a query before the tokenizer sees it.
        context_length: tokens that the text tower reads.
        class_token_last: a class token that is no word ends each row of ids.
    """

    def __init__(
        self,
        tokenizer: Any,
        encode: Callable[[list[str]], Tensor],
        clean: Callable[[str], str],
        context_length: int,
        *,
        class_token_last: bool = False,
    ) -> None:
        self._tokenizer, self._encode, self._clean = tokenizer, encode, clean
        self._longest = context_length - class_token_last
        self._context_length = context_length
        self._marks = 2 if class_token_last else len(tokenizer("").input_ids)

    def __call__(self, queries: Sequence[str]) -> Tokens:
        """Tokenize; a query that is too long is cut by the tokenizer, with a warning.

        Raises:
            BadInput: nothing is left of a query after cleaning.
        """
        lengths = []
        for query in queries:
            words = self._tokenizer(self._clean(query), add_special_tokens=False, verbose=False).input_ids
            require_words(query, len(words))
            if len(words) + self._marks > self._longest:
                warn_truncated(query, len(words) + self._marks, self._longest)
            lengths.append(min(len(words) + self._marks, self._longest))
        ids = self._encode(list(queries)) if queries else torch.zeros(0, self._context_length, dtype=torch.long)
        return Tokens(ids, lengths)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer of the transformers library."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "spiece.model")) or (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    )


def check_queries(queries: Sequence[str]) -> list[str]:
    """Return the queries as a list after checking that each can be a sentence.

    Raises:
        BadInput: a query is no string, empty, longer than 1,000 characters, or not valid Unicode.
    """
    if isinstance(queries, str):
        raise BadInput("queries is one string; expected a list of strings: [query]")
    for query in queries:
        if not isinstance(query, str):
            raise BadInput(f"query is {type(query).__name__} ({query!r:.60}); expected a string")
        if len(query) > MAX_QUERY_CHARACTERS:
            raise BadInput(
                f"query has {len(query):,} characters; expected at most {MAX_QUERY_CHARACTERS:,}. Shorten it: the text "
                "towers read a few dozen words."
            )
        bad = next((i for i, character in enumerate(query) if "\ud800" <= character <= "\udfff"), None)
        if bad is not None:
            raise BadInput(f"query is not valid Unicode: lone surrogate {query[bad]!r} at character {bad}")
        if all(
            unicodedata.category(character)[0] in "CZ" for character in query
        ):  # control, format and space characters
            raise BadInput("query is empty; expected a sentence that says what to find")
    return list(queries)


def warn_truncated(query: str, tokens: int, context_length: int) -> None:
    """Say that a query is longer than the text tower reads."""
    warnings.warn(
        f"query has {tokens} tokens with start and end marks, the text tower reads {context_length}: the last "
        f"{tokens - context_length} words or word pieces are ignored ({query[:60]!r})",
        stacklevel=3,
    )


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
