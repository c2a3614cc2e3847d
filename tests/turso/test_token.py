"""A service with a token serves those who have it."""

import unittest

from clients import KINDS, ClientError
from scene import Scene

ALL = "SELECT n FROM t ORDER BY n"


class Token(Scene):
    TOKEN = "sesame"

    def test_clients_with_the_token_push_and_pull(self):
        self.sql("CREATE TABLE t(n INTEGER)")
        for n, kind in enumerate(KINDS):
            client = self.client(kind, kind, auth_token=self.TOKEN)
            client.execute("INSERT INTO t VALUES (?)", n)
            client.push()
        self.assertEqual(self.sql(ALL), [(0,), (1,)])

    def test_clients_without_it_or_with_another_get_nothing_and_leave_nothing(self):
        self.sql("CREATE TABLE t(n INTEGER)")
        before = self.revision()
        for kind in KINDS:
            for options in ({}, {"auth_token": "another"}):
                with self.subTest(kind, **options), self.assertRaisesRegex(ClientError, "401"):
                    self.client(kind, f"{kind}-{len(options)}", **options)
        self.assertEqual(self.revision(), before)


if __name__ == "__main__":
    unittest.main()
