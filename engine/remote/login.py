"""What a login does before anything relies on it: commands that answer cleanly, a usable shell, a home, a Python.

Text of the host is quoted as the host's: cleaned of control characters, and short.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from engine.errors import RemoteError
from engine.remote.failures import quoted
from engine.remote.lockfile import shipped_lock

if TYPE_CHECKING:
    from engine.remote.session import Result, SshSession

OLDEST_PYTHON: Final = (3, 11)
"""Our programs on the allocation need it, whatever its packages come from."""
MOST_OUTPUT: Final = 64 * 1024
LONGEST_QUOTE: Final = 160
_VERSION: Final = re.compile(rb"(\w{1,20}) (\d{1,3})\.(\d{1,3})\s*")
_PRINT_VERSION: Final = (
    "import sys, platform; sys.stdout.write('%s %d.%d' % "
    "((platform.python_implementation().lower(),) + tuple(sys.version_info[:2])))"
)
_LOOK: Final = """
echo "$1"
[ -z "${HOME-}" ] || printf '%s' "$HOME"
[ -d "${HOME-}" ] || exit 3
"""
_NO_FOLDER: Final = 3
_GUARD: Final = (
    "Put `case $- in *i*) ;; *) return;; esac` at the top of the login's ~/.bashrc (or the start file of its shell), "
    "so that it prints nothing when the shell is not interactive."
)
_FORCED: Final = (
    'Remove command="..." from this key\'s line in authorized_keys, or ForceCommand from sshd_config, for this login; '
    "or use another key or user."
)
_SHELL: Final = "Give the user a normal login shell (chsh -s /bin/sh), or use another user."


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """A login that works. `home` is its home folder, None where the host names none that exists."""

    home: str | None


async def check_login(session: SshSession) -> Login:
    """Run a command that prints a word of our choice, then a shell; nothing is written there.

    Raises `RemoteError`: `login_output` when something else is printed too, `login_refuses_commands`,
    `login_restricted`, and the link's codes.
    """
    word = f"glasshouse-{secrets.token_hex(8)}"
    _require_clean(await _first(session, word), word)
    result = await session.run(["/bin/sh", "-c", _LOOK, "sh", word], max_output=MOST_OUTPUT)
    answered, _, home = result.stdout.decode("utf-8", "replace").partition("\n")
    if answered != word:
        said = _said(result)
        raise RemoteError(
            f"The login's shell does not run /bin/sh{said}.",
            f"It looks like a restricted shell. {_SHELL}",
            code="login_restricted",
        )
    is_usable = result.exit_status != _NO_FOLDER and home.startswith("/") and home.isprintable()
    return Login(home=home if is_usable else None)


async def home_of(session: SshSession, login: Login) -> str:
    """The login's home folder as an absolute path: what the shell names, else where SFTP begins.

    Raises `RemoteError` (`remote_home_unknown`) where neither names a folder that exists.
    """
    if login.home is not None:
        return login.home
    sftp = await session.sftp()
    start = str(await sftp.realpath("."))
    if start.startswith("/") and start != "/" and start.isprintable():  # sshd begins in / where the home is missing
        return start
    raise RemoteError(
        "The login's home folder does not exist on the host.",
        "Create it there, or set `root` of the host in config.toml to an absolute path that the user may write to.",
        code="remote_home_unknown",
    )


async def check_python(session: SshSession, python: str, environment: Literal["own", "image", "lock"]) -> str:
    """The version of the host's Python, such as `3.12`, if our programs and the environment's lock run with it.

    Raises `RemoteError`: `environment_no_lock`, which names the accepted versions, and the link's codes.
    """
    result = await session.run([python, "-S", "-E", "-c", _PRINT_VERSION], max_output=MOST_OUTPUT)
    accepted = _accepted(environment)
    hint = "Install one, or set `python` of the host in config.toml to its path."
    if result.exit_status in (126, 127):
        raise RemoteError(
            f"The allocation has no Python called {python}; {accepted} is needed{_said(result)}.",
            hint,
            code="environment_no_lock",
        )
    found = _VERSION.fullmatch(result.stdout)
    if result.exit_status != 0 or found is None:
        raise RemoteError(
            f"{python} on the allocation is not a working Python (exit status {result.exit_status}); "
            f"{accepted} is needed{_said(result)}.",
            hint,
            code="environment_no_lock",
        )
    implementation, version = found[1].decode(), (int(found[2]), int(found[3]))
    shown = ".".join(map(str, version))
    is_accepted = shown in shipped_lock().pythons if environment == "lock" else version >= OLDEST_PYTHON
    if implementation != "cpython" or not is_accepted:
        raise RemoteError(
            f"{python} on the allocation is {quoted(implementation, 20)} {shown}; {accepted} is needed.",
            hint,
            code="environment_no_lock",
        )
    return shown


def _accepted(environment: str) -> str:
    if environment == "lock":
        return f"CPython {', '.join(shipped_lock().pythons[:-1])} or {shipped_lock().pythons[-1]}"
    return f"CPython {'.'.join(map(str, OLDEST_PYTHON))} or newer"


async def _first(session: SshSession, word: str) -> Result:
    """The first command of a session: `echo`, which every shell has built in."""
    try:
        return await session.run(["echo", word], max_output=MOST_OUTPUT)
    except RemoteError as error:
        if error.code == "remote_output_too_long":
            raise RemoteError(
                f"The login prints more than {MOST_OUTPUT // 1024} KiB of its own.", _GUARD, code="login_output"
            ) from error
        if error.code == "remote_timeout":
            raise RemoteError(
                "The login does not finish even `echo`: a start file of its shell waits, or another command is forced.",
                f"{_GUARD} {_FORCED}",
                code="remote_timeout",
            ) from error
        raise


def _require_clean(result: Result, word: str) -> None:
    text = result.stdout
    if text == f"{word}\n".encode():
        return
    if word.encode() in text:
        others = text.replace(f"{word}\n".encode(), b"")
        raise RemoteError(
            f"The login prints text of its own, which mixes with the output of commands. The host's text: \""
            f'{quoted(others, LONGEST_QUOTE)}".',
            _GUARD,
            code="login_output",
        )
    if b"sftp connections only" in text:
        what, hint = "allows SFTP only, and no commands (ForceCommand internal-sftp)", _FORCED
    elif b"not available" in text or (result.exit_status not in (0, None) and not text):
        what, hint = (
            f"may not run commands (exit status {result.exit_status})",
            f"Its shell is one like nologin. {_SHELL}",
        )
    else:
        what, hint = "runs another command than the requested one", _FORCED
    raise RemoteError(f"The login {what}{_said(result)}.", hint, code="login_refuses_commands")


def _said(result: Result) -> str:
    """What the host printed, as a clause; empty if it printed nothing."""
    text = quoted(result.stdout, LONGEST_QUOTE) or quoted(result.stderr, LONGEST_QUOTE)
    return f'. The host\'s text: "{text}"' if text else ""
