"""Every call is a line, whatever comes of it."""

import json

import pytest

from transom.contract.auth import Auth, AuthCapability, Decision, Identity, Request, Target
from transom.drivers import bind
from transom_timings import Timings


class Gate(Auth):
    """Lets one person through."""

    name = "gate"
    api = 1
    capabilities = frozenset({AuthCapability.AUTHORIZE})

    def authorize(self, identity, action, target, request):
        if identity.name == "trouble":
            raise RuntimeError("no")
        return Decision(allow=True)


def ask(tmp_path, name):
    gate = bind(Gate(options=Gate.Options(), root=tmp_path, run=tmp_path), Auth, [Timings()])
    identity = Identity(name=name, method="test")
    return gate.authorize(identity=identity, action="container.run", target=Target(kind="container"), request=Request())


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "timings").read_text().splitlines()]


def test_a_call_is_noted_and_its_result_passes(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSOM_TIMINGS", str(tmp_path / "timings"))
    assert ask(tmp_path, "somebody") == Decision(allow=True)
    (line,) = lines(tmp_path)
    assert line.pop("milliseconds") >= 0
    assert line == {"kind": "auth", "driver": "gate", "operation": "authorize", "failed": False}


def test_a_call_that_raises_is_noted_and_raises(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSOM_TIMINGS", str(tmp_path / "timings"))
    with pytest.raises(RuntimeError, match="no"):
        ask(tmp_path, "trouble")
    assert [line["failed"] for line in lines(tmp_path)] == [True]


def test_where_nothing_can_be_noted_calls_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSOM_TIMINGS", str(tmp_path / "absent" / "timings"))
    assert ask(tmp_path, "somebody").allow
