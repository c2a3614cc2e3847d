"""One database, all its readers: what Turso clients and plain HTTP wrote is what libSQL replicas and restores get."""

import sqlite3
import subprocess
import unittest

from clients import KINDS
from scene import LOG, Scene
from service import PROGRAM


def dump(path):
    """The database as SQL, by stock SQLite, once it found it sound."""
    connection = sqlite3.connect(path)
    try:
        verdict = connection.execute("PRAGMA integrity_check").fetchall()
        if verdict != [("ok",)]:
            raise AssertionError(f"{path}: {verdict}")
        return list(connection.iterdump())
    finally:
        connection.close()


class Formats(Scene):
    def logmirror(self, *arguments):
        done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)

    def write(self, turn):
        """Something of everything, by both clients and by plain HTTP."""
        clients = [self.client(kind, f"{kind}-{turn}") for kind in KINDS]
        self.transaction(
            f"CREATE TABLE http{turn}(id INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT COLLATE NOCASE, n ANY) STRICT",
            f"CREATE UNIQUE INDEX i{turn} ON http{turn}(what)",
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)"
            f" INSERT INTO http{turn}(what, n) SELECT printf('%0500d', i), i * 1.5 FROM n",
            f"DELETE FROM http{turn} WHERE id % 7 = 0",
        )
        for client in clients:
            table = f"{client.kind}{turn}"
            client.execute(f"CREATE TABLE {table}(a TEXT, b TEXT, n REAL, x BLOB, PRIMARY KEY(a, b))")
            client.execute_many(
                f"INSERT INTO {table} VALUES (?, ?, ?, x'00ff')", [(f"a{n}", "ü" * n, n / 4) for n in range(300)]
            )
            client.push()
            client.execute(f"DELETE FROM {table} WHERE n > 70")
            client.execute(f"UPDATE {table} SET x = NULL WHERE n < 10")
            client.sync()
            client.close()

    def assert_restore_and_replica_agree(self, name):
        restored, replica = self.home / f"{name}-restored.db", self.home / "replica.db"
        self.logmirror("restore", self.service.url(LOG), restored)
        self.logmirror("mirror", f"libsql+{self.service.url(LOG)}", replica)
        found = dump(restored)
        self.assertGreater(len(found), 1000)
        self.assertEqual(dump(replica), found)
        return restored

    def test_a_libsql_replica_and_a_restore_are_the_database_that_turso_clients_wrote(self):
        self.write(1)
        self.assert_restore_and_replica_agree("first")
        # The replica made above is refreshed, across a restart.
        self.write(2)
        self.service.stop()
        self.service.start()
        self.write(3)
        restored = self.assert_restore_and_replica_agree("second")

        connection = sqlite3.connect(restored)
        self.addCleanup(connection.close)
        tables = ("http1", *(f"{kind}1" for kind in KINDS))
        clients = [self.client(kind, f"{kind}-last") for kind in KINDS]
        for table in tables:
            sql = (
                f"SELECT * FROM {table} ORDER BY 1, 2"
                if table == "http1"
                else f"SELECT a, b, n, hex(x) FROM {table} ORDER BY 1, 2"
            )
            expected = connection.execute(sql).fetchall()
            self.assertGreater(len(expected), 200)
            self.assertEqual(self.sql(sql), expected, table)
            for client in clients:
                self.assertEqual(client.rows(sql), expected, (table, client.kind))

    def test_a_restore_to_an_earlier_transaction_is_what_the_database_was_then(self):
        self.sql("CREATE TABLE t(n INTEGER)")
        seen = []
        for n in range(5):
            self.sql("INSERT INTO t VALUES (?)", n)
            status = self.service.call("GET", f"/logs/{LOG}").json()
            seen.append((status["next"] - 1, [(i,) for i in range(n + 1)]))
        for frame, expected in seen:
            with self.subTest(frame=frame):
                path = self.home / f"{frame}.db"
                self.logmirror("restore", self.service.url(LOG), path, "--to", frame)
                connection = sqlite3.connect(path)
                self.addCleanup(connection.close)
                self.assertEqual(connection.execute("SELECT n FROM t ORDER BY n").fetchall(), expected)


if __name__ == "__main__":
    unittest.main()
