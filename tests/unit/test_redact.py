"""Redaction removes the credentials of URIs from errors, logs and options, and nothing else."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import pytest

from nsfw_spark import errors
from nsfw_spark.cli import main
from nsfw_spark.errors import ConfigError, ImageError, NsfwSparkError
from nsfw_spark.host.server import log_to
from nsfw_spark.options import job_options
from nsfw_spark.redact import has_credentials, redact
from nsfw_spark.uris import absolute_uri

SECRET = "abc/DEF+ghi="  # noqa: S105 - as a key of AWS looks like  # pragma: allowlist secret

CARRIERS = [
    f"s3a://AKIAKEY:{SECRET}@bucket/photos",
    "s3a://AKIAKEY:abc%2FDEF%2Bghi%3D@bucket",  # pragma: allowlist secret
    "hdfs://user:abcDEFghi@namenode:8020/photos",
    "https://abcDEFghi@huggingface.co/owner/name",
    "https://account.blob.core.windows.net/c/a.jpg?sv=2024&sig=abcDEFghi%3D&se=2030",
    "https://bucket.s3.amazonaws.com/a?X-Amz-Credential=abcDEFghi&X-Amz-Signature=abcDEFghi",
    "wasbs://c@account.blob.core.windows.net/photos?SIG=abcDEFghi",
    "gs://bucket/a?access_token=abcDEFghi",
]
HARMLESS = [
    "abfss://container@account.dfs.core.windows.net/photos/a@2x.png",
    "hdfs://user@namenode:8020/a@b/c:d@e",
    "hdfs://namenode:8020/a@b",
    "s3a://bucket/what?is=this&that",
    "s3a://bucket/a:b@c.jpg",
    "file:/photos/design?sign=1 sig=none.jpg",
    "/photos/who?sig=me.jpg",
    "12 x 30 pixels, more than max_pixels = 4: http://example.org/why",
]


@pytest.mark.parametrize("uri", CARRIERS)
def test_what_carries_credentials_loses_them_and_nothing_else(uri: str) -> None:
    assert has_credentials(uri)
    shown = redact(f"403 for '{uri}': denied")
    assert shown.startswith("403 for '")
    assert shown.endswith("': denied")
    assert "***" in shown
    assert "DEF" not in shown
    assert redact(shown) == shown


@pytest.mark.parametrize("uri", HARMLESS)
def test_what_carries_none_is_left_alone(uri: str) -> None:
    assert not has_credentials(uri)
    assert "://" not in uri or redact(f"cannot read {uri} (404)") == f"cannot read {uri} (404)"


@pytest.mark.parametrize("uri", CARRIERS)
@pytest.mark.parametrize("option", ["input", "output", "checkpoints", "content_from", "model_source"])
def test_an_option_with_credentials_is_refused_without_showing_them(option: str, uri: str) -> None:
    name = "INPUT" if option == "input" else f"--{option.replace('_', '-')}"
    with pytest.raises(ConfigError, match=rf"{name}: .*\*\*\*.* carries cred") as caught:
        job_options({"output": "out", option: uri})
    assert "DEF" not in str(caught.value)
    with pytest.raises(ConfigError, match="expected a URI without"):
        absolute_uri(uri)


@pytest.mark.parametrize("uri", HARMLESS)
def test_an_option_without_credentials_is_taken(uri: str) -> None:
    assert job_options({"output": "out", "input": uri}).input == uri


@pytest.mark.parametrize(
    "kind",
    [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, NsfwSparkError) and value is not ImageError
    ],
)
def test_no_error_shows_credentials(kind: type[NsfwSparkError]) -> None:
    error = kind(f"cannot read {CARRIERS[0]}")
    for each in (error, pickle.loads(pickle.dumps(error))):  # noqa: S301 - our own bytes
        assert str(each) == "cannot read s3a://***@bucket/photos"


def test_no_row_shows_credentials() -> None:
    error = ImageError("missing", f"it could not be read (GetProperties for '{CARRIERS[4]}' failed)")
    for each in (error, pickle.loads(pickle.dumps(error))):  # noqa: S301 - our own bytes
        assert "DEF" not in each.message + str(each) + repr(each)
        assert each.message.endswith("sig=***&se=2030' failed)")


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_the_command_line_shows_no_credentials(capsys: pytest.CaptureFixture[str], debug: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", CARRIERS[0], "--output", "out", *debug])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "s3a://***@bucket/photos carries credentials" in said.err
    assert "DEF" not in said.err + said.out


def test_the_log_of_a_model_host_shows_no_credentials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers: list[logging.Handler] = []
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers)
    monkeypatch.setattr(logging.getLogger("nsfw_spark"), "level", logging.INFO)
    log_to(os.open(tmp_path / "executor.log", os.O_CREAT | os.O_WRONLY))
    logging.getLogger("nsfw_spark.host").error("cannot fetch %s", CARRIERS[5])
    said = capsys.readouterr().err + (tmp_path / "executor.log").read_text()
    handlers[1].stream.close()  # type: ignore[attr-defined]
    assert said.count("X-Amz-Signature=***") == 2
    assert "DEF" not in said
