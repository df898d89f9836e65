"""`python -m tests.fake_runpod --dir DIR [--port P] [--key KEY]`: serves until SIGTERM or its parent's end."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from tests.fake_runpod.account import Account
from tests.fake_runpod.admin import Admin
from tests.fake_runpod.contract import Contract, document_path
from tests.fake_runpod.graphql_api import GraphqlApi
from tests.fake_runpod.needs import missing
from tests.fake_runpod.request_pipeline import RequestPipeline
from tests.fake_runpod.rest_api import RestApi
from tests.fake_runpod.views import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

HOST = "127.0.0.1"
_BODY_BYTES = 1024 * 1024


async def serve(folder: Path, port: int, key: str, settings: Settings) -> None:
    """Listen, print where in one line, and serve until a signal; every pod is terminated before this returns."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    parent = os.pidfd_open(os.getppid())
    loop.add_reader(parent, ended.set)
    account = Account(folder, key, settings)
    pipeline = RequestPipeline(account)
    contract = Contract(document_path())
    app = web.Application(client_max_size=_BODY_BYTES)
    for part in (GraphqlApi(account, pipeline), RestApi(account, pipeline, contract), Admin(account)):
        app.add_routes(part.routes())
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, HOST, port)
    await site.start()
    account.base_url = f"http://{HOST}:{runner.addresses[0][1]}"
    ready = {"url": account.base_url, "pid": os.getpid(), "key": key, "contract": contract.is_available}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    await ended.wait()
    await account.close()
    await runner.cleanup()


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fake_runpod", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where pods have their folders")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--key", default="", help="the account's API key; default: one is generated and printed")
    parser.add_argument("--settings", default="{}", help="JSON, see views.Settings")
    options = parser.parse_args(words)
    problem = missing()
    if problem:
        parser.exit(3, problem + "\n")
    settings = msgspec.json.decode(options.settings, type=Settings)
    options.dir.mkdir(parents=True, exist_ok=True)
    asyncio.run(serve(options.dir.resolve(), options.port, options.key or "rpa_" + secrets.token_hex(20), settings))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
