"""A small byte-pair tokenizer of the kind that SigLIP 2 has, as the transformers library saves it, for tests."""

from __future__ import annotations

from pathlib import Path

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
TEXT = ["a dog runs", "the cat sits on the mat then jumps away", "a cat jumps on the dog"] * 5


def write_tokenizer(folder: Path) -> int:
    """Write tokenizer.json and tokenizer_config.json; return the number of entries."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.processors import TemplateProcessing
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.train_from_iterator(TEXT, BpeTrainer(vocab_size=60, special_tokens=SPECIAL, show_progress=False))
    tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    fast.save_pretrained(folder)
    return len(fast)


def read_ids(folder: Path, query: str) -> list[int]:
    """Tokenize without the transformers library: ids with the end mark, no padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids: list[int] = tokenizer.encode(query).ids
    return ids
