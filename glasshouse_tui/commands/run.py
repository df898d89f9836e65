"""`demo` and `run`: start a run in its own runner process and follow it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from engine.payload.local_files import NO_FILES
from engine.plan import PROVIDERS, Order, Schedule, Segments, preset, presets
from glasshouse_tui.commands.base import Session, Subcommand, open_reader, session_of
from glasshouse_tui.commands.follow import exit_code, start_and_follow
from glasshouse_tui.commands.output import emit_json, emit_text, on_terminal
from glasshouse_tui.commands.own_data import check, planned, say_report
from glasshouse_tui.commands.passphrase import passphrase_if_needed, passphrase_option
from glasshouse_tui.commands.plan_options import PlanInputs, RunOptions
from glasshouse_tui.commands.price_quote import check_ceiling, confirm_price

if TYPE_CHECKING:
    from engine.runner.feasible import Feasible


def _starter(
    session: Session,
    inputs: PlanInputs,
    passphrase_file: Path | None,
    policy_file: Path | None = None,
    found: Feasible | None = None,
) -> Callable[[], str]:
    """A function that starts the runner of a new run and returns the run's id.

    The home is checked and a passphrase prompted for beforehand. Raises `StoreError` and `UsageError`.
    """
    open_reader(session).data_version()
    policy = None
    if policy_file is not None:
        from engine.attestation.policy import checked_policy, default_policy
        from engine.records.trust import read_policy

        policy = checked_policy(read_policy(policy_file), default_policy())
    passphrase = passphrase_if_needed(session.home, passphrase_file)

    def start() -> str:
        from engine.runner.start import start_run

        return start_run(
            session.home,
            inputs.plan,
            inputs.files,
            passphrase=passphrase,
            policy=policy,
            found=found,
        )

    return start


@click.command(cls=Subcommand, short_help="Run a small pair on this machine.")
@click.option("--headless", is_flag=True, help="Show progress lines instead of the console.")
@passphrase_option
@click.pass_context
def demo(context: click.Context, headless: bool, passphrase_file: Path | None) -> int:
    """Run a small pair on this machine: in the console on a terminal, otherwise headless.

    It takes about a minute: a tiny model is trained raw and protected on the local allocation, and the row reports
    what protection cost and what was proven. Ctrl-C in a headless run cancels it and waits for its clean-up.
    """
    session = session_of(context)
    start = _starter(session, PlanInputs(preset("demo"), NO_FILES), passphrase_file)
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


def _has_place(home: Path) -> bool:
    """Whether the folder could be made where it is to be, as far as its parents tell."""
    return next(parent for parent in home.absolute().parents if parent.exists()).is_dir()


def _preset_names(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    return [name for name in presets() if name.startswith(typed)]


@click.command(cls=Subcommand, short_help="Run a pair or one segment, from a preset or your own model and data.")
@click.option(
    "--preset",
    metavar="NAME",
    shell_complete=_preset_names,
    help="Start from a preset; other options override its fields.",
)
@click.option("--model", metavar="ID/FOLDER", help="A local model folder, or a Hub id with --revision.")
@click.option("--revision", metavar="COMMIT", help="Full commit id of the Hub model.")
@click.option(
    "--data",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Your samples: JSONL, JSON, CSV, Parquet, a folder of them, or - for standard input.",
)
@click.option("--public-data", is_flag=True, help="Declare --data public: a raw segment may use it in the clear.")
@click.option("--stand-in", is_flag=True, help="Train on synthetic samples of the same shape instead of --data.")
@click.option("--seconds", type=float, metavar="N", help="Stop each segment at the first step after N seconds.")
@click.option("--steps", type=int, metavar="N", help="Stop each segment after N steps.")
@click.option("--epochs", type=float, metavar="N", help="Stop each segment after N passes over the data.")
@click.option("--order", type=click.Choice(get_args(Order)), help="Which segment runs first.")
@click.option("--segments", type=click.Choice(get_args(Segments)), help="A pair, or only one segment.")
@click.option("--seed", type=int, metavar="N", help="Seed for weights, sample order and noise.")
@click.option("--lr", type=float, metavar="RATE", help="Learning rate.")
@click.option(
    "--lr-schedule", type=click.Choice(get_args(Schedule)), help="How the learning rate falls over all updates."
)
@click.option("--lr-warmup", type=int, metavar="UPDATES", help="Updates over which the learning rate rises from 0.")
@click.option("--lora-r", type=int, metavar="N", help="LoRA rank.")
@click.option("--lora-alpha", type=int, metavar="N", help="LoRA alpha.")
@click.option(
    "--lora-targets", metavar="A,B", help="Modules to train: names such as q_proj, or `attention`, or `all-linear`."
)
@click.option("--lora-dropout", type=float, metavar="0", help="Always 0: both segments must do the same work.")
@click.option("--batch", type=int, metavar="N", help="Samples per forward pass.")
@click.option("--grad-accum", type=int, metavar="N", help="Forward passes per step.")
@click.option(
    "--gradient-checkpointing",
    is_flag=True,
    default=None,
    help="Compute activations twice in place of keeping them: less memory, slower steps.",
)
@click.option("--max-length", metavar="N/auto", help="Maximum tokens per sample; auto: the longest that fits.")
@click.option(
    "--chat-template",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A Jinja chat template in place of the model's.",
)
@click.option("--allow-data-loss", is_flag=True, help="Run though more than half of the answers' tokens are cut off.")
@click.option("--eval-split", type=float, metavar="PERCENT", help="Hold out a share of the data, for its loss.")
@click.option(
    "--eval", "eval_file", metavar="FILE", type=click.Path(path_type=Path), help="Samples to compute the loss on only."
)
@click.option("--settling", type=int, metavar="STEPS", help="Untimed steps before the measured ones.")
@click.option("--checkpoint-every", type=int, metavar="STEPS", help="Steps between tensor digests.")
@click.option("--challenge", metavar="TEXT", help="A buyer's text that is bound into plan, evidence and receipts.")
@click.option(
    "--policy", metavar="FILE", type=click.Path(path_type=Path), help="An appraisal policy stricter than the default."
)
@click.option("--label", metavar="TEXT", help="Name of the run in lists and exports.")
@click.option("--provider", metavar="/".join(PROVIDERS), help="This machine, your own SSH host, or a rented pod.")
@click.option("--gpu", metavar="A,B", help="Acceptable GPUs, best first.")
@click.option("--allocation", metavar="ID", help="A kept allocation to run on, or the name of a static host.")
@click.option("--max-price", type=float, metavar="USD", help="Ceiling for the hourly price.")
@click.option("--max-cost", type=float, metavar="USD", help="Ceiling for the run; the pod terminates itself there.")
@click.option("--keep-for", type=int, metavar="MIN", help="Keep the pod MIN minutes afterwards; it is still billed.")
@click.option("--dry-run", is_flag=True, help="Make every check that needs no allocation, and print the estimates.")
@click.option("--yes", is_flag=True, help="Do not ask about the price; the ceilings still apply.")
@click.option("--detach", is_flag=True, help="Print the run's id and leave it running.")
@passphrase_option
@click.pass_context
def run(
    context: click.Context,
    /,
    detach: bool,
    policy: Path | None,
    passphrase_file: Path | None,
    yes: bool,
    dry_run: bool,
    **options: Any,
) -> int:
    """Run a pair, or one segment, from a preset or from your own model and data.

    Everything that can be refused without an allocation is refused first; --dry-run stops there. Progress goes to
    stderr and the row to stdout. Ctrl-C cancels the run and waits for its clean-up. Before a GPU is rented, its price
    is shown on a terminal and must be confirmed, with --detach too; --yes skips the question. A script is not asked,
    and its ceilings apply.
    """
    session = session_of(context)
    with planned(RunOptions(**options)) as inputs:
        check_ceiling(session, inputs.plan)
        if dry_run:
            from glasshouse_tui.commands.dry_run import dry_run as check_only

            return check_only(session, inputs)
        if session.home.exists() or not _has_place(session.home):
            open_reader(session).data_version()  # a home that cannot be used is refused as such
        found = check(session, inputs)
        say_report(found)
        start = _starter(session, inputs, passphrase_file, policy, found)
        confirm_price(session, found, ask=not yes)
        if not detach:
            return start_and_follow(session, start)
        run_id = start()
    if session.json:
        emit_json({"id": run_id, "state": session.reader().run(run_id).summary.state})
    else:
        emit_text(run_id)
    return 0
