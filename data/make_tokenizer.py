"""Trains `tiny_model/tokenizer.json` on `sample_corpus.jsonl`: byte-level BPE with ChatML control tokens.

Run from the checkout: `python data/make_tokenizer.py`. The same corpus gives the same file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
VOCABULARY = 1024
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Text is split into words as by Qwen2's tokenizer, which transformers applies to any model of that type.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ROLES = ("system\n", "user\n", "assistant\n")


def texts(corpus: Path) -> list[str]:
    """Every message of the corpus, its role first, as in ChatML."""
    lines = corpus.read_text(encoding="utf-8").splitlines()
    turns = [turn for line in lines for turn in json.loads(line)["messages"]]
    return [*ROLES, *(part for turn in turns for part in (turn["role"] + "\n", turn["content"]))]


def make(corpus: Path) -> Tokenizer:
    """A tokenizer trained on the corpus; control tokens have the ids 0, 1, 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts(corpus), trainer)
    return tokenizer


def main(target: Path) -> None:
    """Write the tokenizer to `target`."""
    make(HERE / "sample_corpus.jsonl").save(str(target))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "tiny_model" / "tokenizer.json")
