"""The key process: short-lived, hardened, and the only one on the allocation that ever holds a content key.

`open` makes the key that the evidence attests, receives the release, decrypts the package into memfds, wipes
and exits before training starts. `seal` encrypts the trained adapter under a fresh key. Both hand their keys
to the scanner once (the positive control: it must find them) and wait for the scan that must find none. Start it with
`ENVIRONMENT`: only then does the C library overwrite every buffer that is freed.

Messages (`cmd` is received, `msg` is sent), in this order:
    msg memory            with descriptors of its own mem and smaps, before hardening
    msg ready             enforcement, wiping, and for `open` the public key
    cmd package | adapter with descriptors, see `_open` and `_seal`
    msg keys_live         patterns: how many of each class are in the patterns memfd
    cmd proceed
    msg opened | sealed   after the wipe
    cmd exit
On a failure it wipes, zeroes the targets, sends `msg error` (code, message, hint) and exits with status 1.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import gc
import io
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from engine.errors import GlasshouseError, RunError
from engine.sealing.adapter import AdapterBinding, seal_adapter
from engine.sealing.manifest import Manifest, manifest_digest, parse_manifest
from engine.sealing.memory import KEY_BYTES, key_at, random_key, wipe
from engine.sealing.package import check_released, open_file
from engine.sealing.release import open_release, seal_release
from engine.worker.channel import Channel
from engine.worker.isolation import hardening, memfd, patterns, procfs
from engine.worker.isolation.binding import BIND_NOW
from engine.worker.isolation.wipe import perturb_frees, sweep_heap, sweep_python, sweep_stack, trim

ENVIRONMENT: Final = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
WAIT_SECONDS: Final = 3600.0


@dataclass(slots=True)
class _Secrets:
    """Every buffer that holds a secret in this process, so that one call wipes them all."""

    private: X25519PrivateKey | None = None
    buffers: list[bytes | bytearray] = field(default_factory=list)

    def wipe(self) -> dict[str, int]:
        """Overwrite and drop everything, then sweep what was freed; returns the bytes swept."""
        for buffer in self.buffers:
            wipe(buffer)
        self.buffers = []
        self.private = None
        gc.collect()
        swept = {"python_bytes": sweep_python(), "heap_bytes": sweep_heap(), "stack_bytes": sweep_stack()}
        trim()
        return swept


@dataclass(slots=True)
class _Targets:
    """The writable maps that plaintext is decrypted into; zeroed unless the whole package was opened."""

    maps: list[mmap.mmap] = field(default_factory=list)
    keep: bool = False

    def __enter__(self) -> _Targets:
        return self

    def __exit__(self, *_: object) -> None:
        for mapping in self.maps:
            if not self.keep:
                memfd.wipe_map(mapping)
            memfd.close_map(mapping)

    def view(self, fd: int, size: int) -> memoryview:
        """The whole of a target memfd, which must have exactly the file's size."""
        if memfd.size_of(fd) != size:
            raise RunError("A target does not have the size of its file.", code="target_size")
        if size == 0:
            return memoryview(bytearray())
        mapping = memfd.map_writable(fd, size)
        self.maps.append(mapping)
        return memoryview(mapping)


class _KeyProcess:
    """One task, from the hand-over of its memory descriptors to its exit."""

    def __init__(self, channel: Channel, wait: float) -> None:
        self.channel = channel
        self.wait = wait
        self.secrets = _Secrets()

    def run(self, task: str) -> None:
        """Hand over, harden, and do the task."""
        memory, maps = procfs.self_memory()
        self.channel.send({"msg": "memory"}, (memory, maps))
        os.close(memory)
        os.close(maps)
        _rehearse()
        ready: dict[str, Any] = {
            "msg": "ready",
            "wiping": {
                "perturb": perturb_frees(),
                "tcache_off": os.environ.get("GLIBC_TUNABLES") == ENVIRONMENT["GLIBC_TUNABLES"],
                "bound_at_start": BIND_NOW.items() <= os.environ.items(),
            },
            "enforcement": {name: seen.as_dict() for name, seen in hardening.harden(hardening.Options()).items()},
        }
        if task == "open":
            self.secrets.private = X25519PrivateKey.generate()
            public = self.secrets.private.public_key().public_bytes_raw()
            ready["public"] = base64.b64encode(public).decode()
        self.channel.send(ready)
        {"open": self._open, "seal": self._seal}[task]()
        self._command("exit")

    def _command(self, name: str, descriptors: int = 0) -> tuple[dict[str, Any], list[int]]:
        """The next command, which must be `name` with at least `descriptors` descriptors."""
        message, fds = self.channel.recv(self.wait)
        if message.get("cmd") != name or len(fds) < descriptors:
            raise RunError(
                f"The key process expected the command {name} and received another one.", code="worker_protocol"
            )
        return message, fds

    def _show(self, fd: int, items: Callable[[], list[patterns.Item]]) -> None:
        """Write the keys into the patterns memfd, report that they are live, and wait for `proceed`."""
        with memfd.opened(memfd.map_writable(fd)) as view:
            counts = patterns.write(view, items())
        os.close(fd)
        self.channel.send({"msg": "keys_live", "patterns": counts})
        self._command("proceed")

    def _open(self) -> None:
        """`package`: `ciphertext` and `info` in base64; descriptors: manifest, patterns memfd, then a sealed
        file and its target memfd for each file in manifest order."""
        message, fds = self._command("package", 4)
        manifest_fd, patterns_fd, *pairs = fds
        manifest = parse_manifest(os.pread(manifest_fd, memfd.size_of(manifest_fd), 0))
        if len(pairs) != 2 * len(manifest.files):
            raise RunError("Files and targets do not match the manifest.", code="worker_protocol")
        self._release(message, manifest)
        self._show(patterns_fd, self._release_items)
        with _Targets() as targets:
            self._decrypt(manifest, pairs, targets)
            for target in pairs[1::2]:
                memfd.seal_payload(target)
            targets.keep = True
        for fd in (manifest_fd, *pairs):
            os.close(fd)
        self.channel.send(
            {
                "msg": "opened",
                "manifest_sha256": manifest_digest(manifest),
                "files": [{"name": entry.name, "size": entry.size, "sha256": entry.sha256} for entry in manifest.files],
                "swept": self.secrets.wipe(),
            }
        )

    def _release(self, message: dict[str, Any], manifest: Manifest) -> None:
        private, info = self.secrets.private, _decoded(message, "info")
        if private is None:
            raise RunError("This key process has no key that could open a release.", code="worker_protocol")
        keys = open_release(_decoded(message, "ciphertext"), private, info)
        self.secrets.buffers.append(keys)
        check_released(manifest, info)
        if len(keys) != len(manifest.files) * KEY_BYTES:
            raise RunError("The release does not hold one key per file.", code="release_wrong_size")

    def _release_items(self) -> list[patterns.Item]:
        private = self.secrets.private
        keys = memoryview(self.secrets.buffers[0])
        raw = private.private_bytes_raw() if private is not None else b""
        self.secrets.buffers.append(raw)
        return [
            *patterns.key_items(patterns.RELEASE_KEY, memoryview(raw)),
            *(
                item
                for index in range(len(keys) // KEY_BYTES)
                for item in patterns.key_items(patterns.CONTENT_KEY, key_at(keys, index))
            ),
        ]

    def _decrypt(self, manifest: Manifest, pairs: Sequence[int], targets: _Targets) -> None:
        keys = memoryview(self.secrets.buffers[0])
        for index, entry in enumerate(manifest.files):
            source, target = pairs[2 * index], pairs[2 * index + 1]
            with targets.view(target, entry.size) as view, _reader(source) as file:
                open_file(key_at(keys, index), manifest, entry, file, view)

    def _seal(self) -> None:
        """`adapter`: `recipient` (raw public key in base64), `binding` and `size` of the plaintext;
        descriptors: plaintext memfd, patterns memfd, output file."""
        message, fds = self._command("adapter", 3)
        plain_fd, patterns_fd, out_fd = fds[:3]
        binding, recipient, size = _binding(message), _decoded(message, "recipient"), int(message["size"])
        key = random_key()
        self.secrets.buffers.append(key)
        self._show(patterns_fd, lambda: list(patterns.key_items(patterns.ADAPTER_KEY, memoryview(key))))
        with os.fdopen(out_fd, "wb") as out:
            with memfd.opened(memfd.map_readonly(plain_fd, size)) as plain:
                digest = seal_adapter(plain, recipient, binding, key, out)
            out.flush()
            written = out.tell()
            os.fsync(out.fileno())
        os.close(plain_fd)
        swept = self.secrets.wipe()
        self.channel.send({"msg": "sealed", "sha256": digest, "size": written, "swept": swept})


def _rehearse() -> None:
    """Use the libraries once on dummy keys, so that nothing is left to import once no file can be opened."""
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    key = random_key()
    wipe(open_release(seal_release(key, public, b""), private, b""))
    binding = AdapterBinding("rehearsal", "protected", "0" * 64, "0" * 64)
    seal_adapter(memoryview(bytes(KEY_BYTES)), public, binding, key, io.BytesIO())
    wipe(key)


def _reader(fd: int) -> io.FileIO:
    return io.FileIO(os.dup(fd), "rb")


def _decoded(message: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(message[name], validate=True)
    except (KeyError, TypeError, binascii.Error, ValueError) as error:
        raise RunError(f"A command to the key process lacks {name}.", code="worker_protocol") from error


def _binding(message: dict[str, Any]) -> AdapterBinding:
    try:
        return AdapterBinding(**{name: str(value) for name, value in message["binding"].items()})
    except (KeyError, AttributeError, TypeError) as error:
        raise RunError("A command to the key process lacks binding.", code="worker_protocol") from error


def _attempt(process: _KeyProcess, task: str) -> dict[str, str] | None:
    """Run the task; on failure, the error to send. No traceback outlives this call: it would keep keys alive."""
    try:
        process.run(task)
    except GlasshouseError as error:
        return error.as_dict()
    except Exception as error:  # any error must end in a wipe, and its text may hold a secret
        failed = RunError(f"The key process failed ({type(error).__name__}).", code="keyproc_failed")
        return failed.as_dict()
    return None


def main(argv: Sequence[str]) -> int:
    """`open|seal --channel FD [--wait SECONDS]`; the channel is a connected socket inherited from the
    supervisor.
    """
    parser = argparse.ArgumentParser("keyproc")
    parser.add_argument("task", choices=("open", "seal"))
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--wait", type=float, default=WAIT_SECONDS)
    parser.add_argument("--site", action="append")
    options = parser.parse_args(argv)
    with Channel(options.channel) as channel:
        process = _KeyProcess(channel, options.wait)
        failure = _attempt(process, options.task)
        if failure is None:
            return 0
        process.secrets.wipe()
        with contextlib.suppress(RunError):  # the supervisor may be gone
            channel.send({"msg": "error", **failure}, timeout=5.0)
        return 1
