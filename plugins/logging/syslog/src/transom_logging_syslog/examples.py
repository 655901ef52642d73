"""What the conformance suite is told about this driver (entry point group ``transom.conformance``)."""

RSYSLOG = """
global(workDirectory="@DIRECTORY@" maxMessageSize="64k")
module(load="imtcp")
template(name="text" type="string" string="%msg%\\n")
input(type="imtcp" port="@PORT@" address="127.0.0.1" ruleset="all")
ruleset(name="all") { action(type="omfile" file="@DIRECTORY@/received" template="text") }
"""

EXAMPLES = {
    "collector": {
        "command": ["rsyslogd", "-n", "-f", "@DIRECTORY@/rsyslog.conf", "-i", "@DIRECTORY@/pid"],
        "files": {"rsyslog.conf": RSYSLOG},
        "options": {"syslog-address": "tcp://127.0.0.1:@PORT@"},
        "output": "received",
        "lines": r"^ ?(.*)\n",
        "nowhere": {"syslog-address": "tcp://collector.invalid:514"},
    }
}
"""rsyslog, as Debian has it, on a TCP port; it writes the text of each message."""
