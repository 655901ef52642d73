"""Threads and processes that work on one root at once."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from transom.contract.storage import StorageCapability
from transom.errors import Conflict, NotFound
from transom_conformance.faults import fork, wait
from transom_conformance.storage.cases import StorageCases
from transom_conformance.storage.layers import Layers, names_in, put
from transom_conformance.storage.scribbles import scribble


class Concurrency(StorageCases):
    """Threads and processes that work on one root at once."""

    # Many at once

    def test_many_threads_make_children_of_one_parent(self, layers: Layers) -> None:
        """54: 64 at once; each child has what its own thread wrote."""
        layers.committed("base", fill=put(shared="1"))
        errors: list[BaseException] = []

        def work(n: int) -> None:
            own = Layers(layers.world)
            try:
                for round in range(2):
                    own.active(f"t{n}-{round}", "base", put(own=f"{n}.{round}"))
                    own.snapshots.commit(f"t{n}-{round}", f"c{n}-{round}")
                    if round == 1:
                        own.snapshots.remove(f"c{n}-0")
            except BaseException as error:
                errors.append(error)
            finally:
                own.close()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        expected = {f"c{n}-1" for n in range(64)}
        assert {layer.key for layer in layers.snapshots.walk()} == expected | {"base"}
        for key in sorted(expected):
            assert layers.inside(key, lambda top: (top / "own").read_text()) == key[1:].replace("-", ".")

    def test_a_race_for_one_name_has_one_winner(self, layers: Layers) -> None:
        """55: the others get `Conflict`, and leave nothing."""
        layers.committed("base")
        for round in range(5):
            outcomes: list[object] = []
            gate = threading.Barrier(8)

            def work(round: int = round, gate: threading.Barrier = gate, outcomes: list[object] = outcomes) -> None:
                own = Layers(layers.world)
                try:
                    gate.wait()
                    outcomes.append(own.snapshots.prepare(f"prize-{round}", "base").key)
                except BaseException as error:
                    outcomes.append(error)
                finally:
                    own.close()

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            won = [outcome for outcome in outcomes if isinstance(outcome, str)]
            assert len(won) == 1
            assert all(isinstance(outcome, Conflict) for outcome in outcomes if outcome not in won)
        assert len(layers.driver.owned()) == 6

    def test_removing_a_parent_while_children_are_made_never_orphans_one(self, layers: Layers) -> None:
        """56: one of the two loses."""
        for round in range(10):
            base = layers.committed(f"base-{round}", fill=put(a="1"))
            gate = threading.Barrier(2)

            def make(base: str = base, gate: threading.Barrier = gate) -> None:
                own = Layers(layers.world)
                try:
                    gate.wait()
                    own.snapshots.prepare(f"child-of-{base}", base)
                except NotFound:
                    pass
                finally:
                    own.close()

            thread = threading.Thread(target=make)
            thread.start()
            gate.wait()
            try:
                layers.snapshots.remove(base)
            except Conflict:
                pass
            thread.join()
            child = layers.snapshots.exists(f"child-of-{base}")
            assert child == layers.snapshots.exists(base)
            if child:
                assert layers.inside(f"child-of-{base}", names_in) == ["a"]

    def test_several_processes_share_one_root(self, layers: Layers) -> None:
        """57: each makes, fills, commits and removes its own."""
        layers.committed("base", fill=put(shared="1"))
        layers.close()

        def work(n: int) -> None:
            own = Layers(layers.world)
            for round in range(5):
                own.committed(f"p{n}-{round}", "base", put(own=f"{n}-{round}"))
                assert own.inside(f"p{n}-{round}", lambda top: (top / "own").read_text()) == f"{n}-{round}"
                if round % 2:
                    own.snapshots.remove(f"p{n}-{round}")

        children = [fork(lambda n=n: work(n)) for n in range(4)]  # type: ignore[misc]
        assert [wait(pid) for pid in children] == [0] * 4
        again = Layers(layers.world)
        try:
            keys = {layer.key for layer in again.snapshots.walk()}
            assert keys == {"base", *(f"p{n}-{round}" for n in range(4) for round in (0, 2, 4))}
            assert again.snapshots.check() == []
        finally:
            again.close()

    def test_an_active_layer_has_one_user_at_a_time(self, layers: Layers) -> None:
        """58: who has it claimed keeps it from being claimed again, committed or removed; death frees it."""
        layers.active("mine")
        claim = layers.snapshots.claim("mine")
        for attempt in (
            lambda: layers.snapshots.claim("mine"),
            lambda: layers.snapshots.commit("mine", "other"),
            lambda: layers.snapshots.remove("mine"),
        ):
            with pytest.raises(Conflict, match="in use"):
                attempt()
        claim.release()

        ready, tell = os.pipe()

        def hold() -> None:
            lock = layers.snapshots.claim("mine")
            os.write(tell, b"!")
            time.sleep(60)
            lock.release()

        pid = fork(hold)
        os.close(tell)
        assert os.read(ready, 1) == b"!"
        os.close(ready)
        with pytest.raises(Conflict, match="in use"):
            layers.snapshots.claim("mine")
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        layers.snapshots.remove("mine")

    @pytest.mark.requires(StorageCapability.CLONE)
    def test_a_clone_is_equal_and_independent(self, layers: Layers) -> None:
        """12: of an active layer, its changes included."""
        layers.committed("base", fill=lambda top: scribble(top, 12))
        layers.active("source", "base", lambda top: scribble(top, 120))
        layers.snapshots.clone("copy", "source")
        before = layers.tree("source")
        assert layers.tree("copy") == before
        layers.inside("copy", lambda top: scribble(top, 121))
        assert layers.tree("source") == before
