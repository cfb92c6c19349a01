"""What needs no network does not wait for the import of TensorFlow: checks, and errors about wrong paths."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import kerasseg
from evaluated_runs import write_run
from factories import write_figshare
from kerasseg_tfrecords import prepare
from kerasseg_tfrecords.records.manifest import PrepareOptions

IN_ONE_PROCESS = """
import contextlib, io, json, sys
from kerasseg_cli.app import app
seen = []
for words in json.loads(sys.argv[1]):
    output, code = io.StringIO(), None
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = app(words)
        except SystemExit as stop:
            code = stop.code
    seen.append([" ".join(words), code, output.getvalue(), sorted({"tensorflow", "keras"} & set(sys.modules))])
print(json.dumps(seen))
"""


def test_checks_and_wrong_paths(tmp_path: Path, child_environment: dict[str, str]) -> None:
    write_figshare(tmp_path / "raw", patients=9, slices_each=1, size=32)
    prepare(tmp_path / "raw", tmp_path / "shards", PrepareOptions(size=16, split="60/20/20"), jobs=1)
    write_run(tmp_path / "runs" / "one", tmp_path / "shards")
    lost = write_run(tmp_path / "runs" / "lost", tmp_path / "shards")
    lost.model_file.unlink()
    moved = write_run(tmp_path / "runs" / "moved", tmp_path / "shards")
    config = json.loads(moved.config_file.read_text())
    config["settings"]["shards"] = str(tmp_path / "elsewhere")
    moved.config_file.write_text(json.dumps(config))
    shutil.copytree(tmp_path / "shards", tmp_path / "damaged")
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    kerasseg.unet((32, 32, 1), filters=2, depth=2).save(tmp_path / "unet.keras")
    expected = {
        "verify shards": (0, "Sound: 9 records"),
        "inspect unet.keras -s moderate": (0, "decoder_1"),
        "inspect none.keras": (1, "no such file"),
        "doctor": (3, "model.keras is missing"),
        "evaluate runs/none": (3, "no such run"),
        "evaluate one --shards none": (3, "not a shard directory"),
        "evaluate moved": (3, "the shards of this run are missing"),
        "evaluate lost": (3, "no network yet"),
        "tune-threshold none": (3, "no such run"),
        "tune-threshold moved": (3, "the shards of this run are missing"),
        "predict none -o out": (3, "no such file or folder"),
        "predict raw --run none -o out": (3, "no such run"),
        "predict raw --run lost -o out": (3, "no network yet"),
        "predict raw --ensemble one,none -o out": (3, "no such run"),
        "predict raw --model none.keras -o out": (1, "no such file"),
        "train --shards none": (3, "not a shard directory"),
        "train --shards damaged": (3, "damaged"),
        "train --checkpoint none.keras": (1, "no such file"),
        "train --out runs/one": (2, "already holds a run"),
    }
    command = [sys.executable, "-c", IN_ONE_PROCESS, json.dumps([words.split() for words in expected])]
    done = subprocess.run(command, env=child_environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    for words, code, output, loaded in json.loads(done.stdout):
        assert (words, loaded) == (words, [])
        assert (words, code) == (words, expected[words][0]), output
        assert expected[words][1] in " ".join(output.split()), words
