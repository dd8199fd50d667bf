"""The commands that show images and scores: `peek`.

They take text from `nsfw_spark.review` and print it; results go to standard output, progress to standard
error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from nsfw_spark.cli_options import Debug, Json, add_command, option_types
from nsfw_spark.options import peek_options

_DONE: Final = 0
_INTERRUPTED: Final = 130  # the convention of shells: 128 + SIGINT
_OF_PEEK: Final = (
    *("n", "seed", "format", "glob", "content_column", "threshold"),
    *("model", "heads", "score_class", "strict", "second", "uncertain"),
    *("model_dir", "model_source", "weights_lock", "device", "batch_size"),
    *("max_pixels", "max_bytes", "decode_timeout_seconds"),
)


def _peek(*, as_json: bool, debug: bool, **given: Any) -> int:  # noqa: ANN401, ARG001 - see main
    """Score a sample of INPUT, print what is in it, and write nothing; needs neither Spark nor Java."""
    from nsfw_spark.review.peek import peek
    from nsfw_spark.review.peek_text import Terminal, report

    show = _progress()
    try:
        found = peek(peek_options(given), show)
    except KeyboardInterrupt:
        show("")
        typer.echo("nsfw-spark: interrupted; a peek writes nothing", err=True)
        os._exit(_INTERRUPTED)  # a thread may be in a batch of a large model for seconds
    finally:
        show("")
    typer.echo(json.dumps(found.as_dict()) if as_json else report(found, Terminal.of(sys.stdout)))
    return _DONE


def _progress() -> Callable[[str], None]:
    """Return a function that shows one line on a terminal, in place of the line before."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return lambda _: None

    def show(words: str) -> None:
        sys.stderr.write(f"\r\x1b[K{words}")
        sys.stderr.flush()

    return show


def add_review_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the program."""
    add_command(
        app,
        "peek",
        _peek,
        {
            **option_types("input", _OF_PEEK),
            "input": Annotated[
                str | None,
                typer.Argument(
                    metavar="INPUT", help="Directory, file or URI of images, tars or Parquet files."
                ),
            ],
            "as_json": Json,
            "debug": Debug,
        },
        help=_peek.__doc__,
    )
