"""A TCP proxy in front of an emulator, by which a server can be taken away and given back."""

import socket
import threading
from contextlib import suppress


class Proxy:
    """Forwards to `target` (host:port) until it is told otherwise."""

    def __init__(self, target: str) -> None:
        """Listens on a free port of loopback."""
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._flows = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listen(0)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._flows.set()

    def refuse(self) -> None:
        """Connections end, and new ones are refused."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._sockets.clear()

    def hang(self) -> None:
        """Connections stay, and nothing comes through."""
        self._flows.clear()

    def restore(self) -> None:
        """All is as before."""
        self._flows.set()
        if self._listener.fileno() < 0:
            self._listen(int(self.address.rpartition(":")[2]))

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
