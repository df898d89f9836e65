"""Writes to the store: short, atomic `BEGIN IMMEDIATE` transactions."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

import msgspec

from engine.errors import StoreError
from engine.events import Chain
from engine.plan import Plan, dump_plan, plan_digest
from engine.store import chains, ledger, process_locks, readings, requests, states
from engine.store.chains import Tail
from engine.store.connection import translated
from engine.store.failure import MAX_TEXT, Reason
from engine.store.home import database_path
from engine.store.ledger import AllocationFields
from engine.store.opening import open_for_writing
from engine.store.published import search_text
from engine.store.readings import Reading
from engine.store.views import (
    FINAL_RUN_STATES,
    WARNING,
    Check,
    LedgerState,
    Request,
    RequestKind,
)
from engine.system.clock import BootTime
from engine.wire import Event, canonical, parse, utc_now

SegmentKind = Literal["raw", "protected"]


class RunFields(TypedDict, total=False):
    """The fields of a run that become known while it runs."""

    gpu_model: str
    tier: str
    ear_status: str
    reason_codes: Sequence[str]


class SegmentFields(TypedDict, total=False):
    """The fields of a segment that become known. `elapsed_sec`: measured training; `phases` (seconds) are merged."""

    stop_reason: str
    steps: int
    elapsed_sec: float
    last_loss: float | None
    final_loss: float | None
    adapter_sha256: str
    tensor_digest: str
    phases: Mapping[str, float]


class Writer:
    """The only way to write the store; usable from any thread. Every method raises `StoreError` when the store fails.

    An unknown run raises `UsageError` (`run_unknown`).
    """

    def __init__(
        self, home: Path, *, clock: Callable[[], str] = utc_now, boot_clock: Callable[[], BootTime] = BootTime.now
    ) -> None:
        """`clock` gives the times that are shown, `boot_clock` those that decide."""
        self.home = home
        self._path = database_path(home)
        self._clock = clock
        self._boot_clock = boot_clock
        self._lock = threading.RLock()
        self._connection = open_for_writing(home)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; the writer cannot be used afterwards."""
        with self._lock, translated(self._path):
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A block whose writes are one transaction: all are stored, or none when the block fails."""
        with self._transaction():
            yield

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction, or a part of the one that is already open.

        A `durable` one survives a power cut once it has returned, so it cannot be part of another one.
        """
        with self._lock, translated(self._path):
            connection = self._connection
            if connection.in_transaction:
                if durable:
                    raise RuntimeError("a durable write needs its own transaction")
                yield connection
                return
            if durable:
                connection.execute("PRAGMA synchronous = FULL")
            try:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            finally:
                if durable:
                    connection.execute("PRAGMA synchronous = NORMAL")

    def _boot(self) -> str:
        return str(self._boot_clock())

    # Runs

    def create_run(self, run_id: str, plan: Plan) -> None:
        """Add a queued run with its plan and pending segments; raises `StoreError` (`run_exists`)."""
        now = self._clock()
        model = plan.model.name
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM runs WHERE id = ?", (run_id,)).fetchone():
                raise StoreError(f"A run {run_id} already exists.", "Start the run again.", code="run_exists")
            run = db.execute(
                """INSERT INTO runs (id, source, label, preset, provider, model, segments, run_order, state,
                    created_at, target_sec, step_budget, attestation, key_state, runtime_state, cleanup,
                    search)
                VALUES (?, 'mine', ?, ?, ?, ?, ?, ?, 'queued', ?, ?, ?, 'not_requested', 'withheld',
                    'pending', 'active', ?)""",
                (
                    run_id,
                    plan.label,
                    plan.preset,
                    plan.provider.name,
                    model,
                    plan.segments,
                    plan.order if plan.segments == "pair" else None,
                    now,
                    plan.target.seconds,
                    plan.target.steps,
                    search_text(plan.label, run_id, model, plan.provider.name),
                ),
            ).lastrowid
            db.execute(
                "INSERT INTO plans (run, digest, body) VALUES (?, ?, ?)",
                (run, plan_digest(plan), canonical(dump_plan(plan)).decode()),
            )
            for position, kind in enumerate(plan.kinds()):
                db.execute("INSERT INTO segments (run, kind, position) VALUES (?, ?, ?)", (run, kind, position))
                states.note(db, run, f"segment:{kind}", "pending", now, "")
            states.note(db, run, "run", "queued", now, "")

    def describe(self, run_id: str, **fields: Unpack[RunFields]) -> None:
        """Set fields of a run that became known."""
        codes = fields.get("reason_codes")
        with self._transaction() as db:
            run = states.key_of(db, run_id)
            db.execute(
                """UPDATE runs SET gpu_model = ifnull(?, gpu_model), tier = ifnull(?, tier),
                    ear_status = ifnull(?, ear_status), reason_codes = ifnull(?, reason_codes)
                WHERE key = ?""",
                (
                    fields.get("gpu_model"),
                    fields.get("tier"),
                    fields.get("ear_status"),
                    None if codes is None else canonical(list(codes)).decode(),
                    run,
                ),
            )
            row = db.execute("SELECT label, id, model, gpu_model, provider FROM runs WHERE key = ?", (run,)).fetchone()
            db.execute("UPDATE runs SET search = ? WHERE key = ?", (search_text(*row), run))

    def transition(self, run_id: str, subject: str, state: str, reason: Reason = "") -> None:
        """Record a change of state before it is acted upon; the present state with the same reason is ignored.

        `subject`: run, segment:raw, segment:protected, attestation, key, runtime, cleanup. Raises
        `StoreError`: `state_unknown`, or `run_final` for a run that would leave a final state.
        """
        with self._transaction() as db:
            states.move(db, states.key_of(db, run_id), run_id, subject, state, reason, self._clock(), self._boot())

    def warn(self, run_id: str, text: str) -> None:
        """Add a warning to the run's history, once, for the operator to read; no state changes."""
        with self._transaction() as db:
            run, shown = states.key_of(db, run_id), text[:MAX_TEXT]
            known = "SELECT 1 FROM transitions WHERE run = ? AND subject = ? AND reason = ?"
            if db.execute(known, (run, WARNING, shown)).fetchone() is None:
                states.note(db, run, WARNING, "warning", self._clock(), shown)

    def segment(self, run_id: str, kind: SegmentKind, **fields: Unpack[SegmentFields]) -> None:
        """Set fields of a segment that became known."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT key, phases FROM segments WHERE run = ? AND kind = ?",
                (states.key_of(db, run_id), kind),
            ).fetchone()
            if row is None:
                raise StoreError(f"Run {run_id} has no {kind} segment.", "Report this as a bug.", code="store_conflict")
            changes: dict[str, Any] = dict(fields)
            unknown = changes.keys() - SegmentFields.__annotations__.keys()
            if unknown:
                raise StoreError(f"A segment has no {sorted(unknown)}.", "Report this as a bug.", code="store_conflict")
            if "phases" in fields:
                changes["phases"] = canonical({**parse(row["phases"]), **fields["phases"]}).decode()
            if "elapsed_sec" in fields:
                changes["elapsed_ns"] = round(changes.pop("elapsed_sec") * 1e9)
            for name in ("last_loss", "final_loss"):
                if changes.get(name) is not None and not math.isfinite(changes[name]):
                    changes[name] = None
            for name, value in changes.items():
                db.execute(f"UPDATE segments SET {name} = ? WHERE key = ?", (value, row["key"]))  # noqa: S608

    def finish(
        self,
        run_id: str,
        row: Mapping[str, Any],
        checks: Sequence[Check],
        state: Literal["finished", "failed", "cancelled"] = "finished",
        reason: Reason = "",
    ) -> None:
        """Store the row with its checks and end the run; for a run that has already ended only the row is replaced."""
        now = self._clock()
        overhead = row.get("overheadPct")
        if overhead is not None and not math.isfinite(overhead):
            raise StoreError("An overhead must be a finite number.", "Report this as a bug.", code="store_conflict")
        with self._transaction(durable=True) as db:
            run = states.key_of(db, run_id)
            db.execute(
                "INSERT OR REPLACE INTO results (run, at, body, checks) VALUES (?, ?, ?, ?)",
                (
                    run,
                    now,
                    canonical(dict(row)).decode(),
                    canonical(msgspec.to_builtins(list(checks))).decode(),
                ),
            )
            db.execute(
                "UPDATE runs SET overhead_pct = ?, timing_slack_pct = ?, clean = ? WHERE key = ?",
                (overhead, row.get("timingSlackPct"), row.get("clean"), run),
            )
            present = db.execute("SELECT state FROM runs WHERE key = ?", (run,)).fetchone()["state"]
            if present not in FINAL_RUN_STATES:
                states.move(db, run, run_id, "run", state, reason, now, self._boot())

    # Logs

    def tail(self, run_id: str, chain: Chain = "pod") -> Tail:
        """How far a log has been stored: (offset, head, next_seq)."""
        with self._lock, translated(self._path):
            return chains.tail(self._connection, states.key_of(self._connection, run_id), chain)

    def ingest(self, run_id: str, events: Sequence[Event], offset: int) -> int:
        """Store events of the pod's log and the offset after them, exactly once; returns how many were new.

        Replayed events are skipped. Raises `WireError` (`log_chain_broken`, `progress_invalid`) and stores
        nothing.
        """
        with self._transaction() as db:
            return chains.append(db, states.key_of(db, run_id), "pod", events, offset)

    def append_events(self, run_id: str, chain: Chain, events: Sequence[Event]) -> int:
        """Append events to a log, exactly once; returns how many were new.

        Raises `WireError` (`log_chain_broken`).
        """
        with self._transaction() as db:
            return chains.append(db, states.key_of(db, run_id), chain, events)

    def last_reading(self, run_id: str) -> Reading | None:
        """When the allocation's log was last read to its end; None before that."""
        with self._lock, translated(self._path):
            return readings.last(self._connection, states.key_of(self._connection, run_id))

    def keep_reading(self, run_id: str, reading: Reading) -> None:
        """Store when the allocation's log was last read to its end."""
        with self._transaction() as db:
            readings.keep(db, states.key_of(db, run_id), reading)

    # Proofs

    def evidence(self, run_id: str, kind: str, body: Any) -> None:
        """Store a JSON document under its kind (delegation, token, result, ...); a later one replaces it."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO evidence (run, kind, at, body) VALUES (?, ?, ?, ?)",
                (states.key_of(db, run_id), kind, self._clock(), canonical(body).decode()),
            )

    def receipt(self, run_id: str, kind: str, envelope: Mapping[str, Any], *, replace: bool = False) -> None:
        """Store a signed receipt; it is on the disk when this returns. Storing the same one again changes nothing.

        Raises `StoreError` (`receipt_exists`) for a different one of the kind, unless `replace`: a run receipt is
        signed again when a kept allocation is released.
        """
        body = canonical(dict(envelope)).decode()
        with self._transaction(durable=True) as db:
            run = states.key_of(db, run_id)
            row = db.execute("SELECT body FROM receipts WHERE run = ? AND kind = ?", (run, kind)).fetchone()
            if row is not None and row["body"] == body:
                return
            if row is not None and not replace:
                raise StoreError(
                    f"Run {run_id} already has a different {kind} receipt.",
                    "A receipt is created only once. Report this as a bug.",
                    code="receipt_exists",
                )
            db.execute(
                "INSERT OR REPLACE INTO receipts (run, kind, at, body) VALUES (?, ?, ?, ?)",
                (run, kind, self._clock(), body),
            )

    # Locks

    def claim_runner(self, run_id: str, pid: int | None = None, start_time: int | None = None) -> None:
        """Make a process (default: this one) the run's only runner; raises `StoreError` (`run_locked`)."""
        with self._transaction() as db:
            states.key_of(db, run_id)
            holder = process_locks.claim(db, f"run:{run_id}", self._clock(), pid, start_time)
        if holder is not None:
            raise StoreError(
                f"Process {holder} is already running run {run_id}.",
                f"Follow it with `glasshouse watch {run_id}`.",
                code="run_locked",
            )

    def release_runner(self, run_id: str, pid: int | None = None) -> None:
        """Release the runner's lock, if this process holds it."""
        with self._transaction() as db:
            process_locks.release(db, f"run:{run_id}", pid)

    def claim_allocation(self, name: str, pid: int | None = None, start_time: int | None = None) -> bool:
        """Lock a machine that one run at a time may use; False while another running process holds the lock."""
        with self._transaction() as db:
            return process_locks.claim(db, f"allocation:{name}", self._clock(), pid, start_time) is None

    def release_allocation(self, name: str, pid: int | None = None) -> None:
        """Release a machine's lock, if this process holds it."""
        with self._transaction() as db:
            process_locks.release(db, f"allocation:{name}", pid)

    # The ledger

    def allocation_intent(
        self,
        allocation_id: str,
        provider: str,
        name: str,
        run_id: str | None,
        **fields: Unpack[AllocationFields],
    ) -> None:
        """Record an allocation before it is requested from the provider; it is on the disk when this returns.

        `allocation_id` is the ledger's, `name` the unique name at the provider.
        """
        with self._transaction(durable=True) as db:
            run = None if run_id is None else states.key_of(db, run_id)
            ledger.intend(db, allocation_id, provider, name, run, self._clock(), self._boot(), fields)

    def allocation_state(
        self,
        allocation_id: str,
        state: LedgerState,
        reason: Reason = "",
        *,
        only_from: LedgerState | None = None,
        **fields: Unpack[AllocationFields],
    ) -> None:
        """Record an allocation's next state; it is on the disk when this returns.

        Raises `StoreError` (`ledger_move`) for a state that cannot follow, or when the present one is not `only_from`.
        """
        with self._transaction(durable=True) as db:
            ledger.move(db, allocation_id, state, reason, self._clock(), self._boot(), fields, only_from)

    def take_up(self, allocation_id: str, run_id: str) -> None:
        """Assign a kept allocation to another run; raises `StoreError` (`allocation_in_use`) if it is not kept."""
        with self._transaction(durable=True) as db:
            ledger.take_up(db, allocation_id, states.key_of(db, run_id), self._clock(), self._boot())

    def allocation_known(self, allocation_id: str, **fields: Unpack[AllocationFields]) -> None:
        """Add what became known of an allocation; its state stays."""
        with self._transaction() as db:
            ledger.add(db, allocation_id, fields)

    # Requests and settings

    def request(self, run_id: str | None, kind: RequestKind, detail: Mapping[str, Any] | None = None) -> int:
        """Add a request to the runner; returns its id, or that of an equal open one.

        Raises `StoreError` (`run_final`) for cancelling a run that has ended.
        """
        with self._transaction() as db:
            return requests.make(db, run_id, kind, detail or {}, self._clock())

    def pending_requests(self, run_id: str | None) -> list[Request]:
        """Open requests to a run's runner (None: those without a run), oldest first."""
        with self._lock, translated(self._path):
            return requests.pending(self._connection, run_id)

    def complete_request(self, request_id: int, outcome: str = "done") -> None:
        """Mark a request as done; the first outcome is kept."""
        with self._transaction() as db:
            requests.complete(db, request_id, outcome, self._clock())

    def set_setting(self, name: str, value: str | None) -> None:
        """Store a setting of console or command line; None removes it."""
        with self._transaction() as db:
            if value is None:
                db.execute("DELETE FROM settings WHERE name = ?", (name,))
            else:
                db.execute("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (name, value))
