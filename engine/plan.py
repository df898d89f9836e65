"""Plans: what to run, validated, canonical, with a digest. Presets are plans by name."""

from __future__ import annotations

import math
import re
from typing import Any, Final, Literal

import msgspec

from engine.errors import PlanError, WireError
from engine.system.resources import data_path
from engine.wire import digest_of, parse

Order = Literal["raw-first", "protected-first"]
Segments = Literal["pair", "protected", "raw"]
SegmentKind = Literal["raw", "protected"]
StopReason = Literal["target_seconds", "step_budget", "nonfinite_loss", "cancelled", "error", "lease_expired"]

PLAN_VERSION: Final = 1
LORA_TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
MAX_SECONDS: Final = 7 * 24 * 3600
PREPARATION_SECONDS: Final = 3600.0
MARGIN: Final = 1.25
STEPS_SECONDS: Final = 12 * 3600.0
"""How long a segment with a step budget may take: the step rate is not known in advance."""
MAX_STEPS: Final = 100_000_000
MAX_KEEP_MINUTES: Final = 7 * 24 * 60
MAX_SEED: Final = 2**53 - 1
"""The largest integer that canonical JSON carries exactly."""
_COMMIT: Final = re.compile("[0-9a-f]{40}")


class _Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Lora(_Frozen, frozen=True, kw_only=True):
    """LoRA settings (Hu et al. 2021); dropout is 0 so that both segments do the same work."""

    r: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = LORA_TARGETS


class Training(_Frozen, frozen=True, kw_only=True):
    """The training loop's settings. `dtype` "auto" is bfloat16 if the device supports it, else float32."""

    learning_rate: float = 1e-4
    batch: int = 1
    max_length: int = 64
    grad_clip: float = 1.0
    weight_decay: float = 0.0
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    warmup_steps: int = 20
    checkpoint_every: int = 250
    fail_on_nonfinite: bool = True


class Target(_Frozen, frozen=True, kw_only=True):
    """When a segment stops: at the first step that crosses `seconds`, or after `steps`; exactly one is set."""

    seconds: float | None = None
    steps: int | None = None


class Model(_Frozen, frozen=True, kw_only=True):
    """`tiny`: generated from the seed. `folder`: a complete local folder. `hub`: by id at a pinned revision.

    `digest` covers the files that the payload is built from (`folder`), else None.
    """

    source: Literal["tiny", "folder", "hub"]
    name: str
    revision: str | None = None
    digest: str | None = None


class Data(_Frozen, frozen=True, kw_only=True):
    """`builtin` is the shipped corpus. `digest` is the file's SHA-256. `public`: the operator declared it so.

    `stand_in`: a pair trains on synthetic samples of the same shape in place of the file.
    """

    source: Literal["builtin", "file"] = "builtin"
    name: str = "sample-corpus"
    digest: str | None = None
    samples: int | None = None
    public: bool = True
    stand_in: bool = False


class ProviderKind(msgspec.Struct, frozen=True, kw_only=True):
    """The properties of a provider that are needed without loading it."""

    name: str
    on_this_machine: bool = False
    """Runs share this machine's processes and its Python environment, and cost nothing."""
    rents: bool = False
    """Allocations are created for a run and bill by the hour until they are terminated."""
    exclusive: bool = False
    """One run at a time uses an allocation; the others wait, so that they do not distort each other's timings."""
    deletes: bool = True
    """Releasing an allocation removes it, which is then proven. A static host stays."""
    console_url: str | None = None
    """Where the user can terminate allocations without this program."""


PROVIDERS: Final = {
    kind.name: kind
    for kind in (
        ProviderKind(name="local", on_this_machine=True, exclusive=True),
        ProviderKind(name="static", exclusive=True, deletes=False),
        ProviderKind(name="runpod", rents=True, console_url="https://console.runpod.io/pods"),
    )
}
"""The one table of providers; `engine.providers.provider_for` loads one."""
RENTED: Final = frozenset(kind.name for kind in PROVIDERS.values() if kind.rents)
FREE: Final = frozenset(kind.name for kind in PROVIDERS.values() if kind.on_this_machine)


class ProviderRequest(_Frozen, frozen=True, kw_only=True):
    """Where to run. Prices are USD: `max_price` an hour, `max_cost` for the run. `keep_for` in minutes."""

    name: str = "local"
    gpus: tuple[str, ...] = ()
    allocation: str | None = None
    max_price: float | None = None
    max_cost: float | None = None
    keep_for: int | None = None

    @property
    def kind(self) -> ProviderKind:
        """The provider's entry in the table; raises `PlanError` (`provider_unknown`) for a plan that names another."""
        try:
            return PROVIDERS[self.name]
        except KeyError:
            raise PlanError(
                f"There is no provider called {self.name!r}.",
                f"Choose one of: {', '.join(PROVIDERS)}.",
                code="provider_unknown",
            ) from None


class Plan(_Frozen, frozen=True, kw_only=True):
    """What to run; frozen. `ours` names the settings that the published article does not specify."""

    version: int = PLAN_VERSION
    label: str
    preset: str | None = None
    segments: Segments = "pair"
    order: Order = "raw-first"
    model: Model
    data: Data = Data()
    lora: Lora = Lora()
    training: Training = Training()
    target: Target
    seed: int = 20260517
    provider: ProviderRequest = ProviderRequest()
    challenge: str | None = None
    margin_pct: float = 1.0
    inject_overhead_pct: float = 0.0
    ours: tuple[str, ...] = ()

    def kinds(self) -> tuple[SegmentKind, ...]:
        """The segments in the order in which they run."""
        if self.segments == "raw":
            return ("raw",)
        if self.segments == "protected":
            return ("protected",)
        return ("raw", "protected") if self.order == "raw-first" else ("protected", "raw")


def plan_digest(plan: Plan) -> str:
    """SHA-256 in hex over the plan's canonical JSON."""
    return digest_of(msgspec.to_builtins(plan))


def dump_plan(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-ready builtins."""
    built: dict[str, Any] = msgspec.to_builtins(plan)
    return built


def load_plan(raw: object) -> Plan:
    """A validated plan from builtins; raises `PlanError`."""
    try:
        plan = msgspec.convert(raw, Plan, strict=True)
    except msgspec.ValidationError as error:
        raise PlanError(f"This plan is not valid: {error}.", "Create the run again with `glasshouse run`.") from error
    return checked(plan)


def _positive(name: str, value: float | None, *, flag: str, most: float = math.inf) -> None:
    if value is None:
        return
    if isinstance(value, int) and abs(value) > MAX_SEED:  # too large for the float functions below
        raise PlanError(f"The {name} is out of range.", f"Give {flag} another number.")
    if not math.isfinite(value) or value <= 0:
        raise PlanError(f"The {name} must be greater than zero, not {value:g}.", f"Give {flag} a positive number.")
    if value > most:
        raise PlanError(f"The {name} {value:g} is above the limit of {most:g}.", f"Give {flag} a smaller number.")


def _check_target(target: Target) -> None:
    if (target.seconds is None) == (target.steps is None):
        raise PlanError("A run stops by time or by steps: exactly one of the two.", "Give either --seconds or --steps.")
    _positive("target in seconds", target.seconds, flag="--seconds", most=MAX_SECONDS)
    _positive("step budget", target.steps, flag="--steps", most=MAX_STEPS)


def _check_training(training: Training) -> None:
    _positive("learning rate", training.learning_rate, flag="--lr", most=10)
    _positive("batch size", training.batch, flag="--batch", most=1024)
    _positive("maximum length", training.max_length, flag="--max-length", most=131_072)
    _positive("gradient clip", training.grad_clip, flag="the preset's gradClip")
    if training.max_length < 2:
        raise PlanError("A sample needs at least two tokens.", "Give --max-length 2 or more.")
    if not (0 <= training.warmup_steps <= MAX_STEPS and 1 <= training.checkpoint_every <= MAX_STEPS):
        raise PlanError(
            "The warm-up steps or the checkpoint interval are out of range.",
            "Use a warm-up of 0 steps or more, and an interval of 1 step or more.",
        )
    if not (math.isfinite(training.weight_decay) and training.weight_decay >= 0):
        raise PlanError("The weight decay must not be negative.", "Set the preset's weightDecay to zero or more.")


def _check_lora(lora: Lora) -> None:
    _positive("LoRA rank", lora.r, flag="--lora-r", most=1024)
    _positive("LoRA alpha", lora.alpha, flag="--lora-alpha", most=65_536)
    if not lora.targets or len(set(lora.targets)) != len(lora.targets) or not set(lora.targets) <= set(LORA_TARGETS):
        raise PlanError(
            "The LoRA targets are not distinct attention projections.",
            f"Choose from {', '.join(LORA_TARGETS)}.",
        )


def _check_inputs(plan: Plan) -> None:
    if plan.model.source == "hub" and not _COMMIT.fullmatch(plan.model.revision or ""):
        raise PlanError(
            f"The hub model {plan.model.name} has no pinned revision.",
            "Add --revision with a full commit id.",
        )
    if plan.segments != "protected" and not (plan.data.public or plan.data.stand_in):
        raise PlanError(
            "A raw segment stores its data unencrypted on the allocation, and this data is not declared public.",
            "Use --segments protected, or --stand-in, or, if the data really is public, --public-data.",
            code="data_not_public",
        )


def _check_figures(plan: Plan) -> None:
    _positive("price ceiling", plan.provider.max_price, flag="--max-price")
    _positive("cost ceiling", plan.provider.max_cost, flag="--max-cost")
    _positive("keep time", plan.provider.keep_for, flag="--keep-for", most=MAX_KEEP_MINUTES)
    _positive("margin", plan.margin_pct, flag="the preset's marginPct", most=100)
    if not 0 <= plan.inject_overhead_pct <= 100:
        raise PlanError("An injected overhead must be between 0 and 100 percent.", "Change injectOverheadPct.")
    if not 0 <= plan.seed <= MAX_SEED:
        raise PlanError(f"The seed {plan.seed} is out of range.", "Give --seed a number from 0 to 2^53 - 1.")


def checked(plan: Plan) -> Plan:
    """The same plan when its values make sense; raises `PlanError` with the flag to change."""
    if plan.version != PLAN_VERSION:
        raise PlanError(f"This version of glasshouse does not know plan version {plan.version}.", "Update glasshouse.")
    _check_target(plan.target)
    _check_training(plan.training)
    _check_lora(plan.lora)
    _check_figures(plan)
    if plan.challenge is not None and not (0 < len(plan.challenge) <= 512 and plan.challenge.isprintable()):
        raise PlanError(
            "A challenge must be a printable text of 1 to 512 characters.", "Change the text of --challenge."
        )
    if not plan.label.strip() or len(plan.label) > 80 or not plan.label.isprintable():
        raise PlanError("A label must be a printable text of 1 to 80 characters.", "Give another --label.")
    _check_inputs(plan)
    try:
        plan_digest(plan)
    except WireError as error:
        raise PlanError(
            "This plan contains a text or number that canonical JSON cannot represent.", "Use valid UTF-8 text."
        ) from error
    return plan


def presets() -> dict[str, Plan]:
    """Every shipped preset by name, in the file's order."""
    raw = parse(data_path("presets.json").read_bytes())
    return {name: load_plan({"preset": name, "label": name, **body}) for name, body in raw.items()}


def preset(name: str) -> Plan:
    """One preset; raises `PlanError` (`preset_unknown`) that lists the known ones."""
    known = presets()
    if name not in known:
        raise PlanError(
            f"There is no preset called {name!r}.",
            f"Choose one of: {', '.join(known)}.",
            code="preset_unknown",
        )
    return known[name]


def longest_seconds(plan: Plan) -> float:
    """How long a run may take at most, preparation and both segments included; kept time comes on top."""
    segment = plan.target.seconds if plan.target.seconds is not None else STEPS_SECONDS
    return PREPARATION_SECONDS + segment * len(plan.kinds()) * MARGIN
