"""``transom ps``."""

import re

import pytest

HEADINGS = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]


def names(transom, *words):
    return transom("ps", "--format", "{{.Names}}", *words).split()


def filtered(transom, *filters):
    return names(transom, "-a", *(word for text in filters for word in ("-f", text)))


def test_ps_shows_running_containers_as_docker_does(transom):
    name = transom.detached("--name", "web", command=("sh", "-c", 'echo "a long command"; sleep 1000'))
    head, row = transom("ps").splitlines()
    assert re.split(r" {2,}", head) == HEADINGS
    cells = re.split(r" {2,}", row)
    assert [cells[0], *cells[1:3], cells[-1]] == [name[:12], "busybox", '"sh -c echo \\"a long …"', "web"]
    assert re.fullmatch(r"(Less than a second|\d+ seconds?) ago", cells[3])
    assert re.fullmatch(r"Up (Less than a second|\d+ seconds?)", cells[4])
    assert names(transom, "--no-trunc", "--format", "{{.ID}} {{.Command}}")[0] == name


def test_ps_lists_the_states_in_words(transom):
    transom("create", "--name", "made", "--network", "none", "busybox")
    transom("run", "--name", "done", "--network", "none", "busybox", "sh", "-c", "exit 0")
    transom.detached("--name", "stuck")
    transom("pause", "stuck")
    transom.detached("--name", "again", "--restart", "always", command=("false",))
    transom.wait_until(lambda: names(transom, "-f", "status=restarting") == ["again"])
    shown = dict(line.split(" ", 1) for line in transom("ps", "-a", "--format", "{{.Names}} {{.Status}}").splitlines())
    assert shown["made"] == "Created"
    assert re.fullmatch(r"Exited \(0\) .+ ago", shown["done"])
    assert re.fullmatch(r"Up .+ \(Paused\)", shown["stuck"])
    assert re.fullmatch(r"Restarting \(1\) .+ ago|Up .+", shown["again"])
    assert transom("ps", "-a", "-f", "name=^stuck$", "--format", "{{.State}}") == "paused"


def test_ps_lists_the_newest_first_and_as_many_as_asked_for(transom):
    for name in ("one", "two", "three"):
        transom("create", "--name", name, "--network", "none", "busybox")
    assert names(transom) == []
    assert names(transom, "-a") == ["three", "two", "one"]
    assert names(transom, "-n", "2") == ["three", "two"]
    assert names(transom, "-l") == ["three"]
    assert filtered(transom, "before=three") == ["two", "one"]
    assert filtered(transom, "since=one") == ["three", "two"]
    assert filtered(transom, "since=one", "before=three") == ["two"]


def test_ps_filters(transom):
    first = transom("create", "--name", "first", "-l", "a=1", "-l", "b=2", "-v", "kept:/data", "-p", "18081:80",
                    "--expose", "90", "busybox")  # fmt: skip
    transom("create", "--name", "second", "-l", "a=2", "-v", "/tmp:/host", "--network", "none", "busybox")
    transom.call("run", "--name", "third", "--network", "none", "busybox", "sh", "-c", "exit 3")
    for text in (
        f"id={first[:6]}", "name=fir", "name=^/first$", "label=a=1", "label=b", "volume=kept", "volume=/data",
        "network=bridge", "expose=80", "expose=90-99/tcp", "exited=3",
    ):  # fmt: skip
        assert filtered(transom, text) == ["third" if text == "exited=3" else "first"], text
    assert filtered(transom, "label=a", "label=b") == ["first"]
    assert filtered(transom, "name=first", "name=second") == ["second", "first"]
    assert filtered(transom, "volume=/tmp", "status=created") == ["second"]
    assert names(transom, "-f", "status=exited") == ["third"]
    assert filtered(transom, "publish=18081") == [], "it is not published yet"
    assert len(filtered(transom, "ancestor=busybox", "health=none", "is-task=false")) == 3
    assert filtered(transom, "ancestor=other") == filtered(transom, "is-task=true") == []


def test_ps_finds_a_container_by_the_ports_of_the_host_that_it_has(transom):
    transom("run", "-d", "--name", "web", "-p", "18081:80", "-p", "53/udp", "busybox", "sleep", "99")
    number = transom("port", "web", "53/udp").splitlines()[0].rpartition(":")[2]
    for text in ("publish=18081", "publish=18000-18100/tcp", f"publish={number}/udp"):
        assert filtered(transom, text) == ["web"], text
    for text in ("publish=80", "publish=18081/udp", f"publish={number}"):
        assert filtered(transom, text) == [], text
    transom("stop", "-t", "0", "web")
    assert filtered(transom, "publish=18081") == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nam=x", "--filter 'nam=x': invalid filter 'nam' (did you mean name?); there are ancestor, before, exited,"
                  " expose, health, id, is-task, label, name, network, publish, since, status, volume"),
        ("status=up", "--filter status='up': invalid filter; there are created, dead, exited, paused, removing,"
                      " restarting, running"),
        ("exited=x", "--filter exited='x': invalid filter; expected an exit code"),
        ("health=bad", "--filter health='bad': invalid filter; there are healthy, none, starting, unhealthy"),
        ("is-task=x", "--filter is-task='x': invalid filter; there are 0, 1, false, true"),
        ("publish=99999", "--filter publish='99999': invalid port; expected PORT[-PORT][/PROTOCOL]"),
        ("before=nosuch", "no such container: nosuch; `transom ps -a` lists those here"),
        ("name=[", "--filter name='[': invalid regular expression: unterminated character set at position 0"),
    ],
)  # fmt: skip
def test_ps_says_what_is_wrong_with_a_filter(empty_transom, text, error):
    assert empty_transom.fails("ps", "-f", text, code=125) == error


def test_ps_refuses_a_filter_that_is_none(empty_transom):
    assert empty_transom.fails("ps", "-f", "web", code=125).startswith(
        "--filter 'web': invalid format; expected KEY=VALUE, KEY being ancestor, "
    )


def test_ps_shows_sizes_labels_mounts_and_networks(transom):
    words = ["-l", "b=2", "-l", "a=1", "-v", "a-volume-of-a-long-name:/data", "-v", "/tmp:/host"]
    transom.detached(*words, command=("sh", "-c", "head -c 300000 /dev/zero > /tmp/big; sleep 1000"))
    template = '{{.Labels}}|{{.Label "a"}}|{{.Mounts}}|{{.LocalVolumes}}|{{.Networks}}'
    assert transom("ps", "--format", template) == "a=1,b=2|1|a-volume-of-a-…,/tmp|1|none"
    transom.wait_until(lambda: transom("ps", "-s").splitlines()[1].split()[-3].startswith("3"))
    assert re.search(r"3\d\dkB \(virtual \d\.\d+MB\)$", transom("ps", "-s"))
    assert re.fullmatch(r"\{.*\"Names\":\".*\}", transom("ps", "--format", "json"))


def test_ps_shows_ports_in_ranges(transom):
    transom.detached("-p", "18000-18002:18000-18002", "-p", "127.0.0.1:18080:80/udp", "--expose", "443",
                     network="bridge")  # fmt: skip
    assert transom("ps", "--format", "{{.Ports}}").replace(", [::]:18000-18002->18000-18002/tcp", "") == (
        "443/tcp, 0.0.0.0:18000-18002->18000-18002/tcp, 127.0.0.1:18080->80/udp"
    )


def test_ps_shows_the_id_of_an_image_whose_name_was_taken(transom, busybox_tree):
    transom.detached()
    engine = transom.engine()
    try:
        from transom_engine.images.importer import import_tar

        old = engine.images.resolve("busybox").id
        import_tar(str(busybox_tree), content=engine.content, store=engine.images, reference="busybox", message="new")
    finally:
        engine.close()
    assert transom("ps", "--format", "{{.Image}}") == old.removeprefix("sha256:")[:12]
