#!/usr/bin/env python3
"""Merges gcov's JSON of one test, or the lcov files of many, into one file.

Bazel calls it with --coverage_dir (of a test) or --reports_file (a list of
lcov files), --filter_sources (patterns to leave out) and --output_file.
"""

import collections
import glob
import gzip
import json
import os
import re
import sys


def read_gcov(folder, skip, hits):
    pattern = os.path.join(folder, "**", "*.gcov.json.gz")
    for path in glob.glob(pattern, recursive=True):
        with gzip.open(path) as file:
            sources = json.load(file)["files"]
        for source in sources:
            name = source["file"]
            if name.startswith("/") or any(p.fullmatch(name) for p in skip):
                continue
            for line in source["lines"]:
                hits[name][line["line_number"]] += line["count"]


def read_lcov(path, hits):
    name = None
    with open(path) as file:
        for line in file:
            key, _, value = line.strip().partition(":")
            if key == "SF":
                name = value
            elif key == "DA":
                number, count = value.split(",")[:2]
                hits[name][int(number)] += int(count)


def main(args):
    options = collections.defaultdict(list)
    for arg in args:
        key, _, value = arg.lstrip("-").partition("=")
        options[key].append(value)
    hits = collections.defaultdict(collections.Counter)
    skip = [re.compile(p) for p in options["filter_sources"]]
    for folder in options["coverage_dir"]:
        read_gcov(folder, skip, hits)
    for reports in options["reports_file"]:
        with open(reports) as file:
            for path in filter(os.path.exists, file.read().split()):
                read_lcov(path, hits)
    with open(options["output_file"][0], "w") as out:
        for name, counts in sorted(hits.items()):
            print(f"SF:{name}", file=out)
            for number, count in sorted(counts.items()):
                print(f"DA:{number},{count}", file=out)
            print(f"LH:{sum(c > 0 for c in counts.values())}", file=out)
            print(f"LF:{len(counts)}\nend_of_record", file=out)


if __name__ == "__main__":
    main(sys.argv[1:])
