"""The page over HTTP: static files, `GET /model`, and `POST /predict`, which streams one JSON object per line."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import uvicorn
from rdkit import Chem
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modeling_pcbridge.errors import CalculationError

from ..cores import num_cores
from .visit import MAX_CONFORMERS, Predictor

MAX_REQUEST_BYTES = 4096
MAX_REQUEST_SECONDS = 10
MAX_WAITING = 20  # predictions beside those that run
MAX_CONNECTIONS = 256  # a browser keeps up to six

_STATIC = Path(__file__).parent / "static"


def create_app(model_path: str, frame_ancestors: str = "'none'") -> Starlette:
    """The application for one checkpoint.

    Args:
        model_path: a folder or Hub name for `from_pretrained`.
        frame_ancestors: sites that may show the page in a frame, in the words of a Content-Security-Policy.
    """
    predictor = Predictor(model_path)
    queue = PredictionQueue(predictor, at_once=num_cores())

    async def about(request: Request) -> Response:
        return JSONResponse(predictor.about)

    async def predict(request: Request) -> Response:
        smiles, num_conformers = await _read_request(request)
        try:
            mol = await asyncio.to_thread(predictor.read, smiles)
        except ValueError as error:
            raise HTTPException(422, _sentence(error)) from error
        if queue.is_full:
            raise HTTPException(503, "Other visitors' predictions are waiting; try again in a moment.")
        return StreamingResponse(queue.stream(mol, num_conformers), media_type="application/x-ndjson")

    return Starlette(
        routes=[
            Route("/model", about),
            Route("/predict", predict, methods=["POST"]),
            Mount("/", GZipMiddleware(StaticFiles(directory=_STATIC, html=True))),
        ],
        middleware=[Middleware(SecurityHeaders, frame_ancestors=frame_ancestors)],
        exception_handlers={HTTPException: _error_response},
    )


def run(app: Starlette, host: str, port: int) -> None:
    """Serve an application of `create_app` on an address and a TCP port until interrupted."""
    torch.set_num_threads(1)  # a prediction has one core; several of torch's threads would wait for each other
    uvicorn.run(app, host=host, port=port, limit_concurrency=MAX_CONNECTIONS, server_header=False)


class PredictionQueue:
    """Runs some predictions at a time, first come, first served, each in a thread; `MAX_WAITING` more may wait.

    Args:
        predictor: what runs them.
        at_once: how many run.
    """

    def __init__(self, predictor: Predictor, at_once: int):
        self._predictor = predictor
        self._at_once = at_once
        self._executor = ThreadPoolExecutor(at_once)
        self._unfinished: list[asyncio.Queue[dict | None]] = []  # the events of each, in the order they came in

    @property
    def is_full(self) -> bool:
        return len(self._unfinished) >= self._at_once + MAX_WAITING

    async def stream(self, mol: Chem.Mol, num_conformers: int) -> AsyncIterator[str]:
        """The prediction's events as lines of JSON; it ends early when the reader has gone.

        Before its own come "waiting" events: how many predictions must end before this one begins.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[dict | None] = asyncio.Queue()
        reader_gone = threading.Event()

        def emit(event: dict) -> None:
            if reader_gone.is_set():
                raise ConnectionAbortedError("the reader has gone")
            loop.call_soon_threadsafe(events.put_nowait, event)

        def run() -> None:
            try:
                self._predictor.predict(mol, num_conformers, emit)
            except (TimeoutError, CalculationError) as error:
                emit({"type": "error", "message": _sentence(error)})

        def finish() -> None:
            self._unfinished.remove(events)
            events.put_nowait(None)
            self._tell_the_waiting()

        self._unfinished.append(events)
        self._tell_the_waiting()
        future = self._executor.submit(run)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(finish))
        try:
            while (event := await events.get()) is not None:
                yield json.dumps(event, allow_nan=False) + "\n"
            future.result()
        finally:
            reader_gone.set()
            future.cancel()

    def _tell_the_waiting(self) -> None:
        for ahead, events in enumerate(self._unfinished[self._at_once :], start=1):
            events.put_nowait({"type": "waiting", "ahead": ahead})


class SecurityHeaders:
    """ASGI middleware: only the page's own files run, nothing is sent elsewhere, nothing is guessed."""

    def __init__(self, app: ASGIApp, frame_ancestors: str):
        self.app = app
        policy = (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
            f"base-uri 'none'; form-action 'self'; frame-ancestors {frame_ancestors}"
        )
        self.headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
            "Cross-Origin-Opener-Policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        await self.app(scope, receive, send_with_headers)


async def _read_request(request: Request) -> tuple[str, int]:
    """The SMILES and the number of conformers of a request of at most `MAX_REQUEST_BYTES`."""
    # A type that forms of other sites cannot send.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Send application/json.")
    body = b""
    try:
        async with asyncio.timeout(MAX_REQUEST_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_REQUEST_BYTES:
                    raise HTTPException(413, f"The request is larger than {MAX_REQUEST_BYTES} bytes.")
    except TimeoutError as error:
        raise HTTPException(408, "The request did not arrive in time.") from error
    try:
        match json.loads(body):
            case {"smiles": str(smiles), "num_conformers": int(number)} if 1 <= number <= MAX_CONFORMERS:
                return smiles.strip(), number
    except (ValueError, RecursionError):
        pass
    raise HTTPException(400, f"Send a SMILES string and a number of conformers from 1 to {MAX_CONFORMERS}.")


def _error_response(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # it is registered for no other
    return JSONResponse({"error": error.detail}, error.status_code)


def _sentence(error: Exception) -> str:
    """An error message as the page shows it."""
    message = str(error)
    return message[:1].upper() + message[1:].rstrip(".") + "."
