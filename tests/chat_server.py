"""A chat-completions server on this machine that does, request by request, what a test tells it."""

import contextlib
import http.server
import json
import threading
import time


def reply(text="fine", reason="stop", usage=(10, 5)):
    """The body of a good answer, as data."""
    data = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    data["choices"][0]["finish_reason"] = reason
    if usage:
        data["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
    return data


class ChatServer(http.server.ThreadingHTTPServer):
    """Does the acts in turn, and the last for ever.

    An act is a dict (an answer with status 200), a number (an error with that status), a pair of a
    number and headers, bytes (a body as it is), or the name of a method of `_Handler`.
    """

    def __init__(self, *acts):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.acts, self.requests, self.headers, self.over = list(acts), [], [], threading.Event()
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that has gone away is what many tests are about."""

    @property
    def count(self):
        """Requests so far."""
        return len(self.requests)


@contextlib.contextmanager
def serving(*acts):
    """A server in a thread, gone without a trace afterwards."""
    server = ChatServer(*acts)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ChatServer

    def log_message(self, format, *args):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.requests.append({"path": self.path, **json.loads(body)})
            self.server.headers.append(dict(self.headers))
            acts = self.server.acts
            act = acts.pop(0) if len(acts) > 1 else acts[0]
        if isinstance(act, str):
            getattr(self, act)()
        elif isinstance(act, dict):
            self.send(200, json.dumps(act).encode())
        elif isinstance(act, bytes):
            self.send(200, act)
        else:
            status, headers = act if isinstance(act, tuple) else (act, {})
            said = f"no: {self.headers['Authorization']}"
            self.send(status, json.dumps({"error": {"message": said}}).encode(), headers)

    def send(self, status, body, headers=None, length=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def silence(self):
        self.server.over.wait()

    def cut(self):
        self.send(200, b'{"choices": [', length=1000)

    def hang_up(self):
        self.close_connection = True

    def dribble_body(self):
        self.send(200, b"", length=1_000_000)
        self._dribble()

    def dribble_headers(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        self._dribble()

    def _dribble(self):
        while not self.server.over.is_set():
            self.wfile.write(b" ")
            time.sleep(0.02)

    def endless(self):
        self.send_response(200)
        self.end_headers()
        while not self.server.over.is_set():
            self.wfile.write(b" " * 2**20)
