"""What a push must get through: the same column twice, thousands of rows, answers that never come, many at once."""

import unittest

from clients import KINDS, ClientError, at_once
from scene import Scene
from wire import Lost

ALL = "SELECT n, who FROM t ORDER BY n, who"


class Pushes(Scene):
    def test_two_clients_add_the_same_column_and_both_go_on(self):
        self.transaction("CREATE TABLE t(n INTEGER PRIMARY KEY, who TEXT)", "INSERT INTO t VALUES (0, 'http')")
        clients = [self.client(kind, kind) for kind in KINDS]
        for n, client in enumerate(clients, 1):
            client.execute("ALTER TABLE t ADD COLUMN more TEXT")
            client.execute("INSERT INTO t VALUES (?, ?, ?)", n, client.kind, f"more of {client.kind}")
        for client in clients:
            client.push()
        expected = [(0, "http", None), *((n, kind, f"more of {kind}") for n, kind in enumerate(KINDS, 1))]
        everything = "SELECT n, who, more FROM t ORDER BY n"
        self.assertEqual(self.sql(everything), expected)
        for client in clients:
            self.assertTrue(client.pull())
            self.assertEqual(client.rows(everything), expected)
        for client in clients:
            client.execute("UPDATE t SET more = more || '!' WHERE who = ?", client.kind)
            client.push()
        expected = [(n, who, more and f"{more}!") for n, who, more in expected]
        self.assertEqual(self.sql(everything), expected)
        self.assert_fresh_clients_see(everything, expected)

    def test_five_thousand_rows_go_up_in_one_push(self):
        for kind in KINDS:
            with self.subTest(kind):
                wire = self.wire()
                client = self.client(kind, kind, wire)
                client.execute(f"CREATE TABLE {kind}(n INTEGER PRIMARY KEY, what TEXT)")
                rows = [(n, f"{n:0100}") for n in range(5000)]
                client.execute_many(f"INSERT INTO {kind} VALUES (?, ?)", rows)
                client.push()
                self.assertEqual(len([request for request in wire.requests if request.is_push]), 1)
                everything = f"SELECT n, what FROM {kind} ORDER BY n"
                self.assertEqual(self.sql(everything), rows)
                client.close()
        self.assert_fresh_clients_see(everything, rows)

    def test_an_infinity_is_refused_and_the_push_goes_on_once_its_change_is_gone(self):
        for kind in KINDS:
            with self.subTest(kind):
                client = self.client(kind, kind)
                client.execute(f"CREATE TABLE {kind}(n INTEGER PRIMARY KEY, v REAL)")
                client.execute(f"INSERT INTO {kind} VALUES (1, 1.5)")
                client.push()
                client.execute(f"UPDATE {kind} SET v = -9e999")
                client.execute(f"INSERT INTO {kind} VALUES (2, 2.5)")
                with self.assertRaisesRegex(ClientError, "infinity.*turso_cdc"):
                    client.push()
                everything = f"SELECT n, v FROM {kind} ORDER BY n"
                self.assertEqual(self.sql(everything), [(1, 1.5)])
                client.pull()
                self.assertEqual(client.rows(f"SELECT n FROM {kind} WHERE v = -9e999"), [(1,)])
                # A pull numbers the changes anew.
                changed = f"FROM turso_cdc WHERE table_name = '{kind}' AND change_type = 0"
                ((change,),) = client.rows(f"SELECT max(change_id) {changed}")
                client.execute(f"UPDATE {kind} SET v = 3.5 WHERE abs(v) = 9e999")
                client.execute("DELETE FROM turso_cdc WHERE change_id = ?", change)
                client.push()
                self.assertEqual(self.sql(everything), [(1, 3.5), (2, 2.5)])

    def test_a_push_split_into_several_batches_arrives_whole(self):
        for kind in KINDS:
            with self.subTest(kind):
                wire = self.wire()
                client = self.client(kind, kind, wire, push_operations_threshold=10)
                client.execute(f"CREATE TABLE {kind}(n INTEGER)")
                for n in range(40):
                    client.execute(f"INSERT INTO {kind} VALUES (?)", n)
                client.push()
                self.assertGreater(len([request for request in wire.requests if request.is_push]), 2)
                self.assertEqual(self.sql(f"SELECT n FROM {kind} ORDER BY n"), [(n,) for n in range(40)])

    def test_a_push_whose_answer_was_lost_is_sent_again_and_counts_once(self):
        # No primary key: a row sent twice would be there twice.
        self.sql("CREATE TABLE t(n INTEGER, who TEXT)")
        expected = []
        for kind in KINDS:
            with self.subTest(kind):
                wire = self.wire()
                client = self.client(kind, kind, wire)
                for n, lost in enumerate((True, False, True, True, False)):
                    client.execute("INSERT INTO t VALUES (?, ?)", n, kind)
                    expected.append((n, kind))
                    if lost:
                        wire.after = lose_pushes
                        with self.assertRaises(ClientError):
                            client.push()
                        # The server has it all the same.
                        self.assertEqual(self.sql(ALL), sorted(expected))
                        wire.disarm()
                    client.push()
                    self.assertEqual(self.sql(ALL), sorted(expected))
                self.assertTrue(client.pull())
                self.assertEqual(client.rows(ALL), sorted(expected))
        self.assert_fresh_clients_see(ALL, sorted(expected))

    def test_a_push_that_never_arrived_is_sent_again(self):
        self.sql("CREATE TABLE t(n INTEGER, who TEXT)")
        for kind in KINDS:
            with self.subTest(kind):
                wire = self.wire()
                client = self.client(kind, kind, wire)
                client.execute("INSERT INTO t VALUES (1, ?)", kind)
                wire.before = lose_pushes
                before = self.sql(ALL)
                with self.assertRaises(ClientError):
                    client.push()
                self.assertEqual(self.sql(ALL), before)
                wire.disarm()
                client.push()
                self.assertEqual(self.sql(ALL), sorted([*before, (1, kind)]))

    def test_one_row_that_breaks_a_rule_is_reported_and_the_others_are_in(self):
        self.transaction("CREATE TABLE t(n INTEGER PRIMARY KEY, who TEXT UNIQUE)")
        for kind in KINDS:
            with self.subTest(kind):
                client = self.client(kind, kind)
                before = self.sql(ALL)
                top = len(before) * 10
                client.execute("INSERT INTO t VALUES (?, ?)", top + 1, f"{kind} 1")
                client.execute("INSERT INTO t VALUES (?, ?)", top + 2, f"{kind} 2")
                self.sql("INSERT INTO t VALUES (?, ?)", top + 3, f"{kind} 1")
                with self.assertRaisesRegex(ClientError, "(?i)unique"):
                    client.push()
                expected = [*before, (top + 2, f"{kind} 2"), (top + 3, f"{kind} 1")]
                self.assertEqual(self.sql(ALL), expected)
                # It does not stick: the next push works.
                client.execute("INSERT INTO t VALUES (?, ?)", top + 4, f"{kind} 4")
                client.push()
                self.assertEqual(self.sql(ALL), [*expected, (top + 4, f"{kind} 4")])

    def test_sixteen_clients_at_once_lose_and_double_nothing(self):
        self.sql("CREATE TABLE t(n INTEGER, who TEXT)")
        clients = [self.client(KINDS[n % 2], f"client-{n}") for n in range(16)]
        turns = 5

        def work(client):
            for turn in range(turns):
                client.execute("INSERT INTO t VALUES (?, ?)", turn, client.path.stem)
                client.push()
                if turn % 2:
                    client.pull()

        at_once([lambda client=client: work(client) for client in clients])
        expected = sorted((turn, client.path.stem) for turn in range(turns) for client in clients)
        self.assertEqual(self.sql(ALL), expected)
        for client in clients[:4]:
            self.assertTrue(client.pull())
            self.assertEqual(client.rows(ALL), expected)
        self.assert_fresh_clients_see(ALL, expected)


def lose_pushes(request):
    if request.is_push:
        raise Lost


if __name__ == "__main__":
    unittest.main()
