"""Every vector is run against the code that its attack would reach, and is refused there with exactly its codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vectors import make
from tests.vectors.case import MATRIX, Vector, vectors
from tests.vectors.run import run

VECTORS = vectors()


@pytest.mark.parametrize("vector", VECTORS, ids=[vector.folder.name for vector in VECTORS])
def test_each_vector_is_refused_at_its_stage_with_its_codes_and_yields_nothing(vector: Vector, tmp_path: Path) -> None:
    outcome = run(vector, tmp_path)
    assert (outcome.stage, outcome.codes) == (vector.stage, vector.codes)
    assert bool(outcome.yielded) == (vector.attack == 0)


def test_every_kind_of_vector_has_an_honest_one_that_passes() -> None:
    honest = {vector.kind for vector in VECTORS if vector.attack == 0}
    assert honest == {vector.kind for vector in VECTORS}
    assert all((vector.stage is None) == (vector.attack == 0) for vector in VECTORS)


def test_the_vectors_are_up_to_date_with_the_generator() -> None:
    folder = MATRIX.parent
    written = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("[0-9][0-9]-*/*") if path.is_file()
    }
    made = make.contents()
    assert set(written) == set(made)
    assert [name for name in made if made[name] != written[name]] == []
