"""TCP payload by owner: messages of netlink written by hand, as linux/inet_diag.h and linux/tcp.h lay them out."""
import os
import socket
import struct
import time

import pytest
import statbadger
from statbadger import Absent, Flows, Tree

HERE, THERE, ANY = '10.0.0.1', '10.0.0.2', '0.0.0.0'
SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE, LAST_ACK = 2, 4, 5, 7, 9
ESTABLISHED, CLOSE_WAIT, LISTEN = 1, 8, 10
DONE = struct.pack('=IHHIIi', 20, 3, 2, 1, 0, 0)


def attribute(kind, data):
    return struct.pack('=HH', 4 + len(data), kind) + data + bytes(-len(data) % 4)


def tcp_info(size=280, acked=0, received=0, sent=0, retrans=0, idle=0):
    """struct tcp_info, of which a kernel has the first `size` bytes. idle: ms since anything came or went."""
    info = bytearray(280)
    struct.pack_into('=4I', info, 44, idle, 0, idle, idle)
    struct.pack_into('=QQ', info, 120, acked, received)
    struct.pack_into('=QQ', info, 200, sent, retrans)
    return bytes(info[:size])


def message(cookie, state=ESTABLISHED, inode=0, port=40000, address=HERE, unread=0, before=b'', after=b'', size=280, peer=0,
            **counters):
    """What the kernel says of a socket. before, after: attributes beside tcp_info, which is left out for size 0."""
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    local = socket.inet_pton(family, address)
    body = struct.pack('=BBBB', family, state, 0, 0)
    body += struct.pack('>HH', port, peer) + local + bytes(16 - len(local)) + bytes(16)
    body += struct.pack('=IQ', 0, cookie) + struct.pack('=IIIII', 0, unread, 0, 0, inode)
    body += before + (attribute(2, tcp_info(size, **counters)) if size else b'') + after
    return struct.pack('=IHHII', 16 + len(body), 20, 2, 1, 0) + body


def overrun(lost):
    return struct.pack('=IHHIII', 20, 4, 0, 0, 0, lost)


class Kernel:
    """A frozen host whose netlink says what it is told. held: {inode: owner} of who can be found; .asked: of whom it
    was asked, for each reading."""

    def __init__(self, host):
        self.tree, self.flows, self.held, self.asked = host({}), Flows(), {}, []

    def owners(self, inodes):
        self.asked.append(set(inodes))
        return {inode: self.held[inode] for inode in inodes if inode in self.held}

    def say(self, name, data):
        path = self.tree.folder / 'answers/sock_diag' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def read(self, live=(), ended=(), live6=()):
        """{owner: row} of those whose row is not all zeros."""
        self.say('inet', b''.join(live) + DONE)
        self.say('inet6', b''.join(live6) + DONE)
        self.say('destroyed', b''.join(ended))
        self.tree.begin()
        self.tree.clock[0] += 1.0
        return {who: row for who, row in self.flows.read(self.tree, self.owners).items() if any(row)}


@pytest.fixture
def kernel(host):
    return Kernel(host)


def test_what_is_there_at_first_is_the_base_and_what_comes_later_counts_from_zero(kernel):
    kernel.held = {11: 'a', 12: 'b'}
    assert kernel.read([message(1, inode=11, sent=5000, received=700)]) == {'a': (0, 0, 0, 1)}
    assert kernel.read([message(1, inode=11, sent=5600, received=750, retrans=40, acked=5001),
                        message(2, inode=12, sent=100, received=30)]) == {'a': (50, 560, 40, 1), 'b': (30, 100, 0, 1)}
    assert kernel.read([message(1, inode=11, sent=5600, received=750, retrans=40, acked=5561),
                        message(2, inode=12, sent=100, received=31)]) == {'a': (0, 0, 0, 1), 'b': (1, 0, 0, 1)}


def test_the_first_reading_always_has_a_row_for_none(kernel):
    kernel.say('inet', DONE)
    kernel.say('inet6', DONE)
    assert kernel.flows.read(kernel.tree, kernel.owners) == {None: (0, 0, 0, 0)} and kernel.asked == []


def test_what_was_sent_counts_no_syn_no_fin_and_nothing_twice(kernel):
    """bytes_acked of who connects: one for the SYN, 1,000 of payload, one for the FIN."""
    kernel.held = {11: 'a'}
    kernel.read()
    assert kernel.read([message(1, inode=11, sent=1300, retrans=300, acked=1001)])['a'] == (0, 1000, 300, 1)
    assert kernel.read([message(1, FIN_WAIT2, sent=1300, retrans=300, acked=1002)]) == {}


@pytest.mark.parametrize('state', [CLOSE_WAIT, LAST_ACK, 11])
def test_the_fin_of_the_peer_is_no_byte_received(kernel, state):
    kernel.held = {11: 'a'}
    kernel.read()
    assert kernel.read([message(1, inode=11, received=500)])['a'][0] == 500
    assert kernel.read([message(1, state, inode=11, received=501)]).get('a', (0,))[0] == 0
    assert kernel.read(ended=[message(1, CLOSE, received=501)]) == {}
    assert kernel.read([message(2, state, inode=11, received=1)]).get('a', (0,))[0] == 0


LISTENER = dict(state=LISTEN, inode=50, port=80, address=ANY)


@pytest.mark.parametrize('counters, received', [
    (dict(acked=301, received=101), 100),               # in order, and its FIN was read
    (dict(acked=301, received=101, unread=1), 100),     # and it was not read
    (dict(acked=300, received=100), 100),               # reset: our FIN was not acknowledged
    (dict(acked=300, received=100, unread=40), 100),    # reset, for 40 bytes were not read
    (dict(acked=301, received=1), 0)])
def test_a_connection_that_no_dump_had_goes_to_the_owner_of_the_listener(kernel, counters, received):
    kernel.held = {50: 'web'}
    kernel.read([message(9, **LISTENER)])
    assert kernel.read([message(9, **LISTENER)], [message(1, CLOSE, port=80, peer=999, sent=300, **counters)]) == {
        'web': (received, 300, 0, 0)}


def test_one_that_connected_and_that_no_dump_had_is_of_nobody(kernel):
    kernel.held = {50: 'web'}
    kernel.read([message(9, **LISTENER)])
    assert kernel.read([message(9, **LISTENER)], [message(1, CLOSE, port=41000, sent=300, acked=302, received=100),
                                                  message(2, CLOSE, port=41001, sent=5, acked=7, received=4, unread=1)]) == {
        None: (103, 305, 0, 0)}


def test_the_last_counters_go_to_the_owner_that_the_cookie_had(kernel):
    kernel.held = {11: 'a'}
    kernel.read()
    kernel.read([message(1, inode=11, sent=10, received=20)])
    kernel.held = {}
    assert kernel.read(ended=[message(1, CLOSE, sent=1010, received=2020, acked=1012)]) == {'a': (2000, 1000, 0, 0)}
    assert kernel.flows.flows == {}


def test_a_listener_is_known_by_family_address_and_port(kernel):
    kernel.held = {50: 'four', 51: 'six', 52: 'one'}
    live = [message(9, **LISTENER), message(8, LISTEN, 52, 80, '10.0.0.7')]
    six = [message(7, LISTEN, 51, 80, '::')]
    kernel.read(live, live6=six)
    ends = [message(1, CLOSE, port=80, sent=1), message(2, CLOSE, port=80, sent=20, address='10.0.0.7'),
            message(3, CLOSE, port=80, sent=300, address='::1'),
            message(4, CLOSE, port=80, sent=4000, address='::ffff:10.0.0.1'),
            message(5, CLOSE, port=81, sent=50000)]
    assert {who: row[1] for who, row in kernel.read(live, ends, six).items()} == {
        'four': 1, 'one': 20, 'six': 4300, None: 50000}


def test_a_listener_that_closed_since_the_last_reading_is_remembered(kernel):
    kernel.held = {50: 'web'}
    kernel.read([message(9, **LISTENER)])
    assert kernel.read(ended=[message(1, CLOSE, port=80, sent=7)]) == {'web': (0, 7, 0, 0)}
    assert kernel.read(ended=[message(2, CLOSE, port=80, sent=7)]) == {None: (0, 7, 0, 0)}


def test_one_that_is_not_accepted_yet_is_of_the_listener_until_it_is(kernel):
    kernel.held = {50: 'web', 60: 'worker'}
    kernel.read([message(9, **LISTENER)])
    assert kernel.read([message(9, **LISTENER), message(1, port=80, received=1000)])['web'] == (1000, 0, 0, 1)
    assert kernel.read([message(9, **LISTENER), message(1, port=80, received=1500, inode=60)]) == {
        'worker': (500, 0, 0, 1)}
    assert kernel.read([message(9, **LISTENER)], [message(1, CLOSE, port=80, received=1600)]) == {'worker': (100, 0, 0, 0)}


def test_owners_are_asked_about_what_is_new_and_once_more_for_who_forks(kernel):
    kernel.held = {11: 'parent'}
    kernel.read([message(1, inode=11)])
    kernel.held = {11: 'child'}
    assert kernel.read([message(1, inode=11, received=5)]) == {'child': (5, 0, 0, 1)}
    for i in range(2, 130):
        kernel.read([message(1, inode=11)])
    assert kernel.asked == [{11}] * 4, 'and at the 60th and 120th reading'
    for i in range(130, 190):
        kernel.read([message(1, FIN_WAIT1)])
    assert kernel.asked == [{11}] * 4, 'it was closed'


def test_one_without_an_owner_is_asked_about_four_times(kernel):
    for i in range(59):
        kernel.read([message(1, inode=11, sent=10 * i)])
    assert kernel.asked == [{11}] * 4


def test_one_that_is_still_looked_for_is_asked_about_until_it_is_found(kernel):
    kernel.held = {11: None}
    for i in range(20):
        assert kernel.read([message(1, inode=11, sent=10 * i)]) == {None: (0, 10 * (i > 0), 0, 1)}
    kernel.held = {11: 'a'}
    assert kernel.read([message(1, inode=11, sent=1000)]) == {'a': (0, 810, 0, 1)}
    assert kernel.asked == [{11}] * 21
    kernel.read([message(1, inode=11, sent=1000)])
    assert kernel.asked == [{11}] * 21


def test_one_that_is_looked_for_in_vain_is_not_asked_about_for_ever(kernel):
    kernel.held = {11: None}
    for i in range(200):
        kernel.read([message(1, inode=11)])
    assert 60 <= len(kernel.asked) < 64


def test_an_owner_that_cannot_be_found_any_more_stays(kernel):
    kernel.held = {11: 'a'}
    kernel.read([message(1, inode=11)])
    kernel.held = {}
    assert kernel.read([message(1, FIN_WAIT1, sent=70)]) == {'a': (0, 70, 0, 0)}


@pytest.mark.parametrize('before, after', [
    (b'', b''), (attribute(8, b'\0'), b''), (attribute(8, b'\0') + attribute(21, bytes(8)), attribute(4, b'cubic\0')),
    (attribute(1, struct.pack('=HH', 284, 2) + bytes(300)), b'')])
def test_attributes_come_in_any_order(kernel, before, after):
    kernel.held = {11: 'a', 12: 'b'}
    kernel.read()
    live = [message(i, inode=11, sent=1, received=2, before=before, after=after) for i in range(100, 120)]
    live += [message(i, inode=12, sent=10, received=20, before=after, after=before) for i in range(200, 220)]
    assert kernel.read([m for two in zip(live, live[20:]) for m in two]) == {
        'a': (40, 20, 0, 20), 'b': (400, 200, 0, 20)}


def test_what_has_no_tcp_info_is_no_flow(kernel):
    """The rest of a connection in FIN_WAIT2 is a small thing of the kernel's; its cookie is another."""
    kernel.held = {11: 'a'}
    kernel.read()
    assert kernel.read([message(1, FIN_WAIT2, size=0), message(2, inode=11, sent=3), message(3, 3, size=0)]) == {
        'a': (0, 3, 0, 1)}


def test_kernels_before_4_19_tell_what_was_acknowledged(kernel):
    """4.1: bytes_acked and bytes_received are the last. Of who connects the SYN is in it."""
    kernel.held = {11: 'client', 12: 'server', 50: 'web'}
    kernel.read([message(9, size=136, **LISTENER)])
    found = kernel.read([message(9, size=136, **LISTENER), message(1, inode=11, acked=1001, received=5, size=136),
                         message(2, inode=12, port=80, acked=400, received=6, size=136)])
    assert {who: row[:2] for who, row in found.items() if row[0]} == {'client': (5, 1000), 'server': (6, 400)}
    assert all(row[2] != row[2] for row in found.values()), 'what was sent again is not known'
    found = kernel.read([message(9, size=136, **LISTENER), message(1, FIN_WAIT2, acked=1502, received=5, size=136)],
                        [message(2, CLOSE, port=80, acked=501, received=7, size=136)])
    assert found['client'][:2] == (0, 500) and found['server'][:2] == (0, 100)


def test_kernels_before_4_1_count_no_bytes(kernel):
    with pytest.raises(Absent, match='4.1'):
        kernel.read([message(1, inode=11, size=104)])


def test_a_socket_that_is_connected_anew_counts_anew(kernel):
    """connect(2) with AF_UNSPEC, or SO_LINGER of 0, sets all counters to zero: tcp_disconnect()."""
    kernel.held = {11: 'a'}
    kernel.read([message(1, inode=11, sent=5000, received=6000, acked=5001)])
    assert kernel.read([message(1, inode=11, sent=10, received=20, acked=11)])['a'] == (20, 10, 0, 1)
    assert kernel.read(ended=[message(1, CLOSE)]) == {}


def test_a_socket_that_is_twice_in_a_dump_counts_once(kernel):
    kernel.held = {11: 'a'}
    kernel.read()
    assert kernel.read([message(1, inode=11, sent=5), message(1, inode=11, sent=9)]) == {'a': (0, 5, 0, 1)}
    assert kernel.read([message(1, inode=11, sent=9)]) == {'a': (0, 4, 0, 1)}


def test_a_socket_that_a_dump_missed_goes_on_where_it_was(kernel):
    kernel.held = {11: 'a'}
    kernel.read([message(1, inode=11, sent=1000)])
    assert kernel.read() == {}
    assert kernel.read([message(1, inode=11, sent=1100)]) == {'a': (0, 100, 0, 1)}


def test_the_end_of_what_was_older_than_we_are_counts_nothing(kernel):
    """A process may hold a connection for hours that a reset ended; no dump has it."""
    kernel.read(ended=[message(1, CLOSE, sent=10 ** 10)])
    assert kernel.read(ended=[message(2, CLOSE, sent=10 ** 10, idle=60000)]) == {}
    assert kernel.read(ended=[message(3, CLOSE, sent=10, idle=900)]) == {None: (0, 10, 0, 0)}


def test_ends_that_were_lost_are_counted_and_said_once(kernel):
    kernel.read()
    assert kernel.flows.news() == []
    kernel.read(ended=[message(1, CLOSE, sent=5), overrun(7)])
    assert kernel.flows.lost == 7 and len(kernel.flows.news()) == 1
    kernel.read(ended=[overrun(3)])
    assert kernel.flows.lost == 10 and kernel.flows.news() == []


def test_without_word_of_the_ends_live_ones_are_counted_and_nothing_piles_up(kernel):
    kernel.held = {11: 'a'}
    os.mkdir(str(kernel.tree.folder / 'answers'))
    for name in ('inet', 'inet6'):
        kernel.say(name, DONE)
    kernel.say('inet', message(1, inode=11, sent=5) + DONE)
    kernel.flows.read(kernel.tree, kernel.owners)
    kernel.say('inet', message(2, inode=11, sent=5) + DONE)
    kernel.tree.begin()
    assert kernel.flows.read(kernel.tree, kernel.owners)['a'] == (0, 5, 0, 1)
    assert list(kernel.flows.flows) == [2]
    said = kernel.flows.news()
    assert len(said) == 1 and 'between two readings' in said[0] and kernel.flows.news() == []


def test_one_family_is_good_without_the_other_and_none_is_absent(kernel):
    kernel.say('inet6', message(1, inode=11, address='::1', sent=5) + DONE)
    kernel.tree.roots = {top: str(kernel.tree.folder) + '/x' for top in kernel.tree.roots}
    with pytest.raises(Absent):
        kernel.flows.read(Tree(kernel.tree.roots, lambda: 0.0, frozen=True), kernel.owners)
    tree = Tree({top: str(kernel.tree.folder) for top in kernel.tree.roots}, lambda: 0.0, frozen=True)
    assert kernel.flows.read(tree, lambda inodes: {11: 'a'})['a'] == (0, 0, 0, 1)


def test_a_dump_comes_in_pieces(kernel):
    kernel.held = {11: 'a'}
    kernel.read()
    kernel.say('inet', message(1, inode=11, sent=5))
    kernel.say('inet.1', message(2, inode=11, sent=6))
    kernel.say('inet.2', message(3, inode=11, sent=7) + DONE)
    kernel.tree.begin()
    assert kernel.flows.read(kernel.tree, kernel.owners)['a'] == (0, 18, 0, 3)


def test_bytes_are_of_the_time_between_two_dumps(kernel):
    """All processes are read first, and the first time that takes longest."""
    kernel.read()
    assert kernel.tree.when == kernel.tree.clock[0] == 1.0


def test_torn_messages_and_garbage_end_a_piece_and_nothing_else(kernel):
    kernel.held = {11: 'a'}
    data = b''.join(message(i, inode=11, sent=1, before=attribute(8, b'\0') * (i % 3)) for i in range(1, 7)) + overrun(1)
    for end in range(len(data)):
        sent = sum(entry[10] for entry in statbadger.tcp_entries(data[:end], {}))
        whole = sum(len(message(i, before=attribute(8, b'\0') * (i % 3))) <= end for i in range(1, 7)) and sent
        assert sent == whole and sent <= 6
        assert statbadger.events_lost(data[:end]) in (0, 1)
    for at in range(0, len(data) - 4):
        broken = bytearray(data)
        broken[at:at + 4] = b'\xff\xff\xff\xff'
        list(statbadger.tcp_entries(bytes(broken), {}))
        broken[at:at + 4] = bytes(4)
        list(statbadger.tcp_entries(bytes(broken), {}))
        statbadger.dump_end(bytes(broken[:at]))


def test_thousands_of_messages_of_every_length_are_all_found():
    counts = [(i, attribute(8, b'\0') * (i * 7919 % 3) + attribute(15, bytes(4)) * (i * 104729 % 5 == 0)) for i in range(5000)]
    data = b''.join(message(i + 1, sent=i, before=more) if i % 4 else message(i + 1, size=0, before=more)
                    for i, more in counts) + DONE
    assert [entry[10] for entry in statbadger.tcp_entries(data, {})] == [i for i in range(5000) if i % 4]
    assert sum(count for at, length, count in statbadger.socket_runs(data)) == 5000


def test_so_many_that_ended_unseen_are_remembered_and_no_more(kernel):
    kernel.read([message(i, size=136) for i in range(70000)])
    assert len(kernel.flows.flows) == 70000
    kernel.read([message(1, size=136)])
    assert len(kernel.flows.flows) == 65537 and 1 in kernel.flows.flows and 69999 in kernel.flows.flows
    assert 2 not in kernel.flows.flows


def test_the_answers_that_end_a_dump():
    assert statbadger.dump_end(DONE) == (0,) and statbadger.dump_end(message(1) + DONE) == (0,)
    assert statbadger.dump_end(message(1)) is None and statbadger.dump_end(b'') is None
    failed = struct.pack('=IHHIIi', 36, 2, 0, 1, 0, -2) + bytes(16)
    assert statbadger.dump_end(failed) == (-2,)
    assert statbadger.dump_end(struct.pack('=IHHIIi', 20, 3, 2, 1, 0, -2)) == (-2,)
    assert type(statbadger.dump_trouble(2)) is Absent and 'tcp_diag' in str(statbadger.dump_trouble(2))
    assert statbadger.dump_trouble(1).errno == 1


def test_netlink_is_not_asked_about_a_host_in_another_network_namespace(host):
    tree = host({'proc/1/stat': ''})
    with pytest.raises(Absent, match='proc/net/netlink'):
        Flows().read(tree, dict)
    (tree.folder / 'proc/1/ns').mkdir()
    os.symlink('net:[1]', str(tree.folder / 'proc/1/ns/net'))
    with pytest.raises(Absent, match='another network namespace'):
        Flows().read(tree, dict)
    assert tree.events is None


def test_who_may_not_see_the_namespace_of_a_host_tells_it_by_the_kernels_own_socket(host):
    with open('/proc/self/net/netlink', 'rb') as file:
        own = file.read()
    if statbadger.diag_socket(own) is None:
        pytest.skip('needs netlink in the kernel')
    statbadger.own_network(host({'proc/1/net/netlink': own}, 'same'))
    inode = statbadger.diag_socket(own)
    for other in (own.replace(inode + b' ', b'77 '), b'sk Eth Pid\n', own.split(b'\n')[0]):
        with pytest.raises(Absent, match='another network namespace'):
            statbadger.own_network(host({'proc/1/net/netlink': other}, 'other'))


def test_a_recording_gives_the_numbers_that_were_read(tmp_path):
    """Of this host's own sockets; a connection that lives and one that ends between two readings."""
    moment = [0.0]
    tree, flows = statbadger.host_tree(None, {}, lambda: moment[0]), Flows()
    live = []
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen(5)
        here = os.fstat(listener.fileno()).st_ino
        for i in range(3):
            tree.record_next = str(tmp_path / str(i))
            tree.begin()
            moment[0] = time.monotonic()        # as in a replay, where it stands still
            try:
                live.append((tree.monotonic(), flows.read(tree, lambda inodes: {here: 'us'} if here in inodes else {})))
            except Absent as error:
                pytest.skip('needs sock_diag: %s' % error)
            with socket.create_connection(listener.getsockname()) as link:
                link.sendall(bytes(4321))
                accepted = listener.accept()[0]
                rest = 4321
                while rest:
                    rest -= len(accepted.recv(rest))
            accepted.close()
            time.sleep(0.2)
    tree.close()
    assert 'us' not in live[0][1] and live[2][1]['us'][0] >= 4321
    again = Flows()
    for i, (moment, found) in enumerate(live):
        root = str(tmp_path / str(i))
        frozen = Tree({'': root, 'proc': root + '/proc', 'sys': root + '/sys'}, lambda: moment, frozen=True)
        assert again.read(frozen, lambda inodes: {here: 'us'} if here in inodes else {}) == found
