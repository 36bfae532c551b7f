#!/usr/bin/env python3
# == 0 HEADER: what this is, how a number travels, the map, the two contracts ===================
"""Statbadger reads a Linux host's counters straight from /proc and sends them where you like.

    statbadger.py                                     the stock modules on the screen, every second
    statbadger.py -e graphite,host=10.0.0.9           the same, to Graphite
    statbadger.py -f /etc/statbadger.conf             as the file says (see --example-config)

One file, Python 3.6 or newer, standard library only. How a number travels:

    /proc text -> rows -> rates -> frame -> spool -> payload bytes -> dialogue -> transport

The map. A section uses only itself and the sections above it.

     1 VOCABULARY      Metric, Table, Series, Frame, Option, the steps, the four errors
     2 CONFIG          the JSON reader, kinds of options, checking, the example, help
     3 KERNEL FILES    everything that is asked of the host; root, record, replay
     4 MODULES         what the columns of each kernel file mean
     5 RATES           counters to rates, shares and ratios
     6 ENCODING        byte-level primitives that know no point
     7 PAYLOADS        a frame to the bytes of each format
     8 EMITTERS        what is said to each kind of sink
     9 TRANSPORTS      sockets, pipes, files, the log; who performs the steps of a dialogue
    10 DELIVERY        the spool, a cursor and a thread per emitter, backoff, accounting
    11 SCHEDULER       ticks on a clock that is passed in
    12 AGENT           configuration to running parts; signals, reload, the end
    13 COMMAND LINE    what each flag does

To add a module, write a table of what the columns mean and a generator of rows:

    @module('load', 'Load averages', [], LOAD)
    def load(tree, options, memory):
        one, five, fifteen, entities, last_pid = tree.read('proc/loadavg').split()
        yield LOAD, (), [...]

To add an emitter, write its options and a dialogue, a generator of steps that owns no socket:

    @emitter('graphite', 'Carbon', [Option('prefix', template, ...)], delivery='sent', link=...)
    def graphite(options, memory):
        while True:
            frames = yield Next()               # asking for the next batch acknowledges the last
            yield Send(...)

Refused on purpose: a plug-in manager, aggregation, alerting, a query language, metrics by shell
script, compression of old data, any dependency.
"""

import sys

if __name__ == '__main__' and not (sys.flags.isolated or getattr(sys.flags, 'safe_path', False)):
    del sys.path[0]             # the folder of the script: a struct.py in /tmp would be run

import _signal
import _socket
import _thread
import errno
import io
import marshal
import os
import select
import struct
import time
from array import array
from fcntl import F_DUPFD, LOCK_EX, LOCK_NB, fcntl, flock, ioctl
from operator import itemgetter, mul, sub

# The C halves of signal, socket and threading: their Python halves bring enum, selectors and
# functools along, 1.3 MB resident that nothing here uses (3.11: 9.3 MB instead of 10.6).

VERSION = '0.1.0'
BAKED = None                    # the text of a configuration, in a copy that --bake made


# == 1 VOCABULARY: the words that all sections share ============================================

GAUGE = 'gauge'                 # a whole number, as it stands
REAL = 'real'                   # a number with a fraction, as it stands
COUNTER = 'counter'             # grows; shown per second (times scale, and per `over` as it stands)
COUNTER32 = 'counter32'         # a counter that the kernel keeps in 32 bits on every machine
SHARE = 'share'                 # grows; shown as percent of the row's total growth
RATIO = 'ratio'                 # growth of `of` over growth of `over`
BUSY = 'busy'                   # ms that grow; shown as percent of the time that passed
IDENTITY = 'identity'           # not shown; when it changes, the row is another thing
RAW = 'raw'                     # not shown; others refer to it
HIDDEN = (IDENTITY, RAW)
COUNTERS = (COUNTER, COUNTER32, SHARE)
ABSENT = float('nan')           # a hole in a row or frame; it never leaves the program

IDENTITY_KEYS = ('datacenter', 'region', 'zone', 'cluster', 'hostname', 'ipv4', 'ipv6')


class Metric:
    """What one column means: name, kind, unit, help.

    With `of` it has no column in the row but is computed from the growth of those columns. less:
    the column whose growth is part of this one's and is taken off (guest time in user time).
    """
    __slots__ = ('name', 'kind', 'unit', 'help', 'of', 'over', 'scale', 'less')

    def __init__(self, name, kind, unit, help, of=(), over=(), scale=1, less=None):
        self.name, self.kind, self.unit, self.help = name, kind, unit, help
        self.of, self.over, self.scale, self.less = of, over, scale, less


class Table:
    """A family of metrics that come as rows, an instance a row; `raw` is what a row holds, in
    order. labels: keys of what names the instance; further: keys of labels that are no part of the
    flat name, and whose values may be ''."""
    __slots__ = ('family', 'labels', 'further', 'columns', 'source', 'raw', 'first')

    def __init__(self, family, columns, labels=(), source='', further=()):
        self.family, self.labels, self.source = family, labels, source
        self.columns, self.further = columns, further
        self.raw = tuple(m for m in columns if not m.of)
        self.first = ([m.name for m in columns if m.kind not in HIDDEN] or [''])[0]

    def shown(self, width):
        """The metrics that a row of `width` columns can give, in declared order."""
        have = set(m.name for m in self.raw[:width])
        return [m for m in self.columns if m.kind not in HIDDEN
                and (m.of[0] if m.of else m.name) in have and (not m.over or m.over[0] in have)]


class OpenTable:
    """A family whose names come with the rows: `of(names)` is a Table for them. unit, kind: those
    of most."""
    __slots__ = ('family', 'source', 'unit', 'help', 'kind')

    def __init__(self, family, unit, help, source='', kind=GAUGE):
        self.family, self.unit, self.help, self.source = family, unit, help, source
        self.kind = kind

    def of(self, columns):
        """A Table of the (name, kind, unit) given."""
        return Table(self.family, tuple(Metric(n, k, u, self.help) for n, k, u in columns), (),
                     self.source)


class Series:
    """One metric of one instance: what it is called and what it is, never its value. keys, values:
    its labels; instance: those values of them that are a part of its flat name."""
    __slots__ = ('family', 'name', 'unit', 'kind', 'keys', 'values', 'instance')

    def __init__(self, family, name, unit, kind, keys, values, instance=None):
        self.family, self.name, self.unit, self.kind = family, name, unit, kind
        self.keys, self.values = keys, values
        self.instance = values if instance is None else instance

    @property
    def metric(self):
        """`disk.reads`"""
        return '.'.join([word for word in (self.family, self.name) if word])

    @property
    def flat(self):
        """`disk.reads.sda`, the name in the payload."""
        return self.metric + '.' + '/'.join(self.instance) if self.instance else self.metric


class Layout:
    """Which series a frame holds, in order. The same object for as long as they stay the same.

    bytes: what it costs to keep one that is not in use any more: the series that the one before,
    `previous`, did not have; the others are there anyway.
    """
    __slots__ = ('series', 'bytes')

    def __init__(self, series, previous=None):
        fresh = len(set(map(id, series)) - set(map(id, previous.series))) if previous else 0
        self.series, self.bytes = series, 240 + 8 * len(series) + 250 * fresh


class Frame:
    """One tick: layout, identity and an array of doubles in which NaN is a hole.

    time_ms: the grid point, Unix ms. exact: {index: int} for whole numbers that no double holds.
    """
    __slots__ = ('run', 'seq', 'time_ms', 'iteration', 'identity', 'layout', 'values', 'exact',
                 'bytes')

    def __init__(self, time_ms, iteration, identity, layout, values, exact=None, run='', seq=0):
        self.run, self.seq, self.time_ms, self.iteration = run, seq, time_ms, iteration
        self.identity, self.layout, self.values, self.exact = identity, layout, values, exact
        self.bytes = 400 + 8 * len(values)


class Option:
    """One option: its kind (a function of section 2 that checks a value), default and help."""
    __slots__ = ('name', 'kind', 'default', 'help')

    def __init__(self, name, kind, default, help):
        self.name, self.kind, self.default, self.help = name, kind, default, help


class Module:
    """A kind of module: its options, its tables, and one generator of rows per kernel file it
    reads, so that a file that is missing takes only its own metrics away: `parts` for the figures
    of the host, `own_parts` for those of the container that we are in. borrows: the name of a
    module whose options it is handed too, as `options.<name>`. expensive: it reads so much, or what
    may take so long, that it has a thread of its own."""
    __slots__ = ('name', 'help', 'options', 'parts', 'own_parts', 'tables', 'borrows', 'expensive')

    def __init__(self, name, help, options, borrows=None, expensive=False):
        self.name, self.help, self.options, self.borrows = name, help, options, borrows
        self.expensive = expensive
        self.parts, self.own_parts, self.tables = [], [], []


class Emitter:
    """A kind of emitter: its options, its dialogue, two functions of the options: what `delivered`
    means, and where it talks to, and the variables of the environment that it is handed."""
    __slots__ = ('name', 'help', 'options', 'delivery', 'link', 'environ', 'dialogue')

    def __init__(self, name, help, options, delivery, link, environ, dialogue):
        self.name, self.help, self.options = name, help, options
        self.delivery, self.link, self.dialogue = delivery, link, dialogue
        self.environ = environ


# The steps of a dialogue. TRANSPORTS performs them; a broken connection is an OSError thrown into
# the generator at its step, and that link is closed by then. Without a link the default one is
# meant, which the first step that needs it opens. An error at Next says in .link which one broke.
# One that has .unreached, as those of Dial have, came before any tick was sent.

class Next:
    """The next batch of frames; asking acknowledges the last one. With `idle`, [] after so many
    seconds, or when a link has input, which is left for the dialogue to read; without, what a peer
    says meanwhile is thrown away. lack: what a dialogue has to wait for before it wants a batch,
    and gets [] only: the ticks stay where the oldest can make room, and with a text it is said.
    goodbye: a Send for when there is no next batch."""
    __slots__ = ('idle', 'lack', 'goodbye')

    def __init__(self, idle=None, lack=None, goodbye=None):
        self.idle, self.lack, self.goodbye = idle, lack, goodbye


class Done:
    """The first n frames of the batch are acknowledged, the rest not yet."""
    __slots__ = ('n',)

    def __init__(self, n):
        self.n = n


class Reject:
    """The peer refuses this frame (or `points` of its points); the rest of the batch is good."""
    __slots__ = ('frame', 'reason', 'points')

    def __init__(self, frame, reason, points=0):
        self.frame, self.reason, self.points = frame, reason, points


class Send:
    """These bytes go out; gives None once the kernel has taken all of them. aside: no tick is in
    them, so nothing waits for the peer to have them."""
    __slots__ = ('data', 'link', 'aside')

    def __init__(self, data, link=None, aside=False):
        self.data, self.link, self.aside = data, link, aside


class Line:
    """Gives the next line that comes in, with its line end."""
    __slots__ = ('link',)

    def __init__(self, link=None):
        self.link = link


class Read:
    """Gives exactly n bytes; how many are too many, the dialogue knows."""
    __slots__ = ('n', 'link')

    def __init__(self, n, link=None):
        self.n, self.link = n, link


class Available:
    """Gives what has arrived, perhaps b'': without waiting, or after `wait` seconds for it."""
    __slots__ = ('link', 'wait')

    def __init__(self, link=None, wait=0):
        self.link, self.wait = link, wait


class Dial:
    """Gives a link of its own: to that host and port, with TLS when the default one would have it,
    or without them to where the default one goes. The deadline starts anew.

    A session (a login, a handshake) wants such a link: a default link that was closed is opened
    again by the next step, and knows of no session; one that was dialled is gone, and says so.

    url: a link for Request to another http or https server, without proxy and certificate of ours.
    within: seconds, when the deadline of all that follows is to be shorter than usual.
    """
    __slots__ = ('host', 'port', 'url', 'within')

    def __init__(self, host=None, port=None, url=None, within=None):
        self.host, self.port, self.url, self.within = host, port, url, within


class Accept:
    """Gives a link to somebody who dials us, or None when nobody does. The first one opens the link
    that listens; who dials counts as its input."""
    __slots__ = ()


class Close:
    """Gives that link back."""
    __slots__ = ('link',)

    def __init__(self, link):
        self.link = link


class Open:
    """Gives a link to a regular file, made when it is not there and locked against others. folder:
    what of its path must be there; folders below that are made too.

    What is sent is appended, and stands in the file from Sync on: a link that breaks or is closed
    before that leaves it as it was. The kernel has no deadlines for files.
    """
    __slots__ = ('path', 'folder')

    def __init__(self, path, folder):
        self.path, self.folder = path, folder


class Size:
    """Gives the bytes of a file; ESTALE when its path does not lead to it any more."""
    __slots__ = ('link',)

    def __init__(self, link):
        self.link = link


class Part:
    """Gives n bytes of a file from `at` on, fewer at its end."""
    __slots__ = ('at', 'n', 'link')

    def __init__(self, at, n, link):
        self.at, self.n, self.link = at, n, link


class Truncate:
    """A file keeps its first n bytes only."""
    __slots__ = ('n', 'link')

    def __init__(self, n, link):
        self.n, self.link = n, link


class Sync:
    """Gives None once the disk has all that was sent to a file; ESTALE when it was deleted."""
    __slots__ = ('link',)

    def __init__(self, link):
        self.link = link


class Rename:
    """A file gets another path."""
    __slots__ = ('path', 'link')

    def __init__(self, path, link):
        self.path, self.link = path, link


class Files:
    """Gives [(name, ns of the last change)] of the files in a folder whose names begin with
    `start`; (name, None) of what is no file."""
    __slots__ = ('folder', 'start')

    def __init__(self, folder, start):
        self.folder, self.start = folder, start


class Remove:
    """A file goes away; EBUSY when somebody has it locked."""
    __slots__ = ('path',)

    def __init__(self, path):
        self.path = path


class Request:
    """Gives (status, {header in lower case: value}, body up to 64 KiB) of an HTTP exchange. path:
    under the URL of the link, with its query. Whatever the status, it is no error here."""
    __slots__ = ('method', 'path', 'headers', 'body', 'link')

    def __init__(self, method, path, headers, body=None, link=None):
        self.method, self.path, self.headers, self.body = method, path, headers, body
        self.link = link


class File:
    """Gives the bytes of a small file of this host, such as a token that others renew."""
    __slots__ = ('path',)

    def __init__(self, path):
        self.path = path


class Say:
    """A line of the log about this emitter, or this module, of what is no failure and yet worth
    knowing; a module says it once."""
    __slots__ = ('text',)

    def __init__(self, text):
        self.text = text


class Wait:
    """Gives None after so many seconds; the deadline starts anew. With a link: True as soon as it
    has input, False after so many seconds, None when a reload or the end leaves no time to wait."""
    __slots__ = ('seconds', 'link')

    def __init__(self, seconds, link=None):
        self.seconds, self.link = seconds, link


class Now:
    """Gives the Unix time in seconds."""
    __slots__ = ()


class Random:
    """Gives n random bytes."""
    __slots__ = ('n',)

    def __init__(self, n):
        self.n = n


def printable(text):
    """The text in printable ASCII, on one line; all else as Python writes it, such as \\x1b."""
    return ''.join([c if ' ' <= c < '\x7f' else c.encode('unicode_escape').decode() for c in text])


def trouble(error):
    """`TypeError: bad operand (statbadger.py:812 in feed, ...)`: an exception and where it came
    from."""
    places, tb = [], error.__traceback__
    while tb is not None:
        code = tb.tb_frame.f_code
        places.append('%s:%d in %s' % (os.path.basename(code.co_filename), tb.tb_lineno,
                                       code.co_name))
        tb = tb.tb_next
    try:
        what = str(error)
    except BaseException:                       # a user's exception may do anything
        what = 'it cannot say what is wrong'
    return '%s: %s (%s)' % (type(error).__name__, what, ', '.join(reversed(places[-3:])))


class ConfigError(Exception):
    """What the user gave cannot be used; .problems is a printable line for each mistake."""

    def __init__(self, *problems):
        self.problems = [printable(problem) for problem in problems]
        Exception.__init__(self, '\n'.join(self.problems))


class Absent(Exception):
    """This host has no such file, or no use can be made of it."""


class Refused(Exception):
    """The peer says that the data is wrong. split: it was only too large."""

    def __init__(self, reason, split=False):
        Exception.__init__(self, reason)
        self.split = split


class Later(OSError):
    """The peer is not willing now; come back after `wait` seconds. Never a reason to drop. suspect:
    it may be the data after all: when nothing but this batch fails for long, it is held to be."""

    def __init__(self, reason, wait=0, suspect=False):
        OSError.__init__(self, reason)
        self.wait, self.suspect = wait, suspect


MODULES = {}                    # name -> Module, in the order of the file
EMITTERS = {}                   # name -> Emitter


def module(name, help, options, *tables, view=None, **more):
    """Registers a generator of rows; a second one under the same name reads another file for it.
    view: 'host' or 'container', for one that is part of that view only.

    It yields (table, label values, row), or Say. The first reading of a row gives no rates, for
    what it grew by is not known; where it is, a fourth item is what the row stood at when the last
    reading was made: zeros for what began since."""
    def register(generate):
        kind = MODULES.setdefault(name, Module(name, help, options, **more))
        if view != 'container':
            kind.parts.append(generate)
        if view != 'host':
            kind.own_parts.append(generate)
        kind.tables.extend(tables)
        return generate
    return register


def emitter(name, help, options, delivery, link, environ=()):
    """Registers a dialogue(options, memory); memory is a dict that belongs to this emitter, empty
    at first, and outlives its dialogues. memory['secrets']: texts that it came to know at work, and
    that no line of the log may hold.

    delivery: what asking for the next batch means, 'acknowledged' or 'sent', or options -> one of
    them. link: options -> where it talks to, as Opener in section 9 takes it; ValueError says which
    options do not go together. environ: names of variables of the environment; both are handed
    those that are set, as `options.environ`.
    """
    def register(dialogue):
        what = delivery if callable(delivery) else lambda options: delivery
        EMITTERS[name] = Emitter(name, help, options, what, link, environ, dialogue)
        return dialogue
    return register


# == 2 CONFIG: the JSON reader, kinds of options, checking, the example, help ===================

MOST_DEPTH = 32  # of nested lists and objects: deeper is a mistake, not a recursion error
MOST_TEXT = 1 << 20             # bytes of a configuration
ESCAPES = {'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}
LETTERS = {'"': '\\"', '\\': '\\\\', '\b': '\\b', '\f': '\\f', '\n': '\\n', '\r': '\\r',
           '\t': '\\t'}
BLANKS = ' \t\r\n'


def json_text(text):
    """A JSON string, quotes included, in ASCII: whatever is in the text (RFC 8259, section 7)."""
    if text.isidentifier() and text.encode('ascii', 'replace').decode() == text:
        return '"%s"' % text
    return '"%s"' % ''.join(map(json_letter, text))


def json_letter(letter):
    """One character of a JSON string; beyond U+FFFF a surrogate pair."""
    code = ord(letter)
    if code > 0xffff:
        code -= 0x10000
        return '\\u%04x\\u%04x' % (0xd800 + (code >> 10), 0xdc00 + (code & 0x3ff))
    return LETTERS.get(letter) or (letter if 32 <= code < 127 else '\\u%04x' % code)


def json_value(value):
    """Compact JSON of what a configuration can hold."""
    if isinstance(value, dict):
        return '{%s}' % ', '.join(json_text(k) + ': ' + json_value(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return '[%s]' % ', '.join(map(json_value, value))
    if value is None or value is True or value is False:
        return {None: 'null', True: 'true', False: 'false'}[value]
    if isinstance(value, str):
        return json_text(value)
    return '%d' % value if isinstance(value, int) else '%.12g' % value


def json_page(value, indent=''):
    """The same for people: an object or list that is long stands on several lines."""
    words = json_value(value)
    if len(indent + words) < 90 or not isinstance(value, (dict, list)):
        return words
    inner = indent + '    '
    if isinstance(value, dict):
        members = ['%s: %s' % (json_text(k), json_page(v, inner)) for k, v in value.items()]
    else:
        members = [json_page(v, inner) for v in value]
    start, end = '{}' if isinstance(value, dict) else '[]'
    return '%s\n%s%s\n%s' % (start, inner, (',\n' + inner).join(members), indent) + end


class JsonReader:
    """Reads JSON as people write it: `//`, `/* */` and `#` comments, trailing commas, a BOM, CRLF.

    read() gives the value; .lines {path: line} says where each member stands and .mistakes lists
    [(path, line, what)] for duplicate keys. A syntax error raises ConfigError with `name:line`.
    """

    def __init__(self, text, name):
        self.text, self.name, self.at, self.depth = text, name, 0, 0
        self.lines, self.mistakes, self.counted = {}, [], (0, 1)

    def is_blank(self):
        """Whether there is nothing but blanks and comments."""
        self.at = 1 if self.text.startswith('\ufeff') else 0
        return not self.peek()

    def read(self):
        if self.is_blank():
            self.fail('nothing', 'a value')
        value = self.value(())
        if self.peek():
            self.fail(self.found(), 'nothing after the last brace')
        return value

    def line(self):
        at, number = self.counted               # counting from the start each time takes minutes
        self.counted = self.at, number + self.text.count('\n', at, self.at)
        return self.counted[1]

    def fail(self, found, need):
        raise ConfigError('%s:%d: found %s, need %s' % (self.name, self.line(), found, need))

    def found(self):
        """The next character in words, and no more of the text: a password may stand there."""
        letter = self.text[self.at:self.at + 1]
        return {'': 'the end of the file', '\n': 'a line end'}.get(letter) or json_text(letter)

    def peek(self):
        """The next character that is no blank and in no comment; '' at the end."""
        text = self.text
        while self.at < len(text):
            letter = text[self.at]
            if letter in BLANKS:
                self.at += 1
            elif letter == '#' or text.startswith('//', self.at):
                end = text.find('\n', self.at)
                self.at = len(text) if end < 0 else end
            elif text.startswith('/*', self.at):
                end = text.find('*/', self.at + 2)
                if end < 0:
                    self.fail('a comment that does not end', '*/')
                self.at = end + 2
            else:
                return letter
        return ''

    def value(self, path):
        letter = self.peek()
        if letter == '{':
            return self.nested(path, self.members, '}')
        if letter == '[':
            return self.nested(path, self.elements, ']')
        if letter == '"':
            return self.string()
        for word, value in (('true', True), ('false', False), ('null', None)):
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return value
        return self.number()

    def nested(self, path, read, end):
        self.depth += 1
        if self.depth > MOST_DEPTH:
            self.fail('more than %d levels' % MOST_DEPTH, 'fewer')
        self.at += 1
        value = read(path, end)
        self.at += 1
        self.depth -= 1
        return value

    def members(self, path, end):
        out = {}
        while self.peek() != end:
            if self.peek() != '"':
                self.fail(self.found(), 'a key in double quotes or }')
            line, key = self.line(), self.string()
            if self.peek() != ':':
                self.fail(self.found(), '":" after the key %s' % json_text(key))
            self.at += 1
            if key in out:
                self.mistakes.append((path + (key,), line, 'found the key twice, need it once'))
            self.lines[path + (key,)] = line
            out[key] = self.value(path + (key,))
            self.comma(end)
        return out

    def elements(self, path, end):
        out = []
        while self.peek() != end:
            self.lines[path + (len(out),)] = self.line()
            out.append(self.value(path + (len(out),)))
            self.comma(end)
        return out

    def comma(self, end):
        if self.peek() == ',':
            self.at += 1
        elif self.peek() != end:
            self.fail(self.found(), '"," or "%s"' % end)

    def string(self):
        out, start = [], self.at + 1
        self.at = start
        while True:
            letter = self.text[self.at:self.at + 1]
            if letter in ('', '\n'):
                self.fail('a text that does not end', '"')
            if letter == '\\' or letter == '"':
                out.append(self.text[start:self.at])
                self.at += 1
                if letter == '"':
                    return ''.join(out)
                out.append(self.escape())
                start = self.at
            else:
                self.at += 1

    def escape(self):
        letter = self.text[self.at:self.at + 1]
        self.at += 1
        if letter in ESCAPES and letter:
            return ESCAPES[letter]
        if letter != 'u':
            self.fail('"\\%s"' % letter, 'an escape such as \\n')
        code = self.hex4()
        if 0xd800 <= code < 0xdc00 and self.text.startswith('\\u', self.at):
            second = self.at
            self.at += 2
            low = self.hex4()
            if 0xdc00 <= low < 0xe000:
                return chr(0x10000 + ((code - 0xd800) << 10) + low - 0xdc00)
            self.at = second                    # an escape of its own
        return '\ufffd' if 0xd800 <= code < 0xe000 else chr(code)

    def hex4(self):
        digits = self.text[self.at:self.at + 4]
        if len(digits) < 4 or digits.strip('0123456789abcdefABCDEF'):
            self.fail('"\\u"', 'four hexadecimal digits behind it')
        self.at += 4
        return int(digits, 16)

    def number(self):
        end = self.at
        while self.text[end:end + 1] and self.text[end] in '+-.0123456789eE':
            end += 1
        word = self.text[self.at:end]
        if not json_number(word) or len(word) > 40 or abs(float(word)) > 1e300:
            self.fail(self.found(),
                      'a value: text in double quotes, a number, true, false, null, [ or {')
        self.at = end
        return float(word) if word.strip('-0123456789') else int(word)


def json_reply(data):
    """What the JSON of a server says; None when it is none, or was cut short."""
    try:
        return JsonReader(data.decode('utf-8', 'replace'), 'a reply').read()
    except ConfigError:
        return None


def json_number(word):
    """Whether the word is a number of RFC 8259, section 6."""
    head, _, exponent = word.replace('E', 'e').partition('e')
    whole, point, fraction = head.partition('.')
    whole = whole[1:] if whole.startswith('-') else whole
    digits = '0123456789'
    power = exponent[1:] if exponent[:1] in ('+', '-') else exponent
    return bool(whole and not whole.strip(digits) and (whole == '0' or whole[0] != '0')
                and (not point or fraction and not fraction.strip(digits))
                and ('e' not in word.lower() or power and not power.strip(digits)))


# -- kinds of options: what may be given, what the program sees; ValueError says what is needed -

TIME_LETTERS = (('Y', '%04d'), ('y', '%02d'), ('m', '%02d'), ('d', '%02d'), ('j', '%03d'),
                ('H', '%02d'), ('M', '%02d'), ('S', '%02d'))    # as strftime(3) has them


class Loose(str):
    """A text from the command line or out of ${...}: it may stand for a number, a boolean or a
    list."""


def boolean(value):
    """true or false"""
    words = {'true': True, 'yes': True, 'on': True, '1': True, 'false': False, 'no': False,
             'off': False, '0': False}
    if isinstance(value, Loose):
        value = words.get(value.lower(), value)
    if not isinstance(value, bool):
        raise ValueError('true or false')
    return value


def number(value, low, high, need):
    """An int or float between low and high."""
    if isinstance(value, Loose) and json_number(value.strip()) and len(value) < 40:
        value = float(value) if value.strip().strip('-0123456789') else int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(need)
    return value


def whole(low, high):
    """The kind of a whole number from low to high."""
    def check(value):
        value = number(value, low, high, 'a whole number from %d to %d' % (low, high))
        if value != int(value):
            raise ValueError('a whole number from %d to %d' % (low, high))
        return int(value)
    return check


def seconds(low, high=86400, or_zero=False,
            need='seconds such as 10, from %g to %g, in steps of 0.001'):
    """The kind of a time in seconds, whole milliseconds."""
    need = ('0 or ' if or_zero else '') + need % (low, high)

    def check(value):
        value = number(value, 0 if or_zero else low, high, need)
        if (value < low and value != 0) or abs(value * 1000 - round(value * 1000)) > 1e-6:
            raise ValueError(need)
        return value
    return check


def text(value):
    """Text."""
    if not isinstance(value, str):
        raise ValueError('text in double quotes')
    if '\0' in value:
        raise ValueError('text without NUL')
    return str(value)


def name_of_host(value):
    """Text that can stand for a peer: no blanks, no control characters."""
    value = text(value)
    if not value or any(ord(c) < 33 or c in '@/' for c in value):
        raise ValueError('a host name or address such as "10.0.0.9"')
    return value


def choice(*words):
    """The kind of a text that is one of the words."""
    def check(value):
        if value not in words:
            raise ValueError('one of ' + ', '.join(json_text(w) for w in words))
        return str(value)
    check.words = words
    return check


def patterns(value):
    """A list of shell patterns; one that begins with ! takes away."""
    if isinstance(value, Loose):
        value = [v.strip() for v in value.split(',') if v.strip()]
    if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
        raise ValueError('a list of patterns such as ["a*", "!ab*"]')
    return [str(v) for v in value]


def no_folder(value):
    """Nothing: for what cannot be kept on disk yet."""
    if value != '':
        raise ValueError('"": in this version ticks wait in memory only')
    return value


def mapping(value):
    """{text: text}"""
    if not isinstance(value, dict) or not all(k and isinstance(v, str) for k, v in value.items()):
        raise ValueError('an object of texts such as {"env": "prod"}')
    return {str(k): str(v) for k, v in value.items()}


OWN_GROUPS = 'other', 'kernel', 'unknown'        # of processes, and of bytes of nobody's


def expressions(value):
    """{text: regular expression}"""
    value = mapping(value)
    for name, expression in value.items():
        if name in OWN_GROUPS:
            raise ValueError('another name than %s, which is what is in no group'
                             % json_text(name))
        import re                               # 1 MB: only for those who want it
        try:
            re.compile(expression)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError('a regular expression for %s (%s)' % (json_text(name), error))
    return value


def template(value):
    """Text with {hostname} and the other identity keys in it."""
    value = text(value)
    rest = value
    for key in IDENTITY_KEYS:
        rest = rest.replace('{%s}' % key, '')
    if '{' in rest or '}' in rest:
        raise ValueError('a text in which { } hold one of ' + ', '.join(IDENTITY_KEYS))
    return value


def secret(value):
    """Text that is shown to nobody."""
    return text(value)


secret.hides = lambda value: '****'


OUR_HEADERS = frozenset(('connection', 'content-encoding', 'content-length', 'content-type',
                         'expect', 'host', 'te', 'transfer-encoding', 'upgrade'))


def http_headers(value):
    """{name: value} of HTTP headers (RFC 9110, section 5), the values shown to nobody."""
    value = mapping(value)
    letters = ''.join(value) + ''.join(value.values())
    if any(not ' ' <= c <= '~' for c in letters) or any(c in ' :' for c in ''.join(value)):
        raise ValueError('an object of headers such as {"X-Scope": "a"}')
    ours = sorted(OUR_HEADERS.intersection(name.lower() for name in value))
    if ours:
        raise ValueError('headers other than %s, which say how it is sent' % ours[0])
    return value


http_headers.hides = secret.hides


def stomp_headers(value):
    """{name: value} of headers of a message (STOMP 1.2, "Frames and Headers")."""
    value = mapping(value)
    if any(not c.isprintable() for text in list(value) + list(value.values()) for c in text) or any(
            c in ' :' for c in ''.join(value)):
        raise ValueError('an object of headers such as {"priority": "9"}')
    ours = [n for n in ('content-length', 'destination', 'receipt', 'transaction') if n in value]
    if ours:
        raise ValueError('headers other than %s' % ours[0])
    return value


def file_path(value):
    """A file that exists, seen from the configuration's folder: the Checker looks."""
    return text(value)


def file_template(value):
    """A path, seen from the configuration's folder, of a file that need not be there, with the
    identity as in a template, and the tick's time (UTC) as date(1) writes it."""
    value = template(value)
    rest = value.replace('%%', '')
    for letter, form in TIME_LETTERS:
        rest = rest.replace('%' + letter, '')
    if '%' in rest or os.path.basename(value) in ('', '.', '..'):
        raise ValueError('a file such as "/data/{hostname}/%%Y%%m%%d.avro", its time in %s and %%%%'
                         % ' '.join('%' + letter for letter, form in TIME_LETTERS))
    return value


def file_template_in(folder, value):
    """A file_template, seen from a folder that is none."""
    return os.path.join(folder.replace('%', '%%'), value)


def url_parts(url):
    """(scheme, name and password or '', host, port or 0, path) of an http or https URL (RFC 3986,
    section 3); ValueError when it is none."""
    scheme, colon, rest = url.partition('://')
    authority, slash, path = rest.partition('/')
    login, at, place = authority.rpartition('@')
    host, number = host_and_port(place)
    if (scheme not in ('http', 'https') or not colon or not host.strip('.')
            or any(not '!' <= c <= '~' or c in '?#"<>\\^`{|}' for c in url)):
        raise ValueError('no URL')
    return scheme, login, host, number, slash + path.rstrip('/') if path else ''


def host_and_port(place):
    """(host, port or 0) of `k1:9092`, `[::1]:9092`, `k1`; ValueError when it is neither."""
    host, bracket, number = place[1:].partition(']') if place.startswith('[') else (place, '', '')
    if not bracket:
        host, colon, digits = place.partition(':')
        number = colon + digits
    if number and not (number[0] == ':' and number[1:].isdecimal() and 0 < int(number[1:]) < 65536):
        raise ValueError('no port')
    return host, int(number[1:] or 0)


def url(value):
    """An http or https URL without name and password."""
    value = text(value)
    try:
        url_parts(value)
    except ValueError:
        raise ValueError('a URL such as "http://10.0.0.9:8086", without ? and #')
    if '@' in value.partition('://')[2].partition('/')[0]:
        raise ValueError('a URL without name and password: they have options of their own')
    return value


def url_or_udp(value):
    """The same, or a udp URL of host and port."""
    value = text(value)
    if not value.startswith('udp://'):
        return url(value)
    try:
        path = url_parts(url('http' + value[3:]))[4]
    except ValueError:
        path = value
    if path:
        raise ValueError('a URL such as "udp://10.0.0.9:8089", or one of http')
    return value


def proxy_url(value):
    """Nothing, or the http URL of a proxy, perhaps with name and password."""
    value = text(value)
    try:
        if value and url_parts(value)[0] != 'http':
            raise ValueError
    except ValueError:
        raise ValueError('"" or a URL such as "http://10.0.0.3:3128"')
    return value


def without_login(value):
    """The URL with **** for name and password; the same text when there are none in it."""
    if not isinstance(value, str):
        return '****'
    scheme, colon, rest = value.rpartition('://')
    return scheme + colon + '****@' + rest.rpartition('@')[2] if '@' in rest else value


url.hides = url_or_udp.hides = proxy_url.hides = without_login


def addresses(usual):
    """The kind of `k1:9092,k2`, or a list of such texts; `usual` is the port of those that name
    none. Gives one text, each with its port: see host_and_port()."""
    need = 'hosts such as "k1:%d,k2:%d"' % (usual, usual)

    def check(value):
        words = value.split(',') if isinstance(value, str) else value
        try:
            pairs = [host_and_port(name_of_host(word.strip())) for word in words]
        except (ValueError, AttributeError, TypeError):
            raise ValueError(need)
        if not pairs or not all(host for host, number in pairs):
            raise ValueError(need)
        return ','.join(place_text(host, number or usual) for host, number in pairs)
    check.hides = lambda value: '****' if '@' in str(value) else value
    return check


def zmq_endpoint(value):
    """`tcp://10.0.0.9:5556`, `tcp://[::1]:5556`, and `tcp://*:5556` to bind all addresses
    (zmq_tcp(7))."""
    value = text(value)
    scheme, colon, place = value.partition('://')
    try:
        host, number = host_and_port(name_of_host(place))
        if scheme != 'tcp' or not host or not number:
            raise ValueError
    except ValueError:
        raise ValueError('an endpoint such as "tcp://10.0.0.9:5556"')
    return value


def place_text(host, number):
    """`k1:9092`, `[::1]:9092`"""
    return ('[%s]:%d' if ':' in host else '%s:%d') % (host, number)


port = whole(0, 65535)
pause = seconds(0.01, or_zero=True)

TOP_OPTIONS = [
    Option('datacenter', text, '', 'Where this host is; these seven are in every payload'),
    Option('region', text, '', 'Region of the data center'),
    Option('zone', text, '', 'Zone of the region'),
    Option('cluster', text, '', 'What this host is part of'),
    Option('hostname', text, '', 'Name of this host; empty = ask the kernel'),
    Option('ipv4', text, '', 'Its address; empty = the one on the interface of the default route'),
    Option('ipv6', text, '', 'Its IPv6 address; empty = likewise'),
    Option('interval', seconds(0.01), 1,
           'Seconds between ticks, which fall on wall-clock multiples of it'),
    Option('modules_dir', text, '', 'Folder of your own modules: an unknown NAME is NAME.py there'),
    Option('emitters_dir', text, '', 'Folder of your own emitters'),
    Option('view', choice('auto', 'host', 'container'), 'auto',
           'Whose cpu, memory, load, disk and system are shown; auto = the container\'s in one'),
]
SPOOL_OPTIONS = [
    Option('memory_bytes', whole(1 << 16, 1 << 40), 16777216,
           'Most bytes of ticks that wait for all sinks together; the oldest are dropped first'),
]
SPOOL_DISK_OPTIONS = [          # not yet: known, checked, and in no example
    Option('dir', no_folder, '', 'Folder of ticks that wait; empty = they wait in memory'),
    Option('max_bytes', whole(1 << 20, 1 << 50), 268435456, 'Most bytes in that folder'),
]
LOG_OPTIONS = [
    Option('level', choice('debug', 'info', 'warning', 'error'), 'info',
           'Least important message that is logged'),
    Option('dest', text, 'stderr', '"stderr", or a file, opened anew after it was moved away'),
]
COMMON_OPTIONS = [
    Option('type', text, '', 'Kind, when the name is not the kind itself'),
]
MODULE_OPTIONS = COMMON_OPTIONS + [
    Option('interval', pause, 0,
           'Seconds between readings, on wall-clock multiples; 0 = the global interval'),
    Option('blacklist', patterns, [], 'Patterns of names, as in the payload, that nobody gets'),
    Option('async', boolean, False, 'Run in a thread of its own and never wait for it'),
]
EMITTER_OPTIONS = COMMON_OPTIONS + [
    Option('interval', pause, 0,
           'Send only the ticks on wall-clock multiples of so many seconds; 0 = all'),
    Option('flush', pause, 0,
           'Gather the ticks of so many seconds and send them together; 0 = at once'),
    Option('blacklist', patterns, [],
           'Patterns of names, as in the payload, that this sink does not get'),
    Option('timeout', seconds(0.1, 3600), 10, 'Seconds for a whole exchange with the sink'),
    Option('tags', mapping, {}, 'More labels, for sinks that have labels'),
    Option('batch', whole(1, 100000), 100, 'Most ticks in one send'),
]
USER_OPTIONS = [Option('file', text, '', 'Python file that holds the class NAME')]
STOCK = ('cpu', 'load', 'disk', 'network', 'memory', 'system')
DEFAULT_EMITTER = 'stdout_pretty'


def with_default(name, default, help=''):
    """The option of every emitter of that name, with a default (and help) of the kind's own."""
    usual = [option for option in EMITTER_OPTIONS if option.name == name][0]
    return Option(name, usual.kind, default, help or usual.help)


def shared(common, own):
    """The common options but those that a kind declares itself."""
    names = [option.name for option in own]
    return [option for option in common if option.name not in names]


class Options:
    """Checked options, as attributes or by name; equal when all values are."""

    def __init__(self, values):
        self.__dict__.update(values)

    def __getitem__(self, name):
        return self.__dict__[name]

    def __eq__(self, other):
        return isinstance(other, Options) and self.__dict__ == other.__dict__

    __hash__ = None


class Chosen:
    """One module or emitter of a configuration: name, kind (None = user code), options.

    file: the Python file of user code. given: its options as they were written. stamp: when the
    file was changed, so that a reload takes it for another one after that."""

    def __init__(self, name, kind, options, file='', given=None, stamp=0):
        self.name, self.kind, self.options = name, kind, options
        self.file, self.given, self.stamp = file, given, stamp

    def __eq__(self, other):
        return self.__dict__ == other.__dict__

    __hash__ = None


class Settings:
    """A checked configuration: .top, .spool, .log (Options), .modules and .emitters (lists of
    Chosen), .hidden (as the Checker's)."""


class Place:
    """Where a configuration comes from and what it may refer to: its name for messages, its folder,
    the environment, and two functions, since this section opens no file: read(path), and
    stamp(path), when a file was changed; 0 when it is none."""

    def __init__(self, name, folder, environ, read, stamp):
        self.name, self.folder, self.environ = name, folder, environ
        self.read, self.stamp = read, stamp

    def path(self, path):
        """The path, seen from the configuration's folder."""
        return os.path.join(self.folder, path) if path else ''


def expand(value, place):
    """The text with ${NAME}, ${NAME:-default} and ${file:PATH} filled in; Loose when there was
    one."""
    if '$' not in value:
        return value
    out, at, loose = [], 0, False
    while True:
        start = value.find('${', at)
        if start < 0:
            out.append(value[at:])
            return (Loose if loose else str)(''.join(out))
        if value[:start].endswith('$'):
            out.append(value[at:start - 1] + '${')
            at = start + 2
            continue
        end = value.find('}', start)
        if end < 0:
            raise ValueError('"}" after "${" (a literal "${" is "$${")')
        out.append(value[at:start] + lookup(value[start + 2:end], place))
        at, loose = end + 1, True


def references(value):
    """The ${...} in a text, and ... for all else: it may be part of a password."""
    out, at = '', 0
    while value.find('${', at) >= 0:
        start = value.find('${', at)
        end = value.find('}', start) + 1 or len(value)
        out, at = out + '...' * (start > at) + value[start:end], end
    return out + '...' * (at < len(value))


def lookup(reference, place):
    """What stands for the inside of ${...}; ValueError when nothing does."""
    if reference.startswith('file:'):
        try:
            return place.read(place.path(reference[5:])).rstrip('\r\n')
        except (OSError, ValueError, ConfigError) as error:
            reason = getattr(error, 'strerror', None) or error
            raise ValueError('a file that can be read (%s)' % reason)
    name, dash, default = reference.partition(':-')
    if name in place.environ and (place.environ[name] or not dash):
        return place.environ[name]
    if not dash:
        raise ValueError('the environment variable %s, or ${%s:-default}' % (name, name))
    return default


def distance(one, other):
    """How many letters to insert, drop, change or swap to make one word of the other (optimal
    alignment)."""
    before, row = None, list(range(len(other) + 1))
    for i, a in enumerate(one):
        last, before, row = before, row, [i + 1]
        for j, b in enumerate(other):
            cost = min(before[j + 1] + 1, row[j] + 1, before[j] + (a != b))
            if last and j and a == other[j - 1] and one[i - 1] == b:
                cost = min(cost, last[j - 1] + 1)
            row.append(cost)
    return row[-1]


def did_you_mean(word, words):
    """`, did you mean "host"?` or ''."""
    near = sorted((distance(word[:40], w), w) for w in words)
    near = near and near[0][0] <= max(1, len(near[0][1]) // 3) and near[0][1]
    return ', did you mean %s?' % json_text(near) if near else ''


BROKEN = object()               # a text with a mistake in its ${...}: said, then left out


class Checker:
    """Checks what was read against what is declared and collects every mistake, with its place.

    .hidden: {path: the text that is shown instead} of secrets, and of what was filled in from
    outside, which may be one too and is shown as it was written.
    """

    def __init__(self, place, lines):
        self.place, self.lines, self.problems, self.hidden = place, lines, [], {}

    def say(self, path, what):
        line = self.lines.get(path, self.lines.get(path[:-1], 0))
        where = 'command line' if line is None else self.place.name + (':%d' % line if line else '')
        path = '.'.join(map(str, path)) or 'top level'
        self.problems.append((line or 0, '%s: %s: %s' % (where, path, what)))

    def found(self, path, value, need):
        self.say(path, 'found %s, need %s' % (self.shown(path, value), need))

    def shown(self, path, value):
        """The value as JSON, cut when it is long; **** when any of it came from outside."""
        value = self.hidden.get(path, value)
        if any(hidden[:len(path)] == path and hidden != path for hidden in self.hidden):
            return '****'
        words = json_value(value)
        return words if len(words) < 80 else words[:76] + ' ...'

    def expand(self, value, path=()):
        """The value with every ${...} in it filled in; what cannot be filled in is left out."""
        if isinstance(value, dict):
            members = [(k, self.expand(v, path + (k,))) for k, v in value.items()]
            return {k: v for k, v in members if v is not BROKEN}
        if isinstance(value, list):
            members = [self.expand(v, path + (i,)) for i, v in enumerate(value)]
            return [v for v in members if v is not BROKEN]
        if isinstance(value, str) and '${' in value:
            try:
                filled = expand(value, self.place)
            except ValueError as error:
                self.found(path, references(value), error)
                return BROKEN
            self.hidden[path] = str(value)
            return Loose(filled) if isinstance(value, Loose) else filled
        return value

    def object(self, given, path):
        """The object at the path, {} when there is none; None after saying that it is something
        else."""
        value = given.get(path[-1], {})
        if isinstance(value, dict):
            return value
        self.found(path, value, 'an object { }')
        return None

    def options(self, declared, given, path, others=()):
        """Options: what is given or else the default, each by its kind; unknown keys are
        mistakes."""
        out, names = {}, [o.name for o in declared]
        for key, value in given.items():
            if key not in names and others is not None and key not in others:
                self.say(path + (key,), 'found an unknown key, need one of %s%s' % (
                    ', '.join(sorted(names + list(others))),
                    did_you_mean(key, names + list(others))))
        for option in declared:
            out[option.name] = option.default
            if option.name in given:
                value, where = given[option.name], path + (option.name,)
                self.hide(where, value, getattr(option.kind, 'hides', None))
                try:
                    out[option.name] = option.kind(value)
                    if option.kind is file_path and value:
                        out[option.name] = self.existing(value)
                except ValueError as error:
                    self.found(where, value, error)
            if option.kind is file_template:
                out[option.name] = file_template_in(self.place.folder, out[option.name])
        return Options(out)

    def hide(self, path, value, hides):
        """Remembers what is shown of a secret, or of what was written where it came from
        outside."""
        shown = self.hidden.get(path, value)
        if hides and shown and hides(shown) != shown:
            self.hidden[path] = hides(shown)

    def as_written(self, path, options, what):
        """What is wrong with options that do not go together, without values from outside."""
        for where, shown in self.hidden.items():
            value = len(where) > 2 and where[:2] == path and getattr(options, str(where[2]), None)
            if isinstance(value, str) and value:
                shown = shown if len(where) == 3 else '****'
                what = what.replace(json_text(value), json_text(shown))
        return what

    def existing(self, path):
        """The path seen from the configuration's folder; ValueError when there is no such file."""
        if not self.place.stamp(self.place.path(path)):
            raise ValueError('a file that exists')
        return self.place.path(path)


def check(given, lines, mistakes, place):
    """Settings of what was read; ConfigError with every mistake in it."""
    checker = Checker(place, lines)
    for path, line, what in mistakes:
        checker.lines[path] = line
        checker.say(path, what)
    given = checker.expand(given)
    settings = Settings()
    settings.top = checker.options(TOP_OPTIONS, given, (), ('modules', 'emitters', 'spool', 'log'))
    settings.spool = checker.options(SPOOL_OPTIONS + SPOOL_DISK_OPTIONS,
                                     checker.object(given, ('spool',)) or {}, ('spool',))
    settings.log = checker.options(LOG_OPTIONS, checker.object(given, ('log',)) or {}, ('log',))
    if settings.log.dest != 'stderr':
        settings.log.dest = place.path(settings.log.dest)
    folders = {'modules': settings.top.modules_dir, 'emitters': settings.top.emitters_dir}
    settings.modules = chosen(checker, given, 'modules', MODULES, MODULE_OPTIONS, STOCK, folders)
    settings.emitters = chosen(checker, given, 'emitters', EMITTERS, EMITTER_OPTIONS,
                               (DEFAULT_EMITTER,), folders)
    lend(settings.modules)
    settings.hidden = checker.hidden
    if checker.problems:
        raise ConfigError(*[p for line, p in sorted(checker.problems, key=itemgetter(0))])
    return settings


def chosen(checker, given, what, registry, common, default, folders):
    """[Chosen] of "modules" or "emitters"; the default names when the file says nothing of them."""
    out = []
    members = checker.object(given, (what,)) if what in given else {name: {} for name in default}
    if members == {}:
        checker.say((what,), 'found none, need at least one')
    for name in members or ():
        options = checker.object(members, (what, name))
        if options is not None:
            out += choose(checker, what, name, options, registry, common, folders[what])
    return out


def choose(checker, what, name, options, registry, common, folder):
    """[Chosen] for one member, or [] after saying what is wrong with it."""
    path, place = (what, name), checker.place
    kind = options.get('type') or name
    if not isinstance(kind, str):
        checker.found(path + ('type',), kind, 'text in double quotes')
        return []
    if kind in registry and 'file' not in options:
        problems = len(checker.problems)
        own = registry[kind].options
        checked = checker.options(shared(common, own) + own, options, path)
        if registry is EMITTERS:
            checked.environ = {word: place.environ[word] for word in registry[kind].environ
                               if word in place.environ}
        if hasattr(registry[kind], 'link') and len(checker.problems) == problems:
            try:
                registry[kind].link(checked)    # options that do not go together
            except ValueError as error:
                checker.say(path, checker.as_written(path, checked, str(error)))
        return [Chosen(name, kind, checked)]
    file = options.get('file') or (os.path.join(folder, kind + '.py') if folder else '')
    stamp = isinstance(file, str) and file and place.stamp(place.path(file))
    if not stamp:
        if options.get('file'):
            checker.found(path + ('file',), file, 'a Python file that exists')
        else:
            checker.say(path, 'found an unknown kind %s, need one of %s, or %s%s' % (
                checker.shown(path + ('type',), kind), ', '.join(registry), file or '"file"',
                did_you_mean(kind, registry)))
        return []
    return [Chosen(name, None, checker.options(common + USER_OPTIONS, options, path, None),
                   place.path(file), options, stamp)]


def lend(modules):
    """Hands each module the options of the one it borrows from: the configured, or the default
    ones."""
    for one in modules:
        borrows = MODULES[one.kind].borrows if one.kind else None
        if borrows:
            lender = [m.options for m in modules if m.kind == borrows]
            default = Options({o.name: o.default
                               for o in MODULE_OPTIONS + MODULES[borrows].options})
            setattr(one.options, borrows, (lender or [default])[0])


def read_config(content, place, command=None):
    """Settings of a configuration's text ('' = nothing configured) and the command line on top of
    it."""
    given, reader = {}, JsonReader(content, place.name)
    if not reader.is_blank():
        given = reader.read()
        if not isinstance(given, dict):
            raise ConfigError('%s:1: found no object, need { }' % place.name)
    if command:
        overlay(given, reader.lines, command)
    return check(given, reader.lines, reader.mistakes, place)


# -- the command line on top: -e NAME[,key=value...] ------------------------------------------

class Command:
    """What the command line says of the configuration: [piece], [piece], seconds or None. folder:
    where its relative paths start."""

    def __init__(self, modules=(), emitters=(), interval=None, folder=''):
        self.modules, self.emitters, self.interval = modules, emitters, interval
        self.folder = folder


def overlay(given, lines, command):
    """Puts the command line's modules, emitters and interval into what the file gave."""
    if command.interval is not None:
        given['interval'] = Loose(command.interval)
        lines[('interval',)] = None
    for what, pieces, registry, common in (
            ('modules', command.modules, MODULES, MODULE_OPTIONS),
            ('emitters', command.emitters, EMITTERS, EMITTER_OPTIONS)):
        if pieces:
            old = given.get(what) if isinstance(given.get(what), dict) else {}
            given[what] = members = {}
            lines[(what,)] = None
            for piece in pieces:
                put_piece(piece, what, old, members, lines, registry, common, command.folder)


def put_piece(piece, what, old, members, lines, registry, common, folder):
    """Adds one -e or -m: the file's options of that name, those given on top of them."""
    words = split_commas(piece)
    base = name = words[0].strip()
    count = 1
    while name in members:
        count += 1
        name = '%s-%d' % (base, count)
    options = dict(old[base]) if isinstance(old.get(base), dict) else {}
    for path in [p for p in lines if p[:2] == (what, base)]:
        lines[(what, name) + path[2:]] = lines[path]
    lines.setdefault((what, name), None)
    if name != base:
        options.setdefault('type', base)
    given = options.get('type') or base
    kind = registry.get(given) if isinstance(given, str) else None
    own = kind.options if kind else USER_OPTIONS
    declared = shared(common, own) + own
    for key, value in pairs(words[1:], declared):
        head, dot, rest = key.partition('.')
        if dot and any(o.name == head and o.kind in (mapping, expressions, http_headers)
                       for o in declared):
            options[head] = dict(options[head]) if isinstance(options.get(head), dict) else {}
            options[head][rest] = value
            key = head
        else:
            options[key] = value
        files = {o.name: file_template_in if o.kind is file_template else os.path.join
                 for o in declared if o.kind in (file_path, file_template)}
        if (key == 'file' or key in files) and isinstance(value, Loose) and value:
            options[key] = Loose(files.get(key, os.path.join)(folder, value))
        lines[(what, name, key)] = None
    members[name] = options


def split_commas(piece):
    """The piece at its commas; `\\,` is a comma."""
    return [w.replace('\0', ',') for w in piece.replace('\\,', '\0').split(',')]


def pairs(words, declared):
    """[(key, Loose or True)]; a word without `=` names a boolean option, or continues the value
    before it."""
    out, switches = [], [o.name for o in declared if o.kind is boolean]
    for word in words:
        key, equals, value = word.partition('=')
        key = key.strip()
        if equals and key.replace('_', '').replace('.', '').replace('-', '').isalnum():
            out.append((key, Loose(value)))
        elif out and out[-1][1] is not True and word.strip() not in switches:
            out[-1] = (out[-1][0], Loose(out[-1][1] + ',' + word))
        else:
            out.append((word.strip(), True))
    return out


# -- what is declared, in words: the example and the help -------------------------------------

def example_config():
    """statbadger.conf.example: every module and emitter that exists, every option, with its
    default."""
    out = ['// Configuration of statbadger: JSON that also takes comments and trailing commas.',
           '// Every value is the default; what stands behind // is off, or need not be said.',
           '// "${NAME}", "${NAME:-default}" and "${file:/run/secrets/x}" are filled in.', '{']
    out += example_lines(TOP_OPTIONS[:-3], '    ')
    out += example_members('modules', MODULES, MODULE_OPTIONS, STOCK)
    out += example_members('emitters', EMITTERS, EMITTER_OPTIONS, (DEFAULT_EMITTER,))
    out += example_lines(TOP_OPTIONS[-3:], '    ')
    for name, options in (('spool', SPOOL_OPTIONS), ('log', LOG_OPTIONS)):
        out += ['    %s: {' % json_text(name)] + example_lines(options, '        ') + ['    },']
    return '\n'.join(out + ['}', ''])


def example_lines(options, indent, mark=''):
    """Each option as a comment that says what it is, and the key with its default."""
    lines = []
    for option in options:
        lines += ['%s// %s%s' % (indent, option.help, kind_words(option)),
                  '%s%s%s: %s,' % (indent, mark, json_text(option.name),
                                   json_value(option.default))]
    return lines


def example_members(what, registry, common, active):
    """The lines of "modules" or "emitters": the common options once, then each kind."""
    out = ['    // Each of the %s also takes:' % what]
    out += ['    //   ' + line for line in option_lines(common)]
    out.append('    // One of your own is a class NAME in a file: "NAME": {"file": "NAME.py"}')
    out.append('    %s: {' % json_text(what))
    for name, kind in registry.items():
        mark = '' if name in active else '// '
        out.append('        // ' + kind.help)
        if not kind.options:
            out.append('        %s%s: {},' % (mark, json_text(name)))
            continue
        out.append('        %s%s: {' % (mark, json_text(name)))
        out += example_lines(kind.options, '            ', '// ')
        out.append('        %s},' % mark)
    return out + ['    },']


def option_lines(options):
    """One line per option: `"flush": 0      Gather the ticks ...`."""
    left = [json_text(o.name) + ': ' + json_value(o.default) for o in options]
    wide = min(44, max([len(l) for l in left] or [0]))
    return ['%-*s  %s' % (wide, l, o.help + kind_words(o)) for l, o in zip(left, options)]


def kind_words(option):
    words = [word for word in getattr(option.kind, 'words', ()) if word]
    return ' (%s)' % ', '.join(words) if words else ''


def help_of(name):
    """The options of one module or emitter, in words; ConfigError when there is none of that
    name."""
    for what, registry, common in (('module', MODULES, MODULE_OPTIONS),
                                   ('emitter', EMITTERS, EMITTER_OPTIONS)):
        if name in registry:
            kind = registry[name]
            own = [''] + ['  ' + line for line in option_lines(kind.options)]
            others = [''] + ['  ' + line for line in option_lines(shared(common, kind.options))]
            return '\n'.join(['%s, %s: %s' % (name, what, kind.help)] + own * bool(kind.options)
                             + ['', 'As every %s:' % what] + others)
    names = list(MODULES) + list(EMITTERS)
    raise ConfigError('-h: found %s, need one of %s%s' % (
        json_text(name), ', '.join(names), did_you_mean(name, names)))


# == 3 KERNEL FILES: everything that is asked of the host; root, record, replay =================

MOST_FILE = 16 << 20            # bytes of a kernel file; /proc/stat of a large machine has 300 kB
CHUNK = 65536
READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
HELD_AT_MOST = 64               # descriptors that are kept open between ticks
KEPT_AT_MOST = 2048             # the same of small files, and half of what we may have open
ANSWERS = 'answers'             # the folder of a recording with what no file says
RECORDING = _thread.allocate_lock()
HOST_VARIABLES = (('', 'HOST_ROOT'), ('proc', 'HOST_PROC'), ('sys', 'HOST_SYS'),
                  ('etc', 'HOST_ETC'))          # of the environment, as other agents have them


class Tree:
    """The host's files under a root: read(path), list(path), and the time of the latest reading.

    Paths begin with proc/ or sys/ (or etc/). roots: {'proc': '/proc', 'sys': '/sys', '': '/'}.
    hold: keep descriptors and read them again at 0 (only true of the running kernel's own files: a
    file of a frozen host may be replaced). monotonic: the clock that stamps .when. frozen: a
    recording, so the kernel that runs here is not asked. Owns the held descriptors and a netlink
    socket; close() gives them back.
    """

    def __init__(self, roots, monotonic, hold=False, frozen=False):
        self.roots, self.monotonic, self.hold, self.frozen = roots, monotonic, hold, frozen
        self.held, self.when, self.bad_lines = {}, 0.0, 0
        self.record_to = self.record_next = None        # folders: of this tick, and the next one
        self.unrecorded = None                          # the OSError that ended it
        self.asker, self.statvfs = None, os.statvfs
        self.fresh = {}  # what was read in this tick: several modules share a file
        self.events = None                              # Destroyed, once it was asked for
        self.foreign = not hold
        self.room = min(KEPT_AT_MOST, os.sysconf('SC_OPEN_MAX') // 2)

    @property
    def afresh(self):
        """Whether nothing may be left out of this tick's readings because it was read before: they
        are recorded, or come from a recording."""
        return self.frozen or self.record_to is not None

    def begin(self):
        """A tick begins: everything is read anew."""
        self.fresh.clear()
        self.record_to = None if self.unrecorded else self.record_next

    def path(self, name):
        """Where the file is: proc/stat -> /host/proc/stat."""
        if name.startswith('proc/'):
            return self.roots['proc'] + name[4:]
        if name.startswith('sys/'):
            return self.roots['sys'] + name[3:]
        top, _, rest = name.partition('/')
        if top in self.roots:
            return os.path.join(self.roots[top], rest)
        return os.path.join(self.roots[''], name)

    def read(self, name, seldom=False):
        """All bytes of a file, to its end; raises Absent when there is none, it is empty or
        unreadable. seldom: no descriptor is kept for it.

        seq_file hands out whole lines, some 4 kB a read, whatever the buffer: one read of
        /proc/net/dev with 200 interfaces gives a part that looks whole. So: until nothing comes.
        """
        if name in self.fresh:
            self.when, data = self.fresh[name]
            return data
        if self.foreign and name.startswith('proc/net/'):
            try:
                # proc/net is a link to the reader's own
                return self.read('proc/1/net/' + name[9:], seldom)
            except Absent:
                if self.borrowed():
                    raise
        try:
            data = self.contents(name, seldom)
        except OSError as error:
            raise Absent('%s: %s' % (self.path(name), error.strerror or error))
        self.when = self.monotonic()
        if not data:
            raise Absent('%s: empty' % self.path(name))
        if self.record_to:
            self.record(self.keep, name, data)
        self.fresh[name] = self.when, data
        return data

    def contents(self, name, seldom):
        if name in self.held:
            try:
                return read_to_end(self.held[name])
            except OSError:                     # lxcfs restarted, a device went: open it anew, once
                os.close(self.held.pop(name))
        fd = os.open(self.path(name), READING)
        try:
            data = read_to_end(fd)
            if self.hold and not seldom and len(self.held) < HELD_AT_MOST:
                self.held[name], fd = fd, None
            return data
        finally:
            if fd is not None:
                os.close(fd)

    def glance(self, name, most=4096, keep=False):
        """The first bytes of a small file that may be gone at any moment, such as proc/PID/stat:
        one read. Raises OSError, and what it says is worth knowing: EACCES may be a lack of rights,
        ENOENT and ESRCH are the end of a process. keep: for a file of a cgroup, that takes six
        times as long to open as to read: it stays open, where there is room, until forget()."""
        fd, data = keep and self.held.get(name), None
        if fd:
            try:
                data = os.pread(fd, most, 0)
            except OSError:                     # ENODEV: it is gone, and another may be there
                os.close(self.held.pop(name))
        if data is None:
            fd = os.open(self.path(name), READING)
            try:
                data = os.read(fd, most)
                # A file of a kernel says that it has no size; one of a frozen host may be replaced.
                if (keep and data and len(self.held) < self.room
                        and not os.fstat(fd).st_size):
                    self.held[name], fd = fd, None
            finally:
                if fd is not None:
                    os.close(fd)
        if self.record_to:
            self.record(self.keep, name, data)
        return data

    def forget(self, names):
        """Closes what glance() has kept open of these."""
        for name in names:
            if name in self.held:
                os.close(self.held.pop(name))

    def folders(self, name, known=None):
        """(number, links, names) of a folder: its inode, and the folders that it has in it, sorted;
        raises OSError. known: what this gave last, given back without a look inside when it is the
        same folder and has as many links: one for its name, one for its `.` and one for the `..` of
        each folder in it. That one of these was taken for another, those who ask for each see."""
        path = self.path(name)
        found = os.stat(path)
        number, links = found.st_ino, found.st_nlink
        if (known and known[0] == number and known[1] == links == len(known[2]) + 2
                and not self.afresh):
            return known
        names = sorted([entry.name for entry in os.scandir(path)
                        if entry.is_dir(follow_symlinks=False)])
        if self.record_to:
            self.record(self.keep_entries, name, list(map(os.fsencode, names)))
        return number, links, names

    def link(self, name):
        """Where a link such as proc/PID/ns/net leads to, as bytes; raises OSError."""
        target = os.readlink(os.fsencode(self.path(name)))
        if self.record_to:
            self.record(self.keep_link, name, target)
        return target

    def answer(self, name, ask):
        """What ask() gives, as bytes, where it is no file that answers: netlink, statvfs, the
        socket of a daemon. Of a recording: what it gave then, under that name in the folder
        ANSWERS. Raises Absent, also for an OSError of ask()."""
        name = '%s/%s' % (ANSWERS, name)
        try:
            if self.frozen or (self.foreign and os.path.exists(self.path(name))):
                data = self.contents(name, True)
            else:
                data = ask()
        except OSError as error:
            raise Absent('%s: %s' % (name, error.strerror or error))
        if self.record_to:
            self.record(self.keep, name, data)
        return data

    def listen(self):
        """From now on what the kernel says of TCP sockets that end is kept for destroyed(), if that
        can be."""
        if self.events is None and not self.frozen:
            try:
                self.ends()
            except (Absent, OSError):           # destroyed() says it
                pass

    def ends(self):
        if self.events is None:
            own_network(self)
            self.events = Destroyed()
        return self.events

    def destroyed(self):
        """What Destroyed says since the last tick, as bytes; asked at most once a tick. Raises
        Absent."""
        return self.ask('destroyed', lambda tree: tree.answer(
            'sock_diag/destroyed', lambda: tree.ends().read()))

    def page_size(self):
        """Bytes of a page of memory, or a hole."""
        try:
            return int(self.answer('page_size', lambda: b'%d' % os.sysconf('SC_PAGE_SIZE')))
        except Absent:
            return ABSENT

    def list(self, name):
        """The names in a folder, sorted, as bytes; raises Absent."""
        try:
            names = sorted(os.listdir(os.fsencode(self.path(name))))
        except OSError as error:
            raise Absent('%s: %s' % (self.path(name), error.strerror or error))
        if self.record_to:
            self.record(self.keep_entries, name, names)
        return names

    def number(self, name):
        """The inode of a file or folder, which tells it from another that has its name; raises
        Absent. Of proc/PID/net/dev it is the same for all processes of a network namespace, and may
        be seen by everybody, other than proc/PID/ns/net."""
        def ask():
            return b'%d' % os.stat(self.path(name)).st_ino
        try:                                    # a folder of its own: another may lie in this one
            return int(self.answer('inodes/%s/.inode' % name, ask) if self.afresh or self.foreign
                       else ask())
        except (OSError, ValueError) as error:
            raise Absent('%s: %s' % (self.path(name), getattr(error, 'strerror', 'no number')))

    def borrowed(self):
        """Whether these are the files of a running kernel at another place, so that `self` in them
        is us, in a container perhaps, and not the host: in a recording that link leads nowhere."""
        return (self.foreign and not self.frozen
                and os.path.exists(self.path('proc/self/ns/pid')))

    def numbers(self, name):
        """[int] of the names in a folder that are numbers, in order: processes, threads,
        descriptors; raises OSError. They are recorded as empty folders."""
        found = sorted([int(n) for n in os.listdir(self.path(name)) if n.isdecimal()])
        if self.record_to:
            self.record(self.keep_numbers, name, found)
        return found

    def count(self, name):
        """How many files a process has open, name being its proc/PID/fd; raises OSError. Since
        Linux 6.2 that is the size of the folder, which others than its owner may know too."""
        if self.hold and not self.record_to:
            size = os.stat(self.path(name)).st_size
            if size:
                return size
        return len(self.numbers(name))

    def ask(self, what, question):
        """question(tree), asked at most once a tick."""
        if what not in self.fresh:
            self.fresh[what] = 0.0, question(self)
        return self.fresh[what][1]

    def ask_aside(self, questions):
        """{key: answer} of {key: function} whose answers may never come; see Asker."""
        if self.asker is None:
            self.asker = Asker()
        return self.asker.ask(questions)

    def bad_line(self):
        """Counts a line that no use can be made of."""
        self.bad_lines += 1

    def record(self, keep, name, what):
        """Copies what was read; where that cannot be, nothing more is recorded, and .unrecorded
        says why. One at a time: modules in threads of their own read, and make, the same folders.
        """
        try:
            with RECORDING:
                keep(os.path.join(os.fsencode(self.record_to), os.fsencode(name)), name, what)
        except OSError as error:
            self.record_to, self.unrecorded = None, error

    def keep(self, copy, name, data):
        """A file, under the name it was asked for."""
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        with open(copy, 'wb') as file:
            file.write(data)

    def keep_link(self, copy, name, target):
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        if os.path.isdir(copy) and not os.path.islink(copy):    # counted, and now asked for
            os.rmdir(copy)
        if not os.path.lexists(copy):
            os.symlink(target, copy)

    def keep_numbers(self, copy, name, numbers):
        os.makedirs(copy, exist_ok=True)
        for number in numbers:
            target = os.path.join(copy, b'%d' % number)
            if not os.path.lexists(target):
                os.makedirs(target, exist_ok=True)      # another module may be about it too

    def keep_entries(self, copy, name, entries):
        """Listed names: links stay links, all else becomes an empty folder."""
        os.makedirs(copy, exist_ok=True)
        for entry in entries:
            source = os.path.join(os.fsencode(self.path(name)), entry)
            target = os.path.join(copy, entry)
            if os.path.islink(source):
                try:
                    self.keep_link(target, name, os.readlink(source))
                except FileNotFoundError:       # it went: a process closed a file, or ended
                    pass
            elif not os.path.lexists(target):
                os.makedirs(target)

    def close(self):
        while self.held:
            os.close(self.held.popitem()[1])
        if self.asker:
            self.asker.close()
            self.asker = None
        if self.events is not None:
            self.events.close()
            self.events = None


def read_to_end(fd):
    """All bytes from 0; OSError when there are more than MOST_FILE."""
    whole = os.pread(fd, CHUNK, 0)
    more = whole and os.pread(fd, CHUNK, len(whole))
    if not more:
        return whole
    parts, size = [whole], len(whole)
    while more:
        parts.append(more)
        size += len(more)
        if size > MOST_FILE:
            raise OSError(errno.EFBIG, 'more than %d bytes' % MOST_FILE)
        more = os.pread(fd, CHUNK, size)
    return b''.join(parts)


def host_tree(root, environ, monotonic):
    """The Tree of this host, or of the one that --root or the HOST_VARIABLES name."""
    base = root or environ.get('HOST_ROOT') or '/'
    roots = roots_under(base)
    for top, name in HOST_VARIABLES:
        if top and not root and environ.get(name):
            roots[top] = environ[name]
    own = os.path.realpath(roots['proc']) == '/proc' and os.path.realpath(base) == '/'
    return Tree(roots, monotonic, hold=own)


def roots_under(base):
    return {'': base, 'proc': os.path.join(base, 'proc'), 'sys': os.path.join(base, 'sys')}


def elsewhere(tree):
    """The roots that are not this system's own, as text: '/host/proc, /host/sys'; or ''."""
    return ', '.join([tree.roots[top] for top in ('', 'proc', 'sys')
                      if os.path.realpath(tree.roots[top]) != '/' + top])


def snapshots(folder):
    """[(ms, path)] of a recording: its folders that are named by a time, in order."""
    out = []
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if is_decimal(name) and os.path.isdir(path):
            out.append((int(round(float(name) * 1000)), path))
    return sorted(out)


def is_decimal(word):
    """Whether the bytes or text are ASCII digits with at most one point; float() takes much else
    besides."""
    word = os.fsencode(word)
    return word.replace(b'.', b'', 1).isdigit() and len(word) < 40


# -- questions that may never be answered -----------------------------------------------------

RANG, OTHER = 1, 2  # what ended a wait: the bell, or the descriptor that was listened to


class Bell:
    """A pipe that wakes one thread: poll() on it follows the monotonic clock, which lock time-outs
    before Python 3.9 do not. Owns two descriptors; close() gives them back."""

    def __init__(self):
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        os.set_blocking(self.writing, False)
        self.poll, self.others = select.poll(), ()
        self.poll.register(self.reading, select.POLLIN)

    def ring(self):
        try:
            os.write(self.writing, b'!')
        except OSError:
            pass                                # full: it rings already

    def wait(self, seconds=None):
        """RANG, OTHER or both, as soon as one is true; 0 after so many seconds (None: never)."""
        what = 0
        for fd, event in self.poll.poll(None if seconds is None else max(0, seconds * 1000)):
            what |= RANG if fd == self.reading else OTHER
        if what & RANG:
            os.read(self.reading, 4096)
        return what

    def listen(self, fds=()):
        """From now on wait() also ends when one of these descriptors has input or breaks."""
        if fds != self.others:
            for fd in self.others:
                self.poll.unregister(fd)
            for fd in fds:
                self.poll.register(fd, select.POLLIN)
            self.others = fds

    def close(self):
        os.close(self.reading)
        os.close(self.writing)


class Asker:
    """Asks what may never be answered, such as how full a file system is whose server is gone, in a
    thread that it keeps. A question that hangs keeps its thread until it is answered, and is not
    asked again before: there is one thread at most for each; another goes on with the rest.

    Owns its threads, a bell, and one for the thread that waits. close() lets the threads go, those
    that hang as soon as they come back; the last one closes the bell.
    """
    SOON = 0.05                 # seconds without an answer before another thread takes the rest
    PATIENCE = 1.0              # seconds that a question is waited for, until it was late once
    MOST_HUNG = 100             # threads; with more, only what was answered last time is asked

    def __init__(self):
        self.lock, self.answered = _thread.allocate_lock(), Bell()
        self.todo, self.begun, self.answers = [], {}, {}
        self.in_time = {}                       # key: whether it was answered in time, last time
        self.resting, self.threads, self.closed = None, 0, False

    def ask(self, questions):
        """{key: the answer, the exception, or None while it hangs} of {key: question}, a function;
        a key is left out when no thread could be had for it."""
        late = {key: self.answers.pop(key) for key in list(self.answers)}
        self.answered.wait(0)
        self.in_time = {k: v for k, v in self.in_time.items() if k in questions}
        room = len(self.begun) < self.MOST_HUNG
        asked = {key: None for key in questions
                 if key not in self.begun and (room or self.in_time.get(key))}
        if asked:
            self.wait_for(asked, questions)
        out = {}
        for key in questions:
            hangs = key in self.begun or self.in_time.get(key) is False
            if key in self.answers:
                out[key], self.in_time[key] = self.answers.pop(key), key in asked
            elif key in late or hangs:
                out[key], self.in_time[key] = late.get(key), False
        return out

    def wait_for(self, asked, questions):
        """Has these asked, first those that were answered in time last time, and waits until all
        are answered, or nothing came for PATIENCE; for SOON when only those are left that were
        late last time, of which each gets a thread at once."""
        slow = [key for key in asked if self.in_time.get(key) is False]
        new = [key for key in asked if key not in self.in_time]
        quick = [key for key in asked if self.in_time.get(key)] + new
        self.todo.extend([(key, questions[key]) for key in (quick + slow)[::-1]])
        for key in slow + quick[:1]:
            self.employ()
        before, since, rang = None, 0.0, 0
        while True:
            left = [key for key in asked if key not in self.answers]
            state, now = (len(left), len(self.todo)), time.monotonic()
            if state != before:
                before, since = state, now
            elif self.todo and not rang and len(self.begun) < self.MOST_HUNG:
                self.employ()
            patient = any([self.in_time.get(key) is not False for key in left])
            if not left or now - since >= (self.PATIENCE if patient else self.SOON):
                break
            rang = self.answered.wait(self.SOON)
        del self.todo[:]

    def employ(self):
        """Wakes the thread that rests, or starts another; where there is none to be had, those that
        are at work may get to it."""
        with self.lock:
            if self.resting:
                self.resting.ring()
                self.resting = None
                return
            self.threads += 1
        try:
            _thread.start_new_thread(self.work, ())
        except RuntimeError:
            with self.lock:
                self.threads -= 1

    def work(self):
        """One thread: asks what is to be asked, then rests, unless another one does."""
        bell = None
        while True:
            while self.todo:
                self.ask_next()
            with self.lock:
                self.answered.ring()
                if self.closed or self.resting:
                    break
                try:
                    bell = bell or Bell()
                except OSError:                 # no descriptors left: the next one will be new
                    break
                self.resting = bell
            bell.wait()
        with self.lock:
            self.threads -= 1
            if self.closed and not self.threads:
                self.answered.close()
        if bell:
            bell.close()

    def ask_next(self):
        try:
            key, question = self.todo.pop()
        except IndexError:                      # another thread has it
            return
        self.begun[key] = True
        try:
            answer = question()
        except Exception as error:              # whoever asked is told
            answer = error
        self.begun.pop(key, None)
        self.answers[key] = answer

    def close(self):
        with self.lock:
            self.closed = True
            if self.resting:
                self.resting.ring()
            if not self.threads:
                self.answered.close()


# -- what is mounted where --------------------------------------------------------------------

class Mount:
    """A line of proc/PID/mountinfo (proc_pid_mountinfo(5)); its bytes as they are meant, the octal
    escapes undone. number: b'8:1'; root: what of that file system is mounted; point: where."""
    __slots__ = ('number', 'root', 'point', 'options', 'type', 'source', 'super_options')

    def __init__(self, number, root, point, options, type, source, super_options):
        self.number, self.root, self.point, self.options = number, root, point, options
        self.type, self.source, self.super_options = type, source, super_options


def mounts(tree, own=False):
    """[Mount] as the host's first process sees them, or else as we do; own: as we do. Raises
    Absent. Where we are a guest and see the host's below our root for it, they are those, called as
    they are there.

    `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`: between the
    sixth field and the hyphen stand any number of others.
    """
    name, data = mountinfo(tree, own)
    out = []
    for line in data.split(b'\n'):
        left, hyphen, right = line.partition(b' - ')
        words, more = left.split(b' '), right.split(b' ')
        if len(words) >= 6 and len(more) >= 3:
            out.append(Mount(words[2], unescaped(words[3]), unescaped(words[4]),
                             words[5].split(b','), more[0], unescaped(more[1]),
                             more[2].split(b',')))
        elif line:
            tree.bad_line()
    root = os.fsencode(tree.roots['']).rstrip(b'/')
    if own or name != 'proc/self/mountinfo':
        return out
    if any(mount.point == root for mount in out):
        out = [mount for mount in out if (mount.point + b'/').startswith(root + b'/')]
        for mount in out:
            mount.point = mount.point[len(root):] or b'/'
    elif tree.borrowed():
        raise Absent('%s: not to be read, and those of the host cannot be seen here' % (
            tree.path('proc/1/mountinfo')))
    return out


def mountinfo(tree, own=False):
    """(name, bytes) of the file that mounts() reads; raises Absent."""
    for name in ('proc/1/mountinfo', 'proc/self/mountinfo')[own:]:
        try:
            return name, tree.read(name, True)
        except Absent as error:
            absent = error
    raise absent


def unescaped(word):
    """Bytes without the octal escapes of blank, tab, line end, `\\` (and `#`): mangle_path() of
    the kernel."""
    first, *parts = word.split(b'\\')
    out = [first]
    for part in parts:
        code = part[:3]
        octal = len(code) == 3 and not code.strip(b'01234567') and code < b'400'
        out.append(bytes([int(code, 8)]) + part[3:] if octal else b'\\' + part)
    return b''.join(out)


def escaped(word):
    """The inverse of unescaped()."""
    for byte in (b'\\', b' ', b'\t', b'\n'):
        word = word.replace(byte, b'\\%03o' % byte[0])
    return word


def volumes(tree, wanted):
    """What statvfs() says of these Mounts, a line for each that can be reached, as recordings keep
    them: `/home 4096 2621440 655360 524288 655360 650000`, the sizes in blocks of the first number;
    `/home stuck` of one that does not answer, `/home error 13` with an errno."""
    questions = {(mount.number, mount.point): lambda mount=mount: volume(tree, mount)
                 for mount in wanted}
    lines = []
    for key, answer in tree.ask_aside(questions).items():
        if answer is None:
            answer = b'stuck'
        elif isinstance(answer, OSError):
            answer = b'error %d' % (answer.errno or 0)
        elif isinstance(answer, Exception):
            raise answer
        lines.append(b'%s %s\n' % (escaped(key[1]), answer))
    return b''.join(lines)


SUBVOLUMES = (b'btrfs', b'bcachefs')    # each of them has a device number of its own


def volume(tree, mount):
    """b'4096 2621440 655360 524288 655360 650000': block size, blocks, those free, those that users
    may have, inodes, those free. Raises OSError; EXDEV when what is to be seen at its mount point
    is another file system: we are in another mount namespace, or it is covered.

    It is looked for below our root for the host, then where the host's first process has it: that
    way leads into its mount namespace, for those who may trace it (CAP_SYS_PTRACE).
    """
    first, copy = None, tree.foreign and not tree.borrowed()
    for root in (tree.roots[''], tree.path('proc/1/root')):
        path = os.fsencode(root).rstrip(b'/') + mount.point
        try:
            if not is_there(path, mount, copy):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            s = tree.statvfs(path)
        except OSError as error:
            first = first or error
        else:
            return b'%d %d %d %d %d %d' % (s.f_frsize or s.f_bsize, s.f_blocks, s.f_bfree,
                                           s.f_bavail, s.f_files, s.f_ffree)
    raise first


def is_there(path, mount, copy):
    """Whether the path leads to that mount; raises OSError. copy: the root may be the copy of a
    host in some folder, and nothing is mounted there."""
    status = os.lstat(path)
    number = b'%d:%d' % (os.major(status.st_dev), os.minor(status.st_dev))
    if number == mount.number and not (copy and mount.point == b'/'):
        return True
    above = os.lstat(path + b'/..')
    return (status.st_dev != above.st_dev or status.st_ino == above.st_ino) and (
        number == mount.number or mount.type in SUBVOLUMES)


# -- one question to a daemon: a GET over a unix socket (RFC 9112) ------------------------------

MOST_ANSWER = 1 << 20            # bytes of an answer, its header included


def socket_get(path, target, seconds, monotonic):
    """(status, body) of what the daemon at that socket answers, whatever the status. seconds: for
    all of it, however slowly it comes. Raises OSError, also for what is no answer, is cut short or
    has more than MOST_ANSWER bytes."""
    end, data, poll = monotonic() + seconds, bytearray(), select.poll()
    request = ('GET %s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: statbadger\r\n'
               'Accept: application/json\r\nConnection: close\r\n\r\n' % target).encode()
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        socket_connect(sock, path)
        poll.register(sock.fileno(), select.POLLOUT)
        while request:
            wait_until(end, poll, monotonic)
            request = request[sock.send(request):]
        poll.modify(sock.fileno(), select.POLLIN)
        while True:
            wait_until(end, poll, monotonic)
            more = sock.recv(CHUNK)
            data += more
            if len(data) > MOST_ANSWER:
                raise OSError(errno.EFBIG, 'an answer of more than %d bytes' % MOST_ANSWER)
            found = http_answer(data, not more)
            if found:
                return found
    finally:
        sock.close()


def socket_connect(sock, path):
    """Connects, at once or not at all; OSError says where to, and whose right it is."""
    try:
        sock.connect(path)
    except OSError as error:
        what = '%s: %s' % (path, error.strerror or error)
        if error.errno == errno.EACCES and os.path.exists(path):
            what += '; it takes root or the group %d' % os.stat(path).st_gid
        raise type(error)(error.errno, what)


def wait_until(end, poll, monotonic):
    """Waits for what is polled; OSError when the time is over."""
    rest = end - monotonic()
    if rest <= 0 or not poll.poll(rest * 1000 + 1):
        raise OSError(errno.ETIMEDOUT, 'no answer in time')


def http_answer(data, ended):
    """(status, body) of the bytes of an answer; None while some of it is still to come. Raises
    OSError when it is none, or ended too early."""
    head, blank, body = bytes(data[:CHUNK]).partition(b'\r\n\r\n')
    if not b'HTTP/1.'.startswith(head[:7]) or not blank and (ended or len(data) >= CHUNK):
        raise OSError(errno.EBADMSG, 'no answer of HTTP')
    if not blank:
        return None
    lines = head.decode('latin-1').split('\r\n')
    status, fields = lines[0][9:12], {}
    for line in lines[1:]:
        name, colon, value = line.partition(':')
        fields[name.strip().lower()] = value.strip().lower()
    length = fields.get('content-length', '0')
    if not (status.isdigit() and length.isdigit() and len(length) < 10):
        raise OSError(errno.EBADMSG, 'no answer of HTTP')
    body, whole = data[len(head) + 4:], ended
    if fields.get('transfer-encoding', 'identity') != 'identity':
        body = chunks_joined(bytes(body)) if ended or body.endswith(b'\r\n\r\n') else None
        whole = body is not None
    elif 'content-length' in fields:
        whole, body = len(body) >= int(length), body[:int(length)]
    if ended and not whole:
        raise OSError(errno.EBADMSG, 'an answer that ends too early')
    return (int(status), bytes(body)) if whole else None


def chunks_joined(data):
    """What chunks hold (`4\\r\\nabcd\\r\\n0\\r\\n\\r\\n`, section 7.1 there), or None
    when the last one is not there yet; raises OSError."""
    out, at = [], 0
    while True:
        line, end, rest = data[at:at + 100].partition(b'\r\n')
        word = line.partition(b';')[0].strip().lower()
        if not end and len(data) - at < 100:
            return None
        if not word or len(word) > 8 or word.strip(b'0123456789abcdef'):
            raise OSError(errno.EBADMSG, 'no chunks of HTTP')
        at += len(line) + 2
        size = int(word, 16)
        if not size:
            return b''.join(out)
        out.append(data[at:at + size])
        at += size + 2


# -- who this host is -------------------------------------------------------------------------

def host_identity(tree, configured, before=None):
    """{datacenter ... ipv6}: what is configured, else what the host says of itself, else ''. What
    cannot be asked this time is as it was before."""
    identity = dict(configured)
    for key, question in (('hostname', host_name), ('ipv4', ipv4_address), ('ipv6', ipv6_address)):
        if not identity[key]:
            try:
                identity[key] = question(tree)
            except Absent:
                identity[key] = before[key] if before else ''
    return identity


def host_name(tree):
    """The kernel's answer; under a foreign root etc/hostname comes first. Raises Absent."""
    if tree.foreign:
        try:
            name = first_line(tree.read('etc/hostname', True))
            if name:
                return name
        except Absent:
            pass
    return first_line(tree.read('proc/sys/kernel/hostname', True))


def first_line(data):
    """The first line that says something (hostname(5): comments are allowed), or ''."""
    for line in data.decode('utf-8', 'replace').replace('\0', '').split('\n'):
        if line.strip() and not line.startswith('#'):
            return line.strip()
    return ''


def default_route(tree):
    """(interface, [(network, mask)]) of the default route with the lowest metric, the network of
    its gateway first; (None, []) without one. Raises Absent.

    proc/net/route: `eth0 00000000 0102A8C0 0003 0 0 100 00000000 0 0 0`, addresses as the machine
    keeps them.
    """
    best, routes = None, []
    for line in tree.read('proc/net/route', True).split(b'\n')[1:]:
        words = line.split()
        try:
            destination, gateway, flags, mask = (int(words[i], 16) for i in (1, 2, 3, 7))
            metric = int(words[6])
        except (ValueError, IndexError):
            continue
        if not flags & 1 or flags & 0x200:      # not up, or there to reject
            continue
        if not destination and not mask:
            best = min(best or (metric, words[0], gateway), (metric, words[0], gateway))
        elif not flags & 2:  # no gateway: the interface is in that network itself
            routes.append((words[0], destination, mask))
    if not best:
        return None, []
    metric, interface, gateway = best
    networks = [(network, mask) for name, network, mask in routes if name == interface]
    return interface, sorted(networks, key=lambda n: gateway & n[1] != n[0])


def ipv4_address(tree):
    """The first local address that lies in one of the networks, in their order; or the only one
    there is, for a cloud's default route may lead to a gateway in no network of ours; or ''."""
    interface, networks = default_route(tree)
    addresses = local_addresses(tree) if interface else []
    for network, mask in networks:
        for word, value in addresses:
            if value & mask == network:
                return word
    return addresses[0][0] if len(addresses) == 1 else ''


def local_addresses(tree):
    """[(text, int as the machine keeps it)] of proc/net/fib_trie, each once, loopback left out.

    `           |-- 10.0.2.15` and below it `              /32 host LOCAL`
    """
    lines, found = tree.read('proc/net/fib_trie', True).split(b'\n'), {}
    for line, below in zip(lines, lines[1:]):
        words = line.split()
        if words[:1] == [b'|--'] and below.split() == [b'/32', b'host', b'LOCAL']:
            try:
                value = _socket.inet_aton(words[1].decode())
            except (OSError, ValueError, IndexError):
                continue
            if value[0] != 127:
                found[words[1].decode()] = struct.unpack('=I', value)[0]
    return list(found.items())


def ipv6_address(tree):
    """The first global address in proc/net/if_inet6 that is meant to stay, or ''.

    `20010db8000000000000000000000001 02 40 00 80 eth0`: address, index, prefix, scope, flags, name.
    """
    interface = default_route(tree)[0]
    for line in tree.read('proc/net/if_inet6', True).split(b'\n'):
        words = line.split()
        try:
            passing = int(words[4], 16) & 0x61          # temporary, deprecated, tentative
            if words[5] == interface and words[3] == b'00' and not passing:
                return _socket.inet_ntop(_socket.AF_INET6, bytes.fromhex(words[0].decode()))
        except (ValueError, IndexError, OSError):
            pass
    return ''


def narrow_counters(tree):
    """Whether the kernel counts in 32 bits: VmallocTotal is under 4 GiB, or there is only LowTotal,
    which 64-bit kernels before 2.6.19 print too; None = unknown."""
    try:
        data = b'\n' + tree.read('proc/meminfo')
    except Absent:
        return None
    start = data.find(b'\nVmallocTotal:')
    words = data[start + 14:].split(None, 1) if start >= 0 else []
    if words and words[0].isdigit():
        return int(words[0]) < 4 << 20
    return b'\nLowTotal:' in data


# -- netlink: the host's TCP sockets (sock_diag(7); linux/inet_diag.h, linux/tcp.h) -------------

SOCK_DIAG = 4                   # NETLINK_SOCK_DIAG
BY_FAMILY = 20                  # SOCK_DIAG_BY_FAMILY: the request, and each socket in what comes
NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 2, 3, 4
DUMP = 0x301                    # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
INET_DIAG_INFO = 2              # the attribute that holds a struct tcp_info
DESTROYED = 1 << 0 | 1 << 2     # SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY (since 4.2)
TCP_STATES = ('established', 'syn_sent', 'syn_recv', 'fin_wait1', 'fin_wait2', 'time_wait',
              'close', 'close_wait', 'last_ack', 'listen', 'closing')    # from 1 (net/tcp_states.h)
FAMILIES = (_socket.AF_INET, ''), (_socket.AF_INET6, '6')

NETLINK_READ = 65536            # the kernel fills 32 kB of it at most
PIECE = 1 << 20                 # bytes of a dump that are looked at together
NETLINK_PATIENCE = 5.0          # seconds that a dump may take; a million sockets take two
EVENT_BUFFER = 16 << 20         # bytes; the kernel takes 1,280 of twice that for each socket
MOST_EVENTS = 12 << 20          # bytes that are taken at once; what is more waits
SO_RCVBUFFORCE, SO_MEMINFO = 33, 55
MESSAGE_HEAD = '=IHHII'         # nlmsghdr: length, type, flags, sequence, port
END_SIZE = 20                   # that, and an int: an errno below zero, or 0


def sockets_asked(family, states, info):
    """The request for all TCP sockets of a family that are in one of the states (numbers)."""
    return b''.join([
        struct.pack(MESSAGE_HEAD, 72, BY_FAMILY, DUMP, 1, 0),
        struct.pack('=BBBB',                    # inet_diag_req_v2
                    family,                     # sdiag_family
                    _socket.IPPROTO_TCP,        # sdiag_protocol
                    info << INET_DIAG_INFO - 1,         # idiag_ext
                    0),                         # pad
        struct.pack('=I', sum(1 << state for state in states)),         # idiag_states
        bytes(48)])                             # inet_diag_sockid: of a dump it says nothing


def tcp_sockets(tree, name, family, states, info=False):
    """The pieces, each of whole messages, of what the kernel says of the TCP sockets of a family,
    as `name` in a recording; raises Absent, also between two pieces. info: with tcp_info.

    So large a dump is no picture of one moment: the kernel goes on with it as it is read, and a
    socket that comes or goes meanwhile may be in it, or not, or twice. NLM_F_DUMP_INTR, which
    other dumps have for that, says nothing more.
    """
    asked, number, piece = None, 0, b''
    try:
        while not dump_end(piece):
            if asked is None:
                asked = dump(tree, sockets_asked(family, states, info))
            word = 'sock_diag/' + name + ('.%d' % number if number else '')
            piece = tree.answer(word, lambda: next(asked))
            yield piece
            number += 1
    finally:
        if asked is not None:
            asked.close()


def dump(tree, request):
    """Pieces of what the kernel answers; raises Absent or OSError. Owns a socket until its end."""
    own_network(tree)
    deadline, parts, size = time.monotonic() + NETLINK_PATIENCE, [], 0
    link = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, SOCK_DIAG)
    try:
        link.settimeout(NETLINK_PATIENCE)
        link.send(request)
        end = None
        while not end:
            parts.append(link.recv(NETLINK_READ))
            size += len(parts[-1])
            end = dump_end(parts[-1])
            if end and end[0] < 0:
                raise dump_trouble(-end[0])
            if end or size >= PIECE:
                yield b''.join(parts)
                parts, size = [], 0
            if not end and time.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, 'no end after %g s' % NETLINK_PATIENCE)
    finally:
        link.close()


def dump_end(data):
    """(errno below zero, or 0,) when these messages are the end of a dump, else None."""
    for at in (len(data) - END_SIZE, 0):        # an error comes alone, with the request behind it
        if 0 <= at <= len(data) - END_SIZE:
            length, kind, flags, sequence, port, value = struct.unpack_from('=IHHIIi', data, at)
            if kind == NLMSG_DONE and length == END_SIZE and at + length == len(data):
                return (value,)
            if kind == NLMSG_ERROR and not at and length <= len(data):
                return (value or -errno.EPROTO,)
    return None


def dump_trouble(number):
    """The error that the kernel answers a dump with."""
    if number in (errno.ENOENT, errno.EOPNOTSUPP):
        return Absent('the kernel cannot be asked for TCP sockets: it has no tcp_diag, or may not '
                      'load that module now (modprobe tcp_diag)')
    return OSError(number, os.strerror(number))


def own_network(tree):
    """Raises Absent when the tree is of a host whose network is not ours, or may not be: netlink
    speaks of the network namespace that we are in."""
    if not tree.foreign:
        return
    try:
        theirs, ours = tree.link('proc/1/ns/net'), os.readlink(b'/proc/self/ns/net')
    except OSError:                             # it takes CAP_SYS_PTRACE
        theirs = diag_socket(tree.read('proc/net/netlink', True))
        fd = os.open('/proc/self/net/netlink', os.O_RDONLY | os.O_CLOEXEC)
        try:
            ours = diag_socket(read_to_end(fd))
        finally:
            os.close(fd)
    if theirs != ours or not ours:
        raise Absent('the sockets of %s are in another network namespace than this program: run '
                     'it with the network of the host (--network=host)' % tree.roots['proc'])


def diag_socket(data):
    """The inode of the kernel's own socket of SOCK_DIAG, of which each network namespace has
    another one; None when proc/net/netlink does not tell.

    `00000000a973f22f 4   0          00000000 0        0        0     2        0        1507`
    """
    for line in data.split(b'\n'):
        words = line.split()
        if words[1:3] == [b'%d' % SOCK_DIAG, b'0'] and len(words) >= 10:
            return words[9]
    return None


class Destroyed:
    """What the kernel says of each TCP socket that it destroys, its last counters among it. Owns a
    netlink socket; close() gives it back. Raises OSError, also when the kernel is older than 4.2.
    """

    def __init__(self):
        self.dropped = 0
        self.link = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC,
                                   SOCK_DIAG)
        try:
            # The first needs CAP_NET_ADMIN; the second goes up to net.core.rmem_max.
            for option in (SO_RCVBUFFORCE, _socket.SO_RCVBUF):
                if self.link.getsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF) < EVENT_BUFFER:
                    self.enlarge(option)
            self.link.settimeout(0)
            self.link.bind((0, DESTROYED))
        except OSError:
            self.close()
            raise

    def enlarge(self, option):
        try:
            self.link.setsockopt(_socket.SOL_SOCKET, option, EVENT_BUFFER)
        except PermissionError:
            pass

    def read(self):
        """The messages that came since the last time, and a NLMSG_OVERRUN with a number behind them
        when so many more found no room."""
        parts, size, full = [], 0, False
        while size < MOST_EVENTS:
            try:
                parts.append(self.link.recv(NETLINK_READ))
                size += len(parts[-1])
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                full = True
        if full:                                # by now all that were lost are counted
            parts.append(struct.pack(MESSAGE_HEAD + 'I', END_SIZE, NLMSG_OVERRUN, 0, 0, 0,
                                     self.lost()))
        return b''.join(parts)

    def lost(self):
        """How many messages found no room since this was asked last; at least 1."""
        try:
            data = self.link.getsockopt(_socket.SOL_SOCKET, SO_MEMINFO, 36)     # since 4.12
            dropped = struct.unpack('=9I', data)[8]                     # SK_MEMINFO_DROPS
        except (OSError, struct.error):
            return 1
        before, self.dropped = self.dropped, dropped
        return max(1, dropped - before & 0xffffffff)

    def close(self):
        self.link.close()


def socket_runs(data):
    """(where it begins, length of one, how many) for each run of messages of one length, each of
    which is about a socket. What is no message, and what is behind it, is left out.

    Most messages are alike in all but their numbers, so that what is done for a run is done for
    hundreds at once.
    """
    at, window = 0, 8
    while at + 16 <= len(data):
        length, kind = struct.unpack_from('=IH', data, at)
        step, count = length + 3 & ~3, 1
        if length < 16 or at + length > len(data):
            return
        if kind == BY_FAMILY and length >= 88:
            if step == length:
                most = min(window, (len(data) - at) // step)
                count = alike(data, at, 6, step, most)
                window = min(4 * window, 4096) if count == most else 8
            yield at, length, count
        at += count * step


def alike(data, at, width, step, count):
    """How many of `count` places, from `at` on and `step` bytes apart, begin with the same `width`
    bytes as the first, before one that does not."""
    for i in range(at, at + width):
        column = data[i:at + count * step:step]
        count = len(column) - len(column.lstrip(column[:1]))
    return count


def tcp_entries(data, layouts):
    """(family, state, port, address, cookie, unread, inode, ages, acked, received, sent, retrans)
    of each TCP socket that comes with byte counters; before 4.19 the last two are None. layouts: a
    dict for this function to remember in."""
    for at, length, count in socket_runs(data):
        while count:
            place, size = info_of(data, at, length)
            if size < 136:                      # half open, or only a TIME_WAIT is left of it
                at, count = at + length, count - 1
                continue
            n = alike(data, at + place - 4, 4, length, count) if count > 1 else 1
            layout = layouts.get((length, place, size))
            if layout is None:
                if len(layouts) > 100:
                    layouts.clear()
                layout = layouts[length, place, size] = socket_layout(length, place, size)
            found = layout.iter_unpack(memoryview(data)[at:at + n * length])
            if size < 216:
                found = [entry + (None, None) for entry in found]
            yield from found
            at, count = at + n * length, count - n


def info_of(data, at, length):
    """(where in the message its tcp_info begins, bytes of it); (0, 0) when there is none.
    Attributes come in any order."""
    place = 88
    while place + 4 <= length:
        size, kind = struct.unpack_from('=HH', data, at + place)
        if size < 4 or place + size > length:
            break
        if kind == INET_DIAG_INFO:
            return place + 4, size - 4
        place += size + 3 & ~3
    return 0, 0


def socket_layout(length, place, size):
    """The Struct of a message about a socket: its length, and where its tcp_info of `size` bytes
    begins."""
    fields = ['=16x',           # nlmsghdr
              'B',              # idiag_family                                  -> family
              'B',              # idiag_state                                   -> state
              '2x',             # idiag_timer, idiag_retrans
              '2s',             # id.idiag_sport, as on the wire                -> port
              '2x',             # id.idiag_dport
              '16s',            # id.idiag_src; an IPv4 address and zeros       -> address
              '16x',            # id.idiag_dst
              '4x',             # id.idiag_if
              'Q',              # id.idiag_cookie                               -> cookie
              '4x',             # idiag_expires
              'I',              # idiag_rqueue: what came and was not read yet  -> unread
              '8x',             # idiag_wqueue, idiag_uid
              'I',              # idiag_inode                                   -> inode
              '%dx' % (place - 88),
              '44x',            # tcpi_state ... tcpi_fackets
              '16s',            # tcpi_last_data_sent ... tcpi_last_ack_recv    -> ages
              '60x',            # tcpi_pmtu ... tcpi_max_pacing_rate
              'Q',              # tcpi_bytes_acked (4.1)                        -> acked
              'Q']              # tcpi_bytes_received (4.1)                     -> received
    if size >= 216:
        fields += ['64x',       # tcpi_segs_out ... tcpi_delivered_ce
                   'Q',         # tcpi_bytes_sent (4.19)                        -> sent
                   'Q']         # tcpi_bytes_retrans (4.19)                     -> retrans
    known = 216 if size >= 216 else 136
    return struct.Struct(''.join(fields) + '%dx' % (length - place - known))


def events_lost(data):
    """How many messages of Destroyed found no room, as it wrote behind those that did."""
    at = len(data) - END_SIZE
    if at >= 0:
        length, kind, flags, sequence, port, lost = struct.unpack_from(MESSAGE_HEAD + 'I', data, at)
        if length == END_SIZE and kind == NLMSG_OVERRUN:
            return lost
    return 0


# == 4 MODULES: what the columns of each kernel file mean =======================================

U64 = 1 << 64
USER_HZ = 100                   # ticks a second in proc, on all but two old architectures
NEVER = None, None              # a line, and what came of it
GARBAGE = ()                    # what comes of a line that no use can be made of
MOST_KNOWN = 100000             # names that are remembered: devices may come and go for years


def counters(words):
    """The ints of words of ASCII digits under 2^64; ValueError for all else that int() would
    take."""
    if not b''.join(words).isdigit():
        raise ValueError
    row = list(map(int, words))
    if max(row) >= U64:
        raise ValueError
    return row


def decimals(words):
    """The floats of words such as b'0.01'; ValueError for nan, inf, 1e5 and signs."""
    if not all(map(is_decimal, words)):
        raise ValueError
    return list(map(float, words))


def whole_lines(tree, data):
    """The lines of a kernel file. What stands behind the last line end was torn off: it is dropped,
    for half a number looks like a number."""
    lines = data.split(b'\n')
    if lines.pop():
        tree.bad_line()
    return lines


def shown(name):
    """Bytes from the kernel as text; what is no UTF-8 shows as U+FFFD."""
    return name.decode('utf-8', 'replace')


def matcher(globs):
    """The names of a thing -> whether one matches one of the shell patterns, and none one of those
    that begin with `!`.

    A list that begins with a `!` takes away from everything.
    """
    wanted = [g for g in globs if not g.startswith('!')]
    refused = [g[1:] for g in globs if g.startswith('!')]
    if refused and globs[0].startswith('!'):
        wanted.append('*')
    return lambda *names: (any(glob(g, name) for g in wanted for name in names)
                           and not any(glob(g, name) for g in refused for name in names))


def glob(pattern, name):
    """Whether the shell pattern (`*`, `?`, `[a-z]`, `[!a]`) matches the whole name; `*` takes dots
    too."""
    p = n = 0
    star, mark = -1, 0
    while n < len(name):
        fits, after = glob_one(pattern, p, name[n])
        if pattern[p:p + 1] == '*':
            star, mark, p = p, n, p + 1
        elif fits:
            p, n = after, n + 1
        elif star >= 0:
            mark += 1
            p, n = star + 1, mark
        else:
            return False
    return not pattern[p:].strip('*')


def glob_one(pattern, at, letter):
    """(whether the one-letter pattern at `at` takes the letter, where the next one begins)"""
    if pattern[at:at + 1] != '[':
        return pattern[at:at + 1] in (letter, '?'), at + 1
    end = pattern.find(']', at + 2 + (pattern[at + 1:at + 2] == '!'))
    if end < 0:
        return letter == '[', at + 1
    inside = pattern[at + 1:end]
    taken, i = False, inside.startswith('!')
    while i < len(inside):
        if inside[i + 1:i + 2] == '-' and i + 2 < len(inside):
            taken |= inside[i] <= letter <= inside[i + 2]
            i += 3
        else:
            taken |= inside[i] == letter
            i += 1
    return taken != inside.startswith('!'), end + 1


# -- cgroups: a container's account (admin-guide/cgroup-v1/, admin-guide/cgroup-v2.rst) -----------

class Hierarchy:
    """A mounted hierarchy of cgroups. controllers: those of v1, or () for v2; root: the part of it
    that is mounted; place: its folder in the tree, `sys/fs/cgroup/memory`."""
    __slots__ = ('controllers', 'root', 'place')

    def __init__(self, controllers, root, place):
        self.controllers, self.root, self.place = controllers, root, place

    def folder(self, path):
        """The folder in the tree of the cgroup that proc/PID/cgroup calls so; None when it is
        outside of what is mounted."""
        root = '' if self.root == '/' else self.root
        if path != root and not path.startswith(root + '/') or '/..' in path[len(root):]:
            return None
        return (self.place + path[len(root):]).rstrip('/')


MOST_OF_A_CGROUP = 1 << 16      # bytes of a file of it, for hundreds of devices
V1_CONTROLLERS = ('blkio', 'cpu', 'cpuacct', 'cpuset', 'devices', 'freezer', 'hugetlb', 'memory',
                  'misc', 'net_cls', 'net_prio', 'perf_event', 'pids', 'rdma')


def hierarchies(tree, own=False):
    """[Hierarchy] of what is mounted: one for v2, one for each v1 controller or pair of them, both
    on a hybrid host. The first mount of each counts. own: as we see them. Raises Absent."""
    out = {}
    for mount in mounts(tree, own):
        if mount.type not in (b'cgroup', b'cgroup2'):
            continue
        options = [os.fsdecode(o) for o in mount.super_options]
        names = () if mount.type == b'cgroup2' else tuple(
            o for o in options if o in V1_CONTROLLERS or o.startswith('name='))
        place = os.fsdecode(mount.point).lstrip('/')
        out.setdefault(names, Hierarchy(names, os.fsdecode(mount.root), place))
    return list(out.values())


def cgroups_of(tree, pid):
    """{controller: path of its cgroup} of proc/PID/cgroup, '' for v2; raises OSError.

    `7:cpu,cpuacct:/docker/0123`, `1:name=systemd:/init.scope`, `0::/system.slice/cron.service`
    """
    out = {}
    for line in os.fsdecode(tree.glance('proc/%s/cgroup' % pid, MOST_OF_A_CGROUP)).split('\n'):
        number, colon, rest = line.partition(':')
        names, colon, path = rest.partition(':')
        if colon:
            out.update((name, path) for name in names.split(','))
    return out


def cgroup_number(tree, folder, name):
    """The number in a file of a cgroup; None when there is none, or it says `max`."""
    try:
        word = tree.glance('%s/%s' % (folder, name)).strip()
    except OSError:
        return None
    return int(word) if word.isdigit() and len(word) <= 20 else None


def cgroup_words(tree, folder, name):
    """{b'usage_usec': 1234} of a file of lines with a key and a number, such as cpu.stat; {} when
    there is none."""
    try:
        data = tree.glance('%s/%s' % (folder, name), MOST_OF_A_CGROUP)
    except OSError:
        return {}
    pairs = [line.split() for line in data.split(b'\n')]
    return {pair[0]: int(pair[1]) for pair in pairs
            if len(pair) == 2 and pair[1].isdigit() and len(pair[1]) <= 20}


def listed(data):
    """How many numbers a list such as `0-3,7` holds; 0 for what is none."""
    count = 0
    for piece in data.strip().split(b','):
        first, _, last = piece.partition(b'-')
        last = last or first
        if not (first + last).isdigit() or len(first + last) > 20:
            return 0
        count += max(int(last) - int(first) + 1, 0)
    return count


def cpu_quota(tree, folder, old):
    """The cores that a cgroup's quota allows, None without one.

    cpu.max of v2: `150000 100000` or `max 100000`; v1: cpu.cfs_quota_us `150000` or `-1`
    """
    if old:
        words = [cgroup_number(tree, folder, name)
                 for name in ('cpu.cfs_quota_us', 'cpu.cfs_period_us')]
        return words[0] / words[1] if all(words) else None
    try:
        words = tree.glance('%s/cpu.max' % folder).split()
    except OSError:
        return None
    sound = len(words) == 2 and b''.join(words).isdigit() and max(map(len, words)) <= 20
    return int(words[0]) / int(words[1]) if sound and int(words[0]) and int(words[1]) else None


# -- cpu: proc/stat (proc(5)) -----------------------------------------------------------------

def cpu_states():
    """The ten columns of a `cpu` line, USER_HZ ticks. Old kernels have fewer: 4 before 2.5.41,
    steal since 2.6.11, guest since 2.6.24, guest_nice since 2.6.33. iowait and idle may go
    backwards."""
    return (
        Metric('user', SHARE, 'percent', 'Time in user mode, without guests', less='guest'),
        Metric('nice', SHARE, 'percent', 'Time in user mode at low priority, without guests',
               less='guest_nice'),
        Metric('system', SHARE, 'percent', 'Time in kernel mode'),
        Metric('idle', SHARE, 'percent', 'Time idle'),
        Metric('iowait', SHARE, 'percent', 'Time idle while a disk request was waited for'),
        Metric('irq', SHARE, 'percent', 'Time in hard interrupts'),
        Metric('softirq', SHARE, 'percent', 'Time in soft interrupts'),
        Metric('steal', SHARE, 'percent', 'Time that the hypervisor gave to others (since 2.6.11)'),
        Metric('guest', SHARE, 'percent', 'Time that ran guests (since 2.6.24)'),
        Metric('guest_nice', SHARE, 'percent',
               'Time that ran guests at low priority (since 2.6.33)'))


CPU = Table('cpu', cpu_states(), source='proc/stat')
CPU_CORE = Table('cpu', cpu_states(), labels=('cpu',), source='proc/stat')
CPU_EVENTS = Table('cpu', source='proc/stat', columns=(
    Metric('cores', RAW, '', 'cpuN lines'),
    Metric('ctxt_per_sec', COUNTER, '', 'Context switches'),
    Metric('ctxt_per_sec_per_core', COUNTER, '', 'Context switches per core', of=('ctxt_per_sec',),
           over=('cores',)),
    Metric('procs_forked_per_sec', COUNTER, '', 'Processes and threads created'),
    Metric('procs_running', GAUGE, '', 'Threads that run or could run'),
    Metric('procs_blocked', GAUGE, '', 'Threads that wait for a disk'),
    Metric('intr_per_sec', COUNTER, '', 'Interrupts')))


@module('cpu', 'Processor time by state, context switches, forks, interrupts: proc/stat',
        [Option('per_core', boolean, False, 'The states of each core too')], CPU, CPU_EVENTS,
        CPU_CORE, view='host')
def cpu(tree, options, memory):
    """proc/stat: `cpu  2255 34 2290 22625563 6290 127 456 0 0 0`, then cpu0 ..., `intr 114930548
    113199788 ...`"""
    data = tree.read('proc/stat')
    start = 0 if data.startswith(b'cpu ') else data.find(b'\ncpu ') + 1
    end = data.find(b'\n', start)
    if end > 0 and data.startswith(b'cpu ', start):
        yield from state_row(tree, CPU, (), data[start:end])
    yield CPU_EVENTS, (), [
        core_count(data) or ABSENT,
        first_number(data, b'\nctxt '), first_number(data, b'\nprocesses '),
        first_number(data, b'\nprocs_running '),
        first_number(data, b'\nprocs_blocked '), first_number(data, b'\nintr ')]
    if options.per_core:
        end = data.find(b'\n', data.rfind(b'\ncpu') + 1) + 1      # 0 when that line is torn
        for line in whole_lines(tree, data[:end or None]):
            name = line.split(b' ', 1)[0]
            if name[:3] == b'cpu' and name[3:].isdigit():
                yield from state_row(tree, CPU_CORE, (name.decode(),), line)


def state_row(tree, table, labels, line):
    """The row of one `cpu` line; none when it is garbage."""
    try:
        row = counters(line.split()[1:len(table.raw) + 1])
        if len(row) < 4:
            raise ValueError
        yield table, labels, row
    except ValueError:
        tree.bad_line()


def core_count(data):
    """How many `cpuN` lines there are."""
    names = set()
    for piece in (b'\n' + data[:data.rfind(b'\n')]).split(b'\ncpu')[1:]:
        line = piece.partition(b'\n')[0]
        if line.replace(b' ', b'').isdigit() and b' ' in line.strip(b' '):
            names.add(line.split(b' ', 1)[0])
    return len(names - {b''})


def first_number(data, key):
    """The int behind a key such as b'\\nctxt '; a hole when it is not there or its line is torn."""
    start = data.find(key)
    end = data.find(b'\n', start + 1)
    if start < 0 or end < 0:
        return ABSENT
    word = data[start + len(key):end].split(None, 1)
    return int(word[0]) if word and word[0].isdigit() and len(word[0]) <= 20 else ABSENT


# -- load: proc/loadavg -----------------------------------------------------------------------

LOAD = Table('load', source='proc/loadavg', columns=(
    Metric('one', REAL, '',
           'Threads that run, could run or wait for a disk, average of one minute'),
    Metric('five', REAL, '', 'The same, five minutes'),
    Metric('fifteen', REAL, '', 'The same, fifteen minutes'),
    Metric('runnable_entities', GAUGE, '', 'Threads that run or could run'),
    Metric('total_entities', GAUGE, '', 'Threads that exist')))


@module('load', 'Load averages: proc/loadavg', [], LOAD, view='host')
def load(tree, options, memory):
    """proc/loadavg: `0.01 0.04 0.05 2/321 4242`"""
    words = tree.read('proc/loadavg').split()
    entities = words[3].split(b'/') if len(words) == 5 else []
    if len(entities) != 2 or not words[4].isdigit():
        raise ValueError('proc/loadavg')
    yield LOAD, (), decimals(words[:3]) + counters(entities)


# -- disk: proc/diskstats (Documentation/admin-guide/iostats.rst) -----------------------------

SECTOR = 512                    # bytes, whatever the device says of its own

DISK = Table('disk', labels=('device',), further=('name',), source='proc/diskstats', columns=(
    Metric('number', IDENTITY, '', 'major:minor'),
    Metric('reads', COUNTER, '', 'Reads completed'),
    Metric('reads_merged', COUNTER, '', 'Adjacent reads merged into one request'),
    Metric('read_sectors', COUNTER, '', 'Sectors of 512 bytes read'),
    # The ms columns are 32 bits wide on every kernel: they wrap after 49.7 days of waiting.
    Metric('read_time', COUNTER32, 'ms/s', 'Time that reads took, all added up'),
    Metric('writes', COUNTER, '', 'Writes completed'),
    Metric('writes_merged', COUNTER, '', 'Adjacent writes merged into one request'),
    Metric('write_sectors', COUNTER, '', 'Sectors of 512 bytes written'),
    Metric('write_time', COUNTER32, 'ms/s', 'Time that writes took, all added up'),
    Metric('io', GAUGE, '', 'Requests in flight'),
    Metric('io_time', COUNTER32, 'ms/s', 'Time with requests in flight'),
    Metric('io_weighted_time', COUNTER32, 'ms/s',
           'Time with requests in flight, times their number'),
    Metric('discards', COUNTER, '', 'Discards completed (since 4.18)'),
    Metric('discards_merged', COUNTER, '',
           'Adjacent discards merged into one request (since 4.18)'),
    Metric('discard_sectors', COUNTER, '', 'Sectors of 512 bytes discarded (since 4.18)'),
    Metric('discard_time', COUNTER32, 'ms/s', 'Time that discards took, all added up (since 4.18)'),
    Metric('flushes', COUNTER, '', 'Flushes completed (since 5.5)'),
    Metric('flush_time', COUNTER32, 'ms/s', 'Time that flushes took, all added up (since 5.5)'),
    Metric('read_thruput', COUNTER, 'B/s', 'Bytes read', of=('read_sectors',), scale=SECTOR),
    Metric('write_thruput', COUNTER, 'B/s', 'Bytes written', of=('write_sectors',), scale=SECTOR),
    Metric('util', BUSY, 'percent', 'Share of the time with requests in flight', of=('io_time',)),
    Metric('await', RATIO, 'ms', 'Mean time of a request, queueing included',
           of=('read_time', 'write_time', 'discard_time'), over=('reads', 'writes', 'discards')),
    Metric('read_await', RATIO, 'ms', 'Mean time of a read', of=('read_time',), over=('reads',)),
    Metric('write_await', RATIO, 'ms', 'Mean time of a write', of=('write_time',),
           over=('writes',)),
    Metric('queue', COUNTER, '', 'Mean number of requests in flight', of=('io_weighted_time',),
           scale=0.001),
    Metric('request_size', RATIO, 'KB', 'Mean size of a request', scale=SECTOR / 1024,
           of=('read_sectors', 'write_sectors', 'discard_sectors'),
           over=('reads', 'writes', 'discards'))))

# 2.6.0 to 2.6.24 gave partitions four columns, of another meaning than the first four of a disk.
OLD_PARTITION = Table('disk', source=DISK.source, labels=DISK.labels, further=DISK.further,
                      columns=tuple(m for m in DISK.columns if m.name in (
                          'number', 'reads', 'read_sectors', 'writes', 'write_sectors',
                          'read_thruput', 'write_thruput', 'request_size')))

DISK_OPTIONS = [
    Option('devices', patterns, ['*', '!loop*', '!ram*', '!zram*'],
           'Patterns of devices, also by their names in device-mapper; ! takes away'),
    Option('partitions', boolean, False, 'Partitions too, not only whole disks'),
    Option('names', boolean, False, 'Call dm-N what device-mapper calls it, such as vg-root'),
]


@module('disk', 'Disk requests, times and sizes: proc/diskstats', DISK_OPTIONS, DISK, view='host')
def disk(tree, options, memory):
    """proc/diskstats: `8 0 sda 87 12 900 33 5 1 48 2 0 21 35 ...` (14, 18 or 20 columns; partitions
    once 7)"""
    return disk_rows(tree, options, memory)


def disk_rows(tree, options, memory):
    """(table, labels, row) of each device that is kept; ValueError when no line is sound."""
    lines = list(disk_lines(tree))
    heads = [head for head, line in lines]
    if memory.get('heads') != heads:            # what a partition is depends on the other names
        memory.update(heads=heads, lines={}, devices={})
    seen, sound = memory['lines'], not lines
    for head, line in lines:
        last, known = seen.get(head, NEVER)
        if last != line:                        # an idle device has the line that it had
            before, known = known, disk_row(tree, options, memory, head, line)
            if before and known and head[2].startswith(b'dm-') and fell(before[2], known[2]):
                memory['devices'].clear()       # another one under its name and number
                known = disk_row(tree, options, memory, head, line)
            seen[head] = line, known
        sound = sound or known is not GARBAGE
        if known:
            yield known
    if not sound:
        raise ValueError('proc/diskstats')


def fell(before, now):
    """Whether one of the counters of a disk did, the first eight: they began anew."""
    return any([b > n for b, n in zip(before[1:9], now[1:9])])


def disk_row(tree, options, memory, head, line):
    """(table, labels, row) of one line of a device that is kept; None for others; or GARBAGE."""
    try:
        number, name = disk_number(head)
        words = line.split()[:17]
        if words[8:] and words[8].startswith(b'-'):
            words[8] = b'4294967295'
        row = counters(words)
        if len(row) != 4 and len(row) < 11:
            raise ValueError
    except ValueError:
        tree.bad_line()
        return GARBAGE
    labels = disk_labels(tree, options, memory, name, number, len(row) == 4)
    if len(row) == 4:
        return labels and (OLD_PARTITION, labels, [number] + row)
    if row[8] >= 1 << 31:  # some drivers count below zero; that number is unknown
        row[8] = ABSENT
    return labels and (DISK, labels, [number] + row)


def disk_lines(tree):
    """(b'8 0 sda', b'87 12 900 ...') for each line of proc/diskstats."""
    for line in whole_lines(tree, tree.read('proc/diskstats')):
        words = line.split(None, 3)
        if len(words) == 4:
            yield (words[0], words[1], words[2]), words[3]
        elif words:
            tree.bad_line()


def disk_names(tree):
    """The names of all devices, partitions included."""
    lines = [line.split(None, 3) for line in tree.read('proc/diskstats').split(b'\n')]
    return set(words[2] for words in lines if len(words) == 4)


def disk_number(head):
    """(major and minor in one int, name) of the first three words of a line."""
    if not (head[0] + head[1]).isdigit() or len(head[0]) > 9 or len(head[1]) > 9:
        raise ValueError
    return int(head[0]) << 32 | int(head[1]), head[2]


def disk_labels(tree, options, memory, name, number, old):
    """The labels of a device that is kept, or None. Decided once per device.

    Whole disks are those in sys/block (there `/` is `!`); without it a name is a partition when
    another name plus digits (plus p and digits, after a digit) makes it, or it has 7 columns.
    """
    known = memory['devices']
    if (name, number) not in known:
        keep = memory.setdefault('matcher', matcher(options.devices))
        names = [shown(name)] + mapper_names(tree, name)
        named = any(text in options.devices for text in names)
        labels = tuple(names) if named or keep(*names) else None
        if labels and not options.partitions and not named:
            labels = None if is_partition(name, old, tree) else labels
        if labels and names[1:] and options.names and (
                names[1].encode() not in tree.ask('disks', disk_names)):
            labels = (names[1],) * 2
        known[name, number] = labels
    return known[name, number]


def mapper_names(tree, name):
    """[name] of a device of the device-mapper, which is called dm-N: b'dm-0' -> ['vg-root']; [] of
    others. (Documentation/ABI/testing/sysfs-block-dm)"""
    if not name.startswith(b'dm-') or not name[3:].isdigit():
        return []
    try:
        text = shown(tree.glance('sys/block/%s/dm/name' % shown(name)))
    except OSError:
        return []
    return [text[:-1]] if text[1:] and text.endswith('\n') else []


def whole_disks(tree):
    """The names in sys/block, or None without it."""
    try:
        return set(tree.list('sys/block'))
    except Absent:
        return None


def is_partition(name, old, tree):
    whole = tree.ask('whole disks', whole_disks)
    if whole is not None or old:
        return old or name.replace(b'/', b'!') not in whole
    base = name.rstrip(b'0123456789')
    names = tree.ask('disks', disk_names)
    return base != name and (base in names or base[-1:] == b'p' and base[-2:-1].isdigit()
                             and base[:-1] in names)


# -- network: proc/net/dev --------------------------------------------------------------------

NETWORK = Table('net', labels=('interface',), source='proc/net/dev', columns=(
    Metric('rx_bytes', COUNTER, 'B/s', 'Bytes received'),
    Metric('rx_packets', COUNTER, '', 'Packets received'),
    Metric('rx_errs', COUNTER, '', 'Bad packets received'),
    Metric('rx_drop', COUNTER, '', 'Packets received and dropped'),
    Metric('rx_fifo', COUNTER, '', 'Receive buffer overruns'),
    Metric('rx_frame', COUNTER, '', 'Framing errors'),
    Metric('rx_compressed', COUNTER, '', 'Compressed packets received'),
    Metric('rx_multicast', COUNTER, '', 'Multicast packets received'),
    Metric('tx_bytes', COUNTER, 'B/s', 'Bytes sent'),
    Metric('tx_packets', COUNTER, '', 'Packets sent'),
    Metric('tx_errs', COUNTER, '', 'Packets that could not be sent'),
    Metric('tx_drop', COUNTER, '', 'Packets dropped before they were sent'),
    Metric('tx_fifo', COUNTER, '', 'Send buffer underruns'),
    Metric('tx_colls', COUNTER, '', 'Collisions'),
    Metric('tx_carrier', COUNTER, '', 'Losses of carrier'),
    Metric('tx_compressed', COUNTER, '', 'Compressed packets sent'),
    Metric('rx_bits', COUNTER, 'bit/s', 'Bits received', of=('rx_bytes',), scale=8),
    Metric('tx_bits', COUNTER, 'bit/s', 'Bits sent', of=('tx_bytes',), scale=8)))


@module('network', 'Traffic, errors and drops of network interfaces: proc/net/dev', [
    Option('interfaces', patterns,
           ['!lo', '!veth*', '!br-*', '!docker*', '!cali*', '!lxc*', '!ifb*', '!tap*', '!vnet*'],
           'Patterns of interfaces; ! takes away; ["*"] is everything')], NETWORK)
def network(tree, options, memory):
    """proc/net/dev: two lines of heading, then `  eth0: 1296 12 0 0 0 0 0 0 996 9 0 0 0 0 0 0`

    Old kernels put no blank behind the colon; the name of an alias has colons itself.
    """
    seen, lines = memory.setdefault('lines', {}), whole_lines(tree, tree.read('proc/net/dev'))
    sound = len(lines) == 2 and b'|' in lines[1]        # a heading, and no interface
    for line in lines[2:]:
        name, colon, rest = line.rpartition(b':')
        last, known = seen.get(name, NEVER)
        if last != rest:                        # an idle interface has the line that it had
            known = interface_row(tree, options, memory, name, rest)
            seen[name] = rest, known
            if len(seen) > MOST_KNOWN:
                seen.clear()
        sound = sound or known is not GARBAGE
        if known:
            yield known
    if not sound:
        raise ValueError('proc/net/dev')


def interface_row(tree, options, memory, name, rest):
    """(table, labels, row) of an interface that is kept; None for others; or GARBAGE."""
    known = memory.setdefault('interfaces', {})
    if name not in known:
        keep = memory.setdefault('matcher', matcher(options.interfaces))
        text = shown(name.strip(b' '))
        if len(known) > MOST_KNOWN:
            known.clear()
        known[name] = (text,) if text and keep(text) else None
    if known[name] is None and name:
        return None
    try:
        row = counters(rest.split()[:16])
        if len(row) < 16 or not known[name]:
            raise ValueError
    except ValueError:
        tree.bad_line()
        return GARBAGE
    return NETWORK, known[name], row


# -- memory: proc/meminfo ---------------------------------------------------------------------

MEMINFO = OpenTable('mem', 'B', 'As in proc/meminfo, lower case, "(" to "_"', source='proc/meminfo')
MEMORY = Table('mem', source='proc/meminfo', columns=(
    Metric('used', GAUGE, 'B',
           'Total less available; before 3.14 less free, buffers, cached and sreclaimable'),
    Metric('used_percent', REAL, 'percent', 'The same as a share of the total')))


@module('memory', 'Memory by use: proc/meminfo', [], MEMINFO, MEMORY,
        view='host')
def memory_use(tree, options, memory):
    """proc/meminfo: `MemTotal:  24684092 kB`, `HugePages_Total:  0`, `Active(anon):  4567 kB`"""
    data = tree.read('proc/meminfo')
    words = data.split()
    fits = memory.get('words') and len(words) == memory['length']
    if fits and memory['words'](words) == memory['shape']:  # the lines of last time: nearly always
        numbers = memory['numbers'](words)
        sound = b''.join(numbers).isdigit() and len(max(numbers, key=len)) <= 20
        if sound and data.endswith(b'\n'):
            yield from meminfo_rows(memory, list(map(mul, map(int, numbers), memory['scales'])))
            return
    columns, values = [], []
    for line in whole_lines(tree, data):
        name, _, rest = line.partition(b':')
        right = rest.split()
        sound = right and right[0].isdigit() and len(right[0]) <= 20
        if sound and (len(right) == 1 or right[1:] == [b'kB']):
            columns.append((name, len(right)))
            values.append(int(right[0]) << 10 if len(right) == 2 else int(right[0]))
        elif line:
            tree.bad_line()
    if not columns:
        raise ValueError('proc/meminfo')
    if memory.get('columns') != columns:
        memory['columns'], memory['table'] = columns, meminfo_table(tree, columns)
        memory['inputs'] = {m.name: i for i, m in reversed(list(enumerate(memory['table'].raw)))
                            if m.name in MEMORY_INPUTS}
    memory['words'] = None
    if len(columns) > 1 and data.count(b'\n') == len(columns):
        meminfo_shape(memory, words, columns)
    yield from meminfo_rows(memory, values)


def meminfo_shape(memory, words, columns):
    """Remembers where the numbers are among the words, so that the same lines are read at once."""
    starts, at = [], 0
    for name, count in columns:
        starts.append(at + 1)
        at += 1 + count
    if at != len(words) or any(w[-1:] != b':' for w in itemgetter(*[i - 1 for i in starts])(words)):
        return                                  # a name with blanks in it
    others = [i for i in range(at) if i not in starts]
    memory['words'], memory['numbers'] = itemgetter(*others), itemgetter(*starts)
    memory['shape'], memory['length'] = memory['words'](words), at
    memory['scales'] = [1024 if count == 2 else 1 for name, count in columns]


def meminfo_rows(memory, values):
    yield memory['table'], (), values
    used = memory_used({name: values[i] for name, i in memory['inputs'].items()})
    if used:
        yield MEMORY, (), used


MEMORY_INPUTS = ('memtotal', 'memavailable', 'memfree', 'buffers', 'cached', 'sreclaimable')


def meminfo_table(tree, columns):
    """The table of these lines; a line whose name is no name is hidden."""
    plain = b'abcdefghijklmnopqrstuvwxyz0123456789_()'
    out, seen = [], set(m.name for m in MEMORY.columns)
    for name, words in columns:
        low = name.lower()
        shown = low.replace(b'(', b'_').replace(b')', b'').decode('ascii', 'replace')
        bad = not low or shown in seen or bool(low.translate(None, plain))
        if bad:
            tree.bad_line()
        seen.add(shown)
        out.append((shown, RAW if bad else GAUGE, 'B' if words == 2 else ''))
    return MEMINFO.of(out)


def memory_used(known):
    """[used bytes, used percent], or None when a part is not known. As procps 4 and 3.3 have it:
    what comes out below zero is total less free instead."""
    try:
        if 'memavailable' in known:
            used = known['memtotal'] - known['memavailable']
        else:
            used = (known['memtotal'] - known['memfree'] - known['buffers'] - known['cached']
                    - known.get('sreclaimable', 0))     # counted apart since 2.6.19
        if used < 0:
            used = known['memtotal'] - known['memfree']
    except KeyError:
        return None
    if used < 0 or not known['memtotal']:
        return None
    return [used, 100.0 * used / known['memtotal']]


# -- system: what changes seldom --------------------------------------------------------------

CPU_CORES = Table('cpu', source='proc/stat', columns=(
    Metric('cores', GAUGE, '', 'Cores in use'),))
CPU_SPEED = Table('cpu', source='proc/cpuinfo', columns=(
    Metric('speed', REAL, 'MHz', 'Mean clock of the cores'),))
CPU_CACHE = Table('cpu', source='proc/cpuinfo', columns=(
    Metric('cache_size', GAUGE, 'KB', 'Cache of the first core'),))
DISK_COUNT = Table('disk', source='proc/diskstats', columns=(
    Metric('count', GAUGE, '', 'Disks that the disk module keeps'),))
UPTIME = Table('system', source='proc/uptime', columns=(
    Metric('uptime', REAL, 's', 'Time since the start of the system'),))
BOOT_TIME = Table('system', source='proc/stat', columns=(
    Metric('boot_time', GAUGE, 's', 'Unix time of that start'),))
FILE_HANDLES = Table('system', source='proc/sys/fs/file-nr', columns=(
    Metric('file_handles', GAUGE, '', 'Open file handles'),))


@module('system',
        'Cores, clock, disks, uptime, open files: proc/stat, proc/cpuinfo, proc/uptime, ...', [],
        CPU_CORES, borrows='disk', view='host')
def cores(tree, options, memory):
    count = core_count(tree.read('proc/stat'))
    if count:
        yield CPU_CORES, (), [count]


@module('system', '', [], CPU_SPEED, CPU_CACHE)
def cpuinfo(tree, options, memory):
    """proc/cpuinfo: `cpu MHz\\t\\t: 2899.998`, `cache size\\t: 36608 KB`; not on every
    architecture"""
    data = b'\n' + tree.read('proc/cpuinfo')
    data = data[:data.rfind(b'\n')]             # what stands behind the last line end was torn off
    words = [part.split(b'\n', 1)[0].partition(b':')[2].strip()
             for part in data.split(b'\ncpu MHz')[1:]]
    speeds = [float(word) for word in words if is_decimal(word)]
    if speeds:
        yield CPU_SPEED, (), [sum(speeds) / len(speeds)]
    for part in data.split(b'\ncache size')[1:]:
        words = part.split(b'\n', 1)[0].partition(b':')[2].split()
        if len(words) == 2 and words[0].isdigit() and len(words[0]) <= 20 and words[1] == b'KB':
            yield CPU_CACHE, (), [int(words[0])]
            break


@module('system', '', [], DISK_COUNT, view='host')
def disk_count(tree, options, memory):
    names = set(labels for table, labels, row in disk_rows(tree, options.disk, memory))
    yield DISK_COUNT, (), [len(names)]


@module('system', '', [], UPTIME, view='host')
def uptime(tree, options, memory):
    """proc/uptime: `350735.47 234388.90`"""
    words = tree.read('proc/uptime').split()
    if len(words) != 2:
        raise ValueError('proc/uptime')
    yield UPTIME, (), decimals(words)[:1]


@module('system', '', [], BOOT_TIME, view='host')
def boot_time(tree, options, memory):
    value = first_number(tree.read('proc/stat'), b'\nbtime ')
    if value == value:
        yield BOOT_TIME, (), [value]


@module('system', '', [], FILE_HANDLES, view='host')
def file_handles(tree, options, memory):
    """proc/sys/fs/file-nr: `1184\\t0\\t9223372036854775807`: allocated, free, most"""
    words = tree.read('proc/sys/fs/file-nr').split()
    if len(words) != 3:
        raise ValueError('proc/sys/fs/file-nr')
    yield FILE_HANDLES, (), counters(words)[:1]


# -- filesystem: how full they are (proc_pid_mountinfo(5), statvfs(3)) ----------------------------

MOUNTED = 'device', 'fstype'     # further labels: what is mounted there, and its type

FILESYSTEM = Table('fs', labels=('mount',), further=MOUNTED, source='statvfs', columns=(
    Metric('size', GAUGE, 'B', 'Size'),
    Metric('used', GAUGE, 'B', 'Size less what is free'),
    Metric('free', GAUGE, 'B', 'Free, what is reserved for root included'),
    Metric('available', GAUGE, 'B', 'Free for users'),
    Metric('used_percent', REAL, 'percent', 'Used as a share of used and available, as df has it'),
    Metric('inodes', GAUGE, '', 'Files and folders there may be'),
    Metric('inodes_used', GAUGE, '', 'Files and folders there are'),
    Metric('inodes_free', GAUGE, '', 'Files and folders that may be added'),
    Metric('read_only', GAUGE, '', '1 when it is mounted read-only, else 0'),
    Metric('stuck', GAUGE, '', '1 while it does not answer, else 0')))

# What stores nothing of anybody's, and images, which are always full.
NO_STORAGE = matcher(
    'autofs binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs erofs fusectl '
    'hugetlbfs iso9660 mqueue nsfs proc procfs pstore rpc_pipefs securityfs selinuxfs squashfs '
    'sysfs tracefs'.split())
# Another host answers, or a process does: they may hang, and are counted where they live.
NETWORKED = matcher(
    '9p acfs afs beegfs ceph cifs coda cvfs davfs drvfs fuse fuse.* glusterfs gpfs lustre mvfs '
    'ncpfs nfs nfs4 orangefs panfs prl_fs pvfs2 smb3 smbfs vboxsf virtiofs vmhgfs'.split())
# Layers over other file systems, whose figures they give: a container each.
LAYERED = matcher('aufs overlay overlayfs unionfs'.split())
# What the system keeps to itself, and mounts for each container.
BACKSTAGE = matcher(
    '/dev /dev/* /proc /proc/* /sys /sys/* /run/containerd/* /run/credentials/* /run/k3s/* '
    '/var/lib/containers/storage/* /var/lib/docker/* /var/lib/kubelet/pods/*'.split())

# The answers of mounts that are not there any more, or where we cannot see them.
VOLUME_FAR = b'error %d' % errno.EXDEV
VOLUME_GONE = VOLUME_FAR, b'error %d' % errno.ENOENT, b'error %d' % errno.ENOTDIR


@module('filesystem', 'Size and use of mounted file systems: proc/1/mountinfo, statvfs', [
    Option('mounts', patterns, ['*'],
           'Patterns of mount points; ! takes away; one that is named in full is always kept'),
    Option('types', patterns, ['*'],
           'Patterns of types; ! takes away; the unusual ones (proc, overlay, ...) when named'),
    Option('network', boolean, False,
           'Those of other hosts (nfs, cifs, ceph, ...) and of processes (fuse) too'),
    ], FILESYSTEM, expensive=True)
def filesystem(tree, options, memory):
    """Each file system once, by its number, however often it is mounted; `/` always counts, and
    else what is mounted whole. A mount that hangs is `stuck`, and nobody waits for it."""
    text = mountinfo(tree)
    if memory.get('text') != text:
        memory.update(text=text, volumes=[
            (mount, escaped(mount.point),
             (shown(mount.point), shown(mount.source), shown(mount.type)),
             int(b'ro' in mount.options or b'ro' in mount.super_options))
            for mount in volumes_wanted(mounts(tree), options)])
    data = tree.answer('statvfs/mounts',
                       lambda: volumes(tree, [mount for mount, *more in memory['volumes']]))
    answers = {}
    for line in whole_lines(tree, data):
        name, _, answers[name] = line.partition(b' ')
    for mount, name, labels, read_only in memory['volumes']:
        row = volume_row(answers.get(name, b'').split(), read_only)
        if row:
            yield FILESYSTEM, labels, row
    yield from volume_troubles(memory, answers)


def volumes_wanted(mounted, options):
    """Those of the [Mount] that the options keep. The last one at a mount point covers others."""
    last = {mount.point: mount for mount in mounted}
    mounted = [mount for mount in mounted if last[mount.point] is mount]
    chosen = [mount for mount in mounted if shown(mount.point) in options.mounts]
    numbers, usual, best = set(mount.number for mount in chosen), usual_volumes(options), {}
    for mount in mounted:
        rank = volume_rank(mount)
        if rank and mount.number not in numbers and usual(mount):
            if mount.number not in best or rank < volume_rank(best[mount.number]):
                best[mount.number] = mount
    kept = set(map(id, chosen + list(best.values())))
    return [mount for mount in mounted if id(mount) in kept]


def usual_volumes(options):
    """Mount -> whether the options keep it, when it is not named in full: by a pattern that is more
    than `*`, or for there is no reason not to."""
    keep, named = matcher(options.mounts), matcher(naming_globs(options.mounts))
    keep_type, named_type = matcher(options.types), matcher(naming_globs(options.types))

    def usual(mount):
        point, type = shown(mount.point), shown(mount.type)
        layer = LAYERED(type) or not options.network and NETWORKED(type)
        return (keep(point) and keep_type(type) and (named(point) or not BACKSTAGE(point))
                and (named_type(type) or not NO_STORAGE(type) and (point == '/' or not layer)))
    return usual


def naming_globs(globs):
    """The patterns that name something, not just all."""
    return [g for g in globs if g.strip('*') and not g.startswith('!')]


def volume_rank(mount):
    """Which of several mounts of one file system stands for it: the one with the least number; None
    for a folder or file of it that is to be seen in another place (a bind mount)."""
    if mount.point == b'/':
        return 1
    if mount.root == b'/':
        return 2
    return 3 if mount.type in SUBVOLUMES else None


def volume_row(words, read_only):
    """The row of one line of volumes(), [] of one that gives none: it is not there any more, has no
    size (nothing is stored there), or is garbage."""
    if words == [b'stuck']:
        return [ABSENT] * 8 + [read_only, 1]
    if words[:1] == [b'error']:
        return [] if b' '.join(words) in VOLUME_GONE else [ABSENT] * 8 + [read_only, 0]
    try:
        block, blocks, free, available, inodes, inodes_free = counters(words)
    except ValueError:
        return []
    if not blocks:
        return []
    if available >= U64 >> 1:                   # below zero: root is in what is reserved for it
        available = 0
    used = blocks - free if free <= blocks else ABSENT
    percent = 100.0 * used / (used + available) if used + available else ABSENT
    row = [blocks * block, used * block, free * block, available * block, percent]
    if inodes:                                  # btrfs and vfat have as many as fit in
        row += [inodes, inodes - inodes_free if inodes_free <= inodes else ABSENT, inodes_free]
    else:
        row += [ABSENT] * 3
    return row + [read_only, 0]


def volume_troubles(memory, answers):
    """A Say of each mount that does not answer, and of each other error that it has, once; and one
    for all that cannot be reached."""
    said, far = memory.setdefault('said', set()), []
    for mount, name, labels, read_only in memory['volumes']:
        answer = answers.get(name, b'')
        if answer in VOLUME_GONE:
            far.append((answer != VOLUME_FAR, labels[0]))
        elif answer[:1].isalpha() and (name, answer) not in said and len(said) < MOST_KNOWN:
            said.add((name, answer))
            yield Say('%s (%s): %s' % (labels[0], labels[2], volume_trouble(answer)))
    if far and not min(far)[0] and VOLUME_FAR not in said:
        said.add(VOLUME_FAR)
        yield Say('%d of %d mounts are not to be seen from here, such as %s: they are covered, or '
                  'in another mount namespace (and want HOST_ROOT or CAP_SYS_PTRACE)' % (
                      len(far), len(memory['volumes']), min(far)[1]))


def volume_trouble(answer):
    """`error 13` or `stuck`, in words."""
    number = answer.split()[-1]
    if number.isdigit() and len(number) < 10:
        return os.strerror(int(number))
    return 'does not answer, and is not waited for'


# -- pressure: how long tasks waited for what is scarce (Documentation/accounting/psi.rst) --------

def pressure_table(resource, share, whose, since=''):
    """The four metrics of one line of a file of proc/pressure."""
    name = '%s_%s_' % (resource, share)
    means = tuple(Metric(name + 'avg%d' % seconds, REAL, 'percent',
                         'Share of the last %d s in which %s%s' % (seconds, whose, since))
                  for seconds in (10, 60, 300))
    return Table('psi', means + (
        Metric(name + 'stalled', COUNTER, 'ms/s', 'Time in which %s%s' % (whose, since),
               scale=0.001),), source='proc/pressure/' + resource)


CPU_SOME = pressure_table('cpu', 'some', 'some task waited for a core')
CPU_FULL = pressure_table('cpu', 'full', 'all tasks did, 0 by definition', ' (since 5.13)')
MEMORY_SOME = pressure_table('memory', 'some', 'some task waited for memory')
MEMORY_FULL = pressure_table('memory', 'full', 'all tasks did that were not idle')
IO_SOME = pressure_table('io', 'some', 'some task waited for a disk')
IO_FULL = pressure_table('io', 'full', 'all tasks did that were not idle')
IRQ_FULL = pressure_table('irq', 'full', 'interrupts kept the tasks of a core from it',
                          ' (since 6.1)')


def pressure_rows(tree, resource, since, **tables):
    """(table, (), row) of each line of a file of proc/pressure that is sound:

    `some avg10=0.00 avg60=0.04 avg300=2.04 total=11721890914`: percent, then us
    """
    name = 'proc/pressure/' + resource
    try:
        data = tree.read(name)
    except Absent as error:
        raise Absent('%s (kernels have it since %s; booted with psi=1, if they were built to be '
                     'without it otherwise)' % (error, since))
    sound = False
    for line in whole_lines(tree, data):
        share, _, rest = line.partition(b' ')
        try:
            row = pressure_row(rest)
        except ValueError:
            tree.bad_line()
            continue
        table, sound = tables.get(shown(share)), True
        if table:
            yield table, (), row
    if not sound:
        raise ValueError(name)


def pressure_row(text):
    """[1.5, 0.04, 2.04, 11721890914] of b'avg10=1.50 avg60=0.04 avg300=2.04 total=11721890914';
    ValueError."""
    pairs = [word.partition(b'=') for word in text.split()[:4]]
    if [key for key, _, value in pairs] != [b'avg10', b'avg60', b'avg300', b'total']:
        raise ValueError
    means = decimals([value for key, _, value in pairs[:3]])
    if max(means) > 100:
        raise ValueError
    return means + counters([pairs[3][2]])


@module('pressure', 'Time that tasks wait for cores, memory, disks: proc/pressure', [],
        CPU_SOME, CPU_FULL)
def cpu_pressure(tree, options, memory):
    return pressure_rows(tree, 'cpu', '4.20', some=CPU_SOME, full=CPU_FULL)


@module('pressure', '', [], MEMORY_SOME, MEMORY_FULL)
def memory_pressure(tree, options, memory):
    return pressure_rows(tree, 'memory', '4.20', some=MEMORY_SOME, full=MEMORY_FULL)


@module('pressure', '', [], IO_SOME, IO_FULL)
def io_pressure(tree, options, memory):
    return pressure_rows(tree, 'io', '4.20', some=IO_SOME, full=IO_FULL)


@module('pressure', '', [], IRQ_FULL)
def irq_pressure(tree, options, memory):
    """Since 6.1, and of kernels only that were built to count the time of interrupts: that most
    have none is worth no word."""
    try:
        yield from pressure_rows(tree, 'irq', '6.1', full=IRQ_FULL)
    except Absent:
        return


# -- vmstat: proc/vmstat (mm/vmstat.c of the kernel has its names, in vmstat_text) ----------------

VMSTAT = Table('vm', source='proc/vmstat', columns=(
    # The kernel counts these two in KiB.
    Metric('pgpgin', COUNTER, 'B/s', 'Bytes read from disks', scale=1024),
    Metric('pgpgout', COUNTER, 'B/s', 'Bytes written to disks', scale=1024),
    Metric('pswpin', COUNTER, '', 'Pages read from swap'),
    Metric('pswpout', COUNTER, '', 'Pages written to swap'),
    Metric('pgfault', COUNTER, '', 'Page faults'),
    Metric('pgmajfault', COUNTER, '', 'Page faults that had to read from a disk'),
    Metric('pgscan_kswapd', COUNTER, '', 'Pages that kswapd looked at to free some'),
    Metric('pgscan_direct', COUNTER, '',
           'Pages that tasks looked at, which had to free some before they got any'),
    Metric('pgsteal_kswapd', COUNTER, '', 'Pages that kswapd freed'),
    Metric('pgsteal_direct', COUNTER, '', 'Pages that tasks freed'),
    Metric('workingset_refault_anon', COUNTER, '',
           'Pages read back from swap that should not have gone (since 5.9)'),
    Metric('workingset_refault_file', COUNTER, '',
           'Pages read back from files that should not have gone (since 5.9)'),
    Metric('compact_stall', COUNTER, '',
           'Tasks that had to move pages about to get many in a row'),
    Metric('compact_fail', COUNTER, '', 'Such tasks that got none'),
    Metric('compact_success', COUNTER, '', 'Such tasks that got some'),
    Metric('oom_kill', COUNTER, '', 'Processes killed since there was no memory (since 4.13)')))
VMSTAT_OTHERS = OpenTable('vm', '', 'As in proc/vmstat: nr_* as they stand, what counts events per '
                          'second', source='proc/vmstat')

# What is shown unasked: VMSTAT, and what older kernels have in its place, zone by zone.
VM_USUAL = tuple(m.name for m in VMSTAT.columns) + (
    'allocstall*', 'pgscan_direct_*', 'pgscan_kswapd_*', 'pgsteal_dma*', 'pgsteal_high',
    'pgsteal_movable', 'pgsteal_normal', 'pgsteal_direct_*', 'pgsteal_kswapd_*',
    'workingset_refault')

# How many there are is nr_*, but for this one; these are called so and count what happened all the
# same.
VM_GAUGES = ('workingset_nodes',)
VM_COUNTERS = (
    'nr_dirtied', 'nr_written', 'nr_throttled_written', 'nr_vmscan_write',
    'nr_vmscan_immediate_reclaim', 'nr_foll_pin_acquired', 'nr_foll_pin_released',
    'nr_tlb_remote_flush', 'nr_tlb_remote_flush_received', 'nr_tlb_local_flush_all',
    'nr_tlb_local_flush_one')


@module('vmstat', 'Paging, swapping, faults, reclaim, OOM kills: proc/vmstat', [
    Option('keys', patterns, [], 'Patterns of further lines; ! takes away; ["*"] is everything'),
    ], VMSTAT, VMSTAT_OTHERS)
def vmstat(tree, options, memory):
    """proc/vmstat: `pgpgin 24578813`, some 180 lines"""
    data = tree.read('proc/vmstat')
    words = data.split()
    if memory.get('names') == words[::2] and data.endswith(b'\n'):     # the lines of last time
        try:
            yield memory['table'], (), counters([words[i] for i in memory['kept']])
            return
        except ValueError:                      # one is bad, or none is kept
            pass
    lines = vmstat_lines(tree, data)
    if not set(lines) <= set(memory.get('names', ())):
        keep, names = matcher(list(VM_USUAL) + options.keys), list(lines)
        kept = [i for i, name in enumerate(names) if keep(shown(name))]
        memory.update(names=names, kept=[2 * i + 1 for i in kept],
                      table=vmstat_table([shown(names[i]) for i in kept]))
    row = [lines.get(memory['names'][i // 2], ABSENT) for i in memory['kept']]
    if row:
        yield memory['table'], (), row


def vmstat_lines(tree, data):
    """{name: number} of the lines that are sound; ValueError when none is."""
    plain, out = b'abcdefghijklmnopqrstuvwxyz0123456789_', {}
    for line in whole_lines(tree, data):
        words = line.split()
        try:
            if len(words) != 2 or words[0].translate(None, plain) or words[0] in out:
                raise ValueError
            out[words[0]], = counters(words[1:])
        except ValueError:
            tree.bad_line()
    if not out:
        raise ValueError('proc/vmstat')
    return out


def vmstat_table(names):
    """The Table of these lines."""
    known = {m.name: m for m in VMSTAT.columns}
    return Table('vm', tuple([
        known.get(name) or Metric(name, vmstat_kind(name), '', VMSTAT_OTHERS.help)
        for name in names]), source=VMSTAT.source)


def vmstat_kind(name):
    """Whether a line says how many there are, or counts what happened."""
    many = name.startswith('nr_') and name not in VM_COUNTERS or name in VM_GAUGES
    return GAUGE if many else COUNTER


# -- flows: the bytes that each owner of TCP sockets moved (sock_diag(7)) ----------------------

MOST_FLOWS = 1000000            # sockets that are remembered
MOST_GONE = 65536               # of them, those that no dump shows and whose end was not heard of
ASK_AGAIN = 60                  # readings, after which the owner of a socket is asked anew
ESTABLISHED, CLOSE_WAIT, LISTEN = 1, 8, 10
HALF_CLOSED = 4, 5              # FIN_WAIT1, FIN_WAIT2: we said that we have no more to say
PEER_ENDED = 8, 9, 11           # CLOSE_WAIT, LAST_ACK, CLOSING: the FIN of the peer has come
# Not 3 and 6: a flood of SYNs, or of TIME_WAITs, would come along, which have no counters.
FLOW_STATES = 1, 2, 4, 5, 8, 9, 10, 11
ANYWHERE = bytes(16)            # the address of a listener that takes all


class Flow:
    """A TCP socket that is remembered: its inode (0: no process holds it), the owner of that, and
    its counters as the kernel had them last. rx, tx: payload. server: it came from a listener.
    seen: the last reading whose dump had it; asked: how often its owner was."""
    __slots__ = ('inode', 'owner', 'state', 'acked', 'received', 'sent', 'rx', 'tx', 'retrans',
                 'server', 'seen', 'asked')

    def __init__(self, server, seen):
        self.server, self.seen, self.inode, self.owner, self.state = server, seen, 0, None, 0
        self.acked = self.received = self.sent = self.rx = self.tx = self.retrans = self.asked = 0


class Flows:
    """TCP payload by owner, exact: read() gives what was moved since it was called last.

    Sockets are known by their cookie, which stays theirs to the end. What is in a dump has an inode
    to ask the owner by. At its end the kernel tells the last counters of a socket, but no inode: if
    a dump had it, its owner is known; if not, it lived shorter than the time between two readings,
    and one that a listener accepted goes to the owner of the listener. The others are None's.

    lost: ends that the kernel could not tell, for too many came at once. Of what moved between the
    last dump and such an end, nothing is known. UDP and QUIC have no such counters. Of MPTCP the
    subflows are counted, which are TCP sockets.
    """

    def __init__(self):
        self.flows, self.young, self.turn, self.began = {}, [], 0, 0.0
        self.listeners, self.listeners_before = {}, {}
        self.layouts, self.lost, self.short, self.said = {}, 0, False, {}

    def read(self, tree, owners):
        """{owner, or None: (bytes received, bytes sent, bytes sent again, open connections)}, None
        always among them. Sockets that are there at the first reading have moved nothing by then.
        Before 4.19 what was sent again is a hole. Raises Absent.

        owners: set of inodes -> {inode: owner} of those that have one, and of those that it still
        looks for {inode: None}. It is asked about a socket as it appears, at the next reading
        again, for who accepts and forks hands it on, and then at every ASK_AGAIN-th; where no owner
        is found, twice more, and as long as it looks.
        """
        turn, grown, present = self.turn + 1, [], []
        if turn == 1:
            self.began = tree.monotonic()
            tree.listen()                       # before the dump: an end must not fall in between
        tree.when = tree.monotonic()            # the processes were read before it, which took time
        self.read_dump(tree, turn, grown, present)
        self.turn = turn
        self.read_ends(tree, grown)
        self.ask(owners)
        return self.sums(grown if turn > 1 else (), present)

    def news(self):
        """[text] of what there is to say, each once."""
        out = [text for text, told in self.said.items() if not told]
        self.said.update(dict.fromkeys(out, True))
        return out

    def read_dump(self, tree, turn, grown, present):
        """Takes in all live sockets. What is read of one family is good without the other."""
        listeners, trouble, pieces, counterless = {}, None, 0, 0
        for family, version in FAMILIES:
            try:
                for piece in tcp_sockets(tree, 'inet' + version, family, FLOW_STATES, True):
                    if not pieces:
                        self.listeners_before, self.listeners = self.listeners, listeners
                    pieces += 1
                    counterless += self.take(piece, turn, grown, present) and 1
            except Absent as error:
                trouble = trouble or error
        if not pieces:
            raise trouble
        if counterless and not self.flows:
            raise Absent('this kernel does not count the bytes of TCP sockets (since 4.1)')

    def take(self, piece, turn, grown, present):
        """Takes in what a piece of a dump says; whether its sockets have no counters. Adds (flow,
        entry) of those that changed and of connections that are open."""
        flows, none = self.flows, True
        for entry in tcp_entries(piece, self.layouts):
            (family, state, port, address, cookie, unread, inode, ages, acked, received, sent,
             retrans) = entry
            none, flow = False, flows.get(cookie)
            if flow is None:
                if len(flows) >= MOST_FLOWS:
                    continue
                server = state != LISTEN and self.listener(entry) is not None
                flow = flows[cookie] = Flow(server, 0)
            elif flow.seen == turn:             # it was in the dump already
                continue
            flow.seen = turn
            if inode != flow.inode:             # it appeared, was accepted, or closed
                flow.inode, flow.asked = inode, 0
                self.young.append(flow)
            if received != flow.received or sent != flow.sent or acked != flow.acked:
                self.grow(flow, entry, state in PEER_ENDED, grown)
            flow.state = state
            if state == LISTEN:
                self.listeners.setdefault((family, port), {}).setdefault(address, flow)
            elif inode or state == ESTABLISHED or state == CLOSE_WAIT:  # or not accepted yet
                present.append((flow, entry))
        return none and any(0 < info_of(piece, at, length)[1] < 136
                            for at, length, count in socket_runs(piece))

    def grow(self, flow, entry, ended, grown):
        """Adds (flow, entry, payload received, sent, sent again) that are more than before. ended:
        the peer's FIN has come.

        bytes_received counts that FIN as one byte. bytes_sent less bytes_retrans is what was sent
        of the payload, SYN and FIN not counted, and the same whether the peer acknowledged it or
        not, or died. Before 4.19 there is bytes_acked only, which lags behind by what is on its
        way, and counts a SYN (of who connects) and a FIN as one each.
        """
        state, acked, received, sent, retrans = (entry[1],) + entry[8:]
        if received < flow.received or acked < flow.acked:
            flow.rx = flow.tx = flow.retrans = 0        # connect(2), AF_UNSPEC: it begins anew
        rx = received - (ended and received > 0)
        if sent is None:
            self.short = True
            tx = max(0, acked - (not flow.server) - (state in (5, 7)))
        else:
            tx = sent - retrans
        more = max(0, rx - flow.rx), max(0, tx - flow.tx), max(0, (retrans or 0) - flow.retrans)
        if any(more):
            grown.append((flow, entry) + more)
        flow.acked, flow.received, flow.sent = acked, received, sent
        flow.rx, flow.tx = flow.rx + more[0], flow.tx + more[1]
        flow.retrans += more[2]

    def read_ends(self, tree, grown):
        """Takes in the last counters of sockets that are no more."""
        try:
            data = tree.destroyed()
        except Absent as error:
            self.said.setdefault('TCP connections that end between two readings are not counted: %s'
                                 % error, False)
            self.flows = {c: f for c, f in self.flows.items() if f.seen == self.turn}
            return
        lost = events_lost(data)
        if lost and not self.lost:
            self.said['TCP sockets ended faster than the kernel could say (net.core.rmem_max): '
                      'what the last of them moved is not known'] = False
        self.lost += lost
        passed = (tree.monotonic() - self.began) * 1000
        for entry in tcp_entries(data, self.layouts):
            flow = self.flows.pop(entry[4], None)
            if flow is None:
                # One that a reset ended, and that was held all the same, is in no dump: it may be
                # older than we are. ms since data was sent, (unused), data came, an ACK came:
                ages = struct.unpack('=4I', entry[7])
                if self.turn == 1 or min(ages[0], ages[2], ages[3]) > passed:
                    continue
                flow = Flow(self.listener(entry) is not None, 0)
            self.grow(flow, entry, self.peer_ended(flow, entry), grown)
            flow.inode = 0
        if len(self.flows) > MOST_GONE:
            self.forget()

    def peer_ended(self, flow, entry):
        """Whether the FIN of the peer is among the bytes received of a socket that is no more.

        Its last state says so, if a dump had it. Else: a FIN that was not read is one unread byte.
        One that ended in order got an ACK for its own FIN, a reset one did not. Whether the peer's
        was read, or never came since we closed first (the rest is a TIME_WAIT's, another socket),
        nothing tells. Taken is what is usual: who connected closed first. So one byte may be wrong.
        """
        unread, acked, sent, retrans = entry[5], entry[8], entry[10], entry[11]
        if flow.state in PEER_ENDED or unread:
            return flow.state in PEER_ENDED or unread == 1
        if sent is not None and acked - (sent - retrans) != (1 if flow.server else 2):
            return False
        return flow.server or flow.state in HALF_CLOSED

    def forget(self):
        """Those that are in no dump and do not end either: a reset ended them, and they are held;
        or the word of their end was lost. The oldest of too many are forgotten."""
        gone = [cookie for cookie, flow in self.flows.items() if flow.seen != self.turn]
        for cookie in gone[:-MOST_GONE]:
            del self.flows[cookie]

    def ask(self, owners):
        """Asks for the owners of new sockets, and now and then of all."""
        asked, turn = self.young, self.turn
        asked += [flow for cookie, flow in self.flows.items() if not (turn - cookie) % ASK_AGAIN
                  and flow.seen == turn and flow.asked > 1]
        inodes = set([flow.inode for flow in asked if flow.inode])
        found = owners(inodes) if inodes else {}
        self.young = []
        for flow in asked:
            owner = found.get(flow.inode)
            flow.asked += 1
            if owner is not None:
                flow.owner = owner
            most = 2 if owner is not None else ASK_AGAIN if flow.inode in found else 4
            if flow.inode and flow.asked < most:
                self.young.append(flow)

    def listener(self, entry):
        """The Flow of the listener at the local address of an entry, or None."""
        for listeners in (self.listeners, self.listeners_before):
            here = listeners.get((entry[0], entry[2]))
            if here:
                found = here.get(entry[3]) or here.get(ANYWHERE)
                if found:
                    return found
        return None

    def owner(self, flow, entry):
        """Who a socket belongs to: its own owner, else that of the listener it came from."""
        if flow.owner is None:
            flow = self.listener(entry) or flow
        return flow.owner

    def sums(self, grown, present):
        out = {None: [0, 0, 0, 0]}
        for flow, entry, rx, tx, retrans in grown:
            row = out.setdefault(self.owner(flow, entry), [0, 0, 0, 0])
            row[0] += rx
            row[1] += tx
            row[2] += retrans
        for flow, entry in present:
            out.setdefault(self.owner(flow, entry), [0, 0, 0, 0])[3] += 1
        return {who: (row[0], row[1], ABSENT if self.short else row[2], row[3])
                for who, row in out.items()}


# -- netstat: proc/net/snmp, netstat, snmp6 (networking/snmp_counter.rst) ----------------------

# A metric is called as in the kernel but for the case: `TcpExt: ListenDrops` is tcpext.listendrops,
# `Ip6InReceives` is ip6.inreceives.

NETSTAT_SETTINGS = frozenset((b'Forwarding', b'DefaultTTL', b'RtoAlgorithm', b'RtoMin', b'RtoMax',
                              b'MaxConn'))      # no counters; MaxConn is -1
NETSTAT_GAUGES = frozenset((b'CurrEstab', b'MPCurrEstab'))
NETSTAT_TABLES = tuple(
    OpenTable(lines.lower(), '', 'As in the lines `%s`, lower case' % lines, source, COUNTER)
    for lines, source in (
        ('Ip', 'proc/net/snmp'), ('Icmp', 'proc/net/snmp'), ('IcmpMsg', 'proc/net/snmp'),
        ('Tcp', 'proc/net/snmp'), ('Udp', 'proc/net/snmp'), ('UdpLite', 'proc/net/snmp'),
        ('TcpExt', 'proc/net/netstat'), ('IpExt', 'proc/net/netstat'),
        ('MPTcpExt', 'proc/net/netstat'), ('Ip6', 'proc/net/snmp6'), ('Icmp6', 'proc/net/snmp6'),
        ('Udp6', 'proc/net/snmp6'), ('UdpLite6', 'proc/net/snmp6')))
NETSTAT_USUAL = (
    'tcp.*', 'tcpext.listen*', 'tcpext.syncookies*', 'tcpext.tcptimeouts', 'tcpext.tcpsynretrans',
    'tcpext.tcpofoqueue', 'tcpext.tcprcvqdrop', 'tcpext.tcpbacklogdrop', 'tcpext.tcpabortonmemory',
    'tcpext.tcpmemorypressures', 'udp.*', 'udp6.*', '!*.ignoredmulti', 'ip.in*', 'ip6.in*',
    '!ip6.in?cast*', '!ip6.in*ect*', '!ip6.incepkts', 'ip.out*', 'ip6.out*', '!ip6.out?cast*',
    '!*.outtransmits', '*.forwdatagrams', '*.outforwdatagrams', '*.reasmfails', '*.fragfails',
    'ipext.inoctets', 'ipext.outoctets', 'icmp.inmsgs', 'icmp.outmsgs', 'icmp.inerrors',
    'icmp6.inmsgs', 'icmp6.outmsgs', 'icmp6.inerrors')


@module('netstat', 'Counters of IP, ICMP, TCP and UDP: proc/net/snmp, proc/net/netstat, ...', [
    Option('keys', patterns, [],
           'Patterns of further metrics, as "tcpext.tcp*"; ! takes away; ["*"] is everything')],
    *NETSTAT_TABLES)
def netstat_snmp(tree, options, memory):
    return netstat_pairs(tree, options, memory, 'proc/net/snmp')


@module('netstat', '', [])
def netstat_more(tree, options, memory):
    return netstat_pairs(tree, options, memory, 'proc/net/netstat')


def netstat_pairs(tree, options, memory, name):
    """`Udp: InDatagrams NoPorts InErrors ...`, then `Udp: 12650 298 0 ...`. Each kernel has other
    columns."""
    heads, found = {}, False
    for line in whole_lines(tree, tree.read(name)):
        prefix, colon, rest = line.partition(b':')
        if prefix not in heads:
            heads[prefix] = rest
            continue
        names, values = heads.pop(prefix), rest.split()
        if memory.get(prefix, NEVER)[0] != names:
            words = names.split()
            memory[prefix] = names, len(words), netstat_plan(options, memory, prefix, words)
        known, count, plan = memory[prefix]
        if len(values) != count:
            tree.bad_line()
            continue
        found = True
        yield from netstat_row(tree, plan, values)
    if heads or not found:
        for prefix in heads:
            tree.bad_line()
        if not found:
            raise ValueError(name)


@module('netstat', '', [])
def netstat_snmp6(tree, options, memory):
    """`Ip6InReceives                   \\t6980`, a line each"""
    words = b'\n'.join(whole_lines(tree, tree.read('proc/net/snmp6'))).split()
    names, values = words[0::2], words[1::2]
    if len(names) != len(values):
        raise ValueError('proc/net/snmp6')
    if memory.get('snmp6', NEVER)[0] != names:
        families = {}
        for i, name in enumerate(names):
            prefix, six, key = name.partition(b'6')
            families.setdefault(prefix + six, []).append((i, key))
        memory['snmp6'] = names, [
            netstat_plan(options, memory, prefix, [key for i, key in those], [i for i, k in those])
            for prefix, those in families.items()]
    for plan in memory['snmp6'][1]:
        yield from netstat_row(tree, plan, values)


def netstat_plan(options, memory, prefix, keys, places=None):
    """(table, places in the line) of the columns that are wanted, or None. places: where the keys
    are, when that is not one behind the other."""
    if 'keep' not in memory:
        memory['keep'] = netstat_keep([key.lower() for key in options.keys])
    keep = memory['keep']
    family = prefix.decode('ascii', 'replace').lower()
    table = [t for t in NETSTAT_TABLES if t.family == family]
    columns = {}
    for i, key in enumerate(keys):
        name = key.decode('ascii', 'replace').lower()
        if (name.replace('_', '').isalnum() and key not in NETSTAT_SETTINGS
                and keep('%s.%s' % (family, name))):
            kind = GAUGE if key in NETSTAT_GAUGES else COUNTER
            unit = 'B/s' if name.endswith('octets') else ''
            columns.setdefault(name, (kind, unit, places[i] if places else i))
    if not table or not columns:
        return None
    return (table[0].of([(name, kind, unit) for name, (kind, unit, i) in columns.items()]),
            [i for kind, unit, i in columns.values()])


def netstat_keep(keys):
    """Name -> whether it is usual or one of the keys asks for it, and none takes it away."""
    usual, more = matcher(NETSTAT_USUAL), [key for key in keys if not key.startswith('!')]
    refused = [key[1:] for key in keys if key.startswith('!')]
    return lambda name: ((usual(name) or any([glob(key, name) for key in more]))
                         and not any([glob(key, name) for key in refused]))


def netstat_row(tree, plan, values):
    """The row of a plan; none when it is garbage."""
    if plan is not None:
        try:
            yield plan[0], (), counters([values[i] for i in plan[1]])
        except ValueError:
            tree.bad_line()


# -- sockets: how many there are (proc/net/sockstat, sockstat6; sock_diag(7)) ------------------

SOCKETS = Table('sockets', source='proc/net/sockstat', columns=(
    Metric('used', GAUGE, '', 'Sockets of all families'),
    Metric('tcp_inuse', GAUGE, '', 'TCP sockets but for those in TIME_WAIT; IPv4'),
    Metric('tcp_orphan', GAUGE, '', 'TCP sockets that no process holds; all of the machine'),
    Metric('tcp_tw', GAUGE, '', 'TCP connections in TIME_WAIT; IPv4 and IPv6'),
    Metric('tcp_alloc', GAUGE, '', 'TCP sockets that exist; all of the machine'),
    Metric('tcp_mem', GAUGE, 'B', 'Memory of the buffers of TCP; all of the machine'),
    Metric('udp_inuse', GAUGE, '', 'UDP sockets; IPv4'),
    Metric('udp_mem', GAUGE, 'B', 'Memory of the buffers of UDP; all of the machine'),
    Metric('udplite_inuse', GAUGE, '', 'UDP-Lite sockets; IPv4'),
    Metric('raw_inuse', GAUGE, '', 'Raw sockets; IPv4'),
    Metric('frag_inuse', GAUGE, '', 'Packets that wait for their other fragments; IPv4'),
    Metric('frag_memory', GAUGE, 'B', 'Memory of these')))
SOCKETS6 = Table('sockets', source='proc/net/sockstat6', columns=(
    Metric('tcp6_inuse', GAUGE, '', 'TCP sockets but for those in TIME_WAIT; IPv6'),
    Metric('udp6_inuse', GAUGE, '', 'UDP sockets; IPv6'),
    Metric('udplite6_inuse', GAUGE, '', 'UDP-Lite sockets; IPv6'),
    Metric('raw6_inuse', GAUGE, '', 'Raw sockets; IPv6'),
    Metric('frag6_inuse', GAUGE, '', 'Packets that wait for their other fragments; IPv6'),
    Metric('frag6_memory', GAUGE, 'B', 'Memory of these')))
# A socket in CLOSE is in no table of the kernel, and so in no dump.
COUNTED_STATES = tuple((i, name) for i, name in enumerate(TCP_STATES, 1) if name != 'close')
SOCKET_STATES = Table('sockets', source='sock_diag(7)', columns=tuple(
    Metric('tcp_' + name, GAUGE, '', 'TCP sockets in %s; IPv4 and IPv6' % name.upper())
    for i, name in COUNTED_STATES))


@module('sockets', 'Sockets by protocol, TCP sockets by state: proc/net/sockstat, sock_diag(7)', [],
        SOCKETS, SOCKETS6, SOCKET_STATES)
def socket_counts(tree, options, memory):
    """`TCP: inuse 27 orphan 0 tw 1 alloc 30 mem 3`; mem is in pages"""
    known = sockstat(tree, 'proc/net/sockstat')
    page = tree.page_size()
    row = [known.get(name, ABSENT) for name in [m.name for m in SOCKETS.columns]]
    for i, metric in enumerate(SOCKETS.columns):
        if metric.name.endswith('_mem'):
            row[i] *= page
    yield SOCKETS, (), row


@module('sockets', '', [])
def socket_counts6(tree, options, memory):
    """`TCP6: inuse 4`"""
    known = sockstat(tree, 'proc/net/sockstat6')
    yield SOCKETS6, (), [known.get(metric.name, ABSENT) for metric in SOCKETS6.columns]


def sockstat(tree, name):
    """{'tcp_inuse': 27, 'used': 312}; ValueError when there is nothing in it."""
    out = {}
    for line in whole_lines(tree, tree.read(name)):
        prefix, colon, rest = line.partition(b':')
        words = rest.split()
        try:
            numbers = counters(words[1::2])
        except ValueError:
            tree.bad_line()
            continue
        first = '' if prefix == b'sockets' else prefix.decode('ascii', 'replace').lower() + '_'
        for word, number in zip(words[0::2], numbers):
            out[first + word.decode('ascii', 'replace')] = number
    if not out:
        raise ValueError(name)
    return out


@module('sockets', '', [])
def socket_states(tree, options, memory):
    """One dump per family; its sockets have no counters, so that it is a small one."""
    counts = [0] * 256
    for family, version in FAMILIES:
        for piece in tcp_sockets(tree, 'states' + version, family, [i for i, n in COUNTED_STATES]):
            for at, length, count in socket_runs(piece):
                column = piece[at + 17:at + count * length:length]      # idiag_state
                for state in set(column):
                    counts[state] += column.count(state)
    tree.when = tree.monotonic()
    yield SOCKET_STATES, (), [counts[i] for i, name in COUNTED_STATES]


# -- processes: proc/PID/stat, status, io, schedstat, cmdline, fd (proc(5)) -----------------------

KERNEL_THREAD = 0x200000        # PF_KTHREAD among the flags of proc/PID/stat
NO_RIGHT = errno.EACCES, errno.EPERM
ENDED = errno.ENOENT, errno.ESRCH, errno.ENOTDIR
TURNS = 10                      # a process that does nothing is read every so many ticks
LINKS_A_TICK = 1000             # descriptors that are looked at in search of sockets, 7 us each
TRIES = 3                       # searches through everybody for a socket that nobody has
MOST_ENDED = 4096               # processes that ended of which the group is remembered
KERNEL = ''                     # the key of the group of all threads of the kernel
MOST_PROCESS_NAME = 64          # characters
HALF_LIFE = 30.0                # seconds after which the time a name used counts half
STAYS = 60.0                    # seconds that a name without processes stays among the busiest

PROCESS_WORK = (
    Metric('count', GAUGE, '', 'Processes'),
    Metric('threads', GAUGE, '', 'Threads'),
    Metric('fds', GAUGE, '', 'Open file descriptors'),
    Metric('cpu_user', COUNTER, 'percent',
           'Time in user mode, in percent of one core, with that of children it waited for'),
    Metric('cpu_system', COUNTER, 'percent',
           'Time in kernel mode, in percent of one core, with that of children it waited for'),
    Metric('cpu', COUNTER, 'percent', 'Both'),
    Metric('rss', GAUGE, 'B', 'Resident memory'),
    Metric('vsize', GAUGE, 'B', 'Address space'),
    Metric('swap', GAUGE, 'B', 'Memory that is swapped out (since 2.6.34)'),
    Metric('minor_faults', COUNTER, '', 'Page faults without a disk'),
    Metric('major_faults', COUNTER, '', 'Page faults that waited for a disk'),
    # The kernel counts these for each thread; proc/PID/status has those of the first one, and so
    # have pidstat, psutil and others.
    Metric('ctxt_voluntary', COUNTER, '',
           'Context switches to wait for something, first threads only (since 2.6.23)'),
    Metric('ctxt_involuntary', COUNTER, '',
           'Context switches forced by the scheduler, first threads only (since 2.6.23)'),
    Metric('disk_read_bytes', COUNTER, 'B/s', 'Bytes that disks had to read'),
    Metric('disk_write_bytes', COUNTER, 'B/s', 'Bytes that were made to be written to disks'),
    Metric('uptime', REAL, 's', 'Age of the oldest process'))
PROCESS_TRAFFIC = (
    Metric('net_rx_bytes', COUNTER, 'B/s', 'Payload received over TCP'),
    Metric('net_tx_bytes', COUNTER, 'B/s', 'Payload sent over TCP'),
    Metric('net_retrans_bytes', COUNTER, 'B/s', 'Payload sent again over TCP'),
    Metric('tcp_connections', GAUGE, '', 'TCP connections'))
GROUP_WORK = Table('proc', PROCESS_WORK, ('group',), 'proc/PID')
PID_WORK = Table('proc', PROCESS_WORK, ('group', 'pid'), 'proc/PID')
GROUP_TRAFFIC = Table('proc', PROCESS_TRAFFIC, ('group',), 'netlink sock_diag')
PID_TRAFFIC = Table('proc', PROCESS_TRAFFIC, ('group', 'pid'), 'netlink sock_diag')

# What is added up over the processes of a group: the first six are shown, the others say how many
# of them had a say in fds, swap, context switches and disk bytes.
NO_GAUGES = (0,) * 10
# What a group has done: user, system, minor and major faults, voluntary and involuntary switches,
# bytes read and written.
NO_WORK = (0,) * 8
NO_TRAFFIC = (0, 0, 0)


class Process:
    """What was known of a process when it was last read. key: (pid, start time), since pids are
    used again. line: its schedstat, None while that is not asked. named: whether its command line
    was read, once or twice. work: as in NO_WORK, None for what is not known; kin: the first four of
    them of children that it waited for. stack: where its stack begins, which says whether it
    executed another program. size: its memory by stat. debt: disk bytes that are still to be taken
    off. sockets: the {inode: descriptor} of those it had; at, partly: how far the search for them
    has come, and what it found. tasks: {thread: (start time, user, system)}, for the module
    threads; born: whether it began after the reading before it was first seen."""
    __slots__ = ('pid', 'start', 'key', 'folder', 'parent', 'comm', 'stack', 'state', 'kernel',
                 'line', 'named', 'group', 'work', 'kin', 'gauges', 'debt', 'denied', 'sockets',
                 'at', 'partly', 'tasks', 'born', 'size')

    def __init__(self, pid, start):
        self.pid, self.start, self.key, self.folder = pid, start, (pid, start), 'proc/%d/' % pid
        self.parent, self.comm, self.stack, self.state, self.kernel = 0, None, 0, '', False
        self.named, self.group, self.debt, self.denied = 0, None, None, False
        self.size = self.line = None
        self.work, self.kin, self.gauges = NO_WORK, NO_WORK[:4], NO_GAUGES
        self.sockets, self.at, self.partly, self.tasks, self.born = {}, 0, {}, {}, True


class Group:
    """Processes that are added up. key: in Census.groups; labels: of its rows. work, traffic: all
    that they did since we look, also those that ended; worked, sent: that, when the last rows were
    made. ranked: whether it is shown only while it is among the busiest. score: processor time that
    it used of late; empty: since when it has no process."""
    __slots__ = ('key', 'labels', 'ranked', 'gauges', 'work', 'worked', 'traffic', 'sent',
                 'connections', 'members', 'oldest', 'score', 'empty')

    def __init__(self, key, labels, ranked=False):
        self.key, self.labels, self.ranked = key, labels, ranked
        self.gauges = list(NO_GAUGES)
        self.work, self.worked = list(NO_WORK), NO_WORK
        self.traffic, self.sent, self.connections = list(NO_TRAFFIC), NO_TRAFFIC, 0
        self.members, self.oldest, self.score, self.empty = {}, None, 0.0, None

    def since(self):
        """The start time of its oldest process, None without one."""
        if self.oldest is None and self.members:
            self.oldest = min([p.start for p in self.members.values()])
        return self.oldest


class Reaper:
    """A process that has waited for children since it was last read: what they did, which is the
    growth of its figures for them, and of its disk bytes, which hold those of both. growth: what it
    did itself."""
    __slots__ = ('process', 'growth', 'kin', 'disk')

    def __init__(self, process, growth, kin):
        self.process, self.growth, self.kin, self.disk = process, growth, kin, growth[6:]


def process_stat(data):
    """(name, state, [the 25 numbers from the parent's pid on]) of proc/PID/stat;
    ValueError when it is none.

    `42 (a) b) S 1 42 42 0 -1 4194560 ...`: the name may hold blanks, parentheses and line ends, and
    nothing is escaped: it ends at the last parenthesis. One that is waited for as it is read has no
    threads, no parent and zeros for most of what it did: that is the ProcessLookupError it will be.
    """
    end = data.rfind(b')')
    words = data[end + 2:].split(None, 26)
    if end < 0 or len(words) < 26:
        raise ValueError('proc/PID/stat')
    if words[17] == b'0':
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return data[data.find(b'(') + 1:end], words[0], list(map(int, words[1:26]))


# parent: 0, flags: 5, threads: 16, start time: 18, address space: 19, pages: 20, stack: 24
stat_work = itemgetter(10, 11, 6, 8)            # user, system, minor, major faults
stat_kin = itemgetter(12, 13, 7, 9)             # the same of children that were waited for


def disk_bytes(tree, process):
    """(read, written) of proc/PID/io, which others than its owner may read with CAP_SYS_PTRACE
    and CAP_DAC_READ_SEARCH only; both None when that is so, or the kernel has none. Children it
    waited for are included.

    `rchar: 1 wchar: 2 syscr: 3 syscw: 4 read_bytes: 5 write_bytes: 6 cancelled_write_bytes: 7`, a
    line each.
    """
    try:
        words = tree.glance(process.folder + 'io', 512).split()
    except OSError as error:
        process.denied = error.errno in NO_RIGHT
        return None, None
    if len(words) > 11 and words[8] == b'read_bytes:' and (words[9] + words[11]).isdigit():
        return int(words[9]), int(words[11])
    return None, None


def process_status(tree, process):
    """(bytes resident, of address space, swapped out, (voluntary, involuntary context switches)) of
    proc/PID/status, None for what it does not say. `VmSwap:\t       0 kB`, and at its end
    `voluntary_ctxt_switches:\t150` and `nonvoluntary_ctxt_switches:\t17`; a zombie and a thread of
    the kernel have no memory, and no lines about it."""
    try:
        data = tree.glance(process.folder + 'status', 8192)
    except OSError:
        return None, None, None, (None, None)
    rss, vsize, swap = 0, 0, 0
    if b'\nVmSize:' in data:
        rss, vsize, swap = [status_bytes(data, data.find(key)) for key in (
            b'\nVmRSS:', b'\nVmSize:', b'\nVmSwap:')]
    words = data[data.rfind(b'\nvoluntary_ctxt_switches:'):].split(None, 4)
    if words[2:3] == [b'nonvoluntary_ctxt_switches:'] and (words[1] + words[3]).isdigit():
        return rss, vsize, swap, (int(words[1]), int(words[3]))
    return rss, vsize, swap, (None, None)


def status_bytes(data, at):
    """The bytes of the line that begins at that place, in kB; None when there is none."""
    words = data[at:at + 40].split(None, 2) if at >= 0 else ()
    return int(words[1]) << 10 if words[1:] and words[1].isdigit() else None


def descriptors(tree, process):
    """How many files it has open, None when that cannot be read."""
    try:
        return tree.count(process.folder + 'fd')
    except OSError:
        return None


def command_line(tree, process):
    """Its arguments, as far as they stand in 4096 bytes, with NULs between them; b'' of a thread of
    the kernel and of a process that has ended."""
    try:
        return tree.glance(process.folder + 'cmdline').rstrip(b'\0')
    except OSError:
        return b''


def process_name(comm, command):
    """The name of a program as text. comm has 15 bytes at most; where the first argument goes on
    from there, that one is the name."""
    if len(comm) == 15:
        words = command.split(b'\0', 1)[0].rpartition(b'/')[2].split(None, 1)
        if words and words[0].startswith(comm):
            comm = words[0].rstrip(b':')
    return shown(comm)[:MOST_PROCESS_NAME] or '?'


def grown(now, before):
    """What grew by how much; what fell, or is not known, did not."""
    return [n - b if n is not None and b is not None and n > b else 0
            for n, b in zip(now, before)]


def has_schedstat(tree, pids):
    """Whether proc/PID/schedstat says how often a process had a turn; `0 0 0` of one that runs
    means that the kernel does not keep account of it."""
    for pid in pids[:20]:
        try:
            words = tree.glance('proc/%d/schedstat' % pid, 128).split()
        except OSError:
            continue
        if len(words) == 3 and words[2].strip(b'0'):
            return True
    return False


def cores_of(tree):
    """How many cores there are, or more than that when it is not known."""
    try:
        return core_count(tree.read('proc/stat', True)) or 1 << 16
    except Absent:
        return 1 << 16


class Census:
    """Which processes there are, in which group, and what they have done since they were last read.

    whole: everything of them is read, not only proc/PID/stat. kernel: whether threads of the kernel
    are read. What costs time is left out where nothing can have changed: a process whose schedstat
    (time on a processor, time in the queue, turns) is what it was has done nothing at all, so it is
    only read every TURNS ticks, for its memory; where there are several threads, that holds for the
    first one only.

    A child's times and faults go to its parent when that waits for it, and its disk bytes too. What
    had been counted when the child was last read is taken off, and what is left (children that no
    tick has seen, and the last moments of the others) goes to the group of the parent.
    """

    def __init__(self, options, whole=True, kernel=False):
        self.options, self.whole = options, whole
        self.kernel = kernel or options.kernel_threads
        self.known, self.early, self.waiting, self.gone = {}, {}, [], []
        self.reapers, self.ended, self.round, self.newest = {}, {}, 0, 0
        self.when, self.clock, self.cores, self.scheduled = 0.0, None, 1, True
        self.elapsed, self.thorough, self.has_io = 0.0, False, False
        self.hidden, self.veiled = 0, False
        self.top = options.top or (0 if options.groups else 10)
        self.groups, self.ranked, self.chosen, self.dirty = {}, {}, [], set()
        self.everyone = Group('', ())             # the gauges of all that are ranked
        self.search = self.expressions()
        self.groups[KERNEL] = Group(KERNEL, ('kernel',))
        for name in list(options.groups) + ['other']:
            if options.by == 'name' or name not in options.groups:
                self.groups[name] = Group(name, (name,))
        self.unknown, self.talkers, self.shown_before = Group('unknown', ('unknown',)), [], set()
        self.sockets, self.missed, self.links = {}, {}, 0
        self.new, self.likely, self.due = {}, {}, {}

    def expressions(self):
        """[(name, function of a text)] of the configured groups."""
        if not self.options.groups:
            return []
        import re                               # 1 MB: only for those who want it
        return [(name, re.compile(e).search) for name, e in self.options.groups.items()]

    # reading

    def sweep(self, tree):
        """Reads all processes; raises Absent, or the OSError that is no process' own."""
        try:
            pids = tree.numbers('proc')
        except OSError as error:
            raise Absent('%s: %s' % (tree.path('proc/'), error.strerror or error))
        if not pids:
            raise Absent('%s: no processes' % tree.path('proc/'))
        self.begin(tree, pids)
        for pid in pids:
            try:
                self.visit(tree, pid)
            except OSError as error:
                self.failed(error, pid)
            except ValueError:
                tree.bad_line()
        present = set(pids)
        self.lose([p for pid, p in self.known.items() if pid not in present])
        self.settle(tree)

    def begin(self, tree, pids):
        if self.round == 0:
            self.cores, self.scheduled = cores_of(tree), has_schedstat(tree, pids)
        self.clock = up_since(tree)
        tree.when = tree.monotonic()
        self.elapsed = tree.when - self.when if self.round else 0.0
        self.when, self.round, self.links = tree.when, self.round + 1, LINKS_A_TICK
        # A recording holds all there is, and is read so, for its reader has other turns.
        self.thorough = tree.afresh
        self.hidden, self.reapers, self.gone = 0, {}, []
        # hidepid=2 shows no sign of what it hides, but each PID namespace has a first process.
        self.veiled = 1 not in pids and (tree.hold or tree.borrowed())

    def visit(self, tree, pid):
        """Reads a process, unless it has done nothing and it is not its turn."""
        process = self.known.get(pid)
        if process is None:
            self.welcome(tree, pid)
            return
        turn, quiet = not (pid + self.round) % TURNS, False
        if process.kernel and not self.kernel and not turn:
            return
        if process.line is not None and not self.thorough:
            line = tree.glance(process.folder + 'schedstat', 128)
            quiet, process.line = line == process.line, line
            if quiet and process.gauges[1] == 1 and process.named:
                if turn and self.whole:
                    self.remember(tree, process)
                return
        self.study(tree, process, quiet and not turn)

    def remember(self, tree, process):
        """Reads the memory of a process that does nothing: what it has, others may take."""
        rss, vsize, swap, switches = process_status(tree, process)
        if rss is not None and vsize is not None and swap is not None:
            self.weigh(process, process.gauges[:3] + (rss, vsize, swap) + process.gauges[6:])

    def failed(self, error, pid):
        """A process could not be read: it has ended, or is none of our business."""
        if error.errno in NO_RIGHT:
            self.hidden += 1                    # hidepid=1, see proc(5)
        elif error.errno not in ENDED:
            raise error
        if pid in self.known:
            self.lose([self.known[pid]])

    def welcome(self, tree, pid):
        """Reads a process that is new. What began since the last reading has done nothing before
        it: all the others are younger than those known; what was hidden is not."""
        line = tree.glance('proc/%d/schedstat' % pid, 128) if self.scheduled else None
        stat = process_stat(tree.glance('proc/%d/stat' % pid))
        process = Process(pid, stat[2][18])
        process.kernel, process.line = bool(stat[2][5] & KERNEL_THREAD), line
        if self.round == 1 or process.start < self.newest:
            process.work, process.kin, process.born = (None,) * 8, (None,) * 4, False
        self.study(tree, process, False, stat)

    def study(self, tree, process, quiet, stat=None):
        """Reads a process and books what it did. quiet: its first thread has done nothing; stat:
        when that was read already."""
        disk = None, None
        if self.whole and not process.kernel:
            disk = disk_bytes(tree, process)    # before stat: see settle
        comm, state, numbers = stat or process_stat(tree.glance(process.folder + 'stat'))
        if numbers[18] != process.start:
            self.lose([process])
            self.welcome(tree, process.pid)
            return
        if process.pid not in self.known:
            self.known[process.pid] = process
            if not process.kernel:
                self.new[process.pid] = process
        process.state, process.parent = state, numbers[0]
        if process.parent > process.pid:
            self.early[process.pid] = process
        if process.kernel and not self.kernel:
            return
        if comm != process.comm or numbers[24] != process.stack or process.named < 2:
            self.name(tree, process, comm, numbers[24])
        switches, gauges = self.measure(tree, process, numbers, quiet, disk)
        self.book(process, numbers, switches + disk)
        self.weigh(process, gauges)

    def measure(self, tree, process, numbers, quiet, disk):
        """((voluntary, involuntary switches), gauges as in NO_GAUGES) of a process."""
        old, threads, pages = process.gauges, numbers[16], max(0, numbers[20])
        same = numbers[19:21] == process.size and numbers[6] == process.work[2]
        process.size = numbers[19:21]
        if not self.whole:
            return (None, None), (1, threads, 0, pages, numbers[19], 0, 0, 0, 0, 0)
        rss, vsize, swap, has_swap, switches = old[3], old[4], old[5], old[7], process.work[4:6]
        if not quiet or not old[0] or not same:
            # The pages in stat are but nearly right: since 6.2 each processor keeps a part.
            rss, vsize, swap, switches = process_status(tree, process)
            rss, has_swap = pages << 12 if rss is None else rss, swap is not None
            vsize = numbers[19] if vsize is None else vsize
            if self.scheduled and old[0] and switches[0] is not None:
                self.expect(process, switches)
        fds = descriptors(tree, process)
        self.has_io = self.has_io or disk[0] is not None
        return switches, (1, threads, fds or 0, rss, vsize, swap or 0, fds is not None, has_swap,
                          switches[0] is not None, disk[0] is not None)

    def expect(self, process, switches):
        """One that has had turns will have more: until it has none, its schedstat is not asked."""
        if switches != process.work[4:6]:
            process.line = None
        elif process.line is None:
            process.line = b''

    def book(self, process, numbers, more):
        """Adds what a process did to its group; where it has waited for children, settle does."""
        work, kin = stat_work(numbers) + more, stat_kin(numbers)
        growth = grown(work, process.work)
        children = grown(kin, process.kin) if kin != process.kin else NO_WORK
        process.work, process.kin = work, kin
        if process.debt:
            growth[6:] = [max(0, g - d) for g, d in zip(growth[6:], process.debt)]
            process.debt = None
        if children[2]:                         # no process ends without page faults
            self.reapers[process.pid] = Reaper(process, growth, children)
        elif any(growth):
            self.add(process.group, growth)
        if not process.kernel:
            (self.likely if process.sockets else self.due)[process.pid] = process

    def add(self, group, growth):
        group.work = [w + g for w, g in zip(group.work, growth)]
        self.dirty.add(group)

    def weigh(self, process, gauges):
        """Puts what a process has now in the place of what it had, in its group."""
        if gauges == process.gauges:
            return
        change = [n - o for n, o in zip(gauges, process.gauges)]
        process.gauges = gauges
        for group in (process.group, self.everyone) if process.group.ranked else (process.group,):
            group.gauges = [g + c for g, c in zip(group.gauges, change)]

    # names and groups

    def name(self, tree, process, comm, stack):
        """Finds the group of a process that is new, or executes another program. The command line
        is read when it says more than the name, never of one in an uninterruptible sleep, in which
        the read might hang, and twice of a new one, which may have been about to execute it."""
        again = comm == process.comm and stack == process.stack and process.named
        command, process.comm, process.stack = b'', comm, stack
        if process.kernel or not (self.search or len(comm) == 15):
            process.named = 2
        elif process.state == b'D':
            process.named = 0
            if process.group:
                return
        else:
            command = command_line(tree, process)
            process.named = 2 if again else 1
        self.enter(process, self.group_of(process, command))

    def group_of(self, process, command):
        """The Group that a process belongs to, made when there is none yet. One that ends has no
        command line any more: when it has the name of its parent, it is taken for another of it."""
        if process.kernel:
            return self.groups[KERNEL]
        parent = self.known.get(process.parent)
        if self.search and not command and parent and parent.comm == process.comm and parent.group:
            own = process.pid if len(parent.group.labels) > 1 else None
            return self.group(parent.group.labels[0], own, parent.group.ranked)
        if self.search:
            text = shown((command or process.comm).replace(b'\0', b' '))
            for name, search in self.search:
                if search(text):
                    return self.group(name, process.pid)
        name = process_name(process.comm, command)
        if not self.top or name in OWN_GROUPS or name in self.options.groups:
            return self.group('other', None)
        return self.group(name, process.pid, True)

    def group(self, name, pid, ranked=False):
        """The group of that name, or of that process when each has its own."""
        own = self.options.by == 'pid' and pid is not None
        key = (name, pid) if own else name
        if key not in self.groups:
            self.groups[key] = Group(key, (name, '%d' % pid) if own else (name,), ranked)
            if ranked:
                self.ranked[key] = self.groups[key]
        return self.groups[key]

    def enter(self, process, group):
        """Moves a process to a group, with what it has; what it did stays where it was."""
        if process.group is not group:
            had = process.gauges
            if process.group:
                self.leave(process)
            process.group, group.members[process.pid], group.empty = group, process, None
            if len(group.members) == 1:
                group.oldest = process.start
            elif group.oldest is not None:
                group.oldest = min(group.oldest, process.start)
            self.weigh(process, had)

    def leave(self, process):
        """Takes a process out of its group."""
        group = process.group
        self.weigh(process, NO_GAUGES)
        group.members.pop(process.pid, None)
        if group.oldest == process.start:
            group.oldest = None
        if not group.members:
            group.empty = self.when

    # those that end

    def lose(self, processes):
        """These have ended; or their pid is another's now."""
        for process in processes:
            del self.known[process.pid]
            for queue in (self.new, self.likely, self.due, self.early):
                queue.pop(process.pid, None)
            self.disown(process, list(process.sockets) + list(process.partly))
            if process.group is None:
                continue
            self.ended[process.key] = process.group.key
            self.leave(process)
            self.gone.append(process)
        while len(self.ended) > MOST_ENDED:
            del self.ended[next(iter(self.ended))]

    def settle(self, tree):
        """Books what those did that waited for children, less what was counted of the children.

        A child is in proc until it was waited for, so one that is missing now is in its parent's
        figures, or will be at the next reading. Disk bytes are read before the rest, so that they
        are never ahead of it: what they lack is taken off next time. What nobody claims then was
        waited for by nobody (SIGCHLD ignored), and is counted already.
        """
        for process in list(self.early.values()):       # it was read before its parent was
            if process.parent in self.reapers and process.pid in self.known:
                self.still_there(tree, process)
        gone = {p.pid: p for p in self.waiting + self.gone}
        waiting, self.waiting = self.waiting, []
        for child in waiting:
            self.claim(child, gone)
        self.waiting = [child for child in self.gone if not self.claim(child, gone)]
        for reaper in self.reapers.values():
            self.close(reaper)
        self.newest = max([self.newest] + [p.start for p in self.known.values()])

    def still_there(self, tree, process):
        try:                                    # a recording keeps stat as it was read
            tree.glance(process.folder + 'statm')
        except OSError:
            self.lose([process])

    def claim(self, child, gone):
        """Finds who waited for a child: its parent, or where that has ended too, the next one up
        whose figures grew enough, and takes off what was counted already."""
        counted = [w + k for w, k in zip(child.work, child.kin)]
        pid = child.parent
        for _ in range(64):
            reaper = self.reapers.get(pid)
            if reaper and min(map(sub, reaper.kin, counted)) >= 0:
                reaper.kin = list(map(sub, reaper.kin, counted))
                known = child.work[6] is not None
                reaper.disk = list(map(sub, reaper.disk, child.work[6:])) if known else [0, 0]
                return True
            above = self.known.get(pid)
            if above and above.state != b'Z' and above.start <= child.start:
                return False                    # it lives: no other than it can wait for the child
            above = above or gone.get(pid)
            if above is None or above.parent == pid:
                return False
            pid = above.parent
        return False

    def close(self, reaper):
        """Books what is left. Children that lived for less than a tick cannot have used more time
        than there was: otherwise there was one that we may not see, and its whole life is in it."""
        process, growth, kin, disk = reaper.process, reaper.growth, reaper.kin, reaper.disk
        if process.pid not in self.known:
            return
        if kin[0] + kin[1] > 1.2 * self.elapsed * USER_HZ * self.cores + 20:
            kin, disk = NO_WORK[:4], [0, 0]
        if min(disk) < 0:
            process.debt = [max(0, -d) for d in disk]
        growth[6:] = [max(0, d) for d in disk]
        growth[:4] = [g + k for g, k in zip(growth, kin)]
        self.add(process.group, growth)

    # the busiest

    def choose(self):
        """Makes .chosen the busiest of those that are ranked. One that is chosen stays until
        another is half as busy again, so that none comes and goes."""
        faded, ranked = 0.5 ** (self.elapsed / HALF_LIFE), self.ranked
        for group in ranked.values():
            if group.score:
                group.score = group.score * faded if group.score > 0.01 else 0.0
        for group in self.dirty:
            group.score += group.work[0] + group.work[1] - group.worked[0] - group.worked[1]
        if self.round == 1:
            self.guess()
        self.forget()
        if self.top:
            chosen = set(self.chosen)
            some = [key for key in ranked if ranked[key].score or key in chosen]
            best = sorted(some if len(some) >= self.top else ranked, reverse=True, key=lambda key: (
                ranked[key].score * (1.5 if key in chosen else 1.0) + (key in chosen),
                ranked[key].gauges[3]))
            self.chosen = sorted(best[:self.top])

    def guess(self):
        """The first scores: as if all had always used as much time as on average since they
        began."""
        for group in self.ranked.values():
            for process in group.members.values():
                now = self.newest if self.clock is None else self.clock * USER_HZ
                age = max(1.0, (now - process.start) / USER_HZ)
                group.score += (process.work[0] + process.work[1]) / age * HALF_LIFE / 0.693

    def forget(self):
        """Drops the groups that have had no process for long, those of one process at once. What
        they did since the last rows, and is not shown any more, is the others'."""
        chosen = set(self.chosen)
        for key, group in list(self.groups.items()):
            if group.empty is None or not (group.ranked or len(group.labels) > 1):
                continue
            lasts = STAYS if key in chosen and len(group.labels) == 1 else 0.0
            if self.when - group.empty >= lasts:
                del self.groups[key]
                self.ranked.pop(key, None)
                self.spill(group)
                self.dirty.discard(group)

    def spill(self, group):
        """Gives to the others what a group did since the last rows."""
        other = self.groups['other']
        self.add(other, grown(group.work, group.worked))
        other.traffic = [t + g for t, g in zip(other.traffic, grown(group.traffic, group.sent))]

    # rows

    def shown(self):
        """The groups that have a row of their own, in order."""
        groups, out = self.groups, []
        if self.options.by == 'name':
            out = [groups[name] for name in self.options.groups]
        else:
            out = [groups[key] for key in sorted(key for key, group in groups.items()
                                                 if len(group.labels) > 1 and not group.ranked)]
        out += [groups[key] for key in self.chosen if key in self.ranked]
        last = ['other'] + [KERNEL] * self.options.kernel_threads
        return out + [groups[name] for name in last if groups[name] not in out]

    def rows(self):
        """(table, labels, row) of each group, and what it stood at when it is new among them."""
        shown, now, before = self.shown(), self.clock, self.shown_before
        keys, others = set(group.key for group in shown), []
        for group in self.dirty:
            if group.ranked and group.key not in keys:
                others.append(grown(group.work, group.worked))
        for growth in others:
            self.add(self.groups['other'], growth)
        for group in shown:
            gauges, oldest = group.gauges, group.since()
            if group.key == 'other':
                gauges, oldest = self.others(group, keys)
            table = PID_WORK if len(group.labels) > 1 else GROUP_WORK
            row = work_row(gauges, group.work, oldest, now)
            if group.key in before or self.round == 1:
                yield table, group.labels, row
            else:
                yield table, group.labels, row, work_row(gauges, group.worked, oldest, now)
        for group in self.dirty:
            group.worked = group.work
        self.dirty, self.shown_before = set(), keys

    def others(self, group, shown):
        """(gauges, oldest start) of `other`: its own, and those of the ranked that are not
        shown."""
        gauges = [o + e for o, e in zip(group.gauges, self.everyone.gauges)]
        starts = [group.since()]
        for key, one in self.ranked.items():
            if key in shown:
                gauges = list(map(sub, gauges, one.gauges))
            else:
                starts.append(one.since())
        return gauges, min([start for start in starts if start is not None] or [None])

    # sockets

    def charge(self, flows):
        """Books {owner: (bytes received, sent, sent again, connections)}; None is nobody."""
        for group in self.talkers:
            group.connections = 0
        self.talkers = []
        for owner, (received, sent, again, connections) in flows.items():
            group = self.group_of_owner(owner)
            group.traffic = [t + g for t, g in zip(group.traffic, (received, sent, again))]
            group.connections += connections
            self.talkers.append(group)

    def group_of_owner(self, owner):
        """The group of a process that there is, or was; else that of what nobody is known for."""
        process = self.known.get(owner[0]) if owner else None
        if process and process.key == owner and process.group:
            return process.group
        if owner in self.ended:
            return self.groups.get(self.ended[owner], self.groups['other'])
        return self.unknown

    def traffic_rows(self):
        """As rows, of what came over TCP. A group has none when the sockets of none of its
        processes can be seen, which takes the same right as their disk bytes."""
        shown, other = self.shown(), self.groups['other']
        keys, connections = set(group.key for group in shown), other.connections
        for key, group in self.ranked.items():
            if key not in keys:
                other.traffic = [t + g for t, g in zip(other.traffic,
                                                       grown(group.traffic, group.sent))]
                connections += group.connections
                group.sent = group.traffic
        for group in shown + [self.unknown]:
            table = PID_TRAFFIC if len(group.labels) > 1 else GROUP_TRAFFIC
            blind = self.has_io and group.gauges[0] and not group.gauges[9]
            row, before = list(group.traffic), list(group.sent) + [0]
            row.append(connections if group is other else group.connections)
            if not blind and group.key != KERNEL:
                yield (table, group.labels, row, before) if self.round > 1 else (
                    table, group.labels, row)
            group.sent = group.traffic

    def owners(self, tree, wanted):
        """{inode: key of a process} of those of the wanted sockets for which one is found, and
        {inode: None} of those that are still looked for. Of processes that share a socket, the one
        that was found first owns it, for as long as it has it.

        New processes are looked through first, then those that have run since, the owners of
        sockets before the others; what the bound leaves over is for the next tick. What nobody has
        who can be seen is given up after a few searches.
        """
        self.check(tree, [i for i in wanted if i in self.sockets])
        lacking = set(i for i in wanted if i not in self.sockets
                      and self.missed.get(i, 0) < TRIES)
        # Owners of thousands of sockets must not keep the others waiting for ever.
        for queue, left in ((self.new, 0), (self.likely, LINKS_A_TICK // 4), (self.due, 0),
                            (self.likely, 0)):
            while lacking and queue and self.links > left:
                process = next(iter(queue.values()))
                if self.search_sockets(tree, process, lacking, left):
                    for one in (self.new, self.likely, self.due):
                        one.pop(process.pid, None)
        pending = lacking if self.new or self.likely or self.due else ()
        if lacking and not pending:
            if len(self.missed) > MOST_KNOWN:
                self.missed.clear()
            for inode in lacking:
                self.missed[inode] = self.missed.get(inode, 0) + 1
        return {i: self.sockets[i].key if i in self.sockets else None for i in wanted
                if i in self.sockets or i in pending}

    def check(self, tree, inodes):
        """Takes sockets from processes that do not have them any more, as far as half the bound
        goes, and gives them to others that had them too, such as a child."""
        void = set()
        for inode in inodes:
            if self.links <= LINKS_A_TICK // 2:
                break
            if not self.has(tree, self.sockets[inode], inode):
                del self.sockets[inode]
                void.add(inode)
        for process in self.known.values() if void else ():
            for inode in void.intersection(process.sockets):
                if inode not in self.sockets and self.has(tree, process, inode):
                    self.sockets[inode] = process

    def has(self, tree, process, inode):
        """Whether a process has a socket where it had it."""
        number = process.partly.get(inode, process.sockets.get(inode))
        self.links -= 1
        try:
            return tree.link('%sfd/%d' % (process.folder, number)) == b'socket:[%d]' % inode
        except OSError:
            return False

    def disown(self, process, inodes):
        for inode in inodes:
            if self.sockets.get(inode) is process:
                del self.sockets[inode]

    def search_sockets(self, tree, process, lacking, left):
        """Looks for sockets among the descriptors of a process, from where it was left, as long as
        any is lacking, and until so many links are left; True when it is through."""
        try:
            numbers = [n for n in tree.numbers(process.folder + 'fd') if n >= process.at]
        except OSError:                         # it ended, or is none of our business
            return True
        for n in numbers:
            if not lacking or self.links <= left:
                process.at = n
                return False
            self.links -= 1
            try:
                target = tree.link('%sfd/%d' % (process.folder, n))
            except OSError:
                continue
            if target.startswith(b'socket:[') and target[8:-1].isdigit():
                inode = int(target[8:-1])
                process.partly[inode] = n
                self.sockets.setdefault(inode, process)
                lacking.discard(inode)
        self.disown(process, set(process.sockets).difference(process.partly))
        process.sockets, process.partly, process.at = process.partly, {}, 0
        return True


def work_row(gauges, work, oldest, now):
    """The row of a group for the table of PROCESS_WORK. What none of its processes let us read is
    a hole."""
    count, threads, fds, rss, vsize, swap, n_fds, n_swap, n_switches, n_disk = gauges
    age = now - oldest / USER_HZ if count and now is not None and oldest is not None else -1
    user, system, minor, major, voluntary, involuntary, read, written = work
    if count and not n_switches:
        voluntary = involuntary = ABSENT
    if count and not n_disk:
        read = written = ABSENT
    return [count, threads, fds if n_fds or not count else ABSENT, user, system, user + system,
            rss, vsize, swap if n_swap or not count else ABSENT, minor, major, voluntary,
            involuntary, read, written, age if age >= 0 else ABSENT]


PROCESS_OPTIONS = [
    Option('groups', expressions, {},
           'Regular expressions, searched in the command line: {"nginx": "nginx: .*"}; a process '
           'belongs to the first that matches'),
    Option('top', whole(0, 10000), 0,
           'So many names of processes in no group are shown, the busiest; the rest is "other". '
           '0 = 10 without groups, none beside them'),
    Option('by', choice('name', 'pid'), 'name',
           'Whether processes of one name are added up or shown one by one, as NAME/PID'),
    Option('kernel_threads', boolean, False, 'Threads of the kernel too, as the group "kernel"'),
    Option('network', boolean, True, 'Their TCP traffic too'),
]


@module('processes', 'Processes by name or group: processor, memory, faults, disk and TCP bytes, '
        'files: proc/PID', PROCESS_OPTIONS, GROUP_WORK, PID_WORK, expensive=True)
def processes(tree, options, memory):
    """The rows of Census, over proc/PID/{stat,status,io,schedstat,cmdline,fd}."""
    census = memory.get('census')
    if census is None:
        census = memory['census'] = Census(options)
    census.sweep(tree)
    census.choose()
    yield from census.rows()
    if 'said' not in memory and census.round % 60 == 1:
        unread = [p for p in census.known.values() if p.denied]
        if unread or census.hidden:
            memory['said'] = True
            yield Say('of %d of %d processes, disk bytes and the owners of sockets cannot be read: '
                      'CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH would allow it' % (
                          len(unread) + census.hidden, len(census.known) + census.hidden))
        if census.veiled:
            yield Say('the processes of others cannot be seen, for proc is mounted with hidepid: '
                      'CAP_SYS_PTRACE would show them')


@module('processes', '', [], GROUP_TRAFFIC, PID_TRAFFIC)
def process_traffic(tree, options, memory):
    """What the connections of each group have carried, by netlink."""
    census = memory.get('census')
    if options.network and census is not None and census.round:
        if 'flows' not in memory:
            memory['flows'] = Flows()
        flows = memory['flows'].read(tree, lambda inodes: census.owners(tree, inodes))
        census.charge(flows)
        yield from map(Say, memory['flows'].news())
        yield from census.traffic_rows()


# -- threads: proc/PID/task/TID/stat (proc(5)) ----------------------------------------------------

STATES = (('running', b'R'), ('sleeping', b'S'), ('blocked', b'DKW'), ('stopped', b'Tt'),
          ('zombie', b'Z'), ('idle', b'IP'))
MOST_THREAD_NAMES = 10000

THREADS = Table('threads', source='proc/PID/task/TID/stat', columns=(
    Metric('total', GAUGE, '', 'Threads'),
    Metric('running', GAUGE, '', 'Threads that run or could run'),
    Metric('sleeping', GAUGE, '', 'Threads that wait for something'),
    Metric('blocked', GAUGE, '', 'Threads that wait for a disk and cannot be woken'),
    Metric('stopped', GAUGE, '', 'Threads that are stopped or traced'),
    Metric('zombie', GAUGE, '', 'Processes that ended and that nobody waited for'),
    Metric('idle', GAUGE, '', 'Threads of the kernel that have nothing to do (since 4.14)')))
THREADS_MAX = Table('threads', source='proc/sys/kernel/threads-max', columns=(
    Metric('max', GAUGE, '', 'Most threads that the kernel allows'),))
GROUP_STATES = (
    Metric('count', GAUGE, '', 'Threads'),
    Metric('running', GAUGE, '', 'Threads that run or could run'),
    Metric('blocked', GAUGE, '', 'Threads that wait for a disk and cannot be woken'))
GROUP_THREADS = Table('threads', GROUP_STATES, ('group',), 'proc/PID/task/TID/stat')
PID_THREADS = Table('threads', GROUP_STATES, ('group', 'pid'), 'proc/PID/task/TID/stat')
THREAD_TIMES = (
    Metric('cpu_user', COUNTER, 'percent', 'Time in user mode of threads of one name'),
    Metric('cpu_system', COUNTER, 'percent', 'Time in kernel mode of threads of one name'))
THREAD_WORK = Table('threads', THREAD_TIMES, ('group', 'thread'), 'proc/PID/task/TID/stat')


@module('threads', 'Threads by state, in all and by group of processes: proc/PID/task', [
    Option('per_thread', boolean, False,
           'The processor time of threads by name too, in each group but "other"')],
        THREADS, GROUP_THREADS, PID_THREADS, THREAD_WORK, borrows='processes', expensive=True)
def threads(tree, options, memory):
    """The states of all threads; the groups are those of the options of `processes`."""
    census = memory.get('census')
    if census is None:
        census = memory['census'] = Census(options.processes, False, True)
        memory['work'] = {}
    census.sweep(tree)
    census.choose()
    tasks = {}                                  # group key -> [(name, state, user, system)]
    for process in list(census.known.values()):
        tasks.setdefault(process.group.key, []).extend(
            process_tasks(tree, process, options.per_thread))
    states = count_states(task for some in tasks.values() for task in some)
    yield THREADS, (), [sum(states.values())] + [
        sum([states.get(bytes([letter]), 0) for letter in letters]) for name, letters in STATES]
    shown = census.shown()
    keys = set(group.key for group in shown)
    for group in shown:
        some = tasks.get(group.key, [])
        if group.key == 'other':
            some = some + [task for key in census.ranked if key not in keys
                           for task in tasks.get(key, ())]
        states = count_states(some)
        yield PID_THREADS if len(group.labels) > 1 else GROUP_THREADS, group.labels, [
            len(some), states.get(b'R', 0), sum([states.get(s, 0) for s in (b'D', b'K', b'W')])]
    if options.per_thread:
        yield from thread_rows(memory, tasks, shown, census.round == 1)
    for group in census.dirty:
        group.worked = group.work
    census.dirty = set()


@module('threads', '', [], THREADS_MAX)
def threads_max(tree, options, memory):
    """proc/sys/kernel/threads-max: `193023`"""
    yield THREADS_MAX, (), counters(tree.read('proc/sys/kernel/threads-max').split())[:1]


def count_states(tasks):
    """{state: how many} of (name, state, user, system)."""
    out = {}
    for name, state, user, system in tasks:
        out[state] = out.get(state, 0) + 1
    return out


def process_tasks(tree, process, timed):
    """[(name, state, user, system)] of the threads of a process, the times as far as they grew
    since the last tick. Of a process with one thread, that one was read already."""
    if process.gauges[1] == 1:
        found = [(process.pid, process.start, process.comm, process.state) + process.work[:2]]
    else:
        found = read_tasks(tree, process)
    if not timed:
        return [(comm, state, 0, 0) for tid, start, comm, state, user, system in found]
    out, known = [], process.tasks
    fresh, process.tasks = known or process.born, {}
    for tid, start, comm, state, user, system in found:
        last = known.get(tid)
        if not last or last[0] != start:
            last = start, 0 if fresh else user, 0 if fresh else system
        out.append((comm, state, max(0, user - last[1]), max(0, system - last[2])))
        process.tasks[tid] = start, user, system
    return out


def read_tasks(tree, process):
    """[(thread, start time, name, state, user, system)] of a process with several threads; what can
    be said of the whole when they cannot be read."""
    out = []
    try:
        threads = tree.numbers(process.folder + 'task')
    except OSError:
        threads = []
    for tid in threads:
        try:
            name, state, numbers = process_stat(tree.glance('%stask/%d/stat' % (process.folder,
                                                                                 tid)))
        except (OSError, ValueError):           # threads end at any moment
            continue
        out.append((tid, numbers[18], name, state, numbers[10], numbers[11]))
    return out or [(process.pid, process.start, process.comm, process.state) + process.work[:2]]


def thread_rows(memory, tasks, shown, first):
    """Rows of the time that threads of one name used, in each group that is shown, but not in
    `other`, which holds whatever there is."""
    before, now = memory['work'], {}
    for group in shown:
        for comm, state, user, system in tasks.get(group.key, ()) if group.key != 'other' else ():
            name = comm.decode('utf-8', 'replace')
            key = group.labels[0], name if len(now) < MOST_THREAD_NAMES else 'other'
            so_far = now.get(key) or before.get(key) or (0, 0)
            now[key] = so_far[0] + user, so_far[1] + system
    memory['work'] = now
    for key in sorted(now):
        row = THREAD_WORK, key, list(now[key])
        yield row if first or key in before else row + ([0, 0],)


# -- containers: cgroups that somebody runs one in (admin-guide/cgroup-v1/, cgroup-v2.rst) --------

CONTAINER_KEYS = 'id', 'image', 'runtime'
CONTAINER_COLUMNS = (
    Metric('number', IDENTITY, '', 'Inode of its cgroup: one that was made again is another'),
    # Microseconds, as v2 has them; 10^6 of them in a second are 100 percent.
    Metric('cpu', COUNTER, 'percent', 'Processor time, of one core', scale=1e-4),
    Metric('cpu_user', COUNTER, 'percent', 'Processor time in user mode, of one core', scale=1e-4),
    Metric('cpu_system', COUNTER, 'percent', 'Processor time in kernel mode, of one core',
           scale=1e-4),
    Metric('cpu_limit', REAL, '',
           'Cores that it may use: the lowest quota, of its own and above it, or its cpuset'),
    Metric('cpu_throttled', COUNTER, 'ms/s', 'Time that its threads were held back by its quota',
           scale=1e-3),
    Metric('cpu_throttled_periods', COUNTER, '', 'Periods in which its quota did not suffice'),
    Metric('memory_usage', GAUGE, 'B', 'Memory, the page cache included'),
    Metric('memory_working_set', GAUGE, 'B', 'The same less the files that were not used lately'),
    Metric('memory_rss', GAUGE, 'B', 'Memory that no file backs'),
    Metric('memory_cache', GAUGE, 'B', 'Page cache, shared memory included'),
    Metric('memory_limit', GAUGE, 'B', 'The lowest limit, its own or one above it'),
    Metric('memory_swap', GAUGE, 'B', 'Swap space used'),
    Metric('memory_oom_kills', COUNTER, '',
           'Processes killed for lack of memory (v1: since 4.13)'),
    Metric('memory_failures', COUNTER, '', 'Times that its memory limit was reached'),
    Metric('disk_read_bytes', COUNTER, 'B/s', 'Bytes read from disks'),
    Metric('disk_write_bytes', COUNTER, 'B/s',
           'Bytes written to disks (v1: without what the page cache writes later)'),
    Metric('disk_reads', COUNTER, '', 'Reads'),
    Metric('disk_writes', COUNTER, '', 'Writes'),
    Metric('net_rx_bytes', COUNTER, 'B/s', 'Bytes received, in a network namespace of its own'),
    Metric('net_tx_bytes', COUNTER, 'B/s', 'Bytes sent'),
    Metric('net_rx_packets', COUNTER, '', 'Packets received'),
    Metric('net_tx_packets', COUNTER, '', 'Packets sent'),
    Metric('net_rx_errs', COUNTER, '', 'Bad packets received'),
    Metric('net_tx_errs', COUNTER, '', 'Packets that could not be sent'),
    Metric('net_rx_drop', COUNTER, '', 'Packets received and dropped'),
    Metric('net_tx_drop', COUNTER, '', 'Packets dropped before they were sent'),
    Metric('pids', GAUGE, '', 'Processes'),
    Metric('pids_limit', GAUGE, '', 'Most threads: the lowest limit, its own or one above it'),
    Metric('threads', GAUGE, '', 'Threads: what docker stats calls PIDS'),
    Metric('psi_cpu_some_stalled', COUNTER, 'ms/s', 'Time that any thread waited for a processor',
           scale=1e-3),
    Metric('psi_cpu_full_stalled', COUNTER, 'ms/s',
           'Time that all threads waited for a processor (since 5.13)', scale=1e-3),
    Metric('psi_memory_some_stalled', COUNTER, 'ms/s', 'Time that any thread waited for memory',
           scale=1e-3),
    Metric('psi_memory_full_stalled', COUNTER, 'ms/s', 'Time that all threads waited for memory',
           scale=1e-3),
    Metric('psi_io_some_stalled', COUNTER, 'ms/s', 'Time that any thread waited for a disk',
           scale=1e-3),
    Metric('psi_io_full_stalled', COUNTER, 'ms/s', 'Time that all threads waited for a disk',
           scale=1e-3),
    Metric('uptime', REAL, 's', 'Age of its oldest process'))
CONTAINER_NAMES = tuple(m.name for m in CONTAINER_COLUMNS)
NET_NAMES = tuple(name for name in CONTAINER_NAMES if name.startswith('net_'))
DISK_NAMES = tuple(name for name in CONTAINER_NAMES if name.startswith('disk_'))
CONTAINER = Table('container', CONTAINER_COLUMNS, labels=('container',), further=CONTAINER_KEYS,
                  source='cgroups, proc/PID/net/dev')


def socket_path(value):
    """The path of a socket, "auto", or nothing."""
    if value is False or value == 'false':
        return ''
    value = text(value)
    if value not in ('', 'auto') and not (value.startswith('/') and len(os.fsencode(value)) < 108):
        raise ValueError('"auto", the path of a socket such as "/run/docker.sock", or ""')
    return value


def label_names(value):
    """Names of labels that containers have, and that may be labels of metrics too."""
    value = patterns(value)
    taken = IDENTITY_KEYS + CONTAINER_KEYS + ('container', 'metric', 'value', 'units', 'timestamp',
                                              'time', 'host', 'name', 'sequence_number')
    for name in value:
        plain = name.replace('.', '').replace('-', '').replace('/', '').replace('_', '')
        if name in taken or value.count(name) > 1 or len(name) > 100 or not plain.isalnum() or (
                plain.encode('ascii', 'replace').decode() != plain):
            raise ValueError('names such as ["com.docker.compose.service"], each once and none of '
                             + ', '.join(taken))
    return value


CONTAINER_OPTIONS = [
    Option('containers', patterns, ['*'], 'Patterns of names or ids; ! takes away'),
    Option('units', boolean, False, 'Services of systemd too'),
    Option('paths', patterns, [], 'Patterns of further cgroups that are containers, such as /box*'),
    Option('socket', socket_path, 'auto', 'Socket of Docker or Podman, asked for names; "auto": '
                                          'where they have it; "": nobody is asked'),
    Option('labels', label_names, [],
           'Labels of containers that metrics get too, such as com.docker.compose.service'),
]

# What the word before an id says (`docker-ID.scope`, `cri-containerd-ID.scope`, `libpod-ID`).
PREFIXES = (('docker', 'docker'), ('libpod', 'podman'), ('libpod-payload', 'podman'),
            ('cri-containerd', 'containerd'), ('nerdctl', 'containerd'), ('crio', 'crio'))


def hexadecimal(word, length):
    return len(word) == length and not word.strip('0123456789abcdef')


def container_at(parts):
    """(runtime, id, name) of the container that the cgroup with these parts of a path is; None when
    it is none. One of id and name may be ''.

    docker/ID, system.slice/docker-ID.scope, kubepods/burstable/podUID/ID, libpod_parent/libpod-ID,
    machine.slice/libpod-ID.scope, kubepods.slice/.../cri-containerd-ID.scope, crio-ID.scope,
    machine.slice/machine-NAME.scope, systemd-nspawn@NAME.service, lxc.payload.NAME, lxc/NAME,
    ecs/TASK/ID, docker/buildkit/ID. What watches over one (conmon, lxc.monitor) is none.
    """
    last, above = parts[-1], parts[-2] if len(parts) > 1 else ''
    scope = last.endswith('.scope')
    word = last[:-6] if scope else last
    # containerd that was told of the wrong cgroup driver: `kubepods-podUID.slice:cri-containerd:ID`
    left, colon, id = word.rpartition(':')
    prefix = left.rpartition(':')[2]
    if not colon:
        prefix, dash, id = word.rpartition('-')
    if hexadecimal(id, 64):
        runtime = dict(PREFIXES).get(prefix, prefix if scope else None)
        runtime = runtime if prefix else runtime_above(parts)
        return (runtime, id, '') if runtime and not prefix.endswith('conmon') else None
    if len(id) == 25 and id.isalnum() and (above == 'buildkit' and not prefix
                                           or scope and prefix == 'docker'):
        return 'buildkit', id, ''
    if 'ecs' in parts[:-1] and hexadecimal(prefix, 32) and id.isdigit():
        return 'ecs', word, ''                  # Fargate
    return machine_at(last, above)


def runtime_above(parts):
    """Who runs a container whose cgroup is called by its id alone: whom the nearest folder names.
    Of Kubernetes only that it does: the runtime is not in the path."""
    for part in reversed(parts[:-1]):
        for start, runtime in (('docker', 'docker'), ('libpod_', 'podman'), ('ecs', 'ecs'),
                               ('kubepods', 'kubepods')):
            if part.startswith(start):
                return runtime
    return 'oci'


def machine_at(last, above):
    """(runtime, '', name) of a container that is called by its name; None when it is none."""
    if last.startswith('machine-') and last.endswith('.scope'):
        name = unit_name(last[8:-6])
        kind, dash, rest = name.partition('-')
        if kind in ('qemu', 'lxc') and rest.partition('-')[0].isdigit():        # those of libvirt
            return ('lxc', '', rest.partition('-')[2]) if kind == 'lxc' else None
        return 'nspawn', '', name
    if last.startswith('systemd-nspawn@') and last.endswith('.service'):
        return 'nspawn', '', unit_name(last[15:-8])
    if last.startswith('lxc.payload.'):
        return 'lxc', '', last[12:]
    if above in ('lxc', 'lxc.payload') and not last.startswith('lxc.'):
        return 'lxc', '', last
    return None


def unit_name(word):
    """The text without the escapes of systemd.unit(5): `a\\x2db` is a-b, `a-b` is a/b, which a
    machine's name has not: there it stays."""
    first, *rest = word.split('\\x')
    codes = [chr(int(part[:2], 16)) + part[2:] if hexadecimal(part[:2], 2) else '\\x' + part
             for part in rest]
    return first + ''.join(codes)


class Cgroups:
    """The cgroups below a hierarchy as they were last seen: {folder: what Tree.folders gives};
    looks: how often."""
    MOST = 20000                                # anybody may make as many as they like below theirs

    def __init__(self, hierarchy):
        self.hierarchy, self.seen, self.looks = hierarchy, {}, 0

    def look(self, tree):
        """Sees what came and went; whether there was anything."""
        before, self.seen, changed = self.seen, {}, False
        self.looks += 1
        todo = [self.hierarchy.place]
        while todo and len(self.seen) < self.MOST:
            folder = todo.pop()
            known = before.get(folder)
            try:
                now = tree.folders(folder, known)
            except OSError:                     # it went just now, or another is in its place
                above = folder.rpartition('/')[0]
                if above in self.seen:
                    number, links, names = self.seen[above]
                    self.seen[above] = number, 0, names
                continue
            self.seen[folder] = now
            changed = changed or now is not known
            todo += [folder + '/' + name for name in reversed(now[2])]
        return changed or len(before) != len(self.seen)

    def inside(self, folder):
        """The folder and all those below it."""
        out = [folder]
        for one in out:
            out += [one + '/' + name for name in self.seen.get(one, (0, 0, ()))[2]]
        return out

    def path(self, folder):
        """The path that proc/PID/cgroup has for it."""
        return self.hierarchy.root.rstrip('/') + folder[len(self.hierarchy.place):]

    def number(self, tree, folder):
        """The inode of one of them."""
        if not tree.afresh:
            return self.seen[folder][0]
        try:
            return tree.number(folder)
        except Absent:
            return 0

    def containers(self, options, wanted):
        """{key: (runtime, id, name, folder)} of those that are containers."""
        found = {}
        for folder in self.seen:
            path = self.path(folder)
            parts = path[1:].split('/')
            one = container_at(parts)
            key = one and (one[1] or '%s %s' % (one[0], one[2]))
            if not one and options.units and is_service(parts):
                one, key = ('systemd', '', parts[-1]), parts[-1]
            elif not one and options.paths and path and wanted(path):
                one, key = ('', '', parts[-1]), path
            if one:
                found.setdefault(key, one + (folder,))
        return found


def is_service(parts):
    """Whether the cgroup is that of a service of this host's own systemd."""
    return (parts[0] == 'system.slice' and parts[-1].endswith('.service')
            and all([part.endswith('.slice') for part in parts[:-1]]))


class Container:
    """A container, from when its cgroup was seen. home: the Cgroups where it was found, folder: its
    own there; places: {controller: its folder}, '' for v2; files: [(file, reader)], texts: {file:
    what it said and what that means}; network: the number of its namespace; called: what `shown`
    was made from, which is '' for one that nobody wants; last: the row of the last reading; fresh:
    it began after that; age: readings; due: that in which its limits are looked at again."""
    __slots__ = ('runtime', 'id', 'name', 'home', 'folder', 'number', 'places', 'files', 'limits',
                 'age', 'due', 'oldest', 'started', 'shares', 'known', 'image', 'labels', 'tries',
                 'again', 'called', 'shown', 'last', 'fresh', 'texts', 'network')

    def __init__(self, runtime, id, name, labels):
        self.runtime, self.id, self.name, self.image, self.labels = runtime, id, name, '', labels
        self.called = self.shown = self.known = None
        self.home = self.folder = self.number = None
        self.shares, self.tries, self.again = 0, 0, 0.0

    def begin(self, home, folder, number, fresh):
        """Its cgroup was made, or made anew."""
        self.home, self.folder, self.number, self.fresh = home, folder, number, fresh
        self.places, self.files, self.texts, self.limits, self.last = {}, (), {}, {}, None
        self.age, self.due, self.oldest, self.started, self.network = 0, 0, None, 0.0, None


MOST_ACCOUNT = 1 << 14          # bytes of a file of a cgroup that are read at once
MOST_LOUD = 20                  # lines about containers on the network of the host
OTHERS_EVERY = 4                # readings: the hierarchy of systemd, beside one with accounts
LOOK_EVERY = 30                 # readings: whether other hierarchies are mounted
LIMITS_EVERY = 16               # the same: a limit; four times as many: which files there are
YOUNG = 3                       # readings: runc makes one cgroup after the other


@module('containers', 'Containers, and services of systemd: cgroups, proc/PID/net/dev',
        CONTAINER_OPTIONS, CONTAINER, expensive=True)
def containers(tree, options, memory):
    """The row of each container: whoever made it, the kernel keeps its account in its cgroups."""
    age = memory['age'] = memory.get('age', -1) + 1
    if not age % LOOK_EVERY or tree.afresh or 'watch' not in memory:
        watch(tree, memory)
    found = find_containers(tree, options, memory)
    for i, one in enumerate(found.values()):
        if one.due <= age or tree.afresh:
            settle(tree, memory, one)
            one.due = age + (1 if one.age < YOUNG else LIMITS_EVERY + (one.age == YOUNG) * (i % 16))
        one.age += 1
    yield from names_of(tree, options, memory, found)
    call_them(options, memory, found)
    memory['uptime'], memory['nets'], memory['host'] = up_since(tree), {}, None
    memory['counts'], table = counts_disks(tree, memory), container_table(options, memory)
    tree.when = tree.monotonic()
    for one in found.values():
        row = container_row(tree, memory, one) if one.shown else None
        before = start_of(row) if row and one.fresh else one.last
        one.fresh, one.last = False, row
        if row:
            labels = (one.shown, one.id, one.image, one.runtime) + one.labels
            yield (table, labels, row, before) if before else (table, labels, row)
    yield from without_network(memory, found)


def container_table(options, memory):
    """The table with the labels that are asked for."""
    if 'table' not in memory:
        memory['table'] = Table('container', CONTAINER_COLUMNS, labels=('container',),
                                further=CONTAINER_KEYS + tuple(options.labels),
                                source=CONTAINER.source) if options.labels else CONTAINER
    return memory['table']


# Finding them

def watch(tree, memory):
    """Decides which hierarchies are looked through: v2 when no v1 hierarchy has the accounts; else
    one that has, and that of systemd, where all are, those without accounts too."""
    mounted = hierarchies(tree)
    memory['mounted'] = known = {name: h for h in mounted for name in h.controllers or ('',)}
    chosen = [known[name] for name in ('cpuacct', 'cpu', 'memory', 'pids', 'blkio')
              if name in known][:1]
    chosen += [h for name, h in known.items() if name.startswith('name=') and chosen][:1]
    chosen = chosen or [h for h in mounted if not h.controllers]
    if not chosen:
        raise Absent('cgroups: no hierarchy is mounted')
    before = {one.hierarchy.place: one for one in memory.get('watch', ())}
    memory['watch'] = [before.get(h.place) or Cgroups(h) for h in chosen]


def find_containers(tree, options, memory):
    """{key: Container}; those that were there before are the same objects."""
    before, changed = memory.get('found'), False
    for i, watched in enumerate(memory['watch']):
        if not i or changed or not memory['age'] % OTHERS_EVERY or tree.afresh:
            changed = watched.look(tree) or changed
    first = memory['watch'][0]
    if not first.seen:                          # mounted elsewhere, as the first process has it
        raise Absent('cgroups: nothing can be seen of %s' % tree.path(first.hierarchy.place))
    if before is not None and not changed:
        return before
    wanted, now = memory.setdefault('paths', matcher(options.paths)), {}
    for watched in memory['watch']:
        for key, (runtime, id, name, folder) in watched.containers(options, wanted).items():
            if key in now:
                continue
            one = (before or {}).get(key) or Container(runtime, id, name,
                                                       ('',) * len(options.labels))
            number = watched.number(tree, folder)
            if (one.home, one.folder, one.number) != (watched, folder, number):
                tree.forget([name for name, parse in one.files] if one.home else ())
                steady = watched.looks > 1 and watched is memory['watch'][0]
                one.begin(watched, folder, number, steady and one.home in (None, watched))
            now[key] = one
    for key, one in (before or {}).items():
        if now.get(key) is not one:
            tree.forget([name for name, parse in one.files])
    memory['found'] = now
    return now


NEEDED = 'cpu', 'cpuacct', 'cpuset', 'memory', 'blkio', 'pids', ''


def settle(tree, memory, one):
    """Finds out what the limits of a container are, and, less often, where its accounts are and
    which of their files there are."""
    mounted = {name: memory['mounted'][name] for name in NEEDED if name in memory['mounted']}
    if one.age <= YOUNG or not one.age // LIMITS_EVERY % 4 or tree.afresh:
        if len(one.places) < len(mounted) or tree.afresh:
            one.places = places_of(tree, mounted, one)
        files = files_of(tree, one.places)
        tree.forget(set(name for name, parse in one.files) - set(name for name, parse in files))
        one.files, one.texts = files, {}
    one.limits, one.network = limits_of(tree, mounted, one.places), None


def files_of(tree, places):
    """[(file, reader)] of what there is to read of a container."""
    out, taken = [], set()
    for controller, figure, names, parse in CONTAINER_FILES:
        folder = places.get(controller)
        for name in names if folder and figure not in taken else ():
            name = '%s/%s' % (folder, name)
            if readable(tree, name):
                out.append((name, parse))
                taken.add(figure)
                break
    return out


def readable(tree, name, keep=True):
    try:
        tree.glance(name, MOST_ACCOUNT, keep)
    except OSError:
        return False
    return True


def places_of(tree, mounted, one):
    """{controller: folder} of a container: nearly always the path is the same in each hierarchy;
    where it is not (runc puts some below where it is started from), proc/PID/cgroup of one of its
    processes has it, perhaps of one in a cgroup further down."""
    path = one.home.path(one.folder)
    last, own, out = path.rpartition('/')[2], {}, {}
    for pid in processes_in(tree, one)[:1]:
        try:
            own = cgroups_of(tree, os.fsdecode(pid))
        except OSError:
            pass                                # it ended
    for name, hierarchy in mounted.items():
        parts = own.get(name, '').split('/')
        paths = [path]
        if last in parts:
            paths.insert(0, '/'.join(parts[:parts.index(last) + 1]))
        for folder in map(hierarchy.folder, paths):
            if folder and readable(tree, folder + '/cgroup.procs', False):
                out[name] = folder
                break
    return out


def limits_of(tree, mounted, places):
    """{column: the lowest of a container's own limit and of those above it}, what has none left
    out. In memory.stat v1 says it itself."""
    out, cores = {}, []
    for controller in ('cpu', ''):
        for folder in up(mounted, places, controller):
            quota = cpu_quota(tree, folder, bool(controller))
            cores += [quota] if quota else []
    for controller, name in (('cpuset', 'cpuset.effective_cpus'), ('', 'cpuset.cpus.effective')):
        if controller in places:
            whole = cpus_of(tree, mounted[controller].place, name)
            part = cpus_of(tree, places[controller], name)
            cores += [part] if whole and part and part < whole else []
    if cores:
        out['cpu_limit'] = min(cores)
    for column, controller, name in (('memory_limit', '', 'memory.max'),
                                     ('pids_limit', 'pids', 'pids.max'),
                                     ('pids_limit', '', 'pids.max')):
        numbers = [cgroup_number(tree, folder, name) for folder in up(mounted, places, controller)]
        numbers = [number for number in numbers if number is not None]
        if numbers:
            out[column] = min(numbers)
    return out


def up(mounted, places, controller):
    """The folders from a container's up to below the root, which has no limits."""
    folder = places.get(controller)
    while folder and folder != mounted[controller].place:
        yield folder
        folder = folder.rpartition('/')[0]


def cpus_of(tree, folder, name):
    """How many processors a file such as cpuset.cpus has; 0 when it is not known."""
    try:
        return listed(tree.glance('%s/%s' % (folder, name), CHUNK))
    except OSError:
        return 0


# Reading them

def whole_number(data):
    """The int that is all there is in a file; else a hole."""
    word = data.strip()
    return int(word) if word.isdigit() and len(word) <= 20 else ABSENT


def pick_numbers(columns, data, out):
    """Puts the numbers of lines such as `usage_usec 1234` under the columns of their keys."""
    data = b'\n' + data
    for key, column in columns:
        number = first_number(data, key)
        if number == number:
            out[column] = number


def cpuacct_usage(data, out, stacked):
    out['cpu'] = whole_number(data) // 1000     # nanoseconds


def cpuacct_stat(data, out, stacked):
    """`user 123` and `system 45`, USER_HZ ticks; on old kernels they are counted at ticks of the
    timer, and do not add up to cpuacct.usage."""
    found = {}
    pick_numbers(((b'\nuser ', 'cpu_user'), (b'\nsystem ', 'cpu_system')), data, found)
    for column, ticks in found.items():
        out[column] = ticks * (1000000 // USER_HZ)


def cpu_stat(data, out, stacked):
    """`nr_periods 5`, `nr_throttled 2`, `throttled_usec 1234`; in v1 `throttled_time 1234000`."""
    pick_numbers(((b'\nusage_usec ', 'cpu'), (b'\nuser_usec ', 'cpu_user'),
                  (b'\nsystem_usec ', 'cpu_system'), (b'\nthrottled_usec ', 'cpu_throttled'),
                  (b'\nthrottled_time ', 'throttled_time'),
                  (b'\nnr_throttled ', 'cpu_throttled_periods')), data, out)
    if 'throttled_time' in out:
        out['cpu_throttled'] = out.pop('throttled_time') // 1000


def memory_usage(data, out, stacked):
    out['memory_usage'] = whole_number(data)


def memory_stat_v1(data, out, stacked):
    """`cache 0` ..., `hierarchical_memory_limit 9223372036854771712`, `total_cache 0`: the latter
    with the cgroups below. No limit is a number so large that no machine has it."""
    pick_numbers(((b'\ntotal_rss ', 'memory_rss'), (b'\ntotal_cache ', 'memory_cache'),
                  (b'\ntotal_swap ', 'memory_swap'), (b'\ntotal_inactive_file ', 'inactive'),
                  (b'\nhierarchical_memory_limit ', 'memory_limit')), data, out)
    if out.get('memory_limit', 0) >= 1 << 60:
        del out['memory_limit']


def memory_stat(data, out, stacked):
    pick_numbers(((b'\nanon ', 'memory_rss'), (b'\nfile ', 'memory_cache'),
                  (b'\ninactive_file ', 'inactive')), data, out)


def memory_swap(data, out, stacked):
    out['memory_swap'] = whole_number(data)


def memory_failures(data, out, stacked):
    out['memory_failures'] = whole_number(data)


def memory_events(data, out, stacked):
    """v2: `max 12` and `oom_kill 1`; v1's memory.oom_control has the latter, without the cgroups
    below."""
    pick_numbers(((b'\noom_kill ', 'memory_oom_kills'), (b'\nmax ', 'memory_failures')),
                 data, out)


def threads_now(data, out, stacked):
    out['threads'] = whole_number(data)


def io_stat(data, out, stacked):
    """v2: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`, a line for each device that was
    used. Before 5.4 numbers of devices that have no figures may stand in front of another's."""
    rows = []
    for line in data.split(b'\n'):
        words = line.split()
        figures = dict(word.split(b'=', 1) for word in words if b'=' in word)
        number = [word for word in words if b'=' not in word][-1:]
        found = [figures.get(key, b'') for key in (b'rbytes', b'wbytes', b'rios', b'wios')]
        if number and b''.join(found).isdigit() and all(found):
            rows.append((number[0], list(map(int, found))))
    totals = over_disks(rows, stacked)
    out.update(zip(DISK_NAMES, totals))


def blkio(columns):
    """The reader of v1's `8:0 Read 123`, `8:0 Write 4`, ..., `Total 127`; what no device has is
    left as it is."""
    def parse(data, out, stacked):
        figures = {}
        for line in data.split(b'\n'):
            words = line.split()
            if len(words) == 3 and words[2].isdigit() and words[1] in (b'Read', b'Write'):
                figures.setdefault(words[0], [0, 0])[words[1] == b'Write'] = int(words[2])
        if figures:
            out.update(zip(columns, over_disks(list(figures.items()), stacked)))
    return parse


def counts_disks(tree, memory):
    """Whether v1 counts what goes to disks. From 6.10 on it does so only from the first limit on
    that is set for a disk (blk-throttle is off until then): before, a file that says `Total 0` has
    not counted, and so has that of the root."""
    place = memory['mounted']['blkio'].place if 'blkio' in memory['mounted'] else None
    for name in BLKIO_BYTES if place else ():
        try:
            return b':' in tree.glance('%s/%s' % (place, name), MOST_ACCOUNT)
        except OSError:
            pass
    return False


def over_disks(rows, stacked):
    """The sums of the figures of devices. What goes through a device-mapper or md device is counted
    there and at the disks below it, so that it counts only where nothing below it counts (docker
    stats adds up all of them)."""
    if len(rows) > 1:
        rows = [row for row in rows if not stacked(row[0])] or rows
    if len(rows) == 1:
        return rows[0][1]
    return [sum(column) for column in zip(*[figures for number, figures in rows])] or [0] * 4


def pressure(what):
    """The reader of `some avg10=0.00 avg60=0.00 avg300=0.00 total=1234` and `full ...`."""
    def parse(data, out, stacked):
        for line in data.split(b'\n'):
            word = line.rpartition(b' total=')[2]
            if line[:5] in (b'some ', b'full ') and word.isdigit():
                out['psi_%s_%s_stalled' % (what, line[:4].decode())] = int(word)
    return parse


BLKIO_BYTES = ('blkio.throttle.io_service_bytes_recursive', 'blkio.throttle.io_service_bytes',
               'blkio.io_service_bytes_recursive')

# Controller ('' is v2), figure, files, reader: of each figure the first that there is counts.
CONTAINER_FILES = (
    ('cpuacct', 'cpu', ('cpuacct.usage',), cpuacct_usage),
    ('cpuacct', 'cpu_user', ('cpuacct.stat',), cpuacct_stat),
    ('cpu', 'throttled', ('cpu.stat',), cpu_stat),
    ('', 'cpu', ('cpu.stat',), cpu_stat),
    ('memory', 'memory', ('memory.usage_in_bytes',), memory_usage),
    ('', 'memory', ('memory.current',), memory_usage),
    ('memory', 'memory_stat', ('memory.stat',), memory_stat_v1),
    ('', 'memory_stat', ('memory.stat',), memory_stat),
    ('', 'swap', ('memory.swap.current',), memory_swap),
    ('blkio', 'io', BLKIO_BYTES, blkio(DISK_NAMES[:2])),
    ('blkio', 'ios', ('blkio.throttle.io_serviced_recursive', 'blkio.throttle.io_serviced',
                      'blkio.io_serviced_recursive'), blkio(DISK_NAMES[2:])),
    ('', 'io', ('io.stat',), io_stat),
    ('pids', 'threads', ('pids.current',), threads_now),
    ('', 'threads', ('pids.current',), threads_now),
    ('', 'psi_cpu', ('cpu.pressure',), pressure('cpu')),
    ('', 'psi_memory', ('memory.pressure',), pressure('memory')),
    ('', 'psi_io', ('io.pressure',), pressure('io')),
    ('memory', 'failures', ('memory.failcnt',), memory_failures),
    ('memory', 'oom', ('memory.oom_control',), memory_events),
    ('', 'oom', ('memory.events',), memory_events),
)


def container_row(tree, memory, one):
    """The row of a container; None when nothing of it can be read any more."""
    out = dict(one.limits, number=one.number)
    if memory['counts'] and 'blkio' in one.places:
        out.update(dict.fromkeys(DISK_NAMES, 0))
    count, stacked = len(out), lambda device: is_stacked(tree, memory, device)
    for name, parse in one.files:
        try:
            data = tree.glance(name, MOST_ACCOUNT, True)
            if len(data) == MOST_ACCOUNT:       # hundreds of devices: there is more of it
                data = tree.read(name, True)
        except (OSError, Absent):               # it went, or that controller was taken away
            continue
        last, known = one.texts.get(name, NEVER)
        if last != data:                        # of one that idles most say what they said
            known = {}
            parse(data, known, stacked)
            one.texts[name] = data, known
        out.update(known)
    if len(out) == count:
        return None
    if 'inactive' in out and 'memory_usage' in out:
        out['memory_working_set'] = max(0, out['memory_usage'] - out['inactive'])
    add_processes(tree, memory, one, out)
    return [out.get(name, ABSENT) for name in CONTAINER_NAMES]


def start_of(row):
    """What a container that began since the last reading stood at then: nothing, but for its
    network, for an interface may have been in use before it was put in there."""
    return row[:1] + [ABSENT if name in NET_NAMES else 0 for name in CONTAINER_NAMES[1:]]


def is_stacked(tree, memory, device):
    """Whether a block device, b'253:0', is made of others."""
    known = memory.setdefault('stacked', {})
    if device not in known or tree.afresh:
        if len(known) > MOST_KNOWN:
            known.clear()
        try:
            known[device] = bool(tree.list('sys/dev/block/%s/slaves' % os.fsdecode(device)))
        except Absent:
            known[device] = False
    return known[device]


def all_of(tree, name):
    """All bytes of a file that nearly always ends within a page, which is what one reading gives
    at most, in whole lines: those of proc/PID/net/dev may have 354 bytes. Raises OSError, Absent.
    """
    data = tree.glance(name, CHUNK)
    return tree.read(name, True) if len(data) > 3700 else data


def processes_in(tree, one):
    """The pids of a container as bytes: its own and those of the cgroups inside it; b'0' for one
    that the PID namespace we are in does not have. The file is never kept open: v1 makes the list
    when it is opened, and holds on to it for as long as it is read each second."""
    out = []
    for folder in one.home.inside(one.folder):
        name = folder + '/cgroup.procs'
        try:
            out += all_of(tree, name).split()
        except (OSError, Absent):               # it went; or a cgroup of threads, that has none
            pass
    return out


def add_processes(tree, memory, one, out):
    """Adds what is known by a container's processes: how many, the age of the oldest, the traffic
    of their network namespace."""
    pids = processes_in(tree, one)
    # v1 leaves out those that the PID namespace we are in does not have.
    unseen = not pids and out.get('threads', 0) > 0 and tree.ask('apart', pids_apart)
    out['pids'] = ABSENT if unseen else len(pids)
    if one.oldest not in pids or tree.afresh:
        one.network, (one.oldest, one.started) = None, oldest_of(tree, pids)
    if one.oldest is None:
        memory['hidden'] = memory.get('hidden') or bool(pids or unseen) and one.age > YOUNG
        return
    if memory['uptime'] is not None:
        out['uptime'] = max(0.0, memory['uptime'] - one.started)
    out.update(zip(NET_NAMES, traffic(tree, memory, one)))


def pids_apart(tree):
    return own_namespace(tree, 'pid', INITIAL_PIDS)


MOST_ASKED = 64                 # processes of a container; the first are the oldest, nearly always


def oldest_of(tree, pids):
    """(pid, seconds from the start of the system to its start) of the oldest; None and 0 when none
    of them is there any more."""
    best = None, 0.0
    for pid in sorted(set(pids) - {b'0'}, key=int)[:MOST_ASKED]:
        try:
            words = tree.glance('proc/%s/stat' % os.fsdecode(pid)).rpartition(b')')[2].split()
            started = int(words[19]) / USER_HZ
        except (OSError, ValueError, IndexError):
            continue
        if best[0] is None or started < best[1]:
            best = pid, started
    return best


def up_since(tree):
    """Seconds since the start of the system, or None."""
    try:
        return decimals(tree.read('proc/uptime').split()[:1])[0]
    except (Absent, ValueError, IndexError):
        return None


# Their network

OF_OTHERS = b'docker', b'br-', b'cni', b'veth', b'nerdctl', b'podman'


def traffic(tree, memory, one):
    """What the interfaces of a container's network namespace have counted, in the order of
    NET_NAMES; [] when it is the host's, or that is not known. A pod has one namespace, and each of
    its containers shows it."""
    name = 'proc/%s/net/dev' % os.fsdecode(one.oldest)
    try:
        memory['host'] = memory['host'] or tree.number('proc/1/net/dev')
        own = one.network = one.network or tree.number(name)
        if own == memory['host']:
            one.shares += one.shares < YOUNG
            return []
        if own not in memory['nets']:
            memory['nets'][own] = interface_sums(all_of(tree, name))
    except (OSError, Absent):
        return []
    return memory['nets'][own]


def interface_sums(data):
    """The sums of NET_NAMES over the interfaces in proc/PID/net/dev but `lo`, and but those that
    belong to containers inside, whose traffic comes by twice; [] without any."""
    rows = {}
    for line in data.split(b'\n')[2:]:
        name, colon, rest = line.rpartition(b':')
        words = rest.split()[:12]
        if len(words) == 12 and b''.join(words).isdigit() and name.strip() != b'lo':
            rows[name.strip()] = words
    own = [words for name, words in rows.items() if not name.startswith(OF_OTHERS)]
    columns = list(zip(*[map(int, words) for words in own or rows.values()]))
    return [sum(columns[i]) for i in (0, 8, 1, 9, 2, 10, 3, 11)] if columns else []


def without_network(memory, found):
    """What is said of containers that have no network figures; after a few readings, for one that
    is being made is still where its maker is."""
    names = [one.shown for one in found.values()
             if one.shown and one.shares == YOUNG and one.runtime != 'systemd']
    for one in found.values():
        one.shares += one.shares == YOUNG
    memory['loud'] = memory.get('loud', 0) + bool(names)
    if names and memory['loud'] <= MOST_LOUD:   # jobs that come and go all day are said no more
        yield Say('%s: no network figures, for the network is that of the host' % ', '.join(
            names[:20] + ['and %d more' % (len(names) - 20)] * (len(names) > 20)))
    if memory.get('hidden') and not memory.get('said hidden'):
        memory['said hidden'] = True
        yield Say('no network figures, no uptime: their processes cannot be seen; it takes the PID '
                  'namespace of the host, and a proc without hidepid')


# Their names

DAEMON_ANSWERS = 10             # questions in a reading, and
DAEMON_SECONDS = 1.5            # the time for all of them
DAEMON_TRIES = 5                # for a container that the daemon does not know
DOCKER_SOCKETS = 'run/docker.sock', 'var/run/docker.sock'
PODMAN_SOCKETS = 'run/podman/podman.sock',
WITH_DAEMON = 'docker', 'podman', 'ecs', 'kubepods', 'oci'


def names_of(tree, options, memory, found):
    """Asks the daemons what the containers are called that they were not asked for yet, as many as
    there is time for; gives what is to be said."""
    end, left = tree.monotonic() + DAEMON_SECONDS, DAEMON_ANSWERS
    for one in found.values():
        if one.known is not None:
            if tree.record_to:                  # in each tick, so that it may begin at any
                tree.answer('docker/' + one.id, lambda: one.known)
            continue
        if not options.socket or one.runtime not in WITH_DAEMON:
            continue
        now = tree.monotonic()
        daemon = memory.setdefault('podman' if one.runtime == 'podman' else 'docker', {})
        if tree.frozen or (left and one.tries < DAEMON_TRIES and now < end and now >= one.again
                           and now >= daemon.get('until', now)):
            left -= 1
            yield from ask_name(tree, options, daemon, one, min(1.0, end - now))


def ask_name(tree, options, daemon, one, seconds):
    """Asks for one name. A daemon that does not answer is left alone, for longer each time, up to a
    minute; one that knows no such container is asked for it some times."""
    failed = []

    def ask():
        try:
            return daemon_answer(tree, options, one, seconds)
        except OSError as error:
            failed.append(error)
            raise
    try:
        answer = tree.answer('docker/' + one.id, ask)
    except Absent:
        if not failed:
            return                              # a recording that does not have it
        daemon['failures'] = daemon.get('failures', 0) + 1
        daemon['until'] = tree.monotonic() + min(60.0, 2.0 ** min(daemon['failures'], 10))
        missing = type(failed[0]) is FileNotFoundError and options.socket == 'auto'
        if not missing and not daemon.get('said'):
            daemon['said'] = True
            yield Say('names are not known: %s' % (failed[0].strerror or failed[0]))
        return
    daemon['failures'], daemon['said'] = 0, False
    found = json_reply(answer)
    if not isinstance(found, dict) or not isinstance(found.get('name'), str):
        one.tries, one.again = one.tries + 1, tree.monotonic() + 2.0 ** one.tries
        return
    one.known, one.name, one.image = answer, found['name'], short_text(found.get('image'))
    labels = found.get('labels') if isinstance(found.get('labels'), dict) else {}
    one.labels = tuple(short_text(labels.get(key)) for key in options.labels)


def daemon_answer(tree, options, one, seconds):
    """JSON of the name, the image and those labels of a container that are asked for, and of
    nothing else, for it may be recorded; `{}` for one that the daemon does not know. Raises
    OSError.

    What lists containers (Docker Engine API, ContainerList; Podman has the same) needs no lock of
    the container, so that one that hangs does not hang us, and its answer has no environment.
    """
    path = options.socket
    if path == 'auto':
        paths = map(tree.path, PODMAN_SOCKETS if one.runtime == 'podman' else DOCKER_SOCKETS)
        path = ([path for path in paths if os.path.exists(path)] or [''])[0]
        if not path:
            raise FileNotFoundError(errno.ENOENT, 'there is no socket')
    status, body = socket_get(path, '/containers/json?all=1&filters=%%7B%%22id%%22%%3A%%5B%%22%s'
                                    '%%22%%5D%%7D' % one.id, seconds, tree.monotonic)
    found = json_reply(body) if status == 200 else None
    if not isinstance(found, list):
        raise OSError(errno.EBADMSG, '%s: %s' % (path, 'an answer that is no list' if status == 200
                                                 else 'status %d' % status))
    for entry in found:
        if isinstance(entry, dict) and entry.get('Id') == one.id:
            names = entry.get('Names') if isinstance(entry.get('Names'), list) else []
            names = [name.lstrip('/') for name in map(short_text, names) if '/' not in name[1:]]
            labels = entry.get('Labels') if isinstance(entry.get('Labels'), dict) else {}
            return json_value({
                'name': (names or [''])[0],
                'image': short_text(entry.get('Image')),
                'labels': {key: short_text(labels.get(key)) for key in options.labels}}).encode()
    return b'{}'


def short_text(value):
    """A text of a daemon's answer; '' for all that is none."""
    return value[:255] if isinstance(value, str) else ''


def call_them(options, memory, found):
    """Decides what each container is shown as, and whether it is wanted. Of two with one name, that
    which came later has its id behind it, for as long as there are two."""
    keep = memory.setdefault('keep', matcher(options.containers))
    taken = {one.shown: one for one in found.values() if one.shown}
    for one in found.values():
        called = one.name or one.id[:12]
        if one.called == called and (one.shown in ('', called) or called in taken):
            continue
        one.called = called
        shown = os.fsencode(called[:255]).decode('utf-8', 'replace')
        if not keep(shown, *[one.id, one.id[:12]][:2 * bool(one.id)]):
            one.shown = ''
            continue
        if taken.get(shown, one) is not one:
            shown = '%s-%s' % (shown, (one.id[:12] if one.name else one.id)
                               or one.runtime or one.number)
        one.shown = shown
        taken[shown] = one


# -- the container's own figures: cpu, memory, load, disk, system, from the cgroup around us -------

INITIAL_PIDS = b'pid:[4026531836]'              # the namespaces that a system starts with:
INITIAL_CGROUPS = b'cgroup:[4026531835]'        # include/linux/proc_ns.h, since 3.8
NO_LIMIT = 1 << 62                              # v1 says 9223372036854771712 for no limit


class Own:
    """What can be seen of the container that we are in. apart: whether its PID namespace is one of
    its own, None when that cannot be read; paths: {controller: path of its cgroup}, '' for v2;
    levels: {controller: its folder and those above it, as far as they can be seen}; mounted:
    whether there are any cgroups to be seen; fuse: the files of proc and sys that a FUSE file
    system gives; lxcfs: those of LXCFS, 'proc/meminfo'."""
    __slots__ = ('apart', 'private', 'paths', 'levels', 'mounted', 'fuse', 'lxcfs')

    def __init__(self, tree):
        self.apart = own_namespace(tree, 'pid', INITIAL_PIDS)
        self.private = own_namespace(tree, 'cgroup', INITIAL_CGROUPS)
        self.paths, self.levels = {}, {}
        try:
            mine = cgroups_of(tree, 'self')
            self.private = self.private or any(p.startswith('/..') for p in mine.values())
            self.paths = container_paths(tree, mine, self.apart, self.private)
            found = mounts(tree, True)
        except (OSError, Absent):
            found = []
        over = [(os.fsdecode(m.point).lstrip('/'), m.type) for m in found
                if m.type.startswith(b'fuse') and m.point.startswith((b'/proc/', b'/sys/'))]
        self.fuse = sorted(point for point, kind in over)
        self.lxcfs = sorted(point for point, kind in over if kind == b'fuse.lxcfs')
        there = hierarchies(tree, True) if found else []
        self.mounted = bool(there)
        for hierarchy in there:
            for name in hierarchy.controllers or ('',):
                if name in self.paths:
                    self.look(hierarchy, name, mine[name])

    def look(self, hierarchy, name, mine):
        """Notes the folders of a controller. Where only a part of the container's cgroup is
        mounted, that part counts, if we are in it."""
        folder = hierarchy.folder(self.paths[name])
        if folder is None and hierarchy.folder(mine) is not None:
            folder = hierarchy.place
        if folder is not None:
            self.levels[name] = [folder]
            while folder != hierarchy.place:
                folder = folder.rpartition('/')[0]
                self.levels[name].append(folder)

    def of(self, name):
        """(whether it is v1, folders) of a controller; raises Absent."""
        if name in self.levels or '' in self.levels:
            return name in self.levels, self.levels.get(name) or self.levels['']
        raise Absent('no cgroup of the container with the controller %s can be seen' % name)

    def bounded(self):
        """Whether a cgroup can be seen that is not that of the whole host."""
        return bool(self.levels) and (self.private or any(
            self.paths[name].strip('/') for name in self.levels))


def own_namespace(tree, name, initial):
    """Whether our namespace of that kind is not the one that the system started with; None when
    that cannot be read, as before 3.8 (cgroup: 4.6)."""
    try:
        return tree.link('proc/self/ns/' + name) != initial
    except OSError:
        return None


def container_paths(tree, mine, apart, private):
    """{controller: path} of the cgroup that is the container. mine: ours, which may be a part of
    it, as a service of an init is.

    In a cgroup namespace the container is its root, whatever stands in the file (`0::/../x` for who
    came from outside). In that of the host it is what we have in common with the first process, or
    else our own one.
    """
    if private:
        return dict.fromkeys(mine, '/')
    try:
        first = cgroups_of(tree, 1) if apart else {}
    except OSError:                             # hidden from us (hidepid)
        first = {}
    return {name: common_path(path, first.get(name, path)) for name, path in mine.items()}


def common_path(one, other):
    """`/lxc/a`, of `/lxc/a/init.scope` and `/lxc/a/system.slice/x.service`"""
    out = []
    for mine, theirs in zip(one.split('/'), other.split('/')):
        if mine != theirs:
            break
        out.append(mine)
    return '/'.join(out) or '/'


def own_cgroup(tree, memory):
    """The Own of our container, looked at anew when we were moved to another cgroup: `moves` counts
    that, for the counters of the one say nothing of those of the other."""
    try:
        words = tree.glance('proc/self/cgroup', MOST_OF_A_CGROUP)
    except OSError:
        words = b''
    if memory.get('cgroup') != words or tree.record_to:         # a snapshot is whole
        own, before = Own(tree), memory.get('own')
        if before and before.levels != own.levels:
            memory['moves'] = memory.get('moves', 0) + 1
            memory.pop('cpu time', None)
        memory['cgroup'], memory['own'] = words, own
    return memory['own']


class View:
    """Whose figures are shown, `host` or `container`, and why, in words. fuse: files that may
    hang, for who gives them is a program; aloud: whether it is worth a line in any log."""
    __slots__ = ('name', 'why', 'fuse', 'aloud')

    def __init__(self, name, why, fuse=(), aloud=False):
        self.name, self.why, self.fuse, self.aloud = name, why, fuse, aloud

    def parts(self, kind):
        """Those of the parts of a module that are for this view."""
        return kind.own_parts if self.name == 'container' else kind.parts

    def hangs(self, kind):
        """Whether a module reads what may hang."""
        return any(name in table.source for name in self.fuse for table in kind.tables)


def view_of(wanted, tree):
    """The View for the option `view`; raises ConfigError when it cannot be."""
    other = elsewhere(tree) if tree.borrowed() or not tree.foreign else ''
    if other and wanted == 'container':
        raise ConfigError('view: found "container" with the files of %s, which are those of a '
                          'host, need "auto", or this system\'s own files' % other)
    if other:
        return View('host', 'the files are those of %s' % other)
    own = Own(tree)
    if wanted == 'host':
        return View('host', 'the configuration says so', own.fuse, bool(own.apart))
    seen = cgroup_seen(own)
    if wanted == 'container':
        return View('container', 'the configuration says so, and ' + seen, own.fuse, True)
    if own.apart is None:
        return View('host', 'whether this is a container cannot be told, for proc/self/ns/pid '
                            'cannot be read', own.fuse)
    if not own.apart:
        return View('host', 'this is the first PID namespace of the system', own.fuse)
    if not own.bounded() and not own.lxcfs:
        return View('host', 'this is a container, but ' + seen, own.fuse, True)
    return View('container', 'this is a container (its PID namespace is its own), and ' + seen,
                own.fuse, True)


def cgroup_seen(own):
    """What can be seen of the container's account, in words."""
    kinds = [word for word, there in (('v1', any(own.levels)), ('v2', '' in own.levels)) if there]
    if not own.mounted:
        words = 'it has no cgroup file system mounted'
    elif not own.levels:
        words = 'what it has mounted of cgroups does not show its own'
    elif not own.bounded():
        words = 'it has no cgroup of its own'
    else:
        words = 'its cgroup (%s) has its figures' % ' and '.join(kinds)
    return words + ('; LXCFS gives %s' % ', '.join(own.lxcfs) if own.lxcfs else '')


OWN_CPU = Table('cpu', source='cgroup, sys/devices/system/cpu/online', columns=(
    Metric('user', SHARE, 'percent', 'Container: of what it may use, time in user mode'),
    Metric('system', SHARE, 'percent', 'Container: time in kernel mode'),
    Metric('idle', SHARE, 'percent', 'Container: the rest')))
OWN_CORES = Table('cpu', source='cgroup, sys/devices/system/cpu/online', columns=(
    Metric('cores', REAL, '', 'Container: cores that it may use; a part of one by a quota'),))


@module('cpu', '', [], OWN_CPU, view='container')
def own_cpu(tree, options, memory):
    """Processor time in microseconds, and as idle time what there was to use besides.

    cpu.stat of v2: `usage_usec 4302`, `user_usec 3600`, `system_usec 702`
    """
    own = own_cgroup(tree, memory)
    if 'proc/stat' in own.lxcfs and 'cpuacct' in own.paths and not own.levels:
        # Of v1 only: for v2 LXCFS gives the host's times. The events are the host's in either case.
        yield from [row for row in cpu(tree, options, memory) if row[0] is CPU]
        return
    used, user, system = own_cpu_time(tree, own)
    cores, now = own_cores(tree, own), tree.monotonic()
    then, before, sums = memory.get('cpu time', (now, (used, user, system), [0, 0, 0]))
    grown = max(used - before[0], 0)            # less: another cgroup of that name
    parts = max(user - before[1], 0), max(system - before[2], 0)
    share = parts[0] / sum(parts) if sum(parts) else 1
    row = [sums[0] + grown * share, sums[1] + grown * (1 - share),
           sums[2] + max((now - then) * cores * 1e6 - grown, 0)]
    memory['cpu time'], tree.when = (now, (used, user, system), row), now
    yield OWN_CPU, (), row


def own_cpu_time(tree, own):
    """(all, user, system) in microseconds; the latter two show how the first is to be divided, for
    the kernel of v1 counts them apart, by ticks. Raises Absent.

    cpuacct.usage: `4302123` ns; cpuacct.stat: `user 430`, `system 70` in USER_HZ
    """
    old, folders = own.of('cpuacct')
    if old:
        used = cgroup_number(tree, folders[0], 'cpuacct.usage')
        words = cgroup_words(tree, folders[0], 'cpuacct.stat')
        found = [used and used / 1000.0, words.get(b'user'), words.get(b'system')]
    else:
        words = cgroup_words(tree, folders[0], 'cpu.stat')
        found = [words.get(key) for key in (b'usage_usec', b'user_usec', b'system_usec')]
    if None in found:
        raise Absent('%s: no processor time in it' % tree.path(folders[0]))
    return found


def own_cores(tree, own):
    """How many cores the container may use: those of its cpuset, or else of the host; or what the
    tightest quota allows that can be seen, if that is less: 1.5. Raises Absent."""
    found = [own_cpuset(tree, own)]
    try:
        old, folders = own.of('cpu')
    except Absent:
        folders = []
    for folder in folders:
        quota = cpu_quota(tree, folder, old)
        if quota is not None:
            found.append(quota)
    return min(found)


def own_cpuset(tree, own):
    """The number of cores that its processes may run on; raises Absent."""
    places = ['sys/devices/system/cpu/online']
    try:
        old, folders = own.of('cpuset')
        names = ('cpuset.effective_cpus', 'cpuset.cpus') if old else ('cpuset.cpus.effective',)
        places = ['%s/%s' % (folders[0], name) for name in names] + places
    except Absent:
        pass
    for place in places:
        try:
            count = listed(tree.glance(place, CHUNK))
        except OSError:
            continue
        if count:
            return count
    count = core_count(tree.read('proc/stat'))
    if not count:
        raise Absent('how many cores there are')
    return count


@module('system', '', [], OWN_CORES, view='container')
def own_core_count(tree, options, memory):
    yield OWN_CORES, (), [own_cores(tree, own_cgroup(tree, memory))]


# What memory.stat counts, by the names that meminfo has for the same; v2 first, then v1, whose
# columns that begin with total_ hold the cgroups below too.
OWN_MEMORY_STAT = (
    ('cached', b'file', b'total_cache'),
    ('swapcached', b'swapcached', b'total_swapcached'),
    ('active_anon', b'active_anon', b'total_active_anon'),
    ('inactive_anon', b'inactive_anon', b'total_inactive_anon'),
    ('active_file', b'active_file', b'total_active_file'),
    ('inactive_file', b'inactive_file', b'total_inactive_file'),
    ('unevictable', b'unevictable', b'total_unevictable'),
    ('dirty', b'file_dirty', b'total_dirty'),
    ('writeback', b'file_writeback', b'total_writeback'),
    ('anonpages', b'anon', b'total_rss'),
    ('mapped', b'file_mapped', b'total_mapped_file'),
    ('shmem', b'shmem', b'total_shmem'),
    ('slab', b'slab', None),
    ('sreclaimable', b'slab_reclaimable', None),
    ('sunreclaim', b'slab_unreclaimable', None),
    ('kernelstack', b'kernel_stack', None),
    ('pagetables', b'pagetables', None),
    ('percpu', b'percpu', None),
    ('anonhugepages', b'anon_thp', b'total_rss_huge'))
OWN_MEMORY = Table('mem', source='cgroup', columns=(
    Metric('memtotal', GAUGE, 'B', 'Container: its tightest limit, else all of the host'),
    Metric('memfree', GAUGE, 'B', 'Container: what is left of that'),
    Metric('memavailable', GAUGE, 'B', 'Container: the same, and the cache that is not in use'),
    Metric('swaptotal', GAUGE, 'B', 'Container: its tightest limit, else all of the host'),
    Metric('swapfree', GAUGE, 'B', 'Container: what is left of that'))
    + tuple(Metric(name, GAUGE, 'B', 'Container: as in proc/meminfo')
            for name, new, old in OWN_MEMORY_STAT) + (
    Metric('used', GAUGE, 'B', 'Container: its use, without the cache that is not in use'),
    Metric('used_percent', REAL, 'percent', 'Container: the same as a share of its total')))


@module('memory', '', [], OWN_MEMORY, view='container')
def own_memory(tree, options, memory):
    """What the cgroup uses and may use. LXCFS's meminfo counts as the host's: it knows of limits
    that cannot be seen from here, but holds lines of the host besides."""
    own = own_cgroup(tree, memory)
    if 'proc/meminfo' in own.lxcfs and not own.levels:
        yield from memory_use(tree, options, memory)
        return
    old, folders = own.of('memory')
    stat = cgroup_words(tree, folders[0], 'memory.stat')
    use = memory_use_of(tree, folders[0], old, stat)
    if use is None:
        raise Absent('%s: no use of memory in it' % tree.path(folders[0]))
    total, left = own_limit(tree, own, stat, use)
    swap = own_swap(tree, own, stat)
    counted = [stat.get(v1 if old else v2, ABSENT) for name, v2, v1 in OWN_MEMORY_STAT]
    percent = 100.0 * use[1] / total if total else ABSENT
    tree.when = tree.monotonic()
    yield OWN_MEMORY, (), [ABSENT if total is None else total] + left + swap + counted + [
        use[1], percent]


def memory_use_of(tree, folder, old, stat):
    """(bytes in use, the same without the cache that is not in use) of a cgroup, as docker stats
    has it, or None."""
    used = cgroup_number(tree, folder, 'memory.usage_in_bytes' if old else 'memory.current')
    if used is None:
        return None
    return used, max(used - stat.get(b'total_inactive_file' if old else b'inactive_file', 0), 0)


def own_limit(tree, own, stat, use):
    """(the tightest limit or None, [what is free of it, what is available]), bytes. A limit above
    us, as that of a pod is, is shared: no more is left for us than is left of it.

    v1 says in memory.stat what the tightest is, also of those above that cannot be seen.
    """
    old, folders = own.of('memory')
    limits = [cgroup_number(tree, folder, 'memory.limit_in_bytes' if old else 'memory.max')
              for folder in folders]
    known = [n for n in limits + [meminfo_bytes(tree, b'\nMemTotal:'),
                                  stat.get(b'hierarchical_memory_limit') if old else None]
             if n is not None and n < NO_LIMIT]
    if not known:
        return None, [ABSENT, ABSENT]
    total = min(known)
    left = [total - use[0], total - use[1]]
    for folder, limit in list(zip(folders, limits))[1:]:
        if limit is not None and limit < NO_LIMIT:
            words = cgroup_words(tree, folder, 'memory.stat')
            shared = memory_use_of(tree, folder, old, words) or (0, 0)
            left = [min(mine, limit - used) for mine, used in zip(left, shared)]
    return total, [max(n, 0) for n in left]


def own_swap(tree, own, stat):
    """[swap that may be used, what is left of it] in bytes; holes where it is not counted, as on a
    kernel that was told not to. v1 has a limit for memory and swap together."""
    old, folders = own.of('memory')
    host = meminfo_bytes(tree, b'\nSwapTotal:')
    if old:
        both, used = stat.get(b'hierarchical_memsw_limit'), stat.get(b'total_swap')
        limits = [] if both is None or both >= NO_LIMIT else [
            max(both - stat.get(b'hierarchical_memory_limit', 0), 0)]
        used = None if both is None else used
    else:
        used = cgroup_number(tree, folders[0], 'memory.swap.current')
        limits = [cgroup_number(tree, folder, 'memory.swap.max') for folder in folders]
    known = [n for n in limits + [host] if n is not None]
    if used is None or not known:
        return [ABSENT, ABSENT]
    return [min(known), max(min(known) - used, 0)]


def meminfo_bytes(tree, key):
    """The bytes of a line of proc/meminfo, or None."""
    try:
        number = first_number(b'\n' + tree.read('proc/meminfo'), key)
    except Absent:
        return None
    return number << 10 if number == number else None


OWN_LOAD = Table('load', source='cgroup', columns=(
    Metric('total_entities', GAUGE, '', 'Container: threads that exist'),))


@module('load', '', [], OWN_LOAD, view='container')
def own_load(tree, options, memory):
    """No kernel has load averages of a container; LXCFS makes them, with its option -l. Without it
    its file is the host's, which has more threads than we do."""
    own, count = own_cgroup(tree, memory), None
    try:
        count = cgroup_number(tree, own.of('pids')[1][0], 'pids.current')
    except Absent:
        if 'proc/loadavg' not in own.lxcfs:
            raise
    if 'proc/loadavg' in own.lxcfs:
        row = list(load(tree, options, memory))[0]
        if count is None or row[2][4] <= 2 * count + 16:        # LXCFS counts every five seconds
            yield row
            return
    if count is not None:
        tree.when = tree.monotonic()
        yield OWN_LOAD, (), [count]


OWN_DISK = Table('disk', labels=('device',), source='cgroup', columns=(
    Metric('number', IDENTITY, '', 'major:minor'),
    Metric('reads', COUNTER, '', 'Container: its reads, before they are merged'),
    Metric('read_sectors', COUNTER, '', 'Container: sectors of 512 bytes read'),
    Metric('writes', COUNTER, '', 'Container: its writes, before they are merged'),
    Metric('write_sectors', COUNTER, '', 'Container: sectors of 512 bytes written'),
    Metric('discards', COUNTER, '', 'Container: its discards'),
    Metric('discard_sectors', COUNTER, '', 'Container: sectors of 512 bytes discarded'),
    Metric('read_thruput', COUNTER, 'B/s', 'Container: bytes read', of=('read_sectors',),
           scale=SECTOR),
    Metric('write_thruput', COUNTER, 'B/s', 'Container: bytes written', of=('write_sectors',),
           scale=SECTOR),
    Metric('request_size', RATIO, 'KB', 'Container: mean size of a request', scale=SECTOR / 1024,
           of=('read_sectors', 'write_sectors', 'discard_sectors'),
           over=('reads', 'writes', 'discards'))))


@module('disk', '', [], OWN_DISK, view='container')
def own_disk(tree, options, memory):
    """What the container moved, per device that it has used. A device that it used for the first
    time began at zero."""
    own = own_cgroup(tree, memory)
    old, folders = own.of('blkio')
    found = blkio_rows(tree, folders[0]) if old else io_stat_rows(tree, folders[0])
    rows = [(number, own_disk_labels(tree, options, memory, number), counts)
            for number, counts in sorted(found.items())]
    moves, tree.when = memory.get('moves', 0), tree.monotonic()
    moved, memory['disk moves'] = moves != memory.get('disk moves', 0), moves
    for number, labels, counts in rows:
        if labels:
            row = [moves << 64 | number[0] << 32 | number[1]] + counts
            yield (OWN_DISK, labels, row) if moved else (OWN_DISK, labels, row, row[:1] + [0] * 6)


def own_disk_labels(tree, options, memory, number):
    """The labels of a device that is kept, or None; decided once per device."""
    known = memory.setdefault('devices', {})
    if number not in known:
        if len(known) > MOST_KNOWN:
            known.clear()
        keep = memory.setdefault('matcher', matcher(options.devices))
        text = shown(device_name(tree, number))
        known[number] = (text,) if keep(text) or text in options.devices else None
    return known[number]


def io_stat_rows(tree, folder):
    """{(major, minor): [reads, sectors read, writes, ..., discards, ...]} of io.stat; raises
    Absent. A device may have no more than its name in it.

    `8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 dbytes=50331648 dios=3021`
    """
    out, keys = {}, (b'rios', b'rbytes', b'wios', b'wbytes', b'dios', b'dbytes')
    for line in whole_lines(tree, cgroup_text(tree, folder, 'io.stat')):
        head, *words = line.split() or [b'']
        values = dict(word.split(b'=', 1) for word in words if b'=' in word)
        try:
            row = counters([values.get(key, b'0') for key in keys])
            if any(key in values for key in keys):
                out[device_number(head)] = [n // SECTOR if i % 2 else n for i, n in enumerate(row)]
        except ValueError:
            tree.bad_line()
    return out


def blkio_rows(tree, folder):
    """The same of v1; raises Absent. blkio.throttle.io_serviced_recursive, and the same of bytes:
    `8:0 Read 312`, `8:0 Write 17`, `8:0 Sync 329` ... `8:0 Total 329`, at the end `Total 329`.

    v1 knows of a write only who handed it to the disk: what the kernel wrote back later on its own
    is in no container's account.
    """
    out, kinds = {}, (b'Read', b'Write', b'Discard')
    for at, name in enumerate(('io_serviced', 'io_service_bytes')):
        try:                                    # with the cgroups below; old kernels lack it
            data = cgroup_text(tree, folder, 'blkio.throttle.%s_recursive' % name)
        except Absent:
            data = cgroup_text(tree, folder, 'blkio.throttle.%s' % name)
        for line in whole_lines(tree, data):
            words = line.split()
            if len(words) != 3 or words[1] not in kinds:
                continue
            try:
                count = counters(words[2:])[0] // (SECTOR if at else 1)
                row = out.setdefault(device_number(words[0]), [0] * 6)
                row[2 * kinds.index(words[1]) + at] = count
            except ValueError:
                tree.bad_line()
    return out


def cgroup_text(tree, folder, name):
    """All of a file of a cgroup, which may be empty; raises Absent."""
    try:
        return tree.glance('%s/%s' % (folder, name), MOST_OF_A_CGROUP)
    except OSError as error:
        raise Absent('%s/%s: %s' % (tree.path(folder), name, error.strerror))


def device_number(word):
    """(8, 16) of b'8:16'; raises ValueError."""
    major, minor = word.split(b':')
    if not (major + minor).isdigit() or len(major) > 9 or len(minor) > 9:
        raise ValueError
    return int(major), int(minor)


def device_name(tree, number):
    """The name of a device, as bytes: by proc/diskstats, else by sysfs, else b'8:16'."""
    place = '%d:%d' % number
    try:
        for line in tree.read('proc/diskstats', True).split(b'\n'):
            words = line.split(None, 3)
            if len(words) == 4 and b':'.join(words[:2]) == place.encode():
                return words[2]
    except Absent:
        pass
    try:
        return tree.link('sys/dev/block/' + place).rpartition(b'/')[2].replace(b'!', b'/')
    except OSError:
        return place.encode()


@module('system', '', [], UPTIME, BOOT_TIME, view='container')
def own_uptime(tree, options, memory):
    """Since when its first process runs: field 22 of proc/1/stat, in ticks since the start of the
    system (proc_pid_stat(5)): `1 (sh) S 0 1 1 0 -1 4194560 ...`"""
    own = own_cgroup(tree, memory)
    if not own.apart:                           # the first process is the host's
        return
    try:
        words = tree.glance('proc/1/stat').rpartition(b')')[2].split()
    except OSError as error:
        raise Absent('proc/1/stat: %s' % error.strerror)
    if not words[19:20] or not words[19].isdigit():
        raise ValueError('proc/1/stat')
    start = int(words[19][:20]) / USER_HZ
    boot = first_number(tree.read('proc/stat'), b'\nbtime ')
    since = decimals(tree.read('proc/uptime').split()[:1])
    if since:
        yield UPTIME, (), [since[0] if 'proc/uptime' in own.lxcfs else max(since[0] - start, 0)]
    if boot == boot:
        yield BOOT_TIME, (), [int(boot + start)]


# -- self: the agent, as it sees itself -------------------------------------------------------

SELF = Table('self', source='the agent', columns=(
    Metric('cpu', REAL, 's', 'Processor time used since the start'),
    Metric('rss', GAUGE, 'B', 'Resident memory'),
    Metric('ticks', GAUGE, '', 'Ticks since the start'),
    Metric('ticks_late', GAUGE, '', 'Ticks that began more than a tenth of an interval late'),
    Metric('ticks_skipped', GAUGE, '',
           'Ticks that were not held since the one before took too long'),
    Metric('late', REAL, 's', 'How late this tick began')))
SELF_MODULE = Table('self', labels=('module',), source='the agent', columns=(
    Metric('module_duration', REAL, 's', 'Time that the last reading took'),
    Metric('module_errors', GAUGE, '',
           'Readings that failed and lines that were garbage, since the start')))
SELF_EMITTER = Table('self', labels=('emitter',), source='the agent', columns=(
    Metric('emitter_accepted', GAUGE, '', 'Ticks taken for this sink'),
    Metric('emitter_acknowledged', GAUGE, '', 'Ticks that the sink acknowledged'),
    Metric('emitter_sent', GAUGE, '', 'Ticks handed to a sink that acknowledges nothing'),
    Metric('emitter_dropped', GAUGE, '', 'Ticks lost since too many waited or the end came'),
    Metric('emitter_quarantined', GAUGE, '', 'Ticks that the sink refused, in whole or in part'),
    Metric('emitter_damaged', GAUGE, '', 'Ticks that could not be read back'),
    Metric('emitter_pending', GAUGE, '', 'Ticks that wait'),
    Metric('emitter_refused_points', GAUGE, '', 'Points that the sink refused'),
    Metric('emitter_lag', REAL, 's', 'Age of the oldest tick that waits'),
    Metric('emitter_last_error', GAUGE, '', 'Unix time of the last failure')))


@module('self', 'What the agent itself costs, and what became of every tick', [], SELF,
        SELF_MODULE, SELF_EMITTER)
def own_figures(tree, options, memory):
    """The rows that the agent has ready in memory['account'], since no file has them."""
    return memory['account']()


# == 5 RATES: counters to rates, shares and ratios; resets, wraps, priming ======================

WRAP = 1 << 32
EXACT = 1 << 53                 # a double holds whole numbers up to here


class Plan:
    """How rows of one table and width become values: what to compute, in the order to show it.

    All rows of the table go through a few comprehensions together, which is what makes one disk
    cheap and 3,000 interfaces too: one for everything that is growth by time, row by row, and then
    one per column for what is something else.
    """

    def __init__(self, table, width, rows):
        raw = table.raw[:width]
        if width > len(raw):
            raise TypeError('a row of %d columns for the table %s of %d' % (
                width, table.family, len(raw)))
        at = {m.name: i for i, m in reversed(list(enumerate(raw)))}
        self.width, self.rows, self.shown = width, rows, table.shown(width)
        self.counters = [(i, m.kind) for i, m in enumerate(raw) if m.kind in COUNTERS]
        self.identity = [i for i, m in enumerate(raw) if m.kind == IDENTITY]
        self.less = [(at[m.name], at[m.less]) for m in raw if m.less in at]
        self.shares = any(m.kind == SHARE for m in raw)
        self.plain = all(m.kind in (GAUGE, REAL) for m in raw)
        self.whole = [i for i, m in enumerate(raw) if m.kind == GAUGE]
        self.checked = picker([i + r * width for r in range(rows) for i, kind in self.counters],
                              width * rows)
        source = [at[m.of[0] if m.of else m.name] for m in self.shown]
        self.linear = picker([i + r * width for r in range(rows) for i in source], width * rows)
        self.scales = [0.1 if m.kind == BUSY else m.scale for m in self.shown] * rows
        self.others = [(j, m.kind, [at[n] for n in m.of or (m.name,) if n in at],
                        [at[n] for n in m.over if n in at], m.scale)
                       for j, m in enumerate(self.shown)
                       if m.kind not in (COUNTER, COUNTER32) or m.over]

    def values(self, now, before, primed, elapsed, narrow):
        """The values of all rows, as shown. now, before: all rows one behind the other; primed: the
        rows that have no reading before this one."""
        if self.plain:
            return now
        growth = list(map(sub, now, before))
        dead = primed if elapsed > 0 else range(self.rows)
        if self.counters and not min(self.checked(growth)) >= 0:        # perhaps a NaN
            dead = set(dead) | self.mend(growth, before, narrow)
        for i in self.identity:
            if any(growth[i::self.width]):
                dead = set(dead) | set(r for r, g in enumerate(growth[i::self.width]) if g)
        for row in dead:
            for i, kind in self.counters:
                growth[row * self.width + i] = ABSENT
        if self.shares:
            return self.share(growth)
        elapsed = elapsed if elapsed > 0 else ABSENT
        out = [g * s / elapsed for g, s in zip(self.linear(growth), self.scales)]
        for j, kind, of, over, scale in self.others:
            out[j::len(self.shown)] = self.other(kind, growth, now, of, over, scale,
                                                 out[j::len(self.shown)])
        return out

    def mend(self, growth, before, narrow):
        """Mends what fell: a wrap, a share that is clamped, or else a hole. Gives the rows of which
        more than half the counters fell: those began anew."""
        falls = {}
        for c, kind in self.counters:
            for i in range(c, len(growth), self.width):
                if growth[i] < 0:
                    if (narrow or kind == COUNTER32) and went_round(before[i], growth[i]):
                        growth[i] += WRAP
                    else:
                        growth[i] = 0 if kind == SHARE else ABSENT
                        falls[i // self.width] = falls.get(i // self.width, 0) + 1
        return set(row for row, n in falls.items() if 2 * n > len(self.counters))

    def share(self, growth):
        """Each column in percent of its row's growth; a row that did not grow at all has holes."""
        out = []
        for start in range(0, len(growth), self.width):
            row = growth[start:start + self.width]
            for whole, part in self.less:
                row[whole] = row[whole] - row[part] if row[whole] > row[part] else row[whole] * 0
            total = sum(row)
            factor = 100.0 / total if total else ABSENT
            out += [g * factor for g in row]
        return out

    def other(self, kind, growth, now, of, over, scale, rates):
        """The column of a metric that is not growth by time alone, one value per row."""
        wide = self.width
        if kind == GAUGE or kind == REAL:
            return now[of[0]::wide]
        if kind == BUSY:
            return [100.0 if rate > 100 else rate for rate in rates]
        if kind == COUNTER:
            return [rate / n if n else ABSENT for rate, n in zip(rates, now[over[0]::wide])]
        grown = [growth[c::wide] for c in of]
        under = [growth[c::wide] for c in over]
        return [sum(g) * scale / sum(u) if sum(u) else ABSENT
                for g, u in zip(zip(*grown), zip(*under))]


def went_round(before, growth):
    """Whether a 32-bit column that fell has wrapped: it fell from above 2^31, and by more than a
    little, as idle time may. No tick is so long that a counter grows by nearly all of 2^32."""
    return WRAP // 2 < before < WRAP and -growth > WRAP // 4


def picker(indexes, size):
    """list -> the items at the indexes."""
    if indexes == list(range(size)):
        return lambda values: values
    if len(indexes) == 1:
        return lambda values: [values[indexes[0]]]
    return itemgetter(*indexes) if indexes else lambda values: []


class Rates:
    """What one module part yielded last, and what it yields now in terms of that.

    feed(rows, when) gives (series, values): a tuple of Series, the same object while the rows stay
    the same, and a flat list of numbers in which a value that is not known is a hole. .keys, .now
    and .when keep the latest raw reading. keep: flat name -> whether anybody wants it.
    """

    def __init__(self, keep=None):
        self.keep = keep
        self.keys, self.now, self.when = [], [], None
        self.groups, self.series, self.pick, self.known = [], (), None, {}
        self.large = False

    def feed(self, found, when, narrow=False):
        keys = [(one[0], one[1], len(one[2])) for one in found]
        if keys == self.keys:
            primed = ()
        else:
            primed = self.arrange(found, keys)
            found = self.kept
        now = [[v for one in found[start:end] for v in one[2]]
               for plan, start, end in self.groups]
        elapsed = when - self.when if self.when is not None else 0
        values = []
        for i, (plan, start, end) in enumerate(self.groups):
            before = self.now[i] if not primed else primed[i][0]
            values += plan.values(now[i], before, primed[i][1] if primed else (), elapsed, narrow)
            if plan.whole and not self.large:
                self.large = (max(now[i]) > EXACT if plan.plain else
                              any([max(now[i][c::plan.width]) > EXACT for c in plan.whole]))
        self.when, self.now = when, now
        if self.pick is not None:
            values = [values[i] for i in self.pick]
        return self.series, values

    def arrange(self, found, keys):
        """Lays out rows that are not those of the last reading; the first of two with one name
        counts.

        Gives, for each group, the last readings of its rows (of new ones, this reading) and the
        numbers of those that are new."""
        last = {}
        for (plan, start, end), now in zip(self.groups, self.now):
            for i in range(end - start):
                last[self.keys[start + i]] = now[i * plan.width:(i + 1) * plan.width]
        seen, self.kept, kept_keys = set(), [], []
        for one, key in zip(found, keys):
            name = key[0].family, key[0].first, key[1][:len(key[0].labels)]
            if name not in seen:
                seen.add(name)
                self.kept.append(one)
                kept_keys.append(key)
        self.lay_out(kept_keys)
        out = []
        for plan, start, end in self.groups:
            ones = self.kept[start:end]
            rows = [last.get(key, one[3] if len(one) > 3 else None)
                    for key, one in zip(kept_keys[start:end], ones)]
            before = [v for row, one in zip(rows, ones) for v in (row or one[2])]
            out.append((before, [i for i, row in enumerate(rows) if row is None]))
        return out

    def lay_out(self, keys):
        """Makes the groups of equal rows, the series and the filter for these keys."""
        self.keys, self.groups, series, start = keys, [], [], 0
        while start < len(keys):
            table, labels, width = keys[start]
            end = start
            while end < len(keys) and keys[end][0] is table and keys[end][2] == width:
                end += 1
            plan = Plan(table, width, end - start)
            self.groups.append((plan, start, end))
            for key in keys[start:end]:
                series += self.known.get(key) or self.name(key, plan)
            start = end
        if len(self.known) > 4 * len(keys) + 100:
            live = set(keys)
            self.known = {k: v for k, v in self.known.items() if k in live}
        self.pick = None
        if self.keep:
            self.pick = [i for i, s in enumerate(series) if self.keep(s.flat)]
            series = [series[i] for i in self.pick]
        self.series = tuple(series)

    def name(self, key, plan):
        table, labels, width = key
        count, keys, values = len(table.labels), table.labels, labels
        if table.further:
            known = [(k, v) for k, v in zip(keys + table.further, labels) if v or k in keys]
            keys, values = tuple(k for k, v in known), tuple(v for k, v in known)
        series = [Series(table.family, m.name, m.unit, m.kind, keys, values, labels[:count])
                  for m in plan.shown]
        self.known[key] = series
        return series


class Parts:
    """The parts of one module, each with its own memory of the last reading.

    A part that fails sits out: the next tick, then twice as long each time, up to a minute; .errors
    counts, and `said` hears of it once until it works again. read() gives (series, values) pairs.
    alone: the tree is its own, and nobody else clears what was read in a tick; close() closes it.
    """
    LONGEST = 60.0

    def __init__(self, name, parts, options, tree, said, memory=None, keep=None, patient=True,
                 alone=False):
        self.name, self.options, self.tree = name, options, tree
        self.said, self.patient, self.alone = said, patient, alone
        self.memory = {} if memory is None else memory
        self.parts = [[part, Rates(keep), 0, 0.0, False] for part in parts]
        self.errors, self.large, self.could_read = 0, False, False

    def read(self, now, narrow=False, iteration=0):
        """[(series, values)] of the parts that could be read. now: monotonic seconds."""
        return self.rated([], self.gather(now, narrow))

    def gather(self, now, narrow=False, iteration=0):
        """[(Rates of a part, its rows, when, narrow)] of the parts that could be read, for
        rated()."""
        out, tree, self.could_read = [], self.tree, False
        if self.alone:
            tree.begin()
        for state in self.parts:
            part, rates, failures, not_before, said = state
            if failures and self.patient and now < not_before:
                continue
            bad = tree.bad_lines
            try:
                tree.when = now
                found = list(part(tree, self.options, self.memory))
                if Say in map(type, found):
                    found = self.without_words(found)
            except Exception as error:          # also ours: the other parts and ticks go on
                pause = min(self.LONGEST, 2.0 ** min(failures, 10)) - 0.5
                state[2:5] = failures + 1, now + pause, True
                self.errors += 1
                if not said and (self.patient or not rates.keys):
                    self.said('warning', '%s: %s' % (self.name, self.trouble_of(error)))
                continue
            self.errors, self.could_read = self.errors + tree.bad_lines - bad, True
            if failures and self.patient:
                self.said('info', '%s: %s can be read again' % (self.name, part.__name__))
                state[2:5] = 0, 0.0, not self.patient
            out.append((rates, found, tree.when, narrow))
        return out

    def rated(self, late, fresh):
        """[(series, values)] of what was gathered. What came too late for its tick, and what is
        fresh, are one when both are there: the rates are of all the time since the last that were
        shown. Of two with one name one would be lost."""
        out, newer = {}, set(rates for rates, found, when, narrow in fresh)
        began = {}                              # what rows that were new stood at
        for rates, found, when, narrow in late:
            if rates in newer and rates.when is not None:
                began.update(((rates, row[0], row[1]), row[3]) for row in found if len(row) > 3)
            else:
                self.feed(out, rates, found, when, narrow)
        for rates, found, when, narrow in fresh:
            if began:
                found = [row + (began[rates, row[0], row[1]],) if len(row) == 3
                         and (rates, row[0], row[1]) in began else row for row in found]
            self.feed(out, rates, found, when, narrow)
        return list(out.values())

    def feed(self, out, rates, found, when, narrow):
        if found or rates.keys:
            out[rates] = rates.feed(found, when, narrow)
            self.large |= rates.large
        else:
            rates.when = when                   # what comes next may say that it began since

    def without_words(self, found):
        """The rows of what a part yielded; what it has to say is said."""
        for one in found:
            if type(one) is Say:
                self.said('warning', '%s: %s' % (self.name, one.text))
        return [one for one in found if type(one) is not Say]

    @staticmethod
    def trouble_of(error):
        """What is said of a part that failed."""
        if isinstance(error, Absent):
            return str(error)
        if isinstance(error, (ValueError, IndexError, KeyError, OverflowError)):
            return 'no use can be made of %s' % error
        return trouble(error)

    def close(self):
        if self.alone:
            self.tree.close()


# == 6 ENCODING: byte-level primitives that know no point =======================================

UNRESERVED = frozenset('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~')


def utf8(text):
    """The bytes of a text from outside; what was no UTF-8 there, and stands as surrogates, as ?."""
    return text.encode('utf-8', 'replace')


def percent_encoded(text):
    """The text for a URL: all but unreserved characters as %XX of their UTF-8 (RFC 3986, 2.1)."""
    return ''.join([chr(b) if chr(b) in UNRESERVED else '%%%02X' % b for b in utf8(text)])


def login_of(url):
    """`name:password` of a URL, its %XX decoded, or ''."""
    from urllib.parse import unquote
    return unquote(url_parts(url)[1])


def base64_text(data):
    """Base64 without line ends (RFC 4648, section 4)."""
    import binascii
    return binascii.b2a_base64(data).decode().rstrip('\n')


def basic(login):
    """The header's value for `name:password` (RFC 7617)."""
    return 'Basic ' + base64_text(utf8(login))


def gzipped(data):
    """The data in a gzip container without time and name (RFC 1952), at the level that zlib takes
    for the best trade."""
    import zlib
    press = zlib.compressobj(-1, zlib.DEFLATED, 31)
    return press.compress(data) + press.flush()


def hmac(algorithm, key, message):
    """The bytes of HMAC (RFC 2104) by a hash of hashlib; the hmac module is not everywhere."""
    import hashlib                              # 3.7 MB
    block = hashlib.new(algorithm).block_size
    if len(key) > block:
        key = hashlib.new(algorithm, key).digest()
    key = key.ljust(block, b'\0')
    inner = hashlib.new(algorithm, bytes([b ^ 0x36 for b in key]) + message).digest()
    return hashlib.new(algorithm, bytes([b ^ 0x5c for b in key]) + inner).digest()


def json_part(data, *path):
    """What stands at that path of keys in a reply of JSON, None when there is no such thing;
    OSError when it is no JSON."""
    value = json_reply(data)
    if value is None:
        raise OSError(errno.EPROTO, 'a reply that is no JSON')
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def sized_bytes(data):
    """Bytes behind their 32-bit length, big-endian."""
    return struct.pack('>I', len(data)) + data


class Fields:
    """Reads the big-endian fields of a binary reply, one after the other; OSError when it ends too
    early or makes no sense."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        if not 0 <= n <= len(self.data) - self.at:
            raise OSError(errno.EPROTO, 'a reply that is cut short or is none')
        self.at += n
        return self.data[self.at - n:self.at]

    def int8(self):
        return struct.unpack('>b', self.take(1))[0]

    def int16(self):
        return struct.unpack('>h', self.take(2))[0]

    def int32(self):
        return struct.unpack('>i', self.take(4))[0]

    def int64(self):
        return struct.unpack('>q', self.take(8))[0]

    def text(self):
        """A text behind its 16-bit length; '' for none."""
        return self.take(max(0, self.int16())).decode('utf-8', 'replace')

    def bytes(self):
        """Bytes behind their 32-bit length; b'' for none."""
        return self.take(max(0, self.int32()))

    def short_text(self):
        """A text behind its 8-bit length."""
        return self.take(self.take(1)[0]).decode('utf-8', 'replace')

    def array(self, read):
        """What read() gives for each of as many as the 32-bit count says."""
        n = self.int32()
        if n > len(self.data) - self.at:        # each has a byte at least
            self.take(-1)
        return [read() for _ in range(n)]


# -- Kafka: what stands in a RecordBatch (kafka.apache.org/protocol, "Message format") ------------

CRC32C = (0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362,
          0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab,
          0xe330a81a, 0xf36e6f75)               # of the sixteen halves of a byte
CRC32C_MULTIPLES = ((6777, 484, 100, 0), (266, 143, 121, 88, 71, 0))
GZIP = 1                                        # the codec, in the attributes
SMALL = 500  # bytes that are not worth compressing


def crc32c(data):
    """CRC-32C (RFC 3720, appendix B.4), 100 times faster than byte by byte.

    The multiples are polynomials that 0x11EDC6F41 divides, as the exponents of their terms: the
    high part of the data may be added to lower places instead, which numbers of any size do in C.
    Squaring one doubles its exponents. The lowest bits of the number are its highest powers.
    """
    number, bits = int.from_bytes(data, 'little') ^ 0xffffffff, 8 * len(data)
    if bits < 512:
        return crc32c_rest(data, 0xffffffff)
    for top, *lower in CRC32C_MULTIPLES:
        for power in range((bits // top).bit_length() - 1, -1, -1):
            while bits > top << power:
                n = min((top - lower[0]) << power, bits - (top << power))
                high = number & ((1 << n) - 1)
                number >>= n
                for exponent in lower:
                    number ^= high << (((top - exponent) << power) - n)
                bits -= n
    number <<= -bits % 8
    return crc32c_rest(number.to_bytes((bits + 7) // 8, 'little'), 0)


def crc32c_rest(data, crc):
    """The CRC of few bytes, half a byte at a time."""
    for byte in data:
        crc ^= byte
        crc = crc >> 4 ^ CRC32C[crc & 15]
        crc = crc >> 4 ^ CRC32C[crc & 15]
    return crc ^ 0xffffffff


def varint(number):
    """A signed number: zigzag, then seven bits a byte, the low ones first."""
    number = 2 * number if number >= 0 else -2 * number - 1
    out = []
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def record(time_delta, offset_delta, key, value):
    """One record of a batch, version 2. key: bytes, or None."""
    body = b''.join((
        b'\0',                                  # attributes
        varint(time_delta),
        varint(offset_delta),
        varint(-1 if key is None else len(key)),
        key or b'',
        varint(len(value)),
        value,
        b'\0'))                                 # headers: none
    return varint(len(body)) + body


def record_batch(records, compress, producer, epoch, sequence):
    """A RecordBatch of magic 2. records: [(time in ms, key, value)]; producer: its id and epoch,
    and the sequence number of the first record, all -1 without idempotence."""
    first = records[0][0]
    body = b''.join([record(ms - first, i, key, value)
                     for i, (ms, key, value) in enumerate(records)])
    codec = 0
    if compress and len(body) > SMALL:
        small = gzipped(body)
        if len(small) < len(body):
            codec, body = GZIP, small
    tail = struct.pack(
        '>hiqqqhii',
        codec,                                  # attributes: CreateTime, no transaction
        len(records) - 1,                       # lastOffsetDelta
        first,                                  # baseTimestamp
        max(ms for ms, key, value in records),  # maxTimestamp
        producer,                               # producerId
        epoch,                                  # producerEpoch
        sequence,                               # baseSequence
        len(records)) + body
    return struct.pack(
        '>qiibI',
        0,                                      # baseOffset
        len(tail) + 9,                          # batchLength, from the next field on
        -1,                                     # partitionLeaderEpoch
        2,                                      # magic
        crc32c(tail)) + tail


def murmur2(data):
    """The hash by which Kafka's Java client chooses a partition (Utils.murmur2), unsigned."""
    m, mask = 0x5bd1e995, 0xffffffff
    h = 0x9747b28c ^ len(data)
    for i in range(0, len(data) - 3, 4):
        k = int.from_bytes(data[i:i + 4], 'little') * m & mask
        h = h * m & mask ^ (k ^ k >> 24) * m & mask
    if len(data) % 4:
        h = (h ^ int.from_bytes(data[len(data) // 4 * 4:], 'little')) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


# -- AMQP 0-9-1: frames, methods, contents (its specification, chapters 2.3 and 4.2) --------------

AMQP_METHOD, AMQP_HEADER, AMQP_BODY, AMQP_HEARTBEAT = 1, 2, 3, 8        # types of frames
AMQP_END = b'\xce'
AMQP_AROUND = 8                 # bytes of a frame around its payload
AMQP_FRAME = 131072             # bytes of a frame at most, either way: what RabbitMQ proposes
MOST_SHORT = 255                # bytes of a short string


def short_bytes(text):
    """As much of a text as a short string takes, which may hold no NUL."""
    data = utf8(text.replace('\0', '_'))
    return data if len(data) <= MOST_SHORT else utf8(data[:MOST_SHORT].decode('utf-8', 'ignore'))


def short_string(text):
    """A text behind its 8-bit length."""
    data = short_bytes(text)
    return struct.pack('>B', len(data)) + data


def field_table(fields):
    """A table of [(name, text, boolean or such a list)]."""
    out = []
    for name, value in fields:
        if isinstance(value, bool):
            data = b't' + struct.pack('>B', value)
        elif isinstance(value, str):
            data = b'S' + sized_bytes(utf8(value))
        else:
            data = b'F' + field_table(value)
        out.append(short_string(name) + data)
    return sized_bytes(b''.join(out))


def amqp_frame(kind, channel, payload):
    """A frame of that type."""
    return struct.pack(
        '>BHI',
        kind,                                   # type
        channel,
        len(payload)) + payload + AMQP_END


def amqp_method(channel, method, arguments=b''):
    """A frame with a method, which is (class id, method id)."""
    return amqp_frame(AMQP_METHOD, channel, struct.pack('>HH', *method) + arguments)


def amqp_content(channel, properties, body, most):
    """The frames that follow a Basic.Publish, each of at most so many bytes: a header and as many
    pieces of the body as it takes."""
    room = most - AMQP_AROUND
    return amqp_frame(AMQP_HEADER, channel, struct.pack(
        '>HHQ',
        60,                                     # class id: basic
        0,                                      # weight
        len(body)) + properties) + b''.join([
            amqp_frame(AMQP_BODY, channel, body[i:i + room]) for i in range(0, len(body), room)])


def basic_properties(content_type, persistent, message_id, seconds):
    """Property flags and the properties of a content of class basic."""
    return struct.pack('>H', 1 << 15 | 1 << 12 | 1 << 7 | 1 << 6) + b''.join((
        short_string(content_type),             # bit 15
        struct.pack('>B', 2 if persistent else 1),      # 12: delivery-mode
        short_string(message_id),               # 7
        struct.pack('>Q', seconds)))            # 6: timestamp


def amqp_size(data):
    """How many bytes the frame has that the data begin with, as far as they tell; OSError when they
    begin no frame."""
    if data[:4] == b'AMQP'[:len(data)] and data:
        raise OSError(errno.EPROTO, 'it speaks another version of AMQP, need 0-9-1')
    if data[:1] == b'\x15':                     # the record type of a TLS alert
        raise OSError(errno.EPROTO, 'it answers in TLS: need "tls": true')
    if len(data) < AMQP_AROUND - 1:
        return AMQP_AROUND - 1
    kind, channel, size = struct.unpack('>BHI', data[:AMQP_AROUND - 1])
    if (kind not in (AMQP_METHOD, AMQP_HEADER, AMQP_BODY, AMQP_HEARTBEAT) or channel > 1
            or size > AMQP_FRAME or data[AMQP_AROUND - 1 + size:][:1] not in (b'', AMQP_END)):
        raise OSError(errno.EPROTO, 'what came back is no AMQP')
    return AMQP_AROUND + size


# -- SCRAM (RFC 5802, RFC 7677) -----------------------------------------------------------------

MOST_ITERATIONS = 1 << 20       # a second of work; a server that asks for more means harm


class Scram:
    """The client's side of one authentication. first and final are what it says; nonce: text
    without a comma. OSError when the server's words make no sense, or it does not know the
    password."""

    def __init__(self, algorithm, username, password, nonce):
        self.algorithm, self.nonce, self.expected = algorithm, nonce, None
        self.password = utf8(password)
        self.bare = utf8('n=%s,r=%s' % (username.replace('=', '=3D').replace(',', '=2C'), nonce))
        self.first = b'n,,' + self.bare

    def final(self, challenge):
        """client-final-message for server-first-message, both bytes."""
        import hashlib
        import binascii
        given = scram_fields(challenge)
        nonce, rounds = given.get('r', ''), given.get('i', '')
        sane = rounds.isdecimal() and len(rounds) < 10 and 4096 <= int(rounds) <= MOST_ITERATIONS
        if not nonce.startswith(self.nonce) or nonce == self.nonce or not sane:
            raise OSError(errno.EPROTO, 'the server asks for a SCRAM that makes no sense')
        try:
            salt = binascii.a2b_base64(given.get('s', ''))
        except ValueError:
            raise OSError(errno.EPROTO, 'the server gives a SCRAM salt that is none')
        salted = hashlib.pbkdf2_hmac(self.algorithm, self.password, salt, int(rounds))
        key = hmac(self.algorithm, salted, b'Client Key')
        tail = 'c=biws,r=' + nonce
        words = b','.join((self.bare, challenge, tail.encode()))
        signed = hmac(self.algorithm, hashlib.new(self.algorithm, key).digest(), words)
        proof = base64_text(bytes([a ^ b for a, b in zip(key, signed)]))
        self.expected = base64_text(hmac(
            self.algorithm, hmac(self.algorithm, salted, b'Server Key'), words))
        return (tail + ',p=' + proof).encode()

    def proves(self, answer):
        """Whether server-final-message shows that the server knows the password too."""
        return self.expected is not None and scram_fields(answer).get('v') == self.expected


def scram_fields(message):
    """{'r': ..., 's': ..., 'i': ...} of `r=...,s=...,i=4096`."""
    words = message.decode('utf-8', 'replace').split(',')
    return {word[0]: word[2:] for word in words if word[1:2] == '='}


# -- Avro: object container files (avro.apache.org, specification 1.11) ---------------------------

AVRO_MAGIC = b'Obj\1'
AVRO_MARK = 16                                  # bytes of the marker behind header and each block
MOST_INFLATED = 1 << 22                         # bytes that a block which is looked at may become


def avro_bytes(data):
    """Bytes, or a text's bytes, behind their length."""
    return varint(len(data)) + data


def avro_map(pairs):
    """A map of (bytes, bytes): one block of them, and the end."""
    pairs = list(pairs)
    body = b''.join([avro_bytes(key) + avro_bytes(value) for key, value in pairs])
    return (varint(len(pairs)) + body if pairs else b'') + b'\0'


def avro_header(schema, codec):
    """What a file begins with, but for the marker, which is 16 bytes that no other file has."""
    return AVRO_MAGIC + avro_map([(b'avro.schema', schema.encode()),
                                  (b'avro.codec', codec.encode())])


def avro_block(count, data, codec, mark):
    """So many values, compressed as the codec says, behind their number and size."""
    if codec == 'deflate':
        import zlib
        press = zlib.compressobj(-1, zlib.DEFLATED, -15)        # neither header nor checksum
        data = press.compress(data) + press.flush()
    return varint(count) + avro_bytes(data) + mark


class AvroFields:
    """Reads values one after the other; ValueError when they end too early or make no sense."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def long(self):
        """Up to 64 bits, zigzag, seven of them a byte, the low ones first."""
        number = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            if byte < 128:
                return number >> 1 ^ -(number & 1)
        raise ValueError('a number without an end')

    def take(self, n):
        if not 0 <= n <= len(self.data) - self.at:
            raise ValueError('more than there is')
        self.at += n
        return self.data[self.at - n:self.at]

    def bytes(self):
        return self.take(self.long())

    def pairs(self):
        """[(bytes, bytes)] of a map."""
        out = []
        while True:
            n = self.long()
            if not n:
                return out
            if n < 0:                           # then it is followed by the block's size
                self.long()
            for _ in range(abs(n)):
                out.append((self.bytes(), self.bytes()))


def avro_header_parts(data):
    """({name: bytes}, marker, length of the header); ValueError."""
    fields = AvroFields(data)
    if fields.take(len(AVRO_MAGIC)) != AVRO_MAGIC:
        raise ValueError('no Avro file')
    return dict(fields.pairs()), fields.take(AVRO_MARK), fields.at


def inflated(data, most):
    """The bytes that raw deflate made smaller, None when there are so many or more; ValueError.
    What stands behind them does not matter: some writers leave part of a checksum there."""
    import zlib
    unpack = zlib.decompressobj(-15)
    try:
        out = unpack.decompress(data, most)
    except zlib.error as error:
        raise ValueError(str(error))
    if len(out) == most:
        return None
    if not unpack.eof:
        raise ValueError('it ends too early')
    return out


def avro_whole(block, codec, skip):
    """Whether a block without its marker holds what it says; None when it is too large to tell.
    skip(AvroFields) skips a value."""
    fields = AvroFields(block)
    try:
        count, data = fields.long(), fields.bytes()
        if count <= 0 or fields.at != len(block):
            return False
        if codec == 'deflate':
            data = inflated(data, MOST_INFLATED)
            if data is None:
                return None
        values = AvroFields(data)
        for _ in range(count):
            skip(values)
        return values.at == len(data)
    except ValueError:
        return False


def avro_torn(data):
    """Whether these bytes may be the beginning of a block: what a write that broke off leaves, or
    zeros, as they are found after a loss of power."""
    fields = AvroFields(data)
    try:
        count, size = fields.long(), fields.long()
    except ValueError:
        return len(data) < 20
    return (count > 0 and len(data) - fields.at <= size + AVRO_MARK) or not data.strip(b'\0')


def avro_end(tail, mark, codec, skip):
    """How many bytes of a file's tail are whole blocks. None: there is no telling, for it begins in
    the last block, or ends in what is no part of one.

    Each write is on the disk before the next one begins, so that only the last one is suspect.
    """
    last = tail.rfind(mark)
    if last < 0:
        return None
    rest = tail[last + AVRO_MARK:]
    if rest:
        return last + AVRO_MARK if avro_torn(rest) else None
    before = tail.rfind(mark, 0, last)
    if before < 0:
        return AVRO_MARK if last == 0 else None
    before += AVRO_MARK
    whole = avro_whole(tail[before:last], codec, skip)
    return None if whole is None else len(tail) if whole else before


# -- AWS Signature Version 4 (docs.aws.amazon.com, "Create a signed AWS API request") -----------

def aws_stamp(now):
    """`20231114T221320Z` for Unix seconds."""
    from datetime import datetime, timezone     # http.client has brought it along
    return datetime.fromtimestamp(int(now), timezone.utc).strftime('%Y%m%dT%H%M%SZ')


def aws_time(text):
    """Unix seconds of `2023-11-14T22:13:20Z`; 0 when it is none."""
    from datetime import datetime, timezone
    words = text[:10].split('-') + text[11:19].split(':')
    if len(words) != 6 or not ''.join(words).isdecimal():
        return 0
    try:
        return int(datetime(*map(int, words), tzinfo=timezone.utc).timestamp())
    except (ValueError, OverflowError):
        return 0


def aws_canonical(headers, body):
    """(the canonical request for a POST to `/` without a query, the names of its headers): all the
    headers are signed."""
    import hashlib
    lines = sorted((name.lower(), ' '.join(value.split())) for name, value in headers.items())
    names = ';'.join([name for name, value in lines])
    return 'POST\n/\n\n%s\n%s\n%s' % (''.join(['%s:%s\n' % line for line in lines]), names,
                                     hashlib.sha256(body).hexdigest()), names


def aws_authorization(access_key, secret_key, region, service, stamp, headers, body):
    """The Authorization header of such a request. headers: Host and X-Amz-Date, which is the stamp,
    are among them."""
    import hashlib
    canonical, names = aws_canonical(headers, body)
    scope = '%s/%s/%s/aws4_request' % (stamp[:8], region, service)
    digest = hashlib.sha256(utf8(canonical)).hexdigest()
    key = utf8('AWS4' + secret_key)
    for word in scope.split('/') + ['\n'.join(('AWS4-HMAC-SHA256', stamp, scope, digest))]:
        key = hmac('sha256', key, utf8(word))
    return 'AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s' % (
        access_key, scope, names, key.hex())


def long_json_text(text):
    """As json_text(), in UTF-8 and a hundred times faster; no other control characters are in the
    text than tabs and line ends."""
    for letter in '\\"\n\r\t':
        text = text.replace(letter, LETTERS[letter])
    return '"%s"' % text


def md5_text(data):
    """The MD5 in hexadecimal, '' where the law forbids it (FIPS 140)."""
    import hashlib
    try:
        return hashlib.md5(data).hexdigest()
    except ValueError:
        return ''


# -- ZMTP 3.0, what ZeroMQ speaks (rfc.zeromq.org/spec/23) ----------------------------------------

ZMTP_MORE, ZMTP_LONG, ZMTP_COMMAND = 1, 2, 4    # flags of a frame
ZMTP_GREETING = 64              # bytes


def zmtp_greeting(mechanism, server):
    """The bytes that open a connection. server: whether we are the server of the mechanism."""
    return b''.join((
        b'\xff' + bytes(8) + b'\x7f',           # signature
        b'\x03\x00',                            # version 3.0
        mechanism.ljust(20, b'\0'),
        b'\x01' if server else b'\0',           # as-server
        bytes(31)))                             # filler


def zmtp_frame(data, flags=0):
    """The data behind flags and size."""
    if len(data) < 256:
        return struct.pack('BB', flags, len(data)) + data
    return struct.pack('>BQ', flags | ZMTP_LONG, len(data)) + data


def zmtp_command(name, data=b''):
    return zmtp_frame(zmtp_short(name) + data, ZMTP_COMMAND)


def zmtp_short(data):
    """Bytes behind their 8-bit length."""
    return struct.pack('B', len(data)) + data


def zmtp_frames(data, most):
    """([(flags, body)] of the whole frames, the bytes behind them). OSError when it is none, or one
    has a body of more than so many bytes."""
    out, at = [], 0
    while at < len(data):
        flags = data[at]
        start = at + (9 if flags & ZMTP_LONG else 2)
        if flags > 7:
            raise OSError(errno.EPROTO, 'no frame of ZMTP begins with %d' % flags)
        if start > len(data):
            break
        size = struct.unpack('>Q', data[at + 1:start])[0] if flags & ZMTP_LONG else data[at + 1]
        if size > most:
            raise OSError(errno.EPROTO, 'a frame of %d bytes, need %d at most' % (size, most))
        if start + size > len(data):
            break
        out.append((flags, data[start:start + size]))
        at = start + size
    return out, data[at:]


def zmtp_named(body):
    """(name, data) of a command's body. libzmq 4.3.5 writes ERROR as `^RROR`, without its
    length."""
    if body[1:5] == b'RROR':
        return b'ERROR', body[5:]
    fields = Fields(body)
    return fields.take(fields.take(1)[0]), body[fields.at:]


def zmtp_properties(data):
    """{name in lower case: value} of what READY and INITIATE carry."""
    fields, out = Fields(data), {}
    while fields.at < len(data):
        name = fields.take(fields.take(1)[0]).lower()
        out[name] = fields.take(fields.int32())
    return out


# -- Redis (redis.io, "Redis serialization protocol specification") -------------------------------

def resp_command(words):
    """A command for Redis, of bytes: an array of bulk strings."""
    return b'*%d\r\n' % len(words) + b''.join([b'$%d\r\n%s\r\n' % (len(w), w) for w in words])


# -- STOMP (stomp.github.io, versions 1.0 to 1.2, "Frames and Headers") ---------------------------

STOMP_ANSWERS = b'CONNECTED', b'RECEIPT', b'ERROR'
STOMP_REPLY = 1 << 17           # bytes of a frame at most: errors bring the stack of a Java program
STOMP_ESCAPES = {'1.0': '', '1.1': '\\\n:', '1.2': '\\\n\r:'}.get       # what stands behind a \


def stomp_escaped(text, version):
    """A header's name or value, as that version writes it."""
    for c in STOMP_ESCAPES(version, ''):
        text = text.replace(c, '\\' + {'\n': 'n', '\r': 'r', ':': 'c'}.get(c, c))
    return text


def stomp_unescaped(text):
    """The other way round, as well as it goes."""
    return '\\'.join([part.replace('\\n', '\n').replace('\\r', '\r').replace('\\c', ':')
                      for part in text.split('\\\\')])


def stomp_frame(command, headers, version, body=b''):
    """The bytes of a frame. headers: [(name, value)], as text without control characters; body: no
    NUL is in it. version: '1.0' also for CONNECT, which escapes nothing in any version."""
    lines = [command] + ['%s:%s' % (stomp_escaped(name, version), stomp_escaped(value, version))
                         for name, value in headers]
    return utf8('\n'.join(lines) + '\n\n') + body + b'\0'


def stomp_frames(data):
    """([(command, {name: value}, body)], the bytes behind them) of the frames of a server that are
    there as a whole; line ends between them are heart-beats. OSError when it is no STOMP."""
    frames = []
    while True:
        data = data.lstrip(b'\r\n')
        if data and not any(word.startswith(data[:len(word)]) for word in STOMP_ANSWERS):
            raise OSError(errno.EPROTO, 'what came back is no STOMP: %s' % printable(
                data[:20].decode('latin-1')))
        found = stomp_first(data)
        if not found and len(data) > STOMP_REPLY:
            raise OSError(errno.EMSGSIZE, 'a frame of more than %d bytes' % STOMP_REPLY)
        if not found:
            return frames, data
        frames.append(found[:3])
        data = data[found[3]:]


def stomp_first(data):
    """(command, headers, body, how long all of it is) of the first frame, or None when it is not
    there as a whole."""
    starts = [data.find(end) + len(end) for end in (b'\n\n', b'\n\r\n') if end in data]
    start = min(starts or [len(data)])
    command, *lines = data[:start].decode('utf-8', 'replace').replace('\r', '').split('\n')
    headers = {}
    for line in lines:
        name, _, value = line.partition(':')
        headers.setdefault(name, value)         # of two the first counts
    length = headers.get('content-length', '')
    if starts and length.isdecimal() and len(length) < 8:
        end = start + int(length)
        if data[end:end + 1] not in (b'', b'\0'):
            raise OSError(errno.EPROTO, 'a frame that does not end where it says')
    else:
        end = data.find(b'\0', start)
    if not starts or not start <= end < len(data):
        return None
    return command, headers, data[start:end].decode('utf-8', 'replace'), end + 1


# -- Graphite's pickle ----------------------------------------------------------------------------

def pickle_list(items):
    """A pickle, protocol 2, of a list of (text, (time, number)): what carbon's pickle port takes.

    Written out by hand since the pickle module costs 1 MB and all that is needed is seven opcodes
    (CPython, Lib/pickletools.py). No memo, so the bytes do not depend on the interpreter.
    """
    out = [b'\x80\x02](']                       # PROTO 2, EMPTY_LIST, MARK
    for path, stamp, value in items:
        name = path.encode('ascii', 'replace')
        out += (struct.pack('<cI', b'X', len(name)), name,              # BINUNICODE
                struct.pack('<ci', b'J', stamp) if isinstance(stamp, int) and stamp < 1 << 31
                else struct.pack('>cd', b'G', stamp),                   # BININT or BINFLOAT
                struct.pack('>cd', b'G', value), b'\x86\x86')           # BINFLOAT, TUPLE2, TUPLE2
    return b''.join(out) + b'e.'                # APPENDS, STOP


# == 7 PAYLOADS: a frame to the bytes of each format ============================================

TIME = '\0'                     # where the time goes in a template; no sanitised text holds a NUL
FORMATS_KEPT = 8  # layouts whose template is kept: modules of several intervals take turns


def time_text(ms):
    """Unix seconds, an integer when whole, else three decimals."""
    return '%d' % (ms // 1000) if ms % 1000 == 0 else '%d.%03d' % (ms // 1000, ms % 1000)


def number_format(series):
    """The % format of its values: whole numbers exactly, all else in 12 digits."""
    return '%d' if series.kind == GAUGE else '%.12g'


class Template:
    """A frame to text, one line per point, through one % template per layout and identity.

    lines(list of Series, identity, formats) gives the line of each with its format where the value
    goes. mark: how a hole reads in a line; lines with holes are cut.
    """

    def __init__(self, lines, mark, keep=None):
        self.lines, self.mark, self.keep = lines, mark, keep
        self.known = {}

    def text(self, frame):
        """The lines of a frame, with TIME still in them."""
        layout, identity, template, pick = self.entry_of(frame)
        values = picked(frame_values(frame), pick)
        try:
            text = template % tuple(values)
        except ValueError:  # a hole where a whole number goes: %d does not take NaN
            text = self.wide(layout, identity, pick) % tuple(
                'nan' if v != v else '%d' % v if layout.series[i].kind == GAUGE else '%.12g' % v
                for i, v in zip(pick if pick is not None else range(len(values)), values))
        if self.mark in text:
            mark = self.mark
            text = '\n'.join([line for line in text.split('\n') if mark not in line])
        return text

    def entry_of(self, frame):
        key = id(frame.layout), id(frame.identity)
        entry = self.known.get(key)
        if entry is None or entry[0] is not frame.layout or entry[1] is not frame.identity:
            if len(self.known) >= FORMATS_KEPT:
                self.known.clear()
            entry = self.known[key] = self.entry(frame.layout, frame.identity)
        return entry

    def entry(self, layout, identity):
        pick = self.keep and [i for i, s in enumerate(layout.series) if self.keep(s.flat)]
        series = picked(layout.series, pick)
        template = ''.join(self.lines(series, identity, map(number_format, series)))
        return layout, identity, template, pick

    def wide(self, layout, identity, pick):
        """The template with %s for every value."""
        series = picked(layout.series, pick)
        return ''.join(self.lines(series, identity, ['%s'] * len(series)))


def picked(all, pick):
    """Those with these indices; None: all."""
    return all if pick is None else [all[i] for i in pick]


def frame_values(frame):
    """The numbers of a frame, holes included, and the whole ones that no double holds."""
    if not frame.exact:
        return frame.values
    values = list(frame.values)
    for i, value in frame.exact.items():
        values[i] = value
    return values


def at_time(text, time_ms):
    """The text of a Template with the time in it, in seconds."""
    return text.replace(TIME, time_text(time_ms))


def percents(text):
    """The text, safe in a % template."""
    return text.replace('%', '%%')


PRETTY_WIDTH = 16               # columns of a number, for people


class PayloadJson:
    """A frame to the payload: one line of JSON, or one that a person likes to read."""

    def __init__(self, keep=None, pretty=False):
        self.pretty = pretty
        self.template = Template(self.pretty_lines if pretty else payload_lines,
                                 '"value": %*s,' % (PRETTY_WIDTH if pretty else 0, 'nan'), keep)

    def text(self, frame):
        lines = self.template.text(frame)
        head = ', '.join('"%s": %s' % (key, json_text(frame.identity[key]))
                         for key in IDENTITY_KEYS)
        if not self.pretty:
            return '{%s, "timestamp": %s, "points": [%s]}\n' % (
                head, time_text(frame.time_ms), lines.rstrip(',\n').replace(',\n', ', '))
        points = lines.rstrip(',\n')
        return '{%s,\n "timestamp": %s,\n "points": [%s]}\n' % (
            head, time_text(frame.time_ms), '\n%s\n ' % points if points else '')

    def pretty_lines(self, layout, identity, forms):
        """`  {"cpu.user":   {"value":       %.12g, "units": "percent"}},`, the columns below each
        other"""
        names = [json_text(s.flat) for s in layout]
        wide = max(map(len, names)) if names else 0
        for name, series, form in zip(names, layout, forms):
            yield '  {%s:%s {"value": %%%d%s, "units": %s}},\n' % (
                percents(name), ' ' * (wide - len(name)), PRETTY_WIDTH, form[1:],
                percents(json_text(series.unit)))


def payload_lines(layout, identity, forms):
    """`{"cpu.user": {"value": %.12g, "units": "percent"}},` for each series"""
    for series, form in zip(layout, forms):
        yield '{%s: {"value": %s, "units": %s}},\n' % (
            percents(json_text(series.flat)), form, percents(json_text(series.unit)))


FLAT_KEYS = IDENTITY_KEYS + ('timestamp', 'metric', 'value', 'units', 'device', 'interface', 'cpu',
                             'mount', 'group', 'pid', 'thread', 'container', 'name', 'id', 'image',
                             'runtime', 'fstype', 'module', 'emitter')


def flat_lines(tags):
    """`{"timestamp": 1, "hostname": "n1", "metric": "disk.reads", "device": "sda", "value": %.12g,
    "units": ""}` for each series; tags give way to labels, and their collision with other keys was
    a mistake before."""
    def lines(layout, identity, forms):
        head = ', '.join('"%s": %s' % (key, json_text(identity[key])) for key in IDENTITY_KEYS)
        for series, form in zip(layout, forms):
            more = [pair for pair in sorted(tags.items()) if pair[0] not in series.keys]
            labels = ''.join(', %s: %s' % (json_text(k), json_text(v))
                             for k, v in list(zip(series.keys, series.values)) + more)
            yield '{"timestamp": \0, %s, "value": %s, "units": %s}\n' % (
                percents('%s, "metric": %s%s' % (head, json_text(series.metric), labels)),
                form, percents(json_text(series.unit)))
    return lines


def payload_object(frame, keep=None):
    """The payload as a dict, which is what emitters of users get."""
    payload = dict(frame.identity)
    ms = frame.time_ms
    payload['timestamp'] = ms // 1000 if ms % 1000 == 0 else ms / 1000.0
    payload['points'] = [
        {s.flat: {'value': int(v) if s.kind == GAUGE else v, 'units': s.unit}}
        for s, v in zip(frame.layout.series, frame_values(frame))
        if v == v and (keep is None or keep(s.flat))]
    return payload


# -- Graphite ---------------------------------------------------------------------------------

NODE = frozenset('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-')
MOST_NODE = 200  # letters of a part of a path: carbon makes it a file name, with .wsp


def graphite_node(text):
    """A text as one part of a path: all but letters, digits, - and _ becomes _."""
    return ''.join([c if c in NODE else '_' for c in text[:MOST_NODE]]) or '_'


def graphite_prefix(prefix, identity):
    """The template filled in; a part that is empty vanishes with its dot."""
    parts = []
    for part in prefix.split('.'):
        for key in IDENTITY_KEYS:
            part = part.replace('{%s}' % key, graphite_node(identity[key]) if identity[key] else '')
        if part:
            parts.append(graphite_node(part))
    return parts


def graphite_name(metric):
    """`net.rx_bytes`, made of parts that may stand in a path."""
    return '.'.join([graphite_node(n) for n in metric.split('.') if n]) or '_'


def graphite_path(series, prefix, once):
    """`EC2.us-west-1.test.n1_example_net.net.rx_bytes.eth0_100`. once: a memo of function and
    text."""
    name = once(graphite_name, series.metric)
    instance = '.' + once(graphite_node, '/'.join(series.instance)) if series.instance else ''
    return '.'.join(prefix + [name + instance])


def graphite_tag(text):
    """A tag's value: no blank, `;` or control character, no `~` at the start, never empty. And no
    `"`: carbon takes a line that ends in `"}` for another syntax, and another series."""
    text = ''.join([c if ' ' < c < '\x7f' and c not in ';"' else '_' for c in text[:MOST_NODE]])
    return '_' + text[1:] if text.startswith('~') else text or '_'


def graphite_tagged(series, identity, tags, once):
    """`net.rx_bytes;host=n1;interface=eth0;datacenter=EC2`. once: a memo of function and text."""
    return once(graphite_name, series.metric) + ''.join(
        ';%s=%s' % (once(graphite_node, k), once(graphite_tag, v))
        for k, v in tag_pairs(series, identity, tags))


def tag_pairs(series, identity, tags):
    """[(key, value)] of a series where sinks have tags, the empty ones left out: `host`, its
    labels, the rest of the identity, and the tags of the configuration, which give way to labels
    only."""
    labels = dict(zip(series.keys, series.values))
    found = dict({'host': identity['hostname']}, **labels)
    found.update((key, identity[key]) for key in IDENTITY_KEYS
                 if key != 'hostname' and key not in found)
    found.update((key, tags[key]) for key in sorted(tags) if key not in labels)
    return [(k, v) for k, v in found.items() if v]


def graphite_lines(options):
    """A Template of carbon's plaintext: `path value seconds\\n` per point."""
    def lines(layout, identity, forms):
        once, prefix = memo(), graphite_prefix(options.prefix, identity)
        for series, form in zip(layout, forms):
            path = (graphite_tagged(series, identity, options.tags, once) if options.tagged
                    else graphite_path(series, prefix, once))
            yield '%s %s \0\n' % (percents(path), form)
    return Template(lines, ' nan ', unwanted(options.blacklist))


# -- line protocol of InfluxDB (docs.influxdata.com, "Line protocol") ---------------------------

VALUE, HEAD = '\1', '\2'        # before a number, and behind what lines share: no text holds them
MOST_NAME = 1000  # letters of a name: a line with more than 65,535 bytes of them is refused
INFLUX_RESERVED = ('time', '_field', '_measurement')    # points with such a key are thrown away


def influx_text(text, special):
    r"""The text with a backslash before the special characters, and _ for what would end the line.

    A backslash stands for itself, but before a special character, another one and the end each
    server (1.x, 3.x, VictoriaMetrics) makes something else of it: there it is _ too.
    """
    text = ''.join([c if c >= ' ' and c != '\x7f' else '_' for c in text[:MOST_NAME]])
    text = utf8(text).decode()
    return ''.join(['_' if c == '\\' and after in ', =\\' else '\\' + c if c in special else c
                    for c, after in zip(text, text[1:] + ' ')])


def influx_key(text):
    """The key of a tag or a field."""
    return influx_text(text + '_' if text in INFLUX_RESERVED else text, ', =')


def influx_head(series, tags):
    """`disk,device=sda,host=n1`: a measurement is a family, its tags in order."""
    name = influx_text(series.family or series.name or '_', ', ')
    return ('_' + name if name.startswith('#') else name) + ''.join(
        [',%s=%s' % (key, tags[key]) for key in sorted(tags)])


def influx_fields(tags):
    """A Template's lines: a head for each family and instance, then its fields, one per line. No
    name comes twice for a head, nor is it a tag's: 3.x would refuse it. No field has a quote in its
    name: VictoriaMetrics would take what follows for text."""
    def lines(layout, identity, forms):
        last, known = None, {}
        for series, form in zip(layout, forms):
            if (series.family, series.values) != last:
                last = series.family, series.values
                pairs = {influx_key(k): influx_text(v, ', =')
                         for k, v in tag_pairs(series, identity, tags)}
                head = influx_head(series, pairs)
                taken = known.setdefault(head, set(pairs))  # two names may become one
                yield percents(head) + '\n'
            name = influx_key((series.name if series.family else '') or 'value').replace('"', '_')
            while name in taken:
                name += '_'
            taken.add(name)
            yield '%s%s%s\n' % (percents(name), VALUE, form)
    return lines


def decimal(number):
    """The number with a point, where its spelling tells the type: what is real once stays real.
    `3.0`, `1.0e+22`"""
    if '.' in number:
        return number
    digits, mark, power = number.partition('e')
    return digits + '.0' + mark + power


def influx_parts(text):
    """(head, ['reads=3.0', 'writes=1.5']) of such heads and fields, a pair for each line."""
    fields, head = [], ''
    for line in text.split('\n')[:-1] + ['']:
        name, mark, number = line.partition(VALUE)
        if mark:
            fields.append(name + '=' + decimal(number))
            continue
        if fields:
            yield head, fields
        head, fields = line, []


def influx_line(head, fields, stamp):
    """`disk,device=sda,host=n1 reads=3.0,writes=1.5 1429628878000`"""
    return '%s %s %d\n' % (head, ','.join(fields), stamp)


def influx_lines(text, stamp):
    """All lines of such heads and fields, at the same time."""
    return ''.join([influx_line(head, fields, stamp) for head, fields in influx_parts(text)])


def influx_datagrams(text, time_ms, most):
    """([bytes of whole lines, at most so many], how many points fit in none). A line that is too
    long goes as several with the same head and time: they are one point to the server. Nanoseconds,
    which is what it takes a number for unless told."""
    lines, long, stamp = [], 0, time_ms * 1000000
    for head, fields in influx_parts(text):
        room, taken, size = most - len(influx_line(head, [], stamp).encode()), [], 0
        for field in fields:
            wide = len(field.encode()) + 1      # with its comma
            if wide - 1 > room:
                long += 1
                continue
            if size + wide - 1 > room:
                lines.append(influx_line(head, taken, stamp))
                taken, size = [], 0
            taken.append(field)
            size += wide
        if taken:
            lines.append(influx_line(head, taken, stamp))
    return datagrams(''.join(lines).encode(), most)[0], long


# -- InfluxDB 0.8: JSON of series, columns and points ------------------------------------------

INFLUX08_COLUMNS = ('time', 'sequence_number', 'value', 'units')


def influx08_lines(tags):
    """A Template's lines: for each series the head of the entry it belongs in, HEAD, its row.

    The server's key is series, time and sequence number: with a number of our own a batch that is
    sent twice is stored once. It tells hosts and instances apart, in the 52 bits that JSON numbers
    hold there, by two sums of different polynomials.
    """
    import zlib

    def lines(layout, identity, forms):
        more = dict(identity, **tags)
        labels = {}                             # metric -> its label keys; an entry has all columns
        for series in layout:
            labels.setdefault(series.metric, []).extend(
                [k for k in series.keys if k not in labels.get(series.metric, ())])
        for series, form in zip(layout, forms):
            values = dict(more, **dict(zip(series.keys, series.values)))
            columns = list(more) + [k for k in labels[series.metric] if k not in more]
            texts = [json_text(values[k]) if k in values else 'null' for k in columns]
            key = ' '.join(texts).encode()
            number = (zlib.crc32(key) << 20 | crc32c(key) & 0xfffff) + 1
            yield '%s%s[\0, %d, %s%s, %s]\n' % (
                percents('{"name": %s, "columns": [%s], "points": [' % (
                    json_text(series.metric),
                    ', '.join(map(json_text, INFLUX08_COLUMNS + tuple(columns))))),
                HEAD, number, VALUE, form, percents(', '.join([json_text(series.unit)] + texts)))
    return lines


def influx08_bodies(template, frames, most=1 << 22):
    """(how many frames so far, JSON) for as many frames as fit in so many characters: one entry per
    series and set of columns, since a second one with other columns in the same body would take
    values of the first away."""
    entries, size = {}, 0
    for i, frame in enumerate(frames):
        text = template.text(frame).replace(TIME, '%d' % frame.time_ms).replace(VALUE, '')
        if size and size + len(text) > most:
            yield i, influx08_body(entries)
            entries, size = {}, 0
        size += len(text)
        for line in text.split('\n')[:-1]:
            head, _, row = line.partition(HEAD)
            entries.setdefault(head, []).append(row)
    yield len(frames), influx08_body(entries)


def influx08_body(entries):
    """The JSON of {head: [row]}."""
    return '[%s]' % ', '.join([head + ', '.join(rows) + ']}' for head, rows in entries.items()])


# -- OpenTSDB and KairosDB: a metric, its tags, a time and a number per point ---------------------
# (opentsdb.net/docs, "Writing Data"; kairosdb.github.io/docs, "Add Data Points", "Telnet API")

TSDB_LETTERS = frozenset('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-')
TSDB_IDENTITY = ('datacenter', 'cluster', 'zone', 'region', 'ipv4', 'ipv6')  # the last goes first


def tsdb_text(text):
    """A metric, or the key or value of a tag: all but letters, digits, . _ / - becomes _. OpenTSDB
    takes no other; KairosDB cuts a tag at =, and reads lines as Latin-1."""
    return ''.join([c if c in TSDB_LETTERS else '_' for c in text]) or '_'


def tsdb_tags(series, identity, tags, most=None):
    """[(key, value)] of a series, at most so many: host and labels stay, then `tags`, then the
    identity. One at least, for both servers want one."""
    order = ('host',) + series.keys + tuple(sorted(tags)) + TSDB_IDENTITY
    pairs = sorted(tag_pairs(series, identity, tags), key=lambda pair: order.index(pair[0]))
    return [(tsdb_text(key), tsdb_text(value)) for key, value in pairs][:most] or [('host', '_')]


def tsdb_template(form, tag, between, options, most=None):
    """A Template of a form that has %s for the metric, the number and the tags."""
    def lines(layout, identity, forms):
        taken = set()
        for series, number in zip(layout, forms):
            metric, tags = tsdb_text(series.metric), between.join([tag % pair for pair in tsdb_tags(
                series, identity, options.tags, most)])
            while (metric, tags) in taken:      # two names became one: the server keeps only one
                metric += '_'
            taken.add((metric, tags))
            yield form % (metric, VALUE + number + HEAD, tags)
    return Template(lines, VALUE + 'nan', unwanted(options.blacklist))


def tsdb_points(template, frame, stamp):
    """Its lines, with the time as stamp, and a decimal point in each number: OpenTSDB answers no
    query of a series that has both types at one time, and KairosDB shows both."""
    pieces = template.text(frame).replace(TIME, stamp).split(VALUE)
    for i, piece in enumerate(pieces[1:], 1):
        number, _, rest = piece.partition(HEAD)
        pieces[i] = decimal(number) + rest
    return ''.join(pieces).split('\n')[:-1]


def opentsdb_time(ms):
    """Seconds when whole, else ms: the server tells them apart by their size."""
    return '%d' % (ms if ms % 1000 else ms // 1000)


def opentsdb_points(options):
    """frame -> [`{"metric":"disk.reads","timestamp":1429628878,"value":3.0,"tags":{"host":"n1",
    "device":"sda"}}`], or of telnet [`put disk.reads 1429628878 3.0 host=n1 device=sda`]."""
    form = ('put %s \0 %s %s\n', '%s=%s', ' ') if options.protocol == 'telnet' else (
        '{"metric":"%s","timestamp":\0,"value":%s,"tags":{%s}}\n', '"%s":"%s"', ',')
    template = tsdb_template(*form + (options, options.max_tags))
    return lambda frame: tsdb_points(template, frame, opentsdb_time(frame.time_ms))


def kairosdb_points(options):
    """frame -> [`{"name":"disk.reads","timestamp":1429628878000,"value":3.0,"tags":{"host":"n1",
    "device":"sda"}}`], or of telnet [`putm disk.reads 1429628878000 3.0 host=n1 device=sda`]."""
    form = ('putm %s \0 %s %s\n', '%s=%s', ' ') if options.protocol == 'telnet' else (
        '{"name":"%s","timestamp":\0,"value":%s,"tags":{%s}}\n', '"%s":"%s"', ',')
    template = tsdb_template(*form + (options,))
    return lambda frame: tsdb_points(template, frame, '%d' % frame.time_ms)


# -- messages: what goes through a broker --------------------------------------------------------

def messages(options):
    """frame -> [bytes], in the format that the options name: one message per tick, or with `flat`
    one per point."""
    keep = unwanted(options.blacklist)
    if options.format == 'payload':
        payload = PayloadJson(keep)
        return lambda frame: [payload.text(frame).rstrip('\n').encode()]
    if options.format == 'flat':
        flat = Template(flat_lines(options.tags), '"value": nan,', keep)
        return lambda frame: at_time(flat.text(frame), frame.time_ms).encode().splitlines()
    if options.format == 'graphite':
        lines = graphite_lines(options)
        return lambda frame: unless_empty(at_time(lines.text(frame), frame.time_ms))
    fields = Template(influx_fields(options.tags), VALUE + 'nan', keep)
    return lambda frame: unless_empty(influx_lines(fields.text(frame), frame.time_ms))


def unless_empty(text):
    """[the text's bytes], or [] when there is nothing to say."""
    return [text.encode()] if text else []


def filled(template, identity):
    """The template with the identity in it, as it is."""
    for key in IDENTITY_KEYS:
        template = template.replace('{%s}' % key, identity[key])
    return template


# -- Avro: a record per point, and the files they go to --------------------------------------------

AVRO_SCHEMA = (
    '{"type":"record","name":"Point","namespace":"statbadger","fields":['
    '{"name":"timestamp","type":{"type":"long","logicalType":"timestamp-millis"}},'
    + ''.join('{"name":"%s","type":"string"},' % key for key in IDENTITY_KEYS)
    + '{"name":"metric","type":"string"},'
    '{"name":"labels","type":{"type":"map","values":"string"}},'
    '{"name":"value","type":"double"},'
    '{"name":"units","type":"string"}]}')


class AvroPoints(Template):
    """A frame to records of AVRO_SCHEMA; all but time and number is put together once per layout
    and identity."""

    def __init__(self, options):
        Template.__init__(self, None, None, unwanted(options.blacklist))
        self.tags = {utf8(k): utf8(v) for k, v in options.tags.items()}

    def records(self, frame):
        """[bytes] of its points, holes left out."""
        layout, identity, who, pick, numbers, each, heads, tails = self.entry_of(frame)
        values = picked(frame.values, pick)
        start = varint(frame.time_ms) + who
        return [start + head + number + tail for head, number, tail, value in zip(
            heads, each.unpack(numbers.pack(*values)), tails, values) if value == value]

    def entry(self, layout, identity):
        pick = self.keep and [i for i, s in enumerate(layout.series) if self.keep(s.flat)]
        series = picked(layout.series, pick)
        once = memo()
        who = b''.join([avro_bytes(utf8(identity[key])) for key in IDENTITY_KEYS])
        return (layout, identity, who, pick, struct.Struct('<%dd' % len(series)),
                struct.Struct('8s' * len(series)), [self.head(s, once) for s in series],
                [once(avro_text, s.unit) for s in series])

    def head(self, series, once):
        """metric and labels: those of the series, and the tags, which give way to them."""
        labels = dict(self.tags)
        labels.update((utf8(k), utf8(v)) for k, v in zip(series.keys, series.values))
        return once(avro_text, series.metric) + avro_map(labels.items())


def avro_text(text):
    return avro_bytes(utf8(text))


def avro_skip_point(fields):
    """Skips a record of AVRO_SCHEMA."""
    fields.long()                               # timestamp
    for _ in IDENTITY_KEYS:
        fields.bytes()
    fields.bytes()                              # metric
    fields.pairs()                              # labels
    fields.take(8)                              # value
    fields.bytes()                              # units


def utc(seconds):
    """(year, month, day, day of the year, hour, minute, second) of a Unix time, from 1970 on.

    Years begin in March here, so that the leap day is their last (Howard Hinnant,
    "chrono-Compatible Low-Level Date Algorithms").
    """
    days, rest = divmod(seconds, 86400)
    era, day = divmod(days + 719468, 146097)    # days since 0000-03-01, in 400 years
    year = (day - day // 1460 + day // 36524 - day // 146096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    first, year = (153 * month + 2) // 5, year + 400 * era + (month > 9)
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return (year, month + 3 - 12 * (month > 9), day - first + 1,
            day - 305 if month > 9 else day + 60 + leap,
            rest // 3600, rest // 60 % 60, rest % 60)


def file_word(text):
    """A text as part of a file's name: no slash, and no dot at its start."""
    text = ''.join([c if c in NODE or c == '.' else '_' for c in text[:MOST_NODE]])
    return '_' + text[1:] if text[:1] in ('', '.') else text


def file_name(path, time_ms, identity):
    """A file_template, filled in."""
    year, month, day, of_year, hour, minute, second = utc(time_ms // 1000)
    return file_words(path, dict(zip('YymdjHMS', (
        year, year % 100, month, day, of_year, hour, minute, second))), identity)


def file_words(path, numbers, identity, plain=str):
    """A file_template with these numbers in the place of %Y and so on; a text instead of a number
    stands as it is. plain: text -> how what was no pattern is written."""
    parts = [plain(part) for part in path.split('%%')]
    for letter, form in TIME_LETTERS:
        value = numbers[letter]
        value = value if isinstance(value, str) else form % value
        parts = [part.replace('%' + letter, value) for part in parts]
    path = '%'.join(parts)
    for key in IDENTITY_KEYS:
        if '{%s}' % key in path:
            path = path.replace('{%s}' % key, file_word(identity[key]))
    return path


def file_globs(path, identity):
    """(folder, [glob of each part of the path below it]): every file that a file_template makes on
    this host, whatever the time."""
    digits = {letter: '[0-9]' * len(form % 0) for letter, form in TIME_LETTERS}
    folder = fixed_folder(path)
    globs = file_words(path[len(folder):], digits, identity, glob_free).split('/')
    return folder, [part for part in globs if part not in ('', '.')]


def glob_free(text):
    """The text as a shell pattern for nothing but itself."""
    return ''.join(['[%s]' % c if c in '*?[' else c for c in text])


def fixed_folder(path):
    """The folder of a file_template, as far as no pattern is in it."""
    return os.path.dirname(path.partition('%')[0].partition('{')[0])


# -- Druid: rows, and how to take them (druid.apache.org, "Ingestion spec reference") -------------

DRUID_TEXTS = tuple(key for key in FLAT_KEYS if key not in ('timestamp', 'value'))
# Its `posix` cuts seconds to whole ones, and its `auto` takes them for ms: this puts them right.
DRUID_SECONDS = 'cast(round("timestamp" * 1000), \'LONG\')'


def druid_rows(options):
    """frame -> the text of its rows: lines as `flat` messages, but with the time in ms, which Druid
    takes for that also when it is told nothing (`auto`)."""
    rows = Template(flat_lines(options.tags), '"value": nan,', unwanted(options.blacklist))
    return lambda frame: rows.text(frame).replace(TIME, '%d' % frame.time_ms)


def druid_schema(datasource, tags, times):
    """The dataSchema. `value` is a double, whatever a segment's first rows hold: a column of both
    kinds of numbers would differ from segment to segment. Columns that are not named here, labels
    of other hosts, are discovered (since Druid 26). times: the format of `timestamp`."""
    columns = list(DRUID_TEXTS) + sorted(tags) + [{'type': 'double', 'name': 'value'}]
    return {'dataSource': datasource,
            'timestampSpec': {'column': 'timestamp', 'format': times},
            'dimensionsSpec': {'dimensions': columns, 'useSchemaDiscovery': True},
            'granularitySpec': {'segmentGranularity': 'HOUR', 'queryGranularity': 'NONE',
                                'rollup': False}}


def druid_task(name, schema, rows):
    """JSON of a task that appends the rows, all or none of them. Without appendToExisting it would
    replace the hour, without useConcurrentLocks only one host could write at a time."""
    task = {
        'type': 'index_parallel', 'id': name, 'context': {'useConcurrentLocks': True}, 'spec': {
            'dataSchema': schema,
            'ioConfig': {'type': 'index_parallel', 'appendToExisting': True,
                         'inputFormat': {'type': 'json'},
                         'inputSource': {'type': 'inline', 'data': ''}},
            'tuningConfig': {'type': 'index_parallel', 'partitionsSpec': {'type': 'dynamic'},
                             'maxParseExceptions': 0}}}
    return json_value(task).replace('"data": ""', '"data": ' + long_json_text(rows.rstrip('\n')))


def druid_supervisor(datasource, tags, topic, consumer):
    """The specification of a supervisor that reads `flat` messages, with the time in seconds, from
    Kafka."""
    schema = dict(druid_schema(datasource, tags, 'posix'), transformSpec={'transforms': [
        {'type': 'expression', 'name': '__time', 'expression': DRUID_SECONDS}]})
    return {'type': 'kafka', 'context': {'useConcurrentLocks': True}, 'spec': {
        'dataSchema': schema,
        'ioConfig': {'type': 'kafka', 'topic': topic, 'inputFormat': {'type': 'json'},
                     'consumerProperties': consumer, 'useEarliestOffset': True, 'taskCount': 1,
                     'replicas': 1, 'taskDuration': 'PT1H'},
        'tuningConfig': {'type': 'kafka', 'logParseExceptions': True}}}


def text_parts(text_of, frames, most):
    """([frames], their texts as one) for as many as fit in so many characters, in order; one that
    is larger stands alone."""
    first, texts, size = 0, [], 0
    for i, frame in enumerate(frames):
        text = text_of(frame)
        if size and size + len(text) > most:
            yield frames[first:i], ''.join(texts)
            first, texts, size = i, [], 0
        texts.append(text)
        size += len(text)
    yield frames[first:], ''.join(texts)


def memo():
    """(function, text) -> function(text), each asked once: thousands of paths share a few parts."""
    known = {}

    def once(function, text):
        if (function, text) not in known:
            known[function, text] = function(text)
        return known[function, text]
    return once


def unwanted(blacklist):
    """None, or flat name -> whether no pattern of the blacklist matches it."""
    if not blacklist:
        return None
    return lambda name: not any(glob(pattern, name) for pattern in blacklist)


def datagrams(data, most):
    """([bytes of whole lines, at most so many], how many lines are longer than that)"""
    out, lines, size, long = [], [], 0, 0
    for line in data.splitlines(True):
        if len(line) > most:
            long += 1
            continue
        if size + len(line) > most:
            out.append(b''.join(lines))
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    return out + [b''.join(lines)] * bool(lines), long


# == 8 EMITTERS: what is said to each kind of sink ==============================================

CREDENTIALS_PAUSE = 300         # seconds before a password or certificate that failed goes again
MISSING_PAUSE = 60              # and before what is not there is looked for again
RESENT, MOST_RESENT = 10000, 100        # ms and number of ticks that go again after a break

STREAM_OPTIONS = [
    Option('host', name_of_host, '127.0.0.1', 'Name or address of the sink'),
    Option('port', port, 0, 'Its port; 0 = the usual one of the protocol'),
]
TLS_OPTIONS = [
    Option('tls_ca', file_path, '', 'PEM file of the CAs that may sign its certificate; "" = those '
                                    'of this host'),
    Option('tls_cert', file_path, '', 'PEM file of our own certificate, where it asks for one'),
    Option('tls_key', file_path, '', 'PEM file of its key, when it is not in the same file'),
    Option('tls_verify', boolean, True, 'false = take whatever certificate comes'),
]
SECURE_OPTIONS = [Option('tls', boolean, False, 'Speak TLS')] + TLS_OPTIONS
LOGIN_OPTIONS = [
    Option('username', text, '', 'Name to log in with'),
    Option('password', secret, '', 'Its password; "${file:/run/secrets/x}" keeps it out of here'),
]
PROXY_OPTIONS = [
    Option('proxy', proxy_url, '', 'URL of an HTTP proxy; those of the environment are not used'),
] + TLS_OPTIONS
HTTP_OPTIONS = LOGIN_OPTIONS + [
    Option('headers', http_headers, {}, 'More headers, such as {"X-Scope": "a"}'),
    Option('gzip', boolean, True, 'Compress what is sent'),
] + PROXY_OPTIONS
MESSAGE_OPTIONS = [
    Option('format', choice('payload', 'flat', 'graphite', 'influx'), 'payload',
           'One message per tick; or one per point, flat'),
    Option('prefix', template, '{datacenter}.{region}.{zone}.{cluster}.{hostname}',
           'With "format": "graphite": first part of every path'),
    Option('tagged', boolean, False, 'With "format": "graphite": tags instead of a path'),
]


SURE_OF_IT = 3                  # refusals after which it is no trouble of the peer's


def shape_of(options):
    """Text that tells which messages a tick is made into: what is known of the third one is worth
    nothing once a reload has changed that."""
    return repr((options.format, options.prefix, options.tagged, sorted(options.tags.items()),
                 options.blacklist))


class Progress:
    """Which messages of the ticks under way are dealt with: they do not go again, whatever breaks.

    dealt: {(run, seq, number in its tick)}, of ticks that are not done as a whole. doubted: {such a
    key: how often the peer refused it for a reason that may be its own, while it took what came
    behind it, or what went before it once it was doubted}. The third time it is the message.
    """

    def __init__(self):
        self.dealt, self.doubted = set(), {}

    def forget(self, first):
        """Forgets what was before this tick: it is done."""
        self.dealt = set(key for key in self.dealt if key[0] != first.run or key[1] >= first.seq)
        self.doubted = {key: n for key, n in self.doubted.items()
                        if key[0] != first.run or key[1] >= first.seq}

    def missing(self, frames, encode, most, size):
        """Lists of (key, frame, frames done with it, bytes) of all messages that are not dealt
        with, in order: so many and so many bytes at most; a larger one goes alone."""
        out, room = [], size
        self.forget(frames[0])
        for i, frame in enumerate(frames):
            encoded = encode(frame)
            for n, message in enumerate(encoded):
                key = frame.run, frame.seq, n
                if key in self.dealt:
                    continue
                if out and (len(out) >= most or len(message) > room):
                    yield out
                    self.forget(frame)
                    out, room = [], size
                out.append((key, frame, i + (n == len(encoded) - 1), message))
                room -= len(message)
        if out:
            yield out

    def doubted_last(self, messages):
        """These messages, in the order in which they go: a peer may close behind one that it does
        not like."""
        return sorted(messages, key=lambda message: message[0] in self.doubted)

    def doubt(self, messages, verdicts, ends):
        """Takes note of refusals that may be the peer's own trouble. One that has begun in the
        midst of these messages, such as a limit on their rate, has taken nothing behind it; ends:
        nor has a peer of this kind, ever."""
        going = [message[0] for message in self.doubted_last(messages)]
        good = [n for n, key in enumerate(going) if verdicts.get(key, 0) is None]
        for n, key in enumerate(going):
            if good and getattr(verdicts.get(key), 'suspect', False) and (
                    key in self.doubted or ends or n < good[-1]):
                self.doubted[key] = self.doubted.get(key, 0) + 1

    def settle(self, messages, verdicts, flat, broken=None, ends=False):
        """Tells delivery what became of messages that went together, and raises when one of them
        has to go again. verdicts: {key: None, it is stored, or Refused or Later}, of those that
        were answered; flat: whether a message is a point; broken: what ended it, if anything; ends:
        whether the peer does so with each that it refuses."""
        done, whole, unwilling = 0, True, None
        self.doubt(messages, verdicts, ends)
        for key, frame, after, _ in messages:
            verdict = verdicts.get(key)
            if isinstance(verdict, Refused) or verdict and (
                    self.doubted.get(key, 0) >= SURE_OF_IT):
                yield Reject(frame, str(verdict), int(flat))
            elif verdict or key not in verdicts:
                unwilling, whole = unwilling or verdict, False
                continue
            self.dealt.add(key)
            done = after if whole else done
        if done:
            yield Done(done)
        if unwilling or broken:
            raise unwilling or broken


def check_tags(tags, taken, why):
    """Raises ValueError when a tag would hide what is sent under that name."""
    both = sorted(set(taken).intersection(tags))
    if both:
        raise ValueError('found a tag %s, need another name: %s' % (json_text(both[0]), why))


def check_messages(options):
    """The same for what goes through a broker."""
    if options.format == 'flat':
        check_tags(options.tags, FLAT_KEYS, 'flat messages have that key anyway')


def check_distinct(tags, spelt, how):
    """Raises ValueError when two tags are spelt the same there: one would hide the other."""
    names = {}
    for tag in sorted(tags):
        other = names.setdefault(spelt(tag), tag)
        if other != tag:
            raise ValueError('found the tags %s and %s, need names that differ%s' % (
                json_text(other), json_text(tag), how))


def lacking(error):
    """A ValueError that says which module this Python was built or packed without."""
    return ValueError('found "%s", need a Python that has it (Debian: package python3, not only '
                      'python3-minimal)' % error)


def tls_files(options, on):
    """None without TLS, else what the Contexts of section 9 take."""
    given = [name for name in ('tls_ca', 'tls_cert', 'tls_key') if options[name]]
    if not on and (given or not options.tls_verify):
        raise ValueError('found %s without TLS, need %s' % (
            (given or ['tls_verify'])[0],
            '"tls": true' if hasattr(options, 'tls') else 'https in the URL'))
    if options.tls_key and not options.tls_cert:
        raise ValueError('found tls_key without tls_cert, need both')
    if not on:
        return None
    try:
        import ssl
    except ImportError as error:
        raise lacking(error)
    return options.tls_ca, options.tls_cert, options.tls_key, options.tls_verify


def check_username(name):
    if ':' in name:
        raise ValueError('found a "username" with ":", which HTTP has no room for (RFC 7617)')


def web_modules():
    """Imports http.client and urllib.request. Both can do without ssl (1.5 MB), for TLS is made
    elsewhere here, and what they need without two compressors (0.4 MB): a name in sys.modules that
    stands for None cannot be imported."""
    spared = [name for name in ('ssl', 'bz2', 'lzma') if name not in sys.modules]
    sys.modules.update(dict.fromkeys(spared))
    try:
        import http.client
        import urllib.request
    finally:
        for name in spared:
            del sys.modules[name]


def http_link(options, url=''):
    """Where an HTTP peer is. url: when it is not the option of that name."""
    try:
        web_modules()
    except ImportError as error:
        raise lacking(error)
    url = url or options.url
    return ('http', url, tls_files(options, url.startswith('https:')), options.proxy)


def http_body(options, headers, text, told=('Content-Encoding', 'gzip')):
    """(headers, bytes) of what is sent, compressed when the options say so. told: the header that
    tells the peer of it."""
    data = text.encode()
    if options.gzip:
        headers = dict(headers, **{told[0]: told[1]})
        data = gzipped(data)
    return http_head(options, headers), data


def http_head(options, headers):
    """These headers, and those that every request has."""
    return dict(dict({'User-Agent': 'statbadger/' + VERSION}, **headers), **options.headers)


def login_headers(options):
    """The header that shows name and password (RFC 7617), {} without them."""
    if not (options.username or options.password):
        return {}
    return {'Authorization': basic('%s:%s' % (options.username, options.password))}


def words_of(data):
    """What a peer says, on one line."""
    return ' '.join(data.decode('utf-8', 'replace').split())


def http_outcome(status, headers, body, now):
    """Returns when the peer has stored what was sent (2xx). Raises Refused when it says that the
    data is wrong, and Later when it is not willing: too busy (RFC 9110, section 15.6; RFC 6585),
    not for us, not here, or moved. A page of HTML is the word of somebody else, such as a proxy, or
    a port that wants TLS, and no reason to drop."""
    if 200 <= status < 300:
        return
    words = words_of(body)
    reason = 'HTTP %d%s' % (status, ': ' + words if words else '')
    if status < 200 or status in (408, 425, 429) or status >= 500:
        raise Later(reason, retry_after(headers.get('retry-after', ''), now), status == 500)
    if status == 413:
        raise Refused(reason, split=True)
    if status in (401, 403, 407):
        raise Later(reason, CREDENTIALS_PAUSE)
    if 300 <= status < 400:
        raise Later('HTTP %d: it has moved, which is not followed: "url" must say where it is' % (
            status), CREDENTIALS_PAUSE)
    if status in (404, 405):
        raise Later(reason, MISSING_PAUSE)
    if status in (400, 422) and not body.lstrip().startswith(b'<'):
        raise Refused(reason)
    raise Later(reason, MISSING_PAUSE, True)


def retry_after(value, now):
    """Seconds of a Retry-After header, which may be a date (RFC 9110, section 10.2.3); 0 when it
    is neither."""
    if value.strip().isdecimal():
        return int(value.strip()[:9])
    return max(0, http_date(value) - now)


def http_date(value):
    """Unix seconds of an HTTP date (RFC 9110, section 5.6.7); 0 when it is none."""
    from email.utils import mktime_tz, parsedate_tz
    try:
        date = parsedate_tz(value)
        return mktime_tz(date) if date else 0
    except (ValueError, OverflowError, LookupError, TypeError):     # it trusts what it reads
        return 0


def stdout_link(options):
    return ('stdout',)


@emitter('stdout', 'The payload on standard output, a line of JSON per tick', [], 'sent',
         stdout_link)
def stdout(options, memory):
    """The payload, as user-written emitters receive it, one line per tick."""
    return print_each(PayloadJson(unwanted(options.blacklist)))


def print_each(payload):
    """The dialogue of both: a message per tick."""
    while True:
        frames = yield Next()
        for i, frame in enumerate(frames):
            yield Send(payload.text(frame).encode())
            yield Done(i + 1)


@emitter('stdout_pretty',
         'The payload on standard output, for people: still JSON, a point per line',
         [], 'sent', stdout_link)
def stdout_pretty(options, memory):
    return print_each(PayloadJson(unwanted(options.blacklist), pretty=True))


# -- graphite: carbon (graphite.readthedocs.io, "Feeding In Your Data") ------------------------

DATAGRAM = 1432  # bytes that fit an Ethernet frame of 1,500 behind IPv6 and UDP headers
PICKLED_AT_ONCE = 500           # points in one pickle: carbon closes the connection above 1 MiB


def graphite_link(options):
    if (options.transport, options.protocol) == ('udp', 'pickle'):
        raise ValueError('found "pickle" with "transport": "udp", need plaintext over udp')
    usual = 2004 if options.protocol == 'pickle' else 2003
    tls = tls_files(options, options.tls)
    if options.transport == 'tcp':
        return ('tcp', options.host, options.port or usual, tls)
    if tls:
        raise ValueError('found "tls" with "transport": "udp", need tcp')
    return ('udp', options.host, options.port or usual)


@emitter('graphite', 'Graphite: carbon, or anything that takes its lines', STREAM_OPTIONS
         + SECURE_OPTIONS + [
    Option('protocol', choice('plaintext', 'pickle'), 'plaintext',
           'Lines (port 2003), or pickles (port 2004)'),
    Option('transport', choice('tcp', 'udp'), 'tcp',
           'udp is for plaintext only, in datagrams of whole lines'),
    Option('prefix', template, '{datacenter}.{region}.{zone}.{cluster}.{hostname}',
           'First part of every path; a part that is empty vanishes with its dot'),
    Option('tagged', boolean, False, 'Tags instead of a path: net.rx_bytes;host=n1;interface=eth0'),
], 'sent', graphite_link)
def graphite(options, memory):
    """Carbon answers nothing, so a tick counts as sent when the peer's kernel has it. Ticks go one
    by one: a backlog is not held in memory twice, and one that breaks off has got somewhere."""
    lines = graphite_lines(options)
    cut = {('tcp', 'pickle'): graphite_pickles, ('tcp', 'plaintext'): graphite_plain,
           ('udp', 'plaintext'): graphite_datagrams}[options.transport, options.protocol]
    while True:
        frames = yield Next()
        for i, frame in enumerate(frames):
            messages, long = cut(lines.text(frame), frame.time_ms)
            for data in messages:
                yield Send(data)
            if long:
                yield Reject(frame, 'longer than %d bytes' % DATAGRAM, long)
            yield Done(i + 1)


def graphite_plain(text, time_ms):
    """([bytes of whole lines], 0)"""
    return [at_time(text, time_ms).encode()], 0


def graphite_datagrams(text, time_ms):
    """([bytes of whole lines that fit a frame], how many lines fit none: refused here, for they
    would be lost on the way)"""
    return datagrams(at_time(text, time_ms).encode(), DATAGRAM)


def graphite_pickles(text, time_ms):
    """([a 4-byte length and the pickle of [(path, (time, value)), ...], 500 points each], 0)"""
    stamp = time_ms // 1000 if time_ms % 1000 == 0 else time_ms / 1000.0
    points = [line.split(' ')[:2] for line in text.split('\n')[:-1]]
    out = []
    for i in range(0, len(points), PICKLED_AT_ONCE):
        data = pickle_list([(path, stamp, float(value))
                            for path, value in points[i:i + PICKLED_AT_ONCE]])
        out.append(struct.pack('>I', len(data)) + data)
    return out, 0


# -- influxdb08: InfluxDB 0.8 (influxdb.com/docs/v0.8, "Reading and writing data") ---------------

def influxdb08_link(options):
    check_tags(options.tags, INFLUX08_COLUMNS, 'that column is there anyway')
    return http_link(options)


@emitter('influxdb08', 'InfluxDB 0.8, over HTTP', [
    Option('url', url, 'http://127.0.0.1:8086', 'Where it is'),
    Option('database', text, 'statbadger', 'Database, which must be there'),
] + HTTP_OPTIONS, 'acknowledged', influxdb08_link)
def influxdb08(options, memory):
    """All ticks of a batch in one POST. One bad series would take the batch along, so a batch that
    is refused goes in halves: see Refused."""
    template = Template(influx08_lines(options.tags), VALUE + 'nan', unwanted(options.blacklist))
    path = '/db/%s/series?u=%s&p=%s&time_precision=ms' % tuple(map(
        percent_encoded, (options.database, options.username, options.password)))
    while True:
        frames = yield Next()
        for done, text in influx08_bodies(template, frames):
            yield Wait(0)                       # each exchange has its own time
            headers, body = http_body(options, {'Content-Type': 'application/json'}, text)
            status, headers, body = yield Request('POST', path, headers, body)
            if status == 400 and body.startswith(b'Database ') and b"doesn't exist" in body:
                raise Later('there is no database %s' % json_text(options.database), MISSING_PAUSE)
            http_outcome(status, headers, body, (yield Now()))
            yield Done(done)


# -- influxdb: InfluxDB 0.9 to 3.x, and what speaks like it (docs.influxdata.com, "Write API") ----

INFLUX_DATABASE = 'statbadger'
INFLUX_UDP_PORT = 8089
# What answers say, since the status alone does not tell. Not there: a retention policy with 500
# (1.x), a limit on databases with 422 (3.x). The data is wrong: a line, the type of a field, or a
# series beyond a limit, of which 1.x says that it is a partial write, and stores nothing at all.
INFLUX_MISSING = ('database not found', 'retention policy not found', 'Adding a new database')
INFLUX_BEYOND = 'limit exceeded'
INFLUX_WRONG = ('unable to parse', 'failed to parse', 'parsing', 'field type conflict',
                INFLUX_BEYOND)
INFLUX_MOST = 1 << 20           # characters in a POST: some 5,000 lines, as is advised
INFLUX_QUEUED = 'hinted handoff queue not empty'        # a cluster of 1.x has it and passes it on


def influxdb_link(options):
    """Where it is; ValueError for what is not meant for the same version, or not for UDP."""
    check_distinct(options.tags, influx_key, ': the first is written like the second')
    if options.url.startswith('udp://'):
        return influx_udp_link(options)
    if options.bucket and (options.retention_policy or options.database != INFLUX_DATABASE):
        raise ValueError('found "%s" with "bucket", need one of them: a bucket is both, in 1.8 '
                         '"DATABASE/POLICY"' % (
                             'retention_policy' if options.retention_policy else 'database'))
    if options.org and not options.bucket:
        raise ValueError('found "org" without "bucket", need both (2.x), or only "database"')
    if not options.bucket and not options.database:
        raise ValueError('found no "database" and no "bucket", need one of them')
    if options.token and (options.username or options.password):
        raise ValueError('found "token" with "username" or "password", need one way to log in')
    if not all('!' <= c <= '~' for c in options.token):
        raise ValueError('found a "token" with blanks or letters beyond ASCII in it, need the bare '
                         'token')
    check_username(options.username)
    return http_link(options)


def influx_udp_link(options):
    for name in ('org', 'bucket', 'token', 'retention_policy', 'username', 'password', 'headers',
                 'proxy'):
        if options[name]:
            raise ValueError('found "%s" with a udp URL, need http or https for that' % name)
    if options.database != INFLUX_DATABASE:
        raise ValueError('found "database" with a udp URL, need none: over UDP the server\'s own '
                         'configuration names it')
    tls_files(options, False)
    host, number = url_parts('http' + options.url[3:])[2:4]
    return ('udp', host, number or INFLUX_UDP_PORT)


@emitter('influxdb', 'InfluxDB 0.9 to 3.x, VictoriaMetrics: line protocol over HTTP or UDP', [
    Option('url', url_or_udp, 'http://127.0.0.1:8086', 'Where it is (3.x: port 8181); or '
           'udp://HOST:8089, which says nothing back'),
    Option('database', text, INFLUX_DATABASE, '0.9 to 1.x: database, which must be there; 3.x'),
    Option('retention_policy', text, '', '0.9 to 1.x: its retention policy; "" = the default one'),
    Option('org', text, '', '2.x: name of the organization'),
    Option('bucket', text, '', '2.x: bucket, instead of "database"; 1.8 too: "DATABASE/POLICY"'),
    Option('token', secret, '', '2.x and 3.x: token, instead of "username" and "password"; 1.8 '
           'too: "NAME:PASSWORD"'),
] + HTTP_OPTIONS, lambda options: 'sent' if options.url.startswith('udp://') else 'acknowledged',
         influxdb_link)
def influxdb(options, memory):
    """A measurement per family, a line per family and instance, a field per metric."""
    template = Template(influx_fields(options.tags), VALUE + 'nan', unwanted(options.blacklist))
    if options.url.startswith('udp://'):
        return influx_sent(template)
    return influx_posted(template, options)


def influx_sent(template):
    """Datagrams, tick by tick."""
    while True:
        frames = yield Next()
        for i, frame in enumerate(frames):
            messages, long = influx_datagrams(template.text(frame), frame.time_ms, DATAGRAM)
            for data in messages:
                yield Send(data)
            if long:
                yield Reject(frame, 'longer than %d bytes' % DATAGRAM, long)
            yield Done(i + 1)


def influx_posted(template, options):
    """All ticks of a batch in one POST, or in few. What was refused of one is told and never sent
    again: the rest of it is stored."""
    path, ours = influx_path(options), influx_headers(options)

    def text_of(frame):
        return influx_lines(template.text(frame), frame.time_ms)
    while True:
        frames, done = (yield Next()), 0
        for part, text in text_parts(text_of, frames, INFLUX_MOST):
            if text:
                yield Wait(0)                   # each exchange has its own time
                headers, data = http_body(options, ours, text)
                status, headers, body = yield Request('POST', path, headers, data)
                said, numbers = influx_said(body)
                if influx_stored(options, status, headers, body, said, (yield Now())):
                    lines = [(frame, head, fields) for frame in part
                             for head, fields in influx_parts(template.text(frame))]
                    for frame, points in influx_refused(said, numbers, lines):
                        yield Reject(frame, said, points)
            done += len(part)
            yield Done(done)


def influx_path(options):
    """Path and query. Both ways to write are there from 1.8 on, and the first in 2.x and 3.x too:
    what the user calls it decides."""
    if options.bucket:
        given = [('org', options.org), ('bucket', options.bucket)]
    else:
        given = [('db', options.database), ('rp', options.retention_policy)]
    query = ['%s=%s' % (key, percent_encoded(value)) for key, value in given if value]
    return ('/api/v2/write?' if options.bucket else '/write?') + '&'.join(query + ['precision=ms'])


def influx_headers(options):
    headers = {'Content-Type': 'text/plain; charset=utf-8'}
    if options.token:
        headers['Authorization'] = 'Token ' + options.token
    return dict(login_headers(options), **headers)


def influx_said(body):
    """(what an answer says is wrong, [the numbers of the lines it names]): `error` in 1.x and 3.x,
    `message` in 2.x, and in 3.x `data`, a list of `line_number` and `error_message`."""
    text, reply = body.decode('utf-8', 'replace'), json_reply(body)
    if not isinstance(reply, dict):             # a page of something else, or cut at 64 KiB
        return text, []
    rows = reply.get('data')
    rows = [row for row in (rows if isinstance(rows, list) else [rows]) if isinstance(row, dict)]
    words = [reply.get('error'), reply.get('message')] + [r.get('error_message') for r in rows[:1]]
    return (': '.join([word for word in words if isinstance(word, str)]) or text,
            [row['line_number'] for row in rows if isinstance(row.get('line_number'), int)])


def influx_stored(options, status, headers, body, said, now):
    """False when everything is stored, True when only a part of it and the rest never will be.
    Raises what http_outcome does; and Later when a 4xx does not blame the data, since many words
    about a request are no reason to drop it: that there is TLS on that port, for one."""
    if status == 404 or status >= 400 and any(words in said for words in INFLUX_MISSING):
        raise Later('HTTP %d from %s: %s' % (status, influx_place(options), ' '.join(said.split())),
                    MISSING_PAUSE)
    if status < 500 and 'partial write' in said and INFLUX_BEYOND not in said:
        return True
    if INFLUX_QUEUED in said:
        return False
    try:
        http_outcome(status, headers, body, now)
    except Refused as error:
        if not error.split and not any(words in said for words in INFLUX_WRONG):
            raise Later(str(error), suspect=True)
        raise
    return False


def influx_place(options):
    """`/write, database "stats"`"""
    names = ('bucket', 'org') if options.bucket else ('database', 'retention_policy')
    return ', '.join([influx_path(options).partition('?')[0]] + [
        '%s %s' % (name.replace('_', ' '), json_text(options[name]))
        for name in names if options[name]])


def influx_refused(said, numbers, lines):
    """[(frame, how many of its points)] of what a partial write left out. lines: (frame, head,
    fields) for each line of the request.

    Servers count lines, we count fields. When the answer tells which lines they were, their fields
    are counted. Else so many lines, a point each, are taken from the ticks of the request in turn,
    the last one first: of a series that is refused every time, each tick has one.
    """
    digits = said.rpartition(' dropped=')[2].partition(' ')[0]
    dropped = min(int(digits[:9]) if digits.isdecimal() else 0, len(lines))
    named = lines if dropped == len(lines) else influx_named(said, numbers, lines, dropped)
    found = {}
    if named and dropped in (0, len(named)):
        for frame, head, fields in named:
            found[frame] = found.get(frame, 0) + len(fields)
        return list(found.items())
    frames = list({id(line[0]): line[0] for line in lines}.values())[::-1]
    for i in range(dropped or 1):
        frame = frames[i % len(frames)]
        found[frame] = found.get(frame, 0) + 1
    return list(found.items())


def influx_named(said, numbers, lines, dropped):
    """Those of the lines that the answer tells of: by number (3.x), as they are (1.x), too old for
    the retention policy, or by a field and its measurement. [] when it is none of that."""
    if numbers:
        return [lines[n - 1] for n in sorted(set(numbers)) if 0 < n <= len(lines)]
    if "unable to parse '" in said:
        bad = set([piece.partition("': ")[0] for piece in said.split("unable to parse '")])
        return [line for line in lines
                if influx_line(line[1], line[2], line[0].time_ms).rstrip('\n') in bad]
    if 'retention policy' in said:
        return lines[:dropped]
    field, _, rest = said.partition('input field "')[2].partition('" on measurement "')
    measurement = influx_text(rest.partition('" is type ')[0], ', ')
    start = influx_key(field) + '='
    return [line for line in lines if any([f.startswith(start) for f in line[2]])
            and line[1].replace('\\,', HEAD).partition(',')[0].replace(HEAD, '\\,') == measurement]


# -- opentsdb, kairosdb: time-series databases with an HTTP and a telnet protocol -----------------

TSDB_BODY = 5000                # points in one body at most, a megabyte before it is compressed
TSDB_PART = 32768               # bytes of lines until we ask how far the server has got
TSDB_LINE = 1023  # bytes of a line: a longer one is dropped (KairosDB) or ends it all (OpenTSDB)
TSDB_IDLE = 3600                # seconds after which an idle connection is looked at
TSDB_OPTIONS = [Option('tls', boolean, False, 'Speak TLS')] + HTTP_OPTIONS
TELNET_TROUBLE = ('HBase error', 'Please throttle', 'Throttling', 'Request timed out', 'Unexpected')
TELNET_LOGIN = 'Unauth', 'illegal argument: Unauth'     # at its start: metrics stand further on
PUT_TROUBLE = ('Storage exception', 'Please throttle', 'Timeout exception', 'Write timedout',
               'Unexpected exception')          # these in the answers of /api/put
UNKNOWN_METRIC = ('%s; need tsd.core.auto_create_metrics = true on the server, or `tsdb mkmetric` '
                  'for each, or a blacklist here')


def tsdb_link(options, http_port):
    """Where it is, for both; ValueError says what does not go together."""
    check_distinct(options.tags, tsdb_text, ' in letters, digits or one of . _ / -')
    if options.protocol == 'telnet':
        for name in ('username', 'password', 'headers', 'proxy'):
            if options[name]:
                raise ValueError('found %s with "protocol": "telnet", need http' % name)
        return ('tcp', options.host, options.port or 4242, tls_files(options, options.tls))
    check_username(options.username)
    where = 'http%s://%s' % ('s' * options.tls, place_text(options.host, options.port or http_port))
    try:
        return http_link(options, url(where))
    except ValueError as error:
        if str(error).startswith('a URL'):
            raise ValueError('found host %s, need an ASCII name or address' % (
                json_text(options.host)))
        raise


def opentsdb_link(options):
    if len(options.tags) > options.max_tags - 3:
        raise ValueError('found %d tags, need %d or fewer: max_tags less host and two labels' % (
            len(options.tags), options.max_tags - 3))
    return tsdb_link(options, 4242)


@emitter('opentsdb', 'OpenTSDB 2, or anything that takes its points', STREAM_OPTIONS + [
    Option('protocol', choice('http', 'telnet'), 'http',
           'POST /api/put, which says what is stored; or lines of put, which are cheaper'),
    Option('sync', boolean, True,
           'With http: acknowledged when HBase has it; false = when the server has queued it'),
    Option('max_bytes', whole(512, 1 << 24), 8192,
           'With http: most bytes of a body; more wants tsd.http.request.enable_chunked there'),
    Option('max_tags', whole(4, 64), 8,
           'Most tags of a point, as tsd.storage.max_tags says; host and labels always stay'),
] + TSDB_OPTIONS, 'acknowledged', opentsdb_link)
def opentsdb(options, memory):
    """Both protocols say which points are refused, and the others are stored."""
    points = opentsdb_points(options)
    if options.protocol == 'telnet':
        return put_lines(points, memory)
    path = '/api/put?details'
    if options.sync:                            # the server gives up a little before we do
        path += '&sync&sync_timeout=%d' % (options.timeout * 900)
    return put_bodies(options, memory, points, (path, ('Content-Encoding', 'gzip'),
                                                options.max_bytes, opentsdb_refusals))


def opentsdb_refusals(body, texts):
    """{index: why} of the texts that the JSON of an answer 400 names, each by its metric, time and
    tags; {} when that is no list of points. None: there are some that it does not name. Raises
    Later when a point failed by no fault of its own."""
    if b'Chunked request not supported' in body:
        return None                             # too large for this server
    errors = put_errors(body)
    if not errors:
        return errors
    places, found = {}, {}
    for i, text in enumerate(texts):
        places.setdefault(opentsdb_key(json_reply(text.encode())), []).append(i)
    for error in errors:
        error = error if isinstance(error, dict) else {}
        why = ' '.join(str(error.get('error')).split())
        if why.startswith(PUT_TROUBLE):
            raise Later('OpenTSDB: ' + why, 0, True)
        which = places.get(opentsdb_key(error.get('datapoint')))
        if not which:
            return None
        found[which.pop()] = why
    return found


def opentsdb_key(point):
    """(metric, time, tags) of a point of theirs or ours."""
    tags = point.get('tags') if isinstance(point, dict) else None
    if not isinstance(tags, dict):
        return None
    return str(point.get('metric')), str(point.get('timestamp')), str(sorted(tags.items()))


@emitter('kairosdb', 'KairosDB 1', STREAM_OPTIONS + [
    Option('protocol', choice('http', 'telnet'), 'http',
           'POST /api/v1/datapoints (port 8080), or lines of putm (port 4242)'),
] + TSDB_OPTIONS, 'acknowledged', lambda options: tsdb_link(options, 8080))
def kairosdb(options, memory):
    """Over HTTP it says which points are refused, and the others are stored. Over telnet it says
    nothing of them."""
    points = kairosdb_points(options)
    if options.protocol == 'telnet':
        return put_lines(points, memory)
    return put_bodies(options, memory, points, (
        '/api/v1/datapoints', ('Content-Type', 'application/gzip'), 1 << 24, kairosdb_refusals))


def kairosdb_refusals(body, texts):
    """As of OpenTSDB, by its number: `{"errors":["metric[1](name=a).tag[b].value may not be
    empty."]}`"""
    found, strange, errors = {}, False, put_errors(body)
    if not errors:
        return errors
    for why in errors:
        head, _, rest = str(why).partition('[')
        number = rest.partition(']')[0]
        if head == 'metric' and number.isdecimal() and len(number) < 9 and int(number) < len(texts):
            found.setdefault(int(number), ' '.join(str(why).split()))
        else:
            strange = True
    return None if found and strange else found


def put_errors(body):
    """The list `errors` of an answer in JSON; {} when there is none, None when it is cut short."""
    reply = json_reply(body)
    if isinstance(reply, dict) and isinstance(reply.get('errors'), list):
        return reply['errors'] or {}
    return None if reply is None and body.startswith(b'{') else {}


class Tally:
    """What becomes of the points of a batch, frame by frame. sizes: how many points each has.
    memory: of the emitter; it holds `known` once a point was stored."""

    def __init__(self, frames, memory):
        self.frames, self.memory, self.sizes, self.refused, self.done = frames, memory, [], {}, 0

    def refuse(self, i, why):
        """A point of frame i is refused."""
        self.refused.setdefault(i, []).append(why)

    def settle(self, n):
        """All points of the first n frames are stored or refused. What is refused is said only now:
        a frame that breaks off goes again, and is refused again. Raises Later when the server knows
        no metric of a frame, and never knew one: its administrator has something to do first."""
        for i in range(self.done, n):
            whys = self.refused.pop(i, [])
            unknown = [why for why in whys if why.lower().startswith('unknown metric')]
            if len(whys) < self.sizes[i]:
                self.memory['known'] = True
            elif unknown and not self.memory.get('known'):
                raise Later(UNKNOWN_METRIC % unknown[0], MISSING_PAUSE)
            if whys:
                yield Reject(self.frames[i], UNKNOWN_METRIC % unknown[0] if unknown else whys[0],
                             len(whys))
            yield Done(i + 1)
        self.done = n


def put_bodies(options, memory, points, exchange):
    """The dialogue of both over HTTP: arrays of points. points: frame -> texts."""
    many, good = 1000, False                    # points in a body, as far as is known
    while True:
        frames = yield Next()
        waiting, tally = [], Tally(frames, memory)
        for i, frame in enumerate(frames):
            texts = points(frame)
            tally.sizes.append(len(texts))
            waiting += [(i, text) for text in texts]
            while waiting and (len(waiting) >= many or i + 1 == len(frames)):
                body = [text for _, text in waiting[:many]]
                n, many, refused = yield from put_body(options, body, many, good, *exchange)
                good = good or len(refused) < n
                for which in sorted(refused):
                    tally.refuse(waiting[which][0], refused[which])
                del waiting[:n]
                yield from tally.settle(waiting[0][0] if waiting else i + 1)


def put_body(options, texts, many, good, path, told, most, refusals):
    """Posts as many of the texts, from the first on, as go into a body, and fewer when the server
    does not say which are to blame: what it had stored it stores again. good: whether it has taken
    any point before. Gives (how many went, how many to try next, {index: why it is refused})."""
    ours = dict(login_headers(options), **{'Content-Type': 'application/json'})
    while True:
        headers, body = http_body(options, ours, '[%s]' % ','.join(texts), told)
        size, fits = len(texts), len(body) <= most
        room = max(1, size * most * 9 // (len(body) * 10))
        refused, why = None, 'a point of more than %d bytes' % most
        if fits:
            yield Wait(0)                       # each exchange has its own time
            status, headers, answer = yield Request('POST', path, headers, body)
            refused = put_outcome(status, headers, answer, (yield Now()), refusals, texts)
            why = 'HTTP %d: %s' % (status, words_of(answer))
            if size == 1 and refused is None and not good and (
                    status == 413 or json_reply(answer) is None):
                raise Later(why, MISSING_PAUSE, True)   # then it is not the point
        if refused is not None:
            grown = min(TSDB_BODY, room, many + many // 2 + 1)
            return size, grown if size == many else many, refused
        if size == 1:
            return 1, 1, {0: why}
        many = size // 2 if fits else room
        texts = texts[:many]


def put_outcome(status, headers, body, now, refusals, texts):
    """{index: why} of the texts that are refused, all others are stored; None when the server does
    not say which. Raises as http_outcome() does."""
    if status == 413:
        return None
    refused = refusals(body, texts) if status == 400 else {}
    if refused == {} and status == 400 and json_reply(body) is None:
        raise Later('HTTP 400: ' + words_of(body), MISSING_PAUSE, True)     # of neither of them
    if refused == {}:
        http_outcome(status, headers, body, now)
    return refused


def put_lines(points, memory):
    """The dialogue of both over telnet: lines, and `version`, whose answer says that all lines
    before it were read. points: frame -> lines."""
    link = None
    while True:
        frames = yield Next(None if link is None else TSDB_IDLE)
        if link is None:
            link = yield Dial()
        if not frames:
            late = yield Available(link)
            if late:                            # of points that it had taken before
                raise Later('it says later: ' + words_of(late))
        tally = Tally(frames, memory)
        for i, frame in enumerate(frames):
            lines = points(frame)
            tally.sizes.append(len(lines))
            for line in lines:
                if len(line) > TSDB_LINE:
                    tally.refuse(i, 'a line of more than %d bytes' % TSDB_LINE)
            short = ''.join([line + '\n' for line in lines if len(line) <= TSDB_LINE])
            for part in datagrams(short.encode(), TSDB_PART)[0]:
                yield Wait(0)
                yield Send(part + b'version\n', link)
                for why in (yield from put_answers(link, part.count(b'\n'))):
                    tally.refuse(i, why)
            yield from tally.settle(i + 1)


def put_answers(link, most):
    """What the server says of so many lines, until it answers to `version`:

        put: illegal argument: not enough arguments (need least 4, got 3)
        net.opentsdb.tools 2.4.1 built at revision eb125a3 (MINT)
        Built on 2021/09/08 18:43:17 +0000 by ...

    or `KairosDB 1.3.0-1.20210808220820`. Gives why points are refused; success is silent."""
    whys = []
    while True:
        line = ' '.join((yield Line(link)).decode('utf-8', 'replace').split())
        verb, colon, why = line.partition(': ')
        if verb == 'put' and colon and len(whys) < most:
            if why.startswith(TELNET_LOGIN):
                raise Later(why, CREDENTIALS_PAUSE)
            if why.startswith(TELNET_TROUBLE):
                raise Later(why, 0, True)
            whys.append(why)
        elif line.startswith('net.opentsdb'):
            yield Line(link)
            return whys
        elif line.startswith('KairosDB'):
            return whys
        else:
            raise OSError(errno.EPROTO, 'found %s, need the answer of OpenTSDB or KairosDB to '
                                        '"version"' % json_text(line[:100]))


# -- druid: Apache Druid (druid.apache.org/docs, "Tasks API"; Tranquility, docs/server.md) ---------

DRUID_URL, TRANQUILITY_URL = 'http://127.0.0.1:8081', 'http://127.0.0.1:8200'
DATASOURCE = 'statbadger'
DRUID_TASKS = '/druid/indexer/v1/task'
DRUID_MOST = 4000000  # characters of rows in a task: one of 36 MB takes a small coordinator down
DRUID_PAUSES = 0.25, 4.0        # seconds between two questions for a task: they double up to that
DRUID_COLUMN = 100              # letters of a column's name, which becomes part of a file's name
# Why tasks fail that would do well another time.
DRUID_BUSY = ('lock', 'shutdown', 'worker', 'disappeared', 'cancel', 'interrupt', 'assign', 'slot')


def datasource(value):
    """Text that Druid takes for the name of a datasource, and can make files of."""
    value = text(value)
    if (not value or value[0] == '.' or '/' in value or len(utf8(value)) > DRUID_COLUMN
            or any(ord(c) < 32 for c in value)):
        raise ValueError('a name such as "statbadger", of %d bytes at most, without "/" and not '
                         'beginning with "."' % DRUID_COLUMN)
    return value


def check_druid_tags(tags):
    """Raises ValueError for tags that can be no columns: one name with a comma or a line end in it
    makes every task fail."""
    check_tags(tags, FLAT_KEYS + ('__time',), 'that column is there anyway')
    for name in sorted(tags):
        if any(c == ',' or ord(c) < 32 for c in name) or len(utf8(name)) > DRUID_COLUMN:
            raise ValueError('found a tag %s, need the name of a column: at most %d bytes, without '
                             'commas and control characters' % (json_text(name), DRUID_COLUMN))


def druid_link(options):
    check_druid_tags(options.tags)
    check_username(options.username)
    link = http_link(options)
    if options.protocol == 'tranquility' and options.url == DRUID_URL:
        return (link[0], TRANQUILITY_URL) + link[2:]
    return link


def kafka_consumer(options):
    """How Kafka's Java client comes to where this kafka emitter writes. The password stays here: it
    is to be in the environment of Druid, as a line of sasl.jaas.config. Raises ValueError."""
    if options.tls_key:
        raise ValueError('found tls_key, need the key in the file of tls_cert: Kafka\'s Java '
                         'client wants one file for both')
    out = {'bootstrap.servers': options.brokers}
    if options.sasl or options.tls:
        out['security.protocol'] = ('SASL_' if options.sasl else '') + (
            'SSL' if options.tls else 'PLAINTEXT')
    if options.sasl:
        out['sasl.mechanism'] = options.sasl.upper()
        out['druid.dynamic.config.provider'] = {
            'type': 'environment', 'variables': {'sasl.jaas.config': 'KAFKA_SASL_JAAS_CONFIG'}}
    for option, store in (('tls_ca', 'truststore'), ('tls_cert', 'keystore')):
        if options[option]:
            out['ssl.%s.type' % store] = 'PEM'
            out['ssl.%s.location' % store] = options[option]
    if not options.tls_verify:                  # of the certificate itself it always thinks
        out['ssl.endpoint.identification.algorithm'] = ''
    return out


class DruidTask:
    """A task that was posted or will be: its name, its JSON, the run and number of its last tick,
    and whether the overlord is known to have it."""

    def __init__(self, name, text, frame):
        self.name, self.text, self.run, self.seq = name, text, frame.run, frame.seq
        self.host = frame.identity['hostname']
        self.taken = False


class DruidState:
    """What outlives the dialogues of one druid emitter.

    task: the one of which nobody knows yet how it ends; nothing else is posted before. stored:
    (run, number) of the last tick that is stored. failed: tasks that failed since the last that
    did not: part of the next one's name, for a name is used once. most: characters of rows in a
    task.
    """

    def __init__(self):
        self.task, self.stored, self.failed, self.most = None, ('', 0), 0, DRUID_MOST

    def has(self, frame):
        """Whether that tick was stored before the last dialogue broke off."""
        return frame.run == self.stored[0] and frame.seq <= self.stored[1]


@emitter('druid', 'Apache Druid: tasks of its overlord, which append rows', [
    Option('url', url, DRUID_URL, 'Where its overlord is, or a router with the management proxy; '
                                  'with "protocol": "tranquility" port 8200 unless told'),
    Option('datasource', datasource, DATASOURCE, 'Datasource, which need not be there'),
    Option('protocol', choice('task', 'tranquility'), 'task',
           'Tasks, a row per point; or events for a Tranquility Server'),
    with_default('timeout', 120, 'Seconds for an answer, and for a task to end'),
    with_default('flush', 60),
    with_default('batch', 600),
] + HTTP_OPTIONS, 'acknowledged', druid_link)
def druid(options, memory):
    """A task for all ticks of a batch, or several when they are many bytes, one after the other.
    They are acknowledged when it has ended well: then its rows are there, all of them."""
    if options.protocol == 'tranquility':
        return tranquility(options)
    return druid_tasks(options, memory.setdefault('druid', DruidState()))


def druid_tasks(options, state):
    """The dialogue with an overlord: see druid()."""
    rows = druid_rows(options)
    while True:
        frames = yield Next()
        if state.task:                          # the last dialogue broke off before it ended
            try:
                yield from druid_conclude(options, state)
            except Refused:
                pass                            # nothing of it is stored: its ticks go anew
        yield from druid_store(options, state, rows, frames)


def druid_store(options, state, rows, frames):
    """Stores the frames, those that the task before has not, in as few tasks as they fit in."""
    ready = sum(map(state.has, frames))
    if ready:
        yield Done(ready)
    for part, text in text_parts(rows, frames[ready:], state.most):
        if text:
            name = druid_name(options.datasource, part, text, state.failed)
            schema = druid_schema(options.datasource, options.tags, 'millis')
            state.task = DruidTask(name, druid_task(name, schema, text), part[-1])
            yield from druid_conclude(options, state)
        ready += len(part)
        yield Done(ready)


def druid_name(datasource, frames, rows, failed):
    """What a task is called: always the same for the same rows of the same ticks, so that Druid
    takes it once, however often it is posted. The name becomes that of a file: 190 letters at
    most."""
    import zlib
    words = [''.join([c if c in NODE or c == '.' else '_' for c in word[:60]])
             for word in (datasource, frames[0].identity['hostname'])]
    return 'statbadger_%s_%s_%s_%d-%d_%08x_%d' % (
        words[0], words[1], frames[0].run, frames[0].seq, frames[-1].seq,
        zlib.crc32(rows.encode()), failed)


def druid_conclude(options, state):
    """Returns when the task has stored its rows. Raises Refused, with nothing of it stored, when
    they are to blame, and Later when it may do well another time, under another name; with all else
    the task stays, and is asked for or posted as it is by the next dialogue."""
    task = state.task
    yield Wait(0)                               # each exchange has its own time
    if not task.taken:
        yield from druid_post(options, state)
        task.taken = True
    failure = yield from druid_end(options, task)
    state.task = None
    if failure is None:
        state.stored, state.failed = (task.run, task.seq), 0
        if 2 * len(task.text) > state.most:     # what was too much once need not always be
            state.most = min(DRUID_MOST, state.most + state.most // 8 + 1)
        return
    state.failed += 1
    reason = 'the task %s failed: %s' % (task.name, failure)
    if 'parse exception' in failure.lower():
        raise Refused(reason)
    raise Later(reason, suspect=not druid_busy(failure, (options.datasource, task.host)))


def druid_busy(failure, names):
    """Whether it speaks of locks, workers and the like in words, or in the name of an exception.
    Names of ours, which it may repeat, do not count: `Task[worker-1]`, `lock_1`."""
    names = [name.lower() for name in names]
    for word in failure.lower().split():
        word = word.strip('.,:;!?()"\'')
        if word.endswith('exception'):
            word = word.rpartition('.')[2]
        if word.isalpha() and word.startswith(DRUID_BUSY) and word not in names:
            return True
    return False


def druid_post(options, state):
    """Returns when the overlord has the task, from now or from before."""
    task = state.task
    status, headers, body = yield from druid_ask(options, 'POST', DRUID_TASKS, task.text)
    if status == 400 and b'already exists' in body:
        return
    if status == 500 and (yield from druid_status(options, task)):
        return                                  # it stumbled when it had taken it
    if status in (400, 413, 500):
        state.task = None                       # it was not taken, and goes anew
    if status == 413 or status == 400 and b'max allowed size' in body:
        state.most = min(state.most, len(task.text) // 2)
        raise Refused('a task of %d bytes is more than the overlord takes' % len(task.text), True)
    druid_outcome(status, headers, body, (yield Now()))
    if json_part(body, 'task') != task.name:
        raise OSError(errno.EPROTO, 'an answer without the name of the task: is it an overlord?')


def druid_end(options, task):
    """None when the task has ended well, or why it failed. How long it waits for a worker is not
    ours to say: when the time is over the ticks wait with it, for its rows may still be stored."""
    began, pause = (yield Now()), DRUID_PAUSES[0]
    while True:
        found = yield from druid_status(options, task)
        if found is None:
            task.taken = False
            raise Later('the overlord does not know the task %s any more' % task.name)
        stage, place, failure = found
        if stage != 'RUNNING':
            return None if stage == 'SUCCESS' else failure
        if (yield Now()) - began > options.timeout:
            raise OSError(errno.ETIME, 'the task %s has not ended within %g s: it is %s' % (
                task.name, options.timeout, place))
        yield Wait(pause)
        pause = min(2 * pause, DRUID_PAUSES[1])


def druid_status(options, task):
    """(RUNNING, SUCCESS or FAILED; where it is; why it failed, in a line) of the task; None when
    the overlord does not know it."""
    status, headers, body = yield from druid_ask(
        options, 'GET', '%s/%s/status' % (DRUID_TASKS, percent_encoded(task.name)))
    if status == 404:
        return None
    druid_outcome(status, headers, body, (yield Now()))
    stage, place, failure = (json_part(body, 'status', key)
                             for key in ('statusCode', 'runnerStatusCode', 'errorMsg'))
    if stage not in ('RUNNING', 'SUCCESS', 'FAILED'):
        raise OSError(errno.EPROTO, 'the state of a task that is none')
    return stage, printable(str(place)), str(failure or 'it does not say why').split('\n')[0]


def druid_outcome(status, headers, body, now):
    """As http_outcome(), but nothing that is said of a request is the fault of its rows, which are
    looked at later."""
    try:
        http_outcome(status, headers, body, now)
    except Refused as error:
        raise Later(str(error), MISSING_PAUSE)


def druid_ask(options, method, path, text=None):
    """(status, headers, body) of what is asked, with the login that its basic security wants."""
    login = '%s:%s' % (options.username, options.password)
    headers = {'Authorization': basic(login)} if options.username else {}
    if text is None:
        return (yield Request(method, path, http_head(options, headers)))
    headers['Content-Type'] = 'application/json'
    return (yield Request(method, path, *http_body(options, headers, text)))


def tranquility(options):
    """An event per point to a Tranquility Server, which tells how many it has sent on and not
    which: so each tick goes alone. What is outside its window it drops."""
    rows, path = druid_rows(options), '/v1/post/' + percent_encoded(options.datasource)
    plain = Options(dict(options.__dict__, gzip=False))     # it does not decompress
    while True:
        frames = yield Next()
        for i, frame in enumerate(frames):
            text = rows(frame)
            if text:
                yield Wait(0)
                array = '[%s]' % text.rstrip('\n').replace('\n', ', ')
                answer = yield from druid_ask(plain, 'POST', path, array)
                lost = tranquility_lost(text.count('\n'), *answer + ((yield Now()),))
                if lost:
                    yield Reject(frame, 'Tranquility drops %d of %d points: are they outside its '
                                        'window?' % (lost, text.count('\n')), lost)
            yield Done(i + 1)


def tranquility_lost(points, status, headers, body, now):
    """How many of so many points it has dropped."""
    if status == 413:                           # from a proxy before it
        raise Refused('an event array that is more than it takes', True)
    druid_outcome(status, headers, body, now)   # 400: it knows no such datasource
    sent = json_part(body, 'result', 'sent')
    if type(sent) is not int or not 0 <= sent <= points:
        raise OSError(errno.EPROTO, 'an answer without "sent": is it a Tranquility Server?')
    return points - sent


# -- kafka: a producer for every broker from 0.11 on (kafka.apache.org/protocol) -----------------

# Versions that all of them speak and that have no tagged fields. A broker of 4.x says that it takes
# Produce 0 to 2, and closes the connection when it gets one (KAFKA-18659): 3 is the least.
PRODUCE, METADATA, SASL_HANDSHAKE, API_VERSIONS, INIT_PRODUCER_ID, SASL_AUTHENTICATE = (
    0, 3, 17, 18, 22, 36)
PRODUCE_VERSIONS = 3, 8
KAFKA_REPLY = 1 << 24           # bytes of a reply at most: metadata of 300,000 partitions
KAFKA_BATCH = 900000            # bytes of a batch, for message.max.bytes is 1,048,588 unless told
KAFKA_FRESH = 300               # seconds for which metadata is believed
KAFKA_PAUSES = (0, 0.1, 0.2, 0.4)       # between tries at once; after that delivery backs off
KAFKA_SESSION = 0.85            # part of a session after which we log in again
NO_PRODUCER = -1, -1, -1

# What an error code of a broker means for us (org.apache.kafka.common.protocol.Errors). After any
# failure the metadata is asked for anew; where nothing else will do, it is REFRESH.
STORED, SPLIT, REFUSE, SUSPECT, REFRESH, AGAIN, ANEW, FATAL = (
    'stored', 'split', 'refuse', 'suspect', 'refresh', 'again', 'anew', 'fatal')
KAFKA_ERRORS = {
    -1: ('UNKNOWN_SERVER_ERROR', SUSPECT),
    0: ('NONE', STORED),
    2: ('CORRUPT_MESSAGE', SUSPECT),            # also a null key, to old brokers' compacted topics
    3: ('UNKNOWN_TOPIC_OR_PARTITION', REFRESH),
    5: ('LEADER_NOT_AVAILABLE', REFRESH),
    6: ('NOT_LEADER_OR_FOLLOWER', REFRESH),
    7: ('REQUEST_TIMED_OUT', AGAIN),
    8: ('BROKER_NOT_AVAILABLE', REFRESH),
    9: ('REPLICA_NOT_AVAILABLE', REFRESH),
    10: ('MESSAGE_TOO_LARGE', SPLIT),
    13: ('NETWORK_EXCEPTION', REFRESH),
    14: ('COORDINATOR_LOAD_IN_PROGRESS', AGAIN),
    15: ('COORDINATOR_NOT_AVAILABLE', AGAIN),
    16: ('NOT_COORDINATOR', AGAIN),
    17: ('INVALID_TOPIC_EXCEPTION', FATAL),
    18: ('RECORD_LIST_TOO_LARGE', SPLIT),
    19: ('NOT_ENOUGH_REPLICAS', AGAIN),
    20: ('NOT_ENOUGH_REPLICAS_AFTER_APPEND', AGAIN),
    21: ('INVALID_REQUIRED_ACKS', FATAL),
    29: ('TOPIC_AUTHORIZATION_FAILED', FATAL),
    31: ('CLUSTER_AUTHORIZATION_FAILED', FATAL),
    32: ('INVALID_TIMESTAMP', REFUSE),
    33: ('UNSUPPORTED_SASL_MECHANISM', FATAL),
    34: ('ILLEGAL_SASL_STATE', FATAL),
    35: ('UNSUPPORTED_VERSION', FATAL),
    37: ('INVALID_PARTITIONS', FATAL),
    38: ('INVALID_REPLICATION_FACTOR', FATAL),
    41: ('NOT_CONTROLLER', REFRESH),
    42: ('INVALID_REQUEST', FATAL),
    43: ('UNSUPPORTED_FOR_MESSAGE_FORMAT', FATAL),
    44: ('POLICY_VIOLATION', FATAL),
    45: ('OUT_OF_ORDER_SEQUENCE_NUMBER', ANEW),
    46: ('DUPLICATE_SEQUENCE_NUMBER', STORED),
    47: ('INVALID_PRODUCER_EPOCH', ANEW),
    49: ('INVALID_PRODUCER_ID_MAPPING', ANEW),
    51: ('CONCURRENT_TRANSACTIONS', AGAIN),
    53: ('TRANSACTIONAL_ID_AUTHORIZATION_FAILED', FATAL),
    54: ('SECURITY_DISABLED', FATAL),
    55: ('OPERATION_NOT_ATTEMPTED', AGAIN),
    56: ('KAFKA_STORAGE_ERROR', REFRESH),
    58: ('SASL_AUTHENTICATION_FAILED', FATAL),
    59: ('UNKNOWN_PRODUCER_ID', ANEW),
    72: ('LISTENER_NOT_FOUND', REFRESH),
    74: ('FENCED_LEADER_EPOCH', REFRESH),
    75: ('UNKNOWN_LEADER_EPOCH', REFRESH),
    76: ('UNSUPPORTED_COMPRESSION_TYPE', FATAL),
    87: ('INVALID_RECORD', REFUSE),
    89: ('THROTTLING_QUOTA_EXCEEDED', AGAIN),
    90: ('PRODUCER_FENCED', ANEW),
    100: ('UNKNOWN_TOPIC_ID', REFRESH),
}
KAFKA_ADVICE = {
    2: 'an old broker says so when the topic is compacted, which needs a key',
    3: 'is the topic there, or may the broker create it?',
    29: 'need the right to write to it',
    32: 'the clocks of this host and the broker differ, or the ticks are too old',
    34: 'that port wants no login',
    87: 'the topic may be compacted, which needs a key',
}


def kafka_meaning(code):
    """(name, what it means for us) of an error code."""
    return KAFKA_ERRORS.get(code, ('error %d' % code, AGAIN))


def kafka_text(text):
    """A text behind its 16-bit length."""
    data = text.encode()
    return struct.pack('>h', len(data)) + data


def kafka_topic(template, identity):
    """The topic's name: letters, digits, `.`, `_` and `-` only, and no more than 249."""
    name = ''.join([c if c in NODE or c == '.' else '_' for c in filled(template, identity)[:249]])
    return name if name.strip('.') else name.replace('.', '_') or '_'


class Producer:
    """What outlives the dialogues of one kafka emitter.

    id, epoch and following {(topic, partition): sequence number} make repeated batches harmless.
    flight: the batch that may have been stored or not; it goes again as it is. part: (run, seq, n):
    all before that tick is dealt with, and of it the first n messages. most: bytes of a batch that
    the brokers take.
    """

    def __init__(self):
        self.flight, self.part, self.most = None, ('', 0, 0), KAFKA_BATCH
        self.shape = ''
        self.forget()

    def reshape(self, shape):
        """Forgets which messages of a tick are dealt with when it is made into others now."""
        if shape != self.shape:
            self.shape, self.part = shape, self.part[:2] + (0,)
            if self.flight:
                self.flight.part = self.flight.part[:2] + (0,)

    def has(self, frame, number):
        """Whether that message of a tick is dealt with."""
        run, seq, part = self.part
        return frame.run == run and (frame.seq, number) < (seq, part)

    def forget(self):
        """Another id is asked for: what is on its way goes as if it had never been sent."""
        self.id, self.epoch, self.following, self.flight = None, -1, {}, None

    def landed(self):
        """The batch on its way is stored."""
        flight, self.flight = self.flight, None
        self.part = flight.part
        if flight.sequence >= 0:
            self.following[flight.where] = (flight.sequence + flight.count) & 0x7fffffff


class KafkaBatch:
    """Messages that go together: (frame, the one behind it, frames done with it, bytes) of each,
    topic and key, and their size. The one behind it: (seq, number in its tick)."""

    def __init__(self, topic, key):
        self.topic, self.key, self.messages, self.bytes = topic, key, [], 0

    def add(self, *message):
        self.messages.append(message)
        self.bytes += len(message[-1]) + 100    # its fields, and the key

    def part(self):
        """How far one is when this batch is dealt with: see Producer."""
        frame, behind = self.messages[-1][:2]
        return (frame.run,) + behind

    def halves(self):
        middle = len(self.messages) // 2
        for part in self.messages[:middle], self.messages[middle:]:
            half = KafkaBatch(self.topic, self.key)
            for message in part:
                half.add(*message)
            yield half


class Flight:
    """A batch as it goes: (topic, partition), whether it has a key, its bytes, sequence number, how
    many records, its part(), and whether it was sent before."""

    def __init__(self, where, keyed, data, sequence, count, part):
        self.where, self.keyed, self.data, self.sequence = where, keyed, data, sequence
        self.count, self.part, self.sent = count, part, False


class Broker:
    """A connection to a broker: what it speaks, and when its session ends (0: never)."""

    def __init__(self, link, place):
        self.link, self.place, self.apis, self.ends = link, place, {}, 0


class Kafka:
    """One dialogue with a cluster. Its methods are parts of that dialogue: generators of steps.

    brokers {node: (host, port)}, leaders {(topic, partition): node} and counts {topic: partitions}
    are what the metadata said; open: the connections by place.
    """

    def __init__(self, options, producer):
        self.options, self.producer = options, producer
        self.bootstrap = [host_and_port(place) for place in options.brokers.split(',')]
        self.brokers, self.leaders, self.counts, self.asked = {}, {}, {}, {}
        self.open, self.failed, self.correlation, self.pause = {}, set(), 0, 0.0
        self.locked_out = False                 # whether a broker does not take our login

    # batches

    def deliver(self, frames, messages):
        """Stores the messages of the frames in as few batches as they fit in; each frame is done
        when all of it is stored."""
        options, producer, batch = self.options, self.producer, None
        yield from self.settle(kafka_topic(options.topic, frames[0].identity))
        for i, frame in enumerate(frames):
            topic = kafka_topic(options.topic, frame.identity)
            key = filled(options.key, frame.identity)
            encoded = messages(frame)
            for n, message in enumerate(encoded):
                if producer.has(frame, n):
                    continue                    # before the last dialogue broke off
                if batch and ((topic, key) != (batch.topic, batch.key)
                              or batch.bytes + len(message) > producer.most):
                    yield from self.store(batch)
                    batch = None
                batch = batch or KafkaBatch(topic, key)
                last = n == len(encoded) - 1
                batch.add(frame, (frame.seq + last, 0 if last else n + 1), i + last, message)
        if batch:
            yield from self.store(batch)
        yield Done(len(frames))

    def settle(self, topic):
        """What may have been stored when the last dialogue broke off goes again as it is, whatever
        is offered now: then it is known. topic: of what is offered."""
        flight = self.producer.flight
        if self.options.acks == '0':            # what was sent may be meant to go again
            self.producer.part = '', 0, 0
        if flight and flight.sequence < 0:      # nobody would know it again
            self.producer.flight = None
        elif flight:
            try:
                yield from self.produce(None)
            except Refused:
                pass                            # it was not stored
            except OSError:
                if flight.where[0] == topic:
                    raise
                self.producer.forget()          # a reload chose another topic: that one may be gone

    def store(self, batch):
        """Stores a batch; what is too large goes in halves, and a message that is too large alone
        is rejected. A broker that asks for less traffic gets less."""
        stored = yield from self.produce(batch)
        if not stored and len(batch.messages) > 1:
            self.producer.most = max(1, min(self.producer.most, batch.bytes // 2))
            for half in batch.halves():
                yield from self.store(half)
            return
        frame, _, done, message = batch.messages[-1]
        if not stored:
            reason = 'a message of %d bytes is more than the broker takes' % len(message)
            yield Reject(frame, reason, int(self.options.format == 'flat'))
        self.producer.part = batch.part()
        yield Done(done)
        if self.pause:
            yield Wait(min(self.pause, MISSING_PAUSE))
            self.pause = 0.0

    def produce(self, batch):
        """True when the batch is stored, False when it is too large; None: the one on its way. What
        goes wrong is tried again at once a few times: leaders move within a second."""
        for pause in KAFKA_PAUSES + (None,):
            try:
                done = yield from self.attempt(batch)
                if done is not None:
                    return done
                failure = Later('the producer id does not hold')
            except OSError as error:
                failure = error
                self.asked.clear()              # the leader may be another one now
                for broker in list(self.open.values()) * (error.errno == errno.EPROTO):
                    yield from self.hang_up(broker)     # whatever it says makes no sense
            final = getattr(failure, 'wait', 0) or failure.errno == errno.ETIME
            if pause is None or final or self.lost_unheard(failure):
                if getattr(failure, 'suspect', False):
                    self.producer.forget()      # delivery may offer it in other pieces
                raise failure
            yield Wait(pause)

    def lost_unheard(self, failure):
        """Whether a connection broke that has never answered: what was sent before goes again too,
        which only delivery knows."""
        flight = self.producer.flight
        return (self.options.acks == '0' and flight and flight.sent
                and not getattr(failure, 'told', False))

    def attempt(self, batch):
        """True, False or None: stored, too large, or to be sent anew with another producer id."""
        producer = self.producer
        if producer.flight and not (yield from self.has_way(producer.flight)):
            producer.forget()
        flight = producer.flight or batch and (yield from self.encoded(batch))
        if not flight:
            return True
        again = flight.sent
        code, text = yield from self.send(flight)
        what = kafka_meaning(code)[1]
        if what is STORED:
            producer.landed()
            return True
        if what is ANEW:
            producer.forget()
            return None
        if what in (SPLIT, REFUSE):
            producer.flight = None
            if again:                           # it may be stored: its numbers are not used again
                producer.forget()
        if what is SPLIT:
            return False
        reason = self.words(flight.where[0], code, text)
        if what is REFUSE:
            raise Refused(reason)
        raise Later(reason, CREDENTIALS_PAUSE if what is FATAL else 0, what is SUSPECT)

    def has_way(self, flight):
        """Whether the partition of a batch is still one: topics are made anew; and whether it has a
        leader, where neither a key nor an attempt ties the batch to it."""
        yield from self.know(flight.where[0])
        return (flight.where[1] < self.counts[flight.where[0]]
                and (flight.keyed or flight.sent or self.leads(flight.where)))

    def words(self, topic, code, text=''):
        """`topic "stats": TOPIC_AUTHORIZATION_FAILED: need the right to write to it`"""
        head = 'topic %s: %s' % (json_text(topic), kafka_meaning(code)[0])
        return ': '.join([part for part in (head, KAFKA_ADVICE.get(code, ''), text) if part])

    def encoded(self, batch):
        """The batch as a Flight, from now on the one on its way."""
        producer, topic, key = self.producer, batch.topic, utf8(batch.key)
        yield from self.know(topic)
        partition = yield from self.partition(topic, key)
        where = topic, partition
        number, epoch, sequence = NO_PRODUCER
        if self.options.acks == 'all':
            number, epoch = yield from self.identified(where)
            sequence = producer.following.get(where, 0) if number >= 0 else -1
        records = [(entry[0].time_ms, key or None, entry[-1]) for entry in batch.messages]
        data = record_batch(records, self.options.codec == 'gzip', number, epoch, sequence)
        producer.flight = Flight(where, bool(key), data, sequence, len(records), batch.part())
        return producer.flight

    def partition(self, topic, key):
        """The partition of a key as the Java client chooses it; without a key any that has a
        leader."""
        if key:
            return (murmur2(key) & 0x7fffffff) % self.counts[topic]
        able = [n for n in range(self.counts[topic]) if self.leads((topic, n))]
        dice = yield Random(4)
        return able[int.from_bytes(dice, 'big') % len(able)] if able else 0

    def leads(self, where):
        """Where the leader of (topic, partition) is, or None."""
        return self.brokers.get(self.leaders.get(where))

    def identified(self, where):
        """(producer id, epoch), asked for once; -1 where the broker does not allow it: then a
        repeated batch is stored twice."""
        producer = self.producer
        if producer.id is None:
            broker = yield from self.leader(where)
            reply = yield from self.ask(broker, INIT_PRODUCER_ID, 0, struct.pack(
                '>hi',
                -1,                             # transactional_id: none
                0x7fffffff))                    # transaction_timeout_ms
            reply.int32()                       # throttle_time_ms
            code, number, epoch = reply.int16(), reply.int64(), reply.int16()
            if code == 31:
                yield Say('not allowed to write idempotently: a batch may be stored twice')
                number, epoch = -1, -1
            elif code or number < 0:
                name, what = kafka_meaning(code)
                raise Later('no producer id: ' + name, CREDENTIALS_PAUSE * (what is FATAL))
            producer.id, producer.epoch = number, epoch
        return producer.id, producer.epoch

    def send(self, flight):
        """(error code, what the broker says of it) of one Produce request."""
        topic, partition = flight.where
        acks = {'all': -1, '1': 1, '0': 0}[self.options.acks]
        broker = yield from self.leader(flight.where)
        body = b''.join((
            struct.pack(
                '>hhi',
                -1,                             # transactional_id: none
                acks,
                int(self.options.timeout * 800)),       # timeout_ms: less than ours
            b'\0\0\0\1',                        # topics
            kafka_text(topic),
            struct.pack(
                '>iii',
                1,                              # partitions
                partition,                      # index
                len(flight.data)),
            flight.data))                       # up to 900 kB: not copied more often than needed
        version, flight.sent = min(PRODUCE_VERSIONS[1], broker.apis[PRODUCE][1]), True
        reply = yield from self.ask(broker, PRODUCE, version, body, acks != 0)
        if not acks:
            return 0, ''
        answers = reply.array(lambda: (reply.text(), reply.array(
            lambda: produce_answer(reply, version))))
        self.pause = max(0, reply.int32()) / 1000.0     # throttle_time_ms
        for name, parts in answers:
            for index, code, text in parts:
                if (name, index) == flight.where:
                    return code, text
        raise at_place(OSError(errno.EPROTO, 'no word about what was sent'), broker.place)

    # the cluster

    def know(self, topic):
        """Asks for the metadata of the topic unless it is known and fresh."""
        now = yield Now()
        if not 0 <= now - self.asked.get(topic, -KAFKA_FRESH) < KAFKA_FRESH:
            yield from self.discover(topic)
            self.asked[topic] = now

    def discover(self, topic):
        """Asks one broker after the other: those that are connected first, those that failed
        last."""
        dice = yield Random(8)
        places = set(list(self.brokers.values()) + self.bootstrap)
        order = sorted(places, key=lambda place: (
            place in self.failed, place not in self.open,
            crc32c_rest(dice + utf8(place_text(*place)), 0)))
        failures = []
        for place in order:
            try:
                broker = yield from self.connected(place)
                reply = yield from self.ask(broker, METADATA, 4, b''.join((
                    b'\0\0\0\1',                # topics
                    kafka_text(topic),
                    b'\1')))                    # allow_auto_topic_creation
            except OSError as error:
                if error.errno == errno.ECONNRESET and not self.options.sasl:
                    error.strerror += ' (does that port want "sasl"?)'
                failures.append(error)
                self.failed.add(place)
                if self.locked_out:             # so it would be at the others
                    break
                continue
            self.failed.discard(place)
            self.learn(reply, topic)
            return
        raise min(failures, key=lambda failure: getattr(failure, 'wait', 0))

    def learn(self, reply, topic):
        """Takes a Metadata reply in; raises Later when it has no use of the topic."""
        reply.int32()                           # throttle_time_ms
        self.brokers.update(reply.array(lambda: kafka_node(reply)))
        reply.text()                            # cluster_id
        reply.int32()                           # controller_id
        for code, name, parts in reply.array(lambda: kafka_topic_answer(reply)):
            if name == topic and parts and not code:
                self.counts[topic] = len(parts)
                self.leaders.update([((topic, n), leader) for n, leader in parts])
                return
            if name == topic:
                fatal = kafka_meaning(code)[1] is FATAL
                raise Later(self.words(topic, code or 3), CREDENTIALS_PAUSE * fatal)
        raise Later(self.words(topic, 3))

    def leader(self, where):
        """A connection to the broker that leads the partition."""
        yield from self.know(where[0])
        place = self.leads(where)
        if not place:
            raise Later('topic %s: partition %d has no leader' % (json_text(where[0]), where[1]))
        try:
            return (yield from self.connected(place))
        except OSError:
            self.failed.add(place)
            raise

    # connections

    def connected(self, place):
        """A Broker that may be asked; logs in again before a session ends."""
        broker, now = self.open.get(place), (yield Now())
        if broker is None:
            try:
                broker = Broker((yield Dial(*place)), place)
            except OSError as error:
                raise at_place(error, place)
        try:
            if not broker.apis:
                yield from self.greet(broker)
            elif broker.ends and now >= broker.ends:
                yield from self.log_in(broker)
        except OSError:
            yield from self.hang_up(broker)
            raise
        self.open[place] = broker
        return broker

    def greet(self, broker):
        """What the broker speaks, and who we are."""
        try:
            reply = yield from self.ask(broker, API_VERSIONS, 0, b'')
        except OSError as error:
            if error.errno not in (errno.ETIME, errno.ECONNRESET):
                raise
            raise OSError(error.errno, '%s (a port for TLS? a Kafka older than 0.10?)' % (
                error.strerror))
        code = reply.int16()
        broker.apis = {key: (low, high) for key, low, high in reply.array(
            lambda: (reply.int16(), reply.int16(), reply.int16()))}
        low, high = broker.apis.get(PRODUCE, (0, -1))
        if code or high < PRODUCE_VERSIONS[0] or low > PRODUCE_VERSIONS[1]:
            raise at_place(Later('found Produce %d to %d, need %d to %d: Kafka 0.11 or newer' % (
                (low, high) + PRODUCE_VERSIONS), CREDENTIALS_PAUSE), broker.place)
        if self.options.sasl:
            yield from self.log_in(broker)

    def log_in(self, broker):
        """SASL (RFC 4422): the mechanism, then its tokens, which brokers before 1.0 want without
        any header."""
        wrapped = (SASL_AUTHENTICATE in broker.apis
                   and broker.apis.get(SASL_HANDSHAKE, (0, 0))[1] > 0)
        mechanism, now, self.locked_out = self.options.sasl.upper(), (yield Now()), True
        reply = yield from self.ask(broker, SASL_HANDSHAKE, int(wrapped), kafka_text(mechanism))
        code = reply.int16()
        if code:
            advice = ': ' + KAFKA_ADVICE[code] if code in KAFKA_ADVICE else ''
            if code == 33:
                advice = ', need one of ' + ', '.join(reply.array(reply.text))
            raise at_place(Later('SASL %s: %s%s' % (mechanism, kafka_meaning(code)[0], advice),
                                 CREDENTIALS_PAUSE), broker.place)
        token = self.wrapped_token if wrapped else self.bare_token
        username, password = self.options.username, self.options.password
        if mechanism == 'PLAIN':                # RFC 4616
            yield from token(broker, b'\0'.join((b'', utf8(username), utf8(password))))
        else:
            dice = yield Random(18)
            scram = Scram(mechanism[6:].replace('-', '').lower(), username, password,
                          base64_text(dice))
            challenge = answer = yield from token(broker, scram.first)
            if not challenge.startswith(b'e='):
                answer = yield from token(broker, scram.final(challenge))
            if not scram.proves(answer):
                raise at_place(Later('wrong user name or password, or not the server it claims to '
                                     'be', CREDENTIALS_PAUSE), broker.place)
        self.locked_out = False
        if broker.ends:                         # so far the length of a session
            broker.ends = now + broker.ends * KAFKA_SESSION

    def wrapped_token(self, broker, token):
        """What SaslAuthenticate answers to a token."""
        version = min(1, broker.apis[SASL_AUTHENTICATE][1])
        reply = yield from self.ask(broker, SASL_AUTHENTICATE, version, sized_bytes(token))
        code, text, answer = reply.int16(), reply.text(), reply.bytes()
        if code:
            raise at_place(Later(text or 'wrong user name or password', CREDENTIALS_PAUSE),
                           broker.place)
        broker.ends = reply.int64() / 1000.0 if version else 0      # session_lifetime_ms
        return answer

    def bare_token(self, broker, token):
        """What comes back for a token; a broker that does not like one closes without a word."""
        try:
            yield Send(sized_bytes(token), broker.link)
            return (yield from self.sized(broker.link))
        except ConnectionError:
            raise at_place(Later('closed after the password: it may be wrong', MISSING_PAUSE),
                           broker.place)
        except OSError as error:
            raise at_place(error, broker.place)

    def ask(self, broker, api, version, body, answered=True):
        """Fields of the reply to a request (header version 1), None when there is none."""
        self.correlation = (self.correlation + 1) & 0x7fffffff
        head = struct.pack(
            '>hhi',
            api,                                # request_api_key
            version,                            # request_api_version
            self.correlation) + kafka_text('statbadger')
        try:
            yield Wait(0)                       # each exchange has its own time
            yield Send(struct.pack('>i', len(head) + len(body)) + head + body, broker.link)
            if not answered:
                return None
            reply = Fields((yield from self.sized(broker.link)))
            if reply.int32() != self.correlation:
                raise OSError(errno.EPROTO, 'an answer to something else')
            return reply
        except OSError as error:
            yield from self.hang_up(broker)
            raise at_place(error, broker.place)

    def sized(self, link):
        """The bytes behind a 32-bit length."""
        size = struct.unpack('>i', (yield Read(4, link)))[0]
        if size >> 16 == 0x1503:                # the record type and version of a TLS alert
            raise OSError(errno.EPROTO, 'it answers in TLS: need "tls": true')
        if not 0 <= size <= KAFKA_REPLY:
            raise OSError(errno.EPROTO, 'what came back is no Kafka')
        return (yield Read(size, link)) if size else b''

    def hang_up(self, broker):
        """Gives the connection back."""
        self.open.pop(broker.place, None)
        yield Close(broker.link)


def at_place(error, place):
    """The same error, with the peer's host and port in its text."""
    words = '%s: %s' % (place_text(*place), error.strerror or error)
    if isinstance(error, Later):
        return Later(words, error.wait, error.suspect)
    found = OSError(error.errno, words)
    found.__dict__.update(error.__dict__)       # unreached, told
    return found


def produce_answer(reply, version):
    """(index, error code, text) of one partition in a Produce reply."""
    index, code = reply.int32(), reply.int16()
    reply.int64()                               # base_offset
    reply.int64()                               # log_append_time_ms
    if version >= 5:
        reply.int64()                           # log_start_offset
    texts = []
    if version >= 8:
        texts = [text for number, text in reply.array(lambda: (reply.int32(), reply.text()))]
        texts.insert(0, reply.text())
    return index, code, ([text for text in texts if text] or [''])[0]


def kafka_node(reply):
    """(node id, (host, port)) of a broker in a Metadata reply."""
    node, host, number = reply.int32(), reply.text(), reply.int32()
    reply.text()                                # rack
    return node, (host, number)


def kafka_topic_answer(reply):
    """(error code, name, [(partition, leader)]) of a topic in a Metadata reply."""
    code, name, _ = reply.int16(), reply.text(), reply.int8()   # is_internal
    return code, name, reply.array(lambda: kafka_partition(reply))


def kafka_partition(reply):
    reply.int16()                               # error_code: that of the leader, which -1 tells too
    number, leader = reply.int32(), reply.int32()
    reply.array(reply.int32)                    # replica_nodes
    reply.array(reply.int32)                    # isr_nodes
    return number, leader


def kafka_link(options):
    """Where brokers are: every link is dialled by the dialogue."""
    if options.sasl and not (options.username and options.password):
        raise ValueError('found "sasl" without username and password, need both')
    if not options.sasl and (options.username or options.password):
        raise ValueError('found username or password without "sasl", need plain, scram-sha-256 or '
                         'scram-sha-512')
    if options.sasl.startswith('scram'):
        try:
            import hashlib
        except ImportError as error:
            raise lacking(error)
    check_messages(options)
    return ('tcp', options.brokers, 0, tls_files(options, options.tls))


@emitter('kafka', 'Apache Kafka 0.11 to 4.x, and what speaks like it', [
    Option('brokers', addresses(9092), '127.0.0.1:9092', 'Some brokers to ask for all others'),
    Option('topic', template, 'statbadger', 'Topic; may hold {cluster} and the like'),
    Option('key', template, '{hostname}',
           'Key of each message: the same key goes to the same partition; "" = none, any one'),
    Option('acks', choice('all', '1', '0'), 'all',
           'Who must have a message: all replicas in sync, the leader, or nobody'),
    Option('codec', choice('none', 'gzip'), 'none', 'Compression'),
    Option('sasl', choice('', 'plain', 'scram-sha-256', 'scram-sha-512'), '',
           'Mechanism to log in with'),
] + LOGIN_OPTIONS + SECURE_OPTIONS + MESSAGE_OPTIONS,
    lambda options: 'sent' if options.acks == '0' else 'acknowledged', kafka_link)
def kafka(options, memory):
    """A message per tick (or point), CreateTime the tick's. With `acks` all, as an idempotent
    producer: what is repeated after a broken connection is not stored twice."""
    dialogue = Kafka(options, memory.setdefault('producer', Producer()))
    dialogue.producer.reshape(shape_of(options))
    encode = messages(options)
    while True:
        frames = yield Next()
        yield from dialogue.deliver(frames, encode)


# -- redis: Redis, and what speaks like it (redis.io, "Commands") --------------------------------

REDIS_MOST, REDIS_SIZE = 500, 1 << 20   # commands, and bytes, before their answers are waited for
UNIX_PATH = 107                 # bytes of the path of a unix socket (unix(7))

# What an error means, by how it begins (Redis 7: src/server.c, src/networking.c, src/acl.c).
REDIS_AGAIN = (                 # it is not willing now
    'BUSY ', 'CLUSTERDOWN ', 'ERR max number of clients', 'LOADING ', 'MASTERDOWN ', 'MISCONF ',
    'NOREPLICAS ', 'OOM ', 'READONLY ', 'TRYAGAIN ')
REDIS_FORBIDDEN = (             # nor will it be, before somebody does something
    'DENIED ', 'ERR operation not permitted', 'ERR unknown command',
    'ERR Protocol error: unauthenticated', 'NOAUTH ', 'NOPERM ', 'WRONGPASS ')
REDIS_ELSEWHERE = ('ASK ', 'MOVED ', 'WRONGTYPE ')
REDIS_TOO_LARGE = (             # that message is to blame, all others may fit
    'ERR Element too large', 'ERR Elements are too large',
    'ERR Protocol error: invalid bulk length', 'ERR max request size exceeded')
REDIS_ADVICE = (
    ('XADD', 'streams need Redis 5'),
    ('MOVED ', 'of a cluster another node has that key: "host" must say which'),
    ('NOAUTH ', 'need "password"'),
    ('WRONGTYPE ', 'it is in use for something else'),
)


def redis_failure(words, place):
    """What an error of the server means: Refused, that message is to blame; Later, the server is,
    or what we may do there; suspect, when nobody knows. place: the key it is about."""
    advice = [' (%s)' % advice for what, advice in REDIS_ADVICE if what in words]
    reason = '%s: %s%s' % (json_text(place), words, ''.join(advice))
    if words.startswith(REDIS_TOO_LARGE):
        return Refused(reason)
    if words.startswith(REDIS_AGAIN):
        return Later(reason)
    if words.startswith(REDIS_FORBIDDEN):
        return Later(reason, CREDENTIALS_PAUSE)
    if words.startswith(REDIS_ELSEWHERE):
        return Later(reason, MISSING_PAUSE)
    return Later(reason, 0, True)


def redis_answer(link, mark):
    """(what a command is answered, '') or ('', the error). mark: how the answer has to begin: + for
    OK, : for a number, $ for the id of an entry. Raises OSError when it is something else."""
    line = yield Line(link)
    words = line[1:-2].decode('utf-8', 'replace')
    if line[-2:] == b'\r\n' and line[:1] == b'-':       # less what it was given: it may be a secret
        return '', words.partition(', with args')[0] or 'an error without a word'
    whole = line[:1] == mark and line[-2:] == b'\r\n'
    if mark == b'$':
        whole = whole and words.isdecimal() and len(words) < 3
        entry = (yield Read(int(words) + 2, link)) if whole else b''
        whole = entry[-2:] == b'\r\n'
        words = entry[:-2].decode('utf-8', 'replace').replace('-', '', 1)
    if not whole or not (words == 'OK' if mark == b'+' else words.isdecimal()):
        raise OSError(errno.EPROTO, 'what came back is no answer of Redis: %s' % printable(
            line[:20].decode('latin-1')))
    return words, ''


def redis_session(options, link):
    """A connection that is logged in: the link, or a new one when that was closed meanwhile."""
    if link is not None:
        try:
            if not (yield Available(link)):
                return link
        except OSError:
            pass                                # it does not keep what is idle
        yield Close(link)
    link = yield Dial()
    login = [word for word in (options.username, options.password) if word]
    asked = [['AUTH'] + login] if login else []
    if options.database:
        asked.append(['SELECT', '%d' % options.database])
    yield Send(b''.join([resp_command([utf8(word) for word in words]) for words in asked]), link)
    for words in asked:
        _, error = yield from redis_answer(link, b'+')
        if error:
            again = error.startswith(REDIS_AGAIN)
            raise Later('%s: %s' % (words[0], error), 0 if again else CREDENTIALS_PAUSE)
    return link


def redis_command(options, key, frame, message):
    """The command that stores a message."""
    if options.mode == 'list':
        return resp_command((b'RPUSH', key, message))
    if options.mode == 'publish':
        return resp_command((b'PUBLISH', key, message))
    limit = (b'MAXLEN', b'~', b'%d' % options.maxlen) if options.maxlen else ()
    return resp_command((b'XADD', key) + limit + (
        b'*', b'host', utf8(frame.identity['hostname']), b'payload', message))


def redis_store(options, link, messages, progress):
    """Stores these messages, and cuts lists that are too long in the same go. All answers are read
    before anything is decided."""
    going, verdicts, broken = progress.doubted_last(messages), {}, None
    mark = b'$' if options.mode == 'stream' else b':'
    keys = [filled(options.key, frame.identity) for _, frame, _, _ in going]
    commands = [redis_command(options, utf8(key), frame, message)
                for key, (_, frame, _, message) in zip(keys, going)]
    cuts = sorted(set(keys)) if options.mode == 'list' and options.maxlen else ()
    commands += [resp_command((b'LTRIM', utf8(key), b'-%d' % options.maxlen, b'-1'))
                 for key in cuts]
    try:
        yield Send(b''.join(commands), link)
        for key, message in zip(keys, going):
            answer, error = yield from redis_answer(link, mark)
            verdicts[message[0]] = redis_failure(error, key) if error else None
        for _ in cuts:
            _, error = yield from redis_answer(link, b'+')
            if error and not any(verdicts.values()):
                yield Say('the list grows beyond "maxlen": LTRIM: ' + error)
        if options.mode == 'publish' and answer == '0':
            yield Say('nobody is subscribed to that channel')
    except OSError as error:
        broken = error
    yield from progress.settle(messages, verdicts, options.format == 'flat', broken)


def redis_link(options):
    """Where it is: a host and a port, or a unix socket."""
    if options.username and not options.password:
        raise ValueError('found username without password, need both, or a password alone')
    if not options.key:
        raise ValueError('found "key": "", need a name')
    check_messages(options)
    tls = tls_files(options, options.tls)
    if not options.socket:
        return ('tcp', options.host, options.port or 6379, tls)
    if tls:
        raise ValueError('found "tls" with "socket", need one of them')
    if not options.socket.startswith('/') or len(utf8(options.socket)) > UNIX_PATH:
        raise ValueError('found "socket": %s, need a path from / on, %d bytes at most' % (
            json_text(options.socket), UNIX_PATH))
    return ('unix', options.socket)


@emitter('redis', 'Redis: a list, a stream or a channel', STREAM_OPTIONS + [
    Option('socket', text, '', 'Path of its unix socket, instead of host and port'),
    Option('database', whole(0, 1 << 31), 0, 'Number of the database'),
    Option('key', template, 'statbadger',
           'Key of the list or stream, or the channel; may hold {hostname} and the like'),
    Option('mode', choice('list', 'stream', 'publish'), 'list',
           'RPUSH to a list; XADD to a stream, fields host and payload; or PUBLISH'),
    Option('maxlen', whole(0, 10 ** 12), 86400,
           'Most messages that the list or stream keeps, the oldest go first; 0 = all'),
] + LOGIN_OPTIONS + SECURE_OPTIONS + MESSAGE_OPTIONS, 'acknowledged', redis_link)
def redis(options, memory):
    """A message per tick (or point), many on their way at a time. What was answered does not go
    again; what was not goes again, and may be there twice."""
    encode, link = messages(options), None
    progress = memory.setdefault(shape_of(options), Progress())
    while True:
        frames = yield Next()
        try:
            link = yield from redis_session(options, link)
            for some in progress.missing(frames, encode, REDIS_MOST, REDIS_SIZE):
                yield Wait(0)                   # each exchange has its own time
                yield from redis_store(options, link, some, progress)
        except ConnectionResetError as error:
            if not (options.tls or options.socket or 'heard' in memory):
                raise OSError(error.errno, '%s (a port for TLS?)' % error.strerror)
            raise
        memory['heard'] = True


# -- rabbitmq: a publisher of AMQP 0-9-1 (its specification; rabbitmq.com, "Publisher Confirms") --

AMQP_HELLO = b'AMQP\0\0\x09\x01'                # protocol 0, version 0-9-1
CONNECTION_START, CONNECTION_START_OK = (10, 10), (10, 11)
CONNECTION_TUNE, CONNECTION_TUNE_OK = (10, 30), (10, 31)
CONNECTION_OPEN = 10, 40
CONNECTION_CLOSE, CONNECTION_CLOSE_OK = (10, 50), (10, 51)
CONNECTION_BLOCKED, CONNECTION_UNBLOCKED = (10, 60), (10, 61)  # RabbitMQ's own
CHANNEL_OPEN = 20, 10
CHANNEL_CLOSE, CHANNEL_CLOSE_OK = (20, 40), (20, 41)
QUEUE_DECLARE, QUEUE_DECLARE_OK, QUEUE_BIND = (50, 10), (50, 11), (50, 20)
BASIC_PUBLISH, BASIC_RETURN, BASIC_ACK = (60, 40), (60, 50), (60, 80)
BASIC_NACK, CONFIRM_SELECT = (60, 120), (85, 10)                # RabbitMQ's own
HEARTBEAT = 0, 0                # stands for a frame of that type
QUEUE_PASSIVE, QUEUE_DURABLE = b'\x01', b'\x02'
AMQP_GOODBYE = amqp_method(0, CONNECTION_CLOSE, struct.pack(
    '>HBHH',
    200,                                        # reply-code: reply-success
    0,                                          # reply-text: ''
    0,                                          # class-id and
    0))                                         # method-id of what is to blame: nothing
NOT_FOUND = 404
AMQP_LEAST = 4096               # bytes that a frame may have, whatever is negotiated
AMQP_PIECE = 1 << 16            # bytes that go at once, when no more than that are unconfirmed
AMQP_CHATTER = 100              # words of a broker in a row that get nothing on
AMQP_QUIET = 6                  # thirds of a heartbeat without a word: then nobody is there


def amqp_reason(fields):
    """(reply code, reply text, the method of ours that is to blame) of Connection.Close and
    Channel.Close."""
    return fields.int16(), fields.short_text(), (fields.int16(), fields.int16())


def amqp_failure(code, text, method):
    """The error for a reply code of a broker that closes the connection or the channel because of
    that method of ours (specification, 1.2; what RabbitMQ means by them)."""
    reason = '%d %s' % (code, text)
    if method == BASIC_PUBLISH and (code == 311 or code == 406 and 'size' in text):     # too large
        return Refused(reason, split=True)
    if method == BASIC_PUBLISH and code == 406:
        return Later(reason, 0, True)           # LavinMQ: "Server low on disk space"
    if code == 320:                             # forced: it goes down, or somebody wants us to go
        return ConnectionAbortedError(errno.ECONNABORTED, reason)
    if code == 403:
        return Later(reason, CREDENTIALS_PAUSE)
    if code in (402, NOT_FOUND, 405, 406, 530):     # 530: also a vhost that is missing or full
        return Later(reason, MISSING_PAUSE)
    return Later(reason, 0, code in (501, 502, 503, 504, 505, 540, 541))


def amqp_message_id(frame, number):
    """`HOST-RUN-SEQ`, or `HOST-RUN-SEQ-NUMBER`."""
    host = short_bytes(frame.identity['hostname'])[:180].decode('utf-8', 'ignore')
    which = '%d' % frame.seq if number is None else '%d-%d' % (frame.seq, number)
    return '-'.join((host, frame.run, which))


class Amqp:
    """A session with a broker: a connection, and a channel on which it confirms what is published.
    Its methods are parts of the dialogue: generators of steps.

    unconfirmed: {delivery tag: (number of its frame in the batch, message numbers of that frame
    that are confirmed, its own number, bytes)}; left: for each frame begun, how many messages are
    not confirmed. out: messages that go together. blocked: why the broker takes nothing, or ''.

    confirmed: {(run, seq): (number of messages, set of those that are confirmed)} outlives the
    session: what is confirmed does not go again with the rest of its batch.
    """

    def __init__(self, options, memory):
        self.options, self.encode = options, messages(options)
        self.confirmed = memory.setdefault(shape_of(options), {})
        self.link, self.buffer, self.most, self.heartbeat = None, b'', AMQP_FRAME, 0
        self.frames, self.left, self.done, self.nacked = [], [], 0, 0
        self.tag, self.unconfirmed, self.under_way = 0, {}, 0
        self.out, self.gathered = [], 0
        self.key, self.head = None, b''
        self.blocked, self.quiet, self.chatter, self.beaten = '', 0, 0, 0

    # the way in

    def open(self, host):
        """Ends with a channel that takes messages. host: who we say that we are."""
        self.link = yield Dial()
        yield Send(AMQP_HELLO, self.link)
        _, fields = yield from self.expect(CONNECTION_START)
        fields.take(2)                          # version-major, version-minor
        fields.bytes()                          # server-properties
        offered, wanted = fields.bytes().decode('ascii', 'replace'), self.options.sasl.upper()
        if wanted not in offered.split():
            raise Later('it offers to log in by %s, need %s' % (offered, wanted), CREDENTIALS_PAUSE)
        yield from self.tune((yield from self.log_in(wanted, host)))
        yield from self.ask(0, CONNECTION_OPEN, b''.join((
            short_string(self.options.vhost),
            short_string(''),                   # reserved-1
            b'\0')))                            # reserved-2
        yield from self.open_channel()
        if self.options.queue:
            yield from self.declare()

    def log_in(self, mechanism, host):
        """The Fields of Connection.Tune."""
        login = b'\0'.join((b'', utf8(self.options.username), utf8(self.options.password)))
        try:
            yield Wait(0)
            yield Send(amqp_method(0, CONNECTION_START_OK, b''.join((
                field_table([                   # client-properties
                    ('product', 'statbadger'),
                    ('version', VERSION),
                    ('connection_name', 'statbadger ' + host),
                    ('capabilities', [
                        ('publisher_confirms', True),
                        ('basic.nack', True),
                        ('connection.blocked', True),
                        ('authentication_failure_close', True)])]),
                short_string(mechanism),
                sized_bytes(b'' if mechanism == 'EXTERNAL' else login),     # RFC 4422, 4616
                short_string('en_US')))), self.link)
            return (yield from self.expect(CONNECTION_TUNE))[1]
        except ConnectionResetError:            # what the specification wants, and says no word
            raise Later('closed after the login: name or password may be wrong', MISSING_PAUSE)

    def tune(self, fields):
        """Settles the limits. A broker breaks off after twice the heartbeat without a word; ours
        may take as long as an exchange."""
        channels, most, beat = fields.int16(), fields.int32(), fields.int16()
        self.most = min(most & 0xffffffff or AMQP_FRAME, AMQP_FRAME)
        if self.most < AMQP_LEAST:
            raise OSError(errno.EPROTO, 'it takes frames of %d bytes, need %d' % (
                self.most, AMQP_LEAST))
        wanted = self.options.heartbeat
        if wanted:
            least = int(self.options.timeout) + 1
            self.heartbeat = max(min(wanted, beat & 0xffff or wanted), least)
        yield Send(amqp_method(0, CONNECTION_TUNE_OK, struct.pack(
            '>hIH',
            channels,                           # channel-max, of which we need one
            self.most,                          # frame-max
            self.heartbeat)), self.link)

    def open_channel(self):
        yield from self.ask(1, CHANNEL_OPEN, short_string(''))
        yield from self.ask(1, CONFIRM_SELECT, b'\0')           # no-wait: false

    def declare(self):
        """The queue is there: as whoever made it wanted it, which takes no right to ask, or else
        durable."""
        name = b'\0\0' + short_string(self.options.queue)       # reserved-1, queue
        arguments = field_table([])
        yield Wait(0)
        yield Send(amqp_method(1, QUEUE_DECLARE, name + QUEUE_PASSIVE + arguments), self.link)
        method, fields = yield from self.expect(QUEUE_DECLARE_OK, CHANNEL_CLOSE)
        if method == QUEUE_DECLARE_OK:
            return
        reason = amqp_reason(fields)
        if reason[0] != NOT_FOUND:
            yield from self.leave(amqp_failure(*reason))
        yield Send(amqp_method(1, CHANNEL_CLOSE_OK), self.link)
        yield from self.open_channel()
        yield from self.ask(1, QUEUE_DECLARE, name + QUEUE_DURABLE + arguments)

    def address(self, identity):
        """Makes the method that publishes for this identity; binds the queue when that needs it."""
        options = self.options
        straight = options.queue and not options.exchange
        key = options.queue if straight else filled(options.routing_key, identity)
        if key == self.key:
            return
        exchange, routing = short_string(options.exchange), short_string(key)
        if options.queue and options.exchange:
            yield from self.ask(1, QUEUE_BIND, b''.join((
                b'\0\0',                        # reserved-1
                short_string(options.queue),
                exchange,
                routing,
                b'\0',                          # no-wait
                field_table([]))))
        self.key, self.head = key, amqp_method(1, BASIC_PUBLISH, b''.join((
            b'\0\0',                            # reserved-1
            exchange,
            routing,
            struct.pack('>B', options.mandatory))))     # bits: mandatory, immediate

    # messages out

    def publish(self, frames):
        """Every message of these frames is confirmed, now or in a session before."""
        self.frames, self.left, self.done, self.nacked = frames, [], 0, 0
        first = frames[0]
        for key in list(self.confirmed):
            if key[0] != first.run or key[1] < first.seq:
                del self.confirmed[key]
        for i, frame in enumerate(frames):
            yield from self.publish_one(i, frame)
        yield from self.flush()
        while self.unconfirmed:
            yield from self.hear()
        if self.nacked:
            yield from self.leave(Later('%d messages are not taken (basic.nack): is the queue full?'
                                        % self.nacked))
        yield Done(len(frames))
        yield from self.look()

    def publish_one(self, i, frame):
        """Sends what is not confirmed of a frame, unless the broker has begun to refuse."""
        bodies, several = self.encode(frame), self.options.format == 'flat'
        kind = 'application/json' if self.options.format in ('payload', 'flat') else 'text/plain'
        known = self.known(frame, len(bodies))
        self.left.append(len(bodies) - len(known))
        yield from self.address(frame.identity)
        for n, body in enumerate(bodies):
            if n in known:
                continue
            if self.nacked:
                return
            properties = basic_properties(
                kind, self.options.persistent, amqp_message_id(frame, n if several else None),
                max(0, frame.time_ms // 1000))
            data = self.head + amqp_content(1, properties, body, self.most)
            self.tag += 1
            self.unconfirmed[self.tag] = i, known, n, len(data)
            self.out.append(data)
            self.gathered += len(data)
            if self.gathered >= AMQP_PIECE:
                yield from self.flush()

    def known(self, frame, count):
        """The numbers of its messages, of so many, that are confirmed."""
        entry = self.confirmed.get((frame.run, frame.seq))
        if not entry or entry[0] != count:
            entry = self.confirmed[frame.run, frame.seq] = count, set()
        return entry[1]

    def flush(self):
        """What is gathered goes out, once the broker takes something and has confirmed what went
        before, most of it at least: when it blocks, all that is on its way fits in the kernels."""
        while self.blocked or self.under_way > AMQP_PIECE:
            yield from self.hear()
        data, self.out, self.gathered = b''.join(self.out), [], 0
        if data:
            self.under_way += len(data)
            yield Send(data, self.link)
            yield from self.look()

    def settle(self, fields, taken):
        """Basic.Ack and Basic.Nack: of one message, or of all up to it, 0 being the last."""
        tag, several = fields.int64(), fields.take(1)[0] & 1
        tags = [t for t in self.unconfirmed if (t <= tag or tag == 0 if several else t == tag)]
        if not tags:
            raise OSError(errno.EPROTO, 'it confirms what was not published')
        for t in tags:
            i, known, n, size = self.unconfirmed.pop(t)
            self.under_way -= size
            if taken:
                known.add(n)
                self.left[i] -= 1
            else:
                self.nacked += 1
        before, self.chatter = self.done, 0
        while self.done < len(self.left) and not self.left[self.done]:
            frame = self.frames[self.done]
            self.confirmed.pop((frame.run, frame.seq), None)
            self.done += 1
        if self.done > before:
            yield Done(self.done)
        yield Wait(0)                           # it gets on

    # words in

    def word(self):
        """(method, Fields of its arguments) of the next frame, (HEARTBEAT, None) for one."""
        while True:
            size = amqp_size(self.buffer)
            if len(self.buffer) >= size:
                break
            self.buffer += yield Read(size - len(self.buffer), self.link)
        frame, self.buffer = self.buffer[:size], self.buffer[size:]
        self.chatter += 1
        if self.chatter > AMQP_CHATTER:
            raise OSError(errno.EPROTO, 'it talks on and on, and says nothing')
        if frame[0] == AMQP_HEARTBEAT:
            return HEARTBEAT, None
        if frame[0] != AMQP_METHOD:
            raise OSError(errno.EPROTO, 'a content comes that was not asked for')
        fields = Fields(frame[AMQP_AROUND - 1:-1])
        return (fields.int16(), fields.int16()), fields

    def expect(self, *wanted):
        """(method, Fields) of the first of these methods that comes."""
        while True:
            method, fields = yield from self.word()
            if method in wanted:
                self.chatter = 0
                return method, fields
            yield from self.heed(method, fields)

    def ask(self, channel, method, arguments):
        """Says that method, and ends when the broker says that it is done."""
        yield Wait(0)                           # each exchange has its own time
        yield Send(amqp_method(channel, method, arguments), self.link)
        yield from self.expect((method[0], method[1] + 1))

    def heed(self, method, fields):
        """Takes in what a broker may say at any time."""
        if method in (BASIC_ACK, BASIC_NACK):
            yield from self.settle(fields, method == BASIC_ACK)
        elif method == BASIC_RETURN:
            yield from self.leave(self.unroutable(fields))
        elif method == CONNECTION_BLOCKED:
            self.blocked = fields.short_text() or 'it does not say why'
            yield Say('takes nothing for now: %s; the ticks wait' % self.blocked)
        elif method == CONNECTION_UNBLOCKED:
            self.blocked = ''
            yield Say('takes messages again')
        elif method in (CONNECTION_CLOSE, CHANNEL_CLOSE):
            error = amqp_failure(*amqp_reason(fields))
            yield from self.leave(error, method == CONNECTION_CLOSE)
        elif method != HEARTBEAT:
            raise OSError(errno.EPROTO, 'method %d.%d comes where it has no place' % method)

    def unroutable(self, fields):
        """Later, for a Basic.Return: the queue is missing, which is no fault of the message."""
        code, text = fields.int16(), fields.short_text()
        exchange, key = fields.short_text(), fields.short_text()
        where = 'exchange %s has no queue for the routing key %s' % tuple(map(
            json_text, (exchange, key)))
        if not exchange:
            where = 'there is no queue %s ("queue" would have it declared)' % json_text(key)
        return Later('%d %s: %s' % (code, text, where), MISSING_PAUSE)

    def leave(self, error, asked=False):
        """Says goodbye, or yes when it was asked to go, and raises the error."""
        try:
            yield Send(amqp_method(0, CONNECTION_CLOSE_OK) if asked else AMQP_GOODBYE, self.link)
        except OSError:
            pass                                # it is gone: what it said before counts
        raise error

    def look(self):
        """Takes in all that has arrived, without waiting. Whether anything had."""
        heard = False
        while True:
            while len(self.buffer) >= amqp_size(self.buffer):
                yield from self.heed(*(yield from self.word()))
            data = yield Available(self.link)
            if not data:
                return heard
            self.buffer += data
            heard, self.quiet = True, 0

    def hear(self):
        """Takes in the next that comes; a broker that is blocked may take its time."""
        if not self.blocked:
            yield from self.heed(*(yield from self.word()))
        elif not (yield from self.look()):      # for no descriptor tells of what TLS still holds
            if (yield Wait(self.interval(), self.link)) is None:
                yield from self.leave(Later('takes nothing for now: ' + self.blocked))
            yield from self.beat()

    def interval(self):
        """Seconds after which silence is looked into."""
        return self.heartbeat / 3.0 or MISSING_PAUSE

    def beat(self):
        """Takes in what came while we had nothing to say, and shows that we are there."""
        self.chatter = 0
        self.quiet += 1                         # look() takes it back
        yield from self.look()
        if self.heartbeat and self.quiet > AMQP_QUIET:
            raise ConnectionAbortedError(errno.ECONNABORTED, 'no heartbeat comes any more')
        now = yield Now()
        if self.heartbeat and not 0 <= now - self.beaten < self.interval():
            self.beaten = now
            yield Send(amqp_frame(AMQP_HEARTBEAT, 0, b''), self.link, True)


def rabbitmq_link(options):
    for name in ('vhost', 'exchange', 'queue'):
        if len(utf8(options[name])) > MOST_SHORT:
            raise ValueError('found "%s" of %d bytes, need %d at most' % (
                name, len(utf8(options[name])), MOST_SHORT))
    if options.sasl == 'external' and not options.tls_cert:
        raise ValueError('found "sasl": "external" without tls_cert, need a certificate to show')
    check_messages(options)
    tls = tls_files(options, options.tls)
    return ('tcp', options.host, options.port or (5671 if tls else 5672), tls)


@emitter('rabbitmq', 'RabbitMQ, and what else speaks AMQP 0-9-1', STREAM_OPTIONS
         + SECURE_OPTIONS + [
    Option('sasl', choice('plain', 'external'), 'plain',
           'How to log in: by name and password, or by tls_cert'),
    Option('username', text, 'guest', 'Name to log in with; guest may come from its own host only'),
    Option('password', secret, 'guest', 'Its password; "${file:/run/secrets/x}" keeps it out of '
                                        'here'),
    Option('vhost', text, '/', 'Virtual host'),
    Option('exchange', text, '', 'Exchange, which must be there; "" = straight to the queue'),
    Option('routing_key', template, 'statbadger',
           'Routing key, or without exchange and queue the queue\'s name; may hold {hostname}'),
    Option('queue', text, '', 'Queue that is declared, durable, if it is not there; with an '
                              'exchange it is bound by the routing key'),
    Option('persistent', boolean, True, 'Messages in a durable queue outlive a restart'),
    Option('mandatory', boolean, True, 'What no queue takes waits; false = the broker drops it'),
    Option('heartbeat', whole(0, 65535), 60,
           'Seconds between two signs of life at most, either way; 0 = none are needed'),
] + MESSAGE_OPTIONS, 'acknowledged', rabbitmq_link)
def rabbitmq(options, memory):
    """A message per tick (or point), done with when the broker has confirmed it: a persistent one
    in a durable queue is on its disk then. What no queue takes, or a full one does not, waits."""
    frames = yield Next()
    session = Amqp(options, memory)
    yield from session.open(frames[0].identity['hostname'])
    while True:
        if frames:
            yield from session.publish(frames)
        else:
            yield from session.beat()
        frames = yield Next(session.interval(), goodbye=Send(AMQP_GOODBYE, session.link))


# -- activemq: ActiveMQ, Artemis, and whoever else speaks STOMP (stomp.github.io) -----------------

STOMP_MOST, STOMP_SIZE = 100, 1 << 20   # messages, and bytes, before receipts are waited for
STOMP_MOMENT = 0.3              # seconds for what a server says behind an error
STOMP_IDLE = 30                 # seconds after which a session is looked at without heart-beats
STOMP_CHATTER = 1000            # bytes that may come at a time when nothing was asked
DESTINATIONS = ('/queue/', '/topic/', '/exchange/', '/amq/queue/')     # the last two of RabbitMQ
STOMP_NAME = 200                # letters of a part of the identity in a destination

# What an error means, by words in it, in small letters: there are no codes.
STOMP_TOO_LARGE = (             # ActiveMQ, RabbitMQ
    'maximum data length', 'maximum frame size', 'larger than configured max', 'too large')
STOMP_FORBIDDEN = (             # ActiveMQ, Artemis, RabbitMQ (the last three)
    'not authorized', 'not have permission', 'access_refused', 'not_allowed', 'invalid destination',
    'unknown destination')
STOMP_MISSING = ('not_found', 'does not exist')
STOMP_AGAIN = (                 # ActiveMQ; Artemis, when an address is full, and behind an error
    'limit reached', 'is full', 'amq339011', 'amq339010', 'connection_forced')


def stomp_failure(words):
    """What an error of the server means: Refused, a message is to blame; Later, the server is, or
    what we may do there; suspect, when nobody knows."""
    small = words.lower()
    if any(what in small for what in STOMP_TOO_LARGE):
        return Refused(words, split=True)
    if any(what in small for what in STOMP_FORBIDDEN):
        return Later(words, CREDENTIALS_PAUSE)
    if any(what in small for what in STOMP_MISSING):
        return Later(words, MISSING_PAUSE)
    return Later(words, 0, not any(what in small for what in STOMP_AGAIN))


def stomp_words(headers, body):
    """What an ERROR frame says: its message, and the first line of its body when that says more."""
    message = stomp_unescaped(headers.get('message', ''))
    line = body.strip().partition('\n')[0].strip()
    more = line and message not in line and line not in message
    return ': '.join([part for part in (message, line * bool(more or not message)) if part]) or (
        'an error without a word')


def stomp_destination(template, identity):
    """The destination. What comes from outside may neither make two of it (,) nor a pattern (>) nor
    bring options (?): all but letters, digits, `.`, `-` and `_` becomes `_`."""
    return filled(template, {key: ''.join([c if c in NODE or c == '.' else '_' for c in
                                           text[:STOMP_NAME]]) or '_'
                             for key, text in identity.items()})


class Stomp:
    """The sessions of one dialogue with a server, one after the other. Its methods are parts of
    that dialogue: generators of steps.

    link: of the session, None when there is none. every: seconds between our heart-beats, silence:
    seconds of quiet after which the server is held to be dead; 0: none were agreed. sent, heard:
    when anything last went out and came in. artemis: whether it is one.
    """

    def __init__(self, options):
        self.options, self.link, self.buffer, self.version = options, None, b'', '1.0'
        self.artemis, self.every, self.silence, self.sent, self.heard = False, 0, 0, 0, 0

    def log_in(self):
        """Begins a session: agrees on a version and on heart-beats."""
        options, beat = self.options, '%d' % (self.options.heartbeat * 1000)
        headers = [('accept-version', '1.0,1.1,1.2'), ('host', options.vhost or options.host),
                   ('login', options.username), ('passcode', options.password),
                   ('heart-beat', beat + ',' + beat)]
        self.link, self.buffer = (yield Dial()), b''
        try:
            yield from self.say(stomp_frame('CONNECT', [h for h in headers if h[1]], '1.0'))
            command, headers, body = (yield from self.hear())[0]
        except ConnectionResetError as error:
            raise OSError(error.errno, error.strerror + ' (a port for TLS?)' * (not options.tls))
        if command == 'ERROR':
            raise Later(stomp_words(headers, body), CREDENTIALS_PAUSE)
        if command != 'CONNECTED':
            raise OSError(errno.EPROTO, 'a %s before the login' % command)
        self.version = headers.get('version', '1.0')
        self.artemis = 'Artemis' in headers.get('server', '')
        gives, _, wants = headers.get('heart-beat', '0,0').partition(',')
        self.every, self.silence = self.agreed(wants) / 2.0, self.agreed(gives) * 2.5

    def agreed(self, theirs):
        """Seconds between the heart-beats of one side, the longer of what both say; 0: none."""
        ms = int(theirs) if theirs.isdecimal() and len(theirs) < 8 else 0
        return max(self.options.heartbeat, ms / 1000.0) if ms and self.options.heartbeat else 0

    def idle(self):
        """Seconds after which the session wants to be looked at."""
        return min(self.every or STOMP_IDLE, self.silence or STOMP_IDLE, STOMP_IDLE) / 2.0

    def say(self, data, aside=False):
        yield Send(data, self.link, aside)
        self.sent = yield Now()

    def hear(self):
        """The next frames, one at least."""
        frames, came = [], 0
        while not frames:
            said = yield Read(1, self.link)
            try:
                said += yield Available(self.link)
            except ConnectionError:
                pass                            # whoever reads next finds out
            frames, self.buffer = stomp_frames(self.buffer + said)
            came += len(said)
            if not frames and came > STOMP_REPLY:
                raise OSError(errno.EPROTO, 'the peer talks on and on, and does not answer')
        self.heard = yield Now()
        return frames

    def attend(self):
        """Heart-beats while there is nothing else to say. A session that ended is no failure: what
        it means the next batch will tell."""
        try:
            said, now = (yield Available(self.link)), (yield Now())
            self.heard = now if said else self.heard
            frames, self.buffer = stomp_frames(self.buffer + said)
            for command, headers, body in frames:
                yield Say('it says %s: %s' % (command, stomp_words(headers, body)))
            dead = (frames or len(said) > STOMP_CHATTER
                    or self.silence and now - self.heard > self.silence)
            if not dead and self.every and not 0 <= now - self.sent < self.every:
                yield from self.say(b'\n', True)
        except OSError:
            dead = True
        if dead:
            yield from self.hang_up()

    def hang_up(self):
        link, self.link = self.link, None
        yield Close(link)

    def store(self, messages, progress):
        """Sends these messages and waits for the receipt of each. Behind an error, a server may
        answer to others, or say more of it, or nothing at all; then the session is over."""
        going = progress.doubted_last(messages)
        waiting = {'%s-%d-%d' % key: key for key, _, _, _ in going}
        verdicts, errors, broken = {}, [], None
        try:
            yield from self.say(b''.join([self.message(*message) for message in going]))
            while waiting and not errors:
                errors += self.take((yield from self.hear()), waiting, verdicts)
            if errors:
                yield Wait(STOMP_MOMENT)
                frames, _ = stomp_frames(self.buffer + (yield Available(self.link)))
                errors += self.take(frames, waiting, verdicts)
        except OSError as error:
            broken = error
        if errors:
            yield from self.hang_up()
            lost = [failure for key, failure in errors if not key] or [
                Later('no word about what came behind an error')]
            broken = min(lost, key=lambda failure: getattr(failure, 'suspect', False))
        broken = broken if waiting else None
        yield from progress.settle(messages, verdicts, self.options.format == 'flat', broken, True)

    def take(self, frames, waiting, verdicts):
        """Moves what these frames answer from waiting to verdicts. Gives [(key of the message that
        it is about, or None, what it means)] of errors."""
        errors = []
        for command, headers, body in frames:
            key = waiting.pop(headers.get('receipt-id'), None)
            if command == 'ERROR':
                errors.append((key, stomp_failure(stomp_words(headers, body))))
                if key:
                    verdicts[key] = errors[-1][1]
            elif command != 'RECEIPT' or not key:
                raise OSError(errno.EPROTO, 'a %s that was not asked for' % command)
            else:
                verdicts[key] = None
        return errors

    def message(self, key, frame, after, body):
        """The bytes of a SEND. Without content-length it is a text for readers by JMS. Artemis does
        not take a second one with the same _AMQ_DUPL_ID, and has to be told what a queue is: else
        it throws away what nobody is subscribed to."""
        options, number = self.options, '%s-%d-%d' % key
        json = options.format in ('payload', 'flat')
        headers = {'destination': stomp_destination(options.destination, frame.identity),
                   'receipt': number, 'persistent': 'true' if options.persistent else 'false',
                   'content-type': 'application/json' if json else 'text/plain'}
        if self.artemis:
            headers['_AMQ_DUPL_ID'] = number
            for start, kind in (('/queue/', 'ANYCAST'), ('/topic/', 'MULTICAST')):
                if headers['destination'].startswith(start):
                    headers['destination-type'] = kind
        headers.update(options.headers)
        return stomp_frame('SEND', headers.items(), self.version, body)


def activemq_link(options):
    """Where it is."""
    for name in ('username', 'password', 'vhost', 'destination'):
        if not options[name].isprintable():
            raise ValueError('found a control character in %s, need none' % name)
    if options.password and not options.username:
        raise ValueError('found password without username, need both')
    starts = [start for start in DESTINATIONS if options.destination.startswith(start)]
    name = options.destination[len((starts or [''])[0]):]
    if not name.strip() or options.destination.startswith('/') and not starts:
        raise ValueError('found "destination": %s, need one such as "/queue/stats" (%s)' % (
            json_text(options.destination), ', '.join(DESTINATIONS)))
    check_messages(options)
    tls = tls_files(options, options.tls)
    return ('tcp', options.host, options.port or (61614 if tls else 61613), tls)


@emitter('activemq', 'ActiveMQ, Artemis, RabbitMQ and other brokers, over STOMP', STREAM_OPTIONS + [
    Option('destination', template, '/queue/statbadger',
           'Queue or topic; may hold {cluster} and the like'),
    Option('persistent', boolean, True, 'Messages survive a restart of the broker'),
    Option('vhost', text, '', 'Virtual host, "/" for RabbitMQ; "" = what `host` says'),
    Option('headers', stomp_headers, {}, 'More headers of each message, such as {"priority": "9"}'),
    Option('heartbeat', seconds(0.1, 3600, or_zero=True), 10,
           'Seconds between heart-beats while nothing else is said; 0 = none'),
] + LOGIN_OPTIONS + SECURE_OPTIONS + MESSAGE_OPTIONS, 'acknowledged', activemq_link)
def activemq(options, memory):
    """A message per tick (or point), many on their way at a time, each with a receipt. What has one
    does not go again; what has none does, and may be there twice, but for Artemis."""
    encode, progress = messages(options), memory.setdefault(shape_of(options), Progress())
    session = Stomp(options)
    while True:
        frames = yield Next(session.idle() if session.link else None)
        if session.link:
            yield from session.attend()
        for some in progress.missing(frames, encode, STOMP_MOST, STOMP_SIZE) if frames else ():
            if not session.link:
                yield from session.log_in()
            yield Wait(0)                       # each exchange has its own time
            yield from session.store(some, progress)


# -- zeromq: a peer of ZeroMQ's sockets (rfc.zeromq.org/spec/23, 24, 29 and 30) --------------------

ZMQ_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
ZMQ_PEERS = 100                 # that may be connected to us
ZMQ_MOST = 8192                 # bytes of a frame that a peer sends: a name, a topic
ZMQ_TOPICS = 1 << 18            # bytes of what one peer subscribes to
ZMQ_JOIN = 0.5                  # seconds for the first subscription: what comes before is lost
ZMQ_IDLE = 60                   # seconds between looks at links that say nothing
ZMQ_SAID = 60                   # seconds between two lines about peers that are turned away


class ZmqPeer:
    """One connection's other end: how far its handshake is, and what it has subscribed to.

    we log in:   HELLO -> WELCOME -> INITIATE -> READY
    it logs in:  WELCOME <- HELLO, READY <- INITIATE
    no login:    READY -> READY

    due: the command that has to come next; 'greeting' before the first, '' when it is ready.
    refusal: why it is to be turned away after what feed() gave. since: Unix time it came.
    """

    def __init__(self, options, link=None, since=0):
        self.link, self.since, self.bind, self.refusal = link, since, options.bind, ''
        self.buffer, self.due, self.more = b'', 'greeting', 0
        self.topics, self.room = {}, ZMQ_TOPICS
        self.push = options.pattern == 'push'
        name, self.wanted = ('PUSH', ('PULL',)) if self.push else ('PUB', ('SUB', 'XSUB'))
        self.login = zmtp_short(utf8(options.username)) + zmtp_short(utf8(options.password))
        self.mechanism = 'NULL' if self.login == b'\0\0' else 'PLAIN'
        self.greeting = zmtp_greeting(self.mechanism.encode(),
                                      self.bind and self.mechanism == 'PLAIN')
        self.properties = zmtp_short(b'Socket-Type') + sized_bytes(name.encode())

    def wants(self, topic):
        """Whether what is sent under this topic is for it."""
        if self.push or self.due:
            return not self.due
        return any(topic[:i] in self.topics for i in range(len(topic) + 1))

    def feed(self, data):
        """Takes what came in, however it is cut, and gives the bytes that answer it. OSError when
        it is not what a peer of ours would say."""
        self.buffer, out = self.buffer + data, []
        if self.due == 'greeting':
            if not self.greeted():
                return b''
            out.append(self.opening())
        frames, self.buffer = zmtp_frames(self.buffer, ZMQ_MOST)
        for flags, body in frames:
            if self.refusal:
                break
            if flags & ZMTP_COMMAND:
                out.append(self.command(*zmtp_named(body)))
            else:
                self.message(flags, body)
        return b''.join(out)

    def greeted(self):
        """Whether the whole greeting is there, and good. libzmq writes a 1 before 0x7f."""
        head = self.buffer[:ZMTP_GREETING]
        if head[:1] not in (b'', b'\xff') or head[9:10] not in (b'', b'\x7f'):
            raise OSError(errno.EPROTO, 'no ZeroMQ there: found %s, need ff' % head[:10].hex())
        if len(head) > 10 and head[10] < 3:
            raise Later('the peer speaks revision %d of ZMTP, need 3: libzmq 4.0 or newer' % (
                head[10]), MISSING_PAUSE)
        if len(head) < ZMTP_GREETING:
            return False
        self.buffer = self.buffer[ZMTP_GREETING:]
        theirs = head[12:32].rstrip(b'\0').decode('ascii', 'replace')
        if theirs != self.mechanism:
            hint = {'PLAIN': ', or username and password', 'NULL': ', or neither of these two'}
            raise Later('the mechanism of the peer is %s, need %s%s' % (
                json_text(theirs), self.mechanism, hint.get(theirs, '')), CREDENTIALS_PAUSE)
        return True

    def unsaid(self, reason):
        """The reason with what may be wrong: libzmq closes in silence when it does not like the
        mechanism, or with PLAIN the type of our socket."""
        if not self.due:
            return reason
        return '%s before its %s: is it a %s socket that wants %s?' % (
            reason, self.due, ' or '.join(self.wanted),
            'no login' if self.mechanism == 'NULL' else 'a login (PLAIN)')

    def opening(self):
        """What follows the greetings."""
        if self.mechanism == 'NULL':
            self.due = 'READY'
            return zmtp_command(b'READY', self.properties)
        self.due = 'HELLO' if self.bind else 'WELCOME'
        return b'' if self.bind else zmtp_command(b'HELLO', self.login)

    def command(self, name, data):
        """The answer to a command; one that is not known has none."""
        name = name.decode('ascii', 'replace')
        if name == 'ERROR':
            self.fails(data)
        if not self.due:
            return self.remark(name, data)
        if name not in ('HELLO', 'WELCOME', 'INITIATE', 'READY'):
            return b''
        if name != self.due:
            raise OSError(errno.EPROTO, 'found %s, need %s' % (name, self.due))
        if name == 'WELCOME':
            self.due = 'READY'
            return zmtp_command(b'INITIATE', self.properties)
        if name == 'HELLO':
            return self.welcome(data)
        self.check_type(data)
        self.due = ''
        return zmtp_command(b'READY', self.properties) if name == 'INITIATE' else b''

    def fails(self, data):
        """Raises what an ERROR of the peer means: 400 is a login that it does not know, 300 that it
        cannot tell now (rfc.zeromq.org/spec/27)."""
        reason = data[1:].decode('utf-8', 'replace')
        advice = {'400': ' (are username and password right?)'}.get(reason, '')
        raise Later('the peer refuses the connection: ERROR %s%s' % (json_text(reason), advice),
                    0 if reason.startswith('3') else CREDENTIALS_PAUSE)

    def welcome(self, data):
        """The answer to a login."""
        from _operator import _compare_digest   # as long for a wrong one as for the right one
        self.due = 'INITIATE'
        if _compare_digest(data, self.login):
            return zmtp_command(b'WELCOME')
        self.refusal = 'wrong username or password'
        return zmtp_command(b'ERROR', zmtp_short(b'400'))

    def check_type(self, data):
        theirs = zmtp_properties(data).get(b'socket-type', b'').decode('ascii', 'replace')
        if theirs not in self.wanted:
            raise Later('the peer is a %s socket, need %s' % (
                json_text(theirs), ' or '.join(self.wanted)), MISSING_PAUSE)

    def remark(self, name, data):
        """The answer to a command after the handshake."""
        if name == 'PING':                      # a time to live of 16 bits, and what comes back
            return zmtp_command(b'PONG', data[2:18])
        if name in ('SUBSCRIBE', 'CANCEL'):     # ZMTP 3.1, though we announce 3.0
            self.subscribe(data, name == 'SUBSCRIBE')
        return b''

    def message(self, flags, body):
        """ZMTP 3.0 subscribes with a message of one frame: 1 or 0, and the topic."""
        if self.due:
            raise OSError(errno.EPROTO, 'a message where %s was due' % self.due)
        more, self.more = self.more, flags & ZMTP_MORE
        if not more and not self.more and body[:1] in (b'\0', b'\1'):
            self.subscribe(body[1:], body[0])

    def subscribe(self, topic, on):
        """The same topic may be asked for twice, and is then to be cancelled twice."""
        count = self.topics.get(topic, 0) + (1 if on else -1)
        if count > 0:
            self.topics[topic] = count
        elif not count:
            del self.topics[topic]
        if count == bool(on):                   # it is new, or gone
            self.room -= (len(topic) + 100) * (1 if on else -1)
        if self.room < 0:
            raise OSError(errno.EPROTO, 'it subscribes to more than %d bytes' % ZMQ_TOPICS)


def zmq_data(options):
    """frame -> (topic, all its messages as they go over the wire: with `pub` behind a frame that
    holds the topic)"""
    encode = messages(options)

    def data(frame):
        topic = utf8(filled(options.topic, frame.identity))
        head = zmtp_frame(topic, ZMTP_MORE) if options.pattern == 'pub' else b''
        return topic, b''.join([head + zmtp_frame(message) for message in encode(frame)])
    return data


def zmq_connected(options):
    """The dialogue with a peer that we dial. When it breaks off, so does the dialogue."""
    data, frames = zmq_data(options), (yield Next())
    peer = yield from zmq_dialled(options)
    while True:
        said = yield Available(peer.link)
        if said:
            yield Send(peer.feed(said), peer.link, True)
        for i, frame in enumerate(frames):
            topic, messages = data(frame)
            if messages and peer.wants(topic):
                yield Send(messages, peer.link)
            yield Done(i + 1)
        frames = yield Next(ZMQ_IDLE)


def zmq_dialled(options):
    """The peer, ready; a subscriber also has a moment to say what it wants. What breaks off here
    has not reached it: no tick was sent."""
    peer = ZmqPeer(options, (yield Dial()))
    pauses = [0.1] * int(ZMQ_JOIN / 0.1) if options.pattern == 'pub' else []
    try:
        yield Send(peer.greeting, peer.link, True)
        while peer.due or pauses and not peer.topics:
            said = yield Available(peer.link, ZMQ_IDLE if peer.due else pauses.pop())
            if said:
                yield Send(peer.feed(said), peer.link, True)
    except OSError as error:
        if isinstance(error, ConnectionError):
            error = OSError(error.errno, peer.unsaid(error.strerror))
        error.unreached = True
        raise error
    return peer


class ZmqBound:
    """The dialogue with all peers that dial us. Its methods are parts of it: generators of steps.

    peers: whose turn it is first. given: [(tick, peer)] of what went to one of them in the last
    seconds; when it breaks off, that goes to another. todo: ticks to be given away, oldest first.
    """

    def __init__(self, options, memory):
        self.options, self.memory, self.data = options, memory, zmq_data(options)
        self.push = options.pattern == 'push'
        self.peers, self.given, self.todo = [], [], []
        self.lack = 'no %s is connected' % ('PULL' if self.push else 'SUB')

    def dialogue(self):
        began = yield Now()
        yield from self.hear()
        while True:
            yield Wait(0)                       # to acknowledge what was sent has its own time
            frames = yield from self.batch(began)
            yield from self.hear()
            for i, frame in enumerate(frames):
                yield Wait(0)                   # one that does not read costs the others one time
                if self.push:
                    self.todo.append(frame)
                    yield from self.give()
                else:
                    yield from self.publish(frame)
                yield Done(i + 1)

    def batch(self, began):
        """The next ticks; [] when a peer says something. Without a peer ticks wait; those that
        subscribe have only a moment, at the beginning."""
        while True:
            lack = None
            if self.push and not any(peer.wants(b'') for peer in self.peers):
                lack = self.lack
            elif not self.push and not any(peer.topics for peer in self.peers):
                lack = '' if 0 <= (yield Now()) - began < ZMQ_JOIN else None
            try:
                frames = yield Next(ZMQ_JOIN if lack == '' else self.options.timeout, lack)
            except OSError as error:
                peer = [peer for peer in self.peers if peer.link is getattr(error, 'link', self)]
                if not peer:
                    raise
                yield from self.lose(peer[0], error)
                if self.todo:
                    yield Wait(0)
                    yield from self.give()
                continue
            self.forget()
            return frames

    def forget(self):
        """What was given away long ago has been read."""
        if self.given:
            since = self.given[-1][0].time_ms - RESENT
            self.given = [one for one in self.given[-MOST_RESENT:] if one[0].time_ms > since]

    def give(self):
        """Hands out what there is to do, a tick to each in turn."""
        while self.todo:
            ready = [peer for peer in self.peers if peer.wants(b'')]
            if not ready:
                raise Later(self.lack)
            self.peers.remove(ready[0])
            self.peers.append(ready[0])
            try:
                yield Send(self.data(self.todo[0])[1], ready[0].link)
                self.given.append((self.todo.pop(0), ready[0]))
            except OSError as error:
                yield from self.lose(ready[0], error)

    def publish(self, frame):
        """A tick to all that have subscribed to it."""
        topic, messages = self.data(frame)
        for peer in [peer for peer in self.peers if messages and peer.wants(topic)]:
            try:
                yield Send(messages, peer.link)
            except OSError as error:
                yield from self.lose(peer, error)

    def lose(self, peer, error):
        """One peer less. What it was given, and may not have read, goes to others; without others
        it is for delivery to see that it goes again."""
        self.peers.remove(peer)
        yield Close(peer.link)
        orphans = [frame for frame, who in self.given if who is peer]
        self.given = [one for one in self.given if one[1] is not peer]
        self.todo = orphans + self.todo
        if self.todo and not any(peer.wants(b'') for peer in self.peers):
            raise OSError(errno.ECONNRESET, error.strerror or str(error))   # and no pause for all
        if isinstance(error, Later) or error.errno in (errno.EPROTO, errno.ETIME):
            yield from self.note(peer, error)

    def note(self, peer, error):
        """Says who was turned away and why; not too often, for they come again and again."""
        now = yield Now()
        if not 0 <= now - self.memory.get('said', now - ZMQ_SAID) < ZMQ_SAID:
            self.memory['said'] = now
            slow = error.errno == errno.ETIME and not peer.due
            yield Say('turned %s away: %s' % (
                peer.link.name, 'it does not read' if slow else error.strerror or error))

    def hear(self):
        """Lets in who dials, and listens to what all have to say."""
        now = yield Now()
        for _ in range(ZMQ_PEERS):
            try:
                link = yield Accept()
            except OSError as error:
                if error.errno not in ZMQ_FULL:
                    raise
                yield Say('cannot let in who dials: %s' % error.strerror)
                link = yield Wait(ZMQ_JOIN)     # the others are served
            if link is None:
                break
            yield from self.admit(ZmqPeer(self.options, link, now))
        for peer in self.peers[:]:
            try:
                said = yield Available(peer.link)
                if said:
                    yield Send(peer.feed(said), peer.link, True)
                if peer.refusal:
                    raise Later(peer.refusal)
                if peer.due and not 0 <= now - peer.since <= self.options.timeout:
                    raise OSError(errno.ETIME, 'no handshake within the time allowed')
            except OSError as error:
                yield from self.lose(peer, error)
        yield from self.give()

    def admit(self, peer):
        """Greets a new peer. When there are too many, the first that is not ready has to go."""
        self.peers.append(peer)
        try:
            yield Send(peer.greeting, peer.link, True)
        except OSError as error:
            yield from self.lose(peer, error)
        if len(self.peers) > ZMQ_PEERS:
            first = [peer for peer in self.peers if peer.due][0]
            yield from self.lose(first, Later('more than %d peers' % ZMQ_PEERS))


def zeromq_link(options):
    """Where the peer is, or where peers dial us."""
    host, number = host_and_port(options.endpoint.partition('://')[2])
    if host == '*' and not options.bind:
        raise ValueError('found %s without "bind", need a host to connect to' % (
            json_text(options.endpoint)))
    for name in ('username', 'password'):
        if len(utf8(options[name])) > 255:
            raise ValueError('found a %s of %d bytes, need 255 at most' % (
                name, len(utf8(options[name]))))
    check_messages(options)
    if options.bind:
        return ('bind', host, number, options.pattern == 'push')
    return ('tcp', host, number, None)


@emitter('zeromq', 'ZeroMQ: PUSH or PUB, to sockets of libzmq 4 and what speaks like it', [
    Option('endpoint', zmq_endpoint, 'tcp://127.0.0.1:5556', 'Where the PULL or SUB is'),
    Option('pattern', choice('push', 'pub'), 'push',
           'push: each tick to one PULL; pub: to every SUB that subscribed, behind a topic'),
    Option('bind', boolean, False,
           'Let them connect to us at the endpoint; "tcp://*:5556" is every address of this host'),
    Option('topic', template, 'statbadger', 'With "pattern": "pub": what they subscribe to'),
] + LOGIN_OPTIONS + MESSAGE_OPTIONS, 'sent', zeromq_link)
def zeromq(options, memory):
    """A message per tick (or point). ZeroMQ acknowledges nothing in either pattern."""
    return ZmqBound(options, memory).dialogue() if options.bind else zmq_connected(options)


# -- sqs: Amazon SQS, JSON 1.0 (docs.aws.amazon.com, "Amazon SQS API Reference") -----------------

SQS_EXAMPLE = 'https://sqs.eu-west-1.amazonaws.com/123456789012/stats'
SQS_ENTRIES = 10                # messages in one request
SQS_BYTES = 262144  # in all of them: the limit before 2025, which old queues still have
SQS_CLOCK = 240  # seconds that our clock may be wrong: from 300 on SQS refuses what is signed by it
SQS_NAME = 128                  # characters of a group, and of what tells messages apart
SQS_UNFIT = str.maketrans(dict.fromkeys(
    [code for code in range(32) if chr(code) not in '\t\n\r'] + [0xfffe, 0xffff], '_'))

AWS_BEGINS = 1152576000         # there was no AWS before 2006-07-11; at twice as much this is old
AWS_EARLY = 600                 # seconds before their end that credentials are asked for anew
AWS_PATIENCE = 2                # seconds for one answer of a service that hands them out
AWS_CONTAINER = 'http://169.254.170.2'
AWS_INSTANCE, AWS_INSTANCE_IPV6 = 'http://169.254.169.254', 'http://[fd00:ec2::254]'
AWS_ENVIRON = (
    'AWS_REGION', 'AWS_DEFAULT_REGION', 'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY',
    'AWS_SESSION_TOKEN', 'AWS_SHARED_CREDENTIALS_FILE', 'AWS_PROFILE', 'HOME',
    'AWS_CONTAINER_CREDENTIALS_RELATIVE_URI', 'AWS_CONTAINER_CREDENTIALS_FULL_URI',
    'AWS_CONTAINER_AUTHORIZATION_TOKEN', 'AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE',
    'AWS_WEB_IDENTITY_TOKEN_FILE', 'AWS_EC2_METADATA_DISABLED', 'AWS_EC2_METADATA_SERVICE_ENDPOINT',
    'AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE')

# What a code means, by how it begins; the first that fits. What a sender is to blame for may be no
# fault of the data: a key that was disabled, too many requests.
SQS_BUSY, SQS_EXPIRED, SQS_LOGIN, SQS_MISSING, SQS_LONG, SQS_BAD = range(6)
SQS_CODES = (
    (SQS_BUSY, 'Throttl RequestThrottl KmsThrottl KMS.Throttl OverLimit ServiceUnavailable '
               'InternalError InternalFailure RequestTimeout RequestAborted'),
    (SQS_EXPIRED, 'ExpiredToken'),
    (SQS_LOGIN, 'AccessDenied NotAuthorized Unauthorized AuthFailure InvalidClientTokenId '
                'InvalidAccessKeyId UnrecognizedClient SignatureDoesNotMatch InvalidSignature '
                'IncompleteSignature MissingAuthenticationToken InvalidSecurity OptInRequired '
                'RequestExpired Kms KMS.'),
    (SQS_MISSING, 'QueueDoesNotExist NonExistentQueue QueueDeletedRecently InvalidAddress '
                  'UnknownOperation InvalidAction'),
    (SQS_LONG, 'BatchRequestTooLong RequestEntityTooLarge TooManyEntriesInBatchRequest'),
    (SQS_BAD, 'InvalidMessageContents InvalidParameter InvalidAttribute MissingParameter '
              'InvalidBatchEntryId'),
)


def sqs_meaning(code):
    """One of the SQS_... above; None for a code that is not among them."""
    name = code.rpartition('#')[2].partition(':')[0]
    if name.startswith('AWS.SimpleQueueService.'):
        name = name[len('AWS.SimpleQueueService.'):]
    for what, words in SQS_CODES:
        if any(name.startswith(word) for word in words.split()):
            return what
    return None


def sqs_error(status, headers, body):
    """(one of SQS_..., or None; the code and what else was said) of an answer that is no success:
    {"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "..."}, or XML, as some have it."""
    text = body.decode('utf-8', 'replace')
    try:
        given = json_object(body, '')
    except OSError:
        code, words = [text.partition('<%s>' % tag)[2].partition('</%s>' % tag)[0]
                       for tag in ('Code', 'Message')]
        given = {'__type': code, 'message': words or ' '.join(text.split())}
    code = given.get('__type') or headers.get('x-amzn-query-error') or ''
    words = str(given.get('message') or given.get('Message') or '').strip().split('\n')[0]
    name = str(code).rpartition('#')[2].partition(';')[0]
    what = sqs_meaning(name)
    if what is None:
        what = {401: SQS_LOGIN, 403: SQS_LOGIN, 407: SQS_LOGIN, 404: SQS_MISSING, 405: SQS_MISSING,
                408: SQS_BUSY, 413: SQS_LONG, 425: SQS_BUSY, 429: SQS_BUSY}.get(status)
    return what, ': '.join([word for word in ('HTTP %d' % status, name, words) if word])


def sqs_later(what, reason, wait=0):
    """The Later of what is no fault of the data, as far as one knows."""
    pause = {SQS_EXPIRED: MISSING_PAUSE, SQS_LOGIN: CREDENTIALS_PAUSE, SQS_MISSING: MISSING_PAUSE}
    return Later(reason, pause.get(what, wait), what is None or 'Internal' in reason)


def sqs_results(reply, name):
    """The objects in a list of the reply; OSError when that is not what it is."""
    results = reply.get(name) or []
    if not isinstance(results, list) or not all(
            isinstance(one, dict) and isinstance(one.get('Id'), str) for one in results):
        raise OSError(errno.EPROTO, 'what SQS answers makes no sense')
    return results


def sqs_url(value):
    """The URL of a queue, less a last slash."""
    try:
        if not url_parts(url(value))[4].strip('/'):
            raise ValueError
    except ValueError:
        raise ValueError('the URL of a queue, such as "%s"' % SQS_EXAMPLE)
    return value.rstrip('/')


sqs_url.hides = without_login


def sqs_region(options):
    """`eu-west-1`: as configured, as the host says (`sqs.eu-west-1...`, `eu-west-1.queue...`), or
    as the environment says; '' when nobody does."""
    if options.region:
        return options.region
    words = url_parts(options.queue_url)[2].split('.')
    pairs = list(zip(words, words[1:]))
    for name in [after for word, after in pairs if word in ('sqs', 'sqs-fips')] + [
            before for before, word in pairs if word == 'queue']:
        if '-' in name and name[-1:].isdecimal():
            return name
    return options.environ.get('AWS_REGION') or options.environ.get('AWS_DEFAULT_REGION', '')


def sqs_link(options):
    """The host of the queue: what is asked for is in the request."""
    if not options.queue_url:
        raise ValueError('found no queue_url, need one such as "%s"' % SQS_EXAMPLE)
    if bool(options.access_key) != bool(options.secret_key):
        raise ValueError('found one of access_key and secret_key, need both or none')
    if options.session_token and not options.access_key:
        raise ValueError('found session_token without access_key, need both')
    for name in ('access_key', 'session_token'):
        if not is_word(options[name]):
            raise ValueError('found blanks or other odd characters in %s, need none' % name)
    region = sqs_region(options)
    if not region:
        raise ValueError('found no region in the host of queue_url, need "region" or AWS_REGION')
    if not is_word(region) or '/' in region:
        raise ValueError('found region %s, need one such as "eu-west-1"' % json_text(region))
    check_messages(options)
    try:
        import hashlib
    except ImportError as error:
        raise lacking(error)
    return http_link(options, '/'.join(options.queue_url.split('/')[:3]))


def is_word(text):
    """Whether all of it can be seen, in ASCII: what a header takes as it is."""
    return all('!' <= c <= '~' for c in text)


def json_object(data, whose):
    """The dict that a reply holds; OSError when it holds none."""
    value = json_reply(data)
    if not isinstance(value, dict):
        raise OSError(errno.EPROTO, 'what %s answers is no JSON object' % whose)
    return value


class AwsKeys:
    """What requests are signed with. token: '' for keys that last; ends: Unix seconds, or 0."""
    __slots__ = ('access', 'secret', 'token', 'ends')

    def __init__(self, whose, access, secret, token, ends=0):
        texts = [text if isinstance(text, str) else '' for text in (access, secret, token)]
        self.access, self.secret, self.token = texts
        self.ends = ends
        if not (self.access and self.secret and is_word(self.access + self.token)):
            raise OSError(errno.EPROTO, '%s has no credentials that can be used' % whose)


class Aws:
    """What outlives the dialogues of one emitter: the keys in use, when to ask for others, how many
    seconds the clock of AWS is ahead of ours, and what may not be logged. Its methods are parts of
    a dialogue: generators of steps."""

    def __init__(self, secrets):
        self.keys, self.asking, self.ahead, self.secrets = None, 0, 0, secrets
        self.given = self.options = None

    def take(self, options):
        """The options of the dialogue that begins: keys of others than before are forgotten."""
        given = options.access_key, options.secret_key, options.session_token, options.environ
        if self.given != given:
            self.given, self.keys, self.asking = given, None, 0
        self.options = options

    def now(self):
        return (yield Now()) + self.ahead

    def current(self):
        """The keys to use now. They are asked for anew before they end; those at hand stay while
        there are no others."""
        now = yield from self.now()
        if now >= self.asking:
            try:
                self.asking = now + MISSING_PAUSE
                self.keys = yield from self.fetch()
                self.asking = max(self.keys.ends - AWS_EARLY, now + MISSING_PAUSE)
                if not self.keys.ends:
                    self.asking = float('inf')
                self.hide(self.keys.secret, self.keys.token)
            except OSError as error:
                if self.keys is None or 0 < self.keys.ends <= now:
                    self.asking = 0
                    raise Later('no credentials: %s' % (error.strerror or error), MISSING_PAUSE)
        return self.keys

    def hide(self, *texts):
        """Keeps the texts, and those before them, out of the log."""
        self.secrets[:] = [text for text in texts if text] + [
            text for text in self.secrets if text not in texts][:6]

    def fetch(self):
        """Keys of the first place that has some: the options, the environment, the user's file of
        them, the container, the instance."""
        options, environ = self.options, self.options.environ
        if options.access_key:
            return AwsKeys('', options.access_key, options.secret_key, options.session_token)
        if environ.get('AWS_ACCESS_KEY_ID') and environ.get('AWS_SECRET_ACCESS_KEY'):
            return AwsKeys('the environment', environ['AWS_ACCESS_KEY_ID'],
                           environ['AWS_SECRET_ACCESS_KEY'], environ.get('AWS_SESSION_TOKEN', ''))
        keys, why = yield from self.from_file()
        if keys:
            return keys
        if environ.get('AWS_CONTAINER_CREDENTIALS_RELATIVE_URI'):
            where = AWS_CONTAINER + environ['AWS_CONTAINER_CREDENTIALS_RELATIVE_URI']
            return (yield from self.from_container(where))
        if environ.get('AWS_CONTAINER_CREDENTIALS_FULL_URI'):
            where = environ['AWS_CONTAINER_CREDENTIALS_FULL_URI']
            return (yield from self.from_container(where))
        why = 'none in the options and the environment, %s, ' % why
        if environ.get('AWS_EC2_METADATA_DISABLED', '').lower() == 'true':
            raise OSError(why + 'and AWS_EC2_METADATA_DISABLED is true')
        if environ.get('AWS_WEB_IDENTITY_TOKEN_FILE'):      # the node's role would be another one
            raise OSError(why + 'and AWS_WEB_IDENTITY_TOKEN_FILE is of no use here')
        try:
            return (yield from self.from_instance())
        except OSError as error:
            raise OSError('%s%s' % (why, error.strerror or error))

    def from_file(self):
        """(keys, '') of the profile in ~/.aws/credentials; (None, why not) when it has none. A
        profile that was asked for by name must have some."""
        environ = self.options.environ
        profile = environ.get('AWS_PROFILE') or 'default'
        path = environ.get('AWS_SHARED_CREDENTIALS_FILE') or '~/.aws/credentials'
        if path.startswith('~/'):
            path = environ.get('HOME', '') + path[1:]
        try:
            found = aws_profile((yield File(path)).decode('utf-8', 'replace'), profile)
            why = 'no keys of a profile %s in %s' % (profile, path)
        except OSError as error:
            found, why = {}, '%s: %s' % (path, error.strerror or error)
        if found.get('aws_access_key_id'):
            return AwsKeys('the profile %s in %s' % (profile, path), found['aws_access_key_id'],
                           found.get('aws_secret_access_key'),
                           found.get('aws_session_token')), ''
        if environ.get('AWS_PROFILE'):
            raise OSError(why)
        return None, why

    def from_container(self, where):
        """Those of the task or pod (docs.aws.amazon.com/sdkref, "Container credential
        provider")."""
        environ, headers = self.options.environ, {}
        if not aws_may_ask(where):
            raise OSError('the URL of the container\'s credentials is neither https nor at an '
                          'address of this host, 169.254.* or fd00:ec2::*')
        token = environ.get('AWS_CONTAINER_AUTHORIZATION_TOKEN', '')
        if environ.get('AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE'):
            token = yield File(environ['AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE'])
            token = token.decode('ascii', 'replace').strip()
        if any(not ' ' <= c <= '~' for c in token):
            raise OSError('the token for the container\'s credentials is no text for a header')
        if token:
            self.hide(token)
            headers['Authorization'] = token
        return aws_handed((yield from self.ask('GET', where, headers)), 'the container')

    def from_instance(self):
        """Those of the EC2 instance's role (docs.aws.amazon.com/AWSEC2, "Use IMDSv2")."""
        environ = self.options.environ
        mode = environ.get('AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE', '').lower()
        where = environ.get('AWS_EC2_METADATA_SERVICE_ENDPOINT') or (
            AWS_INSTANCE_IPV6 if mode == 'ipv6' else AWS_INSTANCE)
        where = where.rstrip('/') + '/latest/'
        token = yield from self.ask('PUT', where + 'api/token',
                                    {'X-aws-ec2-metadata-token-ttl-seconds': '21600'})
        headers = {'X-aws-ec2-metadata-token': token}
        if not is_word(token):
            raise OSError(errno.EPROTO, 'the instance gives a token that is none')
        self.hide(token)
        where += 'meta-data/iam/security-credentials/'
        role = (yield from self.ask('GET', where, headers)).strip().split('\n')[0]
        if not role or not is_word(role) or '/' in role:
            raise OSError('the instance has no role')
        return aws_handed((yield from self.ask('GET', where + role, headers)), 'the instance')

    def ask(self, method, where, headers):
        """The text of an answer of a service that hands credentials out."""
        base, path = '/'.join(where.split('/')[:3]), '/' + '/'.join(where.split('/')[3:])
        try:
            url(base)
            if not is_word(path):
                raise ValueError
        except ValueError:
            raise OSError('%s is no URL to ask for credentials' % without_login(base))
        try:
            link = yield Dial(url=base, within=AWS_PATIENCE)
            status, _, body = yield Request(method, path, headers, None, link)
            yield Close(link)
        except OSError as error:
            raise OSError('%s: %s' % (base, error.strerror or error))
        if status != 200:
            raise OSError('%s: HTTP %d' % (base, status))
        return body.decode('utf-8', 'replace')

    def refused(self, headers):
        """AWS does not take what was signed: the keys are looked at anew. Gives what is to be said
        when it was our clock that is wrong, and that of AWS is used from now on; else ''."""
        self.asking = 0
        now, theirs = (yield Now()), http_date(headers.get('date', ''))
        if not AWS_BEGINS < theirs < 2 * AWS_BEGINS or abs(theirs - now - self.ahead) < SQS_CLOCK:
            return ''
        self.ahead = theirs - now if abs(theirs - now) >= SQS_CLOCK else 0
        if not self.ahead:
            return 'the clock here is right again'
        return 'the clock here says %s and that of AWS %s, by which requests are signed now' % (
            aws_stamp(now), aws_stamp(theirs))


def aws_profile(text, profile):
    """{key in lower case: value} of a section of an INI file; {} without it."""
    found, inside = {}, False
    for line in text.splitlines():
        key, sign, value = line.partition('=')
        if line.startswith('['):
            inside = line.partition(']')[0][1:].strip() == profile
        elif inside and sign and line[0] not in '#; \t':
            found[key.strip().lower()] = value.strip()
    return found


def aws_may_ask(where):
    """Whether credentials may be asked for at that URL: over https, or on this host and the links
    of AWS beside it, as its own libraries have it."""
    try:
        scheme, _, host, _, _ = url_parts('/'.join(where.split('/')[:3]))
    except ValueError:
        return False
    parts = host.split('.')
    if len(parts) == 4 and all(part.isdecimal() for part in parts):
        return scheme == 'https' or parts[0] == '127' or parts[:2] == ['169', '254']
    near = host in ('localhost', '::1') or (host.startswith('fd00:ec2::')
                                            and not host[10:].strip('0123456789abcdef:'))
    return near or scheme == 'https'


def aws_handed(text, whose):
    """The AwsKeys in a reply: {"AccessKeyId": ..., "SecretAccessKey": ..., "Token": ...,
    "Expiration": "2023-11-14T22:13:20Z"}."""
    given = json_object(utf8(text), whose)
    if given.get('Code', 'Success') != 'Success':
        raise OSError('%s gives no credentials: %s' % (whose, given['Code']))
    return AwsKeys(whose, given.get('AccessKeyId'), given.get('SecretAccessKey'),
                   given.get('Token'), aws_time(str(given.get('Expiration'))))


class SqsEntry:
    """One message: its place, what is said of it in a request behind its Id, and what shows that
    SQS has stored it.

    key: (run, seq, number in its tick); index: that of its tick in the batch; done: how many ticks
    are done with it.
    """
    __slots__ = ('frame', 'key', 'index', 'done', 'size', 'md5', 'text')

    def __init__(self, options, frame, number, body, index, last):
        self.frame, self.key = frame, (frame.run, frame.seq, number)
        self.index, self.done = index, index + last
        body = body.decode().translate(SQS_UNFIT)
        data = body.encode()
        self.size, self.md5 = len(data), md5_text(data)
        self.text = '"MessageBody":%s' % long_json_text(body)
        if options.queue_url.endswith('.fifo'):
            import hashlib
            self.text += ',"MessageGroupId":%s,"MessageDeduplicationId":"%s-%d-%d-%s"' % (
                json_text(sqs_group(options.group, frame.identity)),
                frame.run, frame.seq, number, hashlib.sha256(data).hexdigest()[:16])


def sqs_group(template, identity):
    """The template filled in; what may not stand in a group becomes _."""
    name = ''.join([c if '!' <= c <= '~' else '_' for c in filled(template, identity)])
    return name[:SQS_NAME] or '_'


class Sqs:
    """One dialogue with a queue. Its methods are parts of that dialogue: generators of steps.

    dealt: the messages of ticks under way that are stored or refused. most: bytes of a request that
    the queue takes. Both outlive it, as aws does.
    """

    def __init__(self, options, memory):
        self.options, self.memory = options, memory
        self.aws = memory.setdefault('aws', Aws(memory.setdefault('secrets', [])))
        self.dealt = memory.setdefault(shape_of(options), set())
        self.host = options.queue_url.split('/')[2]
        self.region, self.fifo = sqs_region(options), options.queue_url.endswith('.fifo')
        self.aws.take(options)

    def deliver(self, frames, encode):
        """Stores the messages of the frames in as few requests as they fit in."""
        offered, batch = set((frame.run, frame.seq) for frame in frames), []
        self.dealt.intersection_update([key for key in self.dealt if key[:2] in offered])
        for i, frame in enumerate(frames):
            bodies = encode(frame)
            for n, body in enumerate(bodies):
                if (frame.run, frame.seq, n) in self.dealt:
                    continue                    # before the last dialogue broke off
                entry = SqsEntry(self.options, frame, n, body, i, n == len(bodies) - 1)
                if entry.size > self.options.max_bytes:
                    yield from self.reject(entry, 'it has %d bytes, and "max_bytes" is %d' % (
                        entry.size, self.options.max_bytes))
                    continue
                if not self.fits(batch + [entry]):
                    yield from self.store(batch)
                    batch = []
                batch.append(entry)
        if batch:
            yield from self.store(batch)
        yield Done(len(frames))

    def fits(self, batch):
        """Whether these may go in one request. In a FIFO queue only those of one tick: an entry
        that fails goes again, and later ticks must not be there before it."""
        most = min(self.options.max_bytes, self.memory.get('most', self.options.max_bytes))
        return len(batch) == 1 or (
            len(batch) <= SQS_ENTRIES and sum(entry.size for entry in batch) <= most
            and not (self.fifo and batch[0].frame is not batch[-1].frame))

    def reject(self, entry, reason):
        self.dealt.add(entry.key)
        yield Reject(entry.frame, reason, int(self.options.format == 'flat'))

    def store(self, batch):
        """Sends a request. What is too long or refused goes in halves, and a message that is so
        alone is rejected."""
        what, reason, reply = SQS_LONG, '', None
        if self.fits(batch):
            what, reason, reply = yield from self.exchange(batch)
            if what == SQS_LONG:
                self.memory['most'] = sum(entry.size for entry in batch) - 1
        if what is None:
            yield from self.settle(batch, reply)
        elif len(batch) == 1:
            yield from self.reject(batch[0], reason)
        else:
            for half in batch[:len(batch) // 2], batch[len(batch) // 2:]:
                yield from self.store(half)
            return
        last = batch[-1]
        yield Done(last.done)
        if last.done != batch[0].index:         # a tick is done: its messages are not asked for
            self.dealt.difference_update([key for key in self.dealt if key[0] == last.key[0]
                                          and key[1] < last.key[1] + (last.done > last.index)])

    def exchange(self, batch):
        """(None, '', reply) of a request that was taken; (SQS_LONG or SQS_BAD, reason, None) of one
        that was refused. Once more at once, when the credentials have ended or our clock is
        wrong."""
        entries = ','.join(['{"Id":"%d",%s}' % (i, entry.text) for i, entry in enumerate(batch)])
        body = ('{"QueueUrl":%s,"Entries":[%s]}' % (
            json_text(self.options.queue_url), entries)).encode()
        for again in (True, False):
            keys = yield from self.aws.current()
            yield Wait(0)                       # each exchange has its own time
            headers = self.signed(keys, aws_stamp((yield from self.aws.now())), body)
            status, headers, reply = yield Request('POST', '/', headers, body)
            if 200 <= status < 300:
                return None, '', json_object(reply, 'SQS')
            what, reason = sqs_error(status, headers, reply)
            if what in (SQS_EXPIRED, SQS_LOGIN):
                wrong_clock = yield from self.aws.refused(headers)
                if wrong_clock:
                    yield Say(wrong_clock)
                if again and (wrong_clock or what == SQS_EXPIRED):
                    continue
            if what in (SQS_LONG, SQS_BAD):
                return what, reason, None
            now = yield Now()
            if what is None and status // 100 != 4:
                http_outcome(status, headers, reply, now)
            raise sqs_later(what, reason, retry_after(headers.get('retry-after', ''), now))

    def signed(self, keys, stamp, body):
        """The headers of a request at that time, Authorization among them."""
        headers = {'Host': self.host, 'Content-Type': 'application/x-amz-json-1.0',
                   'X-Amz-Date': stamp, 'X-Amz-Target': 'AmazonSQS.SendMessageBatch'}
        if keys.token:
            headers['X-Amz-Security-Token'] = keys.token
        headers['Authorization'] = aws_authorization(keys.access, keys.secret, self.region, 'sqs',
                                                     stamp, headers, body)
        return dict(headers, **{'User-Agent': 'statbadger/' + VERSION})

    def settle(self, batch, reply):
        """Takes note of what became of each entry. Raises Later when one is not stored that may
        be, all ticks before it done; it alone goes again."""
        waiting, trouble = dict((str(i), entry) for i, entry in enumerate(batch)), []
        for result in sqs_results(reply, 'Successful'):
            entry = waiting.pop(result.get('Id'), None)
            md5 = result.get('MD5OfMessageBody')
            if entry and entry.md5 and md5 and md5 != entry.md5:
                trouble.append((entry.index, Later('SQS has stored something else than was sent: '
                                                   'its MD5 differs', 0, True)))
            elif entry:
                self.dealt.add(entry.key)
        for result in sqs_results(reply, 'Failed'):
            entry = waiting.pop(result.get('Id'), None)
            if not entry:
                continue
            reason = '%s: %s' % (result.get('Code'), result.get('Message'))
            what = sqs_meaning(str(result.get('Code')))
            if what in (SQS_LONG, SQS_BAD) or what is None and result.get('SenderFault') is True:
                yield from self.reject(entry, reason)
            else:
                trouble.append((entry.index, sqs_later(what, reason)))
        for entry in waiting.values():
            trouble.append((entry.index, OSError(errno.EPROTO, 'SQS does not say what became of a '
                                                               'message')))
        if trouble:
            first = min(index for index, error in trouble)
            if first:
                yield Done(first)
            raise trouble[0][1]


@emitter('sqs', 'Amazon SQS, and what speaks like it', [
    Option('queue_url', sqs_url, '', 'URL of the queue, such as %s; needed' % SQS_EXAMPLE),
    Option('region', text, '', 'Its region; "" = as its host says, else AWS_REGION'),
    Option('access_key', text, '',
           'Id of the key that signs; "" = AWS_ACCESS_KEY_ID, ~/.aws/credentials, or the role of '
           'the container or the instance'),
    Option('secret_key', secret, '', 'The key itself'),
    Option('session_token', secret, '', 'What goes with keys that do not last'),
    Option('group', template, '{hostname}',
           'Message group, for a FIFO queue, which keeps the order within it'),
    Option('max_bytes', whole(1024, 1048576), SQS_BYTES,
           'Most bytes in a message, and in all of a request; SQS takes 1048576 by now'),
] + MESSAGE_OPTIONS + PROXY_OPTIONS, 'acknowledged', sqs_link, AWS_ENVIRON)
def sqs(options, memory):
    """A message per tick (or point), up to ten in a request. What SQS did not store of a request
    goes again alone; in a FIFO queue what is repeated is not stored twice."""
    dialogue, encode = Sqs(options, memory), messages(options)
    while True:
        frames = yield Next()
        yield from dialogue.deliver(frames, encode)


# -- avro: files (avro.apache.org, specification 1.11, "Object Container Files") ------------------

MOST_BLOCK = 1 << 18                            # bytes of points in a block, before compression
MOST_HEADER = 1 << 16
TAILS = 1 << 16, 1 << 19, 1 << 22               # bytes that are looked at to find the last block


class AvroFile:
    """The file that points go to. It holds whole blocks only: see Open in section 1 for what breaks
    off here, and mend() for what a program that was killed left behind.

    memory['unsure']: a write has failed and may have been done all the same.
    """

    def __init__(self, options, memory):
        self.options, self.memory, self.points = options, memory, AvroPoints(options)
        self.begin = avro_header(AVRO_SCHEMA, options.codec)
        room = options.max_bytes - len(self.begin) - 3 * AVRO_MARK  # numbers and marks included
        self.most = min(MOST_BLOCK, max(1, room)) if options.max_bytes else MOST_BLOCK
        self.folder = fixed_folder(options.path)
        self.link = self.path = self.identity = None
        self.mark, self.size, self.start = b'', 0, 0

    def deliver(self, frames):
        """As many ticks as fit in a block go together, and are on the disk before the next ones."""
        done = 0
        for n, path, records in self.units(frames):
            if records:
                yield from self.store(path, records)
            done += n
            yield Done(done)

    def units(self, frames):
        """(number of ticks, path, their records) of what is written at once."""
        n, size, last, records = 0, 0, None, []
        for frame in frames:
            path = file_name(self.options.path, frame.time_ms, frame.identity)
            more = self.points.records(frame)
            length = sum(map(len, more))
            if n and (path != last or size + length > self.most):
                yield n, last, records
                n, size, records = 0, 0, []
            self.identity = frame.identity
            n, size, last = n + 1, size + length, path
            records += more
        yield n, last, records

    def store(self, path, records):
        yield from self.leave_unless_ours(path)
        if self.link is None:
            yield from self.take(path)
        data = self.blocks(records)
        if not (yield from self.has(data)):
            if self.is_full(len(data)):
                yield from self.put_aside()
                yield from self.take(path)
                data = self.blocks(records)
            self.memory['unsure'] = True
            yield Send(data, self.link)
            self.size += len(data)
        yield Sync(self.link)
        self.memory['unsure'] = False

    def is_full(self, more):
        """Whether so many bytes more would be too many; an empty file takes a tick of any size."""
        most = self.options.max_bytes
        return most and self.size > self.start and self.size + more > most

    def blocks(self, records):
        """The bytes of the records: one block, or more when a single tick is large."""
        n = max(1, -(-sum(map(len, records)) // self.most))
        each = -(-len(records) // n)
        pieces = [records[i:i + each] for i in range(0, len(records), each)]
        return b''.join([avro_block(len(piece), b''.join(piece), self.options.codec, self.mark)
                         for piece in pieces])

    def has(self, data):
        """Whether a write that failed was done all the same: the file ends in its bytes."""
        if not self.memory.get('unsure') or self.size < len(data):
            return False
        return (yield Part(self.size - len(data), len(data), self.link)) == data

    def leave_unless_ours(self, path):
        """Closes a file that is another one's now: its time is over, it was moved away, deleted, or
        changed by somebody."""
        if self.link is None:
            return
        try:
            if path == self.path and (yield Size(self.link)) == self.size:
                return
            yield Close(self.link)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        self.link = None

    def take(self, path):
        """Opens the file, whatever is there; what cannot be continued is put aside."""
        self.path = path
        for _ in range(3):
            self.link = yield Open(path, self.folder)
            self.size = yield Size(self.link)
            why = yield from self.examine()
            if not why:
                return (yield from self.thin_out())
            yield from self.put_aside(why)
        raise Later('%s: somebody else puts files there' % path, MISSING_PAUSE)

    def examine(self):
        """Prepares the file for more blocks. Gives why it cannot be continued, or ''. Later: it is
        none of ours, and stays where it is."""
        head = yield Part(0, MOST_HEADER, self.link)
        if self.is_empty(head):
            return (yield from self.begin_anew())
        try:
            found, self.mark, self.start = avro_header_parts(head)
        except ValueError:
            if not head.startswith(AVRO_MAGIC):
                raise Later('%s: is no Avro file and left alone, need another path' % self.path,
                            MISSING_PAUSE)
            return 'its header is damaged'
        if found.get(b'avro.schema') != AVRO_SCHEMA.encode():
            return 'its schema is another one'
        if found.get(b'avro.codec', b'null') != self.options.codec.encode():
            return 'its codec is another one'
        return (yield from self.mend())

    def is_empty(self, head):
        """Whether there is nothing in it, or what a loss of power left of a header."""
        return len(head) == self.size < len(self.begin) + AVRO_MARK and (
            not head.strip(b'\0') or head[:len(self.begin)] == self.begin[:len(head)])

    def begin_anew(self):
        if self.size:
            yield Truncate(0, self.link)
        self.mark = yield Random(AVRO_MARK)
        header = self.begin + self.mark
        yield Send(header, self.link)
        self.size = self.start = len(header)
        return ''

    def mend(self):
        """Cuts off a block that was not written to its end. Gives why that cannot be done, or ''.
        Only the file's end is looked at, for a file may be very large."""
        for most in TAILS:
            at = max(self.size - most, self.start - AVRO_MARK)
            tail = yield Part(at, self.size - at, self.link)
            end = avro_end(tail, self.mark, self.options.codec, avro_skip_point)
            if end is not None:
                break
        else:
            return 'its end is damaged'
        if at + end < self.size:
            yield Say('%s: cut off %d bytes of a block that was not written to its end' % (
                self.path, self.size - at - end))
            self.size = at + end
            yield Truncate(self.size, self.link)
        return ''

    def put_aside(self, why=''):
        """The file becomes PATH.N, N one more than the largest there is."""
        folder, name = os.path.split(self.path)
        found = yield Files(folder, name + '.')
        numbers = [file_number(other) for other, when in found]
        path = '%s.%d' % (self.path, max(numbers + [0]) + 1)
        yield Rename(path, self.link)
        yield Close(self.link)
        self.link = None
        if why:
            yield Say('%s: %s, so it is %s now' % (self.path, why, path))

    def thin_out(self):
        """Removes the oldest closed files, all but those that are to be kept."""
        if not self.options.keep:
            return
        try:
            found = yield from self.closed(*file_globs(self.options.path, self.identity))
            for when, number, path in sorted(found)[:-self.options.keep]:
                yield Remove(path)
        except OSError as error:                # no reason to stop: the points have their place
            yield Say('cannot remove closed files: %s' % (error.strerror or error))

    def closed(self, folder, globs):
        """[(ns of the last change, N, path)] of files other than the one that is written; of two of
        one moment the one without a number is the newer one."""
        out = []
        for name, when in (yield Files(folder, globs[0].partition('[')[0])):
            path, number = os.path.join(folder, name), file_number(name)
            if len(globs) > 1:
                if when is None and glob(globs[0], name):
                    out += yield from self.closed(path, globs[1:])
            elif when is not None and path != self.path:
                if number and glob(globs[0], name.rpartition('.')[0]):
                    out.append((when, number, path))
                elif glob(globs[0], name):
                    out.append((when, 1 << 64, path))
        return out


def file_number(name):
    """N of `NAME.N`, or 0."""
    digits = name.rpartition('.')[2]
    return int(digits) if digits.isdecimal() and len(digits) < 10 else 0


def avro_link(options):
    if options.codec == 'deflate':
        try:
            import zlib
        except ImportError as error:
            raise lacking(error)
    return ('file', options.path)


@emitter('avro', 'Avro object container files, a record per point', [
    Option('path', file_template, 'statbadger-%Y%m%d.avro',
           'File, its time in UTC; may hold {hostname} and the like'),
    Option('codec', choice('null', 'deflate'), 'null', 'Compression'),
    Option('max_bytes', whole(0, 1 << 62), 0,
           'A file that would grow larger is closed and becomes PATH.1, PATH.2 ...; 0 = no limit'),
    Option('keep', whole(0, 1000000), 0, 'Most closed files, the oldest are removed; 0 = all stay'),
], 'acknowledged', avro_link)
def avro(options, memory):
    """A tick is acknowledged once it is on the disk."""
    file = AvroFile(options, memory)
    while True:
        frames = yield Next()
        yield from file.deliver(frames)


# == 9 TRANSPORTS: sockets, pipes, files, the log; who performs the steps of a dialogue =========

TIOCOUTQ = 0x5411  # bytes that the peer's kernel has not acknowledged; elsewhere an error
FOUR_BYTES = b'\0\0\0\0'
TCP_USER_TIMEOUT = 18  # ms that sent bytes may go unacknowledged before the connection breaks
MOST_LINE = 65536
FAREWELL = 0.5  # seconds for a peer to close after we have: some never do
BACKLOG = 64                    # who dials while we are busy
PIPE_BUF = 4096  # a pipe that poll() calls writable takes so many bytes without blocking
MOST_REPLY = 65536              # bytes of an HTTP reply that are read
MOST_PIECE = 1 << 18            # bytes that TLS encrypts at a time: they are held twice meanwhile


class Closed(ConnectionResetError):
    """The peer has closed the connection in good order. told: while nothing was under way, and
    delivery knows of it."""

    def __init__(self, told=False):
        ConnectionResetError.__init__(self, errno.ECONNRESET, 'closed by the peer')
        self.told = told


def left(deadline):
    """Seconds until the deadline; raises ETIME when it has passed, which no socket does."""
    rest = deadline - time.monotonic()
    if rest <= 0:
        raise OSError(errno.ETIME, 'no end within the time allowed')
    return rest


def wait_for(fd, event, deadline):
    """Returns when the descriptor is ready, an error on it counts as ready too; raises at the
    deadline."""
    poll = select.poll()
    poll.register(fd, event)
    while not poll.poll(left(deadline) * 1000 + 1):
        pass


def tcp_options(sock, timeout):
    """Nothing is held back, and a peer that is gone is noticed within so many seconds."""
    sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)
    try:
        sock.setsockopt(_socket.IPPROTO_TCP, TCP_USER_TIMEOUT, int(timeout * 1000))
    except OSError:
        pass                                    # before 2.6.37: the deadlines of ours still hold


class StreamLink:
    """Owns one connection, over TCP or to a unix socket, never blocking; close() gives it back.
    sent: bytes handed to the kernel so far; unheard: whether the last word was ours, and no answer
    to it has come; spoken: bytes that came in while nobody listened."""
    buffer, sock, fd, sent, spoken, unheard = b'', None, -1, 0, 0, False

    def __init__(self, addresses, timeout, deadline):
        for i, (family, kind, protocol, _, address) in enumerate(addresses):
            try:  # each address gets its part of the time that is left
                part = time.monotonic() + left(deadline) / (len(addresses) - i)
                self.sock = _socket.socket(family, kind, protocol)
                self.fd = self.sock.fileno()
                self.connect(address, timeout, part)
                return
            except OSError as error:
                self.close()
                last = error
        raise last

    def connect(self, address, timeout, deadline):
        sock = self.sock
        sock.setblocking(False)
        if sock.family != _socket.AF_UNIX:
            tcp_options(sock, timeout)
        try:
            sock.connect(address)
        except BlockingIOError:
            wait_for(sock.fileno(), select.POLLOUT, deadline)
            code = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))

    def send(self, data, deadline):
        view = memoryview(data)
        self.unheard = True
        while view:
            try:
                n = self.sock.send(view)
                self.sent += n
                view = view[n:]
            except BlockingIOError:
                wait_for(self.fd, select.POLLOUT, deadline)

    def receive(self):
        """What has arrived joins the buffer; False when it was nothing. Raises Closed."""
        try:
            data = self.sock.recv(MOST_LINE)
        except BlockingIOError:
            return False
        if not data:
            raise Closed()
        self.buffer += data
        return True

    def until(self, enough, deadline, most=MOST_LINE):
        """The first n bytes of what comes in, as soon as enough(buffer) says how many and not
        None."""
        while True:
            n = enough(self.buffer)
            if n is not None:
                data, self.buffer = self.buffer[:n], self.buffer[n:]
                self.unheard = False
                return data
            if len(self.buffer) > most:
                raise OSError(errno.EMSGSIZE, 'a reply of more than %d bytes' % most)
            if not self.receive():
                wait_for(self.fd, select.POLLIN, deadline)

    def gather(self):
        """All that has arrived joins the buffer; that the peer has closed behind it comes out the
        next time."""
        try:
            while len(self.buffer) <= MOST_LINE and self.receive():
                pass
        except ConnectionError:
            if not self.buffer:
                raise

    def available(self, wait, deadline):
        self.gather()
        if not self.buffer and wait:
            try:
                wait_for(self.fd, select.POLLIN, min(deadline, time.monotonic() + wait))
                self.gather()
            except OSError as error:
                if error.errno != errno.ETIME:
                    raise
        if wait:
            left(deadline)                      # also for a peer that talks on and on
        data, self.buffer = self.buffer, b''
        self.unheard = self.unheard and not data
        return data

    def overhear(self):
        """Reads what the peer says while nobody listens. False when it has closed in good order;
        raises when it broke off, or does not stop talking."""
        try:
            while self.receive() and len(self.buffer) <= MOST_LINE:
                pass
        except Closed:
            return False
        self.spoken += len(self.buffer)
        self.buffer = b''
        if self.spoken > MOST_LINE:
            raise OSError(errno.EPROTO, 'the peer talks on and on, and nothing was asked')
        return True

    def alive(self):
        """Raises when the peer has closed: what is sent now would be taken by nobody."""
        try:
            if not self.sock.recv(1, _socket.MSG_PEEK):
                raise Closed()
        except BlockingIOError:
            pass

    def settle(self, deadline):
        """Returns when the peer's kernel has acknowledged every byte and the connection stands."""
        delay = 0.0005
        while self.acknowledged() < self.sent:
            self.alive()
            time.sleep(min(delay, left(deadline)))
            delay = min(delay * 2, 0.05)
        self.alive()

    def farewell(self, deadline):
        """Returns when the peer has closed too, which it does when it has read everything, or after
        a moment; raises when it breaks off instead."""
        self.sock.shutdown(_socket.SHUT_WR)
        moment = min(deadline, time.monotonic() + FAREWELL)
        try:
            while self.overhear():
                wait_for(self.fd, select.POLLIN, moment)
        except OSError as error:
            if error.errno != errno.ETIME:
                raise

    def acknowledged(self):
        """How many of the bytes sent the peer's kernel has acknowledged."""
        try:
            return self.sent - struct.unpack('i', ioctl(self.fd, TIOCOUTQ, FOUR_BYTES))[0]
        except OSError:
            return self.sent                    # another number on this architecture

    def close(self):
        if self.sock is not None:
            self.sock.close()
            self.sock = None


class AcceptedLink(StreamLink):
    """A connection that somebody else has made; name: his address."""

    def __init__(self, sock, name, timeout):
        self.sock, self.fd, self.name = sock, sock.fileno(), name
        sock.setblocking(False)
        tcp_options(sock, timeout)


class ListeningLink:
    """Owns one socket that others dial, at the first of the addresses that can be had."""
    unheard, sock = False, None

    def __init__(self, addresses):
        for family, kind, protocol, _, address in addresses:
            try:
                self.sock = _socket.socket(family, kind, protocol)
                self.listen(family, address)
                return
            except OSError as error:
                self.close()
                last = error
        raise last

    def listen(self, family, address):
        self.fd = self.sock.fileno()
        self.sock.setblocking(False)
        self.sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        if family == _socket.AF_INET6:          # "::" takes IPv4 too
            self.sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 0)
        self.sock.bind(address)
        self.sock.listen(BACKLOG)

    def accept(self, timeout):
        """A link to the next one who dialled, or None."""
        try:
            fd, address = self.sock._accept()
        except (BlockingIOError, ConnectionError):      # gone again already
            return None
        sock = _socket.socket(self.sock.family, _socket.SOCK_STREAM, 0, fd)
        try:
            return AcceptedLink(sock, address[0], timeout)
        except OSError:
            sock.close()
            return None

    def overhear(self):
        """Nobody listens: who dials is turned away."""
        link = self.accept(1)
        if link:
            link.close()
        return True

    def close(self):
        if self.sock is not None:
            self.sock.close()
            self.sock = None


class SecureLink(StreamLink):
    """TLS over a StreamLink, whose connection it takes over once it is there. OpenSSL works on
    memory only, so that every wait is ours and has a deadline."""

    def __init__(self, plain, context, name, deadline):
        import ssl                              # 1.4 MB, and hashlib 3.7
        self.sock, self.fd, self.ssl = plain.sock, plain.fd, ssl
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        try:
            self.perform(deadline, self.tls.do_handshake)
        except ConnectionError:
            raise OSError(errno.EPROTO, 'closed in the TLS handshake: is there TLS on that port?')
        self.introduced(deadline)

    def perform(self, deadline, action, *given):
        """What the action of OpenSSL gives; bytes go both ways for as long as it wants some."""
        while True:
            try:
                answer = action(*given)
                self.flush(deadline)
                return answer
            except self.ssl.SSLWantReadError:
                self.flush(deadline)
                if not self.pull():
                    wait_for(self.fd, select.POLLIN, deadline)
            except (self.ssl.SSLError, ValueError) as error:
                try:
                    self.flush(deadline)        # the alert that tells the peer why
                except OSError:
                    pass                        # it is gone: what was wrong counts
                raise tls_trouble(error)

    def flush(self, deadline):
        """What OpenSSL wants to say goes out."""
        while self.outgoing.pending:
            StreamLink.send(self, self.outgoing.read(), deadline)

    def pull(self):
        """What has arrived goes to OpenSSL; False when it was nothing."""
        try:
            data = self.sock.recv(MOST_LINE)
        except BlockingIOError:
            return False
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()
        return True

    def send(self, data, deadline):
        view = memoryview(data)
        self.unheard = True
        for i in range(0, len(view), MOST_PIECE):
            self.perform(deadline, self.tls.write, view[i:i + MOST_PIECE])

    def receive(self):
        try:
            data = self.tls.read(MOST_LINE)
        except self.ssl.SSLWantReadError:
            self.flush(time.monotonic() + FAREWELL)     # the peer may have asked for new keys
            return self.pull()
        except self.ssl.SSLError as error:
            raise tls_trouble(error)
        if not data:
            raise Closed()
        self.buffer += data
        return True

    def alive(self):
        while len(self.buffer) <= MOST_LINE and self.receive():
            pass                                # whoever reads next gets it

    def introduced(self, deadline):
        """In TLS 1.3 a peer that misses a certificate of ours, or does not like it, says so only
        after the handshake: its first word, mostly a session ticket, is waited for a moment."""
        try:
            if self.tls.version() == 'TLSv1.3' and not self.pull():
                wait_for(self.fd, select.POLLIN, min(deadline, time.monotonic() + FAREWELL))
            while len(self.buffer) <= MOST_LINE and self.receive():
                pass
        except OSError as error:
            if error.errno != errno.ETIME:
                raise

    def farewell(self, deadline):
        try:
            self.tls.unwrap()
        except self.ssl.SSLError:
            pass                                # it waits for the peer's farewell, which we do not
        self.flush(deadline)
        StreamLink.farewell(self, deadline)


def tls_trouble(error):
    """An OSError that says what OpenSSL found wrong. A certificate that is not to be trusted does
    not become better in a second."""
    import ssl
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return Closed()
    reason = getattr(error, 'verify_message', '') or getattr(error, 'reason', '') or str(error)
    words = 'TLS: ' + str(reason).replace('_', ' ').lower()
    if isinstance(error, ssl.CertificateError) or 'verify failed' in words:
        return Later('the certificate of the peer is refused: ' + words, CREDENTIALS_PAUSE)
    if 'alert' in words and 'certificate' in words:
        words += ': does it want another one of ours (tls_cert)?'
    if 'wrong version number' in words or 'tkt nyv' in words:   # its number's old name, on 3.6
        words += ': is there TLS on that port?'
    return OSError(errno.EPROTO, words)


class Contexts:
    """TLS contexts, one for all that use the same files, since a set of CAs takes 2.6 MB, and a new
    one when a file has changed, since certificates are renewed."""

    def __init__(self):
        self.known = {}                         # (ca, cert, key, verify) -> (when, context)

    def of(self, tls):
        """The context of such a tuple: paths or '', and whether to verify the peer."""
        try:
            when = [os.stat(path).st_mtime_ns for path in tls[:3] if path]
            if self.known.get(tls, ((),))[0] != when:
                self.known[tls] = when, tls_context(*tls)
            return self.known[tls][1]
        except (OSError, ValueError) as error:
            raise Later('TLS: the files %s cannot be used: %s%s' % (
                ', '.join(path for path in tls[:3] if path) or 'of CAs of this host',
                getattr(error, 'reason', None) or getattr(error, 'strerror', None) or error,
                ' (need the key of that certificate, without a password)' if tls[1] else ''),
                MISSING_PAUSE)


def tls_context(ca, cert, key, verify):
    """An SSLContext for TLS 1.2 and newer. 3.13 would be stricter about home-made CAs than all
    others are (VERIFY_X509_STRICT): here they all are the same."""
    import ssl
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if hasattr(context, 'minimum_version'):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    else:
        context.options |= ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca:
        context.load_verify_locations(ca)
    else:
        context.load_default_certs()
    if cert:                                    # a key that needs a password: nobody is asked
        context.load_cert_chain(cert, key or None, lambda: b'')
    return context


class DatagramLink:
    """Owns one UDP socket, connected to the first address that there is a way to; each send is a
    datagram."""
    fd, unheard = None, True                    # nothing ever comes in here

    def __init__(self, addresses):
        for family, kind, protocol, _, address in addresses:
            try:
                self.sock = _socket.socket(family, kind, protocol)
                self.sock.setblocking(False)
                self.sock.connect(address)
                return
            except OSError as error:
                last = error
        raise last

    def send(self, data, deadline):
        while True:
            try:
                self.sock.send(data)
                return
            except BlockingIOError:
                wait_for(self.sock.fileno(), select.POLLOUT, deadline)

    def settle(self, deadline):
        pass

    def farewell(self, deadline):
        pass

    def close(self):
        self.sock.close()


class StdoutLink:
    """Standard output, for all emitters that write there: whole messages, never in between each
    other.

    A message that an error tore (a full disk, a pipe that nobody reads) is continued where it broke
    off when it is sent again. Owns nothing: descriptor 1 stays as the program got it, blocking
    included, since others may share it.
    """
    fd, unheard = None, True                    # nothing ever comes in here

    def __init__(self):
        self.lock, self.rest, self.torn = _thread.allocate_lock(), b'', None

    def send(self, data, deadline):
        while not self.lock.acquire(False):
            time.sleep(min(0.005, left(deadline)))
        try:
            again = data == self.torn
            self.drain(deadline)
            self.torn = None
            if not again:
                self.rest = self.torn = data
                self.drain(deadline)
                self.torn = None
        finally:
            self.lock.release()

    def drain(self, deadline):
        while self.rest:
            wait_for(1, select.POLLOUT, deadline)
            self.rest = self.rest[os.write(1, self.rest[:PIPE_BUF]):]

    def settle(self, deadline):
        pass

    def farewell(self, deadline):
        pass

    def close(self):
        pass


def naming(method):
    """A method of a FileLink, whose errors name the file."""
    def named(self, *what):
        try:
            return method(self, *what)
        except OSError as error:
            raise OSError(error.errno, '%s: %s' % (self.name, error.strerror))
    return named


class FileLink:
    """Owns one regular file, locked against others (flock(2)); close() gives it back.

    What was sent after the last sync() is cut off by close(), and a file that was made for it and
    holds nothing then goes away: nobody meets half of what was to be written. The kernel has no
    deadlines for files: when a network file system hangs, so does the thread.
    """
    fd, unheard = None, False                   # nothing ever comes in here

    def __init__(self, path, folder):
        self.name, self.path = path, path_bytes(path)
        self.file = self.safe = None
        self.made, self.end = False, 0
        try:
            self.open(path_bytes(folder))
        except BaseException:
            self.close()
            raise

    @naming
    def open(self, folder):
        make_folders(folder, os.path.dirname(self.path))
        how = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            self.file = os.open(self.path, how | os.O_CREAT | os.O_EXCL, 0o640)
            self.made = True
        except FileExistsError:
            if not os.path.isfile(self.path):   # to open a device may set something going
                raise OSError(errno.EINVAL, 'is no regular file')
            self.file = os.open(self.path, how)
        try:
            flock(self.file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, 'somebody else writes to it')
        self.end = self.safe = self.length()

    @naming
    def size(self):
        return self.length()

    def length(self):
        """Its size; ESTALE when the path leads elsewhere by now."""
        here = os.fstat(self.file)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            there = None
        if not there or (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise OSError(errno.ESTALE, 'was moved away or deleted')
        return here.st_size

    @naming
    def part(self, at, n):
        pieces = []
        while n > 0:
            piece = os.pread(self.file, n, at)
            if not piece:
                break
            pieces.append(piece)
            at, n = at + len(piece), n - len(piece)
        return b''.join(pieces)

    @naming
    def send(self, data, deadline):
        view = memoryview(data)
        while view:
            n = os.pwrite(self.file, view, self.end)
            self.end += n
            view = view[n:]

    @naming
    def truncate(self, n):
        os.ftruncate(self.file, n)
        self.end = self.safe = n

    @naming
    def sync(self):
        os.fsync(self.file)
        if not os.fstat(self.file).st_nlink:
            raise OSError(errno.ESTALE, 'was deleted')
        if self.made:
            sync_folder(os.path.dirname(self.path))
        self.safe, self.made = self.end, False

    @naming
    def rename(self, path):
        path = path_bytes(path)
        if os.path.lexists(path):
            raise OSError(errno.EEXIST, 'another file has the name that it would get')
        os.rename(self.path, path)
        self.path = path
        sync_folder(os.path.dirname(path))

    def close(self):
        if self.file is None:
            return
        try:
            if self.safe is not None and self.end > self.safe:
                os.ftruncate(self.file, self.safe)
            if self.made and self.safe == 0 and self.length() == 0:
                os.unlink(self.path)
        except OSError:
            pass                                # whoever opens it next finds it torn, and mends it
        os.close(self.file)
        self.file = None


def path_bytes(path):
    """The path as the kernel has it, whatever the locale says."""
    return path.encode('utf-8', 'surrogateescape')


def make_folders(there, folder):
    """Makes the folders below the one that must be there."""
    missing = []
    try:
        os.stat(there or b'.')
    except FileNotFoundError:
        raise OSError(errno.ENOENT, 'there is no folder ' + there.decode('utf-8', 'replace'))
    while len(folder) > len(there) and not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for folder in reversed(missing):
        try:
            os.mkdir(folder, 0o750)
        except FileExistsError:
            pass                                # another agent was faster
        sync_folder(os.path.dirname(folder))


def sync_folder(folder):
    """Returns once the names in the folder are on the disk, where the file system can do that."""
    try:
        fd = os.open(folder or b'.', os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return                                  # we may put files there, and not look
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def remove_file(path):
    """See Remove in section 1."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        flock(fd, LOCK_EX | LOCK_NB)
        os.unlink(path)
    except BlockingIOError:
        raise OSError(errno.EBUSY, '%s: somebody writes to it' % path.decode('utf-8', 'replace'))
    finally:
        os.close(fd)


def files_in(folder, start):
    """See Files in section 1."""
    out, start = [], path_bytes(start)
    with os.scandir(path_bytes(folder) or b'.') as entries:
        for entry in entries:
            if not entry.name.startswith(start):
                continue
            try:
                when = entry.stat(follow_symlinks=False).st_mtime_ns
            except FileNotFoundError:
                continue                        # it went away meanwhile
            name = entry.name.decode('utf-8', 'surrogateescape')
            out.append((name, when if entry.is_file() else None))
    return out


class Question:
    """A name that is asked for in a thread of its own, for getaddrinfo() has no deadline. Owns the
    descriptor that tells when the answer is there; close() gives it back."""

    def __init__(self, *what):
        self.what, self.answer = what, None     # a list of addresses, or an OSError
        self.reading, self.writing = os.pipe()
        try:
            _thread.start_new_thread(self.ask, ())
        except RuntimeError:
            self.close()
            os.close(self.writing)
            raise OSError(errno.EAGAIN, 'no thread can be started to resolve the name')

    def ask(self):
        host, port, kind = self.what
        try:
            self.answer = _socket.getaddrinfo(host, port, 0, kind)
        except (OSError, UnicodeError) as error:
            self.answer = OSError(errno.EHOSTUNREACH, 'cannot resolve the name: %s' % (
                getattr(error, 'strerror', None) or 'it is no host name'))
        os.close(self.writing)

    def close(self):
        os.close(self.reading)


class Resolver:
    """Names to addresses, each within a deadline. A question that takes longer goes on, and the
    next call has its answer; until then no other one is asked."""

    def __init__(self, ask=Question):
        self.ask, self.question = ask, None

    def addresses(self, host, port, kind, deadline):
        """[(family, kind, protocol, name, address)]; raises OSError."""
        try:
            name = host.encode('ascii')         # text would load the tables of IDNA, 0.7 MB
        except UnicodeError:
            name = host
        try:
            return _socket.getaddrinfo(name, port, 0, kind, 0, _socket.AI_NUMERICHOST)
        except (_socket.gaierror, UnicodeError):
            pass
        question = self.question
        if question is None:
            question = self.question = self.ask(name, port, kind)
        wait_for(question.reading, select.POLLIN, deadline)
        question.close()
        self.question = None
        if question.what != (name, port, kind):
            return self.addresses(host, port, kind, deadline)
        if isinstance(question.answer, OSError):
            raise question.answer
        return question.answer


def small_file(path):
    """The bytes of a file; OSError when there is no such file, or it has more than 64 KiB."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = os.read(fd, MOST_REPLY + 1)
    finally:
        os.close(fd)
    if len(data) > MOST_REPLY:
        raise OSError(errno.EFBIG, 'a file of more than %d bytes' % MOST_REPLY)
    return data


class HttpLink:
    """One kept-alive HTTP/1.1 connection, spoken to through urllib.request: no redirect is followed
    (a redirected POST would become an empty GET, with our token, to another host), no proxy of the
    environment is used, replies are read up to 64 KiB. Owns the link beneath.

    url: of the sink, its scheme and host included. login: 'name:password' for a proxy, or ''.
    through: whether the link leads to a proxy that wants the whole URL.
    """
    unheard = False                             # every request was answered, or broke the link

    def __init__(self, link, url, login='', through=False):
        import http.client                      # 2 MB, and urllib.request 0.9
        import urllib.request
        self.link, self.fd, self.broken = link, link.fd, http.client.HTTPException
        self.url = url.rstrip('/')
        self.headers = {'Host': url.partition('://')[2].partition('/')[0]}
        if login and through:
            self.headers['Proxy-Authorization'] = basic(login)
        self.wire = Wire(link, through)
        self.wire.connection = http.client.HTTPConnection('localhost')
        self.wire.connection.sock, self.wire.connection.auto_open = self.wire, 0
        self.compose = urllib.request.Request
        self.director = urllib.request.OpenerDirector()
        self.director.add_handler(self.wire)

    def exchange(self, step, deadline):
        """(status, headers, body) of one request. Raises OSError; .heard tells whether any byte of
        an answer had come."""
        self.wire.deadline, self.wire.heard = deadline, 0
        request = self.compose(self.url + step.path, step.body, dict(self.headers, **step.headers),
                               method=step.method)
        try:
            response = self.director.open(request)
        except self.broken as error:
            if not self.wire.heard:
                raise Closed()
            raise OSError(errno.EPROTO, 'what came back is no HTTP (%s)' % type(error).__name__)
        headers = {key.lower(): value for key, value in response.getheaders()}
        try:
            body = self.body_of(response)
            self.again = (response.isclosed() and not response.will_close
                          and self.wire.connection.sock is self.wire and not self.wire.more())
        except OSError:
            if response.status < 300 or response.status in (400, 422):  # there the body matters
                raise
            body, self.again = b'', False
        response.close()
        return response.status, headers, body

    def body_of(self, response):
        """Its first 64 KiB; OSError when it ends too early."""
        try:
            body = response.read(MOST_REPLY + 1)
        except self.broken:
            response.length, body = 1, b''
        if response.length and len(body) <= MOST_REPLY:
            raise OSError(errno.EPROTO, 'an answer that was cut off')
        return body[:MOST_REPLY]

    @property
    def heard(self):
        return self.wire.heard

    def overhear(self):
        return self.link.overhear()

    def close(self):
        self.link.close()


class Wire:
    """What http.client takes for a socket, and urllib.request for a handler of http and https: both
    come down to one link and the deadline of the exchange."""
    handler_order = 500

    def __init__(self, link, through):
        self.link, self.through, self.deadline, self.heard = link, through, 0.0, 0
        self.connection, self.reader, self.in_head, self.over = None, None, False, False

    def add_parent(self, director):
        pass

    def http_open(self, request):
        connection = self.connection
        selector = request.full_url if self.through else request.selector
        self.reader, self.in_head, self.over = KeptReader(WireReader(self)), True, False
        try:
            connection.request(request.get_method(), selector, request.data,
                               dict(request.header_items()))
        except (BrokenPipeError, ConnectionResetError):
            if not self.link.buffer and not self.link.receive():
                raise                           # else it said why before it had read everything
        response = connection.getresponse()
        while 100 < response.status < 200 and response.status != 101:
            response.close()
            response = connection.response_class(self, method=request.get_method())
            response.begin()                    # it skips 100 only: hints may come too (RFC 8297)
        self.in_head = False
        return response

    https_open = http_open

    def sendall(self, data):
        self.link.send(data, self.deadline)

    def more(self):
        """Whether bytes have come that belong to no answer."""
        self.over = True
        return bool(self.link.buffer or self.reader.peek(1))

    def makefile(self, mode):
        return self.reader

    def close(self):
        pass                                    # the link is closed by its owner


class KeptReader(io.BufferedReader):
    """Goes on when the answer before is closed: a hint is followed by the answer itself."""

    def read(self, size=-1):
        if size is None or size < 0:            # a chunk of -1 bytes would be all that ever comes
            raise OSError(errno.EPROTO, 'what came back is no HTTP (a piece of no size)')
        return io.BufferedReader.read(self, size)

    def close(self):
        pass

    flush = close                               # also when http.client gives an answer up


class WireReader(io.RawIOBase):
    """The answer, as it comes in until the deadline."""

    def __init__(self, wire):
        self.wire = wire

    def readable(self):
        return True

    def readinto(self, out):
        if self.wire.over:
            return 0
        left(self.wire.deadline)                # also for a peer that talks on and on
        try:
            data = self.wire.link.until(lambda data: min(len(data), len(out)) or None,
                                        self.wire.deadline)
        except Closed:
            if self.wire.in_head:
                raise                           # http.client takes half a head for all of it
            return 0
        self.wire.heard += len(data)
        out[:len(data)] = data
        return len(data)


def tunnel(link, place, login, deadline):
    """Asks the proxy at the other end of the link to connect it to that host and port (RFC 9110,
    section 9.3.6)."""
    head = 'CONNECT %s HTTP/1.1\r\nHost: %s\r\n' % (place, place)
    if login:
        head += 'Proxy-Authorization: %s\r\n' % basic(login)
    link.send((head + '\r\n').encode(), deadline)
    answer = link.until(lambda data: data.find(b'\r\n\r\n') + 4 if b'\r\n\r\n' in data else None,
                        deadline)
    status = answer.split(b'\r\n')[0].split(b' ', 2)
    if len(status) < 2 or not status[0].startswith(b'HTTP/') or status[1][:1] != b'2':
        words = b' '.join(status).decode('ascii', 'replace')
        raise Later('the proxy does not connect: ' + words,
                    CREDENTIALS_PAUSE if status[1:2] in ([b'401'], [b'403'], [b'407']) else 0)


class Opener:
    """Opens the links of one emitter. stdout: the StdoutLink that all of them share; contexts: the
    Contexts, likewise."""

    def __init__(self, stdout, contexts):
        self.stdout, self.contexts, self.resolver, self.turn = stdout, contexts, Resolver(), 0

    def open(self, target, timeout, deadline):
        """A link to ('stdout',), ('udp', host, port), ('tcp', host, port, tls), ('unix', path),
        ('http', url, tls, proxy), ('file', path, folder), or ('bind', host, port, again), where
        others dial us; ('none',) has none. tls: None, or what Contexts takes. proxy: '' or its URL.
        folder: what of the path must be there. A host '*' binds all addresses. again: for delivery,
        whether what broke off goes again."""
        if target[0] == 'stdout':
            return self.stdout
        if target[0] == 'file':
            return FileLink(*target[1:])
        if target[0] == 'http':
            return self.web(*target[1:] + (timeout, deadline))
        if target[0] == 'tcp':
            return self.stream(*target[1:] + (timeout, deadline))
        if target[0] == 'unix':
            return StreamLink([(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, '', target[1])], timeout,
                              deadline)
        if target[0] == 'bind':
            return ListeningLink(self.own_addresses(target[1], target[2], deadline))
        addresses = self.resolver.addresses(target[1], target[2], _socket.SOCK_DGRAM, deadline)
        self.turn += 1  # a datagram tells of a dead address only when the next one is sent
        first = (self.turn - 1) % len(addresses)
        return DatagramLink(addresses[first:] + addresses[:first])

    def own_addresses(self, host, port, deadline):
        """Where to listen: IPv4 first for a name, since more clients try that."""
        if host == '*':
            return [(_socket.AF_INET6, _socket.SOCK_STREAM, 0, '', ('::', port)),
                    (_socket.AF_INET, _socket.SOCK_STREAM, 0, '', ('0.0.0.0', port))]
        found = self.resolver.addresses(host, port, _socket.SOCK_STREAM, deadline)
        return sorted(found, key=lambda address: address[0] != _socket.AF_INET)

    def stream(self, host, port, tls, timeout, deadline):
        addresses = self.resolver.addresses(host, port, _socket.SOCK_STREAM, deadline)
        link = StreamLink(addresses, timeout, deadline)
        return self.secured(link, tls, host, deadline) if tls else link

    def secured(self, link, tls, host, deadline):
        try:
            return SecureLink(link, self.contexts.of(tls), host.rstrip('.'), deadline)
        except BaseException:
            link.close()
            raise

    def web(self, url, tls, proxy, timeout, deadline):
        scheme, _, host, port, _ = url_parts(url)
        port = port or (443 if scheme == 'https' else 80)
        if not proxy:
            return HttpLink(self.stream(host, port, tls, timeout, deadline), url)
        _, _, by, at, _ = url_parts(proxy)
        login = login_of(proxy)
        link = self.stream(by, at or 80, None, timeout, deadline)
        if not tls:
            return HttpLink(link, url, login, True)
        try:
            tunnel(link, place_text(host, port), login, deadline)
        except OSError:
            link.close()
            raise
        return HttpLink(self.secured(link, tls, host, deadline), url)


def converse(dialogue, batches, target, timeout, opener):
    """Performs the steps of a dialogue until it ends, breaks (raises), or batches has no more for
    it.

    batches: next(idle, exchange) -> frames, [] or None at the end; hold(idle, exchange, lack) -> []
    or None; done(n); reject(step); note(text); wait(seconds); listen(seconds, descriptors);
    broken(). A connection is opened by the first step that needs it. A peer that closed while
    nothing was under way is dialled again at once: nothing was lost.
    """
    exchange = Exchange(batches, target, timeout, opener)
    answer, failure = None, None
    try:
        while True:
            try:
                step = dialogue.send(answer) if failure is None else dialogue.throw(failure)
            except StopIteration:
                return
            answer = failure = None
            try:
                answer = exchange.STEPS[type(step)](exchange, step)
            except Exhausted:
                return
            except OSError as error:
                failure = error
    finally:
        dialogue.close()
        exchange.drop()


class Exhausted(Exception):
    """There is no next batch: the dialogue is over."""


class Exchange:
    """Performs single steps; owns the links and the deadline of one dialogue."""

    def __init__(self, batches, target, timeout, opener):
        self.batches, self.target, self.timeout, self.opener = batches, target, timeout, opener
        self.link, self.links, self.deadline = None, [], time.monotonic() + timeout
        self.marks = []  # ([(link, bytes sent)], frames done with them): peers that answer nothing
        self.listener = None

    def drop(self):
        for link in self.links[:]:
            self.shut(link)

    def shut(self, link):
        """Gives a link back; one that is gone already is no mistake."""
        if link in self.links:
            self.links.remove(link)
            link.close()
        if link is self.link:
            self.link = None
        if link is self.listener:
            self.listener = None

    def open(self, target, within=None):
        self.deadline = time.monotonic() + min(self.timeout, within or self.timeout)
        try:
            link = self.opener.open(target, self.timeout, self.deadline)
        except OSError as error:
            error.unreached = True
            raise
        self.links.append(link)
        return link

    def linked(self, step):
        """The link of a step; the default one is opened when it is not there."""
        if step.link is not None:
            if step.link not in self.links:
                raise Closed(told=True)
            return step.link
        if self.link is None:
            self.link = self.open(self.target)
        return self.link

    def on_link(perform):
        """A step that is performed on a link, which it closes when it breaks."""
        def on(self, step):
            link = self.linked(step)
            try:
                return perform(self, step, link)
            except OSError as error:
                self.collect(error)
                self.shut(link)
                raise
        return on

    def next(self, step):
        unheard = [link for link in self.links if link.unheard]
        self.on_each(unheard, lambda link: link.settle(self.deadline))
        if unheard and self.batches.ending():
            self.on_each(unheard, lambda link: link.farewell(self.deadline))
        frames = (self.batches.next(step.idle, self) if step.lack is None
                  else self.batches.hold(step.idle, self, step.lack))
        if frames is None:
            self.part(step.goodbye)
            raise Exhausted
        self.deadline, self.marks = time.monotonic() + self.timeout, []
        return frames

    def on_each(self, links, perform):
        """Performs it on each of the links: peers that answer nothing, whose kernel has to have
        it. One that breaks is closed, and named in the error."""
        for link in links:
            try:
                perform(link)
            except OSError as error:
                self.collect(error)
                self.shut(link)
                error.link = link
                raise

    def part(self, goodbye):
        """The last word, and a moment for the peer to say or do something about it."""
        if goodbye and goodbye.link in self.links:
            moment = time.monotonic() + FAREWELL
            try:
                goodbye.link.send(goodbye.data, moment)
                wait_for(goodbye.link.fd, select.POLLIN, moment)
            except OSError:
                pass                            # it is gone, and needs none

    def collect(self, error):
        """What the peers' kernels have when the time is over need not be sent again: a sink that is
        slow gets on. After a reset that says nothing: nobody has read it."""
        if error.errno == errno.ETIME:
            for places, n in self.marks:
                if all(link in self.links and sent <= link.acknowledged() for link, sent in places):
                    self.batches.done(n)

    def done(self, step):
        unheard = [link for link in self.links if link.unheard and hasattr(link, 'sent')]
        if unheard:
            self.marks.append(([(link, link.sent) for link in unheard], step.n))
        else:
            self.batches.done(step.n)

    def send(self, step, link):
        unheard = link.unheard
        link.send(step.data, self.deadline)
        if step.aside:
            link.unheard = unheard

    def accept(self, step):
        if self.listener is None:
            self.listener = self.open(self.target)
        link = self.listener.accept(self.timeout)
        if link:
            self.links.append(link)
        return link

    def heard(self):
        """Called when a link has input while nothing is under way: a peer that closed is dialled
        anew by the next step. Raises when one broke off that has not answered yet."""
        for link in [link for link in self.links if link.fd is not None]:
            try:
                stands = link.overhear()
            except OSError:
                if link.unheard:
                    raise
                stands = False
            if not stands:
                self.shut(link)
                if link.unheard:
                    self.batches.broken()

    def ears(self):
        """The descriptors that tell when a peer says something or closes."""
        return tuple([link.fd for link in self.links if link.fd is not None])

    def request(self, step):
        """A connection that was kept alive may have been closed by the peer in the same moment: the
        request is sent once more at once, on a new one."""
        fresh = self.link is None or step.link is not None
        link = self.linked(step)
        try:
            answer = link.exchange(step, self.deadline)
        except OSError as error:
            self.shut(link)
            if fresh or link.heard or not isinstance(error, ConnectionError):
                raise
            return self.request(step)
        if not link.again:
            self.shut(link)
        return answer

    def dial(self, step):
        target = self.target
        if step.url is not None:
            usual = ('', '', '', True) if step.url.startswith('https:') else None
            target = ('http', step.url, usual, '')
        elif step.host is not None:
            target = ('tcp', step.host, step.port, target[3])
        return self.open(target, step.within)

    def wait(self, step):
        answer = None
        if step.link is not None:
            answer = self.batches.listen(step.seconds, (self.linked(step).fd,))
        elif step.seconds:
            self.batches.wait(step.seconds)
        self.deadline = time.monotonic() + self.timeout
        return answer

    STEPS = {
        Next: next, Request: request, Wait: wait, Done: done, Accept: accept, Send: on_link(send),
        Line: on_link(lambda self, step, link: link.until(
            lambda data: data.find(b'\n') + 1 or None, self.deadline)),
        Read: on_link(lambda self, step, link: link.until(
            lambda data: step.n if len(data) >= step.n else None, self.deadline, step.n)),
        Available: on_link(lambda self, step, link: link.available(step.wait, self.deadline)),
        Dial: dial, File: lambda self, step: small_file(step.path),
        Close: lambda self, step: self.shut(step.link),
        Open: lambda self, step: self.open(('file', step.path, step.folder)),
        Size: on_link(lambda self, step, link: link.size()),
        Part: on_link(lambda self, step, link: link.part(step.at, step.n)),
        Truncate: on_link(lambda self, step, link: link.truncate(step.n)),
        Sync: on_link(lambda self, step, link: link.sync()),
        Rename: on_link(lambda self, step, link: link.rename(step.path)),
        Files: lambda self, step: files_in(step.folder, step.start),
        Remove: lambda self, step: remove_file(path_bytes(step.path)),
        Reject: lambda self, step: self.batches.reject(step),
        Say: lambda self, step: self.batches.note(step.text),
        Now: lambda self, step: time.time(),
        Random: lambda self, step: os.urandom(step.n),
    }


LEVELS = ('debug', 'info', 'warning', 'error')


class Log:
    """Lines for people, on stderr or in a file that may be moved away at any time.

    Never raises and never blocks: what cannot be written is counted in .lost. Text from outside is
    made printable.
    """

    def __init__(self, level='info', dest='stderr'):
        self.level, self.dest, self.lost = LEVELS.index(level), dest, 0

    def __call__(self, level, message):
        if LEVELS.index(level) < self.level:
            return
        message = printable(message[:1000])
        stamp = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
        self.write(('%s statbadger %s: %s\n' % (stamp, level, message)).encode())

    def probe(self, dest):
        """Raises ConfigError when that file cannot be written."""
        if dest != 'stderr':
            try:
                os.close(self.open(dest))
            except (OSError, ValueError) as error:
                raise ConfigError('log.dest: found %s (%s), need a file that can be written' % (
                    json_text(dest), getattr(error, 'strerror', None) or error))

    @staticmethod
    def open(dest):
        how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(dest, how, 0o640)

    def write(self, data):
        try:
            if self.dest == 'stderr':
                poll = select.poll()
                poll.register(2, select.POLLOUT)
                if poll.poll(0):
                    os.write(2, data[:PIPE_BUF])
                    return
            else:
                fd = self.open(self.dest)
                try:
                    os.write(fd, data)
                finally:
                    os.close(fd)
                return
        except (OSError, ValueError):
            pass
        self.lost += 1


# == 10 DELIVERY: the spool, a cursor and a thread per emitter, backoff, accounting =============

FIRST_BACKOFF = 0.5             # seconds; the longest wait doubles with each failure in a row
LONGEST_BACKOFF = 60.0
LONGEST_PAUSE = 300.0           # whatever a peer asks for
MOST_REASON = 400               # letters of what a peer says that are passed on
MOST_NOTES = 10                 # lines a minute of what is no failure
MOST_DOUBTS = 10                # failures in a row that may be the fault of the data
LAST_WORDS = 5.0                # seconds that SIGTERM and SIGINT leave for delivery
A_MINUTE, AN_HOUR = 60.0, 3600.0        # between two lines of the log about one emitter
ACCOUNT = ('accepted', 'acknowledged', 'sent', 'dropped', 'quarantined', 'damaged',
           'refused_points')


class Spool:
    """All ticks that wait, each held once, bounded in bytes; a Cursor per emitter says which are
    its.

    When there are too many the oldest go first, but never those that are being sent this moment.
    Owns the lock of all cursors. A spool on disk would keep what is accepted here in segments, with
    the same cursors; nothing else would change.
    """

    def __init__(self, most):
        self.most, self.bytes, self.seq, self.run = most, 0, 0, os.urandom(6).hex()
        self.lock, self.cursors = _thread.allocate_lock(), []
        self.holders, self.layouts = {}, {}     # seq -> cursors, id -> [layout, frames]

    def accept(self, frame):
        """Takes a tick for every emitter that wants it, and wakes those that have something to
        do."""
        with self.lock:
            self.seq += 1
            frame.seq, frame.run = self.seq, self.run
            takers = [c for c in self.cursors if c.wants(frame)]
            if takers:
                self.hold(frame, len(takers))
                for cursor in takers:
                    cursor.take(frame)
                if self.bytes * 2 > self.most:
                    takers = self.ripen()
                while self.bytes > self.most and self.drop_oldest(frame):
                    pass
            awake = [c for c in takers if c.rouse()]
        for cursor in awake:
            cursor.bell.ring()

    def ripen(self):
        """There is little room: what `flush` gathers may go now. Gives all cursors."""
        for cursor in self.cursors:
            if cursor.frames:
                cursor.ripe = cursor.frames[-1].seq
        return self.cursors

    def hurry(self):
        """Makes all that waits go now."""
        with self.lock:
            awake = [c for c in self.ripen() if c.rouse()]
        for cursor in awake:
            cursor.bell.ring()

    def hold(self, frame, holders):
        self.holders[frame.seq] = holders
        entry = self.layouts.setdefault(id(frame.layout), [frame.layout, 0])
        entry[1] += 1
        self.bytes += frame.bytes + (frame.layout.bytes if entry[1] == 1 else 0)

    def release(self, frames):
        """One cursor is done with these frames."""
        for frame in frames:
            self.holders[frame.seq] -= 1
            if not self.holders[frame.seq]:
                del self.holders[frame.seq]
                entry = self.layouts[id(frame.layout)]
                entry[1] -= 1
                self.bytes -= frame.bytes
                if not entry[1]:
                    self.bytes -= frame.layout.bytes
                    del self.layouts[id(frame.layout)]

    def drop_oldest(self, newest):
        """Drops the oldest tick that is not under way and not the newest; False when there is
        none."""
        waiting = [(c.frames[c.pinned].seq, c) for c in self.cursors if len(c.frames) > c.pinned]
        oldest = min([seq for seq, c in waiting] or [newest.seq])
        if oldest >= newest.seq:
            return False
        for seq, cursor in waiting:
            if seq == oldest:
                cursor.drop(cursor.pinned, cursor.pinned + 1)
        return True


def milliseconds(seconds):
    return int(seconds * 1000 + 0.5)


def points_of(frame):
    """How many points a frame holds."""
    return sum(1 for v in frame.values if v == v)


class Cursor:
    """One emitter's ticks, and its account, which always adds up:

    accepted = acknowledged + sent + dropped + quarantined + damaged + pending

    frames: those that wait, oldest first; the first `pinned` are under way; those up to the
    sequence number `ripe` may go; a batch that failed goes again up to `same`. All of it is guarded
    by the spool's lock.

    recent: with `resends`, the ticks of the last seconds that were sent over TCP to a peer that
    acknowledges nothing. Its kernel had them; whether it has read them before it broke off nobody
    knows, so they go again, ahead of the next batch, and are counted once.
    """

    def __init__(self, spool, name, role):
        self.spool, self.name = spool, name
        self.frames, self.pinned, self.done_already, self.rejected = [], 0, 0, {}
        self.recent, self.again, self.broke = [], 0, False
        self.suspects = self.same = self.ripe = self.last_ms = self.last_error = 0
        self.doubts, self.doubted, self.known_good = 0, 0, 0    # see doubt()
        self.count = dict.fromkeys(ACCOUNT, 0)
        self.bell, self.idle, self.closing = Bell(), False, False
        self.configure(role)

    def configure(self, role):
        options, self.delivery = role.options, role.delivery
        kind = role.target[0]
        self.resends = role.delivery == 'sent' and (
            kind == 'tcp' or kind == 'bind' and role.target[3])
        self.interval, self.flush = milliseconds(options.interval), milliseconds(options.flush)
        self.batch = self.limit = options.batch

    def wants(self, frame):
        return not self.closing and (not self.interval or frame.time_ms % self.interval == 0)

    def take(self, frame):
        self.frames.append(frame)
        self.count['accepted'] += 1
        if not self.flush or frame.time_ms % self.flush == 0:
            self.ripe = frame.seq
        elif self.last_ms % self.flush and (self.last_ms // self.flush
                                            != frame.time_ms // self.flush):
            self.ripe = frame.seq - 1           # the tick on the multiple itself was not held
        self.last_ms = frame.time_ms

    def rouse(self):
        """Whether its thread sleeps and should not."""
        if self.idle and self.frames and self.frames[0].seq <= self.ripe:
            self.idle = False
            return True
        return False

    def drop(self, start, end, why='dropped'):
        gone = self.frames[start:end]
        del self.frames[start:end]
        self.count[why] += len(gone)
        for frame in gone:
            self.rejected.pop(frame.seq, None)
        self.spool.release(gone)

    def done(self, n):
        """The first n frames of the batch under way are done with."""
        with self.spool.lock:
            n = max(0, n - self.again)          # those that went again were counted before
            self.acknowledge(n - self.done_already)
            self.done_already = max(n, self.done_already)

    def acknowledge(self, n):
        """The first n frames under way are done with: counted, and the spool may forget them."""
        gone = self.frames[:max(n, 0)]
        for frame in gone:
            points = self.rejected.pop(frame.seq, None)
            self.count[self.delivery if points is None else 'quarantined'] += 1
            self.count['refused_points'] += points or 0
        del self.frames[:len(gone)]
        self.pinned -= len(gone)
        self.suspects = max(0, self.suspects - len(gone))
        if not self.suspects:
            self.limit = self.batch
        if self.resends and gone:
            self.broke = False
            since = gone[-1].time_ms - RESENT
            recent = self.recent = [f for f in self.recent + gone if f.time_ms > since]
            room = self.spool.most // (4 * max(1, len(self.spool.cursors)))
            del recent[:max(len(recent) - min(MOST_RESENT, room // gone[-1].bytes), 0)]
        self.spool.release(gone)

    def next_batch(self, wanted=True):
        """Acknowledges what is under way. Gives the frames to send now, pinned; [] when there is
        nothing to do yet, None at the end or when none is wanted."""
        with self.spool.lock:
            if self.pinned:
                self.acknowledge(self.pinned)
            if not wanted:
                return None
            batch = self.small_enough()
            if self.flush and not self.closing:
                batch = [frame for frame in batch if frame.seq <= self.ripe]
            if self.same:
                batch = [frame for frame in batch if frame.seq <= self.same] or batch
            self.pinned, self.done_already, self.same = len(batch), 0, 0
            self.idle = not batch
            self.again = len(self.recent) if self.broke and batch else 0
            if not batch and self.closing:
                return None
            return self.recent + batch if self.again else batch

    def small_enough(self):
        """The oldest frames, as many as may go together: so few that what is under way, and cannot
        be dropped, leaves room for what others have waiting."""
        if len(self.frames) < 2:
            return self.frames[:]
        room, n = self.spool.most // (2 * max(1, len(self.spool.cursors))), 0
        while n < min(self.limit, len(self.frames)) and (not n or room > 0):
            room -= self.frames[n].bytes
            n += 1
        return self.frames[:n]

    def keep(self, broke=True, reached=True):
        """The batch under way failed: the same frames are offered again. reached: there was a
        connection; broke: it broke, and not only our patience. What went again and failed again
        does not go a third time: a peer that breaks off again and again would get nothing else."""
        with self.spool.lock:
            if self.pinned:
                self.same = self.frames[self.pinned - 1].seq
            if self.again and reached and self.pinned and not self.done_already:
                self.recent = []
            self.pinned, self.broke = 0, self.resends and (broke and reached or self.broke)

    def doubt(self):
        """The peer answers to the batch under way with what may be its own trouble, or the data's.
        After ten times it goes in halves; a single tick is refused when others got through
        meanwhile. True when it was."""
        with self.spool.lock:
            batch, good = self.frames[:self.pinned], self.count[self.delivery]
            if not batch or batch[0].seq > self.doubted:        # trouble of its own
                self.doubts, self.doubted = 0, batch[-1].seq if batch else 0
                self.known_good = good
            self.doubts += 1
            if self.doubts < MOST_DOUBTS or len(batch) == 1 and good == self.known_good:
                return False
            self.doubts = 0
        return self.refuse(False)

    def give_up(self):
        """All that waits is lost: the end has come."""
        with self.spool.lock:
            self.pinned = 0
            self.drop(0, len(self.frames))

    def refuse(self, split):
        """The batch under way was refused: halves next, and a single tick is quarantined."""
        with self.spool.lock:
            n, self.pinned = self.pinned, 0
            if n == 1:
                self.count['refused_points'] += points_of(self.frames[0])
                self.drop(0, 1, 'quarantined')
                self.suspects = max(0, self.suspects - 1)
                self.limit = self.suspects or self.batch
            elif n:
                self.suspects = max(self.suspects, n)
                self.limit = n // 2
            return n == 1


class Role:
    """What an emitter was configured to be: its options, talk() -> a new dialogue, what delivered
    means, where it talks to, texts that no line of the log may hold, and the memory of its
    dialogues."""

    def __init__(self, options, talk, delivery, target, secrets=(), memory=None):
        self.options, self.talk, self.delivery, self.target = options, talk, delivery, target
        self.secrets, self.memory = secrets, memory


def secrets_of(declared, options):
    """The secrets among these options, as they are and as protocols write them, longest first: a
    server may show in an error what it was sent."""
    out = set()
    for option in declared:
        value = options[option.name]
        if option.kind in (secret, http_headers) and value != option.default:
            for text in value.values() if isinstance(value, dict) else [value]:
                out.update([text] + [word for word in text.split() if len(word) > 5])
        elif option.kind is proxy_url and value:
            login = login_of(value)
            out.update([login, login.partition(':')[2], basic(login).partition(' ')[2]])
    if hasattr(options, 'password'):
        out.add(basic('%s:%s' % (options.username, options.password)).partition(' ')[2])
    return hidden(out)


def hidden(texts):
    """The texts and their disguises, longest first."""
    out = set(texts).union(disguise for text in texts for disguise in disguises(text))
    return sorted([text for text in out if len(text) > 2], key=len, reverse=True)


def disguises(text):
    """How a text may stand in a URL, a form, JSON, HTML, or with its blanks made one."""
    encoded = percent_encoded(text)
    slashes = encoded.replace('%2F', '/')
    lower = ''.join([part[:3].lower() + part[3:] if i else part
                     for i, part in enumerate(encoded.replace('%', '\0%').split('\0'))])
    page = text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
    return (encoded, slashes, encoded.replace('%20', '+'), lower, json_text(text)[1:-1], page,
            page.replace('"', '&quot;').replace("'", '&#39;'),
            page.replace('"', '&#34;').replace("'", '&#x27;'), ' '.join(text.split()))


class Sender:
    """The thread of one emitter: holds a dialogue, keeps what breaks, backs off, tries again.

    finished() is called once, at the end, with .failure saying what went wrong, if anything did.
    """

    def __init__(self, cursor, role, opener, log, clock, finished):
        self.cursor, self.role, self.opener = cursor, role, opener
        self.log, self.clock, self.finished = log, clock, finished
        self.failures, self.failure, self.noted, self.notes = 0, None, None, []
        self.said, self.told = {}, False        # {failure or refusal: (reason, when)}
        self.deadline, self.ended, self.retired, self.renewal = None, False, False, None
        self.started = self.abandoned = False

    def start(self):
        if not self.started:
            _thread.start_new_thread(self.run, ())
        self.started = True

    def close(self, deadline):
        """No tick comes any more: what waits is sent until the deadline (monotonic seconds)."""
        with self.cursor.spool.lock:
            self.deadline, self.cursor.closing = deadline, True
        self.cursor.bell.ring()

    def abandon(self, reason):
        """Gives up what waits, wherever the thread is stuck."""
        self.failure = self.failure or reason
        self.close(self.now())
        self.cursor.give_up()
        self.ended = self.abandoned = True

    def renew(self, role):
        """Another dialogue follows as soon as the one under way asks for its next batch or fails:
        a reload changed the options. What is pending stays."""
        with self.cursor.spool.lock:
            self.renewal = role
        self.cursor.bell.ring()

    def run(self):
        while not self.ended:
            try:
                self.begin_anew()
                role = self.role
                converse(role.talk(), self, role.target, role.options.timeout, self.opener)
                if self.cursor.pinned:
                    raise OSError(errno.EPROTO, 'the dialogue ended with a batch under way')
                self.ended = self.ended or self.cursor.closing and not self.cursor.frames
            except Refused as error:
                self.refused(error)
            except OSError as error:
                if isinstance(error, ConnectionError) and not self.cursor.pinned:
                    self.cursor.keep()          # an idle session was closed
                    continue
                user = self.role.target[0] == 'none'    # whose OSError may come from anywhere
                reason = trouble(error) if user else error.strerror or str(error)
                self.ended = self.failed(error, reason) or self.ended
            except BaseException as error:      # ours or a user's: said with its place
                self.ended = self.failed(error, trouble(error)) or self.ended
        self.cursor.give_up()
        if self.abandoned:                      # nobody knows of it any more
            self.cursor.bell.close()
        self.finished()

    def begin_anew(self):
        with self.cursor.spool.lock:
            if self.renewal:
                self.role, self.renewal = self.renewal, None
                self.cursor.configure(self.role)

    def ending(self):
        """Whether what is under way is the last there is."""
        return self.cursor.closing and self.cursor.pinned == len(self.cursor.frames)

    def broken(self):
        """The peer has closed while nothing was under way."""
        self.cursor.keep()

    def next(self, idle, exchange):
        """What the dialogue gets for Next; asking acknowledges the batch before. While it waits, a
        link that has input is looked after: with `idle` by the dialogue, which gets []."""
        cursor, bell = self.cursor, self.cursor.bell
        if cursor.pinned:
            self.recovered()
        frames = cursor.next_batch(not self.renewal)
        while frames is not None and not frames:
            bell.listen(exchange.ears())
            what = bell.wait(idle)
            if what & OTHER and idle is None:
                exchange.heard()
            frames = cursor.next_batch(not self.renewal)
            if idle is not None and not frames and what != RANG:
                break
        return frames

    def hold(self, idle, exchange, lack):
        """[] for a dialogue that has nobody to send to, when a link has input or after so many
        seconds; the batch before is acknowledged. None when it is over. What is lacking is said
        when ticks wait for it."""
        cursor = self.cursor
        if cursor.pinned:
            self.recovered()
        cursor.next_batch(False)
        if self.renewal or cursor.closing and not cursor.frames:
            return None
        if self.is_over():
            raise Later(lack)
        cursor.bell.listen(exchange.ears())
        most = idle if self.deadline is None else min(idle, max(0, self.deadline - self.now()))
        self.failure = lack if cursor.frames and lack else self.failure
        if not cursor.bell.wait(most) and lack and cursor.frames:
            self.told |= self.say(lack + '; the ticks wait')
        return []

    def done(self, n):
        self.cursor.done(n)
        self.recovered()

    def reject(self, step):
        with self.cursor.spool.lock:
            before = self.cursor.rejected.get(step.frame.seq, 0)
            self.cursor.rejected[step.frame.seq] = before + (step.points or points_of(step.frame))
        self.say('refused: %s' % step.reason, 'refusal')

    def wait(self, seconds):
        """Sleeps; the end cuts it short, and so does a reload that changed the options."""
        until = self.now() + seconds
        self.cursor.bell.listen()
        while self.now() < until and not self.cursor.closing and not self.renewal:
            self.cursor.bell.wait(until - self.now())
        if self.cursor.closing:  # the end: short waits, for there is little time left
            self.clock.sleep(min(seconds, 0.2, max(0.0, (self.deadline or 0) - self.now())))
        elif self.renewal:                      # nor is this one to spin until it gets on
            self.clock.sleep(min(seconds, 0.2))

    def listen(self, seconds, ears):
        """True as soon as one of the descriptors has input, False after so many seconds, None when
        a reload or the end leaves no time to wait."""
        until = self.now() + seconds
        self.cursor.bell.listen(ears)
        while not self.renewal and not self.is_over():
            if self.now() >= until:
                return False
            end = until if self.deadline is None else min(until, self.deadline)
            if self.cursor.bell.wait(max(0, end - self.now())) & OTHER:
                return True
        return None

    def now(self):
        return self.clock.monotonic() / 1000.0

    def patience(self):
        """Seconds that it has at the end of a run in good order."""
        return max(LAST_WORDS, self.role.options.timeout)

    def shortfall(self):
        """`graphite: 3 of 5 ticks were not delivered: Connection refused`, or None."""
        cursor, count = self.cursor, self.cursor.count
        with cursor.spool.lock:
            lost = len(cursor.frames) + count['dropped'] + count['quarantined'] + count['damaged']
            under_way = cursor.pinned
        if (self.retired and not self.failure) or (not lost and not self.retired):
            return None
        reason = (self.failure or under_way and 'it has not answered'
                  or count['dropped'] and 'there was no room for more' or 'they were refused')
        return '%s: %d of %d ticks were not delivered: %s' % (
            cursor.name, lost, count['accepted'], reason)

    def recovered(self):
        if self.told:
            self.log('info', '%s: delivers again' % self.cursor.name)
        self.failures, self.failure, self.told = 0, None, False

    def refused(self, error):
        if self.cursor.refuse(error.split):
            self.say('refused: %s' % error, 'refusal')

    def failed(self, error, reason):
        """Backs off after a failure, the batch kept; True when this is the end."""
        cursor = self.cursor
        code = getattr(error, 'errno', None)
        if getattr(error, 'suspect', False) and cursor.doubt():
            self.say('refused: ' + reason, 'refusal')
        cursor.keep(code != errno.ETIME, not hasattr(error, 'unreached'))
        cursor.last_error = int(self.clock.wall() // 1000)
        if self.role.target[0] == 'stdout' and code in (errno.EPIPE, errno.EBADF):
            self.retired = True
            self.failure = reason if code == errno.EBADF else None      # of no sink's making
            self.close(self.now())
            cursor.give_up()
            return True
        self.failure = reason = self.plain(reason)
        self.failures += 1
        self.told |= self.say(reason if isinstance(error, Later) else reason + '; the ticks wait')
        if code == errno.ETIME and cursor.done_already:
            return self.is_over()               # slow, but it gets on
        longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(self.failures, 10))
        asked = min(max(getattr(error, 'wait', 0), 0), LONGEST_PAUSE)
        if asked and self.deadline is not None and self.now() + asked > self.deadline:
            return True                         # asking again sooner would only annoy the peer
        self.wait(asked or longest * int.from_bytes(os.urandom(4), 'big') / 4294967296.0)
        return self.is_over()

    def is_over(self):
        return self.deadline is not None and self.now() >= self.deadline

    def say(self, reason, what='failure'):
        """Trouble is said when it begins or changes, at most once a minute; the same trouble that
        goes on once an hour. Gives whether it was said."""
        now = self.now()
        before, when = self.said.get(what, (None, -AN_HOUR))
        pause = AN_HOUR if reason == before and self.told else A_MINUTE
        if now - when < pause:
            return False
        self.log('warning', '%s: %s' % (self.cursor.name, self.plain(reason)))
        self.said[what] = reason, now
        return True

    def plain(self, reason):
        """The text without secrets, which a server may have sent back, and not too long."""
        learnt = (self.role.memory or {}).get('secrets')
        for text in hidden(list(self.role.secrets) + learnt) if learnt else self.role.secrets:
            reason = reason.replace(text, '****')
        return reason if len(reason) <= MOST_REASON else reason[:MOST_REASON] + ' ...'

    def note(self, text):
        """What is worth knowing and no failure, once for as long as it stays the same, and not more
        than ten times a minute."""
        now = self.now()
        self.notes = [when for when in self.notes if now - when < A_MINUTE]
        if text != self.noted and len(self.notes) < MOST_NOTES:
            self.log('warning', '%s: %s' % (self.cursor.name, self.plain(text)))
            self.notes.append(now)
        self.noted = text


# == 11 SCHEDULER: ticks on a clock that is passed in ===========================================

LARGEST_STEP = 60000            # ms that the wall clock may go back without time stamps going back
SLEWED = 16                     # while stamps are ahead of the wall clock, waits are so much longer


class Clock:
    """The machine's clocks: wall() and monotonic() in ms, seconds() monotonic in seconds."""

    def wall(self):
        return time.time() * 1000.0

    def monotonic(self):
        return time.monotonic() * 1000.0

    seconds = staticmethod(time.monotonic)

    def sleep(self, seconds):
        time.sleep(seconds)


class Schedule:
    """When ticks fall: on the wall-clock multiples of each of the intervals (ms).

    A tick that was waited for is held, however late the waiting ended; one whose time passed while
    the one before was still busy is skipped, so there are never bursts. A step of the wall clock
    back by up to a minute does not repeat time stamps: they go on from the last one, and longer
    waits let the wall clock catch up. late, skipped: how often a tick began late, and how many were
    never held.
    """

    def __init__(self, clock, intervals, not_before=0):
        self.clock, self.last, self.last_monotonic = clock, None, clock.monotonic()
        self.late, self.skipped, self.lateness = 0, 0, 0.0
        self.point, self.awaited, self.since = None, False, 0
        self.follow(intervals, max(not_before, clock.wall()))

    def follow(self, intervals, since=None):
        """From now on ticks fall on the multiples of these; a point that is awaited stays so."""
        self.intervals = sorted(set(intervals))
        point = self.after(self.last if since is None else since)
        self.point, self.awaited = point, self.awaited and point == self.point

    def change(self, intervals):
        """Other intervals hold from now on, after a reload."""
        if sorted(set(intervals)) != self.intervals:
            self.since = self.clock.wall()      # what came before was no multiple of theirs
        self.follow(intervals, None if self.last else self.clock.wall())

    def after(self, ms):
        """The first grid point after that time."""
        shortest = self.intervals[0]
        if len(self.intervals) == 1:
            return (int(ms) // shortest + 1) * shortest
        return min([(int(ms) // i + 1) * i for i in self.intervals])

    def next(self):
        """(grid point, monotonic ms at which to hold that tick)"""
        wall, now = self.clock.wall(), self.clock.monotonic()
        if self.awaited and 0 <= wall - self.point < self.intervals[0]:
            return self.point, now              # its time has come: nearly always
        ahead = self.last - wall if self.last is not None else 0
        if self.intervals[0] < ahead <= LARGEST_STEP:
            pause = (self.point - self.last) * (SLEWED + 1.0) / SLEWED
            return self.point, self.last_monotonic + pause
        if ahead > LARGEST_STEP or wall < self.point - 2 * self.intervals[-1]:
            self.last = None
            self.follow(self.intervals, wall)
        elif wall >= self.point:
            if not self.awaited:
                self.point = self.after(wall)
            elif wall - self.point >= self.intervals[0]:        # stopped, or suspended
                self.point = max(int(wall) // i * i for i in self.intervals)
        self.awaited = True
        return self.point, now + self.point - wall

    def between(self, start, end):
        """How many grid points lie between two."""
        if len(self.intervals) == 1 or end - start > 1000 * self.intervals[-1]:
            return max(0, (end - start) // self.intervals[0] - 1)
        count, point = 0, self.after(start)
        while point < end:
            count, point = count + 1, self.after(point)
        return count

    def begin(self, point):
        """Called when the tick is held: keeps count of what is late and what was skipped."""
        if self.last is not None and point - self.last > self.intervals[0]:
            self.skipped += self.between(max(self.last, self.since), point)
        self.lateness = max(0.0, self.clock.wall() - point)
        if self.lateness > self.intervals[0] / 10.0:
            self.late += 1
        self.last, self.last_monotonic = point, self.clock.monotonic()
        self.point, self.awaited = self.after(point), False


# == 12 AGENT: configuration to running parts; signals, reload, the end, the re-exec ============

FEW_TICKS, A_WHILE = 5, 20.0    # ticks and seconds: a shorter run need not shed the compiler
IDENTITY_EVERY = 60.0           # seconds between looks at who this host is: addresses come late


# -- user-written modules and emitters --------------------------------------------------------

class UserLogger:
    """What user code gets to log with: callable as the original's, logger("err", msg="...",
    key=value)."""
    NAMES = {'err': 'error', 'warn': 'warning', 'crit': 'error', 'critical': 'error',
             'notice': 'info'}

    def __init__(self, log, name):
        self.log, self.name = log, name

    def __call__(self, level, msg='', **values):
        level = self.NAMES.get(str(level).lower(), str(level).lower())
        words = [str(msg)] + ['%s=%s' % (k, v) for k, v in sorted(values.items())]
        self.log(level if level in LEVELS else 'info',
                 '%s: %s' % (self.name, ' '.join(w for w in words if w)))

    def debug(self, msg='', *args, **values):
        self('debug', msg % args if args else msg, **values)

    def info(self, msg='', *args, **values):
        self('info', msg % args if args else msg, **values)

    def warning(self, msg='', *args, **values):
        self('warning', msg % args if args else msg, **values)

    def error(self, msg='', *args, **values):
        self('error', msg % args if args else msg, **values)

    def exception(self, msg='', *args, **values):
        error = sys.exc_info()[1]
        self('error', msg % args if args else msg,
             **dict(values, **({'error': trouble(error)} if error else {})))


def load_user(chosen, method, log):
    """An instance of the class in the user's file, X(config, logger); ConfigError says what is
    wrong with it."""
    def fail(found, need):
        raise ConfigError('%s: %s: found %s, need %s' % (chosen.file, chosen.name, found, need))
    if 'site' not in sys.modules:  # after the re-exec: user code may want what was installed
        import site
        site.main()
    http = sys.modules.get('http.client')
    if http and not hasattr(http, 'HTTPSConnection'):   # see web_modules()
        for name in ('http.client', 'urllib.request', 'shutil'):
            sys.modules.pop(name, None)
    folder, base = os.path.split(chosen.file)
    if folder not in sys.path:                  # files beside it; last, so that they hide nothing
        sys.path.append(folder)
    code = user_code(chosen)
    try:
        # Under a name of ours: a module of the user's called queue is not the library's.
        space = type(sys)('statbadger_user_' + base[:-3])
        sys.modules[space.__name__] = space
        space.__file__ = chosen.file
        exec(code, space.__dict__)
        names = (base[:-3], chosen.name, chosen.options.type)
        made = [space.__dict__[n] for n in names if isinstance(space.__dict__.get(n), type)]
        if not made:
            fail('no class %s' % names[0], 'one')
        instance = made[0](plain(chosen.given), UserLogger(log, chosen.name))
    except ConfigError:
        raise
    except BaseException as error:              # whatever user code raises
        fail(trouble(error), 'code that loads')
    if not callable(getattr(instance, method, None)):
        fail('a class without %s()' % method, 'one with it')
    return instance


def user_code(chosen):
    """The code object of a user's file; ConfigError says what is wrong with it."""
    try:
        if os.geteuid() == 0 and os.stat(chosen.file).st_mode & 2:
            raise ConfigError('%s: %s: found a file that everybody can write, need one that only '
                              'its owner can, since root runs it' % (chosen.file, chosen.name))
        with open(chosen.file, 'rb') as file:
            return compile(file.read(), chosen.file, 'exec', dont_inherit=True)
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError('%s: %s: found %s: %s, need code that loads' % (
            chosen.file, chosen.name, type(error).__name__, error))


def plain(value):
    """The configuration as user code knows it: plain types, what ${...} gave as text included."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, str) else value


class UserModule:
    """What a user's get_stats() says, as series and values; the same layout while the names
    stay."""

    def __init__(self, name, instance, said, keep):
        self.name, self.instance, self.said, self.keep = name, instance, said, keep
        self.errors, self.key, self.series, self.failing, self.large = 0, None, (), False, False

    def read(self, now, narrow=False, iteration=1):
        try:
            stats = self.instance.get_stats(iteration) or []
            points = [p for stat in stats for p in self.points(stat)]
        except BaseException as error:          # whatever user code raises; it is called again
            self.errors += 1
            if not self.failing:
                self.said('error', '%s: %s' % (self.name, trouble(error)))
            self.failing = True
            return []
        self.failing = False
        points = list({point[0]: point for point in reversed(points)}.values())[::-1]
        key = [(name, unit, isinstance(value, int)) for name, unit, value in points]
        if key != self.key:
            self.key, self.large = key, any(k[2] for k in key)
            self.series = tuple(self.one_series(*k) for k in key)
        return [(self.series, [value for name, unit, value in points])] if points else []

    def points(self, stat):
        """(name, unit, number) of each member; what is no finite number is dropped and counted."""
        for name, point in stat.items() if isinstance(stat, dict) else [(None, None)]:
            value = point.get('value') if isinstance(point, dict) else None
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            finite = number and abs(value) <= sys.float_info.max
            if not finite or not isinstance(name, str) or not name:
                self.errors += 1
            elif self.keep is None or self.keep(name):
                yield name, str(point.get('units') or ''), value

    def one_series(self, name, unit, is_int):
        family, _, rest = name.partition('.')
        if not (family and rest):               # the flat name shall be what the module said
            family, rest = '', name
        return Series(family, rest, unit, GAUGE if is_int else REAL, (), ())

    def rated(self, late, fresh):
        """What is late, less what the fresh answer says anew, and that."""
        return without(late, fresh) + fresh

    def close(self):
        pass                                    # a user's module has no end that it is told of


def user_dialogue(instance, keep):
    """Calls emit_stats(payload, iteration) once per tick; what raises is called again with the same
    tick."""
    while True:
        frames = yield Next()
        for i, frame in enumerate(frames):
            try:
                instance.emit_stats(payload_object(frame, keep), frame.iteration)
            except StopIteration as error:      # before 3.7 it would end this generator in silence
                raise RuntimeError(trouble(error))
            yield Done(i + 1)


class Worker:
    """A module in a thread of its own. ask() starts a reading, collect() waits for it so many
    seconds; what comes later the next call gives, once. took: seconds of the last reading. Owns two
    bells, which its thread closes."""
    LONG = 10.0                                 # seconds of a reading that are worth a warning

    def __init__(self, source):
        self.source, self.asked, self.ready = source, Bell(), Bell()
        self.work, self.answers, self.busy, self.closed = None, [], False, False
        self.took, self.asked_at, self.warned = 0.0, 0.0, False
        _thread.start_new_thread(self.run, ())

    def run(self):
        while True:
            self.asked.wait()
            if self.closed:
                break
            began = time.monotonic()
            try:
                # of Parts, what rated() makes rates of when it is known whether it came in time
                read = getattr(self.source, 'gather', None) or self.source.read
                answer = read(*self.work)
            except Exception as error:          # ours: the thread must live
                self.source.said('error', trouble(error))
                answer = []
            self.took, self.warned = time.monotonic() - began, False
            self.answers.append(answer)
            self.busy = False
            self.ready.ring()
        self.source.close()
        self.asked.close()
        self.ready.close()

    def ask(self, *work):
        """Starts a reading, unless the one before has not ended; gives what that one said too
        late."""
        late, now = self.take(), time.monotonic()
        if not self.busy:
            self.ready.wait(0)
            self.work, self.busy, self.asked_at = work, True, now
            self.asked.ring()
        elif now - self.asked_at > self.LONG and not self.warned:
            self.warned = True
            self.source.said('warning', '%s: a reading takes longer than %d s' % (self.source.name,
                                                                                 self.LONG))
        return late

    def collect(self, patience):
        """What the reading says within so many seconds."""
        if self.busy:
            self.ready.wait(patience)
        return self.take()

    def take(self):
        out = []
        while self.answers:
            out += self.answers.pop(0)
        return out

    def close(self):
        self.closed = True
        self.asked.ring()


def without(late, fresh):
    """The late [(series, values)] less the series that the fresh answer has too."""
    names = set(s.flat for series, values in fresh for s in series)
    out = []
    for series, values in late:
        kept = [i for i, s in enumerate(series) if s.flat not in names]
        if len(kept) == len(series):
            out.append((series, values))
        elif kept:
            out.append((tuple(series[i] for i in kept), [values[i] for i in kept]))
    return out


# -- running parts ----------------------------------------------------------------------------

class Running:
    """One module at work: when it is due, what it costs, where it is read. worker: its own thread,
    if it has one; awaited: whether a tick waits for it a little; parts: of the view, or None."""
    BUDGET = 0.1                                # seconds of a reading between the ticks

    def __init__(self, chosen, interval, source, threaded, parts=None):
        self.chosen, self.interval, self.source = chosen, interval, source
        self.parts = parts
        self.worker = Worker(source) if threaded else None
        self.awaited = not chosen.options['async']
        self.duration, self.last_ms = None, 0   # seconds of the last reading; see due_in_replay
        self.overruns = 0                       # readings in a row that took too long

    def too_slow(self):
        """Whether a module that has no thread of its own should have one. One reading that took
        long may be another's fault."""
        self.overruns = self.overruns + 1 if self.duration > self.BUDGET else 0
        return self.overruns >= 3 and self.chosen.kind != 'self'

    def part(self):
        """From now on it is read in a thread of its own."""
        tree = self.source.tree
        self.source.tree, self.source.alone = Tree(tree.roots, tree.monotonic, tree.hold), True
        self.worker = Worker(self.source)

    def due_in_replay(self, point):
        """A module with an interval of its own is due on the first tick at or after each multiple,
        and until a file of it was there to be read."""
        own = self.chosen.options.interval
        return not own or point // self.interval > self.last_ms // self.interval


class Agent:
    """Everything that runs: modules, emitters, the spool, the schedule. One per program.

    load: () -> Settings, asked again at SIGHUP. Owns the tree, the spool, all threads.
    """

    def __init__(self, load, tree, clock, log, replay=False):
        self.load, self.tree, self.clock, self.log, self.replay = load, tree, clock, log, replay
        self.bell, self.hangup, self.stopping = Bell(), False, False
        self.settings = load()
        self.log.probe(self.settings.log.dest)
        self.configure_log()
        self.spool = Spool(self.settings.spool.memory_bytes)
        self.opener_stdout = StdoutLink()
        self.modules, self.senders, self.left = [], [], []
        self.contexts = Contexts()
        self.layouts, self.latest, self.statm = {}, None, None
        self.identity, self.identity_at = None, 0.0
        self.iteration, self.narrow, self.schedule = 0, None, None
        self.unrecorded = self.unheld = None
        self.last = False                       # whether this is the last of so many ticks
        self.make_modules(self.settings, self.modules)
        self.make_senders(self.settings, self.senders, [])

    # building

    def configure_log(self):
        options = self.settings.log
        self.log.level, self.log.dest = LEVELS.index(options.level), options.dest

    def make_modules(self, settings, out):
        """Adds a Running for each: those of before whose configuration is the same go on as they
        are."""
        before = {r.chosen.name: r for r in self.modules}
        view = view_of(settings.top.view, self.tree)
        for chosen in settings.modules:
            if self.replay and (chosen.kind is None or chosen.kind == 'self'):
                continue
            interval = milliseconds(chosen.options.interval or settings.top.interval)
            old, parts = before.get(chosen.name), None
            if chosen.kind:
                parts = view.parts(MODULES[chosen.kind])
            if (old and old.chosen == chosen and old.interval == interval
                    and old.parts == parts):
                out.append(old)
            else:
                out.append(self.make_module(chosen, interval, view, parts))

    def make_module(self, chosen, interval, view, parts):
        keep, user = unwanted(chosen.options.blacklist), chosen.kind is None
        threaded = not self.replay and (user or chosen.options['async']
                                        or MODULES[chosen.kind].expensive
                                        or view.hangs(MODULES[chosen.kind]))
        if user:
            source = UserModule(chosen.name, load_user(chosen, 'get_stats', self.log), self.log,
                                keep)
        else:
            tree = self.tree
            if threaded:
                tree = Tree(tree.roots, tree.monotonic, tree.hold)
            memory = {'account': self.account} if chosen.kind == 'self' else {}
            source = Parts(chosen.name, parts, chosen.options, tree, self.log,
                           memory, keep, not self.replay, threaded)
        return Running(chosen, interval, source, threaded, parts)

    def make_senders(self, settings, out, renewals):
        """Adds (Chosen, Sender) for each: those of before that are the same keep what is pending,
        and so do those of the same kind whose options changed, which are added to renewals."""
        before = {chosen.name: (chosen, sender) for chosen, sender in self.senders}
        for chosen in settings.emitters:
            old, sender = before.get(chosen.name, (None, None))
            if sender is None or sender.ended or (old != chosen and not (
                    chosen.kind and chosen.kind == old.kind)):
                out.append((chosen, self.make_sender(chosen)))
                continue
            out.append((chosen, sender))
            if old != chosen:
                renewals.append((sender, chosen))

    def make_sender(self, chosen):
        role = self.role_of(chosen)
        cursor = Cursor(self.spool, chosen.name, role)
        return Sender(cursor, role, Opener(self.opener_stdout, self.contexts), self.log, self.clock,
                      self.bell.ring)

    def role_of(self, chosen, before=None):
        """The Role of an emitter that was configured. before: the one that it had, whose memory it
        keeps when it still talks to the same peer."""
        options = chosen.options
        if chosen.kind is None:
            instance = load_user(chosen, 'emit_stats', self.log)
            keep = unwanted(options.blacklist)
            return Role(options, lambda: user_dialogue(instance, keep), 'acknowledged', ('none',))
        kind = EMITTERS[chosen.kind]
        target = kind.link(options)
        memory = before.memory if before and before.target == target else {}
        if not getattr(options, 'tls_verify', True):
            self.log('warning', '%s: takes whatever certificate comes (tls_verify)' % chosen.name)
        return Role(options, lambda: kind.dialogue(options, memory), kind.delivery(options), target,
                    secrets_of(kind.options, options), memory)

    def start_senders(self):
        """Starts the threads of emitters that are new; the spool fills for those that are here."""
        for chosen, sender in self.senders:
            sender.start()
        with self.spool.lock:
            self.spool.cursors = [sender.cursor for sender in self.everyone()]

    def everyone(self):
        """The senders of this configuration, and those of former ones that are not done yet."""
        return [sender for chosen, sender in self.senders] + self.left

    # ticks

    def who(self):
        """The identity, looked at once a minute; the same object while it stays the same."""
        now = self.tree.monotonic()
        if (self.identity is None or now - self.identity_at >= IDENTITY_EVERY
                or not self.identity['hostname']):
            top = self.settings.top
            configured = {key: getattr(top, key) for key in IDENTITY_KEYS}
            found = host_identity(self.tree, configured, self.identity)
            if found != self.identity:
                self.identity = found
            self.identity_at = now
        return self.identity

    def read(self, point):
        """[(series, values)] of all modules that are due; None when none is. point: grid ms, or
        None to prime."""
        tree, now = self.tree, self.tree.monotonic()
        tree.begin()
        if point is None:
            due = self.modules
        elif self.replay:
            due = [r for r in self.modules if r.due_in_replay(point)]
        else:
            due = [r for r in self.modules if not point % r.interval]
        if not due:
            return None
        if self.narrow is None and not self.wide():
            self.narrow = narrow_counters(tree)
        if point is None:  # user code counts its calls: the first tick is its first
            due = [r for r in due if r.chosen.kind]
        found, began, late = [], now, {}
        for running in due:
            if running.worker:
                late[running] = running.worker.ask(now, self.narrow, self.iteration)
        for running in due if point is None else self.modules:
            if running.worker:
                found += self.answers(running, late.get(running), now)
                continue                        # what it took, its thread knows
            if running not in due:
                continue
            found += running.source.read(now, self.narrow)
            if self.replay and running.source.could_read and point is not None:
                running.last_ms = point
            ended = tree.monotonic()
            running.duration, began = ended - began, ended
            if point is not None and not self.replay and running.too_slow():
                self.log('warning', '%s: its readings take longer than %g s: from now on it has a '
                                    'thread of its own' % (running.chosen.name, running.BUDGET))
                running.part()
        tree.fresh.clear()
        return found

    def wide(self):
        """Whether the kernel is known to count in 64 bits without a file of it, which LXCFS may
        give, and which may hang."""
        return sys.maxsize > WRAP and not self.tree.foreign

    def patience(self):
        """Seconds that modules may hold a tick: a tenth of the shortest interval; the last tick all
        of it, for there is no next one to take what comes late."""
        return min(r.interval for r in self.modules) / (1000.0 if self.last else 10000.0)

    def answers(self, running, late, began):
        """What a module in a thread of its own says now, and what it said too late for the tick
        before. It is waited for until a tenth of the shortest interval has passed. late: None for
        one that was not asked, since it is not due."""
        fresh = []
        if late is None:
            return running.source.rated(running.worker.take(), [])
        if running.awaited:
            fresh = running.worker.collect(began + self.patience() - self.tree.monotonic())
        return running.source.rated(late, fresh)

    def tick(self, point):
        """Reads what is due and hands the frame to the spool; False when nothing was due."""
        self.iteration += 1
        found = self.read(point)
        if found is None:
            self.iteration -= 1
            return False
        values = []
        for series, numbers in found:
            values += numbers
        exact = None
        if any([r.source.large for r in self.modules]):
            exact = {i: v for i, v in enumerate(values) if type(v) is int and abs(v) > EXACT}
        frame = Frame(point, self.iteration, self.who(), self.layout(found),
                      array('d', values), exact)
        self.spool.accept(frame)
        return True

    def layout(self, found):
        """The Layout of these series, in order; the same object while they are."""
        key = tuple([id(series) for series, numbers in found])
        entry = self.layouts.get(key)
        if entry is None:
            if len(self.layouts) >= FORMATS_KEPT:
                self.layouts.clear()
            parts = [series for series, numbers in found]
            layout = Layout(tuple(s for part in parts for s in part), self.latest)
            entry = self.layouts[key] = layout, parts
        self.latest = entry[0]
        return self.latest

    def account(self):
        """The rows of the self module."""
        times, schedule = os.times(), self.schedule
        if self.statm is None:                  # held: there may be no descriptor left later
            self.statm = os.open('/proc/self/statm', os.O_RDONLY | os.O_CLOEXEC)
        rss = int(os.pread(self.statm, 200, 0).split()[1]) * os.sysconf('SC_PAGE_SIZE')
        late, skipped, lateness = 0, 0, ABSENT
        if schedule:
            late, skipped, lateness = schedule.late, schedule.skipped, schedule.lateness / 1000.0
        yield SELF, (), [times[0] + times[1], rss, self.iteration, late, skipped, lateness]
        for running in self.modules:
            took = running.worker.took if running.worker else running.duration
            yield SELF_MODULE, (running.chosen.name,), [ABSENT if took is None else took,
                                                        running.source.errors]
        now = self.clock.wall()
        for chosen, sender in self.senders:
            cursor = sender.cursor
            with self.spool.lock:
                count, pending = dict(cursor.count), len(cursor.frames)
                lag = max(0.0, (now - cursor.frames[0].time_ms) / 1000.0) if pending else 0.0
            yield SELF_EMITTER, (chosen.name,), (
                [count[key] for key in ACCOUNT[:-1]] + [pending, count['refused_points'], lag,
                                                        cursor.last_error or ABSENT])

    # running

    def listen(self):
        """Takes the signals over: a handler only leaves a note and rings the bell."""
        quietly = {'warn_on_full_buffer': False} if sys.version_info >= (3, 7) else {}
        _signal.set_wakeup_fd(self.bell.writing, **quietly)
        for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
            _signal.signal(number, self.on_signal)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())

    def on_signal(self, number, frame):
        if number != _signal.SIGHUP and self.stopping:
            os._exit(1)                         # the second one: at once
        self.stopping = self.stopping or number != _signal.SIGHUP
        self.hangup = self.hangup or number == _signal.SIGHUP

    def record_into(self, folder, started):
        """Where this tick's readings are copied to: a folder named by wall time at start plus
        elapsed. A recording that broke ends there, said once; the ticks go on."""
        if not folder or self.unrecorded:
            return
        trees = [self.tree] + [r.source.tree for r in self.modules if r.worker and r.chosen.kind]
        broken = [tree.unrecorded for tree in trees if tree.unrecorded]
        if not broken:
            name = '%.3f' % (started[0] / 1000.0 + (self.clock.monotonic() - started[1]) / 1000.0)
            path = os.path.join(folder, name)
            try:
                os.makedirs(path, exist_ok=True)
            except OSError as error:
                broken = [error]
        for tree in trees:
            tree.record_next = None if broken else path
        if broken:
            self.unrecorded = '--record: %s: %s' % (folder, broken[0].strerror)
            self.log('error', '%s; nothing more is recorded' % self.unrecorded)

    def run(self, ticks=None, record=None):
        """Runs until so many ticks, a signal, or no emitter is left; gives the exit code."""
        started = self.clock.wall(), self.clock.monotonic()
        self.record_into(record, started)
        self.read(None)
        view_of(self.settings.top.view, self.tree)      # what decided stands in a recording too
        self.who()
        self.listen()
        self.start_senders()
        intervals = [r.interval for r in self.modules]
        self.schedule = Schedule(self.clock, intervals, started[0] + min(intervals) / 2.0 - 1)
        while not self.stopping and not self.all_ended():
            point = self.wait_for_tick()
            if point is None:
                continue
            self.schedule.begin(point)
            self.record_into(record, started)
            self.last = ticks == 1
            if self.held(point) and ticks is not None:
                ticks -= 1
                if not ticks:
                    break
        return self.finish()

    def held(self, point):
        """Whether there was a tick; one that fails by a mistake of ours is said, and the agent
        lives."""
        try:
            return self.tick(point)
        except Exception as error:
            if self.unheld != trouble(error):
                self.unheld = trouble(error)
                self.log('error', 'a tick was lost: %s' % self.unheld)
            return True

    def wait_for_tick(self):
        """The grid point whose time has come; None after a wait, or when a signal was attended
        to."""
        point, due = self.schedule.next()
        rest = due - self.clock.monotonic()
        if rest <= 0:
            return point
        if self.bell.wait(min(rest, 10000.0) / 1000.0) or self.left:
            self.attend()
        return None

    def attend(self):
        """What signals asked for, and emitters of former configurations that came to their end."""
        now = self.clock.monotonic() / 1000.0
        for sender in self.left[:]:
            if not sender.ended and now > sender.deadline + LAST_WORDS:
                sender.abandon('it is stuck')
            if sender.ended:
                self.left.remove(sender)
                self.start_senders()
                shortfall = sender.shortfall()
                if shortfall:
                    self.log('error', shortfall)
                if not sender.abandoned:
                    sender.cursor.bell.close()
        if self.hangup and not self.stopping:   # many at once are one
            self.hangup = False
            self.reload()

    def all_ended(self):
        return all(sender.ended for chosen, sender in self.senders)

    def reload(self):
        """A new configuration, whole or not at all; what is the same in it goes on undisturbed."""
        modules, senders, renewals = [], [], []
        try:
            settings = self.load()
            self.log.probe(settings.log.dest)
            self.make_modules(settings, modules)
            self.make_senders(settings, senders, renewals)
            renewed = [(sender, self.role_of(chosen, sender.role)) for sender, chosen in renewals]
            for chosen, sender in senders:
                sender.start()
        except (ConfigError, OSError, RuntimeError) as error:   # the latter: no thread to be had
            for problem in getattr(error, 'problems', [error]):
                self.log('error', 'not reloaded: %s' % problem)
            self.unmake(modules, senders)
            return
        self.change(settings, modules, senders)
        for sender, role in renewed:
            sender.renew(role)
        self.log('info', 'reloaded: %d modules, %d emitters' % (len(modules), len(senders)))

    def change(self, settings, modules, senders):
        """Goes over to what a reload has made."""
        kept = [sender for chosen, sender in senders]
        for running in self.modules:
            if running not in modules and running.worker:
                running.worker.close()
        for chosen, sender in self.senders:
            if sender not in kept:
                sender.close(self.clock.monotonic() / 1000.0 + LAST_WORDS)
                self.left.append(sender)
        self.settings, self.modules, self.senders = settings, modules, senders
        self.configure_log()
        self.identity, self.spool.most = None, settings.spool.memory_bytes
        self.start_senders()
        self.read_new(modules)
        self.schedule.change([r.interval for r in modules])

    def unmake(self, modules, senders):
        """Takes back what was made for a configuration that is not used after all."""
        for running in modules:
            if running not in self.modules and running.worker:
                running.worker.close()
        known = self.everyone()
        for chosen, sender in senders:
            if sender not in known and sender.started:
                sender.close(self.clock.monotonic() / 1000.0)
                self.left.append(sender)
            elif sender not in known:
                sender.cursor.bell.close()

    def read_new(self, modules):
        """The priming read of modules that are new."""
        self.tree.begin()
        for running in modules:
            if running.duration is None and not running.worker:
                running.source.read(self.tree.monotonic(), self.narrow)
                running.duration = 0.0

    def finish(self):
        """Lets every emitter deliver what waits, within its time; prints who could not; gives the
        exit code."""
        now = self.clock.monotonic() / 1000.0
        for chosen, sender in self.senders:
            patience = LAST_WORDS if self.stopping else sender.patience()
            sender.close(now + patience)
        signalled = self.stopping
        while not all(sender.ended for sender in self.everyone()):
            now = self.clock.monotonic() / 1000.0
            late = [s.deadline - now for s in self.everyone() if not s.ended]
            if max(late) <= 0:
                break
            self.bell.wait(max(late))
            if self.stopping and not signalled:
                signalled, end = True, self.clock.monotonic() / 1000.0 + LAST_WORDS
                for sender in self.everyone():
                    sender.deadline = min(sender.deadline, end)
        code = self.report()
        if any(chosen.kind is None for chosen in self.settings.emitters + self.settings.modules):
            self.let_go()
        return code

    def report(self):
        """0 when everything was delivered; else a line per emitter that failed, and 1."""
        lines = [line for line in [sender.shortfall() for sender in self.everyone()] if line]
        for line in lines:
            complain('statbadger: %s' % line)
            if self.log.dest != 'stderr':
                self.log('error', line)
        return 1 if lines or self.unrecorded or self.unheld else 0

    def let_go(self):
        """User code may hold files open, with text that was not written yet: once nobody holds the
        code any more, Python closes them."""
        import atexit
        import gc
        for sender in self.everyone():
            sender.role.talk = None
        for running in self.modules:
            running.source.instance = None
        gc.collect()
        done = Bell()
        _thread.start_new_thread(lambda: (atexit._run_exitfuncs(), done.ring()), ())
        done.wait(1.0)

    def run_replay(self, folder, ticks=None):
        """Runs the pipeline over a recording, as fast as the emitters take it; gives the exit
        code."""
        if not self.modules:
            raise ConfigError('--replay: found no module that reads files, need one')
        shots = snapshots(folder)
        intervals = sorted(r.interval for r in self.modules)
        bound, self.spool.most = self.spool.most, 1 << 62       # nothing is dropped: we wait
        self.listen()
        self.start_senders()
        for i, (ms, path) in enumerate(shots):
            self.tree.roots.update(roots_under(path))
            self.tree.now = (ms - shots[0][0]) / 1000.0
            if i == 0:
                self.read(None)
                self.who()
                for running in self.modules:    # like the first tick of a schedule
                    running.last_ms = ms + intervals[0] // 2 - 1
                continue
            if self.tick(near_grid(ms, intervals)) and ticks is not None:
                ticks -= 1
            self.room(bound)
            if ticks == 0 or self.stopping or self.all_ended():
                break
        return self.finish()

    def room(self, bound):
        """Waits until the emitters have made room; one that takes nothing for longer than its
        patience is given up, so that the others get the rest."""
        progress = {}
        while self.spool.bytes * 2 > bound and not self.all_ended() and not self.stopping:
            self.spool.hurry()
            now = self.clock.monotonic() / 1000.0
            for chosen, sender in self.senders:
                cursor = sender.cursor
                done = cursor.count['accepted'] - len(cursor.frames)
                before, since = progress.get(sender, (None, now))
                progress[sender] = done, now if done != before else since
                if cursor.frames and now - since > sender.patience() and (
                        done == before):
                    sender.abandon('it takes nothing')
            self.clock.sleep(0.002)


def near_grid(ms, intervals):
    """The multiple of an interval, the shortest first, that is within a tenth of it; else ms."""
    for interval in intervals:
        grid = (ms + interval // 2) // interval * interval
        if abs(ms - grid) * 10 <= interval:
            return grid
    return ms


def complain(message):
    """One line on stderr, whatever stderr is."""
    try:
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if poll.poll(0):                        # a terminal that nobody reads must not hold us up
            os.write(2, printable(message).encode()[:PIPE_BUF - 1] + b'\n')
    except OSError:
        pass                                    # nobody to tell


# -- where the configuration comes from ------------------------------------------------------

class Config:
    """Where the configuration comes from; settings() reads and checks it, each time anew."""

    def __init__(self, arguments):
        name = arguments['f']
        self.command = Command(arguments['m'], arguments['e'], arguments['i'], working_folder())
        self.file = name if name != '-' else None
        self.text, self.loaded, shown = None, False, name
        if name == '-':
            self.text, shown = standard_input(), 'standard input'
        elif name is None:
            self.text, shown = BAKED or '', 'baked configuration' if BAKED else 'command line'
        self.place = config_place(shown, self.file or '')

    def settings(self):
        text = self.text
        if text is None:
            text = read_text_or_fail(self.file)
            if self.loaded and JsonReader(text, self.file).is_blank():
                raise ConfigError('%s: found nothing in it, need a configuration' % self.file)
            if not file_stamp(self.file):       # a pipe gives its text once
                self.text = text
        settings = read_config(text, self.place, self.command)
        self.loaded = True
        return settings


def config_place(shown, file):
    """The Place of a configuration: what it refers to is seen from the folder of its file, or else
    from where the program was started."""
    folder = os.path.dirname(os.path.join(working_folder(), file))
    return Place(shown, folder, os.environ, read_text, file_stamp)


def working_folder():
    try:
        return os.getcwd()
    except OSError:
        return ''                               # it was removed


def standard_input():
    """The text on standard input; ConfigError."""
    parts = []
    try:
        while sum(map(len, parts)) <= MOST_TEXT and b'' not in parts:
            parts.append(os.read(0, 65536))
    except OSError as error:
        raise ConfigError('standard input: found nothing that can be read (%s)' % error.strerror)
    return decode(b''.join(parts), 'standard input')


def read_text(path):
    """The text of a file; OSError, or ConfigError when it is too large or no UTF-8."""
    with open(path, 'rb') as file:
        return decode(file.read(MOST_TEXT + 1), path)


def decode(data, name):
    if len(data) > MOST_TEXT:
        raise ConfigError('%s: found more than %d bytes, need fewer' % (name, MOST_TEXT))
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError('%s:%d: found bytes that are no UTF-8, need text' % (
            name, data.count(b'\n', 0, error.start) + 1))


def file_stamp(path):
    """The time of the file's last change in ns, for a file; else 0."""
    try:
        return os.stat(path).st_mtime_ns if os.path.isfile(path) else 0
    except (OSError, ValueError):               # a name that no file can have, before 3.8
        return 0


def read_text_or_fail(path):
    try:
        return read_text(path)
    except OSError as error:
        raise ConfigError('%s: found no file that can be read (%s)' % (path, error.strerror))


# -- the re-exec: a long run sheds the compiler -----------------------------------------------

def own_code():
    """The code object of this very program, as it runs; None when it is imported."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get('__name__') == '__main__' and frame.f_code.co_name == '<module>':
            return frame.f_code if frame.f_globals.get('VERSION') is VERSION else None
        frame = frame.f_back
    return None


def shed(arguments):
    """Goes on as bytecode in the same process: 30 MB resident become 12. Returns when that cannot
    be.

    Python keeps what compiling a large script needed. The module's code object, marshalled behind a
    .pyc header into a file without a name, is run by a new interpreter in this process; the
    arguments stand behind it, where the loader does not look and the process list does not either.
    """
    code = own_code()
    if code is None or not sys.executable or os.environ.get('STATBADGER_NO_REEXEC') or is_traced():
        return
    flags = ['-X', 'statbadger.py', '-S'] + ['-E'] * sys.flags.ignore_environment
    flags += ['-W' + words for words in sys.warnoptions]
    from importlib.util import MAGIC_NUMBER
    header = MAGIC_NUMBER + b'\0' * (12 if sys.version_info >= (3, 7) else 8)
    tail = marshal.dumps(arguments)
    try:
        fd = nameless_file(header + marshal.dumps(code) + tail + struct.pack('<Q', len(tail)))
    except (OSError, ValueError):
        return
    os.environ['MALLOC_ARENA_MAX'] = '1'
    os.environ['MALLOC_MMAP_THRESHOLD_'] = '65536'  # the texts of a tick go back to the kernel
    held = (_signal.SIGHUP, _signal.SIGTERM, _signal.SIGINT)
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, held)       # a SIGHUP in between would kill
    try:
        os.execv(sys.executable, [sys.executable] + flags + ['/proc/self/fd/%d' % fd])
    except OSError:
        os.close(fd)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)


def is_traced():
    """Whether a debugger, a profiler or strace looks on: they would lose sight of the program."""
    if sys.gettrace() or sys.getprofile():
        return True
    try:
        with open('/proc/self/status', 'rb') as file:
            return b'TracerPid:\t0\n' not in file.read()
    except OSError:
        return True


def nameless_file(data):
    """A descriptor of 10 or more, not closed by exec, of a file without a name that holds the
    data."""
    fd = None
    if hasattr(os, 'memfd_create'):
        for flags in (8, 0):                    # MFD_NOEXEC_SEAL, since 6.3
            try:
                fd = os.memfd_create('statbadger', flags)
                break
            except OSError:
                pass
    if fd is None:
        fd = os.open('/dev/shm' if os.path.isdir('/dev/shm') else '/tmp', os.O_TMPFILE | os.O_RDWR,
                     0o600)
    try:
        high = fcntl(fd, F_DUPFD, 10)           # with closed stdio it would be one of 0, 1, 2
    finally:
        os.close(fd)
    view = memoryview(data)
    while view:
        view = view[os.write(high, view):]
    os.lseek(high, 0, 0)
    os.set_inheritable(high, True)
    return high


def shed_arguments():
    """The arguments that shed() left behind the bytecode; None in a first run."""
    path = sys.argv[0] if sys.argv else ''
    if 'statbadger.py' not in sys._xoptions or not path.startswith('/proc/self/fd/'):
        return None
    fd = int(path.rpartition('/')[2])
    size, = struct.unpack('<Q', os.pread(fd, 8, os.fstat(fd).st_size - 8))
    arguments = marshal.loads(os.pread(fd, size, os.fstat(fd).st_size - 8 - size))
    os.close(fd)
    return arguments


def settle_in():
    """What a long run sets up once: its name in the process list, no garbage from the start to walk
    through again. Threads switch every 5 ms, as Python has it: ten times as often costs a tenth
    more of processor time with many emitters."""
    try:
        with open('/proc/self/comm', 'w') as file:
            file.write('statbadger')
    except OSError:
        pass                                    # a name is not needed
    import gc
    gc.collect()
    if hasattr(gc, 'freeze'):
        gc.freeze()


# == 13 COMMAND LINE: what each flag does =======================================================

ONCE, EACH, SWITCH, MAYBE = 'once', 'each', 'switch', 'maybe'      # how a flag takes a value
FLAGS = (                       # flag, how, its value in words, help
    ('-f', ONCE, 'FILE', 'configuration; - is standard input'),
    ('-e', EACH, 'NAME[,key=value...]', 'emitter, instead of those of the configuration'),
    ('-m', EACH, 'NAME[,key=value...]', 'module, likewise'),
    ('-i', ONCE, 'SECONDS', 'interval between ticks'),
    ('-n', ONCE, 'TICKS', 'so many ticks, then the end; exit code 0 when all of it was delivered'),
    ('--root', ONCE, 'DIR', 'read DIR/proc and DIR/sys instead of /proc and /sys'),
    ('--record', ONCE, 'DIR', 'copy what is read, tick by tick, into DIR/<time>/proc/...'),
    ('--replay', ONCE, 'DIR', 'run over such a recording, as fast as it goes'),
    ('--check', SWITCH, '', 'check the configuration and print what would run'),
    ('--list', MAYBE, '[WHAT]', 'what there is: modules, emitters or metrics'),
    ('--example-config', SWITCH, '', 'print a configuration with every option in it'),
    ('--print-druid-supervisor', SWITCH, '',
     'print what makes Druid read what the kafka emitter writes with "format": "flat"'),
    ('--bake', ONCE, 'FILE', 'print a copy of this program with the configuration FILE inside'),
    ('--version', SWITCH, '', 'print the version'),
    ('-h', MAYBE, '[NAME]', 'this text, or the options of one module or emitter'),
)


def usage():
    """What -h prints."""
    words = ['[%s]%s' % ((flag + ' ' + value).strip(), '...' * (how == EACH))
             for flag, how, value, help in FLAGS]
    lines = ['usage: statbadger.py']
    for word in words:
        if len(lines[-1]) + len(word) > 88:
            lines.append(' ' * 20)
        lines[-1] += ' ' + word
    lines += ['', "Reads this host's counters from /proc every second and sends them on.",
              'Without arguments: the stock modules, on the screen.', '']
    lines += ['  %-24s %s' % ((flag + ' ' + value).strip(), help)
              for flag, how, value, help in FLAGS]
    return '\n'.join(lines + [''])


def parse(argv):
    """{flag without dashes: value} of the command line; ConfigError for what it cannot be.

    Not by argparse, which some minimal interpreters cannot import (3.8 without shutil), which takes
    20 ms, and whose optional values, glued values and errors would need mending on every version.
    """
    kinds = {flag: (how, value) for flag, how, value, help in FLAGS}
    out = {key(flag): {EACH: [], SWITCH: False}.get(how) for flag, how, value, help in FLAGS}
    words = list(argv)
    while words:
        flag, value = split_flag(words.pop(0), kinds)
        how, need = kinds[flag]
        if how == SWITCH:
            if value is not None:
                raise ConfigError('%s: found a value, need none' % flag)
            value = True
        elif value is None and words and words[0] not in kinds and (
                how != MAYBE or not words[0].startswith('-')):
            value = words.pop(0)
        elif value is None and how != MAYBE:
            raise ConfigError('%s: found nothing behind it, need %s' % (flag, need))
        out[key(flag)] = out[key(flag)] + [value] if how == EACH else value or ''
    return out


def key(flag):
    return flag.strip('-').replace('-', '_')


def split_flag(word, kinds):
    """(flag, the value glued to it or None) of one word."""
    flag, value = word, None
    if word.startswith('--') and '=' in word:
        flag, _, value = word.partition('=')
    elif word[:1] == '-' and word[1:2] != '-' and len(word) > 2:
        flag, value = word[:2], word[2:]
    flag = '-h' if flag == '--help' else flag
    if flag not in kinds:
        shown = word.split('=')[0].split(',')[0]        # a password may stand behind it
        raise ConfigError('command line: found %s, need one of %s%s' % (
            json_text(shown), ', '.join(kinds), did_you_mean(flag, kinds)))
    return flag, value


def main(argv):
    """Runs the command line; gives the exit code."""
    try:
        arguments = shed_arguments()
        if arguments is None:
            arguments = parse(argv)
            if arguments['h'] is not None:
                return show(help_of(arguments['h']) + '\n' if arguments['h'] else usage())
            for flag, output in (('version', version), ('example_config', example_config)):
                if arguments[flag]:
                    return show(output())
            if arguments['list'] is not None:
                return show(listing(arguments['list']))
            check_arguments(arguments)
            if arguments['bake'] is not None:
                return show(bake(arguments['bake']))
            if arguments['print_druid_supervisor']:
                return show(supervisor(arguments))
            if is_long(arguments) and not arguments['check'] and not arguments['replay']:
                shed(arguments)
        return run(arguments)
    except ConfigError as error:
        for problem in error.problems:
            complain(problem)
        return 2
    except Exception as error:                  # no descriptor, no thread, or a mistake of ours
        complain('statbadger: cannot run: %s' % trouble(error))
        return 1


def version():
    return 'statbadger %s\n' % VERSION


def is_long(arguments):
    """Whether a run is worth shedding the compiler for."""
    if not arguments['n']:
        return True
    interval = arguments['i'] or '1'
    ticks = int(arguments['n'])
    return ticks > FEW_TICKS or is_decimal(interval) and ticks * float(interval) > A_WHILE


def check_arguments(arguments):
    """Mistakes that can be told before anything runs."""
    n = arguments['n']
    if n is not None and (n.strip('0123456789') or not n.strip('0') or len(n) > 15):
        raise ConfigError('-n: found %s, need a whole number of ticks from 1' % json_text(n))
    for flag, value in (('-f', arguments['f']), ('--bake', arguments['bake'])):
        if value == '':
            raise ConfigError('%s: found "", need a file' % flag)
    if arguments['f'] == '-' and program_from_stdin():
        raise ConfigError('-f -: found the program itself on standard input, need a file')
    for flag in ('root', 'replay'):
        if arguments[flag] is not None and not os.path.isdir(arguments[flag]):
            raise ConfigError('--%s: found %s, need a folder' % (flag, json_text(arguments[flag])))
    for top, name in HOST_VARIABLES:
        value = '' if arguments['root'] or arguments['replay'] else os.environ.get(name, '')
        if value and not os.path.isdir(value):
            raise ConfigError('%s: found %s, need a folder' % (name, json_text(value)))
    if arguments['replay'] is not None and not snapshots(arguments['replay']):
        raise ConfigError('--replay: found %s, need a folder that --record made'
                          % json_text(arguments['replay']))
    for flag in ('e', 'm', 'i', 'n', 'f'):
        if arguments['bake'] is not None and arguments[flag]:
            raise ConfigError('--bake: found -%s with it, need the file alone' % flag)
    for flag in ('root', 'record'):
        if arguments['replay'] is not None and arguments[flag] is not None:
            raise ConfigError('--replay: found --%s with it, need one of them' % flag)
    if arguments['record'] is not None and not arguments['check']:
        try:
            os.makedirs(arguments['record'], exist_ok=True)
        except OSError as error:
            raise ConfigError('--record: found %s (%s), need a folder to write to' % (
                json_text(arguments['record']), error.strerror))


def program_from_stdin():
    return '__file__' not in globals() or os.path.basename(__file__) == '<stdin>'


def run(arguments):
    """Checks, or runs the agent, live or over a recording."""
    config = Config(arguments)
    if arguments['check']:
        settings = config.settings()
        for chosen in settings.modules + settings.emitters:
            if chosen.kind is None:
                user_code(chosen)
        return show(description(settings, config.place.name, arguments))
    clock, log = Clock(), Log()
    if arguments['record']:
        log('warning', 'recording: command lines and names in it may hold secrets')
    ticks = int(arguments['n']) if arguments['n'] else None
    if arguments['replay']:
        first = snapshots(arguments['replay'])[0][1]
        tree = Tree(roots_under(first), lambda: tree.now, frozen=True)
        tree.now = 0.0
        agent = Agent(config.settings, tree, clock, log, replay=True)
        return agent.run_replay(arguments['replay'], ticks)
    tree = host_tree(arguments['root'], os.environ, Clock.seconds)
    agent = Agent(config.settings, tree, clock, log)
    settle_in()
    view = view_of(agent.settings.top.view, tree)
    if ticks is None and (log.dest != 'stderr' or os.isatty(2) or view.aloud):
        log('info', announcement(agent.settings, tree, view))
    return agent.run(ticks, arguments['record'])


def announcement(settings, tree, view):
    """`reads /proc every 1 s (cpu, load), view host: this is the first PID namespace of the system;
    sends to graphite -> tcp 10.0.0.9 2003`: for people who look at a terminal on which nothing else
    appears, for the log file, and for a container's log."""
    return 'reads %s every %g s (%s), view %s: %s; sends to %s' % (
        tree.roots['proc'], settings.top.interval, ', '.join(m.name for m in settings.modules),
        view.name, view.why,
        ', '.join(e.name + destination(e, shown_instead(settings, 'emitters', e))
                  for e in settings.emitters))


def show(text):
    """Prints, and gives the exit code: a reader that goes away is no error, a full disk is."""
    data = memoryview(text.encode('utf-8', 'replace'))
    try:
        while data:
            data = data[os.write(1, data):]
    except BrokenPipeError:
        pass
    except OSError as error:
        complain('statbadger: standard output: %s' % error.strerror)
        return 1
    return 0


def description(settings, name, arguments):
    """What would run, for --check: a line per module and emitter."""
    tree = host_tree(arguments['root'], os.environ, Clock.seconds)
    view = view_of(settings.top.view, tree)
    identity = host_identity(tree, {key: getattr(settings.top, key) for key in IDENTITY_KEYS})
    lines = ['%s: ok' % name, '',
             'host      ' + ' '.join('%s=%s' % (k, v) for k, v in identity.items() if v),
             'reads     %s and %s, every %g s' % (tree.roots['proc'], tree.roots['sys'],
                                                  settings.top.interval),
             'view      %s: %s' % (view.name, view.why),
             'spool     in memory, at most %d bytes' % settings.spool.memory_bytes,
             'log       %s and above to %s' % (settings.log.level, settings.log.dest), '']
    for what, chosen_ones in (('modules', settings.modules), ('emitters', settings.emitters)):
        for chosen in chosen_ones:
            hidden = shown_instead(settings, what, chosen)
            lines.append('%-9s %s' % (what[:-1], described(chosen, hidden)))
    return '\n'.join(lines + [''])


def shown_instead(settings, what, chosen):
    """{option: what to show instead of its value} for those whose value came from outside."""
    return {path[2]: json_text(text) if len(path) == 3 else '****'
            for path, text in settings.hidden.items() if path[:2] == (what, chosen.name)}


def destination(chosen, hidden):
    """` -> tcp 10.0.0.9 2003`, or '' for what is no kind of ours."""
    if chosen.kind not in EMITTERS:
        return ''
    own = {o.name for o in EMITTERS[chosen.kind].options if o.kind not in (secret, http_headers)}
    secrets = [str(chosen.options[name]) for name in own.intersection(hidden)]
    scheme, *words = ['tls' if isinstance(word, tuple) else str(word)
                      for word in EMITTERS[chosen.kind].link(chosen.options) if word]
    return ' -> ' + ' '.join([scheme] + [
        '****' if any(text and (text in word or word in text) for text in secrets) else word
        for word in words])


def described(chosen, hidden):
    """`graphite: host "10.0.0.9", timeout 5 -> tcp 10.0.0.9 2003`: the options that are not the
    default, and where it talks to."""
    common, kinds = ((EMITTER_OPTIONS, EMITTERS) if hasattr(chosen.options, 'flush')
                     else (MODULE_OPTIONS, MODULES))
    own = kinds[chosen.kind].options if chosen.kind else USER_OPTIONS
    declared = shared(common, own) + own
    words = ['%s %s' % (o.name, hidden.get(o.name) or json_value(chosen.options[o.name]))
             for o in declared if chosen.options[o.name] != o.default]
    return chosen.name + (': ' + ', '.join(words) if words else '') + destination(chosen, hidden)


def listing(what):
    """What --list prints: names and help, or every metric with unit, kind, source and help."""
    if what not in ('', 'modules', 'emitters', 'metrics'):
        raise ConfigError('--list: found %s, need modules, emitters or metrics' % json_text(what))
    if what == 'metrics':
        rows = [('NAME', 'UNIT', 'KIND', 'SOURCE', 'HELP')]
        for kind in MODULES.values():
            for table in kind.tables:
                rows += metric_rows(table)
        known = {}                              # once, though another view gives it too
        for row in rows:
            known.setdefault(row[0], row)
        return columns(list(known.values()))
    out = []
    for title, registry in (('modules', MODULES), ('emitters', EMITTERS)):
        if what in ('', title):
            rows = [(name, kind.help) for name, kind in registry.items()]
            out.append((title.upper() + '\n' if not what else '') + columns(rows))
    return '\n'.join(out)


def metric_rows(table):
    instance = ''.join('.' + label.upper() for label in getattr(table, 'labels', ()))
    if isinstance(table, OpenTable):
        return [('%s.*' % table.family, table.unit, table.kind, table.source, table.help)]
    return [('%s.%s%s' % (table.family, m.name, instance), m.unit,
             GAUGE if m.kind == REAL else m.kind, table.source, m.help)
            for m in table.columns if m.kind not in HIDDEN]


def columns(rows):
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ''.join('  '.join(word.ljust(w) for word, w in zip(row, wide)).rstrip() + '\n'
                   for row in rows)


def supervisor(arguments):
    """What --print-druid-supervisor prints: the supervisor of the datasource of the druid emitter,
    where there is one, for the kafka emitter of the configuration."""
    settings, flag = Config(arguments).settings(), '--print-druid-supervisor'
    kafka = [one for one in settings.emitters if one.kind == 'kafka']
    flat = [one for one in kafka if one.options.format == 'flat']
    names = sorted({one.options.datasource for one in settings.emitters if one.kind == 'druid'})
    if len(flat) != 1:
        raise ConfigError('%s: found %s, need one kafka emitter with "format": "flat"%s' % (
            flag, ', '.join(['%s with "format": %s' % (one.name, json_text(one.options.format))
                             for one in kafka]) or 'none',
            ': which one says -e NAME' if flat else ''))
    if len(names) > 1:
        raise ConfigError('%s: found the datasources %s, need one: which one says -e NAME' % (
            flag, ', '.join(map(json_text, names))))
    options = flat[0].options
    try:
        check_druid_tags(options.tags)
        consumer = kafka_consumer(options)
    except ValueError as error:
        raise ConfigError('%s: %s: %s' % (flag, flat[0].name, error))
    tree = host_tree(arguments['root'], os.environ, Clock.seconds)
    identity = host_identity(tree, {key: getattr(settings.top, key) for key in IDENTITY_KEYS})
    return json_page(druid_supervisor(
        (names or [DATASOURCE])[0], options.tags, kafka_topic(options.topic, identity),
        consumer)) + '\n'


def bake(name):
    """The text of this program with the configuration inside, so that one file is all there is to
    copy."""
    if program_from_stdin():
        raise ConfigError('--bake: found the program on standard input, need it in a file')
    text = read_text_or_fail(name)
    settings = read_config(text, config_place(name, name))
    for chosen in settings.modules + settings.emitters:
        if chosen.kind is None and not os.path.isabs(chosen.options.file):
            raise ConfigError('--bake: %s: found the file %s, need an absolute path, for the copy '
                              'may stand anywhere and user code stays outside of it' % (
                                  chosen.name, json_text(chosen.options.file or chosen.file)))
    program = read_text_or_fail(__file__)
    start = program.index('\nBAKED = ') + 1
    end = program.index('\n\n\n# == 1 ', start)
    pieces = ''.join('\n    %s' % ascii(piece) for piece in text.splitlines(True)) or " ''"
    return program[:start] + 'BAKED = (%s)' % pieces + program[end:]


def leave(code):
    """Ends the program at once: threads that are stuck in a dead peer do not hold it up."""
    os._exit(code)


def guard_stdio():
    """A closed standard descriptor becomes /dev/null, lest the next file opened take its place;
    opened the wrong way round, so that using it still fails."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open('/dev/null', os.O_RDONLY if fd else os.O_WRONLY)


if __name__ == '__main__':
    guard_stdio()
    try:
        leave(main(sys.argv[1:]))
    except KeyboardInterrupt:
        leave(130)
