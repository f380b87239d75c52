import re

import pytest

from kvbench import tasks

NOISE = "The lamp is bright. The road is long. The river is calm. We walk on. Home is near now."


def samples(renderer, n=2, length=2048, **values):
    return tasks.build("t", {"family": "vt", **values}).samples(n, 0, length, renderer)


def parts(sample):
    """The example and the puzzle."""
    example, puzzle = sample.context.split("\n\nThe text below")
    return example, puzzle


def solve(text, number):
    """All variables that have the number, by following the assignments in the order of the text."""
    found = {}
    for name, number_, other in re.findall(r"VAR ([A-Z]+) = (?:(\d+)|VAR ([A-Z]+))", text):
        found[name] = number_ or found[other]
    return {name for name, value in found.items() if value == number}


@pytest.mark.parametrize(("chains", "hops"), [(1, 4), (3, 4), (2, 1), (1, 7)])
def test_following_the_assignments_gives_the_gold(renderer, chains, hops):
    for sample in samples(renderer, chains=chains, hops=hops):
        _, puzzle = parts(sample)
        number = re.search(r"value (\d{5})\?", sample.question).group(1)
        assert solve(puzzle, number) == set(sample.gold)
        assert len(sample.gold) == hops + 1
        assert all(re.fullmatch("[A-Z]{5}", name) for name in sample.gold)
        assert len(re.findall("VAR [A-Z]+ =", puzzle)) == chains * (hops + 1)
        assert f" {hops + 1} variables" in sample.answer_prefix
        assert number in sample.answer_prefix


def test_the_example_is_solved_and_differs_from_sample_to_sample(renderer):
    numbers = set()
    for sample in samples(renderer, n=3):
        example, _ = parts(sample)
        number, answer = re.search(r"value (\d{5}), namely: ([A-Z ]+)$", example).groups()
        assert solve(example, number) == set(answer.split())
        assert all(re.fullmatch("[A-Z]{3}", name) for name in answer.split())
        assert f"value {number}?" in example
        numbers.add(number)
    assert len(numbers) == 3


@pytest.mark.parametrize(("length", "most"), [(1024, 400), (2048, 500), (8192, 500)])
def test_the_example_is_no_longer_than_rulers(renderer, length, most):
    example, _ = parts(samples(renderer, n=1, length=length)[0])
    assert len(renderer.offsets(example)) <= most
    assert example.count(NOISE) >= 5
    if length >= 2048:
        assert len(renderer.offsets(example)) > 0.85 * most


def test_the_chain_is_in_noise(renderer):
    _, puzzle = parts(samples(renderer, n=1)[0])
    lines = puzzle.split("\n\n", 1)[1].split("\n")
    assert {line for line in lines if not line.startswith("VAR ")} == {NOISE}
