"""Executors of which one computes other scores with the same weights: the run ends, and no row is written."""

from __future__ import annotations

import os
import platform
from typing import Any, Final

import deltalake
import pytest

from tests import java
from tests.cluster.conftest import Cluster
from tests.conftest import png
from tests.unlike import ALTERED, ONLY, pillow_card

MASTER: Final = "local-cluster[2,1,1024]"
NUM_IMAGES: Final = 40


@pytest.mark.long
def test_executors_that_differ_end_the_run_and_alike_they_complete_it(cluster: Cluster) -> None:
    images, output = cluster.folder / "images", cluster.folder / "out"
    images.mkdir()
    for seed in range(NUM_IMAGES):
        (images / f"{seed}.png").write_bytes(png(seed=seed))
    options: dict[str, Any] = {"input": images, "output": output, "model": pillow_card(cluster.folder)}
    # Tried again, a task might be on the other executor.
    cluster.environment |= java.quick(**java.together(MASTER), **{"spark.task.maxFailures": "1"})
    alike = dict(cluster.environment)

    cluster.environment |= {ONLY: "1", "PYTHONPATH": os.pathsep.join([str(ALTERED), alike["PYTHONPATH"]])}
    process = cluster.start("job", MASTER, **options)
    process.communicate()
    said = (cluster.folder / "stderr").read_text(encoding="utf-8")
    assert process.returncode == 1, said
    assert f"nsfw_spark.errors.DeviceError: pillow computes other scores on {platform.node()} than" in said
    assert deltalake.DeltaTable(output / "image_scores").to_pyarrow_table().num_rows == 0

    cluster.environment = alike
    assert cluster.run("job", MASTER, **options)["ok"] == NUM_IMAGES
    scores = deltalake.DeltaTable(output / "image_scores").to_pyarrow_table(columns=["status"])
    assert scores.num_rows == NUM_IMAGES
