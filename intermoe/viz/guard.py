"""Who may speak to a page's server: browsers that show its own pages on this machine, in messages of bounded size.

viser asks no request where it comes from. A page of any site that a user has open could speak to the server, and one
whose name an attacker points at this machine could read the answers; so both headers that tell are looked at.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

LOCAL = ("127.0.0.1", "localhost", "[::1]")
MAX_MESSAGE = 2**20
"""Bytes of one message to the server; those of the controls have some hundred."""

_ONE_AT_A_TIME = threading.Lock()


def refusal(headers: Mapping[str, str]) -> str | None:
    """Why a request is refused, or ``None``: another host's name, or a page of another origin."""
    host = headers.get("Host", "")
    if host.rpartition(":")[0] not in LOCAL and host not in LOCAL:
        return f"Host: expected this machine, got {host!r}\n"
    origin = headers.get("Origin")
    if origin is not None and origin != f"http://{host}":
        return f"Origin: expected http://{host}, got {origin!r}\n"
    return None


def with_head(response: Any, head: str) -> Any:
    """An answer that is a page, with ``head`` as the last of its head; any other as it is."""
    if response.headers.get("Content-Type", "").startswith("text/html"):
        response.body = response.body.replace(b"</head>", head.encode() + b"</head>", 1)
        del response.headers["Content-Length"]
        response.headers["Content-Length"] = str(len(response.body))
    return response


@contextmanager
def guarded(head: str = "") -> Iterator[None]:
    """A viser server that is made in this block refuses what ``refusal`` names, and longer messages.

    ``head`` is written into the head of its page.

    viser offers no place for it, so the function that opens its door is exchanged while it is made.

    Raises:
        RuntimeError: the server was opened in another way, unguarded; stop it.
    """
    import websockets.asyncio.server as websockets

    serve: Any = websockets.serve
    opened = False

    def serve_guarded(*args: Any, process_request: Any = None, **options: Any) -> Any:
        nonlocal opened
        opened = True

        def answer(connection: Any, request: Any) -> Any:
            reason = refusal(request.headers)
            if reason is not None:
                return connection.respond(HTTPStatus.FORBIDDEN, reason)
            if "Accept-Encoding" in request.headers:
                del request.headers["Accept-Encoding"]  # a packed page could not be written into
            response = None if process_request is None else process_request(connection, request)
            return response if response is None else with_head(response, head)

        return serve(*args, process_request=answer, **{**options, "max_size": MAX_MESSAGE})

    with _ONE_AT_A_TIME:
        websockets.serve = serve_guarded  # type: ignore[misc, assignment]
        try:
            yield
        finally:
            websockets.serve = serve  # type: ignore[misc]
    if not opened:
        raise RuntimeError("viser: expected a server of websockets, which can be guarded, got another")
