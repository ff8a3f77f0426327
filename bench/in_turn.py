"""What the scripts share that run mimo and PyTorch in turn on one machine.

They run from the project's root, or in a bundle, and need a python3 with torch
(named by $PYTHON if it is another one).
"""
import json
import os
import shlex
import subprocess
import sys
import time

PYTHON = os.environ.get("PYTHON", "python3")
BUNDLE = "bundle.json"  # in a bundle's tree alone


def take(words, flag, default):
    """Removes `flag VALUE` from the words and returns the value."""
    if flag not in words:
        return default
    at = words.index(flag)
    value = words[at + 1]
    del words[at:at + 2]
    return value


def programs(paths):
    """Path in the tree -> file of mimo's programs, built if not in a bundle."""
    if os.path.exists(BUNDLE):
        return {path: path for path in paths}
    labels = ["//" + ":".join(path.rsplit("/", 1)) for path in paths]
    subprocess.run(["bazel", "build", "--noshow_progress",
                    "--ui_event_filters=-info", *labels], check=True)
    return {path: f"bazel-bin/{path}" for path in paths}


def command_and_commit():
    """What a result begins with: the command, the date, the commit."""
    if os.path.exists(BUNDLE):
        with open(BUNDLE) as file:
            commit = json.load(file)["commit"]
    else:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE,
            text=True, check=True).stdout.strip()
    return (f"`{shlex.join(sys.argv)}`, {time.strftime('%Y-%m-%d')}, "
            f"commit {commit}")


def show(line):
    print(line.strip(), flush=True)
    return json.loads(line)


class PyTorch:
    """A script of PyTorch's side that builds and compiles once and then has its
    turns: in each it is told a line and answers with lines of JSON."""

    def __init__(self, script, *words):
        self.script = script
        self.process = subprocess.Popen(
            [PYTHON, script, *words], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)

    def tell(self, line=""):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # answer() says so

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.script}: its process ended, see above")
        return show(line)

    def end(self):
        self.process.kill()
        self.process.wait()
