"""What README, documents and notebooks name is there: experiments, settings, commands, tests, files."""

import re
from pathlib import Path

import pandas as pd
import pytest
from kvbench_testing.docs import PAGES, ROOT, TEXTS, commands

from kvbench.cli import main as cli
from kvbench.config.compose import compose
from kvbench.config.groups import Groups

EACH_TEXT = pytest.mark.parametrize("file", TEXTS, ids=lambda path: path.name)
EACH_PAGE = pytest.mark.parametrize("file", PAGES, ids=lambda path: path.name)


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


@pytest.mark.parametrize("file", sorted(set(TEXTS) - set(PAGES)), ids=lambda path: path.name)
def test_commands_of_notebooks_are_understood(file: Path):
    """Those of README and docs are run: test_docs_commands."""
    for words in commands(file.read_text(encoding="utf-8")):
        args = cli._parse([word for word in words[1:] if word != "..."])
        if hasattr(args, "overrides"):
            compose(args.overrides)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110


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


def missing_sections(page: str, folder: Path) -> list[str]:
    """Links to a heading of a page that has no such heading, by GitHub's rule for names of headings."""
    missing = []
    for target, name in re.findall(r"\]\(([^)#:]+)#([^)]+)\)", page):
        headings = re.findall(r"^#+ (.*)$", (folder / target).read_text(encoding="utf-8"), re.MULTILINE)
        if name not in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}:
            missing.append(f"{target}#{name}")
    return missing


@EACH_PAGE
def test_linked_sections_exist(file: Path):
    assert missing_sections(file.read_text(encoding="utf-8"), file.parent) == []


def test_a_missing_section_is_found():
    page = "[a](docs/faq.md#which-models-work) [b](docs/faq.md#which-model-works)"
    assert missing_sections(page, ROOT) == ["docs/faq.md#which-model-works"]


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
    page = "`runs/plan.py` `runs/planned.py`\n\n## vLLM (`kvbench/vllm`)\n\n`driver.py` `logprob_kl.py` `setup.py`\n"
    assert missing_modules(page) == {"runs/planned.py", "logprob_kl.py", "setup.py"}


# what a column of a table shows, beside the score, by the end of its title
SHOWN = {
    " KL": lambda row: f"{row.kl_to_dense:.2g}",
    " read %": lambda row: f"{row.bytes_read_share:.0%}".replace("%", " %"),
    " resident %": lambda row: f"{row.bytes_resident_share:.0%}".replace("%", " %"),
    "": lambda row: f"{row.score:.2f}",
}


def wrong_cells(page: str) -> tuple[int, list[str]]:
    """How many cells the tables marked `<!-- from SUMMARY: KEY=VALUE ... -->` have, and those that differ.

    A column is a task or a budget, followed by what it shows.
    """
    count, wrong = 0, []
    for path, conditions, table in re.findall(r"<!-- from (\S+):(.*?) -->\n((?:\|.*\n)+)", page):
        rows = pd.read_csv(ROOT / path, dtype={"budget_requested": str})
        for key, value in (word.split("=") for word in conditions.split()):
            free = rows["is_dense"] if key == "budget_requested" else False
            rows = rows[free | (rows[key].astype(str) == value)]
        head, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        for method, *cells in lines:
            for column, cell in zip(head[1:], cells, strict=True):
                kind = next(end for end in SHOWN if column.endswith(end))
                name = column.removesuffix(kind)
                of = rows[rows["method"] == method]
                task = of["task"].isin([name, f"ruler_{name}"])
                of = of[of["is_dense"] | (of["budget_requested"] == name)] if name.isdigit() else of[task]
                assert len(of) == 1, f"{path}: {method}, {column}"
                row = of.iloc[0]
                count += 1
                if SHOWN[kind](row) != cell:
                    wrong.append(f"{path}: {method}, {column}: {cell}, not {SHOWN[kind](row)}")
    return count, wrong


def test_tables_of_findings_are_those_of_the_runs():
    count, wrong = wrong_cells((ROOT / "docs" / "findings.md").read_text(encoding="utf-8"))
    assert count > 300 and not wrong


def test_a_wrong_number_of_a_table_is_found():
    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8").partition("## Values of")[0]
    assert wrong_cells(page.replace("| rocketkv | 0.95 |", "| rocketkv | 0.96 |", 1))[1] == [
        "results/reference/summary.csv: rocketkv, niah_single_2: 0.96, not 0.95"
    ]
