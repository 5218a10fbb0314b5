"""A submission whose process is killed (SIGKILL) twice on the way, and is then completed by the same command."""

import json
import subprocess
import sys
from pathlib import Path

from support.runs import environment
from support.submissions import SMALL, accept, write_data
from support.trained import write_run
from support.waiting import wait_until


def finished(results: Path) -> dict[Path, float]:
    """The finished evaluations, and when each was written."""
    found = [path for path in results.rglob("summary.json") if not path.parent.name.startswith(".tmp-")]
    return {path: path.stat().st_mtime_ns for path in found}


def test_a_submission_that_was_killed_twice_is_completed_and_nothing_is_done_twice(tmp_path):
    run = write_run(tmp_path / "tiny", words_seen=[i * 1_000_000 for i in range(1, 9)])
    data, out, results = write_data(tmp_path / "data"), tmp_path / "out.json", tmp_path / "results"
    quick = [part for text in ("epochs=1", "batch_rows=8", "seq_len=64") for part in ("--set", text)]
    where = ["--data", str(data), "--out", str(out), "--results", str(results)]
    command = [sys.executable, "-m", "ltg_mdlm", "submit", str(run), "--track", "strict-small", "--partial"]
    before: dict[Path, float] = {}
    for enough in (3, 30):
        process = subprocess.Popen([*command, *where, *quick], env=environment(), stderr=subprocess.DEVNULL)
        wait_until(lambda enough=enough: len(finished(results)) >= enough, f"{enough} results", 300)
        process.kill()
        process.wait()
        assert not out.exists()
        assert before.items() <= finished(results).items()
        before = finished(results)
    done = subprocess.run([*command, *where, *quick], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert before.items() <= finished(results).items()
    accept(json.loads(out.read_text()), SMALL)
    assert not [path for path in results.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
