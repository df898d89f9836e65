"""Everything that can refuse a run before it is entered: its inputs, its model, and the machine that it asks for."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from engine.errors import GlasshouseError, UsageError
from engine.payload.inputs import Inputs, describe_inputs, with_digests
from engine.payload.local_files import NO_FILES, LocalFiles
from engine.payload.memory import Estimate, estimate, longest_that_fits
from engine.payload.model import ModelDescription
from engine.payload.prepare.cache import token_cache
from engine.payload.prepare.pipeline import Progress
from engine.plan import Plan, checked
from engine.providers import devices_of, preflight
from engine.providers.protocol import Device, Spec
from engine.providers.settings import Settings
from engine.runner.allocation import kept_allocation
from engine.runner.spec import LARGEST_DISK_GB, chosen_host, disk_gb, spec_for
from engine.store.reader import Reader

OFFLINE: Final = frozenset(
    {"hub_offline", "hub_unreachable", "hub_rate_limited", "api_unavailable", "api_timeout", "api_rate_limited"}
)
"""Codes of errors that say nothing about the run: somebody could not be asked."""
CPU_PARAMETERS: Final = 3_000_000_000
"""The largest model for a processor: a step of 64 tokens on 3e9 weights takes about 10 s on 16 cores."""
SMALL_BYTES: Final = 2 * 1024**3
"""A run that needs less fits every device, and none is asked for."""
SMALL_FILES: Final = 100_000_000
"""Bytes below which no room is asked for: a disk that lacks them stops a run before its package is complete."""
_GIB: Final = 1024**3
_GB: Final = 10**9


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What the run needs on one device, as an estimate."""

    device: Device
    estimate: Estimate


class Feasible(msgspec.Struct, frozen=True, kw_only=True):
    """A run that nothing speaks against. `plan` has its digests and a publishable allocation.

    `inputs` is None, and `unchecked` says why, only where a tolerant check could not ask somebody.
    """

    plan: Plan
    inputs: Inputs | None
    needs: tuple[Need, ...]
    unchecked: tuple[str, ...]

    @property
    def weights_bytes(self) -> int | None:
        """What the model's weights take on the allocation's disk; None if the hub could not be asked."""
        return None if self.inputs is None else weights_there(self.plan, self.inputs.model)


class _Steps:
    """The steps of a check; a tolerant one notes those for which nobody could be asked."""

    def __init__(self, *, tolerant: bool) -> None:
        self.unchecked: list[str] = []
        self._tolerant = tolerant

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        try:
            yield
        except GlasshouseError as error:
            if not self._tolerant or error.code not in OFFLINE:
                raise
            self.unchecked.append(f"{what}: {error.message}")


def check_run(
    home: Path,
    plan: Plan,
    settings: Settings,
    files: LocalFiles = NO_FILES,
    *,
    tolerant: bool = False,
    allow_loss: bool = False,
    progress: Progress | None = None,
) -> Feasible:
    """Check a run without entering, renting or training anything.

    A `tolerant` check, for a dry run, notes what it could not ask the hub or the provider. Without `allow_loss`, data
    that loses most of its answers is refused; `progress` is called with the bytes of it that were read, and all.
    Raises a `GlasshouseError` for every refusal, among them `model_too_large`, `model_needs_gpu`, `disk_too_small`,
    `data_mostly_lost`.
    """
    steps = _Steps(tolerant=tolerant)
    plan = checked(plan)
    with steps.step(f"provider {plan.provider.name}"):
        preflight(plan.provider.name, home, settings, plan.provider.allocation)
    plan = with_published_name(home, plan, settings)
    inputs: Inputs | None = None
    needs: tuple[Need, ...] = ()
    with steps.step(f"model {plan.model.name}, and the data's tokens"):
        inputs = describe_inputs(
            plan,
            files,
            cache=None if files.temporary else token_cache(home),
            fits=lambda plan, model: _longest(home, plan, settings, model),
            allow_loss=allow_loss,
            progress=progress,
        )
        plan = checked(with_digests(plan, inputs))
    if inputs is not None:
        check_disk(home, plan, settings, inputs.model)
        with steps.step("memory of the device"):
            needs = _needs(home, plan, settings, inputs.model, always=tolerant)
        check_memory(inputs.model, needs)
        if tolerant and not needs:
            steps.unchecked.append("memory of the device: its kind is not known before the login")
    return Feasible(plan=plan, inputs=inputs, needs=needs, unchecked=tuple(steps.unchecked))


def with_published_name(home: Path, plan: Plan, settings: Settings) -> Plan:
    """The plan with a publishable name for its allocation.

    Plans are published; a pod's addresses derive from the provider's id, and a static host's name may be its address.
    """
    requested = plan.provider.allocation
    if plan.provider.name == "static":
        name = chosen_host(home, settings, requested)
    elif requested is not None and plan.provider.kind.rents:
        with Reader(home) as reader:
            name = kept_allocation(reader, requested).id
    else:
        return plan
    return msgspec.structs.replace(plan, provider=msgspec.structs.replace(plan.provider, allocation=name))


def _longest(home: Path, plan: Plan, settings: Settings, model: ModelDescription) -> int | None:
    """The longest samples that fit on every device which the run may get; None if that is not known or the model alone
    is too large, which is refused by itself.
    """
    try:
        needs = _needs(home, plan, settings, model, always=False)
    except GlasshouseError as error:
        if error.code in OFFLINE:
            return None
        raise
    memories = [(need.device.kind, need.device.memory) for need in needs if need.device.memory is not None]
    return min((longest_that_fits(plan, model, kind, memory) for kind, memory in memories), default=0) or None


def _needs(home: Path, plan: Plan, settings: Settings, model: ModelDescription, *, always: bool) -> tuple[Need, ...]:
    """What the run needs on every device that it may get; empty for a small run, which fits all of them.

    Where a GPU is rented the provider is asked for a small run too, since it may not know the names of the GPUs.
    """
    is_small = max(estimate(plan, model, kind).total for kind in ("cuda", "cpu")) <= SMALL_BYTES
    if is_small and not always and not plan.provider.kind.rents:
        return ()
    try:
        devices = devices_of(plan.provider.name, home, settings, _spec(home, plan, settings))
    except GlasshouseError as error:
        if is_small and not always and error.code in OFFLINE:
            return ()  # the runner asks again, and waits for an answer
        raise
    return tuple(Need(device=one, estimate=estimate(plan, model, one.kind)) for one in devices)


def _spec(home: Path, plan: Plan, settings: Settings) -> Spec:
    """The devices that the plan asks for; on a kept allocation, the one that it has."""
    spec, request = spec_for(home, plan, settings, "check"), plan.provider
    if not request.kind.rents or request.allocation is None:
        return spec
    with Reader(home) as reader:
        gpu = kept_allocation(reader, request.allocation).gpu_model
    return msgspec.structs.replace(spec, gpus=() if gpu is None else (gpu,))


def check_memory(model: ModelDescription, needs: tuple[Need, ...]) -> None:
    """Refuse a model that is too large for a device that the run may get.

    Raises `UsageError`: `model_needs_gpu`, `model_too_large`.
    """
    for need in needs:
        device, total = need.device, need.estimate.total
        if device.kind == "cpu" and model.parameters > CPU_PARAMETERS:
            raise UsageError(
                f"This machine has no GPU that torch can use, and a model of {model.parameters / 1e9:.1f} thousand "
                f"million weights is not trained on a processor (limit {CPU_PARAMETERS / 1e9:g}).",
                "Run it on a GPU with --provider runpod or --provider static, or choose a smaller --model.",
                code="model_needs_gpu",
            )
        if device.memory is not None and total > device.memory:
            where = f"{device.name} has {device.memory / _GIB:.1f} GiB"
            raise UsageError(
                f"The run needs an estimated {total / _GIB:.1f} GiB of memory, and {where}"
                f"{' free' if device.kind == 'cpu' else ''}.",
                "Choose a GPU with more memory, or a smaller model, --batch or --max-length."
                if device.kind == "cuda"
                else "Free memory, run it on a GPU with --provider, or choose a smaller --model.",
                code="model_too_large",
            )


def check_disk(home: Path, plan: Plan, settings: Settings, model: ModelDescription) -> None:
    """Refuse a model for which this machine's disk, or the disk that the settings order, has no room.

    A folder's weights are sealed here for a protected segment. Raises `UsageError` (`disk_too_small`).
    """
    there = weights_there(plan, model)
    if model.hub is None:
        here = model.stored_bytes if "protected" in plan.kinds() else 0
        _require_free(home, here + (there if plan.provider.kind.on_this_machine else 0), "choose another --home")
    elif plan.provider.kind.on_this_machine:
        _require_free(model.hub.cache, model.hub.uncached_bytes, "set HF_HOME to another disk")
    if plan.provider.kind.rents and plan.provider.allocation is None:
        _require_ordered(_GB * disk_gb(plan, there), settings.runpod.disk_gb)


def weights_there(plan: Plan, model: ModelDescription) -> int:
    """The bytes of the weights on the allocation's disk: a hub model's are downloaded there once, others copied once
    for each kind of segment.
    """
    return model.download_bytes or len(set(plan.kinds())) * model.stored_bytes


def _require_ordered(needed: int, ordered_gb: int | None) -> None:
    given, hint = f"config.toml orders {ordered_gb} GB", "Raise or remove disk_gb under [runpod] in config.toml."
    if ordered_gb is None:
        given, hint = f"at most {LARGEST_DISK_GB} GB are ordered", "Choose a smaller --model."
    if needed > (ordered_gb or LARGEST_DISK_GB) * _GB:
        raise _no_room("The environment and the weights need", needed, given, hint)


def _require_free(folder: Path, needed: int, otherwise: str) -> None:
    free = _free_bytes(folder) if needed > SMALL_FILES else None
    if free is not None and needed > free:
        given = f"the disk of {folder} has {free / _GB:.1f} GB free"
        raise _no_room("The weights take", needed, given, f"Free some space, or {otherwise}.")


def _no_room(what: str, needed: int, given: str, hint: str) -> UsageError:
    return UsageError(f"{what} {needed / _GB:.1f} GB, and {given}.", hint, code="disk_too_small")


def _free_bytes(folder: Path) -> int | None:
    """Free space on the disk where the folder is or will be."""
    existing = next((one for one in (folder, *folder.parents) if one.is_dir()), None)
    try:
        return None if existing is None else shutil.disk_usage(existing).free
    except OSError:
        return None
