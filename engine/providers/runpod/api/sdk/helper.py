"""The process that runs RunPod's SDK for all runners of a home.

`python -m engine.providers.runpod.api.sdk.helper --home HOME [--idle SECONDS]` exits with status 0 once its child
listens on a socket in HOME/allocations/, or with 1 if that failed. The child exits after `--idle` seconds without
requests, when its socket is gone, or when all of its threads are stuck. Key and server come from the environment.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from engine.errors import ProviderError
from engine.providers.runpod.api import errors, shared_files
from engine.providers.runpod.api.credentials import VARIABLE, api_key, base_url
from engine.providers.runpod.api.sdk import wire
from engine.store.salt import salt_of
from engine.wire import utc_now

if TYPE_CHECKING:
    from engine.providers.runpod.api.sdk.calls import Call, SdkCalls

THREADS: Final = 8
FAREWELL_SECONDS: Final = 30.0
_LOCK_SECONDS: Final = 5.0
_TICK: Final = 0.5
_LONGEST_LOG: Final = 64 * 1024


class Helper:
    """Serves one request per connection, each in its own thread, at most `THREADS` at once."""

    def __init__(self, calls: SdkCalls, new_call: Callable[[float], Call], identity: str) -> None:
        self._calls = calls
        self._new_call = new_call
        self._hello = wire.Hello(identity=identity, pid=os.getpid())
        self._slots = asyncio.Semaphore(THREADS)
        self._stuck = 0
        self._open = 0
        self._last = 0.0
        self.ending = asyncio.Event()

    async def serve(self, listening: socket.socket, path: Path, idle: float) -> str:
        """Serve until there is a reason to exit, which is returned."""
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        inode = _inode(path)
        reason = "SIGTERM"
        server = await asyncio.start_unix_server(self._client, sock=listening, limit=wire.LONGEST_LINE)
        async with server:
            while not self.ending.is_set():
                if self._stuck >= THREADS:
                    reason = "every thread is stuck"
                    break
                if not self._open and loop.time() - self._last >= idle:
                    reason = "no work"
                    break
                if _inode(path) != inode:
                    reason = "the socket is gone"
                    break
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.ending.wait(), min(_TICK, idle))
            if _inode(path) == inode:
                _remove(path)
            server.close()
            until = loop.time() + FAREWELL_SECONDS
            while self._open and loop.time() < until:  # noqa: ASYNC110  # running calls are finished, not cut
                await asyncio.sleep(0.02)
        return reason

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if wire.peer_user(writer) == os.getuid():
                await self._serve_one(reader, writer)
        except (OSError, ValueError, msgspec.MsgspecError):
            pass  # the client has left, or does not speak this protocol
        finally:
            self._open -= 1
            self._last = asyncio.get_running_loop().time()
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _send(writer, self._hello)
        line = await reader.readline()
        if line:
            await _send(writer, await self._answer(msgspec.json.decode(line, type=wire.Request)))

    async def _answer(self, request: wire.Request) -> wire.Reply:
        call = self._new_call(request.seconds)
        loop = asyncio.get_running_loop()
        until = loop.time() + request.seconds
        try:
            async with asyncio.timeout_at(until):
                await self._slots.acquire()
        except TimeoutError:
            late = errors.timed_out(request.seconds)
            return wire.Reply(failure=wire.failure_of(self._unordered(request, late)))
        future = self._begin(request, call)
        done, _ = await asyncio.wait({future}, timeout=until - loop.time())
        if done:
            return future.result()
        call.give_up()
        self._stuck += 1
        future.add_done_callback(self._unstick)
        late = errors.timed_out(request.seconds)
        return wire.Reply(failure=wire.failure_of(late if call.has_ordered else self._unordered(request, late)))

    def _begin(self, request: wire.Request, call: Call) -> asyncio.Future[wire.Reply]:
        """Run the call in a thread; the future gets its reply even if the client has given up."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[wire.Reply] = loop.create_future()

        def finish(reply: wire.Reply) -> None:
            self._slots.release()
            future.set_result(reply)

        def work() -> None:
            reply = self._perform(request, call)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(finish, reply)

        threading.Thread(target=work, daemon=True).start()
        return future

    def _perform(self, request: wire.Request, call: Call) -> wire.Reply:
        try:
            return self._dispatch(request, call)
        except ProviderError as error:
            return wire.Reply(failure=wire.failure_of(error))
        except Exception as error:  # the client needs a reply, without the text, which could hold a secret
            _log(f"a call failed with {type(error).__name__}")
            return wire.Reply(failure=wire.failure_of(errors.invalid()))

    def _dispatch(self, request: wire.Request, call: Call) -> wire.Reply:
        match request:
            case wire.Request(op="list_pods"):
                return wire.Reply(pods=self._calls.list_pods(call))
            case wire.Request(op="list_gpus"):
                return wire.Reply(gpus=self._calls.list_gpus(call))
            case wire.Request(op="create_pod", order=order) if order is not None:
                return wire.Reply(pod_id=self._calls.create_pod(call, order))
            case wire.Request(op="terminate_pod", pod_id=pod_id) if pod_id is not None:
                return wire.Reply(terminated=self._calls.terminate_pod(call, pod_id))
        raise errors.refused("an incomplete request")

    def _unordered(self, request: wire.Request, error: ProviderError) -> ProviderError:
        """The error for a call whose order was never sent: a creation then fails definitely."""
        return errors.nothing_ordered(error) if request.op == "create_pod" else error

    def _unstick(self, _: object) -> None:
        self._stuck -= 1


async def _serve(folder: Path, name: str, identity: str, key: str, idle: float, ready: int) -> str:
    # Imported only here, in this process: it takes two seconds and 60 MB.
    from engine.providers.runpod.api.sdk.calls import Call, SdkCalls  # noqa: PLC0415

    calls = SdkCalls(key)
    logging.disable(logging.CRITICAL)
    helper = Helper(calls, Call, identity)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, helper.ending.set)
    _remove(folder / name)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with wire.short_path(folder, name) as path:
        listening.bind(path)
    listening.listen()
    os.write(ready, b"1")
    os.close(ready)
    return await helper.serve(listening, folder / name, idle)


async def _send(writer: asyncio.StreamWriter, record: msgspec.Struct) -> None:
    writer.write(msgspec.json.encode(record) + b"\n")
    await writer.drain()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _log(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"{utc_now()} {os.getpid()} {text}", file=sys.stderr, flush=True)


def _silence_libraries() -> None:
    """Keep the text of exceptions out of the log: it could hold a key or an order."""

    def hook(kind: type[BaseException], *_: Any) -> None:
        _log(f"ended by {kind.__name__}")

    sys.excepthook = hook
    threading.excepthook = lambda args: hook(args.exc_type)
    sys.unraisablehook = lambda args: hook(args.exc_type)
    with contextlib.suppress(OSError):
        if os.fstat(sys.stderr.fileno()).st_size > _LONGEST_LOG:
            os.ftruncate(sys.stderr.fileno(), 0)


def _detach() -> int:
    """Continue in a child; this process exits when the child reports that it listens, or has ended."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        os.setsid()
        return write
    os.close(write)
    os._exit(0 if os.read(read, 1) else 1)


def main() -> NoReturn:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--idle", type=float, default=30.0)
    options = parser.parse_args()
    os.umask(0o077)
    ready = _detach()
    _silence_libraries()
    key, url = api_key(os.environ), base_url(os.environ)
    os.environ.pop(VARIABLE)
    folder = shared_files.folder_of(options.home)
    identity = wire.identity(key, salt_of(options.home), url)
    asyncio.run(_only_one(folder, identity, key.value, options.idle, ready))
    os._exit(0)


async def _only_one(folder: Path, identity: str, key: str, idle: float, ready: int) -> None:
    """Serve while holding the lock that allows one helper per key and server."""
    name = wire.socket_name(identity)
    async with shared_files.locked(folder / f"{name}.lock", _LOCK_SECONDS) as held:
        if not held:
            _log("another one serves")
            return
        _log("starts")
        _log(f"ends: {await _serve(folder, name, identity, key, idle, ready)}")


if __name__ == "__main__":
    main()
