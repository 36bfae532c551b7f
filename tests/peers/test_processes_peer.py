"""processes and threads beside psutil, pidstat, ps and what the kernel itself says in rusage, at the same moment."""
import json
import os
import re
import resource
import subprocess
import sys
import threading
import time

import pytest
import statbadger
from conftest import PROGRAM, clean_environment
from peer import command, require

TICK = os.sysconf('SC_CLK_TCK')
PAGE = os.sysconf('SC_PAGE_SIZE')
DEFAULTS = {name: {o.name: o.default for o in statbadger.MODULES[name].options} for name in ('processes', 'threads')}
COLUMNS = ('user', 'system', 'minor', 'major', 'voluntary', 'involuntary', 'read', 'written')


@pytest.fixture
def psutil():
    return require(module_named('psutil'), 'psutil', 'no psutil (tests/peers/requirements.txt)')


def module_named(name):
    try:
        return __import__(name)
    except ImportError:
        return None


@pytest.fixture
def child():
    """child(code, *args) -> a process that runs Python code, with a mark of its own in its command line; what it prints
    can be read, and it goes on when a line is written to it."""
    started = []

    def start(code, *args, mark='statbadger-mark'):
        process = subprocess.Popen([sys.executable, '-u', '-S', '-c', code, mark] + [str(a) for a in args],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True)
        started.append(process)
        return process
    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


class Watch:
    """The module at work on this host. tick(); so_far(group): what its processes have done since the first tick."""

    def __init__(self, module='processes', lent=None, **options):
        values = statbadger.Options(dict(DEFAULTS[module], **options))
        values.processes = statbadger.Options(dict(DEFAULTS['processes'], **(lent or {})))
        self.said = []
        self.parts = statbadger.Parts(module, statbadger.MODULES[module].parts, values,
                                      statbadger.host_tree(None, {}, time.monotonic),
                                      lambda level, words: self.said.append(words), {}, alone=True)
        self.lowest = 0.0

    def tick(self):
        found = {s.flat: v for series, values in self.parts.read(time.monotonic())
                 for s, v in zip(series, values) if v == v}
        self.lowest = min([self.lowest] + list(found.values()))
        return found

    def so_far(self, group):
        return dict(zip(COLUMNS, self.parts.memory['census'].groups[group].work))

    def until(self, process, every=0.1, seconds=60):
        """Ticks until a process has ended, and once more."""
        end = time.monotonic() + seconds
        while process.poll() is None:
            assert time.monotonic() < end
            self.tick()
            time.sleep(every)
        self.tick()
        self.tick()


def line(process):
    return process.stdout.readline().strip()


def go_on(process):
    process.stdin.write('\n')
    process.stdin.flush()


# -- disk -----------------------------------------------------------------------------------------

WRITER = '''
import os, sys
path, megabytes = sys.argv[2], int(sys.argv[3])
print('ready'); sys.stdin.readline()
with open(path, 'wb') as file:
    for _ in range(megabytes):
        file.write(b'x' * (1 << 20)); file.flush(); os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
with open(path, 'rb') as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    while file.read(1 << 20): pass
io = dict(l.split(': ') for l in open('/proc/self/io').read().split('\\n')[:-1])
print(io['read_bytes'], io['write_bytes']); sys.stdin.readline()
'''


def test_the_bytes_that_a_process_writes_and_reads_are_read_back_exactly(child, tmp_path):
    watch, writer = Watch(groups={'writer': 'disk-mark'}), child(WRITER, tmp_path / 'file', 24, mark='disk-mark')
    assert line(writer) == 'ready'
    before = [int(w.split()[1]) for w in open('/proc/%d/io' % writer.pid).read().split('\n')[4:6]]
    watch.tick()
    go_on(writer)
    for _ in range(10):
        watch.tick()
        time.sleep(0.05)
    read, written = map(int, line(writer).split())
    watch.tick()
    done = watch.so_far('writer')
    assert (done['read'], done['written']) == (read - before[0], written - before[1])
    require(written >= 24 << 20, 'disk', 'a folder that is on a disk: %s is not' % tmp_path)
    assert 24 << 20 <= done['written'] < 25 << 20 and 24 << 20 <= done['read'] < 26 << 20
    go_on(writer)                               # its end gives its bytes to us, who wait for it, and they count once
    writer.wait()
    watch.tick()
    found = watch.tick()
    assert watch.so_far('writer')['written'] == done['written'] and found['proc.disk_write_bytes.writer'] == 0
    assert watch.so_far('other')['written'] < 24 << 20


def test_bytes_of_twenty_processes_beside_psutil(child, tmp_path, psutil):
    some = [child(WRITER, tmp_path / str(n), 1 + n % 3, mark='twenty') for n in range(20)]
    assert [line(process) for process in some] == ['ready'] * 20
    first = {p.pid: psutil.Process(p.pid).io_counters() for p in some}
    watch = Watch(groups={'w': 'twenty'}, by='pid')
    watch.tick()
    for process in some:
        go_on(process)
    said = {p.pid: line(p).split() for p in some}
    watch.tick()
    for process in some:
        now, done = psutil.Process(process.pid).io_counters(), watch.so_far(('w', process.pid))
        assert done['written'] == now.write_bytes - first[process.pid].write_bytes
        assert done['read'] == now.read_bytes - first[process.pid].read_bytes
        assert said[process.pid] == [str(now.read_bytes), str(now.write_bytes)]


# -- times, memory, faults, switches --------------------------------------------------------------

WORKER = '''
import os, sys, threading, time
sys.stdin.readline()
kept = []
for n in range(3):
    threading.Thread(target=lambda: time.sleep(100), daemon=True).start()
for n in range(40):
    end = time.process_time() + 0.01
    while time.process_time() < end: os.getppid()
    kept.append(bytearray(1 << 18)); time.sleep(0.002)
files = [open('/dev/null') for _ in range(int(sys.argv[2]))]
print('done'); sys.stdin.readline()
'''


def test_what_psutil_says_of_processes_at_rest(child, psutil):
    some = [child(WORKER, n, mark='worker-mark') for n in range(8)]
    watch, those = Watch(groups={'w': 'worker-mark'}, by='pid'), [psutil.Process(p.pid) for p in some]
    for process in some:
        assert '/' in os.readlink('/proc/%d/exe' % process.pid)
    wait_for(lambda: all(p.status() == 'sleeping' and p.num_threads() == 1 for p in those))
    time.sleep(0.3)
    watch.tick()
    first = [(p.cpu_times(), p.num_ctx_switches()) for p in those]
    for process in some:
        go_on(process)
    for process in some:
        assert line(process) == 'done'
    wait_for(lambda: all(p.status() == 'sleeping' for p in those))
    found = watch.tick()
    for p, (times, switches) in zip(those, first):
        at, done = 'w/%d' % p.pid, watch.so_far(('w', p.pid))
        now = p.cpu_times()
        assert done['user'] == round((now.user - times.user) * TICK) and done['user'] + done['system'] >= 30
        assert done['system'] == round((now.system - times.system) * TICK)
        assert done['voluntary'] == p.num_ctx_switches().voluntary - switches.voluntary
        assert done['involuntary'] == p.num_ctx_switches().involuntary - switches.involuntary
        assert found['proc.rss.' + at] == p.memory_info().rss and found['proc.vsize.' + at] == p.memory_info().vms
        assert found['proc.threads.' + at] == p.num_threads() == 4
        assert found['proc.fds.' + at] == p.num_fds()
        assert found['proc.swap.' + at] == p.memory_full_info().swap
        assert abs(found['proc.uptime.' + at] - (time.time() - p.create_time())) < 2


def wait_for(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


STEADY = '''
import mmap, os, threading, time
def half():
    while True:
        end = time.thread_time() + 0.004
        while time.thread_time() < end: os.getppid()
        time.sleep(0.006)
threading.Thread(target=half, name='second', daemon=True).start()
with open(__import__('sys').argv[2], 'wb') as file:
    while True:
        file.write(bytes(1 << 16)); file.flush(); os.fsync(file.fileno()); file.seek(0)
        mmap.mmap(-1, 1 << 20).write(bytes(1 << 20)); time.sleep(0.01)
'''


def test_what_pidstat_says_of_the_same_seconds(child, tmp_path):
    require(command('pidstat'), 'sysstat', 'no pidstat')
    steady = child(STEADY, tmp_path / 'file', mark='steady-mark')
    watch = Watch(groups={'steady': 'steady-mark'})
    time.sleep(0.5)
    watch.tick()
    before, began = watch.so_far('steady'), time.monotonic()
    out = subprocess.check_output([command('pidstat'), '-u', '-r', '-w', '-d', '-h', '-H', '-p', str(steady.pid), '1', '4'],
                                  universal_newlines=True, env=clean_environment({'LC_ALL': 'C', 'S_COLORS': 'never'}))
    found = watch.tick()
    took, now = time.monotonic() - began, watch.so_far('steady')
    rate = {name: (now[name] - before[name]) / took for name in COLUMNS}
    lines = [text.split() for text in out.split('\n') if text.strip() and not text.startswith('Linux')]
    heads = [text for text in lines if text[0] == '#'][0][1:]
    rows = [dict(zip(heads, text)) for text in lines if text[0] != '#']
    assert len(rows) == 4, out
    mean = {head: sum(float(row[head]) for row in rows) / 4 for head in heads if re.match(r'^[\d.]+$', rows[0][head])}
    for ours, theirs, scale in (('user', '%usr', 100.0 / TICK), ('system', '%system', 100.0 / TICK), ('minor', 'minflt/s', 1),
                                ('voluntary', 'cswch/s', 1), ('written', 'kB_wr/s', 1 / 1024.0)):
        assert abs(rate[ours] * scale - mean[theirs]) <= 0.2 * mean[theirs] + 3, (ours, rate[ours] * scale, mean[theirs])
    assert mean['kB_wr/s'] > 500 and mean['minflt/s'] > 100 and mean['%usr'] + mean['%system'] > 10
    assert abs(found['proc.rss.steady'] / 1024 - float(rows[-1]['RSS'])) <= 0.2 * float(rows[-1]['RSS'])
    assert abs(found['proc.vsize.steady'] / 1024 - float(rows[-1]['VSZ'])) <= 0.2 * float(rows[-1]['VSZ'])


def test_what_pidstat_says_of_single_threads(child, tmp_path):
    require(command('pidstat'), 'sysstat', 'no pidstat')
    named = ("import sys; name = lambda n: open('/proc/thread-self/comm', 'w').write(n)\n"
             + STEADY.replace('def half():', 'def half():\n    name("second one")'))
    steady = child(named, tmp_path / 'file', mark='threads-mark')
    watch = Watch('threads', {'groups': {'g': 'threads-mark'}}, per_thread=True)
    time.sleep(0.5)
    watch.tick()
    total, began = 0.0, time.monotonic()
    reader = subprocess.Popen([command('pidstat'), '-u', '-t', '-H', '-h', '-p', str(steady.pid), '1', '4'],
                              stdout=subprocess.PIPE, universal_newlines=True, env=clean_environment({'LC_ALL': 'C'}))
    last = began
    while reader.poll() is None:
        time.sleep(0.4)
        found, now = watch.tick(), time.monotonic()
        total += (found['threads.cpu_user.g/second one'] + found['threads.cpu_system.g/second one']) * (now - last)
        last = now
    theirs = []
    text = reader.stdout.read()
    reader.stdout.close()
    for row in text.split('\n'):
        words = row.split()
        if '|__second' in words:
            theirs.append(float(words[4]) + float(words[5]))
    assert len(theirs) == 4, text
    mean, ours = sum(theirs) / 4, total / (last - began)
    assert mean > 10 and abs(ours - mean) <= 0.2 * mean + 3, (ours, mean)


# -- threads --------------------------------------------------------------------------------------

THREADED = '''
import sys, threading, time
for n in range(int(sys.argv[2])):
    threading.Thread(target=lambda: time.sleep(100), daemon=True).start()
print('ready'); sys.stdin.readline()
'''


def test_threads_beside_ps(child):
    require(command('ps'), 'procps', 'no ps')
    some = [child(THREADED, n, mark='ps-mark') for n in (0, 5, 40)]
    assert [line(process) for process in some] == ['ready'] * 3
    stopped = child(THREADED, 2, mark='ps-mark')
    assert line(stopped) == 'ready'
    os.kill(stopped.pid, 19)
    wait_for(lambda: 'T (stopped)' in open('/proc/%d/status' % stopped.pid).read())
    watch = Watch('threads', {'groups': {'g': 'ps-mark'}})

    def ps():
        rows = subprocess.check_output([command('ps'), '-eLo', 'pid,stat,comm'], universal_newlines=True).split('\n')[1:-1]
        return [row.split(None, 2) for row in rows if row.split(None, 2)[2] != 'ps']
    # what runs beside changes from one moment to the next: both are asked until a moment was quiet
    for _ in range(100):
        before, found, after = ps(), watch.tick(), ps()
        states = [[sum(row[1][0] in letters for row in rows) for letters in ('TtZ', 'I', 'TtZISDR')] for rows in (before, after)]
        if states[0] == states[1] == [found['threads.stopped'] + found['threads.zombie'], found['threads.idle'],
                                      found['threads.total']]:
            break
        time.sleep(0.05)
    else:
        pytest.fail('%r %r' % (found, states))
    ours = {str(p.pid) for p in some + [stopped]}
    assert found['threads.count.g'] == sum(row[0] in ours for row in after) == 1 + 6 + 41 + 3
    assert found['threads.stopped'] >= 3
    with open('/proc/sys/kernel/threads-max') as file:
        assert found['threads.max'] == int(file.read())
    os.kill(stopped.pid, 18)


# -- children that live for moments ---------------------------------------------------------------

STORM = '''
import os, resource, sys, time
print('ready'); sys.stdin.readline()
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: os.getppid()
alive = []
for n in range(int(sys.argv[2])):
    pid = os.fork()
    if not pid:
        if n % 100 == 50: burn(0.3)
        elif n % 2: burn(float(sys.argv[3]))
        os._exit(0)
    alive.append(pid)
    if len(alive) > 8: os.waitpid(alive.pop(0), 0)
for pid in alive: os.waitpid(pid, 0)
both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(sum(r.ru_utime + r.ru_stime for r in both), sum(r.ru_minflt for r in both)); sys.stdin.readline()
'''


def test_a_storm_of_forks_is_accounted_for_and_nothing_is_negative(child):
    storm = child(STORM, 2000, 0.002, mark='storm-mark')
    watch = Watch(groups={'storm': 'storm-mark'})
    assert line(storm) == 'ready'
    watch.tick()
    stat = open('/proc/%d/stat' % storm.pid).read().rsplit(')', 1)[1].split()
    before = (int(stat[11]) + int(stat[12])) / TICK, int(stat[7])
    go_on(storm)
    said, deadline = [], time.monotonic() + 90
    reader = threading.Thread(target=lambda: said.append(line(storm)), daemon=True)
    reader.start()
    while reader.is_alive():
        assert time.monotonic() < deadline
        watch.tick()
        time.sleep(0.07)
    watch.tick()
    watch.tick()
    seconds, faults = map(float, said[0].split())
    done = watch.so_far('storm')
    ours = (done['user'] + done['system']) / TICK
    assert ours > 5 and abs(ours - (seconds - before[0])) < 0.03 * seconds, (ours, seconds, before)
    assert abs(done['minor'] - (faults - before[1])) < 0.03 * faults, (done['minor'], faults, before)
    assert watch.lowest == 0 and watch.parts.errors == 0 and len(watch.parts.memory['census'].known) < 5000


def test_children_that_run_other_programs_are_accounted_for_in_all(child):
    """Some are seen and some are not: what they used is in their groups and their parent's, once."""
    code = STORM.replace("if n % 100 == 50: burn(0.3)", "if True: os.execv(sys.executable, [sys.executable, '-S', '-c', "
                         "'import time\\nwhile time.process_time() < %r: pass' % (0.03 * (n % 7)), 'kid-mark'])")
    parent = child(code, 60, 0, mark='parent-mark')
    watch = Watch(groups={'kids': 'kid-mark', 'parent': 'parent-mark'})
    assert line(parent) == 'ready'
    watch.tick()
    stat = open('/proc/%d/stat' % parent.pid).read().rsplit(')', 1)[1].split()
    before = (int(stat[11]) + int(stat[12])) / TICK
    go_on(parent)
    said = []
    reader = threading.Thread(target=lambda: said.append(line(parent)), daemon=True)
    reader.start()
    deadline = time.monotonic() + 90
    while reader.is_alive():
        assert time.monotonic() < deadline
        watch.tick()
        time.sleep(0.05)
    watch.tick()
    watch.tick()
    seconds = float(said[0].split()[0]) - before
    kids, own = [(watch.so_far(g)['user'] + watch.so_far(g)['system']) / TICK for g in ('kids', 'parent')]
    assert kids > 0.3 * seconds and abs(kids + own - seconds) < 0.04 * seconds, (kids, own, seconds)
    assert resource.getrusage(resource.RUSAGE_CHILDREN)


# -- without rights -------------------------------------------------------------------------------

def test_without_root_the_rest_is_shown_and_what_is_missing_is_said_once(child):
    require(os.getuid() == 0 and command('setpriv'), 'setpriv', 'to give up root, and root')
    assert line(child(THREADED, 1, mark='roots-own')) == 'ready'
    with open(PROGRAM, 'rb') as file:
        program = file.read()
    done = subprocess.run([command('setpriv'), '--reuid', '65534', '--regid', '65534', '--clear-groups', '--inh-caps=-all',
                           '--bounding-set=-all', '/usr/bin/python3', '-', '-e', 'stdout', '-n', '4',
                           '-m', 'processes,groups.root=roots-[o]wn,groups.me=65534\\|stdout,network=false'], input=program,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, cwd='/', env=clean_environment())
    assert done.returncode == 0, done.stderr
    said = [text for text in done.stderr.decode().split('\n') if 'cannot be read' in text]
    assert len(said) == 1 and 'CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH would allow it' in said[0]
    last = [tick for tick in map(json.loads, done.stdout.decode().split('\n')[:-1]) if tick['points']][-1]
    found = {name: entry['value'] for point in last['points'] for name, entry in point.items()}
    roots = {name.split('.')[1] for name in found if name.endswith('.root')}
    assert {'count', 'threads', 'cpu', 'rss', 'swap', 'ctxt_voluntary', 'minor_faults', 'uptime'} <= roots
    assert not roots & {'disk_read_bytes', 'disk_write_bytes'}
    assert found['proc.count.root'] >= 1 and 'proc.disk_read_bytes.me' in found
