#!/usr/bin/env python3
"""Checks the source tree as a whole.

Usage: tools/lint.py CHECK
  layering  an #include or a BUILD label never points up:
            kernels <- comm <- mimo <- models <- cli
  length    a file has at most 400 lines, or its opening comment says why not
            in a sentence that begins with `Length:`
  format    clang-format 14 would change nothing (tools/fmt --fix corrects)
  documents what the documents link to is there, tests that they name too, and
            the README's measured figures are those of bench/results,
            which scripts printed

Prints one line a finding and exits with 1 if there is any.
"""

import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
LAYERS = ["kernels", "comm", "mimo", "models", "cli"]
MAX_LINES = 400
CXX = (".h", ".cc", ".cu", ".cuh")
CODE = (*CXX, ".py", ".bzl", "BUILD")
UP = re.compile(r'^\s*#\s*include\s*"(\w+)/|"//(\w+)[/:"]')


def files(endings):
    """Paths from the root of all files with these endings, sorted."""
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [
            s for s in subfolders if not s.startswith((".", "bazel-"))
        ]
        found += [
            os.path.relpath(os.path.join(folder, name), ROOT)
            for name in names
            if name.endswith(endings)
        ]
    return sorted(found)


def lines(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read().splitlines()


def layering():
    for path in files((*CXX, "BUILD")):
        layer = path.split("/")[0]
        if layer not in LAYERS:
            continue
        above = LAYERS[LAYERS.index(layer) + 1 :]
        for number, line in enumerate(lines(path), 1):
            for match in UP.finditer(line):
                if (target := match[1] or match[2]) in above:
                    yield f"{path}:{number}: {layer} must not use {target}"


def length():
    for path in files(CODE):
        text = lines(path)
        reason = any("Length:" in line for line in text[:40])
        if len(text) > MAX_LINES and not reason:
            yield f"{path}: {len(text)} lines, at most {MAX_LINES} wanted"


def format():
    result = subprocess.run(
        ["clang-format-14", "--dry-run", *files(CXX)],
        cwd=ROOT,
        text=True,
        stderr=subprocess.PIPE,
        check=True,
    )
    for path in sorted(set(re.findall(r"^(.+?):\d+:", result.stderr, re.M))):
        yield f"{path}: not formatted; run tools/fmt --fix"


def documents():
    for path in files(".md"):
        text = "\n".join(lines(path))
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            if not os.path.exists(
                os.path.join(ROOT, os.path.dirname(path), target)
            ):
                yield f"{path}: links to {target}, which is not there"
        tests = re.findall(r"\[`(\w+)\.(\w+)`\]\(([^)]+_test\.cc)\)", text)
        for suite, test, target in tests:
            source = os.path.join(os.path.dirname(path), target)
            if not re.search(
                rf"TEST(_F|_P)?\({suite},\s*{test}\)", "\n".join(lines(source))
            ):
                yield f"{path}: names {suite}.{test}, not in {target}"
        for target in re.findall(r"--config ((?:configs|examples)/[\w/-]+\.yaml)", text):
            if not os.path.exists(os.path.join(ROOT, target)):
                yield f"{path}: names {target}, which is not there"
    readme = "\n".join(lines("README.md")) + "\n"
    blocks = re.findall(
        r"<!-- measured: (\S+) -->\n(.*?)<!-- /measured -->", readme, re.S
    )
    if len(blocks) != readme.count("measured: ") or not blocks:
        yield "README.md: wanted measured: FILE and /measured in pairs"
    for result, block in blocks:
        if block != "\n".join(lines(result)) + "\n":
            yield f"README.md: the measured block is not {result}"


def main(check):
    findings = list(check())
    print(*findings, sep="\n")
    return 1 if findings else 0


if __name__ == "__main__":
    CHECKS = {f.__name__: f for f in (layering, length, format, documents)}
    if len(sys.argv) != 2 or sys.argv[1] not in CHECKS:
        sys.exit(__doc__)
    sys.exit(main(CHECKS[sys.argv[1]]))
