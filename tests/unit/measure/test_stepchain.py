from __future__ import annotations

import math
from array import array

import pytest

from engine.measure.stepchain import StepChain, step_chain


@pytest.mark.parametrize("steps", [0, 1, 3, 65_535, 65_536, 65_537, 140_000])
def test_whole_series_have_the_head_of_their_steps_one_by_one(steps: int) -> None:
    losses = array("f", (1 / (step + 1) for step in range(steps)))
    nanos = array("Q", (step**3 for step in range(steps)))
    chain = StepChain()
    for loss, taken in zip(losses, nanos, strict=True):
        chain.add(loss, taken)
    assert step_chain(losses, nanos) == chain.head()
    assert step_chain(tuple(losses), tuple(nanos)) == chain.head()


def test_losses_that_are_not_finite_are_chained_too() -> None:
    chain = StepChain()
    for loss in (math.nan, math.inf, -math.inf):
        chain.add(loss, 2**64 - 1)
    assert step_chain((math.nan, math.inf, -math.inf), (2**64 - 1,) * 3) == chain.head()


def test_series_of_unequal_length_have_no_chain() -> None:
    with pytest.raises(ValueError, match="2 and 1 steps"):
        step_chain((1.0, 2.0), (1,))
