"""Decoding in a child process gives the same results; an image that ends the child costs only itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

import nsfw_spark
from nsfw_spark.decode import decode
from nsfw_spark.errors import ImageError, NsfwSparkError
from nsfw_spark.isolation import IsolatedDecoder
from nsfw_spark.model import Model
from nsfw_spark.scorer import Scorer
from tests.conftest import PHOTOS, grey, jpeg, png
from tests.fakes import FakeEncoder, FakeHead, card, card_content, until
from tests.poison import DEADLY, POISONOUS, poisoned

ROOT = Path(__file__).parents[2]
SQUARE = card().preprocessing
SHORT = 5.0
"""Seconds. A test of a child that hangs waits so long; any other image takes milliseconds."""
BAD = {
    "absent": None,
    "empty": b"",
    "text": b"no image",
    "truncated": jpeg()[:400],
    "document": b"%PDF-1.7",
    "large": png(200, 100),
}


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedDecoder]:
    """A decoder with poison installed in its children."""
    monkeypatch.syspath_prepend(POISONOUS)
    with IsolatedDecoder(SHORT) as decoder:
        yield decoder


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc, which tells signal masks")
def test_ctrl_c_reaches_no_child_not_even_one_that_starts(isolated: IsolatedDecoder) -> None:
    assert works(isolated)
    masks = {pid: Path(f"/proc/{pid}/status").read_text() for pid in (os.getpid(), child().pid)}
    blocked = [int(re.findall(r"SigBlk:\s*(\w+)", text)[0], 16) for text in masks.values()]
    assert [bool(mask & 1 << signal.SIGINT - 1) for mask in blocked] == [False, True]


def failure(decoder: IsolatedDecoder, content: bytes | None, **limits: int) -> ImageError:
    with pytest.raises(ImageError) as raised:
        decoder(content, SQUARE, **limits)
    return raised.value


def works(decoder: IsolatedDecoder) -> bool:
    """Return whether it decodes a good image correctly."""
    return np.array_equal(decoder(png(), SQUARE).pixels, decode(png(), SQUARE).pixels)


def child() -> psutil.Process:
    """Return the child process of this test that decodes."""
    (found,) = [each for each in psutil.Process().children() if "nsfw_spark.isolation" in each.cmdline()]
    return found


def test_the_child_gives_the_pixels_and_headers_of_decode(isolated: IsolatedDecoder) -> None:
    photos = sorted((PHOTOS / "photos").iterdir())
    assert len(photos) > 10
    for photo in photos:
        content = photo.read_bytes()
        expected, found = decode(content, SQUARE), isolated(content, SQUARE)
        assert np.array_equal(found.pixels, expected.pixels)
        assert (found.pixels.dtype, found.header) == (expected.pixels.dtype, expected.header)


@pytest.mark.parametrize("name", BAD)
def test_an_image_that_is_merely_bad_gives_the_error_of_decode(isolated: IsolatedDecoder, name: str) -> None:
    with pytest.raises(ImageError) as expected:
        decode(BAD[name], SQUARE, max_pixels=19_999)
    found = failure(isolated, BAD[name], max_pixels=19_999)
    assert found.args == expected.value.args


def test_without_its_folder_on_the_path_poison_does_nothing() -> None:
    """Without poison installed the images are harmless, so the tests below show the poison's effect."""
    with IsolatedDecoder(SHORT) as decoder:
        assert all(decoder(poisoned(poison), SQUARE).header.format == "PNG" for poison in DEADLY)


@pytest.mark.parametrize("poison", DEADLY)
def test_an_image_that_ends_the_process_is_crashed_and_the_next_one_is_not(
    isolated: IsolatedDecoder, poison: str
) -> None:
    assert works(isolated)
    error = failure(isolated, poisoned(poison))
    assert (error.status, error.header) == ("crashed", None)
    assert DEADLY[poison] in error.message
    assert works(isolated)


def test_an_image_that_hangs_in_native_code_is_crashed_and_the_message_names_the_option(
    isolated: IsolatedDecoder,
) -> None:
    first = child()
    error = failure(isolated, poisoned("hang"))
    assert error.status == "crashed"
    assert "decode_timeout_seconds = 5 (--decode-timeout-seconds)" in error.message
    assert not first.is_running()
    assert works(isolated)


def test_an_image_that_takes_all_memory_is_too_large_and_the_message_names_the_limit(
    isolated: IsolatedDecoder,
) -> None:
    first = child()
    error = failure(isolated, poisoned("hoard"), max_pixels=1_000_000)
    assert error.status == "too_large"
    assert "0.3 GB" in error.message
    assert "max_pixels = 1000000" in error.message
    assert error.header is not None
    assert works(isolated)
    assert child() == first, "a child that survived was replaced"


def test_an_image_is_not_blamed_for_what_one_before_it_did(isolated: IsolatedDecoder) -> None:
    assert isolated(poisoned("damage"), SQUARE).header.format == "PNG"
    first = child()
    assert works(isolated)
    assert child() != first, "the damage did not show"


def test_a_child_that_somebody_kills_costs_no_image(isolated: IsolatedDecoder) -> None:
    assert works(isolated)
    first = child()
    first.kill()
    assert works(isolated)
    assert child() != first


def test_a_child_that_somebody_stops_is_replaced() -> None:
    with IsolatedDecoder(1.0) as decoder:
        child().suspend()
        assert failure(decoder, png()).status == "crashed"
        assert works(decoder)


def test_the_child_ends_with_its_decoder() -> None:
    with IsolatedDecoder() as decoder:
        first = child()
        assert works(decoder)
    assert not first.is_running()
    decoder = IsolatedDecoder()
    assert works(decoder)  # starts one
    second = child()
    del decoder
    assert not second.is_running()


def test_the_child_ends_with_its_parent() -> None:
    code = """
import sys, time
from nsfw_spark.isolation import IsolatedDecoder
with IsolatedDecoder():
    print("ready", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        try:
            assert parent.stdout.readline() == b"ready\n"
            (orphan,) = psutil.Process(parent.pid).children()
        finally:
            parent.kill()
    until(lambda: not orphan.is_running())


def test_where_no_child_can_start_that_is_an_error_and_no_image_is_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(OSError, match="does not start: /bin/false ended with status 1"):
        IsolatedDecoder()(png(), SQUARE)


def test_a_fork_of_the_process_has_a_child_of_its_own(isolated: IsolatedDecoder) -> None:
    assert works(isolated)
    first = child()
    if (fork := os.fork()) == 0:
        status = 1
        try:
            status = 0 if works(isolated) and child() != first else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
    assert works(isolated)
    assert child() == first


def test_a_defect_is_not_taken_for_a_bad_image(isolated: IsolatedDecoder) -> None:
    with pytest.raises(NsfwSparkError, match=r"unexpected TypeError .*no_such_limit") as raised:
        isolated(png(), SQUARE, no_such_limit=1)
    assert not isinstance(raised.value, ImageError)


def test_a_scorer_goes_on_after_poison(isolated: IsolatedDecoder) -> None:
    scorer = Scorer(card(), Model(FakeEncoder(), FakeHead(), "fingerprint", 4), decoder=isolated)
    contents = [grey(51), poisoned("abort"), None, poisoned("crash"), grey(255)]
    scores = scorer.score(contents)
    assert [score.status for score in scores] == ["ok", "crashed", "missing", "crashed", "ok"]
    assert [score.nsfw_score for score in scores] == pytest.approx([0.2, None, None, None, 1.0], abs=1e-6)
    crashed = scores[1]
    assert (crashed.length, crashed.embedding) == (len(poisoned("abort")), None)
    assert crashed.content_sha256 is not None
    assert "SIGABRT" in str(crashed.error)


def test_load_scorer_isolates_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(POISONOUS)
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(card_content()), encoding="utf-8")
    contents = [png(), poisoned("crash"), poisoned("hang"), png()]
    scorer = nsfw_spark.load_scorer(path, device="cpu", isolated=True, decode_timeout_seconds=2)
    first, crashed, hung, last = scorer.score(contents)
    assert [score.status for score in (first, crashed, hung, last)] == ["ok", "crashed", "crashed", "ok"]
    assert "decode_timeout_seconds = 2" in str(hung.error)
    plain = nsfw_spark.load_scorer(path, device="cpu").score([png()])[0]
    assert [first.nsfw_score, last.nsfw_score] == pytest.approx([plain.nsfw_score] * 2, abs=1e-6)
