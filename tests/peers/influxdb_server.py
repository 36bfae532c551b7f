"""Real InfluxDB 1.6 (Debian) and 1.8 (as influxdb18.sh builds it) for the tests, and VictoriaMetrics, which reads the
same lines. They are asked by their own query languages, over HTTP with urllib.

    with InfluxDB('1.6', tmp_path) as server:
        server.command('CREATE DATABASE "d"')
        ...                                     # something writes to server.url
        assert server.points('d') == {...}
"""
import base64
import json
import os
import signal
import socket
import urllib.error
import urllib.parse
import urllib.request

from peer import Peer, command, free_port, lasting_ports, require

BUILT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', '.venv', 'influxdb18', 'influxd')
PATIENCE = 30                                   # seconds that any request may take
ROOT = ('root', 'ro:ot')
CONFIG = """\
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
dir = "{folder}/meta"
[data]
dir = "{folder}/data"
wal-dir = "{folder}/wal"
max-values-per-tag = {values_per_tag}
[monitor]
store-enabled = false
[http]
bind-address = "127.0.0.1:{port}"
auth-enabled = true
log-enabled = false
max-body-size = {body}
https-enabled = {https}
https-certificate = "{pem}"
[[udp]]
enabled = true
bind-address = "127.0.0.1:{udp}"
database = "udp"
read-buffer = 4000000
batch-timeout = "50ms"
"""


def asked(url, data=None, login=None):
    """The text of an answer to a GET, or to a POST of these form fields; HTTPError has what went wrong in .msg."""
    data = urllib.parse.urlencode(data).encode() if isinstance(data, dict) else data
    request = urllib.request.Request(url, data)
    if login:
        request.add_header('Authorization', 'Basic ' + base64.b64encode(':'.join(login).encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        error.msg = error.read().decode('utf-8', 'replace')
        raise


class InfluxDB(Peer):
    """One server with logins, and a listener for UDP whose database is `udp`. stop(), kill(), start() and restart()
    keep ports and data.

    body: the most bytes it takes; values_per_tag: the most values of a tag. pem: a file with a certificate and its
    key: then it speaks HTTPS.
    """

    def __init__(self, version, folder, body=25000000, values_per_tag=100000, pem=None):
        program = command('influxd') if version == '1.6' else os.path.exists(BUILT) and BUILT
        require(program, 'influxdb ' + version, 'not installed (Debian: influxdb)' if version == '1.6' else
                'not built (tests/peers/influxdb18.sh)')
        self.port, rpc = lasting_ports(2)
        self.udp, self.version, self.pem = free_port(socket.SOCK_DGRAM), version, pem
        self.url = '%s://127.0.0.1:%d' % ('https' if pem else 'http', self.port)
        config = os.path.join(str(folder), 'influxdb.conf')
        with open(config, 'w') as file:
            file.write(CONFIG.format(folder=folder, port=self.port, rpc=rpc, udp=self.udp, body=body, pem=pem or '',
                                     values_per_tag=values_per_tag, https='true' if pem else 'false'))
        Peer.__init__(self, 'influxdb-' + version, [program, 'run', '-config', config], folder, self.answers)

    def start(self):
        Peer.start(self)
        if not self.pem:
            self.command("CREATE USER root WITH PASSWORD 'ro:ot' WITH ALL PRIVILEGES")      # no mistake the second time
        return self

    def answers(self):
        if self.pem:
            with socket.socket() as sock:
                return sock.connect_ex(('127.0.0.1', self.port)) == 0
        try:
            asked(self.url + '/ping')
            return True
        except OSError:
            return False

    def command(self, q, database=''):
        """[{'name', 'tags', 'columns', 'values'}] of a statement."""
        answer = json.loads(asked(self.url + '/query', {'q': q, 'db': database, 'epoch': 'ms'}, ROOT))
        result, = answer['results']
        assert 'error' not in result, result
        return result.get('series', [])

    def write(self, database, lines):
        """Stores lines, with times in ms."""
        asked('%s/write?db=%s&precision=ms' % (self.url, urllib.parse.quote(database, '')), lines.encode(), ROOT)

    def points(self, database, policy='autogen'):
        """{(measurement, tags as a set of pairs, field, ms): number} of all that there is. What was written as JSON
        numbers comes back as such: without a loss for 17 digits."""
        found = {}
        for series in self.command('SELECT * FROM "%s"./.*/ GROUP BY *' % policy, database):
            tags = frozenset((k, v) for k, v in series.get('tags', {}).items() if v)
            for row in series['values']:
                for field, value in list(zip(series['columns'], row))[1:]:
                    if value is not None:
                        found[series['name'], tags, field, row[0]] = value
        return found

    def kill(self):
        """Gone at once, with whatever it was doing."""
        Peer.stop(self, signal.SIGKILL)

    def restart(self):
        self.stop()
        return self.start()


class VictoriaMetrics(Peer):
    """One server that wants a name and a password, and listens for lines over UDP too."""
    login = ('mia', 'pa55:w&rd')

    def __init__(self, folder):
        program = require(command('victoria-metrics'), 'victoria-metrics', 'not installed (Debian: victoria-metrics)')
        self.port, self.lines = lasting_ports(2)
        self.url = 'http://127.0.0.1:%d' % self.port
        Peer.__init__(self, 'victoria-metrics', [
            program, '-storageDataPath=%s/data' % folder, '-httpListenAddr=127.0.0.1:%d' % self.port,
            '-influxListenAddr=127.0.0.1:%d' % self.lines, '-retentionPeriod=100y', '-memory.allowedBytes=64MB',
            '-search.latencyOffset=0s', '-httpAuth.username=' + self.login[0], '-httpAuth.password=' + self.login[1]],
            folder, self.answers)

    def answers(self):
        try:
            return asked(self.url + '/health') == 'OK'
        except OSError:
            return False

    def points(self, **labels):
        """{(name, labels as a set of pairs, ms): number} of all series with these labels, which are left out."""
        asked(self.url + '/internal/force_flush', login=self.login)
        wanted = ','.join('%s=%s' % pair for pair in [(k, json.dumps(v)) for k, v in sorted(labels.items())])
        text = asked('%s/api/v1/export?%s' % (self.url, urllib.parse.urlencode({'match[]': '{%s}' % wanted})), login=self.login)
        found = {}
        for series in map(json.loads, text.split('\n')[:-1]):
            name = series['metric'].pop('__name__')
            tags = frozenset(pair for pair in series['metric'].items() if pair[0] not in labels)
            found.update(((name, tags, stamp), value) for stamp, value in zip(series['timestamps'], series['values']))
        return found
