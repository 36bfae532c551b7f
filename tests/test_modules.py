"""What the columns of each kernel file mean; odd kernels and odd names as named tests."""
import pytest
import statbadger
from conftest import options
from statbadger import Absent, Parts, glob, matcher

DISKS = options(devices=['*', '!loop*', '!ram*', '!zram*'], partitions=False)
CORES = options(per_core=True)
LINKS = options(interfaces=['!lo', '!veth*', '!br-*'])
HEAD = 'Inter-|   Receive\n face |bytes\n'


def rows(module, tree, opts=None, memory=None):
    """[(table's family, labels, {column: value})] of one reading of all parts."""
    out = []
    tree.fresh.clear()
    for part in statbadger.MODULES[module].parts:
        for table, labels, row in part(tree, opts, memory if memory is not None else {}):
            names = [m.name for m in table.raw]
            out.append((table.family, labels, {n: v for n, v in zip(names, row) if v == v}))
    return out


def names(module, tree, opts, memory=None):
    return [labels[0] for family, labels, row in rows(module, tree, opts, memory)]


def test_cpu_reads_states_events_and_cores(host):
    tree = host({'proc/stat': 'cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 1 1 1 0 0 0 0 0 0\ncpu3 0 1 2 3 5 6 7 8 9 10\n'
                              'intr 99 1 2 3\nctxt 77\nbtime 1700000000\nprocesses 55\nprocs_running 2\nprocs_blocked 1\n'})
    states, events, first, last = rows('cpu', tree, CORES)
    assert states == ('cpu', (), dict(user=1, nice=2, system=3, idle=4, iowait=5, irq=6, softirq=7, steal=8, guest=9,
                                      guest_nice=10))
    assert events == ('cpu', (), dict(cores=2, ctxt_per_sec=77, procs_forked_per_sec=55, procs_running=2,
                                      procs_blocked=1, intr_per_sec=99))
    assert first[1:] == (('cpu0',), dict(states[2], user=1, nice=1, system=1, idle=1, iowait=0, irq=0, softirq=0,
                                         steal=0, guest=0, guest_nice=0))
    assert last[1] == ('cpu3',)


def test_a_cpu_line_of_linux_2_4_has_four_columns(host):
    tree = host({'proc/stat': 'cpu  1 2 3 4\ncpu0 1 2 3 4\npage 1 2\nctxt 7\n'})
    states, events = rows('cpu', tree, options(per_core=False))
    assert states[2] == dict(user=1, nice=2, system=3, idle=4)
    assert events[2] == dict(cores=1, ctxt_per_sec=7)


@pytest.mark.parametrize('line', ['cpu  1 2 x 4 5\n', 'cpu  1 2\n', 'cpu  1 2 3 -4\n', 'cpu  1 2 3 1_0\n', 'cpu\n',
                                  'cpu  1 2 3 %d\n' % (1 << 64), 'cpu  1 2 3 ' + '9' * 5000 + '\n'])
def test_a_cpu_line_that_is_garbage_takes_only_itself_away(host, line):
    tree = host({'proc/stat': line + 'cpu0 1 2 3 4\nctxt 7\n'})
    found = rows('cpu', tree, CORES)
    assert [r[1] for r in found] == [(), ('cpu0',)] and found[0][2]['ctxt_per_sec'] == 7
    assert tree.bad_lines == (line != 'cpu\n')


def test_a_torn_number_is_no_number(host):
    tree = host({'proc/stat': 'cpu  1 2 3 4\ncpu0 1 2 3 4\nctxt 12345'})
    assert 'ctxt_per_sec' not in rows('cpu', tree, CORES)[1][2]


def test_load(host):
    tree = host({'proc/loadavg': '0.01 0.04 0.05 2/321 4242\n'})
    assert rows('load', tree) == [('load', (), dict(one=.01, five=.04, fifteen=.05, runnable_entities=2,
                                                    total_entities=321))]


@pytest.mark.parametrize('text', ['nan 0 0 1/2 3\n', '0.1 0.2 0.3 1/2', '0.1 0.2 0.3 12 4\n', '1e5 0 0 1/2 3\n', 'x\n',
                                  '0.1 0.2 0.3 1/2 3 4\n', '-1 0 0 1/2 3\n', 'inf 0 0 1/2 3\n', '\xff\n'])
def test_a_loadavg_that_is_garbage_gives_nothing(host, text):
    said = []
    parts = Parts('load', statbadger.MODULES['load'].parts, None, host({'proc/loadavg': text}),
                  lambda level, message: said.append((level, message)))
    assert parts.read(1.0) == [] and parts.errors == 1
    assert len(said) == 1 and said[0][0] == 'warning'


def test_disks_of_every_layout(host):
    tree = host({'proc/diskstats': ''.join(line + '\n' for line in (
        '   8  0 sda 1 2 3 4 5 6 7 8 9 10 11',
        '   8 16 sdb 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15',
        ' 259  0 nvme0n1 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17',
        ' 253  0 dm-0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19'))})
    found = rows('disk', tree, DISKS)
    assert [r[1] for r in found] == [('sda',), ('sdb',), ('nvme0n1',), ('dm-0',)]
    assert [len(r[2]) for r in found] == [12, 16, 18, 18]
    assert found[0][2] == dict(number=8 << 32, reads=1, reads_merged=2, read_sectors=3, read_time=4, writes=5,
                               writes_merged=6, write_sectors=7, write_time=8, io=9, io_time=10, io_weighted_time=11)
    assert found[2][2]['discards'] == 12 and found[2][2]['flush_time'] == 17


def test_partitions_of_linux_2_6_18_have_four_columns_of_another_meaning(host):
    tree = host({'proc/diskstats': '   8 0 sda 1 2 3 4 5 6 7 8 9 10 11\n   8 1 sda1 21 22 23 24\n'})
    assert names('disk', tree, DISKS) == ['sda']
    found = rows('disk', tree, options(devices=['*'], partitions=True))
    assert found[1][1:] == (('sda1',), dict(number=(8 << 32) + 1, reads=21, read_sectors=22, writes=23, write_sectors=24))


LONG = ' 1 2 3 4 5 6 7 8 9 10 11\n'


def disks(*devices):
    return ''.join('%d %d %s' % (8 + i, i, name) + LONG for i, name in enumerate(devices))


def test_without_sys_block_partitions_are_told_by_name(host):
    tree = host({'proc/diskstats': disks('sda', 'sda1', 'sda12', 'nvme0n1', 'nvme0n1p1', 'cciss/c0d0', 'cciss/c0d0p2',
                                         'dm-1', 'dm-10', 'md0', 'md0p1', 'mmcblk0', 'mmcblk0p1', 'xvda1', 'loop0')})
    assert names('disk', tree, DISKS) == ['sda', 'nvme0n1', 'cciss/c0d0', 'dm-1', 'dm-10', 'md0', 'mmcblk0', 'xvda1']


def test_with_sys_block_whole_disks_are_those_in_it(host):
    tree = host({'proc/diskstats': disks('sda', 'sda1', 'cciss/c0d0', 'odd'), 'sys/block/sda/size': '1\n',
                 'sys/block/cciss!c0d0/size': '1\n'})
    assert names('disk', tree, DISKS) == ['sda', 'cciss/c0d0']
    assert names('disk', tree, options(devices=['*'], partitions=True)) == ['sda', 'sda1', 'cciss/c0d0', 'odd']


def test_a_device_that_comes_later_is_looked_up_then(host):
    tree = host({'proc/diskstats': disks('sda'), 'sys/block/sda/size': '1\n'})
    memory = {}
    assert names('disk', tree, DISKS, memory) == ['sda']
    (tree.folder / 'sys/block/sdb').mkdir()
    (tree.folder / 'proc/diskstats').write_text(disks('sda', 'sda1', 'sdb'))
    assert names('disk', tree, DISKS, memory) == ['sda', 'sdb']


def test_a_partition_that_is_named_in_full_is_kept(host):
    tree = host({'proc/diskstats': disks('sda', 'sda1', 'sda2')})
    assert names('disk', tree, options(devices=['sda2', 'sd*'], partitions=False)) == ['sda', 'sda2']


def test_requests_in_flight_below_zero_are_unknown(host):
    tree = host({'proc/diskstats': '8 0 sda 1 2 3 4 5 6 7 8 4294967295 10 11\n'})
    assert 'io' not in rows('disk', tree, DISKS)[0][2]


@pytest.mark.parametrize('line', ['8 0 sdx 1 2 3\n', '8 x sdx' + LONG, 'garbage\n', '8 0 sdx 1 2 3 4 5 6 7 8 9 10 -11\n',
                                  '8 0 sdx 1 2 3 4 5 6 7 8 9 10 nan\n', '\xff\xfe\n', '8 0\n'])
def test_a_disk_line_that_is_garbage_takes_only_itself_away(host, line):
    tree = host({'proc/diskstats': disks('sda') + line + disks('sdb')})
    assert names('disk', tree, DISKS) == ['sda', 'sdb']
    assert tree.bad_lines == 1


def test_network_with_and_without_a_blank_behind_the_colon(host):
    tree = host({'proc/net/dev': HEAD + '    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n'
                                        '  eth0:12345678 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n'
                                        'eth0:1: 7 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n'})
    found = rows('network', tree, LINKS)
    assert [r[1] for r in found] == [('eth0',), ('eth0:1',)]
    assert found[0][2] == dict(
        rx_bytes=12345678, rx_packets=2, rx_errs=3, rx_drop=4, rx_fifo=5, rx_frame=6, rx_compressed=7, rx_multicast=8,
        tx_bytes=9, tx_packets=10, tx_errs=11, tx_drop=12, tx_fifo=13, tx_colls=14, tx_carrier=15, tx_compressed=16)


def test_odd_interface_names_stay_as_they_are_and_bytes_that_are_no_utf8_show_as_u_fffd(host):
    line = b': 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n'
    odd = [b'a;b$(x)', b'eth0.100', b'"q\\', b'\xff\xfe', b'\x1b[31m', b'\xc2\xa0x']
    tree = host({'proc/net/dev': HEAD.encode() + b''.join(b'  ' + name + line for name in odd)})
    assert names('network', tree, LINKS) == ['a;b$(x)', 'eth0.100', '"q\\', '\ufffd\ufffd', '\x1b[31m', '\xa0x']


@pytest.mark.parametrize('line', ['eth1: 1 2 3\n', 'eth1 1 2\n', 'eth1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 x\n', ': \n',
                                  ': 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n', 'eth1:\n', '\n'])
def test_a_network_line_that_is_garbage_takes_only_itself_away(host, line):
    good = 'eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n'
    tree = host({'proc/net/dev': HEAD + line + good})
    assert names('network', tree, LINKS) == ['eth0']
    assert tree.bad_lines == 1


def test_an_interface_that_moves_is_read_anew_and_one_that_idles_keeps_its_row(host):
    line = 'eth%d: %d 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n'
    tree = host({'proc/net/dev': HEAD + line % (0, 1) + line % (1, 1)})
    memory = {}
    rows('network', tree, LINKS, memory)
    (tree.folder / 'proc/net/dev').write_text(HEAD + line % (0, 7) + line % (1, 1))
    assert [r[2]['rx_bytes'] for r in rows('network', tree, LINKS, memory)] == [7, 1]


def test_memory_in_bytes_and_counts(host):
    tree = host({'proc/meminfo': 'MemTotal:  1000 kB\nMemFree:  100 kB\nMemAvailable:  600 kB\nActive(anon):  7 kB\n'
                                 'HugePages_Total:       3\n'})
    for again in range(3):
        info, used = rows('memory', tree, None, {})
        assert info == ('mem', (), {'memtotal': 1024000, 'memfree': 102400, 'memavailable': 614400, 'active_anon': 7168,
                                    'hugepages_total': 3})
        assert used == ('mem', (), {'used': 409600, 'used_percent': 40})


def test_memory_lines_may_come_go_and_change_their_values(host):
    memory, texts = {}, ['MemTotal: 9 kB\nMemFree: 1 kB\n', 'MemTotal: 9 kB\nMemFree: 2 kB\n', 'MemTotal: 9 kB\nZswap: 5 kB\n',
                         'MemTotal: 9 kB\nZswap: 5\n', 'MemTotal: 9 kB\nZswap: x kB\n', 'MemTotal: 9 kB\nZswap: 5 kB']
    found = []
    for text in texts:
        found.append(rows('memory', host({'proc/meminfo': text}), None, memory)[0][2])
    assert found == [{'memtotal': 9216, 'memfree': 1024}, {'memtotal': 9216, 'memfree': 2048},
                     {'memtotal': 9216, 'zswap': 5120}, {'memtotal': 9216, 'zswap': 5}, {'memtotal': 9216},
                     {'memtotal': 9216}]


def test_memory_used_before_memavailable(host):
    tree = host({'proc/meminfo': 'MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 50 kB\nCached: 250 kB\nSReclaimable: 100 kB\n'})
    assert rows('memory', tree, None, {})[1][2] == {'used': 500 * 1024, 'used_percent': 50}
    tree = host({'proc/meminfo': 'MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 50 kB\nCached: 250 kB\n'}, 'old')
    assert rows('memory', tree, None, {})[1][2] == {'used': 600 * 1024, 'used_percent': 60}
    tree = host({'proc/meminfo': 'MemTotal: 1000 kB\nMemFree: 100 kB\n'}, 'bare')
    assert len(rows('memory', tree, None, {})) == 1


def test_whole_numbers_that_no_double_holds_come_out_exactly(host, run):
    tree = host({'1.000/proc/meminfo': 'Odd: 18446744073709551615 kB\nPlain: 9007199254740993\n',
                 '2.000/proc/meminfo': 'Odd: 18446744073709551615 kB\nPlain: 9007199254740993\n'})
    out = run('--replay', tree.folder, '-m', 'memory', '-e', 'stdout').out
    assert '{"mem.odd": {"value": 18889465931478580853760, "units": "B"}}' in out
    assert '{"mem.plain": {"value": 9007199254740993, "units": ""}}' in out


def test_system_facts_come_from_files_of_their_own(host):
    files = {'proc/stat': 'cpu  1 2 3 4\ncpu0 1 2 3 4\ncpu1 1 2 3 4\nbtime 1700000000\n',
             'proc/cpuinfo': 'processor\t: 0\ncpu MHz\t\t: 1000.000\ncache size\t: 512 KB\n\nprocessor\t: 1\n'
                             'cpu MHz\t\t: 3000.500\ncache size\t: 1024 KB\n',
             'proc/diskstats': disks('sda', 'sda1', 'loop0', 'sdb'),
             'proc/uptime': '350735.47 234388.90\n', 'proc/sys/fs/file-nr': '1184\t0\t9223372036854775807\n'}
    found = {}
    for family, labels, row in rows('system', host(files), options(disk=DISKS)):
        found.update({family + '.' + k: v for k, v in row.items()})
    assert found == {'cpu.cores': 2, 'cpu.speed': 2000.25, 'cpu.cache_size': 512, 'disk.count': 2,
                     'system.uptime': 350735.47, 'system.boot_time': 1700000000, 'system.file_handles': 1184}


def test_a_file_that_is_missing_takes_only_its_own_metrics_and_is_tried_again(host):
    tree, said = host({'proc/uptime': '1.5 2.5\n'}), []
    parts = Parts('system', statbadger.MODULES['system'].parts, options(disk=DISKS), tree,
                  lambda level, message: said.append(message))

    def flat(now):
        tree.fresh.clear()
        return [s.flat for series, values in parts.read(now) for s in series]
    assert flat(0.0) == ['system.uptime'] and flat(1.0) == ['system.uptime']
    assert len(said) == 5                       # each file of each part once
    (tree.folder / 'proc/stat').write_text('cpu0 1 2 3 4\nbtime 5\n')
    late = [flat(now) for now in range(2, 70)]
    assert late[0] == ['system.uptime'] and 'system.boot_time' in late[-1]
    assert sum('can be read again' in s for s in said) == 2


def test_empty_files_are_absent(host):
    with pytest.raises(Absent):
        host({'proc/stat': ''}).read('proc/stat')


@pytest.mark.parametrize('pattern, name, fits', [
    ('sd*', 'sda', True), ('sd*', 'nvme', False), ('*', '', True), ('', '', True), ('', 'x', False), ('?', 'x', True),
    ('?', '', False), ('disk.*_merged.*', 'disk.reads_merged.sda', True), ('*.sda', 'disk.reads.sda', True),
    ('a*b*c', 'axxbyyc', True), ('a*b*c', 'axxbyy', False), ('[ab]x', 'bx', True), ('[!ab]x', 'bx', False),
    ('[a-c]*', 'beta', True), ('[', '[', True), ('[]]', ']', True), ('net.*', 'NET.x', False), ('**a', 'bca', True),
    ('a*' * 30 + 'b', 'a' * 60, False)])
def test_shell_patterns(pattern, name, fits):
    assert glob(pattern, name) is fits


def test_patterns_with_an_exclamation_mark_take_away():
    keep = matcher(['!lo', '!veth*'])
    assert keep('eth0') and not keep('lo') and not keep('veth12')
    keep = matcher(['eth*', '!eth1'])
    assert keep('eth0') and not keep('eth1') and not keep('wlan0')
    assert matcher(['*'])('lo') and not matcher([])('lo')
