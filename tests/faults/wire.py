"""A TCP proxy on loopback between a client and the broker, which can go silent, hold answers back, or cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field


@dataclass(eq=False)
class Line:
    """One connection through the proxy."""

    client: socket.socket
    server: socket.socket
    #: Cleared: nothing passes any more, and neither end is told.
    open: threading.Event = field(default_factory=threading.Event)
    #: Cleared: what the broker says does not reach the client.
    answers: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        """End both connections."""
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.open.set()
        self.answers.set()


class Wire:
    """Forwards to a port of this machine."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.lines: list[Line] = []
        #: Whether new connections pass: otherwise they are taken and stay silent.
        self.admits = True
        #: Bytes that clients have sent.
        self.sent = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self) -> int:
        """All connections of now stay open at both ends, and carry nothing: a cable that was pulled."""
        found = [line for line in self.lines if line.open.is_set()]
        for line in found:
            line.open.clear()
        return len(found)

    def hold_answers(self) -> None:
        """The broker hears the client, the client does not hear the broker."""
        for line in self.lines:
            line.answers.clear()

    def cut(self) -> None:
        """End all connections at once."""
        lines, self.lines = self.lines, []
        for line in lines:
            line.close()

    def close(self) -> None:
        """Stop listening, and end all connections."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target), 5)
            except OSError:
                client.close()
                continue
            line = Line(client, server)
            line.answers.set()
            if self.admits:
                line.open.set()
            self.lines.append(line)
            for start, end, up in ((client, server, True), (server, client, False)):
                start.settimeout(None)
                threading.Thread(target=self._pump, args=(line, start, end, up), daemon=True).start()

    def _pump(self, line: Line, start: socket.socket, end: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while True:
                line.open.wait()
                data = start.recv(65536)
                if not data:
                    break
                line.open.wait()
                if not up:
                    line.answers.wait()
                end.sendall(data)
                if up:
                    self.sent += len(data)
        line.close()
        with contextlib.suppress(ValueError):
            self.lines.remove(line)
