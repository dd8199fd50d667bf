"""Fills a report from the tables of a run: counts by Spark, thumbnails where the images lie.

In: the place of the tables. Out: a `nsfw_spark.review.report.Report`. Reads no image except those that the
report shows, and loads no model. Does not know how a page looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import pyarrow as pa
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType, StringType, StructType

from nsfw_spark.cards import load_card
from nsfw_spark.errors import ConfigError, ImageError, NsfwSparkError, TableError
from nsfw_spark.isolation import DECODE_TIMEOUT_SECONDS
from nsfw_spark.options import JobOptions
from nsfw_spark.review.report import EDGES, NUM_STEPS, Example, Group, Reason, Report, Run, histogram
from nsfw_spark.review.thumbnail import thumbnail
from nsfw_spark.scorer import Decoder
from nsfw_spark.spark import schema
from nsfw_spark.spark.content import Contents, open_contents, recorded_contents
from nsfw_spark.spark.policy import is_ok
from nsfw_spark.spark.session import get_session, num_slots, tries_once
from nsfw_spark.spark.summary import RunSummary
from nsfw_spark.spark.tables import IMAGE_SCORES, RUNS, Output, properties
from nsfw_spark.spark.worker import task_decoder

_MOST_RUNS: Final = 50
_MOST_GROUPS: Final = 20
_MOST_REASONS: Final = 20
_MOST_FILES: Final = 24  # tars or Parquet files that are read for thumbnails
_BANDS: Final = 10  # of the score, each 0.1 wide
_MOST_TEXT: Final = 4000  # characters of a caption
_MOST_NAME: Final = 200  # characters of a value
_NONE: Final = "(none)"
_OTHER: Final = "(other)"
_HASHES: Final = 1 << 32
_CALCULATED: Final = ("host", "directory")
_TEXTS: Final = ("caption", "text", "url", "source_file")
_DETAILS: Final = ("width", "height", "format", "length", *_TEXTS)
_GONE: Final = "The image is not where it was scored, or has changed since."
_THUMBNAIL: Final = (
    StructType().add("image_id", StringType()).add("thumbnail", BinaryType()).add("problem", "string")
)


@dataclass(frozen=True)
class ReportView:
    """What a report shows of the tables."""

    examples: int = 300
    """Images with a score that the page shows."""
    seed: int = 0
    """The same number chooses the same images."""
    by: tuple[str, ...] = ()
    """Columns to break the counts down by; `host` and `directory` come from the URL and the image_id."""
    threshold: float | None = None
    """Lower threshold at first; None takes that of the last run."""


def report_job(options: JobOptions, view: ReportView) -> Report:
    """Read the tables of an output, and make thumbnails of a sample.

    Args:
        options: `output` is the place of the tables; `content_from`, `content_column` and `id_column` the
            place of the images. Without `content_from` the images come from the table, if it has a column
            `content`, else from the inputs in the table `runs`.
        view: What the report shows.

    Raises:
        TableError: The table image_scores does not exist, or was not made by this package.
        ConfigError: A column of `view.by` does not exist.
    """
    spark = get_session(options.output, options.content_from)
    output = Output.of(spark, options)
    if not output.exists(IMAGE_SCORES):
        raise TableError(
            f"there is no table {output.name(IMAGE_SCORES)} to report on. First: nsfw-spark run INPUT "
            f"--output {options.output}"
        )
    known = properties(output)
    rows = output.table(IMAGE_SCORES)
    columns = _group_columns(rows, view.by)
    runs = _recorded_runs(output)
    counted = _Counted.of(rows, [run["run_id"] for run in runs])
    policy = next((run for run in runs if run.get("policy")), {})
    threshold = view.threshold if view.threshold is not None else policy.get("threshold")
    report = Report(
        title=options.output,
        made_at=datetime.now(UTC),
        threshold=0.5 if threshold is None else round(float(threshold), 3),
        bins=counted.bins,
        statuses=counted.statuses,
        groups={name: _groups(rows, column) for name, column in columns.items()},
        classes=_classes(rows),
        runs=[_run(run, counted) for run in runs],
        facts=_facts(known, policy, runs),
        filter_command=f"nsfw-spark filter {options.output} --threshold {{threshold}}",
    )
    return _with_examples(report, rows, output, options, view)


def pictured(summary: RunSummary, options: JobOptions) -> RunSummary:
    """Return the summary of a run with a histogram and thumbnails, for a notebook.

    Args:
        summary: Of a run that has ended.
        options: As for `report_job`.
    """
    output = Output.of(get_session(), options)
    rows = output.table(IMAGE_SCORES).filter(F.col("run_id") == summary.run_id)
    bins = _Counted.of(rows, []).bins
    shown = rows.filter(F.col("image_id").isin([image_id for image_id, _ in summary.highest]))
    chosen = _collected(shown, ReportView())
    thumbnails = _thumbnails(chosen, rows, _contents(rows, output, options)[0])
    made = {image_id: small for image_id, (small, _) in thumbnails.items() if small is not None}
    return replace(summary, histogram=histogram(bins), thumbnails=made)


@dataclass(frozen=True)
class _Counted:
    """The rows of image_scores, counted in one pass."""

    statuses: Mapping[str, int]
    bins: Mapping[int, int]
    of_runs: Mapping[str, Mapping[int, int]]

    @classmethod
    def of(cls, rows: DataFrame, run_ids: Sequence[str]) -> _Counted:
        run = F.when(F.col("run_id").isin(list(run_ids)), F.col("run_id")).alias("run")
        counts = rows.groupBy("status", _bin().alias("bin"), run).count().collect()
        statuses: Counter[str] = Counter()
        bins: Counter[int] = Counter()
        of_runs: dict[str, Counter[int]] = {}
        for row in counts:
            statuses[row.status or "none"] += row["count"]
            if row.bin is not None:
                bins[row.bin] += row["count"]
                of_runs.setdefault(row.run, Counter())[row.bin] += row["count"]
        return cls(dict(statuses.most_common()), dict(sorted(bins.items())), of_runs)


def _bin(score: str = "nsfw_score") -> Column:
    """Return `bin_of` as a column; null for a row without a score."""
    edges = F.array(*(F.lit(edge).cast("float") for edge in EDGES))
    near = F.floor(F.col(score).cast("double") * NUM_STEPS).cast("int")
    # The product may round across an edge, in either direction.
    low, high = F.greatest(near - 1, F.lit(0)), F.least(near + 1, F.lit(NUM_STEPS))
    exact = F.when(F.get(edges, high) <= F.col(score), high).when(F.get(edges, near) <= F.col(score), near)
    return F.when(is_ok(), exact.otherwise(low))


def _group_columns(rows: DataFrame, names: Iterable[str]) -> dict[str, Column]:
    """Return the columns to group by; `host` and `directory` where the table has none of that name."""
    there = {name.lower(): name for name in rows.columns}
    found = {}
    for name in names:
        if name.lower() in there:
            found[name] = F.col(schema.quoted(there[name.lower()])).cast("string")
        elif name == "host":
            url = F.coalesce("url", "image_id") if "url" in there else F.col("image_id")
            found[name] = F.regexp_extract(url, r"^[\w+.-]+://([^/?#]*)", 1)
        elif name == "directory":
            found[name] = F.regexp_extract("image_id", r"(?s)^(.*?)/[^/]*$", 1)
        else:
            known = ", ".join([*rows.columns, *_CALCULATED])
            raise ConfigError(f"--by: there is no column {name}; expected one of {known}")
    return found


def _groups(rows: DataFrame, column: Column) -> list[Group]:
    """Count the most frequent values of a column, and all others together."""
    valued = rows.select(F.substring(column, 1, _MOST_NAME).alias("value"), _bin().alias("bin"))
    counts = valued.groupBy("value").count().orderBy(F.desc("count"), "value")
    shown = [row.value for row in counts.limit(_MOST_GROUPS).collect()]
    is_shown = F.col("value").isin([value for value in shown if value is not None])
    name = F.when(is_shown, F.col("value"))
    if None in shown:
        name = name.when(F.col("value").isNull(), _NONE)
    bins: dict[str, dict[int, int]] = {}
    unscored: Counter[str] = Counter()
    for row in valued.groupBy(name.otherwise(_OTHER).alias("name"), "bin").count().collect():
        if row.bin is None:
            unscored[row.name] += row["count"]
        else:
            bins.setdefault(row.name, {})[row.bin] = row["count"]
    names = dict.fromkeys([*(_NONE if value is None else value for value in shown), _OTHER])
    return [Group(each, bins.get(each, {}), unscored[each]) for each in names if each in {*bins, *unscored}]


def _classes(rows: DataFrame) -> dict[str, list[int]]:
    """Count the scores of each class in 20 bins."""
    if "class_scores" not in rows.columns:
        return {}
    scores = rows.filter(is_ok()).select(F.explode("class_scores").alias("name", "score"))
    bins = F.least(F.floor(F.col("score") * 20), F.lit(19)).cast("int").alias("bin")
    classes: dict[str, list[int]] = {}
    for row in scores.groupBy("name", bins).count().collect():
        classes.setdefault(row.name, [0] * 20)[row.bin] += row["count"]
    return dict(sorted(classes.items()))


def _recorded_runs(output: Output) -> list[dict[str, Any]]:
    """Return the last rows of the table `runs`, the latest first."""
    if not output.exists(RUNS):
        return []
    last = output.table(RUNS).orderBy(F.desc("started_at")).limit(_MOST_RUNS)
    return [row.asDict() for row in last.collect()]


def _run(row: Mapping[str, Any], counted: _Counted) -> Run:
    seconds = ("seconds", "decode_seconds", "wait_seconds", "encode_seconds")
    bins = counted.of_runs.get(row["run_id"], {})
    return Run(
        run_id=row["run_id"],
        command=row.get("command") or "",
        # Spark gives the local time of this process, without a zone.
        started_at=(row.get("started_at") or datetime.fromtimestamp(0)).astimezone(UTC),  # noqa: DTZ006
        outcome=row.get("outcome") or "",
        images=row.get("images") or 0,
        unscored=row.get("quarantined") or 0,
        **{name: row.get(name) or 0.0 for name in seconds},
        model=row.get("model"),
        policy=row.get("policy"),
        histogram=histogram(bins) if bins else (),
    )


def _facts(
    known: Mapping[str, str], policy: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Return what the report says of the model, the policy and the versions."""
    facts = {"model": known["model"], "fingerprint": known["model_fingerprint"]}
    try:
        card = load_card(known["model"])
    except NsfwSparkError:  # a card file of the user's own
        pass
    else:
        facts |= {"what it is": card.summary, "licence of the weights": card.licence}
        facts |= {"warning": card.warning} if card.warning else {}
    facts["policy of the last run"] = policy.get("policy") or "none; only `score` ran"
    inputs = dict.fromkeys(run["input"] for run in runs if run.get("input"))
    facts["input"] = ", ".join(list(inputs)[:5])
    versions: dict[str, str] = next((run["versions"] for run in runs if run.get("versions")), {})
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return {name: value for name, value in facts.items() if value}


def _with_examples(
    report: Report, rows: DataFrame, output: Output, options: JobOptions, view: ReportView
) -> Report:
    """Add images with a score, reasons with images that have none, and thumbnails."""
    contents, notes = _contents(rows, output, options)
    shown, bins = rows, report.bins
    if (file := _file_column(rows)) is not None and (files := _some_files(rows, file, view.seed)):
        shown = rows.filter(file.isin(files))
        bins = _Counted.of(shown, []).bins
        notes.append(
            f"The examples come from {len(files)} files of many images each, chosen at random: for others, "
            "more of these large files would have to be read. The counts are of all images."
        )
    found = _collected(shown.filter(_is_chosen(bins, report.threshold, view)), view)
    chosen = _chosen(found, report.threshold, view.examples)
    return replace(report, examples=_pictured(chosen, shown, contents), reasons=_reasons(rows), notes=notes)


def _contents(rows: DataFrame, output: Output, options: JobOptions) -> tuple[Contents, list[str]]:
    """Return the images that the table does not hold itself, and what is wrong with their sources."""
    columns = (options.content_column, options.id_column)
    if (named := open_contents(output.spark, options.content_from, *columns)) is not None:
        return named, []
    if "content" in rows.columns:
        return Contents(()), []
    contents, problems = recorded_contents(output, *columns)
    images = tuple(source for source in contents.sources if not source.has_vectors)
    return Contents(images), [f"Some images have no thumbnail: {problem}" for problem in problems]


def _file_column(rows: DataFrame) -> Column | None:
    """Return the column with the file of many images in which an image lies; None for image files."""
    if "content" in rows.columns:
        return F.col("_metadata.file_path")
    return F.col("source_file") if "source_file" in rows.columns else None


def _some_files(rows: DataFrame, file: Column, seed: int) -> list[str]:
    """Choose files at random; none if all are few enough."""
    files = rows.select(file.alias("file")).filter(F.col("file").isNotNull()).distinct()
    chosen = files.orderBy(F.xxhash64("file", F.lit(seed))).limit(_MOST_FILES + 1).collect()
    return [row.file for row in chosen[:_MOST_FILES]] if len(chosen) > _MOST_FILES else []


def _is_chosen(bins: Mapping[int, int], threshold: float, view: ReportView) -> Column:
    """Return the condition of a sample: about twice as many images as needed, near the threshold and by band.

    The counts are known, so that one scan suffices, without sorting the table.
    """
    wanted, place = view.examples, _hash(view.seed) / _HASHES
    middle, reach = round(threshold * NUM_STEPS), 0
    while reach < NUM_STEPS and _num_within(bins, middle - reach, middle + reach) < wanted:
        reach = 2 * reach + 1
    share = 2 * wanted / max(1, _num_within(bins, middle - reach, middle + reach))
    is_near = _bin().between(middle - reach, middle + reach) & (place < share)
    width = NUM_STEPS // _BANDS
    counts = [_num_within(bins, i * width, (i + 1) * width - (i < _BANDS - 1)) for i in range(_BANDS)]
    shares = F.array(*(F.lit(2 * wanted / _BANDS / max(1, count)) for count in counts))
    band = F.least(F.floor(_bin() / width).cast("int"), F.lit(_BANDS - 1))
    return is_ok() & (is_near | (place < F.get(shares, band)))


def _num_within(bins: Mapping[int, int], first: int, last: int) -> int:
    return sum(n for bin_, n in bins.items() if first <= bin_ <= last)


def _hash(seed: int) -> Column:
    """Return a number from 0 to 2**32 that depends on the image_id and the seed."""
    return F.pmod(F.xxhash64("image_id", F.lit(seed)), F.lit(_HASHES))


def _collected(rows: DataFrame, view: ReportView) -> list[Row]:
    """Return the rows of a sample in a random order, without images and embeddings."""
    wanted = {"image_id", "nsfw_score", "content_sha256", *_DETAILS}
    columns = [name for name in rows.columns if name.lower() in wanted]
    texts = [name for name in columns if dict(rows.dtypes)[name] == "string" and name != "image_id"]
    short = {name: F.substring(schema.quoted(name), 1, _MOST_TEXT) for name in texts if name in _DETAILS}
    chosen = rows.select(*map(schema.quoted, columns)).orderBy(_hash(view.seed)).limit(20 * view.examples)
    return chosen.withColumns(short).collect() if short else chosen.collect()


def _chosen(rows: Sequence[Row], threshold: float, number: int) -> list[Row]:
    """Choose half of the examples nearest to the threshold, and the others evenly by band."""
    nearest = sorted(rows, key=lambda row: abs(row.nsfw_score - threshold))[: number // 2]
    seen = {row.image_id for row in nearest}
    bands: dict[int, list[Row]] = {}
    for row in rows:
        if row.image_id not in seen:
            bands.setdefault(min(int(row.nsfw_score * _BANDS), _BANDS - 1), []).append(row)
    ranked = sorted((rank, band) for band, each in bands.items() for rank in range(len(each)))
    others = [bands[band][rank] for rank, band in ranked[: number - len(nearest)]]
    return [*nearest, *others]


def _reasons(rows: DataFrame) -> list[Reason]:
    """Count the images without a score by reason, with a few of each."""
    reason = F.regexp_replace(F.coalesce("error", F.lit("no reason is recorded")), r"\d+", "N")
    image = F.struct("image_id", F.substring("error", 1, _MOST_TEXT).alias("error"))
    grouped = rows.filter(~is_ok()).groupBy(
        F.coalesce("status", F.lit("none")).alias("status"), F.substring(reason, 1, 300).alias("reason")
    )
    some = (F.min(image).alias("first"), F.any_value(image).alias("any"), F.max(image).alias("last"))
    counted = grouped.agg(F.count(F.lit(1)).alias("images"), *some)
    top = counted.orderBy(F.desc("images"), "reason").limit(_MOST_REASONS).collect()
    return [
        Reason(
            row.status,
            row.reason,
            row.images,
            [
                Example(image_id, row.status, error=error)
                for image_id, error in dict.fromkeys((row["first"], row["any"], row["last"]))
            ],
        )
        for row in top
    ]


def _pictured(chosen: Sequence[Row], rows: DataFrame, contents: Contents) -> list[Example]:
    """Return the chosen rows as examples, with thumbnails that the executors make."""
    thumbnails = _thumbnails(chosen, rows, contents) if chosen else {}
    examples = []
    for row in chosen:
        small, problem = thumbnails.get(row.image_id, (None, _GONE))
        score = round(row.nsfw_score, 6)
        examples.append(Example(row.image_id, "ok", score, None, small, problem, _details(row.asDict())))
    return examples


def _details(row: Mapping[str, Any]) -> dict[str, str]:
    """Return what the page says of an image beside its score."""
    details = {name: str(row[name]) for name in row if name.lower() in _TEXTS and row[name]}
    if row.get("width") and row.get("length"):
        kilobytes = f"{row['length'] / 1000:,.0f} kB"
        details = {"file": f"{row['width']} x {row['height']} {row['format']}, {kilobytes}", **details}
    return details


def _thumbnails(
    chosen: Sequence[Row], rows: DataFrame, contents: Contents
) -> dict[str, tuple[bytes | None, str | None]]:
    """Return the thumbnail of each image, or why there is none."""
    spark, image_ids = rows.sparkSession, [row.image_id for row in chosen]
    if "content" in rows.columns:
        files = [F.col(name) for name in ("image_id", "content_sha256", "content")]
        images = rows.filter(F.col("image_id").isin(image_ids)).select(*files)
    elif contents.sources:
        columns = ["image_id", "content_sha256", *(["source_file"] if "source_file" in rows.columns else [])]
        types = rows.select(*columns).schema
        values = [[row[name] for name in columns] for row in chosen]
        images = spark.createDataFrame(values, types)
    else:
        return {}
    read = contents.read_files(contents.join(images).repartition(num_slots(spark) or 1))
    reduce_ = partial(_reduce, tries_once(spark))
    made = read.select("image_id", "content").mapInArrow(reduce_, _THUMBNAIL).collect()
    return {
        row.image_id: (None if row.thumbnail is None else bytes(row.thumbnail), row.problem) for row in made
    }


def _reduce(is_isolated: bool, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:  # noqa: FBT001
    """Make thumbnails of images in a Python worker."""
    columns = schema.arrow_schema(_THUMBNAIL)
    with task_decoder(DECODE_TIMEOUT_SECONDS, isolated=is_isolated) as decoder:
        for batch in batches:
            made = [
                {"image_id": image_id.as_py(), **_made(content.as_py(), decoder)}
                for image_id, content in zip(batch.column(0), batch.column(1), strict=True)
            ]
            yield pa.RecordBatch.from_pylist(made, schema=columns)


def _made(content: bytes | None, decoder: Decoder) -> dict[str, Any]:
    if content is None:
        return {"thumbnail": None, "problem": _GONE}
    try:
        return {"thumbnail": thumbnail(content, decoder), "problem": None}
    except ImageError as error:
        return {"thumbnail": None, "problem": str(error)}
