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


def pair(start, address, prefix=()):
    """(server, client): two processes; the client knows the server's port, which is client.port."""
    server = start(Talker, '-c', SERVER, address, prefix=prefix)
    port = server.hear()
    client = start(Talker, '-c', CLIENT, address, port, prefix=prefix)
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
