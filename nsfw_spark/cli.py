"""The command line: options only, no logic.

The options of `run`, `score` and `filter` are the fields of `JobOptions`, in its groups. Progress, tables and
warnings go to standard error. Results go to standard output; the last line of a job is one JSON object. An
error that the user can mend is one line (what we got, what we expected, what to do) and exit status 2.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

import typer
from typer.exceptions import TyperException

from nsfw_spark import __version__, early
from nsfw_spark.cli_doctor import add_doctor_command
from nsfw_spark.cli_models import models
from nsfw_spark.cli_options import Debug, Verbose, add_command, help_of, option_types
from nsfw_spark.cli_review import add_review_commands
from nsfw_spark.errors import DeviceError, NsfwSparkError, RunInterruptedError, StorageError
from nsfw_spark.java import check_java
from nsfw_spark.options import JobOptions, job_options
from nsfw_spark.redact import printable, redact

if TYPE_CHECKING:  # imported in the commands: `--help` and `models` need neither Java nor pyspark
    from nsfw_spark.spark.summary import RunSummary

_DONE: Final = 0
_UNEXPECTED: Final = 1
_WRONG: Final = 2
_TOO_MANY_ERRORS: Final = 3
_INTERRUPTED: Final = 130  # the convention of shells: 128 + SIGINT
_SPARK_PACKAGES: Final = {"pyspark", "delta", "pandas", "pyarrow", "py4j"}
_SWITCHES: Final = "A switch such as --strict is off by default; --no-strict overrides a config file."
app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Keep unsafe images out of data sets: score images with CLIP, write filtered Delta tables.",
)
app.add_typer(models, name="models")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its status.

    Args:
        arguments: The words after the program's name; default: those of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in ([], ["models"]):  # show what there is to choose from
        given.append("--help")
    sys.exit(_status(given))


def _status(arguments: list[str]) -> int:
    try:
        status = app(arguments, prog_name="nsfw-spark", standalone_mode=False) or _DONE
    except Exception as error:  # noqa: BLE001 - the last place that can turn an error into a sentence
        return _report(*_explain(error), arguments)
    if status == _INTERRUPTED:  # typer's result of a KeyboardInterrupt
        return _report("interrupted; run the same command again to resume", status, arguments)
    return int(status)


def _explain(error: Exception) -> tuple[str, int]:
    """Return the sentence about an error, and the exit status."""
    if isinstance(error, TyperException):  # an option or a command that does not exist
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        return f"{message}  (nsfw-spark --help lists all)", _WRONG
    if isinstance(error, RunInterruptedError):
        return str(error), _INTERRUPTED
    if isinstance(error, DeviceError | StorageError):  # in the middle of the work
        return str(error), _UNEXPECTED
    if isinstance(error, NsfwSparkError):
        return str(error), _WRONG
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in _SPARK_PACKAGES:
        return (
            f"this command needs Spark, and the Python package {error.name} is not installed here. Install "
            "the extra: pip install 'nsfw-spark[spark]'"
        ), _WRONG
    message = (str(error).strip() or "no message").splitlines()[0]
    return f"unexpected {type(error).__name__}: {message} (--debug shows where)", _UNEXPECTED


def _report(message: str, status: int, arguments: list[str]) -> int:
    if "--debug" in arguments:
        typer.echo("\n".join(map(printable, redact(traceback.format_exc()).splitlines())), err=True)
    typer.echo(f"nsfw-spark: {printable(redact(' '.join(message.split())))}", err=True)
    return status


@app.callback(invoke_without_command=True)
def options_of_all_commands(
    *, version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False
) -> None:
    """Keep unsafe images out of data sets: score images with CLIP, write filtered Delta tables."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command("version")
def print_version() -> None:
    """Print the version."""
    typer.echo(__version__)


# run, score and filter


def _run(options: JobOptions, *, as_json: bool) -> int:
    """Score the images that are new in INPUT, then bring the filtered tables up to date."""
    return _score(options, with_filter=True, as_json=as_json)


def _score_only(options: JobOptions, *, as_json: bool) -> int:
    """Score the images that are new in INPUT; leave the filtered tables alone."""
    return _score(options, with_filter=False, as_json=as_json)


def _filter(options: JobOptions, *, as_json: bool) -> int:
    """Bring the filtered tables of OUTPUT up to date under a policy; needs no model and no GPU."""
    early.check_filter(options)
    early.announce()
    from nsfw_spark.spark.pipeline import filter_job

    _show(filter_job(options), options, as_json=as_json)
    return _DONE


def _score(options: JobOptions, *, with_filter: bool, as_json: bool) -> int:
    early.check_score(options)
    early.announce()
    from nsfw_spark.spark.pipeline import run_job

    summary = run_job(options, with_filter=with_filter)
    counts = summary.counts
    has_too_many = counts.quarantined > options.max_error_rate * counts.images
    if has_too_many:
        typer.echo(
            f"nsfw-spark: {counts.quarantined} of {counts.images} images have no score, more than "
            f"--max-error-rate {options.max_error_rate} allows",
            err=True,
        )
    _show(summary, options, as_json=as_json)
    return _TOO_MANY_ERRORS if has_too_many or counts.files_lost else _DONE


def _show(summary: RunSummary, options: JobOptions, *, as_json: bool) -> None:
    """Print what the job did, for people, and the result for programs."""
    if not as_json:
        from nsfw_spark.spark.summary import summary_lines

        for line in summary_lines(replace(summary, output=options.output)):
            typer.echo(line, err=True)
    typer.echo(json.dumps(summary.as_dict()))


def _add_job(name: str, job: Callable[..., int], argument: str, fields: Collection[str]) -> None:
    """Add a command whose options are fields of `JobOptions`, with their docstrings as help.

    Args:
        name: Name of the command.
        job: Runs it and returns the exit status; its docstring is the command's help.
        argument: The field that has no option name.
        fields: The fields that have one.
    """

    def command(
        config: Path | None,
        *,
        debug: bool,  # noqa: ARG001 - see main
        verbose: bool,
        as_json: bool,
        **given: Any,  # noqa: ANN401 - see job_options
    ) -> int:
        if verbose:
            early.show_all()
        for switch in switches:
            if given.pop(f"no_{switch}"):
                given[switch] = False
        return job(job_options(given, config), as_json=as_json)

    switches = [name for name in fields if JobOptions.model_fields[name].annotation is bool]
    types: dict[str, Any] = {
        **option_types(argument, fields),
        "config": Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="YAML file with any of these options; the command line wins."),
        ],
        "as_json": Annotated[bool, typer.Option("--json", help="Print the JSON alone, no text for people.")],
        "debug": Debug,
        "verbose": Verbose,
        # Hidden, since help would have no room for the descriptions beside them.
        **{
            f"no_{name}": Annotated[bool, typer.Option(f"--no-{name.replace('_', '-')}", hidden=True)]
            for name in switches
        },
    }
    add_command(app, name, command, types, help=job.__doc__, epilog=_SWITCHES if switches else None)


_OF_FILTER: Final = ("threshold", "policy", "content_from")
_FIELDS: Final = [field for field in JobOptions.model_fields if field != "input"]
_add_job("run", _run, "input", _FIELDS)
_add_job("score", _score_only, "input", [field for field in _FIELDS if field not in _OF_FILTER])
_add_job("filter", _filter, "output", (*_OF_FILTER, "content_column", "id_column"))
add_review_commands(app)
add_doctor_command(app)


@app.command("export")
def export_images(  # noqa: PLR0913 - each is an option
    *,
    output: Annotated[str, typer.Argument(help="Directory or catalog schema with the tables.")],
    directory: Annotated[str, typer.Argument(help="URI of a directory that is empty or does not exist.")],
    format: Annotated[  # noqa: A002 - the option's name
        Literal["webdataset", "parquet"],
        typer.Option(help="Tars, or Parquet files in the layout of Hugging Face."),
    ] = "webdataset",
    table: Annotated[
        Literal["safe_images", "flagged_images", "quarantined_images"],
        typer.Option(help="Table whose images are written."),
    ] = "safe_images",
    content_from: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="URI of the images, if they are neither in the table nor where they were scored.",
        ),
    ] = None,
    content_column: Annotated[
        str | None, typer.Option(metavar="NAME", help=help_of("content_column"))
    ] = None,
    id_column: Annotated[str | None, typer.Option(metavar="NAME", help=help_of("id_column"))] = None,
    images_per_shard: Annotated[
        int, typer.Option(metavar="INT", min=1, help="Largest number of images in one file.")
    ] = 10_000,
    max_error_rate: Annotated[
        float,
        typer.Option(
            metavar="NUMBER", min=0, max=1, help="Share of missing images above which the exit status is 3."
        ),
    ] = 0.1,
    debug: Debug = False,  # noqa: ARG001 - see main
    verbose: Verbose = False,
) -> int:
    """Write the images that passed as tars or Parquet files, for training, with a manifest."""
    if verbose:
        early.show_all()
    columns = {"content_column": content_column, "id_column": id_column}
    options = job_options({"output": output, "content_from": content_from, **columns})
    early.check_export(options, table, directory)
    early.announce()
    from nsfw_spark.spark.export import ExportOptions, ShardSize, export_job

    size = ShardSize(images=images_per_shard)
    exported = export_job(options, ExportOptions(directory, format, table, size))
    typer.echo(json.dumps(exported.as_dict()))
    return _TOO_MANY_ERRORS if exported.missing_rate > max_error_rate else _DONE


@app.command("jars")
def fetch_jars_of_stores(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory for the jars.")],
    *,
    s3: Annotated[bool, typer.Option("--s3", help="Add the connector for s3a:// (16 MB).")] = False,
    azure: Annotated[bool, typer.Option("--azure", help="Add the connector for abfss://.")] = False,
    debug: Debug = False,  # noqa: ARG001 - see main
) -> None:
    """Download Spark's jars for Delta Lake and for stores, for machines without a network."""
    check_java()
    from nsfw_spark.spark.jars import fetch_jars

    schemes = [scheme for scheme, is_wanted in (("s3a", s3), ("abfss", azure)) if is_wanted]
    for jar in fetch_jars(directory, schemes):
        typer.echo(jar)
    typer.echo(
        f"Copy {directory} to a machine without a network, and write `spark.jars DIR/*.jar` into its "
        "$SPARK_CONF_DIR/spark-defaults.conf: docs/stores.md",
        err=True,
    )
