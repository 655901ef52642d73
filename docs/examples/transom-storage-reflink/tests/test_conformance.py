"""The conformance suite, each case a test of this driver."""

from transom_conformance.storage import StorageSuite


class TestReflink(StorageSuite):
    driver = "reflink"
