"""A real OpenTSDB 2.4.1 on an HBase of its own is written to by the program, over HTTP and telnet, and asked by query
what it holds then. It speaks no TLS and knows no logins: those are tried with stand-ins, tests/test_faults.py."""
import os
import socket
import time

import pytest
from opentsdb_server import HBase, OpenTSDB
from peer import ended, finished_well, live, payloads, until_ticks
from standins import Proxy
from tsdb import (DEVICES, FROZEN, HOSTS, IDENTITY, INTERFACES, LOAD, Relay, clean, config, difference, expected, host_of,
                  hostile_recording, own_module)

PROTOCOLS = ['http', 'telnet']


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    """One HBase for all tests: it takes fifteen seconds to start."""
    with HBase(tmp_path_factory.mktemp('store')) as peer:
        yield peer


@pytest.fixture(scope='module')
def shared(tmp_path_factory, store):
    with OpenTSDB(tmp_path_factory.mktemp('opentsdb'), store) as peer:
        yield peer


@pytest.fixture
def tsdb(shared):
    """The daemon, running whatever the test before did to it."""
    if shared.process.poll() is not None:
        shared.start()
    return shared


@pytest.fixture(scope='module')
def strict(tmp_path_factory, store):
    """Another daemon of the same store, which makes no metric by itself and takes long bodies."""
    with OpenTSDB(tmp_path_factory.mktemp('strict'), store, tsd__core__auto_create_metrics='false',
                  tsd__http__request__enable_chunked='true', tsd__http__request__max_chunk=1 << 20) as peer:
        yield peer


def found(tsdb, wanted):
    """What it holds of the host of what is wanted, in those metrics and all others it knows."""
    host = host_of(wanted)
    return {name: points for name, points in tsdb.all_points(tsdb.metrics(), host=host).items() if points}


def holds(tsdb, wanted, settle=0.0, seconds=60):
    """Fails unless the server soon holds exactly what is wanted of that host, and still does `settle` seconds later."""
    last = {}

    def same():
        if set(wanted) - set(tsdb.metrics()):
            last['found'] = 'no metrics %s' % sorted(set(wanted) - set(tsdb.metrics()))
            return False
        last['found'] = difference(found(tsdb, wanted), wanted)
        return not last['found']
    try:
        tsdb.until(same, seconds, 'hold what was sent')
    except AssertionError as error:
        raise AssertionError('%s\n%s' % (last.get('found'), error))
    time.sleep(settle)
    assert not difference(found(tsdb, wanted), wanted)


# -- every point, and nothing else ---------------------------------------------------------------

@pytest.mark.parametrize('options', [{}, {'gzip': False}, {'sync': False}, {'protocol': 'telnet'}, {'batch': 2, 'flush': 1}],
                         ids=str)
def test_every_point_arrives_once_with_its_time_value_and_tags(run, tsdb, tmp_path, options):
    done = run('-f', config(tmp_path, 'opentsdb', port=tsdb.port, **options), '-n', 3, '-i', 0.2)
    wanted = expected(finished_well(done, 3))
    assert sum(map(len, wanted.values())) > 180
    holds(tsdb, wanted)


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('name', HOSTS)
def test_a_frozen_host_arrives_as_it_is(run, tsdb, tmp_path, name, protocol):
    path = config(tmp_path, 'opentsdb', identity={}, port=tsdb.port, protocol=protocol)
    done = run('-f', path, '--replay', os.path.join(FROZEN, name))
    assert done.code == 0 and 'opentsdb' not in done.err, done.err
    ticks = payloads(done.out)
    assert len(ticks) >= 2
    holds(tsdb, expected(ticks))


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_tags_are_there_too_and_the_least_of_the_identity_go(run, tsdb, tmp_path, protocol):
    tags = {'env': 'prod', 'ra"ck\n': 'a:b=c\n"; %s', 'Time': 'gr\u00fc\u00df', 'none': '', 'cluster': 'mine'}
    modules = {'load': {}, 'cpu': {'per_core': True}}
    path = config(tmp_path, 'opentsdb', modules, tags=tags, port=tsdb.port, protocol=protocol)
    wanted = expected(finished_well(run('-f', path, '-n', 2, '-i', 0.2), 2), tags=tags)
    assert {len(key) for points in wanted.values() for _, key in points} == {8}
    holds(tsdb, wanted)


def test_the_blacklist_and_the_interval_of_the_sink_and_no_other_are_heeded(run, tsdb, tmp_path):
    path = config(tmp_path, 'opentsdb', {'load': {}, 'cpu': {}}, blacklist=['cpu.[a-s]*'], interval=1, port=tsdb.port)
    ticks = finished_well(run('-f', path, '-n', 5, '-i', 0.5), 5)
    wanted = expected(ticks, keep=lambda tick, flat: tick['timestamp'] % 1 == 0 and not flat.startswith(
        tuple('cpu.' + c for c in 'abcdefghijklmnopqrs')))
    assert 'cpu.user' in wanted
    holds(tsdb, wanted)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_the_same_ticks_twice_are_there_once(run, tsdb, tmp_path, protocol):
    path = config(tmp_path, 'opentsdb', port=tsdb.port, protocol=protocol)
    done = [run('-f', path, '--replay', os.path.join(FROZEN, 'linux-6.18')) for _ in range(2)]
    assert [one.code for one in done] == [0, 0] and done[0].out == done[1].out
    holds(tsdb, expected(payloads(done[0].out)), settle=0.5)


# -- names that mean harm ------------------------------------------------------------------------

@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_interfaces_and_disks_with_hostile_names_are_the_ones_meant(run, tsdb, tmp_path, protocol):
    modules = {'network': {'interfaces': ['*']}, 'disk': {'devices': ['*'], 'partitions': True}}
    who = dict(IDENTITY, cluster='a\nb"c\\', zone="'; drop", region='%s \x01\x7f\u2028=:')
    path = config(tmp_path, 'opentsdb', modules, who, host='h;"o=\\%s' % protocol, port=tsdb.port, protocol=protocol)
    wanted = expected(finished_well(run('-f', path, '--replay', hostile_recording(tmp_path)), 3))
    assert len({dict(tags).get('interface', dict(tags).get('device')) for points in wanted.values() for _, tags in points}) == len(
        {clean(name.decode('utf-8', 'replace')) for name in INTERFACES + DEVICES})
    holds(tsdb, wanted)


NAMES = ['x y', 'q"uo\'te.z', '/re.*/', 'semi;colon,x=1', 'new\nline', 'back\\', 'gr\u00fc\u00df', '%d%s.%', 'tab\t', 'a~b~',
         'a:b', '\U0001f4be disk', '"]]}],', 'null', '.', 'a..b', '-', '/', 'version', 'put x 1 2 a=b']
NUMERALS = [0, -1, 2 ** 53 + 1, 2 ** 63 - 1, -2 ** 63, 2 ** 64, 0.1, -0.25, 1e308, 1e22, 1e-300, 123456789012345.0, 1e12]


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_series_and_numbers_of_ones_own_are_the_ones_meant(run, tsdb, tmp_path, protocol):
    points = [(name, 1.5) for name in NAMES] + [('n%d' % i, value) for i, value in enumerate(NUMERALS)]
    modules = own_module(tmp_path, points)
    done = run('-f', config(tmp_path, 'opentsdb', modules, port=tsdb.port, protocol=protocol), '-n', 2, '-i', 0.2)
    holds(tsdb, expected(finished_well(done, 2), known=lambda flat: (flat, {})))


def test_one_point_that_is_too_long_for_a_line_takes_no_other_along(run, tsdb, tmp_path):
    long = 'x' * 1500
    modules = own_module(tmp_path, [('a', 1), (long, 2), ('b', 3)])
    done = run('-f', config(tmp_path, 'opentsdb', modules, port=tsdb.port, protocol='telnet'), '-n', 3, '-i', 0.2)
    assert done.code == 1 and done.err.count('refused: a line of more than 1023 bytes') == 1, done.err
    assert 'opentsdb: 3 of 3 ticks were not delivered: they were refused' in done.err
    holds(tsdb, expected(payloads(done.out), keep=lambda tick, flat: flat != long, known=lambda flat: (flat, {})))


def test_the_longest_line_that_we_send_is_read(tsdb):
    """Whatever the packets: the limit is not looked at where the end of the line comes along."""
    start = 'put longest 1700000001 1.5 host=longest t='
    line = start + 'x' * (1023 - len(start))
    with socket.create_connection(('127.0.0.1', tsdb.port), 30) as sock:
        sock.settimeout(30)
        sock.sendall(line.encode())
        time.sleep(0.3)
        sock.sendall(b'\nversion\n')
        assert sock.recv(100).startswith(b'net.opentsdb')
    tsdb.until(lambda: 'longest' in tsdb.metrics() and tsdb.points('longest'), 20, 'hold the point')


# -- bodies --------------------------------------------------------------------------------------

@pytest.mark.parametrize('gzip', [True, False])
def test_bodies_are_as_large_as_the_server_takes_and_no_larger(run, tsdb, tmp_path, gzip):
    with Relay('http://127.0.0.1:%d' % tsdb.port) as relay:
        path = config(tmp_path, 'opentsdb', port=relay.port, gzip=gzip)
        done = run('-f', path, '--replay', os.path.join(FROZEN, 'linux-6.18'))
        assert done.code == 0, done.err
        sizes = [len(request.raw) for request in relay.requests]
        assert max(sizes) <= 8192 and (gzip or max(sizes) > 7000)
        assert {request.headers.get('content-encoding') for request in relay.requests} == {'gzip' if gzip else None}
        assert {request.path for request in relay.requests} == {'/api/put?details&sync&sync_timeout=54000'}
    holds(tsdb, expected(payloads(done.out)))


def test_a_body_of_exactly_the_usual_limit_is_taken(tsdb):
    """The default of max_bytes: one byte more is not."""
    import urllib.error
    import urllib.request
    for size, fits in ((8192, True), (8193, False)):
        point = b'{"metric":"limit","timestamp":1700000001,"value":1.0,"tags":{"host":"h"}}'
        body = b'[' + point + b' ' * (size - len(point) - 2) + b']'
        try:
            with urllib.request.urlopen('http://127.0.0.1:%d/api/put' % tsdb.port, body, 30) as answer:
                assert fits and answer.status == 204
        except urllib.error.HTTPError as error:
            assert not fits and b'Chunked request not supported' in error.read()


def test_bodies_that_are_too_large_for_the_server_are_made_smaller(run, tsdb, tmp_path):
    path = config(tmp_path, 'opentsdb', port=tsdb.port, gzip=False, max_bytes=50000)
    done = run('-f', path, '--replay', os.path.join(FROZEN, 'linux-6.18'))
    assert done.code == 0, done.err
    holds(tsdb, expected(payloads(done.out)))


# -- what it refuses -----------------------------------------------------------------------------

@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_points_with_too_many_tags_for_the_server_are_lost_and_no_other(run, tsdb, tmp_path, protocol):
    tags = dict.fromkeys(['t1', 't2'], 'x')     # host, these, six of the identity less the empty zone: 8; and a label
    modules = {'load': {}, 'cpu': {'per_core': True}}
    path = config(tmp_path, 'opentsdb', modules, tags=tags, max_tags=12, port=tsdb.port, protocol=protocol)
    done = run('-f', path, '-n', 3, '-i', 0.2)
    assert done.code == 1 and 'Too many tags: 9 maximum allowed: 8' in done.err, done.err
    assert 'opentsdb: 3 of 3 ticks were not delivered: they were refused' in done.err
    holds(tsdb, expected(payloads(done.out), tags, lambda tick, flat: '.cpu' not in flat, most=12))


def make(tsdb, *metrics):
    """Makes these metrics, by a point of another host."""
    tsdb.request('/api/put?details&sync', [{'metric': metric, 'timestamp': 1700000001, 'value': 1.0, 'tags': {'host': 'maker'}}
                                           for metric in metrics])


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_a_server_that_makes_no_metrics_is_waited_for_until_it_knows_one(run, tsdb, strict, tmp_path, protocol):
    run_of = int(time.time())                   # no metric of an attempt before this one is known
    names = ['%s.%s.%d' % (protocol, name, run_of) for name in ('one', 'two', 'three')]
    path = config(tmp_path, 'opentsdb', own_module(tmp_path, [(name, 1) for name in names]), port=strict.port,
                  protocol=protocol, timeout=5)
    done = run('-f', path, '-n', 2, '-i', 0.2)
    assert done.code == 1 and done.err.count('need tsd.core.auto_create_metrics = true on the server') == 2, done.err
    assert '2 of 2 ticks were not delivered' in done.err and 'they were refused' not in done.err
    make(tsdb, names[0], names[2])
    done = run('-f', path, '-n', 3, '-i', 0.2)
    assert done.code == 1 and done.err.lower().count('refused: unknown metric') == 1, done.err
    assert '3 of 3 ticks were not delivered: they were refused' in done.err
    wanted = expected(payloads(done.out), keep=lambda tick, flat: flat != names[1], known=lambda flat: (flat, {}))
    holds(strict, wanted)


BAD_AT = """
class bad:
    def __init__(self, config, logger):
        pass

    def get_stats(self, iteration):
        return [{'good.a': {'value': 1, 'units': ''}, 'good.b': {'value': iteration, 'units': ''}},
                {'bad.c': {'value': 7, 'units': ''}} if iteration == 5 else {}]
"""


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_one_bad_tick_among_good_ones_takes_none_along(run, tsdb, strict, tmp_path, protocol):
    """One metric, in one tick, is one that the server does not know. Longer bodies go where it takes them."""
    make(tsdb, 'good.a', 'good.b')
    (tmp_path / 'bad.py').write_text(BAD_AT)
    options = {'max_bytes': 100000, 'gzip': False} if protocol == 'http' else {}
    path = config(tmp_path, 'opentsdb', {'bad': {'file': str(tmp_path / 'bad.py')}}, port=strict.port, protocol=protocol,
                  flush=1000, **options)
    done = run('-f', path, '-n', 40, '-i', 0.1)
    assert done.code == 1 and '1 of 40 ticks were not delivered: they were refused' in done.err, done.err
    holds(strict, expected(payloads(done.out), keep=lambda tick, flat: flat != 'bad.c', known=lambda flat: (flat, {})))


def test_a_body_that_it_cannot_read_is_refused(run, tsdb, tmp_path):
    with Relay('http://127.0.0.1:%d' % tsdb.port, [(b'[', b'no JSON at all [')]) as relay:
        done = run('-f', config(tmp_path, 'opentsdb', LOAD, port=relay.port, gzip=False), '-n', 2, '-i', 0.2)
    assert done.code == 1 and 'opentsdb: refused: HTTP 400: ' in done.err, done.err
    assert '2 of 2 ticks were not delivered: they were refused' in done.err


def test_what_comes_back_is_found_by_metric_time_and_tags(run, tsdb, tmp_path):
    """A value that it cannot read, of one metric of five; it is named in the answer as it was sent."""
    with Relay('http://127.0.0.1:%d' % tsdb.port, [(b'"value":7.5', b'"value":NaN')]) as relay:
        modules = own_module(tmp_path, [('five.a', 1), ('five.b', 7.5), ('five.c', 3)])
        done = run('-f', config(tmp_path, 'opentsdb', modules, port=relay.port, gzip=False), '-n', 3, '-i', 0.2)
        assert len(relay.requests) <= 3
    assert done.code == 1 and 'opentsdb: refused: ' in done.err, done.err
    wanted = expected(payloads(done.out), keep=lambda tick, flat: flat != 'five.b', known=lambda flat: (flat, {}))
    holds(tsdb, wanted)


# -- a server that comes and goes ----------------------------------------------------------------

@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_a_server_that_starts_late_misses_nothing(agent, tsdb, tmp_path, protocol):
    tsdb.stop()
    path = config(tmp_path, 'opentsdb', port=tsdb.port, protocol=protocol)
    process = live(agent, tmp_path, '-f', path, '-n', 20, '-i', 0.25)
    until_ticks(tmp_path, 3)
    tsdb.start()
    code, ticks, errors = ended(process, tmp_path)
    assert (code, len(ticks)) == (0, 20), errors
    assert errors.count('opentsdb: delivers again') == 1, errors
    holds(tsdb, expected(ticks), settle=0.3)


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('way', ['killed', 'stopped'])
def test_a_server_that_is_restarted_has_every_tick(agent, tsdb, tmp_path, way, protocol):
    """Killed, it takes along what it had read over telnet and not yet written: a moment's ticks."""
    path = config(tmp_path, 'opentsdb', port=tsdb.port, protocol=protocol)
    process = live(agent, tmp_path, '-f', path, '-n', 40, '-i', 0.2)
    until_ticks(tmp_path, 10)
    (tsdb.kill if way == 'killed' else tsdb.stop)()
    until_ticks(tmp_path, 15)
    tsdb.start()
    code, ticks, errors = ended(process, tmp_path)
    assert (code, len(ticks)) == (0, 40), errors
    assert errors.count('opentsdb: delivers again') == 1, errors
    wanted = expected(ticks)
    if protocol == 'http':
        holds(tsdb, wanted, settle=0.3)
        return
    there = {}

    def nearly():
        there.update(found(tsdb, wanted))
        missing = {key[0] for metric in wanted for key in set(wanted[metric]) - set(there.get(metric, {}))}
        return len(missing) <= 3
    tsdb.until(nearly, 30, 'hold nearly all')


def test_a_store_that_hangs_gets_all_when_it_goes_on(agent, tsdb, store, tmp_path):
    """The server says that the write timed out; nothing counts as delivered until the store has it."""
    path = config(tmp_path, 'opentsdb', LOAD, port=tsdb.port, timeout=2)
    process = live(agent, tmp_path, '-f', path, '-n', 30, '-i', 0.2)
    until_ticks(tmp_path, 5)
    store.freeze()
    try:
        end = time.monotonic() + 60
        while 'Write timedout' not in (tmp_path / 'err').read_text():
            assert time.monotonic() < end, (tmp_path / 'err').read_text()
            time.sleep(0.1)
    finally:
        store.thaw()
    code, ticks, errors = ended(process, tmp_path)
    assert len(ticks) == 30 and 'opentsdb: OpenTSDB: Write timedout' in errors, errors
    if code == 0:                               # else the end came before the store had recovered
        holds(tsdb, expected(ticks))


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('n, reset', [(0, False), (0, True), (8, False)])
def test_a_batch_whose_answer_was_lost_is_there_once(run, tsdb, tmp_path, n, reset, protocol):
    with Proxy(tsdb.port) as proxy:
        proxy.cut_answers(n, reset=reset, times=1)
        done = run('-f', config(tmp_path, 'opentsdb', LOAD, port=proxy.port, protocol=protocol), '-n', 3, '-i', 0.2)
        assert proxy.cuts == 1 and proxy.connections == 2
    assert done.code == 0 and done.err.count('warning') <= 1, done.err
    holds(tsdb, expected(payloads(done.out)), settle=0.5)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_what_waits_comes_together(agent, tsdb, tmp_path, protocol):
    with Proxy(tsdb.port) as proxy:
        proxy.down()
        options = {'headers': {'X-Scope': 'a'}} if protocol == 'http' else {}
        path = config(tmp_path, 'opentsdb', LOAD, port=proxy.port, protocol=protocol, batch=20, **options)
        process = live(agent, tmp_path, '-f', path, '-n', 40, '-i', 0.05)
        until_ticks(tmp_path, 40)
        proxy.up()
        code, ticks, errors = ended(process, tmp_path)
        assert (code, len(ticks)) == (0, 40), errors
        assert proxy.connections == 1
    holds(tsdb, expected(ticks))
