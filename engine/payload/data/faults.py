"""The refusal of a data file: how many records are bad, the first of them, and what to do. Never what they contain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engine.errors import DataError
from engine.payload.data.formats import Format
from engine.payload.data.samples import Fault

MAX_SHOWN: Final = 10
_MAX_HINTS: Final = 3
SHAPES: Final = (
    'Each record is {"messages": [{"role", "content"}, ...]}, {"conversations": [{"from", "value"}, ...]}, '
    '{"prompt", "completion"}, {"instruction", "input", "output"} or {"text"}.'
)
HINTS: Final[dict[str, str]] = {
    "chat_template_control_text": "Remove the text of the model's control tokens from the record.",
    "chat_template_costly": "Shorten the sample, or give another template with --chat-template FILE.",
    "chat_template_failed": "Give another template with --chat-template FILE, or data in the form that it expects.",
    "chat_template_lacks_tools": (
        "Give a template for tools with --chat-template FILE, or remove calls and tools from the record."
    ),
    "chat_template_refused": "Give the record the form that the model's template expects, or another --chat-template.",
    "chat_template_unmasked": "Give a template that marks its answers (generation blocks) with --chat-template FILE.",
    "sample_empty": "Fill in the content, or remove the record.",
    "sample_invalid": "Write each record with a JSON library, without deep nesting.",
    "data_ambiguous": "Keep one form of the sample in a record, and rename or remove the other keys.",
    "data_classification": "Write what is to be classified as prompt and the label as completion.",
    "data_embedding": "Only data for a language model can be trained on: chats, prompts with answers, or text.",
    "data_format_mixed": "Give the files of each format on their own, or convert them into one format.",
    "data_format_unknown": SHAPES,
    "data_json_invalid": "Write each record with a JSON library; NaN and repeated keys are not JSON.",
    "data_line_too_long": "Split the sample into shorter ones.",
    "data_not_text": "Remove the samples with images, audio or refusals, or keep only their text.",
    "data_not_utf8": "Save the file as UTF-8, without broken characters.",
    "data_nothing_learned": "Give an answer the weight 1, or remove the sample.",
    "data_preference": (
        "Training on preferences is not supported: write the preferred answer as {prompt, completion}, or as messages."
    ),
    "data_sample_empty": "Fill in the content, or remove the record.",
    "data_shape_invalid": SHAPES,
    "data_tokenised": "Give the text from which the ids were made.",
    "data_tool_call": 'Write calls as {"id", "type": "function", "function": {"name", "arguments"}}, as OpenAI does.',
    "data_tool_reply": "Put each reply of a tool after its call, with the call's id as tool_call_id.",
}


def refusal(faults: Sequence[Fault], total: int, form: Format | None) -> DataError:
    """The error for `total` bad records of a data file, of which `faults` are the first, at least one.

    `form` is the format as which the file was read, None if no record could be recognised. Its code is that of the
    first fault.
    """
    hints = dict.fromkeys(HINTS.get(fault.code, SHAPES) for fault in faults[:MAX_SHOWN])
    return DataError(_sentence(faults, total, form), " ".join(list(hints)[:_MAX_HINTS]), code=faults[0].code)


def _sentence(faults: Sequence[Fault], total: int, form: Format | None) -> str:
    read_as = f", read as {form.title}," if form else ""
    first = faults[0]
    if total == 1:
        return f"{first.place[0].upper()}{first.place[1:]} of the data{read_as} {first.what}."
    shown = "; ".join(f"{fault.place} {fault.what}" for fault in faults[:MAX_SHOWN])
    more = f"; and {total - MAX_SHOWN:,} more" if total > MAX_SHOWN else ""
    return f"{total:,} records of the data{read_as} cannot be used: {shown}{more}."
