"""Shows when the worker beside it last did its work. `$PORT` comes from Beanpole."""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# Both processes of an instance see the same directory for temporary files.
LAST = Path(os.environ.get("TMPDIR", "/tmp")) / "last-work"


class Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        last = LAST.read_text().strip() if LAST.exists() else "not yet"
        body = f"the worker's last work: {last}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
