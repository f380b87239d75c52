"""Committed tables and figures are up to date; `make tables` regenerates them."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvbench import claims
from kvbench.claims import table
from kvbench.claims.claim import Finding, Result
from kvbench.cli import regenerate
from kvbench.cli.main import main

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.mark.parametrize(
    "modelled", [regenerate.QUICK, pytest.param(regenerate.SLOW, marks=pytest.mark.slow)]
)
def test_nothing_committed_is_stale(results, monkeypatch, modelled):
    monkeypatch.setattr(regenerate, "evaluate", lambda runs: results)
    files = regenerate.regenerated(ROOT, modelled)
    names = {path.name for path in files}
    assert {"README.md", "claims.csv", "claims.md", "table.md", "kl_vs_read.svg"} <= names
    for path, content in files.items():
        assert path.is_file(), f"{path} is missing: make tables"
        # the .svg of the same name is compared instead
        if path.suffix != ".png":
            _compare(path, path.read_text(encoding="utf-8"), content.decode())


def _compare(path, there, made):
    if path.suffix == ".svg":
        # drawn numbers differ in their last digit between processors
        assert NUMBER.sub("", there) == NUMBER.sub("", made), f"{path} is stale: make tables"
        numbers = [np.array(NUMBER.findall(text), float) for text in (there, made)]
        np.testing.assert_allclose(*numbers, atol=0.01, err_msg=f"{path} is stale: make tables")
    else:
        assert there == made, f"{path} is stale: make tables"


def test_a_stale_file_is_found():
    svg = ROOT / "results/quickstart/figures/kl_vs_read.svg"
    text = svg.read_text(encoding="utf-8")
    _compare(svg, text, text)
    number = NUMBER.findall(text)[500]
    for other in (text.replace(number, f"{float(number) + 1:f}"), text.replace("rocketkv", "snapkv")):
        with pytest.raises(AssertionError, match=r"stale: make tables"):
            _compare(svg, text, other)
    with pytest.raises(AssertionError, match=r"stale: make tables"):
        _compare(ROOT / "README.md", "1.84x", "1.85x")


@pytest.mark.parametrize("make", [table.full, table.headlines, lambda results: table.frame(results).to_csv()])
def test_a_changed_finding_changes_every_table(results, make):
    first = next(result for result in results if result.claim.headline)
    readings = first.finding.readings
    finding = Finding((replace(readings[0], value=readings[0].value + 7), *readings[1:]))
    changed = [Result(r.source, r.claim, finding) if r is first else r for r in results]
    assert make(changed) != make(results)


def test_the_command_writes_both_tables_and_counts(results, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(claims, "evaluate", lambda runs: results)
    monkeypatch.chdir(tmp_path)
    assert main(["claims"]) == 0
    printed = capsys.readouterr().out
    assert f"{len(results)} claims: " in printed and "results/claims.csv" in printed
    for name in ("claims.csv", "claims.md"):
        assert (tmp_path / "results" / name).read_text() == (ROOT / "results" / name).read_text()


def test_a_run_that_does_not_exist_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["claims", "--run", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nowhere is not a run folder" in error
    assert not (tmp_path / "results").exists()
