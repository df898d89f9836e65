"""Follow a run through the store until it ends, and handle Ctrl-C meanwhile."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Final, Self

from engine.errors import GlasshouseError, RunError, StoreError
from engine.store.views import FINAL_RUN_STATES, RunView
from glasshouse_tui.commands.base import Session
from glasshouse_tui.commands.failures import INTERRUPTED
from glasshouse_tui.commands.output import as_builtins, emit_json, emit_text, failures_document
from glasshouse_tui.commands.progress import Progress
from glasshouse_tui.commands.row_text import row_text

POLL_SECONDS: Final = 0.1
REREAD_SECONDS: Final = 1.0
ORPHAN_GRACE_SECONDS: Final = 5.0
STARTING_GRACE_SECONDS: Final = 30.0
SAME_SIGNAL_SECONDS: Final = 0.3

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_NOT_CLEAN: Final = 3


class Interrupts:
    """A context in which SIGINT and SIGTERM are counted and do not end the process.

    Signals that arrive together (if both a shell and a wrapper forward Ctrl-C) count once. While `starting` is set,
    the second one raises `KeyboardInterrupt`, so that a long start can be aborted.
    """

    def __init__(self) -> None:
        self.count = 0
        self.starting = False
        self._last = -SAME_SIGNAL_SECONDS
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last >= SAME_SIGNAL_SECONDS:
            self.count += 1
            self._last = now
        if self.starting and self.count > 1:
            raise KeyboardInterrupt


def exit_code(view: RunView) -> int:
    """The exit code for a final run."""
    if view.summary.state == "cancelled":
        return INTERRUPTED
    if view.summary.state != "finished":
        return EXIT_FAILED
    return EXIT_DONE if view.summary.clean else EXIT_NOT_CLEAN


def row_of(view: RunView) -> dict[str, Any]:
    """The recorded row of a final run; for an unfinished one, the fields known so far."""
    if view.row is not None:
        return view.row
    from engine.records.row import live_row

    return live_row(view)


def print_row(session: Session, view: RunView) -> None:
    """Print the row to stdout, as text or as JSON; there with `error` {code, message, hint, cause} if the run failed,
    and with `failures` if something else did, such as wipe or clean-up.

    The row itself is published, with the code alone.
    """
    row, error = row_of(view), view.summary.error
    if not session.json:
        emit_text(row_text(view, row))
        return
    told: dict[str, Any] = {}
    if error is not None and view.summary.state != "cancelled":
        told["error"] = as_builtins(error)
    if view.failures:
        told["failures"] = failures_document(view)
    emit_json({**row, **told})


def start_and_follow(session: Session, start: Callable[[], str]) -> int:
    """Start a run, follow it and print its row; Ctrl-C cancels it and waits for its clean-up. Returns the exit code."""
    with Interrupts() as interrupts:
        interrupts.starting = True
        run_id = start()
        interrupts.starting = False
        return _follow(session, run_id, interrupts, cancels=True)


def watch_run(session: Session, run_id: str) -> int:
    """Follow a run and print its row; Ctrl-C only stops watching. Returns the exit code."""
    with Interrupts() as interrupts:
        return _follow(session, run_id, interrupts, cancels=False)


def _follow(session: Session, run_id: str, interrupts: Interrupts, *, cancels: bool) -> int:
    progress = Progress(sys.stderr)
    progress.say(f"run {run_id}")
    try:
        view = _until_final(session, run_id, interrupts, progress, cancels=cancels)
    finally:
        progress.close()
    print_row(session, view)
    return INTERRUPTED if interrupts.count else exit_code(view)


def _until_final(
    session: Session, run_id: str, interrupts: Interrupts, progress: Progress, *, cancels: bool
) -> RunView:
    """The last view: the final one, or the one at the interrupt; raises `RunError` if the runner is gone."""
    requested = False
    orphaned_since: float | None = None
    for view in _views(session, run_id):
        progress.show(view)
        if view.summary.state in FINAL_RUN_STATES:
            break
        if interrupts.count and not cancels:
            progress.say(f"No longer watching; the run continues. `glasshouse cancel {run_id}` cancels it.")
            break
        if interrupts.count and not requested:
            _request_cancel(session, run_id)
            progress.say(
                "Cancelling: waiting for the run to zeroize and clean up. "
                "Ctrl-C again stops the waiting, not the clean-up."
            )
            requested = True
        if interrupts.count > 1:
            progress.say(f"No longer waiting; the clean-up continues. `glasshouse watch {run_id}` follows it.")
            break
        now = time.monotonic()
        orphaned_since = (orphaned_since or now) if view.summary.orphaned else None
        grace = STARTING_GRACE_SECONDS if view.summary.state == "queued" else ORPHAN_GRACE_SECONDS
        if orphaned_since is not None and now - orphaned_since >= grace:
            raise _runner_gone(session, view)
    return view


def _runner_gone(session: Session, view: RunView) -> GlasshouseError:
    if not session.reader().exists():
        from engine.runner.lost import last_words_path

        return StoreError(
            f"The home {session.home} was removed while run {view.summary.id} used it.",
            f"What became of the run and of what it rented is in {last_words_path()}.",
            code="home_gone",
        )
    run_id = view.summary.id
    log = session.home / "logs" / f"runner-{run_id}.log"
    hint = f"`glasshouse resume {run_id}` continues it, `glasshouse cancel {run_id}` cancels it."
    warnings = view.warnings
    last = f" {warnings[-1].reason}" if warnings else ""
    return RunError(
        f"Run {run_id} has lost its runner: the process ended before the run did.{last}",
        f"{hint}\nThe last output of the runner is in {log}." if log.exists() else hint,
        code="runner_gone",
    )


def _views(session: Session, run_id: str) -> Iterator[RunView]:
    """The run's view at every poll, reread when the store has changed or a second has passed."""
    reader = session.reader()
    version, read_at = reader.data_version(), time.monotonic()
    view = reader.run(run_id)
    while True:
        yield view
        time.sleep(POLL_SECONDS)
        newest, now = reader.data_version(), time.monotonic()
        if newest != version or now - read_at >= REREAD_SECONDS:
            version, read_at = newest, now
            view = reader.run(run_id)


def _request_cancel(session: Session, run_id: str) -> None:
    try:
        with session.writer() as writer:
            writer.request(run_id, "cancel")
    except GlasshouseError as error:
        raise type(error)(
            f"The run continues, because the request to cancel it could not be written: {error.message}",
            f"{error.hint} Then run `glasshouse cancel {run_id}`.".strip(),
            code=error.code,
        ) from error
