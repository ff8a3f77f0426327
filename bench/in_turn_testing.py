"""For tests of the scripts that run mimo and PyTorch in turn: a bundle in which
stand-ins print what both sides would."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

BENCH = pathlib.Path(__file__).resolve().parent


class InTurnTest(unittest.TestCase):
    SCRIPT = ""  # of bench/

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        (self.folder / "bundle.json").write_text('{"commit": "abc"}')
        (self.folder / "bench").mkdir()
        for name in (self.SCRIPT, "in_turn.py"):
            shutil.copy(BENCH / name, self.folder / "bench")

    def stand_in(self, path, text):
        """Writes a program of the bundle."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)

    def run_script(self, words, pytorch, code=0):
        """What the script prints; `pytorch` is the python3 of its other side.
        """
        self.stand_in("python", pytorch)
        done = subprocess.run(
            [f"bench/{self.SCRIPT}", *words], cwd=self.folder,
            env={**os.environ, "PYTHON": str(self.folder / "python")},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(done.returncode, code, done.stdout)
        return done.stdout
