"""A tokenizer's chat template, rendered the same at every time and place.

The environment is that of transformers' `apply_chat_template`, without what reads from outside: a template gets a fixed
date, and neither random numbers nor addresses of objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import Undefined, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kvbench.config.errors import UserError
from kvbench.config.text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = "26 Jul 2024"
#: variables of templates: some write today's date, others open a thinking block
TEMPLATE_ARGUMENTS = {"date_string": DATE, "enable_thinking": False}
# of a number in bits, of a text in characters
_LARGEST = 1_000_000
# midnight of that day; names of days and months would depend on the locale
_CODES = {
    "%": "%", "a": "Fri", "A": "Friday", "b": "Jul", "B": "July", "d": "26", "D": "07/26/24", "e": "26",
    "F": "2024-07-26", "h": "Jul", "H": "00", "I": "12", "j": "208", "m": "07", "M": "00", "p": "AM", "R": "00:00",
    "S": "00", "T": "00:00:00", "u": "5", "w": "5", "y": "24", "Y": "2024",
}  # fmt: skip


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: a tokenizer with a chat template.

    Attributes:
        text: the template.

    Raises:
        UserError: there is no single template, or it cannot be parsed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        try:
            self.text = tokenizer.get_chat_template()
            self._special = {name: _text(value) for name, value in tokenizer.special_tokens_map.items()}
            self._template = _environment().from_string(self.text)
        except Exception as error:
            raise UserError(f"model.chat_template: the template cannot be read ({_where(error)})") from None

    def render(self, messages: Sequence[Mapping[str, str]], generate: bool, system: str | None) -> str:
        """The text of a conversation.

        Args:
            messages: turns with `role` and `content`.
            generate: whether the head of the answer follows.
            system: the system turn among them, for messages about it.

        Raises:
            UserError: the template refuses the conversation, or fails.
        """
        variables = {**self._special, **TEMPLATE_ARGUMENTS, "add_generation_prompt": generate}
        try:
            return self._template.render(messages=messages, tools=None, documents=None, **variables)
        except _Refusal as error:
            key = "system" if system else "chat_template"
            raise UserError(
                f"model.{key}: the chat template refuses this conversation ({_where(error)})"
            ) from None
        # a template is a program: whatever it does wrong is a fault of it
        except Exception as error:
            raise UserError(f"model.chat_template: the template fails ({_where(error)})") from None


class _Refusal(TemplateError):
    """What a template raises itself."""


class _Generation(Extension):
    """The tag that marks answers, for training; here its content is text as any other."""

    tags = {"generation"}  # noqa: RUF012, as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """Bounds what products and powers make; the sandbox itself bounds ranges."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _size(operator, left, right) > _LARGEST:
            raise TemplateError(f"what {operator} makes is too large")
        return super().call_binop(context, operator, left, right)


def _size(operator: str, left: Any, right: Any) -> int:
    """Bits of a number, or parts of a text or list, that a product or power has at most."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        return bits * abs(right) if operator == "**" else bits + right.bit_length()
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str | list | tuple) and isinstance(times, int):
            return len(many) * times
    return 0


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
        finalize=_printable,
    )
    environment.filters["tojson"] = _to_json
    del environment.filters["random"]
    del environment.globals["lipsum"]
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment


def _printable(value: Any) -> Any:
    """What a template may print: anything else has an address in its text, another one in every process."""
    if isinstance(value, (list, tuple)):
        return type(value)(_printable(item) for item in value)
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if value is None or isinstance(value, (str, int, float, Undefined)):
        return value
    raise TemplateError(f"it prints an object of type {type(value).__name__}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise _Refusal(message)


def _strftime_now(form: str) -> str:
    def code(found: re.Match[str]) -> str:
        flag, letter = found.groups()
        if letter not in _CODES or (flag and not _CODES[letter].isdecimal()):
            raise TemplateError(f"strftime_now: {found.group()} depends on the locale or is unknown")
        text = _CODES[letter]
        return (text.lstrip("0") or "0") if flag else text

    return re.sub(r"%(-?)(.)", code, form)


def _text(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else str(value)


def _where(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    text = one_line(error) if not isinstance(error, TemplateError) else " ".join(str(error.message).split())
    return f"line {line}: {text}" if line else text
