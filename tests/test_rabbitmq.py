"""rabbitmq: frames and methods against bytes that pika made, the dialogue scripted and against a stand-in."""
import errno
import json
import re
import struct
from array import array

import pytest

import statbadger
from rig import LAYOUT, WHO, Rig, configured
from standins_rabbitmq import END, AmqpStandin, closing, method, short
from statbadger import (Available, ConfigError, Done, Later, Next, Now, Read, Refused, Say, Send, Wait)

# -- bytes, as pika 1.4.4 writes them ----------------------------------------------------------

START_OK = ('010000000000d7000a000b000000b30770726f64756374530000000a737461746261646765720776657273696f6e5300000005'
            '302e312e300f636f6e6e656374696f6e5f6e616d65530000000d73746174626164676572206e310c6361706162696c69746965'
            '734600000056127075626c69736865725f636f6e6669726d7374010a62617369632e6e61636b740112636f6e6e656374696f6e'
            '2e626c6f636b656474011c61757468656e7469636174696f6e5f6661696c7572655f636c6f7365740105504c41494e0000000c'
            '00677565737400677565737405656e5f5553ce')
PUBLISH = '0100010000000c003c00280000000373627101ce'
CONTENT = ('02000100000031003c0000000000000000000b90c0106170706c69636174696f6e2f6a736f6e02086e312d6162632d3700000000'
           '6553f100ce0300010000000b7b22637075223a312e357dce')
HELLO = b'AMQP\0\0\x09\x01'
WAYS = {
    'tune-ok': '0100000000000c000a001f07ff00020000003cce',
    'open': '01000000000008000a0028012f0000ce',
    'channel.open': '010001000000050014000a00ce',
    'confirm.select': '010001000000050055000a00ce',
    'passive': '0100010000000d0032000a000001710100000000ce',
    'declare': '0100010000000d0032000a000001710200000000ce',
    'bind': '0100010000001400320014000001710178046b2e6e310000000000ce',
    'channel.close-ok': '0100010000000400140029ce',
    'close': '0100000000000b000a003200c80000000000ce',
    'close-ok': '01000000000004000a0033ce',
    'heartbeat': '08000000000000ce',
}


def test_a_content_is_what_pika_makes_of_it():
    properties = statbadger.basic_properties('application/json', True, 'n1-abc-7', 1700000000)
    assert statbadger.amqp_content(1, properties, b'{"cpu":1.5}', 131072).hex() == CONTENT


def test_a_table_holds_texts_booleans_and_tables():
    assert statbadger.field_table([]) == b'\0\0\0\0'
    assert statbadger.field_table([('a', True), ('bc', 'd'), ('e', [('f', False)])]) == (
        b'\0\0\0\x18' b'\1at\1' b'\2bcS\0\0\0\1d' b'\1eF\0\0\0\4\1ft\0')


@pytest.mark.parametrize('size, pieces', [(0, []), (1, [1]), (4088, [4088]), (4089, [4088, 1]),
                                          (10000, [4088, 4088, 1824])])
def test_a_body_is_cut_so_that_no_frame_is_larger_than_agreed(size, pieces):
    data = statbadger.amqp_content(1, b'\0\0', b'x' * size, 4096)
    frames = []
    while data:
        kind, channel, n = struct.unpack('>BHI', data[:7])
        assert data[7 + n:8 + n] == END and channel == 1
        frames.append((kind, data[7:7 + n]))
        data = data[8 + n:]
    assert frames[0] == (2, struct.pack('>HHQ', 60, 0, size) + b'\0\0')
    assert [(kind, len(body)) for kind, body in frames[1:]] == [(3, n) for n in pieces]


@pytest.mark.parametrize('given, bytes_of_it', [
    ('', b'\0'), ('k', b'\1k'), ('\xe4', b'\2\xc3\xa4'), ('a\0b', b'\3a_b'), ('x' * 255, b'\xff' + b'x' * 255),
    ('x' * 300, b'\xff' + b'x' * 255), ('x' * 254 + '\xe4', b'\xfe' + b'x' * 254), ('\ud800', b'\1?')])
def test_a_short_string_has_255_bytes_at_most_and_no_nul(given, bytes_of_it):
    assert statbadger.short_string(given) == bytes_of_it


@pytest.mark.parametrize('data, size', [
    (b'', 7), (b'\1', 7), (b'\1\0\0\0\0\0', 7), (b'\1\0\0\0\0\0\4', 12), (b'\x08\0\0\0\0\0\0\xce\1', 8),
    (b'\3\0\1\0\2\0\0', 131080)])
def test_the_size_of_a_frame_is_known_from_its_first_seven_bytes(data, size):
    assert statbadger.amqp_size(data) == size


@pytest.mark.parametrize('data, words', [
    (HELLO, 'another version of AMQP'), (b'AMQP\3\1\0\0', 'another version of AMQP'),
    (b'\x15\3\1\0\2\2\n', '"tls": true'),
    (b'HTTP/1.1 400 Bad Request\r\n', 'no AMQP'), (b'\1\0\2\0\0\0\4', 'no AMQP'), (b'\1\0\1\0\2\0\1', 'no AMQP'),
    (b'\1\0\1\xff\xff\xff\xff', 'no AMQP'), (b'\x08\0\0\0\0\0\0\xcf', 'no AMQP'), (b'\4\0\0\0\0\0\0', 'no AMQP')])
def test_what_is_no_frame_is_said_to_be_none(data, words):
    with pytest.raises(OSError) as error:
        statbadger.amqp_size(data)
    assert error.value.errno == errno.EPROTO and words in str(error.value)


# -- the dialogue, scripted --------------------------------------------------------------------

START = method(0, 10, 10, b'\0\x09\0\0\0\0\0\0\0\x0ePLAIN AMQPLAIN\0\0\0\5en_US')
TUNE = method(0, 10, 30, struct.pack('>HIH', 2047, 131072, 60))
BLOCKED, UNBLOCKED = method(0, 10, 60, short('low on memory')), method(0, 10, 61)
BEAT = b'\x08\0\0\0\0\0\0' + END
ANSWERS = {(10, 11): TUNE, (10, 31): b'', (10, 40): method(0, 10, 41, b'\0'),
           (20, 10): method(1, 20, 11, b'\0\0\0\0'), (85, 10): method(1, 85, 11),
           (50, 10): method(1, 50, 11, short('q') + b'\0' * 8), (50, 20): method(1, 50, 21),
           (10, 50): method(0, 10, 51), (10, 51): b'', (20, 41): b'', (60, 40): b''}


def ack(tag, several=0, which=80):
    return method(1, 60, which, struct.pack('>QB', tag, several))


def tick(seq, layout=LAYOUT, who=WHO):
    return statbadger.Frame(seq * 1000, seq, who, layout, array('d', [seq] * len(layout.series)), None, 'abc', seq)


def dialogue(memory=None, **values):
    chosen = configured('rabbitmq', **values)
    return statbadger.rabbitmq(chosen.options, {} if memory is None else memory)


class Played:
    """Performs the steps of a dialogue. sent: the frames that went out, as bytes; steps: what else it did.

    answers: {(class, method): bytes, or a list of bytes for one time each}; of contents `contents(n)` for the n-th.
    times: what Now gives, one after the other. pieces: so many bytes are there at a time.
    """

    def __init__(self, talk, batches, answers=(), contents=ack, times=(), pieces=None, waits=()):
        self.talk, self.batches, self.answers = talk, list(batches), dict(ANSWERS)
        self.answers.update(answers)
        self.contents, self.times, self.pieces, self.waits = contents, list(times), pieces, list(waits)
        self.inbox, self.out, self.sent, self.steps, self.published, self.dry = b'', b'', [], [], 0, False
        self.goodbye, self.anew = None, 0

    def run(self):
        """Until it asks for a batch that is not there; gives itself."""
        answer, failure = None, None
        while True:
            step = self.talk.throw(failure) if failure else self.talk.send(answer)
            answer = failure = None
            if isinstance(step, Next):
                self.goodbye = step.goodbye
                self.steps.append(('next', step.idle))
                if not self.batches:
                    self.talk.close()
                    return self
                answer = self.batches.pop(0)
                if isinstance(answer, bytes):           # it is idle, and this comes
                    self.inbox, answer = self.inbox + answer, []
            else:
                try:
                    answer = self.perform(step)
                except OSError as error:
                    failure = error

    def perform(self, step):
        if isinstance(step, Send):
            self.heard(step.data)
        elif isinstance(step, Read):
            if len(self.inbox) < step.n:
                raise OSError(errno.ETIME, 'no end within the time allowed')
            return self.taken(step.n)
        elif isinstance(step, Available):
            self.dry = bool(self.pieces) and not self.dry
            return b'' if self.dry else self.taken(self.pieces or len(self.inbox))
        elif isinstance(step, Now):
            return self.times.pop(0) if self.times else 1000.0
        elif isinstance(step, Wait) and not step.link:
            self.anew += step.seconds == 0
        elif isinstance(step, Wait):
            self.steps.append(('wait', step.seconds))
            answer = self.waits.pop(0)
            if isinstance(answer, bytes):
                self.inbox, answer = self.inbox + answer, True
            return answer
        elif isinstance(step, (Done, Say)):
            self.steps.append(step.n if isinstance(step, Done) else step.text)
        return 'the link' if isinstance(step, statbadger.Dial) else None

    def taken(self, n):
        data, self.inbox = self.inbox[:n], self.inbox[n:]
        return data

    def heard(self, data):
        self.out += data
        if self.out[:8] == HELLO:
            self.inbox, self.out = self.inbox + self.answers.get('hello', START), self.out[8:]
        while len(self.out) >= 7 and len(self.out) >= 8 + struct.unpack('>I', self.out[3:7])[0]:
            n = 8 + struct.unpack('>I', self.out[3:7])[0]
            frame, self.out = self.out[:n], self.out[n:]
            self.sent.append(frame)
            if frame[0] == 1:
                answer = self.answers[struct.unpack('>HH', frame[7:11])]
                self.inbox += answer.pop(0) if isinstance(answer, list) else answer
            elif frame[0] == 3:
                self.published += 1
                self.inbox += self.contents(self.published)


def kinds(frames):
    """What was sent, in the words of WAYS."""
    names = {bytes.fromhex(data): name for name, data in WAYS.items()}
    return [names.get(frame, frame) for frame in frames]


def test_a_session_says_what_pika_would_say():
    played = Played(dialogue(exchange='x', queue='q', routing_key='k.{hostname}'), [[tick(1)]]).run()
    assert played.sent[0].hex() == START_OK
    assert kinds(played.sent[1:])[:6] == ['tune-ok', 'open', 'channel.open', 'confirm.select', 'passive', 'bind']
    assert played.sent[7].hex() == PUBLISH.replace('0c003c', '0e003c').replace('000373627101', '0178046b2e6e3101')
    assert len(played.sent) == 10 and played.steps == [('next', None), 1, 1, ('next', 20.0)]
    assert played.goodbye.data.hex() == WAYS['close'] and played.goodbye.link == 'the link'


def test_a_message_has_its_properties():
    head = Played(dialogue(), [[tick(7)]]).run().sent[-2]
    assert head[19:21].hex() == '90c0'
    assert head[21:] == short('application/json') + b'\2' + short('n1-abc-7') + struct.pack('>Q', 7) + END


@pytest.mark.parametrize('values, kind, mode, names', [
    (dict(format='flat'), 'application/json', 2, ['n1-abc-7-0', 'n1-abc-7-1', 'n1-abc-7-2']),
    (dict(format='graphite', persistent=False), 'text/plain', 1, ['n1-abc-7']),
    (dict(format='influx'), 'text/plain', 2, ['n1-abc-7'])])
def test_the_properties_follow_the_options(values, kind, mode, names):
    heads = [frame for frame in Played(dialogue(**values), [[tick(7)]]).run().sent if frame[0] == 2]
    assert [head[21:] for head in heads] == [
        short(kind) + struct.pack('>B', mode) + short(name) + struct.pack('>Q', 7) + END for name in names]


def test_a_message_id_is_no_longer_than_may_be_and_keeps_its_end():
    played = Played(dialogue(), [[tick(7, who=dict(WHO, hostname='\xe4\0' * 100))]]).run()
    found = re.search(rb'\x10application/json\x02(.)(.*)-abc-7\0\0\0\0', played.sent[-2], re.S)
    assert found and ord(found.group(1)) == len(found.group(2)) + 6 <= 255
    assert found.group(2).decode() == ('\xe4_' * 100)[:120]


def test_a_whole_session_is_understood_however_it_is_cut():
    values = dict(queue='q', exchange='x', format='flat')
    answers = {(50, 10): [BEAT + closing(1, 404, 'no queue', 50, 10), ANSWERS[50, 10]]}

    def confirms(n):
        return {5: ack(3, 1) + BEAT + ack(5) + BLOCKED + ack(4), 6: UNBLOCKED + ack(6)}.get(n, b'')
    whole = Played(dialogue(**values), [[tick(1)], BEAT, [tick(2)]], answers, ack).run()
    for pieces in range(1, 40):
        for contents in ack, confirms:
            batches = [[tick(1)], BEAT, [tick(2)]] if contents is ack else [[tick(1), tick(2)]]
            answers[50, 10] = [BEAT + closing(1, 404, 'no queue', 50, 10), ANSWERS[50, 10]]
            played = Played(dialogue(**values), batches, answers, contents, pieces=pieces, waits=[True] * 99).run()
            assert [f for f in played.sent if f != BEAT] == [f for f in whole.sent if f != BEAT]


def test_a_queue_that_is_there_is_left_as_it_is_and_one_that_is_not_is_declared():
    assert 'declare' not in kinds(Played(dialogue(queue='q'), [[tick(1)]]).run().sent)
    answers = {(50, 10): [closing(1, 404, "NOT_FOUND - no queue 'q' in vhost '/'", 50, 10), ANSWERS[50, 10]]}
    played = Played(dialogue(queue='q'), [[tick(1)]], answers).run()
    assert kinds(played.sent)[5:-3] == ['passive', 'channel.close-ok', 'channel.open', 'confirm.select', 'declare']
    assert played.sent[-3].hex() == PUBLISH.replace('0c003c', '0a003c').replace('03736271', '0171')


def test_without_a_queue_the_routing_key_names_it():
    played = Played(dialogue(routing_key='sbq'), [[tick(1)]]).run()
    assert played.sent[-3].hex() == PUBLISH and len(played.sent) == 8
    played = Played(dialogue(routing_key='sbq', mandatory=False), [[tick(1)]]).run()
    assert played.sent[-3].hex() == PUBLISH[:-4] + '00ce'


def test_each_routing_key_is_bound_before_anything_goes_there():
    other = dict(WHO, hostname='n2')
    played = Played(dialogue(exchange='x', queue='q', routing_key='k.{hostname}'),
                    [[tick(1), tick(2), tick(3, who=other)], [tick(4, who=other)]]).run()
    bound = [i for i, frame in enumerate(played.sent) if frame[7:11] == b'\0\x32\0\x14']
    published = [(i, frame[-5:-2]) for i, frame in enumerate(played.sent) if frame[7:11] == b'\0\x3c\0\x28']
    assert [key for _, key in published] == [b'.n1', b'.n1', b'.n2', b'.n2'] and len(bound) == 2
    assert published[1][0] > bound[0] and published[2][0] > bound[1]


@pytest.mark.parametrize('proposed, heartbeat, timeout, agreed', [
    ((2047, 131072, 60), 60, 10, (2047, 131072, 60)), ((0, 0, 0), 60, 10, (0, 131072, 60)),
    ((1, 4096, 580), 60, 10, (1, 4096, 60)), ((65535, 0xffffffff, 30), 60, 10, (65535, 131072, 30)),
    ((2047, 131072, 5), 60, 10, (2047, 131072, 11)), ((2047, 131072, 60), 0, 10, (2047, 131072, 0)),
    ((2047, 131072, 60), 1, 0.5, (2047, 131072, 1)), ((2047, 200000, 65535), 65535, 10, (2047, 131072, 65535))])
def test_limits_are_what_both_can_do(proposed, heartbeat, timeout, agreed):
    answers = {(10, 11): method(0, 10, 30, struct.pack('>HIH', *proposed))}
    played = Played(dialogue(heartbeat=heartbeat, timeout=timeout), [[tick(1)]], answers).run()
    assert struct.unpack('>HIH', played.sent[1][11:-1]) == agreed
    assert played.steps[-1] == ('next', agreed[2] / 3.0 or 60)


def test_the_certificate_may_stand_for_name_and_password():
    answers = {'hello': START.replace(b'AMQPLAIN', b'EXTERNAL')}
    talk = dialogue(tls=True, sasl='external', tls_cert=__file__)
    played = Played(talk, [[tick(1)]], answers).run()
    assert played.sent[0].endswith(short('EXTERNAL') + b'\0\0\0\0' + short('en_US') + END) and 1 in played.steps
    with pytest.raises(Later) as error:
        Played(dialogue(tls=True, sasl='external', tls_cert=__file__), [[tick(1)]]).run()
    assert 'PLAIN AMQPLAIN, need EXTERNAL' in str(error.value) and error.value.wait == 300


# heartbeats

def test_heartbeats_go_when_they_are_due_and_not_for_every_word():
    played = Played(dialogue(heartbeat=30), [[tick(1)], BEAT, BEAT, b'', [], BEAT],
                    times=[100, 105, 110, 120, 90]).run()
    # At 100, not at 105, at 110, 120, and at 90: somebody has set the clock back.
    assert kinds(played.sent[8:]) == ['heartbeat'] * 4
    assert [step[1] for step in played.steps if step != 1] == [None] + [10.0] * 6


def test_without_heartbeats_none_go_and_silence_is_no_sign():
    played = Played(dialogue(heartbeat=0), [[tick(1)]] + [[]] * 50 + [[tick(2)]]).run()
    assert len(played.sent) == 11 and played.steps[-1] == ('next', 60)


def test_a_broker_that_is_silent_for_two_heartbeats_is_given_up():
    talk = dialogue(heartbeat=30)
    assert len(Played(talk, [[tick(1)]] + [[]] * 6 + [BEAT] + [[]] * 6).run().sent) > 8
    with pytest.raises(ConnectionError):
        Played(dialogue(heartbeat=30), [[tick(1)]] + [[]] * 7).run()


def test_heartbeats_may_come_between_all_words():
    answers = {key: BEAT + data + BEAT for key, data in ANSWERS.items()}
    played = Played(dialogue(queue='q'), [[tick(1), tick(2)], [tick(3)]], answers, lambda n: BEAT + ack(n)).run()
    assert played.steps[-3:] == [1, 1, ('next', 20.0)]


# confirms

def test_messages_may_be_confirmed_in_any_order_and_many_at_once():
    said = {3: ack(2), 5: ack(5) + ack(1), 6: ack(4, 1), 8: ack(8) + ack(0, 1)}
    played = Played(dialogue(format='influx'), [[tick(n) for n in range(1, 9)]], {}, lambda n: said.get(n, b'')).run()
    done = [step for step in played.steps if isinstance(step, int)]
    assert done == sorted(done) == [2, 5, 8, 8] and played.published == 8


def test_a_tick_is_done_when_all_of_its_points_are_confirmed_and_not_before():
    said = {6: ack(2) + ack(3) + ack(6) + ack(5), 9: ack(7) + ack(1) + ack(8) + ack(4) + ack(9)}
    played = Played(dialogue(format='flat'), [[tick(1), tick(2), tick(3)]], {}, lambda n: said.get(n, b'')).run()
    assert [step for step in played.steps if isinstance(step, int)] == [1, 2, 3, 3] and played.published == 9


def test_what_is_refused_goes_again_and_nothing_else():
    memory = {}
    said = {6: ack(1) + ack(2, 0, 120) + ack(3) + ack(4) + ack(5, 0, 120) + ack(6)}
    played = Played(dialogue(memory, format='flat'), [[tick(1), tick(2)]], {}, lambda n: said.get(n, b''))
    with pytest.raises(Later) as error:
        played.run()
    assert '2 messages are not taken' in str(error.value) and error.value.wait == 0 and not error.value.suspect
    assert kinds(played.sent)[-1] == 'close'
    again = Played(dialogue(memory, format='flat'), [[tick(1), tick(2)]]).run()
    assert [b'abc-1-1' in frame or b'abc-2-1' in frame for frame in again.sent if frame[0] == 2] == [True, True]
    assert [step for step in again.steps if isinstance(step, int)] == [1, 2, 2] and list(memory.values()) == [{}]


def test_what_is_confirmed_is_forgotten_when_another_format_makes_other_messages_of_it():
    memory = {}
    with pytest.raises(Later):
        Played(dialogue(memory, format='flat'), [[tick(1)]], {}, lambda n: ack(n, 0, 80 if n < 3 else 120)).run()
    assert Played(dialogue(memory), [[tick(1)]]).run().published == 1


def test_what_is_remembered_of_ticks_that_are_over_is_dropped():
    known = {('abc', 1): (1, {0}), ('old', 9): (1, {0}), ('abc', 9): (1, {0})}
    memory = {statbadger.shape_of(configured('rabbitmq').options): known}
    Played(dialogue(memory), [[tick(5)]]).run()
    assert known == {('abc', 9): (1, {0})}


def test_each_confirm_gives_the_next_one_the_whole_time():
    played = Played(dialogue(), [[tick(n) for n in range(1, 8)]]).run()
    quiet = Played(dialogue(), [[tick(n) for n in range(1, 8)]], {}, lambda n: ack(n, 1) if n == 7 else b'').run()
    assert played.anew == quiet.anew + 6 and quiet.anew > 0


def test_after_a_refusal_nothing_more_is_sent():
    ticks = [tick(n, statbadger.Layout(LAYOUT.series * 100)) for n in range(1, 100)]
    played = Played(dialogue(), [ticks], {}, lambda n: ack(n, 0, 120))
    with pytest.raises(Later):
        played.run()
    assert 1 < played.published < 20


def test_no_more_than_128_kib_are_on_their_way():
    layout = statbadger.Layout(LAYOUT.series * 100)
    ticks = [tick(n, layout) for n in range(1, 100)]
    played = Played(dialogue(), [ticks], {}, lambda n: b'')
    with pytest.raises(OSError) as error:
        played.run()
    assert error.value.errno == errno.ETIME
    assert 1 << 16 < sum(map(len, played.sent)) < 3 << 16


@pytest.mark.parametrize('said', [ack(2), ack(9), ack(1) + ack(1), ack(1) + ack(1, 1), ack(1 << 63),
                                  ack(1) + ack(0, 1)])
def test_a_confirm_of_nothing_is_a_mistake(said):
    with pytest.raises(OSError) as error:
        Played(dialogue(), [[tick(1)]], {}, lambda n: said).run()
    assert error.value.errno == errno.EPROTO


# what a broker says by itself

def stage(name):
    """{(class, method) or 'content'} of ours to which the answer is another one."""
    return {'log-in': (10, 11), 'vhost': (10, 40), 'channel': (20, 10), 'confirm': (85, 10), 'declare': (50, 10),
            'bind': (50, 20)}[name]


REPLIES = [(320, ConnectionError, None), (402, Later, 60), (403, Later, 300), (404, Later, 60), (405, Later, 60),
           (406, Later, 60), (530, Later, 60), (501, Later, 0), (505, Later, 0), (506, Later, 0), (541, Later, 0),
           (999, Later, 0), (200, Later, 0), (312, Later, 0)]


@pytest.mark.parametrize('where', ['log-in', 'vhost', 'channel', 'confirm', 'declare', 'bind'])
@pytest.mark.parametrize('code, kind, wait', REPLIES)
def test_a_connection_may_be_closed_in_place_of_any_answer(where, code, kind, wait):
    answers = {stage(where): closing(0, code, 'WORDS - of it', *stage(where))}
    played = Played(dialogue(exchange='x', queue='q'), [[tick(1)]], answers)
    with pytest.raises(kind) as error:
        played.run()
    assert '%d WORDS - of it' % code in str(error.value) and kinds(played.sent)[-1] == 'close-ok'
    assert wait is None or error.value.wait == wait
    assert getattr(error.value, 'suspect', False) == (code in (501, 505, 541))


@pytest.mark.parametrize('where', ['channel', 'confirm', 'declare', 'bind', 'content'])
@pytest.mark.parametrize('code, kind, wait', REPLIES)
def test_a_channel_may_be_closed_in_place_of_any_answer(where, code, kind, wait):
    cause = stage(where) if where != 'content' else (60, 40)
    if where == 'declare' and code == 404 or where == 'content' and code == 406:
        return
    said = closing(1, code, 'WORDS - of it', *cause)
    answers = {cause: said} if where != 'content' else {}
    played = Played(dialogue(exchange='x', queue='q'), [[tick(1)]], answers, lambda n: said)
    with pytest.raises(kind) as error:
        played.run()
    assert '%d WORDS - of it' % code in str(error.value) and kinds(played.sent)[-1] == 'close'
    assert wait is None or error.value.wait == wait


@pytest.mark.parametrize('code', [311, 406])
def test_what_is_too_large_is_refused_to_be_split(code):
    said = closing(1, code, 'PRECONDITION_FAILED - message size 300 is larger than configured max size 200', 60, 40)
    with pytest.raises(Refused) as error:
        Played(dialogue(), [[tick(1)]], {}, lambda n: said).run()
    assert error.value.split and 'larger than configured' in str(error.value)


def test_a_broker_without_room_on_its_disk_refuses_no_tick():
    said = closing(1, 406, 'PRECONDITION_FAILED - Server low on disk space', 60, 40)
    with pytest.raises(Later) as error:
        Played(dialogue(), [[tick(1)]], {}, lambda n: said).run()
    assert error.value.suspect and 'low on disk' in str(error.value)


def test_an_idle_session_that_the_broker_ends_is_over():
    played = Played(dialogue(), [[tick(1)], closing(0, 320, 'CONNECTION_FORCED - shutdown')])
    with pytest.raises(ConnectionError):
        played.run()
    assert kinds(played.sent)[-1] == 'close-ok' and 1 in played.steps


@pytest.mark.parametrize('pieces', [None, 100])
def test_a_word_that_came_with_the_last_confirm_is_heard_before_it_waits(pieces):
    played = Played(dialogue(), [[tick(1)]], {}, lambda n: ack(n) + closing(0, 320, 'shutdown'), pieces=pieces)
    with pytest.raises(ConnectionError):
        played.run()
    assert played.steps == [('next', None), 1] + [1] * bool(pieces)


@pytest.mark.parametrize('exchange, words', [
    ('', 'there is no queue "k" ("queue" would have it declared)'),
    ('x', 'exchange "x" has no queue for the routing key "k"')])
def test_what_no_queue_takes_waits_for_one(exchange, words):
    returned = method(1, 60, 50, struct.pack('>H', 312) + short('NO_ROUTE') + short(exchange) + short('k'))
    returned += bytes.fromhex(CONTENT)
    played = Played(dialogue(exchange=exchange, routing_key='k'), [[tick(1)]], {}, lambda n: returned + ack(n))
    with pytest.raises(Later) as error:
        played.run()
    assert error.value.wait == 60 and words in str(error.value) and not error.value.suspect
    assert 1 not in played.steps


def test_a_broker_that_blocks_is_waited_for_and_both_are_said():
    played = Played(dialogue(heartbeat=30), [[tick(1)], BLOCKED, [tick(2)]], {},
                    waits=[False, BEAT, False, UNBLOCKED], times=range(100, 10000, 10)).run()
    assert played.steps == [
        ('next', None), 1, 1, ('next', 10.0), 'takes nothing for now: low on memory; the ticks wait', ('next', 10.0),
        ('wait', 10.0), ('wait', 10.0), ('wait', 10.0), ('wait', 10.0), 'takes messages again', 1, 1, ('next', 10.0)]
    assert kinds(played.sent).count('heartbeat') == 5


def test_a_broker_may_block_while_confirms_are_due():
    played = Played(dialogue(), [[tick(1), tick(2)]], {}, lambda n: BLOCKED if n == 2 else b'',
                    waits=[ack(1), False, UNBLOCKED + ack(2)]).run()
    assert [step for step in played.steps if isinstance(step, int)] == [1, 2, 2]


def test_a_broker_that_blocks_is_left_when_there_is_no_time_to_wait():
    played = Played(dialogue(), [[tick(1)]], {}, lambda n: BLOCKED, waits=[False, None])
    with pytest.raises(Later) as error:
        played.run()
    assert 'low on memory' in str(error.value) and kinds(played.sent)[-1] == 'close'


def test_a_broker_that_blocks_and_is_silent_is_given_up():
    with pytest.raises(ConnectionError):
        Played(dialogue(), [[tick(1)]], {}, lambda n: BLOCKED, waits=[False] * 7).run()


@pytest.mark.parametrize('said', [
    method(1, 60, 60), method(0, 10, 30), method(1, 20, 11, b'\0\0\0\0'), method(0, 0, 1), bytes.fromhex(CONTENT),
    b'\3\0\1\0\0\0\1x' + END, b'\1\0\0\0\0\0\0' + END, b'\1\0\0\0\0\0\3\0\1\2' + END, method(1, 60, 80, b'\0' * 8),
    method(0, 10, 50, b'\1\x40\xffabc'), method(0, 10, 60, b''), BEAT * 2000, (BLOCKED + UNBLOCKED) * 1000, b'\0' * 20])
@pytest.mark.parametrize('where', ['log-in', 'confirm', 'content', 'idle'])
def test_what_has_no_place_or_no_end_is_a_mistake(said, where):
    answers = {} if where in ('content', 'idle') else {stage(where): said}
    played = Played(dialogue(), [[tick(1)]] + [said] * (where == 'idle'), answers,
                    lambda n: said if where == 'content' else ack(n))
    with pytest.raises(OSError) as error:
        played.run()
    wanted = (errno.EPROTO,) if (where, said) != ('log-in', method(0, 10, 30)) else (errno.EPROTO, errno.ETIME)
    assert error.value.errno in wanted and not isinstance(error.value, Later)


@pytest.mark.parametrize('hello', [HELLO, b'\x15\3\3\0\2\2\x46', b'HTTP/1.1 400 Bad Request', method(0, 10, 10),
                                   method(0, 10, 10, b'\0\x09\xff\xff\xff\xff'), method(0, 10, 30)])
def test_what_is_no_broker_is_a_mistake(hello):
    with pytest.raises(OSError) as error:
        Played(dialogue(), [[tick(1)]], {'hello': hello}).run()
    assert error.value.errno == errno.EPROTO


def test_frames_that_are_too_small_are_said():
    answers = {(10, 11): method(0, 10, 30, struct.pack('>HIH', 1, 4095, 60))}
    with pytest.raises(OSError, match='4095 bytes, need 4096'):
        Played(dialogue(), [[tick(1)]], answers).run()


def test_a_tick_with_nothing_to_say_is_done():
    empty = tick(2, statbadger.Layout(()))
    played = Played(dialogue(format='flat'), [[empty], [tick(1), empty, tick(3)]]).run()
    assert [step for step in played.steps if isinstance(step, int)][-1] == 3 and played.published == 6


# -- options -----------------------------------------------------------------------------------

@pytest.mark.parametrize('values, words', [
    (dict(vhost='x' * 256), 'found "vhost" of 256 bytes, need 255 at most'),
    (dict(queue='\xe4' * 128), 'found "queue" of 256 bytes'), (dict(exchange='x' * 300), 'found "exchange" of 300'),
    (dict(sasl='external'), 'without tls_cert'), (dict(sasl='scram'), '"plain", "external"'),
    (dict(tls_ca=__file__), 'found tls_ca without TLS'), (dict(heartbeat=70000), 'from 0 to 65535'),
    (dict(routing_key='{host}'), 'routing_key'), (dict(format='flat', tags={'metric': 'x'}), 'found a tag "metric"'),
    (dict(queues='x'), 'did you mean')])
def test_a_mistake_is_said(values, words):
    with pytest.raises(ConfigError) as error:
        configured('rabbitmq', **values)
        statbadger.rabbitmq_link(configured('rabbitmq', **values).options)
    assert words in str(error.value)


def test_the_port_is_the_usual_one():
    def target(**values):
        return statbadger.rabbitmq_link(configured('rabbitmq', **values).options)
    assert target() == ('tcp', '127.0.0.1', 5672, None)
    assert target(tls=True, tls_ca=__file__)[:3] == ('tcp', '127.0.0.1', 5671)
    assert target(port=7)[2] == 7


def test_the_password_that_everybody_knows_is_no_secret_and_any_other_is():
    kind = statbadger.EMITTERS['rabbitmq']
    assert 'guest' not in statbadger.secrets_of(kind.options, configured('rabbitmq').options)
    assert 'gu-est' in statbadger.secrets_of(kind.options, configured('rabbitmq', password='gu-est').options)


# -- with a broker -----------------------------------------------------------------------------

def numbers(server, queue='statbadger'):
    """The first value in each message."""
    return [int(json.loads(body.decode())['points'][0]['cpu.user']['value']) for body in server.bodies(queue)]


@pytest.mark.parametrize('confirms', ['each', 'multiple', 'shuffled'])
@pytest.mark.parametrize('format', ['payload', 'flat'])
def test_many_ticks_arrive_once_each_in_order_however_they_are_confirmed(confirms, format):
    with AmqpStandin() as server:
        server.confirms = confirms
        with Rig('rabbitmq', port=server.port, format=format, heartbeat=0) as rig:
            rig.tick(*range(1, 301))
            assert rig.settled()['acknowledged'] == 300
        assert server.complaints == [] and server.connections == 1 and server.goodbyes == 1 and rig.log == []
        ids = [message.properties['message_id'] for message in server.queues['statbadger']]
        run = rig.spool.run
        assert ids == (['n1-%s-%d' % (run, n) for n in range(1, 301)] if format == 'payload' else
                       ['n1-%s-%d-%d' % (run, n, i) for n in range(1, 301) for i in range(3)])


def test_who_we_are_is_said():
    with AmqpStandin() as server, Rig('rabbitmq', port=server.port) as rig:
        rig.tick(1)
        rig.settled()
        assert server.clients == [{
            'product': 'statbadger', 'version': statbadger.VERSION, 'connection_name': 'statbadger n1',
            'capabilities': {'publisher_confirms': True, 'basic.nack': True, 'connection.blocked': True,
                             'authentication_failure_close': True}}]


def test_a_queue_that_appears_later_gets_everything():
    with AmqpStandin(queues=()) as server, Rig('rabbitmq', port=server.port, routing_key='k') as rig:
        rig.tick(1, 2, 3)
        rig.until(lambda: 60 in rig.clock.skipped or max(rig.clock.skipped or [0]) > 59)
        assert 'there is no queue "k"' in rig.log[0][1] and rig.adds_up()['acknowledged'] == 0
        server.queues['k'] = []
        rig.settled()
        assert numbers(server, 'k') == [1, 2, 3] and server.complaints == []


def test_what_no_queue_takes_is_gone_where_that_is_wanted():
    with AmqpStandin(exchanges=['x']) as server:
        with Rig('rabbitmq', port=server.port, exchange='x', mandatory=False) as rig:
            rig.tick(1, 2, 3)
            assert rig.settled()['acknowledged'] == 3 and not rig.log and numbers(server) == []


def test_an_exchange_that_is_missing_is_waited_for():
    with AmqpStandin() as server, Rig('rabbitmq', port=server.port, exchange='x', queue='q') as rig:
        rig.tick(1)
        rig.until(lambda: rig.log)
        assert "404 NOT_FOUND - no exchange 'x'" in rig.log[0][1]
        server.exchanges.add('x')
        rig.settled()
        assert numbers(server, 'q') == [1] and server.declared == {'q': 2} and server.complaints == []


def test_what_a_full_queue_does_not_take_goes_again_and_is_not_doubled():
    with AmqpStandin() as server, Rig('rabbitmq', port=server.port, flush=3600) as rig:
        server.plan = [None, 'nack', None, 'nack', 'nack'] + [None] * 5 + ['nack']
        rig.tick(*range(1, 11))
        rig.spool.hurry()
        assert rig.settled()['acknowledged'] == 10
        assert sorted(numbers(server)) == list(range(1, 11)) and server.complaints == []
        assert '3 messages are not taken' in rig.log[0][1]


def test_a_confirm_that_was_lost_doubles_what_it_was_for_and_nothing_else():
    with AmqpStandin() as server, Rig('rabbitmq', port=server.port, flush=3600) as rig:
        server.plan = [None] * 4 + ['unheard']
        rig.tick(*range(1, 6))
        rig.spool.hurry()
        rig.settled()
        found = numbers(server)
        assert sorted(set(found)) == [1, 2, 3, 4, 5] and found.count(5) == 2 and server.complaints == []


def test_blocked_means_waiting_without_a_new_connection_and_without_a_failure():
    with AmqpStandin() as server, Rig('rabbitmq', port=server.port, heartbeat=0) as rig:
        rig.tick(1)
        rig.settled()
        server.block()
        rig.until(lambda: rig.log)
        rig.tick(2, 3, 4)
        rig.until(lambda: len(rig.clock.skipped) > 20)
        assert rig.adds_up()['acknowledged'] == 1 and rig.sender.failure is None
        assert [text for _, text in rig.log] == ['rabbitmq: takes nothing for now: low on memory; the ticks wait']
        server.unblock()
        rig.settled()
        assert numbers(server) == [1, 2, 3, 4] and server.connections == 1
        assert [text for _, text in rig.log][1:] == ['rabbitmq: takes messages again']


def test_the_end_comes_also_while_the_broker_blocks():
    with AmqpStandin() as server, Rig('rabbitmq', port=server.port, heartbeat=0) as rig:
        rig.tick(1)
        rig.settled()
        server.block()
        rig.until(lambda: rig.log)
        rig.tick(2)
        rig.until(lambda: rig.cursor.pinned)
        rig.sender.close(rig.sender.now() + 5)
        assert rig.over.wait(10)
        assert 'low on memory' in rig.sender.failure and rig.sender.shortfall().startswith('rabbitmq: 1 of 2')


def test_a_reload_comes_also_while_the_broker_blocks():
    with AmqpStandin() as server, AmqpStandin() as other, Rig('rabbitmq', port=server.port, heartbeat=0) as rig:
        rig.tick(1)
        rig.settled()
        server.block()
        rig.until(lambda: rig.log)
        rig.tick(2)
        rig.renew(port=other.port)
        rig.settled()
        assert numbers(server) == [1] and numbers(other) == [2]


def test_a_broker_that_goes_down_while_nothing_is_to_be_said_is_dialled_again():
    with AmqpStandin() as server, Rig('rabbitmq', port=server.port, heartbeat=0) as rig:
        for n in range(1, 6):
            rig.tick(n)
            rig.settled()
            server.tell(closing(0, 320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"))
            rig.until(lambda: not server.wires)
        assert numbers(server) == [1, 2, 3, 4, 5] and rig.log == [] and server.connections == 5


def test_a_queue_is_left_alone_by_whoever_may_not_declare_it():
    with AmqpStandin() as server, Rig('rabbitmq', port=server.port, queue='statbadger') as rig:
        rig.tick(1)
        rig.settled()
        assert server.declared == {} and server.seen.count((50, 10)) == 1


@pytest.mark.parametrize('hostname', ['a b', 'n1\n', '*.#', '\x1b[0m', 'x' * 300, '\ufffd', '\U0001f980' * 80, '"',
                                      '%s %d'])
def test_hostile_names_go_into_keys_and_ids_and_do_no_harm(hostname):
    with AmqpStandin(exchanges=['x']) as server:
        values = dict(exchange='x', queue='q', routing_key='k.{hostname}', port=server.port)
        with Rig('rabbitmq', **values) as rig:
            rig.tick(1, 2, who=dict(WHO, hostname=hostname))
            assert rig.settled()['acknowledged'] == 2 and rig.log == []
        assert server.complaints == [] and len(server.bodies('q')) == 2
        message = server.queues['q'][0]
        assert message.key == ('k.' + hostname).encode()[:255].decode('utf-8', 'ignore')
        assert json.loads(message.body.decode())['hostname'] == hostname


