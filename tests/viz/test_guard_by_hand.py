"""Who is let in, how fast, and what a page is given, by hand and without a server."""

from __future__ import annotations

import asyncio
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("viser", reason="what is guarded is viser's")
from websockets.asyncio import server as websockets
from websockets.datastructures import Headers

from intermoe.viz import guard
from intermoe.viz.guard import Allowance, guarded, refusal, with_head


@pytest.mark.parametrize(
    ("host", "origin", "told"),
    [
        ("127.0.0.1", None, None),
        ("localhost", "http://localhost", None),
        ("[::1]", None, None),
        ("127.0.0.1:1", "http://127.0.0.1:1", None),
        ("evil.example", None, "Host: expected this machine, got 'evil.example'\n"),
        ("localhost.evil.example:80", None, "Host: expected this machine, got 'localhost.evil.example:80'\n"),
        ("evil.example:localhost", None, "Host: expected this machine, got 'evil.example:localhost'\n"),
        ("127.0.0.2:80", None, "Host: expected this machine, got '127.0.0.2:80'\n"),
        ("0.0.0.0:80", None, "Host: expected this machine, got '0.0.0.0:80'\n"),
        ("localhost:80", "", "Origin: expected http://localhost:80, got ''\n"),
        (
            "localhost:80",
            "http://localhost:80.evil.example",
            "Origin: expected http://localhost:80, got 'http://localhost:80.evil.example'\n",
        ),
        ("localhost:80", "http://127.0.0.1:80", "Origin: expected http://localhost:80, got 'http://127.0.0.1:80'\n"),
        ("localhost:80", "http://localhost", "Origin: expected http://localhost:80, got 'http://localhost'\n"),
    ],
    ids=count(),
)
def test_who_is_let_in(host: str, origin: str | None, told: str | None) -> None:
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    assert refusal(headers) == told


def test_who_says_no_host_is_refused() -> None:
    assert refusal({}) == "Host: expected this machine, got ''\n"


def answer(kind: str, body: bytes) -> Any:
    return SimpleNamespace(headers=Headers({"Content-Type": kind, "Content-Length": str(len(body))}), body=body)


def test_a_page_is_given_a_head_and_nothing_else_is() -> None:
    page = with_head(answer("text/html; charset=utf-8", b"<head>a</head></head>b"), "é")
    assert page.body == "<head>aé</head></head>b".encode()
    assert page.headers.get_all("Content-Length") == [str(len("<head>aé</head></head>b".encode()))]
    script = with_head(answer("text/javascript", b"'</head>'"), "é")
    assert (script.body, script.headers["Content-Length"]) == (b"'</head>'", "9")
    assert with_head(SimpleNamespace(headers=Headers(), body=b"</head>"), "é").body == b"</head>"


def test_two_hundred_messages_a_second_and_half_a_megabyte_are_taken() -> None:
    """The first second's at once; then small messages every 5 ms, larger ones as their bytes allow."""
    small, now = Allowance(10.0), 10.0
    assert [small.wait(1, now) for _ in range(200)] == pytest.approx([0.0] * 200, abs=1e-9)
    assert [small.wait(2621, now) for _ in range(3)] == pytest.approx([0.005, 0.010, 0.015])
    assert small.wait(2**18, now) == pytest.approx(0.515)
    assert small.wait(1, now + 0.5) == pytest.approx(0.02)  # what was waited for is over
    large = Allowance(0.0)
    assert [large.wait(2**18, 0.0) for _ in range(4)] == pytest.approx([0.0, 0.0, 0.5, 1.0])
    assert [large.wait(2**18, 1000.0) for _ in range(3)] == pytest.approx([0.0, 0.0, 0.5])
    assert guard.MAX_MESSAGE == 1024 * 1024


def test_a_connection_hands_on_what_comes_at_its_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = iter([b"x" * 2**19, b"y" * 2**18, "z", b"w" * 2**18])
    slept: list[float] = []
    asked: list[Any] = []

    async def receive(self: Any, decode: bool | None = None) -> Any:
        asked.append(decode)
        return next(messages)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(websockets.ServerConnection, "recv", receive)
    monkeypatch.setattr(guard, "asyncio", SimpleNamespace(sleep=sleep, get_running_loop=lambda: clock))
    clock = SimpleNamespace(time=lambda: 7.0)
    kind = guard._at_a_rate()
    first, other = kind.__new__(kind), kind.__new__(kind)

    async def read() -> list[Any]:
        return [await first.recv(True), await first.recv(), await first.recv(False), await other.recv()]

    assert [message[:1] for message in asyncio.run(read())] == [b"x", b"y", "z", b"w"]
    assert asked == [True, None, False, None]
    assert slept == pytest.approx([0.0, 0.5, 0.505, 0.0])


def request(**headers: str) -> Any:
    return SimpleNamespace(headers=Headers({name.replace("_", "-"): value for name, value in headers.items()}))


def test_a_server_that_is_made_in_the_block_is_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers get a 403; its own page is asked for unpacked and given the head; what viser asks for is handed on."""
    made: list[Any] = []
    monkeypatch.setattr(websockets, "serve", lambda *args, **options: made.append((args, options)) or "server")
    plain = websockets.serve
    connection = SimpleNamespace(respond=lambda status, reason: (status, reason))
    seen: list[Any] = []

    def page(connection: Any, request: Any) -> Any:
        seen.append((connection, dict(request.headers)))
        return answer("text/html", b"<head></head>")

    with guarded("<script>"):
        assert websockets.serve is not plain
        assert guard._ONE_AT_A_TIME.locked()  # or two that are made at once would be left with each other's door
        opened = websockets.serve("handler", "host", process_request=page, max_size=None, compression=None)
        websockets.serve("handler")
    assert websockets.serve is plain
    assert opened == "server"
    (args, options), (_, bare) = made
    assert args == ("handler", "host")
    assert options.keys() == {"process_request", "max_size", "compression", "create_connection"}
    assert (options["max_size"], options["compression"]) == (2**20, None)
    assert issubclass(options["create_connection"], websockets.ServerConnection)
    assert options["create_connection"] is not websockets.ServerConnection
    ask = options["process_request"]
    status, reason = ask(connection, request(Host="evil.example"))
    assert (int(status), reason) == (403, "Host: expected this machine, got 'evil.example'\n")
    assert seen == []
    given = ask(connection, request(Host="localhost:80", Accept_Encoding="gzip, br", Accept="*/*"))
    assert given.body == b"<head><script></head>"
    ((asking, headers),) = seen
    assert asking is connection
    assert {name.lower(): value for name, value in headers.items()} == {"host": "localhost:80", "accept": "*/*"}
    assert bare["process_request"](connection, request(Host="localhost:80")) is None


def test_the_door_is_as_it_was_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = websockets.serve
    with pytest.raises(OSError, match="no port"), guarded():
        raise OSError("no port")
    assert websockets.serve is plain
    told = "viser: expected a server of websockets, which can be guarded, got another"
    with pytest.raises(RuntimeError, match=told), guarded():
        pass
    assert websockets.serve is plain
    assert not guard._ONE_AT_A_TIME.locked()
