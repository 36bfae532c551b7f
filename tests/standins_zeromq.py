"""A stand-in for a PULL or SUB socket that is bound, written from rfc.zeromq.org/spec/23, 24, 29 and 30: strict about
what comes in, and with libzmq's habits in what goes out."""
import json
import socket
import struct
import threading
import time

from standins import Hangup, Listener, Malformed

LIBZMQ = b'\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f'   # its signature is not all zero
SENDERS = {'PULL': 'PUSH', 'SUB': 'PUB', 'XSUB': 'PUB'}


def frame(data, flags=0):
    if len(data) < 256:
        return struct.pack('>BB', flags, len(data)) + data
    return struct.pack('>BQ', flags | 2, len(data)) + data


def command(name, data=b''):
    return frame(struct.pack('>B', len(name)) + name + data, 4)


def ready(kind, name=b'READY', more=b''):
    return command(name, b'\x0bSocket-Type' + struct.pack('>I', len(kind)) + kind + more)


def greeting(mechanism=b'NULL', server=False, version=b'\x03\x01', signature=LIBZMQ):
    return signature + version + mechanism + bytes(20 - len(mechanism)) + (b'\1' if server else b'\0') + bytes(31)


class ZmqStandin(Listener):
    """A bound socket of a kind. users: {name: password} for PLAIN. topics: what a SUB subscribes to.

    .messages has the messages, a list of frames each, of each connection. With .ping it sends a PING before each
    message; .pongs counts the answers.
    """

    def __init__(self, kind='PULL', users=None, topics=(b'',), minor=1):
        self.kind, self.users, self.topics, self.minor = kind, users, topics, minor
        self.messages, self.ping, self.pongs = [], False, 0
        Listener.__init__(self)

    # what comes in

    def frame(self, wire):
        flags = wire.exactly(1)[0]
        if flags not in (0, 1, 2, 3, 4, 6):
            raise Malformed('a frame with the flags %d' % flags)
        size = struct.unpack('>Q', wire.exactly(8))[0] if flags & 2 else wire.exactly(1)[0]
        if flags & 2 and size < 256:
            raise Malformed('a long frame of %d bytes' % size)
        return flags, wire.exactly(size)

    def command(self, wire, wanted):
        """The data of that command."""
        flags, body = self.frame(wire)
        name, data = body[1:1 + body[0]], body[1 + body[0]:]
        if not flags & 4 or name != wanted:
            raise Malformed('%r where %r was due' % (body[:20], wanted))
        return data

    def properties(self, data):
        out = {}
        while data:
            n = data[0]
            name, size = data[1:1 + n].decode(), struct.unpack('>I', data[1 + n:5 + n])[0]
            out[name], data = data[5 + n:5 + n + size].decode(), data[5 + n + size:]
        if out != {'Socket-Type': SENDERS[self.kind]}:
            if out.get('Socket-Type') in ('PUSH', 'PUB'):
                raise Hangup()                  # as libzmq does, without a word
            raise Malformed('properties %r' % out)

    # the conversation

    def talk(self, wire):
        messages = []
        with self.lock:
            self.messages.append(messages)
        wire.send(LIBZMQ)
        mechanism = b'NULL' if self.users is None else b'PLAIN'
        theirs = wire.exactly(64)
        if theirs[:1] != b'\xff' or theirs[9:12] != b'\x7f\x03\x00' or theirs[32:] != bytes(32):
            raise Malformed('a greeting of %r' % theirs)
        if theirs[12:32] != mechanism.ljust(20, b'\0'):
            raise Hangup()
        wire.send(greeting(mechanism, self.users is not None, struct.pack('BB', 3, self.minor))[10:])
        self.hands(wire)
        if self.kind != 'PULL':
            for topic in self.topics:
                wire.send(frame(b'\1' + topic))
        while True:
            self.message(wire, messages)

    def hands(self, wire):
        kind = self.kind.encode()
        if self.users is None:
            wire.send(ready(kind))
            self.properties(self.command(wire, b'READY'))
            return
        hello = self.command(wire, b'HELLO')
        name, rest = hello[1:1 + hello[0]], hello[1 + hello[0]:]
        if rest[0] != len(rest) - 1:
            raise Malformed('a HELLO of %r' % hello)
        if self.users.get(name.decode()) != rest[1:].decode():
            wire.send(frame(b'^RROR\x03400', 4))        # libzmq 4.3.5, letter for letter
            while True:
                wire.more()
        wire.send(command(b'WELCOME'))
        self.properties(self.command(wire, b'INITIATE'))
        wire.send(ready(kind))

    def message(self, wire, messages):
        if self.ping:
            wire.send(command(b'PING', b'\0\7context'))
        parts, flags = [], 1
        while flags & 1:
            flags, body = self.frame(wire)
            if flags & 4:
                if parts or body != b'\4PONGcontext' or not self.ping:
                    raise Malformed('a command that was not due: %r' % body[:20])
                self.pongs, flags = self.pongs + 1, 1
            else:
                parts.append(body)
        if len(parts) != (1 if self.kind == 'PULL' else 2):
            raise Malformed('a message of %d frames' % len(parts))
        if self.kind == 'PULL' or any(parts[0].startswith(topic) for topic in self.topics):
            with self.lock:
                messages.append(parts)

    def bodies(self):
        """The last frame of every message, connection after connection."""
        with self.lock:
            return [parts[-1] for messages in self.messages for parts in messages]


class Dialler:
    """The other way round: a PULL or SUB that dials us, tries for as long as it takes, and keeps the messages it gets.

    stop: how far it goes: 'silent' sends nothing, 'half' half a greeting, 'deaf' is ready and reads nothing, None all.
    .ready tells that the handshake is over, .ended that the connection is, .said all bytes that came in.
    """

    def __init__(self, port, kind='PULL', login=None, topics=(b'',), stop=None, host='127.0.0.1', old=True):
        self.port, self.kind, self.login, self.topics, self.stop = port, kind, login, topics, stop
        self.host, self.old = host, old
        self.messages, self.said, self.sock, self.closing = [], bytearray(), None, False
        self.ready, self.ended, self.answers = threading.Event(), threading.Event(), []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def dial(self):
        while not self.closing:
            sock = socket.socket(socket.AF_INET6 if ':' in self.host else socket.AF_INET)
            if self.stop == 'deaf':
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            try:
                sock.connect((self.host, self.port))
                return sock
            except OSError:
                sock.close()
                time.sleep(0.01)
        raise OSError('closed')

    def exactly(self, n):
        data = b''
        while len(data) < n:
            piece = self.sock.recv(n - len(data))
            if not piece:
                raise OSError('closed by the peer')
            data += piece
        self.said += data
        return data

    def frame(self):
        flags, size = self.exactly(2)
        if flags & 2:
            size = struct.unpack('>Q', bytes([size]) + self.exactly(7))[0]
        return flags, self.exactly(size)

    def run(self):
        try:
            self.sock = self.dial()
            self.hands()
            self.ready.set()
            while self.stop != 'deaf':
                self.take()
            while not self.closing:
                time.sleep(0.02)
        except OSError:
            pass
        self.ended.set()

    def hands(self):
        if self.stop == 'silent':
            self.exactly(1 << 20)
        self.sock.sendall(greeting(b'PLAIN' if self.login else b'NULL')[:20 if self.stop == 'half' else 64])
        self.exactly(64)
        if self.login:
            name, password = self.login
            self.sock.sendall(command(b'HELLO', bytes([len(name)]) + name + bytes([len(password)]) + password))
            self.frame()
            self.sock.sendall(ready(self.kind.encode(), b'INITIATE', b'\x08Identity' + bytes(4)))
        else:
            self.sock.sendall(ready(self.kind.encode()))
        self.frame()
        for topic in self.topics if self.kind != 'PULL' else ():
            self.subscribe(topic)

    def subscribe(self, topic, on=True):
        """As ZMTP 3.0 has it, or as 3.1 has it."""
        if self.old:
            self.sock.sendall(frame((b'\1' if on else b'\0') + topic))
        else:
            self.sock.sendall(command(b'SUBSCRIBE' if on else b'CANCEL', topic))

    def take(self):
        flags, body = self.frame()
        if flags & 4:
            self.answers.append(body)
            return
        parts = [body]
        while flags & 1:
            flags, body = self.frame()
            parts.append(body)
        self.messages.append(parts)

    def numbers(self):
        """The number of each tick it got (see rig.py)."""
        return [int(json.loads(parts[-1].decode())['timestamp']) for parts in self.messages]

    def close(self, reset=False):
        self.closing = True
        if self.sock is not None:
            if reset:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            try:
                self.sock.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
            except OSError:
                pass
        self.thread.join(5)
        if self.sock is not None:
            self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
