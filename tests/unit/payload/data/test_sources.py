"""The same records from every kind of file, with the digest of its bytes; what is no data is refused with a code."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import DataError
from engine.payload.data.read import read_data
from engine.payload.data.records import MAX_RECORD_BYTES, Record
from engine.payload.data.samples import Sample
from engine.payload.data.sources import open_data
from engine.payload.data.stream import CHUNK
from engine.wire import digest_of
from tests.unit.payload.data.written import CHAT, PAIR, SAMPLE, refusal, written

RECORDS = [CHAT, {"messages": [*CHAT["messages"], {"role": "user", "content": 'a "b", {c}: [\n'}, CHAT["messages"][1]]}]


def file(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def lines(records: Sequence[Any]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


LAYOUTS = {
    "lines": lines(RECORDS),
    "lines without a last newline": lines(RECORDS)[:-1],
    "lines with blanks and CRLF": "\r\n \n" + lines(RECORDS).replace("\n", "\r\n\r\n"),
    "an array": json.dumps(RECORDS),
    "an indented array": "\n" + json.dumps(RECORDS, indent=2) + "\n\n",
    "an array of a record a line": "[\n" + ",\n".join(json.dumps(record) for record in RECORDS) + "\n]\n",
    "an object with an array": json.dumps({"version": "1", "data": RECORDS, "more": {"a": [1]}}),
    "an indented object with an array": json.dumps({"data": RECORDS, "count": 2}, indent=2),
    "indented objects": "\n".join(json.dumps(record, indent=2) for record in RECORDS),
}


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.txt.bak", "data"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_is_read_by_what_is_in_it_and_not_by_its_name(
    tmp_path: Path, layout: str, name: str, bom: bytes
) -> None:
    plain = bom + LAYOUTS[layout].encode()
    expected = read_data(written(tmp_path, *RECORDS, name="expected.jsonl")).samples
    for data, path in ((plain, name), (gzip.compress(plain), f"{name}.gz")):
        found = read_data(file(tmp_path, path, data))
        assert found.samples == expected
        assert found.digest == hashlib.sha256(data).hexdigest()


def test_gzip_of_several_members_is_one_file(tmp_path: Path) -> None:
    data = b"".join(gzip.compress(lines([record]).encode()) for record in RECORDS)
    assert len(read_data(file(tmp_path, "data.jsonl.gz", data)).samples) == 2


def test_the_bytes_read_grow_to_the_size_and_the_digest_comes_at_the_end(tmp_path: Path) -> None:
    path = file(tmp_path, "data.jsonl", lines([PAIR] * 100_000))
    opened = open_data(path)
    assert (opened.size, opened.read, opened.format_hint, opened.files) == (path.stat().st_size, 0, "lines", 1)
    records = iter(opened)
    assert next(records) == Record("line 1", lines([PAIR]).encode())
    assert 0 < opened.read < opened.size
    with pytest.raises(ValueError, match="not read to its end"):
        _ = opened.digest
    assert sum(1 for _ in records) == 99_999
    assert opened.read == opened.size
    assert opened.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_reading_may_be_given_up(tmp_path: Path) -> None:
    opened = open_data(file(tmp_path, "data.jsonl", lines(RECORDS)))
    records = iter(opened)
    next(records)
    opened.close()
    assert list(records) == []


def test_places_are_as_a_person_would_look_for_them(tmp_path: Path) -> None:
    bad = {"prompt": "a", "completion": ""}
    assert "line 3 has" in refusal(file(tmp_path, "a.jsonl", "\n" + lines([PAIR, bad, bad]))).message
    assert "record 2 has" in refusal(file(tmp_path, "a.json", json.dumps([bad, bad]))).message
    assert "row 2 has" in refusal(file(tmp_path, "a.csv", "prompt,completion\n, b\n,c\n")).message


@pytest.mark.parametrize(
    ("text", "code", "what"),
    [
        ("[", "data_json_invalid", "Record 1 of the data file is not JSON"),
        ('[{"text": "a"}', "data_json_invalid", "Record 1 of the data file is not followed by"),
        ('[{"text": "a"} {"text": "b"}]', "data_json_invalid", "Record 1 of the data file is not followed by"),
        ('[{"text": "a"}, {"text": }]', "data_json_invalid", "Record 2 of the data file is not JSON"),
        ('[{"text": "a"}, ]', "data_json_invalid", "Record 2 of the data file is not JSON"),
        ('[{"text": "a"}] more', "data_json_invalid", "Record 1 of the data file is followed by more"),
        ('[{"text": "a"}]\n[{"text": "a"}]', "data_json_invalid", "followed by more"),
        ('[{"text": "a"}, ' + "[" * 100_000, "data_json_invalid", "nested"),
        (b'[{"text": "a"}, {"text": "\xff"}]', "data_not_utf8", "not UTF-8"),
        ('[{"text": "a"}, {"text": "\ud800"}]'.encode("utf-8", "surrogatepass"), "data_not_utf8", "not UTF-8"),
        ('[{"text": "' + "a" * 3 * MAX_RECORD_BYTES + '"}]', "data_line_too_long", "longer than 1 MiB"),
        ('[{"text": "a"}, 7, "b"]', "data_shape_invalid", "record 2 is not a JSON object; record 3 is not a JSON"),
        ('{"a": [{"text": "a"}],\n "b": [{"text": "b"}]}', "data_shape_invalid", "more than one array"),
        ('{\n"a": [{"text": "a"}] x', "data_json_invalid", "not JSON"),
        ('{\n"a" [{"text": "a"}]}', "data_json_invalid", "not JSON"),
        ("[]", "data_empty", "no samples"),
        ('{"data": []}', "data_empty", "no samples"),
        ("", "data_empty", "no samples"),
        (" \n\n", "data_empty", "no samples"),
        ("\ufeff", "data_empty", "no samples"),
        ("hello\n", "data_json_invalid", "is not JSON"),
        (lines([PAIR]).encode("utf-16"), "data_not_utf8", "UTF-16"),
        (lines([PAIR]).encode("utf-16-le"), "data_not_utf8", "UTF-16"),
        (lines([PAIR]).encode("utf-16-be"), "data_not_utf8", "UTF-16"),
        (lines([PAIR]).encode("utf-32"), "data_not_utf8", "UTF-16"),
        (b"PK\x03\x04rest", "data_container_unknown", "zip"),
        (b"\x28\xb5\x2f\xfdrest", "data_container_unknown", "zstd"),
        (gzip.compress(gzip.compress(b"{}")), "data_container_unknown", "twice"),
        (gzip.compress(lines([PAIR]).encode())[:-4], "data_gzip_invalid", "damaged or cut"),
        (gzip.compress(lines([PAIR]).encode()) + b"x", "data_gzip_invalid", "damaged or cut"),
        (b"\x1f\x8b" + b"x" * 100, "data_gzip_invalid", "damaged or cut"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("data_") else "",
)
def test_a_file_that_cannot_be_split_is_refused(tmp_path: Path, text: bytes | str, code: str, what: str) -> None:
    error = refusal(file(tmp_path, "data.json", text))
    assert error.code == code, error.message
    assert what in error.message


def test_an_array_goes_on_after_a_bad_record(tmp_path: Path) -> None:
    long = {"text": "a" * MAX_RECORD_BYTES}
    error = refusal(file(tmp_path, "data.json", json.dumps([CHAT, {"text": 1}, long, CHAT, {}])))
    assert error.message.startswith("3 records of the data, read as OpenAI chats (messages), ")
    assert "record 2 is in the format plain text" in error.message
    assert "record 3 is longer than 1 MiB; record 5 has no keys" in error.message


def test_a_number_is_not_cut_where_a_piece_of_the_file_ends(tmp_path: Path) -> None:
    text = "[" + " " * (CHUNK - 3) + '12345, {"text": "a"}]'
    error = refusal(file(tmp_path, "data.json", text))
    assert error.message == "Record 1 of the data, read as plain text (text), is not a JSON object."


def test_a_gzip_bomb_is_refused_in_little_memory(tmp_path: Path) -> None:
    squeeze = zlib.compressobj(9, wbits=31)
    zeros = b" " * 1024 * 1024
    with (tmp_path / "bomb.jsonl.gz").open("wb") as out:
        for _ in range(300):
            out.write(squeeze.compress(zeros))
        out.write(squeeze.flush())
    assert refusal(tmp_path / "bomb.jsonl.gz").code == "data_gzip_bomb"


class TestFolder:
    def test_its_files_are_read_in_the_order_of_their_names_and_the_rest_is_counted(self, tmp_path: Path) -> None:
        file(tmp_path, "b.jsonl", lines([{"prompt": "2", "completion": "b"}]))
        file(tmp_path, "a.json", json.dumps([{"prompt": "1", "completion": "a"}]))
        file(tmp_path, "c.csv", "prompt,completion\n3,c\n")
        file(tmp_path, "d.JSONL.gz", gzip.compress(lines([{"prompt": "4", "completion": "d"}]).encode()))
        for name in (".hidden.jsonl", "README.md", "notes.docx", "dataset_info.json"):
            file(tmp_path, name, "x")
        (tmp_path / "folder.jsonl").mkdir()
        opened = open_data(tmp_path)
        places = ["a.json, record 1", "b.jsonl, line 1", "c.csv, row 1", "d.JSONL.gz, line 1"]
        assert [record.place for record in opened] == places
        assert (opened.files, opened.skipped, opened.format_hint) == (4, 5, "folder")
        assert opened.read == opened.size
        names = ("a.json", "b.jsonl", "c.csv", "d.JSONL.gz")
        assert opened.digest == digest_of(
            {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names}
        )
        assert [sample.messages[0]["content"] for sample in read_data(tmp_path).samples] == ["1", "2", "3", "4"]

    def test_texts_are_samples_where_there_is_nothing_else(self, tmp_path: Path) -> None:
        file(tmp_path, "b.md", b"\xef\xbb\xbf# Title\n")
        file(tmp_path, "a.txt", "[1] Once\n\n")
        assert read_data(tmp_path).samples == (Sample(text="[1] Once\n\n"), Sample(text="# Title\n"))

    def test_a_text_that_is_none_is_named(self, tmp_path: Path) -> None:
        file(tmp_path, "a.txt", "fine")
        file(tmp_path, "b.txt", b"\xff")
        file(tmp_path, "c.txt", "x" * (MAX_RECORD_BYTES + 1))
        file(tmp_path, "d.txt", " \n")
        error = refusal(tmp_path)
        assert "b.txt is not UTF-8; c.txt is longer than 1 MiB; d.txt has an empty text" in error.message

    def test_a_bad_record_is_named_with_its_file(self, tmp_path: Path) -> None:
        file(tmp_path, "a.jsonl", lines([CHAT]))
        file(tmp_path, "b.jsonl", lines([CHAT, PAIR]))
        error = refusal(tmp_path)
        assert error.code == "data_format_mixed"
        assert error.message.startswith("B.jsonl, line 2") or error.message.startswith("b.jsonl, line 2")

    def test_every_file_must_have_data(self, tmp_path: Path) -> None:
        file(tmp_path, "a.jsonl", lines([CHAT]))
        file(tmp_path, "b.jsonl", "\n")
        error = refusal(tmp_path)
        assert (error.code, "b.jsonl" in error.message) == ("data_empty", True)

    def test_a_folder_without_data_is_refused(self, tmp_path: Path) -> None:
        file(tmp_path, "notes.docx", "x")
        assert refusal(tmp_path).code == "data_empty"

    def test_links_to_files_are_followed_as_a_model_cache_has_them(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "a.jsonl").symlink_to(file(tmp_path, "blob", lines([CHAT])))
        assert read_data(folder).samples == (SAMPLE,)

    @pytest.mark.parametrize("kind", ["pipe", "loop", "dangling", "device"])
    def test_an_entry_that_is_no_file_is_refused_and_never_waited_for(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "a.jsonl"
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to({"loop": path, "dangling": tmp_path / "absent", "device": Path("/dev/zero")}[kind])
        assert refusal(tmp_path).code in ("data_unreadable", "data_missing")

    def test_a_name_that_could_deceive_is_refused(self, tmp_path: Path) -> None:
        file(tmp_path, "a\n\x1b[2J.jsonl", lines([CHAT]))
        assert refusal(tmp_path).code == "data_unreadable"


@pytest.mark.parametrize("name", ["absent.jsonl", "absent/a.jsonl"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path / name).code == "data_missing"


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe").code == "data_unreadable"
    assert refusal(Path("/dev/zero")).code == "data_unreadable"
    assert refusal(Path("a\x00b")).code == "data_unreadable"


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, "data.jsonl", lines([PAIR] * 50_000))
    records = iter(open_data(path))
    next(records)
    with path.open("a") as more:
        more.write(lines([PAIR]))
    with pytest.raises(DataError, match="changed while it was read") as caught:
        list(records)
    assert caught.value.code == "data_changed"


class TestCsv:
    def rows(self, rows: Sequence[Sequence[str]], **options: Any) -> str:
        out = io.StringIO()
        csv.writer(out, **options).writerows(rows)
        return out.getvalue()

    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    @pytest.mark.parametrize("bom", ["", "\ufeff"])
    def test_cells_may_have_line_breaks_quotes_and_delimiters(self, tmp_path: Path, delimiter: str, bom: str) -> None:
        said = 'a "b",\r\n;\tc\n'
        text = self.rows([["id", "prompt", "completion"], ["1", said, "Yes."]], delimiter=delimiter)
        data = read_data(file(tmp_path, "data.csv", bom + text))
        assert data.samples[0].messages[0]["content"] == said
        assert data.ignored == {"id": 1}

    @pytest.mark.parametrize("text", ["prompt,completion\nHi?,Yes.\n", '"prompt";"completion"\r\n"Hi?";"Yes."\r\n'])
    def test_a_table_is_one_by_its_header_too(self, tmp_path: Path, text: str) -> None:
        assert read_data(file(tmp_path, "data", text)).samples == (SAMPLE,)

    def test_a_column_of_messages_holds_json(self, tmp_path: Path) -> None:
        text = self.rows([["messages", "tools"], [json.dumps(CHAT["messages"]), ""]])
        assert read_data(file(tmp_path, "data.csv", text)).samples == (SAMPLE,)

    def test_the_notation_of_python_is_not_json(self, tmp_path: Path) -> None:
        error = refusal(file(tmp_path, "data.csv", self.rows([["messages"], [str(CHAT["messages"])]])))
        assert error.code == "data_json_invalid"
        assert "has messages as text that is not JSON (Python's own notation" in error.message

    def test_a_column_without_a_name_is_an_index(self, tmp_path: Path) -> None:
        assert read_data(file(tmp_path, "data.csv", ",prompt,completion\n0,Hi?,Yes.\n")).samples == (SAMPLE,)

    @pytest.mark.parametrize(
        ("text", "code", "what"),
        [
            (
                "prompt,completion\na\nb,c,d\n\ne,f\n",
                "data_shape_invalid",
                "row 1 has 1 cells, and the header 2; row 2",
            ),
            ("prompt,prompt\na,b\n", "data_csv_invalid", "columns of the same name (prompt)"),
            (",".join("x" * n for n in range(1, 1100)) + "\n", "data_csv_invalid", "more than 1000 columns"),
            ('prompt,completion\n"a,b\n', "data_csv_invalid", "not CSV from line 2 on"),
            ('prompt,completion\n"a"b,c\n', "data_csv_invalid", "not CSV from line 2 on"),
            ('prompt,completion\n"' + "a\n" * 2 * MAX_RECORD_BYTES, "data_csv_invalid", "not CSV from line 2 on"),
            (
                'prompt,completion\n"a' + '\n","a' * MAX_RECORD_BYTES + '"\n',
                "data_csv_invalid",
                "not CSV from line 2 on",
            ),
            ("prompt,completion\na," + "b" * MAX_RECORD_BYTES, "data_line_too_long", "line 2"),
            ('prompt,completion\na,"' + "b\n" * (MAX_RECORD_BYTES // 2) + '"\n', "data_line_too_long", "Row 1"),
            (b"prompt,completion\na,\xff\n", "data_not_utf8", "line 2 that is not UTF-8"),
            ("prompt,completion\n,\n", "data_format_unknown", "no keys"),
            ("prompt,completion\n", "data_empty", "no samples"),
        ],
        ids=range(12),
    )
    def test_what_is_no_table_is_refused(self, tmp_path: Path, text: bytes | str, code: str, what: str) -> None:
        error = refusal(file(tmp_path, "data.csv", text))
        assert error.code == code, error.message
        assert what in error.message


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(texts=TEXTS, indent=st.sampled_from([None, 1]), escape=st.booleans())
def test_an_array_has_the_records_of_its_lines(
    tmp_path: Path, texts: list[str], indent: int | None, escape: bool
) -> None:
    records = [{"text": text} for text in texts]
    array = file(tmp_path, "a.json", json.dumps(records, indent=indent, ensure_ascii=escape))
    for path in (array, written(tmp_path, *records)):
        assert [json.loads(one.raw) for one in open_data(path) if isinstance(one, Record)] == records
