"""report.html: a self-contained page, readable offline, in light and dark."""

import base64
from dataclasses import dataclass
from importlib import resources

import jinja2
import pandas as pd

import kvbench
from kvbench.report import caveats
from kvbench.report.format import number
from kvbench.report.run import Run
from kvbench.report.summary import SETTING
from kvbench.report.tables import BETTER, GUIDE, WORSE, all_tables, configurations
from kvbench.runs.told import listed

_EXAMPLES = 4
_OUTPUT = 400  # maximum characters of an output


@dataclass(frozen=True)
class Picture:
    """A figure for the page.

    Attributes:
        caption: what it shows.
        name: file name without suffix; it names the setting.
        svg: content of the file.
    """

    caption: str
    name: str
    svg: bytes

    @property
    def uri(self) -> str:
        """A data URI for an `<img>`, which runs no scripts."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


@dataclass(frozen=True)
class Example:
    """One sample's outputs under every method."""

    title: str
    gold: str
    rows: list[list[str]]


def page(run: Run, figures: list[Picture]) -> str:
    """The report as one HTML document; all text is escaped."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("kvbench.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    config = run.path / "config.yaml"
    return environment.from_string(source).render(
        name=run.name,
        version=kvbench.__version__,
        notes=run.notes(),
        facts=caveats.facts(run.prepared),
        figures=figures,
        failures=listed(run.failures, run.path),
        tables=all_tables(run.summary(), run.failures),
        guide=GUIDE,
        examples=examples(run.prepared),
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        worse=WORSE,
        better=BETTER,
    )


def examples(cells: pd.DataFrame) -> list[Example]:
    """The sample with the largest disagreement between methods, per setting and task; up to four."""
    scored = cells[cells["score"].notna()]
    found = []
    for (*setting, task, length), group in scored.groupby([*SETTING, "task_label", "length"], dropna=False):
        spread = group.groupby(["seed", "sample"])["score"].std().fillna(0)
        seed, sample = spread.idxmax()
        rows = []
        for label, budget, config in configurations(
            group[(group["seed"] == seed) & (group["sample"] == sample)]
        ):
            row = config.iloc[0]
            output = str(row["output"])
            excerpt = (
                output if len(output) <= _OUTPUT else f"{output[:_OUTPUT]} ... ({len(output)} characters)"
            )
            rows.append(
                [label, budget, number(row["score"], ".2f"), number(row["kl_to_dense"], ".2g"), excerpt]
            )
        gold = ", ".join(
            map(str, group[(group["seed"] == seed) & (group["sample"] == sample)]["gold"].iloc[0])
        )
        title = f"{task}, {length} tokens, {setting[SETTING.index('protocol')]}, sample {sample}, seed {seed}"
        found.append(Example(title, gold, rows))
    return found[:_EXAMPLES]
