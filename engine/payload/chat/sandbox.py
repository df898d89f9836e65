"""The jinja environment of chat templates: what transformers gives them, inside a sandbox that counts their work.

Templates see what `transformers.utils.chat_template_utils` (version 5) defines: blocks are trimmed, `break` and
`continue` work, `tojson` does not escape HTML, `raise_exception` refuses, `{% generation %}` marks what is learned.
Different are `strftime_now`, whose date is fixed (`guards.TODAY`), and that random numbers, `{% include %}` and
`{% autoescape %}` are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from jinja2 import TemplateError, nodes, pass_eval_context
from jinja2.compiler import CodeGenerator, Frame, operators
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.payload.chat import guards
from engine.payload.chat.meter import PER_NODE, Meter, PlainNamespace

_DATA_SHARE: Final = 8
_PER_TEST: Final = 4
_OF_DICT: Final = frozenset(dir(dict))
_BODIES: Final = (nodes.Macro, nodes.CallBlock, nodes.Block)


class Refused(TemplateError):
    """`raise_exception` was called: the template does not take these messages."""


class Turn(msgspec.Struct, frozen=True):
    """Where the loop `loop` began its iteration for a message, or ended (None): after `place` characters of text."""

    loop: int
    message: int | None
    place: int


class _Generation(Extension):
    """`{% generation %}`: its text is what the model produces."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _text(self, context: nodes.EvalContext, caller: Callable[[], str]) -> str:
        text = caller()
        environment = context.environment
        environment.generated.append((environment.place, environment.place + len(text)))  # type: ignore[attr-defined]
        return text


class _Code(CodeGenerator):
    """Python code of a template in which everything that costs is paid for.

    An `ExprStmt`, which no tag of a chat template makes, is a `tick` that `Sandbox._generate` put there.
    """

    def visit_ExprStmt(self, node: nodes.ExprStmt, frame: Frame) -> None:
        cost, loop, item = node.node.items  # type: ignore[attr-defined]
        self.newline(node)
        self.write(f"environment.tick({cost.value}, {loop.value}, ")
        self.visit(item, frame)
        self.write(")")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("(environment.weigh(")
        self.visit(node.expr, frame)
        self.write(")")
        for operand in node.ops:
            self.write(f" {operators[operand.op]} environment.weigh(")
            self.visit(operand.expr, frame)
            self.write(")")
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._made(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._made(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._made(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._made(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _made(self, visit: Callable[[Any, Frame], None], node: nodes.Expr, frame: Frame) -> None:
        self.write("environment.made(")
        visit(node, frame)
        self.write(")")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template. `meter` is the budget of the current rendering."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))
    code_generator_class = _Code

    def __init__(self) -> None:
        self.meter = Meter()
        self.place = 0
        self.generated: list[tuple[int, int]] = []
        self.turns: list[Turn] = []
        self._messages: dict[int, int] = {}
        self._logged: set[int] = set()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            optimized=False,
            finalize=self.weigh,
            cache_size=0,
        )
        self.filters = guards.filters(self._budget) | {"_iterated": self._iterated, "_tested": self._tested}
        self.tests = guards.tests(self._budget)  # type: ignore[assignment]
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _refuse,
            "strftime_now": guards.strftime_now,
            "dict": _Dict(),
            "namespace": PlainNamespace,
        }

    def _budget(self) -> Meter:
        return self.meter

    def begin(self, meter: Meter, messages: Sequence[object] = ()) -> None:
        """Start a rendering (or a compilation) with a budget; loops over these messages are logged."""
        self.meter, self.place = meter, 0
        self._messages = {id(message): place for place, message in enumerate(messages)}
        self.generated, self.turns, self._logged = [], [], set()

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        if any(True for _ in source.find_all((nodes.ScopedEvalContextModifier, nodes.EvalContextModifier))):
            raise TemplateError("it uses autoescape")
        _instrument(source)
        return super()._generate(source, *args, **kwargs)

    def tick(self, cost: int, loop: int, item: Any) -> None:
        """Pay for what follows, and log it if it is about a message; `loop` 0 is no loop, below 0 the end of one."""
        self.meter.spend(cost)
        message = self._messages.get(id(item))
        if message is not None:
            self.turns.append(Turn(loop, message, self.place))
            self._logged.add(-loop)
        elif loop in self._logged:
            self.turns.append(Turn(-loop, None, self.place))

    def weigh(self, value: Any) -> Any:
        """`Meter.weigh`, for the compiled code."""
        return self.meter.weigh(value)

    def made(self, value: Any) -> Any:
        """`Meter.made`, for the compiled code."""
        return self.meter.made(value)

    def joined(self, parts: tuple[Any, ...]) -> str:
        """`a ~ b`."""
        for part in parts:
            self.meter.weigh(part)
        return str_join(parts)

    def _iterated(self, value: Any) -> Any:
        return self.meter.iterated(value)

    def _tested(self, value: Any, cost: int) -> Any:
        """The result of a loop's filter for one item."""
        self.meter.spend(cost)
        return value

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _OF_DICT:  # the same as below, without a search among methods first
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is str and type(right) is str:
            self.meter.spend(len(left) + len(right))
            return left + right
        guards.operate(self.meter, operator, left, right)
        value = super().call_binop(context, operator, left, right)
        return value if isinstance(value, str) else self.meter.made(value)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return not callable(value) or attr in guards.STRING_METHODS
        if type(obj).__module__ == "builtins":
            return not callable(value) or attr in guards.METHODS.get(type(obj), ())
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Any:
        method = super().wrap_str_format(value)
        return None if method is None else guards.formatting(self._budget, value.__self__, method)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        args = guards.call_of(__self.meter, __obj, args, kwargs)
        return __self.meter.made(super().call(__context, __obj, *args, **kwargs))


class _Dict:
    """`dict` without the attributes of a type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


def _refuse(message: Any) -> None:
    raise Refused(str(message))


def _instrument(template: nodes.Template) -> None:
    """Put a tick at the start of every body that can run more than once, and after every loop."""
    loops = {id(loop): number for number, loop in enumerate(template.find_all(nodes.For), start=1)}
    for loop in template.find_all(nodes.For):
        named = isinstance(loop.target, nodes.Name)
        item = nodes.Name(loop.target.name, "load") if named else nodes.Const(None)  # type: ignore[attr-defined]
        loop.body.insert(0, _tick(loop, loops[id(loop)], item))
        loop.iter = nodes.Filter(loop.iter, "_iterated", [], [], None, None, lineno=loop.lineno)
        if loop.test is not None:
            cost: list[nodes.Expr] = [nodes.Const(_PER_TEST * _cost(loop.test))]
            loop.test = nodes.Filter(loop.test, "_tested", cost, [], None, None, lineno=loop.lineno)
    for body in template.find_all(_BODIES):
        body.body.insert(0, _tick(body, 0, nodes.Const(None)))  # type: ignore[attr-defined]
    for parent in [template, *template.find_all(nodes.Node)]:
        for _, field in parent.iter_fields():
            if isinstance(field, list):
                for place, child in reversed(list(enumerate(field))):
                    if isinstance(child, nodes.For):
                        field.insert(place + 1, _tick(None, -loops[id(child)], nodes.Const(None)))
    template.set_environment(template.environment)  # type: ignore[arg-type]


def _tick(body: nodes.Node | None, loop: int, item: nodes.Expr) -> nodes.ExprStmt:
    return nodes.ExprStmt(nodes.Tuple([nodes.Const(_cost(body)), nodes.Const(loop), item], "load"), lineno=1)


def _cost(body: nodes.Node | None) -> int:
    """Units of one run through the body, its fixed text included."""
    found = list(body.find_all(nodes.Node)) if body is not None else []
    text = sum(len(node.data) for node in found if isinstance(node, nodes.TemplateData))
    return PER_NODE * (1 + len(found)) + text // _DATA_SHARE
