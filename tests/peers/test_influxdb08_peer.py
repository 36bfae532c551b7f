"""A real InfluxDB 0.8.8 is written to by the program, and asked by query what it holds then.

What is expected comes from the `stdout` emitter of the same run: same points, same times, same numbers,
nothing else. Where a flat name ends and its label begins is worked out here anew, not by the program.
"""
import collections
import itertools
import json
import os
import re
import time
import urllib.error
import urllib.request

import pytest
from conftest import TESTS
from influxdb08_server import PATIENCE, InfluxDB08, below
from peer import (Peer, accepts, command, ended, finished_well, free_port, hostile_host, live, payloads, require,
                  until_ticks)
from standins import HttpStandin, Proxy, certificates

IDENTITY = {'datacenter': 'EC2', 'region': 'us-west-1', 'zone': '', 'cluster': 'te.st',
            'hostname': 'n1.example.net', 'ipv4': '10.10.10.2', 'ipv6': '2001:db8::1'}
KEYS = sorted(IDENTITY)
LABELS = {'disk': 'device', 'net': 'interface', 'cpu': 'cpu'}
ALL = {'cpu': {'per_core': True}, 'load': {}, 'disk': {'devices': ['*'], 'partitions': True},
       'network': {'interfaces': ['*']}, 'memory': {}, 'system': {}}
LOAD = {'load': {}}
FROZEN = os.path.join(TESTS, 'hosts')
HOSTS = sorted(name for name in os.listdir(FROZEN) if os.path.isdir(os.path.join(FROZEN, name)))
NUMBERS = itertools.count()


@pytest.fixture(scope='module')
def certs(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp('certs'))


@pytest.fixture(scope='module')
def shared(tmp_path_factory, certs):
    """One for all tests, over HTTP and HTTPS: a start takes five seconds."""
    folder = tmp_path_factory.mktemp('influxdb08')
    pem = folder / 'server.pem'
    with open(certs.good.cert) as cert, open(certs.good.key) as key:
        pem.write_text(cert.read() + key.read())
    with InfluxDB08(folder, pem=str(pem)) as peer:
        yield peer


@pytest.fixture
def influx(shared):
    """The server, running whatever the test before did to it."""
    if shared.process.poll() is not None:
        shared.start()
    return shared


@pytest.fixture
def database(influx):
    """A new database of the test's own."""
    name = 'test%d' % next(NUMBERS)
    influx.create_database(name)
    return name


# -- what is expected, and what is there ---------------------------------------------------------

def series_of(flat):
    """disk.reads.sda -> ('disk.reads', {'device': 'sda'})"""
    words = flat.split('.', 2)
    if len(words) < 3 or words[0] not in LABELS:
        return flat, {}
    return '.'.join(words[:2]), {LABELS[words[0]]: words[2]}


def expected(ticks, tags=None, keep=lambda tick, flat: True, known=series_of):
    """Counter of (series, its columns as a set of pairs) for these payloads."""
    out = collections.Counter()
    for tick in ticks:
        identity = {key: tick[key] for key in KEYS}
        for flat, entry in ((flat, entry) for point in tick['points'] for flat, entry in point.items()):
            if keep(tick, flat):
                series, labels = known(flat)
                row = dict(identity, time=int(round(tick['timestamp'] * 1000)), units=entry['units'],
                           value=as_kept(entry['value']))
                out[series, frozenset(dict(dict(row, **(tags or {})), **labels).items())] += 1
    return out


def as_kept(number):
    """The server has whole numbers of 64 bits, and else doubles."""
    return number if -2 ** 63 <= number < 2 ** 63 else float(number)


def rows_of(entry):
    """The points of a series in an answer as such a counter, without the columns that a row leaves empty."""
    rows = (dict(zip(entry['columns'], values)) for values in entry['points'])
    return collections.Counter(
        (entry['name'], frozenset((k, v) for k, v in row.items() if v is not None and k != 'sequence_number'))
        for row in rows)


def stored(influx, database):
    """Counter of all that a database holds."""
    found = influx.query(database, "select * from /.*/ where time > '2000-01-01'")
    return sum((rows_of(entry) for entry in found), collections.Counter())


def names(influx, database):
    """The names of its series, sorted."""
    return sorted(point[-1] for entry in influx.query(database, 'list series') for point in entry['points'])


def holds(influx, database, wanted, settle=0.0, seconds=20):
    """Fails unless the database soon holds exactly what is wanted, and still does `settle` seconds later."""
    last = {}

    def same():
        last['found'] = stored(influx, database)
        return last['found'] == wanted
    try:
        influx.until(same, seconds, 'hold what was sent')
    except AssertionError as error:
        raise AssertionError('%s\n%s' % (difference(last.get('found', collections.Counter()), wanted), error))
    time.sleep(settle)
    assert stored(influx, database) == wanted
    assert names(influx, database) == sorted({series for series, row in wanted})


def difference(found, wanted):
    missing, more = list((wanted - found).elements()), list((found - wanted).elements())
    return 'of %d points %d are missing %s, %d too many %s' % (
        sum(wanted.values()), len(missing), missing[:3], len(more), more[:3])


# -- runs ----------------------------------------------------------------------------------------

def config(folder, url, database, modules=None, identity=None, **more):
    """A configuration file with both emitters. more: options of influxdb08."""
    path = folder / ('statbadger%d.conf' % next(NUMBERS))
    emitter = dict(dict(url=url, database=database, username='root', password='root'), **more)
    path.write_text(json.dumps(dict(IDENTITY if identity is None else identity, modules=modules or ALL,
                                    emitters={'influxdb08': emitter, 'stdout': {}})))
    return str(path)


def no_tick_is_missing(ticks, step):
    """Ticks of step ms each, without a gap."""
    stamps = [int(round(tick['timestamp'] * 1000)) for tick in ticks]
    assert stamps == list(range(stamps[0], stamps[0] + step * len(stamps), step))


# -- every point, and nothing else ---------------------------------------------------------------

@pytest.mark.parametrize('gzip', [True, False])
def test_every_point_arrives_once_with_its_time_value_and_columns(run, influx, database, tmp_path, gzip):
    done = run('-f', config(tmp_path, influx.url, database, gzip=gzip), '-n', 3, '-i', 0.2)
    wanted = expected(finished_well(done, 3))
    assert len(wanted) > 180 and all(count == 1 for count in wanted.values())
    holds(influx, database, wanted)


@pytest.mark.parametrize('name', HOSTS)
def test_a_frozen_host_arrives_as_it_is(run, influx, database, tmp_path, name):
    path = config(tmp_path, influx.url, database, identity={})
    done = run('-f', path, '--replay', os.path.join(FROZEN, name))
    assert done.code == 0 and 'influxdb08' not in done.err
    ticks = payloads(done.out)
    assert len(ticks) >= 2
    holds(influx, database, expected(ticks))


def test_a_series_may_have_rows_with_a_label_and_without(run, influx, database, tmp_path):
    done = run('-f', config(tmp_path, influx.url, database, {'cpu': {'per_core': True}}), '-n', 2, '-i', 0.2)
    wanted = expected(finished_well(done, 2))
    holds(influx, database, wanted)
    cores = collections.Counter(dict(row).get('cpu') for series, row in wanted if series == 'cpu.user')
    assert len(cores) > 1 and None in cores and set(cores.values()) == {2}
    found = influx.query(database, "select value from cpu.user where cpu = 'cpu0'")
    assert len(found[0]['points']) == 2


def test_tags_are_columns_too(run, influx, database, tmp_path):
    tags = {'env': 'prod', 'ra"ck\n': 'a\n"b\'; %s', 'til~de': '', 'Time': 'gr\u00fc\u00df'}
    modules = {'load': {}, 'cpu': {'per_core': True}}
    done = run('-f', config(tmp_path, influx.url, database, modules, tags=tags), '-n', 2, '-i', 0.2)
    holds(influx, database, expected(finished_well(done, 2), tags))


def test_the_blacklist_of_the_sink_and_no_other_is_left_out(run, influx, database, tmp_path):
    blacklist = ['mem.*', 'cpu.[a-i]*', 'load.f?ve', 'cpu.*.cpu0']
    done = run('-f', config(tmp_path, influx.url, database, blacklist=blacklist), '-n', 2, '-i', 0.2)
    ticks = finished_well(done, 2)

    def kept(tick, flat):
        return not re.match(r'mem\.|cpu\.[a-i]|load\.f.ve$|cpu\..*\.cpu0$', flat)
    wanted = expected(ticks, keep=kept)
    assert {'load.one', 'cpu.user', 'cpu.system'} <= {series for series, row in wanted}
    assert len(wanted) < len(expected(ticks))
    holds(influx, database, wanted)


def test_an_interval_of_its_own_gives_the_ticks_on_its_multiples_only(run, influx, database, tmp_path):
    done = run('-f', config(tmp_path, influx.url, database, LOAD, interval=1), '-n', 5, '-i', 0.5)
    wanted = expected(finished_well(done, 5), keep=lambda tick, flat: tick['timestamp'] % 1 == 0)
    assert len(wanted) in (10, 15)
    holds(influx, database, wanted)


def test_one_host_does_not_overwrite_another(run, influx, database, tmp_path):
    wanted = collections.Counter()
    for host in ('n1', 'n2'):
        done = run('-f', config(tmp_path, influx.url, database, identity={'hostname': host}),
                   '--replay', os.path.join(FROZEN, 'linux-6.18'))
        assert done.code == 0
        wanted += expected(payloads(done.out))
    holds(influx, database, wanted)
    stamps = {}
    for series, row in wanted:
        stamps.setdefault(dict(row)['hostname'], set()).add(dict(row)['time'])
    assert sorted(stamps) == ['n1', 'n2'] and stamps['n1'] == stamps['n2'] and len(stamps['n1']) > 1


def test_the_same_ticks_from_two_agents_are_there_once(run, influx, database, tmp_path):
    path = config(tmp_path, influx.url, database, identity={'hostname': 'n1'})
    done = [run('-f', path, '--replay', os.path.join(FROZEN, 'linux-6.18')) for _ in range(2)]
    assert [one.code for one in done] == [0, 0] and done[0].out == done[1].out
    holds(influx, database, expected(payloads(done[0].out)), settle=0.5)


# -- names that mean harm ------------------------------------------------------------------------

# What the kernel lets an interface be called: anything but blanks, / and :
INTERFACES = [b'eth0.100', b'q"uo\'te', b'back\\slash', b'semi;colon=1', b'per%d%s%', b'x{y="z"}', b'~tilde',
              b'a~b', b'*glob?[a]', b'....', b'nan', b'-', b'null', b'#!<&>|', b'$(reboot)`', b'"]]}],',
              b'ctl\x01\x1c\x7f', 'gr\u00fc\u00df'.encode(), 'ls\u2028\u0085x'.encode(), b'by\xff\xfe\x80']
DEVICES = [b'cciss/c0d0', b'odd!disk', b'q"uo\'te', b'semi;colon', b'a%s', b'back\\', b'~', b'/re.*/',
           'k\u00fch'.encode(), b'\xf0\x9f\x92\xbe']


def hostile_recording(folder):
    return hostile_host(folder, INTERFACES, DEVICES, b'h;"o\\\n')


def test_interfaces_and_disks_with_hostile_names_are_the_ones_meant(run, influx, database, tmp_path):
    modules = {'network': {'interfaces': ['*']}, 'disk': {'devices': ['*'], 'partitions': True}}
    identity = {'cluster': 'a\nb"c\\', 'zone': "'; drop series load.one", 'region': '%s \x01\x7f\u2028'}
    path = config(tmp_path, influx.url, database, modules, identity)
    done = run('-f', path, '--replay', hostile_recording(tmp_path))
    wanted = expected(finished_well(done, 3))
    holds(influx, database, wanted)
    for label, known in (('interface', INTERFACES), ('device', DEVICES)):
        rows = [dict(row) for series, row in wanted if label in dict(row)]
        assert {row[label] for row in rows} == {name.decode('utf-8', 'replace') for name in known}
        assert len(rows) % (3 * len(known)) == 0
    assert {(row['hostname'], row['cluster'], row['zone']) for row in rows} == {
        ('h;"o\\', 'a\nb"c\\', "'; drop series load.one")}


SERIES = ['a', 'x y', 'q"uo\'te.z', '/re.*/', 'semi;colon,x=1', 'new\nline', 'back\\', 'gr\u00fc\u00df',
          '%d%s.%', 'tab\t', 'l\u2028s', '*', 'select * from a', 'nul\0l', '\x01\x02\x03', 'a~b', '~',
          'a.b.c.d', '\U0001f4be', '"]]}],', 'null']
NUMERALS = [0, -1, 2 ** 53 + 1, 2 ** 63 - 1, -2 ** 63, 0.1, -0.25, 1e308, 1e22, 1e-300]
OWN = '''
class own:
    def __init__(self, config, logger):
        pass

    def get_stats(self, iteration):
        return [{name: {'value': value, 'units': 'u"\\n'} for name, value in %s}]
'''


def own_module(folder, points):
    """The module of a user that gives these (name, value)."""
    file = folder / 'own.py'
    file.write_text(OWN % ascii(points))
    return {'file': str(file)}


def test_series_of_ones_own_with_hostile_names_are_the_ones_meant(run, influx, database, tmp_path):
    points = list(zip(SERIES, itertools.cycle(NUMERALS)))
    modules = {'own': own_module(tmp_path, points), 'load': {}}
    done = run('-f', config(tmp_path, influx.url, database, modules), '-n', 2, '-i', 0.2)
    holds(influx, database, expected(finished_well(done, 2), known=lambda flat: (flat, {})))
    found = {series: dict(row)['value'] for series, row in stored(influx, database)}
    assert {series: found[series] for series, _ in points} == dict(points)


def test_a_series_that_is_all_dots_takes_no_other_along(run, influx, database, tmp_path):
    modules = {'own': own_module(tmp_path, [('.', 1), ('a.', 2), ('.a', 3), ('a', 4)]), 'load': {}}
    done = run('-f', config(tmp_path, influx.url, database, modules), '-n', 2, '-i', 0.2)
    found = [flat for point in payloads(done.out)[0]['points'] for flat in point]
    assert 'load.one' in found and len(found) == len(set(found))
    holds(influx, database, expected(payloads(done.out), known=lambda flat: (flat, {})), seconds=5)


# -- who may write -------------------------------------------------------------------------------

@pytest.mark.parametrize('root', [True, False])
def test_names_and_passwords_with_special_characters(run, influx, tmp_path, root):
    database, user, password = 'my data=&+;?#\u00e4-%d' % root, 'w &=+;?#\u00e4/', 'p &=%+;?#\u00e4/%41"'
    influx.create_database(database)
    login = {'username': user, 'password': password}
    if root:
        influx.request('/cluster_admins', influx.login(), {'name': user, 'password': password})
    else:
        influx.create_user(database, user, password)
    done = run('-f', config(tmp_path, influx.url, database, LOAD, **login), '-n', 2, '-i', 0.2)
    holds(influx, database, expected(finished_well(done, 2)))
    assert influx.query(database, 'select * from load.one', user, password)[0]['points']


def refusals():
    """name -> (options, what is said)"""
    wrong, reader = {'password': 'wrong-secret'}, {'username': 'reader', 'password': 'reader-secret'}
    unknown = 'HTTP 401: Invalid username/password'
    return {
        'wrong password': (wrong, unknown),
        'unknown user': (dict(wrong, username='nobody'), unknown),
        'wrong password of a user': (dict(wrong, username='reader'), unknown),
        'no login': ({'username': '', 'password': ''}, 'HTTP 401: Invalid database/username/password'),
        'no database': ({'database': 'no such "one"'}, 'there is no database "no such \\"one\\""'),
        'no database for that user': (dict(reader, database='no such one'), unknown),
        'not to be written': (reader, "HTTP 403: User reader doesn't have write permissions for load.one")}


@pytest.mark.parametrize('name', sorted(refusals()))
def test_a_refusal_is_said_once_and_the_end_is_not_put_off(run, influx, database, tmp_path, name):
    influx.request(below(database, 'users'), influx.login(),
                   {'name': 'reader', 'password': 'reader-secret', 'readFrom': '.*', 'writeTo': '^$'})
    options, reason = refusals()[name]
    done = run('-f', config(tmp_path, influx.url, **dict(dict(database=database, modules=LOAD), **options)),
               '-n', 2, '-i', 0.2)
    assert done.code == 1 and done.seconds < 6 and len(payloads(done.out)) == 2
    lines = done.err.split('\n')
    assert len(lines) == 3 and lines[2] == '', done.err
    assert lines[0].endswith(' statbadger warning: influxdb08: ' + reason)
    assert lines[1] == 'statbadger: influxdb08: 2 of 2 ticks were not delivered: ' + reason
    assert 'secret' not in done.out + done.err
    assert not stored(influx, database)


def test_a_database_made_late_gets_what_comes_after_a_new_start(run, influx, database, tmp_path):
    late = database + ' late'
    path = config(tmp_path, influx.url, late, LOAD)
    assert run('-f', path, '-n', 1, '-i', 0.2).code == 1
    influx.create_database(late)
    holds(influx, late, expected(finished_well(run('-f', path, '-n', 1, '-i', 0.2), 1)))


# -- a server that comes and goes ----------------------------------------------------------------

def test_a_server_that_starts_late_misses_nothing(agent, influx, database, tmp_path):
    influx.stop()
    process = live(agent, tmp_path, '-f', config(tmp_path, influx.url, database), '-n', 14, '-i', 0.5)
    until_ticks(tmp_path, 3)
    influx.start()
    code, ticks, errors = ended(process, tmp_path)
    assert (code, len(ticks)) == (0, 14), errors
    assert errors.count('\n') == 2 and errors.count('; the ticks wait') == 1, errors
    assert errors.count('influxdb08: delivers again') == 1, errors
    no_tick_is_missing(ticks, 500)
    holds(influx, database, expected(ticks), settle=0.3)


@pytest.mark.parametrize('way', ['killed', 'stopped'])
def test_a_server_that_is_restarted_has_every_tick_once(agent, influx, database, tmp_path, way):
    process = live(agent, tmp_path, '-f', config(tmp_path, influx.url, database), '-n', 50, '-i', 0.1)
    until_ticks(tmp_path, 20)
    (influx.kill if way == 'killed' else influx.stop)()
    until_ticks(tmp_path, 30)
    influx.start()
    code, ticks, errors = ended(process, tmp_path)
    assert (code, len(ticks)) == (0, 50), errors
    assert errors.count('warning') == 1 and errors.count('influxdb08: delivers again') == 1, errors
    holds(influx, database, expected(ticks), settle=0.3)


def test_a_connection_that_the_server_closes_for_idleness_is_no_trouble(run, influx, database, tmp_path):
    with Proxy(influx.port) as proxy:
        url = 'http://127.0.0.1:%d' % proxy.port
        done = run('-f', config(tmp_path, url, database, LOAD), '-n', 2, '-i', 6)
        assert proxy.connections == 2           # the first one was closed after 5 s
    holds(influx, database, expected(finished_well(done, 2)))


@pytest.mark.parametrize('n,reset', [(0, False), (0, True), (20, False)])
def test_a_batch_whose_answer_was_lost_is_there_once(run, influx, database, tmp_path, n, reset):
    with Proxy(influx.port) as proxy:
        proxy.cut_answers(n, reset=reset, times=1)
        done = run('-f', config(tmp_path, 'http://127.0.0.1:%d' % proxy.port, database), '-n', 3, '-i', 0.2)
        assert proxy.cuts == 1 and proxy.connections == 2
    assert done.code == 0 and done.err.count('warning') <= 1, done.err
    ticks = payloads(done.out)
    assert len(ticks) == 3
    holds(influx, database, expected(ticks), settle=0.5)


class Relay(HttpStandin):
    """Hands every request on to the server and its answer back; .requests has them all."""

    def __init__(self, url):
        self.url = url
        HttpStandin.__init__(self)

    def reply(self, request):
        headers = {k: v for k, v in request.headers.items() if k.startswith('content-')}
        onward = urllib.request.Request(self.url + request.path, request.raw, headers)
        try:
            with urllib.request.urlopen(onward, timeout=PATIENCE) as answer:
                return answer.status, {}, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, {}, error.read()


def sent_ticks(relay):
    """How many times each request that was answered carried."""
    return [len({point[0] for entry in json.loads(request.body.decode()) for point in entry['points']})
            for request in relay.requests]


@pytest.fixture
def relay(influx):
    with Relay(influx.url) as standin:
        yield standin
        assert not standin.complaints


@pytest.mark.parametrize('batch', [100, 7])
def test_what_has_waited_comes_in_few_requests(agent, influx, database, relay, tmp_path, batch):
    relay.down()
    path = config(tmp_path, 'http://127.0.0.1:%d' % relay.port, database, LOAD, batch=batch)
    process = live(agent, tmp_path, '-f', path, '-n', 40, '-i', 0.05)
    until_ticks(tmp_path, 40)
    relay.up()
    code, ticks, errors = ended(process, tmp_path)
    assert (code, len(ticks)) == (0, 40), errors
    # The batch that could not be sent stays as it was: one tick, or a few.
    sent = sent_ticks(relay)
    assert sum(sent) == 40 and max(sent) <= batch and len(sent) <= -(-40 // batch) + 1, sent
    holds(influx, database, expected(ticks))


def test_flush_sends_late_and_together_but_leaves_nothing_out(run, influx, database, relay, tmp_path):
    path = config(tmp_path, 'http://127.0.0.1:%d' % relay.port, database, LOAD, flush=2)
    ticks = finished_well(run('-f', path, '-n', 16, '-i', 0.25), 16)
    sent = sent_ticks(relay)
    assert sum(sent) == 16 and len(sent) <= 4 and max(sent) > 5, sent
    holds(influx, database, expected(ticks))


@pytest.mark.parametrize('gzip', [True, False])
def test_gzip_is_used_when_it_is_wanted(run, influx, database, relay, tmp_path, gzip):
    path = config(tmp_path, 'http://127.0.0.1:%d' % relay.port, database, gzip=gzip)
    ticks = finished_well(run('-f', path, '-n', 2, '-i', 0.2), 2)
    used = {request.headers.get('content-encoding') for request in relay.requests}
    assert used == {'gzip' if gzip else None}
    assert {request.connection for request in relay.requests} == {0}
    holds(influx, database, expected(ticks))


# -- HTTPS ---------------------------------------------------------------------------------------

def test_https_with_a_server_of_that_ca(run, influx, database, certs, tmp_path):
    done = run('-f', config(tmp_path, influx.https_url, database, tls_ca=certs.ca), '-n', 2, '-i', 0.2)
    holds(influx, database, expected(finished_well(done, 2)))


@pytest.mark.parametrize('ca', ['other', 'system'])
def test_a_server_of_another_ca_gets_nothing(run, influx, database, certs, tmp_path, ca):
    options = {'tls_ca': certs.other_ca} if ca == 'other' else {}
    done = run('-f', config(tmp_path, influx.https_url, database, LOAD, **options), '-n', 2, '-i', 0.2)
    assert done.code == 1 and done.seconds < 6
    assert done.err.count('\n') == 2, done.err
    assert done.err.count('influxdb08: the certificate of the peer is refused: ') == 1, done.err
    assert not stored(influx, database) and not names(influx, database)


def test_any_certificate_will_do_where_that_is_wanted(run, influx, database, tmp_path):
    done = run('-f', config(tmp_path, influx.https_url, database, LOAD, tls_verify=False), '-n', 1, '-i', 0.2)
    holds(influx, database, expected(payloads(done.out)))
    assert done.code == 0


# -- through a proxy -----------------------------------------------------------------------------

TINYPROXY = """\
Port {port}
Listen 127.0.0.1
Allow 127.0.0.1
Timeout 60
MaxClients 20
LogLevel Connect
LogFile "{folder}/requests"
PidFile "{folder}/pid"
BasicAuth prox_user prox_secret
"""


class Tinyproxy(Peer):
    """A tinyproxy that wants a name and a password."""

    def __init__(self, folder):
        program = require(command('tinyproxy'), 'tinyproxy', 'not installed (Debian: tinyproxy)')
        self.port, self.requests = free_port(), folder / 'requests'
        (folder / 'tinyproxy.conf').write_text(TINYPROXY.format(port=self.port, folder=folder))
        Peer.__init__(self, 'tinyproxy', [program, '-d', '-c', str(folder / 'tinyproxy.conf')], folder,
                      lambda: accepts(self.port))

    def url(self, login='prox_user:prox_secret@'):
        return 'http://%s127.0.0.1:%d' % (login, self.port)

    def seen(self):
        return self.requests.read_text()


@pytest.fixture(scope='module')
def tinyproxy(tmp_path_factory):
    with Tinyproxy(tmp_path_factory.mktemp('tinyproxy')) as peer:
        yield peer


def places(influx, certs):
    """scheme -> (url, options that go with it)"""
    return {'http': (influx.url, {}), 'https': (influx.https_url, {'tls_ca': certs.ca})}


@pytest.mark.parametrize('scheme', ['http', 'https'])
def test_through_a_proxy_that_wants_a_password(run, influx, database, tinyproxy, certs, tmp_path, scheme):
    url, more = places(influx, certs)[scheme]
    before = len(tinyproxy.seen())
    done = run('-f', config(tmp_path, url, database, proxy=tinyproxy.url(), **more), '-n', 2, '-i', 0.2)
    holds(influx, database, expected(finished_well(done, 2)))
    seen = tinyproxy.seen()[before:]
    assert ('): CONNECT 127.0.0.1:%d ' % influx.https_port in seen) == (scheme == 'https')
    assert ('): POST http://127.0.0.1:%d/db/' % influx.port in seen) == (scheme == 'http')


@pytest.mark.parametrize('scheme', ['http', 'https'])
@pytest.mark.parametrize('login', ['prox_user:not_so_secret@', ''])
def test_a_proxy_that_refuses_is_said_once(run, influx, database, tinyproxy, certs, tmp_path, scheme, login):
    url, more = places(influx, certs)[scheme]
    path = config(tmp_path, url, database, LOAD, proxy=tinyproxy.url(login), **more)
    done = run('-f', path, '-n', 2, '-i', 0.2)
    assert done.code == 1
    lines = done.err.split('\n')
    assert len(lines) == 3 and lines[2] == '', done.err
    # tinyproxy says 407 when it got no password, and 401 when it got a wrong one.
    assert 'warning: influxdb08: ' in lines[0] and ('401' if login else '407') in lines[0], done.err
    assert lines[0].split('influxdb08: ')[1] == lines[1].split('not delivered: ')[1]
    assert 'secret' not in done.out + done.err
    assert not stored(influx, database)
    assert done.seconds < 6


def test_proxies_of_the_environment_are_not_used(run, influx, database, certs, tmp_path):
    nowhere = 'http://127.0.0.1:%d' % free_port()
    variables = ('http_proxy', 'https_proxy', 'all_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY')
    environment = dict({name: nowhere for name in variables}, no_proxy='', NO_PROXY='')
    ticks = []
    for url, more in (places(influx, certs)[scheme] for scheme in ('http', 'https')):
        done = run('-f', config(tmp_path, url, database, LOAD, **more), '-n', 1, '-i', 0.2, env=environment)
        ticks += finished_well(done, 1)
    assert ticks[0]['timestamp'] < ticks[1]['timestamp']
    holds(influx, database, expected(ticks))
