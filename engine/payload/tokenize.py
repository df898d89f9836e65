"""Samples as token ids in ChatML: `<|im_start|>role\\ncontent<|im_end|>`, turns joined by a newline.

The assistant's contents and the marks that end them are learned; everything else is masked. If a tokenizer lacks the
two marks, the first is encoded as text and a turn ends with the model's end-of-sequence token. Text in the data that
looks like a control token is encoded as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.errors import DataError
from engine.payload.samples import Message, Sample
from engine.payload.shape import ModelShape

IGNORED: Final = -100
MAX_TOKEN_BYTES: Final = 4 * 1024**3
_OPEN: Final = "<|im_start|>"
_CLOSE: Final = "<|im_end|>"
_PAD: Final = "<|endoftext|>"
_CHUNK: Final = 512


class Tokens(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """`input_ids` and `labels` are int32 [samples, max_length]; `marks` is True where an id is a turn's mark.

    `lengths` counts each sample's tokens without the padding. `dropped` counts samples with nothing left to learn,
    `truncated` those that were cut.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    marks: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    dropped: int
    truncated: int


class _Row(msgspec.Struct):
    ids: list[int]
    learned: list[bool]
    marks: list[bool]

    def extend(self, ids: Sequence[int], *, learned: bool = False, marks: bool = False) -> None:
        self.ids += ids
        self.learned += [learned] * len(ids)
        self.marks += [marks] * len(ids)


class ChatEncoder:
    """A tokenizer for one model.

    The constructor raises `DataError` (`tokenizer_invalid`, `model_file_missing`) if the tokenizer cannot be used with
    it.
    """

    def __init__(self, path: Path, shape: ModelShape) -> None:
        if not path.is_file():
            raise DataError(
                f"There is no tokenizer {path}.",
                "Give a model with its tokenizer.json.",
                code="model_file_missing",
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise DataError(
                "The model's tokenizer.json is not a valid tokenizer.",
                "Save the tokenizer again.",
                code="tokenizer_invalid",
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._shape = shape
        open_id, close_id = self._tokenizer.token_to_id(_OPEN), self._tokenizer.token_to_id(_CLOSE)
        if open_id is not None and close_id is not None:
            self._open, self._close = [open_id], [close_id]
        elif shape.eos is not None:
            self._open, self._close = self._ids([_OPEN])[0], [shape.eos]
        else:
            raise DataError(
                "The model has neither ChatML marks nor an end-of-sequence token.",
                "Set eos_token_id in its config.json.",
                code="tokenizer_invalid",
            )
        self._newline = self._ids(["\n"])[0]
        self._headers = {role: self._ids([f"{role}\n"])[0] for role in ("system", "user", "assistant")}
        padding = self._tokenizer.token_to_id(_PAD)
        self.pad = next(token for token in (shape.pad, padding, *self._close) if token is not None)
        if max(self.pad, *self._open, *self._close) >= shape.vocab:
            raise self._beyond_vocabulary()

    @staticmethod
    def _beyond_vocabulary() -> DataError:
        return DataError(
            "The tokenizer has ids beyond the model's vocabulary, so it belongs to another model.",
            "Give the tokenizer.json that belongs to the model.",
            code="tokenizer_invalid",
        )

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def plain_ids(self) -> NDArray[np.int64]:
        """Every id of the vocabulary that is not a control token, ascending."""
        control = set(self._tokenizer.get_added_tokens_decoder()) | {self.pad, *self._close}
        known = set(self._tokenizer.get_vocab(with_added_tokens=True).values())
        return np.array(sorted(token for token in known - control if token < self._shape.vocab), np.int64)

    def _row(self, messages: Sequence[Message], contents: Iterator[list[int]]) -> _Row:
        row = _Row([], [], [])
        for index, message in enumerate(messages):
            if index:
                row.extend(self._newline)
            learned = message.role == "assistant"
            row.extend(self._open, marks=True)
            row.extend(self._headers[message.role])
            row.extend(next(contents), learned=learned)
            row.extend(self._close, learned=learned, marks=True)
        return row

    def _rows(self, samples: Sequence[Sample]) -> Iterator[_Row]:
        for start in range(0, len(samples), _CHUNK):
            chunk = samples[start : start + _CHUNK]
            contents = iter(self._ids([message.content for sample in chunk for message in sample.messages]))
            for sample in chunk:
                yield self._row(sample.messages, contents)

    def encode(self, samples: Sequence[Sample], max_length: int) -> Tokens:
        """The samples, truncated or padded to `max_length`.

        Raises `DataError`: `data_too_large` above 4 GiB of ids, `data_nothing_to_learn` if all samples are dropped.
        """
        shape = (len(samples), max_length)
        if 2 * 4 * len(samples) * max_length > MAX_TOKEN_BYTES:
            raise DataError(
                f"{len(samples)} samples of {max_length} tokens exceed the limit of a run.",
                "Give a smaller file or a smaller --max-length.",
                code="data_too_large",
            )
        input_ids, labels = np.full(shape, self.pad, np.int32), np.full(shape, IGNORED, np.int32)
        marks, lengths = np.zeros(shape, np.bool_), np.zeros(len(samples), np.int64)
        kept = truncated = 0
        for row in self._rows(samples):
            length = min(len(row.ids), max_length)
            if not any(row.learned[1:length]):
                continue
            input_ids[kept, :length] = row.ids[:length]
            labels[kept, :length] = np.where(row.learned[:length], row.ids[:length], IGNORED)
            marks[kept, :length] = row.marks[:length]
            lengths[kept] = length
            truncated += len(row.ids) > max_length
            kept += 1
        if not kept:
            raise DataError(
                f"No sample has a part of an answer within its first {max_length} tokens, so nothing can be learned.",
                "Give a larger --max-length or shorter prompts.",
                code="data_nothing_to_learn",
            )
        if int(input_ids[:kept].max()) >= self._shape.vocab:
            raise self._beyond_vocabulary()
        return Tokens(
            input_ids=input_ids[:kept],
            labels=labels[:kept],
            marks=marks[:kept],
            lengths=lengths[:kept],
            dropped=len(samples) - kept,
            truncated=truncated,
        )
