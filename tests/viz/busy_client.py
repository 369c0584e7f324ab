"""A browser gone wild, as a process of its own: ``busy_client.py flood|idle PORT PROTOCOL MESSAGE_HEX``.

``flood`` sends the message again and again, as fast as the server takes it; ``idle`` never reads. It prints a line when
it is connected, and goes on until it is killed or refused.
"""

from __future__ import annotations

import base64
import os
import socket
import sys
import time
from contextlib import suppress


def connect(port: int, protocol: str) -> socket.socket:
    """By hand, since a library would read what arrives."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # what nobody reads stays at the server soon
    plain.connect(("127.0.0.1", port))
    key = base64.b64encode(os.urandom(16)).decode()
    lines = (
        "GET / HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Protocol: {protocol}", "", "",
    )  # fmt: skip
    plain.sendall("\r\n".join(lines).encode())
    assert plain.recv(12) == b"HTTP/1.1 101"
    return plain


def frame(message: bytes) -> bytes:
    """A binary websocket frame, masked with zeros, of a message of less than 64 KiB."""
    size = bytes([0x80 | len(message)]) if len(message) < 126 else b"\xfe" + len(message).to_bytes(2, "big")
    return b"\x82" + size + bytes(4) + message


def main() -> None:
    kind, port, protocol, message = sys.argv[1:]
    connection = connect(int(port), protocol)
    print(kind, flush=True)
    if kind == "idle":
        time.sleep(120)
        return
    one = frame(bytes.fromhex(message))
    many, sent = one * 1000, 0
    end = time.monotonic() + 120
    connection.setblocking(False)
    while time.monotonic() < end:
        try:
            sent = (sent + connection.send(many[sent:])) % len(one)  # many again from there on
        except BlockingIOError:
            time.sleep(0.001)
        with suppress(BlockingIOError):
            if not connection.recv(2**20):
                return


main()
