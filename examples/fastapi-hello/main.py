"""The smallest FastAPI application: uvicorn runs `app` of this file, since FastAPI speaks ASGI."""

import os

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

app = FastAPI()


@app.get("/", response_class=PlainTextResponse)
async def hello():
    return f"Hello from FastAPI, version {os.environ.get('BEANPOLE_VERSION')}\n"
