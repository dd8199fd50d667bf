"""Files on the Hugging Face hub, or what `HF_ENDPOINT` names in its place."""

from __future__ import annotations

from nsfw_spark.model_card import WeightsSource
from nsfw_spark.weights.remote import RemoteFile, open_url


def open_hub_file(source: WeightsSource) -> RemoteFile:
    """Ask the hub about a file.

    Raises:
        OSError, HTTPError: No network, no such file, or not allowed to read it.
    """
    from huggingface_hub import hf_hub_url

    repository, file = str(source.huggingface), str(source.file)
    name = f"{repository}/{file} on the hub"
    found = open_url(name, hf_hub_url(repository, file, revision=source.revision), is_on_hub=True)
    if found.revision in {None, source.revision}:
        return found
    # A branch may move on while it is downloaded: its commit does not.
    return open_url(name, hf_hub_url(repository, file, revision=found.revision), is_on_hub=True)
