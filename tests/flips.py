"""One bit flipped in a file of a run folder: it is noticed, or it makes no difference.

    python -m tests.flips [RUN ...] [--count 200] [--seed 0]

Each kind of file is read by the function that a resume reads it with. Without RUN, a finished and an interrupted run
are made first, without Ray. Prints what came of the flips, one line a kind; exit code 1 if any was silently different
or ended in a traceback. RUN itself is not touched.
"""

import argparse
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tlray.activations.charges import load_charges
from tlray.errors import TlrayError
from tlray.ranking.result import load_ranking
from tlray.runs.board import load_leaderboard, write_results
from tlray.runs.budget.clock import read_spent
from tlray.runs.folder import read_format
from tlray.runs.lease import hold
from tlray.runs.manifest import load_manifest
from tlray.runs.notes import read_notes
from tlray.runs.plan import load_plan
from tlray.runs.prepare import check_derived, load_run, load_run_config, load_trial
from tlray.runs.trials import checkpoint_of, load_recorded, read_states
from tlray.storage.sealed import read_document
from tlray.training.checkpoint import TrialFolder, read_tensors
from tlray.training.mend import mend
from tlray.training.probe_checkpoint import GroupFolder
from tlray.training.record import load_history
from tlray.workflows.retrain.record import load_record

OUTCOMES = ("same", "clear error", "recovered", "silently different", "traceback")
BAD = OUTCOMES[3:]
STEP = "trials/*/epoch-*-step-*-worker-*.safetensors"
Read = Callable[[Path, Path], Any]  # (run folder, file) -> what is read, in a form that can be compared
UNREAD = {"DONE", "stopped", "unreadable"}  # whether they are there is all that counts
# Exports prove themselves, the folder of a ranking is a run of its own; what is for people or for Ray is never read.
SKIPPED = re.compile(r"^exports/|^ranking-|^ray/|^features/|\.(html|md)$")

# --- what reads each kind of file


def kind_of(path: str) -> str:
    """`trials/003-full/epoch-0004.safetensors` -> `trials/*/epoch-*.safetensors`"""
    path = re.sub(r"^(trials|groups|notes|ranking)([-/])[^/.]+", r"\1\2*", path)
    path = re.sub(r"-\d+-step-\d+-worker-\d+", "-*-step-*-worker-*", path)
    return re.sub(r"(epoch|state)-[0-9a-f]+\.", r"\1-*.", path)


def mended(run: Path, file: Path) -> Any:
    """What the driver does before it trains, and what is then known of the trials."""
    loaded = load_run(str(run))
    mend(loaded)
    states = read_states(str(run), [trial.trial_id for trial in loaded.trials])
    return repr({trial_id: (state.recorded, state.was_stopped) for trial_id, state in states.items()})


def trial_goes_on(run: Path, file: Path) -> Any:
    """A trial's progress, and all tensors that it goes on from or is scored with."""
    states = mended(run, file)
    if (file.parent / "result.json").exists():
        uri, checksum = checkpoint_of(str(run), file.parent.name)
        return states, tensors_of(Path(uri), checksum)  # as an export reads them
    folder = TrialFolder(str(file.parent))
    folder.go_back()
    progress = folder.load_progress()
    return repr(progress), [tensors_of(file.parent / name, sha) for name, sha in sorted(progress.files.items())]


def group_goes_on(run: Path, file: Path) -> Any:
    folder = GroupFolder(str(run), file.parent.name)
    folder.go_back()
    if not (file.parent / "progress.json").exists():
        return ""
    committed = read_document(str(file.parent / "progress.json"), "")
    return repr(folder.load_rows()), tensors_of(file.parent / committed["state"], committed["checksum"])


def tensors_of(path: Path, checksum: str) -> str:
    found = re.search(rb'"frozen_hash": ?"([^"]*)"', path.read_bytes() if path.exists() else b"")
    return tensors_in_words(read_tensors(str(path), checksum, found[1].decode(errors="replace") if found else ""))


def tensors_in_words(tensors: dict[str, torch.Tensor]) -> str:
    return repr([(name, tensors[name].numpy().tobytes()) for name in sorted(tensors)])


def manifest_in_words(run: Path, file: Path) -> str:
    manifest = load_manifest(str(run))
    return repr((manifest.classes, list(manifest.images), manifest.bad, manifest.notes, manifest.warnings))


def derived(run: Path, file: Path) -> bytes:
    check_derived(load_run(str(run)))
    return file.read_bytes()


def results(run: Path, file: Path) -> bytes:
    write_results(str(run), load_recorded(str(run)))
    return file.read_bytes()


def ranking(run: Path, file: Path) -> str:
    check_derived(load_run(str(run)))
    return repr(load_ranking(str(run)))


def lease(run: Path, file: Path) -> str:
    """Nobody holds the run: whatever its lease says, the next command gets it, if only after a watch."""
    with hold(str(file), "tests.flips", lease_seconds=0.01):
        return "taken"


READERS: dict[str, Read] = {
    "lease.json": lease,
    "format": lambda run, file: read_format(str(run)),
    "config.yaml": lambda run, file: load_run_config(str(run)).model_dump_json(),
    "manifest.parquet": manifest_in_words,
    "plan.json": lambda run, file: load_plan(str(run)).model_dump_json(),
    "ranking.json": ranking,
    "bad_images.jsonl": derived,
    "budget.json": lambda run, file: repr(read_spent(str(run))),
    "activations.json": lambda run, file: load_charges(str(run)),
    "results.jsonl": results,
    "leaderboard.json": lambda run, file: load_leaderboard(str(run)).model_dump_json(),
    "retrain.json": lambda run, file: repr(load_record(str(run))),
    "notes/*.txt": lambda run, file: read_notes(str(run)),
    "trials/*/trial.json": lambda run, file: load_trial(str(run), file.parent.name).model_dump_json(),
    "trials/*/result.json": mended,
    "trials/*/test_predictions.parquet": mended,
    "trials/*/val_predictions.parquet": mended,
    "trials/*/history.jsonl": lambda run, file: repr(load_history(str(file.parent))),
    "trials/*/progress.json": trial_goes_on,
    "trials/*/epoch-*.safetensors": trial_goes_on,
    STEP: trial_goes_on,
    "groups/*/progress.json": group_goes_on,
    "groups/*/state-*.safetensors": group_goes_on,
}

# --- flipping


class Copy:
    """A copy of a run folder that is put back as it was after every flip."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.run = folder / run.name
        shutil.copytree(run, self.run)
        self._bytes = {path: path.read_bytes() for path in self.files()}
        self._written = {path: path.stat().st_mtime_ns for path in self._bytes}

    def files(self) -> list[Path]:
        return sorted(path for path in self.run.rglob("*") if path.is_file())

    def restore(self) -> None:
        for path in self.files():
            if path not in self._bytes:
                path.unlink()
        for path, data in self._bytes.items():
            if not path.exists() or path.stat().st_mtime_ns != self._written[path]:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                self._written[path] = path.stat().st_mtime_ns


def outcome(copy: Copy, file: Path, read: Read, expected: Any, damage: Callable[[Path], None]) -> tuple[str, str]:
    """(one of OUTCOMES, why) of one damage to `file`."""
    before = set(read_notes(str(copy.run)))
    damage(file)
    try:
        found = read(copy.run, file)
        if set(read_notes(str(copy.run))) - before:
            return "recovered", ""
        return ("same", "") if found == expected else ("silently different", "")
    except TlrayError as error:
        return ("clear error", "") if "\n" not in str(error) else ("traceback", f"more than a line: {error}")
    except Exception as error:  # whatever it is, a person would have seen a traceback
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        copy.restore()


def flip(bits: random.Random) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[bits.randrange(len(data))] ^= 1 << bits.randrange(8)
        file.write_bytes(bytes(data))

    return damage


def by_kind(copy: Copy) -> dict[str, list[Path]]:
    """The files of each kind that are not empty."""
    kinds: dict[str, list[Path]] = {}
    for path in copy.files():
        name = str(path.relative_to(copy.run))
        if path.stat().st_size and not SKIPPED.search(name) and path.name not in UNREAD:
            kinds.setdefault(kind_of(name), []).append(path)
    return kinds


def flip_all(run: Path, count: int, seed: int) -> Iterator[tuple[str, Counter[str], set[str]]]:
    """(kind, how often each outcome, what tracebacks said) of `count` flips in each kind of file."""
    bits = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="tlray-flips-") as folder:
        copy = Copy(run, Path(folder))
        for kind, files in by_kind(copy).items():
            if kind not in READERS:
                yield kind, Counter({"silently different": 1}), {"nothing here reads this kind of file"}
                continue
            expected = {}
            for file in files:
                expected[file] = READERS[kind](copy.run, file)
                copy.restore()
            outcomes, said = Counter[str](), set[str]()
            for _ in range(count):
                file = bits.choice(files)
                found, why = outcome(copy, file, READERS[kind], expected[file], flip(bits))
                outcomes[found] += 1
                said |= {why} - {""}
            yield kind, outcomes, said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="local run folders")
    parser.add_argument("--count", type=int, default=200, help="flips in each kind of file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tlray-flips-") as folder:
        runs = options.runs
        if not runs:
            from tests.flip_runs import make_config, make_finished, make_interrupted

            config = make_config(Path(folder))
            runs = [make_finished(config), make_interrupted(config)]
        num_bad = 0
        for run in runs:
            print(run, f"{'':45}" + "".join(f"{name:>20}" for name in OUTCOMES), sep="\n")
            for kind, outcomes, said in flip_all(run, options.count, options.seed):
                print(f"{kind:45}" + "".join(f"{outcomes[name]:20}" for name in OUTCOMES), flush=True)
                num_bad += sum(outcomes[name] for name in BAD)
                for why in sorted(said)[:3]:
                    print(f"    {why}")
    print(f"{num_bad} flips were silently different or ended in a traceback")
    return int(num_bad > 0)


if __name__ == "__main__":
    sys.exit(main())
