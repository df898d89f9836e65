"""`demo` and `run`: start a run's own runner process and follow it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from engine.plan import Order, Segments, preset, presets
from glasshouse_tui.commands.base import Session, Subcommand, open_reader, session_of
from glasshouse_tui.commands.follow import exit_code, start_and_follow
from glasshouse_tui.commands.output import emit_json, emit_text, on_terminal
from glasshouse_tui.commands.passphrase import passphrase_if_needed, passphrase_option
from glasshouse_tui.commands.plan_options import Asked, RunOptions, asked_for
from glasshouse_tui.commands.price_quote import agree_to_price, check_rented


def _starter(
    session: Session, asked: Asked, passphrase_file: Path | None, policy_file: Path | None = None
) -> Callable[[], str]:
    """What starts the runner of a new run and gives its id.

    Before that the home is looked at and a passphrase asked for. Raises `StoreError` and `UsageError`.
    """
    open_reader(session).data_version()
    policy = None
    if policy_file is not None:
        from engine.records.trust import read_policy

        policy = read_policy(policy_file)
    passphrase = passphrase_if_needed(session.home, passphrase_file)

    def start() -> str:
        from engine.runner.start import start_run

        return start_run(
            session.home,
            asked.plan,
            data_file=asked.data_file,
            model_folder=asked.model_folder,
            passphrase=passphrase,
            policy=policy,
        )

    return start


@click.command(cls=Subcommand, short_help="Run the small pair on this machine.")
@click.option("--headless", is_flag=True, help="Show progress lines in place of the console.")
@passphrase_option
@click.pass_context
def demo(context: click.Context, headless: bool, passphrase_file: Path | None) -> int:
    """Run the small pair on this machine: in the console on a terminal, headless off it.

    About a minute: a tiny model is trained raw and protected on the embedded allocation, and the row says
    what protection cost and what was proven. Ctrl-C in a headless run cancels it and waits for its clean-up.
    """
    session = session_of(context)
    start = _starter(session, Asked(preset("demo"), None, None), passphrase_file)
    if headless or session.json or not on_terminal():
        return start_and_follow(session, start)
    run_id = start()
    from glasshouse_tui.app import run_console

    code = run_console(session.home, open_run=run_id)
    if code:
        return code
    view = session.reader().run(run_id)
    if view.row is None:
        return 0
    emit_text(f"Run {run_id} is {view.summary.state}; `glasshouse show {run_id}` prints its row.")
    return exit_code(view)


def _preset_names(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    return [name for name in presets() if name.startswith(typed)]


@click.command(cls=Subcommand, short_help="Run a pair or one segment, from a preset or your own.")
@click.option(
    "--preset",
    metavar="NAME",
    shell_complete=_preset_names,
    help="Start from a preset; other options replace its fields.",
)
@click.option("--model", metavar="ID/FOLDER", help="A local model folder, or a hub id at --revision.")
@click.option("--revision", metavar="COMMIT", help="The hub model's full commit id.")
@click.option("--data", metavar="FILE.jsonl", type=click.Path(path_type=Path), help="Your samples, one JSON a line.")
@click.option("--public-data", is_flag=True, help="Declare --data public: a raw segment may hold it in the clear.")
@click.option("--stand-in", is_flag=True, help="Train on synthetic samples of the same shape in place of --data.")
@click.option("--seconds", type=float, metavar="N", help="Stop a segment at the first step past N seconds.")
@click.option("--steps", type=int, metavar="N", help="Stop a segment after N steps.")
@click.option("--order", type=click.Choice(get_args(Order)), help="Which segment runs first.")
@click.option("--segments", type=click.Choice(get_args(Segments)), help="A pair, or one segment alone.")
@click.option("--seed", type=int, metavar="N", help="Expands into the seeds of weights, order and noise.")
@click.option("--lr", type=float, metavar="RATE", help="Learning rate.")
@click.option("--lora-r", type=int, metavar="N", help="LoRA rank.")
@click.option("--lora-alpha", type=int, metavar="N", help="LoRA alpha.")
@click.option("--batch", type=int, metavar="N", help="Samples a step.")
@click.option("--max-length", type=int, metavar="N", help="Tokens a sample.")
@click.option("--warmup", type=int, metavar="STEPS", help="Steps before the measured window.")
@click.option("--checkpoint-every", type=int, metavar="STEPS", help="Steps between tensor digests.")
@click.option("--challenge", metavar="TEXT", help="A buyer's text, bound into plan, evidence and receipts.")
@click.option("--policy", metavar="FILE", type=click.Path(path_type=Path), help="A stricter appraisal policy.")
@click.option("--label", metavar="TEXT", help="The run's name in lists and exports.")
@click.option("--provider", metavar="local/static/runpod", help="This machine, your own SSH host, or a rented pod.")
@click.option("--gpu", metavar="A,B", help="Approved GPUs, best first.")
@click.option("--allocation", metavar="ID", help="A kept allocation to run on, or the name of a static host.")
@click.option("--max-price", type=float, metavar="USD", help="Ceiling for an hour.")
@click.option("--max-cost", type=float, metavar="USD", help="Ceiling for the run; the pod ends itself when it is used.")
@click.option("--keep-for", type=int, metavar="MIN", help="Keep the pod for so many minutes afterwards; it bills on.")
@click.option("--yes", is_flag=True, help="Do not ask about the price; the ceilings hold all the same.")
@click.option("--detach", is_flag=True, help="Print the run's id at once and leave it running.")
@passphrase_option
@click.pass_context
def run(
    context: click.Context,
    /,
    detach: bool,
    policy: Path | None,
    passphrase_file: Path | None,
    yes: bool,
    **options: Any,
) -> int:
    """Run a pair, or one segment, from a preset or from your own model and data.

    Progress goes to stderr and the row to stdout. Ctrl-C cancels the run and waits until it is clean. Before a GPU is
    rented, a person at a terminal sees its price and is asked; a script is not, and its ceilings hold.
    """
    session = session_of(context)
    asked = asked_for(RunOptions(**options))
    check_rented(session, asked.plan)
    start = _starter(session, asked, passphrase_file, policy)
    agree_to_price(session, asked.plan, ask=not (yes or detach))
    if not detach:
        return start_and_follow(session, start)
    run_id = start()
    if session.json:
        emit_json({"id": run_id, "state": session.reader().run(run_id).summary.state})
    else:
        emit_text(run_id)
    return 0
