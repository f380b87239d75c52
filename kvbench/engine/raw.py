"""Methods on raw tensors, for notebooks and checks: the tokens kept, the slots read at a step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kvbench.config.errors import UserError
from kvbench.config.typed import whole
from kvbench.engine.finite import check_scores, check_snapshot, first_not_finite
from kvbench.kernels.attention_sum import attention_sum
from kvbench.methods import Budget, Kept, LayerSnapshot, Method, Quota, Resolved, Shape, build
from kvbench.methods.repeat import Repeat, repeat_scores


@torch.no_grad()
def keep(
    method: str, q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, *, tokens: int | None = None,
    ratio: float | str | None = None, layer: int = 0, num_layers: int = 1,
    rope: tuple[Tensor, Tensor] | None = None, boundaries_BT: Tensor | None = None,
    answer: tuple[Tensor, Tensor] | None = None, repetition: tuple[Tensor, Tensor] | None = None,
    max_new_tokens: int = 0, **params: Any,
) -> list[list[Tensor]]:  # fmt: skip
    """The prompt tokens that a method keeps in one layer after prefill.

    Args:
        method: its name, see `kvbench ls methods`.
        q_BQTD: post-RoPE queries of the whole prompt `[B, Q, T, D]`.
        k_BHTD: post-RoPE keys `[B, H, T, D]`, heads not expanded.
        v_BHTD: values.
        tokens: the budget; or
        ratio: the fraction retained.
        layer: index of the layer, for methods that treat layers differently.
        num_layers: layers of the model.
        rope: (cos, sin), each `[P, R]`, of the positions 0 to P - 1, P >= T, for methods that rotate queries;
            R <= D channels are rotated. Positions beyond P are extrapolated.
        boundaries_BT: 2 for a token that ends a sentence, 1 for one that ends a clause, else 0; for
            boundary-aware chunks.
        answer: post-RoPE queries `[B, Q, N, D]` and keys `[B, H, N, D]` of the N tokens after the prompt, for
            the static oracle.
        repetition: post-RoPE queries `[B, Q, N, D]` and keys `[B, H, N, D]` of N tokens after the prompt that
            repeat it, for KVzip; the whole prompt is one chunk, and `scope=model` ranks this layer alone.
        max_new_tokens: M, for budget rules that depend on it.
        **params: parameters of the method.

    Returns:
        Kept positions, int64 and ascending, by batch row and then by KV head; by query head where
        `heads=query_head`.

    Raises:
        UserError: a name, parameter, budget or shape that is not allowed; NaN or an infinity in a tensor.
        NotFiniteError: the scores are not finite.
    """
    _check(q_BQTD, k_BHTD, v_BHTD)
    if k_BHTD.shape[2] != q_BQTD.shape[2]:
        raise UserError("q: needs the queries of all prompt tokens")
    num_layers, layer = whole("num_layers", num_layers, 1), whole("layer", layer, 0)
    if layer >= num_layers:
        raise UserError(f"layer: {layer} is not in [0, num_layers={num_layers})")
    built = _built(method, params)
    if not built.parts()[0].evicts:
        text = f"{method} evicts nothing, so that every token is kept"
        more = "; kvbench.select says what it reads" if built.parts()[1].selects else ""
        warnings.warn(text + more, stacklevel=3)
    batch, heads, length, dim = k_BHTD.shape
    shape = Shape(length, whole("max_new_tokens", max_new_tokens, 0), num_layers, dim)
    resolved = _resolved(built, shape, tokens, ratio)
    eviction, count = resolved.eviction, resolved.rules[layer].keep
    if layer % getattr(eviction, "n_reuse", 1):
        raise UserError(
            f"n_reuse: layer {layer} reuses the tokens of an earlier layer, which keep does not know"
        )
    # keep does not depend on keys that are rotated after the choice
    if "rope" in eviction.needs and rope is None and not eviction.reindexes:
        raise UserError(f"rope: {method} needs it")
    if "boundaries" in eviction.needs and boundaries_BT is None:
        raise UserError(f"boundaries_BT: {method} needs them")
    if "answer" in eviction.needs and answer is None:
        raise UserError(f"answer: {method} needs it")
    if "repeat" in eviction.needs and repetition is None:
        raise UserError(f"repetition: {method} needs it")
    out = []
    for row in range(batch):
        snapshot = LayerSnapshot(k_BHTD[row], v_BHTD[row], q_BQTD[row], layer, num_layers, dim**-0.5)
        if "attention_sum" in eviction.needs:
            snapshot.attention_sum_QT = attention_sum(q_BQTD[row], k_BHTD[row], snapshot.scaling)
        snapshot.rope = None if rope is None else rotation(*rope)
        snapshot.boundaries_T = None if boundaries_BT is None else boundaries_BT[row]
        if answer is not None:
            keys = torch.cat([k_BHTD[row], answer[1][row]], dim=1)
            snapshot.answer_sum_QT = attention_sum(answer[0][row], keys, snapshot.scaling)[:, :length]
        if repetition is not None and eviction.repeats is not None:
            (q, k), (_, sinks) = repetition, eviction.repeats
            snapshot.repeats[eviction.repeats] = repeated(snapshot, q[row], k[row], sinks)
        check_snapshot([snapshot])
        kept = Kept([torch.arange(length, device=k_BHTD.device)] * heads)
        if count is not None:
            scores = eviction.scores(snapshot)
            check_scores(scores, eviction, layer)
            kept = eviction.keep(snapshot, scores, Quota(count, resolved.ratio))
        per_query_head = getattr(eviction, "heads", None) == "query_head"
        out.append(_by_query_head(kept, snapshot.group) if per_query_head else kept.positions)
    return out


def repeated(snapshot: LayerSnapshot, q_QND: Tensor, k_HND: Tensor, sinks: int) -> Repeat:
    """What the whole text gets while it is repeated, in one layer."""
    sinks = min(sinks, snapshot.length)
    found = repeat_scores(q_QND, k_HND, snapshot.k_HTD, sinks, sinks, snapshot.length, snapshot.scaling)
    pinned = found.new_full((snapshot.heads, sinks), torch.inf)
    return Repeat(sinks, {snapshot.layer: torch.cat([pinned, found], dim=1)})


@torch.no_grad()
def select(
    method: str, q_BQD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, *, tokens: int | None = None,
    ratio: float | str | None = None, prompt_tokens: int | None = None, max_new_tokens: int = 0,
    **params: Any,
) -> list[list[Tensor]]:  # fmt: skip
    """The slots of a compact cache that a method reads at one decode step, in a layer that it does not leave dense.

    Args:
        method: its name.
        q_BQD: post-RoPE queries of the newest token `[B, Q, D]`.
        k_BHTD: post-RoPE keys of the cache `[B, H, T, D]`, the newest token last.
        v_BHTD: values.
        tokens: the budget; or
        ratio: the fraction retained of the prompt.
        prompt_tokens: tokens of the prompt before eviction, for the budget rule; default T.
        max_new_tokens: M, likewise.
        **params: parameters of the method.

    Returns:
        Slots, int64 and ascending, by batch row and then by KV head; by query head where the method selects
        so.

    Raises:
        UserError: a name, parameter, budget or shape that is not allowed; NaN or an infinity in a tensor.
    """
    _check(q_BQD[:, :, None], k_BHTD, v_BHTD)
    built = _built(method, params)
    if not built.parts()[1].selects:
        text = f"{method} selects nothing, so that everything in the cache is read"
        more = "; kvbench.keep says what it keeps" if built.parts()[0].evicts else ""
        warnings.warn(text + more, stacklevel=3)
    batch, heads, length, dim = k_BHTD.shape
    prompt = length if prompt_tokens is None else whole("prompt_tokens", prompt_tokens, 1)
    shape = Shape(prompt, whole("max_new_tokens", max_new_tokens, 0), _dense_layers(built) + 1, dim)
    resolved = _resolved(built, shape, tokens, ratio)
    selection, count = resolved.selection, resolved.rules[-1].read
    if count is None:
        return [[torch.arange(length, device=k_BHTD.device)] * heads for _ in range(batch)]
    out = []
    for row in range(batch):
        k_1HTD = k_BHTD[row : row + 1]
        q_1HGD = q_BQD[row : row + 1].unflatten(1, (heads, -1))
        state = selection.prepare(k_1HTD, v_BHTD[row : row + 1], 1, 0)
        filled = torch.tensor(length, device=k_1HTD.device)
        slots = selection.select(q_1HGD, k_1HTD, k_1HTD[:, :, :0], filled, state, count, dim**-0.5)
        lists = slots.long().flatten(0, -2)
        out.append([index[index >= 0].unique() for index in lists])
    return out


def _check(q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor) -> None:
    """Check that the shapes match and the numbers are finite."""
    if k_BHTD.dim() != 4 or k_BHTD.shape[:3] != v_BHTD.shape[:3]:
        raise UserError("k, v: must be [batch, KV heads, tokens, channels] for the same tokens")
    if q_BQTD.dim() != 4 or q_BQTD.shape[0] != k_BHTD.shape[0] or q_BQTD.shape[3] != k_BHTD.shape[3]:
        raise UserError("q: must have the batch and the channels of k")
    if q_BQTD.shape[1] % k_BHTD.shape[1]:
        raise UserError(f"q: {q_BQTD.shape[1]} query heads are not a multiple of {k_BHTD.shape[1]} KV heads")
    if (name := first_not_finite([("q", q_BQTD), ("k", k_BHTD), ("v", v_BHTD)])) is not None:
        raise UserError(f"{name}: holds NaN or an infinity")


def _built(name: str, params: Mapping[str, Any]) -> Method:
    """The method; errors name the arguments of the call."""
    try:
        return build({"method": name, **params})
    except UserError as error:
        raise UserError(str(error).removeprefix("method.")) from None


def _resolved(
    method: Method, shape: Shape, tokens: int | None, ratio: float | str | None
) -> Resolved:  # fmt: skip
    """The method at its budget; errors name the arguments of the call."""
    if tokens is None and ratio is None and method.needs_budget:
        raise UserError("tokens: missing; give tokens or ratio")
    if tokens is not None and ratio is not None:
        raise UserError("ratio: given beside tokens; give one of them")
    try:
        given = tokens is not None or ratio is not None
        budget = Budget(tokens, None if ratio is None else str(ratio)) if given else None
        return method.resolve(shape, budget)
    except UserError as error:
        raise UserError(str(error).removeprefix("budget.")) from None


def rotation(cos: Tensor, sin: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Rotations by differences of positions, see `LayerSnapshot.rope`, from rotations by positions."""
    cos_PR, sin_PR = (x.float().reshape(-1, x.shape[-1]) for x in (cos, sin))
    factor = (cos_PR[0, 0] ** 2 + sin_PR[0, 0] ** 2).sqrt()

    def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
        distance, sign = positions.abs(), positions.sign()[:, None]
        if not len(distance) or int(distance.max()) < len(cos_PR):
            return cos_PR[distance] / factor, sin_PR[distance] * sign / factor
        angles = distance[:, None] * _frequencies(cos_PR, sin_PR)
        return angles.cos().float(), (angles.sin() * sign).float()

    return rope


def _frequencies(cos_PR: Tensor, sin_PR: Tensor) -> Tensor:
    """Radians per position of each channel, fp64 `[R]`, refined at ever farther positions."""
    if len(cos_PR) < 2:
        raise UserError("rope: give at least two positions")
    angles = torch.atan2(sin_PR.double(), cos_PR.double())
    position, frequency = 1, angles[1]
    while 2 * position < len(angles):
        position *= 2
        error = (angles[position] - frequency * position + math.pi) % (2 * math.pi) - math.pi
        frequency = frequency + error / position
    return frequency


def _by_query_head(kept: Kept, group: int) -> list[Tensor]:
    if kept.members is None:
        return [positions for positions in kept.positions for _ in range(group)]
    return [
        positions[member]
        for positions, members in zip(kept.positions, kept.members, strict=True)
        for member in members
    ]


def _dense_layers(method: Method) -> int:
    parts = (method, *method.parts())
    return max(getattr(part, "dense_layers", 0) for part in parts)
