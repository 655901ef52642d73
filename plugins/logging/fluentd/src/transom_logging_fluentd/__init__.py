"""The log driver fluentd: a container's output by Fluentd's forward protocol, acknowledged chunk by chunk."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from transom.contract.logging import LogCapability, LogContainer
from transom.services.endpoints import Address, Sink, parse_address
from transom.services.logattrs import extra_attributes, tag
from transom.services.options import Duration
from transom.services.sender import REMOTE_DOCS, Delivery, RemoteLogging, RemoteOptions, Retry

SCHEMES = ("tcp", "tls", "unix")
PORT = 24224
TAG = "{{.ID}}"


class FluentdOptions(RemoteOptions, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """What ``--log-opt`` can say; Docker's names, what Fluentd needs besides, and those of all remote collectors."""

    fluentd_address: str = f"tcp://127.0.0.1:{PORT}"
    fluentd_async: bool | None = None
    fluentd_async_reconnect_interval: Duration = 0.0
    fluentd_buffer_limit: Annotated[int, msgspec.Meta(ge=1, extra={"transom": "size"})] | None = None
    fluentd_retry_wait: Duration = 1.0
    fluentd_max_retries: Annotated[int, msgspec.Meta(ge=1)] | None = None
    fluentd_sub_second_precision: bool = True
    fluentd_request_ack: bool = True
    fluentd_read_timeout: Duration = 60.0
    fluentd_write_timeout: Duration = 30.0
    fluentd_shared_key: str = ""
    fluentd_username: str = ""
    fluentd_password: str = ""
    fluentd_tls_ca_cert: str = ""
    fluentd_tls_cert: str = ""
    fluentd_tls_key: str = ""
    fluentd_tls_skip_verify: bool = False

    def __post_init__(self) -> None:
        address = self.address()
        interval = self.fluentd_async_reconnect_interval
        if interval and not 0.1 <= interval <= 10:
            raise ValueError(f"fluentd-async-reconnect-interval={interval:g}s: expected 0, or between 100ms and 10s")
        if not self.fluentd_retry_wait:
            raise ValueError("fluentd-retry-wait: expected a duration of more than 0")
        given = {
            "fluentd-tls-ca-cert": self.fluentd_tls_ca_cert,
            "fluentd-tls-cert": self.fluentd_tls_cert,
            "fluentd-tls-key": self.fluentd_tls_key,
        }
        unused = [name for name, value in given.items() if value]
        if unused and address.scheme != "tls":
            raise ValueError(f"{unused[0]} needs a fluentd-address that begins with tls://")
        if (self.fluentd_username or self.fluentd_password) and not self.fluentd_shared_key:
            raise ValueError("fluentd-username and fluentd-password need fluentd-shared-key beside them")

    def address(self) -> Address:
        """Return where the collector listens."""
        return parse_address(self.fluentd_address, option="fluentd-address", schemes=SCHEMES, port=PORT, default="tcp")


class Fluentd(RemoteLogging):
    """Sends to Fluentd, Fluent Bit and what else speaks forward; what is not acknowledged waits in a spool."""

    name = "fluentd"
    api = 1
    Options = FluentdOptions
    capabilities = frozenset({LogCapability.REMOTE, LogCapability.FRAGMENTS})
    option_docs: ClassVar[dict[str, str]] = REMOTE_DOCS | {
        "fluentd-address": "Where the collector listens: tcp or tls://host:port, host:port, or unix:///path.",
        "fluentd-async": "false: do not start the container when the collector cannot be reached, as sink-required.",
        "fluentd-async-reconnect-interval": "Make the connection anew so often, 100ms to 10s; 0 keeps it.",
        "fluentd-buffer-limit": "How many lines may wait, beside spool-max-size; unset for as many as have room.",
        "fluentd-retry-wait": "The pause after the first failure to connect; each is 1.5 times longer, up to 10s.",
        "fluentd-max-retries": "How many failures in a row make what waits be dropped; unset never gives up.",
        "fluentd-sub-second-precision": "Send times with nanoseconds (EventTime), not whole seconds.",
        "fluentd-request-ack": "Have each chunk acknowledged; false trusts the network.",
        "fluentd-read-timeout": "How long an acknowledgement may take before the chunk is sent again; 0 for ever.",
        "fluentd-write-timeout": "How long the collector may take nothing before it is given up; 0 for ever.",
        "fluentd-shared-key": "The key of the collector's security section; both ends prove that they know it.",
        "fluentd-username": "The user, where the collector asks for one.",
        "fluentd-password": "The user's password.",
        "fluentd-tls-ca-cert": "A file with the authorities to trust; unset are the system's.",
        "fluentd-tls-cert": "A file with the certificate to show to the collector.",
        "fluentd-tls-key": "A file with the key of that certificate.",
        "fluentd-tls-skip-verify": "Accept any certificate of the collector.",
    }

    options: FluentdOptions

    def _delivery(self) -> Delivery:
        options = self.options
        wait = options.fluentd_retry_wait
        return Delivery(
            retry=Retry(first=wait, most=max(10.0, wait), attempts=options.fluentd_max_retries),
            lines=options.fluentd_buffer_limit,
            required=options.fluentd_async is False,
            lifetime=options.fluentd_async_reconnect_interval or None,
        )

    def _sink(self, container: LogContainer) -> Sink:
        from transom_logging_fluentd.forward import ForwardSink
        from transom_logging_fluentd.records import Records

        options = self.options
        records = Records(
            tag=tag(container, options, driver=self.name, default=TAG),
            container=container,
            attrs=extra_attributes(container, options, driver=self.name),
            precise=options.fluentd_sub_second_precision,
        )
        return ForwardSink(options, records, hostname=container.hostname)
