"""The command line: options only, no logic.

What a command prints: progress and tables for people on standard error; on standard output the result, whose
last line is one JSON object. What can go wrong by the user's hand is one line that says what was got, what
was expected and what to do, and exit status 2.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
import yaml
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from nsfw_spark import __version__
from nsfw_spark.errors import DeviceError, NsfwSparkError
from nsfw_spark.model_card import built_in_models, load_card
from nsfw_spark.options import JobOptions, job_options
from nsfw_spark.weights import fetch_weights, fingerprint, locate_weights

if TYPE_CHECKING:  # imported in the commands: `--help` and `models` need neither Java nor pyspark
    from nsfw_spark.spark.pipeline import Summary

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
models = typer.Typer(rich_markup_mode=None, help="Model cards and their weights.")
app.add_typer(models, name="models")


def _option(field: str, flag: str | None = None) -> Any:  # noqa: ANN401 - typer.Option's own type
    """Return the option of a field of `JobOptions`: its docstring is the help, its default is shown."""
    info = JobOptions.model_fields[field]
    default = "" if info.default in (None, False) or info.is_required() else f" [{info.default}]"
    names = (flag,) if flag else (f"--{field.replace('_', '-')}",)
    return typer.Option(*names, help=f"{info.description}{default}", show_default=False)


Input = Annotated[str | None, typer.Argument(help=JobOptions.model_fields["input"].description)]
Output = Annotated[str | None, _option("output")]
Config = Annotated[Path | None, typer.Option(help="YAML file with any of these options; the command line wins.")]
Threshold = Annotated[str | None, _option("threshold")]
Checkpoints = Annotated[str | None, _option("checkpoints")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Format = Annotated[str | None, _option("format")]
Glob = Annotated[str | None, _option("glob")]
ModelName = Annotated[str | None, _option("model")]
ModelDir = Annotated[Path | None, _option("model_dir")]
BatchSize = Annotated[str | None, _option("batch_size")]
FilesPerBatch = Annotated[str | None, _option("files_per_batch")]
Device = Annotated[str | None, _option("device")]
MaxPixels = Annotated[str | None, _option("max_pixels")]
MaxErrorRate = Annotated[str | None, _option("max_error_rate")]
KeepContent = Annotated[bool | None, _option("keep_content", "--keep-content")]
AllowRandomWeights = Annotated[bool | None, _option("allow_random_weights", "--allow-random-weights")]


@app.command()
def run(
    context: typer.Context,
    input: Input = None,  # noqa: A002 - the option's name
    output: Output = None,
    format: Format = None,  # noqa: A002 - the option's name
    glob: Glob = None,
    model: ModelName = None,
    model_dir: ModelDir = None,
    threshold: Threshold = None,
    batch_size: BatchSize = None,
    files_per_batch: FilesPerBatch = None,
    device: Device = None,
    max_pixels: MaxPixels = None,
    max_error_rate: MaxErrorRate = None,
    keep_content: KeepContent = None,
    checkpoints: Checkpoints = None,
    allow_random_weights: AllowRandomWeights = None,
    config: Config = None,
    debug: Debug = False,
) -> int:
    """Score the images that are new in INPUT, then bring the filtered tables up to date."""
    return _score(context.params, with_filter=True)


@app.command()
def score(
    context: typer.Context,
    input: Input = None,  # noqa: A002 - the option's name
    output: Output = None,
    format: Format = None,  # noqa: A002 - the option's name
    glob: Glob = None,
    model: ModelName = None,
    model_dir: ModelDir = None,
    batch_size: BatchSize = None,
    files_per_batch: FilesPerBatch = None,
    device: Device = None,
    max_pixels: MaxPixels = None,
    max_error_rate: MaxErrorRate = None,
    keep_content: KeepContent = None,
    checkpoints: Checkpoints = None,
    allow_random_weights: AllowRandomWeights = None,
    config: Config = None,
    debug: Debug = False,
) -> int:
    """Score the images that are new in INPUT into image_scores, and no more."""
    return _score(context.params, with_filter=False)


@app.command("filter")
def filter_(
    context: typer.Context,
    output: Annotated[str | None, typer.Argument(help=JobOptions.model_fields["output"].description)] = None,
    threshold: Threshold = None,
    config: Config = None,
    debug: Debug = False,
) -> int:
    """Rebuild the filtered tables of OUTPUT under a threshold; needs no model and no GPU."""
    options = _options(context.params)
    from nsfw_spark.spark.pipeline import filter_job

    _show(filter_job(options), options)
    return _DONE


@models.command("list")
def list_models() -> int:
    """List the built-in model cards."""
    table = Table("model", "what it is", "licence of the weights", box=None)
    for name in built_in_models():
        card = load_card(name)
        table.add_row(name, card.summary, card.licence)
    Console().print(table)
    return _DONE


@models.command("show")
def show_model(model: Annotated[str, typer.Argument(help="Name, or path of a card file.")]) -> int:
    """Print all of a model card."""
    content = load_card(model).model_dump(mode="json", exclude_none=True)
    typer.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip())
    return _DONE


@models.command("fetch")
def fetch_model(
    model: Annotated[list[str], typer.Argument(help="Names, or paths of card files.")],
    model_dir: Annotated[Path | None, typer.Option(help="Copy the weights here, to use offline.")] = None,
    debug: Debug = False,
) -> int:
    """Download the weights of models and check their sha256."""
    for name in model:
        _list_weights(name, fetch_weights(load_card(name), model_dir))
    return _DONE


@models.command("verify")
def verify_model(
    model: Annotated[list[str], typer.Argument(help="Names, or paths of card files.")],
    model_dir: Annotated[Path | None, typer.Option(help="Where fetched weights lie.")] = None,
    debug: Debug = False,
) -> int:
    """Check that the weights of models are here and are the right ones; downloads nothing."""
    for name in model:
        _list_weights(name, locate_weights(load_card(name), model_dir))
    return _DONE


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
        return app(arguments, prog_name="nsfw-spark", standalone_mode=False) or _DONE
    except typer.Exit as stop:
        return stop.exit_code
    except TyperException as error:  # an option or command that does not exist
        said = error.format_message() if hasattr(error, "format_message") else str(error)
        return _say(f"{said.rstrip('.')}. Expected: nsfw-spark --help", arguments, _WRONG)
    except DeviceError as error:
        return _say(str(error), arguments, _UNEXPECTED)
    except NsfwSparkError as error:
        return _say(str(error), arguments, _WRONG)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted; the same command again goes on where it stopped", arguments, _INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the one place where nothing is left to pass it on to
        said = (str(error).strip() or "no message").splitlines()[0]
        hint = "" if "--debug" in arguments else " (--debug shows where)"
        return _say(f"unexpected {type(error).__name__}: {said}{hint}", arguments, _UNEXPECTED)


def _say(message: str, arguments: list[str], status: int) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    typer.echo(f"nsfw-spark: {' '.join(message.split())}", err=True)
    return status


def _options(params: dict[str, Any]) -> JobOptions:
    given = {name: value for name, value in params.items() if name in JobOptions.model_fields}
    return job_options(given, params["config"])


def _score(params: dict[str, Any], *, with_filter: bool) -> int:
    options = _options(params)
    from nsfw_spark.spark.pipeline import run_job

    summary = run_job(options, with_filter=with_filter)
    _show(summary, options)
    if summary.counts.quarantined > options.max_error_rate * summary.counts.images:
        typer.echo(
            f"nsfw-spark: {summary.counts.quarantined} of {summary.counts.images} images have no score, more "
            f"than --max-error-rate {options.max_error_rate} allows; {_where_to_look(options)}",
            err=True,
        )
        return _TOO_MANY_ERRORS
    return _DONE


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
    if summary.totals.get("quarantined_images"):
        console.print(_where_to_look(options), soft_wrap=True, highlight=False)
    typer.echo(json.dumps(summary.as_dict()))


def _where_to_look(options: JobOptions) -> str:
    return f"why images have no score: column `error` of quarantined_images in {options.output}"


def _list_weights(name: str, files: dict[str, Any]) -> None:
    typer.echo(f"{name}  fingerprint {fingerprint(load_card(name), files)}")
    for part, file in files.items():
        typer.echo(f"  {part}: {file.path or 'random weights'}  sha256 {file.sha256}")
