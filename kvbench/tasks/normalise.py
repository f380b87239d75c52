"""Words of a text, as the scorers of a user's own questions compare them.

SQuAD's rule (Rajpurkar et al., 2016: lower case, no punctuation, no English articles) deletes what tells answers apart:
C and C++, 3.14 and 314, -5 and 5. Here only what stands around a word is ignored: brackets, quotes and sentence marks.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

_ARTICLES = ("a", "an", "the")
# never after an article
_AFTER_NAMES = ("and", "or", "is", "was", "are", "to", "vs", "=")
# other words for the same character; superscripts, fractions and squares are not: 10² is not 102
_SAME = (
    "wide",
    "narrow",
    "small",
    "compat",
    "noBreak",
    "font",
    "initial",
    "medial",
    "final",
    "isolated",
    "vertical",
)
_MARKS = str.maketrans(
    dict.fromkeys("‘’‚‛ʼ`´", "'")
    | dict.fromkeys("“”„‟〝〞", '"')
    | dict.fromkeys("‐‑‒–", "-")
    | dict.fromkeys("⁄∕", "/")
    # not seen: soft hyphen, zero-width space, word joiner, byte order mark, directions
    | dict.fromkeys(
        "\u00ad\u200b\u2060\ufeff\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )
)
_BULLET = re.compile(r"^[ \t]*(?:[-*•]|#{1,6})[ \t]+(?=\S)", re.MULTILINE)
# **bold**, *italic* and $formula$, not 2*3*4 and not $5
_EMPHASIS = re.compile(r"(?<!\w)(\*{1,3}|\${1,2})(?=\S)(.{1,200}?)(?<=\S)\1(?!\w)")
_RANGE = re.compile(r"(?<=\d)( ?)[-—―−]\1(?=\d)")
_MINUS = re.compile(r"−(?=\.?\d)")
_PERCENT = re.compile(r"(?<=\d) %")
_ACRONYM = re.compile(r"(?:[^\W\d_]\.){2,}")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)")
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")
# scripts that are written without spaces: Thai and Lao, Tibetan, Myanmar, Khmer, Tai, Balinese, Javanese, kana, Han, Yi
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff"
    "\uaa60-\uaadf\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\uf900-\ufaff"
    "\U00017000-\U00018aff\U0001aff0-\U0001b16f\U00020000-\U0003ffff]"
)
_JOINERS = "\u200c\u200d"
_PAIRS = dict(zip("([{〈《「『【〔〖〘〚⟨⟪", ")]}〉》」』】〕〗〙〛⟩⟫", strict=True))
_OPENERS = {close: opener for opener, close in _PAIRS.items()}
# punctuation that is part of what it stands at
_MEANT = frozenset("#%&*@/\\‰‱′″‴§")


@dataclass(frozen=True)
class Word:
    """A word without what stands around it.

    Attributes:
        text: in lower case.
        article: whether it is an English article; "A" is none in "A", "A, B", "A or B" and "Vitamin A deficiency".
    """

    text: str
    article: bool


def pair(output: str, answer: str, articles: bool) -> tuple[list[str], list[str]]:
    """The words of two texts, made alike; what would leave nothing of one of them is not ignored in either.

    Args:
        output: the one text.
        answer: the other one.
        articles: whether articles count.
    """
    ours, theirs = words(output), words(answer)
    if not ours or not theirs:
        return plain(output), plain(answer)
    # titles and lists differ in what looks like an article: "A, B" and "A B"
    alike = [word.text for word in ours] == [word.text for word in theirs]
    first, second = (
        [word.text for word in side if articles or alike or not word.article] for side in (ours, theirs)
    )
    return first, second


def words(text: str) -> list[Word]:
    """The words of a text; a character is a word in scripts that are written without spaces."""
    text = _folded(text)
    found: list[tuple[str, bool]] = []
    for part in text.split():
        for segment in _segments(part):
            bare = _bare(segment)
            if bare:
                found.append(
                    (_THOUSANDS.sub(lambda match: match[0].replace(",", ""), bare), segment.endswith(bare))
                )
    return [Word(word.lower(), _is_article(i, found)) for i, (word, _) in enumerate(found)]


def parts(word: str) -> list[str]:
    """A word at its hyphens between letters."""
    return _HYPHEN.split(word)


def plain(text: str) -> list[str]:
    """A text at its spaces, nothing of it ignored but the form of its characters."""
    return unicodedata.normalize("NFC", text).split()


def _is_article(i: int, found: list[tuple[str, bool]]) -> bool:
    """Whether a word is an article in front of another word; see `Word`.

    Args:
        i: index of the word.
        found: words in their case, and whether nothing stands behind each.
    """
    word, open_end = found[i]
    if word.lower() not in _ARTICLES or not open_end or i + 1 == len(found):
        return False
    before, after = found[i - 1][0] if i and found[i - 1][1] else None, found[i + 1][0]
    if after.lower() in _AFTER_NAMES or (before is not None and before.lower() in _ARTICLES):
        return False
    return word != "A" or before is None or (before[0].isupper() and after[0].isupper())


def is_blank(text: str) -> bool:
    """Whether there is nothing to see in a text."""
    return all(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in text)


def has_content(text: str) -> bool:
    """Whether there is anything but punctuation, symbols (emoji apart), spaces and what is not seen."""
    return any(_is_content(char) for char in text)


@lru_cache(maxsize=4096)
def _is_content(char: str) -> bool:
    category = unicodedata.category(char)
    return category[0] in "LN" or category in ("So", "Mc")


def _folded(text: str) -> str:
    """One form of each character, and no formatting; canonically equivalent texts give the same."""
    text = "".join(map(_same, unicodedata.normalize("NFD", text))).translate(_MARKS)
    text = unicodedata.normalize("NFC", text)
    text = _EMPHASIS.sub(r"\2", _BULLET.sub("", text))
    text = _MINUS.sub("-", _RANGE.sub("-", text))
    return _PERCENT.sub("%", text.replace("—", " ").replace("―", " "))


@lru_cache(maxsize=4096)
def _same(char: str) -> str:
    if char.isascii() or char in "´`":
        return char
    digit = unicodedata.decimal(char, None)
    if digit is not None:
        return str(digit)
    kind = unicodedata.decomposition(char).partition(">")[0]
    return unicodedata.normalize("NFKD", char) if kind.startswith("<") and kind[1:] in _SAME else char


def _segments(part: str) -> list[str]:
    """Single characters of unspaced scripts with their marks, and what is between them."""
    if not _UNSPACED.search(part):
        return [part]
    segments: list[str] = []
    spaced = False
    for char in part:
        if segments and (char in _JOINERS or unicodedata.category(char)[0] == "M"):
            segments[-1] += char
        elif _UNSPACED.match(char):
            segments.append(char)
            spaced = False
        elif spaced:
            segments[-1] += char
        else:
            segments.append(char)
            spaced = True
    return segments


def _bare(text: str) -> str:
    """The text without the brackets, quotes and sentence marks around it; empty if it is a dash or has only these."""
    while text:
        if _ACRONYM.fullmatch(text):
            return text.replace(".", "")
        first, last = text[0], text[-1]
        opens = text.count(first) > text.count(_PAIRS[first]) if first in _PAIRS else None
        closes = text.count(last) > text.count(_OPENERS[last]) if last in _OPENERS else None
        if opens and closes and _PAIRS[first] != last:
            # an interval, "[1,2)"
            return text
        if closes or (closes is None and _around(last)):
            text = text[:-1]
        elif opens or (opens is None and _before(text)):
            text = text.lstrip(".") if text.startswith("..") else text[1:]
        elif opens is False and closes is False and _wraps(text):
            text = text[1:-1]
        else:
            return "" if all(unicodedata.category(char) == "Pd" for char in text) else text
    return ""


def _around(char: str) -> bool:
    """Whether a character may stand around a word without being part of it."""
    return unicodedata.category(char) in ("Po", "Pi", "Pf", "Ps", "Pe") and char not in _MEANT


def _before(text: str) -> bool:
    """Whether the first character only stands before a word; it does not in .5, .NET, ,5 and !x."""
    first, rest = text[0], text[1:]
    if first in "!?.":
        return not rest or rest[0] == first == "."
    return _around(first) and not (first == "," and rest[:1].isdigit())


def _wraps(text: str) -> bool:
    """Whether the first bracket is closed by the last character."""
    opener, close = text[0], text[-1]
    if _PAIRS[opener] != close:
        return False
    depth = 0
    for char in text[:-1]:
        depth += (char == opener) - (char == close)
        if not depth:
            return False
    return True
