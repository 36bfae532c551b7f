"""Real InfluxDB 0.8.8 for the tests, as influxdb08.sh builds it.

It is asked over its HTTP API with urllib: for 0.8 there is no client that anybody still looks after.

    with InfluxDB08(tmp_path) as server:
        server.create_database('d')
        server.create_user('d', 'writer', 'secret')
        ...                                     # something writes to server.url
        assert server.query('d', 'select one from load')[0]['points'] == [...]

What was written is there a moment after the answer, not with it: use until(). A query that names no time
leaves out what lies after now.
"""
import json
import os
import signal
import urllib.error
import urllib.parse
import urllib.request

from peer import Peer, accepts, lasting_ports, require

BUILT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', '.venv', 'influxdb08')
PATIENCE = 30                                   # seconds that any request may take


class InfluxDB08(Peer):
    """One server with the settings it ships with, on ports of its own. url, port: its HTTP API.

    stop(), kill(), start() and restart() keep ports and data; a start takes five seconds. pem: a file with a
    certificate and its key; the same API is then at https_url too. root: the login that may do everything.
    """
    root = ('root', 'root')

    def __init__(self, folder, port=None, pem=None):
        program = os.path.join(BUILT, 'influxd')
        require(os.path.exists(program), 'influxdb08', 'not built (tests/peers/influxdb08.sh)')
        ports = lasting_ports(4)
        self.port, self.https_port = port or ports[0], ports[1] if pem else None
        self.url = 'http://127.0.0.1:%d' % self.port
        self.https_url = 'https://127.0.0.1:%d' % self.https_port if pem else None
        config = os.path.join(str(folder), 'influxdb.toml')
        with open(os.path.join(BUILT, 'config.sample.toml')) as file:
            text = file.read()
        own = [('# hostname = ""', 'hostname = "127.0.0.1"'),           # else that of the machine
               ('bind-address = "0.0.0.0"', 'bind-address = "127.0.0.1"'),
               ('reporting-disabled = false', 'reporting-disabled = true'),
               ('/tmp/influxdb/development', '%s/data' % folder),
               ('port   = 8083', ''),                                   # the admin page
               ('= 8086', '= %d' % self.port), ('= 8090', '= %d' % ports[2]), ('= 8099', '= %d' % ports[3])]
        if pem:
            own += [('# ssl-port = 8087', 'ssl-port = %d' % self.https_port),
                    ('# ssl-cert = /path/to/cert.pem', 'ssl-cert = "%s"' % pem)]
        for old, new in own:
            assert old in text, old
            text = text.replace(old, new)
        with open(config, 'w') as file:
            file.write(text)
        Peer.__init__(self, 'influxdb08', [program, '-config=' + config], folder, self.answers)

    def answers(self):
        """Whether it serves. The HTTP API is the last thing that it opens."""
        try:
            self.request('/ping', {})
            return not self.https_port or accepts(self.https_port)
        except OSError:
            return False

    def request(self, path, fields, data=None):
        """The body of the answer to a GET with these query fields, or to a POST of data as JSON."""
        request = urllib.request.Request('%s%s?%s' % (self.url, path, urllib.parse.urlencode(fields)),
                                         None if data is None else json.dumps(data).encode())
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            error.msg = error.read().decode('utf-8', 'replace')         # the server says there what is wrong
            raise

    def login(self, user=None, password=None):
        user, password = (user, password) if user else self.root
        return {'u': user, 'p': password}

    def create_database(self, name):
        self.request('/db', self.login(), {'name': name})

    def create_user(self, database, name, password):
        """A user of that database only, who may read and write there. A password has 4 to 56 bytes."""
        self.request(below(database, 'users'), self.login(), {'name': name, 'password': password})

    def query(self, database, q, user=None, password=None, precision='ms'):
        """[{'name', 'columns', 'points'}] of a query, newest point first; [] for series that do not exist."""
        fields = dict(self.login(user, password), q=q, time_precision=precision)
        return json.loads(self.request(below(database, 'series'), fields).decode())

    def kill(self):
        """Gone at once, with whatever it was doing."""
        Peer.stop(self, signal.SIGKILL)

    def restart(self):
        self.stop()
        return self.start()


def below(database, what):
    return '/db/%s/%s' % (urllib.parse.quote(database, ''), what)
