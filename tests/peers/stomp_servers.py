"""ActiveMQ, ActiveMQ Artemis and RabbitMQ as STOMP servers, each in a folder of its own."""
import glob
import json
import os
import signal
import socket
import subprocess

from peer import Peer, accepts, command, lasting_ports, require

HERE = os.path.dirname(os.path.abspath(__file__))
CLASSIC = '/usr/share/activemq'
ADMIN, WRITER = 'admin word', 'pa55 w/rd&"+:\'sesame'
JAVA = ['-Xmx256m', '-XX:TieredStopAtLevel=1', '-XX:+UseSerialGC']


def xml(text):
    return text.replace('&', '&amp;').replace('<', '&lt;').replace('"', '&quot;')


def key_stores(folder, made):
    """Paths of PKCS12 files: the server's key, and the CA that signs clients; both with the password changeit."""
    keys, trust = os.path.join(folder, 'keys.p12'), os.path.join(folder, 'trust.p12')
    subprocess.check_call(['openssl', 'pkcs12', '-export', '-in', made.good.cert, '-inkey', made.good.key, '-out', keys,
                           '-passout', 'pass:changeit'], stderr=subprocess.DEVNULL)
    subprocess.check_call(['keytool', '-importcert', '-noprompt', '-alias', 'ca', '-file', made.ca, '-keystore', trust,
                           '-storetype', 'PKCS12', '-storepass', 'changeit'],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return keys, trust


class Broker(Peer):
    """What all three have: .port, .tls and .mutual for STOMP; users admin, who may do everything, and writer, who may
    write to what does not begin with `closed`."""
    patience = 60.0

    def ports(self, n):
        self.port, self.tls, self.mutual, *others = lasting_ports(n)
        return others

    def ready_to_serve(self):
        return all(accepts(port) for port in (self.tls, self.mutual)) and self.lets_in()

    def lets_in(self):
        """Whether the admin can log in: RabbitMQ listens before it knows its users."""
        with socket.socket() as sock:
            sock.settimeout(2)
            if sock.connect_ex(('127.0.0.1', self.port)):
                return False
            sock.sendall(('CONNECT\naccept-version:1.2\nhost:/\nlogin:admin\npasscode:%s\n\n\0' % ADMIN).encode())
            try:
                return sock.recv(4096).startswith(b'CONNECTED')
            except OSError:
                return False

    def kill(self):
        self.stop(signal.SIGKILL)


ACTIVEMQ_XML = '''<beans xmlns="http://www.springframework.org/schema/beans" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:schemaLocation="http://www.springframework.org/schema/beans http://www.springframework.org/schema/beans/spring-beans.xsd
 http://activemq.apache.org/schema/core http://activemq.apache.org/schema/core/activemq-core.xsd">
 <broker xmlns="http://activemq.apache.org/schema/core" brokerName="peer" dataDirectory="{folder}/data" useJmx="false"
  persistent="true" schedulerSupport="false" advisorySupport="false" useShutdownHook="true">
  <destinationPolicy><policyMap><policyEntries>
   <policyEntry queue="small.&gt;" memoryLimit="20kb" producerFlowControl="true">
    <pendingQueuePolicy><vmQueueCursor/></pendingQueuePolicy></policyEntry>
   <policyEntry queue="&gt;" producerFlowControl="false"/>
  </policyEntries></policyMap></destinationPolicy>
  <persistenceAdapter><kahaDB directory="{folder}/data/kahadb"/></persistenceAdapter>
  <plugins>
   <simpleAuthenticationPlugin anonymousAccessAllowed="false"><users>
    <authenticationUser username="admin" password="{admin}" groups="admins,writers"/>
    <authenticationUser username="writer" password="{writer}" groups="writers"/>
   </users></simpleAuthenticationPlugin>
   <authorizationPlugin><map><authorizationMap><authorizationEntries>
    <authorizationEntry queue="&gt;" read="admins" write="admins" admin="admins"/>
    <authorizationEntry topic="&gt;" read="admins" write="admins,writers" admin="admins,writers"/>
    <authorizationEntry queue="statbadger" write="writers" admin="writers"/>
    <authorizationEntry queue="stats.&gt;" write="writers" admin="writers"/>
    <authorizationEntry queue="small.&gt;" write="writers" admin="writers"/>
   </authorizationEntries></authorizationMap></map></authorizationPlugin>
  </plugins>
  <sslContext><sslContext keyStore="file:{keys}" keyStorePassword="changeit" keyStoreType="PKCS12"
   trustStore="file:{trust}" trustStorePassword="changeit" trustStoreType="PKCS12"/></sslContext>
  <systemUsage><systemUsage sendFailIfNoSpace="true">
   <memoryUsage><memoryUsage limit="64 mb"/></memoryUsage>
   <storeUsage><storeUsage limit="1 gb"/></storeUsage>
   <tempUsage><tempUsage limit="1 gb"/></tempUsage></systemUsage></systemUsage>
  <transportConnectors>
   <transportConnector name="plain" uri="stomp://127.0.0.1:{port}?wireFormat.maxDataLength=1048576"/>
   <transportConnector name="tls" uri="stomp+ssl://127.0.0.1:{tls}"/>
   <transportConnector name="mutual" uri="stomp+ssl://127.0.0.1:{mutual}?needClientAuth=true"/>
  </transportConnectors>
 </broker>
</beans>
'''


class ActiveMQ(Broker):
    """ActiveMQ of Debian. Queues small.* take 20 kB only; a body has 1 MiB at most."""

    def __init__(self, folder, made):
        require(os.path.exists(CLASSIC + '/bin/activemq.jar'), 'activemq', 'not installed (Debian: activemq)')
        java = require(command('java'), 'activemq', 'there is no java here')
        folder = str(folder)
        self.ports(3)
        keys, trust = key_stores(folder, made)
        for name in ('conf', 'data'):
            os.mkdir(os.path.join(folder, name))
        with open(folder + '/conf/activemq.xml', 'w') as file:
            file.write(ACTIVEMQ_XML.format(folder=folder, admin=xml(ADMIN), writer=xml(WRITER), keys=keys, trust=trust,
                                           port=self.port, tls=self.tls, mutual=self.mutual))
        Peer.__init__(self, 'activemq', [java] + JAVA + [
            '-Djava.io.tmpdir=%s/data' % folder, '-Dactivemq.home=' + CLASSIC, '-Dactivemq.base=' + folder,
            '-Dactivemq.conf=%s/conf' % folder, '-Dactivemq.data=%s/data' % folder,
            '-jar', CLASSIC + '/bin/activemq.jar', 'start', 'xbean:file:%s/conf/activemq.xml' % folder],
            folder, self.ready_to_serve, patience=60.0)


BROKER_XML = '''<configuration xmlns="urn:activemq"><core xmlns="urn:activemq:core">
 <name>peer</name>
 <persistence-enabled>true</persistence-enabled>
 <journal-type>NIO</journal-type>
 <journal-directory>{folder}/data/journal</journal-directory>
 <bindings-directory>{folder}/data/bindings</bindings-directory>
 <large-messages-directory>{folder}/data/large</large-messages-directory>
 <paging-directory>{folder}/data/paging</paging-directory>
 <journal-file-size>1M</journal-file-size>
 <journal-pool-files>2</journal-pool-files>
 <max-disk-usage>100</max-disk-usage>
 <security-enabled>true</security-enabled>
 <acceptors>
  <acceptor name="plain">tcp://127.0.0.1:{port}?protocols=STOMP;securityDomain=users</acceptor>
  <acceptor name="prefixes">tcp://127.0.0.1:{prefixes}?protocols=STOMP;securityDomain=users;anycastPrefix=/queue/;multicastPrefix=/topic/</acceptor>
  <acceptor name="tls">tcp://127.0.0.1:{tls}?protocols=STOMP;securityDomain=users;{secure}</acceptor>
  <acceptor name="mutual">tcp://127.0.0.1:{mutual}?protocols=STOMP;securityDomain=users;{secure};needClientAuth=true</acceptor>
 </acceptors>
 <security-settings>
  <security-setting match="#">{rights}</security-setting>
  <security-setting match="closed.#"><permission type="send" roles="admins"/></security-setting>
 </security-settings>
 <address-settings>
  <address-setting match="#"><max-size-bytes>100Mb</max-size-bytes></address-setting>
  <address-setting match="small.#"><max-size-bytes>20Kb</max-size-bytes><address-full-policy>FAIL</address-full-policy></address-setting>
  <address-setting match="strict.#"><auto-create-addresses>false</auto-create-addresses><auto-create-queues>false</auto-create-queues></address-setting>
 </address-settings>
</core></configuration>
'''
LOGIN_CONFIG = '''users {
 org.apache.activemq.artemis.spi.core.security.jaas.PropertiesLoginModule required
  org.apache.activemq.jaas.properties.user="users.properties"
  org.apache.activemq.jaas.properties.role="roles.properties";
};
'''


class Artemis(Broker):
    """ActiveMQ Artemis from Maven Central. .prefixes: a port that knows /queue/ and /topic/. Addresses small.* take
    20 kB only, strict.* are not made by themselves."""

    def __init__(self, folder, made):
        java = require(command('java'), 'artemis', 'there is no java here')
        libs = os.path.join(HERE, '..', '..', '.venv', 'artemis', 'libs')
        require(os.path.isdir(libs), 'artemis', 'its jars were not fetched (sh tests/peers/artemis.sh)')
        folder = str(folder)
        self.prefixes, = self.ports(4)
        keys, trust = key_stores(folder, made)
        os.mkdir(os.path.join(folder, 'etc'))
        secure = ('sslEnabled=true;keyStorePath=%s;keyStorePassword=changeit;keyStoreType=PKCS12;trustStorePath=%s;'
                  'trustStorePassword=changeit;trustStoreType=PKCS12' % (keys, trust))
        rights = ''.join('<permission type="%s" roles="admins,writers"/>' % what for what in (
            'send', 'createAddress', 'createDurableQueue', 'createNonDurableQueue')) + ''.join(
            '<permission type="%s" roles="admins"/>' % what for what in ('consume', 'browse', 'deleteNonDurableQueue'))
        for name, text in (
                ('broker.xml', BROKER_XML.format(folder=folder, port=self.port, prefixes=self.prefixes, tls=self.tls,
                                                 mutual=self.mutual, secure=secure, rights=rights)),
                ('login.config', LOGIN_CONFIG),
                ('users.properties', 'admin=%s\nwriter=%s\n' % (ADMIN, WRITER)),
                ('roles.properties', 'admins=admin\nwriters=writer,admin\n')):
            with open(os.path.join(folder, 'etc', name), 'w') as file:
                file.write(text)
        Peer.__init__(self, 'artemis', [java] + JAVA + [
            '-Djava.security.auth.login.config=%s/etc/login.config' % folder, '-cp', ':'.join(glob.glob(libs + '/*.jar')),
            'org.apache.activemq.artemis.core.server.embedded.Main', folder], folder, self.ready_to_serve, patience=60.0)


RABBITMQ_CONF = '''\
listeners.tcp = none
stomp.listeners.tcp.1 = 127.0.0.1:{port}
stomp.listeners.ssl.1 = 127.0.0.1:{tls}
ssl_options.cacertfile = {ca}
ssl_options.certfile = {cert}
ssl_options.keyfile = {key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = {mutual}
load_definitions = {folder}/definitions.json
max_message_size = 1048576
log.console = false
'''
EVERYTHING = {'configure': '.*', 'write': '.*', 'read': '.*'}
OPEN = {'configure': '^(statbadger|stats.*)$', 'write': '^(statbadger|stats.*|full|amq\\.(default|topic))$', 'read': '^$'}


class RabbitMQ(Broker):
    """RabbitMQ of Debian with its STOMP plugin, virtual hosts / and other, and an epmd of its own. The queue `full`
    takes five messages and refuses the next."""

    def __init__(self, folder, made, mutual=False):
        found = sorted(glob.glob('/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server'))
        program = require(found, 'rabbitmq', 'not installed (Debian: rabbitmq-server)')[-1]
        self.sbin, folder = os.path.dirname(program), str(folder)
        distribution, epmd = self.ports(5)
        self.mutual = self.tls
        users = [('admin', ADMIN, EVERYTHING), ('writer', WRITER, OPEN)]
        definitions = {
            'users': [{'name': name, 'password': word, 'tags': ''} for name, word, rights in users],
            'vhosts': [{'name': '/'}, {'name': 'other'}],
            'permissions': [dict(rights, user=name, vhost=vhost) for name, word, rights in users
                            for vhost in ('/', 'other')],
            'queues': [{'vhost': '/', 'name': 'full', 'durable': True, 'auto_delete': False,
                        'arguments': {'x-max-length': 5, 'x-overflow': 'reject-publish'}}]}
        for name, text in (
                ('rabbitmq.conf', RABBITMQ_CONF.format(
                    port=self.port, tls=self.tls, ca=made.ca, cert=made.good.cert, key=made.good.key, folder=folder,
                    mutual=str(mutual).lower())),
                ('definitions.json', json.dumps(definitions)), ('enabled_plugins', '[rabbitmq_stomp].\n')):
            with open(os.path.join(folder, name), 'w') as file:
                file.write(text)
        env = {'LC_ALL': 'C.UTF-8', 'HOME': folder, 'ERL_EPMD_PORT': epmd, 'ERL_EPMD_ADDRESS': '127.0.0.1',
               'RUNNING_UNDER_SYSTEMD': 1,      # no shell in between: the pid is its own
               'RABBITMQ_NODENAME': 'stomp%d@localhost' % self.port, 'RABBITMQ_DIST_PORT': distribution,
               'RABBITMQ_CONFIG_FILE': folder + '/rabbitmq.conf', 'RABBITMQ_PID_FILE': folder + '/pid',
               'RABBITMQ_ENABLED_PLUGINS_FILE': folder + '/enabled_plugins',
               'RABBITMQ_MNESIA_BASE': folder + '/mnesia', 'RABBITMQ_LOG_BASE': folder + '/log',
               'RABBITMQ_CONF_ENV_FILE': '/dev/null', 'RABBITMQ_GENERATED_CONFIG_DIR': folder + '/generated'}
        Peer.__init__(self, 'rabbitmq', [program], folder, self.ready_to_serve, patience=90.0,
                      env={name: str(value) for name, value in env.items()})
        self.epmd = Peer('epmd', [require(command('epmd'), 'rabbitmq', 'no epmd beside it'), '-port', str(epmd),
                                  '-address', '127.0.0.1'], folder, lambda: accepts(epmd))

    def start(self):
        if self.epmd.process is None:
            self.epmd.start()
        return Broker.start(self)

    def __exit__(self, *error):
        Broker.__exit__(self, *error)
        self.epmd.stop()

    def ctl(self, *words):
        """What rabbitmqctl says."""
        return subprocess.check_output([os.path.join(self.sbin, 'rabbitmqctl'), '-q'] + list(words), cwd=self.folder,
                                       stdin=subprocess.DEVNULL, env=dict(os.environ, **self.env)).decode()
