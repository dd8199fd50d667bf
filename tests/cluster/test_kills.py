"""The whole driver is killed, again and again: the tables in the end are those of an undisturbed run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from tests import java
from tests.cluster.commands import Command, running
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
from tests.s3 import PYTHON, Fault, S3Server

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
    start: Callable[[], AbstractContextManager[Command]],
    output: Path,
    moments: Sequence[Moment],
    meanwhile: Callable[[], object] = lambda: None,
) -> list[str]:
    """Start a run for each moment, and kill it there; then for each that ended before, kill one at its start.

    Args:
        start: Starts the run.
        output: Its output, or a copy that `meanwhile` makes.
        moments: When to kill.
        meanwhile: Called again and again while a run lives, and once it is killed.

    Returns:
        The steps that the kills hit.
    """
    hit: list[str] = []
    chance = random.Random(SEED)  # noqa: S311 - to be repeated, not to be secret
    print(f"\nKILL_SEED={SEED}")  # noqa: T201 - shown where a test fails, and with -s

    def kill(moment: Moment) -> None:
        with start() as command:
            where = kill_at(command, moment, output, chance, meanwhile)
        print(f"kill {len(hit) + 1}: {where or f'none: it ended before {moment.name}'}")  # noqa: T201
        hit.extend([] if where is None else [where])

    for moment in moments:
        kill(moment)
    for _ in range(len(moments) - len(hit)):
        kill(STARTS)
    assert len(hit) == len(moments)
    begun = [where for where in hit if where.startswith(("in micro-batch", "after ", "filtering"))]
    assert len(begun) >= len(hit) / 2
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
    start = partial(running, tmp_path / "cwd", *undisturbed.in_small_batches(source, output))
    killed_again_and_again(start, output, chosen)
    with start() as command:
        command.end()
    assert_same(output, undisturbed.output(name))
    assert_accounted(output, source.num_images)
    assert_accounted(undisturbed.output(name), source.num_images)


@pytest.mark.long
@pytest.mark.parametrize("name", ["files", "tars", "parquet"])
def test_killed_on_s3_too_where_one_request_in_twenty_fails(
    undisturbed: Undisturbed, tmp_path: Path, name: str
) -> None:
    """Images, tables and checkpoints are objects; the test looks at a copy of them."""
    source, copy, known = undisturbed.sources[name], tmp_path / "copy", dict[str, str]()
    java.s3_jars()
    with S3Server() as server:
        images = {path: path.read_bytes() for path in source.folder.rglob("*") if path.is_file()}
        uri = server.put(
            "s3a://bucket", {f"images/{path.relative_to(source.folder)}": images[path] for path in images}
        )
        settings = {f"spark.hadoop.{key}": value for key, value in server.settings.items()}
        places = {str(source.folder): f"{uri}/images", str(copy): f"{uri}/out"}
        words = [places.get(word, word) for word in undisturbed.in_small_batches(source, copy)]
        start = partial(running, tmp_path / "cwd", *words, settings=settings)
        look = partial(server.copy_to, copy, f"{uri}/out", known)

        server.faults = [
            Fault(share=0.05),
            Fault(None, keys="/images/", operations=("GET",), client=PYTHON, share=0.05),
        ]
        killed_again_and_again(start, copy, moments(source), look)
        with start() as command:
            command.end()
        assert server.asked["GET", "503 SlowDown"]
        look()

        server.faults = []
        again = [word if word != f"{uri}/out" else f"{uri}/undisturbed" for word in words]
        with running(tmp_path / "cwd", *again, settings=settings) as command:
            command.end()
        server.copy_to(tmp_path / "undisturbed", f"{uri}/undisturbed")
    assert_same(copy, tmp_path / "undisturbed")
    assert_accounted(copy, source.num_images)
