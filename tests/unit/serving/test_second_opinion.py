"""What aiconfigurator is asked, and that it is not asked what it does not know (tests/environments asks it)."""

import pytest

from pipelines.core.errors import BadInput
from pipelines.formats.schemes import SCHEMES
from pipelines.serving.hardware import GPUS
from pipelines.serving.second_opinion import MODES, SYSTEMS, check_known


def test_its_names_are_of_things_that_there_are_here() -> None:
    assert {*SYSTEMS} < {*GPUS}
    assert {*MODES} - {None} < {*SCHEMES}


def test_of_hardware_that_it_does_not_know_it_is_not_asked() -> None:
    check_known(GPUS["H100"])
    with pytest.raises(BadInput, match=r"--ask aiconfigurator: knows nothing of MI300\n.*it knows A100, .*B200"):
        check_known(GPUS["MI300"])
