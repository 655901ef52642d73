"""info, version, events and ``transom system``."""

import os
import signal
import time

import msgspec
import pytest


def events(transom, *words):
    """Return past events as (type, action, id)."""
    form = "{{.Type}} {{.Action}} {{.Actor.ID}}"
    lines = transom("events", "--since", "1h", "--until", "0s", "--format", form, *words).splitlines()
    return [tuple(line.split(" ", 2)) for line in lines]


# Info and version


def test_info_counts_containers_and_names_drivers_runtime_and_host(transom):
    transom.detached("--name", "up")
    transom.detached("--name", "still")
    transom("pause", "still")
    transom("create", "--network", "none", "busybox")
    text = transom("info")
    for line in (
        " Containers: 3", "  Running: 1", "  Paused: 1", "  Stopped: 1", " Images: 1", " Logging Driver: json-file",
        f" Kernel Version: {os.uname().release}", f" CPUs: {os.cpu_count()}", f" Architecture: {os.uname().machine}",
        f" Data Root: {transom.data}/transom",
    ):  # fmt: skip
        assert line in text.splitlines()
    facts = msgspec.json.decode(transom("info", "--format", "json"))
    assert (facts["Containers"], facts["ContainersRunning"], facts["Driver"]) == (3, 1, "overlay2")
    assert facts["DefaultRuntime"] in facts["Runtimes"]
    assert "overlay2" in facts["Plugins"]["Storage"]
    assert transom("system", "info", "-f", "{{.Images}} {{.OSType}}") == "1 linux"


def test_info_tells_what_it_can_when_a_part_fails(empty_transom):
    empty_transom.env |= {"TRANSOM_DEFAULT_RUNTIME": "/nowhere/crun", "TRANSOM_LIMITS_DRIVER": "cgroup9"}
    lines = empty_transom("info").splitlines()
    assert " Containers: 0" in lines
    assert " Limits Driver: cgroup9" in lines
    assert any(line.startswith("WARNING: no limits driver 'cgroup9'") for line in lines)
    assert any(
        line.startswith("WARNING: no OCI runtime works on this host (/nowhere/crun: not found)") for line in lines
    )


def test_version_names_what_takes_part(empty_transom):
    lines = empty_transom("version").splitlines()
    assert lines[0] == "Transom:"
    assert lines[1].split() == ["Version:", "0.1.0"]
    assert any(line.startswith(" OS/Arch:           linux/") for line in lines)
    facts = msgspec.json.decode(empty_transom("version", "--format", "json"))
    assert facts["ContractVersion"] == "1"
    assert facts["Components"][0]["Name"] in {"crun", "runc"}
    assert empty_transom("version", "-f", "{{.Os}}") == "linux"


# Events


def test_events_of_the_past_are_told_in_order_and_in_docker_s_line(transom):
    name = transom("create", "--network", "none", "--label", "role=db", "--name", "web", "busybox", "true")
    transom("start", "-a", "web")
    transom("rm", "web")
    actions = [action for kind, action, id in events(transom) if kind == "container" and id == name]
    assert actions == ["create", "start", "die", "destroy"]
    line = next(line for line in transom("events", "--since", "1h", "--until", "0s").splitlines() if " die " in line)
    at, kind, action, id, known = line.split(" ", 4)
    assert (kind, action, id) == ("container", "die", name)
    assert known == "(exitCode=0, image=busybox, name=web, role=db)"
    assert len(at) == len("2024-05-06T07:08:09.123456789+00:00")


def test_events_as_json_have_the_fields_of_docker_s_api(transom):
    transom("create", "--network", "none", "--name", "web", "busybox")
    words = ["--since", "1h", "--until", "0s", "--filter", "event=create", "--filter", "type=container"]
    event = msgspec.json.decode(transom("events", "--format", "json", *words))
    assert (event["Type"], event["Action"], event["status"], event["from"]) == (
        "container", "create", "create", "busybox"
    )  # fmt: skip
    assert event["Actor"]["Attributes"]["name"] == "web"
    assert event["timeNano"] // 10**9 == event["time"]


def test_events_filters_by_object_label_and_action(transom):
    web = transom("create", "--network", "none", "--name", "web", "--label", "role=db", "busybox")
    transom("create", "--network", "none", "--name", "other", "busybox")
    transom("volume", "create", "data")
    transom("network", "create", "net")
    assert {id for _, _, id in events(transom, "-f", "container=web")} == {web}
    assert {id for _, _, id in events(transom, "-f", f"container={web[:8]}")} == {web}
    assert {id for _, _, id in events(transom, "-f", "label=role=db")} == {web}
    assert events(transom, "-f", "volume=data") == [("volume", "create", "data")]
    assert [event[:2] for event in events(transom, "-f", "network=net")] == [("network", "create")]
    assert len(events(transom, "-f", "image=busybox", "-f", "event=create")) == 2
    assert events(transom, "-f", "type=image") == []
    assert transom.fails("events", "-f", "type") == (
        "--filter 'type': invalid format; expected KEY=VALUE,"
        " KEY being container, event, image, label, network, scope, type, volume"
    )


def test_events_tells_of_images(transom):
    id = transom("images", "-q", "--no-trunc")
    transom("tag", "busybox", "other")
    transom("rmi", "other")
    assert events(transom, "-f", "type=image") == [("image", "tag", id), ("image", "untag", id)]


def test_events_follows_what_happens(transom):
    process = transom.popen("events", "--format", "{{.Action}} {{.Actor.ID}}", "--filter", "type=volume")
    try:
        time.sleep(0.5)
        transom("volume", "create", "one")
        began = time.monotonic()
        assert process.stdout.readline() == b"create one\n"
        assert time.monotonic() - began < 1
        transom("volume", "rm", "one")
        assert process.stdout.readline() == b"destroy one\n"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode == 130


def test_events_ends_at_the_time_that_until_says(empty_transom):
    began = time.monotonic()
    assert empty_transom("events", "--until", str(time.time() + 1)[:13]) == ""
    assert 0.5 < time.monotonic() - began < 5


def test_events_refuses_times_that_are_none(empty_transom):
    assert empty_transom.fails("events", "--since", "yesterday") == (
        "--since 'yesterday': failed to parse value as time or duration; expected 2024-05-06T07:08:09Z,"
        " seconds since the epoch, or a duration such as 10m"
    )


# Disk usage


def test_df_measures_images_containers_and_volumes(transom):
    transom.detached(
        "--name", "web", "-v", "data:/data", command=("sh", "-c", "head -c 5000 /dev/zero >/big; sleep 99")
    )
    transom.wait_until(lambda: "5000" in transom("exec", "web", "wc", "-c", "/big"))
    (transom.data / "transom/volumes/data/_data/file").write_bytes(b"x" * 2000)
    transom("volume", "create", "idle")
    form = "{{.Type}}|{{.TotalCount}}|{{.Active}}|{{.Size}}|{{.Reclaimable}}"
    rows = {
        row[0]: row[1:] for row in (line.split("|") for line in transom("system", "df", "--format", form).splitlines())
    }
    assert rows["Images"][:2] == ["1", "1"]
    assert rows["Images"][3] == "0B (0%)"
    assert rows["Containers"][:2] == ["1", "1"]
    assert rows["Containers"][3] == "0B (0%)"
    assert rows["Local Volumes"] == ["2", "1", "2kB", "0B (0%)"]
    lines = transom("system", "df").splitlines()
    assert lines[0].split() == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]


def test_df_in_detail_lists_each_object(transom):
    transom("create", "--network", "none", "--name", "web", "-v", "data:/data", "busybox", "true")
    text = transom("system", "df", "-v")
    assert "Images space usage:\n\nREPOSITORY   TAG" in text
    assert "Containers space usage:\n\nCONTAINER ID   IMAGE" in text
    volumes = text.partition("Local Volumes space usage:\n\n")[2].splitlines()
    assert [line.split() for line in volumes] == [["VOLUME", "NAME", "LINKS", "SIZE"], ["data", "1", "0B"]]
    assert transom.fails("system", "df", "-v", "--format", "json") == (
        "--verbose and --format contradict each other: leave one out"
    )


# Prune


def test_prune_asks_first_and_says_what_goes(transom):
    transom("create", "--network", "none", "--name", "web", "busybox")
    asked = transom("system", "prune", "--volumes", input=b"n\n")
    assert asked == (
        "WARNING! This will remove:\n  - all stopped containers\n"
        "  - all networks not used by at least one container\n"
        "  - all anonymous volumes not used by at least one container\n"
        "  - all dangling images\n\n"
        "Are you sure you want to continue? [y/N] "
    )
    assert transom("ps", "-aq") != ""


def test_prune_removes_all_that_is_unused(transom):
    id = transom("create", "--network", "none", "--name", "web", "-v", "/data", "busybox")
    transom("network", "create", "net")
    transom("volume", "create", "named")
    kept = transom.detached("--name", "kept")
    text = transom("system", "prune", "-f", "--volumes")
    assert f"Deleted Containers:\n{id}\n\nDeleted Networks:\nnet\n\nDeleted Volumes:\n" in text
    assert text.splitlines()[-1].startswith("Total reclaimed space: ")
    assert transom("ps", "-aq", "--no-trunc") == kept
    assert transom("volume", "ls", "-q") == "named"
    assert transom("images", "-q") != ""
    transom("rm", "-f", "kept")
    assert "untagged: busybox:latest" in transom("system", "prune", "-af").splitlines()
    assert transom("images", "-aq") == ""


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--volumes", "--filter", "until=1h"],
            "--filter until is not supported with --volumes: volumes have no last use",
        ),
        (["--filter", "name=x"], "--filter 'name=x': invalid filter 'name'; there are label, label!, until"),
    ],
)
def test_prune_refuses_words_that_do_not_fit(empty_transom, words, text):
    assert empty_transom.fails("system", "prune", "-f", *words) == text
