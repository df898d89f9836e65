"""Names and values in the payload that its maker and the trainer share."""

from __future__ import annotations

from typing import Final

TOKENIZER: Final = "tokenizer.json"
"""The file that turns an answer into text; sent only with a question."""
HELD_OUT_IDS: Final = "held_out_ids"
HELD_OUT_LABELS: Final = "held_out_labels"
QUESTION: Final = "question_ids"
IGNORED: Final = -100
"""The label of a token that is not learned, as torch's cross entropy has it."""
STOPS: Final = "question_stops"
"""Tokens that end an answer."""
