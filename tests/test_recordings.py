"""Small recordings, each with one odd thing in it, replayed through the whole program; and recording itself."""
import json
import os
import shutil
import subprocess

import pytest

HEADING = 'Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs\n'
LOAD = '0.01 0.04 0.05 2/321 4242\n'


@pytest.fixture
def replay(run, tmp_path):
    """replay([{path: text}, ...], *args) -> [(time stamp - 1700000000, {name: value})]; a snapshot per second."""
    def replayer(shots, *args):
        folder = tmp_path / 'recording'
        for second, files in enumerate(shots):
            for name, text in dict(files or {}).items():
                path = folder / ('%d.000' % (1700000000 + second)) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            (folder / ('%d.000' % (1700000000 + second))).mkdir(parents=True, exist_ok=True)
        return ticks(run('--replay', folder, '-e', 'stdout', *args))
    return replayer


def ticks(done):
    assert done.code == 0, done.err
    found = [json.loads(line) for line in done.out.split('\n')[:-1]]
    for payload in found:
        names = [name for point in payload['points'] for name in point]
        assert len(names) == len(set(names)), 'a name twice'
    return [(payload['timestamp'] - 1700000000, {name: entry['value'] for point in payload['points'] for name, entry in point.items()})
            for payload in found]


def disk(name, n, number='8 0'):
    return '   %s %s %s\n' % (number, name, ' '.join([str(n)] * 8 + ['0'] + [str(n)] * 8))


def nic(name, n):
    return '  %s: %s\n' % (name, ' '.join([str(n)] * 16))


# -- what comes and goes --------------------------------------------------------------------------

@pytest.mark.parametrize('module, file, line, other, metric', [
    ('disk', 'proc/diskstats', disk, disk('loop0', 5, '7 0'), 'disk.reads.sda'),
    ('network', 'proc/net/dev', nic, nic('lo', 5), 'net.rx_bytes.sda'),
])
def test_the_last_device_that_was_gone_and_is_back_primes_its_rates(replay, module, file, line, other, metric):
    head = HEADING if module == 'network' else ''
    shots = [{file: head + (line('sda', n) if n else '') + other} for n in (100, 0, 300, 310)]
    found = replay(shots, '-m', module)
    assert [stamp for stamp, points in found] == [1, 2, 3]
    assert [points.get(metric) for stamp, points in found] == [None, None, 10]


def test_a_file_without_a_sound_line_keeps_the_base_and_one_without_devices_does_not(replay):
    for middle, rate in ((HEADING + '  eth0: 1 2 x\n', 100), (HEADING, None), ('', 100), ('no line\nis of use\n', 100)):
        found = replay([{'proc/net/dev': HEADING + nic('eth0', 100)}, {'proc/net/dev': middle},
                        {'proc/net/dev': HEADING + nic('eth0', 300)}], '-m', 'network')
        assert [points.get('net.rx_bytes.eth0') for stamp, points in found] == [None, rate], middle


def test_every_snapshot_after_the_first_is_a_tick_also_one_that_lacks_every_file(replay):
    assert replay([{'proc/loadavg': LOAD}, None, {'proc/loadavg': LOAD}], '-m', 'load')[0] == (1, {})


def test_a_name_is_a_partition_or_not_by_the_names_beside_it_at_that_time(replay):
    found = replay([{'proc/diskstats': disk('c0d0p1', 1)}, {'proc/diskstats': disk('c0d0p1', 2)},
                    {'proc/diskstats': disk('c0d0', 5) + disk('c0d0p1', 3)}, {'proc/diskstats': disk('c0d0', 9) + disk('c0d0p1', 4)}],
                   '-m', 'disk')
    assert [sorted(name for name in points if name.startswith('disk.reads.')) for stamp, points in found] == [
        ['disk.reads.c0d0p1'], [], ['disk.reads.c0d0']]


# -- lines that are odd ----------------------------------------------------------------------------

def test_a_torn_last_cpu_line_takes_only_its_own_core_away(replay):
    def stat(n, end):
        return ''.join('cpu%s %d 0 0 %d\n' % (core, n, n) for core in (' ', '0', '1')) + end
    found = replay([{'proc/stat': stat(10, 'cpu2 10 0 0 10\n')}, {'proc/stat': stat(20, 'cpu2 2')},
                    {'proc/stat': stat(30, 'cpu2 30 0 0 30\n')}], '-m', 'cpu,per_core')
    for stamp, points in found:
        assert [points.get('cpu.user.cpu%d' % core) for core in (0, 1, 2)] == [50, 50, None]


def test_mhz_lines_beside_each_other_all_count(replay):
    text = 'processor : 0\ncpu MHz : 1000.0\ncpu MHz : 2000.0\ncpu MHz : 3000.0\ncache size : 1 KB\ncache size : 2 KB\ncpu MHz : 9'
    (stamp, points), = replay([{'proc/cpuinfo': text}] * 2, '-m', 'system')
    assert (points['cpu.speed'], points['cpu.cache_size']) == (2000, 1)


def test_a_line_that_is_called_used_does_not_stand_beside_the_one_of_ours(replay):
    text = 'MemTotal: 100 kB\nUsed: 7 kB\nUsed_percent: 3\nMemAvailable: 60 kB\n'
    (stamp, points), = replay([{'proc/meminfo': text}] * 2, '-m', 'memory')
    assert points == {'mem.memtotal': 102400, 'mem.memavailable': 61440, 'mem.used': 40960, 'mem.used_percent': 40}


def test_memory_in_use_is_total_less_free_when_more_is_available_than_there_is(replay):
    (stamp, points), = replay([{'proc/meminfo': 'MemTotal: 100 kB\nMemFree: 20 kB\nMemAvailable: 160 kB\n'}] * 2, '-m', 'memory')
    assert (points['mem.used'], points['mem.used_percent']) == (81920, 80)


def test_a_name_with_an_old_and_a_new_line_counts_once(replay):
    shots = [{'proc/diskstats': '  8 1 sda1 %d %d %d %d\n' % (n, n, n, n) + disk('sda1', 7 * n, '8 1')} for n in (1, 2)]
    (stamp, points), = replay(shots, '-m', 'disk,devices=*,partitions')
    assert points['disk.reads.sda1'] == 1 and 'disk.await.sda1' not in points


@pytest.mark.parametrize('in_flight', ['-1', '4294967295'])
def test_requests_in_flight_below_zero_are_unknown_and_the_rest_is_not(replay, in_flight):
    shots = [{'proc/diskstats': '  8 0 sda %s\n' % ' '.join([str(n)] * 8 + [in_flight, str(n), str(n)])} for n in (1, 4)]
    (stamp, points), = replay(shots, '-m', 'disk')
    assert points['disk.reads.sda'] == 3 and 'disk.io.sda' not in points


def test_columns_of_kernels_to_come_are_cut_off_whatever_they_are(replay):
    shots = [{'proc/diskstats': disk('sda', n)[:-1] + ' 0x7f new\n', 'proc/net/dev': HEADING + nic('eth0', n)[:-1] + ' 1e4\n',
              'proc/stat': 'cpu %s a:b\n' % ' '.join([str(n)] * 10)} for n in (10, 20)]
    (stamp, points), = replay(shots, '-m', 'cpu', '-m', 'disk', '-m', 'network')
    assert (points['disk.reads.sda'], points['net.rx_bytes.eth0']) == (10, 10) and 'cpu.user' in points


# -- who the host is ----------------------------------------------------------------------------------

ROUTE = 'Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n'


def identity(run, tmp_path, shots):
    for second, files in enumerate(shots):
        for name, text in dict({'proc/loadavg': LOAD}, **files).items():
            path = tmp_path / 'who' / ('%d.000' % (1700000000 + second)) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    done = run('--replay', tmp_path / 'who', '-e', 'stdout', '-m', 'load')
    assert done.code == 0
    return [json.loads(line) for line in done.out.split('\n')[:-1]]


@pytest.mark.parametrize('text, name', [('\n \n', 'kern'), ('# mine\n\nreal.name\n', 'real.name'), ('one\ntwo\n', 'one')])
def test_the_host_name_is_the_first_line_that_says_something(run, tmp_path, text, name):
    found, = identity(run, tmp_path, [{'etc/hostname': text, 'proc/sys/kernel/hostname': 'kern\n'}] * 2)
    assert found['hostname'] == name


def test_a_host_name_that_comes_late_is_taken_as_soon_as_it_is_there(run, tmp_path):
    found = identity(run, tmp_path, [{}, {}, {'proc/sys/kernel/hostname': 'late\n'}, {}])
    assert [payload['hostname'] for payload in found] == ['', 'late', 'late']


def leaf(address):
    return '           |-- %s\n              /32 host LOCAL\n' % address


@pytest.mark.parametrize('routes, addresses, found', [
    # a cloud: an address of its own, and a gateway that is in no network (10.128.0.1, by a host route)
    ('eth0\t00000000\t0100800A\t0003\t0\t0\t100\t00000000\t0\t0\t0\neth0\t0100800A\t00000000\t0005\t0\t0\t100\tFFFFFFFF\t0\t0\t0\n',
     ['10.128.0.2', '127.0.0.1'], '10.128.0.2'),
    # two networks on the interface, of which the second has the gateway (192.0.2.1)
    ('eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\neth0\t0000FEA9\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n'
     'eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n', ['169.254.3.3', '192.0.2.9'], '192.0.2.9'),
    # a default route that is there to reject
    ('*\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0\n', ['192.0.2.9'], ''),
    ('', ['192.0.2.9'], ''),
])
def test_the_address_is_that_beside_the_gateway(run, tmp_path, routes, addresses, found):
    payload, = identity(run, tmp_path, [{'proc/net/route': ROUTE + routes, 'proc/net/fib_trie': 'Local:\n' + ''.join(map(leaf, addresses))}] * 2)
    assert payload['ipv4'] == found


# -- modules with an interval of their own ----------------------------------------------------------------

def conf(tmp_path, **values):
    path = tmp_path / 'a.conf'
    path.write_text(json.dumps(values))
    return '-f', str(path)


def test_a_module_is_due_on_its_own_multiples_and_not_at_the_first_tick(replay, tmp_path):
    shots = [{'proc/diskstats': disk('sda', n * n), 'proc/loadavg': LOAD} for n in range(12)]
    found = replay(shots, *conf(tmp_path, modules={'disk': {'interval': 5}, 'load': {}}))
    assert [stamp for stamp, points in found] == list(range(1, 12))
    assert {stamp: points['disk.reads.sda'] for stamp, points in found if 'disk.reads.sda' in points} == {5: 25 / 5.0, 10: 75 / 5.0}


def test_a_module_whose_file_was_not_there_is_read_in_the_next_snapshot_that_has_it(replay, tmp_path):
    shots = [dict({'proc/loadavg': LOAD}, **({} if n == 5 else {'proc/diskstats': disk('sda', n * n)})) for n in range(12)]
    found = replay(shots, *conf(tmp_path, modules={'disk': {'interval': 5}, 'load': {}}))
    assert {stamp: points['disk.reads.sda'] for stamp, points in found if 'disk.reads.sda' in points} == {6: 36 / 6.0, 10: 64 / 4.0}


@pytest.mark.parametrize('folder, stamp', [('1700000001.090', 1700000001), ('1700000000.910', 1700000001),
                                           ('1700000001.150', 1700000001.15), ('1700000002.150', 1700000002), ('1700000001.301', 1700000001.301)])
def test_a_tick_is_stamped_with_the_point_of_the_finest_grid_that_is_near(run, tmp_path, folder, stamp):
    for name in ('1700000000.000', folder):
        os.makedirs(str(tmp_path / 'r' / name / 'proc'))
        (tmp_path / 'r' / name / 'proc' / 'loadavg').write_text(LOAD)
    done = run('--replay', tmp_path / 'r', '-e', 'stdout', *conf(tmp_path, interval=2, modules={'load': {'interval': 1}, 'cpu': {}}))
    assert [json.loads(line)['timestamp'] for line in done.out.split('\n')[:-1]] == [stamp]


# -- recordings that cannot be written ------------------------------------------------------------------------

@pytest.fixture
def tiny(tmp_path):
    """A file system of 32 kB."""
    folder = tmp_path / 'tiny'
    folder.mkdir()
    made = shutil.which('mount') and os.geteuid() == 0 and subprocess.call(
        ['mount', '-t', 'tmpfs', '-o', 'size=32k', 'none', str(folder)], stderr=subprocess.DEVNULL) == 0
    if not made:
        pytest.skip('needs root that may mount a small tmpfs')
    yield folder
    subprocess.check_call(['umount', str(folder)])


def test_a_recording_that_fills_the_disk_ends_and_the_ticks_go_on(run, tiny):
    done = run('--record', tiny, '-n', '4', '-i', '0.1', '-e', 'stdout')
    assert len(done.out.split('\n')) == 5 and done.code == 1
    assert done.err.count('nothing more is recorded') == 1 and 'No space left' in done.err


def test_a_recording_into_what_is_no_folder_is_a_mistake(run, tmp_path):
    (tmp_path / 'file').write_text('')
    done = run('--record', tmp_path / 'file', '-n', '1', '-i', '0.1', '-e', 'stdout')
    assert done.code == 2 and done.out == '' and done.err.count('\n') == 1
