"""The operator rolls the log over: clients of an older generation go on, or are told that they cannot."""

import unittest

from clients import KINDS, ClientError
from scene import LOG, Scene

ALL = "SELECT id, what FROM t ORDER BY id"
ROWS = 1000
PREFIX = 32 * 4096
FILL = (
    "CREATE TABLE t(id INTEGER PRIMARY KEY, what TEXT)",
    f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})"
    " INSERT INTO t SELECT i, printf('%0900d', i) FROM n",
)


class Generations(Scene):
    def setUp(self):
        super().setUp()
        self.transaction(*FILL)

    def roll_over(self):
        answer = self.service.call("POST", f"/logs/{LOG}/checkpoint")
        self.assertEqual(answer.status, 200, answer)

    def test_clients_push_and_pull_across_a_roll_over(self):
        clients = [self.client(kind, kind) for kind in KINDS]
        for turn in range(3):
            for client in clients:
                client.execute(
                    "INSERT INTO t(id, what) VALUES (?, 'local')", 10_000 + 10 * turn + clients.index(client)
                )
            self.sql("UPDATE t SET what = ? WHERE id % 5 = 0", f"before {turn}")
            self.roll_over()
            self.sql("UPDATE t SET what = ? WHERE id % 7 = 0", f"after {turn}")
            for client in clients:
                self.assertTrue(client.sync())
            self.assertTrue(clients[0].pull())
            for client in clients:
                self.assertEqual(client.rows(ALL), self.sql(ALL), client.kind)
                self.assertEqual(client.rows("PRAGMA integrity_check"), [("ok",)])
        self.assertEqual(len(self.sql(ALL)), ROWS + 3 * len(KINDS))

    def test_pages_read_on_demand_after_a_roll_over_are_those_of_the_bootstrap(self):
        expected = self.sql(ALL)
        clients = [self.client(kind, kind, prefix=PREFIX) for kind in KINDS]
        self.sql("UPDATE t SET what = what || 'x'")
        self.roll_over()
        self.sql("DELETE FROM t WHERE id % 2 = 0")
        for client in clients:
            with self.subTest(client.kind):
                self.assertEqual(client.rows(ALL), expected)
                self.assertTrue(client.pull())
                self.assertEqual(client.rows(ALL), self.sql(ALL))

    def test_a_client_of_a_generation_that_is_gone_is_told_so_or_brought_up_to_date(self):
        clients = [self.client(kind, kind) for kind in KINDS]
        answer = self.service.call("PUT", f"/logs/{LOG}/checkpoint", {"policy": "roll", "frames": 1_000_000, "keep": 1})
        self.assertEqual(answer.status, 200, answer)
        for turn in range(4):
            self.sql("UPDATE t SET what = ? WHERE id < 500", f"turn {turn}")
            self.roll_over()
        for client in clients:
            with self.subTest(client.kind):
                before = client.rows(ALL)
                try:
                    client.pull()
                except ClientError as error:
                    # Nothing of another history was mixed in.
                    self.assertRegex(str(error), "generation|revision")
                    self.assertEqual(client.rows(ALL), before)
                else:
                    self.assertEqual(client.rows(ALL), self.sql(ALL))
        self.assert_fresh_clients_see(ALL, self.sql(ALL))

    def test_a_client_of_a_log_that_was_wiped_is_refused(self):
        clients = [self.client(kind, kind, self.wire()) for kind in KINDS]
        self.service.stop()
        (self.service.data / "logs" / LOG).rename(self.home / "wiped")
        self.service.start()
        self.service.create(LOG)
        # The same statements, so that the number of frames is the same too.
        self.transaction(*FILL)
        self.sql("UPDATE t SET what = 'another history'")
        for client in clients:
            with self.subTest(client.kind):
                with self.assertRaises(ClientError):
                    client.pull()
                self.assertEqual(len(client.rows(ALL)), ROWS)


if __name__ == "__main__":
    unittest.main()
