"""Samples as token ids: by the model's chat template, with what is learned and what is a control token."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from engine.errors import DataError
from engine.payload.chat.control import ControlText, Marked, check_same, suspicious, with_names
from engine.payload.chat.masks import Span, learned_spans
from engine.payload.chat.messages import chat_of
from engine.payload.chat.ragged import LEARNED, MARK, Ragged, ragged
from engine.payload.chat.render import ChatTemplate, RenderFault
from engine.payload.chat.template import CHATML, Templates, given_template, templates_in
from engine.payload.chat.tools import check_tools
from engine.payload.chat.vocabulary import MAX_TOKENIZER_BYTES, Vocabulary, has_private_name, invalid
from engine.payload.data.samples import Fault, Sample
from engine.payload.shape import ModelShape
from engine.system.files import read_named

MAX_COSTLY: Final = 3
"""Samples that a template may need too much for before it is refused altogether."""
_CHATML: Final = ("<|im_start|>", "<|im_end|>")
_CHUNK: Final = 256
_PLAIN_PAD: Final = "<|endoftext|>"

Row = tuple[list[int], list[int]]


class EncoderSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that an encoder is made of; it can be pickled. `tokenizer` is tokenizer.json or its path.

    `vocab`, `eos` and `pad` are the model's, from its config.json.
    """

    tokenizer: bytes | Path
    tokenizer_config: bytes | None
    templates: Templates
    vocab: int
    eos: int | None
    pad: int | None


def encoder_spec(
    tokenizer: Path, shape: ModelShape, tokenizer_config: bytes | None, chat_template: Path | None = None
) -> EncoderSpec:
    """The spec of a model by its tokenizer.json; `chat_template` is the file that a person gives instead of its own.

    Raises `DataError` (`chat_template_invalid`, `tokenizer_invalid`).
    """
    found = templates_in(tokenizer.parent, tokenizer_config) if chat_template is None else given_template(chat_template)
    return EncoderSpec(
        tokenizer=tokenizer,
        tokenizer_config=tokenizer_config,
        templates=found,
        vocab=shape.vocab,
        eos=shape.eos,
        pad=shape.pad,
    )


class _Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A sample before it is tokenised. `before` and `after` are ids around the text, `spans` what is learned of it."""

    text: str
    spans: list[Span]
    tokenizer: Tokenizer
    before: list[int] = []
    after: list[int] = []


class ChatEncoder:
    """The encoder of one model; it starts no threads but those of `tokenizers` (TOKENIZERS_PARALLELISM).

    The constructor raises `DataError`: `tokenizer_invalid`, `model_file_missing`, `chat_template_invalid`.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        self._spec = spec
        self._vocabulary = Vocabulary(_tokenizer_bytes(spec.tokenizer), spec.tokenizer_config)
        self._control = ControlText(self._vocabulary.special, self._vocabulary.normalise)
        self._special = frozenset(self._vocabulary.special.values()) - {self._vocabulary.unknown}
        self._templates = self._usable(spec.templates)
        self._compiled: dict[str, ChatTemplate] = {}
        self._names: dict[str, str] | None = None
        self._for_text: Tokenizer | None = None
        self._costly = 0
        eos = self._named("eos_token")
        self._eos = spec.eos if eos is None else eos
        known = (spec.pad, self._named("pad_token"), self._vocabulary.special.get(_PLAIN_PAD), self._eos, 0)
        self.pad: int = next(token for token in known if token is not None and token < spec.vocab)
        for tools in (False, True):
            self._template(tools=tools)

    @property
    def template_digest(self) -> str | None:
        """SHA-256 in hex of the chat templates; None if the model has none."""
        return self._templates.digest

    @property
    def templates(self) -> Templates:
        """The chat templates that are used; none if only plain text can be encoded."""
        return self._templates

    @property
    def template_source(self) -> str:
        """Where the template is from, in words; empty if there is none."""
        return self._templates.source

    def plain_ids(self) -> NDArray[np.int64]:
        """Every id of the vocabulary that is not a control token or added, ascending."""
        control = self._vocabulary.added | {self.pad, self._eos}
        known = set(self._vocabulary.tokenizer.get_vocab(with_added_tokens=True).values())
        return np.array(sorted(token for token in known - control if token < self._spec.vocab), np.int64)

    def encode(self, samples: Sequence[Sample]) -> tuple[Ragged, list[tuple[int, Fault]]]:
        """The token ids of the samples, and the samples that have none, by index, with why; those are left out.

        Raises `DataError`: `chat_template_missing` if there are chats and no template, `chat_template_costly` if it
        needs too much for many samples, `tokenizer_invalid` for ids beyond the model's vocabulary.
        """
        rows: list[Row] = []
        faults: list[tuple[int, Fault]] = []
        for start in range(0, len(samples), _CHUNK):
            prepared = []
            for index, sample in enumerate(samples[start : start + _CHUNK], start=start):
                try:
                    prepared.append(self._prepared(sample))
                except RenderFault as fault:
                    self._count(fault)
                    faults.append((index, Fault(place=f"sample {index + 1}", code=fault.code, what=fault.what)))
            rows += self._rows(prepared)
        return ragged(rows), faults

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, control tokens included."""
        return str(self._vocabulary.tokenizer.decode([int(one) for one in ids], skip_special_tokens=False))

    def show(self, ids: Iterable[int], flags: Iterable[int]) -> list[tuple[str, bool]]:
        """The text in parts that are learned as a whole or not at all, for a report."""
        parts: list[tuple[list[int], bool]] = []
        for token, flag in zip(ids, flags, strict=True):
            learned = bool(int(flag) & LEARNED)
            if not parts or parts[-1][1] != learned:
                parts.append(([], learned))
            parts[-1][0].append(int(token))
        return [(self.decode(part), learned) for part, learned in parts]

    def _usable(self, templates: Templates) -> Templates:
        if not templates.named and all(mark in self._vocabulary.special for mark in _CHATML):
            return Templates(named={"default": CHATML}, source="ChatML, by the tokenizer's control tokens")
        return templates

    def _named(self, name: str) -> int | None:
        text = self._vocabulary.named.get(name)
        return None if text is None else self._vocabulary.tokenizer.token_to_id(text)

    def _template(self, *, tools: bool) -> ChatTemplate | None:
        text = self._templates.text(tools=tools)
        if text is not None and text not in self._compiled:
            self._compiled[text] = ChatTemplate(text, self._vocabulary.named)
        return None if text is None else self._compiled[text]

    def _prepared(self, sample: Sample) -> _Prepared:
        if sample.text is not None:
            return self._plain(sample.text)
        if not sample.messages:
            raise RenderFault("sample_empty", "It has neither messages nor a text.")
        return self._chat(sample)

    def _plain(self, text: str) -> _Prepared:
        before, after = self._vocabulary.before, self._vocabulary.after
        if not after and self._eos is not None:
            after = [self._eos]
        tokenizer = self._vocabulary.tokenizer
        if self._control.in_text(text):
            tokenizer, _ = self._text_tokenizer(text)
        return _Prepared(text=text, spans=[(0, len(text))], tokenizer=tokenizer, before=before, after=after)

    def _chat(self, sample: Sample) -> _Prepared:
        chat = chat_of(sample)
        template = self._template(tools=bool(chat.tools))
        if template is None:
            raise DataError(
                "The model has no chat template, and its tokenizer is not one for ChatML.",
                "Give the template with --chat-template FILE, or data with plain text.",
                code="chat_template_missing",
            )
        rendered = template.render(chat)
        check_tools(template, chat, rendered)
        if not suspicious(sample, self._control):
            spans = learned_spans(template, chat, sample.learned, rendered, self._control)
            return _Prepared(text=rendered.text, spans=spans, tokenizer=self._vocabulary.tokenizer)
        marked = Marked(chat, self._control)
        again = template.render(marked.chat)
        check_same(rendered, again, marked)
        spans = learned_spans(template, marked.chat, sample.learned, again, self._control)
        if self._control.written(again.text) == self._control.written(rendered.text):
            return _Prepared(text=rendered.text, spans=spans, tokenizer=self._vocabulary.tokenizer)
        tokenizer, names = self._text_tokenizer(rendered.text)
        text = with_names(rendered, again, self._control, names)
        return _Prepared(text=text, spans=spans, tokenizer=tokenizer)

    def _text_tokenizer(self, text: str) -> tuple[Tokenizer, dict[str, str]]:
        """The tokenizer to which control tokens are plain text, and the names that it knows them by, for a text."""
        if self._names is None:
            self._names = self._vocabulary.private_names()
            self._for_text = self._vocabulary.for_text(self._names)
        if self._for_text is None or has_private_name(text):
            raise RenderFault("chat_template_control_text", "It has the text of a control token.")
        return self._for_text, self._names

    def _count(self, fault: RenderFault) -> None:
        self._costly += fault.code == "chat_template_costly"
        if self._costly >= MAX_COSTLY:
            raise DataError(
                f"The chat template needs too much time or memory for {MAX_COSTLY} samples.",
                "Give another template with --chat-template FILE, or shorter samples.",
                code="chat_template_costly",
            )

    def _rows(self, prepared: Sequence[_Prepared]) -> list[Row]:
        encodings: dict[int, Encoding] = {}
        for tokenizer in {id(one.tokenizer): one.tokenizer for one in prepared}.values():
            places = [place for place, one in enumerate(prepared) if one.tokenizer is tokenizer]
            texts = [prepared[place].text for place in places]
            encodings |= dict(zip(places, _encoded(tokenizer, texts), strict=True))
        return [self._row(one, encodings[place]) for place, one in enumerate(prepared)]

    def _row(self, one: _Prepared, encoding: Encoding) -> Row:
        ids = [*one.before, *encoding.ids, *one.after]
        if max(ids, default=0) >= self._spec.vocab:
            raise invalid(
                "has ids beyond the model's vocabulary, so it belongs to another model",
                "Give the tokenizer.json that belongs to the model.",
            )
        flags = [MARK if token in self._special else 0 for token in ids]
        if one.before or one.after:
            return ids, [flag | LEARNED for flag in flags]
        starts = [start for start, _ in encoding.offsets]
        for start, end in one.spans:
            for place in range(bisect_left(starts, start), bisect_left(starts, end)):
                flags[place] |= LEARNED
        return ids, flags


def _encoded(tokenizer: Tokenizer, texts: list[str]) -> list[Encoding]:
    try:
        return list(tokenizer.encode_batch(texts, add_special_tokens=False))
    except Exception as error:  # the library raises nothing narrower
        raise invalid("cannot encode a text of the data") from error


def _tokenizer_bytes(tokenizer: bytes | Path) -> bytes:
    if isinstance(tokenizer, bytes):
        return tokenizer
    try:
        return read_named(tokenizer, MAX_TOKENIZER_BYTES)
    except FileNotFoundError as error:
        raise DataError(
            f"There is no tokenizer {tokenizer}.", "Give a model with its tokenizer.json.", code="model_file_missing"
        ) from error
    except OSError as error:
        raise invalid(f"cannot be read: {error.strerror}") from error
