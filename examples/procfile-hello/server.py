"""An application without dependencies: the Procfile says how to run it, $PORT where to listen."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = f"Hello, version {os.environ.get('BEANPOLE_VERSION', 'unknown')}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


port = int(os.environ.get("PORT", "8000"))
print(f"listening on {port}")
ThreadingHTTPServer(("", port), Hello).serve_forever()
