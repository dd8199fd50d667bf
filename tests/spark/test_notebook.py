"""The quickstart notebook, run cell by cell in a real kernel, and what its cells show."""

from __future__ import annotations

import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests import java
from tests.conftest import PHOTOS

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The HTML that each cell shows, by the last line of the cell."""
    folder = tmp_path_factory.mktemp("notebook")
    defaults = java.write_defaults(folder, {"spark.sql.warehouse.dir": str(folder / "warehouse")})
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGES", str(PHOTOS))
        patch.setenv("OUTPUT", str(folder / "out"))
        patch.setenv("SPARK_CONF_DIR", str(defaults))
        patch.setenv("PYSPARK_SUBMIT_ARGS", java.arguments(java.INTERPRETED))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
        client.create_kernel_manager()
        assert client.km is not None
        client.km.kernel_spec.argv[0] = sys.executable  # whatever kernels this machine has
        client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return {cell.source.splitlines()[-1]: html_of(cell) for cell in cells}


def html_of(cell: Any) -> str:  # noqa: ANN401 - a node of nbformat
    return "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)


def test_a_run_shows_counts_a_histogram_and_blurred_thumbnails(shown: dict[str, str]) -> None:
    html = shown["summary"]
    assert "image_scores" in html
    assert html.count("<rect") == 20
    assert html.count('<img alt="blurred:') == 3
    assert "filter: blur" in html


def test_the_report_is_a_page_in_a_frame_without_access(shown: dict[str, str]) -> None:
    html = shown['show_report(summary, by=["format"])']
    frame = re.fullmatch(r'(?s)<iframe (.*) srcdoc="([^"]*)"></iframe>', html)
    assert frame is not None
    assert 'sandbox="allow-scripts allow-downloads"' in frame[1]
    page = unescape(frame[2])
    assert page.lower().startswith("<!doctype html>")
    assert "default-src 'none'" in unescape(page)


def test_another_threshold_shows_its_counts(shown: dict[str, str]) -> None:
    html = shown["filter_job(JobOptions(output=OUTPUT, threshold=0.1))"]
    assert "score below 0.1" in html
    assert "quarantined_images" in html


def test_the_tables_are_read(shown: dict[str, str]) -> None:
    html = shown['scores.groupBy("status").count().orderBy("status").toPandas()']
    assert "undecodable" in html
