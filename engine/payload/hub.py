"""A hub model at a pinned revision, asked about on the operator's machine before anything is rented.

Configuration and tokenizer are downloaded here, the weights on the allocation. The payload contains the weights'
digests as the hub lists them, and the allocation checks its downloads against them. What the allocation will do, an
anonymous download, is tried here: the headers of all weight files are read without a token.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from engine.errors import DataError, MissingExtraError, WireError
from engine.payload import hub_errors
from engine.payload.folder import MAX_INDEX_BYTES
from engine.payload.listing import (
    CHAT_TEMPLATE,
    EXTRAS,
    INDEX,
    SINGLE,
    SMALL_FILES,
    TOKENIZER,
    TOKENIZER_CONFIG,
    check_listing,
)
from engine.payload.shape import MAX_CONFIG_BYTES, read_config
from engine.system.files import read_named
from engine.wire import parse
from engine.worker.architecture import Tensor

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_TIMEOUT_SEC: Final = 30
_AT_ONCE: Final = 8
_CONFIG: Final = "config.json"
MAX_TOKENIZER_BYTES: Final = 256 * 1024 * 1024
_LARGEST: Final = {
    _CONFIG: MAX_CONFIG_BYTES, TOKENIZER: MAX_TOKENIZER_BYTES, INDEX: MAX_INDEX_BYTES, **SMALL_FILES,
}  # fmt: skip
"""The largest size in bytes that is downloaded of each file."""


class HubFile(msgspec.Struct, frozen=True):
    """A weight file as the hub lists it; SHA-256 in hex, size in bytes."""

    sha256: str
    size: int


class HubModel(msgspec.Struct, frozen=True, kw_only=True):
    """A pinned hub model. `weights` are its safetensors files by name, `tensors` what their headers list.

    `config` is config.json as it is. `tokenizer_config`, `chat_template` (chat_template.jinja) and `extras`, by name,
    are further small files, as far as there are any. `cache` is the library's folder on this machine, and
    `uncached_bytes` what it lacks of the weight files.
    """

    id: str
    revision: str
    config: bytes
    tokenizer: Path
    tokenizer_config: bytes | None
    chat_template: bytes | None = None
    extras: dict[str, bytes] = {}
    weights: dict[str, HubFile]
    tensors: dict[str, Tensor]
    cache: Path
    uncached_bytes: int

    def listing(self) -> dict[str, Any]:
        """`{id, revision, files: {name: {sha256, size}}}`."""
        return {"id": self.id, "revision": self.revision, "files": msgspec.to_builtins(self.weights)}

    @property
    def download_bytes(self) -> int:
        """The size in bytes of everything that an allocation downloads: the weight files, as the hub lists them."""
        return sum(file.size for file in self.weights.values())


def fetch_hub(
    model: str, revision: str, *, anonymous: bool = False, endpoint: str | None = None, cache: Path | None = None
) -> HubModel:
    """Configuration, tokenizer, weight digests and weight headers of a pinned revision.

    `anonymous`: the weights will be downloaded elsewhere, without a token, so they must be public. A login of this
    machine is then used for nothing but to tell a private model from one that does not exist. `endpoint` and `cache`
    default to huggingface_hub's own. Raises `MissingExtraError` without that library, and `DataError`: `hub_private`,
    `model_index_invalid`, `model_weights_invalid`, and as `hub_errors.translated`, `check_listing` and `read_config`.
    """
    hub = _Hub(model, revision, anonymous, endpoint, cache)
    info = hub.info()
    names = {file.rfilename for file in info.siblings or ()}
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    if _CONFIG not in names:
        check_listing(f"The hub model {model}", names)  # a model in another format has none
    config = hub.read(_CONFIG, sizes)
    read_config(config)
    check_listing(f"The hub model {model}", names)
    weights = hub.weights(info, names, sizes)
    small = {name: hub.read(name, sizes) for name in SMALL_FILES if name in names}
    return HubModel(
        id=model,
        revision=revision,
        config=config,
        tokenizer=hub.download(TOKENIZER, sizes),
        tokenizer_config=small.get(TOKENIZER_CONFIG),
        chat_template=small.get(CHAT_TEMPLATE),
        extras={name: small[name] for name in EXTRAS if name in small},
        weights=weights,
        tensors=hub.tensors(tuple(weights)),
        cache=hub.cache,
        uncached_bytes=sum(file.size for name, file in weights.items() if not hub.has(name)),
    )


class _Hub:
    """One revision of one model, as the hub shows it with or without this machine's login."""

    def __init__(self, model: str, revision: str, anonymous: bool, endpoint: str | None, cache: Path | None) -> None:
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise MissingExtraError(
                "Hub models need huggingface_hub, which is not installed.",
                "Install glasshouse[local], or give a local folder with --model.",
            ) from error
        self._model = model
        self._revision = revision
        self._anonymous = anonymous
        self._endpoint = endpoint
        self._cache = cache
        self._token = False if anonymous else None
        self._api = HfApi(endpoint=endpoint)

    @property
    def cache(self) -> Path:
        """Where the library keeps downloads on this machine."""
        from huggingface_hub import constants

        return self._cache or Path(constants.HF_HUB_CACHE)

    def has(self, name: str) -> bool:
        """Whether the cache holds a file of the revision."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self._model, name, cache_dir=self._cache, revision=self._revision)
        return isinstance(found, str)

    def info(self) -> ModelInfo:
        """What the hub lists; a model that an anonymous download cannot reach is refused."""
        try:
            info = self._info(self._token)
        except DataError as error:
            if self._anonymous and error.code == "hub_model_unknown" and self._seen_by_login():
                raise hub_errors.private(self._model) from error
            raise
        if self._anonymous and info.private:
            raise hub_errors.private(self._model)
        if self._anonymous and info.gated:
            raise hub_errors.gated(self._model, anonymous=True)
        if info.sha != self._revision:
            raise hub_errors.revision_unknown(self._model, self._revision)
        return info

    def _info(self, token: bool | None) -> ModelInfo:
        with hub_errors.translated(self._model, self._revision, anonymous=token is False):
            return self._api.model_info(
                self._model, revision=self._revision, files_metadata=True, timeout=_TIMEOUT_SEC, token=token
            )

    def _seen_by_login(self) -> bool:
        from huggingface_hub import get_token

        if get_token() is None:
            return False
        try:
            self._info(None)
        except DataError as error:
            return error.code in {"hub_gated", "hub_revision_unknown"}
        return True

    def read(self, name: str, sizes: dict[str, int | None]) -> bytes:
        """The bytes of a small file of the revision."""
        path = self.download(name, sizes)
        try:
            return read_named(path, _LARGEST[name])
        except OSError as error:
            raise _too_large(self._model, name) from error

    def download(self, name: str, sizes: dict[str, int | None]) -> Path:
        """A small file of the revision, in the cache; one that the hub lists as larger than its limit is refused."""
        from huggingface_hub import hf_hub_download

        if (sizes.get(name) or 0) > _LARGEST[name]:
            raise _too_large(self._model, name)
        with hub_errors.translated(self._model, self._revision, anonymous=self._anonymous):
            return Path(
                hf_hub_download(
                    self._model,
                    name,
                    revision=self._revision,
                    endpoint=self._endpoint,
                    cache_dir=self._cache,
                    token=self._token,
                )
            )

    def weights(self, info: ModelInfo, names: set[str], sizes: dict[str, int | None]) -> dict[str, HubFile]:
        """The safetensors files that belong to the model, by name, with size and digest."""
        wanted = _indexed(self.read(INDEX, sizes)) if INDEX in names else {SINGLE}
        listed = {
            file.rfilename: HubFile(file.lfs.sha256, file.lfs.size)
            for file in info.siblings or ()
            if file.rfilename in wanted and file.lfs is not None
        }
        if not wanted or set(listed) != wanted:
            raise DataError(
                "The hub lists no digests for this model's safetensors files.",
                "Choose a revision that has its weights in safetensors.",
                code="model_weights_invalid",
            )
        return dict(sorted(listed.items()))

    def tensors(self, files: tuple[str, ...]) -> dict[str, Tensor]:
        """The tensors in the files' headers, each read by a range request as the allocation would be allowed to."""
        with ThreadPoolExecutor(max_workers=min(_AT_ONCE, len(files))) as pool:
            headers = list(pool.map(self._header, files))
        return {name: tensor for header in headers for name, tensor in header.items()}

    def _header(self, file: str) -> dict[str, Tensor]:
        with hub_errors.translated(self._model, self._revision, anonymous=self._anonymous):
            parsed = self._api.parse_safetensors_file_metadata(
                self._model, file, revision=self._revision, token=self._token, timeout=_TIMEOUT_SEC
            )
        return {name: Tensor(str(one.dtype), tuple(one.shape)) for name, one in parsed.tensors.items()}


def _too_large(model: str, name: str) -> DataError:
    return DataError(
        f"The hub model {model} has a {name} of more than {_LARGEST[name]:,} bytes.",
        "Choose another model or revision.",
        code="model_config_invalid",
    )


def _indexed(raw: bytes) -> set[str]:
    """The names of the shards in an index file."""
    try:
        index = parse(raw)
    except (WireError, UnicodeDecodeError) as error:
        raise DataError(
            f"The hub model has an invalid {INDEX}.", "Choose another revision.", code="model_index_invalid"
        ) from error
    shards = index.get("weight_map") if isinstance(index, dict) else None
    return set(map(str, shards.values())) if isinstance(shards, dict) else set()
