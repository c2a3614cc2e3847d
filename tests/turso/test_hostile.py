"""Bytes no client sends: a clear 4xx each, memory that stays where it was, and the next client is served as ever."""

import http.client
import socket
import struct
import unittest

import pull
from clients import KINDS
from scene import LOG, Scene

MIB = 1 << 20
MEMORY_MAX = 400 * MIB
BODY_BYTES = 200 * MIB


def bitmap(containers, cookie=12346):
    """A RoaringBitmap head that claims so many containers, each full."""
    heads = b"".join(struct.pack("<HH", key & 0xFFFF, 0xFFFF) for key in range(min(containers, 0x10000)))
    return struct.pack("<II", cookie, containers) + heads


def full_bitmap():
    """All 2^32 values, as runs: sound, and 512 KiB."""
    count = 0x10000
    head = struct.pack("<I", 12347 | (count - 1) << 16) + b"\xff" * (count // 8)
    heads = b"".join(struct.pack("<HH", key, 0xFFFF) for key in range(count))
    start = len(head) + len(heads) + 4 * count
    offsets = b"".join(struct.pack("<I", start + 6 * key) for key in range(count))
    return head + heads + offsets + struct.pack("<HHH", 1, 0, 0xFFFF) * count


UNREADABLE_PULLS = {
    "a varint without an end": b"\x0a" + b"\xff" * 9,
    "a tag without an end": b"\x80",
    "a varint of eleven bytes": b"\x08" + b"\x80" * 10 + b"\x01",
    "a length of 2^63": b"\x1a" + pull.varint(1 << 63) + b"1",
    "a length beyond the body": b"\x1a\x05abc",
    "field number zero": b"\x02\x00",
    "a group that ends without a begin": b"\x0c",
    "text that is not UTF-8": pull.text(3, b"\xff\xfe"),
    "a wire type that does not exist": b"\x0f",
    "groups 100,000 deep": b"\x4b" * 100_000,
    "a bitmap that is none": pull.text(5, b"not a bitmap"),
    "a bitmap that claims 2^32 values and brings none": pull.text(5, bitmap(0x10000)),
    "a bitmap that claims 2^32 containers": pull.text(5, bitmap(0xFFFFFFFF)),
    "a bitmap cut in its head": pull.text(5, b"\x3b\x30\xff"),
    "a bitmap cut in a container": pull.text(5, full_bitmap()[:-1]),
    "a revision from the future": pull.text(3, "4000000000"),
    "a revision that is none": pull.text(3, "no revision"),
    "a revision of a megabyte": pull.text(3, "9" * MIB),
    "an upper end that is none": pull.text(2, "no revision"),
    "an encoding that does not exist": pull.number(1, 77),
    "a stream kind that does not exist": pull.number(8, 77),
}


def with_argument(value):
    """A statement with one argument."""
    return b'{"requests": [{"type": "execute", "stmt": {"sql": "SELECT ?", "args": [' + value + b"]}}]}"


def with_condition(condition):
    """A batch of one step."""
    step = b'{"stmt": {"sql": "SELECT 1"}, "condition": ' + condition + b"}"
    return b'{"requests": [{"type": "batch", "batch": {"steps": [' + step + b"]}}]}"


UNREADABLE_PIPELINES = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "no requests": b"{}",
    "requests that are none": b'{"requests": 7}',
    "JSON 1,000 levels deep": b'{"requests":' + b"[" * 1000 + b"]" * 1000 + b"}",
    "JSON 1,000,000 levels deep": b"[" * 1_000_000,
    "a condition 1,000 levels deep": with_condition(
        b'{"type":"not","cond":' * 1000 + b'{"type":"is_autocommit"}' + b"}" * 1000
    ),
    "bytes that are not UTF-8": b'{"requests": [{"type": "sequence", "sql": "\xff\xfe"}]}',
    "a statement that is a number": b'{"requests": [{"type": "execute", "stmt": 5}]}',
    "a baton never given": b'{"baton": "never given", "requests": []}',
    "base64 that is none": with_argument(b'{"type": "blob", "base64": "!"}'),
    "an integer that is none": with_argument(b'{"type": "integer", "value": "9223372036854775808"}'),
}


class Hostile(Scene):
    def setUp(self):
        super().setUp()
        self.transaction("CREATE TABLE t(n INTEGER, who TEXT)", "INSERT INTO t VALUES (0, 'http')")

    def assert_served_as_ever(self):
        self.assertTrue(self.service.runs)
        self.assertLess(self.service.memory("VmHWM"), MEMORY_MAX)
        for kind in KINDS:
            with self.subTest(kind):
                client = self.client(kind, f"{kind}-after")
                client.execute("INSERT INTO t VALUES (1, ?)", kind)
                client.push()
                self.assertIn((1, kind), self.sql("SELECT n, who FROM t"))

    def assert_refused(self, path, bodies):
        for name, body in bodies.items():
            with self.subTest(name):
                answer = self.service.call("POST", f"/logs/{LOG}/{path}", body)
                self.assertTrue(400 <= answer.status < 500, answer)
                self.assertTrue(answer.body.decode().strip(), "an error says why")
                self.assertTrue(self.service.runs)

    def test_pulls_that_cannot_be_read_are_refused(self):
        self.assert_refused("pull-updates", UNREADABLE_PULLS)
        self.assert_served_as_ever()

    def test_pipelines_that_cannot_be_read_are_refused(self):
        self.assert_refused("v2/pipeline", UNREADABLE_PIPELINES)
        self.assert_served_as_ever()

    def test_unknown_fields_are_passed_over(self):
        unknown = pull.number(99, 7) + pull.text(1000, b"x" * 1000) + pull.varint(98 << 3 | 5) + b"1234"
        answer = self.service.call("POST", f"/logs/{LOG}/pull-updates", unknown)
        self.assertEqual(answer.status, 200, answer)
        header, pages = pull.parse(answer.body)
        self.assertEqual(sorted(pages), list(range(header.pages)))
        request = {
            "baton": None,
            "unknown": [1],
            "requests": [{"type": "execute", "new": {}, "stmt": {"sql": "SELECT 1", "x": 1}}],
        }
        answer = self.service.call("POST", f"/logs/{LOG}/v2/pipeline", request)
        self.assertEqual(answer.json()["results"][0]["type"], "ok", answer)

    def test_a_bitmap_of_all_2_to_the_32_pages_costs_no_more_than_the_pages_there_are(self):
        answer = self.service.call("POST", f"/logs/{LOG}/pull-updates", pull.text(5, full_bitmap()))
        if answer.status == 200:
            header, pages = pull.parse(answer.body)
            self.assertEqual(sorted(pages), list(range(header.pages)))
        else:
            self.assertTrue(400 <= answer.status < 500, answer)
        self.assert_served_as_ever()

    def test_an_answer_of_millions_of_rows_does_not_fill_the_memory(self):
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, hex(zeroblob(500)) FROM n"
        request = {"requests": [{"type": "execute", "stmt": {"sql": endless}}]}
        answer = self.service.call("POST", f"/logs/{LOG}/v2/pipeline", request)
        if answer.status == 200:
            self.assertEqual(answer.json()["results"][0]["type"], "error", answer)
        else:
            self.assertTrue(400 <= answer.status < 500, answer)
        self.assert_served_as_ever()

    def test_connections_that_say_nothing_or_half_of_it_hold_up_nobody(self):
        head = f"POST /logs/{LOG}/v2/pipeline HTTP/1.1\r\nhost: h\r\ncontent-length: 1000\r\n\r\n".encode()
        for said in (b"", b"POST /lo", head, head + b'{"requests": ['):
            for _ in range(25):
                connection = socket.create_connection(self.service.address)
                self.addCleanup(connection.close)
                connection.sendall(said)
        self.assert_served_as_ever()

    def test_a_body_of_200_mb_is_refused(self):
        for path in ("pull-updates", "v2/pipeline"):
            for chunked in (False, True):
                with self.subTest(path, chunked=chunked):
                    answer = self.send_much(path, chunked)
                    self.assertTrue(400 <= answer.status < 500, answer.status)
                    self.assertTrue(answer.read().decode().strip(), "an error says why")
        self.assert_served_as_ever()

    def send_much(self, path, chunked):
        """Send 200 MB, or as much of it as the service takes, and return its answer."""
        connection = http.client.HTTPConnection(*self.service.address, timeout=50)
        self.addCleanup(connection.close)
        connection.putrequest("POST", f"/logs/{LOG}/{path}")
        if chunked:
            connection.putheader("transfer-encoding", "chunked")
        else:
            connection.putheader("content-length", str(BODY_BYTES))
        piece = b" " * MIB
        try:
            connection.endheaders()
            for _ in range(BODY_BYTES // MIB):
                connection.send(b"%x\r\n%b\r\n" % (MIB, piece) if chunked else piece)
            if chunked:
                connection.send(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # it need not take it all: its answer is there to be read
        return connection.getresponse()


if __name__ == "__main__":
    unittest.main()
