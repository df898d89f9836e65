"""The requirements for real pods on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def missing() -> str | None:
    """Why pods cannot be started here; None if they can."""
    if os.geteuid() != 0:
        return "the fake RunPod's pods need root, for namespaces of their own: run as root"
    if not Path("/usr/sbin/sshd").exists() or not Path("/etc/ssh").is_dir():
        return "the fake RunPod's pods need sshd: install the package openssh-server"
    for program in ("unshare", "setpriv", "ssh-keygen", "bash"):
        if shutil.which(program) is None:
            return f"the fake RunPod's pods need {program}: install util-linux, openssh-client and bash"
    tried = subprocess.run(
        ["unshare", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child=SIGKILL", "true"],
        capture_output=True,
        check=False,
    )
    if tried.returncode != 0:
        return "the fake RunPod's pods need new namespaces: run where root may make them (CAP_SYS_ADMIN)"
    return None
