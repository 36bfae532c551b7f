"""Real Kafka brokers of several versions are written to by the program, and read back by librdkafka and by
Kafka's own dump of the log.

What is expected comes from the `stdout` emitter of the same run: same lines, same times, in the same order,
each once. Which partition a key belongs to says librdkafka's `murmur2`, which is that of the Java client.
"""
import collections
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import PROGRAM, Finished, clean_environment
from kafka_broker import (USERS, Certificates, KafkaBroker, KafkaCluster, OldBroker, confluent_kafka, until)

VERSIONS = ['4.3.1', '3.9.2', '2.8.2', '1.1.1', '0.11.0.3']
NEW, KRAFT, OLD = VERSIONS[:1], VERSIONS[:2], VERSIONS[2:]
MECHANISMS = ['plain', 'scram-sha-256', 'scram-sha-512']
HOST = 'n1.example.net'
IDENTITY = {'datacenter': 'EC2', 'region': 'us-west-1', 'zone': '', 'cluster': 'te.st',
            'hostname': HOST, 'ipv4': '10.10.10.2', 'ipv6': '2001:db8::1'}
LABELS = {'disk': 'device', 'net': 'interface', 'cpu': 'cpu'}
WRONG = 'not-the-password'
UNTRUSTED = 'certificate of the peer is refused'


# -- brokers -------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def tls(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp('tls') / 'good')


@pytest.fixture(scope='module', params=VERSIONS)
def broker(request, tmp_path_factory, tls):
    """One for all tests of a version. A SASL session lasts two seconds, where there are sessions."""
    folder, version = tmp_path_factory.mktemp('kafka'), request.param
    if version in KRAFT:
        peer = KafkaBroker(folder, version, {'connections.max.reauth.ms': 2000}, tls)
    else:
        peer = OldBroker(folder, version, {'connections.max.reauth.ms': 2000}, sasl=True)
    with peer:
        yield peer


@pytest.fixture(scope='module')
def strict(tmp_path_factory, tls):
    """A broker that makes no topic, closes what says nothing for a second, knows no SCRAM, and whose
    certificate is that of another host."""
    other = tls.leaf('other', 'DNS:other.example.net')
    peer = KafkaBroker(tmp_path_factory.mktemp('strict'), tls=tls, extra={
        'auto.create.topics.enable': False, 'connections.max.idle.ms': 1000,
        'ssl.keystore.location': other[2], 'sasl.enabled.mechanisms': 'PLAIN'})
    with peer:
        yield peer


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    with KafkaCluster(tmp_path_factory.mktemp('cluster')) as peer:
        yield peer


def of(versions):
    """The broker of each of these versions."""
    return pytest.mark.parametrize('broker', versions, indirect=True)


def partition_of(broker, key, partitions):
    """The partition that a key belongs to, of so many."""
    topic, found = 'murmur2-%d' % partitions, []
    if topic not in broker.topics():
        broker.create_topic(topic, partitions)
    producer = confluent_kafka.Producer(dict(broker.client(), partitioner='murmur2'))
    producer.produce(topic, b'x', key.encode(),
                     on_delivery=lambda error, message: found.append(message.partition()))
    assert producer.flush(20) == 0
    return found[0]


# -- the program ---------------------------------------------------------------------------------

def badger(*args, **more):
    """The program, run until it ends, as Finished."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, PROGRAM] + [str(arg) for arg in args], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(),
                          timeout=more.get('timeout', 60))
    err = done.stderr.decode()
    assert 'Traceback' not in err, err
    return Finished(done.returncode, done.stdout.decode(), err, time.monotonic() - started)


class Live:
    """The program while it runs, its output and errors in files of the folder. A with statement ends it."""

    def __init__(self, folder, *args):
        self.out, self.err = str(folder / 'out'), str(folder / 'err')
        with open(self.out, 'wb') as out, open(self.err, 'wb') as err:
            self.process = subprocess.Popen(
                [sys.executable, PROGRAM] + [str(arg) for arg in args], stdin=subprocess.DEVNULL, stdout=out,
                stderr=err, env=clean_environment())

    def lines(self):
        """The payloads printed so far, as bytes."""
        with open(self.out, 'rb') as file:
            return file.read().split(b'\n')[:-1]

    def errors(self):
        with open(self.err) as file:
            return file.read()

    def until_ticks(self, n, seconds=60):
        until(lambda: len(self.lines()) >= n, '%d ticks: %s' % (n, self.errors()), seconds)

    def until_said(self, words, seconds=30):
        until(lambda: words in self.errors(), 'says %s' % words, seconds)

    def ended(self, seconds=60):
        """(exit code, lines, errors) once it has ended by itself."""
        code = self.process.wait(seconds)
        assert 'Traceback' not in self.errors(), self.errors()
        return code, self.lines(), self.errors()

    def finish(self, seconds=60):
        """The same, after it was asked to end."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended(seconds)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def config(folder, **values):
    """A configuration file that says who the host is."""
    path = folder / ('%s.conf' % values.get('hostname', 'statbadger'))
    path.write_text(json.dumps(dict(IDENTITY, **values)))
    return str(path)


def kafka(broker, topic, listener='PLAINTEXT', **options):
    """The value of -e for that topic."""
    options = dict({'brokers': broker.servers(listener), 'topic': topic}, **options)
    return 'kafka,' + ','.join('%s=%s' % item for item in sorted(options.items()))


def one_module(broker, topic, **options):
    """The arguments with which a tick is small, printed, and sent to that topic."""
    return '-m', 'load', '-e', 'stdout', '-e', kafka(broker, topic, **options)


def login(mechanism, password=None, user='alice'):
    return {'sasl': mechanism, 'username': user, 'password': USERS[user] if password is None else password}


def sent_well(done, ticks):
    """The lines of a run that ended as it should."""
    assert (done.code, done.err) == (0, '')
    lines = done.out.encode().split(b'\n')[:-1]
    assert len(lines) == ticks
    return lines


def values(records):
    return [record.value for record in records]


def stamp(line):
    """The time of a payload in ms."""
    return int(round(json.loads(line.decode())['timestamp'] * 1000))


def holds(broker, topic, lines, seconds=20):
    """The records of a topic, which must be exactly these lines, in order, all in one partition."""
    records = broker.read_back(topic, timeout=seconds, at_least=len(lines))
    assert len(set(record.partition for record in records)) <= 1
    same_lines(values(records), lines)
    assert [record.timestamp for record in records] == [stamp(line) for line in lines]
    return records


def same_lines(found, wanted):
    if found != wanted:
        times = collections.Counter(found)
        raise AssertionError('%d of %d are missing, %d twice or not ours, %d found%s' % (
            len(set(wanted) - set(found)), len(wanted), sum(times.values()) - len(set(found) & set(wanted)),
            len(found), '' if sorted(found) != sorted(wanted) else ': in another order'))


def one_line(text, *words):
    """The only warning in it, which must hold these words."""
    lines = [line for line in text.split('\n') if ' warning: ' in line]
    assert len(lines) == 1 and all(word in lines[0] for word in words), text
    return lines[0]


# -- what arrives, for every version --------------------------------------------------------------

TICKS = 10
MADE = {'all-none': 6, 'one-gzip': 6, 'flat': 6}   # partitions of topics made before; others makes the broker
EMITTERS = {
    'all-none': {},
    'all-gzip': {'codec': 'gzip'},
    'one-none': {'acks': '1'},
    'one-gzip': {'acks': '1', 'codec': 'gzip'},
    'zero-none': {'acks': '0'},
    'zero-gzip': {'acks': '0', 'codec': 'gzip'},
    'flushed-none': {'flush': 0.5},
    'flushed-gzip': {'flush': 0.5, 'codec': 'gzip'},
    'keyless': {'key': ''},
    'flat': {'format': 'flat', 'codec': 'gzip', 'tags': {'env': 'prod'}},
    'graphite': {'format': 'graphite'},
    'tagged': {'format': 'graphite', 'tagged': True, 'tags': {'env': 'prod'}},
    'influx': {'format': 'influx', 'tags': {'env': 'prod'}},
}
PAYLOADS = [name for name in sorted(EMITTERS) if 'format' not in EMITTERS[name]]
Written = collections.namedtuple('Written', 'broker lines ticks records batches')


@pytest.fixture(scope='module')
def written(broker, tmp_path_factory):
    """What one run with all of these emitters left in the topics of their names, and the lines it printed."""
    folder = tmp_path_factory.mktemp('written')
    for name, partitions in MADE.items():
        broker.create_topic(name, partitions)
    emitters = {name: dict(options, type='kafka', brokers=broker.servers(), topic=name)
                for name, options in EMITTERS.items()}
    path = config(folder, emitters=dict(emitters, stdout={}))
    lines = sent_well(badger('-f', path, '-n', TICKS, '-i', 0.1), TICKS)
    records = {name: broker.read_back(name) for name in EMITTERS}
    parts = set((name, record.partition) for name in EMITTERS for record in records[name])
    batches = collections.defaultdict(list)
    for (name, _), found in sorted(broker.dumps(sorted(parts)).items()):
        batches[name].extend(found)
    return Written(broker, lines, [json.loads(line.decode()) for line in lines], records, batches)


@pytest.mark.parametrize('name', [name for name in PAYLOADS if name != 'keyless'])
def test_the_payloads_are_those_on_standard_output_all_in_the_partition_of_their_key(written, name):
    records = written.records[name]
    assert values(records) == written.lines
    assert [record.timestamp for record in records] == [stamp(line) for line in written.lines]
    assert set((record.key, tuple(record.headers)) for record in records) == {(HOST.encode(), ())}
    partition = partition_of(written.broker, HOST, MADE.get(name, 3))
    assert set(record.partition for record in records) == {partition}
    assert len(written.broker.topics()[name]) == MADE.get(name, 3)


def test_without_a_key_every_payload_arrives_once_in_any_partition(written):
    records = written.records['keyless']
    assert sorted(values(records)) == sorted(written.lines)
    assert set(record.key for record in records) == {None}


@pytest.mark.parametrize('name', sorted(EMITTERS))
def test_the_dump_of_the_log_finds_valid_batches_with_the_times_of_the_ticks(written, name):
    batches, records = written.batches[name], written.records[name]
    assert batches and all(batch['isvalid'] and batch['magic'] == 2 for batch in batches)
    assert set(batch['compresscodec'] for batch in batches) == {EMITTERS[name].get('codec', 'none')}
    assert [r['CreateTime'] for batch in batches for r in batch['records']] == [r.timestamp for r in records]
    assert [r['payload'].encode() for batch in batches for r in batch['records']] == values(records)
    assert all(batch['CreateTime'] == max(r['CreateTime'] for r in batch['records']) for batch in batches)
    if name.startswith('flushed'):
        assert max(batch['count'] for batch in batches) >= 5


def idempotent(name):
    return EMITTERS[name].get('acks', 'all') == 'all'


@pytest.mark.parametrize('name', sorted(EMITTERS))
def test_an_idempotent_producer_numbers_its_records_from_0_and_no_other_one_does(written, name):
    if not idempotent(name):
        assert set((b['producerId'], b['baseSequence']) for b in written.batches[name]) == {(-1, -1)}
        return
    assert len(set(batch['producerId'] for batch in written.batches[name])) == 1
    following = collections.Counter()
    for batch in written.batches[name]:
        part = batch['file']
        assert batch['producerId'] >= 0 and batch['producerEpoch'] == 0
        assert batch['baseSequence'] == following[part]
        following[part] += batch['count']


def test_each_emitter_has_a_producer_id_of_its_own(written):
    ids = [written.batches[name][0]['producerId'] for name in EMITTERS if idempotent(name)]
    assert len(set(ids)) == len(ids)


def points(written):
    """(tick, flat name, entry) of every point that was printed."""
    return [(tick, flat, entry) for tick in written.ticks for point in tick['points']
            for flat, entry in point.items()]


def labelled(flat):
    """disk.reads.sda -> ('disk.reads', {'device': 'sda'})"""
    words = flat.split('.', 2)
    if len(words) < 3 or words[0] not in LABELS:
        return flat, {}
    return '.'.join(words[:2]), {LABELS[words[0]]: words[2]}


def test_flat_messages_are_an_object_per_point(written):
    wanted = []
    for tick, flat, entry in points(written):
        metric, labels = labelled(flat)
        who = {key: tick[key] for key in IDENTITY}
        wanted.append(dict(who, timestamp=tick['timestamp'], metric=metric, env='prod'))
        wanted[-1].update(labels, **entry)
    records = written.records['flat']
    assert [json.loads(record.value.decode()) for record in records] == wanted and len(wanted) > 60 * TICKS
    assert [record.timestamp for record in records] == [int(round(m['timestamp'] * 1000)) for m in wanted]


def node(text):
    return re.sub('[^A-Za-z0-9_-]', '_', text)


def test_graphite_messages_are_the_lines_of_a_tick(written):
    wanted = []
    for tick, flat, entry in points(written):
        path = '.'.join(flat.split('.', 2)[:2] + [node(word) for word in flat.split('.', 2)[2:]])
        wanted.append(('EC2.us-west-1.te_st.n1_example_net.' + path, entry['value'], tick['timestamp']))
    assert graphite(written.records['graphite']) == wanted


def tags_of_all():
    """The tags that every point has; what is empty is left out."""
    tags = {key: value for key, value in IDENTITY.items() if value and key != 'hostname'}
    return dict(tags, host=HOST, env='prod')


def test_tagged_graphite_messages_say_the_same_in_tags(written):
    tags = tags_of_all()
    wanted = []
    for tick, flat, entry in points(written):
        metric, labels = labelled(flat)
        wanted.append((metric, dict(tags, **labels), entry['value'], tick['timestamp']))
    found = []
    for path, value, when in graphite(written.records['tagged']):
        metric, *pairs = path.split(';')
        found.append((metric, dict(pair.split('=') for pair in pairs), value, when))
    assert found == wanted


def graphite(records):
    """[(path, value, time)] of the lines in these messages, a message per tick."""
    assert len(records) == TICKS and all(record.value.endswith(b'\n') for record in records)
    rows = [line.split(' ') for record in records for line in record.value.decode().split('\n')[:-1]]
    return [(path, float(value), float(when)) for path, value, when in rows]


def test_influx_messages_are_line_protocol_with_the_time_in_ms(written):
    tags = tags_of_all()
    wanted = {}
    for tick, flat, entry in points(written):
        metric, labels = labelled(flat)
        family, name = metric.split('.')
        key = family, tuple(sorted(dict(tags, **labels).items())), int(round(tick['timestamp'] * 1000)), name
        wanted[key] = entry['value']
    found = {}
    assert len(written.records['influx']) == TICKS
    for record in written.records['influx']:
        for line in record.value.decode().split('\n')[:-1]:
            head, fields, when = line.split(' ')
            family, *pairs = head.split(',')
            key = family, tuple(sorted(tuple(pair.split('=')) for pair in pairs))
            for name, value in (field.split('=') for field in fields.split(',')):
                assert '.' in value or 'e' in value and key + (int(when), name) not in found
                found[key + (int(when), name)] = float(value)
    assert found == wanted


KEYS = ['a', 'ab', 'abc', 'abcd', 'abcde', 'host-%s' % ('x' * 60), 'gr\u00fc\u00df.example', '\u65e5\u672c',
        '{hostname}', '{datacenter}/{cluster}', ' ', '21', 'foobar', 'a-little-bit-long-string']
KEYS += ['web%d' % i for i in range(10)]


@of(NEW)
def test_keys_of_any_kind_go_where_the_java_client_sends_them(broker, tmp_path):
    broker.create_topic('keys', 16)
    emitters = {'k%d' % i: {'type': 'kafka', 'brokers': broker.servers(), 'topic': 'keys', 'key': key}
                for i, key in enumerate(KEYS)}
    done = badger('-f', config(tmp_path, emitters=emitters, modules={'load': {}}), '-n', 2, '-i', 0.1)
    assert (done.code, done.err) == (0, '')
    found = collections.defaultdict(list)
    for record in broker.read_back('keys'):
        found[record.key.decode()].append(record.partition)
    keys = [key.replace('{datacenter}/{cluster}', 'EC2/te.st').replace('{hostname}', HOST) for key in KEYS]
    assert found == {key: [partition_of(broker, key, 16)] * 2 for key in keys}


@of(NEW)
def test_topic_is_a_template(broker, tmp_path):
    done = badger('-f', config(tmp_path), '-n', 2, '-i', 0.1, '-m', 'load', '-e', 'stdout',
                  '-e', kafka(broker, 'of_{cluster}_{datacenter}.{region}'))
    holds(broker, 'of_te.st_EC2.us-west-1', sent_well(done, 2))


def test_a_broker_that_is_too_old_is_told_what_is_needed(tmp_path):
    with OldBroker(tmp_path / 'kafka', '0.10.2.2') as broker:
        done = badger('-n', 3, '-i', 0.1, '-m', 'load', '-e', kafka(broker, 'none'))
        assert done.code == 1 and done.seconds < 5
        one_line(done.err, broker.servers(), 'Kafka 0.11 or newer')
        assert '3 of 3 ticks were not delivered' in done.err
        assert 'none' not in broker.topics()


# -- who may come in ------------------------------------------------------------------------------

def ways(broker):
    """{name: options of an emitter} of all ways into this broker."""
    found = {}
    for listener in [name for name in ('SASL_PLAINTEXT', 'SASL_SSL') if name in broker.ports]:
        secure = {'tls': True, 'tls_ca': broker.tls.ca} if listener == 'SASL_SSL' else {}
        for mechanism in MECHANISMS:
            found[(listener + '-' + mechanism).lower()] = dict(
                login(mechanism), brokers=broker.servers(listener), **secure)
    if 'SSL' in broker.ports:
        tls = broker.tls
        found['tls'] = {'brokers': broker.servers('SSL'), 'tls': True, 'tls_ca': tls.ca}
        found['unverified'] = {'brokers': broker.servers('SSL'), 'tls': True, 'tls_verify': False}
        found['mutual'] = {'brokers': broker.servers('MTLS'), 'tls': True, 'tls_ca': tls.ca,
                           'tls_cert': tls.client[0], 'tls_key': tls.client[1]}
    return found


def test_every_way_in_leads_in(broker, tmp_path):
    """TLS, mutual TLS, unverified TLS, and each SASL mechanism with TLS and without, where there is such."""
    emitters = {name: dict(more, type='kafka', topic='way-' + name) for name, more in ways(broker).items()}
    path = config(tmp_path, emitters=dict(emitters, stdout={}), modules={'load': {}})
    done = badger('-f', path, '-n', 4, '-i', 0.2)
    warning = ' statbadger warning: unverified: takes whatever certificate comes (tls_verify)\n'
    assert done.code == 0 and done.err.count('\n') == ('unverified' in emitters) == (warning in done.err)
    lines = done.out.encode().split(b'\n')[:-1]
    assert len(emitters) == (9 if broker.version in KRAFT else 3)
    for name in emitters:
        holds(broker, 'way-' + name, lines)


def refused(broker, strict, elsewhere):
    """{name: (options, words of the one warning)} of all that must not lead in."""
    found = {}
    for listener in [name for name in ('SASL_PLAINTEXT', 'SASL_SSL') if name in broker.ports]:
        secure = {'tls': True, 'tls_ca': broker.tls.ca} if listener == 'SASL_SSL' else {}
        for mechanism in MECHANISMS:
            words = r'password|[Aa]uthentication failed'
            found['wrong-%s-%s' % (listener.lower(), mechanism)] = dict(
                login(mechanism, WRONG), brokers=broker.servers(listener), **secure), words
            found['nobody-%s-%s' % (listener.lower(), mechanism)] = dict(
                found['wrong-%s-%s' % (listener.lower(), mechanism)][0], username='nobody'), words
    found['sasl-on-plain'] = dict(login('plain'), brokers=broker.servers()), 'SASL.*wants no login'
    if broker.version not in KRAFT:
        return found
    found['plain-on-sasl'] = {'brokers': broker.servers('SASL_PLAINTEXT')}, 'closed.*want "sasl"'
    ssl, mtls, ca = broker.servers('SSL'), broker.servers('MTLS'), broker.tls.ca
    found.update({
        'plain-on-tls': ({'brokers': ssl}, 'need "tls": true'),
        'sasl-on-tls': (dict(login('plain'), brokers=broker.servers('SASL_SSL')), 'need "tls": true'),
        'tls-on-plain': ({'brokers': broker.servers(), 'tls': True, 'tls_ca': ca}, 'is there TLS on that'),
        'no-certificate': ({'brokers': mtls, 'tls': True, 'tls_ca': ca}, 'certificate'),
        'foreign-certificate': ({'brokers': mtls, 'tls': True, 'tls_ca': ca, 'tls_cert': elsewhere.client[0],
                                 'tls_key': elsewhere.client[1]}, 'certificate|unknown ca'),
        'foreign-ca': ({'brokers': ssl, 'tls': True, 'tls_ca': elsewhere.ca}, UNTRUSTED),
        'ca-of-this-host': ({'brokers': ssl, 'tls': True}, UNTRUSTED),
    })
    if broker.version in NEW:
        port = '127.0.0.1:%d' % strict.ssl
        found['other-host'] = {'brokers': port, 'tls': True, 'tls_ca': ca}, UNTRUSTED + '.*mismatch'
    return found


def test_whoever_may_not_come_in_is_told_why_once_and_stores_nothing(broker, strict, tmp_path):
    elsewhere = Certificates(tmp_path / 'elsewhere')
    cases = refused(broker, strict, elsewhere)

    def attempt(name):
        folder = tmp_path / name
        folder.mkdir()
        emitters = {'k': dict(cases[name][0], type='kafka', topic='closed-' + name, timeout=3)}
        return badger('-f', config(folder, emitters=emitters, modules={'load': {}}), '-n', 3, '-i', 0.1)
    with ThreadPoolExecutor(len(cases)) as pool:        # most of them wait for five seconds at their end
        done = dict(zip(sorted(cases), pool.map(attempt, sorted(cases))))
    wrong = []
    for name in sorted(cases):
        code, err, seconds = done[name].code, done[name].err, done[name].seconds
        lines = err.split('\n')
        if not (code == 1 and len(lines) == 3 and re.search(cases[name][1], lines[0]) and seconds < 30
                and '127.0.0.1:' in lines[0] and 'k: 3 of 3 ticks were not delivered' in lines[1]
                and WRONG not in err and USERS['alice'] not in err):
            wrong.append('%s: %d after %.1f s: %s' % (name, code, seconds, err))
    assert not wrong, '\n'.join(wrong)
    assert not [topic for topic in broker.topics() if topic.startswith('closed-')]


def test_a_mechanism_that_the_broker_has_not_is_answered_with_those_that_it_has(strict):
    done = badger('-n', 2, '-i', 0.1, '-m', 'load', '-e', kafka(
        strict, 'none', 'SASL_PLAINTEXT', **login('scram-sha-256')))
    assert done.code == 1 and done.seconds < 5
    one_line(done.err, 'SCRAM-SHA-256', 'need one of PLAIN')


@of(VERSIONS[:3])
def test_a_session_that_ends_is_renewed_on_the_same_connection(broker, tmp_path):
    """Sessions of two seconds, ticks before and after their ends: no error, one connection, nothing lost."""
    agents = {}
    for every in (0.5, 2.5):
        folder = tmp_path / str(every)
        folder.mkdir()
        topic = 'renewed-%s' % every
        how = login('scram-sha-512' if every < 1 else 'plain')
        agents[topic] = Live(folder, '-n', int(5.5 / every), '-i', every, '-m', 'load', '-e', 'stdout',
                             '-e', kafka(broker, topic, 'SASL_PLAINTEXT', **how))
    with agents['renewed-0.5'] as often, agents['renewed-2.5']:
        often.until_ticks(2)
        until(lambda: 'renewed-0.5' in broker.topics() and broker.read_back('renewed-0.5'), 'the first tick')
        before = sockets(often.process.pid)
        often.until_ticks(9)
        assert sockets(often.process.pid) == before and len(before) == 1
        for topic, agent in agents.items():
            code, lines, errors = agent.ended()
            assert (code, errors) == (0, '')
            holds(broker, topic, lines)


def sockets(pid):
    """What tells the sockets of a process from all others."""
    folder = '/proc/%d/fd' % pid
    links = (os.readlink(os.path.join(folder, name)) for name in os.listdir(folder))
    return set(link for link in links if link.startswith('socket:'))


# -- brokers that are not willing -------------------------------------------------------------------

SIZES = """\
class sizes:
    def __init__(self, config, logger):
        self.large = config['large']

    def get_stats(self, iteration):
        self.n = getattr(self, 'n', 0) + 1
        points = 500 if self.n in self.large else 50
        return [{'sizes.n%d' % i: {'value': i, 'units': ''}} for i in range(points)]
"""


def account(lines, name='kafka'):
    """{count: value} of an emitter, as the module `self` told it last."""
    last = {}
    for point in json.loads(lines[-1].decode())['points']:
        for flat, entry in point.items():
            words = flat.split('.', 2)
            if words[1].startswith('emitter_') and words[2:] == [name]:
                last[words[1][len('emitter_'):]] = entry['value']
    return last


def large(line):
    return len(line) > 10000


@of(VERSIONS)
def test_a_batch_that_is_too_large_goes_in_parts_and_a_tick_that_is_too_large_is_set_aside(broker, tmp_path):
    (tmp_path / 'sizes.py').write_text(SIZES)
    emitters = {'stdout': {}}
    for name, flush in (('single', 0), ('gathered', 1)):
        broker.create_topic(name, config={'max.message.bytes': 10000})
        emitters[name] = {'type': 'kafka', 'brokers': broker.servers(), 'topic': name, 'flush': flush}
    modules = {'sizes': {'file': str(tmp_path / 'sizes.py'), 'large': [7, 8, 15]}, 'self': {}}
    done = badger('-f', config(tmp_path, emitters=emitters, modules=modules), '-n', 30, '-i', 0.1)
    lines = done.out.encode().split(b'\n')[:-1]
    bad = [len(json.loads(line.decode())['points']) for line in lines if large(line)]
    assert done.code == 1 and len(lines) == 30 and 2 <= len(bad) <= 3
    for name in ('single', 'gathered'):
        holds(broker, name, [line for line in lines if not large(line)])
        said = '\n'.join(line for line in done.err.split('\n') if ' %s: ' % name in line)
        one_line(said, 'refused: a message of', 'more than the broker takes')
        assert '%s: %d of 30 ticks were not delivered: they were refused' % (name, len(bad)) in said
        counts = account(lines, name)
        assert (counts['quarantined'], counts['refused_points']) == (len(bad), sum(bad))


def recording(folder, times):
    """A host with nothing but its load, recorded at these times (seconds)."""
    for i, when in enumerate(times):
        file = folder / 'recording' / ('%d.000' % when) / 'proc' / 'loadavg'
        file.parent.mkdir(parents=True)
        file.write_text('%d.25 0.50 0.75 1/100 %d\n' % (i, 1000 + i))
    return str(folder / 'recording')


@of(NEW)
@pytest.mark.parametrize('which', ['before', 'after', 'default'])
def test_ticks_whose_time_the_topic_does_not_take_are_set_aside(broker, tmp_path, which):
    """Unless told a broker of 4.x takes nothing that is an hour ahead."""
    settings = {'message.timestamp.%s.max.ms' % which: 60000} if which != 'default' else {}
    topic, now = broker.create_topic('time-' + which, config=settings), int(time.time())
    strange = -7200 if which == 'before' else 7200
    times = sorted([now + strange + i for i in (0, 100, 200)] + [now - 5, now - 4, now - 3, now - 2])
    done = badger('-f', config(tmp_path), '--replay', recording(tmp_path, times), *one_module(broker, topic))
    lines = done.out.encode().split(b'\n')[:-1]
    good = [line for line in lines if abs(stamp(line) / 1000.0 - now) < 60]
    assert len(good) >= 3 and len(lines) - len(good) >= 2
    holds(broker, topic, good)
    assert done.code == 1
    one_line(done.err, 'refused', 'INVALID_TIMESTAMP', 'clocks')
    assert 'kafka: %d of %d ticks were not delivered: they were refused' % (
        len(lines) - len(good), len(lines)) in done.err


@of(VERSIONS)
def test_a_topic_may_have_times_and_codecs_of_its_own(broker, tmp_path):
    settings = {'message.timestamp.type': 'LogAppendTime', 'compression.type': 'gzip'}
    topic, before = broker.create_topic('own', config=settings), int(time.time() * 1000)
    done = badger('-f', config(tmp_path), '-n', 4, '-i', 0.1, *one_module(broker, topic))
    lines, records = sent_well(done, 4), broker.read_back(topic)
    assert values(records) == lines
    assert all(record.timestamp >= before for record in records)
    batches = broker.dump(topic)
    assert all('LogAppendTime' in batch or 'CreateTime' in batch for batch in batches)
    assert set((batch['compresscodec'], batch['isvalid']) for batch in batches) == {('gzip', True)}


@of(VERSIONS)
def test_a_compacted_topic_needs_a_key(broker, tmp_path):
    topic = broker.create_topic('compacted', config={'cleanup.policy': 'compact'})
    if broker.number > (2,):
        done = badger('-n', 3, '-i', 0.1, '-m', 'load', '-e', kafka(broker, topic, key=''))
        assert done.code == 1
        one_line(done.err, 'refused', 'INVALID_RECORD', 'needs a key')
        assert 'kafka: 3 of 3 ticks were not delivered: they were refused' in done.err
    else:                                       # these say the same of a checksum that is wrong
        with Live(tmp_path, '-i', 0.1, '-m', 'load', '-e', kafka(broker, topic, key='')) as agent:
            agent.until_said('CORRUPT_MESSAGE')
            one_line(agent.errors(), 'topic "compacted"', 'needs a key')
    assert broker.read_back(topic) == []
    done = badger('-f', config(tmp_path), '-n', 3, '-i', 0.1, *one_module(broker, topic))
    holds(broker, topic, sent_well(done, 3))


@of(NEW)
def test_who_may_not_write_is_told_once_and_the_ticks_wait(broker):
    topic = broker.create_topic('denied')
    broker.acl('deny', 'mallory', 'write', topic)
    broker.acl('allow', 'alice', 'all', topic)
    run = '-n', 4, '-i', 0.2, '-m', 'load', '-e', 'stdout', '-e'
    done = badger(*run + (kafka(broker, topic, 'SASL_PLAINTEXT', **login('plain', user='mallory')),))
    assert done.code == 1 and done.seconds < 5
    one_line(done.err, 'topic "denied": TOPIC_AUTHORIZATION_FAILED', 'right to write')
    assert '4 of 4 ticks were not delivered' in done.err and broker.read_back(topic) == []
    done = badger(*run + (kafka(broker, topic, 'SASL_PLAINTEXT', **login('plain')),))
    holds(broker, topic, sent_well(done, 4))


@of(VERSIONS[:4])
def test_a_broker_that_asks_for_less_gets_less_and_all_of_it(broker, tmp_path):
    """The pauses are longer than the patience with one exchange; before 2.0 the broker just answers late."""
    topic = broker.create_topic('slow')
    broker.alter_client_quota('statbadger', {'producer_byte_rate': 1200})
    try:
        done = badger('-f', config(tmp_path), '-n', 25, '-i', 0.1, '-m', 'load', '-e', 'stdout',
                      '-e', kafka(broker, topic, timeout=1 if broker.number > (2,) else 10))
    finally:
        broker.alter_client_quota('statbadger', {'producer_byte_rate': None})
    holds(broker, topic, sent_well(done, 25))


@of(VERSIONS)
def test_a_producer_that_the_broker_has_forgotten_gets_another_id(broker, tmp_path):
    """A broker forgets who wrote it when the last of it is deleted; some of them then refuse what follows."""
    topic = broker.create_topic('forgotten')
    with Live(tmp_path, '-f', config(tmp_path), '-i', 0.3, *one_module(broker, topic)) as agent:
        stored = []
        for _ in range(2):
            agent.until_ticks(len(agent.lines()) + 2)
            stored += values(broker.read_back(topic))
            all_of_it = [confluent_kafka.TopicPartition(topic, 0, len(stored))]
            broker.ask('delete_records', all_of_it)
        agent.until_ticks(len(agent.lines()) + 2)
        code, lines, errors = agent.finish()
        assert (code, errors) == (0, '')
        same_lines(stored + values(broker.read_back(topic)), lines)


@of(KRAFT)
def test_a_topic_that_is_made_anew_with_fewer_partitions_gets_all_that_comes_then(broker, tmp_path):
    assert partition_of(broker, HOST, 7) > 2
    topic = broker.create_topic('anew', 7)
    with Live(tmp_path, '-f', config(tmp_path), '-i', 0.1, *one_module(broker, topic)) as agent:
        agent.until_ticks(5)
        broker.read_back(topic, at_least=5)
        broker.ask('delete_topics', [topic])
        until(lambda: len(broker.topics().get(topic, ())) != 7, 'the end of the old one')
        agent.until_ticks(len(agent.lines()) + 10)
        until(lambda: topic in broker.topics(), 'the new one')
        code, lines, errors = agent.finish()
        assert code == 0 and errors.count('warning') <= 1, errors
        records = broker.read_back(topic, at_least=10)
        same_lines(values(records), lines[-len(records):])
        assert records[-1].partition == partition_of(broker, HOST, 3)


def test_ticks_wait_for_a_topic_that_is_made_later(strict, tmp_path):
    topic = 'missing'
    with Live(tmp_path, '-f', config(tmp_path), '-i', 0.1, *one_module(strict, topic)) as agent:
        agent.until_ticks(10)
        agent.until_said('warning')
        one_line(agent.errors(), 'topic "missing": UNKNOWN_TOPIC_OR_PARTITION: is the topic there')
        strict.create_topic(topic, 3)
        agent.until_said('delivers again')
        code, lines, errors = agent.finish()
        assert code == 0 and errors.count('\n') == 2
        holds(strict, topic, lines)


def test_a_connection_that_the_broker_closes_between_ticks_is_no_trouble(strict, tmp_path):
    topic = strict.create_topic('idle', 3)
    done = badger('-f', config(tmp_path), '-n', 3, '-i', 2, *one_module(strict, topic))
    holds(strict, topic, sent_well(done, 3))


# -- a broker that comes and goes ------------------------------------------------------------------

class Relay:
    """What lies between the program and a broker, whose address it is for everybody. spoil(api, code) says of
    an answer to the program whether it gets lost, and the connection with it; code: its first error code."""

    def __init__(self, spoil):
        self.spoil, self.seen, self.broker = spoil, [], None
        self.door = socket.socket()
        self.door.bind(('127.0.0.1', 0))
        self.door.listen(20)
        self.port = self.door.getsockname()[1]
        self.thread(self.accept)

    def thread(self, function, *args):
        threading.Thread(target=function, args=args, daemon=True).start()

    def accept(self):
        while True:
            try:
                near = self.door.accept()[0]
            except OSError:
                return                          # the door is closed
            try:
                far = socket.create_connection(('127.0.0.1', self.broker.plaintext), 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            asked = {}
            self.thread(self.requests, near, far, asked)
            self.thread(self.answers, far, near, asked)

    def requests(self, near, far, asked):
        for frame in frames(near):
            api, _, number, length = struct.unpack_from('>hhih', frame, 4)
            if frame[14:14 + length] == b'statbadger':
                asked[number] = api
            far.sendall(frame)
        hang_up(far)

    def answers(self, far, near, asked):
        for frame in frames(far):
            api = asked.pop(struct.unpack_from('>i', frame, 4)[0], None)
            code = first_code(api, frame)
            self.seen.append((api, code))
            if self.spoil(api, code):
                break
            near.sendall(frame)
        hang_up(near)
        hang_up(far)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        hang_up(self.door)
        self.door.close()


def hang_up(sock):
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def frames(sock):
    """Each message that comes in, with its length in front, until the connection ends."""
    data = b''
    while True:
        while len(data) >= 4 and len(data) >= 4 + struct.unpack('>i', data[:4])[0]:
            n = 4 + struct.unpack('>i', data[:4])[0]
            yield data[:n]
            data = data[n:]
        try:
            more = sock.recv(65536)
        except OSError:
            return
        if not more:
            return
        data += more


def first_code(api, frame):
    """The error code of an answer to Produce, for one partition, or to InitProducerId; None of others."""
    if api == 0:
        name = struct.unpack_from('>h', frame, 12)[0]
        return struct.unpack_from('>h', frame, 14 + name + 8)[0]
    return struct.unpack_from('>h', frame, 12)[0] if api == 22 else None


@pytest.mark.parametrize('version', ['4.3.1', '0.11.0.3'])
def test_answers_that_get_lost_double_nothing_and_a_cold_start_is_waited_for(tls, tmp_path, version):
    """Every third answer to what was stored is lost with the connection; only acks 1 then stores it twice."""
    count = collections.Counter()

    def spoil(api, code):
        count[api] += 1
        return api == 0 and code == 0 and count[api] % 3 == 0
    with Relay(spoil) as relay:
        folder = tmp_path / 'kafka'
        if version in KRAFT:
            broker = KafkaBroker(folder, version, tls=tls)
            names = dict(broker.ports, PLAINTEXT=relay.port)
            del names['CONTROLLER']
        else:
            broker = OldBroker(folder, version)
            names = {'PLAINTEXT': relay.port}
        broker.extra['advertised.listeners'] = ','.join('%s://127.0.0.1:%d' % item for item in names.items())
        relay.broker, emitters = broker, {'stdout': {}}
        for name, more in (('idempotent', {}), ('packed', {'codec': 'gzip'}), ('not', {'acks': '1'})):
            place = '127.0.0.1:%d' % relay.port
            emitters[name] = dict({'type': 'kafka', 'brokers': place, 'topic': name}, **more)
        agent = Live(tmp_path, '-f', config(tmp_path, emitters=emitters, modules={'load': {}}), '-i', 0.1)
        with agent, broker:
            agent.until_ticks(len(agent.lines()) + 40)
            code, lines, errors = agent.finish()
            assert code == 0, errors
            for name in ('idempotent', 'packed'):
                records = holds(broker, name, lines)
                batches = broker.dump(name, records[0].partition)
                assert [b['baseSequence'] for b in batches] == [b['baseOffset'] for b in batches]
                assert all(batch['isvalid'] for batch in batches)
            found = values(broker.read_back('not'))
            assert set(found) == set(lines) and len(found) > len(lines)
        starts = [code for api, code in relay.seen if api == 22]
        assert starts[-1] == 0 and (version not in NEW or 14 in starts), starts
        assert len([1 for api, code in relay.seen if api == 0]) > 40


def test_ticks_that_piled_up_while_the_broker_was_away_all_arrive_once_and_in_order(tls, tmp_path):
    """It is there late, then away in good order for eight seconds, then killed: fifty ticks a second all the
    while. With acks 1 a tick may arrive twice, yet none is lost; with acks 0 a broker that comes up closes on what it
    is sent too early, and nobody knows how much that was: what flows before and after is there."""
    broker = KafkaBroker(tmp_path / 'kafka', tls=tls)
    place = '127.0.0.1:%d' % broker.plaintext
    emitters = {acks: {'type': 'kafka', 'brokers': place, 'topic': acks, 'acks': acks}
                for acks in ('all', '1', '0')}
    agent = Live(tmp_path, '-f', config(tmp_path, emitters=dict(emitters, stdout={}), modules={'load': {}}),
                 '-i', 0.02)
    missing, ends = {}, []

    def caught_up():
        n = len(agent.lines())
        until(lambda: len(set(emitters) & set(broker.topics())) == 3, 'the topics')
        for topic in ('all', '1'):
            broker.read_back(topic, at_least=n, timeout=60)
    with agent:
        agent.until_ticks(100)
        with broker:
            caught_up()
            broker.stop()
            ends.append(len(agent.lines()))
            agent.until_ticks(ends[-1] + 400)
            broker.start()
            caught_up()
            broker.kill()
            ends.append(len(agent.lines()))
            agent.until_ticks(ends[-1] + 100)
            broker.start()
            code, lines, errors = agent.finish()
            assert code == 0 and len(lines) > 600, errors
            partition = holds(broker, 'all', lines)[0].partition
            batches = broker.dump('all', partition)
            assert all(batch['isvalid'] for batch in batches)
            assert max(batch['count'] for batch in batches) > 50
            for topic in ('1', '0'):
                found = set(values(broker.read_back(topic)))
                assert found.issubset(lines)
                missing[topic] = [i for i, line in enumerate(lines) if line not in found]
            assert missing['1'] == [], (ends, len(lines), errors)
            assert len(lines) - 1 not in missing['0'] and ends[0] - 20 not in missing['0'], (ends, missing['0'])


# -- a cluster -------------------------------------------------------------------------------------

@pytest.mark.parametrize('first', ['closed', 'mute'])
def test_one_broker_of_the_list_is_enough(cluster, tmp_path, first):
    """The others: nobody there, or one that takes connections and never says a word."""
    with socket.socket() as mute:
        mute.bind(('127.0.0.1', 0))
        mute.listen(5)
        dead = '127.0.0.1:%d' % mute.getsockname()[1] if first == 'mute' else '127.0.0.1:1'
        topic = cluster.create_topic('one-' + first, 3)
        brokers = ','.join([dead, '127.0.0.1:2', cluster.servers().split(',')[0]])
        with Live(tmp_path, '-f', config(tmp_path), '-n', 20, '-i', 0.2, '-m', 'load', '-e', 'stdout',
                  '-e', kafka(cluster, topic, brokers=brokers, timeout=2)) as agent:
            code, lines, errors = agent.ended()
        assert code == 0 and len(lines) == 20
        assert first == 'mute' or errors == '', errors
        holds(cluster, topic, lines)


def test_too_few_replicas_are_waited_for(cluster, tmp_path):
    topic = cluster.create_topic('replicas', config={'min.insync.replicas': 3})
    gone = next(i for i in cluster.nodes if i != cluster.leader_of(topic))
    with Live(tmp_path, '-f', config(tmp_path), '-i', 0.1, *one_module(cluster, topic)) as agent:
        agent.until_ticks(5)
        cluster.stop_gracefully(gone)
        agent.until_said('topic "replicas": NOT_ENOUGH_REPLICAS')
        agent.until_ticks(len(agent.lines()) + 10)
        cluster.restart(gone)
        agent.until_said('delivers again')
        cluster.until_in_sync(3)
        code, lines, errors = agent.finish()
        assert code == 0, errors
        holds(cluster, topic, lines)


def test_a_follower_that_hangs_doubles_nothing(cluster, tmp_path):
    topic = cluster.create_topic('hanging')
    hanging = next(i for i in cluster.nodes if i != cluster.leader_of(topic))
    with Live(tmp_path, '-f', config(tmp_path), '-i', 0.1, '-m', 'load', '-e', 'stdout',
              '-e', kafka(cluster, topic, timeout=1)) as agent:
        agent.until_ticks(10)
        cluster.freeze(hanging)
        try:
            agent.until_said('topic "hanging": REQUEST_TIMED_OUT')
            agent.until_said('delivers again')
        finally:
            cluster.thaw(hanging)
        code, lines, errors = agent.finish()
        assert code == 0, errors
        holds(cluster, topic, lines)
    cluster.until_in_sync(3)


HOSTS = ['web%d.example.net' % i for i in range(8)]


def test_nothing_is_lost_or_doubled_while_leaders_are_killed_hang_and_move(cluster, tmp_path):
    """Eight hosts, twenty ticks a second each, six partitions: order per host is kept through all of it."""
    topic = cluster.create_topic('many', 6)
    bootstrap = cluster.servers()
    agents = []
    try:
        for i, host in enumerate(HOSTS):
            folder = tmp_path / host
            folder.mkdir()
            how = one_module(cluster, topic, brokers=bootstrap, codec='none' if i % 2 else 'gzip', timeout=4)
            agents.append(Live(folder, '-f', config(folder, hostname=host), '-i', 0.05, *how))

        def go_on(ticks=40):
            counts = [len(agent.lines()) + ticks for agent in agents]
            for agent, n in zip(agents, counts):
                agent.until_ticks(n)
        go_on()
        leader = cluster.leader_of(topic)
        cluster.kill(leader)
        go_on(130)
        cluster.restart(leader)
        cluster.until_in_sync(3)
        cluster.elect_preferred()
        go_on()
        leader = cluster.leader_of(topic, 1)
        cluster.freeze(leader)
        go_on(180)
        cluster.thaw(leader)
        cluster.until_in_sync(3)
        go_on()
        leader = cluster.leader_of(topic, 2)
        cluster.stop_gracefully(leader)
        go_on()
        cluster.restart(leader)
        cluster.until_in_sync(3)
        cluster.elect_preferred()
        go_on()
        cluster.stop()
        go_on(60)
        cluster.start()
        cluster.until_in_sync(3)
        total = sum(len(agent.lines()) for agent in agents)
        cluster.read_back(topic, timeout=60, at_least=total)
        ended = [agent.finish() for agent in agents]
    finally:
        for agent in agents:
            agent.__exit__()
    found, parts = collections.defaultdict(list), collections.defaultdict(set)
    for record in cluster.read_back(topic, timeout=60, at_least=sum(len(lines) for _, lines, _ in ended)):
        found[record.key.decode()].append(record.value)
        parts[record.key.decode()].add(record.partition)
    for host, (code, lines, errors) in zip(HOSTS, ended):
        assert len(parts[host]) == 1
        same_lines(found[host], lines)
        assert code == 0, errors
    assert sorted(found) == HOSTS
    batches = cluster.nodes[1].dumps([(topic, i) for i in range(6) if any(i in p for p in parts.values())])
    assert all(batch['isvalid'] and batch['magic'] == 2 for found in batches.values() for batch in found)
