"""Stand-ins for OpenTSDB 2.4.1 and KairosDB 1.3.0, over HTTP and telnet: they refuse what those were seen to refuse.

.points: {(metric, ms, sorted tags): number}, in the order in which they came; the same point takes its own place.
"""
import base64
import json
import re
import urllib.parse

from standins import Bad, Hangup, HttpStandin, Listener

WORD = re.compile(r'[^\W_]|[-_./]')             # letters of any script, digits, and these four
INTEGER = re.compile(r'-?[0-9]+\Z')
REAL = re.compile(r'[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\Z')
VERSION = (b'net.opentsdb.tools 2.4.1 built at revision eb125a3 (MINT)\n'
           b'Built on 2021/09/08 18:43:17 +0000 by someone@somewhere:/home/db\n')


class Store:
    """What all four share. unknown: metrics that were not made, or None when each is made at once; slow: a text
    that every put fails with; dislikes: part of a metric that is refused."""
    unknown, slow, dislikes, most_tags = None, None, 't.marker', 8

    def store(self, metric, ms, number, tags):
        with self.lock:
            self.points[metric, ms, tuple(sorted(tags.items()))] = number

    def numbers(self, metric):
        """[(ms, number)] in the order in which they came."""
        with self.lock:
            return [(key[1], number) for key, number in self.points.items() if key[0] == metric]


def checked(text, what):
    """A metric, or the key or value of a tag, as OpenTSDB takes it."""
    if not text:
        raise Bad('Invalid %s: empty string' % what)
    for letter in text:
        if not WORD.match(letter):
            raise Bad('Invalid %s ("%s"): illegal character: %s' % (what, text, letter))
    return text


class OpenTsdbStore(Store):
    def put(self, metric, stamp, value, tags):
        """Stores a point, or raises Bad with what OpenTSDB says."""
        if not INTEGER.match(stamp) or int(stamp) <= 0:
            raise Bad('Invalid timestamp')
        if not INTEGER.match(value) and not REAL.match(value):
            raise Bad('Unable to parse value to a number')
        if INTEGER.match(value) and abs(int(value)) >= 1 << 63 or float(value) in (float('inf'), float('-inf')):
            raise Bad('Unable to parse value to a number')
        if not tags:
            raise Bad('Missing tags')
        if len(tags) > self.most_tags:
            raise Bad('Too many tags: %d maximum allowed: %d' % (len(tags), self.most_tags))
        checked(metric, 'metric name')
        for key, text in tags.items():
            checked(key, 'tag name')
            checked(text, 'tag value with key [%s]' % key)
        if self.unknown is not None and metric in self.unknown:
            raise Bad('Unknown metric')
        if self.dislikes and self.dislikes in metric:
            raise Bad('I do not like ' + self.dislikes)
        if self.slow:
            raise Bad(self.slow)
        ms = int(stamp) if int(stamp) >> 32 else int(stamp) * 1000
        self.store(metric, ms, float(value), tags)


class OpenTsdbStandin(OpenTsdbStore, HttpStandin):
    """POST /api/put. users: {name: password} that Basic must show; largest: bytes of a body."""

    def __init__(self, tls=None, users=None, largest=8192):
        self.points, self.users, self.largest = {}, users, largest
        HttpStandin.__init__(self, tls)

    def reply(self, request):
        if not authorized(request, self.users):
            return 401, {}, 'who are you?'
        if len(request.raw) > self.largest:
            return 400, {'Content-Type': 'text/html'}, 'Chunked request not supported.'
        path, _, query = request.path.partition('?')
        if path not in ('/api/put', '/api/v1/put'):
            return 404, {}, json.dumps({'error': {'code': 404, 'message': 'Endpoint not found'}})
        asked = urllib.parse.parse_qs(query, keep_blank_values=True)
        try:
            points = json.loads(request.body.decode())
            points = points if isinstance(points, list) else [points]
            assert points
        except (ValueError, AttributeError, AssertionError):
            return 400, {}, json.dumps({'error': {'code': 400, 'message': 'Unable to parse the given JSON'}})
        errors = []
        for point in points:
            try:
                self.put(point.get('metric', ''), str(point.get('timestamp')), str(point.get('value')),
                         point.get('tags', {}))
            except Bad as bad:
                errors.append({'datapoint': dict(point, value=str(point.get('value'))), 'error': str(bad)})
        if 'details' not in asked:
            return (400, {}, '{"error":{"code":400}}') if errors else (204, {}, b'')
        return 400 if errors else 200, {}, json.dumps(
            {'success': len(points) - len(errors), 'failed': len(errors), 'errors': errors})


def authorized(request, users):
    match = re.match(r'Basic ([A-Za-z0-9+/]+={0,2})\Z', request.headers.get('authorization', ''))
    name, _, password = base64.b64decode(match.group(1)).decode().partition(':') if match else ('', '', '')
    return users is None or users.get(name) == password


class Telnet(Listener):
    """Lines; .received has the bytes of each connection. deaf: lines are read and nothing is said."""
    deaf = False

    def __init__(self, tls=None):
        self.points, self.received = {}, []
        Listener.__init__(self, tls)

    def talk(self, wire):
        data = bytearray()
        with self.lock:
            self.received.append(data)
        while True:
            line = wire.until(b'\n', self.longest)
            data += line
            said = self.said(line.rstrip(b'\r\n'))
            if said and not self.deaf:
                wire.send(said)


class OpenTsdbTelnet(OpenTsdbStore, Telnet):
    longest = 1 << 20

    def said(self, line):
        if len(line) > 1024:
            raise Hangup()
        words = line.decode('latin-1').split(' ')
        if words[0] == 'version':
            return VERSION
        if words[0] != 'put':
            return b"unknown command: %s.  Try `help'.\n" % words[0].encode('latin-1')
        try:
            if len(words) < 5:
                raise Bad('not enough arguments (need least 4, got %d)' % (len(words) - 1))
            tags = {}
            for word in words[4:]:
                key, mark, value = word.partition('=')
                if not key or not value or '=' in value:
                    raise Bad('invalid tag: ' + word)
                if tags.setdefault(key, value) != value:
                    raise Bad('duplicate tag: %s' % word)
            self.put(words[1], words[2], words[3], tags)
        except Bad as bad:
            why = str(bad)
            if why == 'Unknown metric':
                why = "unknown metric: No such name for 'metrics': '%s'" % words[1]
            elif why != self.slow:
                why = 'illegal argument: ' + why
            return ('put: %s\n' % why).encode('latin-1')
        return b''


class KairosStore(Store):
    def put(self, metric, ms, value, tags):
        """Stores a point, or raises Bad with what is wrong."""
        if not metric:
            raise Bad('name may not be empty.')
        if not tags:
            raise Bad('tags count must be greater than or equal to 1.')
        for key, text in tags.items():
            if not key or not text:
                raise Bad('tag[%s].value may not be empty.' % key)
        if self.dislikes in metric:
            raise Bad('name is such that I do not like %s.' % self.dislikes)
        self.store(metric, ms, value, tags)


class KairosStandin(KairosStore, HttpStandin):
    """POST /api/v1/datapoints. users: {name: password} that Basic must show; largest: points of a body."""

    def __init__(self, tls=None, users=None):
        self.points, self.users = {}, users
        HttpStandin.__init__(self, tls)

    def reply(self, request):
        if not authorized(request, self.users):
            return 401, {}, 'who are you?'
        if request.path != '/api/v1/datapoints' or request.method != 'POST':
            return 404, {}, b''
        try:
            body = request.body
            if request.headers.get('content-type') == 'application/gzip':
                body = gunzipped(body)
            points = json.loads(body.decode())
        except (ValueError, OSError) as error:
            return 400, {}, json.dumps({'errors': [str(error)]})
        errors = []
        for i, point in enumerate(points):
            try:
                value = point['value']
                if not isinstance(point['timestamp'], int):
                    raise Bad('timestamp is invalid.')
                self.put(point['name'], point['timestamp'], value, point['tags'])
            except Bad as bad:
                errors.append('metric[%d](name=%s).%s' % (i, point['name'], bad))
        return (400, {}, json.dumps({'errors': errors})) if errors else (204, {}, b'')


def gunzipped(data):
    import gzip
    return gzip.decompress(data)


class KairosTelnet(KairosStore, Telnet):
    """Says nothing but its version."""
    longest = 1 << 20

    def said(self, line):
        words = line.decode('latin-1').split()
        if words[:1] == ['version']:
            return b'KairosDB 1.3.0-1.20210808220820\n'
        if len(line) > 1024 or len(words) < 4 or words[0] not in ('put', 'putm'):
            return b''
        factor = 1000 if words[0] == 'put' and int(words[2]) < 3000000000 else 1
        try:
            value = int(words[3]) if INTEGER.match(words[3]) else float(words[3]) if '.' in words[3] else None
            tags = dict(word.split('=')[:2] for word in words[4:]) or {'add': 'tag'}
            if value is not None:
                self.put(words[1], int(words[2]) * factor, value, tags)
        except (ValueError, Bad):
            pass
        return b''
