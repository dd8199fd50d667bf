"""What is written down is true: the README's options and columns, the config file, the jobs."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from nsfw_spark.options import JobOptions, SampleOptions, job_options

ROOT = Path(__file__).parents[2]
FIELDS = {**JobOptions.model_fields, **SampleOptions.model_fields}
OTHER_OPTIONS = {
    *("--config", "--debug", "--help", "--table", "--images-per-shard", "--no-strict", "--json"),
    *("--cluster", "--images", "--html", "--serve", "--by", "--examples", "--verbose"),
}
"""Options of commands that are in no group of options."""
JOBS = sorted((ROOT / "jobs").glob("*.py"))


@pytest.fixture
def readme() -> str:
    path = ROOT / "README.md"
    if not path.exists():
        pytest.skip("there is no README.md yet")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def options_table() -> ModuleType:
    path = ROOT / "docs" / "options_table.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_options_is_made_of_the_options(options_table: ModuleType) -> None:
    page = options_table.PAGE.read_text(encoding="utf-8")
    assert page == options_table.page_with(options_table.tables(), page), "run: python docs/options_table.py"


@pytest.mark.parametrize("field", sorted(FIELDS.keys() - {"input"}))
def test_the_page_of_options_names_each_option(options_table: ModuleType, field: str) -> None:
    """Else the test above would hold with empty tables too."""
    row = next(
        line for line in options_table.tables().splitlines() if f"`--{field.replace('_', '-')}`" in line
    )
    assert str(FIELDS[field].description).replace("\n", " ").replace("|", "\\|") in row


@pytest.mark.parametrize("page", ["README.md", "docs/*.md"])
def test_pages_name_no_option_that_does_not_exist(page: str) -> None:
    """Lines of other programs (spark-submit's --packages) are not ours to know."""
    known = {f"--{name.replace('_', '-')}" for name in FIELDS} | OTHER_OPTIONS
    for path in ROOT.glob(page):
        lines = [
            line
            for line in path.read_text(encoding="utf-8").splitlines()
            if re.search(r"nsfw-spark (doctor|peek|report|run|score|filter|export|models)\b", line)
            and "spark-submit" not in line
        ]
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines)))
        assert used <= known, path


def test_the_readme_names_each_column(readme: str) -> None:
    pytest.importorskip("pyspark")
    from pyspark.sql.types import StructType

    from nsfw_spark.spark import schema

    source = StructType([schema.IMAGE_ID, schema.SOURCE_FILE, schema.MODIFICATION_TIME])
    scores = schema.scores(is_cascade=True)
    of_runs = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    columns = schema.image_scores(source, scores, keep_content=True).names
    for page, names in ((readme, columns), (of_runs, schema.RUNS.names)):
        missing = [name for name in names if not re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", page)]
        assert not missing


def test_the_config_file_is_accepted_and_says_the_defaults() -> None:
    options = job_options({}, ROOT / "conf" / "job.yaml")
    own = {"input", "output"}
    assert options.model_dump(exclude=own) == job_options({"output": "out"}).model_dump(exclude=own)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_a_job_is_thin_and_can_be_imported(job: Path) -> None:
    tree = ast.parse(job.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    spec = importlib.util.spec_from_file_location(job.stem, job)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # starts nothing: it is not __main__
    assert module.main.__module__ == "nsfw_spark.cli"


def test_there_is_a_job_for_each_command() -> None:
    commands = {job.stem: re.search(r'main\(\["(\w+)"', job.read_text(encoding="utf-8")) for job in JOBS}
    found = {name: match[1] for name, match in commands.items() if match}
    assert found == {"run": "run", "score_images": "score", "filter_images": "filter", "doctor": "doctor"}


def test_each_fault_of_the_reliability_page_names_tests_that_there_are() -> None:
    faults, causes = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").split("## How each fault")
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    there = set(re.findall(r"^def (test_\w+)\(", "\n".join(sources), re.MULTILINE))
    named = {
        number: set(re.findall(r"`(test_\w+)`", row))
        for number, row in re.findall(r"^\| (\d+) \|(.*)", causes, re.MULTILINE)
    }
    assert list(named) == re.findall(r"^\| (\d+) \|", faults, re.MULTILINE) != []
    assert all(named.values())
    assert set().union(*named.values()) <= there


FOLDERS = "nsfw_spark|tests|docs|bench|conf|jobs|notebooks|examples|LICENSES"


@pytest.mark.parametrize("page", ["*.md", "docs/*.md", "bench/*.md"])
def test_each_file_that_a_page_names_is_there(page: str) -> None:
    named = {
        name
        for path in ROOT.glob(page)
        for name in re.findall(rf"(?<![\w./:-])(?:{FOLDERS})/[\w./-]*[\w/]", path.read_text(encoding="utf-8"))
    }
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_tour_names_every_module_once() -> None:
    tree = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8").partition("## Every file")[2]
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nsfw_spark").rglob("*.py")}
    named = re.findall(r"^\| `(nsfw_spark/[\w/.]+\.py)` \|", tree, re.MULTILINE)
    assert sorted(named) == sorted(modules)


def test_the_one_hour_path_is_an_hour_long() -> None:
    path = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    path = path.partition("## The one-hour path")[2].partition("\n## ")[0]
    files = re.findall(r"^\d+\. `(nsfw_spark/[\w/.]+\.py)`", path, re.MULTILINE)
    lines = sum(len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in files)
    assert 20 <= len(files) <= 26
    assert lines <= 4_350, lines
