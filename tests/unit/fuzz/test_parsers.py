"""Every parser accepts its input or raises a typed error, in bounded memory.

`GLASSHOUSE_FUZZ_EXAMPLES` sets the number of inputs per target; they are the same in every run.
"""

from __future__ import annotations

import contextlib
import os
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings

from engine.errors import GlasshouseError
from tests.fuzz.strategies import inputs
from tests.fuzz.targets import targets

TARGETS = targets()
EXAMPLES = int(os.environ.get("GLASSHOUSE_FUZZ_EXAMPLES", "25"))
REPEATABLE = settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
MIB = 1024 * 1024
BOMBS = {
    "brackets": b"[" * 200_000,
    "objects": b'{"a":' * 50_000,
    "digits": b"9" * 200_000,
    "text": b'"' + b"a" * 200_000 + b'"',
    "items": b"[" + b"0," * 30_000 + b"0]",
    "keys": b"{" + b",".join(b'"k%d":0' % n for n in range(5_000)) + b"}",
    "size": b"\xff" * 8 + b"{}",
    "nothing": b"",
    "zeros": bytes(200_000),
}


@pytest.mark.parametrize("name", TARGETS)
def test_valid_input_is_accepted(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].read(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_arbitrary_input_raises_only_typed_errors(name: str) -> None:
    target = TARGETS[name]

    @REPEATABLE
    @given(data=inputs(target.seeds))
    def read(data: bytes) -> None:
        with contextlib.suppress(GlasshouseError):
            target.read(data)

    read()


@pytest.mark.parametrize("name", TARGETS)
def test_large_and_deep_input_takes_bounded_memory(name: str) -> None:
    tracemalloc.start()
    try:
        for data in BOMBS.values():
            with contextlib.suppress(GlasshouseError):
                TARGETS[name].read(data)
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()
