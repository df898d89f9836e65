"""The operator's own data on the command line: streams are copied once, and the report is shown before a run starts."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from glasshouse_tui.commands.data_progress import DataProgress
from glasshouse_tui.commands.output import say
from glasshouse_tui.commands.plan_options import PlanInputs, RunOptions, plan_from_options

if TYPE_CHECKING:
    from engine.runner.feasible import Feasible
    from glasshouse_tui.commands.base import Session

_STREAMS: Final = ("data", "eval_file", "chat_template")


@contextmanager
def planned(options: RunOptions) -> Iterator[PlanInputs]:
    """The plan of the options. Files that can be read only once are copied; the copies are gone after the block, unless
    a run took them over. Raises as `plan_from_options` and `spooled`.
    """
    from engine.payload.data.spool import spooled

    plan_from_options(options)  # what the options alone refuse is refused before a stream is read
    with ExitStack() as stack:
        copies: dict[str, Any] = {}
        for name in _STREAMS:
            given: Path | None = getattr(options, name)
            if given is None:
                continue
            path = stack.enter_context(spooled(given))
            if path != given:
                copies[name] = path
        inputs = plan_from_options(dataclasses.replace(options, **copies))
        files = msgspec.structs.replace(inputs.files, temporary=tuple(copies.values()))
        yield dataclasses.replace(inputs, files=files)


def check(session: Session, inputs: PlanInputs, *, tolerant: bool = False) -> Feasible:
    """`check_run` of the inputs with a progress line on stderr; raises as it does."""
    from engine.providers.settings import load_settings
    from engine.runner.feasible import check_run

    settings = load_settings(session.home)
    with closing(DataProgress(sys.stderr)) as progress:
        return check_run(
            session.home,
            inputs.plan,
            settings,
            inputs.files,
            tolerant=tolerant,
            allow_loss=inputs.allow_data_loss,
            progress=progress,
        )


def say_report(found: Feasible) -> None:
    """Write the report about the operator's own data to stderr."""
    from engine.payload.prepare.report_text import report_lines

    if found.inputs is not None and found.plan.data.source == "file":
        for line in report_lines(found.inputs.report):
            say(line)
