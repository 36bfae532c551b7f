"""A stand-in for brokers that speak STOMP, written from the specification; it does as each of them was seen to do."""
import socket
import time

from standins import Hangup, Listener, Malformed

MOST_FRAME = 1 << 24
ESCAPES = {'1.0': {}, '1.1': {'\\': '\\', 'n': '\n', 'c': ':'}, '1.2': {'\\': '\\', 'n': '\n', 'c': ':', 'r': '\r'}}
SERVERS = {'activemq': 'ActiveMQ/5.17.2', 'artemis': 'ActiveMQ-Artemis/2.42.0 ActiveMQ Artemis Messaging Engine',
           'rabbitmq': 'RabbitMQ/3.10.8'}


def unescaped(text, version):
    """A header's name or value as it was meant; Malformed when an escape is none."""
    if version == '1.0':
        return text
    out, letters = '', iter(text)
    for c in letters:
        if c == '\\':
            second = next(letters, '')
            if second not in ESCAPES[version]:
                raise Malformed('\\%s in %r' % (second, text))
            c = ESCAPES[version][second]
        out += c
    return out


def escaped(text, version):
    back = {c: '\\' + letter for letter, c in ESCAPES[version].items()}
    return ''.join(back.get(c, c) for c in text)


class StompStandin(Listener):
    """kind: whose ways it has. users: {name: password}; without any nobody has to log in. versions: those it speaks.
    heart: (ms between its heart-beats, ms that it wants between ours).

    .queues: {destination: [body]}, .sent: [(headers, body)] of all SENDs, .connects: the headers of each CONNECT,
    .beats: when a heart-beat came. .faults as with fail(): 'close', 'reset' or 'silence' after it was stored,
    ('refuse', words) instead, ('say', bytes) instead of its receipt.
    """

    def __init__(self, tls=None, kind='activemq', users=(), versions=('1.0', '1.1', '1.2'), heart=(0, 0)):
        self.kind, self.users, self.versions, self.heart = kind, dict(users), versions, heart
        self.queues, self.sent, self.connects, self.beats, self.faults, self.ids = {}, [], [], [], [], set()
        self.greeting = None
        Listener.__init__(self, tls)

    def fail(self, what, after=0):
        """What goes wrong with a SEND, after so many of them."""
        with self.lock:
            self.faults.append([after, what])

    def fault(self):
        for fault in self.faults:
            fault[0] -= 1
            if fault[0] < 0:
                self.faults.remove(fault)
                return fault[1]
        return None

    # frames

    def frame(self, wire, version, beat=None):
        """(command, headers, body) of the next frame; a heart-beat goes out each time so many seconds are over."""
        due = time.monotonic() + (beat or 0)
        while True:
            while wire.buffer[:1] in (b'\n', b'\r'):
                self.beats.append(time.monotonic())
                del wire.buffer[:1]
            if b'\0' in wire.buffer:
                return self.parsed(wire.taken(wire.buffer.index(b'\0') + 1)[:-1], version)
            if len(wire.buffer) > MOST_FRAME:
                raise Malformed('a frame without an end')
            if beat and time.monotonic() >= due:
                wire.send(b'\n')
                due += beat
            wire.sock.settimeout(beat and max(0.001, due - time.monotonic()))
            try:
                wire.more()
            except socket.timeout:
                pass

    def parsed(self, data, version):
        head, blank, body = data.partition(b'\n\n')
        if not blank:
            raise Malformed('a frame without a blank line: %r' % data[:200])
        command, *lines = head.decode().split('\n')
        headers = {}
        for line in lines:
            name, colon, value = line.partition(':')
            if not colon or '\r' in line or ':' in value and version != '1.0':
                raise Malformed('the header %r' % line)
            name, value = unescaped(name, version), unescaped(value, version)
            if name in headers:
                raise Malformed('two headers %s' % name)
            headers[name] = value
        return command, headers, body

    def bytes_of(self, command, headers, body=b'', version='1.0'):
        text = command + '\n' + ''.join('%s:%s\n' % (escaped(name, version), escaped(value, version))
                                        for name, value in headers)
        return text.encode() + b'\n' + body + b'\0' + b'\n' * (self.kind != 'artemis')

    # sessions

    def talk(self, wire):
        if self.greeting is not None:
            wire.send(self.greeting)
            raise Hangup()
        command, headers, body = self.frame(wire, '1.0')
        if command != 'CONNECT' or body:
            raise Malformed('%s before CONNECT' % command)
        self.connects.append(headers)
        version = self.chosen(headers)
        if self.users and self.users.get(headers.get('login')) != headers.get('passcode'):
            return self.lock_out(wire, headers)
        beat = self.agree(wire, headers, version)
        while True:
            command, headers, body = self.frame(wire, version, beat)
            if command != 'SEND':
                raise Malformed('%s, need SEND' % command)
            self.send(wire, version, headers, body)
        return None

    def chosen(self, headers):
        ours = [v for v in headers['accept-version'].split(',') if v in self.versions]
        if not ours or 'host' not in headers:
            raise Malformed('CONNECT with %r' % headers)
        return max(ours)

    def lock_out(self, wire, headers):
        name = headers.get('login')
        if self.kind == 'rabbitmq':             # and there it stands
            wire.send(self.bytes_of('ERROR', [('message', 'Bad CONNECT'), ('content-type', 'text/plain')],
                                    b"Access refused for user '%s'\n" % str(name).encode()))
            while True:
                wire.more()
        words = 'User name [%s] or password is invalid.' % name
        wire.send(self.bytes_of('ERROR', [('message', words)], words.encode()))

    def agree(self, wire, headers, version):
        """Answers to CONNECT; seconds between our heart-beats."""
        gives, wants = [int(n) for n in headers.get('heart-beat', '0,0').split(',')]
        answer = [('version', version)] * (version != '1.0') + [('session', 's-%d' % wire.number)]
        if version != '1.0' or self.kind != 'artemis':
            answer.append(('server', SERVERS[self.kind]))
        if version != '1.0':
            answer.append(('heart-beat', '%d,%d' % self.heart))
        wire.send(self.bytes_of('CONNECTED', answer))
        return max(wants, self.heart[0]) / 1000.0 if wants and self.heart[0] and version != '1.0' else None

    def invalid(self, headers, body):
        """Why a message is refused, or None."""

    def send(self, wire, version, headers, body):
        if 'receipt' not in headers or 'content-length' in headers or 'destination' not in headers:
            raise Malformed('SEND with %r' % headers)
        with self.lock:
            self.sent.append((headers, body))
            what = self.fault()
            words = what[1] if isinstance(what, tuple) and what[0] == 'refuse' else self.invalid(headers, body)
            if not words:
                self.keep(headers, body)
        if words:
            return self.refuse_message(wire, version, headers, words)
        if what in ('close', 'reset'):
            raise Hangup(what == 'reset')
        if what == 'silence':
            while True:
                wire.more()
        wire.send(what[1] if what else self.bytes_of('RECEIPT', [('receipt-id', headers['receipt'])], b'', version))
        return None

    def keep(self, headers, body):
        number = headers.get('_AMQ_DUPL_ID')
        if number is None or number not in self.ids:
            self.ids.add(number)
            self.queues.setdefault(headers['destination'], []).append(body)

    def refuse_message(self, wire, version, headers, words):
        """ActiveMQ goes on, Artemis ends the session, RabbitMQ too, without saying which message it was."""
        stack = b'\njavax.jms.JMSException: no\n\tat org.apache.activemq.X.send(X.java:1)\n'
        answer = [('message', words)] + [('receipt-id', headers['receipt'])] * (self.kind != 'rabbitmq')
        if self.kind == 'rabbitmq':
            wire.send(self.bytes_of('ERROR', [('message', 'Processing error')], b'Processing error', version))
        body = stack if self.kind == 'activemq' else words.encode() + b'\n'
        length = [('content-length', '%d' % len(body))] * (self.kind == 'rabbitmq')
        wire.send(self.bytes_of('ERROR', answer + length, body, version))
        if self.kind != 'activemq':
            raise Hangup()
