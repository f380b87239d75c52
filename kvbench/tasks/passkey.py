"""A pass key in running text: the needle in a haystack as RocketKV's authors run it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from string import punctuation
from typing import ClassVar

from kvbench.config.errors import UserError
from kvbench.tasks import haystack as hay
from kvbench.tasks.base import Family, register, stream
from kvbench.tasks.prompt import Renderer, Sample

# in the clone of NVlabs/RocketKV; all its settings have the same sentences
_FILE = "config/eval_config/paulgraham_passkey/81920words_10x10x3_7digits.json"
_ESSAYS = "eval/passkey_utils/background/PaulGrahamEssays"
#: first digits of the SHA-256 of the official sentences
OFFICIAL = "9439f65062283777"
#: modelled tokens of a word: the paper's longest prompt has 81,920 words and 109K tokens
_TOKENS_OF_A_WORD = 1.33


@dataclass(frozen=True)
class _Sentences:
    """What stands before the text, the needle with {key}, what stands behind, and the name in tables."""

    head: str
    needle: str
    question: str
    label: str


_OWN = _Sentences(
    "A secret number stands somewhere in this text. Remember it, you will be asked for it.\n",
    "The secret number is {key}. Keep it in mind: {key} is the secret number.",
    "\nWhich number is the secret one? The secret number is ",
    "own",
)


@register("passkey")
@dataclass(frozen=True, kw_only=True)
class Passkey(Family):
    """A number in an essay, asked for behind it (RocketKV, arXiv:2502.14051, section 4.2; github.com/NVlabs/RocketKV).

    `length` counts words of the essay, as the paper does. Sample i has depth number i modulo `depths`; its meta holds
    the depth, in percent of the words. `exact_match` is 1 if the key stands in the answer, both in lower case and
    without ASCII punctuation and English articles; `partial_match` is the longest common substring's share of the key.

    Attributes:
        depths: number of depths, evenly from the start of the text to its end.
        digits: of the key, 7 or 64 in the paper.
        essay: a text file, or a folder of .txt files by name, repeated if too short; None for those of `repo`, or
            generated prose.
        repo: a clone of NVlabs/RocketKV, whose sentences and essays are used; None for our own (wording=own).
    """

    unit: ClassVar[str] = "words"
    paths: ClassVar[tuple[str, ...]] = ("essay", "repo")
    source: ClassVar[str] = "RocketKV, github.com/NVlabs/RocketKV"
    licence: ClassVar[str] = "-; the clone's essays are Paul Graham's"
    lengths: ClassVar[str] = "any (generated), in words"
    scored: ClassVar[str] = "official: the key in the output, and its longest part"
    needs: ClassVar[str] = "nothing; wording and essays: repo=CLONE"

    depths: int = 10
    digits: int = 7
    essay: str | None = None
    repo: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.length) < 1:
            raise UserError(f"length: {list(self.length)} is not allowed, give positive numbers of words")
        if not 2 <= self.depths <= 101:
            raise UserError(f"depths: {self.depths} is not allowed, give 2 to 101")
        if not 1 <= self.digits <= 1000:
            raise UserError(f"digits: {self.digits} is not allowed, give 1 to 1000")

    @property
    def metric(self) -> str:
        return "exact_match"

    @property
    def wording(self) -> str:
        return self._sentences.label

    @property
    def _sentences(self) -> _Sentences:
        return _OWN if self.repo is None else _official(self.repo)

    def tokens(self, length: int) -> int:
        return int(_TOKENS_OF_A_WORD * length) + self.max_new_tokens

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        rng = stream("passkey", seed, index)
        depth = index % self.depths / (self.depths - 1)
        key = "".join(rng.choices("0123456789", k=self.digits))
        essay = self.essay
        if essay is None and self.repo is not None:
            essay = str(Path(self.repo).expanduser() / _ESSAYS)
        words, kind = hay.spaced_words(essay, length, rng)
        place = int(length * depth)
        texts = self._sentences
        before, after = ("".join(part).strip() for part in (words[:place], words[place:]))
        sample = Sample(
            # the blank at the end is the official one
            context=f"{texts.head}{before} {texts.needle.replace('{key}', key)} {after} ",
            question=texts.question,
            answer_prefix="",
            gold=(key,),
            max_new_tokens=self.max_new_tokens,
            meta={"depth": round(100 * depth), "haystack": kind, "words": length},
        )
        tokens = renderer.count(sample) + sample.max_new_tokens
        if renderer.limit is not None and tokens > renderer.limit:
            raise UserError(
                f"length: {length} words are {tokens} tokens with the answer and the model takes {renderer.limit}"
            )
        return sample

    def score(self, output: str, sample: Sample) -> float:
        return exact_match(output, sample.gold[0])

    def scores(self, output: str, sample: Sample) -> dict[str, float | list[float]]:
        (key,) = sample.gold
        return {"exact_match": exact_match(output, key), "partial_match": partial_match(output, key)}


def exact_match(output: str, key: str) -> float:
    """1 if the key stands in the output, both normalised (NVlabs/RocketKV, eval/passkey_utils/eval_metrics.py)."""
    return float(_normal(key) in _normal(output))


def partial_match(output: str, key: str) -> float:
    """Length of the longest common substring, in lengths of the key."""
    found = SequenceMatcher(None, key, output, autojunk=False).find_longest_match()
    return found.size / len(key)


def _normal(text: str) -> str:
    bare = "".join(letter for letter in text.lower() if letter not in punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", "", bare).split())


def _official(repo: str) -> _Sentences:
    path = Path(repo).expanduser() / _FILE
    try:
        stat = path.stat()
        return _read(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, ValueError, RuntimeError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"repo: {repo} has no sentences in {_FILE} ({type(error).__name__}); give the folder of a clone of "
            "github.com/NVlabs/RocketKV, or leave repo out for wording=own"
        ) from None


@cache
def _read(path: Path, mtime_ns: int, size: int) -> _Sentences:
    settings = json.loads(path.read_text(encoding="utf-8"))["eval_params"]
    texts = [settings[name] for name in ("instruction", "retrieval_target_template", "retrieval_question")]
    head, needle, question = texts
    mark = settings["retrieval_target_placeholder"]
    digest = hashlib.sha256(json.dumps([*texts, mark]).encode()).hexdigest()[:16]
    label = "rocketkv" if digest == OFFICIAL else f"rocketkv ({digest[:8]})"
    if not all(isinstance(text, str) for text in texts) or mark not in needle:
        raise ValueError(mark)
    return _Sentences(head, needle.replace(mark, "{key}"), question, label)
