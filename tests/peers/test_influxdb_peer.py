"""Real InfluxDB 1.6 and 1.8 and VictoriaMetrics are written to by the program, and asked by query what they hold then.

What is expected comes from the `stdout` emitter of the same run: same points, same times, same numbers, nothing
else. Where a flat name ends and its label begins is worked out here anew, not by the program.
"""
import itertools
import json
import math
import os
import re
import time
import urllib.parse

import pytest
from conftest import TESTS
from influxdb_server import InfluxDB, VictoriaMetrics
from peer import ended, finished_well, free_port, hostile_host, live, payloads, until_ticks
from standins import Proxy, certificates

IDENTITY = {'datacenter': 'EC2', 'region': 'us-west-1', 'zone': '', 'cluster': 'te,st = 1',
            'hostname': 'n1.example.net', 'ipv4': '10.10.10.2', 'ipv6': '2001:db8::1'}
LABELS = {'disk': 'device', 'net': 'interface', 'cpu': 'cpu'}
ALL = {'cpu': {'per_core': True}, 'load': {}, 'disk': {'devices': ['*'], 'partitions': True},
       'network': {'interfaces': ['*']}, 'memory': {}, 'system': {}}
LOAD = {'load': {}}
FROZEN = os.path.join(TESTS, 'hosts')
HOSTS = sorted(name for name in os.listdir(FROZEN) if os.path.isdir(os.path.join(FROZEN, name)))
NUMBERS = itertools.count()
ROOT_TOKEN = 'root:ro:ot'


@pytest.fixture(scope='module')
def certs(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp('certs'))


def pem_of(certs, folder):
    path = folder / 'server.pem'
    with open(certs.good.cert) as cert, open(certs.good.key) as key:
        path.write_text(cert.read() + key.read())
    return str(path)


@pytest.fixture(scope='module')
def both(tmp_path_factory):
    """{version: server}, each started when it is first asked for."""
    started = {}

    def start(version):
        if version not in started:
            started[version] = InfluxDB(version, tmp_path_factory.mktemp('influxdb')).start()
        return started[version]
    yield start
    for server in started.values():
        server.stop()


@pytest.fixture(params=['1.6', '1.8'])
def influx(request, both):
    """A server, running whatever the test before did to it."""
    server = both(request.param)
    if server.process.poll() is not None:
        server.start()
    return server


@pytest.fixture
def database(influx):
    """A new database of the test's own."""
    name = 'test%d' % next(NUMBERS)
    influx.command('CREATE DATABASE "%s"' % name)
    return name


@pytest.fixture(scope='module')
def victoria(tmp_path_factory):
    with VictoriaMetrics(tmp_path_factory.mktemp('victoria')) as peer:
        yield peer


# -- what is expected, and what is there ---------------------------------------------------------

def parts_of(flat):
    """disk.reads.sda -> ('disk', 'reads', {'device': 'sda'})"""
    family, name, instance = (flat.split('.', 2) + [None])[:3]
    return family, name, {} if instance is None else {LABELS[family]: instance}


def shown(text):
    """What a server shows of a text from outside."""
    text = ''.join('_' if c < ' ' or c == '\x7f' else c for c in text)
    return ''.join('_' if c == '\\' and after in ',= \\' else c for c, after in zip(text, text[1:] + ' '))


def expected(ticks, tags=None, keep=lambda tick, flat: True, known=parts_of):
    """{(measurement, tags as a set of pairs, field, ms): number} for these payloads."""
    out = {}
    for tick in ticks:
        identity = dict({'host': tick['hostname']}, **{k: tick[k] for k in IDENTITY if k != 'hostname'})
        for flat, entry in ((flat, entry) for point in tick['points'] for flat, entry in point.items()):
            if keep(tick, flat):
                family, name, labels = known(flat)
                pairs = dict(dict(identity, **(tags or {})), **labels)
                key = (shown(family), frozenset((shown(k), shown(v)) for k, v in pairs.items() if v), shown(name),
                       int(round(tick['timestamp'] * 1000)))
                assert key not in out, key
                out[key] = float(entry['value'])
    return out


def difference(found, wanted):
    missing, more = [k for k in wanted if found.get(k) != wanted[k]], [k for k in found if k not in wanted]
    return 'of %d points %d are missing or other %s, %d too many %s' % (
        len(wanted), len(missing), [(k, wanted[k], found.get(k)) for k in missing[:2]], len(more), more[:2])


def holds(influx, database, wanted, **more):
    """Fails unless the database holds exactly what is wanted."""
    found = influx.points(database, **more)
    assert found == wanted, difference(found, wanted)


# -- runs ----------------------------------------------------------------------------------------

def config(folder, url, name, modules=None, identity=None, **more):
    """A configuration file with both emitters. more: options of influxdb; without a login it is root's."""
    path = folder / ('statbadger%d.conf' % next(NUMBERS))
    options = dict({'url': url}, **more)
    if name:
        options['database'] = name
    if not {'token', 'username', 'login'} & set(more) and not url.startswith('udp:'):
        options.update(username='root', password=more.get('password', 'ro:ot'))
    options.pop('login', None)
    path.write_text(json.dumps(dict(IDENTITY if identity is None else identity, modules=modules or ALL,
                                    emitters={'influxdb': options, 'stdout': {}})))
    return str(path)


def by_token(database):
    """The options for the same database as a bucket."""
    return dict(bucket=database + '/autogen', token=ROOT_TOKEN, org='any')


OWN = '''
class own:
    def __init__(self, config, logger):
        pass

    def get_stats(self, iteration):
        return [{name: {'value': value, 'units': 'u'}} for name, value, only in %s if only in (0, iteration)]
'''


def own_module(folder, points):
    """The module of a user that gives these (name, value, the only iteration or 0)."""
    file = folder / ('own%d.py' % next(NUMBERS))
    file.write_text(OWN % ascii(points))
    os.rename(str(file), str(folder / 'own.py'))
    return {'file': str(folder / 'own.py')}


# -- every point, and nothing else ---------------------------------------------------------------

@pytest.mark.parametrize('gzip', [True, False])
def test_every_point_arrives_once_with_its_time_value_and_tags(run, influx, database, tmp_path, gzip):
    done = run('-f', config(tmp_path, influx.url, database, gzip=gzip), '-n', 3, '-i', 0.2)
    wanted = expected(finished_well(done, 3))
    assert len(wanted) > 180
    holds(influx, database, wanted)


@pytest.mark.parametrize('influx, name', [('1.6', name) for name in HOSTS] + [
    ('1.8', name) for name in ('linux-6.18', 'odd-names', 'big')], indirect=['influx'])
def test_a_frozen_host_arrives_as_it_is(run, influx, database, tmp_path, name):
    where, more = (None, by_token(database)) if influx.version == '1.8' else (database, {})
    path = config(tmp_path, influx.url, where, identity={}, **more)
    done = run('-f', path, '--replay', os.path.join(FROZEN, name))
    assert done.code == 0 and 'influxdb: ' not in done.err
    ticks = payloads(done.out)
    assert len(ticks) >= 2
    holds(influx, database, expected(ticks))


@pytest.mark.parametrize('name', ['linux-6.18', 'odd-names', 'linux-2.6.9'])
def test_a_frozen_host_arrives_over_udp(run, influx, tmp_path, name):
    influx.command('DROP DATABASE "udp"')
    influx.command('CREATE DATABASE "udp"')
    path = config(tmp_path, 'udp://127.0.0.1:%d' % influx.udp, None, identity={})
    done = run('-f', path, '--replay', os.path.join(FROZEN, name))
    assert done.code == 0 and 'influxdb: ' not in done.err
    wanted = expected(payloads(done.out))
    try:
        influx.until(lambda: influx.points('udp') == wanted, 20, 'hold what was sent')
    except AssertionError as error:
        raise AssertionError('%s\n%s' % (difference(influx.points('udp'), wanted), error))


def test_tags_and_the_blacklist_and_an_interval_of_its_own(run, influx, database, tmp_path):
    tags = {'env': 'prod', 'ra ck,=': 'a,"b=\'; %s', 'empty': '', 'Time': 'gr\u00fc\u00df', 'region': 'mine'}
    blacklist = ['mem.*', 'cpu.[a-i]*', 'cpu.*.cpu0']
    path = config(tmp_path, influx.url, database, tags=tags, blacklist=blacklist, interval=1)
    ticks = finished_well(run('-f', path, '-n', 6, '-i', 0.5), 6)
    wanted = expected(ticks, tags, lambda tick, flat: tick['timestamp'] % 1 == 0
                      and not re.match(r'mem\.|cpu\.[a-i]|cpu\..*\.cpu0$', flat))
    assert len(wanted) > 20 and len({key[3] for key in wanted}) == 3
    holds(influx, database, wanted)


def test_one_host_does_not_overwrite_another_and_the_same_ticks_are_there_once(run, influx, database, tmp_path):
    wanted = {}
    for host in ('n1', 'n2', 'n1'):
        path = config(tmp_path, influx.url, database, identity={'hostname': host})
        done = run('-f', path, '--replay', os.path.join(FROZEN, 'linux-6.18'))
        assert done.code == 0
        wanted.update(expected(payloads(done.out)))
    holds(influx, database, wanted)


def test_a_retention_policy_is_the_one_that_is_named(run, influx, database, tmp_path):
    influx.command('CREATE RETENTION POLICY "the short=1" ON "%s" DURATION 1d REPLICATION 1' % database)
    done = run('-f', config(tmp_path, influx.url, database, retention_policy='the short=1'), '-n', 2, '-i', 0.2)
    holds(influx, database, expected(finished_well(done, 2)), policy='the short=1')
    holds(influx, database, {})


# -- names that mean harm ------------------------------------------------------------------------

# What the kernel lets an interface be called: anything but blanks, / and :
INTERFACES = [b'eth0.100', b'q"uo\'te', b'back\\slash', b'semi;colon=1', b'per%d%s%', b'x{y="z"}', b'~tilde',
              b'com,ma', b'a=b,c=d', b'\\', b'\\\\', b'a\\,b', b'\\=', b'e\\', b'x\\"', b'*glob?[a]', b'....', b'nan',
              b'-', b'null', b'#!<&>|', b'$(reboot)`', b'time', b'ctl\x01\x1c\x7f', 'gr\u00fc\u00df'.encode(),
              'ls\u2028\u0085x'.encode(), b'by\xff\xfe\x80']
DEVICES = [b'cciss/c0d0', b'odd!disk', b'q"uo\'te', b'a%s', b'back\\', b'a,b=1', b'k\xc3\xbch', b'\xf0\x9f\x92\xbe']


def hostile_recording(folder):
    return hostile_host(folder, INTERFACES, DEVICES, b'h;"o\\ , =\\\n')


HOSTILE = {'network': {'interfaces': ['*']}, 'disk': {'devices': ['*'], 'partitions': True}}


def test_interfaces_and_disks_with_hostile_names_are_the_ones_meant(run, influx, database, tmp_path):
    identity = {'cluster': 'a\nb"c\\', 'zone': "'; drop measurement net, x=1 1", 'region': '%s \x01\x7f\u2028'}
    path = config(tmp_path, influx.url, database, HOSTILE, identity)
    done = run('-f', path, '--replay', hostile_recording(tmp_path))
    wanted = expected(finished_well(done, 3))
    holds(influx, database, wanted)
    for label, known in (('interface', INTERFACES), ('device', DEVICES)):
        names = {dict(key[1])[label] for key in wanted if label in dict(key[1])}
        assert len(names) == len(known)
    assert {dict(key[1])['host'] for key in wanted} == {'h;"o_ , =_'}


# Names of a user's metrics: what is expected of each as (measurement, field).
SERIES = {
    'a.b': ('a', 'b'), 'x y.z w': ('x y', 'z w'), 'com,ma.f,g=h': ('com,ma', 'f,g=h'), '%d%s.%': ('%d%s', '%'),
    "q't.back\\slash": ("q't", 'back\\slash'), 'e\\.f\\': ('e_', 'f_'), 'g\\,.h\\,=i': ('g_,', 'h_,=i'),
    'q"u.v"w': ('q"u', 'v_w'), '#c.d': ('_#c', 'd'), 'new\nline.ta\tb': ('new_line', 'ta_b'), 't.time': ('t', 'time_'),
    't.host': ('t', 'host_'), 'gr\u00fc\u00df.l\u2028s': ('gr\u00fc\u00df', 'l\u2028s'),
    '\U0001f4be.nan': ('\U0001f4be', 'nan'), 'select.from': ('select', 'from'), 'load.mine': ('load', 'mine')}
NUMERALS = [0, -1, 2 ** 53, 0.1, -0.25, 1e300, 1e22, 1e-300, 123456789.125]


def test_metrics_of_ones_own_with_hostile_names_are_the_ones_meant(run, influx, database, tmp_path):
    points = [(name, value, 0) for name, value in zip(sorted(SERIES), itertools.cycle(NUMERALS))]
    modules = {'own': own_module(tmp_path, points), 'load': {}}
    done = run('-f', config(tmp_path, influx.url, database, modules), '-n', 2, '-i', 0.2)
    ticks = finished_well(done, 2)
    found = {key[:1] + key[2:]: value for key, value in influx.points(database).items()}
    wanted = {(m, f, int(round(tick['timestamp'] * 1000))): float(value) for tick in ticks
              for (name, value, _), (m, f) in ((point, SERIES[point[0]]) for point in points)}
    assert {key: value for key, value in found.items() if key in wanted} == wanted
    assert len(found) == len(wanted) + 10


# -- who may write -------------------------------------------------------------------------------

def test_names_and_passwords_with_special_characters(run, influx, tmp_path):
    name, user, password = 'my data=&+;?#\u00e4-%d' % next(NUMBERS), 'w &=+;?#\u00e4/', 'p &=%+:;?#\u00e4/%41"'
    influx.command('CREATE DATABASE "%s"' % name)
    influx.command('CREATE USER "%s" WITH PASSWORD \'%s\'' % (user, password))
    path = config(tmp_path, influx.url, name, LOAD, username=user, password=password)
    done = run('-f', path, '-n', 1, '-i', 0.2)
    assert done.code == 1 and 'not authorized to write' in done.err and not influx.points(name)
    influx.command('GRANT WRITE ON "%s" TO "%s"' % (name, user))
    done = run('-f', path, '-n', 2, '-i', 0.2)
    holds(influx, name, expected(finished_well(done, 2)))


@pytest.mark.parametrize('way', ['password', 'token', 'none'])
def test_a_wrong_login_is_said_once_and_nothing_is_written(run, influx, database, tmp_path, way):
    more = {'password': {'password': 'pa55wrong'}, 'token': {'token': 'root:pa55wrong'}, 'none': {'login': None}}[way]
    done = run('-f', config(tmp_path, influx.url, database, LOAD, **more), '-n', 2, '-i', 0.2)
    assert done.code == 1 and 'pa55wrong' not in done.err and done.err.count('HTTP 401') == 2, done.err
    assert done.err.count('\n') == 2 and not influx.points(database)


@pytest.mark.parametrize('bucket', ['%s/autogen', '%s', None])
def test_a_token_of_name_and_password_will_do_for_both_ways_to_write(run, both, tmp_path, bucket):
    influx, name = both('1.8'), 'test%d' % next(NUMBERS)
    influx.command('CREATE DATABASE "%s"' % name)
    where = {'bucket': bucket % name} if bucket else {'database': name}
    done = run('-f', config(tmp_path, influx.url, None, LOAD, token=ROOT_TOKEN, **where), '-n', 2, '-i', 0.2)
    holds(influx, name, expected(finished_well(done, 2)))


# -- what is not there, and what is refused --------------------------------------------------------

@pytest.mark.parametrize('more, words', [
    ({}, '/write, database "no such"'), ({'retention_policy': 'nope'}, 'retention policy "nope"'),
    ({'bucket': 'no such'}, '/api/v2/write, bucket "no such"')])
def test_what_is_not_there_is_named_and_waited_for(run, influx, database, tmp_path, more, words):
    where = None if 'bucket' in more else database if more else 'no such'
    done = run('-f', config(tmp_path, influx.url, where, LOAD, **more), '-n', 2, '-i', 0.2)
    assert done.code == 1 and words in done.err and 'refused' not in done.err, done.err
    assert not influx.points(database)


def test_a_field_of_another_type_costs_its_lines_and_nothing_else(run, influx, database, tmp_path):
    stamp = int(time.time() * 1000) - 1         # a field has its type for so many days, a shard
    influx.write(database, 'load one=1i %d' % stamp)
    done = run('-f', config(tmp_path, influx.url, database), '-n', 4, '-i', 0.2)
    ticks = payloads(done.out)
    assert done.code == 1 and len(ticks) == 4 and '4 of 4 ticks were not delivered' in done.err, done.err
    assert done.err.count('refused: partial write: field type conflict') == 1
    wanted = expected(ticks, keep=lambda tick, flat: not flat.startswith('load.'))
    wanted['load', frozenset(), 'one', stamp] = 1
    holds(influx, database, wanted)


def test_one_bad_tick_among_good_ones_is_the_only_one_that_is_not_whole(run, influx, database, tmp_path):
    stamp = int(time.time() * 1000) - 1
    influx.write(database, 'own bad=true %d' % stamp)
    modules = {'own': own_module(tmp_path, [('own.good', 1, 0), ('own.bad', 2, 3)]), 'load': {}}
    done = run('-f', config(tmp_path, influx.url, database, modules, flush=60), '-n', 6, '-i', 0.1)
    ticks = payloads(done.out)
    assert done.code == 1 and '1 of 6 ticks were not delivered' in done.err, done.err
    found, bad = influx.points(database), [t['timestamp'] for t in ticks if any('own.bad' in p for p in t['points'])]
    assert len(bad) == 1 and found.pop(('own', frozenset(), 'bad', stamp)) is True
    assert found == expected(ticks, keep=lambda tick, flat: tick['timestamp'] not in bad or flat.startswith('load.'))


def test_ticks_beyond_the_retention_policy_are_counted_and_the_others_stored(run, influx, database, tmp_path):
    influx.command('CREATE RETENTION POLICY "hour" ON "%s" DURATION 1h REPLICATION 1' % database)
    path = config(tmp_path, influx.url, database, retention_policy='hour', identity={})
    done = run('-f', path, '--replay', os.path.join(FROZEN, 'linux-6.18'))
    ticks = len(payloads(done.out))
    assert done.code == 1 and '%d of %d ticks were not delivered' % (ticks, ticks) in done.err, done.err
    assert 'refused: partial write: points beyond retention policy' in done.err
    holds(influx, database, {}, policy='hour')


@pytest.fixture
def strict(request, tmp_path):
    """strict(version, **limits): a server of the test's own."""
    started = []

    def start(version, **limits):
        folder = tmp_path / 'strict'
        folder.mkdir()
        started.append(InfluxDB(version, folder, **limits).start())
        started[0].command('CREATE DATABASE "d"')
        return started[0]
    yield start
    for server in started:
        server.stop()


@pytest.mark.parametrize('version', ['1.6', '1.8'])
def test_ticks_with_a_series_beyond_a_limit_are_refused_whole(run, strict, tmp_path, version):
    influx = strict(version, values_per_tag=1)
    influx.write('d', 'net,interface=first x=1 1000')
    path = config(tmp_path, influx.url, 'd', {'network': {'interfaces': ['*']}}, {})
    done = run('-f', path, '--replay', hostile_recording(tmp_path))
    assert done.code == 1 and '3 of 3 ticks were not delivered' in done.err, done.err
    assert 'refused: HTTP 400: ' in done.err and 'max-values-per-tag limit exceeded' in done.err
    assert len(influx.points('d')) == 1
    done = run('-f', config(tmp_path, influx.url, 'd', LOAD), '-n', 2, '-i', 0.2)
    assert done.code == 0 and len(influx.points('d')) == 11


@pytest.mark.parametrize('version', ['1.6', '1.8'])
@pytest.mark.parametrize('gzip', [True, False])
def test_what_is_too_much_at_once_goes_in_pieces(run, strict, tmp_path, version, gzip):
    influx = strict(version, body=700 if gzip else 1500)
    done = run('-f', config(tmp_path, influx.url, 'd', LOAD, gzip=gzip, flush=60), '-n', 60, '-i', 0.02)
    wanted = expected(finished_well(done, 60))
    holds(influx, 'd', wanted)


# -- when it goes away -----------------------------------------------------------------------------

@pytest.mark.parametrize('how', ['restart', 'kill'])
def test_a_server_that_goes_and_comes_again_has_it_all(agent, influx, database, tmp_path, how):
    process = live(agent, tmp_path, '-f', config(tmp_path, influx.url, database), '-n', 20, '-i', 0.1)
    until_ticks(tmp_path, 4)
    influx.kill() if how == 'kill' else influx.stop()
    until_ticks(tmp_path, 10)
    influx.start()
    code, ticks, errors = ended(process, tmp_path)
    assert (code, len(ticks)) == (0, 20), errors
    holds(influx, database, expected(ticks))


@pytest.mark.parametrize('n, reset', [(0, False), (0, True), (20, False)])
def test_a_batch_whose_answer_was_lost_is_there_once(run, influx, database, tmp_path, n, reset):
    with Proxy(influx.port) as proxy:
        proxy.cut_answers(n, reset=reset, times=1)
        done = run('-f', config(tmp_path, 'http://127.0.0.1:%d' % proxy.port, database), '-n', 3, '-i', 0.2)
        assert proxy.cuts == 1
    assert done.code == 0 and done.err.count('warning') <= 1, done.err
    holds(influx, database, expected(payloads(done.out)))


def test_a_server_that_is_not_there_is_said(run, tmp_path):
    done = run('-f', config(tmp_path, 'http://127.0.0.1:%d' % free_port(), 'd', LOAD, timeout=1), '-n', 1, '-i', 0.2)
    assert done.code == 1 and 'Connection refused' in done.err


# -- HTTPS ---------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def secure(tmp_path_factory, certs):
    """It is asked through a link of plain HTTP no more, so it makes its database and user before."""
    folder = tmp_path_factory.mktemp('secure')
    plain = InfluxDB('1.6', folder)
    with plain:
        plain.command('CREATE DATABASE "d"')
    tls = InfluxDB('1.6', folder, pem=pem_of(certs, folder))
    with tls:
        yield tls


def stored_by(secure, certs, database):
    """What the server holds, asked over HTTPS."""
    import ssl
    import urllib.request
    context = ssl.create_default_context(cafile=certs.ca)
    query = urllib.parse.urlencode({'u': 'root', 'p': 'ro:ot', 'db': database, 'q': 'SELECT count(*) FROM /.*/'})
    with urllib.request.urlopen('%s/query?%s' % (secure.url, query), context=context, timeout=30) as answer:
        return json.loads(answer.read().decode())['results'][0].get('series', [])


def test_over_https_the_certificate_decides(run, secure, certs, tmp_path):
    for more, words in (({'tls_ca': certs.other_ca}, 'the certificate of the peer is refused'),
                        ({}, 'the certificate of the peer is refused')):
        done = run('-f', config(tmp_path, secure.url, 'd', LOAD, **more), '-n', 1, '-i', 0.2)
        assert done.code == 1 and words in done.err and not stored_by(secure, certs, 'd')
    for more in ({'tls_ca': certs.ca}, {'tls_verify': False}):
        done = run('-f', config(tmp_path, secure.url, 'd', LOAD, **more), '-n', 2, '-i', 0.2)
        assert done.code == 0, done.err
    assert stored_by(secure, certs, 'd')[0]['values'][0][1] == 4


def test_http_to_a_port_of_https_costs_no_tick(agent, secure, certs, tmp_path):
    path = config(tmp_path, secure.url.replace('https', 'http'), 'd', LOAD, timeout=1)
    process = live(agent, tmp_path, '-f', path, '-n', 4, '-i', 0.1)
    code, ticks, errors = ended(process, tmp_path)
    assert code == 1 and 'HTTP request to an HTTPS server' in errors and 'refused' not in errors, errors


# -- VictoriaMetrics: a second reader of the same lines ----------------------------------------------

def metrics(wanted):
    """The same as VictoriaMetrics calls it: {(measurement_field, labels, ms): number}."""
    return {(m + '_' + f, tags, stamp): value for (m, tags, f, stamp), value in wanted.items()}


def same(found, wanted):
    """It keeps a little less of a number than a double has."""
    return set(found) == set(wanted) and all(math.isclose(found[k], wanted[k], rel_tol=1e-11) for k in wanted)


@pytest.mark.parametrize('way', ['write', 'api/v2/write', 'udp'])
@pytest.mark.parametrize('name', ['linux-6.18', 'odd-names', 'hostile'])
def test_victoriametrics_reads_the_same(run, victoria, tmp_path, way, name):
    run_id = 'run%d' % next(NUMBERS)
    url, more = victoria.url, dict(zip(('username', 'password'), victoria.login))
    if way == 'udp':
        url, more = 'udp://127.0.0.1:%d' % victoria.lines, {}
    if way == 'api/v2/write':
        more.update(bucket='b', org='o')
    path = config(tmp_path, url, None, HOSTILE if name == 'hostile' else None, {}, tags={'run_id': run_id}, **more)
    host = hostile_recording(tmp_path) if name == 'hostile' else os.path.join(FROZEN, name)
    done = run('-f', path, '--replay', host)
    assert done.code == 0, done.err
    wanted = metrics(expected(payloads(done.out)))
    labels = dict({'run_id': run_id}, **({'db': 'statbadger'} if way == 'write' else {}))
    try:
        victoria.until(lambda: same(victoria.points(**labels), wanted), 20, 'hold what was sent')
    except AssertionError as error:
        raise AssertionError('%s\n%s' % (difference(victoria.points(**labels), wanted), error))


def test_a_wrong_password_for_victoriametrics_is_said(run, victoria, tmp_path):
    path = config(tmp_path, victoria.url, 'd', LOAD, username='mia', password='pa55wrong')
    done = run('-f', path, '-n', 1, '-i', 0.2)
    assert done.code == 1 and 'HTTP 401' in done.err and 'pa55wrong' not in done.err
