"""What the processes of the tests do: each function is found by its name in a process of its own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import DataError
from engine.payload.chat.ragged import LEARNED, ragged
from engine.payload.data.samples import Fault
from engine.payload.prepare.collect import KEPT_FAULTS, Part
from engine.payload.prepare.pool import pool


def doubling(setup: int) -> Callable[[int], int]:
    """Twice a number, plus `setup`."""
    return lambda number: 2 * number + setup


def failing(_setup: object) -> Callable[[int], int]:
    """An error of ours for the piece 3."""

    def work(number: int) -> int:
        if number == 3:
            raise DataError("Three is refused.", "Give another number.", code="data_three")
        return number

    return work


def quoting(_setup: object) -> Callable[[str], int]:
    """An unexpected error whose text quotes its piece."""
    return int


def dying(signum: int) -> Callable[[int], int]:
    """A process that kills itself at the piece 2."""

    def work(number: int) -> int:
        if number == 2:
            os.kill(os.getpid(), signum)
            signal.pause()
        return number

    return work


def starving(_setup: object) -> Callable[[int], int]:
    """A piece for which there is not enough memory."""

    def work(_number: int) -> int:
        return len(bytearray(2**62))

    return work


def leaving(_setup: object) -> Callable[[int], int]:
    """A process that ends by itself."""
    return lambda _number: os._exit(7)


def sleeping(folder: Path) -> Callable[[int], int]:
    """A process that says who it is, and then takes for ever."""

    def work(number: int) -> int:
        (folder / f"{os.getpid()}").touch()
        time.sleep(3600)
        return number

    return work


def unready(_setup: object) -> Callable[[Any], Any]:
    """What cannot be prepared."""
    raise DataError("The tokenizer is not valid.", "Give another one.", code="tokenizer_invalid")


def sleep_in_a_pool(folder: str) -> None:
    """Two processes that never end by themselves."""
    with pool(sleeping, Path(folder), 2) as processes:
        list(processes.results(iter(range(5))))


def lettering(setup: int) -> Callable[[list[str]], Part]:
    """Words as one token a letter, the last one learned; "" is a fault, and `#` an ignored key. Sleeps `setup` ms."""

    def work(words: list[str]) -> Part:
        time.sleep(setup / 1000 * (len(words) % 3))
        good = [word for word in words if word]
        faults = [
            Fault(place=f"word {number}", code="empty", what="is empty")
            for number, word in enumerate(words)
            if not word
        ]
        return Part(
            samples=ragged([([ord(letter) for letter in word], [0] * (len(word) - 1) + [LEARNED]) for word in good]),
            records=len(words),
            faults=tuple(faults[:KEPT_FAULTS]),
            bad=len(faults),
            ignored={word: 1 for word in words if "#" in word},
        )

    return work
