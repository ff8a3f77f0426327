#!/usr/bin/env python3
"""Packs a small bundle and runs it as on another machine, without a GPU.

Its arguments are programs of this build: a kernel's test, then its bench.
"""

import importlib.machinery
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

TOOLS = pathlib.Path(__file__).resolve().parent
PROGRAMS = sys.argv[1:]
LOADER = importlib.machinery.SourceFileLoader("bundle", str(TOOLS / "bundle"))
SPEC = importlib.util.spec_from_loader("bundle", LOADER)
bundle = importlib.util.module_from_spec(SPEC)
LOADER.exec_module(bundle)

XML = "<testsuite><testcase name='a'/>%s</testsuite>"
FAILS = f"""#!/bin/sh
echo why it failed
echo "{XML % "<testcase name='b'><failure/></testcase>"}" >$XML_OUTPUT_FILE
exit 1
"""
CRASHES = "#!/bin/sh\nkill -SEGV $$\n"
READS_DATA = f"""#!/bin/sh
[ "$(cat tests/data.txt)" = data ] && [ -d "$TEST_TMPDIR" ] &&
echo "{XML % ""}" >$XML_OUTPUT_FILE
"""
WRAPPED = f"""#!/bin/sh
[ "$WRAPPED" = yes ] && echo "{XML % ""}" >$XML_OUTPUT_FILE
"""


class BundleTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.out = self.folder / "out"

    def script(self, text):
        path = self.folder / f"script{len(list(self.folder.iterdir()))}"
        path.write_text(text)
        path.chmod(0o755)
        return path

    def pack(self, tests, benches=(), files=()):
        bundle.pack(self.out, {**dict(tests), **dict(benches)}, dict(files),
                    {"commit": "c", "tests": sorted(dict(tests)),
                     "benches": [f"{b} --benchmark_filter=Cuda"
                                 for b in dict(benches)],
                     "torch_benches": []})

    def run_it(self, *command, code=0, **env):
        """Returns the last line that a script of the bundle prints."""
        done = subprocess.run(
            [self.out / command[0], *command[1:]], cwd="/",
            env={"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": "",
                 **env},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(done.returncode, code, done.stdout)
        self.printed = done.stdout
        return done.stdout.splitlines()[-1]

    def test_programs_of_this_build(self):
        test, bench = PROGRAMS
        self.pack([("k/test", test)], [("k/bench", bench)])
        for _ in range(2):  # unpacks; finds it unpacked
            line = self.run_it("run_tests")
            counts = re.fullmatch(r"(\d+) passed, 0 failed, (\d+) skipped",
                                  line)
            self.assertTrue(counts, line)
            self.assertGreater(int(counts[1]), 0)  # on the CPU
            self.assertGreater(int(counts[2]), 0)  # on the GPU, by name
            self.assertIn("\nskipped: ", self.printed)
        self.run_it("run_benches", "k/")
        self.assertIn("== k/bench --benchmark_filter=Cuda\n", (self.out / "benches.log").read_text())

    def test_a_filter_without_benches(self):
        self.pack([], [("b", self.script(
            "#!/bin/sh\necho 'Failed to match any benchmarks against Cuda'"))])
        self.run_it("run_benches", "b", code=1)

    def test_counts(self):
        self.pack([("a/fails", self.script(FAILS)),
                   ("a/crashes", self.script(CRASHES)),
                   ("b/reads", self.script(READS_DATA))],
                  files=[("tests/data.txt", self.script("data"))])
        self.assertEqual(self.run_it("run_tests", code=1),
                         "2 passed, 2 failed, 0 skipped")
        self.assertIn("why it failed", self.printed)
        self.assertEqual(self.run_it("run_tests", "b/"),
                         "1 passed, 0 failed, 0 skipped")
        self.assertEqual(self.run_it("run_tests", "x", code=2),
                         "run_tests: nothing begins with x")

    def test_wrap(self):
        self.pack([("t", self.script(WRAPPED))])
        self.assertEqual(self.run_it("run_tests", code=1),
                         "0 passed, 1 failed, 0 skipped")
        self.assertEqual(self.run_it("run_tests", "--wrap", "env WRAPPED=yes"),
                         "1 passed, 0 failed, 0 skipped")

    def test_a_newer_bundle_replaces_what_was_unpacked(self):
        self.pack([("t", self.script(FAILS))])
        self.run_it("run_tests", code=1)
        self.pack([("t2", self.script(WRAPPED))])
        self.run_it("run_tests", WRAPPED="yes")

    def test_same_inputs_same_bits(self):
        bits = []
        for _ in range(2):
            self.pack([("t", PROGRAMS[1])])
            bits.append((self.out / "files.tar.xz").read_bytes())
        self.assertEqual(bits[0], bits[1])

    def test_finds_cuda_libraries(self):
        self.pack([("t", self.script(WRAPPED))])
        facts = self.out / "bundle.json"
        facts.write_text(facts.read_text().replace(
            '"cuda_libraries": []', '"cuda_libraries": ["libcu_x.so.1"]'))
        self.assertRegex(
            self.run_it("run_tests", code=2, CUDA_HOME="/nowhere"),
            "^run_tests: libcu_x.so.1 is in none of /nowhere/lib64:.*; set "
            "CUDA_HOME, or install pip's nvidia packages$")
        home = self.folder / "cuda/lib64"
        pip = self.folder / "nvidia/cu13/lib"
        for folder in (home, pip):
            folder.mkdir(parents=True)
            (folder / "libcu_x.so.1").touch()
        for env in ({"CUDA_HOME": str(home.parent)},
                    {"LD_LIBRARY_PATH": str(home)},
                    {"MIMO_PIP_NVIDIA": str(pip.parent.parent)},
                    {"PYTHONPATH": str(self.folder)}):
            self.run_it("run_tests", WRAPPED="yes", **env)

    def test_needs(self):
        line = " 0x01 (NEEDED)   Shared library: [%s]\n"
        name = "0x00a0:   Name: %s  Flags: none  Version: 5\n"
        fine = (line % "libc.so.6" + line % "libcublasLt.so.13",
                name % "GLIBC_2.36" + name % "GLIBCXX_3.4.9")
        self.assertEqual(bundle.needs("p", *fine), ["libcublasLt.so.13"])
        for dynamic, versions, message in [
            (line % "libpng16.so.16", "",
             "p needs libpng16.so.16, wanted it linked statically"),
            ("", name % "GLIBC_2.38",
             "p needs GLIBC 2.38, wanted at most 2.36"),
        ]:
            with self.assertRaisesRegex(SystemExit, message):
                bundle.needs("p", dynamic, versions)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
