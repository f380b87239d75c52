"""Committed tables and figures are up to date; `make tables` regenerates them."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvbench import claims
from kvbench.claims import evidence, table
from kvbench.claims.claim import NEEDS_GPU, Finding, Result
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
    assert {"README.md", "claims.csv", "claims.md", "claims.html", "table.md", "kl_vs_read.svg"} <= names
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


@pytest.fixture
def elsewhere(results, monkeypatch, tmp_path):
    monkeypatch.setattr(claims, "evaluate", lambda runs: results)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_claims_prints_and_writes_only_when_asked(results, elsewhere, capsys):
    assert main(["claims"]) == 0
    printed = capsys.readouterr().out
    assert f"{len(results)} claims: " in printed and "results/claims.csv" not in printed
    words = " ".join(printed.split())
    assert all(" ".join(table.statement(result.claim).split()) in words for result in results)
    assert not (elsewhere / "results").exists()
    # a filter shows less, but all are written
    assert main(["claims", "--write", "--source", "quest"]) == 0
    assert "RocketKV\n" not in (shorter := capsys.readouterr().out) and len(shorter) < len(printed) / 2
    for name in ("claims.csv", "claims.md", "claims.html"):
        assert f"results/{name}" in shorter
        assert (elsewhere / "results" / name).read_text() == (ROOT / "results" / name).read_text()


@pytest.mark.parametrize(
    ("words", "papers", "verdict"),
    [
        ("--source RocketKV", {"RocketKV"}, ""),
        ("--source rocketkv --source article", {"RocketKV", "The article"}, ""),
        ("--verdict reproduced", None, "reproduced"),
        ("--verdict gpu --source chunkkv", {"ChunkKV"}, NEEDS_GPU),
        ("--verdict contradicted --source vLLM", {"vLLM"}, "contradicted"),
    ],
)
def test_claims_are_filtered_by_source_and_verdict(results, elsewhere, capsys, words, papers, verdict):
    assert main(["claims", *words.split()]) == 0
    of_papers = [result for result in results if papers is None or result.source.paper in papers]
    wanted = [result for result in of_papers if verdict in ("", result.verdict)]
    assert f"\n{table.counts_text(wanted)}" in "\n" + capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "RoketKV"], "--source: there is no source 'RoketKV' (did you mean RocketKV?); known: "),
        (["--source", "kv"], "--source: there is no source 'kv'; known: "),
        (["--source", " "], "--source: there is no source ' '; known: "),
        (["--verdict", "wrong"], "--verdict: there is no verdict 'wrong'; known: reproduced, "),
    ],
)  # fmt: skip
def test_an_unknown_source_or_verdict_is_one_line_and_nothing_is_written(elsewhere, capsys, words, message):
    assert main(["claims", "--write", *words]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"kvbench: error: {message}") and err.count("\n") == 1
    assert not (elsewhere / "results").exists()


def test_a_folder_that_cannot_be_written_is_one_line(elsewhere, capsys):
    (elsewhere / "results").write_text("a file")
    assert main(["claims", "--write"]) == 2
    assert capsys.readouterr().err.startswith("kvbench: error: --write: cannot write results/claims.csv: ")


def test_claims_are_checked_against_the_same_runs_in_every_folder(tmp_path, monkeypatch):
    (tmp_path / "results" / "reference").mkdir(parents=True)
    (tmp_path / "results" / "reference" / "summary.csv").write_text("method\nother\n")
    here = evidence.load()
    monkeypatch.chdir(tmp_path)
    there = evidence.load()
    assert "reference" in here.frames and here.frames.keys() == there.frames.keys()
    assert all(frame.equals(there.frames[name]) for name, frame in here.frames.items())


def test_a_run_that_does_not_exist_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["claims", "--run", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nowhere is not a run folder" in error
    assert not (tmp_path / "results").exists()
