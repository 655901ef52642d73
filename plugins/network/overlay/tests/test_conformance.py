"""The driver overlay proves itself by the suite of its kind, on one host; see `test_hosts` for several."""

from transom_conformance.network import NetworkSuite
from transom_network_overlay.examples import EXAMPLES, prepare


class TestOverlay(NetworkSuite):
    driver = "overlay"
    options = EXAMPLES["options"]
    second_host = EXAMPLES["second_host"]
    prepare = prepare
