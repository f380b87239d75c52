"""Every claim, checked once for all tests."""

from pathlib import Path

import pytest

from kvbench import claims
from kvbench.claims import evidence

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def results() -> list[claims.Result]:
    """As committed: with the results in the checkout and no other runs."""
    return claims.evaluate(evidence.load(ROOT / "results"))


@pytest.fixture(scope="session")
def by_id(results) -> dict[str, claims.Result]:
    return {result.claim.id: result for result in results}
