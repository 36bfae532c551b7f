#!/usr/bin/env python3
"""Makes the frozen hosts beside this file, byte for byte the same each time: `python3 make_hosts.py [NAME]...`.

A host is a list of (time, {path: bytes, or Link for a symbolic link}). Layouts are those of the kernels named: the
format strings of fs/proc and net/core of each, and Documentation/admin-guide/iostats.rst for the disks. The links in
sys/block dangle on purpose: a listing is all that is asked of them, and git keeps no empty folders.
"""
import os
import random
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
START = 1700000000                              # a multiple of 1, 5 and 10, so that grid points are easy to see

# the names of meminfo in the order in which each kernel prints them
OLD = 'MemTotal MemFree Buffers Cached SwapCached Active Inactive '
HIGH = 'HighTotal HighFree LowTotal LowFree '
LRU = 'Active(anon) Inactive(anon) Active(file) Inactive(file) Unevictable Mlocked '
SWAP = 'SwapTotal SwapFree Dirty Writeback '
SLAB = 'Slab SReclaimable SUnreclaim KernelStack PageTables '
LIMITS = 'NFS_Unstable Bounce WritebackTmp CommitLimit Committed_AS VmallocTotal VmallocUsed VmallocChunk '
HUGE = 'HugePages_Total HugePages_Free HugePages_Rsvd HugePages_Surp Hugepagesize '
NEW = OLD.replace('MemFree', 'MemFree MemAvailable')
MEMINFO = {
    '2.6.9': OLD + HIGH + SWAP + 'Mapped Slab Committed_AS PageTables VmallocTotal VmallocUsed VmallocChunk '
             'HugePages_Total HugePages_Free Hugepagesize',
    '2.6.18': OLD + HIGH + SWAP + 'AnonPages Mapped Slab PageTables NFS_Unstable Bounce CommitLimit Committed_AS '
              'VmallocTotal VmallocUsed VmallocChunk HugePages_Total HugePages_Free HugePages_Rsvd Hugepagesize',
    '2.6.32': OLD + LRU + SWAP + 'AnonPages Mapped Shmem ' + SLAB + LIMITS + 'HardwareCorrupted ' + HUGE
              + 'DirectMap4k DirectMap2M',
    '2.6.32-i686': OLD + LRU + HIGH + SWAP + 'AnonPages Mapped Shmem ' + SLAB + LIMITS + HUGE + 'DirectMap4k DirectMap2M',
    '3.10': OLD + LRU + SWAP + 'AnonPages Mapped Shmem ' + SLAB + LIMITS + 'HardwareCorrupted AnonHugePages ' + HUGE
            + 'DirectMap4k DirectMap2M',
    '4.18': NEW + LRU + SWAP + 'AnonPages Mapped Shmem ' + SLAB + LIMITS + 'HardwareCorrupted AnonHugePages '
            'ShmemHugePages ShmemPmdMapped ' + HUGE + 'DirectMap4k DirectMap2M DirectMap1G',
    '5.10': NEW + LRU + SWAP + 'AnonPages Mapped Shmem KReclaimable ' + SLAB + LIMITS + 'Percpu HardwareCorrupted '
            'AnonHugePages ShmemHugePages ShmemPmdMapped FileHugePages FilePmdMapped ' + HUGE
            + 'Hugetlb DirectMap4k DirectMap2M DirectMap1G',
    '6.18': NEW + LRU + SWAP.replace('Dirty', 'Zswap Zswapped Dirty') + 'AnonPages Mapped Shmem KReclaimable ' + SLAB
            + 'SecPageTables ' + LIMITS + 'Percpu AnonHugePages ShmemHugePages ShmemPmdMapped FileHugePages FilePmdMapped '
            'Balloon ' + HUGE + 'Hugetlb DirectMap4k DirectMap2M DirectMap1G'}
COUNTS = ('HugePages_Total', 'HugePages_Free', 'HugePages_Rsvd', 'HugePages_Surp')
KB = {'Buffers': 60000, 'Cached': 250000, 'Active': 180000, 'Inactive': 120000, 'Active(anon)': 90000, 'AnonPages': 95000,
      'Inactive(anon)': 3000, 'Active(file)': 90000, 'Inactive(file)': 117000, 'Mapped': 30000, 'Shmem': 8000,
      'KReclaimable': 40000, 'Slab': 70000, 'SReclaimable': 40000, 'SUnreclaim': 30000, 'KernelStack': 3000,
      'PageTables': 5000, 'Committed_AS': 400000, 'CommitLimit': 1500000, 'SwapTotal': 1048572, 'SwapFree': 1040000,
      'Dirty': 120, 'VmallocUsed': 14000, 'Hugepagesize': 2048, 'Percpu': 700, 'DirectMap4k': 60000, 'DirectMap2M': 2000000,
      'HugePages_Total': 8, 'HugePages_Free': 6, 'Zswap': 40, 'Zswapped': 160}

# kernel: columns of a cpu line, numbers of a disk line, width of meminfo, blank behind the colon in net/dev
KERNELS = {'2.6.9': (7, 11, 22, False), '2.6.18': (8, 11, 22, False), '2.6.32': (9, 11, 24, False),
           '2.6.32-i686': (9, 11, 24, False), '3.10': (10, 11, 24, True), '4.18': (10, 15, 24, True),
           '5.10': (10, 17, 24, True), '6.18': (10, 17, 24, True)}
NET_HEAD = ('Inter-|   Receive                                                |  Transmit\n'
            ' face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls '
            'carrier compressed\n')
NET_WIDTHS = (7, 4, 4, 4, 5, 10, 9, 8, 7, 4, 4, 4, 5, 7, 10)
ROUTE_HEAD = 'Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT'


class Link(str):
    """Where a symbolic link leads."""


class Machine:
    """Counters that move a little with each step, and the files that a kernel would make of them."""

    def __init__(self, seed, kernel, cpus, disks, links, name='', whole=None, kb=None):
        self.random, self.kernel, self.name = random.Random(seed).random, kernel, name
        self.columns, self.numbers, self.width, self.blank = KERNELS[kernel]
        self.cpus = {i: [self.below(90000) for _ in range(10)] for i in range(cpus)}
        self.gone_cpus = set()
        self.disks = [[major, minor, disk] + [self.below(300000) for _ in range(17)] for major, minor, disk in disks]
        self.links = [[link] + [self.below(10 ** 9), self.below(10 ** 7)] + [self.below(100) for _ in range(6)]
                      + [self.below(10 ** 9), self.below(10 ** 7)] + [self.below(100) for _ in range(6)] for link in links]
        for disk in self.disks:
            disk[11] = 0                        # in flight
        for states in self.cpus.values():       # user and nice hold the time of their guests
            states[0] += states[8]
            states[1] += states[9]
        self.whole = whole                      # names in sys/block; None: this kernel shows none
        self.kb = dict(KB, MemTotal=2000000, MemFree=900000, VmallocTotal=34359738367, VmallocChunk=34359700000)
        self.kb.update(kb or {})
        self.ctxt, self.forks, self.intr, self.up = self.below(10 ** 9), self.below(10 ** 5), self.below(10 ** 9), 350735.47
        self.seconds, self.network = 0.0, {}

    def below(self, limit):
        """random() alone gives the same numbers on every Python; randrange() has changed before."""
        return int(self.random() * limit)

    def step(self, seconds=1.0):
        """Let time pass on every counter."""
        self.seconds += seconds
        for cpu, states in sorted(self.cpus.items()):
            if cpu not in self.gone_cpus:
                guest, nice = self.below(4), self.below(2)
                for i, growth in enumerate((20 + guest, 3 + nice, 9, 55, 5, 1, 2, 3)):
                    states[i] += self.below(growth) + (guest, nice, 0, 0, 0, 0, 0, 0)[i]
                states[8] += guest
                states[9] += nice
        for disk in self.disks:
            reads, writes, discards, flushes = (self.below(n) for n in (60, 80, 9, 5))
            growth = [reads, self.below(9), reads * 8 + self.below(4) * 8, reads + self.below(90), writes, self.below(30),
                      writes * 16, writes + self.below(400), 0, self.below(900), 0, discards, 0, discards * 64,
                      discards, flushes, flushes * 2]
            growth[10] = growth[3] + growth[7]
            for i, more in enumerate(growth):
                disk[3 + i] += more
            disk[11] = self.below(3)
        for link in self.links:
            for first, packets in ((1, self.below(3000)), (9, self.below(2000))):
                link[first] += packets * (60 + self.below(1400))
                link[first + 1] += packets
                link[first + 2 + self.below(4)] += self.below(2)
        self.ctxt += 800 + self.below(4000)
        self.intr += 500 + self.below(3000)
        self.forks += self.below(40)
        for name, range_ in (('MemFree', 500), ('Cached', 300), ('Dirty', 20), ('Active', 100)):
            self.kb[name] += self.below(range_) - range_ // 2

    def stat(self):
        total = [sum(states[i] for states in self.cpus.values()) for i in range(10)]
        lines = ['cpu  ' + ' '.join(map(str, total[:self.columns]))]
        lines += ['cpu%d ' % cpu + ' '.join(map(str, states[:self.columns]))
                  for cpu, states in sorted(self.cpus.items()) if cpu not in self.gone_cpus]
        lines += ['intr %d 44 9 0 0 1 0 0 %d' % (self.intr, self.intr // 7), 'ctxt %d' % self.ctxt,
                  'btime %d' % (START - int(self.up)), 'processes %d' % self.forks,
                  'procs_running %d' % (1 + self.ctxt % 3), 'procs_blocked %d' % (self.ctxt % 2)]
        if self.kernel not in ('2.6.9', '2.6.18'):
            lines.append('softirq %d 0 87347 4 8969 104317 0 3 133052 2155 72829' % (self.intr // 2))
        return '\n'.join(lines) + '\n'

    def diskstats(self):
        old = self.kernel in ('2.6.9', '2.6.18')
        place = '%4d %4d %s ' if self.kernel.startswith('2.6') else '%4d %7d %s '
        text = ''
        for disk in self.disks:
            numbers = disk[3:3 + self.numbers]
            if old and disk[2][-1].isdigit() and disk[2][:2] in ('sd', 'hd'):
                numbers = [numbers[i] for i in (0, 2, 4, 6)]         # a partition before 2.6.25
            text += place % tuple(disk[:3]) + ' '.join(map(str, numbers)) + '\n'
        return text

    def net_dev(self):
        data = NET_HEAD.encode()
        for link in self.links:
            name = link[0] if isinstance(link[0], bytes) else link[0].encode()
            first = ' %7d' if self.blank else '%8d'
            rest = ''.join(' %*d' % (width, n) for width, n in zip(NET_WIDTHS, link[2:]))
            data += name.rjust(6) + b':' + (first % link[1] + rest).encode() + b'\n'
        return data

    def meminfo(self):
        kb = dict(self.kb, MemAvailable=self.kb['MemFree'] + 270000)
        kb.setdefault('LowTotal', kb['MemTotal'])
        kb.setdefault('LowFree', kb['MemFree'])
        text = ''
        for name in MEMINFO[self.kernel].split():
            number = ' ' + str(kb.get(name, 0))
            text += name + ':' + number.rjust(self.width - len(name) - 1) + ('\n' if name in COUNTS else ' kB\n')
        return text

    def cpuinfo(self):
        return ''.join('processor\t: %d\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Processor\n'
                       'cpu MHz\t\t: %d.%03d\ncache size\t: %d KB\n\n' % (cpu, 2300 + 50 * (cpu % 4), 125 * cpu % 1000, 8192)
                       for cpu in sorted(self.cpus) if cpu not in self.gone_cpus)

    def snapshot(self):
        """Every file of this moment."""
        up = self.up + self.seconds
        files = {'proc/stat': self.stat(), 'proc/diskstats': self.diskstats(), 'proc/net/dev': self.net_dev(),
                 'proc/meminfo': self.meminfo(), 'proc/cpuinfo': self.cpuinfo(),
                 'proc/loadavg': '0.%02d 1.04 12.30 %d/%d %d\n' % (self.ctxt % 100, 1 + self.ctxt % 3, 321, self.forks),
                 'proc/uptime': '%.2f %.2f\n' % (up, up * 1.7),
                 'proc/sys/fs/file-nr': '%d\t0\t9223372036854775807\n' % (1184 + self.ctxt % 64)}
        if self.name:
            files['proc/sys/kernel/hostname'] = self.name + '\n'
        for path, text in self.network.items():
            files.setdefault(path, text)
        for name in self.whole or ():
            kind = 'virtual' if name[:2] in ('dm', 'lo', 'ra', 'zr', 'md') else 'pci0000:00'
            files['sys/block/' + name] = Link('../devices/%s/block/%s' % (kind, name))
        return {path: text if isinstance(text, (bytes, Link)) else text.encode() for path, text in files.items()}


def route(*rows):
    """net/route. rows: (interface, destination, gateway, flags, metric, mask), addresses as hex in the order of x86."""
    lines = [ROUTE_HEAD] + ['%s\t%s\t%s\t%04X\t0\t0\t%d\t%s\t0\t0\t0' % row for row in rows]
    return ''.join(line.ljust(127) + '\n' for line in lines)


def fib_trie(*nets, merged=True):
    """net/fib_trie. nets: (network, prefix length, address, broadcast). Since 4.1 both tables share one trie."""
    loop = ('     +-- 127.0.0.0/8 2 0 2\n        +-- 127.0.0.0/31 1 0 0\n           |-- 127.0.0.0\n'
            '              /8 host LOCAL\n           |-- 127.0.0.1\n              /32 host LOCAL\n'
            '        |-- 127.255.255.255\n           /32 link BROADCAST\n')
    main = '  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n'
    unicast, local = '', ''
    for network, length, address, broadcast in nets:
        node = '     +-- %s/%d 2 0 2\n' % (network, length)
        subnet = '        |-- %s\n           /%d link UNICAST\n' % (network, length)
        host = ('        |-- %s\n           /32 host LOCAL\n        |-- %s\n           /32 link BROADCAST\n'
                % (address, broadcast))
        unicast += node + subnet
        local += node + (subnet if merged else '') + host
    if merged:
        return 'Main:\n' + main + loop + local + 'Local:\n' + main + loop + local
    return 'Main:\n' + main + unicast + 'Local:\n  +-- 0.0.0.0/1 2 0 2\n' + loop + local


def one_address(machine, link='eth0'):
    """192.0.2.17/24 and fd00::11 on `link`, the gateway at 192.0.2.1."""
    old = machine.kernel.startswith('2.6')
    machine.network = {
        'proc/net/route': route((link, '000200C0', '00000000', 1, 0, '00FFFFFF'),
                                (link, '00000000', '010200C0', 3, 0, '00000000')),
        'proc/net/if_inet6': '00000000000000000000000000000001 01 80 10 80       lo\n'
                             'fe80000000000000021122fffe334455 02 40 20 80 %8s\n' % link
                             + 'fd000000000000000000000000000011 02 40 00 80 %8s\n' % link}
    if not old:                                 # the default there was the hash, which shows no trie
        machine.network['proc/net/fib_trie'] = fib_trie(('192.0.2.0', 24, '192.0.2.17', '192.0.2.255'),
                                                        merged=machine.kernel != '3.10')
    return machine


def run(machine, count, times=None):
    """`count` snapshots, a second apart or at `times`."""
    found = []
    for i in range(count):
        when = times[i] if times else START + i
        if i:
            machine.step(times[i] - times[i - 1] if times else 1.0)
        found.append((when, machine.snapshot()))
    return found


def linux_2_6_9():
    disks = [(1, 0, 'ram0'), (1, 1, 'ram1'), (3, 0, 'hda'), (3, 1, 'hda1'), (3, 2, 'hda2'), (22, 0, 'hdc'), (8, 0, 'sda'),
             (8, 1, 'sda1'), (9, 0, 'md0')]
    machine = Machine(269, '2.6.9', 2, disks, ['lo', 'eth0', 'sit0'], 'el4.example.com', None,
                      {'MemTotal': 1034612, 'MemFree': 200000, 'HighTotal': 131008, 'HighFree': 252, 'LowTotal': 903604,
                       'LowFree': 199748, 'VmallocTotal': 106488, 'VmallocUsed': 4568, 'VmallocChunk': 101680})
    machine.links[1][1] = 1234567890                # glued to the colon
    machine.links[2][1:] = [0] * 16                 # not glued
    return run(one_address(machine), 4)


def linux_2_6_18():
    disks = [(1, 0, 'ram0'), (8, 0, 'sda'), (8, 1, 'sda1'), (8, 2, 'sda2'), (8, 16, 'sdb'), (253, 0, 'dm-0'),
             (253, 1, 'dm-1')]
    machine = Machine(2618, '2.6.18', 2, disks, ['lo', 'eth0', 'eth1', 'vnet0', 'sit0'], 'el5',
                      ['ram0', 'sda', 'sdb', 'dm-0', 'dm-1'])
    return run(one_address(machine), 4)             # x86_64, and yet it prints HighTotal and LowTotal, as it did then


def linux_2_6_32():
    disks = [(7, 0, 'loop0'), (104, 0, 'cciss/c0d0'), (104, 1, 'cciss/c0d0p1'), (104, 2, 'cciss/c0d0p2'), (253, 0, 'dm-0')]
    machine = Machine(2632, '2.6.32', 4, disks, ['lo', 'eth0', 'eth1', 'bond0', 'tap0'], 'el6',
                      ['loop0', 'cciss!c0d0', 'dm-0'])
    return run(one_address(machine, 'bond0'), 4)


def linux_3_10():
    disks = [(8, 0, 'sda'), (8, 1, 'sda1'), (8, 2, 'sda2'), (11, 0, 'sr0'), (253, 0, 'dm-0'), (253, 1, 'dm-1')]
    machine = Machine(310, '3.10', 2, disks, ['eth0', 'lo', 'docker0', 'veth12ab34c', 'br-0123456789ab'], 'el7.example.com',
                      ['sda', 'sr0', 'dm-0', 'dm-1'])
    machine = one_address(machine)
    machine.network['etc/hostname'] = 'configured.example.com\n'
    return run(machine, 4)


def linux_4_18():
    disks = [(259, 0, 'nvme0n1'), (259, 1, 'nvme0n1p1'), (259, 2, 'nvme0n1p2'), (9, 127, 'md127'), (9, 126, 'md126p1'),
             (7, 0, 'loop0')]
    machine = Machine(418, '4.18', 4, disks, ['lo', 'ens3', 'cali0123456789a', 'lxc1234', 'wlan0'], 'el8',
                      ['nvme0n1', 'md127', 'loop0'])
    return run(one_address(machine, 'ens3'), 4)


def linux_5_10():
    """Container with the host's /proc mounted: proc/1/net is the host's, proc/net is not."""
    disks = [(8, 0, 'sda'), (8, 1, 'sda1'), (8, 16, 'sdb'), (43, 0, 'nbd0'), (7, 0, 'loop0')]
    machine = Machine(510, '5.10', 2, disks, ['lo', 'eth0', 'wlan0', 'docker0', 'ifb0'], 'bullseye',
                      ['sda', 'sdb', 'nbd0', 'loop0'])
    temporary, stable = '20010db8000000010000000000000abc', '20010db8000000010000000000000020'
    machine.network = {
        'proc/1/net/route': route(('wlan0', '00000000', '0101A8C0', 3, 600, '00000000'),
                                  ('eth0', '00000000', '010010AC', 3, 100, '00000000'),
                                  ('docker0', '000011AC', '00000000', 1, 0, '0000FFFF'),
                                  ('eth0', '000010AC', '00000000', 1, 100, '00FFFFFF'),
                                  ('wlan0', '0001A8C0', '00000000', 1, 600, '00FFFFFF')),
        'proc/1/net/fib_trie': fib_trie(('10.9.8.0', 24, '10.9.8.7', '10.9.8.255'),
                                        ('172.16.0.0', 24, '172.16.0.20', '172.16.0.255'),
                                        ('172.17.0.0', 16, '172.17.0.1', '172.17.255.255'),
                                        ('192.168.1.0', 24, '192.168.1.30', '192.168.1.255')),
        'proc/1/net/if_inet6': '00000000000000000000000000000001 01 80 10 80       lo\n'
                               '20010db8000000020000000000000030 03 40 00 00    wlan0\n'
                               + temporary + ' 02 40 00 01     eth0\n'
                               + stable.replace('0020', '0021') + ' 02 40 00 20     eth0\n'
                               + stable.replace('0020', '0022') + ' 02 40 00 40     eth0\n'
                               + stable + ' 02 40 00 00     eth0\n'
                               'fe80000000000000021122fffe334455 02 40 20 80     eth0\n'}
    found = run(machine, 4)
    for when, files in found:
        files['proc/1/net/dev'] = files['proc/net/dev']
        files['proc/net/dev'] = (NET_HEAD + '    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n'
                                 '  eth7: %d 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n' % (when - START)).encode()
    return found


def linux_6_18():
    """Ticks near the grid, within a tenth of it, and one that is late."""
    disks = [(7, 0, 'loop0'), (259, 0, 'nvme0n1'), (259, 1, 'nvme0n1p1'), (259, 3, 'nvme1n1'), (253, 0, 'dm-0'),
             (252, 0, 'zram0')]
    machine = Machine(618, '6.18', 4, disks, ['lo', 'eth0', 'wlp0s20f3', 'eth0.100', 'veth1'], 'current',
                      ['loop0', 'nvme0n1', 'nvme1n1', 'dm-0', 'zram0'])
    times = [START + t for t in (0.003, 1.004, 1.998, 3.25, 4.0)]
    return run(one_address(machine), 5, times)


def hotplug():
    """cpu1 goes and returns; sdb and eth1 go and return; sda comes back as another device with smaller counters."""
    disks = [(8, 0, 'sda'), (8, 1, 'sda1'), (8, 16, 'sdb')]
    machine = Machine(77, '5.10', 2, disks, ['lo', 'eth0', 'eth1'], 'hotplug', ['sda', 'sdb'])
    one_address(machine)
    found = run(machine, 2)
    sdb, eth1 = machine.disks.pop(2), machine.links.pop(2)
    machine.gone_cpus, machine.whole = {1}, ['sda']
    machine.step()
    found.append((START + 2, machine.snapshot()))
    machine.step()
    machine.disks[0][:] = [8, 32, 'sda'] + [5] * 17                      # the same name, another device
    machine.disks[1][:] = [8, 33, 'sda1'] + [5] * 17
    found.append((START + 3, machine.snapshot()))
    machine.disks.append(sdb)
    machine.links.append(eth1)
    machine.gone_cpus, machine.whole = set(), ['sda', 'sdb']
    for i in (4, 5, 6):
        machine.step()
        found.append((START + i, machine.snapshot()))
    return found


def wraps(kernel, kb):
    """Numbers chosen by hand: see what each line is for."""
    top = 1 << 32
    machine = Machine(32, kernel, 1, [], [], 'wraps', ['sda', 'sdb', 'sdc', 'sdd'], kb)
    one_address(machine)
    sda = [1000, 10, 8000, top - 100, 2000, 20, 16000, top - 300, 1, top - 500, top - 700]
    sda_next = [1010, 10, 8080, 50, 2020, 20, 16160, 100, 0, 400, 300]            # the four ms columns wrap
    sdb = [top - 8, 10, 8000, 500, 2000, 20, 16000, 600, 0, 700, 800]
    sdb_next = [2, 10, 8080, 550, 2010, 20, 16080, 660, 0, 750, 900]              # reads: wraps only where 32 bits are all
    sdc = [5000, 50, 40000, 900, 3000, 30, 24000, 700, 0, 800, 1600]
    sdc_next = [1, 1, 8, 3, 2, 0, 16, 4, 3, 5, 2000]                              # more than half fell: only `io` shows
    sdd = [100, 1, 800, 90, 50, 5, 400, 45, 0, 100, 135]
    sdd_next = [99, 2, 880, 95, 60, 6, 480, 55, 0, 150, 150]                      # one fell: so do await and request_size
    eth0 = [top - 1000, 5000, 0, 0, 0, 0, 0, 0, top - 2000, 6000, 0, 0, 0, 0, 0, 0]
    eth0_next = [500, 5010, 0, 0, 0, 0, 0, 0, 3000, 6020, 0, 0, 0, 0, 0, 0]
    eth1 = [90000, 900, 7, 6, 5, 4, 3, 2, 80000, 800, 7, 6, 5, 4, 3, 2]
    eth1_next = [91000, 910, 7, 6, 5, 4, 3, 2, 81000, 11, 7, 6, 5, 4, 3, 2]       # tx_packets alone fell
    eth2 = [90000, 900, 7, 6, 5, 4, 3, 2, 80000, 800, 7, 6, 5, 4, 3, 2]
    eth2_next = [100, 1, 0, 0, 0, 0, 0, 0, 200, 2, 0, 0, 0, 0, 0, 0]              # everything fell
    eth3 = [(1 << 40) + 5, 900, 1, 1, 1, 1, 1, 1, 1 << 63, 800, 1, 1, 1, 1, 1, 1]
    eth3_next = [17, 910, 1, 1, 1, 1, 1, 1, (1 << 63) + 1001, 810, 1, 1, 1, 1, 1, 1]   # was never 32 bits wide
    eth4 = [90000, 900, 1, 1, 1, 1, 1, 1, 80000, 800, 9, 9, 9, 9, 9, 9]
    eth4_next = [90001, 901, 0, 0, 0, 0, 0, 0, 80001, 801, 0, 0, 9, 9, 9, 9]      # exactly half fell: not more than half
    disks = (('sda', sda, sda_next), ('sdb', sdb, sdb_next), ('sdc', sdc, sdc_next), ('sdd', sdd, sdd_next))
    links = (('eth0', eth0, eth0_next), ('eth1', eth1, eth1_next), ('eth2', eth2, eth2_next), ('eth3', eth3, eth3_next),
             ('eth4', eth4, eth4_next))
    found = []
    for i in range(4):
        if i:
            machine.step()
        late = i >= 2                               # snapshots 0 and 1 show the old numbers, 2 and 3 the new ones
        machine.disks = [[8, 16 * n, name] + (new if late else old) + [0] * 6 for n, (name, old, new) in enumerate(disks)]
        machine.links = [[name] + (new if late else old) for name, old, new in links]
        if i == 2:
            machine.ctxt = 5                        # fell, alone of its row
        if i == 3:
            for link in machine.links:
                link[1] += 64
            for disk in machine.disks:
                disk[3] += 4
                disk[12] += 250
        found.append((START + i, machine.snapshot()))
    return found


def wraps_32():
    return wraps('2.6.32-i686', {'MemTotal': 1034612, 'MemFree': 200000, 'HighTotal': 131008, 'LowTotal': 903604,
                                 'LowFree': 150000, 'VmallocTotal': 122880, 'VmallocUsed': 4568, 'VmallocChunk': 101680})


def wraps_64():
    return wraps('4.18', {})


def backwards():
    """cpu states by hand: user nice system idle iowait irq softirq steal guest guest_nice."""
    machine = Machine(9, '6.18', 2, [], [], 'backwards', [])
    rows = [([100, 50, 20, 1000, 30, 1, 2, 3, 10, 5], [500, 0, 100, 900, 40, 0, 0, 0, 0, 0]),
            ([110, 55, 25, 997, 23, 1, 2, 8, 14, 5], [510, 0, 110, 980, 30, 0, 0, 0, 0, 0]),     # iowait, idle
            ([112, 55, 25, 1090, 23, 1, 2, 8, 20, 5], [510, 0, 110, 980, 30, 0, 0, 0, 0, 0]),    # guest > user; no time
            ([112, 56, 25, 1180, 23, 1, 2, 8, 20, 8], [511, 0, 109, 1079, 31, 0, 0, 0, 0, 0]),   # guest_nice > nice
            ([111, 55, 24, 1179, 22, 0, 1, 9, 21, 9], [521, 0, 119, 1159, 31, 0, 0, 0, 0, 0])]   # seven of ten fell
    found = []
    for i, (first, second) in enumerate(rows):
        machine.cpus = {0: first, 1: second}
        if i:
            machine.ctxt += 1000
            machine.intr += -5 if i == 2 else 700
            machine.forks += 3
            machine.seconds += 1
        found.append((START + i, machine.snapshot()))
    return found


def swap(files, path, old, new):
    """Replace a piece that must be there, so that a case cannot vanish unnoticed."""
    assert old in files[path], (path, old)
    files[path] = files[path].replace(old, new, 1)


def garbage():
    """What no kernel should write. Only the line in question may suffer."""
    disks = [(8, 0, 'sda'), (8, 16, 'sdb'), (8, 32, 'sdc')]
    machine = Machine(666, '5.10', 3, disks, ['lo', 'eth0', 'eth1', 'eth2'], 'garbage', ['sda', 'sdb', 'sdc'])
    one_address(machine)
    machine.links[2][1] = (1 << 64) - 10 ** 9                            # above 2^63 all the time
    found = run(machine, 6)
    for i, (when, files) in enumerate(found):
        files['proc/stat'] = (b'garbage\n\n\xff\xfe\x00\ncpux 1 2 3 4\ncpu-1 1 2 3 4\n' + files['proc/stat']
                              + b'cpu1 9 9 9 9\nctxt 7\n')
        files['proc/diskstats'] = (b'garbage\n\n   8      48\n   8      48 sdd 1 2 3\n'
                                   b'   8      48 sdd 1 2 3 4 5 6 7 8 9 10 -11\n'
                                   + files['proc/diskstats'] + b'   8      48 sda 9 9 9 9 9 9 9 9 9 9 9\n\xff\xfe\n')
        files['proc/net/dev'] += (b'garbage\n\n: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  eth9: 1 2 3\n  eth9:\n'
                                  b'  eth9: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 x\n'
                                  b'  eth9: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 1e400\n'
                                  b'  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n')
        files['proc/meminfo'] += (b'garbage\n\nNan: nan kB\nMinus: -5 kB\nDash: - kB\nHuge: 1e400 kB\nUnit: 5 MB\n'
                                  b'Two: 5 6 kB\n: 5 kB\nZero-x: 5 kB\nA b: 5 kB\nDot: 5.5 kB\nPlus: +5 kB\n'
                                  b'Hex: 0x10 kB\nUnder: 1_000 kB\nEmpty:\n'
                                  b'\xff: 5 kB\nArabic: \xd9\xa3 kB\nMemTotal: 5 kB\n'
                                  b'Big: 18446744073709551615 kB\nOdd: 9007199254740993\n')
        files['proc/cpuinfo'] = (b'garbage\ncpu MHz\t\t: nan\ncpu MHz\t\t: 1e400\ncpu MHz\ncache size\t: - KB\n'
                                 + files['proc/cpuinfo'])
    files = found[1][1]
    swap(files, 'proc/stat', b'cpu0 ', b'cpu0 nan ')
    swap(files, 'proc/stat', b'intr ', b'intr -')
    swap(files, 'proc/diskstats', b' sdb ', b' sdb 1e400 ')
    swap(files, 'proc/net/dev', b'  eth2: ', b'  eth2: - ')
    swap(files, 'proc/meminfo', b'Buffers: ', b'Buffers: x')
    files['proc/loadavg'] = b'0.10 nan 0.30 1/321 4242\n'
    files['proc/uptime'] = b'- -\n'
    files['proc/sys/fs/file-nr'] = b'x\t0\t1\n'
    files = found[2][1]                             # everything is empty but one
    for path in list(files):
        if path != 'proc/diskstats' and path.startswith('proc/'):
            files[path] = b''
    files = found[3][1]                             # torn, but for that each would be a good line
    files['proc/stat'] += b'procs_running 41'
    files['proc/diskstats'] += b'   8      64 sde 1 2 3 4 5 6 7 8 9 10 11'
    files['proc/net/dev'] += b'  eth5: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16'
    files['proc/meminfo'] += b'Torn: 123'
    swap(files, 'proc/stat', b'procs_running', b'procs_ambling')
    for path in ('proc/loadavg', 'proc/uptime', 'proc/sys/fs/file-nr'):
        files[path] = files[path].rstrip(b'\n')     # whole all the same
    files = found[4][1]
    swap(files, 'proc/diskstats', b' sdc ', b' sdc 18446744073709551616 ')
    files['proc/loadavg'] = b'0.10 0.20 0.30 1/321\n'
    files['proc/net/dev'] = b'no line of this\nis of any use\n'
    return found


def odd_names():
    links = ['lo', 'a;b$(x)', 'eth0.100', b'\xff\xfe', b'\xfe\xff', b'\x1b[31m', b'"q\'`\\', 'abcdefghijklmno', 'eth0:1',
             'eth0', '%s%d', b'z\xc3\xbcrich', 'vethernot', 'br', 'docker']
    disks = [(104, 0, 'cciss/c0d0'), (104, 1, 'cciss/c0d0p1'), (72, 0, 'ida/c1d15'), (240, 0, 'odd!disk'), (240, 16, 'a%s'),
             (65, 0, 'sdq'), (65, 16, 'sdqa'), (179, 0, 'mmcblk0'), (179, 1, 'mmcblk0p1'), (179, 8, 'mmcblk0boot0')]
    whole = ['cciss!c0d0', 'ida!c1d15', 'odd!disk', 'a%s', 'sdq', 'sdqa', 'mmcblk0', 'mmcblk0boot0']
    machine = Machine(13, '2.6.32', 1, disks, links, '', whole)
    one_address(machine)
    machine.network['proc/sys/kernel/hostname'] = b'"q\\\xff\x1b[1m\n'
    return run(machine, 3)


def missing():
    disks = [(8, 0, 'sda'), (8, 1, 'sda1'), (253, 0, 'dm-0'), (253, 10, 'dm-10'), (7, 0, 'loop0')]
    machine = one_address(Machine(404, '5.10', 2, disks, ['lo', 'eth0'], 'missing', ['sda', 'dm-0', 'dm-10', 'loop0']))
    found = run(machine, 8)
    everything = ('proc/stat', 'proc/cpuinfo', 'proc/loadavg', 'proc/diskstats', 'proc/net', 'proc/meminfo', 'proc/uptime',
                  'proc/sys/fs')
    gone = [(), ('proc/stat', 'proc/net/route'), ('proc/diskstats', 'proc/meminfo'),
            ('proc/net/dev', 'proc/loadavg', 'sys/block'), everything, ('proc/uptime', 'proc/cpuinfo', 'proc/sys'),
            ('proc/net', 'proc/stat'), ()]
    for (when, files), names in zip(found, gone):
        for path in [p for p in files if any(p == n or p.startswith(n + '/') for n in names)]:
            del files[path]
    return found


def big(links=300, cpus=64, count=3):
    """Many rows; `big(3000)` is for tests that write it somewhere else."""
    machine = Machine(300, '6.18', cpus, [(8, 0, 'sda')], ['lo'] + ['port%d' % i for i in range(links - 1)], 'big', ['sda'])
    return run(one_address(machine, 'port0'), count)


HOSTS = {'linux-2.6.9': linux_2_6_9, 'linux-2.6.18': linux_2_6_18, 'linux-2.6.32': linux_2_6_32, 'linux-3.10': linux_3_10,
         'linux-4.18': linux_4_18, 'linux-5.10': linux_5_10, 'linux-6.18': linux_6_18, 'hotplug': hotplug, 'wraps': wraps_32,
         'wraps-64': wraps_64, 'backwards': backwards, 'garbage': garbage, 'odd-names': odd_names,
         'missing': missing, 'big': big}


def write(snapshots, folder):
    """Write what one of the functions above gave: `write(big(3000), str(tmp_path))`."""
    for when, files in snapshots:
        for path, data in sorted(files.items()):
            place = os.path.join(folder, '%.3f' % when, path)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            if isinstance(data, Link):
                os.symlink(data, place)
            else:
                with open(place, 'wb') as file:
                    file.write(data)


def main(names):
    for name in names or sorted(HOSTS):
        folder = os.path.join(HERE, name)
        if os.path.isdir(folder):
            shutil.rmtree(folder)
        write(HOSTS[name](), folder)


if __name__ == '__main__':
    main(sys.argv[1:])
