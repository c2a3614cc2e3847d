"""The real clients as the tests hold them: each in a process of its own, which a deadline can end."""

import json
import subprocess
import sys
import threading
from pathlib import Path

HERE = Path(__file__).parent
COMMANDS = {
    "python": [sys.executable, str(HERE / "client.py")],
    "node": ["node", str(HERE / "client.mjs")],
}
KINDS = tuple(COMMANDS)


class ClientError(Exception):
    """What the client itself said was wrong."""


class Client:
    """A synced database that is open, of the kind "python" or "node"."""

    def __init__(self, kind, path, url, **options):
        self.kind = kind
        self.path = path
        self._process = subprocess.Popen(COMMANDS[kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self._call("open", path=str(path), url=url, options=options)
        except BaseException:
            self.kill()
            raise

    def execute(self, sql, *args):
        self._call("execute", sql=sql, args=args)

    def execute_many(self, sql, rows):
        """Run a statement once for each row, all in one transaction."""
        self._call("execute_many", sql=sql, rows=list(rows))

    def rows(self, sql, *args):
        return [tuple(row) for row in self._call("rows", sql=sql, args=args)]

    def push(self):
        self._call("push")

    def pull(self):
        """Returns whether anything came."""
        return self._call("pull")

    def sync(self):
        """Push, then pull."""
        self.push()
        return self.pull()

    def checkpoint(self):
        self._call("checkpoint")

    def revision(self):
        """The revision it pulled last."""
        return self._call("revision")

    def close(self):
        self._call("close")
        self._process.stdin.close()
        self._process.wait()
        self.kill()

    def kill(self):
        """End it at once, if it is not yet."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # a request it did not live to read

    def _call(self, operation, **fields):
        try:
            self._process.stdin.write(json.dumps({"op": operation, **fields}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ClientError(f"the {self.kind} client died in {operation!r}: {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ClientError(answer["error"])
        return answer["ok"]


def at_once(actions):
    """Run the actions in threads side by side; raises the first error once all have ended."""
    errors = []

    def guarded(action):
        try:
            action()
        except BaseException as error:
            errors.append(error)

    # Daemons: a deadline that ends the test may leave some behind, which end when their clients are killed.
    threads = [threading.Thread(target=guarded, args=(action,), daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
