"""The activemq emitter: STOMP frames, what it makes of every kind of answer, heart-beats, and what goes twice."""
import errno
import json
import time

import pytest
import statbadger
from rig import LAYOUT, Played, Rig, WHO, configured, role_of
from standins import certificates
from standins_stomp import StompStandin, unescaped
from statbadger import Available, Close, Dial, Done, Later, Next, Now, Read, Refused, Reject, Say, Send, Wait

PASSWORD = 'pa55 w/rd&"+sesame'
CONNECTED = b'CONNECTED\nversion:1.2\n\n\0'


def frame(number=1, who=WHO, layout=LAYOUT, run='run'):
    one = statbadger.Frame(number * 1000, number, who, layout, statbadger.array('d', [number] * len(layout.series)))
    one.run, one.seq = run, number
    return one


# -- frames --------------------------------------------------------------------------------------

def test_a_frame_is_a_command_headers_and_a_body_that_ends_with_a_nul():
    # stomp.github.io, STOMP 1.2, "STOMP Frames" and "SEND"
    assert statbadger.stomp_frame('SEND', [('destination', '/queue/a'), ('content-type', 'text/plain')], '1.2',
                                  b'hello queue a') == (
        b'SEND\ndestination:/queue/a\ncontent-type:text/plain\n\nhello queue a\0')
    assert statbadger.stomp_frame('CONNECT', [('accept-version', '1.2'), ('host', 'stomp.github.org')], '1.0') == (
        b'CONNECT\naccept-version:1.2\nhost:stomp.github.org\n\n\0')


@pytest.mark.parametrize('version, text', [
    ('1.2', 'a\\cb\\\\c\\n\\r'),         # "Value Encoding": \r, \n, \c and \\
    ('1.1', 'a\\cb\\\\c\\n\r'),          # 1.1 has no \r
    ('1.0', 'a:b\\c\n\r')])              # and 1.0 has none
def test_headers_are_escaped_as_the_version_has_it(version, text):
    assert statbadger.stomp_escaped('a:b\\c\n\r', version) == text
    assert unescaped(text, version) == 'a:b\\c\n\r'
    if version == '1.2':
        assert statbadger.stomp_unescaped(text) == 'a:b\\c\n\r'


def test_what_is_no_escape_stays_as_it_is():
    assert statbadger.stomp_unescaped('\\t \\') == '\\t \\'
    assert statbadger.stomp_unescaped('a\\\\c') == 'a\\c' and statbadger.stomp_unescaped('\\\\\\c') == '\\:'


STREAM = (b'\n\r\nCONNECTED\r\nversion:1.2\r\nserver:x/1 y\r\n\r\n\0\n\n'
          b'RECEIPT\nreceipt-id:m\\c1\nreceipt-id:other\nbroken\n\n\0'
          b'ERROR\nmessage:no\ncontent-length:5\n\na\0b\nc\0\r\n'
          b'ERROR\ncontent-length:99999999\n\nwithout\n\nend\0'
          b'ERROR\n\n\n\0\n')
FRAMES = [('CONNECTED', {'version': '1.2', 'server': 'x/1 y'}, ''), ('RECEIPT', {'receipt-id': 'm\\c1', 'broken': ''}, ''),
          ('ERROR', {'message': 'no', 'content-length': '5'}, 'a\0b\nc'),
          ('ERROR', {'content-length': '99999999'}, 'without\n\nend'), ('ERROR', {}, '\n')]


def clean(frames):
    return [(command, {k: v for k, v in headers.items() if k}, body) for command, headers, body in frames]


def test_frames_are_read_wherever_they_are_cut():
    assert clean(statbadger.stomp_frames(STREAM)[0]) == FRAMES
    for cut in range(len(STREAM)):
        found, rest = statbadger.stomp_frames(STREAM[:cut])
        more, rest = statbadger.stomp_frames(rest + STREAM[cut:])
        assert clean(found + more) == FRAMES and rest == b''
    rest, found = b'', []
    for i in range(len(STREAM)):
        frames, rest = statbadger.stomp_frames(rest + STREAM[i:i + 1])
        found += frames
    assert clean(found) == FRAMES


@pytest.mark.parametrize('data', [b'HTTP/1.1 400 Bad Request\r\n', b'\x15\x03\x01', b'MESSAGE\n\nx\0', b'AMQP\0\0\x09\x01', b'\0',
                                  b'receipt\n\n\0', b'CONNECTION\n', b'E\n', b'RECEIPT\nreceipt-id:1\n\n\0X'], ids=repr)
def test_what_is_no_stomp_is_found_out_at_once_and_shown(data):
    with pytest.raises(OSError) as caught:
        statbadger.stomp_frames(data)
    assert caught.value.errno == errno.EPROTO and 'what came back is no STOMP: ' in str(caught.value)


def test_a_frame_that_does_not_end_is_left():
    for data in (b'ERROR\n' + b'x:y\n' * 50000, b'ERROR\n\n' + b'x' * 200000, b'ERROR\ncontent-length:9999999\n\n' + b'x' * 200000):
        with pytest.raises(OSError) as caught:
            statbadger.stomp_frames(data)
        assert caught.value.errno == errno.EMSGSIZE
    with pytest.raises(OSError):
        statbadger.stomp_frames(b'ERROR\ncontent-length:3\n\nfour\0')


@pytest.mark.parametrize('headers, body, words', [
    ({'message': 'User writer is not authorized to write to\\c queue\\c//x'}, 'User writer is not authorized', None),
    ({'message': 'Bad CONNECT'}, "Access refused for user 'x'\n", "Bad CONNECT: Access refused for user 'x'"),
    ({'message': 'no'}, 'java.lang.Exception: no\n\tat x.Y(Y.java:1)\n', 'no'),
    ({'message': 'no'}, '', 'no'), ({}, ' \n\n', 'an error without a word'), ({}, 'body', 'body')])
def test_what_an_error_says(headers, body, words):
    assert statbadger.stomp_words(headers, body) == words or words is None
    if words is None:
        assert statbadger.stomp_words(headers, body) == 'User writer is not authorized to write to: queue://x'


# -- the dialogue --------------------------------------------------------------------------------

class Script(Played):
    """Performs the steps of a dialogue against answers that are there in full; .sent is what went out, in order.

    answers: bytes for each Send, or a function of what was sent; None breaks it. now: seconds of the clock.
    """

    def __init__(self, batches, answers, memory=None, now=(), **options):
        chosen = configured('activemq', **options)
        self.batches, self.answers, self.input, self.now = list(batches), list(answers), b'', list(now)
        self.sent, self.dialled = [], 0
        dialogue = statbadger.activemq(chosen.options, {} if memory is None else memory)
        self.play(dialogue)

    def perform(self, step):
        if isinstance(step, Next):
            if not self.batches:
                raise StopIteration
            batch = self.batches.pop(0)
            if isinstance(batch, tuple):        # and what the server has said by then
                self.input += batch[1]
            return batch[0] if isinstance(batch, tuple) else batch
        if isinstance(step, Dial):
            self.dialled += 1
            self.input = b''
            return 'link %d' % self.dialled
        assert getattr(step, 'link', None) in (None, 'link %d' % self.dialled)
        if isinstance(step, Send):
            self.sent.append(step.data)
            answer = self.answers.pop(0) if self.answers else b''
            if answer is None:
                raise ConnectionResetError(errno.ECONNRESET, 'gone')
            self.input += answer(step.data) if callable(answer) else answer
        elif isinstance(step, Read):
            if not self.input:
                raise ConnectionResetError(errno.ECONNRESET, 'closed by the peer')
            data, self.input = self.input[:step.n], self.input[step.n:]
            return data
        elif isinstance(step, Available):
            data, self.input = self.input, b''
            return data
        elif isinstance(step, Now):
            return self.now.pop(0) if len(self.now) > 1 else (self.now or [1700000000.0])[0]
        else:
            assert isinstance(step, (Done, Wait, Close, Reject, Say))
        return None


def receipt(number, run='run', part=0):
    return b'RECEIPT\nreceipt-id:%s-%d-%d\n\n\0\n' % (run.encode(), number, part)


def error(words, number=None):
    named = b'' if number is None else b'receipt-id:run-%d-0\n' % number
    return b'ERROR\nmessage:%s\n%s\n\0' % (words.encode(), named)


def of(script, number):
    """Whether the ticks of that number were sent, in the last SEND."""
    return b'"timestamp": %d,' % number in script.sent[-1]


def test_a_session_begins_with_a_connect_and_each_tick_is_a_send_with_a_receipt():
    script = Script([[frame()]], [CONNECTED, receipt(1)], destination='/queue/stats', username='mia', password='p:w')
    assert script.failure is None and script.done() == [1]
    assert script.sent[0] == (b'CONNECT\naccept-version:1.0,1.1,1.2\nhost:127.0.0.1\nlogin:mia\npasscode:p:w\n'
                              b'heart-beat:10000,10000\n\n\0')
    head, body = script.sent[1].split(b'\n\n')
    assert head == (b'SEND\ndestination:/queue/stats\nreceipt:run-1-0\npersistent:true\ncontent-type:application/json')
    assert body.startswith(b'{"datacenter": "EC2", ') and body.endswith(b']}\0')


def test_what_is_told_is_said():
    script = Script([[frame()]], [CONNECTED, receipt(1)], vhost='/', heartbeat=0, persistent=False, format='influx',
                    destination='/topic/{cluster}.x', headers={'priority': '9', 'x:y'[:1]: 'a:b\\'})
    assert script.sent[0] == b'CONNECT\naccept-version:1.0,1.1,1.2\nhost:/\nheart-beat:0,0\n\n\0'
    assert script.sent[1].split(b'\n\n')[0] == (
        b'SEND\ndestination:/topic/test.x\nreceipt:run-1-0\npersistent:false\ncontent-type:text/plain\npriority:9\n'
        b'x:a\\cb\\\\')


@pytest.mark.parametrize('destination, kind', [('/queue/a', b'ANYCAST'), ('/topic/a', b'MULTICAST'), ('a', None)])
def test_artemis_is_told_what_a_queue_is_and_what_it_may_have_already(destination, kind):
    script = Script([[frame()]], [CONNECTED.replace(b'\n\n', b'\nserver:ActiveMQ-Artemis/2.42.0 x\n\n'), receipt(1)],
                    destination=destination)
    assert b'\n_AMQ_DUPL_ID:run-1-0\n' in script.sent[1]
    assert (b'\ndestination-type:%s\n' % kind in script.sent[1]) if kind else b'destination-type' not in script.sent[1]
    script = Script([[frame()]], [CONNECTED.replace(b'\n\n', b'\nserver:ActiveMQ-Artemis/2.42.0 x\n\n'), receipt(1)],
                    destination='/queue/a', headers={'destination-type': 'MULTICAST'})
    assert script.sent[1].count(b'destination-type:') == script.sent[1].count(b'destination-type:MULTICAST\n') == 1


@pytest.mark.parametrize('version', ['1.0', '1.1', '1.2'])
def test_headers_are_escaped_as_the_session_has_it(version):
    connected = b'CONNECTED\nsession:1\n\n\0' if version == '1.0' else CONNECTED.replace(b'1.2', version.encode())
    script = Script([[frame()]], [connected, receipt(1)], headers={'x': 'a:b'})
    assert script.sent[1].count(b'\nx:a:b\n' if version == '1.0' else b'\nx:a\\cb\n') == 1


def test_what_comes_from_outside_cannot_change_where_a_message_goes():
    who = dict(WHO, hostname='a,/topic/b>*?x=1%2F\\c:\n\0gr\u00fc.n1', zone='')
    assert statbadger.stomp_destination('/queue/{hostname}.{zone}.{cluster}', who) == (
        '/queue/a__topic_b___x_1_2F_c___gr_.n1._.test')
    assert len(statbadger.stomp_destination('/queue/{hostname}', dict(WHO, hostname='x' * 9000))) == 207


MANY = statbadger.Layout(tuple(statbadger.Series('t', 'm%d' % i, '', statbadger.GAUGE, (), ()) for i in range(150)))


def test_so_many_messages_go_before_receipts_are_waited_for_and_receipts_come_in_any_order():
    def backwards(data):
        numbers = [part.split(b'\n')[0] for part in data.split(b'receipt:')[1:]]
        return b''.join(b'RECEIPT\nreceipt-id:%s\n\n\0\n' % number for number in reversed(numbers))
    script = Script([[frame(1, layout=MANY), frame(2, layout=MANY)]], [CONNECTED] + [backwards] * 3, format='flat')
    assert script.failure is None and [data.count(b'SEND\n') for data in script.sent] == [0, 100, 100, 100]
    assert script.done() == [1, 2] and len(script.all(Wait)) == 3


def test_a_tick_without_a_message_is_done_and_needs_no_session():
    script = Script([[frame(1)]], [], format='flat', blacklist=['*'])
    assert script.failure is None and script.dialled == 0


@pytest.mark.parametrize('words, wait, suspect', [
    ('User writer is not authorized to write to\\c queue\\c//closed.x', 300, False),
    ("AMQ229032 User writer does not have permission='CREATE_ADDRESS' on address closed.x", 300, False),
    ('access_refused', 300, False), ('Invalid destination', 300, False), ('Unknown destination', 300, False),
    ('not_found', 60, False), ('AMQ339001 Destination does not exist strict.x', 60, False),
    ('Usage Manager Memory Limit reached on queue\\c//small.x.', 0, False),
    ('AMQ339011 Error sending message CoreMessage[messageID=83]', 0, False),
    ('AMQ339010 Connection is not valid.', 0, False), ('connection_forced', 0, False),
    ('something that nobody has heard of', 0, True)])
@pytest.mark.parametrize('named', [True, False])
def test_what_an_error_means_for_the_ticks(words, wait, suspect, named):
    script = Script([[frame(1), frame(2)]], [CONNECTED, receipt(1) + error(words, 2 if named else None)])
    assert isinstance(script.failure, Later) and script.failure.wait == wait
    assert script.failure.suspect is suspect and script.done() == [1] and script.rejected() == []
    assert words.replace('\\c', ':') in str(script.failure) and script.all(Close)[0].link == 'link 1'


def test_a_message_that_is_too_large_and_named_is_rejected_and_those_around_it_are_stored():
    memory, large = {}, 'The maximum data length was exceeded'
    script = Script([[frame(n) for n in (1, 2, 3)]], [CONNECTED, receipt(1) + error(large, 2) + receipt(3)], memory)
    assert script.failure is None and script.rejected() == [(2, 0)] and script.done() == [3]
    memory = {}
    script = Script([[frame(n) for n in (1, 2, 3)]], [CONNECTED, receipt(1) + error(large, 2)], memory)
    assert script.rejected() == [(2, 0)] and script.done() == [2]
    assert isinstance(script.failure, Later) and 'no word' in str(script.failure)
    script = Script([[frame(3), frame(4)]], [CONNECTED, receipt(3) + receipt(4)], memory)
    assert script.failure is None and script.sent[1].count(b'SEND\n') == 2


@pytest.mark.parametrize('answers', [
    error('The maximum data length was exceeded') + error('The maximum command length was exceeded'),
    error('Processing error') + error('PRECONDITION_FAILED - message size 2 is larger than configured max size 1')])
def test_when_nobody_says_which_message_is_too_large_the_batch_goes_in_halves(answers):
    memory = {}
    script = Script([[frame(n) for n in (1, 2, 3, 4)]], [CONNECTED, receipt(1) + receipt(3) + answers], memory)
    assert isinstance(script.failure, Refused) and script.failure.split and script.done() == [1]
    script = Script([[frame(2)]], [CONNECTED, error('The maximum data length was exceeded')], memory)
    assert isinstance(script.failure, Refused) and script.sent[1].count(b'SEND\n') == 1
    script = Script([[frame(3), frame(4)]], [CONNECTED, receipt(4)], memory)
    assert script.failure is None and not of(script, 3) and of(script, 4) and script.done() == [2]


def test_what_has_a_receipt_does_not_go_again_when_the_connection_breaks():
    memory = {}
    script = Script([[frame(n) for n in (1, 2, 3, 4)]], [CONNECTED, receipt(1) + receipt(3)], memory)
    assert script.done() == [1] and script.failure.errno == errno.ECONNRESET
    script = Script([[frame(n) for n in (2, 3, 4, 5)]], [CONNECTED, receipt(2) + receipt(4) + receipt(5)], memory)
    assert [of(script, n) for n in (1, 2, 3, 4, 5)] == [False, True, False, True, True] and script.done() == [4]


def test_what_a_server_says_behind_an_error_counts():
    script = Script([[frame(n) for n in (1, 2, 3)]],
                    [CONNECTED, error('Usage Manager Memory Limit reached', 1) + receipt(2) + receipt(3)])
    assert script.done() == [] and 'Limit reached' in str(script.failure)
    assert [step.seconds for step in script.all(Wait)] == [0, 0.3]
    memory = {}
    Script([[frame(n) for n in (1, 2, 3)]], [CONNECTED, error('limit reached', 1) + receipt(2) + receipt(3)], memory)
    script = Script([[frame(n) for n in (1, 2, 3)]], [CONNECTED, receipt(1)], memory)
    assert [of(script, n) for n in (1, 2, 3)] == [True, False, False] and script.failure is None


def test_a_message_that_is_refused_for_an_unknown_reason_goes_last_and_is_rejected_when_others_are_taken_again():
    memory, no = {}, 'I do not like it'
    script = Script([[frame(1), frame(2)]], [CONNECTED, receipt(1) + error(no, 2)], memory)
    assert script.done() == [1] and script.failure.suspect
    script = Script([[frame(2)]], [CONNECTED, error(no, 2)], memory)
    assert script.rejected() == [] and script.failure.suspect
    script = Script([[frame(2), frame(3)]], [CONNECTED, receipt(3) + error(no, 2)], memory)
    assert script.sent[1].index(b'run-3-0') < script.sent[1].index(b'run-2-0')
    assert script.rejected() == [] and script.failure.suspect
    script = Script([[frame(2), frame(3), frame(4)]], [CONNECTED, receipt(4) + error(no, 2)], memory)
    assert script.rejected() == [(2, 0)] and script.failure is None and script.done() == [3]


@pytest.mark.parametrize('answer', [CONNECTED, receipt(7), b'RECEIPT\n\n\0', receipt(1) + receipt(1) + receipt(2)], ids=repr)
def test_an_answer_to_something_else_breaks_the_connection(answer):
    script = Script([[frame(1), frame(2)]], [CONNECTED, answer])
    assert script.failure.errno == errno.EPROTO and 'not asked for' in str(script.failure)


@pytest.mark.parametrize('answer, words', [
    (error('User name [mia] or password is invalid.'), 'User name [mia] or password is invalid.'),
    (b"ERROR\nmessage:Bad CONNECT\ncontent-length:28\n\nAccess refused for user 'mia'\n\0"[:0]
     + b"ERROR\nmessage:Bad CONNECT\ncontent-length:30\n\nAccess refused for user 'mia'\n\0", 'Bad CONNECT: Access refused'),
    (error('Security Error occurred\\c User name [mia] or password is invalid'), 'Security Error occurred: User'),
    (error('Invalid Protocol version[9], supported versions are: [1.2, 1.1, 1.0]'), 'Invalid Protocol version'),
    (error('something else'), 'something else')])
def test_a_login_that_is_refused_is_not_tried_again_soon(answer, words):
    script = Script([[frame()]], [answer], username='mia', password=PASSWORD)
    assert isinstance(script.failure, Later) and script.failure.wait == 300 and words in str(script.failure)


def test_a_first_answer_that_is_an_end_asks_whether_the_port_wants_tls():
    assert str(Script([[frame()]], []).failure).endswith('closed by the peer (a port for TLS?)')
    script = Script([[frame()]], [b'RECEIPT\nreceipt-id:1\n\n\0'])
    assert script.failure.errno == errno.EPROTO and 'a RECEIPT before the login' in str(script.failure)


# -- heart-beats ---------------------------------------------------------------------------------

@pytest.mark.parametrize('ours, theirs, every, silence', [
    (10, b'0,0', 0, 0), (10, b'10000,10000', 5, 25), (10, b'0,3000', 5, 0), (10, b'3000,0', 0, 25),
    (1, b'20000,4000', 2, 50), (0, b'10000,10000', 0, 0), (10, b'x,y', 0, 0), (10, b'99999999,-1', 0, 0), (10, b'', 0, 0)])
def test_heart_beats_are_as_often_as_the_one_who_wants_fewer(ours, theirs, every, silence):
    chosen = configured('activemq', heartbeat=ours)
    session = statbadger.Stomp(chosen.options)
    steps = session.log_in()
    next(steps)
    answer = 'link'
    try:
        while True:
            step = steps.send(answer)
            answer = {Send: None, Now: 1.0, Read: b'C', Available: (
                b'ONNECTED\nversion:1.2\nheart-beat:%s\n\n\0' % theirs)}[type(step)]
    except StopIteration:
        pass
    assert (session.every, session.silence) == (every, silence)
    assert session.idle() == min(every or 30, silence or 30) / 2.0


BEATING = b'CONNECTED\nversion:1.2\nheart-beat:10000,10000\n\n\0'


def idled(now, heard=b''):
    """The script of a session that is looked at once, that many seconds after its last word."""
    return Script([[frame()], ([], heard)], [BEATING, receipt(1)], now=[100.0] * 4 + [100.0 + now])


def test_a_heart_beat_goes_out_when_nothing_was_said_for_half_the_time():
    assert idled(1).sent[2:] == [] and idled(5.1).sent[2:] == [b'\n'] and idled(-3).sent[2:] == [b'\n']
    assert [step.idle for step in idled(1).all(Next)] == [None, 2.5, 2.5]


def test_a_server_that_is_quiet_for_too_long_is_left_without_a_word():
    script = idled(26)
    assert script.failure is None and len(script.all(Close)) == 1 and script.all(Next)[2].idle is None
    script = idled(26, b'\n')
    assert script.all(Close) == []


def test_an_error_while_nothing_is_under_way_is_said_and_ends_the_session():
    script = Script([[frame(1)], ([], error('connection_forced')), [frame(2)]], [BEATING, receipt(1), BEATING, receipt(2)])
    assert script.failure is None and script.dialled == 2 and script.done() == [1, 1]
    assert [step.text for step in script.all(Say)] == ['it says ERROR: connection_forced']


# -- with a broker -------------------------------------------------------------------------------

def ticks(server, destination='/queue/statbadger'):
    with server.lock:
        return [json.loads(body.decode())['timestamp'] for body in server.queues.get(destination, ())]


@pytest.mark.parametrize('kind', ['activemq', 'artemis', 'rabbitmq'])
@pytest.mark.parametrize('version', ['1.0', '1.1', '1.2'])
def test_ticks_arrive_in_order_and_once(kind, version):
    with StompStandin(kind=kind, users={'mia': PASSWORD}, versions=('1.0', version)) as server:
        with Rig('activemq', port=server.port, username='mia', password=PASSWORD, headers={'x:y'[:1]: 'a:b'}) as rig:
            rig.tick(*range(1, 21))
            rig.settled()
            assert ticks(server) == list(range(1, 21)) and server.connections == 1
            assert server.complaints == [] and rig.log == []
            assert {headers['x'] for headers, body in server.sent} == {'a:b'}


@pytest.mark.parametrize('kind', ['activemq', 'artemis'])
@pytest.mark.parametrize('what', ['close', 'reset', 'silence'])
@pytest.mark.parametrize('after', range(0, 8))
def test_of_what_has_no_receipt_only_is_anything_doubled_and_with_artemis_nothing(kind, what, after):
    with StompStandin(kind=kind) as server, Rig('activemq', port=server.port, flush=3600, timeout=0.3) as rig:
        server.fail(what, after)
        rig.tick(*range(1, 9))
        rig.spool.hurry()
        rig.settled()
        again = [] if kind == 'artemis' else [after + 1]
        assert ticks(server) == list(range(1, after + 2)) + again + list(range(after + 2, 9))
        assert rig.cursor.count['acknowledged'] == 8


@pytest.mark.parametrize('tls', [False, True])
def test_an_idle_session_that_is_closed_is_begun_anew_and_nothing_is_said(tmp_path, tls):
    made = certificates(tmp_path) if tls else None
    options = {'tls': True, 'tls_ca': made.ca} if tls else {}
    with StompStandin(made and made.server()) as server, Rig('activemq', port=server.port, **options) as rig:
        for n in range(1, 6):
            rig.tick(n)
            rig.settled()
            server.hang_up(n % 2 == 0)
            rig.until(lambda: not server.wires)
        assert ticks(server) == [1, 2, 3, 4, 5] and server.connections == 5 and rig.log == []


def test_a_broker_that_does_not_stop_talking_is_left():
    class Chatty(StompStandin):
        chatty = True

        def lock_out(self, wire, headers):
            while self.chatty:
                wire.send(b'\n' * 65536)
    with Chatty(users={'mia': 'x'}) as server, Rig('activemq', port=server.port, username='mia', password='y') as rig:
        rig.tick(1)
        rig.until(lambda: rig.sender.failure)
        assert 'talks on and on' in rig.said()
        server.chatty = False
    with StompStandin() as server, Rig('activemq', port=server.port) as rig:
        for n in (1, 2):
            rig.tick(n)
            rig.settled()
            for wire in list(server.wires):
                wire.sock.sendall(b'\n' * 5000)
            rig.until(lambda: not server.wires)
        assert server.connections == 2 and rig.log == []


def test_heart_beats_keep_a_session_alive_and_their_absence_ends_it():
    with StompStandin(heart=(100, 100)) as server, Rig('activemq', port=server.port, heartbeat=0.1) as rig:
        rig.tick(1)
        rig.settled()
        began = time.monotonic()
        rig.until(lambda: len(server.beats) >= 8)
        assert server.connections == 1 and time.monotonic() - began > 0.3       # 50 ms apart, at least
        server.heart = (100, 0)                 # from now on it only promises
        server.agree = lambda *given: StompStandin.agree(server, *given) and None
        server.hang_up()
        rig.tick(2)
        rig.settled()
        rig.until(lambda: not server.wires)
        rig.tick(3)
        rig.settled()
        assert ticks(server) == [1, 2, 3] and server.connections == 3 and rig.log == []


def test_a_password_is_never_shown_whatever_the_server_says():
    for words in ('-%s', 'ERROR\nmessage:no %s\n\n\0', 'ERROR\n\nno %s\0', 'ERROR\nmessage:no\n\n%s\0'):
        with StompStandin() as server:
            server.greeting = (words % PASSWORD).encode()
            with Rig('activemq', port=server.port, username='mia', password=PASSWORD) as rig:
                rig.tick(1)
                rig.until(lambda: rig.sender.failure)
                assert 'sesame' not in rig.said(), rig.said()


def test_over_tls(tmp_path):
    made = certificates(tmp_path)
    with StompStandin(made.server()) as server, Rig('activemq', port=server.port, tls=True, tls_ca=made.ca) as rig:
        rig.tick(1)
        rig.settled()
        assert ticks(server) == [1]


# -- options -------------------------------------------------------------------------------------

@pytest.mark.parametrize('options, words', [
    ({'password': 'x'}, 'password without username'), ({'password': 'a\nb', 'username': 'x'}, 'control character in password'),
    ({'username': 'a\rb'}, 'control character in username'), ({'vhost': '\n'}, 'control character in vhost'),
    ({'destination': ''}, 'found "destination": ""'), ({'destination': '/queue/'}, 'found "destination": "/queue/"'),
    ({'destination': '/foo/x'}, 'need one such as "/queue/stats"'), ({'destination': '/queue'}, '"/queue"'),
    ({'destination': '/queue/{host}'}, 'destination'), ({'destination': ' '}, 'destination'),
    ({'destination': '/queue/a\nreceipt:x'}, 'control character in destination'),
    ({'headers': {'receipt': 'x'}}, 'headers other than receipt'), ({'headers': {'a:b': 'x'}}, 'an object of headers'),
    ({'headers': {'a': 'x\ny'}}, 'an object of headers'), ({'headers': {'': 'x'}}, 'headers'),
    ({'headers': ['a']}, 'headers'), ({'heartbeat': -1}, 'heartbeat'), ({'heartbeat': 0.01}, 'heartbeat'),
    ({'tags': {'metric': 'x'}, 'format': 'flat'}, 'found a tag "metric"'), ({'tls_ca': __file__}, 'without TLS')])
def test_options_that_make_no_sense_are_said(options, words):
    with pytest.raises(statbadger.ConfigError) as caught:
        configured('activemq', **options)
    assert words in str(caught.value) and 'a\\nb' not in str(caught.value)


@pytest.mark.parametrize('destination', ['/queue/a', '/topic/a.b', '/exchange/amq.topic/a', '/amq/queue/a', 'a', 'a.b/c',
                                         'queue://a', '/queue/a,/topic/b', '/queue/a?x=1', '/queue/{hostname}'])
def test_destinations_that_brokers_have(destination):
    assert configured('activemq', destination=destination).options.destination == destination


def test_where_it_is():
    assert role_of(configured('activemq')).target == ('tcp', '127.0.0.1', 61613, None)
    assert role_of(configured('activemq', tls=True)).target == ('tcp', '127.0.0.1', 61614, ('', '', '', True))
    assert role_of(configured('activemq', host='b', port=7)).target == ('tcp', 'b', 7, None)
    assert role_of(configured('activemq')).delivery == 'acknowledged'
