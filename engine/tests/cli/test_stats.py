"""``transom stats``."""

import json
import re


def test_stats_shows_what_a_container_uses(transom):
    busy = transom.detached("--name", "busy", "-m", "64m", command=("sh", "-c", "while :; do :; done"))
    head, row = transom("stats", "--no-stream").splitlines()
    assert re.split(r" {2,}", head) == [
        "CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"
    ]  # fmt: skip
    cells = re.split(r" {2,}", row)
    assert cells[:2] == [busy[:12], "busy"]
    assert float(cells[2].rstrip("%")) > 10
    assert re.fullmatch(r"[\d.]+[KM]iB / 64MiB", cells[3])
    assert 0 < float(cells[4].rstrip("%")) < 100
    assert cells[5:] == ["0B / 0B", "0B / 0B", "1"]


def test_stats_counts_the_bytes_of_the_network(transom):
    transom.detached("--name", "web", network="bridge")
    transom("exec", "web", "ping", "-c", "2", "-i", "0.2", "-s", "1000", "172.17.0.1")
    row = json.loads(transom("stats", "--no-stream", "--format", "json", "web"))
    received, sent = row["NetIO"].split(" / ")
    assert float(received.removesuffix("kB")) >= 2
    assert float(sent.removesuffix("kB")) >= 2


def test_stats_of_all_includes_stopped_ones_at_nothing(transom):
    name = transom("create", "--name", "made", "--network", "none", "busybox")
    assert transom("stats", "--no-stream", "--format", "{{.Name}}") == ""
    shown = transom("stats", "-a", "--no-stream", "--no-trunc", "--format", "{{.ID}} {{.CPUPerc}} {{.MemUsage}}")
    assert shown == f"{name} 0.00% 0B / 0B"


def test_stats_streams_a_picture_a_second(transom):
    transom.detached("--name", "web")
    process = transom.popen("stats", "--format", "{{.Name}}")
    assert [process.stdout.readline() for _ in range(2)] == [b"web\n", b"web\n"]
    process.terminate()
    process.communicate(timeout=10)


def test_stats_says_what_is_wrong(empty_transom):
    assert empty_transom.fails("stats", "--no-stream", "nosuch", code=125) == (
        "no such container: nosuch; `transom ps -a` lists those here"
    )
    assert empty_transom.fails("stats", "--format", "{{.X", code=125).startswith("--format '{{.X', column ")
