"""The parts that the pipeline uses: batches in worker processes, the format of a file, the refusal."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from engine.payload.data.convert import convert, convert_batch, format_of
from engine.payload.data.faults import HINTS, refusal
from engine.payload.data.formats import CHAT as CHAT_FORMAT
from engine.payload.data.read import fingerprint, with_format
from engine.payload.data.records import Problem, Record
from engine.payload.data.samples import Fault, Sample
from tests.unit.payload.data.test_refusals import ALONE
from tests.unit.payload.data.written import CHAT, PAIR, SAMPLE

RECORD = Record("line 1", json.dumps({**CHAT, "id": 7}).encode())
BAD = Record("line 2", b"{")
LONG = Fault(place="line 3", code="data_line_too_long", what="is longer than 1 MiB")


def test_a_batch_is_converted_in_a_worker_process() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        outcomes, ignored = pool.submit(convert_batch, [RECORD, BAD, LONG], CHAT_FORMAT).result()
    assert outcomes == [SAMPLE, convert(BAD, CHAT_FORMAT), LONG]
    assert ignored == {"id": 1}


def test_a_problem_survives_a_process_border() -> None:
    problem = pickle.loads(pickle.dumps(Problem("data_shape_invalid", "is odd")))  # noqa: S301
    assert (problem.code, problem.what) == ("data_shape_invalid", "is odd")


def test_the_format_is_that_of_the_first_record_that_has_one() -> None:
    form, records = with_format(iter([LONG, BAD, RECORD]))
    assert form == CHAT_FORMAT == format_of(RECORD)
    assert list(records) == [LONG, BAD, RECORD]


def test_the_format_is_not_looked_for_without_end() -> None:
    form, records = with_format(BAD for _ in range(5000))
    assert form is None
    assert sum(1 for _ in records) == 5000


def test_equal_samples_have_one_fingerprint() -> None:
    same = Sample(
        messages=tuple(dict(list(message.items())[::-1]) for message in SAMPLE.messages), learned=(False, True)
    )
    other = Sample(messages=SAMPLE.messages, learned=(False, False))
    assert fingerprint(same) == fingerprint(SAMPLE) != fingerprint(other)


def test_one_fault_is_one_sentence() -> None:
    error = refusal([LONG], 1, None)
    assert error.as_dict() == {
        "code": "data_line_too_long",
        "message": "Line 3 of the data is longer than 1 MiB.",
        "hint": HINTS["data_line_too_long"],
    }


@pytest.mark.parametrize("code", sorted({code for _, code, _ in ALONE}))
def test_every_code_of_a_record_says_what_to_do(code: str) -> None:
    assert HINTS[code].endswith(".")


def test_a_pair_of_keys_is_one_format_whatever_else_a_record_has() -> None:
    assert format_of(Record("", json.dumps(PAIR).encode())) == format_of(
        Record("", json.dumps({**PAIR, "a": 1}).encode())
    )
