"""More sinks on 127.0.0.1 for tests, beside those of sinks.py: one that comes and goes, and two that are rude.

All are context managers, and all end their threads themselves.
"""
import socket
import struct
import threading
import time

NO_LINGER = struct.pack('ii', 1, 0)             # close() sends a reset at once


def listener(port=0, backlog=50):
    """A listening socket of 127.0.0.1; the port may have been in use a moment ago."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(('127.0.0.1', port))
    sock.listen(backlog)
    return sock


class Server:
    """Accepts in a thread and hands each connection to handle(sock), in a thread of its own.

    stop() refuses new ones and ends the old; start() serves the same port again.
    """

    def __init__(self, port=0):
        self.port, self.server, self.socks, self.threads = port, None, [], []
        self.accepted = 0                       # connections since the beginning
        self.start()

    def start(self):
        assert self.server is None, 'it is running'
        self.server = listener(self.port)
        self.port = self.server.getsockname()[1]
        self.spawn(self.accept, self.server)
        return self

    def spawn(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    def accept(self, server):
        while True:
            try:
                sock = server.accept()[0]
            except OSError:                     # stop() shut it down
                return
            self.accepted += 1
            self.socks.append(sock)
            self.spawn(self.serve, sock)

    def serve(self, sock):
        try:
            self.handle(sock)
        except OSError:
            pass                                # the peer went away, or stop() was called
        sock.close()

    def handle(self, sock):
        raise NotImplementedError

    def close_connections(self, reset=False):
        """Ends the connections that stand, with a reset or in order; new ones are welcome."""
        while self.socks:
            sock = self.socks.pop()
            try:
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
                sock.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
            except OSError:
                pass                            # it has ended already

    def stop(self, reset=False):
        if self.server is None:
            return
        self.server.shutdown(socket.SHUT_RDWR)  # wakes accept(); close() alone does not
        self.threads[0].join()
        self.server.close()
        self.close_connections(reset)
        for thread in self.threads:
            thread.join()
        self.server, self.threads = None, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop()


class LineSink(Server):
    """Collects whole lines: .lines is a list of (monotonic time of arrival, text without its end).

    A line that a connection did not finish is in .torn, never in .lines.
    """

    def __init__(self, port=0):
        self.lines, self.torn, self.more = [], [], threading.Condition()
        Server.__init__(self, port)

    def handle(self, sock):
        rest = b''
        try:
            while True:
                data = sock.recv(65536)
                if not data:
                    return
                whole, _, rest = (rest + data).rpartition(b'\n')
                if whole or _:
                    self.add(whole.split(b'\n'), time.monotonic())
        finally:
            if rest:
                self.torn.append(rest)

    def add(self, lines, now):
        with self.more:
            self.lines += [(now, line.decode('utf-8', 'replace')) for line in lines]
            self.more.notify_all()

    def texts(self):
        return [text for when, text in self.lines]

    def wait(self, n, seconds=10.0):
        """True as soon as there are n lines; False when the time is over."""
        end = time.monotonic() + seconds
        with self.more:
            while len(self.lines) < n:
                left = end - time.monotonic()
                if left <= 0 or not self.more.wait(left):
                    return len(self.lines) >= n
            return True


class Closer(Server):
    """Accepts and closes at once; with `reset` by a reset instead of in order."""

    def __init__(self, port=0, reset=False):
        self.reset = reset
        Server.__init__(self, port)

    def handle(self, sock):
        if self.reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)


class Dripper(Server):
    """Answers each connection with `data`, a byte at a time with a pause between; reads what comes and forgets it.

    After the last byte the connection stays open. .heard counts the bytes that came in.
    """

    def __init__(self, data=b'.' * 1000, pause=0.05, port=0):
        self.data, self.pause, self.heard = data, pause, 0
        self.ending = threading.Event()
        Server.__init__(self, port)

    def handle(self, sock):
        sock.settimeout(self.pause)
        for i in range(len(self.data)):
            sock.sendall(self.data[i:i + 1])
            self.listen(sock)
        while not self.ending.is_set():
            self.listen(sock)

    def listen(self, sock):
        """Reads for the length of a pause; raises when the peer has closed."""
        end = time.monotonic() + self.pause
        while time.monotonic() < end and not self.ending.is_set():
            try:
                data = sock.recv(65536)
            except socket.timeout:
                return
            if not data:
                raise ConnectionResetError
            self.heard += len(data)

    def stop(self, reset=False):
        self.ending.set()
        Server.stop(self, reset)
        self.ending.clear()
