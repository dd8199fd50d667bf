"""The command `nsfw-spark doctor`: prints what is wrong here, and what cures it.

It prints the findings about this machine first, then asks Spark. Exit status 2 means that there is at least
one problem; then all findings are printed too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from nsfw_spark.cli_options import Debug, Json, add_command, help_of
from nsfw_spark.doctor.estimate import Estimate
from nsfw_spark.doctor.finding import Finding
from nsfw_spark.doctor.text import can_show_marks, estimate_lines, lines_of, verdict
from nsfw_spark.model_card import ModelCard

if TYPE_CHECKING:  # imported in the command: `--help` needs no image library
    from nsfw_spark.doctor.cluster import Cluster

_DONE: Final = 0
_PROBLEM: Final = 2
_IMAGES: Final = 1_000_000


def _doctor(  # noqa: PLR0913 - each is an option
    *,
    input: str | None,  # noqa: A002 - the argument's name
    output: str | None,
    cluster: bool | None,
    images: int | None,
    model: str | None,
    model_dir: str | None,
    as_json: bool,
    debug: bool,  # noqa: ARG001 - see main
) -> int:
    """Check this machine, Spark, INPUT and OUT; name what is wrong, and the setting that cures it."""
    from nsfw_spark.cards import load_card
    from nsfw_spark.doctor.facts import measure
    from nsfw_spark.doctor.machine import check_locations, check_machine, check_weights, missing_spark

    with suppress(ValueError):  # not the main thread
        # As Ctrl-C: an exception, so that probes are removed.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    card = load_card(model or "laion-vit-l-14")
    place = Path(model_dir).expanduser() if model_dir else None
    findings: list[Finding] = []

    def show(found: Sequence[Finding]) -> None:
        findings.extend(found)
        if not as_json and found:
            _print(found)

    is_submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    facts = measure(card.preprocessing)
    show(list(check_machine(facts, card, needs_model=not is_submitted)))
    is_local = not is_submitted and "HADOOP_CONF_DIR" not in os.environ
    show(list(check_locations(input, output, is_local=is_local)))
    show([check_weights(card, place)])
    speed, gpus = facts.decodes_per_second, facts.num_visible_gpus
    estimate = Estimate.of(card, images or _IMAGES, speed, facts.cpus, gpus)
    if not missing_spark() and not any(_prevents_spark(each) for each in findings):
        from nsfw_spark.spark.doctor import Question, examine

        question = Question(input, output, card, place, facts, bool(cluster))
        estimate = _of_cluster(estimate, examine(question, show), card)
    return _end(findings, estimate, as_json=as_json)


def _prevents_spark(finding: Finding) -> bool:
    """Whether Spark cannot start, or a location must not reach it."""
    return finding.level == "problem" and (
        finding.name == "Java" or "without credentials" in finding.expected
    )


def _of_cluster(estimate: Estimate, cluster: Cluster | None, card: ModelCard) -> Estimate:
    """Return the estimate by a cluster's facts; the same estimate if Spark did not start."""
    if cluster is None:
        return estimate
    speeds = [each.decodes_per_second for each in cluster.executors] or [estimate.decodes_per_second]
    slots = cluster.slots or estimate.slots
    return Estimate.of(card, estimate.images, sum(speeds) / len(speeds), slots, cluster.num_gpus)


def _end(findings: Sequence[Finding], estimate: Estimate, *, as_json: bool) -> int:
    problems = sum(each.level == "problem" for each in findings)
    if as_json:
        document = {
            "problems": problems,
            "findings": [each.as_dict() for each in findings],
            "estimate": estimate.as_dict(),
        }
        typer.echo(json.dumps(document))
    else:
        typer.echo("\n".join([*estimate_lines(estimate), "", verdict(findings)]))
    return _PROBLEM if problems else _DONE


def _print(findings: Sequence[Finding]) -> None:
    """Print lines at once: the next ones may take a while."""
    has_marks = can_show_marks(sys.stdout.encoding)
    text = "\n".join(lines_of(findings, has_marks=has_marks))
    encoding = sys.stdout.encoding or "ascii"
    typer.echo(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def add_doctor_command(app: typer.Typer) -> None:
    """Add the command of this module to the program."""
    types = {
        "input": Annotated[str | None, typer.Argument(metavar="INPUT", help=help_of("input"))],
        "output": Annotated[
            str | None, typer.Argument(metavar="OUT", help="Directory or catalog schema for the tables.")
        ],
        "cluster": Annotated[
            bool | None, typer.Option("--cluster", help="Ask every executor: a task for each core.")
        ],
        "images": Annotated[
            int | None,
            typer.Option(
                "--images", metavar="INT", min=1, help=f"Images of the estimate. Default: {_IMAGES:,}."
            ),
        ],
        "model": Annotated[
            str | None,
            typer.Option(metavar="NAME|FILE", help=f"{help_of('model')} Default: laion-vit-l-14."),
        ],
        "model_dir": Annotated[str | None, typer.Option(metavar="DIR", help=help_of("model_dir"))],
        "as_json": Json,
        "debug": Debug,
    }
    add_command(app, "doctor", _doctor, types, help=_doctor.__doc__)
