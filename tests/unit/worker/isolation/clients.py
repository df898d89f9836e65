"""The supervisor's side of the scanner and of the key process: one method for each message."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final

from engine.errors import RunError
from engine.worker.channel import Channel

ANSWER_SECONDS: Final = 600.0


class _Client:
    def __init__(self, channel: Channel, timeout: float = ANSWER_SECONDS) -> None:
        self.channel = channel
        self._timeout = timeout

    def _answer(self, kind: str) -> tuple[dict[str, Any], list[int]]:
        message, fds = self.channel.recv(self._timeout)
        if message.get("msg") == "error":
            raise RunError(str(message.get("message")), str(message.get("hint", "")), code=str(message.get("code")))
        if message.get("msg") != kind:
            raise RunError(f"A {kind} message was due.", code="worker_protocol")
        return message, fds

    def _ask(self, command: dict[str, Any], kind: str, fds: Sequence[int] = ()) -> dict[str, Any]:
        self.channel.send(command, fds, timeout=self._timeout)
        return self._answer(kind)[0]


class ScannerClient(_Client):
    """Commands to the scanner. A refused command raises `RunError` with the scanner's code."""

    def ready(self) -> dict[str, Any]:
        """The scanner's enforcement, once it is hardened."""
        enforcement: dict[str, Any] = self._answer("ready")[0]["enforcement"]
        return enforcement

    def add_target(self, name: str, memory: int, smaps: int, memfds: Sequence[int] = ()) -> None:
        """A process to scan, and memfds to read as its own; the descriptors stay the caller's."""
        self._ask({"cmd": "target", "name": name}, "target", [memory, smaps, *memfds])

    def add_memfds(self, name: str, memfds: Sequence[int]) -> None:
        """More memfds of a target, or memfds that no process stands for."""
        self._ask({"cmd": "memfds", "name": name}, "memfds", memfds)

    def drop(self, name: str) -> None:
        """Close the scanner's descriptors of a target: an open memfd keeps its memory alive."""
        self._ask({"cmd": "drop", "name": name}, "dropped")

    def add_patterns(self, fd: int) -> dict[str, int]:
        """Hand a patterns memfd over; it comes back zeroed. Returns how many of each class were taken."""
        counts: dict[str, int] = self._ask({"cmd": "patterns"}, "patterns", [fd])["counts"]
        return counts

    def scan(self, label: str, targets: Sequence[str] = ()) -> dict[str, Any]:
        """`{"label", "milliseconds", "targets": {name: report}}`; no names means every target."""
        return self._ask({"cmd": "scan", "label": label, "targets": list(targets)}, "scan")

    def end(self) -> dict[str, Any]:
        """Have the scanner wipe its patterns and end; wait for its exit afterwards."""
        return self._ask({"cmd": "end"}, "ended")


class KeyClient(_Client):
    """Commands to a key process, in the order of the methods. A failure there raises `RunError` with its
    code.
    """

    def memory(self) -> tuple[int, int]:
        """Its mem and smaps descriptors for the scanner; the caller closes them."""
        memory, smaps = self._answer("memory")[1]
        return memory, smaps

    def ready(self) -> dict[str, Any]:
        """`enforcement`, `wiping` and, from `open`, `public`: the raw X25519 key to attest, in base64."""
        return self._answer("ready")[0]

    def package(
        self, ciphertext: bytes, info: bytes, manifest: int, patterns: int, files: Sequence[tuple[int, int]]
    ) -> dict[str, int]:
        """Give the release and, by descriptors, the manifest, the patterns memfd and (sealed file, target
        memfd) for each file in manifest order. Returns how many patterns of each class are live."""
        command = {
            "cmd": "package",
            "ciphertext": base64.b64encode(ciphertext).decode(),
            "info": base64.b64encode(info).decode(),
        }
        descriptors = [manifest, patterns, *(fd for pair in files for fd in pair)]
        counts: dict[str, int] = self._ask(command, "keys_live", descriptors)["patterns"]
        return counts

    def adapter(
        self, plain: int, size: int, patterns: int, out: int, recipient: bytes, binding: dict[str, str]
    ) -> dict[str, int]:
        """Give the adapter's memfd and its size, the patterns memfd, the output file, the recipient's raw
        public key and the binding's fields. Returns how many patterns of each class are live."""
        command = {
            "cmd": "adapter",
            "size": size,
            "recipient": base64.b64encode(recipient).decode(),
            "binding": binding,
        }
        counts: dict[str, int] = self._ask(command, "keys_live", [plain, patterns, out])["patterns"]
        return counts

    def opened(self) -> dict[str, Any]:
        """Go on: decrypt, check, wipe. `files` with name, size and SHA-256, `manifest_sha256`, `swept`."""
        return self._ask({"cmd": "proceed"}, "opened")

    def sealed(self) -> dict[str, Any]:
        """Go on: seal, wipe. `sha256` and `size` of the sealed adapter, `swept`."""
        return self._ask({"cmd": "proceed"}, "sealed")

    def exit(self) -> None:
        """Let it end with status 0, after the scan that must find nothing."""
        self.channel.send({"cmd": "exit"}, timeout=self._timeout)
