"""Makes the images of docs/report.md: the page of a report of the demo's own pictures, as a browser shows it.

    python docs/report_images.py        # docs/images/report-{390,1280}-{light,dark}.png

The pictures of examples/images are scored with open_nsfw. The run history is made up, and the page says so.
Needs Chromium (`apt-get install chromium`) and the packages of the group dev. `--html FILE` keeps the page.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from nsfw_spark import load_scorer
from nsfw_spark.review.page import write_page
from nsfw_spark.review.report import Example, Group, Reason, Report, Run, bin_of, histogram

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "examples" / "images"
IMAGES = ROOT / "docs" / "images"
THRESHOLD = 0.05
"""Low, because none of these pictures is indecent."""
MADE_AT = datetime(2026, 11, 27, 9, 0, tzinfo=UTC)
MAX_BYTES = 300_000
BROWSER_ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


def main() -> None:
    """Score the pictures, write the page, and take the screenshots."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--html", type=Path, help="keep the page in this file")
    html = parser.parse_args().html
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "review.html"
        write_page(demo_report(), page)
        if html is not None:
            shutil.copyfile(page, html)
        IMAGES.mkdir(exist_ok=True)
        screenshots(page)


def demo_report() -> Report:
    """Return a report of the pictures in examples/images."""
    paths = sorted(path for path in PICTURES.rglob("*.*") if path.suffix != ".md")
    images = [(path, path.read_bytes()) for path in paths]
    examples, failed = [], []
    results = load_scorer("open-nsfw").score([content for _, content in images])
    for (path, content), result in zip(images, results, strict=True):
        name = path.relative_to(ROOT).as_posix()
        if result.error is not None or result.nsfw_score is None:
            failed.append(Example(name, result.status, error=result.error, missing="cannot be decoded"))
        else:
            details = {"source": path.parent.name}
            score = float(result.nsfw_score)
            examples.append(Example(name, "ok", score, thumbnail=thumbnail(content), details=details))
    bins = Counter(bin_of(each.score or 0.0) for each in examples)
    return Report(
        title="examples/images",
        made_at=MADE_AT,
        threshold=THRESHOLD,
        bins=bins,
        statuses=Counter(each.status for each in [*examples, *failed]),
        examples=examples,
        reasons=[Reason(each.status, str(each.error), 1, [each]) for each in failed],
        groups={"folder": groups(examples, failed)},
        runs=runs(histogram(bins), len(failed)),
        facts={
            "model": "open-nsfw",
            "policy": f"nsfw_score < {THRESHOLD}",
            "run history": "made up for this picture",
        },
        filter_command="nsfw-spark filter demo-out --threshold {threshold}",
    )


def thumbnail(content: bytes) -> bytes:
    """Return an image as WebP of at most 256 pixels."""
    image = Image.open(BytesIO(content)).convert("RGB")
    image.thumbnail((256, 256))
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=70)
    return buffer.getvalue()


def groups(examples: list[Example], failed: list[Example]) -> list[Group]:
    """Return the images of each folder."""
    bins: defaultdict[str, Counter[int]] = defaultdict(Counter)
    unscored = Counter(Path(each.image_id).parent.name for each in failed)
    for each in examples:
        bins[Path(each.image_id).parent.name][bin_of(each.score or 0.0)] += 1
    return [Group(name, bins[name], unscored[name]) for name in sorted(bins.keys() | unscored.keys())]


def runs(scores: list[int], num_failed: int) -> list[Run]:
    """Return three runs that were not measured: the latest one has these scores."""
    earlier = [scores[0] * 40, *[n * 40 + 12 for n in scores[1:]]]
    histograms = [scores, earlier, [round(n * 1.1) for n in earlier]]
    return [
        Run(
            run_id=str(i),
            command="run",
            started_at=MADE_AT - timedelta(days=i, minutes=20),
            outcome="done",
            images=sum(counts) + num_failed * (40 if i else 1),
            unscored=num_failed * (40 if i else 1),
            seconds=[4.0, 30.0, 36.0][i],
            decode_seconds=[1.5, 22.0, 25.0][i],
            wait_seconds=[0.9, 12.0, 9.0][i],
            encode_seconds=[1.2, 14.0, 19.0][i],
            model="open-nsfw",
            histogram=counts,
        )
        for i, counts in enumerate(histograms)
    ]


def screenshots(page: Path) -> None:
    """Take a screenshot of the page in each width and in both colour schemes."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=BROWSER_ARGS)
        for width, height in ((1280, 1900), (390, 2300)):
            for scheme in ("light", "dark"):
                context = browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
                )
                tab = context.new_page()
                tab.goto(page.as_uri())
                tab.wait_for_selector("#gallery img")
                tab.wait_for_timeout(400)
                path = IMAGES / f"report-{width}-{scheme}.png"
                save(tab.screenshot(), path)
                print(path.relative_to(ROOT), path.stat().st_size)
                context.close()
        browser.close()


def save(screenshot: bytes, path: Path) -> None:
    """Save a screenshot with as many colours as fit into the limit."""
    image = Image.open(BytesIO(screenshot)).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{path} has {path.stat().st_size} bytes, expected at most {MAX_BYTES}")


if __name__ == "__main__":
    main()
