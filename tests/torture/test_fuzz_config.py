"""Configurations that are mangled: only ConfigError comes out, each mistake one line with its place.

FUZZ_SEED repeats a run, FUZZ_SECONDS prolongs each test."""
import json
import os
import random
import re
import time

import pytest
import statbadger
from statbadger import Command, ConfigError, Place

SEED = int(os.environ.get('FUZZ_SEED') or random.randrange(1 << 30))
SECONDS = float(os.environ.get('FUZZ_SECONDS') or 0.5)

ACTIVE = re.sub(r'(?m)^( *)// ("[a-z0-9_]+": |\},?$)', r'\1\2', statbadger.example_config())
ACTIVE = ACTIVE.replace('"queue_url": ""', '"queue_url": "https://sqs.eu-west-1.amazonaws.com/1/q"')      # has no default
SMALL = ('\ufeff{"interval": 0.5, # tick\r\n"modules": {"cpu": {"per_core": true}, "m": {"file": "m.py", "x": [1, {"y": null}]}},\n'
         '"emitters": {"graphite": {"port": "${PORT:-2003}", "tags": {"a": "b"}, "blacklist": ["a*"]},\n'
         '"dr": {"type": "graphite", "prefix": "{hostname}", "host": "${file:/s}",}}, /* x */ "log": {"level": "info"}}\n')
PIECES = ['', ' ', '\n', '\r\n', '"', "'", '\\', '\\u', '\\ud83d', '\\u0000', '{', '}', '[', ']', ':', ',', ',,', '/', '//',
          '/*', '*/', '#', '-', '+', '0', '00', '1e', '1e999', '-0', '.5', '9' * 400, 'NaN', 'null', 'true', 'false', 'tru',
          '${', '$${', '${}', '${A}', '${A:-', '${file:', '${file:/s}', '${file:/none}', '${file:/bad}', '${file:/large}',
          '\ufeff', '\0', '\x1b[2J', '\u2028', '\x85', '\u00e9', '\U0001f600', '\udcff', '\u0663', '{"a":' * 40, '[' * 40,
          '"type": [1], ', '"type": {}, ', '"type": "cpu", ', '"file": "m.py", ', '"file": "\\u0000", ', '"interval": "1", ',
          '"modules": 5, ', '"emitters": null, ', '"async": "${A}", ', '"graphite"', '"": ', '"a\\nb": 1, ', '"spool": {"dir": [1]}, ']
WORDS = ['graphite', 'stdout', 'cpu', 'm', 'x', '', 'host', 'port', 'type', 'tags.a', 'tags.', '.', 'tagged', 'per_core', 'file',
         'blacklist', '=', '==', '\\,', '\\', ',', ' ', '5', 'nan', '1e999', '\n', '\udcff', '\u00b2', 'm.py', '${A}', 'interval', '-1']


def read(path):
    if path == '/s':
        return 'hunter2\n'
    if path == '/bad':
        return statbadger.decode(b'\xff', path)
    if path == '/large':
        return statbadger.decode(b'x' * ((1 << 20) + 1), path)
    if '\0' in path:
        raise ValueError('embedded null byte')
    raise FileNotFoundError(2, 'No such file or directory')


PLACE = Place('fuzz.conf', '/etc', {'A': 'yes', 'B': ''}, read, lambda path: 1 if path == '/etc/m.py' else 0)


def mangle(random_, text):
    """A few cuts, copies, swaps and odd pieces at random places."""
    for _ in range(random_.randrange(1, 5)):
        at, end = sorted((random_.randrange(len(text) + 1), random_.randrange(len(text) + 1)))
        kind = random_.randrange(6)
        if kind < 2:
            text = text[:at] + random_.choice(PIECES) + text[at:]
        elif kind == 2:
            text = text[:at] + random_.choice(PIECES) + text[min(end, at + 8):]
        elif kind == 3:
            text = text[:at] + text[min(end, at + 40):]
        elif kind == 4:
            text = text[:end] + text[max(at, end - 60):]
        else:
            words = text.split(' ')
            words[random_.randrange(len(words))] = random_.choice(PIECES)
            text = ' '.join(words)
    return text


def mistakes_of(text, command=None):
    """The problems, or None for a configuration that is good."""
    try:
        settings = statbadger.read_config(text, PLACE, command)
    except ConfigError as error:
        return list(error.problems)
    assert settings.modules and settings.emitters and settings.top.interval >= 0.01
    return None


@pytest.mark.parametrize('original', [SMALL, ACTIVE], ids=['small', 'example'])
def test_a_mangled_configuration_is_good_or_gives_mistakes_with_their_places(capsys, original):
    assert mistakes_of(original) is None
    random_, end, good, bad = random.Random(SEED), time.monotonic() + SECONDS, 0, 0
    while time.monotonic() < end:
        text = mangle(random_, original)
        try:
            problems = mistakes_of(text)
        except Exception as error:
            raise AssertionError('seed %d: %r for %s' % (SEED, error, ascii(text)))
        good, bad = good + (problems is None), bad + (problems is not None)
        for problem in problems or ():
            where = (SEED, problem, text)
            found = re.match(r'fuzz\.conf:(\d+): .', problem)
            assert found and 1 <= int(found.group(1)) <= text.count('\n') + 1, where
            assert not set('\r\n') & set(problem) and ', need ' in problem, where
        assert problems != [], (SEED, text)
    with capsys.disabled():
        print(' [seed %d: %d good, %d bad]' % (SEED, good, bad), end='')
    assert bad


def test_any_pieces_on_the_command_line_are_good_or_give_mistakes(capsys):
    random_, end, runs = random.Random(SEED), time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        runs += 1

        def pieces(names):
            return [','.join([random_.choice(names)] + [random_.choice(WORDS) + random_.choice(['=', '', '=']) + random_.choice(WORDS)
                                                        for _ in range(random_.randrange(4))])
                    for _ in range(random_.randrange(3))]
        command = Command(pieces(['cpu', 'm', 'disk', 'x']), pieces(['graphite', 'dr', 'stdout', 'x']),
                          random_.choice([None, None, '1', 'x', '']))
        text = random_.choice(['', SMALL, mangle(random_, SMALL)])
        where = (SEED, command.modules, command.emitters, command.interval, text)
        try:
            problems = mistakes_of(text, command)
        except Exception as error:
            raise AssertionError('%r for %s' % (error, ascii(where)))
        for problem in problems or ():
            assert re.match(r'(fuzz\.conf:\d+|command line): .', problem) and not set('\r\n') & set(problem), where
    with capsys.disabled():
        print(' [seed %d: %d command lines]' % (SEED, runs), end='')


def some_value(random_, depth):
    """Anything that JSON can hold; no lone surrogate, no number that a reader may round."""
    kind = random_.randrange(8 if depth else 6)
    if kind == 0:
        return random_.choice([True, False, None])
    if kind == 1:
        return random_.randrange(-10 ** random_.randrange(1, 30), 10 ** random_.randrange(1, 30))
    if kind == 2:
        return random_.uniform(-1, 1) * 10.0 ** random_.randrange(-30, 30)
    if kind < 6:
        return ''.join(random_.choice('ab"\\/{}[]:,#*$ \n\t\r\0\x1f\x7f\u00e9\u20ac\u2028\ufeff\uffff\U0001f600')
                       for _ in range(random_.randrange(12)))
    if kind == 6:
        return [some_value(random_, depth - 1) for _ in range(random_.randrange(5))]
    return {'k%d%s' % (i, random_.choice(['', '"', '\\', '\u20ac', '//', '#'])):
            some_value(random_, depth - 1) for i in range(random_.randrange(5))}


def test_any_json_is_read_as_the_library_reads_it_and_half_of_it_is_a_mistake(capsys):
    random_, end, runs = random.Random(SEED), time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        runs += 1
        value = {'a': some_value(random_, 6)}
        text = json.dumps(value, ensure_ascii=random_.random() < 0.5, indent=random_.choice([None, 1]))
        assert statbadger.JsonReader(text, 'x').read() == value, (SEED, text)
        cut = random_.randrange(1, len(text))
        try:
            statbadger.JsonReader(text[:cut], 'x').read()
        except ConfigError as error:
            assert re.match(r'x:\d+: found ', str(error)) and len(error.problems) == 1, (SEED, text[:cut])
        else:
            raise AssertionError('half of it was taken: %d %s' % (SEED, ascii(text[:cut])))
    with capsys.disabled():
        print(' [seed %d: %d texts]' % (SEED, runs), end='')


def test_what_the_program_writes_as_json_the_library_reads_back(capsys):
    random_, end, runs = random.Random(SEED), time.monotonic() + SECONDS / 4, 0
    while time.monotonic() < end:
        runs += 1
        text = ''.join(chr(random_.choice([random_.randrange(128), random_.randrange(0xd800), random_.randrange(0xe000, 0x110000)]))
                       for _ in range(random_.randrange(20)))
        assert json.loads(statbadger.json_text(text)) == text, (SEED, ascii(text))
        assert all(' ' <= c < '\x7f' for c in statbadger.json_text(text)), (SEED, ascii(text))
    with capsys.disabled():
        print(' [seed %d: %d texts]' % (SEED, runs), end='')
