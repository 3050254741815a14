"""Templates are compiled in the sandbox in which transformers renders them, since checkpoints are written for it.

What a template writes itself is Traced, so that it can be told from what clients gave.
"""

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_join, do_replace
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from octavo.server.text.traced import EMPTY, Traced, formatted, of_template

_COMPOSING = frozenset({"format", "format_map", "join", "replace"})  # methods that put other texts into their own


def compiled(source: str) -> jinja2.Template:
    """Compiles a template. Raises jinja2.TemplateSyntaxError."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag])
    environment.filters |= {"tojson": _tojson, "join": _join, "replace": _replace}
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment.from_string(source)


class _TracingGenerator(CodeGenerator):
    """Makes each text of the template's source, and whatever is joined with it, Traced."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        if isinstance(node.value, str):
            self.write(self._traced(node.value))
        else:
            super().visit_Const(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return self._traced("".join(group))

    def _traced(self, text: str) -> str:
        """Returns code for the text, which the environment keeps."""
        cast(_Environment, self.environment).texts[text] = of_template(text)
        return f"environment.texts[{text!r}]"


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _TracingGenerator
    concat = staticmethod(EMPTY.join)

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, **options)  # The optimiser would hide texts of the source in lists.
        self.texts: dict[str, Traced] = {}  # those of the source

    def joined(self, parts: Iterable[Any]) -> Traced:
        return EMPTY.join(map(str, parts))

    def getattr(self, obj: Any, attribute: str) -> Any:
        return super().getattr(Traced(obj) if type(obj) is str and attribute in _COMPOSING else obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        safe = super().wrap_str_format(value)
        if safe is None:
            return None
        text, formatter = value.__self__, SandboxedFormatter(self)

        def wrapper(*args: Any, **kwargs: Any) -> str:
            result = safe(*args, **kwargs)  # raises what it raises
            names = args[0] if value.__name__ == "format_map" else kwargs

            def field(name: str, conversion: str | None, spec: str) -> str:
                found = formatter.convert_field(formatter.get_field(name, args, names)[0], conversion)
                return str(found) if not spec else format(found, formatter.vformat(spec, args, names))

            parts = list(formatter.parse(text))
            if any("{" in (spec or "") for _, _, spec, _ in parts):
                return Traced(result)
            traced = formatted(text, field, parts)
            return traced if traced == result else Traced(result)

        return wrapper


class _GenerationTag(Extension):
    """`{% generation %}` marks the text that a trainer learns from; a server only renders what is in it."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@jinja2.pass_eval_context
def _join(context: EvalContext, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    return str(do_join(context, value, Traced(str(d)), attribute))


@jinja2.pass_eval_context
def _replace(context: EvalContext, s: str, old: str, new: str, count: int | None = None) -> str:
    return str(do_replace(context, Traced(str(s)), old, new, count))


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Writes JSON without the HTML escapes and the markup of jinja2's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
