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


class KairosDB(Peer):
    """One server on ports of its own: port for HTTP, telnet for its lines. https: (port, a PKCS #12 file, its
    password) for the same API over TLS; login: (name, password) that HTTP then wants."""

    def __init__(self, folder, https=None, login=None):
        require(os.path.isdir(JARS), 'kairosdb', 'no jars (tests/peers/kairosdb.sh)')
        java = require(command('java'), 'kairosdb', 'there is no java')
        self.port, self.telnet = lasting_ports(2)
        self.https_port, self.login = https and https[0], login
        more = ''
        if https:
            more += ', ssl: { port: %d, keystore { path: "%s", password: "%s" } }' % https
        if login:
            more += ', basic_auth: { user: "%s", password: "%s" }' % login
        os.makedirs(os.path.join(str(folder), 'conf'))
        os.makedirs(os.path.join(str(folder), 'web'))
        with open(os.path.join(str(folder), 'conf', 'peer.conf'), 'w') as file:
            file.write(CONFIG % {'telnet': self.telnet, 'port': self.port, 'more': more})
        Peer.__init__(self, 'kairosdb', [
            java, '-Xmx256m', '--add-opens', 'java.base/java.lang=ALL-UNNAMED', '-cp', 'conf:%s/*' % JARS,
            'org.kairosdb.core.Main', '-c', 'run', '-p', 'conf/peer.conf'], folder, self.answers, patience=60)

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
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read().decode() or 'null')

    def metrics(self):
        """Names of all metrics but the server's own, sorted."""
        return sorted(name for name in self.request('/api/v1/metricnames')['results']
                      if not name.startswith('kairosdb.'))

    def points(self, metric):
        """{(ms, sorted tags): value}; a value that is there twice is a list."""
        query = {'start_absolute': 0, 'metrics': [{'name': metric, 'group_by': [
            {'name': 'tag', 'tags': list(self.tags(metric))}]}]}
        found = {}
        for result in self.request('/api/v1/datapoints/query', query)['queries'][0]['results']:
            tags = tuple(sorted((key, values[0]) for key, values in result['tags'].items()))
            assert all(len(values) == 1 for values in result['tags'].values()), result['tags']
            for ms, value in result['values']:
                key = ms, tags
                found[key] = [found[key], value] if key in found else value
        return found

    def tags(self, metric):
        """{key: values} of a metric."""
        query = {'start_absolute': 0, 'metrics': [{'name': metric}]}
        return self.request('/api/v1/datapoints/query/tags', query)['queries'][0]['results'][0]['tags']

    def everything(self):
        """{metric: points(metric)}"""
        return {name: found for name, found in ((name, self.points(name)) for name in self.metrics()) if found}

    def forget(self):
        """Deletes all metrics."""
        for name in self.metrics():
            self.request('/api/v1/metric/' + urllib.request.quote(name, ''), method='DELETE')

    def kill(self):
        """Gone at once, with whatever it was doing."""
        Peer.stop(self, signal.SIGKILL)
