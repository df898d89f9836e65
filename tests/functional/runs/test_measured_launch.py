"""The bytes that are measured are the bytes that run: bundles and installed files are replaced at every stage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.wire import RELEASE_PLAN_COMPLETED, sha256_hex
from tests.functional.runs.pod import Pod, patched

MAIN = "engine/worker/main.py"
ENTRY = "def main() -> int:\n"


def evil(bundle: bytes, mark: Path) -> bytes:
    """The same bundle, but each of its processes first appends to the mark file."""
    leave = f"open({str(mark)!r}, 'a').write(repr(sys.argv))\n\n\n"
    return patched(bundle, {MAIN: lambda text: text.replace(ENTRY, leave + ENTRY)})


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file to which a foreign bundle appends when it runs."""
    return tmp_path / "mark"


def refused(pod: Pod) -> tuple[str, ...]:
    """Attest, deny and check that no key was released; returns the reason codes."""
    result = pod.attest()
    pod.answer(result)
    last = pod.finish()
    assert (last["state"], last["code"]) == ("failed", (result.reason_codes or ("",))[0])
    assert pod.named(RELEASE_PLAN_COMPLETED) is None
    return result.reason_codes


def test_a_bundle_replaced_before_the_launch_is_not_started(small_pod: Callable[..., Pod], mark: Path) -> None:
    pod = small_pod()
    pod.bundle_path.write_bytes(evil(pod.bundle, mark))
    assert pod.launch()["error"] == "bundle_digest_mismatch"
    assert not (pod.folder / "events.jsonl").exists()
    assert not mark.exists()


def test_a_bundle_replaced_after_the_launch_never_runs(small_pod: Callable[..., Pod], mark: Path) -> None:
    pod = small_pod()
    pod.launch()
    supervisor = pod.role("supervisor")
    supervisor.suspend()
    assert len(pod.processes()) == 1, "the other roles are not started yet"
    pod.bundle_path.write_bytes(evil(pod.bundle, mark))
    supervisor.resume()
    result = pod.attest()
    pod.bundle_path.unlink()
    pod.bundle_path.symlink_to("/etc/passwd")
    pod.answer(result)
    assert pod.finish()["state"] == "done"
    assert pod.verdict() == ("zeroized", set())
    roles = {process.role for process in pod.receipt().processes}
    assert roles == {"trainer", "keyproc open", "keyproc seal", "scanner"}
    assert not mark.exists()


def test_another_bundle_that_does_run_is_measured_and_refused(small_pod: Callable[..., Pod], mark: Path) -> None:
    pod = small_pod()
    expected = pod.bundle
    pod.bundle = evil(expected, mark)
    pod.bundle_path.write_bytes(pod.bundle)
    pod.launch()
    pod.expected_bundle = sha256_hex(expected)
    assert refused(pod) == ("measurement_mismatch",)
    assert "supervisor" in mark.read_text()


@pytest.fixture
def own_site(small_site: Path, tmp_path: Path) -> Path:
    """A copy of the installed packages that a test may change."""
    return shutil.copytree(small_site, tmp_path / "site", symlinks=True)


def flip_a_letter(path: Path) -> None:
    """Change one byte of a comment or docstring, so that the module still works."""
    content = path.read_bytes()
    at = content.index(b"the ")
    path.write_bytes(content[:at] + b"T" + content[at + 1 :])


def test_a_changed_byte_in_an_installed_package_is_detected_and_no_key_is_released(
    small_pod: Callable[..., Pod], own_site: Path, small_site: Path
) -> None:
    flip_a_letter(own_site / "joserfc" / "jws.py")
    pod = small_pod(sites=[own_site])
    pod.launch()
    assert refused(pod) == ("environment_mismatch",)


def test_a_file_replaced_during_the_import_and_restored_is_detected(
    small_pod: Callable[..., Pod], own_site: Path, mark: Path
) -> None:
    pod = small_pod(sites=[own_site])
    module = own_site / "msgspec" / "__init__.py"
    before = module.stat()
    content = module.read_bytes()
    pod.launch()
    pod.until(lambda: True if len(pod.processes()) > 1 else None, "the first child")
    supervisor = pod.role("supervisor")
    supervisor.suspend()
    module.write_bytes(content + f"\nopen({str(mark)!r}, 'a').close()\n".encode())
    supervisor.resume()
    pod.until(lambda: True if mark.exists() else None, "a child that imports it")
    module.write_bytes(content)
    os.utime(module, ns=(before.st_atime_ns, before.st_mtime_ns))
    last = pod.finish()
    assert (last["state"], last["code"]) == ("failed", "environment_changed")
    assert pod.named(RELEASE_PLAN_COMPLETED) is None
