"""A real carbon-cache is written to by the program, and its whisper files are read back by the whisper library.

What is expected comes from the `stdout` emitter of the same run: same points, same times, same numbers, nothing
else. How a flat name becomes a path is worked out here anew, from the README, not by the program.
"""
import hashlib
import json
import os
import re
import socket
import subprocess
import time

import pytest
from peer import (Peer, accepts, command, ended, finished_well, free_port, is_free, live, payloads, require,
                  until_ticks)

HERE = os.path.dirname(os.path.abspath(__file__))
CONF = """\
[cache]
STORAGE_DIR = {folder}/storage
CONF_DIR = {folder}
LOG_DIR = {folder}/log
PID_DIR = {folder}/run
LOCAL_DATA_DIR = {folder}/storage/whisper
USER =
MAX_CACHE_SIZE = inf
MAX_UPDATES_PER_SECOND = 5000
MAX_CREATES_PER_MINUTE = inf
LINE_RECEIVER_INTERFACE = 127.0.0.1
LINE_RECEIVER_PORT = {line}
ENABLE_UDP_LISTENER = True
UDP_RECEIVER_INTERFACE = 127.0.0.1
UDP_RECEIVER_PORT = {udp}
PICKLE_RECEIVER_INTERFACE = 127.0.0.1
PICKLE_RECEIVER_PORT = {pickle}
CACHE_QUERY_INTERFACE = 127.0.0.1
CACHE_QUERY_PORT = {query}
CACHE_WRITE_STRATEGY = naive
WHISPER_AUTOFLUSH = True
ENABLE_TAGS = True
"""
# MAX_CREATES_PER_MINUTE is 50 unless told: new metrics would vanish without a word.
SCHEMAS = """\
[all]
pattern = .*
retentions = 1s:10m
"""
SYSTEM_PYTHON = '/usr/bin/python3'              # Debian's whisper library is there and nowhere else
IDENTITY = {'datacenter': 'EC2', 'region': 'us-west-1', 'zone': '', 'cluster': 'te.st',
            'ipv4': '10.10.10.2', 'ipv6': '2001:db8::1'}


class Carbon(Peer):
    """A carbon-cache with a slot per second. line, udp, pickle: its ports."""

    def __init__(self, folder, line=None, pickle=None):
        program = require(command('carbon-cache'), 'carbon-cache', 'not installed (Debian: graphite-carbon)')
        require(has_whisper(), 'whisper', 'no %s that has the whisper library (Debian: python3-whisper)' % SYSTEM_PYTHON)
        self.line, self.udp = line or free_port(), line or free_port(socket.SOCK_DGRAM)
        self.pickle, query = pickle or free_port(), free_port()
        self.whisper = os.path.join(str(folder), 'storage', 'whisper')
        for name in ('log', 'run', 'storage/whisper'):
            os.makedirs(os.path.join(str(folder), name))
        for name, text in (('carbon.conf', CONF.format(folder=folder, line=self.line, udp=self.udp,
                                                       pickle=self.pickle, query=query)),
                           ('storage-schemas.conf', SCHEMAS), ('storage-aggregation.conf', '')):
            with open(os.path.join(str(folder), name), 'w') as file:
                file.write(text)
        Peer.__init__(self, 'carbon-cache', [
            program, '--config=%s/carbon.conf' % folder, '--nodaemon', '--logdir=%s/log' % folder,
            '--pidfile=%s/run/carbon.pid' % folder, 'start'], folder,
            lambda: accepts(self.pickle) and accepts(self.line))

    def stored(self, below=''):
        """{path: {time: value}} of what lies in its files, of the paths that begin so."""
        text = subprocess.check_output([SYSTEM_PYTHON, os.path.join(HERE, 'read_whisper.py'), self.whisper])
        return {path: {int(t): v for t, v in points.items()}
                for path, points in json.loads(text.decode()).items() if path.startswith(below)}

    def holds(self, wanted, below='', seconds=20):
        """Fails unless the files soon hold exactly what is wanted: carbon writes behind."""
        last = {}

        def same():
            last['found'] = self.stored(below)
            return last['found'] == wanted
        try:
            self.until(same, seconds, 'hold what was sent')
        except AssertionError as error:
            raise AssertionError('%s\n%s' % (difference(last.get('found', {}), wanted), error))


def difference(found, wanted):
    """Says where two {path: {time: value}} differ."""
    def flat(points):
        return {(path, t): v for path, values in points.items() for t, v in values.items()}
    one, other = flat(found), flat(wanted)
    missing, more = sorted(set(other) - set(one)), sorted(set(one) - set(other))
    wrong = [(key, one[key], other[key]) for key in sorted(set(one) & set(other)) if one[key] != other[key]]
    return 'of %d points %d are missing %s, %d too many %s, %d wrong %s' % (
        len(other), len(missing), missing[:5], len(more), more[:5], len(wrong), wrong[:5])


def has_whisper():
    return os.path.exists(SYSTEM_PYTHON) and subprocess.call(
        [SYSTEM_PYTHON, '-c', 'import whisper'], stderr=subprocess.DEVNULL) == 0


@pytest.fixture(scope='module')
def carbon(tmp_path_factory):
    """One for all tests that let it run; each writes below a name of its own."""
    with Carbon(tmp_path_factory.mktemp('carbon')) as peer:
        yield peer


# -- what is expected ----------------------------------------------------------------------------

def node(text):
    """One part of a path: all but letters, digits, - and _ is _."""
    return re.sub('[^A-Za-z0-9_-]', '_', text)


def path_of(flat, prefix):
    """disk.reads.sda -> PREFIX.disk.reads.sda: family and name keep their dot, an instance is one part."""
    words = flat.split('.', 2)
    return '.'.join([prefix] + words[:2] + [node(word) for word in words[2:]])


def expected(ticks, path, keep=lambda tick, flat: True):
    """{path: {time: value}} of these payloads. path: flat name -> where it lands."""
    out = {}
    for tick in ticks:
        for point in tick['points']:
            for flat, entry in point.items():
                if keep(tick, flat):
                    out.setdefault(path(flat), {})[tick['timestamp']] = float(entry['value'])
    return out


LABELS = {'disk': 'device', 'net': 'interface', 'cpu': 'cpu'}


def tagged_path(flat, tags):
    """Where carbon keeps a tagged series: under the digest of its name with the tags in order."""
    words = flat.split('.', 2)
    tags = dict({k: v for k, v in tags.items() if v}, **({LABELS[words[0]]: words[2]} if len(words) > 2 else {}))
    name = '.'.join(words[:2]) + ''.join(sorted(';%s=%s' % item for item in tags.items()))
    digest = hashlib.sha256(name.encode()).hexdigest()
    return '_tagged.%s.%s.%s' % (digest[:3], digest[3:6], digest)


def config(tmp_path, **values):
    """A configuration file that says who the host is."""
    path = tmp_path / 'statbadger.conf'
    path.write_text(json.dumps(dict(IDENTITY, **values)))
    return str(path)


# -- the ways in ---------------------------------------------------------------------------------

@pytest.mark.parametrize('way', ['plaintext', 'pickle', 'udp'])
def test_every_point_arrives_with_its_time_and_value_and_nothing_else_does(run, carbon, tmp_path, way):
    how = {'plaintext': 'port=%d' % carbon.line, 'pickle': 'protocol=pickle,port=%d' % carbon.pickle,
           'udp': 'transport=udp,port=%d' % carbon.udp}[way]
    done = run('-f', config(tmp_path, hostname='%s.example.net' % way), '-n', 3, '-i', 1,
               '-e', 'graphite,host=127.0.0.1,' + how, '-e', 'stdout')
    ticks = finished_well(done, 3)
    prefix = 'EC2.us-west-1.te_st.%s_example_net' % way
    wanted = expected(ticks, lambda flat: path_of(flat, prefix))
    assert len(wanted) > 60 and all(1 <= len(points) <= 3 for points in wanted.values())
    carbon.holds(wanted, prefix + '.')


def test_the_ports_are_the_usual_ones_unless_told(run, tmp_path):
    if not (is_free(2003) and is_free(2004) and is_free(2003, socket.SOCK_DGRAM)):
        pytest.skip('port 2003 or 2004 is taken by somebody else')
    folder = tmp_path / 'carbon'
    folder.mkdir()
    with Carbon(folder, 2003, 2004) as carbon:
        done = run('-n', 1, '-i', 1, '-m', 'load', '-m', 'memory', '-e', 'stdout',
                   '-e', 'graphite,prefix=lines', '-e', 'graphite,prefix=pickles,protocol=pickle',
                   '-e', 'graphite,prefix=datagrams,transport=udp')
        ticks = finished_well(done, 1)
        wanted = {}
        for prefix in ('lines', 'pickles', 'datagrams'):
            wanted.update(expected(ticks, lambda flat: path_of(flat, prefix)))
        carbon.holds(wanted, ('lines.', 'pickles.', 'datagrams.'))


def test_a_prefix_of_ones_own_is_filled_in(run, carbon, tmp_path):
    done = run('-f', config(tmp_path, hostname='n1.example.net'), '-n', 2, '-i', 1, '-m', 'load', '-m', 'memory',
               '-e', 'graphite,port=%d,prefix=own.{cluster}.x-{hostname}.{zone}.{ipv4}' % carbon.line, '-e', 'stdout')
    ticks = finished_well(done, 2)
    carbon.holds(expected(ticks, lambda flat: path_of(flat, 'own.te_st.x-n1_example_net.10_10_10_2')), 'own.')


@pytest.mark.parametrize('protocol', ['plaintext', 'pickle'])
def test_tagged_series_are_the_ones_meant(run, carbon, tmp_path, protocol):
    host = 'tagged-%s.example.net' % protocol
    before = carbon.stored('_tagged')
    port = carbon.pickle if protocol == 'pickle' else carbon.line
    done = run('-f', config(tmp_path, hostname=host), '-n', 2, '-i', 1, '-e', 'stdout',
               '-e', 'graphite,port=%d,tagged=true,protocol=%s,tags.env=prod' % (port, protocol))
    tags = dict(IDENTITY, host=host, env='prod')
    wanted = expected(finished_well(done, 2), lambda flat: tagged_path(flat, tags))
    carbon.holds(dict(before, **wanted), '_tagged')


# -- names that mean harm ------------------------------------------------------------------------

# What the kernel lets an interface be called (anything but blanks, / and :), and the part of a path it becomes.
HOSTILE = [
    (b'eth0.100', 'eth0_100'),
    (b'q"uo\'te', 'q_uo_te'),
    (b'back\\slash', 'back_slash'),
    (b'semi;colon=1', 'semi_colon_1'),
    (b'per%d%s%', 'per_d_s_'),
    (b'{hostname}', '_hostname_'),
    (b'x{y="z"}', 'x_y__z__'),
    (b'~tilde', '_tilde'),
    (b'*glob?[a]', '_glob__a_'),
    (b'....', '____'),
    (b'nan', 'nan'),
    (b'-', '-'),
    (b'$(reboot)`', '__reboot__'),
    (b'#!<&>|', '______'),
    (b'ctl\x01\x1c\x7f', 'ctl___'),
    ('gr\u00fc\u00df'.encode(), 'gr__'),
    ('ls\u2028\u0085x'.encode(), 'ls__x'),
    (b'by\xff\xfe\x80', 'by___'),
    (b'123456789012345', '123456789012345'),
]
HEADING = b'Inter-|   Receive    |  Transmit\n face |bytes packets|bytes packets\n'


def hostile_files(top, grown):
    """A host with these interfaces, each with numbers of its own that have grown so many times."""
    lines = []
    for i, (name, _) in enumerate(HOSTILE):
        row = [(column + 1) * (i + 3) * (grown * grown + 1) for column in range(16)]
        lines.append(b'%6s: %s\n' % (name, b' '.join(b'%d' % value for value in row)))
    for path, data in (('proc/net/dev', HEADING + b''.join(lines)), ('proc/sys/kernel/hostname', b'h;o\n')):
        file = top / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def hostile_path(prefix):
    """Flat name -> the path that the list above says, with no rule in between."""
    known = {name.decode('utf-8', 'replace'): part for name, part in HOSTILE}
    return lambda flat: '.'.join([prefix] + flat.split('.', 2)[:2] + [known[flat.split('.', 2)[2]]])


def hostile_recording(tmp_path):
    """Five snapshots a second apart, not long ago: carbon forgets what is older than ten minutes."""
    start = int(time.time()) - 60
    for i in range(5):
        hostile_files(tmp_path / 'recording' / ('%d.000' % (start + i)), i)
    return str(tmp_path / 'recording')


@pytest.mark.parametrize('way', ['plaintext', 'pickle', 'udp'])
def test_interfaces_with_hostile_names_each_arrive_under_one_safe_path(run, carbon, tmp_path, way):
    how = {'plaintext': 'port=%d' % carbon.line, 'pickle': 'protocol=pickle,port=%d' % carbon.pickle,
           'udp': 'transport=udp,port=%d' % carbon.udp}[way]
    done = run('--replay', hostile_recording(tmp_path), '-m', 'network,interfaces=*', '-e', 'stdout',
               '-e', 'graphite,%s,prefix=hostile-%s.{hostname}' % (how, way))
    ticks = finished_well(done, 4)
    wanted = expected(ticks, hostile_path('hostile-%s.h_o' % way))
    assert len(wanted) == 18 * len(HOSTILE) and all(len(points) == 4 for points in wanted.values())
    carbon.holds(wanted, 'hostile-%s.' % way)


def test_hostile_names_under_another_root(run, carbon, tmp_path):
    hostile_files(tmp_path / 'root', 1)
    done = run('--root', tmp_path / 'root', '-m', 'network,interfaces=*', '-n', 2, '-i', 1, '-e', 'stdout',
               '-e', 'graphite,port=%d,prefix=rooted.{hostname}' % carbon.line)
    wanted = expected(finished_well(done, 2), hostile_path('rooted.h_o'))
    assert len(wanted) == 18 * len(HOSTILE)
    carbon.holds(wanted, 'rooted.')


def test_hostile_names_in_tags_each_make_one_series(run, carbon, tmp_path):
    def tag(text):
        """Carbon's rules (TaggedSeries.validateTagAndValue): no ; and no ~ at the start; and no blank in a line.
        And no ": a line that ends in "} is taken for another syntax, metric{tag="value"}, and another series."""
        text = re.sub('[^!-~]|[;"]', '_', text)
        return '_' + text[1:] if text[0] == '~' else text

    def path(flat):
        words = flat.split('.', 2)
        return tagged_path('.'.join(words[:2] + [tag(words[2])]), {'host': 'h_o'})
    before = carbon.stored('_tagged')
    done = run('--replay', hostile_recording(tmp_path), '-m', 'network,interfaces=*', '-e', 'stdout',
               '-e', 'graphite,tagged,port=%d' % carbon.line)
    wanted = expected(finished_well(done, 4), path)
    assert len(wanted) == 18 * len(HOSTILE)
    carbon.holds(dict(before, **wanted), '_tagged')


# -- a server that comes and goes ----------------------------------------------------------------

def no_second_is_missing(ticks, step=1):
    stamps = [tick['timestamp'] for tick in ticks]
    assert stamps == list(range(stamps[0], stamps[0] + step * len(stamps), step))


@pytest.mark.parametrize('protocol', ['plaintext', 'pickle'])
def test_a_server_that_starts_late_misses_nothing(agent, tmp_path, protocol):
    folder = tmp_path / 'carbon'
    folder.mkdir()
    carbon = Carbon(folder)
    port = carbon.pickle if protocol == 'pickle' else carbon.line
    process = live(agent, tmp_path, '-n', 9, '-i', 1, '-e', 'stdout',
                   '-e', 'graphite,prefix=late,port=%d,protocol=%s' % (port, protocol))
    until_ticks(tmp_path, 4)
    with carbon:
        code, ticks, errors = ended(process, tmp_path)
        assert (code, len(ticks)) == (0, 9), errors
        assert errors.count('warning') == 1 and errors.count('delivers again') == 1, errors
        no_second_is_missing(ticks)
        carbon.holds(expected(ticks, lambda flat: path_of(flat, 'late')), 'late.')


def test_a_server_that_is_restarted_misses_nothing(agent, tmp_path):
    folder = tmp_path / 'carbon'
    folder.mkdir()
    with Carbon(folder) as carbon:
        process = live(agent, tmp_path, '-n', 10, '-i', 2, '-e', 'stdout',
                       '-e', 'graphite,prefix=twice,port=%d' % carbon.line)
        for n in (2, 6):
            until_ticks(tmp_path, n)
            # What carbon has read and not written yet is lost when it ends (its writer sleeps a second between
            # looks), and nobody could know of it: so it ends between two ticks, with everything on disk.
            carbon.holds(expected(payloads((tmp_path / 'out').read_text()), lambda flat: path_of(flat, 'twice')),
                         'twice.')
            carbon.stop()
            until_ticks(tmp_path, n + 2)
            carbon.start()
        code, ticks, errors = ended(process, tmp_path)
        assert (code, len(ticks)) == (0, 10), errors
        no_second_is_missing(ticks, 2)
        carbon.holds(expected(ticks, lambda flat: path_of(flat, 'twice')), 'twice.')


# -- what a sink may leave out, or wait for ------------------------------------------------------

def test_an_interval_of_its_own_gives_the_sink_the_ticks_on_its_multiples_only(run, carbon):
    done = run('-n', 5, '-i', 1, '-m', 'load', '-m', 'cpu', '-e', 'stdout',
               '-e', 'graphite,prefix=every2,interval=2,port=%d' % carbon.line)
    ticks = finished_well(done, 5)
    wanted = expected(ticks, lambda flat: path_of(flat, 'every2'), lambda tick, flat: tick['timestamp'] % 2 == 0)
    assert len(wanted['every2.load.one']) in (2, 3)
    carbon.holds(wanted, 'every2.')


@pytest.mark.parametrize('protocol', ['plaintext', 'pickle'])
def test_flush_sends_late_but_leaves_nothing_out(agent, carbon, tmp_path, protocol):
    prefix = 'flushed-' + protocol
    port = carbon.pickle if protocol == 'pickle' else carbon.line
    process = live(agent, tmp_path, '-n', 8, '-i', 1, '-m', 'load', '-e', 'stdout',
                   '-e', 'graphite,prefix=%s,flush=3,port=%d,protocol=%s' % (prefix, port, protocol))
    seen = set()
    for n in range(1, 8):                       # the eighth ends the run, and with it the waiting
        until_ticks(tmp_path, n)
        time.sleep(0.3)
        seen.add(max(carbon.stored(prefix + '.').get(prefix + '.load.one') or {0: 0}))
    code, ticks, errors = ended(process, tmp_path)
    assert (code, errors, len(ticks)) == (0, '', 8)
    assert all(stamp % 3 == 0 for stamp in seen) and len(seen) > 1, seen
    carbon.holds(expected(ticks, lambda flat: path_of(flat, prefix)), prefix + '.')


def test_the_blacklist_of_the_sink_and_no_other_is_left_out(run, carbon):
    done = run('-n', 2, '-i', 1, '-m', 'cpu', '-m', 'load', '-m', 'memory', '-e', 'stdout',
               '-e', 'graphite,port=%d,prefix=few,blacklist=mem.*,cpu.[a-i]*,load.f?ve' % carbon.line)
    ticks = finished_well(done, 2)
    names = set(flat for tick in ticks for point in tick['points'] for flat in point)
    assert {'mem.used', 'cpu.idle', 'cpu.user', 'load.five', 'load.one'} <= names

    def kept(tick, flat):
        return not re.match(r'mem\.|cpu\.[a-i]|load\.f.ve$', flat)
    wanted = expected(ticks, lambda flat: path_of(flat, 'few'), kept)
    assert {'few.cpu.user', 'few.load.one', 'few.load.fifteen'} <= set(wanted)
    carbon.holds(wanted, 'few.')
