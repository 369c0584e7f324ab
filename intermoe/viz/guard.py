"""Who may speak to a page's server: browsers that show its own pages on this machine, in messages of bounded size.

viser asks no request where it comes from. A page of any site that a user has open could speak to the server, and one
whose name an attacker points at this machine could read the answers; so both headers that tell are looked at.

It also takes messages as fast as they come, on the thread that sends everybody's frames; so each browser has a rate.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

LOCAL = ("127.0.0.1", "localhost", "[::1]")
MAX_MESSAGE = 2**20
"""Bytes of one message to the server; those of the controls have some hundred."""

MESSAGE_RATE = 200
"""Messages of one browser that are taken in a second; it sends some fifty while a mouse drags or turns."""
BYTE_RATE = 2**19
"""Their bytes in a second."""
BURST_SECONDS = 1.0
"""Who was silent may send at once what he could have sent in so long."""

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


class Allowance:
    """How long a sender waits after each message so that he keeps ``MESSAGE_RATE`` and ``BYTE_RATE``."""

    def __init__(self, now: float) -> None:
        self._paid_until = now - BURST_SECONDS

    def wait(self, size: int, now: float) -> float:
        """Seconds to wait after a message of ``size`` bytes that came at ``now``, in seconds of any clock."""
        cost = max(1 / MESSAGE_RATE, size / BYTE_RATE)
        self._paid_until = max(self._paid_until, now - BURST_SECONDS) + cost
        return max(0.0, self._paid_until - now)


def _at_a_rate() -> Any:
    """A kind of server's connection that hands on what is received no faster than its ``Allowance``.

    Meanwhile the few messages that fit its queue wait, and the sender's own computer keeps the others.
    """

    from websockets.asyncio.server import ServerConnection

    class Limited(ServerConnection):
        _allowance: Allowance | None = None

        async def recv(self, decode: bool | None = None) -> Any:
            message = await super().recv(decode)
            now = asyncio.get_running_loop().time()
            self._allowance = self._allowance or Allowance(now)
            await asyncio.sleep(self._allowance.wait(len(message), now))  # others have their turn even if it is 0
            return message

    return Limited


@contextmanager
def guarded(head: str = "") -> Iterator[None]:
    """A viser server that is made in this block refuses what ``refusal`` names, and longer messages.

    Messages of one client are taken at a bounded rate.

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

        limits = {"max_size": MAX_MESSAGE, "create_connection": _at_a_rate()}
        return serve(*args, process_request=answer, **{**options, **limits})

    with _ONE_AT_A_TIME:
        websockets.serve = serve_guarded  # type: ignore[misc, assignment]
        try:
            yield
        finally:
            websockets.serve = serve  # type: ignore[misc]
    if not opened:
        raise RuntimeError("viser: expected a server of websockets, which can be guarded, got another")
