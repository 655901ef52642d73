"""Suites that prove a Transom driver, one for each kind.

An author's own tests inherit the suite of the kind::

    from transom_conformance.storage import StorageSuite

    class TestMine(StorageSuite):
        driver = "mine"

and ``transom conformance storage mine`` runs the same cases and writes a report.
"""
