"""proc/net/snmp, netstat, snmp6, sockstat, and the states of TCP sockets; every kernel has other columns."""
import json
import socket

import pytest
import statbadger
from conftest import options
from statbadger import Absent, Parts
from test_flows import DONE, message

SNMP = '''Ip: Forwarding DefaultTTL InReceives InHdrErrors OutRequests
Ip: 2 64 100 1 90
Icmp: InMsgs InErrors OutMsgs InDestUnreachs
Icmp: 7 1 6 5
IcmpMsg: InType3 OutType3
IcmpMsg: 5 4
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens CurrEstab InSegs
Tcp: 1 200 120000 -1 11 3 1000
Udp: InDatagrams NoPorts IgnoredMulti
Udp: 21 22 23
'''
NETSTAT = '''TcpExt: SyncookiesSent ListenDrops TCPTimeouts TW TCPHPHits
TcpExt: 1 2 3 4 5
IpExt: InNoRoutes InOctets OutOctets
IpExt: 1 18446744073709551615 3000
'''
SNMP6 = '''Ip6InReceives                   \t6980
Ip6InOctets                     \t2063992
Ip6InMcastPkts                  \t7
Icmp6InMsgs                     \t54
Icmp6OutType143                 \t4
Udp6InDatagrams                 \t318
UdpLite6InDatagrams             \t9
'''
FILES = {'proc/net/snmp': SNMP, 'proc/net/netstat': NETSTAT, 'proc/net/snmp6': SNMP6}


def read(tree, *keys):
    """{flat name: raw number} of one reading of all parts of netstat, and what was said."""
    memory, found, tree.bad_lines = {}, {}, 0
    for part in statbadger.MODULES['netstat'].parts:
        try:
            for table, labels, row in part(tree, options(keys=list(keys)), memory):
                for metric, value in zip(table.raw, row):
                    name = '%s.%s' % (table.family, metric.name)
                    assert name not in found
                    found[name] = value
        except (Absent, ValueError):
            pass
    return found


def test_the_usual_metrics_have_the_names_of_the_kernel_in_lower_case(host):
    assert read(host(FILES)) == {
        'ip.inreceives': 100, 'ip.inhdrerrors': 1, 'ip.outrequests': 90, 'icmp.inmsgs': 7, 'icmp.inerrors': 1,
        'icmp.outmsgs': 6, 'tcp.activeopens': 11, 'tcp.currestab': 3, 'tcp.insegs': 1000, 'udp.indatagrams': 21,
        'udp.noports': 22, 'tcpext.syncookiessent': 1, 'tcpext.listendrops': 2, 'tcpext.tcptimeouts': 3,
        'ipext.inoctets': (1 << 64) - 1, 'ipext.outoctets': 3000, 'ip6.inreceives': 6980, 'ip6.inoctets': 2063992,
        'icmp6.inmsgs': 54, 'udp6.indatagrams': 318}


def test_everything_is_all_but_the_settings(host):
    found = read(host(FILES), '*')
    assert len(found) == 3 + 4 + 2 + 3 + 3 + 5 + 3 + 7, 'of Ip, Icmp, IcmpMsg, Tcp, Udp, TcpExt, IpExt and snmp6'
    assert not {'ip.forwarding', 'ip.defaultttl', 'tcp.rtomin', 'tcp.maxconn'} & set(found)
    assert found['icmpmsg.intype3'] == 5 and found['udplite6.indatagrams'] == 9 and found['icmp6.outtype143'] == 4


def test_keys_add_and_take_away_in_any_case(host):
    usual = set(read(host(FILES)))
    assert set(read(host(FILES), 'TcpExt.TW', 'tcpext.tcph*')) - usual == {'tcpext.tw', 'tcpext.tcphphits'}
    assert usual - set(read(host(FILES), '!tcp.*', '!ip*')) == {
        name for name in usual if name.startswith(('tcp.', 'ip'))}


def test_a_counter_is_a_rate_octets_are_bytes_and_a_gauge_stands(host):
    tree = host(FILES)
    parts = Parts('netstat', statbadger.MODULES['netstat'].parts, options(keys=[]), tree, print)
    parts.read(0.0)
    for name in FILES:
        text = FILES[name].replace(' 1000\n', ' 1500\n').replace(' 3000\n', ' 7000\n').replace(' 3 1', ' 8 1')
        (tree.folder / name).write_text(text)
    tree.clock[0] = 2.0
    tree.fresh.clear()
    found = {s.flat: (v, s.unit) for series, values in parts.read(2.0) for s, v in zip(series, values)}
    assert found['tcp.insegs'] == (250, '') and found['ipext.outoctets'] == (2000, 'B/s')
    assert found['tcp.currestab'] == (8, '')


def test_a_table_of_linux_2_4_and_one_of_a_kernel_to_come(host):
    old = 'Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens\nTcp: 0 200 120000 -1 5\n'
    assert read(host({'proc/net/snmp': old})) == {'tcp.activeopens': 5}
    new = ('Quic: InStreams\nQuic: 5\nTcp: ActiveOpens InQuanta In-Odd ActiveOpens\nTcp: 1 2 3 4\n'
           'TcpExt: ListenOrders\nTcpExt: 6\n')
    assert read(host({'proc/net/snmp': new})) == {'tcp.activeopens': 1, 'tcp.inquanta': 2, 'tcpext.listenorders': 6}


@pytest.mark.parametrize('bad', ['Udp: 21 22\n', 'Udp: 21 22 23 24\n', 'Udp: 21 x 23\n', 'Udp: 21 -2 23\n',
                                 'Udp: 99999999999999999999 22 23\n', 'Udp:\n', ''])
def test_a_line_that_is_garbage_takes_only_itself_away(host, bad):
    tree = host({'proc/net/snmp': SNMP.replace('Udp: 21 22 23\n', bad)})
    found = read(tree)
    assert found['tcp.insegs'] == 1000 and not [name for name in found if name.startswith('udp')]
    assert tree.bad_lines == 1


def test_a_torn_file_gives_what_stands_before_the_tear(host):
    for end in range(1, len(SNMP)):
        found = read(host({'proc/net/snmp': SNMP[:end]}))
        whole = read(host({'proc/net/snmp': SNMP}))
        assert found.items() <= whole.items()
    for end in range(1, len(SNMP6)):
        assert read(host({'proc/net/snmp6': SNMP6[:end]}, 'six')).items() <= read(host({'proc/net/snmp6': SNMP6}, 'six')).items()


def test_columns_that_change_while_we_run_are_named_anew(host):
    tree, memory = host({'proc/net/snmp': 'Icmp: InMsgs OutMsgs\nIcmp: 1 2\n'}), {}
    part = statbadger.MODULES['netstat'].parts[0]
    (table, labels, row), = part(tree, options(keys=['*']), memory)
    assert [m.name for m in table.raw] == ['inmsgs', 'outmsgs'] and row == [1, 2]
    (tree.folder / 'proc/net/snmp').write_text('Icmp: InMsgs InErrors OutMsgs\nIcmp: 1 9 2\n')
    tree.fresh.clear()
    (table, labels, row), = part(tree, options(keys=['*']), memory)
    assert [m.name for m in table.raw] == ['inmsgs', 'inerrors', 'outmsgs'] and row == [1, 9, 2]


def test_a_file_of_no_use_is_said_and_the_others_go_on(host):
    said = []
    tree = host(dict(FILES, **{'proc/net/snmp': '\xff\n', 'proc/net/snmp6': 'Ip6InReceives\n'}))
    parts = Parts('netstat', statbadger.MODULES['netstat'].parts, options(keys=[]), tree, lambda *words: said.append(words[1]))
    assert len(parts.read(1.0)) == 1 and parts.errors == 2
    assert len(said) == 2 and 'proc/net/snmp' in said[0] and 'proc/net/snmp6' in said[1]


# -- sockets --------------------------------------------------------------------------------------

SOCKSTAT = '''sockets: used 312
TCP: inuse 27 orphan 1 tw 2 alloc 30 mem 3
UDP: inuse 4 mem 5
UDPLITE: inuse 6
RAW: inuse 7
FRAG: inuse 8 memory 9000
'''


def counts(tree):
    out = {}
    for part in statbadger.MODULES['sockets'].parts:
        try:
            for table, labels, row in part(tree, None, {}):
                out.update((metric.name, value) for metric, value in zip(table.raw, row) if value == value)
        except (Absent, ValueError):
            pass
    return out


def test_sockets_by_protocol(host):
    tree = host({'proc/net/sockstat': SOCKSTAT, 'proc/net/sockstat6': 'TCP6: inuse 2\nUDP6: inuse 1\nFRAG6: inuse 0 memory 0\n',
                 'answers/page_size': '65536'})
    assert counts(tree) == {
        'used': 312, 'tcp_inuse': 27, 'tcp_orphan': 1, 'tcp_tw': 2, 'tcp_alloc': 30, 'tcp_mem': 3 << 16, 'udp_inuse': 4,
        'udp_mem': 5 << 16, 'udplite_inuse': 6, 'raw_inuse': 7, 'frag_inuse': 8, 'frag_memory': 9000, 'tcp6_inuse': 2,
        'udp6_inuse': 1, 'frag6_inuse': 0, 'frag6_memory': 0}


def test_linux_2_4_had_fewer_columns_and_a_recording_may_not_know_the_size_of_a_page(host):
    tree = host({'proc/net/sockstat': 'sockets: used 9\nTCP: inuse 3 mem 7\nUDP: inuse 1\nRAW: x 1\n'})
    tree.frozen = True
    assert counts(tree) == {'used': 9, 'tcp_inuse': 3, 'udp_inuse': 1}


@pytest.mark.parametrize('bad', ['TCP: inuse x orphan 1\n', 'TCP: inuse -1\n', 'TCP\n', '\xff\n'])
def test_a_line_of_sockstat_that_is_garbage_takes_only_itself_away(host, bad):
    tree = host({'proc/net/sockstat': bad + 'sockets: used 9\n'})
    assert counts(tree) == {'used': 9}
    assert tree.bad_lines == 1


def test_tcp_sockets_by_state_of_both_families(host):
    every = [message(i, state=i, size=0) for i in (1, 1, 1, 2, 3, 4, 5, 6, 6, 8, 9, 10, 10, 11)]
    tree = host({'answers/sock_diag/states': b''.join(every[:7]), 'answers/sock_diag/states.1': b''.join(every[7:]) + DONE,
                 'answers/sock_diag/states6': message(1, state=10, size=0, address='::') + DONE})
    assert counts(tree) == dict(tcp_established=3, tcp_syn_sent=1, tcp_syn_recv=1, tcp_fin_wait1=1, tcp_fin_wait2=1,
                                tcp_time_wait=2, tcp_close_wait=1, tcp_last_ack=1, tcp_listen=3, tcp_closing=1)


def test_states_of_one_family_alone_are_not_given(host):
    assert counts(host({'answers/sock_diag/states': DONE, 'proc/1/stat': ''})) == {}


def test_a_recording_of_this_host_gives_the_same_again(run, tmp_path):
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen(1)
        live = run('-m', 'netstat,keys=*', '-m', 'sockets', '-e', 'stdout', '-n', 2, '-i', '0.3', '--record',
                   tmp_path / 'record')
    again = run('--replay', tmp_path / 'record', '-m', 'netstat,keys=*', '-m', 'sockets', '-e', 'stdout')
    first, second = ([{name: entry['value'] for point in json.loads(line)['points'] for name, entry in point.items()}
                      for line in done.out.splitlines()] for done in (live, again))
    assert [set(tick) for tick in first] == [set(tick) for tick in second] and len(first) == 2
    gauges = [name for name in first[0] if name.startswith('sockets.') or name == 'tcp.currestab']
    assert 'sockets.tcp_inuse' in gauges
    for now, then in zip(first, second):
        assert [now[name] for name in gauges] == [then[name] for name in gauges]
