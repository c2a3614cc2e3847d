"""One service, one log, and the clients around it: what every test starts from."""

import shutil
import signal
import tempfile
import unittest
from pathlib import Path

import pull
from clients import Client
from service import Service
from wire import Wire

LOG = "app"
TEST_TIMEOUT_S = 60
JOURNAL_LINES = 20


class Scene(unittest.TestCase):
    """A test with a running service and an empty log. Nothing it starts outlives it, and it is cut after a minute."""

    TOKEN = None

    def setUp(self):
        def expire(*_):
            raise TimeoutError(f"cut after {TEST_TIMEOUT_S} s")

        signal.signal(signal.SIGALRM, expire)
        signal.alarm(TEST_TIMEOUT_S)
        # Cleanups run in reverse order: the alarm goes last.
        self.addCleanup(signal.alarm, 0)
        self.home = Path(tempfile.mkdtemp(prefix="logmirror-turso-"))
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)
        self.journal = self.home / "journal"
        self.service = Service(self.home / "data", self.journal, self.TOKEN)
        self.addCleanup(self._end_service)
        self.service.create(LOG)

    def _end_service(self):
        if self.service.runs:
            self.service.kill()
        if not self._outcome.success:
            print("What the service said last:", *self.journal.read_text().splitlines()[-JOURNAL_LINES:], sep="\n")

    def client(self, kind, name, wire=None, **options):
        """Open the database `name` of a client, or make it."""
        client = Client(kind, self.home / f"{name}.db", (wire or self.service).url(LOG), **options)
        self.addCleanup(client.kill)
        return client

    def wire(self):
        wire = Wire(self.service)
        self.addCleanup(wire.close)
        return wire

    def sql(self, sql, *args):
        """Rows of a statement run by plain HTTP."""
        return self.service.execute(LOG, sql, *args)

    def transaction(self, *statements):
        """Statements run by plain HTTP in one transaction."""
        self.service.execute_many(LOG, *statements)

    def revision(self):
        """Where the server stands, as a client made from nothing is told."""
        answer = self.service.call("POST", f"/logs/{LOG}/pull-updates", b"")
        if answer.status != 200:
            raise RuntimeError(f"POST /pull-updates: {answer}")
        return pull.parse(answer.body)[0].revision

    def assert_fresh_clients_see(self, sql, expected):
        """Clients made from nothing, of both kinds, see these rows and sound databases."""
        for kind in ("python", "node"):
            fresh = self.client(kind, f"fresh-{kind}-{len(self._cleanups)}")
            self.assertEqual(fresh.rows(sql), expected, kind)
            self.assertEqual(fresh.rows("PRAGMA integrity_check"), [("ok",)], kind)
            fresh.close()
