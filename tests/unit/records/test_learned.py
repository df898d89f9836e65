"""What a run learned, in its row: answers that may be published, losses that are none."""

from __future__ import annotations

import math
from typing import Any

import pytest

from engine.records.public import is_public
from engine.records.row import _segment
from engine.store.views import SegmentView
from engine.wire import TRAIN_EVALUATED


def said(answer: str, loss: Any = 1.5) -> dict[str, Any]:
    return {"segment": "raw", "moment": "after", "loss": loss, "samples": 2, "tokens": 9, "answer": answer}


@pytest.mark.parametrize(
    "answer", ["It\u2019s Müller.", "東京", "see https://example.org or 10.0.0.1, C::D", "", "x" * 256]
)
def test_a_models_answer_may_be_in_any_language_and_name_anything(answer: str) -> None:
    assert is_public("pod", TRAIN_EVALUATED, said(answer))


@pytest.mark.parametrize("answer", ["two\nlines", "\x1b[31m", "\u202e", "x" * 257, "\ud800"])
def test_an_answer_that_could_control_a_terminal_is_refused(answer: str) -> None:
    assert not is_public("pod", TRAIN_EVALUATED, said(answer))


@pytest.mark.parametrize("loss", [-0.1, "1.5"])
def test_a_held_out_loss_is_no_negative_number_and_no_text(loss: Any) -> None:
    assert not is_public("pod", TRAIN_EVALUATED, said("x", loss))


def test_the_worker_reports_an_answer_that_is_accepted() -> None:
    from engine.worker.training.evaluation import reported

    for text in ("two\nlines\x1b[31m", "東京\u202e", "x" * 900, "a\ud800b", "\t \n"):
        assert is_public("pod", TRAIN_EVALUATED, said(reported(text)))
    assert reported(" It is\nVera  Stone. ") == "It is Vera Stone."


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_last_loss_that_is_no_number_is_null_in_the_row(loss: float) -> None:
    view = SegmentView(
        kind="raw", position=0, state="failed", reason="", stop_reason="nonfinite_loss", steps=3, elapsed_sec=1.0,
        last_loss=loss, final_loss=None, adapter_sha256=None, tensor_digest=None, phases={},
    )  # fmt: skip
    assert _segment(view)["lastLoss"] is None
