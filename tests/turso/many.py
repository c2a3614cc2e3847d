"""What many databases cost, and what small pushes at once are worth. Prints figures, judges nothing.

Pushes are those of the real clients, two `/v2/pipeline` calls each, sent by plain sockets so that the machine measures
the service and not its load. `run many` runs it; take a release build.
"""

import argparse
import json
import os
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path

from service import Service, to_value

MIB = 1 << 20
BOOKKEEPING = "turso_sync_last_change_id"
INSIDE = {"type": "not", "cond": {"type": "is_autocommit"}}


class Pusher:
    """One client of one database, with a connection that is kept."""

    def __init__(self, service, log):
        self._host = "{}:{}".format(*service.address)
        self._path = f"/logs/{log}/v2/pipeline"
        self._socket = socket.create_connection(service.address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self._socket.makefile("rb")
        self._client = f"load-{log}"
        self._pushed = 0

    def create(self):
        self._batch([step("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, what TEXT)")])

    def push(self):
        """One row, as section 4 of the protocol has it."""
        self._batch([step(f"SELECT pull_gen, change_id FROM {BOOKKEEPING} WHERE client_id = ?", self._client)], True)
        self._pushed += 1
        changes = [
            step(
                f"CREATE TABLE IF NOT EXISTS {BOOKKEEPING}"
                " (client_id TEXT PRIMARY KEY, pull_gen INTEGER, change_id INTEGER)"
            ),
            step(
                'INSERT INTO "t"("id", "what") VALUES (?,?) ON CONFLICT("id") DO UPDATE SET "what" = excluded."what"',
                self._pushed,
                f"what row {self._pushed} of {self._client} says",
            ),
            step(
                f"INSERT INTO {BOOKKEEPING}(client_id, pull_gen, change_id) VALUES (?, ?, ?)"
                " ON CONFLICT(client_id) DO UPDATE SET pull_gen=excluded.pull_gen, change_id=excluded.change_id",
                self._client,
                0,
                self._pushed,
            ),
            step("COMMIT"),
        ]
        errors = self._batch([step("BEGIN IMMEDIATE"), *({**one, "condition": INSIDE} for one in changes)])
        if any(errors):
            raise RuntimeError(f"{errors}")

    def close(self):
        self._reader.close()
        self._socket.close()

    def _batch(self, steps, may_fail=False):
        body = json.dumps({"baton": None, "requests": [{"type": "batch", "batch": {"steps": steps}}]}).encode()
        head = f"POST {self._path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)
        status = self._reader.readline()
        length = 0
        while (line := self._reader.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        answer = self._reader.read(length)
        if b" 200 " not in status:
            raise RuntimeError(f"{status} {answer[:300]}")
        # The first question of a client finds no table: an error that is expected.
        return [] if may_fail else json.loads(answer)["results"][0]["response"]["result"]["step_errors"]


def step(sql, *args):
    return {"stmt": {"sql": sql, "args": [to_value(arg) for arg in args], "want_rows": sql.startswith("SELECT")}}


def rate(pushers, seconds):
    """Pushes a second of all of them together, and the median and 99th percentile of one in ms."""
    end = time.monotonic() + seconds
    taken, errors = [], []

    def work(pusher):
        try:
            while (start := time.monotonic()) < end:
                pusher.push()
                taken.append(time.monotonic() - start)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(pusher,)) for pusher in pushers]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    took = time.monotonic() - start
    taken.sort()
    return len(taken) / took, 1000 * statistics.median(taken), 1000 * taken[len(taken) * 99 // 100]


def report_memory(service, what):
    now, most = service.memory() / MIB, service.memory("VmHWM") / MIB
    print(f"{what}: {now:.0f} MiB resident, {most:.0f} MiB at most", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--databases", type=int, default=2000)
    parser.add_argument("--active", type=int, default=50)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", help="where the service keeps its data (default: the directory for temporary files)")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="logmirror-many-", dir=options.data) as home:
        service = Service(Path(home) / "data", Path(home) / "journal")
        try:
            measure(service, options)
        finally:
            service.kill()


def measure(service, options):
    logs = [f"db-{n}" for n in range(options.databases)]
    start = time.monotonic()
    for log in logs:
        service.create(log)
    print(f"{options.databases} databases created in {time.monotonic() - start:.1f} s")
    report_memory(service, "nothing written")

    # Every database is written once, so that none of them is a mere name.
    start = time.monotonic()
    for log in logs:
        pusher = Pusher(service, log)
        pusher.create()
        pusher.close()
    print(f"each written once in {time.monotonic() - start:.1f} s")
    report_memory(service, f"{options.databases} databases")

    active = [Pusher(service, log) for log in logs[: options.active]]
    pushes, median, late = rate(active, options.seconds)
    print(f"{options.active} active: {pushes:.0f} pushes/s, median {median:.1f} ms, 99 % within {late:.1f} ms")
    report_memory(service, f"{options.databases} databases, {options.active} active")
    for pusher in active:
        pusher.close()

    service.stop()
    start = time.monotonic()
    service.start()
    print(f"started anew in {time.monotonic() - start:.2f} s")
    report_memory(service, "after the restart")

    pushers = [Pusher(service, log) for log in logs[: options.clients]]
    for pusher in pushers:
        # Its counter began anew with the connection: rows are overwritten, which costs the same.
        pusher.push()
    ratios = []
    for _ in range(options.rounds):
        one, one_median, _ = rate(pushers[:1], options.seconds)
        many, many_median, _ = rate(pushers, options.seconds)
        ratios.append(many / one)
        print(
            f"1 client: {one:.0f} pushes/s, median {one_median:.2f} ms;"
            f" {options.clients} clients, each its database: {many:.0f} pushes/s, median {many_median:.2f} ms;"
            f" ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"ratio, median of {options.rounds}: {statistics.median(ratios):.2f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
