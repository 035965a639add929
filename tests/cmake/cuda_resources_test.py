"""What cmake/cuda_resources.py reads from nvcc, and what it refuses."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "cmake" / "cuda_resources.py"

TWO_ARCHITECTURES = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4goodv' for 'sm_80'
ptxas info    : Function properties for _Z4goodv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 2 barriers, 49152 bytes smem, 368 bytes cmem[0]
ptxas info    : Compile time = 36.663 ms
ptxas info    : Compiling entry function '_Z4goodv' for 'sm_120'
ptxas info    : Function properties for _Z4goodv
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size
"""
SPILL = """\
ptxas info    : Compiling entry function '_Z4goodv' for 'sm_90'
ptxas info    : Function properties for _Z4helpv
    8 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Function properties for _Z4goodv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers
"""
NUMBERS = ("registers", "barriers", "shared", "stack")
SERIALIZED = (
    "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to "
    "insufficient register resources for the wgmma pipeline in function '_Z4goodv'\n"
)
IGNORED = "ptxas info    : (C7508) setmaxnreg ignored; unable to determine register count at entry\n"


class CudaResources(unittest.TestCase):
    """Each test has a folder for the object file, and a program that plays nvcc."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.object = self.folder / "kernel.cu.o"

    def run_script(self, *arguments):
        """The script as a process of its own."""
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def compile(self, stderr, code=0):
        """Compiles with an nvcc that writes its object, prints this and ends with this code."""
        nvcc = (
            "import pathlib, sys; pathlib.Path(sys.argv[-1]).write_text('code');"
            f"sys.stderr.write({stderr!r}); sys.exit({code})"
        )
        return self.run_script("compile", sys.executable, "-c", nvcc, "-o", self.object)

    def report(self):
        """The report over the one object."""
        done = self.run_script("report", self.folder / "all", self.object)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads((self.folder / "all.json").read_text())

    def test_each_architecture_is_a_row(self):
        done = self.compile(TWO_ARCHITECTURES)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        first, second = self.report()
        self.assertEqual(first["architecture"], "sm_80")
        self.assertEqual(
            (first["registers"], first["barriers"], first["shared"], first["stack"]), (255, 2, 49152, 0)
        )
        self.assertEqual(second["architecture"], "sm_120")
        self.assertEqual(
            (second["registers"], second["barriers"], second["shared"], second["stack"]), (40, 1, 0, 16)
        )
        text = (self.folder / "all.txt").read_text().splitlines()
        self.assertEqual(len(text), 3)
        self.assertIn("255", text[1])

    def test_a_spill_fails_and_leaves_no_object(self):
        done = self.compile(SPILL)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"error: .*help.* spills on sm_90: 4 bytes stored, 8 loaded")
        self.assertFalse(self.object.exists())

    def test_serialized_wgmma_fails(self):
        done = self.compile(TWO_ARCHITECTURES + SERIALIZED)
        self.assertEqual(done.returncode, 1)
        self.assertIn("error: ptxas info    : (C7510)", done.stderr)

    def test_ignored_setmaxnreg_fails(self):
        self.assertEqual(self.compile(TWO_ARCHITECTURES + IGNORED).returncode, 1)

    def test_other_messages_are_shown(self):
        done = self.compile("kernel.cu(3): warning: unused\n" + TWO_ARCHITECTURES)
        self.assertEqual((done.returncode, done.stderr), (0, "kernel.cu(3): warning: unused\n"))

    def test_errors_of_nvcc_are_passed_on(self):
        done = self.compile("kernel.cu(3): error: wrong\n", code=2)
        self.assertEqual((done.returncode, done.stderr), (2, "kernel.cu(3): error: wrong\n"))


if __name__ == "__main__":
    unittest.main()
