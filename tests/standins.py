"""Stand-ins for tests: Kafka brokers, InfluxDB 0.8 and other HTTP servers, a proxy for damage, certificates.

All of them listen on the loopback on a port of their own, keep it while they are down, and are used in a with
statement: at its end their sockets are closed and their threads are over.
"""
import base64
import collections
import hashlib
import hmac
import json
import os
import random
import re
import select
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import traceback
import unittest
import urllib.parse
import zlib

ALWAYS = float('inf')
LINGER = 0.2


class Hangup(Exception):
    """The connection is to be ended, in order or with a reset."""

    def __init__(self, reset=False):
        Exception.__init__(self)
        self.reset = reset


class Malformed(Exception):
    """What the peer sent is not what the protocol says; the text says where."""


class Wire:
    """A connection as the thread sees it that serves it; only kick() is for other threads."""

    def __init__(self, sock, number):
        self.sock, self.number = sock, number
        self.buffer, self.gone, self.reset, self.bell = bytearray(), False, False, None

    def more(self):
        """Reads what is there into the buffer; Hangup when the peer has said its last."""
        piece = self.sock.recv(65536)
        if not piece:
            raise Hangup()
        self.buffer += piece

    def exactly(self, n):
        while len(self.buffer) < n:
            self.more()
        return self.taken(n)

    def until(self, mark, most):
        """The bytes up to and with mark; Malformed when it does not come within that many."""
        while mark not in self.buffer:
            if len(self.buffer) > most:
                raise Malformed('no %r within %d bytes' % (mark, most))
            self.more()
        return self.taken(self.buffer.index(mark) + len(mark))

    def taken(self, n):
        out = bytes(self.buffer[:n])
        del self.buffer[:n]
        return out

    def send(self, data, piece=None, pause=0.0):
        """Sends all of it, or pieces of that many bytes with a rest after each."""
        if not piece:
            self.sock.sendall(data)
            return
        for i in range(0, len(data), piece):
            self.sock.sendall(data[i:i + piece])
            time.sleep(pause)

    def kick(self, reset=False):
        """Wakes the thread that serves this connection, which then ends it."""
        self.gone, self.reset = True, self.reset or reset
        try:
            # Not SSLSocket.shutdown(), which takes the TLS state away under the thread that reads.
            socket.socket.shutdown(self.sock, socket.SHUT_RD if reset else socket.SHUT_RDWR)
        except OSError:
            pass
        if self.bell:
            self.bell()

    def close(self):
        try:
            if self.reset:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            else:
                self.farewell()
        except (OSError, ValueError):
            pass
        self.sock.close()

    def farewell(self):
        """Says the end, and reads on a little: to close over unread bytes would be a reset."""
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.settimeout(0)
            try:
                self.sock.unwrap()
            except (OSError, ValueError):
                pass
        socket.socket.shutdown(self.sock, socket.SHUT_WR)
        end = time.monotonic() + LINGER
        while not self.gone and time.monotonic() < end:
            if select.select([self.sock], [], [], 0.02)[0] and not socket.socket.recv(self.sock, 65536):
                return


class Listener:
    """Listens on the loopback, a thread per connection; .port is the same after down() and up().

    .connections counts them all, .tls_errors has the texts of handshakes that failed, .complaints what
    peers did wrong (and what went wrong in here).
    """

    def __init__(self, tls=None, host='127.0.0.1', most=100):
        self.tls, self.host, self.most = tls, host, most
        self.connections, self.tls_errors, self.complaints = 0, [], []
        self.lock, self.stopping = threading.RLock(), threading.Event()
        self.wires, self.threads, self.server = {}, [], None
        # Bound, never listening: while the server is down connecting is refused, and nobody takes the port.
        self.held = self.bound(0)
        self.port = self.held.getsockname()[1]
        self.up()

    def bound(self, port):
        sock = socket.socket(socket.AF_INET6 if ':' in self.host else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self.host, port))
        return sock

    def up(self):
        """Listens (again)."""
        if self.server is None:
            self.server = self.bound(self.port)
            self.server.listen(50)
            self.wake, self.woken = socket.socketpair()
            self.acceptor = threading.Thread(target=self.accept, daemon=True)
            self.acceptor.start()

    def refuse(self):
        """Listens no more; the connections there are go on."""
        if self.server is not None:
            self.wake.close()
            self.acceptor.join()
            self.server.close()
            self.woken.close()
            self.server = None

    def down(self, reset=False):
        """Listens no more and ends every connection."""
        self.refuse()
        self.hang_up(reset)

    def hang_up(self, reset=False):
        """Ends every connection there is."""
        with self.lock:
            wires = list(self.wires)
        for wire in wires:
            wire.kick(reset)

    def accept(self):
        """Takes connections until it is woken; those that were made before that are not left out."""
        while self.server in select.select([self.server, self.woken], [], [])[0]:
            sock = self.server.accept()[0]
            with self.lock:
                self.begin(sock)

    def begin(self, sock):
        if len(self.wires) >= self.most:
            sock.close()
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire = Wire(sock, self.connections)
        self.connections += 1
        self.threads = [thread for thread in self.threads if thread.is_alive()]
        self.wires[wire] = thread = threading.Thread(target=self.serve, args=(wire,), daemon=True)
        self.threads.append(thread)
        thread.start()

    def serve(self, wire):
        try:
            self.gate(wire)
            if self.tls:
                self.shake_hands(wire)
            self.talk(wire)
        except Hangup as hangup:
            wire.reset = wire.reset or hangup.reset
        except Malformed as malformed:
            self.complaints.append(str(malformed))
        except OSError:
            pass
        except Exception:
            self.complaints.append(traceback.format_exc())
        wire.close()
        with self.lock:
            del self.wires[wire]

    def shake_hands(self, wire):
        wire.sock.settimeout(5)
        wire.sock = self.tls.wrap_socket(wire.sock, server_side=True, do_handshake_on_connect=False)
        if wire.gone:
            raise Hangup()
        try:
            wire.sock.do_handshake()
        except OSError as error:
            self.tls_errors.append(str(error))
            raise Hangup()
        wire.sock.settimeout(None)

    def gate(self, wire):
        """Comes before the first byte is read."""

    def talk(self, wire):
        """Serves a connection; returning ends it."""

    def rest(self, seconds):
        """Sleeps, but not on when the server is to stop."""
        if seconds and self.stopping.wait(seconds):
            raise Hangup()

    def stop(self):
        """Ends everything; RuntimeError when a thread does not end."""
        self.stopping.set()
        self.down()
        for thread in self.threads:
            thread.join(5)
        self.held.close()
        if any(thread.is_alive() for thread in self.threads):
            raise RuntimeError('a connection of %r did not end' % self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop()


OPENSSL = '''
[req]
distinguished_name = name
prompt = no
[name]
CN = nobody
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[here]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1
[elsewhere]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:other.example
[user]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[ca]
default_ca = signer
[signer]
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
'''
Pair = collections.namedtuple('Pair', 'cert key')


class Certificates:
    """Paths in a folder: ca and other_ca (texts), and a Pair(cert, key) each: good, client, stranger (a
    client of the other CA), and the wrong ones: expired, other_host, unknown_ca, self_signed.
    """

    def __init__(self, folder):
        self.folder = str(folder)
        with open(os.path.join(self.folder, 'openssl.cnf'), 'w') as file:
            file.write(OPENSSL)
        open(os.path.join(self.folder, 'index.txt'), 'w').close()
        authority, other = self.self_made('ca', 'authority'), self.self_made('other-ca', 'authority')
        self.ca, self.other_ca = authority.cert, other.cert
        self.good = self.signed('good', 'here', authority)
        self.client = self.signed('client', 'user', authority)
        self.stranger = self.signed('stranger', 'user', other)
        self.expired = self.signed('expired', 'here', authority, '20210101000000Z')
        self.other_host = self.signed('other-host', 'elsewhere', authority)
        self.unknown_ca = self.signed('unknown-ca', 'here', other)
        self.self_signed = self.self_made('self-signed', 'here')

    def path(self, name):
        return os.path.join(self.folder, name)

    def openssl(self, *words):
        process = subprocess.Popen(['openssl'] + list(words), cwd=self.folder, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = process.communicate(timeout=30)[0]
        if process.returncode:
            raise RuntimeError('openssl %s: %s' % (' '.join(words), said.decode('utf-8', 'replace')))

    def asked(self, name, *more):
        self.openssl('req', '-config', 'openssl.cnf', '-new', '-newkey', 'ec', '-pkeyopt',
                     'ec_paramgen_curve:prime256v1', '-nodes', '-subj', '/CN=' + name,
                     '-keyout', name + '.key', *more)

    def self_made(self, name, kind):
        self.asked(name, '-x509', '-days', '3650', '-extensions', kind, '-out', name + '.pem')
        return Pair(self.path(name + '.pem'), self.path(name + '.key'))

    def signed(self, name, kind, authority, until='20491231000000Z'):
        self.asked(name, '-out', name + '.csr')
        # `openssl ca` is the one command that sets both dates in 1.1.1 and in 3.0.
        self.openssl('ca', '-config', 'openssl.cnf', '-batch', '-notext', '-extensions', kind,
                     '-cert', authority.cert, '-keyfile', authority.key, '-in', name + '.csr',
                     '-startdate', '20200101000000Z', '-enddate', until, '-out', name + '.pem')
        return Pair(self.path(name + '.pem'), self.path(name + '.key'))

    def server(self, name='good', client=False, tls13=True):
        """A context for a server that shows that certificate; client: it wants one of the CA in return."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pair = getattr(self, name)
        context.load_cert_chain(pair.cert, pair.key)
        if client:
            context.load_verify_locations(self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        if not tls13 and hasattr(ssl, 'TLSVersion'):
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        elif not tls13:
            context.options |= getattr(ssl, 'OP_NO_TLSv1_3', 0)
        return context


def certificates(folder):
    """Certificates made in the folder; where openssl is missing unittest.SkipTest, which pytest takes too."""
    if not shutil.which('openssl'):
        raise unittest.SkipTest('needs the openssl command')
    return Certificates(folder)


class Switch:
    """What a proxy does: the most bytes of answers and requests, how it cuts and how often, and so on."""

    def __init__(self, answers=None, requests=None, reset=False, times=ALWAYS, swallow=False, drip=0.0,
                 seed=None):
        self.answers, self.requests, self.reset, self.times = answers, requests, reset, times
        self.swallow, self.drip, self.seed = swallow, drip, seed


class Way:
    """One direction of a connection through a proxy; passed: bytes since the switch was thrown."""

    def __init__(self, source, target):
        self.source, self.target = source, target
        self.pending, self.passed, self.ended, self.shut, self.due = bytearray(), 0, False, False, 0.0

    def read(self, change):
        try:
            data = self.source.recv(65536)
        except BlockingIOError:
            return
        self.ended = not data
        self.pending += change(data)

    def ready(self, limit, drip):
        """How many bytes may go now."""
        most = len(self.pending) if limit is None else min(len(self.pending), limit - self.passed)
        if drip:
            return min(most, 1) if time.monotonic() >= self.due else 0
        return most

    def write(self, limit, drip):
        try:
            n = self.target.send(self.pending[:self.ready(limit, drip)])
        except BlockingIOError:
            return 0
        del self.pending[:n]
        self.passed += n
        self.due = time.monotonic() + drip
        return n

    def spent(self, limit):
        """Whether it is to be cut here: the limit is reached; one of 0 is when the first byte comes."""
        return limit is not None and self.passed >= limit and bool(limit or self.pending)

    def finish(self):
        """Hands the end on when everything before it is through; whether that is done."""
        if self.ended and not self.pending and not self.shut:
            self.shut = True
            self.target.shutdown(socket.SHUT_WR)
        return self.shut


class Link:
    """A connection through a proxy."""

    def __init__(self, proxy, wire, server):
        self.proxy, self.wire, self.server = proxy, wire, server
        self.up, self.down = Way(wire.sock, server), Way(server, wire.sock)
        self.wake, self.woken = socket.socketpair()
        self.switch, self.random = None, None
        for sock in (wire.sock, server, self.wake, self.woken):
            sock.setblocking(False)

    def ring(self):
        try:
            self.wake.send(b'!')
        except OSError:
            pass

    def look(self):
        """Takes a switch over that was thrown."""
        if self.switch is not self.proxy.switch:
            self.switch = self.proxy.switch
            self.up.passed = self.down.passed = 0
            if self.switch.swallow:
                self.down.pending.clear()
            if self.switch.seed is not None:
                self.random = random.Random('%s %s' % (self.switch.seed, self.wire.number))

    def changed(self, data):
        """What the client gets in place of an answer."""
        if self.switch.swallow:
            return b''
        if self.switch.seed is not None:
            return bytes(self.random.getrandbits(8) for _ in data)
        return data

    def run(self):
        try:
            while not self.wire.gone:
                self.look()
                if self.up.spent(self.switch.requests) or self.down.spent(self.switch.answers):
                    return self.cut()
                if self.up.finish() and (self.switch.swallow or self.down.finish()) and self.down.ended:
                    return
                if not self.switch.swallow:
                    self.down.finish()
                self.step()
        except OSError:
            # One side was reset: the other gets to know it in the same way.
            self.wire.reset = True
            reset_on_close(self.server)
        finally:
            self.wake.close()
            self.woken.close()

    def step(self):
        switch = self.switch
        reads = [way.source for way in (self.up, self.down) if not way.ended and len(way.pending) < 1 << 18]
        up, down = self.up.ready(switch.requests, 0), self.down.ready(switch.answers, switch.drip)
        writes = [self.server] * bool(up) + [self.wire.sock] * bool(down)
        wait = max(self.down.due - time.monotonic(), 0) if switch.drip and self.down.pending else None
        reads, writes, _ = select.select(reads + [self.woken], writes, [], wait)
        if self.woken in reads:
            self.woken.recv(4096)
        if self.wire.sock in reads:
            self.up.read(bytes)
        if self.server in reads:
            self.down.read(self.changed)
        # A thrown switch counts from its first byte: what was looked at before must not slip through.
        if switch is self.proxy.switch:
            if self.server in writes:
                self.proxy.counted('up', self.up, switch.requests, 0)
            if self.wire.sock in writes:
                self.proxy.counted('down', self.down, switch.answers, switch.drip)

    def cut(self):
        self.wire.reset = self.switch.reset
        if self.switch.reset:
            reset_on_close(self.server)
        self.proxy.was_cut(self.switch)


def reset_on_close(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))


class Proxy(Listener):
    """Passes connections on to a port, and does them damage when a switch is thrown.

    Each switch replaces the one before and holds for new connections and for those that are there; bytes
    count per connection, from when the switch was thrown. .to_server and .to_client: bytes passed in all;
    .cuts: connections cut.
    """

    def __init__(self, port_behind, host_behind='127.0.0.1', host='127.0.0.1'):
        self.behind, self.switch = (host_behind, port_behind), Switch()
        self.bytes, self.cuts = {'up': 0, 'down': 0}, 0
        Listener.__init__(self, host=host)

    @property
    def to_server(self):
        with self.lock:
            return self.bytes['up']

    @property
    def to_client(self):
        with self.lock:
            return self.bytes['down']

    def throw(self, **switch):
        with self.lock:
            self.switch = Switch(**switch)
            bells = [wire.bell for wire in self.wires if wire.bell]
        for bell in bells:
            bell()

    def pass_all(self):
        self.throw()

    def cut_answers(self, n, reset=False, times=ALWAYS):
        """Ends a connection after n bytes for the client (0: when the first would come); after that many
        connections everything passes again."""
        self.throw(answers=n, reset=reset, times=times)

    def cut_requests(self, n, reset=False, times=ALWAYS):
        """Ends a connection after n bytes for the server (0: when the first would go)."""
        self.throw(requests=n, reset=reset, times=times)

    def swallow(self):
        """Requests reach the server; no answer comes, not even its end."""
        self.throw(swallow=True)

    def drip(self, seconds):
        """One byte of the answers at a time, with so long a rest after it."""
        self.throw(drip=seconds)

    def garbage(self, seed=0):
        """As many bytes as the server answers, but random ones: the same for the same seed and connection."""
        self.throw(seed=seed)

    def counted(self, name, way, limit, drip):
        """Writes under the lock, so that whoever has got bytes finds them counted."""
        with self.lock:
            self.bytes[name] += way.write(limit, drip)

    def was_cut(self, switch):
        with self.lock:
            self.cuts += 1
            switch.times -= 1
            over = switch.times <= 0 and self.switch is switch
        if over:
            self.pass_all()

    def talk(self, wire):
        with socket.create_connection(self.behind, 5) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = Link(self, wire, server)
            wire.bell = link.ring
            link.run()


class Reader:
    """Reads big-endian fields from bytes and takes nothing that is not quite right."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        if n < 0 or self.at + n > len(self.data):
            raise Malformed('%d bytes wanted at %d of %d' % (n, self.at, len(self.data)))
        self.at += n
        return self.data[self.at - n:self.at]

    def number(self, kind):
        return struct.unpack('>' + kind, self.take(struct.calcsize('>' + kind)))[0]

    def int8(self):
        return self.number('b')

    def int16(self):
        return self.number('h')

    def int32(self):
        return self.number('i')

    def int64(self):
        return self.number('q')

    def boolean(self):
        value = self.int8()
        if value not in (0, 1):
            raise Malformed('boolean %d' % value)
        return bool(value)

    def text(self, n):
        try:
            return self.take(n).decode()
        except UnicodeDecodeError as error:
            raise Malformed('text: %s' % error)

    def string(self):
        return self.text(self.int16())

    def nullable_string(self):
        n = self.int16()
        return None if n == -1 else self.text(n)

    def blob(self):
        return self.take(self.int32())

    def array(self, read):
        n = self.int32()
        if n < 0:
            raise Malformed('array of %d' % n)
        return [read() for _ in range(n)]

    def nullable_array(self, read):
        if self.data[self.at:self.at + 4] == b'\xff' * 4:
            self.at += 4
            return None
        return self.array(read)

    def varint(self, bits=32):
        value, shift, byte = 0, 0, 0x80
        while byte & 0x80:
            byte = self.take(1)[0]
            value |= (byte & 0x7f) << shift
            shift += 7
            if value >> bits or (byte == 0 and shift > 7):
                raise Malformed('varint too long at %d' % self.at)
        return (value >> 1) ^ -(value & 1)

    def counted(self):
        """Bytes after a varint that says how many, None for -1."""
        n = self.varint()
        return None if n == -1 else self.take(n)

    def end(self):
        if self.at != len(self.data):
            raise Malformed('%d bytes too many' % (len(self.data) - self.at))


def int16(value):
    return struct.pack('>h', value)


def int32(value):
    return struct.pack('>i', value)


def int64(value):
    return struct.pack('>q', value)


def string(text):
    """A string, or a nullable one when it is None."""
    if text is None:
        return int16(-1)
    data = text.encode()
    return int16(len(data)) + data


def blob(data):
    return int32(len(data)) + data


def array(items):
    items = list(items)
    return int32(len(items)) + b''.join(items)


def crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82f63b78 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = crc_table()


def crc32c(data):
    """CRC-32C: crc32c(b'123456789') -> 0xe3069283"""
    crc = 0xffffffff
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xff] ^ crc >> 8
    return crc ^ 0xffffffff


CODECS = {0: 'none', 1: 'gzip', 2: 'snappy', 3: 'lz4', 4: 'zstd'}
Batch = collections.namedtuple('Batch', 'size codec newest producer epoch sequence count records')
Record = collections.namedtuple('Record', 'timestamp key value headers')


def gunzip(data, most=1 << 26):
    """What is in a gzip member that is whole and alone; Malformed otherwise."""
    stream = zlib.decompressobj(31)
    try:
        out = stream.decompress(data, most)
    except zlib.error as error:
        raise Malformed('gzip: %s' % error)
    if not stream.eof or stream.unused_data:
        raise Malformed('gzip: %d bytes left, whole: %s' % (len(stream.unused_data), stream.eof))
    return out


def right(condition, text, *values):
    if not condition:
        raise Malformed('record batch: ' + text % values)


def read_batch(data):
    """The Batch in a partition's records: one of magic 2, right in every byte; Malformed otherwise.

    .records is None when they are compressed with what the standard library has not.
    """
    r = Reader(data)
    base, length, _, magic = r.int64(), r.int32(), r.int32(), r.int8()
    right(magic == 2, 'magic %d', magic)
    right(base == 0, 'base offset %d', base)
    right(length == len(data) - 12, 'length %d in %d bytes: not one batch', length, len(data))
    crc = r.number('I')
    right(crc == crc32c(data[21:]), 'crc %08x is not %08x', crc, crc32c(data[21:]))
    codec, last, first, newest = r.int16(), r.int32(), r.int64(), r.int64()
    right(codec in CODECS, 'attributes %04x', codec)
    producer, epoch, sequence, count = r.int64(), r.int16(), r.int32(), r.int32()
    right(count > 0 and last == count - 1, 'last offset delta %d of %d records', last, count)
    ids = (producer, epoch, sequence)
    right(ids == (-1, -1, -1) or min(ids) >= 0, 'producer %d, epoch %d, sequence %d', *ids)
    records = None
    if codec < 2:
        section = r.take(len(data) - r.at)
        records = read_records(gunzip(section) if codec else section, count, first)
        right(newest == max(record.timestamp for record in records), 'max timestamp %d', newest)
        right(first == records[0].timestamp, 'base timestamp %d', first)
    return Batch(len(data), codec, newest, producer, epoch, sequence, count, records)


def read_records(data, count, first):
    r = Reader(data)
    records = [read_record(Reader(r.counted() or b''), i, first) for i in range(count)]
    r.end()
    return records


def read_record(r, number, first):
    attributes, timestamp, delta = r.int8(), first + r.varint(64), r.varint()
    right(attributes == 0, 'record attributes %02x', attributes)
    right(delta == number, 'offset delta %d of record %d', delta, number)
    right(timestamp >= -1, 'timestamp %d', timestamp)
    key, value = r.counted(), r.counted()
    headers, n = [], r.varint()
    right(n >= 0, '%d headers', n)
    for _ in range(n):
        headers.append((r.text(r.varint()), r.counted()))
    r.end()
    return Record(timestamp, key, value, headers)


Stored = collections.namedtuple('Stored', 'first last offset newest')


def after(sequence, n):
    """The sequence number n after this one: it goes on with 0 after 2**31 - 1."""
    return (sequence + n) % (1 << 31)


class Producer:
    """What a partition remembers of a producer: its epoch and its last five batches."""

    def __init__(self, epoch):
        self.epoch, self.batches = epoch, collections.deque(maxlen=5)

    def judge(self, batch):
        """(error, offset of what is there already or None) for a batch of this producer."""
        last = after(batch.sequence, batch.count - 1)
        if batch.epoch == self.epoch:
            for stored in self.batches:
                if (stored.first, stored.last) == (batch.sequence, last):
                    return 0, stored
        if batch.epoch < self.epoch:
            return 47, None
        if batch.epoch > self.epoch:
            return (45 if batch.sequence else 0), None
        if self.batches and batch.sequence != after(self.batches[-1].last, 1):
            return 45, None
        return 0, None

    def append(self, batch, offset):
        if batch.epoch != self.epoch:
            self.epoch = batch.epoch
            self.batches.clear()
        last = after(batch.sequence, batch.count - 1)
        self.batches.append(Stored(batch.sequence, last, offset, batch.newest))


class Refused(Exception):
    """A login that is not accepted, and the error code of the answer."""

    def __init__(self, text, code=58):
        Exception.__init__(self, text)
        self.code = code


def xor(one, other):
    return bytes(a ^ b for a, b in zip(one, other))


class Plain:
    """SASL PLAIN; .user after step() is who it was."""

    def __init__(self, users):
        self.users, self.user = users, None

    def step(self, token):
        """(answer, whether that was the last); Refused for a wrong password."""
        parts = token.split(b'\0')
        if len(parts) != 3:
            raise Malformed('PLAIN token of %d parts' % len(parts))
        authority, user, password = [part.decode() for part in parts]
        if authority not in ('', user) or self.users.get(user) != password:
            raise Refused('Authentication failed: Invalid username or password')
        self.user = user
        return b'', True


class Scram:
    """SASL SCRAM (RFC 5802) as a server; .user after the last step() is who it was.

    fault: 'nonce', 'iterations' (too few) and 'signature' make an answer false; 'error' refuses by e= in a
    last answer without an error code, as some brokers do.
    """

    def __init__(self, digest, users, iterations=4096, fault=None, salt=None, nonce=None):
        self.digest, self.users, self.fault = digest, users, fault
        self.iterations = 1 if fault == 'iterations' else iterations
        self.salt = os.urandom(16) if salt is None else salt
        self.nonce = base64.b64encode(os.urandom(15)).decode() if nonce is None else nonce
        self.user, self.name, self.first = None, None, None

    def step(self, token):
        """(answer, whether that was the last); Refused for a wrong password."""
        try:
            text = token.decode()
        except UnicodeDecodeError:
            raise Malformed('SCRAM: %r' % token)
        if self.first is None:
            return self.challenge(text), False
        return self.judgement(text), True

    def challenge(self, text):
        match = re.match(r'n,,(n=((?:[^=,]|=2C|=3D)+),r=([\x21-\x2b\x2d-\x7e]+))\Z', text)
        if not match:
            raise Malformed('SCRAM client-first %r' % text)
        self.name = match.group(2).replace('=2C', ',').replace('=3D', '=')
        if self.name not in self.users and self.fault != 'error':
            raise self.refusal()
        nonce = match.group(3) + self.nonce
        self.expected = nonce
        if self.fault == 'nonce':
            nonce = 'x' + nonce[1:] if nonce[0] != 'x' else 'y' + nonce[1:]
        salt = base64.b64encode(self.salt).decode()
        answer = 'r=%s,s=%s,i=%d' % (nonce, salt, self.iterations)
        self.first = match.group(1) + ',' + answer
        return answer.encode()

    def judgement(self, text):
        match = re.match(r'(c=biws,r=([\x21-\x2b\x2d-\x7e]+)),p=([A-Za-z0-9+/]+={0,2})\Z', text)
        if not match or match.group(2) != self.expected:
            raise Malformed('SCRAM client-final %r' % text)
        message = (self.first + ',' + match.group(1)).encode()
        password = self.users.get(self.name, '').encode()
        salted = hashlib.pbkdf2_hmac(self.digest, password, self.salt, self.iterations)
        key = self.mac(salted, b'Client Key')
        proof = xor(key, self.mac(hashlib.new(self.digest, key).digest(), message))
        if self.name not in self.users or proof != base64.b64decode(match.group(3)):
            if self.fault == 'error':
                return b'e=unknown-user'
            raise self.refusal()
        self.user = self.name
        signature = self.mac(self.mac(salted, b'Server Key'), message)
        if self.fault == 'signature':
            signature = xor(signature, b'\1' * len(signature))
        return b'v=' + base64.b64encode(signature)

    def mac(self, key, message):
        return hmac.new(key, message, self.digest).digest()

    def refusal(self):
        name = 'SCRAM-SHA-' + self.digest[3:]
        return Refused('Authentication failed during authentication due to invalid credentials with SASL '
                       'mechanism ' + name)


APIS = {0: 'produce', 3: 'metadata', 17: 'sasl_handshake', 18: 'api_versions', 22: 'init_producer_id',
        36: 'sasl_authenticate'}
SPOKEN = {0: (3, 8), 3: (1, 8), 17: (0, 1), 18: (0, 2), 22: (0, 1), 36: (0, 1)}
# What real brokers say; of the APIs not in SPOKEN, Fetch and ListOffsets: clients conclude from them.
VERSIONS = {
    '0.10.2': {0: (0, 2), 1: (0, 3), 2: (0, 1), 3: (0, 2), 17: (0, 0), 18: (0, 0)},
    '0.11': {0: (0, 3), 1: (0, 5), 2: (0, 2), 3: (0, 4), 17: (0, 0), 18: (0, 1), 22: (0, 0)},
    '1.1': {0: (0, 5), 1: (0, 7), 2: (0, 2), 3: (0, 5), 17: (0, 1), 18: (0, 1), 22: (0, 0), 36: (0, 0)},
    '2.3': {0: (0, 7), 1: (0, 11), 2: (0, 5), 3: (0, 8), 17: (0, 1), 18: (0, 2), 22: (0, 1), 36: (0, 1)},
    '2.8': {0: (0, 9), 1: (0, 12), 2: (0, 6), 3: (0, 11), 17: (0, 1), 18: (0, 3), 22: (0, 4), 36: (0, 2)},
    '3.9': {0: (0, 11), 1: (0, 17), 2: (0, 9), 3: (0, 12), 17: (0, 1), 18: (0, 4), 22: (0, 5), 36: (0, 2)},
    '4.3': {0: (0, 13), 1: (4, 18), 2: (1, 11), 3: (0, 13), 17: (0, 1), 18: (0, 4), 22: (0, 5), 36: (0, 2)},
}
TOPIC = re.compile(r'[a-zA-Z0-9._-]{1,249}\Z')
LARGEST_FRAME = 100 << 20
Request = collections.namedtuple('Request', 'broker api version correlation client raw')


class Fault:
    """What is to go wrong with an API: a code, 'close', 'reset' or 'silence'; stored: after the work."""

    def __init__(self, api, code, times, broker, topic, partition, stored, message, record_errors):
        self.api, self.code, self.times, self.broker = api, code, times, broker
        self.topic, self.partition, self.stored = topic, partition, stored
        self.message, self.record_errors = message, list(record_errors)

    def fits(self, api, broker, topic, partition):
        return (self.api == api and self.broker in (None, broker) and self.topic in (None, topic)
                and self.partition in (None, partition))

    def act(self):
        """Ends the request here when the fault is no error code."""
        if self.code == 'silence':
            raise Silence()
        if self.code in ('close', 'reset'):
            raise Hangup(self.code == 'reset')


class Silence(Exception):
    """No answer to this request."""


class Result:
    """What Produce says of a partition."""

    def __init__(self, error=0, offset=-1, appended=-1, message=None, record_errors=()):
        self.error, self.offset, self.appended = error, offset, appended
        self.message, self.record_errors = message, record_errors

    def encoded(self, partition, version):
        out = int32(partition) + int16(self.error) + int64(self.offset) + int64(self.appended)
        if version >= 5:
            out += int64(-1 if self.error else 0)
        if version >= 8:
            out += array(int32(i) + string(text) for i, text in self.record_errors) + string(self.message)
        return out


class Broker(Listener):
    """One broker of a cluster."""

    def __init__(self, cluster, node, tls, host):
        self.cluster, self.node = cluster, node
        Listener.__init__(self, tls, host)
        self.complaints, self.advertised = cluster.complaints, (self.host, self.port)

    def gate(self, wire):
        self.cluster.thawed(self, wire)

    def talk(self, wire):
        Session(self.cluster, self, wire).run()


class KafkaStandin:
    """Brokers 1..n on the loopback that speak as much of the Kafka protocol as a producer needs.

    tls: a server's ssl context; sasl: the mechanisms, any of PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512; users:
    {name: password}; versions: a key of VERSIONS or such a dict; topics: {name: number of partitions}.
    Other clients than ours want versions='2.3' or older: newer brokers are asked in encodings not known here.

    Attributes that may be set at any time: auto_create, partitions and creating (the error code that the
    Metadata answer that makes a topic has for it), denied and compacted (sets of topics), max_message_bytes,
    timestamps ((ms before, ms after) now, each or None, else error 32), throttle_ms and mute (whether it is
    kept), delay (seconds before each answer), piece and pause (bytes sent at a time, seconds between),
    session_lifetime_ms, scram_fault and iterations (see Scram), refusal_delay (seconds before a login is
    refused).

    What came: requests (of Request), logins [(broker, mechanism, user)], expired (APIs asked for after the
    session's end), torn (frames of which only a part came), complaints (texts: anything a client should
    not do).
    """

    def __init__(self, brokers=1, tls=None, sasl=(), users=None, versions='4.3', topics=None,
                 host='127.0.0.1'):
        self.sasl, self.users, self.topics = tuple(sasl), dict(users or {}), {}
        self.versions = VERSIONS[versions] if isinstance(versions, str) else versions
        self.auto_create, self.partitions, self.creating = True, 1, 3 if versions in ('3.9', '4.3') else 5
        self.denied, self.compacted = set(), set()
        self.max_message_bytes, self.timestamps = 1048588, (None, None)
        self.throttle_ms, self.mute, self.delay, self.piece, self.pause = 0, False, 0.0, None, 0.0005
        self.session_lifetime_ms, self.refusal_delay = 0, 0.0
        self.scram_fault, self.iterations = None, 4096
        self.requests, self.logins, self.expired, self.torn, self.complaints = [], [], [], [], []
        self.faults, self.logs, self.producers, self.frozen, self.absent = [], {}, {}, set(), set()
        self.next_producer, self.lock = 1000, threading.RLock()
        self.thaw_bell = threading.Condition(self.lock)
        self.brokers = collections.OrderedDict((n, Broker(self, n, tls, host)) for n in range(1, brokers + 1))
        for name, partitions in (topics or {}).items():
            self.create(name, partitions)

    @property
    def port(self):
        return self.brokers[1].port

    @property
    def address(self):
        """host:port,host:port as clients want it."""
        return ','.join('%s:%d' % (b.host, b.port) for b in self.brokers.values())

    @property
    def connections(self):
        return sum(broker.connections for broker in self.brokers.values())

    @property
    def tls_errors(self):
        return [text for broker in self.brokers.values() for text in broker.tls_errors]

    def create(self, topic, partitions=1):
        """Makes a topic whose partitions the brokers lead in turn."""
        with self.lock:
            self.topics[topic] = [i % len(self.brokers) + 1 for i in range(partitions)]
            for i in range(partitions):
                self.logs[topic, i] = []

    def advertise(self, broker, host, port):
        """What Metadata gives as the address of the broker."""
        self.brokers[broker].advertised = (host, port)

    def fail(self, api, code, times=1, broker=None, topic=None, partition=None, message=None,
             record_errors=()):
        """The API answers with that error code, or 'close', 'reset' or 'silence' is what it does.

        times counts partitions of Produce and topics of Metadata, requests of other APIs. Produce has
        stored nothing then. message and record_errors [(number, text)] are for Produce v8.
        """
        with self.lock:
            self.faults.append(Fault(api, code, times, broker, topic, partition, False, message,
                                     record_errors))

    def append_then_fail(self, api, code, times=1, broker=None, topic=None, partition=None):
        """As fail(), but the records are stored before: the answer is an error, or does not come."""
        with self.lock:
            self.faults.append(Fault(api, code, times, broker, topic, partition, True, None, ()))

    def heal(self):
        """No fault is left that fail() and append_then_fail() asked for."""
        with self.lock:
            del self.faults[:]

    def fault(self, api, broker, topic=None, partition=None):
        """The Fault that is due, or None."""
        with self.lock:
            for fault in self.faults:
                if fault.fits(api, broker, topic, partition):
                    fault.times -= 1
                    if fault.times <= 0:
                        self.faults.remove(fault)
                    return fault
        return None

    def move_leader(self, topic, partition, broker):
        """Another broker leads the partition from now on; -1: none."""
        with self.lock:
            self.topics[topic][partition] = broker

    def down(self, broker, reset=False, forget=False):
        """The broker listens no more and its connections end; forget: Metadata does not name it either."""
        self.brokers[broker].down(reset)
        if forget:
            self.absent.add(broker)

    def up(self, broker):
        """The broker is there again, on the same port."""
        self.absent.discard(broker)
        self.brokers[broker].up()

    def freeze(self, broker):
        """The broker accepts connections and reads a request, but does nothing until it thaws."""
        with self.lock:
            self.frozen.add(broker)

    def thaw(self, broker):
        """The broker goes on, first with what it has read."""
        with self.lock:
            self.frozen.discard(broker)
            self.thaw_bell.notify_all()

    def thawed(self, broker, wire):
        """Comes back when the broker is not frozen; Hangup when the connection is to end before."""
        wire.bell = self.ring
        with self.lock:
            while broker.node in self.frozen and not wire.gone:
                self.thaw_bell.wait(5)
        if wire.gone:
            raise Hangup()

    def ring(self):
        with self.lock:
            self.thaw_bell.notify_all()

    def records(self, topic):
        """[(partition, offset, timestamp, key, value, headers)] in the order of partitions and offsets."""
        with self.lock:
            return [(partition, offset) + tuple(record)
                    for partition in range(len(self.topics.get(topic, ())))
                    for offset, record in enumerate(self.logs[topic, partition])]

    def values(self, topic):
        return [record[4] for record in self.records(topic)]

    def asked(self, api):
        """The requests for an API, by its name in APIS."""
        return [request for request in self.requests if APIS.get(request.api) == api]

    def stop(self):
        for broker in self.brokers.values():
            broker.stop()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop()

    def append(self, topic, partition, batch):
        """Stores a batch -> Result, as a leader does who has checked all but the sequence."""
        producer = None
        if batch.producer >= 0:
            key = (topic, partition, batch.producer)
            producer = self.producers.setdefault(key, Producer(batch.epoch))
            error, stored = producer.judge(batch)
            if error:
                return Result(error)
            if stored:
                return Result(0, stored.offset, stored.newest)
        log = self.logs[topic, partition]
        offset = len(log)
        log.extend(batch.records)
        if producer:
            producer.append(batch, offset)
        return Result(0, offset)

    def verdict(self, node, topic, partition, batch, version):
        """The Result when the batch cannot be stored here, or None."""
        leaders = self.topics.get(topic)
        if topic in self.denied:
            return Result(29, message='Topic authorization failed.')
        if leaders is None or not 0 <= partition < len(leaders):
            return Result(3)
        if leaders[partition] != node:
            return Result(6)
        if batch.codec == 4 and version < 7:
            return Result(76)
        if batch.records is None:
            raise Malformed('record batch: %s is not known here' % CODECS[batch.codec])
        if batch.size > self.max_message_bytes:
            text = ('The record batch size in the append to %s-%d is %d bytes which exceeds the maximum '
                    'configured value of %d.')
            return Result(10, message=text % (topic, partition, batch.size, self.max_message_bytes))
        return self.invalid(topic, batch)

    def invalid(self, topic, batch):
        """The Result when a record breaks a rule of the topic, or None."""
        before, after_ = self.timestamps
        now = time.time() * 1000
        early = [i for i, r in enumerate(batch.records) if before is not None and r.timestamp < now - before]
        late = [i for i, r in enumerate(batch.records) if after_ is not None and r.timestamp > now + after_]
        if early or late:
            return Result(32, message='One or more records have been rejected due to invalid timestamp',
                          record_errors=[(i, 'Timestamp out of range') for i in early + late])
        bare = [i for i, record in enumerate(batch.records) if record.key is None and topic in self.compacted]
        if bare:
            text = 'Compacted topic cannot accept message without key'
            return Result(87, message='One or more records have been rejected',
                          record_errors=[(i, text) for i in bare])
        return None


class Session:
    """A connection to a broker: reads requests, and answers them in order."""

    def __init__(self, cluster, broker, wire):
        self.cluster, self.broker, self.wire, self.node = cluster, broker, wire, broker.node
        self.user, self.mechanism, self.exchange, self.expires = None, None, None, None
        self.bare = False

    def run(self):
        try:
            while True:
                frame = self.frame()
                self.cluster.thawed(self.broker, self.wire)
                self.handle(frame)
        except Malformed as malformed:
            raise Malformed('broker %d: %s' % (self.node, malformed))

    def frame(self):
        size = struct.unpack('>i', self.exactly(4))[0]
        if not 0 <= size <= LARGEST_FRAME or (size < 8 and not self.bare):
            raise Malformed('frame of %d bytes' % size)
        return self.exactly(size)

    def exactly(self, n):
        try:
            return self.wire.exactly(n)
        except (Hangup, OSError):
            if self.wire.buffer and not self.wire.gone:
                self.cluster.torn.append(bytes(self.wire.buffer))
            raise

    def send(self, body):
        self.broker.rest(self.cluster.delay)
        self.wire.send(int32(len(body)) + body, self.cluster.piece, self.cluster.pause)

    def handle(self, frame):
        raw = int32(len(frame)) + frame
        if self.bare:
            self.cluster.requests.append(Request(self.node, None, None, None, None, raw))
            return self.bare_token(frame)
        r = Reader(frame)
        api, version, correlation, client = r.int16(), r.int16(), r.int32(), r.nullable_string()
        self.cluster.requests.append(Request(self.node, api, version, correlation, client, raw))
        self.admit(api, version)
        try:
            body = self.answer(r, api, version)
        except Silence:
            return None
        except Refused as refused:
            self.send(int32(correlation) + int16(refused.code) + string(str(refused)) + blob(b'')
                      + (int64(0) if version >= 1 else b''))
            raise Hangup()
        self.send(int32(correlation) + body)
        if api == 17 and body[:2] == int16(33):
            raise Hangup()
        if self.cluster.throttle_ms and self.cluster.mute:
            self.broker.rest(self.cluster.throttle_ms / 1000.0)
        return None

    def admit(self, api, version):
        """Malformed for what no broker of these versions answers; Hangup when the login is over."""
        if api not in APIS or api not in self.cluster.versions:
            raise Malformed('api %d is not there' % api)
        low, high = self.cluster.versions[api]
        if api != 18 and not max(low, SPOKEN[api][0]) <= version <= min(high, SPOKEN[api][1]):
            raise Malformed('%s v%d is not there, or not known here' % (APIS[api], version))
        if not self.cluster.sasl or api in (17, 18, 36):
            return
        if self.user is None:
            raise Malformed('%s before the login' % APIS[api])
        if self.expires is not None and time.monotonic() > self.expires:
            self.cluster.expired.append(APIS[api])
            raise Hangup()

    def answer(self, r, api, version):
        """The body of the answer to a request whose header is read."""
        known = version <= SPOKEN[api][1]
        if api == 18 and not (known and version <= self.cluster.versions[18][1]):
            return int16(35) + array([struct.pack('>hhh', 18, 0, min(2, self.cluster.versions[18][1]))])
        return getattr(self, APIS[api])(r, version)

    def error(self, api):
        """The error code that is due for a request, mostly 0."""
        fault = self.cluster.fault(api, self.node)
        if fault is None:
            return 0
        fault.act()
        return fault.code

    def throttle(self, when=True):
        return int32(self.cluster.throttle_ms) if when else b''

    def api_versions(self, r, version):
        r.end()
        error = self.error('api_versions')
        ranges = [] if error else sorted(self.cluster.versions.items())
        return (int16(error) + array(struct.pack('>hhh', api, low, high) for api, (low, high) in ranges)
                + self.throttle(version >= 1))

    def metadata(self, r, version):
        asked = r.nullable_array(r.string)
        create = r.boolean() if version >= 4 else True
        if version >= 8:
            r.boolean()
            r.boolean()
        r.end()
        with self.cluster.lock:
            names = sorted(self.cluster.topics) if asked is None else asked
            topics = array([self.topic(name, create, version) for name in names])
            brokers = [b for n, b in self.cluster.brokers.items() if n not in self.cluster.absent]
            addresses = array(int32(b.node) + string(b.advertised[0]) + int32(b.advertised[1]) + string(None)
                              for b in brokers)
            controller = brokers[0].node if brokers else -1
        return (self.throttle(version >= 3) + addresses + (string('stand-in') if version >= 2 else b'')
                + int32(controller) + topics + (int32(-1 << 31) if version >= 8 else b''))

    def topic(self, name, create, version):
        error, leaders = self.topic_state(name, create)
        fault = self.cluster.fault('metadata', self.node, name)
        if fault:
            fault.act()
            error, leaders = fault.code, []
        partitions = [self.partition(i, leader, version) for i, leader in enumerate(leaders)]
        return (int16(error) + string(name) + b'\0' + array(partitions)
                + (int32(-1 << 31) if version >= 8 else b''))

    def topic_state(self, name, create):
        """(error, leaders) of a topic, which is made when that is wanted."""
        cluster = self.cluster
        if name in cluster.denied:
            return 29, []
        if name in cluster.topics:
            return 0, cluster.topics[name]
        if not TOPIC.match(name) or name in ('.', '..'):
            return 17, []
        if not (create and cluster.auto_create):
            return 3, []
        cluster.create(name, cluster.partitions)
        return (cluster.creating, []) if cluster.creating else (0, cluster.topics[name])

    def partition(self, number, leader, version):
        there = leader in self.cluster.brokers and leader not in self.cluster.absent
        leader = leader if there else -1
        nodes = array(int32(node) for node in self.cluster.brokers)
        alive = array(int32(node) for node in self.cluster.brokers if node not in self.cluster.absent)
        return (int16(0 if there else 5) + int32(number) + int32(leader)
                + (int32(0) if version >= 7 else b'') + nodes + alive
                + (array(int32(node) for node in sorted(self.cluster.absent)) if version >= 5 else b''))

    def init_producer_id(self, r, version):
        transactional = r.nullable_string()
        r.int32()
        r.end()
        if transactional is not None:
            raise Malformed('transactions are not known here')
        error = self.error('init_producer_id')
        with self.cluster.lock:
            producer = self.cluster.next_producer
            self.cluster.next_producer += not error
        return (self.throttle() + int16(error)
                + (int64(-1) + int16(-1) if error else int64(producer) + int16(0)))

    def produce(self, r, version):
        transactional, acks = r.nullable_string(), r.int16()
        r.int32()
        topics = r.array(lambda: (r.string(), r.array(lambda: (r.int32(), r.blob()))))
        r.end()
        if transactional is not None:
            raise Malformed('transactions are not known here')
        places = [(topic, partition) for topic, parts in topics for partition, _ in parts]
        if not places or len(set(places)) < len(places):
            raise Malformed('Produce for %r' % places)
        read = [(topic, [(partition, read_batch(data)) for partition, data in parts])
                for topic, parts in topics]
        results, ending = self.store(read, acks, version)
        if ending:
            ending.act()
        if acks == 0:
            if any(result.error for _, parts in results for _, result in parts):
                raise Hangup()
            raise Silence()
        return array(string(topic) + array(result.encoded(partition, version) for partition, result in parts)
                     for topic, parts in results) + self.throttle()

    def store(self, topics, acks, version):
        """([(topic, [(partition, Result)])], the Fault that ends the request or None)"""
        ending, out = None, []
        with self.cluster.lock:
            for topic, parts in topics:
                results = []
                for partition, batch in parts:
                    result, fault = self.stored(topic, partition, batch, acks, version)
                    results.append((partition, result))
                    ending = fault or ending
                out.append((topic, results))
        return out, ending

    def stored(self, topic, partition, batch, acks, version):
        """(Result of a partition, the Fault that ends the request or None)"""
        if acks not in (-1, 0, 1):
            return Result(21), None
        fault = self.cluster.fault('produce', self.node, topic, partition)
        if fault and not fault.stored:
            fault.act()
            return Result(fault.code, message=fault.message, record_errors=fault.record_errors), None
        result = (self.cluster.verdict(self.node, topic, partition, batch, version)
                  or self.cluster.append(topic, partition, batch))
        if fault and isinstance(fault.code, int):
            return Result(fault.code), None
        return result, fault

    def sasl_handshake(self, r, version):
        mechanism = r.string()
        r.end()
        error = self.error('sasl_handshake')
        if not self.cluster.sasl or (self.user and not self.cluster.session_lifetime_ms):
            error = 34
        elif mechanism not in self.cluster.sasl:
            error = 33
        elif not error:
            if self.user and mechanism != self.mechanism:
                raise Malformed('the mechanism changed from %s to %s' % (self.mechanism, mechanism))
            self.mechanism, self.exchange, self.bare = mechanism, self.begun(mechanism), version == 0
        return int16(error) + array(string(name) for name in self.cluster.sasl)

    def begun(self, mechanism):
        users = self.cluster.users
        if mechanism == 'PLAIN':
            return Plain(users)
        return Scram('sha' + mechanism[-3:], users, self.cluster.iterations, self.cluster.scram_fault)

    def sasl_authenticate(self, r, version):
        token = r.blob()
        r.end()
        if self.exchange is None:
            raise Malformed('SaslAuthenticate without a handshake')
        error = self.error('sasl_authenticate')
        if error:
            raise Refused('scripted', error)
        answer, lifetime = self.login(token), 0
        if self.exchange is None:
            lifetime = self.cluster.session_lifetime_ms if version >= 1 else 0
            self.expires = time.monotonic() + lifetime / 1000.0 if lifetime else None
        return int16(0) + string(None) + blob(answer) + (int64(lifetime) if version >= 1 else b'')

    def bare_token(self, token):
        """After a handshake v0: frames without a header; a refusal is a closed connection."""
        try:
            self.send(self.login(token))
        except Refused:
            raise Hangup()
        self.bare = self.exchange is not None

    def login(self, token):
        """The answer to a token; when it was the last, .exchange is None and .user who it was."""
        try:
            answer, last = self.exchange.step(token)
            if last and self.user not in (None, self.exchange.user):
                raise Refused('Cannot change principals during re-authentication from %s: %s'
                              % (self.user, self.exchange.user))
        except Refused:
            self.broker.rest(self.cluster.refusal_delay)
            raise
        if last:
            self.user, self.exchange = self.exchange.user, None
            if self.user:
                self.cluster.logins.append((self.node, self.mechanism, self.user))
        return answer


HttpRequest = collections.namedtuple('HttpRequest', 'method path headers body raw connection')
HEAD = re.compile(r'([A-Z]+) (/[\x21-\x7e]*) HTTP/1\.([01])\Z')
HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\x80-\xff\t]*?)[ \t]*\Z")
ENDLESS = 1 << 26


class Answer:
    """A reply as HttpStandin.answer() describes it."""

    def __init__(self, status=200, headers=(), body=b'', path=None, chunked=0, interim=(), early=False,
                 close=False, announce=True, drip=0.0, delay=0.0, cut=None, endless=None, silent=False,
                 raw=None, reset=False):
        self.status, self.path, self.chunked, self.interim = status, path, chunked, interim
        self.headers = list(headers.items() if isinstance(headers, dict) else headers)
        self.body = body.encode() if isinstance(body, str) else body
        self.early, self.close, self.announce, self.drip, self.delay = early, close, announce, drip, delay
        self.cut, self.endless, self.silent, self.raw, self.reset = cut, endless, silent, raw, reset

    def head(self, wanted):
        """The bytes up to the body; wanted: whether the method wants a body at all."""
        headers, names = list(self.headers), [name.lower() for name, _ in self.headers]
        if self.chunked:
            headers.append(('Transfer-Encoding', 'chunked'))
        elif wanted and not self.endless and 'content-length' not in names:
            headers.append(('Content-Length', len(self.body)))
        if (self.close and self.announce) or (self.endless and not self.chunked):
            headers.append(('Connection', 'close'))
        lines = ['HTTP/1.1 %d Scripted' % self.status] + ['%s: %s' % header for header in headers]
        return '\r\n'.join(lines + ['', '']).encode('latin-1')

    def coded(self):
        """The body as it goes over the line."""
        if not self.chunked:
            return self.body
        pieces = [self.body[i:i + self.chunked] for i in range(0, len(self.body), self.chunked)]
        return b''.join(b'%x\r\n%s\r\n' % (len(piece), piece) for piece in pieces) + b'0\r\n\r\n'


class HttpStandin(Listener):
    """An HTTP/1.1 server that does as it is told by answer(), else what reply() of a subclass says.

    .requests: HttpRequest(method, path with query, headers {lower case: text}, body decoded, raw body,
    number of the connection). .close_after: after so many requests a connection ends without a word of it;
    .complaints: what was no right HTTP.
    """

    def __init__(self, tls=None, host='127.0.0.1'):
        self.requests, self.answers, self.close_after = [], [], None
        Listener.__init__(self, tls, host)

    def answer(self, status=200, headers=(), body=b'', times=1, **more):
        """How the next requests are answered, that many times (ALWAYS), each call after the one before.

        path: only requests for it (without the query), and these before others. chunked: size of the chunks.
        interim: 1xx that come before. early: before the body is read. close: ends the connection afterwards,
        with early without having read the body; announce=False: without a Connection header. drip: seconds
        between the bytes of the head. delay: seconds before it. cut: only that many bytes of it all, and the
        end, by a reset when reset. endless: 'body' or 'headers' that do not end. silent: nothing at all.
        raw: these bytes and the end.
        """
        with self.lock:
            self.answers.append([Answer(status, headers, body, **more), times])

    def reply(self, request):
        """(status, headers, body) for a request for which no answer() is due."""
        return 200, {}, b''

    def due(self, path):
        """The Answer that answer() asked for, or None."""
        with self.lock:
            for wanted in (path.split('?')[0], None):
                for entry in self.answers:
                    if entry[0].path == wanted:
                        entry[1] -= 1
                        if entry[1] <= 0:
                            self.answers.remove(entry)
                        return entry[0]
        return None

    def talk(self, wire):
        served = 0
        try:
            while self.exchange(wire):
                served += 1
                if served == self.close_after:
                    return
        except Malformed:
            wire.send(b'HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
            raise

    def exchange(self, wire):
        """Serves one request; whether another may come."""
        method, path, headers, last = self.head(wire)
        answer = self.due(path)
        early = answer is not None and answer.early
        if early:
            self.send(wire, answer, method)
            if answer.close:
                self.keep(wire, method, path, headers, b'')
                # What it did not read makes this a reset when there is enough of it, as with real servers.
                wire.gone = True
                return False
        elif headers.get('expect', '').lower() == '100-continue':
            wire.send(b'HTTP/1.1 100 Continue\r\n\r\n')
        request = self.keep(wire, method, path, headers, self.body(wire, headers))
        if not early:
            answer = answer or Answer(*self.reply(request))
            self.send(wire, answer, method)
        return not (last or answer.close)

    def head(self, wire):
        """(method, path, headers, whether it is the last) of the next request."""
        lines = wire.until(b'\r\n\r\n', 65536)[:-4].decode('latin-1').split('\r\n')
        match, headers = HEAD.match(lines[0]), {}
        if not match:
            raise Malformed('request line %r' % lines[0])
        for line in lines[1:]:
            header = HEADER.match(line)
            if not header or header.group(1).lower() in headers:
                raise Malformed('header %r' % line)
            headers[header.group(1).lower()] = header.group(2)
        if 'host' not in headers and match.group(3) == '1':
            raise Malformed('no Host header')
        asked = headers.get('connection', 'close' if match.group(3) == '0' else '').lower()
        return match.group(1), match.group(2), headers, 'close' in asked

    def body(self, wire, headers):
        if 'transfer-encoding' in headers:
            if headers['transfer-encoding'].lower() != 'chunked' or 'content-length' in headers:
                raise Malformed('Transfer-Encoding %r' % headers['transfer-encoding'])
            return self.chunks(wire)
        length = headers.get('content-length', '0')
        if not re.match(r'[0-9]{1,9}\Z', length):
            raise Malformed('Content-Length %r' % length)
        return wire.exactly(int(length))

    def chunks(self, wire):
        out = b''
        while True:
            size = wire.until(b'\r\n', 64)[:-2]
            if not re.match(br'[0-9A-Fa-f]{1,7}\Z', size):
                raise Malformed('chunk size %r' % size)
            piece = wire.exactly(int(size, 16) + 2)
            if piece[-2:] != b'\r\n':
                raise Malformed('end of chunk %r' % piece[-2:])
            out += piece[:-2]
            if not piece[:-2]:
                return out

    def keep(self, wire, method, path, headers, raw):
        body = raw
        if headers.get('content-encoding') == 'gzip':
            try:
                body = gunzip(raw)
            except Malformed as malformed:
                self.complaints.append(str(malformed))
                body = None
        request = HttpRequest(method, path, headers, body, raw, wire.number)
        self.requests.append(request)
        return request

    def send(self, wire, answer, method):
        self.rest(answer.delay)
        for status in answer.interim:
            wire.send(('HTTP/1.1 %d Interim\r\n\r\n' % status).encode())
        if answer.silent:
            self.hold(wire)
        if answer.raw is not None:
            wire.send(answer.raw)
            raise Hangup(answer.reset)
        wanted = method != 'HEAD' and answer.status not in (204, 304) and answer.status >= 200
        head, body = answer.head(wanted), answer.coded() if wanted else b''
        if answer.cut is not None:
            wire.send((head + body)[:answer.cut])
            raise Hangup(answer.reset)
        if answer.endless:
            self.send_endlessly(wire, answer, head)
        if answer.drip:
            for i in range(len(head)):
                wire.send(head[i:i + 1])
                self.rest(answer.drip)
            head = b''
        wire.send(head + body)

    def send_endlessly(self, wire, answer, head):
        block, sent = b'x' * 16384, 0
        if answer.endless == 'headers':
            head, block = head[:-2], b'X-More: ' + b'x' * 1000 + b'\r\n'
        elif answer.chunked:
            block = b'4000\r\n' + block + b'\r\n'
        wire.send(head)
        while sent < ENDLESS:
            wire.send(block)
            sent += len(block)
        raise Hangup()

    def hold(self, wire):
        """Reads and says nothing until the peer goes."""
        while True:
            wire.more()
            del wire.buffer[:]


class Bad(Exception):
    """A status and a text."""

    def __init__(self, text, status=400):
        Exception.__init__(self, text)
        self.status = status


PRECISIONS = {'s': 1000.0, 'm': 1.0, 'ms': 1.0, 'u': 0.001, '': 1.0}


def no_constant(text):
    raise Bad('invalid character %r looking for beginning of value' % text[0])


class InfluxStandin(HttpStandin):
    """InfluxDB 0.8: POST /db and /db/NAME/series; points(series) is what it holds."""

    def __init__(self, databases=('t',), users=None, tls=None, host='127.0.0.1'):
        self.databases, self.users = {name: [] for name in databases}, users or {'root': 'root'}
        HttpStandin.__init__(self, tls, host)

    def points(self, series, database=None):
        """[{column: value}] in the order they came; time in ms, or without one when none was given."""
        database = database or sorted(self.databases)[0]
        with self.lock:
            return [point for name, point in self.databases[database] if name == series]

    def reply(self, request):
        path, _, query = request.path.partition('?')
        given = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        match = re.match(r'/db/([^/]+)/series\Z', path)
        try:
            if request.method != 'POST' or not (match or path == '/db'):
                raise Bad('404 page not found', 404)
            if match:
                self.write(urllib.parse.unquote(match.group(1)), request, given)
                return 200, {}, b''
            self.make(request, given)
            return 201, {}, b''
        except Bad as bad:
            return bad.status, {'Content-Type': 'text/plain'}, str(bad)

    def check_user(self, request, given):
        name, password = given.get('u'), given.get('p')
        basic = re.match(r'Basic ([A-Za-z0-9+/]+={0,2})\Z', request.headers.get('authorization', ''))
        if basic:
            name, _, password = base64.b64decode(basic.group(1)).decode().partition(':')
        if name is None or self.users.get(name) != password:
            raise Bad('Invalid username/password', 401)

    def make(self, request, given):
        self.check_user(request, given)
        name = self.parsed(request)['name']
        with self.lock:
            if name in self.databases:
                raise Bad('database %s exists' % name, 409)
            self.databases[name] = []

    def parsed(self, request):
        if request.body is None:
            raise Bad('gzip: invalid header', 500)
        if not request.body.strip():
            raise Bad('EOF')
        try:
            return json.loads(request.body.decode(), parse_constant=no_constant)
        except ValueError as error:
            raise Bad('invalid character: %s' % error)

    def write(self, database, request, given):
        """Stores all points of a request, or none."""
        precision = given.get('time_precision', '')
        if precision not in PRECISIONS:
            raise Bad('Unknown time precision ' + precision)
        self.check_user(request, given)
        series = self.parsed(request)
        if not isinstance(series, list):
            raise Bad('json: cannot unmarshal object into Go value of type []*common.SerializedSeries')
        points = [point for one in series for point in self.converted(one, PRECISIONS[precision])]
        with self.lock:
            if database not in self.databases:
                raise Bad("Database %s doesn't exist" % database)
            self.databases[database].extend(points)

    def converted(self, series, factor):
        """[(name, {column: value})] of a series."""
        if not isinstance(series, dict) or set(series) - {'name', 'columns', 'points'}:
            raise Bad('json: cannot unmarshal %s' % type(series).__name__)
        name, columns, points = series.get('name', ''), series.get('columns', []), series.get('points', [])
        if not points:
            return []
        if not name:
            raise Bad('Series name cannot be empty')
        return [(name, self.point(columns, values, factor)) for values in points]

    def point(self, columns, values, factor):
        if len(columns) != len(values):
            raise Bad('invalid payload')
        out = dict(zip(columns, values))
        for column, value in out.items():
            if isinstance(value, (dict, list)):
                raise Bad('Unknown type map[string]interface {}')
            if isinstance(value, float) and value in (float('inf'), float('-inf')):
                raise Bad('strconv.ParseFloat: value out of range')
            if column in ('time', 'sequence_number') and (isinstance(value, bool)
                                                          or not isinstance(value, (int, float))):
                kind = 'string' if isinstance(value, str) else type(value).__name__
                raise Bad('%s field must be float but is %s (%s)' % (column, kind, value))
        if 'time' in out:
            out['time'] = int(out['time']) * factor
        return out
