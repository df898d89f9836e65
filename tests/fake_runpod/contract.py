"""Checks requests and replies against RunPod's OpenAPI document of v2, if that is available."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry
from referencing.jsonschema import DRAFT202012

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE: Final = "GLASSHOUSE_RUNPOD_OPENAPI"
DEFAULT: Final = Path(__file__).resolve().parents[3] / "shared" / "facts" / "runpod_openapi_v2.json"
_URN: Final = "urn:runpod:v2"


def document_path() -> Path | None:
    """The path of the document; None if it is missing."""
    path = Path(os.environ.get(VARIABLE) or DEFAULT)
    return path if path.is_file() else None


class Contract:
    """The document, read when first needed. Without it nothing is checked."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._validators: dict[str, Draft202012Validator] = {}

    @property
    def is_available(self) -> bool:
        """False when nothing can be checked."""
        return self._path is not None

    @cached_property
    def _document(self) -> dict[str, Any]:
        assert self._path is not None
        document = json.loads(self._path.read_text(encoding="utf-8"))
        assert isinstance(document, dict)
        return document

    @cached_property
    def _registry(self) -> Registry[Any]:
        empty: Registry[Any] = Registry()
        registry: Registry[Any] = empty.with_resource(_URN, DRAFT202012.create_resource(self._document))
        return registry

    def request_faults(self, path: str, method: str, body: object, query: Mapping[str, str]) -> list[str]:
        """What is wrong with a request; `path` is the template, `body` is None if none was sent."""
        if not self.is_available:
            return []
        pointer = f"#/paths/{_escaped(path)}/{method}"
        operation = self._at(pointer)
        faults = []
        if "requestBody" in operation:
            faults += self._faults(f"{pointer}/requestBody/content/application~1json/schema", body)
        for index, parameter in enumerate(operation.get("parameters", [])):
            where = parameter.get("$ref", f"{pointer}/parameters/{index}")
            definition = self._at(parameter["$ref"]) if "$ref" in parameter else parameter
            if definition["in"] == "query" and definition["name"] in query:
                value = _read(query[definition["name"]], self._kind(definition["schema"]))
                faults += [f"{definition['name']}: {fault}" for fault in self._faults(f"{where}/schema", value)]
        return faults

    def reply_faults(self, path: str, method: str, status: int, kind: str, body: bytes) -> list[str]:
        """What is wrong with a reply of the fake."""
        if not self.is_available:
            return []
        pointer = f"#/paths/{_escaped(path)}/{method}/responses"
        answers = self._at(pointer)
        pointer = f"{pointer}/{status if str(status) in answers else 'default'}"
        pointer = self._at(pointer).get("$ref", pointer)
        content = self._at(pointer).get("content", {})
        if not content:
            return ["a body where none is allowed"] if body else []
        if kind not in content:
            return [f"the content type {kind} is not documented for {status}"]
        return self._faults(f"{pointer}/content/{_escaped(kind)}/schema", json.loads(body))

    def _kind(self, schema: dict[str, Any]) -> str:
        if "$ref" in schema:
            return self._kind(self._at(schema["$ref"]))
        return str(schema.get("type", "string"))

    def _at(self, pointer: str) -> dict[str, Any]:
        node: Any = self._document
        for part in pointer.removeprefix("#/").split("/"):
            node = node[part.replace("~1", "/").replace("~0", "~")]
        assert isinstance(node, dict)
        return node

    def _faults(self, pointer: str, value: object) -> list[str]:
        if pointer not in self._validators:
            self._validators[pointer] = Draft202012Validator(
                {"$ref": _URN + pointer}, registry=self._registry, format_checker=FormatChecker()
            )
        errors = self._validators[pointer].iter_errors(value)
        # Only the path and the rule: the library's message would repeat the request and the secrets in it.
        return [f"{'/'.join(map(str, error.absolute_path)) or 'body'} breaks {error.validator}" for error in errors]


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")


def _read(text: str, kind: str) -> object:
    if kind == "array":
        return text.split(",")
    if kind in {"integer", "boolean", "number"}:
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
