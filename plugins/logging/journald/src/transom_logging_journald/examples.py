"""What the conformance suite is told about this driver (entry point group ``transom.conformance``)."""

SETTINGS = """
[Journal]
Storage=volatile
RateLimitIntervalSec=0
RuntimeMaxUse=2G
RuntimeKeepFree=1M
ForwardToSyslog=no
ForwardToWall=no
ReadKMsg=no
Audit=no
LineMax=64K
"""

# A journal of its own: journald knows its places by name, so they are others in its mount namespace.
START = """
set -e
mkdir -p run/systemd/journal run/log/journal
[ -e machine-id ] || od -An -N16 -tx1 /dev/urandom | tr -d ' \\n' > machine-id
exec unshare --mount --propagation private sh -ec '
[ -e /etc/machine-id ] || touch /etc/machine-id
[ -e /etc/systemd/journald.conf ] || touch /etc/systemd/journald.conf
mount --bind machine-id /etc/machine-id
mount --bind journald.conf /etc/systemd/journald.conf
mount --bind run /run
exec /lib/systemd/systemd-journald'
"""

EXAMPLES = {
    "collector": {
        "command": ["sh", "start"],
        "needs": {"/lib/systemd/systemd-journald": "install systemd"},
        "files": {"start": START, "journald.conf": SETTINGS},
        "options": {"journald-address": "unixgram://@DIRECTORY@/run/systemd/journal/socket"},
        "socket": "@DIRECTORY@/run/systemd/journal/socket",
        "read": ["journalctl", "-D", "@DIRECTORY@/run/log/journal", "-o", "cat", "-q", "-a", "_TRANSPORT=journal"],
        "lines": r"^(.*)\n",
        "unacknowledged": True,
    }
}
"""systemd-journald with a journal of its own, in a mount namespace; journalctl reads it."""
