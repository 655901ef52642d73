"""Bad names and options are refused in words, before anything is made."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable

import msgspec
import pytest

from transom.errors import ConfigError, TransomError
from transom.services.mounts import bind, privately
from transom_conformance.storage.cases import StorageCases
from transom_conformance.storage.layers import Layers
from transom_conformance.suite import World


class Inputs(StorageCases):
    """Bad names and options are refused in words, before anything is made."""

    # Input

    @pytest.mark.parametrize(
        "key", ["", ".", "..", "/", "a/b", "../x", "nul\0", "x" * 4096, "-rf", "--option=value", "new\nline", "\udcff"]
    )
    def test_a_bad_name_is_refused_and_nothing_is_made(self, layers: Layers, key: str) -> None:
        """67: nothing outside the driver's root either."""
        layers.committed("base")
        owned, beside = layers.driver.owned(), sorted(os.listdir(layers.world.path / "state" / "storage"))
        attempts: tuple[Callable[[], object], ...] = (
            lambda: layers.snapshots.prepare(key, None),
            lambda: layers.snapshots.prepare(key, "base"),
            lambda: layers.snapshots.view(key, "base"),
        )
        for attempt in attempts:
            with pytest.raises(ConfigError):
                attempt()
        layers.active("good", "base")
        with pytest.raises(ConfigError):
            layers.snapshots.commit("good", key)
        layers.snapshots.remove("good")
        assert layers.driver.owned() == owned
        assert sorted(os.listdir(layers.world.path / "state" / "storage")) == beside

    def test_an_unknown_option_is_refused_before_anything_is_made(self, world: World) -> None:
        """68."""
        with pytest.raises(ConfigError, match="no-such-option"):
            world.open(**{"no-such-option": "1"})
        assert not (world.path / "state").exists()

    def test_the_probe_answers_and_changes_nothing(self, world: World) -> None:
        """69: usable here, and the root is not even made."""
        driver = world.open()
        before = sorted(os.listdir(world.path))
        probe = driver.probe()
        assert probe.usable, probe.reason
        assert sorted(os.listdir(world.path)) == before

    def test_status_and_errors_are_texts(self, layers: Layers) -> None:
        """72: status is JSON-able, an error names driver, operation and id."""
        assert msgspec.json.encode(layers.driver.status())
        assert all(isinstance(text, str) for pair in layers.driver.status().items() for text in pair)

    def test_records_of_a_newer_release_are_refused(self, layers: Layers) -> None:
        """70: nothing is changed by one that does not understand them."""
        layers.committed("base")
        layers.close()
        path = f"{layers.driver.root}.layers/layers.db"

        def say(version: int) -> int:
            db = sqlite3.connect(path, isolation_level=None)
            before = int(db.execute("PRAGMA user_version").fetchone()[0])
            db.execute(f"PRAGMA user_version = {version}")
            db.close()
            return before

        known = say(99)
        again = Layers(layers.world)
        for attempt in (lambda: again.snapshots.stat("base"), again.snapshots.recover):
            with pytest.raises(ConfigError, match="newer"):
                attempt()
        again.close()
        say(known)
        assert layers.snapshots.exists("base")

    def test_on_a_file_system_that_became_read_only_every_change_is_refused_in_words(self, layers: Layers) -> None:
        """70: and what is there stays."""
        layers.committed("base")
        layers.active("child", "base")
        layers.close()
        home = layers.world.path / "state"

        def run() -> None:
            bind(str(home), str(home), readonly=True)
            again = Layers(layers.world)
            attempts: tuple[Callable[[], object], ...] = (
                lambda: again.snapshots.prepare("new", "base"),
                lambda: again.snapshots.commit("child", "done"),
                lambda: again.snapshots.remove("child"),
            )
            for attempt in attempts:
                with pytest.raises(TransomError):
                    attempt()
            again.close()

        privately(run)
        assert [layer.key for layer in layers.snapshots.walk()] == ["base", "child"]
        assert layers.snapshots.check() == []
