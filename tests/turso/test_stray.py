"""Statements that would ruin a careless server: they harm nobody."""

import unittest

from clients import KINDS
from scene import LOG, Scene

ALL = "SELECT n, who FROM t ORDER BY n, who"

CHECKPOINTS = (
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "PRAGMA wal_checkpoint",
    "pragma  WAL_CHECKPOINT = truncate",
    "PRAGMA main.wal_checkpoint(RESTART);",
    'PRAGMA "wal_checkpoint"(TRUNCATE)',
    "PRAGMA [wal_checkpoint](TRUNCATE)",
    "/* a comment */ PRAGMA/**/wal_checkpoint(TRUNCATE)",
    "-- a comment\n\tPRAGMA\n  wal_checkpoint -- another\n (TRUNCATE)",
    ";;PRAGMA wal_checkpoint(FULL)",
)
RUINOUS = (
    *CHECKPOINTS,
    "PRAGMA journal_mode = DELETE",
    "PRAGMA journal_mode(memory)",
    "PRAGMA page_size = 512",
    "PRAGMA auto_vacuum = FULL",
    "ATTACH 'other.db' AS other",
    "VACUUM INTO 'copy.db'",
)


def execute(sql):
    return {"type": "execute", "stmt": {"sql": sql}}


def batch(*statements):
    return {"type": "batch", "batch": {"steps": [{"stmt": {"sql": sql}} for sql in statements]}}


def sequence(sql):
    return {"type": "sequence", "sql": sql}


# Ends what a call left open. Without it the service may keep a stream for a while: its caller could come back.
CLOSE = {"type": "close"}


class Stray(Scene):
    def setUp(self):
        super().setUp()
        self.sql("CREATE TABLE t(n INTEGER, who TEXT)")
        self.sql("INSERT INTO t VALUES (0, 'http')")
        self.expected = [(0, "http")]
        self.clients = [self.client(kind, kind) for kind in KINDS]

    def assert_clients_go_on(self):
        """The same clients push and pull, and fresh ones see it all."""
        turn = len(self.expected)
        for client in self.clients:
            client.execute("INSERT INTO t VALUES (?, ?)", turn, client.kind)
            client.push()
            self.expected.append((turn, client.kind))
        self.expected.sort()
        for client in self.clients:
            client.pull()
            self.assertEqual(client.rows(ALL), self.expected)
        self.assertEqual(self.sql(ALL), self.expected)

    def assert_harmless(self, *requests):
        """Whatever the answer, it is one to each request, and nothing moves."""
        before = self.revision()
        results = self.service.pipeline(LOG, *requests, CLOSE)[:-1]
        self.assertEqual(len(results), len(requests))
        self.assertEqual(self.revision(), before, results)
        self.assertEqual(self.sql(ALL), self.expected)
        return results

    def test_checkpoints_and_their_like_are_refused_in_whatever_clothes(self):
        for sql in RUINOUS:
            with self.subTest(sql):
                (result,) = self.assert_harmless(execute(sql))
                self.assertEqual(result["type"], "error", result)
        self.assert_clients_go_on()

    def test_checkpoints_in_a_batch_do_not_hold_up_the_other_steps(self):
        for sql in RUINOUS:
            with self.subTest(sql):
                (result,) = self.assert_harmless(batch("SELECT 1", sql, "SELECT 2"))
                outcome = result["response"]["result"]
                self.assertEqual([error is None for error in outcome["step_errors"]], [True, False, True], outcome)
                self.assertEqual([one is None for one in outcome["step_results"]], [False, True, False], outcome)
        self.assert_clients_go_on()

    def test_checkpoints_in_a_sequence_harm_nothing(self):
        for sql in RUINOUS:
            with self.subTest(sql):
                for text in (sql, f"SELECT 1; {sql}; SELECT 2", f"BEGIN; {sql}"):
                    (result,) = self.assert_harmless(sequence(text))
                    self.assertEqual(result["type"], "error", result)
        self.assert_clients_go_on()

    def test_a_checkpoint_inside_a_transaction_or_a_stored_statement_harms_nothing(self):
        for sql in CHECKPOINTS:
            with self.subTest(sql):
                self.assert_harmless(execute("BEGIN"), execute("INSERT INTO t VALUES (9, 'no')"), execute(sql))
                self.assert_harmless(
                    {"type": "store_sql", "sql_id": 1, "sql": sql}, {"type": "execute", "stmt": {"sql_id": 1}}
                )
                self.assert_harmless({"type": "describe", "sql": sql})
        self.assert_clients_go_on()

    def test_a_begin_without_an_end_is_rolled_back_and_holds_up_nobody(self):
        insert = "INSERT INTO t VALUES (99, 'never')"
        for begin in ("BEGIN", "BEGIN IMMEDIATE", "begin exclusive", "/**/BEGIN", "SAVEPOINT s"):
            for requests in (
                [execute(begin), execute(insert)],
                [batch(begin, insert)],
                [sequence(f"{begin}; {insert}")],
            ):
                with self.subTest(begin, first=requests[0]["type"]):
                    self.assert_harmless(*requests)
        self.assert_clients_go_on()

    def test_a_writer_who_never_comes_back_is_rolled_back_and_the_others_go_on(self):
        self.service.pipeline(LOG, execute("BEGIN IMMEDIATE"), execute("INSERT INTO t VALUES (99, 'never')"))
        # Readers do not wait at all, writers until the service has lost its patience.
        self.assertEqual(self.sql(ALL), self.expected)
        self.assert_clients_go_on()

    def test_a_begin_that_wrote_nothing_holds_up_no_writer(self):
        for requests in (
            [execute("BEGIN")],
            [execute("BEGIN"), execute("SELECT * FROM t")],
            [sequence("BEGIN; SELECT 1")],
        ):
            with self.subTest(requests=requests):
                path = f"/logs/{LOG}/v2/pipeline"
                stray = self.service.call("POST", path, {"baton": None, "requests": requests}).json()
                self.assert_clients_go_on()
                if stray["baton"] is not None:
                    # Still there: the clients did not wait for its end.
                    again = {"baton": stray["baton"], "requests": [execute("ROLLBACK"), CLOSE]}
                    answer = self.service.call("POST", path, again)
                    self.assertEqual(answer.status, 200, answer)
                    self.assertEqual(answer.json()["results"][0]["type"], "ok", answer)

    def test_an_end_without_a_begin_is_an_error_and_no_more(self):
        for sql in ("COMMIT", "ROLLBACK", "END", "RELEASE s"):
            with self.subTest(sql):
                (result,) = self.assert_harmless(execute(sql))
                self.assertEqual(result["type"], "error", result)
        self.assert_clients_go_on()


if __name__ == "__main__":
    unittest.main()
