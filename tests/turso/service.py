"""logmirror as a user meets it: a program that prints where it listens, and what plain HTTP gets from it."""

import http.client
import json
import os
import signal
import subprocess
from pathlib import Path

PROGRAM = os.environ.get("LOGMIRROR_BIN", "target/debug/logmirror")
READY = "listening on http://"
CALL_TIMEOUT_S = 50


class Answer:
    """A status and a body."""

    def __init__(self, status, body):
        self.status = status
        self.body = body

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:300]!r}"


class Service:
    """A running `logmirror serve`, which can be killed and started again on the same data."""

    def __init__(self, data: Path, journal: Path, token=None):
        """What it logs is appended to `journal`; with a token it asks for that."""
        self.data = data
        self.token = token
        self._journal = journal
        self._process = None
        self.address = None
        self.start()

    def start(self):
        """Start it on a free port; returns when it listens."""
        command = [PROGRAM, "serve", "--data", str(self.data), "--listen", "127.0.0.1:0"]
        if self.token is not None:
            command += ["--token", self.token]
        with self._journal.open("a") as journal:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=journal, text=True)
        line = self._process.stdout.readline()
        if not line.startswith(READY):
            raise RuntimeError(f"logmirror said {line!r} and ended with {self._process.wait()}")
        host, port = line.removeprefix(READY).strip().rsplit(":", 1)
        self.address = (host, int(port))

    def kill(self):
        """kill -9."""
        self._process.kill()
        self._ended()

    def stop(self):
        """SIGTERM; raises if it does not end well."""
        self._process.send_signal(signal.SIGTERM)
        if (code := self._ended()) != 0:
            raise RuntimeError(f"logmirror ended with {code}")

    def _ended(self):
        code = self._process.wait()
        self._process.stdout.close()
        return code

    @property
    def runs(self):
        return self._process.poll() is None

    def memory(self, field="VmRSS"):
        """Its resident memory in bytes; with `VmHWM` the most it ever was."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"no {field}")

    def url(self, log):
        return "http://{}:{}/logs/{}".format(*self.address, log)

    def call(self, method, path, body=None):
        """One request on a connection of its own. A dict is sent as JSON."""
        if isinstance(body, dict):
            body = json.dumps(body)
        headers = {} if self.token is None else {"authorization": f"Bearer {self.token}"}
        connection = http.client.HTTPConnection(*self.address, timeout=CALL_TIMEOUT_S)
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            return Answer(response.status, response.read())
        finally:
            connection.close()

    def create(self, log):
        answer = self.call("PUT", f"/logs/{log}", {"format": "wal"})
        if answer.status != 201:
            raise RuntimeError(f"PUT /logs/{log}: {answer}")

    def pipeline(self, log, *requests):
        """The results of a `/v2/pipeline` call, one a request."""
        answer = self.call("POST", f"/logs/{log}/v2/pipeline", {"baton": None, "requests": list(requests)})
        if answer.status != 200:
            raise RuntimeError(f"POST /v2/pipeline: {answer}")
        return answer.json()["results"]

    def execute(self, log, sql, *args):
        """Rows of one statement, as Python values; raises on a failed one."""
        values = [to_value(arg) for arg in args]
        (result,) = self.pipeline(log, {"type": "execute", "stmt": {"sql": sql, "args": values}})
        if result["type"] != "ok":
            raise RuntimeError(f"{sql}: {result['error']}")
        return [tuple(map(from_value, row)) for row in result["response"]["result"]["rows"]]

    def execute_many(self, log, *statements):
        """Statements, each a text or (text, args...), in one transaction."""
        statements = [(one,) if isinstance(one, str) else one for one in statements]
        steps = [{"stmt": {"sql": sql, "args": [to_value(arg) for arg in args]}} for sql, *args in statements]
        steps = [{"stmt": {"sql": "BEGIN IMMEDIATE"}}, *steps, {"stmt": {"sql": "COMMIT"}}]
        (result,) = self.pipeline(log, {"type": "batch", "batch": {"steps": steps}})
        if result["type"] != "ok" or any(result["response"]["result"]["step_errors"]):
            raise RuntimeError(f"{result}")


def to_value(value):
    """A value as Hrana writes it."""
    if value is None:
        return {"type": "null"}
    if isinstance(value, int):
        return {"type": "integer", "value": str(value)}
    if isinstance(value, float):
        return {"type": "float", "value": value}
    return {"type": "text", "value": value}


def from_value(value):
    """A value of Hrana as Python has it; a blob stays base64."""
    kind = value["type"]
    if kind == "null":
        return None
    if kind == "integer":
        return int(value["value"])
    return value["base64"] if kind == "blob" else value["value"]
