"""Public weights that the allocation fetches itself, by revision, and accepts by digest only."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Final

from engine.errors import RunError
from engine.worker.job import Job

LOCAL_MARK: Final = "GLASSHOUSE_ALLOCATION"
FOLDER: Final = "hub"


def fetch(job: Job, folder: Path) -> dict[str, int]:
    """Descriptors of the hub model's weight files under payload names, in the order of their hub names.

    They are kept beside the run's `folder`, for the next run on the same disk, and fetched without a token; on the
    operator's own machine, in the operator's own cache and as that is logged in. Raises `RunError`: `hub_unreachable`,
    `disk_full`, `weights_changed`.
    """
    if not job.hub_weights:
        return {}
    local = LOCAL_MARK in os.environ
    if not local:
        # Read by huggingface_hub when it is imported: every cache of its own, and where it looks for a token.
        os.environ["HF_HOME"] = str(folder.parent / FOLDER)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = job.parsed_plan().model.name
    found: dict[str, int] = {}
    for number, file in enumerate(sorted(job.hub_weights), start=1):
        try:
            path = hf_hub_download(
                name, file, revision=job.hub_revision, token=None if local else False,
                cache_dir=None if local else folder.parent / FOLDER / "hub",
            )  # fmt: skip
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            close(found)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RunError(
                    f"The allocation's disk has no room for the weight file {file} of {name}.",
                    "Ask for a larger disk.",
                    code="disk_full",
                ) from error
            raise RunError(
                f"The weight file {file} of {name} could not be fetched.",
                "Check that the allocation reaches the hub and that the revision exists.",
                code="hub_unreachable",
            ) from error
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found[f"weights-{number:05d}.safetensors"] = fd
        with os.fdopen(os.dup(fd), "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        os.lseek(fd, 0, os.SEEK_SET)
        if digest != job.hub_weights[file]:
            close(found)
            raise RunError(
                f"The weight file {file} of {name} is not the one that the plan pins.",
                "Do not use this allocation's copy.",
                code="weights_changed",
            )
    return found


def close(files: dict[str, int]) -> None:
    """Close every descriptor."""
    for fd in files.values():
        os.close(fd)
    files.clear()
