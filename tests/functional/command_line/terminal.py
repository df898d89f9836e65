"""The installed command at a terminal that asks."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time


def at_a_terminal(command: list[str], question: str, answer: str | signal.Signals) -> tuple[int, str]:
    """A command on a terminal of its own that is asked one thing; its exit code and what it showed.

    `answer` is typed, or is a signal that arrives while the question stands, as Ctrl-C sends it.
    """
    ours, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment, close_fds=True) as process:
        os.close(its)
        shown, answered = b"", False
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            ready, _, _ = select.select([ours], [], [], 1.0)
            if ready:
                try:
                    part = os.read(ours, 65536)
                except OSError:  # the other side has closed
                    break
                if not part:
                    break
                shown += part
            if not answered and question.encode() in shown:
                if isinstance(answer, str):
                    os.write(ours, answer.encode())
                else:
                    process.send_signal(answer)
                answered = True
            if not ready and process.poll() is not None:
                break
        if time.monotonic() >= deadline:
            process.kill()
        code = process.wait()
    os.close(ours)
    return code, shown.decode(errors="replace")
