"""The allocations ledger: every state is committed before the provider's call that it announces."""

from __future__ import annotations

import sqlite3
from typing import Any, Final, TypedDict, TypeVar, get_args

import msgspec

from engine.errors import StoreError, UsageError
from engine.store.deadline import Deadline, Listed, Recheck
from engine.store.failure import Reason, failure_of, packed, read_failure, reason_text
from engine.store.views import AllocationView, CleanupState, LedgerState
from engine.system.clock import BootTime
from engine.wire import canonical, parse

_MOVES: Final[dict[str, tuple[str, ...]]] = {
    "intent": ("created", "releasing", "gone", "leaked"),
    "created": ("ready", "releasing", "gone", "leaked", "kept", "not_ours"),
    "ready": ("releasing", "gone", "leaked", "kept", "not_ours"),
    "kept": ("ready", "releasing", "gone", "leaked", "not_ours"),
    "releasing": ("gone", "leaked", "not_ours"),
    "leaked": ("releasing", "gone", "not_ours"),
    "gone": ("leaked",),  # a provider may list an allocation again that two of its listings lacked
    "not_ours": (),
}
_SHOWN: Final[dict[str, CleanupState]] = {
    "intent": "active", "created": "active", "ready": "active", "kept": "kept", "releasing": "terminating",
    "gone": "gone", "leaked": "leaked", "not_ours": "not_ours",
}  # fmt: skip
_RELEASED: Final = ("gone", "not_ours")
Part = TypeVar("Part")


class AllocationFields(TypedDict, total=False):
    """The fields of an allocation that become known over time. Prices in USD.

    `lease`: as the provider returned it. `deadline`: when it is terminated even if in use; the first value of a boot
    stays. `intended_until`: the same for an allocation that was requested and has no lease yet. `keep_until` None: not
    kept. `listed`: its age as the provider stated it last. `recheck`: the looks for it after its end.
    """

    provider_id: str
    gpu_model: str
    price_per_hour: float
    spent: float
    lease: dict[str, Any]
    deadline: Deadline
    keep_until: Deadline | None
    intended_until: Deadline
    listed: Listed
    recheck: Recheck


_IN_DETAIL: Final = {
    "lease": "lease", "deadline": "deadline", "keep_until": "keepUntil", "intended_until": "askedUntil",
    "listed": "listed", "recheck": "recheck",
}  # fmt: skip
"""Names of these fields in the column `detail`, which homes of every version share."""


def intend(
    connection: sqlite3.Connection,
    allocation_id: str,
    provider: str,
    name: str,
    run: int | None,
    at: str,
    boot: str,
    fields: AllocationFields,
) -> None:
    """Add an allocation that is about to be requested; `boot`: now, a `BootTime`."""
    connection.execute(
        """INSERT INTO allocations (id, provider, name, state, created_at, created_boot, run)
        VALUES (?, ?, ?, 'intent', ?, ?, ?)""",
        (allocation_id, provider, name, at, boot, run),
    )
    if run is not None:
        _add_run(connection, allocation_id, run, at, boot)
    _record(connection, allocation_id, "intent", at, "")
    _set(connection, allocation_id, fields)


def move(
    connection: sqlite3.Connection,
    allocation_id: str,
    state: LedgerState,
    why: Reason,
    at: str,
    boot: str,
    fields: AllocationFields,
    only_from: LedgerState | None = None,
) -> None:
    """Record the next state, or the present one again; raises `StoreError` (`ledger_move`) for any other.

    `only_from`: the state that the caller has read; refused as well if the entry has changed since.
    """
    row = connection.execute("SELECT state, reason FROM allocations WHERE id = ?", (allocation_id,)).fetchone()
    if row is None:
        raise UsageError(
            f"There is no allocation {allocation_id}.",
            "List them with `glasshouse allocations`.",
            code="allocation_unknown",
        )
    unchanged = only_from is None or row["state"] in (only_from, state)
    if (
        not unchanged
        or state not in get_args(LedgerState)
        or (state != row["state"] and state not in _MOVES[row["state"]])
    ):
        raise StoreError(
            f"Allocation {allocation_id} cannot change from {row['state']} to {state}.",
            "Report this as a bug, with the log file.",
            code="ledger_move",
        )
    reason, error = reason_text(why), packed(why)
    if (state, reason) != (row["state"], row["reason"]):
        connection.execute(
            """UPDATE allocations SET state = :state, reason = :reason, error = :error,
                released_at = iif(:over, :at, NULL), released_boot = iif(:over, :boot, NULL),
                spent = iif(:returned, NULL, spent) WHERE id = :id""",
            {
                "state": state,
                "reason": reason,
                "error": error,
                "over": state in _RELEASED,
                "returned": row["state"] in _RELEASED and state not in _RELEASED,
                "at": at,
                "boot": boot,
                "id": allocation_id,
            },
        )
        _record(connection, allocation_id, state, at, why)
    _set(connection, allocation_id, fields)


def take_up(connection: sqlite3.Connection, allocation_id: str, run: int, at: str, boot: str) -> None:
    """Assign a kept allocation to another run; raises `StoreError` (`allocation_in_use`) if it is not kept."""
    row = connection.execute("SELECT state, run FROM allocations WHERE id = ?", (allocation_id,)).fetchone()
    if row is not None and row["state"] != "kept" and row["run"] == run:
        return
    if row is None or row["state"] != "kept":
        raise StoreError(
            f"Allocation {allocation_id} is not available: it is not being kept.",
            "Choose a kept one from `glasshouse allocations`.",
            code="allocation_in_use",
        )
    connection.execute("UPDATE allocations SET run = ? WHERE id = ?", (run, allocation_id))
    _add_run(connection, allocation_id, run, at, boot)
    move(connection, allocation_id, "ready", "taken up by another run", at, boot, AllocationFields(keep_until=None))


def add(connection: sqlite3.Connection, allocation_id: str, fields: AllocationFields) -> None:
    """Add fields that became known; an unknown allocation is ignored."""
    if connection.execute("SELECT 1 FROM allocations WHERE id = ?", (allocation_id,)).fetchone() is not None:
        _set(connection, allocation_id, fields)


def held_seconds(connection: sqlite3.Connection, allocation_id: str, run: int) -> float | None:
    """How long a run had an allocation: until its end, or until now. None if no clock can tell."""
    row = connection.execute(
        """SELECT allocations.*, allocation_runs.boot AS held_boot,
            (SELECT count(*) FROM allocation_runs WHERE allocation = allocations.id) AS runs
        FROM allocations JOIN allocation_runs ON allocation = allocations.id
        WHERE allocations.id = ? AND allocation_runs.run = ?""",
        (allocation_id, run),
    ).fetchone()
    if row is None:
        return None
    # The provider's age is that of the allocation: it is the run's only where no other run used it.
    listed = _part(dict(parse(row["detail"])), "listed", Listed) if row["runs"] == 1 else None
    return _seconds(row["held_boot"], listed, _end(row))


def served(connection: sqlite3.Connection, allocation_id: str) -> list[str]:
    """The ids of the runs that used an allocation, oldest first."""
    rows = connection.execute(
        """SELECT runs.id FROM allocation_runs JOIN runs ON runs.key = allocation_runs.run
        WHERE allocation = ? ORDER BY allocation_runs.at, runs.key""",
        (allocation_id,),
    )
    return [row["id"] for row in rows]


def _add_run(connection: sqlite3.Connection, allocation_id: str, run: int, at: str, boot: str) -> None:
    connection.execute(
        "INSERT OR IGNORE INTO allocation_runs (allocation, run, at, boot) VALUES (?, ?, ?, ?)",
        (allocation_id, run, at, boot),
    )


def _record(connection: sqlite3.Connection, allocation_id: str, state: str, at: str, why: Reason) -> None:
    connection.execute(
        "INSERT INTO allocation_moves (allocation, state, at, reason, error) VALUES (?, ?, ?, ?, ?)",
        (allocation_id, state, at, reason_text(why), packed(why)),
    )


def _set(connection: sqlite3.Connection, allocation_id: str, fields: AllocationFields) -> None:
    """Merge new fields, inside the transaction: two processes may each add different ones."""
    stored = connection.execute("SELECT detail, keep_until FROM allocations WHERE id = ?", (allocation_id,)).fetchone()
    detail = dict(parse(stored["detail"]))
    if stored["keep_until"] is None:  # taken up by a version that cleared the column alone
        detail.pop("keepUntil", None)
    for name, key in _IN_DETAIL.items():
        if name in fields and not (name == "deadline" and _stays(detail.get(key), fields.get("deadline"))):
            detail[key] = msgspec.to_builtins(fields[name])  # type: ignore[literal-required]
    connection.execute(
        """UPDATE allocations SET provider_id = ifnull(?, provider_id), gpu_model = ifnull(?, gpu_model),
            price_per_hour = ifnull(?, price_per_hour), spent = ifnull(?, spent), detail = ?,
            deadline = ?, keep_until = ?
        WHERE id = ?""",
        (
            fields.get("provider_id"),
            fields.get("gpu_model"),
            fields.get("price_per_hour"),
            fields.get("spent"),
            canonical(detail).decode(),
            _utc(detail, "deadline"),
            _utc(detail, "keepUntil"),
            allocation_id,
        ),
    )


def _utc(detail: dict[str, Any], key: str) -> str | None:
    moment = _moment(detail, key, None)
    return None if moment is None else moment.utc


def _stays(stored: object, new: Deadline | None) -> bool:
    """Whether a stored deadline stays: its moment in this boot is known, or the new one's is not either."""
    if stored is None or new is None:
        return stored is not None
    earlier = _part({"deadline": stored}, "deadline", Deadline)
    return earlier is None or earlier.left() is not None or new.left() is None


def _part(detail: dict[str, Any], key: str, kind: type[Part]) -> Part | None:
    """A record from `detail`, None if it is missing or not valid."""
    try:
        return msgspec.convert(detail.get(key), kind)
    except msgspec.ValidationError:
        return None


def _moment(detail: dict[str, Any], key: str, column: str | None) -> Deadline | None:
    """A deadline from `detail`; from the column's UTC if `detail` has no valid one."""
    moment = _part(detail, key, Deadline)
    return Deadline(utc=column) if moment is None and column is not None else moment


def one(connection: sqlite3.Connection, allocation_id: str) -> AllocationView | None:
    """One entry, or None if no entry has this id."""
    return next(iter(_read(connection, "WHERE allocations.id = ?", (allocation_id,))), None)


def of_run(connection: sqlite3.Connection, run: int) -> AllocationView | None:
    """The run's present entry, or else its newest one that another run has since taken up."""
    return next(
        iter(
            _read(
                connection,
                """WHERE allocations.run = :run OR EXISTS (
                    SELECT 1 FROM allocation_runs WHERE allocation = allocations.id AND allocation_runs.run = :run)""",
                {"run": run},
                order="allocations.run IS NOT :run,",
            )
        ),
        None,
    )


def read(connection: sqlite3.Connection, *, open_only: bool = False) -> list[AllocationView]:
    """The ledger, newest first."""
    return _read(connection, "WHERE allocations.released_at IS NULL" if open_only else "")


def looked_for(connection: sqlite3.Connection) -> list[AllocationView]:
    """What is gone and looked for again, newest first. Every command asks, and the sentinel at each look."""
    return _read(connection, "WHERE allocations.state = 'gone' AND json_extract(detail, '$.recheck.over') = 0")


def _read(
    connection: sqlite3.Connection, where: str, parameters: tuple[object, ...] | dict[str, object] = (), order: str = ""
) -> list[AllocationView]:
    """Entries, newest first. The cost of an entry without a final one is computed from its age by the boot clock."""
    rows = connection.execute(
        f"""SELECT allocations.*, runs.id AS run_id, runs.state AS run_state
        FROM allocations LEFT JOIN runs ON runs.key = allocations.run
        {where}
        ORDER BY {order} allocations.created_at DESC, allocations.id DESC""",  # noqa: S608  both texts are constants of this module
        parameters,
    ).fetchall()
    return [_view(row) for row in rows]


def _view(row: sqlite3.Row) -> AllocationView:
    detail = dict(parse(row["detail"]))
    lease, listed = detail.get("lease"), _part(detail, "listed", Listed)
    age, price = _seconds(row["created_boot"], listed, _end(row)), row["price_per_hour"]
    by_age = None if age is None or price is None else round(float(price) * age / 3600, 6)
    return AllocationView(
        id=row["id"],
        provider=row["provider"],
        name=row["name"],
        provider_id=row["provider_id"],
        gpu_model=row["gpu_model"],
        state=_SHOWN[row["state"]],
        ledger_state=row["state"],
        reason=row["reason"],
        error=read_failure(row) or (failure_of(row["reason"]) if row["state"] == "leaked" else None),
        created_at=row["created_at"],
        released_at=row["released_at"],
        price_per_hour=row["price_per_hour"],
        spent=row["spent"] if row["spent"] is not None else by_age,
        run_id=row["run_id"],
        run_state=row["run_state"],
        lease=lease if isinstance(lease, dict) else None,
        deadline=_moment(detail, "deadline", row["deadline"]),
        keep_until=_moment(detail, "keepUntil", row["keep_until"]) if row["keep_until"] else None,
        intended_until=_moment(detail, "askedUntil", None),
        age_sec=age,
        listed=listed,
        recheck=_part(detail, "recheck", Recheck),
    )


def _end(row: sqlite3.Row) -> BootTime | None:
    """The end of an allocation, or now if it has not ended; None if it ended before such times were kept."""
    return BootTime.read(row["released_boot"]) if row["released_at"] else BootTime.now()


def _seconds(began: str | None, listed: Listed | None, end: BootTime | None) -> float | None:
    """Seconds from `began` to `end` by our clock, or, after a restart of this machine, the age that was claimed."""
    start = BootTime.read(began)
    if end is None:
        return None
    ours = None if start is None else start.until(end)
    return ours if ours is not None or listed is None else listed.age_at(end)
