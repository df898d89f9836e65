"""Which characters of a rendered chat the model is to produce: the answers that are learned, each with its end mark.

Three ways, the first that works:

1. `{% generation %}`: the spans are the template's, as transformers' `return_assistant_tokens_mask` takes them.
2. The template's loop over the messages: the text of one iteration is that message. An answer is learned from the end
   of its header, which is what the template writes for `add_generation_prompt`, to the end of its iteration. This
   holds too where the text of a turn depends on what follows it (Qwen3 drops the reasoning of earlier turns, Mistral
   lists the tools before the last question, gpt-oss ends only the last answer with `<|return|>`).
3. Rendering it step by step: the chat up to an answer and with it must both be the beginning of the whole chat.

An empty `<think>` block that the template writes into an answer is learned, as TRL does; one that the header has is
not. White space after the control token that ends an answer is not learned: the model has stopped by then.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import msgspec

from engine.payload.chat.control import ControlText
from engine.payload.chat.render import Chat, ChatTemplate, Rendered, RenderFault

ANSWERS: Final = "assistant"
_THINK: Final = "<think>"
_UNMASKED: Final = "The chat template does not show which part of its text is the answer."

Span = tuple[int, int]


class _Place(msgspec.Struct, frozen=True):
    """Where a message's text is in a rendered chat."""

    start: int
    end: int


def learned_spans(
    template: ChatTemplate, chat: Chat, learned: tuple[bool, ...], rendered: Rendered, control: ControlText
) -> list[Span]:
    """The spans of `rendered.text`, which is the whole chat, that are learned; ascending.

    Raises `RenderFault` (`chat_template_unmasked`).
    """
    answers = [place for place, message in enumerate(chat.messages) if message.get("role") == ANSWERS]
    wanted = [place for place in answers if place < len(learned) and learned[place]]
    if not wanted:
        return []
    places = _iterations(rendered, len(chat.messages))
    if template.marks_generation:
        return _generated(rendered, places, answers, wanted)
    spans = _by_loop(template, chat, wanted, rendered, places, control) or _by_prefix(template, chat, wanted, rendered)
    if spans is None:
        raise RenderFault("chat_template_unmasked", _UNMASKED)
    return [_without_space(rendered.text, span, control) for span in spans]


def _iterations(rendered: Rendered, messages: int) -> dict[int, _Place] | None:
    """The text of each message by the loop that writes them; None if there is no such loop or more than one.

    What follows the loop belongs to the last message. Raises `RenderFault` (`chat_template_unmasked`) if that is not
    the last in the text.
    """
    found = None
    for loop in {turn.loop for turn in rendered.turns}:
        turns = [turn for turn in rendered.turns if turn.loop == loop]
        places = {
            turn.message: _Place(turn.place, after.place) for turn, after in pairwise(turns) if turn.message is not None
        }
        once = len(places) == sum(turn.message is not None for turn in turns)
        if any(place.start < place.end for place in places.values()):
            if found is not None or not once:
                return None
            found = places
    if found and messages - 1 in found:
        last = found[messages - 1]
        if last.start < max(place.start for place in found.values()):
            raise RenderFault("chat_template_unmasked", _UNMASKED)
        found[messages - 1] = _Place(last.start, len(rendered.text))
    return found


def _generated(
    rendered: Rendered, places: dict[int, _Place] | None, answers: list[int], wanted: list[int]
) -> list[Span]:
    """The spans that the template marks, of the wanted answers only."""
    if not any(start < end for start, end in rendered.generated):
        raise RenderFault("chat_template_unmasked", _UNMASKED)
    if wanted == answers:
        return sorted(rendered.generated)
    if places is not None and all(place in places for place in wanted):
        return sorted(
            span
            for span in rendered.generated
            if any(places[place].start <= span[0] < places[place].end for place in wanted)
        )
    if len(rendered.generated) == len(answers):
        return sorted(span for place, span in zip(answers, rendered.generated, strict=True) if place in wanted)
    raise RenderFault("chat_template_unmasked", _UNMASKED)


def _by_loop(
    template: ChatTemplate,
    chat: Chat,
    wanted: list[int],
    rendered: Rendered,
    places: dict[int, _Place] | None,
    control: ControlText,
) -> list[Span] | None:
    if places is None or any(place not in places for place in wanted):
        return None
    headers = {_header(template, chat, place) for place in {wanted[0], wanted[-1]}}
    if None in headers:
        return None
    spans = []
    for place in wanted:
        start, end = places[place].start, places[place].end
        if place == 0:  # what begins every chat may be in the loop
            start += control.first(rendered.text, start, _variants(headers))
        lengths = [len(one) for one in _variants(headers) if rendered.text.startswith(one, start)]
        if _is_silent(places, chat, place + 1):
            end = _end_alone(template, chat, place, rendered, places[place])
        if not lengths or start + max(lengths) >= end:
            return None
        spans.append((start + max(lengths), end))
    return spans


def _is_silent(places: dict[int, _Place], chat: Chat, place: int) -> bool:
    """Whether what follows an answer has no text of its own: the template may have written it into the answer."""
    if place >= len(chat.messages) or chat.messages[place].get("role") == ANSWERS:
        return False
    return place not in places or places[place].start == places[place].end


def _end_alone(template: ChatTemplate, chat: Chat, place: int, rendered: Rendered, whole: _Place) -> int:
    """Where the text of an answer ends that it has also without the messages after it; 0 if that differs."""
    try:
        alone = template.render(chat, until=place + 1)
    except RenderFault:
        return 0
    found = (_iterations(alone, 0) or {}).get(place)
    text = "" if found is None else alone.text[found.start : found.end]
    return whole.start + len(text) if rendered.text[whole.start : whole.end].startswith(text) else 0


def _header(template: ChatTemplate, chat: Chat, place: int) -> str | None:
    """What the template writes to ask for the answer at `place`: all that follows its loop over the messages."""
    try:
        prompt = template.render(chat, until=max(1, place), prompt=True)
    except RenderFault:
        return None
    ends = [turn.place for turn in prompt.turns if turn.message is None and _writes(prompt, turn.loop)]
    return prompt.text[ends[0] :] if len(ends) == 1 else None


def _writes(rendered: Rendered, loop: int) -> bool:
    places = [turn.place for turn in rendered.turns if turn.loop == loop]
    return places[0] < places[-1]


def _variants(headers: set[str | None]) -> set[str]:
    """The headers, also without the reasoning that some begin and that earlier answers lack.

    A first message may lack the line break that stands between turns.
    """
    texts = {one for one in headers if one is not None}
    texts |= {one.partition(_THINK)[0] for one in texts}
    return texts | {one.lstrip() for one in texts}


def _by_prefix(template: ChatTemplate, chat: Chat, wanted: list[int], rendered: Rendered) -> list[Span] | None:
    spans = []
    for place in wanted:
        try:
            prompt = template.render(chat, until=place, prompt=True).text
            last = place + 1 == len(chat.messages)
            done = rendered.text if last else template.render(chat, until=place + 1).text
        except RenderFault:
            return None
        if not (rendered.text.startswith(done) and done.startswith(prompt)) or len(prompt) >= len(done):
            return None
        spans.append((len(prompt), len(done)))
    return spans


def _without_space(text: str, span: Span, control: ControlText) -> Span:
    """The span without the white space after the control token that ends it."""
    start, end = span
    bare = start + len(text[start:end].rstrip())
    return (start, bare) if bare < end and control.ends(text, start, bare) else span
