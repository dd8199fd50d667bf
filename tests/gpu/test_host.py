"""On a CUDA device: batches that overlap, batches that do not fit, and the model host."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from nsfw_spark.encoders import load_encoder
from nsfw_spark.host import HostedModel, HostSpec, Owner
from nsfw_spark.model import ModelSpec, load_model
from nsfw_spark.weights import WeightsFile
from tests.conftest import pixels
from tests.gpu.test_encoders import SEED, seeded

CARD = seeded("laion-vit-b-32")


def squares(num_images: int) -> list[npt.NDArray[np.uint8]]:
    return [pixels(224, 224, seed=seed) for seed in range(num_images)]


def test_batches_that_overlap_are_those_that_follow_each_other() -> None:
    encoder = load_encoder(CARD, WeightsFile(None, f"random:{SEED}"), "cuda")
    batches = [np.stack(squares(8)) + np.uint8(i) for i in range(6)]
    received = [encoder.buffer(batch.shape) for batch in batches]
    for buffer, batch in zip(received, batches, strict=True):
        buffer[:] = batch
    begun = [encoder.start([buffer[:3], buffer[3:]]) for buffer in received]
    for finish, batch in zip(begun, batches, strict=True):
        found, expected = finish().embeddings, encoder.encode(batch).embeddings
        assert found is not None
        assert expected is not None
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    import torch

    model = load_model(ModelSpec(CARD, device="cuda", batch_size=4096))
    batch = np.stack(squares(16))
    expected = model.predict(batch).nsfw_scores
    free, _ = torch.cuda.mem_get_info()
    hoard = torch.empty(max(0, free - (1 << 30)), dtype=torch.uint8, device="cuda")  # all but 1 GiB
    found = model.predict(np.tile(batch, (256, 1, 1, 1)))
    del hoard
    assert model.batch_size < 4096
    np.testing.assert_allclose(found.nsfw_scores, np.tile(expected, 256), rtol=0, atol=1e-3)


def test_the_batch_size_that_is_found_fits() -> None:
    model = load_model(ModelSpec(CARD, device="cuda"))
    assert model.device == "cuda:0"
    assert 32 <= model.batch_size <= 512


def test_the_host_gives_the_scores_of_the_model_in_this_process() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        spec = HostSpec((ModelSpec(CARD, device="cuda", batch_size=16),), Owner.process(owner.pid))
        with HostedModel(spec) as hosted:
            found = [
                each.nsfw_scores
                for each in hosted.predict_each([np.stack(squares(16)), np.stack(squares(5))])
            ]
            assert hosted.device == "cuda:0"
        owner.kill()
    model = load_model(spec.models[0])
    for scores, num_images in zip(found, (16, 5), strict=True):
        expected = model.predict(np.stack(squares(num_images))).nsfw_scores
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-3)


@pytest.mark.skipif("CUDA_VISIBLE_DEVICES" in os.environ, reason="they are narrowed already")
def test_a_device_that_is_not_there_is_said() -> None:
    from nsfw_spark import DeviceError

    spec = HostSpec((ModelSpec(CARD, device="cuda:99"),), Owner.process(os.getpid()), idle_seconds=1)
    with pytest.raises(DeviceError, match="device is cuda:99, and torch sees"):
        HostedModel(spec)
