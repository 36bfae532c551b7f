"""Real brokers that speak STOMP - ActiveMQ, ActiveMQ Artemis, RabbitMQ - are written to by the program, and read back
by stomp.py.

What is expected comes from the `stdout` emitter of the same run: the same lines, in the same order, each once.
"""
import contextlib
import json
import os
import re
import signal
import threading
import time

import pytest
import standins
from conftest import TESTS
from peer import (ended, finished_well, firsts, flat_points, large_recording, live, require, until_ticks)
from stomp_servers import ADMIN, WRITER, ActiveMQ, Artemis, RabbitMQ

try:
    import stomp
except ImportError:
    stomp = None

BROKERS = {'activemq': ActiveMQ, 'artemis': Artemis, 'rabbitmq': RabbitMQ}
HOSTS = ['linux-2.6.9', 'linux-6.18', 'odd-names', 'big']
IDENTITY = {'datacenter': 'EC2', 'region': 'us-west-1', 'zone': '', 'cluster': 'te.st', 'hostname': 'n1.example.net',
            'ipv4': '10.10.10.2', 'ipv6': '2001:db8::1'}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return standins.certificates(tmp_path_factory.mktemp('certificates'))


@pytest.fixture(scope='module')
def started(tmp_path_factory, made):
    """started(kind) -> that broker, one for all tests; each has destinations of its own."""
    peers, stack = {}, contextlib.ExitStack()

    def start(kind):
        require(stomp, kind, 'no stomp.py (PyPI: stomp.py)')
        if kind not in peers:
            peers[kind] = stack.enter_context(BROKERS[kind](tmp_path_factory.mktemp(kind), made))
            peers[kind].kind = kind
        return peers[kind]
    with stack:
        yield start


@pytest.fixture(params=sorted(BROKERS))
def server(request, started):
    return started(request.param)


def of(*kinds):
    return pytest.mark.parametrize('server', kinds, indirect=True)


class Reader(stomp.ConnectionListener if stomp else object):
    """Subscribed to a destination, as the admin. .heard: [(headers, body)]"""

    def __init__(self, server, destination, vhost='/', **headers):
        self.heard, self.errors, self.last, self.subscribed = [], [], time.monotonic(), threading.Event()
        self.connection = stomp.Connection12([('127.0.0.1', server.port)], vhost=vhost)
        self.connection.set_listener('', self)
        self.connection.connect('admin', ADMIN, wait=True)
        if server.kind == 'artemis' and destination.startswith('/queue/'):      # else that of a topic, unless it is there
            headers['subscription-type'] = 'ANYCAST'
        self.connection.subscribe(destination, id='1', ack='auto', headers=headers or None, receipt='subscribed')
        self.subscribed.wait(10)

    def on_receipt(self, frame):
        self.subscribed.set()

    def on_message(self, frame):
        self.heard.append((frame.headers, frame.body))
        self.last = time.monotonic()

    def on_error(self, frame):
        self.errors.append(frame.body)

    def bodies(self, n, seconds=20):
        """The next n messages, and whatever comes in the moment after them."""
        end = time.monotonic() + seconds
        while len(self.heard) < n and time.monotonic() < end:
            time.sleep(0.01)
        while time.monotonic() < min(end, self.last + 0.3):
            time.sleep(0.01)
        assert self.errors == []
        return [body for headers, body in self.heard]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.connection.disconnect()


def stored(server, destination, n, **more):
    """The bodies that a queue holds, n of them, if they are so many; and no longer holds."""
    with Reader(server, destination, **more) as reader:
        return reader.bodies(n)


def options(server, **more):
    return dict({'port': server.port, 'username': 'writer', 'password': WRITER, 'vhost': '/', 'type': 'activemq'}, **more)


@pytest.fixture
def config(tmp_path):
    """config(server, destination, **options) -> the arguments with which a tick is small, printed, and sent."""
    def make(server, destination, who=(), **more):
        path = tmp_path / ('%d.conf' % len(list(tmp_path.iterdir())))
        path.write_text(json.dumps(dict(dict(IDENTITY, **dict(who)), modules={'load': {}, 'network': {}}, emitters={
            'stdout': {}, 'activemq': options(server, destination=destination, **more)})))
        return ['-f', path]
    return make


def replayed(run, host, server, destination, **more):
    """The lines that a frozen host gives, all of them delivered."""
    text = json.dumps(dict(IDENTITY, emitters={
        'stdout': {}, 'activemq': options(server, destination=destination, **more)}))
    done = run('-f', '-', '--replay', os.path.join(TESTS, 'hosts', host), stdin=text.encode())
    finished_well(done)
    return done.out.splitlines()


# -- what arrives --------------------------------------------------------------------------------

@pytest.mark.parametrize('host', HOSTS)
def test_the_messages_are_the_payloads_of_a_whole_host_in_order_and_nothing_else(run, server, host):
    lines = replayed(run, host, server, '/queue/stats.' + host)
    assert len(lines) > 1 and stored(server, '/queue/stats.' + host, len(lines)) == lines


def test_a_message_is_a_persistent_text_that_says_what_it_is(run, server, config):
    more = {'headers': {'priority': '7', 'x-site': 'a:b\\c d'}}
    done = run('-n', 2, '-i', 0.1, *config(server, '/queue/stats.headers', **more))
    lines = [json.loads(line) for line in done.out.splitlines()]
    with Reader(server, '/queue/stats.headers') as reader:
        assert [json.loads(body) for body in reader.bodies(2)] == lines and done.code == 0
        for headers, body in reader.heard:
            assert headers['content-type'] == 'application/json' and headers['persistent'] == 'true'
            assert (headers['priority'], headers['x-site']) == ('7', 'a:b\\c d')
            # ActiveMQ gives a length with what readers by JMS would get as bytes, not as a text.
            assert server.kind != 'activemq' or 'content-length' not in headers
            assert ('_AMQ_DUPL_ID' in headers) == (server.kind == 'artemis')


@pytest.mark.parametrize('host', ['linux-6.18', 'odd-names'])
def test_flat_messages_are_an_object_per_point(run, server, host):
    lines = replayed(run, host, server, '/queue/stats.flat.' + host, format='flat', tags={'env': 'prod'})
    wanted = flat_points(lines, {'env': 'prod'})
    found = stored(server, '/queue/stats.flat.' + host, len(wanted))
    assert [json.loads(body) for body in found] == wanted and len(wanted) > 100


@pytest.mark.parametrize('format', ['graphite', 'influx'])
def test_lines_of_a_tick_are_one_message(run, server, format):
    lines = replayed(run, 'linux-6.18', server, '/queue/stats.' + format, format=format, prefix='x', blacklist=['mem.*'])
    points = [sum(not flat.startswith('mem.') for point in json.loads(line)['points'] for flat in point)
              for line in lines]
    found = stored(server, '/queue/stats.' + format, len(lines))
    if format == 'graphite':
        assert [message.count('\n') for message in found] == points
    else:
        assert [sum(len(line.split(' ')[-2].split(',')) for line in message.splitlines()) for message in found] == points


def test_who_is_subscribed_to_a_topic_hears_all(run, server):
    with Reader(server, '/topic/stats.t') as reader:
        lines = replayed(run, 'linux-6.18', server, '/topic/stats.t')
        assert reader.bodies(len(lines)) == lines


def test_a_backlog_goes_many_at_a_time_and_all_of_it_arrives(run, server, config):
    done = run('-n', 300, '-i', 0.01, *config(server, '/queue/stats.backlog', flush=100, batch=250))
    assert done.code == 0 and stored(server, '/queue/stats.backlog', 300) == done.out.splitlines()


HOSTILE = 'a,topic://b>*?x=1/%2F\\c:\n\x01 "gr\u00fc\u00df\u2028'


def test_a_hostile_name_of_a_host_is_one_destination(run, server, config):
    name = re.sub('[^A-Za-z0-9._-]', '_', HOSTILE)
    done = run('-n', 2, '-i', 0.1, *config(server, '/queue/stats.{cluster}', {'cluster': HOSTILE}))
    finished_well(done, 2)
    assert stored(server, '/queue/stats.' + name, 2) == done.out.splitlines()


def test_the_default_destination_is_one_that_is_kept(run, server):
    text = json.dumps({'modules': {'load': {}}, 'emitters': {'stdout': {}, 'activemq': options(server)}})
    done = run('-f', '-', '-n', 2, '-i', 0.1, stdin=text.encode())
    assert done.code == 0 and stored(server, '/queue/statbadger', 2) == done.out.splitlines()


@of('artemis')
def test_artemis_with_prefixes_keeps_it_too(run, server, config):
    done = run('-n', 2, '-i', 0.1, *config(server, '/queue/stats.prefixed', port=server.prefixes))
    assert done.code == 0
    with_prefixes = type('Prefixed', (), {'port': server.prefixes, 'kind': 'artemis'})
    assert stored(with_prefixes, '/queue/stats.prefixed', 2) == done.out.splitlines()


@of('artemis', 'rabbitmq', 'activemq')
def test_a_name_without_a_prefix_is_a_queue_where_the_broker_says_so(run, server, config):
    more = {'headers': {'destination-type': 'ANYCAST'}} if server.kind == 'artemis' else {}
    name = 'statbadger' if server.kind == 'activemq' else 'stats.plain'
    done = run('-n', 2, '-i', 0.1, *config(server, name, **more))
    assert done.code == 0
    assert stored(server, name if server.kind == 'artemis' else '/queue/' + name, 2) == done.out.splitlines()


@of('rabbitmq')
def test_rabbitmq_has_virtual_hosts_and_exchanges(run, server, config):
    done = run('-n', 2, '-i', 0.1, *config(server, '/queue/stats.other', vhost='other'))
    assert done.code == 0 and stored(server, '/queue/stats.other', 2, vhost='other') == done.out.splitlines()
    with Reader(server, '/exchange/amq.topic/stats.#') as reader:
        done = run('-n', 2, '-i', 0.1, *config(server, '/exchange/amq.topic/stats.{hostname}'))
        assert done.code == 0 and reader.bodies(2) == done.out.splitlines()


# -- who may do what -----------------------------------------------------------------------------

@pytest.mark.parametrize('more', [{'password': 'not it'}, {'username': 'nobody'}, {'username': '', 'password': ''}],
                         ids=repr)
def test_a_login_that_is_wrong_is_said_once(run, server, config, more):
    done = run('-n', 2, '-i', 0.1, *config(server, '/queue/stats.locked', **more))
    assert done.code == 1 and done.err.count('warning') == 1 and done.seconds < 5
    assert re.search('password is invalid|Bad CONNECT: Access refused', done.err)
    assert 'sesame' not in done.err and 'not it' not in done.err


@of('rabbitmq')
def test_a_virtual_host_that_is_not_there_is_said(run, server, config):
    done = run('-n', 1, '-i', 0.1, *config(server, '/queue/stats.locked', vhost=''))
    assert done.code == 1 and "Virtual host '127.0.0.1' access denied" in done.err


def test_a_right_that_is_missing_is_said_once_and_the_ticks_wait(run, server, config):
    destination = 'closed.x' if server.kind == 'artemis' else '/queue/closed.x'
    done = run('-n', 2, '-i', 0.1, *config(server, destination))
    assert done.code == 1 and done.err.count('warning') == 1 and '2 of 2 ticks' in done.err
    assert re.search('not authorized to write|does not have permission|ACCESS_REFUSED', done.err)


@of('artemis', 'rabbitmq')
def test_what_is_not_there_and_not_made_is_said(run, server, config):
    destination = 'strict.x' if server.kind == 'artemis' else '/exchange/nope/x'
    more = {'username': 'admin', 'password': ADMIN}
    done = run('-n', 1, '-i', 0.1, *config(server, destination, **more))
    assert done.code == 1 and done.err.count('warning') == 1
    assert re.search('does not exist|not_found: NOT_FOUND - no exchange', done.err)


# -- TLS -----------------------------------------------------------------------------------------

def test_over_tls(run, server, made):
    lines = replayed(run, 'big', server, '/queue/stats.tls', port=server.tls, tls=True, tls_ca=made.ca)
    assert stored(server, '/queue/stats.tls', len(lines)) == lines


def test_mutual_tls(run, server, made):
    """With RabbitMQ a certificate is asked for and none is no mistake, but one of a stranger is."""
    own = dict(port=server.mutual, tls=True, tls_ca=made.ca, tls_cert=made.client.cert, tls_key=made.client.key)
    lines = replayed(run, 'linux-6.18', server, '/queue/stats.mutual', **own)
    assert stored(server, '/queue/stats.mutual', len(lines)) == lines


def test_tls_that_does_not_fit_is_said_and_nothing_is_stored(run, server, made):
    tls = dict(port=server.tls, tls=True, tls_ca=made.ca, timeout=1, destination='/queue/stats.untrusted')
    emitters = {
        'other-ca': dict(tls, tls_ca=made.other_ca), 'no-tls': dict(tls, tls=False, tls_ca=''),
        'no-port': dict(tls, port=server.port),
        'stranger': dict(tls, port=server.mutual, tls_cert=made.stranger.cert, tls_key=made.stranger.key)}
    done = run('-f', '-', '-n', 1, '-i', 0.1, stdin=json.dumps({
        'modules': {'load': {}},
        'emitters': {name: options(server, **more) for name, more in emitters.items()}}).encode())
    assert done.code == 1
    said = {name: ' '.join(line for line in done.err.splitlines() if name + ': ' in line) for name in emitters}
    assert 'certificate of the peer is refused' in said['other-ca']
    assert re.search('port for TLS|no end within|no STOMP', said['no-tls'])
    assert re.search('TLS|no end within', said['no-port'])
    assert re.search('TLS.*alert|closed', said['stranger'])
    with Reader(server, '/queue/stats.untrusted') as reader:
        assert reader.bodies(1, 1) == []


# -- a broker that is not willing ----------------------------------------------------------------

def test_a_queue_that_is_full_gets_all_when_there_is_room(agent, server, config, tmp_path):
    destination = '/amq/queue/full' if server.kind == 'rabbitmq' else 'small.x' if server.kind == 'artemis' else '/queue/small.x'
    more = {'headers': {'destination-type': 'ANYCAST'}} if server.kind == 'artemis' else {}
    process = live(agent, tmp_path, '-n', 40, '-i', 0.1, *config(server, destination, **more))
    words = {'activemq': 'Limit reached', 'artemis': 'Error sending message', 'rabbitmq': 'closed by the peer'}
    server.until(lambda: words[server.kind] in (tmp_path / 'err').read_text(), 30, 'refuse anything')
    with Reader(server, destination) as reader:
        code, ticks, errors = ended(process, tmp_path)
        lines = (tmp_path / 'out').read_text().splitlines()
        found = reader.bodies(len(lines))
    assert code == 0 and 'delivers again' in errors and 'refused: ' not in errors, errors
    assert len(lines) == 40 and sorted(firsts(found)) == sorted(lines)


@of('activemq', 'rabbitmq')
def test_a_tick_that_is_too_large_is_quarantined_and_all_others_are_stored(run, server, tmp_path):
    large_recording(tmp_path / 'recording', 3)
    text = json.dumps({'modules': {'network': {'interfaces': ['*']}}, 'emitters': {
        'stdout': {}, 'activemq': options(server, destination='/queue/stats.large', flush=3600)}})
    done = run('-f', '-', '--replay', tmp_path / 'recording', stdin=text.encode())
    lines = done.out.splitlines()
    assert len(lines) == 6 and done.code == 1 and '1 of 6 ticks were not delivered' in done.err
    assert re.search('refused: .*(maximum data length was exceeded|larger than configured max)', done.err)
    assert len(lines[2]) > 1 << 20 and all(len(line) < 1 << 20 for line in lines[:2] + lines[3:])
    assert firsts(stored(server, '/queue/stats.large', 5)) == lines[:2] + lines[3:]


# -- a broker that comes and goes ----------------------------------------------------------------

def test_a_session_lives_on_heart_beats_and_its_end_is_no_failure(agent, server, config, tmp_path):
    with standins.Proxy(server.port) as proxy:
        process = live(agent, tmp_path, '-n', 3, '-i', 2, *config(
            server, '/queue/stats.idle', port=proxy.port, heartbeat=0.3))
        with Reader(server, '/queue/stats.idle') as reader:
            assert len(reader.bodies(2)) == 2
        assert proxy.connections == 1           # ActiveMQ ends a session without heart-beats after twice 0.3 s
        proxy.hang_up()
        code, ticks, errors = ended(process, tmp_path)
        assert (code, errors) == (0, '') and proxy.connections == 2
    lines = (tmp_path / 'out').read_text().splitlines()
    assert reader.bodies(2) + stored(server, '/queue/stats.idle', 1) == lines and len(lines) == 3


def test_a_broker_that_is_restarted_and_killed_misses_nothing(agent, server, config, tmp_path):
    process = live(agent, tmp_path, '-n', 150, '-i', 0.2, *config(server, '/queue/stats.restarted'))
    for number, n in ((signal.SIGTERM, 4), (signal.SIGKILL, 4)):
        until_ticks(tmp_path, len((tmp_path / 'out').read_text().splitlines()) + n)
        server.stop(number)
        server.start()
        server.until(lambda: (tmp_path / 'err').read_text().count('delivers again') >= 1, 60, 'be written to')
    process.send_signal(signal.SIGTERM)
    code, ticks, errors = ended(process, tmp_path)
    lines = (tmp_path / 'out').read_text().splitlines()
    assert code == 0 and len(lines) > 8, errors
    found = stored(server, '/queue/stats.restarted', len(lines))
    if server.kind == 'artemis':
        assert found == lines                   # each once, whatever was lost on the way
    assert firsts(found) == lines and len(found) <= len(lines) + 4


@of('activemq', 'artemis')
def test_what_is_not_persistent_is_gone_after_a_restart(run, server, config):
    done = run('-n', 2, '-i', 0.1, *config(server, '/queue/stats.passing', persistent=False))
    assert done.code == 0
    server.stop()
    server.start()
    with Reader(server, '/queue/stats.passing') as reader:
        assert reader.bodies(1, 2) == []
