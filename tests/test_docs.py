"""What README, documents and notebooks name is there: experiments, settings, commands, tests, files."""

import re
import shlex
from pathlib import Path

import pytest

from kvbench.cli import main as cli
from kvbench.config.compose import compose
from kvbench.config.groups import Groups

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, *sorted((ROOT / "notebooks").glob("*.py"))]
EACH_TEXT = pytest.mark.parametrize("file", TEXTS, ids=lambda path: path.name)
EACH_PAGE = pytest.mark.parametrize("file", PAGES, ids=lambda path: path.name)


def commands(text: str) -> list[list[str]]:
    """The words of every kvbench command in blocks of code, and of those in tables and sentences."""
    blocks = "\n".join(re.findall(r"```bash[^\n]*\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = [part for line in blocks.splitlines() for part in re.split(r";\s", line)]
    lines += re.findall(r"`(kvbench [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line[:1] == ["kvbench"]]


def lines_for_a_shell(text: str) -> list[str]:
    """kvbench commands in blocks of code, in sentences and in comments of YAML, and lines of settings there."""
    text = text.replace("\\\n", " ")
    found = re.findall(r"^(?:# +)?((?:kvbench |model=|task\.|budget\.).*)", text, re.MULTILINE)
    return [line.partition(" #")[0] for line in found] + re.findall(r"`(kvbench [^`\n]+)`", text)


def unquoted(line: str) -> bool:
    """Whether zsh would read a part of the line as a pattern: [ ] { } * ? in a value outside of quotes."""
    return bool(re.search(r"=\S*[][{}*?]", re.sub(r"'[^']*'|\"[^\"]*\"", "", line)))


@pytest.mark.parametrize(
    "file", [*TEXTS, *sorted((ROOT / "conf").glob("**/*.yaml"))], ids=lambda path: path.name
)
def test_commands_are_quoted_for_zsh(file: Path):
    lines = lines_for_a_shell(file.read_text(encoding="utf-8"))
    assert [line for line in lines if unquoted(line)] == []


def test_an_unquoted_pattern_is_found():
    text = "kvbench run a b=[1]\n#   task.length=[1,2]\nsay `kvbench run a b={c:1}` and `kvbench ls`\n"
    text += "kvbench run a 'b=[1]' \\\n  \"c=[1]\" # d=[2]\n"
    assert [unquoted(line) for line in lines_for_a_shell(text)] == [True, True, False, True, False]


@EACH_TEXT
def test_experiments_exist(file: Path):
    named = set(re.findall(r"experiment=([a-z]\w*)", file.read_text(encoding="utf-8")))
    assert named <= set(Groups().options("experiment"))


@EACH_TEXT
def test_commands_are_understood(file: Path):
    for words in commands(file.read_text(encoding="utf-8")):
        # "kvbench ls methods | tasks": the first of the choices; ... stands for more of the like
        words = words[1 : words.index("|")] if "|" in words else words[1:]
        args = cli._parse([word for word in words if word != "..."])
        overrides = getattr(args, "overrides", None)
        if overrides and not any(re.search(r"[=\[][A-Z]|^plugins=", word) for word in overrides):
            compose(overrides)


@EACH_PAGE
def test_tests_exist(file: Path):
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", file.read_text(encoding="utf-8")):
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"


@EACH_PAGE
def test_targets_of_make_exist(file: Path):
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", file.read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@EACH_PAGE
def test_linked_files_exist(file: Path):
    for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text(encoding="utf-8")):
        assert (file.parent / target).exists(), target


def missing_modules(page: str) -> set[str]:
    """Modules that a page names and that do not exist, in the package of their section, the root or kvbench/."""
    missing = set()
    for section in re.split(r"^## ", page, flags=re.MULTILINE):
        package = re.search(r"\(`(kvbench/\w+)`\)", section.partition("\n")[0])
        folders = [ROOT / package[1]] if package else [ROOT, ROOT / "kvbench"]
        named = re.findall(r"`([a-z_]\w*(?:/\w+)*\.py)`", section)
        missing |= {name for name in named if not any((folder / name).is_file() for folder in folders)}
    return missing


def test_modules_of_the_architecture_exist():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert not missing_modules(page)


def test_a_missing_module_is_found():
    page = "`runs/plan.py` `runs/plans.py`\n\n## vLLM (`kvbench/vllm`)\n\n`driver.py` `logprob_kl.py` `setup.py`\n"
    assert missing_modules(page) == {"runs/plans.py", "logprob_kl.py", "setup.py"}
