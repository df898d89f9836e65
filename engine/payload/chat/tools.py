"""Calls of functions, and the functions themselves, that a chat template leaves out of its text.

A template that does not know them writes an empty answer where the data have a call, and the model would learn to say
nothing.
"""

from __future__ import annotations

from typing import Any, Final

from engine.payload.chat.render import Chat, ChatTemplate, Rendered, RenderFault, sized

CODE: Final = "chat_template_lacks_tools"
_STEM: Final = "function_"


class _Names:
    """Functions under other names, each of which is in no text of the chat. `calls` and `tools` are pairs (old, new).

    A function's own name may be a word that occurs in the chat anyway.
    """

    def __init__(self, text: str) -> None:
        self._stem = _STEM
        while self._stem in text:
            self._stem += "x_"
        self._number = 0
        self.calls: list[tuple[str, str]] = []
        self.tools: list[tuple[str, str]] = []

    def message(self, message: dict[str, Any]) -> dict[str, Any]:
        called = message.get("tool_calls")
        if not isinstance(called, list):
            return message
        return {**message, "tool_calls": [self.function(one, self.calls) for one in called]}

    def function(self, value: Any, into: list[tuple[str, str]]) -> Any:
        """A call or a tool with another name: `{"function": {"name": ...}}` or `{"name": ...}`."""
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("function"), dict):
            return {**value, "function": self.function(value["function"], into)}
        if not isinstance(value.get("name"), str):
            return value
        self._number += 1
        into.append((value["name"], f"{self._stem}{self._number}_"))
        return {**value, "name": into[-1][1]}


def check_tools(template: ChatTemplate, chat: Chat, rendered: Rendered) -> None:
    """Raise `RenderFault` (`chat_template_lacks_tools`) unless every call and every tool of the chat is in its text.

    The chat is rendered once more with other names; for a template that refuses those, its own names are looked for.
    """
    names = _Names(rendered.text)
    messages = [names.message(message) for message in chat.messages]
    tools = [names.function(tool, names.tools) for tool in chat.tools or []]
    if not names.calls and not names.tools:
        return
    try:
        text, place = template.render(sized(messages, tools)).text, 1
    except RenderFault:
        text, place = rendered.text, 0
    if not all(pair[place] in text for pair in names.calls):
        raise RenderFault(CODE, "The chat template does not write its tool calls.")
    if not all(pair[place] in text for pair in names.tools):
        raise RenderFault(CODE, "The chat template does not write its tools.")
