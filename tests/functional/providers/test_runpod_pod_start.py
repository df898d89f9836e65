"""What runs on the pod before sshd: the host key, the dead-man's switch, and an environment without secrets."""

from __future__ import annotations

import base64
import os
import queue
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import asyncssh
import psutil
import pytest

from engine.providers.protocol import Spec
from engine.providers.runpod.folder import Keys
from engine.providers.runpod.gpu_choice import Choice
from engine.providers.runpod.pod_order import HEARTBEAT, order
from engine.providers.settings import RunPodLimits, RunPodSettings

POD = "pod-7"
POD_KEY = "rpa_canary_of_the_pod"
LIMIT = 60.0
NAMESPACE = (shutil.which("unshare") or "", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child")
IMAGE_START = (
    '#!/bin/bash\nenv > "$HOME/image_env.part" && mv "$HOME/image_env.part" "$HOME/image_env"\nsleep infinity\n'
)


def _why_not() -> str:
    if os.geteuid() != 0 or not NAMESPACE[0]:
        return "a pod's own processes and /etc/ssh need root and unshare: run as root, with util-linux installed"
    tried = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False)
    return (
        ""
        if tried.returncode == 0
        else "no new namespaces are allowed here: run where root may make them (CAP_SYS_ADMIN)"
    )


pytestmark = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "can run")


@dataclass
class RunPod:
    """A server that records requests and refuses those in `refuse`."""

    refuse: set[str] = field(default_factory=set)
    received: queue.Queue[tuple[str, str, str]] = field(default_factory=queue.Queue)
    url: str = ""

    def next(self) -> tuple[str, str, str]:
        return self.received.get(timeout=LIMIT)


@pytest.fixture
def runpod() -> Iterator[RunPod]:
    fake = RunPod()

    class Handler(BaseHTTPRequestHandler):
        def do_DELETE(self) -> None:
            self._answer("DELETE", b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self._answer(next(verb for verb in ("podTerminate", "podStop") if verb in body), b'{"data": {}}')

        def _answer(self, what: str, body: bytes) -> None:
            fake.received.put((what, self.path, self.headers["Authorization"]))
            self.send_response(403 if what in fake.refuse else 204 if what == "DELETE" else 200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Pod:
    """A container's processes, with their own home and /etc/ssh."""

    process: subprocess.Popen[bytes]
    home: Path
    etc: Path
    host: asyncssh.SSHKey

    def wait_for(self, name: str) -> str:
        """The text of a file in the home, once it exists."""
        until = time.monotonic() + LIMIT
        while not (self.home / name).exists():
            assert time.monotonic() < until, f"{name} did not appear"
            assert self.process.poll() is None, f"the pod ended before {name} appeared"
            time.sleep(0.01)
        return (self.home / name).read_text()

    def beat(self, moment: int) -> None:
        os.utime(self.home / HEARTBEAT, ns=(moment, moment))

    def end(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT)


class Pods:
    """Starts pods as Docker would: the order's environment, and its start command split into words."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self.started: list[Pod] = []

    def start(self, seconds: float = 3600, silence: float = 3600, **changed: str) -> Pod:
        home, etc, image = self._folder / "root", self._folder / "etc_ssh", self._folder / "start.sh"
        for folder in (home, etc):
            folder.mkdir(exist_ok=True)
        image.write_text(IMAGE_START)
        image.chmod(0o755)
        host = asyncssh.generate_private_key("ssh-ed25519")
        settings = RunPodSettings(limits=RunPodLimits(silence=silence))
        pod_order = order(
            Spec(name="glasshouse-a-b-c"),
            settings,
            Choice(gpu="gpu", model="GPU", price=1.0),
            Keys(client_public="ssh-ed25519 AAAA glasshouse", host_private=host.export_private_key()),
            seconds,
        )
        environment = {
            **pod_order.environment,
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "RUNPOD_POD_ID": POD,
            "RUNPOD_API_KEY": POD_KEY,
            "RUNPOD_API_BASE_URL": self._url,
            "GLASSHOUSE_IMAGE_START": str(image),
            "HTTP_PROXY": "http://127.0.0.1:9",
            **changed,
        }
        inside = f"mount --bind {shlex.quote(str(etc))} /etc/ssh && exec {shlex.join(shlex.split(pod_order.start))}"
        process = subprocess.Popen(
            [*NAMESPACE, "/bin/bash", "-c", inside],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        self.started.append(Pod(process, home, etc, host))
        return self.started[-1]


@pytest.fixture
def pods(tmp_path: Path, runpod: RunPod) -> Iterator[Pods]:
    starter = Pods(tmp_path, runpod.url)
    yield starter
    for pod in starter.started:
        pod.end()


def test_the_image_starts_with_the_host_key_in_place_and_no_secret_to_read(pods: Pods, runpod: RunPod) -> None:
    pod = pods.start()
    image_env = pod.wait_for("image_env")
    assert "PUBLIC_KEY=ssh-ed25519" in image_env
    installed = pod.etc / "ssh_host_ed25519_key"
    assert installed.stat().st_mode & 0o777 == 0o600
    assert asyncssh.read_private_key(installed).public_data == pod.host.public_data
    assert asyncssh.read_public_key(pod.etc / "ssh_host_ed25519_key.pub").public_data == pod.host.public_data
    handed = base64.b64encode(pod.host.export_private_key()).decode()
    of_pod = psutil.Process(pod.process.pid).children(recursive=True)
    texts = [Path(f"/proc/{one.pid}/{what}").read_text() for one in of_pod for what in ("environ", "cmdline")]
    assert any("deadman.py" in text for text in texts)
    for text in (image_env, *texts):
        assert POD_KEY not in text
        assert handed not in text
        assert "GLASSHOUSE_" not in text
    assert all(POD_KEY not in file.read_text() for file in pod.home.rglob("*") if file.is_file())


def test_a_pod_whose_time_is_up_requests_its_termination_with_its_own_key(pods: Pods, runpod: RunPod) -> None:
    pods.start(seconds=0.5)
    assert runpod.next() == ("DELETE", f"/v2/pods/{POD}", f"Bearer {POD_KEY}")
    assert runpod.next()[0] == "DELETE", "the request is not repeated until the pod is gone"


def test_if_termination_is_refused_the_other_requests_are_tried(pods: Pods, runpod: RunPod) -> None:
    runpod.refuse = {"DELETE", "podTerminate"}
    pods.start(seconds=0.3)
    assert [runpod.next()[:2] for _ in range(3)] == [
        ("DELETE", f"/v2/pods/{POD}"),
        ("podTerminate", "/graphql"),
        ("podStop", "/graphql"),
    ]


def test_heartbeats_keep_a_pod_alive_until_they_stop(pods: Pods, runpod: RunPod) -> None:
    pod = pods.start(silence=3.0)
    pod.wait_for("image_env")
    started = time.monotonic()
    for beat in range(50):  # timestamps may even go backwards: only a change counts
        pod.beat(10**18 - beat * 10**12)
        time.sleep(0.1)
    assert runpod.received.empty()
    assert runpod.next()[0] == "DELETE"
    assert time.monotonic() - started > 7.0


def test_a_pod_without_a_key_kills_its_own_processes(pods: Pods, runpod: RunPod) -> None:
    pod = pods.start(seconds=0.3, RUNPOD_API_KEY="")
    pod.process.wait(LIMIT)
    assert runpod.received.empty()


def test_a_restarted_container_keeps_its_deadline(pods: Pods) -> None:
    first = pods.start(seconds=1000)
    first.wait_for("image_env")
    kept = first.wait_for(".glasshouse/deadline")
    first.end()
    (first.home / "image_env").unlink()
    second = pods.start(seconds=1000)
    second.wait_for("image_env")
    assert second.wait_for(".glasshouse/deadline") == kept


def test_a_pod_without_a_host_key_starts_nothing(pods: Pods) -> None:
    pod = pods.start(GLASSHOUSE_HOST_KEY="")
    assert pod.process.wait(LIMIT) != 0
    assert not (pod.home / "image_env").exists()


def test_an_image_in_which_the_switch_cannot_be_armed_starts_nothing(pods: Pods, tmp_path: Path) -> None:
    few = tmp_path / "bin"
    few.mkdir()
    for name in ("bash", "base64", "printenv", "mkdir", "chmod", "rm", "touch", "cat", "env", "mount"):
        (few / name).symlink_to(shutil.which(name) or f"/usr/bin/{name}")
    (few / "python3").write_text("#!/bin/bash\nexit 3\n")
    (few / "python3").chmod(0o755)
    pod = pods.start(PATH=str(few))
    assert pod.process.wait(LIMIT) != 0
    assert not (pod.home / "image_env").exists()
