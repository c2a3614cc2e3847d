"""A process with one open database of the published Python client, driven by lines of JSON; `client.mjs` is its twin.

A request is `{"op": ..., ...}`, its answer `{"ok": value}` or `{"error": text}`. A client that hangs or panics takes
only this process with it.
"""

import json
import sys

from turso.sync import PartialSyncOpts, PartialSyncPrefixBootstrap, PartialSyncQueryBootstrap, connect


def open_database(path, url, options):
    bootstrap = None
    if "prefix" in options:
        bootstrap = PartialSyncPrefixBootstrap(length=options.pop("prefix"))
    if "query" in options:
        bootstrap = PartialSyncQueryBootstrap(query=options.pop("query"))
    partial = None
    if bootstrap is not None:
        partial = PartialSyncOpts(bootstrap, options.pop("segment_size", None), options.pop("prefetch", None))
    return connect(path, url, partial_sync_experimental=partial, isolation_level=None, **options)


class Driver:
    def __init__(self):
        self.connection = None

    def open(self, path, url, options):
        self.connection = open_database(path, url, options)

    def execute(self, sql, args):
        self.connection.execute(sql, args).close()

    def execute_many(self, sql, rows):
        """All rows in one transaction."""
        self.execute("BEGIN", [])
        for row in rows:
            self.execute(sql, row)
        self.execute("COMMIT", [])

    def rows(self, sql, args):
        return [list(row) for row in self.connection.execute(sql, args).fetchall()]

    def push(self):
        self.connection.push()

    def pull(self):
        return self.connection.pull()

    def checkpoint(self):
        self.connection.checkpoint()

    def revision(self):
        return self.connection.stats().revision

    def close(self):
        self.connection.close()


def main():
    driver = Driver()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": getattr(driver, request.pop("op"))(**request)}
        except Exception as error:  # whatever the client raises is the tests' to judge
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


main()
