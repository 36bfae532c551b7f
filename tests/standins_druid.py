"""Stand-ins for an overlord of Druid, which does as a real Druid 33 was seen to do, and for a Tranquility Server, which
does as its documentation and source (TranquilityServlet.scala) say.

    with DruidStandin() as server:
        ...                                     # something posts tasks to 127.0.0.1:server.port
        assert server.rows('statbadger') == [{...}]
"""
import base64
import json
import re
from collections import OrderedDict
from urllib.parse import unquote

from standins import HttpStandin

TASKS = '/druid/indexer/v1/task'
PARSE = ('org.apache.druid.java.util.common.RE: Max parse exceptions[0] exceeded\n'
         '\tat org.apache.druid.segment.incremental.ParseExceptionHandler.handle(ParseExceptionHandler.java:96)\n')
LOCKS = 'java.lang.IllegalStateException: Failed to get locks for intervals[[2026-11-25T16:00:00.000Z]]'
GONE = ('The worker that this task was assigned disappeared and did not report cleanup within timeout[PT15M]. See '
        'overlord and middleManager/indexer logs for more details.')


class Task:
    """A task: its rows, how often its state is asked for before it ends, and how it ends (None: well)."""

    def __init__(self, datasource, rows, asks, failure):
        self.datasource, self.rows, self.asks, self.failure = datasource, rows, asks, failure

    def state(self):
        """(statusCode, runnerStatusCode, errorMsg) for who asks now."""
        self.asks -= 1
        if self.asks >= 0:
            return 'RUNNING', 'PENDING', None
        return ('FAILED', 'WAITING', self.failure) if self.failure else ('SUCCESS', 'WAITING', None)


def unique(pairs):
    """The object of these members; ValueError when one is there twice."""
    out = OrderedDict(pairs)
    if len(out) != len(pairs):
        raise ValueError('a key that is there twice: %r' % (pairs,))
    return out


class DruidStandin(HttpStandin):
    """An overlord. tasks: {id: Task}, as posted; rows(datasource): what they have stored.

    asks: how often a new task says that it is RUNNING; largest: bytes of a task that are taken; fates: how the next
    tasks end (None: well, or the error), one after the other; dislike(rows): how those fare for which no fate is set.
    users: {name: password}, when it wants a login.
    """

    def __init__(self, users=None, tls=None, host='127.0.0.1'):
        self.users, self.tasks, self.asks, self.largest, self.fates = users, OrderedDict(), 1, 5 << 20, []
        self.dislike = lambda rows: None
        HttpStandin.__init__(self, tls, host)

    def rows(self, datasource='statbadger'):
        with self.lock:
            return [row for task in self.tasks.values() if not task.failure and task.datasource == datasource
                    for row in task.rows]

    def reply(self, request):
        match = re.match(TASKS + r'(?:/([^/?]+)/status)?\Z', request.path)
        if not match or request.method != ('GET' if match.group(1) else 'POST'):
            return 404, {'Content-Type': 'text/html'}, '<h2>HTTP ERROR 404 Not Found</h2>' + request.path
        if self.users is not None and not self.lets_in(request.headers.get('authorization', '')):
            return 401, {'WWW-Authenticate': 'Basic realm="druid"'}, ''
        answer = self.status(unquote(match.group(1))) if match.group(1) else self.take(request)
        return answer[0], {'Content-Type': 'application/json'}, answer[1]

    def lets_in(self, header):
        match = re.match(r'Basic ([A-Za-z0-9+/]+={0,2})\Z', header)
        name, _, password = base64.b64decode(match.group(1)).decode().partition(':') if match else ('', '', '')
        return match and self.users.get(name) == password

    def status(self, name):
        with self.lock:
            if name not in self.tasks:
                return 404, 'Cannot find any task with id: [%s]' % name
            task = self.tasks[name]
            state, place, failure = task.state()
        return 200, json.dumps({'task': name, 'status': {
            'id': name, 'groupId': name, 'type': 'index_parallel', 'statusCode': state, 'status': state,
            'runnerStatusCode': place, 'duration': -1, 'location': {'host': None, 'port': -1, 'tlsPort': -1},
            'dataSource': task.datasource, 'errorMsg': failure}})

    def take(self, request):
        if request.headers.get('content-type') != 'application/json' or request.body is None:
            return 415, ''
        try:
            given = json.loads(request.body.decode('ascii'), object_pairs_hook=unique)
            name, datasource, rows = given['id'], *self.understood(given)
        except (ValueError, KeyError, AssertionError) as error:
            self.complaints.append('a task that is none: %r' % error)
            return 400, json.dumps({'error': 'Cannot construct instance: %s' % error})
        if len(request.body) > self.largest:
            return 400, json.dumps({'error': 'druidException', 'errorCode': 'invalidInput', 'errorMessage':
                                    'Task[%s] has payload of size[%d] but max allowed size is [%d]. Reduce the size of '
                                    'the task payload.' % (name, len(request.body), self.largest)})
        with self.lock:
            if name in self.tasks:
                return 400, json.dumps({'error': 'druidException', 'errorCode': 'entryAlreadyExists', 'persona': 'USER',
                                        'category': 'INVALID_INPUT', 'context': {},
                                        'errorMessage': 'Task[%s] already exists' % name})
            fate = self.fates.pop(0) if self.fates else self.dislike(rows)
            self.tasks[name] = Task(datasource, rows, self.asks, fate)
        return 200, json.dumps({'task': name})

    def understood(self, given):
        """(datasource, rows) of a task; what would do harm to a real one is an AssertionError."""
        spec = given['spec']
        schema, source, tuning = spec['dataSchema'], spec['ioConfig'], spec['tuningConfig']
        assert given['type'] == source['type'] == tuning['type'] == 'index_parallel'
        assert 0 < len(given['id']) < 220 and not set(given['id']) & set('/\n') and given['id'][0] != '.'
        assert given['context'] == {'useConcurrentLocks': True} and source['appendToExisting'] is True
        assert source['inputFormat'] == {'type': 'json'} and source['inputSource']['type'] == 'inline'
        assert tuning['partitionsSpec'] == {'type': 'dynamic'} and tuning['maxParseExceptions'] == 0
        assert schema['timestampSpec'] == {'column': 'timestamp', 'format': 'millis'}
        assert schema['granularitySpec']['rollup'] is False and '/' not in schema['dataSource']
        columns = schema['dimensionsSpec']['dimensions']
        assert not any(',' in name or '\n' in name for name in columns[:-1])
        assert columns[-1] == {'type': 'double', 'name': 'value'}
        assert source['inputSource']['data'], 'empty data'
        rows = [json.loads(line, object_pairs_hook=unique) for line in source['inputSource']['data'].split('\n')]
        assert all(isinstance(row['timestamp'], int) for row in rows)
        return schema['dataSource'], rows


class TranquilityStandin(HttpStandin):
    """A Tranquility Server that knows these datasources. rows(datasource): events that it has sent on; window(events):
    those that are in its window; the others are dropped."""

    def __init__(self, datasources=('statbadger',), tls=None, host='127.0.0.1'):
        self.datasources, self.events, self.window = datasources, [], list
        HttpStandin.__init__(self, tls, host)

    def rows(self, datasource='statbadger'):
        with self.lock:
            return [event for name, event in self.events if name == datasource]

    def reply(self, request):
        match = re.match(r'/v1/post/([^/?]+)\Z', request.path)
        if request.method != 'POST' or not match:
            return 404, {'Content-Type': 'text/plain'}, 'Not found\n'
        name, kind = unquote(match.group(1)), request.headers.get('content-type')
        if kind != 'application/json':
            return 400, {'Content-Type': 'text/plain'}, ('Expected contentType application/json or '
                                                         'application/x-jackson-smile\n')
        try:
            events = json.loads(request.raw.decode('ascii'), object_pairs_hook=unique)
        except ValueError:                      # also what is compressed
            return 500, {'Content-Type': 'text/plain'}, 'Server error\n'
        if name not in self.datasources:
            return 400, {'Content-Type': 'text/plain'}, "No beam defined for dataSource '%s'\n" % name
        sent = [(name, event) for event in self.window(events)]
        with self.lock:
            self.events.extend(sent)
        return 200, {'Content-Type': 'application/json'}, json.dumps(
            {'result': {'received': len(events), 'sent': len(sent)}})
