"""Tokenizers kept with runs: shared, private, bounded, and never another's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import DataError, RefusedError
from engine.payload import tokenizer_files
from engine.payload.tokenizer_files import TokenizerFiles
from engine.records.adapters.tokenizers import TOKENIZER_FILE, keep_tokenizer, kept_tokenizer

FILES = TokenizerFiles(
    tokenizer=b"{}",
    tokenizer_config=b'{"a": 1}',
    chat_template=b"{{ messages }}",
    extras={"special_tokens_map.json": b"{}", "vocab.txt": b"a\nb", "additional_chat_templates/tool_use.jinja": b"{}"},
)


def referring(home: Path, digest: str) -> Path:
    folder = home / "adapters" / "a1b2c3d4e5f6"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TOKENIZER_FILE).write_text(digest)
    return folder


def test_what_is_kept_comes_back_byte_for_byte(tmp_path: Path) -> None:
    digest = keep_tokenizer(tmp_path, FILES)
    assert kept_tokenizer(tmp_path, referring(tmp_path, digest)) == FILES


def test_runs_with_the_same_tokenizer_share_one_private_copy(tmp_path: Path) -> None:
    assert keep_tokenizer(tmp_path, FILES) == keep_tokenizer(tmp_path, FILES)
    (kept,) = (tmp_path / "tokenizers").iterdir()
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    folders = (kept, kept.parent, kept / "additional_chat_templates")
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
    bare = TokenizerFiles(tokenizer=b"{}")
    assert kept_tokenizer(tmp_path, referring(tmp_path, keep_tokenizer(tmp_path, bare))) == bare
    assert len(list((tmp_path / "tokenizers").iterdir())) == 2


def test_a_run_of_an_earlier_version_kept_none(tmp_path: Path) -> None:
    assert kept_tokenizer(tmp_path, tmp_path) is None


def changed(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[]")


def removed(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def added(folder: Path) -> None:
    (folder / "modeling.py").write_text("import os")


def endless(folder: Path) -> None:
    removed(folder)
    os.mkfifo(folder / "tokenizer.json")


@pytest.mark.parametrize("change", [changed, removed, added, endless])
def test_files_that_are_not_those_that_were_kept_are_refused(tmp_path: Path, change: Callable[[Path], None]) -> None:
    digest = keep_tokenizer(tmp_path, FILES)
    change(tmp_path / "tokenizers" / digest)
    with pytest.raises(RefusedError) as caught:
        kept_tokenizer(tmp_path, referring(tmp_path, digest))
    assert caught.value.code == "tokenizer_changed"


@pytest.mark.parametrize("digest", ["", "../..", "a" * 65, "A" * 64, "é"])
def test_a_reference_that_is_no_digest_is_refused(tmp_path: Path, digest: str) -> None:
    with pytest.raises(RefusedError) as caught:
        kept_tokenizer(tmp_path, referring(tmp_path, digest))
    assert caught.value.code == "tokenizer_changed"


def test_too_large_a_tokenizer_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_files, "MAX_TOKENIZER_BYTES", FILES.size() - 1)
    with pytest.raises(DataError) as caught:
        keep_tokenizer(tmp_path, FILES)
    assert caught.value.code == "tokenizer_too_large"
    assert not (tmp_path / "tokenizers").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "adapter_config.json",
        "config.json",
        "modeling.py",
        ".hidden.json",
        "a/b.json",
        "additional_chat_templates/../x.jinja",
    ],
)
def test_an_extra_file_under_a_name_with_another_meaning_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        keep_tokenizer(tmp_path, TokenizerFiles(tokenizer=b"{}", extras={name: b""}))
    assert caught.value.code == "tokenizer_invalid"
