"""Why no connection came about, in sentences: the name, the route, the algorithms, the host key, the login."""

from __future__ import annotations

import errno
import os
import re
import socket
from typing import TYPE_CHECKING, Final

import asyncssh

from engine.errors import RemoteError
from engine.remote.failures import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

_NUMBER: Final = re.compile(r"\[Errno (\d+)\]")
_NO_COMMON: Final = re.compile(r"No matching (.{1,40}) algorithm found, sent (\S*) and received (\S*)")
_TOO_MANY: Final = "too many authentication failures"
_NAMES: Final = 6
_WHY: Final = {
    errno.ECONNREFUSED: ("the connection is refused: nothing listens there", "Check the port, and that sshd runs."),
    errno.EHOSTUNREACH: ("there is no route to it", "Check the address, the network and a VPN, if one leads there."),
    errno.ENETUNREACH: (
        "this machine has no network that leads to it",
        "Check the network; an IPv6 address needs IPv6 on this machine too.",
    ),
    errno.ECONNRESET: ("the connection was reset", "Check what listens on that port, and the server's own log."),
    errno.ETIMEDOUT: ("no answer came in time", "Check the address, and whether a firewall drops the connection."),
    errno.EADDRNOTAVAIL: ("its address is not one that can be reached", "Check the address."),
}


def where_of(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def mismatch(where: str, expected: str = "", shown: asyncssh.SSHKey | None = None) -> RemoteError:
    """The error for a server whose host key is not the pinned one; `expected` is the fingerprint of that one."""
    presents = "another host key" if shown is None else f"the host key {shown.get_fingerprint()} ({_kind(shown)})"
    pinned = f"{expected} is" if expected else "another one is"
    return RemoteError(
        f"{where} presents {presents}, and {pinned} pinned for this allocation; nothing was sent to it.",
        "Release the allocation: somebody may be intercepting the connection, or the machine was replaced.",
        code="host_key_mismatch",
    )


def rejected(where: str, user: str, offered: Sequence[str], why: str = "") -> RemoteError:
    """The error for a login that the server does not accept; `offered` are the fingerprints of the client's keys."""
    keys = f"the key {offered[0]}" if len(offered) == 1 else f"{len(offered)} keys"
    reason = f" ({why})" if why else ""
    hint = (
        "The server counts each key of an agent as an attempt: name one with `key`, or load only that one into the "
        "agent."
        if _TOO_MANY in why.lower()
        else "Check that the allocation was created with this run's public key; for your own host, check the user, and "
        "that the public half of the key is in that user's authorized_keys."
    )
    return RemoteError(f"{where} rejected {keys} for user {quoted(user, 64)}{reason}.", hint, code="auth_rejected")


def no_common_algorithm(where: str, reason: str) -> RemoteError:
    """The error for a server that is too old for our algorithms, with what it offers and what is accepted."""
    found = _NO_COMMON.match(reason)
    if found is None:
        return failed(where, f"the key exchange failed: {quoted(reason, 120)}")
    return outdated(where, found[1], found[3].split(","), found[2].split(","))


def outdated(where: str, kind: str, offered: Sequence[str], accepted: Sequence[str]) -> RemoteError:
    """The error for a server whose algorithms of one kind are all refused here. Trying again cannot help."""
    return RemoteError(
        f"{where} offers no {kind} algorithm that is accepted here. It offers {_names(offered)}; accepted are "
        f"{_names(accepted)}.",
        "Update its OpenSSH (7.2 or newer has them), or allow one of the accepted ones in its sshd_config. What is "
        "accepted here cannot be weakened.",
        code="algorithms_outdated",
    )


def unreachable(where: str, host: str, error: OSError) -> RemoteError:
    """The error for a name that does not resolve, or an address that nothing answers at."""
    if isinstance(error, socket.gaierror):
        return failed(
            where,
            f"the name {quoted(host, 100)} cannot be resolved ({(error.strerror or 'unknown').lower()})",
            "Check the name and this machine's DNS, or give the address itself.",
        )
    numbers = [error.errno] if error.errno else [int(number) for number in _NUMBER.findall(str(error))]
    known = list(dict.fromkeys(_WHY[number] for number in numbers if number in _WHY))
    if known:
        return failed(where, "; ".join(why for why, _ in known), known[0][1])
    texts = dict.fromkeys(os.strerror(number).lower() for number in numbers)
    return failed(where, "; ".join(texts) or type(error).__name__)


def closed_early(where: str, error: BaseException) -> RemoteError:
    """The error for a server that hangs up before the login is complete."""
    said = quoted(getattr(error, "reason", "") or "", 120)
    return failed(
        where,
        f"it closed the connection before the login was complete{f' ({said})' if said else ''}",
        "Check that an SSH server listens there, and see its log: it may limit logins or addresses.",
    )


def failed(where: str, why: str, hint: str = "") -> RemoteError:
    """`connect_failed`: another attempt may succeed."""
    return RemoteError(
        f"No SSH connection to {where}: {why}.",
        hint or "Check that the allocation is running and can be reached.",
        code="connect_failed",
    )


def _kind(key: asyncssh.SSHKey) -> str:
    return key.get_algorithm()


def _names(names: Sequence[str]) -> str:
    clean = [quoted(name, 64) for name in names if name and not name.startswith(("ext-info", "kex-strict"))]
    more = f" and {len(clean) - _NAMES} more" if len(clean) > _NAMES else ""
    return (", ".join(clean[:_NAMES]) or "none") + more
