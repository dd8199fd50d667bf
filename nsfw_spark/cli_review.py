"""The commands that show images and scores: `peek` and `report`.

They take text from `nsfw_spark.review` and print it; results go to standard output, progress to standard
error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from nsfw_spark import early
from nsfw_spark.cli_options import Debug, Json, Verbose, add_command, help_of, option_types
from nsfw_spark.errors import ConfigError
from nsfw_spark.options import job_options, peek_options

_DONE: Final = 0
_INTERRUPTED: Final = 130  # the convention of shells: 128 + SIGINT
_OF_PEEK: Final = (
    *("n", "seed", "format", "glob", "content_column", "threshold"),
    *("model", "heads", "score_class", "strict", "second", "uncertain"),
    *("model_dir", "model_source", "weights_lock", "device", "batch_size"),
    *("max_pixels", "max_bytes", "decode_timeout_seconds"),
)


def _peek(*, html: Path | None, as_json: bool, debug: bool, **given: Any) -> int:  # noqa: ANN401, ARG001 - see main
    """Score a sample of INPUT, print what is in it, and write nothing; needs neither Spark nor Java."""
    from nsfw_spark.review.peek import peek
    from nsfw_spark.review.peek_text import Terminal, report

    if html is not None:
        from nsfw_spark.review.page import check_place

        check_place(html)
    show = _progress()
    try:
        found = peek(peek_options(given), show, with_thumbnails=html is not None)
    except KeyboardInterrupt:
        show("")
        typer.echo("nsfw-spark: interrupted; a peek writes nothing", err=True)
        os._exit(_INTERRUPTED)  # a thread may be in a batch of a large model for seconds
    finally:
        show("")
    if html is not None:
        from nsfw_spark.review.page import write_page
        from nsfw_spark.review.peek_page import report_of

        write_page(report_of(found), html)
        typer.echo(f"nsfw-spark: wrote {html}: open it in a browser", err=True)
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
            "html": Annotated[
                Path | None,
                typer.Option(metavar="FILE", help="Write a page with the images and two thresholds too."),
            ],
            "as_json": Json,
            "debug": Debug,
        },
        help=_peek.__doc__,
    )
    app.command("report")(report_on_tables)


def report_on_tables(  # noqa: PLR0913 - each is an option
    *,
    output: Annotated[str, typer.Argument(help="Directory or catalog schema with the tables.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="File for the page.")] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Open the page in a browser, from 127.0.0.1, until Ctrl-C.")
    ] = False,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Columns to break counts down by; also host and directory.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER", min=0, max=1, help="Lower threshold at first; default: that of the last run."
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option(metavar="INT", min=0, max=600, help="Images with a score on the page.")
    ] = 300,
    seed: Annotated[
        int, typer.Option(metavar="INT", help="Number that chooses the images; the same chooses the same.")
    ] = 0,
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
    debug: Debug = False,  # noqa: ARG001 - see main
    verbose: Verbose = False,
) -> int:
    """Write a page about the tables of OUTPUT: what two thresholds would do, and images to look at."""
    if html is None and not serve:
        raise ConfigError("got neither --html FILE nor --serve; expected a file for the page, or --serve")
    from nsfw_spark.review.page import check_place, render, write_html
    from nsfw_spark.review.serve import serve as serve_page

    if html is not None:
        check_place(html)
    if verbose:
        early.show_all()
    names = tuple(name.strip() for name in by.split(",")) if by else ()
    columns = {"content_column": content_column, "id_column": id_column}
    options = job_options({"output": output, "content_from": content_from, **columns})
    early.check_report(options)
    early.announce()
    from nsfw_spark.spark.report import ReportView, report_job

    report = report_job(options, ReportView(examples, seed, names, threshold))
    page = render(report)
    if html is not None:
        write_html(page, html)
        typer.echo(f"nsfw-spark: wrote {html}: open it in a browser", err=True)
    if serve:
        serve_page(page, on_ready=lambda url: typer.echo(f"nsfw-spark: {url} (Ctrl-C ends it)", err=True))
    return _DONE
