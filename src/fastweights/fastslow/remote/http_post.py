"""One HTTP request with a limit on all of the time it takes, by the standard library alone."""

import http.client
import io
import socket
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any, cast

#: bytes of an answer that are read
LONGEST = 16 * 2**20


class Lost(Exception):
    """No whole answer came to a request that was sent: it may have been served, and cost something.

    `__cause__` says why: an `OSError`, `TimeoutError` if it took too long, or an
    `http.client.HTTPException` if the answer is not HTTP, ends too early or is too long.
    """


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Attributes:
        status: of HTTP.
        headers: by name, in any case.
        body: after the headers.
    """

    status: int
    headers: Message
    body: bytes


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    timeout: float,
    limit: float,
    clock: Callable[[], float] = time.monotonic,
) -> Reply:
    """Send a POST request and read the whole answer. Redirects and proxies are not followed.

    Args:
        url: http or https.
        body: what is sent.
        headers: sent with it.
        timeout: seconds that connecting may take, and that the server may be silent.
        limit: seconds for everything.
        clock: gives seconds.

    Raises:
        OSError: the request could not be sent; `TimeoutError` if it took too long.
        Lost: it was, and the answer did not come, or not whole.
    """
    deadline = clock() + limit
    parts = urllib.parse.urlsplit(url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=min(timeout, limit))
    try:
        connection.request("POST", parts.path, body, {"Connection": "close", **headers})
        source = cast(socket.socket, _Source(connection.sock, timeout, deadline, clock))
        reply = http.client.HTTPResponse(source, method="POST")
        try:
            reply.begin()
            content = reply.read(LONGEST + 1)
            if len(content) > LONGEST:
                raise http.client.HTTPException(f"the answer is longer than {LONGEST} bytes")
            if reply.length:  # asked for a size, `read` takes an early end for the end
                raise http.client.HTTPException(f"the last {reply.length} bytes are missing")
            return Reply(reply.status, reply.headers, content)
        except (OSError, http.client.HTTPException) as error:
            raise Lost from error
        finally:
            reply.close()
    finally:
        connection.close()


@dataclass
class _Source(io.RawIOBase):
    """Reads from a socket until a moment.

    A socket's own time-out starts again with every byte; a server that sends one now and then
    would hold us for ever.
    """

    socket: socket.socket
    timeout: float
    deadline: float
    clock: Callable[[], float]

    def makefile(self, mode: str) -> io.BufferedReader:
        """What `http.client` asks of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is, waiting for it no longer than allowed."""
        left = self.deadline - self.clock()
        if left <= 0:
            raise TimeoutError("the answer was not complete in time")
        self.socket.settimeout(min(self.timeout, left))
        return self.socket.recv_into(buffer)
