"""What tests that skip say is missing: a sentence that tells what to do to have them run."""

from __future__ import annotations

from typing import Final

LOCAL_EXTRA: Final = "the local extra is missing: run pip install -e '.[local,test]'"
OPENAPI: Final = (
    "RunPod's OpenAPI document of v2 is missing: download it from RunPod's API documentation and set "
    "GLASSHOUSE_RUNPOD_OPENAPI to its path"
)
SIGNING_EXTRA: Final = "the signing extra is missing: run pip install -e '.[test]'"
