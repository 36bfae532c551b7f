"""The zeromq emitter: ZMTP against published bytes, peers that are dialled and peers that dial us."""
import errno
import json
import os
import socket
import struct
import time

import pytest

import statbadger
from rig import LAYOUT, Rig, WHO, configured
from sinks import free_port, until
from standins import Proxy
from standins_zeromq import Dialler, ZmqStandin, command, frame, greeting, ready
from statbadger import Available, Dial, Done, Later, Next, Send, ZmqPeer


def bytes_of(text):
    return bytes(bytearray.fromhex(text.replace(' ', '')))


# -- what libzmq 4.3.5 was seen to take, and to send --------------------------------------------

GREETING = bytes_of('ff00000000000000007f03004e554c4c') + bytes(48)
READY_PUSH = bytes_of('041a0552454144590b536f636b65742d547970650000000450555348')
READY_PUB = bytes_of('04190552454144590b536f636b65742d5479706500000003505542')
MESSAGE = bytes_of('01057374617473 000b7b22637075223a312e357d')        # ["stats", "{\"cpu\":1.5}"]
HELLO = bytes_of('04130548454c4c4f05616c69636506736563726574')         # alice, secret
ITS_GREETING = bytes_of('ff00000000000000017f03014e554c4c') + bytes(48)
ITS_PLAIN = bytes_of('ff00000000000000017f0301504c41494e') + bytes(15) + b'\1' + bytes(31)
READY_PULL = b'\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x04PULL'
READY_SUB = b'\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB'
ITS_ERROR = b'\x04\t^RROR\x03400'


def chosen(**options):
    return configured('zeromq', **options).options


def peer(**options):
    return ZmqPeer(chosen(**options))


PLAIN = {'username': 'alice', 'password': 'secret'}


def test_golden_bytes():
    assert peer().greeting == GREETING
    assert peer(**PLAIN).greeting == bytes_of('ff00000000000000007f0300504c41494e') + bytes(47)
    assert peer(bind=True, **PLAIN).greeting == bytes_of('ff00000000000000007f0300504c41494e') + bytes(15) + b'\1' + bytes(31)
    assert peer().feed(ITS_GREETING) == READY_PUSH
    assert peer(pattern='pub').feed(ITS_GREETING) == READY_PUB
    assert peer(**PLAIN).feed(ITS_PLAIN) == HELLO
    assert statbadger.zmtp_frame(b'stats', 1) + statbadger.zmtp_frame(b'{"cpu":1.5}') == MESSAGE
    assert statbadger.zmtp_frame(bytes(300)) == bytes_of('02000000000000012c') + bytes(300)
    assert statbadger.zmtp_frame(bytes(255))[:2] == b'\0\xff' and statbadger.zmtp_frame(bytes(256))[:9] == b'\2' + bytes(6) + b'\1\0'


def one_tick(who=None, n=1):
    return statbadger.Frame(n * 1000, n, who or WHO, LAYOUT, statbadger.array('d', [n] * len(LAYOUT.series)))


def test_a_tick_is_one_message_with_push_and_has_its_topic_in_front_with_pub():
    topic, data = statbadger.zmq_data(chosen(format='graphite', prefix='p'))(one_tick())
    text = b'p.cpu.user 1 1\np.disk.reads.sda 1 1\np.mem.memtotal 1 1\n'
    assert (topic, data) == (b'statbadger', bytes([0, len(text)]) + text)
    topic, data = statbadger.zmq_data(chosen(pattern='pub', topic='a/{cluster}', format='graphite', prefix='p'))(one_tick())
    assert (topic, data) == (b'a/test', b'\1\6a/test' + bytes([0, len(text)]) + text)


def test_a_point_is_a_message_with_flat_each_behind_the_topic():
    topic, data = statbadger.zmq_data(chosen(pattern='pub', topic='t', format='flat'))(one_tick())
    frames, rest = statbadger.zmtp_frames(data, 1 << 20)
    assert [(flags & 1, body[:1]) for flags, body in frames] == [(1, b't'), (0, b'{')] * 3 and rest == b''


@pytest.mark.parametrize('name, topic', [
    ('n1', b'x.n1'), ('a b\n,"\0', b'x.a b\n,"\0'), (u'caf\xe9\ufffd', u'x.caf\xe9\ufffd'.encode()), ('y' * 300, b'x.' + b'y' * 300)])
def test_a_topic_may_be_any_bytes(name, topic):
    found, data = statbadger.zmq_data(chosen(pattern='pub', topic='x.{hostname}'))(one_tick(dict(WHO, hostname=name)))
    frames, rest = statbadger.zmtp_frames(data, 1 << 20)
    assert found == topic and frames[0] == (3 if len(topic) > 255 else 1, topic) and len(frames) == 2


# -- the handshake ------------------------------------------------------------------------------

def fed(one, data, cut=None):
    """What it answers when the bytes come in two pieces, or one by one."""
    pieces = [data[i:i + 1] for i in range(len(data))] if cut is None else [data[:cut], data[cut:]]
    return b''.join([one.feed(piece) for piece in pieces])


TALKS = [
    ({}, ITS_GREETING + READY_PULL, READY_PUSH),
    ({'pattern': 'pub'}, ITS_GREETING + READY_SUB + frame(b'\1stat'), READY_PUB),
    ({'pattern': 'pub'}, ITS_GREETING + ready(b'XSUB') + command(b'SUBSCRIBE', b'stat'), READY_PUB),
    (PLAIN, ITS_PLAIN + command(b'WELCOME') + READY_PULL, HELLO + command(b'INITIATE', READY_PUSH[8:])),
    (dict(PLAIN, bind=True), greeting(b'PLAIN') + HELLO + ready(b'PULL', b'INITIATE'), command(b'WELCOME') + READY_PUSH),
    ({'bind': True}, ITS_GREETING + READY_PULL + command(b'PING', b'\0\1abc') + command(b'PING', b'\0\0'),
     READY_PUSH + command(b'PONG', b'abc') + command(b'PONG')),
    ({}, ITS_GREETING + command(b'FOO', bytes(300)) + ready(b'PULL', b'READY', b'\x01X\0\0\0\2hi') + command(b'FOO') + command(b'PONG', b'x'), READY_PUSH),
]


@pytest.mark.parametrize('options, data, answer', TALKS, ids=range(len(TALKS)))
def test_a_handshake_may_be_cut_anywhere(options, data, answer):
    for cut in list(range(len(data) + 1)) + [None]:
        one = peer(**options)
        assert one.wants(b'statbadger') is False
        assert fed(one, data, cut) == answer, cut
        assert not one.due and one.wants(b'statbadger') and not one.buffer


@pytest.mark.parametrize('options, data', [(options, data) for options, data, _ in TALKS[:6]])
def test_nobody_is_ready_before_the_handshake_is_over(options, data):
    one = peer(**options)
    for i in range(len(data)):
        if one.wants(b'statbadger'):
            assert not one.due and i > 64
        one.feed(data[i:i + 1])
    assert one.wants(b'statbadger')


@pytest.mark.parametrize('options, data, words, pause', [
    (PLAIN, ITS_PLAIN + ITS_ERROR, '"400" (are username and password right?)', 300),
    (PLAIN, ITS_PLAIN + command(b'ERROR', b'\x03400'), '"400" (are username and password right?)', 300),
    (PLAIN, ITS_PLAIN + command(b'ERROR', b'\x03300'), 'ERROR "300"', 0),
    ({}, ITS_GREETING + command(b'ERROR', b'\x11Invalid \xff\n thing'), 'ERROR "Invalid \\ufffd\\n thing"', 300),
    ({}, ITS_GREETING + READY_PULL + command(b'ERROR'), 'ERROR ""', 300),
    ({}, ITS_GREETING + ready(b'REP'), 'the peer is a "REP" socket, need PULL', 60),
    ({}, ITS_GREETING + READY_SUB, 'the peer is a "SUB" socket, need PULL', 60),
    ({'pattern': 'pub'}, ITS_GREETING + READY_PULL, 'the peer is a "PULL" socket, need SUB or XSUB', 60),
    ({}, ITS_GREETING + command(b'READY'), 'the peer is a "" socket', 60),
    ({}, ITS_PLAIN, 'the mechanism of the peer is "PLAIN", need NULL, or username and password', 300),
    ({}, greeting(b'CURVE'), 'the mechanism of the peer is "CURVE", need NULL', 300),
    (PLAIN, ITS_GREETING, 'the mechanism of the peer is "NULL", need PLAIN, or neither of these two', 300),
    ({}, greeting(bytes([0xff, 10, 0x41])), 'the mechanism of the peer is "\\ufffd\\nA"', 300),
    ({}, bytes_of('ff00000000000000017f0105'), 'revision 1 of ZMTP, need 3: libzmq 4.0 or newer', 60),
])
def test_a_peer_that_is_not_willing_or_not_the_one_we_want_is_asked_again_later(options, data, words, pause):
    for cut in (0, len(data) - 1, None):
        with pytest.raises(Later) as caught:
            fed(peer(**options), data, cut)
        assert words in str(caught.value) and caught.value.wait == pause and caught.value.errno is None


@pytest.mark.parametrize('data, words', [
    (b'HTTP/1.1 400 Bad', 'no ZeroMQ there: found 48'), (b'\x01\0', 'no ZeroMQ'), (b'\xff' + bytes(9), 'no ZeroMQ'),
    (ITS_GREETING + b'\x08\0', 'begins with 8'), (ITS_GREETING + b'\xff', 'begins with 255'),
    (ITS_GREETING + b'\6' + b'\xff' * 8, 'a frame of 18446744073709551615 bytes, need 8192 at most'),
    (ITS_GREETING + READY_PULL + b'\2' + struct.pack('>Q', 8193), 'a frame of 8193 bytes'),
    (ITS_GREETING + frame(b'\1'), 'a message where READY was due'),
    (ITS_GREETING + command(b'WELCOME'), 'found WELCOME, need READY'),
    (ITS_GREETING + command(b'HELLO', b'\0\0'), 'found HELLO, need READY'),
    (ITS_GREETING + frame(b'', 4), 'cut short'), (ITS_GREETING + frame(b'\x09READY', 4), 'cut short'),
    (ITS_GREETING + READY_PULL[:-1].replace(b'\x04\x1a', b'\x04\x19'), 'cut short'),
    (ITS_GREETING + command(b'READY', b'\x0bSocket-Type\xff\xff\xff\xffPULL'), 'cut short'),
    (ITS_GREETING + command(b'READY', b'\x0bSocket-Type\0\0'), 'cut short'),
])
def test_what_is_no_zmtp_is_an_error_that_says_what_was_seen(data, words):
    for cut in (0, None):
        with pytest.raises(OSError) as caught:
            fed(peer(), data, cut)
        assert words in str(caught.value) and caught.value.errno == errno.EPROTO


@pytest.mark.parametrize('hello', [b'\5alice\6Secret', b'\5alice\5secre', b'\5Alice\6secret', b'', b'\0\0', b'\xff', b'\5alice\6secret!'])
def test_who_logs_in_wrong_is_told_and_turned_away(hello):
    one = peer(bind=True, **PLAIN)
    assert one.feed(greeting(b'PLAIN') + command(b'HELLO', hello) + ready(b'PULL', b'INITIATE')) == b'\x04\x0a\x05ERROR\x03400'
    assert one.refusal == 'wrong username or password' and not one.wants(b'')


def test_who_does_not_log_in_is_not_let_in():
    one = peer(bind=True, **PLAIN)
    with pytest.raises(OSError):
        one.feed(greeting(b'PLAIN') + ready(b'PULL', b'INITIATE'))
    with pytest.raises(Later):
        peer(bind=True, **PLAIN).feed(ITS_GREETING + READY_PULL)


# -- subscriptions ------------------------------------------------------------------------------

def subscriber():
    one = peer(pattern='pub')
    one.feed(ITS_GREETING + READY_SUB)
    return one


@pytest.mark.parametrize('on, off', [(lambda t: frame(b'\1' + t), lambda t: frame(b'\0' + t)),
                                     (lambda t: command(b'SUBSCRIBE', t), lambda t: command(b'CANCEL', t))])
def test_subscriptions_are_prefixes_and_counted(on, off):
    one = subscriber()
    assert not one.wants(b'') and not one.wants(b'stat')
    one.feed(on(b'st') + on(b'st') + on(b'stats.n1') + off(b'never'))
    assert one.wants(b'st') and one.wants(b'statbadger') and not one.wants(b's') and not one.wants(b'') and not one.wants(b'x')
    one.feed(off(b'st'))
    assert one.wants(b'stx')
    one.feed(off(b'st') + off(b'st') + off(b'st'))
    assert not one.wants(b'stx') and one.wants(b'stats.n12')
    one.feed(on(b''))
    assert one.wants(b'') and one.wants(b'x')
    one.feed(off(b'') + off(b'stats.n1'))
    assert not one.topics and one.room == subscriber().room


def test_messages_of_a_peer_that_are_no_subscription_are_ignored():
    one = subscriber()
    one.feed(frame(b'') + frame(b'\2x') + frame(b'hello') + frame(b'\1more', 1) + frame(b'\1x', 1) + frame(b'\1y'))
    assert one.topics == {}
    one.feed(frame(b'\1z'))
    assert one.topics == {b'z': 1}


def test_what_one_peer_subscribes_to_is_bounded():
    one = subscriber()
    with pytest.raises(OSError) as caught:
        for i in range(100000):
            one.feed(frame(b'\1topic %d' % i))
    assert 'subscribes to more than' in str(caught.value) and 1000 < len(one.topics) < 5000
    one = subscriber()
    for i in range(100000):                     # the same one is no more than one
        one.feed(frame(b'\1topic'))


# -- options ------------------------------------------------------------------------------------

@pytest.mark.parametrize('endpoint, bind, target', [
    ('tcp://127.0.0.1:5556', False, ('tcp', '127.0.0.1', 5556, None)), ('tcp://[::1]:5556', False, ('tcp', '::1', 5556, None)),
    ('tcp://collector.example:1', False, ('tcp', 'collector.example', 1, None)),
    ('tcp://*:5556', True, ('bind', '*', 5556, True)), ('tcp://[::]:5556', True, ('bind', '::', 5556, True))])
def test_where_it_talks_to(endpoint, bind, target):
    assert statbadger.zeromq_link(chosen(endpoint=endpoint, bind=bind)) == target


@pytest.mark.parametrize('options, words', [
    ({'endpoint': 'tcp://*:5556'}, 'without "bind", need a host to connect to'),
    ({'endpoint': '10.0.0.9:5556'}, 'need an endpoint such as "tcp://10.0.0.9:5556"'),
    ({'endpoint': 'tcp://10.0.0.9'}, 'need an endpoint'), ({'endpoint': 'tcp://h:*'}, 'need an endpoint'),
    ({'endpoint': 'tcp://h:0'}, 'need an endpoint'), ({'endpoint': 'tcp://h:65536'}, 'need an endpoint'),
    ({'endpoint': 'ipc:///tmp/x'}, 'need an endpoint'), ({'endpoint': 'tcp://:1'}, 'need an endpoint'),
    ({'endpoint': 'tcp://a:b@h:1'}, 'need an endpoint'), ({'endpoint': 7}, 'text'), ({'endpoint': ''}, 'need an endpoint'),
    ({'pattern': 'pair'}, '"push", "pub"'), ({'topic': '{nobody}'}, 'hostname'),
    ({'username': 'x' * 256}, 'a username of 256 bytes, need 255 at most'),
    ({'password': u'\xe9' * 128}, 'a password of 256 bytes, need 255 at most'),
    ({'format': 'flat', 'tags': {'metric': 'x'}}, 'found a tag "metric"')])
def test_mistakes_in_options_are_named(options, words):
    with pytest.raises(statbadger.ConfigError) as caught:
        configured('zeromq', **options)
    assert words in str(caught.value) and u'\xe9\xe9' not in str(caught.value)


# -- the dialogue with a peer that is dialled -----------------------------------------------------

class Script:
    """Performs the steps: `says` is what the peer says, a piece at each look; sent: what it was sent."""

    def __init__(self, dialogue, batches, says):
        self.batches, self.says, self.sent, self.steps = list(batches), list(says), [], []
        answer = None
        try:
            while True:
                step = dialogue.send(answer)
                self.steps.append(step)
                answer = self.perform(step)
        except StopIteration:
            pass
        dialogue.close()

    def perform(self, step):
        if isinstance(step, Next):
            if not self.batches:
                raise StopIteration
            return self.batches.pop(0)
        if isinstance(step, Dial):
            return 'link'
        if isinstance(step, Available):
            return self.says.pop(0) if self.says else b''
        if isinstance(step, Send):
            assert step.link == 'link'
            self.sent.append((step.data, step.aside))
        else:
            assert isinstance(step, Done)
        return None


def test_it_dials_when_there_is_a_tick_and_each_tick_is_done_once_it_is_sent():
    options = chosen(format='graphite', prefix='p', blacklist=['disk.*', 'mem.*'])
    script = Script(statbadger.zeromq(options, {}), [[one_tick(), one_tick(n=2)], [], [one_tick(n=3)]],
                    [ITS_GREETING, READY_PULL, b'', command(b'PING', b'\0\0c')])
    assert script.sent == [(GREETING, True), (READY_PUSH, True), (b'', True), (b'\0\x0fp.cpu.user 1 1\n', False),
                           (b'\0\x0fp.cpu.user 2 2\n', False), (command(b'PONG', b'c'), True), (b'\0\x0fp.cpu.user 3 3\n', False)]
    assert [type(step) for step in script.steps[:3]] == [Next, Dial, Send] and script.steps[0].idle is None
    assert [step.n for step in script.steps if isinstance(step, Done)] == [1, 2, 1]
    assert [step.idle for step in script.steps if isinstance(step, Next)][1:] == [60, 60, 60]


def test_a_subscriber_has_a_moment_for_its_first_subscription_and_what_it_does_not_want_is_gone():
    options = chosen(pattern='pub', topic='t', format='graphite', prefix='p', blacklist=['disk.*', 'mem.*'])
    says = [ITS_GREETING + READY_SUB, b'', b'', frame(b'\1t'), b'', frame(b'\0t')]
    script = Script(statbadger.zeromq(options, {}), [[one_tick()], [one_tick(n=2)]], says)
    assert [data for data, aside in script.sent if not aside] == [b'\1\1t\0\x0fp.cpu.user 1 1\n']
    assert [step.n for step in script.steps if isinstance(step, Done)] == [1, 1]
    says = [ITS_GREETING + READY_SUB]
    script = Script(statbadger.zeromq(options, {}), [[one_tick()]], says)
    waits = [step.wait for step in script.steps if isinstance(step, Available)]
    assert waits == [60] + [0.1] * 5 + [0] and len([1 for step in script.steps if isinstance(step, Done)]) == 1


def test_a_tick_of_nothing_but_holes_sends_nothing():
    tick = statbadger.Frame(1000, 1, WHO, LAYOUT, statbadger.array('d', [float('nan')] * 3))
    for pattern in ('push', 'pub'):
        script = Script(statbadger.zeromq(chosen(pattern=pattern, format='graphite'), {}), [[tick]],
                        [ITS_GREETING + (READY_PULL if pattern == 'push' else READY_SUB), frame(b'\1')])
        assert all(aside for data, aside in script.sent)
        assert [step.n for step in script.steps if isinstance(step, Done)] == [1]


def numbers(server):
    return [int(json.loads(body.decode())['timestamp']) for body in server.bodies()]


@pytest.mark.parametrize('kind, pattern', [('PULL', 'push'), ('SUB', 'pub'), ('XSUB', 'pub')])
@pytest.mark.parametrize('users', [None, {'alice': 'secret'}])
def test_a_bound_peer_gets_every_tick(kind, pattern, users):
    with ZmqStandin(kind, users) as server:
        with Rig('zeromq', endpoint='tcp://127.0.0.1:%d' % server.port, pattern=pattern, **(PLAIN if users else {})) as rig:
            rig.tick(*range(1, 21))
            assert rig.settled()['sent'] == 20
            assert until(lambda: numbers(server) == list(range(1, 21)))
            assert rig.log == [] and server.connections == 1 and server.complaints == []


def test_a_bound_peer_that_sends_pings_while_nothing_else_is_said_gets_its_answers():
    with ZmqStandin() as server:
        server.ping = True
        with Rig('zeromq', endpoint='tcp://127.0.0.1:%d' % server.port) as rig:
            rig.tick(1)
            assert until(lambda: server.pongs == 2 and numbers(server) == [1])
            rig.tick(2)
            assert until(lambda: server.pongs == 3 and numbers(server) == [1, 2])
            assert rig.settled()['sent'] == 2 and server.connections == 1 and server.complaints == []


@pytest.mark.parametrize('reset', [False, True])
def test_a_peer_that_goes_while_nothing_is_under_way_gets_the_last_seconds_again_and_nothing_is_said(reset):
    with ZmqStandin() as server:
        with Rig('zeromq', endpoint='tcp://127.0.0.1:%d' % server.port) as rig:
            rig.tick(1, 2)
            assert until(lambda: numbers(server) == [1, 2] and rig.settled()['sent'] == 2)
            server.hang_up(reset)
            assert until(lambda: rig.cursor.broke)
            rig.tick(3)
            assert until(lambda: numbers(server) == [1, 2, 1, 2, 3]) and rig.settled()['sent'] == 3
            assert rig.log == [] and rig.sender.failure is None


def test_a_handshake_that_breaks_off_takes_nothing_of_the_last_seconds_along():
    with ZmqStandin() as server, Proxy(server.port) as proxy:
        with Rig('zeromq', endpoint='tcp://127.0.0.1:%d' % proxy.port, timeout=60) as rig:
            rig.tick(1, 2)
            assert until(lambda: numbers(server) == [1, 2] and rig.settled()['sent'] == 2)
            proxy.cut_answers(70, times=5)
            proxy.hang_up()
            assert until(lambda: rig.cursor.broke)
            rig.tick(3)
            assert rig.settled()['sent'] == 3 and until(lambda: numbers(server) == [1, 2, 1, 2, 3])
            assert proxy.cuts == 5
            assert 'closed by the peer before its READY: is it a PULL socket that wants no login?' in rig.said()


# -- the dialogue with peers that dial us ---------------------------------------------------------

def published(rig, *diallers, **more):
    """Ticks until each of them has got one; the number of the next tick."""
    n = 1
    while not all(one.messages for one in diallers):
        rig.tick(n, **more)
        rig.settled()
        n += 1
        assert n < 500
        time.sleep(0.01)
    return n


def bound(port, **options):
    return Rig('zeromq', endpoint='tcp://127.0.0.1:%d' % port, bind=True, **options)


def test_ticks_go_round_those_that_are_connected():
    port = free_port()
    with bound(port) as rig, Dialler(port) as one, Dialler(port) as two, Dialler(port) as three:
        assert until(lambda: one.ready.is_set() and two.ready.is_set() and three.ready.is_set())
        for n in range(1, 31):
            rig.tick(n)
            rig.settled()
        assert until(lambda: sorted(one.numbers() + two.numbers() + three.numbers()) == list(range(1, 31)))
        assert [len(each.messages) for each in (one, two, three)] == [10, 10, 10]
        assert rig.adds_up()['sent'] == 30 and rig.log == []


def test_without_a_peer_ticks_wait_are_not_lost_and_it_is_said_once():
    port = free_port()
    with bound(port) as rig:
        rig.tick(1, 2, 3)
        rig.until(lambda: rig.log)
        assert rig.adds_up() == dict(rig.adds_up(), accepted=3, sent=0, dropped=0) and rig.cursor.pinned == 0
        with Dialler(port) as one:
            assert until(lambda: one.numbers() == [1, 2, 3]) and rig.settled()['sent'] == 3
            rig.tick(4)
            assert until(lambda: one.numbers() == [1, 2, 3, 4]) and rig.settled()['sent'] == 4
    assert [text for level, text in rig.log] == ['zeromq: no PULL is connected; the ticks wait', 'zeromq: delivers again']


def test_without_a_peer_the_oldest_make_room_when_the_spool_is_full():
    port = free_port()
    with bound(port, most=65536) as rig:
        rig.tick(*range(1, 301))
        count = rig.adds_up()
        assert count['sent'] == 0 and count['dropped'] > 100
        with Dialler(port) as one:
            rig.settled()
            assert until(lambda: one.numbers() == list(range(1 + count['dropped'], 301)))


@pytest.mark.parametrize('stop', ['silent', 'half'])
def test_a_handshake_that_does_not_end_holds_nobody_and_is_ended(stop):
    port = free_port()
    with bound(port, timeout=60) as rig, Dialler(port, stop=stop) as slow, Dialler(port) as one:
        assert until(one.ready.is_set)
        began = time.monotonic()
        rig.tick(*range(1, 11))
        assert rig.settled()['sent'] == 10 and until(lambda: one.numbers() == list(range(1, 11)))
        assert time.monotonic() - began < 30 and not slow.ended.is_set()
    port = free_port()
    with bound(port, timeout=0.2) as rig, Dialler(port, stop=stop) as slow, Dialler(port) as one:
        assert until(one.ready.is_set)
        n = 1
        while not slow.ended.is_set():
            rig.tick(n)
            n += 1
            time.sleep(0.02)
            assert n < 500
        rig.settled()
        assert until(lambda: one.numbers() == list(range(1, n)))
        assert [text for level, text in rig.log] == ['zeromq: turned 127.0.0.1 away: no handshake within the time allowed']


@pytest.mark.parametrize('reset', [False, True])
def test_what_a_peer_had_not_read_perhaps_goes_to_another(reset):
    port = free_port()
    with bound(port) as rig, Dialler(port) as one, Dialler(port) as two:
        assert until(lambda: one.ready.is_set() and two.ready.is_set())
        for n in range(1, 7):
            rig.tick(n)
            rig.settled()
        assert until(lambda: len(one.messages) == 3 and len(two.messages) == 3)
        gone = one.numbers()
        one.close(reset)
        assert until(lambda: sorted(two.numbers()) == list(range(1, 7)))
        assert two.numbers()[3:] == gone
        rig.tick(7)
        assert until(lambda: two.numbers()[6:] == [7])
        assert rig.settled()['sent'] == 7 and rig.log == []


def test_what_was_given_long_ago_goes_to_nobody_else():
    port = free_port()
    with bound(port) as rig, Dialler(port) as one, Dialler(port) as two:
        assert until(lambda: one.ready.is_set() and two.ready.is_set())
        for n in range(1, 41):
            rig.tick(n)
            rig.settled()
        assert until(lambda: len(one.messages) + len(two.messages) == 40)
        gone = one.numbers()
        one.close()
        again = [n for n in gone if n > 30]
        assert until(lambda: len(two.messages) == 20 + len(again)) and two.numbers()[20:] == again


@pytest.mark.parametrize('reset', [False, True])
def test_when_the_last_peer_goes_the_next_one_gets_the_last_seconds_again(reset):
    port = free_port()
    with bound(port) as rig:
        with Dialler(port) as one:
            rig.tick(1, 2)
            assert until(lambda: one.numbers() == [1, 2]) and rig.settled()['sent'] == 2
            one.close(reset)
        assert until(lambda: rig.cursor.broke)
        with Dialler(port) as two:
            assert until(two.ready.is_set)
            rig.tick(3)
            assert until(lambda: two.numbers() == [1, 2, 3]) and rig.settled()['sent'] == 3
        assert rig.sender.failure is None


def test_peers_come_and_go_while_ticks_flow_and_nothing_is_missing():
    port, got = free_port(), set()
    with bound(port) as rig, Dialler(port) as steady:
        assert until(steady.ready.is_set)
        n = 1
        for turn in range(12):
            with Dialler(port) as one:
                assert until(one.ready.is_set)
                for _ in range(10):
                    rig.tick(n)
                    n += 1
                if turn % 3:
                    rig.settled()
                one.close(turn % 2)
                got.update(one.numbers())
        rig.settled()
        assert until(lambda: got | set(steady.numbers()) == set(range(1, n))), set(range(1, n)) - got - set(steady.numbers())
        assert rig.adds_up()['sent'] == n - 1


@pytest.mark.parametrize('pattern, kind', [('push', 'PULL'), ('pub', 'SUB')])
def test_a_peer_that_reads_nothing_holds_the_others_for_no_longer_than_the_timeout(pattern, kind):
    port = free_port()
    wide = statbadger.Layout(tuple(statbadger.Series('t', 'n%d' % i, '', statbadger.GAUGE, (), ()) for i in range(3000)))
    with bound(port, pattern=pattern, timeout=3) as rig, Dialler(port, kind) as one, Dialler(port, kind, stop='deaf') as deaf:
        assert until(lambda: one.ready.is_set() and deaf.ready.is_set())
        first = published(rig, one)
        for n in range(first, first + 20):
            rig.tick(n, layout=wide)
        assert rig.settled(20)['sent'] == first + 19
        assert until(lambda: set(range(first, first + 20)) <= set(one.numbers()), 20)
        assert [text for level, text in rig.log] == ['zeromq: turned 127.0.0.1 away: it does not read']


@pytest.mark.parametrize('old', [True, False])
def test_each_subscriber_gets_what_it_subscribed_to(old):
    port = free_port()
    with bound(port, pattern='pub', topic='stats.{hostname}') as rig, \
            Dialler(port, 'SUB', topics=[b'stats.', b'stats.n1'], old=old) as one, \
            Dialler(port, 'SUB', topics=[b'stats.n2', b'x'], old=old) as two, Dialler(port, 'SUB', topics=[], old=old) as three:
        assert until(lambda: one.ready.is_set() and two.ready.is_set() and three.ready.is_set())
        n = published(rig, one, two, who=dict(WHO, hostname='n2'))
        rig.tick(n)
        rig.tick(n + 1, who=dict(WHO, hostname='n2'))
        rig.settled()
        assert until(lambda: one.numbers()[-2:] == [n, n + 1] and two.numbers()[-1] == n + 1)
        assert n not in two.numbers() and three.messages == []
        assert one.messages[-2][0] == b'stats.n1' and two.messages[0][0] == b'stats.n2'
        one.subscribe(b'stats.', False)
        two.subscribe(b'', True)
        n += 1
        while not set(two.numbers()) & set(range(n, n + 500)):
            n += 1
            rig.tick(n)
            rig.settled()
            assert n < 500
            time.sleep(0.01)
        assert rig.adds_up()['sent'] == rig.adds_up()['accepted'] and rig.log == []


def test_without_a_subscriber_what_is_published_is_gone_after_a_moment():
    port = free_port()
    with bound(port, pattern='pub') as rig:
        began = time.time()
        rig.tick(1)
        assert rig.settled()['sent'] == 1 and time.time() - began > 0.4
        rig.tick(2, 3)
        rig.settled()
        with Dialler(port, 'SUB') as one:
            assert until(one.ready.is_set)
            n = 4
            while not one.messages:
                rig.tick(n)
                rig.settled()
                n += 1
                assert n < 500
                time.sleep(0.01)
            assert one.numbers()[0] >= 4
        assert rig.log == []


def test_the_first_tick_waits_a_moment_for_the_first_subscriber():
    port = free_port()
    with Dialler(port, 'SUB') as one, bound(port, pattern='pub') as rig:
        rig.tick(1)
        assert rig.settled()['sent'] == 1 and until(lambda: one.numbers() == [1])


def test_peers_that_dial_us_have_to_log_in_when_there_is_a_login():
    port = free_port()
    with bound(port, **PLAIN) as rig, Dialler(port, login=(b'alice', b'secret')) as right, \
            Dialler(port, login=(b'alice', b'Secret')) as wrong, Dialler(port) as none:
        assert until(lambda: right.ready.is_set() and wrong.ended.is_set() and none.ended.is_set())
        rig.tick(1, 2, 3)
        assert rig.settled()['sent'] == 3 and until(lambda: right.numbers() == [1, 2, 3])
        assert wrong.messages == none.messages == [] and wrong.said.endswith(b'\x05ERROR\x03400')
        assert len(rig.log) == 1 and 'secret' not in rig.said().lower().replace('password', '')
        assert rig.log[0][1] in ('zeromq: turned 127.0.0.1 away: wrong username or password',
                                 'zeromq: turned 127.0.0.1 away: the mechanism of the peer is "NULL", need PLAIN, or neither of these two')


def test_who_logs_in_wrong_is_turned_away_at_once_and_may_come_again():
    port = free_port()
    with bound(port, timeout=60, **PLAIN) as rig:
        for _ in range(3):
            with Dialler(port, login=(b'alice', b'Secret')) as wrong:
                assert until(wrong.ended.is_set)
        with Dialler(port, login=(b'alice', b'secret')) as right:
            assert until(right.ready.is_set)
        assert [text for level, text in rig.log] == ['zeromq: turned 127.0.0.1 away: wrong username or password']


def test_the_wrong_type_of_socket_is_named_and_gets_nothing():
    port = free_port()
    with bound(port) as rig, Dialler(port, 'SUB') as wrong:
        assert until(wrong.ended.is_set)
        rig.tick(1)
        with Dialler(port) as right:
            assert until(lambda: right.numbers() == [1])
        assert 'zeromq: turned 127.0.0.1 away: the peer is a "SUB" socket, need PULL' in [text for level, text in rig.log]


def test_garbage_from_peers_that_dial_us_does_no_harm():
    port = free_port()
    seed = int.from_bytes(os.urandom(4), 'big')
    print('seed', seed)
    import random
    dice = random.Random(seed)
    good = [ITS_GREETING, READY_PULL, command(b'PING', b'\0\0'), frame(b'\1x')]
    with bound(port) as rig, Dialler(port) as one:
        assert until(one.ready.is_set)
        for n in range(1, 61):
            with socket.create_connection(('127.0.0.1', port)) as sock:
                data = b''.join(good[:dice.randrange(5)])
                at = dice.randrange(len(data) + 1)
                data = data[:at] + bytes(dice.randrange(256) for _ in range(dice.randrange(100))) + data[at:]
                try:
                    sock.sendall(data)
                except OSError:
                    pass
                rig.tick(n)
                if n % 2:
                    rig.settled()
        rig.tick(61)
        rig.settled()
        assert until(lambda: 61 in one.numbers())
        assert not any('Traceback' in text or 'statbadger.py' in text for level, text in rig.log)


def test_there_are_only_so_many_peers_and_those_that_are_ready_stay():
    port = free_port()
    with bound(port, timeout=60) as rig, Dialler(port) as one:
        assert until(one.ready.is_set)
        many = [Dialler(port, stop='silent') for _ in range(statbadger.ZMQ_PEERS + 20)]
        try:
            assert until(lambda: sum(each.ended.is_set() for each in many) >= 21, 10)
            rig.tick(1)
            assert rig.settled()['sent'] == 1 and until(lambda: one.numbers() == [1])
            assert sum(each.ended.is_set() for each in many) == 21
            with Dialler(port) as two:
                assert until(two.ready.is_set)
        finally:
            for each in many:
                each.close()


# -- the port, reloads, the end -------------------------------------------------------------------

def test_a_port_that_is_taken_is_said_and_tried_again():
    holder = socket.socket()
    holder.bind(('127.0.0.1', 0))
    holder.listen(1)
    port = holder.getsockname()[1]
    with bound(port) as rig:
        rig.tick(1)
        rig.until(lambda: rig.log)
        assert 'Address already in use' in rig.log[0][1]
        holder.close()
        with Dialler(port) as one:
            assert until(lambda: one.numbers() == [1]) and rig.settled()['sent'] == 1


def test_a_reload_listens_elsewhere_and_what_waits_goes_there():
    first, second = free_port(), free_port()
    with bound(first) as rig:
        rig.tick(1, 2)
        rig.until(lambda: rig.log)
        rig.renew(endpoint='tcp://127.0.0.1:%d' % second, bind=True)
        with Dialler(second) as one:
            assert until(lambda: one.numbers() == [1, 2]) and rig.settled()['sent'] == 2
        with pytest.raises(OSError):
            socket.create_connection(('127.0.0.1', first)).close()
        rig.renew(endpoint='tcp://127.0.0.1:%d' % first, bind=True)
        with Dialler(first) as one:
            assert until(one.ready.is_set)


def test_the_end_closes_the_port_and_every_connection():
    port, before = free_port(), len(os.listdir('/proc/self/fd'))
    with Dialler(port) as one:
        with bound(port) as rig:
            rig.tick(1)
            rig.settled()
        assert until(one.ended.is_set) and one.numbers() == [1]
        rig.cursor.bell.close()
    assert len(os.listdir('/proc/self/fd')) == before
    with bound(port) as rig, Dialler(port) as two:        # and is free at once, though connections linger
        assert until(two.ready.is_set)


def test_the_end_comes_also_when_nobody_is_there_and_says_why():
    with bound(free_port()) as rig:
        rig.tick(1)
    assert rig.sender.shortfall() == 'zeromq: 1 of 1 ticks were not delivered: no PULL is connected'
    with bound(free_port()) as rig:
        pass
    assert rig.sender.shortfall() is None
    with bound(free_port(), pattern='pub') as rig:
        pass
    assert rig.sender.shortfall() is None


@pytest.mark.parametrize('endpoint, host', [('tcp://*:%d', '127.0.0.1'), ('tcp://*:%d', '::1'), ('tcp://[::1]:%d', '::1'),
                                            ('tcp://localhost:%d', '127.0.0.1')])
def test_where_it_listens(endpoint, host):
    if ':' in host:
        try:
            with socket.socket(socket.AF_INET6) as sock:
                sock.bind(('::1', 0))
        except OSError as error:
            pytest.skip('no IPv6 loopback: %s' % error)
    port = free_port()
    with Rig('zeromq', endpoint=endpoint % port, bind=True) as rig, Dialler(port, host=host) as one:
        rig.tick(1)
        assert rig.settled()['sent'] == 1 and until(lambda: one.numbers() == [1])
