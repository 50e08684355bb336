"""How much of the local disk's rate is left when images come from object storage, and what does fetching cost in CPU?

    python -m benchmarks.object_store [ROUNDS]

Eight shards of 64 MB of photos are read in ranges of up to 8 MB, three ahead, and all images decoded by one thread:
from local disk, from a stub server with 0, 20 and 100 ms of latency, and from a real one (Ceph's gateway) where
$TLRAY_SHARED, by default ../shared, has s3/start-rgw and its programs are installed. Then 100 KB objects, one GET each,
16 at once, without decoding: tlray's reads, and boto3's for comparison. The ways take turns in each of ROUNDS rounds
(5); shown is the median. CPU is that of this process alone, by getrusage. `fetching` is a pass of its own that reads
the same ranges and decodes nothing; `less local` is what an image costs, decoded, beyond the same image from local disk
in the same round: it holds the fetching, and what decoding loses to the server beside it on the same cores.

Last line, JSON: shard_rate_at_20ms (of the local rate), client_cpu_ms_per_image (fetching, at 20 ms), and all.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import describe, shared_folder
from tlray import storage
from tlray.data.decode import decode

SHARD_BYTES = 64 * 2**20
RANGE_BYTES = 8 * 2**20
RANGES_AHEAD = 3
NUM_SHARDS = 8  # in one pass; all have the same bytes, but nothing of a remote one is kept
SMALL_BYTES, SMALL_READS, SMALL_THREADS = 100_000, 320, 16
LATENCIES = (0, 20, 100)  # milliseconds
GATEWAY = ("radosgw", "ceph-mon", "ceph-osd")


@dataclass(frozen=True)
class Cost:
    """What one pass took, per image or per object."""

    wall_ms: float
    cpu_ms: float


def measured(work: Callable[[], int]) -> Cost:
    """Run something that says how many images it did."""
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    count = work()
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall / count * 1000, cpu / count * 1000)


def write_shard(path: Path) -> list[list[int]]:
    """Photos one after the other, again and again up to the shard's size -> their sizes, by range."""
    photos = [file.read_bytes() for file in sorted((shared_folder() / "data/hymenoptera").glob("*/*/*.jpg"))]
    ranges: list[list[int]] = [[]]
    with path.open("wb") as file:
        while file.tell() < SHARD_BYTES:
            for photo in photos:
                if sum(ranges[-1]) + len(photo) > RANGE_BYTES:
                    ranges.append([])
                file.write(photo)
                ranges[-1].append(len(photo))
    return ranges


def decode_shards(uri: str, ranges: list[list[int]]) -> int:
    """Read shards ahead of their decoding -> the number of images."""
    count = 0
    with ThreadPoolExecutor(RANGES_AHEAD) as pool:
        for data, sizes in zip(read_ahead(pool, uri, ranges), ranges * NUM_SHARDS, strict=True):
            begin = 0
            for size in sizes:
                decode(data[begin : begin + size])
                begin += size
                count += 1
    return count


def fetch_shards(uri: str, ranges: list[list[int]]) -> int:
    """Read what `decode_shards` reads -> the number of images."""
    with ThreadPoolExecutor(RANGES_AHEAD) as pool:
        for data, sizes in zip(read_ahead(pool, uri, ranges), ranges * NUM_SHARDS, strict=True):
            assert len(data) == sum(sizes)
    return NUM_SHARDS * sum(map(len, ranges))


def read_ahead(pool: ThreadPoolExecutor, uri: str, ranges: list[list[int]]) -> Iterator[bytes]:
    """The shard's ranges, as often as there are shards."""
    waiting: deque[Future[bytes]] = deque()
    for _ in range(NUM_SHARDS):
        offset = 0
        for size in map(sum, ranges):
            waiting.append(pool.submit(storage.read_range, uri, offset, size))
            offset += size
            if len(waiting) > RANGES_AHEAD:
                yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def read_small(read: Callable[[str], bytes], uris: list[str]) -> int:
    with ThreadPoolExecutor(SMALL_THREADS) as pool:
        assert all(len(data) == SMALL_BYTES for data in pool.map(read, uris))
    return len(uris)


def boto3_reader() -> Callable[[str], bytes]:
    import boto3
    from botocore.config import Config

    client = boto3.session.Session().client("s3", config=Config(max_pool_connections=SMALL_THREADS))

    def read(uri: str) -> bytes:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return client.get_object(Bucket=bucket, Key=key)["Body"].read()

    return read


@contextmanager
def stub_server(shard: Path) -> Iterator[str]:
    """The stub's endpoint while it runs."""
    command = [sys.executable, "-m", "benchmarks.programs.stub_s3", str(shard)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


@contextmanager
def real_server(shard: Path) -> Iterator[str | None]:
    """The endpoint of a gateway that has the shard and small objects in the bucket `real`; None where there is none."""
    import boto3

    start = shared_folder() / "s3/start-rgw"
    if not start.exists() or not all(map(shutil.which, GATEWAY)):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="rgw-") as folder:
        port = 20_000 + os.getpid() % 10_000
        keys = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        subprocess.run([start, folder, str(port), *keys, "memstore"], check=True, stdout=subprocess.DEVNULL)
        try:
            endpoint = f"http://127.0.0.1:{port}"
            client = boto3.session.Session().client("s3", endpoint_url=endpoint)
            client.create_bucket(Bucket="real")
            client.upload_file(str(shard), "real", "shard")
            small = shard.read_bytes()[:SMALL_BYTES]
            for index in range(SMALL_READS):
                client.put_object(Bucket="real", Key=f"small/{index}/{SMALL_BYTES}", Body=small)
            yield endpoint
        finally:
            subprocess.run([start.parent / "stop-rgw", folder], check=True, stdout=subprocess.DEVNULL)


def use_endpoint(endpoint: str) -> None:
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    storage.forget_clients()


def run_rounds(shard: Path, ranges: list[list[int]], rounds: int) -> dict[str, list[Cost]]:
    """The costs of each way in each round, after one round to warm up."""
    costs: dict[str, list[Cost]] = defaultdict(list)
    with ExitStack() as servers:
        stub, real = servers.enter_context(stub_server(shard)), servers.enter_context(real_server(shard))
        places = [(f"{latency} ms", stub, f"s3://ms{latency}") for latency in LATENCIES]
        places += [("real server", real, "s3://real")] if real else []
        for number in range(rounds + 1):
            done = {
                "shard, local disk": measured(lambda: decode_shards(str(shard), ranges)),
                "fetching, local disk": measured(lambda: fetch_shards(str(shard), ranges)),
            }
            for name, endpoint, bucket in places:
                use_endpoint(endpoint)
                uris = [f"{bucket}/small/{index}/{SMALL_BYTES}" for index in range(SMALL_READS)]
                readers = {"tlray": storage.read_bytes, "boto3": boto3_reader()}
                done[f"shard, {name}"] = measured(lambda bucket=bucket: decode_shards(f"{bucket}/shard", ranges))
                done[f"fetching, {name}"] = measured(lambda bucket=bucket: fetch_shards(f"{bucket}/shard", ranges))
                for client, read in readers.items():
                    done[f"small, {name}, {client}"] = measured(lambda read=read, uris=uris: read_small(read, uris))
            for way, cost in done.items() if number else ():
                costs[way].append(cost)
    return costs


def main(rounds: int = 5) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmarks", "AWS_REGION": "us-east-1"}
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "shard"
        ranges = write_shard(shard)
        num_photos = sum(map(len, ranges))
        print(f"a shard of {num_photos} photos of {shard.stat().st_size / num_photos / 1000:.0f} KB")
        costs = run_rounds(shard, ranges, rounds)
    local = costs["shard, local disk"]
    outcome = {}
    print(f"{'':30}{'per second':>12}{'of local':>10}{'CPU ms':>10}{'less local':>12}")
    for way, mine in costs.items():
        rate = statistics.median(1000 / cost.wall_ms for cost in mine)
        cpu = statistics.median(cost.cpu_ms for cost in mine)
        line = f"{way:30}{rate:12.0f}"
        if way.startswith("shard"):
            of_local = statistics.median(base.wall_ms / cost.wall_ms for base, cost in zip(local, mine, strict=True))
            extra = statistics.median(cost.cpu_ms - base.cpu_ms for base, cost in zip(local, mine, strict=True))
            line += f"{of_local:10.3f}{cpu:10.3f}{extra:12.3f}"
            outcome[way] = {"of_local_rate": round(of_local, 3), "cpu_ms_per_image": round(extra, 3)}
        else:
            line += f"{'':10}{cpu:10.3f}"
            outcome[way] = {"per_second": round(rate), "cpu_ms": round(cpu, 3)}
        print(line)
    keys = {
        "shard_rate_at_20ms": outcome["shard, 20 ms"]["of_local_rate"],
        "client_cpu_ms_per_image": outcome["fetching, 20 ms"]["cpu_ms"],
    }
    print(json.dumps(keys | {"all": outcome}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
