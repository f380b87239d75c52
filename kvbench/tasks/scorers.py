"""Scores of a generated text against the expected answers, all between 0 and 1.

RULER's two rules are `substring_all` and `substring_any` (NVIDIA/RULER, scripts/eval/synthetic/constants.py:
string_match_all and string_match_part). `substring_any` follows NVIDIA; lm-eval's string_match_part divides by the
number of answers. The others are this package's own: a blank output scores 0, and one of nothing but punctuation scores
only where it is the answer.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from kvbench.tasks.normalise import has_content, pair, parts
from kvbench.tasks.patterns import matches

# raised when a scorer would give another score; those that are not here have version 1
_VERSIONS = {"exact": 2, "f1": 2, "rouge_l": 2, "regex": 2}


def substring_all(output: str, gold: Sequence[str]) -> float:
    """Share of the answers that occur in the output, ignoring case."""
    text = output.lower()
    return sum(answer.lower() in text for answer in gold) / len(gold)


def substring_any(output: str, gold: Sequence[str]) -> float:
    """1 if any answer occurs in the output, ignoring case."""
    text = output.lower()
    return float(any(answer.lower() in text for answer in gold))


def exact(output: str, gold: Sequence[str]) -> float:
    """1 if the output equals an answer, ignoring case, what stands around words, and English articles."""
    pairs = (pair(output, answer, articles=False) for answer in gold)
    return float(any(words == others != [] for words, others in pairs))


def f1(output: str, gold: Sequence[str]) -> float:
    """Best F1 of shared words over the answers, words counted with repetition and without articles (as in SQuAD)."""
    return max(_f1(*pair(output, answer, articles=False)) for answer in gold)


def rouge_l(output: str, gold: Sequence[str]) -> float:
    """Best ROUGE-L over the answers: F1 of the longest common subsequence of words (Lin, 2004)."""
    return max(_rouge_l(*pair(output, answer, articles=True)) for answer in gold)


def regex(output: str, gold: Sequence[str]) -> float:
    """1 if any answer, as a regular expression, matches somewhere in the output.

    Raises:
        ScoreError: a pattern takes too long.
    """
    return float(bool(output.strip()) and matches(gold, output))


def scorers() -> dict[str, Callable[[str, Sequence[str]], float]]:
    """All scorers by name."""
    return {f.__name__: f for f in (substring_all, substring_any, exact, f1, rouge_l, regex)}


def scorer_version(name: str) -> int:
    """Version of a scorer."""
    return _VERSIONS.get(name, 1)


def _f1(output: list[str], answer: list[str]) -> float:
    if not _comparable(output, answer):
        return float(output == answer != [])
    return _harmonic((Counter(output) & Counter(answer)).total(), len(output), len(answer))


def _rouge_l(output: list[str], answer: list[str]) -> float:
    if not _comparable(output, answer):
        return float(output == answer != [])
    output, answer = ([part for word in words for part in parts(word)] for words in (output, answer))
    row = [0] * (len(answer) + 1)
    for word in output:
        diagonal = 0
        for j, other in enumerate(answer, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return _harmonic(row[-1], len(output), len(answer))


def _comparable(output: list[str], answer: list[str]) -> bool:
    """Whether there is more than punctuation in both."""
    return all(any(map(has_content, words)) for words in (output, answer))


def _harmonic(common: int, output: int, answer: int) -> float:
    return 2 * common / (output + answer)
