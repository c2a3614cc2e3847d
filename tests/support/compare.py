"""Compares restored databases with what SQLite had. Arguments: directory with restored-N.db and dump-N.sql."""
import glob, os, re, sqlite3, sys

where = sys.argv[1]
count = 0
for path in sorted(glob.glob(os.path.join(where, "restored-*.db"))):
    frame = re.search(r"restored-(\d+)\.db$", path).group(1)
    db = sqlite3.connect(path)
    check = db.execute("PRAGMA integrity_check").fetchall()
    assert check == [("ok",)], (frame, check)
    with open(os.path.join(where, f"dump-{frame}.sql")) as dump:
        assert "\n".join(db.iterdump()) == dump.read(), f"frame {frame} is not what SQLite had"
    assert os.path.getsize(path) == db.execute("PRAGMA page_count").fetchone()[0] * db.execute("PRAGMA page_size").fetchone()[0]
    db.close()
    count += 1
print(count)
