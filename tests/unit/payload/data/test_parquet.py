"""Parquet files as the hub has them, and without pyarrow."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.payload.data.read import read_data
from engine.payload.data.records import MAX_RECORD_BYTES
from tests.unit.payload.data.test_formats import TOOL_CHAT
from tests.unit.payload.data.written import CHAT, PAIR, SAMPLE, one, refusal

pa = pytest.importorskip("pyarrow", reason="needs the parquet extra: pip install 'glasshouse[parquet]'")
pq = pytest.importorskip("pyarrow.parquet")


def table(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    path = folder / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def test_the_rows_are_records_and_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = table(tmp_path, [{**CHAT, "id": number, "score": float("nan")} for number in range(200)], row_group_size=30)
    data = read_data(path)
    assert data.samples == (SAMPLE,) * 200
    assert data.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (data.ignored["id"], data.duplicates) == (200, 199)


def test_fields_that_only_other_rows_have_are_not_there(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [TOOL_CHAT, {"messages": CHAT["messages"], "tools": None}]
    first, second = read_data(table(tmp_path, rows)).samples
    assert second == SAMPLE
    assert first == one(tmp_path, TOOL_CHAT)


def test_a_name_says_nothing_about_what_is_in_a_file(tmp_path: Path) -> None:
    path = table(tmp_path, [PAIR])
    assert read_data(path.rename(tmp_path / "data.jsonl")).samples == (SAMPLE,)
    (tmp_path / "x.parquet").write_text('x: "not parquet"')
    assert refusal(tmp_path / "x.parquet").code == "data_container_unknown"


def test_a_bad_row_is_reported_with_its_number(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        PAIR,
        {**PAIR, "completion": ""},
        {**PAIR, "completion": "x" * MAX_RECORD_BYTES},
        {**PAIR, "prompt": None},
    ]
    message = refusal(table(tmp_path, rows)).message
    assert "row 2 has an empty completion; row 3 is longer than 1 MiB; row 4 has completion, but no prompt" in message


@pytest.mark.parametrize("cut", [8, 100, -1])
def test_a_damaged_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = table(tmp_path, [PAIR] * 100)
    path.write_bytes(path.read_bytes()[:cut])
    assert refusal(path).code == "data_parquet_invalid"


def test_changed_bytes_end_in_a_refusal_or_in_samples(tmp_path: Path) -> None:
    whole = table(tmp_path, [{**PAIR, "id": number} for number in range(50)]).read_bytes()
    for place in range(4, len(whole), 7):
        path = tmp_path / "changed.parquet"
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read_data(path)
        except Exception as error:
            assert getattr(error, "code", type(error)) in {
                "data_parquet_invalid", "data_shape_invalid", "data_format_unknown", "data_empty",
                "data_not_utf8", "data_sample_empty", "data_json_invalid", "data_ambiguous",
            }  # fmt: skip


def test_parquet_inside_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet.gz"
    path.write_bytes(gzip.compress(table(tmp_path, [PAIR]).read_bytes()))
    assert refusal(path).code == "data_container_unknown"


def test_without_pyarrow_the_refusal_says_what_to_install(tmp_path: Path) -> None:
    path = table(tmp_path, [PAIR])
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from engine.errors import MissingExtraError\n"
        "from engine.payload.data.sources import open_data\n"
        "try:\n    open_data(Path(sys.argv[1]))\n"
        "except MissingExtraError as error:\n    print(error.code, error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True)
    assert "extra_missing" in done.stdout
    assert "glasshouse[parquet]" in done.stdout


def test_reading_lines_loads_no_pyarrow(tmp_path: Path) -> None:
    code = "import sys, engine.payload.data.read; print('pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path.cwd())
    assert done.stdout.strip() == "False"
