"""The contract of a method: what the engine relies on, as rules that run on raw tensors.

`kvbench check NAME` runs them on a method of the user's, the tests on every method that is shipped. A rule that is
broken is a `BrokenRule`; whatever else a method raises is a broken rule too.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kvbench.config.numbers import NotFiniteError
from kvbench.engine import raw
from kvbench.engine.compress import carried_numbers, make_lanes
from kvbench.engine.finite import check_scores, tensors_in
from kvbench.engine.lanes import Lane
from kvbench.engine.stored import StoredLane
from kvbench.kernels.attention_sum import attention_sum
from kvbench.methods import Budget, Kept, LayerSnapshot, Method, Quota, Resolved, Shape, build, registry
from kvbench.methods.composite import Composite
from kvbench.methods.storage import Rolling

#: query heads and KV heads
SHAPES = {"mha": (4, 4), "gqa3": (6, 2), "gqa4": (8, 2)}
LENGTHS = (1, 7, 63, 331, 1000)
#: channels per head, layers, and new tokens
DIM, LAYERS, NEW = 8, 3, 5


class BrokenRule(AssertionError):
    """A method does what its contract does not allow; says what."""


@dataclass(frozen=True)
class Prompts:
    """Two different prompts of random numbers, of equal length.

    Attributes:
        q_BQTD: post-RoPE queries.
        k_BHTD: post-RoPE keys.
        v_BHTD: values.
        rope: cosines and sines of positions beyond the prompt's end, each `[T + 512, D]`.
        boundaries_BT: ends of sentences and clauses, see `LayerSnapshot`.
        answer: queries `[B, Q, 5, D]` and keys `[B, H, 5, D]` of the five tokens after the prompt.
        repetition: likewise of nine tokens that repeat it.
    """

    q_BQTD: Tensor
    k_BHTD: Tensor
    v_BHTD: Tensor
    rope: tuple[Tensor, Tensor]
    boundaries_BT: Tensor
    answer: tuple[Tensor, Tensor]
    repetition: tuple[Tensor, Tensor]

    def layer(self, method: Method, number: int = 0) -> LayerSnapshot:
        """A layer of the first prompt, copied, with what a method needs; see `Eviction.needs`."""
        needs, repeats = method.needs, method.parts()[0].repeats
        q, k, v = (x[0].clone() for x in (self.q_BQTD, self.k_BHTD, self.v_BHTD))
        snapshot = LayerSnapshot(k, v, q, number, LAYERS, DIM**-0.5)
        if "attention_sum" in needs:
            snapshot.attention_sum_QT = attention_sum(q, k, snapshot.scaling)
        if "answer" in needs:
            keys = torch.cat([k, self.answer[1][0]], dim=1)
            sums = attention_sum(self.answer[0][0], keys, snapshot.scaling)
            snapshot.answer_sum_QT = sums[:, : k.shape[1]]
        if "rope" in needs:
            snapshot.rope = raw.rotation(*self.rope)
        if "boundaries" in needs:
            snapshot.boundaries_T = self.boundaries_BT[0].clone()
        if repeats is not None:
            q, k = (x[0] for x in self.repetition)
            snapshot.repeats[repeats] = raw.repeated(snapshot, q, k, repeats[1])
        return snapshot


@functools.cache
def prompts(heads: str, length: int) -> Prompts:
    """The prompts of a shape in `SHAPES` and a length; the same ones at every call."""
    query_heads, kv_heads = SHAPES[heads]
    draw = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(2, n, length, DIM, generator=draw) for n in (query_heads, kv_heads, kv_heads))
    angles = torch.arange(length + 512)[:, None] * 100.0 ** (-torch.arange(0, DIM, 2) / DIM)
    angles = torch.cat([angles, angles], dim=-1)
    ends = torch.randint(0, 12, (2, length), generator=draw)
    draw = torch.Generator().manual_seed(length + 1)
    asked, told = (torch.randn(2, n, 5, DIM, generator=draw) for n in (query_heads, kv_heads))
    boundaries = torch.where(ends < 3, ends, 0).to(torch.int8)
    again = tuple(torch.randn(2, n, 9, DIM, generator=draw) for n in (query_heads, kv_heads))
    return Prompts(q, k, v, (angles.cos(), angles.sin()), boundaries, (asked, told), (again[0], again[1]))


@dataclass(frozen=True)
class Case:
    """A method with its parameters, on prompts of one shape and length, at one budget."""

    name: str
    heads: str
    length: int
    tokens: int
    params: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        query_heads, kv_heads = SHAPES[self.heads]
        tokens = f"{self.length} prompt token{'s' if self.length > 1 else ''}"
        return f"{query_heads} query heads, {kv_heads} KV heads, {tokens}, budget {self.tokens}"

    @functools.cached_property
    def method(self) -> Method:
        return build({"method": self.name, **self.params})

    @property
    def prompts(self) -> Prompts:
        return prompts(self.heads, self.length)

    @property
    def group(self) -> int:
        query_heads, kv_heads = SHAPES[self.heads]
        return query_heads // kv_heads

    @property
    def covers(self) -> bool:
        """Whether the budget covers prompt and new tokens, and the method has a budget at all."""
        return self.tokens >= self.length + NEW and self.method.needs_budget

    @functools.cached_property
    def resolved(self) -> Resolved:
        return self.method.resolve(Shape(self.length, NEW, LAYERS, DIM), Budget(tokens=self.tokens))

    def layer(self, number: int = 0) -> LayerSnapshot:
        """A layer of the first prompt, with what the method needs."""
        return self.prompts.layer(self.method, number)

    @functools.cached_property
    def kept_lists(self) -> list[list[Tensor]]:
        """What is kept of the two prompts."""
        return self.keep([0, 1])

    @functools.cached_property
    def read_lists(self) -> list[list[Tensor]]:
        """What the newest token of the two prompts reads."""
        return self.select([0, 1])

    def keep(self, rows: list[int]) -> list[list[Tensor]]:
        """What `kvbench.keep` returns for some of the prompts."""
        p = self.prompts
        return raw.keep(
            self.name, p.q_BQTD[rows], p.k_BHTD[rows], p.v_BHTD[rows], tokens=self.tokens, num_layers=LAYERS,
            rope=p.rope, boundaries_BT=p.boundaries_BT[rows], answer=(p.answer[0][rows], p.answer[1][rows]),
            repetition=(p.repetition[0][rows], p.repetition[1][rows]), max_new_tokens=NEW, **self.params,
        )  # fmt: skip

    def select(self, rows: list[int]) -> list[list[Tensor]]:
        """What `kvbench.select` returns for some of the prompts."""
        p = self.prompts
        q, k, v = p.q_BQTD[rows, :, -1], p.k_BHTD[rows], p.v_BHTD[rows]
        return raw.select(self.name, q, k, v, tokens=self.tokens, max_new_tokens=NEW, **self.params)

    def kept(self, snapshot: LayerSnapshot) -> tuple[Kept | None, Any]:
        """What the method keeps of a layer, None for everything, and the scores it was chosen by."""
        resolved = self.resolved
        rule = resolved.rules[snapshot.layer]
        scores = resolved.eviction.scores(snapshot)
        if rule.keep is None:
            return None, scores
        return resolved.eviction.keep(snapshot, scores, Quota(rule.keep, resolved.ratio)), scores


def cases(name: str, params: Mapping[str, Any]) -> Iterator[Case]:
    """The cases of a method: every shape and length with budgets from 1 to more than there is.

    The budgets are 1, the observation window and one less, half of the prompt, and prompt and new tokens together.
    """
    window = build({"method": name, **params}).parts()[0].window or 8
    for heads in SHAPES:
        for length in LENGTHS:
            for tokens in sorted({1, max(1, window - 1), window, max(1, length // 2), length + NEW}):
                yield Case(name, heads, length, tokens, params)


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise BrokenRule(text)


def _positions(lists: list[list[Tensor]], case: Case, what: str) -> None:
    """Checks lists of ascending, distinct positions, one per head and row."""
    wanted = sorted(set(SHAPES[case.heads]))
    for row in lists:
        text = f"{len(row)} lists of {what}, not one per KV head or per query head"
        _require(len(row) in wanted, text)
        for head, one in enumerate(row):
            _require(one.dtype == torch.int64, f"head {head}: {what} are {one.dtype}, not int64")
            _require(len(one) > 0, f"head {head}: no {what}")
            ascending = bool((one[1:] > one[:-1]).all())
            _require(ascending, f"head {head}: {what} are not ascending and distinct: {_some(one)}")
            inside = int(one[0]) >= 0 and int(one[-1]) < case.length
            _require(inside, f"head {head}: {what} outside of the prompt: {_some(one)}")


def _some(positions: Tensor) -> str:
    numbers = [str(n) for n in positions.tolist()]
    return ", ".join(numbers if len(numbers) <= 8 else [*numbers[:4], "...", *numbers[-4:]])


def kept_positions(case: Case) -> None:
    """keeps distinct positions of the prompt, ascending, for every head"""
    _positions(case.kept_lists, case, "kept positions")


def kept_number(case: Case) -> None:
    """keeps as many tokens as the budget allows"""
    resolved = case.resolved
    eviction, tokens = resolved.eviction, resolved.rules[0].keep
    _require(not (case.covers and tokens), f"a budget of everything keeps {tokens} tokens")
    # lists of query heads may share the budget of their KV head
    wanted = case.length if tokens is None else eviction.own_tokens(tokens, case.group)
    for row in case.kept_lists:
        counts = [len(one) for one in row]
        if tokens is None or (eviction.meets_budget and not eviction.ragged):
            _require(set(counts) == {wanted}, f"heads keep {_counts(counts)} tokens, not {wanted}")
        elif eviction.ragged:
            mean = sum(counts) / len(counts)
            # rounding of a head's share
            _require(-1.5 <= mean - wanted <= 0.5, f"heads keep {mean:g} tokens on average, not {wanted}")
        else:
            most = wanted + eviction.excess
            _require(max(counts) <= most, f"heads keep {_counts(counts)} tokens, at most {most} are allowed")


def _counts(counts: Sequence[int]) -> str:
    return " and ".join(map(str, sorted(set(counts))))


def kept_alone(case: Case) -> None:
    """keeps of a prompt the same, whatever else is in the batch, and again at every call"""
    _require(
        _same(case.keep([1, 0]), case.kept_lists[::-1]), "what is kept changes with the order of the prompts"
    )


def read_slots(case: Case) -> None:
    """reads distinct slots of the cache, at most as many as the budget rule says"""
    slots = case.read_lists
    _positions(slots, case, "slots")
    most = case.resolved.rules[-1].read or case.length
    for one in (one for row in slots for one in row):
        _require(len(one) <= most, f"{len(one)} slots are read, the budget rule allows {most}")
        _require(not case.covers or len(one) == case.length, f"a budget of everything reads {len(one)} slots")


def read_alone(case: Case) -> None:
    """reads of a prompt the same, whatever else is in the batch, and again at every call"""
    same = _same(case.select([1, 0]), case.read_lists[::-1])
    _require(same, "what is read changes with the order of the prompts")


def _same(a: list[list[Tensor]], b: list[list[Tensor]]) -> bool:
    return all(len(x) == len(y) and all(map(torch.equal, x, y)) for x, y in zip(a, b, strict=True))


def read_appended(case: Case) -> None:
    """reads the same whether a token came with the prompt or was appended later"""
    resolved = case.resolved
    selection, tokens = resolved.selection, resolved.rules[-1].read
    if tokens is None or case.length < 2:
        return
    p = case.prompts
    k, v = p.k_BHTD[:1], p.v_BHTD[:1]
    q = p.q_BQTD[:1, :, -1].unflatten(1, (k.shape[1], -1))
    length = torch.tensor(case.length)
    whole = selection.select(
        q, k, k[:, :, :0], length, selection.prepare(k, v, 1, 0), tokens, DIM**-0.5
    ).long()
    early = case.length - 1
    state = selection.prepare(k[:, :, :early], v[:, :, :early], 1, 1)
    selection.append(state, k[:, :, early], v[:, :, early], torch.tensor([early]))
    parts = (k[:, :, :early], k[:, :, early:])
    later = selection.select(q, *parts, length, state, tokens, DIM**-0.5).long()
    same = all(torch.equal(a[a >= 0].unique(), b[b >= 0].unique()) for a, b in _lists(whole, later))
    _require(same, "other slots are read where the newest token was appended: see Selection.append")


def _lists(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(a.flatten(0, -2), b.flatten(0, -2), strict=True)


def layer_budgets(case: Case) -> None:
    """gives layers budgets whose mean is the budget"""
    resolved = case.resolved
    # other methods have budget rules of their own
    if not isinstance(case.method, Composite):
        return
    tokens = [rule.keep for rule in resolved.rules]
    if not resolved.eviction.at_prefill:
        _require(not any(tokens), "evicts after prefill, which at_prefill denies")
        tokens = [rule.hold for rule in resolved.rules]
    if not resolved.eviction.needs_budget:
        return
    mean = sum(n or case.length for n in tokens) / LAYERS
    wanted = min(case.tokens, case.length)
    _require(mean >= wanted, f"{mean:g} tokens per layer on average, fewer than the {wanted} of the budget")
    # integer steps from layer to layer may add half a token per layer
    most = wanted + LAYERS / 2
    text = f"{mean:g} tokens per layer on average, more than the {wanted} of the budget"
    _require(mean <= most or not resolved.eviction.meets_budget, text)


def snapshot_unchanged(case: Case) -> None:
    """leaves keys, values and queries as they are, which other methods read too"""
    snapshot = case.layer()
    before = {name: x.clone() for name, x in _fields(snapshot)}
    case.kept(snapshot)
    changed = [name for name, x in _fields(snapshot) if not torch.equal(x, before[name])]
    _require(not changed, f"changes {', '.join(changed)} of the snapshot in place")


def _fields(snapshot: LayerSnapshot) -> Iterator[tuple[str, Tensor]]:
    for one in dataclasses.fields(snapshot):
        if isinstance(value := getattr(snapshot, one.name), Tensor):
            yield one.name, value


def not_finite_shows(case: Case) -> None:
    """has scores that are not finite where the numbers it reads are not"""
    eviction = case.resolved.eviction
    for place in ("k_BHTD", "v_BHTD", "q_BQTD"):
        plain, other, broken = (_planted(case, place, value) for value in (None, 3.0, math.nan))
        scores = [list(tensors_in(eviction.scores(layer))) for layer in (plain, other)]
        if all(map(torch.equal, *scores)):
            continue
        try:
            check_scores(eviction.scores(broken), eviction, 0)
        except NotFiniteError:
            continue
        raise BrokenRule(
            f"NaN in {place[0]} gives ordinary scores, so that a broken model passes for a result"
        )


def _planted(case: Case, place: str, value: float | None) -> LayerSnapshot:
    """A layer in which a number of the last token's keys, values or queries is `value`."""
    p = case.prompts
    if value is not None:
        x = getattr(p, place).clone()
        x[0, 0, -1, 0] = value
        p = dataclasses.replace(p, **{place: x})
    return p.layer(case.method)


def dropped_slots(case: Case) -> None:
    """drops distinct slots while decoding, as many as it is asked for"""
    layer, kv_heads, counts = case.layer(), SHAPES[case.heads][1], (2, 1, 1)
    # a drop at every step, as far as parameters allow
    resolved = dataclasses.replace(case.resolved, eviction=case.resolved.eviction.eager())
    if resolved.rules[0].hold is None:
        return
    draw = torch.Generator().manual_seed(case.length)
    for lane in _lanes(case, layer, resolved, rows=2, room=sum(counts)):
        assert isinstance(lane, StoredLane) and lane.dropping is not None
        store = lane.dropping.store
        # a plain object: what the eviction chose is checked on its way to the store
        vars(store)["drop"] = functools.partial(_drop, store, store.drop)
        # a question of two tokens, which go at the first step
        for count in counts:
            k, v = (torch.randn(2, kv_heads, count, DIM, generator=draw)[:, lane.heads] for _ in range(2))
            q = torch.randn(2, kv_heads, case.group, count, DIM, generator=draw)[:, lane.heads]
            lane.append(k, v)
            if count > 1:
                lane.attend_many(q, DIM**-0.5)
            else:
                lane.attend(q[:, :, :, 0], DIM**-0.5, True)


def _drop(store: Rolling, drop: Callable[[Tensor], None], gone: Tensor) -> None:
    """Checks slots before they are dropped."""
    slots, held = store.count, store.read()[2]
    shape = (*held.shape[:2], gone.shape[-1])
    _require(
        gone.shape == shape,
        f"step: slots to drop have the shape {tuple(gone.shape)}, not [R, H, E] = {shape}",
    )
    for one in gone.flatten(0, 1).sort(-1).values:
        text = f"step: {_some(one)} are not {len(one)} distinct slots of {slots}"
        _require(len(one.unique()) == len(one) and int(one[0]) >= 0 and int(one[-1]) < slots, text)
    drop(gone)


def _lanes(
    case: Case, layer: LayerSnapshot, resolved: Resolved, rows: int, room: int
) -> list[Lane | StoredLane]:
    """The lanes of a layer, as the engine makes them."""
    rule, (kept, scores) = resolved.rules[layer.layer], case.kept(layer)
    carried = None
    if rule.hold is not None:
        carried = carried_numbers(layer, resolved.eviction, kept, {resolved.eviction: scores})
    return make_lanes(layer, resolved, rule, kept, slice(0, rows), room, carried=carried)


def bytes_of_formula(case: Case) -> None:
    """takes the bytes that its formula says"""
    cls, resolved = registry()[case.name], case.resolved
    formula = cls.bytes_formula.partition(";")[0]
    # a format's is text
    if not formula or cls.family == "format" or case.length < 100 or resolved.dense:
        return
    layer, kv_heads = case.layer(LAYERS - 1), SHAPES[case.heads][1]
    kept, _ = case.kept(layer)
    lanes = _lanes(case, layer, resolved, rows=1, room=NEW)
    counts = [case.length] if kept is None else [len(positions) for positions in kept.positions]
    # queries are held only while tokens may be dropped
    window = resolved.eviction.window if resolved.rules[-1].hold is not None else 0
    known = {
        "T": case.length,
        "M": NEW,
        "D": DIM,
        "element": 4,
        "keep": sum(counts) / len(counts),
        "G": case.group,
    }
    known |= {"page": getattr(resolved.selection, "page", None), "window": window}
    functions = {"__builtins__": {}, "ceil": math.ceil, "min": min, "max": max}
    wanted = kv_heads * eval(formula, functions, known)
    if kept is not None and kept.members is not None:
        wanted += sum(members.numel() for members in kept.members)
    found = sum(lane.resident_bytes()[0] for lane in lanes)
    _require(
        math.isclose(found, wanted), f"bytes_formula gives {wanted:g} bytes per layer, the cache has {found}"
    )


def stored_tokens(case: Case) -> None:
    """stores every token, and returns appended ones as they are read later"""
    p, rows, room = case.prompts, 2, 3
    k, v = p.k_BHTD[:1], p.v_BHTD[:1]
    store = case.method.format.store(k.clone(), v.clone(), rows, room)
    draw = torch.Generator().manual_seed(case.length)
    for n in range(1, room + 1):
        new = [torch.randn(rows, k.shape[1], 1, DIM, generator=draw) for _ in range(2)]
        back = store.append(*new)
        prefix, tail = store.read()[:2], store.read()[2:4]
        end = store.count - prefix[0].shape[2]
        _require(store.count == case.length + n, f"holds {store.count} tokens of {case.length + n}")
        for what, x, y, z in zip(("keys", "values"), prefix, tail, back, strict=True):
            held = torch.cat([x.expand(rows, -1, -1, -1), y[:, :, :end]], dim=2)
            same = held.shape[2] == store.count and torch.equal(held[:, :, -1:], z.to(held.dtype))
            _require(same, f"the {what} that append returned are not those that are read")
    total, fixed = store.bytes()
    _require(
        0 <= fixed <= total and total > 0,
        f"counts {total} bytes, of which {fixed} do not depend on the dtype",
    )


def _evicts(method: Method) -> bool:
    return method.parts()[0].evicts


def _selects(method: Method) -> bool:
    return method.parts()[1].selects


def _always(method: Method) -> bool:
    return True


@dataclass(frozen=True)
class Rule:
    """One rule of the contract.

    Attributes:
        check: raises `BrokenRule`; its docstring says what is demanded.
        applies: whether a method is asked for it.
        every_budget: whether it runs at every budget, or only at half of the prompt.
    """

    check: Callable[[Case], None]
    applies: Callable[[Method], bool]
    every_budget: bool = False

    def __str__(self) -> str:
        return self.check.__doc__ or ""


RULES = (
    Rule(kept_positions, _evicts, every_budget=True),
    Rule(kept_number, _evicts, every_budget=True),
    Rule(kept_alone, _evicts, every_budget=True),
    Rule(layer_budgets, _evicts, every_budget=True),
    Rule(snapshot_unchanged, _evicts),
    Rule(not_finite_shows, _evicts),
    Rule(dropped_slots, lambda method: _evicts(method) and method.parts()[0].steps),
    Rule(read_slots, _selects, every_budget=True),
    Rule(read_alone, _selects, every_budget=True),
    Rule(read_appended, _selects),
    Rule(bytes_of_formula, _always),
    Rule(stored_tokens, _always),
)


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        rule: what it demands.
        broken: how it is broken, and in which case; None where it is not.
    """

    rule: str
    broken: str | None


def check(name: str, params: Mapping[str, Any] | None = None, rules: Sequence[Rule] = RULES) -> list[Finding]:
    """Check a registered method; each rule stops at the first case that breaks it.

    Args:
        name: the method.
        params: its parameters, where they are not the defaults.
        rules: those of them that apply to the method are checked.

    Raises:
        UserError: an unknown name, or a parameter that is not allowed.
    """
    every = list(cases(name, params or {}))
    half = [case for case in every if case.tokens == max(1, case.length // 2)]
    asked = [rule for rule in rules if rule.applies(every[0].method)]
    return [Finding(str(rule), _first_broken(rule, every if rule.every_budget else half)) for rule in asked]


def _first_broken(rule: Rule, found: Sequence[Case]) -> str | None:
    for case in found:
        try:
            rule.check(case)
        except BrokenRule as broken:
            return f"{case}: {broken}"
        except Exception as error:
            # a method of the user's can raise anything
            return f"{case}: {_raised(error, case)}"
    return None


def _raised(error: Exception, case: Case) -> str:
    """The type and the text of an error, and the line of the method's own file where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    files = {inspect.getsourcefile(type(part)) for part in (case.method, *case.method.parts())}
    frame = next((frame for frame in reversed(frames) if frame.filename in files), frames[-1])
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({frame.filename}, line {frame.lineno})"
