"""For any bytes, each reader returns a result or raises its own error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.examples import EXAMPLES
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS

Check = Callable[[bytes], None]

SEEDS = [
    pytest.param(target.check, content, id=f"{name}-{kind}")
    for name, target in TARGETS.items()
    for kind, content in target.seeds().items()
]


@pytest.mark.parametrize(("check", "seed"), SEEDS)
def test_a_seed_itself_is_read(check: Check, seed: bytes) -> None:
    check(seed)


@pytest.mark.parametrize(("check", "seed"), SEEDS)
def test_a_mutated_file_has_one_outcome(check: Check, seed: bytes) -> None:
    EXAMPLES(given(mutated(seed))(check))()


@pytest.mark.parametrize("name", TARGETS)
@EXAMPLES
@given(content=st.binary(max_size=600))
def test_random_bytes_have_one_outcome(name: str, content: bytes) -> None:
    TARGETS[name].check(content)
