"""Talks HTTP to blockserve's programs: through http.client, and through bare sockets."""

from __future__ import annotations

import http.client
import json
import pathlib
import socket
from typing import Iterator, Optional

import harness


class HttpServer:
    """A program with an HTTP front."""

    def __init__(self, server: harness.Server, port: int):
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def request(self, method: str, path: str, body=None, headers: Optional[dict] = None):
        """(status, headers, body): JSON bodies are read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            text = response.read().decode()
            if response.headers.get("Content-Type", "").startswith("application/json") and text:
                return response.status, response.headers, json.loads(text)
            return response.status, response.headers, text
        finally:
            connection.close()

    def complete(self, path: str = "/v1/completions", **fields) -> dict:
        status, _, answer = self.request("POST", path, fields)
        assert status == 200, answer
        return answer

    def refusal(self, path: str = "/v1/completions", **fields) -> tuple[int, dict]:
        status, _, answer = self.request("POST", path, fields)
        return status, answer["error"]

    def events(self, path: str = "/v1/completions", **fields) -> list[tuple[str | None, dict]]:
        """(id, data) of each event of a stream that ends as it should; ids where they are asked for."""
        status, headers, text = self.request("POST", path, {**fields, "stream": True})
        assert status == 200, text
        assert headers["Content-Type"].startswith("text/event-stream")
        return list(parse_events(text))

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        return connection


def parse_events(text: str) -> Iterator[tuple[str | None, dict]]:
    assert text.endswith("data: [DONE]\n\n"), text[-300:]
    for event in text.split("\n\n")[:-2]:
        lines = dict(line.split(": ", 1) for line in event.split("\n"))
        yield lines.get("id"), json.loads(lines["data"])


def serve(launcher: harness.Launcher, model: pathlib.Path, *flags: str) -> HttpServer:
    """`blockserve serve` with an HTTP front."""
    port = harness.free_port()
    server = launcher.serve(model, f"--http-address=127.0.0.1:{port}", "--threads=1", *flags)
    return HttpServer(server.wait_until_ready(), port)


def gateway(launcher: harness.Launcher, model: pathlib.Path, blocks, tokens,
            *flags: str) -> HttpServer:
    """A gateway with an HTTP front, connected to all of its services."""
    port = harness.free_port()
    server = launcher.gateway(model, blocks, tokens, f"--http-listen=127.0.0.1:{port}", *flags)
    launcher.connected_client(server, len(blocks), len(tokens))
    return HttpServer(server, port)


def post(path: str, body: dict, *headers: str) -> bytes:
    """The bytes of a request."""
    text = json.dumps(body)
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(text.encode())}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n" + text).encode()


def read_response(connection: socket.socket) -> tuple[int, dict, bytes]:
    """One response with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError(f"closed after {data!r}")
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        piece = connection.recv(65536)
        if not piece:
            break
        body += piece
    return int(status.split()[1]), headers, body


def read_to_end(connection: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            return data
        if not piece:
            return data
        data += piece
