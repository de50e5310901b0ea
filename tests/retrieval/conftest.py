"""Fixtures of the retrieval tests."""

from __future__ import annotations

import pytest
from retrieval_toys import ToyEncoder, entry

from polyptych.schema import Example


@pytest.fixture
def encoder() -> ToyEncoder:
    return ToyEncoder()


@pytest.fixture
def entries() -> list[Example]:
    return [entry(number) for number in range(20)]
