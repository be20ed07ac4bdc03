"""The smallest Python application: gunicorn runs `application` of this file."""

import os
import platform


def application(environ, start_response):
    version = os.environ.get("BEANPOLE_VERSION", "unknown")
    body = f"Hello from Python {platform.python_version()}, version {version}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
