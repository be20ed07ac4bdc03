"""The smallest Flask application: gunicorn runs `app` of this file, which nobody had to name."""

import os

from flask import Flask

app = Flask(__name__)


@app.get("/")
def hello():
    return f"Hello from Flask, version {os.environ.get('BEANPOLE_VERSION')}\n"
