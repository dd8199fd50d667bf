"""The page of a report: what is in its file, how large it is, and how it is written and served."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from nsfw_spark.errors import ConfigError, StorageError
from nsfw_spark.review import page as page_module
from nsfw_spark.review.page import (
    MAX_BYTES,
    content_security_policy,
    drift,
    percent,
    render,
    visible,
    write_page,
)
from nsfw_spark.review.report import Example, Group, Reason
from nsfw_spark.review.serve import PageServer, open_server, serve
from tests import pages
from tests.conftest import jpeg


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def markup_of(html: str) -> str:
    """Return the HTML without the contents of style and script."""
    return re.sub(r"(<(script|style)[^>]*>).*?(</\2>)", r"\1\3", html, flags=re.DOTALL)


def test_the_policy_names_exactly_the_script_and_the_style_of_the_page() -> None:
    html = render(pages.report())
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert policy[1].replace("&#39;", "'") == content_security_policy()
    for kind, tag in (("script-src", "script"), ("style-src", "style")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in content_security_policy()
    for directive in ("default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"):
        assert directive in content_security_policy()


@pytest.mark.parametrize(
    "report", [pages.report(), pages.hostile(), pages.EMPTY], ids=["usual", "hostile", "empty"]
)
def test_a_page_has_no_handlers_no_inline_styles_and_no_addresses(report: pages.Report) -> None:
    html = render(report)
    tags = re.findall(r"<[a-zA-Z](?:[^>\"]|\"[^\"]*\")*>", markup_of(html))
    assert tags
    names = {name for tag in tags for name in re.findall(r'\s([\w:-]+)="', re.sub(r'"[^"]*"', '""', tag))}
    assert not [
        name for name in names if name.startswith("on") or name in ("style", "src", "srcset", "action")
    ]
    assert all(link.startswith("#") for link in re.findall(r'\shref="([^"]*)"', " ".join(tags)))
    assert html.count("<script") == 2
    assert html.count("</script>") == 2


def test_the_script_never_parses_markup_or_code() -> None:
    script = (Path(page_module.__file__).parent / "page.js").read_text(encoding="utf-8")
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script
    )
    assert "textContent" in script


@pytest.mark.parametrize("text", pages.HOSTILE)
def test_an_id_reaches_the_script_as_it_is_and_no_text_leaves_its_place(text: str) -> None:
    html = render(pages.report(examples=[Example(text, "ok", 0.5, details={"caption": text})]))
    html.encode()  # no lone surrogates
    assert [each["id"] for each in data_of(html)["examples"]] == [text]
    assert "window.__hacked = 1<" not in html
    assert "\u2028" not in html


@pytest.mark.parametrize("text", pages.HOSTILE)
def test_the_template_escapes_and_shows_what_steers(text: str) -> None:
    html = render(pages.report(title=text, notes=[text], facts={text: text}, statuses={text: 1}, examples=[]))
    markup = markup_of(html)
    assert "<img" not in markup
    assert "49" not in re.findall(r"<title>(.*?)</title>", markup)[0]
    assert not re.search(r"[\x00\x1b\u202e\u2066\u2028\ud800]", markup)


def test_visible_replaces_what_steers_and_keeps_letters() -> None:
    assert visible("a\u202eb\x00\ud800\u200b") == "a\ufffdb\ufffd\ufffd\ufffd"
    assert (
        visible("größe 日本 עברית \U0001f468\u200d\U0001f469")
        == "größe 日本 עברית \U0001f468\u200d\U0001f469"
    )


def test_all_texts_of_a_hostile_report_are_shortened_until_they_fit() -> None:
    html = render(pages.hostile())
    assert len(html.encode()) < MAX_BYTES
    assert len(data_of(html)["examples"]) > 0


@pytest.mark.parametrize("size", [1, 4_000])
def test_no_report_is_too_large_for_a_page(size: int) -> None:
    text = "\U0001f600" * size
    example = Example(text, "ok", 0.5, details={f"{text}{i}": text for i in range(20)})
    many = [dataclasses.replace(example, image_id=f"{i}{text[:3_990]}") for i in range(2_000)]
    groups = {f"{text}{i}": [Group(text, dict.fromkeys(range(1_001), 10**6))] * 200 for i in range(20)}
    report = pages.report(
        title=text,
        examples=many,
        reasons=[Reason(text, text, 1, many[:50])] * 200,
        groups=groups,
        notes=[text] * 300,
        facts={f"{i}{text}": text for i in range(300)},
        runs=[dataclasses.replace(pages.runs(pages.scores(50))[0], policy=text, model=text)] * 500,
        filter_command=text,
    )
    html = render(report)
    assert len(html.encode()) < MAX_BYTES
    assert "examples are left out" in html


def test_thumbnails_beyond_the_budget_are_left_out_and_the_page_says_so() -> None:
    report = pages.heavy()
    html = render(report)
    assert sum(len(each.thumbnail or b"") for each in report.examples) > MAX_BYTES
    assert 3_000_000 < len(html.encode()) < MAX_BYTES
    shown = [each for each in data_of(html)["examples"] if "thumb" in each]
    left_out = len(report.examples) - len(shown)
    assert f"{left_out:,} thumbnails are left out" in html
    near = sorted(report.examples, key=lambda each: abs((each.score or 0) - report.threshold))
    assert shown[0]["id"] == near[0].image_id
    assert base64.b64decode(shown[0]["thumb"]) == near[0].thumbnail


def test_an_image_is_shown_once_and_odd_scores_are_not() -> None:
    one = Example("a", "ok", 0.5)
    odd = [Example("b", "ok", float("nan")), Example("c", "ok", 7.0), Example("d", "missing")]
    failed = Reason("not_finite", "N", 1, [Example("e", "not_finite", float("nan"))])
    html = render(pages.report(examples=[one, one, *odd], reasons=[failed]))
    assert [each["id"] for each in data_of(html)["examples"]] == ["a"]
    assert "examples are left out" not in html


def test_a_thumbnail_that_is_no_picture_is_a_placeholder() -> None:
    kinds = {"jpeg": jpeg(8, 8), "webp": pages.webp(1), "svg": b"<svg onload='alert(1)'/>", "none": b""}
    made = [Example(name, "ok", 0.5, thumbnail=content) for name, content in kinds.items()]
    cards = {each["id"]: each for each in data_of(render(pages.report(examples=made)))["examples"]}
    assert {name: card.get("mime") for name, card in cards.items()} == {
        "jpeg": "image/jpeg",
        "webp": "image/webp",
        "svg": None,
        "none": None,
    }
    assert "is not WebP, JPEG or PNG" in cards["svg"]["missing"]


def test_a_page_of_a_million_images_is_as_small_as_one_of_a_hundred() -> None:
    small, large = (pages.report(n, 60) for n in (1_000, 1_000_000))
    few, many = (len(render(report)) for report in (small, large))
    assert many < 1.2 * few


def test_first_thresholds_and_counts() -> None:
    html = render(pages.report(threshold=0.5))
    data = data_of(html)
    assert (data["low"], data["high"]) == (500, 700)
    values = pages.scores(2_000)
    allow = int((values < pages.np.float32(0.5)).sum())
    review = int((values < pages.np.float32(0.7)).sum()) - allow
    for band, count in (("allow", allow), ("review", review), ("block", 2_000 - allow - review)):
        assert f'id="count-{band}">{count:,} image' in html


def test_numbers_of_numpy_are_numbers() -> None:
    score, bins = pages.np.float32(0.5), {pages.np.int64(500): pages.np.int64(3)}
    groups = {"host": [Group("a", bins, pages.np.int64(2))]}
    data = data_of(render(pages.report(bins=bins, groups=groups, examples=[Example("a", "ok", score)])))
    assert data["bins"] == data["groups"][0]["values"][0]["bins"] == {"500": 3}
    assert data["examples"][0]["score"] == 0.5


def test_a_threshold_between_two_steps_is_told() -> None:
    assert "begins at 0.123" in " ".join(render(pages.report(threshold=0.12345)).split())
    assert "begins at" not in render(pages.report(threshold=0.3))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"examples": []}, "There are no examples: make this page again"),
        ({"bins": {}, "examples": []}, "No image has a score: the reasons are"),
        ({"bins": {500: 1}, "statuses": {"ok": 1}}, "With a single score there is little to see"),
        ({"statuses": {"ok": 2_000}, "reasons": []}, "Every image has a score."),
    ],
)
def test_a_section_without_contents_says_what_to_do(fields: dict[str, Any], expected: str) -> None:
    assert expected in " ".join(render(pages.report(**fields)).split())


def test_an_empty_report_says_what_to_do_and_leaves_out_the_rest() -> None:
    html = " ".join(markup_of(render(pages.EMPTY)).split())
    assert "none was listed. Check INPUT" in html
    for section in ("groups", "classes", "runs", "facts"):
        assert f'id="{section}"' not in html
        assert f'href="#{section}"' not in html


def test_drift_is_small_for_a_resample_and_large_for_another_distribution() -> None:
    one = pages.histogram(pages.bins_of(pages.scores(5_000, seed=1)))
    other = pages.histogram(pages.bins_of(pages.scores(5_000, seed=2)))
    assert drift(one, one) == 0
    assert 0 < drift(one, other) < 0.1
    assert drift(one, one[::-1]) > 1
    assert drift([100, 0], [50, 50]) == pytest.approx(drift([100, 0], [50, 50]), abs=0)
    assert drift([75, 25], [50, 50]) == pytest.approx(0.2747, abs=0.01)  # (-.25)ln(2/3) + .25 ln 2


def test_the_drift_of_a_run_is_that_to_the_run_before_that_scored_something() -> None:
    html = " ".join(render(pages.report()).split())
    (shown,) = re.findall(r'<td>([\d.]+) <small class="drift (\w+)">', html)
    values = pages.scores(2_000)
    counts = [pages.histogram(pages.bins_of(each)) for each in (values, pages.np.sqrt(values))]
    assert shown == (f"{drift(*counts):.2f}", "large")


def test_shares_never_look_like_nothing_or_everything() -> None:
    assert [percent(share) for share in (0, 1e-6, 0.5, 1 - 1e-6, 1)] == [
        "0.0 %",
        "<0.1 %",
        "50.0 %",
        ">99.9 %",
        "100.0 %",
    ]


def test_a_page_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "review.html"
    path.write_text("old")
    write_page(pages.report(), path)
    assert path.read_text(encoding="utf-8") == render(pages.report())
    assert [each.name for each in tmp_path.iterdir()] == ["review.html"]
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["absent/review.html", "", "file/review.html", "a\x00b", "x" * 300])
def test_a_page_that_cannot_be_written_is_an_error_in_words(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^page .*; expected "):
        write_page(pages.EMPTY, f"{tmp_path}/{name}")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_an_error_of_storage_and_keeps_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "review.html"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StorageError, match="No space left on device; free some space"):
        write_page(pages.EMPTY, path)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["review.html"]


@pytest.fixture
def server() -> Iterator[PageServer]:
    with open_server("<p>größe</p>") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def answer(
    server: PageServer, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, bytes, Any]:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.request(method, path, headers={"Host": host} if host else {})
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def test_a_served_page_has_its_policy_in_the_header(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    path = server.url.removeprefix(f"http://127.0.0.1:{server.server_port}")
    status, body, headers = answer(server, path)
    assert (status, body.decode()) == (200, "<p>größe</p>")
    assert headers["Content-Security-Policy"] == f"{content_security_policy()}; frame-ancestors 'none'"
    assert headers["Cache-Control"] == "no-store"
    assert answer(server, path, "HEAD")[:2] == (200, b"")
    assert answer(server, path, host=f"localhost:{server.server_port}")[0] == 200


def test_other_hosts_and_other_paths_get_nothing(server: PageServer) -> None:
    path = server.url.removeprefix(f"http://127.0.0.1:{server.server_port}")
    for host in (
        "evil.example",
        f"evil.example:{server.server_port}",
        "127.0.0.1",
        f"127.0.0.1:{server.server_port}.evil",
    ):
        status, body, _ = answer(server, path, host=host)
        assert status == 421
        assert "größe".encode() not in body
    for wrong in ("/", "/favicon.ico", f"{path}../", path + "x", "/gr%C3%B6sse"):
        assert answer(server, wrong)[0] == 404
    assert answer(server, path, "POST")[0] == 501


def test_a_taken_port_is_an_error_in_words(server: PageServer) -> None:
    with pytest.raises(
        ConfigError, match=f"port {server.server_port} of 127.0.0.1 cannot be opened: .* in use"
    ):
        open_server("", server.server_port)
    with pytest.raises(ConfigError, match="expected a free port"):
        open_server("", 70_000)


def test_ctrl_c_ends_serving() -> None:
    urls: list[str] = []

    def interrupt(url: str) -> None:
        urls.append(url)
        threading.Timer(0.3, os.kill, (os.getpid(), 2)).start()

    serve("", on_ready=interrupt)
    assert urls
