"""A stub of an S3 server: answers GETs, whole or ranged, out of one file, after a latency that the bucket names.

    python -m benchmarks.programs.stub_s3 FILE        # prints its port

s3://ms20/shard is FILE, 20 ms later, and s3://ms20/small/NUMBER/SIZE its first SIZE bytes. It checks no signature, and
nothing else either. The kernel sends the file, so that the server takes as little as it can of the client's cores.
"""

import asyncio
import re
import sys
from pathlib import Path


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path) -> None:
    """All requests of one connection."""
    loop, whole = asyncio.get_running_loop(), path.stat().st_size
    try:
        with path.open("rb") as file:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
                milliseconds, size = re.match(r"GET /ms(\d+)/(?:shard|small/\d+/(\d+)) ", head).groups()
                length = int(size) if size else whole
                await asyncio.sleep(int(milliseconds) / 1000)
                asked = re.search(r"(?im)^range: bytes=(\d+)-(\d+)", head)
                start, stop = (int(asked[1]), min(int(asked[2]) + 1, length)) if asked else (0, length)
                writer.write(
                    f"HTTP/1.1 {'206 Partial Content' if asked else '200 OK'}\r\nContent-Length: {stop - start}\r\n"
                    f"Content-Range: bytes {start}-{stop - 1}/{length}\r\n"
                    'ETag: "stub"\r\nLast-Modified: Wed, 01 Jan 2025 00:00:00 GMT\r\n\r\n'.encode()
                )
                await loop.sendfile(writer.transport, file, start, stop - start, fallback=False)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main(path: Path) -> None:
    server = await asyncio.start_server(lambda reader, writer: answer(reader, writer, path), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
