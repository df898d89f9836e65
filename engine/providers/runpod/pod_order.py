"""The order for a pod: its environment and its start command."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Final

import asyncssh

from engine.providers.protocol import Spec
from engine.providers.runpod.api.protocol import Order
from engine.providers.runpod.folder import Keys
from engine.providers.runpod.gpu_choice import Choice
from engine.providers.settings import RunPodSettings
from engine.remote.lockfile import shipped_lock

START: Final = (
    "bash -c 'printenv GLASSHOUSE_START | base64 -d > $HOME/.glasshouse-start && exec bash $HOME/.glasshouse-start'"
)
"""Replaces the image's command. No double quote, backslash or newline: the SDK puts it into GraphQL unescaped."""
HEARTBEAT: Final = ".glasshouse/heartbeat"
"""The file whose changes keep the pod alive, below the login's home."""
_FOLDER: Final = Path(__file__).parent
_DOTTED: Final = re.compile(r"(?:cuda[-:]?(?=\d)|(?<![\d.])(?=\d+\.\d+(?:\.\d+)?-cudnn))(\d+)\.(\d+)")
_PACKED: Final = re.compile(r"(?<![a-z])cu(\d{2})(\d)\d?(?!\d)")


def order(spec: Spec, settings: RunPodSettings, choice: Choice, keys: Keys, seconds: float) -> Order:
    """An order for a pod that terminates itself after `seconds`. Its environment holds the host's private key."""
    return Order(
        name=spec.name,
        image=settings.image,
        gpu=choice.gpu,
        cloud=settings.cloud,
        disk_gb=settings.disk_gb or spec.disk_gb,
        environment={
            "PUBLIC_KEY": keys.client_public,
            "GLASSHOUSE_HOST_KEY": _encoded(keys.host_private),
            "GLASSHOUSE_START": _encoded(start_script(keys, seconds, settings.limits.silence).encode()),
        },
        start=START,
        min_cuda=required_cuda(settings),
    )


def required_cuda(settings: RunPodSettings) -> str | None:
    """The CUDA version that the driver must support, so that no pod is paid for on which torch, or the image, fails.

    The image's, as its name states it, and that of the lock where it is installed, or where the image states none.
    """
    image, locked = image_cuda(settings.image), shipped_lock().cuda
    needed = image if settings.environment == "image" and image is not None else max(image or (), locked or ())
    return ".".join(map(str, needed)) if needed else None


def image_cuda(image: str) -> tuple[int, ...] | None:
    """Major and minor CUDA version in an image's name: `cu1281`, `cuda12.8.1` and `12.8.1-cudnn` are 12.8."""
    found = _DOTTED.search(image)
    if found is None:
        found = _PACKED.search(image)
    return None if found is None else tuple(map(int, found.groups()))


def start_script(keys: Keys, seconds: float, silence: float) -> str:
    """The script that runs first on the pod; it holds no secret. Times in seconds."""
    public = asyncssh.import_private_key(keys.host_private).export_public_key()
    script = (_FOLDER / "pod_start.sh").read_text(encoding="utf-8")
    values = {
        "@HOST_PUBLIC@": _encoded(public),
        "@SECONDS@": f"{seconds:.3f}",
        "@SILENCE@": f"{silence:.3f}",
        "@DEADMAN@": (_FOLDER / "deadman.py").read_text(encoding="utf-8").rstrip(),
    }
    for name, value in values.items():
        script = script.replace(name, value)
    return script


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
