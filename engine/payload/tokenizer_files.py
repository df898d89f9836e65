"""The files of a model's tokenizer as a run used them, small enough to be kept with it."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from engine.errors import DataError
from engine.payload.chat.template import Templates
from engine.payload.model import ModelDescription
from engine.system.files import read_named

MAX_TOKENIZER_BYTES: Final = 256 * 1024 * 1024
"""For tokenizer.json alone, and for all files of a tokenizer together."""
MORE_TEMPLATES: Final = "additional_chat_templates"
"""The folder in which transformers looks for templates with names of their own, such as `tool_use.jinja`."""
_EXTRA: Final = re.compile(
    rf"[A-Za-z0-9_][\w.-]{{0,63}}\.(json|txt|model)|{MORE_TEMPLATES}/\w[\w-]{{0,63}}\.jinja", re.ASCII
)
_OF_A_FOLDER: Final = frozenset({"config.json", "adapter_config.json", "model.safetensors.index.json"})
"""Names that mean something else in a folder to which a tokenizer is added."""


class TokenizerFiles(msgspec.Struct, frozen=True, kw_only=True):
    """tokenizer.json, tokenizer_config.json, the default chat template, and further files by name, byte for byte."""

    tokenizer: bytes
    tokenizer_config: bytes | None = None
    chat_template: bytes | None = None
    extras: dict[str, bytes] = {}

    def size(self) -> int:
        """All bytes together."""
        parts = (self.tokenizer, self.tokenizer_config or b"", self.chat_template or b"", *self.extras.values())
        return sum(map(len, parts))


def is_extra(name: str) -> bool:
    """True for a file that a tokenizer may bring beside its own three: a plain name, or one in `MORE_TEMPLATES`."""
    return _EXTRA.fullmatch(name) is not None and name not in _OF_A_FOLDER


def tokenizer_files(model: ModelDescription, templates: Templates) -> TokenizerFiles:
    """The files of a described model, with the chat templates that its samples were rendered by.

    Raises `DataError` (`tokenizer_too_large`, `model_file_missing`).
    """
    try:
        tokenizer = read_named(model.tokenizer, MAX_TOKENIZER_BYTES)
    except OSError as error:
        raise DataError(
            f"The model's tokenizer.json cannot be read: {error.strerror}.",
            "Give a model with its tokenizer.json.",
            code="model_file_missing",
        ) from error
    texts = {name: text.encode() for name, text in templates.named.items()}
    extras = {name: content for name, content in model.extras.items() if is_extra(name)}
    extras |= {f"{MORE_TEMPLATES}/{name}.jinja": text for name, text in texts.items() if name != "default"}
    return within_limits(
        TokenizerFiles(
            tokenizer=tokenizer,
            tokenizer_config=model.tokenizer_config,
            chat_template=texts.get("default"),
            extras=extras,
        )
    )


def within_limits(files: TokenizerFiles) -> TokenizerFiles:
    """The same files; raises `DataError` (`tokenizer_too_large`, `tokenizer_invalid`)."""
    if files.size() > MAX_TOKENIZER_BYTES:
        raise DataError(
            f"The files of the model's tokenizer have more than {MAX_TOKENIZER_BYTES:,} bytes together.",
            "Give a model with a smaller tokenizer.",
            code="tokenizer_too_large",
        )
    if not all(map(is_extra, files.extras)):
        raise DataError(
            "The model's tokenizer has a file whose name is no plain name of a JSON, text or model file.",
            "Save the tokenizer again.",
            code="tokenizer_invalid",
        )
    return files
