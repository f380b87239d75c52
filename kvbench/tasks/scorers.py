"""Scores of a generated text against the expected answers, all between 0 and 1.

RULER's two rules are `substring_all` and `substring_any` (NVIDIA/RULER, scripts/eval/synthetic/constants.py:
string_match_all and string_match_part). `substring_any` follows NVIDIA; lm-eval's string_match_part divides by the
number of answers.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence


def substring_all(output: str, gold: Sequence[str]) -> float:
    """Share of the answers that occur in the output, ignoring case."""
    text = output.lower()
    return sum(answer.lower() in text for answer in gold) / len(gold)


def substring_any(output: str, gold: Sequence[str]) -> float:
    """1 if any answer occurs in the output, ignoring case."""
    text = output.lower()
    return float(any(answer.lower() in text for answer in gold))


def exact(output: str, gold: Sequence[str]) -> float:
    """1 if the output equals an answer, ignoring case, punctuation, English articles and spacing."""
    words = _words(output)
    return float(any(words == _words(answer) for answer in gold))


def f1(output: str, gold: Sequence[str]) -> float:
    """Best F1 of shared words over the answers, words counted with repetition (as in SQuAD)."""
    return max(_f1(_words(output), _words(answer)) for answer in gold)


def rouge_l(output: str, gold: Sequence[str]) -> float:
    """Best ROUGE-L over the answers: F1 of the longest common subsequence of words (Lin, 2004)."""
    return max(_rouge_l(_tokens(output), _tokens(answer)) for answer in gold)


def regex(output: str, gold: Sequence[str]) -> float:
    """1 if any answer, as a regular expression, matches somewhere in the output."""
    return float(any(re.search(pattern, output) for pattern in gold))


def scorers() -> dict[str, Callable[[str, Sequence[str]], float]]:
    """All scorers by name."""
    return {f.__name__: f for f in (substring_all, substring_any, exact, f1, rouge_l, regex)}


def _words(text: str) -> list[str]:
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return [word for word in bare.split() if word not in ("a", "an", "the")]


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _f1(output: list[str], answer: list[str]) -> float:
    if not output or not answer:
        return float(output == answer)
    return _harmonic((Counter(output) & Counter(answer)).total(), len(output), len(answer))


def _rouge_l(output: list[str], answer: list[str]) -> float:
    if not output or not answer:
        return float(output == answer)
    row = [0] * (len(answer) + 1)
    for word in output:
        diagonal = 0
        for j, other in enumerate(answer, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return _harmonic(row[-1], len(output), len(answer))


def _harmonic(common: int, output: int, answer: int) -> float:
    return 2 * common / (output + answer)
