"""The matrix is complete and agrees with the vectors and tests, and the page agrees with the matrix."""

from __future__ import annotations

from engine.attestation.reasons import OF_OTHER_ROOMS, REASONS
from tests.vectors.case import vectors
from tests.vectors.matrix import has_test, known_codes, matrix, meaning, page_path
from tests.vectors.page import page


def test_every_attack_is_listed_once_and_refused_somewhere() -> None:
    attacks = matrix().attacks
    assert [attack.number for attack in attacks] == list(range(1, len(attacks) + 1))
    assert all(attack.refusals for attack in attacks)
    assert len({attack.title for attack in attacks}) == len(attacks)


def test_every_refusal_has_a_known_stage_and_a_proof() -> None:
    whole = matrix()
    for attack, refusal in whole.refusals():
        where = (attack.number, refusal.stage, refusal.code)
        assert refusal.stage in whole.stages, where
        assert refusal.vectors or refusal.tests, where
        assert bool(refusal.code) != bool(refusal.effect), where


def test_the_vectors_of_an_attack_show_exactly_what_the_matrix_says() -> None:
    listed = {
        (name, attack.number, refusal.stage, refusal.code)
        for attack, refusal in matrix().refusals()
        for name in refusal.vectors
    }
    shown = {(one.folder.name, one.attack, one.stage, one.codes[0]) for one in vectors() if one.attack}
    assert listed == shown


def test_every_code_is_one_that_the_engine_has() -> None:
    codes = {refusal.code for _, refusal in matrix().refusals() if refusal.code}
    assert sorted(codes - known_codes()) == []


def test_every_code_has_a_sentence_of_its_own() -> None:
    codes = {refusal.code for _, refusal in matrix().refusals() if refusal.code}
    assert [code for code in sorted(codes) if not meaning(code)] == []
    assert set(OF_OTHER_ROOMS) <= codes
    assert not set(OF_OTHER_ROOMS) & set(REASONS)
    sentences = [sentence for sentence, _ in REASONS.values()] + list(OF_OTHER_ROOMS.values())
    assert len(set(sentences)) == len(sentences)


def test_every_named_test_exists() -> None:
    named = {test for _, refusal in matrix().refusals() for test in refusal.tests}
    assert [test for test in sorted(named) if not has_test(test)] == []


def test_the_page_is_up_to_date_with_the_matrix() -> None:
    assert page_path().read_text() == page(), "python -m tests.vectors.page --write"
