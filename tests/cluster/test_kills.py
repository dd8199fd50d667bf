"""The whole driver is killed, again and again: the tables in the end are those of an undisturbed run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cluster.commands import running
from tests.cluster.kills import (
    ENDS,
    FILTERS,
    GOES_ON,
    MAKES_TABLE,
    RECORDS,
    SCORES,
    SEED,
    STARTS,
    Moment,
    Source,
    Undisturbed,
    assert_accounted,
    assert_same,
    kill_at,
    reconciles,
)

pytestmark = pytest.mark.usefixtures("own_tmpdir")


def moments(source: Source) -> list[Moment]:
    """Return the kills of a source's runs, from Spark's start to the last commit to `runs`.

    Steps that know the source are hit in all three. The others have code of their own: files alone show them.
    """
    of_source = [SCORES, GOES_ON, reconciles(source)]
    if source.folder.name != "files":
        return of_source
    return [STARTS, MAKES_TABLE, RECORDS, *of_source, FILTERS, ENDS]


def killed_again_and_again(
    undisturbed: Undisturbed, source: Source, folder: Path, moments: Sequence[Moment]
) -> list[str]:
    """Run with a kill at each moment; return the steps that the kills hit."""
    hit: list[str] = []
    chance = random.Random(SEED)  # noqa: S311 - to be repeated, not to be secret
    print(f"\nKILL_SEED={SEED}")  # noqa: T201 - shown where a test fails, and with -s
    for moment in moments:
        arguments = undisturbed.in_small_batches(source, folder / "out")
        with running(folder / "cwd", *arguments) as command:
            where = kill_at(command, moment, folder / "out", chance)
        print(f"kill {len(hit) + 1}: {where or f'none: it ended before {moment.name}'}")  # noqa: T201
        hit += [] if where is None else [where]
    return hit


ROUNDS = [
    pytest.param("files", False, id="files"),
    *(
        pytest.param(name, True, id=f"{name}-all", marks=pytest.mark.long)
        for name in ("files", "tars", "parquet")
    ),
]


@pytest.mark.parametrize(("name", "is_all"), ROUNDS)
def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(
    undisturbed: Undisturbed, tmp_path: Path, name: str, *, is_all: bool
) -> None:
    source, output = undisturbed.sources[name], tmp_path / "out"
    chosen = moments(source) if is_all else [moments(source)[3], moments(source)[6]]  # SCORES, FILTERS
    hit = killed_again_and_again(undisturbed, source, tmp_path, chosen)
    # A run that ends before its kill is replaced by a kill at the start, which cannot come too late.
    missed = len(chosen) - len(hit)
    hit += killed_again_and_again(undisturbed, source, tmp_path, [STARTS] * missed)
    assert len(hit) == len(chosen)
    begun = [where for where in hit if where.startswith(("in micro-batch", "after ", "filtering"))]
    assert len(begun) >= len(hit) / 2
    with running(tmp_path / "cwd", *undisturbed.in_small_batches(source, output)) as command:
        command.end()
    assert_same(output, undisturbed.outputs[name])
    assert_accounted(output, source.num_images)
    assert_accounted(undisturbed.outputs[name], source.num_images)
