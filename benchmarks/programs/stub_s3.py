"""A stub of an S3 server: answers GETs, whole or ranged, out of one file, after a latency that the bucket names.

    python -m benchmarks.programs.stub_s3 FILE        # prints its port

s3://ms20/shard is FILE, 20 ms later, and s3://ms20/small/NUMBER/SIZE its first SIZE bytes. It checks no signature, and
nothing else either.
"""

import asyncio
import mmap
import re
import sys
from pathlib import Path

CHUNK = 2**18


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, file: memoryview) -> None:
    """All requests of one connection."""
    try:
        while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
            milliseconds, size = re.match(r"GET /ms(\d+)/(?:shard|small/\d+/(\d+)) ", head).groups()
            body = file[: int(size)] if size else file
            await asyncio.sleep(int(milliseconds) / 1000)
            asked = re.search(r"(?im)^range: bytes=(\d+)-(\d+)", head)
            start, stop = (int(asked[1]), min(int(asked[2]) + 1, len(body))) if asked else (0, len(body))
            writer.write(
                f"HTTP/1.1 {'206 Partial Content' if asked else '200 OK'}\r\nContent-Length: {stop - start}\r\n"
                f"Content-Range: bytes {start}-{stop - 1}/{len(body)}\r\n"
                'ETag: "stub"\r\nLast-Modified: Wed, 01 Jan 2025 00:00:00 GMT\r\n\r\n'.encode()
            )
            for begin in range(start, stop, CHUNK):
                writer.write(body[begin : min(begin + CHUNK, stop)])
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main(path: Path) -> None:
    with path.open("rb") as opened:
        file = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    server = await asyncio.start_server(lambda reader, writer: answer(reader, writer, file), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
