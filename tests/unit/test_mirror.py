"""Mirrors: fsspec reads copies of a model directory in place of the hub and GitHub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

from nsfw_spark.errors import ConfigError, WeightsError
from nsfw_spark.weights import fetch_weights, locate_weights
from tests.fakes import card
from tests.hub import COMMIT, Hub

pytestmark = pytest.mark.usefixtures("hub")  # empty caches, and no way out

CONTENT: Final = os.urandom(1 << 16)
SHA256: Final = hashlib.sha256(CONTENT).hexdigest()
CARD: Final = card(encoder={"weights": {"huggingface": "owner/tower", "file": "tower.safetensors"}})
FILE: Final = "owner/tower/tower.safetensors"


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A directory with the weights, like a mounted share."""
    path = tmp_path / "mirror" / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return tmp_path / "mirror"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A private bucket with the weights."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ACCESS_KEY_ID": "a-key",
        "AWS_SECRET_ACCESS_KEY": "THE-SECRET",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="private")
    client.put_object(Bucket="private", Key=f"weights/{FILE}", Body=CONTENT)
    yield "s3://private/weights"
    server.stop()


def test_a_mirror_stands_for_the_hub(hub: Hub, mirror: Path, tmp_path: Path) -> None:
    found = fetch_weights(CARD, tmp_path / "weights", model_source=str(mirror))["encoder"]
    assert (found.path, found.sha256) == (tmp_path / "weights" / FILE, SHA256)
    assert hub.asked == []


def test_a_mirror_is_asked_where_no_network_is_wanted(hub: Hub, mirror: Path, tmp_path: Path) -> None:
    """A model directory and HF_HUB_OFFLINE forbid the internet only."""
    found = locate_weights(CARD, tmp_path / "weights", download=True, model_source=f"file://{mirror}")
    assert found["encoder"].path == tmp_path / "weights" / FILE
    assert hub.asked == []


def test_without_a_model_dir_it_goes_to_the_cache(hub: Hub, mirror: Path, tmp_path: Path) -> None:
    found = locate_weights(CARD, download=True, model_source=str(mirror))["encoder"]
    assert found.path == tmp_path / "assets" / "nsfw-spark" / "owner--tower" / "main" / "tower.safetensors"
    assert locate_weights(CARD)["encoder"] == found
    assert hub.asked == []


def test_a_mirror_is_not_asked_for_what_is_here(mirror: Path) -> None:
    found = locate_weights(CARD, mirror, download=True, model_source="memory://no/such/mirror")
    assert found["encoder"].path == mirror / FILE


def test_what_the_mirror_lacks_is_not_taken_from_the_hub(hub: Hub, mirror: Path, tmp_path: Path) -> None:
    hub.files[FILE] = CONTENT
    (mirror / FILE).unlink()
    with pytest.raises(WeightsError, match=rf"{FILE} was not found.*{mirror} \(FileNotFoundError"):
        fetch_weights(CARD, tmp_path / "weights", model_source=str(mirror))
    assert hub.asked == []


def test_any_file_system_of_fsspec_will_do(tmp_path: Path) -> None:
    with fsspec.open(f"memory://weights/{FILE}", "wb") as file:
        file.write(CONTENT)
    found = fetch_weights(CARD, tmp_path, model_source="memory://weights/")["encoder"]
    assert found.sha256 == SHA256


def test_a_private_bucket_is_read_with_the_credentials_of_the_environment(
    bucket: str, tmp_path: Path
) -> None:
    assert fetch_weights(CARD, tmp_path, model_source=bucket)["encoder"].sha256 == SHA256
    assert fetch_weights(CARD, tmp_path / "2", model_source=f"{bucket}/".replace("s3:", "s3a:"))


def test_what_a_bucket_lacks_is_named(bucket: str, tmp_path: Path) -> None:
    github = {"github": "owner/heads", "revision": COMMIT, "file": "no.pth"}
    with pytest.raises(WeightsError, match=r"owner/heads/no\.pth was not found.*s3://private/weights \("):
        fetch_weights(card(encoder={"weights": github}), tmp_path, model_source=bucket)


def test_a_copy_that_was_cut_off_goes_on(
    mirror: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The partial file is shorter than the mirror's, as after a full disk."""
    fetch_weights(CARD, tmp_path / "weights", model_source=str(mirror))
    whole = tmp_path / "weights" / FILE
    [identity] = {fsspec.filesystem("file").ukey(str(mirror / FILE))}
    partial = whole.with_name(f"{whole.name}.{hashlib.sha256(identity.encode()).hexdigest()[:8]}.partial")
    whole.rename(partial)
    os.truncate(partial, 1000)
    assert fetch_weights(CARD, tmp_path / "weights", model_source=str(mirror))["encoder"].sha256 == SHA256
    assert "resuming at 1,000 bytes" in caplog.text


def test_another_file_than_the_pinned_one_is_not_kept(mirror: Path, tmp_path: Path) -> None:
    pinned = card(encoder={"weights": {**CARD.encoder.weights.model_dump(), "sha256": "0" * 64}})
    with pytest.raises(WeightsError, match=rf"{mirror}/{FILE} has sha256 {SHA256}, expected {'0' * 64}"):
        fetch_weights(pinned, tmp_path / "weights", model_source=str(mirror))
    assert not list((tmp_path / "weights").rglob("*.*"))


@pytest.mark.parametrize(("uri", "said"), [("nosuch://x", "nosuch"), ("abfs://a/b", "adlfs")])
def test_a_uri_that_nothing_here_reads_is_a_config_error(tmp_path: Path, uri: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"--model-source {uri}.*{said}"):
        fetch_weights(CARD, tmp_path, model_source=uri)
