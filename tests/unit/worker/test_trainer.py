"""The error that a trainer reports when it fails."""

from __future__ import annotations

import pytest

from engine.errors import RunError
from engine.worker.trainer import failure


def test_a_protected_trainer_reports_the_type_of_an_error_and_not_its_text() -> None:
    reported = failure(KeyError("a token of the payload"), "protected")
    assert reported["code"] == "trainer_failed"
    assert "KeyError" in reported["message"]
    assert "payload" not in reported["message"]


def test_a_raw_trainer_reports_the_start_of_the_error_text() -> None:
    reported = failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied" + "x" * 5000), "raw")
    assert "mat1 and mat2" in reported["message"]
    assert len(reported["message"]) < 1000


@pytest.mark.parametrize("kind", ["raw", "protected"])
def test_our_own_errors_and_full_memory_keep_their_codes(kind: str) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    assert failure(RunError("no", code="worker_stopped"), kind)["code"] == "worker_stopped"
    for error in (MemoryError(), OutOfMemoryError("CUDA out of memory")):
        assert failure(error, kind)["code"] == "out_of_memory"
