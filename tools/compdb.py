#!/usr/bin/env python3
"""Writes compile_commands.json for clangd and clang-tidy; builds nothing.

Usage: tools/compdb.py [PATTERN], by default //...
"""

import json
import os
import shlex
import subprocess
import sys

GCC_ONLY = {"-fno-canonical-system-headers", "-Wno-free-nonheap-object"}


def bazel(*args):
    command = shlex.split(os.environ.get("BAZEL", "bazel"))
    return subprocess.check_output(
        [*command, *args], text=True, stderr=subprocess.DEVNULL
    )


def clang_cuda(args, source):
    """clang knows few of nvcc's flags: keep the ones both understand."""
    keep = ["clang++", "-x", "cuda", "--cuda-host-only", "-nocudalib"]
    for flag, value in zip(args, args[1:]):
        if flag.startswith(("-D", "-std=")):
            keep.append(flag)
        elif flag in ("-I", "-isystem"):
            keep += [flag, value]
    return [*keep, "-c", source]


def main(pattern="//..."):
    workspace = bazel("info", "workspace").strip()
    external = bazel("info", "output_base").strip() + "/external/"
    query = f'mnemonic("CppCompile|CudaCompile", {pattern})'
    actions = json.loads(
        bazel("aquery", "--output=jsonproto", "--include_artifacts=false", query)
    ).get("actions", [])
    commands = {}
    for action in actions:
        args = action["arguments"]
        source = next(a for a in args if a.endswith((".cc", ".c", ".cu")))
        if source.startswith("external/"):
            continue
        if action["mnemonic"] == "CudaCompile":
            args = clang_cuda(args, source)
        commands[source] = [
            external + a[len("external/") :] if a.startswith("external/") else a
            for a in args
            if a not in GCC_ONLY
        ]
    with open(os.path.join(workspace, "compile_commands.json"), "w") as out:
        json.dump(
            [
                {"directory": workspace, "file": source, "arguments": args}
                for source, args in sorted(commands.items())
            ],
            out,
            indent=1,
        )
    print(f"compile_commands.json: {len(commands)} files")


if __name__ == "__main__":
    main(*sys.argv[1:2])
