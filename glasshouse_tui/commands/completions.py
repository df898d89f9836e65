"""`completions`: the script by which a shell completes commands, options and run ids."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from engine.errors import UsageError
from glasshouse_tui.commands.base import Subcommand, session_of
from glasshouse_tui.commands.output import emit_json, emit_text

_HINTS = {
    "bash": 'add to ~/.bashrc: eval "$(glasshouse completions bash)"',
    "zsh": 'add to ~/.zshrc: eval "$(glasshouse completions zsh)"',
    "fish": "save as ~/.config/fish/completions/glasshouse.fish",
}


@click.command(cls=Subcommand, short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(tuple(_HINTS)), metavar="bash|zsh|fish")
@click.pass_context
def completions(context: click.Context, shell: str) -> int:
    """Print the completion script of a shell.

    bash: add `eval "$(glasshouse completions bash)"` to ~/.bashrc; zsh: likewise with zsh to ~/.zshrc; fish: save it
    as ~/.config/fish/completions/glasshouse.fish.
    """
    completion = get_completion_class(shell)
    if completion is None:
        raise UsageError(f"There is no completion for {shell}.", f"Choose one of: {', '.join(_HINTS)}.")
    script = completion(context.find_root().command, {}, "glasshouse", "_GLASSHOUSE_COMPLETE").source()
    if session_of(context).json:
        emit_json({"shell": shell, "install": _HINTS[shell], "script": script})
    else:
        emit_text(script.rstrip("\n"))
    return 0
