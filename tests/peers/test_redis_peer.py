"""A real Redis is written to by the program, and read back by redis-py, the client library of its makers.

What is expected comes from the `stdout` emitter of the same run: the same lines, in the same order, each once.
"""
import hashlib
import json
import os
import re
import signal
import threading
import time

import pytest
import standins
from conftest import TESTS
from peer import (Peer, accepts, command, ended, finished_well, firsts, flat_points, large_recording, lasting_ports,
                  live, require, until_ticks)

try:
    import redis
except ImportError:
    redis = None

HOSTS = ['linux-2.6.9', 'linux-6.18', 'odd-names', 'hotplug', 'wraps', 'big']
IDENTITY = {'datacenter': 'EC2', 'region': 'us-west-1', 'zone': '', 'cluster': 'te.st', 'hostname': 'n1.example.net',
            'ipv4': '10.10.10.2', 'ipv6': '2001:db8::1'}
ADMIN, WRITER = 'admin word', 'pa55 w/rd&"+sesame'


class RedisServer(Peer):
    """A redis-server with users admin and writer, on a port, one for TLS, and a unix socket. What it is sent is on
    disk before it answers. more: lines of its configuration; default: the rights of its user without a name."""

    def __init__(self, folder, more=(), made=None, client=False, default='off'):
        require(redis, 'redis', 'no redis-py (PyPI: redis)')
        program = require(command('redis-server'), 'redis', 'not installed (Debian: redis-server)')
        self.port, self.tls = lasting_ports(2)
        self.socket = os.path.join(str(folder), 'redis.sock')
        lines = ['bind 127.0.0.1', 'port %d' % self.port, 'save ""', 'appendonly yes', 'appendfsync always',
                 'dir %s' % folder, 'unixsocket %s' % self.socket, 'unixsocketperm 700', 'daemonize no',
                 'enable-debug-command local', 'stream-node-max-entries 10',
                 'user default ' + default, 'user admin on #%s ~* &* +@all' % digest(ADMIN),
                 'user writer on #%s ~* &* +auth +select +rpush +ltrim +xadd +publish' % digest(WRITER)]
        if made:
            lines += ['tls-port %d' % self.tls, 'tls-cert-file %s' % made.good.cert, 'tls-key-file %s' % made.good.key,
                      'tls-ca-cert-file %s' % made.ca, 'tls-auth-clients %s' % ('yes' if client else 'no')]
        path = os.path.join(str(folder), 'redis.conf')
        with open(path, 'w') as file:
            file.write('\n'.join(lines + list(more)) + '\n')
        Peer.__init__(self, 'redis-server', [program, path], folder, lambda: accepts(self.port))

    def client(self, **more):
        return redis.Redis(**dict(dict(host='127.0.0.1', port=self.port, username='admin', password=ADMIN,
                                       socket_timeout=10), **more))

    def lines(self, key, database=0):
        """The messages of a list or stream, as text."""
        with self.client(db=database) as client:
            if client.type(key) == b'stream':
                return [fields[b'payload'].decode() for number, fields in client.xrange(key)]
            return [message.decode() for message in client.lrange(key, 0, -1)]

    def __exit__(self, *error):
        self.stop(signal.SIGKILL)


def digest(word):
    """A password, as the configuration keeps it."""
    return hashlib.sha256(word.encode()).hexdigest()


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return standins.certificates(tmp_path_factory.mktemp('certificates'))


@pytest.fixture(scope='module')
def server(tmp_path_factory, made):
    """One for all tests that leave it as it was; each has keys of its own."""
    with RedisServer(tmp_path_factory.mktemp('redis'), made=made) as peer:
        yield peer


@pytest.fixture
def admin(server):
    with server.client() as client:
        yield client


@pytest.fixture
def config(tmp_path):
    """config(server, key, **options of redis) -> the arguments with which one tick is small, printed, and sent."""
    def make(server, key, who=(), **options):
        values = dict({'port': server.port, 'username': 'writer', 'password': WRITER, 'key': key}, **options)
        path = tmp_path / ('%d.conf' % len(list(tmp_path.iterdir())))
        path.write_text(json.dumps(dict(dict(IDENTITY, **dict(who)), modules={'load': {}, 'network': {}},
                                        emitters={'stdout': {}, 'redis': values})))
        return ['-f', path]
    return make


def replayed(run, host, key, server, **options):
    """The lines that a frozen host gives, all of them delivered."""
    values = dict({'port': server.port, 'username': 'writer', 'password': WRITER, 'key': key}, **options)
    text = json.dumps(dict(IDENTITY, emitters={'stdout': {}, 'redis': values}))
    done = run('-f', '-', '--replay', os.path.join(TESTS, 'hosts', host), stdin=text.encode())
    finished_well(done)
    return done.out.splitlines()


# -- what arrives --------------------------------------------------------------------------------

@pytest.mark.parametrize('mode', ['list', 'stream'])
@pytest.mark.parametrize('host', HOSTS)
def test_the_messages_are_the_payloads_of_a_whole_host_in_order_and_nothing_else(run, server, host, mode):
    key = 'host-%s-%s' % (host, mode)
    lines = replayed(run, host, key, server, mode=mode)
    assert len(lines) > 1 and server.lines(key) == lines


def test_an_entry_of_a_stream_has_the_fields_host_and_payload(run, server, admin):
    lines = replayed(run, 'linux-6.18', 'fields', server, mode='stream')
    assert [fields for number, fields in admin.xrange('fields')] == [
        {b'host': b'n1.example.net', b'payload': line.encode()} for line in lines]


class Subscriber:
    """Hears what is published on a channel, in a thread. .heard has it."""

    def __init__(self, server, channel):
        self.client, self.heard = server.client(), []
        self.pubsub = self.client.pubsub()
        self.pubsub.subscribe(channel)
        assert self.pubsub.get_message(timeout=10)['type'] == 'subscribe'

    def hear(self, n):
        """The next n messages."""
        end = time.monotonic() + 20
        while len(self.heard) < n and time.monotonic() < end:
            message = self.pubsub.get_message(timeout=1)
            self.heard += [message['data'].decode()] if message else []
        return self.heard

    def close(self):
        self.pubsub.close()
        self.client.close()


@pytest.mark.parametrize('host', HOSTS)
def test_who_is_subscribed_hears_every_payload(run, server, host):
    subscriber = Subscriber(server, 'channel-' + host)
    try:
        lines = replayed(run, host, 'channel-' + host, server, mode='publish')
        assert subscriber.hear(len(lines)) == lines
        assert subscriber.pubsub.get_message(timeout=0.05) is None
    finally:
        subscriber.close()


def test_what_nobody_hears_is_delivered_all_the_same_and_it_is_said_once(run, server, config):
    done = run('-n', 3, '-i', 0.1, *config(server, 'deaf', mode='publish'))
    assert done.code == 0 and done.err.count('\n') == 1 and 'nobody is subscribed to that channel' in done.err
    assert server.lines('deaf') == []


@pytest.mark.parametrize('mode', ['list', 'stream'])
@pytest.mark.parametrize('host', ['linux-6.18', 'odd-names'])
def test_flat_messages_are_an_object_per_point(run, server, host, mode):
    key = 'flat-%s-%s' % (host, mode)
    lines = replayed(run, host, key, server, mode=mode, format='flat', tags={'env': 'prod'})
    wanted = flat_points(lines, {'env': 'prod'})
    assert [json.loads(line) for line in server.lines(key)] == wanted and len(wanted) > 100


@pytest.mark.parametrize('format', ['graphite', 'influx'])
def test_lines_of_a_tick_are_one_message(run, server, format):
    lines = replayed(run, 'linux-6.18', format, server, format=format, prefix='x.{cluster}', blacklist=['mem.*'])
    points = [sum(not flat.startswith('mem.') for point in json.loads(line)['points'] for flat in point)
              for line in lines]
    stored = server.lines(format)
    if format == 'graphite':
        assert [message.count('\n') for message in stored] == points
        assert all(line.startswith('x.te_st.') for message in stored for line in message.splitlines())
    else:
        assert [sum(len(line.split(' ')[-2].split(',')) for line in message.splitlines())
                for message in stored] == points


# -- names that mean harm ------------------------------------------------------------------------

HOSTILE = ['x\r\nFLUSHALL\r\n', '*1\r\n$8\r\nFLUSHALL\r\n', 'a b', '"quoted\'', 'back\\slash', 'per%d%s', '{x}',
           'gr\u00fc\u00df \u2028 \ufffd', '\x01\x7f', 'x' * 5000, '-', '']


@pytest.mark.parametrize('name', HOSTILE, ids=lambda name: ascii(name[:20]))
def test_a_hostile_name_of_a_host_is_one_key_and_one_field(run, server, admin, config, name):
    admin.set('witness', 'here')
    key = 'hostile:%s:n1' % name
    done = run('-n', 2, '-i', 0.1, *config(server, 'hostile:{cluster}:{hostname}', {'cluster': name, 'hostname': 'n1'},
                                           mode='stream'))
    finished_well(done, 2)
    assert server.lines(key) == done.out.splitlines()
    assert admin.get('witness') == b'here' and admin.keys('hostile:*') == [key.encode()]
    admin.delete(key)


# -- options -------------------------------------------------------------------------------------

def test_a_list_keeps_the_newest_and_no_more_than_maxlen(run, server):
    lines = replayed(run, 'hotplug', 'short', server, maxlen=3)
    assert len(lines) > 3 and server.lines('short') == lines[-3:]


def test_a_stream_keeps_about_as_many_as_maxlen(run, server, config):
    done = run('-n', 60, '-i', 0.02, *config(server, 'short-stream', mode='stream', maxlen=5))
    lines = done.out.splitlines()
    assert done.code == 0
    stored = server.lines('short-stream')
    assert 5 <= len(stored) <= 15 and stored == lines[-len(stored):]


@pytest.mark.parametrize('mode', ['list', 'stream'])
def test_with_maxlen_0_nothing_is_cut(run, server, config, mode):
    done = run('-n', 60, '-i', 0.02, *config(server, 'long-' + mode, mode=mode, maxlen=0))
    assert done.code == 0 and server.lines('long-' + mode) == done.out.splitlines()


def test_the_database_is_the_one_chosen(run, server, admin):
    lines = replayed(run, 'linux-6.18', 'chosen', server, database=9)
    assert server.lines('chosen', 9) == lines and not admin.exists('chosen')


def test_the_unix_socket_will_do(run, server):
    lines = replayed(run, 'linux-6.18', 'by-socket', server, socket=server.socket, port=1)
    assert server.lines('by-socket') == lines


def test_a_backlog_goes_in_few_exchanges_and_all_of_it_arrives(run, server, config):
    done = run('-n', 100, '-i', 0.02, *config(server, 'backlog', flush=100))
    assert done.code == 0 and server.lines('backlog') == done.out.splitlines()


# -- who may do what -----------------------------------------------------------------------------

@pytest.mark.parametrize('options, words', [
    ({'password': 'not it'}, 'AUTH: WRONGPASS'), ({'username': 'nobody'}, 'AUTH: WRONGPASS'),
    ({'username': ''}, 'AUTH: WRONGPASS'), ({'username': '', 'password': ''}, 'NOAUTH Authentication required'),
    ({'database': 99}, 'SELECT: ERR DB index is out of range')], ids=repr)
def test_a_login_that_is_wrong_is_said_once_and_nothing_is_stored(run, server, admin, config, options, words):
    done = run('-n', 2, '-i', 0.1, *config(server, 'locked', **options))
    assert done.code == 1 and done.err.count('warning') == 1 and words in done.err
    assert not admin.exists('locked') and 'sesame' not in done.err and 'not it' not in done.err


def test_a_large_tick_before_a_login_is_not_taken_for_a_tick_that_is_too_large(run, server, admin):
    values = {'port': server.port, 'key': 'locked'}
    done = run('-f', '-', '--replay', os.path.join(TESTS, 'hosts', 'big'),
               stdin=json.dumps({'emitters': {'redis': values}}).encode())
    assert done.code == 1 and 'unauthenticated bulk length' in done.err and 'refused' not in done.err
    assert not admin.exists('locked')


@pytest.fixture
def limited(admin):
    """limited(*rules) -> options of a user with these rights."""
    def make(*rules):
        admin.execute_command('ACL', 'SETUSER', 'limited', 'reset', 'on', '>' + WRITER, *rules)
        return {'username': 'limited', 'password': WRITER}
    yield make
    admin.acl_deluser('limited')


@pytest.mark.parametrize('rules, options, words', [
    (('~other', '+@all'), {}, 'NOPERM'), (('~*', '+ltrim'), {}, "'rpush' command"),
    (('~*', '+xadd'), {'database': 1, 'mode': 'stream'}, "'select' command"),
    (('~*', '&other', '+@all'), {'mode': 'publish'}, 'NOPERM')], ids=repr)
def test_a_right_that_is_missing_is_said_and_the_ticks_wait(run, server, admin, config, limited, rules, options, words):
    done = run('-n', 2, '-i', 0.1, *config(server, 'forbidden', **dict(limited(*rules), **options)))
    assert done.code == 1 and done.err.count('warning') == 1 and words in done.err
    assert not admin.exists('forbidden')


def test_without_the_right_to_cut_the_list_it_grows_and_that_is_said(run, server, config, limited):
    done = run('-n', 5, '-i', 0.1, *config(server, 'growing', maxlen=2, **limited('~*', '+rpush')))
    assert done.code == 0 and done.err.count('warning') == 1 and 'grows beyond "maxlen"' in done.err
    assert server.lines('growing') == done.out.splitlines() and len(server.lines('growing')) == 5


def test_a_user_needs_no_more_rights_than_these(run, server, config, limited):
    for mode, rules in (('list', ['~list', '+rpush', '+ltrim']), ('stream', ['~stream', '+xadd']),
                        ('publish', ['&publish', '+publish'])):
        done = run('-n', 2, '-i', 0.1, *config(server, mode, mode=mode, **limited(*rules)))
        assert done.code == 0, done.err


def test_the_password_of_the_default_user_alone_is_enough(run, tmp_path, config):
    with RedisServer(tmp_path, default='on #%s ~* &* +@all' % digest(WRITER)) as server:
        lines = replayed(run, 'linux-6.18', 'default', server, username='')
        assert server.lines('default') == lines


def test_a_password_that_nobody_asks_for_is_said(run, tmp_path, config):
    with RedisServer(tmp_path, default='on nopass ~* &* +@all') as server:
        done = run('-n', 1, '-i', 0.1, *config(server, 'open', username=''))
        assert done.code == 1 and 'without any password configured' in done.err
        assert finished_well(run('-n', 1, '-i', 0.1, *config(server, 'open', username='', password='')), 1)


# -- TLS -----------------------------------------------------------------------------------------

def test_over_tls(run, server, made):
    lines = replayed(run, 'big', 'tls', server, port=server.tls, tls=True, tls_ca=made.ca)
    assert server.lines('tls') == lines


def test_tls_that_does_not_fit_is_said_and_nothing_is_stored(run, server, admin, made):
    tls = {'type': 'redis', 'port': server.tls, 'tls': True, 'tls_ca': made.ca, 'timeout': 1, 'key': 'untrusted'}
    emitters = {'other-ca': dict(tls, tls_ca=made.other_ca), 'no-tls': dict(tls, tls=False, tls_ca=''),
                'no-port': dict(tls, port=server.port)}
    done = run('-f', '-', '-n', 1, '-i', 0.1, stdin=json.dumps(
        {'modules': {'load': {}}, 'emitters': emitters}).encode())
    assert done.code == 1 and not admin.exists('untrusted')
    for name, words in (('other-ca', 'the certificate of the peer is refused'), ('no-tls', 'a port for TLS?'),
                        ('no-port', 'no end within the time')):
        assert re.search('%s: .*%s' % (name, re.escape(words)), done.err), done.err


def test_mutual_tls(run, tmp_path, made, config):
    with RedisServer(tmp_path, made=made, client=True) as server:
        options = dict(port=server.tls, tls=True, tls_ca=made.ca)
        lines = replayed(run, 'linux-6.18', 'mutual', server, tls_cert=made.client.cert, tls_key=made.client.key, **options)
        assert server.lines('mutual') == lines
        options.update(type='redis', key='stranger', timeout=1)
        stranger = dict(options, tls_cert=made.stranger.cert, tls_key=made.stranger.key)
        done = run('-f', '-', '-n', 1, '-i', 0.1, stdin=json.dumps(
            {'modules': {'load': {}}, 'emitters': {'nobody': options, 'stranger': stranger}}).encode())
        assert done.code == 1 and server.lines('stranger') == []
        assert all(re.search('%s: .*TLS: .*alert.*certificate|%s: .*alert.*unknown ca' % (name, name), done.err)
                   for name in ('nobody', 'stranger')), done.err


# -- a server that is not willing ----------------------------------------------------------------

class Trouble:
    """A running agent that is told no, and then yes."""

    def __init__(self, agent, folder, server, arguments, n):
        self.folder, self.server = folder, server
        self.process = live(agent, folder, '-n', n, '-i', 0.1, *arguments)

    def errors(self):
        return (self.folder / 'err').read_text()

    def says(self, words):
        self.server.until(lambda: words in self.errors(), 30, 'make it say %s: %s' % (words, self.errors()))

    def ends(self):
        """(exit code, lines, errors)"""
        code, ticks, errors = ended(self.process, self.folder)
        return code, (self.folder / 'out').read_text().splitlines(), errors


def in_script(server):
    """A script that runs until it is killed."""
    def loop():
        with server.client(socket_timeout=60) as client:
            try:
                client.eval('while true do end', 0)
            except redis.exceptions.RedisError:
                pass
    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    return thread


UNWILLING = {
    'OOM': ([('maxmemory', '1')], [('maxmemory', '0')]),
    'NOREPLICAS': ([('min-replicas-to-write', '1')], [('min-replicas-to-write', '0')]),
}


@pytest.mark.parametrize('mode', ['list', 'stream'])
@pytest.mark.parametrize('word', sorted(UNWILLING))
def test_a_server_that_is_not_willing_gets_all_once_when_it_is(agent, server, admin, tmp_path, config, word, mode):
    key = '%s-%s' % (word, mode)
    trouble = Trouble(agent, tmp_path, server, config(server, key, mode=mode), 15)
    server.until(lambda: server.lines(key), 20, 'store anything')
    try:
        for name, value in UNWILLING[word][0]:
            admin.config_set(name, value)
        trouble.says(word + ' ')
    finally:
        for name, value in UNWILLING[word][1]:
            admin.config_set(name, value)
    code, lines, errors = trouble.ends()
    assert code == 0 and 'delivers again' in errors and errors.count('warning') == 1
    assert len(lines) == 15 and server.lines(key) == lines


def test_a_server_that_became_a_replica_gets_all_when_it_is_a_master_again(agent, server, admin, tmp_path, config):
    trouble = Trouble(agent, tmp_path, server, config(server, 'replica'), 15)
    server.until(lambda: server.lines('replica'), 20, 'store anything')
    try:
        admin.execute_command('REPLICAOF', '127.0.0.1', '1')
        trouble.says('READONLY ')
    finally:
        admin.execute_command('REPLICAOF', 'NO', 'ONE')
    code, lines, errors = trouble.ends()
    assert code == 0 and server.lines('replica') == lines and errors.count('warning') == 1


def test_a_server_that_runs_a_script_for_long_gets_all_when_it_has_ended(agent, server, admin, tmp_path, config):
    trouble = Trouble(agent, tmp_path, server, config(server, 'busy'), 15)
    server.until(lambda: server.lines('busy'), 20, 'store anything')
    admin.config_set('busy-reply-threshold', '50')
    script = in_script(server)
    try:
        trouble.says('BUSY ')
    finally:
        admin.script_kill()
        script.join(20)
    code, lines, errors = trouble.ends()
    assert code == 0 and server.lines('busy') == lines


def test_a_server_that_is_full_of_clients_gets_all_when_there_is_room(run, agent, server, admin, tmp_path, config):
    admin.config_set('maxclients', '1')
    try:
        trouble = Trouble(agent, tmp_path, server, config(server, 'crowd'), 15)
        trouble.says('max number of clients reached')
    finally:
        admin.config_set('maxclients', '1000')
    code, lines, errors = trouble.ends()
    assert code == 0 and server.lines('crowd') == lines


@pytest.mark.parametrize('mode', ['list', 'stream'])
def test_a_key_that_is_in_use_is_said_and_the_ticks_wait(run, server, admin, config, mode):
    admin.set('in-use-' + mode, 'something else')
    done = run('-n', 2, '-i', 0.1, *config(server, 'in-use-' + mode, mode=mode))
    assert done.code == 1 and done.err.count('warning') == 1
    assert '"in-use-%s": WRONGTYPE ' % mode in done.err and admin.get('in-use-' + mode) == b'something else'


def test_a_node_of_a_cluster_that_has_other_keys_is_said(run, tmp_path, config):
    nodes = []
    for name in 'ab':
        (tmp_path / name).mkdir()
        nodes.append(RedisServer(tmp_path / name, ['cluster-enabled yes', 'cluster-node-timeout 1000']))
    with nodes[0] as one, nodes[1] as other, one.client() as first, other.client() as second:
        slot = first.execute_command('CLUSTER KEYSLOT', 'stats')
        second.execute_command('CLUSTER', 'ADDSLOTSRANGE', 0, 16383)
        first.execute_command('CLUSTER', 'MEET', '127.0.0.1', other.port)
        one.until(lambda: first.execute_command('CLUSTER INFO')['cluster_slots_ok'] == '16384', 20, 'know its cluster')
        one.until(lambda: first.execute_command('CLUSTER INFO')['cluster_state'] == 'ok', 20, 'know its cluster')
        done = run('-n', 1, '-i', 0.1, *config(one, 'stats'))
        assert done.code == 1 and '"stats": MOVED %d 127.0.0.1:%d (' % (slot, other.port) in done.err
        done = run('-n', 2, '-i', 0.1, *config(other, 'stats'))
        assert done.code == 0 and other.lines('stats') == done.out.splitlines()
        done = run('-n', 1, '-i', 0.1, *config(other, 'stats', database=1))
        assert done.code == 1 and 'SELECT is not allowed in cluster mode' in done.err


def test_a_server_that_still_loads_its_data_gets_all_when_it_has(agent, tmp_path, config):
    folder = tmp_path / 'redis'
    folder.mkdir()
    server = RedisServer(folder, ['key-load-delay 500'])        # us; it looks up after 1,024 commands
    with server:
        with server.client() as client, client.pipeline(False) as together:
            for n in range(8192):
                together.set('k%d' % n, 'v')
            together.execute()
        server.stop(signal.SIGKILL)
        server.start()
        trouble = Trouble(agent, tmp_path, server, config(server, 'loading'), 15)
        trouble.says('LOADING ')
        with server.client() as client:
            client.config_set('key-load-delay', 0)
        code, lines, errors = trouble.ends()
        assert code == 0 and server.lines('loading') == lines


@pytest.mark.parametrize('mode', ['list', 'stream', 'publish'])
def test_a_tick_that_is_too_large_is_quarantined_and_all_others_are_stored(run, server, admin, tmp_path, mode):
    large_recording(tmp_path / 'recording', 3)
    key = 'too-large-' + mode
    subscriber = Subscriber(server, key) if mode == 'publish' else None
    values = {'port': server.port, 'username': 'writer', 'password': WRITER, 'key': key, 'mode': mode}
    text = json.dumps({'modules': {'network': {'interfaces': ['*']}}, 'emitters': {'stdout': {}, 'redis': values}})
    admin.config_set('proto-max-bulk-len', 1 << 20)
    try:
        done = run('-f', '-', '--replay', tmp_path / 'recording', stdin=text.encode())
    finally:
        admin.config_set('proto-max-bulk-len', 1 << 29)
    lines = done.out.splitlines()
    assert len(lines) == 6 and done.code == 1 and 'invalid bulk length' in done.err
    assert '1 of 6 ticks were not delivered' in done.err
    assert len(lines[2]) > 1 << 20 and all(len(line) < 1 << 20 for line in lines[:2] + lines[3:])
    stored = subscriber.hear(5) if subscriber else server.lines(key)
    assert firsts(stored) == lines[:2] + lines[3:]
    if subscriber:
        subscriber.close()


# -- a server that comes and goes ----------------------------------------------------------------

@pytest.mark.parametrize('mode', ['list', 'stream'])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL], ids=['term', 'kill'])
def test_a_server_that_is_restarted_misses_nothing(agent, tmp_path, config, number, mode):
    folder = tmp_path / 'redis'
    folder.mkdir()
    with RedisServer(folder) as server:
        process = live(agent, tmp_path, '-n', 25, '-i', 0.2, *config(server, 'restarted', mode=mode))
        for n in (4, 12):
            until_ticks(tmp_path, n)
            server.stop(number)
            until_ticks(tmp_path, n + 3)
            server.start()
        code, ticks, errors = ended(process, tmp_path)
        lines = (tmp_path / 'out').read_text().splitlines()
        assert (code, len(ticks)) == (0, 25), errors
        server.until(lambda: len(server.lines('restarted')) >= 25, 10, 'have all')
        assert firsts(server.lines('restarted')) == lines
        assert len(server.lines('restarted')) <= 27


def test_a_server_that_starts_late_misses_nothing(agent, tmp_path, config):
    folder = tmp_path / 'redis'
    folder.mkdir()
    server = RedisServer(folder)
    process = live(agent, tmp_path, '-n', 10, '-i', 0.2, *config(server, 'late'))
    until_ticks(tmp_path, 4)
    with server:
        code, ticks, errors = ended(process, tmp_path)
        assert (code, len(ticks)) == (0, 10), errors
        assert server.lines('late') == (tmp_path / 'out').read_text().splitlines()


def test_a_connection_that_is_closed_while_nothing_is_under_way_is_no_failure(agent, server, admin, tmp_path, config):
    process = live(agent, tmp_path, '-n', 3, '-i', 1, *config(server, 'idle'))
    for n in (1, 2):
        server.until(lambda: len(server.lines('idle')) == n, 20, 'store tick %d' % n)
        admin.execute_command('CLIENT', 'KILL', 'USER', 'writer')
    code, ticks, errors = ended(process, tmp_path)
    assert (code, errors) == (0, '')
    assert server.lines('idle') == (tmp_path / 'out').read_text().splitlines()
