"""Where a model's chat template is: given, beside its tokenizer, or in tokenizer_config.json, as transformers looks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.errors import DataError
from engine.system.files import read_named

CHAT_TEMPLATE: Final = "chat_template.jinja"
MORE_TEMPLATES: Final = "additional_chat_templates"
MAX_TEMPLATE_BYTES: Final = 1024 * 1024
MAX_TEMPLATES: Final = 16
CHATML: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For a tokenizer that has ChatML's control tokens but no template."""
_HINT: Final = "Give another template with --chat-template FILE."


class Templates(msgspec.Struct, frozen=True, kw_only=True):
    """The templates by name, and where they are from in words. Empty: the model has none."""

    named: dict[str, str] = {}
    source: str = ""

    @property
    def digest(self) -> str | None:
        """SHA-256 in hex over names and texts; None if there is no template."""
        if not self.named:
            return None
        return hashlib.sha256(json.dumps(self.named, sort_keys=True).encode()).hexdigest()

    def text(self, *, tools: bool) -> str | None:
        """The template for samples with tools or without: `tool_use` if there is one, else `default`."""
        return self.named.get("tool_use", self.named.get("default")) if tools else self.named.get("default")


def given_template(path: Path) -> Templates:
    """The template of `--chat-template FILE`. Raises `DataError` (`chat_template_invalid`)."""
    return Templates(named={"default": _text(_read(path))}, source=f"the file {path.name}")


def templates_in(folder: Path, tokenizer_config: bytes | None) -> Templates:
    """The templates beside the tokenizer in `folder`, else those in its tokenizer_config.json.

    Raises `DataError` (`chat_template_invalid`).
    """
    files = {"default": folder / CHAT_TEMPLATE} if (folder / CHAT_TEMPLATE).exists() else {}
    more = sorted((folder / MORE_TEMPLATES).glob("*.jinja")) if (folder / MORE_TEMPLATES).is_dir() else []
    if len(more) > MAX_TEMPLATES:
        raise _invalid(f"has more than {MAX_TEMPLATES} chat templates")
    files |= {path.name.removesuffix(".jinja"): path for path in more}
    if files:
        named = {name: _text(_read(path)) for name, path in files.items()}
        return _usable(Templates(named=named, source=CHAT_TEMPLATE if "default" in named else MORE_TEMPLATES))
    return templates_of(tokenizer_config)


def templates_of(tokenizer_config: bytes | None) -> Templates:
    """The templates in tokenizer_config.json: a text, or a list of names and texts.

    Raises `DataError` (`chat_template_invalid`).
    """
    found = config_of(tokenizer_config).get("chat_template")
    source = "tokenizer_config.json"
    if found is None:
        return Templates()
    if isinstance(found, str):
        return Templates(named={"default": found}, source=source)
    if not isinstance(found, list) or not all(_is_named(one) for one in found):
        raise _invalid("has a chat_template in tokenizer_config.json that is neither a text nor a list of named texts")
    return _usable(Templates(named={one["name"]: one["template"] for one in found}, source=source))


def config_of(tokenizer_config: bytes | None) -> dict[str, Any]:
    """tokenizer_config.json as an object; empty if there is none. Raises `DataError` (`tokenizer_invalid`)."""
    if tokenizer_config is None:
        return {}
    try:
        config = json.loads(tokenizer_config)
    except (ValueError, RecursionError) as error:
        raise _no_object() from error
    if not isinstance(config, dict):
        raise _no_object()
    return config


def _no_object() -> DataError:
    return DataError(
        "The model's tokenizer_config.json is not a JSON object.", "Save the tokenizer again.", code="tokenizer_invalid"
    )


def _is_named(one: Any) -> bool:
    return isinstance(one, Mapping) and all(isinstance(one.get(key), str) for key in ("name", "template"))


def _usable(templates: Templates) -> Templates:
    if not {"default", "tool_use"} & templates.named.keys():
        raise _invalid("has several chat templates and none is called default")
    return templates


def _read(path: Path) -> bytes:
    try:
        return read_named(path, MAX_TEMPLATE_BYTES)
    except OSError as error:
        raise _invalid(f"has a chat template {path.name} that cannot be read: {error.strerror}") from error


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise _invalid("has a chat template that is not UTF-8") from error


def _invalid(what: str) -> DataError:
    return DataError(f"The model {what}.", _HINT, code="chat_template_invalid")
