"""From a large data file to token ids: pipeline, cache, and the plain way in one process, in interleaved rounds.

The plain way reads all samples and then encodes them. Each measurement is a process of its own: wall time, processor
time and peak memory of it and of the largest of its workers. The file is generated, about 2,260 bytes a sample, and the
tokenizer is trained on a part of it, so that words are as many tokens as usual. Run:
`python -m tests.benchmarks.bench_data [--samples 100000] [--rounds 3]`; 10,000 samples take a tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.payload.chat.encoder import ChatEncoder, EncoderSpec
from engine.payload.chat.ragged import Ragged
from engine.payload.chat.template import Templates
from engine.payload.data.read import read_data
from engine.payload.prepare.pipeline import prepared

SAMPLES: Final = 100_000
ROUNDS: Final = 3
VOCABULARY: Final = 8000
_BYTES: Final = 2260
_MB: Final = 1_000_000


class Taken(msgspec.Struct):
    """Seconds; bytes at the peak, of the process and of its largest worker."""

    wall: float
    processor: float
    memory: int
    worker_memory: int
    tokens: int


def generate(path: Path, samples: int) -> None:
    """Chats of words that are as frequent as words are, so that a tokenizer's cache is of the usual use."""
    draw = random.Random(1)  # noqa: S311
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    spoken = draw.choices(words, weights, k=400_000)
    with path.open("w") as file:
        for number in range(samples):
            start = draw.randrange(len(spoken) - 400)
            text = " ".join(spoken[start : start + 400])[: _BYTES - 130]
            asked, answer = text[: len(text) // 3], text[len(text) // 3 :]
            messages = [{"role": "user", "content": f"{number} {asked}?"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")


def train(path: Path, tokenizer_file: Path) -> None:
    """A byte-level BPE tokenizer with ChatML's marks, from the first samples."""
    with path.open() as file:
        texts = [json.loads(line)["messages"][1]["content"] for line, _ in zip(file, range(2000), strict=False)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.save(str(tokenizer_file))


def measured(way: str, path: Path, tokenizer: Path, cache: Path) -> Taken:
    """Do it once in this process."""
    spec = EncoderSpec(
        tokenizer=tokenizer, tokenizer_config=None, templates=Templates(), vocab=VOCABULARY, eos=2, pad=0
    )

    def plain() -> Ragged:
        return ChatEncoder(spec).encode(read_data(path).samples)[0]

    ways: dict[str, Callable[[], Ragged]] = {
        "plain": plain,
        "one process": lambda: prepared(path, spec, processes=1).samples,
        "pipeline": lambda: prepared(path, spec).samples,
        "cached": lambda: prepared(path, spec, cache=cache).samples,
    }
    began = time.perf_counter()
    samples = ways[way]()
    wall = time.perf_counter() - began
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Taken(
        wall=wall,
        processor=own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime,
        memory=own.ru_maxrss * 1024,
        worker_memory=others.ru_maxrss * 1024,
        tokens=len(samples.ids),
    )


def main() -> int:
    """Print medians and their ratios to the plain way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--one", nargs=4, metavar=("WAY", "FILE", "TOKENIZER", "CACHE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.buffer.write(msgspec.json.encode(measured(options.one[0], *map(Path, options.one[1:]))))
        return 0
    ways = ("plain", "one process", "pipeline", "cached")
    taken: dict[str, list[Taken]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        path, tokenizer, cache = (Path(folder) / name for name in ("data.jsonl", "tokenizer.json", "cache"))
        generate(path, options.samples)
        train(path, tokenizer)
        size = path.stat().st_size
        for round_ in range(options.rounds):
            for way in ways:
                command = [sys.executable, "-m", "tests.benchmarks.bench_data", "--one", way]
                times = 2 if way == "cached" and not round_ else 1  # the first one fills the cache
                for _ in range(times):
                    done = subprocess.run([*command, path, tokenizer, cache], check=True, stdout=subprocess.PIPE)
                taken[way].append(msgspec.json.decode(done.stdout, type=Taken))
    print(
        f"{size / _MB:.0f} MB, {options.samples:,} samples, {taken['plain'][0].tokens:,} tokens, "
        f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}; medians of {options.rounds} rounds"
    )
    print(table(taken))
    return 0


def table(taken: dict[str, list[Taken]]) -> str:
    """A line a way; seconds, MB, and ratios to the plain way."""

    def median(way: str, name: str) -> float:
        return statistics.median(float(getattr(one, name)) for one in taken[way])

    lines = [f"{'':<14}{'wall':>9}{'cpu':>9}{'main MB':>9}{'worker MB':>11}{'wall x':>9}{'cpu x':>9}{'memory x':>10}"]
    for way in taken:
        wall, processor, memory = (median(way, name) for name in ("wall", "processor", "memory"))
        lines.append(
            f"{way:<14}{wall:>8.1f}s{processor:>8.1f}s{memory / _MB:>9.0f}{median(way, 'worker_memory') / _MB:>11.0f}"
            f"{wall / median('plain', 'wall'):>9.2f}{processor / median('plain', 'processor'):>9.2f}"
            f"{memory / median('plain', 'memory'):>10.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
