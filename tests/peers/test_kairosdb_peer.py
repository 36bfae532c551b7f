"""A real KairosDB 1.3.0 is written to by the program, over HTTP and telnet, and asked by query what it holds then."""
import os
import subprocess
import time

import pytest
from kairosdb_server import KairosDB
from peer import command, ended, finished_well, lasting_ports, live, payloads, require, until_ticks
from standins import Proxy, certificates
from tsdb import (DEVICES, FROZEN, HOSTS, IDENTITY, INTERFACES, LOAD, Relay, clean, config, difference, expected,
                  host_of, hostile_recording, own_module)

PROTOCOLS = ['http', 'telnet']


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """One for all tests: a start takes three seconds."""
    with KairosDB(tmp_path_factory.mktemp('kairosdb')) as peer:
        yield peer


@pytest.fixture
def kairos(shared):
    """The server, running whatever the test before did to it."""
    if shared.process.poll() is not None:
        shared.start()
    return shared


def holds(kairos, wanted, settle=0.0, seconds=60):
    """Fails unless the server soon holds exactly what is wanted of that host, and still does `settle` seconds later."""
    last, host = {}, host_of(wanted)

    def same():
        last['found'] = difference(kairos.everything(host), wanted)
        return not last['found']
    try:
        kairos.until(same, seconds, 'hold what was sent')
    except AssertionError as error:
        raise AssertionError('%s\n%s' % (last.get('found'), error))
    time.sleep(settle)
    assert not difference(kairos.everything(host), wanted)


def where(kairos, protocol='http', **more):
    port = kairos.port if protocol == 'http' else kairos.telnet
    return dict({'port': port, 'protocol': protocol}, **more)


def all_of(ticks, **more):
    return expected(ticks, most=99, **more)


# -- every point, and nothing else ---------------------------------------------------------------

@pytest.mark.parametrize('options', [{}, {'gzip': False}, {'protocol': 'telnet'}, {'batch': 2, 'flush': 1}], ids=str)
def test_every_point_arrives_once_with_its_time_value_and_tags(run, kairos, tmp_path, options):
    done = run('-f', config(tmp_path, 'kairosdb', **where(kairos, **options)), '-n', 3, '-i', 0.2)
    wanted = all_of(finished_well(done, 3))
    assert sum(map(len, wanted.values())) > 180
    holds(kairos, wanted)


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('name', HOSTS)
def test_a_frozen_host_arrives_as_it_is(run, kairos, tmp_path, name, protocol):
    path = config(tmp_path, 'kairosdb', identity={}, **where(kairos, protocol))
    done = run('-f', path, '--replay', os.path.join(FROZEN, name))
    assert done.code == 0 and 'kairosdb' not in done.err
    ticks = payloads(done.out)
    assert len(ticks) >= 2
    holds(kairos, all_of(ticks))


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_tags_are_there_too(run, kairos, tmp_path, protocol):
    tags = {'env': 'prod', 'ra"ck\n': 'a:b=c\n"; %s', 'Time': 'gr\u00fc\u00df', 'none': '', 'cluster': 'mine'}
    tags.update(('tag%d' % i, str(i)) for i in range(8))
    modules = {'load': {}, 'cpu': {'per_core': True}}
    done = run('-f', config(tmp_path, 'kairosdb', modules, tags=tags, **where(kairos, protocol)), '-n', 2, '-i', 0.2)
    holds(kairos, all_of(finished_well(done, 2), tags=tags))


def test_the_blacklist_and_the_interval_of_the_sink_and_no_other_are_heeded(run, kairos, tmp_path):
    path = config(tmp_path, 'kairosdb', {'load': {}, 'cpu': {}}, blacklist=['cpu.[a-s]*'], interval=1, **where(kairos))
    ticks = finished_well(run('-f', path, '-n', 5, '-i', 0.5), 5)
    wanted = all_of(ticks, keep=lambda tick, flat: tick['timestamp'] % 1 == 0 and not flat.startswith(
        tuple('cpu.' + c for c in 'abcdefghijklmnopqrs')))
    assert 'cpu.user' in wanted
    holds(kairos, wanted)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_the_same_ticks_twice_are_there_once(run, kairos, tmp_path, protocol):
    path = config(tmp_path, 'kairosdb', **where(kairos, protocol))
    done = [run('-f', path, '--replay', os.path.join(FROZEN, 'linux-6.18')) for _ in range(2)]
    assert [one.code for one in done] == [0, 0] and done[0].out == done[1].out
    holds(kairos, all_of(payloads(done[0].out)), settle=0.5)


# -- names that mean harm ------------------------------------------------------------------------

@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_interfaces_and_disks_with_hostile_names_are_the_ones_meant(run, kairos, tmp_path, protocol):
    modules = {'network': {'interfaces': ['*']}, 'disk': {'devices': ['*'], 'partitions': True}}
    who = dict(IDENTITY, cluster='a\nb"c\\', zone="'; drop", region='%s \x01\x7f\u2028=:')
    path = config(tmp_path, 'kairosdb', modules, who, host='h;"o=\\%s' % protocol, **where(kairos, protocol))
    wanted = all_of(finished_well(run('-f', path, '--replay', hostile_recording(tmp_path)), 3))
    assert len({tags for points in wanted.values() for _, tags in points}) == len(
        {clean(name.decode('utf-8', 'replace')) for name in INTERFACES + DEVICES})
    holds(kairos, wanted)


NAMES = ['x y', 'q"uo\'te.z', '/re.*/', 'semi;colon,x=1', 'new\nline', 'back\\', 'gr\u00fc\u00df', '%d%s.%', 'tab\t', 'a~b~',
         'a:b', '\U0001f4be disk', '"]]}],', 'null', '.', 'a..b', '-', '/', 'version', 'put x 1 2 a=b']
NUMERALS = [0, -1, 2 ** 53 + 1, 2 ** 63 - 1, -2 ** 63, 2 ** 64, 0.1, -0.25, 1e308, 1e22, 1e-300, 123456789012345.0, 1e12]


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_series_and_numbers_of_ones_own_are_the_ones_meant(run, kairos, tmp_path, protocol):
    points = [(name, 1.5) for name in NAMES] + [('n%d' % i, value) for i, value in enumerate(NUMERALS)]
    modules = own_module(tmp_path, points)
    done = run('-f', config(tmp_path, 'kairosdb', modules, **where(kairos, protocol)), '-n', 2, '-i', 0.2)
    holds(kairos, all_of(finished_well(done, 2), known=lambda flat: (flat, {})))


def test_one_point_that_is_too_long_for_a_line_takes_no_other_along(run, kairos, tmp_path):
    long = 'x' * 1500
    modules = own_module(tmp_path, [('a', 1), (long, 2), ('b', 3)])
    done = run('-f', config(tmp_path, 'kairosdb', modules, **where(kairos, 'telnet')), '-n', 3, '-i', 0.2)
    assert done.code == 1 and done.err.count('refused: a line of more than 1023 bytes') == 1, done.err
    assert 'kairosdb: 3 of 3 ticks were not delivered: they were refused' in done.err
    holds(kairos, all_of(payloads(done.out), keep=lambda tick, flat: flat != long, known=lambda flat: (flat, {})))


def test_the_longest_line_that_we_send_is_read(run, kairos, tmp_path):
    tags = {'t%d' % i: 'x' * 200 for i in range(4)}
    rest = ' '.join(['putm load.one 1700000001000 0.91 host=h ipv4=::1 ipv6=::2'] + sorted('%s=%s' % item for item in tags.items()) + ['z='])
    tags['z'] = 'x' * (1023 - len(rest))
    who = {'ipv4': '::1', 'ipv6': '::2'}
    path = config(tmp_path, 'kairosdb', LOAD, who, 'h', tags=tags, blacklist=['load.[frt]*'], **where(kairos, 'telnet'))
    done = run('-f', path, '--replay', os.path.join(FROZEN, 'linux-2.6.9'))
    ticks = payloads(done.out)
    values = {'%.12g' % entry['value'] for tick in ticks for point in tick['points'] for flat, entry in point.items()
              if flat == 'load.one'}
    assert done.code == 0 and max(map(len, values)) == 4, values
    holds(kairos, all_of(ticks, tags=tags, keep=lambda tick, flat: flat == 'load.one'))


# -- what it refuses -----------------------------------------------------------------------------

def test_points_that_it_refuses_are_lost_and_no_other(run, kairos, tmp_path):
    spoil = [(b'"load.five"', b'""')]
    with Relay('http://127.0.0.1:%d' % kairos.port, spoil) as relay:
        done = run('-f', config(tmp_path, 'kairosdb', LOAD, port=relay.port, gzip=False), '-n', 3, '-i', 0.2)
        assert len(relay.requests) <= 3
    assert done.code == 1 and 'kairosdb: refused: metric[1].name may not be empty.' in done.err, done.err
    assert '3 of 3 ticks were not delivered: they were refused' in done.err
    holds(kairos, all_of(payloads(done.out), keep=lambda tick, flat: flat != 'load.five'))


def test_bodies_that_it_cannot_read_are_refused_and_no_other(run, kairos, tmp_path):
    with Relay('http://127.0.0.1:%d' % kairos.port) as relay:
        relay.spoil = [(b'[', b'no JSON at all [')]
        done = run('-f', config(tmp_path, 'kairosdb', LOAD, port=relay.port, gzip=False), '-n', 2, '-i', 0.2)
    assert done.code == 1 and 'kairosdb: refused: HTTP 400: ' in done.err, done.err
    assert not kairos.everything(payloads(done.out)[0]['hostname'])


def test_a_wrong_path_or_port_is_said_and_the_ticks_wait(run, kairos, tmp_path):
    path = config(tmp_path, 'kairosdb', LOAD, port=kairos.port, protocol='telnet', timeout=2)
    done = run('-f', path, '-n', 1, '-i', 0.2)
    assert done.code == 1 and 'need the answer of OpenTSDB or KairosDB to \\"version\\"' in done.err.replace(
        '"version"', '\\"version\\"'), done.err


# -- a server that comes and goes ----------------------------------------------------------------

@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_a_server_that_starts_late_misses_nothing(agent, kairos, tmp_path, protocol):
    kairos.stop()
    process = live(agent, tmp_path, '-f', config(tmp_path, 'kairosdb', **where(kairos, protocol)), '-n', 25, '-i', 0.25)
    until_ticks(tmp_path, 3)
    kairos.start()
    code, ticks, errors = ended(process, tmp_path)
    assert (code, len(ticks)) == (0, 25), errors
    assert errors.count('kairosdb: delivers again') == 1, errors
    holds(kairos, all_of(ticks), settle=0.3)


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('way', ['killed', 'stopped'])
def test_a_server_that_is_restarted_has_every_tick(agent, kairos, tmp_path, way, protocol):
    """Killed, it takes along what it had queued and not yet stored: a moment's ticks."""
    process = live(agent, tmp_path, '-f', config(tmp_path, 'kairosdb', **where(kairos, protocol)), '-n', 50, '-i', 0.2)
    until_ticks(tmp_path, 10)
    (kairos.kill if way == 'killed' else kairos.stop)()
    until_ticks(tmp_path, 15)
    kairos.start()
    code, ticks, errors = ended(process, tmp_path)
    assert (code, len(ticks)) == (0, 50), errors
    assert errors.count('kairosdb: delivers again') == 1, errors
    wanted = all_of(ticks)
    if way == 'stopped':
        holds(kairos, wanted, settle=0.3)
        return

    def nearly():
        found = kairos.everything(host_of(wanted))
        missing = {key[0] for metric in wanted for key in set(wanted[metric]) - set(found.get(metric, {}))}
        return len(missing) <= 3
    kairos.until(nearly, 60, 'hold nearly all')


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('n, reset', [(0, False), (0, True), (8, False)])
def test_a_batch_whose_answer_was_lost_is_there_once(run, kairos, tmp_path, n, reset, protocol):
    options = where(kairos, protocol)
    with Proxy(options['port']) as proxy:
        proxy.cut_answers(n, reset=reset, times=1)
        done = run('-f', config(tmp_path, 'kairosdb', **dict(options, port=proxy.port)), '-n', 3, '-i', 0.2)
        assert proxy.cuts == 1 and proxy.connections == 2
    assert done.code == 0 and done.err.count('warning') <= 1, done.err
    holds(kairos, all_of(payloads(done.out)), settle=0.5)


# -- who may write, and TLS ----------------------------------------------------------------------

@pytest.fixture(scope='module')
def certs(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp('certs'))


LOGIN = ('wri ter', 'se=cr&et/"+')


@pytest.fixture(scope='module')
def guarded(tmp_path_factory, certs):
    """A second server, which wants a login and speaks TLS too."""
    folder = tmp_path_factory.mktemp('guarded')
    openssl = require(command('openssl'), 'kairosdb', 'there is no openssl')
    store = str(folder / 'server.p12')
    subprocess.check_call([openssl, 'pkcs12', '-export', '-in', certs.good.cert, '-inkey', certs.good.key, '-out', store,
                           '-passout', 'pass:changeit'])
    with KairosDB(folder, (lasting_ports(1)[0], store, 'changeit'), LOGIN) as peer:
        yield peer


def test_a_login_that_is_right_may_write(run, guarded, tmp_path):
    path = config(tmp_path, 'kairosdb', LOAD, port=guarded.port, username=LOGIN[0], password=LOGIN[1])
    holds(guarded, all_of(finished_well(run('-f', path, '-n', 2, '-i', 0.2), 2)))


@pytest.mark.parametrize('login', [{}, {'username': LOGIN[0]}, {'username': LOGIN[0], 'password': 'wrong-secret'},
                                   {'username': 'nobody', 'password': 'wrong-secret'}], ids=str)
def test_a_login_that_is_wrong_is_said_once_and_the_end_is_not_put_off(run, guarded, tmp_path, login):
    done = run('-f', config(tmp_path, 'kairosdb', LOAD, port=guarded.port, **login), '-n', 2, '-i', 0.2)
    assert done.code == 1 and done.err.count('\n') == 2, done.err
    assert 'kairosdb: HTTP 401' in done.err and 'secret' not in done.out + done.err
    assert not guarded.everything(payloads(done.out)[0]['hostname'])


def test_https_with_a_server_of_that_ca(run, guarded, certs, tmp_path):
    path = config(tmp_path, 'kairosdb', LOAD, port=guarded.https_port, tls=True, tls_ca=certs.ca, username=LOGIN[0],
                  password=LOGIN[1])
    holds(guarded, all_of(finished_well(run('-f', path, '-n', 2, '-i', 0.2), 2)))


def test_a_server_of_another_ca_gets_nothing_unless_any_will_do(run, guarded, certs, tmp_path):
    options = dict(port=guarded.https_port, tls=True, username=LOGIN[0], password=LOGIN[1])
    done = run('-f', config(tmp_path, 'kairosdb', LOAD, tls_ca=certs.other_ca, **options), '-n', 1, '-i', 0.2)
    assert done.code == 1 and done.err.count('kairosdb: the certificate of the peer is refused: ') == 1, done.err
    assert not guarded.everything(payloads(done.out)[0]['hostname'])
    done = run('-f', config(tmp_path, 'kairosdb', LOAD, tls_verify=False, **options), '-n', 1, '-i', 0.2)
    assert done.code == 0
    holds(guarded, all_of(payloads(done.out)))


# -- through what stands between -----------------------------------------------------------------

def test_what_waits_comes_in_few_requests_that_say_what_is_configured(agent, kairos, tmp_path):
    with Relay('http://127.0.0.1:%d' % kairos.port) as relay:
        relay.down()
        path = config(tmp_path, 'kairosdb', LOAD, port=relay.port, batch=20, headers={'X-Scope': 'a'})
        process = live(agent, tmp_path, '-f', path, '-n', 40, '-i', 0.05)
        until_ticks(tmp_path, 40)
        relay.up()
        code, ticks, errors = ended(process, tmp_path)
        assert (code, len(ticks)) == (0, 40), errors
        assert len(relay.requests) <= 4 and all(r.headers['x-scope'] == 'a' for r in relay.requests)
    holds(kairos, all_of(ticks))
