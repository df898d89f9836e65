"""A hub model at a pinned revision: configuration and tokenizer are downloaded here, the weights on the allocation.

The payload contains the weights' digests as the hub lists them, and the allocation checks its downloads against them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, cast

import msgspec

from engine.errors import DataError, MissingExtraError, WireError
from engine.payload.folder import INDEX, SINGLE
from engine.payload.shape import ModelShape, read_config
from engine.wire import parse

_TIMEOUT_SEC: Final = 30


class HubFile(msgspec.Struct, frozen=True):
    """A weight file as the hub lists it; SHA-256 in hex, size in bytes."""

    sha256: str
    size: int


class HubModel(msgspec.Struct, frozen=True, kw_only=True):
    """A pinned hub model. `weights` are its safetensors files by name."""

    id: str
    revision: str
    config: dict[str, Any]
    shape: ModelShape
    tokenizer: Path
    weights: dict[str, HubFile]

    def listing(self) -> dict[str, Any]:
        """`{id, revision, files: {name: {sha256, size}}}`."""
        return {"id": self.id, "revision": self.revision, "files": msgspec.to_builtins(self.weights)}

    @property
    def download_bytes(self) -> int:
        """The size in bytes of everything that an allocation downloads: the weight files, as the hub lists them."""
        return sum(file.size for file in self.weights.values())


def hub_download_bytes(model: str, revision: str, *, endpoint: str | None = None, cache: Path | None = None) -> int:
    """The size in bytes of the weight files of a pinned revision, for the order of a disk.

    Raises as `fetch_hub`. An allocation's cache holds each file once, so this is also the space that they take there.
    """
    return fetch_hub(model, revision, endpoint=endpoint, cache=cache).download_bytes


def _weights(siblings: list[Any], index: Any) -> dict[str, HubFile]:
    names = {SINGLE}
    if index is not None:
        shards = index.get("weight_map") if isinstance(index, dict) else None
        names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
    listed = {
        file.rfilename: HubFile(file.lfs.sha256, file.lfs.size)
        for file in siblings
        if file.rfilename in names and file.lfs is not None
    }
    if not names or set(listed) != names:
        raise DataError(
            "The hub lists no digests for this model's safetensors files.",
            "Choose a revision that has its weights in safetensors.",
            code="model_weights_invalid",
        )
    return dict(sorted(listed.items()))


def fetch_hub(model: str, revision: str, *, endpoint: str | None = None, cache: Path | None = None) -> HubModel:
    """Configuration, tokenizer and weight digests of a pinned revision.

    `endpoint` and `cache` default to huggingface_hub's own. Raises `MissingExtraError` without that library, and
    `DataError`: `hub_model_unknown`, `hub_gated`, `hub_unreachable`, `model_*`.
    """
    try:
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise MissingExtraError(
            "Hub models need huggingface_hub, which is not installed.",
            "Install glasshouse[local], or give a local folder with --model.",
        ) from error

    transport_error = cast(type[Exception], HfHubHTTPError.__bases__[0])  # the HTTP library's own base

    def fetch(name: str) -> Path:
        return Path(hf_hub_download(model, name, revision=revision, endpoint=endpoint, cache_dir=cache))

    try:
        info = HfApi(endpoint=endpoint).model_info(model, revision=revision, files_metadata=True, timeout=_TIMEOUT_SEC)
        siblings = list(info.siblings or [])
        index_path = fetch(INDEX) if any(file.rfilename == INDEX for file in siblings) else None
        config_path, tokenizer = fetch("config.json"), fetch("tokenizer.json")
    except GatedRepoError as error:
        raise DataError(
            f"The hub model {model} is gated: its files need a login.",
            "Accept its terms on the hub, and log in to the hub.",
            code="hub_gated",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise DataError(
            f"The hub has no model {model} at revision {revision}.",
            "Check --model and --revision.",
            code="hub_model_unknown",
        ) from error
    except LocalEntryNotFoundError as error:
        raise _unreachable(model) from error
    except EntryNotFoundError as error:
        raise DataError(
            f"The hub model {model} has no config.json or no tokenizer.json.",
            "Give a model that has both.",
            code="model_file_missing",
        ) from error
    except (OSError, transport_error) as error:
        raise _unreachable(model) from error
    if info.sha != revision:
        raise DataError(
            f"The hub answered with another revision of {model} than the pinned one.",
            "Pin the full commit id with --revision.",
            code="hub_model_unknown",
        )
    try:
        index = parse(index_path.read_bytes()) if index_path else None
    except (WireError, UnicodeDecodeError) as error:
        raise DataError(
            f"The hub model has an invalid {INDEX}.", "Choose another revision.", code="model_index_invalid"
        ) from error
    config, shape = read_config(config_path.read_bytes())
    return HubModel(
        id=model,
        revision=revision,
        config=config,
        shape=shape,
        tokenizer=tokenizer,
        weights=_weights(siblings, index),
    )


def _unreachable(model: str) -> DataError:
    return DataError(
        f"The hub cannot be reached for {model}.",
        "Check the network, or give a local folder with --model.",
        code="hub_unreachable",
    )
