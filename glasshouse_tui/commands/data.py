"""`data`: what a data file would teach a model, before anything is spent. No run is entered."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import click

from glasshouse_tui.commands.base import Subcommand, session_of


@click.command(cls=Subcommand, short_help="Report what a data file would teach a model; nothing is trained.")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--model", metavar="ID/FOLDER", help="Whose tokenizer and template: a folder or a Hub id (default: the tiny model)."
)
@click.option("--revision", metavar="COMMIT", help="Full commit id of the Hub model.")
@click.option(
    "--chat-template",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A chat template (Jinja) in place of the model's own.",
)
@click.option(
    "--max-length",
    metavar="N/auto",
    help="Maximum tokens per sample (default: auto, the longest sample within the model's limit).",
)
@click.option("--eval-split", metavar="P", type=float, help="Hold out P percent of the samples.")
@click.pass_context
def data(
    context: click.Context,
    /,
    file: Path,
    model: str | None,
    revision: str | None,
    chat_template: Path | None,
    max_length: str | None,
    eval_split: float | None,
) -> int:
    """Report what the data FILE would teach a model, before anything is spent.

    FILE is a file, a folder of files, a pipe, or - for standard input. The report says how many samples are used,
    dropped and cut, how long they are, and shows one as the model gets it, with what is learned of it. Exit code 1: a
    run would refuse the data, because most of it is lost.
    """
    from engine.payload.inputs import describe_inputs
    from engine.payload.prepare.cache import token_cache
    from glasshouse_tui.commands.data_progress import DataProgress
    from glasshouse_tui.commands.data_text import emit_report
    from glasshouse_tui.commands.own_data import planned
    from glasshouse_tui.commands.plan_options import RunOptions

    session = session_of(context)
    options = RunOptions(
        data=file,
        model=model,
        revision=revision,
        chat_template=chat_template,
        max_length=max_length,
        eval_split=eval_split,
        segments="protected",
        steps=1,
    )
    with planned(options) as inputs:
        cache = None if inputs.files.temporary else token_cache(session.home)
        with closing(DataProgress(sys.stderr)) as progress:
            found = describe_inputs(inputs.plan, inputs.files, cache=cache, judged=False, progress=progress)
    return emit_report(session, found.report, found.data.facts, inputs.plan.model)
