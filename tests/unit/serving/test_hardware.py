"""The figures of hardware: names that are known, and this machine's processor."""

import pytest

from pipelines.core.errors import BadInput
from pipelines.serving.hardware import DRIVERS, GPUS, find_hardware, named_by_driver
from pipelines.serving.loads import NAMED


@pytest.mark.parametrize(
    ("written", "meant"), [("h100", "H100"), ("RTX 4090", "RTX4090"), ("rtx-pro-6000", "RTX-PRO-6000")]
)
def test_names_are_found_however_they_are_written(written: str, meant: str) -> None:
    assert find_hardware(written).name == meant


def test_of_what_is_unknown_it_says_what_is_known() -> None:
    with pytest.raises(BadInput, match=r"--hardware L40: nothing is known of its bandwidth.*\n.*L40S.*MI300, cpu"):
        find_hardware("L40")


def test_each_has_a_place_in_the_table_of_loads_and_a_source() -> None:
    assert all(isinstance(gpu.place, float) or gpu.place in NAMED for gpu in GPUS.values())
    assert all(gpu.source and gpu.operations["16 bits"] for gpu in GPUS.values())


def test_a_driver_s_name_is_taken_only_where_it_is_that_board() -> None:
    assert named_by_driver("NVIDIA H100 80GB HBM3").name == "H100"
    assert {*DRIVERS.values()} == {*GPUS}
    with pytest.raises(BadInput, match=r"this machine's NVIDIA H100 PCIe: nothing is known"):
        named_by_driver("NVIDIA H100 PCIe")


def test_a_processor_is_measured_once() -> None:
    cpu = find_hardware("cpu")
    assert cpu == find_hardware("CPU") and cpu.is_cpu and cpu.place == "cpu"
    assert 1e8 < cpu.bandwidth < 1e13 and 1e8 < cpu.operations["16 bits"] < 1e15
