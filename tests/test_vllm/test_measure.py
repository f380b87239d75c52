"""An answer of a server becomes a row: cut by the task's stop rule, as an answer of the engine is."""

import asyncio
from types import SimpleNamespace

import pytest

from kvbench.config.errors import UserError
from kvbench.tasks import Stop
from kvbench.vllm.measure import answer_alone
from kvbench.vllm.prompts import make_prompts


@pytest.mark.parametrize(
    ("stop", "cut"),
    [
        (Stop(), "\nParis\nQ: London"), (Stop(("Q:",)), "\nParis\n"), (Stop(first_line=True), "\nParis"),
        (Stop(("ris", "Q:")), "\nPa"),
    ],
)  # fmt: skip
def test_a_text_is_cut_before_it_is_scored(stop, cut):
    scored = []
    answer = SimpleNamespace(
        text="\nParis\nQ: London", prompt_tokens=3, token_ids=None, finish_reason="stop", cached_tokens=None,
        output_tokens=5, first_token=0.1, per_token=0.1,
    )  # fmt: skip

    async def complete(ids, max_tokens, salt):
        return answer

    item = SimpleNamespace(
        prompt=SimpleNamespace(ids=[1, 2, 3]),
        sample=SimpleNamespace(max_new_tokens=5, stop=stop),
        task=SimpleNamespace(score=lambda text, sample: scored.append(text) or 1.0),
        name="x",
    )
    _, fields = asyncio.run(answer_alone(SimpleNamespace(complete=complete), item, "salt"))
    assert scored == [cut] == [fields["output"]]


def test_tasks_without_a_greedy_answer_are_refused(tmp_path, tiny_model_dir):
    from transformers import AutoTokenizer

    from kvbench.tasks import Renderer

    file = tmp_path / "text.txt"
    file.write_text("word " * 200)
    entry = {"family": "perplexity", "path": str(file), "length": [200], "continuation": 20}
    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_model_dir()))
    with pytest.raises(
        UserError, match=r"^task\.text: judges known texts; servers are asked for greedy answers"
    ):
        make_prompts({"text": entry}, [0], None, renderer)
