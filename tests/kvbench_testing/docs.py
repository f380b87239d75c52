"""Commands that README, docs and notebooks name, and their short forms."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from kvbench.cli import main as cli
from kvbench.config.compose import compose

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, *sorted((ROOT / "notebooks").glob("*.py"))]

# settings that make an experiment short, by its kind
_MODEL = ["model.path={tiny}", "model.name=tiny"]
_SCORES = ["limit=1", "task.length=[2000]", "task.max_new_tokens=4", *_MODEL]
_TIMES = [
    "task.length=[2000]", "efficiency.batch=[1]", "efficiency.warmup=0", "efficiency.steps=1",
    "task.max_new_tokens=4", *_MODEL,
]  # fmt: skip
SHORT = {
    "accuracy": _SCORES,
    "efficiency": _TIMES,
    "bench_ablation": _SCORES,
    "roofline_check": ["lengths=[512]", "steps=1", "warmup=0"],
    "two_layer": ["turns=1", "conversations=1", "draws=1"],
    "claude_rag_cost": ["turns=1"],
}


def commands(text: str) -> list[list[str]]:
    """The words of every kvbench command in blocks of code, and of those in tables and sentences."""
    blocks = "\n".join(re.findall(r"```bash[^\n]*\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = re.findall(r"`(kvbench [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    words = [shlex.split(line, comments=True) for line in [*blocks.splitlines(), *lines]]
    # without where the output goes, and that it runs beside others
    ends = (">", "&")
    return [
        line[: min((line.index(end) for end in ends if end in line), default=len(line))]
        for line in words
        if line[:1] == ["kvbench"]
    ]


def pages_commands() -> dict[str, list[str]]:
    """Every command of README and docs, by its text."""
    found = [words for page in PAGES for words in commands(page.read_text(encoding="utf-8"))]
    return {shlex.join(words): words for words in found}


def need(words: Iterable[str]) -> str | None:
    """What a command needs that a test does not have: vLLM, a GPU, a key, a download, or None."""
    for word in words:
        key, _, value = word.removeprefix("experiment=").partition("=")
        if key.startswith("vllm_"):
            return "vLLM"
        if (key == "model" and value != "smollm2_135m") or word == "model.device=cuda":
            return "a GPU"
        if word in ("live=true", "take_counts=true"):
            return "a key"
        if word == "model.download=true":
            return "a download"
    return None


def shortened(words: list[str], values: Mapping[str, str], folder: Path) -> list[str]:
    """Arguments of the short form of a command: placeholders filled in, `run` made small and given its folder.

    Args:
        words: the command.
        values: what stands for a placeholder, by its text.
        folder: where a run writes.
    """
    words = [_filled(word, values) for word in words[1:]]
    if words[0] != "run" or "--help" in words:
        return words
    args = cli._parse(words)
    composed = compose(args.overrides, args.config_dir)
    short = [line.format(**values) for line in SHORT.get(composed.data["kind"], ())]
    tasks = composed.data.get("task") or {}
    if all(task.get("family") == "jsonl" for task in tasks.values()):
        short = [line for line in short if not line.startswith("task.length")]
    replaced = {line.partition("=")[0] for line in short}
    own = [word for word in words if word.partition("=")[0] not in replaced]
    return [*own, *short, *([] if "run_dir=" in " ".join(own) else [f"run_dir={folder}"])]


def _filled(word: str, values: Mapping[str, str]) -> str:
    key, equals, value = word.rpartition("=")
    return f"{key}{equals}{values.get(value, value)}"
