"""What another process of the same user can do to a hardened process, compared with an unhardened one."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.worker.isolation import hardening

if TYPE_CHECKING:
    from tests.unit.worker.isolation.conftest import Script

# Root becomes a normal user, without capabilities that would bypass the protection. A change of user clears the
# dumpable flag too, so it is set again: only then is the unhardened control unprotected.
AS_A_USER = r"""
import contextlib, ctypes, errno, json, os, sys
from pathlib import Path
from engine.worker.isolation import hardening
libc = ctypes.CDLL(None, use_errno=True)
def become_user():
    with contextlib.suppress(PermissionError):
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        libc.prctl(4, 1, 0, 0, 0)
"""

TARGET = (
    AS_A_USER
    + r"""
become_user()
memory = os.open("/proc/self/mem", os.O_RDONLY)
if sys.argv[1] == "hardened":
    hardening.harden(hardening.Options())
print(os.getpid(), memory, flush=True)
sys.stdin.read()
"""
)

ATTACKER = (
    AS_A_USER
    + r"""
become_user()
pid = int(sys.argv[1])
found = {}
if libc.ptrace(16, pid, 0, 0) == 0:
    os.waitpid(pid, 0x40000000)
    libc.ptrace(17, pid, 0, 0)
    found["ptrace"] = "done"
else:
    found["ptrace"] = errno.errorcode[ctypes.get_errno()]
for name in ("mem", "smaps", "environ", "fd/0"):
    path = f"/proc/{pid}/{name}"
    try:
        os.readlink(path) if name == "fd/0" else os.close(os.open(path, os.O_RDONLY))
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
print(json.dumps(found))
"""
)


def attacked(script: Script, kind: str) -> dict[str, str]:
    target = script(TARGET, kind)
    assert target.stdout is not None
    pid = target.stdout.readline().split()[0]
    found: dict[str, str] = json.loads(script(ATTACKER, pid).communicate(timeout=120)[0])
    return found


def test_the_same_user_cannot_attach_to_a_hardened_process_or_open_its_memory(script: Script) -> None:
    control = attacked(script, "control")
    if control["ptrace"] != "done":
        pytest.skip(
            f"nobody may attach to a process here, hardened or not ({control}): "
            "allow ptrace (sysctl kernel.yama.ptrace_scope=0; in a container, CAP_SYS_PTRACE too)"
        )
    assert control == dict.fromkeys(control, "done")
    hardened = attacked(script, "hardened")
    assert hardened == dict.fromkeys(hardened, "EACCES") | {"ptrace": "EPERM"}


CRASH = r"""
import os, resource, sys
from engine.worker.isolation import hardening
if sys.argv[1] == "hardened":
    hardening.harden(hardening.Options(scratch=__import__("pathlib").Path.cwd()))
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
os.abort()
"""


def dumped(script: Script, kind: str, folder: Path) -> bool:
    folder.mkdir()
    process = script(CRASH, kind, cwd=folder)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = -os.WTERMSIG(status)
    return os.WCOREDUMP(status) or any(folder.iterdir())


def test_a_hardened_process_leaves_no_core_dump(script: Script, tmp_path: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("core dumps are off for this whole session: start it with ulimit -c unlimited")
    if not dumped(script, "control", tmp_path / "control"):
        pytest.skip("a crash here writes no core dump: set /proc/sys/kernel/core_pattern to core to have this run")
    assert not dumped(script, "hardened", tmp_path / "hardened")


def test_enforcement_reads_as_plain_values() -> None:
    seen = hardening.Observation("enforced", "abi 7")
    assert seen.enforced
    assert seen.as_dict() == {"value": "enforced", "detail": "abi 7"}
    assert not hardening.Observation("absent").enforced
