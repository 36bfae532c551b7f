"""Avro files and all that can happen to them: full disks, files that move, other writers, kill -9 at any moment.

What is acknowledged is in the file, once and in order, and the file is whole whenever somebody looks.
"""
import errno
import os
import random
import signal
import subprocess
import tempfile
import time
import traceback

import pytest
import statbadger
from rig import Rig
from standins_avro import Wrong, read
from test_avro import SEED, WIDE, Batches, data_of, deliver, names, numbers, settings, tick

pytestmark = pytest.mark.filterwarnings('ignore:This process.*fork')        # of pytest-xdist: the child needs none of it
WHOLE = range(1, 13)
THREE = statbadger.Layout(WIDE.series[:3])


def link_to(path):
    return statbadger.FileLink(str(path), os.path.dirname(str(path)))


def files(folder):
    """The files of a series x, x.1, x.2 ... in the order they were written."""
    found = [name for name in names(folder) if name.startswith('x')]
    return sorted(found, key=lambda name: int(name[2:]) if name[2:] else 1 << 30)


def descriptors():
    return sorted(os.readlink('/proc/self/fd/' + fd) for fd in os.listdir('/proc/self/fd')
                  if os.path.lexists('/proc/self/fd/' + fd))


def held(path):
    """Whether this process has the file open."""
    return any(name.split(' (deleted)')[0] == str(path) for name in descriptors())


# -- the link ----------------------------------------------------------------------------------

def test_what_is_synced_stays_and_what_is_not_goes(tmp_path):
    link = link_to(tmp_path / 'x')
    link.send(b'one', None)
    link.sync()
    link.send(b'two', None)
    assert data_of(tmp_path / 'x') == b'onetwo'
    link.close()
    assert data_of(tmp_path / 'x') == b'one' and not held(tmp_path / 'x')
    link.close()


def test_a_file_that_was_made_for_nothing_goes_away(tmp_path):
    for data in (b'', b'unsynced'):
        link = link_to(tmp_path / 'x')
        link.send(data, None)
        link.close()
        assert names(tmp_path) == []


def test_a_file_that_was_empty_before_stays(tmp_path):
    (tmp_path / 'x').write_bytes(b'')
    link = link_to(tmp_path / 'x')
    link.send(b'unsynced', None)
    link.close()
    assert data_of(tmp_path / 'x') == b''


def test_what_is_read_written_and_cut_off(tmp_path):
    (tmp_path / 'x').write_bytes(b'0123456789')
    link = link_to(tmp_path / 'x')
    assert (link.size(), link.part(2, 3), link.part(8, 100), link.part(50, 5)) == (10, b'234', b'89', b'')
    link.truncate(4)
    link.send(b'abc', None)
    link.sync()
    assert data_of(tmp_path / 'x') == b'0123abc' and link.size() == 7
    link.rename(str(tmp_path / 'y'))
    link.send(b'd', None)
    link.sync()
    assert link.size() == 8 and names(tmp_path) == ['y'] and data_of(tmp_path / 'y') == b'0123abcd'
    link.close()


def test_a_file_has_one_writer(tmp_path):
    first = link_to(tmp_path / 'x')
    first.send(b'one', None)
    first.sync()
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            link_to(tmp_path / 'x')
        assert caught.value.errno == errno.EBUSY and str(tmp_path / 'x') in str(caught.value)
        assert 'somebody else writes to it' in str(caught.value)
    first.close()
    assert data_of(tmp_path / 'x') == b'one'
    link_to(tmp_path / 'x').close()


def test_one_that_could_not_lock_a_new_file_leaves_it_to_the_other(tmp_path):
    """The other one opened it before it was locked."""
    first = link_to(tmp_path / 'x')
    with pytest.raises(OSError):
        link_to(tmp_path / 'x')
    assert names(tmp_path) == ['x']
    first.close()


def ways_of_being_no_file(folder):
    os.mkfifo(str(folder / 'fifo'))
    os.mkdir(str(folder / 'folder'))
    os.symlink('nowhere', str(folder / 'dangling'))
    os.symlink('loop', str(folder / 'loop'))
    (folder / 'file').write_bytes(b'')
    return {folder / 'fifo': 'no regular file', folder / 'folder': 'no regular file',
            folder / 'dangling': 'no regular file', folder / 'loop': 'no regular file',
            '/dev/null': 'no regular file', '/dev/full': 'no regular file', folder / 'file' / 'x': 'Not a directory',
            folder / ('n' * 300): 'File name too long', folder / 'missing' / 'x': 'there is no folder'}


def test_what_is_no_regular_file_is_not_even_opened(tmp_path):
    before = descriptors()
    for path, word in ways_of_being_no_file(tmp_path).items():
        with pytest.raises(OSError) as caught:
            link_to(path)
        assert word in str(caught.value) and str(path)[:40] in str(caught.value)
    assert descriptors() == before and 'nowhere' not in names(tmp_path)


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'real').write_bytes(b'')
    os.symlink(os.path.join('folder', 'real'), str(tmp_path / 'x'))
    deliver(tmp_path / 'x', [[tick(1)], [tick(2)]])
    assert numbers(tmp_path / 'folder' / 'real') == [1, 2]


@pytest.mark.parametrize('change', ['moved', 'deleted', 'replaced'])
def test_a_file_whose_path_leads_elsewhere_says_so(tmp_path, change):
    link = link_to(tmp_path / 'x')
    link.send(b'one', None)
    link.sync()
    if change == 'deleted':
        os.unlink(str(tmp_path / 'x'))
    else:
        os.rename(str(tmp_path / 'x'), str(tmp_path / 'y'))
    if change == 'replaced':
        (tmp_path / 'x').write_bytes(b'another')
    with pytest.raises(OSError) as caught:
        link.size()
    assert caught.value.errno == errno.ESTALE and 'x: was moved away or deleted' in str(caught.value)
    link.send(b'two', None)
    if change == 'deleted':
        with pytest.raises(OSError) as caught:
            link.sync()
        assert caught.value.errno == errno.ESTALE
    link.close()
    assert change != 'replaced' or data_of(tmp_path / 'x') == b'another'


def test_names_that_are_no_utf8_are_kept(tmp_path):
    folder = os.fsencode(str(tmp_path)) + b'/\xff\xfe'
    os.mkdir(folder)
    path = folder.decode('utf-8', 'surrogateescape') + '/x'
    open(folder + b'/x.3\xff', 'wb').close()
    deliver(path, [[tick(n)] for n in range(40)], max_bytes=4000)
    assert sorted(os.listdir(folder)) == [b'x', b'x.1', b'x.3\xff']


# -- a step fails, whichever -------------------------------------------------------------------

class Fault:
    """Counts the operations on files and lets the n-th go wrong: before it is done, in its middle, or after it.
    deaf: what was written cannot be cut off again either, and the same goes for the next try."""

    def __init__(self, n, when, code, deaf=False):
        self.left, self.when, self.code, self.deaf, self.happened = n, when, code, deaf, 0

    def opener(self):
        fault = self

        class Link(statbadger.FileLink):
            def do(self, what, *arguments):
                fault.left -= 1
                wrong = fault.left == 0
                if wrong:
                    fault.happened += 1
                    if fault.when == 'before':
                        raise OSError(fault.code, os.strerror(fault.code))
                    if fault.when == 'within' and what == 'send':
                        statbadger.FileLink.send(self, arguments[0][:len(arguments[0]) // 2], arguments[1])
                        raise OSError(fault.code, os.strerror(fault.code))
                answer = getattr(statbadger.FileLink, what)(self, *arguments)
                if wrong:
                    raise OSError(fault.code, os.strerror(fault.code))
                return answer

            def close(self):
                if fault.deaf and fault.happened == 1 and self.file is not None:
                    fault.happened = 2
                    os.close(self.file)
                    self.file = None
                statbadger.FileLink.close(self)

            def size(self):
                return self.do('size')

            def part(self, at, n):
                return self.do('part', at, n)

            def send(self, data, deadline):
                return self.do('send', data, deadline)

            def truncate(self, n):
                return self.do('truncate', n)

            def sync(self):
                return self.do('sync')

            def rename(self, path):
                return self.do('rename', path)

        class Opener(statbadger.Opener):
            def open(self, target, timeout, deadline):
                return Link(*target[1:])
        return Opener(None, None)


class FaultyRig(Rig):
    def __init__(self, fault, **values):
        Rig.__init__(self, 'avro', **values)
        self.sender.opener = fault.opener()


@pytest.mark.parametrize('deaf', [False, True], ids=['cut-off', 'not-cut-off'])
@pytest.mark.parametrize('when', ['before', 'within', 'after'])
@pytest.mark.parametrize('code', [errno.EIO, errno.ENOSPC])
def test_whichever_step_fails_each_tick_is_stored_once(tmp_path, code, when, deaf):
    n = 0
    while True:
        n += 1
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / 'x').write_bytes(b'')
        deliver(folder / 'x', [[tick(0)]])
        (folder / 'x').write_bytes(data_of(folder / 'x') + b'\x02\x08torn')
        fault = Fault(n, when, code, deaf)
        with FaultyRig(fault, path=str(folder / 'x'), max_bytes=1200, batch=2) as rig:
            for number in WHOLE:
                rig.tick(number)
                rig.until(lambda: len(rig.cursor.frames) < 2 or rig.sender.failures)
            rig.settled()
            count = rig.adds_up()
            assert count['acknowledged'] == count['accepted'] == len(WHOLE)
        found = [int(r['value']) for name in files(folder) for r in read(folder / name).records
                 if r['metric'] == 'cpu.user']
        assert found == list(WHOLE), (n, when, found)
        assert sorted(set(int(r['value']) for name in files(folder) for r in read(folder / name).records)) == [0] + found
        assert rig.sender.told is False and (not fault.happened or os.strerror(code) in rig.said())
        if not fault.happened:
            break
    assert n > 30


@pytest.mark.parametrize('code', [errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.ENOSPC, errno.EIO, errno.ESTALE,
                                  errno.ETIMEDOUT, errno.EPERM, errno.ENOLCK], ids=errno.errorcode.get)
def test_a_disk_that_does_not_want_to_is_asked_again_and_the_reason_said(tmp_path, code):
    class Link(statbadger.FileLink):
        def send(self, data, deadline):
            if refusing:
                raise OSError(code, os.strerror(code))
            statbadger.FileLink.send(self, data, deadline)

    class Opener(statbadger.Opener):
        def open(self, target, timeout, deadline):
            return Link(*target[1:])
    refusing = True
    rig = Rig('avro', path=str(tmp_path / 'x'))
    rig.sender.opener = Opener(None, None)
    with rig:
        rig.tick(1, 2, 3)
        rig.until(lambda: rig.sender.failures > 3)
        assert names(tmp_path) == [] and os.strerror(code) in rig.said()
        refusing = False
        assert rig.settled()['acknowledged'] == 3
        assert len([text for level, text in rig.log if 'the ticks wait' in text]) == 1
    assert [r['value'] for r in read(tmp_path / 'x').records] == [n for n in (1, 2, 3) for _ in range(3)]


# -- disks that are full, folders that are closed ----------------------------------------------

def values(path):
    """The numbers of what a Rig has fed."""
    return values_of(path, 'user')


def values_of(path, name):
    return [int(r['value']) for r in read(path).records if r['metric'].endswith('.' + name)]


def whole(path):
    """Whether nothing is torn: it may be for a moment, while somebody writes."""
    try:
        return read(path)
    except Wrong:
        return None


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 128 kB, where we may mount one."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mounted = subprocess.call(['mount', '-t', 'tmpfs', '-o', 'size=128k', 'none', str(folder)], stderr=subprocess.DEVNULL)
    if mounted:
        pytest.skip('needs root to mount a small file system')
    yield folder
    subprocess.check_call(['umount', '-l', str(folder)])


def test_a_full_disk_leaves_whole_files_and_loses_nothing(small_disk):
    (small_disk / 'ballast').write_bytes(b'x' * 90000)
    with Rig('avro', path=str(small_disk / 'x'), batch=3) as rig:
        number = 0
        while not rig.sender.failures:
            number += 1
            rig.tick(number, layout=THREE)
            rig.until(lambda: not rig.cursor.frames or rig.sender.failures)
        for _ in range(50):
            number += 1
            rig.tick(number, layout=THREE)
        rig.until(lambda: whole(small_disk / 'x') and values_of(small_disk / 'x', 'n0')[-1] == rig.adds_up()['acknowledged'])
        assert 'x: No space left on device' in rig.said() and len(rig.cursor.frames) >= 50
        os.unlink(str(small_disk / 'ballast'))
        rig.settled()
    assert [int(r['value']) for r in read(small_disk / 'x').records] == [n for n in range(1, number + 1) for _ in range(3)]


def test_a_disk_that_is_full_from_the_start_gets_no_file(small_disk):
    with open(str(small_disk / 'ballast'), 'wb', 0) as file:
        with pytest.raises(OSError):
            while file.write(b'x' * 4096):
                pass
    with Rig('avro', path=str(small_disk / 'x')) as rig:
        rig.tick(1)
        rig.until(lambda: rig.sender.failures > 5)
        rig.until(lambda: names(small_disk) == ['ballast'])
        os.unlink(str(small_disk / 'ballast'))
        rig.settled()
    assert values(small_disk / 'x') == [1]


def test_a_disk_that_becomes_read_only_is_waited_for(small_disk):
    def mount(how):
        subprocess.check_call(['mount', '-o', 'remount,' + how, str(small_disk)])
    with Rig('avro', path=str(small_disk / '%Y')) as rig:
        rig.tick(1)
        rig.settled()
        with pytest.raises(subprocess.CalledProcessError):
            mount('ro')                         # a file that is open for writing holds it
        rig.renew(path=str(small_disk / 'x'))
        rig.until(lambda: not held(small_disk / '1970'))
        mount('ro')
        rig.tick(2)
        rig.until(lambda: rig.sender.failures > 2)
        assert 'x: Read-only file system' in rig.said()
        mount('rw')
        rig.settled()
    assert values(small_disk / '1970') == [1] and values(small_disk / 'x') == [2]


def in_child(body, user=None):
    """Runs body() in a child, there as that user; AssertionError with what it raised."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            if user:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            body()
            code = 0
        except BaseException:
            os.write(writing, traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(code)
    os.close(writing)
    said = b''
    while True:
        piece = os.read(reading, 65536)
        if not piece:
            break
        said += piece
    os.close(reading)
    assert os.waitpid(child, 0)[1] == 0, said.decode()


@pytest.fixture
def open_folder():
    """A folder that any user gets to, with a folder in it that belongs to user 12345, or to us."""
    folder = tempfile.mkdtemp(prefix='avro-')
    os.chmod(folder, 0o755)
    os.mkdir(os.path.join(folder, 'inner'))
    if os.getuid() == 0:
        os.chown(os.path.join(folder, 'inner'), 12345, 12345)
    yield os.path.join(folder, 'inner')
    subprocess.check_call(['rm', '-rf', folder])


def test_a_folder_that_is_closed_to_us_is_waited_for(open_folder):
    path = os.path.join(open_folder, 'x')

    def body():
        with Rig('avro', path=path, max_bytes=1500) as rig:
            rig.tick(1)
            rig.settled()
            os.chmod(open_folder, 0)
            rig.tick(2)
            rig.until(lambda: rig.sender.failures > 2)
            assert 'x: Permission denied' in rig.said(), rig.said()
            os.chmod(open_folder, 0o500)        # no new names: no closed files
            rig.tick(*range(3, 20))
            rig.until(lambda: rig.sender.failures > 6)
            assert rig.adds_up()['acknowledged'] < 19
            os.chmod(open_folder, 0o700)
            rig.settled()
            os.chmod(open_folder, 0o300)        # which we may not list
            rig.tick(20)
            rig.until(lambda: rig.sender.failures > 2 or not rig.cursor.frames)
            os.chmod(open_folder, 0o700)
            rig.settled()
    in_child(body, 12345 if os.getuid() == 0 else None)
    assert [n for name in files(open_folder) for n in values(os.path.join(open_folder, name))] == list(range(1, 21))


def test_a_file_that_is_closed_to_us_is_waited_for_and_left_as_it_is(open_folder):
    path = os.path.join(open_folder, 'x')
    deliver(path, [[tick(1)]])
    before = data_of(path)
    os.chmod(path, 0o400)
    if os.getuid() == 0:
        os.chown(path, 12345, 12345)

    def body():
        with Rig('avro', path=path) as rig:
            rig.tick(1)
            rig.until(lambda: rig.sender.failures > 2)
            assert 'x: Permission denied' in rig.said()
            assert data_of(path) == before
            os.chmod(path, 0o600)
            rig.settled()
    in_child(body, 12345 if os.getuid() == 0 else None)
    assert values(path) == [1]


def test_a_limit_on_the_size_of_files_tears_nothing(tmp_path):
    import resource
    path = tmp_path / 'x'

    def body():
        limit = 20000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with Rig('avro', path=str(path)) as rig:
            number = 0
            while not rig.sender.failures:
                number += 1
                rig.tick(number)
                rig.until(lambda: not rig.cursor.frames or rig.sender.failures)
            rig.until(lambda: rig.sender.failures > 3)
            assert 'File too large' in rig.said()
            assert values(path) == list(range(1, number)) and os.stat(str(path)).st_size <= limit
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            rig.settled()
            assert values(path) == list(range(1, number + 1))
    in_child(body)


# -- what others do to the file ----------------------------------------------------------------

@pytest.fixture
def rig(tmp_path):
    with Rig('avro', path=str(tmp_path / 'x')) as rig:
        rig.tick(1, 2)
        rig.settled()
        yield rig


def test_a_file_that_was_moved_away_is_followed_by_a_new_one(tmp_path, rig):
    os.rename(str(tmp_path / 'x'), str(tmp_path / 'x-20261125'))
    rig.tick(3)
    rig.settled()
    assert values(tmp_path / 'x-20261125') == [1, 2] and values(tmp_path / 'x') == [3] and rig.log == []


def test_a_file_that_was_moved_away_and_made_anew_by_logrotate(tmp_path, rig):
    os.rename(str(tmp_path / 'x'), str(tmp_path / 'x.1'))
    (tmp_path / 'x').write_bytes(b'')
    rig.tick(3)
    rig.settled()
    assert values(tmp_path / 'x.1') == [1, 2] and values(tmp_path / 'x') == [3] and rig.log == []


def test_a_file_that_was_copied_and_cut_to_nothing_by_logrotate(tmp_path, rig):
    (tmp_path / 'x.1').write_bytes(data_of(tmp_path / 'x'))
    os.truncate(str(tmp_path / 'x'), 0)
    rig.tick(3)
    rig.settled()
    assert values(tmp_path / 'x.1') == [1, 2] and values(tmp_path / 'x') == [3] and rig.log == []


def test_a_file_that_was_deleted_is_made_anew(tmp_path, rig):
    os.unlink(str(tmp_path / 'x'))
    rig.tick(3)
    rig.settled()
    assert values(tmp_path / 'x') == [3] and rig.log == []


def test_a_file_that_was_replaced_by_one_of_another_agent_is_continued(tmp_path, rig):
    deliver(tmp_path / 'y', [[tick(7)]])
    os.rename(str(tmp_path / 'y'), str(tmp_path / 'x'))
    rig.tick(3)
    rig.settled()
    assert [int(r['value']) for r in read(tmp_path / 'x').records] == [7, 7, 3, 3, 3]


def test_bytes_that_somebody_put_behind_the_last_block_are_not_overwritten(tmp_path, rig):
    with open(str(tmp_path / 'x'), 'ab') as file:
        file.write(b'hello hello hello\n')
    before = data_of(tmp_path / 'x')
    rig.tick(3)
    rig.settled()
    assert data_of(tmp_path / 'x.1') == before and values(tmp_path / 'x') == [3]


@pytest.mark.parametrize('what', ['folder', 'fifo', 'text', 'nothing-to-hold-it', 'link-to-null'])
def test_what_stands_in_the_way_is_left_alone_until_it_is_gone(tmp_path, what):
    folder = tmp_path / 'f'
    folder.mkdir()
    path = folder / 'x'
    with Rig('avro', path=str(path)) as rig:
        rig.tick(1)
        rig.settled()
        os.rename(str(path), str(tmp_path / 'kept'))
        if what == 'folder':
            path.mkdir()
        elif what == 'fifo':
            os.mkfifo(str(path))
        elif what == 'text':
            path.write_bytes(b'dear diary')
        elif what == 'link-to-null':
            os.symlink('/dev/null', str(path))
        else:
            folder.rmdir()
        rig.tick(2, 3)
        rig.until(lambda: rig.sender.failures > 2)
        reason = {'text': 'is no Avro file and left alone', 'nothing-to-hold-it': 'there is no folder'}
        assert 'x: ' + reason.get(what, 'is no regular file') in rig.said()
        assert what != 'text' or path.read_bytes() == b'dear diary'
        if what == 'folder':
            path.rmdir()
        elif what == 'nothing-to-hold-it':
            folder.mkdir()
        else:
            os.unlink(str(path))
        rig.settled()
    assert values(tmp_path / 'kept') == [1] and values(path) == [2, 3]


def test_a_folder_of_the_day_that_vanishes_is_made_anew(tmp_path):
    with Rig('avro', path=str(tmp_path / '%Y' / 'x')) as rig:
        rig.tick(1)
        rig.settled()
        os.rename(str(tmp_path / '1970'), str(tmp_path / 'elsewhere'))
        rig.tick(2)
        rig.settled()
    assert values(tmp_path / 'elsewhere' / 'x') == [1] and values(tmp_path / '1970' / 'x') == [2]


def test_a_file_that_is_deleted_before_it_is_on_the_disk_is_written_again(tmp_path):
    class Link(statbadger.FileLink):
        def sync(self):
            if deleting:
                os.unlink(deleting.pop())
            statbadger.FileLink.sync(self)

    class Opener(statbadger.Opener):
        def open(self, target, timeout, deadline):
            return Link(*target[1:])
    deleting = [str(tmp_path / 'x')]
    rig = Rig('avro', path=str(tmp_path / 'x'))
    rig.sender.opener = Opener(None, None)
    with rig:
        rig.tick(1)
        rig.settled()
    assert values(tmp_path / 'x') == [1]


def test_an_agent_that_finds_another_at_its_file_waits_and_says_so(tmp_path):
    path = str(tmp_path / 'x')
    with Rig('avro', path=path, max_bytes=3000) as second:
        with Rig('avro', path=path, max_bytes=3000) as first:
            first.tick(1)
            first.settled()
            second.tick(2)
            second.until(lambda: second.sender.failures > 2)
            assert 'x: somebody else writes to it' in second.said()
            first.tick(3)
            first.settled()
            assert values(path) == [1, 3] and len(second.cursor.frames) == 1
        second.settled()
        assert len(second.log) == 2
    assert values(path) == [1, 3, 2]


def test_two_agents_that_take_turns_lose_and_tear_nothing(tmp_path):
    path = str(tmp_path / 'x')
    with Rig('avro', path=path, max_bytes=1500) as first, Rig('avro', path=path, max_bytes=1500) as second:
        for n in range(200):
            (first if n % 2 else second).tick(n)
            if n % 10 == 0:
                first.renew(path=path, max_bytes=1500 + n)      # which gives the file free for a moment
                second.renew(path=path, max_bytes=1500 + n)
        end = time.monotonic() + 20
        while (first.cursor.frames or second.cursor.frames) and time.monotonic() < end:
            for one in (first, second):
                one.renew(path=path, max_bytes=2000 + one.sender.failures)
                time.sleep(0.001)
        first.settled()
        second.settled()
    found = [n for name in files(tmp_path) for n in values(tmp_path / name)]
    assert sorted(found) == list(range(200))
    assert [n for n in found if n % 2] == list(range(1, 200, 2)) and [n for n in found if not n % 2] == list(range(0, 200, 2))


# -- backlog, reload ---------------------------------------------------------------------------

@pytest.mark.parametrize('codec', ['null', 'deflate'])
def test_a_backlog_goes_in_order_in_large_blocks(tmp_path, codec):
    folder = tmp_path / 'f'
    layout = statbadger.Layout(WIDE.series[:100])
    with Rig('avro', path=str(folder / 'x'), codec=codec) as rig:
        rig.tick(*range(1000), layout=layout)
        rig.until(lambda: rig.sender.failures > 1)
        folder.mkdir()
        assert rig.settled(30)['acknowledged'] == 1000
    found = read(folder / 'x')
    assert [int(r['value']) for r in found.records] == [n for n in range(1000) for _ in range(100)]
    assert len(found.blocks) < 100 and max(found.sizes) <= statbadger.MOST_BLOCK


def test_a_backlog_over_midnight_goes_to_the_file_of_each_day(tmp_path):
    folder = tmp_path / 'f'
    with Rig('avro', path=str(folder / '%d')) as rig:
        rig.tick(*range(86400 - 150, 86400 + 150))
        rig.until(lambda: rig.sender.failures > 1)
        folder.mkdir()
        rig.settled()
    assert values(folder / '01') == list(range(86250, 86400)) and values(folder / '02') == list(range(86400, 86550))


def test_a_spool_that_is_full_drops_the_oldest_and_says_so(tmp_path):
    folder = tmp_path / 'f'
    with Rig('avro', most=1 << 16, path=str(folder / 'x')) as rig:
        rig.tick(*range(1000))
        folder.mkdir()
        count = rig.settled()
        assert count['dropped'] > 700 and count['acknowledged'] + count['dropped'] == 1000
    assert values(folder / 'x')[-1] == 999 and len(values(folder / 'x')) == count['acknowledged']


def test_a_reload_goes_on_where_its_options_say(tmp_path):
    with Rig('avro', path=str(tmp_path / 'x')) as rig:
        rig.tick(1)
        rig.settled()
        rig.renew(path=str(tmp_path / 'x'), codec='deflate')
        rig.tick(2)
        rig.settled()
        rig.renew(path=str(tmp_path / 'y'), codec='deflate')
        rig.tick(3)
        rig.settled()
        assert not held(tmp_path / 'x') and held(tmp_path / 'y')
        rig.renew(path=str(tmp_path / 'x'), codec='deflate', batch=7)
        rig.tick(4)
        rig.settled()
    assert [values(tmp_path / name) for name in ('x.1', 'x', 'y')] == [[1], [2, 4], [3]]
    assert [text for level, text in rig.log] == [
        'avro: %s/x: its codec is another one, so it is %s/x.1 now' % (tmp_path, tmp_path)]


def test_no_descriptor_is_left_behind(tmp_path):
    before = descriptors()
    for number in range(5):
        with Rig('avro', path=str(tmp_path / '%M' / 'x'), max_bytes=1300) as rig:
            rig.tick(*range(number, 300, 10))
            rig.settled()
    assert [name for name in descriptors() if str(tmp_path) in name] == [] and len(descriptors()) <= len(before) + 2 * 5   # bells


# -- kill -9 -----------------------------------------------------------------------------------

def endless(path, first, telling, **more):
    """Writes ticks from that number on until it is killed; says which are acknowledged, eight bytes each."""
    class Telling(Batches):
        def __init__(self):
            Batches.__init__(self, [])
            self.next_number, self.pending = first, []

        def tell(self, n):
            for number in self.pending[:n]:
                os.write(telling, number.to_bytes(8, 'little'))
            del self.pending[:n]

        def next(self, idle, exchange):
            self.tell(len(self.pending))
            self.part = 0
            self.pending = list(range(self.next_number, self.next_number + 3))
            self.next_number += 3
            return [tick(number, WIDE if number % 4 == 0 else THREE) for number in self.pending]

        def done(self, n):
            self.tell(n - self.part)
            self.part = n
    chosen = settings(path, **more)
    statbadger.converse(statbadger.avro(chosen, {}), Telling(), ('file', chosen.path), 5, statbadger.Opener(None, None))


def killed(path, first, seconds, **more):
    """The numbers that a writer acknowledged before it was killed after so long."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            endless(path, first, writing, **more)
        finally:
            os._exit(1)
    os.close(writing)
    try:
        os.read(reading, 8)                     # the first one is acknowledged
        time.sleep(seconds)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    said = b''
    while True:
        piece = os.read(reading, 65536)
        if not piece:
            break
        said += piece
    os.close(reading)
    return [first] + [int.from_bytes(said[i:i + 8], 'little') for i in range(0, len(said), 8)]


@pytest.mark.parametrize('more', [{}, {'codec': 'deflate'}, {'max_bytes': 400000}], ids=str)
def test_killed_at_any_moment_nothing_that_was_acknowledged_is_missing(tmp_path, more):
    dice = random.Random(SEED)
    print('FAULT_SEED', SEED)
    acknowledged, first = [], 0
    for _ in range(25 if os.environ.get('THOROUGH') == '1' else 6):
        acknowledged += killed(tmp_path / 'x', first, dice.random() * 0.012, **more)
        first = acknowledged[-1] + 100
    deliver(tmp_path / 'x', [[tick(first, THREE)]], **more)
    found = []
    for name in files(tmp_path):
        for record in read(tmp_path / name).records:
            if not found or found[-1][0] != record['value']:
                found.append([record['value'], 0])
            found[-1][1] += 1
    order = [int(n) for n, count in found]
    print('%d of %d ticks acknowledged' % (len(acknowledged), len(order)))
    assert order == sorted(set(order))      # each once, and in order
    assert set(acknowledged) <= set(order)
    assert [(n, count) for n, count in found if n in acknowledged and count != (4000 if n % 4 == 0 else 3)] == []
