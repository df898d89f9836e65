"""Samples from a JSONL file: chats (`messages`) or `prompt` and `completion`, checked line by line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec

from engine.errors import DataError, WireError
from engine.system.files import open_named
from engine.wire import parse

Role = Literal["system", "user", "assistant"]

MAX_LINE_BYTES: Final = 1024 * 1024
_ROLES: Final = get_args(Role)
_SHAPES: Final = 'Each line is {"messages": [{"role", "content"}, ...]} or {"prompt", "completion"}.'
_BOM: Final = b"\xef\xbb\xbf"


class Message(msgspec.Struct, frozen=True):
    """One turn of a chat."""

    role: Role
    content: str


class Sample(msgspec.Struct, frozen=True):
    """One chat. The model learns the assistant's turns; the last turn is one of them."""

    messages: tuple[Message, ...]


class DataFile(msgspec.Struct, frozen=True):
    """A data file's samples and the SHA-256 (hex) of its bytes."""

    samples: tuple[Sample, ...]
    digest: str


def _refuse(number: int, what: str, code: str, hint: str = _SHAPES) -> DataError:
    return DataError(f"Line {number} of the data file {what}.", hint, code=code)


def _text(value: Any, number: int, name: str) -> str:
    if not isinstance(value, str):
        raise _refuse(number, f"has a {name} that is not text", "data_shape_invalid")
    if not value.strip():
        raise _refuse(number, f"has an empty {name}", "data_sample_empty", f"Fill in the {name}, or remove the line.")
    return value


def _message(raw: Any, number: int) -> Message:
    if not isinstance(raw, dict) or set(raw) != {"role", "content"}:
        raise _refuse(number, "has a message that is not exactly role and content", "data_shape_invalid")
    if raw["role"] not in _ROLES:
        raise _refuse(number, f"has a role other than {', '.join(_ROLES)}", "data_shape_invalid")
    return Message(raw["role"], _text(raw["content"], number, f"{raw['role']} content"))


def _chat(raw: Any, number: int) -> Sample:
    if not isinstance(raw, list) or not raw:
        raise _refuse(number, "has messages that are not a non-empty list", "data_shape_invalid")
    messages = tuple(_message(item, number) for item in raw)
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        raise _refuse(number, "has a system message that is not the first message", "data_shape_invalid")
    if roles[-1] != "assistant":
        raise _refuse(number, "does not end with a message of the assistant", "data_shape_invalid")
    if "user" not in roles[: roles.index("assistant")]:
        raise _refuse(number, "has an answer before any user message", "data_shape_invalid")
    return Sample(messages)


def _sample(line: bytes, number: int) -> Sample:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refuse(number, "is not UTF-8", "data_not_utf8", "Save the file as UTF-8.") from error
    try:
        raw = parse(text)
    except WireError as error:
        if isinstance(error.__cause__, UnicodeEncodeError):
            raise _refuse(
                number, "has an unpaired surrogate in a string", "data_not_utf8", "Remove the broken character."
            ) from error
        what = "repeats a key" if error.code == "json_duplicate_key" else "is not JSON"
        raise _refuse(number, what, "data_json_invalid") from error
    if isinstance(raw, dict) and set(raw) == {"messages"}:
        return _chat(raw["messages"], number)
    if isinstance(raw, dict) and set(raw) == {"prompt", "completion"}:
        prompt, completion = (
            _text(raw["prompt"], number, "prompt"),
            _text(raw["completion"], number, "completion"),
        )
        return Sample((Message("user", prompt), Message("assistant", completion)))
    raise _refuse(number, "is neither a chat nor a prompt with its completion", "data_shape_invalid")


def _lines(path: Path, hasher: hashlib._Hash) -> Iterator[tuple[int, bytes]]:
    """The lines, numbered from 1; `hasher` gets every byte."""
    number = 0
    with open_named(path) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise _refuse(
                    number, "is longer than 1 MiB", "data_line_too_long", "Split the sample into shorter ones."
                )
            hasher.update(line)
            yield number, line.removeprefix(_BOM) if number == 1 else line


def read_data(path: Path) -> DataFile:
    """The samples of a JSONL file, in order, and its digest. Blank lines are skipped.

    Raises `DataError` with the line's number and a `data_*` code for the first error.
    """
    hasher = hashlib.sha256()
    try:
        samples = tuple(_sample(line, number) for number, line in _lines(path, hasher) if line.strip())
    except FileNotFoundError as error:
        raise DataError(
            f"There is no data file {path}.", "Check the path given with --data.", code="data_missing"
        ) from error
    except OSError as error:
        raise DataError(
            f"The data file {path} cannot be read: {error.strerror}.",
            "Give a readable file with --data.",
            code="data_unreadable",
        ) from error
    if not samples:
        raise DataError(f"The data file {path} contains no samples.", _SHAPES, code="data_empty")
    return DataFile(samples, hasher.hexdigest())
