import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.report import clusters, significance, stats
from kvbench.report.clusters import Clusters

SCORES = st.lists(st.sampled_from([0, 0.25, 0.5, 1]), min_size=1, max_size=8)


def alone(values):
    """Each value a cluster of its own."""
    return Clusters(values, range(len(values)))


@given(SCORES, st.integers(2, 4), st.randoms())
def test_repeats_of_a_cluster_and_the_order_of_rows_change_nothing(scores, times, random):
    rows = [(score, name) for name, score in enumerate(scores)] * times
    random.shuffle(rows)
    repeated, single = Clusters(*zip(*rows, strict=True)), alone(scores)
    assert len(repeated) == len(scores) and repeated.values.tolist() == single.values.tolist()
    assert stats.score_interval(repeated) == stats.score_interval(single)
    assert significance.difference_p_value(repeated) == significance.difference_p_value(single)
    assert stats.kl_interval(repeated) == pytest.approx(stats.kl_interval(single), nan_ok=True)


def test_turns_are_averaged_and_missing_values_are_none():
    turns = Clusters([1, 0, np.nan, 0.5, np.nan], ["a", "a", "a", "b", "c"])
    assert turns.values.tolist() == [0.5, 0.5] and turns.mean == 0.5
    assert len(Clusters([], [])) == 0 and math.isnan(Clusters([np.nan], ["a"]).mean)


def test_turns_that_cancel_are_no_difference():
    assert Clusters([0.8 - 0.7, 0.5 - 0.6], ["a", "a"]).different == 0


def test_the_averaging_cannot_be_skipped():
    with pytest.raises(TypeError):
        Clusters([1.0, 0.0])  # type: ignore[call-arg]
    for function in (
        stats.score_interval, stats.difference_interval, stats.kl_interval, significance.difference_p_value
    ):  # fmt: skip
        with pytest.raises((AttributeError, TypeError)):
            function([1.0, 0.0, 0.5, 0.25, 0.0])
    with pytest.raises(ValueError, match="without the name"):
        Clusters([1.0, 0.0], ["a", None])
    with pytest.raises(ValueError, match="shorter"):
        Clusters([1.0, 0.0], ["a"])


def test_tasks_count_alike_however_many_samples_each_has():
    # task x: 4 samples of mean 0.5; task y: 1 sample of 1
    both = Clusters([1, 0, 1, 0, 1], "abcde", strata="xxxxy")
    assert both.mean == pytest.approx(0.75) and len(both) == 5 and both.weight == 2.5
    assert Clusters([1, 0, 1], "abc", strata="xxx").values.tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="two strata"):
        Clusters([1, 0], "aa", strata="xy")


def test_names_of_clusters():
    rows = pd.DataFrame(
        [
            {"task": "t", "length": 0, "seed": 0, "sample_hash": "h", "cell": "1"},
            {"task": "t", "length": 0, "seed": 1, "sample_hash": "h", "cell": "2"},
            {"task": "u", "length": 0, "seed": 0, "sample_hash": "h", "cell": "3"},
            {"task": "t", "length": 0, "seed": 0, "sample_hash": "h of 2", "cell": "4"},
            {"task": "t", "length": 0, "seed": 0, "sample_hash": "i", "cell": "5", "meta": {"depth": 0.0}},
            {"task": "t", "length": 0, "seed": 0, "sample_hash": "j", "meta": {"line": 3, "turn": 0}},
            {"task": "t", "length": 0, "seed": 1, "sample_hash": "k", "meta": {"line": 3, "turn": 1}},
            {"task": "t", "length": 0, "seed": 0, "sample_hash": "l", "meta": {"conversation": 3, "turn": 0}},
            {"task": "t", "length": 0, "seed": 1, "sample_hash": "m", "meta": {"conversation": 3, "turn": 0}},
            {"task": "t", "length": 9, "seed": 1, "sample_hash": "m", "meta": {"conversation": 3, "turn": 0}},
            {"task": "t", "length": 0, "seed": 0, "sample_hash": None, "cell": "6"},
            {"task": "t", "length": 0, "seed": 0, "sample_hash": None, "cell": "7"},
        ]
    )
    found = clusters.names(rows)
    # seeds of one prompt and turns of one line are together, all else is apart
    assert found[0] == found[1] and found[5] == found[6]
    assert len(set(found)) == len(rows) - 2
