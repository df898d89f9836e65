"""The encoder of a described model, and what a report says of it."""

from __future__ import annotations

from pathlib import Path

from engine.payload.chat.encoder import ChatEncoder, EncoderSpec
from engine.payload.chat.encoder import encoder_spec as spec_of
from engine.payload.model import ModelDescription
from engine.payload.prepare.report import Template


def encoder_spec(model: ModelDescription, chat_template: Path | None = None) -> EncoderSpec:
    """The spec of the model's own encoder, or of one with the template in the file `chat_template`.

    Raises `DataError` (`chat_template_invalid`, `tokenizer_invalid`).
    """
    return spec_of(model.tokenizer, model.shape, model.tokenizer_config, chat_template)


def template_of(encoder: ChatEncoder) -> Template | None:
    """Where the encoder's template is from; None without one."""
    digest = encoder.template_digest
    return None if digest is None else Template(source=encoder.template_source, digest=digest)
