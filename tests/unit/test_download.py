"""Downloads from the hub and GitHub are complete, resume after a break, and refuse wrong files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import pytest

from nsfw_spark.errors import WeightsError
from nsfw_spark.model_card import ModelCard
from nsfw_spark.weights import fetch_weights, locate_weights
from tests.fakes import card
from tests.hub import COMMIT, Hub

CONTENT: Final = bytes(range(256)) * 40
SHA256: Final = hashlib.sha256(CONTENT).hexdigest()
HELLO, SHA1_OF_HELLO = b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"
"""`echo hello | git hash-object --stdin`."""
SHA1_OF_EMPTY = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
"""`git hash-object /dev/null`, in every repository."""


def on_hub(**source: str) -> ModelCard:
    return card(encoder={"weights": {"huggingface": "owner/tower", "file": "tower.safetensors", **source}})


def on_github(**source: str) -> ModelCard:
    weights = {"github": "owner/tower", "revision": COMMIT, "file": "tower.safetensors", **source}
    return card(encoder={"weights": weights})


@pytest.fixture(params=[on_hub, on_github], ids=["hub", "github"])
def there(request: pytest.FixtureRequest, hub: Hub) -> ModelCard:
    """A card with encoder weights on the hub or on GitHub; their content is CONTENT."""
    hub.files["owner/tower/tower.safetensors"] = CONTENT
    found: ModelCard = request.param()
    return found


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_file_is_downloaded_once_and_lies_in_the_cache(there: ModelCard, hub: Hub, tmp_path: Path) -> None:
    found = locate_weights(there, download=True)["encoder"]
    revision = there.encoder.weights.revision or "main"
    cached = tmp_path / "assets" / "nsfw-spark" / "owner--tower" / revision / "tower.safetensors"
    assert (found.path, found.sha256) == (cached, SHA256)
    assert cached.read_bytes() == CONTENT
    assert locate_weights(there)["encoder"] == found
    assert hub.downloads() == [None]


def test_fetching_puts_it_into_the_model_dir_and_nowhere_else(
    there: ModelCard, hub: Hub, tmp_path: Path
) -> None:
    found = fetch_weights(there, tmp_path / "weights")["encoder"]
    assert found.path == tmp_path / "weights" / "owner" / "tower" / "tower.safetensors"
    assert files_in(tmp_path) == ["weights/owner/tower/tower.safetensors"]
    assert hub.downloads() == [None]
    assert locate_weights(there, tmp_path / "weights")["encoder"] == found


def test_what_lies_in_the_cache_is_copied_to_the_model_dir(
    there: ModelCard, hub: Hub, tmp_path: Path
) -> None:
    locate_weights(there, download=True)
    found = fetch_weights(there, tmp_path / "weights")["encoder"]
    assert found.path == tmp_path / "weights" / "owner" / "tower" / "tower.safetensors"
    assert found.path.read_bytes() == CONTENT
    assert hub.downloads() == [None]


def test_a_name_with_odd_characters_is_asked_for_as_urls_have_it(hub: Hub, tmp_path: Path) -> None:
    hub.files["owner/tower/a%2Bb%20%231.pth"] = HELLO
    found = fetch_weights(on_github(file="a+b #1.pth"), tmp_path)["encoder"]
    assert found.path == tmp_path / "owner" / "tower" / "a+b #1.pth"


def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    there: ModelCard, hub: Hub, tmp_path: Path
) -> None:
    hub.cut_after = [4000]
    found = fetch_weights(there, tmp_path / "weights")["encoder"]
    assert found.sha256 == SHA256
    first, second = hub.downloads()
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 4000


def interrupted(there: ModelCard, hub: Hub, folder: Path) -> int:
    """Fetch with breaking connections until the client gives up; return the length of the partial file."""
    hub.cut_after = [4000, 0, 0, 0, 0, 0]
    with pytest.raises(WeightsError, match="models fetch fake"):
        fetch_weights(there, folder)
    assert hub.cut_after == []
    [partial] = folder.rglob("*.partial")
    assert not (folder / "owner" / "tower" / "tower.safetensors").exists()
    return partial.stat().st_size


def test_the_next_fetch_goes_on_where_the_last_one_was_cut_off(
    there: ModelCard, hub: Hub, tmp_path: Path
) -> None:
    length = interrupted(there, hub, tmp_path / "weights")
    assert 0 < length <= 4000
    hub.asked.clear()
    assert fetch_weights(there, tmp_path / "weights")["encoder"].sha256 == SHA256
    assert hub.downloads() == [f"bytes={length}-"]
    assert files_in(tmp_path) == ["weights/owner/tower/tower.safetensors"], "no partial file is left"


def test_a_server_that_knows_no_ranges_sends_all_again(there: ModelCard, hub: Hub, tmp_path: Path) -> None:
    interrupted(there, hub, tmp_path / "weights")
    hub.ignores_ranges = True
    assert fetch_weights(there, tmp_path / "weights")["encoder"].sha256 == SHA256


def test_half_of_another_content_is_not_continued(there: ModelCard, hub: Hub, tmp_path: Path) -> None:
    interrupted(there, hub, tmp_path / "weights")
    hub.files["owner/tower/tower.safetensors"] = CONTENT[::-1]
    hub.asked.clear()
    found = fetch_weights(there, tmp_path / "weights")["encoder"]
    assert found.sha256 == hashlib.sha256(CONTENT[::-1]).hexdigest()
    assert hub.downloads() == [None]
    assert files_in(tmp_path / "weights") == ["owner/tower/tower.safetensors"], "the old half is removed"


@pytest.mark.parametrize("excess", [0, 10])
def test_a_partial_file_that_is_whole_or_too_long_does_no_harm(
    there: ModelCard, hub: Hub, tmp_path: Path, excess: int
) -> None:
    """A kill may happen between the last byte and the rename."""
    interrupted(there, hub, tmp_path / "weights")
    [partial] = (tmp_path / "weights").rglob("*.partial")
    partial.write_bytes(CONTENT + bytes(excess))
    assert fetch_weights(there, tmp_path / "weights")["encoder"].sha256 == SHA256


def test_a_file_that_is_not_the_pinned_one_is_not_kept(there: ModelCard, hub: Hub, tmp_path: Path) -> None:
    pinned = there.encoder.weights.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(WeightsError) as caught:
        fetch_weights(there.with_weights_sources({"encoder": pinned}), tmp_path / "weights")
    said = str(caught.value)
    assert all(word in said for word in ("owner/tower/tower.safetensors", SHA256, "0" * 64, "not kept"))
    assert files_in(tmp_path) == []
    assert hub.downloads() == [None]


def test_a_file_that_is_not_what_the_hub_says_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    """Like a proxy that sends its own page in place of the file."""
    hub.files["owner/tower/tower.safetensors"] = CONTENT
    hub.sends["owner/tower/tower.safetensors"] = b"<" * len(CONTENT)
    with pytest.raises(WeightsError, match=f"expected {SHA256}"):
        fetch_weights(on_hub(), tmp_path / "weights")
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(("content", "expected"), [(b"", SHA1_OF_EMPTY), (HELLO, SHA1_OF_HELLO)])
def test_the_pinned_git_sha1_is_gits_own(hub: Hub, tmp_path: Path, content: bytes, expected: str) -> None:
    hub.files["owner/tower/tower.safetensors"] = content
    found = fetch_weights(on_github(git_sha1=expected), tmp_path)["encoder"]
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    with pytest.raises(WeightsError, match=rf"has git blob sha1 {expected}, the model card .* {'0' * 40}"):
        locate_weights(on_github(git_sha1="0" * 40), tmp_path)


@pytest.mark.parametrize(("source", "place"), [(on_hub, "the hub"), (on_github, "GitHub")])
def test_a_file_that_is_not_there_is_named_with_the_places_and_what_to_do(
    hub: Hub, tmp_path: Path, source: type[ModelCard], place: str
) -> None:
    with pytest.raises(WeightsError) as caught:
        fetch_weights(source(), tmp_path / "weights")
    said = str(caught.value)
    assert f"{place} (" in said
    assert "404" in said
    assert str(tmp_path / "weights" / "owner" / "tower" / "tower.safetensors") in said
    assert str(tmp_path / "assets") in said
    assert "models fetch fake --model-dir DIR" in said
    assert hub.asked


def test_without_a_network_it_fails_at_once_and_says_so(
    there: ModelCard, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "server_port", 1)  # where nobody listens, and nothing is let out to
    template = "http://127.0.0.1:2/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(WeightsError, match=r"\(Connect|\(LocalEntry"):
        locate_weights(there, download=True)
    assert hub.asked == []


def test_offline_nobody_is_asked(there: ModelCard, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        locate_weights(there, download=True)
    assert hub.asked == []


def test_where_a_model_dir_is_named_nobody_is_asked(there: ModelCard, hub: Hub, tmp_path: Path) -> None:
    """On a cluster, a directory on the driver only must not cause a thousand downloads."""
    with pytest.raises(WeightsError, match=r"a model directory was given.*--ship-weights"):
        locate_weights(there, tmp_path / "weights", download=True)
    assert hub.asked == []


def test_the_hubs_token_goes_to_the_hub_alone(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_aToken")
    hub.files["owner/tower/tower.safetensors"] = CONTENT
    fetch_weights(on_hub(), tmp_path / "one")
    asked = {(each.method, "/resolve/" in each.path): each.authorization for each in hub.asked}
    assert asked["HEAD", True] == asked["GET", True] == "Bearer hf_aToken"
    assert asked["GET", False] is None, "the other host that the hub redirects to"
    hub.asked.clear()
    fetch_weights(on_github(), tmp_path / "two")
    assert {each.authorization for each in hub.asked} == {None}


def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(there: ModelCard, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"a file in the way")
    with pytest.raises(WeightsError, match=r"\((NotADirectory|FileExists)Error: .*weights"):
        fetch_weights(there, tmp_path / "weights")
