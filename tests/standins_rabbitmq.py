"""A stand-in for RabbitMQ: AMQP 0-9-1 as its specification has it, and what RabbitMQ adds.

It is strict: whatever a client does wrong is a line in .complaints, and the end of the connection.
"""
import random
import struct
import threading
import time

from standins import Hangup, Listener, Malformed, Reader

END = b'\xce'
HELLO = b'AMQP\0\0\x09\x01'
TEXTS = {403: 'ACCESS_REFUSED', 404: 'NOT_FOUND', 405: 'RESOURCE_LOCKED', 406: 'PRECONDITION_FAILED',
         530: 'NOT_ALLOWED'}


def short(text):
    data = text.encode()
    return struct.pack('>B', len(data)) + data


def method(channel, one, other, arguments=b''):
    payload = struct.pack('>HH', one, other) + arguments
    return struct.pack('>BHI', 1, channel, len(payload)) + payload + END


def closing(channel, code, text, one=0, other=0):
    """Connection.Close (channel 0) or Channel.Close."""
    which = (20, 40) if channel else (10, 50)
    return method(channel, which[0], which[1], struct.pack('>H', code) + short(text) + struct.pack('>HH', one, other))


class AmqpReader(Reader):
    def short(self):
        text = self.text(self.number('B'))
        if '\0' in text:
            raise Malformed('a NUL in the short string %r' % text)
        return text

    def long(self):
        return self.take(self.number('I'))

    def table(self):
        inner, out = AmqpReader(self.long()), {}
        while inner.at < len(inner.data):
            name, kind = inner.short(), inner.take(1)
            if name in out:
                raise Malformed('field %s twice' % name)
            out[name] = {b't': lambda: bool(inner.number('B')), b'S': lambda: inner.long().decode(),
                         b'F': inner.table}[kind]()
        return out

    def end(self):
        if self.at != len(self.data):
            raise Malformed('%d bytes too many' % (len(self.data) - self.at))


def properties(data):
    """{name: value} of a content header; flags that are not ours are mistakes."""
    reader = AmqpReader(data)
    flags, out = reader.number('H'), {}
    for bit, name, read in ((15, 'content_type', reader.short), (12, 'delivery_mode', lambda: reader.number('B')),
                            (7, 'message_id', reader.short), (6, 'timestamp', lambda: reader.number('Q'))):
        if flags >> bit & 1:
            out[name] = read()
            flags ^= 1 << bit
    if flags:
        raise Malformed('property flags %x' % flags)
    reader.end()
    return out


class Message:
    def __init__(self, exchange, key, mandatory):
        self.exchange, self.key, self.mandatory = exchange, key, mandatory
        self.properties, self.size, self.body = {}, None, b''


class AmqpStandin(Listener):
    """queues: {name: [Message]}; exchanges: their names; bindings: {(exchange, key): {queue}}.

    Switches: confirms ('each', 'multiple', 'shuffled'), plan: what happens to the next messages, None: nothing,
    'nack', 'close', 'reset', 'silence', 'unheard' (stored, and the connection closed without a word), or a reply
    code, which closes the channel; largest: bytes of a body; terse: says nothing of a wrong password; tune:
    (channel_max, frame_max, heartbeat) proposed; offers: mechanisms. seen: methods that came, as (class, method);
    raw: the frames that came.
    """

    def __init__(self, tls=None, users=None, queues=('statbadger',), exchanges=(), vhosts=('/',)):
        self.users = {'guest': 'guest'} if users is None else users
        self.queues, self.exchanges, self.vhosts = {name: [] for name in queues}, set(exchanges) | {''}, vhosts
        self.declared, self.bindings, self.plan, self.seen = {}, {}, [], []
        self.confirms, self.largest, self.terse, self.tune, self.offers = 'each', 1 << 20, False, (2047, 131072, 60), (
            'PLAIN AMQPLAIN EXTERNAL')
        self.clients, self.heartbeats, self.goodbyes, self.marker, self.raw = [], 0, 0, b'\0', []
        self.serving, self.open = threading.Event(), []
        self.serving.set()
        self.dice = random.Random(1)
        Listener.__init__(self, tls)

    def bodies(self, queue='statbadger'):
        with self.lock:
            return [message.body for message in self.queues[queue]]

    def tell(self, data):
        """Says that on every connection that is open."""
        with self.lock:
            for session in self.open:
                session.wire.send(data)

    def block(self, reason='low on memory'):
        """Takes nothing any more, and says so."""
        self.serving.clear()
        self.tell(method(0, 10, 60, short(reason)))

    def unblock(self):
        self.tell(method(0, 10, 61))
        self.serving.set()

    def beat(self):
        self.tell(b'\x08\0\0\0\0\0\0' + END)

    def stop(self):
        self.serving.set()
        Listener.stop(self)

    def talk(self, wire):
        hello = wire.exactly(8)
        if hello != HELLO:
            self.complaints.append('%r for a protocol header' % hello)
            wire.send(HELLO)
            return
        session = Session(self, wire)
        try:
            session.run()
        finally:
            with self.lock:
                if session in self.open:
                    self.open.remove(session)


class Session:
    """One connection of a client."""

    def __init__(self, server, wire):
        self.server, self.wire, self.frame_max, self.channel = server, wire, 131072, None
        self.confirming, self.tag, self.pending, self.message = False, 0, [], None

    def send(self, data):
        with self.server.lock:
            self.wire.send(data)

    def frame(self):
        kind, channel, size = struct.unpack('>BHI', self.wire.exactly(7))
        if size + 8 > self.frame_max:
            raise Malformed('a frame of %d bytes, %d at most' % (size + 8, self.frame_max))
        payload = self.wire.exactly(size)
        if self.wire.exactly(1) != END:
            raise Malformed('a frame without its end')
        self.server.raw.append(struct.pack('>BHI', kind, channel, size) + payload + END)
        return kind, channel, payload

    def expect(self, one, other):
        kind, channel, payload = self.frame()
        reader = AmqpReader(payload)
        found = reader.number('H'), reader.number('H')
        if (kind, channel) != (1, 0) or found != (one, other):
            raise Malformed('%r where %r is due' % (found, (one, other)))
        return reader

    def fail(self, code, words, one=0, other=0):
        """Closes the connection; its last words may be read."""
        text = '%s - %s' % (TEXTS.get(code, 'ERROR'), words)
        self.send(closing(0, code, text, one, other))
        while self.frame()[2] != b'\0\x0a\0\x33':       # connection.close-ok
            pass
        raise Hangup()

    def greet(self):
        server = self.server
        capabilities = b''.join(short(name) + b't\1' for name in (
            'publisher_confirms', 'basic.nack', 'connection.blocked', 'authentication_failure_close'))
        table = short('product') + b'S' + struct.pack('>I', 8) + b'RabbitMQ' + short('capabilities') + b'F' + (
            struct.pack('>I', len(capabilities)) + capabilities)
        offers = server.offers.encode()
        self.send(method(0, 10, 10, b'\0\x09' + struct.pack('>I', len(table)) + table + struct.pack(
            '>I', len(offers)) + offers + struct.pack('>I', 5) + b'en_US'))
        reader = self.expect(10, 11)
        client, mechanism, response, locale = reader.table(), reader.short(), reader.long(), reader.short()
        reader.end()
        server.clients.append(client)
        if locale != 'en_US' or mechanism not in server.offers.split():
            raise Malformed('%r, %r' % (mechanism, locale))
        if mechanism == 'PLAIN':
            _, name, password = response.decode().split('\0')
            if server.users.get(name) != password:
                if server.terse or not client['capabilities'].get('authentication_failure_close'):
                    raise Hangup()
                self.fail(403, "Login was refused for '%s' '%s'" % (name, password))
        self.send(method(0, 10, 30, struct.pack('>HIH', *server.tune)))
        reader = self.expect(10, 31)
        channels, self.frame_max, self.heartbeat = (reader.number('H'), reader.number('I'), reader.number('H'))
        reader.end()
        if not channels or not 4096 <= self.frame_max <= (server.tune[1] or 1 << 30):
            raise Malformed('tuned to %d channels, frames of %d' % (channels, self.frame_max))
        reader = self.expect(10, 40)
        vhost = reader.short()
        if vhost not in server.vhosts:
            self.fail(530, 'vhost %s not found' % vhost, 10, 40)
        self.send(method(0, 10, 41, b'\0'))

    def run(self):
        self.greet()
        with self.server.lock:
            self.server.open.append(self)
        while True:
            kind, channel, payload = self.frame()
            if kind == 8:
                if (channel, payload) != (0, b''):
                    raise Malformed('a heartbeat with more than that')
                self.server.heartbeats += 1
            elif kind == 1 and self.message is None:
                reader = AmqpReader(payload)
                which = reader.number('H'), reader.number('H')
                self.server.seen.append(which)
                act = getattr(self, 'on_%d_%d' % which, None)
                if act is None or (channel == 0) != (which[0] == 10):
                    raise Malformed('method %r on channel %d' % (which, channel))
                act(reader)
                reader.end()
            elif kind in (2, 3) and self.message is not None and channel == 1:
                self.content(kind, payload)
            else:
                raise Malformed('a frame of type %d in the wrong place' % kind)
            if self.pending and self.message is None and not self.wire.buffer:
                self.confirm()

    def on_10_50(self, reader):
        reader.number('H'), reader.short(), reader.number('H'), reader.number('H')
        self.server.goodbyes += 1
        self.send(method(0, 10, 51))
        raise Hangup()

    def on_20_10(self, reader):
        reader.short()
        if self.channel:
            raise Malformed('channel 1 is open')
        self.channel, self.confirming, self.tag = 1, False, 0
        self.send(method(1, 20, 11, b'\0\0\0\0'))

    def on_20_41(self, reader):
        self.channel = None

    def on_85_10(self, reader):
        reader.take(1)
        self.confirming = True
        self.send(method(1, 85, 11))

    def on_50_10(self, reader):
        reader.number('H')
        name, bits, arguments = reader.short(), reader.number('B'), reader.table()
        if bits not in (1, 2) or arguments:
            raise Malformed('queue.declare with %d %r' % (bits, arguments))
        with self.server.lock:
            if bits == 1 and name not in self.server.queues:
                return self.close_channel(404, "no queue '%s' in vhost '/'" % name, 50, 10)
            if bits == 2:
                self.server.queues.setdefault(name, [])
                self.server.declared[name] = bits
        return self.send(method(1, 50, 11, short(name) + struct.pack('>II', 0, 0)))

    def on_50_20(self, reader):
        reader.number('H')
        queue, exchange, key, no_wait = reader.short(), reader.short(), reader.short(), reader.number('B')
        if no_wait or reader.table() or queue not in self.server.queues:
            raise Malformed('queue.bind')
        if exchange not in self.server.exchanges:
            return self.close_channel(404, "no exchange '%s' in vhost '/'" % exchange, 50, 20)
        with self.server.lock:
            self.server.bindings.setdefault((exchange, key), set()).add(queue)
        return self.send(method(1, 50, 21))

    def close_channel(self, code, words, one, other):
        """A client that goes on to publish does so in vain."""
        self.pending = []
        self.send(closing(1, code, '%s - %s' % (TEXTS.get(code, 'ERROR'), words), one, other))
        while True:
            kind, channel, payload = self.frame()
            if payload == b'\0\x14\0\x29':
                self.channel = None
                return
            if kind == 1 and payload[:4] == b'\0\x0a\0\x32':
                self.on_10_50(AmqpReader(payload[4:]))

    def on_60_40(self, reader):
        reader.number('H')
        exchange, key, bits = reader.short(), reader.short(), reader.number('B')
        if not self.channel or not self.confirming or bits > 1:
            raise Malformed('basic.publish, channel %r, bits %d' % (self.channel, bits))
        self.message = Message(exchange, key, bits == 1)

    def content(self, kind, payload):
        message = self.message
        if kind == 2:
            reader = AmqpReader(payload)
            if message.size is not None or (reader.number('H'), reader.number('H')) != (60, 0):
                raise Malformed('a content header')
            message.size = reader.number('Q')
            message.properties = properties(payload[12:])
        else:
            if message.size is None or not payload or len(message.body) + len(payload) > message.size:
                raise Malformed('a body of %d bytes for %r' % (len(payload), message.size))
            message.body += payload
        if len(message.body) == message.size:
            self.message = None
            self.published(message)

    def published(self, message):
        server = self.server
        while not server.serving.wait(0.02):
            if self.wire.gone:
                raise Hangup()
        with server.lock:
            fault = server.plan.pop(0) if server.plan else None
            if fault in ('close', 'reset'):
                raise Hangup(fault == 'reset')
            if fault == 'silence':
                while not self.wire.gone:
                    server.lock.release()
                    time.sleep(0.005)
                    server.lock.acquire()
                raise Hangup()
            self.tag += 1
            if isinstance(fault, int):
                self.close_channel(fault, 'as planned', 60, 40)
            elif message.exchange not in server.exchanges:
                self.close_channel(404, "no exchange '%s' in vhost '/'" % message.exchange, 60, 40)
            elif len(message.body) > server.largest:
                self.close_channel(406, 'message size %d is larger than configured max size %d' % (
                    len(message.body), server.largest), 60, 40)
            elif server.marker in message.body:
                self.close_channel(406, 'of this size I do not like t.marker', 60, 40)
            elif fault == 'nack':
                self.pending.append((self.tag, False))
            else:
                self.route(message)
                if fault == 'unheard':
                    raise Hangup()
                self.pending.append((self.tag, True))

    def route(self, message):
        server = self.server
        queues = {message.key} & set(server.queues) if not message.exchange else server.bindings.get(
            (message.exchange, message.key), ())
        for queue in queues:
            server.queues[queue].append(message)
        if not queues and message.mandatory:
            self.send(method(1, 60, 50, struct.pack('>H', 312) + short('NO_ROUTE') + short(message.exchange)
                             + short(message.key)))
            head = struct.pack('>HHQH', 60, 0, len(message.body), 0)
            self.send(struct.pack('>BHI', 2, 1, len(head)) + head + END + struct.pack(
                '>BHI', 3, 1, len(message.body)) + message.body + END)

    def confirm(self):
        """Confirms what came together, each for itself or several at once, in order or not."""
        pending, self.pending, out = self.pending, [], []
        if self.server.confirms == 'multiple' and all(good for _, good in pending):
            out = [(80, pending[-1][0], 1)]
        else:
            out = [(80 if good else 120, tag, 0) for tag, good in pending]
            if self.server.confirms == 'shuffled':
                self.server.dice.shuffle(out)
        self.send(b''.join(method(1, 60, which, struct.pack('>QB', tag, several)) for which, tag, several in out))
