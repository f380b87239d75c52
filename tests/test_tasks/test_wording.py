import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest

from kvbench.config.errors import UserError
from kvbench.tasks import wording
from kvbench.tasks.wording import Part, sentences_for

PARTS = get_args(Part)
needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")


@pytest.fixture
def fresh():
    wording.sentences_for.cache_clear()
    wording._tree.cache_clear()
    yield
    wording.sentences_for.cache_clear()
    wording._tree.cache_clear()


def source(name: str) -> str:
    folder = next(iter(find_spec("lm_eval").submodule_search_locations))
    return Path(folder, "tasks", "ruler", name).read_text(encoding="utf-8")


def literal(text: str, pattern: str) -> str:
    """A string literal found by pattern, found otherwise than the package finds it."""
    return ast.literal_eval(re.search(pattern, text, re.DOTALL).group(1))


def rulers(text: str) -> str:
    return text.replace("{many}", "{type_needle_v}").replace("{one}", "{type_needle_v}")


@needs_lm_eval
def test_ruler_needles_are_lm_evals_constants(fresh):
    template = literal(source("niah_utils.py"), r'^TEMPLATE = (""".*?""")'.replace("^", "\n"))
    prepare = source("prepare_niah.py")
    many, one = (sentences_for("ruler", part) for part in ("niah_many", "niah_one"))
    assert rulers(many.head) + "{context}" + rulers(many.question) == template
    assert rulers(many.needle) == literal(prepare, r'\nNEEDLE = (".*?")\n')
    assert many.noise == literal(prepare, r'haystack = ("The .*?")\n')
    assert f'f"{many.prefix}"'.replace("{many}", "{type_needle_v}") in prepare
    assert f'f"{one.prefix}"'.replace("{one}", "{type_needle_v[:-1]}") in prepare
    assert (one.needle, one.noise) == (many.needle, many.noise)


@needs_lm_eval
def test_rulers_singular(fresh):
    one = sentences_for("ruler", "niah_one")
    head = one.head.format(one="number", many="numbers")
    assert head.startswith("A special magic number is hidden within")
    assert "quiz you about the number afterwards" in head
    assert one.question.format(one="number", query="X").startswith(
        "\nWhat is the special magic number for X "
    )
    assert one.prefix.format(one="number", query="X").startswith("The special magic number for X ")
    assert one.prefix.endswith(" is")


@needs_lm_eval
@pytest.mark.parametrize("part", ["vt", "cwe", "fwe"])
def test_the_other_tasks_are_lm_evals_constants(fresh, part):
    text = source(f"{part}_utils.py")
    found = sentences_for("ruler", part)
    assert found.head + "{context}" + found.question == literal(text, r'"template": (""".*?""")')
    assert " " + found.prefix == literal(text, r'"answer_prefix": (""".*?""")')
    if part == "vt":
        assert found.noise + "\n" == literal(text, r'noise = (".*?")\n')


@needs_lm_eval
def test_lm_eval_is_read_not_imported():
    # another process, as other tests import it in this one
    code = "import sys; from kvbench.tasks.wording import sentences_for\n"
    code += f"for part in {PARTS}: sentences_for('ruler', part)\nassert 'lm_eval' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_lm_eval
@pytest.mark.parametrize("part", PARTS)
def test_our_sentences_are_not_rulers(part):
    own, ruler = sentences_for("own", part), sentences_for("ruler", part)
    texts = " ".join([own.head, own.question, own.prefix, own.needle, own.noise])
    ours = [sentence.strip() for sentence in re.split(r"(?<=[.?:]) ", texts) if len(sentence.split()) > 2]
    theirs = " ".join([ruler.head, ruler.question, ruler.prefix, ruler.needle, ruler.noise])
    assert not [sentence for sentence in ours if sentence in theirs]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["own", pytest.param("ruler", marks=needs_lm_eval)])
def test_sentences_have_the_form_that_the_tasks_fill(part, kind):
    values = {
        "one": "number",
        "many": "numbers",
        "query": "QUERY",
        "num_v": 5,
        "key": "KEY",
        "value": "VALUE",
        "i": 7,
        "document": "DOCUMENT",
    }
    found = sentences_for(kind, part)
    filled = [text.format(**values) for text in (found.head, found.question, found.prefix, found.needle)]
    assert filled[0][-1].isspace()
    assert filled[1].startswith("\n")
    assert filled[2] == filled[2].lstrip()
    if part.startswith("niah"):
        assert all("QUERY" in text for text in filled[1:3])
        assert "KEY" in filled[3]
        assert "VALUE" in filled[3]
        assert ("numbers" in filled[0]) == (part == "niah_many")
    if part == "qa":
        assert "QUERY" in filled[1] and "7" in filled[3] and filled[3].endswith("DOCUMENT")
    if part == "vt":
        assert "QUERY" in filled[1]
        assert "5" in filled[2]
    assert bool(found.noise) == (part not in ("cwe", "fwe", "qa"))


def test_without_lm_eval_only_our_wording_works(fresh, monkeypatch):
    monkeypatch.setattr(wording, "find_spec", lambda name: None)
    for part in PARTS:
        assert sentences_for("own", part).head
        with pytest.raises(UserError, match="pip install --no-deps lm-eval, or use wording=own") as error:
            sentences_for("ruler", part)
        assert "\n" not in str(error.value)


def test_another_lm_eval_is_refused(fresh, monkeypatch, tmp_path):
    folder = tmp_path / "tasks" / "ruler"
    folder.mkdir(parents=True)

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(wording, "find_spec", lambda name: Spec)
    with pytest.raises(UserError, match=r"has no vt_utils\.py"):
        sentences_for("ruler", "vt")
    (folder / "vt_utils.py").write_text("CONFIG = make()\n")
    with pytest.raises(UserError, match="has no CONFIG"):
        sentences_for("ruler", "vt")
    for content in (
        'CONFIG = {"template": "no place for it", "answer_prefix": ""}',
        "CONFIG = {}",
        "CONFIG = 3",
    ):
        (folder / "fwe_utils.py").write_text(content)
        wording._tree.cache_clear()
        with pytest.raises(UserError, match="has no fwe sentences"):
            sentences_for("ruler", "fwe")
