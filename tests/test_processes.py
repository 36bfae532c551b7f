"""The modules processes and threads: who is counted where, what those that come and go leave, and what is not known."""
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import statbadger
from statbadger import Parts, Tree, process_name

DEFAULTS = {name: {o.name: o.default for o in statbadger.MODULES[name].options} for name in ('processes', 'threads')}
SLEEPS = 'State:\tS (sleeping)\n'


class Host:
    """A tree of processes that is written by hand. one(7, 'sh', ...) writes a process, gone(7) takes it away,
    tick() reads everything and gives {flat name: value}."""

    def __init__(self, tree, module='processes', memory=None, **options):
        values = statbadger.Options(dict(DEFAULTS[module], **options))
        if module == 'threads':
            values.processes = statbadger.Options(dict(DEFAULTS['processes'], **options.pop('lent', {})))
        self.tree, self.said, self.second = tree, [], 0
        self.parts = Parts(module, statbadger.MODULES[module].parts, values, tree,
                           lambda level, words: self.said.append(words), memory, patient=False, alone=True)
        self.file('uptime', '1000.00 1000.00\n')
        self.file('stat', 'cpu  1 2 3 4\ncpu0 1 2 3 4\ncpu1 1 2 3 4\n')
        self.file('sys/kernel/threads-max', '193023\n')

    @property
    def census(self):
        return self.parts.memory['census']

    def file(self, name, content):
        path = self.tree.folder / 'proc' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def one(self, pid, name='sh', start=500, **more):
        folder = '%d/' % pid
        self.file(folder + 'stat', stat(pid, name, start, **more))
        self.file(folder + 'statm', '%d 1 1 1 0 1 0\n' % 256)
        self.file(folder + 'status', 'Name:\tx\n' + SLEEPS + 'VmSize:\t    1024 kB\nVmRSS:\t %d kB\nVmSwap:\t       %d kB\n'
                  'voluntary_ctxt_switches:\t%d\nnonvoluntary_ctxt_switches:\t%d\n' % (
                      more.get('pages', 10) * 4, more.get('swap', 0), more.get('switches', 0), more.get('forced', 0)))
        self.file(folder + 'io', 'rchar: 9\nwchar: 9\nsyscr: 9\nsyscw: 9\nread_bytes: %d\nwrite_bytes: %d\n'
                  'cancelled_write_bytes: 9\n' % (more.get('read', 0), more.get('written', 0)))
        self.file(folder + 'cmdline', more.get('command', name))
        for n, target in enumerate(more.get('fds', ())):
            link = self.tree.folder / 'proc' / str(pid) / 'fd' / str(n)
            link.parent.mkdir(exist_ok=True)
            if os.path.islink(str(link)):
                link.unlink()
            link.symlink_to(target)
        if not more.get('fds'):
            (self.tree.folder / 'proc' / str(pid) / 'fd').mkdir(exist_ok=True)

    def gone(self, *pids):
        for pid in pids:
            shutil.rmtree(str(self.tree.folder / 'proc' / str(pid)))

    def tick(self):
        self.second += 1
        self.tree.clock[0] = float(self.second)
        return {s.flat: value for series, values in self.parts.read(float(self.second))
                for s, value in zip(series, values) if value == value}


def stat(pid, name='sh', start=500, state='S', parent=1, user=0, system=0, minor=0, major=0, kin=(0, 0, 0, 0), threads=1,
         flags=0x400000, pages=10, stack=777, **more):
    """proc/PID/stat; kin: user, system, minor, major of children that were waited for."""
    head = b'%d (' % pid + (name if isinstance(name, bytes) else name.encode()) + b') '
    return head + ('%s %d 1 1 0 -1 %d %d %d %d %d %d %d %d %d 20 0 %d 0 %d 1048576 %d 184467 1 2 %d 0 0 0 0 0 0 0 0 0 17 0\n' % (
        state, parent, flags, minor, kin[2], major, kin[3], user, system, kin[0], kin[1], threads, start, pages,
        stack)).encode()


@pytest.fixture
def procs(host):
    return lambda *args, **options: Host(host({}), *args, **options)


def of(found, group):
    """{metric: value} of a group."""
    return {name.split('.', 2)[1]: value for name, value in found.items() if name.split('.', 2)[2:] == [group]}


# -- what one group shows ------------------------------------------------------------------------

def test_processes_of_one_name_are_added_up(procs):
    host = procs()
    host.one(10, user=5, system=1, fds=['/a', '/b'], pages=3, swap=4, start=40000)
    host.one(11, user=50, read=1000, threads=2, fds=['/a'], start=50000)
    first = of(host.tick(), 'sh')
    assert first == dict(count=2, threads=3, fds=3, rss=13 * 4096, vsize=2 << 20, swap=4096, uptime=600.0)
    host.one(10, user=15, system=3, minor=7, major=1, switches=4, forced=2, fds=['/a', '/b'], start=40000)
    host.one(11, user=50, read=1512, written=4096, threads=2, fds=['/a'], start=50000)
    assert of(host.tick(), 'sh') == dict(
        count=2, threads=3, fds=3, rss=20 * 4096, vsize=2 << 20, swap=0, uptime=600.0, cpu_user=10, cpu_system=2, cpu=12,
        minor_faults=7, major_faults=1, ctxt_voluntary=4, ctxt_involuntary=2, disk_read_bytes=512, disk_write_bytes=4096)


def test_resident_memory_is_what_status_says_since_stat_is_but_nearly_right(procs):
    host = procs()
    host.one(10, pages=10)
    host.file('10/status', (host.tree.folder / 'proc/10/status').read_text().replace('VmRSS:\t 40 kB', 'VmRSS:\t 44 kB'))
    assert of(host.tick(), 'sh')['rss'] == 44 << 10


# -- those that come and go ------------------------------------------------------------------------

def test_what_a_process_did_stays_when_it_ends(procs):
    host = procs()
    host.one(10, user=100, read=1 << 20)
    host.one(11, user=7)
    host.tick()
    host.one(10, user=130, read=2 << 20)
    assert of(host.tick(), 'sh')['cpu_user'] == 30
    host.gone(10)
    host.one(11, user=8)
    found = of(host.tick(), 'sh')
    assert (found['count'], found['cpu_user'], found['disk_read_bytes']) == (1, 1, 0)


def test_a_process_that_began_since_counts_from_zero_and_one_that_was_hidden_does_not(procs):
    host = procs()
    host.one(10, start=500)
    host.tick()
    host.one(20, 'new', start=501, user=3, read=4096)
    host.one(21, 'hidden', start=499, user=3000, read=4096)
    found = host.tick()
    assert of(found, 'new')['cpu_user'] == 3 and of(found, 'new')['disk_read_bytes'] == 4096
    assert of(found, 'hidden')['cpu_user'] == 0 and of(found, 'hidden')['disk_read_bytes'] == 0


def test_a_pid_that_is_used_again_is_another_process(procs):
    host = procs()
    host.one(10, user=100, start=500)
    host.tick()
    host.one(10, user=4, start=900)
    found = of(host.tick(), 'sh')
    assert (found['count'], found['cpu_user']) == (1, 4)
    host.one(10, 'other name', user=1, start=901)
    found = host.tick()
    assert of(found, 'sh')['count'] == 0 and of(found, 'sh')['cpu_user'] == 0
    assert of(found, 'other name')['cpu_user'] == 1


def test_a_process_that_executes_another_program_goes_to_another_group(procs):
    host = procs()
    host.one(10, user=100)
    host.tick()
    host.one(10, 'nginx', user=103, stack=778)
    found = host.tick()
    assert (of(found, 'sh')['count'], of(found, 'sh')['cpu_user']) == (0, 0)
    assert (of(found, 'nginx')['count'], of(found, 'nginx')['cpu_user'], of(found, 'nginx')['rss']) == (1, 3, 40960)


def test_a_process_that_ends_while_it_is_read_is_gone(host):
    class Ending(Tree):
        ends = ()

        def glance(self, name, most=4096):
            if name in self.ends:
                raise ProcessLookupError(3, 'No such process')
            return Tree.glance(self, name, most)
    tree = host({})
    ending = Ending(tree.roots, tree.monotonic)
    ending.clock, ending.folder = tree.clock, tree.folder
    procs = Host(ending)
    procs.one(10, user=1)
    procs.one(11, user=1)
    procs.tick()
    procs.one(11, user=5)
    ending.ends = ['proc/10/stat', 'proc/11/io', 'proc/11/status']
    found = of(procs.tick(), 'sh')
    assert found['count'] == 1 and found['cpu_user'] == 4 and 'disk_read_bytes' not in found
    assert not procs.parts.tree.bad_lines


# -- children that were waited for ----------------------------------------------------------------

def test_a_child_that_was_never_seen_counts_for_its_parent(procs):
    host = procs()
    host.one(10, 'make', user=5, kin=(100, 10, 1000, 0))
    host.tick()
    host.one(10, 'make', user=6, kin=(120, 13, 1500, 2), read=777)
    found = of(host.tick(), 'make')
    assert (found['cpu_user'], found['cpu_system'], found['minor_faults'], found['major_faults']) == (21, 3, 500, 2)
    assert found['disk_read_bytes'] == 777


def test_a_child_that_was_seen_counts_once(procs):
    host = procs()
    host.one(10, 'make', user=5, written=100)
    host.one(20, 'cc1', parent=10, user=40, minor=300, written=5000, kin=(2, 0, 50, 0))
    host.tick()
    host.one(20, 'cc1', parent=10, user=90, minor=400, written=6000, kin=(2, 0, 50, 0))
    assert of(host.tick(), 'cc1')['cpu_user'] == 50
    host.gone(20)                               # after 3 ticks more of time and 700 bytes more
    host.one(10, 'make', user=6, kin=(95, 0, 460, 0), written=6800)
    found = host.tick()
    assert of(found, 'cc1')['cpu_user'] == 0 and of(found, 'cc1')['disk_write_bytes'] == 0
    assert of(found, 'make')['cpu_user'] == 1 + 95 - 92 and of(found, 'make')['minor_faults'] == 10
    assert of(found, 'make')['disk_write_bytes'] == 700
    host.one(10, 'make', user=7, kin=(95, 0, 460, 0), written=6900)
    found = of(host.tick(), 'make')
    assert (found['cpu_user'], found['disk_write_bytes']) == (1, 100)


def test_a_child_and_its_parent_that_end_together_count_once(procs):
    host = procs()
    host.one(10, 'sh')
    host.one(20, 'make', parent=10, user=5, minor=10, written=1)
    host.one(30, 'cc1', parent=20, user=500, minor=400, written=1 << 30)
    host.tick()
    host.gone(20, 30)
    host.one(10, 'sh', kin=(507, 0, 415, 0), written=(1 << 30) + 5)
    found = of(host.tick(), 'sh')
    assert (found['cpu_user'], found['minor_faults'], found['disk_write_bytes']) == (2, 5, 4)


def test_an_orphan_counts_once_though_another_waits_for_it(procs):
    host = procs()
    host.one(1, 'init', parent=0)
    host.one(10, 'sh')
    host.one(20, 'daemon', parent=10, user=500, minor=400, written=1 << 30)
    host.tick()
    host.gone(10, 20)
    host.one(1, 'init', parent=0, kin=(500, 0, 420, 0), written=1 << 30)
    found = of(host.tick(), 'init')
    assert (found['cpu_user'], found['disk_write_bytes']) == (0, 0)


def test_a_child_of_a_parent_that_lives_is_not_taken_off_its_grandparent(procs):
    """Which has waited for another at that moment, as long a life, that no tick has seen."""
    host = procs(top=9)
    host.one(5, 'make')
    host.one(10, 'sh', parent=5)
    host.one(20, 'cc1', parent=10, user=20, minor=400, written=5000)
    host.tick()
    host.gone(20)                               # after its parent was read
    host.one(5, 'make', kin=(30, 0, 900, 0), written=7000)
    found = host.tick()
    assert (of(found, 'make')['cpu_user'], of(found, 'make')['disk_write_bytes']) == (30, 7000)
    host.one(10, 'sh', parent=5, kin=(20, 0, 400, 0), written=5000)
    found = host.tick()
    assert (of(found, 'sh')['cpu_user'], of(found, 'sh')['disk_write_bytes']) == (0, 0)
    assert of(found, 'make')['cpu_user'] == 0


@pytest.mark.parametrize('state, start', [('Z', 500), ('S', 600)])
def test_an_orphan_whose_parent_is_a_zombie_or_has_its_pid_used_again_counts_once(procs, state, start):
    host = procs(top=9)
    host.one(1, 'init', parent=0)
    host.one(10, 'sh')
    host.one(20, 'daemon', parent=10, start=550, user=500, minor=400, written=1 << 30)
    host.tick()
    host.gone(20)
    host.one(10, 'sh', state=state, start=start)
    host.one(1, 'init', parent=0, kin=(500, 0, 420, 0), written=1 << 30)
    found = of(host.tick(), 'init')
    assert (found['cpu_user'], found['disk_write_bytes']) == (0, 0)


def test_a_child_that_nobody_waited_for_takes_nothing_from_its_parent(procs):
    host = procs()
    host.one(10, 'server', written=100)
    host.one(20, 'child', parent=10, user=500, minor=400, written=1 << 30)
    host.tick()
    host.gone(20)
    for second in (1, 2, 3):
        host.one(10, 'server', user=second, written=100 + 50 * second)
        found = of(host.tick(), 'server')
        assert (found['cpu_user'], found['disk_write_bytes']) == (1, 50)


def test_a_child_that_is_waited_for_after_its_parent_was_read_counts_once(procs):
    host = procs()
    host.one(10, 'sh')
    host.one(20, 'cc1', parent=10, user=500, minor=400, written=1 << 30)
    host.tick()
    host.gone(20)
    assert of(host.tick(), 'sh')['cpu_user'] == 0
    host.one(10, 'sh', kin=(501, 0, 400, 0), written=(1 << 30) + 3)
    found = of(host.tick(), 'sh')
    assert (found['cpu_user'], found['disk_write_bytes']) == (1, 3)


def test_disk_bytes_of_a_child_that_come_a_tick_after_its_times_count_once(procs):
    host = procs()
    host.one(10, 'sh')
    host.one(20, 'cc1', parent=10, user=500, minor=400, written=1 << 30)
    host.tick()
    host.gone(20)
    host.one(10, 'sh', kin=(500, 0, 400, 0), written=10)
    assert of(host.tick(), 'sh')['disk_write_bytes'] == 0
    host.one(10, 'sh', user=1, kin=(500, 0, 400, 0), written=(1 << 30) + 12)
    assert of(host.tick(), 'sh')['disk_write_bytes'] == 12


def test_a_child_that_was_read_before_its_parent_and_ended_in_between_counts_once(host):
    class Ending(Tree):
        left = None

        def glance(self, name, most=4096):
            data = Tree.glance(self, name, most)
            if name in ('proc/10/stat', 'proc/10/statm') and self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise ProcessLookupError(3, 'No such process')
            return data
    tree = host({})
    ending = Ending(tree.roots, tree.monotonic)
    ending.clock, ending.folder = tree.clock, tree.folder
    procs = Host(ending)
    procs.one(10, 'cc1', parent=20, user=500, minor=400, start=501)
    procs.one(20, 'sh')
    procs.tick()
    ending.left = 1
    procs.one(20, 'sh', kin=(500, 0, 400, 0))
    assert of(procs.tick(), 'sh')['cpu_user'] == 0


def test_a_child_that_is_waited_for_while_it_is_read_counts_once(procs):
    """Linux 6.18 gives such a line: `3745 (python3) X 0 -1 -1 0 -1 4227148 457 0 0 0 0 1 0 0 20 0 0 0 4422412 ...`"""
    host = procs()
    host.one(10, 'sh')
    host.one(20, 'cc1', parent=10, user=500, minor=400, written=1 << 30)
    host.tick()
    host.one(20, 'cc1', parent=0, state='X', threads=0, user=1, pages=0, stack=0, written=1 << 30)
    host.one(10, 'sh', kin=(502, 0, 400, 0), written=(1 << 30) + 3)
    found = host.tick()
    assert (of(found, 'sh')['cpu_user'], of(found, 'sh')['disk_write_bytes'], of(found, 'cc1')['count']) == (2, 3, 0)
    host.gone(20)
    host.one(10, 'sh', user=1, kin=(502, 0, 400, 0), written=(1 << 30) + 3)
    assert of(host.tick(), 'sh')['cpu_user'] == 1 and host.tree.bad_lines == 0


@pytest.mark.parametrize('options', [dict(), dict(groups={'cc': 'cc1', 'sh': 'sh'})])
def test_what_a_process_with_a_row_of_its_own_did_at_last_is_the_others(host, options):
    class Ending(Tree):
        ended = False

        def glance(self, name, most=4096):
            if name == 'proc/10/statm' and self.ended:
                raise ProcessLookupError(3, 'No such process')
            return Tree.glance(self, name, most)
    tree = host({})
    ending = Ending(tree.roots, tree.monotonic)
    ending.clock, ending.folder = tree.clock, tree.folder
    procs = Host(ending, by='pid', **options)
    procs.one(10, 'cc1', parent=20, user=500, minor=400, start=501)
    procs.one(20, 'sh')
    procs.tick()
    ending.ended = True
    procs.one(10, 'cc1', parent=20, user=530, minor=400, start=501)
    procs.one(20, 'sh', kin=(530, 0, 400, 0))
    found = procs.tick()
    assert sum(value for name, value in found.items() if name.startswith('proc.cpu_user.')) == 30


def test_the_life_of_a_child_that_we_may_not_see_is_not_booked_at_once(procs):
    host = procs()
    host.one(10, 'sudo')
    host.tick()
    host.one(10, 'sudo', user=1, kin=(360000, 0, 400, 0), written=1 << 40)
    found = of(host.tick(), 'sudo')
    assert (found['cpu_user'], found['disk_write_bytes']) == (1, 0)


# -- names ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('comm, command, name', [
    (b'sh', b'/bin/sh\0-c', 'sh'),
    (b'systemd-journal', b'/lib/systemd/systemd-journald', 'systemd-journald'),
    (b'systemd-journal', b'', 'systemd-journal'),
    (b'systemd-journal', b'nothing\0systemd-journald', 'systemd-journal'),
    (b'123456789012345', b'123456789012345: worker 7', '123456789012345'),
    (b'123456789012345', b'/x/123456789012345' + b'a' * 4000, '123456789012345' + 'a' * 49),
    (b'a\xff\n)', b'', 'a\ufffd\n)'),
    (b'', b'', '?')])
def test_the_name_of_a_process(comm, command, name):
    assert process_name(comm, command) == name


@pytest.mark.parametrize('name', [b'a) R 1 1 1\n', b') (', b'x y\n', b'\xff\xfe', b'((', b')', b'tab\there'])
def test_hostile_names_are_names(procs, name):
    host = procs()
    host.one(10, name, user=5)
    host.tick()
    host.one(10, name, user=6)
    assert of(host.tick(), name.decode('utf-8', 'replace'))['cpu_user'] == 1 and host.tree.bad_lines == 0


def test_a_line_that_is_garbage_takes_one_process_away(procs):
    host = procs()
    host.one(10)
    host.one(11)
    whole = stat(11)
    for cut in range(len(whole)):
        host.file('11/stat', whole[:cut])
        host.tick()
    host.file('11/stat', b'11 (sh) S x 1 2 3' + b' 4' * 40)
    bad = host.tree.bad_lines
    assert of(host.tick(), 'sh')['count'] in (1, 2) and host.tree.bad_lines == bad + 1
    assert not [words for words in host.said if 'netlink' not in words]


def test_old_kernels_have_less_and_what_they_lack_is_absent(procs):
    host = procs()
    host.one(10)
    host.file('10/status', 'Name:\tsh\nVmSize:\t 1024 kB\nVmRSS:\t 40 kB\n')         # before 2.6.23
    os.remove(str(host.tree.folder / 'proc/10/io'))
    os.rmdir(str(host.tree.folder / 'proc/10/fd'))
    host.tick()
    assert set(of(host.tick(), 'sh')) == {'count', 'threads', 'cpu_user', 'cpu_system', 'cpu', 'rss', 'vsize', 'uptime',
                                          'minor_faults', 'major_faults'}


def test_a_zombie_has_no_memory_and_is_a_process(procs):
    host = procs()
    host.one(10, state='Z', pages=0)
    host.file('10/status', 'Name:\tsh\nvoluntary_ctxt_switches:\t1\nnonvoluntary_ctxt_switches:\t1\n')
    found = of(host.tick(), 'sh')
    assert (found['count'], found['rss'], found['swap']) == (1, 0, 0)


# -- groups, the busiest, each its own ----------------------------------------------------------

GROUPS = {'web': 'nginx: (master|worker)', 'java': r'java .*-jar shop\.jar', 'all nginx': '^nginx'}


def test_a_process_belongs_to_the_first_group_that_matches_its_command_line(procs):
    host = procs(groups=GROUPS)
    host.one(10, 'nginx', command='nginx: worker process')
    host.one(11, 'nginx', command='nginx\0-t')
    host.one(12, 'java', command=b'/usr/bin/java\0-Xmx1g\0-jar\0shop.jar\0\xff' + b'x' * 100000)
    host.one(13, 'bash', command='bash')
    host.one(14, 'nginx', command='')           # a zombie has none: its name counts, or it is taken for its parent's
    host.one(15, 'java', command='', parent=12)
    found = host.tick()
    assert [(name, value) for name, value in sorted(found.items()) if name.startswith('proc.count')] == [
        ('proc.count.all nginx', 2), ('proc.count.java', 2), ('proc.count.other', 1), ('proc.count.web', 1)]


def test_a_name_that_is_a_groups_too_is_not_in_that_group(procs):
    """A group is what its expression matches, and all that is nobody's is `unknown`."""
    flows = FakeFlows({}, {(12, 500): (5, 0, 0, 1), None: (70, 0, 0, 1)})
    host = procs(memory={'flows': flows}, groups={'java': 'shop.jar'}, top=9, kernel_threads=True)
    host.one(1, 'init')
    host.one(2, 'kthreadd', flags=0x208040)
    host.one(10, 'java', command='java\0-jar\0shop.jar')
    host.one(11, 'java', command='java\0-jar\0other.jar')
    for pid, name in ((12, 'unknown'), (13, 'kernel'), (14, 'other')):
        host.one(pid, name)
    host.tick()
    found = host.tick()
    assert {n[11:]: v for n, v in found.items() if n.startswith('proc.count.')} == {
        'java': 1, 'init': 1, 'other': 4, 'kernel': 1}
    assert (found['proc.net_rx_bytes.unknown'], found['proc.net_rx_bytes.other']) == (70, 5)


def test_a_group_without_processes_counts_none(procs):
    host = procs(groups={'web': 'nginx'})
    host.one(10)
    host.tick()
    found = of(host.tick(), 'web')
    assert (found['count'], found['rss'], found['cpu'], found['disk_read_bytes']) == (0, 0, 0, 0)
    assert 'uptime' not in found


def test_the_command_line_of_a_process_in_an_uninterruptible_sleep_is_never_read(host):
    class Watched(Tree):
        asked = ()

        def glance(self, name, most=4096):
            self.asked += (name,)
            return Tree.glance(self, name, most)
    tree = host({})
    watched = Watched(tree.roots, tree.monotonic)
    watched.clock, watched.folder = tree.clock, tree.folder
    procs = Host(watched, groups={'nfs': 'the tool'})
    procs.one(10, 'hangs', state='D', command='the\0tool')
    assert of(procs.tick(), 'other')['count'] == 1 and 'proc/10/cmdline' not in watched.asked
    procs.tick()
    assert 'proc/10/cmdline' not in watched.asked
    procs.one(10, 'hangs', command='the\0tool')
    assert of(procs.tick(), 'nfs')['count'] == 1
    before = watched.asked.count('proc/10/cmdline')
    for _ in range(5):
        procs.tick()
    assert watched.asked.count('proc/10/cmdline') <= before + 1 <= 3    # and twice at most of any other


def test_a_child_that_is_seen_before_it_has_its_own_command_line_is_looked_at_again(procs):
    host = procs(groups={'master': 'master', 'worker': 'worker'})
    host.one(10, 'nginx', command='nginx: master')
    host.tick()
    host.one(20, 'nginx', command='nginx: master', parent=10, start=600)
    assert of(host.tick(), 'master')['count'] == 2
    host.one(20, 'nginx', command='nginx: worker', parent=10, start=600, user=1)
    found = host.tick()
    assert (of(found, 'master')['count'], of(found, 'worker')['count']) == (1, 1)


def test_the_busiest_are_shown_and_the_rest_is_other(procs):
    host = procs(top=2)
    for i, name in enumerate('abcd'):
        host.one(10 + i, name, user=1000 * i, pages=1)
    assert sorted(n for n in host.tick() if n.startswith('proc.count')) == ['proc.count.c', 'proc.count.d', 'proc.count.other']
    for i, name in enumerate('abcd'):
        host.one(10 + i, name, user=1000 * i + i + 1, pages=1)
    found = host.tick()
    assert of(found, 'other')['cpu_user'] == 1 + 2 and of(found, 'd')['cpu_user'] == 4
    assert (of(found, 'other')['count'], of(found, 'other')['rss']) == (2, 8192)


def test_one_that_becomes_busy_is_shown_with_what_it_did_and_nothing_counts_twice(procs):
    host = procs(top=1)
    host.one(10, 'a', user=1000)
    host.one(11, 'b', user=0)
    host.tick()
    seen, total = [], 0
    for second in range(60):
        host.one(11, 'b', user=100 * second)
        found = host.tick()
        names = [n.split('.')[2] for n in found if n.startswith('proc.cpu.')]
        total += sum(found['proc.cpu.' + n] for n in names)
        seen.append([n for n in names if n != 'other'][0])
    assert total == 5900 and seen[-1] == 'b' and seen.index('b') > 0
    assert seen == sorted(seen)                 # once it has come it stays


def test_two_that_are_nearly_as_busy_do_not_take_turns(procs):
    host = procs(top=1)
    host.one(10, 'a', user=100)
    host.one(11, 'b', user=100)
    host.tick()
    users, seen = [100, 100], set()
    for second in range(100):
        users[second // 5 % 2] += 50
        host.one(10, 'a', user=users[0])
        host.one(11, 'b', user=users[1])
        seen.update(n for n in host.tick() if n.startswith('proc.cpu.') and not n.endswith('other'))
    assert len(seen) == 1


def test_names_without_processes_are_forgotten(procs):
    host = procs(top=3)
    host.one(1, 'init')
    for second in range(100):
        host.one(100 + second, 'job%d' % second, user=1, start=600 + second)
        host.tick()
        host.gone(100 + second)
    host.tick()
    assert len(host.census.groups) < 8 and len(host.census.known) == 1
    for _ in range(70):
        found = host.tick()
    assert [n for n in found if n.startswith('proc.count')] == ['proc.count.init', 'proc.count.other']


def test_each_process_by_itself(procs):
    host = procs(groups={'web': 'nginx'}, by='pid')
    host.one(10, 'nginx', user=1)
    host.one(11, 'nginx', user=1)
    host.one(12, 'bash')
    host.tick()
    host.one(11, 'nginx', user=4)
    host.one(13, 'nginx', user=9, start=501)
    found = host.tick()
    assert {n: v for n, v in found.items() if n.startswith('proc.cpu_user')} == {
        'proc.cpu_user.web/10': 0, 'proc.cpu_user.web/11': 3, 'proc.cpu_user.web/13': 9, 'proc.cpu_user.other': 0}
    host.gone(11)
    assert 'proc.count.web/11' not in host.tick() and len(host.census.groups) == 4
    series = [s for s in host.parts.parts[0][1].series if s.flat == 'proc.cpu_user.web/13'][0]
    assert (series.keys, series.values) == (('group', 'pid'), ('web', '13'))


def test_threads_of_the_kernel_are_a_group_of_their_own_on_request(procs):
    for wanted in (False, True):
        host = procs(kernel_threads=wanted)
        host.one(2, 'kthreadd', flags=0x208040, user=5)
        host.one(10)
        host.tick()
        host.one(2, 'kthreadd', flags=0x208040, user=8)
        found = host.tick()
        assert ('proc.count.kernel' in found) == wanted and 'proc.count.kthreadd' not in found
        assert of(found, 'kernel').get('cpu_user') == (3 if wanted else None)
        assert of(found, 'other')['count'] == 0
        shutil.rmtree(str(host.tree.folder))


def test_a_group_and_a_program_that_are_called_as_ours(procs):
    host = procs(top=1, kernel_threads=True)
    host.one(10, 'other')
    host.one(11, 'kernel', user=5000)
    found = host.tick()
    assert of(found, 'other')['count'] == 2 and of(found, 'kernel')['count'] == 0


# -- what need not be read, what may not be read -----------------------------------------------

def test_a_process_that_had_no_turn_is_not_read_but_for_its_memory(procs):
    host = procs()
    host.one(10, user=5)
    host.file('10/schedstat', '1000 2000 3\n')
    host.tick()
    host.tick()
    host.one(10, user=7, pages=4)               # which cannot be: it had no turn
    seen = [of(host.tick(), 'sh') for _ in range(10)]
    assert [f['cpu_user'] for f in seen] == [0] * 10
    assert [f['rss'] for f in seen].count(40960) < 10 and seen[-1]['rss'] == 16384
    host.file('10/schedstat', '1000 2000 4\n')
    assert of(host.tick(), 'sh')['cpu_user'] == 2


def test_a_kernel_that_keeps_no_account_of_turns_is_no_reason_to_read_nothing(procs):
    host = procs()
    host.one(10, user=5)
    host.file('10/schedstat', '0 0 0\n')
    host.tick()
    host.one(10, user=7)
    assert of(host.tick(), 'sh')['cpu_user'] == 2


class Guarded(Tree):
    """Others may not read some files."""
    guarded = ()

    def glance(self, name, most=4096):
        if name in self.guarded:
            raise PermissionError(13, 'Permission denied')
        return Tree.glance(self, name, most)


def test_what_may_not_be_read_is_absent_or_the_sum_of_the_others_and_said_once(host):
    tree = host({})
    guarded = Guarded(tree.roots, tree.monotonic)
    guarded.clock, guarded.folder = tree.clock, tree.folder
    guarded.guarded = ['proc/10/io', 'proc/11/io', 'proc/13/stat']
    procs = Host(guarded)
    procs.one(10, 'a')
    procs.one(11, 'b', written=100)
    procs.one(12, 'b', written=100)
    procs.one(13, 'hidden')                     # hidepid=1
    procs.tick()
    procs.one(12, 'b', written=150)
    found = procs.tick()
    assert 'disk_write_bytes' not in of(found, 'a') and of(found, 'a')['cpu'] == 0
    assert of(found, 'b')['disk_write_bytes'] == 50 and 'proc.count.hidden' not in found
    assert [words for words in procs.said if 'netlink' not in words] == [
        'processes: of 3 of 4 processes, disk bytes and the owners of sockets cannot be read: CAP_SYS_PTRACE and '
        'CAP_DAC_READ_SEARCH would allow it']


def test_a_kernel_without_a_first_process_hides_some_and_that_is_said(procs):
    host = procs(network=False)
    host.one(10)
    (host.tree.folder / 'proc/self/ns').mkdir(parents=True)
    (host.tree.folder / 'proc/self/ns/pid').symlink_to('/proc/self/exe')      # a running one: `self` is there
    host.tick()
    host.tick()
    assert len(host.said) == 1 and 'hidepid' in host.said[0] and 'CAP_SYS_PTRACE' in host.said[0]
    host = procs(network=False)
    host.one(1, 'init')
    host.tick()
    assert host.said == []


def test_a_host_that_has_no_descriptor_left_is_trouble_and_no_end_of_processes(host):
    class Full(Tree):
        full = False

        def glance(self, name, most=4096):
            if self.full:
                raise OSError(24, 'Too many open files')
            return Tree.glance(self, name, most)
    tree = host({})
    full = Full(tree.roots, tree.monotonic)
    full.clock, full.folder = tree.clock, tree.folder
    procs = Host(full)
    procs.one(10, user=1)
    procs.tick()
    full.full = True
    assert procs.tick() == {}
    full.full = False
    procs.one(10, user=5)
    assert of(procs.tick(), 'sh')['cpu_user'] == 2          # 4 in the two seconds since the last reading


def test_what_was_read_before_the_trouble_is_not_lost_though_its_process_is_gone_after_it(host):
    class Full(Tree):
        full = ()

        def glance(self, name, most=4096):
            if name in self.full:
                raise OSError(24, 'Too many open files')
            return Tree.glance(self, name, most)
    tree = host({})
    full = Full(tree.roots, tree.monotonic)
    full.clock, full.folder = tree.clock, tree.folder
    procs = Host(full, top=1)
    procs.one(10, 'a')
    procs.one(11, 'b', user=900)
    procs.tick()
    procs.one(10, 'a', user=6)
    full.full = ['proc/11/stat']
    assert procs.tick() == {}
    procs.gone(10)
    full.full = ()
    assert of(procs.tick(), 'other')['cpu_user'] == 3       # 6 in two seconds


# -- traffic --------------------------------------------------------------------------------------

class FakeFlows:
    """Says what it was told to say, and asks who owns some sockets."""

    def __init__(self, *answers):
        self.answers, self.wanted, self.found = list(answers), set(), []

    def read(self, tree, owners):
        found = owners(self.wanted)
        self.found.append({inode: owner for inode, owner in found.items() if owner})
        self.pending = set(found) - set(self.found[-1])
        return self.answers.pop(0) if self.answers else {}

    def news(self):
        return []


def test_bytes_go_to_the_group_of_their_owner_or_to_unknown(procs):
    flows = FakeFlows({(10, 500): (1, 2, 0, 3)}, {(10, 500): (100, 50, 5, 2), (99, 1): (7, 0, 0, 1), None: (30, 40, 0, 6)},
                      {(10, 500): (1, 0, 0, 0)}, {})
    host = procs(memory={'flows': flows}, top=1)
    host.one(10, 'a', user=100)
    host.one(11, 'b')
    first = host.tick()
    assert first['proc.tcp_connections.a'] == 3 and 'proc.net_rx_bytes.a' not in first
    found = host.tick()
    assert of(found, 'a')['net_rx_bytes'] == 100 and of(found, 'a')['net_retrans_bytes'] == 5
    assert {k: v for k, v in of(found, 'unknown').items()} == dict(net_rx_bytes=37, net_tx_bytes=40, net_retrans_bytes=0,
                                                                   tcp_connections=7)
    assert of(found, 'other')['net_rx_bytes'] == 0
    host.gone(10)                               # its last bytes are still its group's
    found = host.tick()
    assert of(found, 'a')['net_rx_bytes'] == 1 and of(found, 'a')['tcp_connections'] == 0
    assert of(host.tick(), 'a')['net_rx_bytes'] == 0


def test_traffic_of_names_that_are_not_shown_is_the_others(procs):
    flows = FakeFlows({}, {(11, 500): (10, 0, 0, 1), (12, 500): (5, 0, 0, 1)}, {(11, 500): (20, 0, 0, 1)})
    host = procs(memory={'flows': flows}, top=1)
    for pid, name, user in ((10, 'a', 900), (11, 'b', 0), (12, 'c', 0)):
        host.one(pid, name, user=user)
    host.tick()
    found = of(host.tick(), 'other')
    assert (found['net_rx_bytes'], found['tcp_connections']) == (15, 2)
    found = of(host.tick(), 'other')
    assert (found['net_rx_bytes'], found['tcp_connections']) == (20, 1)


def test_a_group_whose_sockets_nobody_may_see_has_no_traffic(host):
    tree = host({})
    guarded = Guarded(tree.roots, tree.monotonic)
    guarded.clock, guarded.folder, guarded.guarded = tree.clock, tree.folder, ['proc/10/io']
    procs = Host(guarded, memory={'flows': FakeFlows()})
    procs.one(10, 'a')
    procs.one(11, 'b')
    procs.tick()
    found = procs.tick()
    assert 'proc.net_rx_bytes.a' not in found and 'proc.tcp_connections.a' not in found
    assert found['proc.net_rx_bytes.b'] == 0


def test_without_network_nobody_is_asked(procs):
    flows = FakeFlows()
    host = procs(memory={'flows': flows}, network=False)
    host.one(10)
    assert 'proc.tcp_connections.sh' not in host.tick() and flows.found == [] and host.said == []


def test_owners_are_found_by_the_links_of_descriptors_and_forgotten_with_their_processes(procs):
    flows = FakeFlows()
    host = procs(memory={'flows': flows})
    host.one(10, fds=['/a', 'socket:[55]', 'pipe:[56]'])
    host.one(11, fds=['socket:[57]', 'socket:[55]', 'socket:[x]'])
    flows.wanted = {55, 56, 57, 58}
    host.tick()
    assert flows.found[-1] == {55: (10, 500), 57: (11, 500)}
    host.gone(11)
    host.tick()
    assert flows.found[-1] == {55: (10, 500)}
    host.one(12, fds=['socket:[58]'], start=501)
    host.tick()
    assert flows.found[-1] == {55: (10, 500), 58: (12, 501)}


def test_a_search_for_sockets_is_bounded_and_goes_on_in_the_next_tick(procs):
    flows = FakeFlows()
    host = procs(memory={'flows': flows})
    host.one(10, fds=['socket:[%d]' % n for n in range(1500)])
    host.one(11, fds=['socket:[%d]' % n for n in range(2000, 2300)])
    flows.wanted = {999, 1000, 1400, 2200}
    host.tick()
    assert set(flows.found[-1]) == {999} and flows.pending == {1000, 1400, 2200}
    for tick in range(3):
        host.tick()
    assert set(flows.found[-1]) == {999, 1000, 1400, 2200} and flows.pending == set()


def test_one_that_always_has_new_sockets_among_thousands_does_not_keep_the_others_waiting(procs):
    flows = FakeFlows()
    host = procs(memory={'flows': flows})
    host.one(10, fds=['socket:[%d]' % n for n in range(5000)])
    host.one(11)
    for tick in range(12):
        flows.wanted = {4999, 8000 + tick}
        host.tick()
    host.one(11, fds=['socket:[70000]'])
    for tick in range(12, 15):
        flows.wanted = {70000, 8000 + tick}
        host.tick()
    assert flows.found[-1] == {70000: (11, 500)}


@pytest.mark.parametrize('inherited', [True, False])
def test_a_socket_that_is_handed_on_is_of_who_has_it_now(procs, inherited):
    """By accept and fork: the child has it from its birth. By a message over a unix socket: later."""
    flows = FakeFlows()
    host = procs(memory={'flows': flows})
    host.one(10, 'accepts', fds=['/a', 'socket:[55]'])
    host.one(11, 'serves', fds=['/b'] + ['socket:[55]'] * inherited)
    flows.wanted = {55}
    for tick in range(2):
        host.tick()
        assert flows.found[-1] == {55: (10, 500)}
    os.remove(str(host.tree.folder / 'proc/10/fd/1'))
    host.one(11, 'serves', fds=['/b', 'socket:[55]'])
    host.tick()
    assert flows.found[-1] == {55: (11, 500)}


def test_a_socket_that_has_another_number_now_is_still_of_its_process(procs):
    flows = FakeFlows()
    host = procs(memory={'flows': flows})
    host.one(10, fds=['/a', 'socket:[55]'])
    flows.wanted = {55}
    host.tick()
    host.one(10, fds=['socket:[55]', '/a'])
    host.tick()
    assert flows.found[-1] == {55: (10, 500)}


def test_a_socket_that_nobody_has_is_given_up(procs):
    flows = FakeFlows()
    host = procs(memory={'flows': flows})
    host.one(10, fds=['socket:[5]'])
    host.file('10/schedstat', '1 1 1\n')
    flows.wanted = {77}
    for turn in range(20):
        host.file('10/schedstat', '1 1 %d\n' % turn)
        host.tick()
    assert host.census.missed[77] == statbadger.TRIES


# -- threads --------------------------------------------------------------------------------------

def task(host, pid, tid, name='sh', **more):
    host.file('%d/task/%d/stat' % (pid, tid), stat(tid, name, **more))


def test_threads_by_state_and_by_group(procs):
    host = procs('threads')
    host.one(2, 'kthreadd', flags=0x208040, state='I')
    host.one(10, 'java', threads=4)
    for tid, state in ((10, 'S'), (12, 'R'), (13, 'D'), (14, 'R')):
        task(host, 10, tid, state=state)
    host.one(20, 'sh', state='T')
    host.one(21, 'sh', state='Z')
    found = host.tick()
    assert {n[8:]: v for n, v in found.items()} == {
        'total': 7, 'running': 2, 'sleeping': 1, 'blocked': 1, 'stopped': 1, 'zombie': 1, 'idle': 1, 'max': 193023,
        'count.java': 4, 'running.java': 2, 'blocked.java': 1, 'count.sh': 2, 'running.sh': 0, 'blocked.sh': 0,
        'count.other': 0, 'running.other': 0, 'blocked.other': 0}


def test_groups_of_threads_are_those_of_the_processes(procs):
    host = procs('threads', lent=dict(groups={'web': 'nginx'}))
    host.one(10, 'nginx', state='R')
    host.one(11, 'sh')
    found = host.tick()
    assert (found['threads.count.web'], found['threads.running.web'], found['threads.count.other']) == (1, 1, 1)


def test_the_time_of_threads_by_name(procs):
    host = procs('threads', lent=dict(groups={'java': 'java'}), per_thread=True)
    host.one(10, 'java', threads=3)
    task(host, 10, 10, 'java', user=5)
    task(host, 10, 11, 'GC', user=100)
    task(host, 10, 12, 'GC', user=10, system=7)
    host.one(30, 'sh', user=5)
    host.tick()
    task(host, 10, 11, 'GC', user=110)
    task(host, 10, 12, 'GC', user=10, system=9)
    task(host, 10, 13, 'new', user=2, start=900)
    found = host.tick()
    assert {n: v for n, v in found.items() if '.cpu_' in n} == {
        'threads.cpu_user.java/GC': 10, 'threads.cpu_system.java/GC': 2, 'threads.cpu_user.java/java': 0,
        'threads.cpu_system.java/java': 0, 'threads.cpu_user.java/new': 2, 'threads.cpu_system.java/new': 0}
    shutil.rmtree(str(host.tree.folder / 'proc/10/task/11'))
    task(host, 10, 12, 'GC', user=1, start=901)         # another thread
    assert host.tick()['threads.cpu_user.java/GC'] == 1


def test_without_a_limit_only_the_limit_is_absent(procs):
    host = procs('threads')
    host.one(10)
    os.remove(str(host.tree.folder / 'proc/sys/kernel/threads-max'))
    found = host.tick()
    assert 'threads.max' not in found and found['threads.total'] == 1


# -- the whole program ----------------------------------------------------------------------------

@pytest.mark.parametrize('expression', ['x(', '*', '[z-a]', '(?P<n'])
def test_a_bad_expression_is_a_mistake_that_names_it(run, expression):
    done = run('-f', '-', '--check', stdin=json.dumps({'modules': {'processes': {'groups': {'a': 'fine', 'web': expression}}}}).encode())
    assert done.code == 2 and 'modules.processes.groups: found' in done.err
    assert 'need a regular expression for "web"' in done.err


@pytest.mark.parametrize('name', ['other', 'kernel', 'unknown'])
def test_a_group_cannot_be_called_as_one_of_our_own(run, name):
    done = run('-f', '-', '--check', stdin=json.dumps({'modules': {'processes': {'groups': {'a': 'fine', name: 'x'}}}}).encode())
    assert done.code == 2 and 'modules.processes.groups: found' in done.err
    assert 'need another name than "%s"' % name in done.err


def test_groups_on_the_command_line(run):
    done = run('-m', 'processes,groups.me=python.*statbadger,network=false', '-e', 'stdout', '-n', '3')
    names = [name for line in done.out.splitlines() for point in json.loads(line)['points'] for name in point]
    assert done.code == 0 and 'proc.count.me' in names and 'proc.count.other' in names


@pytest.mark.parametrize('module, options', [
    ('processes', {}), ('processes', dict(by='pid', top=5, kernel_threads=True)), ('processes', dict(groups={'py': 'python'})),
    ('threads', dict(per_thread=True))])
def test_a_recording_of_this_host_replays_to_the_same_numbers(tmp_path, module, options):
    clock, ticks = [0.0], 5

    def parts(tree):
        values = statbadger.Options(dict(DEFAULTS[module], **options))
        values.processes = statbadger.Options(dict(DEFAULTS['processes'], groups={'py': 'python'}))
        return Parts(module, statbadger.MODULES[module].parts, values, tree, lambda *words: None,
                     {'flows': FakeFlows()}, patient=False, alone=True)

    def read(tree, part):
        found = [(s.flat, value) for series, values in part.read(clock[0]) for s, value in zip(series, values)]
        return [(name, value if value == value else None) for name, value in found]
    live = statbadger.host_tree(None, {}, lambda: clock[0])
    part, seen = parts(live), []
    for tick in range(ticks):
        live.record_next, clock[0] = str(tmp_path / str(tick)), tick * 1.5
        (tmp_path / str(tick)).mkdir()
        seen.append(read(live, part))
        subprocess.call([sys.executable, '-S', '-c', 'pass'])
        time.sleep(0.1)
    assert live.unrecorded is None and len(seen[-1]) > 15
    frozen = Tree({}, lambda: clock[0], frozen=True)
    part = parts(frozen)
    for tick in range(ticks):
        clock[0], folder = tick * 1.5, str(tmp_path / str(tick))
        frozen.roots.update({'': folder, 'proc': folder + '/proc', 'sys': folder + '/sys'})
        assert read(frozen, part) == seen[tick]


def test_the_whole_program_records_and_replays_them(run, tmp_path):
    live = run('-m', 'processes', '-m', 'threads', '-e', 'stdout', '-n', '3', '--record', tmp_path / 'r', timeout=60)
    assert live.code == 0 and 'warning: recording: could not' not in live.err
    again = [run('-m', 'processes', '-m', 'threads', '-e', 'stdout', '--replay', tmp_path / 'r') for _ in range(2)]
    assert again[0].code == 0 and again[0].out == again[1].out and 'proc.cpu.' in again[0].out
