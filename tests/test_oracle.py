"""The oracle is only worth something if it is right itself: numbers here were worked out by hand from the files."""
import os

import pytest
from hosts import make_hosts
from oracle import payloads

HOSTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'hosts')


def ticks(name, **options):
    """[{flat name: value}] of a frozen host."""
    return [{flat: value for flat, (value, unit) in payload['points'].items()}
            for payload in payloads(os.path.join(HOSTS, name), **options)]


def of(points, family, instance):
    """What one instance has: {metric: value}."""
    return {flat[len(family) + 1:-len(instance) - 1]: value for flat, value in points.items()
            if flat.startswith(family + '.') and flat.endswith('.' + instance)}


STATES = ('user', 'nice', 'system', 'idle', 'iowait', 'irq', 'softirq', 'steal', 'guest', 'guest_nice')


def states(parts, instance=''):
    """{'cpu.user': percent, ...} from the parts of a total."""
    return {'cpu.' + name + instance: pytest.approx(100.0 * part / sum(parts)) for name, part in zip(STATES, parts)}


def test_linux_2_6_9_by_hand():
    found = ticks('linux-2.6.9', partitions=True)
    first = found[0]
    assert {k: v for k, v in first.items() if k.startswith('cpu.')} == dict(
        states((39, 4, 7, 66, 7, 0, 0)),                            # no steal, no guest: absent, not 0
        **{'cpu.ctxt_per_sec': 1971, 'cpu.ctxt_per_sec_per_core': 985.5, 'cpu.procs_forked_per_sec': 31,
           'cpu.intr_per_sec': 785, 'cpu.procs_running': 1, 'cpu.procs_blocked': 1, 'cpu.cores': 2,
           'cpu.speed': (2300 + 2350.125) / 2, 'cpu.cache_size': 8192})
    # hda 102247 207189 174453 78459 295141 183231 109132 19467 0 157078 29435
    # hda 102262 207196 174573 78530 295178 183260 109724 19590 1 157429 29629
    assert of(found[1], 'disk', 'hda') == {
        'reads': 15, 'reads_merged': 7, 'read_sectors': 120, 'read_time': 71, 'writes': 37, 'writes_merged': 29,
        'write_sectors': 592, 'write_time': 123, 'io': 1, 'io_time': 351, 'io_weighted_time': 194,
        'read_thruput': 120 * 512, 'write_thruput': 592 * 512, 'util': pytest.approx(35.1), 'queue': 0.194,
        'await': pytest.approx((71 + 123) / 52.0), 'read_await': pytest.approx(71 / 15.0),
        'write_await': pytest.approx(123 / 37.0), 'request_size': pytest.approx((120 + 592) / 2 / 52.0)}
    # hda1 155009 290048 83926 176636, then 155029 290208 83926 176636
    assert of(found[1], 'disk', 'hda1') == {
        'reads': 20, 'read_sectors': 160, 'writes': 0, 'write_sectors': 0, 'read_thruput': 81920, 'write_thruput': 0,
        'request_size': 4}
    assert (found[1]['net.rx_bytes.eth0'], found[1]['net.rx_bits.eth0'], found[1]['net.rx_packets.eth0'],
            found[1]['net.rx_fifo.eth0'], found[1]['net.tx_bytes.eth0']) == (1110486, 8883888, 1794, 1, 1024455)
    assert 'net.rx_bytes.lo' not in found[1] and 'disk.reads.ram0' not in found[1]
    assert 'disk.reads.hda1' not in ticks('linux-2.6.9')[1]


def test_linux_6_18_divides_by_the_time_that_passed():
    late = payloads(os.path.join(HOSTS, 'linux-6.18'))
    assert [p['timestamp'] for p in late] == [1700000001, 1700000002, 1700000003.25, 1700000004]
    assert [type(p['timestamp']) for p in late] == [int, int, float, int]
    # 89639 240164 36685 236579 115450 265528 168124 166848 0 269928 98725 70088 251608 297735 298931 134941 155425
    # 89648 240165 36765 236649 115498 265548 168892 166922 1 270222 98869 70095 251608 298183 298938 134943 155429
    found = of(ticks('linux-6.18')[2], 'disk', 'nvme1n1')           # 1.252 s after the one before
    assert found['reads'] == pytest.approx(9 / 1.252) and found['flush_time'] == pytest.approx(4 / 1.252)
    assert found['await'] == (70 + 74 + 7) / 64.0 and found['request_size'] == (80 + 768 + 448) / 2 / 64.0
    assert found['util'] == pytest.approx(100 * 0.294 / 1.252) and found['queue'] == pytest.approx(0.144 / 1.252)
    memory = ticks('linux-6.18')[2]
    assert memory['mem.used'] == (2000000 - 1170009) * 1024 and memory['mem.used_percent'] == pytest.approx(41.49955)
    assert {k: late[0][k] for k in ('hostname', 'ipv4', 'ipv6', 'zone')} == {
        'hostname': 'current', 'ipv4': '192.0.2.17', 'ipv6': 'fd00::11', 'zone': ''}


def test_units():
    points = payloads(os.path.join(HOSTS, 'linux-5.10'))[0]['points']
    assert {flat: points[flat][1] for flat in (
        'cpu.user', 'cpu.ctxt_per_sec', 'load.one', 'disk.reads.sda', 'disk.read_time.sda', 'disk.read_thruput.sda',
        'disk.await.sda', 'disk.util.sda', 'disk.request_size.sda', 'disk.queue.sda', 'net.rx_bytes.eth0', 'net.rx_bits.eth0',
        'net.rx_errs.eth0', 'mem.memtotal', 'mem.hugepages_total', 'mem.used_percent', 'cpu.speed', 'cpu.cache_size',
        'system.uptime', 'system.file_handles')} == {
        'cpu.user': 'percent', 'cpu.ctxt_per_sec': '', 'load.one': '', 'disk.reads.sda': '', 'disk.read_time.sda': 'ms/s',
        'disk.read_thruput.sda': 'B/s', 'disk.await.sda': 'ms', 'disk.util.sda': 'percent', 'disk.request_size.sda': 'KB',
        'disk.queue.sda': '', 'net.rx_bytes.eth0': 'B/s', 'net.rx_bits.eth0': 'bit/s', 'net.rx_errs.eth0': '',
        'mem.memtotal': 'B', 'mem.hugepages_total': '', 'mem.used_percent': 'percent', 'cpu.speed': 'MHz',
        'cpu.cache_size': 'KB', 'system.uptime': 's', 'system.file_handles': ''}


def test_network_files_of_process_1_and_the_address_of_the_better_default_route():
    payload = payloads(os.path.join(HOSTS, 'linux-5.10'))[1]
    assert payload['points']['net.rx_bytes.eth0'] == (65098, 'B/s') and 'net.rx_bytes.eth7' not in payload['points']
    assert (payload['ipv4'], payload['ipv6']) == ('172.16.0.20', '2001:db8:0:1::20')


def test_backwards_by_hand():
    found = ticks('backwards', per_core=True)
    first, second, third, fourth = [{k: v for k, v in points.items() if k.split('.')[1] in STATES} for points in found]
    total, cpu0, cpu1 = (16, 5, 15, 77, 0, 0, 0, 5, 4, 0), (6, 5, 5, 0, 0, 0, 0, 5, 4, 0), (10, 0, 10, 80, 0, 0, 0, 0, 0, 0)
    assert first == dict(states(total), **dict(states(cpu0, '.cpu0'), **states(cpu1, '.cpu1')))
    total = cpu0 = (0, 0, 0, 93, 0, 0, 0, 0, 6, 0)                  # guest grew by 6, user by 2; cpu1 did not grow at all
    assert second == dict(states(total), **states(cpu0, '.cpu0'))
    assert 'cpu.intr_per_sec' not in found[1] and found[1]['cpu.ctxt_per_sec'] == 1000
    assert of(third, 'cpu', 'cpu0')['idle'] == pytest.approx(100 * 90 / 93.0) and third['cpu.nice.cpu0'] == 0
    assert of(fourth, 'cpu', 'cpu0') == {} and fourth['cpu.idle.cpu1'] == 80     # seven of ten fell
    assert fourth['cpu.idle'] == pytest.approx(100 * 79 / (8 + 0 + 9 + 79 + 0 + 0 + 0 + 1 + 1 + 1.0))


def test_wraps_by_hand():
    for name, narrow in (('wraps', True), ('wraps-64', False)):
        idle, found, after = ticks(name)
        assert idle['disk.reads.sda'] == 0 and 'disk.await.sda' not in idle
        sda = of(found, 'disk', 'sda')
        assert (sda['read_time'], sda['write_time'], sda['io_time'], sda['io_weighted_time']) == (150, 400, 900, 1000)
        assert (sda['await'], sda['util'], sda['queue']) == (pytest.approx(550 / 30.0), 90, 1)
        sdb = of(found, 'disk', 'sdb')
        assert [sdb.get(k) for k in ('reads', 'await', 'read_await', 'request_size')] == (
            [10, 5.5, 5, 4] if narrow else [None] * 4)
        assert sdb['write_await'] == 6 and sdb['read_thruput'] == 40960
        assert of(found, 'disk', 'sdc') == {'io': 3} and of(after, 'disk', 'sdc')['reads'] == 4
        sdd = of(found, 'disk', 'sdd')
        assert not {'reads', 'await', 'read_await', 'request_size'} & set(sdd) and sdd['write_await'] == 1
        assert [found.get('net.%s.eth0' % k) for k in ('rx_bytes', 'rx_bits', 'tx_bytes')] == (
            [1500, 12000, 5000] if narrow else [None] * 3)
        assert 'net.tx_packets.eth1' not in found and found['net.tx_bytes.eth1'] == 1000
        assert of(found, 'net', 'eth2') == {} and of(after, 'net', 'eth2')['rx_bytes'] == 64
        assert 'net.rx_bytes.eth3' not in found and found['net.tx_bytes.eth3'] == 1001
        assert len(of(found, 'net', 'eth4')) == 8 + 2                # half of the columns, and the two in bits
        assert 'cpu.ctxt_per_sec' not in found and 'cpu.intr_per_sec' in found


def test_hotplug_by_hand():
    found = ticks('hotplug', per_core=True)
    assert [points['cpu.cores'] for points in found] == [2, 1, 1, 2, 2, 2]
    assert ['cpu.idle.cpu1' in points for points in found] == [True, False, False, False, True, True]
    assert ['net.rx_bytes.eth1' in points for points in found] == [True, False, False, False, True, True]
    assert [sorted(of(points, 'disk', 'sdb'))[:2] for points in found[1:4]] == [[], [], ['io']]
    assert of(found[2], 'disk', 'sda') == {'io': 5} and 'disk.reads.sda' in found[3]
    assert [points['disk.count'] for points in found] == [2, 1, 1, 2, 2, 2]


def test_garbage_by_hand():
    first, empty, torn, short, last = ticks('garbage', per_core=True)
    assert not [k for k in first if k.endswith(('.cpu0', '.sdb', '.eth2')) or k in (
        'cpu.intr_per_sec', 'mem.buffers', 'load.one', 'system.uptime', 'system.file_handles')]
    assert first['cpu.cores'] == 2 and first['cpu.speed'] == 2350.125 and first['cpu.cache_size'] == 8192
    assert {k for k in first if k.startswith('mem.')} - {k for k in torn if k.startswith('mem.')} == set()
    assert first['mem.big'] == (2 ** 64 - 1) * 1024 and first['mem.odd'] == 2 ** 53 + 1
    assert {k.split('.')[-1] for k in empty} == {'sda', 'sdb', 'sdc', 'count'} and of(empty, 'disk', 'sdb') == {'io': 1}
    # cpu2, two seconds before: 118920 110792 46539 7808 86410 28003 55821 11721 81111 47566
    # cpu2, now:                118938 110794 46550 7914 86415 28003 55822 11723 81116 47567
    parts = states((13, 1, 11, 106, 5, 0, 1, 2, 5, 1), '.cpu2')
    assert {k: v for k, v in torn.items() if k.endswith('.cpu2')} == parts
    assert not {'cpu.procs_running', 'mem.torn', 'disk.io.sde', 'net.rx_bytes.eth5'} & set(torn)
    assert {'load.one', 'system.uptime', 'system.file_handles', 'disk.reads.sdb'} <= set(torn)
    assert not [k for k in short if k.endswith('.sdc') or k.startswith(('load.', 'net.'))]
    assert last['net.rx_bytes.eth0'] == (472467828 - 469660370) / 2 and 'disk.reads.sdc' not in last


def test_odd_names_by_hand():
    points = ticks('odd-names')[0]
    assert [k[len('net.rx_bytes.'):] for k in points if k.startswith('net.rx_bytes.')] == [
        'a;b$(x)', 'eth0.100', '\ufffd\ufffd', '\x1b[31m', '"q\'`\\', 'abcdefghijklmno', 'eth0:1', 'eth0', '%s%d', 'z\xfcrich', 'br']
    assert points['net.rx_bytes.\ufffd\ufffd'] == 487182007 - 484047564          # the first of two that look alike
    assert [k[len('disk.reads.'):] for k in points if k.startswith('disk.reads.')] == [
        'cciss/c0d0', 'ida/c1d15', 'odd!disk', 'a%s', 'sdq', 'sdqa', 'mmcblk0', 'mmcblk0boot0']


def test_missing_by_hand():
    found = payloads(os.path.join(HOSTS, 'missing'))
    assert [p['timestamp'] - 1700000000 for p in found] == [1, 2, 3, 4, 5, 6, 7]
    assert found.pop(3)['points'] == {}         # nothing at all was read at 4
    points = [{k: v for k, (v, unit) in p['points'].items()} for p in found]
    # cpu  142411 181261 16409 61116 121187 46480 48357 54554 91343 96853, and 17036641 context switches
    # cpu  142477 181267 16429 61214 121199 46480 48360 54558 91346 96856, and 17041294, two seconds later
    parts = states((63, 3, 20, 98, 12, 0, 3, 4, 3, 3))
    assert {k: v for k, v in points[1].items() if k in parts} == parts
    assert points[1]['cpu.ctxt_per_sec'] == 4653 / 2.0 and points[1]['cpu.ctxt_per_sec_per_core'] == 4653 / 4.0
    assert 'cpu.cores' not in points[0] and 'cpu.speed' in points[0] and 'disk.reads.sda' in points[0]
    assert not [k for k in points[1] if k.startswith(('disk.', 'mem.'))]
    assert [p['disk.count'] for p in points if 'disk.count' in p] == [3] * 5


@pytest.mark.parametrize('name', sorted(make_hosts.HOSTS))
def test_the_hosts_are_what_their_generator_makes(name, tmp_path):
    make_hosts.write(make_hosts.HOSTS[name](), str(tmp_path))

    def tree(top):
        found = {}
        for folder, folders, files in os.walk(top):
            for entry in folders + files:
                place = os.path.join(folder, entry)
                if os.path.islink(place):
                    found[os.path.relpath(place, top)] = os.readlink(place)
                elif entry in files:
                    with open(place, 'rb') as file:
                        found[os.path.relpath(place, top)] = file.read()
        return found
    assert tree(str(tmp_path)) == tree(os.path.join(HOSTS, name))
