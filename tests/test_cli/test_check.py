"""`kvbench check`: a method of the user's, outside of a checkout."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvbench.cli import main as cli
from kvbench.cli import scaffold
from kvbench.methods import registry

BROKEN = "        return snapshot.window_scores(self.window).unflatten(0, (snapshot.heads, -1)).sum(1).nan_to_num()\n"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A working folder of the user's; what its modules register is forgotten afterwards."""
    module = sys.modules[registry.__module__]
    monkeypatch.setattr(module, "_CLASSES", registry())
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def check(*words: str) -> int:
    return cli.main(["check", *words])


@pytest.mark.parametrize("word", ["mymethod", "mymethod.py"])
def test_what_is_written_meets_the_contract(word, elsewhere, capsys):
    written = scaffold.new("method", "mymethod", elsewhere)
    assert written.check == "kvbench check mymethod"
    assert "check it: kvbench check mymethod" in str(written)
    assert check(word, "window=4") == 0
    out = capsys.readouterr().out
    assert out.startswith("mymethod window=4\n  ok") and "meets 8 of 8 rules" in out and "BROKEN" not in out


def test_a_broken_contract_is_exit_code_1(elsewhere, capsys):
    file = scaffold.new("method", "mymethod", elsewhere).file
    text = file.read_text()
    start = text.index("        return snapshot")
    file.write_text(text[:start] + BROKEN)
    assert check("mymethod") == 1
    out = capsys.readouterr().out
    assert "BROKEN  has scores that are not finite" in out and "NaN in k gives ordinary scores" in out
    assert "meets 7 of 8 rules" in out


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        ({}, ["nope"], "check: there is no method 'nope'; known: adakv"),
        ({}, ["snpkv"], "check: there is no method 'snpkv' (did you mean snapkv?)"),
        ({}, ["nope.py"], "check: there is no file nope.py"),
        ({}, ["some/where"], "check: there is no file some/where"),
        ({}, [""], "check: there is no method ''"),
        ({}, ["ruler_niah_single_2"], "check: ruler_niah_single_2 is a task; only methods"),
        ({}, ["snapkv", "windw=3"], "snapkv: windw: there is no key 'windw' (did you mean window?)"),
        ({}, ["snapkv", "window=-1"], "snapkv: window: -1 is not allowed"),
        ({}, ["snapkv", "window=[1"], "check: window: cannot read '[1'"),
        ({}, ["snapkv", "window"], "check: 'window' is not KEY=VALUE, as window=16"),
        ({"bad": "raise RuntimeError('two\\nlines')"}, ["bad"], "cannot import 'bad': RuntimeError: two lines ("),
        ({"bad": "raise RuntimeError"}, ["bad.py"], "check: cannot import 'bad': RuntimeError:"),
        ({"bad": "import sys; sys.exit(0)"}, ["bad"], "check: cannot import 'bad': SystemExit: 0"),
        ({"bad": "def f("}, ["bad"], "check: cannot import 'bad': SyntaxError"),
        ({"bad": "import nowhere"}, ["bad"], "check: cannot import 'bad': No module named 'nowhere'"),
        ({"empty": ""}, ["empty"], "empty.py registers no method; see kvbench new method NAME"),
        ({"statistics": ""}, ["statistics.py"], "there is another Python module statistics; give the file another"),
        ({"my-method": ""}, ["my-method.py"], "check: my-method.py is not the name of a Python module"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(files, words, message, elsewhere, capsys):
    for name, text in files.items():
        (elsewhere / f"{name}.py").write_text(text)
    assert check(*words) == 2
    out, error = capsys.readouterr()
    assert not out and message in error and error.count("\n") == 1
    assert {path.stem for path in elsewhere.iterdir()} <= {*files, "__pycache__"}


def test_a_file_with_several_methods_is_checked_as_a_whole(elsewhere, capsys):
    for name in ("first", "second"):
        scaffold.new("method", name, elsewhere)
    both = (elsewhere / "first.py").read_text() + (elsewhere / "second.py").read_text()
    (elsewhere / "both.py").write_text(both)
    assert check("both.py", "window=2") == 0
    out = capsys.readouterr().out
    assert "first meets 8 of 8 rules\n\nsecond window=2\n" in out
