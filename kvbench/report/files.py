"""The files of a report: summary.csv, table.md, figures, report.html."""

from pathlib import Path

from kvbench.config.files import write
from kvbench.report import folder, html, plots, style
from kvbench.report.format import csv_text
from kvbench.report.page import Picture
from kvbench.report.run import Run, load


def write_report(run_dir: str | Path | Run) -> dict[str, Path]:
    """Writes the report into the run's folder; of a committed run only the page, as its other files are `make tables`'.

    Args:
        run_dir: the run, its folder, or its name under results/runs.

    Returns:
        The path of every file by its name in the folder: "summary.csv", "table.md", "report.html", "metrics.csv"
        where there are further metrics,
        "figures/<kind>.<model>....svg" and ".png".

    Raises:
        UserError: no such run, no finished cell, or the folder cannot be read.
    """
    run = run_dir if isinstance(run_dir, Run) else load(run_dir)
    if not run.columns and "table.md" in run.files():
        return {"report.html": folder.write_page(run.path)}
    paths = []
    if not run.packed:
        paths = [run.path / "summary.csv", run.path / "table.md"]
        write(paths[0], csv_text(run.summary(), "%.10g"))
        write(paths[1], run.table())
        further = run.metrics()
        if len(further):
            paths.append(run.path / "metrics.csv")
            write(paths[-1], csv_text(further, "%.10g"))
    figures = []
    for kind, spec in plots.KINDS.items():
        for name, figure in run.figures(kind):
            if run.packed:
                svg = style.render(figure, "svg")
            else:
                saved = plots.save(figure, run.path / "figures", name)
                svg = saved[0].read_bytes()
                paths += saved
            figures.append(Picture(spec.caption, name, svg))
    paths.append(run.path / "report.html")
    write(paths[-1], html.page(run, figures))
    return {path.relative_to(run.path).as_posix(): path for path in paths}


def page_of(run_dir: str | Path) -> Path:
    """The page of a run, written where it is older than the run's other files.

    Args:
        run_dir: the run's folder, or its name under results/runs.

    Raises:
        UserError: no such run, or no finished cell.
    """
    run = load(run_dir)
    path = run.path / "report.html"
    sources = [file for file in run.path.glob("*") if file.suffix in (".jsonl", ".csv", ".md")]
    if path.is_file() and all(file.stat().st_mtime <= path.stat().st_mtime for file in sources):
        return path
    return write_report(run_dir)["report.html"]
