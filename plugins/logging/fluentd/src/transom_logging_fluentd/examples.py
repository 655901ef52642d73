"""What the conformance suite is told about this driver (entry point group ``transom.conformance``)."""

import sys

MODULE = f"{sys.prefix}/node_modules/@fluent-org/logger"
"""Where ``npm install --prefix`` puts the collector, which others wrote."""

SERVER = """
const fs = require("fs");
const { FluentServer } = require("@MODULE@");
const options = JSON.parse(fs.readFileSync("options.json"));
for (const name of ["key", "cert", "ca"]) {
  if (options.tlsOptions && options.tlsOptions[name]) {
    options.tlsOptions[name] = fs.readFileSync(options.tlsOptions[name]);
  }
}
const server = new FluentServer(options);
const output = fs.openSync("received", "a");
const records = fs.openSync("records", "a");
let pieces = [];
server.on("entry", (tag, time, record) => {
  pieces.push(record.log + "\\n");
  if (options.records) fs.writeSync(records, JSON.stringify([tag, time, record]) + "\\n");
});
// The library acknowledges a chunk and then hands it over: hold the acknowledgement until the lines are in the file.
server.server.on(options.tlsOptions ? "secureConnection" : "connection", socket => {
  const write = socket.write.bind(socket);
  socket.write = data => {
    if (data[0] !== 0x81) return write(data);  // an acknowledgement is a map of one
    setImmediate(() => {
      if (pieces.length) fs.writeSync(output, pieces.join(""));
      pieces = [];
      if (!socket.destroyed) write(data);
    });
    return true;
  };
  socket.on("error", () => {});
});
server.listen();
"""

EXAMPLES = {
    "collector": {
        "command": ["node", "server.js"],
        "needs": {MODULE: "npm install --prefix the environment's directory @fluent-org/logger"},
        "files": {
            "server.js": SERVER.replace("@MODULE@", MODULE),
            "options.json": '{"listenOptions": {"host": "127.0.0.1", "port": @PORT@}}',
        },
        "options": {"fluentd-address": "tcp://127.0.0.1:@PORT@", "fluentd-retry-wait": "100ms"},
        "output": "received",
        "lines": r"^(.*)\n",
        "nowhere": {"fluentd-address": "tcp://collector.invalid:24224"},
    }
}
"""The server of @fluent-org/logger on a TCP port; it writes the text of each record."""
