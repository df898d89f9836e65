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
Schedule = Literal["constant", "linear", "cosine"]
StopReason = Literal["target_seconds", "step_budget", "nonfinite_loss", "cancelled", "error", "lease_expired"]

STOPPED: Final = ("cancelled", "lease_expired")
"""Reasons to stop after which nothing more is computed, the held-out loss included."""
PLAN_VERSION: Final = 2
LORA_TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGET_GROUPS: Final = ("attention", "all-linear")
"""Names that stand for modules of a model; the plan of a run that was started lists the modules themselves."""
MAX_SECONDS: Final = 7 * 24 * 3600
PREPARATION_SECONDS: Final = 3600.0
MARGIN: Final = 1.25
STEPS_SECONDS: Final = 12 * 3600.0
"""How long a segment with a step budget may take: the step rate is not known in advance."""
MAX_STEPS: Final = 100_000_000
MAX_KEEP_MINUTES: Final = 7 * 24 * 60
MAX_SEED: Final = 2**53 - 1
"""The largest integer that canonical JSON carries exactly."""
MAX_LENGTH: Final = 131_072
_COMMIT: Final = re.compile("[0-9a-f]{40}")
_MODULE: Final = re.compile(r"[A-Za-z_]\w{0,63}(\.[A-Za-z_]\w{0,63}){0,7}", re.ASCII)


class _Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Lora(_Frozen, frozen=True, kw_only=True):
    """LoRA settings (Hu et al. 2021); dropout is 0 so that both segments do the same work.

    `targets`: endings of module names, or before the run is started one of `TARGET_GROUPS`.
    """

    r: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = LORA_TARGETS


class Training(_Frozen, frozen=True, kw_only=True):
    """The training loop's settings. `dtype` "auto" is bfloat16 if the device supports it, else float32.

    `batch`: samples of one forward pass; an update is computed from `grad_accum` of them. `max_length` in tokens; None
    only before the run is started: the longest sample, as far as model and memory allow. `schedule`: of the learning
    rate over all updates, after a linear rise in the first `lr_warmup` of them. `settling_steps`: updates before the
    measured window, trained like every other but not timed.
    """

    learning_rate: float = 1e-4
    schedule: Schedule = "constant"
    lr_warmup: int = 0
    batch: int = 1
    grad_accum: int = 1
    gradient_checkpointing: bool = False
    max_length: int | None = 64
    grad_clip: float = 1.0
    weight_decay: float = 0.0
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    settling_steps: int = 20
    checkpoint_every: int = 250
    fail_on_nonfinite: bool = True

    @property
    def length(self) -> int:
        """`max_length`, once it is decided; raises `PlanError` before."""
        if self.max_length is None:
            raise PlanError(
                "The maximum length of this plan is not decided yet.", "Start the run with `glasshouse run`."
            )
        return self.max_length

    @property
    def samples_an_update(self) -> int:
        """How many samples one update of the weights is computed from."""
        return self.batch * self.grad_accum


class Target(_Frozen, frozen=True, kw_only=True):
    """When a segment stops: at the first step that crosses `seconds`, or after `steps` measured steps.

    `epochs` over the data become `steps` when the run is started; otherwise exactly one of the three is set.
    """

    seconds: float | None = None
    steps: int | None = None
    epochs: float | None = None


class Model(_Frozen, frozen=True, kw_only=True):
    """`tiny`: the shipped one. `folder`: a complete local folder. `hub`: by id at a pinned revision.

    `digest` covers the files that the payload is built from (`folder`), else None. `vocab` is the size of the
    vocabulary: a loss above its logarithm is worse than guessing.
    """

    source: Literal["tiny", "folder", "hub"]
    name: str
    revision: str | None = None
    digest: str | None = None
    vocab: int | None = None


class DataCounts(_Frozen, frozen=True, kw_only=True):
    """What became of the data: samples that are trained on, dropped and cut; tokens of those that are used.

    `answer_tokens` are what the whole data would teach, `answer_tokens_kept` what is left after dropping and cutting.
    `held_out` samples are used for the held-out loss alone. `template`: SHA-256 of the chat template; None without one.
    """

    used: int
    dropped: int
    cut: int
    tokens: int
    answer_tokens: int
    answer_tokens_kept: int
    held_out: int = 0
    template: str | None = None


class Evaluation(_Frozen, frozen=True, kw_only=True):
    """The loss on samples that are not trained on, before and after the training.

    `split`: percent of the data, drawn by the seed. `file`: samples of their own, with their digest. `builtin`: shipped
    ones. `question` is answered before and after the training, by the most likely tokens; only with public data.
    """

    source: Literal["split", "file", "builtin"]
    percent: float | None = None
    name: str | None = None
    digest: str | None = None
    question: str | None = None
    answer_tokens: int = 32


class Data(_Frozen, frozen=True, kw_only=True):
    """`builtin` is a shipped file. `digest` is the file's SHA-256. `public`: the operator declared it so.

    `stand_in`: a pair trains on synthetic samples of the same shape in place of the file. `samples` are those in the
    file, `counts` what became of them; both are known when the run is started.
    """

    source: Literal["builtin", "file"] = "builtin"
    name: str = "sample-corpus"
    digest: str | None = None
    samples: int | None = None
    public: bool = True
    stand_in: bool = False
    counts: DataCounts | None = None


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
    evaluation: Evaluation | None = None
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


def is_of_earlier_version(raw: object) -> bool:
    """Whether a stored plan is one that this version no longer runs."""
    return isinstance(raw, dict) and raw.get("version") == 1


def load_stored_plan(raw: object) -> Plan:
    """A stored plan, in this version's form if an earlier one made it; raises `PlanError`.

    It is for ending that run and describing it: what was logged and signed refers to the plan as it was.
    """
    if not isinstance(raw, dict) or not is_of_earlier_version(raw):
        return load_plan(raw)
    training = dict(raw.get("training") or {})
    training["settlingSteps"] = training.pop("warmupSteps", 0)
    return load_plan({**raw, "version": PLAN_VERSION, "training": training})


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
    if (target.seconds is None) == (target.steps is None and target.epochs is None):
        raise PlanError(
            "A run stops by time, by steps or by epochs: exactly one of the three.",
            "Give either --seconds, --steps or --epochs.",
        )
    _positive("target in seconds", target.seconds, flag="--seconds", most=MAX_SECONDS)
    _positive("step budget", target.steps, flag="--steps", most=MAX_STEPS)
    _positive("number of epochs", target.epochs, flag="--epochs", most=10_000)


def _check_training(training: Training) -> None:
    _positive("learning rate", training.learning_rate, flag="--lr", most=10)
    _positive("batch size", training.batch, flag="--batch", most=1024)
    _positive("number of batches an update", training.grad_accum, flag="--grad-accum", most=1024)
    _positive("maximum length", training.max_length, flag="--max-length", most=MAX_LENGTH)
    _positive("gradient clip", training.grad_clip, flag="the preset's gradClip")
    if training.max_length is not None and training.max_length < 2:
        raise PlanError("A sample needs at least two tokens.", "Give --max-length 2 or more.")
    if not (0 <= training.settling_steps <= MAX_STEPS and 1 <= training.checkpoint_every <= MAX_STEPS):
        raise PlanError(
            "The number of settling steps or the checkpoint interval are out of range.",
            "Use 0 settling steps or more, and an interval of 1 step or more.",
        )
    if not (math.isfinite(training.weight_decay) and training.weight_decay >= 0):
        raise PlanError("The weight decay must not be negative.", "Set the preset's weightDecay to zero or more.")


def _check_schedule(plan: Plan) -> None:
    """A schedule needs a number of updates that is the same in both segments."""
    training = plan.training
    if not 0 <= training.lr_warmup <= MAX_STEPS:
        raise PlanError("The learning rate's warm-up is out of range.", "Give --lr-warmup 0 or more updates.")
    if training.schedule != "constant" and plan.target.seconds is not None:
        raise PlanError(
            f"A {training.schedule} learning rate falls over a known number of updates, and a run by time has none.",
            "Give --steps or --epochs in place of --seconds, or --lr-schedule constant.",
        )
    updates = None if plan.target.steps is None else plan.target.steps + training.settling_steps
    if updates is not None and training.lr_warmup > updates:
        raise PlanError(
            f"The learning rate's warm-up of {training.lr_warmup} updates is longer than the run, which has {updates}.",
            "Give a smaller --lr-warmup.",
        )


def _check_evaluation(plan: Plan) -> None:
    evaluation = plan.evaluation
    if evaluation is None:
        return
    if (evaluation.source == "split") != (evaluation.percent is not None):
        raise PlanError("A share of the data is held out by its percentage.", "Give --eval-split a percentage.")
    if evaluation.percent is not None and not 0 < evaluation.percent <= 50:
        raise PlanError(
            "The held-out share of the data is not above 0 and at most 50 percent.",
            "Give --eval-split a percentage up to 50.",
        )
    if evaluation.question is not None and not plan.data.public:
        raise PlanError(
            "A question and its answers are published, and this data is not declared public.",
            "Remove the question, or, if the data really is public, add --public-data.",
            code="data_not_public",
        )
    if not 1 <= evaluation.answer_tokens <= 256:
        raise PlanError("An answer has 1 to 256 tokens.", "Change the evaluation's answerTokens.")
    if evaluation.question is not None and not 0 < len(evaluation.question) <= 512:
        raise PlanError("A question has 1 to 512 characters.", "Change the evaluation's question.")


def _check_lora(lora: Lora) -> None:
    _positive("LoRA rank", lora.r, flag="--lora-r", most=1024)
    _positive("LoRA alpha", lora.alpha, flag="--lora-alpha", most=65_536)
    named = [target for target in lora.targets if target not in TARGET_GROUPS]
    if not lora.targets or len(set(lora.targets)) != len(lora.targets) or not all(map(_MODULE.fullmatch, named)):
        raise PlanError(
            "The LoRA targets are not distinct names of modules.",
            f"Give --lora-targets {', '.join(TARGET_GROUPS)}, or names such as {','.join(LORA_TARGETS)}.",
        )
    if named and len(named) < len(lora.targets):
        raise PlanError(
            "LoRA targets are either a group or names of modules, not both.",
            f"Give --lora-targets {' or '.join(TARGET_GROUPS)} alone, or only names.",
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
    _check_schedule(plan)
    _check_evaluation(plan)
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
