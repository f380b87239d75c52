"""LongBench's scores of one prediction against one answer (THUDM/LongBench, LongBench/metrics.py), between 0 and 1.

They follow the official code on every text, its oddities included, but for `rouge`: there the official package fails by
recursion where a common subsequence has about a thousand words, and the benchmark then counts 0; this one scores it.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Any

from kvbench.tasks.rows import required

_ARTICLE = re.compile(r"\b(a|an|the)\b")
# code points, first and last, of the Chinese punctuation that is deleted; the official list lacks some
_CHINESE = (
    (0x2013, 0x2014), (0x2018, 0x2019), (0x201B, 0x201F), (0x2026, 0x2027), (0x3001, 0x3003), (0x300B, 0x3011),
    (0x3014, 0x301F), (0x3030, 0x3030), (0x303E, 0x303F), (0xFE4F, 0xFE4F), (0xFF01, 0xFF0D), (0xFF0F, 0xFF0F),
    (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF64),
)  # fmt: skip
_DELETED = frozenset(string.punctuation).union(
    *(map(chr, range(first, last + 1)) for first, last in _CHINESE)
)


def qa_f1(prediction: str, answer: str) -> float:
    """F1 of shared words: lower case, without ASCII punctuation and English articles."""
    return _f1(_words(prediction), _words(answer))


def qa_f1_zh(prediction: str, answer: str) -> float:
    """F1 of shared words as jieba cuts them, without punctuation."""
    cut = (["".join(bare(piece).split()) for piece in _jieba(text)] for text in (prediction, answer))
    ours, theirs = ([piece for piece in pieces if piece] for pieces in cut)
    return _f1(ours, theirs)


def rouge(prediction: str, answer: str) -> float:
    """ROUGE-L of the package `rouge` 1.0.1: summary level, over sets of words; sentences end with a full stop."""
    ours, theirs = ([_spaced(part) for part in text.split(".") if part] for text in (prediction, answer))
    if not ours or not theirs:
        return 0.0
    shared: set[str] = set()
    for sentence in theirs:
        for other in ours:
            shared |= set(_common(sentence, other))
    precision = len(shared) / len({word for sentence in ours for word in sentence})
    recall = len(shared) / len({word for sentence in theirs for word in sentence})
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def rouge_zh(prediction: str, answer: str) -> float:
    """`rouge` of the words as jieba cuts them."""
    return rouge(*(" ".join(_jieba(text)) for text in (prediction, answer)))


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """1 over the number of classes that the prediction names, if the answer is among them.

    A class within the answer's name is taken from the list, and the one after it is passed over: the official loop
    removes from what it walks through.
    """
    named = [name for name in classes if name in prediction]
    place = 0
    while place < len(named):
        name = named[place]
        if name in answer and name != answer:
            named.remove(name)
        place += 1
    return 1.0 / len(named) if answer in named else 0.0


def count(prediction: str, answer: str) -> float:
    """Share of the numbers in the prediction that are the answer."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(str(answer)) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, answer: str, mark: str = "Paragraph ") -> float:
    """Share of the numbers in the prediction that are the answer's paragraph.

    Args:
        prediction: the text.
        answer: as `Paragraph 3`.
        mark: text before the number.
    """
    (number, *_) = re.findall(re.escape(mark) + r"(\d+)", answer)
    return count(prediction, number)


def retrieval_zh(prediction: str, answer: str) -> float:
    """`retrieval` with the Chinese word."""
    return retrieval(prediction, answer, "段落")


def code_sim(prediction: str, answer: str) -> float:
    """difflib's ratio of the first line that is no comment and no fence, in whole percent.

    The official code asks fuzzywuzzy, whose numbers depend on whether python-Levenshtein is installed; without it they
    are difflib's. An empty line counts as the first line.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * SequenceMatcher(None, line, answer).ratio()) / 100


SCORES: dict[str, Callable[..., float]] = {
    score.__name__: score
    for score in (qa_f1, qa_f1_zh, rouge, rouge_zh, classification, count, retrieval, retrieval_zh, code_sim)
}


def _words(text: str) -> list[str]:
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return _ARTICLE.sub(" ", text).split()


def bare(text: str) -> str:
    """A text in lower case without ASCII and Chinese punctuation."""
    return "".join(char for char in text.lower() if char not in _DELETED)


def _f1(ours: list[str], theirs: list[str]) -> float:
    same = (Counter(ours) & Counter(theirs)).total()
    if not same:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


def _spaced(sentence: str) -> list[str]:
    # a sentence of blanks has one word, the empty one
    return sentence.split() or [""]


def _common(x: list[str], y: list[str]) -> list[str]:
    """The words of a longest common subsequence, the one that the package's recursion finds."""
    table = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, word in enumerate(x, start=1):
        above, row = table[i - 1], table[i]
        for j, other in enumerate(y, start=1):
            row[j] = above[j - 1] + 1 if word == other else max(above[j], row[j - 1])
    found = []
    i, j = len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            found.append(x[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found


def _jieba(text: str) -> list[str]:
    return list(_cutter().cut(text, cut_all=False))


@cache
def _cutter() -> Any:
    """jieba's default cutter, silent, with its dictionary's cache among kvbench's."""
    required("jieba", "LongBench's Chinese tasks: jieba")
    import logging

    import jieba  # type: ignore[import-not-found]

    from kvbench.kernels.build import cache_dir

    jieba.setLogLevel(logging.ERROR)
    cutter = jieba.Tokenizer()
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    cutter.tmp_dir = str(folder)
    return cutter
