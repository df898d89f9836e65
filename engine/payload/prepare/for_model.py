"""The encoder of a described model, and what a report says of it."""

from __future__ import annotations

from pathlib import Path

from engine.payload.chat.encoder import ChatEncoder, EncoderSpec
from engine.payload.chat.template import given_template, templates_in
from engine.payload.model import ModelDescription
from engine.payload.prepare.report import Template


def encoder_spec(model: ModelDescription, chat_template: Path | None = None) -> EncoderSpec:
    """The spec of the model's own encoder, or of one with the template in the file `chat_template`.

    Raises `DataError` (`chat_template_invalid`, `tokenizer_invalid`).
    """
    given = None if chat_template is None else given_template(chat_template)
    return EncoderSpec(
        tokenizer=model.tokenizer,
        tokenizer_config=model.tokenizer_config,
        templates=given or templates_in(model.tokenizer.parent, model.tokenizer_config),
        vocab=model.shape.vocab,
        eos=model.shape.eos,
        pad=model.shape.pad,
    )


def template_of(encoder: ChatEncoder) -> Template | None:
    """Where the encoder's template is from; None without one."""
    digest = encoder.template_digest
    return None if digest is None else Template(source=encoder.template_source, digest=digest)
