from __future__ import annotations

import json
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine.worker.isolation import hardening

if TYPE_CHECKING:
    from tests.unit.worker.isolation.conftest import Script

TRY_EVERYTHING = r"""
import ctypes, errno, fcntl, json, os, socket, struct, sys, termios, threading
from pathlib import Path
from engine.worker.isolation import hardening
given = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)

def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")

def thread():
    threading.Thread(target=lambda: None).start()

def forked():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

def read_myself():
    here = ctypes.create_string_buffer(b"here", 8)
    there = ctypes.create_string_buffer(8)
    local = struct.pack("PN", ctypes.addressof(there), 8)
    remote = struct.pack("PN", ctypes.addressof(here), 8)
    checked(libc.process_vm_readv(os.getpid(), local, 1, remote, 1, 0))

def pending_bytes():
    read, write = os.pipe()
    fcntl.ioctl(read, termios.FIONREAD, bytes(4))

attempts = {
    "write_scratch": lambda: Path(given["scratch"], "in").write_text("x"),
    "write_outside": lambda: Path(given["outside"], "out").write_text("x"),
    "read_outside": lambda: Path(given["outside"], "readable").read_text(),
    "list_outside": lambda: os.listdir("/proc/self"),
    "link_outside": lambda: os.link(Path(given["scratch"], "in"), Path(given["outside"], "linked")),
    "tcp": lambda: socket.socket().connect(("127.0.0.1", given["tcp"])),
    "udp": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", given["udp"])),
    "unix": socket.socketpair,
    "exec": lambda: checked(libc.execve(b"/no/such/program", None, None)),
    "spawn": lambda: os.waitpid(os.posix_spawn("/bin/sh", ["sh", "-c", ":"], {}), 0),
    "fork": forked,
    "ptrace": lambda: checked(libc.ptrace(2, os.getpid(), 0, 0)),
    "process_vm_readv": read_myself,
    "memfd": lambda: os.memfd_create("x"),
    "unshare": lambda: checked(libc.unshare(0)),
    "dumpable": lambda: checked(libc.prctl(4, 1, 0, 0, 0)),
    "thread": thread,
    "ioctl": pending_bytes,
}
observed = {}
if given["harden"]:
    options = hardening.Options(scratch=Path(given["scratch"]), skip=frozenset(given["skip"]))
    observed = {name: seen.as_dict() for name, seen in hardening.harden(options).items()}
outcome = {}
for name, attempt in attempts.items():
    try:
        attempt()
        outcome[name] = "done"
    except OSError as error:
        outcome[name] = errno.errorcode[error.errno]
print(json.dumps({"observed": observed, "outcome": outcome}))
"""

WORK = {"write_scratch": "done", "thread": "done", "ioctl": "done"}


class Places:
    """Where the attempts go: a scratch folder, a folder outside it, a TCP and a UDP listener."""

    def __init__(self, folder: Path) -> None:
        self.scratch = folder / "scratch"
        self.outside = folder / "outside"
        for made in (self.scratch, self.outside):
            made.mkdir()
        (self.outside / "readable").write_text("public")
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.udp.settimeout(60)

    def given(self, *, harden: bool, skip: tuple[str, ...] = ()) -> str:
        """The script's arguments, as JSON."""
        return json.dumps(
            {
                "scratch": str(self.scratch),
                "outside": str(self.outside),
                "tcp": self.tcp.getsockname()[1],
                "udp": self.udp.getsockname()[1],
                "harden": harden,
                "skip": skip,
            }
        )


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    made = Places(tmp_path)
    yield made
    made.tcp.close()
    made.udp.close()


def tried(script: Script, places: Places, *, harden: bool = True, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    output, _ = script(TRY_EVERYTHING, places.given(harden=harden, skip=skip)).communicate(timeout=120)
    found: dict[str, Any] = json.loads(output)
    return found


def test_an_unhardened_process_can_make_every_attempt(script: Script, places: Places) -> None:
    outcome = tried(script, places, harden=False)["outcome"]
    nothing_there = {"exec": "ENOENT", "ptrace": "ESRCH"}
    assert outcome == dict.fromkeys(outcome, "done") | nothing_there
    assert places.udp.recv(10) == b"x"


@pytest.mark.usefixtures("landlock_abi")
def test_a_hardened_process_can_work_and_do_nothing_else(script: Script, places: Places) -> None:
    outcome = tried(script, places)["outcome"]
    assert outcome.pop("link_outside") in {"EACCES", "EXDEV"}
    files = dict.fromkeys(("write_outside", "read_outside", "list_outside"), "EACCES")
    calls = (
        "tcp",
        "udp",
        "unix",
        "exec",
        "spawn",
        "fork",
        "ptrace",
        "process_vm_readv",
        "memfd",
        "unshare",
        "dumpable",
    )
    assert outcome == WORK | files | dict.fromkeys(calls, "EPERM")
    assert not (places.outside / "out").exists()


def test_every_control_is_reported_as_observed(script: Script, places: Places, landlock_abi: int) -> None:
    observed = tried(script, places)["observed"]
    assert tuple(observed) == hardening.CONTROLS
    sure = ("single_task", "no_core", "no_dump", "no_new_privs", "dontdump", "landlock_fs", "seccomp")
    assert {name: observed[name]["value"] for name in sure} == dict.fromkeys(sure, "enforced")
    tcp = "enforced" if landlock_abi >= 4 else "absent"
    assert observed["landlock_tcp"]["value"] == tcp
    assert observed["landlock_fs"]["detail"] == f"abi {landlock_abi}"
    allowed = ("enforced", "absent", "not_attempted", "failed:")
    assert all(seen["value"].startswith(allowed) for seen in observed.values())


def test_without_seccomp_landlock_alone_refuses_tcp(script: Script, places: Places, landlock_abi: int) -> None:
    if landlock_abi < 4:
        pytest.skip(f"Landlock ABI {landlock_abi} does not know TCP: run on Linux 6.7 or newer")
    found = tried(script, places, skip=("seccomp", "network_namespace"))
    assert found["outcome"]["tcp"] == "EACCES"
    assert found["outcome"]["fork"] == "done"


def test_a_separate_network_namespace_reaches_no_address(script: Script, places: Places) -> None:
    found = tried(script, places, skip=("seccomp", "landlock_fs", "landlock_tcp"))
    seen = found["observed"]["network_namespace"]
    if seen["value"] != "enforced":
        pytest.skip(f"no network namespace can be made ({seen}): run as root, or allow user namespaces")
    assert found["outcome"]["tcp"] == "ENETUNREACH"
    assert found["outcome"]["udp"] == "ENETUNREACH"


def test_a_skipped_control_is_reported_and_not_applied(script: Script, places: Places) -> None:
    found = tried(script, places, skip=("seccomp", "landlock_fs", "no_dump"))
    for name in ("seccomp", "landlock_fs", "landlock_tcp", "no_dump"):
        assert found["observed"][name]["value"] == "not_attempted"
    assert found["outcome"]["write_outside"] == "done"
    assert found["outcome"]["fork"] == "done"


WITH_A_THREAD = r"""
import json, threading
from engine.worker.isolation import hardening
stop = threading.Event()
threading.Thread(target=stop.wait).start()
print(json.dumps({name: seen.as_dict() for name, seen in hardening.harden(hardening.Options()).items()}))
stop.set()
"""


@pytest.mark.usefixtures("landlock_abi")
def test_a_second_task_is_reported_because_landlock_does_not_bind_it(script: Script) -> None:
    observed = json.loads(script(WITH_A_THREAD).communicate(timeout=120)[0])
    assert observed["single_task"] == {"value": "failed:threads", "detail": "tasks 2"}
    assert observed["landlock_fs"]["value"] == "failed:threads"
    assert observed["seccomp"]["value"] == "enforced"


def may_set_memlock(limit: int) -> bool:
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (min(before[0], limit), max(before[1], limit)))
    except ValueError:
        return False
    resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
    return True


WITHOUT_MEANS = r"""
import contextlib, json, os, resource
from engine.worker.isolation import hardening
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
with contextlib.suppress(PermissionError):
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
print(json.dumps({name: seen.as_dict() for name, seen in hardening.harden(hardening.Options()).items()}))
"""


@pytest.mark.usefixtures("landlock_abi")
@pytest.mark.parametrize(("limit", "value"), [(65536, "failed:ENOMEM"), (8 << 30, "failed:memlock_limit")])
def test_controls_that_an_unprivileged_user_lacks_are_reported(script: Script, limit: int, value: str) -> None:
    if not may_set_memlock(limit):
        pytest.skip(
            f"the hard limit of locked memory is below {limit} bytes: raise it (ulimit -H -l unlimited, as root)"
        )
    observed = json.loads(script(WITHOUT_MEANS, str(limit)).communicate(timeout=120)[0])
    assert observed["mlockall"]["value"] == value
    assert observed["network_namespace"]["value"] == "not_attempted"
    for name in ("no_core", "no_dump", "no_new_privs", "landlock_fs", "seccomp"):
        assert observed[name]["value"] == "enforced"


DEVICES = r"""
import fcntl, json, os, sys
from pathlib import Path
from engine.worker.isolation import hardening
allowed = (Path("/dev/ptmx"),) if sys.argv[1] == "given" else ()
absent = (Path("/dev/no-such-device"),)
seen = hardening.harden(hardening.Options(device_paths=allowed + absent, skip=frozenset({"seccomp"})))
try:
    terminal = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(terminal, 0x80045430, bytes(4))
    print(json.dumps([seen["landlock_fs"].value, "done"]))
except PermissionError:
    print(json.dumps([seen["landlock_fs"].value, "refused"]))
"""


@pytest.mark.usefixtures("landlock_abi")
def test_a_named_device_can_be_opened_and_sent_ioctl_later(script: Script) -> None:
    if not Path("/dev/ptmx").exists():
        pytest.skip("/dev/ptmx is missing: mount devpts, as every usual system and container does")
    given = json.loads(script(DEVICES, "given").communicate(timeout=120)[0])
    withheld = json.loads(script(DEVICES, "withheld").communicate(timeout=120)[0])
    assert (given, withheld) == (["enforced", "done"], ["enforced", "refused"])


def test_the_drivers_device_files_are_found_by_name(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    (tmp_path / "nvidia-caps").mkdir()
    names = [path.name for path in hardening.device_files(tmp_path)]
    assert names == ["nvidia-caps", "nvidia-uvm", "nvidia0", "nvidiactl"]
    assert hardening.device_files(tmp_path / "absent") == ()
