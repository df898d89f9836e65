"""The fake RunPod as tests use it: a separate process, its actual state and its script."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit

import msgspec

from tests.fake_runpod.views import Call, Gpu, PastPod, PodView, Rule, Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parents[2]
LOG: Final = "fake.log"
_ENDING_SECONDS: Final = 120.0
_ADMIN_SECONDS: Final = 120.0


class FakeRunPod:
    """A running fake. Its methods block for a loopback round trip and may be called from any thread."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, url: str, key: str, has_contract: bool) -> None:
        self.process = process
        self.folder = folder
        self.url = url
        self.key = key
        self.has_contract = has_contract
        """False if RunPod's OpenAPI document is missing, so that nothing is checked against it."""

    @classmethod
    def start(cls, folder: Path, **settings: object) -> Self:
        """Start one that keeps its pods' folders under `folder`; `settings` are fields of `views.Settings`."""
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "tests.fake_runpod", "--dir", str(folder), "--settings", json.dumps(settings)]
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait()
            raise RuntimeError((folder / LOG).read_text(encoding="utf-8"))
        ready = json.loads(line)
        return cls(process, folder, ready["url"], ready["key"], ready["contract"])

    def stop(self) -> None:
        """Stop it and every pod; idempotent."""
        self.process.terminate()
        try:
            self.process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def environment(self) -> dict[str, str]:
        """The environment that points RunPod's clients here."""
        return {"RUNPOD_API_BASE_URL": self.url, "RUNPOD_API_KEY": self.key}

    def pods(self) -> list[PodView]:
        """Every pod that actually exists, whatever the API reports."""
        return self._get("pods", list[PodView])

    def pod(self, pod_id: str) -> PodView:
        """One pod that exists; raises `LookupError`."""
        for pod in self.pods():
            if pod.id == pod_id:
                return pod
        raise LookupError(pod_id)

    def ever(self) -> list[PastPod]:
        """Every pod that was ever created, oldest first."""
        return self._get("ever", list[PastPod])

    def calls(self, op: str | None = None) -> list[Call]:
        """Every API call that was answered or abandoned, in that order; optionally of one operation."""
        return [call for call in self._get("calls", list[Call]) if op in {None, call.op}]

    def defects(self) -> list[str]:
        """The fake's own errors: answers that break the published contract, and its log if it has a traceback."""
        defects = [f"{call.op}: {call.defect}" for call in self.calls() if call.defect]
        log = (self.folder / LOG).read_text(encoding="utf-8")
        return [*defects, log] if "Traceback" in log else defects

    def fault(
        self,
        on: str,
        do: str,
        *,
        times: int | None = 1,
        after: int = 0,
        api: Literal["graphql", "v2"] | None = None,
        pod: str | None = None,
        **how: object,
    ) -> None:
        """Script a fault; README.md lists them. `times` None lasts until `clear`."""
        rule = Rule(on=on, do=do, times=times, after=after, api=api, pod=pod, how=how)
        self._post("fault", msgspec.to_builtins(rule))

    def clear(self) -> None:
        """Remove all faults."""
        self._post("clear", {})

    def reset(self) -> None:
        """Back to the state at the start, in a few milliseconds: no pods, calls or faults, and the first settings."""
        self._post("reset", {})

    def configure(self, **settings: object) -> None:
        """Change fields of `views.Settings`, for later pods and calls."""
        self._post("settings", settings)

    def settings(self) -> Settings:
        """The settings in force."""
        return self._get("settings", Settings)

    def set_gpus(self, gpus: Sequence[Gpu]) -> None:
        """Replace the catalogue."""
        self._post("gpus", {"gpus": msgspec.to_builtins(gpus)})

    def foreign(self, name: str = "somebody-elses", gpu: str = "NVIDIA L4") -> PodView:
        """Create a foreign pod."""
        return msgspec.convert(self._post("foreign", {"name": name, "gpu": gpu}), PodView)

    def vanish(self, pod_id: str) -> None:
        """Remove a pod without a request, as when the machine fails."""
        self._post("vanish", {"id": pod_id})

    def appear(self, pod_id: str) -> None:
        """List a pod again that the fault `unlisted` hides."""
        self._post("appear", {"id": pod_id})

    def restart(self, pod_id: str, *, wipe: bool = True) -> PodView:
        """Restart its container: a new PID 1 at the same address; `wipe` empties its disk, as RunPod documents."""
        return msgspec.convert(self._post("restart", {"id": pod_id, "wipe": wipe}), PodView)

    def halt(self, pod_id: str) -> None:
        """Stop it; it stays listed as exited."""
        self._post("stop", {"id": pod_id})

    def move(self, pod_id: str) -> PodView:
        """Change its port, not its host key; open connections end."""
        return msgspec.convert(self._post("move", {"id": pod_id}), PodView)

    def drop_links(self, pod_id: str) -> int:
        """Kill its SSH connections, not the server; returns how many processes there were."""
        return self._count("drop_links", pod_id)

    def freeze(self, pod_id: str, *, server: bool = False) -> int:
        """Freeze its open connections without closing them; with `server`, new ones get no answer either."""
        return self._count("freeze", pod_id, server)

    def thaw(self, pod_id: str) -> int:
        """Continue everything that was frozen."""
        return self._count("thaw", pod_id, server=True)

    def _count(self, verb: str, pod_id: str, server: bool = False) -> int:
        return msgspec.convert(self._post(verb, {"id": pod_id, "server": server}), int)

    def _get(self, what: str, kind: type[T]) -> T:
        return msgspec.json.decode(self._send("GET", what, b""), type=kind)

    def _post(self, verb: str, data: Any) -> object:
        return json.loads(self._send("POST", verb, json.dumps(data).encode()))

    def _send(self, method: str, what: str, body: bytes) -> bytes:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=_ADMIN_SECONDS)
        try:
            connection.request(method, f"/_fake/{what}", body)
            reply = connection.getresponse()
            raw = reply.read()
        finally:
            connection.close()
        if reply.status != 200:
            raise ValueError(f"{what}: {raw.decode()}")
        return raw
