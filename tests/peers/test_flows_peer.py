"""TCP payload by owner, against the kernel's own sockets: what two processes sent each other, ss, and a pair of
virtual interfaces."""
import json
import os
import re
import subprocess
import sys
import time

import pytest
from peer import command, require

METER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'flows_meter.py')

# Takes connections, one after the other: reads until so many bytes have come, answers so many, reads to the end.
SERVER = r'''
import socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
listener = socket.socket(family)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[1], 0)); listener.listen(128)
print(listener.getsockname()[1], flush=True)
while True:
    link, peer = listener.accept()
    head = b''
    while len(head) < 20:
        head += link.recv(20 - len(head))
    asked, answer = int(head[:10]), int(head[10:])
    rest = asked - 20
    while rest:
        rest -= len(link.recv(min(rest, 1 << 20)))
    link.sendall(bytes(answer))
    assert link.recv(1) == b''
    link.close()
'''
# For each line `COUNT ASKED ANSWER`: so many connections, one after the other; a word when they are done. A line
# `hold ASKED ANSWER` leaves the connection open, and the next line closes it.
CLIENT = r'''
import socket, sys
held = None
for line in sys.stdin:
    count, asked, answer = line.split()
    if held:
        held.close()
    for i in range(1 if count == 'hold' else int(count)):
        link = socket.create_connection((sys.argv[1], int(sys.argv[2])))
        link.sendall(b'%010d%010d' % (int(asked), int(answer)))
        left, piece = int(asked) - 20, bytes(1 << 20)
        while left:
            left -= link.send(piece[:left])
        rest = int(answer)
        while rest:
            rest -= len(link.recv(min(rest, 1 << 20)))
        if count == 'hold':
            held = link
        else:
            link.close()
    print('done', flush=True)
'''


class Talker:
    """A process that is spoken to by lines; ended by its pid."""

    def __init__(self, *argv, prefix=()):
        self.process = subprocess.Popen(list(prefix) + [sys.executable] + list(argv), stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, universal_newlines=True)
        self.pid = str(self.process.pid)

    def say(self, line):
        self.process.stdin.write(line + '\n')
        self.process.stdin.flush()
        return self.hear()

    def hear(self):
        line = self.process.stdout.readline()
        assert line, 'it ended with %s' % self.process.wait()
        return line.strip()

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Meter(Talker):
    def __init__(self, *arguments, prefix=()):
        Talker.__init__(self, METER, *arguments, prefix=prefix)
        self.total, self.lost, self.news = {}, 0, []
        self.read()
        self.total.clear()

    def read(self):
        """A reading; .total adds up what it says of each owner."""
        found = json.loads(self.say(''))
        for who, row in found['owners'].items():
            self.total[who] = [a + b for a, b in zip(self.total.get(who, [0, 0, 0]), row)]
        self.lost, self.news = found['lost'], self.news + found['news']
        return found

    def settle(self, enough, seconds=20):
        """Readings until enough(total), which waits for what the kernel says a little later."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.read()
            if enough(self.total) or time.monotonic() > deadline:
                return found
            time.sleep(0.2)


@pytest.fixture
def start():
    """start(class, *arguments) -> a Talker that is ended after the test."""
    started = []

    def starter(kind, *arguments, **more):
        started.append(kind(*arguments, **more))
        return started[-1]
    yield starter
    for talker in started:
        talker.end()


@pytest.fixture
def namespace():
    """The argv that runs a program in a network namespace of its own, whose loopback is up."""
    with network_of('a') as prefix:
        yield prefix


class network_of:
    """A network namespace for the length of a `with`."""

    def __init__(self, letter):
        self.name = 'statbadger-%d-%s' % (os.getpid(), letter)

    def __enter__(self):
        ip = require(command('ip'), 'iproute2', 'ip is not installed')
        require(os.geteuid() == 0, 'network namespace', 'needs root')
        made = subprocess.run([ip, 'netns', 'add', self.name], stderr=subprocess.PIPE)
        require(not made.returncode, 'network namespace', made.stderr.decode().strip())
        self.prefix = [ip, 'netns', 'exec', self.name]
        subprocess.check_call(self.prefix + [ip, 'link', 'set', 'lo', 'up'])
        return self.prefix

    def __exit__(self, *error):
        subprocess.check_call([command('ip'), 'netns', 'del', self.name])


def pair(start, address, prefix=(), to=None):
    """(server, client): two processes; the client knows the server's port, which is client.port. to: the address that
    it connects to, where that is another one."""
    server = start(Talker, '-c', SERVER, address, prefix=prefix)
    port = server.hear()
    client = start(Talker, '-c', CLIENT, to or address, port, prefix=prefix)
    client.port = port
    return server, client


def test_a_long_connection_and_two_thousand_short_ones_are_exact_to_the_byte(start, namespace):
    """All bytes of a namespace in which nobody else speaks."""
    server, client = pair(start, '127.0.0.1', namespace)
    meter = start(Meter, prefix=namespace)
    assert client.say('hold 60000000 40000000') == 'done'
    found = meter.read()
    assert found['owners'][client.pid] == [40000000, 60000000, found['owners'][client.pid][2], 1]
    assert found['owners'][server.pid][:2] == [60000000, 40000000]
    assert client.say('2000 1234 4321') == 'done'
    asked, answered = 2000 * 1234, 2000 * 4321
    meter.settle(lambda total: sum(row[0] for row in total.values()) >= 100000000 + asked + answered)
    assert meter.lost == 0 and meter.news == []
    assert meter.total[server.pid][:2] == [60000000 + asked, 40000000 + answered]
    known, unknown = meter.total[client.pid], meter.total['None']
    assert [known[0] + unknown[0], known[1] + unknown[1]] == [40000000 + answered, 60000000 + asked]
    assert unknown[0] >= answered // 2, 'nearly all short ones were in no dump'
    assert set(meter.total) == {server.pid, client.pid, 'None'}


@pytest.mark.parametrize('address, to', [('::1', '::1'), ('::', '127.0.0.1')])
def test_ipv6_and_a_listener_that_takes_both(start, namespace, address, to):
    server, client = pair(start, address, namespace, to)
    meter = start(Meter, prefix=namespace)
    assert client.say('hold 3000000 20') == 'done'
    found = meter.read()['owners']
    assert found[server.pid][:2] == [3000000, 20] and found[client.pid][:2] == [20, 3000000]
    assert client.say('100 5000 77') == 'done'
    meter.settle(lambda total: sum(row[0] for row in total.values()) >= 3000020 + 507700)
    assert meter.total[server.pid][:2] == [3500000, 7720]
    assert [sum(column) for column in zip(*meter.total.values())][:2] == [3507720, 3507720]


def test_who_is_not_root_sees_all_bytes_and_only_its_own_owners(start, namespace):
    """uid 65534 may not look at what the others hold, and everything is None's."""
    server, client = pair(start, '127.0.0.1', namespace)
    meter = start(Meter, '65534', prefix=namespace)
    assert client.say('hold 1000000 2000000') == 'done'
    found = meter.read()['owners']
    assert found['None'][:2] == [3000000, 3000000] and found['None'][3] == 2 and list(found) == ['None']
    assert client.say('50 1000 2000') == 'done'         # few: its buffer is as small as net.core.rmem_max says
    meter.settle(lambda total: total['None'][0] >= 3150000)
    assert meter.total['None'][:2] == [3150000, 3150000] and meter.lost == 0


def test_live_connections_as_ss_shows_them(start, namespace):
    ss = require(command('ss'), 'ss', 'iproute2 is not installed')
    server, client = pair(start, '127.0.0.1', namespace)
    meter = start(Meter, prefix=namespace)
    assert client.say('hold 12345678 8765432') == 'done'
    meter.read()
    shown = subprocess.check_output(namespace + [ss, '-tinOH', 'state', 'established', 'sport = :%s' % client.port])
    fields = {key: int(value) for key, value in re.findall(r'(bytes_\w+):(\d+)', shown.decode())}
    received, sent, retrans = meter.total[server.pid][:3]
    assert received == fields['bytes_received'] == 12345678
    assert sent == fields['bytes_sent'] - fields.get('bytes_retrans', 0) == fields['bytes_acked'] == 8765432
    assert retrans == fields.get('bytes_retrans', 0)


def test_what_was_there_before_counts_from_where_it_stood(start, namespace):
    server, client = pair(start, '127.0.0.1', namespace)
    assert client.say('hold 7000000 20') == 'done'
    meter = start(Meter, prefix=namespace)
    assert client.say('hold 3000000 20') == 'done'      # ends the first one, and begins another
    meter.settle(lambda total: server.pid in total and total[server.pid][0] >= 3000000)
    assert meter.total[server.pid][:2] == [3000000, 20]
    assert meter.total[client.pid][:2] == [20, 3000000]


def test_the_sum_of_a_pair_of_virtual_interfaces(start, namespace):
    """/proc/net/dev counts a header of 14 + 20 + 32 bytes per packet, of up to 64 kB, also of those that only
    acknowledge."""
    ip = command('ip')
    with network_of('b') as other:
        pair_of = 'link add sb0 type veth peer name sb1 netns'.split()
        made = subprocess.run(namespace + [ip] + pair_of + [other[3]], stderr=subprocess.PIPE)
        require(not made.returncode, 'veth', made.stderr.decode().strip())
        for prefix, name, address in ((namespace, 'sb0', '10.98.0.1/24'), (other, 'sb1', '10.98.0.2/24')):
            subprocess.check_call(prefix + [ip, 'address', 'add', address, 'dev', name])
            subprocess.check_call(prefix + [ip, 'link', 'set', name, 'up'])
        server = start(Talker, '-c', SERVER, '10.98.0.1', prefix=namespace)
        client = start(Talker, '-c', CLIENT, '10.98.0.1', server.hear(), prefix=other)
        meter, far = start(Meter, prefix=namespace), start(Meter, prefix=other)
        before = interface(namespace, 'sb0')
        assert client.say('hold 50000000 30000000') == 'done'
        assert client.say('500 40000 20') == 'done'
        meter.settle(lambda total: sum(row[0] for row in total.values()) >= 70000000)
        far.settle(lambda total: sum(row[1] for row in total.values()) >= 70000000)
        after = interface(namespace, 'sb0')
    doubled = sum(row[2] for row in far.total.values())         # sent again by the client
    received, sent, again = [sum(column) for column in zip(*meter.total.values())][:3]
    assert [received, sent] == [70000000, 30010000]
    moved = [b - a for a, b in zip(before, after)]
    for payload, size, packets in ((received + doubled, moved[0], moved[1]), (sent + again, moved[2], moved[3])):
        assert abs(size - 66 * packets - payload) < payload * 0.01, (payload, size, packets)


def interface(prefix, name):
    """[bytes received, packets, bytes sent, packets] of an interface."""
    for line in subprocess.check_output(prefix + ['cat', '/proc/net/dev']).decode().split('\n'):
        if line.strip().startswith(name + ':'):
            words = line.partition(':')[2].split()
            return [int(words[i]) for i in (0, 1, 8, 9)]


STORM = r'''
import socket, sys
listener = socket.socket(); listener.bind(('127.0.0.1', 0)); listener.listen(8)
for i in range(int(sys.argv[1])):
    link = socket.create_connection(listener.getsockname()); other = listener.accept()[0]
    link.close(); other.close()
print('done', flush=True)
'''


def drops(prefix):
    """What found no room in a netlink socket of the namespace that hears of the end of TCP sockets."""
    lines = subprocess.check_output(prefix + ['cat', '/proc/net/netlink']).decode().split('\n')[1:-1]
    return sum(int(words[8]) for words in map(str.split, lines) if words[1] == '4' and words[3] == '00000005')


def test_a_storm_that_overruns_the_buffer_is_counted_and_said_once(start, namespace):
    """Who is not root has a buffer of net.core.rmem_max for the ends of sockets between two readings."""
    meter = start(Meter, '65534', prefix=namespace)
    with open('/proc/sys/net/core/rmem_max') as file:
        room = 2 * int(file.read()) // 640              # each takes more than 640 bytes of it
    require(room < 40000, 'storm', 'net.core.rmem_max is so large that no storm of ours fills it')
    count = room // 2 + 2000
    for i in range(2):
        storm, before = start(Talker, '-c', STORM, str(count), prefix=namespace), meter.lost
        assert storm.hear() == 'done'
        deadline = time.monotonic() + 30
        while drops(namespace) == before and time.monotonic() < deadline:
            time.sleep(0.1)                             # the kernel says it in a thread of its own
        meter.settle(lambda total: meter.lost == drops(namespace) > before)
        assert meter.lost == drops(namespace) > before
    assert len(meter.news) == 1 and 'net.core.rmem_max' in meter.news[0]
    meter.total.clear()
    server, client = pair(start, '127.0.0.1', namespace)
    assert client.say('10 1000 500') == 'done'          # and it goes on
    meter.settle(lambda total: total['None'][0] >= 15000)
    assert meter.total['None'][:2] == [15000, 15000]
