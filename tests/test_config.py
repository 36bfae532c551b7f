"""CONFIG: the tolerant JSON reader, ${...}, kinds of options, all mistakes at once, the command line on top, the example."""
import os
import re

import pytest
import statbadger
from conftest import ROOT
from statbadger import Command, ConfigError, Place

MTIME = 1500000000


def place(environ=None, files=None, folder='/etc/sb'):
    """A Place whose files are the given {path: text}; every file of theirs exists, no other."""
    files = files or {}

    def read(path):
        if path not in files:
            raise FileNotFoundError(2, 'No such file or directory')
        return statbadger.decode(files[path], path) if isinstance(files[path], bytes) else files[path]
    return Place('a.conf', folder, environ or {}, read, lambda path: MTIME if path in files else 0)


def load(text, command=None, **more):
    return statbadger.read_config(text, place(**more), command)


def mistakes(text, command=None, **more):
    """The lines of the ConfigError that the text deserves."""
    with pytest.raises(ConfigError) as caught:
        load(text, command, **more)
    return list(caught.value.problems)


def places(text, command=None, **more):
    """[`file:line: path`] of the mistakes."""
    return [': '.join(problem.split(': ')[:2]) for problem in mistakes(text, command, **more)]


def read(text):
    return statbadger.JsonReader(text, 'a.conf').read()


def graphite(text, **more):
    """The options of the only emitter, a graphite whose members are the text."""
    return load('{"emitters": {"graphite": {%s}}}' % text, **more).emitters[0].options


def emitter(name, settings):
    return {chosen.name: chosen for chosen in settings.emitters}[name].options


# -- the reader -------------------------------------------------------------------------------

@pytest.mark.parametrize('text, value', [
    ('{"a": 1} // end', {'a': 1}),
    ('// first\n{"a": 1}', {'a': 1}),
    ('# first\n{"a": # one\n 1}\n# last', {'a': 1}),
    ('/* many\n * lines */{/**/"a"/* x */:/* y */1/* z */}/* no end of line', None),
    ('{/**/"a"/* x */:/* y */1/* z */}', {'a': 1}),
    ('/***/{}/* // */', {}),
    ('{} /* a /* b */', {}),
    ('{"a": [1, // one\n2 # two\n, /* three */ 3]}', {'a': [1, 2, 3]}),
    ('{"u": "http://h/#x/*y*/", "v": "# no", "w": "// no"}',
     {'u': 'http://h/#x/*y*/', 'v': '# no', 'w': '// no'}),
    ('{"a // b": 1, "c": "/*"}', {'a // b': 1, 'c': '/*'}),
])
def test_comments_of_three_kinds_vanish_and_comment_signs_in_texts_stay(text, value):
    if value is None:
        with pytest.raises(ConfigError):
            read(text)
    else:
        assert read(text) == value


@pytest.mark.parametrize('text, value', [
    ('{"a": 1,}', {'a': 1}), ('[1, 2,]', [1, 2]), ('[[1,],{"a": 2,},]', [[1], {'a': 2}]), ('[1, // x\n]', [1]),
    ('\ufeff{"a": 1}', {'a': 1}), ('\ufeff\r\n{"a":\r\n1,\r\n}\r\n', {'a': 1}), ('{"a":\t1}', {'a': 1}),
    ('// x\r\n{"a": 1}\r\n', {'a': 1}),
])
def test_trailing_commas_a_bom_and_crlf_are_taken(text, value):
    assert read(text) == value


@pytest.mark.parametrize('text', [
    '[,]', '{,}', '[1,,2]', '{"a": 1,,}', '[1 2]', '{"a" 1}', '{"a"; 1}', '{a: 1}', "{'a': 1}", '{"a": }', '{1: 2}',
    '{"a": 1', '[1', '{"a"', '{"a":', '{', '[', '"x', '{} {}', '{}]', '{}x', '1 2', '/', '{/}', 'tru', 'True', 'nil',
    '{"a": 1}\ufeff', '{\u00a0"a": 1}', '{"a": nullx}', '[1] 2', '}', ']', ',', ':', '{"a": [1}', '[{"a": 1]',
])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert len(caught.value.problems) == 1 and caught.value.problems[0].startswith('a.conf:1: found ')


@pytest.mark.parametrize('text, value', [
    (r'"\"\\\/\b\f\n\r\t"', '"\\/\x08\x0c\n\r\t'),
    (r'"\u0041\u00e9\u20AC\u20ac"', 'A\u00e9\u20ac\u20ac'),
    (r'"\ud83d\ude00"', '\U0001f600'), (r'"\uD83D\uDE00!"', '\U0001f600!'), (r'"\udbff\udfff"', '\U0010ffff'),
    ('"\u00e9\U0001f600"', '\u00e9\U0001f600'), (r'"\u0000"', '\0'), (r'"\\u0041"', '\\u0041'), ('""', ''),
    (r'"\ud83d"', '\ufffd'), (r'"\ude00"', '\ufffd'), (r'"\ud83dx"', '\ufffdx'), (r'"\ude00\ud83d"', '\ufffd\ufffd'),
    (r'"\ud83d\n"', '\ufffd\n'),
])
def test_escapes_give_the_characters_they_stand_for(text, value):
    assert read(text) == value


@pytest.mark.parametrize('text, value', [
    (r'"\ud83d\u0041"', '\ufffdA'), (r'"\ud83d\ud83d\ude00"', '\ufffd\U0001f600'), (r'"\ud83d\u000a"', '\ufffd\n'),
])
def test_half_a_surrogate_pair_does_not_swallow_the_escape_behind_it(text, value):
    assert read(text) == value


@pytest.mark.parametrize('text', [
    r'"\x41"', r'"\'"', r'"\u12"', r'"\u12g4"', r'"\u 123"', r'"\u+123"', r'"\u-123"', r'"\U00000041"', '"\\', '"\\u',
    r'"\u0x41"', '"\\\n"', r'"\u1_23"', '"\\u\u0661\u0662\u0663\u0664"',
])
def test_escapes_that_do_not_exist_are_refused(text):
    with pytest.raises(ConfigError):
        read(text)


@pytest.mark.parametrize('text, value, kind', [
    ('0', 0, int), ('-0', 0, int), ('7', 7, int), ('-12', -12, int), ('1.5', 1.5, float), ('-0.25', -0.25, float),
    ('1e3', 1000.0, float), ('1E+3', 1000.0, float), ('25e-1', 2.5, float), ('0.0', 0.0, float), ('0e0', 0.0, float),
    ('18446744073709551616', 18446744073709551616, int), ('1e300', 1e300, float), ('1e-400', 0.0, float),
])
def test_numbers_are_those_of_json(text, value, kind):
    assert read(text) == value and type(read(text)) is kind


@pytest.mark.parametrize('text', [
    '01', '-01', '+1', '.5', '1.', '1.e5', '1e', '1e+', '-', '--1', '0x10', '1_000', 'NaN', 'Infinity', '-Infinity',
    'inf', '1e999', '-1e999', '1.2.3', '1e1e1', '9' * 400, '9' * 5000, '1-2', '\u0663', '1\u0663', '1,000', 'e5', '1a',
])
def test_what_is_no_number_or_too_large_for_one_is_refused(text):
    with pytest.raises(ConfigError):
        read('{"a": %s}' % text)


def test_thirty_two_levels_are_taken_and_more_are_a_mistake_not_a_recursion_error():
    value = read('[' * 32 + ']' * 32)
    for _ in range(31):
        value, = value
    assert value == []
    for text in ('[' * 33 + ']' * 33, '[' * 200000, '{"a":' * 200000, '[{"a":' * 100000):
        with pytest.raises(ConfigError) as caught:
            read(text)
        assert 'levels' in caught.value.problems[0]


def test_many_neighbours_are_no_depth():
    assert read('[' + '[],' * 1000 + ']') == [[]] * 1000


@pytest.mark.parametrize('text, line', [
    ('{\n  "a": 1,\n  b\n}', 3), ('{\r\n"a": 1,\r\n\r\nb\r\n}', 4), ('{\n"a": "x\n}\n', 2), ('{\n\n/* x\n\n', 3),
    ('{"a":\n\n', 3), ('# x\n# y\n{"a": 01}', 3), ('/* x\ny */ z', 2), ('{"a": 1}\n\nx', 3), ('{\n"a": [1,\n2\n3]}', 4),
    ('{\n"a":\n"\\q"}', 3), ('\ufeff\n{x', 2), ('{"a": {\n"b": tru}}', 2), ('\n\n\n{"a" "b"}', 4),
])
def test_a_syntax_error_names_the_file_and_the_line(text, line):
    assert len(mistakes(text)) == 1
    assert mistakes(text)[0].startswith('a.conf:%d: found ' % line)
    assert ', need ' in mistakes(text)[0]


def test_a_duplicate_key_is_a_mistake_at_its_second_place_with_all_others():
    assert places('{"cluster": "a",\n"cluster": "b",\n"modules": {"cpu": {},\n"cpu": {"per_core": 5}}}') == [
        'a.conf:2: cluster', 'a.conf:4: modules.cpu', 'a.conf:4: modules.cpu.per_core']
    assert 'twice' in mistakes('{"cluster": "a", "cluster": "a"}')[0]


def test_keys_that_differ_only_by_an_escape_are_the_same_key():
    assert places('{"cluster": "a", "clust\\u0065r": "b"}') == ['a.conf:1: cluster']


@pytest.mark.parametrize('text', ['', ' \r\n\t', '\ufeff', '\ufeff\n', '{}', '// nothing is said\n', '/* nor here */'])
def test_a_configuration_that_says_nothing_is_that_of_the_bare_command(text):
    settings = load(text)
    assert [m.name for m in settings.modules] == ['cpu', 'load', 'disk', 'network', 'memory', 'system']
    assert [e.name for e in settings.emitters] == ['stdout_pretty']
    assert settings.top.interval == 1 and settings.top.hostname == ''


@pytest.mark.parametrize('text', ['[]', '"x"', '1', 'null', 'true', '[{"cluster": "a"}]'])
def test_a_configuration_is_an_object(text):
    assert len(mistakes(text)) == 1 and mistakes(text)[0].startswith('a.conf:1: ')


@pytest.mark.parametrize('text', [
    '{"modules": {"cpu": {"blacklist": [\n' + '"a",\n' * 60000 + ']}}}',
    '{"emitters": {"graphite": {"tags": {' + ''.join('"k%d": "v",\n' % i for i in range(30000)) + '}}}}',
], ids=['a long list', 'a large object'])
def test_a_large_configuration_is_read_too(text):
    """Once each line number was counted from the start of the file, which took time in the square of its length."""
    load(text)


# -- ${...} -----------------------------------------------------------------------------------

@pytest.mark.parametrize('text, value', [
    ('${A}', 'one'), ('x${A}y${B}z', 'xoneytwoz'), ('${A}${A}', 'oneone'), ('${NONE:-x y}', 'x y'), ('${NONE:-}', ''),
    ('${A:-x}', 'one'), ('${EMPTY:-x}', 'x'), ('${EMPTY}', ''), ('${file:/run/secrets/x}', 'hunter2'),
    ('$${A}', '${A}'), ('$${A}${A}', '${A}one'), ('${A}$${A}', 'one${A}'), ('$${', '${'), ('$', '$'), ('$A', '$A'),
    ('$$', '$$'), ('a$b}', 'a$b}'), ('${file:key.txt}', 'relative'), ('${file:sub/key.txt}', 'deeper'),
    ('${CURLY}', '${A}'), ('${NONE:-a:-b}', 'a:-b'), ('${NONE:-/x/y}', '/x/y'), ('${file:/two}', 'a\nb'),
    ('{A}', '{A}'), ('100$ {A}', '100$ {A}'),
])
def test_references_in_texts_are_filled_in_once(text, value):
    found = load('{"cluster": "%s"}' % text, environ={'A': 'one', 'B': 'two', 'EMPTY': '', 'CURLY': '${A}'}, files={
        '/run/secrets/x': 'hunter2\n', '/etc/sb/key.txt': 'relative\r\n', '/etc/sb/sub/key.txt': 'deeper',
        '/two': 'a\nb\n'})
    assert found.top.cluster == value and type(found.top.cluster) is str


def test_references_are_filled_in_wherever_a_text_stands():
    settings = load('{"modules": {"disk": {"devices": ["${A}*", "!${A}9"]}}, "emitters": {"graphite": '
                    '{"host": "${A}.example", "tags": {"env": "${A}"}}}}', environ={'A': 'sd'})
    assert settings.modules[0].options.devices == ['sd*', '!sd9']
    assert settings.emitters[0].options.host == 'sd.example' and settings.emitters[0].options.tags == {'env': 'sd'}


@pytest.mark.parametrize('text, words', [
    ('${NONE}', 'NONE'), ('${A', '}'), ('${}', 'environment variable'), ('${file:/none}', 'file'), ('${file:}', 'file'),
    ('${A}${NONE}', 'NONE'), ('${a}', 'a'),
])
def test_a_reference_to_nothing_is_a_mistake_with_its_place(text, words):
    found = mistakes('{\n"zone": "",\n"cluster": "%s"}' % text, environ={'A': 'x'})
    assert len(found) == 1 and found[0].startswith('a.conf:3: cluster: found "') and words in found[0]


def test_a_reference_to_nothing_is_one_mistake_whatever_kind_the_option_has():
    assert places('{"cluster": "${file:\\u0000}"}') == ['a.conf:1: cluster']
    assert places('{"interval": "${NONE}", "modules": {"cpu": {"per_core": "${NONE}", "blacklist": "${NONE}"}}}') == [
        'a.conf:1: interval', 'a.conf:1: modules.cpu.per_core', 'a.conf:1: modules.cpu.blacklist']


@pytest.mark.parametrize('content', [b'\xff\xfe', b'x' * 1048577], ids=['no UTF-8', 'too large'])
def test_a_file_that_cannot_be_filled_in_is_a_mistake_among_the_others_at_its_place(content):
    assert places('{"zzz": 1,\n"cluster": "${file:/bad}",\n"interval": "x"}', files={'/bad': content}) == [
        'a.conf:1: zzz', 'a.conf:2: cluster', 'a.conf:3: interval']


def test_what_a_file_reference_gave_is_in_no_error():
    files = {'/run/secrets/x': 'hunter2\n'}
    for text in ('{"interval": "${file:/run/secrets/x}"}',
                 '{"emitters": {"graphite": {"port": "${file:/run/secrets/x}"}}}',
                 '{"emitters": {"graphite": {"prefix": "{${file:/run/secrets/x}}"}}}',
                 '{"emitters": {"graphite": {"tags": "${file:/run/secrets/x}"}}}'):
        found = mistakes(text, files=files)
        assert len(found) == 1 and 'hunter2' not in found[0]


@pytest.mark.parametrize('text', [
    '"password": hunter2hunter2', '"password" "hunter2hunter2"', '"password": "hunter2hunter2', '"token"= "hunter2x"',
    '"password": "a" "hunter2hunter2"', '"secret_key": [hunter2]',
])
def test_a_syntax_error_beside_a_secret_does_not_show_it(text):
    assert 'hunter2' not in mistakes('{"emitters": {"graphite": {%s}}}' % text)[0]


# -- kinds of options -------------------------------------------------------------------------

@pytest.mark.parametrize('text, value', [
    ('"port": 0', 0), ('"port": 65535', 65535), ('"port": 2003.0', 2003), ('"port": 2e3', 2000), ('"timeout": 0.1', 0.1),
    ('"timeout": 3600', 3600), ('"timeout": 1.234', 1.234), ('"flush": 0', 0), ('"flush": 0.01', 0.01),
    ('"interval": 86400', 86400), ('"tagged": true', True), ('"tagged": false', False),
    ('"host": "::1"', '::1'), ('"host": "h\u00e9"', 'h\u00e9'), ('"protocol": "pickle"', 'pickle'),
    ('"blacklist": []', []), ('"blacklist": ["a", "!b*"]', ['a', '!b*']), ('"tags": {}', {}),
    ('"tags": {"a": "", "b c": "d"}', {'a': '', 'b c': 'd'}), ('"prefix": ""', ''),
    ('"prefix": "x.{hostname}.{ipv4}{ipv6}"', 'x.{hostname}.{ipv4}{ipv6}'), ('"batch": 1', 1), ('"type": ""', ''),
])
def test_each_kind_of_option_takes_what_it_should(text, value):
    found = graphite(text)[re.match('"([a-z]+)"', text).group(1)]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize('text', [
    '"port": -1', '"port": 65536', '"port": 2003.5', '"port": "2003"', '"port": true', '"port": null', '"port": []',
    '"port": {}', '"port": 1e300', '"timeout": 0', '"timeout": 3601', '"timeout": -1', '"timeout": 1.2345',
    '"timeout": "10"', '"flush": 0.001', '"flush": -0.5', '"flush": true', '"interval": 86400.5', '"interval": 0.0105',
    '"tagged": 1', '"tagged": 0', '"tagged": "true"', '"tagged": null', '"host": ""', '"host": "a b"', '"host": 5',
    '"host": "a\\n"', '"host": null', '"protocol": "Pickle"', '"protocol": ""', '"protocol": 1', '"protocol": null',
    '"protocol": []', '"protocol": {}', '"blacklist": "a"', '"blacklist": [1]', '"blacklist": [""]', '"blacklist": {}',
    '"blacklist": [["a"]]', '"blacklist": null', '"tags": []', '"tags": {"a": 1}', '"tags": {"": "x"}',
    '"tags": {"a": null}', '"tags": {"a": {}}', '"prefix": 1', '"prefix": "{host}"', '"prefix": "{"', '"prefix": "}"',
    '"prefix": "{{hostname}}"', '"prefix": "{hostname!r}"', '"prefix": "a\\u0000b"', '"batch": 0', '"batch": 1.5',
    '"host": "a\\u0000"', '"type": 5', '"type": {"a": 1}', '"type": [1]',
])
def test_each_kind_of_option_refuses_all_else_in_one_line_with_its_place(text):
    key = re.match('"([a-z]+)"', text).group(1)
    found = mistakes('{"emitters":\n{"graphite": {\n%s}}}' % text)
    assert len(found) == 1, found
    assert found[0].startswith('a.conf:3: emitters.graphite.%s' % key) and ', need ' in found[0]


@pytest.mark.parametrize('word, option, value', [
    ('2003', 'port', 2003), ('2003.0', 'port', 2003), ('0.5', 'timeout', 0.5), ('true', 'tagged', True),
    ('TRUE', 'tagged', True), ('yes', 'tagged', True), ('on', 'tagged', True), ('1', 'tagged', True),
    ('false', 'tagged', False), ('No', 'tagged', False), ('off', 'tagged', False), ('0', 'tagged', False),
    ('a*, !b', 'blacklist', ['a*', '!b']), ('', 'blacklist', []), ('7', 'prefix', '7'), ('true', 'prefix', 'true'),
])
def test_a_text_becomes_a_number_a_boolean_or_a_list_where_a_reference_or_the_command_line_made_it(word, option, value):
    found = [graphite('"%s": "${V}"' % option, environ={'V': word})[option],
             graphite('"%s": "${NONE:-%s}"' % (option, word))[option],
             load('', Command(emitters=['graphite,%s=%s' % (option, word.replace(',', '\\,'))])).emitters[0].options[option]]
    assert found == [value] * 3 and [type(f) for f in found] == [type(value)] * 3


@pytest.mark.parametrize('word', ['x', '', 'nan', 'inf', '-inf', '1e999', '0x10', '1_0', '1e', '1 2', '\u0663', '\u00b2',
                                  '9' * 5000, '1,5', 'true', '+5', '1L'])
def test_what_is_no_number_is_none_behind_a_reference_either(word):
    assert places('{"emitters": {"graphite": {"timeout": "${V}"}}}', environ={'V': word}) == [
        'a.conf:1: emitters.graphite.timeout']


@pytest.mark.parametrize('word', ['maybe', '', '2', 'null', 'y e s', 'truetrue'])
def test_what_is_no_boolean_is_none_behind_a_reference_either(word):
    assert places('{"emitters": {"graphite": {"tagged": "${V}"}}}', environ={'V': word}) == [
        'a.conf:1: emitters.graphite.tagged']


def test_a_text_that_only_looks_like_a_reference_does_not_become_a_number():
    for text in ('$5', '$$5', '$${5'):
        assert places('{"interval": "%s"}' % text) == ['a.conf:1: interval']


@pytest.mark.parametrize('text, line', [
    ('{"interval": 0.01}', None), ('{"interval": 86400}', None), ('{"interval": 0}', 1), ('{"interval": -1}', 1),
    ('{"interval": 0.009}', 1), ('{"interval": 0.0105}', 1), ('{"interval": 86401}', 1), ('{"interval": "1"}', 1),
    ('{"hostname": 5}', 1), ('{"view": "sideways"}', 1), ('{"log": {"level": "loud"}}', 1), ('{"log": {"dest": 5}}', 1),
    ('{"spool": {"memory_bytes": 65536}}', None), ('{"spool": {"memory_bytes": 65535}}', 1),
    ('{"spool": {"memory_bytes": "16777216"}}', 1), ('{"spool": {"max_bytes": "lots"}}', 1), ('{"spool": {"dir": 5}}', 1),
    ('{"spool": []}', 1), ('{"log": "debug"}', 1), ('{"modules": []}', 1), ('{"modules": null}', 1), ('{"modules": {}}', 1),
    ('{"emitters": {}}', 1), ('{"emitters": "stdout"}', 1), ('{"emitters": {"stdout": null}}', 1),
    ('{"emitters": {"stdout": []}}', 1), ('{"modules": {"mymod": 5}}', 1), ('{"modules_dir": 5}', 1),
])
def test_the_top_level_is_checked_too_and_each_mistake_is_one_line(text, line):
    if line is None:
        load(text)
    else:
        assert len(mistakes(text)) == 1, mistakes(text)
        assert mistakes(text)[0].startswith('a.conf:%d: ' % line)


def test_options_that_do_not_go_together_are_a_mistake():
    found = mistakes('{"emitters": {"graphite": {\n"transport": "udp",\n"protocol": "pickle"}}}')
    assert len(found) == 1 and found[0].startswith('a.conf:1: emitters.graphite: ')


def test_every_mistake_is_said_at_once_in_the_order_of_the_file():
    assert places('\n'.join([
        '{', '"clutser": "x",', '"interval": "1",', '"modules": {', '"cpu": {"percore": true},', '"dsk": {},',
        '"disk": {"devices": 5,', '"interval": -1}', '},', '"emitters": {', '"graphite": {"port": 99999,', '"tags": {"a": 1},',
        '"hots": "x"},', '"dr": {"type": "grafite"}', '},', '"spool": {"memory_bytes": 1},', '"log": {"level": "loud"},',
        '"region": 5,', '"region": "x"', '}'])) == [
            'a.conf:2: clutser', 'a.conf:3: interval', 'a.conf:5: modules.cpu.percore', 'a.conf:6: modules.dsk',
            'a.conf:7: modules.disk.devices', 'a.conf:8: modules.disk.interval', 'a.conf:11: emitters.graphite.port',
            'a.conf:12: emitters.graphite.tags', 'a.conf:13: emitters.graphite.hots', 'a.conf:14: emitters.dr',
            'a.conf:16: spool.memory_bytes', 'a.conf:17: log.level', 'a.conf:19: region']


@pytest.mark.parametrize('text, word', [
    ('{"clutser": ""}', 'cluster'), ('{"emiters": {}}', 'emitters'), ('{"Interval": 1}', 'interval'),
    ('{"modules": {"cpu": {"percore": true}}}', 'per_core'), ('{"modules": {"dsik": {}}}', 'disk'),
    ('{"emitters": {"grahpite": {}}}', 'graphite'), ('{"emitters": {"graphite": {"prot": 1}}}', 'port'),
    ('{"emitters": {"x": {"type": "grafite"}}}', 'graphite'), ('{"log": {"levle": "info"}}', 'level'),
    ('{"spool": {"memory_byte": 1}}', 'memory_bytes'), ('{"emitters": {"graphite": {"blacklst": []}}}', 'blacklist'),
])
def test_an_unknown_key_comes_with_what_was_probably_meant(text, word):
    assert len(mistakes(text)) == 1 and mistakes(text)[0].endswith('did you mean "%s"?' % word)


@pytest.mark.parametrize('key', ['xyzzy', '', 'q' * 100000, '\u20ac'])
def test_nothing_is_suggested_for_a_key_that_resembles_none(key):
    assert 'did you mean' not in mistakes('{"%s": 1}' % key)[0]


@pytest.mark.parametrize('text', ['{"a\\nb": 1}', '{"modules": {"a\\r\\nb": {}}}', '{"modules": {"cpu": {"a\\nb": 1}}}',
                                  '{"interval": "a\\nb"}', '{"cluster": "${a\\nb}"}', '{"view": "\\u2028x\\u0085"}',
                                  '{"emitters": {"graphite": {"tags": {"a\\nb": 5}}}}', '{"cluster" "\x0bx"}'])
def test_a_mistake_is_one_line_whatever_was_found(text):
    for problem in mistakes(text):
        assert len(problem.splitlines()) == 1, repr(problem)


def test_a_long_value_is_shown_in_part():
    found, = mistakes('{"view": "%s"}' % ('x' * 10000))
    assert len(found) < 300


# -- modules and emitters, user code, folders -------------------------------------------------

def test_the_order_of_modules_and_emitters_is_that_of_the_file():
    settings = load('{"emitters": {"stdout": {}, "b": {"type": "graphite"}, "a": {"type": "graphite"}}, '
                    '"modules": {"memory": {}, "cpu": {}}}')
    assert [m.name for m in settings.modules] == ['memory', 'cpu']
    assert [(e.name, e.kind) for e in settings.emitters] == [('stdout', 'stdout'), ('b', 'graphite'), ('a', 'graphite')]


def test_a_relative_path_of_user_code_starts_at_the_folder_of_the_configuration():
    files = {'/etc/sb/mymod.py': '', '/etc/sb/own/other.py': '', '/abs/third.py': '', '/etc/sb/em/sink.py': ''}
    settings = load('{"modules_dir": "own", "emitters_dir": "em", "modules": {"m": {"file": "mymod.py", "async": true}, '
                    '"other": {"async": true}, "t": {"file": "/abs/third.py"}}, "emitters": {"sink": {}}}', files=files)
    assert [(m.name, m.kind, m.file) for m in settings.modules] == [
        ('m', None, '/etc/sb/mymod.py'), ('other', None, '/etc/sb/own/other.py'), ('t', None, '/abs/third.py')]
    assert settings.emitters[0].file == '/etc/sb/em/sink.py'
    assert settings.modules[0].options['async'] is True


def test_user_code_takes_any_option_but_the_common_ones_are_checked():
    files = {'/etc/sb/m.py': ''}
    settings = load('{"modules": {"m": {"file": "m.py", "anything": [1], "nested": {"x": "${A}"}}}}', files=files,
                    environ={'A': 'one'})
    assert settings.modules[0].given == {'file': 'm.py', 'anything': [1], 'nested': {'x': 'one'}}
    assert places('{"modules": {"m": {"file": "m.py", "interval": "x"}}}', files=files) == ['a.conf:1: modules.m.interval']


@pytest.mark.parametrize('text', ['{"modules": {"m": {"file": "none.py"}}}', '{"modules": {"m": {"file": 5}}}',
                                  '{"modules_dir": "x", "modules": {"m": {}}}', '{"modules": {"cpu": {"file": "none.py"}}}',
                                  '{"modules": {"m": {}}}', '{"modules": {"m": {"file": ""}}}', '{"modules": {"": {}}}',
                                  '{"modules_dir": "x", "modules": {"cp": {}}}'])
def test_user_code_that_is_not_there_is_a_mistake(text):
    assert len(mistakes(text)) == 1 and mistakes(text)[0].startswith('a.conf:1: modules.')


@pytest.mark.parametrize('text', ['{"modules": {"m": {"file": "a\\u0000b"}}}', '{"modules": {"m": {"file": "\\u00e9.py"}}}',
                                  '{"modules_dir": "x", "modules": {"a\\u0000b": {}}}'])
def test_a_path_that_no_file_can_have_is_a_mistake_in_the_c_locale_too(run, tmp_path, text):
    (tmp_path / 'a.conf').write_text(text)
    finished = run('-f', 'a.conf', '--check', cwd=str(tmp_path), env={'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0', 'PYTHONUTF8': '0'})
    assert finished.code == 2 and finished.err.startswith('a.conf:1: modules.') and finished.err.count('\n') == 1


def test_the_log_file_starts_at_the_folder_of_the_configuration(run, tmp_path):
    (tmp_path / 'conf').mkdir()
    (tmp_path / 'conf' / 'm.py').write_text('class m:\n    def __init__(self, config, logger):\n        self.log = logger\n'
                                            '    def get_stats(self, n):\n        self.log("err", msg="here I am")\n')
    (tmp_path / 'conf' / 'a.conf').write_text('{"log": {"dest": "a.log"}, "interval": 0.05, '
                                              '"modules": {"load": {}, "m": {"file": "m.py"}}}')
    assert run('-f', 'conf/a.conf', '-e', 'stdout', '-n', '1', cwd=str(tmp_path)).code == 0
    assert 'here I am' in (tmp_path / 'conf' / 'a.log').read_text()
    assert not (tmp_path / 'a.log').exists()


# -- the command line on top ------------------------------------------------------------------

@pytest.mark.parametrize('piece, key, value', [
    ('graphite,prefix=a,b,host=h', 'prefix', 'a,b'), ('graphite,prefix=a\\,tagged,host=h', 'prefix', 'a,tagged'),
    ('graphite,blacklist=mem.*,cpu.*,host=h', 'blacklist', ['mem.*', 'cpu.*']),
    ('graphite,host=h,prefix=x=y=z', 'prefix', 'x=y=z'), ('graphite,host=h,prefix=k1:9092,k2:9092', 'prefix', 'k1:9092,k2:9092'),
    ('graphite,host=h,prefix=k=1\\,host=2', 'prefix', 'k=1,host=2'), ('graphite,host=h,prefix=', 'prefix', ''),
    ('graphite,host=h,tagged', 'tagged', True), ('graphite,tagged,host=h', 'tagged', True),
    ('graphite,host=h,tagged=false', 'tagged', False), ('graphite,tags.env=prod,host=h', 'tags', {'env': 'prod'}),
    ('graphite,host=h,tags.a=1,tags.b=x,y,tags.c.d=2', 'tags', {'a': '1', 'b': 'x,y', 'c.d': '2'}),
    ('graphite,host=h,tags.a=x\\,y', 'tags', {'a': 'x,y'}), ('graphite, host=h, port=5', 'port', 5),
    ('graphite,host=x,host=h,port=7', 'port', 7),
])
def test_options_on_the_command_line(piece, key, value):
    options = load('', Command(emitters=[piece])).emitters[0].options
    assert options[key] == value and options.host == 'h'


def test_boolean_names_and_lists_of_modules_on_the_command_line():
    settings = load('', Command(modules=['cpu,per_core', 'disk,devices=sd*,nvme*,partitions,async,interval=5']))
    cpu, disk = [m.options for m in settings.modules]
    assert cpu.per_core is True and cpu['async'] is False
    assert (disk.devices, disk.partitions, disk['async'], disk.interval) == (['sd*', 'nvme*'], True, True, 5)
    assert [e.name for e in settings.emitters] == ['stdout_pretty']


def test_a_name_that_is_given_twice_is_numbered_and_keeps_its_kind():
    settings = load('', Command(emitters=['graphite,host=a', 'graphite,host=b', 'graphite,host=c', 'stdout']))
    assert [(e.name, e.kind) for e in settings.emitters] == [
        ('graphite', 'graphite'), ('graphite-2', 'graphite'), ('graphite-3', 'graphite'), ('stdout', 'stdout')]
    assert [e.options.host for e in settings.emitters[:3]] == ['a', 'b', 'c']


FILE = ('{"interval": 7, "modules": {"cpu": {"per_core": true}, "load": {}},\n"emitters": {"stdout": {},\n'
        '"graphite": {"port": 5, "tags": {"a": "b"}},\n"dr": {"type": "graphite", "host": "far",\n"batch": 9}}}')


def test_e_replaces_what_the_file_lists_and_a_name_of_the_file_keeps_its_options():
    settings = load(FILE, Command(emitters=['dr,batch=3', 'graphite,tags.env=prod']))
    assert [(e.name, e.kind) for e in settings.emitters] == [('dr', 'graphite'), ('graphite', 'graphite')]
    dr, plain = [e.options for e in settings.emitters]
    assert (dr.host, dr.batch) == ('far', 3)
    assert (plain.port, plain.tags, plain.batch) == (5, {'a': 'b', 'env': 'prod'}, 100)
    assert [m.name for m in settings.modules] == ['cpu', 'load'] and settings.modules[0].options.per_core
    assert settings.top.interval == 7


def test_m_replaces_modules_only_and_keeps_the_options_of_the_file():
    settings = load(FILE, Command(modules=['memory', 'cpu']))
    assert [m.name for m in settings.modules] == ['memory', 'cpu'] and settings.modules[1].options.per_core is True
    assert [e.name for e in settings.emitters] == ['stdout', 'graphite', 'dr']


def test_a_name_of_the_file_given_twice_is_two_that_share_the_options_of_the_file():
    settings = load(FILE, Command(emitters=['dr', 'dr,host=near', 'graphite,tags.x=1', 'graphite']))
    assert [(e.name, e.kind) for e in settings.emitters] == [
        ('dr', 'graphite'), ('dr-2', 'graphite'), ('graphite', 'graphite'), ('graphite-2', 'graphite')]
    assert [(e.options.host, e.options.batch) for e in settings.emitters[:2]] == [('far', 9), ('near', 9)]
    assert [e.options.tags for e in settings.emitters[2:]] == [{'a': 'b', 'x': '1'}, {'a': 'b'}]


def test_a_numbered_name_does_not_take_one_that_was_given():
    settings = load('{"emitters": {"graphite-2": {"type": "graphite", "host": "two"}}}',
                    Command(emitters=['graphite-2', 'graphite', 'graphite,host=third']))
    assert len(set(e.name for e in settings.emitters)) == 3
    assert [e.options.host for e in settings.emitters] == ['two', '127.0.0.1', 'third']


def test_the_interval_of_the_command_line_wins():
    assert load(FILE, Command(interval='0.5')).top.interval == 0.5
    assert places(FILE, Command(interval='often')) == ['command line: interval']
    assert places('{"interval": "x"}', Command(interval='often')) == ['command line: interval']


def test_mistakes_say_whether_the_command_line_or_the_file_made_them():
    text = '{"emitters": {"graphite": {"port": "x",\n"hots": 1,\n"tags": {"a": 5}}}}'
    assert sorted(places(text, Command(emitters=['graphite,batch=0,prot=1']))) == [
        'a.conf:1: emitters.graphite.port', 'a.conf:2: emitters.graphite.hots', 'a.conf:3: emitters.graphite.tags',
        'command line: emitters.graphite.batch', 'command line: emitters.graphite.prot']


@pytest.mark.parametrize('piece', ['', ',host=x', 'graphite,nonsense', 'graphite,host', 'graphit',
                                   'graphite,tags=x', 'graphite,tags.=x', 'graphite,port.x=5', 'graphite,=5',
                                   'graphite,tagged=maybe', 'graphite,port=', 'graphite,port=1,2', 'cpu'])
def test_a_mistake_in_an_emitter_on_the_command_line_is_said_as_such(piece):
    found = mistakes('', Command(emitters=[piece]))
    assert len(found) == 1 and found[0].startswith('command line: emitters.'), found


@pytest.mark.parametrize('text', ['{"emitters": {"graphite": {"type": ["x"]}}}', '{"emitters": {"graphite": {"type": {"a": 1}}}}',
                                  '{"emitters": {"graphite": {"type": 5}}}'])
def test_a_type_in_the_file_that_is_no_text_is_a_mistake_with_e_too(text):
    assert places(text, Command(emitters=['graphite'])) == ['a.conf:1: emitters.graphite.type']


@pytest.mark.parametrize('text', ['{"emitters": 5}', '{"emitters": {"graphite": 5}}', '{"emitters": null}'])
def test_what_the_command_line_replaces_may_be_anything(text):
    assert load(text, Command(emitters=['stdout'])).emitters[0].kind == 'stdout'


def test_user_code_on_the_command_line_gets_its_options():
    settings = load('', Command(modules=['m,file=own/m.py,async,level=3,4']), files={'/etc/sb/own/m.py': ''})
    assert settings.modules[0].file == '/etc/sb/own/m.py' and settings.modules[0].options['async'] is True
    assert settings.modules[0].given['level'] == '3,4'


# -- the example ------------------------------------------------------------------------------

# What has no default, since nobody but the user knows it.
NEEDED = [('sqs', 'queue_url', 'https://sqs.eu-west-1.amazonaws.com/1/q')]


def uncommented():
    """The example with every `// "key": value` line and every commented brace made active."""
    return re.sub(r'(?m)^( *)// ("[a-z0-9_]+": |\},?$)', r'\1\2', statbadger.example_config())


def test_the_committed_example_is_what_the_program_prints():
    with open(os.path.join(ROOT, 'statbadger.conf.example'), 'rb') as file:
        assert file.read() == statbadger.example_config().encode('ascii')


def test_the_example_means_the_same_as_no_configuration():
    example, bare = load(statbadger.example_config()), load('')
    assert (example.top, example.spool, example.log) == (bare.top, bare.spool, bare.log)
    assert example.modules == bare.modules and example.emitters == bare.emitters


def test_the_example_without_its_comment_signs_is_valid_and_says_the_defaults():
    text, emitters = uncommented(), list(statbadger.EMITTERS)
    for kind, option, value in NEEDED:
        text = text.replace('"%s": ""' % option, '"%s": "%s"' % (option, value))
        emitters[emitters.index(kind)] = '%s,%s=%s' % (kind, option, value)
    settings = load(text)
    bare = load('', Command(modules=list(statbadger.MODULES), emitters=emitters))
    assert settings.modules == bare.modules and settings.emitters == bare.emitters
    assert settings.top == bare.top


def test_the_example_names_every_module_emitter_and_option():
    given, text = read(uncommented()), statbadger.example_config()
    assert {'cpu', 'load', 'disk', 'network', 'memory', 'system', 'self'} <= set(given['modules'])
    assert {'stdout', 'stdout_pretty', 'graphite'} <= set(given['emitters'])
    for what, registry, common in (('modules', statbadger.MODULES, statbadger.MODULE_OPTIONS),
                                   ('emitters', statbadger.EMITTERS, statbadger.EMITTER_OPTIONS)):
        assert set(given[what]) == set(registry)
        for name in registry:
            assert set(given[what][name]) == set(option.name for option in registry[name].options), name
        for option in common:
            assert '//   "%s": ' % option.name in text
    assert set(given) == {'datacenter', 'region', 'zone', 'cluster', 'hostname', 'ipv4', 'ipv6', 'interval', 'modules',
                          'emitters', 'modules_dir', 'emitters_dir', 'view', 'spool', 'log'}
    assert set(given['log']) == {'level', 'dest'} and 'memory_bytes' in given['spool']


def test_the_example_is_plain_text_of_a_width_that_fits_a_screen():
    lines = statbadger.example_config().split('\n')
    assert max(map(len, lines)) <= 140 and not any('\t' in line or line != line.rstrip() for line in lines)
