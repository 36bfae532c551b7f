"""What the program must print for a recorded host, worked out slowly and on its own: no code is shared with it.

    payloads('hosts/wraps') -> [{'hostname': ..., 'timestamp': ..., 'points': {'cpu.user': (8.1, 'percent'), ...}}, ...]

Numbers of the kernel are ints here and all else is a float; the program prints floats with 12 digits, so compare those
with a tolerance. Instances are in the order of the kernel's files; the order of metrics within one is not told here.
"""
import fnmatch
import ipaddress
import os
import re
from fractions import Fraction

IDENTITY = ('datacenter', 'region', 'zone', 'cluster', 'hostname', 'ipv4', 'ipv6')
STATES = ('user', 'nice', 'system', 'idle', 'iowait', 'irq', 'softirq', 'steal', 'guest', 'guest_nice')
EVENTS = {'ctxt': 'ctxt_per_sec', 'processes': 'procs_forked_per_sec', 'intr': 'intr_per_sec'}
DISK = ('reads', 'reads_merged', 'read_sectors', 'read_time', 'writes', 'writes_merged', 'write_sectors', 'write_time',
        'io', 'io_time', 'io_weighted_time', 'discards', 'discards_merged', 'discard_sectors', 'discard_time',
        'flushes', 'flush_time')
OLD_PARTITION = ('reads', 'read_sectors', 'writes', 'write_sectors')            # all it has, 2.6.0 to 2.6.24
NET = ('rx_bytes', 'rx_packets', 'rx_errs', 'rx_drop', 'rx_fifo', 'rx_frame', 'rx_compressed', 'rx_multicast',
       'tx_bytes', 'tx_packets', 'tx_errs', 'tx_drop', 'tx_fifo', 'tx_colls', 'tx_carrier', 'tx_compressed')
LOAD = ('one', 'five', 'fifteen', 'runnable_entities', 'total_entities')
HIDDEN_LINKS = ('lo', 'veth*', 'br-*', 'docker*', 'cali*', 'lxc*', 'ifb*', 'tap*', 'vnet*')
HIDDEN_DISKS = ('loop*', 'ram*', 'zram*')


# ---- text: all of it bytes, as bytes know no blanks but those of ASCII ----------------------------------------------

def numbers(words, kind=int):
    """The words as numbers; None when one is more than plain digits, or more than the kernel's widest number."""
    digits = br'[0-9]+\Z' if kind is int else br'[0-9]+(\.[0-9]+)?\Z'
    good = all(re.match(digits, word) and kind(word) < 1 << 64 for word in words)
    return [kind(word) for word in words] if good else None


def text_of(name):
    return name.decode('utf-8', 'replace')


def keeps(name, patterns, hidden):
    """Whether a filter keeps a name: a list of patterns replaces the default, which is all but the hidden."""
    fits = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns or hidden)
    return fits if patterns else not fits


def known(points):
    return {name: value for name, value in points.items() if value[0] is not None}


class Snapshot:
    """One folder of a recording."""

    def __init__(self, folder, name):
        self.folder, self.when = os.path.join(folder, name), Fraction(name)

    def place(self, path):
        """Where a file is, or None. Network files of process 1 come first: proc/net is whose who recorded."""
        places = [os.path.join(self.folder, p) for p in (path.replace('proc/net/', 'proc/1/net/'), path)]
        return next((place for place in places if os.path.exists(place)), None)

    def read(self, path):
        with open(self.place(path) or os.devnull, 'rb') as file:
            return file.read()

    def lines(self, path):
        """Whole lines: what stands behind the last line feed may be cut in the middle of a number."""
        return self.read(path).split(b'\n')[:-1]

    def words(self, path, count):
        """The words of a file of one line, which may be torn as long as they are all there; else none."""
        words = self.read(path).split()
        return words if len(words) == count else []


# ---- files ----------------------------------------------------------------------------------------------------------

def parse_stat(snap):
    """({'cpu': {state: ticks}, 'cpu0': ...}, {'ctxt': n, 'btime': n, ...})"""
    cpus, values = {}, {}
    for words in (line.split() for line in snap.lines('proc/stat')):
        name = text_of(words[0]) if words else ''
        if re.match(r'cpu[0-9]*\Z', name):
            states = numbers(words[1:11])
            if states and len(states) >= 4:
                cpus.setdefault(name, dict(zip(STATES, states)))
        elif name in tuple(EVENTS) + ('btime', 'procs_running', 'procs_blocked') and numbers(words[1:2]):
            values.setdefault(name, int(words[1]))
    return cpus, values


def parse_disks(snap):
    """{name: ((major, minor), columns)}"""
    found = {}
    for words in (line.split() for line in snap.lines('proc/diskstats')):
        columns = numbers(words[3:20])
        if columns and numbers(words[:2]) and (len(words) == 7 or len(words) >= 14):
            names = OLD_PARTITION if len(words) == 7 else DISK
            found.setdefault(text_of(words[2]), (tuple(numbers(words[:2])), dict(zip(names, columns))))
    return found


def parse_links(snap):
    """{name: columns}. The name ends at the last colon, which may touch the first number."""
    found = {}
    for line in snap.lines('proc/net/dev'):
        name, _, rest = line.rpartition(b':')
        columns = numbers(rest.split()[:16])
        if name.strip() and columns and len(columns) == 16:
            found.setdefault(text_of(name.strip()), dict(zip(NET, columns)))
    return found


def parse_memory(snap):
    """{name: (value, unit)}"""
    found = {}
    for line in snap.lines('proc/meminfo'):
        match = re.match(br'([A-Za-z0-9_()]+):\s*([0-9]+)(\s+kB)?\s*\Z', line)
        if match and numbers([match.group(2)]):
            name, number = text_of(match.group(1)).lower().replace('(', '_').replace(')', ''), int(match.group(2))
            found.setdefault(name, (number * 1024, 'B') if match.group(3) else (number, ''))
    return found


def is_partition(name, disks, snap):
    """By sys/block, where a slash shows as an exclamation mark; without it by the line and the names of the file."""
    place = os.path.join(snap.folder, 'sys/block')
    if os.path.isdir(place):
        return name.replace('/', '!') not in os.listdir(place)
    made_of = [re.escape(other) + ('p' if other[-1].isdigit() else '') + r'[0-9]+\Z' for other in disks]
    return len(disks[name][1]) == len(OLD_PARTITION) or any(re.match(pattern, name) for pattern in made_of)


# ---- deltas ---------------------------------------------------------------------------------------------------------

def growth_of(old, new, narrow):
    """{column: growth, negative where it fell}; None when more than half fell, which makes it another row."""
    grown = {name: new[name] - old[name] for name in new if name in old}
    for name in grown:
        may_wrap = narrow or name.endswith('_time')                 # the ms columns of diskstats end so, no others
        if may_wrap and 1 << 31 < old[name] < 1 << 32 and old[name] - new[name] > 1 << 30:
            grown[name] += 1 << 32
    fallen = [name for name in grown if grown[name] < 0]
    return None if 2 * len(fallen) > len(grown) else grown


def shares(grown):
    """Percent of the time that passed: each state clamped at zero, guests taken out of user and nice."""
    part = {name: max(0, grown[name]) for name in grown}
    for guest, host in (('guest', 'user'), ('guest_nice', 'nice')):
        if guest in part and host in part:
            part[host] = max(0, part[host] - part[guest])
    total = sum(part.values())
    return {name: float(Fraction(100 * part[name], total)) for name in part} if total else {}


def like_iostat(seconds, growth):
    """{name: (value, unit)}: absent when a column it needs fell or is not there, or when it would divide by nothing."""
    def total(*names):
        parts = [growth[name] for name in names if name in growth]  # discards count where the kernel has them
        return sum(parts) if parts and min(parts) >= 0 else None

    def over(top, bottom):
        return float(Fraction(top) / bottom) if top is not None and bottom else None
    ms, done = 1000 * seconds, total('reads', 'writes', 'discards')
    busy = over(total('io_time'), ms / 100)
    found = {'read_thruput': (over(total('read_sectors'), seconds / 512), 'B/s'),
             'write_thruput': (over(total('write_sectors'), seconds / 512), 'B/s'),
             'util': (None if busy is None else min(100.0, busy), 'percent'),
             'await': (over(total('read_time', 'write_time', 'discard_time'), done), 'ms'),
             'read_await': (over(total('read_time'), total('reads')), 'ms'),
             'write_await': (over(total('write_time'), total('writes')), 'ms'),
             'queue': (over(total('io_weighted_time'), ms), ''),
             'request_size': (over(total('read_sectors', 'write_sectors', 'discard_sectors'), done and 2 * done), 'KB')}
    return known(found)


class Replay:
    """The six modules and what they remember: {(module, row): (when, identity, columns)}."""

    def __init__(self, per_core, interfaces, devices, partitions):
        self.per_core, self.interfaces, self.devices, self.partitions = per_core, interfaces, devices, partitions
        self.bases, self.narrow = {}, False

    def grown(self, module, snap, rows):
        """{row: (seconds, growth)} of the rows that have a base. rows: {row: (identity, columns)}, the next base."""
        found = {}
        for row, (identity, columns) in rows.items():
            when, known, old = self.bases.get((module, row), (None, None, {}))
            growth = growth_of(old, columns, self.narrow) if when is not None and known == identity else None
            if growth is not None:
                found[row] = (snap.when - when, growth)
        self.bases = {key: base for key, base in self.bases.items() if key[0] != module}    # a row that is gone is forgotten
        self.bases.update({(module, row): (snap.when,) + rows[row] for row in rows})
        return found

    def cpu(self, snap):
        cpus, values = parse_stat(snap)
        if not cpus and not values:
            return {}
        rows = {name: ('', states) for name, states in cpus.items() if self.per_core or name == 'cpu'}
        rows['events'] = ('', {name: values[name] for name in EVENTS if name in values})
        grown, cores = self.grown('cpu', snap, rows), len(set(cpus) - {'cpu'})
        rate = {name: n / grown['events'][0] for name, n in grown.get('events', (1, {}))[1].items() if n >= 0}
        points = {'cpu.' + name: (value, 'percent') for name, value in shares(grown.get('cpu', (1, {}))[1]).items()}
        points.update({'cpu.' + EVENTS[name]: (float(rate[name]), '') for name in rate})
        if 'ctxt' in rate and cores:
            points['cpu.ctxt_per_sec_per_core'] = (float(rate['ctxt'] / cores), '')
        points.update({'cpu.' + name: (values[name], '') for name in ('procs_running', 'procs_blocked') if name in values})
        for row in [name for name in cpus if name != 'cpu' and name in grown]:
            points.update({'cpu.%s.%s' % (name, row): (value, 'percent') for name, value in shares(grown[row][1]).items()})
        return points

    def load(self, snap):
        words = snap.words('proc/loadavg', 5) or [b''] * 5
        loads, counts = numbers(words[:3], float), numbers(words[3].split(b'/') + words[4:])
        if not loads or not counts or len(counts) != 3:
            return {}
        return {'load.' + name: (value, '') for name, value in zip(LOAD, loads + counts)}

    def kept_disks(self, snap):
        """The rows of diskstats that the filter keeps. A partition named in full is kept in any case."""
        disks = parse_disks(snap)
        return {name: disks[name] for name in disks if keeps(name, self.devices, HIDDEN_DISKS)
                and (self.partitions or name in (self.devices or ()) or not is_partition(name, disks, snap))}

    def disk(self, snap):
        disks, points = self.kept_disks(snap), {}
        if not parse_disks(snap):
            return {}
        grown = self.grown('disk', snap, {name: (number, {k: n for k, n in columns.items() if k != 'io'})
                                          for name, (number, columns) in disks.items()})
        for name, (number, columns) in disks.items():
            seconds, growth = grown.get(name, (Fraction(1), {}))
            found = {k: (float(n / seconds), 'ms/s' if k.endswith('_time') else '') for k, n in growth.items() if n >= 0}
            if columns.get('io', 1 << 31) < 1 << 31:                # from there on it was below zero
                found['io'] = (columns['io'], '')
            found.update(like_iostat(seconds, growth))
            points.update({'disk.%s.%s' % (k, name): value for k, value in found.items()})
        return points

    def network(self, snap):
        links, points = parse_links(snap), {}
        if not links:
            return {}
        kept = {name: ('', links[name]) for name in links if keeps(name, self.interfaces, HIDDEN_LINKS)}
        for link, (seconds, growth) in self.grown('network', snap, kept).items():
            for name, rate in [(k, n / seconds) for k, n in growth.items() if n >= 0]:
                points['net.%s.%s' % (name, link)] = (float(rate), 'B/s' if name.endswith('_bytes') else '')
                if name.endswith('_bytes'):
                    points['net.%s_bits.%s' % (name[:2], link)] = (float(8 * rate), 'bit/s')
        return points

    def memory(self, snap):
        memory = parse_memory(snap)
        points, used = {'mem.' + name: value for name, value in memory.items()}, None
        n = {name: value for name, (value, unit) in memory.items()}
        if 'memtotal' in n and 'memavailable' in n:
            used = n['memtotal'] - n['memavailable']
        elif all(name in n for name in ('memtotal', 'memfree', 'buffers', 'cached')):
            used = n['memtotal'] - n['memfree'] - n['buffers'] - n['cached'] - n.get('sreclaimable', 0)
        if used is not None and used >= 0:
            points['mem.used'] = (used, 'B')
            if n['memtotal']:
                points['mem.used_percent'] = (float(Fraction(100 * used, n['memtotal'])), 'percent')
        return points

    def system(self, snap):
        cpus, values = parse_stat(snap)
        info = [line.partition(b':') for line in snap.lines('proc/cpuinfo')]
        speeds = [numbers(v.split(), float)[0] for k, _, v in info if k.strip() == b'cpu MHz' and numbers(v.split(), float)]
        caches = [v.split() for k, _, v in info if k.strip() == b'cache size']
        caches = [int(words[0]) for words in caches if numbers(words[:1]) and words[1:] == [b'KB']]
        points = {'cpu.cores': (len(set(cpus) - {'cpu'}) or None, ''),
                  'cpu.speed': (sum(speeds) / len(speeds) if speeds else None, 'MHz'),
                  'cpu.cache_size': (caches[0] if caches else None, 'KB'),
                  'disk.count': (len(self.kept_disks(snap)) if parse_disks(snap) else None, ''),
                  'system.uptime': ((numbers(snap.words('proc/uptime', 2), float) or [None])[0], 's'),
                  'system.boot_time': (values.get('btime'), 's'),
                  'system.file_handles': ((numbers(snap.words('proc/sys/fs/file-nr', 3)) or [None])[0], '')}
        return known(points)

    def tick(self, snap):
        """All points of a snapshot, in the order of the modules."""
        points, memory = {}, parse_memory(snap)
        if memory:                                                  # a 32-bit kernel shows in its memory
            self.narrow = memory['vmalloctotal'][0] < 1 << 32 if 'vmalloctotal' in memory else 'lowtotal' in memory
        for module in (self.cpu, self.load, self.disk, self.network, self.memory, self.system):
            points.update(module(snap))
        return points


# ---- who it is, and when --------------------------------------------------------------------------------------------

def address(word):
    """The kernel prints it as a number in the byte order of its machine: here that of x86."""
    return ipaddress.IPv4Address(int(word, 16).to_bytes(4, 'little'))


def local_addresses(snap):
    """Addresses of this host as fib_trie lists them: a leaf, and below it `/32 host LOCAL`."""
    table, leaf, found = '', '', []
    for line in snap.lines('proc/net/fib_trie'):
        words = text_of(line).split()
        if not line.startswith(b' '):
            table = words[0]
        elif words[0] == '|--':
            leaf = words[1]
        elif words == ['/32', 'host', 'LOCAL'] and table == 'Local:' and not leaf.startswith('127.'):
            found.append(ipaddress.IPv4Address(leaf))
    return found


def identity_of(snap):
    who = dict.fromkeys(IDENTITY, '')
    who['hostname'] = text_of(snap.read('etc/hostname') or snap.read('proc/sys/kernel/hostname')).strip()
    routes = [line.split() for line in snap.lines('proc/net/route')[1:]]
    default = [r for r in routes if r[1] == r[7] == b'00000000' and int(r[3], 16) & 0x201 == 1]     # up, and no reject
    if not default:
        return who
    link = min(default, key=lambda r: int(r[6]))[0]
    connected = [r for r in routes if r[0] == link and r[2] == b'00000000' and r[7] != b'00000000']
    subnets = [ipaddress.IPv4Network('%s/%s' % (address(r[1]), address(r[7]))) for r in connected]
    who['ipv4'] = next((str(a) for a in local_addresses(snap) if any(a in net for net in subnets)), '')
    for number, _, _, scope, flags, name in (line.split() for line in snap.lines('proc/net/if_inet6')):
        if name == link and scope == b'00' and not int(flags, 16) & 0x61:           # temporary, deprecated, tentative
            who['ipv6'] = who['ipv6'] or str(ipaddress.IPv6Address(int(number, 16)))
    return who


def timestamp(when, interval):
    """The grid point when it is near, else the time of the folder; whole seconds are an int."""
    grid = round(when / interval) * interval
    when = grid if abs(when - grid) <= interval / 10 else when
    return int(when) if when.denominator == 1 else float(round(when, 3))


def payloads(folder, interval=1.0, per_core=False, interfaces=None, devices=None, partitions=False):
    """One payload per snapshot after the first, which primes, also where not one file was recorded."""
    names = sorted((name for name in os.listdir(folder) if re.match(r'[0-9]+(\.[0-9]+)?\Z', name)), key=Fraction)
    snaps, found = [Snapshot(folder, name) for name in names], []
    replay, who = Replay(per_core, interfaces, devices, partitions), identity_of(snaps[0])
    for snap in snaps:
        who = who if who['hostname'] else identity_of(snap)
        points = replay.tick(snap)
        if snap is not snaps[0]:
            found.append(dict(who, timestamp=timestamp(snap.when, Fraction(str(interval))), points=points))
    return found
