"""Containers that runc and podman make on this kernel, and cgroups of a pure v2 kernel (User-Mode Linux): our figures
beside those of runc events, podman stats, ip and dd about the same moment."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import statbadger
import uml
from conftest import PROGRAM, options
from peer import command, require

HERE = os.path.dirname(os.path.abspath(__file__))
APPLETS = ('sh', 'sleep', 'dd', 'nc', 'head', 'tail', 'cat', 'tr', 'yes')


class Live:
    """The module over a tree, read by hand. total(): what a rate comes to over all readings; last: of the last one."""

    def __init__(self, tree, **values):
        found = dict((o.name, o.default) for o in statbadger.MODULES['containers'].options)
        self.tree, self.said, self.totals, self.last, self.labels = tree, [], {}, {}, {}
        self.parts = statbadger.Parts('containers', statbadger.MODULES['containers'].parts,
                                      options(**dict(found, **dict({'socket': ''}, **values))), tree,
                                      lambda level, text: self.said.append(text), alone=True)
        self.when = None

    def read(self):
        self.last, before = {}, self.when
        found = self.parts.read(self.tree.monotonic())
        self.when = self.tree.when
        for series, numbers in found:
            for one, value in zip(series, numbers):
                if value == value:
                    name = one.name, one.instance[0]
                    self.labels[name[1]] = dict(zip(one.keys, one.values))
                    self.last[name] = value
                    if one.kind == statbadger.COUNTER and before:
                        self.totals[name] = self.totals.get(name, 0) + value * (self.when - before)
        return self.last

    def total(self, metric, name):
        return self.totals.get((metric, name), 0)

    def read_for(self, seconds, every=0.3):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(every)
            self.read()


@pytest.fixture
def live():
    trees = []

    def start(**values):
        tree = statbadger.host_tree('', {}, time.monotonic)
        trees.append(tree)
        one = Live(tree, **values)
        one.read()
        return one
    yield start
    for tree in trees:
        tree.close()


@pytest.fixture(scope='module')
def rootfs(tmp_path_factory):
    """A root file system of a static busybox."""
    require(os.geteuid() == 0, 'containers', 'needs root')
    busybox = require(command('busybox'), 'busybox', 'there is no busybox: apt-get install busybox-static')
    folder = tmp_path_factory.mktemp('rootfs')
    for name in ('bin', 'proc', 'dev', 'sys', 'tmp', 'etc'):
        (folder / name).mkdir()
    shutil.copy(busybox, str(folder / 'bin/busybox'))
    for applet in APPLETS:
        os.symlink('busybox', str(folder / 'bin' / applet))
    return folder


class Box:
    """A container of runc."""

    def __init__(self, name, folder, rootfs, script, resources=None):
        self.name, self.folder = name, folder
        folder.mkdir()
        subprocess.check_call(['runc', 'spec'], cwd=str(folder))
        config = json.loads((folder / 'config.json').read_text())
        config['process'].update(terminal=False, args=['sh', '-c', script], rlimits=[])
        config['root'] = {'path': str(rootfs), 'readonly': False}
        config['linux']['resources'].update(resources or {})
        (folder / 'config.json').write_text(json.dumps(config))

    def __enter__(self):
        with open(str(self.folder / 'out'), 'wb') as out:
            done = subprocess.call(['runc', 'run', '--detach', '--pid-file', str(self.folder / 'pid'), self.name],
                                   cwd=str(self.folder), stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        text = (self.folder / 'out').read_text()
        require(done == 0, 'runc', 'a container cannot be started here: %s' % text[-200:])
        self.pid = int((self.folder / 'pid').read_text())
        return self

    def __exit__(self, *error):
        subprocess.call(['runc', 'delete', '-f', self.name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stats(self):
        """What runc itself says of it."""
        return json.loads(subprocess.check_output(['runc', 'events', '--stats', self.name]).decode())['data']

    def folder_of(self, controller):
        with open('/proc/%d/cgroup' % self.pid) as file:
            for line in file.read().split('\n'):
                number, names, path = line.split(':', 2)
                if controller in names.split(','):
                    return '/sys/fs/cgroup/%s%s' % (names, path)


@pytest.fixture
def box(tmp_path, rootfs, request):
    require(command('runc'), 'runc', 'there is no runc: apt-get install runc')
    count = []

    def make(script, **resources):
        count.append(1)
        return Box('sb%d-%d' % (os.getpid(), len(count)), tmp_path / ('box%d' % len(count)), rootfs, script, resources)
    return make


BUSY = 'while :; do :; done'
QUIET = 'while :; do sleep 0.2; done'
PATHS = ['/sb%d-*' % os.getpid()]


def test_processor_time_under_a_quota_is_what_runc_says(box, live):
    with box(BUSY, cpu={'quota': 30000, 'period': 100000}, memory={'limit': 64 << 20}, pids={'limit': 20}) as one:
        watch = live(paths=PATHS)
        watch.read()
        watch.totals.clear()
        before, began = one.stats(), time.monotonic()
        watch.read()
        watch.totals.clear()
        watch.read_for(4)
        after, took = one.stats(), time.monotonic() - began
    runc = (after['cpu']['usage']['total'] - before['cpu']['usage']['total']) / 1e9
    ours = watch.total('cpu', one.name) / 100
    periods = throttling(after, 'throttledPeriods') - throttling(before, 'throttledPeriods')
    held = (throttling(after, 'throttledTime') - throttling(before, 'throttledTime')) / 1e6
    print('cpu %.3f s, runc %.3f s in %.1f s' % (ours, runc, took))
    assert 0.8 * runc <= ours <= runc + 0.001 and runc < 0.3 * took + 0.1
    assert 0.8 * held <= watch.total('cpu_throttled', one.name) <= held + 1 and held > 0
    assert 0.8 * periods <= watch.total('cpu_throttled_periods', one.name) <= periods + 0.01
    last = {metric: value for (metric, name), value in watch.last.items() if name == one.name}
    assert (last['cpu_limit'], last['memory_limit'], last['pids_limit']) == (0.3, 64 << 20, 20)
    assert (last['pids'], last['threads'], after['pids']['current']) == (1, 1, 1)
    assert 4 <= last['uptime'] < 60
    # The memory of one that does nothing else than to run in circles stays as it is.
    usage = after['memory']['usage']['usage']
    assert abs(last['memory_usage'] - usage) <= 1 << 20 and last['memory_rss'] <= last['memory_usage']


def throttling(stats, name):
    return stats['cpu']['throttling'].get(name, 0)


def test_memory_up_to_an_oom_kill(box, live):
    eat = 'sleep 1; tail -c 100000000 /dev/zero; sleep 60'
    with box(eat, memory={'limit': 16 << 20, 'swap': 64 << 20}) as one:
        watch = live(paths=PATHS)
        end, most = time.monotonic() + 20, 0
        while not watch.total('memory_oom_kills', one.name) and time.monotonic() < end:
            watch.read_for(0.2, 0.1)
            most = max(most, watch.last.get(('memory_usage', one.name), 0))
        with open(one.folder_of('memory') + '/memory.oom_control') as file:
            kernel = dict(line.split() for line in file)
        with open(one.folder_of('memory') + '/memory.failcnt') as file:
            failures = int(file.read())
        watch.read()
    assert round(watch.total('memory_oom_kills', one.name), 6) == int(kernel['oom_kill']) == 1
    assert round(watch.total('memory_failures', one.name), 3) == failures > 0
    assert most <= 16 << 20


def test_bytes_written_and_read_past_the_page_cache_are_exact(box, live, rootfs):
    script = ('sleep 2; dd if=/dev/zero of=/tmp/f bs=65536 count=160 oflag=direct; '
              'dd if=/tmp/f of=/dev/null bs=65536 count=80 iflag=direct; sleep 60')
    device = os.stat(str(rootfs)).st_dev         # from Linux 6.10 on v1 counts where there is a limit only
    limit = [{'major': os.major(device), 'minor': os.minor(device), 'rate': 1 << 40}]
    with box(script, blockIO={'throttleReadBpsDevice': limit, 'throttleWriteBpsDevice': limit}) as one:
        subprocess.check_call(['dd', 'if=/dev/zero', 'of=%s' % (rootfs / 'tmp/g'), 'bs=4096', 'count=1', 'oflag=direct'],
                              stderr=subprocess.DEVNULL)
        watch = live(paths=PATHS)
        end = time.monotonic() + 20
        while watch.total('disk_read_bytes', one.name) < 80 * 65536 and time.monotonic() < end:
            watch.read_for(0.3, 0.1)
        out = (one.folder / 'out').read_text()
        watch.read()
    os.remove(str(rootfs / 'tmp/f'))
    print(out)
    require('Invalid argument' not in out, 'disk', 'this file system takes no direct I/O')
    # Metadata of the file system may come on top, a block or a few of 4096 bytes each.
    written, read = watch.total('disk_write_bytes', one.name), watch.total('disk_read_bytes', one.name)
    print('written %d, read %d' % (written, read))
    assert 0 <= round(written) - 160 * 65536 <= 65536 and 0 <= round(read) - 80 * 65536 <= 1 << 20
    assert 160 <= round(watch.total('disk_writes', one.name)) <= 400


def test_bytes_over_a_network_of_their_own_are_those_of_ip(box, live):
    require(command('ip') and command('nsenter'), 'iproute2', 'there is no ip')
    with box('nc -l -p 7777 >/dev/null; sleep 60') as server, box(QUIET) as client:
        veth = 'sb%d' % (os.getpid() % 100000)
        subprocess.check_call(['ip', 'link', 'add', veth, 'type', 'veth', 'peer', 'name', veth + 'p'])
        for one, name, address in ((server, veth, '10.99.0.1/24'), (client, veth + 'p', '10.99.0.2/24')):
            subprocess.check_call(['ip', 'link', 'set', name, 'netns', str(one.pid)])
            inside = ['nsenter', '-t', str(one.pid), '-n', 'ip']
            subprocess.check_call(inside + ['link', 'set', name, 'name', 'eth0'])
            subprocess.check_call(inside + ['addr', 'add', address, 'dev', 'eth0'])
            subprocess.check_call(inside + ['link', 'set', 'eth0', 'up'])
        watch = live(paths=PATHS)
        watch.read()
        watch.totals.clear()
        before = [counted(one) for one in (server, client)]
        watch.read()
        subprocess.check_call(['nsenter', '-t', str(client.pid), '-n', sys.executable, '-c', (
            'import socket\ns = socket.create_connection(("10.99.0.1", 7777), 20)\ns.sendall(bytes(5000000))\ns.close()\n')], timeout=60)
        watch.read_for(2)
        after = [counted(one) for one in (server, client)]
        watch.read()
    for one, then, now in zip((server, client), before, after):
        for metric in ('net_rx_bytes', 'net_tx_bytes', 'net_rx_packets', 'net_tx_packets'):
            ip, ours = now[metric] - then[metric], watch.total(metric, one.name)
            print(one.name, metric, ip, round(ours))
            assert abs(ours - ip) <= (2000 if 'bytes' in metric else 20)     # router solicitations between the two
    assert watch.total('net_rx_bytes', server.name) > 5000000 < watch.total('net_tx_bytes', client.name)
    assert watch.said == []


def counted(one):
    """What ip says of eth0 in a container."""
    found = json.loads(subprocess.check_output(['nsenter', '-t', str(one.pid), '-n', 'ip', '-s', '-j', 'link', 'show', 'eth0'],
                                               ).decode())[0]['stats64']
    return {'net_%s_%s' % (way, what): found[way][what] for way in ('rx', 'tx') for what in ('bytes', 'packets')}


def test_one_that_starts_between_two_readings_counts_from_its_start_and_one_that_is_paused_stays(box, live):
    watch = live(paths=PATHS)
    watch.read()
    with box(BUSY) as one:
        time.sleep(1)
        then = one.stats()['cpu']['usage']['total'] / 1e9
        watch.read()
        now = one.stats()['cpu']['usage']['total'] / 1e9
        assert 0 < then <= watch.total('cpu', one.name) / 100 + 1e-5 and watch.total('cpu', one.name) / 100 <= now
        subprocess.check_call(['runc', 'pause', one.name])
        try:
            watch.read()
            watch.totals.clear()
            watch.read_for(1)
            assert watch.total('cpu', one.name) < 1 and watch.last['pids', one.name] == 1
        finally:
            subprocess.check_call(['runc', 'resume', one.name])
    watch.read()
    assert ('memory_usage', one.name) not in watch.last
    assert not [name for name in watch.tree.held if one.name in name]


def test_more_processes_than_a_page_of_their_list_holds(box, live):
    with box('i=0; while [ $i -lt 900 ]; do sleep 60 & i=$((i+1)); done; wait') as one:
        watch, end = live(paths=PATHS), time.monotonic() + 30
        while watch.last.get(('pids', one.name), 0) < 901 and time.monotonic() < end:
            watch.read_for(0.3)
        assert watch.last['pids', one.name] == watch.last['threads', one.name] == one.stats()['pids']['current'] == 901


def test_one_that_is_made_again_under_its_name_has_no_rate_at_first(box, live, rootfs, tmp_path):
    watch = live(paths=PATHS)
    first = box(BUSY)
    with first:
        watch.read_for(1)
        assert watch.last['cpu', first.name] > 0
    again = Box(first.name, tmp_path / 'again', rootfs, BUSY)
    with again:
        time.sleep(0.5)
        watch.read()
        assert ('cpu', first.name) not in watch.last and watch.last['memory_usage', first.name] > 0
        watch.read_for(0.5)
        assert 0 < watch.last['cpu', first.name] < 130


# -- podman -----------------------------------------------------------------------------------------------------

class Podman:
    def __init__(self, folder):
        self.folder = str(folder)
        self.argv = ['podman', '--root', self.folder + '/r', '--runroot', self.folder + '/run', '--storage-driver', 'vfs',
                     '--cgroup-manager=cgroupfs', '--runtime', command('runc'), '--events-backend', 'file']

    def __call__(self, *args, **more):
        return subprocess.check_output(self.argv + list(args), stderr=subprocess.STDOUT, timeout=60, **more).decode().strip()

    def run(self, name, script):
        """The id of a container that was started."""
        try:
            return self('run', '-d', '--name', name, '-e', 'PASSWORD=hunter2', '--label', 'com.docker.compose.service=front',
                        '--net=none', '--ulimit', 'nofile=1024:1024', '--ulimit', 'nproc=1000:1000', 'img', 'sh', '-c',
                        script).split('\n')[-1]
        except subprocess.CalledProcessError as error:
            require(False, 'podman', 'a container cannot be started here: %s' % error.output.decode()[-300:])


@pytest.fixture
def podman(tmp_path, rootfs):
    require(command('podman') and command('runc'), 'podman', 'there is no podman: apt-get install podman runc')
    folder = tempfile.mkdtemp(prefix='sb')       # its runroot may have 50 characters
    one, service = Podman(folder), None
    with open(str(tmp_path / 'img.tar'), 'wb') as file:
        subprocess.check_call(['tar', '-C', str(rootfs), '-c', '.'], stdout=file)
    try:
        one('import', str(tmp_path / 'img.tar'), 'img')
        one.socket = one.folder + '/sock'
        service = subprocess.Popen(one.argv + ['system', 'service', '-t', '0', 'unix://' + one.socket],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while not os.path.exists(one.socket) and time.monotonic() < end:
            time.sleep(0.1)
        yield one
    finally:
        for name in ('web', 'other'):
            subprocess.call(one.argv + ['rm', '-f', '-t', '0', name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if service:
            service.send_signal(signal.SIGTERM)
            service.wait(20)
        for top in os.listdir('/sys/fs/cgroup'):
            for place, below, files in os.walk('/sys/fs/cgroup/%s/libpod_parent' % top, topdown=False):
                try:
                    os.rmdir(place)
                except OSError:
                    pass                        # somebody else's containers
        time.sleep(0.5)                          # conmon clears up behind its container
        shutil.rmtree(folder, ignore_errors=True)


def test_the_containers_of_podman_beside_podman_stats(podman, live):
    id = podman.run('web', BUSY)
    watch = live(socket=podman.socket, labels=['com.docker.compose.service'])
    assert watch.labels['web'] == {'container': 'web', 'id': id, 'image': 'localhost/img:latest', 'runtime': 'podman',
                                   'com.docker.compose.service': 'front'}
    watch.read_for(2)
    before, began = podman_stats(podman), time.monotonic()
    watch.read()
    watch.totals.clear()
    watch.read_for(3)
    after, took = podman_stats(podman), time.monotonic() - began
    spent = (after['CPUNano'] - before['CPUNano']) / 1e9 if 'CPUNano' in after else None
    print('podman stats: %r in %.1f s, ours %.2f s' % (spent, took, watch.total('cpu', 'web') / 100))
    if spent is not None:
        assert 0.6 * spent <= watch.total('cpu', 'web') / 100 <= spent + 0.01
    assert watch.last['threads', 'web'] == after['PIDs'] == 1
    assert abs(watch.last['memory_usage', 'web'] - after['MemUsage']) < 1 << 20
    assert watch.said == []


def podman_stats(podman):
    """The figures of podman stats, as numbers."""
    names = ('PIDs', 'MemUsage', 'CPUNano')
    text = podman('stats', '--no-stream', '--format', ' '.join('{{.ContainerStats.%s}}' % name for name in names), 'web')
    return dict(zip(names, map(int, text.split())))


def test_a_name_that_another_container_of_podman_takes_over(podman, live):
    first = podman.run('web', QUIET)
    watch = live(socket=podman.socket)
    watch.read_for(1)
    assert watch.last['cpu', 'web'] >= 0 and watch.labels['web']['id'] == first
    podman('rm', '-f', '-t', '0', 'web')
    second = podman.run('web', BUSY)
    end = time.monotonic() + 20                 # podman may be too busy to answer at the first time
    while watch.labels['web']['id'] != second and time.monotonic() < end:
        watch.read_for(0.5)
    watch.read_for(0.5)
    assert second != first and watch.labels['web']['id'] == second
    assert 0 < watch.last['cpu', 'web'] < 130


def test_a_recording_of_a_container_of_podman_replays_to_its_name_and_holds_no_secret(podman, run, tmp_path):
    podman.run('web', QUIET)
    module = 'containers,socket=' + podman.socket
    done = run('-m', module, '-n', '6', '-e', 'stdout', '--record', tmp_path / 'rec')
    again = run('--replay', tmp_path / 'rec', '-m', module + '.gone', '-e', 'stdout')
    live, replayed = [[json.loads(line) for line in text.split('\n')[:-1]] for text in (done.out, again.out)]
    for ticks in (live, replayed):               # the last snapshot may be a part, and a late tick is empty
        seen = [{name: entry['value'] for point in tick['points'] for name, entry in point.items()} for tick in ticks[:-1]]
        assert {tick['container.pids.web'] for tick in seen if 'container.pids.web' in tick} == {2}, (done.err, again.err)
    for path in (tmp_path / 'rec').rglob('*'):
        assert not path.is_file() or b'hunter2' not in path.read_bytes()


# -- pure cgroup v2 -----------------------------------------------------------------------------------------------

V2 = r'''
import json, os, subprocess, sys, time
sys.path[:0] = %(path)r
import statbadger
from test_containers_peer import Live
ID, NEW = 'a1' * 32, 'b2' * 32
TOP = '/sys/fs/cgroup/system.slice'


def write(name, text):
    with open(name, 'w') as file:
        file.write(text)


def make(id, script, **limits):
    folder = '%%s/docker-%%s.scope' %% (TOP, id)
    os.makedirs(folder)
    for name, text in limits.items():
        write(folder + '/' + name.replace('__', '.'), text)
    def enter():
        write(folder + '/cgroup.procs', str(os.getpid()))
    return folder, subprocess.Popen(['/bin/sh', '-c', script], preexec_fn=enter, stdout=subprocess.DEVNULL,
                                    stderr=subprocess.DEVNULL)


os.makedirs(TOP)
write(TOP + '/cgroup.subtree_control', '+cpu +memory +io +pids')
write(TOP + '/memory.max', '100000000')
folder, process = make(ID, 'sleep 0.5; dd if=/dev/zero of=/dev/ubda bs=65536 count=200 oflag=direct; '
                       '"%%s" -S -c "x = b\'x\' * 90000000"; sleep 60' %% sys.executable, memory__max='29999104', cpu__max='50000 100000', pids__max='40')
watch = Live(statbadger.host_tree('', {}, time.monotonic))
watch.read()
end = time.monotonic() + 30
while not watch.total('memory_oom_kills', ID[:12]) and time.monotonic() < end:
    watch.read_for(0.4, 0.2)
first = {'limits': [watch.last.get((name, ID[:12])) for name in ('cpu_limit', 'memory_limit', 'pids_limit')]}
new, other = make(NEW, 'while :; do :; done', cpu__max='20000 100000')
time.sleep(2)
def words(folder, name):
    return dict(line.split(None, 1) for line in open(folder + '/' + name))
then = words(new, 'cpu.stat')
watch.read()
watch.read()
print(json.dumps(dict(
    first, said=watch.said, io=open(folder + '/io.stat').read(), written=watch.total('disk_write_bytes', ID[:12]),
    writes=watch.total('disk_writes', ID[:12]), kills=watch.total('memory_oom_kills', ID[:12]),
    events=words(folder, 'memory.events'), failures=watch.total('memory_failures', ID[:12]),
    cpu=watch.total('cpu', NEW[:12]) / 100, then=int(then['usage_usec']) / 1e6,
    nr_then=int(then['nr_throttled']), usage=int(words(new, 'cpu.stat')['usage_usec']) / 1e6,
    throttled=watch.total('cpu_throttled_periods', NEW[:12]), memory=watch.last['memory_usage', NEW[:12]],
    nr=int(words(new, 'cpu.stat')['nr_throttled']), current=int(open(new + '/memory.current').read()),
    runtime=watch.labels[NEW[:12]]['runtime'], threads=watch.last['threads', NEW[:12]])))
for one in (process, other):
    one.kill()
'''


def test_pure_cgroup_v2(tmp_path):
    script = 'exec %s - <<"END"\n%s\nEND\n' % (sys.executable, V2 % {'path': [HERE, os.path.dirname(HERE), os.path.dirname(PROGRAM)]})
    text = uml.boot(script, tmp_path, disk=64 << 20)
    found = json.loads(text[text.index('{"limits"'):].split('\n')[0])
    print(found)
    assert found['limits'] == [0.5, 29999104, 40] and found['runtime'] == 'docker' and found['threads'] == 1
    stat = dict(word.split('=') for word in found['io'].split()[1:])
    assert round(found['written']) == int(stat['wbytes']) == 200 * 65536
    assert round(found['writes']) == int(stat['wios'])
    assert round(found['kills'], 6) == int(found['events']['oom_kill']) == 1
    assert 0 < round(found['failures']) <= int(found['events']['max'])
    # It began between two readings: the first of its seconds count too.
    assert 0.1 < found['then'] <= found['cpu'] + 1e-5 and found['cpu'] <= found['usage'] + 1e-5
    assert found['nr_then'] <= round(found['throttled'], 3) <= found['nr']
    assert abs(found['memory'] - found['current']) <= 1 << 20
