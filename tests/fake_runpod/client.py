"""The fake RunPod as a test holds it: a process of its own, its truth and its script."""

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
_ENDING_SECONDS: Final = 20.0
_ADMIN_SECONDS: Final = 30.0


class FakeRunPod:
    """A running fake. Its methods block for a loopback round trip and may be called from any thread."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, url: str, key: str, has_contract: bool) -> None:
        self.process = process
        self.folder = folder
        self.url = url
        self.key = key
        self.has_contract = has_contract
        """False where RunPod's OpenAPI document is absent, so that nothing was held to it."""

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
        told = json.loads(line)
        return cls(process, folder, told["url"], told["key"], told["contract"])

    def stop(self) -> None:
        """End it and every pod; stopped already is stopped."""
        self.process.terminate()
        try:
            self.process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def environment(self) -> dict[str, str]:
        """What points RunPod's clients here."""
        return {"RUNPOD_API_BASE_URL": self.url, "RUNPOD_API_KEY": self.key}

    def pods(self) -> list[PodView]:
        """The truth: every pod that exists, whatever the API says."""
        return self._look("pods", list[PodView])

    def pod(self, pod_id: str) -> PodView:
        """One pod that exists; raises `LookupError`."""
        for pod in self.pods():
            if pod.id == pod_id:
                return pod
        raise LookupError(pod_id)

    def ever(self) -> list[PastPod]:
        """Every pod that there ever was, oldest first."""
        return self._look("ever", list[PastPod])

    def calls(self, op: str | None = None) -> list[Call]:
        """Every API call that was answered or left, in that order; of one operation where it is given."""
        return [call for call in self._look("calls", list[Call]) if op in {None, call.op}]

    def defects(self) -> list[str]:
        """Where an answer of the fake's own broke the published contract, and what it failed at."""
        found = [f"{call.op}: {call.defect}" for call in self.calls() if call.defect]
        log = (self.folder / LOG).read_text(encoding="utf-8")
        return [*found, log] if "Traceback" in log else found

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
        self._act("fault", msgspec.to_builtins(rule))

    def clear(self) -> None:
        """No faults any more."""
        self._act("clear", {})

    def reset(self) -> None:
        """No pods, calls and faults, and the first settings: as new, in a few milliseconds."""
        self._act("reset", {})

    def configure(self, **settings: object) -> None:
        """Change fields of `views.Settings`, for pods and calls to come."""
        self._act("settings", settings)

    def settings(self) -> Settings:
        """The settings in force."""
        return self._look("settings", Settings)

    def set_gpus(self, gpus: Sequence[Gpu]) -> None:
        """Replace the catalogue."""
        self._act("gpus", {"gpus": msgspec.to_builtins(gpus)})

    def foreign(self, name: str = "somebody-elses", gpu: str = "NVIDIA L4") -> PodView:
        """Make a pod that is not ours."""
        return msgspec.convert(self._act("foreign", {"name": name, "gpu": gpu}), PodView)

    def vanish(self, pod_id: str) -> None:
        """A pod is gone, and nobody asked for it."""
        self._act("vanish", {"id": pod_id})

    def restart(self, pod_id: str, *, wipe: bool = True) -> PodView:
        """Its container restarts: a new PID 1 at the same address; `wipe` empties its disk, as the documents say."""
        return msgspec.convert(self._act("restart", {"id": pod_id, "wipe": wipe}), PodView)

    def halt(self, pod_id: str) -> None:
        """It stops and stays listed as exited."""
        self._act("stop", {"id": pod_id})

    def move(self, pod_id: str) -> PodView:
        """Its port changes, its host key does not; open connections end."""
        return msgspec.convert(self._act("move", {"id": pod_id}), PodView)

    def drop_links(self, pod_id: str) -> int:
        """Kill its SSH connections, not the server; returns how many processes there were."""
        return self._count("drop_links", pod_id)

    def freeze(self, pod_id: str, *, server: bool = False) -> int:
        """Its open connections go silent without closing; with `server`, new ones get no answer either."""
        return self._count("freeze", pod_id, server)

    def thaw(self, pod_id: str) -> int:
        """What froze goes on."""
        return self._count("thaw", pod_id, server=True)

    def _count(self, verb: str, pod_id: str, server: bool = False) -> int:
        return msgspec.convert(self._act(verb, {"id": pod_id, "server": server}), int)

    def _look(self, what: str, kind: type[T]) -> T:
        return msgspec.json.decode(self._send("GET", what, b""), type=kind)

    def _act(self, verb: str, told: Any) -> object:
        return json.loads(self._send("POST", verb, json.dumps(told).encode()))

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
