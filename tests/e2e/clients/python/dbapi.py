"""What every client with Python's database interface shows."""

import threading

from checks import BLOBS, FLOATS, INTEGERS, all_of_unicode, error_of


def dbapi_checks(checks, connect, is_constraint):
    """`connect` makes a connection to a URL, and takes `isolation_level`; `is_constraint` says whether an error is that of a
    constraint."""

    def check(name):
        def run(body):
            @checks.check(name)
            def _(url, _home):
                db, other = connect(url), connect(url)
                try:
                    body(db, other)
                finally:
                    db.close()
                    other.close()

        return run

    @check("values of every kind")
    def _(db, other):
        db.execute("CREATE TABLE v(id INTEGER PRIMARY KEY, i INTEGER, r REAL, b BLOB, n)")
        for at, integer in enumerate(INTEGERS):
            db.execute("INSERT INTO v VALUES (?, ?, ?, ?, ?)", (at, integer, FLOATS[at], BLOBS[at % 2], None))
        db.commit()
        rows = other.execute("SELECT i, r, b, n, typeof(i), typeof(r), typeof(b) FROM v ORDER BY id").fetchall()
        for at, (i, r, b, n, *types) in enumerate(rows):
            assert (i, r, bytes(b), n) == (INTEGERS[at], FLOATS[at], BLOBS[at % 2], None), rows[at]
            assert types == ["integer", "real", "blob"], types
        assert len(rows) == len(INTEGERS)

    @check("text with all of Unicode")
    def _(db, other):
        text = all_of_unicode()
        db.execute("CREATE TABLE t(v TEXT)")
        db.execute("INSERT INTO t VALUES (?)", (text,))
        db.commit()
        stored, length = other.execute("SELECT v, length(v) FROM t").fetchone()
        assert stored == text
        assert length == len(text)

    @check("errors are of their class, and the connection stays usable")
    def _(db, _other):
        db.execute("CREATE TABLE p(id INTEGER PRIMARY KEY, u TEXT UNIQUE, c INT NOT NULL CHECK (c > 0))")
        db.execute("CREATE TABLE k(p INT REFERENCES p(id))")
        db.execute("INSERT INTO p VALUES (1, 'a', 1)")
        db.commit()
        for sql, says in [
            ("INSERT INTO p VALUES (1, 'b', 1)", "UNIQUE"),
            ("INSERT INTO p VALUES (2, 'a', 1)", "UNIQUE"),
            ("INSERT INTO p VALUES (2, 'b', NULL)", "NOT NULL"),
            ("INSERT INTO p VALUES (2, 'b', 0)", "CHECK"),
            ("INSERT INTO k VALUES (7)", "FOREIGN KEY"),
        ]:
            error = error_of(lambda sql=sql: db.execute(sql))
            assert says in str(error), error
            assert is_constraint(error), repr(error)
            db.rollback()
        for sql in ("SELECT * FROM nowhere", "SELCT 1"):
            error = error_of(lambda sql=sql: db.execute(sql))
            assert not is_constraint(error), repr(error)
        assert db.execute("SELECT * FROM p").fetchall() == [(1, "a", 1)]

    @check("commit and rollback, as another sees them")
    def _(db, other):
        db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY)")
        db.commit()
        db.execute("INSERT INTO t VALUES (1)")
        assert other.execute("SELECT * FROM t").fetchall() == []
        other.rollback()
        db.commit()
        assert other.execute("SELECT * FROM t").fetchall() == [(1,)]
        other.rollback()
        db.execute("INSERT INTO t VALUES (2)")
        db.rollback()
        assert db.execute("SELECT * FROM t").fetchall() == [(1,)]

    @check("AUTOINCREMENT, lastrowid and rowcount")
    def _(db, _other):
        db.execute("CREATE TABLE a(id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT)")
        assert db.execute("INSERT INTO a(v) VALUES ('one')").lastrowid == 1
        db.execute("INSERT INTO a(v) VALUES ('two')")
        db.execute("DELETE FROM a")
        assert db.execute("INSERT INTO a(v) VALUES (?)", ("three",)).lastrowid == 3
        db.commit()
        db.executemany("INSERT INTO a(v) VALUES (?)", [("four",), ("five",)])
        db.commit()
        assert db.execute("UPDATE a SET v = v || '!' WHERE id > 3").rowcount == 2
        db.commit()
        assert db.execute("SELECT id, v FROM a").fetchall() == [(3, "three"), (4, "four!"), (5, "five!")]

    @check("foreign keys cascade")
    def _(db, other):
        db.executescript(
            "CREATE TABLE p(id INTEGER PRIMARY KEY);"
            "CREATE TABLE k(p INT REFERENCES p(id) ON DELETE CASCADE ON UPDATE CASCADE);"
            "INSERT INTO p VALUES (1), (2); INSERT INTO k VALUES (1), (1), (2);"
        )
        db.execute("DELETE FROM p WHERE id = 1")
        db.execute("UPDATE p SET id = 9")
        db.commit()
        assert other.execute("SELECT p FROM k").fetchall() == [(9,)]

    @check("10,000 rows in one result")
    def _(db, other):
        db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
        for at in range(0, 10_000, 500):
            db.execute("INSERT INTO t VALUES " + ",".join(f"({n}, 'row {n}')" for n in range(at, at + 500)))
        db.commit()
        rows = other.execute("SELECT id, v FROM t ORDER BY id").fetchall()
        assert rows == [(n, f"row {n}") for n in range(10_000)]

    @checks.check("two connections at once")
    def _(url, _home):
        # Without transactions that are open between two calls: a client may hold Python's lock while it waits in one.
        connections = [connect(url, isolation_level=None) for _ in range(2)]
        connections[0].execute("CREATE TABLE c(n INT)")
        connections[0].execute("INSERT INTO c VALUES (0)")
        failures = []

        def add(connection):
            try:
                for _ in range(10):
                    connection.execute("UPDATE c SET n = n + 1")
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=add, args=(one,)) for one in connections]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures
        assert connections[0].execute("SELECT n FROM c").fetchall() == [(20,)]
        for connection in connections:
            connection.close()
