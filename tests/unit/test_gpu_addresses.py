"""Which GPU a task gets: what Spark's address means to CUDA."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("pyspark")

from pyspark import TaskContext
from pyspark.resource import ResourceInformation

from nsfw_spark.spark.worker import device_index, num_visible_gpus, task_device

ONE, TWO = "MIG-11111111-aaaa", "MIG-22222222-bbbb"


class FakeTask:
    """Stands in for a task's context, to which Spark gave one GPU."""

    def __init__(self, address: str) -> None:
        self.address = address

    def resources(self) -> dict[str, ResourceInformation]:
        return {"gpu": ResourceInformation("gpu", [self.address])}

    def partitionId(self) -> int:  # noqa: N802 - Spark's name
        return 0


@pytest.mark.parametrize("address", ["0", "1", "7"])
def test_where_nobody_set_the_devices_the_address_is_the_index(address: str) -> None:
    assert device_index(address, None) == int(address)


@pytest.mark.parametrize(
    ("address", "visible", "expected"),
    [
        ("4", "4,5", 0),
        ("5", "4,5", 1),
        ("5", " 4 , 5 ", 1),
        ("0", "0", 0),
    ],
)
def test_an_address_in_the_list_is_its_place_there(address: str, visible: str, expected: int) -> None:
    assert device_index(address, visible) == expected


@pytest.mark.parametrize(
    ("address", "visible", "expected"),
    [("0", "4,5", 0), ("1", "4,5", 1), ("3", "7", 0), ("0", ONE, 0), ("0", "", 0)],
)
def test_an_address_that_counts_within_the_list_is_not_mapped_again(
    address: str, visible: str, expected: int
) -> None:
    assert device_index(address, visible) == expected


@pytest.mark.parametrize("visible", [None, "0,1", TWO, f"{TWO},{ONE}"])
@pytest.mark.parametrize("address", [ONE, "GPU-33333333-cccc"])
def test_a_uuid_becomes_the_only_device_that_is_visible(
    monkeypatch: pytest.MonkeyPatch, address: str, visible: str | None
) -> None:
    monkeypatch.setattr(TaskContext, "get", lambda: FakeTask(address))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")  # and put back, whatever the task sets
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert task_device("auto") == "cuda:0"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == address


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("0,1,3", 3), ("2", 1), ("", 0), ("-1", 0), (f"{ONE},{TWO}", 1), ("0,", 1)],
)
def test_the_visible_gpus_are_those_that_the_variable_lists(
    monkeypatch: pytest.MonkeyPatch, visible: str, expected: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert num_visible_gpus() == expected


def test_without_the_variable_the_drivers_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert num_visible_gpus() >= 0


@pytest.mark.parametrize("requested", ["cpu", "cuda:1"])
def test_a_device_that_was_named_is_taken(requested: str) -> None:
    assert task_device(requested) == requested


@pytest.mark.parametrize("requested", ["auto", "cuda"])
def test_outside_a_task_it_is_the_first(monkeypatch: pytest.MonkeyPatch, requested: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert task_device(requested) == f"{requested}:0"
