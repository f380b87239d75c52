"""Conversations and single requests of SCBench: github.com/microsoft/MInference, scbench/eval_utils.py.

python tests/parity/check_scbench_prompts.py PATH_OF_CLONE
"""

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import load, main
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kvbench.tasks import Renderer, build
from kvbench.tasks.scbench import SCBench
from kvbench.tasks.scbench_names import NAMES

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte, and a template that puts nothing before or around a message of its own."""
    letters = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=letters, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = PreTrainedTokenizerFast(tokenizer_object=core)
    found.chat_template = TEMPLATE
    return found


def compare(clone: Path, pick: random.Random) -> Iterator[str | None]:
    official = load(clone, "scbench/eval_utils.py")
    tok = tokenizer()
    renderer = Renderer(tok)
    for name in NAMES:
        rows = list(SCBench(name=name, data="-").examples(8, 60))
        (row,) = pick.sample(rows, 1)
        theirs = official.create_multiturn_prompt(row, f"scbench_{name}", tok, True)["prompts"]
        alone = official.create_scdq_prompt(row, f"scbench_{name}", tok, True)["prompts"]
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / f"scbench_{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
            entry = {"family": "scbench", "name": name, "data": folder, "repo": str(clone), "quirks": True}
            talk = build("talk", entry)
            for turn in range(len(row["multi_turns"])):
                ours = renderer.render(talk.sample(turn, 0, 0, renderer)).text
                joined = "".join(theirs[: turn + 1])
                yield (
                    None if ours == joined else f"{name}, turn {turn}: {joined[-300:]!r} and {ours[-300:]!r}"
                )
            single = build("single", {**entry, "mode": "multi_request"})
            for turn in range(len(row["multi_turns"])):
                ours = renderer.render(single.sample(turn, 0, 0, renderer)).text
                joined = alone[0] + alone[turn + 1]
                yield (
                    None
                    if ours == joined
                    else f"{name}, request {turn}: {joined[-300:]!r} and {ours[-300:]!r}"
                )


if __name__ == "__main__":
    sys.exit(main(compare, __doc__, cases=8))
