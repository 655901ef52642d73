"""Auth drivers that the config names are asked before a command acts."""

import json
import os
import textwrap


def policy(transom, tmp_path):
    """Install an auth driver that lets callers look and nothing else, and select it."""
    site = tmp_path / "site"
    info = site / "look_only-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: look-only\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[transom.auth]\nlook-only = look_only:LookOnly\n")
    source = """
        from transom.contract.auth import Auth, AuthCapability, Decision, Identity

        class LookOnly(Auth):
            name = "look-only"
            api = 1
            capabilities = frozenset({AuthCapability.AUTHENTICATE, AuthCapability.AUTHORIZE})

            def authenticate(self, request):
                return Identity(name="tester", method="look-only", uid=request.unix.uid)

            def authorize(self, identity, action, target, request):
                allowed = action.partition(".")[2] in {"ps", "images", "info"}
                return Decision(allow=allowed, reason=f"{identity.name} may only look")
    """
    (site / "look_only.py").write_text(textwrap.dedent(source))
    config = tmp_path / "daemon.json"
    config.write_text(json.dumps({"transom": {"auth-drivers": ["look-only"]}}))
    transom.env["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [transom.env.get("PYTHONPATH")])])
    return config


def test_a_command_that_a_driver_denies_does_nothing_and_says_why(transom, tmp_path):
    config = policy(transom, tmp_path)
    assert transom("--config", config, "ps", "-q") == ""
    error = transom.fails("--config", config, "run", "--network", "none", "busybox", "true", code=125)
    assert error == "container.run is denied by look-only: tester may only look"
    error = transom.fails("--config", config, "rmi", "busybox", code=1)
    assert error == "image.rmi is denied by look-only: tester may only look"
    error = transom.fails("--config", config, "network", "create", "mine", code=125)
    assert error == "network.create is denied by look-only: tester may only look"
    error = transom.fails("--config", config, "network", "remove", "mine", code=1)
    assert error == "network.rm is denied by look-only: tester may only look", "a second name is no other command"
    assert transom("ps", "-aq") == ""


def test_peer_lets_root_do_everything(transom, tmp_path):
    config = tmp_path / "daemon.json"
    config.write_text(json.dumps({"transom": {"auth-drivers": ["peer"]}}))
    assert transom("--config", config, "run", "--rm", "--network", "none", "busybox", "echo", "done") == "done"
