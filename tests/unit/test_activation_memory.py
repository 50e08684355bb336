"""However much is read, little of it stays in the memory of the process."""

import json
from pathlib import Path

import numpy as np
from activation_samples import KEY, image_ids, run_python

from tlray.activations.store import ActivationStore

NUM_SHARDS, ROWS, WIDTH = 48, 256, 8192  # shards of 4 MiB, 192 MiB in all
MIB = 2**20

READ_ALL = """
import json, sys
import numpy as np
import torch
from activation_samples import KEY, image_ids
from tlray.storage.stores import maps
from tlray.activations.store import ActivationStore

uri, num_images, release, order = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
maps.RELEASE_BYTES = release

def resident():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssFile")}

reader = ActivationStore(uri, cache="").reader(KEY, image_ids(num_images))
positions = np.random.default_rng(0).permutation(num_images) if order == "shuffled" else np.arange(num_images)
total = reader.read(positions[:1])[0].double().sum().item() * 0  # what torch loads when it is first used
before, most = resident(), {"VmRSS": 0, "RssFile": 0}
for batch in np.array_split(positions, num_images // 32):
    total += reader.read(batch)[0][:, 0].double().sum().item()
    most = {name: max(most[name], value) for name, value in resident().items()}
print(json.dumps({"total": total, **{name: most[name] - before[name] for name in most}}))
"""


def test_resident_memory_stays_flat_while_much_more_is_read(tmp_path: Path) -> None:
    store = ActivationStore(str(tmp_path), cache="")
    ids = image_ids(NUM_SHARDS * ROWS)
    total = 0.0
    for number in range(NUM_SHARDS):
        values = np.random.default_rng(number).integers(0, 100, (ROWS, WIDTH)).astype(np.float16)
        store.write_shard(KEY, ids[number * ROWS : (number + 1) * ROWS], [values], run="a")
        total += float(values[:, 0].astype(np.float64).sum())
    grown = {}
    for order in ("in order", "shuffled"):
        grown[order] = json.loads(run_python(READ_ALL, tmp_path, len(ids), 16 * MIB, order))
        assert grown[order]["total"] == total
        assert grown[order]["RssFile"] < 32 * MIB, grown
        assert grown[order]["VmRSS"] < 48 * MIB, grown
    kept = json.loads(run_python(READ_ALL, tmp_path, len(ids), 10**12, "in order"))
    assert kept["RssFile"] > 150 * MIB  # so the measurement does see what is not given back
