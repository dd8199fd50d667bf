"""Storage: takes Hadoop's names and credentials as they are; an unreadable file is `missing`."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from nsfw_spark.errors import ConfigError, ImageError
from nsfw_spark.readers.storage import HADOOP_PREFIXES, Storage
from tests.s3 import S3Server

ODD_NAMES = ["a b", "a%20b", "100%", "a#b", "a+b", "a?b", "a&b=c", "日本 é", "a:b", "a\\b", "~"]
SECRETS = {"fs.s3a.access.key": "THE-KEY", "fs.s3a.secret.key": "THE-SECRET"}

REGION = {"fs.s3a.endpoint.region": "eu-north-1"}
LOCAL = Storage()


def write(uri: str, content: bytes, files: Storage = LOCAL) -> None:
    with files.create(uri) as file:
        file.write(content)


def read(uri: str, files: Storage = LOCAL) -> bytes:
    with files.open_stream(uri) as stream:
        return bytes(stream.read())


@pytest.mark.parametrize("start", ["", "file:", "file://", "FILE:"])
@pytest.mark.parametrize("name", [*ODD_NAMES, "a\nb"])
def test_local_names_are_taken_as_they_are(tmp_path: Path, start: str, name: str) -> None:
    (tmp_path / name).write_bytes(name.encode())
    assert read(f"{start}{tmp_path}/{name}") == name.encode()


def test_a_name_with_an_escape_is_not_the_one_it_stands_for(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        read(f"file:{tmp_path}/a%20b")


def test_a_relative_path_is_read_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("here", b"1")
    write("below/it", b"2")
    assert (read("here"), read("below/it")) == (b"1", b"2")


def test_a_name_that_ends_in_gz_is_not_decompressed(tmp_path: Path) -> None:
    write(f"{tmp_path}/x.gz", b"as it is")
    assert read(f"{tmp_path}/x.gz") == b"as it is"


def test_a_file_is_read_at_any_place(tmp_path: Path) -> None:
    write(f"file:{tmp_path}/x", b"0123456789")
    with LOCAL.open_file(f"file:{tmp_path}/x") as file:
        assert (file.size(), file.read_at(3, 4)) == (10, b"456")


def test_what_is_created_replaces_and_makes_its_directories(tmp_path: Path) -> None:
    uri = f"file:{tmp_path}/a b/c%20d/e"
    write(uri, b"longer than the next")
    write(uri, b"new")
    assert (tmp_path / "a b" / "c%20d" / "e").read_bytes() == b"new"


def test_what_is_moved_replaces(tmp_path: Path) -> None:
    write(f"{tmp_path}/old", b"old")
    write(f"{tmp_path}/new", b"new")
    LOCAL.move(f"{tmp_path}/new", f"file:{tmp_path}/old")
    assert read(f"{tmp_path}/old") == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_between_file_systems_nothing_is_moved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one file system"):
        Storage(REGION).move(f"file:{tmp_path}/x", "s3a://bucket/x")
    with pytest.raises(ConfigError, match="one file system"):
        Storage({**REGION, "fs.s3a.bucket.other.endpoint": "o"}).move("s3a://bucket/x", "s3a://other/x")


@pytest.mark.parametrize("name", ["absent", "", "null\0byte"])
def test_what_cannot_be_opened_is_missing(tmp_path: Path, name: str) -> None:
    for opened in (LOCAL.open_stream, LOCAL.open_file):
        with pytest.raises((FileNotFoundError, ImageError), match=r"absent|directory|NUL"):
            opened(f"file:{tmp_path}/{name}")


@pytest.mark.parametrize("uri", ["ftp://host/x", "https://host/x.tar", "s4:/x"])
def test_a_scheme_that_is_not_known_is_an_error_that_lists_those_that_are(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"abfss.*file.*gs.*hdfs.*s3a"):
        LOCAL.open_stream(uri)


def test_storage_travels_and_keeps_its_secrets_out_of_sight() -> None:
    files = Storage(SECRETS)
    assert pickle.loads(pickle.dumps(files)) == files  # noqa: S301 - our own
    assert {files: "hashable"}[Storage(dict(SECRETS))] == "hashable"
    assert files != Storage()
    assert "THE" not in f"{files} {files!r}"
    assert all(name.startswith(HADOOP_PREFIXES) for name in SECRETS)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("s3a://bucket/a b%20c#d", "bucket/a b%20c#d"),
        ("s3://bucket/x", "bucket/x"),
        ("gs://bucket/a b", "bucket/a b"),
        ("abfss://container@account.dfs.core.windows.net/a/b c", "container/a/b c"),
        ("dbfs:/mnt/a b", "/dbfs/mnt/a b"),
        ("dbfs:/Volumes/main/x", "/Volumes/main/x"),
        ("/dbfs/mnt/x", "/dbfs/mnt/x"),
        ("/Volumes/main/x", "/Volumes/main/x"),
    ],
)
def test_each_scheme_has_its_own_names(uri: str, path: str) -> None:
    """HDFS is not here, because its client needs Java; its names are like local ones."""
    files = Storage({"fs.s3a.endpoint.region": "eu-north-1", "fs.gs.auth.type": "UNAUTHENTICATED"})
    assert files.locate(uri)[1] == path


def made(uri: str, settings: dict[str, str]) -> fs.FileSystem:
    return Storage(settings).locate(uri)[0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (REGION, {"region": "eu-north-1"}),
        (
            {**REGION, **SECRETS},
            {"access_key": "THE-KEY", "secret_key": "THE-SECRET", "region": "eu-north-1"},
        ),
        (
            {**REGION, **SECRETS, "fs.s3a.session.token": "T"},
            {
                "access_key": "THE-KEY",
                "secret_key": "THE-SECRET",
                "session_token": "T",
                "region": "eu-north-1",
            },
        ),
        # A key without its secret is none, and so is a token without keys.
        ({**REGION, "fs.s3a.access.key": "K", "fs.s3a.session.token": "T"}, {"region": "eu-north-1"}),
        ({**REGION, "fs.s3a.endpoint": "s3.amazonaws.com"}, {"region": "eu-north-1"}),
        (
            {**REGION, "fs.s3a.aws.credentials.provider": "org.x.AnonymousAWSCredentialsProvider"},
            {"region": "eu-north-1", "anonymous": True},
        ),
        (
            {"fs.s3a.endpoint": "http://minio:9000/", "fs.s3a.path.style.access": "true"},
            {"endpoint_override": "minio:9000", "scheme": "http"},
        ),
        (
            {"fs.s3a.endpoint": "minio:9000", "fs.s3a.connection.ssl.enabled": "false"},
            {"endpoint_override": "minio:9000", "scheme": "http", "force_virtual_addressing": True},
        ),
        (
            {"fs.s3a.endpoint": "https://r2.example", "fs.s3a.path.style.access": "false"},
            {"endpoint_override": "r2.example", "scheme": "https", "force_virtual_addressing": True},
        ),
        (
            {**REGION, "fs.s3a.endpoint": "a.example", "fs.s3a.bucket.other.endpoint": "b.example"},
            {"region": "eu-north-1", "endpoint_override": "a.example", "force_virtual_addressing": True},
        ),
        (
            {**SECRETS, "fs.s3a.bucket.mine.access.key": "MINE", "fs.s3a.bucket.mine.endpoint.region": "r"},
            {"access_key": "MINE", "secret_key": "THE-SECRET", "region": "r"},
        ),
    ],
)
def test_s3_is_what_hadoop_is_told(settings: dict[str, str], expected: dict[str, object]) -> None:
    assert made("s3a://mine/x", settings).__reduce__() == fs.S3FileSystem(**expected).__reduce__()


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [
        ("s3.eu-central-1.amazonaws.com", "eu-central-1"),
        ("https://s3.eu-central-1.amazonaws.com:443/", "eu-central-1"),
        ("s3-eu-west-1.amazonaws.com", "eu-west-1"),
        ("s3.dualstack.ap-southeast-2.amazonaws.com", "ap-southeast-2"),
        ("s3-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("s3-fips.dualstack.us-east-2.amazonaws.com", "us-east-2"),
        ("https://bucket.vpce-0a1-b2.s3.eu-west-3.vpce.amazonaws.com", "eu-west-3"),
        ("s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("s3-external-1.amazonaws.com", "us-east-1"),  # pyarrow's default
        ("s3.eu-central-1.amazonaws.com.example", "us-east-1"),
    ],
)
def test_a_regional_endpoint_gives_the_region(
    endpoint: str, region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert made("s3a://mine/x", {"fs.s3a.endpoint": endpoint}).region == region
    assert made("s3a://mine/x", {**REGION, "fs.s3a.endpoint": endpoint}).region == "eu-north-1"


ROLE = {
    **REGION,
    "fs.s3a.aws.credentials.provider": "org.apache.hadoop.fs.s3a.auth.AssumedRoleCredentialProvider",
    "fs.s3a.assumed.role.arn": "arn:aws:iam::1:role/r",
    "fs.s3a.assumed.role.session.name": "nightly",
}


def test_a_role_is_assumed_where_hadoop_assumes_it() -> None:
    expected = fs.S3FileSystem(role_arn="arn:aws:iam::1:role/r", session_name="nightly", region="eu-north-1")
    assert made("s3a://mine/x", ROLE).__reduce__() == expected.__reduce__()
    without = {name: value for name, value in ROLE.items() if "provider" not in name}
    assert made("s3a://mine/x", without).__reduce__() == fs.S3FileSystem(region="eu-north-1").__reduce__()
    with pytest.raises(ConfigError, match=r"s3a://mine assumes the role arn.*AWS_ACCESS_KEY_ID"):
        made("s3a://mine/x", {**ROLE, **SECRETS})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"fs.gs.auth.type": "UNAUTHENTICATED"}, {"anonymous": True, "scheme": "https"}),
        ({"fs.gs.auth.null.enable": "true"}, {"anonymous": True, "scheme": "https"}),
        ({"fs.gs.storage.root.url": "http://h:1/"}, {"endpoint_override": "h:1", "scheme": "http"}),
    ],
)
def test_google_storage_is_what_hadoop_is_told(settings: dict[str, str], expected: dict[str, object]) -> None:
    assert made("gs://bucket/x", settings).__reduce__() == fs.GcsFileSystem(**expected).__reduce__()


@pytest.mark.parametrize("prefix", ["fs.gs.auth", "google.cloud.auth"])
def test_google_storage_takes_the_key_file_that_hadoop_takes(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/another")
    name = f"{prefix}.service.account.json.keyfile"
    assert name.startswith(HADOOP_PREFIXES)
    settings = {name: str(tmp_path / "key.json"), "fs.gs.auth.type": "UNAUTHENTICATED"}
    with pytest.raises(ConfigError, match=r"key\.json .*is not on .*; expected it on the driver and on all"):
        made("gs://bucket/x", settings)
    (tmp_path / "key.json").touch()
    made("gs://bucket/x", settings)
    assert os.environ["GOOGLE_APPLICATION_CREDENTIALS"] == str(tmp_path / "key.json")


KEY = "a2V5"  # Azure's are Base64
HOST = "account.dfs.core.windows.net"
MSI = "fs.azure.account.oauth.provider.type"
CLIENT = {"fs.azure.account.oauth2.client.id": "me"}
OAUTH = {
    **CLIENT,
    f"fs.azure.account.oauth2.client.secret.{HOST}": "S",
    f"fs.azure.account.oauth2.client.endpoint.{HOST}": "https://login.microsoftonline.com/us/oauth2/token",
}


@pytest.mark.parametrize(
    ("host", "settings", "expected"),
    [
        (HOST, {}, {}),
        (HOST, {f"fs.azure.account.key.{HOST}": KEY}, {"account_key": KEY}),
        (HOST, {f"fs.azure.account.key.other.{HOST}": KEY}, {}),
        (HOST, OAUTH, {"client_id": "me", "client_secret": "S", "tenant_id": "us"}),
        (HOST, {**OAUTH, "fs.azure.account.key": KEY}, {"account_key": KEY}),
        (HOST, {"fs.azure.sas.fixed.token": "sv=1&sig=2"}, {"sas_token": "?sv=1&sig=2"}),
        (HOST, {**OAUTH, f"fs.azure.sas.fixed.token.{HOST}": "?sv=1"}, {"sas_token": "?sv=1"}),
        (HOST, {f"fs.azure.sas.container.{HOST}": "sv=1"}, {"sas_token": "?sv=1"}),
        (HOST, {f"fs.azure.sas.other.{HOST}": "sv=1"}, {}),
        (HOST, {MSI: "org.apache.hadoop.fs.azurebfs.oauth2.MsiTokenProvider", **CLIENT}, {"client_id": "me"}),
        (HOST, {MSI: "org.apache.hadoop.fs.azurebfs.oauth2.MsiTokenProvider"}, {}),
        (HOST, CLIENT, {}),
        (
            "account.dfs.core.cloud.example",
            {},
            {
                "dfs_storage_authority": ".dfs.core.cloud.example",
                "blob_storage_authority": ".blob.core.cloud.example",
            },
        ),
    ],
)
def test_azure_is_what_hadoop_is_told(host: str, settings: dict[str, str], expected: dict[str, str]) -> None:
    files = made(f"abfss://container@{host}/x", settings)
    assert files.__reduce__() == fs.AzureFileSystem("account", **expected).__reduce__()


def test_a_file_system_is_made_once_for_each_bucket_and_its_settings() -> None:
    assert made("s3a://one/x", REGION) is made("s3a://one/y", dict(REGION))
    assert made("s3a://one/x", REGION) is not made("s3a://two/x", REGION)
    assert made("s3a://one/x", REGION) is not made("s3a://one/x", {**REGION, **SECRETS})


@pytest.fixture(scope="module")
def bucket() -> Iterator[Storage]:
    """Storage of an S3 server with one bucket, `bucket`."""
    with S3Server() as server:
        server.put("s3a://bucket", {})
        yield Storage(server.settings)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_in_a_bucket_names_are_taken_as_they_are(bucket: Storage, name: str) -> None:
    uri = f"s3a://bucket/in {name}/{name}"
    write(uri, name.encode(), bucket)
    assert read(uri, bucket) == name.encode()
    listed = made(uri, dict(bucket.settings)).get_file_info(fs.FileSelector("bucket", recursive=True))
    assert f"bucket/in {name}/{name}" in [info.path for info in listed]


def test_in_a_bucket_files_are_read_at_any_place_and_moved(bucket: Storage) -> None:
    write("s3a://bucket/old", b"old", bucket)
    write("s3a://bucket/new", b"0123456789", bucket)
    bucket.move("s3a://bucket/new", "s3a://bucket/old")
    with bucket.open_file("s3a://bucket/old") as file:
        assert (file.size(), file.read_at(3, 4)) == (10, b"456")
    with pytest.raises(OSError, match="new"):
        bucket.open_stream("s3a://bucket/new")


@pytest.mark.parametrize(
    "uri", ["s3a://bucket/absent", "s3a://no-bucket/x", "s3a://bucket/a//b", "s3a://bucket"]
)
def test_what_cannot_be_opened_in_a_bucket_is_missing(bucket: Storage, uri: str) -> None:
    for opened in (bucket.open_stream, bucket.open_file):
        with pytest.raises((FileNotFoundError, ImageError), match=r"bucket|file"):
            opened(uri)
