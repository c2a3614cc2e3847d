"""Runs the programs of checks against one service, and prints what became of them as a table.

`quick` leaves out what is slow, no argument runs all but what is to be named, and names run only these programs. The exit code is 1 when a check
failed that `expected.json` does not name, or one passed that it names.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "turso"))
from service import Service  # noqa: E402

AT_ONCE = 2
# The Rust clients are built first.
PROGRAM_TIMEOUT_S = 3600
CAUSE_LINES = 12


@dataclass(frozen=True)
class Program:
    """A program that prints a line of JSON for each check; `command` makes what starts it."""

    name: str
    command: list
    quick: bool
    parse: object = None
    env: object = None
    # Runs only where it is named.
    by_name: bool = False


def node(name, quick):
    return Program(name, [os.environ["CLIENTS_NODE"], str(HERE / "node" / f"{name}.mjs")], quick)


def python(name, quick):
    return Program(name, [sys.executable, str(HERE / "python" / f"{name}.py")], quick)


def parse_junit(home):
    """The results of the tests that `turso-serverless` comes with."""
    for case in ElementTree.parse(home / "junit.xml").iter("testcase"):
        failure = next((found for found in case if found.tag in ("failure", "error")), None)
        skipped = case.find("skipped")
        error = None if failure is None else failure.get("message")
        if skipped is not None:
            error = f"skipped: {skipped.get('message')}"
        yield {"client": "turso-serverless: its own tests", "version": "0.1.0", "check": case.get("name"), "error": error}


def programs():
    sources = Path(os.environ["CLIENTS_SOURCES"])
    own_tests = next(sources.glob("turso_serverless-*/tests"), sources)
    return [
        node("drizzle", True),
        node("prisma", True),
        node("libsql_client", True),
        node("serverless", False),
        node("mikro", True),
        node("kysely", True),
        node("hrana", False),
        node("libsql", True),
        node("sync", False),
        python("libsql_python", True),
        python("sqlalchemy_orm", True),
        python("serverless_python", True),
        python("pyturso", False),
        Program(
            "serverless_own",
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=junit.xml", str(own_tests)],
            True,
            parse_junit,
            lambda service: {"TURSO_DATABASE_URL": made(service, "own-tests")},
        ),
        Program("rust", [str(HERE / "rust" / "checks")], False),
        Program("turso_crate", [str(HERE / "rust" / "turso-tests")], False, by_name=True),
    ]


def made(service, log):
    service.create(log)
    return service.url(log)


def results(program, service, home):
    """What a program said, as a list of checks."""
    home = home / program.name
    home.mkdir()
    env = {**os.environ, "LOGMIRROR_URL": "http://{}:{}".format(*service.address), "TMPDIR": str(home)}
    if program.env is not None:
        env |= program.env(service)
    try:
        ran = subprocess.run(
            program.command, cwd=home, env=env, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return [{"client": program.name, "version": "", "check": "(the program)", "error": "took too long"}]
    if program.parse is not None:
        found = list(program.parse(home))
    else:
        found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{") and '"check"' in line]
        if ran.returncode != 0 or not found:
            said = "\n".join((ran.stdout + ran.stderr).splitlines()[-CAUSE_LINES:])
            found.append({"client": program.name, "version": "", "check": "(the program)", "error": f"ended with {ran.returncode}: {said}"})
    print(f"{program.name}: {len(found)} checks, {sum(one['error'] is not None for one in found)} failed", flush=True)
    return found


def report(found, expected, ran_all):
    """Print the table; returns whether all is as expected."""
    expected = {(one["client"], one["check"]): one["cause"] for one in expected}
    passed, failed, versions = Counter(), Counter(), {}
    left, wrong = [], []
    for one in found:
        client, key = one["client"], (one["client"], one["check"])
        versions[client] = one["version"] or versions.get(client, "")
        if one["error"] is None:
            passed[client] += 1
            if key in expected:
                wrong.append(f"{client}: {one['check']}: passed, and expected.json says that it fails")
        else:
            failed[client] += 1
            if key in expected:
                left.append(f"{client}: {one['check']}: {expected[key]}")
            else:
                wrong.append(f"{client}: {one['check']}: {one['error']}")
    if ran_all:
        seen = {(one["client"], one["check"]) for one in found}
        wrong += [f"{client}: {check}: in expected.json, and did not run" for client, check in expected if (client, check) not in seen]
    width = max(map(len, versions), default=0)
    print(f"\n{'client':{width}}  {'version':8}  passed  failed")
    for client in versions:
        print(f"{client:{width}}  {versions[client]:8}  {passed[client]:6}  {failed[client]:6}")
    if left:
        print("\nFailures that are known, and their causes:", *left, sep="\n  ")
    if wrong:
        print("\nNOT AS EXPECTED:", *wrong, sep="\n  ")
    return not wrong


def main():
    names = sys.argv[1:]
    chosen = programs()
    if names == ["quick"]:
        chosen = [program for program in chosen if program.quick]
    elif names:
        unknown = set(names) - {program.name for program in chosen}
        if unknown:
            sys.exit(f"there is no {', '.join(unknown)}: {', '.join(program.name for program in chosen)}")
        chosen = [program for program in chosen if program.name in names]
    else:
        chosen = [program for program in chosen if not program.by_name]
    home = Path(tempfile.mkdtemp(prefix="logmirror-client-suites-"))
    service = Service(home / "data", home / "journal")
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            ran = pool.map(lambda program: results(program, service, home), chosen)
            found = [one for checks in ran for one in checks]
        alive = service.runs
    finally:
        if service.runs:
            service.kill()
    good = report(found, json.loads((HERE / "expected.json").read_text()), not names)
    if not alive:
        print("\nTHE SERVICE ENDED:", *(home / "journal").read_text().splitlines()[-CAUSE_LINES:], sep="\n  ")
    shutil.rmtree(home, ignore_errors=True)
    sys.exit(0 if good and alive else 1)


if __name__ == "__main__":
    main()
