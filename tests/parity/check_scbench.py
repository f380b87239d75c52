"""Scores of SCBench: github.com/microsoft/MInference, scbench/compute_scores.py and scbench/repo_qa_utils.py.

python tests/parity/check_scbench.py PATH_OF_CLONE
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from common import load, main

from kvbench.tasks import scbench_scores as ours

PIECES = (
    "A|B|C|D|Bob|bob|answer is|answer:|option is|:| |. |\n|12|3.5|-7|0|7|北京|大学|。|(A)|x|X1|x2|the".split(
        "|"
    )
)
CODES = [
    "def f(x):\n    return x",
    "def g(x):\n    return x + 1",
    "x = 3",
    "class A:\n    def h(self):\n        pass",
]


def text(pick: random.Random) -> str:
    return "".join(pick.choices(PIECES, k=pick.randrange(8)))


def difference(name: str, theirs: float, ours: float) -> str | None:
    return None if abs(theirs - ours) < 1e-12 else f"{name}: {theirs} and {ours}"


def compare(clone: Path, pick: random.Random) -> Iterator[str | None]:
    # it downloads the metric's script; the score is that of the package rouge-score
    stand_in: Any = ModuleType("evaluate")
    stand_in.load = lambda name: SimpleNamespace()
    sys.modules["evaluate"] = stand_in
    for name in ("args", "tempdir"):
        sys.modules.setdefault(name, ModuleType(name))
    sys.modules["args"].parse_args = None  # type: ignore[attr-defined]
    sys.path.insert(0, str(clone / "scbench"))
    official = load(clone, "scbench/compute_scores.py")
    for _ in range(200):
        output, label = text(pick), text(pick) or "x"
        labels = [text(pick) or "y", pick.choice("ABCD")]
        yield difference(
            "kv", official.get_score_one(output, label, "kv_retrieval", ""), ours.contains(output, label)
        )
        yield difference(
            "vt", official.get_score_one(output, labels, "scbench_vt", ""), ours.all_of(output, labels)
        )
        for one in (label, labels):
            theirs = official.get_score_one(output, one, "longdialogue_qa_eng", "")
            yield difference("qa_eng", theirs, ours.any_of(output, one))
            theirs = official.get_score_one(output, one, "longbook_qa_chn", "")
            yield difference("qa_chn", theirs, ours.f1_zh(output, one))
        theirs = official.get_score_one(output, labels, "longbook_choice_eng", "")
        yield difference(f"choice {output!r} {labels}", theirs, ours.choice(output, labels))
        number = pick.choice([7, 12, 3, 0, 3.5])
        theirs = official.get_score_one(output, number, "math_find", "")
        yield difference("mf", theirs, ours.first_number(output, number))
        passkey = pick.choice(["7", "12", ""])
        yield difference(
            "passkey", official.get_score_one(output, passkey, "passkey", ""), ours.digits(output, passkey)
        )
    functions = load(clone, "scbench/repo_qa_utils.py")
    needles = [("f", CODES[0]), ("g", CODES[1])]
    for _ in range(20):
        output = pick.choice(["", "Here:\n"]) + pick.choice(
            ["```python\n{}\n```", "{}", "```\n{}\n```\nmore"]
        )
        output = output.format("\n".join(pick.choices(CODES, k=pick.randrange(1, 3))))
        asked = pick.choice("fg")
        given = [{"name": name, "needle": code} for name, code in needles]
        verdict, _, best = functions.needle_evaluator(output, {"func_name": asked}, given, "python", False)
        theirs = float(verdict is functions.Result.BEST_MATCH and best >= 0.8)
        yield difference("repoqa", theirs, ours.function(output, asked, needles, "python"))


if __name__ == "__main__":
    sys.exit(main(compare, __doc__, cases=20))
