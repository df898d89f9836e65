"""What one process does with some records: from JSON to token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version

import msgspec

from engine.errors import DataError
from engine.payload.chat.encoder import ChatEncoder, EncoderSpec
from engine.payload.chat.vocabulary import MAX_TOKENIZER_BYTES
from engine.payload.data.formats import Format
from engine.payload.data.messages import Ignored
from engine.payload.data.read import converted
from engine.payload.data.records import Record
from engine.payload.data.samples import Fault, Sample
from engine.payload.prepare.collect import KEPT_FAULTS, Part, Work
from engine.system.files import read_named


class Setup(msgspec.Struct, frozen=True):
    """What every process needs to know; `form` is None if no record could be recognised."""

    spec: EncoderSpec
    form: Format | None


def encoder_digest(spec: EncoderSpec) -> str:
    """SHA-256 in hex over all that decides about the ids: the spec with the bytes of its tokenizer, and the libraries.

    Raises `DataError` (`model_file_missing`) if the tokenizer cannot be read.
    """
    parts = {
        "tokenizer": hashlib.sha256(_tokenizer(spec)).hexdigest(),
        "config": None if spec.tokenizer_config is None else hashlib.sha256(spec.tokenizer_config).hexdigest(),
        "templates": spec.templates.digest,
        "ids": [spec.vocab, spec.eos, spec.pad],
        "libraries": [version("tokenizers"), version("jinja2")],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _tokenizer(spec: EncoderSpec) -> bytes:
    if isinstance(spec.tokenizer, bytes):
        return spec.tokenizer
    try:
        return read_named(spec.tokenizer, MAX_TOKENIZER_BYTES)
    except OSError as error:
        raise DataError(
            f"The tokenizer {spec.tokenizer} cannot be read: {error.strerror}.",
            "Give a model with a readable tokenizer.json.",
            code="model_file_missing",
        ) from error


def encoding(setup: Setup) -> Work:
    """A function from records to their part; raises `DataError` as `ChatEncoder`."""
    encoder = ChatEncoder(setup.spec)

    def work(records: Sequence[Record | Fault]) -> Part:
        ignored = Ignored()
        found = list(converted(records, setup.form, ignored))
        places = [number for number, one in enumerate(found) if isinstance(one, Sample)]
        samples, refused = encoder.encode([one for one in found if isinstance(one, Sample)])
        faults = {number: one for number, one in enumerate(found) if isinstance(one, Fault)}
        for index, fault in refused:
            faults[places[index]] = _placed(fault, records[places[index]].place)
        first = [faults[number] for number in sorted(faults)[:KEPT_FAULTS]]
        return Part(samples=samples, records=len(records), faults=tuple(first), bad=len(faults), ignored=dict(ignored))

    return work


def _placed(fault: Fault, place: str) -> Fault:
    """An encoder's fault, a sentence about a sample, as one of the record at `place`."""
    what = fault.what.rstrip(".")
    return Fault(place=place, code=fault.code, what=f"cannot be encoded: {what[:1].lower()}{what[1:]}")
