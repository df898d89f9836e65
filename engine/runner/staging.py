"""Builds and delivers what the allocation needs: bundle, job, payload in the clear, sealed package."""

from __future__ import annotations

import base64
import hashlib
import platform
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from engine.attestation.measurement import Measurements
from engine.attestation.policy import Policy, default_policy, policy_digest, policy_from
from engine.events import PackageSealed
from engine.payload.build import ADAPTER, Payload, build_payload
from engine.payload.local_files import files_from
from engine.payload.model import HUB
from engine.payload.prepare.cache import token_cache
from engine.plan import Plan, dump_plan, plan_digest
from engine.providers.protocol import Lease
from engine.providers.settings import Settings
from engine.records.adapters.tokenizers import TOKENIZER_FILE, keep_tokenizer
from engine.records.reference import remember
from engine.remote.bundle import build_bundle, bundle_digest, site_paths
from engine.remote.launch import Launched, launch
from engine.remote.reconnect import Reconnecting
from engine.remote.session import SshSession
from engine.remote.transfer import upload
from engine.runner.environment_local import EnvironmentReference
from engine.runner.environment_remote import (
    REFERENCE,
    Pinned,
    Source,
    chosen_lock,
    lock_in,
    make_ready,
    pinned,
    with_prepared_paths,
)
from engine.runner.folder import ADAPTER_CONFIG, FILES, INPUTS, RunFolder
from engine.runner.ingest import Expected
from engine.runner.journal import Journal
from engine.sealing.manifest import Manifest
from engine.sealing.memory import wipe
from engine.sealing.operator_keys import read_public
from engine.sealing.package import SEALED_SUFFIX, read_manifest, seal_package
from engine.sealing.run_key import RunKey
from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.system.files import open_named
from engine.wire import canonical, digest_of, parse, sha256_hex
from engine.worker.job import JOB_FILE, Job

PREPARED: Final = "prepared.json"
CONTENT_KEYS: Final = "content_keys.sealed"
JOB: Final = "job.json"
PACKAGE: Final = "package"
BUNDLE: Final = "bundle.pyz"
LAUNCHED: Final = "launched.json"
SALT: Final = "salt"
SALT_BYTES: Final = 32


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """The results of the preparation; stored, so that they survive a restart of the runner."""

    manifest_digest: str | None
    payload_files: dict[str, str]
    hub_weights: dict[str, str]
    model_type: str
    noise_seed: int
    adapter_bytes: int | None = None
    """The size of the adapter before its first step, which training does not change; None in earlier versions."""


class References(msgspec.Struct, frozen=True, kw_only=True):
    """The values that evidence from this run's allocation is compared with.

    `pod_id` is the digest of the provider's id for the allocation, `ssh_host_key` that of the pinned key.
    """

    measurements: Measurements
    pod_id: str
    ssh_host_key: str


class Staging:
    """Everything that goes to the allocation of one run."""

    def __init__(self, plan: Plan, folder: RunFolder, writer: Writer, journal: Journal, run_id: str) -> None:
        self.plan = plan
        self.folder = folder
        self.run_id = run_id
        chosen = (folder.read_json(INPUTS) or {}).get("policy")
        self.policy: Policy = default_policy() if chosen is None else policy_from(chosen)
        self.run_key = RunKey.load(folder.path, run_id)
        self._writer = writer
        self._journal = journal
        self._payload: Payload | None = None
        self._bundle = folder.read(BUNDLE) or b""
        self._job = b""
        stored = folder.read(PREPARED)
        self._prepared = None if stored is None else msgspec.json.decode(stored, type=Prepared)
        self._reference: EnvironmentReference | None = None
        self._pinned: Pinned | None = pinned(folder)
        self._sealed: tuple[int, int] | None = None

    @property
    def is_prepared(self) -> bool:
        """True once bundle, payload and package exist."""
        return self._prepared is not None

    @property
    def is_launched(self) -> bool:
        """True once a supervisor runs what was staged."""
        return self._prepared is not None and self.folder.read(LAUNCHED) is not None

    @property
    def prepared(self) -> Prepared:
        """Only after `prepare`."""
        if self._prepared is None:
            raise RuntimeError("`prepare` was not called yet")
        return self._prepared

    @property
    def bundle_digest(self) -> str:
        """The reference value of the bundle: what this installation builds."""
        return bundle_digest(self._bundle)

    @property
    def sealing(self) -> str:
        """The progress of sealing the package, as text for the user; empty before it began."""
        if self._sealed is None:
            return ""
        done, total = self._sealed
        return f"sealing the package: {done * 100 // max(total, 1)} % of {total / 2**20:,.1f} MiB"

    def references(self, lease: Lease) -> References:
        """The reference values for evidence from this lease; waits until the environment was measured.

        The local allocation's environment is this installation's own and measured here; any other was measured there
        before anything of the run was staged (`make_ready`).
        """
        measurements = Measurements(
            bundle=self.bundle_digest, lock=digest_of(lock_in(self._bundle)), environment=self._environment(lease)
        )
        # The home's own reference values: `verify` knows its rows by them, without a database.
        remember(self.folder.home, measurements, on_this_machine=lease.environment == "own")
        return References(
            measurements=measurements,
            pod_id=allocation_digest(lease),
            ssh_host_key=host_key_digest(lease, self._salt()),
        )

    def _environment(self, lease: Lease) -> str:
        if lease.environment != "own":
            environment = self._pinned
            if environment is None or environment.measured is None or environment.allocation_id != lease.allocation_id:
                raise RuntimeError("the allocation's environment was not measured yet")
            return environment.measured.digest
        if self._reference is None:
            raise RuntimeError("`prepare` was not called yet")
        digest = self._reference.result()
        own: Source = "own"
        self._writer.evidence(
            self.run_id, "environment", {"source": own, "python": platform.python_version(), "digest": digest}
        )
        return digest

    async def make_ready(
        self, link: Reconnecting, lease: Lease, on_phase: Callable[[str], None] | None = None
    ) -> Lease:
        """Make the environment of the lease ready and pin its measurement; returns the lease with absolute paths.

        Call it after `prepare` and before `expected`. The local allocation's lease is returned unchanged; what an
        earlier runner of this run made ready is not prepared again.
        """
        if lease.environment == "own":
            return lease
        environment = self._pinned
        if environment is None or environment.allocation_id != lease.allocation_id:
            with Reader(self.folder.home) as reader:
                environment = await make_ready(
                    link,
                    lease,
                    run_id=self.run_id,
                    bundle=self._bundle,
                    measured=self.plan.segments != "raw",
                    writer=self._writer,
                    reader=reader,
                    on_phase=on_phase,
                )
            self.folder.write(REFERENCE, msgspec.json.encode(environment))
            self._pinned = environment
        self._writer.evidence(self.run_id, "environment", environment.evidence())
        return with_prepared_paths(lease, environment)

    def recipient_public(self) -> str:
        """The operator's raw public recipient key, in base64."""
        public = read_public(self.folder.home / "keys")
        return base64.b64encode(bytes.fromhex(public.recipient)).decode()

    def manifest(self) -> Manifest:
        """The package's manifest."""
        return read_manifest(self.folder.path / PACKAGE)

    def prepare(self, settings: Settings) -> None:
        """Build bundle and payload, seal the package. A second call after a restart builds the same payload again."""
        if not self._bundle:
            # Stored, so that a runner of a newer version continues with the bundle that was launched.
            lock = chosen_lock(self.plan, self.folder, settings)
            self._bundle = build_bundle(lock)
            self.folder.write(BUNDLE, self._bundle)
            self._writer.evidence(self.run_id, "lock", dict(lock))
        if self.plan.segments != "raw" and self._reference is None and self.plan.provider.kind.on_this_machine:
            self._reference = EnvironmentReference(self.folder.home, site_paths())
        if self.is_launched:
            return  # nothing more is sent, and the input files may no longer exist
        inputs = self.folder.read_json(INPUTS) or {}
        local = files_from(inputs.get(FILES) or {})
        # What came through a pipe is kept in the run's folder alone.
        is_taken_over = self.folder.path in {path.parent for path in (local.data, local.held_out) if path is not None}
        payload = build_payload(self.plan, local, cache=None if is_taken_over else token_cache(self.folder.home))
        self._payload = payload
        if self._prepared is not None:
            return
        files = {name: content for name, content in payload.files.items() if name != HUB}
        digest = None
        if self.plan.segments != "raw":
            shutil.rmtree(self.folder.path / PACKAGE, ignore_errors=True)
            sealed = seal_package(
                files,
                self.folder.path / PACKAGE,
                run_id=self.run_id,
                plan_digest=plan_digest(self.plan),
                policy_digest=policy_digest(self.policy),
                progress=self._on_sealing_progress,
            )
            try:
                self.folder.write(CONTENT_KEYS, self.run_key.seal_keys(sealed.keys))
            finally:
                wipe(sealed.keys)
            digest = sealed.digest
        hub = parse(_content(payload.files[HUB])) if HUB in payload.files else {}
        config = parse(_content(payload.files["config.json"]))
        self.folder.write(ADAPTER_CONFIG, _content(payload.files["adapter_config.json"]))
        self.folder.write(TOKENIZER_FILE, keep_tokenizer(self.folder.home, payload.tokenizer).encode())
        prepared = Prepared(
            manifest_digest=digest,
            payload_files={} if self.plan.segments == "protected" else {n: _sha256(c) for n, c in files.items()},
            hub_weights={name: entry["sha256"] for name, entry in hub.get("files", {}).items()},
            model_type=str(config.get("model_type", "")),
            noise_seed=payload.noise_seed,
            adapter_bytes=len(_content(payload.files[ADAPTER])),
        )
        self._writer.evidence(
            self.run_id,
            "payload",
            {
                "samples": payload.samples,
                "dropped": payload.dropped,
                "truncated": payload.truncated,
                "orderDigest": payload.order_digest,
                "initDigest": payload.init_digest,
                "tokensDigest": payload.tokens_digest,
                "modelDigest": payload.model_digest,
            },
        )
        self._journal.add(
            PackageSealed(
                manifest_digest=digest,
                plan_digest=plan_digest(self.plan),
                bundle_digest=self.bundle_digest,
                samples=payload.samples,
            )
        )
        self.folder.write(PREPARED, msgspec.json.encode(prepared))
        self._prepared = prepared

    def _on_sealing_progress(self, done: int, total: int) -> None:
        self._sealed = (done, total)

    def adapter_config(self) -> bytes:
        """peft's configuration of the adapter, for the collected folder."""
        return self.folder.read(ADAPTER_CONFIG) or b""

    def tokenizer_digest(self) -> bytes | None:
        """Which kept tokenizer the run used, for the collected folder; None if an earlier version prepared the run."""
        return self.folder.read(TOKENIZER_FILE)

    def expected(self, lease: Lease) -> Expected:
        """What the launch event must name."""
        self._job = self._make_job(lease)
        return Expected(self.bundle_digest, sha256_hex(self._job))

    def _salt(self) -> bytes:
        """The salt of this run's digests, generated once."""
        salt = self.folder.read(SALT)
        if salt is None:
            salt = secrets.token_bytes(SALT_BYTES)
            self.folder.write(SALT, salt)
        return salt

    def run_dir(self, lease: Lease) -> str:
        """The run's folder on the allocation."""
        return f"{lease.root}/{self.run_id}"

    def _make_job(self, lease: Lease) -> bytes:
        stored = self.folder.read(JOB)
        if stored is not None:
            return stored
        prepared = self.prepared
        job = Job(
            run_id=self.run_id,
            allocation_id=allocation_digest(lease),
            plan=dump_plan(self.plan),
            plan_digest=plan_digest(self.plan),
            policy=msgspec.to_builtins(self.policy),
            policy_digest=policy_digest(self.policy),
            manifest_digest=prepared.manifest_digest,
            payload_files=prepared.payload_files,
            hub_weights=prepared.hub_weights,
            hub_revision=self.plan.model.revision if self.plan.model.source == "hub" else None,
            model_type=prepared.model_type,
            noise_seed=prepared.noise_seed,
            run_public_key=base64.b64encode(self.run_key.public).decode(),
            recipient_public_key=self.recipient_public(),
            ssh_host_key_digest=host_key_digest(lease, self._salt()),
        )
        encoded = canonical(msgspec.to_builtins(job))
        self.folder.write(JOB, encoded)
        return encoded

    async def deliver(self, link: Reconnecting, lease: Lease) -> Launched:
        """Upload every file and launch the supervisor; what is already there is not sent again."""
        run_dir = self.run_dir(lease)
        earlier = self.folder.read(LAUNCHED)
        if earlier is not None:
            return msgspec.json.decode(earlier, type=Launched)

        async def stage(session: SshSession) -> Launched:
            if not await session.exists(f"{run_dir}/{JOB_FILE}"):
                await session.mkdir(run_dir)
                for name in ("inbox", "outbox", "scratch", "raw", "package"):
                    await session.mkdir(f"{run_dir}/{name}")
                await self._upload_payload(session, run_dir)
                await upload(session, self._bundle, f"{run_dir}/{BUNDLE}")
                await upload(session, self._job, f"{run_dir}/{JOB_FILE}")
            return await launch(
                session,
                python=lease.python,
                bundle_path=f"{run_dir}/{BUNDLE}",
                sha256=self.bundle_digest,
                run_dir=run_dir,
                site_paths=lease.site_paths,
            )

        launched = await link.call(stage)
        self.folder.write(LAUNCHED, msgspec.json.encode(launched))
        return launched

    async def _upload_payload(self, session: SshSession, run_dir: str) -> None:
        if self._payload is None:
            raise RuntimeError("`prepare` was not called yet")
        for name in self.prepared.payload_files:
            await upload(session, self._payload.files[name], f"{run_dir}/raw/{name}")
        if self.prepared.manifest_digest is not None:
            package = self.folder.path / PACKAGE
            for entry in self.manifest().files:
                name = f"{entry.name}{SEALED_SUFFIX}"
                await upload(session, package / name, f"{run_dir}/package/{name}")
            await upload(session, package / "manifest.json", f"{run_dir}/package/manifest.json")


def allocation_digest(lease: Lease) -> str:
    """SHA-256 over the provider's id, in place of which it is published.

    A pod's addresses derive from its id, and a static host's id is its name in the settings.
    """
    return sha256_hex(lease.allocation_id.encode())


def host_key_digest(lease: Lease, salt: bytes) -> str:
    """SHA-256 over the run's salt and the pinned host key's line, which the nonce binds.

    It is published, and without the salt a scan of the internet's SSH host keys would lead to the address.
    """
    return sha256_hex(salt + (lease.address.host_key if lease.address else "").strip().encode())


def _content(source: bytes | Path) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _sha256(source: bytes | Path) -> str:
    if isinstance(source, bytes):
        return sha256_hex(source)
    with open_named(source) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
