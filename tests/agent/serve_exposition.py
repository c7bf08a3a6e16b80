"""Stands in for a model server: serves the file $EXPOSITION on the listening sockets $SOCKETS, as chunks where $CHUNKED is set."""

import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = Path(os.environ["EXPOSITION"]).read_bytes() if self.path == "/metrics" else b""
        self.send_response(200 if body else 404)
        self.send_header(
            *(("Transfer-Encoding", "chunked") if "CHUNKED" in os.environ else ("Content-Length", str(len(body))))
        )
        self.end_headers()
        if "CHUNKED" in os.environ:
            body = (
                b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:1000], body[1000:]) if part)
                + b"0\r\n\r\n"
            )
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if "FORK" in os.environ and os.fork() == 0:  # as a server does that has several processes
    while os.getppid() != 1:
        time.sleep(0.05)
    os._exit(0)
for descriptor in os.environ["SOCKETS"].split(","):
    server = ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket(fileno=int(descriptor))
    threading.Thread(target=server.serve_forever, daemon=True).start()
print("ready", flush=True)
input()
