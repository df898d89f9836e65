"""The dead-man's switch on a pod: terminates the pod when its time is up or the heartbeat has stopped.

Runs on the pod with the standard library alone, started before sshd: `python3 -I FILE SECONDS SILENCE HEARTBEAT STATE`,
with the pod's API key on stdin, so that it is in no environment that a login could read. Both limits are in seconds of
the boot clock, which steps of the wall clock do not affect. It requests termination from RunPod, or else a stop, until
the pod is gone; after `TRIES` rounds it also kills every process of the pod, and with them its container. STATE keeps
the deadline, so that a restarted container does not get a new one.
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
    """Seconds since the machine booted, including time asleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def deadline(state: str, seconds: float) -> float:
    """When the pod's time is up: as an earlier start in this boot recorded it, else `seconds` from now."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
        boot = file.read().strip()
    try:
        with open(state, encoding="ascii") as file:  # noqa: PTH123
            recorded_boot, recorded = file.read().split()
        if recorded_boot == boot:
            return min(float(recorded), now() + seconds)
    except (OSError, ValueError):
        pass
    until = now() + seconds
    with open(state, "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(f"{boot} {until}\n")
    return until


def version(path: str) -> tuple[int, int]:
    """A value that changes with every heartbeat; zeros before the first."""
    try:
        stat = os.stat(path)  # noqa: PTH116
    except OSError:
        return (0, 0)
    return (stat.st_mtime_ns, stat.st_ino)


def wait(until: float, silence: float, heartbeat: str) -> str:
    """Return the reason for termination once there is one."""
    last, last_change = version(heartbeat), now()
    pause = min(5.0, silence / 10)
    while True:
        left = until - now()
        if left <= 0:
            return "its time is up"
        if (latest := version(heartbeat)) != last:
            last, last_change = latest, now()
        if now() - last_change > silence:
            return "its heartbeat has stopped"
        time.sleep(min(pause, left))


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Never follows a redirect: the key is sent to RunPod and nowhere else."""

    def redirect_request(self, *_args: object) -> None:
        """Return None: urllib then treats the redirect as an error."""


def on_alarm(*_: object) -> None:
    """The signal handler for a request that takes too long."""
    raise TimeoutError


def send(url: str, key: str, method: str, body: bytes | None) -> bool:
    """Send one request; True when RunPod accepted it. It returns whatever a server answers, and however slowly."""
    request = urllib.request.Request(url, data=body, method=method)  # noqa: S310
    request.add_header("Authorization", f"Bearer {key}")
    request.add_header("User-Agent", "glasshouse-deadman")
    if body is not None:
        request.add_header("Content-Type", "application/json")
    # A proxy in the image's environment must not come between the switch and RunPod.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect())
    signal.signal(signal.SIGALRM, on_alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, TIMEOUT)  # the timeout below restarts with every byte
        with opener.open(request, timeout=TIMEOUT) as reply:
            answer = reply.read(65536)
        return method == "DELETE" or not json.loads(answer).get("errors")
    except Exception:  # a malformed answer can raise almost anything; the switch must survive it
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def terminate(base: str, key: str, pod: str) -> None:
    """Request termination, or else a stop; if neither is accepted, the next round tries again."""
    terminate_query = f'mutation {{ podTerminate(input: {{ podId: "{pod}" }}) }}'
    stop_query = f'mutation {{ podStop(input: {{ podId: "{pod}" }}) {{ id desiredStatus }} }}'
    if send(f"{base}/v2/pods/{pod}", key, "DELETE", None):
        return
    for query in (terminate_query, stop_query):
        if send(f"{base}/graphql", key, "POST", json.dumps({"query": query}).encode()):
            return


def kill_all() -> None:
    """Kill every process, PID 1 last: if it ignores signals, it still exits once the children it waits for are gone."""
    for pid, number in ((-1, signal.SIGTERM), (-1, signal.SIGKILL), (1, signal.SIGTERM), (1, signal.SIGKILL)):
        with contextlib.suppress(OSError):
            os.kill(pid, number)
        time.sleep(2.0)


def main() -> None:
    """Fix the deadline, return to the caller by forking, and wait in the child."""
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
    reason = wait(until, silence, heartbeat)
    with contextlib.suppress(OSError):
        os.write(1, f"The dead-man's switch terminates this pod: {reason}.\n".encode())
    tries, pause = 0, 1.0
    while True:
        if key and pod:
            with contextlib.suppress(OSError):  # the alarm may fire just after the request
                terminate(base, key, pod)
        time.sleep(pause)
        tries, pause = tries + 1, min(2 * pause, MOST_PAUSE)
        if pod and (tries >= TRIES or not key):
            kill_all()


if __name__ == "__main__":
    main()
