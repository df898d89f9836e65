"""Tokenizer files kept with the runs: their model's folder may be gone, and the hub offline, when an adapter is used.

`home/tokenizers/<digest>/` (0700) holds one tokenizer for all runs that used it; the digest covers names and contents
of the files. A run's adapters folder names it in `TOKENIZER_FILE`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from engine.errors import RefusedError, StoreError
from engine.payload.tokenizer_files import MAX_TOKENIZER_BYTES, TokenizerFiles, is_extra, within_limits
from engine.sealing.manifest import is_digest
from engine.system.files import read_named
from engine.system.new_folder import is_free, new_folder, write_file
from engine.wire import digest_of, sha256_hex

TOKENIZERS: Final = "tokenizers"
TOKENIZER_FILE: Final = "tokenizer.sha256"
"""In a run's adapters folder: the digest of its tokenizer, in hex."""
TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
CHAT_TEMPLATE: Final = "chat_template.jinja"
_MAX_FILES: Final = 64


def named(files: TokenizerFiles) -> dict[str, bytes]:
    """The files under the names that they have in a folder."""
    own = {TOKENIZER: files.tokenizer, TOKENIZER_CONFIG: files.tokenizer_config, CHAT_TEMPLATE: files.chat_template}
    return files.extras | {name: content for name, content in own.items() if content is not None}


def tokenizer_digest(files: TokenizerFiles) -> str:
    """SHA-256 in hex over the names and digests of the files."""
    return digest_of({name: sha256_hex(content) for name, content in named(files).items()})


def keep_tokenizer(home: Path, files: TokenizerFiles) -> str:
    """Keep the files, unless they are kept already; returns their digest.

    Raises `DataError` (`tokenizer_too_large`, `tokenizer_invalid`) and `StoreError` (`store_unwritable`).
    """
    digest = tokenizer_digest(within_limits(files))
    target = home / TOKENIZERS / digest
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_free(target):
            with new_folder(target) as part:
                for name, content in named(files).items():
                    write_file(part / name, content)
    except FileExistsError:  # another run kept the same files meanwhile
        return digest
    except OSError as error:
        raise StoreError(
            f"The files of the model's tokenizer cannot be kept: {error.strerror}.",
            "Free some space or choose another --home.",
            code="store_unwritable",
        ) from error
    return digest


def kept_tokenizer(home: Path, adapters: Path) -> TokenizerFiles | None:
    """The tokenizer of the run with this adapters folder; None if an earlier version ran it and kept none.

    Raises `RefusedError` (`tokenizer_changed`) unless the files are those that were kept.
    """
    try:
        digest = read_named(adapters / TOKENIZER_FILE, 64).decode("ascii", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _changed() from error
    if not is_digest(digest):
        raise _changed()
    files = _read(home / TOKENIZERS / digest)
    if tokenizer_digest(files) != digest:
        raise _changed()
    return files


def _read(folder: Path) -> TokenizerFiles:
    contents: dict[str, bytes] = {}
    left = MAX_TOKENIZER_BYTES
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_dir():
                continue
            if len(contents) == _MAX_FILES:
                raise _changed()
            content = contents[str(path.relative_to(folder))] = read_named(path, left)
            left -= len(content)
    except OSError as error:
        raise _changed() from error
    own = {name: contents.pop(name, None) for name in (TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE)}
    tokenizer = own[TOKENIZER]
    if tokenizer is None or not all(map(is_extra, contents)):
        raise _changed()
    return TokenizerFiles(
        tokenizer=tokenizer,
        tokenizer_config=own[TOKENIZER_CONFIG],
        chat_template=own[CHAT_TEMPLATE],
        extras=contents,
    )


def _changed() -> RefusedError:
    return RefusedError(
        "The tokenizer files that were kept with this run are missing or were modified.",
        "Take the tokenizer of the base model, or run again.",
        code="tokenizer_changed",
    )
