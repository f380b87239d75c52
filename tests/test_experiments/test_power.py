"""Every shipped experiment and notebook that scores methods has samples enough that a total failure would be marked.

A method that finds nothing where dense finds everything changes all samples, all in one direction; whether that passes
Holm's correction follows from the number of comparisons of its table alone.
"""

import ast
import importlib
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from kvbench_testing.notebooks import texts

from kvbench.config.compose import compose
from kvbench.report.clusters import Clusters
from kvbench.report.significance import ALPHA, difference_p_value, fewest_changes, holm
from kvbench.runs import rerun
from kvbench.runs.config import RunConfig, load, validate

ROOT = Path(__file__).resolve().parents[2]
# the user's file says how many samples there are
USERS_FILE = {
    "jsonl", "chunkkv_gsm8k", "chunkkv_gsm8k_50", "chunkkv_jailbreakv", "chunkkv_longbench", "rocketkv_longbench",
    "rocketkv_scbench", "rocketkv_table2",
}  # fmt: skip


def shipped() -> dict[str, Path]:
    """Files of the experiments of kind accuracy."""
    files = {path.stem: path for path in sorted((ROOT / "conf" / "experiment").glob("*.yaml"))}
    kinds = {name: yaml.safe_load(path.read_text()).get("kind", "accuracy") for name, path in files.items()}
    return {
        name: path for name, path in files.items() if kinds[name] == "accuracy" and name not in USERS_FILE
    }


def sizes() -> list[list[str]]:
    """The overrides of every experiment as it is, and at the size that its comments document."""
    found = []
    for name, path in shipped().items():
        found.append([name])
        for line in re.findall(r"^#   (model=.*)$", path.read_text(), re.MULTILINE):
            # what would be downloaded does not change the number of comparisons
            found.append([name, *(word for word in shlex.split(line) if not word.startswith("model"))])
    return found


def notebook_runs(text: Path) -> list[list[str]]:
    """The words of every `kvbench.run(NAME, {...})` of a notebook that scores methods.

    Settings are dicts, literal or assigned at the top level under names in capitals. Classes of the notebook are
    defined, so that they are known.
    """
    tree = ast.parse(text.read_text(encoding="utf-8"))
    known: dict[str, Any] = {"__name__": "notebook"}
    found = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef):
            exec(compile(ast.Module([node], []), text.name, "exec"), known)
        for call in ast.walk(node):
            if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "kvbench.run"):
                continue
            name, *rest = (eval(compile(ast.Expression(one), text.name, "eval"), known) for one in call.args)
            settings = {
                **(rest[0] if rest else {}),
                **{w.arg: ast.literal_eval(w.value) for w in call.keywords},
            }
            if name in shipped() or "task.samples" in settings:
                # the model does not change the number of comparisons
                kept = {key: value for key, value in settings.items() if not key.startswith("model")}
                found.append([name, *(f"{key}={rerun.text(value)}" for key, value in kept.items())])
        # settings have names in capitals
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper():
            exec(compile(ast.Module([node], []), text.name, "exec"), known)
    return found


def comparisons(cfg: RunConfig) -> int:
    """The size of Holm's family of a table: tasks times methods and budgets, without dense."""
    from kvbench.methods import build

    budgets = len(cfg.budget.tokens) + len(cfg.budget.ratio)
    methods = {label: build(entry) for label, entry in cfg.method.items()}
    rows = [budgets if method.needs_budget else 1 for label, method in methods.items() if label != "dense"]
    return sum(rows) * len(cfg.task)


def samples(cfg: RunConfig) -> int:
    """The fewest samples of a task."""
    return min(cfg.limit or math.inf, *(entry["samples"] for entry in cfg.task.values()), math.inf)


def enough(n: int, family: int) -> bool:
    return not family or n >= fewest_changes(family)


@pytest.mark.parametrize("words", sizes(), ids=" ".join)
def test_a_total_failure_would_be_marked(words):
    cfg = validate(compose(words))
    assert enough(samples(cfg), comparisons(cfg)), (
        f"{words[0]}: {comparisons(cfg)} comparisons ask for {fewest_changes(comparisons(cfg))} samples, "
        f"it has {samples(cfg)}"
    )


@pytest.fixture
def forgotten(monkeypatch):
    """Forgets what notebooks register."""
    module = importlib.import_module("kvbench.methods.registry")
    monkeypatch.setattr(module, "_CLASSES", module.registry())


@pytest.mark.parametrize("text", texts(), ids=lambda path: path.stem)
def test_a_total_failure_in_a_notebook_would_be_marked(text, forgotten):
    for words in notebook_runs(text):
        cfg = validate(compose(words))
        family = comparisons(cfg)
        assert family and enough(samples(cfg), family), (
            f"{text.name}: {family} comparisons ask for {fewest_changes(family)} samples, it has {samples(cfg)}"
        )


def test_every_notebook_that_runs_methods_is_read(tmp_path, forgotten):
    runs = {text.stem: len(notebook_runs(text)) for text in texts()}
    assert all(runs[name] for name in runs if name.startswith(("01", "02", "03", "06", "07", "09")))
    text = (texts()[0].parent / "01_quickstart.py").read_text(encoding="utf-8")
    few = tmp_path / "few.py"
    few.write_text(text.replace('"task.samples": 10', '"limit": 4'))
    cfg = validate(compose(notebook_runs(few)[0]))
    assert samples(cfg) == 4 and not enough(4, comparisons(cfg))


def test_too_few_samples_are_found():
    """The quickstart with 10 samples, one fewer than its 42 comparisons ask for, is caught; 11 do."""
    for n, good in ((10, False), (11, True)):
        cfg = load(["quickstart", f"task.samples={n}"])
        family = comparisons(cfg)
        assert family == 42 and enough(samples(cfg), family) is good
        p = difference_p_value(Clusters([-1.0] * n, range(n)))
        assert bool(holm([p] + [1.0] * (family - 1))[0] < ALPHA) is good


def test_both_demo_tasks_leave_room_for_samples_that_dense_fails():
    """Dense answers about three of four on the harder task of the demo."""
    cfg = load(["quickstart"])
    assert samples(cfg) * 0.7 >= fewest_changes(comparisons(cfg))
    verdict = load(["verdict"])
    assert samples(verdict) >= 60 and len(verdict.method) == 7 and set(verdict.task) == set(cfg.task)
