"""Which tokens of its prompt a stored cell keeps: prefills and compresses that one cell again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kvbench.config.errors import UserError
from kvbench.engine.compress import kept_tokens
from kvbench.engine.failures import Failure
from kvbench.engine.turns import Split, prompt_parts
from kvbench.experiments.accuracy.run import prefill_part
from kvbench.methods import Kept, Resolved, Shape
from kvbench.runs import config
from kvbench.runs.context import PromptContext, RunContext
from kvbench.runs.plan import Cell, Group

#: tokens shown before and behind a place, places shown, and parts of the prompt in the line of shares
AROUND, PLACES, PARTS = 24, 4, 10
#: a token is marked as evicted where fewer of the layers and KV heads keep it
HALF = 0.5


@dataclass(frozen=True)
class KeptPrompt:
    """A prompt and what a cell keeps of it.

    Attributes:
        text: the prompt.
        spans: character range of every token.
        kept_LHT: which layers and KV heads keep each of the compressed tokens, the first ones of the prompt.
        gold: the expected answers.
        remarks: what else the cell does with the tokens.
    """

    text: str
    spans: Sequence[tuple[int, int]]
    kept_LHT: Tensor
    gold: Sequence[str]
    remarks: Sequence[str]


def kept_prompt(record: Mapping[str, Any]) -> KeptPrompt:
    """Prefill and compress a cell again.

    Args:
        record: its row.

    Raises:
        UserError: the row, the model or the configuration does not allow it, the code computes another cell now, or
            the cell fails.
    """
    try:
        return _compressed(record)
    except UserError:
        raise
    except Exception as error:
        raise UserError(Failure.of(error, "compress").reason) from None


def _compressed(record: Mapping[str, Any]) -> KeptPrompt:
    run = RunContext.load(_configuration(record))
    group, cell = _cell(run, record)
    at = PromptContext.render(run, group)
    prompt, first_token = at.prompt, run.cfg.decode.first_token
    (part,) = prompt_parts(
        prompt.ids, prompt.context_end, group.protocol, first_token, prompt.first_end, [cell.method],
        prompt.turn_start,
    )  # fmt: skip
    snapshot = prefill_part(at, part, [cell])
    layer = snapshot.layers[0]
    shape = Shape(snapshot.length, at.sample.max_new_tokens, layer.num_layers, layer.k_HTD.shape[-1])
    resolved = part.resolve(cell.method, cell.budget, shape)
    kept_LHT = torch.ones(layer.num_layers, layer.heads, snapshot.length, dtype=torch.bool)
    if not resolved.dense:
        for number, kept in enumerate(kept_tokens(snapshot, resolved)):
            if kept is not None:
                kept_LHT[number] = _mask(kept, snapshot.length)
    remarks = list(_remarks(resolved, part.split))
    return KeptPrompt(prompt.text, run.renderer.spans(prompt), kept_LHT, at.sample.gold, remarks)


def shown(kept: KeptPrompt) -> str:
    """The places of the expected answers in the prompt, evicted tokens as [-text-], and shares as numbers."""
    layers, heads, length = kept.kept_LHT.shape
    shares = kept.kept_LHT.float().mean(dim=(0, 1)).tolist() + [1.0] * (len(kept.spans) - length)
    mean = sum(shares[:length]) / length
    lines = [f"tokens kept after prefill: {mean:.1%} of {length}, mean of {layers} layers x {heads} KV heads"]
    lines += [f"  {remark}" for remark in kept.remarks]
    if mean == 1:
        return "\n".join([*lines, "  nothing is evicted"])
    bounds = [length * part // PARTS for part in range(PARTS + 1)]
    parts = (shares[low:high] for low, high in pairwise(bounds) if low < high)
    lines.append("  by tenth of the prompt: " + " ".join(f"{sum(part) / len(part):.0%}" for part in parts))
    places = [(gold, place) for gold in dict.fromkeys(kept.gold) for place in _places(kept, gold)]
    if not places:
        answer = ", ".join(map(repr, kept.gold)) or "-"
        lines.append(f"  the expected answer ({answer}) does not stand in the prompt; its end:")
        return "\n".join(
            [*lines, _marked(kept, shares, range(max(0, len(shares) - 2 * AROUND), len(shares)))]
        )
    for gold, place in places[:PLACES]:
        inside = kept.kept_LHT[:, :, place.start : place.stop].float()
        share = sum(shares[place.start : place.stop]) / len(place)
        lines += [
            "",
            f"{gold!r} at tokens {place.start} to {place.stop - 1}: kept by {share:.0%} of layers and KV heads",
        ]
        if inside.shape[-1] and 0 < share < 1:
            by_layer = inside.mean(dim=(1, 2)).tolist()
            lines.append("  by layer, in %: " + " ".join(f"{100 * one:.0f}" for one in by_layer))
        around = range(max(0, place.start - AROUND), min(len(shares), place.stop + AROUND))
        lines.append(_marked(kept, shares, around))
    if len(places) > PLACES:
        lines.append(f"and {len(places) - PLACES} places more")
    return "\n".join([*lines, "", "[-text-]: evicted in more than half of the layers and KV heads"])


def _configuration(record: Mapping[str, Any]) -> config.RunConfig:
    """The configuration of the command that repeats a cell."""
    words = shlex.split(record.get("command") or "")
    if words[:2] != ["kvbench", "run"]:
        raise UserError("the row has no command that repeats it")
    folders, overrides, rest = [], [], iter(words[2:])
    for word in rest:
        if word == "--config-dir":
            folders.append(next(rest))
        else:
            overrides.append(word)
    return config.load(overrides, folders)


def _cell(run: RunContext, record: Mapping[str, Any]) -> tuple[Group, Cell]:
    """The cell of the plan that has the row's id."""
    for group in run.plan():
        for cell in group.cells:
            if record["cell"] in cell.ids:
                return group, cell
    raise UserError(
        "the same settings give another cell now: model, method, task or engine changed since the row was stored"
    )


def _mask(kept: Kept, length: int) -> Tensor:
    """Which KV heads keep which tokens, `[H, T]`."""
    mask = torch.zeros(len(kept.positions), length, dtype=torch.bool)
    for head, positions in enumerate(kept.positions):
        mask[head, positions.cpu()] = True
    return mask


def _remarks(resolved: Resolved, split: Split) -> Iterator[str]:
    reads = {rule.read for rule in resolved.rules} - {None}
    if reads and not resolved.dense:
        most = max(read for read in reads if read is not None)
        yield f"a decode step reads {most} of the tokens that are there, chosen for each query"
    if any(rule.hold is not None for rule in resolved.rules):
        yield "more is evicted while decoding"
    if resolved.retains:
        yield "the whole prompt stays stored for later turns"
    if split.question:
        yield f"the {len(split.question) + 1} tokens behind them are fed after compression and kept"


def _places(kept: KeptPrompt, gold: str) -> Iterator[range]:
    """The tokens of each occurrence of an answer in the prompt, without regard to case."""
    text, wanted = kept.text.lower(), gold.strip().lower()
    start = text.find(wanted) if wanted and len(text) == len(kept.text) else -1
    while start >= 0:
        end = start + len(wanted)
        inside = [number for number, (low, high) in enumerate(kept.spans) if low < end and high > start]
        if inside:
            yield range(inside[0], inside[-1] + 1)
        start = text.find(wanted, end)


def _marked(kept: KeptPrompt, shares: Sequence[float], tokens: range) -> str:
    """Some tokens as text, runs of evicted ones marked."""
    parts, last = [], False
    for number in tokens:
        evicted = shares[number] < HALF
        if evicted != last:
            parts.append("[-" if evicted else "-]")
        low, high = kept.spans[number]
        parts.append(kept.text[low:high])
        last = evicted
    text = "".join([*parts, "-]" if last else ""]).replace("\n", "\\n")
    return f"  ...{text}..."
