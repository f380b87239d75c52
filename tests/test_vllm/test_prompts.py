"""Task samples as prompts for a server."""

import json

import pytest
from transformers import AutoTokenizer

from kvbench.config.errors import UserError
from kvbench.tasks import Renderer
from kvbench.vllm.prompts import make_prompts, sessions

ASKED = {"question": "What is near the gate?", "answers": ["wall"]}
LINE = {"context": "The old wall is near the gate.", **ASKED}
TALK = {"context": "The old wall is near the gate.", "turns": [ASKED, ASKED, ASKED]}


@pytest.fixture
def renderer(tiny_model_dir):
    return Renderer(AutoTokenizer.from_pretrained(tiny_model_dir("llama")), chat_template=False)


def entry(folder, *lines, **more):
    file = folder / "q.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return {"family": "jsonl", "path": str(file), **more}


def test_every_line_is_a_prompt_and_a_users_conversation_is_one_session(renderer, tmp_path):
    made = make_prompts({"mine": entry(tmp_path, LINE, TALK, LINE, TALK)}, [0], None, renderer)
    assert [item.index for item in made] == list(range(8))
    assert len({item.prompt.hash for item in made}) == 8
    assert {item.fields()["sample_hash"] for item in made} == {item.prompt.hash for item in made}
    assert [len(session.turns) for session in sessions(made)] == [1, 3, 1, 3]


def test_prompts_that_would_share_a_row_are_refused(renderer, tmp_path):
    entries = {name: entry(tmp_path, LINE) for name in ("one", "two")}
    with pytest.raises(UserError, match=r"^task\.two: two 0 #0 is the same prompt as one 0 #0, it would"):
        make_prompts(entries, [0], None, renderer)
    assert len(make_prompts({"one": entry(tmp_path, LINE, length=[0, 500])}, [0], None, renderer)) == 2
