"""proxy.py LISTEN TARGET FILE: passes bytes both ways, each so many milliseconds late as FILE says at
the moment. Latency alone: as much gets through as before. SIGUSR1 resets every connection."""

import asyncio
import pathlib
import signal
import socket
import struct
import sys


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay) -> None:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue = asyncio.Queue(256)

    async def read() -> None:
        try:
            while data := await reader.read(65536):
                await queue.put((loop.time() + delay(), data))
        except OSError:
            pass
        await queue.put((loop.time() + delay(), b""))

    async def write() -> None:
        while True:
            due, data = await queue.get()
            if (rest := due - loop.time()) > 0:
                await asyncio.sleep(rest)
            if not data:
                break
            writer.write(data)
            await writer.drain()

    try:
        await asyncio.gather(read(), write())
    except OSError:
        pass
    finally:
        writer.close()


async def main(listen: str, target: str, control: pathlib.Path) -> None:
    current = 0.0
    ends: set[asyncio.StreamWriter] = set()

    def reset() -> None:
        for end in ends:
            end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                                    struct.pack("ii", 1, 0))
            end.transport.abort()

    async def watch() -> None:
        nonlocal current
        while True:
            try:
                current = int(control.read_text()) / 1000
            except (OSError, ValueError):
                pass
            await asyncio.sleep(0.05)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = target.rsplit(":", 1)
        try:
            upstream, downstream = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        ends.update((writer, downstream))
        ways = [asyncio.create_task(pump(reader, downstream, lambda: current)),
                asyncio.create_task(pump(upstream, writer, lambda: current))]
        # When one side goes, so does the other.
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, downstream):
            end.close()
            ends.discard(end)
        for way in ways:
            way.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, reset)
    host, port = listen.rsplit(":", 1)
    server = await asyncio.start_server(serve, host, int(port))
    async with server:
        await watch()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])))
