#!/usr/bin/env python3
"""Runs tools/bazel_test.py with a stand-in for Bazel that plays events."""

import json
import os
import subprocess
import sys
import tempfile
import unittest

TOOL = os.path.join(
    os.path.dirname(os.path.realpath(__file__)), "bazel_test.py"
)
FAKE = """#!/bin/sh
for a; do case $a in --build_event_json_file=*) cp "$EVENTS" "${a#*=}";; esac; done
exit "$CODE"
"""
PASS = '<testcase name="a" status="run" result="completed"/>'
FAIL = '<testcase name="b"><failure message="x"/></testcase>'
ERROR = '<testcase name="c"><error message="crash"/></testcase>'
SKIP = '<testcase name="d" result="skipped"/>'
DISABLED = '<testcase name="e" status="notrun" result="suppressed"/>'


class BazelTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.events = []

    def path(self, name, text, mode=0o644):
        path = os.path.join(self.folder.name, name)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, mode)
        return path

    def result(self, label, status, xml=None, attempt=1, shard=1):
        outputs = []
        if xml is not None:
            name = f"{len(self.events)} x.xml"
            uri = self.path(name, xml).replace(" ", "%20")
            outputs = [{"name": "test.xml", "uri": "file://" + uri}]
        at = {"label": label, "attempt": attempt, "shard": shard}
        done = {"status": status, "testActionOutput": outputs}
        self.events.append({"id": {"testResult": at}, "testResult": done})

    def completed(self, label, **what):
        self.events.append(
            {"id": {"targetCompleted": {"label": label}}, **what}
        )

    def run_tool(self, code):
        """Returns the last line and the exit code."""
        lines = "".join(json.dumps(e) + "\n" for e in self.events)
        env = {
            "PATH": os.environ["PATH"],
            "BAZEL": self.path("bazel", FAKE, 0o755) + " --startup",
            "EVENTS": self.path("events", lines),
            "CODE": str(code),
        }
        done = subprocess.run(
            [sys.executable, TOOL, "//..."],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        return done.stdout.splitlines()[-1], done.returncode

    def suite(self, *cases):
        return f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"

    def test_all_kinds_of_cases(self):
        self.result("//a", "FAILED", self.suite(PASS, PASS, FAIL, ERROR))
        self.result("//b", "PASSED", self.suite(PASS, SKIP, DISABLED))
        self.assertEqual(
            self.run_tool(3), ("3 passed, 2 failed, 2 skipped", 3)
        )

    def test_shards_add_up_and_the_last_attempt_counts(self):
        self.result("//a", "PASSED", self.suite(PASS), shard=1)
        self.result("//a", "FAILED", self.suite(FAIL), shard=2)
        self.result("//a", "FLAKY", self.suite(PASS), shard=2, attempt=2)
        self.assertEqual(
            self.run_tool(0), ("2 passed, 0 failed, 0 skipped", 0)
        )

    def test_crash_timeout_and_torn_xml_are_failures(self):
        self.result("//a", "FAILED")
        self.result("//b", "TIMEOUT", "<testsuites><testsu")
        self.result("//c", "FAILED", self.suite(PASS))  # exit code only
        self.assertEqual(
            self.run_tool(3), ("1 passed, 3 failed, 0 skipped", 3)
        )

    def test_a_test_without_cases_fails(self):
        self.result("//a", "PASSED", self.suite())
        self.assertEqual(
            self.run_tool(0), ("0 passed, 1 failed, 0 skipped", 1)
        )

    def test_targets_that_do_not_build(self):
        self.result("//a", "PASSED", self.suite(PASS))
        self.completed("//a", completed={"success": True})
        self.completed("//b", aborted={"reason": "ANALYSIS_FAILURE"})
        self.completed("//c", completed={})
        skipped = {"reason": "SKIPPED"}
        self.completed("//cuda", aborted=skipped)
        self.completed("//cuda_test", aborted=skipped)
        self.events.append(
            {
                "id": {"targetConfigured": {"label": "//cuda_test"}},
                "configured": {"testSize": "MEDIUM"},
            }
        )
        self.assertEqual(
            self.run_tool(1), ("1 passed, 2 failed, 1 skipped", 1)
        )

    def test_interrupted(self):
        self.result("//a", "PASSED", self.suite(PASS))
        at = {"testResult": {"label": "//b", "attempt": 1}}
        self.events.append({"id": at, "aborted": {"reason": "USER_INTERRUPTED"}})
        self.assertEqual(
            self.run_tool(8), ("1 passed, 1 failed, 0 skipped", 8)
        )

    def test_nothing_ran(self):
        self.assertEqual(
            self.run_tool(1), ("0 passed, 1 failed, 0 skipped", 1)
        )
        self.assertEqual(
            self.run_tool(0), ("0 passed, 0 failed, 0 skipped", 1)
        )


if __name__ == "__main__":
    unittest.main()
