"""Plain data into dataclasses."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from kvbench.config.errors import UserError
from kvbench.config.typed import as_yaml, build


@dataclass(frozen=True, kw_only=True)
class Part:
    size: int = 1

    def __post_init__(self) -> None:
        if self.size > 9:
            raise UserError(f"size: {self.size} is too big")


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str
    share: float = 0.5
    on: bool = False
    mode: Literal["fast", "slow"] = "fast"
    split: Literal["auto"] | float = "auto"
    limit: int | None = None
    sizes: tuple[int, ...] = ()
    part: Part = Part()
    more: dict[str, Any] = field(default_factory=dict)


def test_everything_given() -> None:
    data = {
        "name": "a",
        "share": 1,
        "on": True,
        "mode": "slow",
        "split": 0.3,
        "limit": 4,
        "sizes": [1, 2],
        "part": {"size": 3},
        "more": {"x": [1, "y"]},
    }
    whole = build(Whole, data)
    assert whole == Whole(**{**data, "share": 1.0, "sizes": (1, 2), "part": Part(size=3)})
    assert type(whole.share) is float


def test_defaults_and_single_values() -> None:
    assert build(Whole, {"name": "a"}) == Whole(name="a")
    assert build(Whole, {"name": "a", "sizes": 3, "limit": None, "split": "auto"}) == Whole(
        name="a", sizes=(3,)
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "top.name: missing"),
        (3, "top: 3 is not a set of keys (name, share, "),
        ({"nam": "a"}, "top.nam: there is no key 'nam' (did you mean name?); known: name, share, "),
        ({"name": 3}, "top.name: 3 is not text"),
        ({"on": 1}, "top.on: 1 is not true or false"),
        ({"limit": True}, "top.limit: True is not a whole number"),
        ({"limit": 1.0}, "top.limit: 1.0 is not a whole number"),
        ({"share": "half"}, "top.share: 'half' is not a number"),
        ({"share": None}, "top.share: None is not a number"),
        ({"mode": "fsat"}, "top.mode: there is no choice 'fsat' (did you mean fast?); known: fast, slow"),
        ({"split": "atuo"}, "top.split: 'atuo' is not a number, and not auto"),
        ({"sizes": [1, "x"]}, "top.sizes: 'x' is not a whole number"),
        ({"part": 3}, "top.part: 3 is not a set of keys (size)"),
        ({"part": {"siz": 3}}, "top.part.siz: there is no key 'siz' (did you mean size?); known: size"),
        ({"part": {"size": 10}}, "top.part.size: 10 is too big"),
        ({"more": [1]}, "top.more: [1] is not a set of keys"),
    ],
)
def test_mistakes_name_the_key(data: Any, message: str) -> None:
    given = {"name": "a", **data} if isinstance(data, dict) and data and "nam" not in data else data
    with pytest.raises(UserError) as error:
        build(Whole, given, "top")
    assert str(error.value).startswith(message)


def test_a_configuration_as_yaml_is_read_back() -> None:
    whole = Whole(name="a", sizes=(1, 2), part=Part(size=3), more={"x": (1, "y")})
    data = yaml.safe_load(as_yaml(whole, name="b", extra=1))
    assert data.pop("extra") == 1
    assert data["more"] == {"x": [1, "y"]}
    assert build(Whole, {**data, "name": "a"}) == Whole(**{**vars(whole), "more": {"x": [1, "y"]}})
