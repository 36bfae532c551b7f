"""A stand-in for InfluxDB 1.8, 2.7 and 3: line protocol over HTTP, and what each of them says when it is not content.

Versions 2 and 3 do not run on every machine, so what is here is what their sources say (models/points.go,
tsdb/shard.go and http/write_handler.go of 2.7; influxdb3_server/src/http.rs and the influxdb_line_protocol crate).
It is stricter than any of them: what they read differently it takes for malformed.
"""
import base64
import json
import re
import urllib.parse

from standins import HttpStandin

NUMBER = re.compile(r'-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?\Z')
RESERVED = ('time', '_field', '_measurement')


class BadLine(Exception):
    """A line that is no line protocol; the text says why, as the server would."""


def word(line, at, ends):
    """(text, its end) from there up to one of the characters in ends that is not escaped."""
    out = ''
    while at < len(line) and line[at] not in ends:
        if line[at] == '\\' and line[at + 1:at + 2] in (',', ' ', '=') and (line[at + 1] in ends or '=' in ends):
            at += 1
        elif line[at] == '\\' and line[at + 1:at + 2] in ('', '\\', ',', ' ', '='):
            raise BadLine('a backslash that servers read in different ways')
        out += line[at]
        at += 1
    return out, at


def parsed(line):
    """(measurement, {tag: value}, {field: number}, time) of a line."""
    if any(c < ' ' or c == '\x7f' for c in line):
        raise BadLine('a control character')
    measurement, at = word(line, 0, ', ')
    if not measurement or measurement.startswith('#'):
        raise BadLine('missing measurement')
    tags, fields = {}, {}
    while line[at:at + 1] == ',':
        key, at = word(line, at + 1, ',= ')
        value, at = word(line, at + 1, ',= ') if line[at:at + 1] == '=' else ('', at)
        if not key or not value or key in tags or key in RESERVED:
            raise BadLine('tag %r: empty, twice or reserved' % key)
        tags[key] = value
    if list(tags) != sorted(tags):
        raise BadLine('tags out of order')
    while not fields or line[at:at + 1] == ',':
        key, at = word(line, at + 1, ',= ')
        value, at = word(line, at + 1, ', ') if line[at:at + 1] == '=' else ('', at)
        if not key or key in fields or key in tags or key in RESERVED or '"' in key:
            raise BadLine('field %r: empty, twice, reserved, quoted or a tag' % key)
        if not NUMBER.match(value) or not re.search('[.eE]', value):
            raise BadLine('invalid number')
        fields[key] = float(value)
    if not re.match(r' -?[0-9]+\Z', line[at:]):
        raise BadLine('bad timestamp')
    return measurement, tags, fields, int(line[at + 1:])


class Refusal(Exception):
    """A status and the body of an answer."""

    def __init__(self, status, text, **more):
        Exception.__init__(self, text)
        self.status, self.text, self.more = status, text, more


class InfluxdbStandin(HttpStandin):
    """names: its databases (1.8: `db` or `db/rp`; 3 makes them as they come) or buckets of the org `o`. users:
    {name: password}, tokens: those that are known; without both everybody may write. types: {(measurement, field):
    type} of fields that are no floats. oldest: ms of the oldest point that it keeps. largest: bytes of a body.

    stored: [(measurement, {tag: value}, {field: number}, ms)] in the order they came.
    """

    def __init__(self, version=1, names=('t',), users=None, tokens=(), tls=None, **more):
        self.version, self.names, self.users, self.tokens = version, set(names), users or {}, tokens
        self.types, self.oldest, self.largest = more.get('types', {}), more.get('oldest', 0), more.get('largest', 1 << 24)
        self.stored = []
        HttpStandin.__init__(self, tls)

    def points(self):
        """[(measurement, {tag: value}, field, number, ms)] as a query would show them: the last write wins."""
        found = {}
        with self.lock:
            stored = list(self.stored)
        for measurement, tags, fields, stamp in stored:
            for field, value in fields.items():
                found[measurement, tuple(sorted(tags.items())), field, stamp] = value
        return [(m, dict(tags), field, value, stamp) for (m, tags, field, stamp), value in found.items()]

    def reply(self, request):
        path, _, query = request.path.partition('?')
        given = urllib.parse.parse_qsl(query, keep_blank_values=True)
        try:
            if request.method != 'POST' or path not in ('/write', '/api/v2/write'):
                raise Refusal(404, '404 page not found', plain=True)
            self.check_login(request)
            self.check_place(path, dict(given), len(given))
            if len(request.body or b'') > self.largest:
                raise Refusal(413, 'Request Entity Too Large')
            self.write(request)
            return 204, {}, b''
        except Refusal as refusal:
            return refusal.status, {'Content-Type': 'application/json'}, self.worded(refusal)

    def worded(self, refusal):
        if refusal.more.get('plain'):
            return refusal.text
        if self.version == 2:
            names = {400: 'invalid', 401: 'unauthorized', 404: 'not found', 413: 'request too large',
                     422: 'unprocessable entity'}
            return json.dumps({'code': names[refusal.status], 'message': refusal.text})
        return json.dumps(dict({'error': refusal.text}, **refusal.more))

    def check_login(self, request):
        scheme, _, rest = request.headers.get('authorization', '').partition(' ')
        known = not self.users and not self.tokens
        if scheme == 'Basic':
            name, _, password = base64.b64decode(rest).decode().partition(':')
            known = self.users.get(name) == password and password is not None
        elif scheme == 'Token':
            known = rest in self.tokens
        if not known:
            raise Refusal(401, 'authorization failed' if self.version == 1 else 'unauthorized access')

    def check_place(self, path, given, n):
        if given.get('precision') != 'ms' or len(given) != n or '' in given.values():
            raise Refusal(400, 'invalid precision, or a parameter twice or without a value')
        name = given.get('db', '') + ('/' + given['rp'] if 'rp' in given else '')
        if path == '/api/v2/write':
            name = given.get('bucket', '')
            if self.version == 2 and given.get('org') != 'o':
                raise Refusal(404, 'organization name "%s" not found' % given.get('org'))
        if self.version < 3 and name not in self.names:
            if self.version == 2:
                raise Refusal(404, 'bucket "%s" not found' % name)
            if name.partition('/')[0] in self.names:
                raise Refusal(500, 'retention policy not found: ' + name.partition('/')[2])
            raise Refusal(404, 'database not found: "%s"' % name)

    def write(self, request):
        good, bad = [], []
        if request.body is None:
            raise Refusal(400, 'gzip: invalid header')
        lines = request.body.decode().split('\n')
        if lines.pop() != '':
            raise Refusal(400, 'a last line without its end')
        for number, line in enumerate(lines):
            try:
                good.append((number + 1, line, parsed(line)))
            except BadLine as error:
                bad.append((number + 1, line, str(error)))
        (self.write3 if self.version == 3 else self.write12)(good, bad)

    def store(self, good):
        with self.lock:
            self.stored.extend(point for _, _, point in good)

    def conflict(self, point):
        """The name of a field whose type is another one, or None."""
        return next((field for field in point[2] if (point[0], field) in self.types), None)

    def write12(self, good, bad):
        words = '\n'.join("unable to parse '%s': %s" % (line, why) for _, line, why in bad)
        if bad and (self.version == 2 or not good):
            raise Refusal(400, words)
        new = [one for one in good if one[2][3] >= self.oldest]
        fine = [one for one in new if not self.conflict(one[2])]
        self.store(fine)
        if len(fine) < len(new):
            point = [one[2] for one in new if self.conflict(one[2])][0]
            field = self.conflict(point)
            self.partial('field type conflict: input field "%s" on measurement "%s" is type float, already exists as type %s'
                         % (field, point[0], self.types[point[0], field]), len(new) - len(fine))
        if len(new) < len(good):
            n = len(good) - len(new)
            if self.version == 1:
                self.partial('points beyond retention policy', n)
            self.partial('dropped %d points outside retention policy of duration 1h0m0s - oldest x, newest y' % n, n,
                         ' for database: t for retention policy: autogen')
        if bad:
            self.partial(words, 0)

    def partial(self, reason, dropped, more=''):
        text = 'partial write: %s dropped=%d%s' % (reason, dropped, more)
        raise Refusal(400, text) if self.version == 1 else Refusal(
            422, 'failure writing points to database: ' + text)

    def write3(self, good, bad):
        fine = [one for one in good if not self.conflict(one[2])]
        bad += [(number, line, "invalid column type for column '%s', expected iox::column_type::field::integer, got "
                 "iox::column_type::field::float" % self.conflict(point))
                for number, line, point in good if self.conflict(point)]
        self.store(fine)
        if bad:
            raise Refusal(400, 'partial write of line protocol occurred', data=[
                {'original_line': line[:60], 'line_number': number, 'error_message': why}
                for number, line, why in sorted(bad)[:100]])
