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
    assert failure(MemoryError(), kind)["code"] == "out_of_memory"
    reported = failure(OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), kind)
    assert reported["code"] == "gpu_out_of_memory"
    assert "--batch" in reported["hint"]
    assert "--max-length" in reported["hint"]


@pytest.mark.parametrize("kind", ["raw", "protected"])
def test_a_missing_module_is_named(kind: str) -> None:
    reported = failure(ModuleNotFoundError("No module named 'peft.tuners'", name="peft.tuners"), kind)
    assert reported["code"] == "module_missing"
    assert "peft.tuners is missing" in reported["message"]
    assert reported["hint"]


@pytest.mark.parametrize("name", ["a b", "x" * 100, "", None, "a/../b"])
def test_a_name_that_is_none_of_a_module_is_not_sent_by_a_protected_trainer(name: str | None) -> None:
    reported = failure(ImportError("the plaintext", name=name), "protected")
    assert reported["code"] == "trainer_failed"
    assert reported["message"] == "The training failed. (ImportError)"


def test_what_the_gpu_reports_is_said_in_known_words_only() -> None:
    text = "CUDA error: no kernel image is available for execution on the device\nplaintext"
    reported = failure(RuntimeError(text), "protected")
    assert reported["code"] == "gpu_failed"
    assert "no kernel image is available" in reported["message"]
    assert "plaintext" not in reported["message"]
    assert reported["hint"]
