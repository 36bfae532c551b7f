"""A real RabbitMQ for the tests: Debian's, in folders and on ports of its own, as whoever runs the tests.

    with RabbitMQ(tmp_path, certificates) as server:
        ...                                     # something publishes to server.port, or over TLS to server.tls_port

USERS and VHOSTS say who may do what where. What it holds is read with pika (tests/peers/requirements.txt); kill()
and restart() keep what is durable. It has an epmd of its own, which it would leave behind otherwise.
"""
import glob
import json
import os
import signal
import subprocess
import time

from peer import Peer, accepts, command, lasting_ports, require

EVERYTHING = {'configure': '.*', 'write': '.*', 'read': '.*'}
PASSWORD = 'pa55 w/rd&"+sesame'
USERS = {
    'guest': ('guest', EVERYTHING),
    'mia': (PASSWORD, EVERYTHING),
    'client': ('', EVERYTHING),                 # who comes with the certificate of that name
    'writer': ('writer-word', {'configure': '^$', 'write': '.*', 'read': '^$'}),
    'reader': ('reader-word', {'configure': '^$', 'write': '^$', 'read': '.*'}),
    'nobody': ('nobody-word', None),            # has no right in any vhost
}
VHOSTS = ('/', 'stats', 'full')                 # nobody may connect to full: its limit is no connection
CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
listeners.ssl.1 = 127.0.0.1:{tls_port}
ssl_options.cacertfile = {ca}
ssl_options.certfile = {cert}
ssl_options.keyfile = {key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = AMQPLAIN
auth_mechanisms.3 = EXTERNAL
load_definitions = {folder}/definitions.json
max_message_size = 1000000
log.console = false
log.file.level = info
"""


def definitions():
    """What is there when it starts, in the words of its export."""
    permissions = [dict(rights, user=name, vhost=vhost) for name, (_, rights) in USERS.items() if rights
                   for vhost in VHOSTS]
    return {'users': [{'name': name, 'password': password, 'tags': ''} for name, (password, _) in USERS.items()],
            'vhosts': [{'name': name} for name in VHOSTS], 'permissions': permissions,
            'parameters': [{'vhost': 'full', 'component': 'vhost-limits', 'name': 'limits',
                            'value': {'max-connections': 0}}]}


class RabbitMQ(Peer):
    """One node. certificates: those of tests/standins.py."""

    def __init__(self, folder, certificates):
        found = sorted(glob.glob('/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server'))
        program = require(found, 'rabbitmq', 'not installed (Debian: rabbitmq-server)')[-1]
        self.sbin, folder = os.path.dirname(program), str(folder)
        self.port, self.tls_port, distribution, self.epmd_port = lasting_ports(4)
        with open(os.path.join(folder, 'rabbitmq.conf'), 'w') as file:
            file.write(CONFIG.format(port=self.port, tls_port=self.tls_port, ca=certificates.ca, folder=folder,
                                     cert=certificates.good.cert, key=certificates.good.key))
        with open(os.path.join(folder, 'definitions.json'), 'w') as file:
            json.dump(definitions(), file)
        with open(os.path.join(folder, 'enabled_plugins'), 'w') as file:
            file.write('[rabbitmq_auth_mechanism_ssl].\n')
        env = {'LC_ALL': 'C.UTF-8', 'HOME': folder, 'ERL_EPMD_PORT': self.epmd_port,
               'ERL_EPMD_ADDRESS': '127.0.0.1', 'RUNNING_UNDER_SYSTEMD': 1,     # no shell in between
               'RABBITMQ_NODENAME': 'peer%d@localhost' % self.port, 'RABBITMQ_DIST_PORT': distribution,
               'RABBITMQ_CONFIG_FILE': folder + '/rabbitmq.conf', 'RABBITMQ_PID_FILE': folder + '/pid',
               'RABBITMQ_ENABLED_PLUGINS_FILE': folder + '/enabled_plugins',
               'RABBITMQ_MNESIA_BASE': folder + '/mnesia', 'RABBITMQ_LOG_BASE': folder + '/log',
               'RABBITMQ_CONF_ENV_FILE': '/dev/null', 'RABBITMQ_GENERATED_CONFIG_DIR': folder + '/generated'}
        Peer.__init__(self, 'rabbitmq', [program], folder, self.serves, patience=90.0,
                      env={name: str(value) for name, value in env.items()})
        self.epmd = Peer('epmd', [require(command('epmd'), 'rabbitmq', 'no epmd beside it'), '-port',
                                  str(self.epmd_port), '-address', '127.0.0.1'], folder,
                         lambda: accepts(self.epmd_port))

    def serves(self):
        """Whether it takes connections; the TLS listener is the last thing that it opens."""
        return accepts(self.port) and accepts(self.tls_port)

    def ctl(self, *words):
        """What rabbitmqctl says; it takes two seconds to start."""
        process = subprocess.Popen([os.path.join(self.sbin, 'rabbitmqctl'), '-q'] + list(words),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   cwd=self.folder, env=dict(os.environ, **self.env))
        said = process.communicate(timeout=60)[0].decode('utf-8', 'replace')
        assert not process.returncode, said
        return said

    def own_log(self):
        """What the broker itself has written down."""
        text = ''
        for path in sorted(glob.glob(os.path.join(self.folder, 'log', '*.log'))):
            with open(path, 'rb') as file:
                text += file.read().decode('utf-8', 'replace')
        return text

    def kill(self):
        """Gone at once, with whatever it was doing."""
        Peer.stop(self, signal.SIGKILL)

    def start(self):
        if self.epmd.process is None:
            self.epmd.start()
        try:
            return Peer.start(self)
        except BaseException:
            self.epmd.stop()
            raise

    def __exit__(self, *error):
        self.stop()
        self.epmd.stop()


if __name__ == '__main__':                      # to try things out: until Enter
    import sys
    import tempfile
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
    import standins
    where = tempfile.mkdtemp()
    made = os.path.join(where, 'certificates')
    os.mkdir(made)
    began = time.monotonic()
    with RabbitMQ(where, standins.certificates(made)) as server:
        print(where, server.port, server.tls_port, round(time.monotonic() - began, 1), flush=True)
        sys.stdin.readline()
