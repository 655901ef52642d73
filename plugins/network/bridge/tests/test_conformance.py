"""The driver bridge proves itself by the suite of its kind."""

from transom_conformance.network import NetworkSuite
from transom_conformance.network.connectivity import Connectivity
from transom_conformance.network.crashes import Crashes


class TestBridge(NetworkSuite):
    driver = "bridge"


class TestGuardedBridge(Connectivity):
    """What must hold of a network whose containers cannot pose as each other: they lack nothing else."""

    driver = "bridge"
    network_options = {"antispoof": "true"}
    faults = Crashes.faults
    test_killed_at_any_point_nothing_is_left_and_everything_goes_on = (
        Crashes.test_killed_at_any_point_nothing_is_left_and_everything_goes_on
    )
    test_an_error_at_any_system_call_is_said_in_words_and_undone = (
        Crashes.test_an_error_at_any_system_call_is_said_in_words_and_undone
    )
