"""A relay between two ports of this machine, to a server that then seems far away.

python experiments/bench/relay.py LISTEN_PORT SERVER_PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

DELAY = 0.02


def relay(late: int, port: int) -> None:
    """Passes all on between two ports; the beginning of each answer comes `DELAY` seconds late."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection("127.0.0.1", port)
        asked = 0.0

        async def ask() -> None:
            nonlocal asked
            while data := await reader.read(2**16):
                asked = time.monotonic()
                here.write(data)
                await here.drain()
            here.close()

        async def answer() -> None:
            while data := await there.read(2**18):
                await asyncio.sleep(max(0.0, asked + DELAY - time.monotonic()))
                writer.write(data)
                await writer.drain()
            writer.close()

        with contextlib.suppress(OSError):
            await asyncio.gather(ask(), answer())

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", late) as server:
            await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    relay(int(sys.argv[1]), int(sys.argv[2]))
