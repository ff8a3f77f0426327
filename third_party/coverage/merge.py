#!/usr/bin/env python3
"""Merges gcov's *.gcov.json.gz (--coverage_dir) or lcov files (--reports_file) into one lcov file."""
import collections, glob, gzip, json, os, re, sys
opt = collections.defaultdict(list)
for a in sys.argv[1:]:
    k, _, v = a.lstrip("-").partition("=")
    opt[k].append(v)
lines = collections.defaultdict(collections.Counter)
skip = [re.compile(f) for f in opt["filter_sources"]]
for d in opt["coverage_dir"]:
    for p in glob.glob(os.path.join(d, "**", "*.gcov.json.gz"), recursive=True):
        with gzip.open(p) as f:
            for src in json.load(f)["files"]:
                name = src["file"]
                if not name.startswith("/") and not any(r.fullmatch(name) for r in skip):
                    for l in src["lines"]:
                        lines[name][l["line_number"]] += l["count"]
for rf in opt["reports_file"]:
    for p in filter(os.path.exists, open(rf).read().split()):
        name = None
        for l in open(p):
            if l.startswith("SF:"):
                name = l[3:].strip()
            elif l.startswith("DA:"):
                n, c = l[3:].split(",")[:2]
                lines[name][int(n)] += int(c)
with open(opt["output_file"][0], "w") as out:
    for name in sorted(lines):
        hit = sum(c > 0 for c in lines[name].values())
        body = "".join("DA:%d,%d\n" % (n, c) for n, c in sorted(lines[name].items()))
        out.write("SF:%s\n%sLH:%d\nLF:%d\nend_of_record\n" % (name, body, hit, len(lines[name])))
