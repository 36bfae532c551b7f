"""Avro files: the bytes, the paths, and what the dialogue makes of what it finds; with real files in a folder."""
import calendar
import datetime
import fcntl
import json
import os
import random
import struct
import time
import zlib
from array import array

import pytest
import standins_avro
import statbadger
from conftest import options
from rig import configured
from standins_avro import Container, Wrong, read

SEED = int(os.environ.get('FAULT_SEED', random.randrange(1 << 30)))
IDENTITY = {'datacenter': 'EC2', 'region': 'us-west-1', 'zone': 'us-west-1a', 'cluster': 'test', 'hostname': 'n1',
            'ipv4': '10.10.10.2', 'ipv6': ''}
USER = ('cpu', 'user', 'percent', statbadger.SHARE, (), (), 8.1)
READS = ('disk', 'reads', '', statbadger.COUNTER, ('device',), ('sda',), 3.0)
TOTAL = ('mem', 'memtotal', 'B', statbadger.GAUGE, (), (), 16777216000)
HOLE = ('disk', 'await', 'ms', statbadger.RATIO, ('device',), ('sda',), float('nan'))
T0 = 1700000000000                              # 2023-11-14 22:13:20 UTC
MARK = bytes(range(16))


def short(value):
    return ascii(value)[:20]


def frame(*points, **more):
    """A tick of (family, name, unit, kind, label keys, label values, value)."""
    layout = statbadger.Layout(tuple(statbadger.Series(*p[:6]) for p in points))
    exact = {i: p[6] for i, p in enumerate(points) if isinstance(p[6], int) and abs(p[6]) > 1 << 53}
    return statbadger.Frame(more.get('time_ms', T0), 1, more.get('identity', IDENTITY), layout,
                            array('d', [p[6] for p in points]), exact or None)


PLAIN = frame(('t', 'a', '', statbadger.GAUGE, (), (), 0), ('t', 'b', '', statbadger.GAUGE, (), (), 0)).layout
WIDE = statbadger.Layout(tuple(statbadger.Series('t', 'n%d' % i, 'B', statbadger.GAUGE, ('device',), ('d%d' % i,))
                               for i in range(4000)))


def tick(number, layout=PLAIN, t0=T0, identity=IDENTITY):
    """A tick whose values are all its number, so many seconds after t0."""
    return statbadger.Frame(t0 + number * 1000, number, identity, layout, array('d', [number] * len(layout.series)))


class Batches:
    """What a dialogue is given; .done: what it acknowledged, in ticks, .said: its notes."""

    def __init__(self, batches):
        self.left, self.done_in_all, self.under_way, self.part, self.said = list(batches), 0, 0, 0, []

    def next(self, idle, exchange):
        self.done_in_all += self.under_way - self.part
        batch = self.left.pop(0) if self.left else None
        self.under_way, self.part = len(batch or ()), 0
        return batch

    def done(self, n):
        self.done_in_all += n - self.part
        self.part = n

    def note(self, text):
        self.said.append(text)


def settings(path, **more):
    return options(**dict(dict(path=str(path), codec='null', max_bytes=0, keep=0, blacklist=[], tags={}), **more))


def deliver(path, batches, memory=None, opener=None, **more):
    """Runs a dialogue over these batches of ticks; gives its Batches once it is over."""
    given = Batches(batches)
    chosen = settings(path, **more)
    opener = opener or statbadger.Opener(None, None)
    memory = {} if memory is None else memory
    statbadger.converse(statbadger.avro(chosen, memory), given, ('file', chosen.path), 5, opener)
    assert given.done_in_all == sum(map(len, batches))
    return given


def numbers(path, name='a'):
    """The values of a series of tick() in a file, in order."""
    return [int(r['value']) for r in read(path).records if r['metric'] == 't.' + name]


def data_of(path):
    with open(str(path), 'rb') as file:
        return file.read()


def names(folder):
    return sorted(os.listdir(str(folder)))


# -- bytes -------------------------------------------------------------------------------------

@pytest.mark.parametrize('number, expected', [      # the table and the examples of "Binary encoding"
    (0, '00'), (-1, '01'), (1, '02'), (-2, '03'), (2, '04'), (-64, '7f'), (64, '8001'), (27, '36'),
    (1700000000000, '80a0abfef962')])
def test_numbers_are_those_of_the_specification(number, expected):
    assert statbadger.varint(number) == bytes.fromhex(expected)
    assert statbadger.AvroFields(bytes.fromhex(expected)).long() == number


@pytest.mark.parametrize('number', [2 ** 63 - 1, -2 ** 63, 2 ** 62, 127, 128, -129])
def test_numbers_of_64_bits_are_read_back(number):
    assert statbadger.AvroFields(standins_avro.long(number)).long() == number


@pytest.mark.parametrize('data', [b'', b'\x80', b'\xff' * 9, b'\xff' * 10 + b'\x01', b'\x80' * 30], ids=short)
def test_a_number_without_an_end_is_none(data):
    with pytest.raises(ValueError):
        statbadger.AvroFields(data).long()


def test_a_text_is_that_of_the_specification():
    assert statbadger.avro_text('foo') == bytes.fromhex('06666f6f')


GOLDEN_SCHEMA = (
    '{"type":"record","name":"Stat","namespace":"statbadger","fields":[{"name":"ts","type":{"type":"long",'
    '"logicalType":"timestamp-millis"}},{"name":"host","type":"string"},{"name":"name","type":"string"},'
    '{"name":"value","type":["null","double"],"default":null},{"name":"tags","type":{"type":"map",'
    '"values":"string"},"default":{}}]}')
GOLDEN_RECORDS = bytes.fromhex('80a0abfef962046831106370752e7573657202000000000000f83f0206637075023000'
                               '80a0abfef96204683102780000')
GOLDEN = (bytes.fromhex('4f626a0104166176726f2e736368656d618e05') + GOLDEN_SCHEMA.encode()
          + bytes.fromhex('146176726f2e636f646563086e756c6c00') + MARK + bytes.fromhex('0460') + GOLDEN_RECORDS + MARK)


def test_header_and_block_are_those_of_a_file_that_other_libraries_read():
    assert len(GOLDEN) == 445
    assert (statbadger.avro_header(GOLDEN_SCHEMA, 'null') + MARK
            + statbadger.avro_block(2, GOLDEN_RECORDS, 'null', MARK)) == GOLDEN


def test_the_header_of_such_a_file_is_read():
    found, mark, start = statbadger.avro_header_parts(GOLDEN)
    assert found == {b'avro.schema': GOLDEN_SCHEMA.encode(), b'avro.codec': b'null'}
    assert (mark, start) == (MARK, 445 - 2 - 48 - 16)


def test_a_header_whose_map_comes_in_blocks_with_sizes_is_read_too():
    first, second = b'\x06abc\x02x', b'\x02k\x00'
    data = b'Obj\x01' + b'\x01' + standins_avro.long(len(first)) + first + b'\x02' + second + b'\0' + MARK
    assert statbadger.avro_header_parts(data) == ({b'abc': b'x', b'k': b''}, MARK, len(data))


def test_deflate_is_raw_deflate():
    data = b'statbadger' * 50
    block = statbadger.avro_block(7, data, 'deflate', MARK)
    cursor = standins_avro.Cursor(block)
    assert cursor.long() == 7
    packed = cursor.take(cursor.long())
    assert zlib.decompress(packed, -15) == data and cursor.take(16) == MARK and cursor.at == len(block)


def test_the_schema_is_what_is_promised():
    schema = json.loads(statbadger.AVRO_SCHEMA)
    assert (schema['type'], schema['name'], schema['namespace']) == ('record', 'Point', 'statbadger')
    kinds = [(field['name'], field['type']) for field in schema['fields']]
    assert kinds == [('timestamp', {'type': 'long', 'logicalType': 'timestamp-millis'})] + [
        (key, 'string') for key in ('datacenter', 'region', 'zone', 'cluster', 'hostname', 'ipv4', 'ipv6')] + [
        ('metric', 'string'), ('labels', {'type': 'map', 'values': 'string'}), ('value', 'double'), ('units', 'string')]


# -- points ------------------------------------------------------------------------------------

def records(*frames, **more):
    """What the frames become, read back by the schema."""
    points = statbadger.AvroPoints(settings('x', **more))
    out = []
    for one in frames:
        for data in points.records(one):
            cursor = standins_avro.Cursor(data)
            out.append(cursor.value(json.loads(statbadger.AVRO_SCHEMA)))
            assert cursor.at == len(data)
            fields = statbadger.AvroFields(data)
            statbadger.avro_skip_point(fields)
            assert fields.at == len(data)
    return out


def test_a_record_per_point_with_all_that_is_known_of_it():
    assert records(frame(USER, READS, TOTAL, time_ms=1429628878050)) == [
        dict(IDENTITY, timestamp=1429628878050, metric='cpu.user', labels={}, value=8.1, units='percent'),
        dict(IDENTITY, timestamp=1429628878050, metric='disk.reads', labels={'device': 'sda'}, value=3.0, units=''),
        dict(IDENTITY, timestamp=1429628878050, metric='mem.memtotal', labels={}, value=16777216000.0, units='B')]


def test_the_bytes_of_a_record_worked_out_by_hand():
    who = dict(dict.fromkeys(statbadger.IDENTITY_KEYS, ''), hostname='h1')
    one = frame(('cpu', 'user', 'percent', statbadger.REAL, ('cpu',), ('0',), 1.5), identity=who)
    assert statbadger.AvroPoints(settings('x')).records(one) == [bytes.fromhex(
        '80a0abfef962'                          # timestamp
        '00000000' '046831' '0000'              # datacenter to cluster, hostname, ipv4 and ipv6
        '106370752e75736572'                    # metric
        '02' '06637075' '0230' '00'             # labels: one, cpu, 0, the end
        '000000000000f83f'                      # value
        '0e70657263656e74')]                    # units


def test_holes_are_left_out():
    assert [r['metric'] for r in records(frame(HOLE, USER, HOLE, READS, HOLE))] == ['cpu.user', 'disk.reads']
    assert records(frame(HOLE)) == [] and records(frame()) == []


def test_tags_join_the_labels_and_give_way_to_them():
    found = records(frame(READS, USER), tags={'env': 'prod', 'device': 'none', 'hostname': 'x'})
    assert [r['labels'] for r in found] == [{'env': 'prod', 'device': 'sda', 'hostname': 'x'},
                                            {'env': 'prod', 'device': 'none', 'hostname': 'x'}]
    assert {r['hostname'] for r in found} == {'n1'}


def test_the_blacklist_keeps_points_from_the_file():
    found = records(frame(USER, READS, TOTAL), blacklist=['disk.*', 'mem.memtota?'])
    assert [(r['metric'], r['value']) for r in found] == [('cpu.user', 8.1)]


@pytest.mark.parametrize('number', [2 ** 64 - 1, 2 ** 53 + 1, 1e300, 5e-324, -0.0])
def test_numbers_are_doubles(number):
    found, = records(frame(('a', 'b', '', statbadger.GAUGE, (), (), number)))
    assert struct.pack('<d', found['value']) == struct.pack('<d', float(number))


@pytest.mark.parametrize('text', ['', 'a b', 'x' * 100000, '\0', '\n"\\,{}%s%d', '\xe4\u4e2d\U0001f41f', '\ufffd', '\x7f\x80'], ids=short)
def test_any_text_comes_back_as_it_was(text):
    who = dict(IDENTITY, hostname=text, zone=text)
    found, = records(frame(('a', text, text, statbadger.REAL, ('device', 'k' + text), (text, text), 1.0), identity=who),
                     tags={'t' + text: text})
    assert found == dict(who, timestamp=T0, metric='a.' + text if text else 'a', value=1.0, units=text,
                         labels={'device': text, 'k' + text: text, 't' + text: text})


def test_a_lone_surrogate_becomes_a_question_mark():
    found, = records(frame(('a', '\udc80', '', statbadger.REAL, ('device',), ('x\ud800',), 1.0)))
    assert (found['metric'], found['labels']) == ('a.?', {'device': 'x?'})


def test_a_change_of_who_the_host_is_shows_at_once():
    one, two = frame(USER), frame(USER, identity=dict(IDENTITY, hostname='n2'))
    two.layout = one.layout
    assert [r['hostname'] for r in records(one, two, one)] == ['n1', 'n2', 'n1']


def test_many_layouts_in_turn_each_give_their_own_records():
    frames = [frame(('a', 'n%d' % i, '', statbadger.GAUGE, (), (), i)) for i in range(30)]
    assert [(r['metric'], r['value']) for r in records(*(frames + frames))] == [('a.n%d' % i, i) for i in range(30)] * 2


# -- paths -------------------------------------------------------------------------------------

def test_the_calendar_is_that_of_python():
    dice = random.Random(SEED)
    print('FAULT_SEED', SEED)
    times = [calendar.timegm((y, m, d, 23, 59, 59)) + s for y in (1970, 1999, 2000, 2023, 2024, 2100, 2400)
             for m, d in ((1, 1), (2, 28), (3, 1), (12, 31)) for s in (0, 1)]
    for seconds in times + [dice.randrange(1 << 36) for _ in range(3000)]:
        want = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)
        assert statbadger.utc(seconds) == (want.year, want.month, want.day, want.timetuple().tm_yday, want.hour,
                                           want.minute, want.second)


@pytest.mark.parametrize('path, expected', [
    ('/d/x.avro', '/d/x.avro'),
    ('/d/%Y%m%d.avro', '/d/20231114.avro'),
    ('/d/%Y-%j/%y.%H%M%S', '/d/2023-318/23.221320'),
    ('/d/100%%/%%Y-%%%Y', '/d/100%/%Y-%2023'),
    ('/d/{hostname}/{cluster}-{ipv4}.avro', '/d/n1/test-10.10.10.2.avro'),
    ('/d/{ipv6}/x', '/d/_/x'),
    ('/d/{hostname}%d', '/d/n114')])
def test_time_and_identity_are_filled_in(path, expected):
    assert statbadger.file_name(statbadger.file_template(path), T0 + 999, IDENTITY) == expected


def test_times_are_as_strftime_has_them():
    path = '/'.join('%' + letter for letter, form in statbadger.TIME_LETTERS)
    for seconds in range(0, 1 << 32, 7654321):
        assert statbadger.file_name(path, seconds * 1000 + 5, IDENTITY) == time.strftime(path, time.gmtime(seconds))


@pytest.mark.parametrize('path', ['', '/d/', '/d/.', '/d/..', '%', '/d/%q', '/d/%Y%', '/d/%-d', '/d/{host}', '/d/{', 'a\0b',
                                  '/d/%%%', 7, None, ['x']])
def test_a_path_that_makes_no_sense_is_a_mistake(path):
    with pytest.raises(ValueError):
        statbadger.file_template(path)


@pytest.mark.parametrize('value', ['..', '.', '', '/', '../../etc/passwd', '/etc/passwd', 'a/../b', 'x' * 5000, 'a\0b',
                                   '\n', '%Y', '{zone}', '\xe4\u4e2d', '\udc80', '*', '-rf', 'a b', 'fe80::1%eth0'], ids=short)
@pytest.mark.parametrize('key', statbadger.IDENTITY_KEYS)
def test_no_part_of_the_identity_leads_out_of_the_folder(tmp_path, key, value):
    path = str(tmp_path / ('%%Y/{%s}/.{%s}/{%s}.avro' % (key, key, key)))
    deliver(path, [[tick(1, identity=dict(IDENTITY, **{key: value}))]])
    found = [os.path.relpath(os.path.join(folder, name), str(tmp_path))
             for folder, _, files in os.walk(str(tmp_path)) for name in files]
    assert len(found) == 1 and found[0].count('/') == 3 and found[0].startswith('2023/')
    assert not {'', '.', '..'} & set(found[0].split('/'))
    assert read(tmp_path / found[0]).records[0][key] == value.replace('\udc80', '?')


def test_a_relative_path_starts_at_the_folder_of_the_configuration():
    place = statbadger.Place('test', '/etc/50%off', {}, None, lambda path: 0)
    for given, expected in (('x-%d.avro', '/etc/50%off/x-14.avro'), ('/d/x', '/d/x'), ('../x', '/etc/50%off/../x')):
        chosen = statbadger.read_config(json.dumps({'emitters': {'avro': {'path': given}}}), place).emitters[0]
        assert statbadger.file_name(chosen.options.path, T0, IDENTITY) == expected
    command = statbadger.Command(emitters=['avro,path=%y/x', 'avro'], folder='/home/9%')
    first, second = statbadger.read_config('', place, command).emitters
    assert statbadger.file_name(first.options.path, T0, IDENTITY) == '/home/9%/23/x'
    assert statbadger.file_name(second.options.path, T0, IDENTITY) == '/etc/50%off/statbadger-20231114.avro'


@pytest.mark.parametrize('given, word', [
    ({'path': '/d/%q.avro'}, '%Y %y %m'), ({'path': '/d/'}, 'a file such as'), ({'codec': 'snappy'}, 'deflate'),
    ({'max_bytes': -1}, 'whole number'), ({'keep': 1.5}, 'whole number'), ({'path': '/{x}'}, 'hostname')])
def test_mistakes_in_its_options_are_named(given, word):
    with pytest.raises(statbadger.ConfigError) as caught:
        configured('avro', **given)
    assert 'emitters.avro.' + list(given)[0] in str(caught.value) and word in str(caught.value)


def test_what_check_prints(run, tmp_path):
    done = run('--check', '-e', 'avro,path=x-%Y.avro,codec=deflate', cwd=str(tmp_path))
    assert done.code == 0 and 'codec "deflate"' in done.out and '-> file %s/x-%%Y.avro' % tmp_path in done.out
    assert names(tmp_path) == []


# -- a file from nothing -----------------------------------------------------------------------

@pytest.mark.parametrize('codec', ['null', 'deflate'])
def test_a_file_has_a_header_and_a_block_for_each_batch(tmp_path, codec):
    given = deliver(tmp_path / 'x', [[tick(1), tick(2)], [tick(3)]], codec=codec)
    found = read(tmp_path / 'x')
    assert (found.codec, found.schema) == (codec, json.loads(statbadger.AVRO_SCHEMA))
    assert [[int(r['value']) for r in block] for block in found.blocks] == [[1, 1, 2, 2], [3, 3]]
    assert [r['timestamp'] for r in found.records] == [T0 + n * 1000 for n in (1, 1, 2, 2, 3, 3)]
    assert given.said == [] and names(tmp_path) == ['x']


def test_two_files_have_markers_of_their_own(tmp_path):
    deliver(tmp_path / 'x', [[tick(1)]])
    deliver(tmp_path / 'y', [[tick(1)]])
    assert read(tmp_path / 'x').mark != read(tmp_path / 'y').mark


def test_a_file_is_for_its_owner_and_group(tmp_path):
    before = os.umask(0)
    try:
        deliver(tmp_path / '%Y' / 'x', [[tick(1)]])
    finally:
        os.umask(before)
    assert os.stat(str(tmp_path / '2023' / 'x')).st_mode & 0o777 == 0o640
    assert os.stat(str(tmp_path / '2023')).st_mode & 0o777 == 0o750


def test_ticks_without_points_make_no_file(tmp_path):
    deliver(tmp_path / 'x', [[frame(), frame(HOLE)], [frame(HOLE)]])
    assert names(tmp_path) == []
    deliver(tmp_path / 'x', [[frame(HOLE), tick(1), frame(HOLE)], [frame()]])
    assert [len(block) for block in read(tmp_path / 'x').blocks] == [2]


def test_a_large_batch_goes_into_several_blocks_of_whole_ticks(tmp_path):
    layout = statbadger.Layout(WIDE.series[:300])
    deliver(tmp_path / 'x', [[tick(n, layout) for n in range(50)]])
    found = read(tmp_path / 'x')
    assert len(found.blocks) > 3 and max(found.sizes) <= statbadger.MOST_BLOCK
    assert all(len(block) % 300 == 0 for block in found.blocks)
    assert [int(r['value']) for r in found.records] == [n for n in range(50) for _ in range(300)]


def test_a_large_tick_goes_into_several_blocks(tmp_path):
    deliver(tmp_path / 'x', [[tick(1), tick(2, WIDE), tick(3)]])
    found = read(tmp_path / 'x')
    assert len(found.blocks) > 3 and max(found.sizes) < statbadger.MOST_BLOCK * 1.2
    assert len(found.records) == 4004


def test_a_new_time_is_a_new_file(tmp_path):
    deliver(tmp_path / '%H' / '%M.avro', [[tick(n) for n in (0, 39, 40, 41)], [tick(100), tick(38), tick(2800)]])
    assert {(folder, name): numbers(tmp_path / folder / name)
            for folder in names(tmp_path) for name in names(tmp_path / folder)} == {
                ('22', '13.avro'): [0, 39, 38], ('22', '14.avro'): [40, 41], ('22', '15.avro'): [100],
                ('23', '00.avro'): [2800]}


def test_folders_are_made_below_the_first_pattern_only(tmp_path):
    with pytest.raises(OSError) as caught:
        deliver(tmp_path / 'data' / '%Y' / 'x', [[tick(1)]])
    assert 'there is no folder %s' % (tmp_path / 'data') in str(caught.value) and names(tmp_path) == []
    deliver(tmp_path / 'a%Y' / '{hostname}' / 'more' / 'x', [[tick(1)]])
    assert numbers(tmp_path / 'a2023' / 'n1' / 'more' / 'x') == [1]


# -- a file that is there ----------------------------------------------------------------------

@pytest.mark.parametrize('codec', ['null', 'deflate'])
def test_a_restart_goes_on_in_the_same_file(tmp_path, codec):
    for n in range(1, 6):
        deliver(tmp_path / 'x', [[tick(n)]], codec=codec)
    assert numbers(tmp_path / 'x') == [1, 2, 3, 4, 5] and names(tmp_path) == ['x']


def test_a_file_without_a_block_is_continued(tmp_path):
    (tmp_path / 'x').write_bytes(standins_avro.header(statbadger.AVRO_SCHEMA, 'null', MARK))
    deliver(tmp_path / 'x', [[tick(1)]])
    assert read(tmp_path / 'x').mark == MARK and numbers(tmp_path / 'x') == [1] and names(tmp_path) == ['x']


@pytest.mark.parametrize('codec', ['', 'null'])
def test_a_header_of_another_writer_with_the_same_schema_is_ours_too(tmp_path, codec):
    (tmp_path / 'x').write_bytes(standins_avro.header(statbadger.AVRO_SCHEMA, codec, MARK, [('more', 'x' * 3000)]))
    given = deliver(tmp_path / 'x', [[tick(1)]])
    assert names(tmp_path) == ['x'] and data_of(tmp_path / 'x').count(MARK) == 2 and given.said == []


@pytest.mark.parametrize('schema, codec, word', [
    (statbadger.AVRO_SCHEMA, 'deflate', 'codec'), (statbadger.AVRO_SCHEMA, 'snappy', 'codec'),
    (statbadger.AVRO_SCHEMA.replace('Point', 'Punkt'), 'null', 'schema'), ('"string"', 'null', 'schema'),
    ('', 'null', 'schema'), (GOLDEN_SCHEMA, 'null', 'schema')])
def test_a_file_of_another_schema_or_codec_is_put_aside_as_it_is(tmp_path, schema, codec, word):
    data = standins_avro.header(schema, codec, MARK) + standins_avro.block(2, GOLDEN_RECORDS, MARK) + b'torn'
    (tmp_path / 'x').write_bytes(data)
    (tmp_path / 'x.7').write_bytes(b'seven')
    given = deliver(tmp_path / 'x', [[tick(1)]])
    assert numbers(tmp_path / 'x') == [1] and names(tmp_path) == ['x', 'x.7', 'x.8']
    assert data_of(tmp_path / 'x.8') == data and data_of(tmp_path / 'x.7') == b'seven'
    assert len(given.said) == 1 and word in given.said[0] and 'x.8' in given.said[0]


@pytest.mark.parametrize('content', [b'root:x:0:0:', b'Obj\0', b'Obj\2' + b'x' * 100, b'\0' * 70000, b'\0a',
                                     b'PAR1' * 1000, b'{"json": 1}\n', b'\n', b' '], ids=short)
def test_a_file_that_is_no_avro_file_is_left_alone(tmp_path, content):
    (tmp_path / 'x').write_bytes(content)
    with pytest.raises(statbadger.Later) as caught:
        deliver(tmp_path / 'x', [[tick(1)]])
    assert 'x: is no Avro file and left alone' in str(caught.value) and caught.value.wait == 60
    assert data_of(tmp_path / 'x') == content and names(tmp_path) == ['x']


@pytest.mark.parametrize('n', [0, 1, 16, 500])
def test_an_empty_file_or_one_of_nothing_but_zeros_is_begun(tmp_path, n):
    (tmp_path / 'x').write_bytes(b'\0' * n)
    deliver(tmp_path / 'x', [[tick(1)]])
    assert numbers(tmp_path / 'x') == [1] and names(tmp_path) == ['x']


def test_a_header_torn_at_any_byte_is_written_anew(tmp_path):
    deliver(tmp_path / 'x', [[tick(1)]])
    data = data_of(tmp_path / 'x')
    for n in range(read(tmp_path / 'x').ends[0]):
        (tmp_path / 'x').write_bytes(data[:n])
        deliver(tmp_path / 'x', [[tick(2)]])
        assert numbers(tmp_path / 'x') == [2] and names(tmp_path) == ['x'], n


@pytest.mark.parametrize('codec', ['null', 'deflate'])
@pytest.mark.parametrize('blocks', [1, 3])
def test_a_last_block_torn_at_any_byte_is_cut_off(tmp_path, codec, blocks):
    deliver(tmp_path / 'x', [[tick(n)] for n in range(blocks)], codec=codec)
    data, ends = data_of(tmp_path / 'x'), read(tmp_path / 'x').ends
    for n in range(ends[-2], ends[-1]):
        (tmp_path / 'x').write_bytes(data[:n])
        given = deliver(tmp_path / 'x', [[tick(77)]], codec=codec)
        assert numbers(tmp_path / 'x') == list(range(blocks - 1)) + [77] and names(tmp_path) == ['x'], n
        assert given.said == [] if n == ends[-2] else '%d bytes' % (n - ends[-2]) in given.said[0]
        assert data_of(tmp_path / 'x')[:ends[-2]] == data[:ends[-2]]


@pytest.mark.parametrize('codec', ['null', 'deflate'])
def test_a_torn_block_is_cut_off_before_anything_else_is_written(tmp_path, codec):
    """A reader that comes between the cut and the next block finds a whole file."""
    deliver(tmp_path / 'x', [[tick(1)], [tick(2)]], codec=codec)
    data, ends = data_of(tmp_path / 'x'), read(tmp_path / 'x').ends
    (tmp_path / 'x').write_bytes(data[:-5])

    class Full(statbadger.FileLink):
        def send(self, data, deadline):
            raise OSError(28, 'full')
    with pytest.raises(OSError):
        deliver(tmp_path / 'x', [[tick(3)]], codec=codec, opener=opener_of(Full))
    assert data_of(tmp_path / 'x') == data[:ends[-2]]


def opener_of(link):
    class Opener(statbadger.Opener):
        def open(self, target, timeout, deadline):
            return link(*target[1:])
    return Opener(None, None)


@pytest.mark.parametrize('codec', ['null', 'deflate'])
def test_a_last_block_that_holds_zeros_where_the_power_went_is_cut_off(tmp_path, codec):
    deliver(tmp_path / 'x', [[tick(1)], [tick(2)], [tick(3)]], codec=codec)
    data, ends = data_of(tmp_path / 'x'), read(tmp_path / 'x').ends
    start, end = ends[-2], ends[-1]
    for hole in [(start, end), (start + 4, end), (start + 2, start + 30), (end - 16, end), (end - 40, end - 16)]:
        torn = data[:hole[0]] + b'\0' * (hole[1] - hole[0]) + data[hole[1]:]
        (tmp_path / 'x').write_bytes(torn)
        deliver(tmp_path / 'x', [[tick(77)]], codec=codec)
        assert numbers(tmp_path / 'x') == [1, 2, 77] and names(tmp_path) == ['x'], hole


@pytest.mark.parametrize('codec', ['null', 'deflate'])
@pytest.mark.parametrize('tail', [b'hello world\n' * 10, b'\x01\x02\x03', bytes(range(1, 256, 2)), b'Obj\x01' * 100], ids=short)
def test_what_somebody_else_put_behind_the_last_block_is_put_aside_and_not_cut_off(tmp_path, codec, tail):
    tail = b'h' + tail                          # a count of 52, then a size that is none or too small
    deliver(tmp_path / 'x', [[tick(1)], [tick(2)]], codec=codec)
    data = data_of(tmp_path / 'x')
    (tmp_path / 'x').write_bytes(data + tail)
    if statbadger.avro_torn(tail):
        return
    given = deliver(tmp_path / 'x', [[tick(3)]], codec=codec)
    assert numbers(tmp_path / 'x') == [3] and names(tmp_path) == ['x', 'x.1']
    assert data_of(tmp_path / 'x.1') == data + tail and 'its end is damaged' in given.said[0]


def test_a_block_by_a_writer_that_leaves_part_of_the_checksum_behind_it_is_whole(tmp_path):
    """As fastavro writes them: all of zlib's bytes but the first two and the last one."""
    deliver(tmp_path / 'x', [[tick(1)], [tick(2)]], codec='deflate')
    data, mark = data_of(tmp_path / 'x'), read(tmp_path / 'x').mark
    packed = zlib.compress(read(tmp_path / 'x').raw[0])[2:-1]
    (tmp_path / 'x').write_bytes(data + standins_avro.block(1, packed, mark))
    deliver(tmp_path / 'x', [[tick(3)]], codec='deflate')
    assert data_of(tmp_path / 'x').startswith(data + standins_avro.block(1, packed, mark)) and names(tmp_path) == ['x']


def test_damage_further_up_is_not_looked_for_and_costs_nothing_behind_it(tmp_path):
    deliver(tmp_path / 'x', [[tick(n)] for n in range(5)])
    data, ends = data_of(tmp_path / 'x'), read(tmp_path / 'x').ends
    damaged = data[:ends[1] + 5] + b'\0' * 9 + data[ends[1] + 14:]
    (tmp_path / 'x').write_bytes(damaged)
    deliver(tmp_path / 'x', [[tick(7)]])
    assert data_of(tmp_path / 'x')[:len(damaged)] == damaged and len(data_of(tmp_path / 'x')) > len(damaged)


def test_a_file_of_many_megabytes_is_mended_by_its_end_alone(tmp_path):
    deliver(tmp_path / 'x', [[tick(1)], [tick(2)]])
    data, ends = data_of(tmp_path / 'x'), read(tmp_path / 'x').ends
    block = data[ends[0]:ends[1]]
    with open(str(tmp_path / 'x'), 'wb') as file:
        file.write(data[:ends[0]])
        for _ in range(200):
            file.write(block * 1000)
        file.write(data[ends[1]:-3])
    read_in_all = []

    class Counting(statbadger.FileLink):
        def part(self, at, n):
            read_in_all.append(n)
            return statbadger.FileLink.part(self, at, n)
    deliver(tmp_path / 'x', [[tick(3)]], opener=opener_of(Counting))
    size = os.stat(str(tmp_path / 'x')).st_size
    assert size > 25000000 and (size - ends[0]) % len(block) == 0 and sum(read_in_all) < 1 << 18
    with open(str(tmp_path / 'x'), 'rb') as file:
        file.seek(-2 * len(block), 2)
        assert file.read().startswith(block)


def test_a_large_last_block_is_found(tmp_path):
    """Ten ticks of 4,000 points: each in two blocks of more than what is read first."""
    for n in range(2):
        deliver(tmp_path / 'x', [[tick(n, WIDE)]])
    data, ends = data_of(tmp_path / 'x'), read(tmp_path / 'x').ends
    for cut in (1, 17, 100000, ends[-1] - ends[-2] - 1):
        (tmp_path / 'x').write_bytes(data[:-cut])
        deliver(tmp_path / 'x', [[tick(5)]])
        assert len(read(tmp_path / 'x').blocks) == len(ends) - 1 and names(tmp_path) == ['x']


# -- hostile files -----------------------------------------------------------------------------

HOSTILE = {
    'a count of 2**62': lambda mark: standins_avro.block(1 << 62, b'x' * 50, mark),
    'a size of 2**62': lambda mark: standins_avro.long(1) + standins_avro.long(1 << 62) + b'x' * 50 + mark,
    'a size below zero': lambda mark: standins_avro.long(1) + standins_avro.long(-5) + b'x' * 50 + mark,
    'a count below zero': lambda mark: standins_avro.block(-1, b'x' * 50, mark),
    'no values': lambda mark: standins_avro.block(0, b'', mark),
    'a text of 2**62': lambda mark: standins_avro.block(1, b'\0' + standins_avro.long(1 << 62), mark),
    'labels without end': lambda mark: standins_avro.block(1, b'\0' * 9 + standins_avro.long(1 << 62) + b'\0' * 999, mark),
    'labels below zero': lambda mark: standins_avro.block(1, b'\0' * 9 + standins_avro.long(-(1 << 62)) + b'\0' * 999, mark),
    'a number without end': lambda mark: standins_avro.block(1, b'\xff' * 100, mark),
    'markers only': lambda mark: mark * 5000,
    'zeros before a marker': lambda mark: b'\0' * 100 + mark,
}


@pytest.mark.parametrize('codec', ['null', 'deflate'])
@pytest.mark.parametrize('what', sorted(HOSTILE))
def test_a_hostile_last_block_does_no_harm(tmp_path, what, codec):
    deliver(tmp_path / 'x', [[tick(1)]], codec=codec)
    data, mark = data_of(tmp_path / 'x'), read(tmp_path / 'x').mark
    (tmp_path / 'x').write_bytes(data + HOSTILE[what](mark))
    deliver(tmp_path / 'x', [[tick(2)]], codec=codec)
    if what == 'markers only':                  # which no write leaves behind: readers stumble over those above
        assert data_of(tmp_path / 'x').startswith(data)
    else:
        assert numbers(tmp_path / 'x')[-1] == 2 and read(tmp_path / names(tmp_path)[-1])


def test_a_block_that_blows_up_is_put_aside(tmp_path):
    deliver(tmp_path / 'x', [[tick(1)]], codec='deflate')
    data, mark = data_of(tmp_path / 'x'), read(tmp_path / 'x').mark
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b''.join(press.compress(b'\0' * (1 << 20)) for _ in range(100)) + press.flush()
    (tmp_path / 'x').write_bytes(data + standins_avro.block(1 << 24, bomb, mark))
    before = peak()
    deliver(tmp_path / 'x', [[tick(2)]], codec='deflate')
    assert peak() - before < 60000 and numbers(tmp_path / 'x') == [2] and names(tmp_path) == ['x', 'x.1']


def peak():
    """Most resident memory so far, kB."""
    with open('/proc/self/status') as file:
        return int([line for line in file if line.startswith('VmHWM')][0].split()[1])


@pytest.mark.parametrize('head', [
    b'Obj\x01', b'Obj\x01' + b'\xff' * 2000, b'Obj\x01' + standins_avro.long(1 << 62) + b'\0' * 70000,
    b'Obj\x01' + standins_avro.long(-(1 << 62)) + b'\0' * 70000, b'Obj\x01\x02' + standins_avro.long(1 << 62),
    b'Obj\x01\x02\x02k' + standins_avro.long(1 << 40) + b'x' * 100000,
    b'Obj\x01\0' + MARK[:9], b'Obj\x01\0' + MARK, b'Obj\x01\x02\x01', b'Obj\x01' + b'\x02\0\0' * 30000], ids=short)
def test_a_hostile_header_does_no_harm(tmp_path, head):
    (tmp_path / 'x').write_bytes(head)
    began = time.monotonic()
    deliver(tmp_path / 'x', [[tick(1)]])
    assert numbers(tmp_path / 'x') == [1] and time.monotonic() - began < 10
    if head != b'Obj\x01':
        assert data_of(tmp_path / 'x.1') == head


@pytest.mark.parametrize('codec', ['null', 'deflate'])
def test_files_with_random_damage_never_surprise_the_program(tmp_path, codec):
    dice = random.Random(SEED)
    print('FAULT_SEED', SEED)
    deliver(tmp_path / 'x', [[tick(n)] for n in range(4)], codec=codec)
    data = data_of(tmp_path / 'x')
    for _ in range(300):
        damaged = bytearray(data[:dice.choice([len(data), dice.randrange(len(data))])])
        for _ in range(dice.randrange(4)):
            if damaged:
                at = dice.choice([dice.randrange(len(damaged)), dice.randrange(min(30, len(damaged)))])
                damaged[at:at + dice.randrange(3)] = bytes(dice.getrandbits(8) for _ in range(dice.randrange(4)))
        for name in names(tmp_path):
            os.unlink(str(tmp_path / name))
        (tmp_path / 'x').write_bytes(bytes(damaged))
        try:
            deliver(tmp_path / 'x', [[tick(7)]], codec=codec)
        except statbadger.Later:
            assert data_of(tmp_path / 'x') == bytes(damaged) and not damaged.startswith(b'Obj\x01')
            continue
        new = data_of(tmp_path / 'x')
        assert any(name == 'x.1' and data_of(tmp_path / name) == bytes(damaged) for name in names(tmp_path)) or (
            new[:min(len(damaged), len(data) // 2)] == bytes(damaged[:len(data) // 2]) or numbers(tmp_path / 'x') == [7])
        mark = statbadger.avro_header_parts(new)[1]
        assert new.endswith(mark)


# -- rotation ----------------------------------------------------------------------------------

def sized(**more):
    return dict(max_bytes=4000, **more)


@pytest.mark.parametrize('codec', ['null', 'deflate'])
@pytest.mark.parametrize('batch', [1, 10, 100])
def test_files_grow_no_larger_than_allowed_and_get_growing_numbers(tmp_path, batch, codec):
    for start in range(0, 300, 100):            # with two restarts
        ticks = [tick(n) for n in range(start, start + 100)]
        deliver(tmp_path / 'x', [ticks[i:i + batch] for i in range(0, 100, batch)], codec=codec, **sized())
    found = names(tmp_path)
    assert len(found) > (1 if codec == 'deflate' else 3) and sorted(found) == sorted(['x'] + ['x.%d' % n for n in range(1, len(found))])
    order = ['x.%d' % n for n in range(1, len(found))] + ['x']
    assert [n for name in order for n in numbers(tmp_path / name)] == list(range(300))
    sizes = [os.stat(str(tmp_path / name)).st_size for name in order]
    assert max(sizes) <= 4000 and (codec == 'deflate' or batch > 1 or min(sizes[:-1]) > 3500)


def test_the_last_byte_that_is_allowed_is_used_and_no_more(tmp_path):
    deliver(tmp_path / 'whole', [[tick(n)] for n in range(11)])
    size = os.stat(str(tmp_path / 'whole')).st_size
    deliver(tmp_path / 'x', [[tick(n)] for n in range(11)], max_bytes=size)
    deliver(tmp_path / 'y', [[tick(n)] for n in range(11)], max_bytes=size - 1)
    assert names(tmp_path) == ['whole', 'x', 'y', 'y.1'] and numbers(tmp_path / 'y') == [10]


def test_a_tick_larger_than_allowed_has_a_file_of_its_own(tmp_path):
    deliver(tmp_path / 'x', [[tick(1), tick(2, WIDE), tick(3, WIDE), tick(4)]], **sized())
    assert [len(read(tmp_path / name).records) for name in ('x.1', 'x.2', 'x.3', 'x')] == [2, 4000, 4000, 2]


def test_numbers_go_on_from_the_largest_there_is(tmp_path):
    for name in ('x.41', 'x.9', 'x.old', 'x.', 'x.-7', 'x.1e3', 'y.99', 'x.12345678901234567890123', 'x.\xb2'):
        (tmp_path / name).write_bytes(b'somebody else')
    os.symlink('nowhere', str(tmp_path / 'x.50'))
    deliver(tmp_path / 'x', [[tick(n)] for n in range(80)], **sized())
    assert 'x.51' in names(tmp_path) and 'x.52' in names(tmp_path) and 'x.1' not in names(tmp_path)
    assert data_of(tmp_path / 'x.41') == data_of(tmp_path / 'x.9') == b'somebody else'


@pytest.mark.parametrize('keep', [1, 3])
def test_the_newest_closed_files_are_kept(tmp_path, keep):
    for name in ('y', 'x.old', 'x.old.1', 'ax', 'xx.1'):
        (tmp_path / name).write_bytes(b'somebody else')
    deliver(tmp_path / 'x', [[tick(n)] for n in range(200)], keep=keep, **sized())
    found = sorted(int(name[2:]) for name in names(tmp_path) if name[2:].isdecimal() and name.startswith('x.'))
    assert len(found) == keep and found[-1] > 5 and found[-1] - found[0] == keep - 1
    assert set(names(tmp_path)) >= {'y', 'x.old', 'x.old.1', 'ax', 'xx.1', 'x'}
    kept = [n for name in ['x.%d' % n for n in found] + ['x'] for n in numbers(tmp_path / name)]
    assert kept == list(range(kept[0], 200))


def test_files_of_former_times_are_closed_files_too(tmp_path):
    path = tmp_path / '%Y' / '{hostname}' / 'x*-%H%M.avro'
    others = ['x*-2213.avro.bak', 'xy-2213.avro', 'x*-221.avro', 'x*-22134.avro', 'x*-2213.avro.1.gz', 'x*-2213', '2213']
    folder = tmp_path / '2023' / 'n1'
    os.makedirs(str(folder))
    os.makedirs(str(tmp_path / '2022' / 'n2'))
    for name in others:
        (folder / name).write_bytes(b'somebody else')
    (tmp_path / '2022' / 'n2' / 'x*-0000.avro').write_bytes(b'another host')
    os.makedirs(str(folder / 'x*-0000.avro'))
    for n in range(8):
        deliver(path, [[tick(n * 60)]], keep=3)
        time.sleep(0.01)
    assert names(folder) == sorted(others + ['x*-0000.avro'] + ['x*-22%d.avro' % n for n in (17, 18, 19, 20)])
    assert names(tmp_path / '2022' / 'n2') == ['x*-0000.avro']


def test_closed_files_by_size_and_by_time_are_counted_together(tmp_path):
    path = tmp_path / '%M.avro'
    for minute in range(4):
        deliver(path, [[tick(minute * 60 + n % 30)] for n in range(60)], keep=4, **sized())
        time.sleep(0.01)
    found = names(tmp_path)
    assert '16.avro' in found and len(found) == 5 and not any(name.startswith('13') for name in found)


def test_closed_files_that_cannot_be_removed_stop_nothing(tmp_path):
    dialogue = statbadger.avro(settings(tmp_path / 'x', keep=1, **sized()), {})
    given = Batches([[tick(n)] for n in range(100)])
    exchange = statbadger.Exchange(given, ('file', ''), 5, statbadger.Opener(None, None))
    steps, answer, failure = [], None, None
    while True:
        step = dialogue.send(answer) if failure is None else dialogue.throw(failure)
        answer = failure = None
        steps.append(type(step))
        if isinstance(step, statbadger.Remove):
            failure = PermissionError(1, 'Operation not permitted')
            continue
        try:
            answer = exchange.STEPS[type(step)](exchange, step)
        except statbadger.Exhausted:
            break
    exchange.drop()
    assert steps.count(statbadger.Remove) > 1 and 'cannot remove closed files: Operation not permitted' in given.said
    assert [n for name in ['x.%d' % n for n in range(1, len(names(tmp_path)))] + ['x']
            for n in numbers(tmp_path / name)] == list(range(100))


def test_the_dialogue_step_by_step():
    dialogue = statbadger.avro(settings('/d/x'), {})
    header = standins_avro.header(statbadger.AVRO_SCHEMA, 'null', MARK)
    answers = [(statbadger.Next, {}, [tick(1)]), (statbadger.Open, {'path': '/d/x', 'folder': '/d'}, 'link'),
               (statbadger.Size, {'link': 'link'}, 0), (statbadger.Part, {'at': 0}, b''),
               (statbadger.Random, {'n': 16}, MARK), (statbadger.Send, {'data': header, 'link': 'link'}, None),
               (statbadger.Send, {'link': 'link'}, None), (statbadger.Sync, {'link': 'link'}, None),
               (statbadger.Done, {'n': 1}, None), (statbadger.Next, {}, None)]
    answer = sent = None
    for kind, values, then in answers:
        step = dialogue.send(answer)
        assert type(step) is kind
        for name, value in values.items():
            assert getattr(step, name) == value
        if kind is statbadger.Send:
            sent = step.data
        answer = then
    assert [r['value'] for r in Container(header + sent).records] == [1, 1]


def test_the_reader_of_these_tests_takes_nothing_that_is_torn():
    assert len(GOLDEN) == 445
    data = standins_avro.header(statbadger.AVRO_SCHEMA, 'null', MARK)
    data += standins_avro.block(1, statbadger.AvroPoints(settings('x')).records(frame(USER))[0], MARK)
    assert len(Container(data).records) == 1
    for n in range(len(data)):
        if n != Container(data).ends[0]:
            with pytest.raises(Wrong):
                Container(data[:n])


def test_the_file_that_another_agent_writes_is_not_removed_though_its_name_looks_like_a_closed_one(tmp_path):
    """Hosts `web` and `web.1` with {hostname} for a path."""
    deliver(tmp_path / 'web.1', [[tick(n)] for n in range(3)])
    with open(str(tmp_path / 'web.1'), 'rb') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        deliver(tmp_path / 'web', [[tick(n)] for n in range(200)], keep=1, **sized())
    assert len(read(tmp_path / 'web.1').records) == 3 * len(PLAIN.series)


def test_no_number_of_a_closed_file_makes_two_files_one(tmp_path):
    (tmp_path / ('x.' + '9' * 18)).write_bytes(b'mine')
    deliver(tmp_path / 'x', [[tick(n)] for n in range(200)], **sized())
    assert (tmp_path / ('x.' + '9' * 18)).read_bytes() == b'mine' and (tmp_path / 'x.2').exists()
