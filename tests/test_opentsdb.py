"""The opentsdb emitter, and what it shares with kairosdb: points, bodies, lines; the dialogues are scripted, or
speak to a stand-in."""
import base64
import gzip
import json
import random
import re
import time

import pytest
import statbadger
from rig import Rig, configured, role_of
from standins_tsdb import OpenTsdbStandin, OpenTsdbTelnet
from statbadger import Available, COUNTER, Dial, Done, GAUGE, Later, Line, Next, Now, REAL, Refused, Reject, Request, Send
from test_emitters import IDENTITY, HOLE, PIECES, READS, TOTAL, USER, frame, hostile

HERE = 'datacenter=EC2 cluster=test zone=us-west-1a region=us-west-1 ipv4=10.10.10.2'


class Script:
    """Performs the steps of a dialogue. answers: of each Request in order, or answer(texts); lines: what each Send
    is answered; late: what comes unasked after a Next. bodies: the texts of each request."""

    def __init__(self, dialogue, batches, answers=(), lines=(), late=()):
        self.batches, self.answers, self.lines, self.late = list(batches), answers, list(lines), list(late)
        self.requests, self.bodies, self.sent, self.input, self.rejected, self.done = [], [], [], [], [], []
        self.steps, answer = [], None
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
            if step.idle and self.late:
                return []
            if not self.batches:
                raise StopIteration
            return self.batches.pop(0)
        if isinstance(step, Request):
            self.requests.append(step)
            zipped = 'gzip' in (step.headers.get('Content-Encoding'), step.headers['Content-Type'][-4:])
            self.bodies.append(json.loads((gzip.decompress(step.body) if zipped else step.body).decode()))
            return self.answers(self.bodies[-1]) if callable(self.answers) else self.answers.pop(0)
        if isinstance(step, Send):
            self.sent.append(step.data.decode('ascii'))
            self.input += (self.lines.pop(0) if self.lines else b'KairosDB 1.3.0\n').splitlines(True)
        if isinstance(step, Reject):
            self.rejected.append((step.frame, step.points, step.reason))
        if isinstance(step, Done):
            self.done.append(step.n)
        return {Dial: lambda: 'link', Now: lambda: 0.0, Available: lambda: self.late.pop(0),
                Line: lambda: self.input.pop(0)}.get(type(step), lambda: None)()


def dialogue(memory=None, **values):
    chosen = configured('opentsdb', **values)
    return statbadger.opentsdb(chosen.options, {} if memory is None else memory)


def lines(*points, **more):
    """The lines of a tick over telnet."""
    values = more.pop('options', {})
    script = Script(dialogue(protocol='telnet', **values), [[frame(*points, **more)]])
    text = ''.join(script.sent)
    assert text.endswith('version\n') and script.done == [1]
    return [line for line in text.split('\n')[:-1] if line != 'version']


def stored(texts):
    return 200, {}, json.dumps({'success': len(texts), 'failed': 0, 'errors': []}).encode()


def refusing(**bad):
    """An answer that refuses the metrics of these names, with _ for ., and stores the rest."""
    def answer(points):
        errors = [{'datapoint': dict(p, value=str(p['value'])), 'error': bad[p['metric'].replace('.', '_')]}
                  for p in points if p['metric'].replace('.', '_') in bad]
        return (400 if errors else 200), {}, json.dumps({'success': len(points) - len(errors), 'failed': len(errors),
                                                         'errors': errors}).encode()
    return answer


# -- what is sent -------------------------------------------------------------------------------

def test_a_point_is_a_line_of_put_with_a_decimal_point():
    assert lines(USER, READS, TOTAL) == [
        'put cpu.user 1429628878 8.1 host=n1 ' + HERE,
        'put disk.reads 1429628878 3.0 host=n1 device=sda ' + HERE,
        'put mem.memtotal 1429628878 16777216000.0 host=n1 ' + HERE]


def test_over_http_it_is_an_object_with_the_same_in_it():
    script = Script(dialogue(), [[frame(USER, READS)]], stored)
    here = dict(pair.split('=') for pair in HERE.split(' '))
    assert script.bodies == [[
        {'metric': 'cpu.user', 'timestamp': 1429628878, 'value': 8.1, 'tags': dict(here, host='n1')},
        {'metric': 'disk.reads', 'timestamp': 1429628878, 'value': 3.0, 'tags': dict(here, host='n1', device='sda')}]]
    assert b'"value":3.0,' in gzip.decompress(script.requests[0].body)
    assert script.done == [1] and not script.rejected


@pytest.mark.parametrize('kind, value, text', [
    (GAUGE, 0, '0.0'), (GAUGE, -3, '-3.0'), (GAUGE, (1 << 53) + 1, '9007199254740993.0'),
    (GAUGE, 18446744073709551615, '18446744073709551615.0'), (REAL, 1.0, '1.0'), (REAL, 0.1, '0.1'),
    (REAL, 1e22, '1.0e+22'), (REAL, 1.5e22, '1.5e+22'), (REAL, 1e-300, '1.0e-300'), (REAL, -2e-7, '-2.0e-07'),
    (REAL, 123456789012.5, '123456789012'), (REAL, 1 / 3.0, '0.333333333333')])
def test_numbers_always_have_a_decimal_point(kind, value, text):
    text = text if '.' in text else text + '.0'
    line, = lines(('a', 'b', '', kind, (), (), value))
    assert line.split(' ')[:4] == ['put', 'a.b', '1429628878', text]


@pytest.mark.parametrize('ms, text', [(1429628878000, '1429628878'), (1429628878050, '1429628878050'),
                                      (1429628878999, '1429628878999'), (1000, '1')])
def test_time_is_in_seconds_when_whole_and_else_in_ms(ms, text):
    assert lines(USER, time_ms=ms)[0].split(' ')[2] == text


def test_what_is_unknown_is_left_out_and_so_is_what_the_sink_does_not_want():
    points = [('a', 'hole', '', REAL, (), (), HOLE), ('a', 'gone', '', GAUGE, (), (), 1), ('a', 'kept', '', GAUGE, (), (), 2),
              ('a', 'whole', '', GAUGE, (), (), HOLE)]
    assert [line.split(' ')[1] for line in lines(*points, options={'blacklist': ['a.g*']})] == ['a.kept']
    script = Script(dialogue(blacklist=['*']), [[frame(USER)], [frame(USER)]], stored)
    assert script.requests == [] and script.batches == []


def tags_of(line):
    return [pair.split('=')[0] for pair in line.split(' ')[4:]]


FULL = dict(IDENTITY, ipv6='fd00::11')


def test_of_more_than_eight_tags_the_addresses_go_first_and_host_labels_and_tags_never():
    assert tags_of(lines(READS, identity=FULL)[0]) == ['host', 'device', 'datacenter', 'cluster', 'zone', 'region',
                                                       'ipv4', 'ipv6']
    more = {'options': {'tags': {'env': 'prod', 'rack': '7'}}}
    assert tags_of(lines(USER, identity=FULL, **more)[0]) == ['host', 'env', 'rack', 'datacenter', 'cluster', 'zone',
                                                              'region', 'ipv4']
    assert tags_of(lines(READS, identity=FULL, **more)[0]) == ['host', 'device', 'env', 'rack', 'datacenter', 'cluster',
                                                               'zone', 'region']
    two = ('threads', 'cpu', '', REAL, ('group', 'thread'), ('web', 'w1'), 2.0)
    many = {'tags': dict.fromkeys('vwxyz', '1')}
    assert tags_of(lines(two, identity=FULL, options=many)[0]) == ['host', 'group', 'thread'] + list('vwxyz')
    assert tags_of(lines(two, identity=FULL, options=dict(many, max_tags=12))[0])[8:] == [
        'datacenter', 'cluster', 'zone', 'region']


def test_tags_of_the_configuration_give_way_to_labels_only_and_empty_ones_are_left_out():
    line, = lines(READS, options={'tags': {'device': 'mine', 'host': 'mine', 'cluster': 'mine', 'env': ''}})
    assert line.split(' ')[4:8] == ['host=mine', 'device=sda', 'cluster=mine', 'datacenter=EC2']


def test_a_point_has_one_tag_at_least():
    assert lines(USER, identity=dict.fromkeys(IDENTITY, '')) == ['put cpu.user 1429628878 8.1 host=_']


@pytest.mark.parametrize('telnet', [False, True])
def test_hostile_names_arrive_as_exactly_the_intended_points(telnet):
    seed = random.randrange(1 << 30)
    print('seed', seed)
    dice, word = random.Random(seed), re.compile(r'[A-Za-z0-9._/-]+\Z')
    for _ in range(100):
        points = [(hostile(dice) or 'f', hostile(dice), hostile(dice), dice.choice([GAUGE, REAL]), ('k',),
                   (hostile(dice, 30) or 'x',), i) for i in range(5)]
        one = frame(*points, identity={key: hostile(dice) for key in IDENTITY})
        options = {'tags': {hostile(dice) or 't': hostile(dice)}}
        if telnet:
            script = Script(dialogue(protocol='telnet', **options), [[one]])
            words = [line.split(' ') for line in ''.join(script.sent).split('\n')[:-2]]
            found = [(w[1], w[2], w[3], dict(pair.split('=') for pair in w[4:])) for w in words]
            assert all(len(w) == 4 + len(tags[3]) for w, tags in zip(words, found))
        else:
            script = Script(dialogue(**options), [[one]], stored)
            found = [(p['metric'], str(p['timestamp']), str(p['value']), p['tags']) for p in script.bodies[0]]
        assert [(stamp, value) for _, stamp, value, _ in found] == [('1429628878', '%d.0' % i) for i in range(5)]
        for metric, _, _, tags in found:
            assert all(map(word.match, [metric] + list(tags) + list(tags.values()))), found
            assert 1 <= len(tags) <= 8


def test_names_that_are_spelt_the_same_there_do_not_hide_each_other():
    one, other = (('disk', 'reads', '', REAL, ('device',), (name,), float(n)) for n, name in enumerate(['a b', 'a_b']))
    more = ('disk', 'reads', '', REAL, ('device',), ('a%b',), 2.0)
    assert [line.split(' ')[1::2][:2] for line in lines(one, other, more)] == [
        ['disk.reads', '0.0'], ['disk.reads_', '1.0'], ['disk.reads__', '2.0']]


# -- options ------------------------------------------------------------------------------------

@pytest.mark.parametrize('values, target', [
    ({}, ('http', 'http://127.0.0.1:4242', None, '')),
    ({'host': '::1', 'port': 80}, ('http', 'http://[::1]:80', None, '')),
    ({'host': 'tsd.example', 'tls': True, 'proxy': 'http://p:1'},
     ('http', 'https://tsd.example:4242', ('', '', '', True), 'http://p:1')),
    ({'protocol': 'telnet'}, ('tcp', '127.0.0.1', 4242, None)),
    ({'protocol': 'telnet', 'host': 'x', 'port': 5, 'tls': True, 'tls_verify': False},
     ('tcp', 'x', 5, ('', '', '', False)))])
def test_where_it_talks_to(values, target):
    role = role_of(configured('opentsdb', **values))
    assert role.target == target and role.delivery == 'acknowledged'


@pytest.mark.parametrize('values, problem', [
    ({'username': 'a:b'}, 'found a "username" with ":"'),
    ({'protocol': 'telnet', 'username': 'u'}, 'found username with "protocol": "telnet", need http'),
    ({'protocol': 'telnet', 'password': 'p'}, 'found password with "protocol": "telnet", need http'),
    ({'protocol': 'telnet', 'headers': {'a': 'b'}}, 'found headers with "protocol": "telnet", need http'),
    ({'protocol': 'telnet', 'proxy': 'http://p'}, 'found proxy with "protocol": "telnet", need http'),
    ({'protocol': 'udp'}, 'need one of "http", "telnet"'),
    ({'tls_verify': False}, 'found tls_verify without TLS, need "tls": true'),
    ({'host': u'\xe4.example'}, 'found host "\\u00e4.example", need an ASCII name or address'),
    ({'tags': {'a b': '1', 'a=b': '2'}}, 'found the tags "a b" and "a=b", need names that differ in letters'),
    ({'tags': dict.fromkeys('abcdef', '1')}, 'found 6 tags, need 5 or fewer: max_tags less host and two labels'),
    ({'max_bytes': 100}, 'max_bytes'), ({'max_tags': 3}, 'max_tags'), ({'url': 'http://x'}, 'url')])
def test_what_does_not_go_together_is_a_mistake(values, problem):
    with pytest.raises(statbadger.ConfigError) as error:
        configured('opentsdb', **values)
    assert problem in str(error.value)


def test_the_request_says_what_the_options_say():
    request = Script(dialogue(timeout=2, username='u', password='p\xe4', headers={'X-Scope': 'a'}), [[frame(USER)]],
                     stored).requests[0]
    assert (request.method, request.path) == ('POST', '/api/put?details&sync&sync_timeout=1800')
    login = 'Basic ' + base64.b64encode('u:p\xe4'.encode()).decode()
    assert dict(request.headers) == {'User-Agent': 'statbadger/' + statbadger.VERSION, 'Content-Type': 'application/json',
                                     'Content-Encoding': 'gzip', 'Authorization': login, 'X-Scope': 'a'}
    request = Script(dialogue(sync=False, gzip=False), [[frame(USER)]], stored).requests[0]
    assert request.path == '/api/put?details' and not {'Content-Encoding', 'Authorization'} & set(request.headers)


# -- HTTP: what is stored and what is not --------------------------------------------------------

def many(n, number=0, length=0):
    """A tick of so many series, of names that cannot be compressed when they have a length."""
    dice = random.Random(number)
    return frame(*[('t', 'm%d%s' % (i, ''.join(dice.choice('abcdefghijklmnop') for _ in range(length))), '', REAL, (), (),
                    dice.random()) for i in range(n)], time_ms=1429628878000 + number * 1000)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('most', [8192, 2000, 100000])
@pytest.mark.parametrize('length', [0, 100])
def test_bodies_stay_below_their_limit_and_nothing_is_left_out(zipped, most, length):
    frames = [many(70 * n, n, length) for n in range(1, 9)]
    script = Script(dialogue(gzip=zipped, max_bytes=most), [frames, frames[:1]], stored)
    assert all(len(request.body) <= most for request in script.requests)
    assert all(len(request.body) > most / 4 for request in script.requests[:-3]) or most == 100000
    metrics = [(p['metric'], p['timestamp']) for body in script.bodies for p in body]
    assert metrics == [(s.metric, f.time_ms // 1000) for f in frames + frames[:1] for s in f.layout.series]
    assert not script.rejected


def test_a_tick_is_done_when_all_its_points_are():
    frames = [many(40, n, 100) for n in range(4)]
    script = Script(dialogue(gzip=False, max_bytes=9000), [frames], stored)
    assert [sum(map(len, script.bodies[:n])) for n in range(len(script.bodies) + 1)][-1] == 160
    points, done = 0, []
    for step in script.steps:
        if isinstance(step, Request):
            points += len(json.loads(step.body.decode()))
        if isinstance(step, Done):
            done.append(step.n)
            assert points >= 40 * step.n and points < 40 * (step.n + 1) + 40
    assert done == [1, 2, 3, 4]


def test_a_point_that_no_body_takes_is_refused_here_and_all_others_go():
    long = ('t', 'x' * 3000, '', REAL, (), (), 1.0)
    one = frame(USER, long, READS)
    script = Script(dialogue(gzip=False, max_bytes=2000), [[one, many(2)]], stored)
    assert script.rejected == [(one, 1, 'a point of more than 2000 bytes')] and script.done == [1, 2]
    assert [p['metric'] for body in script.bodies for p in body] == ['cpu.user', 'disk.reads', 't.m0', 't.m1']


def test_the_points_that_the_server_names_are_refused_of_their_ticks_and_nothing_goes_again():
    frames = [frame(USER, READS, TOTAL), frame(USER, time_ms=1429628879000), frame(READS, TOTAL, time_ms=1429628880000)]
    script = Script(dialogue(), [frames], refusing(disk_reads='a\n  b', mem_memtotal='c'))
    assert len(script.requests) == 1
    assert script.rejected == [(frames[0], 2, 'a b'), (frames[2], 2, 'a b')] and script.done == [1, 2, 3]


def test_of_points_of_one_metric_those_of_that_time_and_those_tags_are_refused():
    frames = [frame(READS, READS[:5] + (('sdb',), 4.0), time_ms=n * 1000) for n in (1, 2, 3)]

    def answer(points):
        bad = [p for p in points if p['timestamp'] == 2 and p['tags']['device'] == 'sdb']
        return 400, {}, json.dumps({'success': 5, 'failed': 1, 'errors': [{'datapoint': bad[0], 'error': 'no'}]}).encode()
    script = Script(dialogue(), [frames], answer)
    assert script.rejected == [(frames[1], 1, 'no')] and len(script.requests) == 1


def test_points_of_names_that_are_the_same_there_are_refused_one_by_one():
    twins = [('d', 'r', '', REAL, ('device',), (name,), 1.0) for name in ('a b', 'a=b', 'a"b')]
    one = frame(*twins)
    script = Script(dialogue(), [[one]], refusing(d_r='no', d_r_='no', d_r__='no'))
    assert script.rejected == [(one, 3, 'no')] and len(script.requests) == 1


@pytest.mark.parametrize('answer', [
    (400, {}, b'Chunked request not supported.'), (413, {}, b'too much'),
    (400, {}, b'{"success":0,"failed":9,"errors":[{"datapoint":{"metric":"cpu.us'),
    (400, {}, json.dumps({'errors': [{'datapoint': {'metric': 'other', 'timestamp': 1, 'tags': {}}, 'error': 'no'}]}).encode()),
    (400, {}, b'{"errors":[{}]}'), (400, {}, b'{"errors":[7,null,"x"]}'),
    (400, {}, b'{"errors":[{"datapoint":{"metric":"cpu.user","timestamp":1429628878,"tags":[1]},"error":"no"}]}')])
def test_where_it_does_not_say_which_fewer_go_until_it_is_clear(answer):
    frames = [many(5, n) for n in range(3)]

    def picky(points):
        return answer if any(p['metric'] == 't.m2' and p['timestamp'] == 1429628879 for p in points) else stored(points)
    script = Script(dialogue(), [frames], picky)
    (one, points, reason), = script.rejected
    assert one is frames[1] and points == 1 and reason.startswith('HTTP %d: ' % answer[0])
    assert script.done == [1, 2, 3]
    kept = {(p['metric'], p['timestamp']) for body in script.bodies for p in body}
    assert len(kept) == 15


@pytest.mark.parametrize('answer, error, wait', [
    ((400, {}, b'{"error":{"code":400,"message":"Unable to parse the given JSON"}}'), Refused, None),
    ((400, {}, b'<html>Bad Request</html>'), Later, 60), ((415, {}, b'no'), Later, 60), ((413, {}, b'no'), Later, 60),
    ((400, {}, b'{"errors":[{'), Later, 60), ((400, {}, b'[]'), Refused, None),
    ((400, {}, b'{"errors":[]}'), Refused, None), ((400, {}, b''), Later, 60), ((400, {}, b'Bad Request'), Later, 60), ((422, {}, b'no'), Refused, None),
    ((401, {}, b'no'), Later, 300), ((403, {}, b'no'), Later, 300), ((404, {}, b'no'), Later, 60),
    ((405, {}, b'no'), Later, 60), ((302, {}, b''), Later, 300), ((429, {'retry-after': '7'}, b''), Later, 7),
    ((500, {}, b'no'), Later, 0), ((503, {}, b'no'), Later, 0)])
def test_answers_that_say_nothing_of_points(answer, error, wait):
    with pytest.raises(error) as caught:
        Script(dialogue(), [[frame(USER)]], [answer])
    if wait is not None:
        assert caught.value.wait == wait


@pytest.mark.parametrize('why', ['Write timedout', 'Storage exception: NSRE', 'Please throttle', 'Timeout exception',
                                 'Unexpected exception'])
def test_trouble_of_the_server_is_no_fault_of_the_points_and_they_go_again(why):
    with pytest.raises(Later) as caught:
        Script(dialogue(), [[frame(USER, READS)]], refusing(cpu_user=why))
    assert caught.value.suspect and str(caught.value) == 'OpenTSDB: ' + why


@pytest.mark.parametrize('telnet', [False, True])
def test_a_server_that_knows_no_metric_at_all_is_told_of_and_asked_again(telnet):
    unknown = "put: unknown metric: No such name for 'metrics': 'x'\n"
    answers = {'lines': [(unknown * 2).encode() + b'KairosDB 1\n']} if telnet else {
        'answers': refusing(cpu_user='Unknown metric', disk_reads='Unknown metric')}
    with pytest.raises(Later) as caught:
        Script(dialogue(protocol='telnet' if telnet else 'http'), [[frame(USER, READS)]], **answers)
    assert caught.value.wait == 60 and 'tsd.core.auto_create_metrics' in str(caught.value)


@pytest.mark.parametrize('telnet', [False, True])
def test_a_metric_that_a_server_does_not_know_among_others_is_refused_and_so_is_a_tick_of_such_later(telnet):
    frames, memory = [frame(USER, READS), frame(USER, time_ms=1429628879000)], {}
    unknown = b"put: unknown metric: No such name for 'metrics': 'x'\nKairosDB 1\n"
    answers = {'lines': [unknown] * 2} if telnet else {'answers': refusing(cpu_user='Unknown metric')}
    script = Script(dialogue(memory, protocol='telnet' if telnet else 'http'), [frames], **answers)
    assert [(f, n) for f, n, _ in script.rejected] == [(f, 1) for f in frames] and script.done == [1, 2]
    assert all('tsd.core.auto_create_metrics' in why for _, _, why in script.rejected)


def ticks(rig, numbers, series=3, length=0):
    for n in numbers:
        rig.spool.accept(many(series, n, length))


def test_what_is_refused_is_counted_once_when_the_connection_breaks_within_a_tick():
    with OpenTsdbStandin() as server, Rig('opentsdb', port=server.port, gzip=False, max_bytes=512) as rig:
        server.dislikes = 't.m1'
        server.answer(204)
        server.answer(cut=0)
        server.answer(503)
        ticks(rig, [1, 2], 6)
        account = rig.settled()
        assert (account['quarantined'], account['refused_points'], account['acknowledged']) == (2, 2, 0)
        assert len(server.points) == 10 and not server.complaints


def test_a_smaller_limit_of_the_server_is_found_and_costs_nothing():
    with OpenTsdbStandin(largest=1500) as server, Rig('opentsdb', port=server.port) as rig:
        ticks(rig, range(20), 50, 30)
        assert rig.settled()['acknowledged'] == 20
        assert len(server.points) == 1000
        refused = [request for request in server.requests if len(request.raw) > 1500]
        assert len(refused) < len(server.requests) * 2 / 3
        assert not server.complaints


# -- telnet: lines and what is said to them ------------------------------------------------------

def telnet(lines, *frames, **more):
    return Script(dialogue(protocol='telnet'), [list(frames) or [frame(USER, READS)]], lines=lines, **more)


VERSION = b'net.opentsdb.tools 2.4.1 built at revision eb125a3 (MINT)\nBuilt on 2021/09/08 by a@b:/c\n'


@pytest.mark.parametrize('version', [VERSION, b'KairosDB 1.3.0-1.20210808220820\n',
                                     VERSION.replace(b'\n', b'\r\n')])
def test_the_answer_to_version_says_that_all_before_it_was_read(version):
    script = telnet([version] * 3, frame(USER), frame(READS), frame(TOTAL))
    assert script.done == [1, 2, 3] and not script.rejected and not script.input
    assert [text.count('\n') for text in script.sent] == [2, 2, 2]


def test_a_large_tick_goes_in_parts_that_the_server_has_read_before_the_next():
    script = telnet([], many(2000))
    assert len(script.sent) > 3 and all(len(text) <= 32768 + 8 and text.endswith('\nversion\n') for text in script.sent)
    assert ''.join(script.sent).count('put ') == 2000 and script.done == [1]
    kinds = [type(step) for step in script.steps if isinstance(step, (Send, Line))]
    assert kinds == [Send, Line] * len(script.sent)


def test_errors_count_as_refused_points_of_the_tick_that_they_answer():
    frames = [frame(USER, READS, time_ms=n * 1000) for n in (1, 2, 3)]
    said = (b'put: illegal argument: Invalid metric name ("a:b"): illegal character: :\n'
            b'put: invalid value: Invalid character \'a\' in abc\n')
    script = telnet([VERSION, said + VERSION, VERSION], *frames)
    assert script.rejected == [(frames[1], 2, 'illegal argument: Invalid metric name ("a:b"): illegal character: :')]
    assert script.done == [1, 2, 3] and not script.input


def test_a_line_that_is_too_long_for_the_server_is_refused_here():
    at = len('put t. 1429628878 1.0 host=n1 ' + HERE)
    fits, long = (('t', 'x' * (n - at), '', REAL, (), (), 1.0) for n in (1023, 1024))
    one = frame(USER, fits, long)
    script = telnet([], one)
    assert script.rejected == [(one, 1, 'a line of more than 1023 bytes')]
    assert [len(line) for line in script.sent[0].split('\n')] == [len('put cpu.user 1429628878 8.1 host=n1 ' + HERE),
                                                                  1023, 7, 0]
    script = telnet([], frame(long))
    assert script.sent == [] and script.done == [1] and len(script.rejected) == 1


@pytest.mark.parametrize('why', ['HBase error: NSRE\n\tat org.apache.hadoop', 'Please throttle writes: x', 'Request timed out: x',
                                 'Throttling exception: x', 'Unexpected runtime exception: x'])
def test_trouble_of_the_server_over_telnet_is_no_fault_of_the_points(why):
    with pytest.raises(Later) as caught:
        telnet([b'put: ' + why.encode() + b'\n' + VERSION])
    assert caught.value.suspect and str(caught.value) == why.split('\n')[0]


def test_a_server_that_wants_a_login_over_telnet_is_asked_again_later():
    with pytest.raises(Later) as caught:
        telnet([b'put: illegal argument: Unauthenticated command: put\n'])
    assert caught.value.wait == 300


@pytest.mark.parametrize('why', ["unknown metric: No such name for 'metrics': 'http.Unauthorized'",
                                 'illegal argument: Invalid metric name ("Unauthorized:x"): illegal character: :'])
def test_a_metric_whose_name_speaks_of_logins_is_refused_like_any_other(why):
    script = telnet([b'put: ' + why.encode() + b'\n' + VERSION])
    assert [(points, reason) for _, points, reason in script.rejected] == [
        (1, statbadger.UNKNOWN_METRIC % why if 'unknown' in why else why)]


@pytest.mark.parametrize('said', [b'\n', b'HTTP/1.1 400 Bad Request\r\n', b"unknown command: version.  Try `help'.\n",
                                  b'\xff\xfe\x00\n', b'220 mail DB ready\n', b'put\n',
                                  b'put: illegal argument: x\n' * 3 + VERSION])
def test_what_no_server_would_answer_is_no_acknowledgement(said):
    with pytest.raises(OSError) as caught:
        telnet([said])
    assert 'need the answer of OpenTSDB or KairosDB to "version"' in str(caught.value)


def test_what_a_server_says_later_of_points_that_it_had_taken_is_not_unheard():
    with pytest.raises(Later) as caught:
        telnet([VERSION], late=[b'', b'put: HBase error: gone\n'])
    assert str(caught.value) == 'it says later: put: HBase error: gone'


def test_an_idle_connection_that_the_server_closes_is_no_trouble_and_late_errors_are_said():
    with OpenTsdbTelnet() as server, Rig('opentsdb', port=server.port, protocol='telnet') as rig:
        ticks(rig, [1])
        assert rig.settled()['acknowledged'] == 1
        role, anew = rig.sender.role, []
        talk = role.talk
        role.talk = lambda: anew.append(True) or talk()
        server.hang_up()
        rig.until(lambda: anew)
        ticks(rig, [2])
        rig.settled()
        assert rig.log == [] and server.connections == 2
        with server.lock:
            wire = max(server.wires, key=lambda wire: wire.number)
        wire.send(b'put: HBase error: gone\n')
        rig.until(lambda: rig.log)
        assert rig.log[0] == ('warning', 'opentsdb: it says later: put: HBase error: gone')
        ticks(rig, [3])
        assert rig.settled()['acknowledged'] == 3 and len(server.points) == 9


def test_a_server_that_does_not_answer_to_version_is_given_up_at_the_deadline():
    with OpenTsdbTelnet() as server, Rig('opentsdb', port=server.port, protocol='telnet', timeout=0.2) as rig:
        server.deaf = True
        ticks(rig, [1])
        rig.until(lambda: rig.log)
        assert 'no end within the time allowed' in rig.log[0][1]
        server.deaf = False
        assert rig.settled()['acknowledged'] == 1 and len(server.points) == 3


def test_hostile_names_are_refused_by_no_server():
    dice = random.Random(7)
    with OpenTsdbStandin() as web, OpenTsdbTelnet() as wire:
        for server, protocol in ((web, 'http'), (wire, 'telnet')):
            with Rig('opentsdb', port=server.port, protocol=protocol) as rig:
                for n in range(20):
                    points = [(hostile(dice) or 'f', 'n%d' % i, '', REAL, ('k',), (hostile(dice) or 'x',), i) for i in range(20)]
                    rig.spool.accept(frame(*points, time_ms=(n + 1) * 1000, identity={
                        key: dice.choice(PIECES) for key in IDENTITY}))
                account = rig.settled()
                assert account['acknowledged'] == 20 and account['refused_points'] == 0 and rig.log == []
                assert sorted(server.points.values()) == sorted(float(i) for i in range(20) for _ in range(20))


def test_a_reply_of_the_worst_kind_takes_no_time():
    began = time.monotonic()
    for body in (b'{"errors":' + b'[' * 60000, b'{"errors":[' + b'{},' * 20000, b'{"a":"' + b'\\u0000' * 10000,
                 b'{' * 65536, b'{"errors":[' + b'9' * 60000 + b']}'):
        assert statbadger.opentsdb_refusals(body, ['{"metric":"a","timestamp":1,"tags":{}}'] * 100) is None
    assert time.monotonic() - began < 5
