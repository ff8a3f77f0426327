#!/usr/bin/env python3
"""Measures the default job and writes what the README says of it.

  tools/measure_default_job.py [--seeds 1234,1,2]

Run from the project's root on an otherwise idle machine. For each seed: trains
configs/flags.yaml from nothing, then evaluates it. Then it times the training
step. Writes bench/results/default_job.md, puts the same text between the
README's `measured` marks, and keeps the first seed's contact sheet as
docs/images/flags.png. //tools:documents_test fails when the two differ.
"""
import datetime
import json
import os
import re
import subprocess
import sys
import time

CONFIG = "configs/flags.yaml"
RESULT = "bench/results/default_job.md"
MARKS = (f"<!-- measured: {RESULT} -->\n", "<!-- /measured -->")
BARS = {"heldout_style": "drawings held out by style",
        "unseen_country": "countries never seen",
        "kgeography": "a fifth artist, shifted"}


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def train(seed, folder):
    subprocess.run(["rm", "-rf", folder], check=True)
    start = time.time()
    subprocess.run([MIMO, "train", "--config", CONFIG, f"train.seed={seed}", f"checkpoint.save={folder}",
                    f"logging.metrics={folder}/metrics.jsonl", f"logging.tensorboard_dir={folder}/tensorboard"],
                   check=True)
    return time.time() - start


def tables(text):
    """evaluate's tables: split -> kind -> (asked, exact, chance, majority, nearest)."""
    out, split = {}, None
    for line in text.splitlines():
        if m := re.match(r"(\w+): lm_loss", line):
            split = out.setdefault(m.group(1), {})
        elif m := re.match(r"  (\w+) +(\d+) +([\d.]+)% +([\d.]+)% +([\d.]+)% +([\d.]+)%$", line):
            split[m.group(1)] = [float(x) for x in m.groups()[1:]]
    return out


def cpu():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


seeds = [1234, 1, 2]
if sys.argv[1:2] == ["--seeds"]:
    seeds = [int(s) for s in sys.argv[2].split(",")]
subprocess.run(["bazel", "build", "--noshow_progress", "//:mimo", "//bench:llava_step"], check=True)
MIMO = "bazel-bin/cli/mimo"
runs, seconds = [], []
os.makedirs("docs/images", exist_ok=True)
os.makedirs(os.path.dirname(RESULT), exist_ok=True)
for i, seed in enumerate(seeds):
    folder = f"runs/measure/{seed}"
    seconds.append(train(seed, folder))
    sheet = ["--contact-sheet", "docs/images/flags.png"] if i == 0 else []
    runs.append(tables(output(MIMO, "evaluate", "--config", CONFIG, "--checkpoint", folder, *sheet)))
step = json.loads(output("bazel-bin/bench/llava_step", "--device", "cpu"))

lines = [f"Measured on {datetime.date.today()} at commit {output('git', 'rev-parse', '--short', 'HEAD').strip()}, "
         f"{cpu()}, {step['threads']} threads. {len(seeds)} seeds, {min(seeds_s := [round(s) for s in seconds])} to "
         f"{max(seeds_s)} s of training each; exact match of generated text, the lowest to the highest seed.", "",
         "| split | question | asked | mimo | chance | majority | nearest neighbour |", "|---|---|---|---|---|---|---|"]
for split, label in BARS.items():
    for kind in ("name", "colours", "continent", "code"):
        if split == "unseen_country" and kind in ("name", "code"):
            continue  # cannot be known
        rows = [run[split][kind] for run in runs]
        exact = sorted(r[1] for r in rows)
        asked, _, chance, majority, nearest = rows[0]
        lines.append(f"| {label} | {kind} | {asked:.0f} | **{exact[0]:.1f} - {exact[-1]:.1f} %** | {chance:.1f} % | "
                     f"{majority:.1f} % | {nearest:.1f} % |")
lines += ["", f"The training step (32 samples of 40 tokens, `bench/llava_step`): {step['ms']:.0f} ms, "
          f"{step['tokens_per_second']:.0f} tokens/s, {1e6 * step['tflop'] / step['ms']:.0f} GFLOP/s, "
          f"{100 * step['share_of_gemm']:.0f} % of this machine's own sgemm peak ({1e3 * step['gemm_tflops']:.0f} GFLOP/s), "
          f"{1024 * step['peak_gib']:.0f} MiB of memory at the most.", ""]
text = "\n".join(lines)
open(RESULT, "w").write(text)
readme = open("README.md").read()
begin = readme.index(MARKS[0]) + len(MARKS[0])
end = readme.index(MARKS[1], begin)
open("README.md", "w").write(readme[:begin] + text + readme[end:])
print(text)
