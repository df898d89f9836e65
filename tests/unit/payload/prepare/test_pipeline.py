"""From files to token ids: the same however many processes, every bad record reported, a cache that is checked."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.errors import DataError
from engine.payload.chat.encoder import ChatEncoder, EncoderSpec
from engine.payload.chat.template import Templates
from engine.payload.data.read import read_data
from engine.payload.model import describe_model
from engine.payload.prepare import pipeline
from engine.payload.prepare.for_model import encoder_spec
from engine.payload.prepare.pipeline import Prepared, prepared
from engine.plan import preset


@pytest.fixture(scope="module")
def spec() -> EncoderSpec:
    return encoder_spec(describe_model(preset("demo"), None))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of seven records, and processes from the second piece on."""
    monkeypatch.setattr(pipeline, "PIECE_RECORDS", 7)
    monkeypatch.setattr(pipeline, "SMALL_PIECES", 2)


def record(number: int) -> dict[str, object]:
    return {"prompt": f"What is {number % 40} times two?", "completion": f"It is {2 * (number % 40)}.", "id": number}


def write(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in records))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", [record(number) for number in range(100)])


def same(first: Prepared, second: Prepared) -> bool:
    return first.facts == second.facts and all(
        np.array_equal(getattr(first.samples, name), getattr(second.samples, name)) for name in ("ids", "flags", "ends")
    )


@pytest.mark.usefixtures("small_pieces")
def test_the_ids_are_those_of_the_encoder_however_many_processes_there_are(file: Path, spec: EncoderSpec) -> None:
    alone = prepared(file, spec, processes=1)
    expected, refused = ChatEncoder(spec).encode(read_data(file).samples)
    assert not refused
    assert np.array_equal(alone.samples.ids, expected.ids)
    assert np.array_equal(alone.samples.flags, expected.flags)
    assert np.array_equal(alone.samples.ends, expected.ends)
    assert same(prepared(file, spec, processes=2), alone)
    assert same(prepared(file, spec, processes=3), alone)
    assert alone.facts.digest == read_data(file).digest
    assert alone.facts.ignored == ("id",)
    assert alone.facts.size == file.stat().st_size


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("processes", [1, 2])
def test_every_bad_record_is_counted_and_the_first_ten_are_named(
    tmp_path: Path, spec: EncoderSpec, processes: int
) -> None:
    records = [record(number) if number % 3 else "{broken" for number in range(1, 91)]
    with pytest.raises(DataError) as failure:
        prepared(write(tmp_path / "bad.jsonl", records), spec, processes=processes)
    assert failure.value.exit_code == 2
    assert "30" in failure.value.message
    assert all(f"line {number}" in failure.value.message for number in range(3, 31, 3))
    assert "line 33" not in failure.value.message


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_record_that_the_template_refuses_is_named_by_its_place(
    tmp_path: Path, spec: EncoderSpec, processes: int
) -> None:
    template = (
        "{% for one in messages %}{{ one.content }}"
        "{% if 'bad' in one.content %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    )
    refusing = msgspec.structs.replace(spec, templates=Templates(named={"default": template}, source="a test"))
    records = [*[record(number) for number in range(9)], "{broken", *[record(number) for number in range(9)]]
    records[12] = {"prompt": "bad", "completion": "answer"}
    with pytest.raises(DataError) as failure:
        prepared(write(tmp_path / "bad.jsonl", records), refusing, processes=processes)
    assert failure.value.message.startswith("2 records")
    assert failure.value.message.index("line 10") < failure.value.message.index("line 13")
    assert "line 13 cannot be encoded: the chat template refuses it: no." in failure.value.message
    assert "the model's template" in failure.value.hint


@pytest.mark.usefixtures("small_pieces")
def test_progress_ends_with_all_bytes(file: Path, spec: EncoderSpec) -> None:
    seen: list[tuple[int, int]] = []
    prepared(file, spec, processes=2, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 15
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (file.stat().st_size, file.stat().st_size)


def test_a_folder_and_compressed_data_are_read_too(tmp_path: Path, spec: EncoderSpec, file: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "b.jsonl", [record(1)])
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
    found = prepared(folder, spec, cache=tmp_path / "cache")
    assert len(found.samples.ends) == 101
    assert same(prepared(folder, spec, cache=tmp_path / "cache"), found)
    assert prepared(folder, spec, cache=tmp_path / "cache").cached


@pytest.mark.parametrize(("content", "code"), [("", "data_empty"), ("\n\n", "data_empty"), ("[1,2]\n", None)])
def test_a_file_without_samples_is_refused(tmp_path: Path, spec: EncoderSpec, content: str, code: str | None) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(DataError) as failure:
        prepared(path, spec)
    assert code in (None, failure.value.code)


def test_the_same_file_is_encoded_once(file: Path, spec: EncoderSpec, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "tokens"
    first, second = (prepared(file, spec, cache=cache) for _ in range(2))
    assert (first.cached, second.cached) == (False, True)
    assert same(first, second)


def test_a_file_that_changed_is_encoded_again_even_with_its_old_times(
    file: Path, spec: EncoderSpec, tmp_path: Path
) -> None:
    cache, before = tmp_path / "cache", file.stat()
    first = prepared(file, spec, cache=cache)
    file.write_text(file.read_text().replace("What is 1 times", "What is 3 times"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    second = prepared(file, spec, cache=cache)
    assert not second.cached
    assert not same(first, second)


def test_the_name_of_a_file_counts_where_it_decides_how_it_is_read(spec: EncoderSpec, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    text = "text\nfirst\nsecond\n"
    (tmp_path / "data.csv").write_text(text)
    (tmp_path / "data.txt").write_text(text)
    table = prepared(tmp_path / "data.csv", spec, cache=cache)
    whole = prepared(tmp_path / "data.txt", spec, cache=cache)
    assert (len(table.samples.ends), len(whole.samples.ends)) == (2, 1)


def test_a_damaged_entry_is_made_again(file: Path, spec: EncoderSpec, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = prepared(file, spec, cache=cache)
    (entry,) = cache.iterdir()
    body = entry.read_bytes()
    entry.write_bytes(body[:-100] + bytes(100))
    again = prepared(file, spec, cache=cache)
    assert not again.cached
    assert same(first, again)
    assert entry.read_bytes() == body


def test_bad_data_is_not_cached(tmp_path: Path, spec: EncoderSpec) -> None:
    path = write(tmp_path / "bad.jsonl", [record(1), "{broken"])
    with pytest.raises(DataError):
        prepared(path, spec, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_bad_record_at_the_end_of_large_data_is_refused_before_anything_is_encoded(
    tmp_path: Path, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "large.jsonl", [*(record(number) for number in range(50)), "{broken"])
    monkeypatch.setattr(pipeline, "CHECKED_FIRST_BYTES", path.stat().st_size - 1)
    advanced: list[int] = []
    with pytest.raises(DataError) as caught:
        prepared(path, spec, progress=lambda done, total: advanced.append(done))
    assert caught.value.code == "data_json_invalid"
    assert "Line 51 " in caught.value.message
    assert advanced == []
