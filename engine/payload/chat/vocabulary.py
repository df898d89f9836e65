"""A model's tokenizer, with the special tokens that its tokenizer_config.json adds, as transformers loads it.

tokenizer.json is taken as it is. For some model types transformers builds the tokenizer from vocabulary and merges
alone and takes the way of splitting words from its own code; published models agree on both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import Unigram

from engine.errors import DataError
from engine.payload.chat.template import config_of

NAMED: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MAX_TOKENIZER_BYTES: Final = 256 * 1024 * 1024
_FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized")
_FIRST_PRIVATE: Final = 0x100000
_PRIVATE: Final = re.compile("[\U00100000-\U0010fffd]")


def invalid(what: str, hint: str = "Save the tokenizer again.") -> DataError:
    """A `DataError` (`tokenizer_invalid`)."""
    return DataError(f"The model's tokenizer {what}.", hint, code="tokenizer_invalid")


def has_private_name(text: str) -> bool:
    """Whether a text has a character of `Vocabulary.private_names`."""
    return _PRIVATE.search(text) is not None


class Vocabulary:
    """The tokenizer of a model. `special` are the ids of its control tokens by their text.

    `named` are the special tokens that a template sees by name. `unknown` is the id of what the vocabulary lacks, if it
    has one. Raises `DataError` (`tokenizer_invalid`).
    """

    def __init__(self, raw: bytes, tokenizer_config: bytes | None) -> None:
        self._raw = raw
        self._config = config_of(tokenizer_config)
        self.named = _named(self._config)
        whole = self._loaded(raw)
        self.before, self.after = _added(whole)
        self.tokenizer = self._loaded(raw)
        self.tokenizer.post_processor = None
        added = self.tokenizer.get_added_tokens_decoder()
        self.added = frozenset(added)
        self.unknown = _unknown(self.tokenizer, raw)
        looked_for_late = any(token.special and token.normalized for token in added.values())
        normalizer = self.tokenizer.normalizer if looked_for_late else None
        self.normalise: Callable[[str], str] | None = None if normalizer is None else normalizer.normalize_str
        self.special = {token.content: number for number, token in added.items() if token.special and token.content}

    def _loaded(self, raw: bytes) -> Tokenizer:
        if len(raw) > MAX_TOKENIZER_BYTES:
            raise invalid("is larger than 256 MiB")
        try:
            tokenizer = Tokenizer.from_buffer(raw)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            tokenizer.encode_special_tokens = False
            self._more = list(_missing(self._config, self.named, tokenizer))
            for token in self._more:
                _add(tokenizer, token)
        except DataError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise invalid("is not a valid tokenizer.json") from error
        return tokenizer

    def for_text(self, names: Mapping[str, str]) -> Tokenizer | None:
        """A tokenizer in which the control tokens have other names, so that their usual ones are plain text.

        None if the tokenizer cannot be changed so, because its merges make a control token.
        """
        try:
            document = json.loads(self._raw)
            document["post_processor"] = None
            model = document["model"]
            vocabulary = model["vocab"]
            if isinstance(vocabulary, dict):
                model["vocab"] = {names.get(text, text): number for text, number in vocabulary.items()}
            else:
                model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
            if model.get("unk_token") in names:
                model["unk_token"] = names[model["unk_token"]]
            for token in document["added_tokens"]:
                token["content"] = names.get(token["content"], token["content"])
            tokenizer = Tokenizer.from_str(json.dumps(document))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            for token in self._more:
                _add(tokenizer, _renamed(token, names.get(token.content, token.content)))
        except Exception:  # the library raises nothing narrower
            return None
        known = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
        right = all(known.get(name) == self.special[text] for text, name in names.items())
        return tokenizer if right else None

    def private_names(self) -> dict[str, str]:
        """For each control token a name of the same length that no text has: of private characters."""
        names = {}
        for place, text in enumerate(self.special):
            names[text] = chr(_FIRST_PRIVATE + place) * len(text)
        return names


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    """Every `..._token` of tokenizer_config.json: a text, or an object with its text as `content`."""
    found = {key: _content(one) for key, one in config.items() if key.endswith("_token")}
    extra = config.get("extra_special_tokens")
    if isinstance(extra, Mapping):
        found |= {str(key): _content(one) for key, one in extra.items()}
    return {key: text for key, text in found.items() if text is not None}


def _content(token: Any) -> str | None:
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _missing(config: Mapping[str, Any], named: Mapping[str, str], tokenizer: Tokenizer) -> Iterator[AddedToken]:
    """The added tokens of tokenizer_config.json that tokenizer.json lacks."""
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder")
    entries = list(listed.values()) if isinstance(listed, Mapping) else []
    more = [config.get("extra_special_tokens"), config.get("additional_special_tokens")]
    lists = [one for given in more if isinstance(given, list) for one in given]
    for entry in [*entries, *named.values(), *lists]:
        text = _content(entry)
        if not text or text in present:
            continue
        present.add(text)
        flags = {flag: bool(entry[flag]) for flag in _FLAGS if flag in entry} if isinstance(entry, Mapping) else {}
        special = bool(entry.get("special", True)) if isinstance(entry, Mapping) else True
        yield AddedToken(text, special=special, **({"normalized": False} | flags))


def _add(tokenizer: Tokenizer, token: AddedToken) -> None:
    (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])


def _renamed(token: AddedToken, name: str) -> AddedToken:
    flags = {flag: getattr(token, flag) for flag in _FLAGS}
    return AddedToken(name, special=token.special, **flags)


def _unknown(tokenizer: Tokenizer, raw: bytes) -> int | None:
    if isinstance(tokenizer.model, Unigram):  # the library does not tell its unk_id
        number = json.loads(raw)["model"].get("unk_id")
        return number if isinstance(number, int) else None
    text = getattr(tokenizer.model, "unk_token", None)
    return tokenizer.token_to_id(text) if isinstance(text, str) else None


def _added(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer itself puts before and after a text."""
    try:
        plain = tokenizer.encode("a", add_special_tokens=False).ids
        whole = tokenizer.encode("a", add_special_tokens=True).ids
    except Exception as error:  # the library raises nothing narrower
        raise invalid("cannot encode a text") from error
    for place in range(len(whole) - len(plain) + 1):
        if whole[place : place + len(plain)] == plain:
            return whole[:place], whole[place + len(plain) :]
    raise invalid("changes a text when it adds its special tokens")
