"""`kvbench preview` and `kvbench data`: what a task asks, and made-up rows in the form of its data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvbench.config.errors import UserError

_SHOWN = 700  # characters at each end of a long text


def preview(overrides: Sequence[str], config_dirs: Sequence[str], index: int, whole: bool) -> str:
    """Rendered prompts, one per chosen task, with what is known of them.

    Args:
        overrides: as for `kvbench run`; without an experiment those of `jsonl` with the given tasks.
        config_dirs: the user's configuration folders.
        index: number of the sample, from 0.
        whole: show all of a text, also of a long one.

    Raises:
        UserError: a name, key or value is not allowed, or there is no such sample.
    """
    from kvbench.runs.config import load

    first = overrides[0] if overrides else ""
    if not (first.isidentifier() or any(text.startswith("experiment=") for text in overrides)):
        overrides = ["jsonl", *overrides]
    cfg = load(overrides, config_dirs)
    # torch loads slowly, and mistakes should show at once
    from kvbench import tasks
    from kvbench.models.load import load_model
    from kvbench.runs.context import make_renderer

    loaded = load_model(cfg.model)
    renderer = make_renderer(cfg, loaded)
    found = []
    for label, entry in cfg.task.items():
        task = tasks.build(label, entry)
        for length in task.config.length:
            made = list(task.prompts(index + 1, cfg.seeds[0], length, renderer))
            if index >= len(made):
                raise UserError(f"--sample: {index} is not there, task {label} has {len(made)}")
            found.append(_shown(task, length, index, *made[index], whole))
    return "\n\n".join(found)


def _shown(task: Any, length: int, index: int, sample: Any, prompt: Any, whole: bool) -> str:
    stop, sampling = sample.stop, sample.sampling
    ends = [repr(text) for text in stop.strings] + (["the end of the first line"] if stop.first_line else [])
    facts = {
        "task": f"{task.label}, sample {index}" + (f", length {length}" if length else ""),
        "tokens": f"{len(prompt.ids)} and {sample.max_new_tokens} for the answer",
        "context": f"ends behind token {prompt.context_end}"
        if sample.context_known
        else "its end is not known: query_aware only",
        "template": "off for this task" if sample.plain else "as the model is set",
        "tokens chosen": f"at random, temperature {sampling.temperature:g}, top_p {sampling.top_p:g}"
        if sampling
        else "the likeliest",
        "judged": " | ".join(_short(text, whole) for text in sample.continuations)
        or "an answer, as it is generated",
        "answer": f"begins with {sample.answer_prefix!r}" if sample.answer_prefix else "begins freely",
        "ends at": ", ".join(["an end token", *ends]),
        "metric": task.metric,
        "wording": task.wording or "the user's",
        "gold": _short(" | ".join(sample.gold), whole),
        "facts": json.dumps(dict(sample.meta), ensure_ascii=False),
    }
    width = max(map(len, facts))
    # the mark is only shown: it is no part of the prompt
    message = sample.context + sample.question
    start = prompt.text.find(message.strip()) if not sample.earlier else -1
    text = prompt.text
    if start >= 0 and sample.context_known:
        lead = len(message) - len(message.lstrip())
        end = start + max(len(sample.context) - lead, 0)
        head, tail = _short(text[:end], whole), _short(text[end:], whole)
        text = f"{head}⟦context ends⟧{tail}"
    else:
        text = _short(text, whole)
    lines = [f"{name:<{width}}  {fact}" for name, fact in facts.items()]
    if sample.meta.get("hidden"):
        return "\n".join([*lines, "", "the text is not shown"])
    return "\n".join([*lines, "", text])


def _short(text: str, whole: bool) -> str:
    if whole or len(text) <= 2 * _SHOWN:
        return text
    return f"{text[:_SHOWN]} [... {len(text) - 2 * _SHOWN:,} characters ...] {text[-_SHOWN:]}"


def data(option: str, path: str | None, count: int, words: int) -> str:
    """Write made-up rows in the form of a task's data; says what was written and how to use it.

    Args:
        option: a task of `kvbench ls tasks`.
        path: the file; by default named after the data set, in the working folder.
        count: number of rows.
        words: length of each context.

    Raises:
        UserError: there is no such task, it needs no data, or the file exists.
    """
    from kvbench.config.groups import Groups
    from kvbench.config.typed import unknown
    from kvbench.tasks import lm_eval_tasks, registry
    from kvbench.tasks.dataset import DataSet
    from kvbench.tasks.made_up import questions

    if count < 1 or words < 1:
        raise UserError("--rows and --words: give 1 or more")
    groups = Groups()
    if option not in groups.options("task"):
        raise unknown("data", option, groups.options("task"), "task")
    entry = groups.entry("task", option)
    cls = registry()[entry["family"]]
    if option == "jsonl":
        rows, name, key = questions(count, words), "questions", "task.path"
    elif issubclass(cls, DataSet):
        config = cls(**({"name": entry["name"]} if "name" in entry else {}), data="-")
        rows, name, key = config.examples(count, words), config.data_name or option, "task.data"
    elif option == "lm_eval":
        rows, name, key = lm_eval_tasks.examples(count), "gsm8k", "task.name=gsm8k_cot task.data"
    elif cls.from_file:
        raise UserError(f"data: there are no made-up rows of {option}; it needs {cls.needs}")
    else:
        raise UserError(
            f"data: {option} needs none, its prompts are generated: kvbench preview 'task=[{option}]'"
        )
    file = Path(path or f"{name}.jsonl")
    try:
        with file.open("x", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except FileExistsError:
        raise UserError(f"data: {file} exists; give another name") from None
    except OSError as error:
        raise UserError(f"data: cannot write {file}: {error.strerror or error}") from None
    return f"{file}: {count} made-up rows\nkvbench run jsonl 'task=[{option}]' {key}={file}"
