"""Which log drivers a container has, with which options, and which of them is read back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from transom.config import LOG_CACHE
from transom.contract.logging import LogCapability, LogContainer, Logging, Writer
from transom.errors import ConfigError, NotFound, choices, nearest
from transom_engine.logs import Delivery
from transom_engine.model import Container, LogConfig

if TYPE_CHECKING:
    from transom_engine.engine import Engine

DELIVERY = frozenset(Delivery.__struct_encode_fields__)


class LogPlan(msgspec.Struct, frozen=True):
    """One log driver of a container, opened with its options.

    `cache` is set on the driver that the engine adds so that ``logs`` can show what the others only send away.
    """

    driver: Logging
    options: dict[str, str]
    delivery: Delivery
    container: LogContainer
    cache: bool = False

    @property
    def name(self) -> str:
        """The driver's name, with a word for the cache, which can be of a kind that the container has too."""
        return f"{self.driver.name} (cache)" if self.cache else self.driver.name

    def open(self) -> Writer:
        """Open the log for writing."""
        if self.cache:
            os.makedirs(self.container.directory, mode=0o710, exist_ok=True)
        return self.driver.open(container=self.container)


def configs(container: Container) -> list[LogConfig]:
    """Return a container's log drivers with their options, as they are on record."""
    return [container.host_config.log_config, *container.host_config.more_log_configs]


def settle(engine: Engine, container: Container) -> None:
    """Choose the log drivers and refuse options that could never work, when the container is made.

    The first driver's options hold all that the user wrote; they are handed to those whom they concern.

    Raises:
        ConfigError, NotFound: a driver or an option that is not there, a value that it does not take.
    """
    given = configs(container)
    names = [log.type for log in given if log.type] or _default(engine)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"log driver {twice[0]} is named twice: a container can have several, each once")
    words = distribute(engine, names, given[0].config, where="--log-opt")
    settled = [LogConfig(type=name, config={**_defaults(engine, name), **words[name]}) for name in names]
    _record(container, settled)
    check(engine, container)


def check(engine: Engine, container: Container) -> None:
    """Have every driver check its options, and note where the log is."""
    planned = plans(engine, container)
    for plan in planned:
        plan.driver.check(container=plan.container)
    paths = [plan.driver.location(container=plan.container) for plan in planned if not plan.cache]
    container.log_path = next(filter(None, paths), "")


def change(engine: Engine, container: Container, given: Mapping[str, str]) -> None:
    """Put other options over a container's, for ``update --log-opt``."""
    before = configs(container)
    words = distribute(engine, [log.type for log in before], given, where="--log-opt")
    _record(container, [LogConfig(type=log.type, config={**log.config, **words[log.type]}) for log in before])
    check(engine, container)


def _record(container: Container, settled: Sequence[LogConfig]) -> None:
    host = msgspec.structs.replace(container.host_config)
    host.log_config, host.more_log_configs = settled[0], list(settled[1:])
    container.host_config = host


def _default(engine: Engine) -> list[str]:
    names = engine.config.drivers("logging")
    return list(names) if engine.config.log_drivers or len(names) == 1 else [engine.default_driver("logging")]


def _defaults(engine: Engine, name: str) -> dict[str, str]:
    options, where = engine.config.options("logging", name)
    beside = engine.config.drivers("logging") if engine.config.log_drivers else (name,)
    return distribute(engine, beside if name in beside else (name,), options, where=where)[name] if options else {}


def distribute(
    engine: Engine, names: Sequence[str], given: Mapping[str, str], *, where: str
) -> dict[str, dict[str, str]]:
    """Hand options to drivers: ``NAME.option`` to that driver, ``option`` to each that has it.

    Raises:
        ConfigError: none has it.
    """
    known = {name: _known(engine, name) for name in names}
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for key, text in sorted(given.items(), key=lambda item: item[0].partition(".")[0] in known):
        name, _, option = key.partition(".")
        wanted = [name] if option and name in known else names
        option = option if option and name in known else key
        takers = [name for name in wanted if option in known[name]]
        if not takers:
            raise _unknown(option, wanted, set().union(*(known[name] for name in wanted)), where)
        for name in takers:
            found[name][option] = text
    return found


def _known(engine: Engine, name: str) -> frozenset[str]:
    cls = engine.drivers.load("logging", name)
    own = frozenset(cls.Options.__struct_encode_fields__)
    return own if LogCapability.DISCARD in cls.capabilities else own | DELIVERY


def _unknown(option: str, names: Sequence[str], known: set[str], where: str) -> ConfigError:
    who, verb = (f"logging driver {names[0]} has", "it knows")
    if len(names) > 1:
        who, verb = f"of the logging drivers {choices(names)} none has", "they know"
    listed = f"{verb}: {choices(known)}" if known else "it has no options"
    one = "an" if len(names) > 1 else "no"
    return ConfigError(f"{who} {one} option {option!r} (from {where}){nearest(option, known)}; {listed}")


def plans(engine: Engine, container: Container) -> list[LogPlan]:
    """Return the container's log drivers in the user's order, and the cache behind them where one is needed."""
    context = engine.log_container(container)
    planned = [_plan(engine, log, context) for log in configs(container)]
    readable = any(LogCapability.READ in plan.driver.capabilities for plan in planned)
    kept = [plan for plan in planned if LogCapability.DISCARD not in plan.driver.capabilities]
    if not readable and kept and not any(plan.delivery.cache_disabled for plan in kept):
        planned += _cache(engine, context, kept[0].delivery)
    return planned


def _plan(engine: Engine, log: LogConfig, context: LogContainer) -> LogPlan:
    from transom.services.options import convert

    ours = {name: text for name, text in log.config.items() if name in DELIVERY}
    own = {name: text for name, text in log.config.items() if name not in DELIVERY}
    driver = engine.drivers.logging(log.type, own, where="--log-opt")
    cls = engine.drivers.load("logging", log.type)
    delivery = convert(driver=cls, options=ours, struct=Delivery, where="--log-opt")
    return LogPlan(driver=driver, options=own, delivery=delivery, container=context)


def _cache(engine: Engine, context: LogContainer, delivery: Delivery) -> list[LogPlan]:
    """Plan the cache; there is none where no driver is installed that can be read and bounded."""
    options = {
        "max-size": str(delivery.cache_max_size),
        "max-file": str(delivery.cache_max_file),
        "compress": str(delivery.cache_compress and delivery.cache_max_file > 1).lower(),
    }
    place = msgspec.structs.replace(context, directory=f"{context.directory}/log-cache")
    for name in LOG_CACHE:
        try:
            cls = engine.drivers.load("logging", name)
        except NotFound:
            continue
        if LogCapability.READ in cls.capabilities and options.keys() <= {*cls.Options.__struct_encode_fields__}:
            driver = engine.drivers.logging(name, options, where="the options of the log cache")
            return [LogPlan(driver=driver, options=options, delivery=delivery, container=place, cache=True)]
    return []


def readable(engine: Engine, container: Container) -> LogPlan:
    """Return the log that is read back: the first of the user's that can be, else the cache.

    Raises:
        ConfigError: there is none.
    """
    planned = plans(engine, container)
    for plan in planned:
        if LogCapability.READ in plan.driver.capabilities:
            return plan
    names = choices(plan.driver.name for plan in planned)
    raise ConfigError(
        f"log driver {names} does not support reading; start the container with one that does,"
        " such as --log-driver json-file, or without cache-disabled"
    )


def undelivered(planned: Sequence[LogPlan]) -> dict[str, int]:
    """Return by driver how many lines of a container that does not run wait here for their sink."""
    counts = {plan.name: plan.driver.undelivered(container=plan.container) for plan in planned}
    return {name: count for name, count in counts.items() if count}


def flush(engine: Engine, container: Container, timeout: float) -> dict[str, int]:
    """Deliver what waits of a container that does not run; return by driver what still does afterwards."""
    planned = plans(engine, container)
    for plan in planned:
        if plan.driver.undelivered(container=plan.container):
            writer = plan.open()
            try:
                writer.flush(timeout=timeout)
            finally:
                writer.close(timeout=1.0)
    return undelivered(planned)
