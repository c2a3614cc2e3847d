"""What each program here does: run its checks, each on a log of its own, and print a line of JSON for each."""

import json
import os
import shutil
import tempfile
import urllib.request
from importlib.metadata import version
from pathlib import Path

SERVICE = os.environ["LOGMIRROR_URL"]

INTEGERS = [-(2**63), -1, 0, 1, 2**53 + 1, 2**63 - 1]
FLOATS = [0.1, -1.5, 1e300, 5e-324, 1.7976931348623157e308, 2.220446049250313e-16]
BLOBS = [b"", bytes(range(256))]

_logs = 0


def all_of_unicode():
    """Every character there is, in one text; NUL would end it for clients in C."""
    return "".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x110000)]))


def create_log():
    """Make a log; returns its URL."""
    global _logs
    _logs += 1
    url = f"{SERVICE}/logs/python-{os.getpid()}-{_logs}"
    urllib.request.urlopen(urllib.request.Request(url, b'{"format":"wal"}', method="PUT")).close()
    return url


def plain_rows(url, sql):
    """Rows by plain HTTP, without any client."""
    body = json.dumps({"requests": [{"type": "execute", "stmt": {"sql": sql}}]}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v2/pipeline", body, method="POST")) as answer:
        (result,) = json.load(answer)["results"]
    if result["type"] != "ok":
        raise RuntimeError(result["error"])
    return [[value.get("value") for value in row] for row in result["response"]["result"]["rows"]]


def error_of(body):
    """Fails unless `body` does; returns the error."""
    try:
        body()
    except Exception as error:
        return error
    raise AssertionError("this must not work")


class Checks:
    """The checks of one client."""

    def __init__(self, client, package):
        self._client = client
        self._version = version(package)

    def check(self, name):
        """Decorates a check, which is run at once with the URL of a new log and a directory."""

        def run(body):
            home = Path(tempfile.mkdtemp(prefix="checks-"))
            error = None
            try:
                body(create_log(), home)
            except BaseException as caught:  # A panic of an extension module is one.
                error = f"{type(caught).__name__}: {caught}"[:600]
            shutil.rmtree(home, ignore_errors=True)
            print(json.dumps({"client": self._client, "version": self._version, "check": name, "error": error}), flush=True)

        return run
