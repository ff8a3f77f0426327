#!/usr/bin/env python3
"""run_tests, run_benches and mimo: one script, under three names, of a bundle
that tools/bundle packed for a GPU machine without Bazel.

  run_tests [--jobs N] [--wrap 'COMMAND ...'] [PREFIX ...]
      Runs the tests (those whose path begins with a PREFIX). The last line is
      `N passed, N failed, N skipped`, counted as tools/bazel_test.py does.
      --wrap puts a command before each: 'compute-sanitizer --error-exitcode 9'
  run_benches [PREFIX ...]
      Runs the benches, and PyTorch's side where python3 has it; what they
      print goes to benches.log too.
  mimo ARGS ...
      The mimo command.

The CUDA libraries are looked for in $LD_LIBRARY_PATH, $CUDA_HOME,
/usr/local/cuda, and pip's packages: $MIMO_PIP_NVIDIA, else the folder `nvidia`
of this python3. Wants Python 3.8 or newer and nothing from pip.
"""

import argparse
import concurrent.futures
import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ET

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from bazel_test import count_test  # noqa: E402

NAME = os.path.basename(sys.argv[0])
TEST_SECONDS = 900
BENCH_SECONDS = 300
TORCH_SECONDS = 1800  # torch.compile takes minutes, in each of its turns


def die(message):
    print(f"{NAME}: {message}", file=sys.stderr)
    sys.exit(2)


def unpack():
    """Unpacks the archive, once; returns its tree and the bundle's facts."""
    facts = (HERE / "bundle.json").read_text()
    tree = HERE / "files"
    done = tree / "bundle.json"
    if not done.exists() or done.read_text() != facts:
        new = pathlib.Path(tempfile.mkdtemp(prefix="files.", dir=HERE))
        with tarfile.open(HERE / "files.tar.xz") as archive:
            archive.extractall(new)
        shutil.rmtree(tree, ignore_errors=True)
        new.chmod(0o755)
        new.rename(tree)
        done.write_text(facts)
    return tree, json.loads(facts)


def library_folders(wanted):
    """The folders of the CUDA libraries; each of `wanted` is in one."""
    env = os.environ
    folders = env.get("LD_LIBRARY_PATH", "").split(":")
    for root in (env.get("CUDA_HOME"), "/usr/local/cuda"):
        folders += [f"{root}/lib64", f"{root}/lib"] if root else []
    pip = env.get("MIMO_PIP_NVIDIA")
    spec = None if pip else importlib.util.find_spec("nvidia")
    for root in [pip] if pip else (spec.submodule_search_locations if spec
                                   else []):
        folders += map(str, sorted(pathlib.Path(root).glob("*/lib")))
    folders.append("/usr/lib/x86_64-linux-gnu")
    for name in wanted:
        if not any(os.path.exists(f"{f}/{name}") for f in folders if f):
            die(f"{name} is in none of {':'.join(filter(None, folders))}; "
                "set CUDA_HOME, or install pip's nvidia packages")
    # The system's own folder is searched anyway, and last.
    return [f for f in folders[:-1] if f and os.path.isdir(f)]


def chosen(programs, prefixes):
    found = [p for p in programs if p.startswith(tuple(prefixes) or "")]
    return found or die(f"nothing begins with {' or '.join(prefixes)}")


def skip_reasons(xml):
    """Why cases of a test.xml were skipped: the last lines of the messages."""
    try:
        skips = ET.parse(xml).getroot().iter("skipped")
        return {s.get("message", "").splitlines()[-1] for s in skips
                if s.get("message")}
    except (OSError, ET.ParseError):
        return set()


def run_test(tree, test, wrap):
    """Returns (counts, seconds, what it printed, why it skipped) of one test
    program."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        xml = pathlib.Path(scratch) / "test.xml"
        env = {**os.environ, "TEST_TMPDIR": scratch, "XML_OUTPUT_FILE": xml}
        try:
            done = subprocess.run(
                [*wrap, tree / test], cwd=tree, env=env, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, errors="replace",
                timeout=TEST_SECONDS)
            good, printed = done.returncode == 0, done.stdout
        except subprocess.TimeoutExpired:
            good, printed = False, f"took more than {TEST_SECONDS} s\n"
        counts = count_test(test, xml.as_uri(), good)
        reasons = skip_reasons(xml)
    return counts, time.monotonic() - start, printed, reasons


def run_tests(tree, facts, words):
    parser = argparse.ArgumentParser(prog=NAME)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--wrap", type=shlex.split, default=[])
    parser.add_argument("prefixes", nargs="*", metavar="PREFIX")
    args = parser.parse_args(words)
    tests = chosen(facts["tests"], args.prefixes)
    total, skipped_because = [0, 0, 0], set()
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        running = [(test, pool.submit(run_test, tree, test, args.wrap))
                   for test in tests]
        for test, result in running:
            counts, seconds, printed, reasons = result.result()
            skipped_because |= reasons
            total = [t + c for t, c in zip(total, counts)]
            if counts[1]:
                print(printed, end="")
            print("%s: %d passed, %d failed, %d skipped, %.1f s" %
                  (test, *counts, seconds), flush=True)
    for reason in sorted(skipped_because):
        print(f"skipped: {reason}")
    passed, failed, skipped = total
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 0 if passed and not failed else 1


def run_benches(tree, facts, words):
    limits = {bench: BENCH_SECONDS for bench in facts["benches"]}
    if importlib.util.find_spec("torch"):
        limits.update({b: TORCH_SECONDS for b in facts["torch_benches"]})
    failed = 0
    with open(HERE / "benches.log", "a") as log:

        def say(text):
            print(text, end="", flush=True)
            log.write(text)
            log.flush()

        gpu = subprocess.run(
            "nvidia-smi --query-gpu=name,driver_version --format=csv,noheader"
            " || echo no GPU", shell=True, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL).stdout
        say(f"{time.strftime('%Y-%m-%d')}, commit {facts['commit']}, {gpu}")
        for bench in chosen(list(limits), words):
            say(f"\n== {bench}\n")
            process = subprocess.Popen(
                ["timeout", str(limits[bench]), *shlex.split(bench)],
                cwd=tree, text=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            nothing = False  # of a filter, Google Benchmark's exit code is 0
            for line in process.stdout:
                nothing |= "Failed to match any benchmarks" in line
                say(line)
            if process.wait() or nothing:
                say(f"exit code {process.returncode}\n")
                failed += 1
    return 1 if failed else 0


def main(words):
    if NAME not in ("run_tests", "run_benches", "mimo"):
        sys.exit(__doc__)
    if NAME != "mimo" and words[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    tree, facts = unpack()
    os.environ["LD_LIBRARY_PATH"] = ":".join(
        library_folders(facts["cuda_libraries"]))
    if NAME == "mimo":
        os.execv(tree / "cli/mimo", ["mimo", *words])
    return {"run_tests": run_tests, "run_benches": run_benches}[NAME](
        tree, facts, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
