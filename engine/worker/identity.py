"""What distinguishes this machine from others, seen from inside. The boot id does not: a container has its host's."""

from __future__ import annotations

import base64
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Final

from engine.events import Gpu, Machine
from engine.wire import sha256_hex
from engine.worker.isolation.procfs import start_time

NONCE_FILE: Final = "identity"


def gpu() -> Gpu | None:
    """The first GPU that `nvidia-smi` lists, or None."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    result = subprocess.run(
        [tool, "--query-gpu=uuid,name,driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if result.returncode != 0 or not result.stdout.strip():
        return None
    parts = [part.strip() for part in result.stdout.splitlines()[0].split(",")]
    return Gpu(uuid=parts[0], name=parts[1], driver=parts[2]) if len(parts) == 3 else None


def cpu_name() -> str:
    """The processor's name as Linux gives it."""
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def observe(folder: Path) -> Machine:
    """This machine's identity; the nonce is generated once per run folder."""
    path = folder / NONCE_FILE
    if not path.exists():
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(base64.b64encode(os.getrandom(16)).decode())
    first_gpu = gpu()
    pod_id = os.environ.get("RUNPOD_POD_ID")
    return Machine(
        nonce=path.read_text(),
        first_process_start=start_time(1) or 0,
        gpu_uuid=first_gpu.uuid if first_gpu else None,
        pod_id=None if pod_id is None else sha256_hex(pod_id.encode()),
        cpu=cpu_name(),
    )
