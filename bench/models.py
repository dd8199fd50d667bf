"""What does each built-in model cost on one core: CPU time of an image, and memory of a process?

Where a card's weights are not here, seeded ones lie in a file in their place: what numbers they hold changes
neither. Prints a JSON object a model, for the cards' `seconds_per_image.cpu` and `size.memory_mb`.

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
    """Measure the models that are named, or all, each in a process of its own."""
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
    """Score 16 photographs at once in this process, which has scored one before."""
    contents = [path.read_bytes() for path in sorted(_PHOTOS.glob("*.jpg"))]
    contents = (contents * _NUM_IMAGES)[:_NUM_IMAGES]
    scorer = Scorer(card, load_model(ModelSpec(card, device="cpu", batch_size=_NUM_IMAGES)))
    scorer.score(contents[:1])
    started = time.process_time()  # of the processor: other programs on the machine do not count
    scores = scorer.score(contents)
    seconds = time.process_time() - started
    if any(score.status != "ok" for score in scores):
        raise SystemExit(f"{card.name} has not scored all images")
    return {"seconds_per_image": round(seconds / _NUM_IMAGES, 4), "memory_mb": round(_peak_bytes() / 1e6)}


def _peak_bytes() -> int:
    """Return the most memory this program has had, on Linux.

    Not `getrusage`: what that tells outlives exec, and so has in it the process that made the weights.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    [kilobytes] = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kilobytes) * 1024


def _with_weights(card: ModelCard, folder: Path) -> ModelCard:
    """Return the card, with seeded weights where its own are not here."""
    try:
        locate_weights(card)
    except WeightsError:
        content = card.model_dump()
        content["encoder"] |= {"weights": {"path": _seeded(card, folder)}, "tensor_names": None}
        if card.encoder.library == "open_clip":  # of a file of one's own the card has to say it
            is_quick = card.encoder.architecture.endswith("-quickgelu")
            content["encoder"]["activation"] = "quick_gelu" if is_quick else "gelu"
        for head in (content["head"], *content["other_heads"].values()):
            head["weights"] = {"random": 1} if head["library"] == "mlp" else head["weights"]
        return ModelCard.model_validate(content)
    return card


def _seeded(card: ModelCard, folder: Path) -> Path:
    """Write the weights of the card's network; of CLIP the image tower's, which alone is read."""
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
