"""A database with 200 transactions of every kind. Arguments: directory, page size, whether it starts with a base.

Leaves base.db (if asked; else all content is in the log), app.db-wal as SQLite wrote it, dump-N.sql with the content after each transaction, and
frames.txt with the number of frames after each.
"""
import os, random, shutil, sqlite3, struct, sys

where, page_size, with_base = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "base"
path = os.path.join(where, "app.db")
chance = random.Random(page_size)
db = sqlite3.connect(path, isolation_level=None)
db.execute(f"PRAGMA page_size={page_size}")
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA synchronous=OFF")
if with_base:
    db.execute("CREATE TABLE old(id INTEGER PRIMARY KEY, body TEXT)")
    db.executemany("INSERT INTO old(body) VALUES (?)", [(f"row {n}" * (n % 40),) for n in range(300)])
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(path, os.path.join(where, "base.db"))
db.execute("PRAGMA wal_autocheckpoint=0")
db.execute("PRAGMA cache_size=8")

def frames():
    # What the WAL's index says: behind that, the file may hold frames that were never committed.
    if not os.path.exists(path + "-shm"):
        return 0
    with open(path + "-shm", "rb") as shm:
        return struct.unpack("=I", shm.read(20)[16:20])[0]

def text(limit):
    return "".join(chance.choice("abcdefgh ") for _ in range(chance.randrange(limit)))

seen = []
def transaction(*statements):
    before = frames()
    for statement in statements:
        if isinstance(statement, str):
            db.execute(statement)
        else:
            db.executemany(*statement)
    after = frames()
    assert after > before, (statements, before, after)
    with open(os.path.join(where, f"dump-{after}.sql"), "w") as dump:
        dump.write("\n".join(db.iterdump()))
    seen.append(after)

def rolled_back():
    # More than the cache holds, so that frames which never become a transaction are written and overwritten.
    db.execute("BEGIN")
    db.executemany("INSERT INTO t(a, b) VALUES (?, ?)", [(n, "x" * 500) for n in range(200)])
    db.execute("ROLLBACK")

transaction("CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, b TEXT)")
transaction("CREATE INDEX by_a ON t(a)")
for n in range(198):
    kind = n % 22
    if kind == 5:
        rolled_back()
    if kind == 9:
        rows = [(chance.randrange(1000), text(900)) for _ in range(120)]
        transaction("BEGIN", ("INSERT INTO t(a, b) VALUES (?, ?)", rows), "COMMIT")
    elif kind == 13:
        transaction("BEGIN", "DELETE FROM t WHERE id % 3 = 0", "UPDATE t SET a = a + 1 WHERE id % 7 = 0", "COMMIT")
    elif kind == 17:
        transaction(f"CREATE TABLE side{n}(x)", )
    elif kind == 18:
        transaction(f"DROP TABLE side{n - 1}")
    elif kind == 20:
        transaction("DELETE FROM t WHERE id % 2 = 0")
    elif kind == 21:
        transaction("VACUUM")
    else:
        transaction("BEGIN", ("INSERT INTO t(a, b) VALUES (?, ?)", [(n, text(300)) for _ in range(3)]), "COMMIT")
rolled_back()
assert len(seen) == 200
shutil.copy(path + "-wal", os.path.join(where, "copy-wal"))
with open(os.path.join(where, "frames.txt"), "w") as out:
    out.write("\n".join(map(str, seen)))
