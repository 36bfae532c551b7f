"""Kernel text cut, shuffled and mangled: no exception leaves a module, no number is invented.

FUZZ_SEED repeats a run, FUZZ_SECONDS prolongs it."""
import os
import random
import time

import pytest
import statbadger
from conftest import options

SEED = int(os.environ.get('FUZZ_SEED') or random.randrange(1 << 30))
SECONDS = float(os.environ.get('FUZZ_SECONDS') or 1)

FILES = {
    'proc/stat': b'cpu  2255 34 2290 22625563 6290 127 456 11 12 13\ncpu0 1132 34 1441 11311718 3675 127 438 1 2 3\n'
                 b'cpu1 1123 0 849 11313845 2614 0 18 4 5 6\nintr 114930548 113199788 3 0 5\nctxt 1990473\n'
                 b'btime 1062191376\nprocesses 2915\nprocs_running 1\nprocs_blocked 0\nsoftirq 183433 0 21755\n',
    'proc/loadavg': b'0.01 0.04 0.05 2/321 4242\n',
    'proc/diskstats': b'   8       0 sda 4312 120 98765 4321 2100 340 45678 987 0 4567 5678 1 2 3 4 5 6\n'
                      b'   8       1 sda1 312 20 8765 321 100 40 5678 87 0 567 678 1 2 3 4 5 6\n'
                      b' 253       0 dm-0 99 0 88 77 66 0 55 44 3 33 22\n   7       0 loop0 1 2 3 4 5 6 7 8 9 10 11\n',
    'proc/net/dev': b'Inter-|   Receive                            |  Transmit\n'
                    b' face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets\n'
                    b'    lo: 2776770   11307    0    0    0     0          0         0  2776770   11307    0    0    0     0       0          0\n'
                    b'  eth0: 1215645    2751    1    2    3     4          5         6  1782404    4324    7    8    9   427      10         11\n'
                    b'eth0.100:12345678 1 0 0 0 0 0 0 87654321 1 0 0 0 0 0 0\n',
    'proc/meminfo': b'MemTotal:       24684092 kB\nMemFree:        24535440 kB\nMemAvailable:   24448788 kB\n'
                    b'Buffers:             720 kB\nCached:            31732 kB\nActive(anon):       4567 kB\n'
                    b'SReclaimable:       9876 kB\nVmallocTotal:   34359738367 kB\nHugePages_Total:       5\n',
    'proc/cpuinfo': b'processor\t: 0\ncpu MHz\t\t: 2899.998\ncache size\t: 36608 KB\n\nprocessor\t: 1\ncpu MHz\t\t: 2899.998\n',
    'proc/uptime': b'350735.47 234388.90\n',
    'proc/sys/fs/file-nr': b'1184\t0\t9223372036854775807\n',
    'proc/vmstat': b'nr_free_pages 6133\nnr_dirtied 48\nworkingset_nodes 7\npgpgin 24578813\npgpgout 4711\noom_kill 3\n',
    'proc/pressure/io': b'some avg10=1.25 avg60=0.09 avg300=0.17 total=370871139\nfull avg10=0.00 avg60=0.09 avg300=0.14 total=105326564\n',
}
PIECES = [b'', b' ', b'\n', b'\0', b':', b'-', b'-1', b'nan', b'inf', b'1e9', b'1_0', b'+5', b'0x10', b'9' * 400,
          b'18446744073709551616', b'\xff\xfe', b'\xc2\xa0', '\u0663'.encode(), b'.', b'..', b'/', b'kB', b'cpu', b'\x1b[2J']
DISK = options(devices=['*', '!loop*'], partitions=False)
OPTIONS = {'cpu': options(per_core=True), 'disk': DISK, 'network': options(interfaces=['*']),
           'system': options(disk=DISK), 'vmstat': options(keys=['*'])}
STOCK = ('cpu', 'load', 'disk', 'network', 'memory', 'system', 'vmstat', 'pressure')


class Text:
    """What a module asks of a Tree, answered from a dict."""
    foreign = False

    def __init__(self, files):
        self.files, self.when, self.bad_lines, self.known = files, 0.0, 0, {}

    def read(self, name):
        if not self.files.get(name):
            raise statbadger.Absent(name)
        self.when += 1
        return self.files[name]

    def glance(self, name, most=4096):
        raise FileNotFoundError(name)

    def list(self, name):
        raise statbadger.Absent(name)

    def ask(self, what, question):
        return question(self)

    def bad_line(self):
        self.bad_lines += 1


def parts(tree):
    return [statbadger.Parts(name, statbadger.MODULES[name].parts, OPTIONS.get(name), tree, lambda *said: None,
                             patient=False) for name in STOCK]


def raw(tree):
    """{(family, labels, column): number} of one reading, as it stands."""
    out = {}
    for name in STOCK:
        memory = {}
        for part in statbadger.MODULES[name].parts:
            try:
                for table, labels, row in part(tree, OPTIONS.get(name), memory):
                    for metric, value in zip(table.raw, row):
                        if value == value and metric.kind not in statbadger.HIDDEN:
                            out[table.family, labels, metric.name] = value
            except (statbadger.Absent, ValueError, IndexError):
                pass
    return out


@pytest.mark.parametrize('name', sorted(FILES))
def test_a_file_cut_at_any_byte_invents_no_number(name):
    whole = raw(Text(FILES))
    computed = {'used', 'used_percent', 'count', 'cores', 'speed'}
    for end in range(len(FILES[name])):
        found = raw(Text(dict(FILES, **{name: FILES[name][:end]})))
        for key, value in found.items():
            assert key in whole and (whole[key] == value or key[2] in computed), (end, key, value)


def mangle(random_, data):
    """A few cuts, copies, swaps and odd pieces at random places."""
    for _ in range(random_.randrange(1, 4)):
        at, end = sorted((random_.randrange(len(data) + 1), random_.randrange(len(data) + 1)))
        kind = random_.randrange(6)
        if kind == 0:
            data = data[:at] + random_.choice(PIECES) + data[at:]
        elif kind == 1:
            data = data[:at] + random_.choice(PIECES) + data[min(end, at + 8):]
        elif kind == 2:
            data = data[:at] + data[min(end, at + 40):]
        elif kind == 3:
            data = data[:end] + data[at:]
        elif kind == 4:
            words = data.split(b' ')
            words[random_.randrange(len(words))] = random_.choice(PIECES)
            data = b' '.join(words)
        else:
            lines = data.split(b'\n')
            random_.shuffle(lines)
            data = b'\n'.join(lines)
    return data


def test_mangled_files_never_raise_and_give_finite_numbers_that_make_sense(capsys):
    random_, end, runs = random.Random(SEED), time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        runs += 1
        tree = Text(dict(FILES))
        modules = parts(tree)
        for reading in range(3):
            tree.files = {name: mangle(random_, data) if random_.random() < 0.7 else data for name, data in FILES.items()}
            for one in modules:
                for series, values in one.read(float(reading), random_.random() < 0.5):
                    assert len(series) == len(values)
                    for s, v in zip(series, values):
                        where = (SEED, runs, s.flat, v)
                        assert v != v or 0 <= v < 1e300, where
                        assert s.unit != 'percent' or v != v or v <= 100.0000001, where
    with capsys.disabled():
        print(' [seed %d: %d hosts]' % (SEED, runs), end='')


def test_the_pipeline_turns_mangled_files_into_json_that_others_read():
    import json
    random_, end = random.Random(SEED), time.monotonic() + SECONDS
    payload = statbadger.PayloadJson()
    pretty = statbadger.PayloadJson(pretty=True)
    identity = dict.fromkeys(statbadger.IDENTITY_KEYS, 'x"\\\n\u20ac')
    while time.monotonic() < end:
        tree = Text(FILES)
        modules = parts(tree)
        for reading in range(2):
            tree.files = {name: mangle(random_, data) for name, data in FILES.items()}
            found = [pair for one in modules for pair in one.read(float(reading))]
            series = tuple(s for names, values in found for s in names)
            values = [v for names, numbers in found for v in numbers]
            frame = statbadger.Frame(1000, 1, identity, statbadger.Layout(series), statbadger.array('d', values))
            texts = [json.loads(p.text(frame)) for p in (payload, pretty)]
            assert texts[0] == texts[1], SEED
            expected = [(s.flat, float(v)) for s, v in zip(series, values) if v == v]
            got = [(name, float(point['value'])) for entry in texts[0]['points'] for name, point in entry.items()]
            assert [g[0] for g in got] == [e[0] for e in expected], SEED
            assert all(abs(g[1] - e[1]) <= abs(e[1]) * 1e-11 for g, e in zip(got, expected)), SEED
