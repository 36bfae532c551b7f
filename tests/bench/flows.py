"""What a reading of TCP payload by owner costs, and one of `sockets` and `netstat`, beside 10,000 TCP sockets.

    flows.py [--sockets N] [--readings N]

Milliseconds of processor time (user and kernel, time.process_time), the median of so many readings. The sockets are
connections over 127.0.0.1 between this process and one that it starts, and ends.
"""
import argparse
import os
import resource
import socket
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import statbadger  # noqa: E402

SERVER = r'''
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
listener = socket.socket(); listener.bind(('127.0.0.1', 0)); listener.listen(4096)
print(listener.getsockname()[1], flush=True)
held = [listener.accept()[0] for i in range(int(sys.argv[1]))]
print('here', flush=True)
while True:                                             # the short ones
    link = listener.accept()[0]
    link.recv(99)
    link.close()
'''


def median_of(readings, before, read):
    """Milliseconds of read(), each behind a before(), which is not measured."""
    took = []
    for i in range(readings):
        before()
        began = time.process_time()
        read()
        took.append(1000 * (time.process_time() - began))
    return statistics.median(took)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--sockets', type=int, default=10000)
    parser.add_argument('--readings', type=int, default=15)
    asked = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    pairs = min(asked.sockets // 2, most - 100)
    server = subprocess.Popen([sys.executable, '-c', SERVER, str(pairs)], stdout=subprocess.PIPE)
    try:
        port = int(server.stdout.readline())
        links = [socket.create_connection(('127.0.0.1', port)) for i in range(pairs)]
        server.stdout.readline()
        measure(links, port, asked.readings)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def measure(links, port, readings):
    tree, flows = statbadger.host_tree(None, {}, time.monotonic), statbadger.Flows()
    options = statbadger.Options({'keys': []})

    def read_flows():
        tree.begin()
        flows.read(tree, lambda inodes: dict.fromkeys(inodes, 'us'))

    def speak(count):
        for link in links[:count]:
            link.send(b'x')

    def connect(count):
        for i in range(count):
            socket.create_connection(('127.0.0.1', port)).close()
        time.sleep(0.3)

    def parts(name):
        tree.begin()
        for part in statbadger.MODULES[name].parts:
            list(part(tree, options, memory))

    memory = {}
    read_flows()
    rows = [('flows, all idle', median_of(readings, lambda: None, read_flows)),
            ('flows, one in five spoke', median_of(readings, lambda: speak(len(links) // 5), read_flows)),
            ('flows, all spoke', median_of(readings, lambda: speak(len(links)), read_flows)),
            ('flows, 1,000 short ones came and went', median_of(readings // 3, lambda: connect(1000), read_flows)),
            ('sockets', median_of(readings, lambda: None, lambda: parts('sockets'))),
            ('netstat', median_of(readings, lambda: None, lambda: parts('netstat')))]
    print('%d TCP sockets, %d remembered, %d ends unheard' % (2 * len(links), len(flows.flows), flows.lost))
    for name, milliseconds in rows:
        print('%-40s %6.1f ms' % (name, milliseconds))
    tree.close()


if __name__ == '__main__':
    main()
