"""What the conformance suite is told about this driver (entry point group ``transom.conformance``)."""

import sys

SERVER = """
import json, socketserver

class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        rest = b""
        with open("received", "ab", 0) as output:
            while data := self.request.recv(1 << 18):
                *messages, rest = (rest + data).split(b"\\0")
                lines = [json.loads(message)["short_message"].encode() + b"\\n" for message in messages]
                output.write(b"".join(lines))

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

Server(("127.0.0.1", @PORT@), Handler).serve_forever()
"""

EXAMPLES = {
    "collector": {
        "command": [sys.executable, "server.py"],
        "files": {"server.py": SERVER},
        "options": {"gelf-address": "tcp://127.0.0.1:@PORT@"},
        "output": "received",
        "lines": r"^(.*)\n",
        "nowhere": {"gelf-address": "tcp://collector.invalid:12201"},
    },
    "options": {"gelf-address": "tcp://127.0.0.1:9"},
}
"""A process that reads GELF over TCP and writes the text of each message; no collector of GELF is in Debian."""
