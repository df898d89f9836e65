"""The requirements for real pods on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def missing() -> str | None:
    """Why pods cannot be started here; None if they can."""
    if os.geteuid() != 0:
        return "the fake RunPod's pods need root, to create namespaces"
    if not Path("/usr/sbin/sshd").exists() or not Path("/etc/ssh").is_dir():
        return "the fake RunPod's pods need openssh-server"
    for program in ("unshare", "setpriv", "ssh-keygen", "bash"):
        if shutil.which(program) is None:
            return f"the fake RunPod's pods need {program}"
    attempt = subprocess.run(
        ["unshare", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child=SIGKILL", "true"],
        capture_output=True,
        check=False,
    )
    if attempt.returncode != 0:
        return "the fake RunPod's pods need namespaces, which this machine does not allow"
    return None
