"""What no library publishes of its architectures, computed from their modules without arithmetic, one JSON line each.

    python -m scripts.measure_architectures measured.jsonl               # goes on where it stopped
    python -m scripts.measure_architectures measured.jsonl pytorchcv     # one library

Every architecture is built on the meta device in a process of its own that is killed after TIME_LIMIT seconds, and run
in evaluation mode on one image. Multiply-adds are half of what torch.utils.flop_counter counts (it counts a product and
a sum as two operations, matrix products, convolutions and attention only): torchvision's own figures, to 0.001.
`scripts.make_facts` puts the lines into the catalogue's data file.
"""

import json
import multiprocessing
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TIME_LIMIT = 120  # seconds for one architecture
CLASSES = 1000


def measure(library: str, name: str, tag_of_size: dict[int, str | None]) -> dict[str, Any]:
    """Parameters, classifier's input, blocks, and multiply-adds at each input size, None where they cannot be had.

    `tag_of_size`: input size in pixels -> weights that have it. Parameters are those of the body, and those that the
    classifier has for each class.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tlray.catalogue.libraries import library as load
    from tlray.errors import BackboneError
    from tlray.models.backbone import find_head
    from tlray.models.blocks import trace_model

    found: dict[str, Any] = {"id": f"{library}/{name}", "gmacs": {}}
    for size, tag in tag_of_size.items():
        try:
            with torch.device("meta"):
                model = load(library).construct(name, tag, "none", size, {}, CLASSES)
        except NotImplementedError:  # RegNet computes its widths with tensors while it is built
            model = load(library).construct(name, tag, "none", size, {}, CLASSES).to("meta")
        model.eval().requires_grad_(False)
        images = torch.empty(1, 3, size, size, device="meta")
        if "body" not in found:
            head = find_head(model, found["id"])
            of_heads = [list(model.get_submodule(name).parameters()) for name in head]
            found["per_class"] = sum(p.numel() for ps in of_heads for p in ps if p.shape[0] == CLASSES) // CLASSES
            found["body"] = sum(p.numel() for p in model.parameters()) - found["per_class"] * CLASSES
            found["width"] = next(p.shape[1] for p in of_heads[0] if p.ndim > 1)
            try:
                found["blocks"] = len(trace_model(model, head).blocks)
            except BackboneError as error:
                found["blocks"], found["no_blocks"] = None, str(error)[:200]
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                model(images)
            found["gmacs"][size] = round(counter.get_total_flops() / 2e9, 4)
        except Exception as error:  # whatever a model's forward does with meta tensors: the figure is not to be had
            found["no_gmacs"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return found


def main(arguments: list[str]) -> None:
    target = Path(arguments[0])
    done = {json.loads(line)["id"] for line in target.read_text().splitlines()} if target.exists() else set()
    tasks = [task for task in _tasks(arguments[1:]) if f"{task[0]}/{task[1]}" not in done]
    worker = _Worker()
    with target.open("a") as out:
        for number, task in enumerate(tasks, 1):
            found = worker.measure(task)
            print(json.dumps(found), file=out, flush=True)
            print(f"{number}/{len(tasks)} {found['id']} {found.get('error', '')}", flush=True)
    worker.stop()


def _tasks(only: list[str]) -> list[tuple[str, str, dict[int, str | None]]]:
    """Library, architecture and the weights of each input size; small names first finds mistakes first."""
    from tlray.catalogue.libraries import installed, library

    tasks = []
    for home in installed():
        if only and home not in only:
            continue
        module = library(home)
        for name in module.names():
            sizes: dict[int, str | None] = {}
            for tag in module.tags(name) or (None,):
                sizes.setdefault(module.facts(name, tag)["input_size"], tag)
            tasks.append((home, name, sizes))
    return tasks


class _Worker:
    """A process that measures, and is started again where it was killed."""

    def __init__(self) -> None:
        self.process: Any = None
        self.ours: Connection
        self.start()

    def start(self) -> None:
        self.ours, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        self.ours.recv()  # its imports are done

    def measure(self, task: tuple[str, str, dict[int, str | None]]) -> dict[str, Any]:
        self.ours.send(task)
        try:
            if self.ours.poll(TIME_LIMIT):
                return self.ours.recv()
            problem = f"took more than {TIME_LIMIT} s"
        except EOFError:
            problem = "the process ended"
        self.stop()
        self.start()
        return {"id": f"{task[0]}/{task[1]}", "error": problem}

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def _serve(connection: Connection) -> None:
    import warnings

    import timm  # noqa: F401  here, and not in the first architecture's time
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    connection.send("ready")
    while True:
        task = connection.recv()
        try:
            found = measure(*task)
        except Exception as error:  # one architecture's mistake is a line of the file, not the end of the others
            found = {"id": f"{task[0]}/{task[1]}", "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        connection.send(found)


if __name__ == "__main__":
    main(sys.argv[1:])
