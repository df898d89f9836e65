"""What the real processes of a protected segment can do, and what can be done to them, while they wait for the keys.

A machine that lacks a control reports it as absent, or is refused when the policy requires the control.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from engine.attestation.policy import CONTROLS, default_policy
from engine.payload.build import build_payload
from engine.payload.model import HUB
from engine.remote.bundle import site_paths
from engine.runner.environment_local import CACHE, environment_reference
from engine.wire import RELEASE_PLAN_COMPLETED
from engine.worker.isolation.seccomp import RET_ALLOW, RET_ERRNO, Instruction
from tests.functional.runs import inject
from tests.functional.runs.pod import Pod, without_capabilities
from tests.functional.runs.support import short_plan

HARDENED = {
    "trainer": ("trainer",),
    "opener": ("keyproc", "open"),
    "sealer": ("keyproc", "seal"),
    "scanner": ("scanner",),
}
O_CREAT_WRONLY = os.O_CREAT | os.O_WRONLY
AT_FDCWD = -100

# Another process of the same user, without privileges.
ATTACKER = r"""
import ctypes, errno, json, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long,) * 4
found = {}
for pid in map(int, sys.argv[1:]):
    tried = found[pid] = {}
    if libc.ptrace(16, pid, 0, 0) == 0:
        os.waitpid(pid, 0x40000000)
        libc.ptrace(17, pid, 0, 0)
        tried["ptrace"] = "done"
    else:
        tried["ptrace"] = errno.errorcode[ctypes.get_errno()]
    here = ctypes.create_string_buffer(8)
    local = struct.pack("PN", ctypes.addressof(here), 8)
    there = int(open("/proc/self/maps").readline().split("-")[0], 16)
    remote = struct.pack("PN", there, 8)
    done = libc.process_vm_readv(pid, local, 1, remote, 1, 0) >= 0 or ctypes.get_errno() == errno.EFAULT
    tried["process_vm_readv"] = "done" if done else errno.errorcode[ctypes.get_errno()]
    for name in ("mem", "maps", "environ", "fd/0"):
        try:
            path = f"/proc/{pid}/{name}"
            os.readlink(path) if name == "fd/0" else os.close(os.open(path, os.O_RDONLY))
            tried[name] = "done"
        except OSError as error:
            tried[name] = errno.errorcode[error.errno]
print(json.dumps(found))
"""


def as_a_user_who_may_dump() -> None:
    """Drop privileges, limit lockable memory, allow core dumps: only the process's own hardening forbids them."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
    without_capabilities()


def attack(pids: list[int]) -> dict[int, dict[str, str]]:
    """What another process of the same user can access in these processes."""
    attacker = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ATTACKER, *map(str, pids)],
        capture_output=True, check=True, preexec_fn=without_capabilities,
    )  # fmt: skip
    return {int(pid): tried for pid, tried in json.loads(attacker.stdout).items()}


def attempts(scratch: Path, outside: Path) -> dict[str, tuple[str, tuple[int | bytes, ...]]]:
    """System calls to inject into a process, by name."""
    return {
        "tcp": ("socket", (2, 1, 0)),
        "udp": ("socket", (2, 2, 0)),
        "unix": ("socket", (1, 1, 0)),
        "exec": ("execve", (b"/no/such/program", 0, 0)),
        "memfd": ("memfd_create", (b"x", 0)),
        "ptrace": ("ptrace", (2, 0, 0, 0)),
        "read another": ("process_vm_readv", (os.getpid(), 0, 0, 0, 0, 0)),
        "unshare": ("unshare", (0,)),
        "dumpable": ("prctl", (4, 1, 0, 0, 0)),
        "write outside": ("openat", (AT_FDCWD, bytes(outside / "out"), O_CREAT_WRONLY, 0o600)),
        "read outside": ("openat", (AT_FDCWD, b"/etc/passwd", os.O_RDONLY, 0)),
        "write scratch": ("openat", (AT_FDCWD, bytes(scratch / "in"), O_CREAT_WRONLY, 0o600)),
        "signal another": ("kill", (os.getpid(), 0)),
        "fork": ("fork", ()),
    }


def tried(pid: int, scratch: Path, outside: Path) -> dict[str, str]:
    """The outcome of each attempt in the process."""
    outcome = {}
    with inject.stopped(pid) as process:
        for name, (call, arguments) in attempts(scratch, outside).items():
            result = process.call(call, *arguments)
            outcome[name] = "done" if result >= 0 else errno.errorcode[-result]
            if result >= 0 and call == "openat":
                process.call("close", result)
    return outcome


NO_SOCKETS = dict.fromkeys(
    ("tcp", "udp", "unix", "exec", "memfd", "ptrace", "read another", "unshare", "dumpable", "fork"), "EPERM"
)


@pytest.fixture
def real_pod(pods: Callable[..., Pod], worker_bundle: bytes, reference_cache: Path, tmp_path: Path) -> Pod:
    """A segment that trains the demo's model, as the runner stages it."""
    if reference_cache.exists():
        (tmp_path / CACHE).write_bytes(reference_cache.read_bytes())
    reference = environment_reference(tmp_path, site_paths())
    plan = short_plan("protected", steps=10)
    contents = build_payload(plan).files
    files = {name: one if isinstance(one, bytes) else one.read_bytes() for name, one in contents.items() if name != HUB}
    return pods(worker_bundle, site_paths(), plan, files=files, model_type="qwen2", reference=reference)


def test_a_live_segment_resists_its_own_user_and_then_trains(real_pod: Pod, tmp_path: Path) -> None:
    real_pod.launch(as_a_user_who_may_dump)
    result = real_pod.attest()
    assert result.accepted, result.reason_codes
    enforced = {name for name, value in real_pod.enforcement().items() if value == "enforced"}
    assert enforced >= {*default_policy().required_controls, "single_task"}
    assert real_pod.enforcement()["mlockall"].startswith("failed:"), "a machine that cannot lock its memory reports it"

    roles = {name: real_pod.role(*words).pid for name, words in {**HARDENED, "supervisor": ("supervisor",)}.items()}
    control = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    wait_for_read(control.pid)
    reached = attack([*roles.values(), control.pid])
    open_to_all = reached.pop(control.pid)
    if open_to_all["ptrace"] == "done":
        assert set(open_to_all.values()) == {"done"}
    for name, pid in roles.items():
        closed = dict.fromkeys(("mem", "maps", "environ", "fd/0"), "EACCES")
        assert reached[pid] == {"ptrace": "EPERM", "process_vm_readv": "EPERM", **closed}, name
        assert psutil.Process(pid).rlimit(psutil.RLIMIT_CORE) == (0, 0), name

    if inject.possible():
        scratch = real_pod.folder / "scratch"
        allowed = tried(control.pid, scratch, tmp_path)
        assert {name for name, how in allowed.items() if how != "done"} == {"exec", "ptrace"}
        assert (allowed["exec"], allowed["ptrace"]) == ("ENOENT", "ESRCH")
        (tmp_path / "out").unlink()
        (scratch / "in").unlink()
        landlocked = real_pod.enforcement()["landlock_fs"] == "enforced"
        for name in HARDENED:
            outcome = tried(roles[name], scratch, tmp_path)
            assert {each: outcome[each] for each in NO_SOCKETS} == NO_SOCKETS, name
            if landlocked:
                assert (outcome["write outside"], outcome["read outside"]) == ("EACCES", "EACCES"), name
                assert outcome["write scratch"] == ("done" if name == "trainer" else "EACCES"), name
        (scratch / "in").unlink(missing_ok=True)
        assert not landlocked or not (tmp_path / "out").exists()
    control.kill()
    control.communicate()

    real_pod.answer(result)
    assert real_pod.finish()["state"] == "done"
    assert real_pod.verdict() == ("zeroized", set())


def wait_for_read(pid: int) -> None:
    """Wait until a process is blocked in its first read, so that it is in a system call."""
    until = time.monotonic() + 60
    while not Path(f"/proc/{pid}/syscall").read_text().startswith("0 ") and time.monotonic() < until:
        time.sleep(0.01)


def dumps(folder: Path) -> set[Path]:
    """The core dumps in a folder."""
    return set(folder.glob("core*"))


def test_no_process_of_a_segment_leaves_a_core_dump(small_pod: Callable[..., Pod], tmp_path: Path) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if "/" in pattern or pattern.startswith("|"):
        pytest.skip(f"core dumps go to {pattern!r}: set /proc/sys/kernel/core_pattern to core to have this run")
    crash = [sys.executable, "-I", "-S", "-c", "import os; os.abort()"]
    subprocess.run(crash, cwd=tmp_path, check=False, preexec_fn=as_a_user_who_may_dump)
    if not dumps(tmp_path):
        pytest.skip("a crash here writes no core dump: allow them (ulimit -c unlimited) to have this run")
    before = dumps(Path("/"))  # the working directory of a segment's processes
    pod = small_pod()
    pod.launch(as_a_user_who_may_dump)
    pod.wait_state("attesting")
    signals = (signal.SIGABRT, signal.SIGQUIT, signal.SIGSEGV, signal.SIGABRT)
    for number, words in zip(signals, HARDENED.values(), strict=True):
        pod.role(*words).send_signal(number)
    pod.finish()
    assert dumps(Path("/")) == before
    assert list(pod.folder.glob("**/core*")) == []


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def without_call(*numbers: int) -> Callable[[], None]:
    """A filter that hides these system calls from its process and all children, as an older kernel would."""
    steps = [Instruction(0x20, 0, 0, 0)]
    for number in numbers:
        steps += [Instruction(0x15, 0, 1, number), Instruction(0x06, 0, 0, RET_ERRNO | errno.ENOSYS)]
    steps.append(Instruction(0x06, 0, 0, RET_ALLOW))
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)

    def install() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(code, len(code))
        program = _Program(len(steps), ctypes.addressof(buffer))
        libc.prctl(38, 1, 0, 0, 0)
        if libc.prctl(22, 2, ctypes.byref(program), 0, 0) != 0:
            os._exit(99)

    return install


LANDLOCK = without_call(444)
SECCOMP = without_call(
    *({"x86_64": 317, "aarch64": 277}[os.uname().machine],) if os.uname().machine in {"x86_64", "aarch64"} else ()
)


def test_a_machine_without_landlock_shows_it_and_the_segment_is_zeroized(small_pod: Callable[..., Pod]) -> None:
    pod = small_pod()
    pod.launch(LANDLOCK)
    result = pod.attest()
    assert result.accepted
    controls = pod.enforcement()
    assert set(controls) == set(CONTROLS)
    assert (controls["landlock_fs"], controls["landlock_tcp"], controls["seccomp"]) == ("absent", "absent", "enforced")
    pod.answer(result)
    pod.finish()
    assert pod.verdict() == ("zeroized", set())


@pytest.mark.parametrize("missing", ["landlock_fs", "seccomp"])
def test_a_machine_without_a_required_control_gets_no_key(missing: str, small_pod: Callable[..., Pod]) -> None:
    default = default_policy()
    required = tuple(dict.fromkeys((*default.required_controls, missing)))
    pod = small_pod(policy=msgspec.structs.replace(default, required_controls=required))
    pod.launch(LANDLOCK if missing == "landlock_fs" else SECCOMP)
    result = pod.attest()
    assert result.reason_codes == ("enforcement_missing",)
    assert missing in next(check.reason for check in result.checks if check.status == "failed")
    pod.answer(result)
    last = pod.finish()
    assert (last["state"], last["code"]) == ("failed", "enforcement_missing")
    assert pod.named(RELEASE_PLAN_COMPLETED) is None
