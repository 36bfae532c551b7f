"""netstat and sockets name by name beside Debian's prometheus-node-exporter and ss, in a network namespace of our own
in which there is a socket of most states."""
import collections
import json
import re
import subprocess
import sys
import time

import pytest
from conftest import PROGRAM, ROOT, clean_environment
from peer import command, require
from test_flows_peer import Talker, network_of, start      # noqa: F401

# What the modules read, as the kernel's totals: a line of JSON for each line of input.
READER = r'''
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
import statbadger
if sys.argv[2:]:
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
tree, memory = statbadger.host_tree(None, {}, time.monotonic), {}
for line in sys.stdin:
    tree.begin()
    found = {}
    for name in ('netstat', 'sockets'):
        for part in statbadger.MODULES[name].parts:
            for table, labels, row in part(tree, statbadger.Options({'keys': ['*']}), memory):
                found.update(('%s.%s' % (table.family, m.name), v) for m, v in zip(table.raw, row))
    print(json.dumps(found), flush=True)
'''
# A GET of a page in the namespace, for each line of input; the connection is closed by the time it is printed.
SCRAPER = r'''
import sys, urllib.request
for line in sys.stdin:
    text = urllib.request.urlopen(sys.argv[1], timeout=10).read().decode()
    print('%d\n%s' % (text.count('\n'), text), end='', flush=True)
'''
# Listeners of both families, connections of which one end closed, one that was reset, some in TIME_WAIT, and one that
# nobody answers, since the backlog of the listener is full.
STATES = r'''
import socket, sys, time
keep, full = [], []
for family, address in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')):
    listener = socket.socket(family)
    listener.bind((address, 0)); listener.listen(16)
    keep.append(listener)
    for i in range(3):
        keep += [socket.create_connection(listener.getsockname()[:2]), listener.accept()[0]]
    keep.pop().close()                                  # FIN_WAIT2 here, CLOSE_WAIT there
    for i in range(2):
        link, other = socket.create_connection(listener.getsockname()[:2]), listener.accept()[0]
        link.close(); other.recv(1); other.close()      # TIME_WAIT
listener = socket.socket(); listener.bind(('127.0.0.1', 0)); listener.listen(0)
keep.append(listener)
for i in range(4):
    link = socket.socket(); link.setblocking(False); link.connect_ex(listener.getsockname())
    full.append(link)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(('127.0.0.1', 0))
udp.sendto(b'to nobody', ('127.0.0.1', 9)); udp.sendto(b'to us', udp.getsockname()); udp.recv(9)
time.sleep(0.3)
print('done', flush=True)
sys.stdin.readline()
'''
# What node_exporter calls it, and what we do.
SOCKETS = {
    'node_sockstat_sockets_used': 'used', 'node_sockstat_TCP_inuse': 'tcp_inuse', 'node_sockstat_TCP_orphan': 'tcp_orphan',
    'node_sockstat_TCP_tw': 'tcp_tw', 'node_sockstat_TCP_alloc': 'tcp_alloc', 'node_sockstat_TCP_mem_bytes': 'tcp_mem',
    'node_sockstat_UDP_inuse': 'udp_inuse', 'node_sockstat_UDP_mem_bytes': 'udp_mem',
    'node_sockstat_UDPLITE_inuse': 'udplite_inuse', 'node_sockstat_RAW_inuse': 'raw_inuse',
    'node_sockstat_FRAG_inuse': 'frag_inuse', 'node_sockstat_FRAG_memory': 'frag_memory',
    'node_sockstat_TCP6_inuse': 'tcp6_inuse', 'node_sockstat_UDP6_inuse': 'udp6_inuse',
    'node_sockstat_UDPLITE6_inuse': 'udplite6_inuse', 'node_sockstat_RAW6_inuse': 'raw6_inuse',
    'node_sockstat_FRAG6_inuse': 'frag6_inuse', 'node_sockstat_FRAG6_memory': 'frag6_memory'}
PAGES = {'node_sockstat_TCP_mem', 'node_sockstat_UDP_mem'}      # the same in pages, which we do not give
# In use by all of the machine, not only by the namespace: others come and go meanwhile. {name: by how much}
MOVES = {'tcp_orphan': 50, 'tcp_alloc': 500, 'tcp_mem': 64 << 20, 'udp_mem': 16 << 20, 'frag_memory': 0, 'used': 4, 'tcp_inuse': 3}
SETTINGS = {'Ip_Forwarding', 'Ip_DefaultTTL', 'Tcp_RtoAlgorithm', 'Tcp_RtoMin', 'Tcp_RtoMax', 'Tcp_MaxConn'}
STATES_OF_SS = {'ESTAB': 'established', 'SYN-SENT': 'syn_sent', 'SYN-RECV': 'syn_recv', 'FIN-WAIT-1': 'fin_wait1',
                'FIN-WAIT-2': 'fin_wait2', 'TIME-WAIT': 'time_wait', 'CLOSE-WAIT': 'close_wait', 'LAST-ACK': 'last_ack',
                'LISTEN': 'listen', 'CLOSING': 'closing'}
OUR_STATES = {'sockets.tcp_' + state for state in STATES_OF_SS.values()}


@pytest.fixture(scope='module')
def prefix():
    with network_of('n') as argv:
        yield argv


@pytest.fixture
def reader(start, prefix):                              # noqa: F811
    states = start(Talker, '-c', STATES, prefix=prefix)
    assert states.hear() == 'done'
    reading = start(Talker, '-c', READER, ROOT, prefix=prefix)
    return lambda: json.loads(reading.say(''))


@pytest.fixture
def exporter(start, prefix):                            # noqa: F811
    """Gives {name of a metric of node_exporter: value}."""
    program = require(command('prometheus-node-exporter'), 'node_exporter', 'prometheus-node-exporter is not installed')
    port = 9100                                         # the namespace is ours
    process = subprocess.Popen(prefix + [
        program, '--web.listen-address=127.0.0.1:%d' % port, '--collector.disable-defaults', '--web.disable-exporter-metrics',
        '--collector.netstat', '--collector.netstat.fields=.*', '--collector.sockstat', '--collector.tcpstat'],
        stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while b':%04X ' % port not in subprocess.check_output(prefix + ['cat', '/proc/net/tcp']):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        scraper = start(Talker, '-c', SCRAPER, 'http://127.0.0.1:%d/metrics' % port, prefix=prefix)

        def scrape():
            lines = [scraper.hear() for i in range(int(scraper.say('')))]
            return {name: float(value) for name, value in (line.rsplit(' ', 1) for line in lines if line[:1] != '#')}
        scrape()
        yield scrape
    finally:
        process.kill()
        process.wait()


def test_every_counter_of_node_exporter_is_between_two_readings_of_ours(reader, exporter):
    before, theirs, after = reader(), exporter(), reader()
    names = {name: value for name, value in theirs.items() if name.startswith('node_netstat_')}
    assert len(names) > 200
    wrong, seen = [], set()
    for name, value in names.items():
        key = name[len('node_netstat_'):]
        if key in SETTINGS:
            continue
        ours = key.lower().replace('_', '.', 1)
        seen.add(ours)
        slack = 4 if ours == 'tcp.currestab' else 0     # that goes down too
        if not before[ours] - slack <= value <= after[ours] + slack:
            wrong.append((name, before[ours], value, after[ours]))
    assert wrong == []
    mine = {name for name in before if not name.startswith('sockets.')}
    assert {name.partition('.')[0] for name in mine - seen} <= {'icmpmsg', 'mptcpext'}, 'what it leaves out'
    for name in ('tcp.insegs', 'tcp.activeopens', 'udp.indatagrams', 'udp.noports', 'ipext.inoctets', 'ip6.inoctets', 'icmp.inmsgs'):
        assert before[name] > 0


def test_every_number_of_sockets_is_that_of_node_exporter(reader, exporter):
    before, theirs, after = reader(), exporter(), reader()
    found = {name: value for name, value in theirs.items() if name.startswith('node_sockstat_') and name not in PAGES}
    assert set(found) == set(SOCKETS)
    for name, value in found.items():
        ours = SOCKETS[name]
        low, high = sorted((before['sockets.' + ours], after['sockets.' + ours]))
        slack = MOVES.get(ours, 1 if ours == 'tcp_tw' else 0)
        assert low - slack <= value <= high + slack, (name, low, value, high)
    states = {re.search('"(.*)"', name).group(1): value for name, value in theirs.items()
              if name.startswith('node_tcp_connection_states{')}
    checked = 0
    for state, value in states.items():
        if state.endswith('_bytes'):                    # of queues
            continue
        low, high = sorted(reading['sockets.tcp_' + state] for reading in (before, after))
        slack = 2 if state in ('established', 'time_wait') else 0      # the connection of the scrape itself
        assert low - slack <= value <= high + slack, (state, low, value, high)
        checked += 1
    assert checked >= 5


def test_states_as_ss_counts_them(reader, prefix):
    ss = require(command('ss'), 'ss', 'iproute2 is not installed')
    before = reader()
    shown = collections.Counter(line.split()[0] for line in subprocess.check_output(prefix + [ss, '-tanH']).decode().splitlines())
    summary = subprocess.check_output(prefix + [ss, '-s']).decode()
    assert {state: shown[word] for word, state in STATES_OF_SS.items()} == {
        state: before['sockets.tcp_' + state] for state in STATES_OF_SS.values()}
    assert shown['LISTEN'] == 3 and shown['CLOSE-WAIT'] == 2 and shown['FIN-WAIT-2'] == 2 and shown['TIME-WAIT'] >= 4
    assert shown['SYN-SENT'] >= 1
    counts = {word: int(count) for word, count in re.findall(r'(\w+) (\d+)', re.search(r'\((.*)\)', summary).group(1))}
    assert counts['estab'] == before['tcp.currestab'] and counts['timewait'] == before['sockets.tcp_tw']
    assert before['sockets.tcp_tw'] == before['sockets.tcp_time_wait'] + 2, 'the kernel keeps an orphan in FIN_WAIT2 as one'


def test_who_is_not_root_reads_the_same(reader, start, prefix):        # noqa: F811
    before, theirs = reader(), json.loads(start(Talker, '-c', READER, ROOT, '65534', prefix=prefix).say(''))
    same = [name for name in before if name.startswith('sockets.tcp_') and name[len('sockets.'):] not in MOVES]
    assert len(same) > 10 and [before[name] for name in same] == [theirs[name] for name in same]
    assert set(before) == set(theirs)


def test_the_states_of_a_host_whose_network_is_not_ours_are_left_out(prefix, tmp_path):
    """As in a container to which the host's /proc was given, but not its network. The mount is gone with the process."""
    unshare = require(command('unshare'), 'mount namespace', 'unshare is not installed')
    for argv, states in (([unshare, '-m'], 10), (prefix, 0)):
        script = 'mount --bind /proc %s && exec %s %s -m sockets -n 1 -i 0.5 -e stdout' % (tmp_path, sys.executable, PROGRAM)
        done = subprocess.run(argv + ['sh', '-c', script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60,
                              env=clean_environment({'HOST_PROC': str(tmp_path)}))
        assert done.returncode == 0, done.stderr
        names = {name for point in json.loads(done.stdout.decode())['points'] for name in point}
        assert len([name for name in names if name in OUR_STATES]) == states and 'sockets.tcp_inuse' in names
        assert (b'another network namespace' in done.stderr) == (not states)
