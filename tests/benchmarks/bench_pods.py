"""Pods on loopback: from sshd's first answer to the first training step, and the speed of staging against `scp`.

The fake RunPod stands in for the provider; sshd, staging, launch and training are real. Times between states come from
the store, so that they exclude creating the pod. Needs openssh-server, and root for the pods' namespaces. Run:
`python -m tests.benchmarks.bench_pods [ROUNDS] [MIB]`.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Final

import asyncssh

from engine.remote.bundle import site_paths
from engine.remote.endpoint import Endpoint
from engine.remote.session import SshSession
from engine.remote.transfer import upload
from engine.store.views import RunView
from tests.fake_runpod.client import FakeRunPod
from tests.fake_runpod.needs import missing
from tests.functional.runs.renter import Renter

ROUNDS: Final = 3
MIB: Final = 256
GOAL_SECONDS: Final = 3.0
SMALL: Final = 20


def spans(view: RunView) -> dict[str, float]:
    """Seconds between the states of a run on a pod, up to its first training step."""
    at = {
        (one.subject, one.state, one.reason if one.reason.startswith("environment") else ""): datetime.fromisoformat(
            one.at
        )
        for one in reversed(view.transitions)
    }

    def between(first: tuple[str, str, str], last: tuple[str, str, str]) -> float:
        return (at[last] - at[first]).total_seconds()

    connecting, running = ("run", "connecting", ""), ("run", "running", "")
    checking = ("run", "staging", "environment: checking the allocation")
    launching, loading = ("segment:raw", "launching", ""), ("segment:raw", "loading", "")
    first_step = ("segment:raw", "training", "")
    return {
        "connect": between(connecting, ("run", "staging", "")),
        "environment": between(checking, running) if checking in at else 0.0,
        "whole": between(connecting, first_step),
        "imports and model load": between(launching, first_step),
        "of that, load": between(loading, first_step),
    }


def first_steps(renter: Renter, rounds: int) -> None:
    """Runs of a raw segment, one after the other, each on its own pod."""
    by_span: dict[str, list[float]] = {}
    for _ in range(rounds):
        run_id = renter.start(renter.plan(steps=SMALL))
        view = renter.finish(run_id)
        for name, seconds in spans(view).items():
            by_span.setdefault(name, []).append(seconds)
    medians = {name: statistics.median(values) for name, values in by_span.items()}
    print(f"from sshd's answer to the first step, medians of {rounds} rounds")
    for name, seconds in medians.items():
        print(f"  {name:24}{seconds:8.2f} s")
    rest = medians["whole"] - medians["imports and model load"]
    share = f"{rest / GOAL_SECONDS:.2f} of the goal of {GOAL_SECONDS:.0f} s"
    print(f"  {'all but imports and load':24}{rest:8.2f} s   {share}")


async def _upload(endpoint: Endpoint, source: Path, target: str) -> float:
    session = await SshSession.connect(endpoint)
    async with session:
        began = time.perf_counter()
        await upload(session, source, target)
        return time.perf_counter() - began


def _scp(endpoint: Endpoint, source: Path, target: str) -> float:
    assert isinstance(endpoint.client_key, Path)
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"]
    command = ["scp", "-q", "-P", str(endpoint.port), "-i", str(endpoint.client_key)]
    for option in options:
        command += ["-o", option]
    began = time.perf_counter()
    subprocess.run([*command, str(source), f"{endpoint.user}@{endpoint.host}:{target}"], check=True)
    return time.perf_counter() - began


def staging(folder: Path, rounds: int, mib: int) -> None:
    """Send one large file to one sshd, alternately by our staging, with its hash on both sides, and by scp."""
    source = folder / "large"
    with source.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(2**20))
    keys = {name: asyncssh.generate_private_key("ssh-ed25519") for name in ("host_key", "client_key")}
    for name, key in keys.items():
        (folder / name).write_bytes(key.export_private_key())
        (folder / name).chmod(0o600)
    (folder / "authorized_keys").write_bytes(keys["client_key"].export_public_key())
    with subprocess.Popen(_sshd(folder), stderr=subprocess.DEVNULL) as sshd:
        try:
            endpoint = Endpoint(
                host="127.0.0.1", port=_PORT, user=os.environ.get("USER", "root"), client_key=folder / "client_key",
                host_key=keys["host_key"].export_public_key().decode(),
            )  # fmt: skip
            time.sleep(0.5)
            ours, plain = [], []
            for number in range(rounds):
                ours.append(asyncio.run(_upload(endpoint, source, str(folder / f"ours{number}"))))
                plain.append(_scp(endpoint, source, str(folder / f"scp{number}")))
        finally:
            sshd.terminate()
    fast, slow = statistics.median(ours), statistics.median(plain)
    print(f"\n{mib} MiB to sshd, medians of {rounds} interleaved rounds")
    print(f"  staging (with hashes)   {mib / fast:8.1f} MiB/s")
    print(f"  scp                     {mib / slow:8.1f} MiB/s")
    print(f"  staging / scp           {slow / fast:8.2f}")


_PORT: Final = 42022


def _sshd(folder: Path) -> list[str]:
    Path("/run/sshd").mkdir(exist_ok=True)
    settings = {
        "ListenAddress": "127.0.0.1", "Port": _PORT, "HostKey": folder / "host_key", "PidFile": "none",
        "AuthorizedKeysFile": folder / "authorized_keys", "StrictModes": "no", "UsePAM": "no",
        "PermitRootLogin": "prohibit-password", "Subsystem": "sftp internal-sftp",
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    return ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", *words]


def main() -> None:
    """Run both measurements; prints the reason when this machine cannot run pods."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    mib = int(sys.argv[2]) if len(sys.argv) > 2 else MIB
    if lacking := missing():
        print(f"skipped: {lacking}")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "runpod").mkdir()
        fake = FakeRunPod.start(folder / "runpod")
        try:
            os.environ.update(fake.environment())
            (folder / "home").mkdir(mode=0o700)
            renter = Renter(folder / "home", fake, site_paths())
            renter.configure()
            first_steps(renter, rounds)
        finally:
            fake.stop()
        staging(folder, rounds, mib)


if __name__ == "__main__":
    main()
