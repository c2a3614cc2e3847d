"""pyturso: values and keys through a replica. What else it shows is in tests/turso."""

import turso.sync

from checks import BLOBS, FLOATS, INTEGERS, Checks, all_of_unicode, error_of, plain_rows

checks = Checks("pyturso", "pyturso")


def check(name):
    def run(body):
        @checks.check(name)
        def _(url, home):
            one, two = (turso.sync.connect(str(home / f"{name}.db"), remote_url=url) for name in ("one", "two"))
            body(one, two, url)
            one.close()
            two.close()

    return run


@check("values of every kind go up and come down")
def _(one, two, url):
    one.execute("CREATE TABLE v(id INTEGER PRIMARY KEY, i INTEGER, r REAL, b BLOB, n, t TEXT)")
    text = all_of_unicode()
    for at, integer in enumerate(INTEGERS):
        one.execute("INSERT INTO v VALUES (?, ?, ?, ?, ?, ?)", (at, integer, FLOATS[at], BLOBS[at % 2], None, "" if at else text))
    one.commit()
    one.push()
    two.pull()
    for at, (i, r, b, n, t) in enumerate(two.execute("SELECT i, r, b, n, t FROM v ORDER BY id").fetchall()):
        assert (i, r, bytes(b), n) == (INTEGERS[at], FLOATS[at], BLOBS[at % 2], None)
        assert t == ("" if at else text)
    assert [int(row[0]) for row in plain_rows(url, "SELECT i FROM v ORDER BY id")] == INTEGERS


@check("AUTOINCREMENT, cascades and 10,000 rows from the service")
def _(one, two, url):
    plain_rows(url, "CREATE TABLE p(id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT)")
    plain_rows(url, "CREATE TABLE k(p INT REFERENCES p(id) ON DELETE CASCADE)")
    for at in range(0, 10_000, 1000):
        plain_rows(url, "INSERT INTO p(v) VALUES " + ",".join(f"('row {n}')" for n in range(at, at + 1000)))
    plain_rows(url, "INSERT INTO k SELECT id FROM p WHERE id <= 3")
    plain_rows(url, "DELETE FROM p WHERE id IN (1, 10000)")
    one.pull()
    assert one.execute("SELECT count(*), max(id) FROM p").fetchall() == [(9_998, 9_999)]
    assert one.execute("SELECT p FROM k").fetchall() == [(2,), (3,)]
    one.execute("INSERT INTO p(v) VALUES ('new')")
    one.commit()
    one.push()
    assert plain_rows(url, "SELECT id FROM p WHERE v = 'new'") == [["10001"]]
    two.pull()
    assert len(two.execute("SELECT * FROM p").fetchall()) == 9_999


@check("errors, and a transaction that is rolled back")
def _(one, two, _url):
    one.execute("CREATE TABLE t(id INTEGER PRIMARY KEY)")
    one.execute("INSERT INTO t VALUES (1)")
    one.commit()
    assert "UNIQUE" in str(error_of(lambda: one.execute("INSERT INTO t VALUES (1)")))
    one.rollback()
    one.execute("INSERT INTO t VALUES (2)")
    one.rollback()
    one.push()
    two.pull()
    assert two.execute("SELECT id FROM t").fetchall() == [(1,)]
