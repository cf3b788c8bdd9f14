"""A word tokenizer with an end mark, as the transformers library saves it, for tests of towers with their own."""

from __future__ import annotations

from pathlib import Path

WORDS = ("<pad>", "</s>", "<unk>", "a", "dog", "cat", "runs", "sits", "on", "the", "mat", "then", "jumps", "away")


def write_tokenizer(folder: Path, *, padded_to: int = 0) -> int:
    """Write tokenizer.json and tokenizer_config.json; return the number of entries."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = [*WORDS, *(f"word{i}" for i in range(padded_to - len(WORDS)))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return len(words)
