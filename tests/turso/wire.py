"""The way of a client to the service: a relay that counts requests, loses answers and tells when to kill it."""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TIMEOUT_S = 50


class Request:
    """A request that passed, `path` without the log's part."""

    def __init__(self, method, path, body):
        self.method = method
        self.path = path
        self.body = body
        self.answer_bytes = 0

    @property
    def is_push(self):
        """Whether it carries changes, and is not only the question what was pushed already."""
        return self.path == "/v2/pipeline" and b"COMMIT" in self.body


class Lost(Exception):
    """Raised by a trap: the client's connection is closed without an answer."""


class Wire:
    """Listens on an address of its own and passes whole requests and whole answers.

    Traps, each called with the request, may raise `Lost`: `before` when a request has come whole and nothing of it was
    passed on, `sent` when all of it was, `after` when its answer is here and the client has none of it. Requests go to
    where the service listens now.
    """

    def __init__(self, service):
        self.service = service
        self.requests = []
        self.disarm()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def disarm(self):
        """No traps."""
        self.before = self.sent = self.after = lambda request: None

    def url(self, log):
        return "http://{}:{}/logs/{}".format(*self._server.server_address, log)

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def counted(self, path):
        """The requests to a path so far."""
        return [request for request in self.requests if request.path == path]

    def _handler(self):
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = TIMEOUT_S

            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                # /logs/NAME/rest
                path = "/" + self.path.split("/", 3)[3]
                request = Request(self.command, path, body)
                wire.requests.append(request)
                try:
                    wire.before(request)
                    status, answer = self.forward(request)
                    request.answer_bytes = len(answer)
                    wire.after(request)
                except (Lost, OSError, http.client.HTTPException):
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_PUT = do_OPTIONS = do_GET

            def forward(self, request):
                connection = http.client.HTTPConnection(*wire.service.address, timeout=TIMEOUT_S)
                try:
                    headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "host")}
                    connection.request(self.command, self.path, body=request.body or None, headers=headers)
                    wire.sent(request)
                    response = connection.getresponse()
                    return response.status, response.read()
                finally:
                    connection.close()

            def log_message(self, *_):
                pass

        return Handler
