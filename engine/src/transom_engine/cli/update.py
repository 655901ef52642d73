"""``transom update``: limits, log options and the restart policy of containers, at once."""

from __future__ import annotations

import sys
from typing import Any

import click

from transom.errors import ConfigError
from transom_engine import flags
from transom_engine.cli import Session, pass_session
from transom_engine.cli.words import several


@click.command("update")
@click.option("--blkio-weight", type=int, default=0, help="Block IO (relative weight), between 10 and 1000")
@click.option("--cpu-period", type=int, default=0, help="Limit CPU CFS period, in microseconds")
@click.option("--cpu-quota", type=int, default=0, help="Limit CPU CFS quota, in microseconds")
@click.option("--cpu-rt-period", type=int, default=0, help="Limit the CPU real-time period in microseconds")
@click.option("--cpu-rt-runtime", type=int, default=0, help="Limit the CPU real-time runtime in microseconds")
@click.option("-c", "--cpu-shares", type=int, default=0, help="CPU shares (relative weight)")
@click.option("--cpus", default="", help="Number of CPUs")
@click.option("--cpuset-cpus", default="", help="CPUs in which to allow execution (0-3, 0,1)")
@click.option("--cpuset-mems", default="", help="MEMs in which to allow execution (0-3, 0,1)")
@click.option("-m", "--memory", default="", help="Memory limit")
@click.option("--memory-reservation", default="", help="Memory soft limit")
@click.option("--memory-swap", default="", help="Swap limit equal to memory plus swap: -1 to enable unlimited swap")
@click.option("--kernel-memory", default="", help="Kernel memory limit")
@click.option("--hugetlb-limit", multiple=True, help="Limit huge pages of one size (format: <page-size>:<bytes>)")
@click.option("--pids-limit", type=int, default=None, help="Tune container pids limit (-1 for unlimited)")
@click.option("--restart", default="", help="Restart policy to apply when a container exits")
@click.option("--log-opt", multiple=True, help="Log driver options, put over those that the container has")
@click.argument("names", metavar="CONTAINER...", nargs=-1, required=True)
@pass_session
def update_command(
    session: Session, /, names: tuple[str, ...], restart: str, log_opt: tuple[str, ...], **given: Any
) -> int:
    """Update configuration of one or more containers."""
    from transom_engine.cli.run import limits

    changes = limits(given)
    if restart:
        changes["restart_policy"] = flags.restart(restart)
    log_opts = flags.pairs(log_opt, flag="--log-opt")
    if not changes and not log_opts and not any(given.values()):  # --cpus 0 and the like are flags that ask for nothing
        raise ConfigError("you must provide one or more flags when using this command; see `transom update --help`")

    def update(name: str) -> None:
        for warning in session.engine.containers.update(name, changes, log_opts=log_opts):
            print(f"WARNING: {warning}", file=sys.stderr)

    return several(names, update)
