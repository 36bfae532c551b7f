"""The kairosdb emitter: what is not the same as of opentsdb."""
import gzip
import json
import random

import pytest
import statbadger
from rig import Rig, configured, role_of
from standins_tsdb import KairosStandin, KairosTelnet
from statbadger import COUNTER, GAUGE, Later, REAL, Refused
from test_emitters import HOLE, IDENTITY, PIECES, READS, TOTAL, USER, frame, hostile
from test_opentsdb import FULL, HERE, Script, many


def dialogue(**values):
    return statbadger.kairosdb(configured('kairosdb', **values).options, {})


def stored(points):
    return 204, {}, b''


def refusing(*errors):
    return lambda points: (400, {}, json.dumps({'errors': list(errors)}).encode())


def test_a_point_is_a_line_of_putm_in_ms_with_a_decimal_point():
    script = Script(dialogue(protocol='telnet'), [[frame(USER, READS, TOTAL, time_ms=1429628878050)]])
    assert ''.join(script.sent).split('\n') == [
        'putm cpu.user 1429628878050 8.1 host=n1 ' + HERE,
        'putm disk.reads 1429628878050 3.0 host=n1 device=sda ' + HERE,
        'putm mem.memtotal 1429628878050 16777216000.0 host=n1 ' + HERE, 'version', '']
    assert script.done == [1]


def test_over_http_it_is_an_object_with_the_same_in_it():
    script = Script(dialogue(), [[frame(USER, READS), frame(READS, time_ms=1429628879000)]], stored)
    here = dict(dict(pair.split('=') for pair in HERE.split(' ')), host='n1')
    assert script.bodies == [[
        {'name': 'cpu.user', 'timestamp': 1429628878000, 'value': 8.1, 'tags': here},
        {'name': 'disk.reads', 'timestamp': 1429628878000, 'value': 3.0, 'tags': dict(here, device='sda')},
        {'name': 'disk.reads', 'timestamp': 1429628879000, 'value': 3.0, 'tags': dict(here, device='sda')}]]
    assert b'"value":3.0,' in gzip.decompress(script.requests[0].body)
    assert script.done == [1, 2] and not script.rejected


def test_a_body_that_is_compressed_says_so_where_every_version_looks():
    packed, plain = (Script(dialogue(gzip=on, password='x'), [[frame(USER)]], stored).requests[0] for on in (True, False))
    assert (packed.method, packed.path) == ('POST', '/api/v1/datapoints')
    assert packed.headers['Content-Type'] == 'application/gzip' and 'Content-Encoding' not in packed.headers
    assert plain.headers['Content-Type'] == 'application/json' and 'Content-Encoding' not in plain.headers
    assert plain.headers['Authorization'] == 'Basic Ong='


@pytest.mark.parametrize('value, text', [(1e22, '1.0e+22'), (1e-9, '1.0e-09'), (5.0, '5.0'), (123456789012345.0, '1.23456789012e+14')])
def test_a_number_in_powers_of_ten_has_a_decimal_point_too_for_the_server_drops_it_otherwise(value, text):
    script = Script(dialogue(protocol='telnet'), [[frame(('a', 'b', '', REAL, (), (), value))]])
    assert script.sent[0].split(' ')[3] == text


def test_all_tags_there_are_go():
    names = 'abcdefghij'
    one = frame(READS, identity=FULL)
    tags = Script(dialogue(tags=dict.fromkeys(names, '1')), [[one]], stored).bodies[0][0]['tags']
    assert sorted(tags) == sorted(['host', 'device'] + list(names) + [k for k in IDENTITY if k != 'hostname'])
    nobody = frame(USER, identity=dict.fromkeys(IDENTITY, ''))
    assert Script(dialogue(), [[nobody]], stored).bodies[0][0]['tags'] == {'host': '_'}


@pytest.mark.parametrize('values, target', [
    ({}, ('http', 'http://127.0.0.1:8080', None, '')), ({'port': 80, 'host': 'k'}, ('http', 'http://k:80', None, '')),
    ({'protocol': 'telnet'}, ('tcp', '127.0.0.1', 4242, None))])
def test_where_it_talks_to(values, target):
    role = role_of(configured('kairosdb', **values))
    assert role.target == target and role.delivery == 'acknowledged'


@pytest.mark.parametrize('values, problem', [
    ({'username': 'a:b'}, 'found a "username" with ":"'),
    ({'protocol': 'telnet', 'username': 'u'}, 'found username with "protocol": "telnet", need http'),
    ({'tags': {'a b': '1', 'a=b': '2'}}, 'found the tags "a b" and "a=b"'),
    ({'headers': {'content-Type': 'application/json'}}, 'headers other than content-type, which say how it is sent'),
    ({'sync': True}, 'sync')])
def test_what_does_not_go_together_is_a_mistake(values, problem):
    with pytest.raises(statbadger.ConfigError) as error:
        configured('kairosdb', **values)
    assert problem in str(error.value)


def test_the_points_that_the_server_names_are_refused_of_their_ticks_and_nothing_goes_again():
    frames = [frame(USER, READS), frame(READS), frame(USER, TOTAL)]
    script = Script(dialogue(), [frames], refusing('metric[1](name=disk.reads).tag[host].value may not be empty.',
                                                   'metric[1](name=disk.reads).tag[x].value may not be empty.',
                                                   'metric[4](name=mem.memtotal).\nname may not be empty.'))
    assert len(script.requests) == 1 and script.done == [1, 2, 3]
    assert script.rejected == [
        (frames[0], 1, 'metric[1](name=disk.reads).tag[host].value may not be empty.'),
        (frames[2], 1, 'metric[4](name=mem.memtotal). name may not be empty.')]


@pytest.mark.parametrize('error', ['Not in GZIP format', 'metric[9](name=x).no', 'metric[-1].no', 'metric[].no', 'metric', '',
                                   'metric[1e0]', 'metric[\xb2]', 'metric[' + '9' * 5000 + ']', 7, None, ['metric[0]'], {}])
def test_errors_of_no_point_are_errors_of_the_batch(error):
    with pytest.raises(Refused):
        Script(dialogue(), [[frame(USER)]], refusing(error))


@pytest.mark.parametrize('answer, error, wait', [
    ((401, {}, b'no'), Later, 300), ((404, {}, b'no'), Later, 60), ((500, {}, b'{"errors":["x"]}'), Later, 0),
    ((503, {'retry-after': '9'}, b'no'), Later, 9), ((400, {}, b''), Later, 60), ((400, {}, b'{"errors":[]}'), Refused, None)])
def test_answers_that_say_nothing_of_points(answer, error, wait):
    with pytest.raises(error) as caught:
        Script(dialogue(), [[frame(USER)]], [answer])
    if wait is not None:
        assert caught.value.wait == wait


def test_where_only_some_errors_are_of_a_point_fewer_go_until_it_is_clear():
    frames = [many(2, n) for n in range(4)]

    def answer(points):
        bad = [i for i, p in enumerate(points) if p['timestamp'] == 1429628880000]
        return (400 if bad else 204), {}, json.dumps({'errors': ['metric[%d].no' % bad[0], 'and more'] if bad else []}).encode()
    script = Script(dialogue(), [frames], answer)
    assert script.rejected == [(frames[2], 2, 'HTTP 400: {"errors": ["metric[0].no", "and more"]}')] and script.done == [1, 2, 3, 4]


def test_an_answer_that_is_cut_short_makes_fewer_go_until_it_is_clear():
    frames = [many(50, n) for n in range(4)]

    def answer(points):
        bad = [i for i, p in enumerate(points) if p['timestamp'] == 1429628880000]
        said = json.dumps({'errors': ['metric[%d](name=x).no' % i for i in bad]})
        return (400 if bad else 204), {}, said.encode()[:200]
    script = Script(dialogue(), [frames], answer)
    assert script.rejected[0][:2] == (frames[2], 50) and len(script.rejected) == 1 and script.done == [1, 2, 3, 4]


def test_hostile_names_are_refused_by_no_server():
    dice = random.Random(11)
    with KairosStandin() as web, KairosTelnet() as wire:
        for server, protocol in ((web, 'http'), (wire, 'telnet')):
            with Rig('kairosdb', port=server.port, protocol=protocol) as rig:
                for n in range(20):
                    points = [(hostile(dice) or 'f', 'n%d' % i, '', dice.choice([REAL, COUNTER, GAUGE]), ('k',),
                               (hostile(dice) or 'x',), i) for i in range(20)] + [('a', 'hole', '', GAUGE, (), (), HOLE)]
                    rig.spool.accept(frame(*points, time_ms=(n + 1) * 1000, identity={
                        key: dice.choice(PIECES) for key in IDENTITY}))
                account = rig.settled()
                assert account['acknowledged'] == 20 and account['refused_points'] == 0 and rig.log == []
                assert sorted(server.points.values()) == sorted(float(i) for i in range(20) for _ in range(20))
                assert all(isinstance(value, float) for value in server.points.values())


def test_a_line_that_is_too_long_for_the_server_is_refused_here_for_it_would_say_nothing():
    with KairosTelnet() as server, Rig('kairosdb', port=server.port, protocol='telnet') as rig:
        rig.spool.accept(frame(USER, ('t', 'x' * 2000, '', REAL, (), (), 1.0)))
        account = rig.settled()
        assert account['quarantined'] == account['refused_points'] == 1 and len(server.points) == 1
        assert rig.log == [('warning', 'kairosdb: refused: a line of more than 1023 bytes')]
