"""``transom drivers``: which are installed, which this host can run, and what each can do."""

import msgspec
import pytest

BROKEN = """
from transom.contract import Probe
from transom_logging_json_file import JsonFile

class Unusable(JsonFile):
    name = "unusable"
    def probe(self):
        return Probe(usable=False, reason="the moon is full: wait")

class Failing(JsonFile):
    name = "failing"
    def probe(self):
        raise RuntimeError("no clue")

class NoDriver:
    pass
"""


@pytest.fixture
def strange(empty_transom, tmp_path):
    """The command with a distribution of three log drivers that do not work."""
    place = tmp_path / "site"
    info = place / "strange_drivers-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-drivers\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[transom.logging]\nunusable = strange_drivers:Unusable\nfailing = strange_drivers:Failing\n"
        "nodriver = strange_drivers:NoDriver\nmissing = strange_drivers.nowhere:Thing\n"
    )
    (place / "strange_drivers.py").write_text(BROKEN)
    empty_transom.env["PYTHONPATH"] = str(place)
    return empty_transom


def test_ls_tells_of_every_driver_whether_it_can_run_here(strange):
    form = "{{.Name}}|{{.Distribution}}|{{.Version}}|{{.Status}}"
    rows = [line.split("|") for line in strange("drivers", "ls", "--kind", "logging", "--format", form).splitlines()]
    found = {row[0]: row[1:] for row in rows}
    assert found["json-file"][0] == "transom-logging-json-file"
    assert found["json-file"][2] == "usable"
    assert found["unusable"] == ["strange-drivers", "1.2", "unusable: the moon is full: wait"]
    assert found["failing"] == ["strange-drivers", "1.2", "broken: its probe failed: RuntimeError: no clue"]
    assert found["missing"][2] == (
        "broken: logging driver 'missing' of strange-drivers 1.2 cannot be loaded from strange_drivers.nowhere:Thing:"
        " ModuleNotFoundError: No module named 'strange_drivers.nowhere'; 'strange_drivers' is not a package"
    )
    assert found["nodriver"][2].startswith(
        "broken: logging driver 'nodriver' of strange-drivers 1.2 breaks its contract: it must be a class derived from"
    )


def test_ls_prints_a_table_of_all_kinds(empty_transom):
    lines = [line.split() for line in empty_transom("drivers", "ls").splitlines()]
    assert lines[0] == ["KIND", "NAME", "DISTRIBUTION", "VERSION", "STATUS"]
    assert ["network", "host", "transom-network-host", "0.1.0", "usable"] in lines
    assert {line[0] for line in lines[1:]} == {"auth", "limits", "logging", "network", "storage"}


def test_ls_without_probing_imports_no_driver(strange):
    (strange.data.parent / "site/strange_drivers.py").write_text("raise SystemExit('imported')")
    lines = [line.split() for line in strange("drivers", "ls", "--no-probe", "logging").splitlines()]
    assert lines[0] == ["KIND", "NAME", "DISTRIBUTION", "VERSION"]
    assert ["logging", "missing", "strange-drivers", "1.2"] in lines
    assert "logging/nodriver" in strange("drivers", "ls", "-q").splitlines()


def test_inspect_tells_options_with_types_defaults_and_words(empty_transom):
    facts = msgspec.json.decode(empty_transom("drivers", "inspect", "logging", "json-file"))
    assert facts["Distribution"] == "transom-logging-json-file"
    assert facts["EntryPoint"] == "transom_logging_json_file:JsonFile"
    assert (facts["Api"], facts["Usable"]) == (1, True)
    assert "read" in facts["Capabilities"]
    option = next(option for option in facts["Options"] if option["Name"] == "max-file")
    assert (option["Default"], option["Type"]) == ("", "a whole number, at least 1")
    assert option["Description"]
    assert all(option["Description"] for option in facts["Options"])


def test_inspect_tells_network_and_endpoint_options_and_status(empty_transom):
    facts = msgspec.json.decode(empty_transom("drivers", "inspect", "network", "bridge"))
    assert "com.docker.network.driver.mtu" in [option["Name"] for option in facts["NetworkOptions"]]
    assert facts["EndpointOptions"]
    assert facts["Status"]["IPv4 forwarding"] in {"on", "off"}
    assert empty_transom("drivers", "inspect", "network", "bridge", "-f", "{{.Name}} {{.Api}}") == "bridge 1"


def test_unknown_kinds_and_names_are_named_with_those_there_are(empty_transom):
    no_kind = "no such kind of driver: 'strage' (did you mean storage?); the kinds are auth, limits, logging, network, storage"  # noqa: E501
    assert empty_transom.fails("drivers", "ls", "--kind", "strage", code=125) == no_kind
    assert empty_transom.fails("drivers", "inspect", "strage", "x", code=125) == no_kind
    assert empty_transom.fails("drivers", "inspect", "limits", "cgroup9").startswith(
        "no limits driver 'cgroup9' (did you mean cgroup"
    )
