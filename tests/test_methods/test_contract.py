"""Every registered method meets its contract, and each rule of the contract can fail.

A new method is tested without an edit here. `kvbench check` runs the same rules on a method of the user's.
"""

import importlib
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from kvbench_testing.cases import EVERY, FORMATS, name_of

from kvbench.engine import contract
from kvbench.engine.compress import make_lanes
from kvbench.methods import Eviction, Format, Kept, Selection, build, register
from kvbench.methods.storage import Split

RULES = {rule.check.__name__: rule for rule in contract.RULES}


@pytest.mark.parametrize("case", [*EVERY, *FORMATS], ids=name_of)
def test_the_contract(case):
    broken = [finding for finding in contract.check(*case) if finding.broken]
    assert not broken


def test_every_rule_applies_to_a_shipped_method():
    asked = {rule.check.__name__ for rule in contract.RULES for name, params in EVERY
             if rule.applies(build({"method": name, **params}))}  # fmt: skip
    assert asked == set(RULES)


def test_chunks_of_kvpress_never_exceed_the_budget_but_for_the_one_that_is_kept_in_any_case():
    for case in contract.cases("chunkkv", {"mode": "kvpress", "scorer": "keydiff"}):
        tokens = case.resolved.rules[0].keep or case.length
        assert all(len(one) <= tokens for row in case.kept_lists for one in row)
        wanted = min(case.tokens, case.length)
        least = max(wanted, 20) if case.length >= 20 else wanted
        assert {rule.keep or case.length for rule in case.resolved.rules} == {least}


def test_ragged_heads_take_no_more_than_they_keep():
    case = contract.Case("adakv", "mha", 331, 100)
    layer = case.layer()
    kept, _ = case.kept(layer)
    assert kept is not None
    lanes = make_lanes(layer, case.resolved, case.resolved.rules[0], kept, slice(0, 1), contract.NEW)
    assert len({len(positions) for positions in kept.positions}) > 1
    assert len(lanes) == 4 and sum(lane.kept for lane in lanes) <= 4 * 100.5


# mutations: a method that is right but for one thing


@dataclass(frozen=True, kw_only=True)
class Plain(Eviction):
    """Keeps the tokens whose keys have the largest first channel."""

    source = "own"

    def scores(self, snapshot):
        return snapshot.k_HTD[..., 0].clone()


class Unsorted(Plain):
    def keep(self, snapshot, scores, quota):
        return Kept([one.flip(0) for one in super().keep(snapshot, scores, quota).positions])


class Twice(Plain):
    def keep(self, snapshot, scores, quota):
        kept = super().keep(snapshot, scores, quota).positions
        return Kept([torch.cat([one[:-1], one[-2:-1]]) if len(one) > 1 else one for one in kept])


class Beyond(Plain):
    def keep(self, snapshot, scores, quota):
        return Kept([one + 1 for one in super().keep(snapshot, scores, quota).positions])


class Short(Plain):
    def keep(self, snapshot, scores, quota):
        return Kept([one.int() for one in super().keep(snapshot, scores, quota).positions])


class OneList(Plain):
    def keep(self, snapshot, scores, quota):
        return Kept(super().keep(snapshot, scores, quota).positions[:1])


class Empty(Plain):
    def keep(self, snapshot, scores, quota):
        return Kept([one[:0] for one in super().keep(snapshot, scores, quota).positions])


class OneFewer(Plain):
    def keep(self, snapshot, scores, quota):
        return Kept(
            [one[:-1] if len(one) > 1 else one for one in super().keep(snapshot, scores, quota).positions]
        )


class OneMore(Plain):
    def keep(self, snapshot, scores, quota):
        return super().keep(snapshot, scores, contract.Quota(quota.tokens + 1))


class RaggedBeyond(OneMore):
    ragged = True

    def keep(self, snapshot, scores, quota):
        return super().keep(snapshot, scores, contract.Quota(min(quota.tokens + 1, snapshot.length - 1)))


class AlwaysEvicts(Plain):
    def layer_tokens(self, quota, shape):
        return [max(1, min(quota.tokens, shape.compressed - 1))] * shape.num_layers


class Unseeded(Plain):
    def scores(self, snapshot):
        return torch.rand(snapshot.heads, snapshot.length)


class Generous(Plain):
    def layer_tokens(self, quota, shape):
        return [2 * quota.tokens + 2] * shape.num_layers


class Stingy(Plain):
    def layer_tokens(self, quota, shape):
        return [max(1, quota.tokens // 2)] * shape.num_layers


class InPlace(Plain):
    def scores(self, snapshot):
        return snapshot.k_HTD.mul_(2)[..., 0].clone()


class Hides(Plain):
    def scores(self, snapshot):
        return super().scores(snapshot).nan_to_num()


class Rolls(Plain):
    def step(self, view, drop):
        return torch.arange(drop).expand(*view.k_RHCD.shape[:2], -1)


class DropsTwice(Rolls):
    def step(self, view, drop):
        return super().step(view, drop) * 0


class DropsBeyond(Rolls):
    def step(self, view, drop):
        return super().step(view, drop) + view.k_RHCD.shape[2]


class DropsForAllHeads(Rolls):
    def step(self, view, drop):
        return super().step(view, drop)[:, :1]


class DropsNothing(Rolls):
    def step(self, view, drop):
        return None


class MoreBytes(Plain):
    bytes_formula = "3 * keep * D * element; too many"


class Raises(Plain):
    def scores(self, snapshot):
        return snapshot.length // 0


@dataclass(frozen=True, kw_only=True)
class Reads(Selection):
    """Reads the tokens whose keys have the largest first channel, which it stores itself."""

    source = "own"
    bytes_formula = "2 * T * D * element + (T + M) * element"

    def prepare(self, k_BHKD, v_BHKD, rows, room):
        state = torch.full((rows, k_BHKD.shape[1], k_BHKD.shape[2] + room), -torch.inf)
        state[..., : k_BHKD.shape[2]] = k_BHKD[..., 0]
        return state

    def append(self, state, k_RHD, v_RHD, slot):
        state[..., slot] = k_RHD[..., :1]

    def select(self, q_RHGD, k_BHKD, k_tail_RHMD, length, state, tokens, scaling):
        return state[..., : int(length)].topk(min(tokens, int(length))).indices.sort().values.int()

    def resident_bytes(self, state):
        return state[0].numel() * state.element_size()


class ReadsMore(Reads):
    def select(self, *args):
        q, k, tail, length, state, tokens, scaling = args
        return super().select(q, k, tail, length, state, tokens + 1, scaling)


class ReadsBeyond(Reads):
    def select(self, *args):
        return super().select(*args) + 1


class ReadsAtRandom(Reads):
    def select(self, *args):
        return super().select(args[0], args[1], args[2], args[3], torch.rand_like(args[4]), *args[5:])


class ForgetsAppended(Reads):
    def append(self, state, k_RHD, v_RHD, slot):
        pass


class UncountedCopy(Reads):
    def resident_bytes(self, state):
        return 0


class Halves(Split):
    def append(self, k_RHND, v_RHND):
        k, v = super().append(k_RHND, v_RHND)
        return k / 2, v


class NoBytes(Split):
    def bytes(self):
        return 0, 0


class LosesTokens(Split):
    def append(self, k_RHND, v_RHND):
        return k_RHND, v_RHND


@dataclass(frozen=True, kw_only=True)
class Stores(Format):
    source = "own"
    stored: ClassVar[type[Split]] = Split

    def store(self, k_BHKD, v_BHKD, rows, room):
        return self.stored((self.codec(k_BHKD), self.codec(v_BHKD)), k_BHKD, v_BHKD, rows, room)


class ReturnsHalves(Stores):
    stored = Halves


class CountsNoBytes(Stores):
    stored = NoBytes


class StoresLess(Stores):
    stored = LosesTokens


MUTATIONS = [
    ("kept_positions", Unsorted, "not ascending and distinct"),
    ("kept_positions", Twice, "not ascending and distinct"),
    ("kept_positions", Beyond, "outside of the prompt"),
    ("kept_positions", Short, "torch.int32, not int64"),
    ("kept_positions", OneList, "1 lists of kept positions"),
    ("kept_positions", Empty, "no kept positions"),
    ("kept_number", OneFewer, "tokens, not "),
    ("kept_number", OneMore, "tokens, not "),
    ("kept_number", RaggedBeyond, "tokens on average, not "),
    ("kept_number", AlwaysEvicts, "a budget of everything keeps"),
    ("kept_alone", Unseeded, "changes with the order"),
    ("layer_budgets", Generous, "more than the 1 of the budget"),
    ("layer_budgets", Stingy, "fewer than the"),
    ("snapshot_unchanged", InPlace, "changes k_HTD of the snapshot"),
    ("not_finite_shows", Hides, "NaN in k gives ordinary scores"),
    ("dropped_slots", DropsTwice, "are not 3 distinct slots"),
    ("dropped_slots", DropsBeyond, "are not 3 distinct slots"),
    ("dropped_slots", DropsForAllHeads, "not [R, H, E] = (2, 4, 3)"),
    ("dropped_slots", DropsNothing, "AssertionError"),
    ("bytes_of_formula", MoreBytes, "bytes_formula gives"),
    ("bytes_of_formula", UncountedCopy, "bytes_formula gives"),
    ("read_slots", ReadsMore, "the budget rule allows"),
    ("read_slots", ReadsBeyond, "slots outside of the prompt"),
    ("read_alone", ReadsAtRandom, "changes with the order"),
    ("read_appended", ForgetsAppended, "see Selection.append"),
    ("stored_tokens", ReturnsHalves, "keys that append returned are not those"),
    ("stored_tokens", CountsNoBytes, "counts 0 bytes"),
    ("stored_tokens", StoresLess, "tokens of 2"),
]


@pytest.fixture
def registered(monkeypatch):
    """Registers classes for one test."""
    # `kvbench.methods.registry` is the function
    module = importlib.import_module("kvbench.methods.registry")
    monkeypatch.setattr(module, "_CLASSES", module.registry())
    return lambda cls: register("mine")(dataclass(frozen=True, kw_only=True)(cls))


@pytest.mark.parametrize(
    ("rule", "cls", "text"), MUTATIONS, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_broken_rule_is_found(rule, cls, text, registered):
    registered(cls)
    (finding,) = contract.check("mine", rules=[RULES[rule]])
    assert finding.broken and text in finding.broken


def test_every_rule_has_a_mutation():
    assert {rule for rule, *_ in MUTATIONS} == set(RULES)


@pytest.mark.parametrize("cls", [Plain, Rolls, Reads, Stores], ids=lambda cls: cls.__name__)
def test_the_methods_that_are_mutated_are_right(cls, registered):
    registered(type(cls.__name__, (cls,), {}))
    assert not [finding for finding in contract.check("mine") if finding.broken]


def test_an_error_of_the_method_is_a_broken_rule_that_names_its_line(registered):
    registered(Raises)
    (finding,) = contract.check("mine", rules=[RULES["kept_number"]])
    assert finding.broken is not None
    assert finding.broken.startswith(
        "4 query heads, 4 KV heads, 7 prompt tokens, budget 1: ZeroDivisionError"
    )
    assert "test_contract.py, line " in finding.broken


def test_the_earlier_signature_of_keep_is_refused():
    class Earlier(Eviction):
        def keep(self, snapshot, scores, tokens, earlier, ratio=None):  # type: ignore[override]
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"Earlier.keep takes \(self, snapshot, scores, quota\)"):
        register("earlier")(dataclass(frozen=True)(Earlier))
