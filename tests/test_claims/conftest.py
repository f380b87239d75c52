"""Claims by their ids."""

import pytest

from kvbench import claims


@pytest.fixture(scope="session")
def by_id(results) -> dict[str, claims.Result]:
    return {result.claim.id: result for result in results}
