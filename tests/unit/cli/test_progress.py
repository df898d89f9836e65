"""Progress lines."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import msgspec

from engine.plan import Target, preset
from glasshouse_tui.commands.progress import Progress, progress_line

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Scene


PLAN = msgspec.structs.replace(preset("demo"), target=Target(steps=2800))


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A monotonic clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_each_transition_is_one_plain_line_written_once(scene: Scene) -> None:
    scene.create()
    stream = io.StringIO()
    progress = Progress(stream)
    scene.move("run", "staging")
    progress.show(scene.view())
    progress.show(scene.view())
    scene.move("segment:protected", "failed", "policy: \x1b[31mno")
    progress.show(scene.view())
    assert stream.getvalue().splitlines()[-2:] == [
        "run         staging",
        "protected   failed  policy: \\x1b[31mno",
    ]
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().count("staging") == 1


def test_training_shows_at_most_one_line_a_second(scene: Scene) -> None:
    scene.create(plan=PLAN)
    scene.move("segment:raw", "training")
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, clock=clock)
    for tenth in range(30):
        scene.train("raw", [2.5] * 10)
        clock.now = 100.0 + tenth / 10
        progress.show(scene.view())
    lines = [line for line in stream.getvalue().splitlines() if "steps/s" in line]
    assert lines == [
        "raw         training  steps 10/2800  100.0 steps/s  loss 2.5",
        "raw         training  steps 110/2800  100.0 steps/s  loss 2.5",
        "raw         training  steps 210/2800  100.0 steps/s  loss 2.5",
    ]


def test_no_line_is_written_without_new_steps(scene: Scene) -> None:
    scene.create()
    scene.move("segment:raw", "training")
    scene.train("raw", [2.5])
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, clock=clock)
    for second in range(5):
        clock.now = 100.0 + second
        progress.show(scene.view())
    assert stream.getvalue().count("steps/s") == 1


def test_a_long_run_writes_fewer_lines_to_a_file_but_not_to_a_terminal(scene: Scene) -> None:
    scene.create()
    scene.move("segment:raw", "training")
    counts = {}
    for stream in (io.StringIO(), Terminal()):
        clock = Clock()
        progress = Progress(stream, clock=clock)
        for second in range(20):
            scene.train("raw", [2.5], step_seconds=100.0)
            clock.now = 100.0 + second
            progress.show(scene.view())
        counts[type(stream)] = stream.getvalue().count("steps/s")
    assert counts == {io.StringIO: 2, Terminal: 20}


def test_a_terminal_overwrites_the_progress_line(scene: Scene) -> None:
    scene.create(plan=PLAN)
    stream, clock = Terminal(), Clock()
    progress = Progress(stream, clock=clock)
    scene.move("segment:raw", "training")
    scene.train("raw", [2.5])
    progress.show(scene.view())
    assert stream.getvalue().endswith("\r\x1b[Kraw         training  steps 1/2800  100.0 steps/s  loss 2.5")
    scene.move("segment:raw", "done")
    progress.show(scene.view())
    assert stream.getvalue().endswith("loss 2.5\r\x1b[Kraw         done\n")
    progress.close()
    assert not stream.getvalue().endswith("\n\n")


def test_a_target_in_seconds_shows_the_measured_time(scene: Scene) -> None:
    plan = msgspec.structs.replace(preset("demo"), target=Target(seconds=900))
    scene.create(plan=plan)
    scene.move("segment:raw", "training")
    scene.train("raw", [2.5] * 5)
    view = scene.view()
    assert progress_line(view, view.segments[0]) == (
        "raw         training  0.1/900 s  steps 5  100.0 steps/s  loss 2.5"
    )


def test_the_final_count_of_a_segment_is_shown_even_within_the_same_second(scene: Scene) -> None:
    scene.create(plan=PLAN)
    scene.move("segment:raw", "training")
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, clock=clock)
    scene.train("raw", [2.5] * 1000)
    progress.show(scene.view())
    scene.train("raw", [2.5] * 800)
    scene.move("segment:raw", "done")
    progress.show(scene.view())
    progress.show(scene.view())
    assert [line for line in stream.getvalue().splitlines() if "steps/s" in line] == [
        "raw         training  steps 1000/2800  100.0 steps/s  loss 2.5",
        "raw         done  steps 1800/2800  100.0 steps/s  loss 2.5",
    ]
