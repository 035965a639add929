"""What tests/gpu_check.py makes of the programs that it runs."""

import io
import os
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import gpu_check


class Steps(unittest.TestCase):
    """Each test runs programs of its own in place of the real ones."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.log = io.BytesIO()

    def program(self, name, text):
        """A shell script of this name."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    def run_program(self, name, text, **step):
        """What the summary says of a program."""
        return gpu_check.run(gpu_check.Step("a step", "tests", [self.program(name, text)], **step), self.log)

    def test_what_ends_well_has_passed_and_is_in_the_log(self):
        found = self.run_program("tool", "echo to stdout; echo to stderr >&2")
        self.assertEqual((found["result"], found["code"]), ("passed", 0))
        for text in (b"== a step", b"to stdout", b"to stderr"):
            self.assertIn(text, self.log.getvalue())

    def test_an_exit_code_is_a_failure(self):
        found = self.run_program("tool", "exit 9")
        self.assertEqual((found["result"], found["code"]), ("failed", 9))

    def test_a_program_that_is_not_there_is_a_failure(self):
        found = gpu_check.run(gpu_check.Step("a step", "tests", [str(self.folder / "nowhere")]), self.log)
        self.assertEqual(found["result"], "failed")

    def test_what_cannot_run_is_not_run(self):
        found = self.run_program("tool", "exit 9", needs="no such tool")
        self.assertEqual((found["result"], found["because"]), ("not run", "no such tool"))

    def test_the_environment_reaches_the_program(self):
        self.run_program("tool", "echo is=$FLASHMLA_CUDA_SHARED_MEMORY", environment=gpu_check.SMALL)
        self.assertIn(b"is=101376", self.log.getvalue())

    def test_gtest_programs_are_counted(self):
        found = self.run_program(
            "test_some", "echo '[  PASSED  ] 7 tests.'; echo '[  SKIPPED ] 2 tests, listed:'"
        )
        self.assertEqual((found["result"], found["passed"], found["skipped"]), ("passed", 7, 2))

    def test_a_gtest_program_without_tests_is_a_failure(self):
        found = self.run_program("test_some", "echo '[  PASSED  ] 0 tests.'")
        self.assertEqual((found["result"], found["because"]), ("failed", "no test passed"))

    def test_without_a_gpu_it_says_so(self):
        self.program("nvidia-smi", "exit 6")
        environment = os.environ | {"PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}"}
        command = [sys.executable, gpu_check.__file__, "--out", str(self.folder / "out")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("gpu-check: no GPU", done.stderr)


if __name__ == "__main__":
    unittest.main()
