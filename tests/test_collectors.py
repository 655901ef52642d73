"""Containers whose output goes to collectors that are down, come, and go."""

import time

import pytest

from transom_conformance.logging.collector import Collector
from transom_conformance.suite import World
from transom_logging_fluentd.examples import EXAMPLES as FLUENTD
from transom_logging_syslog.examples import EXAMPLES as SYSLOG

LISTEN = """module(load="imptcp")
input(type="imptcp" path="@DIRECTORY@/socket" ruleset="all")
"""


def on_a_socket(example, address, **files):
    """Let a collector listen on a Unix socket: the command works in a network namespace of its own."""
    options = {**example["options"], address: "unix://@DIRECTORY@/socket"}
    return {**example, "socket": "@DIRECTORY@/socket", "options": options, "files": {**example["files"], **files}}


def without_tcp(text):
    return "".join(line for line in text.splitlines(keepends=True) if "imtcp" not in line)


EXAMPLES = {
    "fluentd": on_a_socket(
        FLUENTD["collector"],
        "fluentd-address",
        **{"options.json": '{"listenOptions": {"path": "@DIRECTORY@/socket"}}'},
    ),
    "syslog": on_a_socket(
        SYSLOG["collector"],
        "syslog-address",
        **{"rsyslog.conf": without_tcp(SYSLOG["collector"]["files"]["rsyslog.conf"]) + LISTEN},
    ),
}


@pytest.fixture
def collector(tmp_path):
    """A function that makes a collector for a driver; it does not run yet."""
    worlds = []

    def make(driver):
        place = tmp_path / driver
        place.mkdir()
        worlds.append(World(path=place, kind="logging", driver=driver, options={}))
        return Collector(worlds[-1], EXAMPLES[driver])

    yield make
    for world in worlds:
        world.clean_up()


def flags(driver, sink, prefix=""):
    return ["--log-driver", driver, *(f"--log-opt={prefix}{name}={value}" for name, value in sink.options.items())]


def status(transom, name, driver):
    return next(found for found in transom.inspect(name)["LogStatus"] if found["Driver"] == driver)


@pytest.mark.parametrize("driver", EXAMPLES)
def test_a_collector_that_is_down_costs_a_container_nothing(transom, collector, driver):
    sink = collector(driver)
    command = ("sh", "-c", "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i + 1)); done; sleep 1000")
    name = transom.detached(*flags(driver, sink), command=command)
    transom.wait_until(lambda: status(transom, name, driver)["Taken"] == 2000)
    found = status(transom, name, driver)
    assert (found["Delivered"], found["Dropped"], found["Pending"]) == (0, 0, 2000)
    transom.wait_until(lambda: "No such file or directory" in status(transom, name, driver)["Error"])
    begin = time.monotonic()
    transom("stop", "-t", "0", name)
    assert time.monotonic() - begin < 15, "stop waits for the collector"
    assert transom("logs", "--tail", "2", name).splitlines() == ["line 1998", "line 1999"]
    sink.start()
    transom("start", name)
    sink.wait(*[b"line %d" % i for i in range(2000)])
    transom.wait_until(lambda: status(transom, name, driver)["Pending"] == 0)
    transom("rm", "-f", name)


def test_two_collectors_get_every_line_and_one_that_is_killed_costs_the_other_nothing(transom, collector):
    fluentd, syslog = collector("fluentd"), collector("syslog")
    fluentd.start()
    syslog.start()
    command = ("sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i + 1)); done")
    name = transom.detached(
        *flags("fluentd", fluentd, "fluentd."), *flags("syslog", syslog, "syslog."), command=command
    )
    syslog.wait(b"line 10")
    fluentd.kill()
    assert transom("wait", name) == "0"
    wanted = [b"line %d" % i for i in range(20_000)]
    assert syslog.wait(*wanted) == wanted
    fluentd.start()
    transom("start", name)
    transom("wait", name)
    fluentd.wait(*wanted)
    transom("rm", name)
