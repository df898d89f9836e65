"""Following an allocation's `events.jsonl` by byte offset: complete, verified lines, each once, all bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

from engine.errors import RemoteError, WireError
from engine.wire import MAX_LINE_BYTES, MAX_LOG_BYTES, ChainReader, Event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.remote.session import SshSession

T = TypeVar("T")

POLL_BYTES: Final = 4 * MAX_LINE_BYTES


class Caller(Protocol):
    """Something that runs an operation on a session: a session itself or a `Reconnecting` link."""

    async def call(self, operation: Callable[[SshSession], Awaitable[T]]) -> T:
        """Run the operation and return what it returns."""
        ...


class Tailed(NamedTuple):
    """A verified event and the offset after its line: where a later tail starts."""

    event: Event
    end: int


class Tail:
    """The log at `path` from `offset` on, verified by `reader`, whose head is that of the preceding line.

    `offset` and `reader` advance only over events that were returned.
    """

    def __init__(
        self, source: Caller, path: str, offset: int, reader: ChainReader, *, max_bytes: int = MAX_LOG_BYTES
    ) -> None:
        """`max_bytes`: the longest log that is accepted, from its first byte on."""
        self._source = source
        self._path = path
        self._reader = reader
        self._refusal: WireError | None = None
        self._drained_size = -1
        self._max_bytes = max_bytes
        self.offset = offset
        self.drained = False
        """Whether the last `poll` read all that the log held when it began, an incomplete last line included."""

    async def poll(self) -> list[Tailed]:
        """The new events whose lines are complete, `POLL_BYTES` at most; empty when there are none.

        An incomplete last line is left for a later poll. Raises `WireError`: `log_shrunk`, `log_too_long`,
        `log_line_too_long`, `log_not_a_file` and the errors of `ChainReader.feed`, once the valid events before the
        error have been returned; and `RemoteError` for the link.
        """
        if self._refusal is not None:
            raise self._refusal
        block = await self._source.call(self._read)
        start = self.offset
        tailed: list[Tailed] = []
        begin = 0
        try:
            while (end := block.find(b"\n", begin)) >= 0:
                event = self._reader.feed(block[begin:end])
                begin = end + 1
                self.offset = start + begin
                tailed.append(Tailed(event, self.offset))
            _require_line(len(block) - begin)
        except WireError as error:
            if not tailed:
                raise
            self._refusal = error
        return tailed

    async def _read(self, session: SshSession) -> bytes:
        """The bytes after the offset; empty if the file has not grown since all of it was read."""
        try:
            size = await session.size(self._path)
        except RemoteError as error:
            if error.code == "remote_not_a_file":
                raise WireError("The log is not a regular file.", code="log_not_a_file") from error
            raise
        if (size or 0) < self.offset:
            raise WireError("The log is shorter than it was.", code="log_shrunk")
        if size is None or size == self._drained_size:
            self.drained = True
            return b""
        if size > self._max_bytes:
            raise WireError("The log is longer than the limit.", code="log_too_long")
        wanted = min(POLL_BYTES, size - self.offset)
        block = await session.read_at(self._path, self.offset, wanted)
        if len(block) < wanted:
            # A size that is never reached would hide until when the runner had seen nothing: times would be unbounded.
            raise WireError("The log has fewer bytes than its server states.", code="log_shrunk")
        self.drained = self.offset + len(block) == size
        self._drained_size = size if self.drained else -1
        return block


def _require_line(length: int) -> None:
    if length > MAX_LINE_BYTES:
        raise WireError("A log line is longer than the limit.", code="log_line_too_long")
