"""Regenerates committed files from other committed files: `python -m kvbench.cli.regenerate` (make tables).

Sources: results/RUN/summary.csv for the run's table.md and figures; check.csv for those of roofline_check; the code
and conf/ for modelled experiments and the tables of docs/gpu.md and docs/reproduce.md; conf/claims/ and the summaries
for the tables of claims, in docs/findings.md too; all of them for the README.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from kvbench.claims import evaluate, evidence, table
from kvbench.claims import page as claims_page
from kvbench.cli import reproduce
from kvbench.config.compose import compose
from kvbench.config.files import write
from kvbench.config.numbers import read_json
from kvbench.experiments import run
from kvbench.experiments.roofline_check import report as check_report
from kvbench.experiments.vllm_fp8 import report as fp8_report
from kvbench.experiments.vllm_load import report as load_report
from kvbench.experiments.vllm_prefix_caching import report as prefix_report
from kvbench.experiments.vllm_rag import report as rag_report
from kvbench.experiments.vllm_vs_compression import report as versus_report
from kvbench.report import overview, plots, readme, style, tables
from kvbench.report.format import csv_text
from kvbench.report.summary import COLUMNS, EARLIER, pooled
from kvbench.runs.progress import Progress
from kvbench.runs.store import Record
from kvbench.vllm.config import ServerConfig

RESULTS = Path("results")
GUIDE, FINDINGS = Path("docs") / "gpu.md", Path("docs") / "findings.md"
PAPERS = Path("docs") / "reproduce.md"
VERDICT, CLAIMS, CHECK = "verdict", "claims", "roofline_check"
# overrides of deterministic experiments (they measure nothing) by folder of results: quick ones and slow ones
QUICK = {"roofline": ["experiment=roofline"]}
SLOW = {
    "two_layer/append_only": ["experiment=two_layer"],
    "two_layer/corrected": ["experiment=two_layer", "layout=corrected"],
    "two_layer/llama31_70b": [
        "experiment=two_layer", "hosted_model=llama31_70b", "device=b200", "weight_element=1"
    ],
}  # fmt: skip

# runs of the same setting that a kind of figure shows beside those of the folder
BESIDE = {
    ("reference_oracle", "oracle"): ["reference"],
    ("reference_oracle_more", "oracle"): ["reference_more"],
    ("reference_oracle_4k", "oracle"): ["reference", "reference_more_4k"],
    ("compositions", "compositions"): ["reference", "reference_oracle"],
}
POOL_BYTES = ServerConfig.kv_cache_mib << 20
# reports of runs on vLLM servers by folder of results, from the rows of its *.jsonl files
VLLM_REPORTS = {
    "vllm/prefix_caching": lambda folder, rows, _: prefix_report.write_report(folder, rows["cells"]),
    "vllm/fp8": lambda folder, rows, order: fp8_report.write_report(folder, rows["cells"], order),
    "vllm/load": lambda folder, rows, order: load_report.write_report(folder, rows["cells"], order),
    "vllm/load_rag_article": lambda folder, rows, order: load_report.write_report(
        folder, rows["cells"], order
    ),
    "vllm/load_rag_append_only": lambda folder, rows, order: load_report.write_report(
        folder, rows["cells"], order
    ),
    "vllm/rag": lambda folder, rows, order: rag_report.write_report(folder, rows["cells"], order),
    "vllm/compression": lambda folder, rows, order: versus_report.write_report(
        folder, rows["accuracy"], rows["efficiency"], rows["cells"], order, POOL_BYTES
    ),
}


def regenerated(root: Path, modelled: Mapping[str, Sequence[str]] = QUICK | SLOW) -> dict[Path, bytes]:
    """The regenerated content of every such file of a checkout.

    Args:
        root: the checkout.
        modelled: overrides of the experiments to rerun, by folder of results.
    """
    found: dict[Path, bytes] = {}
    summaries = {path.parent: _summary(path) for path in sorted((root / RESULTS).glob("*/summary.csv"))}
    for folder, summary in summaries.items():
        if list(summary.columns) in (COLUMNS, EARLIER):
            found[folder / "table.md"] = _table(folder, summary).encode()
            found |= _figures(folder, summaries)
    for name, overrides in modelled.items():
        found |= _modelled(root / RESULTS / name, overrides)
    found |= _checked(root / RESULTS / CHECK)
    for name, report in VLLM_REPORTS.items():
        found |= _from_rows(root / RESULTS / name, report)
    results = evaluate(evidence.load(root / RESULTS))
    found[root / RESULTS / "claims.csv"] = csv_text(table.frame(results)).encode()
    found[root / RESULTS / "claims.md"] = table.full(results).encode()
    found[root / RESULTS / "claims.html"] = claims_page.page(results).html().encode()
    index = overview.index(overview.runs_in(root / RESULTS), root / RESULTS)
    found[root / RESULTS / overview.INDEX] = index.html().encode()
    guide = (root / GUIDE).read_text(encoding="utf-8")
    found[root / GUIDE] = readme.insert(guide, "modelled runs", reproduce.table(guide)).encode()
    papers = (root / PAPERS).read_text(encoding="utf-8")
    found[root / PAPERS] = readme.insert(papers, "modelled papers", reproduce.table(papers)).encode()
    page = (root / FINDINGS).read_text(encoding="utf-8")
    found[root / FINDINGS] = readme.insert(page, CLAIMS, table.headlines(results)).encode()
    page = (root / "README.md").read_text(encoding="utf-8")
    page = readme.insert(page, VERDICT, readme.table(summaries[root / RESULTS / VERDICT]))
    found[root / "README.md"] = readme.insert(page, CLAIMS, table.brief(results)).encode()
    return found


def main() -> None:
    """Write the files that changed and print their names."""
    for path, content in regenerated(Path()).items():
        if not path.is_file() or path.read_bytes() != content:
            write(path, content)
            print(f"written: {path}")


def _summary(path: Path) -> pd.DataFrame:
    frame = pd.read_csv(path, dtype={"budget_requested": str})
    if "budget_requested" in frame:
        frame["budget_requested"] = frame["budget_requested"].fillna("")
    return frame


def _table(folder: Path, summary: pd.DataFrame) -> str:
    """The run's table; keeps a hand-written line "Made with ..." under the title."""
    text = tables.markdown(summary, f"Run {folder.name}", [])
    path = folder / "table.md"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    title, _, rest = text.partition("\n\n")
    return "\n\n".join([title, *(line for line in lines if line.startswith("Made with ")), rest])


def _figures(folder: Path, summaries: Mapping[Path, pd.DataFrame]) -> dict[Path, bytes]:
    """The existing figures, drawn again: KIND.svg where a kind has one figure, else the figure's name."""
    found = {}
    for path in sorted((folder / "figures").glob("*.svg")):
        kind = path.stem.partition(".")[0]
        others = [folder.parent / name for name in BESIDE.get((folder.name, kind), [])]
        rows = pd.concat(
            [pooled(summaries[one]).assign(run=one.name) for one in (folder, *others)], ignore_index=True
        )
        drawn = dict(plots.figures(kind, rows))
        found[path] = style.render(drawn.get(path.stem) or next(iter(drawn.values())), "svg")
    return found


def _modelled(folder: Path, overrides: Sequence[str]) -> dict[Path, bytes]:
    """The files of a folder from a rerun of its experiment."""
    # config.yaml holds the path of the run
    existing = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "config.yaml")
    if not existing:
        return {}
    with TemporaryDirectory() as scratch:
        run(compose([*overrides, f"run_dir={scratch}"]), Progress)
        return {path: (Path(scratch) / path.relative_to(folder)).read_bytes() for path in existing}


def _checked(folder: Path) -> dict[Path, bytes]:
    """The table and the figures of `roofline_check` from its check.csv."""
    with TemporaryDirectory() as scratch:
        check_report.write_report(pd.read_csv(folder / "check.csv", keep_default_na=False), Path(scratch))
        figures = sorted((folder / "figures").glob("*.svg"))
        return {
            path: (Path(scratch) / path.relative_to(folder)).read_bytes()
            for path in [folder / "table.md", *figures]
        }


def _from_rows(
    folder: Path, write: Callable[[Path, Mapping[str, list[Record]], list[str]], object]
) -> dict[Path, bytes]:
    """The files of a folder from its rows."""
    rows = {
        path.stem: [read_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }
    order = list(dict.fromkeys(row["setup"] for row in rows.get("cells", []) if "setup" in row))
    existing = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".jsonl")
    if not existing:
        return {}
    with TemporaryDirectory() as scratch:
        write(Path(scratch), rows, order)
        return {path: (Path(scratch) / path.relative_to(folder)).read_bytes() for path in existing}


if __name__ == "__main__":
    main()
