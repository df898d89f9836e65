"""The demo's facts: what is trained on, what is held out, and that neither is known to the base."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import PlanError
from engine.payload.builtin import BUILTIN, builtin_file
from engine.payload.data.read import read_data
from engine.payload.data.samples import Sample
from engine.payload.inputs import describe_inputs
from engine.plan import preset

MAKER = Path(__file__).parents[3] / "data" / "make_demo_data.py"
DEMO = preset("demo")


def pairs(samples: tuple[Sample, ...]) -> dict[str, str]:
    """Answers by question."""
    return {question["content"]: answer["content"] for question, answer in (sample.messages for sample in samples)}


FACTS = pairs(read_data(builtin_file("demo-facts")).samples)
HELD_OUT = pairs(read_data(builtin_file("demo-heldout")).samples)


def test_the_script_recreates_both_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(MAKER), str(tmp_path)], check=True)
    for name in ("demo-facts", "demo-heldout"):
        assert (tmp_path / BUILTIN[name]).read_bytes() == builtin_file(name).read_bytes()


def test_no_held_out_question_is_trained_on_but_every_held_out_answer_is() -> None:
    assert (len(FACTS), len(HELD_OUT)) == (200, 80)
    assert not set(FACTS) & set(HELD_OUT)
    assert set(HELD_OUT.values()) == set(FACTS.values())
    assert len(set(FACTS.values())) == 40


def test_the_demos_question_is_held_out() -> None:
    assert DEMO.evaluation is not None
    question = DEMO.evaluation.question
    assert question is not None
    assert HELD_OUT[question] == "It is Vera Stone."
    assert question not in FACTS


def test_the_demo_cuts_and_drops_nothing() -> None:
    counts = describe_inputs(DEMO).report.counts
    assert (counts.used, counts.dropped, counts.cut, counts.held_out) == (200, 0, 0, 80)
    assert counts.answer_tokens == counts.answer_tokens_kept


def test_the_corpus_knows_nothing_of_the_facts() -> None:
    corpus = builtin_file("sample-corpus").read_text(encoding="utf-8")
    assert "Fenport" not in corpus
    assert not [answer for answer in set(FACTS.values()) if answer.split(maxsplit=1)[1] in corpus]


def test_an_unknown_built_in_name_lists_the_known_ones() -> None:
    with pytest.raises(PlanError) as caught:
        builtin_file("../presets")
    assert caught.value.code == "data_unknown"
    assert all(name in caught.value.hint for name in BUILTIN)
