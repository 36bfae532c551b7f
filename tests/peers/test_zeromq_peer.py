"""libzmq is written to by the program, bound and connecting, and read through pyzmq.

What is expected comes from the `stdout` emitter of the same run: the same lines, in the same order, each once.
"""
import json
import os
import signal
import socket
import sys
import threading
import time

import pytest
from conftest import TESTS
from peer import Peer, accepts, ended, finished_well, lasting_ports, live, payloads, require, until_ticks

try:
    import zmq
except ImportError:
    zmq = None

FROZEN = os.path.join(TESTS, 'hosts')
HOSTS = sorted(name for name in os.listdir(FROZEN) if os.path.isdir(os.path.join(FROZEN, name)) and name != '__pycache__')
FEW = ['-m', 'load', '-m', 'memory']
PATTERNS = [('push', 'PULL'), ('pub', 'SUB')]
LOGIN = 'username=alice,password=secret'


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


class Reader:
    """A socket of libzmq in a thread: .messages are what it got, a list of frames each; .events what its monitor saw.

    endpoint: bound at a free port unless it connects. Used in a with statement.
    """

    def __init__(self, kind, connect=None, topics=(b'',), **options):
        require(zmq, 'libzmq', 'no pyzmq (PyPI: pyzmq)')
        self.context, self.messages, self.events, self.over = zmq.Context(), [], [], False
        self.authenticator = None
        users = options.pop('users', None)
        self.rest = options.pop('rest', 0.0)
        if users is not None:
            from zmq.auth.thread import ThreadAuthenticator
            self.authenticator = ThreadAuthenticator(self.context)
            self.authenticator.start()
            self.authenticator.configure_plain(domain='*', passwords=users)
            options['plain_server'] = True
        self.socket = self.context.socket(getattr(zmq, kind))
        self.socket.linger = 0
        for name, value in options.items():
            setattr(self.socket, name, value)
        for topic in topics if kind in ('SUB', 'XSUB') else ():
            if kind == 'SUB':
                self.socket.subscribe(topic)
        self.monitor = self.socket.get_monitor_socket()
        if connect:
            self.socket.connect(connect)
        else:
            self.port = self.socket.bind_to_random_port('tcp://127.0.0.1')
            self.endpoint = 'tcp://127.0.0.1:%d' % self.port
        if kind == 'XSUB':
            for topic in topics:
                self.socket.send(b'\1' + topic)
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        from zmq.utils.monitor import recv_monitor_message
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self.monitor, zmq.POLLIN)
        while not self.over:
            ready = dict(poller.poll(20))
            if self.monitor in ready:
                self.events.append(recv_monitor_message(self.monitor)['event'])
            if self.socket in ready:
                self.messages.append(self.socket.recv_multipart())
                time.sleep(self.rest)

    def seen(self, event):
        return self.events.count(getattr(zmq, 'EVENT_' + event))

    def lines(self):
        """The last frame of each message."""
        return [parts[-1].decode() for parts in self.messages]

    def holds(self, lines, seconds=20):
        """Fails unless it soon has exactly these messages, in that order, and gets no more."""
        until(lambda: len(self.messages) >= len(lines), seconds)
        time.sleep(0.05)
        found = self.lines()
        assert found == lines, '%d of %d, first %r' % (len(found), len(lines), found[:1])

    def close(self):
        self.over = True
        self.thread.join()
        self.socket.disable_monitor()
        if self.authenticator:
            self.authenticator.stop()
        self.socket.close()
        self.context.destroy(0)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def lines_of(done):
    """What the stdout emitter printed, line by line."""
    finished_well(done)
    return done.out.split('\n')[:-1]


def stamps(lines):
    return [json.loads(line)['timestamp'] for line in lines]


# -- whole hosts ---------------------------------------------------------------------------------

@pytest.mark.parametrize('host', HOSTS)
def test_every_tick_of_a_host_arrives_as_it_is_at_sockets_of_all_kinds(run, host):
    free = ['tcp://127.0.0.1:%d' % port for port in lasting_ports(2)]
    with Reader('PULL') as one, Reader('SUB') as two, Reader('PULL', free[0]) as three, Reader('SUB', free[1]) as four:
        done = run('--replay', os.path.join(FROZEN, host), '-e', 'stdout', '-e', 'zeromq,endpoint=' + one.endpoint,
                   '-e', 'zeromq,pattern=pub,endpoint=' + two.endpoint, '-e', 'zeromq,bind,endpoint=' + free[0],
                   '-e', 'zeromq,bind,pattern=pub,endpoint=' + free[1])
        assert done.code == 0 and 'warning: zeromq' not in done.err
        for reader, topic in ((one, []), (two, [b'statbadger']), (three, []), (four, [b'statbadger'])):
            reader.holds(done.out.split('\n')[:-1])
            assert all(parts[:-1] == topic for parts in reader.messages)


@pytest.mark.parametrize('bind', [False, True])
@pytest.mark.parametrize('pattern, kind', PATTERNS + [('pub', 'XSUB')])
def test_a_single_tick_arrives(run, pattern, kind, bind):
    endpoint = 'tcp://127.0.0.1:%d' % lasting_ports(1)[0] if bind else None
    with Reader(kind, endpoint) as reader:
        lines = lines_of(run(*FEW + ['-n', 1, '-e', 'stdout', '-e', 'zeromq,pattern=%s,bind=%s,endpoint=%s' % (
            pattern, str(bind).lower(), endpoint or reader.endpoint)]))
        assert len(lines) == 1
        reader.holds(lines)


@pytest.mark.parametrize('format, more', [('flat', 'tags.env=prod'), ('graphite', 'prefix=a.{hostname}'),
                                          ('graphite', 'tagged'), ('influx', 'tags.env=prod,blacklist=mem.*')])
def test_formats_arrive_as_they_do_elsewhere(run, format, more):
    """Another way to the same bytes: those that Kafka would be sent are in tests/golden."""
    golden = os.path.join(TESTS, 'golden', 'linux-6.18.kafka-' + format)
    common = ['-f', os.path.join(TESTS, 'golden', 'identity.conf'), '--replay', os.path.join(FROZEN, 'linux-6.18')]
    with Reader('PULL') as reader:
        if os.path.exists(golden) and format == 'flat':
            more += ',blacklist=mem.*,cpu.*,disk.*_time.*,net.tx_*'
        ticks = finished_well(run(*common + ['-e', 'stdout', '-e', 'zeromq,endpoint=%s,format=%s,%s' % (
            reader.endpoint, format, more)]))
        if os.path.exists(golden):
            with open(golden) as file:
                wanted = file.read()
            until(lambda: len(reader.messages) >= (wanted.count('\n') if format == 'flat' else len(ticks)))
            assert '\n'.join(reader.lines()) + '\n' == wanted
        else:
            until(lambda: len(reader.messages) >= len(ticks))
            values = [[line.split(' ') for line in text.splitlines()] for text in reader.lines()]
            assert [len(lines) for lines in values] == [len(tick['points']) for tick in ticks]
            assert [float(line[1]) for line in values[0]] == [
                entry['value'] for point in ticks[0]['points'] for entry in point.values()]


def test_a_topic_is_filled_in_and_subscribed_to_by_prefix(run, tmp_path):
    conf = tmp_path / 'c.conf'
    conf.write_text(json.dumps({'hostname': u'n1.ex\u00e4mple "x"', 'cluster': 'web'}))
    endpoint = 'tcp://127.0.0.1:%d' % lasting_ports(1)[0]
    with Reader('SUB', endpoint, [b'stats.web']) as one, Reader('SUB', endpoint, [b'stats.db', b'x']) as two, \
            Reader('SUB', endpoint, [b'x', u'stats.web.n1.ex\u00e4'.encode()]) as three:
        lines = lines_of(run('-f', conf, *FEW + ['-n', 3, '-i', 0.5, '-e', 'stdout', '-e',
                                                 'zeromq,bind,pattern=pub,topic=stats.{cluster}.{hostname},endpoint=' + endpoint]))
        one.holds(lines)
        three.holds(lines)
        assert one.messages[0][0] == u'stats.web.n1.ex\u00e4mple "x"'.encode() and two.messages == []


# -- several of them -----------------------------------------------------------------------------

def test_three_that_pull_share_the_ticks(run):
    endpoint = 'tcp://127.0.0.1:%d' % lasting_ports(1)[0]
    with Reader('PULL', endpoint) as one, Reader('PULL', endpoint) as two, Reader('PULL', endpoint) as three:
        lines = lines_of(run(*FEW + ['-n', 9, '-i', 0.25, '-e', 'stdout', '-e', 'zeromq,bind,endpoint=' + endpoint]))
        assert until(lambda: len(one.messages) + len(two.messages) + len(three.messages) >= 9)
        assert sorted(one.lines() + two.lines() + three.lines()) == sorted(lines)
        assert sorted(len(reader.messages) for reader in (one, two, three)) == [3, 3, 3]


def test_one_that_pulls_and_goes_away_in_the_middle_costs_no_tick(agent, tmp_path):
    endpoint = 'tcp://127.0.0.1:%d' % lasting_ports(1)[0]
    with Reader('PULL', endpoint) as steady:
        got = []
        process = live(agent, tmp_path, *FEW + ['-n', 30, '-i', 0.1, '-e', 'stdout', '-e', 'zeromq,bind,endpoint=' + endpoint])
        for _ in range(3):
            with Reader('PULL', endpoint) as one:
                assert until(lambda: len(one.messages) > 1 or process.poll() is not None)
            got += one.lines()
        code, ticks, errors = ended(process, tmp_path)
        assert code == 0 and len(ticks) == 30
        wanted = set(tick['timestamp'] for tick in ticks)
        assert until(lambda: set(stamps(got + steady.lines())) == wanted)
        assert len(got) + len(steady.lines()) < 60, 'no more than the last ten seconds again'


def test_a_reader_that_is_slow_gets_everything_and_nothing_twice(run):
    with Reader('PULL', rest=0.01, rcvhwm=1) as slow:
        lines = lines_of(run('--replay', os.path.join(FROZEN, 'big'), '-e', 'stdout', '-e', 'zeromq,endpoint=' + slow.endpoint))
        slow.holds(lines)


# -- heartbeats, logins, wrong sockets -----------------------------------------------------------

@pytest.mark.parametrize('bind', [False, True])
@pytest.mark.parametrize('pattern, kind', PATTERNS)
def test_heartbeats_are_answered(agent, tmp_path, pattern, kind, bind):
    endpoint = 'tcp://127.0.0.1:%d' % lasting_ports(1)[0] if bind else None
    with Reader(kind, endpoint, heartbeat_ivl=100, heartbeat_timeout=400, heartbeat_ttl=1000) as reader:
        process = live(agent, tmp_path, *FEW + ['-n', 2, '-i', 2, '-e', 'stdout', '-e', 'zeromq,pattern=%s,bind=%s,endpoint=%s' % (
            pattern, str(bind).lower(), endpoint or reader.endpoint)])
        code, ticks, errors = ended(process, tmp_path)
        assert (code, errors) == (0, '')
        assert until(lambda: len(reader.messages) == 2)
        assert reader.seen('HANDSHAKE_SUCCEEDED') == 1 and until(lambda: reader.seen('DISCONNECTED') == 1)


@pytest.mark.parametrize('pattern, kind', PATTERNS)
def test_a_login_is_checked_by_a_bound_peer(run, pattern, kind):
    with Reader(kind, users={'alice': 'secret'}) as reader:
        where = 'zeromq,timeout=1,pattern=%s,endpoint=%s' % (pattern, reader.endpoint)
        for how, words in ((LOGIN.replace('secret', 'sesame'), 'the peer refuses the connection: ERROR "400"'),
                           ('username=bob', 'ERROR "400" (are username and password right?)'),
                           ('username=', 'closed by the peer before its greeting: is it a %s')):
            done = run(*FEW + ['-n', 1, '-i', 0.5, '-e', where + ',' + how])
            assert done.code == 1 and (words % kind if '%s' in words else words) in done.err and 'sesame' not in done.err
        assert reader.messages == []
        lines = lines_of(run(*FEW + ['-n', 1, '-i', 0.5, '-e', where + ',' + LOGIN, '-e', 'stdout']))
        reader.holds(lines)


@pytest.mark.parametrize('pattern, kind', PATTERNS)
def test_a_login_is_checked_when_peers_connect(run, pattern, kind):
    endpoint = 'tcp://127.0.0.1:%d' % lasting_ports(1)[0]
    with Reader(kind, endpoint, plain_username=b'alice', plain_password=b'secret') as right, \
            Reader(kind, endpoint, plain_username=b'alice', plain_password=b'sesame') as wrong, Reader(kind, endpoint) as none:
        done = run(*FEW + ['-n', 2, '-i', 1, '-e', 'stdout', '-e', 'zeromq,bind,pattern=%s,endpoint=%s,%s' % (pattern, endpoint, LOGIN)])
        assert done.code == 0 and 'turned 127.0.0.1 away' in done.err and 'sesame' not in done.err and 'secret' not in done.err
        right.holds(done.out.split('\n')[:-1])
        assert wrong.messages == none.messages == []
        # libzmq 4.3.5 knows an ERROR only as it writes it itself, which is not as the protocol has it.
        assert wrong.seen('HANDSHAKE_FAILED_PROTOCOL') and not wrong.seen('HANDSHAKE_SUCCEEDED')


@pytest.mark.parametrize('options, kind, words', [
    ('', 'REP', 'the peer is a "REP" socket, need PULL'), ('', 'SUB', 'the peer is a "SUB" socket, need PULL'),
    (',pattern=pub', 'PULL', 'the peer is a "PULL" socket, need SUB or XSUB'),
    (',' + LOGIN, 'PULL', 'closed by the peer before its greeting: is it a PULL socket that wants a login (PLAIN)?'),
    ('', 'CURVE', 'closed by the peer before its greeting: is it a PULL socket that wants no login?')])
def test_a_socket_that_is_the_wrong_one_is_named(run, options, kind, words):
    require(zmq, 'libzmq', 'no pyzmq (PyPI: pyzmq)')
    curve = {'curve_server': True, 'curve_secretkey': zmq.curve_keypair()[1]} if kind == 'CURVE' else {}
    with Reader('PULL' if curve else kind, **curve) as reader:
        done = run(*FEW + ['-n', 1, '-i', 0.5, '-e', 'zeromq,timeout=1,endpoint=%s%s' % (reader.endpoint, options)])
        assert done.code == 1 and words in done.err and reader.messages == []


@pytest.mark.parametrize('pattern, kind, other', [('push', 'PULL', 'SUB'), ('pub', 'SUB', 'PULL')])
def test_a_wrong_socket_that_connects_is_turned_away_and_the_right_one_gets_all(run, pattern, kind, other):
    endpoint = 'tcp://127.0.0.1:%d' % lasting_ports(1)[0]
    with Reader(other, endpoint) as wrong, Reader(kind, endpoint) as right:
        done = run(*FEW + ['-n', 2, '-i', 1, '-e', 'stdout', '-e', 'zeromq,bind,pattern=%s,endpoint=%s' % (pattern, endpoint)])
        assert done.code == 0 and 'turned 127.0.0.1 away: the peer is a "%s" socket' % other in done.err
        assert done.err.count('turned') == 1
        right.holds(done.out.split('\n')[:-1])
        assert wrong.messages == []


def test_ipv6(run):
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(('::1', 0))
    except OSError as error:
        pytest.skip('no IPv6 loopback: %s' % error)
    port = lasting_ports(1)[0]
    for bind in ('[::1]', '*'):
        with Reader('PULL', 'tcp://[::1]:%d' % port, ipv6=True) as reader:
            reader.holds(lines_of(run(*FEW + ['-n', 1, '-e', 'stdout', '-e', 'zeromq,bind,endpoint=tcp://%s:%d' % (bind, port)])))


# -- those that are not there, restarted, killed ---------------------------------------------------

class Process(Peer):
    """A bound socket in a process of its own."""

    def __init__(self, folder, kind, port):
        require(zmq, 'libzmq', 'no pyzmq (PyPI: pyzmq)')
        Peer.__init__(self, 'reader', [sys.executable, os.path.join(TESTS, 'peers', 'zeromq_reader.py'), kind, str(port)],
                      folder, lambda: accepts(port))

    def stamps(self):
        with open(self.log) as log:
            return [json.loads(json.loads(line)[-1])['timestamp'] for line in log.read().split('\n')[:-1]]


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize('pattern, kind', PATTERNS)
def test_a_peer_that_is_killed_and_comes_back_misses_nothing(agent, tmp_path, pattern, kind, number):
    port = lasting_ports(1)[0]
    folder = tmp_path / 'reader'
    folder.mkdir()
    with Process(folder, kind, port) as reader:
        process = live(agent, tmp_path, *FEW + ['-n', 30, '-i', 0.1, '-e', 'stdout', '-e', 'zeromq,pattern=%s,endpoint=tcp://127.0.0.1:%d' % (
            pattern, port)])
        until_ticks(tmp_path, 8)
        reader.stop(number)
        until_ticks(tmp_path, 14)
        reader.start()
        code, ticks, errors = ended(process, tmp_path)
        assert code == 0 and 'closed by the peer' in errors or 'refused' in errors or errors == '', errors
        wanted = [tick['timestamp'] for tick in ticks]
        assert len(wanted) == 30 and until(lambda: sorted(set(reader.stamps())) == wanted), set(wanted) - set(reader.stamps())


def test_a_peer_that_comes_late_gets_all_from_the_beginning(agent, tmp_path):
    port = lasting_ports(1)[0]
    folder = tmp_path / 'reader'
    folder.mkdir()
    process = live(agent, tmp_path, *FEW + ['-n', 12, '-i', 0.1, '-e', 'stdout', '-e', 'zeromq,endpoint=tcp://127.0.0.1:%d' % port])
    until_ticks(tmp_path, 6)
    with Process(folder, 'PULL', port) as reader:
        code, ticks, errors = ended(process, tmp_path)
        assert code == 0 and 'Connection refused; the ticks wait' in errors and 'delivers again' in errors
        assert until(lambda: reader.stamps() == [tick['timestamp'] for tick in ticks])


def test_push_waits_for_the_first_that_connects_and_says_so(agent, tmp_path):
    endpoint = 'tcp://127.0.0.1:%d' % lasting_ports(1)[0]
    process = live(agent, tmp_path, *FEW + ['-n', 12, '-i', 0.1, '-e', 'stdout', '-e', 'zeromq,bind,endpoint=' + endpoint])
    until_ticks(tmp_path, 6)
    with Reader('PULL', endpoint) as reader:
        code, ticks, errors = ended(process, tmp_path)
        assert (code, errors) == (0, '')
        reader.holds((tmp_path / 'out').read_text().split('\n')[:-1])


def test_without_anybody_push_says_what_it_lacks_and_pub_does_not_mind(run):
    endpoint = 'tcp://127.0.0.1:%d' % lasting_ports(1)[0]
    done = run(*FEW + ['-n', 1, '-i', 0.5, '-e', 'zeromq,bind,timeout=1,endpoint=' + endpoint])
    assert done.code == 1
    assert done.err == 'statbadger: zeromq: 1 of 1 ticks were not delivered: no PULL is connected\n'
    assert finished_well(run(*FEW + ['-n', 1, '-i', 0.5, '-e', 'stdout', '-e', 'zeromq,bind,pattern=pub,endpoint=' + endpoint]))


def test_a_reload_changes_the_endpoint_and_what_waits_goes_there(agent, tmp_path):
    first, second = ['tcp://127.0.0.1:%d' % port for port in lasting_ports(2)]
    conf = tmp_path / 'c.conf'

    def write(endpoint, pattern='push'):
        conf.write_text(json.dumps({'interval': 0.1, 'modules': {'load': {}, 'memory': {}}, 'emitters': {
            'stdout': {}, 'zeromq': {'endpoint': endpoint, 'bind': True, 'pattern': pattern}}}))
    write(first)
    process = live(agent, tmp_path, '-f', str(conf), '-n', 25)
    until_ticks(tmp_path, 6)
    write(second)
    process.send_signal(signal.SIGHUP)
    with Reader('PULL', second) as reader:
        code, ticks, errors = ended(process, tmp_path)
        assert code == 0
        reader.holds((tmp_path / 'out').read_text().split('\n')[:-1])
    assert payloads((tmp_path / 'out').read_text()) == ticks
