"""Queries become the ids that CLIP was trained on, with lengths that are counted."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from momentdetr.errors import BadInput
from momentdetr.features.tokens import BpeTokenizer, FolderTokenizer, check_queries, has_tokenizer, require_vocabulary

QUERIES = ["a man sits down", "Chef cuts an ONION, then fries it!", "café & crème", "don't stop", "!?", "日本の猫"]


def test_ids_are_those_of_open_clip() -> None:
    tokens = BpeTokenizer(77)(QUERIES)
    assert torch.equal(tokens.ids, open_clip.get_tokenizer("ViT-B-32")(QUERIES))
    for ids, length in zip(tokens.ids.tolist(), tokens.lengths, strict=True):
        assert (ids[0], ids[length - 1]) == (49406, 49407)
        assert not any(ids[length:])


def test_lengths_do_not_mistake_an_exclamation_mark_for_padding() -> None:
    """Its id is 0 within a run of marks: counting what is not 0 would cut the end mark off."""
    tokens = BpeTokenizer(16)(["wow!¡"])
    assert 0 in tokens.ids[0, : tokens.lengths[0]].tolist()
    assert tokens.ids[0, tokens.lengths[0] - 1] == 49407
    assert int((tokens.ids != 0).sum()) < tokens.lengths[0]


def test_a_long_query_is_cut_keeps_its_end_and_says_so() -> None:
    query = " ".join(["dog"] * 100)
    with pytest.warns(UserWarning, match="query has 102 tokens .* reads 77: the last 25 words"):
        tokens = BpeTokenizer(77)([query])
    assert tokens.lengths == [77]
    assert torch.equal(tokens.ids, open_clip.get_tokenizer("ViT-B-32")([query]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert BpeTokenizer(77)([" ".join(["dog"] * 75)]).lengths == [77]


def test_no_queries() -> None:
    tokens = BpeTokenizer(77)([])
    assert (tuple(tokens.ids.shape), tokens.lengths) == ((0, 77), [])


@pytest.mark.parametrize("query", ["&nbsp;", "&amp;nbsp; &#9;"])
def test_a_query_without_words_is_refused(query: str) -> None:
    with pytest.raises(BadInput, match="holds no words"):
        BpeTokenizer(77)(["a dog", *check_queries([query])])


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([""], "query is empty"),
        (["a dog", "  \n\t"], "query is empty"),
        (["\u200b\ufeff\x00\u3000"], "query is empty"),
        ([None], "query is NoneType"),
        ([3], "query is int"),
        ([["a dog"]], "query is list"),
        (["a" * 1001], "1,001 characters; expected at most 1,000"),
        (["a " * 5_000], "10,000 characters"),
        (["a \ud800 dog"], "lone surrogate .* at character 2"),
        ("a dog", "expected a list of strings"),
    ],
)
def test_what_cannot_be_a_query(queries: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_queries(queries)


def test_what_can_be_a_query() -> None:
    queries = ["a" * 1000, "\U0001f600 smiles", "<b>bold</b>", "'; DROP TABLE", "<end_of_text> now", "x\0y"]
    assert check_queries(tuple(queries)) == queries
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens = BpeTokenizer(20)(queries)
    assert all(3 <= length <= 20 for length in tokens.lengths)
    assert [int(ids[length - 1]) for ids, length in zip(tokens.ids, tokens.lengths, strict=True)] == [49407] * 6


@pytest.mark.parametrize(
    ("found", "expected", "fits"),
    [
        (49408, 49408, True),
        (2, 49408, False),
        (49408, 49409, True),
        (49409, 49408, False),
        (250_000, 256_000, False),
        (255_900, 256_000, True),
        (30, 64, True),
    ],
)
def test_a_vocabulary_belongs_to_its_model(found: int, expected: int, fits: bool) -> None:
    if fits:
        require_vocabulary("model", found, expected)
    else:
        with pytest.raises(BadInput, match="belong to another model"):
            require_vocabulary("model", found, expected)


def write_clip_tokenizer(folder: Path) -> None:
    """Write CLIP's vocabulary, which open_clip bundles, as transformers reads it."""
    words = open_clip.SimpleTokenizer()
    names = {word: number for word, number in words.encoder.items() if number < 49406}
    names |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (folder / "vocab.json").write_text(json.dumps(names), "utf-8")
    merges = ["#version: 0.2", *(" ".join(pair) for pair in words.bpe_ranks)]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))


def test_transformers_gives_the_same_ids(tmp_path: Path) -> None:
    """So the bundled vocabulary may stand in where a CLIP folder has no tokenizer files."""
    from transformers import CLIPTokenizer

    assert not has_tokenizer(tmp_path)
    write_clip_tokenizer(tmp_path)
    assert has_tokenizer(tmp_path)
    hf = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert len(hf) == BpeTokenizer.vocabulary

    def encode(queries: list[str]) -> torch.Tensor:
        ids: torch.Tensor = hf(
            queries, return_tensors="pt", padding="max_length", truncation=True, max_length=20
        ).input_ids
        return ids

    theirs, ours = FolderTokenizer(hf, encode, str, 20), BpeTokenizer(20)
    long = " ".join(["dog"] * 30)
    with pytest.warns(UserWarning, match="query has 32 tokens"):
        found = theirs([*QUERIES, long])
    with pytest.warns(UserWarning, match="query has 32 tokens"):
        expected = ours([*QUERIES, long])
    assert found.lengths == expected.lengths
    for a, b, length in zip(found.ids, expected.ids, found.lengths, strict=True):
        assert torch.equal(a[:length], b[:length])
    assert theirs([]).ids.shape == (0, 20)
    with pytest.raises(BadInput, match="holds no words"):
        theirs([" "])
