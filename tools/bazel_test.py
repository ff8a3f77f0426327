#!/usr/bin/env python3
"""Runs `bazel test ARGS...` and counts test cases.

The last line is `N passed, N failed, N skipped`. A case is what a test's own
test.xml reports. What never became a case is counted too: a test that does
not build, crashes, times out or writes no readable test.xml is one failed; a
test that cannot be built on this machine (no CUDA, say) is one skipped. The
exit code is Bazel's, and never 0 unless something passed and nothing failed.

$BAZEL names the bazel to run, with any startup options.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import urllib.parse
import xml.etree.ElementTree as ET

GOOD = ("PASSED", "FLAKY")


def count_cases(uri):
    """Returns (passed, failed, skipped) of the test.xml at a file:// URI."""
    passed = failed = skipped = 0
    path = urllib.parse.unquote(urllib.parse.urlparse(uri).path)
    for case in ET.parse(path).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif (
            case.find("skipped") is not None
            or case.get("result") == "skipped"
            or case.get("status") == "notrun"
        ):
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def count_test(label, uri, good):
    """Returns (passed, failed, skipped) of a test that wrote its test.xml at
    `uri` and says itself whether it went well."""
    try:
        p, f, s = count_cases(uri)
    except (OSError, ET.ParseError):
        print(f"{label}: no readable test.xml")
        p = f = s = 0
    if not good:
        f = max(f, 1)
    elif p + f + s == 0:
        print(f"{label}: ran no test case")
        f = 1
    return p, f, s


class Events:
    """What Bazel's build event file says about the tests."""

    def __init__(self, lines):
        self.results = {}  # (label, run, shard) -> its last attempt
        self.tests = set()
        self.unbuildable = set()
        self.broken = set()
        for line in lines:
            event = json.loads(line)
            for kind, about in event["id"].items():
                if kind == "testResult":
                    # An interrupted build says "aborted" in its place.
                    missing = {"status": "INCOMPLETE"}
                    self._result(about, event.get("testResult", missing))
                elif kind == "targetConfigured":
                    if "testSize" in event.get("configured", {}):
                        self.tests.add(about["label"])
                elif kind == "targetCompleted":
                    self._completed(about["label"], event)

    def _result(self, about, result):
        key = (about["label"], about.get("run", 1), about.get("shard", 1))
        attempt = about.get("attempt", 1)
        if attempt >= self.results.get(key, (0, None))[0]:
            self.results[key] = (attempt, result)

    def _completed(self, label, event):
        if event.get("aborted", {}).get("reason") == "SKIPPED":
            self.unbuildable.add(label)
        elif not event.get("completed", {}).get("success"):
            self.broken.add(label)


def count(events):
    """Returns (passed, failed, skipped) over all targets."""
    passed = failed = skipped = 0
    for (label, _, _), (_, result) in sorted(events.results.items()):
        xml = [
            o["uri"]
            for o in result.get("testActionOutput", [])
            if o["name"] == "test.xml" and "uri" in o
        ]
        p, f, s = count_test(
            label, xml[0] if xml else "", result["status"] in GOOD
        )
        passed, failed, skipped = passed + p, failed + f, skipped + s
    ran = {label for label, _, _ in events.results}
    for label in sorted(events.broken - ran):
        print(f"{label}: does not build")
        failed += 1
    return passed, failed, skipped + len(events.unbuildable & events.tests)


def main(args):
    bazel = shlex.split(os.environ.get("BAZEL", "bazel"))
    with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
        code = subprocess.call(
            [*bazel, "test", "--build_event_json_file=" + file.name, *args],
            stdin=subprocess.DEVNULL,
        )
        with open(file.name) as lines:  # Bazel may have replaced the file
            events = Events(lines)
    passed, failed, skipped = count(events)
    if code and not failed:  # a broken BUILD file, say
        failed = 1
    if failed or not passed:
        code = code or 1
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
