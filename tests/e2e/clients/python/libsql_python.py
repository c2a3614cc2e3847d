"""Python's libsql: a remote database, and replicas."""

import libsql

from checks import Checks, plain_rows
from dbapi import dbapi_checks

checks = Checks("libsql (Python)", "libsql")

# All its errors are of one class.
dbapi_checks(checks, libsql.connect, lambda error: "constraint" in str(error))


@checks.check("a replica that writes to the service")
def _(url, home):
    db = libsql.connect(str(home / "replica.db"), sync_url=url, auth_token="none")
    db.sync()
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
    db.execute("INSERT INTO t(v) VALUES (?)", ("from the replica",))
    db.commit()
    assert plain_rows(url, "SELECT v FROM t") == [["from the replica"]]
    plain_rows(url, "INSERT INTO t(v) VALUES ('from elsewhere')")
    db.sync()
    assert len(db.execute("SELECT v FROM t").fetchall()) == 2
    db.close()


@checks.check("replicas that write offline meet")
def _(url, home):
    one = libsql.connect(str(home / "one.db"), sync_url=url, auth_token="none", offline=True)
    one.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
    one.execute("INSERT INTO t(v) VALUES ('one')")
    one.commit()
    one.sync()
    two = libsql.connect(str(home / "two.db"), sync_url=url, auth_token="none", offline=True)
    two.sync()
    assert two.execute("SELECT v FROM t").fetchall() == [("one",)]
    two.execute("INSERT INTO t(v) VALUES ('two')")
    two.commit()
    two.sync()
    one.sync()
    assert one.execute("SELECT v FROM t ORDER BY id").fetchall() == [("one",), ("two",)]
    assert plain_rows(url, "SELECT v FROM t ORDER BY id") == [["one"], ["two"]]
    one.close()
    two.close()
