"""What a template may spend on one rendering: work and memory are counted before they are used.

A template is a program from a stranger. Jinja's sandbox keeps it from files and objects, but not from loops without end
or from values that grow without bound. So every iteration, call and new value is charged to a budget that depends on
the size of the data alone: the same template and data are accepted or refused on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import GeneratorType
from typing import Any, Final

from jinja2 import TemplateError
from jinja2.utils import Namespace

BASE: Final = 100_000_000
"""Units that every rendering has: about a second of work."""
PER_CHARACTER: Final = 64
"""Units more for each character of the data."""
LARGEST: Final = 64 * 1024 * 1024
"""The largest value in characters, with all that is inside it."""
PER_NODE: Final = 8
"""Units of a step of the program, and of an entry of a container."""
PER_CALL: Final = 200
PER_KEPT: Final = 400
"""Units of a new container: about as many bytes are kept to the end of the rendering."""
MAX_BITS: Final = 4096
_SMALL: Final = 24
_VIEWS: Final[tuple[type, ...]] = (type({}.keys()), type({}.values()), type({}.items()))


class TooCostly(TemplateError):
    """The template does more than a rendering may do."""


class _Budget:
    """Units that are left."""

    def __init__(self, units: int) -> None:
        self._left = units

    def spend(self, units: int) -> None:
        """Raises `TooCostly` if the budget is used up."""
        self._left -= units
        if self._left < 0:
            raise TooCostly("it does not end in time")


class Sizes:
    """The number of characters in values, by identity: a value that is shared a thousand times counts a thousand times.

    Containers cannot be changed by a template, so a size is computed once; each one is kept alive, so that no other
    value takes its identity, and is paid for from `budget`.
    """

    def __init__(self, base: Sizes | None = None, budget: _Budget | None = None) -> None:
        self._known: dict[int, tuple[Any, int]] = {}
        self._base = base
        self._budget = budget

    def of(self, value: Any) -> int:
        """Raises `TooCostly` above `LARGEST`."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, int):
            return 4 + value.bit_length() // 3
        if isinstance(value, (list, tuple, dict, *_VIEWS)):
            return self._container(value)
        return _SMALL

    def _container(self, value: Any) -> int:
        for known in (self._known, self._base._known if self._base else {}):
            found = known.get(id(value))
            if found is not None:
                return found[1]
        parts: Iterator[Any] = iter(value)
        size = 2 + sum(4 + self.of(part) for part in parts)
        if isinstance(value, Mapping):
            size += sum(self.of(part) for part in value.values())
        if size > LARGEST:
            raise TooCostly("a value is too large")
        if self._budget is not None:
            self._budget.spend(PER_KEPT)
        self._known[id(value)] = (value, size)
        return size


class Meter:
    """The budget of one rendering of data of `characters`; `sizes` are those of the data."""

    def __init__(self, characters: int = 0, sizes: Sizes | None = None) -> None:
        budget = _Budget(BASE + PER_CHARACTER * characters)
        self.spend = budget.spend
        self.sizes = Sizes(sizes, budget)

    def weigh(self, value: Any) -> Any:
        """`value`, paid for whole: it is about to be compared, searched or written out."""
        self.spend(len(value) if type(value) is str else self.sizes.of(value))
        return value

    def made(self, value: Any) -> Any:
        """`value`, paid for as a new one: a string by its length, a container by its entries."""
        if type(value) is str:
            self.spend(len(value))
            return value
        if isinstance(value, GeneratorType):
            return self._counted(value)
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise TooCostly("a number is too large")
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, (list, tuple, dict, range, *_VIEWS)):
            self.sizes.of(value)
            self.spend(PER_NODE * len(value))  # type: ignore[arg-type]
        return value

    def iterated(self, value: Any, each: int = 1) -> Any:
        """`value`, paid for to be gone through once; `each` is the cost of an item."""
        if isinstance(value, GeneratorType):
            return self._counted(value, max(each, PER_NODE))
        if hasattr(value, "__len__"):
            self.spend(each * len(value))
        return value

    def _counted(self, values: Iterator[Any], each: int = PER_NODE) -> Iterator[Any]:
        for value in values:
            self.spend(each)
            yield value


class PlainNamespace(Namespace):
    """A namespace that shows nothing of what it holds, which a template may change after its size was computed."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _checked(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _checked(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _checked(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise TemplateError("a namespace cannot store a name that starts with an underscore")
