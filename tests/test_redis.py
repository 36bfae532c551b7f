"""The redis emitter: what it says, what it makes of every kind of answer, and that nothing goes twice without need."""
import errno
import json
import socket
import threading

import pytest
import statbadger
from rig import LAYOUT, Played, Rig, WHO, configured, role_of
from standins import certificates
from standins_redis import RedisStandin
from statbadger import Available, Close, Dial, Done, Later, Line, Next, Read, Refused, Reject, Say, Send, Wait

PASSWORD = 'pa55 w/rd&"+sesame'


def frame(number=1, who=WHO, layout=LAYOUT, run='run'):
    one = statbadger.Frame(number * 1000, number, who, layout, statbadger.array('d', [number] * len(layout.series)))
    one.run, one.seq = run, number
    return one


# -- what is said --------------------------------------------------------------------------------

def test_a_command_is_an_array_of_bulk_strings():
    # redis.io, "Redis serialization protocol specification", "Sending commands to a Redis server"
    assert statbadger.resp_command((b'LLEN', b'mylist')) == b'*2\r\n$4\r\nLLEN\r\n$6\r\nmylist\r\n'
    # the same page: an empty bulk string; and lengths are of bytes
    assert statbadger.resp_command((b'', 'gr\u00fcn'.encode())) == b'*2\r\n$0\r\n\r\n$5\r\ngr\xc3\xbcn\r\n'
    assert statbadger.resp_command((b'a\r\n$1', b'\0')) == b'*2\r\n$5\r\na\r\n$1\r\n$1\r\n\0\r\n'


class Script(Played):
    """Performs the steps of a dialogue against answers that are there in full; .sent is what went out, in order.

    answers: bytes for each Send, an OSError that is thrown at the next read instead, or None for a Send that breaks.
    """

    def __init__(self, batches, answers, memory=None, **options):
        chosen = configured('redis', **options)
        self.batches, self.answers, self.input = list(batches), list(answers), b''
        self.sent, self.broken, self.dialled = [], None, 0
        dialogue = statbadger.redis(chosen.options, {} if memory is None else memory)
        self.play(dialogue)

    def perform(self, step):
        if isinstance(step, Next):
            if not self.batches:
                raise StopIteration
            return self.batches.pop(0)
        if isinstance(step, Dial):
            self.dialled += 1
            return 'link %d' % self.dialled
        assert getattr(step, 'link', None) in (None, 'link %d' % self.dialled)
        if isinstance(step, Send):
            self.sent.append(step.data)
            answer = self.answers.pop(0) if self.answers and step.data else b''
            if answer is None:
                raise ConnectionResetError(errno.ECONNRESET, 'gone')
            self.broken = answer if isinstance(answer, OSError) else None
            self.input += b'' if self.broken else answer
        elif isinstance(step, Line):
            return self.taken(self.input.find(b'\n') + 1)
        elif isinstance(step, Read):
            return self.taken(step.n if len(self.input) >= step.n else 0)
        elif isinstance(step, Available):
            data, self.input = self.input, b''
            return data
        else:
            assert isinstance(step, (Done, Wait, Close, Reject, Say))
        return None

    def taken(self, n):
        if not n:
            raise self.broken or ConnectionResetError(errno.ECONNRESET, 'closed by the peer')
        data, self.input = self.input[:n], self.input[n:]
        return data


PAYLOAD = (b'{"datacenter": "EC2", "region": "", "zone": "", "cluster": "test", "hostname": "n1", "ipv4": "10.10.10.2", '
           b'"ipv6": "", "timestamp": 1, "points": [{"cpu.user": {"value": 1, "units": "percent"}}, '
           b'{"disk.reads.sda": {"value": 1, "units": ""}}, {"mem.memtotal": {"value": 1, "units": "B"}}]}')


def test_a_list_gets_the_payload_and_is_cut_in_the_same_go():
    script = Script([[frame()]], [b':1\r\n+OK\r\n'], key='stats', maxlen=10)
    assert script.failure is None and script.done() == [1]
    assert script.sent == [b'', b'*3\r\n$5\r\nRPUSH\r\n$5\r\nstats\r\n$%d\r\n%s\r\n' % (len(PAYLOAD), PAYLOAD)
                           + b'*4\r\n$5\r\nLTRIM\r\n$5\r\nstats\r\n$3\r\n-10\r\n$2\r\n-1\r\n']


def test_an_entry_of_a_stream_has_host_and_payload():
    script = Script([[frame()]], [b'$15\r\n1795332666391-0\r\n'], key='stats', mode='stream', maxlen=10000)
    assert script.failure is None and script.done() == [1]
    assert script.sent[1] == (
        b'*10\r\n$4\r\nXADD\r\n$5\r\nstats\r\n$6\r\nMAXLEN\r\n$1\r\n~\r\n$5\r\n10000\r\n$1\r\n*\r\n'
        b'$4\r\nhost\r\n$2\r\nn1\r\n$7\r\npayload\r\n$%d\r\n%s\r\n' % (len(PAYLOAD), PAYLOAD))
    script = Script([[frame()]], [b'$3\r\n0-1\r\n'], key='stats', mode='stream', maxlen=0)
    assert script.sent[1].startswith(b'*7\r\n$4\r\nXADD\r\n$5\r\nstats\r\n$1\r\n*\r\n$4\r\nhost\r\n')


def test_a_channel_gets_the_payload_and_that_nobody_listens_is_said():
    for number, said in ((b'0', ['nobody is subscribed to that channel']), (b'3', [])):
        script = Script([[frame()]], [b':%s\r\n' % number], key='c-{cluster}', mode='publish')
        assert script.sent[1].startswith(b'*3\r\n$7\r\nPUBLISH\r\n$6\r\nc-test\r\n$')
        assert script.done() == [1] and [say.text for say in script.all(Say)] == said


def test_the_login_comes_first_and_is_said_once():
    script = Script([[frame(1)], [frame(2)]], [b'+OK\r\n+OK\r\n', b':1\r\n+OK\r\n', b':2\r\n+OK\r\n'],
                    username='mia', password='p w', database=3)
    assert script.failure is None and script.dialled == 1 and len(script.sent) == 3
    assert script.sent[0] == (b'*3\r\n$4\r\nAUTH\r\n$3\r\nmia\r\n$3\r\np w\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n')
    script = Script([[frame()]], [b'+OK\r\n', b':1\r\n+OK\r\n'], password='p w')
    assert script.sent[0] == b'*2\r\n$4\r\nAUTH\r\n$3\r\np w\r\n'


def test_each_host_has_a_key_of_its_own_when_the_template_says_so():
    other = dict(WHO, hostname='x\r\n$4\r\nevil')
    script = Script([[frame(1), frame(2, other)]], [b':1\r\n:1\r\n+OK\r\n+OK\r\n'], key='s:{hostname}', maxlen=5)
    assert script.done() == [2]
    assert script.sent[1].count(b'RPUSH') == script.sent[1].count(b'LTRIM') == 2
    assert b'$5\r\nLTRIM\r\n$4\r\ns:n1\r\n' in script.sent[1]
    assert b'$5\r\nLTRIM\r\n$13\r\ns:x\r\n$4\r\nevil\r\n' in script.sent[1]


MANY = statbadger.Layout(tuple(statbadger.Series('t', 'm%d' % i, '', statbadger.GAUGE, (), ()) for i in range(700)))
LARGE = statbadger.Layout(tuple(statbadger.Series('t', 'm%d' % i, '', statbadger.GAUGE, (), ()) for i in range(9000)))


def test_so_many_commands_and_bytes_go_before_the_answers_are_waited_for_and_no_more():
    script = Script([[frame(n, layout=MANY) for n in (1, 2)]],
                    [b':1\r\n' * 500, b':1\r\n' * 500, b':1\r\n' * 400], format='flat', maxlen=0)
    assert script.failure is None and [data.count(b'RPUSH') for data in script.sent[1:]] == [500, 500, 400]
    assert script.done() == [1, 2] and len(script.all(Wait)) == 3
    script = Script([[frame(n, layout=LARGE) for n in (1, 2, 3, 4, 5)]],
                    [b':1\r\n' * 2, b':1\r\n' * 2, b':1\r\n'], maxlen=0)
    assert [data.count(b'RPUSH') for data in script.sent[1:]] == [2, 2, 1]
    assert all(len(data) < 1 << 20 for data in script.sent) and script.done() == [2, 4, 5]


def test_a_tick_without_a_message_is_done_all_the_same():
    script = Script([[frame(1), frame(2)]], [], format='flat', blacklist=['*'])
    assert script.failure is None and script.sent == [b''] and len(script.all(Next)) == 2


# -- what is answered ----------------------------------------------------------------------------

@pytest.mark.parametrize('words, wait, suspect', [
    ("OOM command not allowed when used memory > 'maxmemory'.", 0, False),
    ('LOADING Redis is loading the dataset in memory', 0, False),
    ("READONLY You can't write against a read only replica.", 0, False),
    ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", 0, False),
    ('BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.', 0, False),
    ('NOREPLICAS Not enough good replicas to write.', 0, False),
    ('MISCONF Redis is configured to save RDB snapshots, but it is currently unable to persist on disk.', 0, False),
    ('CLUSTERDOWN Hash slot not served', 0, False),
    ('TRYAGAIN Multiple keys request during rehashing of slot', 0, False),
    ('ERR max number of clients reached', 0, False),
    ('NOAUTH Authentication required.', 300, False),
    ('WRONGPASS invalid username-password pair or user is disabled.', 300, False),
    ("NOPERM User writer has no permissions to run the 'rpush' command", 300, False),
    ('DENIED Redis is running in protected mode because protected mode is enabled', 300, False),
    ("ERR unknown command 'XADD', with args beginning with: 'statbadger'", 300, False),
    ('ERR unknown command `XADD`', 300, False),
    ('ERR operation not permitted', 300, False),
    ('ERR Protocol error: unauthenticated bulk length', 300, False),
    ('WRONGTYPE Operation against a key holding the wrong kind of value', 60, False),
    ('MOVED 3999 127.0.0.1:6381', 60, False),
    ('ASK 3999 127.0.0.1:6381', 60, False),
    ('ERR something that nobody has heard of', 0, True),
    ('-upstream failure', 0, True),
    ('', 0, True),
])
def test_what_an_error_means_for_the_ticks(words, wait, suspect):
    script = Script([[frame(1), frame(2)]], [b':1\r\n-%s\r\n' % words.encode()], maxlen=0)
    assert isinstance(script.failure, Later) and script.failure.wait == wait
    assert script.failure.suspect is suspect and script.done() == [1] and script.rejected() == []
    assert words.partition(', with args')[0] in str(script.failure) and 'args' not in str(script.failure)


@pytest.mark.parametrize('words', ['ERR Element too large', 'ERR Elements are too large to be stored',
                                   'ERR max request size exceeded. Limit: 1048576 bytes'])
def test_a_message_that_is_too_large_is_rejected_and_those_around_it_are_stored(words):
    script = Script([[frame(1), frame(2), frame(3)]], [b':1\r\n-%s\r\n:2\r\n+OK\r\n' % words.encode()])
    assert script.failure is None and script.rejected() == [(2, 0)] and script.done() == [3]
    assert words in script.all(Reject)[0].reason


def test_when_the_server_closes_behind_a_message_that_is_too_large_the_rest_goes_again_and_it_does_not():
    memory = {}
    script = Script([[frame(1), frame(2), frame(3)]], [b':1\r\n-ERR Protocol error: invalid bulk length\r\n'], memory)
    assert script.rejected() == [(2, 0)] and script.done() == [2] and script.failure.errno == errno.ECONNRESET
    script = Script([[frame(3)]], [b':2\r\n+OK\r\n'], memory)
    assert script.sent[1].count(b'RPUSH') == 1 and script.done() == [1]


def test_the_good_part_of_a_batch_does_not_go_again():
    memory, oom = {}, b'-OOM no\r\n'
    script = Script([[frame(n) for n in range(1, 6)]], [b':1\r\n' + oom + b':2\r\n' + oom + b':3\r\n+OK\r\n'], memory)
    assert script.done() == [1] and 'OOM' in str(script.failure)
    script = Script([[frame(n) for n in range(2, 6)]], [b':4\r\n' + oom + b'+OK\r\n'], memory)
    assert [b'"timestamp": %d,' % n in script.sent[1] for n in range(1, 6)] == [False, True, False, True, False]
    assert script.done() == [1]
    script = Script([[frame(n) for n in range(4, 7)]], [b':5\r\n:6\r\n+OK\r\n'], memory)
    assert [b'"timestamp": %d,' % n in script.sent[1] for n in range(4, 7)] == [True, False, True]
    assert script.done() == [1, 3][1:] and script.failure is None


def test_points_of_a_tick_that_were_answered_do_not_go_again_when_the_connection_breaks():
    memory = {}
    script = Script([[frame(1), frame(2)]], [b':1\r\n:2\r\n:3\r\n:4\r\n'], memory, format='flat', maxlen=0)
    assert script.done() == [1] and script.failure.errno == errno.ECONNRESET
    script = Script([[frame(2)]], [b':5\r\n:6\r\n'], memory, format='flat', maxlen=0)
    assert script.sent[1].count(b'RPUSH') == 2 and b'cpu.user' not in script.sent[1] and script.done() == [1]


def progress(memory):
    found, = [value for value in memory.values() if isinstance(value, statbadger.Progress)]
    return found


def test_what_is_remembered_is_of_the_ticks_under_way_only():
    memory = {}
    Script([[frame(1), frame(2)]], [b'-OOM no\r\n:1\r\n+OK\r\n'], memory)
    assert progress(memory).dealt == {('run', 2, 0)}
    Script([[frame(3)]], [b':1\r\n+OK\r\n'], memory)
    assert progress(memory).dealt == {('run', 3, 0)}
    script = Script([[frame(2, run='another')]], [b':1\r\n+OK\r\n'], memory)
    assert script.sent[1].count(b'RPUSH') == 1                  # the same number of another run is another tick
    script = Script([[frame(n, layout=MANY) for n in range(10, 14)]], [b':1\r\n' * 500] * 5 + [b':1\r\n' * 300], memory,
                    format='flat', maxlen=0)
    flat = list(memory.values())[-1]
    assert script.done()[-1] == 4 and 1 < len(flat.dealt) <= 1400


def test_a_message_that_is_refused_for_an_unknown_reason_again_and_again_while_others_are_stored_is_rejected():
    memory, no = {}, b'-ERR I do not like it\r\n'
    script = Script([[frame(1), frame(2), frame(3)]], [b':1\r\n' + no + b':2\r\n+OK\r\n'], memory)
    assert script.done() == [1] and script.rejected() == [] and script.failure.suspect
    script = Script([[frame(2), frame(3)]], [no + b'+OK\r\n'], memory)
    assert script.done() == [] and script.rejected() == []      # alone it may be the server's trouble again
    for n in (4, 5):
        frames = [frame(k) for k in range(2, n + 1)]
        script = Script([frames], [b':3\r\n' + no + b'+OK\r\n'], memory)
        assert script.sent[1].find(b'"timestamp": %d,' % n) < script.sent[1].find(b'"timestamp": 2,')
    assert script.rejected() == [(2, 0)] and script.failure is None and script.done() == [4]


def test_a_server_that_limits_the_rate_refuses_no_tick():
    memory, no, waiting = {}, b'-ERR too many requests\r\n', list(range(1, 9))
    while waiting:
        script = Script([[frame(n) for n in waiting]], [b':1\r\n' + no * (len(waiting) - 1) + b'+OK\r\n'], memory)
        assert script.rejected() == [] and script.done() == [1]
        waiting = waiting[1:]


def test_what_is_dealt_with_is_forgotten_when_a_reload_makes_other_messages_of_a_tick():
    memory, no = {}, b'-OOM no\r\n'
    Script([[frame(layout=MANY)]], [b':1\r\n' * 299 + no + no], memory, format='flat')
    script = Script([[frame(layout=MANY)]], [b':1\r\n+OK\r\n'], memory, format='payload')
    assert script.sent[1].count(b'RPUSH') == 1 and script.done() == [1]


def test_a_server_that_refuses_everything_for_an_unknown_reason_refuses_no_tick():
    memory, no = {}, b'-ERR Connection refused\r\n'
    for _ in range(5):
        script = Script([[frame(1), frame(2)]], [no + no + b'+OK\r\n'], memory)
        assert script.rejected() == [] and script.done() == [] and script.failure.suspect


def test_that_a_list_cannot_be_cut_is_said_and_costs_no_tick():
    script = Script([[frame()]], [b":1\r\n-NOPERM User x has no permissions to run the 'ltrim' command\r\n"])
    assert script.failure is None and script.done() == [1]
    assert 'the list grows' in script.all(Say)[0].text and 'ltrim' in script.all(Say)[0].text
    script = Script([[frame()]], [b'-OOM no\r\n-OOM no\r\n'])
    assert script.all(Say) == [] and 'OOM' in str(script.failure)


@pytest.mark.parametrize('answer', [
    b'+OK\r\n', b'$3\r\n0-1\r\n', b'*1\r\n:1\r\n', b'_\r\n', b'HTTP/1.1 400 Bad Request\r\n', b':\r\n', b':x\r\n', b':1\n',
    b'\n', b'\r\n', b':-1\r\n', b':1 \r\n', b'\x15\x03\x01\x00\x02\x02\n', b'\xff\xfe\n', b'-no\n', b'>2\r\n', b':1\r\r\n'],
    ids=repr)
def test_an_answer_that_is_none_breaks_the_connection_and_is_shown(answer):
    script = Script([[frame()]], [answer + b':1\r\n' * 9], maxlen=0)
    assert script.failure.errno == errno.EPROTO and script.done() == []
    assert 'what came back is no answer of Redis' in str(script.failure)


@pytest.mark.parametrize('answer', [b':1\r\n', b'+OK\r\n', b'$-1\r\n', b'$0\r\n\r\n', b'$3\r\n0-1xx', b'$9999\r\n',
                                    b'$3\r\nabc\r\n', b'$1000000000\r\n', b'$3\r\n0\r\n\r\n'], ids=repr)
def test_an_id_that_is_none_breaks_the_connection(answer):
    script = Script([[frame()]], [answer + b'x' * 200 + b'\r\n'], mode='stream')
    assert script.failure.errno == errno.EPROTO and script.done() == []


@pytest.mark.parametrize('answer, words, wait', [
    (b'-WRONGPASS invalid username-password pair or user is disabled.\r\n+OK\r\n', 'AUTH: WRONGPASS', 300),
    (b'-ERR invalid password\r\n+OK\r\n', 'AUTH: ERR invalid password', 300),
    (b"-ERR wrong number of arguments for 'auth' command\r\n+OK\r\n", 'AUTH: ERR wrong number', 300),
    (b'-ERR Client sent AUTH, but no password is set\r\n+OK\r\n', 'AUTH: ERR Client sent AUTH', 300),
    (b"-ERR unknown command 'AUTH', with args beginning with: 'mia' 'p w'\r\n", 'AUTH: ERR unknown command', 300),
    (b'+OK\r\n-ERR DB index is out of range\r\n', 'SELECT: ERR DB index', 300),
    (b'+OK\r\n-ERR SELECT is not allowed in cluster mode\r\n', 'SELECT: ERR SELECT is not', 300),
    (b'+OK\r\n-NOPERM no\r\n', 'SELECT: NOPERM', 300),
    (b'-ERR max number of clients reached\r\n', 'AUTH: ERR max number of clients', 0),
    (b'-LOADING Redis is loading the dataset in memory\r\n+OK\r\n', 'AUTH: LOADING', 0),
    (b'-DENIED Redis is running in protected mode\r\n', 'AUTH: DENIED', 300)])
def test_a_login_that_is_refused_is_not_tried_again_soon(answer, words, wait):
    script = Script([[frame()]], [answer], username='mia', password='p w', database=3)
    assert isinstance(script.failure, Later) and script.failure.wait == wait and words in str(script.failure)
    assert len(script.sent) == 1 and 'p w' not in str(script.failure)


def test_a_first_answer_that_is_an_end_asks_whether_the_port_wants_tls():
    script = Script([[frame()]], [])
    assert str(script.failure).endswith('closed by the peer (a port for TLS?)')
    assert 'TLS' not in str(Script([[frame()]], [], {'heard': True}).failure)
    assert 'TLS' not in str(Script([[frame()]], [], socket='/run/x').failure)


def test_what_is_said_unasked_ends_that_connection_and_the_batch_goes_on_a_new_one():
    script = Script([[frame(1)], [frame(2)]], [b':1\r\n+OK\r\n:7\r\n', b':2\r\n+OK\r\n'])
    assert script.failure is None and script.dialled == 2 and script.done() == [1, 1]
    assert [step.link for step in script.all(Close)] == ['link 1']


# -- with a server -------------------------------------------------------------------------------

def ticks(server, key='statbadger'):
    return [json.loads(message.decode())['timestamp'] for message in server.messages(key)]


def test_ticks_arrive_in_order_and_once():
    with RedisStandin() as server, Rig('redis', port=server.port) as rig:
        rig.tick(*range(1, 21))
        rig.settled()
        assert ticks(server) == list(range(1, 21)) and server.connections == 1
        assert server.complaints == [] and rig.log == []


@pytest.mark.parametrize('tls', [False, True])
def test_an_idle_connection_that_is_closed_is_dialled_anew_and_nothing_is_said(tmp_path, tls):
    made = certificates(tmp_path) if tls else None
    options = {'tls': True, 'tls_ca': made.ca} if tls else {}
    with RedisStandin(made and made.server()) as server, Rig('redis', port=server.port, **options) as rig:
        for n in range(1, 6):
            rig.tick(n)
            rig.settled()
            server.hang_up(n % 2 == 0)
            rig.until(lambda: not server.wires)
        assert ticks(server) == [1, 2, 3, 4, 5] and server.connections == 5 and rig.log == []


@pytest.mark.parametrize('what', ['close', 'reset', 'silence'])
@pytest.mark.parametrize('after', range(0, 8))
def test_of_what_was_not_answered_only_is_anything_doubled(what, after):
    with RedisStandin() as server, Rig('redis', port=server.port, flush=3600, maxlen=0, timeout=0.3) as rig:
        server.fail('RPUSH', what, after)
        rig.tick(*range(1, 9))
        rig.spool.hurry()
        rig.settled()
        # The one that was done without an answer, and no other, is there twice.
        assert ticks(server) == list(range(1, after + 2)) + list(range(after + 1, 9))
        assert rig.cursor.count['acknowledged'] == 8


@pytest.mark.parametrize('mode', ['list', 'stream', 'publish'])
def test_answers_that_come_in_single_bytes_are_understood(mode):
    class Slow(RedisStandin):
        def answer(self, state, words):
            answer = RedisStandin.answer(self, state, words)
            for i in range(len(answer) - 1):
                self.wire.send(answer[i:i + 1])
            return answer[-1:]

        def words(self, wire, state):
            self.wire = wire
            return RedisStandin.words(self, wire, state)
    with Slow(users={'mia': PASSWORD}) as server:
        with Rig('redis', port=server.port, mode=mode, database=2, username='mia', password=PASSWORD) as rig:
            rig.tick(1, 2, 3)
            rig.settled()
            found = server.messages('statbadger', 2)
            assert [json.loads(message.decode())['timestamp'] for message in found] == [1, 2, 3] and rig.log == []


def test_a_server_that_is_full_says_so_at_once_and_is_tried_again():
    with RedisStandin() as server, Rig('redis', port=server.port) as rig:
        server.greeting = b'-ERR max number of clients reached\r\n'
        rig.tick(1, 2)
        rig.until(lambda: rig.log)
        server.greeting = b''
        rig.settled()
        assert 'max number of clients' in rig.said() and ticks(server) == [1, 2]


def test_a_password_is_never_shown_whatever_the_server_says():
    long = 'long-' + PASSWORD * 20
    for words in ("-ERR unknown command 'AUTH', with args beginning with: 'mia' '%s'" % long[:100],
                  '-ERR no user mia with %s' % long, '-%s' % long, '+%s' % long):
        with RedisStandin(users={'mia': PASSWORD}) as server:
            server.faults += [['AUTH', 0, ('say', words.encode() + b'\r\n')] for _ in range(3)]
            with Rig('redis', port=server.port, username='mia', password=long) as rig:
                rig.tick(1)
                rig.until(lambda: rig.sender.failure)
                assert 'sesame' not in rig.said(), rig.said()


def test_a_unix_socket_is_spoken_to(tmp_path):
    path, heard = str(tmp_path / 'redis.sock'), []

    def serve():
        wire, _ = listener.accept()
        with wire:
            data = b''
            while b'LTRIM' not in data:
                data += wire.recv(65536)
            heard.append(data)
            wire.sendall(b':1\r\n+OK\r\n')
            wire.recv(1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with Rig('redis', socket=path) as rig:
            rig.tick(1)
            rig.settled()
        thread.join(10)
    assert b'RPUSH' in heard[0]
    with Rig('redis', socket=str(tmp_path / 'nobody')) as rig:
        rig.tick(1)
        rig.until(lambda: rig.log)
        assert 'No such file' in rig.said()


# -- options -------------------------------------------------------------------------------------

@pytest.mark.parametrize('options, words', [
    ({'username': 'mia'}, 'username without password'), ({'key': ''}, '"key": ""'), ({'mode': 'queue'}, 'one of "list"'),
    ({'socket': 'redis.sock'}, 'need a path from / on'), ({'socket': '/' + 'x' * 107}, '107 bytes at most'),
    ({'socket': '/run/redis.sock', 'tls': True}, 'found "tls" with "socket"'), ({'maxlen': -1}, 'maxlen'),
    ({'database': -1}, 'database'), ({'database': 'x'}, 'database'), ({'key': '{host}'}, 'key'),
    ({'tags': {'metric': 'x'}, 'format': 'flat'}, 'found a tag "metric"'), ({'tls_verify': False}, 'without TLS')])
def test_options_that_make_no_sense_are_said(options, words):
    with pytest.raises(statbadger.ConfigError) as caught:
        configured('redis', **options)
    assert words in str(caught.value)


def test_where_it_is():
    assert role_of(configured('redis')).target == ('tcp', '127.0.0.1', 6379, None)
    assert role_of(configured('redis', host='r1', port=7)).target == ('tcp', 'r1', 7, None)
    assert role_of(configured('redis', socket='/run/r')).target == ('unix', '/run/r')
    assert role_of(configured('redis', mode='publish')).delivery == 'acknowledged'


def test_over_tls(tmp_path):
    made = certificates(tmp_path)
    with RedisStandin(made.server()) as server, Rig('redis', port=server.port, tls=True, tls_ca=made.ca) as rig:
        rig.tick(1)
        rig.settled()
        assert ticks(server) == [1]
