"""docs/own-model.md: what it says is run as it stands there, on seeded weights."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from nsfw_spark import cli
from nsfw_spark.cards import load_card
from nsfw_spark.options import job_options
from tests.conftest import PHOTOS

PAGE: Final = (Path(__file__).parents[2] / "docs" / "own-model.md").read_text(encoding="utf-8")
CLIP: Final = Path("weights", "timm", "vit_base_patch32_clip_224.openai", "open_clip_model.safetensors")
IMAGES: Final = [
    PHOTOS / "photos" / name for name in ("coffee.jpg", "astronaut.jpg", "grass.tiff", "gravel.png")
]
Block = tuple[str, str]
"""Its language, and what is in it."""


def blocks(heading: str) -> Iterator[Block]:
    """Return the blocks of code below a heading of the page, in their order."""
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section is not None, heading
    for block in re.finditer(r"^```(\w+)\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL):
        yield block[1], block[2]


def follow(heading: str, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Do what the page says; return what the commands printed."""
    said = []
    for language, text in blocks(heading):
        if language == "yaml":
            path = Path(text.splitlines()[0].removeprefix("# "))
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, heading, "exec"), names)  # noqa: S102 - the page of this repository
        else:
            assert language == "sh"
            for line in text.splitlines():
                run(line)
                said.append(capsys.readouterr().out)
    return said


def run(line: str) -> None:
    """Run a command; of one that needs Spark, read the options."""
    program, *arguments = shlex.split(line)
    assert program == "nsfw-spark"
    if arguments[0] == "run":
        pairs = dict(zip(arguments[2::2], arguments[3::2], strict=True))
        options = {name.removeprefix("--").replace("-", "_"): value for name, value in pairs.items()}
        assert load_card(job_options({"input": arguments[1], **options}).model).name in {
            "my-classifier",
            "my-head",
        }
        return
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert not ended.value.code


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my-classifier", "my-head"):
        Path(name).mkdir()


def test_a_classifier_of_timm_as_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    torch.nn.init.normal_(network.head.weight, std=0.5)  # so that images differ
    names = {"network": network, "images": IMAGES}
    shown, verified, _ = follow("A classifier trained with timm", names, capsys)
    assert "score: probability:remove" in shown
    assert re.search(r"encoder: \S*my-classifier/weights\.safetensors  sha256 [0-9a-f]{64}", verified)
    assert names["score"].nsfw_score is not None, "the comparison has run"


def test_a_head_on_clip_as_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    tower = open_clip.create_model("ViT-B-32-quickgelu", load_weights=False).visual
    CLIP.parent.mkdir(parents=True)
    save_file({f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}, CLIP)
    names: dict[str, Any] = {"labelled": IMAGES, "labels": [1.0, 0.0, 1.0, 0.0]}
    try:
        verified, _ = follow("A head on CLIP's embeddings", names, capsys)
    finally:
        CLIP.unlink()  # 350 MB, and pytest keeps its directories
    assert re.search(r"head: \S*my-head/head\.safetensors", verified)
    scores = [score.nsfw_score for score in names["ours"]]
    assert min(scores[0], scores[2]) > 0.5 > max(scores[1], scores[3]), "the head has learned its labels"


def test_the_page_has_the_blocks_that_are_run() -> None:
    """Otherwise the tests above could pass by finding none."""
    languages = [language for heading in ("A classifier trained with timm", "A head on CLIP's embeddings")
                 for language, _ in blocks(heading)]  # fmt: skip
    assert languages == ["python", "yaml", "sh", "python", "sh", "python", "python", "yaml", "python", "sh"]
    assert len(re.findall(r"^```\w+$", PAGE, re.MULTILINE)) == len(languages)
