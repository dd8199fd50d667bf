"""Shows the report of tables inside a notebook: Jupyter, Databricks, VS Code.

In: the place of the tables. Out: an object that the notebook shows as the page of `nsfw-spark report`. The
page runs in a frame of its own, which reaches neither the notebook nor the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from nsfw_spark.options import JobOptions
from nsfw_spark.spark.report import ReportView, report_job
from nsfw_spark.spark.summary import RunSummary

_HEIGHT: Final = 900
"""Pixels of the frame."""


class ReportFrame:
    """A page in a frame of a notebook.

    Attributes:
        html: The page, to write into a file, or for Databricks' `displayHTML`.
    """

    def __init__(self, html: str) -> None:
        self.html = html

    def _repr_html_(self) -> str:
        """Return the frame; `sandbox` keeps the page apart from the notebook and its cookies."""
        attributes = f'style="width: 100%; height: {_HEIGHT}px; border: 0" title="nsfw-spark report"'
        attributes += ' sandbox="allow-scripts allow-downloads"'
        return f'<iframe {attributes} srcdoc="{escape(self.html)}"></iframe>'


def show_report(
    output: str | RunSummary,
    *,
    by: Sequence[str] = (),
    threshold: float | None = None,
    examples: int = 100,
    seed: int = 0,
    content_from: str | None = None,
) -> ReportFrame:
    """Show what two thresholds would do to the tables of an output, with images to look at.

    Args:
        output: URI of the directory with the tables, a catalog schema, or the result of `run`.
        by: Columns to break the counts down by; also `host` and `directory`.
        threshold: Lower threshold at first; None takes that of the last run.
        examples: Images with a score on the page.
        seed: Number that chooses the images; the same number chooses the same.
        content_from: URI of the images, if they are neither in the table nor where they were scored.

    Raises:
        TableError: There is no table image_scores.
        ConfigError: A column of `by` does not exist.
    """
    from nsfw_spark.review.page import render

    location = output.output if isinstance(output, RunSummary) else output
    options = JobOptions.parse({"output": location, "content_from": content_from})
    return ReportFrame(render(report_job(options, ReportView(examples, seed, tuple(by), threshold))))
