"""The agent inside of real containers: runc's, as uid 65534 with a read-only root, and a User-Mode Linux for pure
cgroup v2. What it says is held against what was configured, what its neighbour did, and what runc says at the moment.
"""
import json
import os
import shutil
import signal
import subprocess
import time

import pytest
import uml
from conftest import PROGRAM
from peer import command, require

PYTHON = '/usr/bin/python3'                     # of this machine: the containers see its /usr
MIB = 1 << 20
BURN = 'while True:\n    pass\n'
WRITE = '''
import mmap, os, time
time.sleep(4)
fd = os.open("/data/file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
page = mmap.mmap(-1, 1 << 20)
for n in range(%d):
    os.pwrite(fd, page, n << 20)
    time.sleep(0.02)
time.sleep(1000)
'''


def until(what, seconds=60):
    """what(), once it is something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError('waited %d s in vain' % seconds)


class Box:
    """A container of runc's. programs: Python texts that run in it beside the agent, whose arguments follow. Ended
    with all that is in it by close()."""

    def __init__(self, folder, name, programs=(), arguments=(), resources=None, path=None, namespaces=('pid', 'cgroup'),
                 cgroups=True, binds=(), environment=(), conf=None, started=True):
        self.runc = require(command('runc'), 'runc', 'not installed (Debian: runc)')
        require(os.geteuid() == 0, 'runc', 'needs root')
        require(os.path.exists(PYTHON), 'runc', 'there is no %s' % PYTHON)
        self.folder, self.name = os.path.join(str(folder), name), 'statbadger-%s-%d' % (name, os.getpid())
        self.state = os.path.join(str(folder), 'runc')
        self.root = os.path.join(self.folder, 'root')
        self.data = os.path.join(self.folder, 'data')
        for place in ('usr', 'etc', 'proc', 'sys', 'dev', 'tmp', 'data', 'host', 'hostproc', 'hostsys', 'opt'):
            os.makedirs(os.path.join(self.root, place))
        for place in ('bin', 'lib', 'lib64', 'sbin'):
            os.symlink('usr/' + place, os.path.join(self.root, place))
        shutil.copy(PROGRAM, os.path.join(self.root, 'opt', 'statbadger.py'))
        for n, text in enumerate(programs):
            self.write('%d.py' % n, text)
        if conf:
            self.write('conf', json.dumps(conf))
        argv = [PYTHON, '/opt/statbadger.py', '-e', 'stdout'] + (['-f', '/opt/conf'] if conf else []) + list(arguments)
        self.write('run', ''.join('%s /opt/%d.py &\n' % (PYTHON, n) for n in range(len(programs))) + 'exec %s\n' % ' '.join(argv))
        os.makedirs(self.data)
        os.chmod(self.data, 0o777)
        subprocess.check_call([self.runc, 'spec'], cwd=self.folder)
        self.configure(resources, path, namespaces, cgroups, binds, environment)
        self.out, self.err = (os.path.join(self.folder, name) for name in ('out', 'err'))
        self.started = started
        with open(self.out, 'wb') as out, open(self.err, 'wb') as err:
            argv = ['run', '-d', '--pid-file', os.path.join(self.folder, 'pid')] if started else ['run']
            self.code = subprocess.call([self.runc, '--root', self.state] + argv + ['-b', self.folder, self.name],
                                        stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=60)
        assert not started or self.code == 0, self.text(self.err)

    def write(self, name, text):
        with open(os.path.join(self.root, 'opt', name), 'w') as file:
            file.write(text)

    def configure(self, resources, path, namespaces, cgroups, binds, environment):
        place = os.path.join(self.folder, 'config.json')
        with open(place) as file:
            conf = json.load(file)
        conf['process'].update(terminal=False, args=['/bin/sh', '/opt/run'], user={'uid': 65534, 'gid': 65534},
                               env=['PATH=/usr/bin', 'PYTHONDONTWRITEBYTECODE=1'] + list(environment))
        conf['root'] = {'path': self.root, 'readonly': True}
        conf['mounts'] = [m for m in conf['mounts'] if cgroups or m['destination'] != '/sys/fs/cgroup']
        for source, target, mode in [('/usr', '/usr', 'ro'), (self.data, '/data', 'rw')] + [(s, t, 'ro') for s, t in binds]:
            conf['mounts'].append({'destination': target, 'type': 'bind', 'source': source, 'options': ['rbind', mode]})
        conf['linux']['namespaces'] = [n for n in conf['linux']['namespaces'] if n['type'] not in ('pid', 'cgroup')] + [
            {'type': name} for name in namespaces]
        conf['linux'].setdefault('resources', {}).update(resources or {})
        if path:
            conf['linux']['cgroupsPath'] = path
        with open(place, 'w') as file:
            json.dump(conf, file)

    def text(self, path):
        with open(path) as file:
            return file.read()

    def ticks(self, n=1):
        """[{name: value}] of the ticks so far, once there are n."""
        def found():
            return self.text(self.out).count('\n') >= n
        try:
            until(found)
        except AssertionError:
            raise AssertionError(self.text(self.err))
        return [{name: entry['value'] for point in json.loads(line)['points'] for name, entry in point.items()}
                for line in self.text(self.out).split('\n')[:-1]]

    def events(self):
        """What runc says of it now."""
        return json.loads(subprocess.check_output([self.runc, '--root', self.state, 'events', '--stats', self.name]).decode())['data']

    def busy(self, cores, n):
        """(percent of so many cores that runc says it used during n ticks, the mean of what these ticks say), whatever
        the machine had left for it."""
        count = len(self.ticks(2))
        before = self.events()['cpu']['usage']['total'], time.monotonic()
        ticks = self.ticks(count + n)
        after = self.events()['cpu']['usage']['total'], time.monotonic()
        ticks = ticks[count:]
        return ((after[0] - before[0]) / 1e7 / (after[1] - before[1]) / cores,
                mean(ticks, 'cpu.user') + mean(ticks, 'cpu.system'))

    def close(self):
        if self.started:
            subprocess.call([self.runc, '--root', self.state, 'delete', '-f', self.name], stderr=subprocess.DEVNULL)


@pytest.fixture
def boxes(tmp_path):
    """boxes(name, ...) -> a Box that is gone after the test."""
    made = []

    def make(*args, **more):
        made.append(Box(tmp_path, *args, **more))
        return made[-1]
    yield make
    for box in made:
        box.close()


def mean(ticks, name):
    values = [tick[name] for tick in ticks if name in tick]
    return sum(values) / len(values)


LIMITS = {'cpu': {'quota': 50000, 'period': 100000}, 'memory': {'limit': 96 * MIB}}


@pytest.mark.parametrize('namespaces', [('pid', 'cgroup'), ('pid',)])
def test_figures_of_a_container_with_a_quota_and_a_limit(boxes, namespaces):
    box = boxes('limits', [BURN], resources=LIMITS, namespaces=namespaces)
    said, ticks = None, []
    for attempt in range(3):                    # runc is asked between two ticks; use may change within one
        before = box.ticks(5 + attempt)[-1]
        said = box.events()
        ticks = box.ticks(len(ticks) + 6)
        after = ticks[-1]
        low, high = sorted((before['mem.memtotal'] - before['mem.memfree'], after['mem.memtotal'] - after['mem.memfree']))
        if low - MIB <= said['memory']['usage']['usage'] <= high + MIB:
            break
    assert said['memory']['usage']['limit'] == 96 * MIB == after['mem.memtotal']
    assert low - MIB <= said['memory']['usage']['usage'] <= high + MIB
    assert after['mem.used'] + after['mem.memavailable'] == 96 * MIB and after['mem.used_percent'] == pytest.approx(
        100.0 * after['mem.used'] / (96 * MIB))
    assert after['mem.anonpages'] == pytest.approx(said['memory']['raw']['total_rss'], abs=4 * MIB)
    # it burns what it may, half a core, where the machine has that left
    used, shown = box.busy(.5, 8)
    assert shown == pytest.approx(min(used, 100), abs=12) and used > 20 and after['cpu.cores'] == .5
    for tick in ticks[1:]:
        assert tick['cpu.user'] + tick['cpu.system'] + tick['cpu.idle'] == pytest.approx(100)
    assert after['load.total_entities'] == said['pids']['current'] and 'load.one' not in after
    assert 0 < after['system.uptime'] < 200 and 'cpu.ctxt_per_sec' not in after
    assert 'view container: this is a container' in until(lambda: box.text(box.err))


def test_transfers_of_a_container_are_what_it_wrote(boxes, tmp_path):
    device = os.stat(str(tmp_path)).st_dev
    require(os.major(device), 'runc', 'the temporary folder is on no disk')
    # from Linux 6.10 on cgroup v1 counts from the first limit on that anybody has set for the disk
    limit = [{'major': os.major(device), 'minor': os.minor(device), 'rate': 1 << 40}]
    box = boxes('disk', [WRITE % 48], ['-m', 'disk', '-i', '0.5'], {'blockIO': {'throttleWriteBpsDevice': limit}})
    until(lambda: os.path.exists(box.data + '/file') and os.path.getsize(box.data + '/file') >= 48 * MIB)
    time.sleep(1)
    ticks = box.ticks(len(box.ticks()) + 2)
    device = [entry for entry in box.events()['blkio']['ioServiceBytesRecursive'] if entry['op'] == 'Write']
    name = [key.rpartition('.')[2] for key in ticks[-1] if key.startswith('disk.writes.')]
    assert len(name) == 1 == len(device)
    assert os.path.realpath('/sys/dev/block/%d:%d' % (device[0]['major'], device[0].get('minor', 0))).endswith('/' + name[0])
    # ticks are half a second: what was written in one is half of its rate; the few that were late are measured by themselves
    total = sum(tick.get('disk.write_thruput.' + name[0], 0) * .5 for tick in ticks)
    assert total == pytest.approx(48 * MIB, rel=.05) and device[0]['value'] == pytest.approx(48 * MIB, rel=.02)
    size = [tick['disk.request_size.' + name[0]] for tick in ticks if tick.get('disk.write_thruput.' + name[0])]
    assert size and all(tick.get('disk.util.' + name[0]) is None for tick in ticks)


def test_a_cpuset_is_what_the_container_may_use(boxes):
    box = boxes('cpuset', [BURN, BURN], ['-m', 'cpu', '-m', 'system'], {'cpu': {'cpus': '0'}})
    used, shown = box.busy(1, 8)
    assert shown == pytest.approx(min(used, 100), abs=12) and box.ticks()[-1]['cpu.cores'] == 1


def test_a_limit_above_the_container_counts_though_it_cannot_be_seen(boxes):
    """Only cgroup v1 says it, in memory.stat."""
    own = [line.split(':', 2)[2].strip() for line in open('/proc/self/cgroup') if line.split(':')[1] == 'memory']
    require(own and os.path.isdir('/sys/fs/cgroup/memory'), 'runc', 'there is no memory cgroup of v1')
    parent = os.path.join('/sys/fs/cgroup/memory' + own[0].rstrip('/'), 'statbadger-pod-%d' % os.getpid())
    os.mkdir(parent)
    try:
        with open(os.path.join(parent, 'memory.limit_in_bytes'), 'w') as file:
            file.write('%d' % (80 * MIB))
        box = boxes('pod', [], ['-m', 'memory'], path='statbadger-pod-%d/inner' % os.getpid())
        try:
            assert box.ticks(2)[-1]['mem.memtotal'] == 80 * MIB
        finally:
            box.close()
    finally:
        for folder in [parent] + [os.path.join('/sys/fs/cgroup', name, os.path.basename(parent)) for name in os.listdir('/sys/fs/cgroup')]:
            if os.path.isdir(folder):
                until(lambda: not os.path.exists(os.path.join(folder, 'inner')))
                os.rmdir(folder)


def test_without_cgroups_the_figures_are_the_hosts_and_the_log_says_so(boxes):
    box = boxes('bare', [], cgroups=False)
    tick = box.ticks(2)[-1]
    assert 'view host: this is a container, but it has no cgroup file system mounted' in until(lambda: box.text(box.err))
    with open('/proc/meminfo') as file:
        assert tick['mem.memtotal'] == int(file.readline().split()[1]) * 1024
    assert 'cpu.ctxt_per_sec' in tick


@pytest.mark.parametrize('cgroups, name', [(True, 'container'), (False, 'container')])
def test_on_request_the_containers_or_nothing(boxes, cgroups, name):
    box = boxes('request', [], conf={'view': 'container', 'modules': {'cpu': {}, 'memory': {}}}, resources=LIMITS, cgroups=cgroups)
    tick = box.ticks(3)[-1]
    assert tick.get('mem.memtotal') == (96 * MIB if cgroups else None) and ('cpu.idle' in tick) == cgroups


def test_the_check_says_it(boxes):
    box = boxes('check', [], ['--check'], started=False)
    assert box.code == 0
    assert '\nview      container: this is a container (its PID namespace is its own), and its cgroup (v1' in box.text(box.out)


def test_a_recording_from_inside_is_replayed_outside(boxes, run):
    box = boxes('record', [BURN], ['-n', '4', '-i', '0.5', '--record', '/data/r'], resources=LIMITS)
    live = box.ticks(4)
    done = run('--replay', os.path.join(box.data, 'r'), '-e', 'stdout', '-i', '0.5')
    again = [{name: entry['value'] for point in json.loads(line)['points'] for name, entry in point.items()}
             for line in done.out.splitlines()]
    assert len(again) == 4 and again[-1]['mem.memtotal'] == 96 * MIB
    for one, other in zip(live, again):
        assert set(one) == set(other)
        for name in one:
            # a snapshot is named by the ms in which its tick began; a module is read later, when others leave it time
            if name == 'cpu.cores' or not name.startswith(('cpu.', 'disk.')):
                assert other[name] == one[name], name


# -- the host, seen from a container ---------------------------------------------------------------------------

RECIPES = {
    'root': dict(binds=[('/', '/host')], environment=['HOST_ROOT=/host']),
    'proc and sys': dict(binds=[('/proc', '/hostproc'), ('/sys', '/hostsys')], environment=['HOST_PROC=/hostproc', 'HOST_SYS=/hostsys']),
    'the PID namespace': dict(namespaces=()),
}


@pytest.mark.parametrize('recipe', sorted(RECIPES))
def test_the_host_from_a_container(boxes, recipe):
    box = boxes('host', [], ['-m', 'cpu,per_core', '-m', 'memory', '-m', 'disk', '-m', 'network,interfaces=*', '-m', 'system'],
                resources=LIMITS, **RECIPES[recipe])
    tick = box.ticks(2)[-1]
    with open('/proc/meminfo') as file:
        assert tick['mem.memtotal'] == int(file.readline().split()[1]) * 1024
    with open('/proc/stat') as file:
        text = file.read()
    assert tick['cpu.cores'] == text.count('\ncpu') and tick['system.boot_time'] == pytest.approx(int(text.split('\nbtime ')[1].split()[0]), abs=1)
    seen = {name.rpartition('.')[2] for name in tick if name.startswith('net.rx_bytes.')}
    # a container's own namespace has lo only; with the host's PID namespace alone, network stays the container's
    assert seen == ({'lo'} if recipe == 'the PID namespace' else set(os.listdir('/sys/class/net')) - {'bonding_masters'})
    with open('/proc/diskstats') as file:
        assert {name.rpartition('.')[2] for name in tick if name.startswith('disk.reads.')} <= {line.split()[2] for line in file}


def test_the_hosts_name_from_a_container(boxes, tmp_path):
    (tmp_path / 'etc').mkdir()
    (tmp_path / 'etc' / 'hostname').write_text('the-host\n')
    box = boxes('name', [], ['--check'], started=False, binds=[('/proc', '/hostproc'), ('/sys', '/hostsys'), (str(tmp_path / 'etc'), '/host')],
                environment=['HOST_PROC=/hostproc', 'HOST_SYS=/hostsys', 'HOST_ETC=/host'])
    assert 'hostname=the-host' in box.text(box.out) and '\nview      host: the files are those of /hostproc, /hostsys' in box.text(box.out)


# -- LXCFS --------------------------------------------------------------------------------------------------------

LXCFS_FILES = ('cpuinfo', 'diskstats', 'loadavg', 'meminfo', 'stat', 'swaps', 'uptime')


@pytest.fixture(params=[True, False], ids=['with -l', 'without -l'])
def lxcfs(request, tmp_path):
    """(a running LXCFS, its folder, whether it makes load averages)"""
    program = require(command('lxcfs'), 'lxcfs', 'not installed (Debian: lxcfs)')
    require(os.path.exists('/dev/fuse') and os.geteuid() == 0, 'lxcfs', 'needs /dev/fuse and root')
    folder = str(tmp_path / 'lxcfs')
    os.mkdir(folder)
    process = subprocess.Popen([program, '-f', '-p', str(tmp_path / 'lxcfs.pid')] + (['-l'] if request.param else []) + [folder],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: process.poll() is not None or os.path.exists(folder + '/proc/meminfo'))
        require(process.poll() is None, 'lxcfs', 'does not run here')
        yield process, folder, request.param
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
        subprocess.call(['umount', '-l', folder], stderr=subprocess.DEVNULL)
        process.kill()
        process.wait()


def test_lxcfs_and_that_it_may_hang(boxes, lxcfs):
    process, folder, averages = lxcfs
    box = boxes('lx', [BURN], ['-i', '0.5'], resources=LIMITS, binds=[(folder + '/proc/' + name, '/proc/' + name) for name in LXCFS_FILES])
    try:
        ticks = box.ticks(6)
        assert 'LXCFS gives proc/cpuinfo, proc/diskstats, proc/loadavg, proc/meminfo' in until(lambda: box.text(box.err))
        assert ticks[-1]['mem.memtotal'] == 96 * MIB and ticks[-1]['cpu.cores'] == .5
        used, shown = box.busy(.5, 8)
        assert shown == pytest.approx(min(used, 100), abs=12)
        with open('/proc/uptime') as file:
            assert 0 < ticks[-1]['system.uptime'] < min(200, float(file.read().split()[0]))
        # without -l its load averages are the host's; a host that has no more threads than twice ours and 16 is none
        assert ('load.one' in ticks[-1]) == averages and ticks[-1]['load.total_entities'] < 10
        process.send_signal(signal.SIGSTOP)
        count = len(box.ticks())
        hung = box.ticks(count + 8)[count + 4:]         # 0.5 s each: a tick that waits would never come
        assert all('mem.memtotal' not in tick and 'cpu.idle' in tick for tick in hung)
        process.send_signal(signal.SIGCONT)
        count = len(box.ticks())
        until(lambda: 'mem.memtotal' in box.ticks()[-1])
    finally:
        process.send_signal(signal.SIGCONT)
        box.close()


# -- pure cgroup v2 -------------------------------------------------------------------------------------------------

V2 = '''
mkdir -p /sys/fs/cgroup/pod/box
for controller in cpu cpuset memory io pids; do echo +$controller >/sys/fs/cgroup/pod/cgroup.subtree_control; done 2>/dev/null
echo "30000 100000" >/sys/fs/cgroup/pod/cpu.max
echo "60000 100000" >/sys/fs/cgroup/pod/box/cpu.max
echo 100M >/sys/fs/cgroup/pod/memory.max
echo 64M >/sys/fs/cgroup/pod/box/memory.max
cat >inner.sh <<'X'
%(mount)s
%(python)s -c 'while True: pass' &
burner=$!
%(python)s %(program)s -e stdout -n 10 >/run/out 2>/run/err &
agent=$!
until [ $(wc -l </run/out) -ge 1 ]; do sleep 0.2; done
echo "before $(cat /proc/uptime) $(cat /run/cg/cpu.stat)" | tr '\n' ' '; echo
until [ $(wc -l </run/out) -ge 5 ]; do sleep 0.2; done
echo "after $(cat /proc/uptime) $(cat /run/cg/cpu.stat)" | tr '\n' ' '; echo
kill $burner
until [ $(wc -l </run/out) -ge 7 ]; do sleep 0.2; done
dd if=/dev/zero of=/dev/ubda bs=65536 count=200 oflag=direct 2>/dev/null
wait $agent
cat /run/err /run/out
echo "current $(cat /run/cg/memory.current) pids $(cat /run/cg/pids.current)"
X
mkdir /run/cg
mount --bind /sys/fs/cgroup/pod/box /run/cg
sh -c 'echo $$ >/sys/fs/cgroup/pod/box/cgroup.procs; exec unshare --pid --fork --mount-proc %(more)s sh inner.sh'
'''


@pytest.mark.parametrize('private', [True, False])
def test_pure_cgroup_v2(tmp_path, private):
    require(os.path.exists(PYTHON), 'User-Mode Linux', 'there is no %s' % PYTHON)
    out = uml.boot(V2 % {'python': PYTHON, 'program': PROGRAM, 'more': '--cgroup' if private else '',
                         'mount': 'umount /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup' if private else ''},
                   tmp_path, disk=64 * MIB)
    ticks = [{name: entry['value'] for point in json.loads(line)['points'] for name, entry in point.items()}
             for line in out.splitlines() if line.startswith('{')]
    assert len(ticks) == 10, out
    last = ticks[-1]
    # in a cgroup namespace the pod's quota, which is tighter, cannot be seen, and there is one core
    assert last['cpu.cores'] == (.6 if private else .3)
    assert last['mem.memtotal'] == 64 * MIB and 4 * MIB < last['mem.used'] < 64 * MIB
    assert last['mem.memfree'] <= last['mem.memavailable'] == 64 * MIB - last['mem.used'] and last['mem.anonpages'] > 4 * MIB
    # beside what cpu.stat itself says, whatever this kernel got of the machine: its clock is not exact
    before, after = [line.split() for word in ('before ', 'after ') for line in out.splitlines() if line.startswith(word)]
    used = (int(after[4]) - int(before[4])) / 1e4 / (float(after[1]) - float(before[1])) / last['cpu.cores']
    assert before[3] == 'usage_usec' and used > 10
    assert mean(ticks[1:5], 'cpu.user') + mean(ticks[1:5], 'cpu.system') == pytest.approx(min(used, 100), abs=20), out
    assert sum(tick.get('disk.write_thruput.ubda', 0) for tick in ticks) == pytest.approx(200 * 65536, rel=.3), out
    assert 2 <= last['load.total_entities'] <= 12
