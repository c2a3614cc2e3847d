"""turso-serverless for Python. Its own tests are run as well: see suite.py."""

import turso_serverless

from checks import Checks
from dbapi import dbapi_checks

dbapi_checks(
    Checks("turso-serverless (Python)", "turso-serverless"),
    turso_serverless.connect,
    lambda error: isinstance(error, turso_serverless.IntegrityError),
)
