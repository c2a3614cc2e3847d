"""kill -9: what was acknowledged is there after the restart, and nothing is there twice."""

import time
import unittest

from clients import KINDS, ClientError
from scene import LOG, Scene
from wire import Lost

PUSHES = 50
WRITE_TIMEOUT_S = 20
ALL = "SELECT n FROM t ORDER BY n"


class Crash(Scene):
    def kill_at(self, moment, wire):
        """Have the service killed during the next push."""

        def kill(request):
            if not request.is_push:
                return
            if moment == "writing":
                self.until_written()
            wire.disarm()
            self.service.kill()
            raise Lost

        if moment == "gone":
            self.service.kill()
        elif moment == "unsent":
            wire.before = kill
        elif moment in ("sent", "writing"):
            # What it looked like before goes first: the push is on its way when `sent` is called.
            wire.before = lambda request: setattr(self, "files", self.log_files())
            wire.sent = kill
        elif moment == "answered":
            wire.after = kill

    def log_files(self):
        """What tells that a file of the log was written to."""
        files = (self.service.data / "logs" / LOG).rglob("*")
        return {path: (status.st_size, status.st_mtime_ns) for path in files if (status := path.stat())}

    def until_written(self):
        """Return as soon as a byte of the push is in a file."""
        deadline = time.monotonic() + WRITE_TIMEOUT_S
        while self.log_files() == self.files:
            if time.monotonic() > deadline:
                raise TimeoutError("nothing was written")

    def push_through_kills(self, kind):
        # No primary key: a row sent twice would be there twice.
        self.sql("CREATE TABLE t(n INTEGER)")
        wire = self.wire()
        client = self.client(kind, kind, wire)
        moments = {
            4: "gone",
            9: "sent",
            14: "writing",
            19: "answered",
            24: "writing",
            29: "unsent",
            34: "writing",
            44: "answered",
        }
        for n in range(PUSHES):
            client.execute("INSERT INTO t VALUES (?)", n)
            if n in moments:
                self.kill_at(moments[n], wire)
                with self.assertRaises(ClientError):
                    client.push()
                self.assertFalse(self.service.runs)
                self.service.start()
                kept = self.sql(ALL)
                # What the client was told is there; the last one, which it was not told of, may be.
                self.assertIn(kept, ([(i,) for i in range(n)], [(i,) for i in range(n + 1)]))
                if moments[n] == "answered":
                    self.assertEqual(len(kept), n + 1)
            client.push()
        expected = [(n,) for n in range(PUSHES)]
        self.assertEqual(self.sql(ALL), expected)
        self.assertTrue(client.pull())
        self.assertEqual(client.rows(ALL), expected)
        self.assert_fresh_clients_see(ALL, expected)

    def test_python_pushing_through_kills_loses_and_doubles_nothing(self):
        self.push_through_kills("python")

    def test_node_pushing_through_kills_loses_and_doubles_nothing(self):
        self.push_through_kills("node")

    def test_revisions_survive_a_kill(self):
        self.sql("CREATE TABLE t(n INTEGER)")
        clients = [self.client(kind, kind, self.wire()) for kind in KINDS]
        self.sql("INSERT INTO t VALUES (1)")
        for client in clients:
            self.assertTrue(client.pull())
        before = self.revision()
        self.service.kill()
        self.service.start()
        self.assertEqual(self.revision(), before)
        for client in clients:
            self.assertFalse(client.pull())
        self.sql("INSERT INTO t VALUES (2)")
        for client in clients:
            self.assertTrue(client.pull())
            self.assertEqual(client.rows(ALL), [(1,), (2,)])


if __name__ == "__main__":
    unittest.main()
