"""The dead-man's switch on a pod: ends the pod when its time is over or nobody's heartbeat comes any more.

Runs on the pod with the standard library alone, started before sshd: `python3 -I FILE SECONDS SILENCE HEARTBEAT STATE`,
with the pod's API key on stdin, so that no environment that a login could read holds it. Both limits are in seconds of
a clock that no step of the wall clock moves. It asks RunPod to terminate the pod, else to stop it, again and again;
after `TRIES` rounds it ends every process of the pod, and so its container. STATE keeps the deadline, so that a
restarted container does not gain a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import urllib.request

TRIES = 20
MOST_PAUSE = 60.0
TIMEOUT = 30.0


def now() -> float:
    """Seconds since the machine booted, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def deadline(state: str, seconds: float) -> float:
    """When the pod's time is over: what an earlier start of this boot wrote down, else `seconds` from now."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
        boot = file.read().strip()
    try:
        with open(state, encoding="ascii") as file:  # noqa: PTH123
            kept_boot, kept = file.read().split()
        if kept_boot == boot:
            return min(float(kept), now() + seconds)
    except (OSError, ValueError):
        pass
    until = now() + seconds
    with open(state, "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(f"{boot} {until}\n")
    return until


def changed(path: str) -> tuple[int, int]:
    """What tells one heartbeat from the next; zeros before the first."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_ino)


def wait(until: float, silence: float, heartbeat: str) -> str:
    """Return why the pod is to end, when it is."""
    seen, heard = changed(heartbeat), now()
    pause = min(5.0, silence / 10)
    while True:
        left = until - now()
        if left <= 0:
            return "its time is over"
        if (latest := changed(heartbeat)) != seen:
            seen, heard = latest, now()
        if now() - heard > silence:
            return "no heartbeat came any more"
        time.sleep(min(pause, left))


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to RunPod and nowhere else."""

    def redirect_request(self, *_args: object) -> None:
        """None: the answer is then an error."""


def late(*_: object) -> None:
    """The alarm of a request that takes too long."""
    raise TimeoutError


def ask(url: str, key: str, method: str, body: bytes | None) -> bool:
    """One request; True when RunPod took it. Whatever a server answers, and however slowly, this returns."""
    request = urllib.request.Request(url, data=body, method=method)  # noqa: S310
    request.add_header("Authorization", f"Bearer {key}")
    request.add_header("User-Agent", "glasshouse-deadman")
    if body is not None:
        request.add_header("Content-Type", "application/json")
    # No proxy of the image's environment stands between the switch and RunPod.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect())
    signal.signal(signal.SIGALRM, late)
    try:
        signal.setitimer(signal.ITIMER_REAL, TIMEOUT)  # the timeout below starts anew with every byte
        with opener.open(request, timeout=TIMEOUT) as reply:
            answer = reply.read(65536)
        return method == "DELETE" or not json.loads(answer).get("errors")
    except Exception:  # an answer that is no HTTP or no JSON raises nearly anything; the switch outlives it
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def end(base: str, key: str, pod: str) -> None:
    """Terminate the pod, else stop it; where neither is taken, the next attempt may do it."""
    terminate = f'mutation {{ podTerminate(input: {{ podId: "{pod}" }}) }}'
    stop = f'mutation {{ podStop(input: {{ podId: "{pod}" }}) {{ id desiredStatus }} }}'
    if ask(f"{base}/v2/pods/{pod}", key, "DELETE", None):
        return
    for query in (terminate, stop):
        if ask(f"{base}/graphql", key, "POST", json.dumps({"query": query}).encode()):
            return


def kill_all() -> None:
    """End every process, PID 1 last: one that ignores signals ends when what it waits for is gone."""
    for pid, number in ((-1, signal.SIGTERM), (-1, signal.SIGKILL), (1, signal.SIGTERM), (1, signal.SIGKILL)):
        with contextlib.suppress(OSError):
            os.kill(pid, number)
        time.sleep(2.0)


def main() -> None:
    """Settle the deadline, let whoever started this go on, and wait."""
    seconds, silence, heartbeat, state = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]
    key = sys.stdin.readline().strip()
    pod = os.environ.get("RUNPOD_POD_ID", "")
    base = os.environ.get("RUNPOD_API_BASE_URL", "") or "https://api.runpod.io"
    until = deadline(state, seconds)
    if os.fork():
        os._exit(0)
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    why = wait(until, silence, heartbeat)
    with contextlib.suppress(OSError):
        os.write(1, f"The dead-man's switch ends this pod: {why}.\n".encode())
    tries, pause = 0, 1.0
    while True:
        if key and pod:
            with contextlib.suppress(OSError):  # an alarm at the last moment
                end(base, key, pod)
        time.sleep(pause)
        tries, pause = tries + 1, min(2 * pause, MOST_PAUSE)
        if pod and (tries >= TRIES or not key):
            kill_all()


if __name__ == "__main__":
    main()
