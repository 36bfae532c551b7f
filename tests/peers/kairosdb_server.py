"""Real KairosDB 1.3.0 with its H2 database for the tests, from the jars that kairosdb.sh fetches.

    with KairosDB(tmp_path) as server:
        ...                                     # something writes to server.port, or server.telnet
        assert server.points('load.one') == {(1700000000000, (('host', 'n1'),)): 0.5}

What was written is there a moment after the answer, not with it: use until().
"""
import json
import os
import signal
import urllib.error
import urllib.request

from peer import Peer, command, lasting_ports, require

JARS = os.path.abspath(os.path.join(os.path.dirname(__file__), '..', '..', '.venv', 'kairosdb', 'libs'))
PATIENCE = 30                                   # seconds that any request may take
# Not kairosdb.conf: a file of that name would hide the defaults that are in the jar.
CONFIG = """\
kairosdb: {
  telnetserver: { port: %(telnet)d, address: "127.0.0.1" }
  jetty: { port: %(port)d, address: "127.0.0.1", static_web_root: "web"%(more)s }
  service.datastore: "org.kairosdb.datastore.h2.H2Module"
  datastore.h2.database_path: "h2"
  queue_processor: { queue_path: "queue", min_batch_wait: 50 }
}
"""
JAAS = 'users { org.eclipse.jetty.jaas.spi.PropertyFileLoginModule required file="users"; };\n'
LOGBACK = """\
<configuration><appender name="A" class="ch.qos.logback.core.ConsoleAppender"><encoder>
<pattern>%d %level %msg %logger{0}%n</pattern></encoder></appender>
<root level="WARN"><appender-ref ref="A"/></root></configuration>
"""


class KairosDB(Peer):
    """One server on ports of its own: port for HTTP, telnet for its lines. https: (port, a PKCS #12 file, its
    password) for the same API over TLS; login: (name, password) that HTTP then wants."""

    def __init__(self, folder, https=None, login=None):
        require(os.path.isdir(JARS), 'kairosdb', 'no jars (tests/peers/kairosdb.sh)')
        java = require(command('java'), 'kairosdb', 'there is no java')
        self.port, self.telnet = lasting_ports(2)
        self.https_port, self.login = https and https[0], login
        more, flags = '', []
        if https:
            more += ', ssl: { port: %d, keystore { path: "%s", password: "%s" } }' % https
        files = {'conf/logback.xml': LOGBACK}
        if login:
            more += ', auth_module_name: "users"'
            files.update({'users.jaas': JAAS, 'users': '%s: %s,user\n' % (login[0].replace(' ', '\\ '), login[1])})
            flags = ['-Djava.security.auth.login.config=users.jaas']
        files['conf/peer.conf'] = CONFIG % {'telnet': self.telnet, 'port': self.port, 'more': more}
        for path in ('conf', 'web'):
            os.makedirs(os.path.join(str(folder), path))
        for name, text in files.items():
            with open(os.path.join(str(folder), name), 'w') as file:
                file.write(text)
        Peer.__init__(self, 'kairosdb', [
            java, '-Xmx256m', '--add-opens', 'java.base/java.lang=ALL-UNNAMED',
            '--add-opens', 'java.base/java.util=ALL-UNNAMED'] + flags + [
            '-cp', 'conf:%s/*' % JARS, 'org.kairosdb.core.Main', '-c', 'run', '-p', 'conf/peer.conf'],
            folder, self.answers, patience=60)

    def answers(self):
        try:
            self.request('/api/v1/health/check')
        except OSError:
            return False
        return True

    def request(self, path, data=None, method=None):
        """The JSON of the answer to a GET, or to a POST of data as JSON."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request('http://127.0.0.1:%d%s' % (self.port, path), body, method=method)
        if self.login:
            import base64
            request.add_header('Authorization', 'Basic ' + base64.b64encode(':'.join(self.login).encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.loads(answer.read().decode() or 'null')
        except urllib.error.HTTPError as error:
            error.msg = error.read().decode('utf-8', 'replace')         # the server says there what is wrong
            raise

    def metrics(self):
        """Names of all metrics but the server's own, sorted."""
        return sorted(name for name in self.request('/api/v1/metricnames')['results']
                      if not name.startswith('kairosdb.'))

    def query(self, what, metrics):
        """All results of a query for these metrics."""
        answer = self.request('/api/v1/datapoints/query' + what, {'start_absolute': 0, 'metrics': metrics})
        return [result for query in answer['queries'] for result in query['results']]

    def everything(self, host):
        """{metric: {(ms, sorted tags): value}} of all that has the tag host=host; a value that is there twice is
        a list."""
        found, metrics = {}, self.metrics()
        for i in range(0, len(metrics), 100):
            some = [{'name': metric, 'tags': {'host': [host]}} for metric in metrics[i:i + 100]]
            keys = sorted({key for result in self.query('/tags', some) for key in result['tags']})
            for one in some if keys else ():
                one['group_by'] = [{'name': 'tag', 'tags': keys}]
            for result in self.query('', some) if keys else ():
                assert all(len(values) == 1 for values in result['tags'].values()), result['tags']
                tags = tuple(sorted((key, values[0]) for key, values in result['tags'].items()))
                for ms, value in result['values']:
                    points = found.setdefault(result['name'], {})
                    points[ms, tags] = [points[ms, tags], value] if (ms, tags) in points else value
        return found

    def kill(self):
        """Gone at once, with whatever it was doing."""
        Peer.stop(self, signal.SIGKILL)
