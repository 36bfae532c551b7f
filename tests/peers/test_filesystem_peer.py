"""File systems beside df, vmstat and pressure beside Debian's node_exporter, about the same moment; a mount that really
hangs; names of the device-mapper."""
import json
import math
import os
import subprocess
import sys
import time
import urllib.request

import pytest
import statbadger
from conftest import PROGRAM, clean_environment, options
from peer import Peer, command, free_port, require

HERE = os.path.dirname(os.path.abspath(__file__))


# -- a mount namespace of our own --------------------------------------------------------------------

class Space:
    """A mount and PID namespace, ended with all that runs in it. argv(...) runs there; folder: for its mounts."""

    def __init__(self, folder):
        self.folder = folder
        self.outside = subprocess.Popen(['unshare', '--mount', '--pid', '--fork', '--kill-child', '--mount-proc',
                                         '--propagation', 'private', 'sleep', '600'])
        end = time.monotonic() + 20
        while not self.children(self.outside.pid) or b'sleep' not in self.name(self.children(self.outside.pid)[0]):
            assert self.outside.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        self.first = self.children(self.outside.pid)[0]

    @staticmethod
    def children(pid):
        with open('/proc/%d/task/%d/children' % (pid, pid)) as file:
            return [int(word) for word in file.read().split()]

    @staticmethod
    def name(pid):
        with open('/proc/%d/comm' % pid, 'rb') as file:
            return file.read()

    def argv(self, *argv):
        return ['nsenter', '-t', str(self.first), '-m', '-p', '--'] + [os.fspath(word) for word in argv]

    def call(self, *argv, **more):
        return subprocess.run(self.argv(*argv), stdout=subprocess.PIPE, timeout=60, check=True, **more).stdout.decode()

    def mount(self, name, *argv):
        """The path of a new mount point, as mount(8) is told."""
        path = self.folder / name
        path.mkdir()
        self.call('mount', *(argv + (str(path),)))
        return str(path)

    def close(self):
        self.outside.kill()                     # --kill-child: the first process there, and with it all others
        self.outside.wait()


@pytest.fixture(scope='module')
def space(tmp_path_factory):
    require(os.geteuid() == 0, 'root', 'only root may mount')
    for name in ('unshare', 'nsenter', 'mount', 'df'):
        require(command(name), name, 'not installed (Debian: util-linux, mount, coreutils)')
    made = Space(tmp_path_factory.mktemp('space'))
    yield made
    made.close()


@pytest.fixture(scope='module')
def filled(space):
    """Mounts of many kinds: [mount point] of those that a user wants to see."""
    full = space.mount('full', '-t', 'tmpfs', '-o', 'size=4m,nr_inodes=100', 'none')
    space.call('sh', '-c', 'head -c 9000000 /dev/zero > "$0"/file 2>/dev/null; true', full)
    wanted = [full, space.mount('fixed', '-t', 'tmpfs', '-o', 'ro,size=1m', 'none'),
              space.mount('a blank', '-t', 'tmpfs', '-o', 'size=2m', 'none'),
              space.mount('line\nend \\ # \xe9', '-t', 'tmpfs', '-o', 'size=3m', 'none')]
    space.call('mkdir', full + '/sub')
    space.mount('bound', '--bind', full + '/sub')
    space.mount('again', '--bind', full)
    if command('mkfs.ext4') and os.path.exists('/dev/loop-control'):
        image = str(space.folder / 'image')
        with open(image, 'wb') as file:
            file.truncate(16 << 20)
        subprocess.run([command('mkfs.ext4'), '-q', '-m', '10', image], check=True)
        wanted.append(space.mount('disk', '-o', 'loop', image))
        space.call('sh', '-c', 'head -c 3000000 /dev/zero > "$0"/file; sync', wanted[-1])
    return wanted


def one_tick(space, *args):
    """{metric: {mount: value}} of one tick inside."""
    out = space.call(sys.executable, PROGRAM, '-e', 'stdout', '-n', '1', '-i', '0.5', *args, env=clean_environment())
    return by_mount(out)


def by_mount(line):
    found = {}
    for point in json.loads(line)['points']:
        for name, entry in point.items():
            family, metric, mount = name.split('.', 2)
            found.setdefault(metric, {})[mount] = entry['value']
    return found


def df(space, mount, columns):
    return space.call('df', '-B1', '--output=' + columns, mount).split('\n')[1].split()


def until_equal(check, tries=20):
    """check() must pass once: others may write to a disk meanwhile."""
    for n in range(tries):
        try:
            return check()
        except AssertionError:
            if n == tries - 1:
                raise


def test_every_mount_has_the_figures_that_df_shows(space, filled):
    def check():
        ours = one_tick(space, '-m', 'filesystem')
        for mount in ours['size']:
            size, used, available, percent = df(space, mount, 'size,used,avail,pcent')
            assert [ours[m][mount] for m in ('size', 'used', 'available')] == [int(size), int(used), int(available)], mount
            assert '%d%%' % math.ceil(round(ours['used_percent'].get(mount, 0), 9)) == percent or percent == '-', mount
            inodes = df(space, mount, 'itotal,iused,iavail')
            if inodes[0] == '0':
                assert mount not in ours['inodes']
            else:
                assert [ours[m][mount] for m in ('inodes', 'inodes_used', 'inodes_free')] == list(map(int, inodes)), mount
        return ours
    ours = until_equal(check)
    shown = set(ours['size'])
    assert set(filled) <= shown and '/' in shown
    assert not shown & {str(space.folder / 'bound'), str(space.folder / 'again'), '/proc', '/sys', '/dev'}
    assert ours['available'][filled[0]] == 0 and ours['used_percent'][filled[0]] == 100
    assert ours['read_only'][filled[1]] == 1 and ours['read_only'][filled[0]] == 0
    assert set(ours['stuck'].values()) == {0}


def test_df_shows_no_file_system_that_stores_something_and_we_do_not(space, filled):
    """df leaves out what has no size, and mounts of one device but one; each of its devices is one of ours, but for
    those that are kept for the system (/dev, /sys, ...) and layers."""
    ours = set(one_tick(space, '-m', 'filesystem,network')['size'])
    numbers = {line.split()[4]: line.split()[2] for line in space.call('cat', '/proc/1/mountinfo').split('\n') if line}
    theirs = [line.strip() for line in space.call('df', '--output=target').split('\n')[1:] if line]
    missing = [mount for mount in theirs if mount not in ours and not mount.startswith(('/dev', '/sys', '/proc', '/run/credentials'))
               and '?' not in mount and numbers.get(mount) not in {numbers.get(other) for other in ours}]
    assert missing == []


# -- a mount that hangs ----------------------------------------------------------------------------------

@pytest.fixture
def fuse(space):
    """(mount point, switch) of a file system that answers nothing while a file `switch` is there."""
    require(os.path.exists('/dev/fuse'), 'FUSE', 'this kernel has no /dev/fuse')
    folder, switch = space.folder / 'hangs', space.folder / 'switch'
    folder.mkdir(exist_ok=True)
    server = subprocess.Popen(space.argv(sys.executable, os.path.join(HERE, 'fuse_server.py'), folder, switch), stdout=subprocess.PIPE)
    require(server.stdout.readline() == b'mounted\n', 'FUSE', 'it cannot be mounted here')
    yield str(folder), switch
    if switch.exists():
        switch.unlink()
    subprocess.call(space.argv('umount', '-l', folder))
    for pid in space.children(server.pid):
        os.kill(pid, 9)
    server.wait()
    server.stdout.close()


class Inside:
    """An agent that runs inside, and the ticks that it has printed."""

    def __init__(self, space, *args):
        self.space, self.out, self.err = space, space.folder / 'out', space.folder / 'err'
        with open(str(self.out), 'wb') as out, open(str(self.err), 'wb') as err:
            self.process = subprocess.Popen(space.argv(sys.executable, PROGRAM, '-e', 'stdout', *args), stdout=out, stderr=err,
                                            env=clean_environment())

    def ticks(self):
        return [by_mount(line) for line in self.out.read_text().split('\n')[:-1]]

    def until(self, condition, seconds=40):
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, self.err.read_text() + repr(self.ticks()[-1:])
            time.sleep(0.05)

    @property
    def pid(self):
        return self.space.children(self.process.pid)[0]

    def threads(self):
        return len(os.listdir('/proc/%d/task' % self.pid))

    def close(self):
        if self.process.poll() is None:
            os.kill(self.pid, 9)
        self.process.wait(20)


@pytest.fixture
def inside(space):
    made = []

    def make(*args):
        made.append(Inside(space, *args))
        return made[-1]
    yield make
    for one in made:
        one.close()


def test_a_mount_that_hangs_is_never_waited_for_while_the_others_go_on(space, filled, fuse, inside):
    mount, switch = fuse
    agent = inside('-m', 'filesystem,network', '-i', '0.2')
    stuck = lambda tick: tick.get('stuck', {}).get(mount)  # noqa: E731
    agent.until(lambda: len([tick for tick in agent.ticks() if stuck(tick) == 0]) > 3)
    last = agent.ticks()[-1] if stuck(agent.ticks()[-1]) == 0 else [t for t in agent.ticks() if stuck(t) == 0][-1]
    # 1,000 blocks of 4,096 bytes, 400 free, 300 for users; 50 inodes, 20 free
    assert [last[m][mount] for m in ('size', 'used', 'free', 'available', 'inodes_used')] == [
        4096000, 600 * 4096, 400 * 4096, 300 * 4096, 30]
    assert last['used_percent'][mount] == pytest.approx(100.0 * 600 / 900)
    assert list(map(int, df(space, mount, 'size,used,avail'))) == [4096000, 600 * 4096, 300 * 4096]
    agent.until(lambda: agent.threads() >= 3)
    before = agent.threads()
    switch.write_text('')
    agent.until(lambda: stuck(agent.ticks()[-1]) == 1)
    n = len(agent.ticks())
    agent.until(lambda: len(agent.ticks()) > n + 15)
    during = [tick for tick in agent.ticks()[n:] if tick]
    # A tick takes what is there after a tenth of its interval; what comes later, the next one has.
    assert len(during) > 5 and all(stuck(tick) == 1 and filled[0] in tick['size'] and mount not in tick['size'] for tick in during)
    assert agent.threads() == before + 1
    switch.unlink()
    agent.until(lambda: stuck(agent.ticks()[-1]) == 0)
    agent.until(lambda: agent.ticks()[-1].get('size', {}).get(mount) == 4096000)
    agent.until(lambda: agent.threads() <= before)
    assert agent.err.read_text().count('does not answer') == 1


def test_an_agent_ends_while_a_mount_hangs(space, fuse, inside):
    mount, switch = fuse
    switch.write_text('')
    agent = inside('-m', 'filesystem,network', '-i', '0.2')
    agent.until(lambda: agent.ticks() and agent.ticks()[-1].get('stuck', {}).get(mount) == 1)
    os.kill(agent.pid, 15)
    assert agent.process.wait(20) == 0


# -- the host's mounts from another mount namespace ---------------------------------------------------------

def from_outside(space, **environment):
    """What an agent says of the mounts inside that runs in a mount namespace of its own, and its log."""
    done = subprocess.run(['unshare', '--mount', '--propagation', 'private', sys.executable, PROGRAM, '-e', 'stdout', '-n', '1', '-i', '0.5',
                           '-m', 'filesystem'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60,
                          env=clean_environment(environment))
    return by_mount(done.stdout.decode()), done.stderr.decode()


def test_from_another_mount_namespace_the_way_leads_through_the_first_process(space, filled):
    require(os.path.isdir('/proc/%d/root/proc' % space.first), 'CAP_SYS_PTRACE', 'other processes may not be traced here')
    found, log = from_outside(space, HOST_PROC='/proc/%d/root/proc' % space.first)
    assert set(filled) <= set(found['size']) and log == ''
    assert found['available'][filled[0]] == 0 and found['size'][filled[0]] == 4 << 20


def test_below_host_root_they_are_called_as_the_host_calls_them(space, filled):
    require(os.path.isdir('/proc/%d/root/proc' % space.first), 'CAP_SYS_PTRACE', 'other processes may not be traced here')
    found, log = from_outside(space, HOST_ROOT='/proc/%d/root' % space.first)
    assert set(filled) <= set(found['size']) and log == ''


def test_without_either_it_is_said_what_cannot_be_seen_and_no_figure_is_that_of_another_disk(space, filled, tmp_path):
    (tmp_path / 'proc/1').mkdir(parents=True)
    (tmp_path / 'proc/1/mountinfo').write_text(space.call('cat', '/proc/1/mountinfo'))
    found, log = from_outside(space, HOST_PROC=str(tmp_path / 'proc'))
    assert not set(filled) & set(found.get('size', {})) and 'are not to be seen from here, such as' in log


# -- node_exporter, name by name ------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def exporter(space, tmp_path_factory):
    """scrape() -> {name with labels: value} of a node_exporter inside."""
    program = require(command('prometheus-node-exporter'), 'node_exporter', 'not installed (Debian: prometheus-node-exporter)')
    port = free_port()
    argv = [program, '--web.listen-address=127.0.0.1:%d' % port, '--collector.disable-defaults', '--collector.filesystem',
            '--collector.vmstat', '--collector.pressure', '--collector.vmstat.fields=.*',
            '--collector.filesystem.mount-points-exclude=^/(dev|proc|sys)($|/)']

    def scrape():
        try:
            with urllib.request.urlopen('http://127.0.0.1:%d/metrics' % port, timeout=10) as answer:
                text = answer.read().decode('utf-8', 'replace')
        except OSError:
            return None
        return {line.rpartition(' ')[0]: float(line.rpartition(' ')[2]) for line in text.split('\n') if line and line[0] != '#'}
    with Peer('node_exporter', space.argv(*argv), tmp_path_factory.mktemp('node'), scrape) as peer:
        yield scrape
        for pid in space.children(peer.process.pid):
            os.kill(pid, 15)


# our name, node_exporter's, what theirs is multiplied with (totals: KiB as bytes, seconds as us)
NAMES = [('vm.' + name, 'node_vmstat_' + name, 1) for name in (
    'pgpgin', 'pgpgout', 'pswpin', 'pswpout', 'pgfault', 'pgmajfault', 'oom_kill', 'pgscan_kswapd', 'pgscan_direct',
    'pgsteal_kswapd', 'pgsteal_direct', 'workingset_refault_anon', 'workingset_refault_file', 'compact_stall', 'compact_fail',
    'compact_success')] + [
    ('psi.cpu_some_stalled', 'node_pressure_cpu_waiting_seconds_total', 1e6),
    ('psi.memory_some_stalled', 'node_pressure_memory_waiting_seconds_total', 1e6),
    ('psi.memory_full_stalled', 'node_pressure_memory_stalled_seconds_total', 1e6),
    ('psi.io_some_stalled', 'node_pressure_io_waiting_seconds_total', 1e6),
    ('psi.io_full_stalled', 'node_pressure_io_stalled_seconds_total', 1e6),
    ('psi.irq_full_stalled', 'node_pressure_irq_stalled_seconds_total', 1e6)]
MOUNTED = [('size', 'size_bytes'), ('free', 'free_bytes'), ('available', 'avail_bytes'), ('inodes', 'files'), ('inodes_free', 'files_free'),
           ('read_only', 'readonly')]


def totals(tree):
    """{name: the kernel's number} of all rows of vmstat and pressure, before rates are made of them."""
    found = {}
    tree.begin()
    for name in ('vmstat', 'pressure'):
        for part in statbadger.MODULES[name].parts:
            try:
                for table, labels, row in part(tree, options(keys=['*']), {}):
                    found.update({'%s.%s' % (table.family, m.name): value for m, value in zip(table.raw, row)})
            except statbadger.Absent:
                pass
    return found


def within(ours, names, scrape, tries=60):
    """Those of the (our name, theirs, factor) that never were between what node_exporter said before and after."""
    left = list(names)
    for n in range(tries):
        before, now, after = scrape(), ours(), scrape()
        left = [(own, their, factor) for own, their, factor in left if not (
            their in before and own in now
            and min(before[their], after[their]) * factor - 1 <= now[own] <= max(before[their], after[their]) * factor + 1)]
        if not left:
            break
    return left


def test_vmstat_and_pressure_have_the_numbers_of_node_exporter_name_by_name(exporter):
    tree = statbadger.Tree({'': '/', 'proc': '/proc', 'sys': '/sys'}, time.monotonic, hold=True)
    theirs, ours = exporter(), totals(tree)
    names = [one for one in NAMES if one[0] in ours or one[1] in theirs]
    assert len(names) >= 12
    more = [('vm.' + name[12:], name, 1) for name in theirs if name.startswith('node_vmstat_')]
    assert len(more) > 60 and {name for name, their, factor in more} == {name for name in ours if name.startswith('vm.')}
    left = within(lambda: totals(tree), list(dict.fromkeys(names + more)), exporter)
    tree.close()
    assert left == []


def test_what_falls_is_called_a_gauge_and_no_counter_ever_does(exporter):
    """Of this kernel, over the time of a few readings under some load."""
    kinds = {name: statbadger.vmstat_kind(name[12:]) for name in exporter() if name.startswith('node_vmstat_')}
    last, fell = exporter(), set()
    for n in range(200):
        if fell and n >= 20:
            break
        held = b'x' * 50000000                  # what it takes is counted as it comes, and as it goes
        del held
        now = exporter()
        fell |= {name for name in kinds if now[name] < last[name]}
        last = now
    assert {name for name in fell if kinds[name] != statbadger.GAUGE} == set() and fell


def test_file_systems_have_the_numbers_of_node_exporter(space, filled, exporter):
    def check():
        before, ours, after = exporter(), one_tick(space, '-m', 'filesystem'), exporter()
        compared = 0
        for metric, their in MOUNTED:
            for mount, value in ours[metric].items():
                if '\n' in mount:                # it knows no octal escape but that of a blank
                    continue
                name = 'mountpoint="%s"}' % mount
                both = [value for scraped in (before, after) for key, value in scraped.items()
                        if key.startswith('node_filesystem_%s{' % their) and key.endswith(name)]
                assert len(both) == 2 and min(both) <= value <= max(both), (metric, mount, value, both)
                compared += 1
        return compared
    assert until_equal(check) >= 6 * (len(filled) - 1)


# -- the device-mapper -------------------------------------------------------------------------------------------

def test_names_of_the_device_mapper_are_those_of_dmsetup(tmp_path):
    require(os.geteuid() == 0, 'root', 'only root may make devices')
    program = require(command('dmsetup'), 'dmsetup', 'not installed (Debian: dmsetup)')
    version = subprocess.run([program, 'version'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if version.returncode:
        pytest.skip('this kernel has no device-mapper')
    name = 'statbadger-%d' % os.getpid()
    subprocess.run([program, 'create', name, '--table', '0 2048 zero'], check=True)
    try:
        info = subprocess.run([program, 'info', '-c', '--noheadings', '-o', 'blkdevname', name], stdout=subprocess.PIPE, check=True)
        tree = statbadger.Tree({'': '/', 'proc': '/proc', 'sys': '/sys'}, time.monotonic)
        given = dict(devices=[name], partitions=False)
        tree.begin()
        rows = list(statbadger.disk(tree, options(names=False, **given), {}))
        assert [labels for table, labels, row in rows] == [(info.stdout.decode().strip(), name)]
        tree.begin()
        rows = list(statbadger.disk(tree, options(names=True, **given), {}))
        assert [labels for table, labels, row in rows] == [(name, name)]
    finally:
        subprocess.run([program, 'remove', name], check=True)
