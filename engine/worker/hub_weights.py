"""Public weights that the allocation downloads itself by revision and accepts only if their digest matches."""

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

    They are cached beside the run's `folder`, for the next run on the same disk, and downloaded without a token. On the
    operator's own machine, the operator's cache and Hugging Face login are used. Raises `RunError`: `hub_unreachable`,
    `disk_full`, `weights_changed`.
    """
    if not job.hub_weights:
        return {}
    local = LOCAL_MARK in os.environ
    if not local:
        # huggingface_hub reads this on import, for all of its caches and for the place of its token.
        os.environ["HF_HOME"] = str(folder.parent / FOLDER)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = job.parsed_plan().model.name
    descriptors: dict[str, int] = {}
    for number, file in enumerate(sorted(job.hub_weights), start=1):
        try:
            path = hf_hub_download(
                name,
                file,
                revision=job.hub_revision,
                token=None if local else False,
                cache_dir=None if local else folder.parent / FOLDER / "hub",
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            close(descriptors)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RunError(
                    f"The allocation's disk has no room for the weight file {file} of {name}.",
                    "Request a larger disk and run again.",
                    code="disk_full",
                ) from error
            raise RunError(
                f"The weight file {file} of {name} could not be downloaded.",
                "Check that the allocation can reach the hub and that the revision exists.",
                code="hub_unreachable",
            ) from error
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        descriptors[f"weights-{number:05d}.safetensors"] = fd
        with os.fdopen(os.dup(fd), "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        os.lseek(fd, 0, os.SEEK_SET)
        if digest != job.hub_weights[file]:
            close(descriptors)
            raise RunError(
                f"The weight file {file} of {name} does not match the digest that this run pins.",
                "Delete the copy on this allocation and run again.",
                code="weights_changed",
            )
    return descriptors


def close(files: dict[str, int]) -> None:
    """Close every descriptor."""
    for fd in files.values():
        os.close(fd)
    files.clear()
