"""The operators, methods, filters and tests that templates may use, each paid for before it does its work."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from jinja2 import TemplateError
from jinja2.filters import FILTERS
from jinja2.tests import TESTS

from engine.payload.chat.meter import MAX_BITS, PER_CALL, PER_NODE, Meter, TooCostly

TODAY: Final = datetime(2024, 7, 26)
"""The date that templates see. Theirs would change the token ids from day to day; this is Llama's own default."""
MAX_NUMBER: Final = 10_000
"""The largest number that a filter takes as a width or a count."""
PER_ENTRY: Final = 20
"""Units of a string that is cut out of another."""
PER_STEP: Final = 16 * PER_NODE
"""Units of a step from a value to its attribute."""
_MAX_FORMAT: Final = 128
_WIDE: Final = re.compile(r"\d{4}|\*|\{[^}]*\{")

_NAMES: Final = """\
capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit isidentifier islower
isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind
rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill"""
STRING_METHODS: Final = frozenset(_NAMES.split())
METHODS: Final[dict[type, frozenset[str]]] = {
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
}
_FILTERS: Final = """\
abs attr batch capitalize count d default dictsort e escape first float forceescape format groupby indent int items join
last length list lower map max min reject rejectattr replace reverse round safe select selectattr sort string sum title
trim unique upper urlencode"""
_WHOLE: Final = frozenset(("dictsort", "format", "groupby", "join", "max", "min", "sort", "string", "unique"))
_WIDTHS: Final = frozenset(("batch", "indent", "round"))
_SORTED: Final = frozenset(("dictsort", "groupby", "sort"))
_PATH_AT: Final[Mapping[str, int | None]] = {
    **dict.fromkeys(("groupby", "rejectattr", "selectattr", "sum"), 0),
    **dict.fromkeys(("join", "max", "min", "unique"), 1),
    "map": None,
    "sort": 2,
}
"""The place of the attribute path among the arguments of a filter; None: only by its name."""
_BACKWARDS: Final = frozenset(("rfind", "rindex", "rpartition", "rsplit"))
_STRIPS: Final = frozenset(("lstrip", "rstrip", "strip"))
_COMPARE: Final = "== eq equalto != ne > gt greaterthan ge >= < lt lessthan le <= in lower upper"


def strftime_now(form: str) -> str:
    """`TODAY` in the given form."""
    if len(form) > _MAX_FORMAT or any(char.isdigit() for char in form):
        raise TemplateError("a date format is not valid")
    return TODAY.strftime(form)


def operate(meter: Meter, operator: str, left: Any, right: Any) -> None:
    """Pay for `left operator right` before it is computed."""
    if operator == "+":
        if hasattr(left, "__len__") and hasattr(right, "__len__"):
            meter.spend(len(left) + len(right))
    elif operator == "*":
        _repeat(meter, left, right)
    elif operator == "**":
        bits = left.bit_length() if isinstance(left, int) else 1
        if isinstance(right, int) and bits * right > MAX_BITS:
            raise TooCostly("a number is too large")
    elif operator == "%" and isinstance(left, str):
        _format(meter, left, right)


def _repeat(meter: Meter, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_BITS:
            raise TooCostly("a number is too large")
        return
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int) and hasattr(value, "__len__"):
            meter.spend(meter.sizes.of(value) * max(0, times))


def _format(meter: Meter, form: str, values: Any) -> None:
    if _WIDE.search(form):
        raise TooCostly("a format is too wide")
    meter.spend(len(form) * (1 + meter.sizes.of(values)))


def call_of(meter: Meter, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Pay for a call; its arguments, with what can be gone through only once as a list."""
    text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    meter.spend(PER_CALL)
    if name in ("changed", "count", "index"):  # these compare their arguments
        meter.spend(meter.sizes.of(text) + sum(map(meter.sizes.of, args)))
    if not isinstance(text, str):
        return args
    meter.spend(len(text))
    if name in _BACKWARDS or name in _STRIPS:  # Python's search from the end has no bound but this
        meter.spend(len(text) * sum(len(one) for one in (*args, *kwargs.values()) if isinstance(one, str)))
    if name == "replace" and len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
        meter.spend(text.count(args[0]) * len(args[1]))
    elif name == "join" and args:
        parts = list(meter.iterated(args[0]))
        meter.spend(sum(map(meter.sizes.of, parts)) + len(text) * len(parts))
        return (parts, *args[1:])
    elif name in ("split", "rsplit", "splitlines"):
        by = args[0] if args and isinstance(args[0], str) else ""
        meter.spend(PER_ENTRY * (text.count(by) if by else len(text)))
    elif name in ("ljust", "rjust", "zfill") and args and isinstance(args[0], int):
        meter.spend(max(0, args[0]))
    return args


def formatting(meter: Callable[[], Meter], text: str, method: Callable[..., str]) -> Callable[..., str]:
    """A string's `format`, paid for."""

    def guarded(*args: Any, **kwargs: Any) -> str:
        _format(meter(), text, [*args, *kwargs.values()])
        return method(*args, **kwargs)

    return guarded


def _grown(meter: Meter, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Pay for what a filter adds to `value`."""
    given = [*args, *kwargs.values()]
    if name in _WIDTHS and any(isinstance(one, int) and abs(one) > MAX_NUMBER for one in given):
        raise TooCostly("a number is too large")
    longest = max(
        (len(one) if isinstance(one, str) else one for one in given if isinstance(one, (str, int))), default=0
    )
    if name == "list" and isinstance(value, str):
        meter.spend(PER_ENTRY * len(value))
    elif name == "indent":
        meter.spend(str(value).count("\n") * max(4, longest))
    elif name == "replace" and args:
        meter.spend(str(value).count(str(args[0])) * longest)
    elif name == "join" and hasattr(value, "__len__"):
        meter.spend(len(value) * longest)
    elif name == "batch":
        meter.spend(longest)
    elif name == "trim":
        meter.spend(len(str(value)) * longest)
    elif name == "format":
        _format(meter, str(value), given)
    elif name == "sum" and any(not isinstance(one, (int, float, str)) for one in given):
        raise TooCostly("only numbers can be summed")


def _path(meter: Meter, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """`value`, with the attribute path that a filter follows from each of its items paid for."""
    place = _PATH_AT.get(name)
    path = kwargs.get("attribute", args[place] if place is not None and place < len(args) else None)
    if name not in _PATH_AT or not isinstance(path, str):
        return value
    cost = PER_STEP * (1 + path.count(".") + path.count(","))
    meter.spend(cost + len(path))
    return meter.iterated(value, cost)


def _guarded(meter: Callable[[], Meter], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    place = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        budget = meter()
        value = args[place]
        if name == "join" and not hasattr(value, "__len__"):
            value = list(value)
            args = (*args[:place], value, *args[place + 1 :])
        if isinstance(value, str) or name in _WHOLE:
            budget.spend(budget.sizes.of(value) * (20 if name in _SORTED else 1))
        else:
            value = budget.iterated(value)
            args = (*args[:place], value, *args[place + 1 :])
        value = _path(budget, name, value, args[place + 1 :], kwargs)
        args = (*args[:place], value, *args[place + 1 :])
        _grown(budget, name, value, args[place + 1 :], kwargs)
        return budget.made(function(*args, **kwargs))

    return guarded


def filters(meter: Callable[[], Meter]) -> dict[str, Callable[..., Any]]:
    """The filters by name: jinja's without those that draw random numbers or only serve HTML, and `tojson`."""

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        budget = meter()
        for part in (indent, *(separators or ())):
            if (len(part) if isinstance(part, str) else part or 0) > 16:
                raise TooCostly("JSON is indented too far")
        budget.spend(2 * budget.sizes.of(value))
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return str(budget.made(text))

    return {name: _guarded(meter, name, FILTERS[name]) for name in _FILTERS.split()} | {"tojson": tojson}


def tests(meter: Callable[[], Meter]) -> dict[str, Callable[..., Any]]:
    """Jinja's tests by name."""

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def test(*args: Any) -> Any:
            budget = meter()
            for arg in args:
                budget.weigh(arg)
            return function(*args)

        return test

    known: Mapping[str, Callable[..., Any]] = TESTS  # type: ignore[assignment]
    return {name: guarded(test) if name in _COMPARE.split() else test for name, test in known.items()}
