"""SCBench's scores of one answer (microsoft/MInference, scbench/compute_scores.py), between 0 and 1.

Each takes the output and a label. The official code hands some scorers a text where they expect a list, and they walk
it by character; `tasks/scbench.py` does so for the score `official` and wraps the text for the other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from kvbench.tasks.longbench_scores import bare
from kvbench.tasks.rows import required

_NUMBER = re.compile(r"\d+\.\d+|\d+")
_PREFIXES = ("answer is:", "answer:", "answer is", "option is")
_BLOCK = re.compile(r"^```(?:\w+)?\s*\n(.*?)(?=^```)```", re.DOTALL | re.MULTILINE)
# the kind of a function in tree-sitter's grammar of each language
_FUNCTIONS = {
    "python": "function_definition",
    "java": "method_declaration",
    "typescript": "function_declaration",
    "rust": "function_item",
    "cpp": "function_definition",
    "go": "function_declaration",
}


def contains(output: str, label: str) -> float:
    """1 if the label stands in the output."""
    return float(label in output)


def all_of(output: str, labels: Sequence[str]) -> float:
    """Share of the labels that stand in the output, ignoring case, rounded to two decimals."""
    text = output.lower()
    return round(sum(label.lower() in text for label in labels) / len(labels), 2)


def any_of(output: str, labels: Sequence[str]) -> float:
    """1 if one of the labels stands in the output, ignoring case."""
    text = output.strip().upper()
    return float(any(label.upper() in text for label in labels))


def first_number(output: str, label: float) -> float:
    """1 if the first number of the output, without its sign, is the label; cut to a whole one where the label is.

    Raises:
        TypeError: a label that is no number, as officially.
    """
    if not isinstance(label, int | float):
        raise TypeError(f"the label {label!r} is not a number")
    found = _NUMBER.search(output)
    if found is None:
        return 0.0
    value = float(found.group())
    return float((int(value) if isinstance(label, int) else value) == label)


def digits(output: str, label: str) -> float:
    """1 if the first run of digits of the output is the label."""
    found = re.search(r"[0-9]+", output)
    return float(label == (found.group() if found else ""))


def choice(output: str, labels: Sequence[str]) -> float:
    """1 if the output names one of the labels, which are the answer's text and its letter.

    A first letter from A to D decides alone.
    """
    output = output.strip()
    if not output:
        return 0.0
    if output[0] in "ABCD":
        return float(output[0] in labels)
    if output in labels:
        return 1.0
    text = re.sub(" {2,}", " ", re.sub(r"[\n\"'.,?!{}]", " ", output))
    for prefix in _PREFIXES:
        place = text.find(prefix)
        if place >= 0:
            return float(text[place + len(prefix) + 1 :].startswith(tuple(labels)))
    # the letters in a row are a text that words are looked for in
    named = next((word for word in text.split() if word in "ABCD"), None)
    return float(named in labels)


def f1_zh(output: str, labels: Sequence[str]) -> float:
    """Best F1 of shared characters, without punctuation."""
    ours = list("".join(bare(output).split()))
    return max((_f1(ours, list("".join(bare(label).split()))) for label in labels), default=0.0)


def rouge_lsum(output: str, label: str) -> float:
    """rougeLsum of the package rouge-score without stemming; sentences are lines."""
    return _rouge().score(label, output)["rougeLsum"].fmeasure


def function(output: str, name: str, needles: Sequence[tuple[str, str]], language: str) -> float:
    """1 if of a repository's functions the asked one is the most similar to the output, with a BLEU of 0.8 or more.

    Args:
        output: the text; the first function of its first code block counts, where there is one.
        name: of the asked function.
        needles: name and code of every function that is asked for in the repository.
        language: of the code.
    """
    code = _first_function(output.strip(), language)
    best, named = 0.0, None
    for other, text in needles:
        similarity = bleu(code, text)
        if similarity > best:
            best, named = similarity, other
    return float(named == name and best >= 0.8)


def bleu(output: str, label: str) -> float:
    """BLEU-4 of words between white space, with nltk's smoothing 4."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu  # type: ignore[import-not-found]

    ours, theirs = (re.split(r"\s+", text.strip()) for text in (output, label))
    found: Any = sentence_bleu([theirs], ours, smoothing_function=SmoothingFunction().method4)
    return float(found)


def check_packages(name: str) -> None:
    """Refuse a task whose scorer is not installed.

    Raises:
        UserError: names the package.
    """
    if name in ("summary", "summary_with_needles"):
        required("rouge_score", f"scbench_{name}: its scorer")
    if name in ("repoqa", "repoqa_and_kv"):
        for package in ("nltk", "tree_sitter_languages"):
            required(package, f"scbench_{name}: its scorer", "repoqa")


def _f1(ours: list[str], theirs: list[str]) -> float:
    same = (Counter(ours) & Counter(theirs)).total()
    if not same:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-not-found]

    return RougeScorer(["rougeLsum"], use_stemmer=False)


def _first_function(output: str, language: str) -> str:
    blocks = _BLOCK.findall(output)
    if not blocks:
        return output
    for block in blocks:
        data = block.encode()
        found = _function_node(_parser(language).parse(data).root_node, language)
        if found is not None:
            return data[found.start_byte : found.end_byte].decode()
    return blocks[0]


def _function_node(node: Any, language: str) -> Any:
    """The first function of a tree, in the order of the text."""
    if node.type == _FUNCTIONS[language]:
        if language != "cpp":
            named = node.child_by_field_name("name") is not None
        else:
            declared = node.child_by_field_name("declarator")
            inner = declared.child_by_field_name("declarator") if declared is not None else None
            named = (
                declared is not None
                and declared.type == "function_declarator"
                and inner is not None
                and inner.type == "identifier"
            )
        if named:
            return node
    return next(
        (found for child in node.children if (found := _function_node(child, language)) is not None), None
    )


@cache
def _parser(language: str) -> Any:
    import warnings

    with warnings.catch_warnings():
        # tree-sitter 0.21 announces what later versions changed
        warnings.simplefilter("ignore", FutureWarning)
        from tree_sitter_languages import get_parser  # type: ignore[import-not-found]

        return get_parser(language)
