"""The server of the vote: of this machine unless asked otherwise, and no file but the page and the ballot's pictures.

::

    GET  /                    the page
    GET  /ballot?rater=NAME   what is asked, and what this rater has answered
    GET  /picture/TOKEN       a picture; nothing of an address is ever a path
    POST /vote                an answer
    GET  /results             who wins, by name

A page of another origin can do nothing here: requests must name this host (so that no foreign name can be pointed at
it), and an answer must come as JSON from this very origin.
"""

import ipaddress
import json
import os
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sd3_jax.errors import UserError
from sd3_jax.voting import page, votes
from sd3_jax.voting.ballot import Ballot, picture_bytes

LARGEST = 8192  # bytes of an answer
PATIENCE = 30  # seconds that a connection may be silent
RESULTS_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def make_server(
    ballot: Ballot, path: Path, results: Callable[[], str], host: str = "127.0.0.1", port: int = 0
) -> ThreadingHTTPServer:
    """A server that appends answers to ``path``; ``results`` makes the page of them. Port 0 is any free one.

    Raises UserError if the address cannot be had or the file holds something else than votes, OSError if it cannot be
    written.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644))  # what cannot be written is said at once
    seen = {row.get("id") for row in votes.read(path)[0]}
    lock, drawing = threading.Lock(), threading.Lock()
    pictures, shown = ballot.pictures, ballot.shown()

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "sd3-jax", ""
        timeout = PATIENCE

        def do_GET(self) -> None:
            where = urlsplit(self.path)
            if not _is_this_host(self.headers.get("Host"), self.server):
                self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to its own address alone")
            elif where.path == "/":
                self._send(page.source(), "text/html; charset=utf-8", page.policy())
            elif where.path == "/ballot":
                self._ballot(parse_qs(where.query).get("rater", [""])[-1])
            elif where.path.startswith(f"/{page.PICTURES}/"):
                self._picture(where.path.removeprefix(f"/{page.PICTURES}/"))
            elif where.path == "/results":
                self._results()
            else:
                self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

        def do_POST(self) -> None:
            host, size = self.headers.get("Host"), self.headers.get("Content-Length", "")
            if not _is_this_host(host, self.server):
                self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to its own address alone")
            elif self.headers.get("Origin") != f"http://{host}":
                self._refuse(HTTPStatus.FORBIDDEN, "a vote comes from this server's own page")
            elif self.path != "/vote":
                self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
            elif self.headers.get_content_type() != "application/json":
                self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a vote is JSON")
            elif not (size.isascii() and size.isdigit()):
                self._refuse(HTTPStatus.LENGTH_REQUIRED, "a vote says its length")
            elif int(size[:9]) > LARGEST or len(size) > 9:
                self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a vote has at most {LARGEST} bytes")
            else:
                self._vote(self.rfile.read(int(size)))

        def _vote(self, body: bytes) -> None:
            try:
                row = votes.row_of(json.loads(body), ballot)
            except (ValueError, RecursionError):
                self._refuse(HTTPStatus.BAD_REQUEST, "a vote is JSON")
                return
            except UserError as error:
                self._refuse(HTTPStatus.BAD_REQUEST, str(error))
                return
            with lock:
                if row["id"] not in seen:
                    try:
                        votes.append(path, row)
                    except OSError as error:
                        self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, f"the vote was not saved: {error.strerror}")
                        return
                    seen.add(row["id"])
            self._send("{}", "application/json")

        def _ballot(self, rater: str) -> None:
            try:
                name = votes.rater_name(rater)
                rows = votes.read(path)[0]
            except UserError as error:
                self._refuse(HTTPStatus.BAD_REQUEST, str(error))
                return
            found = {"ballot": shown, "rater": name, "answers": votes.of_rater(rows, name, ballot)}
            self._send(json.dumps(found), "application/json")

        def _picture(self, token: str) -> None:
            if token not in pictures:
                self._refuse(HTTPStatus.NOT_FOUND, "there is no such picture")
                return
            try:
                self._send(picture_bytes(pictures[token]), pictures[token].kind, cached=True)
            except UserError:  # says a path
                self._refuse(HTTPStatus.GONE, "this picture is gone or was changed")

        def _results(self) -> None:
            try:
                with drawing:  # matplotlib's settings are everybody's
                    made = results()
            except UserError as error:
                self._refuse(HTTPStatus.NOT_FOUND, f"there are no results: {error}")
                return
            self._send(made, "text/html; charset=utf-8", RESULTS_POLICY)

        def _refuse(self, status: HTTPStatus, why: str) -> None:
            self._send(json.dumps({"error": why}), "application/json", status=status)

        def _send(
            self,
            content: str | bytes,
            kind: str,
            policy: str = "default-src 'none'; frame-ancestors 'none'",
            status: HTTPStatus = HTTPStatus.OK,
            cached: bool = False,
        ) -> None:
            body = content.encode() if isinstance(content, str) else content
            self.send_response(status)
            headers = _ALWAYS | {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                "Content-Security-Policy": policy,
            }
            headers |= {"Cache-Control": "private, max-age=3600"} if cached else {}
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the votes are the record."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A rater who closes the page in the middle of a picture is no error."""

    try:
        return Server((host, port), Handler)
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot be served from: {error.strerror}") from None
    except OverflowError:
        raise UserError(f"--port: {port} is not a port; valid: 0 to 65535") from None


def address(server: ThreadingHTTPServer) -> str:
    """Where a browser finds the page."""
    host, port = server.server_address[:2]
    name = str(host)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"


def _is_this_host(host: str | None, server: Any) -> bool:
    """Whether a request means this server: a number, its own name or localhost, at any port, which a tunnel may change.

    A foreign name that is pointed at this address (DNS rebinding) is none of them.
    """
    try:
        parts = urlsplit(f"//{host or ''}")
        name, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    if parts.netloc != (host or "") or "@" in parts.netloc:
        return False
    bound = str(server.server_address[0])
    if name == "localhost" or name == bound:
        return True
    if _is_loopback(bound):
        return _is_loopback(name)
    return _is_number(name) or name in (socket.gethostname().lower(), socket.getfqdn().lower())


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_number(name) and ipaddress.ip_address(name).is_loopback
