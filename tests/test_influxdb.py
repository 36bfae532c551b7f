"""The influxdb emitter: lines, options, datagrams, and what each version says when it is not content."""
import base64
import json
import os
import random
import socket
from array import array

import pytest
import statbadger
from rig import Rig, WHO, configured, role_of
from standins import ALWAYS, HttpStandin
from standins_influxdb import InfluxdbStandin, parsed
from statbadger import COUNTER, GAUGE, Done, Later, Next, Refused, Reject, Request, Send, Wait

SEED = int(os.environ.get('FAULT_SEED', random.randrange(1 << 30)))
USER = ('cpu', 'user', 'percent', 'share', (), (), 8.1)
IDLE = ('cpu', 'idle', 'percent', 'share', (), (), 91.9)
READS = ('disk', 'reads', '', COUNTER, ('device',), ('sda',), 3.0)
OTHER = ('disk', 'reads', '', COUNTER, ('device',), ('sdb',), 4.0)
TOTAL = ('mem', 'memtotal', 'B', GAUGE, (), (), 5)
BARE = dict(dict.fromkeys(statbadger.IDENTITY_KEYS, ''), hostname='n1')
T0 = 1700000000000


def frame(number, *points, **more):
    """A tick, so many seconds after T0, of (family, name, unit, kind, label keys, label values, value)."""
    layout = statbadger.Layout(tuple(statbadger.Series(*p[:6]) for p in points))
    return statbadger.Frame(T0 + number * 1000, number, more.get('who', BARE), layout,
                            array('d', [p[6] for p in points]))


def influxdb(server, **more):
    return Rig('influxdb', **dict({'url': 'http://127.0.0.1:%d' % server.port, 'database': 't'}, **more))


def feed(rig, *frames):
    """Hands ticks over that are to go in one batch: for rigs with a flush of an hour."""
    for one in frames:
        rig.spool.accept(one)
    rig.spool.hurry()


def refused(rig):
    count = rig.settled()
    return count['acknowledged'], count['quarantined'], count['refused_points']


def lines_of(*frames, **tags):
    template = statbadger.Template(statbadger.influx_fields(tags), statbadger.VALUE + 'nan')
    (part, text), = statbadger.text_parts(
        lambda one: statbadger.influx_lines(template.text(one), one.time_ms), frames, statbadger.INFLUX_MOST)
    assert part == frames
    return text


# -- lines --------------------------------------------------------------------------------------

# Bare, awkward, and such as escape something: the protocol's own characters, and all that ends a line somewhere.
PIECES = ['a', 'b', ',', '=', ' ', '\\', '\\\\', '"', "'", '#', '\n', '\r', '\t', '\0', '\x7f', '\x85', u'\u2028',
          u'\xe4', u'\U0001f600', u'\ufffd', 'time', '_field', '%', '%s', '\\n', '\\x2d', '{hostname}', 'nan', '1.0',
          ' 5']


def plain(text):
    """What a server shows of such a text."""
    text = ''.join('_' if c < ' ' or c == '\x7f' else c for c in text)
    return ''.join('_' if c == '\\' and after in ',= \\' else c for c, after in zip(text, text[1:] + ' '))


def test_names_that_are_spelt_the_same_there_do_not_hide_each_other():
    one = frame(1, ('', 'queue', '', GAUGE, (), (), 1), ('queue', 'value', '', GAUGE, (), (), 2),
                *[READS[:5] + ((name,), 3.0) for name in ('a\n', 'a\r')])
    heads = [line.rpartition(' ')[0] for line in lines_of(one).splitlines()]
    assert heads == ['queue,host=n1 value=1.0', 'queue,host=n1 value_=2.0', 'disk,device=a_,host=n1 reads=3.0',
                     'disk,device=a_,host=n1 reads_=3.0']


def test_hostile_names_come_back_from_a_strict_reader_as_they_were_meant():
    print('FAULT_SEED', SEED)
    dice = random.Random(SEED)

    def name():
        return ''.join(dice.choice(PIECES) for _ in range(dice.randrange(1, 6)))
    for _ in range(400):
        family, metric, value, host, key = [name() for _ in range(5)]
        line, empty = lines_of(frame(1, (family, metric, '', GAUGE, ('device',), (value,), 7),
                                     who=dict(BARE, hostname=host)), **{key: host}).split('\n')
        measurement, tags, fields, stamp = parsed(line)
        shown = plain(family)
        assert measurement == ('_' + shown if shown.startswith('#') else shown) and empty == ''
        assert tags['device'] == plain(value) and tags['host'] == plain(host) and stamp == T0 + 1000
        reserved = ('time', '_field', '_measurement')
        assert tags[plain(key + '_' if key in reserved else key)] == plain(host)
        field = plain(metric + '_' if metric in reserved else metric).replace('"', '_')
        assert list(fields) in ([field], [field + '_']) and list(fields.values()) == [7.0]


def test_backslashes_are_literal_but_where_servers_differ():
    for name, shown in [('a\\b', 'a\\b'), ('dev-disk\\x2duuid', 'dev-disk\\x2duuid'), ('a\\', 'a_'), ('\\', '_'),
                        ('a\\\\b', 'a_\\b'),
                        ('a\\ b', 'a_\\ b'), ('a\\,b', 'a_\\,b'), ('a\\=b', 'a_\\=b'), ('a\\"', 'a\\"')]:
        assert ',device=%s,host=n1 ' % shown in lines_of(frame(1, READS[:5] + ((name,), 1)))


def test_no_name_comes_twice_in_a_line_nor_as_tag_and_field():
    points = [('disk', name, '', GAUGE, ('device',), ('sda',), i) for i, name in enumerate(
        ['host', 'device', 'env', 'a\tb', 'a_b', 'a\nb', 'time', 'time_', 'x'])]
    measurement, tags, fields, _ = parsed(lines_of(frame(1, *points),
                                                   **{'env': 'prod', 'time': 'now', 'x': ''}).rstrip('\n'))
    assert tags == {'device': 'sda', 'env': 'prod', 'host': 'n1', 'time_': 'now'}
    assert fields == {'host_': 0, 'device_': 1, 'env_': 2, 'a_b': 3, 'a_b_': 4, 'a_b__': 5, 'time__': 6, 'time___': 7,
                      'x': 8}


def test_names_are_cut_so_that_a_line_is_not_refused_for_them():
    line = lines_of(frame(1, ('f' * 70000, 'm' * 70000, '', GAUGE, ('device',), (u'\U0001f600' * 70000,), 1),
                          who=dict.fromkeys(statbadger.IDENTITY_KEYS, 'w' * 70000)))
    assert parsed(line.rstrip('\n'))[0] == 'f' * 1000 and len(line.encode()) < 65535


@pytest.mark.parametrize('value, kind, text', [
    (0.0, COUNTER, '0.0'), (-0.0, COUNTER, '-0.0'), (5, GAUGE, '5.0'), (1e21, COUNTER, '1.0e+21'),
    (2.5e-7, COUNTER, '2.5e-07'),
    (-4.5, COUNTER, '-4.5'), (1 / 3.0, COUNTER, '0.333333333333'), (9007199254740992, GAUGE, '9007199254740992.0')])
def test_a_number_is_a_float_by_its_spelling_whatever_its_value(value, kind, text):
    assert lines_of(frame(1, ('a', 'b', '', kind, (), (), value))) == 'a,host=n1 b=%s 1700000001000\n' % text


def test_the_tags_are_the_identity_that_is_known_the_labels_and_those_of_the_configuration():
    text = lines_of(frame(1, READS, who=WHO), env='prod', host='mine', device='mine', rack='')
    assert parsed(text.rstrip('\n'))[1] == {
        'host': 'mine', 'device': 'sda', 'env': 'prod', 'datacenter': 'EC2', 'cluster': 'test', 'ipv4': '10.10.10.2'}


# -- options ------------------------------------------------------------------------------------

@pytest.mark.parametrize('values, path, login', [
    ({}, '/write?db=statbadger&precision=ms', None),
    ({'database': 'a b/&=?#\xe4', 'retention_policy': 'r p'},
     '/write?db=a%20b%2F%26%3D%3F%23%C3%A4&rp=r%20p&precision=ms', None),
    ({'username': 'u', 'password': 'p:\xe4'}, '/write?db=statbadger&precision=ms',
     'Basic ' + base64.b64encode('u:p:\xe4'.encode()).decode()),
    # 3.x
    ({'password': 'tok'}, '/write?db=statbadger&precision=ms', 'Basic ' + base64.b64encode(b':tok').decode()),
    ({'database': 'd', 'token': 'T'}, '/write?db=d&precision=ms', 'Token T'),
    ({'bucket': 'b', 'org': 'my org', 'token': 'T=='}, '/api/v2/write?org=my%20org&bucket=b&precision=ms', 'Token T=='),
    # 1.8
    ({'bucket': 'db/rp', 'token': 'u:p'}, '/api/v2/write?bucket=db%2Frp&precision=ms', 'Token u:p'),
    ({'bucket': 'b', 'username': 'u'}, '/api/v2/write?bucket=b&precision=ms', 'Basic dTo=')])
@pytest.mark.parametrize('base', ['', '/base', '/base/'])
def test_where_it_writes_and_how_it_logs_in(values, path, login, base):
    with HttpStandin() as server:
        server.answer(204, times=ALWAYS)
        with Rig('influxdb', **dict(values, url='http://localhost:%d%s' % (server.port, base),
                                    headers={'X-A': 'b'})) as rig:
            rig.tick(1)
            assert rig.settled()['acknowledged'] == 1
        request, = server.requests
    assert (request.method, request.path) == ('POST', base.rstrip('/') + path)
    assert request.headers.get('authorization') == login and request.headers['x-a'] == 'b'
    assert request.headers['content-type'] == 'text/plain; charset=utf-8'
    assert request.headers['content-encoding'] == 'gzip'


@pytest.mark.parametrize('values, need', [
    ({'url': 'localhost:8086'}, 'a URL such as'), ({'url': 'udp://h:1/x'}, 'a URL such as "udp://10.0.0.9:8089"'),
    ({'url': 'udp://'}, 'a URL such as'), ({'url': 'udp://u:secret-p@h'}, 'a URL such as'),
    ({'url': 'udp://h:99999'}, 'a URL such as'),
    ({'url': 'tcp://h'}, 'a URL such as'), ({'database': ''}, 'found no "database" and no "bucket"'),
    ({'org': 'o'}, 'found "org" without "bucket"'), ({'org': 'o', 'token': 'secret-p'}, 'found "org" without "bucket"'),
    ({'bucket': 'b', 'retention_policy': 'r'}, 'found "retention_policy" with "bucket"'),
    ({'bucket': 'b', 'database': 'd'}, 'found "database" with "bucket"'),
    ({'token': 'secret-p', 'username': 'u'}, 'one way to log in'),
    ({'token': 'secret-p', 'password': 'secret-q'}, 'one way to log in'),
    ({'token': 'Token secret-p'}, 'need the bare token'), ({'token': 'secret-p\r\nX: y'}, 'need the bare token'),
    ({'token': 'secret-p\xe4'}, 'bare token'),
    ({'username': 'a:b'}, 'a "username" with ":"'),
    ({'tags': {'time': 'a', 'time_': 'b'}}, 'found the tags "time" and "time_", need names that differ'),
    ({'tls_verify': False}, 'https in the URL'),
    ({'url': 'udp://h', 'token': 'secret-p'}, '"token" with a udp URL'),
    ({'url': 'udp://h', 'bucket': 'b'}, '"bucket" with a udp URL'),
    ({'url': 'udp://h', 'database': 'd'}, 'configuration names it'),
    ({'url': 'udp://h', 'tls_verify': False}, 'tls_verify without TLS'),
    ({'url': 'udp://h', 'headers': {'a': 'secret-p'}}, '"headers" with a udp URL')])
def test_mistakes_are_said_with_what_is_needed_and_without_secrets(values, need):
    with pytest.raises(statbadger.ConfigError) as caught:
        configured('influxdb', **values)
    assert need in str(caught.value) and 'secret-' not in str(caught.value)


@pytest.mark.parametrize('url, target', [('udp://h', ('udp', 'h', 8089)), ('udp://[::1]:7', ('udp', '::1', 7)),
                                         ('udp://10.0.0.9:1', ('udp', '10.0.0.9', 1))])
def test_what_is_sent_by_udp_is_sent_and_no_more_is_known(url, target):
    role = role_of(configured('influxdb', url=url))
    assert role.target == target and role.delivery == 'sent'
    assert role_of(configured('influxdb')).delivery == 'acknowledged'


def test_check_shows_no_token(run):
    done = run('-e', 'influxdb,bucket=b,org=o,token=secret-p', '--check')
    assert done.code == 0 and 'secret-p' not in done.out + done.err and '****' in done.out


# -- what is sent, and in how many pieces ----------------------------------------------------------

def talk(frames, answer, **options):
    """[step] of a dialogue for one batch; answer(number of the request) -> (status, headers, body)."""
    dialogue = statbadger.influxdb(configured('influxdb', **options).options, {})
    steps, given = [dialogue.send(None)], frames
    while True:
        step = dialogue.send(given)
        if isinstance(step, Next):
            return steps[1:]
        steps.append(step)
        given = answer(sum(isinstance(s, Request) for s in steps)) if isinstance(step, Request) else 1700000000.0


def stored(n):
    return 204, {}, b''


def test_a_batch_goes_in_bodies_of_a_megabyte_each_acknowledged_and_with_its_own_time():
    points = [('disk', 'm%d' % i, '', GAUGE, ('device',), ('sd%d' % d,), i) for d in range(100) for i in range(40)]
    frames = [frame(n, *points) for n in range(1, 61)]
    one = len(lines_of(frames[0]))
    steps = talk(frames, stored, gzip=False)
    requests, done = [s for s in steps if isinstance(s, Request)], [s.n for s in steps if isinstance(s, Done)]
    assert all((1 << 20) - one < len(s.body) <= 1 << 20 for s in requests[:-1]) and len(requests) == len(done) > 2
    assert done == sorted(done) and done[-1] == 60 and sum(isinstance(s, Wait) for s in steps) == len(requests)
    assert b''.join(s.body for s in requests).count(b'\n') == 6000


def test_a_tick_that_is_larger_than_a_body_goes_alone():
    points = [('disk', 'm%d' % i, '', GAUGE, ('device',), ('sd%d' % d,), i) for d in range(1000) for i in range(200)]
    steps = talk([frame(1, USER), frame(2, *points), frame(3, USER)], stored, gzip=False)
    assert [len(s.body) > 1 << 20 for s in steps if isinstance(s, Request)] == [False, True, False]


def test_ticks_without_points_are_acknowledged_and_nothing_is_sent():
    hole = USER[:6] + (float('nan'),)
    steps = talk([frame(1, hole), frame(2)], stored)
    assert [type(s) for s in steps] == [Done] and steps[0].n == 2
    assert [type(s) for s in talk([frame(1, READS)], stored, blacklist=['disk.*'])] == [Done]


def test_what_was_stored_before_a_body_failed_does_not_go_again():
    points = [('disk', 'm%d' % i, '', GAUGE, ('device',), ('sd%d' % d,), i) for d in range(100) for i in range(40)]
    with InfluxdbStandin() as server:
        with influxdb(server, flush=3600) as rig:
            server.answer(204)
            server.answer(500, body='{"error": "timeout"}')
            feed(rig, *[frame(n, *points) for n in range(1, 41)])
            assert refused(rig) == (40, 0, 0)
        first = len(set(line.rsplit(b' ', 1)[1] for line in server.requests[0].body.splitlines()))
        assert min(p[4] for p in server.points()) == T0 + (first + 1) * 1000 and 0 < first < 40
        assert len(server.requests) > 2 and server.complaints == []


# -- datagrams ----------------------------------------------------------------------------------

def datagrams(*points, **more):
    one = frame(1, *points, **more)
    dialogue = statbadger.influxdb(configured('influxdb', url='udp://127.0.0.1:1').options, {})
    dialogue.send(None)
    steps, step = [], dialogue.send([one])
    while not isinstance(step, Next):
        steps.append(step)
        step = dialogue.send(None)
    assert isinstance(steps.pop(), Done)
    return [s.data for s in steps if isinstance(s, Send)], [s for s in steps if isinstance(s, Reject)]


def merged(datas):
    """{(measurement, tags): {field: number}} of datagrams, as the server puts lines of one point together."""
    found = {}
    for data in datas:
        assert len(data) <= 1432 and data.endswith(b'\n')
        for line in data[:-1].decode().split('\n'):
            measurement, tags, fields, stamp = parsed(line)
            assert stamp == (T0 + 1000) * 1000000
            point = found.setdefault((measurement, tuple(tags.items())), {})
            assert not set(point) & set(fields)
            point.update(fields)
    return found


def test_datagrams_hold_whole_lines_with_nanoseconds():
    points = [('disk', name, '', GAUGE, ('device',), ('sd%d' % d,), d)
              for d in range(200) for name in ('reads', 'writes')]
    datas, refusals = datagrams(*points)
    found = merged(datas)
    assert len(found) == 200 and refusals == [] and sum(map(len, datas[:-1])) > 1300 * len(datas[:-1])
    assert found['disk', (('device', 'sd7'), ('host', 'n1'))] == {'reads': 7, 'writes': 7}


def test_a_point_with_more_fields_than_a_datagram_holds_goes_as_several_lines():
    points = [('vm', u'\xe4' * 30 + '%d' % i, '', GAUGE, ('device',), (u'\u2028\x85\x1c',), i) for i in range(300)]
    datas, refusals = datagrams(*(points + [USER]))
    found = merged(datas)
    assert refusals == [] and len(found) == 2 and len(datas) > 15
    assert found['vm', (('device', u'\u2028\x85_'), ('host', 'n1'))] == {p[1]: p[6] for p in points}
    assert min(map(len, datas[:-1])) > 1432 - 80


def test_a_field_that_just_fits_goes_and_one_more_byte_is_refused_and_counted():
    room = 1432 - len('a,host=n1 =1.0 %d\n' % ((T0 + 1000) * 1000000))
    datas, refusals = datagrams(('a', 'x' * 900, '', GAUGE, (), (), 1), who=dict(BARE, hostname='h' * (room - 900 + 2)))
    assert [len(d) for d in datas] == [1432] and refusals == []
    datas, refusals = datagrams(('a', 'x' * 900, '', GAUGE, (), (), 1), ('a', 'y', '', GAUGE, (), (), 2),
                                who=dict(BARE, hostname='h' * (room - 900 + 3)))
    assert len(datas) == 1 and b' y=2.0 ' in datas[0] and [r.points for r in refusals] == [1]
    datas, refusals = datagrams(USER, IDLE, TOTAL, who=dict.fromkeys(statbadger.IDENTITY_KEYS, 'h' * 999))
    assert datas == [] and [r.points for r in refusals] == [3]


def test_no_field_is_lost_wherever_a_line_is_cut():
    full = set()
    for extra in range(60):
        points = [('vm', 'f%02d' % i + 'x' * 20, '', GAUGE, (), (), i) for i in range(100)]
        datas, refusals = datagrams(*points, who=dict(BARE, hostname='h' * (1 + extra)))
        assert list(merged(datas).values()) == [{p[1]: p[6] for p in points}] and refusals == []
        full.update(map(len, datas))
    assert max(full) == 1432


def test_datagrams_arrive_over_ipv4_and_ipv6():
    for family, host, where in ((socket.AF_INET, '127.0.0.1', '127.0.0.1'), (socket.AF_INET6, '::1', '[::1]')):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
            sock.settimeout(10)
            with Rig('influxdb', url='udp://%s:%d' % (where, sock.getsockname()[1])) as rig:
                feed(rig, frame(1, USER, IDLE, READS))
                assert sock.recv(65536) == (b'cpu,host=n1 user=8.1,idle=91.9 1700000001000000000\n'
                                            b'disk,device=sda,host=n1 reads=3.0 1700000001000000000\n')
                assert rig.settled()['sent'] == 1


# -- partial writes: the rest is stored, and nothing goes again -----------------------------------------

GATHER = {'flush': 3600}
TICK = (USER, IDLE, READS, OTHER, TOTAL)
VERSIONS = [(1, {'database': 't'}), (2, {'database': 'statbadger', 'bucket': 't', 'org': 'o'}), (3, {'database': 't'})]


def asked_once(server):
    assert len(server.requests) == 1 and server.complaints == []
    return {(m, field, stamp) for m, _, field, _, stamp in server.points()}


@pytest.mark.parametrize('version, options', VERSIONS)
def test_a_field_of_another_type_costs_its_line_in_every_tick_and_nothing_else(version, options):
    with InfluxdbStandin(version, types={('cpu', 'idle'): 'integer'}) as server:
        with influxdb(server, **dict(options, **GATHER)) as rig:
            feed(rig, *[frame(n, *TICK) for n in (1, 2, 3)])
            assert refused(rig) == (0, 3, 6)
        rest = ('disk', 'reads'), ('mem', 'memtotal')
        assert asked_once(server) == {(m, f, T0 + n * 1000) for n in (1, 2, 3) for m, f in rest}
        assert 'idle' in rig.said() and rig.said().count('refused') == 1


@pytest.mark.parametrize('version, options', VERSIONS)
def test_the_ticks_that_hold_the_field_of_another_type_are_the_ones_to_blame(version, options):
    with InfluxdbStandin(version, types={('disk', 'no'): 'string'}) as server:
        with influxdb(server, **dict(options, **GATHER)) as rig:
            bad = ('disk', 'no', '', GAUGE, ('device',), ('sdb',), 1)
            feed(rig, frame(1, *TICK), frame(2, *(TICK[:4] + (bad, TOTAL))), frame(3, *TICK))
            assert refused(rig) == (2, 1, 2)
        assert ('disk', 'no', T0 + 2000) not in asked_once(server) and len(server.points()) == 14


@pytest.mark.parametrize('version, options', VERSIONS[:2])
def test_ticks_beyond_the_retention_policy_are_the_oldest_ones(version, options):
    with InfluxdbStandin(version, oldest=T0 + 3000) as server:
        with influxdb(server, **dict(options, **GATHER)) as rig:
            feed(rig, *[frame(n, *TICK) for n in (1, 2, 3, 4)])
            assert refused(rig) == (2, 2, 10)
        assert {stamp for _, _, stamp in asked_once(server)} == {T0 + 3000, T0 + 4000}
        assert 'retention policy' in rig.said()


@pytest.mark.parametrize('version, options', VERSIONS[:2])
def test_when_all_is_beyond_the_retention_policy_all_is_refused_at_once(version, options):
    with InfluxdbStandin(version, oldest=T0 * 2) as server:
        with influxdb(server, **dict(options, **GATHER)) as rig:
            feed(rig, *[frame(n, *TICK) for n in (1, 2)])
            assert refused(rig) == (0, 2, 10)
        assert asked_once(server) == set()


def lines(*frames):
    template = statbadger.Template(statbadger.influx_fields({}), statbadger.VALUE + 'nan')
    return [(one, head, fields) for one in frames for head, fields in statbadger.influx_parts(template.text(one))]


ODD = ('my meas,x=y', 'f "=k\\, ', '', GAUGE, (), (), 5)
CONFLICT = ('partial write: field type conflict: input field "%s" on measurement "%s" is type float, already exists as '
            'type integer dropped=%d')


@pytest.mark.parametrize('said, numbers, expected', [
    # what 1.6.7 and 1.8.10 were seen to say: which lines they are is told
    (CONFLICT % ('user', 'cpu', 2), [], {1: 2, 2: 2}),
    (CONFLICT % ('reads', 'disk', 4), [], {1: 2, 2: 2}),
    (CONFLICT % ('f _=k_, ', 'my meas,x=y', 2), [], {1: 1, 2: 1}),
    ('partial write: points beyond retention policy dropped=5', [], {1: 6}),
    ('partial write: points beyond retention policy dropped=10', [], {1: 6, 2: 6}),
    ("partial write: unable to parse 'mem,host=n1 memtotal=5.0 1700000002000': no': really\nunable to parse "
     "'cpu,host=n1 user=8.1,idle=91.9 1700000001000': why dropped=0", [], {1: 2, 2: 1}),
    # 3.x tells the numbers
    ('partial write of line protocol occurred: x', [1, 7, 7], {1: 2, 2: 1}),
    # not told, or not all: a point for each line, the last tick first
    (CONFLICT % ('user', 'cpu', 3), [], {1: 1, 2: 2}),
    (CONFLICT % ('nothing', 'cpu', 1), [], {2: 1}),
    ('partial write: key contains invalid unicode: "disk,device=\ufffd" dropped=2', [], {1: 1, 2: 1}),
    ('partial write: shard 7 is pending deletion dropped=9', [], {1: 4, 2: 5}),
    ('partial write of line protocol occurred', [0, -1, 99], {2: 1}), ('partial write', [], {2: 1}),
    ('partial write: x dropped=99999999999999999999', [], {1: 6, 2: 6}), ('partial write: x dropped=-3', [], {2: 1}),
    ('partial write: x dropped=\xb2', [], {2: 1}), ("partial write: unable to parse '", [], {2: 1}),
    ('failure writing points to database: partial write: dropped 5 points outside retention policy of duration 1h0m0s '
     '- oldest a, newest b dropped=5 for database: d for retention policy: r', [], {1: 6})])
def test_what_a_partial_write_left_out_is_counted_where_it_was(said, numbers, expected):
    frames = frame(1, *(TICK + (ODD,))), frame(2, *(TICK + (ODD,)))
    found = statbadger.influx_refused(said, numbers, lines(*frames))
    assert {one.iteration: points for one, points in found} == expected


@pytest.mark.parametrize('status', [200, 201, 400, 422])
def test_a_partial_write_is_told_by_its_words_whatever_the_status(status):
    answer = {'code': 'invalid', 'message': 'partial write has occurred, errors encountered on line(s): x'}
    steps = talk([frame(1, *TICK), frame(2, *TICK)], lambda n: (status, {}, json.dumps(answer).encode()))
    rejects = [s for s in steps if isinstance(s, Reject)]
    assert [(s.frame.iteration, s.points) for s in rejects] == [(2, 1)] and steps[-1].n == 2
    assert steps.index(rejects[0]) < len(steps) - 1


def test_an_answer_too_long_to_be_read_is_a_partial_write_all_the_same():
    body = b'{"error":"partial write: unable to parse \'mem,host=n1 memtotal=5.0 1700000001000\': ' + b'x' * 65536
    steps = talk([frame(1, *TICK), frame(2, *TICK)], lambda n: (400, {}, body[:65536]))
    assert [(s.frame.iteration, s.points) for s in steps if isinstance(s, Reject)] == [(1, 1)]


# -- each answer in its class ------------------------------------------------------------------------

def outcome(status, body, headers=None, **options):
    """The exception that ends a dialogue which gets this answer, or None."""
    body = json.dumps(body) if isinstance(body, dict) else body
    try:
        talk([frame(1, *TICK)], lambda n: (status, headers or {}, body.encode()), **options)
    except (Refused, Later) as error:
        return error
    return None


V2 = {'bucket': 'b', 'org': 'o'}


@pytest.mark.parametrize('status, body, options, wait, words', [
    (404, {'error': 'database not found: "statbadger"'}, {}, 60, '/write, database "statbadger": database not found'),
    (404, {'code': 'not found', 'message': 'bucket "b" not found'}, V2, 60,
     '/api/v2/write, bucket "b", org "o": bucket "b" not found'),
    (404, {'code': 'not found', 'message': 'no dbrp mapping found'}, {'database': 'd', 'retention_policy': 'r'}, 60,
     '/write, database "d", retention policy "r": '),
    # 1.6
    (404, '404 page not found\n', V2, 60, 'HTTP 404 from /api/v2/write, bucket "b", org "o": 404 page not found'),
    (500, {'error': 'database not found: d'}, {}, 60, 'database "statbadger"'),
    (500, {'error': 'retention policy not found: r'}, {'retention_policy': 'r'}, 60, 'retention policy "r"'),
    (422, {'error': 'partial write of line protocol occurred',
           'data': [{'error_message': 'Adding a new database would exceed limit of 5 databases', 'line_number': 1}]},
     {}, 60, 'Adding a new database'),
    (401, {'error': 'authorization failed'}, {}, 300, 'authorization failed'), (401, '', {}, 300, 'HTTP 401'),
    (403, {'error': '"u" user is not authorized to write to database "d"'}, {}, 300, 'not authorized'),
    (403, {'code': 'forbidden', 'message': 'insufficient permissions for write'}, V2, 300, 'insufficient'),
    (429, 'slow down', V2, 0, 'slow down'), (503, '', V2, 0, 'HTTP 503'), (307, '', {}, 300, 'it has moved'),
    # no word of the data: none of it is dropped
    (400, 'Client sent an HTTP request to an HTTPS server.\n', {}, 0, 'HTTPS server'),
    (400, {'code': 'invalid', 'message': 'Please provide either orgID or org'}, {'bucket': 'b'}, 0, 'orgID'),
    (400, '<html>400 The plain HTTP request was sent to HTTPS port</html>', {}, 60, 'plain HTTP'),
    (422, {'error': 'Update to schema would exceed number of columns per table limit of 500 columns', 'data': None},
     {}, 0, 'columns'),
    (415, '', {}, 60, 'HTTP 415'), (500, {'error': 'timeout'}, {}, 0, 'timeout'),
    (500, {'error': 'partial write'}, {}, 0, 'partial write')])                 # a cluster: too few have it
def test_an_unwilling_server_costs_no_tick(status, body, options, wait, words):
    error = outcome(status, body, **options)
    assert isinstance(error, Later) and error.wait == wait and words in str(error)
    assert error.suspect == (status in (400, 415, 422, 500) and (not wait or "not found" not in words and status in (400, 415)))


@pytest.mark.parametrize('status', [429, 503])
def test_retry_after_is_heard(status):
    assert outcome(status, '', {'retry-after': '17'}).wait == 17


@pytest.mark.parametrize('status, body', [
    (400, {'error': "unable to parse 'mem x=1.0.0': invalid number"}),
    (400, {'code': 'invalid', 'message': "unable to parse 'mem x': missing fields"}),
    # 1.6.7 says so and stores no other series of the batch either, 1.8.10 nothing at all
    (400,
     {'error': 'partial write: max-values-per-tag limit exceeded (1/1): measurement="a" tag="b" value="c" dropped=2'}),
    (400, {'error': 'partial write: max-series-per-database limit exceeded: (3) dropped=5'}),
    # 0.9
    (400,
     {'error': 'field type conflict: input field "a" on measurement "b" is type float, already exists as integer'}),
    (400, {'error': 'parsing failed for write_lp endpoint',
           'data': {'original_line': 'x', 'line_number': 1, 'error_message': 'No fields were provided'}}),
    (400, {'code': 'invalid', 'message': 'failed to parse line protocol: errors encountered on line(s)'})])
def test_data_that_a_server_calls_wrong_is_refused(status, body):
    error = outcome(status, body)
    assert isinstance(error, Refused) and not error.split


def test_a_body_that_is_too_large_goes_in_halves():
    error = outcome(413, {'error': 'Request Entity Too Large'})
    assert isinstance(error, Refused) and error.split
    with InfluxdbStandin(largest=800) as server:
        with influxdb(server, **GATHER) as rig:
            feed(rig, *[frame(n, *TICK) for n in range(1, 12)])
            assert refused(rig) == (11, 0, 0)
        assert len({p[4] for p in server.points()}) == 11


def test_what_a_cluster_has_queued_is_delivered():
    assert outcome(500, {'error': 'write: hinted handoff queue not empty'}) is None


@pytest.mark.parametrize('n', [1, 4, 7])
def test_2_x_refuses_a_batch_for_one_line_and_gets_the_others(n):
    class Picky(InfluxdbStandin):
        def write12(self, good, bad):
            bad = bad + [(number, line, 'no') for number, line, point in good if point[0] == 'bad']
            InfluxdbStandin.write12(self, [one for one in good if one[2][0] != 'bad'], bad)
    with Picky(2) as server:
        with Rig('influxdb', url='http://127.0.0.1:%d' % server.port, bucket='t', org='o', **GATHER) as rig:
            feed(rig, *[frame(i, *(TICK + (('bad', 'x', '', GAUGE, (), (), 1),) * (i == n))) for i in range(1, 9)])
            assert refused(rig) == (7, 1, 6)
        assert {p[4] for p in server.points()} == {T0 + i * 1000 for i in range(1, 9) if i != n}


def test_answers_that_are_garbage_are_no_reason_for_anything_but_a_later_try():
    print('FAULT_SEED', SEED)
    dice = random.Random(SEED)
    pieces = ['{', '}', '[', ']', '"', ':', ',', '"error"', '"message"', '"data"', '"line_number"', '"error_message"',
              'null', '1', '-5', '1e9', 'true', 'partial write', 'partial write: x dropped=', '7', '\xb2', '\0', '\\u',
              '\\', 'input field "', '" on measurement "', '" is type ', "unable to parse '", 'retention policy',
              '[' * 50,
              u'\udcff'.encode('utf-8', 'surrogatepass').decode('latin-1')]
    for _ in range(3000):
        body = ''.join(dice.choice(pieces) for _ in range(dice.randrange(12)))
        error = outcome(dice.choice([200, 204, 400, 422, 500]), body)
        assert error is None or isinstance(error, (Later, Refused))
    whole = json.dumps({'error': 'partial write of line protocol occurred', 'data': [
        {'original_line': 'x', 'line_number': 2, 'error_message': 'why'}]})
    for n in range(len(whole)):
        error = outcome(400, whole[:n])
        assert error is None and 'partial write' in whole[:n] or isinstance(error, Later)


@pytest.mark.parametrize('status', [302, 400, 401, 403, 404, 413, 422, 429, 500])
@pytest.mark.parametrize('login', [{'token': 'tok3n/of+gold'}, {'username': 'mia', 'password': 'pa55 w/rd&"+sesame'}])
def test_a_server_that_shows_what_it_was_sent_makes_no_secret_known(status, login):
    class Tattler(HttpStandin):
        def reply(self, request):
            sent = request.headers['authorization']
            words = 'partial write? ' * (status == 422) + sent + ' ' + json.dumps(login)
            return status, {}, json.dumps({'error': words})
    with Tattler() as server:
        with influxdb(server, **login) as rig:
            rig.tick(1, 2)
            rig.until(lambda: rig.log)
        words = list(login.values())[-1:] + [base64.b64encode(b'mia:pa55 w/rd&"+sesame').decode()]
        assert not any(word in rig.said() for word in words)
