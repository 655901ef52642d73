"""Several log drivers for one container, what they cost each other, and the cache behind those that cannot be read."""

import re
import time
from pathlib import Path

import msgspec
import pytest

HERE = Path(__file__).parent
COUNT = ("sh", "-c", "seq 1 1000; echo end >&2")


@pytest.fixture
def sinks(transom, tmp_path):
    """The command with the log driver ``sink`` installed; the path of a sink."""
    info = tmp_path / "installed" / "transom_logging_sink-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transom-logging-sink\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[transom.logging]\nsink = sink_driver:Sink\n")
    transom.env["PYTHONPATH"] = f"{HERE}:{info.parent}"
    return tmp_path / "sink"


def status(transom, name):
    return {one["Driver"].split()[0]: one for one in transom.inspect(name)["LogStatus"]}


def adds_up(one):
    return one["Taken"] == one["Delivered"] + one["Dropped"] + one["Pending"]


def events(transom, name, action):
    text = transom("events", "--since", "0", "--until", "0s", "--filter", f"container={name}", "--format", "{{json .}}")
    found = [msgspec.json.decode(line) for line in text.splitlines()]
    return [event["Actor"]["Attributes"] for event in found if event["Action"] == action]


def test_every_log_driver_of_a_container_gets_every_line(transom, sinks):
    flags = ("--log-driver", "json-file", "--log-driver", "sink", "--log-opt", f"sink-file={sinks}")
    name = transom.detached(*flags, "--log-opt", "json-file.tag=T", command=COUNT)
    transom("wait", name)
    numbers = "".join(f"{n}\n" for n in range(1, 1001))
    assert sorted(sinks.read_text().splitlines()) == sorted([*numbers.splitlines(), "end"])
    done = transom.call("logs", "--details", name)
    assert (done.out.replace("tag=T ", ""), done.err) == (numbers, "tag=T end\n")
    found = status(transom, name)
    assert {driver: (one["Taken"], one["Delivered"]) for driver, one in found.items()} == {
        "json-file": (1001, 1001),
        "sink": (1001, 1001),
    }
    host = transom.inspect(name)["HostConfig"]
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"tag": "T"}}
    assert host["MoreLogConfigs"] == [{"Type": "sink", "Config": {"sink-file": str(sinks)}}]


def test_several_log_drivers_can_be_the_default(transom, sinks, tmp_path):
    config = tmp_path / "daemon.json"
    own = {"log-drivers": ["sink", "json-file"]}
    config.write_bytes(msgspec.json.encode({"log-opts": {"sink-file": str(sinks), "max-file": "3"}, "transom": own}))
    name = transom("--config", config, "run", "-d", "--network", "none", "busybox", "echo", "hello")
    transom("wait", name)
    assert (transom("logs", name), sinks.read_text()) == ("hello", "hello\n")
    host = transom.inspect(name)["HostConfig"]
    assert [log["Type"] for log in (host["LogConfig"], *host["MoreLogConfigs"])] == ["sink", "json-file"]
    assert host["MoreLogConfigs"][0]["Config"] == {"max-file": "3"}


def test_a_log_driver_that_hangs_costs_neither_the_other_nor_stop_nor_inspect(transom, sinks):
    flags = ("--log-driver", "json-file", "--log-driver", "sink", "--log-opt", f"sink-file={sinks}")
    flags += (
        "--log-opt",
        "sink-does=stick",
        "--log-opt",
        "sink.mode=non-blocking",
        "--log-opt",
        "sink.max-buffer-size=8k",
    )
    name = transom.detached(*flags, command=("sh", "-c", "seq 1 100000; echo end; exec sleep 1000"))
    transom.wait_until(lambda: transom("logs", "-n", "1", name) == "end", seconds=60)
    transom.wait_until(lambda: status(transom, name)["json-file"]["Delivered"] == 100_001, seconds=30)
    stuck = status(transom, name)["sink"]
    assert adds_up(stuck)
    assert (stuck["Taken"], stuck["Delivered"]) == (100_001, 0)
    assert stuck["Dropped"] > 10_000
    began = time.monotonic()
    transom("stop", "-t", "0", name)
    assert time.monotonic() - began < 10
    assert transom("logs", "--tail", "3", name) == "99999\n100000\nend"
    last = status(transom, name)["sink"]
    assert (last["Taken"], last["Dropped"], last["Pending"]) == (100_001, 100_001, 0)
    told = [event for event in events(transom, name, "log_dropped") if event["driver"] == "sink"]
    assert sum(int(event["count"]) for event in told) == 100_001
    assert len(told) < 30, "a flood of events"


def test_what_a_log_driver_refused_is_counted_and_marked_in_its_stream(transom, sinks):
    down = Path(f"{sinks}.down")
    down.touch()
    flags = ("--log-driver", "sink", "--log-opt", f"sink-file={sinks}", "--log-opt", "sink-does=refuse")
    name = transom.detached(
        *flags, command=("sh", "-c", "echo one; echo two; read x; echo three; read x"), network="none"
    )
    transom("rm", "-f", name)
    name = transom("run", "-d", "-i", "--network", "none", *flags, "busybox", "sh", "-c", "seq 1 2; read x; echo three")
    transom.wait_until(lambda: status(transom, name)["sink"]["Dropped"] == 2, seconds=30)
    assert "the sink is down" in status(transom, name)["sink"]["Error"]
    down.unlink()
    transom.call("attach", name, input=b"go\n")
    transom("wait", name)
    gap, last = sinks.read_text().splitlines()
    assert re.fullmatch(r"transom: 2 lines are missing here, \S+ to \S+: the log driver sink refused: .*", gap)
    assert last == "three"
    one = status(transom, name)["sink"]
    assert (one["Taken"], one["Delivered"], one["Dropped"], one["Error"]) == (3, 1, 2, "")
    assert [event["count"] for event in events(transom, name, "log_dropped")] == ["2"]


def test_logs_shows_what_a_log_driver_only_sends_away(transom, sinks):
    flags = ("--log-driver", "sink", "--log-opt", f"sink-file={sinks}")
    name = transom.detached(*flags, command=("sh", "-c", "seq 1 5; echo bad >&2; exec sleep 1000"))
    transom.wait_until(lambda: transom.call("logs", name).err == "bad\n")
    assert transom("logs", "--tail", "2", name).split() == ["5"] or transom("logs", "-n", "3", name) == "4\n5"
    transom("kill", name)
    transom("wait", name)
    assert transom("logs", name) == "1\n2\n3\n4\n5"
    assert transom.inspect(name)["LogPath"] == ""


def test_the_cache_is_bounded_and_can_be_left_out(transom, sinks):
    flags = ("--log-driver", "sink", "--log-opt", f"sink-file={sinks}")
    small = ("--log-opt", "cache-max-size=20k", "--log-opt", "cache-max-file=2", "--log-opt", "cache-compress=false")
    name = transom.detached(*flags, *small, command=("seq", "1", "20000"))
    transom("wait", name)
    cached = list((transom.data / "transom/containers" / transom.inspect(name)["Id"] / "log-cache").rglob("*"))
    sizes = [path.stat().st_size for path in cached if path.is_file()]
    assert len(sizes) == 2
    assert sum(sizes) < 41_000
    assert transom("logs", "--tail", "2", name) == "19999\n20000"
    bare = transom.detached(*flags, "--log-opt", "cache-disabled=true", command=("echo", "hello"))
    transom("wait", bare)
    assert transom.fails("logs", bare, code=125) == (
        "log driver sink does not support reading; start the container with one that does, such as --log-driver"
        " json-file, or without cache-disabled"
    )


def test_log_options_of_a_running_container_change_at_once(transom, sinks):
    flags = ("--log-driver", "json-file", "--log-driver", "sink", "--log-opt", f"sink-file={sinks}")
    name = transom("run", "-d", "-i", "--network", "none", *flags, "busybox", "sh", "-c", "echo one; read x; echo two")
    transom.wait_until(lambda: transom("logs", name) == "one")
    transom("update", "--log-opt", "tag=new", "--log-opt", "sink.sink-tag=>", name)
    transom.call("attach", name, input=b"go\n")
    transom("wait", name)
    assert transom("logs", "--details", name) == " one\ntag=new two"
    assert sinks.read_text() == "one\n>two\n"
    assert transom.inspect(name)["HostConfig"]["LogConfig"]["Config"] == {"tag": "new"}
    assert {one["Taken"] for one in status(transom, name).values()} == {2}


def test_log_options_that_cannot_be_opened_leave_the_old_ones_in_force(transom, sinks):
    flags = ("--log-driver", "sink", "--log-opt", f"sink-file={sinks}")
    name = transom("run", "-d", "-i", "--network", "none", *flags, "busybox", "sh", "-c", "read x; echo two")
    assert "No such file or directory" in transom.fails("update", "--log-opt", "sink-file=/no/such/place", name, code=1)
    assert transom.fails("update", "--log-opt", "sink-file=here", name, code=1) == (
        "logging driver sink: sink-file='here': expected an absolute path"
    )
    assert transom.inspect(name)["HostConfig"]["LogConfig"]["Config"] == {"sink-file": str(sinks)}
    transom.call("attach", name, input=b"go\n")
    transom("wait", name)
    assert sinks.read_text() == "two\n"


def test_log_options_that_failed_once_can_be_tried_again(transom, sinks, tmp_path):
    flags = ("--log-driver", "sink", "--log-opt", f"sink-file={sinks}")
    name = transom("run", "-d", "-i", "--network", "none", *flags, "busybox", "sh", "-c", "read x; echo two")
    later = tmp_path / "later" / "sink"
    for place in (later, "/no/such/place", later):
        assert "No such file" in transom.fails("update", "--log-opt", f"sink-file={place}", name, code=1)
    later.parent.mkdir()
    transom("update", "--log-opt", f"sink-file={later}", name)
    transom.call("attach", name, input=b"go\n")
    transom("wait", name)
    assert (later.read_text(), sinks.read_text()) == ("two\n", "")
    one = status(transom, name)["sink"]
    assert (one["Taken"], one["Delivered"], one["Dropped"]) == (1, 1, 0)


def test_one_log_that_cannot_be_opened_leaves_the_old_options_of_all_in_force(transom, sinks):
    flags = ("--log-driver", "json-file", "--log-driver", "sink", "--log-opt", f"sink-file={sinks}")
    name = transom("run", "-d", "-i", "--network", "none", *flags, "busybox", "sh", "-c", "read x; echo two")
    assert "No such file" in transom.fails(
        "update", "--log-opt", "tag=new", "--log-opt", "sink-file=/no/such/place", name, code=1
    )
    transom.call("attach", name, input=b"go\n")
    transom("wait", name)
    assert transom("logs", "--details", name).split() == ["two"]
    assert sinks.read_text() == "two\n"


def test_a_log_is_rotated_on_demand(transom, sinks):
    flags = ("--log-opt", "max-size=1g", "--log-opt", "max-file=3")
    name = transom("run", "-d", "-i", "--network", "none", *flags, "busybox", "sh", "-c", "echo one; read x; echo two")
    transom.wait_until(lambda: transom("logs", name) == "one")
    assert transom("logs", "--rotate", name) == ""
    path = Path(transom.inspect(name)["LogPath"])
    assert b"one" in path.with_name(path.name + ".1").read_bytes()
    assert path.read_bytes() == b""
    transom.call("attach", name, input=b"go\n")
    transom("wait", name)
    assert transom("logs", name) == "one\ntwo"
    assert transom.fails("logs", "--rotate", name, code=125).endswith(f"`transom start {name}` starts it")
    other = transom.detached("--log-driver", "sink", "--log-opt", f"sink-file={sinks}", "--log-opt", "cache-disabled=1")
    assert transom.fails("logs", "--rotate", other, code=125) == "log driver sink does not support rotate"


def test_what_a_sink_has_not_got_is_flushed_or_warned_of(transom, sinks):
    down = Path(f"{sinks}.down")
    down.touch()
    flags = ("--log-driver", "sink", "--log-opt", f"sink-file={sinks}", "--log-opt", "sink-does=keep")
    name = transom("run", "-d", "-i", "--network", "none", *flags, "busybox", "sh", "-c", "seq 1 3; read x")
    transom.wait_until(lambda: status(transom, name)["sink"]["Pending"] == 3)
    assert transom.fails("logs", "--flush", "--timeout", "0.1", name, code=1) == (
        "log driver sink: 3 lines still wait for the sink"
    )
    transom("stop", "-t", "0", name)
    assert status(transom, name)["sink"]["Pending"] == 3
    assert transom.fails("logs", "--flush", "--timeout", "0.1", name) == (
        "not delivered within 0.1 s: 3 of sink lines; they are kept for the next try"
    )
    done = transom.call("rm", name)
    assert done.err == (
        f"WARNING: {name}: 3 lines that log driver sink had not delivered are given up;"
        " `transom logs --flush` delivers them before\n"
    )
    assert events(transom, name, "log_dropped")[-1]["count"] == "3"
    again = transom.detached(*flags, command=("seq", "1", "3"))
    transom("wait", again)
    down.unlink()
    assert transom("logs", "--flush", again) == ""
    assert transom.call("rm", again).err == ""


@pytest.mark.parametrize("command", ["container", "system"])
def test_prune_warns_of_what_a_sink_has_not_got(transom, sinks, command):
    Path(f"{sinks}.down").touch()
    flags = ("--name", "web", "--log-driver", "sink", "--log-opt", f"sink-file={sinks}", "--log-opt", "sink-does=keep")
    id = transom.detached(*flags, command=("seq", "1", "3"))
    transom("wait", id)
    done = transom.call(command, "prune", "-f")
    assert id in done.out.splitlines()
    assert done.err == (
        "WARNING: web: 3 lines that log driver sink had not delivered are given up;"
        " `transom logs --flush` delivers them before\n"
    )


def test_limits_stay_where_the_log_cannot_be_opened_as_asked_for(transom, sinks):
    flags = ("-m", "64m", "--log-driver", "sink", "--log-opt", f"sink-file={sinks}")
    name = transom("run", "-d", "-i", "--network", "none", *flags, "busybox", "sh", "-c", "read x; echo two")
    before = transom.inspect(name)["HostConfig"]

    def limit():
        return transom("stats", "--no-stream", "--format", "{{.MemUsage}}", name).split(" / ")[1]

    assert limit() == "64MiB"
    refused = ("update", "-m", "128m", "--memory-swap", "256m", "--log-opt", "sink-file=/no/such/place", name)
    assert "No such file or directory" in transom.fails(*refused, code=1)
    assert limit() == "64MiB"
    assert transom.inspect(name)["HostConfig"] == before
    transom("update", "-m", "128m", "--memory-swap", "256m", "--log-opt", "sink-tag=>", name)
    assert limit() == "128MiB"
    transom.call("attach", name, input=b"go\n")
    transom("wait", name)
    assert sinks.read_text() == ">two\n"


@pytest.mark.parametrize("sink", ["up", "down"])
def test_the_cache_is_read_as_a_log_is(transom, sinks, sink):
    """Case E63: running and stopped, with the sink there and not."""
    if sink == "down":
        Path(f"{sinks}.down").touch()
    flags = ("--log-driver", "sink", "--log-opt", f"sink-file={sinks}", "--log-opt", "sink-does=refuse")
    script = "for i in 1 2 3 4; do echo $i; sleep 0.02; done; read x; echo 5"
    name = transom("run", "-d", "-i", "--network", "none", *flags, "busybox", "sh", "-c", script)
    transom.wait_until(lambda: transom("logs", name) == "1\n2\n3\n4")
    follower = transom.popen("logs", "-f", "--tail", "1", name)
    assert follower.stdout.readline() == b"4\n"
    stamped = transom("logs", "-t", name).splitlines()
    times = [line.split()[0] for line in stamped]
    second = times[1]
    late = [str(n + 1) for n, at in enumerate(times) if at >= second]
    early = [str(n + 1) for n, at in enumerate(times) if at <= second]

    def answers(last):
        assert transom("logs", name).split() == ["1", "2", "3", "4", *last]
        assert transom("logs", "--tail", "2", name).split() == ["1", "2", "3", "4", *last][-2:]
        assert transom("logs", "--tail", "0", name) == ""
        assert transom("logs", "--since", second, name).split() == [*late, *last]
        assert transom("logs", "--until", second, name).split() == early
        assert transom("logs", "--since", second, "--tail", "1", "--until", second, name) == early[-1]
        assert transom("logs", "-t", name).splitlines()[:4] == stamped
        assert transom("logs", "--details", name).split() == ["1", "2", "3", "4", *last]

    answers([])
    transom.call("attach", name, input=b"go\n")
    assert follower.communicate(timeout=60) == (b"5\n", b"")
    transom("wait", name)
    answers(["5"])
    assert transom("logs", "-f", name).split() == ["1", "2", "3", "4", "5"]
    assert sinks.read_text().split() == (["1", "2", "3", "4", "5"] if sink == "up" else [])
    assert (status(transom, name)["sink"]["Dropped"] > 0) == (sink == "down")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--log-driver sink --log-driver sink",
            "log driver sink is named twice: a container can have several, each once",
        ),
        (
            "--log-driver json-file --log-driver sink --log-opt sink-fle=/x",
            "of the logging drivers json-file, sink none has an option 'sink-fle' (from --log-opt) (did you mean "
            "sink-file?); they know: cache-compress, cache-disabled, cache-max-file, cache-max-size, compress, env, "
            "env-regex, labels, labels-regex, max-buffer-size, max-file, max-size, mode, on-error, sink-does, "
            "sink-file, sink-tag, tag",
        ),
        (
            "--log-driver json-file --log-driver sink --log-opt sink.max-size=1m",
            "logging driver sink has no option 'max-size' (from --log-opt) (did you mean cache-max-size?); it knows: "
            "cache-compress, cache-disabled, cache-max-file, cache-max-size, max-buffer-size, mode, on-error, "
            "sink-does, sink-file, sink-tag",
        ),
        (
            "--log-driver sink --log-opt cache-max-file=0",
            "logging driver sink: cache-max-file='0' (from --log-opt): expected a whole number, at least 1",
        ),
        (
            "--log-driver sink --log-opt cache-max-size=0",
            "logging driver sink (from --log-opt): cache-max-size must be a positive number",
        ),
    ],
)
def test_wrong_log_options_are_refused_when_the_container_is_made(transom, sinks, words, said):
    assert transom.fails("create", *words.split(), "busybox", "true", code=125) == said
    assert transom("ps", "-aq") == ""
