"""File systems: which mounts count, what statvfs() says of them, and what becomes of one that never answers; pressure;
vmstat; names of the device-mapper."""
import errno
import json
import os
import threading
import time

import pytest
import statbadger
from conftest import options
from statbadger import Absent, Asker, Parts, Say
from test_modules import rows

ALL = dict(mounts=['*'], types=['*'], network=False)
VOLUMES = options(**ALL)
COLUMNS = [m.name for m in statbadger.FILESYSTEM.raw]


def mountinfo(*lines):
    """`number root point type [source [options]]` -> a file of mountinfo; optional fields as kernels have them."""
    out = []
    for i, line in enumerate(lines):
        number, root, point, kind, source, opts = (line.split(' ') + ['none', 'rw'][len(line.split(' ')) - 4:])[:6]
        optional = ['', 'shared:%d ' % i, 'master:1 propagate_from:2 '][i % 3]
        out.append('%d 1 %s %s %s %s,relatime %s- %s %s rw,errors=continue\n' % (
            20 + i, number, root, point, opts, optional, kind, source))
    return ''.join(out)


def points(host, text, **given):
    """The mount points that are kept of a file of mountinfo."""
    tree = host({'proc/1/mountinfo': text})
    chosen = statbadger.volumes_wanted(statbadger.mounts(tree), options(**dict(ALL, **given)))
    return [mount.point.decode() for mount in chosen]


def volumes(tree, opts=VOLUMES, memory=None):
    """{mount: {column: value}} of one reading, and what it said."""
    found, said = {}, []
    tree.begin()
    for one in statbadger.filesystem(tree, opts, {} if memory is None else memory):
        if type(one) is Say:
            said.append(one.text)
        else:
            found[one[1][0]] = {name: value for name, value in zip(COLUMNS, one[2]) if value == value}
    return found, said


# -- what statvfs() says ----------------------------------------------------------------------------

def test_sizes_in_bytes_inodes_and_the_share_in_use_as_df_has_it(host):
    tree = host({'proc/1/mountinfo': mountinfo('8:1 / / ext4 /dev/sda1', '8:2 / /home xfs /dev/sda2 ro'),
                 'answers/statvfs/mounts': '/ 4096 1000 400 300 800 500\n/home 512 10 10 10 0 0\n'})
    found, said = volumes(tree)
    assert found == {
        '/': dict(size=4096000, used=600 * 4096, free=400 * 4096, available=300 * 4096, used_percent=100.0 * 600 / 900,
                  inodes=800, inodes_used=300, inodes_free=500, read_only=0, stuck=0),
        '/home': dict(size=5120, used=0, free=5120, available=5120, used_percent=0, read_only=1, stuck=0)}
    assert said == []


def test_labels_are_the_mount_the_source_and_the_type(host):
    tree = host({'proc/1/mountinfo': mountinfo('8:1 / / ext4 /dev/sda1'), 'answers/statvfs/mounts': '/ 1 9 9 9 9 9\n'})
    (table, labels, row), = statbadger.filesystem(tree, VOLUMES, {})
    assert labels == ('/', '/dev/sda1', 'ext4') and table.labels + table.further == ('mount', 'device', 'fstype')


@pytest.mark.parametrize('words, column, value', [
    ('4096 10 20 5 0 0', 'used', None), ('4096 10 20 5 0 0', 'free', 81920), ('4096 10 20 5 0 0', 'used_percent', None),
    ('4096 10 1 18446744073709551610 0 0', 'available', 0), ('4096 10 1 18446744073709551610 0 0', 'used_percent', 100),
    ('1 10 10 0 0 0', 'used_percent', None), ('1 10 5 5 7 9', 'inodes_used', None), ('1 10 5 5 7 9', 'inodes_free', 9),
    ('1 10 5 5 7 7', 'inodes_used', 0), ('65536 18446744073709551615 0 0 0 0', 'size', 65536 * 18446744073709551615)])
def test_figures_that_are_odd_are_absent_one_by_one(words, column, value):
    row = statbadger.volume_row(words.encode().split(), 0)
    found = dict(zip(COLUMNS, row))[column]
    assert found == value if value is not None else found != found


@pytest.mark.parametrize('answer', ['4096 0 0 0 0 0', '1 2 3', '1 2 3 4 5 x', '1 2 3 4 5 6 7', '', 'error 2', 'error 20',
                                    '1 2 3 4 5 -6', '1 2 3 4 5 18446744073709551616'])
def test_what_stores_nothing_is_gone_or_is_garbage_gives_no_row(host, answer):
    tree = host({'proc/1/mountinfo': mountinfo('8:1 / /a ext4', '8:2 / /b ext4'),
                 'answers/statvfs/mounts': '/a %s\n/b 1 9 9 9 9 9\n/b 1 9' % answer})
    assert list(volumes(tree)[0]) == ['/b']


def test_an_error_is_said_once_for_each_mount_and_the_mount_is_known_to_be_there(host):
    tree, memory = host({'proc/1/mountinfo': mountinfo('8:1 / /a ext4', '8:2 / /b fuseblk x ro')}), {}
    texts = [('/a error 13\n/b error 107\n', ['/a (ext4): %s' % os.strerror(13), '/b (fuseblk): %s' % os.strerror(107)]),
             ('/a error 13\n/b error 116\n', ['/b (fuseblk): %s' % os.strerror(116)]),
             ('/a 1 9 9 9 9 9\n/b 1 9 9 9 9 9\n', []), ('/a error 13\n/b error 107\n', [])]
    (tree.folder / 'answers/statvfs').mkdir(parents=True)
    for text, expected in texts:
        (tree.folder / 'answers/statvfs/mounts').write_text(text)
        found, said = volumes(tree, memory=memory)
        assert said == expected
        assert set(found) == {'/a', '/b'} and found['/b']['read_only'] == 1 and found['/a']['stuck'] == 0
    assert found['/a'] == dict(read_only=0, stuck=0)


# -- which mounts count ------------------------------------------------------------------------------

SERVER = mountinfo(
    '0:21 / /proc proc', '0:22 / /sys sysfs', '0:6 / /dev devtmpfs', '0:23 / /dev/shm tmpfs', '0:24 / /dev/pts devpts',
    '8:1 / / ext4 /dev/sda1', '0:25 / /run tmpfs', '8:2 / /home ext4 /dev/sda2', '8:2 /lib /srv/lib ext4 /dev/sda2',
    '8:2 / /mnt/again ext4 /dev/sda2', '7:1 / /snap/core/1 squashfs /dev/loop1', '0:40 / /net nfs4 srv:/', '0:41 / /smb cifs //s/x',
    '0:42 / /far fuse.sshfs u@h:', '8:3 / /ntfs fuseblk /dev/sda3', '0:43 / /var/lib/docker/overlay2/1/merged overlay',
    '8:4 / /var/lib/docker ext4 /dev/sda4', '0:44 / /srv/merged overlay', '0:45 / /run/user/1000 tmpfs',
    '0:46 / /run/credentials/a.service ramfs', '0:47 / /var/lib/kubelet/pods/1/volumes/token tmpfs', '0:48 / /net/p 9p',
    '0:49 / /proc/sys/fs/binfmt_misc autofs', '8:1 /etc/hosts /srv/hosts ext4 /dev/sda1')


def test_of_a_server_each_file_system_that_stores_something_here_counts_once(host):
    assert points(host, SERVER) == ['/', '/run', '/home', '/ntfs', '/var/lib/docker', '/run/user/1000']


@pytest.mark.parametrize('given, kept', [
    (dict(network=True), ['/', '/run', '/home', '/net', '/smb', '/far', '/ntfs', '/var/lib/docker', '/run/user/1000', '/net/p']),
    (dict(types=['nfs*', 'ext4']), ['/', '/home', '/net', '/var/lib/docker']),
    (dict(types=['*', 'overlay']), ['/', '/run', '/home', '/ntfs', '/var/lib/docker', '/srv/merged', '/run/user/1000']),
    (dict(types=['!tmpfs']), ['/', '/home', '/ntfs', '/var/lib/docker']),
    (dict(types=['squashfs']), ['/snap/core/1']),
    (dict(mounts=['!/run*']), ['/', '/home', '/ntfs', '/var/lib/docker']),
    (dict(mounts=['/home*']), ['/home']),
    (dict(mounts=['/home', '/srv/lib', '/net', '/dev/shm', '/srv/hosts']), ['/dev/shm', '/home', '/srv/lib', '/net', '/srv/hosts']),
    (dict(mounts=['/var/lib/kubelet/*', '*'], types=['tmpfs']), ['/run', '/run/user/1000', '/var/lib/kubelet/pods/1/volumes/token']),
    (dict(mounts=['/mnt/again', '*'], types=['ext4']), ['/', '/mnt/again', '/var/lib/docker']),
    (dict(mounts=['/nowhere']), [])])
def test_options_take_away_and_name(host, given, kept):
    assert points(host, SERVER, **given) == kept


@pytest.mark.parametrize('lines, kept', [
    # btrfs: a number for all subvolumes, none of which is its root
    (['0:30 /@ / btrfs /dev/sda2', '0:30 /@home /home btrfs /dev/sda2', '0:30 /@snapshots /.snapshots btrfs /dev/sda2'], ['/']),
    (['8:1 / / ext4', '0:31 /@a /a btrfs', '0:31 /@b /b btrfs', '0:31 / /top btrfs'], ['/', '/top']),
    # ostree: the root is a folder of what is mounted whole at /sysroot
    (['8:4 /ostree/deploy/x / xfs', '8:4 / /sysroot xfs', '8:4 /ostree/deploy/var /var xfs', '8:3 / /boot ext4'], ['/', '/boot']),
    # a container: layers at /, and files of the host's disk
    (['0:50 / / overlay', '0:51 / /proc proc', '8:1 /docker/1/hosts /etc/hosts ext4', '8:1 /docker/v /data ext4'], ['/']),
    (['0:50 / / nfs srv:/root', '0:51 / /tmp tmpfs'], ['/', '/tmp']),
    # mounted over another: only what is on top
    (['0:1 / / rootfs', '8:1 / / ext4', '8:2 / /mnt ext4', '8:3 / /mnt nfs4'], ['/']),
    (['8:2 / /mnt ext4', '8:3 / /mnt xfs', '8:2 / /other ext4'], ['/mnt', '/other'])])
def test_layouts_that_are_not_a_disk_a_mount(host, lines, kept):
    assert points(host, mountinfo(*lines)) == kept


def test_mount_points_are_hostile(host):
    long = '/' + '/'.join(['d' * 254] * 16)
    names = ['/a\\040b', '/tab\\011', '/line\\012end', '/back\\134slash', '/hash\\043', '/\\', '/\\0', '/\\777', long, '/x/fs.size']
    tree = host({'proc/1/mountinfo': mountinfo(*['8:%d / %s ext4 /dev/\\040' % pair for pair in enumerate(names)])})
    with open(str(tree.folder / 'proc/1/mountinfo'), 'ab') as file:
        file.write(b'50 1 8:90 / /\xff\xfe rw - ext4 \xff rw\n')
    meant = [b'/a b', b'/tab\t', b'/line\nend', b'/back\\slash', b'/hash#', b'/\\', b'/\\0', b'/\\777', long.encode(), b'/x/fs.size', b'/\xff\xfe']
    assert [mount.point for mount in statbadger.mounts(tree)] == meant
    answers = b''.join(statbadger.escaped(point) + b' 1 %d 1 1 1 1\n' % (n + 1) for n, point in enumerate(meant))
    (tree.folder / 'answers/statvfs').mkdir(parents=True)
    (tree.folder / 'answers/statvfs/mounts').write_bytes(answers)
    found, said = volumes(tree)
    assert {name: row['size'] for name, row in found.items()} == {
        point.decode('utf-8', 'replace'): n + 1 for n, point in enumerate(meant)}
    assert tree.bad_lines == 0


@pytest.mark.parametrize('line', ['20 1 8:9 / /x rw ext4 /dev/sda rw', '20 1 8:9 / /x - ext4 x rw', 'garbage', '\xff', ' - ', '1 2 3 4 5 6 - a'])
def test_a_line_of_mountinfo_that_is_garbage_takes_only_itself_away(host, line):
    good = mountinfo('8:1 / / ext4', '8:2 / /home ext4')
    tree = host({'proc/1/mountinfo': good.replace('\n', '\n' + line + '\n', 1)})
    assert [mount.point for mount in statbadger.mounts(tree)] == [b'/', b'/home'] and tree.bad_lines == 1


def test_two_thousand_mounts(host):
    lines = ['%d:%d / /m/%d ext4 /dev/x%d' % (9, n, n, n) for n in range(2000)]
    tree = host({'proc/1/mountinfo': mountinfo(*lines), 'answers/statvfs/mounts': ''.join(
        '/m/%d 4096 9 9 9 9 9\n' % n for n in range(2000))})
    memory = {}
    assert len(volumes(tree, memory=memory)[0]) == 2000
    known = memory['volumes']
    volumes(tree, memory=memory)
    assert memory['volumes'] is known           # looked through once, as long as the file stays as it is
    (tree.folder / 'proc/1/mountinfo').write_text(mountinfo(*lines[:5]))
    assert list(volumes(tree, memory=memory)[0]) == ['/m/%d' % n for n in range(5)]


def test_without_proc_1_it_is_our_own_mounts_and_below_our_root_for_the_host_they_are_the_hosts(host):
    tree = host({'proc/self/mountinfo': mountinfo('8:1 / / ext4', '8:2 / /home ext4')})
    assert [mount.point for mount in statbadger.mounts(tree)] == [b'/', b'/home']
    root = str(tree.folder)
    (tree.folder / 'proc/self/mountinfo').write_text(mountinfo(
        '0:9 / / overlay', '8:1 / %s ext4' % root, '8:2 / %s/home ext4' % root, '8:3 / %sx ext4' % root, '0:8 / /proc proc'))
    tree.begin()
    assert [mount.point for mount in statbadger.mounts(tree)] == [b'/', b'/home']


def test_no_mountinfo_is_absent(host):
    with pytest.raises(Absent):
        volumes(host({}))


# -- what is looked at --------------------------------------------------------------------------------

def number(path):
    status = os.stat(str(path))
    return '%d:%d' % (os.major(status.st_dev), os.minor(status.st_dev))


class Space:
    """What a statvfs() that is passed in gives."""
    f_bsize, f_frsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree = 65536, 1024, 100, 60, 50, 10, 4


@pytest.fixture
def real(host):
    """A Tree over folders that count as mounts, for they are where their number says; .statvfs is passed in."""
    made = []

    def make(*names):
        tree = host({name + '/file': '' for name in names} if names else {})
        device = number(tree.folder)
        (tree.folder / 'proc/1').mkdir(parents=True, exist_ok=True)
        # Each is named in full: in truth they are one file system.
        (tree.folder / 'proc/1/mountinfo').write_text(mountinfo(*['%s / /%s ext4' % (device, name) for name in names]))
        tree.statvfs, tree.opts = (lambda path: Space), options(**dict(ALL, mounts=['/' + name for name in names]))
        made.append(tree)
        return tree
    yield make
    for tree in made:
        tree.close()


def test_the_fragment_is_the_unit_and_the_block_where_there_is_none(real):
    tree = real('a')
    assert volumes(tree, tree.opts)[0]['/a'] == dict(
        size=102400, used=40960, free=61440, available=51200, used_percent=100.0 * 40 / 90, inodes=10, inodes_used=6,
        inodes_free=4, read_only=0, stuck=0)

    class Old(Space):
        f_frsize = 0
    tree.statvfs = lambda path: Old
    assert volumes(tree, tree.opts)[0]['/a']['size'] == 6553600


def test_the_root_of_a_copy_of_a_host_is_not_taken_for_the_disk_that_it_lies_on(host):
    tree, memory = host({'etc/x': ''}), {}
    (tree.folder / 'proc/1').mkdir(parents=True)
    (tree.folder / 'proc/1/mountinfo').write_text(mountinfo('%s / / ext4' % number(tree.folder), '254:99 / /etc xfs'))
    found, said = volumes(tree, memory=memory)
    assert found == {} and len(said) == 1 and said[0].startswith('2 of 2 mounts are not to be seen from here, such as /:')
    assert volumes(tree, memory=memory) == ({}, [])
    tree.close()


def test_the_root_of_the_host_is_seen_from_a_container_whose_root_is_a_folder_of_it(host):
    tree = host({'proc/self/ns/pid': ''})                                    # a running kernel: no copy
    (tree.folder / 'proc/self/mountinfo').write_text(mountinfo('%s / %s ext4' % (number(tree.folder), tree.folder)))
    tree.statvfs = lambda path: Space
    assert volumes(tree)[0]['/']['size'] == 102400
    tree.close()


def test_the_way_through_the_first_process_leads_into_its_mount_namespace(host):
    tree = host({'there/data/x': '', 'data/x': ''})
    (tree.folder / 'proc/1').mkdir(parents=True)
    os.symlink(str(tree.folder / 'there'), str(tree.folder / 'proc/1/root'))
    (tree.folder / 'proc/1/mountinfo').write_text(mountinfo('%s / /only ext4' % number(tree.folder)))
    (tree.folder / 'there/only').mkdir()
    asked = []
    tree.statvfs = lambda path: asked.append(path) or Space
    assert volumes(tree)[0]['/only']['size'] == 102400
    assert asked == [os.fsencode(str(tree.folder / 'proc/1/root/only'))]
    tree.close()


def test_a_subvolume_has_another_number_and_must_be_a_mount_point(tmp_path):
    mount = statbadger.Mount(b'0:1', b'/@', b'/x', [], b'btrfs', b'', [])
    assert not statbadger.is_there(os.fsencode(str(tmp_path)), mount, False)    # a folder, mounted nowhere
    assert statbadger.is_there(b'/', mount, False) and statbadger.is_there(b'/proc', mount, True)
    mount.type = b'ext4'
    assert not statbadger.is_there(b'/', mount, False)


def test_an_error_of_statvfs_is_that_mounts_own(real):
    def statvfs(path):
        if path.endswith(b'/b'):
            raise OSError(errno.EACCES, 'no')
        return Space
    tree = real('a', 'b')
    tree.statvfs = statvfs
    found, said = volumes(tree, tree.opts)
    assert found['/a']['size'] == 102400 and found['/b'] == dict(read_only=0, stuck=0)
    assert said == ['/b (ext4): %s' % os.strerror(errno.EACCES)]


# -- what never answers ---------------------------------------------------------------------------------

class Hung:
    """A statvfs() that hangs where it is told to, and counts who asked."""

    def __init__(self, *names):
        self.names, self.asked, self.free = set(names), [], threading.Event()

    def __call__(self, path):
        name = os.path.basename(path).decode()
        self.asked.append(name)
        if name in self.names:
            self.free.wait(60)
        return Space


def eventually(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_mount_that_hangs_costs_one_thread_is_stuck_and_is_never_asked_again_while_the_others_go_on(real):
    tree, memory = real('a', 'hung', 'z'), {}
    tree.statvfs = hung = Hung('hung')
    found, said = volumes(tree, tree.opts, memory)
    assert found['/hung'] == dict(read_only=0, stuck=1) and found['/a']['size'] == found['/z']['size'] == 102400
    assert said == ['/hung (ext4): does not answer, and is not waited for']
    tree.asker.PATIENCE = 30
    for again in range(20):
        began = time.monotonic()
        found, said = volumes(tree, tree.opts, memory)
        assert (found['/hung']['stuck'], found['/a']['stuck'], found['/z']['size'], said) == (1, 0, 102400, [])
        assert time.monotonic() - began < 30
    assert hung.asked.count('hung') == 1 and hung.asked.count('a') == 21
    eventually(lambda: tree.asker.threads == 2)
    hung.names.clear()
    hung.free.set()
    eventually(lambda: tree.asker.threads == 1)
    found, said = volumes(tree, tree.opts, memory)
    assert found['/hung']['size'] == 102400 and found['/hung']['stuck'] == 0
    assert hung.asked.count('hung') == 2
    asker = tree.asker
    tree.close()
    eventually(lambda: asker.threads == 0)


def test_many_that_hang_at_once_have_a_thread_each_and_all_others_are_answered(real):
    names = ['m%d' % n for n in range(12)]
    tree = real(*names)
    tree.statvfs = hung = Hung('m0', 'm3', 'm4', 'm11')
    for again in range(5):
        found, said = volumes(tree, tree.opts)
        assert [int(found['/' + name]['stuck']) for name in names] == [1, 0, 0, 1, 1] + [0] * 6 + [1]
    eventually(lambda: tree.asker.threads == 5)
    assert all(hung.asked.count(name) == 1 for name in hung.names)
    hung.free.set()


def test_healthy_mounts_are_asked_by_one_thread_that_is_kept(real):
    tree, seen = real('a', 'b'), set()
    tree.statvfs = lambda path: seen.add(threading.get_ident()) or Space
    for again in range(50):
        assert len(volumes(tree, tree.opts)[0]) == 2
        eventually(lambda: tree.asker.resting)
    assert len(seen) == 1 and threading.get_ident() not in seen


def test_an_answer_that_comes_late_is_the_next_readings_and_then_nobody_waits_for_it():
    asker, go = Asker(), [threading.Event() for n in range(3)]

    def slow(n):
        return lambda: go[n].wait(60) and 'answer %d' % n
    assert asker.ask({'slow': slow(0), 'quick': lambda: 1}) == {'slow': None, 'quick': 1}
    go[0].set()
    eventually(lambda: asker.answers)
    began, asker.PATIENCE = time.monotonic(), 30
    assert asker.ask({'slow': slow(1), 'quick': lambda: 2}) == {'slow': 'answer 0', 'quick': 2}
    assert asker.ask({'slow': slow(2), 'quick': lambda: 3}) == {'slow': None, 'quick': 3}   # slow(1) is still asked
    assert time.monotonic() - began < 30
    go[1].set()
    eventually(lambda: asker.answers)
    go[2].set()
    asker.SOON = 30                             # on a machine that is busy
    assert asker.ask({'slow': slow(2), 'quick': lambda: 4}) == {'slow': 'answer 2', 'quick': 4}
    assert asker.in_time == {'slow': True, 'quick': True}
    asker.close()
    eventually(lambda: asker.threads == 0)


def test_with_very_many_that_hang_only_those_that_answered_are_asked():
    asker, free = Asker(), threading.Event()
    asker.MOST_HUNG = 3
    questions = {n: lambda: free.wait(60) for n in range(8)}
    questions['good'] = lambda: 'yes'
    assert asker.ask({'good': questions['good']}) == {'good': 'yes'}
    for again in range(3):
        found = asker.ask(questions)
        assert found['good'] == 'yes' and found[0] is None and asker.threads <= 5
    assert len(asker.begun) <= 4
    free.set()
    asker.close()
    eventually(lambda: asker.threads == 0)


def test_an_exception_is_the_answer_to_the_one_question():
    asker, bad = Asker(), ValueError('x')

    def fails():
        raise bad
    assert asker.ask({1: fails, 2: lambda: 2}) == {1: bad, 2: 2}
    assert asker.ask({}) == {}
    asker.close()
    eventually(lambda: asker.threads == 0)


class Told(statbadger.Bell):
    """A bell that knows how often it was closed."""
    closed = 0

    def close(self):
        self.closed += 1
        statbadger.Bell.close(self)


def test_what_was_closed_while_it_hung_gives_its_descriptors_back_when_it_can():
    asker, free, told = Asker(), threading.Event(), Told()
    asker.answered.close()
    asker.answered, asker.PATIENCE = told, 0.1
    eventually(lambda: asker.ask({1: lambda: free.wait(60)}) == {1: None})
    asker.close()
    eventually(lambda: asker.threads == 1)
    assert told.closed == 0                     # the thread that hangs may yet ring it
    free.set()
    eventually(lambda: told.closed == 1)


# -- the whole program -------------------------------------------------------------------------------------

def ticks(done):
    assert done.code == 0, done.err
    return [{name: entry['value'] for point in json.loads(line)['points'] for name, entry in point.items()}
            for line in done.out.split('\n')[:-1]]


@pytest.mark.parametrize('module', ['filesystem', 'vmstat', 'pressure', 'disk,names'])
def test_a_recording_replays_to_the_same_numbers(run, tmp_path, module):
    if module == 'pressure' and not os.path.exists('/proc/pressure/cpu'):
        pytest.skip('needs a kernel with /proc/pressure')
    live = ticks(run('--record', tmp_path / 'r', '-n', '3', '-i', '0.4', '-e', 'stdout', '-m', module))
    again = ticks(run('--replay', tmp_path / 'r', '-i', '0.4', '-e', 'stdout', '-m', module))
    assert set().union(*live) == set().union(*again) and len(live) == len(again) == 3
    if module == 'filesystem':                  # a thread of its own: what came late is in the next tick
        return
    for tick, copy in zip(live, again):
        # Rates are over the time between the folders, which are named when a tick begins.
        assert copy == {name: pytest.approx(value, rel=0.5, abs=100) for name, value in tick.items()}


def test_a_recording_of_mounts_holds_what_was_answered(host, tmp_path):
    tree = host({'a/file': ''})
    (tree.folder / 'proc/1').mkdir(parents=True)
    (tree.folder / 'proc/1/mountinfo').write_text(mountinfo('%s / /a ext4 /dev/x' % number(tree.folder)))
    tree.statvfs, tree.record_next = (lambda path: Space), str(tmp_path / 'r')
    live = volumes(tree)
    assert (tmp_path / 'r/answers/statvfs/mounts').read_text() == '/a 1024 100 60 50 10 4\n'
    roots = {'': str(tmp_path / 'r'), 'proc': str(tmp_path / 'r/proc'), 'sys': str(tmp_path / 'r/sys')}
    frozen = statbadger.Tree(roots, lambda: 0.0, frozen=True)
    assert volumes(frozen) == live and frozen.asker is None
    tree.close()


# -- pressure ----------------------------------------------------------------------------------------------

PRESSURE = 'some avg10=1.50 avg60=0.25 avg300=0.01 total=%d\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=%d\n'


def parts(name, tree, opts=None):
    said = []
    return Parts(name, statbadger.MODULES[name].parts, opts, tree, lambda level, text: said.append(text)), said


def reading(running, tree, now):
    tree.clock[0] = now
    tree.begin()
    return {s.flat: (v, s.unit) for series, values in running.read(now) for s, v in zip(series, values) if v == v}


def test_pressure_in_percent_and_ms_per_second(host):
    tree = host({'proc/pressure/' + name: PRESSURE % (1000000, 10) for name in ('cpu', 'memory', 'io')})
    running, said = parts('pressure', tree)
    first = reading(running, tree, 1.0)
    assert len(first) == 18 and first['psi.memory_some_avg10'] == (1.5, 'percent') and 'psi.io_some_stalled' not in first
    assert said == []                                  # that there is no irq is usual
    (tree.folder / 'proc/pressure/io').write_text(PRESSURE % (1500000, 2010))
    found = reading(running, tree, 3.0)
    # 500,000 us in 2 s are 250 ms a second; 2,000 us are 1 ms a second
    assert found['psi.io_some_stalled'] == (250, 'ms/s') and found['psi.io_full_stalled'] == (1, 'ms/s')
    assert found['psi.cpu_full_stalled'] == (0, 'ms/s') and len(found) == 24


def test_interrupts_have_a_line_of_their_own_and_cores_had_one_line_before_5_13(host):
    tree = host({'proc/pressure/irq': PRESSURE.split('\n')[1] % 7 + '\n', 'proc/pressure/cpu': PRESSURE.split('\n')[0] % 7 + '\n'})
    running, said = parts('pressure', tree)
    reading(running, tree, 1.0)
    assert set(reading(running, tree, 2.0)) == {'psi.%s_%s' % (name, what) for name in ('irq_full', 'cpu_some')
                                                for what in ('avg10', 'avg60', 'avg300', 'stalled')}


@pytest.mark.parametrize('line', ['some avg10=100.01 avg60=0.00 avg300=0.00 total=1', 'some avg10=x avg60=0.00 avg300=0.00 total=1', 'some avg10=0.00 avg60=0.00 avg300=0.00', 'some',
                                  'some avg10=0.00 avg60=0.00 avg300=0.00 total=-1', '\xff\xfe', 'some avg60=0.00 avg10=0.00 avg300=0.00 total=1'])
def test_a_line_of_pressure_that_is_garbage_takes_only_itself_away(host, line):
    tree = host({'proc/pressure/io': line + '\n' + (PRESSURE % (1, 1)).split('\n')[1] + '\n'})
    found = [labels for labels in rows_of(statbadger.io_pressure, tree)]
    assert found == [dict(io_full_avg10=.5, io_full_avg60=0, io_full_avg300=0, io_full_stalled=1)] and tree.bad_lines == 1


def rows_of(part, tree, opts=None, memory=None):
    tree.begin()
    return [{m.name: v for m, v in zip(table.raw, row) if v == v}
            for table, labels, row in part(tree, opts, {} if memory is None else memory)]


def test_pressure_that_is_torn_or_of_kinds_to_come(host):
    tree = host({'proc/pressure/io': 'most avg10=0.00 avg60=0.00 avg300=0.00 total=1\n' + (PRESSURE % (1, 123))[:-1]})
    assert len(rows_of(statbadger.io_pressure, tree)) == 1
    (tree.folder / 'proc/pressure/io').write_text('nothing\n')
    with pytest.raises(ValueError):
        rows_of(statbadger.io_pressure, tree)


# -- vmstat ---------------------------------------------------------------------------------------------------

VMSTAT = 'nr_free_pages %d\nnr_dirtied %d\nworkingset_nodes 7\nworkingset_refault_file %d\npgpgin %d\npgfault %d\nthp_split_page %d\noom_kill %d\n'


def test_vmstat_rates_with_the_kib_of_pgpgin_as_bytes(host):
    tree = host({'proc/vmstat': VMSTAT % ((100,) * 7)})
    running, said = parts('vmstat', tree, options(keys=[]))
    assert reading(running, tree, 1.0) == {}
    (tree.folder / 'proc/vmstat').write_text(VMSTAT % (90, 110, 120, 130, 140, 150, 102))
    assert reading(running, tree, 3.0) == {
        'vm.workingset_refault_file': (10, ''), 'vm.pgpgin': (15 * 1024, 'B/s'), 'vm.pgfault': (20, ''), 'vm.oom_kill': (1, '')}


def test_vmstat_has_the_rest_on_request_and_knows_gauges_from_counters(host):
    tree = host({'proc/vmstat': VMSTAT % ((100,) * 7)})
    running, said = parts('vmstat', tree, options(keys=['*', '!pg*']))
    assert reading(running, tree, 1.0) == {'vm.nr_free_pages': (100, ''), 'vm.workingset_nodes': (7, '')}
    (tree.folder / 'proc/vmstat').write_text(VMSTAT % (90, 110, 120, 130, 140, 150, 102))
    assert reading(running, tree, 3.0) == {
        'vm.nr_free_pages': (90, ''), 'vm.nr_dirtied': (5, ''), 'vm.workingset_nodes': (7, ''),
        'vm.workingset_refault_file': (10, ''), 'vm.thp_split_page': (25, ''), 'vm.oom_kill': (1, '')}


@pytest.mark.parametrize('bad', ['pgfault x\n', 'pgfault\n', 'pgfault 1 2\n', 'pgfault 18446744073709551616\n', 'pgfault -1\n', 'PgFault 1\n',
                                 '\xff\xfe 3\n', 'pgpgin 5\n'])
def test_a_line_of_vmstat_that_is_garbage_takes_only_itself_away_and_for_one_reading(host, bad):
    tree = host({'proc/vmstat': VMSTAT % ((100,) * 7)})
    running, said = parts('vmstat', tree, options(keys=[]))
    reading(running, tree, 1.0)
    text = (VMSTAT % ((200,) * 7)).replace('pgfault 200\n', bad)
    (tree.folder / 'proc/vmstat').write_text(text)
    found = reading(running, tree, 2.0)
    assert set(found) == {'vm.workingset_refault_file', 'vm.pgpgin', 'vm.oom_kill'} and found['vm.pgpgin'][0] == 102400
    assert tree.bad_lines == 1
    for now in (3.0, 4.0):
        (tree.folder / 'proc/vmstat').write_text(VMSTAT % ((100 * now,) * 7))
        found = reading(running, tree, now)
        assert ('vm.pgfault' in found) is (now == 4.0) and found['vm.oom_kill'][0] == 100


def test_a_torn_vmstat_and_lines_that_come_later(host):
    tree = host({'proc/vmstat': 'pgfault 1\noom_kill 12'})
    memory = {}
    assert rows_of(statbadger.vmstat, tree, options(keys=[]), memory) == [dict(pgfault=1)]
    (tree.folder / 'proc/vmstat').write_text('pgfault 2\noom_kill 123\n')
    assert rows_of(statbadger.vmstat, tree, options(keys=[]), memory) == [dict(pgfault=2, oom_kill=123)]
    (tree.folder / 'proc/vmstat').write_text('\nno use\n1\n')
    with pytest.raises(ValueError):
        rows_of(statbadger.vmstat, tree, options(keys=[]), memory)
    (tree.folder / 'proc/vmstat').write_text('nr_mapped 1\n')
    assert rows_of(statbadger.vmstat, tree, options(keys=[]), {}) == []


def test_vmstat_of_linux_2_6_counts_zone_by_zone(host):
    tree = host({'proc/vmstat': 'pgpgin 1\nallocstall 2\npgsteal_dma32 3\npgsteal_normal 4\npgscan_kswapd_high 5\npgscan_direct_dma 6\n'
                                'pgalloc_dma 7\npageoutrun 8\n'})
    assert rows_of(statbadger.vmstat, tree, options(keys=['pageout*'])) == [
        dict(pgpgin=1, allocstall=2, pgsteal_dma32=3, pgsteal_normal=4, pgscan_kswapd_high=5, pgscan_direct_dma=6, pageoutrun=8)]


# -- names of the device-mapper -------------------------------------------------------------------------------

def disk(name, n, number='253 0'):
    return '%s %s %s\n' % (number, name, ' '.join([str(n)] * 11))


DISKS = dict(devices=['*', '!loop*'], partitions=False, names=False)


def labels(tree, memory=None, **given):
    return [labels for family, labels, row in rows('disk', tree, options(**dict(DISKS, **given)), memory)]


def test_the_name_that_device_mapper_has_is_a_label_and_others_have_none(host):
    tree = host({'proc/diskstats': disk('sda', 1, '8 0') + disk('dm-0', 2) + disk('dm-1', 3, '253 1'),
                 'sys/block/sda/size': '', 'sys/block/dm-0/dm/name': 'vg-root\n', 'sys/block/dm-1/dm/uuid': 'x\n'})
    assert labels(tree) == [('sda',), ('dm-0', 'vg-root'), ('dm-1',)]
    running, said = parts('disk', tree, options(**DISKS))
    tree.begin()
    (series, values), = running.read(1.0)
    assert {(s.flat, s.keys, s.values) for s in series if s.name == 'io'} == {
        ('disk.io.sda', ('device',), ('sda',)), ('disk.io.dm-0', ('device', 'name'), ('dm-0', 'vg-root')),
        ('disk.io.dm-1', ('device',), ('dm-1',))}


def test_the_name_is_the_instance_on_request_unless_a_disk_is_called_so(host):
    tree = host({'proc/diskstats': disk('sda', 1, '8 0') + disk('dm-0', 2) + disk('dm-1', 3, '253 1'),
                 'sys/block/sda/size': '', 'sys/block/dm-0/dm/name': 'vg-root\n', 'sys/block/dm-1/dm/name': 'sda\n'})
    assert labels(tree, names=True) == [('sda',), ('vg-root', 'vg-root'), ('dm-1', 'sda')]


@pytest.mark.parametrize('devices, kept', [(['vg-*'], ['dm-0', 'dm-2']), (['!vg-swap'], ['sda', 'dm-0']), (['dm-*', '!vg-root'], ['dm-2']),
                                           (['vg-root'], ['dm-0']), (['dm-2', 'sda'], ['sda', 'dm-2'])])
def test_patterns_match_both_names(host, devices, kept):
    tree = host({'proc/diskstats': disk('sda', 1, '8 0') + disk('dm-0', 2) + disk('dm-2', 3, '253 2'),
                 'sys/block/sda/size': '', 'sys/block/dm-0/dm/name': 'vg-root\n', 'sys/block/dm-2/dm/name': 'vg-swap\n'})
    assert [one[0] for one in labels(tree, devices=devices)] == kept


@pytest.mark.parametrize('name, shown', [(b'a\nb\n', ('a\nb',)), (b'\xff\n', ('\ufffd',)), (b'torn', ()), (b'', ()), (b'\n', ()), (b'n' * 127 + b'\n', ('n' * 127,))])
def test_names_of_the_device_mapper_are_hostile(host, name, shown):
    tree = host({'proc/diskstats': disk('dm-0', 2), 'sys/block/dm-0/dm/name': name})
    assert labels(tree) == [('dm-0',) + shown]


def test_no_name_of_a_line_leads_out_of_sys(host):
    tree = host({'proc/diskstats': disk('dm-../../x', 2), 'sys/x/dm/name': 'y\n', 'sys/block/dm-../size': ''})
    assert labels(tree, partitions=True) == [('dm-../../x',)]


def test_the_name_is_read_once_and_again_when_the_devices_change_or_one_began_anew(host):
    tree, memory = host({'proc/diskstats': disk('dm-0', 20), 'sys/block/dm-0/dm/name': 'one\n'}), {}
    name, stats = tree.folder / 'sys/block/dm-0/dm/name', tree.folder / 'proc/diskstats'
    assert labels(tree, memory) == [('dm-0', 'one')]
    name.write_text('two\n')
    stats.write_text(disk('dm-0', 21))
    assert labels(tree, memory) == [('dm-0', 'one')]            # not looked at
    stats.write_text(disk('dm-0', 3))
    assert labels(tree, memory) == [('dm-0', 'two')]            # removed and made between two readings, in the same place
    name.write_text('three\n')
    (tree.folder / 'sys/block/sda').mkdir()
    stats.write_text(disk('sda', 1, '8 0') + disk('dm-0', 4))
    assert labels(tree, memory) == [('sda',), ('dm-0', 'three')]
    name.write_text('four\n')
    stats.write_text(disk('sda', 1, '8 0') + disk('dm-0', 5, '253 9'))
    assert labels(tree, memory) == [('sda',), ('dm-0', 'four')]
