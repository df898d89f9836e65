"""Renders the JSON Schema of the public artifact from its structs: `python data/make_artifact_schema.py > FILE`."""

from __future__ import annotations

import inspect
import sys
from typing import Any, Final

import msgspec

from engine.records.artifact import FORMAT, Bundle, Row

SCHEMA_FILE: Final = ("schemas", "artifact.schema.json")
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def artifact_schema() -> dict[str, Any]:
    """The schema: the row's fields, `format` and `bundle` at the top level.

    An unsigned row has no bundle and may lack fields.
    """
    (_, bundle), parts = msgspec.json.schema_components((Row, Bundle), ref_template="#/$defs/{name}")
    for part in parts.values():
        if "description" in part:
            part["description"] = inspect.cleandoc(part["description"])  # a docstring is indented before Python 3.13
    fields = dict(parts.pop("Row"))
    fields["properties"] |= {"format": {"const": FORMAT}, "bundle": bundle}
    fields["required"] = ["format", *fields["required"], "bundle"]
    published = {
        "type": "object",
        "required": ["format", "label", "bundle"],
        "properties": {"format": {"const": FORMAT}, "bundle": {"type": "null"}},
    }
    return {
        "$schema": _DIALECT,
        "title": "Glasshouse public artifact",
        "description": "One row of Glasshouse and the signed bundle that proves it.",
        "oneOf": [{"$ref": "#/$defs/Signed"}, {"$ref": "#/$defs/Published"}],
        "$defs": {
            "Signed": fields | {"title": "A row with its bundle"},
            "Published": published | {"title": "A published row, which is not signed"},
            **dict(sorted(parts.items())),
        },
    }


def rendered() -> bytes:
    """The content of the file `data/schemas/artifact.schema.json`."""
    return msgspec.json.format(msgspec.json.encode(artifact_schema()), indent=2) + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(rendered())
