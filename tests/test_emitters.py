"""Section 8: what is said to each kind of sink; dialogues are scripted, no socket is opened."""
import json
import pickle
import random
import struct
from array import array

import pytest

import statbadger
from conftest import options
from statbadger import GAUGE, REAL, COUNTER, Done, Next, Reject, Send

IDENTITY = {'datacenter': 'EC2', 'region': 'us-west-1', 'zone': 'us-west-1a', 'cluster': 'test', 'hostname': 'n1',
            'ipv4': '10.10.10.2', 'ipv6': ''}
USER = ('cpu', 'user', 'percent', 'share', (), (), 8.1)
READS = ('disk', 'reads', '', COUNTER, ('device',), ('sda',), 3.0)
TOTAL = ('mem', 'memtotal', 'B', GAUGE, (), (), 16777216000)
PREFIX = '{datacenter}.{region}.{zone}.{cluster}.{hostname}'
HOLE = float('nan')
PLAIN = {'tls': False, 'tls_ca': '', 'tls_cert': '', 'tls_key': '', 'tls_verify': True}


def identity(**changes):
    return dict(IDENTITY, **changes)


def frame(*points, **more):
    """A tick of (family, name, unit, kind, label keys, label values, value)."""
    layout = statbadger.Layout(tuple(statbadger.Series(*p[:6]) for p in points))
    exact = {i: p[6] for i, p in enumerate(points) if isinstance(p[6], int) and abs(p[6]) > 1 << 53}
    return statbadger.Frame(more.get('time_ms', 1429628878000), more.get('iteration', 1),
                            more.get('identity', IDENTITY), layout, array('d', [p[6] for p in points]), exact or None)


def graphite(**more):
    values = dict(host='127.0.0.1', port=0, protocol='plaintext', transport='tcp', prefix=PREFIX, tagged=False,
                  blacklist=[], tags={})
    values.update(more)
    return statbadger.graphite(options(**values), {})


def play(dialogue, *batches):
    """The steps that a dialogue takes when it is offered these batches, Next left out."""
    steps, left = [], list(batches)
    step = dialogue.send(None)
    while True:
        answer = None
        if isinstance(step, Next):
            if not left:
                dialogue.close()
                return steps
            answer = left.pop(0)
        else:
            steps.append(step)
        step = dialogue.send(answer)


def sent(dialogue, *batches):
    """The bytes of each Send; each tick is done with once its bytes are sent."""
    steps = play(dialogue, *batches)
    assert [s.n for s in steps if isinstance(s, Done)] == [i + 1 for batch in batches for i in range(len(batch))]
    steps = [s for s in steps if not isinstance(s, Done)]
    assert [type(s) for s in steps] == [Send] * len(steps)
    return [bytes(s.data) for s in steps]


# -- graphite, plaintext ----------------------------------------------------------------------

def test_a_tick_goes_to_carbon_as_one_line_per_point():
    assert sent(graphite(), [frame(USER, READS, TOTAL)]) == [
        b'EC2.us-west-1.us-west-1a.test.n1.cpu.user 8.1 1429628878\n'
        b'EC2.us-west-1.us-west-1a.test.n1.disk.reads.sda 3 1429628878\n'
        b'EC2.us-west-1.us-west-1a.test.n1.mem.memtotal 16777216000 1429628878\n']


def test_a_batch_goes_out_tick_by_tick_with_the_time_of_each():
    assert sent(graphite(prefix='x'), [frame(USER), frame(USER, time_ms=1429628879000)], [frame(READS)]) == [
        b'x.cpu.user 8.1 1429628878\n', b'x.cpu.user 8.1 1429628879\n', b'x.disk.reads.sda 3 1429628878\n']


def test_a_tick_between_whole_seconds_has_three_decimals():
    assert sent(graphite(prefix='x'), [frame(USER, time_ms=1429628878050)]) == [b'x.cpu.user 8.1 1429628878.050\n']


@pytest.mark.parametrize('value, kind, text', [
    (0.0, REAL, '0'), (1 / 3.0, REAL, '0.333333333333'), (123456789.125, REAL, '123456789.125'),
    (1e21, COUNTER, '1e+21'), (2.5e-7, REAL, '2.5e-07'), (-4.5, REAL, '-4.5'),
    (9007199254740992, GAUGE, '9007199254740992'), (18446744073709551615, GAUGE, '18446744073709551615'), (0, GAUGE, '0')])
def test_whole_numbers_are_exact_and_others_have_twelve_digits(value, kind, text):
    assert sent(graphite(prefix='x'), [frame(('a', 'b', '', kind, (), (), value))]) == [
        ('x.a.b %s 1429628878\n' % text).encode()]


def test_a_hole_gives_no_line_and_leaves_its_neighbours_alone():
    points = [('a', 'one', '', GAUGE, (), (), 1), ('a', 'two', '', GAUGE, (), (), HOLE),
              ('a', 'three', '', REAL, (), (), HOLE), ('a', 'four', '', GAUGE, (), (), (1 << 60) + 1)]
    assert sent(graphite(prefix='x'), [frame(*points)]) == [
        b'x.a.one 1 1429628878\nx.a.four 1152921504606846977 1429628878\n']


def test_a_tick_of_nothing_but_holes_sends_no_bytes_of_a_line():
    assert b''.join(sent(graphite(), [frame(('a', 'b', '', REAL, (), (), HOLE))])) == b''


@pytest.mark.parametrize('who, prefix, start', [
    (identity(zone='', hostname='n1.example'), PREFIX, 'EC2.us-west-1.test.n1_example'),
    (identity(datacenter='', region='', zone='', cluster=''), PREFIX, 'n1'),
    (identity(datacenter='', region='', zone='', cluster='', hostname=''), PREFIX, ''),
    (IDENTITY, '', ''),
    (IDENTITY, 'servers.{hostname}', 'servers.n1'),
    (identity(cluster=''), 'a-{cluster}.{ipv4}', 'a-.10_10_10_2'),
    (identity(hostname='n 1\n;evil 1 1'), 'x.{hostname}', 'x.n_1__evil_1_1'),
])
def test_the_prefix_is_filled_in_and_what_is_empty_vanishes_with_its_dot(who, prefix, start):
    line, = sent(graphite(prefix=prefix), [frame(USER, identity=who)])
    assert line.decode() == (start + '.' if start else '') + 'cpu.user 8.1 1429628878\n'


def test_dots_in_an_instance_become_underscores():
    who = identity(zone='', hostname='n1_example')
    line, = sent(graphite(), [frame(('net', 'rx_bytes', 'B/s', COUNTER, ('interface',), ('eth0.100',), 12.5), identity=who)])
    assert line == b'EC2.us-west-1.test.n1_example.net.rx_bytes.eth0_100 12.5 1429628878\n'


def test_an_instance_of_two_labels_is_one_part_of_the_path():
    line, = sent(graphite(prefix='x'), [frame(('threads', 'cpu', '', REAL, ('group', 'thread'), ('web', 'w/1'), 2.0))])
    assert line == b'x.threads.cpu.web_w_1 2 1429628878\n'


def test_a_change_of_who_the_host_is_changes_the_path_at_once():
    one, two = frame(USER), frame(USER, identity=identity(hostname='n2'))
    two.layout = one.layout
    assert sent(graphite(prefix='{hostname}'), [one], [two], [one]) == [
        b'n1.cpu.user 8.1 1429628878\n', b'n2.cpu.user 8.1 1429628878\n', b'n1.cpu.user 8.1 1429628878\n']


def test_many_layouts_in_turn_each_give_their_own_lines():
    frames = [frame(('a', 'n%d' % i, '', GAUGE, (), (), i)) for i in range(30)]
    expected = [('x.a.n%d %d 1429628878\n' % (i, i)).encode() for i in range(30)]
    assert sent(graphite(prefix='x'), *[[f] for f in frames + frames]) == expected + expected


def test_the_blacklist_of_an_emitter_keeps_points_from_its_sink():
    assert sent(graphite(prefix='x', blacklist=['disk.*', 'mem.memtota?']), [frame(USER, READS, TOTAL)]) == [
        b'x.cpu.user 8.1 1429628878\n']


def test_the_blacklist_of_an_emitter_holds_when_there_are_holes_and_large_numbers():
    points = [('a', 'gone', '', GAUGE, (), (), 1), ('a', 'hole', '', GAUGE, (), (), HOLE),
              ('b', 'large', '', GAUGE, (), (), (1 << 60) + 1), ('a', 'gone2', '', REAL, (), (), 2.0), READS]
    assert sent(graphite(prefix='x', blacklist=['a.gone*']), [frame(*points)]) == [
        b'x.b.large 1152921504606846977 1429628878\nx.disk.reads.sda 3 1429628878\n']


# -- graphite, tagged -------------------------------------------------------------------------

def carbon_tags(path):
    """A tagged path as carbon reads it (carbon/util.py, TaggedSeries.parse_carbon), strictly."""
    name, tags = path.split(';')[0], {}
    for segment in path.split(';')[1:]:
        key, equals, value = segment.partition('=')
        assert equals and key and value and not value.startswith('~') and not set(key) & set('!^'), path
        assert key not in tags, 'twice: %s' % path
        tags[key] = value
    return name, tags


def test_tagged_lines_hold_every_label_and_no_prefix():
    line, = sent(graphite(tagged=True, tags={'env': 'prod', 'app': 'a b'}), [frame(READS)])
    path, value, stamp = line.decode().split(' ')
    assert (value, stamp) == ('3', '1429628878\n')
    assert path.startswith('disk.reads;host=n1;device=sda;')
    assert carbon_tags(path) == ('disk.reads', {
        'host': 'n1', 'device': 'sda', 'datacenter': 'EC2', 'region': 'us-west-1', 'zone': 'us-west-1a',
        'cluster': 'test', 'ipv4': '10.10.10.2', 'env': 'prod', 'app': 'a_b'})


def test_tags_that_would_forge_another_series_are_made_harmless():
    who = identity(hostname='a;host=b c\n', cluster='~x', region='', zone='', datacenter='', ipv4='')
    line, = sent(graphite(tagged=True), [frame(('d', 'r', '', REAL, ('device',), ('s;d=a 1 1\nz 1 1',), 1.0), identity=who)])
    assert line.decode().count('\n') == 1 and line.decode().count(' ') == 2
    name, tags = carbon_tags(line.decode().split(' ')[0])
    assert name == 'd.r' and sorted(tags) == ['cluster', 'device', 'host']
    assert tags['host'] == 'a_host=b_c_' and tags['cluster'] == '_x'


def test_no_tag_comes_twice_when_the_user_names_one_like_a_key_of_ours():
    line, = sent(graphite(tagged=True, tags={'host': 'mine', 'device': 'mine', 'cluster': 'mine'}), [frame(READS)])
    carbon_tags(line.decode().split(' ')[0])


# -- graphite, hostile names ------------------------------------------------------------------

PIECES = ['a', 'B', '0', '.', '..', ' ', '\n', '\r', '\t', ';', '=', '~', '%', '%s', '%d', '%(x)s', '\0', '\x1b[31m',
          'nan', ' nan ', '"', '\\', "'", '{', '}', '{hostname}', '/', '\x7f', '\x85', u'\u2028', u'\ufffd',
          u'\u00e9', u'\U0001f600', 'value', '"value": nan,', ',\n', '1 1\nx 2 2']


def hostile(random_, most=8):
    return ''.join(random_.choice(PIECES) for _ in range(random_.randrange(most)))


@pytest.mark.parametrize('tagged', [False, True])
@pytest.mark.parametrize('transport', ['tcp', 'udp'])
def test_hostile_names_arrive_as_exactly_the_intended_series(tagged, transport):
    seed = random.randrange(1 << 30)
    print('seed', seed)
    dice = random.Random(seed)
    for _ in range(150):
        points = [(hostile(dice) or 'f', hostile(dice), hostile(dice), dice.choice([GAUGE, REAL]), ('k',),
                   (hostile(dice, 30),), i) for i in range(5)]
        who = {key: hostile(dice) for key in IDENTITY}
        data = b''.join(sent(graphite(tagged=tagged, transport=transport, tags={'t': hostile(dice)}),
                             [frame(*points, identity=who)]))
        lines = data.decode('ascii').split('\n')
        assert lines.pop() == '' and len(lines) == 5
        for i, line in enumerate(lines):
            path, value, stamp = line.split(' ')
            assert (value, stamp) == (str(i), '1429628878')
            assert all(' ' < c < '\x7f' for c in path)
            if tagged:
                name, tags = carbon_tags(path)
                assert set(tags) <= set(['host', 'k', 't'] + sorted(IDENTITY))
            else:
                assert all(path.split('.')), path
                assert not set(path) & set(';~%/{}"')


# -- graphite, pickle -------------------------------------------------------------------------

def unpickled(datas):
    """The lists in a stream of carbon's pickle frames."""
    stream, out = b''.join(datas), []
    while stream:
        size, = struct.unpack('>I', stream[:4])
        assert len(stream) >= 4 + size and size < 1 << 20
        out.append(pickle.loads(stream[4:4 + size]))
        stream = stream[4 + size:]
    return out


def test_a_pickle_holds_the_path_the_time_and_the_value():
    got = unpickled(sent(graphite(protocol='pickle', prefix='x'), [frame(USER, READS, TOTAL)]))
    assert got == [[('x.cpu.user', (1429628878, 8.1)), ('x.disk.reads.sda', (1429628878, 3.0)),
                    ('x.mem.memtotal', (1429628878, 16777216000.0))]]
    assert type(got[0][0][1][0]) is int


def test_pickles_hold_at_most_five_hundred_points_and_lose_none():
    points = [('a', 'n%d' % i, '', GAUGE, (), (), i) for i in range(1201)]
    got = unpickled(sent(graphite(protocol='pickle', prefix='x'), [frame(*points)]))
    assert [len(part) for part in got] == [500, 500, 201]
    assert [p for part in got for p in part] == [('x.a.n%d' % i, (1429628878, float(i))) for i in range(1201)]


@pytest.mark.parametrize('time_ms, stamp', [
    (1429628878250, 1429628878.25), (2147483647000, 2147483647), (2147483648000, 2147483648), (4102444800000, 4102444800)])
def test_the_time_in_a_pickle_is_right_between_seconds_and_after_2038(time_ms, stamp):
    assert unpickled(sent(graphite(protocol='pickle', prefix='x'), [frame(USER, time_ms=time_ms)])) == [
        [('x.cpu.user', (stamp, 8.1))]]


def test_holes_and_hostile_names_leave_a_pickle_readable():
    points = [('a', 'h', '', REAL, (), (), HOLE), ('a', 'b', '', REAL, ('d',), (' nan \n(S\'x\'\n',), -1.5)]
    (one,), = unpickled(sent(graphite(protocol='pickle', prefix=''), [frame(*points)]))
    assert one[1] == (1429628878, -1.5) and one[0].startswith('a.b.') and one[0].count('.') == 2


def test_tagged_paths_go_into_pickles_too():
    got = unpickled(sent(graphite(protocol='pickle', tagged=True), [frame(READS)]))
    assert carbon_tags(got[0][0][0])[1]['device'] == 'sda'


# -- graphite over UDP ------------------------------------------------------------------------

def test_datagrams_hold_whole_lines_and_at_most_1432_bytes():
    points = [('a', 'metric_%03d' % i, '', GAUGE, (), (), i) for i in range(400)]
    datagrams = sent(graphite(transport='udp', prefix='some.prefix'), [frame(*points)])
    assert max(map(len, datagrams)) <= 1432 and all(d.endswith(b'\n') for d in datagrams)
    # 38 bytes for values of one digit, 39 and 40 for more: 36 or so fit, never fewer than 34
    assert min(map(len, datagrams[:-1])) > 1432 - 41
    assert b''.join(datagrams) == b''.join(b'some.prefix.a.metric_%03d %d 1429628878\n' % (i, i) for i in range(400))


def test_a_line_of_exactly_1432_bytes_still_goes_and_one_more_is_refused():
    # `P.a.b 1 1429628878\n`: 19 bytes with a prefix of one letter
    prefix = '.'.join(['p' * 99] * 14 + ['q' * 14])
    assert len(prefix) == 1414
    steps = play(graphite(transport='udp', prefix=prefix), [frame(('a', 'b', '', GAUGE, (), (), 1))])
    assert [len(s.data) for s in steps if isinstance(s, Send)] == [1432] and not [s for s in steps if isinstance(s, Reject)]
    steps = play(graphite(transport='udp', prefix=prefix + 'q'), [frame(('a', 'b', '', GAUGE, (), (), 1))])
    assert [type(s) for s in steps] == [Reject, Done]
    assert steps[0].points == 1


def test_only_the_lines_that_are_too_long_are_refused_and_they_are_counted():
    prefix = '.'.join(['p' * 99] * 14)
    long = [('a' * 50, 'b%d' % i, '', GAUGE, (), (), 1) for i in range(3)]
    one = frame(('a', 'b', '', GAUGE, (), (), 1), *long)
    two = frame(('a', 'c', '', GAUGE, (), (), 2))
    steps = play(graphite(transport='udp', prefix=prefix), [one, two])
    assert [s.data[1400:] for s in steps if type(s) is Send] == [b'a.b 1 1429628878\n', b'a.c 2 1429628878\n']
    refused, = [s for s in steps if type(s) is Reject]
    assert refused.frame is one and refused.points == 3 and '1432' in refused.reason


def test_pickles_over_udp_are_a_mistake():
    with pytest.raises(ValueError):
        statbadger.graphite_link(options(host='h', port=0, protocol='pickle', transport='udp', **PLAIN))


@pytest.mark.parametrize('protocol, transport, port, target', [
    ('plaintext', 'tcp', 0, ('tcp', 'g', 2003, None)), ('pickle', 'tcp', 0, ('tcp', 'g', 2004, None)),
    ('plaintext', 'udp', 0, ('udp', 'g', 2003)), ('pickle', 'tcp', 7, ('tcp', 'g', 7, None))])
def test_the_port_is_the_usual_one_unless_it_is_given(protocol, transport, port, target):
    assert statbadger.graphite_link(options(host='g', port=port, protocol=protocol, transport=transport,
                                                **PLAIN)) == target


# -- stdout -----------------------------------------------------------------------------------

def stdout(kind=statbadger.stdout, **more):
    return kind(options(**dict({'blacklist': []}, **more)), {})


def test_the_payload_on_standard_output_is_the_object_that_is_promised():
    data, = sent(stdout(), [frame(USER, READS)])
    assert data == (
        b'{"datacenter": "EC2", "region": "us-west-1", "zone": "us-west-1a", "cluster": "test", "hostname": "n1", '
        b'"ipv4": "10.10.10.2", "ipv6": "", "timestamp": 1429628878, '
        b'"points": [{"cpu.user": {"value": 8.1, "units": "percent"}}, {"disk.reads.sda": {"value": 3, "units": ""}}]}\n')


def test_the_payload_has_one_line_per_tick_also_in_a_batch():
    one, two = sent(stdout(), [frame(USER), frame(READS, time_ms=1429628878100)])
    assert one.count(b'\n') == two.count(b'\n') == 1 and one.endswith(b'\n') and two.endswith(b'\n')
    assert json.loads(one.decode())['timestamp'] == 1429628878 and json.loads(two.decode())['timestamp'] == 1429628878.1
    assert b'"timestamp": 1429628878.100,' in two


def test_a_payload_without_points_is_an_object_all_the_same():
    for kind in (statbadger.stdout, statbadger.stdout_pretty):
        data, = sent(stdout(kind), [frame(('a', 'b', '', GAUGE, (), (), HOLE))])
        assert json.loads(data.decode())['points'] == []
        data, = sent(stdout(kind), [frame()])
        assert json.loads(data.decode())['points'] == []


def test_pretty_and_plain_say_the_same_and_match_the_object_for_user_emitters():
    seed = random.randrange(1 << 30)
    print('seed', seed)
    dice = random.Random(seed)
    for _ in range(150):
        points = []
        for i in range(dice.randrange(1, 9)):
            kind = dice.choice([GAUGE, REAL])
            value = dice.choice([HOLE, 0, 5, -3, (1 << 63) + 1, 10 ** 17 + 1]) if kind == GAUGE else dice.choice(
                [HOLE, 0.0, 8.25, -1.5, 1e-9, 1e21])
            points.append((hostile(dice) or 'f', '%d%s' % (i, hostile(dice)), hostile(dice), kind, ('k',),
                           (hostile(dice, 30),), value))
        one = frame(*points, identity={key: hostile(dice) for key in statbadger.IDENTITY_KEYS})
        plain, = sent(stdout(), [one])
        pretty, = sent(stdout(statbadger.stdout_pretty), [one])
        assert plain.count(b'\n') == 1
        expected = {key: one.identity[key] for key in one.identity}
        expected['timestamp'] = 1429628878
        expected['points'] = [{s.flat: {'value': p[6], 'units': s.unit}}
                              for s, p in zip(one.layout.series, points) if p[6] == p[6]]
        assert json.loads(plain.decode()) == expected
        assert json.loads(pretty.decode()) == expected
        assert statbadger.payload_object(one) == expected


def test_pretty_has_a_point_on_each_line_with_the_numbers_below_each_other():
    points = [USER, READS, TOTAL, ('net', 'rx_multicast', '', COUNTER, ('interface',), ('enp0s31f6',), 0.001),
              ('a', 'hole', '', GAUGE, (), (), HOLE)]
    data, = sent(stdout(statbadger.stdout_pretty), [frame(*points)])
    lines = [line for line in data.decode().split('\n') if '"value"' in line]
    assert len(lines) == 4
    assert len(set(line.index('{"value": ') for line in lines)) == 1
    assert len(set(line.index(', "units"') for line in lines)) == 1


def test_the_blacklist_holds_for_standard_output_too():
    for kind in (statbadger.stdout, statbadger.stdout_pretty):
        data, = sent(stdout(kind, blacklist=['cpu.*']), [frame(USER, READS)])
        assert [list(p) for p in json.loads(data.decode())['points']] == [['disk.reads.sda']]


def test_a_name_that_no_utf8_can_hold_does_not_stop_the_output():
    for kind in (statbadger.stdout, statbadger.stdout_pretty):
        data, = sent(stdout(kind), [frame(('a', u'b\udcff\ud800', u'\udc80', GAUGE, (), (), 1), READS)])
        assert len(json.loads(data.decode())['points']) == 2


def test_whole_numbers_are_exact_in_the_payload():
    values = [0, (1 << 53) + 1, 18446744073709551615, -(1 << 62) - 1]
    data, = sent(stdout(), [frame(*[('a', 'n%d' % i, '', GAUGE, (), (), v) for i, v in enumerate(values)])])
    assert [list(p.values())[0]['value'] for p in json.loads(data.decode())['points']] == values


# -- messages: what goes through a broker -------------------------------------------------------

def formatted(form, *frames, **more):
    values = dict(format=form, prefix=PREFIX, tagged=False, blacklist=[], tags={})
    values.update(more)
    encode = statbadger.messages(options(**values))
    return [message for one in frames for message in encode(one)]


def test_a_payload_as_a_message_is_what_stdout_prints():
    one = frame(USER, READS, TOTAL)
    assert [m + b'\n' for m in formatted('payload', one)] == sent(stdout(), [one])


def test_a_flat_message_is_a_point_with_everything_that_is_known_of_it():
    first, second = [json.loads(m.decode()) for m in formatted('flat', frame(USER, READS, time_ms=1429628878250),
                                                               tags={'env': 'prod'})]
    who = dict(IDENTITY, timestamp=1429628878.25, env='prod')
    assert first == dict(who, metric='cpu.user', value=8.1, units='percent')
    assert second == dict(who, metric='disk.reads', device='sda', value=3, units='')


def test_flat_messages_leave_holes_and_the_blacklist_out():
    got = formatted('flat', frame(USER, READS[:6] + (HOLE,), TOTAL), blacklist=['mem.*'])
    assert [json.loads(m.decode())['metric'] for m in got] == ['cpu.user']
    assert formatted('flat', frame()) == []


@pytest.mark.parametrize('name', ['a"b', 'a\\', 'a\nb', '%s%d', u'\udcff', '"value": nan,', '\0', u'\U0001f600', '}, {'])
def test_hostile_names_are_one_flat_message_each(name):
    got = formatted('flat', frame(READS[:5] + ((name,), 1), (name, name, name, GAUGE, (), (), 2),
                                  identity=identity(hostname=name)), tags={'x': name})
    assert len(got) == 2 and not any(b'\n' in m for m in got)
    assert [json.loads(m.decode())['hostname'] for m in got] == [name, name]


def test_graphite_messages_are_the_lines_that_carbon_gets():
    one = frame(USER, READS)
    assert formatted('graphite', one) == sent(graphite(), [one])
    assert formatted('graphite', one, tagged=True, tags={'a': 'b'}) == sent(graphite(tagged=True, tags={'a': 'b'}), [one])


def influx(*points, **more):
    one = frame(*points, **{k: v for k, v in more.items() if k in ('time_ms', 'identity')})
    message, = formatted('influx', one, **{k: v for k, v in more.items() if k in ('tags', 'blacklist')})
    return message.decode()


def test_line_protocol_has_a_line_per_family_and_instance():
    idle = ('cpu', 'idle', 'percent', 'share', (), (), 91.9)
    writes = ('disk', 'writes', '', COUNTER, ('device',), ('sda',), 0)
    other = ('disk', 'reads', '', COUNTER, ('device',), ('sdb',), 1e21)
    who = 'cluster=test,datacenter=EC2,%shost=n1,ipv4=10.10.10.2,region=us-west-1,zone=us-west-1a'
    assert influx(USER, idle, READS, writes, other, TOTAL) == (
        'cpu,%s user=8.1,idle=91.9 1429628878000\n'
        'disk,%s reads=3.0,writes=0.0 1429628878000\n'
        'disk,%s reads=1.0e+21 1429628878000\n'
        'mem,%s memtotal=16777216000.0 1429628878000\n') % (
            who % '', who % 'device=sda,', who % 'device=sdb,', who % '')


def test_line_protocol_leaves_holes_out_and_lines_without_fields():
    hole = READS[:6] + (HOLE,)
    assert influx(hole, ('disk', 'writes', '', COUNTER, ('device',), ('sda',), 2), identity=identity(
        datacenter='', region='', zone='', cluster='', ipv4='', hostname='h')) == 'disk,device=sda,host=h writes=2.0 1429628878000\n'
    assert influx(hole, USER).count('\n') == 1
    for form in ('influx', 'graphite', 'flat'):             # nothing to say is no message
        assert formatted(form, frame(hole)) == [] == formatted(form, frame(USER), blacklist=['*'])


def parsed(line):
    """(measurement, {tag: value}, {field: number}, time) of a line, by the rules of the protocol's document."""
    parts, word, i = [[]], '', 0
    while i < len(line):
        if line[i] == '\\' and i + 1 < len(line) and line[i + 1] in ', =':
            word += line[i + 1]
            i += 2
            continue
        if line[i] in ', =' and (parts[0] or line[i] != '='):       # a measurement may hold =
            parts[-1].append((word, line[i]))
            word = ''
            if line[i] == ' ':
                parts.append([])
        else:
            word += line[i]
        i += 1
    (name, _), tags = parts[0][0], [w for w, _ in parts[0][1:]]
    fields = [w for w, _ in parts[1]]
    return name, dict(zip(tags[::2], tags[1::2])), dict(zip(fields[::2], map(float, fields[1::2]))), int(word)


@pytest.mark.parametrize('name', ['a b', 'a,b=c', 'a\\', 'a\\ b', 'a\nb', 'time', '#a', '%s', '"', u'\u00e4\U0001f600', 'nan',
                                  '\x01nan', u'\udcff', 'a\x7fb', '=', ',', '\\', ' '])
def test_hostile_names_stay_in_their_places_of_line_protocol(name):
    lines = influx((name, name, '', GAUGE, ('device',), (name,), 5), ('x', 'y', '', GAUGE, (), (), 6),
                   identity=identity(hostname=name), tags={name: name}).split('\n')
    assert len(lines) == 3 and lines[2] == ''
    kept = ''.join('_' if c < ' ' or c == '\x7f' else '?' if c == u'\udcff' else c for c in name)
    kept = kept.replace('\\ ', '_ ')                          # no server makes the same of that as another
    kept = kept[:-1] + '_' if kept.endswith('\\') else kept
    measurement, tags, fields, when = parsed(lines[0])
    assert measurement == ('_' + kept if kept.startswith('#') else kept) and when == 1429628878000
    key = 'time_' if kept == 'time' else kept
    assert tags['device'] == tags['host'] == tags[key] == kept
    assert fields == {key.replace('"', '_') + '_' * (key != '"'): 5.0}      # that name is the tag's
    assert not lines[0].split(' ')[0].endswith('\\') or '\\ ' in lines[0]


def test_a_metric_without_a_family_is_a_measurement_with_one_value():
    assert influx(('', 'queue', '', GAUGE, (), (), 5)).startswith('queue,') and ' value=5.0 ' in influx(
        ('', 'queue', '', GAUGE, (), (), 5))


def test_no_label_of_a_metric_can_be_hidden_by_a_tag_of_a_flat_message():
    labels = set(key for kind in statbadger.MODULES.values() for table in kind.tables if isinstance(table, statbadger.Table)
                 for key in table.labels + table.further)
    assert labels and labels <= set(statbadger.FLAT_KEYS)
