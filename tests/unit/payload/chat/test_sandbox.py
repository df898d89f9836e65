"""Chat templates are programs from strangers: none of them hangs, eats the memory or reaches anything."""

from __future__ import annotations

import re
import tracemalloc
from typing import Any

import pytest

from engine.errors import DataError
from engine.payload.chat.encoder import MAX_COSTLY, ChatEncoder
from engine.payload.chat.messages import chat_of
from engine.payload.chat.render import MAX_TEMPLATE, ChatTemplate, RenderFault
from engine.payload.data.samples import Sample
from tests.unit.payload.chat.families import chat, message, sample, spec_of

GROW = "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = "
LONG = "{% set x = 'a ' * 500000 %}{% for i in range(90000) %}"


def fault_of(text: str, one: Sample | None = None) -> RenderFault | None:
    template = ChatTemplate(text, {"bos_token": "<s>"})
    try:
        template.render(chat_of(one or chat("Hi", "Hello")))
    except RenderFault as fault:
        return fault
    return None


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% break %}{% endfor %}{{ 'a' * 5000 }}{% endfor %}",
        "{% set r = range(99999) %}{% for i in r %}{% for j in r if (j.q or j.w or j.e or j.r or j.t) and false %}"
        "{% endfor %}{% endfor %}",
        "{{ range(9999) | map(attribute='a.' * 5000 + 'a', default=1) | list }}",
        "{{ range(9999) | map('int') | map(attribute='a.' * 5000 + 'a', default=1) | list }}",
        "{% set p = '0.' * 50000 + '0' %}{% set m = [messages] %}{% for i in range(99999) %}"
        "{% set x = [] | map(attribute=p) | list %}{% endfor %}",
        *(
            "{% set s = 'a' * 400000 %}{% set p = 'ab' ~ 'a' * 200000 %}{{ s." + call + " }}"
            for call in ("rfind(p)", "rindex(p)", "rsplit(p)", "rsplit(sep=p)", "rpartition(p)", "strip(p)")
        ),
        "{% set s = 'a' * 400000 %}{% set p = 'ab' ~ 'a' * 200000 %}{{ s | trim(p) }}",
        "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ ([1] * 99999) * 99999 }}",
        "{{ 10 ** (10 ** 10) }}",
        GROW + "ns.x + ns.x %}{% endfor %}",
        GROW + "ns.x ~ ns.x %}{% endfor %}",
        GROW + "[ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        GROW + "(ns.x, ns.x) %}{% endfor %}{{ ns.x }}",
        GROW + "{'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
        GROW + "dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x | tojson }}",
        GROW + "ns.x ~ '%s%s' % (ns.x, ns.x) %}{% endfor %}",
        GROW + "'{}{}'.format(ns.x, ns.x) %}{% endfor %}",
        GROW + "[ns.x, ns.x] | join %}{% endfor %}",
        GROW + "''.join([ns.x, ns.x]) %}{% endfor %}",
        "{{ 'a'.ljust(10 ** 10) }}",
        "{{ '%999999999d' % 3 }}",
        "{{ '%*d' % (999999999, 3) }}",
        "{{ '{:999999999}'.format(3) }}",
        "{{ '{:{}}'.format(3, 999999999) }}",
        "{{ '{:999999999}' | format(3) }}",
        "{{ 'a' | indent(10 ** 9) }}",
        "{{ ('a\n' * 1000) | indent(9999) | indent(9999) | indent(9999) }}",
        "{{ [1] | tojson(indent=10 ** 9) }}",
        "{{ ([1] * 9999) | tojson(separators=('a' * 99999, 'b')) }}",
        "{{ range(99999) | list | join('a' * 99999) }}",
        "{{ (['a' * 1000000] * 9999) | tojson }}",
        "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
        "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
        "{{ 3 | round(10 ** 9) }}",
        "{{ [[1], [2]] | sum(start=[]) }}",
        "{{ 'a' * 9000000 }}",
        "{% set x = ('f' * 1000000) | int(0, 16) %}{{ (x // 3) | length }}",
        LONG + "{% if loop.changed(x, i) %}{% endif %}{% endfor %}",
        LONG + "{{ ['b'].index(x) if false }}{{ [x].count(x) }}{% endfor %}",
        LONG + "{% if x == x + '' %}{% endif %}{% endfor %}",
        LONG + "{% if 'b' in x %}{% endif %}{% endfor %}",
        LONG + "{{ x[::-1] | length }}{% endfor %}",
        LONG + "{{ x | upper | length }}{% endfor %}",
        LONG + "{% set y = x.split(' ') %}{% endfor %}",
        LONG + "{% set y = x | list %}{% endfor %}",
        LONG + "{% if x is eq(x + '') %}{% endif %}{% endfor %}",
        "{% for i in range(99999) %}{% set y %}" + "a" * 100_000 + "{% endset %}{% endfor %}",
    ],
)
def test_what_has_no_bound_is_stopped(text: str) -> None:
    fault = fault_of(text)
    assert fault is not None
    assert fault.code == "chat_template_costly"
    recursive = any(call in text for call in ("loop(", "f()", "self.a()"))
    assert ("memory" in fault.what) == recursive  # else it was stopped before the memory was taken


@pytest.mark.parametrize(
    "text",
    [
        "{{ ('a' * 20000).replace('a', 'b' * 20000) }}",
        "{{ ('a' * 20000) | replace('a', 'b' * 20000) }}",
        "{{ ('a\n' * 50000) | indent(9999) }}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{% set x = [] %}{% endfor %}{% endfor %}",
        "{{ (['a'] * 50000) | join('b' * 9000) }}",
        "{{ ('b' * 9000).join(['a'] * 50000) }}",
    ],
)
def test_a_large_value_is_refused_before_it_is_made(text: str) -> None:
    tracemalloc.start()
    try:
        assert fault_of(text) is not None
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_range_without_end_is_refused() -> None:
    fault = fault_of("{% for i in range(10 ** 9) %}{% endfor %}")
    assert fault is not None
    assert fault.what == "The chat template fails on it: OverflowError."


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'].__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ ('' | attr('__class__')).__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ 'a'.encode() }}",
        "{{ (1).to_bytes(4, 'big') }}",
        "{{ dict.__subclasses__() }}",
        "{% set ns = namespace(_x=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ '{0.__class__.__mro__}'.format('a').x.y }}",
        "{{ lipsum() }}",
        "{{ open('/etc/passwd') }}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{{ strftime_now('%999999999d') }}",
        "{{ messages.nothing.more }}",
        "{{ 1 + 'a' }}",
    ],
)
def test_what_a_template_may_not_do_is_a_fault_of_the_sample(text: str) -> None:
    fault = fault_of(text)
    assert fault is not None
    assert fault.code == "chat_template_failed"
    assert re.fullmatch(r"The chat template fails on it: \w+\.", fault.what)


@pytest.mark.parametrize(
    "text",
    [
        "{% if %}",
        "{{ 'a' | random }}",
        "{{ 'a' | center(9) }}",
        "{% autoescape true %}{{ '<' }}{% endautoescape %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "-" * 50_000 + "1 }}",
        "{% if x %}" * 3000 + "{% endif %}" * 3000,
        "a" * (MAX_TEMPLATE + 1),
        "{% generation %}",
        "{{ '\x1b[31m' | nothing }}",
    ],
)
def test_a_template_that_cannot_be_compiled_is_refused(text: str) -> None:
    with pytest.raises(DataError) as caught:
        ChatTemplate(text, {})
    assert caught.value.code == "chat_template_invalid"
    assert "--chat-template" in caught.value.hint
    assert caught.value.message.isprintable()


def test_a_refusal_is_told_in_the_templates_words_cleaned_and_cut() -> None:
    fault = fault_of("{{ raise_exception('No \x1b[31msystem\n\u202erole " + "a" * 999 + "') }}")
    assert fault is not None
    assert fault.code == "chat_template_refused"
    assert fault.what.startswith("The chat template refuses it: No \\x1b[31msystem \\u202erole aaa")
    assert len(fault.what) < 260
    assert fault.what.isprintable()


SECRET = "kp7-zulu"


@pytest.mark.parametrize(
    "text",
    [
        "{{ raise_exception('Not this: ' + messages[0].content) }}",
        "{{ raise_exception(messages[0].content) }}",
        "{{ raise_exception('%s' % messages[0].content) }}",
        "{{ messages[messages[0].content].foo.bar }}",
        "{{ messages[0][messages[0].content].foo }}",
        "{{ messages | map(messages[0].content) | list }}",
        "{{ '%d' % messages[0].content }}",
        "{{ ('{' + messages[0].content + '}').format(1) }}",
        "{{ dict(a=1)[messages[0].content].x }}",
        "{% include messages[0].content %}",
    ],
)
def test_nothing_of_the_data_is_in_a_fault(text: str) -> None:
    fault = fault_of(text, chat(SECRET, "Hello"))
    assert fault is not None
    assert fault.code in ("chat_template_refused", "chat_template_failed")
    assert SECRET not in fault.what
    assert "kp7" not in fault.what
    if fault.code == "chat_template_refused":
        assert fault.what == "The chat template refuses it."


def test_a_refused_sample_is_left_out_and_the_others_stay() -> None:
    encoder = ChatEncoder(spec_of("gemma"))
    with_system = sample(message("system", "Be brief."), *chat("Hi", "Hello").messages)
    made, faults = encoder.encode([chat("Hi", "Hello"), with_system, chat("And?", "Bye")])
    assert len(made.ends) == 2
    [(index, fault)] = faults
    assert index == 1
    assert fault.place == "sample 2"
    assert fault.what == "The chat template refuses it: System role not supported."


def test_a_template_that_is_too_costly_again_and_again_is_refused_altogether() -> None:
    encoder = ChatEncoder(spec_of("gemma", chat_template="{{ 'a' * 10 ** 10 }}"))
    made, faults = encoder.encode([chat("Hi", "Hello")] * (MAX_COSTLY - 1))
    assert len(made.ends) == 0
    assert {fault.code for _, fault in faults} == {"chat_template_costly"}
    with pytest.raises(DataError) as caught:
        encoder.encode([chat("Hi", "Hello")])
    assert caught.value.code == "chat_template_costly"


def test_long_data_may_cost_more() -> None:
    long = chat("a" * 2_000_000, "b" * 2_000_000)
    template = (
        "{% for m in messages %}{% for i in range(30) %}{% if 'c' in m.content %}x{% endif %}{% endfor %}{% endfor %}"
    )
    assert fault_of(template, long) is None
    fault = fault_of(template.replace("30", "300"), long)
    assert fault is not None


def test_the_number_of_messages_may_be_large() -> None:
    many = chat(*("Hi",) * 2000)
    template = "{% for m in messages %}{% if m == messages[-1] %}{% endif %}{{ m.role + m.content }}{% endfor %}"
    assert fault_of(template, many) is None


def deep(levels: int) -> Any:
    value: Any = "a"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("value", [deep(200), object(), {1: "a"}, b"a"])
def test_values_that_are_no_plain_json_are_faults(value: Any) -> None:
    with pytest.raises(RenderFault) as caught:
        chat_of(sample(message("user", value)))
    assert caught.value.code == "sample_invalid"


@pytest.mark.parametrize(
    "path", ["sort(false, false, P)", "groupby(P)", "unique(false, P)", "sum(P)", "join('', P)", "min(false, P)"]
)
def test_every_step_of_a_path_is_paid_for_each_item(path: str) -> None:
    """A long path that fails at its first step costs nothing but what is charged before it."""
    text = "{% set P = 'a.' * 999 + 'a' %}{{ ([messages] * 9999) | " + path + " }}"
    fault = fault_of(text)
    assert fault is not None
    assert fault.code == "chat_template_costly"
    assert (
        fault_of("{{ messages | map(attribute='content') | join(' ') }}{{ messages | sort(attribute='role') }}") is None
    )
    assert fault_of("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}") is None
    assert fault_of("{{ messages[0].content.rsplit('</think>')[0].strip(' ') }}") is None
