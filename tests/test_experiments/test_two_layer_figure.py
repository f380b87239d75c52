"""What the figure draws together, and that its lines are the costs."""

import numpy as np
import pytest

from kvbench.experiments.two_layer import figure
from kvbench.experiments.two_layer.breakeven import Fleet
from kvbench.experiments.two_layer.claude_api import PlacementCost
from kvbench.experiments.two_layer.compare import Comparison
from kvbench.experiments.two_layer.config import TwoLayerConfig
from kvbench.experiments.two_layer.hosted import ServingCost
from kvbench.experiments.two_layer.simulate import Load

LOAD = Load(1.0, 0.5, 0.0, 1.0, 1.0)
CFG = TwoLayerConfig(run_dir="x", method={"dense": {"method": "dense"}})


def way(name, capacity):
    return ServingCost(name, "modelled", Fleet(1.0, capacity), (LOAD,), LOAD, 1)


def drawn(*served):
    priced = [PlacementCost("none", 4.0, 4.0, 4.0, 0.0), PlacementCost("automatic", 1.0, 0.9, 1.2, 0.9)]
    found = Comparison([], [], [], [], priced, served, "m on d", "", [], [], [], [], [])
    axes = figure.per_session(found, CFG).axes[0]
    return {
        str(line.get_label()): line for line in axes.get_lines() if not str(line.get_label()).startswith("_")
    }


def test_ways_to_serve_that_look_alike_share_a_line():
    lines = drawn(way("dense", 100), way("rocketkv", 110), way("fp8", 111), way("none fits", 0))
    assert [name for name in lines if not name.startswith(("api", "both"))] == ["dense, rocketkv", "fp8"]


def test_lines_are_dollars_per_session():
    lines = drawn(way("dense", 100))

    def at(label, sessions):
        found = lines[label]
        place = int(np.argmin(abs(found.get_xdata() - sessions)))
        assert found.get_xdata()[place] == pytest.approx(sessions, rel=0.02)
        return found.get_ydata()[place]

    assert at("api: no cache_control", 300) == 4.0
    assert at("api: automatic", 300) == 1.0
    assert at("dense", 10) == pytest.approx(2.4, rel=0.02)
    both = "both: best device, the rest on the API"
    assert (at(both, 10), at(both, 100)) == (1.0, pytest.approx(0.24, rel=0.02))


def test_only_the_api_is_drawn_if_no_device_can_serve():
    assert set(drawn(way("dense", 0))) == {"api: no cache_control", "api: automatic"}
