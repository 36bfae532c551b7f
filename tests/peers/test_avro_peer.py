"""What the program writes is read by the Avro libraries of Python (two of them), C and Java.

What is expected comes from the `stdout` emitter of the same run: same points in the same order, same times, same
numbers, nothing else. Where a flat name ends and its label begins is worked out here anew, not by the program.
"""
import datetime
import json
import os
import random
import signal
import subprocess
import time

import pytest
from conftest import TESTS
from peer import command, ended, finished_well, live, payloads, require, until_ticks

IDENTITY = {'datacenter': 'EC2', 'region': 'us-west-1', 'zone': '', 'cluster': 'te.st \xe4',
            'hostname': 'n1.example.net', 'ipv4': '10.10.10.2', 'ipv6': '2001:db8::1'}
LABELS = {'disk': 'device', 'net': 'interface', 'cpu': 'cpu'}
ALL = {'cpu': {'per_core': True}, 'load': {}, 'disk': {'devices': ['*'], 'partitions': True},
       'network': {'interfaces': ['*']}, 'memory': {}, 'system': {}}
FROZEN = os.path.join(TESTS, 'hosts')
HOSTS = sorted(name for name in os.listdir(FROZEN) if os.path.isdir(os.path.join(FROZEN, name)))
JAR = os.path.join(os.path.dirname(TESTS), '.venv', 'avro', 'avro-tools.jar')
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


# -- the readers -------------------------------------------------------------------------------

def plain(record):
    """A record with its time in ms, which libraries make a date of."""
    when = record['timestamp']
    if isinstance(when, datetime.datetime):
        when = (when - EPOCH) // datetime.timedelta(milliseconds=1)
    return dict(record, timestamp=when)


def with_fastavro(path):
    fastavro = pytest.importorskip('fastavro', reason='peer fastavro: not installed (make peers)')
    with open(path, 'rb') as file:
        return [plain(record) for record in fastavro.reader(file)]


def with_avro(path):
    datafile = pytest.importorskip('avro.datafile', reason='peer avro: not installed (make peers)')
    from avro.io import DatumReader
    with datafile.DataFileReader(open(path, 'rb'), DatumReader()) as reader:
        return [plain(record) for record in reader]


def with_avrocat(path):
    program = require(command('avrocat'), 'avrocat', 'not installed (Debian: avro-bin)')
    return lines_of(subprocess.run([program, path], stdout=subprocess.PIPE, check=True, timeout=60))


def with_java(path):
    java = require(command('java'), 'avro-tools', 'there is no java')
    require(os.path.isfile(JAR), 'avro-tools', '%s is missing (tests/peers/avro.sh)' % JAR)
    return lines_of(subprocess.run([java, '-Dfile.encoding=UTF-8', '-jar', JAR, 'tojson', path], stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, check=True, timeout=60))


def lines_of(done):
    return [json.loads(line) for line in done.stdout.decode().split('\n')[:-1]]


READERS = {'fastavro': with_fastavro, 'avro': with_avro, 'avrocat': with_avrocat, 'avro-tools': with_java}
QUICK = [with_fastavro, with_avro]


def test_every_reader_is_here():
    require(command('avrocat'), 'avrocat', 'not installed (Debian: avro-bin)')
    require(os.path.isfile(JAR), 'avro-tools', '%s is missing (tests/peers/avro.sh)' % JAR)
    for name in ('fastavro', 'avro'):
        pytest.importorskip(name, reason='peer %s: not installed (make peers)' % name)


# -- what is expected --------------------------------------------------------------------------

def as_read(number):
    """A number to the digits that `stdout` shows."""
    return float('%.12g' % number)


def series_of(flat):
    """disk.reads.sda -> ('disk.reads', {'device': 'sda'})"""
    words = flat.split('.', 2)
    if len(words) < 3 or words[0] not in LABELS:
        return flat, {}
    return '.'.join(words[:2]), {LABELS[words[0]]: words[2]}


def expected(ticks, tags=None, keep=lambda flat: True):
    """The records for these payloads, in order."""
    out = []
    for tick in ticks:
        who = {key: tick[key] for key in IDENTITY}
        for flat, entry in ((flat, entry) for point in tick['points'] for flat, entry in point.items()):
            if keep(flat):
                metric, labels = series_of(flat)
                out.append(dict(who, timestamp=int(round(tick['timestamp'] * 1000)), metric=metric,
                                labels=dict(tags or {}, **labels), value=as_read(entry['value']), units=entry['units']))
    return out


def shown(records):
    return [dict(record, value=as_read(record['value'])) for record in records]


@pytest.fixture
def config(tmp_path):
    """config(emitters, **more) -> the path of a configuration with `stdout` and these emitters."""
    def write(avro, modules=ALL, **more):
        path = tmp_path / 'statbadger.conf'
        path.write_text(json.dumps(dict(IDENTITY, modules=modules, emitters={'stdout': {}, 'avro': avro}, **more)))
        return str(path)
    return write


# -- whole hosts -------------------------------------------------------------------------------

@pytest.mark.parametrize('codec', ['null', 'deflate'])
@pytest.mark.parametrize('host', HOSTS)
def test_a_frozen_host_comes_back_whole_and_nothing_else(run, config, tmp_path, host, codec):
    done = run('-f', config({'path': 'x.avro', 'codec': codec}), '--replay', os.path.join(FROZEN, host))
    assert done.code == 0 and 'avro: ' not in done.err
    wanted = expected(payloads(done.out))
    for read in QUICK:
        assert shown(read(str(tmp_path / 'x.avro'))) == wanted


@pytest.mark.parametrize('codec', ['null', 'deflate'])
@pytest.mark.parametrize('host', ['linux-6.18', 'odd-names'])
@pytest.mark.parametrize('reader', sorted(READERS))
def test_every_library_reads_the_same(run, config, tmp_path, host, codec, reader):
    done = run('-f', config({'path': 'x.avro', 'codec': codec, 'batch': 1}), '--replay', os.path.join(FROZEN, host))
    assert shown(READERS[reader](str(tmp_path / 'x.avro'))) == expected(finished_well(done))


HARD = ['\x01\n"\\,{}%s', '\xe4\u4e2d\U0001f41f', '', ' ', 'x' * 3000, '\ufffd', "';--", '\x7f\x85\u2028']


@pytest.mark.parametrize('reader', sorted(READERS))
def test_every_library_reads_hard_names(run, config, tmp_path, reader):
    tags = {'t%d%s' % (i, text): text for i, text in enumerate(HARD)}
    path = tmp_path / 'hard.conf'
    emitters = {'stdout': {}, 'avro': {'path': 'x.avro', 'tags': tags}}
    path.write_text(json.dumps(dict(IDENTITY, hostname='h' + HARD[0], zone=HARD[1], cluster=HARD[4], modules={'load': {}},
                                    emitters=emitters)))
    done = run('-f', path, '-n', 2, '-i', '0.1')
    assert shown(READERS[reader](str(tmp_path / 'x.avro'))) == expected(finished_well(done, 2), tags)


# -- restarts, kill -9 -------------------------------------------------------------------------

@pytest.mark.parametrize('reader', sorted(READERS))
def test_one_file_of_many_runs(run, config, tmp_path, reader):
    conf, ticks = config({'path': 'x.avro'}, modules={'load': {}, 'cpu': {}}), []
    for _ in range(3):
        ticks += finished_well(run('-f', conf, '-n', 2, '-i', '0.1'), 2)
    assert shown(READERS[reader](str(tmp_path / 'x.avro'))) == expected(ticks)


@pytest.mark.parametrize('codec', ['null', 'deflate'])
def test_an_agent_that_is_killed_again_and_again_leaves_a_file_that_is_read(agent, run, config, tmp_path, codec):
    dice = random.Random(os.environ.get('FAULT_SEED'))
    conf = config({'path': 'x.avro', 'codec': codec}, modules={'load': {}, 'cpu': {}, 'memory': {}})
    printed = []
    for _ in range(6):
        process = live(agent, tmp_path, '-f', conf, '-i', '0.01')
        until_ticks(tmp_path, 5)
        time.sleep(dice.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        printed += payloads((tmp_path / 'out').read_text())
    printed += finished_well(run('-f', conf, '-n', 3, '-i', '0.01'), 3)
    found = shown(with_fastavro(str(tmp_path / 'x.avro')))
    for read in READERS.values():
        assert shown(read(str(tmp_path / 'x.avro'))) == found
    times = sorted(set(record['timestamp'] for record in found))
    assert [record['timestamp'] for record in found] == sorted(record['timestamp'] for record in found)
    known = {int(round(tick['timestamp'] * 1000)): tick for tick in printed}
    assert [r for r in found if r['timestamp'] in known] == expected([known[when] for when in times if when in known])
    assert len(times) >= 6 * 4 and len(set(times) - set(known)) <= 6      # the last tick of a life may be in one only


def test_what_waits_when_the_agent_is_told_to_end_is_written(agent, config, tmp_path):
    conf = config({'path': 'x.avro', 'flush': 3600}, modules={'load': {}})
    process = live(agent, tmp_path, '-f', conf, '-i', '0.05')
    until_ticks(tmp_path, 5)
    process.send_signal(signal.SIGTERM)
    code, ticks, errors = ended(process, tmp_path)
    assert code == 0, errors
    assert shown(with_fastavro(str(tmp_path / 'x.avro'))) == expected(ticks)


# -- every option ------------------------------------------------------------------------------

def test_files_closed_by_size_are_whole_and_the_newest_are_kept(run, config, tmp_path):
    conf = config({'path': 'x.avro', 'max_bytes': 30000, 'keep': 3, 'batch': 1}, modules={'cpu': {}, 'memory': {}})
    ticks = finished_well(run('-f', conf, '-n', 40, '-i', '0.02'), 40)
    closed = sorted(int(name[7:]) for name in os.listdir(str(tmp_path)) if name.startswith('x.avro.'))
    assert len(closed) == 3 and closed[0] > 1
    found = []
    for name in ['x.avro.%d' % n for n in closed] + ['x.avro']:
        assert os.stat(str(tmp_path / name)).st_size <= 30000
        for read in QUICK:
            assert read(str(tmp_path / name)) == with_fastavro(str(tmp_path / name))
        found += shown(with_fastavro(str(tmp_path / name)))
    wanted = expected(ticks)
    assert found == wanted[-len(found):] and len(found) > 1000


def test_time_and_identity_in_the_path(run, config, tmp_path):
    conf = config({'path': 'data/%Y%m%d/{hostname}-{cluster}-%H.avro', 'tags': {'env': 'prod'},
                   'blacklist': ['load.fi*'], 'interval': 0.2}, modules={'load': {}})
    (tmp_path / 'data').mkdir()
    ticks = finished_well(run('-f', conf, '-n', 8, '-i', '0.1'), 8)
    ticks = [tick for tick in ticks if round(tick['timestamp'] * 1000) % 200 == 0]
    found = []
    for folder, _, names in sorted(os.walk(str(tmp_path / 'data'))):
        for name in sorted(names):
            assert name.startswith('n1.example.net-te.st__-') and len(os.path.basename(folder)) == 8
            found += shown(with_avro(os.path.join(folder, name)))
    assert found == expected(ticks, {'env': 'prod'}, lambda flat: not flat.startswith('load.fi')) and found


def test_another_writer_of_the_same_file_adds_to_it_and_we_to_that(run, config, tmp_path):
    """fastavro appends with the marker of the file, and its records are between ours then."""
    fastavro = pytest.importorskip('fastavro', reason='peer fastavro: not installed (make peers)')
    conf, path = config({'path': 'x.avro', 'codec': 'deflate'}, modules={'load': {}}), str(tmp_path / 'x.avro')
    first = expected(finished_well(run('-f', conf, '-n', 2, '-i', '0.1'), 2))
    with open(path, 'a+b') as file:
        fastavro.writer(file, None, [dict(first[0], metric='of.another')])
    second = expected(finished_well(run('-f', conf, '-n', 2, '-i', '0.1'), 2))
    for read in READERS.values():
        assert shown(read(path)) == first + [dict(first[0], metric='of.another')] + second
    assert sorted(name for name in os.listdir(str(tmp_path)) if name.startswith('x')) == ['x.avro']


def test_a_file_of_another_schema_is_put_aside_and_still_read(run, config, tmp_path):
    fastavro = pytest.importorskip('fastavro', reason='peer fastavro: not installed (make peers)')
    schema = {'type': 'record', 'name': 'Point', 'namespace': 'statbadger', 'fields': [{'name': 'value', 'type': 'double'}]}
    with open(str(tmp_path / 'x.avro'), 'wb') as file:
        fastavro.writer(file, schema, [{'value': 1.5}])
    done = run('-f', config({'path': 'x.avro'}, modules={'load': {}}), '-n', 1)
    assert done.code == 0 and 'x.avro: its schema is another one, so it is %s now' % (tmp_path / 'x.avro.1') in done.err
    assert shown(with_fastavro(str(tmp_path / 'x.avro'))) == expected(payloads(done.out))
    with open(str(tmp_path / 'x.avro.1'), 'rb') as file:
        assert list(fastavro.reader(file)) == [{'value': 1.5}]


def test_a_file_that_is_none_is_left_alone_and_the_run_says_so(run, config, tmp_path):
    (tmp_path / 'x.avro').write_text('dear diary')
    done = run('-f', config({'path': 'x.avro', 'timeout': 0.5}, modules={'load': {}}), '-n', 1)
    assert done.code == 1 and 'x.avro: is no Avro file and left alone, need another path' in done.err
    assert (tmp_path / 'x.avro').read_text() == 'dear diary'


def test_two_agents_with_one_file(agent, run, config, tmp_path):
    conf = config({'path': 'x.avro', 'timeout': 0.5}, modules={'load': {}})
    process = live(agent, tmp_path, '-f', conf, '-i', '0.05')
    until_ticks(tmp_path, 3)
    end = time.monotonic() + 20
    while not (tmp_path / 'x.avro').exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    done = run('-f', conf, '-n', 1)
    assert done.code == 1 and 'x.avro: somebody else writes to it' in done.err
    process.send_signal(signal.SIGTERM)
    code, ticks, errors = ended(process, tmp_path)
    assert code == 0, errors
    assert shown(with_fastavro(str(tmp_path / 'x.avro'))) == expected(ticks)
