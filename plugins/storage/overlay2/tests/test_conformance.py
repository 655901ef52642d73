"""The driver overlay2 in the suite that every storage driver passes."""

from transom_conformance.storage import StorageSuite


class TestOverlay2(StorageSuite):
    driver = "overlay2"
