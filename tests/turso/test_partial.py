"""Partial and chunked bootstraps: pages come later, and are those of the revision the client began with."""

import unittest

from clients import KINDS
from scene import Scene

PAGE_BYTES = 4096
ROWS = 1500
ALL = "SELECT id, what FROM t ORDER BY id"
SNAPSHOT = [(n, f"{n:0900}") for n in range(1, ROWS + 1)]
FILL = (
    "CREATE TABLE t(id INTEGER PRIMARY KEY, what TEXT)",
    f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})"
    " INSERT INTO t SELECT i, printf('%0900d', i) FROM n",
)


class Partial(Scene):
    def setUp(self):
        super().setUp()
        self.transaction(*FILL)

    def write_much(self):
        """What days may bring: every page changed, some gone, many new, and the service started anew."""
        self.transaction("UPDATE t SET what = what || 'x'")
        self.transaction("DELETE FROM t WHERE id % 3 = 0", "CREATE TABLE u(id INTEGER PRIMARY KEY, what TEXT)")
        self.service.stop()
        self.service.start()
        self.transaction("INSERT INTO u SELECT id, what FROM t", "CREATE INDEX i ON t(what)")
        self.transaction("DROP INDEX i", "DELETE FROM t WHERE id % 3 = 1")

    def lazy(self, kind, name, **options):
        """A partial client with its wire, whose bootstrap brought less than a quarter of the database."""
        wire = self.wire()
        client = self.client(kind, name, wire, **options)
        (bootstrap,) = wire.counted("/pull-updates")
        self.assertLess(bootstrap.answer_bytes, ROWS * 900 // 4)
        return client, wire

    def assert_old_pages_then_new_ones(self, client, wire):
        asked = len(wire.counted("/pull-updates"))
        self.assertEqual(client.rows(ALL), SNAPSHOT)
        self.assertGreater(len(wire.counted("/pull-updates")), asked, "nothing was read on demand")
        self.assertTrue(client.pull())
        self.assertEqual(client.rows(ALL), self.sql(ALL))
        self.assertEqual(client.rows("SELECT count(*), sum(id) FROM u"), self.sql("SELECT count(*), sum(id) FROM u"))

    def test_pages_read_on_demand_after_a_prefix_bootstrap_are_those_of_the_bootstrap(self):
        clients = [
            self.lazy(kind, f"{kind}-{prefetch}", prefix=32 * PAGE_BYTES, prefetch=prefetch)
            for kind in KINDS
            for prefetch in (False, True)
        ]
        self.write_much()
        for client, wire in clients:
            with self.subTest(client.path.name):
                self.assert_old_pages_then_new_ones(client, wire)

    def test_pages_read_on_demand_after_a_query_bootstrap_are_those_of_the_bootstrap(self):
        clients = [self.lazy(kind, kind, query="SELECT * FROM t WHERE id < 20") for kind in KINDS]
        self.write_much()
        for client, wire in clients:
            with self.subTest(client.kind):
                self.assert_old_pages_then_new_ones(client, wire)

    def test_a_query_bootstrap_brings_the_pages_of_its_query_and_few_others(self):
        self.transaction(
            "CREATE TABLE keyed(key INTEGER PRIMARY KEY, value BLOB)",
            "INSERT INTO keyed SELECT value, randomblob(1024) FROM generate_series(1, 2000)",
        )
        query = "SELECT length(value) FROM keyed WHERE key = 1000"
        few = 10 * (PAGE_BYTES + 128)
        for kind in KINDS:
            with self.subTest(kind):
                wire = self.wire()

                def received():
                    return sum(request.answer_bytes for request in wire.counted("/pull-updates"))

                client = self.client(kind, f"keyed-{kind}", wire, query=query, segment_size=PAGE_BYTES)
                self.assertLess(received(), few)
                self.assertEqual(client.rows("SELECT length(value) FROM keyed LIMIT 1"), [(1024,)])
                self.assertLess(received(), few)
                client.execute("INSERT INTO keyed VALUES (-1, -1)")
                before = received()
                self.assertEqual(client.rows(query), [(1024,)])
                self.assertEqual(received(), before, "the pages of the query were there")
                client.push()
                self.assertEqual(self.sql("SELECT value FROM keyed WHERE key = -1"), [(-1,)])
                self.transaction("DELETE FROM keyed WHERE key = -1")
                client.pull()
                # Page by page: all of them would take a request each.
                some = "SELECT count(*), sum(length(value)) FROM keyed WHERE key < 50"
                self.assertEqual(client.rows(some), [(49, 49 * 1024)])

    def test_a_query_bootstrap_whose_query_fails_says_so(self):
        for kind in KINDS:
            for query, reason in (("SELECT * FROM nix", "no such table: nix"), ("DELETE FROM t", "may only read")):
                with self.subTest(kind, query=query):
                    with self.assertRaisesRegex(Exception, reason):
                        self.client(kind, f"failed-{kind}-{len(query)}", query=query)
                    self.assertEqual(len(self.sql(ALL)), ROWS)

    def test_a_partial_client_opened_again_still_reads_the_pages_of_its_bootstrap(self):
        for kind in KINDS:
            client, _ = self.lazy(kind, kind, prefix=32 * PAGE_BYTES)
            client.close()
        self.write_much()
        for kind in KINDS:
            with self.subTest(kind):
                wire = self.wire()
                client = self.client(kind, kind, wire, prefix=32 * PAGE_BYTES)
                self.assert_old_pages_then_new_ones(client, wire)

    def test_a_partial_client_pushes(self):
        for kind in KINDS:
            with self.subTest(kind):
                client, _ = self.lazy(kind, kind, prefix=32 * PAGE_BYTES)
                client.execute("UPDATE t SET what = ? WHERE id = 700", kind)
                client.push()
                self.assertEqual(self.sql("SELECT what FROM t WHERE id = 700"), [(kind,)])

    def test_a_chunked_bootstrap_is_of_one_revision_whatever_is_written_between_its_chunks(self):
        for kind in KINDS:
            with self.subTest(kind):
                expected = self.sql(ALL)
                wire = self.wire()

                def write_between(request):
                    if len(wire.counted("/pull-updates")) in (2, 4):
                        self.transaction(
                            "UPDATE t SET what = what || 'x'", "INSERT INTO t(what) VALUES (hex(zeroblob(9000)))"
                        )

                wire.before = write_between
                client = self.client(kind, kind, wire, pull_bytes_threshold=64 * 1024)
                chunks = wire.counted("/pull-updates")
                self.assertGreater(len(chunks), 10)
                self.assertLess(max(chunk.answer_bytes for chunk in chunks), 2 * 64 * 1024)
                self.assertEqual(client.rows(ALL), expected)
                self.assertEqual(client.rows("PRAGMA integrity_check"), [("ok",)])
                self.assertTrue(client.pull())
                self.assertEqual(client.rows(ALL), self.sql(ALL))


if __name__ == "__main__":
    unittest.main()
