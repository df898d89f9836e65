"""The order for a pod: its environment and its start command."""

from __future__ import annotations

import base64
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
        min_cuda=_locked_cuda() if settings.environment == "lock" else None,
    )


def _locked_cuda() -> str | None:
    """The CUDA version that the driver must support, so that no pod is paid for on which the locked torch fails."""
    cuda = shipped_lock().cuda
    return None if cuda is None else ".".join(map(str, cuda))


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
