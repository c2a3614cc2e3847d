"""Rows go up, rows come down: whoever wrote them, everybody has them."""

import threading
import unittest

from clients import KINDS, at_once
from scene import Scene

ALL = "SELECT who, what FROM t ORDER BY who, what"


class Sync(Scene):
    def test_rows_pushed_by_one_client_are_pulled_by_another_of_either_kind(self):
        for writer_kind in KINDS:
            for reader_kind in KINDS:
                with self.subTest(writer=writer_kind, reader=reader_kind):
                    table = f"{writer_kind}_{reader_kind}"
                    writer = self.client(writer_kind, f"writer-{table}")
                    reader = self.client(reader_kind, f"reader-{table}")
                    writer.execute(f"CREATE TABLE {table}(id INTEGER PRIMARY KEY, what TEXT, n REAL, b BLOB)")
                    writer.execute(f"INSERT INTO {table}(what, n, b) VALUES ('ü', 1.5, x'00ff'), (NULL, 2.0, x'')")
                    writer.push()
                    self.assertTrue(reader.pull())
                    sql = f"SELECT id, what, n, hex(b), typeof(n) FROM {table} ORDER BY id"
                    expected = [(1, "ü", 1.5, "00FF", "real"), (2, None, 2.0, "", "real")]
                    self.assertEqual(reader.rows(sql), expected)
                    self.assertEqual(self.sql(sql), expected)

                    writer.execute(f"UPDATE {table} SET what = 'later' WHERE id = 2")
                    writer.execute(f"DELETE FROM {table} WHERE id = 1")
                    writer.push()
                    self.assertTrue(reader.pull())
                    self.assertEqual(reader.rows(sql), [(2, "later", 2.0, "", "real")])
                    self.assertFalse(reader.pull())
                    writer.close()
                    reader.close()

    def test_a_fresh_client_gets_everything_by_its_bootstrap(self):
        for kind in KINDS:
            writer = self.client(kind, f"{kind}-writer")
            writer.execute("CREATE TABLE IF NOT EXISTS t(who TEXT, what TEXT)")
            writer.execute_many("INSERT INTO t VALUES (?, ?)", [(kind, f"row {n:04}") for n in range(300)])
            writer.push()
            writer.close()
        expected = [(kind, f"row {n:04}") for kind in sorted(KINDS) for n in range(300)]
        self.assert_fresh_clients_see(ALL, expected)

    def test_a_client_of_an_empty_log_starts_empty_and_may_write(self):
        for kind in KINDS:
            with self.subTest(kind):
                client = self.client(kind, kind)
                self.assertFalse(client.pull())
                tables = "SELECT name FROM sqlite_schema WHERE name = 't'"
                self.assertEqual(client.rows(tables), [])
                client.close()

    def test_a_change_made_by_plain_http_is_pulled(self):
        self.sql("CREATE TABLE t(who TEXT, what TEXT)")
        clients = [self.client(kind, kind) for kind in KINDS]
        self.sql("INSERT INTO t VALUES ('http', ?)", "after the bootstrap")
        for client in clients:
            self.assertTrue(client.pull())
            self.assertEqual(client.rows(ALL), [("http", "after the bootstrap")])
        self.transaction("DELETE FROM t", "CREATE INDEX i ON t(who)", "ALTER TABLE t ADD COLUMN more INTEGER DEFAULT 7")
        for client in clients:
            self.assertTrue(client.pull())
            self.assertEqual(client.rows("SELECT * FROM t"), [])
        for client in clients:
            client.execute("INSERT INTO t(who, what) VALUES (?, 'x')", client.kind)
            client.push()
        self.assertEqual(self.sql("SELECT who, more FROM t ORDER BY who"), [("node", 7), ("python", 7)])

    def test_clients_that_wrote_both_end_with_the_same_rows_after_their_syncs(self):
        self.sql("CREATE TABLE t(who TEXT, what TEXT)")
        clients = [self.client(kind, kind) for kind in KINDS]
        expected = []
        for turn in range(3):
            for client in clients:
                client.execute("INSERT INTO t VALUES (?, ?)", client.kind, f"turn {turn}")
            self.sql("INSERT INTO t VALUES ('http', ?)", f"turn {turn}")
            expected += [(who, f"turn {turn}") for who in ("http", *KINDS)]
            for client in clients:
                self.assertTrue(client.sync())
            # The first one pulled before the second one pushed.
            self.assertTrue(clients[0].sync())
            for client in clients:
                self.assertEqual(client.rows(ALL), sorted(expected), client.kind)
        self.assertEqual(self.sql(ALL), sorted(expected))
        self.assert_fresh_clients_see(ALL, sorted(expected))

    def test_a_client_that_was_closed_and_checkpointed_goes_on_where_it_was(self):
        for kind in KINDS:
            with self.subTest(kind):
                client = self.client(kind, kind)
                client.execute(f"CREATE TABLE {kind}(n INTEGER)")
                client.execute(f"INSERT INTO {kind} VALUES (1)")
                client.push()
                client.execute(f"INSERT INTO {kind} VALUES (2)")
                client.checkpoint()
                client.close()
                self.sql(f"INSERT INTO {kind} VALUES (3)")
                client = self.client(kind, kind)
                self.assertTrue(client.sync())
                self.assertEqual(client.rows(f"SELECT n FROM {kind} ORDER BY n"), [(1,), (2,), (3,)])
                self.assertEqual(self.sql(f"SELECT n FROM {kind} ORDER BY n"), [(1,), (2,), (3,)])

    def test_an_idle_push_does_not_move_the_revision(self):
        for kind in KINDS:
            with self.subTest(kind):
                client = self.client(kind, kind)
                client.execute(f"CREATE TABLE {kind}(n INTEGER)")
                client.push()
                before = self.revision()
                client.push()
                client.push()
                self.assertEqual(self.revision(), before)

    def test_a_long_poll_is_answered_by_the_commit_it_waits_for(self):
        self.sql("CREATE TABLE t(who TEXT, what TEXT)")
        for kind in KINDS:
            with self.subTest(kind):
                wire = self.wire()
                # Much longer than this test may take: if the commit did not end it, the deadline would.
                client = self.client(kind, kind, wire, long_poll_timeout_ms=300_000)
                asked = threading.Event()
                wire.before = lambda request: asked.set()

                def write():
                    asked.wait()
                    self.sql("INSERT INTO t VALUES ('http', ?)", kind)

                pulled = []
                at_once([lambda: pulled.append(client.pull()), write])
                self.assertEqual(pulled, [True])
                self.assertIn(("http", kind), client.rows(ALL))

    def test_writes_that_node_sends_straight_to_the_server_are_read_back_at_once(self):
        client = self.client("node", "node", remote_writes=True)
        client.execute("CREATE TABLE t(who TEXT, what TEXT)")
        client.execute("INSERT INTO t VALUES (?, ?)", "node", "remote")
        self.assertEqual(client.rows(ALL), [("node", "remote")])
        client.execute_many("INSERT INTO t VALUES (?, ?)", [("node", "remote 2"), ("node", "remote 3")])
        self.assertEqual(client.rows(ALL), self.sql(ALL))
        self.assertEqual(len(self.sql(ALL)), 3)
        client.close()


if __name__ == "__main__":
    unittest.main()
