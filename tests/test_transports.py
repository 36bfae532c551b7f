"""Section 9: real sockets on the loopback, and peers that misbehave."""
import errno
import os
import random
import select
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

import standins
import statbadger
from conftest import ROOT, clean_environment, options, role
from sinks import BlackHole, Deaf, TcpSink, UdpSink, free_port, until
from statbadger import Accept, Available, Close, Dial, Done, Line, Next, Now, Random, Read, Send, Wait


def opener():
    return statbadger.Opener(statbadger.StdoutLink(), statbadger.Contexts())


def soon(seconds):
    return time.monotonic() + seconds


def dial(port, seconds=2.0):
    return opener().open(('tcp', '127.0.0.1', port, None), seconds, soon(seconds))


def tcp(host, port):
    """An address as getaddrinfo() gives it."""
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, '', (host, port))


class Timed:
    """Says how long a block took that had to raise."""

    def __init__(self, least, most):
        self.least, self.most = least, most

    def __enter__(self):
        self.began = time.monotonic()
        return self

    def __exit__(self, *error):
        took = time.monotonic() - self.began
        assert self.least <= took <= self.most, 'took %.3f s' % took


class Batches:
    """What converse() asks for batches: lists that are given, then the end."""

    def __init__(self, *batches):
        self.left, self.waits, self.acknowledged = list(batches), [], []

    def next(self, idle, exchange):
        return self.left.pop(0) if self.left else None

    def hold(self, idle, exchange, lack):
        self.waits.append(lack)
        return [] if self.left else None

    def done(self, n):
        self.acknowledged.append(n)

    def ending(self):
        return False

    def reject(self, step):
        raise AssertionError('not here')

    def closing(self):
        return not self.left

    def wait(self, seconds):
        self.waits.append(seconds)

    def listen(self, seconds, ears):
        self.waits.append(seconds)
        return bool(select.select(ears, [], [], seconds)[0])


class Server:
    """Runs talk(socket) for the first connection on 127.0.0.1."""

    def __init__(self, talk):
        self.server = socket.socket()
        self.server.bind(('127.0.0.1', 0))
        self.server.listen(5)
        self.port, self.talk, self.over = self.server.getsockname()[1], talk, False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        try:
            sock = self.server.accept()[0]
            with sock:
                self.talk(sock, self)
        except OSError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.over = True
        self.server.close()
        self.thread.join(5)


# -- deadlines --------------------------------------------------------------------------------

def test_a_peer_that_never_accepts_costs_no_more_than_the_timeout():
    with BlackHole() as hole, Timed(0.25, 1.0), pytest.raises(OSError):
        dial(hole.port, 0.3)


def test_a_peer_that_never_reads_costs_no_more_than_the_timeout():
    with Deaf() as deaf:
        link = dial(deaf.port)
        with Timed(0.25, 1.0), pytest.raises(OSError):
            link.send(b'x' * (64 << 20), soon(0.3))
        link.close()


def test_a_peer_that_never_acknowledges_its_last_bytes_is_found_out_by_the_deadline():
    with Deaf() as deaf:
        link = dial(deaf.port)
        with pytest.raises(OSError):
            link.send(b'x' * (64 << 20), soon(0.1))     # now its window is shut
        assert link.acknowledged() < link.sent
        with Timed(0.25, 1.0), pytest.raises(OSError):
            link.settle(soon(0.3))
        link.close()


def drip(sock, server):
    while not server.over:
        sock.send(b'x')
        time.sleep(0.02)


@pytest.mark.parametrize('step', [Line(), Read(1000)])
def test_a_reply_that_comes_drop_by_drop_does_not_stretch_the_deadline(step):
    def talk():
        yield Next()
        yield step
    with Server(drip) as server, Timed(0.35, 1.2), pytest.raises(OSError):
        statbadger.converse(talk(), Batches(['frame']), ('tcp', '127.0.0.1', server.port, None), 0.4, opener())


def test_a_reply_without_end_is_cut_off():
    def flood(sock, server):
        sock.sendall(b'x' * (1 << 20))
    with Server(flood) as server:
        link = dial(server.port)
        with Timed(0, 1.5), pytest.raises(OSError):
            link.until(lambda data: data.find(b'\n') + 1 or None, soon(2))
        assert len(link.buffer) < 1 << 18
        link.close()


def test_an_unreachable_port_is_refused_at_once():
    with Timed(0, 0.5), pytest.raises(ConnectionRefusedError):
        dial(free_port(), 5)


def test_a_link_that_could_not_be_opened_keeps_no_descriptor():
    before = len(os.listdir('/proc/self/fd'))
    with BlackHole() as hole:
        for port in (free_port(), hole.port):
            with pytest.raises(OSError):
                dial(port, 0.1)
    assert len(os.listdir('/proc/self/fd')) == before


# -- names and addresses ----------------------------------------------------------------------

def test_the_second_address_is_tried_when_the_first_refuses():
    with TcpSink() as sink:
        link = statbadger.StreamLink([tcp('127.0.0.1', free_port()), tcp('127.0.0.1', sink.port)], 2, soon(2))
        link.send(b'hello\n', soon(1))
        assert until(lambda: sink.bytes() == b'hello\n')
        link.close()


def test_a_dead_first_address_takes_its_part_of_the_time_and_leaves_the_rest():
    with BlackHole() as hole, TcpSink() as sink, Timed(0.2, 0.75):
        link = statbadger.StreamLink([tcp('127.0.0.1', hole.port), tcp('127.0.0.1', sink.port)], 0.8, soon(0.8))
        link.send(b'hello\n', soon(1))
        link.close()


def test_all_addresses_dead_is_one_error_within_the_deadline():
    with BlackHole() as hole, Timed(0.25, 1.0), pytest.raises(OSError):
        statbadger.StreamLink([tcp('127.0.0.1', hole.port)] * 3, 0.3, soon(0.3))


def test_an_address_family_that_the_kernel_lacks_does_not_hide_the_next_address():
    with TcpSink() as sink:
        link = statbadger.StreamLink([(250, socket.SOCK_STREAM, 0, '', ('x', 1)), tcp('127.0.0.1', sink.port)], 2, soon(2))
        link.close()


def test_a_name_that_does_not_resolve_is_an_error_that_says_so():
    with Timed(0, 3.5), pytest.raises(OSError) as caught:
        opener().open(('tcp', 'no-such-host.invalid', 1, None), 3, soon(3))
    assert 'resolve' in str(caught.value) or 'time' in str(caught.value)


@pytest.mark.parametrize('name', ['a..b', '.', 'x' * 64 + '.invalid', 'x' * 300])
def test_a_name_that_can_be_none_is_an_ordinary_error_too(name):
    with pytest.raises(OSError):
        opener().open(('tcp', name, 1, None), 3, soon(3))


def test_localhost_is_resolved_and_its_threads_and_descriptors_end():
    one = opener()
    with TcpSink() as sink:
        before = len(os.listdir('/proc/self/fd'))
        for _ in range(5):
            one.open(('tcp', 'localhost', sink.port, None), 2, soon(2)).close()
        assert until(lambda: len(os.listdir('/proc/self/fd')) <= before + 5)      # the accepting side's five
        pipes = [fd for fd in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + fd)
                 and stat.S_ISFIFO(os.stat('/proc/self/fd/' + fd).st_mode)]
        again = len(pipes)
        one.open(('tcp', 'localhost', sink.port, None), 2, soon(2)).close()
        time.sleep(0.05)
        pipes = [fd for fd in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + fd)
                 and stat.S_ISFIFO(os.stat('/proc/self/fd/' + fd).st_mode)]
        assert len(pipes) == again


class Slow(statbadger.Question):
    """A question whose answer comes when .go is set."""
    asked, go = [], threading.Event()

    def ask(self):
        self.asked.append(self.what[0])
        self.go.wait(10)
        statbadger.Question.ask(self)


def test_a_name_service_that_is_slow_is_asked_once_and_its_late_answer_is_used():
    resolver, where = statbadger.Resolver(Slow), ('localhost', 1, socket.SOCK_STREAM)
    for _ in range(3):
        with Timed(0.04, 1.0), pytest.raises(OSError):
            resolver.addresses(*where + (soon(0.05),))
    assert resolver.addresses('127.0.0.1', 5, socket.SOCK_STREAM, soon(3))[0][4] == ('127.0.0.1', 5)
    assert Slow.asked == [b'localhost']
    Slow.go.set()
    assert resolver.addresses(*where + (soon(5),))[0][4][1] == 1
    assert Slow.asked == [b'localhost']
    assert resolver.addresses(*where + (soon(5),)) and Slow.asked == [b'localhost'] * 2


def test_a_name_that_could_not_be_resolved_is_no_answer_about_another():
    class Late(Slow):
        asked, go = [], threading.Event()
    one = statbadger.Resolver(Late)
    with pytest.raises(OSError):
        one.addresses('no-such-host.invalid', 1, socket.SOCK_STREAM, soon(0.05))
    Late.go.set()
    assert one.question is not None and one.addresses('localhost', 1, socket.SOCK_STREAM, soon(5))


def test_ipv6_addresses_are_dialled_too():
    try:
        server = socket.socket(socket.AF_INET6)
        server.bind(('::1', 0))
    except OSError as error:
        pytest.skip('no IPv6 loopback: %s' % error)
    server.listen(1)
    link = opener().open(('tcp', '::1', server.getsockname()[1], None), 2, soon(2))
    server.accept()[0].close()
    link.close()
    server.close()


def test_who_listens_at_a_name_listens_where_most_clients_look():
    class Known:
        def addresses(self, host, port, kind, deadline):
            return [(socket.AF_INET6, kind, 6, '', ('::1', port, 0, 0)), tcp('127.0.0.1', port)]
    one = opener()
    one.resolver = Known()
    link = one.open(('bind', 'localhost', 0), 2, soon(2))
    assert link.sock.family == socket.AF_INET
    link.close()


# -- bytes out and in -------------------------------------------------------------------------

def test_a_slow_reader_gets_every_byte_in_order():
    seed = random.randrange(1 << 30)
    print('seed', seed)
    data = bytes(bytearray(random.Random(seed).randrange(256) for _ in range(1 << 16))) * 24
    with TcpSink(slow=0.001, piece=16384, small=True) as sink:
        link = dial(sink.port)
        link.send(data, soon(10))
        link.settle(soon(10))
        assert until(lambda: len(sink.bytes()) == len(data), 10)
        assert sink.bytes() == data
        link.close()


def test_replies_are_read_by_line_and_by_count_however_they_are_cut():
    reply = b'+OK first\r\n' + b'\x00\x01\n\xff' + b'last\n'

    def cut(sock, server):
        sock.recv(100)
        for i in range(len(reply)):
            sock.send(reply[i:i + 1])
            time.sleep(0.001)
        sock.recv(100)

    got = []

    def talk():
        yield Next()
        yield Send(b'go\n')
        got.append((yield Line()))
        got.append((yield Read(4)))
        got.append((yield Line()))
    with Server(cut) as server:
        statbadger.converse(talk(), Batches(['frame']), ('tcp', '127.0.0.1', server.port, None), 3, opener())
    assert got == [b'+OK first\r\n', b'\x00\x01\n\xff', b'last\n']


def test_what_has_arrived_is_available_without_waiting():
    arrived = threading.Event()

    def talk_first(sock, server):
        sock.sendall(b'banner')
        arrived.set()
        while sock.recv(100):
            pass
    got = []

    def talk():
        yield Next()
        yield Send(b'x')
        arrived.wait(3)
        time.sleep(0.05)
        got.append((yield Available()))
        got.append((yield Available()))
    with Server(talk_first) as server:
        statbadger.converse(talk(), Batches(['frame']), ('tcp', '127.0.0.1', server.port, None), 3, opener())
    assert got[0] == b'banner' and got[1] == b''


def test_what_has_arrived_over_tls_is_available_at_once(tmp_path):
    files = standins.certificates(tmp_path)
    got = []

    class Greeter(standins.Listener):
        def talk(self, wire):
            wire.exactly(1)
            wire.send(b'banner')
            wire.more()

    with Greeter(files.server()) as server:
        link = opener().open(('tcp', '127.0.0.1', server.port, (files.ca, '', '', True)), 3, soon(3))
        link.send(b'x', soon(3))
        for _ in range(100):                    # whatever else TLS has to say comes before it
            assert select.select([link.fd], [], [], 3)[0]
            got.append(link.available(0, soon(3)))
            if got[-1]:
                break
        link.close()
    assert got[-1] == b'banner' and got.count(b'') <= 1


def test_waiting_may_end_when_a_link_has_input():
    got, batches, go = [], Batches(['frame']), threading.Event()

    def slow(sock, server):
        go.wait(3)
        sock.sendall(b'now')
        sock.recv(10)

    def talk():
        link = yield Dial()
        yield Next()
        got.append((yield Wait(0.05, link)))
        go.set()
        got.append((yield Wait(3, link)))
        got.append((yield Read(3, link)))
    with Server(slow) as server:
        statbadger.converse(talk(), batches, ('tcp', '127.0.0.1', server.port, None), 3, opener())
    assert got == [False, True, b'now'] and batches.waits == [0.05, 3]


@pytest.mark.parametrize('answers', [True, False])
def test_a_goodbye_is_said_when_there_is_no_next_batch_and_waited_for_a_moment(answers):
    heard, ended = [], threading.Event()

    def listen(sock, server):
        heard.append(sock.recv(10))
        sock.sendall(b'+')
        heard.append(sock.recv(10))
        if answers:
            sock.sendall(b'+')
        ended.wait(3)

    def talk():
        link = yield Dial()
        yield Next(goodbye=Send(b'bye', link))
        yield Send(b'x', link)
        yield Read(1, link)
        yield Next(goodbye=Send(b'bye', link))
    with Server(listen) as server:
        began = time.monotonic()
        statbadger.converse(talk(), Batches(['frame']), ('tcp', '127.0.0.1', server.port, None), 3, opener())
        assert (time.monotonic() - began > statbadger.FAREWELL * 0.9) == (not answers)
        ended.set()
    assert heard == [b'x', b'bye']


def test_a_goodbye_to_a_peer_that_is_gone_is_no_failure():
    def talk():
        link = yield Dial()
        yield Next()
        yield statbadger.Close(link)
        yield Next(goodbye=Send(b'bye', link))
    with Server(lambda sock, server: sock.recv(10)) as server:
        statbadger.converse(talk(), Batches(['frame']), ('tcp', '127.0.0.1', server.port, None), 3, opener())


def test_what_has_arrived_is_available_also_when_the_peer_has_closed_behind_it():
    closed, got = threading.Event(), []

    def talk_last(sock, server):
        sock.sendall(b'first\nlast words')
        sock.shutdown(socket.SHUT_WR)
        closed.set()
        sock.recv(100)

    def talk():
        yield Next()
        yield Send(b'x')
        closed.wait(3)
        time.sleep(0.05)
        got.append((yield Line()))
        got.append((yield Available()))
        try:
            yield Available()
        except ConnectionError as error:
            got.append(error.strerror)
    with Server(talk_last) as server:
        statbadger.converse(talk(), Batches(['frame']), ('tcp', '127.0.0.1', server.port, None), 3, opener())
    assert got == [b'first\n', b'last words', 'closed by the peer']


def test_time_randomness_and_waiting_are_steps():
    batches, got = Batches(['frame']), []

    def talk():
        yield Next()
        got.append((yield Now()))
        got.append((yield Random(8)))
        got.append((yield Random(8)))
        got.append((yield Wait(1.5)))
    statbadger.converse(talk(), batches, ('none',), 3, opener())
    assert abs(got[0] - time.time()) < 5
    assert len(got[1]) == 8 and got[1] != got[2]
    assert batches.waits == [1.5] and got[3] is None


def test_an_error_is_thrown_into_the_dialogue_at_its_step():
    got = []

    def talk():
        yield Next()
        try:
            yield Send(b'x')
        except OSError as error:
            got.append(type(error))
        yield Next()
    statbadger.converse(talk(), Batches(['one']), ('tcp', '127.0.0.1', free_port(), None), 3, opener())
    assert got == [ConnectionRefusedError]


def test_the_deadline_starts_anew_with_each_batch():
    def talk():
        while True:
            yield Next()
            yield Send(b'x')
            yield Line()

    def echo(sock, server):
        for _ in range(4):
            sock.recv(10)
            time.sleep(0.2)
            sock.send(b'ok\n')
        sock.recv(10)
    with Server(echo) as server:
        statbadger.converse(talk(), Batches(*[['frame']] * 4), ('tcp', '127.0.0.1', server.port, None), 0.5, opener())


def test_the_connection_is_closed_when_the_dialogue_is_over():
    def talk():
        yield Next()
        yield Send(b'bye\n')
    with TcpSink() as sink:
        statbadger.converse(talk(), Batches(['frame']), ('tcp', '127.0.0.1', sink.port, None), 3, opener())
        assert until(lambda: sink.ended == [True])
        assert sink.bytes() == b'bye\n'


# -- peers that close -------------------------------------------------------------------------

def sender_to(port, timeout=2.0, more=None):
    """A started graphite Sender, its spool and what it logged."""
    values = dict(host='127.0.0.1', port=port, protocol='plaintext', transport='tcp', prefix='x', tagged=False, tls=False,
                  tls_ca='', tls_cert='', tls_key='', tls_verify=True, blacklist=[], tags={}, interval=0, flush=0, batch=100, timeout=timeout)
    values.update(more or {})
    chosen = options(**values)
    spool, log = statbadger.Spool(1 << 20), []
    talk = role(chosen, lambda: statbadger.graphite(chosen, {}), 'sent', statbadger.graphite_link(chosen))
    cursor = statbadger.Cursor(spool, 'g', role(chosen))     # without a target: nothing goes again
    over = threading.Event()
    sender = statbadger.Sender(cursor, talk, opener(), lambda level, message: log.append(message), statbadger.Clock(), over.set)
    spool.cursors.append(cursor)
    sender.start()
    return sender, spool, log, over


def tick(spool, number):
    layout = statbadger.Layout((statbadger.Series('t', 'n', '', statbadger.GAUGE, (), ()),))
    who = {key: '' for key in statbadger.IDENTITY_KEYS}
    spool.accept(statbadger.Frame(number * 1000, number, who, layout, statbadger.array('d', [number])))


def lines(numbers):
    return ['x.t.n %d %d' % (i, i) for i in numbers]


def test_a_peer_that_closes_while_nothing_is_under_way_is_dialled_again_and_nothing_is_lost_or_said():
    with TcpSink() as sink:
        sender, spool, log, over = sender_to(sink.port)
        for i in range(1, 6):
            tick(spool, i)
            assert until(lambda: sink.lines() == lines(range(1, i + 1)))
            assert until(lambda: sender.cursor.count['sent'] == i)
            sink.hang_up()
        sender.close(soon(2))
        assert over.wait(3)
        assert len(sink.received) == 5
        assert log == [] and sender.failure is None
        assert sender.cursor.count['sent'] == 5 and not sender.cursor.frames


def test_a_connection_that_stays_is_used_for_all_ticks():
    with TcpSink() as sink:
        sender, spool, log, over = sender_to(sink.port)
        for i in range(1, 21):
            tick(spool, i)
        assert until(lambda: sink.lines() == lines(range(1, 21)))
        sender.close(soon(2))
        assert over.wait(3) and len(sink.received) == 1


def test_a_connection_reset_while_nothing_is_under_way_is_dialled_again():
    with TcpSink() as sink:
        sender, spool, log, over = sender_to(sink.port)
        tick(spool, 1)
        assert until(lambda: sender.cursor.count['sent'] == 1 and sink.lines() == lines([1]))
        sink.reset()
        time.sleep(0.05)
        tick(spool, 2)
        assert until(lambda: sink.lines() == lines([1, 2]))
        sender.close(soon(2))
        assert over.wait(3)


def test_a_batch_that_broke_off_half_way_is_sent_whole_on_a_new_connection():
    broken = threading.Event()

    def cut(sock, server):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.recv(1000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
        broken.set()
    with Server(cut) as server:
        sender, spool, log, over = sender_to(server.port, more={'prefix': 'p' * 150})
        layout = statbadger.Layout(tuple(statbadger.Series('t', 'n%05d' % i, '', statbadger.GAUGE, (), ())
                                         for i in range(40000)))
        who = {key: '' for key in statbadger.IDENTITY_KEYS}
        spool.accept(statbadger.Frame(1000, 1, who, layout, statbadger.array('d', range(40000))))
        assert broken.wait(5)
        assert until(lambda: sender.failures, 5)
        assert sender.cursor.count['sent'] == 0 and len(sender.cursor.frames) == 1
        port = server.port
    with TcpSink(port=port) as sink:
        assert until(lambda: sender.cursor.count['sent'] == 1, 15)
        sender.close(soon(15))
        assert over.wait(15)
        got = sink.lines()
        assert len(got) == 40000 and got[0] == 'p' * 150 + '.t.n00000 0 1' and got[-1] == 'p' * 150 + '.t.n39999 39999 1'


def test_a_sink_that_starts_late_gets_everything_from_the_beginning():
    port = free_port()
    sender, spool, log, over = sender_to(port)
    for i in range(1, 8):
        tick(spool, i)
    assert until(lambda: sender.failures)
    with TcpSink(port=port) as sink:
        assert until(lambda: sink.lines() == lines(range(1, 8)), 8)
        assert log[0].startswith('g: ') and 'delivers again' in log[-1]
        sender.close(soon(2))
        assert over.wait(3) and sender.failure is None


def test_datagrams_arrive_as_they_were_sent_and_a_closed_port_is_an_error_not_the_end():
    with UdpSink() as sink:
        link = opener().open(('udp', '127.0.0.1', sink.port), 1, soon(1))
        for i in range(20):
            link.send(b'line %d\n' % i, soon(1))
        assert until(lambda: len(sink.datagrams) == 20)
        assert sink.datagrams == [b'line %d\n' % i for i in range(20)]
        link.close()
    link = opener().open(('udp', '127.0.0.1', sink.port), 1, soon(1))
    with pytest.raises(ConnectionRefusedError):
        for i in range(50):
            link.send(b'x', soon(1))
            time.sleep(0.005)
    link.close()


# -- peers that dial us -----------------------------------------------------------------------

def listening(host='127.0.0.1', port=0):
    return opener().open(('bind', host, port), 2, soon(2))


def port_of(link):
    return link.sock.getsockname()[1]


def test_who_dials_gets_a_link_and_nobody_is_waited_for():
    link = listening()
    with Timed(0, 0.5):
        assert link.accept(2) is None
    with socket.create_connection(('127.0.0.1', port_of(link))) as sock:
        assert until(lambda: select.select([link.fd], [], [], 0)[0])
        one = link.accept(2)
        assert one.name == '127.0.0.1' and link.accept(2) is None
        one.send(b'hello', soon(1))
        assert sock.recv(10) == b'hello'
        sock.sendall(b'yes')
        assert until(lambda: one.available(0, soon(1)) == b'yes')
        assert one.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        one.settle(soon(1))
        one.close()
        assert sock.recv(10) == b''
    link.close()


def test_who_dials_and_has_gone_again_does_no_harm():
    link = listening()
    for _ in range(5):
        sock = socket.create_connection(('127.0.0.1', port_of(link)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
        sock.close()
    for _ in range(6):
        one = link.accept(2)
        if one:
            with pytest.raises(OSError):
                one.settle(soon(1)) or one.available(1, soon(1))
            one.close()
    link.close()


def test_a_port_that_was_listened_at_is_free_at_once_though_its_connections_linger():
    link = listening()
    port = port_of(link)
    with socket.create_connection(('127.0.0.1', port)) as sock:
        assert until(lambda: select.select([link.fd], [], [], 0)[0])
        link.accept(2).close()                  # ours closes first, and lingers in TIME_WAIT
        assert sock.recv(1) == b''
        link.close()
    again = listening(port=port)
    with pytest.raises(OSError) as caught:
        listening(port=port)
    assert caught.value.errno == errno.EADDRINUSE
    again.close()


def test_the_first_address_that_can_be_had_is_listened_at_and_no_descriptor_is_left():
    before = len(os.listdir('/proc/self/fd'))
    link = statbadger.ListeningLink([tcp('192.0.2.77', 0), (250, socket.SOCK_STREAM, 0, '', ('x', 1)), tcp('127.0.0.1', 0)])
    assert link.sock.getsockname()[0] == '127.0.0.1'
    link.close()
    with pytest.raises(OSError):
        statbadger.ListeningLink([tcp('192.0.2.77', 0)] * 3)
    assert len(os.listdir('/proc/self/fd')) == before


def test_all_addresses_are_both_kinds_where_the_kernel_has_both():
    link = listening('*')
    for host in ['127.0.0.1'] + ['::1'] * (link.sock.family == socket.AF_INET6):
        socket.create_connection((host, port_of(link))).close()
    link.close()


def bound_talk(talk, batches=None, timeout=3):
    """Runs a dialogue whose peers dial it; its generator is handed the port."""
    port = free_port()
    batches = batches or Batches(['frame'], ['frame'])
    statbadger.converse(talk(port), batches, ('bind', '127.0.0.1', port), timeout, opener())
    return batches


def test_several_peers_are_accepted_and_each_has_its_link():
    got = []

    def talk(port):
        assert (yield Accept()) is None
        with socket.create_connection(('127.0.0.1', port)) as one, socket.create_connection(('127.0.0.1', port)) as two:
            links = [(yield Accept()), (yield Accept())]
            assert None not in links and (yield Accept()) is None
            names = {one.getsockname(): one, two.getsockname(): two}
            for i, link in enumerate(links):
                yield Send(b'%d' % i, link)
                got.append(names[link.sock.getpeername()].recv(10))
            gone = names[links[0].sock.getpeername()]
            yield Close(links[0])
            got.append(gone.recv(10))
            yield Send(b'still', links[1])
            got.append(names[links[1].sock.getpeername()].recv(10))
    bound_talk(talk)
    assert got == [b'0', b'1', b'', b'still']


def test_a_link_that_does_not_settle_is_closed_and_named_and_the_others_stay():
    got = []

    def talk(port):
        yield Accept()
        with socket.create_connection(('127.0.0.1', port)) as one, socket.create_connection(('127.0.0.1', port)) as two:
            links = [(yield Accept()), (yield Accept())]
            yield Next()
            yield Send(b'x', links[0])
            yield Send(b'y', links[1])
            ports = {sock.getsockname(): sock for sock in (one, two)}
            ports[links[0].sock.getpeername()].close()
            time.sleep(0.05)
            try:
                yield Next()
            except OSError as error:
                got.append(error.link is links[0])
            yield Send(b'z', links[1])
            got.append(ports[links[1].sock.getpeername()].recv(10))
            yield Next()
    bound_talk(talk)
    assert got == [True, b'yz']


def test_frames_are_done_when_every_peer_that_got_some_has_acknowledged_them():
    def talk(port):
        yield Accept()
        deaf, one = socket.socket(), socket.create_connection(('127.0.0.1', port))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(('127.0.0.1', port))
        with deaf, one:
            links = [(yield Accept()), (yield Accept())]
            links.sort(key=lambda link: link.sock.getpeername() == deaf.getsockname())
            yield Next()
            yield Send(b'x', links[0])
            yield Done(1)
            yield Send(bytes(30000), links[1])
            yield Done(2)
            yield Send(b'y', links[0])
            yield Done(3)
            with pytest.raises(OSError):
                yield Read(1, links[0])
    batches = bound_talk(talk, Batches(['a', 'b', 'c']), 0.3)
    assert batches.acknowledged == [1]


def test_what_is_said_aside_is_not_waited_for():
    unheard = []

    def talk(port):
        yield Accept()
        with socket.create_connection(('127.0.0.1', port)):
            link = yield Accept()
            yield Send(b'hello', link, True)
            unheard.append(link.unheard)
            yield Send(b'x', link)
            unheard.append(link.unheard)
            yield Send(b'pong', link, True)
            unheard.append(link.unheard)
    bound_talk(talk)
    assert unheard == [False, True, True]


def test_a_dialogue_that_wants_no_batch_gets_none():
    got = []

    def talk(port):
        yield Accept()
        got.append((yield Next(1, 'nobody is here')))
        got.append((yield Next(1)))
        got.append((yield Next(1, '')))
        raise AssertionError('it is over')
    assert bound_talk(talk, Batches(['frame'])).waits == ['nobody is here', '']
    assert got == [[], ['frame']]


def test_what_is_available_is_waited_for_when_it_is_asked_so():
    def talk(port):
        yield Accept()
        with socket.create_connection(('127.0.0.1', port)) as sock:
            link = yield Accept()
            with Timed(0.05, 1):
                assert (yield Available(link, 0.1)) == b''
            sock.sendall(b'x')
            with Timed(0, 1):
                assert (yield Available(link, 60)) == b'x'
            threading.Timer(0.05, lambda: sock.sendall(b'y')).start()
            with Timed(0, 1):
                assert (yield Available(link, 60)) == b'y'
            with pytest.raises(OSError) as caught:
                yield Available(link, 60)
            assert caught.value.errno == errno.ETIME
    bound_talk(talk, timeout=0.6)


def test_a_peer_that_talks_on_and_on_does_not_stretch_the_deadline_of_what_is_waited_for():
    def talk(port):
        yield Accept()
        with socket.create_connection(('127.0.0.1', port)) as sock:
            link = yield Accept()
            while True:
                sock.sendall(b'x')
                time.sleep(0.01)
                assert (yield Available(link, 60)) == b'x'
    with Timed(0.2, 2), pytest.raises(OSError):
        bound_talk(talk, timeout=0.3)


def test_at_the_end_all_is_closed():
    before, port = len(os.listdir('/proc/self/fd')), []

    def talk(place):
        port.append(place)
        yield Accept()
        with socket.create_connection(('127.0.0.1', place)):
            assert (yield Accept())
            yield Next()
    bound_talk(talk)
    assert len(os.listdir('/proc/self/fd')) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.1', port[0]))


# -- the log ----------------------------------------------------------------------------------

def test_the_log_makes_text_from_outside_printable(tmp_path):
    log = statbadger.Log('info', str(tmp_path / 'log'))
    log('info', u'a\x1b[31m\nb\u2028\udcff' + 'x' * 5000)
    text = (tmp_path / 'log').read_bytes().decode('ascii')
    assert text.count('\n') == 1 and '\x1b' not in text and len(text) < 1200
    assert log.lost == 0


def test_the_log_writes_what_is_important_enough_and_follows_a_file_that_was_moved(tmp_path):
    path = tmp_path / 'log'
    log = statbadger.Log('warning', str(path))
    log('info', 'too low')
    log('warning', 'one')
    path.rename(tmp_path / 'log.1')
    log('error', 'two')
    assert 'one' in (tmp_path / 'log.1').read_text() and 'too low' not in (tmp_path / 'log.1').read_text()
    assert path.read_text().endswith(' statbadger error: two\n')


@pytest.mark.parametrize('dest', ['/dev/full', '/nowhere/at/all', '/', 'a\0b'])
def test_the_log_never_raises_and_counts_what_it_could_not_write(dest):
    log = statbadger.Log('info', dest)
    log('error', 'x')
    assert log.lost == 1


LOG_TO_A_FULL_PIPE = '''
import os, sys, time
import statbadger
reading, writing = os.pipe()
os.dup2(writing, 2)
log = statbadger.Log()
began = time.monotonic()
for i in range(3000):
    log('info', 'x' * 900)
assert time.monotonic() - began < 3
assert log.lost > 2000, log.lost
os.close(reading)
log('info', 'nobody reads')
os.close(2)
log('info', 'closed')
os.write(1, b'fine')
'''


def test_the_log_does_not_wait_for_a_reader_of_standard_error():
    process = subprocess.Popen([sys.executable, '-c', LOG_TO_A_FULL_PIPE], cwd=ROOT, stdout=subprocess.PIPE,
                               env=clean_environment({'PYTHONPATH': ROOT}))
    try:
        out, _ = process.communicate(timeout=10)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert out == b'fine'


LOG_TO_A_FIFO = '''
import os, sys, time
import statbadger
log = statbadger.Log('info', sys.argv[1])
began = time.monotonic()
log('info', 'nobody reads this')
assert time.monotonic() - began < 2
os.write(1, b'%d' % log.lost)
'''


def test_the_log_does_not_wait_for_a_reader_of_a_named_pipe(tmp_path):
    os.mkfifo(str(tmp_path / 'fifo'))
    process = subprocess.Popen([sys.executable, '-c', LOG_TO_A_FIFO, str(tmp_path / 'fifo')], cwd=ROOT,
                               stdout=subprocess.PIPE, env=clean_environment({'PYTHONPATH': ROOT}))
    try:
        out, _ = process.communicate(timeout=1.5)
    except subprocess.TimeoutExpired:
        out = b'hangs'
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert out == b'1'


# -- standard output --------------------------------------------------------------------------

STDOUT_TORN = '''
import fcntl, os, sys, threading, time
import statbadger
reading, writing = os.pipe()
os.dup2(writing, 1)
os.close(writing)
link = statbadger.StdoutLink()
one = b'1' * 200000 + b'\\n'
try:
    link.send(one, time.monotonic() + 0.2)      # a pipe holds 64 KiB: the message is torn
    sys.exit(3)
except OSError:
    pass
got = []
def drain():
    while True:
        piece = os.read(reading, 65536)
        if not piece:
            return
        got.append(piece)
thread = threading.Thread(target=drain)
thread.start()
MORE
os.close(1)
thread.join()
text = b''.join(got)
assert text == EXPECTED, (len(text), text[:10], text[-10:])
os.write(2, b'fine')
'''


@pytest.mark.parametrize('more, expected', [
    ("link.send(one, time.monotonic() + 2)", "one"),
    ("link.send(b'2\\n', time.monotonic() + 2)", "one + b'2\\n'"),
    ("link.send(b'2\\n', time.monotonic() + 2); link.send(one, time.monotonic() + 2)", "one + b'2\\n' + one"),
])
def test_a_message_that_a_full_pipe_tore_is_continued_and_never_mixed_with_another(more, expected):
    code = STDOUT_TORN.replace('MORE', more).replace('EXPECTED', expected)
    process = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stderr=subprocess.PIPE,
                               env=clean_environment({'PYTHONPATH': ROOT}))
    try:
        _, err = process.communicate(timeout=10)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert err == b'fine'
