"""A real Druid 33 is written to by the program, in tasks and through Kafka, and asked in SQL what it holds then.

What is expected comes from the `stdout` emitter of the same run: same points, same times, same numbers, nothing else.
"""
import calendar
import collections
import itertools
import json
import os
import subprocess
import sys
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import pytest
import statbadger
from conftest import PROGRAM, TESTS, clean_environment
from druid_server import Druid
from kafka_broker import USERS, Certificates, KafkaBroker
from peer import ended, finished_well, free_port, live, payloads, until_ticks
from rig import Rig
from standins import Proxy
from test_influxdb08_peer import DEVICES, IDENTITY, INTERFACES, hostile_recording, own_module, series_of

FROZEN = os.path.join(TESTS, 'hosts')
HOSTS = sorted(name for name in os.listdir(FROZEN) if os.path.isdir(os.path.join(FROZEN, name)))
ALL = {'cpu': {'per_core': True}, 'load': {}, 'disk': {'devices': ['*'], 'partitions': True},
       'network': {'interfaces': ['*']}, 'memory': {}, 'system': {}}
LOAD = {'load': {}}
NUMBERS = itertools.count()
JAAS = 'org.apache.kafka.common.security.scram.ScramLoginModule required username="alice" password="%s";'


@pytest.fixture(scope='module')
def tls(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp('tls') / 'good')


@pytest.fixture(scope='module')
def shared(tmp_path_factory, tls):
    """One for all tests: a start takes half a minute."""
    environment = {'KAFKA_SASL_JAAS_CONFIG': JAAS % USERS['alice']}
    with Druid(tmp_path_factory.mktemp('druid'), tls, environment) as peer:
        yield peer


@pytest.fixture
def druid(shared):
    """All of it running, whatever the test before did to it."""
    return shared.repair()


@pytest.fixture
def datasource():
    """A name of the test's own."""
    return 'test%d' % next(NUMBERS)


# -- what is expected, and what is there ---------------------------------------------------------

def expected(ticks, tags=None, keep=lambda tick, flat: True, known=series_of):
    """Counter of the rows, each a set of pairs, for these payloads."""
    out = collections.Counter()
    for tick in ticks:
        identity = {key: tick[key] for key in IDENTITY}
        for flat, entry in ((flat, entry) for point in tick['points'] for flat, entry in point.items()):
            if keep(tick, flat):
                metric, labels = known(flat)
                row = dict(identity, time=int(round(tick['timestamp'] * 1000)), metric=metric,
                           units=entry['units'], value=float(entry['value']), **labels)
                out[frozenset(dict(row, **(tags or {})).items())] += 1
    return out


def as_row(found):
    """A row as SQL shows it, as such a set."""
    row = dict(found)
    head, _, rest = row.pop('__time').partition('.')
    row['time'] = calendar.timegm(time.strptime(head, '%Y-%m-%dT%H:%M:%S')) * 1000 + int(rest[:-1])
    return frozenset(row.items())


def stored(druid, datasource):
    return collections.Counter(map(as_row, druid.rows(datasource)))


def holds(druid, datasource, wanted, seconds=90):
    """Fails unless the datasource soon holds exactly what is wanted, and still does a moment later."""
    end = time.monotonic() + seconds
    while stored(druid, datasource) != wanted:
        if time.monotonic() > end:
            found = stored(druid, datasource)
            missing, more = list((wanted - found).elements()), list((found - wanted).elements())
            raise AssertionError('of %d rows %d are missing %s, %d too many %s; tasks %s' % (
                sum(wanted.values()), len(missing), missing[:2], len(more), more[:2], druid.tasks(datasource)))
        time.sleep(0.2)
    time.sleep(0.5)
    assert stored(druid, datasource) == wanted


# -- runs ----------------------------------------------------------------------------------------

def config(folder, url, datasource, modules=None, identity=None, others=None, **more):
    """A configuration file with both emitters. more: options of druid."""
    path = folder / ('statbadger%d.conf' % next(NUMBERS))
    emitters = dict({'druid': dict({'url': url, 'datasource': datasource}, **more), 'stdout': {}}, **(others or {}))
    path.write_text(json.dumps(dict(IDENTITY if identity is None else identity, modules=modules or ALL,
                                    emitters=emitters)))
    return str(path)


def program(*args):
    """(exit code, payloads, errors) of a run of its own, for threads."""
    done = subprocess.run([sys.executable, PROGRAM] + [str(arg) for arg in args], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(), timeout=150)
    return done.returncode, payloads(done.stdout.decode()), done.stderr.decode()


def went_well(druid, datasource, tasks=None):
    """The tasks of a datasource, which have all succeeded."""
    found = druid.tasks(datasource)
    assert {task['statusCode'] for task in found} == {'SUCCESS'}, found
    assert tasks is None or len(found) == tasks, found
    return found


# -- every point, and nothing else ---------------------------------------------------------------

@pytest.fixture(scope='module')
def frozen(shared, tmp_path_factory):
    """{name: the payloads of that frozen host, which is in a datasource of its name}"""
    folder = tmp_path_factory.mktemp('frozen')
    paths = {name: config(folder, shared.url, name, identity={}) for name in HOSTS}
    with ThreadPoolExecutor(3) as pool:
        done = dict(zip(HOSTS, pool.map(
            lambda name: program('-f', paths[name], '--replay', os.path.join(FROZEN, name)), HOSTS)))
    assert all(code == 0 and 'druid: ' not in err for code, ticks, err in done.values()), [
        err for code, ticks, err in done.values()]
    return {name: ticks for name, (code, ticks, err) in done.items()}


@pytest.mark.parametrize('name', HOSTS)
def test_a_frozen_host_arrives_as_it_is(druid, frozen, name):
    assert len(frozen[name]) >= 2
    holds(druid, name, expected(frozen[name]))
    went_well(druid, name, 1)


def test_every_point_arrives_once_with_its_time_value_and_columns(run, druid, datasource, tmp_path):
    done = run('-f', config(tmp_path, druid.url, datasource, gzip=False), '-n', 5, '-i', 0.15)
    ticks = finished_well(done, 5)
    assert {round(tick['timestamp'] * 1000) % 150 for tick in ticks} == {0}
    assert len({tick['timestamp'] % 1 for tick in ticks}) > 1
    holds(druid, datasource, expected(ticks))
    went_well(druid, datasource, 1)
    columns = druid.columns(datasource)
    assert columns.pop('__time') == 'TIMESTAMP' and columns.pop('value') == 'DOUBLE'
    assert set(columns.values()) == {'VARCHAR'}
    found = druid.sql('SELECT MAX("value") AS "most" FROM "%s" WHERE metric = ?' % datasource, 'mem.memtotal')
    assert found == [{'most': ticks[0]['points'][[list(p)[0] for p in ticks[0]['points']].index('mem.memtotal')]
                      ['mem.memtotal']['value']}]


def test_tags_are_columns_too_and_what_is_blacklisted_is_not_there(run, druid, datasource, tmp_path):
    tags = {'env': 'prod', 'ra"ck \\': 'a\n"b\'; %s', 'til~de.x': '', 'Metric': 'gr\u00fc\u00df', '%d': '\U0001f4be,'}
    path = config(tmp_path, druid.url, datasource, tags=tags, blacklist=['mem.*', 'cpu.*.cpu0'], batch=1, flush=0,
                  headers={'X-Scope': 'a'}, timeout=30, interval=0.5)
    done = run('-f', path, '-n', 4, '-i', 0.25)
    ticks = finished_well(done, 4)

    def kept(tick, flat):
        return tick['timestamp'] % 0.5 == 0 and not flat.startswith('mem.') and not flat.endswith('.cpu0')
    wanted = expected(ticks, tags, kept)
    assert len(wanted) < len(expected(ticks)) / 2
    holds(druid, datasource, wanted)
    went_well(druid, datasource, 2)


SERIES = ['a', 'x y', 'q"uo\'te.z', 'semi;colon,x=1', 'new\nline', 'back\\', 'gr\u00fc\u00df', '%d%s.%', 'tab\t',
          'l\u2028s', 'nul\0l', '\x01\x02\x03', '\U0001f4be', '"]]}],', 'null', '"value": nan,', 'x' * 5000]
NUMERALS = [0, -1, 2 ** 53 + 1, 2 ** 63 - 1, -2 ** 63, 0.1, -0.25, 1e308, 1e22, 1e-300, 5, 5.0]


def test_hostile_names_of_everything_are_the_ones_meant(run, druid, tmp_path):
    name = 'od,d \u00fc:%2F?#&"\'\\' + str(next(NUMBERS))
    modules = {'network': {'interfaces': ['*']}, 'disk': {'devices': ['*'], 'partitions': True}}
    identity = {'cluster': 'a\nb"c\\', 'zone': "'; drop", 'region': '%s \x01\x7f\u2028'}
    path = config(tmp_path, druid.url, name, modules, identity)
    done = run('-f', path, '--replay', hostile_recording(tmp_path))
    wanted = expected(finished_well(done, 3))
    for label, known in (('interface', INTERFACES), ('device', DEVICES)):
        assert {dict(row).get(label) for row in wanted} - {None} == {n.decode('utf-8', 'replace') for n in known}
    holds(druid, name, wanted)


def test_metrics_of_ones_own_with_hostile_names_and_large_numbers(run, druid, datasource, tmp_path):
    points = list(zip(SERIES, itertools.cycle(NUMERALS)))
    modules = {'own': own_module(tmp_path, points), 'load': {}}
    done = run('-f', config(tmp_path, druid.url, datasource, modules), '-n', 2, '-i', 0.2)
    holds(druid, datasource, expected(finished_well(done, 2), known=lambda flat: (flat, {})))


def test_whole_numbers_in_one_task_and_fractions_in_the_next_make_one_column_of_doubles(druid, datasource, tmp_path):
    wanted = collections.Counter()
    for value in (7, 0.5, 8):
        modules = {'own': own_module(tmp_path, [('m', value)])}
        code, ticks, err = program('-f', config(tmp_path, druid.url, datasource, modules), '-n', 1, '-i', 0.1)
        assert (code, err) == (0, '')
        wanted += expected(ticks)
    holds(druid, datasource, wanted)
    assert druid.sql('SELECT SUM("value") AS "sum" FROM "%s"' % datasource) == [{'sum': 15.5}]


# -- several hosts, many ticks -------------------------------------------------------------------

def test_hosts_that_write_at_the_same_time_do_not_keep_each_other_out(druid, datasource, tmp_path):
    paths = [config(tmp_path, druid.url, datasource, identity=dict(IDENTITY, hostname='n%d' % n), flush=0.4)
             for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda path: program('-f', path, '-n', 8, '-i', 0.2), paths))
    assert [(code, err) for code, ticks, err in done] == [(0, '')] * 4
    holds(druid, datasource, sum((expected(ticks) for code, ticks, err in done), collections.Counter()))
    assert len(went_well(druid, datasource)) >= 8


def wide(points, word='x'):
    """A layout of so many series of 250 bytes a row."""
    return statbadger.Layout(tuple(
        statbadger.Series('t', '%s%06d' % (word * 5, i), '', statbadger.GAUGE, (), ()) for i in range(points)))


def counted(druid, datasource):
    """{tick: rows} of what a Rig has sent: its values are the number of the tick."""
    try:
        rows = druid.sql('SELECT "value", COUNT(*) AS n, MIN(__time) AS t, MAX(__time) AS u FROM "%s" GROUP BY 1 '
                         'LIMIT 10000' % datasource)
        twice = druid.sql('SELECT "value", metric FROM "%s" GROUP BY 1, 2 HAVING COUNT(*) > 1 LIMIT 9' % datasource)
    except urllib.error.HTTPError as error:
        assert 'not found' in error.msg
        return {}
    assert twice == [] and all(row['t'] == row['u'] for row in rows), rows
    return {int(row['value']): row['n'] for row in rows}


def test_a_batch_of_many_bytes_goes_in_several_tasks(druid, datasource):
    layout = wide(3000)
    with Rig('druid', url=druid.url, datasource=datasource, timeout=60, flush=3600) as rig:
        rig.tick(*range(1, 13), layout=layout)
        rig.spool.hurry()
        assert rig.settled(90)['acknowledged'] == 12
    druid.until(lambda: counted(druid, datasource) == dict.fromkeys(range(1, 13), 3000), 'hold them')
    assert 2 <= len(went_well(druid, datasource)) <= 4


# -- what goes wrong -----------------------------------------------------------------------------

def test_a_task_whose_answer_was_lost_is_posted_again_and_stored_once(druid, datasource):
    with Proxy(druid.ports['coordinator']) as proxy, Rig(
            'druid', url='http://127.0.0.1:%d' % proxy.port, datasource=datasource, timeout=20, flush=0) as rig:
        for number, n in enumerate((0, 1, 20, 150, 200, 300, 400, 500), 1):
            proxy.throw(times=1, reset=bool(number % 2), answers=n)
            rig.tick(number)
            assert rig.settled(60)['acknowledged'] == number
            proxy.pass_all()
    druid.until(lambda: counted(druid, datasource) == dict.fromkeys(range(1, 9), 3), 'hold them')
    went_well(druid, datasource, 8)


def test_a_task_that_somebody_ends_goes_again_under_another_name(druid, datasource):
    druid.services['indexer'].freeze()
    with Rig('druid', url=druid.url, datasource=datasource, timeout=60, flush=0) as rig:
        rig.tick(1)
        task = druid.until(lambda: druid.tasks(datasource), 'have a task')[0]
        druid.ask('/druid/indexer/v1/task/%s/shutdown' % task['id'], {})
        druid.until(lambda: len(druid.tasks(datasource)) == 2, 'have another task')
        druid.services['indexer'].thaw()
        assert rig.settled(60)['acknowledged'] == 1
        assert 'Shutdown request from user' in rig.said()
    druid.until(lambda: counted(druid, datasource) == {1: 3}, 'hold it')
    states = sorted((one['id'][-2:], one['statusCode']) for one in druid.tasks(datasource))
    assert states == [('_0', 'FAILED'), ('_1', 'SUCCESS')]


def test_a_task_that_waits_for_a_worker_is_waited_for_and_posted_once(druid, datasource):
    druid.services['indexer'].freeze()
    with Rig('druid', url=druid.url, datasource=datasource, timeout=1, flush=0) as rig:
        rig.tick(1)
        rig.until(lambda: 'has not ended within 1 s: it is PENDING' in rig.said(), 30)
        rig.tick(2)
        rig.until(lambda: rig.sender.failures > 2, 30)
        druid.services['indexer'].thaw()
        assert rig.settled(60)['acknowledged'] == 2
    druid.until(lambda: counted(druid, datasource) == {1: 3, 2: 3}, 'hold them')
    went_well(druid, datasource, 2)


def test_a_tick_that_is_too_large_for_the_overlord_is_quarantined_and_all_others_are_stored(druid, datasource):
    huge = wide(24000)
    with Rig('druid', most=1 << 26, url=druid.url, datasource=datasource, timeout=60, flush=3600, batch=9) as rig:
        for number in range(1, 8):
            rig.tick(number, layout=huge if number == 3 else wide(5))
        rig.spool.hurry()
        count = rig.settled(120)
        assert (count['acknowledged'], count['quarantined'], count['refused_points']) == (6, 1, 24000)
        assert 'more than the overlord takes' in rig.said()
    druid.until(lambda: counted(druid, datasource) == {n: 5 for n in range(1, 8) if n != 3}, 'hold them')


def test_rows_that_do_not_parse_are_quarantined_and_all_others_are_stored(druid, datasource):
    with Rig('druid', url=druid.url, datasource=datasource, timeout=60, flush=3600) as rig:
        for number in range(1, 6):
            rig.tick(number, time_ms=9 * 10 ** 19 if number == 2 else 1700000000000 + number)
        rig.spool.hurry()
        count = rig.settled(120)
        assert (count['acknowledged'], count['quarantined'], count['refused_points']) == (4, 1, 3)
        assert 'Max parse exceptions[0] exceeded' in rig.said()
    druid.until(lambda: counted(druid, datasource) == {n: 3 for n in (1, 3, 4, 5)}, 'hold them')


def test_who_is_no_overlord_is_told_from_one_and_gets_no_tick(druid, datasource):
    for port, words in ((druid.ports['broker'], 'HTTP 404'), (druid.ports['zookeeper'], '')):
        with Rig('druid', url='http://127.0.0.1:%d' % port, datasource=datasource, timeout=2, flush=0) as rig:
            rig.tick(1)
            rig.until(lambda: rig.sender.failures, 30)
            assert words in rig.said() and rig.cursor.count['dropped'] == 0
            rig.sender.abandon('that is all')


def test_the_router_leads_to_the_overlord_over_tls_to_those_with_a_certificate(druid, datasource, tls, run, tmp_path):
    own = {'tls_cert': tls.client[0], 'tls_key': tls.client[1]}
    done = run('-f', config(tmp_path, druid.https_url, datasource, LOAD, tls_ca=tls.ca, **own), '-n', 2, '-i', 0.2)
    wanted = expected(finished_well(done, 2))
    for values, words in (({'tls_ca': tls.ca}, 'certificate'), (own, 'the certificate of the peer is refused')):
        path = config(tmp_path, druid.https_url, datasource, LOAD, timeout=5, **values)
        done = run('-f', path, '-n', 2, '-i', 0.2, timeout=60)
        assert done.code == 1 and words in done.err, done.err
    plain = 'http://127.0.0.1:%d' % druid.ports['router']
    done = run('-f', config(tmp_path, plain, datasource, LOAD), '-n', 2, '-i', 0.2)
    wanted += expected(finished_well(done, 2))
    holds(druid, datasource, wanted)


@pytest.mark.parametrize('name', ['indexer', 'coordinator'])
def test_nothing_is_lost_or_doubled_when_a_service_is_killed_and_comes_back(druid, datasource, agent, tmp_path, name):
    path = config(tmp_path, druid.url, datasource, LOAD, flush=0.5, timeout=100)
    process = live(agent, tmp_path, '-f', path, '-n', 60, '-i', 0.1)
    until_ticks(tmp_path, 12)
    service = druid.services[name]
    druid.until(lambda: any(t['statusCode'] == 'RUNNING' for t in druid.tasks(datasource)), 'have one under way')
    service.kill()
    until_ticks(tmp_path, 40)
    service.start()
    code, ticks, err = ended(process, tmp_path, 150)
    assert code == 0 and len(ticks) == 60, err
    holds(druid, datasource, expected(ticks))


def test_what_was_sent_when_the_overlord_was_away_is_there_when_it_is_back(druid, datasource, agent, tmp_path):
    port = free_port()
    path = config(tmp_path, 'http://127.0.0.1:%d' % port, datasource, LOAD, flush=1)
    process = live(agent, tmp_path, '-f', path, '-n', 20, '-i', 0.1)
    until_ticks(tmp_path, 15)
    with Proxy(druid.ports['coordinator']) as proxy:
        # The port of the configuration is given to a proxy of our own only now.
        proxy.refuse()
        proxy.held.close()
        proxy.port, proxy.held = port, proxy.bound(port)
        proxy.up()
        code, ticks, err = ended(process, tmp_path, 150)
    assert code == 0 and 'refused' in err, err
    holds(druid, datasource, expected(ticks))


# -- through Kafka -------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def broker(tmp_path_factory, tls):
    with KafkaBroker(tmp_path_factory.mktemp('kafka'), '3.9.2', tls=tls) as peer:
        yield peer


def printed(run, path, *arguments):
    done = run('-f', path, '--print-druid-supervisor', *arguments)
    assert (done.code, done.err) == (0, '')
    return json.loads(done.out)


@pytest.mark.parametrize('login', [False, True], ids=['plain', 'tls-scram'])
def test_a_supervisor_as_printed_reads_what_kafka_was_sent(run, druid, broker, tls, datasource, tmp_path, login):
    topic = 'stats-' + datasource
    broker.create_topic(topic, 2)
    kafka = {'brokers': broker.servers('SASL_SSL' if login else 'PLAINTEXT'), 'topic': topic, 'format': 'flat',
             'tags': {'env': 'prod'}}
    if login:
        kafka.update(sasl='scram-sha-512', username='alice', password=USERS['alice'], tls=True, tls_ca=tls.ca)
    path = config(tmp_path, druid.url, datasource, others={'kafka': kafka})
    druid.ask('/druid/indexer/v1/supervisor', printed(run, path))
    try:
        done = [run('-f', config(tmp_path, druid.url, datasource, identity=dict(IDENTITY, hostname='n%d' % n),
                                 others={'kafka': kafka}), '-e', 'kafka', '-e', 'stdout', '-n', 5, '-i', 0.15)
                for n in (1, 2)]
        ticks = sum((finished_well(one, 5) for one in done), [])
        assert len({tick['timestamp'] % 1 for tick in ticks}) > 1
        wanted = expected(ticks, {'env': 'prod'})
        holds(druid, datasource, wanted)
        # Tasks of a third host append to the hour that the supervisor has open.
        done = run('-f', config(tmp_path, druid.url, datasource), '-n', 2, '-i', 0.15)
        wanted += expected(finished_well(done, 2))
        holds(druid, datasource, wanted)
    finally:
        druid.ask('/druid/indexer/v1/supervisor/%s/suspend' % datasource, {})
    druid.until(lambda: {task['statusCode'] for task in druid.tasks(datasource)} == {'SUCCESS'}, 'publish it all')
    holds(druid, datasource, wanted)
