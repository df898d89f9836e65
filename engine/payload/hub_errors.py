"""The hub's refusals as errors that a user can act on; each has its own code. Loads the hub's library when used."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final, cast

from engine.errors import DataError, GlasshouseError

ANONYMOUS_HINT: Final = (
    "A rented or static allocation downloads without a login. Download the model here and give its folder with --model."
)
_OWN_HINT: Final = "Check the network, or give a local folder with --model."
_TOO_MANY: Final = 429
_NO_ENTRY: Final = (401, 403)


@contextlib.contextmanager
def translated(model: str, revision: str, *, anonymous: bool) -> Iterator[None]:
    """Raise the library's errors as `DataError`.

    Codes: `hub_gated`, `hub_model_unknown`, `hub_revision_unknown`, `hub_model_disabled`, `hub_login_rejected`,
    `hub_rate_limited`, `hub_offline`, `hub_unreachable`, `model_file_missing`, `model_weights_invalid`.
    The library's texts may quote addresses with signatures, so none of them is passed on.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, SafetensorsParsingError

    transport_error = cast(type[Exception], HfHubHTTPError.__bases__[0])  # the HTTP library's own base
    try:
        yield
    except GlasshouseError:
        raise
    except SafetensorsParsingError as error:
        raise DataError(
            f"A weight file of the hub model {model} has no valid safetensors header.",
            "Choose another revision.",
            code="model_weights_invalid",
        ) from error
    except (HFValidationError, OSError, transport_error) as error:
        raise _refusal(error, model, revision, anonymous=anonymous) from error


def _refusal(error: BaseException, model: str, revision: str, *, anonymous: bool) -> DataError:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        # A download that failed, with nothing in the cache: its cause says why.
        cause = error.__cause__ or error.__context__
        return unreachable(model) if cause is None else _refusal(cause, model, revision, anonymous=anonymous)
    # In this order: a gated model counts as one that is not found, in the library's classes.
    made: tuple[tuple[tuple[type[BaseException], ...], Callable[[], DataError]], ...] = (
        ((errors.OfflineModeIsEnabled,), lambda: offline(model)),
        ((errors.GatedRepoError,), lambda: gated(model, anonymous=anonymous)),
        ((errors.RevisionNotFoundError,), lambda: revision_unknown(model, revision)),
        ((errors.RepositoryNotFoundError, errors.HFValidationError), lambda: absent(model)),
        ((errors.DisabledRepoError,), lambda: disabled(model)),
        ((errors.EntryNotFoundError,), lambda: incomplete(model)),
    )
    for classes, make in made:
        if isinstance(error, classes):
            return make()
    if isinstance(error, errors.HfHubHTTPError):
        return _by_status(error.response.status_code, model, anonymous=anonymous)
    return unreachable(model)


def _by_status(status: int, model: str, *, anonymous: bool) -> DataError:
    if status == _TOO_MANY:
        return DataError(
            f"The hub refuses further requests for {model} for now: its rate limit is reached.",
            "Wait a few minutes, or log in to the hub for a higher limit.",
            code="hub_rate_limited",
        )
    if status in _NO_ENTRY and anonymous:
        return DataError(
            f"The hub does not give the files of {model} without a login (status {status}).",
            ANONYMOUS_HINT,
            code="hub_gated",
        )
    if status in _NO_ENTRY:
        return DataError(
            f"The hub refuses this machine's login for {model} (status {status}).",
            "Log in again, or correct or unset HF_TOKEN.",
            code="hub_login_rejected",
        )
    return DataError(
        f"The hub answered with status {status} when it was asked for {model}.", _OWN_HINT, code="hub_unreachable"
    )


def unreachable(model: str) -> DataError:
    """No answer at all."""
    return DataError(f"The hub cannot be reached for {model}.", _OWN_HINT, code="hub_unreachable")


def offline(model: str) -> DataError:
    """The operator has switched the network of the hub's library off."""
    return DataError(
        f"The hub cannot be asked for {model}: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set.",
        "Unset it, or give a local folder with --model.",
        code="hub_offline",
    )


def gated(model: str, *, anonymous: bool) -> DataError:
    """The files need an accepted agreement."""
    return DataError(
        f"The hub model {model} is gated: its files need a login that has accepted its terms.",
        ANONYMOUS_HINT if anonymous else "Accept its terms on the hub, and log in to the hub on this machine.",
        code="hub_gated",
    )


def private(model: str) -> DataError:
    """Only this machine's login sees the model."""
    return DataError(
        f"The hub model {model} is private: only a login like this machine's sees it.",
        ANONYMOUS_HINT,
        code="hub_private",
    )


def absent(model: str) -> DataError:
    """Nobody here sees the model; the hub does not say whether it is private or does not exist."""
    return DataError(
        f"The hub has no model {model}, or none that this machine may see.",
        "Check --model. If the model is private, log in to the hub on this machine.",
        code="hub_model_unknown",
    )


def revision_unknown(model: str, revision: str) -> DataError:
    """The model exists and the revision does not, or names another commit."""
    return DataError(
        f"The hub model {model} has no revision {revision}.",
        "Give --revision the full commit id, as the hub lists it under the model's files.",
        code="hub_revision_unknown",
    )


def disabled(model: str) -> DataError:
    """The hub's operators have closed the model."""
    return DataError(f"The hub has disabled access to {model}.", "Choose another model.", code="hub_model_disabled")


def incomplete(model: str) -> DataError:
    """A file that every run needs is not in the revision."""
    return DataError(
        f"The hub model {model} lacks a file that is needed: config.json, tokenizer.json or weights.",
        "Give a model that has them at this revision.",
        code="model_file_missing",
    )
