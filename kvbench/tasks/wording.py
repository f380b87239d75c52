"""The sentences of the RULER tasks: RULER's, read from the installed lm-eval, or our own.

RULER's sentences are not part of this package. `wording=ruler` reads the constants from the syntax trees of lm-eval's
task files, because importing them downloads data. `wording=own` needs no lm-eval; its sentences have the same form but
other words, so that its scores are not RULER's.
"""

import ast
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from kvbench.config.errors import UserError

Wording = Literal["own", "ruler"]
Part = Literal["niah_one", "niah_many", "vt", "cwe", "fwe", "qa"]


@dataclass(frozen=True)
class Sentences:
    """Format strings of one task.

    `{one}` and `{many}` stand for the kind of value ("number", "numbers"), `{query}` for the queried keys or value,
    `{num_v}` for the number of variables, `{key}` and `{value}` for those of a needle.

    Attributes:
        head: text before the haystack.
        question: text after it, with its line break.
        prefix: start of the answer, without a leading space.
        needle: a needle, for the needle tasks; a document, with {i} and {document}, for the questions.
        noise: a line of filler.
    """

    head: str
    question: str
    prefix: str
    needle: str = ""
    noise: str = ""


@cache
def sentences_for(wording: Wording, part: Part) -> Sentences:
    """The sentences of one task.

    Needle tasks have two forms: "niah_one" for one queried value, in the singular, else "niah_many".

    Raises:
        UserError: `wording` is "ruler" and lm-eval is not installed or has changed.
    """
    if wording == "own":
        return _own(part)
    try:
        return _ruler(part)
    except UserError:
        raise
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        OSError,
        SyntaxError,
        RecursionError,
        MemoryError,
    ):
        raise _changed(f"{part.partition('_')[0]} sentences") from None


def _own(part: Part) -> Sentences:
    noise = "The lamp is bright. The road is long. The river is calm. We walk on. Home is near now."
    needle = "Among the secret {many}, the one for {key} is: {value}."
    return {
        "niah_one": Sentences(
            head="A secret {one} has been placed somewhere in the text below. Read it with care and keep it "
            "in mind. You will be asked for this {one} at the end.\n",
            question="\nWhich secret {one} does the text above give for {query}?",
            prefix="The secret {one} that the text above gives for {query} is",
            needle=needle,
            noise=noise,
        ),
        "niah_many": Sentences(
            head="Several secret {many} have been placed somewhere in the text below. Read it with care and "
            "keep them in mind. You will be asked for these {many} at the end.\n",
            question="\nWhich secret {many} does the text above give for {query}? Name every one of them.",
            prefix="The secret {many} that the text above gives for {query} are",
            needle=needle,
            noise=noise,
        ),
        "vt": Sentences(
            head="The text below assigns values to variables, in chains and here and there. Follow the "
            "chains and keep the variables in mind.\n\n",
            question="\nQuestion: Which variables in the text above end up with the value {query}?",
            prefix="Answer: In the text above, {num_v} variables end up with the value {query}, namely:",
            noise=noise,
        ),
        "cwe": Sentences(
            head="Here is a list of words with numbers. A few words come up far more often than the others. "
            "Keep in mind those that come up most.\n",
            question="\nQuestion: Which 10 words come up most in the list above?",
            prefix="Answer: The 10 words that come up most in the list are:",
        ),
        "fwe": Sentences(
            head="The text below is written in code words. Count how often each code word comes up, and find "
            "the three that come up most. ",
            question="\nQuestion: Which three code words come up most in the text above? The dots '....' do "
            "not count. Give the words alone.",
            prefix="Answer: In the text above, the three code words that come up most are:",
        ),
        "qa": Sentences(
            head="Here are some documents. Answer the question behind them from what they say, with the answer "
            "alone.\n\n",
            question="\n\nNow answer from the documents above, with the answer alone.\n\nQuestion: {query}",
            prefix="Answer:",
            needle="[{i}] {document}",
        ),
    }[part]


def _ruler(part: Part) -> Sentences:
    if part == "qa":
        tree = _tree("qa_utils.py")
        config = _assigned(tree, "CONFIG")
        head, question = config["template"].split("{context}")
        return Sentences(head, question, config["answer_prefix"].lstrip(), _assigned(tree, "DOCUMENT_PROMPT"))
    if part in ("vt", "cwe", "fwe"):
        tree = _tree(f"{part}_utils.py")
        config = _assigned(tree, "CONFIG")
        config = config["variable_tracking"] if part == "vt" else config
        noise = _assigned(tree, "noise").rstrip() if part == "vt" else ""
        head, question = config["template"].split("{context}")
        return Sentences(head, question, config["answer_prefix"].lstrip(), noise=noise)
    template = _assigned(_tree("niah_utils.py"), "TEMPLATE")
    prepare = _tree("prepare_niah.py")
    singular, plural = _prefixes(prepare)
    needle = _assigned(prepare, "NEEDLE").replace("{type_needle_v}", "{many}")
    noise = _assigned(prepare, "haystack")
    if part == "niah_many":
        head, question = template.replace("{type_needle_v}", "{many}").split("{context}")
        return Sentences(head, question, plural, needle, noise)
    # RULER's rule for the singular (NVIDIA/RULER, scripts/data/synthetic/niah.py: generate_input_output)
    for words, fewer in (("Some", "A"), ("are all", "is"), ("are", "is"), ("{type_needle_v}", "{one}")):
        template = template.replace(words, fewer)
    head, question = template.split("{context}")
    return Sentences(head, question, singular, needle, noise)


@cache
def _tree(name: str) -> ast.Module:
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "wording: ruler takes RULER's sentences from lm-eval, which is not installed: "
            "pip install --no-deps lm-eval, or use wording=own"
        )
    path = Path(spec.submodule_search_locations[0], "tasks", "ruler", name)
    if not path.is_file():
        raise _changed(name)
    return ast.parse(path.read_text(encoding="utf-8"))


def _assigned(tree: ast.Module, name: str) -> Any:
    """The first constant (text or a dictionary of texts) assigned to a name, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and name in map(ast.unparse, node.targets):
            try:
                return ast.literal_eval(node.value)
            except ValueError:
                continue
    raise _changed(name)


def _prefixes(tree: ast.Module) -> tuple[str, str]:
    """The answer prefixes, singular and plural: two f-strings in a conditional under the key `gen_prefix`."""
    dictionaries = (node for node in ast.walk(tree) if isinstance(node, ast.Dict))
    entries = (pair for node in dictionaries for pair in zip(node.keys, node.values, strict=True))
    for key, value in entries:
        if isinstance(key, ast.Constant) and key.value == "gen_prefix" and isinstance(value, ast.IfExp):
            return _format_string(value.body, "{one}"), _format_string(value.orelse, "{many}")
    raise _changed("gen_prefix")


def _format_string(node: ast.expr, kind: str) -> str:
    if not isinstance(node, ast.JoinedStr):
        raise _changed("gen_prefix")
    parts = []
    for part in node.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value))
        else:
            parts.append("{query}" if "query" in ast.unparse(part) else kind)
    return "".join(parts)


def _changed(what: str) -> UserError:
    return UserError(
        f"wording: the installed lm-eval has no {what} where RULER's sentences are expected; "
        "pip install --no-deps lm-eval==0.4.13, or use wording=own"
    )
