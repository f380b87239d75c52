"""Drawn tokens: their distribution, their pairing between methods, and whole runs."""

import pytest
import torch

from kvbench.engine.draw import Draw


def test_tokens_have_the_models_probabilities():
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0]])
    for temperature in (0.5, 2.0):
        counts = torch.zeros(4)
        for step in range(4000):
            counts[Draw(temperature, 1.0, "a")(logits, step)] += 1
        expected = (logits[0] / temperature).softmax(-1)
        assert (counts / 4000 - expected).abs().max() < 0.03


def test_top_p_draws_from_the_fewest_likeliest_that_suffice():
    logits = torch.tensor([[0.15, 0.5, 0.3, 0.05]]).log()
    for top_p, allowed in ((0.5, {1}), (0.6, {1, 2}), (0.81, {0, 1, 2}), (1.0, {0, 1, 2, 3}), (1e-9, {1})):
        drawn = {int(Draw(1.0, top_p, "b")(logits, step)) for step in range(300)}
        assert drawn == allowed, top_p


def test_rows_share_their_random_numbers_and_steps_and_keys_do_not():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    draw = Draw(1.0, 1.0, "0/1/2")
    many = torch.cat([torch.randn(3, 50), logits, torch.randn(2, 50)])
    tokens = [int(draw(logits, step)) for step in range(20)]
    assert tokens == [int(draw(many, step)[3]) for step in range(20)]
    assert len(set(tokens)) > 5
    assert tokens != [int(Draw(1.0, 1.0, "0/1/3")(logits, step)) for step in range(20)]


@pytest.mark.parametrize("rows", [1, 5])
def test_a_certain_token_is_drawn_whatever_the_number(rows):
    logits = torch.full((rows, 10), -1e9)
    logits[:, 4] = 0
    assert Draw(1.0, 0.9, "x")(logits, 0).tolist() == [4] * rows


def test_each_row_may_be_at_a_step_of_its_own():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).expand(9, -1)
    draw = Draw(1.0, 0.9, "0/1/2")
    expected = [int(draw(logits[:1], step)) for step in (5, 0, 7, 7, 3)]
    assert draw(logits, [5, 0, 7, 7, 3]).tolist()[:5] == expected and len(set(expected)) > 2
