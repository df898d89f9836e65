"""Planted leaks: a stray copy anywhere that the scan reads makes the runtime state unverified, never zeroized.

The leaks are patched into the test's own bundle; the shipped one cannot leak on request.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import engine
from engine.store.reader import Reader
from engine.worker.isolation.binding import BIND_NOW
from tests.functional.runs.pod import Pod
from tests.functional.runs.support import Operator, checks_of, short_plan

Leak = tuple[str, str, str]  # the file that is patched, the line that the leak precedes, and the leak

KEYPROC, TRAINER, PROTECTED = (f"engine/worker/{name}.py" for name in ("key_process", "trainer", "protected"))
KEYS = "        for index, entry in enumerate(manifest.files):\n"
PRIVATE = "        return [\n            *patterns.key_items(patterns.RELEASE_KEY"
WIPING = '        detail = secret_patterns.wipe(workload, trainer)\n        self.channel.send({"msg": "wiped"'
SEALING = "        folder = self._context.outbox / KIND\n"

LEAKS: dict[str, tuple[Leak, str, str]] = {
    "content key": ((KEYPROC, KEYS, "self.secrets.stray = bytearray(keys)"), "keyproc open", "content_key"),
    "release key": ((KEYPROC, PRIVATE, "self.secrets.stray = bytearray(raw)"), "keyproc open", "release_key"),
    "half a key": (
        (KEYPROC, KEYS, "self.secrets.stray = bytearray(3) + bytearray(keys[16:32]) + bytearray(9)"),
        "keyproc open", "content_key_half",
    ),
    "last trained row": ((TRAINER, WIPING, "self.stray = bytearray(workload.row)"), "trainer", "canary_row"),
    "adapter": (
        (PROTECTED, SEALING, 'self.stray = bytearray(os.pread(self._adapter_fd, written["size"], 0))'),
        "supervisor", "adapter",
    ),
    "adapter in a memfd that nobody maps": (
        (PROTECTED, SEALING, 'self.stray = memfd.from_bytes("stray", os.pread(self._adapter_fd, written["size"], 0))'),
        "supervisor", "adapter",
    ),
}  # fmt: skip


def planted(leak: Leak) -> dict[str, Callable[[str], str]]:
    """The patch that inserts a statement before a line; a class with slots loses them, so that it can hold the copy."""
    path, line, statement = leak
    indent = line[: len(line) - len(line.lstrip())]

    def patch(text: str) -> str:
        assert text.count(line) == 1
        slot = "@dataclass(slots=True)\nclass _Secrets:"
        return text.replace(line, f"{indent}{statement}\n{line}").replace(slot, "@dataclass\nclass _Secrets:")

    return {path: patch}


@pytest.mark.parametrize("what", LEAKS)
def test_a_stray_copy_in_memory_is_reported_for_the_process_that_has_it(
    what: str, small_pod: Callable[..., Pod]
) -> None:
    leak, target, name = LEAKS[what]
    pod = small_pod(planted(leak))
    receipt = pod.run()
    assert pod.verdict() == ("unverified", {"zeroization_hits"})
    hits = {(process, hit) for process, scan in receipt.after.items() for hit, count in scan.hits.items() if count}
    assert (target, name) in hits
    assert {hit.removesuffix("_half") for _, hit in hits} == {name.removesuffix("_half")}


# The row is passed by value: the call copies it onto the stack, where it remains after the call returns.
ON_STACK = """\
        row = bytes(workload.row)
        detail = secret_patterns.wipe(workload, trainer)
        import ctypes
        from engine.worker.isolation._libc import libc
        class Argument(ctypes.Structure):
            _fields_ = [("bytes", ctypes.c_char * len(row))]
        libc.labs.argtypes = (Argument,)
        libc.labs(Argument.from_buffer_copy(row))
"""


def test_a_copy_on_the_stack_is_distinguished_from_one_on_the_heap(small_pod: Callable[..., Pod]) -> None:
    line = "        detail = secret_patterns.wipe(workload, trainer)\n"
    pod = small_pod({TRAINER: lambda text: text.replace(line, ON_STACK)})
    receipt = pod.run()
    assert pod.verdict() == ("unverified", {"zeroization_hits", "zeroization_stack_hits"})
    assert receipt.after["trainer"].where["stack"] > 0


def test_every_process_of_a_segment_has_its_symbols_bound_at_start(
    small_pod: Callable[..., Pod], tmp_path: Path
) -> None:
    line = "    argv = sys.argv[1:]\n"
    dump_environ = (
        f"open({str(tmp_path)!r} + '/' + '-'.join(argv[:2]), 'wb').write(open('/proc/self/environ', 'rb').read())"
    )
    pod = small_pod({"engine/worker/main.py": lambda text: text.replace(line, f"{line}    {dump_environ}\n", 1)})
    pod.run()
    assert pod.verdict() == ("zeroized", set())
    environments = {path.name.partition("---")[0]: path.read_bytes().split(b"\0") for path in tmp_path.iterdir()}
    assert set(environments) == {"supervisor", "trainer", "keyproc-open", "keyproc-seal", "scanner"}
    ((name, value),) = BIND_NOW.items()
    assert {role for role, words in environments.items() if f"{name}={value}".encode() not in words} == set()


def test_plaintext_in_scratch_is_reported_and_removed(small_pod: Callable[..., Pod]) -> None:
    write = '(Path(self.setup["scratch"]) / "left").write_bytes(workload.row)'
    pod = small_pod(planted((TRAINER, WIPING, write)))
    pod.run()
    assert pod.verdict() == ("unverified", {"zeroization_scratch"})
    assert list((pod.folder / "scratch").iterdir()) == []


@pytest.mark.parametrize("holder", ["the supervisor", "another process"])
def test_a_deleted_file_that_is_held_open_is_reported(holder: str, small_pod: Callable[..., Pod]) -> None:
    hold = 'self.stray = open(self._context.scratch / "held", "wb"); (self._context.scratch / "held").unlink()'
    pod = small_pod(planted((PROTECTED, SEALING, hold)) if holder == "the supervisor" else {})
    held = pod.folder / "scratch" / "held"
    with held.open("wb") if holder == "another process" else open(os.devnull, "wb"):  # noqa: PTH123
        held.unlink(missing_ok=True)
        receipt = pod.run()
    assert pod.verdict() == ("unverified", {"zeroization_deleted_files"})
    assert receipt.deleted_files_held == 1


ROW = 'self.stray = bytearray(workload.tokens["input_ids"][last_row].numpy().tobytes())'


def test_a_whole_run_that_leaks_is_never_called_zeroized(
    torch_operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    package = Path(engine.__file__).parent
    shutil.copytree(package, tree / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "data").symlink_to(package.parent / "data")
    patches = planted(LEAKS["content key"][0]) | planted((TRAINER, WIPING, ROW))
    for path, patch in patches.items():
        (tree / path).write_text(patch((tree / path).read_text()))
    monkeypatch.setenv("PYTHONPATH", str(tree))
    run_id = torch_operator.start(short_plan("protected", steps=10))
    view = torch_operator.finish(run_id)
    assert view.row is not None
    assert (view.row["runtimeState"], view.row["keyState"]) == ("unverified", "released")
    assert view.row["clean"] is False
    assert {check for check, status in checks_of(view).items() if status == "failed"} == {"zeroization_proven"}
    with Reader(torch_operator.home) as reader:
        (reason,) = [t.reason for t in reader.run(run_id).transitions if t.state == "unverified"]
        envelope = reader.receipts(run_id)["zeroization"]
    assert reason == "zeroization_hits: The scan still found secrets after the wipe."
    after = hits_after(envelope)
    assert after["keyproc open"]["content_key"] > 0
    assert after["trainer"]["canary_row"] > 0


def hits_after(envelope: dict[str, str]) -> dict[str, dict[str, int]]:
    """The hits after the wipe that the receipt states; its signatures are not checked."""
    predicate = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    return {target: scan["hits"] for target, scan in predicate["after"].items()}
