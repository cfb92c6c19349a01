"""TensorFlow's lines about itself are filtered; everything else reaches the screen."""

from __future__ import annotations

import subprocess

import pytest

from kerasseg_cli.tf_logs import is_chatter


@pytest.mark.parametrize(
    ("line", "chatter"),
    [
        (b"I0000 00:00:1795424079.508855   19664 port.cc:153] oneDNN custom operations are on.\n", True),
        (b"W0000 00:00:1795424079.508855   19664 x.cc:1] something\n", True),
        (b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n", True),
        (b"2026-11-23 08:00:00.123: I tensorflow/core/util/port.cc:153] oneDNN\n", True),
        (b"E0000 00:00:1.9  1 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error\n", True),
        (b"E0000 00:00:1.9  1 executor.cc:1] OOM when allocating tensor\n", False),
        (b"F0000 00:00:1.9  1 check.cc:1] Check failed\n", False),
        (b"terminate called after throwing an instance of 'std::bad_alloc'\n", False),
        (b"Fatal Python error: Segmentation fault\n", False),
    ],
)
def test_what_is_chatter(line: bytes, chatter: bool) -> None:
    assert is_chatter(line) is chatter


CHILD = """
import os, sys
from kerasseg_cli.tf_logs import quiet_tf_logs
with quiet_tf_logs():
    os.write(2, b"I0000 00:00:1.5 1 port.cc:153] oneDNN\\n")
    os.write(2, b"a real complaint from C\\n")
    print("from Python", file=sys.stderr)
    os.write(2, b"without an end")
print("afterwards", file=sys.stderr)
"""


def test_only_chatter_is_lost(python: str, child_environment: dict[str, str]) -> None:
    done = subprocess.run([python, "-c", CHILD], env=child_environment, capture_output=True, text=True, check=True)
    assert "oneDNN" not in done.stderr
    assert done.stderr.index("a real complaint from C") >= 0
    for words in ("from Python", "without an end", "afterwards"):
        assert words in done.stderr


@pytest.mark.rest
@pytest.mark.slow
def test_importing_tensorflow_is_silent(python: str, child_environment: dict[str, str]) -> None:
    code = "from kerasseg_cli.tf_logs import quiet_tf_logs\nwith quiet_tf_logs():\n    import tensorflow"
    done = subprocess.run([python, "-c", code], env=child_environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
