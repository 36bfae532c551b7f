"""Every kind of emitter against every kind of fault: nothing is lost, accounts add up, secrets stay inside.

VARIANTS says how each emitter is set up and what its stand-in has stored; an emitter that is registered and
has no entry fails a test here. With THOROUGH=1 (as .ci/run has it) all variants are tried, and cut at every byte;
else the first of each emitter and a few with TLS, cut at a sample of places.
"""
import base64
import contextlib
import email.utils
import os
import random
import re
import struct
import threading
import time
import urllib.parse
from array import array

import pytest

import standins
import statbadger
from conftest import FakeClock
from rig import configured, role_of
from standins import ALWAYS, Bad, HttpStandin, InfluxStandin, KafkaStandin, Listener, Proxy, Result
from standins_influxdb import InfluxdbStandin
from standins_sqs import Key, SqsStandin
from standins_zeromq import ZmqStandin
from standins_redis import RedisStandin
from standins_stomp import StompStandin
from standins_rabbitmq import AmqpStandin
from standins_tsdb import KairosStandin, KairosTelnet, OpenTsdbStandin, OpenTsdbTelnet
from standins_druid import PARSE, DruidStandin, TranquilityStandin

SEED = int(os.environ.get('FAULT_SEED', random.randrange(1 << 30)))
WHO = dict.fromkeys(statbadger.IDENTITY_KEYS, '')
WHO['hostname'] = 'n1'
T0 = 1700000000000
TIMEOUT, SHORT = 0.8, 0.25
PASSWORD = 'pa55 w/rd&"+sesame'
TOKEN = 'Bearer tok3n/of+gold'
PROXY_LOGIN = 'mia:pr0xy-w0rd'
LONG_PAUSE = 60


def layout(*names):
    series = [statbadger.Series('t', name, '', statbadger.GAUGE, (), ()) for name in names]
    return statbadger.Layout(tuple(series))


PLAIN, MARKED = layout('a', 'b'), layout('a', 'b', 'marker')
LARGE = layout('a', 'b', *['of-many-%d' % i for i in range(200)])


def frame(number, of=PLAIN, t0=T0):
    """A tick whose series all have its number as their value; its time is as many seconds after t0."""
    return statbadger.Frame(t0 + number * 1000, number, WHO, of, array('d', [number] * len(of.series)))


def soon(condition, seconds=8.0):
    """What condition() gives as soon as it is true; the last answer when the time is over."""
    end = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer or time.monotonic() > end:
            return answer
        time.sleep(0.001)


# -- the agent's side --------------------------------------------------------------------------

class SwiftClock(FakeClock):
    """Runs with the machine's clocks, and is ahead of them by what was slept."""

    def __init__(self):
        FakeClock.__init__(self, time.time() * 1000.0, time.monotonic() * 1000.0)
        self.began = time.monotonic()

    def wall(self):
        return self.now + (time.monotonic() - self.began) * 1000.0

    def monotonic(self):
        return self.steady + (time.monotonic() - self.began) * 1000.0


class SwiftBell(statbadger.Bell):
    """Waits that have an end take 2 ms, and the clock goes on by the rest of it.

    waits: the seconds asked for, ended: when, in seconds of the machine. patient: long waits last until
    somebody rings.
    """

    def __init__(self, clock):
        statbadger.Bell.__init__(self)
        self.clock, self.waits, self.ended, self.patient = clock, [], [], False

    def wait(self, seconds=None):
        if seconds is None:
            return statbadger.Bell.wait(self)
        self.waits.append(seconds)
        self.ended.append(time.monotonic())
        if self.patient and seconds >= LONG_PAUSE - 1:
            return statbadger.Bell.wait(self, 20)
        what = statbadger.Bell.wait(self, min(seconds, 0.002))
        if not what:
            self.clock.advance(seconds * 1000.0)
        return what

    def hurry(self):
        """The long waits are over."""
        self.patient = False
        self.ring()


class TimedOpener(statbadger.Opener):
    """Notes when it is asked, in .opened."""

    def __init__(self):
        statbadger.Opener.__init__(self, statbadger.StdoutLink(), statbadger.Contexts())
        self.opened = []

    def open(self, target, timeout, deadline):
        self.opened.append(time.monotonic())
        return statbadger.Opener.open(self, target, timeout, deadline)


class Agent:
    """A spool and the sender of one emitter; its accounts are looked at all the time.

    secrets: texts that neither the log nor .failure may hold, whatever happens.
    """

    def __init__(self, kind, values, secrets=(), most=1 << 22):
        self.kind, self.secrets, self.clock = kind, secrets, SwiftClock()
        self.spool, self.log, self.fed, self.seen = statbadger.Spool(most), [], [], set()
        role = role_of(configured(kind, **values))
        self.cursor = statbadger.Cursor(self.spool, kind, role)
        self.cursor.bell.close()
        self.bell = self.cursor.bell = SwiftBell(self.clock)
        self.opener, self.over = TimedOpener(), threading.Event()
        self.spool.cursors.append(self.cursor)
        self.sender = statbadger.Sender(self.cursor, role, self.opener, self.note, self.clock, self.over.set)
        self.wrong, self.stopping = [], False
        self.auditor = threading.Thread(target=self.audit, daemon=True)

    def note(self, level, message):
        self.log.append(message)

    def __enter__(self):
        self.sender.start()
        self.auditor.start()
        return self

    def __exit__(self, kind, *error):
        self.stopping = True
        self.auditor.join()
        self.bell.patient = False
        self.sender.close(self.sender.now() + (0.2 if kind else 2))
        ended = self.over.wait(10)
        if ended:
            self.bell.close()
        if kind is None:
            assert ended, 'the thread does not end: %r' % self.log
            self.look()
            assert not self.wrong, self.wrong[0]
            self.check_words()

    def audit(self):
        while not self.stopping:
            self.look()
            time.sleep(0.003)

    def look(self):
        with self.spool.lock:
            count, waiting, pinned = dict(self.cursor.count), len(self.cursor.frames), self.cursor.pinned
        self.seen.add(self.sender.failure)
        if count['accepted'] != waiting + sum(count[name] for name in (
                'acknowledged', 'sent', 'dropped', 'quarantined', 'damaged')) or not 0 <= pinned <= waiting:
            self.wrong.append('%r, %d waiting, %d under way' % (count, waiting, pinned))

    def check_words(self):
        """No secret, and nothing that came as a surprise to the program, is in what it said."""
        texts = self.log + [str(text) for text in self.seen]
        for text in texts:
            assert 'Traceback' not in text and 'statbadger.py:' not in text, text
            for word in self.secrets:
                assert word not in text, '%r holds %r' % (text, word)

    def feed(self, *frames):
        """Ticks by their number, or as they are."""
        for one in frames:
            one = frame(one) if isinstance(one, int) else one
            self.fed.append(one.iteration)
            self.spool.accept(one)

    @property
    def pending(self):
        with self.spool.lock:
            return len(self.cursor.frames)

    def account(self):
        """{what: how many} of what has happened to ticks, without zeros."""
        with self.spool.lock:
            return {name: n for name, n in self.cursor.count.items() if n and name != 'refused_points'}

    def renew(self, values, anew=False):
        """As a reload with these options; anew: as if there had been no emitter before."""
        self.sender.renew(role_of(configured(self.kind, **values), None if anew else self.sender.role))

    def settled(self, seconds=8.0):
        """Whether nothing waits any more."""
        return soon(lambda: not self.pending, seconds)

    def failed(self, seconds=8.0):
        """The failure that there is by then, or None."""
        return soon(lambda: self.sender.failure, seconds)


# -- the sinks' side ---------------------------------------------------------------------------

class CarbonStandin(Listener):
    """Takes what comes; .received has the bytes of each connection. says: what it answers a byte."""

    def __init__(self, tls=None):
        self.received, self.says = [], b''
        Listener.__init__(self, tls)

    def talk(self, wire):
        data = bytearray()
        with self.lock:
            self.received.append(data)
        while True:
            wire.more()
            data += wire.taken(len(wire.buffer))
            if self.says:
                wire.send(self.says)


class PickyInflux(InfluxStandin):
    """Refuses every batch that holds a series t.marker."""

    def converted(self, series, factor):
        if isinstance(series, dict) and series.get('name') == 't.marker':
            raise Bad('I do not like t.marker')
        return InfluxStandin.converted(self, series, factor)


class PickyKafka(KafkaStandin):
    """Refuses every batch that holds a message with t.marker, with the error code .dislike."""
    dislike, plan = 87, ()

    def fault(self, api, broker, topic=None, partition=None):
        """.plan: what goes wrong with the next requests of Produce, one after the other; None: nothing."""
        if api == 'produce' and self.plan:
            code = self.plan.pop(0)
            return code and standins.Fault(api, code, 1, None, None, None, False, None, ())
        return KafkaStandin.fault(self, api, broker, topic, partition)

    def invalid(self, topic, batch):
        if any(b't.marker' in record.value for record in batch.records):
            return Result(self.dislike, message='I do not like t.marker')
        return KafkaStandin.invalid(self, topic, batch)


class PickyRedis(RedisStandin):
    """Refuses every message that holds t.marker."""

    def invalid(self, message):
        if b't.marker' in message:
            return 'ERR Element too large: I do not like t.marker'
        return RedisStandin.invalid(self, message)


class PickyStomp(StompStandin):
    """Refuses every message that holds t.marker."""

    def invalid(self, headers, body):
        return 'The maximum data length was exceeded: I do not like t.marker' if b't.marker' in body else None


class Variant:
    """One way to set an emitter up: how it is started, configured, and what is stored.

    exact: nothing is doubled either. answers: its peer answers. login, tls: whether it has that.
    every: every byte is a place to cut it; a sample otherwise. tells: it says that a password is wrong.
    dislike: what it says of a tick that it does not like. wrong: options that have one. refuses: it says what it
    does not like; partial: it stores all else of that tick. pointwise: its peer refuses single points, and the
    rest of their tick is stored. apart: each point is a message, so that the good ones of a bad tick are stored.
    """
    dislike = 'I do not like'
    exact = answers = login = tls = every = http = pointwise = apart = partial = False
    tells, refuses, wrong = True, True, {'password': 'not ' + PASSWORD}

    def __init__(self, name, every=False, **values):
        self.name, self.every, self.values = name, every, values
        self.tls = bool(values.get('tls'))

    def __repr__(self):
        return self.name

    @contextlib.contextmanager
    def started(self, context=None):
        """(server, proxy before it)"""
        server = self.server(context)
        with server, Proxy(server.port) as proxy:
            self.advertise(server, proxy.port)
            yield server, proxy

    def advertise(self, server, port):
        """Clients of the server are to come through that port."""

    def down(self, server, reset=False):
        server.down(reset)

    def up(self, server):
        server.up()

    def options(self, port, files=None, **more):
        out = dict(self.values, timeout=TIMEOUT, **self.where(port))
        if self.tls:
            out['tls_ca'] = files.ca
        out.update(more)
        return out

    def secrets(self):
        """Texts of its own options that nobody may see."""
        login = base64.b64encode(('mia:' + PASSWORD).encode()).decode()
        words = [PASSWORD, urllib.parse.quote(PASSWORD, safe=''), urllib.parse.quote_plus(PASSWORD), login,
                 TOKEN, PROXY_LOGIN, PROXY_LOGIN[4:], base64.b64encode(PROXY_LOGIN.encode()).decode()]
        return words

    def agent(self, port, files=None, **more):
        return Agent(self.kind, self.options(port, files, **more), self.secrets())


class Graphite(Variant):
    """Over TCP; a datagram knows none of these faults."""
    kind, delivery = 'graphite', 'sent'

    def server(self, context):
        return CarbonStandin(context)

    def where(self, port):
        return {'host': '127.0.0.1', 'port': port, 'prefix': 'x'}

    def stored(self, server):
        """[(series, number)] in the order they came; of a connection that broke only what is whole."""
        with server.lock:
            received = [bytes(data) for data in server.received]
        out = []
        for data in received:
            out += self.pickled(data) if self.values.get('protocol') else self.lines(data)
        return out

    def lines(self, data):
        lines = data.decode('latin-1').split('\n')[:-1]
        return [(line[4:5], int(float(line.split(' ')[1]))) for line in lines
                if line[:6] in ('x.t.a ', 'x.t.b ')]

    def pickled(self, data):
        import pickle
        out = []
        while len(data) >= 4 and len(data) >= 4 + struct.unpack('>I', data[:4])[0]:
            n = 4 + struct.unpack('>I', data[:4])[0]
            out += [(path[4:], int(value)) for path, (_, value) in pickle.loads(data[4:n])
                    if path in ('x.t.a', 'x.t.b')]
            data = data[n:]
        return out


class Influx(Variant):
    kind, delivery, exact, answers, login, http = 'influxdb08', 'acknowledged', True, True, True, True

    def __init__(self, name, every=False, https=False, **values):
        Variant.__init__(self, name, every, database='t', username='mia', password=PASSWORD, **values)
        self.tls = https

    def server(self, context):
        return PickyInflux(users={'mia': PASSWORD}, tls=context)

    def where(self, port):
        return {'url': 'http%s://127.0.0.1:%d' % ('s' * self.tls, port)}

    def stored(self, server):
        """As of Graphite; a point with the series, time and number of one before takes its place."""
        found = {}
        for name in 'ab':
            for point in server.points('t.' + name):
                key = name, point['time'], point['sequence_number']
                assert found.get(key, point) == point
                found[key] = point
        return [(key[0], int(point['value'])) for key, point in found.items()]


class Influxdb(Variant):
    """Every version: 1 and 3 leave a line with a marker out and store the rest, 2 refuses all of it."""
    kind, delivery, exact, answers, login, http = 'influxdb', 'acknowledged', True, True, True, True
    token = 'tok3n/of+gold'

    def __init__(self, name, every=False, version=1, https=False, **values):
        values.update({1: {'database': 't', 'username': 'mia', 'password': PASSWORD},
                       2: {'bucket': 't', 'org': 'o', 'token': self.token},
                       3: {'database': 't', 'token': self.token}}[version])
        Variant.__init__(self, name, every, **values)
        self.version, self.tls = version, https
        self.dislike = 'unable to parse' if version == 2 else 'marker'

    def server(self, context):
        return PickyInfluxdb(self.version, users={'mia': PASSWORD}, tokens=[self.token], tls=context,
                             types={} if self.version == 2 else {('t', 'marker'): 'integer'})

    def where(self, port):
        return {'url': 'http%s://127.0.0.1:%d' % ('s' * self.tls, port)}

    def options(self, port, files=None, **more):
        if self.version > 1 and 'password' in more:
            more['token'] = more.pop('password').replace(' ', '')
        return Variant.options(self, port, files, **more)

    def secrets(self):
        return Variant.secrets(self) + [self.token, urllib.parse.quote(self.token, safe='')]

    def stored(self, server):
        return [(field, int(value)) for measurement, tags, field, value, stamp in server.points() if field in 'ab']


class PickyInfluxdb(InfluxdbStandin):
    """2 refuses every batch that holds a field named marker."""

    def write12(self, good, bad):
        disliked = [one for one in good if 'marker' in one[2][2]] if self.version == 2 else []
        InfluxdbStandin.write12(self, [one for one in good if one not in disliked],
                                bad + [(number, line, 'no') for number, line, _ in disliked])


class Kafka(Variant):
    kind, answers = 'kafka', True

    def __init__(self, name, every=False, **values):
        Variant.__init__(self, name, every, topic='stats', **values)
        acks = values.get('acks', 'all')
        self.exact = acks == 'all'
        self.delivery = 'sent' if acks == '0' else 'acknowledged'
        self.login = bool(values.get('sasl'))
        if self.login:
            self.values.update(username='mia', password=PASSWORD)

    def server(self, context):
        mechanisms = [self.values['sasl'].upper()] if self.login else ()
        return PickyKafka(tls=context, sasl=mechanisms, users={'mia': PASSWORD}, topics={'stats': 1},
                          versions=self.versions)

    versions = '4.3'

    def advertise(self, server, port):
        server.advertise(1, '127.0.0.1', port)

    def down(self, server, reset=False):
        server.down(1, reset)

    def up(self, server):
        server.up(1)

    def where(self, port):
        return {'brokers': '127.0.0.1:%d' % port}

    PATTERN = re.compile(r'"t\.([ab])": {"value": +(\d+)|"metric": "t\.([ab])".*?"value": (\d+)|'
                         r'^x\.t\.([ab]) (\d+)', re.M)

    def stored(self, server):
        found = [match.groups() for value in server.values('stats')
                 for match in self.PATTERN.finditer(value.decode())]
        return [(a or c or e, int(b or d or f)) for a, b, c, d, e, f in found]


class OldKafka(Kafka):
    versions, tells = '0.11', False


class PickySqs(SqsStandin):
    """Refuses every message that holds t.marker."""

    def __init__(self, tls):
        SqsStandin.__init__(self, {'AKIA1': Key(PASSWORD, SESSION, 0)}, tls=tls)
        self.fail('InvalidMessageContents', True, ALWAYS, 't.marker', 'I do not like t.marker')


SESSION = 'tok3n/of+gold=='


class Sqs(Variant):
    """The secret key is the password; to a FIFO queue nothing goes twice."""
    kind, delivery, answers, login, http = 'sqs', 'acknowledged', True, True, True
    wrong = {'secret_key': 'not ' + PASSWORD}

    def __init__(self, name, every=False, https=False, queue='stats', **values):
        Variant.__init__(self, name, every, region='us-east-1', access_key='AKIA1', secret_key=PASSWORD,
                         session_token=SESSION, **values)
        self.tls, self.queue, self.exact = https, queue, queue.endswith('.fifo')
        self.pointwise = values.get('format') == 'flat'

    def server(self, context):
        return PickySqs(context)

    def where(self, port):
        return {'queue_url': 'http%s://127.0.0.1:%d/1/%s' % ('s' * self.tls, port, self.queue)}

    def secrets(self):
        return Variant.secrets(self) + [SESSION, urllib.parse.quote(SESSION, safe='')]

    def stored(self, server):
        found = [match.groups() for body in server.bodies(self.queue) for match in Kafka.PATTERN.finditer(body)]
        return [(a or c or e, int(b or d or f)) for a, b, c, d, e, f in found]


class Zeromq(Variant):
    """Connecting; bound: tests/test_zeromq.py. No TLS, and no peer that refuses a message."""
    kind, delivery, answers = 'zeromq', 'sent', True

    def __init__(self, name, every=False, login=False, **values):
        Variant.__init__(self, name, every, **values)
        self.login = login
        if login:
            self.values.update(username='mia', password=PASSWORD)

    def server(self, context):
        return ZmqStandin('SUB' if self.values.get('pattern') == 'pub' else 'PULL',
                          {'mia': PASSWORD} if self.login else None)

    def where(self, port):
        return {'endpoint': 'tcp://127.0.0.1:%d' % port}

    def stored(self, server):
        found = [match.groups() for body in server.bodies() for match in Kafka.PATTERN.finditer(body.decode())]
        return [(a or c or e, int(b or d or f)) for a, b, c, d, e, f in found]


class RabbitMQ(Variant):
    """heartbeat 0: in these tests idle seconds pass in no time, and no broker would send enough of them."""
    kind, delivery, answers, login = 'rabbitmq', 'acknowledged', True, True

    def __init__(self, name, every=False, confirms='each', terse=False, **values):
        values = dict(dict(heartbeat=0, username='mia', password=PASSWORD), **values)
        Variant.__init__(self, name, every, **values)
        self.confirms, self.terse, self.tells = confirms, terse, not terse
        self.apart = values.get('format') == 'flat'

    def server(self, context):
        server = AmqpStandin(context, {'mia': PASSWORD}, exchanges=['metrics'])
        server.confirms, server.terse, server.marker = self.confirms, self.terse, b't.marker'
        return server

    def where(self, port):
        return {'host': '127.0.0.1', 'port': port}

    def stored(self, server):
        bodies = [body for name in server.queues for body in server.bodies(name)]
        found = [match.groups() for body in bodies for match in Kafka.PATTERN.finditer(body.decode())]
        return [(a or c or e, int(b or d or f)) for a, b, c, d, e, f in found]


class Redis(Variant):
    kind, delivery, answers = 'redis', 'acknowledged', True

    def __init__(self, name, every=False, login=False, **values):
        Variant.__init__(self, name, every, key='stats', **values)
        self.login, self.partial = login, values.get('format') == 'flat'
        if login:
            self.values.update(username='mia', password=PASSWORD)

    def server(self, context):
        return PickyRedis(context, {'mia': PASSWORD} if self.login else {})

    def where(self, port):
        return {'host': '127.0.0.1', 'port': port}

    def stored(self, server):
        found = [match.groups() for message in server.messages('stats', self.values.get('database', 0))
                 for match in Kafka.PATTERN.finditer(message.decode())]
        return [(a or c or e, int(b or d or f)) for a, b, c, d, e, f in found]


class Stomp(Variant):
    kind, delivery, answers = 'activemq', 'acknowledged', True

    def __init__(self, name, every=False, login=False, broker='activemq', versions=('1.0', '1.1', '1.2'), **values):
        Variant.__init__(self, name, every, destination='/queue/stats', **values)
        self.login, self.broker, self.versions = login, broker, versions
        self.exact, self.partial = broker == 'artemis', values.get('format') == 'flat'
        if login:
            self.values.update(username='mia', password=PASSWORD)

    def server(self, context):
        return PickyStomp(context, self.broker, {'mia': PASSWORD} if self.login else {}, self.versions, (10000, 10000))

    def where(self, port):
        return {'host': '127.0.0.1', 'port': port}

    def stored(self, server):
        with server.lock:
            bodies = list(server.queues.get('/queue/stats', ()))
        found = [match.groups() for body in bodies for match in Kafka.PATTERN.finditer(body.decode())]
        return [(a or c or e, int(b or d or f)) for a, b, c, d, e, f in found]


class Tsdb(Variant):
    """OpenTSDB or KairosDB, over HTTP or telnet."""
    delivery, exact, answers, partial = 'acknowledged', True, True, True
    STANDINS = {('opentsdb', 'http'): OpenTsdbStandin, ('opentsdb', 'telnet'): OpenTsdbTelnet,
                ('kairosdb', 'http'): KairosStandin, ('kairosdb', 'telnet'): KairosTelnet}

    def __init__(self, name, every=False, **values):
        Variant.__init__(self, name, every, **values)
        self.kind, self.standin = name.split('-')[0], self.STANDINS[name.split('-')[0], values['protocol']]
        self.http = self.login = values['protocol'] == 'http'
        self.refuses = self.standin is not KairosTelnet
        if self.login:
            self.values.update(username='mia', password=PASSWORD)

    def server(self, context):
        return self.standin(context, users={'mia': PASSWORD}) if self.login else self.standin(context)

    def where(self, port):
        return {'host': '127.0.0.1', 'port': port}

    def stored(self, server):
        return [(name[2:], int(number)) for name, number in (
            (key[0], number) for key, number in list(server.points.items())) if name in ('t.a', 't.b')]


class Druid(Variant):
    kind, delivery, exact, answers, login, http = 'druid', 'acknowledged', True, True, True, True
    dislike = r'Max parse exceptions\[0\] exceeded'

    def __init__(self, name, every=False, https=False, **values):
        Variant.__init__(self, name, every, flush=0, username='mia', password=PASSWORD, **values)
        self.tls = https

    def server(self, context):
        server = DruidStandin(users={'mia': PASSWORD}, tls=context)
        server.dislike = lambda rows: PARSE if any(row['metric'] == 't.marker' for row in rows) else None
        return server

    def where(self, port):
        return {'url': 'http%s://127.0.0.1:%d' % ('s' * self.tls, port)}

    def stored(self, server):
        return [(row['metric'][2:], int(row['value'])) for row in server.rows() if row['metric'] in ('t.a', 't.b')]


class Tranquility(Druid):
    """It knows no logins, and takes what is sent again for new."""
    exact, login, dislike = False, False, 'Tranquility drops 3 of 3 points'

    def server(self, context):
        server = TranquilityStandin(tls=context)
        server.window = lambda events: [] if any(e['metric'] == 't.marker' for e in events) else events
        return server


VARIANTS = {
    'graphite': [Graphite('graphite', True), Graphite('graphite-pickle', True, protocol='pickle'),
                 Graphite('graphite-tls', tls=True)],
    'influxdb08': [Influx('influxdb08', True, gzip=False),
                   Influx('influxdb08-gzip', headers={'X-Scope': TOKEN}),
                   Influx('influxdb08-https', https=True)],
    'influxdb': [Influxdb('influxdb', True, gzip=False), Influxdb('influxdb-https', https=True),
                 Influxdb('influxdb-2', version=2), Influxdb('influxdb-3', version=3)],
    'kafka': [Kafka('kafka', True), Kafka('kafka-acks-1', acks='1'), Kafka('kafka-acks-0', acks='0'),
              Kafka('kafka-flat-gzip', format='flat', codec='gzip'),
              Kafka('kafka-graphite-no-key', format='graphite', prefix='x', key=''),
              Kafka('kafka-plain', sasl='plain'), Kafka('kafka-scram-256', sasl='scram-sha-256'),
              Kafka('kafka-scram-512-tls', sasl='scram-sha-512', tls=True), Kafka('kafka-tls', tls=True),
              OldKafka('kafka-0.11'), OldKafka('kafka-0.11-plain', sasl='plain')],
    'redis': [Redis('redis', True), Redis('redis-stream-login', True, True, mode='stream', database=3),
              Redis('redis-publish', mode='publish'), Redis('redis-flat', format='flat', maxlen=0),
              Redis('redis-graphite-login-tls', login=True, tls=True, format='graphite', prefix='x')],
    'activemq': [Stomp('activemq', True), Stomp('activemq-artemis-login', True, True, 'artemis'),
                 Stomp('activemq-rabbitmq-login', False, True, 'rabbitmq', vhost='/', heartbeat=0),
                 Stomp('activemq-1.0', versions=('1.0',)), Stomp('activemq-flat', format='flat'),
                 Stomp('activemq-graphite-login-tls', login=True, tls=True, format='graphite', prefix='x')],
    'sqs': [Sqs('sqs'), Sqs('sqs-fifo', True, queue='stats.fifo'),
            Sqs('sqs-fifo-flat', queue='stats.fifo', format='flat'), Sqs('sqs-graphite', format='graphite', prefix='x'),
            Sqs('sqs-https', https=True)],
    'zeromq': [Zeromq('zeromq', True), Zeromq('zeromq-pub', True, pattern='pub', topic='{hostname}'),
               Zeromq('zeromq-flat-plain', login=True, format='flat'),
               Zeromq('zeromq-pub-plain', True, login=True, pattern='pub', format='graphite', prefix='x')],
    'rabbitmq': [RabbitMQ('rabbitmq', True),
                 RabbitMQ('rabbitmq-queue', queue='q', confirms='multiple', heartbeat=60),
                 RabbitMQ('rabbitmq-exchange', exchange='metrics', queue='q', routing_key='stats.{hostname}'),
                 RabbitMQ('rabbitmq-flat', format='flat', confirms='shuffled'),
                 RabbitMQ('rabbitmq-graphite', format='graphite', prefix='x', persistent=False),
                 RabbitMQ('rabbitmq-terse', terse=True), RabbitMQ('rabbitmq-tls', tls=True)],
    'druid': [Druid('druid', True, gzip=False), Druid('druid-gzip', headers={'X-Scope': TOKEN}),
              Druid('druid-https', https=True), Tranquility('druid-tranquility', protocol='tranquility'),
              Tranquility('druid-tranquility-https', https=True, protocol='tranquility')],
}
for database in ('opentsdb', 'kairosdb'):
    VARIANTS[database] = [
        Tsdb(database, True, protocol='http', gzip=False),
        Tsdb(database + '-gzip', protocol='http', headers={'X-Scope': TOKEN}),
        Tsdb(database + '-https', protocol='http', tls=True),
        Tsdb(database + '-telnet', True, protocol='telnet'),
        Tsdb(database + '-telnet-tls', protocol='telnet', tls=True)]
EXEMPT = {'stdout': 'has no peer and no connection: tests/test_transports.py', 'stdout_pretty': 'as stdout',
          'avro': 'writes files: tests/test_avro_faults.py'}
THOROUGH = os.environ.get('THOROUGH') == '1'
WITH_TLS = ('graphite-tls', 'influxdb08-https', 'kafka-scram-512-tls', 'rabbitmq-tls', 'opentsdb-telnet-tls')
ALL = [variant for variants in VARIANTS.values() for n, variant in enumerate(variants)
       if THOROUGH or n == 0 or variant.name in WITH_TLS]
ANSWERED = [variant for variant in ALL if variant.answers]
HTTP = [variant for variant in ALL if variant.http and not variant.tls]


def each(variants):
    return pytest.mark.parametrize('variant', variants, ids=repr)


def test_every_emitter_is_tried_or_exempt():
    assert sorted(statbadger.EMITTERS) == sorted(list(VARIANTS) + list(EXEMPT))
    for name, variants in VARIANTS.items():
        assert [variant.kind for variant in variants] == [name] * len(variants)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return standins.certificates(tmp_path_factory.mktemp('certificates'))


@pytest.fixture
def files(request):
    """Certificates, made when a variant needs some."""
    variant = request.node.callspec.params.get('variant')
    return request.getfixturevalue('made') if variant and variant.tls else None


@pytest.fixture
def rig(request, files):
    """rig(variant, **options) is a context manager of (server, proxy, agent)."""
    @contextlib.contextmanager
    def build(variant, **more):
        with variant.started(files and files.server()) as (server, proxy):
            with variant.agent(proxy.port, files, **more) as agent:
                yield server, proxy, agent
            assert server.complaints == []
    return build


def firsts(numbers):
    seen = set()
    return [n for n in numbers if not (n in seen or seen.add(n))]


def arrived(variant, server, fed):
    """Whether all of these ticks are stored, in order, and once where that is promised.

    What was only sent has no order between two connections: their last bytes may be read after the next one's first.
    """
    stored = variant.stored(server)
    for name in 'ab':
        numbers = [n for series, n in stored if series == name and (n in fed or not variant.apart)]
        if not variant.exact:
            numbers = sorted(set(numbers)) if variant.delivery == 'sent' else firsts(numbers)
        if numbers != fed:
            return False
    return True


def whole(variant, server, agent, seconds=8.0, without=()):
    """Asserts that all that was fed ends up at the server as promised, and nothing else happens to it."""
    fed = [n for n in agent.fed if variant.partial or n not in without]
    if not soon(lambda: not agent.pending and arrived(variant, server, fed), seconds):
        stored = variant.stored(server)
        raise AssertionError('missing %r, fed %r, stored %r, %r, said %r' % (
            [n for n in fed if not {('a', n), ('b', n)} <= set(stored)], fed, stored, agent.account(), agent.log))
    expected = {'accepted': len(agent.fed), variant.delivery: len(agent.fed) - len(without)}
    if without:
        expected['quarantined'] = len(without)
    assert soon(lambda: agent.account() == expected, 1), (agent.account(), expected)


# -- absent, restarted -------------------------------------------------------------------------

@each(ALL)
def test_a_server_that_is_absent_at_the_start_gets_all_when_it_comes(variant, files):
    with variant.started(files and files.server()) as (server, proxy):
        proxy.down()
        with variant.agent(proxy.port, files) as agent:
            agent.feed(1, 2)
            assert soon(lambda: len(agent.bell.waits) > 2)
            agent.feed(3)
            assert 'refused' in agent.failed() and agent.account() == {'accepted': 3}
            proxy.up()
            whole(variant, server, agent)
            assert len([text for text in agent.log if 'delivers again' in text]) == 1


@pytest.mark.parametrize('reset', [False, True], ids=['in-order', 'reset'])
@each(ALL)
def test_a_server_that_is_restarted_in_the_middle_misses_nothing(variant, rig, reset):
    with rig(variant) as (server, proxy, agent):
        agent.feed(1, 2, 3)
        whole(variant, server, agent)
        proxy.refuse()
        variant.down(server, reset)
        agent.feed(4, 5)
        # They may have arrived before the end is seen, or gone where nobody reads: then they go again.
        assert soon(lambda: agent.sender.failure or not agent.pending)
        agent.feed(6)
        variant.up(server)
        proxy.up()
        if variant.delivery == 'sent':
            assert agent.settled()
            fed_and_stored(variant, server, agent, 7)
        whole(variant, server, agent)


@each(ALL)
def test_a_server_that_comes_and_goes_while_ticks_flow_loses_no_more_than_the_last_ten_seconds(variant, rig):
    dice = random.Random(SEED)
    print('FAULT_SEED', SEED)
    with rig(variant) as (server, proxy, agent):
        breaks = 0
        for number in range(1, 61):
            agent.feed(number)
            if not dice.randrange(6):
                breaks += 1
                variant.down(server, dice.random() < 0.5)
                time.sleep(dice.random() * 0.01)
                variant.up(server)
            time.sleep(dice.random() * 0.004)
        agent.feed(61, 62)
        assert agent.settled()
        if variant.delivery == 'acknowledged':
            return whole(variant, server, agent)
        assert soon(lambda: ('b', 62) in variant.stored(server))
        missing = set(agent.fed) - set(n for series, n in variant.stored(server) if series == 'b')
        assert len(missing) <= 10 * breaks
        return None


# -- cut ---------------------------------------------------------------------------------------

def places_of(length, every, dice):
    """Where to cut: every byte of the first 300 and a sample of the others; or a sample."""
    if every and THOROUGH:
        return list(range(min(length, 300) + 1)) + sorted(dice.sample(range(300, length), min(
            20, length - 300)) if length > 300 else [])
    return sorted(dice.sample(range(length + 1), min(12, length + 1)))


def length_of(variant, files, way):
    """Bytes of one exchange from dialling to the end."""
    with variant.started(files and files.server()) as (server, proxy):
        with variant.agent(proxy.port, files) as agent:
            agent.feed(1)
            whole(variant, server, agent)
            return proxy.to_client if way == 'answers' else proxy.to_server


def fed_and_stored(variant, server, agent, number):
    """Feeds ticks from that number on, one after the other, until the first is stored; the next number.

    What was sent into a broken connection goes again for ten seconds, so no more ticks than that are fed.
    """
    first = number
    for _ in range(8):
        agent.feed(number)
        number += 1
        assert agent.settled(), (agent.account(), agent.log)
        seconds = 0.01 if number < first + 4 else 0.5
        if soon(lambda: {('a', first), ('b', first)} <= set(variant.stored(server)), seconds):
            break
    return number


@pytest.mark.parametrize('way', ['answers', 'requests'])
@each(ALL)
def test_an_exchange_that_is_cut_at_any_byte_loses_and_doubles_nothing(variant, way, rig, files):
    if way == 'answers' and not variant.answers and not variant.tls:
        return
    dice, length = random.Random(SEED), length_of(variant, files, way)
    print('FAULT_SEED', SEED, 'length', length)
    with rig(variant) as (server, proxy, agent):
        number, values = 1, variant.options(proxy.port, files)
        for n in places_of(length, variant.every, dice):
            agent.renew(values, anew=True)
            assert soon(lambda: agent.sender.renewal is None)
            proxy.throw(times=1, reset=dice.random() < 0.5, **{way: n})
            number = fed_and_stored(variant, server, agent, number)
        proxy.pass_all()
        number = fed_and_stored(variant, server, agent, number)
        whole(variant, server, agent)
        assert proxy.cuts


# -- silent, dripping --------------------------------------------------------------------------

def spans(agent):
    """Seconds from each dialling to the next wait of the sender."""
    out = []
    for began in list(agent.opener.opened):
        ends = [end for end in list(agent.bell.ended) if end > began]
        out += [min(ends) - began] if ends else []
    return out


@pytest.mark.parametrize('middle', [False, True], ids=['at-the-start', 'in-the-middle'])
@pytest.mark.parametrize('fault', ['silent', 'dripping'])
@each(ANSWERED)
def test_a_server_that_is_silent_or_drips_is_given_up_at_the_deadline(variant, rig, fault, middle):
    with rig(variant, timeout=SHORT) as (server, proxy, agent):
        if middle:
            agent.feed(1, 2)
            whole(variant, server, agent)
        before = agent.account()
        proxy.swallow() if fault == 'silent' else proxy.drip(0.15)
        if middle and variant.delivery == 'sent':
            proxy.hang_up()
            assert soon(lambda: not proxy.wires)
        began = time.monotonic()
        agent.feed(3, 4)
        assert soon(lambda: 'no end within the time allowed' in (agent.sender.failure or '')), agent.log
        assert SHORT * 0.9 < time.monotonic() - began < SHORT * 2 + 2
        proxy.pass_all()
        after = agent.account()
        assert after.get(variant.delivery, 0) == before.get(variant.delivery, 0)
        whole(variant, server, agent)
        assert max(spans(agent) or [0]) < SHORT + 2     # at this pace an answer takes longer than that


# -- garbage -----------------------------------------------------------------------------------

@pytest.mark.parametrize('part', range(2))
@each(ANSWERED)
def test_random_bytes_for_answers_do_no_harm(variant, rig, part):
    print('FAULT_SEED', SEED)
    with rig(variant) as (server, proxy, agent):
        for number in range(1, 21 if variant.every and THOROUGH else 6):
            proxy.garbage(SEED + number + part * 1000)
            proxy.hang_up()
            passed = proxy.to_client
            agent.feed(number)
            soon(lambda: proxy.to_client > passed, 1)
            if number % 10:
                proxy.hang_up()
            soon(lambda: agent.sender.failure or not agent.pending, 1)
            proxy.pass_all()
            assert agent.settled(), (agent.account(), agent.log)
        agent.feed(999)
        whole(variant, server, agent)


def test_a_carbon_that_talks_is_not_listened_to_and_one_that_does_not_stop_is_left():
    variant = VARIANTS['graphite'][0]
    with variant.started() as (server, proxy):
        server.says = bytes(range(256)) * 4
        with variant.agent(proxy.port) as agent:
            for number in range(1, 201):
                agent.feed(number)
                if not number % 10:
                    assert agent.settled()
            server.says = b''
            agent.feed(201)
            assert soon(lambda: firsts(n for series, n in variant.stored(server)) == agent.fed)


class Scripted(Listener):
    """Kafka's frames: answers each request with what script(api, version, correlation) gives, behind the
    length and the correlation id; None hangs up."""

    def __init__(self, script):
        self.script, self.asked = script, 0
        Listener.__init__(self)

    def talk(self, wire):
        while True:
            size = struct.unpack('>i', wire.exactly(4))[0]
            api, version, correlation = struct.unpack('>hhi', wire.exactly(size)[:8])
            self.asked += 1
            body = self.script(api, version, correlation)
            if body is None:
                return
            wire.send(struct.pack('>ii', len(body) + 4, correlation) + body)


SPEAKS = struct.pack('>hi', 0, 5) + b''.join(struct.pack('>hhh', *one) for one in (
    (0, 0, 13), (3, 0, 13), (17, 0, 1), (22, 0, 5), (36, 0, 2)))


def text(words):
    return struct.pack('>h', len(words.encode())) + words.encode()


def metadata(port, host='127.0.0.1', topic='stats', error=0, leader=1):
    """The body of a Metadata v4 answer with a broker and a partition."""
    partition = struct.pack('>ihiii', 1, 0, 0, leader, 0) + struct.pack('>i', 0)
    return (struct.pack('>iii', 0, 1, 1) + text(host) + struct.pack('>ih', port, -1) + text('c')
            + struct.pack('>iih', 1, 1, error) + text(topic) + b'\0' + partition)


@pytest.mark.parametrize('depth', [18, 3, 22, 0, 17, 36])
def test_kafka_answers_that_are_garbage_behind_a_right_header_do_no_harm(depth):
    dice, variant = random.Random(SEED + depth), VARIANTS['kafka'][5 if depth in (17, 36) else 0]
    print('FAULT_SEED', SEED)

    def garbage():
        return bytes(dice.choice([0, 0, 0, 1, 2, 255, dice.getrandbits(8)])
                     for _ in range(dice.randrange(60)))

    def script(api, version, correlation):
        if api == depth and wild:
            return garbage()
        return {18: lambda: SPEAKS, 3: lambda: metadata(server.port), 17: lambda: struct.pack('>hi', 0, 0),
                22: lambda: struct.pack('>ihqh', 0, 0, 7, 0), 36: lambda: struct.pack('>hhiq', 0, -1, 0, 0),
                0: lambda: struct.pack('>i', 1) + text('stats') + struct.pack(
                    '>iihqqqihi', 1, 0, 0, 5, -1, 0, 0, -1, 0)}[api]()
    wild = True
    with Scripted(script) as server:
        with variant.agent(server.port) as agent:
            for number in range(1, 11):
                wild, most = True, server.asked + 60
                agent.renew(variant.options(server.port), anew=True)
                assert soon(lambda: agent.sender.renewal is None)
                agent.feed(number)
                assert soon(lambda: server.asked > most or not agent.pending), agent.log
                wild = False
                assert agent.settled(), agent.log


@pytest.mark.parametrize('host, port', [
    ('', 9092), ('127.0.0.1', 0), ('127.0.0.1', 99999), ('127.0.0.1', -1), ('127.0.0.1', 1 << 30),
    ('a\0b', 1), ('x' * 300, 1), ('\xe4.' + 'x' * 70, 1), ('..', 1), ('::1%x', 1), ('\n\x1b[0m', 1)],
    ids=repr)
def test_a_broker_at_an_address_that_is_none_is_tried_again_later(host, port):
    variant = VARIANTS['kafka'][0]

    def script(api, version, correlation):
        return {18: lambda: SPEAKS, 3: lambda: metadata(*place), 22: lambda: struct.pack('>ihqh', 0, 0, 7, 0),
                0: lambda: struct.pack('>i', 1) + text('stats') + struct.pack(
                    '>iihqqqihi', 1, 0, 0, 5, -1, 0, 0, -1, 0)}[api]()
    place = port, host
    with Scripted(script) as server, variant.agent(server.port) as agent:
        agent.feed(1)
        assert agent.failed() and agent.account() == {'accepted': 1}
        place = server.port, '127.0.0.1'
        assert agent.settled(), agent.log


@pytest.mark.parametrize('start', [b'', b'HTTP/1.1 ', b'HTTP/1.1 200 OK\r\n',
                                   b'HTTP/1.1 500 No\r\nContent-Length: ',
                                   b'HTTP/1.1 503 No\r\nRetry-After: ',
                                   b'HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n',
                                   b'HTTP/1.1 100 Go\r\n'])
def test_http_answers_that_are_garbage_behind_a_right_start_do_no_harm(start):
    print('FAULT_SEED', SEED)
    dice, variant = random.Random(SEED), VARIANTS['influxdb08'][0]
    with variant.started() as (server, proxy), variant.agent(proxy.port) as agent:
        for _ in range(40):
            tail = bytes(dice.choice(list(b'\r\n: -;0123456789abcdefX\xa0\xb2') + [dice.getrandbits(8)])
                         for _ in range(dice.randrange(80)))
            server.answer(raw=start + tail + dice.choice([b'', b'\r\n\r\n']))
        agent.feed(1)
        assert soon(lambda: not server.answers or not agent.pending, 5)
        del server.answers[:]
        agent.feed(2)
        assert agent.settled()


# -- credentials and secrets -------------------------------------------------------------------

@each([variant for variant in ALL if variant.login])
def test_wrong_credentials_are_said_once_and_the_ticks_wait_for_the_right_ones(variant, rig, files):
    with rig(variant, **variant.wrong) as (server, proxy, agent):
        agent.bell.patient = True
        agent.feed(1, 2, 3)
        assert agent.failed() and soon(lambda: agent.bell.waits)
        agent.feed(4)
        time.sleep(0.02)
        assert [wait for wait in agent.bell.waits if wait >= LONG_PAUSE - 1] == agent.bell.waits[-1:]
        assert agent.bell.waits[-1] > (299 if variant.tells else 59)
        assert len(agent.log) == 1 and agent.account() == {'accepted': 4} and not variant.stored(server)
        agent.renew(variant.options(proxy.port, files))
        whole(variant, server, agent)


class Tattler(Listener):
    """Answers every HTTP request with the head that it got, after `before` bytes of something else."""

    def __init__(self, status, before):
        self.status, self.before, self.heads = status, before, []
        Listener.__init__(self)

    def talk(self, wire):
        head = wire.until(b'\r\n\r\n', 65536)
        self.heads.append(head)
        line = head.split(b'\r\n')[0]
        body = b'x' * self.before + b' ' + head
        wire.send(b'HTTP/1.1 %d %s\r\nConnection: close\r\nLocation: %s\r\nContent-Length: %d\r\n\r\n' % (
            self.status, head.replace(b'\r\n', b' '), line.split(b' ')[1], len(body)) + body)


def pieces(words, least=6):
    """Every part of the texts that has so many characters."""
    return sorted(set(word[i:i + least] for word in words for i in range(len(word) - least + 1)))


@pytest.mark.parametrize('status', [302, 400, 401, 403, 404, 407, 413, 429, 500])
def test_a_server_that_shows_what_it_was_sent_makes_no_secret_known(status):
    variant = VARIANTS['influxdb08'][1]
    with Tattler(status, 0) as server:
        with variant.agent(server.port) as agent:
            agent.feed(1, 2)
            assert soon(lambda: agent.log)


@pytest.mark.parametrize('https', [False, True])
def test_an_http_proxy_that_shows_what_it_was_sent_makes_no_secret_known(https):
    variant = VARIANTS['influxdb08'][1]
    with Tattler(407, 0) as server:
        values = dict(proxy='http://%s@127.0.0.1:%d' % (PROXY_LOGIN, server.port),
                      url='http%s://127.0.0.1:1' % ('s' * https))
        with variant.agent(server.port, **values) as agent:
            agent.feed(1, 2)
            assert agent.failed() and server.heads
            assert b'proxy-authorization: basic ' in server.heads[0].lower()


def test_a_secret_that_the_end_of_what_is_shown_cuts_in_two_is_not_shown_in_part():
    variant = Influx('influxdb08')
    for before in range(200, 300, 3):
        with Tattler(500, before) as server:
            with variant.agent(server.port) as agent:
                agent.secrets = pieces([urllib.parse.quote(PASSWORD, safe='')])
                agent.feed(1)
                assert agent.failed()


@pytest.mark.parametrize('shown', [TOKEN.split(' ')[1], TOKEN.lower(), TOKEN])
def test_a_part_of_a_header_that_a_server_shows_is_hidden_too(shown):
    variant = VARIANTS['influxdb08'][1]
    with variant.started() as (server, proxy):
        server.answer(401, body='the token %s is not known' % shown, times=ALWAYS)
        with variant.agent(proxy.port) as agent:
            agent.secrets = ['tok3n/of+gold']
            agent.feed(1)
            assert agent.failed()


@pytest.mark.parametrize('sasl', ['plain', 'scram-sha-256'])
def test_a_broker_that_repeats_the_password_makes_no_secret_known(sasl):
    variant = Kafka('kafka', sasl=sasl)

    def script(api, version, correlation):
        words = text('no \0mia\0%s here' % PASSWORD)
        return {18: SPEAKS, 17: struct.pack('>hi', 0, 0),
                36: struct.pack('>h', 58) + words + struct.pack('>iq', 0, 0)}[api]
    with Scripted(script) as server:
        with variant.agent(server.port) as agent:
            agent.bell.patient = True
            agent.feed(1)
            assert agent.failed()
            assert '****' in agent.sender.failure


# -- bad messages among good ones --------------------------------------------------------------

GATHERED = {'flush': 3600}


def together(agent, frames):
    """Feeds an agent that gathers all of the frames, and lets them go in one batch."""
    agent.feed(*frames)
    agent.spool.hurry()


@pytest.mark.parametrize('bad', [1, 4, 7])
@each([variant for variant in ANSWERED if variant.delivery == 'acknowledged' and variant.refuses and not variant.pointwise])
def test_one_bad_tick_among_good_ones_is_quarantined_and_all_others_are_stored(variant, rig, bad):
    with rig(variant, **GATHERED) as (server, proxy, agent):
        if variant.kind == 'kafka':
            server.dislike = random.Random(SEED + bad).choice([32, 87])
        together(agent, [frame(n, MARKED if n == bad else PLAIN) for n in range(1, 8)])
        whole(variant, server, agent, without=[bad])
        assert agent.cursor.count['refused_points'] == (1 if variant.partial else 3)


@each([variant for variant in ANSWERED if variant.delivery == 'acknowledged' and variant.refuses])
def test_what_a_server_does_not_like_is_said(variant, rig):
    with rig(variant, **GATHERED) as (server, proxy, agent):
        together(agent, [frame(1, MARKED)])
        assert agent.settled() and agent.account() == {'accepted': 1, 'quarantined': 1}
        assert any(re.search(variant.dislike + '|INVALID_RECORD', text) for text in agent.log), agent.log


def test_what_a_server_does_not_like_is_said_also_soon_after_other_trouble():
    variant = VARIANTS['influxdb08'][0]
    with variant.started() as (server, proxy), variant.agent(proxy.port, **GATHERED) as agent:
        proxy.down()
        together(agent, [2])
        assert agent.failed()
        proxy.up()
        together(agent, [frame(3, MARKED)])
        whole(variant, server, agent, without=[3])
        assert any('I do not like' in text for text in agent.log), agent.log


@each([Kafka('kafka'), Kafka('kafka-acks-1', acks='1')])
def test_a_tick_that_is_too_large_for_the_broker_is_quarantined_and_all_others_are_stored(variant, rig):
    with rig(variant, **GATHERED) as (server, proxy, agent):
        server.max_message_bytes = 1500
        together(agent, [frame(n, LARGE if n == 4 else PLAIN) for n in range(1, 21)])
        whole(variant, server, agent, without=[4])
        assert agent.cursor.count['refused_points'] == 202


def test_a_body_that_is_too_large_for_influxdb_goes_in_halves():
    variant = VARIANTS['influxdb08'][0]
    with variant.started() as (server, proxy):
        server.answer(413, times=2, early=True, close=True)
        with variant.agent(proxy.port, **GATHERED) as agent:
            together(agent, range(1, 9))
            whole(variant, server, agent)



@pytest.mark.parametrize('fault', ['close', 'reset', 'silence', 7])
@each([Kafka('kafka'), Kafka('kafka-flat', format='flat')])
def test_halves_of_a_batch_are_not_stored_twice_when_the_broker_goes_away_between_them(fault, variant):
    with variant.started() as (server, proxy), variant.agent(proxy.port, **GATHERED) as agent:
        server.plan = [10, None] + [fault] * 6
        together(agent, range(1, 9))
        whole(variant, server, agent)


def test_halves_of_a_batch_are_not_stored_twice_when_the_other_half_is_refused():
    variant = Kafka('kafka')
    with variant.started() as (server, proxy), variant.agent(proxy.port, **GATHERED) as agent:
        server.plan = [10, None]
        together(agent, [frame(n, MARKED if n == 8 else PLAIN) for n in range(1, 9)])
        whole(variant, server, agent, without=[8])


def test_a_tick_that_is_too_large_is_counted_once_when_the_broker_goes_away_behind_it():
    variant = Kafka('kafka')
    with variant.started() as (server, proxy), variant.agent(proxy.port, **GATHERED) as agent:
        server.max_message_bytes = 1500
        server.plan = [None] * 6 + ['close'] * 6
        together(agent, [frame(n, LARGE if n == 1 else PLAIN) for n in range(1, 9)])
        assert agent.settled()
        assert agent.account() == {'accepted': 8, 'acknowledged': 7, 'quarantined': 1}
        assert agent.cursor.count['refused_points'] == 202


@pytest.mark.parametrize('fault', ['close', 'reset', 'silence', 20])
@pytest.mark.parametrize('times', [1, 7])
def test_a_batch_that_was_stored_without_a_word_is_not_stored_twice(fault, times):
    variant = Kafka('kafka')
    with variant.started() as (server, proxy), variant.agent(proxy.port, **GATHERED) as agent:
        server.append_then_fail('produce', fault, 1 if fault == 'silence' else times)
        together(agent, range(1, 9))
        together(agent, [9, 10])
        whole(variant, server, agent)


def test_a_batch_that_was_stored_without_a_word_is_not_stored_twice_by_a_reload():
    variant = Kafka('kafka')
    with variant.started() as (server, proxy), variant.agent(proxy.port, **GATHERED) as agent:
        server.append_then_fail('produce', 'silence', times=20)
        together(agent, [1])
        assert agent.failed()
        proxy.down()
        agent.renew(variant.options(proxy.port, batch=50, **GATHERED))
        together(agent, [2])
        assert soon(lambda: agent.sender.renewal is None)
        server.heal()
        proxy.up()
        whole(variant, server, agent)


def test_a_batch_that_was_stored_without_a_word_is_not_stored_twice_when_the_spool_is_full():
    variant = Kafka('kafka')
    with variant.started() as (server, proxy):
        values = variant.options(proxy.port, **GATHERED)
        with Agent('kafka', values, variant.secrets(), 9000) as agent:
            server.append_then_fail('produce', 'silence', times=20)
            together(agent, range(1, 6))
            assert agent.failed()
            proxy.down()
            number = 6
            while not agent.account().get('dropped'):
                agent.feed(number)
                number += 1
            server.heal()
            proxy.up()
            agent.spool.hurry()
            assert agent.settled()
            numbers = [n for series, n in variant.stored(server) if series == 'a']
            assert numbers == sorted(set(numbers))


# -- certificates ------------------------------------------------------------------------------

TLS = [variant for variant in ALL if variant.tls]
WRONG = ['expired', 'other_host', 'unknown_ca', 'self_signed']


@pytest.mark.parametrize('wrong', WRONG)
@each(TLS)
def test_a_server_with_a_wrong_certificate_gets_not_one_byte(variant, wrong, made):
    bad, good = made.server(wrong), made.server()
    with variant.started(bad) as (server, proxy), variant.agent(proxy.port, made) as agent:
        agent.bell.patient = True
        agent.feed(1, 2)
        assert 'the certificate of the peer is refused' in (agent.failed() or '')
        assert soon(lambda: agent.bell.waits) and agent.bell.waits[-1] > 299
        agent.feed(3)
        assert agent.account() == {'accepted': 3} and variant.stored(server) == [] and len(agent.log) == 1
        assert not getattr(server, 'requests', []) and not any(getattr(server, 'received', []))
        for listener in getattr(server, 'brokers', {1: server}).values():
            listener.tls = good
        agent.bell.hurry()
        whole(variant, server, agent)


@pytest.mark.parametrize('wrong', WRONG)
@each(TLS)
def test_with_tls_verify_false_any_certificate_will_do(variant, wrong, made):
    with variant.started(made.server(wrong)) as (server, proxy):
        with variant.agent(proxy.port, made, tls_verify=False, tls_ca='') as agent:
            agent.feed(1, 2)
            whole(variant, server, agent)


@pytest.mark.parametrize('tls13', [False, True])
@each(TLS)
def test_a_server_that_wants_a_certificate_of_ours_gets_all_when_there_is_one(variant, tls13, made):
    with variant.started(made.server(client=True, tls13=tls13)) as (server, proxy):
        with variant.agent(proxy.port, made) as agent:
            agent.feed(1, 2)
            assert agent.failed()
            agent.feed(3)
            assert soon(lambda: len(agent.bell.waits) > 1)
            assert agent.account() == {'accepted': 3}
            agent.renew(variant.options(proxy.port, made, tls_cert=made.client.cert, tls_key=made.client.key))
            whole(variant, server, agent)


@each(TLS)
def test_a_server_that_does_not_speak_tls_gets_nothing_and_it_is_said(variant, made):
    with variant.started() as (server, proxy), variant.agent(proxy.port, made) as agent:
        agent.feed(1, 2)
        assert re.search('TLS|no end within the time', agent.failed() or '')
        assert agent.account() == {'accepted': 2} and variant.stored(server) == []
        assert not getattr(server, 'requests', [])
        assert not any(b't.a' in data for data in getattr(server, 'received', []))


# -- what HTTP servers say ---------------------------------------------------------------------

@pytest.mark.parametrize('status', [300, 301, 302, 303, 305, 307, 308])
@pytest.mark.parametrize('where', ['http://127.0.0.1:%d/db/t/series', '//127.0.0.1:%d/', '/elsewhere?%d', ''])
@each(HTTP)
def test_a_redirect_is_not_followed(variant, status, where):
    with variant.started() as (server, proxy), HttpStandin() as second:
        headers = {'Location': where % second.port} if where else {}
        server.answer(status, headers, 'moved')
        with variant.agent(proxy.port) as agent:
            agent.bell.patient = True
            agent.feed(1)
            assert 'it has moved' in (agent.failed() or '') and soon(lambda: agent.bell.waits)
            assert agent.bell.waits[-1] > 299 and len(server.requests) == 1
            agent.bell.hurry()
            whole(variant, server, agent)
        assert second.connections == 0


@pytest.mark.parametrize('status', [429, 503])
@pytest.mark.parametrize('value, least, most', [
    ('7', 6.9, 7), ('0', 0, 1), ('86400', 299, 300), ('99999999999999999999', 299, 300), ('-5', 0, 1),
    (lambda: email.utils.formatdate(time.time() + 100, usegmt=True), 90, 101),
    ('Thu, 01 Jan 1970 00:00:00 GMT', 0, 1), ('Fri, 31 Dec 9999 23:59:59 GMT', 299, 300), ('soon', 0, 1),
    ('', 0, 1), ('\xb2', 0, 1), ('\xa0', 0, 1), ('Thu, 99 Foo 99999 99:99:99 +-', 0, 1),
    ('Thu, 01 Jan ,\x850 00:00:.0 GMT', 0, 1), ('1.5', 0, 2), ('7, 9', 0, 1)])
def test_a_server_that_is_busy_is_left_alone_for_as_long_as_it_says(status, value, least, most):
    variant = VARIANTS['influxdb08'][0]
    with variant.started() as (server, proxy):
        server.answer(status, {'Retry-After': value() if callable(value) else value}, 'busy')
        with variant.agent(proxy.port) as agent:
            agent.bell.patient = True
            agent.feed(1)
            assert 'HTTP %d: busy' % status in (agent.failed() or '') and soon(lambda: agent.bell.waits)
            assert least <= agent.bell.waits[0] <= most
            agent.bell.hurry()
            whole(variant, server, agent)


@pytest.mark.parametrize('answer', [
    dict(endless='body'), dict(endless='body', chunked=1), dict(endless='headers'),
    dict(endless='body', status=500),
    dict(interim=[100, 102, 103]), dict(interim=[103] * 500), dict(chunked=3, body='stored, I swear'),
    dict(status=204), dict(status=201, body='x' * 200000), dict(close=True), dict(close=True, announce=False),
    dict(drip=0.001), dict(status=500, body=b'\xff\xfe\0'), dict(status=503, body='\r\n\r\n' * 50),
    dict(status=101), dict(silent=True), dict(cut=20), dict(cut=0, reset=True)], ids=str)
@pytest.mark.parametrize('middle', [False, True], ids=['fresh', 'kept-alive'])
def test_whatever_a_server_answers_nothing_hangs_and_what_is_not_stored_goes_again(answer, middle):
    variant = VARIANTS['influxdb08'][0]
    with variant.started() as (server, proxy), variant.agent(proxy.port) as agent:
        if middle:
            agent.feed(1)
            whole(variant, server, agent)
        answer = dict(answer)
        server.answer(answer.pop('status', 500), times=1, **answer)
        agent.feed(2)
        assert agent.settled()
        agent.feed(4)
        assert agent.settled()
        assert {('a', 4), ('b', 4)} <= set(variant.stored(server))
        assert agent.account() == {'accepted': len(agent.fed), 'acknowledged': len(agent.fed)}
        assert max(spans(agent) or [0]) < TIMEOUT + 2 and proxy.to_client < 1 << 24


def test_a_database_that_is_missing_costs_nothing_wherever_its_answer_is_cut():
    variant = Influx('influxdb08', gzip=False)
    with variant.started() as (server, proxy), variant.agent(proxy.port) as agent:
        held = server.databases
        for n in range(0, 150):
            server.databases = {}
            proxy.hang_up()
            waits = len(agent.bell.waits)
            proxy.cut_answers(n, times=1)
            agent.feed(n + 1)
            assert soon(lambda: len(agent.bell.waits) > waits or not agent.pending)
            proxy.pass_all()
            server.databases = held
            assert agent.settled(), agent.log
            if agent.cursor.count['quarantined']:
                break
        assert agent.account() == {'accepted': n + 1, 'acknowledged': n + 1}, 'cut after %d bytes' % n
