"""What is asked of the host: to the end of each file, under any root, on record."""
import os
import resource
import sys
import threading
import time

import pytest
import statbadger
from statbadger import Absent, Tree, host_identity, host_tree, narrow_counters, snapshots

NOBODY = dict.fromkeys(statbadger.IDENTITY_KEYS, '')
ROUTE = ('Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n'
         'eth1\t00000000\t0100A8C0\t0003\t0\t0\t200\t00000000\t0\t0\t0\n'
         'eth0\t00000000\t0102000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n'
         'eth0\t0002000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n'
         'eth1\t0000A8C0\t00000000\t0001\t0\t0\t200\t00FFFFFF\t0\t0\t0\n')
TRIE = ('Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\nLocal:\n'
        '        |-- 127.0.0.1\n           /32 host LOCAL\n        |-- 192.168.0.7\n           /32 host LOCAL\n'
        '        |-- 10.0.2.0\n           /24 link UNICAST\n        |-- 10.0.2.15\n           /32 host LOCAL\n')
INET6 = ('00000000000000000000000000000001 01 80 10 80       lo\n'
         'fe800000000000000000000000000001 02 40 20 80     eth0\n'
         '20010db8000000000000000000000bad 02 40 00 01     eth0\n'
         '20010db8000000000000000000000015 02 40 00 80     eth0\n'
         '20010db8000000000000000000000016 03 40 00 80     eth1\n')


def test_a_file_is_read_to_its_end_however_many_reads_it_takes(host):
    data = b'x' * 200000 + b'end\n'
    assert host({'proc/stat': data}).read('proc/stat') == data


def test_a_kernel_file_that_comes_in_pieces_is_read_to_its_end():
    if not os.path.exists('/proc/self/smaps'):
        pytest.skip('needs /proc/self/smaps')
    tree = host_tree(None, {}, lambda: 0.0)
    data = tree.read('proc/self/smaps')
    fd = os.open('/proc/self/smaps', os.O_RDONLY)
    first = os.read(fd, 1 << 20)
    os.close(fd)
    assert len(data) > len(first) and data.count(b'VmFlags') > first.count(b'VmFlags')
    tree.close()


def test_a_file_that_never_ends_is_absent(host):
    tree = host({})
    tree.roots['proc'] = '/dev'
    with pytest.raises(Absent):
        tree.read('proc/zero')


@pytest.mark.parametrize('make', ['missing', 'folder', 'fifo', 'secret'])
def test_what_cannot_be_read_is_absent_and_holds_nobody_up(host, make):
    tree = host({})
    path = tree.folder / 'proc/stat'
    path.parent.mkdir()
    if make == 'folder':
        path.mkdir()
    elif make == 'fifo':
        os.mkfifo(str(path))
    elif make == 'secret':
        if os.geteuid() == 0:
            pytest.skip('root may read everything')
        path.write_text('x\n')
        path.chmod(0)
    with pytest.raises(Absent):
        tree.read('proc/stat')


def test_held_descriptors_are_read_anew_each_tick_and_work_when_no_file_can_be_opened():
    tree = host_tree(None, {}, lambda: 0.0)
    first = tree.read('proc/uptime')
    assert tree.read('proc/uptime') == first    # within a tick a file is read once
    others, limits = [], resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
    try:
        with pytest.raises(OSError):
            while True:
                others.append(os.open('/dev/null', os.O_RDONLY))
        for _ in range(200):
            time.sleep(0.001)                   # the file counts in hundredths of a second
            tree.fresh.clear()
            if tree.read('proc/uptime') != first:
                break
        else:
            raise AssertionError('the same text again and again')
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in others:
            os.close(fd)
        tree.close()


def test_files_of_a_foreign_root_may_be_replaced(host):
    tree = host({'proc/uptime': '1.0 1.0\n'})
    assert tree.read('proc/uptime') == b'1.0 1.0\n'
    new = tree.folder / 'new'
    new.write_text('2.0 2.0\n')
    new.rename(tree.folder / 'proc/uptime')
    tree.fresh.clear()
    assert tree.read('proc/uptime') == b'2.0 2.0\n'


def test_under_a_foreign_root_network_files_are_those_of_process_1(host):
    tree = host({'proc/1/net/dev': 'first\n', 'proc/net/dev': 'own\n', 'proc/net/route': 'own\n'})
    assert tree.read('proc/net/dev') == b'first\n' and tree.read('proc/net/route') == b'own\n'


def test_the_time_of_a_reading_is_that_of_the_file(host):
    tree = host({'proc/stat': 'x\n', 'proc/uptime': 'y\n'})
    tree.clock[0] = 5.0
    tree.read('proc/stat')
    tree.clock[0] = 9.0
    tree.read('proc/uptime')
    assert tree.when == 9.0
    tree.read('proc/stat')                      # shared within the tick: its own time
    assert tree.when == 5.0


@pytest.mark.parametrize('root, environ, proc, sys', [
    (None, {}, '/proc', '/sys'), ('/r', {}, '/r/proc', '/r/sys'),
    ('/r', {'HOST_PROC': '/p', 'HOST_ROOT': '/h'}, '/r/proc', '/r/sys'),
    (None, {'HOST_PROC': '/p', 'HOST_ROOT': '/h'}, '/p', '/h/sys'), (None, {'HOST_SYS': '/s'}, '/proc', '/s'),
    (None, {'HOST_ROOT': '/h'}, '/h/proc', '/h/sys'), (None, {'HOST_PROC': ''}, '/proc', '/sys')])
def test_roots(root, environ, proc, sys):
    tree = host_tree(root, environ, lambda: 0.0)
    assert (tree.path('proc/stat'), tree.path('sys/block')) == (proc + '/stat', sys + '/block')
    assert tree.hold == (proc == '/proc' and not root and not environ.get('HOST_ROOT'))


def test_who_the_host_is(host):
    tree = host({'proc/net/route': ROUTE, 'proc/net/fib_trie': TRIE, 'proc/net/if_inet6': INET6,
                 'etc/hostname': 'box.example.net\n', 'proc/sys/kernel/hostname': 'kernel\n'})
    assert host_identity(tree, NOBODY) == dict(NOBODY, hostname='box.example.net', ipv4='10.0.2.15', ipv6='2001:db8::15')
    assert host_identity(tree, dict(NOBODY, hostname='me', ipv4='1.2.3.4', zone='z'))['ipv4'] == '1.2.3.4'


def test_a_host_that_says_nothing_of_itself_is_nobody(host):
    assert host_identity(host({}), NOBODY) == NOBODY
    tree = host({'proc/net/route': 'x\n\xff 1 2\n' + ROUTE[:60], 'proc/net/fib_trie': '|-- 999.1.1.1\n/32 host LOCAL\n',
                 'proc/net/if_inet6': 'zz\n', 'proc/sys/kernel/hostname': 'k\n'}, 'odd')
    assert host_identity(tree, NOBODY) == dict(NOBODY, hostname='k')


@pytest.mark.parametrize('text, narrow', [
    ('LowTotal: 5 kB\nVmallocTotal: 118784 kB\n', True), ('VmallocTotal: 4194303 kB\n', True),
    ('VmallocTotal: 4194304 kB\n', False), ('LowTotal: 5 kB\nVmallocTotal: 34359738367 kB\n', False),
    ('LowTotal: 5 kB\n', True), ('MemTotal: 5 kB\n', False), ('VmallocTotal: x kB\n', False)])
def test_which_kernels_count_in_32_bits(host, text, narrow):
    assert narrow_counters(host({'proc/meminfo': text})) is narrow


def test_without_meminfo_nobody_knows(host):
    assert narrow_counters(host({})) is None


def test_a_record_holds_what_was_read_and_listed(host, tmp_path):
    tree = host({'proc/stat': 'x\n', 'sys/block/sdb/size': '1\n'})
    os.symlink('../devices/sda', str(tree.folder / 'sys/block/sda'))
    tree.record_to = str(tmp_path / 'record')
    tree.read('proc/stat')
    assert tree.list('sys/block') == [b'sda', b'sdb']
    copy = tmp_path / 'record'
    assert (copy / 'proc/stat').read_bytes() == b'x\n'
    assert os.readlink(str(copy / 'sys/block/sda')) == '../devices/sda' and (copy / 'sys/block/sdb').is_dir()
    again = Tree({'': str(copy), 'proc': str(copy / 'proc'), 'sys': str(copy / 'sys')}, lambda: 0.0)
    assert again.list('sys/block') == [b'sda', b'sdb']


def test_a_glance_takes_one_read_and_says_why_there_is_none(host, tmp_path):
    tree = host({'proc/7/stat': '7 (x) S\n', 'proc/7/cmdline': 'a' * 9000})
    assert tree.glance('proc/7/stat') == b'7 (x) S\n' and len(tree.glance('proc/7/cmdline')) == 4096
    with pytest.raises(FileNotFoundError):
        tree.glance('proc/8/stat')
    tree.record_to = str(tmp_path / 'record')
    assert len(tree.glance('proc/7/cmdline', 10)) == 10
    assert (tmp_path / 'record/proc/7/cmdline').read_text() == 'a' * 10


def test_links_are_recorded_as_links_also_those_of_a_folder_that_lose_their_target(host, tmp_path):
    tree = host({'proc/7/stat': 'x'})
    os.makedirs(str(tree.folder / 'proc/7/fd'))
    os.symlink('socket:[4711]', str(tree.folder / 'proc/7/fd/3'))
    tree.record_to = str(tmp_path / 'record')
    assert tree.list('proc/7/fd') == [b'3'] and tree.link('proc/7/fd/3') == b'socket:[4711]'
    assert os.readlink(str(tmp_path / 'record/proc/7/fd/3')) == 'socket:[4711]'
    with pytest.raises(OSError):
        tree.link('proc/7/fd/4')


def test_what_no_file_says_is_recorded_and_a_recording_never_asks_again(host, tmp_path):
    def never():
        raise AssertionError('asked')

    def broken():
        raise OSError(5, 'no such luck')
    tree = host({})
    tree.record_to = str(tmp_path / 'record')
    assert tree.answer('daemon/a', lambda: b'12') == b'12'
    with pytest.raises(Absent, match='daemon/b: no such luck'):
        tree.answer('daemon/b', broken)
    roots = {'': str(tmp_path / 'record'), 'proc': '', 'sys': ''}
    for frozen in (False, True):
        assert Tree(roots, lambda: 0.0, frozen=frozen).answer('daemon/a', never) == b'12'
    assert Tree(roots, lambda: 0.0).answer('daemon/b', lambda: b'live') == b'live'
    with pytest.raises(Absent):
        Tree(roots, lambda: 0.0, frozen=True).answer('daemon/b', never)


def test_what_is_read_late_goes_into_the_recording_of_the_tick_it_belongs_to(host, tmp_path):
    tree = host({'proc/stat': 'x\n'})
    tree.record_next = str(tmp_path / 'first')
    tree.begin()
    tree.record_next = str(tmp_path / 'second')
    tree.read('proc/stat')
    tree.begin()
    tree.read('proc/stat')
    assert (tmp_path / 'first/proc/stat').exists() and (tmp_path / 'second/proc/stat').exists()


@pytest.fixture
def hasty():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_that_read_the_same_at_once_record_it_into_one_folder(host, tmp_path, hasty):
    source = host({'proc/%d/fd/x' % pid: '' for pid in range(100)})
    for pid in range(100):
        os.symlink('socket:[%d]' % pid, str(source.folder / ('proc/%d/fd/3' % pid)))

    def read(tree):
        for pid in range(100):
            tree.list('proc/%d' % pid)
            tree.numbers('proc/%d/fd' % pid)
            tree.link('proc/%d/fd/3' % pid)
    for turn in range(10):
        trees = [Tree(source.roots, time.monotonic) for i in range(3)]
        for tree in trees:
            tree.record_to = str(tmp_path / 'record' / str(turn))
        threads = [threading.Thread(target=read, args=(tree,)) for tree in trees]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [tree.unrecorded for tree in trees] == [None] * 3
        assert os.readlink(str(tmp_path / 'record' / str(turn) / 'proc/99/fd/3')) == 'socket:[99]'


MOUNTINFO = r"""22 28 0:21 / /proc rw,nosuid - proc proc rw
36 35 98:0 /mnt1 /a\040b\011c\012d\134e ro,noatime master:1 shared:7 - ext3 /dev/my\040root rw,errors=continue
37 35 98:1 / /x\999\04 rw - fuse.sshfs a:/b rw
torn 35 98:0
"""


def test_mounts_are_read_with_their_escapes_undone(host):
    tree = host({'proc/self/mountinfo': MOUNTINFO})
    proc, disk, odd = statbadger.mounts(tree)
    assert (proc.number, proc.root, proc.point, proc.type, proc.source) == (b'0:21', b'/', b'/proc', b'proc', b'proc')
    assert (disk.root, disk.point, disk.source) == (b'/mnt1', b'/a b\tc\nd\\e', b'/dev/my root')
    assert disk.options == [b'ro', b'noatime'] and disk.super_options == [b'rw', b'errors=continue']
    assert odd.point == b'/x\\999\\04' and odd.type == b'fuse.sshfs' and tree.bad_lines == 1
    first = host({'proc/self/mountinfo': MOUNTINFO, 'proc/1/mountinfo': MOUNTINFO[:44]}, 'first')
    assert [m.point for m in statbadger.mounts(first)] == [b'/proc']


def test_snapshots_are_the_folders_that_are_named_by_a_time(tmp_path):
    for name in ('10.500', '9', '100.000', 'x', '1.2.3', '-5', '1e3', '\u0663'):
        (tmp_path / name).mkdir()
    (tmp_path / '50').write_text('no folder')
    assert [ms for ms, path in snapshots(str(tmp_path))] == [9000, 10500, 100000]
