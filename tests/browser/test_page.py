"""The page of a report in a real browser: what people do with it, and what it must never do."""

from __future__ import annotations

import csv
import re
from io import StringIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from nsfw_spark.review.page import MAX_BYTES, write_page
from nsfw_spark.review.report import Example
from tests import pages
from tests.browser.conftest import OpenPage

NUM: Final = 5_000
SCORES: Final = pages.scores(NUM)


def counts(page: Page) -> list[int]:
    """Return what the page says of its bands."""
    return seen(page)[1]


def seen(page: Page) -> tuple[tuple[str, str], list[int]]:
    """Return the thresholds and the numbers of images in the bands, of one moment."""
    low, high, *texts = page.evaluate(
        """() => [
          ...["low", "high"].map((which) => document.getElementById(which).getAttribute("aria-valuenow")),
          ...["allow", "review", "block"].map((band) => document.getElementById(`count-${band}`).textContent),
        ]"""
    )
    return (low, high), [int(text.split()[0].replace(",", "")) for text in texts]


def expected(low: str, high: str, scores: Any = SCORES) -> list[int]:  # noqa: ANN401 - float32 (N,)
    """Count as a policy does, with float32, without the page's bins."""
    allow, below_high = ((scores < np.float32(each)).sum() for each in (low, high))
    return [int(allow), int(below_high - allow), int(len(scores) - below_high)]


def thresholds(page: Page) -> tuple[str, str]:
    return seen(page)[0]


def labels(page: Page) -> list[dict[str, str]]:
    """Export the labels, and return them."""
    return list(csv.DictReader(StringIO(exported(page), newline="")))


def exported(page: Page) -> str:
    with page.expect_download() as download:
        page.click("#export")
    assert download.value.suggested_filename == "labels.csv"
    return download.value.path().read_bytes().decode()


def import_labels(page: Page, content: str | bytes, name: str = "labels.csv") -> None:
    buffer = content.encode() if isinstance(content, str) else content
    page.set_input_files("#file", {"name": name, "mimeType": "text/csv", "buffer": buffer})


def ids(page: Page) -> list[str]:
    """Return the names of the shown images, in their order."""
    return page.locator("#gallery .id").evaluate_all("all => all.map(each => each.title)")


# Thresholds


def test_keys_move_the_thresholds_and_the_counts_are_those_of_a_policy(open_page: OpenPage) -> None:
    page = open_page(pages.report(NUM))
    assert counts(page) == expected(*thresholds(page))
    moves = [
        "ArrowRight",
        "PageUp",
        "ArrowUp",
        "PageDown",
        "ArrowLeft",
        "ArrowDown",
        "Home",
        "PageUp",
        "End",
        "PageDown",
    ]
    places = set()
    for which in ("low", "high"):
        page.focus(f"#{which}")
        for key in moves:
            page.keyboard.press(key)
            places.add((which, *thresholds(page)))
            assert counts(page) == expected(*thresholds(page)), (which, key)
    assert len(places) >= 12


def test_twenty_positions_have_the_counts_of_a_policy(open_page: OpenPage) -> None:
    page = open_page(pages.report(NUM))
    page.fill("#high-number", "1")
    for low in np.linspace(0, 1, 20).round(3):
        page.fill("#low-number", f"{low:.3f}")
        assert thresholds(page) == (f"{low:.3f}", "1.000")
        assert counts(page) == expected(f"{low:.3f}", "1.000")


class Finger:
    """Touches a page, with the calls of a mouse."""

    def __init__(self, page: Page) -> None:
        self._session, self._at = page.context.new_cdp_session(page), (0.0, 0.0)
        self._is_down = False

    def move(self, x: float, y: float) -> None:
        self._at = (x, y)
        if self._is_down:
            self._send("touchMove")

    def down(self) -> None:
        self._is_down = True
        self._send("touchStart")

    def up(self) -> None:
        self._is_down = False
        self._send("touchEnd")

    def _send(self, kind: str) -> None:
        points = [{"x": self._at[0], "y": self._at[1]}] if self._is_down else []
        self._session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


@pytest.mark.parametrize("is_touch", [False, True], ids=["mouse", "touch"])
def test_the_pointer_drags_the_thresholds_to_where_it_is(open_page: OpenPage, *, is_touch: bool) -> None:
    page = open_page(pages.report(NUM), has_touch=is_touch, viewport={"width": 1280, "height": 1300})
    pointer = Finger(page) if is_touch else page.mouse
    moved = set()
    for which, by in [("low", -40), ("high", 200), ("low", 100), ("high", -120), ("low", 17), ("high", 33)]:
        box = page.locator(f"#{which} .grip").bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        pointer.move(x, y)
        pointer.down()
        for part in range(1, 5):
            pointer.move(x + by * part / 4, y + 3)
            at, shown = seen(page)
            assert shown == expected(*at)
        pointer.up()
        page.wait_for_timeout(50)  # a finger's movements arrive with the next frame
        after = page.locator(f"#{which} .grip").bounding_box()
        assert after is not None
        assert after["x"] - box["x"] == pytest.approx(by, abs=2)
        moved.add(thresholds(page))
        pointer.move(x, y + 5)  # no longer held
        assert thresholds(page) in moved
    assert len(moved) == 6


def test_the_thresholds_never_cross(open_page: OpenPage) -> None:
    page = open_page(pages.report(NUM))
    page.focus("#low")
    page.keyboard.press("End")
    assert thresholds(page) == ("0.580", "0.580")
    page.focus("#high")
    page.keyboard.press("Home")
    assert thresholds(page) == ("0.580", "0.580")
    page.fill("#low-number", "0.9")
    page.locator("#low-number").blur()
    assert page.input_value("#low-number") == "0.580"
    page.fill("#low-number", "")
    page.fill("#high-number", "-3")
    page.locator("#high-number").blur()
    assert thresholds(page) == ("0.580", "0.580")
    assert counts(page) == expected("0.580", "0.580")
    page.click("#reset")
    assert thresholds(page) == ("0.300", "0.580")


def test_the_breakdown_the_command_and_the_announcement_follow(open_page: OpenPage) -> None:
    page = open_page(pages.report(NUM))
    page.fill("#low-number", "0.1")
    half = SCORES[: NUM // 2]
    cells = page.locator("#breakdown tbody tr").first.locator("td")
    for i, count in enumerate(expected("0.100", "0.580", half), start=1):
        assert cells.nth(i).get_attribute("title") == f"{count:,} of {len(half):,}"
    expect(page.locator("#command")).to_have_text("nsfw-spark filter s3a://bucket/scores --threshold 0.100")
    page.get_by_label("Keep in").check()
    expect(page.locator("#command")).to_have_text("nsfw-spark filter s3a://bucket/scores --threshold 0.580")
    expect(page.locator("#live")).to_contain_text(f"{counts(page)[0]:,} images")
    assert page.locator("#live").get_attribute("aria-live") == "polite"


def test_copying_copies_or_selects(open_page: OpenPage) -> None:
    page = open_page(pages.report())
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.click("#copy")
    expect(page.locator("#copied")).to_have_text("The command is selected: copy it with Ctrl+C.")
    assert page.evaluate("getSelection().toString()") == page.locator("#command").inner_text()


def test_the_scale_changes_the_bars(open_page: OpenPage) -> None:
    page = open_page(pages.report())
    linear = page.locator(".bar-allow").get_attribute("d")
    page.get_by_label("Log", exact=True).check()
    assert page.locator(".bar-allow").get_attribute("d") != linear


# Images


def test_the_nearest_come_first_and_follow_the_threshold(open_page: OpenPage) -> None:
    report = pages.report(num_examples=60)
    page = open_page(report)
    for low in (0.3, 0.05):
        page.fill("#low-number", str(low))
        near = sorted(report.examples, key=lambda each: abs((each.score or 0) - low))[:24]
        expect(page.locator("#gallery .id").first).to_have_attribute("title", near[0].image_id)
        assert ids(page) == [each.image_id for each in near]
    page.select_option("#order", "highest")
    assert ids(page)[0] == max(report.examples, key=lambda each: each.score or 0).image_id
    page.select_option("#band", "block")
    assert set(page.locator("#gallery .chip").all_inner_texts()) == {"block"}
    wanted = [each for each in report.examples if np.float32(each.score) >= np.float32(0.58)]
    assert page.locator("#gallery .card").count() == len(wanted)


def test_pages_of_24(open_page: OpenPage) -> None:
    page = open_page(pages.report(num_examples=60))
    found = ids(page)
    for shown in ("25\u201348 of 60", "49\u201360 of 60"):
        page.click("#next")
        expect(page.locator("#page")).to_have_text(shown)
        found += ids(page)
    assert page.locator("#next").is_disabled()
    assert len(set(found)) == len(found) == 60


def test_a_thumbnail_is_blurred_until_it_is_held(open_page: OpenPage) -> None:
    page = open_page(pages.report(), has_touch=True)
    thumb = page.locator("#gallery .thumb:has(img)").first
    image = thumb.locator("img")
    blurred = re.compile(r"blur\((\d\d)px\)")
    expect(image).to_have_css("filter", blurred)
    thumb.hover()
    expect(image).to_have_css("filter", blurred)
    page.mouse.down()
    expect(image).to_have_css("filter", "none")
    assert thumb.get_attribute("aria-pressed") == "true"
    page.mouse.up()
    expect(image).to_have_css("filter", blurred)
    finger, box = Finger(page), thumb.bounding_box()
    assert box is not None
    finger.move(box["x"] + 20, box["y"] + 20)
    finger.down()
    expect(image).to_have_css("filter", "none")
    finger.up()
    expect(image).to_have_css("filter", blurred)
    for key in ("Space", "Enter"):
        thumb.focus()
        page.keyboard.down(key)
        expect(image).to_have_css("filter", "none")
        page.keyboard.up(key)
        expect(image).to_have_css("filter", blurred)
    page.keyboard.down("Space")
    page.focus("#order")  # the key is let go somewhere else
    expect(image).to_have_css("filter", blurred)
    page.keyboard.up("Space")
    assert image.evaluate("each => each.naturalWidth") == 64


def test_an_image_without_a_thumbnail_says_why(open_page: OpenPage) -> None:
    page = open_page(pages.report(num_examples=10))
    absent = page.locator("#gallery .thumb:not(:has(img))")
    expect(absent).to_have_text("the image is no longer there")
    assert absent.get_attribute("aria-pressed") is None


def test_a_reason_shows_its_examples(open_page: OpenPage) -> None:
    page = open_page(pages.report())
    page.get_by_text("damaged at byte N").click()
    card = page.locator("#unscored .card")
    expect(card).to_contain_text("bad.jpg")
    expect(card).to_contain_text("error: damaged")
    expect(card).to_contain_text("cannot be decoded")


# Labels


def test_keys_label_and_z_takes_back(open_page: OpenPage) -> None:
    page = open_page(pages.report(num_examples=30))
    order = ids(page)
    page.click("#start")
    page.keyboard.type("suxs")
    expect(page.locator("#labelled")).to_have_text("4 of 30 labelled")
    page.keyboard.type("z")
    expect(page.locator("#labelled")).to_have_text("3 of 30 labelled")
    rows = labels(page)
    assert [(row["image_id"], row["label"]) for row in rows] == list(
        zip(order, ["safe", "unsafe", "skip"], strict=False)
    )
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["when"]) for row in rows)
    page.click("#undo")
    page.click("#undo")
    page.click("#undo")
    expect(page.locator("#labelled")).to_have_text("0 of 30 labelled")
    assert page.locator("#undo").is_disabled()
    assert page.locator("#export").is_disabled()


def test_labelling_goes_on_to_the_next_page(open_page: OpenPage) -> None:
    page = open_page(pages.report(num_examples=30))
    page.click("#start")
    page.keyboard.type("s" * 25)
    expect(page.locator("#labelled")).to_have_text("25 of 30 labelled")
    expect(page.locator("#page")).to_have_text("25\u201330 of 30")
    page.keyboard.type("zz")
    expect(page.locator("#page")).to_have_text("1\u201324 of 30")
    expect(page.locator("#labelled")).to_have_text("23 of 30 labelled")


def test_labelling_what_is_unlabelled_shrinks_the_list(open_page: OpenPage) -> None:
    page = open_page(pages.report(num_examples=5))
    page.select_option("#label", "none")
    page.click("#start")
    page.keyboard.type("ssuux")
    expect(page.locator("#labelled")).to_have_text("5 of 5 labelled")
    expect(page.locator("#none")).to_be_visible()
    page.select_option("#label", "unsafe")
    assert page.locator("#gallery .card").count() == 2


def test_keys_do_nothing_elsewhere(open_page: OpenPage) -> None:
    page = open_page(pages.report())
    for place in ("#low-number", "#order", "#low", "#start"):
        page.focus(place)
        page.keyboard.type("sux")
    page.click("#start")
    for key in ("Control+s", "Alt+u"):
        page.keyboard.press(key)
    expect(page.locator("#labelled")).to_have_text("0 of 60 labelled")


def test_buttons_label_and_take_back(open_page: OpenPage) -> None:
    page = open_page(pages.report())
    first = page.locator("#gallery .card").first
    first.get_by_role("button", name="unsafe", exact=True).click()
    expect(first.locator(".unsafe")).to_have_attribute("aria-pressed", "true")
    first.get_by_role("button", name="unsafe", exact=True).click()
    expect(first.locator(".unsafe")).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#labelled")).to_have_text("0 of 60 labelled")


def test_labels_survive_a_reload(open_page: OpenPage) -> None:
    page = open_page(pages.report())
    page.click("#start")
    page.keyboard.type("su")
    page.reload()
    expect(page.locator("#labelled")).to_have_text("2 of 60 labelled")
    assert [row["label"] for row in labels(page)] == ["safe", "unsafe"]


def test_without_storage_labels_work_and_the_page_warns(open_page: OpenPage) -> None:
    page = open_page(pages.EMPTY)
    page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new Error('no'); }})")
    write_page(pages.report(), Path(page.url.removeprefix("file://")))
    page.reload()
    page.click("#start")
    page.keyboard.type("s")
    expect(page.locator("#labelled")).to_have_text("1 of 60 labelled")
    expect(page.locator("#message")).to_contain_text("export them before you close it")
    assert len(labels(page)) == 1


def test_an_export_is_imported_again_whatever_the_ids_are(open_page: OpenPage, tmp_path: Path) -> None:
    hostile = [text for text in pages.HOSTILE if "\ud800" not in text]
    made = [Example(text, "ok", 0.5) for text in hostile]
    page = open_page(pages.report(examples=made))
    page.click("#start")
    page.keyboard.type("u" * len(made))
    content = exported(page)
    assert content.startswith("image_id,label,when\r\n")
    assert {row["image_id"] for row in csv.DictReader(StringIO(content, newline=""))} == set(hostile)
    other = tmp_path / "other.html"
    write_page(pages.report(examples=made[:5], title="other"), other)
    again = open_page(other)
    import_labels(again, content)
    expect(again.locator("#labelled")).to_have_text(f"5 of 5 labelled, and {len(made) - 5} of other images")
    expect(again.locator("#message")).to_contain_text(
        f"{len(made)} labels imported; {len(made) - 5} of images that"
    )
    assert sorted(exported(again).splitlines()) == sorted(content.splitlines())


def test_of_two_labels_the_later_one_holds(open_page: OpenPage) -> None:
    page = open_page(pages.report(examples=[Example(name, "ok", 0.5) for name in "ab"]))
    page.click("#start")
    page.keyboard.type("ss")
    import_labels(
        page,
        "\ufeffimage_id,label,when\na,unsafe,2000-01-01T00:00:00Z\nb,skip,2999-01-01T00:00:00Z\nb,unsafe,2998-01-01T00:00:00Z\n",
    )
    expect(page.locator("#message")).to_have_text("3 labels imported.")
    assert {row["image_id"]: row["label"] for row in labels(page)} == {"a": "safe", "b": "skip"}
    page.click("#undo")
    assert {row["image_id"]: row["label"] for row in labels(page)} == {"a": "safe", "b": "safe"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "the first line is “”, but image_id,label,when was expected"),
        ("name,label\nx,safe\n", "the first line is “name,label”"),
        ("image_id,label,when\na,maybe,2026-01-01T00:00:00Z\n", "line 2 has the label “maybe”"),
        ("image_id,label,when\na,safe,yesterday\n", "line 2 has the time “yesterday”"),
        ("image_id,label,when\na,safe\n", "line 2 has 2 fields, but 3 were expected"),
        ('image_id,label,when\n"a,safe,2026-01-01T00:00:00Z\n', "line 2: a field begins with"),
        ('image_id,label,when\na"b,safe,2026-01-01T00:00:00Z\n', "line 2: a quotation mark stands inside"),
        (b"image_id,label,when\n\xff\xfe,safe,2026-01-01T00:00:00Z\n", "it is not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "it is not UTF-8 text"),
        ("<script>window.__hacked = 1</script>", "the first line is “<script>"),
    ],
)
def test_a_malformed_file_gives_a_sentence_and_changes_nothing(
    open_page: OpenPage, content: str | bytes, reason: str
) -> None:
    page = open_page(pages.report())
    import_labels(page, content, "bad.csv")
    expect(page.locator("#message")).to_contain_text("Nothing was imported from bad.csv: ")
    expect(page.locator("#message")).to_contain_text(reason)
    expect(page.locator("#labelled")).to_have_text("0 of 60 labelled")


# What the page must never do


@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_texts_are_shown_and_never_run(open_page: OpenPage, width: int) -> None:
    page = open_page(pages.hostile(), viewport={"width": width, "height": 900})
    page.locator("details[data-reason]").evaluate_all("all => all.forEach(each => { each.open = true; })")
    expect(page.locator("#unscored ol").last).to_be_attached()
    page.click("#start")
    page.keyboard.type("sux")
    shown = page.locator("body").inner_text()
    assert "<script>window.__hacked = 1" in shown
    assert not re.search(r"[\u202a-\u202e\u2066-\u2069\x00\x1b]", shown)
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("script").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_policy_is_in_force(browser: Browser, tmp_path: Path) -> None:
    """The script waits first: what a debugger evaluates at once is beyond the policy."""
    write_page(pages.report(), tmp_path / "review.html")
    page = browser.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.goto((tmp_path / "review.html").as_uri())
    refused = page.evaluate(
        """async () => {
          await new Promise((resolve) => { setTimeout(resolve, 10); });
          const refused = [];
          const tries = {
            markup: () => { document.body.innerHTML = "<p>"; },
            eval: () => { new Function("1")(); },
            handler: () => { document.body.setAttribute("onclick", "window.__hacked = 1"); },
          };
          for (const [name, run] of Object.entries(tries)) {
            try { run(); } catch { refused.push(name); }
          }
          document.body.click();
          await fetch("https://example.com/").catch(() => refused.push("fetch"));
          return [refused, typeof window.__hacked];
        }"""
    )
    assert refused[0][:2] == ["markup", "eval"]
    assert refused[0][-1] == "fetch"
    assert refused[1] == "undefined"
    assert len(told) >= 3
    page.close()


def test_heavy_and_large_reports_open_light(open_page: OpenPage, tmp_path: Path) -> None:
    sizes = {}
    for name, report in (
        ("heavy", pages.heavy()),
        ("few", pages.report(100)),
        ("many", pages.report(1_000_000)),
    ):
        path = tmp_path / f"{name}.html"
        write_page(report, path)
        page = open_page(path)
        expect(page.locator("#gallery .card")).to_have_count(24)
        nodes = page.evaluate("document.querySelectorAll('*').length")
        sizes[name] = (path.stat().st_size, nodes)
        assert path.stat().st_size < MAX_BYTES
        assert nodes < 1_500
    assert sizes["many"][1] == pytest.approx(sizes["few"][1], rel=0.05)
    assert sizes["many"][0] < sizes["few"][0] + 50_000


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_nothing_is_cut_off(
    open_page: OpenPage, width: int, scheme: str
) -> None:
    """Axe is injected, which the page's policy refuses: so only here it is not in force."""
    page = open_page(
        pages.report(), viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
    )
    page.locator("details[data-reason]").first.evaluate("each => { each.open = true; }")
    page.click("#start")
    page.keyboard.type("su")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page).response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found] == []


@pytest.mark.parametrize("name", ["empty", "one", "nothing else", "no score"])
def test_reports_of_little_open(open_page: OpenPage, name: str) -> None:
    bare: dict[str, Any] = {"groups": {}, "classes": {}, "runs": [], "facts": {}, "notes": [], "reasons": []}
    report = {
        "empty": pages.EMPTY,
        "one": pages.report(1, 1, **bare),
        "nothing else": pages.report(50, 0, **bare, filter_command=None),
        "no score": pages.report(0, 0, statuses={"missing": 3}),
    }[name]
    page = open_page(report, bypass_csp=True)
    expect(page.locator("h1")).not_to_be_empty()
    assert Axe().run(page).response["violations"] == []
