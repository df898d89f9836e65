"""Cached token ids: what is kept is what is loaded, and nothing else is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from engine.payload.chat.ragged import LEARNED, Ragged, ragged
from engine.payload.prepare.cache import Facts, TokenCache

DATA, ENCODER = "d" * 64, "e" * 64
FACTS = Facts(digest=DATA, size=123, format="chats", ignored=("id", "quelle\x1b"))


def some(count: int = 50) -> Ragged:
    return ragged([(list(range(place)), [LEARNED] * place) for place in range(1, count)])


def entry(folder: Path) -> Path:
    (found,) = folder.glob("*.tokens")
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "cache" / "tokens"
    TokenCache(place).keep(ENCODER, some(), FACTS)
    return place


def test_what_is_kept_comes_back_as_it_was(folder: Path) -> None:
    found = TokenCache(folder).load(DATA, ENCODER)
    assert found is not None
    samples, facts = found
    assert facts == FACTS
    assert np.array_equal(samples.ids, some().ids)
    assert np.array_equal(samples.flags, some().flags)
    assert np.array_equal(samples.ends, some().ends)
    assert [array.dtype.name for array in (samples.ids, samples.flags, samples.ends)] == ["int32", "uint8", "int64"]


def test_only_the_owner_may_read_it(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(entry(folder).stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [entry(folder).name]


def test_other_data_or_another_encoder_is_not_found(folder: Path) -> None:
    assert TokenCache(folder).load("0" * 64, ENCODER) is None
    assert TokenCache(folder).load(DATA, "0" * 64) is None
    assert entry(folder).exists()


def flip(path: Path, place: int) -> None:
    body = bytearray(path.read_bytes())
    body[place] ^= 1
    path.write_bytes(body)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path, -1),
        lambda path: flip(path, len(path.read_bytes().split(b"\n")[0]) + 10),
        lambda path: flip(path, 12),
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"{" * 1_000_000),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"tokens":1225', b'"tokens":9999999999999')),
    ],
)
def test_a_damaged_entry_is_removed_and_not_used(folder: Path, damage: object) -> None:
    assert callable(damage)
    damage(entry(folder))
    assert TokenCache(folder).load(DATA, ENCODER) is None
    assert list(folder.iterdir()) == []


def test_an_entry_under_another_name_is_not_used(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    TokenCache(other).keep(ENCODER, some(3), Facts(digest="1" * 64, size=1, format="chats"))
    entry(other).rename(entry(folder))
    assert TokenCache(folder).load(DATA, ENCODER) is None


def test_the_least_recently_used_entries_make_room(tmp_path: Path) -> None:
    samples = Ragged(ids=np.zeros(1000, np.int32), flags=np.zeros(1000, np.uint8), ends=np.array([1000]))
    digests = [f"{number:064}" for number in range(4)]
    cache = TokenCache(tmp_path)
    for number, digest in enumerate(digests[:3]):
        cache.keep(ENCODER, samples, Facts(digest=digest, size=1, format="chats"))
        newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        size = newest.stat().st_size
        os.utime(newest, ns=(number, number))
    assert cache.load(digests[0], ENCODER) is not None  # used just now
    TokenCache(tmp_path, most=3 * size).keep(ENCODER, samples, Facts(digest=digests[3], size=1, format="chats"))
    kept = [digest for digest in digests if cache.load(digest, ENCODER) is not None]
    assert kept == [digests[0], digests[2], digests[3]]


def test_an_entry_that_would_fill_the_cache_is_not_kept(tmp_path: Path) -> None:
    TokenCache(tmp_path / "cache", most=10_000).keep(ENCODER, some(), FACTS)
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = TokenCache(tmp_path / "file" / "cache")
    cache.keep(ENCODER, some(), FACTS)
    assert cache.load(DATA, ENCODER) is None


def test_what_a_crash_left_half_written_is_removed_after_a_day(folder: Path) -> None:
    old, new = folder / ".a.tokens.0.part", folder / ".b.tokens.0.part"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (0, 0))
    TokenCache(folder).keep(ENCODER, some(), FACTS)
    assert (old.exists(), new.exists()) == (False, True)
