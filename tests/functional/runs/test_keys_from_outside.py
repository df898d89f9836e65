"""Where the content keys are, as root sees it from outside: the table of the threat model.

The test reads `/proc/PID/mem` of every process of a segment and searches it for the keys, which it has, as it sealed
the package. Nothing of the scanner's own code is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from engine.plan import Target
from tests.functional.runs.pod import Pod

PROTECTED = "engine/worker/protected.py"
KEYS_LIVE = '        self.prover.scan("before", [child.role])\n'
ROLES = {
    "keyproc open": ("keyproc", "open"),
    "keyproc seal": ("keyproc", "seal"),
    "trainer": ("trainer",),
    "scanner": ("scanner",),
    "supervisor": ("supervisor",),
}
LONG = Target(steps=100_000)


def held_at(line: str, name: str) -> Callable[[str], str]:
    """A patch: before and after this line, the supervisor waits for as long as a file exists, and says that it does."""
    wait = (
        "        (self._context.folder / 'at-{0}').touch()\n"
        "        while (self._context.folder / 'hold-{0}').exists():\n            time.sleep(0.01)\n"
    )

    def patch(text: str) -> str:
        assert text.count(line) == 1
        return text.replace(line, wait.format(f"{name}-before") + line + wait.format(f"{name}-after"))

    return patch


def areas(pid: int) -> Iterator[tuple[int, int]]:
    """Every readable area of a process."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, permissions, *_ = line.split()
        start, _, end = addresses.partition("-")
        if permissions.startswith("r") and not line.endswith(("[vvar]", "[vvar_vclock]", "[vsyscall]")):
            yield int(start, 16), int(end, 16)


def copies(pid: int, keys: bytes) -> int:
    """How many halves of the keys are in the memory of a process."""
    halves = [bytes(keys[at : at + 16]) for at in range(0, len(keys), 16)]
    found = 0
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for start, end in areas(pid):
            try:
                content = os.pread(fd, end - start, start)
            except OSError:  # a guard, or a map of a device
                continue
            found += sum(content.count(half) for half in halves)
    finally:
        os.close(fd)
    return found


def holders(pod: Pod, keys: bytes) -> set[str]:
    """The roles whose processes have any half of a key."""
    running = {name: pod._in_role(words) for name, words in ROLES.items()}
    return {name for name, process in running.items() if process is not None and copies(process.pid, keys)}


def until_at(pod: Pod, name: str) -> None:
    pod.until(lambda: True if (pod.folder / f"at-{name}").exists() else None, name)


def test_only_the_key_process_holds_content_keys_and_only_until_it_is_gone(small_pod: Callable[..., Pod]) -> None:
    def patch(text: str) -> str:
        return held_at(KEYS_LIVE, "live")(text)

    pod = small_pod({PROTECTED: patch}, target=LONG)
    keys = bytes(pod.package.keys)
    for moment in ("before", "after"):
        (pod.folder / f"hold-live-{moment}").touch()
    pod.launch()
    result = pod.attest()
    try:
        psutil.Process(pod.role("scanner").pid).memory_maps()
        os.close(os.open(f"/proc/{pod.role('scanner').pid}/mem", os.O_RDONLY))
    except (PermissionError, psutil.AccessDenied):
        pytest.skip("the memory of a hardened process can be read from outside only as root with CAP_SYS_PTRACE")
    assert holders(pod, keys) == set()
    pod.answer(result)

    until_at(pod, "live-before")
    assert holders(pod, keys) == {"keyproc open"}
    (pod.folder / "hold-live-before").unlink()
    until_at(pod, "live-after")  # the scanner has found them, and confirmed each by hashing it
    assert holders(pod, keys) == {"keyproc open"}
    (pod.folder / "hold-live-after").unlink()

    pod.wait_state("training")
    assert pod._in_role(ROLES["keyproc open"]) is None
    assert holders(pod, keys) == set()
    assert pod.role("scanner").is_running()
    pod.put("cancel.json", {})
    pod.finish()
    state, reasons = pod.verdict()
    assert state in {"zeroized", "unverified"}
    assert not {"zeroization_hits", "zeroization_stack_hits"} & reasons
    hits = pod.receipt().after["scanner"].hits
    assert hits["content_key"] == hits["content_key_half"] == 0
    assert pod.receipt().before["keyproc open"].hits["content_key_half"] >= 2
