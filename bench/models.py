"""What does each built-in model cost on one core: CPU time of an image, and memory of a process?

If a card's weights are not on this machine, a file with seeded weights replaces them: the numbers in it
change neither result. Prints one JSON object a model, for the cards' `seconds_per_image.cpu` and
`size.memory_mb`.

    python bench/models.py [MODEL …]
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from nsfw_spark.cards import built_in_models, load_card
from nsfw_spark.errors import WeightsError
from nsfw_spark.model import ModelSpec, load_model
from nsfw_spark.model_card import ModelCard
from nsfw_spark.scorer import Scorer
from nsfw_spark.weights import locate_weights

_NUM_IMAGES: Final = 16
_PHOTOS: Final = Path(__file__).parents[1] / "examples" / "images" / "photos"
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_MEASURE: Final = "--measure"


def main() -> None:
    """Measure the named models, or all of them, each in a process of its own."""
    if sys.argv[1:2] == [_MEASURE]:
        sys.stdout.write(json.dumps(measure(ModelCard.model_validate_json(sys.stdin.read()))))
        return
    for name in sys.argv[1:] or built_in_models():
        with tempfile.TemporaryDirectory() as folder:
            card = _with_weights(load_card(name), Path(folder))
            measured = subprocess.run(
                [sys.executable, __file__, _MEASURE],
                env={**os.environ, **_ONE_THREAD},
                input=card.model_dump_json().encode(),
                stdout=subprocess.PIPE,
                check=True,
            )
        print(json.dumps({"model": name, **json.loads(measured.stdout)}), flush=True)


def measure(card: ModelCard) -> dict[str, float]:
    """Score 16 photographs at once, after one that warms up; return seconds and megabytes."""
    contents = [path.read_bytes() for path in sorted(_PHOTOS.glob("*.jpg"))]
    contents = (contents * _NUM_IMAGES)[:_NUM_IMAGES]
    scorer = Scorer(card, load_model(ModelSpec(card, device="cpu", batch_size=_NUM_IMAGES)))
    scorer.score(contents[:1])
    started = time.process_time()  # CPU time, so that other programs do not count
    scores = scorer.score(contents)
    seconds = time.process_time() - started
    if any(score.status != "ok" for score in scores):
        raise SystemExit(f"{card.name} gave some images no score; expected a score for each of them")
    return {"seconds_per_image": round(seconds / _NUM_IMAGES, 4), "memory_mb": round(_peak_bytes() / 1e6)}


def _peak_bytes() -> int:
    """Return the peak memory of this program, on Linux.

    Not `getrusage`: its maximum survives exec and so includes the process that made the weights.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    [kilobytes] = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kilobytes) * 1024


def _with_weights(card: ModelCard, folder: Path) -> ModelCard:
    """Return the card; with seeded weights if its own are not on this machine."""
    try:
        locate_weights(card)
    except WeightsError:
        content = card.model_dump()
        content["encoder"] |= {"weights": {"path": _seeded(card, folder)}, "tensor_names": None}
        if card.encoder.library == "open_clip":  # a card with a file of its own must name it
            is_quick = card.encoder.architecture.endswith("-quickgelu")
            content["encoder"]["activation"] = "quick_gelu" if is_quick else "gelu"
        for head in (content["head"], *content["other_heads"].values()):
            head["weights"] = {"random": 1} if head["library"] == "mlp" else head["weights"]
        return ModelCard.model_validate(content)
    return card


def _seeded(card: ModelCard, folder: Path) -> Path:
    """Write seeded weights of the card's network; for CLIP those of the image tower, the only part read."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    if card.encoder.library == "open_clip":
        import open_clip

        tower = open_clip.create_model(card.encoder.architecture, load_weights=False).visual
        tensors = {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}
    else:
        import timm

        network = timm.create_model(card.encoder.architecture, num_classes=len(card.head.classes))
        tensors = network.state_dict()
    save_file(tensors, folder / "encoder.safetensors")
    return folder / "encoder.safetensors"


if __name__ == "__main__":
    main()
