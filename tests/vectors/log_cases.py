"""Vectors about event logs: lines dropped, moved, edited, forged, endless."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from engine.wire import LOG, TRAIN_FINISHED, ChainWriter, committed, digest_of, to_line
from tests.vectors.case import Case
from tests.vectors.honest import RUN, TIME


def lines(run_id: str = RUN, count: int = 5) -> list[bytes]:
    """An honest log."""
    writer = ChainWriter(run_id)
    return [to_line(writer.append(LOG, {"n": n, "text": "step"}, ts=TIME)) for n in range(count)]


def _case(name: str, what: str, *codes: str, log: Sequence[bytes], accepted: int, pad: int = 0) -> Case:
    given = {"run_id": RUN, "accepted": accepted, **({"pad": pad} if pad else {})}
    return Case(
        name=name,
        kind="log",
        what=what,
        given=given,
        files={"events.jsonl": b"".join(log)},
        stage="log" if codes else "",
        codes=codes,
    )


def _rehashed(line: bytes, **changes: object) -> bytes:
    """The line with other fields and a hash that fits them."""
    fields = {**json.loads(line), **changes}
    covered = fields | {"body": committed(fields["event"], fields["body"])}
    fields["hash"] = digest_of({name: value for name, value in covered.items() if name != "hash"})
    return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def cases() -> Iterator[Case]:
    """Every vector about logs."""
    log = lines()
    broken, wrong = "log_chain_broken", "log_hash_wrong"
    yield _case("00-honest-log", "A whole log.", log=log, accepted=5)
    yield _case("24-line-dropped", "A line is dropped.", broken, log=[*log[:2], *log[3:]], accepted=2)
    yield _case("24-first-line-dropped", "The first line is dropped.", broken, log=log[1:], accepted=0)
    yield _case("24-lines-reordered", "Two lines are swapped.", broken, log=[log[0], log[2], log[1]], accepted=1)
    yield _case("24-line-doubled", "A line is repeated.", broken, log=[*log[:2], log[1]], accepted=2)
    yield _case(
        "24-body-edited",
        "A body is edited.",
        wrong,
        log=[*log[:2], log[2].replace(b"step", b"stop"), *log[3:]],
        accepted=2,
    )
    yield _case("24-time-edited", "A time is edited.", wrong, log=[log[0].replace(b"12:00", b"11:00")], accepted=0)
    yield _case(
        "24-line-rewritten-with-its-hash",
        "A line is rewritten with a hash that fits; the next does not.",
        broken,
        log=[*log[:2], _rehashed(log[2], body={"n": 9}), *log[3:]],
        accepted=3,
    )
    yield _case(
        "24-tail-rewritten",
        "The end of the log is replaced by another.",
        broken,
        log=[*log[:3], _rehashed(log[3], prev="0" * 64)],
        accepted=3,
    )
    yield _case(
        "24-line-of-another-run",
        "A line comes from another run's log.",
        "log_other_run",
        log=[*log[:2], lines("run-2")[2]],
        accepted=2,
    )
    yield _case("24-line-cut", "The last line is truncated.", "json_invalid", log=[*log[:2], log[2][:-20]], accepted=2)
    yield _case(
        "24-field-more",
        "A line has an additional field.",
        "log_line_invalid",
        log=[_rehashed(log[0], more=1)],
        accepted=0,
    )
    yield _case(
        "24-number-beyond-canonical",
        "A number has no canonical form.",
        "json_not_canonical",
        log=[log[0].replace(b'"n":0', b'"n":9007199254740993')],
        accepted=0,
    )
    yield _case(
        "24-key-half-a-character",
        "A key is an unpaired surrogate.",
        "json_invalid",
        log=[log[0].replace(b'"n":0', b'"\\ud800":0')],
        accepted=0,
    )
    yield _case(
        "24-key-twice",
        "A line repeats a key.",
        "json_duplicate_key",
        log=[log[0].replace(b'"n":0', b'"n":0,"n":1')],
        accepted=0,
    )
    finished = to_line(ChainWriter(RUN).append(TRAIN_FINISHED, {"segment": "raw", "finalLoss": 7.25}, ts=TIME))
    for name, text in (("nan", b"NaN"), ("infinite", b"Infinity"), ("overflowing", b"1e999")):
        yield _case(
            f"28-loss-{name}",
            "The final loss in the log is not finite.",
            "json_not_finite",
            log=[finished.replace(b"7.25", text)],
            accepted=0,
        )
    yield _case(
        "32-line-without-end",
        "A line is longer than 256 KiB.",
        "log_line_too_long",
        log=log[:1],
        accepted=1,
        pad=256 * 1024 + 1,
    )
    yield _case(
        "32-line-of-brackets",
        "A line is nested too deeply.",
        "json_too_deep",
        log=[*log[:1], b"[" * 5_000 + b"\n"],
        accepted=1,
    )
    yield _case(
        "32-long-number",
        "A number has 5,000 digits.",
        "json_invalid",
        log=[log[0].replace(b'"n":0', b'"n":' + b"9" * 5_000)],
        accepted=0,
    )
