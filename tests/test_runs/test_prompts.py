"""What a plan keeps of prompts: used where nothing changed, rendered anew where anything did."""

import hashlib
import importlib
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from kvbench import tasks
from kvbench.config.errors import UserError
from kvbench.experiments.accuracy import run as accuracy
from kvbench.runs import ids, prompts
from kvbench.runs.config import load
from kvbench.runs.context import RunContext
from kvbench.runs.progress import Progress
from kvbench.runs.prompts import Prompts
from kvbench.runs.store import Store, digest
from kvbench.tasks import Renderer, Task

NIAH = {"family": "niah", "wording": "own"}
PLUGIN = """
from dataclasses import dataclass
from kvbench.tasks import Family, Sample, register

@register("counted")
@dataclass(frozen=True, kw_only=True)
class Counted(Family):
    metric = "m"

    def sample(self, index, seed, length, renderer):
        return Sample(f"The number is {index}.", "Which?", "", ("1",), 4)

    def score(self, output, sample):
        return 1.0
"""


@pytest.fixture
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir())


@pytest.fixture
def rendered(monkeypatch):
    """Hashes of the prompts that were rendered."""
    found, original = [], Task.prompts

    def counted(self, *args):
        for sample, prompt in original(self, *args):
            found.append(prompt.hash)
            yield sample, prompt

    monkeypatch.setattr(Task, "prompts", counted)
    return found


def plan(folder, renderer, entry=NIAH, count=3, seed=0, length=1024):
    """The prompts as a command plans them."""
    made = Prompts(renderer, folder)
    found = made.of(tasks.build("it", entry), count, seed, length)
    made.save()
    return found


def unchanged(folder, renderer, rendered, **settings):
    """Plan, and plan again: nothing is rendered."""
    first = plan(folder, renderer, **settings)
    rendered.clear()
    assert plan(folder, renderer, **settings) == first and not rendered
    return first


def test_what_nothing_changed_is_not_rendered(tokenizer, tmp_path, rendered):
    renderer = Renderer(tokenizer)
    first = unchanged(tmp_path, renderer, rendered)
    assert plan(tmp_path, renderer, count=2) == first[:2] and not rendered
    more = plan(tmp_path, renderer, count=4)
    assert more[:3] == first and rendered == [prompt.hash for prompt in more]
    # which are kept then
    rendered.clear()
    assert plan(tmp_path, renderer, count=4) == more and not rendered


def test_each_part_of_the_key(tokenizer, tmp_path, rendered, monkeypatch):
    """Every part that the key has is changed once, and the prompts are rendered."""
    before, lines = Renderer(tokenizer), tmp_path / "own.jsonl"
    line = json.dumps({"context": "It is 1.", "question": "What?", "answers": ["1"]})
    lines.write_text(line)
    jsonl = {"family": "jsonl", "path": str(lines)}
    unchanged(tmp_path, before, rendered)

    def renders(renderer=before, **settings):
        rendered.clear()
        plan(tmp_path, renderer, **settings)
        return bool(rendered)

    other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    other.add_tokens(["the"])
    template = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    template.chat_template = template.chat_template.replace("assistant", "bot")
    seen = {"length": renders(length=1100), "seed": renders(seed=1)}
    seen["task"] = renders(entry=NIAH | {"queries": 2, "keys": 2})
    seen["tokenizer"] = renders(Renderer(other))
    seen["template"] = renders(Renderer(template)) and renders(Renderer(tokenizer, system="Be brief."))
    seen["limit"] = renders(Renderer(tokenizer, limit=4000))
    # a file's content counts, not its name
    settings = {"entry": jsonl, "count": None, "length": 0}
    unchanged(tmp_path, before, rendered, **settings)
    (tmp_path / "copy.jsonl").write_text(line)
    assert not renders(**settings | {"entry": jsonl | {"path": str(tmp_path / "copy.jsonl")}})
    lines.write_text(line.replace("It is 1", "It was 1"))
    seen["files"] = renders(**settings)
    with monkeypatch.context() as patch:
        patch.setattr(prompts, "_packages", lambda: {"tokenizers": "99"})
        seen["packages"] = renders()
    with monkeypatch.context() as patch:
        patch.setattr(prompts, "FORM", 99)
        seen["form"] = renders()
    seen["code"] = _another_code(tmp_path, before, rendered, renders, monkeypatch)
    assert all(seen.values()), seen
    assert seen.keys() == Prompts(before)._key(tasks.build("it", NIAH), 0, 1024).keys()
    # and what was kept first is still there
    assert not renders()


def _another_code(folder, renderer, rendered, renders, monkeypatch):
    """Whether a user's own task is rendered anew when its code changes."""
    (folder / "my_counted.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(folder)
    importlib.import_module("my_counted")
    unchanged(folder, renderer, rendered, entry={"family": "counted"})
    (folder / "my_counted.py").write_text(PLUGIN.replace("The number", "This number"))
    del sys.modules["my_counted"]
    importlib.invalidate_caches()
    importlib.import_module("my_counted")
    return renders(entry={"family": "counted"})


def test_what_has_no_source_is_not_kept(tokenizer, tmp_path, rendered):
    scope = {"__name__": "nowhere"}
    exec(PLUGIN, scope)
    plan(tmp_path, Renderer(tokenizer), entry={"family": "counted"})
    rendered.clear()
    plan(tmp_path, Renderer(tokenizer), entry={"family": "counted"})
    assert len(rendered) == 3 and not list(tmp_path.iterdir())


def test_equal_lines_are_told_apart(tokenizer, tmp_path, rendered):
    line = json.dumps({"context": "It is 1.", "question": "What?", "answers": ["1"]})
    (tmp_path / "own.jsonl").write_text(f"{line}\n" * 3)
    entry = {"family": "jsonl", "path": str(tmp_path / "own.jsonl")}
    found = unchanged(tmp_path, Renderer(tokenizer), rendered, entry=entry, count=None, length=0)
    assert [prompt.repeat for prompt in found] == [0, 1, 2] and len({prompt.hash for prompt in found}) == 3


def test_a_damaged_file_is_rendered(tokenizer, tmp_path, rendered):
    renderer = Renderer(tokenizer)
    first = unchanged(tmp_path, renderer, rendered)
    (path,) = (tmp_path / "prompts").iterdir()
    good = path.read_bytes()
    damaged = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good) - 1, 7)]
    rows = b"[[1], 2]"
    checked = hashlib.sha256(rows).hexdigest().encode() + b"\n" + rows + b"\n"
    for content in [b"", good[:40], good[:-40], good[64:], b"\xff" * 99, checked, *damaged]:
        path.write_bytes(content)
        rendered.clear()
        assert plan(tmp_path, renderer) == first and len(rendered) == 3
        assert path.read_bytes() == good


def test_a_folder_that_cannot_be_written_costs_time_only(tokenizer, tmp_path, rendered):
    (tmp_path / "prompts").write_text("a file")
    assert len(plan(tmp_path, Renderer(tokenizer))) == 3
    assert len(plan(tmp_path, Renderer(tokenizer))) == 3 and len(rendered) == 6


WORDS = [
    "experiment=quickstart", "task=[ruler_niah_single_1]", "task.length=[1024]", "task.samples=2",
    "task.max_new_tokens=2", "task.wording=own", "method=[dense,knorm]", "budget.tokens=[64]", "decode.block_rows=4",
]  # fmt: skip


def test_a_resume_renders_only_what_it_runs(tiny_model_dir, tmp_path, rendered):
    cfg = load([*WORDS, f"model.path={tiny_model_dir()}", "model.name=tiny", f"run_dir={tmp_path}"])
    accuracy.run_accuracy(cfg, Progress)
    before = Store(tmp_path).done()
    assert len(rendered) == 2 and len(before) == 4
    rendered.clear()
    accuracy.run_accuracy(cfg, Progress)
    assert not rendered and Store(tmp_path).done() == before


def test_a_prompt_that_is_another_than_planned_is_refused(tiny_model_dir, tmp_path):
    cfg = load([*WORDS, f"model.path={tiny_model_dir()}", "model.name=tiny", f"run_dir={tmp_path}"])
    run = RunContext.load(cfg)
    run.plan(tmp_path)
    (path,) = (tmp_path / "prompts").iterdir()
    rows = json.loads(path.read_bytes().split(b"\n")[1])
    rows[1][0] = "0" * 64
    text = json.dumps(rows)
    path.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
    with pytest.raises(
        UserError, match=r"^task\.ruler_niah_single_1: [^\n]+ is another prompt than planned; "
    ):
        accuracy.run_accuracy(cfg, Progress)
    # the first prompt was as planned; what was kept is gone, and the same command does the rest
    assert len(Store(tmp_path).done()) == 2 and not list((tmp_path / "prompts").iterdir())
    accuracy.run_accuracy(cfg, Progress)
    assert len(Store(tmp_path).done()) == 4


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=4), plain, max_size=4), min_size=1, max_size=3))
def test_ids_are_made_of_parts(parts):
    union = {key: value for part in parts for key, value in part.items()}
    assert ids.joined(*map(ids.texts, parts)) == digest(union)
