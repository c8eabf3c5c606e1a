"""A door into another network namespace: takes connections here, carries them to an address there.

    gate.py DESCRIPTOR ADDRESS PORT

DESCRIPTOR is a listening socket that was opened elsewhere: a socket stays in the namespace in which it was made, so this
process can live in the other one. Standard library only.
"""

from __future__ import annotations

import socket
import sys
import threading


def carry(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 18):
            sink.sendall(data)
    except OSError:
        pass
    finally:
        for end, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
            try:
                end.shutdown(how)
            except OSError:
                pass


def serve(here: socket.socket, target: tuple[str, int]) -> None:
    try:
        there = socket.create_connection(target, timeout=10)
    except OSError:
        here.close()
        return
    there.settimeout(None)
    for end in (here, there):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    back = threading.Thread(target=carry, args=(there, here), daemon=True)
    back.start()
    carry(here, there)
    back.join()
    here.close()
    there.close()


def main(descriptor: int, address: str, port: int) -> None:
    listener = socket.socket(fileno=descriptor)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, (address, port)), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
