"""Small sinks on 127.0.0.1 for tests: one that listens, one that never does, one that is slow."""
import select
import socket
import struct
import threading
import time


def until(condition, seconds=5.0):
    """What condition() gives as soon as it is true; the last answer when the time is over."""
    end = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer or time.monotonic() > end:
            return answer
        time.sleep(0.01)


def free_port():
    """A TCP port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


class TcpSink:
    """Accepts on 127.0.0.1 and keeps what comes in; .received is a bytearray per connection.

    slow: seconds of rest after each read of at most `piece` bytes. Use it in a with statement.
    """

    def __init__(self, port=0, slow=0.0, piece=65536, small=False):
        self.slow, self.piece = slow, piece
        self.received, self.socks, self.ended, self.stopping = [], [], [], False
        self.server = socket.socket()
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if small:
            self.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.server.bind(('127.0.0.1', port))
        self.server.listen(50)
        self.port = self.server.getsockname()[1]
        self.threads = []
        self.start(self.accept)

    def start(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        self.threads.append(thread)

    def accept(self):
        while not self.stopping:
            if not select.select([self.server], [], [], 0.02)[0]:
                continue
            sock = self.server.accept()[0]
            data = bytearray()
            self.received.append(data)
            self.socks.append(sock)
            self.ended.append(False)
            self.start(self.read, sock, data, len(self.received) - 1)

    def read(self, sock, data, number):
        try:
            while True:
                piece = sock.recv(self.piece)
                if not piece:
                    break
                data += piece
                if self.slow:
                    time.sleep(self.slow)
        except OSError:
            pass
        self.ended[number] = True

    def bytes(self):
        return b''.join(bytes(data) for data in self.received)

    def lines(self):
        """Whole lines of all connections, in order."""
        return self.bytes().decode().split('\n')[:-1]

    def hang_up(self):
        """Says on every connection that no more is coming, and reads on until the peer closes too."""
        for sock in self.socks:
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        until(lambda: all(self.ended), 3)
        for sock in self.socks:
            sock.close()

    def reset(self):
        """Breaks every connection off at once, as a machine that reboots does."""
        for sock in self.socks:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                sock.shutdown(socket.SHUT_RD)
            except OSError:
                pass
            sock.close()

    def stop(self):
        """The end of a server that goes in order: nothing that arrived is lost."""
        if not self.stopping:
            self.stopping = True
            self.threads[0].join()
            self.server.close()
            self.hang_up()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if not self.stopping:
            self.stopping = True
            self.threads[0].join()
            self.server.close()
        for sock in self.socks:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()


class BlackHole:
    """Listens on 127.0.0.1, accepts nobody; its queue is full, so connecting to it never ends."""

    def __init__(self):
        self.server = socket.socket()
        self.server.bind(('127.0.0.1', 0))
        self.server.listen(0)
        self.port = self.server.getsockname()[1]
        self.full = []
        for _ in range(8):
            sock = socket.socket()
            sock.setblocking(False)
            self.full.append(sock)
            sock.connect_ex(('127.0.0.1', self.port))
            if not select.select([], [sock], [], 0.05)[1]:
                break

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for sock in self.full + [self.server]:
            sock.close()


class Deaf:
    """Listens on 127.0.0.1, accepts, and never reads a byte."""

    def __init__(self):
        self.server = socket.socket()
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.server.bind(('127.0.0.1', 0))
        self.server.listen(50)
        self.port = self.server.getsockname()[1]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.close()


class UdpSink:
    """Keeps the datagrams that come in, a list of bytes."""

    def __init__(self):
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(('127.0.0.1', 0))
        self.port = self.sock.getsockname()[1]
        self.datagrams = []
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        while True:
            data = self.sock.recv(65536)
            if data == b'the end':
                return
            self.datagrams.append(data)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b'the end', ('127.0.0.1', self.port))
        self.thread.join()
        self.sock.close()
