"""The ids are those of transformers' `apply_chat_template(tokenize=True)`, id for id."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest

from engine.payload.chat.guards import TODAY
from engine.payload.data.samples import Sample
from tests.needs import LOCAL_EXTRA
from tests.unit.payload.chat.families import FAMILIES, call, chat, encoder_of, folder_of, message, sample

pytestmark = pytest.mark.training
transformers = pytest.importorskip("transformers", reason=LOCAL_EXTRA)

TEXTS: tuple[str, ...] = (
    "",
    " ",
    "Hello, world!",
    "  two  spaces\n\n",
    "\n",
    "naïve café \u2013 \u201cquotes\u201d ñ",
    "👩‍👩‍👧 日本語 한국",
    "<think>\nno\n</think>\n\nyes",
)
TEXTS += (
    'a<b>c</b> & {"x": [1]}',
    "x" * 300,
    "\t tab\r\nline",
    "12345 67.8e-9",
    "{{ messages }} {% if %}",
    "\ue000\U000f0000",
)
CALLED = (
    message("user", "How far?"),
    message("assistant", "", tool_calls=call(a=1.5, unit="km <&> é")),
    message("tool", "[3, 4]", tool_call_id="abcdefghi", name="add"),
    message("assistant", "It is 3."),
)
CHATS: dict[str, Sample] = {
    **{f"text {place}": chat(text, f"{text}{text}") for place, text in enumerate(TEXTS)},
    **{f"after text {place}": chat("Hi", text, text, "Bye") for place, text in enumerate(TEXTS)},
    "system": sample(message("system", "Be brief."), message("user", "Hi"), message("assistant", "Hello")),
    "developer": sample(message("developer", "Be brief."), message("user", "Hi"), message("assistant", "Hello")),
    "no answer yet": chat("Hi"),
    "long": chat(*("one two three",) * 20),
    "tools": sample(*CALLED, tools=True),
    "tools, then more": sample(*CALLED, message("user", "And?"), message("assistant", "Four."), tools=True),
    "calls without tools": sample(*CALLED),
    "reasoning": sample(message("user", "Hi"), message("assistant", "Hello", reasoning_content="They greet.\n")),
    "reasoning in earlier turns": sample(
        message("user", "Hi"),
        message("assistant", "Hello", thinking="They greet."),
        message("user", "Bye"),
        message("assistant", "<think>\nThey go.\n</think>\n\nBye"),
    ),
    "reasoning with a call": sample(
        message("user", "How far?"),
        message("assistant", None, reasoning_content="I add.", tool_calls=call(a=[1, {"b": None}], unit="")),
        message("tool", "3", tool_call_id="abcdefghi"),
        tools=True,
    ),
}

WITHOUT_TOOLS = ("llama3", "phi3", "smollm3", "gemma")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    loaded: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in loaded:
            folder = folder_of(name, tmp_path_factory.mktemp(name))
            loaded[name] = transformers.AutoTokenizer.from_pretrained(folder)
        return loaded[name]

    return load


@pytest.fixture(autouse=True)
def _same_date(monkeypatch: pytest.MonkeyPatch) -> None:
    class Today(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Today:
            return cls(TODAY.year, TODAY.month, TODAY.day)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Today)


def expected(tokenizer: Any, one: Sample) -> list[int] | None:
    """None: the template refuses or fails."""
    try:
        ids: list[int] = tokenizer.apply_chat_template(
            [dict(each) for each in one.messages],
            tools=[dict(tool) for tool in one.tools] or None,
            tokenize=True,
            return_dict=False,
        )
    except Exception:
        return None
    return ids


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_transformers(name: str, theirs: Callable[[str], Any]) -> None:
    wanted = {title: expected(theirs(name), one) for title, one in CHATS.items()}
    made, faults = encoder_of(name).encode(list(CHATS.values()))
    left_out = {index for index, fault in faults if fault.code == "chat_template_lacks_tools"}
    refused = {index for index, _ in faults} - left_out
    assert refused == {place for place, ids in enumerate(wanted.values()) if ids is None}
    assert all("tools" in list(CHATS)[place] or "call" in list(CHATS)[place] for place in left_out)
    assert not left_out or name in WITHOUT_TOOLS
    got = iter(range(len(made.ends)))
    for place, (title, ids) in enumerate(wanted.items()):
        if ids is not None and place not in left_out:
            assert made.sample(next(got))[0].tolist() == ids, title


def test_most_chats_are_taken_by_every_family(theirs: Callable[[str], Any]) -> None:
    for name in FAMILIES:
        taken = [title for title, one in CHATS.items() if expected(theirs(name), one) is not None]
        assert len(taken) >= 30, name


@pytest.mark.parametrize("name", ["smollm3"])
def test_what_the_template_marks_is_what_transformers_masks(name: str, theirs: Callable[[str], Any]) -> None:
    for one in (
        chat("Hi", "Hello", "And?", "Bye é"),
        sample(message("system", "/no_think"), *chat("Hi", "Yo").messages),
    ):
        result = theirs(name).apply_chat_template(
            [dict(each) for each in one.messages], return_dict=True, return_assistant_tokens_mask=True
        )
        made, _ = encoder_of(name).encode([one])
        assert [flag & 1 for flag in made.sample(0)[1].tolist()] == result["assistant_masks"]
        assert sum(result["assistant_masks"])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_plain_text_begins_as_transformers_begins_it(name: str, theirs: Callable[[str], Any]) -> None:
    made, _ = encoder_of(name).encode([Sample(text="  Once upon a time\n")])
    ids = made.sample(0)[0].tolist()
    assert ids == [*theirs(name)("  Once upon a time\n")["input_ids"], theirs(name).eos_token_id]
